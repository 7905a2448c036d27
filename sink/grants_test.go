package sink

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/sink/embedded/embeddedtest"
)

// granted reads what statements of Grants give to whom: "PRIVILEGE object" by role.
func granted(t *testing.T, statements []string) map[string]map[string]bool {
	t.Helper()
	line := regexp.MustCompile(`^GRANT (.+) ON (\S+) TO (\w+)$`)
	out := map[string]map[string]bool{}
	for _, s := range statements {
		m := line.FindStringSubmatch(s)
		if m == nil {
			continue
		}
		if out[m[3]] == nil {
			out[m[3]] = map[string]bool{}
		}
		for p := range strings.SplitSeq(m[1], ", ") {
			out[m[3]][p+" "+m[2]] = true
		}
	}
	return out
}

// allows says whether grants hold a privilege on an object db.name.
func allows(grants map[string]bool, privilege, object string) bool {
	db, _, _ := strings.Cut(object, ".")
	return grants[privilege+" "+object] || grants[privilege+" "+db+".*"]
}

// needed is what a statement that was really sent takes: pairs of privilege and object.
func needed(db, sql string) (out [][2]string, ok bool) {
	name := regexp.MustCompile(`\b(` + db + `|system)\.(\w+)`)
	reads := regexp.MustCompile(`\sFROM\s`)
	objects := func(sql string) {
		for _, m := range name.FindAllString(sql, -1) {
			out = append(out, [2]string{"SELECT", m})
		}
	}
	switch verb := strings.Fields(sql)[0]; verb {
	case "INSERT":
		out = append(out, [2]string{"INSERT", name.FindString(sql)})
		if at := reads.FindStringIndex(sql); at != nil {
			objects(sql[at[1]:])
		}
	case "SELECT", "WITH":
		objects(sql)
		if len(out) == 0 && reads.MatchString(sql) {
			out = append(out, [2]string{"SELECT", db + ".*"}) // tables of the default database
		}
	case "DELETE":
		out = append(out, [2]string{"ALTER DELETE", name.FindString(sql)}, [2]string{"SELECT", name.FindString(sql)})
	case "DROP":
		out = append(out, [2]string{"DROP " + strings.Fields(sql)[1], name.FindString(sql)})
	case "DESC", "DESCRIBE": // of a table one may read or write
		out = append(out, [2]string{"SELECT", name.FindString(sql)})
	default:
		privileges, object, err := privilegesOf(sql)
		if err != nil {
			return nil, false
		}
		if object == "" {
			object = "*"
		}
		for _, p := range privileges {
			out = append(out, [2]string{p, db + "." + object})
		}
		if strings.HasPrefix(sql, "CREATE ") {
			_, body, _ := strings.Cut(sql, "AS")
			objects(body)
		}
	}
	return out, true
}

