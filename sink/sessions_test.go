package sink

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
)

// randomSessions makes n sessions with every field set at random.
func randomSessions(rnd *rand.Rand, names *flow.Names, n int) []flow.Session {
	rs := randomRecords(rnd, names, 2*n)
	out := make([]flow.Session, n)
	for i := range out {
		r, q := &rs[2*i], &rs[2*i+1]
		end := func(r *flow.Record, a flow.Addr, port uint16) flow.SessionEnd {
			return flow.SessionEnd{Addr: a, Port: port, TCPFlags: r.TCPFlags, Bytes: r.BytesRaw, Packets: r.PacketsRaw, HasBytes: r.Any(flow.HasBytes),
				HasPackets: r.Any(flow.HasPackets), Identity: r.SrcIdentity, Process: r.SrcProcess, Host: r.SrcHost, Segment: r.SrcSegment,
				Workload: r.SrcWorkload, IdentityFrom: r.Observer, IdentityCertain: uint8(rnd.IntN(101)), Own: rnd.IntN(2) == 0}
		}
		s := &out[i]
		*s = flow.Session{ID: rnd.Uint64(), Conversation: rnd.Uint64(), Version: rnd.Uint64(), Began: r.Start, Start: r.Start, End: r.End,
			Client: end(r, r.Src, r.SrcPort), Server: end(q, q.Dst, q.DstPort), Open: rnd.IntN(2) == 0, OrientationCertainty: uint8(rnd.IntN(101)),
			Proto: r.Proto, ICMPType: r.ICMPType, ICMPCode: r.ICMPCode, NAT: flow.NAT(rnd.IntN(3)), BothWays: rnd.IntN(2) == 0,
			Records: rnd.Uint32(), ObserversTotal: uint16(rnd.IntN(65)), Contradictions: flow.Contradictions(rnd.IntN(8)), Quality: r.Quality,
			EnforcedBy: r.EnforcedBy, Verdict: r.Verdict, NATClient: r.NATSrc, NATServer: r.NATDst, NATClientPort: r.NATSrcPort, NATServerPort: r.NATDstPort}
		s.HasICMP = r.IsICMP() && r.Any(flow.HasICMP)
		s.HasPorts = !r.IsICMP() && rnd.IntN(4) > 0
		for k := range min(int(s.ObserversTotal), flow.MaxObservers) {
			s.Observers[k] = flow.SessionObserver{Exporter: q.Exporter, Domain: rnd.Uint32(), Observer: names.Intern(fmt.Sprint("observer", rnd.IntN(300))),
				Source: flow.Source(rnd.IntN(int(flow.SourceCustom) + 1)), Reporter: flow.Reporter(rnd.IntN(3)), Observed: flow.Observed(rnd.IntN(4)),
				Records: rnd.Uint32(), First: r.Start, Last: q.End, Skew: int32(rnd.Uint32())}
		}
	}
	return out
}

