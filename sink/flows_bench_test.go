package sink

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/postern/postern/flow"
)

// company makes n records as a company's exporters tell them: a thousand
// workstations, fifty servers, sixty services, two exporters, NetFlow v9, times rising,
// most traffic permitted, sizes of a heavy tail.
func company(rnd *rand.Rand, names *flow.Names, n int, start flow.Time) []flow.Record {
	segments := make([]flow.Name, 12)
	for i := range segments {
		segments[i] = names.Intern(fmt.Sprintf("segment-%d", i))
	}
	rules := make([]flow.Name, 60)
	for i := range rules {
		rules[i] = names.Intern(fmt.Sprintf("allow-service-%d", i))
	}
	deny, exception, version := names.Intern("default:in:vault"), names.Intern("EX-2041"), names.Intern("3f2a9c51d07b")
	ports := []uint16{443, 443, 443, 80, 53, 53, 445, 88, 389, 3389, 22, 5432, 8443, 9092}
	out := make([]flow.Record, n)
	for i := range out {
		client, server := rnd.IntN(1000), int(rnd.ExpFloat64()*8)%50
		port := ports[rnd.IntN(len(ports))]
		proto := uint8(flow.ProtoTCP)
		if port == 53 {
			proto = flow.ProtoUDP
		}
		packets := 1 + uint64(rnd.ExpFloat64()*20)
		at := start + flow.Time(i/3) // 3,000 flows a second
		r := &out[i]
		*r = flow.Record{
			ID: rnd.Uint64(), Start: at - flow.Time(rnd.ExpFloat64()*8000), End: at, Received: at + 1000 + flow.Time(i%7),
			Exporter: flow.AddrFrom4(0x0a000001 + uint32(i&1)), Domain: uint32(i & 1), Source: flow.SourceNetFlowV9, SamplingRate: 1,
			Src: flow.AddrFrom4(0x0a320000 + uint32(client)), Dst: flow.AddrFrom4(0x0a140000 + uint32(server)),
			SrcPort: uint16(32768 + rnd.IntN(28000)), DstPort: port, Proto: proto,
			TCPFlags: flow.SYN | flow.ACK | flow.PSH | flow.FIN, PacketsRaw: packets, BytesRaw: packets*60 + uint64(rnd.IntN(1400*int(packets))),
			InIf: uint32(1 + rnd.IntN(8)), OutIf: uint32(1 + rnd.IntN(8)),
			Has: flow.HasStart | flow.HasEnd | flow.HasSrc | flow.HasDst | flow.HasSrcPort | flow.HasDstPort | flow.HasProto | flow.HasTCPFlags |
				flow.HasBytes | flow.HasPackets | flow.HasInIf | flow.HasOutIf,
			Oriented: flow.Forward, OrientationCertainty: 95, OtherHalf: true,
			SrcSegment: segments[client%8], DstSegment: segments[8+server%4],
		}
		if i&1 == 1 { // the other half
			r.Src, r.Dst, r.SrcPort, r.DstPort = r.Dst, r.Src, r.DstPort, r.SrcPort
			r.SrcSegment, r.DstSegment, r.Oriented = r.DstSegment, r.SrcSegment, flow.Reverse
		}
		v := &r.Verdict
		v.PolicyVersion, v.Expected, v.Staged, v.Reason, v.StagedReason = version, flow.ExpectAllow, flow.ExpectAllow, flow.ReasonPermitted, flow.ReasonPermitted
		v.Observed, v.Outcome, v.Confidence, v.Rule = flow.ObservedAllow, flow.OutcomePermitted, 90, rules[(int(port)+server)%len(rules)]
		if rnd.IntN(100) == 0 {
			v.Expected, v.Reason, v.Outcome, v.Rule = flow.ExpectDeny, flow.ReasonDenied, flow.OutcomeEscaped, deny
			if rnd.IntN(4) == 0 {
				v.Reason, v.Exception, v.Failed = flow.ReasonOutOfScope, exception, flow.DimService
			}
		}
	}
	return out
}

// BenchmarkEncode is from records to the bytes of a block as they go to the socket, nothing sent.
func BenchmarkEncode(b *testing.B) {
	names := flow.NewNames(0)
	w := (&ClickHouse{}).NewFlowWriter(names)
	records := company(rand.New(rand.NewPCG(1, 1)), names, 1<<16, today)
	ins := insertNo(1)
	var size int64
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		for i := 0; i < len(records); i += flow.BatchSize {
			w.AppendRecords(records[i : i+flow.BatchSize])
		}
		var err error
		if size, err = w.Encode(io.Discard, ins); err != nil {
			b.Fatal(err)
		}
		w.Reset()
		n += len(records)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/flow")
	b.ReportMetric(float64(size)/float64(len(records)), "bytes/flow")
}

// BenchmarkAppend is the part of it that is done record by record.
func BenchmarkAppend(b *testing.B) {
	names := flow.NewNames(0)
	w := (&ClickHouse{}).NewFlowWriter(names)
	records := company(rand.New(rand.NewPCG(1, 1)), names, 1<<16, today)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		for i := 0; i < len(records); i += flow.BatchSize {
			w.AppendRecords(records[i : i+flow.BatchSize])
		}
		w.Reset()
		n += len(records)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/flow")
}

