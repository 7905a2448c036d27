package main

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/postern/postern/flow"
)

// layout is how an exporter tells conversations.
type layout uint8

// The layouts, and the format under test that has them.
const (
	netflow5 layout = iota
	netflow9
	ipfix
)

var layoutTexts = [...]string{"v5", "v9", "IPFIX"}

func (l layout) String() string { return layoutTexts[l] }

// activeTimeout is after how long exporters tell of a conversation that goes on. Five minutes
// is what large networks set where a minute is too many records.
const activeTimeout = flow.Time(5 * time.Minute / time.Millisecond)

// longest bounds a conversation: an evening's remote desktop.
const longest = flow.Time(4 * time.Hour / time.Millisecond)

// conversation is what happened between two ends, whoever tells of it.
type conversation struct {
	client, server         flow.Addr
	clientPort, serverPort uint16
	proto                  uint8
	start, end             flow.Time
	up, down               uint64 // bytes
	dead, refused          bool
	mid                    bool // it had begun before anybody looked
	exporter               flow.Addr
}

// outcomes of a try.
type luck uint8

const (
	answered luck = iota
	dead
	refused
)

// traffic generates a company's records, an hour at a time.
type traffic struct {
	c      *company
	layout layout
	agents map[flow.Addr][]logger // of hosts with logs, by address

	day, hour int
	inserted  []flow.Record // of attacks, in the order in which they are told
	buckets   map[int][]flow.Record
	sequence  uint64
	applied   int // of the company's changes
	habits    [][]habitOf
	records   uint64
}

func newTraffic(c *company, l layout) *traffic {
	t := &traffic{c: c, layout: l, buckets: map[int][]flow.Record{}}
	t.habits = make([][]habitOf, len(c.habits))
	for i := range c.habits {
		t.habits[i] = make([]habitOf, len(c.habits[i]))
		for j, of := range c.habits[i] {
			of.peers = slices.Clone(of.peers)
			t.habits[i][j] = of
		}
	}
	return t
}

// next generates the next hour and gives what exporters told in it, in the order in which they
// did. It is nil after the last day. The records are valid until the next call.
func (t *traffic) next() []flow.Record {
	if t.day >= t.c.b.Days {
		return nil
	}
	if t.hour == 0 {
		for ; t.applied < len(t.c.changes) && t.c.changes[t.applied].day <= t.day; t.applied++ {
			ch := &t.c.changes[t.applied]
			t.habits[ch.host][ch.what].peers[ch.slot] = ch.peer
		}
	}
	n := t.day*24 + t.hour
	rng := random(t.c.seed, streamTraffic, n)
	t.generate(rng)
	out := t.buckets[n]
	delete(t.buckets, n)
	last := t.c.start + flow.Time(n+1)*hour
	for len(t.inserted) > 0 && t.inserted[0].Received < last+1000 {
		out = append(out, t.inserted[0])
		t.inserted = t.inserted[1:]
	}
	slices.SortFunc(out, func(a, b flow.Record) int {
		return cmp.Or(cmp.Compare(a.Received, b.Received), cmp.Compare(a.ID, b.ID))
	})
	if t.hour++; t.hour == 24 {
		t.day, t.hour = t.day+1, 0
	}
	t.records += uint64(len(out))
	if out == nil {
		out = []flow.Record{}
	}
	return out
}

const hour = flow.Time(time.Hour / time.Millisecond)

// generate makes what begins in this hour.
func (t *traffic) generate(rng *rand.Rand) {
	date := t.c.b.Start.AddDate(0, 0, t.day)
	weekday := date.Weekday()
	begin := t.c.start + flow.Time(t.day*24+t.hour)*hour
	weights := make([]float64, len(t.c.b.Habits))
	for k, h := range t.c.b.Habits {
		weights[k] = h.curve.of(weekday, t.hour)
	}
	for i := range t.c.hosts {
		id := int32(i)
		if !t.c.there(id, t.day) {
			continue
		}
		for j := range t.habits[i] {
			of := &t.habits[i][j]
			h := t.c.b.Habits[of.habit]
			if of.since > t.day {
				continue
			}
			if h.All {
				t.round(rng, id, of, begin, weekday)
				continue
			}
			mean := weights[of.habit] * of.rate * t.c.hosts[i].curve
			for range poisson(rng, mean) {
				t.occasion(rng, id, of, begin+flow.Time(rng.Int64N(int64(hour))))
			}
		}
	}
}

