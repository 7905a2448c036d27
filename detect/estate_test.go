package detect

import (
	"encoding/base64"
	"fmt"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/postern/postern/flow"
)

// estate is an estate of so many hosts, in /24 of segments, and all the detectors that watch it.
// Each host uses ten services of ten others again and again, two sessions in five seconds. Of the
// edges one in a hundred is SSH, one in fifty a database, one in two hundred answers never, one in
// a hundred is under an exception, one in a thousand is blocked and one in a thousand violates the
// policy. One session in two thousand goes where its client never went. Each session is two
// records, of one of eight exporters, and two versions, one as it settles and one as it ends, with
// what it adds to the roll-up of edges then.
type estate struct {
	hosts uint64
	n     uint64
	rng   uint64
	at    flow.Time
	batch *flow.Batch
	rows  []flow.Session
	edges []flow.EdgeContribution
	index flow.Index

	segments, exceptions [64]flow.Name

	names     *flow.Names
	detector  *Detector
	contacts  *Contacts
	behaviour *Behaviour
	passed    int // contacts
}

const (
	estateEdges   = 10
	estateRecords = 2   // records a session, as in the chain's benchmark
	estateRate    = 0.4 // sessions a host and second
	estateUnit    = 1 << 14
	// estateWindow is how many flows a host has in a window of hosts.
	estateWindow = estateRecords * estateRate * hostWindow * 60
)

func newEstate(tb testing.TB, hosts uint64) *estate {
	cfg := DefaultConfig()
	cfg.Behaviour.MaxHosts, cfg.Behaviour.MaxEdges = 2_000_000, 1<<25
	e := &estate{hosts: hosts, at: 1_700_000_000_000, names: flow.NewNames(0), batch: flow.NewBatch(flow.BatchSize, nil)}
	for i := range e.segments {
		e.segments[i] = e.names.Intern(fmt.Sprintf("segment-%d", i))
		e.exceptions[i] = e.names.Intern(fmt.Sprintf("EX-%d", i))
	}
	var err error
	if e.detector, err = New(cfg, fakePolicy{e.names}, e.names, nil); err != nil {
		tb.Fatal(err)
	}
	if e.contacts, err = NewContacts(cfg, e.names, nil); err != nil {
		tb.Fatal(err)
	}
	if e.behaviour, err = NewBehaviour(cfg, 1, fakePolicy{e.names}, e.names, nil); err != nil {
		tb.Fatal(err)
	}
	return e
}

func (e *estate) passes(seconds float64, sessions uint64) {
	if each := max(1, uint64(float64(sessions)/(seconds*1000))); e.n%each == 0 {
		e.at += max(1, flow.Time(seconds*1000/float64(sessions)))
	}
}

// kind says what edge i of a client is, in thousandths.
func (e *estate) kind(client, i uint64) uint64 { return flow.Mix(client*64+i) >> 40 % 1000 }

// followed says whether edges of a kind are passed on time and again: those that fail, remote
// administration, databases, exceptions and violations.
func followed(kind uint64) bool { return kind < 47 }

func (e *estate) end(i uint64) flow.SessionEnd {
	return flow.SessionEnd{Addr: flow.AddrFrom4(0x0a000000 + uint32(i)), TCPFlags: flow.SYN | flow.PSH, Segment: e.segments[i>>8%64]}
}

// session is a session of edge i of a client, or where it never went.
func (e *estate) session(client, i uint64, strange bool) (s flow.Session) {
	e.n++
	h := flow.Mix(client*64 + i)
	server := h % e.hosts
	kind := e.kind(client, i)
	if strange {
		server = flow.Mix(e.n) % e.hosts
		kind = 999
	}
	s = flow.Session{ID: e.n, Conversation: flow.Mix(e.n), Proto: flow.ProtoTCP, HasPorts: true, Start: e.at, End: e.at + 1000,
		Settled: e.at + 20_001, Answered: e.at + 5, OrientationCertainty: 100, Records: estateRecords, ObserversTotal: 1,
		Client: e.end(client), Server: e.end(server)}
	s.Client.Port, s.Server.Port = 40_000, [...]uint16{443, 80, 8080, 443, 53}[h>>32%5]
	s.Verdict.Reason, s.Verdict.Outcome = flow.ReasonPermitted, flow.OutcomePermitted
	switch {
	case kind < 5:
		s.Answered, s.Server.TCPFlags, s.Client.TCPFlags, s.Observers[0].Reporter = 0, 0, flow.SYN, flow.ReporterDestination
	case kind < 15:
		s.Server.Port = 22
	case kind < 35:
		s.Server.Port = 5432
	case kind < 45:
		s.Verdict.Reason, s.Verdict.Exception = flow.ReasonWaived, e.exceptions[h>>20%64]
	case kind < 46:
		s.Verdict.Reason, s.Verdict.Outcome, s.Verdict.Observed = flow.ReasonDenied, flow.OutcomeBlocked, flow.ObservedDeny
		s.Answered, s.Server.TCPFlags, s.Client.TCPFlags = 0, 0, flow.SYN
	case kind < 47:
		s.Verdict.Reason, s.Verdict.Outcome = flow.ReasonDenied, flow.OutcomeEscaped
	}
	return s
}

