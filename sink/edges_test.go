package sink

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
)

// randomEdges makes n contributions of few edges with every field of the others at random.
func randomEdges(rnd *rand.Rand, names *flow.Names, n int) []flow.EdgeContribution {
	keys := make([]flow.EdgeKey, 1+n/5)
	for i, s := range randomSessions(rnd, names, len(keys)) {
		v := &s.Verdict
		keys[i] = flow.EdgeKey{Client: s.Client.Addr, Server: s.Server.Addr, ServerPort: s.Server.Port, Proto: s.Proto, ICMPType: s.ICMPType, ICMPCode: s.ICMPCode,
			HasPorts: s.HasPorts, HasICMP: s.HasICMP, Open: s.Open, ClientSegment: s.Client.Segment, ServerSegment: s.Server.Segment,
			ClientWorkload: s.Client.Workload, ServerWorkload: s.Server.Workload, ClientIdentity: s.Client.Identity, ServerIdentity: s.Server.Identity, Rule: v.Rule, Exception: v.Exception,
			Expected: v.Expected, Staged: v.Staged, Reason: v.Reason, Observed: v.Observed, Outcome: v.Outcome}
	}
	out := make([]flow.EdgeContribution, n)
	for i := range out {
		first := today - flow.Time(rnd.IntN(3_600_000))
		out[i] = flow.EdgeContribution{Hour: (today/flow.Hour - flow.Time(rnd.IntN(3))) * flow.Hour, EdgeKey: keys[rnd.IntN(len(keys))],
			Sessions: 1, Answered: int8(rnd.IntN(2)), Live: int8(rnd.IntN(2)), ClientBytes: rnd.Int64N(1 << 40), ClientPackets: rnd.Int64N(1000),
			ServerBytes: rnd.Int64N(1 << 40), ServerPackets: rnd.Int64N(1000), First: first, Last: first + flow.Time(rnd.IntN(1e7))}
		out[i].Over = out[i].Live == 0
		switch rnd.IntN(12) {
		case 0: // taken back
			e := &out[i]
			e.Sessions, e.Answered, e.Live, e.ClientBytes, e.First, e.Last, e.Over = -1, -1, -1, -e.ClientBytes, 0, 0, false
		case 1:
			out[i].Sessions, out[i].Answered, out[i].Live = 0, 0, 0
		}
	}
	return out
}

// expectedEdges is what the view must show, added up without the table.
func expectedEdges(edges []flow.EdgeContribution, n *flow.Names) []string {
	type key struct {
		hour flow.Time
		flow.EdgeKey
	}
	type sums struct {
		sessions, answered, live, cb, cp, sb, sp int64
		first, last, liveFirst, liveLast         flow.Time
	}
	text := func(name flow.Name) string { return string([]rune(n.Text(name))) }
	word := func(k key) string { // what is the same in the table may differ in what is not shown
		k.hour = 0
		s := flow.Session{Proto: k.Proto, HasPorts: k.HasPorts, HasICMP: k.HasICMP, ICMPType: k.ICMPType, ICMPCode: k.ICMPCode, Open: k.Open, Server: flow.SessionEnd{Port: k.ServerPort}}
		return strings.Join([]string{k.Client.String(), k.Server.String(), string(s.AppendService(nil)), map[bool]string{false: "known", true: "open"}[k.Open],
			text(k.ClientSegment), text(k.ServerSegment), text(k.ClientWorkload), text(k.ServerWorkload), text(k.ClientIdentity), text(k.ServerIdentity), k.Expected.String(), k.Staged.String(), k.Reason.String(),
			k.Observed.String(), k.Outcome.String(), text(k.Rule), text(k.Exception)}, " | ")
	}
	least := func(a, b flow.Time) flow.Time {
		if a == 0 {
			return b
		}
		return min(a, b)
	}
	all := map[string]sums{}
	for i := range edges {
		e := &edges[i]
		at := fmt.Sprint(e.Hour.Std().Format("2006-01-02 15:04:05"), " | ", word(key{e.Hour, e.EdgeKey}))
		s := all[at]
		s.sessions, s.answered, s.live = s.sessions+int64(e.Sessions), s.answered+int64(e.Answered), s.live+int64(e.Live)
		s.cb, s.cp, s.sb, s.sp = s.cb+e.ClientBytes, s.cp+e.ClientPackets, s.sb+e.ServerBytes, s.sp+e.ServerPackets
		switch {
		case e.First == 0:
		case e.Over:
			s.first, s.last = least(s.first, e.First), max(s.last, e.Last)
		default:
			s.liveFirst, s.liveLast = least(s.liveFirst, e.First), max(s.liveLast, e.Last)
		}
		all[at] = s
	}
	var out []string
	for k, s := range all {
		if s.sessions <= 0 {
			continue
		}
		first, last := s.first, s.last
		if s.live > 0 && s.liveFirst != 0 {
			first, last = least(first, s.liveFirst), max(last, s.liveLast)
		}
		at := func(t flow.Time, none string) string {
			if t == 0 {
				return none
			}
			return t.Std().Format("2006-01-02 15:04:05")
		}
		out = append(out, fmt.Sprint(k, " | ", s.sessions, " ", uint64(s.answered), " ", uint64(s.live), " ", uint64(s.cb), " ", uint64(s.cp), " ", uint64(s.sb), " ", uint64(s.sp), " ",
			at(first, "2106-02-07 06:28:15"), " ", at(last, "1970-01-01 00:00:00")))
	}
	slices.Sort(out)
	return out
}

