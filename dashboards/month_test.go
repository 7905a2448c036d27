package dashboards

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/sink"
	"github.com/postern/postern/sink/embedded/embeddedtest"
)

// company makes up the traffic of a network, for as long as it is asked: clients that keep to some
// thirty services each, a few of which are new every hour, by day and by night. A session is two
// flows of NetFlow v9, one each way.
type company struct {
	rnd                         *rand.Rand
	habits                      [][]habit // by client
	segments, workloads, people []flow.Name
	rules, exceptions           []flow.Name
	version                     flow.Name
}

// habit is a service that a client uses, and what policy says of that.
type habit struct {
	server  int
	port    uint16
	proto   uint8
	verdict flow.Verdict
}

const (
	companyClients = 400
	companyServers = 60
)

func newCompany(names *flow.Names, seed uint64) *company {
	c := &company{rnd: rand.New(rand.NewPCG(seed, 1)), version: names.Intern("3f2a9c51d07b")}
	for i := range 8 {
		c.segments = append(c.segments, names.Intern(fmt.Sprintf("segment-%d", i)))
	}
	for i := range companyServers {
		c.workloads = append(c.workloads, names.Intern(fmt.Sprintf("host-%d", i)))
	}
	for i := range companyClients / 4 {
		c.people = append(c.people, names.Intern(fmt.Sprintf("person-%d", i)))
	}
	for i := range 60 {
		c.rules = append(c.rules, names.Intern(fmt.Sprintf("rule-%d", i)))
	}
	for i := range 12 {
		c.exceptions = append(c.exceptions, names.Intern(fmt.Sprintf("EX-%d", i)))
	}
	for range companyClients {
		var h []habit
		for range 30 {
			h = append(h, c.habit())
		}
		c.habits = append(c.habits, h)
	}
	return c
}

func (c *company) habit() habit {
	port := []uint16{443, 443, 443, 80, 53, 53, 445, 88, 389, 3389, 22, 5432, 8443, 9092}[c.rnd.IntN(14)]
	h := habit{server: int(c.rnd.ExpFloat64()*15) % companyServers, port: port, proto: flow.ProtoTCP}
	if port == 53 {
		h.proto = flow.ProtoUDP
	}
	v := &h.verdict
	*v = flow.Verdict{PolicyVersion: c.version, Expected: flow.ExpectAllow, Staged: flow.ExpectAllow, Reason: flow.ReasonPermitted, StagedReason: flow.ReasonPermitted,
		Observed: flow.ObservedAllow, Outcome: flow.OutcomePermitted, Confidence: 90, Rule: c.rules[(int(port)+h.server)%len(c.rules)]}
	switch k := c.rnd.IntN(200); {
	case k == 0:
		v.Expected, v.Reason, v.Outcome = flow.ExpectDeny, flow.ReasonDenied, flow.OutcomeEscaped
	case k == 1:
		v.Expected, v.Reason, v.Observed, v.Outcome = flow.ExpectDeny, flow.ReasonDenied, flow.ObservedDeny, flow.OutcomeBlocked
	case k < 4:
		v.Reason, v.Exception = flow.ReasonWaived, c.exceptions[c.rnd.IntN(6)]
	case k == 4:
		v.Expected, v.Reason, v.Outcome, v.Exception, v.Failed = flow.ExpectDeny, flow.ReasonOutOfScope, flow.OutcomeEscaped, c.exceptions[c.rnd.IntN(12)], flow.DimService
	case k == 5:
		v.Expected, v.Reason, v.Outcome, v.Exception = flow.ExpectDeny, flow.ReasonExpired, flow.OutcomeEscaped, c.exceptions[5]
	}
	return h
}