// record makes of a session the record of one direction.
func record(r *flow.Record, s *flow.Session, back bool) {
	from, to := &s.Client, &s.Server
	if back {
		from, to = to, from
	}
	*r = flow.Record{ID: s.ID, Start: s.Start, End: s.End, Received: s.End, Exporter: flow.AddrFrom4(0xc0000200 + uint32(s.ID>>6%8)), Src: from.Addr, Dst: to.Addr,
		SrcPort: from.Port, DstPort: to.Port, SrcSegment: from.Segment, DstSegment: to.Segment, SamplingRate: 1, Proto: s.Proto, Source: flow.SourceIPFIX,
		Has: flow.HasStart | flow.HasEnd | flow.HasSrc | flow.HasDst | flow.HasSrcPort | flow.HasDstPort | flow.HasProto, Verdict: s.Verdict, OtherHalf: true}
	if back {
		r.Oriented = flow.Reverse
	}
}

// observe has the detectors look at the batch, as soon as it is judged.
func (e *estate) observe() {
	e.detector.Observe(e.batch)
	e.contacts.Observe(e.batch)
}

// settle has the detectors take in the sessions that settled, as at the end of a unit.
func (e *estate) settle() {
	e.detector.Settle(e.rows, &e.index)
	e.contacts.Sessions(e.rows, e.edges, &e.index)
	d := e.contacts.Collect(e.at + 20_000)
	e.passed += len(d.Contacts)
	e.behaviour.Take(0, &d)
	e.detector.Collect()
	e.behaviour.Collect()
}

// unit is one of usual traffic: sessions, and their records in batches. observe and settle are
// called for each batch and at its end.
func (e *estate) unit(observe, settle func()) {
	e.rows = e.rows[:0]
	for range estateUnit {
		e.rng = flow.Mix(e.rng + 1)
		s := e.session(e.rng%e.hosts, e.rng>>40%estateEdges, e.rng>>24%2000 == 0)
		e.passes(1/estateRate, e.hosts)
		e.rows = append(e.rows, s)
	}
	e.versions(observe, settle)
}

func (e *estate) versions(observe, settle func()) {
	n := len(e.rows)
	for i := range n {
		if e.batch.Full() {
			observe()
			e.batch.Records = e.batch.Records[:0]
		}
		record(e.batch.Next(), &e.rows[i], false)
		record(e.batch.Next(), &e.rows[i], true)
	}
	observe()
	e.batch.Records = e.batch.Records[:0]
	e.rows = append(e.rows, e.rows...)
	for i := range e.rows[n:] {
		s := &e.rows[n+i]
		e.edges = append(e.edges, flow.EdgeContribution{EdgeKey: flow.EdgeKey{Client: s.Client.Addr, Server: s.Server.Addr, ServerPort: s.Server.Port, Proto: s.Proto,
			HasPorts: true, ClientSegment: s.Client.Segment, ServerSegment: s.Server.Segment}, First: s.Start, Last: s.End, Over: true, Ended: s.Settled, Sent: [2]uint64{700, 4000}})
		s.Settled = 0
	}
	// The index is made as rows are written, by whoever does that.
	for i := range e.rows {
		e.index.Row(i, &e.rows[i])
	}
	for i := range e.edges {
		e.index.Edge(i, &e.edges[i])
	}
	settle()
	e.rows, e.edges = e.rows[:0], e.edges[:0]
	e.index.Reset()
}

// learn has the detectors see once each edge that is among some.
func (e *estate) learn(edge func(client, i uint64) bool, seconds float64, sessions uint64) {
	e.learnBy(edge, seconds, sessions, e.settle)
}