// BenchmarkInsert is from records to acknowledged rows in the embedded engine, its own work included.
func BenchmarkInsert(b *testing.B) {
	for _, p := range []protocol{overHTTP, overNative} {
		for _, compression := range []string{"none", "lz4", "zstd"} {
			b.Run(string(p)+"/"+compression, func(b *testing.B) {
				db := p.open(b, func(c *ClickHouseConfig) { c.Compression = compression })
				names := flow.NewNames(0)
				w := db.NewFlowWriter(names)
				records := company(rand.New(rand.NewPCG(1, 1)), names, 1<<16, today)
				n := 0
				for b.Loop() {
					w.AppendRecords(records)
					if _, err := w.Flush(b.Context(), insertNo(n)); err != nil {
						b.Fatal(err)
					}
					n++
				}
				b.ReportMetric(float64(n*len(records))/b.Elapsed().Seconds(), "rows/s")
			})
		}
	}
}

// maxBytesPerRow is the most a flow may take on disk, merged, for traffic like company's; it takes some 29.
const maxBytesPerRow = 40

// sessionsOf is what the conversations of company add to the roll-up; every second record begins one.
func sessionsOf(records []flow.Record) []flow.EdgeContribution {
	out := make([]flow.EdgeContribution, 0, len(records)/2)
	for i := 0; i+1 < len(records); i += 2 {
		r, v := &records[i], &records[i].Verdict
		out = append(out, flow.EdgeContribution{Hour: r.Start / flow.Hour * flow.Hour, Sessions: 1, Answered: 1, First: r.Start, Last: r.End, Over: true, ClientBytes: int64(r.BytesRaw), ClientPackets: int64(r.PacketsRaw),
			EdgeKey: flow.EdgeKey{Client: r.Src, Server: r.Dst, ServerPort: r.DstPort, Proto: r.Proto, HasPorts: true, ClientSegment: r.SrcSegment, ServerSegment: r.DstSegment,
				Rule: v.Rule, Exception: v.Exception, Expected: v.Expected, Staged: v.Staged, Reason: v.Reason, Observed: v.Observed, Outcome: v.Outcome}})
	}
	return out
}

// A flow's room on disk is part of what users plan by (docs/clickhouse.md), so it is held.
func TestBytesPerRow(t *testing.T) {
	if testing.Short() {
		t.Skip("writes half a million rows")
	}
	db := open(t, nil)
	names := flow.NewNames(0)
	w := db.NewFlowWriter(names)
	rnd := rand.New(rand.NewPCG(1, 1))
	const rows, block = 1 << 19, 1 << 16
	e := NewEdgeWriter(names)
	e.Bind(db)
	for i := range rows / block {
		records := company(rnd, names, block, today+flow.Time(i*block/3))
		w.AppendRecords(records)
		if _, err := w.Flush(t.Context(), insertNo(i)); err != nil {
			t.Fatal(err)
		}
		e.Append(sessionsOf(records))
		if _, err := e.Flush(t.Context(), insertNo(i)); err != nil {
			t.Fatal(err)
		}
	}
	// One part an insert, and less as they are merged, whatever ports, sizes and ids there are; days are fed by hours.
	parts := query(t, db, "SELECT table, count() AS parts, uniq(partition) AS partitions, count() <= "+fmt.Sprint(rows/block)+" AS few FROM system.parts WHERE active AND database = '"+db.cfg.Database+"' AND table IN ('flows', 'edge_hours', 'edge_days') GROUP BY table ORDER BY table")
	if t.Log(parts); strings.Count(parts, `"few":1`) != 3 {
		t.Errorf("%d inserts became more parts than inserts:\n%s", rows/block, parts)
	}
	unmerged := query(t, db, "SELECT round(sum(bytes_on_disk) / sum(rows), 1) AS b, count() AS parts FROM system.parts WHERE active AND database = '"+db.cfg.Database+"' AND table = 'flows'")
	if err := db.exec(t.Context(), time.Minute, "OPTIMIZE TABLE "+db.cfg.Database+".flows FINAL"); err != nil {
		t.Fatal(err)
	}
	var got struct{ B float64 }
	if err := json.Unmarshal([]byte(query(t, db, "SELECT sum(bytes_on_disk) / sum(rows) AS B FROM system.parts WHERE active AND database = '"+db.cfg.Database+"' AND table = 'flows'")), &got); err != nil {
		t.Fatal(err)
	}
	// The roll-up truly aggregates: one row a pair, service, verdict and hour, not one a session.
	for _, table := range []string{"edge_hours", "edge_days"} {
		if err := db.exec(t.Context(), time.Minute, "OPTIMIZE TABLE "+db.cfg.Database+"."+table+" FINAL"); err != nil {
			t.Fatal(err)
		}
		key := "hour, " + rollupKey
		if table == "edge_days" {
			key = "day, " + rollupKey
		}
		wantQuery(t, db, "SELECT count() = uniqExact("+key+", toYYYYMM(inserted_at)) AS one_each, sum(sessions) AS sessions, count() < sessions * 3 / 4 AS fewer FROM "+table, fmt.Sprintf(`{"one_each":1,"sessions":%d,"fewer":1}`, rows/2))
		t.Log(table, query(t, db, "SELECT round(sum(p.bytes_on_disk) / sum(p.rows), 1) AS b, sum(p.rows) AS n, count() AS parts FROM system.parts AS p WHERE active AND database = '"+db.cfg.Database+"' AND table = '"+table+"'"))
	}
	t.Logf("%.1f bytes a row merged; as inserted %s", got.B, unmerged)
	t.Logf("by column:\n%s", query(t, db, "SELECT column, round(sum(column_bytes_on_disk) / sum(rows), 2) AS b FROM system.parts_columns WHERE active AND database = '"+
		db.cfg.Database+"' AND table = 'flows' GROUP BY column HAVING b > 0.02 ORDER BY b DESC"))
	if got.B > maxBytesPerRow {
		t.Errorf("%.1f bytes a row, want at most %d", got.B, maxBytesPerRow)
	}
}
