package sink

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// schemaAt is how a database looks to the Postern whose newest migration is of a version.
type schemaAt struct {
	*ClickHouse
	t       testing.TB
	version int
	columns map[string][][3]string // of its tables and views: name, type and ALIAS where one is computed, in order
	tables  []string               // that hold rows
}

const schemaRows = 40

// look is how the database looks now.
func look(t testing.TB, db *ClickHouse, version int) *schemaAt {
	s := &schemaAt{ClickHouse: db, t: t, version: version}
	s.columns = s.describe()
	// The engine fills edge_days.
	for _, line := range s.lines("SELECT name FROM system.tables WHERE database = '" + s.cfg.Database + "' AND engine LIKE '%MergeTree' AND name NOT IN ('schema_migrations', 'edge_days') ORDER BY name") {
		s.tables = append(s.tables, line["name"].(string))
	}
	return s
}

// step applies a migration and notes it, as the Postern did that brought it.
func (s *schemaAt) step(m Migration) {
	s.t.Helper()
	for _, sql := range m.Statements {
		s.run(sql)
	}
	s.run(fmt.Sprintf("INSERT INTO %s.schema_migrations VALUES (%d, '%s', '%s', now64(3))", s.cfg.Database, m.Version, m.Name, m.Checksum))
}

func (s *schemaAt) run(sql string) {
	s.t.Helper()
	if err := s.exec(s.t.Context(), time.Minute, sql); err != nil {
		s.t.Fatalf("%.200s: %v", sql, err)
	}
}

func (s *schemaAt) lines(sql string) (out []map[string]any) {
	s.t.Helper()
	for line := range strings.Lines(query(s.t, s.ClickHouse, sql)) {
		var row map[string]any
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			s.t.Fatal(err)
		}
		out = append(out, row)
	}
	return out
}

// describe tells the columns of all tables and views.
func (s *schemaAt) describe() map[string][][3]string {
	s.t.Helper()
	out := map[string][][3]string{}
	for _, line := range s.lines("SELECT table, name, type, default_kind FROM system.columns WHERE database = '" + s.cfg.Database + "' AND table NOT IN ('schema_migrations', 'edge_days', 'edge_days_of_hours') ORDER BY table, position") {
		table := line["table"].(string)
		out[table] = append(out[table], [3]string{line["name"].(string), line["type"].(string), line["default_kind"].(string)})
	}
	return out
}

// write inserts rows that fill every column at random, as that Postern did, naming the columns that it knew.
func (s *schemaAt) write() {
	s.t.Helper()
	for _, table := range s.tables {
		var names, made, structure []string
		for _, c := range s.columns[table] {
			name, kind := c[0], c[1]
			if c[2] == "ALIAS" {
				continue
			}
			if inner, ok := strings.CutPrefix(kind, "SimpleAggregateFunction("); ok {
				_, kind, _ = strings.Cut(strings.TrimSuffix(inner, ")"), ", ")
			}
			names = append(names, "`"+name+"`")
			structure = append(structure, "`"+name+"` "+strings.ReplaceAll(kind, "'", `\'`))
			switch {
			case name == "inserted_at" || name == "started_at":
				made = append(made, "now64(3)")
			case strings.HasPrefix(name, "observers."): // as many of each
				made = append(made, "arrayResize(`"+name+"`, 2)")
			case name == "input" || name == "policy_version": // of keys: no two alike
				made = append(made, "toString(generateUUIDv4())")
			default:
				made = append(made, "`"+name+"`")
			}
		}
		s.run(fmt.Sprintf("INSERT INTO %s.%s (%s) SELECT %s FROM generateRandom('%s', %d, 30, 3) LIMIT %d SETTINGS async_insert = 0",
			s.cfg.Database, table, strings.Join(names, ", "), strings.Join(made, ", "), strings.Join(structure, ", "), rand.Uint32(), schemaRows))
	}
}

// sums tells of every table how many rows it has and a hash of what stands in the columns that were
// there then.
func (s *schemaAt) sums() string {
	s.t.Helper()
	var b strings.Builder
	for _, table := range s.tables {
		fmt.Fprintln(&b, table, query(s.t, s.ClickHouse, "SELECT count() AS n, groupBitXor(cityHash64("+s.list(table)+")) AS hash FROM "+table))
	}
	return b.String()
}

// ask asks each view for the columns that it had.
func (s *schemaAt) ask() {
	s.t.Helper()
	for name := range s.columns {
		if !slices.Contains(s.tables, name) {
			query(s.t, s.ClickHouse, "SELECT "+s.list(name)+" FROM "+name+" LIMIT 1")
		}
	}
}

func (s *schemaAt) list(table string) string {
	var names []string
	for _, c := range s.columns[table] {
		if c[2] != "ALIAS" {
			names = append(names, "`"+c[0]+"`")
		}
	}
	return strings.Join(names, ", ")
}

