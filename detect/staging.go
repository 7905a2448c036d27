package detect

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/postern/postern/flow"
)

// StagingConfig says when a host that gathers data from many others and sends it on is told of.
type StagingConfig struct {
	// Within is how far apart gathering and sending may be.
	Within time.Duration `yaml:"within"`
	// Sources is from how many hosts that it took nothing from before it must have gathered.
	Sources int `yaml:"sources"`
	// Least is how many bytes it must have taken in, and sent on, at least.
	Least uint64 `yaml:"least"`
	// Part is how much of what came in must have gone out, in percent.
	Part int `yaml:"part"`
	// Times is how many times as much as on any of its last days both must be.
	Times int `yaml:"times"`
}

// DefaultStagingConfig gives the defaults.
func DefaultStagingConfig() StagingConfig {
	return StagingConfig{
		Within:  12 * time.Hour, // gathered in the evening, sent in the night
		Sources: 5,              // who works with two or three new servers a day gathers nothing
		Least:   64 << 20,       // less is a presentation
		Part:    50,             // packed it is half of it
		Times:   3,
	}
}

func (c *StagingConfig) validate() error {
	if c.Within < time.Hour || c.Within > 3*24*time.Hour {
		return fmt.Errorf("detect.behaviour.staging.within is %v; write a duration from 1h to %v", c.Within, 3*24*time.Hour)
	}
	if c.Least < bulkLeast {
		return fmt.Errorf("detect.behaviour.staging.least is %d; write a number from %d on", c.Least, bulkLeast)
	}
	for _, n := range []struct {
		key            string
		v, least, most int
	}{{"sources", c.Sources, 2, maxTaken}, {"part", c.Part, 1, 1000}, {"times", c.Times, 1, 1000}} {
		if n.v < n.least || n.v > n.most {
			return fmt.Errorf("detect.behaviour.staging.%s is %d; write a number from %d to %d", n.key, n.v, n.least, n.most)
		}
	}
	return nil
}

// staging finds hosts that take in much from many and then send much to one, as those do on
// which an intruder gathers what is to be taken away. What they do every day is held against it.
type staging struct {
	by map[int32]*stager
}

const (
	// stagingDays is how many days a host's past is held against.
	stagingDays = 10
	// maxTaken bounds the hosts that one took in from lately; what more sent does not count.
	maxTaken = 64
	maxSent  = 8
	// maxKnown is how many sources of days before are remembered.
	maxKnown = 48
)

// stager is what a host moved in bulk.
type stager struct {
	stagerPast
	taken []moved // within the last hours
	sent  []moved
	known []uint32 // hashes of those it took in from before, the latest last
}

// stagerPast is what it moved on its last days. It is of fixed size.
type stagerPast struct {
	Host int32
	Day  int32 // of place 0
	// By day: how much it took in in all and sent to one at most, in KiB, and from how many.
	In, Out [stagingDays]uint32
	From    [stagingDays]uint16
}

// moved is what was moved between a host and another. It is of fixed size.
type moved struct {
	Host         int32
	Peer         flow.Addr
	PeerSegment  flow.Name
	PeerWorkload flow.Name
	Bytes        uint64
	Sessions     uint32
	At, Last     uint32    // minutes: the first and the last window
	First        flow.Time // when the first session began
	Most         BulkMoved
	Port         uint16
	Proto        uint8
	Client       bool // the peer was the client
	New          bool // it took nothing from there before
	Outside      bool
	Told         bool
}

func newStaging() staging { return staging{by: map[int32]*stager{}} }

// look takes in the windows that end by a time, of each first all that was taken in, then what was
// sent. It gives the others.
func (x *staging) look(b *Behaviour, list []Tally[BulkKey, Bulk], until flow.Time) []Tally[BulkKey, Bulk] {
	for len(list) > 0 {
		at := minuteTime(list[0].Key.At + bulkOver)
		if at > until {
			break
		}
		n := 1
		for n < len(list) && list[n].Key.At == list[0].Key.At {
			n++
		}
		for _, out := range [...]bool{false, true} {
			for i := range list[:n] {
				k, v := &list[i].Key, &list[i].N
				client := flow.SessionEnd{Addr: k.Client, Segment: k.ClientSegment, Workload: k.ClientWorkload}
				server := flow.SessionEnd{Addr: k.Server, Segment: k.ServerSegment, Workload: k.ServerWorkload}
				if v.Sent[0] > 0 {
					x.moves(b, &client, &server, k, v, 0, out, at)
				}
				if v.Sent[1] > 0 {
					x.moves(b, &server, &client, k, v, 1, out, at)
				}
			}
		}
		list = list[n:]
	}
	return list
}

