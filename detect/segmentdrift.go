package detect

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/postern/postern/flow"
)

// segmentDrift finds where the declared map of segments is not what is observed: addresses of the
// estate that are in none, and segments of which nobody was ever seen. A declared workload that is
// observed in another segment is found where agents are followed, see [spots.misplaced].
type segmentDrift struct {
	unmapped map[flow.Addr]*unmapped   // by prefix
	segments map[flow.Name]*segmentUse // declared or seen
	day      int64                     // that was looked at last
}

// unmapped is a prefix whose addresses are in no segment. It is of fixed size.
type unmapped struct {
	Prefix      flow.Addr
	First, Last flow.Time
	Edges       uint32 // that were new, between it and segments
	N           uint32 // addresses, of which Named are the first
	Named       [maxNamed]flow.Addr
	Segments    [maxNamed]flow.Name // that it talks with
	SaidN       uint32              // as it was told
	SaidSegs    uint32
}

// segmentUse is whether a segment is declared and seen. It is of fixed size.
type segmentUse struct {
	Segment flow.Name
	Since   flow.Time // when it was first found to be declared; 0: it is not
	Seen    bool
	Told    bool
}

const (
	maxUnmapped = 1 << 12
	maxSegments = 1 << 14
	// lastingUnmapped is for how long a prefix must be seen for it to be a part of the network, and
	// unmappedLeast by how many edges: what passes by is nothing to declare.
	lastingUnmapped = 12 * hourMillis
	unmappedLeast   = 10
	// unseenSegment is for how long nobody of a declared segment must be seen.
	unseenSegment = 14 * dayMillis
)

func newSegmentDrift() segmentDrift {
	return segmentDrift{unmapped: map[flow.Addr]*unmapped{}, segments: map[flow.Name]*segmentUse{}}
}

// contact looks at one contact: each edge comes here when it is new.
func (d *segmentDrift) contact(b *Behaviour, v *visit) {
	if !v.Fate.failed() {
		d.seen(v.Client.Segment)
	}
	if v.Fate != fateAnswered {
		return
	}
	d.seen(v.Server.Segment)
	if !v.New || v.NAT != flow.NATNone {
		return
	}
	d.look(b, v, &v.Client, &v.Server)
	d.look(b, v, &v.Server, &v.Client)
}

func (d *segmentDrift) seen(segment flow.Name) {
	if u := d.use(segment); u != nil {
		u.Seen = true
	}
}

func (d *segmentDrift) use(segment flow.Name) *segmentUse {
	u := d.segments[segment]
	if u == nil && segment != flow.NoName && segment != flow.OverflowName && len(d.segments) < maxSegments {
		u = &segmentUse{Segment: segment}
		d.segments[segment] = u
	}
	return u
}

// look takes in one end that may be in no segment, and the other, that is in one.
func (d *segmentDrift) look(b *Behaviour, v *visit, e, peer *flow.SessionEnd) {
	if e.Segment != flow.NoName || peer.Segment == flow.NoName || b.names.Text(peer.Segment) == "internet" || b.outside(e) {
		return
	}
	if a := e.Addr.Netip(); a.IsMulticast() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsUnspecified() {
		return
	}
	prefix := prefixOf(e.Addr)
	u := d.unmapped[prefix]
	if u == nil {
		if len(d.unmapped) >= maxUnmapped {
			b.pressed(boundUnmapped, e.Addr, 1, v.at)
			return
		}
		u = &unmapped{Prefix: prefix, First: v.at}
		d.unmapped[prefix] = u
	}
	u.Last = max(u.Last, v.at)
	u.Edges++
	if !slices.Contains(u.Named[:], e.Addr) {
		if u.N < maxNamed {
			u.Named[u.N] = e.Addr
		}
		u.N++ // beyond those it is how often one came that is none of them
	}
	for i, s := range u.Segments {
		if s == flow.NoName {
			u.Segments[i] = peer.Segment
		}
		if u.Segments[i] == peer.Segment {
			break
		}
	}
}

// maxDaysApart is how many days without anything are looked at one by one.
const maxDaysApart = 400

