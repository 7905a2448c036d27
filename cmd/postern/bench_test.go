//go:build unix

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/ClickHouse/ch-go/compress"
	"github.com/ClickHouse/ch-go/proto"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/netsampler/goflow2/v2/format"
	_ "github.com/netsampler/goflow2/v2/format/binary"
	_ "github.com/netsampler/goflow2/v2/format/json"
	"github.com/netsampler/goflow2/v2/metrics"
	protoproducer "github.com/netsampler/goflow2/v2/producer/proto"
	"github.com/netsampler/goflow2/v2/utils"
	"github.com/netsampler/goflow2/v2/utils/debug"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest"
	"github.com/postern/postern/ingest/exporter"
	"github.com/postern/postern/policy"
	"github.com/postern/postern/sink"
)

// The benchmarks of this file take the datagrams of eight exporters through the
// whole chain, as serve does it: spool, decoding, orienting and judging, detection,
// encoding, inserting over HTTP. A process of its own stands in for ClickHouse and
// throws away what it gets, so that its time is not ours. docs/performance.md has
// the figures.
//
//	BenchmarkChain      the service as it runs, its stages beside each other
//	BenchmarkStages     one after the other, and what each takes
//	BenchmarkReceive    datagrams from the socket, sent by another process
//	BenchmarkPeer       the chain and goflow2's pipeline on the same datagrams
//
// cpu-ns/flow is processor time, garbage collection and kernel included; on a
// machine that others use too it says more than the clock, and 1e9 over it is the
// flows a second a core.

// Of the estate: a policy the size of a large company's.
const (
	estateSegments   = 50
	estateWorkloads  = 2000
	estateRules      = 1000
	estateExceptions = 500
)

var estatePorts = []int{22, 53, 80, 88, 135, 389, 443, 445, 636, 1433, 3306, 3389, 5432, 5985, 6443, 8080, 8443, 9092, 9200, 27017}

// estate writes the policy: every segment enforced, nine rules in ten allow, one in
// ten is a denial that exceptions beat, and a third of the exceptions are over.
func estate() []byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	var b bytes.Buffer
	b.WriteString("postern: v1\nsegments:\n")
	for i := range estateSegments {
		fmt.Fprintf(&b, "  - {name: seg-%d, zone: zone-%d, prefixes: [10.%d.0.0/16], stage: enforced, default: {in: deny, out: allow}, owner: team-%d}\n",
			i, i%10, i, i%7)
	}
	b.WriteString("workloads:\n")
	for i := range estateWorkloads {
		fmt.Fprintf(&b, "  - {name: w-%d, app: app-%d, role: role-%d, env: %s, addresses: [10.%d.%d.9]}\n",
			i, i%100, i%7, []string{"prod", "test"}[i%3/2], i%estateSegments, i/estateSegments)
	}
	selector := func() string {
		switch rnd.IntN(5) {
		case 0:
			return fmt.Sprintf("zone: zone-%d", rnd.IntN(10))
		case 1:
			return fmt.Sprintf("app: app-%d, env: prod", rnd.IntN(100))
		case 2:
			return fmt.Sprintf("cidr: 10.%d.%d.0/24", rnd.IntN(estateSegments), rnd.IntN(40))
		}
		return fmt.Sprintf("segment: seg-%d", rnd.IntN(estateSegments))
	}
	services := func() string {
		var list []string
		for _, i := range rnd.Perm(len(estatePorts))[:1+rnd.IntN(3)] {
			list = append(list, fmt.Sprintf("tcp/%d", estatePorts[i]))
		}
		return strings.Join(list, ", ")
	}
	identity := func(percent int) string {
		if rnd.IntN(100) < percent {
			return fmt.Sprintf(", identity: user-%d", rnd.IntN(500))
		}
		return ""
	}
	b.WriteString("rules:\n")
	var denies []string
	for i := range estateRules {
		action := "allow"
		switch {
		case i%50 == 0:
			action = "override-deny"
		case i%10 == 0:
			action = "deny"
			denies = append(denies, fmt.Sprintf("rule-%04d", i))
		}
		fmt.Fprintf(&b, "  - {id: rule-%04d, action: %s, from: {%s%s}, to: {%s}, services: [%s]}\n", i, action, selector(), identity(3), selector(), services())
	}
	b.WriteString("exceptions:\n")
	for i := range estateExceptions {
		expires := "2027-03-01"
		if i%3 == 0 {
			expires = "2026-09-20"
		}
		fmt.Fprintf(&b, "  - {id: EX-%04d, class: vendor, overrides: [%s], from: {%s%s}, to: {%s}, services: [%s], ticket: CHG-%d, owner: team-%d, reason: as agreed, "+
			"requested: {by: ana, at: 2026-08-01T09:00:00Z}, approved: [{by: raj, role: segment-owner, at: 2026-08-02T09:00:00Z}], "+
			"notBefore: 2026-09-01T00:00:00Z, expires: %sT00:00:00Z}\n",
			i, denies[rnd.IntN(len(denies))], selector(), identity(20), selector(), services(), 80000+i, i%7, expires)
	}
	return b.Bytes()
}