// moves takes in that one end sent much to another: out says whether it is looked at as what the
// one sent, or as what the other took in.
func (x *staging) moves(b *Behaviour, from, to *flow.SessionEnd, k *BulkKey, v *Bulk, side int, out bool, at flow.Time) {
	host, peer := to, from
	if out {
		host, peer = from, to
	}
	if b.outside(host) || from.Addr == to.Addr || from.Workload != flow.NoName && from.Workload == to.Workload || to.Addr.Netip().IsMulticast() {
		return
	}
	m := moved{Peer: peer.Addr, PeerSegment: peer.Segment, PeerWorkload: peer.Workload, Bytes: v.Sent[side], Sessions: v.Sessions, At: k.At, Last: k.At,
		First: v.First, Most: v.Most[side], Port: k.Port, Proto: k.Proto, Client: (side == 0) != out, Outside: b.outside(peer)}
	i, lost := b.hosts.of(host, hostReal, at, b.forgetHost)
	if lost[hostReal] > 0 {
		b.pressed(boundHosts, host.Addr, lost[hostReal], at)
	}
	s := x.by[i]
	if s == nil {
		s = &stager{stagerPast: stagerPast{Host: i, Day: int32(dayOf(minuteTime(k.At)))}}
		x.by[i] = s
	}
	m.Host = i
	s.turn(int32(dayOf(minuteTime(k.At))))
	within := uint32(b.bcfg.Staging.Within / time.Minute)
	if !out {
		h := max(1, uint32(flow.Mix(flow.Mix(m.Peer.Hi^1)^m.Peer.Lo)))
		m.New = !slices.Contains(s.known, h)
		s.In[0] = kib(s.In[0], m.Bytes)
		if e, first := add(&s.taken, &m, within, maxTaken); e != nil && first {
			s.From[0]++
			if m.New {
				s.known = append(s.known, h)
				s.known = s.known[max(0, len(s.known)-maxKnown):]
			}
		}
		return
	}
	e, _ := add(&s.sent, &m, within, maxSent)
	if e == nil {
		return
	}
	s.Out[0] = max(s.Out[0], kib(0, e.Bytes))
	x.judge(b, i, s, e, host, within, at)
}

// turn moves the days on.
func (s *stager) turn(day int32) {
	for ; s.Day < day; s.Day++ {
		if day-s.Day > stagingDays {
			s.Day = day - stagingDays
		}
		copy(s.In[1:], s.In[:])
		copy(s.Out[1:], s.Out[:])
		copy(s.From[1:], s.From[:])
		s.In[0], s.Out[0], s.From[0] = 0, 0, 0
	}
}

// kib adds bytes to KiB, up to 4 TiB.
func kib(v uint32, n uint64) uint32 { return uint32(min(uint64(v)+n>>10, 1<<32-1)) }

// add adds what was moved to a list of what was moved lately and gives the entry, nil if there is
// no more room; first says that it is a new one.
func add(list *[]moved, m *moved, within uint32, most int) (e *moved, first bool) {
	*list = slices.DeleteFunc(*list, func(o moved) bool { return m.At > o.Last && m.At-o.Last > within })
	for i := range *list {
		e := &(*list)[i]
		if e.Peer != m.Peer || e.PeerWorkload != m.PeerWorkload {
			continue
		}
		if m.At-e.At > within { // goes on for longer than anything is gathered
			m.New, m.Told = false, e.Told
			*e = *m
			return e, false
		}
		e.Bytes += m.Bytes
		e.Most.add(&m.Most)
		e.Sessions += m.Sessions
		e.Last, e.First = max(e.Last, m.At), min(e.First, m.First)
		return e, false
	}
	if len(*list) >= most {
		return nil, false
	}
	*list = append(*list, *m)
	return &(*list)[len(*list)-1], true
}