// round is an occasion on which a host touches every peer of its habit.
func (t *traffic) round(rng *rand.Rand, i int32, of *habitOf, begin flow.Time, weekday time.Weekday) {
	h := t.c.b.Habits[of.habit]
	first := slices.IndexFunc(h.curve.Hours, func(w float64) bool { return w > 0 })
	switch {
	case h.Every < 24*time.Hour:
		if t.hour%int(h.Every/time.Hour) != 0 {
			return
		}
	case h.curve.Only != "":
		if h.curve.of(weekday, t.hour) == 0 || t.hour != first {
			return
		}
	case t.hour != first:
		return
	}
	// Several hosts of the role share the work.
	mates := t.c.byRole[t.c.hosts[i].role]
	mine, n := slices.Index(mates, i), len(mates)
	for k, p := range t.c.pools[of.habit] {
		if k%n != mine || p == i {
			continue
		}
		at := begin + flow.Time(rng.Int64N(int64(h.Within/time.Millisecond)))
		for range h.Each {
			t.meet(rng, i, peer(p), h, at)
			at += flow.Time(rng.Int64N(4000))
		}
	}
}

// occasion is one go of a habit.
func (t *traffic) occasion(rng *rand.Rand, i int32, of *habitOf, at flow.Time) {
	h := t.c.b.Habits[of.habit]
	from := i
	if h.Through != "" {
		// First to the jump host, and from there on, while that session lasts.
		pool := t.c.byRole[t.c.roleOf(h.Through)]
		from = pool[int(i)%len(pool)]
		s := t.c.b.Services["rdp"]
		if rng.Float64() < 0.5 {
			s = t.c.b.Services["ssh"]
		}
		t.converse(rng, i, peer(from), s, at, answered, float64(h.Within/time.Second))
		at += flow.Time(20_000 + rng.Int64N(120_000))
	}
	n := h.Batch
	if n > 2 {
		n = max(1, int(float64(n)*math.Exp(0.6*rng.NormFloat64())))
	}
	within := int64(h.Within / time.Millisecond)
	for range n {
		var p peer
		ok := len(of.peers) > 0 && rng.Float64() >= h.Roam
		if ok {
			p = of.peers[rng.IntN(len(of.peers))]
		} else if p, ok = t.c.draw(rng, of.habit, i, false); !ok {
			continue
		}
		when := at
		if n > 1 && within > 0 {
			when += flow.Time(rng.Int64N(within))
		}
		t.meet(rng, from, p, h, when)
	}
}

// meet is one conversation of a habit, on one of its services.
func (t *traffic) meet(rng *rand.Rand, i int32, p peer, h *habit, at flow.Time) {
	u := rng.Float64() * h.until[len(h.until)-1]
	k := 0
	for u >= h.until[k] {
		k++
	}
	s, how := h.uses[k], answered
	switch v := rng.Float64(); {
	case v < h.Dead:
		how = dead
	case v < h.Dead+h.Refused:
		how = refused
	}
	t.converse(rng, i, p, s, at, how, 0)
}

