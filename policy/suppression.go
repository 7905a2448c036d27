package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/goccy/go-yaml/ast"

	"github.com/postern/postern/flow"
)

// MaxSuppression is how long a suppression lasts at most (SEMANTICS, "Findings").
const MaxSuppression = 30 * 24 * time.Hour

const maxSuppressionDays = int(MaxSuppression / (24 * time.Hour))

// FindingKey is what a finding is about beside its detector, as it stands in the finding.
// What a detector's findings leave empty is empty here.
type FindingKey struct {
	Client    string `json:"client,omitempty"`
	Server    string `json:"server,omitempty"`
	Service   string `json:"service,omitempty"`
	Rule      string `json:"rule,omitempty"`
	Exception string `json:"exception,omitempty"`
	// Subject stands for all of the above where a finding has one.
	Subject string `json:"subject,omitempty"`
}

// KeyOf is the key of a finding: of rule and exception the one that is part of its id.
func KeyOf(f *flow.Finding) FindingKey {
	if f.Subject != "" {
		return FindingKey{Subject: f.Subject}
	}
	k := FindingKey{Client: f.Client, Server: f.Server, Service: f.Service, Rule: f.Rule}
	if f.Exception != "" && f.Type != flow.FindingDenied && f.Type != flow.FindingMisblocked {
		k.Rule, k.Exception = "", f.Exception
	}
	return k
}

// Suppression keeps the findings of one detector about one key from those who are told,
// for a while. It changes no verdict: what it holds back is made, stored and counted.
type Suppression struct {
	Pos         `json:"-"`
	ID          string        `json:"id"`
	Detector    string        `json:"detector"` // a finding's type
	Key         FindingKey    `json:"key"`
	UpTo        flow.Severity `json:"upTo"` // holds for findings up to here; never Critical
	Ticket      string        `json:"ticket"`
	Owner       string        `json:"owner"`
	Reason      string        `json:"reason"`
	RequestedBy string        `json:"requestedBy"`
	RequestedAt flow.Time     `json:"requestedAt"`
	Approved    []Approval    `json:"approved"`
	NotBefore   flow.Time     `json:"notBefore"` // 0: from its approval on
	Expires     flow.Time     `json:"expires"`
}

// Begins is the earliest moment at which it may hold: notBefore, else the request.
func (s *Suppression) Begins() flow.Time { return cmp.Or(s.NotBefore, s.RequestedAt) }

// Holds says whether it acts at t on a finding of a severity: only once approved, within
// [notBefore, expires), and never on what is critical.
func (s *Suppression) Holds(t flow.Time, v flow.Severity) bool {
	if v >= flow.Critical || v > s.UpTo || len(s.Approved) == 0 || t < s.Begins() || t >= s.Expires {
		return false
	}
	for _, a := range s.Approved {
		if t < a.At {
			return false
		}
	}
	return true
}

// Suppresses says whether this version has any suppression of a detector.
func (x *Index) Suppresses(detector string) bool { return x.suppressions[detector] != nil }

// Suppression gives the suppression that holds at t for findings of a detector about a key
// and of a severity, nil if none does. The caller must not write to it.
func (x *Index) Suppression(t flow.Time, detector string, k FindingKey, v flow.Severity) *Suppression {
	for _, s := range x.suppressions[detector][k] {
		if s.Holds(t, v) {
			return s
		}
	}
	return nil
}

// suppressions puts them where they are found: by detector, then by key.
func (p *Policy) suppressions() map[string]map[FindingKey][]*Suppression {
	if len(p.Suppressions) == 0 {
		return nil
	}
	out := map[string]map[FindingKey][]*Suppression{}
	for i := range p.Suppressions {
		s := &p.Suppressions[i]
		if out[s.Detector] == nil {
			out[s.Detector] = map[FindingKey][]*Suppression{}
		}
		out[s.Detector][s.Key] = append(out[s.Detector][s.Key], s)
	}
	return out
}

// upToTexts are the severities that a suppression may hold back.
var upToTexts = []string{flow.Informational.String(), flow.Low.String(), flow.Medium.String(), flow.High.String()}

