package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/postern/postern/flow"
)

// Policy is a loaded and checked policy. It is immutable: nobody writes to it
// after [Load] gave it out, so it may be shared freely. Everything in it is
// sorted, so that neither file names nor the order of files, sections, keys or
// lists can be told from it.
type Policy struct {
	Services   []Service   `json:"services"`
	Segments   []Segment   `json:"segments"`
	Workloads  []Workload  `json:"workloads"`
	Rules      []Rule      `json:"rules"`
	Exceptions []Exception `json:"exceptions"`
	// Suppressions change no verdict. A policy without any has the hash it always had.
	Suppressions []Suppression `json:"suppressions,omitempty"`

	// Commit is the Git commit that the folder stood at as it was read, empty if that is not
	// known. It is a remark for people: neither the hash nor any verdict hangs on it.
	Commit string `json:"-"`

	hash  string
	files []sourceFile
}

// Hash is the content hash of the policy: SHA-256 in hexadecimal over what it
// says, whatever file, order, spelling of an address or comment it was said with.
func (p *Policy) Hash() string { return p.hash }

func (p *Policy) computeHash() {
	b, err := json.Marshal(p)
	if err != nil { // plain data of marshalable types
		panic("policy: " + err.Error())
	}
	sum := sha256.Sum256(b)
	p.hash = hex.EncodeToString(sum[:])
}

// Service is a name for protocols and ports.
type Service struct {
	Pos    `json:"-"`
	Name   string  `json:"name"`
	Ranges []Range `json:"ranges"`
}

// Stage says how far a segment is under policy.
type Stage uint8

// The stages.
const (
	StageNone Stage = iota // in no segment
	StageObserve
	StageStaged
	StageEnforced
)

var stageTexts = []string{"none", "observe", "staged", "enforced"}

func (s Stage) String() string { return stageTexts[s] }

// Tier says how dear a segment is.
type Tier uint8

// The tiers, rising.
const (
	TierNone Tier = iota // in no segment
	TierLow
	TierNormal
	TierHigh
	TierCrownJewel
)

var tierTexts = []string{"none", "low", "normal", "high", "crown-jewel"}

func (t Tier) String() string { return tierTexts[t] }

// Segment is a set of prefixes under one stage and default.
type Segment struct {
	Pos           `json:"-"`
	Name          string         `json:"name"`
	Zone          string         `json:"zone"`
	Tier          Tier           `json:"tier"`
	Prefixes      []netip.Prefix `json:"prefixes"`
	Stage         Stage          `json:"stage"`
	DenyIn        bool           `json:"denyIn"`
	DenyOut       bool           `json:"denyOut"`
	AgentRequired bool           `json:"agentRequired"`
	Owner         string         `json:"owner"`

	prefixPos []Pos
}

// Workload is something that runs at one or more addresses.
type Workload struct {
	Pos       `json:"-"`
	Name      string       `json:"name"`
	App       string       `json:"app"`
	Role      string       `json:"role"`
	Env       string       `json:"env"`
	Owner     string       `json:"owner"`
	Addresses []netip.Addr `json:"addresses"`
	Labels    []Label      `json:"labels"`

	addressPos []Pos
}

// Label is a label's key and the value, or in a selector any of the values, it has.
type Label struct {
	Key    string   `json:"key"`
	Values []string `json:"values"`
}

// Action is what a rule does.
type Action uint8

// The actions, in the order they are judged.
const (
	OverrideDeny Action = iota
	Deny
	Allow
)

var actionTexts = []string{"override-deny", "deny", "allow"}

func (a Action) String() string { return actionTexts[a] }

// Rule is a rule of policy.
type Rule struct {
	Pos      `json:"-"`
	ID       string   `json:"id"`
	Action   Action   `json:"action"`
	Staged   bool     `json:"staged"` // mode: staged
	From     Selector `json:"from"`
	To       Selector `json:"to"`
	Services []Range  `json:"services"` // nil: any
	Owner    string   `json:"owner"`
	Reason   string   `json:"reason"`
}

// Exception is a hole in the policy with a ticket, an owner, an approval and an end.
type Exception struct {
	Pos         `json:"-"`
	ID          string     `json:"id"`
	Class       string     `json:"class"`
	Overrides   []string   `json:"overrides"`
	From        Selector   `json:"from"`
	To          Selector   `json:"to"`
	Services    []Range    `json:"services"` // nil: any
	Ticket      string     `json:"ticket"`
	Owner       string     `json:"owner"`
	Reason      string     `json:"reason"`
	RequestedBy string     `json:"requestedBy"`
	RequestedAt flow.Time  `json:"requestedAt"`
	Approved    []Approval `json:"approved"`
	NotBefore   flow.Time  `json:"notBefore"` // 0: from its approval on
	Expires     flow.Time  `json:"expires"`
	RevokedBy   string     `json:"revokedBy"`
	RevokedAt   flow.Time  `json:"revokedAt"` // 0: not revoked
	RevokedFor  string     `json:"revokedFor"`
}

// Approval is who approved an exception, as what and when.
type Approval struct {
	By   string    `json:"by"`
	Role string    `json:"role"`
	At   flow.Time `json:"at"`
}

// ApprovedAt is the moment from which on the exception is approved: the latest of
// its approvals; ok is false if it has none.
func (e *Exception) ApprovedAt() (at flow.Time, ok bool) {
	for _, a := range e.Approved {
		at = max(at, a.At)
	}
	return at, len(e.Approved) > 0
}