// converse makes the records of a conversation. seconds, if not 0, is how long it lasts.
func (t *traffic) converse(rng *rand.Rand, i int32, p peer, s *serviceUse, at flow.Time, how luck, seconds float64) {
	c := t.c
	server, h, there := c.resolve(p, t.day)
	if !there {
		how = dead
	}
	switch {
	case h >= 0 && c.hosts[h].linux && (s.dynamic() || s.port == 3389 || s.port == 5985 || s.port == 5986):
		s = c.b.Services["ssh"] // what is a remote desktop elsewhere is a shell there
	case h >= 0 && !c.hosts[h].linux && s.port == 22 && !c.hosts[h].office:
		s = c.b.Services["winrm"]
	}
	v := conversation{client: flow.AddrFrom4(c.addr(i, t.day)), server: server, clientPort: clientPort(rng, c.hosts[i].linux),
		serverPort: s.port, proto: s.proto, start: at, dead: how == dead, refused: how == refused, exporter: exporterOf(&c.hosts[i])}
	if v.client == v.server {
		return
	}
	v.shape(rng, s.Bytes, s.Seconds)
	if seconds > 0 {
		v.end = v.start + flow.Time(seconds*1000)
	}
	t.tell(&v)
	if !s.dynamic() || how != answered {
		return
	}
	w := v
	w.serverPort = 49667 // of what is in no host's list: a server outside
	if h >= 0 {
		w.serverPort = c.hosts[h].rpc[rng.IntN(3)]
	}
	w.clientPort = v.clientPort + 1
	w.start = v.start + 5 + flow.Time(rng.Int64N(400))
	w.shape(rng, s.Then[:3], s.Then[3:])
	t.tell(&w)
}

func (s *serviceUse) dynamic() bool { return s.Dynamic }

func clientPort(rng *rand.Rand, linux bool) uint16 {
	if linux {
		return 32768 + uint16(rng.IntN(28000))
	}
	return 49152 + uint16(rng.IntN(16000))
}

func exporterOf(h *host) flow.Addr { return flow.AddrFrom4(192<<24 | 2<<8 | uint32(20+h.site%200)) }

// shape draws bytes and time.
func (v *conversation) shape(rng *rand.Rand, bytes, seconds []float64) {
	each := 0.25 * rng.NormFloat64()
	both := bytes[2] * rng.NormFloat64()
	v.up = uint64(bytes[0]*math.Exp(both+each*min(bytes[2], 1))) + 40
	v.down = uint64(bytes[1] * math.Exp(both-each*min(bytes[2], 1)))
	d := flow.Time(1000*seconds[0]*math.Exp(seconds[1]*rng.NormFloat64())) + 1
	v.end = v.start + min(d, longest)
}

// tell makes records of a conversation, as the exporter of the client's site and the agents of
// its ends tell it.
func (t *traffic) tell(v *conversation) {
	for _, r := range v.records(t.layout, nil) {
		t.emit(r.End+1000, r)
	}
	if len(t.agents) > 0 {
		t.agentsTell(v)
	}
}

// emit puts a record where it belongs in time: when it is told.
func (t *traffic) emit(received flow.Time, r flow.Record) {
	t.sequence++
	r.ID, r.Received = t.sequence^t.c.seed<<40, received
	if n := int((received - 1000 - t.c.start) / hour); n < t.c.b.Days*24 {
		t.buckets[n] = append(t.buckets[n], r)
	}
}

