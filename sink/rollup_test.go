package sink

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
)

// rollup is a database with sessions of three hours and what they add to the roll-up, which the
// test adds up by itself.
type rollup struct {
	*ClickHouse
	t        *testing.T
	names    *flow.Names
	hours    []flow.Time
	sessions []flow.Session
	edges    []flow.EdgeContribution // one a session
	when     Settling
}

const rollupSource = "spool/1"

func newRollup(t *testing.T, p protocol, n int) *rollup {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	r := &rollup{ClickHouse: p.open(t, nil), t: t, names: flow.NewNames(0)}
	first := (today/flow.Hour - 60) * flow.Hour
	r.hours = []flow.Time{first, first + flow.Hour, first + 2*flow.Hour}
	r.when = Settling{Now: today, After: 2 * time.Hour}
	r.sessions = randomSessions(rnd, r.names, n)
	for i := range r.sessions {
		s := &r.sessions[i]
		if i%3 > 0 { // several of one edge
			s.Client, s.Server, s.Proto, s.HasPorts, s.HasICMP, s.Open, s.Verdict = r.sessions[i-1].Client, r.sessions[i-1].Server, r.sessions[i-1].Proto, r.sessions[i-1].HasPorts, r.sessions[i-1].HasICMP, r.sessions[i-1].Open, r.sessions[i-1].Verdict
			s.ICMPType, s.ICMPCode = r.sessions[i-1].ICMPType, r.sessions[i-1].ICMPCode
		}
		s.Client.Bytes, s.Client.Packets, s.Server.Bytes, s.Server.Packets = rnd.Uint64N(1<<40), rnd.Uint64N(1000), rnd.Uint64N(1<<40), rnd.Uint64N(1000)
		for _, e := range []*flow.SessionEnd{&s.Client, &s.Server} { // what is not known counts as none
			if !e.HasBytes {
				e.Bytes = 0
			}
			if !e.HasPackets {
				e.Packets = 0
			}
		}
		s.Version, s.Into = 2, 0
		s.Began = r.hours[rnd.IntN(3)] + flow.Time(rnd.IntN(int(flow.Hour)))
		s.Start = s.Began - flow.Time(rnd.IntN(5000))
		s.End = s.Start + flow.Time(rnd.IntN(3_600_000))
		r.edges = append(r.edges, contributionOf(s))
	}
	return r
}

// contributionOf is what a session adds that is over.
func contributionOf(s *flow.Session) flow.EdgeContribution {
	a, b, v := &s.Client, &s.Server, &s.Verdict
	e := flow.EdgeContribution{Hour: s.Began / flow.Hour * flow.Hour, Sessions: 1, ClientBytes: int64(a.Bytes), ClientPackets: int64(a.Packets), ServerBytes: int64(b.Bytes), ServerPackets: int64(b.Packets),
		First: s.Start, Last: s.End, Over: true, EdgeKey: flow.EdgeKey{Client: a.Addr, Server: b.Addr, ServerPort: b.Port, Proto: s.Proto, ICMPType: s.ICMPType, ICMPCode: s.ICMPCode,
			HasPorts: s.HasPorts, HasICMP: s.HasICMP, Open: s.Open, ClientSegment: a.Segment, ServerSegment: b.Segment, ClientWorkload: a.Workload, ServerWorkload: b.Workload,
			ClientIdentity: a.Identity, ServerIdentity: b.Identity, Rule: v.Rule, Exception: v.Exception, Expected: v.Expected, Staged: v.Staged, Reason: v.Reason, Observed: v.Observed, Outcome: v.Outcome}}
	if s.BothWays {
		e.Answered = 1
	}
	return e
}

// store inserts sessions and contributions; each cut is an insert of so many.
func (r *rollup) store(token, input string, at flow.Time, sessions []flow.Session, edges []flow.EdgeContribution, cut int) {
	r.t.Helper()
	ws, we := NewSessionWriter(r.names), NewEdgeWriter(r.names)
	ws.Bind(r.ClickHouse)
	we.Bind(r.ClickHouse)
	n := 0
	for part := range slices.Chunk(sessions, cut) {
		ws.Append(part)
		if _, err := ws.Flush(r.t.Context(), Insert{Token: fmt.Sprint(token, "/s", n), Input: input, At: at}); err != nil {
			r.t.Fatal(err)
		}
		n++
	}
	for part := range slices.Chunk(edges, cut) {
		we.Append(part)
		if _, err := we.Flush(r.t.Context(), Insert{Token: fmt.Sprint(token, "/e", n), Input: input, At: at}); err != nil {
			r.t.Fatal(err)
		}
		n++
	}
}