// TestGrantsCoverTheWriter does everything that a service does with a server, listens to the statements,
// and finds each of them covered by what the writer is granted, and with a migrator apart what is
// not a migration.
func TestGrantsCoverTheWriter(t *testing.T) {
	engine, token := embeddedtest.Start(t)
	target, err := url.Parse(engine)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var heard []string
	proxy := httputil.NewSingleHostReverseProxy(target)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		sql := r.URL.Query().Get("query")
		if sql == "" {
			sql = string(body)
		}
		mu.Lock()
		heard = append(heard, strings.TrimSpace(sql))
		mu.Unlock()
		proxy.ServeHTTP(w, r)
	}))
	defer server.Close()
	cfg := DefaultClickHouseConfig()
	cfg.URL, cfg.User, cfg.Database = server.URL, "default", fmt.Sprintf("t%d", databases.Add(1))
	db, err := Open(t.Context(), cfg, Options{Password: token})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(nil, db.Migrate(t.Context(), nil))
	db.cfg.Retention.Flows, db.cfg.Retention.Ledger = 48*time.Hour, 0
	must(nil, db.Migrate(t.Context(), nil))
	must(nil, db.MigrateBack(t.Context(), 10, nil))
	must(nil, db.Migrate(t.Context(), nil))
	if plan, err := db.Plan(t.Context()); err != nil || len(plan) != 0 {
		t.Fatalf("plan %v, %v", plan, err)
	}
	migrations := len(heard)
	if migrations < 50 {
		t.Fatalf("heard %d statements of the migrations", migrations)
	}

	names, rnd := flow.NewNames(0), rand.New(rand.NewPCG(1, 2))
	ctx, finding := t.Context(), &flow.Finding{ID: "f", Revision: 1}
	do := map[string]func(){
		"NewFlowWriter": func() {
			w := db.NewFlowWriter(names)
			w.AppendRecords(randomRecords(rnd, names, 3))
			must(w.Flush(ctx, insertNo(1)))
			s := NewSessionWriter(names)
			s.Bind(db)
			s.Append(randomSessions(rnd, names, 3))
			must(s.Flush(ctx, insertNo(1)))
			e := NewEdgeWriter(names)
			e.Bind(db)
			e.Append(randomEdges(rnd, names, 3))
			must(e.Flush(ctx, insertNo(1)))
		},
		"InsertContributions": func() { must(db.InsertContributions(ctx, insertNo(1), []flow.Contribution{{Finding: finding}})) },
		"InsertBlindSpots":    func() { must(db.InsertBlindSpots(ctx, insertNo(1), []flow.BlindSpot{{ID: "b", Subject: "host"}})) },
		"InsertLedger": func() {
			l := flow.Ledger{}
			l.Of(flow.MustParseAddr("192.0.2.1"))
			must(db.InsertLedger(ctx, insertNo(1), "one", today, l))
		},
		"InsertExporters":     func() { must(db.InsertExporters(ctx, insertNo(1), "one", today, []Exporter{{}})) },
		"InsertPolicyVersion": func() { must(db.InsertPolicyVersion(ctx, PolicyVersion{Hash: version(1), AcceptedAt: today})) },
		"InsertRegister": func() {
			must(nil, db.InsertRegister(ctx, &Register{Version: version(1), At: today, Exceptions: []RegisteredException{{ID: "x"}}, Rules: []RegisteredRule{{ID: "r", Action: "deny"}},
				Segments: []RegisteredSegment{{Name: "s", Tier: "low", Stage: "observe"}}, Workloads: []RegisteredWorkload{{Name: "w", Tier: "low", Stage: "observe"}}}))
		},
		"Registered":     func() { must(db.Registered(ctx)) },
		"PolicyVersions": func() { must(db.PolicyVersions(ctx)) },
		"InsertedAt":     func() { must(db.InsertedAt(ctx, "x")) },
		"DeleteInput":    func() { must(nil, db.DeleteInput(ctx, "x")) },
		"Recall": func() {
			must(db.Recall(ctx, []Pair{{flow.MustParseAddr("::1"), flow.MustParseAddr("::2")}}, today-flow.Hour, today))
		},
		"Judge":          func() { must(nil, db.Judge(ctx, finding, Judgment{Judgment: "true", By: "ann", At: today})) },
		"Findings":       func() { must(db.Findings(ctx, FindingFilter{})) },
		"Finding":        func() { must(db.Finding(ctx, "f")) },
		"JudgmentsOf":    func() { must(db.JudgmentsOf(ctx, "f")) },
		"JudgmentCounts": func() { must(db.JudgmentCounts(ctx)) },
		"LastReplay":     func() { must(db.LastReplay(ctx, "x")) },
		"NoteReplay":     func() { must(nil, db.NoteReplay(ctx, Replay{Input: "x", Policy: "p", Started: today}, today)) },
		"RollupHours":    func() { must(db.RollupHours(ctx, today, today+flow.Hour)) },
		"CompareHour":    func() { must(db.CompareHour(ctx, 0, Settling{Now: today})) },
		"RebuildHour":    func() { must(db.RebuildHour(ctx, RollupHour{Differ: 1, inserted: today.Std()}, Settling{Now: today})) },
		"CompareDays":    func() { must(db.CompareDays(ctx, today-2*dayLong, today, today)) },
		"RebuildDay":     func() { must(nil, db.RebuildDay(ctx, RollupDay{inserted: today.Std()}, today)) },
		"PlanBack":       func() { must(db.PlanBack(ctx, 1)) },
		"MigrateBack":    func() {}, // above
		"Ping":           func() { must(nil, db.Ping(ctx)) },
		"Plan":           func() { must(db.Plan(ctx)) },
		"Migrate":        func() { must(nil, db.Migrate(ctx, nil)) },
		"Query":          func() { must(nil, db.Query(ctx, "SELECT count() FROM flows", FormatCSV, io.Discard)) },
		"QueryWith": func() {
			for _, q := range NamedQueries() {
				given := map[string]string{}
				for _, p := range q.Params {
					given[p.Name] = p.Example
				}
				bound, err := q.Bind(given, time.Now())
				must(nil, err)
				must(nil, db.QueryWith(ctx, q.SQL, bound, FormatCSV, io.Discard))
			}
		},
		"Database": func() {}, "Close": func() {},
	}
	for m := range reflect.TypeOf(db).Methods() {
		if do[m.Name] == nil {
			t.Errorf("%s is not tried here: what it asks for may not be granted", m.Name)
		}
	}
	do["InsertContributions"]() // that others ask for
	for _, f := range do {
		f()
	}

	both, err := cfg.Grants(Grantees{Writer: "w"})
	if err != nil {
		t.Fatal(err)
	}
	apart, err := cfg.Grants(Grantees{Writer: "w", Migrator: "m"})
	if err != nil {
		t.Fatal(err)
	}
	role := cfg.Database + "_role_"
	all, writer, migrator := granted(t, both)[role+"write"], granted(t, apart)[role+"write"], granted(t, apart)[role+"migrate"]
	used := map[string]bool{}
	for i, sql := range heard {
		needs, ok := needed(cfg.Database, sql)
		if !ok {
			t.Errorf("a statement whose privileges are not known: %.120s", sql)
		}
		for _, n := range needs {
			used[n[0]+" "+n[1]], used[n[0]+" "+cfg.Database+".*"] = true, true
			if !allows(all, n[0], n[1]) {
				t.Errorf("the writer is not granted %s ON %s, for %.120s", n[0], n[1], sql)
			}
			if grants := writer; i >= migrations && !allows(grants, n[0], n[1]) {
				t.Errorf("the writer beside a migrator is not granted %s ON %s, for %.120s", n[0], n[1], sql)
			}
			if i < migrations && !allows(migrator, n[0], n[1]) {
				t.Errorf("the migrator is not granted %s ON %s, for %.120s", n[0], n[1], sql)
			}
		}
	}
	// And no more than that.
	for g := range all {
		if !used[g] {
			t.Errorf("granted and never used: %s", g)
		}
	}
	for g := range writer {
		if p, _, _ := strings.Cut(g, " "); p == "CREATE" || p == "DROP" {
			t.Errorf("the writer beside a migrator is granted %s", g)
		}
	}
}

