package detect

import (
	"cmp"
	"maps"
	"math/bits"
	"slices"

	"github.com/postern/postern/flow"
)

// A pivot is a way in through an exception and on to where that exception does not reach.

// sweeps is how many hosts each client reached by an exception: one that leads to many, as a
// registered scanner's does, is no way in.
type sweeps struct {
	by   map[sweep]sweptBits
	told map[uint64]flow.Time // pivots that were told, by what they are, and when last
}

type sweep struct {
	Exception flow.Name
	Client    origin
}

// sweptBits is about which hosts: a bit for each sixty-fourth of their hashes.
type sweptBits struct {
	Bits uint64
	Last flow.Time
}

const (
	// maxSweeps bounds them: clients that use exceptions, and pivots that were told.
	maxSweeps = 1 << 16
	// sweeping is from how many bits on an exception leads to many: about sixty hosts.
	sweeping = 40
)

func newSweeps() sweeps { return sweeps{by: map[sweep]sweptBits{}, told: map[uint64]flow.Time{}} }

// way notes a use of an exception and says whether it may be a way in.
func (s *sweeps) way(b *Behaviour, v *visit) bool {
	k := sweep{usedBy(v), b.origin(v.client)}
	r, known := s.by[k]
	if !known && len(s.by) >= maxSweeps {
		lost(b, 1, v.Client.Addr, v.at)
		return true
	}
	r.Bits |= 1 << (hashEdge(v.Server.Addr, v.Server.Addr, 0) >> 58)
	r.Last = v.at
	s.by[k] = r
	return bits.OnesCount64(r.Bits) < sweeping
}

func (s *sweeps) tend(b *Behaviour) {
	old := b.tended - millis(b.bcfg.Remember)
	maps.DeleteFunc(s.by, func(_ sweep, r sweptBits) bool { return r.Last < old })
	maps.DeleteFunc(s.told, func(_ uint64, at flow.Time) bool { return at < old })
}

type savedSweep struct {
	Key     sweep
	Reached sweptBits
}

type savedPivot struct {
	Hash uint64
	At   flow.Time
}

func (s *sweeps) save(w *stateWriter) {
	list := make([]savedSweep, 0, len(s.by))
	for k, r := range s.by {
		list = append(list, savedSweep{k, r})
	}
	slices.SortFunc(list, func(x, y savedSweep) int {
		n := w.names
		return cmp.Or(x.Key.Client.Addr.Compare(y.Key.Client.Addr), cmp.Compare(n.Text(x.Key.Client.Workload), n.Text(y.Key.Client.Workload)), cmp.Compare(n.Text(x.Key.Exception), n.Text(y.Key.Exception)))
	})
	saveAll(w, list)
	told := make([]savedPivot, 0, len(s.told))
	for _, k := range slices.Sorted(maps.Keys(s.told)) {
		told = append(told, savedPivot{k, s.told[k]})
	}
	saveAll(w, told)
}

func (s *sweeps) load(r *stateReader) {
	for _, k := range loadAll[savedSweep](r) {
		s.by[k.Key] = k.Reached
	}
	for _, k := range loadAll[savedPivot](r) {
		s.told[k.Hash] = k.At
	}
	if len(s.by) > maxSweeps || len(s.told) > maxSweeps {
		r.fail(errState)
	}
}

// onward says whether a contact goes on from a way in to where its exception does not reach:
// by another exception, by remote administration or to a host that it never reached before.
// What was going on before anybody came in is not.
func (c *chains) onward(b *Behaviour, v *visit, w *hop, link int) bool {
	if usedBy(v) == w.Through && !violates(&v.Verdict) {
		return false
	}
	gap := v.Start - w.End
	if by(v, w) {
		return gap <= millis(b.bcfg.Chain.Linger) && !c.underWay(v, w) || v.New && v.Known == 0
	}
	if !v.New || v.Known != 0 || (b.early(v.at) || v.unwatched) && !violates(&v.Verdict) {
		return false
	}
	points := b.oddity(v)
	switch {
	case v.Class.administers():
		return points >= 20 || points > 0 && gap <= 4*hourMillis || gap <= millis(b.bcfg.Chain.Linger) && link >= 50
	case w.Pivot:
		return false // where those go on that came beyond, by remote administration alone
	}
	return v.NewPair && gap <= millis(b.bcfg.Chain.Linger) && b.hosts.list[v.server].Served[v.Class] < servedBy && inside(&v.Server) && !infrastructure(v.Proto, v.Server.Port)
}

// usedBy is the exception that a contact uses: one that allows it, one that is over or not in
// force, or one for these two hosts that it stretches, say to another service. To be merely
// close to an exception of others is no use of it.
func usedBy(v *visit) flow.Name {
	if v.Verdict.Reason == flow.ReasonOutOfScope && v.Verdict.Failed&(flow.DimSource|flow.DimDestination|flow.DimDirection) != 0 {
		return flow.NoName
	}
	return v.Verdict.Exception
}

// by says whether a contact goes by another exception than the way in.
func by(v *visit, w *hop) bool {
	e := usedBy(v)
	return e != flow.NoName && e != w.Through && v.Verdict.Reason != flow.ReasonOutOfScope
}

