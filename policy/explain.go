package policy

import (
	"fmt"
	"strings"

	"github.com/postern/postern/flow"
)

// Step is one thing considered on the way to a verdict, in the order in which
// they decide.
type Step struct {
	Kind    string   `json:"kind"`           // coverage, rule, default, exception, result
	ID      string   `json:"id,omitempty"`   // of the rule or exception
	What    string   `json:"what,omitempty"` // action and mode of a rule, state of an exception
	Matches string   `json:"matches"`        // yes, no, unknown; empty where nothing is matched
	Failed  []string `json:"failed,omitempty"`
	Missing []string `json:"missing,omitempty"`
	Decides bool     `json:"decides"` // the verdict names it
	Why     string   `json:"why"`
}

// Explanation is a verdict and how it came about.
type Explanation struct {
	Conversation Conversation
	Client       Endpoint
	Server       Endpoint
	Verdict      flow.Verdict
	Steps        []Step

	names *flow.Names
}

var truthTexts = [...]string{"no", "unknown", "yes"}

// Explain judges c as [Index.Judge] does and says of every rule and exception, in
// the order in which they count, why it did or did not decide.
func (x *Index) Explain(c *Conversation) *Explanation {
	e := &Explanation{Conversation: *c, names: x.names}
	x.Judge(c, &e.Verdict)
	v := &e.Verdict
	text := x.names.Text
	if c.Known&KnownClient != 0 {
		e.Client = *x.Endpoint(c.Client.Addr)
	}
	if c.Known&KnownServer != 0 {
		e.Server = *x.Endpoint(c.Server.Addr)
	}
	result := func() *Explanation {
		e.Steps = append(e.Steps, Step{Kind: "result", Decides: true, Failed: v.Failed.Texts(), Missing: v.Missing.Texts(), Why: x.sum(v)})
		return e
	}
	if c.Known&(KnownClient|KnownServer) != KnownClient|KnownServer {
		e.Steps = append(e.Steps, Step{Kind: "coverage", Decides: true, Why: "an address is missing, so nothing can be matched"})
		return result()
	}
	if isICMPError(c) {
		e.Steps = append(e.Steps, Step{Kind: "coverage", Decides: true, Why: "an ICMP error follows the conversation it quotes, which is not known here"})
		return result()
	}
	var r rows
	x.pick(c, x.region(c.Client.Addr), x.region(c.Server.Addr), &r)
	in := coverage(r.client, r.server)
	covered, coveredStaged := in.has(enforced), in.has(staged)
	e.Steps = append(e.Steps, Step{Kind: "coverage", Decides: !covered, Why: x.whyCovered(&r, covered, coveredStaged)})
	if !covered && !coveredStaged {
		return result()
	}
	overridden := false
	denies := make([]uint64, x.exceptAt) // certain denies, by bit of the rows
	for bit := range x.exceptAt << 6 {
		rule := x.ruleAt(bit)
		if rule == nil {
			continue
		}
		t, failed, missing := x.match(bit, c, &r)
		held := has(x.mask[enforced], bit)
		s := Step{Kind: "rule", ID: rule.ID, What: rule.Action.String(), Matches: truthTexts[t], Failed: failed.Texts(), Missing: missing.Texts(),
			Decides: v.Rule != flow.NoName && v.Rule == x.matchers[bit].id}
		if t == yes && held {
			switch rule.Action {
			case OverrideDeny:
				overridden = true
			case Deny:
				set(denies, bit)
			}
		}
		switch {
		case t == no:
			s.Why = "does not match: " + listed(failed.Texts()) + " differ"
			if len(failed.Texts()) == 1 {
				s.Why = "does not match: " + failed.Texts()[0] + " differs"
			}
		case !held:
			s.What += ", staged"
			s.Why = "matches, but is staged: it counts for the staged verdict only"
			if t == unknown {
				s.Why = "may match (" + listed(missing.Texts()) + " not known), but is staged: it counts for the staged verdict only"
			}
		case !covered:
			s.Why = "matches, but the conversation is not covered by anything enforced"
		case t == unknown:
			s.Why = "may match: " + listed(missing.Texts()) + " not known"
		case s.Decides:
			s.Why = "matches and decides"
		default:
			s.Why = "matches, but " + text(v.Rule) + " is named before it"
			if v.Rule == flow.NoName {
				s.Why = "matches, but what is not known could change the outcome"
			}
		}
		if !held && t == no {
			s.What += ", staged"
		}
		e.Steps = append(e.Steps, s)
	}
	if covered {
		deny, name := r.byDefault(enforced)
		word := "allows"
		if deny {
			word = "denies"
		}
		s := Step{Kind: "default", ID: text(name), What: word, Decides: v.Rule == name}
		if s.Decides {
			s.Why = "no rule decides, so the default does: it " + word
		} else {
			s.Why = "it " + word + ", but a rule goes before it"
			if v.Rule == flow.NoName {
				s.Why = "it " + word + ", but what is not known could change the outcome"
			}
		}
		e.Steps = append(e.Steps, s)
	}
	for i := range x.excepts {
		if x.excepts[i].e != nil {
			e.Steps = append(e.Steps, x.explainException(i, c, &r, v, covered, overridden, denies))
		}
	}
	return result()
}