// trafficStart is the time of the first datagram.
var trafficStart = flow.TimeOf(time.Date(2026, 10, 5, 8, 0, 0, 0, time.UTC))

// shares is how traffic is made up, in thousandths of the conversations.
var shares = []struct {
	reason flow.Reason
	share  int
}{{flow.ReasonPermitted, 965}, {flow.ReasonUncovered, 10}, {flow.ReasonWaived, 10}, {flow.ReasonDenied, 5}, {flow.ReasonOutOfScope, 5}, {flow.ReasonExpired, 5}}

// conversations picks from random ones until the shares are full. No rule speaks
// of UDP, so that all are TCP.
func conversations(n int) []policy.Conversation {
	p, diags := policy.Load(fstest.MapFS{"estate.yaml": {Data: estate()}})
	if p == nil {
		panic(diags.String())
	}
	idx := policy.Compile(p, flow.NewNames(0), policy.DefaultConfig())
	rnd := rand.New(rand.NewPCG(3, 4))
	left, want := map[flow.Reason]int{}, 0
	for _, s := range shares {
		left[s.reason] = n * s.share / 1000
		want += left[s.reason]
	}
	end := func(outside bool) flow.Addr {
		segment, host := uint32(rnd.IntN(estateSegments)), uint32(rnd.IntN(40))<<8
		if outside {
			segment = 99 // no segment's
		}
		if rnd.IntN(2) == 0 {
			return flow.AddrFrom4(10<<24 | segment<<16 | host | 9) // a workload
		}
		return flow.AddrFrom4(10<<24 | segment<<16 | host | uint32(10+rnd.IntN(200)))
	}
	var out []policy.Conversation
	for tries := 0; len(out) < want; tries++ {
		if tries > 1000*n {
			panic(fmt.Sprintf("traffic is still without %v", left))
		}
		c := policy.Conversation{Start: trafficStart, Proto: flow.ProtoTCP, Port: uint16(estatePorts[rnd.IntN(len(estatePorts))]), Known: policy.KnownTuple}
		outside := rnd.IntN(50) == 0
		c.Client.Addr, c.Server.Addr = end(outside), end(outside)
		var v flow.Verdict
		idx.Judge(&c, &v)
		again := 1
		if v.Reason != flow.ReasonPermitted && v.Reason != flow.ReasonUncovered {
			again = 10 // what misuses an exception does so again and again
		}
		for range min(again, left[v.Reason]) {
			left[v.Reason]--
			out = append(out, c)
		}
	}
	return out
}

// traffic is a second of an estate's datagrams, again and again a second later.
type traffic struct {
	list  []datagram
	flows int
}

type datagram struct {
	ingest.Datagram
	times    []int  // where in the payload times in milliseconds stand (IPFIX)
	sequence uint32 // by which its exporter's sequence number grows a turn
}

const (
	trafficExporters = 8
	trafficPeriod    = time.Second
)

// newTraffic makes datagrams for about so many flows, both directions of each
// conversation told by its exporter as records of their own.
func newTraffic(source flow.Source, flows int) *traffic {
	rnd := rand.New(rand.NewPCG(5, 6))
	all := conversations(flows / 2)
	t := &traffic{flows: 2 * len(all)}
	rnd.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	var exporters [trafficExporters]*exporter.Exporter
	for i := range exporters {
		x, err := exporter.New(exporter.Config{Protocol: source, Domain: uint32(i), Boot: trafficStart.Add(-240 * time.Hour)})
		if err != nil {
			panic(err)
		}
		exporters[i] = x
	}
	const ticks = 10 // each exporter sends ten times a second
	records := make([]flow.Record, 0, flows)
	for tick := range ticks {
		now := trafficStart.Add(trafficPeriod * time.Duration(tick) / ticks)
		part := all[len(all)*tick/ticks : len(all)*(tick+1)/ticks]
		for i, x := range exporters {
			records = records[:0]
			for _, c := range part[len(part)*i/trafficExporters : len(part)*(i+1)/trafficExporters] {
				records = append(records, halves(rnd, &c, now)...)
			}
			_, err := x.Export(now, records, func(b []byte) error {
				d := datagram{Datagram: ingest.Datagram{Received: now.Add(2 * time.Millisecond), Exporter: flow.AddrFrom4(0xc0000201 + uint32(i)), Port: 2055, Payload: bytes.Clone(b)}}
				if source == flow.SourceIPFIX {
					d.times = timesIn(d.Payload)
				}
				t.list = append(t.list, d)
				return nil
			})
			if err != nil {
				panic(err)
			}
		}
	}
	t.countSequences(source)
	return t
}