// expectedSession is what a row must show, told without the encoder.
func expectedSession(s *flow.Session, n *flow.Names, ins Insert) map[string]any {
	number := func(v any) json.Number { return json.Number(fmt.Sprint(v)) }
	maybe := func(has bool, v any) any {
		if has {
			return number(v)
		}
		return nil
	}
	list := func(texts []string) []any {
		out := []any{}
		for _, t := range texts {
			out = append(out, t)
		}
		return out
	}
	at := func(t flow.Time) string { return string(t.AppendTo(nil)) }
	text := func(name flow.Name) string { return string([]rune(n.Text(name))) } // bytes that are no UTF-8 show as U+FFFD
	v, a, b := &s.Verdict, &s.Client, &s.Server
	translated := s.NAT == flow.NATTranslated
	addr := func(a flow.Addr) any {
		if translated {
			return a.String()
		}
		return nil
	}
	row := map[string]any{
		"id": number(s.ID), "version": number(s.Version), "part_of": number(s.Into), "conversation": number(s.Conversation),
		"began": at(s.Began), "time_start": at(s.Start), "time_end": at(s.End), "client": a.Addr.String(), "server": b.Addr.String(),
		"client_port": maybe(s.HasPorts, a.Port), "server_port": maybe(s.HasPorts, b.Port), "service": string(s.AppendService(nil)),
		"orientation": map[bool]string{false: "known", true: "open"}[s.Open], "orientation_certainty": number(s.OrientationCertainty), "proto": number(s.Proto),
		"nat": s.NAT.String(), "nat_client": addr(s.NATClient), "nat_server": addr(s.NATServer),
		"nat_client_port": maybe(translated && s.HasPorts, s.NATClientPort), "nat_server_port": maybe(translated && s.HasPorts, s.NATServerPort),
		"both_ways": s.BothWays, "client_bytes": maybe(a.HasBytes, a.Bytes), "client_packets": maybe(a.HasPackets, a.Packets),
		"server_bytes": maybe(b.HasBytes, b.Bytes), "server_packets": maybe(b.HasPackets, b.Packets),
		"client_tcp_flags": number(a.TCPFlags), "server_tcp_flags": number(b.TCPFlags),
		"src_segment": text(a.Segment), "dst_segment": text(b.Segment), "src_workload": text(a.Workload), "dst_workload": text(b.Workload),
		"src_identity": text(a.Identity), "dst_identity": text(b.Identity), "src_identity_from": text(a.IdentityFrom), "dst_identity_from": text(b.IdentityFrom),
		"src_identity_certainty": number(a.IdentityCertain), "dst_identity_certainty": number(b.IdentityCertain),
		"src_host": text(a.Host), "dst_host": text(b.Host), "src_process": text(a.Process), "dst_process": text(b.Process), "src_agent": a.Own, "dst_agent": b.Own,
		"observed": v.Observed.String(), "expected": v.Expected.String(), "staged": v.Staged.String(), "staged_reason": v.StagedReason.String(),
		"reason": v.Reason.String(), "outcome": v.Outcome.String(), "confidence": number(float32(v.Confidence) / 100), "rule": text(v.Rule), "exception": text(v.Exception),
		"failed": list(v.Failed.Texts()), "missing": list(v.Missing.Texts()), "others_total": number(v.OthersTotal), "valid_until": nil,
		"policy_version": text(v.PolicyVersion), "enforced_by": text(s.EnforcedBy), "contradictions": list(s.Contradictions.Texts()),
		"quality": list(s.Quality.Texts()), "records": number(s.Records), "observers_total": number(s.ObserversTotal),
		"input": ins.Input, "inserted_at": at(ins.At),
	}
	if v.ValidUntil != 0 {
		row["valid_until"] = at(v.ValidUntil)
	}
	others := []any{}
	for _, n := range v.Others[:min(int(v.OthersTotal), flow.MaxOthers)] {
		others = append(others, text(n))
	}
	row["others"] = others
	for _, k := range []string{"exporter", "domain", "name", "source", "reporter", "observed", "records", "first", "last", "skew_ms"} {
		row["observers."+k] = []any{}
	}
	for _, o := range s.Observers[:min(int(s.ObserversTotal), flow.MaxObservers)] {
		for k, v := range map[string]any{"exporter": o.Exporter.String(), "domain": number(o.Domain), "name": text(o.Observer), "source": o.Source.String(),
			"reporter": []string{"", "client", "server"}[o.Reporter], "observed": o.Observed.String(), "records": number(o.Records),
			"first": at(o.First), "last": at(o.Last), "skew_ms": number(o.Skew)} {
			row["observers."+k] = append(row["observers."+k].([]any), v)
		}
	}
	return row
}

func TestSessionRoundTrip(t *testing.T) { overBoth(t, testSessionRoundTrip) }

func testSessionRoundTrip(t *testing.T, p protocol) {
	db := p.open(t, nil)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	names := flow.NewNames(0)
	w := NewSessionWriter(names)
	w.Bind(db)
	want := map[string]map[string]any{}
	for n := range 3 { // the columns are used again
		ins := insertNo(n)
		sessions := randomSessions(rnd, names, []int{300, 1, 200}[n])
		w.Append(sessions[:len(sessions)/2])
		w.Append(sessions[len(sessions)/2:])
		done, err := w.Flush(t.Context(), ins)
		if err != nil {
			t.Fatal(err)
		}
		if done.Rows != len(sessions) || w.Rows() != 0 {
			t.Fatalf("wrote %d rows of %d, %d left", done.Rows, len(sessions), w.Rows())
		}
		for i := range sessions {
			want[fmt.Sprint(sessions[i].ID)] = expectedSession(&sessions[i], names, ins)
		}
	}
	got := query(t, db, "SELECT * FROM session_versions")
	lines := strings.Split(got, "\n")
	if len(lines) != len(want) {
		t.Fatalf("%d rows read, %d written", len(lines), len(want))
	}
	for _, line := range lines {
		row := map[string]any{}
		d := json.NewDecoder(strings.NewReader(line))
		d.UseNumber()
		if err := d.Decode(&row); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if diff := cmp.Diff(want[fmt.Sprint(row["id"])], row); diff != "" {
			t.Fatalf("row differs (-session +row):\n%s", diff)
		}
	}
}

// The table has exactly the columns the writer sends, in its order and of its types.
func TestSessionColumnsMatchTable(t *testing.T) {
	db := open(t, nil)
	var have, want []string
	for _, c := range NewSessionWriter(flow.NewNames(0)).input {
		have = append(have, c.Name+" "+string(c.Data.Type()))
	}
	rows, err := db.conn.Query(t.Context(), "SELECT name, type FROM system.columns WHERE database = '"+db.cfg.Database+
		"' AND table = 'session_versions' ORDER BY position")
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		var name, kind string
		if err := rows.Scan(&name, &kind); err != nil {
			t.Fatal(err)
		}
		want = append(want, name+" "+kind)
	}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("columns differ (-table +writer):\n%s", diff)
	}
}

