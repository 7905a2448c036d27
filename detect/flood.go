package detect

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/postern/postern/flow"
)

// A flood of findings hides the one that matters, and whoever can send packets can make one
// (THREATS 33). So of the findings that single flows give rise to only so many are told one by
// one, of one type, source and UTC day; the rest is stored and counted, and one finding says how
// many there are. What is critical is always told, and forgotten last.

// groupKey is findings of one type and source on a day.
type groupKey struct {
	Type   string
	Client flow.Addr
	Day    int64
}

// singly says whether findings of a type come of single verdicts, each by itself.
func singly(typ string) bool {
	switch typ {
	case flow.FindingExpired, flow.FindingNotYetValid, flow.FindingUnapproved, flow.FindingOutOfScope, flow.FindingDenied, flow.FindingMisblocked:
		return true
	}
	return false
}

func (f *finding) groupKey() groupKey { return groupKey{f.Key.Type, f.Key.Client, f.Key.Day} }

// group counts a new finding for its source, and says whether it is told by itself.
func (d *book) group(f *finding) {
	if !singly(f.Key.Type) {
		return
	}
	k := f.groupKey()
	if f.Grouped = d.groups[k] >= d.cfg.TellEach; f.Grouped && f.Told.Severity < flow.Critical {
		d.m.grouped.WithLabelValues(f.Key.Type).Inc()
	}
	d.groups[k]++
}

// regroup counts one that is read back.
func (d *book) regroup(f *finding) {
	if singly(f.Key.Type) {
		d.groups[f.groupKey()]++
	}
}

func (d *book) ungroup(f *finding) {
	if !singly(f.Key.Type) {
		return
	}
	k := f.groupKey()
	if d.groups[k]--; d.groups[k] <= 0 {
		delete(d.groups, k)
	}
}

// groupedBy is the id of the finding that tells of it with others; empty where it is told itself.
func (f *finding) groupedBy() string {
	if !f.Grouped || f.ToldRevision != 0 || f.Told.Severity == flow.Critical {
		return ""
	}
	k := floodKey(f.groupKey())
	return k.id()
}

func floodKey(g groupKey) key {
	return key{Type: flow.FindingFlood, Client: g.Client, Subject: g.Type, Day: g.Day}
}

// later orders what is so behind what is not.
func later(a, b bool) int {
	n := func(v bool) int {
		if v {
			return 1
		}
		return 0
	}
	return cmp.Compare(n(a), n(b))
}

// floods tells of sources that give rise to a flood of findings, one finding for each type and
// day. It counts sessions as they settle, over the whole estate, so that how many it tells of
// does not hang on who made the findings.
type floods struct {
	groups map[groupKey]*flood
	n      int // edges in all
}

// flood is what a source gave rise to: one edge for each finding, in the order in which they settled.
type flood struct {
	seen  map[floodEdge]struct{}
	edges []floodEdge
	told  bool
	worst flow.Severity // of those that are not critical
	hosts map[flow.Addr]struct{}
}

// floodEdge is what tells a finding from others of its type, source and day.
type floodEdge struct {
	Server  flow.Addr
	Subject flow.Name // rule or exception
	Port    uint16
	Proto   uint8
}

// maxFloodEdges bounds the findings counted; about 200 bytes each: 26 MB.
const maxFloodEdges = 1 << 17

func newFloods() floods { return floods{groups: map[groupKey]*flood{}} }

// tellsFlood is from how many findings on a flood is told. Detectors of several partitions count
// each for itself which of them is told; what they no longer tell must have been told of here.
func tellsFlood(tellEach int) int { return tellEach/2 + 1 }

// contact counts what its verdict gives rise to.
func (d *floods) contact(b *Behaviour, v *visit) {
	typ, found := classify(&v.Verdict)
	if !found {
		return
	}
	g := groupKey{typ, v.Client.Addr, dayOf(v.Start)}
	e := floodEdge{Server: v.Server.Addr, Subject: v.Verdict.Rule, Proto: v.Proto}
	if x := v.Verdict.Exception; x != flow.NoName && typ != flow.FindingDenied && typ != flow.FindingMisblocked {
		e.Subject = x
	}
	switch {
	case v.HasICMP:
		e.Port = uint16(v.ICMPType)<<8 | uint16(v.ICMPCode)
	case v.Open:
		if g.Client.Compare(e.Server) > 0 {
			g.Client, e.Server = e.Server, g.Client
		}
	default:
		e.Port = v.Server.Port
	}
	f := d.groups[g]
	if f != nil {
		if _, known := f.seen[e]; known {
			return
		}
	}
	if d.n >= maxFloodEdges {
		b.bm.unflooded.Inc()
		b.pressed(boundFloods, g.Client, 1, v.at)
		return
	}
	if f == nil {
		f = &flood{seen: map[floodEdge]struct{}{}, hosts: map[flow.Addr]struct{}{}}
		d.groups[g] = f
	}
	d.add(f, e)
	t := b.toldOf(v.Contact, flow.Low, 100)
	t.Tier, t.SegmentOwner = b.policy.SegmentFacts(v.Start, v.Server.Segment)
	if v.Verdict.Exception != flow.NoName {
		t.Facts, _ = b.policy.ExceptionFacts(v.Start, v.Verdict.Exception)
	}
	f.worst = max(f.worst, min(severity(&t, typ), flow.High))
	if len(f.edges) >= tellsFlood(b.cfg.TellEach) {
		d.tell(b, v, g, f, &t)
	}
}

