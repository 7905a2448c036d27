package flow

import (
	"encoding/json"
	"strconv"
)

// FindingSchema is the version of the finding's JSON form. Later kinds of finding
// add fields; none changes its meaning.
const FindingSchema = 1

// The types of finding that judging gives rise to. A type is part of the id.
const (
	FindingExpired     = "expired-exception"
	FindingNotYetValid = "not-yet-valid"
	FindingUnapproved  = "unapproved"
	FindingOutOfScope  = "out-of-scope"
	FindingOutlived    = "outlived-exception"
	FindingGrown       = "scope-growth"
	FindingDenied      = "policy-violation"
	FindingMisblocked  = "misblocked"
)

// The types of finding that contradictions between observers give rise to.
const (
	FindingIdentity = "identity-mismatch"
	FindingUnseen   = "unseen-by-agent"
	FindingVerdict  = "verdict-mismatch"
)

// Finding is what somebody must be told: the same object in the webhook, in
// ClickHouse and on standard output. Strings may hold what hosts on the network
// chose to say; whoever renders one escapes it.
type Finding struct {
	ID            string   `json:"id"`
	SchemaVersion int      `json:"schema_version"`
	Revision      uint64   `json:"revision"`
	Type          string   `json:"type"`
	Title         string   `json:"title"`
	Severity      Severity `json:"severity"`
	Confidence    float64  `json:"confidence"`
	FirstSeen     Time     `json:"first_seen"`
	LastSeen      Time     `json:"last_seen"`
	Count         int64    `json:"count"` // sessions

	Client string `json:"client"`
	Server string `json:"server"`
	// Orientation is "known", or "open" where client and server could not be told
	// apart and name the pair in ascending order.
	Orientation string `json:"orientation"`
	Service     string `json:"service"`
	SrcSegment  string `json:"src_segment"`
	DstSegment  string `json:"dst_segment"`

	Observed string   `json:"observed"`
	Expected string   `json:"expected"`
	Reason   string   `json:"reason"`
	Outcome  string   `json:"outcome"`
	Failed   []string `json:"failed,omitempty"`
	Missing  []string `json:"missing,omitempty"`

	Rule          string `json:"rule"`
	Exception     string `json:"exception,omitempty"`
	Ticket        string `json:"ticket,omitempty"`
	Owner         string `json:"owner,omitempty"`
	Requester     string `json:"requester,omitempty"`
	Approver      string `json:"approver,omitempty"`
	PolicyVersion string `json:"policy_version"`

	Techniques []string `json:"techniques,omitempty"` // MITRE ATT&CK ids
	// Continues is the id of the finding of the day before that this one goes on.
	Continues string `json:"continues,omitempty"`

	Edges      []Edge            `json:"edges"` // at most MaxEdges
	EdgesTotal int               `json:"edges_total"`
	Samples    []json.RawMessage `json:"samples,omitempty"` // judged flows as replay --flows prints them

	Sentence string `json:"sentence"`
	Next     string `json:"next"`
}

// MaxEdges is how many edges a message lists.
const MaxEdges = 100

// Edge is one source, destination, port and protocol that a finding speaks of.
type Edge struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
	Port        uint16 `json:"port"`
	Protocol    string `json:"protocol"`
}

// EventID names one change of a finding: id and revision. Everything that must
// happen once happens once per event id (webhook-id, _id, Kafka key).
func (f *Finding) EventID() string { return f.ID + ":" + strconv.FormatUint(f.Revision, 10) }

// Contribution is what one batch adds to a finding: sessions (negative where a
// late record joined two sessions that had been counted apart) and its span.
// Written under the batch's token, so that the sum never doubles. Finding is the
// state after it.
type Contribution struct {
	Sessions  int64
	FirstSeen Time
	LastSeen  Time
	Finding   *Finding
}