func (e *estate) learnBy(edge func(client, i uint64) bool, seconds float64, sessions uint64, settle func()) {
	for i := range e.hosts * estateEdges {
		if !edge(i%e.hosts, i/e.hosts) {
			continue
		}
		e.rows = append(e.rows, e.session(i%e.hosts, i/e.hosts, false))
		e.passes(seconds, sessions)
		if len(e.rows) == estateUnit {
			e.versions(e.observe, settle)
		}
	}
	e.versions(e.observe, settle)
}

// known makes the estate known: all its edges over an hour, four days, and then each edge that is
// passed on time and again, over as long as that takes on average. It says how long it takes to
// end a window in which every host was heard of.
func (e *estate) known(tb testing.TB) (window time.Duration) {
	e.learn(func(uint64, uint64) bool { return true }, 3600, e.hosts*estateEdges)
	window = e.window(tb)
	for range 2 {
		window = min(window, e.window(tb))
	}
	e.at += 4 * dayMillis
	e.learn(func(client, i uint64) bool { return followed(e.kind(client, i)) }, 600+estateEdges/estateRate, e.hosts*estateEdges*47/1000)
	return window
}

// again has every edge be used once, within a second of a window that is not over soon, and says how
// long it took to take that in.
func (e *estate) again(tb testing.TB) (took time.Duration) {
	e.at += hostWindow*minuteMillis - e.at%(hostWindow*minuteMillis)
	e.settle() // the window before is over
	e.learnBy(func(uint64, uint64) bool { return true }, 1, e.hosts*estateEdges, func() {
		began := cpuTime(tb)
		e.settle()
		took += cpuTime(tb) - began
	})
	for range 4 {
		e.unit(e.observe, e.settle)
	}
	return took
}

// window has every host be heard of, and says how long it takes to end the window.
func (e *estate) window(tb testing.TB) time.Duration {
	e.learn(func(_, i uint64) bool { return i == 0 }, 1, e.hosts*1000)
	e.at += hostWindow * minuteMillis
	began := cpuTime(tb)
	e.settle()
	return cpuTime(tb) - began
}

