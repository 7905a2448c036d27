package detect

import "github.com/postern/postern/flow"

// severities is the base severity of a finding by type and outcome; see
// docs/findings.md. A session that outlived its exception was let through by
// definition.
var severities = map[string]struct{ escaped, attempted, blocked flow.Severity }{
	flow.FindingExpired:     {flow.High, flow.Medium, flow.Low},
	flow.FindingUnapproved:  {flow.High, flow.Medium, flow.Low},
	flow.FindingNotYetValid: {flow.Medium, flow.Low, flow.Low},
	flow.FindingOutOfScope:  {flow.Medium, flow.Low, flow.Low},
	flow.FindingOutlived:    {flow.Medium, flow.Medium, flow.Low},
	flow.FindingGrown:       {flow.Low, flow.Low, flow.Low},
	flow.FindingDenied:      {flow.Medium, flow.Low, flow.Low},
	flow.FindingMisblocked:  {flow.Low, flow.Low, flow.Low},
	flow.FindingIdentity:    {flow.Medium, flow.Medium, flow.Low},
	flow.FindingUnseen:      {flow.Medium, flow.Low, flow.Low},
	flow.FindingVerdict:     {flow.Medium, flow.Medium, flow.Low},
}

const crownJewel = "crown-jewel"

// severity of one sighting: the base, one more where the destination is a crown
// jewel, where a deny rule (not a mere default) was escaped, or where the
// exception is break-glass, which opens the most and for the shortest time; one
// less where the destination's tier is low. A block by mistake is always low, and
// what was blocked as it should be never rises above medium.
func severity(t *told, typ string) flow.Severity {
	base := severities[typ]
	var s flow.Severity
	switch t.Outcome {
	case flow.OutcomeBlocked:
		s = base.blocked
	case flow.OutcomeAttempted:
		s = base.attempted
	default:
		s = base.escaped
	}
	if typ == flow.FindingMisblocked {
		return s
	}
	if t.Tier == crownJewel {
		s++
	}
	if t.Facts.Class == "break-glass" {
		s++
	}
	if typ == flow.FindingDenied && !byDefault(t.Rule) {
		s++
	}
	if t.Tier == "low" && s > flow.Low {
		s--
	}
	if t.Outcome == flow.OutcomeBlocked {
		return min(s, flow.Medium)
	}
	return min(s, flow.Critical)
}

// scored is the severity as a score, 0 to 1, and what it is made of: a quarter a step.
func scored(t *told, typ string) (float64, []flow.ScorePart) {
	base := *t
	base.Tier, base.Facts.Class, base.Rule = "", "", "default:"
	at := severity(&base, typ)
	outcome := t.Outcome.String()
	if typ == flow.FindingOutlived {
		outcome = "let through"
	}
	parts := []flow.ScorePart{{Name: "type", Points: 25 * int(at), Says: typ + ", " + outcome}}
	// Each is added to what stands before it, so that bounds show where they bite.
	add := func(name, says string) {
		if now := severity(&base, typ); now != at {
			parts = append(parts, flow.ScorePart{Name: name, Points: 25 * (int(now) - int(at)), Says: says})
			at = now
		}
	}
	base.Rule = t.Rule
	add("rule", "a deny rule says so, not merely a default")
	base.Facts.Class = t.Facts.Class
	add("exception", "the exception is break-glass, which opens most")
	if base.Tier = t.Tier; t.Tier == "low" {
		add("criticality", "the destination's tier is low")
	} else {
		add("criticality", "it is a crown jewel")
	}
	return float64(at) / 4, parts
}

// classify says which type of finding a verdict gives rise to; false for none.
// A straddling session is not among them; see straddle.go.
func classify(v *flow.Verdict) (string, bool) {
	switch v.Reason {
	case flow.ReasonExpired:
		return flow.FindingExpired, true
	case flow.ReasonNotYetValid:
		return flow.FindingNotYetValid, true
	case flow.ReasonUnapproved:
		return flow.FindingUnapproved, true
	case flow.ReasonOutOfScope:
		return flow.FindingOutOfScope, true
	case flow.ReasonDenied:
		return flow.FindingDenied, v.Outcome == flow.OutcomeEscaped
	case flow.ReasonPermitted, flow.ReasonWaived:
		return flow.FindingMisblocked, v.Outcome == flow.OutcomeMisblocked
	}
	return "", false // uncovered, unverified and expiry-uncertain are counted, never found
}

// technique names the MITRE ATT&CK technique that the service alone bears out;
// empty where it bears out none. Lateral movement is between segments or within
// one, never to or from somewhere unknown.
func technique(proto uint8, port uint16, open bool) string {
	if proto != flow.ProtoTCP && !(proto == flow.ProtoUDP && port == 3389) {
		return ""
	}
	switch {
	case open:
		return "T1021" // two dynamic ports: DCE/RPC or its like
	case port == 3389:
		return "T1021.001"
	case port == 139, port == 445:
		return "T1021.002"
	case port == 22:
		return "T1021.004"
	case port >= 5900 && port <= 5909:
		return "T1021.005"
	case port == 5985, port == 5986:
		return "T1021.006"
	case port == 23, port >= 512 && port <= 514, port == 135, port >= 49152:
		return "T1021"
	}
	return ""
}

// techniques of a finding. Valid accounts (T1078) only where an identity was known
// and an exception that was no longer or not yet in force was used with it.
func techniques(k *key, t *told) []string {
	var out []string
	internal := t.SrcSegment != "" && t.DstSegment != "" && t.SrcSegment != "internet" && t.DstSegment != "internet"
	if s := technique(k.Proto, k.Port, t.Open); s != "" && internal && k.Type != flow.FindingMisblocked {
		out = append(out, s)
	}
	switch k.Type {
	case flow.FindingExpired, flow.FindingOutlived, flow.FindingUnapproved, flow.FindingNotYetValid:
		if t.Identity != "" && t.Outcome != flow.OutcomeBlocked {
			out = append(out, "T1078")
		}
	}
	return out
}