const allEdges = `SELECT arrayStringConcat([toString(hour), replaceRegexpOne(toString(client), '^::ffff:', ''), replaceRegexpOne(toString(server), '^::ffff:', ''), service, toString(orientation), src_segment, dst_segment,
	src_workload, dst_workload, src_identity, dst_identity, toString(expected), toString(staged), toString(reason), toString(observed), toString(outcome), rule, exception,
	arrayStringConcat([toString(sessions), toString(answered), toString(live), toString(client_bytes), toString(client_packets), toString(server_bytes), toString(server_packets), toString(first_seen), toString(last_seen)], ' ')], ' | ') AS row
	FROM edges`

func shownEdges(t testing.TB, db *ClickHouse) []string {
	t.Helper()
	var out []string
	for line := range strings.Lines(query(t, db, allEdges)) {
		var row struct{ Row string }
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			t.Fatal(err)
		}
		out = append(out, row.Row)
	}
	slices.Sort(out)
	return out
}

// TestEdges: the view shows the sums of what was inserted, each block once however often it was
// sent, in any order, over months and inputs, merged or not; and what one input gave can be
// taken away.
func TestEdges(t *testing.T) { overBoth(t, testEdges) }

func testEdges(t *testing.T, p protocol) {
	db := p.open(t, nil)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	names := flow.NewNames(0)
	w := NewEdgeWriter(names)
	w.Bind(db)
	pool := randomEdges(rnd, names, 900)
	var all, kept []flow.EdgeContribution
	for n := range 9 { // the columns are used again
		edges := pool[100*n : 100*n+100]
		ins := insertNo(n)
		ins.At += flow.Time(n%3) * 31 * 24 * 3_600_000 // another partition
		if ins.Input = fmt.Sprint("input-", n%2); n%2 == 0 {
			kept = append(kept, edges...)
		}
		all = append(all, edges...)
		for range 1 + n%2 { // again, under the same token
			w.Append(edges[:40])
			w.Append(edges[40:])
			done, err := w.Flush(t.Context(), ins)
			if err != nil {
				t.Fatal(err)
			}
			if done.Rows != len(edges) || w.Rows() != 0 {
				t.Fatalf("wrote %d rows of %d, %d left", done.Rows, len(edges), w.Rows())
			}
		}
	}
	if diff := cmp.Diff(expectedEdges(all, names), shownEdges(t, db)); diff != "" {
		t.Fatalf("the view differs (-contributions +view):\n%s", diff)
	}
	if err := db.exec(t.Context(), time.Minute, "OPTIMIZE TABLE "+db.cfg.Database+".edge_hours FINAL"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(expectedEdges(all, names), shownEdges(t, db)); diff != "" {
		t.Fatalf("the view differs after merging (-contributions +view):\n%s", diff)
	}
	var rows struct{ Merged, Shown float64 }
	if err := json.Unmarshal([]byte(query(t, db, "SELECT (SELECT sum(rows) FROM system.parts WHERE active AND database = '"+db.cfg.Database+"' AND table = 'edge_hours') AS Merged, (SELECT count() FROM edges) AS Shown")), &rows); err != nil || rows.Merged >= 900 {
		t.Errorf("%v rows are left of 900 contributions, %v are shown: %v", rows.Merged, rows.Shown, err)
	}
	if err := db.DeleteInput(t.Context(), "input-1"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(expectedEdges(kept, names), shownEdges(t, db)); diff != "" {
		t.Errorf("the view differs after an input was deleted (-contributions +view):\n%s", diff)
	}
	// The other views count the same.
	wantQuery(t, db, `SELECT count() AS n FROM (SELECT toDate(hour, 'UTC') AS day, `+rollupKey+`, input, sum(sessions), sum(answered), sum(live), sum(client_bytes), sum(client_packets), sum(server_bytes), sum(server_packets), min(first_seen), max(last_seen), min(live_first_seen), max(live_last_seen) FROM edge_hours GROUP BY ALL
		EXCEPT SELECT day, `+rollupKey+`, input, sum(sessions), sum(answered), sum(live), sum(client_bytes), sum(client_packets), sum(server_bytes), sum(server_packets), min(first_seen), max(last_seen), min(live_first_seen), max(live_last_seen) FROM edge_days GROUP BY ALL)`, `{"n":0}`)
}

// TestIdentitiesAddedToEdges: a table with rows gets the identities, a binary that does not know
// them writes beside one that does, and rows of both merge apart.
func TestIdentitiesAddedToEdges(t *testing.T) {
	db := openEmpty(t, nil)
	all, err := db.cfg.migrations()
	if err != nil {
		t.Fatal(err)
	}
	run := func(sql string) {
		t.Helper()
		if err := db.exec(t.Context(), time.Minute, sql); err != nil {
			t.Fatal(err)
		}
	}
	preamble, err := db.cfg.preamble()
	if err != nil {
		t.Fatal(err)
	}
	for _, sql := range preamble {
		run(sql)
	}
	for _, m := range all[:12] {
		for _, sql := range m.Statements {
			run(sql)
		}
		run(fmt.Sprintf("INSERT INTO %s.schema_migrations VALUES (%d, '%s', '%s', now64(3))", db.cfg.Database, m.Version, m.Name, m.Checksum))
	}
	old := "INSERT INTO " + db.cfg.Database + ".edge_hours (hour, reason, server, service, client, sessions, first_seen, last_seen, input, inserted_at) SELECT toDateTime(" +
		fmt.Sprint(int64(today/flow.Hour*3600)) + ", 'UTC'), 'permitted', '::2', 'tcp/22', '::1', 1, 1, 2, 'old', fromUnixTimestamp64Milli(" + fmt.Sprint(int64(today)) + ") FROM numbers(3)"
	run(old)
	if err := db.Migrate(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	run(old)
	names := flow.NewNames(0)
	w := NewEdgeWriter(names)
	w.Bind(db)
	w.Append([]flow.EdgeContribution{{Hour: today / flow.Hour * flow.Hour, Sessions: 1, EdgeKey: flow.EdgeKey{Client: flow.MustParseAddr("::1"), Server: flow.MustParseAddr("::2"), Proto: 6, HasPorts: true, ServerPort: 22,
		Reason: flow.ReasonPermitted, ClientIdentity: names.Intern("ann")}}})
	if _, err := w.Flush(t.Context(), Insert{Token: "new", Input: "old", At: today}); err != nil {
		t.Fatal(err)
	}
	const shown = "SELECT src_identity, sum(sessions) AS n FROM edges GROUP BY src_identity ORDER BY src_identity"
	want := `{"src_identity":"","n":6}` + "\n" + `{"src_identity":"ann","n":1}`
	wantQuery(t, db, shown, want)
	run("OPTIMIZE TABLE " + db.cfg.Database + ".edge_hours FINAL")
	wantQuery(t, db, shown, want)
	wantQuery(t, db, "SELECT count() AS n FROM edge_hours", `{"n":2}`)
	if err := db.DeleteInput(t.Context(), "old"); err != nil {
		t.Fatal(err)
	}
	wantQuery(t, db, "SELECT count() AS n FROM edge_hours", `{"n":0}`)
}

// TestSegmentPairs: rates are of sessions, by pair of segments and hour.
func TestSegmentPairs(t *testing.T) {
	db := open(t, nil)
	names := flow.NewNames(0)
	w := NewEdgeWriter(names)
	w.Bind(db)
	e := flow.EdgeContribution{Hour: 1_790_000_000_000 / flow.Hour * flow.Hour, Sessions: 1, ClientBytes: 10, ServerBytes: 5, Over: true,
		EdgeKey: flow.EdgeKey{Proto: 6, HasPorts: true, ServerPort: 445, ClientSegment: names.Intern("office"), ServerSegment: names.Intern("vault")}}
	var edges []flow.EdgeContribution
	for i, o := range []flow.Outcome{flow.OutcomeBlocked, flow.OutcomeBlocked, flow.OutcomeBlocked, flow.OutcomeEscaped, flow.OutcomeAttempted, flow.OutcomePermitted, flow.OutcomeMisblocked, flow.OutcomeNone} {
		e.Outcome, e.Client = o, flow.AddrFrom4(uint32(i))
		edges = append(edges, e)
	}
	e.Outcome = flow.OutcomeBlocked // one that is moved elsewhere
	edges = append(edges, e)
	e.Sessions, e.ClientBytes, e.ServerBytes = -1, -10, -5
	edges = append(edges, e)
	w.Append(edges)
	if _, err := w.Flush(t.Context(), insertNo(1)); err != nil {
		t.Fatal(err)
	}
	wantQuery(t, db, "SELECT * EXCEPT hour FROM segment_pairs", `{"src_segment":"office","dst_segment":"vault","sessions":8,"permitted":1,"blocked":3,"escaped":1,"misblocked":1,"attempted":1,"undecided":1,"blocked_rate":0.375,"escaped_rate":0.125,"bytes":120}`)
}

// The table has exactly the columns the writer sends, in its order and of its types.
func TestEdgeColumnsMatchTable(t *testing.T) {
	db := open(t, nil)
	var have, want []string
	for _, c := range NewEdgeWriter(flow.NewNames(0)).input {
		have = append(have, c.Name+" "+string(c.Data.Type()))
	}
	rows, err := db.conn.Query(t.Context(), "SELECT name, type FROM system.columns WHERE database = '"+db.cfg.Database+
		"' AND table = 'edge_hours' ORDER BY position")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var name, kind string
		if err := rows.Scan(&name, &kind); err != nil {
			t.Fatal(err)
		}
		want = append(want, name+" "+kind)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("columns differ (-table +writer):\n%s", diff)
	}
}

// TestEdgesRead: a question to the view about one hour, or one client of it, reads that hour
// of the table and not all of it.
func TestEdgesRead(t *testing.T) {
	db := open(t, nil)
	names := flow.NewNames(0)
	w := NewEdgeWriter(names)
	w.Bind(db)
	edges := make([]flow.EdgeContribution, 240_000)
	for i := range edges {
		edges[i] = flow.EdgeContribution{Hour: (1_790_000_000_000/flow.Hour + flow.Time(i/10_000)) * flow.Hour, Sessions: 1, Over: true, First: 1, Last: 1,
			EdgeKey: flow.EdgeKey{Client: flow.AddrFrom4(uint32(i)), Server: flow.AddrFrom4(uint32(i % 100)), Proto: 6, HasPorts: true, ServerPort: 443}}
	}
	for i, part := range slices.Collect(slices.Chunk(edges, 60_000)) {
		w.Append(part)
		if _, err := w.Flush(t.Context(), insertNo(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.exec(t.Context(), time.Minute, "OPTIMIZE TABLE "+db.cfg.Database+".edge_hours FINAL"); err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{
		"SELECT sum(sessions) AS n FROM edges WHERE hour = '2026-09-21 18:00:00'",
		"SELECT sum(sessions) AS n FROM segment_pairs WHERE hour = '2026-09-21 18:00:00'",
		"SELECT sum(sessions) AS n FROM edges_daily WHERE day = '2026-09-21' AND client = '0.0.0.7'",
	} {
		plan := query(t, db, "EXPLAIN ESTIMATE "+sql)
		var read struct{ Rows, Marks int }
		if err := json.Unmarshal([]byte(plan), &read); err != nil || read.Rows == 0 || read.Rows > 40_000 {
			t.Errorf("%v: %s reads %d of 240,000 rows", err, sql, read.Rows)
		}
	}
}

// BenchmarkEdgeWriter is what a contribution costs to encode and insert, and what it takes on
// disk once all of its hour are merged: ordinary traffic of a day, each unit of it an insert.
func BenchmarkEdgeWriter(b *testing.B) {
	db := open(b, nil)
	names := flow.NewNames(0)
	rnd := rand.New(rand.NewPCG(1, 1))
	w := NewEdgeWriter(names)
	w.Bind(db)
	n, total := 0, 0
	var appending time.Duration
	for b.Loop() {
		b.StopTimer()
		rs := company(rnd, names, 20_000, today-3_600_000+flow.Time(n)*30_000)
		edges := make([]flow.EdgeContribution, len(rs))
		for i := range edges {
			r := &rs[i]
			client, server := r.Ends()
			_, port := r.Ports()
			cseg, sseg := r.Segments()
			v := &r.Verdict
			edges[i] = flow.EdgeContribution{Hour: r.Start / flow.Hour * flow.Hour, Sessions: 1, Answered: 1, Over: true, First: r.Start, Last: r.End,
				ClientBytes: int64(r.BytesRaw), ServerBytes: int64(r.BytesRaw), ClientPackets: int64(r.PacketsRaw), ServerPackets: int64(r.PacketsRaw),
				EdgeKey: flow.EdgeKey{Client: client, Server: server, ServerPort: port, Proto: r.Proto, HasPorts: true, ClientSegment: cseg, ServerSegment: sseg,
					ClientIdentity: names.Intern(fmt.Sprintf(`CORP\user-%s`, client)), // each workstation has a user
					Rule:           v.Rule, Exception: v.Exception, Expected: v.Expected, Staged: v.Staged, Reason: v.Reason, Observed: v.Observed, Outcome: v.Outcome}}
		}
		b.StartTimer()
		start := time.Now()
		w.Append(edges)
		appending += time.Since(start)
		if _, err := w.Flush(b.Context(), insertNo(n)); err != nil {
			b.Fatal(err)
		}
		n++
		total += len(edges)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(total), "ns/session")
	b.ReportMetric(float64(appending.Nanoseconds())/float64(total), "append-ns/session")
	b.StopTimer()
	if err := db.exec(b.Context(), time.Minute, "OPTIMIZE TABLE "+db.cfg.Database+".edge_hours FINAL"); err != nil {
		b.Fatal(err)
	}
	var size, rows float64
	if err := db.conn.QueryRow(b.Context(), "SELECT sum(bytes_on_disk) / sum(rows), toFloat64(sum(rows)) FROM system.parts WHERE active AND table = 'edge_hours' AND database = '"+db.cfg.Database+"'").Scan(&size, &rows); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(size, "disk-B/row")
	b.ReportMetric(float64(total)/rows, "sessions/row")
	b.Logf("by column:\n%s", query(b, db, "SELECT column, round(sum(column_bytes_on_disk) / sum(rows), 2) AS b FROM system.parts_columns WHERE active AND database = '"+
		db.cfg.Database+"' AND table = 'edge_hours' GROUP BY column HAVING b > 0.02 ORDER BY b DESC"))
}

// TestRecall: only what is normal counts as seen before, of the pairs asked for, in the hours asked for.
func TestRecall(t *testing.T) {
	db := open(t, nil)
	names := flow.NewNames(0)
	w := NewEdgeWriter(names)
	w.Bind(db)
	const hour = flow.Time(1_790_000_000_000) / flow.Hour * flow.Hour
	var edges []flow.EdgeContribution
	add := func(client int, at flow.Time, change func(*flow.EdgeContribution)) {
		e := flow.EdgeContribution{Hour: at / flow.Hour * flow.Hour, Sessions: 1, Answered: 1, Over: true, First: at, Last: at + 1000,
			EdgeKey: flow.EdgeKey{Proto: 6, HasPorts: true, ServerPort: 22, Client: flow.AddrFrom4(uint32(client)), Server: flow.AddrFrom4(100), Reason: flow.ReasonPermitted}}
		if change != nil {
			change(&e)
		}
		edges = append(edges, e)
	}
	add(1, hour, nil)
	add(1, hour+5000, nil)
	add(1, hour+2*flow.Hour, nil) // too late
	add(1, hour-flow.Hour, nil)   // too early
	add(1, hour, func(e *flow.EdgeContribution) { e.ServerPort = 135 })
	add(2, hour, func(e *flow.EdgeContribution) { e.Answered = 0 })
	add(2, hour, func(e *flow.EdgeContribution) { e.Reason = flow.ReasonDenied })
	add(2, hour, func(e *flow.EdgeContribution) { e.Observed = flow.ObservedDeny })
	add(2, hour, func(e *flow.EdgeContribution) { e.Reason, e.Exception = flow.ReasonWaived, names.Intern("EX-1") })
	add(2, hour, func(e *flow.EdgeContribution) { e.Open = true })
	add(3, hour, func(e *flow.EdgeContribution) { e.Reason = flow.ReasonNone })
	add(4, hour, nil) // nobody asks
	w.Append(edges)
	if _, err := w.Flush(t.Context(), insertNo(1)); err != nil {
		t.Fatal(err)
	}
	pair := func(client int) Pair { return Pair{flow.AddrFrom4(uint32(client)), flow.AddrFrom4(100)} }
	asked := []Pair{pair(1), pair(2), pair(3)}
	for i := range 2 * maxRecalled { // of whom nothing is known
		asked = append(asked, pair(1000+i))
	}
	seen, err := db.Recall(t.Context(), asked, hour, hour+2*flow.Hour)
	if err != nil {
		t.Fatal(err)
	}
	want := []SeenEdge{{pair(1), "tcp/135", hour + 1000}, {pair(1), "tcp/22", hour + 6000}, {pair(3), "tcp/22", hour + 1000}}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