// End is the moment from which on the exception no longer holds: its expiry, or
// its revocation if that is earlier.
func (e *Exception) End() flow.Time {
	if e.RevokedAt != 0 {
		return min(e.Expires, e.RevokedAt)
	}
	return e.Expires
}

// Selector says which ends of a conversation are meant. Several keys must all
// hold; several values of a key are alternatives; what matches any selector in
// Not is taken away.
type Selector struct {
	Pos      `json:"-"`
	Any      bool           `json:"any,omitempty"`
	Segment  []string       `json:"segment,omitempty"`
	Zone     []string       `json:"zone,omitempty"`
	Tier     []Tier         `json:"tier,omitempty"`
	App      []string       `json:"app,omitempty"`
	Role     []string       `json:"role,omitempty"`
	Env      []string       `json:"env,omitempty"`
	Workload []string       `json:"workload,omitempty"`
	CIDR     []netip.Prefix `json:"cidr,omitempty"`
	Labels   []Label        `json:"labels,omitempty"`
	Identity []string       `json:"identity,omitempty"`
	Group    []string       `json:"group,omitempty"`
	Process  []string       `json:"process,omitempty"`
	Posture  []string       `json:"posture,omitempty"`
	Not      []Selector     `json:"not,omitempty"`
}

// String is the selector on one line, as the language writes it.
func (s *Selector) String() string {
	var b strings.Builder
	b.WriteByte('{')
	key := func(name string) {
		if b.Len() > 1 {
			b.WriteString(", ")
		}
		b.WriteString(name + ": ")
	}
	several := func(values []string) {
		for i, v := range values {
			if values[i] = v; !bareWord(v) {
				values[i] = strconv.Quote(v)
			}
		}
		if len(values) == 1 {
			b.WriteString(values[0])
			return
		}
		b.WriteString("[" + strings.Join(values, ", ") + "]")
	}
	if s.Any {
		key("any")
		b.WriteString("true")
	}
	var tiers, cidrs []string
	for _, t := range s.Tier {
		tiers = append(tiers, t.String())
	}
	for _, p := range s.CIDR {
		cidrs = append(cidrs, p.String())
	}
	list := func(name string, values []string) {
		if len(values) > 0 {
			key(name)
			several(slices.Clone(values))
		}
	}
	list("segment", s.Segment)
	list("zone", s.Zone)
	list("tier", tiers)
	list("app", s.App)
	list("role", s.Role)
	list("env", s.Env)
	list("workload", s.Workload)
	list("cidr", cidrs)
	for i, l := range s.Labels {
		if i == 0 {
			key("labels")
			b.WriteByte('{')
		} else {
			b.WriteString(", ")
		}
		several([]string{l.Key})
		b.WriteString(": ")
		several(slices.Clone(l.Values))
		if i == len(s.Labels)-1 {
			b.WriteByte('}')
		}
	}
	list("identity", s.Identity)
	list("group", s.Group)
	list("process", s.Process)
	list("posture", s.Posture)
	for i := range s.Not {
		switch {
		case i > 0:
			b.WriteString(", ")
		case len(s.Not) > 1:
			key("not")
			b.WriteByte('[')
		default:
			key("not")
		}
		b.WriteString(s.Not[i].String())
	}
	if len(s.Not) > 1 {
		b.WriteByte(']')
	}
	return b.String() + "}"
}

// bareWord says whether YAML reads s as text, and as this text, without quotes.
func bareWord(s string) bool {
	letter := false
	for i, r := range s {
		switch {
		case r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z':
			letter = true
		case r >= '0' && r <= '9':
		case i > 0 && strings.ContainsRune("._/@-", r):
		default:
			return false
		}
	}
	switch strings.ToLower(s) {
	case "true", "false", "yes", "no", "on", "off", "null", "y", "n":
		return false
	}
	if _, err := strconv.ParseFloat(s, 64); err == nil {
		return false
	}
	if _, err := strconv.ParseInt(s, 0, 64); err == nil {
		return false
	}
	return letter || strings.ContainsRune(s, '/') // 10.0.0.0/8 is no number
}

// Groups lists the groups that rules and exceptions name, in lower case and ascending order.
func (p *Policy) Groups() []string {
	seen := map[string]bool{}
	var walk func(s *Selector)
	walk = func(s *Selector) {
		for _, g := range s.Group {
			seen[strings.ToLower(g)] = true
		}
		for i := range s.Not {
			walk(&s.Not[i])
		}
	}
	for i := range p.Rules {
		walk(&p.Rules[i].From)
		walk(&p.Rules[i].To)
	}
	for i := range p.Exceptions {
		walk(&p.Exceptions[i].From)
		walk(&p.Exceptions[i].To)
	}
	return slices.Sorted(maps.Keys(seen))
}

// keys is how many keys the selector has, Any and Not left out.
func (s *Selector) keys() (n int) {
	for _, l := range []int{len(s.Segment), len(s.Zone), len(s.Tier), len(s.App), len(s.Role), len(s.Env), len(s.Workload),
		len(s.CIDR), len(s.Labels), len(s.Identity), len(s.Group), len(s.Process), len(s.Posture)} {
		if l > 0 {
			n++
		}
	}
	return n
}

// InternetSegment is the reserved segment name for whatever is in no segment and
// not private.
const InternetSegment = "internet"