// judge sees whether what a host sends to another is what it gathered.
func (x *staging) judge(b *Behaviour, i int32, s *stager, out *moved, host *flow.SessionEnd, within uint32, at flow.Time) {
	cfg := &b.bcfg.Staging
	if out.Told || out.Bytes < cfg.Least || b.learning(at) {
		return
	}
	var in []*moved
	total, fresh := uint64(0), 0
	for j := range s.taken {
		if t := &s.taken[j]; t.Peer != out.Peer && out.Last-t.Last <= within && t.First < minuteTime(out.Last+bulkWindow) {
			in = append(in, t)
			total += t.Bytes
			if t.New {
				fresh++
			}
		}
	}
	if fresh < cfg.Sources || total < cfg.Least || out.Bytes < total/100*uint64(cfg.Part) {
		return
	}
	since := out.First
	for _, t := range in {
		since = min(since, minuteTime(t.At))
	}
	before := min(stagingDays-1, 1+int(max(0, s.Day-int32(dayOf(since)))))
	usualIn, usualOut := slices.Max(s.In[before:]), slices.Max(s.Out[before:])
	if s.collects(cfg.Sources, before) || total>>10 < uint64(cfg.Times)*uint64(usualIn) || out.Bytes>>10 < uint64(cfg.Times)*uint64(usualOut) {
		return
	}
	out.Told = true
	x.tell(b, i, s, out, in, total, fresh, usualIn, usualOut, host, at)
}

func (x *staging) tell(b *Behaviour, i int32, s *stager, out *moved, in []*moved, total uint64, fresh int, usualIn, usualOut uint32, host *flow.SessionEnd, at flow.Time) {
	h := &b.hosts.list[i]
	st := &story{Techniques: []string{"T1074", "T1048"}, Client: host.Addr, Server: out.Peer}
	st.part("gathered", min(40, 25+2*fresh), fmt.Sprintf("%s from %s, %d of which it took nothing from before", size(total), times(len(in), "host", "hosts"), fresh))
	st.part("sent on", 25, fmt.Sprintf("%s went to one host, %d of 100 of that", size(out.Bytes), out.Bytes*100/max(total, 1)))
	st.part("usual", 10, fmt.Sprintf("on no day of the last week it took in more than %s, or sent more than %s to one",
		size(uint64(usualIn)<<10), size(uint64(usualOut)<<10)))
	if out.Outside {
		st.part("outside", 15, "that host is outside")
	}
	if at-h.First < knownFor {
		st.part("new host", -30, "it is new, and nothing is known of what it usually does")
	}
	if j, known := b.hosts.find(out.Peer, out.PeerWorkload); known && !out.Outside {
		if o := x.by[j]; o != nil && o.collects(b.bcfg.Staging.Sources, 0) {
			st.part("destination", -25, "many send much to it every day")
		}
	}
	severity := flow.Low
	if st.Score >= stagingMedium {
		severity = flow.Medium
	}
	n := b.names
	first, last := out.First, minuteTime(out.Last+bulkWindow)
	sessions := int64(out.Sessions)
	slices.SortFunc(in, func(p, q *moved) int { return cmp.Or(cmp.Compare(p.First, q.First), p.Peer.Compare(q.Peer)) })
	for _, t := range in {
		first = min(first, t.First)
		sessions += int64(t.Sessions)
		st.Edges = append(st.Edges, t.edge(host.Addr))
	}
	st.Edges = append(st.Edges, out.edge(host.Addr))
	who1 := who(host.Addr, n.Text(host.Workload), n.Text(host.Segment), "", "")
	who2 := who(out.Peer, n.Text(out.PeerWorkload), n.Text(out.PeerSegment), "", "")
	st.Title = fmt.Sprintf("%s gathered data from %s and sent it to one", host.Addr, times(len(in), "host", "hosts"))
	st.Sentence = fmt.Sprintf("%s took in %s from %s since %s, and then sent %s to %s. %s", who1, size(total), times(len(in), "host", "hosts"), moment(first),
		size(out.Bytes), who2, because(st.Parts[2:]))
	st.Next = "Ask whoever uses " + host.Addr.String() + " what was copied there and why. If nobody knows, keep the host as it is, cut off " + out.Peer.String() +
		" and see what was read on the hosts it took from."
	st.Ends = []flow.End{{Address: host.Addr.String(), Workload: n.Text(host.Workload), Segment: n.Text(host.Segment)},
		{Address: out.Peer.String(), Workload: n.Text(out.PeerWorkload), Segment: n.Text(out.PeerSegment)}}
	st.Until = last
	t := told{Severity: severity, Confidence: uint8(min(85, st.Score)), Start: first, SrcSegment: n.Text(host.Segment), DstSegment: n.Text(out.PeerSegment),
		SrcWorkload: n.Text(host.Workload), DstWorkload: n.Text(out.PeerWorkload), Story: st}
	f := b.raise(b.keyOf(flow.FindingStaging, i, out.Peer.String(), minuteTime(out.Last)), t, sessions)
	for _, m := range in[:min(len(in), maxSamples-1)] {
		f.sampled(m.Most.Start, m.Most.Session, func() []byte { return m.sample(host.Addr, m.Client) })
	}
	f.sampled(out.Most.Start, out.Most.Session, func() []byte { return out.sample(host.Addr, !out.Client) })
}

