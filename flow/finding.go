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

// The types of finding that the behaviour of hosts gives rise to.
const (
	FindingPressure  = "state-pressure"
	FindingFirstSeen = "first-seen-edge"
	FindingFanOut    = "remote-admin-fan-out"
	FindingScan      = "scan"
	FindingNews      = "exception-news"
	FindingChain     = "chain"
	FindingPivot     = "exception-pivot"
	FindingSwitch    = "identity-switch"
	FindingBlocked   = "blocked-pressure"
	FindingBeacon    = "beacon"
	FindingStaging   = "staging"
	FindingFlood     = "finding-flood"
)

// The types of finding about what is not seen.
const (
	FindingSilentExporter = "silent-exporter"
	FindingSilentHost     = "silent-host"
	FindingAgentMissing   = "agent-missing"
	FindingLoss           = "sequence-loss"
	FindingStale          = "stale-identity"
	FindingSkew           = "clock-skew"
	FindingSampling       = "sampling-change"
)

// The types of finding about enforcement that is not as declared.
const (
	FindingDrift = "enforcement-drift"
	FindingSplit = "enforcement-split"
	// Of the map of segments.
	FindingUnmapped      = "unmapped-address"
	FindingMisplaced     = "segment-mismatch"
	FindingUnseenSegment = "segment-unseen"
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
	// PolicyCommit is the Git commit that the policy's folder stood at when that version was
	// taken; empty where it was no working tree. PolicySince is from when on the version was in
	// force, absent if always.
	PolicyCommit string `json:"policy_commit,omitempty"`
	PolicySince  Time   `json:"policy_since,omitzero"`

	Techniques []string `json:"techniques,omitempty"` // MITRE ATT&CK ids
	// Continues is the id of the finding of the day before that this one goes on.
	Continues string `json:"continues,omitempty"`

	Edges      []Edge            `json:"edges"` // at most MaxEdges
	EdgesTotal int               `json:"edges_total"`
	Samples    []json.RawMessage `json:"samples,omitempty"` // judged flows as replay --flows prints them

	// SuppressedBy is the id of the suppression that keeps this event from receivers, empty
	// if none does. The event is stored and counted all the same.
	SuppressedBy string `json:"suppressed_by,omitempty"`
	// GroupedBy is the id of the finding that tells of it and of many others, where it is not told
	// by itself: it is stored and counted all the same.
	GroupedBy string `json:"grouped_by,omitempty"`
	// Suppressed is how many of its records, or of what else it is made of, came while a
	// suppression held.
	Suppressed int64 `json:"suppressed,omitempty"`

	Detail

	Sentence string `json:"sentence"`
	Next     string `json:"next"`
}

// Detail is what a finding tells beside what every finding has, as far as it is known.
type Detail struct {
	// Subject says what the finding is about where its ends and its rule or exception do not:
	// the class of services and the workload, the side that is contradicted. With the type it
	// is the same on every day.
	Subject string `json:"subject,omitempty"`
	// Score is 0 to 1; ScoreParts are what it is made of.
	Score      float64     `json:"score,omitempty"`
	ScoreParts []ScorePart `json:"score_parts,omitempty"`
	Ends       []End       `json:"ends,omitempty"` // client, then server; of a finding about one host that one
	Hops       []Hop       `json:"hops,omitempty"` // the way that was taken, in the order of time
	Exporters  []string    `json:"exporters,omitempty"`
	Observers  []string    `json:"observers,omitempty"` // agents, sensors and nodes, by their own names
	// Query is the SQL that finds the sessions behind it in the database of flows.
	Query string `json:"query,omitempty"`
}

// ScorePart is one thing that speaks for or against.
type ScorePart struct {
	Name   string `json:"name"`
	Points int    `json:"points"` // of a hundred; negative speaks against
	Says   string `json:"says"`
}

// End is who was at one end. Address and process are what exporters and observers told of the
// flow itself, workload and segment what the policy version says that the finding names.
type End struct {
	Address    string `json:"address"`
	Translated string `json:"translated,omitempty"` // the address behind a translation
	Workload   string `json:"workload,omitempty"`
	Segment    string `json:"segment,omitempty"`
	Host       string `json:"host,omitempty"` // as agents call it
	Identity   string `json:"identity,omitempty"`
	// IdentityFrom is who says so: an agent, a source of identities, or the exporter. IdentityAge
	// is for how many seconds it had been silent when the flow began: 0 of what told the flow
	// itself, absent of a source that does not say when it was heard.
	IdentityFrom      string  `json:"identity_from,omitempty"`
	IdentityAge       *int32  `json:"identity_age,omitempty"`
	IdentityCertainty float64 `json:"identity_certainty,omitempty"` // 0 to 1
	Process           string  `json:"process,omitempty"`
}

// Hop is one step of a way.
type Hop struct {
	Client    End    `json:"client"`
	Server    End    `json:"server"`
	Service   string `json:"service"`
	Start     Time   `json:"start"`
	End       Time   `json:"end"`
	Exception string `json:"exception,omitempty"` // by which it was allowed
	Session   string `json:"session"`             // its id in the database
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