// underWay says whether a client was using a server before somebody came in to it, an hour before
// at most: that goes on by itself.
func (c *chains) underWay(v *visit, w *hop) bool {
	before := func(t flow.Time) bool { return t < w.Start && t >= w.Start-hourMillis }
	if before(v.Known) {
		return true
	}
	if int(v.server) >= len(c.rings) {
		return false
	}
	r := &c.rings[v.server]
	for _, i := range r.In[:r.N] {
		if h := &c.hops[i]; h.Client.Addr == v.Client.Addr && h.Exception == usedBy(v) && (h.Start < w.Start && h.End >= w.Start-hourMillis || before(h.Known)) {
			return true
		}
	}
	return false
}

// inside says whether an end is within the network.
func inside(e *flow.SessionEnd) bool {
	return e.Addr.Netip().IsPrivate()
}

// infrastructure says whether a service is one that any host may need of any server at any
// time: names, time, tickets, directory, logs.
func infrastructure(proto uint8, port uint16) bool {
	switch port {
	case 53, 67, 68, 88, 123, 137, 138, 161, 162, 389, 464, 514, 547, 636, 3268, 3269, 5353, 5355, 6514:
		return true
	}
	return proto == flow.ProtoICMP || proto == flow.ProtoICMPv6
}

// pivot tells of a step that goes on from a way in through an exception.
func (c *chains) pivot(b *Behaviour, v *visit, h *hop, from *causes) bool {
	if from.way < 0 {
		return false
	}
	w := &c.hops[from.way]
	if !c.onward(b, v, w, from.link) {
		return false
	}
	h.Up, h.Link, h.Pivot, h.Through = from.way, uint8(from.link), true, w.Through
	h.First, h.Began = w.First, w.Began
	h.Depth = w.Depth + 1
	if h.Depth == 0 {
		h.Depth = 255
	}
	h.Switched = switchedOn(w, h) && !c.known.usual(b, v)
	h.Until = b.goesOn(h)
	through := word(b.names.Text(w.Through))
	path := c.path(h)
	t := b.toldOf(v.Contact, flow.High, uint8(max(40, 90*from.link/100)))
	if t.Tier == crownJewel {
		t.Severity = flow.Critical
	}
	if from.link < 34 {
		t.Severity = flow.Medium
	}
	chained := by(v, w)
	if c.sweeps.again(b, v, w) && chained {
		t.Severity = flow.Low
	}
	t.Exception = b.names.Text(w.Through)
	if b.policy != nil {
		t.Facts, _ = b.policy.ExceptionFacts(w.Start, w.Through)
	}
	t.Story = c.story(b, v, path, "In through exception "+through+" and on to where it does not reach")
	entry := path[max(0, len(path)-2)]
	for _, p := range path {
		if p.Way {
			entry = p
			break
		}
	}
	to := b.placeOf(&h.Server)
	t.Story.Sentence += " Exception " + through + " leads to " + b.placeOf(&entry.Server) + " and no further"
	if chained {
		t.Story.Sentence += "; exception " + word(b.names.Text(h.Exception)) + " leads on from there, and nobody approved that both together let " + b.placeOf(&entry.Client) + " reach " + to
	}
	t.Story.Sentence += "."
	t.Story.Next = "Ask the owner of exception " + through + " what was done at that time. If " + to + " is no part of it, end the session, revoke the exception and look at " +
		b.placeOf(&entry.Server) + " and " + to + " first."
	score := 60 + int(h.Points)/2
	t.Story.Parts = []flow.ScorePart{{Name: "exception", Points: 60, Says: "in through exception " + through + ", on to where it does not reach"}}
	if h.Points > 1 {
		t.Story.Parts = append(t.Story.Parts, flow.ScorePart{Name: "rarity", Points: int(h.Points) / 2, Says: "how unusual it is that " + b.placeOf(&h.Client) + " administers " + to})
	}
	if chained {
		score += 15
		t.Story.Parts = append(t.Story.Parts, flow.ScorePart{Name: "two exceptions", Points: 15, Says: "on by another exception"})
	}
	if h.Switched {
		score += creditSwitched
		t.Story.Parts = append(t.Story.Parts, flow.ScorePart{Name: "identity", Points: creditSwitched, Says: "on as somebody else than who came in"})
	}
	if h.Link < 100 {
		off := score * (100 - int(h.Link)) / 200
		score -= off
		t.Story.Parts = append(t.Story.Parts, flow.ScorePart{Name: "cause", Points: -off, Says: "others came in to " + b.placeOf(&h.Client) + " as well"})
	}
	t.Story.Score = min(100, score)
	h.Score = uint8(max(int(h.Score), t.Story.Score))
	c.tell(b, v, t, keyOfWay(b, flow.FindingPivot, h, b.names.Text(w.Through)), path)
	return true
}

// again says whether the same way on from the same way in was told before, on another day; and
// notes that it is told now.
func (s *sweeps) again(b *Behaviour, v *visit, w *hop) bool {
	k := hashEdge(w.Client.Addr, w.Server.Addr, uint32(w.Class)) ^ hashEdge(v.Client.Addr, v.Server.Addr, uint32(v.Server.Port)|1<<31)
	at, known := s.told[k]
	if !known && len(s.told) >= maxSweeps {
		lost(b, 1, v.Client.Addr, v.at)
		return false
	}
	s.told[k] = v.at
	return known && dayOf(at) != dayOf(v.at)
}