// ruleAt is the rule of a bit, nil for padding.
func (x *Index) ruleAt(bit int) *Rule {
	kinds := [...]struct {
		action   Action
		from, to int
	}{{OverrideDeny, 0, x.denyAt}, {Deny, x.denyAt, x.allowAt}, {Allow, x.allowAt, x.exceptAt}}
	for _, k := range kinds {
		if bit>>6 < k.from || bit>>6 >= k.to {
			continue
		}
		n := bit - k.from<<6
		for i := range x.policy.Rules {
			if x.policy.Rules[i].Action != k.action {
				continue
			}
			if n == 0 {
				return &x.policy.Rules[i]
			}
			n--
		}
	}
	return nil
}

// match evaluates one bit by itself, dimension by dimension.
func (x *Index) match(bit int, c *Conversation, r *rows) (t truth, failed, missing flow.Dimensions) {
	failed, missing = x.openMatch(bit, &c.Client, &c.Server, r.client.sig, r.server.sig)
	if !has(r.from, bit) {
		failed |= flow.DimSource
	}
	if !has(r.to, bit) {
		failed |= flow.DimDestination
	}
	if !has(r.perhaps, bit) {
		failed |= flow.DimService
	} else if !has(r.sure, bit) {
		missing |= flow.DimService
	}
	missing &^= failed
	switch {
	case failed != 0:
		return no, failed, missing
	case missing != 0:
		return unknown, 0, missing
	}
	return yes, 0, 0
}

func (x *Index) explainException(i int, c *Conversation, r *rows, v *flow.Verdict, covered, overridden bool, denies []uint64) Step {
	bit := x.exceptAt<<6 + i
	info := &x.excepts[i]
	t, failed, missing := x.match(bit, c, r)
	st := info.state(c.Start)
	what := stateTexts[st]
	if st == expired && info.removed && info.end < info.e.End() {
		what = "removed"
	} else if st == expired && info.e.RevokedAt != 0 && info.e.RevokedAt <= info.end {
		what = "revoked"
	}
	s := Step{Kind: "exception", ID: info.e.ID, What: what, Matches: truthTexts[t], Failed: failed.Texts(), Missing: missing.Texts(),
		Decides: v.Exception != flow.NoName && v.Exception == x.matchers[bit].id}
	isListed := false
	for j := range min(int(v.OthersTotal), flow.MaxOthers) {
		isListed = isListed || v.Others[j] == x.matchers[bit].id
	}
	var unnamed []string
	for w := x.denyAt; w < x.allowAt; w++ {
		for b := range 64 {
			if denies[w]>>b&1 != 0 && info.overrides[w-x.denyAt]>>b&1 == 0 {
				unnamed = append(unnamed, x.names.Text(x.matchers[w<<6+b].id))
			}
		}
	}
	var parts []string
	switch st {
	case unapproved:
		parts = append(parts, "it is not approved at this time")
	case over:
		parts = append(parts, "it ended "+info.end.String()+", too long ago to be implicated")
	case expired:
		parts = append(parts, "it "+map[string]string{"removed": "was removed", "revoked": "was revoked", "expired": "expired"}[what]+" at "+info.end.String())
	case notYetValid:
		parts = append(parts, "it is valid only from "+info.notBefore.String())
	}
	switch t {
	case no:
		parts = append(parts, "its scope does not match in "+listed(failed.Texts()))
	case unknown:
		parts = append(parts, listed(missing.Texts())+" not known")
	}
	if overridden {
		parts = append(parts, "an override-deny matches, which no exception beats")
	} else if len(unnamed) > 0 {
		parts = append(parts, "it does not name the deny "+listed(unnamed))
	}
	var verb string
	switch {
	case !covered:
		verb = "plays no part: nothing enforced covers the conversation"
	case s.Decides && v.Reason == flow.ReasonWaived:
		verb = "waives the denial until " + info.end.String()
	case s.Decides && v.Failed&flow.DimDirection != 0:
		verb, parts = "is implicated: it matches with the ends swapped", nil
	case s.Decides:
		verb = "is implicated (" + v.Reason.String() + ")"
	case v.Reason == flow.ReasonPermitted && isListed:
		verb = "fits, but is redundant: the rules allow already"
	case isListed:
		verb = "is listed beside " + x.names.Text(v.Exception)
	case v.Reason == flow.ReasonUnverified && t != no && st == active:
		verb = "could decide"
	default:
		verb = "does not decide"
	}
	s.Why = verb
	if len(parts) > 0 {
		s.Why += ": " + strings.Join(parts, "; ")
	}
	return s
}

