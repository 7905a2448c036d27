package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/sink"
)

// findingText prints all there is of a finding for people. What came from the network is
// shown, never acted upon.
func findingText(w io.Writer, s *shownFinding) error {
	f := &s.Finding
	var b bytes.Buffer
	told := map[string]bool{"samples": true, "edges": true, "edges_total": true}
	line := func(label, format string, args ...any) {
		for i, a := range args {
			if text, ok := a.(string); ok {
				args[i] = sink.Visible(text)
			}
		}
		if text := fmt.Sprintf(format, args...); strings.TrimSpace(text) != "" {
			fmt.Fprintf(&b, "%-15s%s\n", label, text)
		}
	}
	say := func(members ...string) {
		for _, m := range members {
			told[m] = true
		}
	}

	fmt.Fprintf(&b, "%s\n\n", sink.Visible(f.Title))
	fmt.Fprintf(&b, "%s\n", sink.Visible(f.Sentence))
	if f.Next != "" {
		fmt.Fprintf(&b, "What to do: %s\n", sink.Visible(f.Next))
	}
	b.WriteByte('\n')
	say("title", "sentence", "next")

	line("finding", "%s, revision %d", f.ID, f.Revision)
	line("type", "%s, severity %s, confidence %.2f", f.Type, f.Severity.String(), f.Confidence)
	line("seen", "%s to %s", f.FirstSeen.String(), f.LastSeen.String())
	line("sessions", "%d", f.Count)
	say("id", "schema_version", "revision", "type", "severity", "confidence", "first_seen", "last_seen", "count")
	end := func(address, segment string) string {
		if address != "" && segment != "" {
			return address + " in segment " + segment
		}
		return address + segment
	}
	if f.Orientation == "open" {
		line("between", "%s and %s; which of them began is not known", end(f.Client, f.SrcSegment), end(f.Server, f.DstSegment))
	} else {
		line("client", "%s", end(f.Client, f.SrcSegment))
		line("server", "%s", end(f.Server, f.DstSegment))
	}
	line("service", "%s", f.Service)
	say("client", "server", "orientation", "service", "src_segment", "dst_segment")
	if f.Expected != "" || f.Observed != "" {
		line("verdict", "%s: expected %s (%s), observed %s", f.Outcome, f.Expected, f.Reason, f.Observed)
	}
	line("fails in", "%s", strings.Join(f.Failed, ", "))
	line("not known", "%s", strings.Join(f.Missing, ", "))
	line("rule", "%s", f.Rule)
	line("exception", "%s", f.Exception)
	line("ticket", "%s", f.Ticket)
	line("owner", "%s", f.Owner)
	line("requested by", "%s", f.Requester)
	line("approved by", "%s", f.Approver)
	line("policy", "%s", policyText(f))
	line("techniques", "%s", strings.Join(f.Techniques, ", "))
	line("continues", "%s", f.Continues)
	say("observed", "expected", "reason", "outcome", "failed", "missing", "rule", "exception", "ticket", "owner", "requester", "approver",
		"policy_version", "policy_commit", "policy_since", "techniques", "continues")
	line("about", "%s", f.Subject)
	if f.Score != 0 {
		line("score", "%.2f", f.Score)
	}
	for _, p := range f.ScoreParts {
		line("", "%+d %s: %s", p.Points, p.Name, p.Says)
	}
	for i, e := range f.Ends {
		label := ""
		if i == 0 {
			label = "ends"
		}
		line(label, "%s", endText(&e))
	}
	line("exporters", "%s", strings.Join(f.Exporters, ", "))
	line("observers", "%s", strings.Join(f.Observers, ", "))
	line("more sessions", "%s", f.Query)
	say("subject", "score", "score_parts", "ends", "hops", "exporters", "observers", "query")
	if f.SuppressedBy != "" {
		line("suppressed", "by %s; receivers are not told while it holds", f.SuppressedBy)
	}
	if f.Suppressed > 0 {
		line("", "%d records came while a suppression held", f.Suppressed)
	}
	if f.GroupedBy != "" {
		line("told", "with many others by finding %s", f.GroupedBy)
	}
	say("suppressed_by", "suppressed", "grouped_by")
	switch {
	case s.Judgment == nil:
		line("judged", "by nobody")
	case s.Judgment.Revision < f.Revision:
		line("judged", "%s, at revision %d; more came since", s.Judgment.Judgment, s.Judgment.Revision)
	default:
		line("judged", "%s", s.Judgment.Judgment)
	}
	if err := rest(f, told, line); err != nil {
		return err
	}

	if len(f.Hops) > 0 {
		fmt.Fprintf(&b, "\nthe way:\n")
		for i, h := range f.Hops {
			by := ""
			if h.Exception != "" {
				by = " by exception " + h.Exception
			}
			fmt.Fprintf(&b, "  %d. %s to %s: %s → %s on %s%s (session %s)\n", i+1, h.Start, h.End,
				sink.Visible(endText(&h.Client)), sink.Visible(endText(&h.Server)), sink.Visible(h.Service), sink.Visible(by), sink.Visible(h.Session))
		}
	}
	if len(f.Edges) > 0 {
		fmt.Fprintf(&b, "\nedges, %d of %d:\n", len(f.Edges), f.EdgesTotal)
		for _, e := range f.Edges {
			fmt.Fprintf(&b, "  %s → %s %s/%d\n", sink.Visible(e.Source), sink.Visible(e.Destination), sink.Visible(e.Protocol), e.Port)
		}
	}
	if len(s.History) > 0 {
		fmt.Fprintf(&b, "\njudgments, the newest first:\n")
		for _, j := range s.History {
			why := ""
			if j.Reason != "" {
				why = ": " + sink.Visible(j.Reason)
			}
			fmt.Fprintf(&b, "  %s  %s by %s (%s)%s\n", j.At, j.Judgment, sink.Visible(j.By), sink.Visible(j.Via), why)
		}
	}
	if len(f.Samples) > 0 {
		fmt.Fprintf(&b, "\nsamples:\n")
		for _, sample := range f.Samples {
			fmt.Fprintf(&b, "  %s\n", sink.Visible(string(sample)))
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

// policyText is the policy version that a finding is told under, in words.
func policyText(f *flow.Finding) string {
	out := f.PolicyVersion
	if f.PolicyCommit != "" {
		out += ", commit " + f.PolicyCommit
	}
	if f.PolicySince != 0 {
		out += ", in force since " + f.PolicySince.String()
	}
	return out
}

// endText is who was at an end, in words.
func endText(e *flow.End) string {
	out := []byte(e.Address)
	if e.Translated != "" {
		out = fmt.Appendf(out, " (behind a translation %s)", e.Translated)
	}
	for _, p := range [][2]string{{"workload", e.Workload}, {"host", e.Host}, {"segment", e.Segment}, {"process", e.Process}, {"identity", e.Identity}} {
		if p[1] != "" {
			out = fmt.Appendf(out, ", %s %s", p[0], p[1])
		}
	}
	if e.IdentityFrom != "" {
		out = fmt.Appendf(out, " (says %s", e.IdentityFrom)
		if e.IdentityAge != nil {
			out = fmt.Appendf(out, ", silent for %d s", *e.IdentityAge)
		}
		if e.IdentityCertainty > 0 {
			out = fmt.Appendf(out, ", certain to %.0f %%", 100*e.IdentityCertainty)
		}
		out = append(out, ')')
	}
	return string(out)
}

// rest prints the members of a finding's JSON that have not been told of yet: what detectors
// add beside what every finding has.
func rest(f any, told map[string]bool, line func(label, format string, args ...any)) error {
	raw, err := json.Marshal(f)
	if err != nil {
		return err
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(raw, &members); err != nil {
		return err
	}
	var names []string
	for name := range members {
		if !told[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		label := strings.ReplaceAll(name, "_", " ")
		var text string
		var list []json.RawMessage
		switch {
		case json.Unmarshal(members[name], &text) == nil:
			line(label, "%s", text)
		case json.Unmarshal(members[name], &list) == nil:
			for i, v := range list {
				if i > 0 {
					label = ""
				}
				line(label, "%s", string(v))
			}
		default:
			line(label, "%s", string(members[name]))
		}
	}
	return nil
}