// time looks at each day that is over, as all that settled within it has been seen.
func (d *segmentDrift) time(b *Behaviour, t flow.Time) {
	if b.began == 0 {
		return
	}
	last := dayOf(t - 1)
	for day := max(d.day, dayOf(b.began), last-maxDaysApart) + 1; day <= last; day++ {
		d.day = day
		b.spots.time(b, flow.Time(day*dayMillis)) // who had fallen silent by then
		d.over(b, flow.Time(day*dayMillis))
	}
}

// over looks at what there is at the end of a day.
func (d *segmentDrift) over(b *Behaviour, now flow.Time) {
	old := now - millis(b.bcfg.Remember)
	maps.DeleteFunc(d.unmapped, func(_ flow.Addr, u *unmapped) bool { return u.Last < old })
	for _, prefix := range slices.SortedFunc(maps.Keys(d.unmapped), flow.Addr.Compare) {
		u := d.unmapped[prefix]
		segments := uint32(0)
		for _, s := range u.Segments {
			if s != flow.NoName {
				segments++
			}
		}
		if u.Last-u.First < lastingUnmapped || u.Edges < unmappedLeast || u.SaidN != 0 && segments == u.SaidSegs && u.N < 2*u.SaidN {
			continue
		}
		u.SaidN, u.SaidSegs = u.N, segments
		d.tellUnmapped(b, u, now)
	}
	d.lookSegments(b, now)
}

func (d *segmentDrift) tellUnmapped(b *Behaviour, u *unmapped, now flow.Time) {
	prefix := u.Prefix.String() + "/24"
	if !u.Prefix.Is4() {
		prefix = u.Prefix.String() + "/56"
	}
	var named, segments []string
	var ends []flow.End
	for _, a := range u.Named[:min(u.N, maxNamed)] {
		named = append(named, a.String())
		ends = append(ends, flow.End{Address: a.String()})
	}
	if u.N > maxNamed {
		named = append(named, "and others")
	}
	for _, s := range u.Segments {
		if s == flow.NoName {
			break
		}
		segments = append(segments, word(b.names.Text(s)))
	}
	slices.Sort(segments)
	k := key{Type: flow.FindingUnmapped, Subject: prefix, Day: dayOf(now)}
	t := blindTold(flow.Low, 90, u.First, now, "Addresses in no segment: "+prefix,
		fmt.Sprintf("Addresses of %s are in no declared segment, and talk with %s since %s: %s. What a policy says of segments does not hold for them.",
			prefix, strings.Join(segments, ", "), moment(u.First), strings.Join(named, ", ")),
		"Add the prefix to the segment that it belongs to, or find out whose addresses these are.")
	t.Start = now
	t.Story.Ends = ends
	in := make([]string, 0, maxNamed)
	for _, a := range u.Named[:min(u.N, maxNamed)] {
		in = append(in, sqlAddr(a))
	}
	t.Story.Where = "client IN (" + strings.Join(in, ", ") + ") OR server IN (" + strings.Join(in, ", ") + ")"
	b.raise(k, t, 1)
}

// lookSegments finds declared segments of which nobody was ever seen.
func (d *segmentDrift) lookSegments(b *Behaviour, now flow.Time) {
	declared := b.policy.Segments(now)
	for s, u := range d.segments {
		if !slices.Contains(declared, s) {
			u.Since, u.Told = 0, false
		}
	}
	for _, s := range declared {
		u := d.use(s)
		if u == nil {
			continue
		}
		if u.Since == 0 {
			u.Since = now
		}
		if u.Seen || u.Told || b.names.Text(s) == "internet" || now-u.Since < unseenSegment {
			continue
		}
		// Not if for more than half of the time nobody was heard.
		blind := b.spots.during(u.Since, now, func(n *spot) bool { return n.Subject == flow.BlindEverything })
		if 2*blind > now-u.Since {
			continue
		}
		u.Told = true
		segment := b.names.Text(s)
		k := key{Type: flow.FindingUnseenSegment, Subject: segment, Day: dayOf(now)}
		t := blindTold(flow.Low, 70, now, now, "Nobody of segment "+word(segment)+" is seen",
			fmt.Sprintf("Segment %s is declared, and since %s no address of it was seen to reach or to answer anybody%s. Either nothing is there, or nobody tells of what is.",
				word(segment), moment(u.Since), partly(blind)),
			"Look whether anything runs in its prefixes. If so, have a router on its way export flows; if not, take it out of the policy.")
		_, t.SegmentOwner = b.policy.SegmentFacts(now, s)
		t.SrcSegment = segment
		t.Story.Where = "src_segment = " + sqlText(segment) + " OR dst_segment = " + sqlText(segment)
		b.raise(k, t, 1)
	}
}

