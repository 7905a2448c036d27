package enrich

import (
	"strings"

	"github.com/postern/postern/flow"
)

// principal is an identity as accounts are compared.
type principal struct {
	canonical string
	kind      flow.PrincipalKind
	workload  bool // a name of a workload, not of an account: the two are not compared
}

// maxPrincipals bounds the identities whose canonical form is remembered.
const maxPrincipals = 1 << 16

func (x *Sessions) principal(n flow.Name) principal {
	p, ok := x.principals[n]
	if !ok {
		p.canonical, p.kind = x.domains.Principal(x.names.Text(n))
		p.workload = strings.ContainsAny(p.canonical, "/:")
		if len(x.principals) >= maxPrincipals {
			clear(x.principals)
		}
		x.principals[n] = p
	}
	return p
}

// contradict finds what the observers of a session tell differently, as of now, and says what
// was not said yet, if it is time to.
func (x *Sessions) contradict(s *sess, row *flow.Session, now bool) {
	found := func(kind flow.Contradictions, k int, a, b *obs, claims [2]flow.Name, confidence uint8) {
		s.toldOf[k] |= kind
		if now && s.said[k]&kind == 0 {
			x.say(s, row, kind, k, a, b, claims, confidence)
		}
	}
	for k := range 2 {
		s.toldOf[k] = 0
		x.contradictIdentity(k, found)
	}
	x.contradictVerdict(s, row, found)
}

type foundContradiction func(kind flow.Contradictions, k int, a, b *obs, claims [2]flow.Name, confidence uint8)

func (x *Sessions) say(s *sess, row *flow.Session, kind flow.Contradictions, k int, a, b *obs, claims [2]flow.Name, confidence uint8) {
	s.said[k] |= kind
	server := k != s.clientOf(row)
	c := flow.Contradiction{ID: flow.ContradictionID(s.id, kind, server), Kind: kind, Session: *row, Server: server,
		Claim: claims, Confidence: confidence}
	for i, o := range [2]*obs{a, b} {
		if o != nil {
			c.Claimant[i], c.Source[i] = o.observer, o.source
		}
	}
	x.contradictions = append(x.contradictions, c)
	for _, t := range kind.Texts() {
		x.m.contradictions.WithLabelValues(t).Inc()
	}
}

// clientOf is the end of s that a row has as its client.
func (s *sess) clientOf(row *flow.Session) int {
	if row.Client.Addr != s.conv.Low || row.HasPorts && row.Client.Port != s.conv.LowPort {
		return 1
	}
	return 0
}

// contradictIdentity says where two observers name two users, or two workloads, at one end.
// An account of the system or of a machine contradicts nobody: it acts for somebody.
func (x *Sessions) contradictIdentity(k int, found foundContradiction) {
	g := &x.gathered
	first := x.claim(k)
	if first == nil {
		return
	}
	p := x.principal(first.identity[k])
	if p.kind != flow.PrincipalUser {
		return
	}
	var second *obs
	for i := range g.obs {
		o := &g.obs[i]
		if o.identity[k] == flow.NoName || o.identity[k] == first.identity[k] {
			continue
		}
		if q := x.principal(o.identity[k]); q.kind != flow.PrincipalUser || q.workload != p.workload || q.canonical == p.canonical {
			continue
		}
		if second == nil || x.claimBefore(o, second, k) {
			second = o
		}
	}
	if second != nil {
		confidence := uint8(uint(certaintyOf(first, k)) * uint(certaintyOf(second, k)) / 100)
		found(flow.ContradictIdentity, k, first, second, [2]flow.Name{first.identity[k], second.identity[k]}, confidence)
	}
}

// How sure it is that an agent is wrong about what it stopped.
const (
	certainSeenByAgent    = 80 // the other end's agent saw it
	certainSeenByExporter = 60 // an exporter saw packets; it may sit before the enforcement
)

// contradictVerdict says where the client's agent stopped all of what the other end or the
// network saw coming from there. That the other end stops what the client let go is ordinary.
func (x *Sessions) contradictVerdict(s *sess, row *flow.Session, found foundContradiction) {
	if row.Open {
		return
	}
	k := s.clientOf(row)
	var denies, saw *obs
	confidence := uint8(0)
	for i := range x.gathered.obs {
		o := &x.gathered.obs[i]
		switch {
		case int(o.at) == k+1:
			if o.enforced&(1<<flow.ObservedAllow|1<<flow.ObservedAudit) != 0 {
				return // it let some of it go
			}
			if o.enforced&(1<<flow.ObservedDeny) != 0 && denies == nil {
				denies = o
			}
		case o.at != 0:
			if confidence < certainSeenByAgent {
				saw, confidence = o, certainSeenByAgent
			}
		case confidence == 0 && o.packets[k] > 0 && o.enforced&(1<<flow.ObservedDeny) == 0:
			saw, confidence = o, certainSeenByExporter
		}
	}
	if denies != nil && saw != nil {
		found(flow.ContradictVerdict, k, denies, saw, [2]flow.Name{}, confidence)
	}
}