// The engine reads what is printed. It keeps no users of its own, so it cannot run it.
func TestGrantsAreRead(t *testing.T) {
	db := open(t, nil)
	statements, err := db.cfg.Grants(Grantees{Writer: "w", Migrator: "m", Reader: "r", Grafana: "g"})
	if err != nil {
		t.Fatal(err)
	}
	for _, sql := range statements {
		if err := db.exec(t.Context(), time.Minute, "EXPLAIN AST "+sql); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	for _, name := range []string{"w", "m", "r", "g"} {
		if !slices.ContainsFunc(statements, func(s string) bool { return strings.HasPrefix(s, "CREATE USER IF NOT EXISTS "+name+" ") }) {
			t.Errorf("no user %s", name)
		}
	}
	// Everything in the database is in what the grants are made of.
	shape, err := db.cfg.shape()
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for line := range strings.Lines(query(t, db, "SELECT name FROM system.tables WHERE database = '"+db.cfg.Database+"' ORDER BY name")) {
		have = append(have, strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(line), `{"name":"`), `"}`))
	}
	if want := slices.Sorted(slices.Values(slices.Concat(shape.tables, shape.views))); !slices.Equal(have, want) {
		t.Errorf("the database has %v, the grants are made of %v", have, want)
	}
	// What a reader's profile sets is a setting, of that name, and the named questions stay within it.
	for _, sql := range statements {
		_, settings, ok := strings.Cut(sql, " SETTINGS readonly")
		if !ok {
			continue
		}
		values := clickhouse.Settings{}
		for s := range strings.SplitSeq("readonly"+strings.Split(settings, " TO ")[0], ", ") {
			name, value, _ := strings.Cut(s, " = ")
			value, _, _ = strings.Cut(value, " ")
			if got := query(t, db, "SELECT count() AS n FROM system.settings WHERE name = '"+name+"'"); got != `{"n":1}` {
				t.Errorf("%s is no setting", name)
			}
			values[name] = value
		}
		for _, q := range NamedQueries() {
			given := map[string]string{}
			for _, p := range q.Params {
				given[p.Name] = p.Example
			}
			bound, err := q.Bind(given, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			if err := db.QueryWith(clickhouse.Context(t.Context(), clickhouse.WithSettings(values)), q.SQL, bound, FormatCSV, io.Discard); err != nil {
				t.Errorf("%s under %s: %v", q.Name, sql, err)
			}
		}
	}
}