func listed(texts []string) string { return strings.Join(texts, ", ") }

func (x *Index) whyCovered(r *rows, covered, coveredStaged bool) string {
	if (r.client.barred | r.server.barred).has(staged) {
		return "not covered: an end is multicast, broadcast, link-local or unspecified, and no rule's cidr holds it"
	}
	say := func(r *region) string {
		e := &x.endpoints[r.endpoint]
		if s := x.Segment(e.Segment); s != nil {
			return s.Name + " (" + e.Stage.String() + ")"
		}
		return "no segment"
	}
	ends := "the client is in " + say(r.client) + ", the server in " + say(r.server)
	switch {
	case covered:
		return "covered: " + ends
	case coveredStaged:
		return "not covered by what is enforced, only by what is staged: " + ends
	}
	return "not covered: " + ends
}

// sum says the verdict in one sentence.
func (x *Index) sum(v *flow.Verdict) string {
	b := v.Reason.String()
	if v.Exception != flow.NoName {
		b += " by " + x.names.Text(v.Exception)
	}
	if v.Rule != flow.NoName {
		b += ", rule " + x.names.Text(v.Rule)
	}
	if v.Failed != 0 {
		b += ", failing in " + listed(v.Failed.Texts())
	}
	if v.Missing != 0 {
		b += ", not known: " + listed(v.Missing.Texts())
	}
	if v.StagedReason != v.Reason {
		b += "; if all that is staged were enforced: " + v.StagedReason.String()
	}
	return b
}

// String is the explanation as people read it, one step a line.
func (e *Explanation) String() string {
	var b strings.Builder
	name := e.names.Text
	end := func(what string, p *Party, known bool, s *Endpoint) {
		if !known {
			fmt.Fprintf(&b, "%-8s not known\n", what)
			return
		}
		fmt.Fprintf(&b, "%-8s %v", what, p.Addr)
		for _, x := range []struct {
			k string
			n flow.Name
		}{{"segment", s.Segment}, {"zone", s.Zone}, {"workload", s.Workload}, {"app", s.App}, {"role", s.Role}, {"env", s.Env}, {"identity", p.Identity}} {
			if x.n != flow.NoName {
				fmt.Fprintf(&b, ", %s %s", x.k, printable(name(x.n)))
			}
		}
		if s.Stage != StageNone {
			fmt.Fprintf(&b, ", stage %v, tier %v", s.Stage, s.Tier)
		}
		b.WriteByte('\n')
	}
	c := &e.Conversation
	end("client", &c.Client, c.Known&KnownClient != 0, &e.Client)
	end("server", &c.Server, c.Known&KnownServer != 0, &e.Server)
	fmt.Fprintf(&b, "%-8s %s\n", "service", c.service())
	fmt.Fprintf(&b, "%-8s %v\n", "at", c.Start)
	fmt.Fprintf(&b, "%-8s %s\n\n", "policy", name(e.Verdict.PolicyVersion))
	for _, s := range e.Steps {
		mark := " "
		if s.Decides {
			mark = ">"
		}
		b.WriteString(mark + " " + s.Kind)
		if s.ID != "" {
			b.WriteString(" " + printable(s.ID))
		}
		if s.What != "" {
			b.WriteString(" (" + s.What + ")")
		}
		b.WriteString(": " + printable(s.Why) + "\n")
	}
	return b.String()
}

// printable keeps text from a policy or a host from moving the cursor or breaking
// the line.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == '\u2028' || r == '\u2029' {
			return '�'
		}
		return r
	}, s)
}

func (c *Conversation) service() string {
	if c.Known&KnownProto == 0 {
		return "not known"
	}
	r := Range{c.Proto, 0, 0xffff}
	switch {
	case isICMP(c.Proto) && c.Known&KnownICMP != 0:
		n := uint16(c.ICMPType)<<8 | uint16(c.ICMPCode)
		r.Low, r.High = n, n
	case hasPorts(c.Proto) && c.Known&KnownPort != 0:
		r.Low, r.High = c.Port, c.Port
	}
	return r.String()
}