func (d *floods) add(f *flood, e floodEdge) {
	f.hosts[e.Server], f.seen[e] = struct{}{}, struct{}{}
	f.edges = append(f.edges, e)
	d.n++
}

func (d *floods) tell(b *Behaviour, v *visit, g groupKey, f *flood, t *told) {
	first := 1
	if !f.told {
		first, f.told = len(f.edges), true
	}
	a := b.endOf(&v.Session, false)
	s := &story{Title: times(len(f.edges), "finding", "findings") + " of " + g.Type + " by " + g.Client.String() + " in a day", Client: g.Client, Ends: []flow.End{a}}
	s.Sentence = fmt.Sprintf("%s gave rise to %d findings of %s on %s, at %s. Those beyond the first %d or so are stored and are not told by themselves, unless they are critical.",
		who(g.Client, a.Workload, a.Segment, "", ""), len(f.edges), g.Type, flow.Time(g.Day*dayMillis).Std().Format("2006-01-02"),
		times(len(f.hosts), "host", "hosts"), b.cfg.TellEach)
	k := floodKey(g)
	s.Next = "Look at what " + g.Client.String() + " does before looking at any single one: they have one cause. And look at what else came meanwhile: a flood may be there to hide it. " +
		"`postern finding list --grouped-by " + k.id() + "` lists those that are not told by themselves."
	for _, e := range f.edges[len(f.edges)-first:] {
		edge := flow.Edge{Source: g.Client.String(), Destination: e.Server.String(), Port: e.Port, Protocol: string(flow.AppendProto(nil, e.Proto))}
		if e.Proto == flow.ProtoICMP || e.Proto == flow.ProtoICMPv6 {
			edge.Port = 0
		}
		s.Edges = append(s.Edges, edge)
	}
	out := told{Severity: f.worst, Confidence: 100, Start: v.Start, Record: v.ID, Reason: t.Reason, Expected: t.Expected, Observed: t.Observed, Outcome: t.Outcome,
		PolicyVersion: t.PolicyVersion, SrcSegment: t.SrcSegment, SrcWorkload: t.SrcWorkload, Story: s}
	b.raise(k, out, int64(first), v.Contact)
}

// tend forgets days that are over.
func (d *floods) tend(now flow.Time) {
	for g, f := range d.groups {
		if g.Day < dayOf(now)-1 {
			d.n -= len(f.edges)
			delete(d.groups, g)
		}
	}
}

// floodRow is one edge of a group in a snapshot.
type floodRow struct {
	Type   flow.Name
	Client flow.Addr
	Day    int64
	Told   bool
	Worst  flow.Severity
	Edge   floodEdge
}

func (d *floods) save(w *stateWriter) {
	groups := make([]groupKey, 0, len(d.groups))
	for g := range d.groups {
		groups = append(groups, g)
	}
	slices.SortFunc(groups, func(x, y groupKey) int {
		return cmp.Or(cmp.Compare(x.Day, y.Day), cmp.Compare(x.Type, y.Type), x.Client.Compare(y.Client))
	})
	rows := make([]floodRow, 0, d.n)
	for _, g := range groups {
		f := d.groups[g]
		for _, e := range f.edges {
			rows = append(rows, floodRow{w.names.Intern(g.Type), g.Client, g.Day, f.told, f.worst, e})
		}
	}
	saveAll(w, rows)
}

func (d *floods) load(r *stateReader, names *flow.Names) {
	for _, row := range loadAll[floodRow](r) {
		g := groupKey{names.Text(row.Type), row.Client, row.Day}
		f := d.groups[g]
		if f == nil {
			f = &flood{seen: map[floodEdge]struct{}{}, hosts: map[flow.Addr]struct{}{}, told: row.Told, worst: row.Worst}
			d.groups[g] = f
		}
		d.add(f, row.Edge)
	}
}
