package sink

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"
)

func TestMigrateFromEmpty(t *testing.T) { overBoth(t, testMigrateFromEmpty) }

func testMigrateFromEmpty(t *testing.T, p protocol) {
	db := p.openEmpty(t, nil)
	plan, err := db.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range plan {
		names = append(names, s.Name)
		if len(s.Statements) == 0 {
			t.Errorf("step %s has no statement", s.Name)
		}
	}
	if got, want := strings.Join(names, ", "), "database "+db.cfg.Database+", 0001 flows, 0002 findings, 0003 evidence, 0004 replays, 0005 agents, 0006 sessions, 0007 edges, 0008 feedback, 0009 gaps, 0010 blindspots, 0011 commits, 0012 grouped, 0013 identities, 0014 register, 0015 sessions_view, 0016 edge_days"; got != want {
		t.Errorf("plan %s, want %s", got, want)
	}
	wantQuery(t, &ClickHouse{cfg: ClickHouseConfig{Database: "system"}, options: db.options},
		"SELECT count() AS n FROM databases WHERE name = '"+db.cfg.Database+"'", `{"n":0}`) // a plan changes nothing

	var told []string
	if err := db.Migrate(t.Context(), func(done, total int, s Step) { told = append(told, fmt.Sprintf("%d/%d %s", done, total, s.Name)) }); err != nil {
		t.Fatal(err)
	}
	if want := []string{"0/17 " + names[0], "1/17 0001 flows", "2/17 0002 findings", "3/17 0003 evidence", "4/17 0004 replays", "5/17 0005 agents", "6/17 0006 sessions", "7/17 0007 edges", "8/17 0008 feedback", "9/17 0009 gaps", "10/17 0010 blindspots", "11/17 0011 commits", "12/17 0012 grouped", "13/17 0013 identities", "14/17 0014 register", "15/17 0015 sessions_view", "16/17 0016 edge_days"}; strings.Join(told, ";") != strings.Join(want, ";") {
		t.Errorf("progress %q, want %q", told, want)
	}
	wantQuery(t, db, "SELECT groupArray(name) AS n FROM (SELECT name FROM system.tables WHERE database = '"+db.cfg.Database+"' ORDER BY name)",
		`{"n":["blind_spot_versions","blind_spots","coverage_history","coverage_versions","detector_judgments","edge_days","edge_days_of_hours","edge_hours","edges","edges_daily","exception_use","exception_use_daily","exception_versions","exceptions","exporters","feedback","finding_contributions","finding_revisions","findings","flows","judged_findings","judgments","ledger","policy_timeline","policy_versions","replays","rule_versions","rules","schema_migrations","segment_pairs","segment_versions","segments","session_versions","sessions","workload_versions","workloads"]}`)
	for range 2 {
		if plan, err := db.Plan(t.Context()); err != nil || len(plan) != 0 {
			t.Fatalf("plan after migrating: %v, %v", plan, err)
		}
		if err := db.Migrate(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	// Every statement can be run again, as by one killed before it was noted.
	all, err := db.cfg.migrations()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		for _, sql := range m.Statements {
			if err := db.exec(t.Context(), time.Minute, sql); err != nil {
				t.Errorf("%s again: %v", m.Name, err)
			}
		}
	}
}

func TestMigrateTwoAtOnce(t *testing.T) {
	db := openEmpty(t, nil)
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for i := range errs {
		wg.Go(func() { errs[i] = db.Migrate(t.Context(), nil) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if plan, err := db.Plan(t.Context()); err != nil || len(plan) != 0 {
		t.Errorf("plan after two at once: %v, %v", plan, err)
	}
}

func TestSchemaNewerOrAltered(t *testing.T) {
	db := open(t, nil)
	note := func(version int, sum string) {
		t.Helper()
		if err := db.exec(t.Context(), time.Minute, fmt.Sprintf("INSERT INTO %s.schema_migrations VALUES (%d, 'x', '%s', now64(3) + 1)",
			db.cfg.Database, version, sum)); err != nil {
			t.Fatal(err)
		}
	}
	note(2, "beef")
	if err := db.Migrate(t.Context(), nil); err == nil || Retryable(err) || !strings.Contains(err.Error(), "0002 findings was applied") {
		t.Errorf("altered migration: %v", err)
	}
	note(99, "x")
	if err := db.Migrate(t.Context(), nil); !errors.Is(err, ErrSchemaNewer) || Retryable(err) || !strings.Contains(err.Error(), "migration 99") {
		t.Errorf("newer schema: %v", err)
	}
}

func TestRetention(t *testing.T) {
	db := open(t, func(c *ClickHouseConfig) { c.Retention.Exporters = 0 })
	ttlOf := func(table string) string {
		q := query(t, db, "SELECT extract(engine_full, 'TTL (.*?) SETTINGS') AS ttl FROM system.tables WHERE database = '"+db.cfg.Database+"' AND name = '"+table+"'")
		return q
	}
	expect := func(table, want string) {
		t.Helper()
		if got := ttlOf(table); got != want {
			t.Errorf("TTL of %s is %s, want %s", table, got, want)
		}
	}
	expect("flows", `{"ttl":"toDateTime(inserted_at) + toIntervalSecond(2592000)"}`)
	expect("finding_contributions", `{"ttl":"toDateTime(inserted_at) + toIntervalSecond(34560000)"}`)
	expect("policy_versions", `{"ttl":""}`)
	expect("exporters", `{"ttl":""}`)
	expect("ledger", `{"ttl":"toDateTime(inserted_at) + toIntervalSecond(34560000)"}`)

	// A changed retention is applied at the next start, both ways.
	db.cfg.Retention.Flows, db.cfg.Retention.Exporters, db.cfg.Retention.Ledger = 48*time.Hour, 72*time.Hour, 0
	plan, err := db.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var sql []string
	for _, s := range plan {
		sql = append(sql, s.Statements...)
	}
	d := db.cfg.Database
	if got, want := strings.Join(sql, "\n"), "ALTER TABLE "+d+".flows MODIFY TTL toDateTime(inserted_at) + toIntervalSecond(172800)\n"+
		"ALTER TABLE "+d+".exporters MODIFY TTL toDateTime(inserted_at) + toIntervalSecond(259200)\n"+
		"ALTER TABLE "+d+".ledger REMOVE TTL"; got != want {
		t.Errorf("plan\n%s\nwant\n%s", got, want)
	}
	if err := db.Migrate(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	expect("flows", `{"ttl":"toDateTime(inserted_at) + toIntervalSecond(172800)"}`)
	expect("exporters", `{"ttl":"toDateTime(inserted_at) + toIntervalSecond(259200)"}`)
	expect("ledger", `{"ttl":""}`)
	if plan, err := db.Plan(t.Context()); err != nil || len(plan) != 0 {
		t.Errorf("plan after changing retention: %v, %v", plan, err)
	}
}

func TestReadMigrations(t *testing.T) {
	cfg := DefaultClickHouseConfig()
	for name, test := range map[string]struct {
		files map[string]string
		err   string
	}{
		"gap":     {map[string]string{"0001_a.sql": "SELECT 1;", "0003_b.sql": "SELECT 1;"}, "want 0002_NAME.sql"},
		"name":    {map[string]string{"first.sql": "SELECT 1;"}, "want 0001_NAME.sql"},
		"table":   {map[string]string{"0001_a.sql": `{{ttl "nonsense"}};`}, `no retention for table "nonsense"`},
		"unknown": {map[string]string{"0001_a.sql": `{{.Nonsense}};`}, "Nonsense"},
	} {
		fsys := fstest.MapFS{}
		for f, text := range test.files {
			fsys["migrations/"+f] = &fstest.MapFile{Data: []byte(text)}
		}
		if _, err := readMigrations(fsys, &cfg); err == nil || !strings.Contains(err.Error(), test.err) {
			t.Errorf("%s: %v, want %q", name, err, test.err)
		}
	}
	got := statements("-- a comment;\nSELECT 1;\n\n  -- more\nSELECT\n  ';' AS x,\n  2;\n")
	if strings.Join(got, "|") != "SELECT 1|SELECT\n  ';' AS x,\n  2" {
		t.Errorf("statements %q", got)
	}
}

// A statement that fails says which migration and why.
func TestMigrateError(t *testing.T) {
	db := openEmpty(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := db.Migrate(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("migrating without a context: %v", err)
	}
}