// compare compares every hour.
func (r *rollup) compare() (out []RollupHour) {
	r.t.Helper()
	for _, hour := range r.hours {
		h, err := r.CompareHour(r.t.Context(), hour, r.when)
		if err != nil {
			r.t.Fatal(err)
		}
		out = append(out, h)
	}
	return out
}

// rebuild makes every hour anew; it must differ before and not after.
func (r *rollup) rebuild() {
	r.t.Helper()
	for _, h := range r.compare() {
		if h.Differ == 0 || h.Unsettled != "" {
			r.t.Errorf("%s: %d edges differ; %s", h.Hour, h.Differ, h.Unsettled)
		}
		now, err := r.RebuildHour(r.t.Context(), h, r.when)
		if err != nil || now.Differ > 0 || now.Sessions != now.Counted || now.Bytes != now.Counts {
			r.t.Errorf("%s: after it was rebuilt %+v: %v", h.Hour, now, err)
		}
	}
	r.rebuildDays()
}

func (r *rollup) rebuildDays() {
	r.t.Helper()
	days, err := r.CompareDays(r.t.Context(), r.hours[0], r.hours[2]+24*flow.Hour, r.when.Now+2*flow.Hour)
	for _, d := range days {
		err = errors.Join(err, r.RebuildDay(r.t.Context(), d, r.when.Now))
	}
	if err != nil {
		r.t.Error(err)
	}
}

func (r *rollup) shows(want []string) {
	r.t.Helper()
	if diff := cmp.Diff(want, shownEdges(r.t, r.ClickHouse)); diff != "" {
		r.t.Fatalf("the roll-up differs (-want +got):\n%s", diff)
	}
	// And by day: what was added to hours by whatever way was added to days.
	if days, err := r.CompareDays(r.t.Context(), r.hours[0], r.hours[2]+24*flow.Hour, r.when.Now+2*flow.Hour); err != nil || len(days) > 0 {
		r.t.Errorf("days that are not the sums of their hours: %v, %v", days, err)
	}
}

