package flow

import "time"

// FactKind is the kind of source that a fact came from. Where sources of several kinds
// speak of one address the lowest kind known goes first (SEMANTICS, "Identity").
type FactKind uint8

// The kinds of source, by precedence.
const (
	FactSession   FactKind = iota + 1 // a logon, VPN or RADIUS session
	FactLease                         // a DHCP lease, a pod, an inventory entry with an interval
	FactDirectory                     // a directory: what a user or account is, not where
	FactStatic                        // an inventory without times
)

var factKindTexts = [...]string{"", "session", "lease", "directory", "static"}

func (k FactKind) String() string { return text(factKindTexts[:], int(k)) }

// Fact is what a source said once about who held an address, or, of a directory, about
// what a user or account is. Facts are rare beside flows, so they hold text.
//
// Source, Addr (of a directory: Subject), Since and Session name what a fact is about. A
// later fact about the same replaces it for whoever knew both: an end that became known,
// a user added. It never changes what was judged with the facts known before.
type Fact struct {
	Source string   `json:"source"` // as configured
	Kind   FactKind `json:"kind"`

	Addr    Addr   `json:"addr"`              // as in [Addr.Canonical]
	Subject string `json:"subject,omitempty"` // a directory's fact: the user or account it is about

	// It held in [Since, Until); a zero Until is until told otherwise. A source that is
	// polled knows of a border only that it lies within the poll before it: SinceSlack and
	// UntilSlack are how far before. Inside, nothing is certain.
	Since      Time          `json:"since"`
	Until      Time          `json:"until,omitempty"`
	SinceSlack time.Duration `json:"since_slack,omitempty"`
	UntilSlack time.Duration `json:"until_slack,omitempty"`
	// Known is when Postern took it in, stamped once.
	Known Time `json:"known"`

	Session  string   `json:"session,omitempty"` // a logon's or accounting session's id
	Workload string   `json:"workload,omitempty"`
	Device   string   `json:"device,omitempty"`
	User     string   `json:"user,omitempty"`
	Account  string   `json:"account,omitempty"` // a service account
	Groups   []string `json:"groups,omitempty"`  // in ascending order
	Posture  string   `json:"posture,omitempty"`
	Disabled bool     `json:"disabled,omitempty"` // of a directory: the subject may not log on
	// Confidence is percent, 1–100; zero counts as 100.
	Confidence uint8 `json:"confidence,omitempty"`
}

// FactKey is what a fact is about: facts of one key replace one another.
type FactKey struct {
	Source, Subject, Session string
	Addr                     Addr
	Since                    Time
}

// Key is what the fact is about.
func (f *Fact) Key() FactKey { return FactKey{f.Source, f.Subject, f.Session, f.Addr, f.Since} }

// Heartbeat says that a source was heard or read whole at a time, so that what it did not
// say since is known not to have happened. Silence for longer than StaleAfter makes all
// that it said before unverified.
type Heartbeat struct {
	Source     string        `json:"source"`
	At         Time          `json:"at"`
	StaleAfter time.Duration `json:"stale_after"` // 0: never stale
}