// sample is the session in which most was moved, as a sample shows it; byClient says who sent that.
func (m *moved) sample(host flow.Addr, byClient bool) []byte {
	e := m.edge(host)
	service := flow.Session{Proto: m.Proto, HasPorts: m.Port != 0, Server: flow.SessionEnd{Port: m.Port}}
	from := "server"
	if byClient {
		from = "client"
	}
	b, _ := json.Marshal(struct { // texts and numbers: it cannot fail
		Session string    `json:"session"`
		Start   flow.Time `json:"time_start"`
		Client  string    `json:"client"`
		Server  string    `json:"server"`
		Service string    `json:"service"`
		Sender  string    `json:"sender"`
		Bytes   uint64    `json:"bytes"`
	}{strconv.FormatUint(m.Most.Session, 10), m.Most.Start, e.Source, e.Destination, string(service.AppendService(nil)), from, m.Most.Sent})
	return b
}

// stagingMedium is the least score that makes an alert.
const stagingMedium = 65

// collects says whether a host took in from many on two days, of those from one on back.
func (s *stager) collects(sources, from int) bool {
	days := 0
	for _, n := range s.From[from:] {
		if int(n) >= sources {
			days++
		}
	}
	return days >= 2
}

// edge is the way by which something was moved.
func (m *moved) edge(host flow.Addr) flow.Edge {
	client, server := host, m.Peer
	if m.Client {
		client, server = server, client
	}
	return flow.Edge{Source: client.String(), Destination: server.String(), Port: m.Port, Protocol: string(flow.AppendProto(nil, m.Proto))}
}

// size is a number of bytes in words.
func size(n uint64) string {
	switch {
	case n < 10<<20:
		return fmt.Sprintf("%d KiB", n>>10)
	case n < 10<<30:
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d GiB", n>>30)
}

func (x *staging) forget(i int32) { delete(x.by, i) }

// tend forgets hosts that moved nothing for so long that there is no past to hold against.
func (x *staging) tend(b *Behaviour) {
	day := int32(dayOf(b.tended))
	for i, s := range x.by {
		if day-s.Day > stagingDays {
			delete(x.by, i)
		}
	}
}

func (x *staging) save(w *stateWriter) {
	type known struct {
		Host int32
		Hash uint32
	}
	var past []stagerPast
	var taken, sent []moved
	var hashes []known
	for _, i := range slices.Sorted(maps.Keys(x.by)) {
		s := x.by[i]
		past = append(past, s.stagerPast)
		taken, sent = append(taken, s.taken...), append(sent, s.sent...)
		for _, h := range s.known {
			hashes = append(hashes, known{i, h})
		}
	}
	saveAll(w, past)
	saveAll(w, taken)
	saveAll(w, sent)
	saveAll(w, hashes)
}

func (x *staging) load(r *stateReader, hosts int) {
	type known struct {
		Host int32
		Hash uint32
	}
	for _, p := range loadAll[stagerPast](r) {
		if p.Host < 0 || int(p.Host) >= hosts {
			r.fail(errState)
			return
		}
		x.by[p.Host] = &stager{stagerPast: p}
	}
	of := func(i int32) *stager {
		s := x.by[i]
		if s == nil {
			r.fail(errState)
			return &stager{}
		}
		return s
	}
	for _, m := range loadAll[moved](r) {
		s := of(m.Host)
		s.taken = append(s.taken, m)
	}
	for _, m := range loadAll[moved](r) {
		s := of(m.Host)
		s.sent = append(s.sent, m)
	}
	for _, k := range loadAll[known](r) {
		s := of(k.Host)
		s.known = append(s.known, k.Hash)
	}
}