// TestGrantsOnCluster: on a cluster users are made on every server, and may write to what lies behind the Distributed
// tables too. The engine reads the statements.
func TestGrantsOnCluster(t *testing.T) {
	db := open(t, nil)
	cfg := db.cfg
	cfg.URL, cfg.Cluster = "clickhouse://ch:9000", ClusterConfig{Name: "flows", Quorum: "auto"}
	statements, err := cfg.Grants(Grantees{Writer: "w", Migrator: "m", Reader: "r", Grafana: "g"})
	if err != nil {
		t.Fatal(err)
	}
	for _, sql := range statements {
		if !strings.Contains(sql, " ON CLUSTER 'flows'") {
			t.Errorf("not on the cluster: %s", sql)
		}
		if err := db.exec(t.Context(), time.Minute, "EXPLAIN AST "+sql); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	for _, want := range []string{
		"GRANT ON CLUSTER 'flows' INSERT ON " + cfg.Database + ".flows TO " + cfg.Database + "_role_write",
		"GRANT ON CLUSTER 'flows' INSERT ON " + cfg.Database + ".flows_local TO " + cfg.Database + "_role_write",
		"GRANT ON CLUSTER 'flows' ALTER DELETE ON " + cfg.Database + ".flows_local TO " + cfg.Database + "_role_write",
		"GRANT ON CLUSTER 'flows' CLUSTER, REMOTE ON *.* TO " + cfg.Database + "_role_migrate",
	} {
		if !slices.Contains(statements, want) {
			t.Errorf("missing: %s", want)
		}
	}
}

func TestGrantsRefuse(t *testing.T) {
	cfg := DefaultClickHouseConfig()
	for want, who := range map[string]Grantees{
		"is no plain name":         {Reader: "a b"},
		"a is used twice":          {Reader: "a", Grafana: "a"},
		"a migrator without":       {Migrator: "m"},
		"postern_role_read is use": {Reader: "postern_role_read"},
	} {
		if _, err := cfg.Grants(who); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", who, err, want)
		}
	}
	if s, err := cfg.Grants(Grantees{}); err != nil || len(s) != 0 {
		t.Errorf("for nobody: %v, %v", s, err)
	}
	for _, sql := range []string{"DROP TABLE a.b", "ALTER TABLE a.b\n    DROP COLUMN c", "ALTER TABLE a.b UPDATE c = 1 WHERE 1"} {
		if needs, _, err := privilegesOf(sql); err == nil {
			t.Errorf("%s needs %v: who adds such a migration says what it takes", sql, needs)
		}
	}
}
