package detect

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/postern/postern/flow"
)

// maxWord bounds one name in a sentence, in bytes.
const maxWord = 64

// word makes a name fit for a sentence: names come from files and from hosts on
// the network, and neither may break the line, turn the direction of writing or
// fill the page.
func word(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r == utf8.RuneError || unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp) {
			r = '?'
		}
		if b.Len()+utf8.RuneLen(r) > maxWord {
			b.WriteString("…")
			break
		}
		b.WriteRune(r)
	}
	return b.String()
}

// who is an end in words: address, and in brackets what is known of it.
func who(a flow.Addr, workload, segment, identity, process string) string {
	var known []string
	if workload != "" {
		known = append(known, word(workload))
	}
	if segment != "" {
		known = append(known, "segment "+word(segment))
	}
	if identity != "" {
		known = append(known, "as "+word(identity))
	}
	if process != "" {
		known = append(known, "by "+word(process))
	}
	if len(known) == 0 {
		return a.String()
	}
	return a.String() + " (" + strings.Join(known, ", ") + ")"
}

func (f *finding) title() string {
	t, ex := &f.Told, word(f.Told.Exception)
	switch f.Key.Type {
	case flow.FindingIdentity:
		return "Two identities for one end of a session"
	case flow.FindingUnseen:
		return "A session that the host's own agent never saw"
	case flow.FindingVerdict:
		return "A session that was stopped at one end and seen at the other"
	case flow.FindingExpired:
		return "Ended exception " + ex + " still in use"
	case flow.FindingNotYetValid:
		return "Exception " + ex + " used before it was valid"
	case flow.FindingUnapproved:
		return "Unapproved exception " + ex + " in use"
	case flow.FindingOutOfScope:
		return "Exception " + ex + " used outside its scope (" + strings.Join(t.Failed.Texts(), ", ") + ")"
	case flow.FindingOutlived:
		return "Session outlived exception " + ex
	case flow.FindingGrown:
		return "Exception " + ex + " allows what it did not when it was approved (" + strings.Join(t.Failed.Texts(), ", ") + ")"
	case flow.FindingMisblocked:
		return "Permitted traffic is blocked"
	}
	if seg, ok := defaultOf(t.Rule); ok {
		return "Traffic against the default of segment " + word(seg)
	}
	return "Traffic against rule " + word(t.Rule)
}

// defaultOf gives the segment whose default a rule's name stands for.
func defaultOf(rule string) (segment string, ok bool) {
	for _, p := range []string{"default:in:", "default:out:"} {
		if s, found := strings.CutPrefix(rule, p); found {
			return s, true
		}
	}
	return "", false
}

// decided names what denied or permitted.
func decided(rule string) string {
	if seg, ok := defaultOf(rule); ok {
		if strings.HasPrefix(rule, "default:in:") {
			return "the default of segment " + word(seg) + " for incoming traffic"
		}
		return "the default of segment " + word(seg) + " for outgoing traffic"
	}
	return "rule " + word(rule)
}

func moment(t flow.Time) string {
	if t == 0 {
		return "an unknown time"
	}
	return t.Std().Format("2006-01-02 15:04:05 UTC")
}