func (b *builder) readSuppression(n ast.Node) {
	s := Suppression{Pos: b.pos(n), UpTo: flow.High}
	named := func(into *string, what string) func(ast.Node) {
		return func(n ast.Node) { *into, _ = b.name(n, what) }
	}
	at := func(into *flow.Time, what string) func(ast.Node) {
		return func(n ast.Node) { *into, _ = b.time(n, what) }
	}
	var approvals []Pos
	present, ok := b.fields(n, "a suppression", "write id:, detector:, key: and expires:", map[string]func(ast.Node){
		"id": func(n ast.Node) { s.ID, _ = b.id(n, "a suppression's id") },
		"detector": func(n ast.Node) {
			types := flow.FindingTypes()
			if i, ok := b.oneOf(n, "detector", types...); ok {
				s.Detector = types[i]
			}
		},
		"key": func(n ast.Node) { s.Key = b.findingKey(n) },
		"upTo": func(n ast.Node) {
			if str, isStr := n.(*ast.StringNode); isStr && str.Value == flow.Critical.String() {
				b.diags.errorf(b.pos(n), "write "+strings.Join(upToTexts, ", "), "what is critical is never suppressed")
			} else if i, ok := b.oneOf(n, "upTo", upToTexts...); ok {
				s.UpTo = flow.Severity(i)
			}
		},
		"ticket":    named(&s.Ticket, "ticket"),
		"owner":     named(&s.Owner, "owner"),
		"reason":    func(n ast.Node) { s.Reason, _ = b.text(n, "reason") },
		"requested": func(n ast.Node) { s.RequestedBy, s.RequestedAt = b.requested(n) },
		"approved":  func(n ast.Node) { s.Approved, approvals = b.approvals(n) },
		"notBefore": at(&s.NotBefore, "notBefore"),
		"expires":   at(&s.Expires, "expires"),
	})
	if !ok {
		return
	}
	what := "a suppression"
	if s.ID != "" {
		what = "suppression " + quote(s.ID)
	}
	b.require(present, n, what, "id", "detector", "key", "reason", "requested", "expires")
	for _, k := range []string{"ticket", "owner"} {
		if _, ok := present[k]; !ok {
			b.diags.warnf(s.Pos, "add "+k+":", "%s has no %s", what, k)
		}
	}
	b.checkApprovals(s.Pos, what, s.Approved, approvals, s.RequestedBy)
	// Together these hold that nothing lasts by having its dates moved on: a later request
	// needs an approval of its own.
	for i, a := range s.Approved {
		if a.At != 0 && s.RequestedAt != 0 && a.At < s.RequestedAt {
			b.diags.errorf(approvals[i], "have it approved anew; an approval is of what was requested before", "%s was approved before it was requested", what)
		}
	}
	if s.NotBefore != 0 && s.RequestedAt != 0 && s.NotBefore > s.RequestedAt.Add(MaxSuppression) {
		b.diags.errorf(present["notBefore"], "request it when it is needed", "%s begins more than %d days after it was requested", what, maxSuppressionDays)
	}
	if len(s.Approved) == 0 {
		b.diags.warnf(s.Pos, "have somebody other than its requester approve it: approved: [{by: NAME, role: ROLE, at: TIME}]", "%s is not approved and does nothing yet", what)
	}
	if s.Begins() != 0 && s.Expires != 0 {
		switch {
		case s.Expires <= s.Begins():
			b.diags.errorf(present["expires"], "it holds over [notBefore, expires): let it end after it begins", "%s expires before it begins", what)
		case s.Expires > s.Begins().Add(MaxSuppression):
			b.diags.errorf(present["expires"], fmt.Sprintf("let it end by %v; what is still so then can be asked for anew", s.Begins().Add(MaxSuppression)),
				"%s lasts longer than %d days", what, maxSuppressionDays)
		}
	}
	if s.ID == "" {
		return
	}
	if before, twice := b.suppressAt[s.ID]; twice {
		b.diags.errorf(s.Pos, "choose another id; the other is at "+before.String(), "the suppression %s is declared twice", quote(s.ID))
		return
	}
	b.suppressAt[s.ID] = s.Pos
	b.p.Suppressions = append(b.p.Suppressions, s)
}