// TestSessionsView: the view shows the newest version of each session, across days, and none
// that became part of another; a block sent twice under its token is there once.
func TestSessionsView(t *testing.T) {
	db := open(t, nil)
	names := flow.NewNames(0)
	w := NewSessionWriter(names)
	w.Bind(db)
	r := flow.Record{Has: flow.HasSrc | flow.HasDst | flow.HasSrcPort | flow.HasDstPort | flow.HasProto, Proto: 6,
		Src: flow.MustParseAddr("10.0.0.1"), Dst: flow.MustParseAddr("10.0.0.2"), SrcPort: 40000, DstPort: 445, Start: today, End: today + 1000, Oriented: flow.Forward, ID: 7}
	session := func(conv uint64, version uint64, into uint64) flow.Session {
		return flow.Session{ID: flow.SessionID(conv, today), Conversation: conv, Version: version, Into: into, Began: today, Start: today, End: today + 1000,
			Records: uint32(version), Proto: 6, HasPorts: true, Client: flow.SessionEnd{Addr: r.Src, Port: 40000}, Server: flow.SessionEnd{Addr: r.Dst, Port: 445}}
	}
	conv := r.Conversation()
	for n, s := range [][]flow.Session{{session(conv, 1, 0), session(2, 1, 0)}, {session(conv, 5, 0)}, {session(conv, 3, 0)}, {session(2, 1<<63, session(conv, 0, 0).ID)}} {
		for range 2 {
			w.Append(s)
			ins := insertNo(n)
			ins.At += flow.Time(n) * 24 * 3600 * 1000 // another partition
			if _, err := w.Flush(t.Context(), ins); err != nil {
				t.Fatal(err)
			}
		}
	}
	wantQuery(t, db, "SELECT count() AS n FROM session_versions", `{"n":5}`)
	wantQuery(t, db, "SELECT version, records, part_of FROM sessions", `{"version":5,"records":5,"part_of":0}`)
	f := db.NewFlowWriter(names)
	f.AppendRecords([]flow.Record{r})
	if _, err := f.Flush(t.Context(), insertNo(9)); err != nil {
		t.Fatal(err)
	}
	wantQuery(t, db, "SELECT f.record_id AS r, s.records AS n FROM flows AS f INNER JOIN sessions AS s ON s.conversation = f.conversation "+
		"WHERE f.time_start BETWEEN s.time_start AND s.time_end", `{"r":7,"n":5}`)
}

// BenchmarkSessionWriter is what a row costs to encode and insert, and what it takes on disk.
func BenchmarkSessionWriter(b *testing.B) {
	db := open(b, nil)
	names := flow.NewNames(0)
	rs := company(rand.New(rand.NewPCG(1, 1)), names, 20_000, today-3_600_000)
	sessions := make([]flow.Session, len(rs))
	agent := names.Intern("agent")
	for i := range sessions {
		r, s := &rs[i], &sessions[i]
		client, server := r.Ends()
		cport, sport := r.Ports()
		cseg, sseg := r.Segments()
		*s = flow.Session{Conversation: r.Conversation(), Version: 2, Began: r.Start, Start: r.Start, End: r.End, Proto: r.Proto, HasPorts: true, BothWays: true, OrientationCertainty: 90,
			Client:  flow.SessionEnd{Addr: client, Port: cport, Bytes: r.BytesRaw, Packets: r.PacketsRaw, HasBytes: true, HasPackets: true, Segment: cseg, TCPFlags: r.TCPFlags},
			Server:  flow.SessionEnd{Addr: server, Port: sport, Bytes: r.BytesRaw, Packets: r.PacketsRaw, HasBytes: true, HasPackets: true, Segment: sseg, TCPFlags: r.TCPFlags},
			Verdict: r.Verdict, Records: 2, ObserversTotal: 2}
		s.ID = flow.SessionID(s.Conversation, s.Began)
		s.Observers[0] = flow.SessionObserver{Exporter: r.Exporter, Source: r.Source, Records: 1, First: r.Start, Last: r.End}
		s.Observers[1] = flow.SessionObserver{Observer: agent, Source: flow.SourceWFP, Reporter: flow.ReporterSource, Observed: flow.ObservedAllow, Records: 1, First: r.Start, Last: r.Start}
	}
	w := NewSessionWriter(names)
	w.Bind(db)
	n := 0
	var appending time.Duration
	for b.Loop() {
		start := time.Now()
		w.Append(sessions)
		appending += time.Since(start)
		if _, err := w.Flush(b.Context(), insertNo(n)); err != nil {
			b.Fatal(err)
		}
		n++
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n*len(sessions)), "ns/row")
	b.ReportMetric(float64(appending.Nanoseconds())/float64(n*len(sessions)), "append-ns/row")
	b.StopTimer()
	var size float64
	if err := db.conn.QueryRow(b.Context(), "SELECT sum(bytes_on_disk) / sum(rows) FROM system.parts WHERE active AND table = 'session_versions' AND database = '"+db.cfg.Database+"'").Scan(&size); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(size, "disk-B/row")
}