// sessions makes the flows, two a session, and what each adds to the roll-up, of sessions that begin
// between from and to, in order.
func (c *company) sessions(records []flow.Record, edges []flow.EdgeContribution, from, to flow.Time) {
	for i := range edges {
		at := from + flow.Time(i)*(to-from)/flow.Time(len(edges))
		client := c.rnd.IntN(companyClients)
		h := c.habits[client][int(c.rnd.ExpFloat64()*6)%30]
		if c.rnd.IntN(200) == 0 {
			h = c.habit()
		}
		ends := [2]flow.Addr{flow.AddrFrom4(0x0a320000 + uint32(client)), flow.AddrFrom4(0x0a140000 + uint32(h.server))}
		segments := [2]flow.Name{c.segments[client%5], c.segments[5+h.server%3]}
		person := flow.NoName
		if client%4 == 0 {
			person = c.people[client/4]
		}
		lasted := flow.Time(c.rnd.ExpFloat64() * 8000)
		port := uint16(32768 + c.rnd.IntN(28000))
		e := &edges[i]
		*e = flow.EdgeContribution{Hour: at / flow.Hour * flow.Hour, Sessions: 1, Answered: 1, First: at, Last: at + lasted, Over: true, EdgeKey: flow.EdgeKey{
			Client: ends[0], Server: ends[1], ServerPort: h.port, Proto: h.proto, HasPorts: true, ClientSegment: segments[0], ServerSegment: segments[1], ServerWorkload: c.workloads[h.server], ClientIdentity: person,
			Rule: h.verdict.Rule, Exception: h.verdict.Exception, Expected: h.verdict.Expected, Staged: h.verdict.Staged, Reason: h.verdict.Reason, Observed: h.verdict.Observed, Outcome: h.verdict.Outcome}}
		for k := range 2 {
			packets := 1 + uint64(c.rnd.ExpFloat64()*20)
			r := &records[2*i+k]
			*r = flow.Record{
				ID: c.rnd.Uint64(), Start: at, End: at + lasted, Received: at + lasted + 1000 + flow.Time(i%7),
				Exporter: flow.AddrFrom4(0x0a000001 + uint32(k)), Domain: uint32(k), Source: flow.SourceNetFlowV9, SamplingRate: 1,
				Src: ends[k], Dst: ends[1-k], SrcPort: port, DstPort: h.port, Proto: h.proto,
				TCPFlags: flow.SYN | flow.ACK | flow.PSH | flow.FIN, PacketsRaw: packets, BytesRaw: packets*60 + uint64(c.rnd.IntN(1400*int(packets))),
				InIf: uint32(1 + c.rnd.IntN(8)), OutIf: uint32(1 + c.rnd.IntN(8)),
				Has: flow.HasStart | flow.HasEnd | flow.HasSrc | flow.HasDst | flow.HasSrcPort | flow.HasDstPort | flow.HasProto | flow.HasTCPFlags |
					flow.HasBytes | flow.HasPackets | flow.HasInIf | flow.HasOutIf,
				Oriented: flow.Forward, OrientationCertainty: 95, OtherHalf: true, SrcSegment: segments[k], DstSegment: segments[1-k], SrcIdentity: person, Verdict: h.verdict,
			}
			if h.proto == flow.ProtoUDP {
				r.Has, r.TCPFlags = r.Has&^flow.HasTCPFlags, 0
			}
			if k == 0 {
				r.DstWorkload = c.workloads[h.server]
				e.ClientBytes, e.ClientPackets = int64(r.BytesRaw), int64(packets)
			} else { // the other half
				r.SrcPort, r.DstPort, r.Oriented = h.port, port, flow.Reverse
				r.SrcWorkload, r.SrcIdentity, r.DstIdentity = c.workloads[h.server], flow.NoName, person
				e.ServerBytes, e.ServerPackets = int64(r.BytesRaw), int64(packets)
			}
		}
	}
}

// BenchmarkMonth stores a month of flows (POSTERN_MONTH_FLOWS, 1,000,000 unless said otherwise), all of
// them raw and in the roll-up, through the writers that the service has, and then opens every panel over
// thirty days. docs/performance.md has what it said with 100,000,000: make month.
func BenchmarkMonth(b *testing.B) {
	total := 1_000_000
	if s := os.Getenv("POSTERN_MONTH_FLOWS"); s != "" {
		n, err := strconv.Atoi(strings.ReplaceAll(s, "_", ""))
		if err != nil || n < 100_000 {
			b.Fatalf("POSTERN_MONTH_FLOWS=%s: write a number of flows, at least 100,000", s)
		}
		total = n
	}
	for b.Loop() {
		month(b, total)
	}
}

const monthDays = 30

// report prints a line: what a benchmark logs is cut after ten.
func report(format string, a ...any) { fmt.Printf(format+"\n", a...) }