func (d *segmentDrift) save(w *stateWriter) {
	var prefixes []unmapped
	for _, k := range slices.SortedFunc(maps.Keys(d.unmapped), flow.Addr.Compare) {
		prefixes = append(prefixes, *d.unmapped[k])
	}
	w.u64(uint64(d.day))
	saveAll(w, prefixes)
	uses := make([]segmentUse, 0, len(d.segments))
	for _, u := range d.segments {
		uses = append(uses, *u)
	}
	slices.SortFunc(uses, func(x, y segmentUse) int { return cmp.Compare(w.names.Text(x.Segment), w.names.Text(y.Segment)) })
	saveAll(w, uses)
}

func (d *segmentDrift) load(r *stateReader) {
	d.day = int64(r.u64())
	for _, u := range loadAll[unmapped](r) {
		d.unmapped[u.Prefix] = &u
	}
	for _, u := range loadAll[segmentUse](r) {
		d.segments[u.Segment] = &u
	}
}

// misplaced finds an agent that tells from an address of another segment than that in which the
// policy has its workload.
func (s *spots) misplaced(b *Behaviour, k *HostKey) {
	if k.Agent == flow.NoName {
		return
	}
	var home *agentHost
	n := 0
	for i := range s.agents {
		a := &s.agents[i]
		if a.Agent != k.Agent || a.Source != k.Source || a.Addr == k.Addr {
			continue
		}
		if n++; n > maxPlaces {
			return // an agent of a node, which tells of whatever runs there
		}
		if a.Workload != flow.NoName && a.Workload != k.Workload && a.Segment != k.Segment && minuteTime(a.Last-a.First) >= millis(s.cfg.History) &&
			(home == nil || a.Addr.Compare(home.Addr) < 0) {
			home = a
		}
	}
	if home == nil {
		return
	}
	at := minuteTime(k.At)
	workload, was, is := b.names.Text(home.Workload), segmentWords(b.names.Text(home.Segment)), segmentWords(b.names.Text(k.Segment))
	severity := flow.Low
	tier, owner := b.policy.SegmentFacts(at, home.Segment)
	if to, _ := b.policy.SegmentFacts(at, k.Segment); tier == crownJewel || to == crownJewel {
		severity = flow.Medium
	}
	t := blindTold(severity, 70, at, at+hostWindow*minuteMillis, word(workload)+" is seen in another segment than declared",
		fmt.Sprintf("The agent of %s (%v), which is declared at %s in %s, tells from %s in %s since %s. What the policy says of %s does not hold for it there.",
			word(workload), k.Source, home.Addr, was, k.Addr, is, moment(at), word(workload)),
		"If it was moved, change its addresses in the policy; if it has another address as well, add that. If neither was meant, find out who moved it.")
	t.SrcWorkload, t.SrcSegment, t.DstSegment, t.SegmentOwner = workload, b.names.Text(home.Segment), b.names.Text(k.Segment), owner
	t.Story.Ends = []flow.End{{Address: k.Addr.String(), Segment: t.DstSegment, Workload: b.names.Text(k.Workload), Host: b.names.Text(k.Agent)}}
	t.Story.Observers = []flow.Name{k.Agent}
	t.Story.Where = "client = " + sqlAddr(k.Addr) + " OR server = " + sqlAddr(k.Addr)
	b.raise(key{Type: flow.FindingMisplaced, Client: k.Addr, Subject: workload, Day: dayOf(at)}, t, 1)
}

// maxPlaces is at how many addresses one agent tells of itself.
const maxPlaces = 4

func segmentWords(s string) string {
	if s == "" {
		return "no segment"
	}
	return "segment " + word(s)
}