// records are a conversation as an exporter tells it, appended to out: pieces of the active
// time-out, each in two halves or as one biflow the source of which is the lower address
// (softflowd's order).
func (v *conversation) records(l layout, out []flow.Record) []flow.Record {
	from := v.start
	pieces := max(1, int((v.end-v.start+activeTimeout-1)/activeTimeout))
	if v.dead || v.refused {
		pieces = 1
		v.end = v.start + 9000
		if v.refused {
			v.end = v.start + 1000
		}
	}
	for k := range pieces {
		to := min(from+activeTimeout, v.end)
		up, down := v.up/uint64(pieces), v.down/uint64(pieces)
		upPackets, downPackets := packets(up, down), packets(down, up)
		upFlags, downFlags := uint16(0), uint16(0)
		if v.proto == flow.ProtoTCP {
			upFlags, downFlags = flow.ACK|flow.PSH, flow.ACK|flow.PSH
			if k == 0 && !v.mid {
				upFlags, downFlags = upFlags|flow.SYN, downFlags|flow.SYN
			}
			if k == pieces-1 {
				upFlags, downFlags = upFlags|flow.FIN, downFlags|flow.FIN
				if v.clientPort%3 == 0 {
					upFlags |= flow.RST // Windows ends many connections so
				}
			}
		}
		switch {
		case v.dead:
			upFlags &= flow.SYN
			up, upPackets, down, downPackets, downFlags = 156, 3, 0, 0, 0
		case v.refused && v.proto == flow.ProtoTCP:
			upFlags, downFlags = flow.SYN, flow.RST|flow.ACK
			up, upPackets, down, downPackets = 104, 2, 80, 2
		case v.refused:
			down, downPackets = 0, 0
		}
		a := flow.Record{Start: from, End: to, Exporter: v.exporter, Src: v.client, Dst: v.server, SrcPort: v.clientPort, DstPort: v.serverPort,
			Proto: v.proto, BytesRaw: up, PacketsRaw: upPackets, TCPFlags: upFlags,
			Has: flow.HasStart | flow.HasEnd | flow.HasSrc | flow.HasDst | flow.HasProto | flow.HasTCPFlags | flow.HasBytes | flow.HasPackets | flow.HasInIf | flow.HasOutIf}
		if v.proto == flow.ProtoICMP {
			a.SrcPort, a.DstPort, a.ICMPType, a.Has = 0, 0, 8, a.Has|flow.HasICMP
		} else {
			a.Has |= flow.HasSrcPort | flow.HasDstPort
		}
		b := a
		b.Src, b.Dst, b.SrcPort, b.DstPort, b.BytesRaw, b.PacketsRaw, b.TCPFlags = a.Dst, a.Src, a.DstPort, a.SrcPort, down, downPackets, downFlags
		if v.proto == flow.ProtoICMP {
			b.ICMPType = 0
		}
		if b.Src.Compare(b.Dst) < 0 {
			a, b = b, a
		}
		switch l {
		case ipfix:
			if v.proto == flow.ProtoICMP && a.PacketsRaw == 0 {
				a.ICMPType = b.ICMPType
			}
			a.Source, a.SamplingRate = flow.SourceIPFIX, 1
			a.RevBytesRaw, a.RevPacketsRaw, a.RevTCPFlags = b.BytesRaw, b.PacketsRaw, b.TCPFlags
			a.Has |= flow.HasRevBytes | flow.HasRevPackets | flow.HasRevTCPFlags | flow.HasDirection
			out = append(out, a)
		default:
			for _, r := range []flow.Record{a, b} {
				if r.PacketsRaw == 0 {
					continue
				}
				r.Source = flow.SourceNetFlowV5
				if l == netflow9 {
					r.Source, r.SamplingRate, r.Has = flow.SourceNetFlowV9, 1, r.Has|flow.HasDirection
				}
				out = append(out, r)
			}
		}
		from = to
	}
	return out
}

// packets is about how many packets carry so many bytes, with those that acknowledge the others.
func packets(own, others uint64) uint64 {
	if own == 0 {
		return 0
	}
	return 1 + own/900 + others/2900
}

// agentsTell makes what the logs of the ends say: that a connection began. Sysmon's tells of those
// that came about.
func (t *traffic) agentsTell(v *conversation) {
	if v.proto == flow.ProtoICMP || v.dead && v.refused {
		return
	}
	for k, at := range [2]flow.Addr{v.client, v.server} {
		if k == 1 && v.dead {
			continue
		}
		for _, a := range t.agents[at] {
			if a.source == flow.SourceSysmon && (v.dead || v.refused) {
				continue
			}
			r := flow.Record{Start: v.start + a.skew, End: v.start + a.skew, Src: v.client, Dst: v.server, SrcPort: v.clientPort, DstPort: v.serverPort, Proto: v.proto,
				Has:    flow.HasStart | flow.HasEnd | flow.HasSrc | flow.HasDst | flow.HasProto | flow.HasSrcPort | flow.HasDstPort | flow.HasInitiator,
				Source: a.source, Observer: a.observer, Reporter: flow.ReporterSource}
			if a.source == flow.SourceWFP {
				r.Enforced = flow.ObservedAllow
			}
			if k == 1 {
				r.Reporter = flow.ReporterDestination
			}
			t.emit(v.start+1000, r)
		}
	}
}