func TestRollup(t *testing.T) {
	r := newRollup(t, overHTTP, 600)
	at := today - flow.Hour
	older := slices.Clone(r.sessions) // the same sessions as they were before, or as parts of others
	for i := range older {
		if older[i].Version = 1; i%7 == 0 {
			older[i].Into = 1
		}
		older[i].Client.Bytes /= 2
	}
	r.store("before", rollupSource, at, older, nil, 600)
	r.store("first", rollupSource, at, r.sessions, r.edges, 600)
	part := slices.Clone(r.sessions[:50])
	for i := range part { // what turned out to be part of another counts nowhere
		part[i].ID, part[i].Into = part[i].ID+1, part[i].ID
	}
	r.store("parts", rollupSource, at, part, nil, 600)
	want := expectedEdges(r.edges, r.names)
	r.shows(want)
	var sessions int64
	for _, h := range r.compare() {
		if sessions += h.Sessions; h.Differ != 0 || h.Wider != 0 || h.Unsettled != "" || h.Sessions != h.Counted || h.Bytes != h.Counts || h.Edges == 0 {
			t.Errorf("%+v", h)
		}
	}
	if hours, err := r.RollupHours(t.Context(), r.hours[0], r.hours[2]); err != nil || !slices.Equal(hours, r.hours[:2]) || sessions != 600 {
		t.Errorf("hours %v: %v; %d sessions", hours, err, sessions)
	}

	t.Run("all of it again, cut otherwise, under tokens that the engine forgot", func(t *testing.T) {
		r.t = t
		r.store("again", rollupSource, at, r.sessions, r.edges, 97)
		if h := r.compare()[0]; h.Counted != 2*h.Sessions || h.Counts != 2*h.Bytes {
			t.Errorf("%+v", h)
		}
		r.rebuild()
		r.shows(want)
	})
	t.Run("ended between the sessions and the roll-up", func(t *testing.T) {
		r.t = t
		more := slices.Clone(r.sessions[:200])
		all := slices.Clone(r.edges)
		for i := range more {
			more[i].ID += 2
			more[i].Start -= 60_000
			more[i].End += 60_000
			all = append(all, contributionOf(&more[i]))
		}
		r.store("half", "spool/2", at, more, nil, 200)
		r.rebuild()
		want = expectedEdges(all, r.names)
		r.shows(want)
	})
	t.Run("a part of the roll-up is lost", func(t *testing.T) {
		r.t = t
		if err := r.exec(t.Context(), time.Minute, "DELETE FROM "+r.Database()+".edge_hours WHERE cityHash64(client, server, service) % 3 = 0"); err != nil {
			t.Fatal(err)
		}
		r.rebuild()
		r.shows(want)
	})
	t.Run("two at once", func(t *testing.T) {
		r.t = t
		r.store("twice", rollupSource, at, nil, r.edges, 600)
		h := r.compare()[1]
		for range 2 {
			if _, err := r.RebuildHour(t.Context(), h, r.when); err != nil {
				t.Fatal(err)
			}
		}
		if h = r.compare()[1]; h.Differ != 0 {
			t.Errorf("%+v", h)
		}
		for _, n := range []int{0, 2} {
			if _, err := r.RebuildHour(t.Context(), r.compare()[n], r.when); err != nil {
				t.Fatal(err)
			}
		}
		r.shows(want)
	})
	t.Run("what is generated stays", func(t *testing.T) {
		r.t = t
		r.store("made up", InputGenerated, at, nil, r.edges[:100], 100)
		for _, h := range r.compare() {
			if h.Differ != 0 || h.Sessions != h.Counted {
				t.Errorf("%+v", h)
			}
		}
		if err := r.DeleteInput(t.Context(), InputGenerated); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("what a source gave can be taken away", func(t *testing.T) {
		r.t = t
		for _, input := range []string{rollupSource, "spool/2"} {
			if err := r.DeleteInput(t.Context(), input); err != nil {
				t.Fatal(err)
			}
		}
		r.shows(nil)
		for _, h := range r.compare() {
			if h.Edges != 0 || h.Differ != 0 {
				t.Errorf("%+v", h)
			}
		}
	})
}

// TestRollupUnsettled: an hour that may still change is not made anew.
func TestRollupUnsettled(t *testing.T) {
	r := newRollup(t, overHTTP, 30)
	const file = "00c0ffee"
	for name, tt := range map[string]struct {
		prepare func()
		want    string
	}{
		"live, by who forgot them": {func() {
			live := slices.Clone(r.edges)
			for i := range live {
				live[i].Live, live[i].Over = 1, false
			}
			r.store("s", rollupSource, today, r.sessions, live, 30)
		}, ""},
		"read to its end and no further": {func() {
			r.store("s", rollupSource, r.hours[2]+flow.Hour, r.sessions, nil, 30)
			r.when.Now = r.hours[2] + 4*flow.Hour
		}, "spool/1 was read to 20..-..-..T..:00:00Z, and a session of it lasted until"},
		"a source that is gone":     {func() { r.store("s", rollupSource, r.hours[2]+flow.Hour, r.sessions, nil, 30) }, ""},
		"a source that has gone on": {func() { r.store("s", rollupSource, r.hours[2]+6*flow.Hour, r.sessions, nil, 30) }, ""},
		"one source of two is behind": {func() {
			r.when.Now = r.hours[2] + 10*flow.Hour
			r.store("s", rollupSource, r.hours[2]+6*flow.Hour, r.sessions[:15], nil, 30)
			r.store("k", "kafka/1", r.hours[2]+flow.Hour, r.sessions[15:], nil, 30)
		}, "kafka/1 was read to"},
		"a replay under way": {func() {
			r.store("s", file, today, r.sessions, nil, 30)
			if err := r.NoteReplay(t.Context(), Replay{Input: file, Policy: "p", Started: today}, today); err != nil {
				t.Fatal(err)
			}
		}, "the replay of 00c0ffee did not come to its end"},
		"a replay at its end": {func() {
			r.store("s", file, today, r.sessions, nil, 30)
			for n := range 2 {
				if err := r.NoteReplay(t.Context(), Replay{Input: file, Policy: "p", Started: today, Rows: uint64(n * 30)}, today+flow.Time(n)); err != nil {
					t.Fatal(err)
				}
			}
		}, ""},
		"sessions are gone": {func() {
			r.store("e", rollupSource, today, nil, r.edges, 30)
			r.when.Now = today + 40*24*flow.Hour
		}, `its sessions leave after 720h0m0s \(clickhouse.retention.sessions\)`},
	} {
		t.Run(name, func(t *testing.T) {
			r.t = t
			r.when.Now = today
			for _, table := range []string{"session_versions", "edge_hours", "replays"} {
				if err := r.exec(t.Context(), time.Minute, "TRUNCATE TABLE "+r.Database()+"."+table); err != nil {
					t.Fatal(err)
				}
			}
			tt.prepare()
			h := r.compare()[0]
			if ok := tt.want == "" == (h.Unsettled == ""); !ok || tt.want != "" && !regexp.MustCompile(tt.want).MatchString(h.Unsettled) || h.Differ == 0 {
				t.Errorf("%+v", h)
			}
			now, err := r.RebuildHour(t.Context(), h, r.when)
			if err == nil && now.Differ > 0 {
				t.Errorf("after it was rebuilt: %+v", now)
			}
			if unsettled := errors.Is(err, ErrUnsettled); unsettled != (tt.want != "") || unsettled && !strings.Contains(err.Error(), h.Unsettled) {
				t.Errorf("rebuilt: %v", err)
			}
		})
	}
	if _, err := r.CompareHour(t.Context(), today/flow.Hour*flow.Hour+1, r.when); err == nil {
		t.Error("a time within an hour was compared")
	}
}

// TestRollupCutOff: an insert that reached the hours and not the days adds to the days when it comes again,
// once; and where it never does, the day is made anew.
func TestRollupCutOff(t *testing.T) { overBoth(t, testRollupCutOff) }

func testRollupCutOff(t *testing.T, p protocol) {
	r := newRollup(t, p, 200)
	all, err := r.cfg.migrations()
	if err != nil {
		t.Fatal(err)
	}
	var view string
	for _, m := range all {
		for _, sql := range m.Statements {
			if strings.HasPrefix(sql, "CREATE MATERIALIZED VIEW") {
				view = sql
			}
		}
	}
	run := func(sql string) {
		t.Helper()
		if err := r.exec(t.Context(), time.Minute, sql); err != nil {
			t.Fatal(err)
		}
	}
	cutOff := func(do func()) {
		run("DROP VIEW " + r.Database() + ".edge_days_of_hours SYNC")
		do()
		run(view)
	}
	const sums = "SELECT (SELECT sum(sessions) FROM edge_hours) AS hours, (SELECT sum(sessions) FROM edge_days) AS days"
	write := func(token string, at flow.Time, half []flow.EdgeContribution) {
		r.store(token, rollupSource, at, nil, half, 100)
	}
	at := today - 3*flow.Hour
	cutOff(func() { write("a", at, r.edges[:100]) })
	wantQuery(t, r.ClickHouse, sums, `{"hours":100,"days":0}`)
	for range 2 {
		write("a", at, r.edges[:100])
		wantQuery(t, r.ClickHouse, sums, `{"hours":100,"days":100}`)
	}
	cutOff(func() { write("b", at, r.edges[100:]) })
	wantQuery(t, r.ClickHouse, sums, `{"hours":200,"days":100}`)
	if days, err := r.CompareDays(t.Context(), r.hours[0], today, at+1000); err != nil || len(days) != 0 {
		t.Errorf("a day that was just written to: %v, %v", days, err)
	}
	days, err := r.CompareDays(t.Context(), r.hours[0], today, today)
	if err != nil || len(days) == 0 {
		t.Fatalf("%v, %v", days, err)
	}
	for _, d := range slices.Concat(days, days) { // as by two at once
		if err := r.RebuildDay(t.Context(), d, today); err != nil {
			t.Fatal(err)
		}
	}
	wantQuery(t, r.ClickHouse, sums, `{"hours":200,"days":200}`)
	r.shows(expectedEdges(r.edges, r.names))
	write("a", at, r.edges[:100])
	r.shows(expectedEdges(r.edges, r.names))
}