func month(b *testing.B, total int) {
	at, token := embeddedtest.Start(b)
	cfg := sink.DefaultClickHouseConfig()
	cfg.Database = "month"
	cfg.Retention.Flows = 60 * 24 * time.Hour // of what came a month ago, nothing leaves meanwhile
	db, err := sink.Open(b.Context(), cfg, sink.Options{Endpoint: at, Token: token})
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	if err := db.Migrate(b.Context(), nil); err != nil {
		b.Fatal(err)
	}
	e := engine{at, token, "reader", cfg.Database}
	defer func() { _, _ = e.do(b.Context(), "default", token, "DROP DATABASE "+cfg.Database+" SYNC", nil) }()

	names := flow.NewNames(0)
	c := newCompany(names, 20261123)
	flows, rolled := db.NewFlowWriter(names), sink.NewEdgeWriter(names)
	rolled.Bind(db)
	const block = 1 << 16
	records, edges := make([]flow.Record, block), make([]flow.EdgeContribution, block/2)
	now := flow.TimeOf(time.Now())
	begin := now - monthDays*24*flow.Hour
	blocks := (total + block - 1) / block
	var making, storing, rolling time.Duration
	for i := range blocks {
		from, to := begin+flow.Time(i)*(now-begin)/flow.Time(blocks), begin+flow.Time(i+1)*(now-begin)/flow.Time(blocks)
		t := time.Now()
		c.sessions(records, edges, from, to)
		making += time.Since(t)
		ins := sink.Insert{Token: fmt.Sprintf("month/%d", i), Input: "spool/month", At: to}
		t = time.Now()
		for part := range slices.Chunk(records, flow.BatchSize) {
			flows.AppendRecords(part)
		}
		if _, err := flows.Flush(b.Context(), ins); err != nil {
			b.Fatal(err)
		}
		storing += time.Since(t)
		t = time.Now()
		rolled.Append(edges)
		if _, err := rolled.Flush(b.Context(), ins); err != nil {
			b.Fatal(err)
		}
		rolling += time.Since(t)
		if i%(max(blocks/20, 1)) == 0 {
			report("%d of %d blocks: %.0f flows/s, %.0f sessions/s into the roll-up", i+1, blocks, float64((i+1)*block)/storing.Seconds(), float64((i+1)*block/2)/rolling.Seconds())
		}
	}
	stored := blocks * block
	report("%d flows: %.0f/s; %d sessions into the roll-up: %.0f/s; making them took %v", stored, float64(stored)/storing.Seconds(), stored/2, float64(stored/2)/rolling.Seconds(), making.Round(time.Second))
	parts := func(when string) {
		a, err := e.askAs(b.Context(), "default", token, "SELECT table, sum(rows), sum(bytes_on_disk), count(), uniq(partition) FROM system.parts WHERE active AND database = '"+cfg.Database+"' AND table IN ('flows', 'edge_hours', 'edge_days') GROUP BY table ORDER BY table")
		if err != nil {
			b.Fatal(err)
		}
		for _, row := range a.Data {
			report("%s: %v: %.0f rows, %.2f GB, %.1f bytes a row, %.1f bytes a flow, %.0f parts in %.0f partitions", when, row[0], row[1], row[2].(float64)/1e9, row[2].(float64)/row[1].(float64), row[2].(float64)/float64(stored), row[3], row[4])
		}
	}
	parts("as inserted")
	for _, table := range []string{"flows", "edge_hours", "edge_days"} {
		for range 40 { // partition by partition, each within the time of a request
			if _, err := e.do(b.Context(), "default", token, "OPTIMIZE TABLE "+table, nil); err != nil {
				report("merging %s: %v", table, err)
				break
			}
		}
	}
	parts("merged further")

	generate(b, e) // the register, findings and what else dashboards ask; 720,000 rows of the roll-up
	type told struct {
		what        string
		took        float64
		rows, bytes uint64
	}
	var all []told
	for _, f := range Catalog() {
		if f.Name == "pipeline.json" {
			continue
		}
		for _, p := range f.Panels {
			for _, q := range p.Targets {
				f.Dashboard.Time.From = "now-30d"
				sql, err := view(f.Dashboard, p, map[string][]string{"exception": {"EX-1"}}).expand(q.SQL)
				if err != nil {
					b.Fatal(err)
				}
				best := told{what: f.Title + ": " + p.Title + " " + q.RefID, took: math.Inf(1)}
				for range 3 {
					a, err := e.ask(b.Context(), sql)
					if err != nil {
						b.Fatalf("%s: %v", best.what, err)
					}
					best.took, best.rows, best.bytes = min(best.took, a.Read.Took), a.Read.Rows, a.Read.Bytes
				}
				all = append(all, best)
			}
		}
	}
	slices.SortFunc(all, func(a, b told) int { return cmp.Compare(b.took, a.took) })
	slow := 0
	for _, t := range all {
		if t.took > 1 {
			slow++
		}
		report("%6.0f ms %10d rows %7.1f MB  %s", 1000*t.took, t.rows, float64(t.bytes)/1e6, t.what)
	}
	report("%d of %d queries took longer than a second; the median %.0f ms", slow, len(all), 1000*all[len(all)/2].took)
	b.ReportMetric(float64(stored)/storing.Seconds(), "flows/s")
}