// halves tells a conversation as a router does: a record a direction.
func halves(rnd *rand.Rand, c *policy.Conversation, now flow.Time) []flow.Record {
	packets := 1 + uint64(rnd.ExpFloat64()*20)
	end := now - flow.Time(rnd.IntN(4000))
	r := flow.Record{
		Start: end - min(flow.Time(rnd.ExpFloat64()*8000), 55_000), End: end, Src: c.Client.Addr, Dst: c.Server.Addr,
		SrcPort: uint16(32768 + rnd.IntN(28000)), DstPort: c.Port, Proto: flow.ProtoTCP, TCPFlags: flow.SYN | flow.ACK | flow.PSH | flow.FIN,
		PacketsRaw: packets, BytesRaw: packets*60 + uint64(rnd.IntN(1400*int(packets))), InIf: uint32(1 + rnd.IntN(8)), OutIf: uint32(1 + rnd.IntN(8)),
		Has: flow.HasStart | flow.HasEnd | flow.HasSrc | flow.HasDst | flow.HasSrcPort | flow.HasDstPort | flow.HasProto | flow.HasTCPFlags |
			flow.HasBytes | flow.HasPackets | flow.HasInIf | flow.HasOutIf,
	}
	s := r
	s.Src, s.Dst, s.SrcPort, s.DstPort, s.InIf, s.OutIf = r.Dst, r.Src, r.DstPort, r.SrcPort, r.OutIf, r.InIf
	return []flow.Record{r, s}
}

// timesIn finds where times of the traffic stand in a payload. Nothing else looks
// like one: the upper four bytes change every 49 days.
func timesIn(b []byte) (at []int) {
	for i := 16; i+8 <= len(b); i++ {
		if v := flow.Time(binary.BigEndian.Uint64(b[i:])); v > trafficStart.Add(-time.Hour) && v < trafficStart.Add(time.Hour) {
			at = append(at, i)
		}
	}
	return at
}

// countSequences notes what a turn adds to each exporter's sequence number.
func (t *traffic) countSequences(source flow.Source) {
	grown := map[flow.Addr]uint32{}
	for i := range t.list {
		n := uint32(1) // v9 counts datagrams
		if source == flow.SourceIPFIX {
			n = uint32(len(t.list[i].times) / 2) // IPFIX counts records
		}
		grown[t.list[i].Exporter] += n
	}
	for i := range t.list {
		t.list[i].sequence = grown[t.list[i].Exporter]
	}
}

// later moves datagram i to the next turn: a second later by every clock.
func (t *traffic) later(i int) *ingest.Datagram {
	d := &t.list[i]
	be := binary.BigEndian
	d.Received = d.Received.Add(trafficPeriod)
	seconds, sequence := 8, 12
	if be.Uint16(d.Payload) == 10 {
		seconds, sequence = 4, 8
	}
	be.PutUint32(d.Payload[seconds:], be.Uint32(d.Payload[seconds:])+uint32(trafficPeriod/time.Second))
	be.PutUint32(d.Payload[sequence:], be.Uint32(d.Payload[sequence:])+d.sequence)
	for _, at := range d.times {
		be.PutUint64(d.Payload[at:], be.Uint64(d.Payload[at:])+uint64(trafficPeriod/time.Millisecond))
	}
	return &d.Datagram
}

// turnFlows is how many flows a turn tells: what fits into a segment of the spool.
const turnFlows = 80_000