// TestMigrateFromEveryVersion goes from the first schema to this one step by step, and writes rows
// as every Postern on the way. No step loses or alters any; in the end each of them goes on reading and
// writing beside this one; and on the way back nothing is lost either, each finding its views as
// they were.
func TestMigrateFromEveryVersion(t *testing.T) {
	db := openEmpty(t, nil)
	all, err := db.cfg.migrations()
	if err != nil {
		t.Fatal(err)
	}
	preamble, err := db.cfg.preamble()
	if err != nil {
		t.Fatal(err)
	}
	for _, sql := range preamble {
		if err := db.exec(t.Context(), time.Minute, sql); err != nil {
			t.Fatal(err)
		}
	}
	same := func(s *schemaAt, when, want string) {
		t.Helper()
		if diff := cmp.Diff(want, s.sums()); diff != "" {
			t.Errorf("%s (-before +after), in the columns of %04d:\n%s", when, s.version, diff)
		}
	}
	at := []*schemaAt{look(t, db, 0)}
	for _, m := range all {
		last := at[len(at)-1]
		before := last.sums()
		last.step(m)
		same(last, "after "+m.Name, before)
		s := look(t, db, m.Version)
		s.write()
		at = append(at, s)
	}
	newest := at[len(at)-1]
	if diff := cmp.Diff(newest.columns["session_versions"], newest.columns["sessions"]); diff != "" { // its words would show as empty ones
		t.Errorf("a view has other types than its table (-table +view):\n%s", diff)
	}
	if plan, err := db.Plan(t.Context()); err != nil || len(plan) != 0 {
		t.Fatalf("after all steps there are others: %v, %v", plan, err)
	}

	for _, s := range at[1:] {
		rows := func() (n int) {
			for _, table := range s.tables {
				n += int(s.lines("SELECT count() AS n FROM " + table)[0]["n"].(float64))
			}
			return n
		}
		before := rows()
		s.ask()
		s.write()
		if n := rows() - before; n != len(s.tables)*schemaRows {
			t.Errorf("beside the newest, %04d wrote %d rows to %d tables", s.version, n, len(s.tables))
		}
	}

	stored := newest.sums()
	for version := len(all) - 1; version > 0; version-- {
		s := at[version]
		before := s.sums()
		if steps, err := db.PlanBack(t.Context(), version); err != nil || len(steps) != 2 {
			t.Fatalf("back to %04d: %v, %v", version, steps, err)
		}
		if err := db.MigrateBack(t.Context(), version, nil); err != nil {
			t.Fatal(err)
		}
		same(s, "after going back", before)
		s.ask()
		if applied, _, err := db.applied(t.Context()); err != nil || len(applied) != version {
			t.Errorf("%d migrations are noted after going back to %d: %v", len(applied), version, err)
		}
		now := s.describe()
		for name, columns := range s.columns { // a * takes in what was added since
			if !slices.Contains(s.tables, name) && name != "sessions" && name != "judged_findings" && !cmp.Equal(columns, now[name]) {
				t.Errorf("back at %04d the view %s is not what it was: %s", version, name, cmp.Diff(columns, now[name]))
			}
		}
		for name := range now {
			if _, known := s.columns[name]; !known && !slices.Contains(newest.tables, name) {
				t.Errorf("back at %04d there is a view %s", version, name)
			}
		}
	}
	if err := db.Migrate(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	same(newest, "after there and back again", stored)
	// The first that knew hours wrote long before days were counted, and after that, without knowing.
	wantQuery(t, db, "SELECT (SELECT sum(sessions) FROM edge_hours) = (SELECT sum(sessions) FROM edge_days) AS n, (SELECT min(first_seen) FROM edge_hours) = (SELECT min(first_seen) FROM edge_days) AS f", `{"n":1,"f":1}`)
	if diff := cmp.Diff(newest.columns, newest.describe()); diff != "" {
		t.Errorf("the schema is another after there and back again:\n%s", diff)
	}
}

// TestMigrateBackRefused: what did more than add stays.
func TestMigrateBackRefused(t *testing.T) {
	db := open(t, nil)
	for _, to := range []int{0, 99, -1} {
		if _, err := db.PlanBack(t.Context(), to); err == nil || !strings.Contains(err.Error(), "this binary knows 1 to") {
			t.Errorf("to %d: %v", to, err)
		}
	}
	d := db.Database()
	for _, sql := range []string{"ALTER TABLE " + d + ".flows DROP COLUMN bytes", "ALTER TABLE " + d + ".flows\n    ADD COLUMN IF NOT EXISTS a UInt8,\n    DELETE WHERE 1", "DROP TABLE " + d + ".flows",
		"INSERT INTO " + d + ".flows SELECT 1", "ALTER TABLE " + d + ".flows UPDATE bytes = 0 WHERE 1", "CREATE DATABASE x"} {
		if _, err := db.cfg.back([]Migration{{Version: 1, Name: "first"}, {Version: 2, Name: "second", Statements: []string{sql}}}); !errors.Is(err, ErrNotReversible) || !strings.Contains(err.Error(), "0002 second") {
			t.Errorf("%s: %v", sql, err)
		}
	}
	for _, sql := range []string{"ALTER TABLE " + d + ".flows\n    ADD COLUMN IF NOT EXISTS a UInt8", "CREATE TABLE IF NOT EXISTS " + d + ".x (a UInt8)"} {
		if _, err := db.cfg.back([]Migration{{Version: 2, Name: "second", Statements: []string{sql}}}); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	if err := db.exec(t.Context(), time.Minute, "INSERT INTO "+d+".schema_migrations VALUES (99, 'x', 'x', now64(3))"); err != nil {
		t.Fatal(err)
	}
	if err := db.MigrateBack(t.Context(), 5, nil); !errors.Is(err, ErrSchemaNewer) {
		t.Errorf("a newer schema: %v", err)
	}
}