// findingKey reads the key of a suppression.
func (b *builder) findingKey(n ast.Node) (k FindingKey) {
	end := func(into *string, what string) func(ast.Node) {
		return func(n ast.Node) { *into, _ = b.keyEnd(n, what) }
	}
	named := func(into *string, what string) func(ast.Node) {
		return func(n ast.Node) { *into, _ = b.name(n, what) }
	}
	present, ok := b.fields(n, "key", "write what the finding says: key: {client: 10.50.1.23, server: 10.20.0.11, service: tcp/443, rule: ID}", map[string]func(ast.Node){
		"client": end(&k.Client, "client"), "server": end(&k.Server, "server"),
		"service": func(n ast.Node) {
			v, ok := b.name(n, "service")
			if !ok {
				return
			}
			k.Service = v
			if r, err := ParseService(v); err == nil {
				k.Service = r.String()
			} else if strings.Contains(v, "/") {
				b.wrong(b.pos(n), err)
			}
		},
		"rule": named(&k.Rule, "rule"), "exception": named(&k.Exception, "exception"),
		"subject": func(n ast.Node) {
			v, ok := b.text(n, "subject")
			if ok && strings.ContainsFunc(v, unicode.IsControl) {
				b.diags.errorf(b.pos(n), "write it as the finding has it", "subject %s has control characters", quote(v))
			} else if ok {
				k.Subject = v
			}
		},
	})
	if !ok {
		return k
	}
	if len(present) == 0 {
		b.diags.errorf(b.pos(n), "write what the finding says of itself; postern finding suppress ID drafts it", "key is empty: nothing is suppressed everywhere")
	}
	if p, both := present["exception"]; both && k.Rule != "" {
		b.diags.errorf(p, "keep the one that the finding is about", "key names a rule and an exception")
	}
	if p, ok := present["subject"]; ok && len(present) > 1 {
		b.diags.errorf(p, "keep subject alone if the finding has one", "key has subject beside other keys")
	}
	return k
}

// keyEnd is one address, in the form findings have it, or the name of one workload.
func (b *builder) keyEnd(n ast.Node, what string) (string, bool) {
	v, ok := b.name(n, what)
	if !ok {
		return "", false
	}
	if a, err := netip.ParseAddr(v); err == nil && a.Zone() == "" {
		return canonicalAddr(a).String(), true
	}
	if _, err := netip.ParsePrefix(v); err == nil || v == "*" || v == "any" {
		b.diags.errorf(b.pos(n), "write the one that the finding names, such as 10.50.1.23", "%s %s is more than one host; a suppression is of one key", what, quote(v))
		return "", false
	}
	return v, true
}

// checkSuppressions looks at them beside each other and beside what they name.
func (b *builder) checkSuppressions() {
	rules, exceptions := keysOf(b.ruleAt), keysOf(b.exceptAt)
	type about struct {
		detector string
		key      FindingKey
	}
	before := map[about][]*Suppression{}
	byStart := make([]*Suppression, len(b.p.Suppressions))
	for i := range b.p.Suppressions {
		byStart[i] = &b.p.Suppressions[i]
	}
	slices.SortFunc(byStart, func(a, b *Suppression) int {
		return cmp.Or(cmp.Compare(a.Begins(), b.Begins()), strings.Compare(a.ID, b.ID))
	})
	for _, s := range byStart {
		if r := s.Key.Rule; r != "" && !strings.HasPrefix(r, "default:") && b.ruleAt[r] == (Pos{}) {
			b.diags.warnf(s.Pos, didYouMean(r, rules), "suppression %s is of rule %s, which is not declared", quote(s.ID), quote(r))
		}
		if e := s.Key.Exception; e != "" && b.exceptAt[e] == (Pos{}) {
			right := "it may have been removed from the files; otherwise check the id"
			if near := nearest(e, exceptions); near != "" {
				right = "did you mean " + quote(near) + "? Otherwise " + right
			}
			b.diags.warnf(s.Pos, right, "suppression %s is of exception %s, which is not declared", quote(s.ID), quote(e))
		}
		k := about{s.Detector, s.Key}
		for _, o := range before[k] {
			if s.Begins() < o.Expires {
				b.diags.errorf(s.Pos, "keep one of them, or let it begin when the other has expired; the other is at "+o.Pos.String(),
					"suppressions %s and %s are of the same finding at the same time", quote(o.ID), quote(s.ID))
			}
		}
		before[k] = append(before[k], s)
	}
}