// child starts this test binary again in another role and gives what it prints
// first. The process ends with the benchmark.
func child(tb testing.TB, role string, env ...string) string {
	cmd := exec.Command(os.Args[0], "-test.run=^TestBenchmarkChild$")
	cmd.Env = append(os.Environ(), append(env, "POSTERN_BENCHMARK_CHILD="+role, "GOMAXPROCS=1")...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	in, err := cmd.StdinPipe() // it ends when this end is closed, also by a crash
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		tb.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// TestBenchmarkChild is what the benchmarks' other processes run.
func TestBenchmarkChild(t *testing.T) {
	role := os.Getenv("POSTERN_BENCHMARK_CHILD")
	if role == "" {
		t.Skip("the benchmarks start it in a process of its own")
	}
	go func() {
		switch role {
		case "clickhouse":
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				panic(err)
			}
			fmt.Println("http://" + l.Addr().String())
			panic(http.Serve(l, discard{columns: findingColumns()}))
		case "exporter":
			sendForEver(os.Getenv("POSTERN_BENCHMARK_TO"))
		}
	}()
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// discard answers as much of ClickHouse's HTTP interface as inserting needs.
type discard struct{ columns [][2]string }

func (d discard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query().Get("query")
	if !r.URL.Query().Has("query") {
		b, _ := io.ReadAll(r.Body)
		query = string(b)
	}
	text := func(values ...string) *proto.ColStr {
		var c proto.ColStr
		for _, v := range values {
			c.Append(v)
		}
		return &c
	}
	var in proto.Input
	switch {
	case strings.HasPrefix(query, "SELECT displayName"):
		in = proto.Input{{Name: "displayName()", Data: text("discard")}, {Name: "version()", Data: text("26.7.3.1")},
			{Name: "revision()", Data: proto.ColUInt32{54483}}, {Name: "timezone()", Data: text("UTC")}}
	case strings.HasPrefix(query, "SELECT 1"):
		in = proto.Input{{Name: "1", Data: proto.ColUInt8{1}}}
	case strings.HasPrefix(query, "DESCRIBE TABLE"):
		var name, typ, empty proto.ColStr
		for _, c := range d.columns {
			name.Append(c[0])
			typ.Append(c[1])
			empty.Append("")
		}
		in = proto.Input{{Name: "name", Data: name}, {Name: "type", Data: typ}}
		for _, n := range []string{"default_type", "default_expression", "comment", "codec_expression", "ttl_expression"} {
			in = append(in, proto.InputColumn{Name: n, Data: empty})
		}
	default:
		_, _ = io.Copy(io.Discard, r.Body)
		return
	}
	var b proto.Buffer
	// Revision 54483 is what clickhouse-go asks for as client_protocol_version.
	err := proto.Block{Columns: len(in), Rows: in[0].Data.Rows(), Info: proto.BlockInfo{BucketNum: -1}}.EncodeBlock(&b, 54483, in)
	if err != nil {
		panic(err)
	}
	if r.URL.Query().Get("compress") == "1" {
		c := compress.NewWriter(compress.LevelZero, compress.LZ4)
		if err := c.Compress(b.Buf); err != nil {
			panic(err)
		}
		b.Buf = c.Data
	}
	_, _ = w.Write(b.Buf)
}

// findingColumns reads the columns of the table that findings go to.
func findingColumns() (out [][2]string) {
	b, err := os.ReadFile(filepath.Join("..", "..", "sink", "migrations", "0002_findings.sql"))
	if err != nil {
		panic(err)
	}
	table, _, _ := strings.Cut(string(b), "ENGINE")
	for _, m := range regexp.MustCompile(`(?m)^    (\w+) (.+?) COMMENT '`).FindAllStringSubmatch(table, -1) {
		out = append(out, [2]string{m[1], m[2]})
	}
	return out
}

// sendForEver sends NetFlow v9 as fast as the socket takes it.
func sendForEver(to string) {
	conn, err := net.Dial("udp", to)
	if err != nil {
		panic(err)
	}
	fmt.Println("sending")
	t := newTraffic(flow.SourceNetFlowV9, 8000)
	for {
		for i := range t.list {
			_, _ = conn.Write(t.later(i).Payload) // the receiver ends when it has enough
		}
	}
}

// cpuTime is the processor time this process has used.
func cpuTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t); err != nil {
		panic(err)
	}
	return time.Duration(t.Nano())
}

// meter measures a benchmark's time, processor time and allocations a flow.
type meter struct {
	cpu     time.Duration
	mallocs uint64
}

func (m *meter) start(b *testing.B) {
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	m.mallocs, m.cpu = s.Mallocs, cpuTime()
	b.ResetTimer()
}

func (m *meter) stop(b *testing.B, flows int) {
	b.StopTimer()
	cpu := cpuTime() - m.cpu
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	n := float64(flows)
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/n, "ns/flow")
	b.ReportMetric(float64(cpu)/n, "cpu-ns/flow")
	b.ReportMetric(n/cpu.Seconds(), "flows/s/core")
	b.ReportMetric(n/b.Elapsed().Seconds(), "flows/s")
	b.ReportMetric(float64(s.Mallocs-m.mallocs)/n, "allocs/flow")
	b.ReportMetric(0, "ns/op")
}