// cpuTime is the processor time that this process has used.
func cpuTime(tb testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func heapBytes() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestEstateAllocates: flows of what is known cost no allocation. What is passed on and what
// findings are made of does, which is little of usual traffic.
func TestEstateAllocates(t *testing.T) {
	e := newEstate(t, 1000)
	e.known(t)
	e.again(t)
	e.unit(func() {
		e.batch.Records = slices.DeleteFunc(e.batch.Records, func(r flow.Record) bool { return r.Verdict.Reason != flow.ReasonPermitted })
		if n := testing.AllocsPerRun(5, e.observe); n > 0 {
			t.Errorf("%v allocations to observe %d records, want none", n, len(e.batch.Records))
		}
	}, func() {
		e.settle() // what is new is known from here on
		e.rows = slices.DeleteFunc(e.rows, func(s flow.Session) bool { return s.Verdict.Reason != flow.ReasonPermitted })
		index := flow.IndexOf(e.rows, e.edges)
		if n := testing.AllocsPerRun(5, func() {
			e.detector.Settle(e.rows, &index)
			e.contacts.Sessions(e.rows, e.edges, &index)
		}); n > 0 {
			t.Errorf("%v allocations to take in %d versions of sessions, want none", n, len(e.rows))
		}
	})
	var m runtime.MemStats
	var observed, settled uint64
	counted := func(f func(), sum *uint64) func() {
		return func() {
			runtime.ReadMemStats(&m)
			before := m.Mallocs
			f()
			runtime.ReadMemStats(&m)
			*sum += m.Mallocs - before
		}
	}
	e.unit(counted(e.observe, &observed), counted(e.settle, &settled))
	const flows = estateUnit * estateRecords
	t.Logf("%d allocations to observe %d flows, %d to take in what settled", observed, flows, settled)
	if observed+settled > flows/20 {
		t.Errorf("%d allocations to observe %d flows and %d to take in what settled, want one in twenty flows at most", observed, flows, settled)
	}
}

// measured is an estate and what was measured of it, by flow and in nanoseconds if not else said.
type measured struct {
	*estate
	label             string
	memory            int64   // bytes
	window            float64 // to end a window, divided among its flows
	first             float64 // what more an edge costs when it is first used in a window, divided among all
	observed, settled []float64
	all               []float64 // by turn
	told              float64   // contacts
}

func measure(b *testing.B, hosts uint64) *measured {
	before := heapBytes()
	m := &measured{label: fmt.Sprintf("%dk-", hosts/1000), estate: newEstate(b, hosts)}
	m.window = float64(m.known(b).Nanoseconds()) / float64(hosts) / estateWindow
	first := m.again(b)
	m.turn(b)
	again := slices.Min(m.settled) * float64(hosts) * estateEdges * estateRecords
	m.first = max(0, float64(first.Nanoseconds())-again) / float64(hosts) / estateWindow
	m.rows, m.edges = nil, nil
	m.memory = heapBytes() - before
	return m
}

// turn measures a few units.
func (m *measured) turn(b *testing.B) {
	timed := func(f func(), sum *time.Duration) func() {
		return func() {
			began := cpuTime(b)
			f()
			*sum += cpuTime(b) - began
		}
	}
	m.unit(m.observe, m.settle) // another estate had the caches
	before := m.passed
	const units = 4
	const flows = units * estateUnit * estateRecords
	var observed, settled time.Duration
	for range units {
		m.unit(timed(m.observe, &observed), timed(m.settle, &settled))
	}
	m.told = float64(m.passed-before) / flows
	m.observed = append(m.observed, float64(observed.Nanoseconds())/flows)
	m.settled = append(m.settled, float64(settled.Nanoseconds())/flows)
	m.all = append(m.all, float64((observed+settled).Nanoseconds())/flows+m.window+m.first)
}

func (m *measured) report(b *testing.B) {
	for unit, v := range map[string]float64{"ns/flow": slices.Min(m.all), "observe-ns/flow": slices.Min(m.observed), "settle-ns/flow": slices.Min(m.settled),
		"window-ns/flow": m.window, "first-ns/flow": m.first, "contacts/1000flows": m.told * 1000, "B/host": float64(m.memory) / float64(m.hosts)} {
		b.ReportMetric(v, m.label+unit)
	}
}

// BenchmarkEstate is what all detectors together cost in estates that they know, of ten thousand
// hosts to a million, which take turns. It is for a process that has all of an estate.
//
// ns/flow is processor time by flow records: to observe them, to take in their sessions as they
// settle, and to end a window now and then. It is the least of the turns, for others may use the
// machine and its caches, and the ratio of a million hosts to ten thousand is of these. Of memory
// it tells bytes by host, and the slope: what each further host takes.
func BenchmarkEstate(b *testing.B) {
	sizes := []uint64{10_000, 100_000, 1_000_000}
	if testing.Short() {
		sizes = sizes[:2]
	}
	var estates []*measured
	for _, hosts := range sizes {
		estates = append(estates, measure(b, hosts))
	}
	b.Run("known", func(b *testing.B) {
		for _, m := range estates {
			m.all, m.observed, m.settled = nil, nil, nil
		}
		for range b.N {
			for _, m := range estates {
				m.turn(b)
			}
		}
		for _, m := range estates {
			m.report(b)
		}
		first, last := estates[0], estates[len(estates)-1]
		b.ReportMetric(slices.Min(last.all)/slices.Min(first.all), "ratio")
		b.ReportMetric(float64(last.memory-first.memory)/float64(last.hosts-first.hosts), "slope-B/host")
	})
	b.Run("stored", func(b *testing.B) { estates[1].stored(b) })
}

// stored reports how large checkpoints are, packed as they are stored, and contacts on their topic;
// there is no time to tell.
func (m *measured) stored(b *testing.B) {
	b.ReportMetric(0, "ns/op")
	zip, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		b.Fatal(err)
	}
	for name, s := range map[string]interface{ Snapshot() ([]byte, error) }{"contacts": m.contacts, "behaviour": m.behaviour} {
		state, err := s.Snapshot()
		if err != nil {
			b.Fatal(err)
		}
		packed := zip.EncodeAll([]byte(base64.StdEncoding.EncodeToString(state)), nil)
		b.ReportMetric(float64(len(packed))/float64(m.hosts), name+"-packed-B/host")
	}
	var all []Contact
	m.unit(m.observe, func() {
		m.contacts.Sessions(m.rows, m.edges, &m.index)
		all = m.contacts.Collect(m.at).Contacts
	})
	onTopic, n := 0, len(all)
	for len(all) > 0 {
		some := all[:min(len(all), 48)]
		onTopic += len(zip.EncodeAll((&Digest{Until: m.at, Contacts: some}).Encode(m.names), nil))
		all = all[len(some):]
	}
	b.ReportMetric(float64(onTopic)/float64(max(1, n)), "topic-B/contact")
}
