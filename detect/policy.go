package detect

import (
	"strings"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/policy"
)

// Policy is what detect asks of the policy versions: facts that a finding names.
// [Versions] answers it from a policy.History.
type Policy interface {
	// ExceptionFacts gives the facts of an exception in the version in force at a
	// time, also of one that is no longer in the files but still implicated.
	ExceptionFacts(at flow.Time, exception flow.Name) (Facts, bool)
	// SegmentFacts gives a segment's tier (none, low, normal, high, crown-jewel)
	// and owner in the version in force at a time.
	SegmentFacts(at flow.Time, segment flow.Name) (tier, owner string)
	// ScopeGrown says which ends came into the scope of an exception only after it was
	// approved, and since when the scope has held both; see [policy.History.ScopeGrown].
	ScopeGrown(at flow.Time, exception flow.Name, client, server flow.Addr) (grown flow.Dimensions, since flow.Time)
	// AgentRequired says whether every host of a segment must have an agent.
	AgentRequired(at flow.Time, segment flow.Name) bool
	// Segments lists the segments of the version in force at a time, in the order of their names.
	Segments(at flow.Time) []flow.Name
	suppressions
}

// Facts are what the files say of an exception.
type Facts struct {
	Class     string    `json:"class,omitempty"`
	Ticket    string    `json:"ticket,omitempty"`
	Owner     string    `json:"owner,omitempty"`
	Requester string    `json:"requester,omitempty"`
	Approver  string    `json:"approver,omitempty"` // several are joined by ", "
	NotBefore flow.Time `json:"notBefore,omitempty"`
	// Ends is the first moment at which it no longer held: expiry, revocation or removal.
	Ends flow.Time `json:"ends,omitempty"`
}

// History is the versions of a policy: *policy.History.
type History interface {
	// At is the version in force at a time, nil for none.
	At(t flow.Time) *policy.Index
	// ScopeGrown is that of [Policy].
	ScopeGrown(at flow.Time, exception flow.Name, client, server flow.Addr) (grown flow.Dimensions, since flow.Time)
	// Interval is the version in force at a time and from when on it was; false for none.
	Interval(t flow.Time) (v policy.Interval, ok bool)
}

// Versions answers what detect asks from the versions of a policy.
type Versions struct{ History }

// ExceptionFacts implements [Policy].
func (v Versions) ExceptionFacts(at flow.Time, exception flow.Name) (Facts, bool) {
	x := v.At(at)
	if x == nil {
		return Facts{}, false
	}
	e, ends, ok := x.Exception(exception)
	if !ok {
		return Facts{}, false
	}
	f := factsOf(e)
	f.Ends = ends
	return f, true
}

func factsOf(e *policy.Exception) Facts {
	at, _ := e.ApprovedAt()
	return Facts{Class: e.Class, Ticket: clip(e.Ticket), Owner: clip(e.Owner), Requester: clip(e.RequestedBy), Approver: clip(e.Approvers()),
		NotBefore: max(e.NotBefore, at)}
}

// clip cuts a text of the files to 256 bytes, as names are, so that a finding fits
// into a message.
func clip(s string) string {
	const most = 256
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "")
}

// SegmentFacts implements [Policy].
func (v Versions) SegmentFacts(at flow.Time, segment flow.Name) (tier, owner string) {
	x := v.At(at)
	if x == nil || segment == flow.NoName {
		return "", ""
	}
	g := x.Segment(segment)
	if g == nil {
		return "", ""
	}
	return g.Tier.String(), g.Owner
}

// Stamp implements [Policy].
func (v Versions) Stamp(at flow.Time) (version, commit string, since flow.Time) {
	in, ok := v.Interval(at)
	if !ok {
		return "", "", 0
	}
	if p := in.Index.Policy(); p != nil {
		version, commit = p.Version(), clip(p.Commit)
	}
	if in.Since != policy.Always {
		since = in.Since
	}
	return version, commit, since
}

// Segments implements [Policy].
func (v Versions) Segments(at flow.Time) []flow.Name {
	x := v.At(at)
	if x == nil {
		return nil
	}
	return x.SegmentNames()
}

// AgentRequired implements [Policy].
func (v Versions) AgentRequired(at flow.Time, segment flow.Name) bool {
	x := v.At(at)
	if x == nil || segment == flow.NoName {
		return false
	}
	g := x.Segment(segment)
	return g != nil && g.AgentRequired
}