// bench is a service without sockets, its store opened.
type bench struct {
	*service
	ctx  context.Context
	stop context.CancelFunc
}

func newBench(tb testing.TB, url, compression string) *bench {
	cfg := defaultConfig()
	cfg.Data = tb.TempDir()
	cfg.Policy.Dir = tb.TempDir()
	cfg.Policy.Since = trafficStart.Add(-240 * time.Hour)
	cfg.Ingest.NetFlow.Listen, cfg.Ingest.SFlow.Listen, cfg.Admin.Listen = "", "", ""
	cfg.ClickHouse.URL, cfg.ClickHouse.Compression = url, compression
	if err := os.WriteFile(filepath.Join(cfg.Policy.Dir, "estate.yaml"), estate(), 0o600); err != nil {
		tb.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	s, err := newService(cfg, log)
	if err != nil {
		tb.Fatal(err)
	}
	b := &bench{service: s}
	b.ctx, b.stop = context.WithCancel(tb.Context())
	if err := s.open(b.ctx); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		b.stop()
		_ = s.spool.Close()
		_ = s.store.close()
		if db := s.store.(*durableStore).db; db != nil {
			_ = db.Close()
		}
	})
	if url == "" {
		return b
	}
	st := s.store.(*durableStore)
	if st.db, err = sink.Open(b.ctx, cfg.ClickHouse, st.opts); err != nil {
		tb.Fatal(err)
	}
	close(st.opened)
	return b
}

// checkAccounts fails unless every flow that went in came out, judged as traffic
// is made up.
func (s *bench) checkAccounts(tb testing.TB, flows int) {
	l := s.ledger()
	if err := l.Check(); err != nil {
		tb.Error(err)
	}
	total := l.Total()
	if r := &total.Records; r.Decoded != uint64(flows) || r.Written+r.InFlight != uint64(flows) || r.InFlight*20 > uint64(flows) {
		tb.Errorf("%d flows went in; %d decoded, %d written, %d in flight", flows, r.Decoded, r.Written, r.InFlight)
	}
	if total.Gaps > 0 {
		tb.Errorf("%d gaps in the sequence numbers", total.Gaps)
	}
}

var sources = []struct {
	name   string
	source flow.Source
}{{"v9", flow.SourceNetFlowV9}, {"ipfix", flow.SourceIPFIX}}

// BenchmarkChain is the service from the listener's hands to the acknowledged
// insert. An op is a turn of the traffic.
func BenchmarkChain(b *testing.B) {
	url := child(b, "clickhouse")
	for _, src := range sources {
		for _, compression := range []string{"none", "lz4"} {
			for _, cores := range []int{1, 2} {
				b.Run(fmt.Sprintf("%s/%s/cores=%d", src.name, compression, cores), func(b *testing.B) {
					defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(cores))
					benchmarkChain(b, src.source, url, compression)
				})
			}
		}
	}
}