// sentence says who did what, to whom, by which exception or against which rule,
// and why that matters. An open pair is named as a pair: no culprit is made up.
func (f *finding) sentence() string {
	if said := f.contradiction(); said != "" {
		return said
	}
	t, k := &f.Told, &f.Key
	a := who(k.Client, t.SrcWorkload, t.SrcSegment, t.Identity, t.SrcProcess)
	z := who(k.Server, t.DstWorkload, t.DstSegment, "", t.DstProcess)
	var b strings.Builder
	if t.Open {
		b.WriteString(a + " and " + z)
		switch t.Outcome {
		case flow.OutcomeBlocked, flow.OutcomeMisblocked:
			b.WriteString(" were kept from talking over ")
		case flow.OutcomeAttempted:
			b.WriteString(" tried to talk over ")
		default:
			b.WriteString(" talked over ")
		}
		b.WriteString(t.Service + " (which of them began is not known)")
	} else {
		b.WriteString(a)
		switch t.Outcome {
		case flow.OutcomeBlocked, flow.OutcomeMisblocked:
			b.WriteString(" was blocked from reaching ")
		case flow.OutcomeAttempted:
			b.WriteString(" tried to reach ")
		default:
			b.WriteString(" reached ")
		}
		b.WriteString(z + " on " + t.Service)
	}
	ex := "exception " + word(t.Exception)
	switch k.Type {
	case flow.FindingExpired:
		b.WriteString(", which " + ex + " no longer allows: it ended on " + moment(t.Facts.Ends))
	case flow.FindingNotYetValid:
		b.WriteString(", which " + ex + " does not allow yet: it begins on " + moment(t.Facts.NotBefore))
	case flow.FindingUnapproved:
		b.WriteString(", for which " + ex + " asks, but nobody had approved it by then")
	case flow.FindingOutOfScope:
		b.WriteString("; " + ex + " comes close but does not fit in " + strings.Join(t.Failed.Texts(), ", "))
	case flow.FindingOutlived:
		b.WriteString(" in a session that " + ex + " allowed and that went on after it ended on " + moment(t.ValidUntil))
	case flow.FindingGrown:
		b.WriteString(", allowed by " + ex + ", into whose scope " + newcomers(t.Failed) + " came on " + moment(t.GrownAt) + ", after it had been approved")
	case flow.FindingMisblocked:
		b.WriteString(", although " + permittedBy(t) + " permits it")
	default:
		b.WriteString(", although " + decided(t.Rule) + " denies it")
	}
	switch k.Type {
	case flow.FindingDenied, flow.FindingMisblocked, flow.FindingOutlived, flow.FindingGrown:
	default:
		if t.Rule != "" {
			b.WriteString("; " + decided(t.Rule) + " denies it")
		}
	}
	b.WriteByte('.')
	if t.Exception != "" {
		for _, p := range []struct{ what, name string }{{"Ticket", t.Facts.Ticket}, {"owner", t.Facts.Owner},
			{"requested by", t.Facts.Requester}, {"approved by", t.Facts.Approver}} {
			if p.name == "" {
				continue
			}
			if p.what == "Ticket" || !strings.HasSuffix(b.String(), ".") {
				b.WriteString(map[bool]string{true: " ", false: ", "}[p.what == "Ticket"])
			} else {
				b.WriteByte(' ')
				p.what = strings.ToUpper(p.what[:1]) + p.what[1:]
			}
			b.WriteString(p.what + " " + word(p.name))
		}
		if !strings.HasSuffix(b.String(), ".") {
			b.WriteByte('.')
		}
	}
	return b.String()
}

func permittedBy(t *told) string {
	if t.Reason == flow.ReasonWaived && t.Exception != "" {
		return "exception " + word(t.Exception)
	}
	return decided(t.Rule)
}

// next says what to do.
func (f *finding) next() string {
	t := &f.Told
	owner := "the owner of the exception"
	if t.Facts.Owner != "" {
		owner = word(t.Facts.Owner)
	}
	stop := ""
	if t.Outcome == flow.OutcomeBlocked {
		stop = " Enforcement blocked it, so there is time to ask first."
	}
	switch f.Key.Type {
	case flow.FindingIdentity:
		return "See which of the two is right: an agent that names another identity than everybody else is misconfigured, or lies."
	case flow.FindingUnseen:
		return "Look at the agent of that host: it was switched off, was bypassed, or leaves out what somebody does not want seen."
	case flow.FindingVerdict:
		return "See whether enforcement at that end does what it says: what it reports as stopped got through."
	case flow.FindingExpired:
		return "Ask " + owner + " whether the access is still needed. If it is, request a new exception with its own ticket and approval; if not, stop whatever still uses it." + stop
	case flow.FindingNotYetValid:
		return "Ask " + owner + " why it was used before its time, and stop the use until then." + stop
	case flow.FindingUnapproved:
		return "Stop the traffic or get the exception reviewed; until it is approved nothing allows this." + stop
	case flow.FindingOutlived:
		return "End the session, or ask " + owner + " for a new exception before it goes on."
	case flow.FindingGrown:
		return "See in the policy's history who brought " + newcomers(t.Failed) + " into the scope and why. If " + owner + " meant it, have the exception approved as it is now; if not, undo the change."
	case flow.FindingOutOfScope:
		if t.Failed&flow.DimSource != 0 {
			return "Find out who uses " + f.Key.Client.String() + " and why it knows this path: the exception was not given to it. The owner of the exception need not act." + stop
		}
		return "Ask " + owner + " whether this use was meant. If it was, request an exception whose scope says so; do not widen the old one." + stop
	case flow.FindingMisblocked:
		return "Compare what enforcement has loaded with the policy in force: something that is permitted does not get through."
	}
	if t.Open {
		return "Look at both hosts to see which of them began, then stop the traffic or ask for a rule or an exception."
	}
	if t.Outcome == flow.OutcomeBlocked {
		return "Find out what on " + f.Key.Client.String() + " makes the connection: it was let out and stopped on its way. Stop it, or ask for a rule or an exception."
	}
	return "Find out what on " + f.Key.Client.String() + " made the connection. Stop it, or ask for a rule or an exception; and see why enforcement let it through."
}
