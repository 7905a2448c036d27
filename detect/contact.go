package detect

import "github.com/postern/postern/flow"

// fate is what became of an attempt to reach something, as far as it was seen when the
// session settled.
type fate uint8

const (
	fateUnknown    fate = iota // let go by the client's own agent; nobody saw what came of it
	fateAnswered               // both ends sent
	fateUnanswered             // nothing came back
	fateRefused                // the server's end reset it
	fateDenied                 // enforcement stopped it
)

var fateTexts = [...]string{"unknown", "answered", "unanswered", "refused", "denied"}

func (f fate) String() string { return fateTexts[f] }

// failed says whether the attempt came to nothing.
func (f fate) failed() bool { return f >= fateUnanswered }

// Contact is a settled session that detectors of more than one pair read: what it was, and
// what only the pair's own past tells of it. It is a value of fixed size without pointers.
type Contact struct {
	flow.Session
	Class class
	Fate  fate
	// New: this client was not known to reach this service of this server.
	New bool
	// NewPair: nor any other of its services.
	NewPair bool
	// Unsure: New, and it may only have been forgotten; see [Digest.Unsure].
	Unsure bool
	// Worked: the edge was known to carry data both ways.
	Worked bool
	// Mapped: a dynamic port that belongs to an endpoint-mapper session of the pair just before.
	Mapped bool
	// Known is when the edge was seen last before; 0 not as far back as is remembered.
	Known flow.Time
	// Stopped: enforcement had stopped it on this edge within the hour before; now it did not.
	Stopped bool
	// Repeats is how many sessions of this edge and exception were not passed on since the last one.
	Repeats uint32
	// Rhythm is what the times of the edge are like, where that is passed on.
	Rhythm rhythm
	// Aside: it is passed on for its rhythm alone.
	Aside bool
}

// until is up to when it is known to have gone on, as it settled. Its end may be known, and may be
// later: whether it is hangs on how input was cut.
func (c *Contact) until() flow.Time { return max(c.Start, min(c.End, c.Settled)) }

// fateOf tells what became of a session within the time it took to settle.
func fateOf(s *flow.First) fate {
	seen := s.Reporters&^(1<<flow.ReporterSource) != 0 // by somebody on the way or at the server's end
	told := s.Reporters&(1<<flow.ReporterDestination) != 0
	switch {
	case s.Observed == flow.ObservedDeny:
		return fateDenied
	case s.Proto == flow.ProtoTCP && s.Server.TCPFlags&flow.RST != 0 && s.Server.TCPFlags&(flow.SYN|flow.PSH) == 0:
		return fateRefused
	case s.Answered, told:
		return fateAnswered
	case !seen:
		return fateUnknown
	case s.Proto == flow.ProtoTCP && s.Client.TCPFlags&flow.PSH != 0:
		return fateAnswered // who has data to send was connected: only one direction was exported
	}
	return fateUnanswered
}

// misuse says whether a verdict speaks of something that may not be: its traffic is never
// learned as normal (THREATS 32). Exceptions are not normal either: they end.
func misuse(reason flow.Reason, exception flow.Name, observed flow.Observed) bool {
	switch reason {
	case flow.ReasonNone, flow.ReasonPermitted, flow.ReasonUncovered:
		return observed == flow.ObservedDeny
	case flow.ReasonUnverified, flow.ReasonExpiryUncertain:
		return exception != flow.NoName || observed == flow.ObservedDeny
	}
	return true
}