func benchmarkChain(b *testing.B, source flow.Source, url, compression string) {
	t := newTraffic(source, turnFlows)
	s := newBench(b, url, compression)
	work, ctx := errgroup.WithContext(s.ctx)
	work.Go(func() error { return s.spool.Run(ctx) })
	var rest errgroup.Group
	rest.Go(func() error { defer close(s.pipe.out); return s.consume(ctx) })
	rest.Go(func() error { return s.pipe.runStore(ctx, s.saved) })
	batch := make([]ingest.Datagram, 0, 64) // as the listener hands them over
	behind := func() uint64 {
		_, open := s.spool.Segments()
		s.pipe.gate.Lock()
		defer s.pipe.gate.Unlock()
		return open - s.cursor
	}
	turn := func() {
		for i := range t.list {
			if batch = append(batch, *t.later(i)); len(batch) < cap(batch) && i < len(t.list)-1 {
				continue
			}
			if n := s.spool.Append(batch); n != len(batch) {
				b.Fatalf("the spool took %d of %d datagrams", n, len(batch))
			}
			batch = batch[:0]
			for behind() > 6 { // segments: a real spool grows
				time.Sleep(time.Millisecond)
			}
		}
	}
	const warm = 4 // turns, so that the policy is compiled and buffers have their size
	for range warm {
		turn()
	}
	for records := (flow.RecordAccount{}); records.Written < uint64(warm*t.flows)*95/100; {
		if err := s.spool.Flush(); err != nil {
			b.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
		records = s.ledger().Total().Records
	}
	var m meter
	m.start(b)
	for range b.N {
		turn()
	}
	if err := s.spool.Stop(); err != nil {
		b.Fatal(err)
	}
	if err := rest.Wait(); err != nil {
		b.Fatal(err)
	}
	m.stop(b, b.N*t.flows)
	s.checkAccounts(b, (b.N+warm)*t.flows)
	s.stop()
	if err := work.Wait(); err != nil {
		b.Fatal(err)
	}
}

// stages of the chain in the order in which a flow meets them.
var stages = [...]string{"spool", "decode", "judge", "detect", "sessions", "tally", "encode", "send", "close", "checkpoint"}

const (
	stageSpool  = iota // append, seal, read back
	stageDecode        // datagrams to records
	stageJudge         // orient, pair, judge
	stageDetect
	stageSessions // merging observers
	stageTally    // counting verdicts
	stageEncode   // records to columns
	stageSend     // columns to the acknowledged insert
	stageClose    // findings
	stageCheckpoint
)

// serial takes turns of traffic through the stages of a service, one stage after
// the other, and adds up what each takes. Checkpoints come as often as the service makes them.
type serial struct {
	*bench
	t     *traffic
	took  [len(stages)]time.Duration
	mark  time.Duration
	flows int
}

func (s *serial) lap(stage int) {
	now := cpuTime()
	s.took[stage] += now - s.mark
	s.mark = now
}

func (s *serial) turn(tb testing.TB) {
	must := func(err error) {
		if err != nil {
			tb.Fatal(err)
		}
	}
	s.mark = cpuTime()
	batch := make([]ingest.Datagram, 0, 64)
	for i := range s.t.list {
		if batch = append(batch, *s.t.later(i)); len(batch) == cap(batch) || i == len(s.t.list)-1 {
			if n := s.spool.Append(batch); n != len(batch) {
				tb.Fatalf("the spool took %d of %d datagrams", n, len(batch))
			}
			batch = batch[:0]
		}
	}
	must(s.spool.Flush())
	s.flows += s.t.flows
	for left := len(s.t.list); left > 0; {
		seg, err := s.spool.Next(s.ctx)
		must(err)
		s.takeIn(seg)
		s.pipe.begin(unit{Insert: sink.Insert{Token: fmt.Sprintf("spool/%s/%d", seg.Spool(), seg.Seq()), Input: "spool/" + seg.Spool().String(), At: seg.Created()}})
		s.lap(stageSpool)
		for e := range seg.Entries() {
			switch e.Kind {
			case ingest.EntryPolicy:
				must(s.activate(s.ctx, e.Payload))
				s.mark = cpuTime()
				continue
			case ingest.EntryDatagram:
			default:
				continue
			}
			left--
			d := e.Datagram()
			s.pipe.queued[d.Exporter]--
			s.pipe.decoder.Decode(&d, s.pipe.decoded)
			if len(s.pipe.decoded.Records) >= flow.BatchSize {
				must(s.batch())
			}
		}
		must(s.batch())
		must(s.flush())
		versions, edges, _, err := s.pipe.settle(s.ctx, false, false)
		must(err)
		s.lap(stageSessions)
		must(s.store.sessions(s.ctx, s.pipe.unit.Insert, versions))
		must(s.store.edges(s.ctx, s.pipe.unit.Insert, edges))
		s.lap(stageSend)
		contribs, events := s.pipe.collect(false)
		must(s.store.findings(s.ctx, s.pipe.unit.Insert, contribs, events))
		s.lap(stageClose)
		if !s.checkpointDue() {
			continue
		}
		began := time.Now()
		s.checkpointed = began
		cp := &checkpoint{Spool: seg.Spool().String(), Segment: seg.Seq(), Ledger: s.pipe.received()}
		cp.state, err = s.pipe.snapshot()
		must(err)
		s.pipe.snapshotTook.Store(int64(time.Since(began)))
		began = time.Now()
		must(s.saved.save(s.ctx, cp))
		s.pipe.saveTook.Store(int64(time.Since(began)))
		must(s.spool.Remove(seg.Seq()))
		s.lap(stageCheckpoint)
	}
}

// batch is what pipeline.advance does, with a look at the clock between.
func (s *serial) batch() error {
	p := s.pipe
	s.lap(stageDecode)
	p.judged.Reset()
	p.taken = 0
	p.pairer.Process(p.decoded, p.judged)
	p.decoded.Reset()
	s.lap(stageJudge)
	p.detector.Observe(p.judged)
	s.lap(stageDetect)
	p.sessions.Observe(p.judged)
	p.contacts.Observe(p.judged)
	s.lap(stageSessions)
	p.judgedSoFar.add(p.judged)
	s.lap(stageTally)
	for p.taken < len(p.judged.Records) {
		if p.block == nil {
			if err := p.takeBlock(s.ctx); err != nil {
				return err
			}
		}
		rest := p.judged.Records[p.taken:]
		rest = rest[:min(len(rest), p.chunkRows-p.block.rows)]
		p.block.add(rest)
		p.taken += len(rest)
		s.lap(stageEncode)
		if p.block.rows >= p.chunkRows {
			if err := s.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *serial) flush() error {
	p := s.pipe
	if p.block == nil || p.block.rows == 0 {
		return nil
	}
	item := storeItem{unit: p.unit, block: p.block}
	item.unit.Token += fmt.Sprint("/", p.chunk)
	p.chunk++
	p.block = nil
	err := p.insert(s.ctx, item)
	s.lap(stageSend)
	return err
}

func (s *serial) report(b *testing.B) {
	for i, name := range stages {
		b.ReportMetric(float64(s.took[i])/float64(s.flows), name+"-ns/flow")
	}
}

// BenchmarkStages says where the processor time goes.
func BenchmarkStages(b *testing.B) {
	url := child(b, "clickhouse")
	for _, src := range sources {
		for _, compression := range []string{"none", "lz4"} {
			b.Run(src.name+"/"+compression, func(b *testing.B) {
				s := &serial{bench: newBench(b, url, compression), t: newTraffic(src.source, turnFlows)}
				for range 3 { // buffers grow to their size
					s.turn(b)
				}
				s.took, s.flows = [len(stages)]time.Duration{}, 0
				var m meter
				m.start(b)
				for range b.N {
					s.turn(b)
				}
				m.stop(b, s.flows)
				s.report(b)
				s.checkAccounts(b, (b.N+3)*s.t.flows)
			})
		}
	}
}

// BenchmarkReceive is the listener: from the socket to the hands of the spool. An
// op is 10,000 datagrams.
func BenchmarkReceive(b *testing.B) {
	got := &received{done: make(chan struct{}), want: b.N * 10_000}
	l, err := ingest.NewListener(ingest.DefaultListenerConfig("127.0.0.1:0"), ingest.ListenerOptions{Sink: got, Clock: wallClock})
	if err != nil {
		b.Fatal(err)
	}
	if err := l.Bind(b.Context()); err != nil {
		b.Fatal(err)
	}
	child(b, "exporter", "POSTERN_BENCHMARK_TO="+l.Addr().String())
	time.Sleep(500 * time.Millisecond) // it makes its traffic
	ctx, stop := context.WithCancel(b.Context())
	var run errgroup.Group
	var m meter
	m.start(b)
	run.Go(func() error { return l.Run(ctx) })
	<-got.done
	got.mu.Lock()
	n := got.flows
	got.mu.Unlock()
	m.stop(b, n)
	stop()
	if err := run.Wait(); err != nil {
		b.Fatal(err)
	}
}

type received struct {
	mu    sync.Mutex
	flows int
	n     int
	want  int
	done  chan struct{}
}

func (r *received) Append(ds []ingest.Datagram) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range ds {
		r.flows += int(binary.BigEndian.Uint16(ds[i].Payload[2:])) // v9 counts its records, a few templates among them
	}
	if before := r.n; before < r.want && before+len(ds) >= r.want {
		close(r.done)
	}
	r.n += len(ds)
	return len(ds)
}

func (r *received) Refuse(flow.Addr, flow.Reject, uint64) {}

// goflow2 is its pipeline as its binary puts it together, from the payload to the
// bytes that a transport would send.
type goflow2 struct {
	decode utils.DecoderFunc
	bytes  int
	sent   int
}

// Send is the transport: it counts and forgets.
func (g *goflow2) Send(_, data []byte) error {
	g.bytes += len(data)
	g.sent++
	return nil
}

func newGoflow2(tb testing.TB, formatName string) *goflow2 {
	must := func(err error) {
		if err != nil {
			tb.Fatal(err)
		}
	}
	g := &goflow2{}
	f, err := format.FindFormat(formatName)
	must(err)
	var none *protoproducer.ProducerConfig
	cfg, err := none.Compile()
	must(err)
	p, err := protoproducer.CreateProtoProducer(cfg, protoproducer.CreateSamplingSystem)
	must(err)
	pipe := utils.NewNetFlowPipe(&utils.PipeConfig{Format: f, Transport: g, Producer: metrics.WrapPromProducer(debug.WrapPanicProducer(p)),
		NetFlowTemplater: metrics.NewDefaultPromTemplateSystem})
	g.decode = metrics.PromDecoderWrapper(debug.PanicDecoderWrapper(pipe.DecodeFlow), "netflow")
	return g
}

// BenchmarkPeer takes the same datagrams through our chain, a turn at a time, and
// through goflow2's pipeline, which only decodes and formats. times is how many
// times the processor time goflow2 takes.
func BenchmarkPeer(b *testing.B) {
	url := child(b, "clickhouse")
	for _, src := range sources {
		for _, formatName := range []string{"bin", "json"} {
			b.Run(src.name+"/"+formatName, func(b *testing.B) {
				s := &serial{bench: newBench(b, url, "none"), t: newTraffic(src.source, turnFlows)}
				g := newGoflow2(b, formatName)
				dst := netip.MustParseAddrPort("192.0.2.100:2055")
				// Its JSON takes so long that a tenth must do; that tenth holds every exporter.
				part := s.t.list
				if formatName == "json" {
					part = part[:len(part)/10]
				}
				other := func() {
					for i := range part {
						d := &part[i]
						msg := &utils.Message{Src: netip.AddrPortFrom(d.Exporter.Netip(), d.Port), Dst: dst, Payload: d.Payload, Received: d.Received.Std()}
						if err := g.decode(msg); err != nil {
							b.Fatal(err)
						}
					}
				}
				for range 3 {
					s.turn(b)
				}
				other()
				s.flows, g.sent = 0, 0
				var ours, theirs time.Duration
				b.ResetTimer()
				for range b.N {
					at := cpuTime()
					s.turn(b)
					ours += cpuTime() - at
					at = cpuTime()
					other()
					theirs += cpuTime() - at
				}
				b.StopTimer()
				if want := s.flows * len(part) / len(s.t.list); g.sent < want*99/100 || g.sent > want*101/100 {
					b.Fatalf("goflow2 told %d flows, about %d went in", g.sent, want)
				}
				oursEach, theirsEach := float64(ours)/float64(s.flows), float64(theirs)/float64(g.sent)
				b.ReportMetric(oursEach, "postern-cpu-ns/flow")
				b.ReportMetric(theirsEach, "goflow2-cpu-ns/flow")
				b.ReportMetric(theirsEach/oursEach, "times")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// TestHotPathDoesNotAllocate holds the way from decoded records to the columns of
// the block free of allocations, for what nearly all traffic is: permitted.
func TestHotPathDoesNotAllocate(t *testing.T) {
	s := newBench(t, "", "none")
	if err := s.spool.Flush(); err != nil {
		t.Fatal(err)
	}
	seg, err := s.spool.Next(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for e := range seg.Entries() {
		if e.Kind == ingest.EntryPolicy {
			if err := s.activate(s.ctx, e.Payload); err != nil {
				t.Fatal(err)
			}
		}
	}
	p := s.pipe
	all := flow.NewBatch(flow.BatchSize, nil)
	tr := newTraffic(flow.SourceNetFlowV9, 2*flow.BatchSize)
	for i := range tr.list {
		p.decoder.Decode(tr.later(i), all)
	}
	p.pairer.Process(all, p.judged)
	p.pairer.Flush(flow.NewBatch(flow.BatchSize, nil)) // what waits would come out below
	in := flow.NewBatch(flow.BatchSize, nil)
	for i := range p.judged.Records {
		if p.judged.Records[i].Verdict.Reason == flow.ReasonPermitted && len(in.Records) < flow.BatchSize {
			*in.Next() = p.judged.Records[i]
		}
	}
	if len(in.Records) < flow.BatchSize {
		t.Fatalf("%d permitted records, want %d", len(in.Records), flow.BatchSize)
	}
	w := p.store.writer().(*sink.FlowWriter)
	pass := func() {
		for i := range in.Records {
			r := &in.Records[i]
			r.Start, r.End, r.Received = r.Start+1000, r.End+1000, r.Received+1000
		}
		p.judged.Reset()
		p.pairer.Process(in, p.judged)
		p.detector.Observe(p.judged)
		w.Append(p.judged)
		if w.Rows() != len(in.Records) {
			t.Fatalf("%d of %d records arrived", w.Rows(), len(in.Records))
		}
		w.Reset()
	}
	pass()
	if n := testing.AllocsPerRun(20, pass); n != 0 {
		t.Errorf("%v allocations for %d records, want none", n, len(in.Records))
	}
	// The block's columns are sent as they stand in memory; what a block allocates
	// does not grow with its rows.
	w.Append(in)
	encode := func() {
		if _, err := w.Encode(io.Discard, sink.Insert{Token: "t", Input: "i", At: 1}); err != nil {
			t.Fatal(err)
		}
	}
	encode()
	if n := testing.AllocsPerRun(20, encode); n > 256 {
		t.Errorf("%v allocations for a block, want at most 256", n)
	}
}
