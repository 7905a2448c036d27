package sink

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

func clustered(c *ClickHouseConfig) {
	c.URL, c.Cluster.Name = "clickhouse://server", "flows"
}

// statementsOf are all statements a configuration makes a database with, in order.
func statementsOf(t *testing.T, c ClickHouseConfig) []Step {
	t.Helper()
	preamble, err := c.preamble()
	if err != nil {
		t.Fatal(err)
	}
	steps := []Step{{Name: "database " + c.Database, Statements: preamble}}
	all, err := c.migrations()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		steps = append(steps, Step{Name: fmt.Sprintf("%04d %s", m.Version, m.Name), Statements: m.Statements})
	}
	return steps
}

// TestDDLGolden holds what `postern migrate --plan` prints for one server and for a
// cluster to the golden files (go test ./sink -run TestDDLGolden -update), and has the
// engine's own parser read every statement. The embedded engine has no Keeper and no
// cluster: those for a cluster are parsed here and not run; TestClusterDDLRuns runs
// them with plain engines.
func TestDDLGolden(t *testing.T) {
	db := openEmpty(t, nil)
	for name, change := range map[string]func(*ClickHouseConfig){"single": func(*ClickHouseConfig) {}, "cluster": clustered} {
		t.Run(name, func(t *testing.T) {
			cfg := DefaultClickHouseConfig()
			change(&cfg)
			if err := cfg.Validate(); err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			switch name {
			case "single":
				b.WriteString("-- What a database on one server is made with. Written by go test ./sink -run TestDDLGolden -update.\n\n")
			case "cluster":
				b.WriteString("-- What a database on a cluster is made with. PARSED, NOT RUN: the engine of the tests has no Keeper.\n-- Written by go test ./sink -run TestDDLGolden -update.\n\n")
			}
			for _, s := range statementsOf(t, cfg) {
				fmt.Fprintf(&b, "-- %s\n%s;\n\n", s.Name, strings.Join(s.Statements, ";\n\n"))
				for _, sql := range s.Statements {
					if err := db.exec(t.Context(), time.Minute, "EXPLAIN AST "+sql); err != nil {
						t.Errorf("%s does not parse: %v\n%s", s.Name, err, sql)
					}
				}
			}
			for _, sql := range []string{ // and what is said beside migrations
				"ALTER TABLE " + cfg.Database + "." + cfg.Cluster.stored("flows") + cfg.Cluster.on() + " MODIFY TTL " + ttl(time.Hour),
				"DELETE FROM " + cfg.Database + "." + cfg.Cluster.stored("flows") + cfg.Cluster.on() + " WHERE input = 'x'",
				"INSERT INTO " + cfg.Database + ".schema_migrations (version) SETTINGS async_insert = 0" + cfg.Cluster.settingsClause() + " VALUES (1)",
			} {
				if err := db.exec(t.Context(), time.Minute, "EXPLAIN AST "+sql); err != nil {
					t.Errorf("%v\n%s", err, sql)
				}
			}
			file := "testdata/ddl_" + name + ".sql"
			if *update {
				if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), b.String()); diff != "" {
				t.Errorf("%s does not tell the statements any more (-golden +now); run with -update if that is meant:\n%s", file, diff)
			}
		})
	}
}

// TestClusterDDLRuns runs the statements for a cluster on the engine, with plain engines
// in the place of the Replicated ones and a Merge table over the local one in the place
// of each Distributed one. Every name, column, view and sharding key is so held to the
// engine; that shards and replicas do what they should is not.
func TestClusterDDLRuns(t *testing.T) {
	db := openEmpty(t, nil)
	cfg := DefaultClickHouseConfig()
	clustered(&cfg)
	cfg.Database = db.cfg.Database
	distributed := regexp.MustCompile(`ENGINE = Distributed\('flows', '` + cfg.Database + `', '(\w+)', (.*)\)`)
	keys := map[string]string{}
	tables := 0
	for _, s := range statementsOf(t, cfg) {
		for _, sql := range s.Statements {
			insert := addsRows.FindStringSubmatch(sql)
			if insert == nil && !strings.Contains(sql, " ON CLUSTER 'flows'") {
				t.Errorf("%s is not for all servers:\n%s", s.Name, sql)
			}
			plain := strings.ReplaceAll(sql, " ON CLUSTER 'flows'", "")
			if strings.Contains(plain, "ENGINE = Replicated") {
				plain = strings.Replace(plain, "ENGINE = Replicated", "ENGINE = ", 1)
				tables++
			}
			if m := distributed.FindStringSubmatch(plain); m != nil {
				keys[m[1]] = m[2]
				plain = strings.Replace(plain, m[0], "ENGINE = Merge('"+cfg.Database+"', '^"+m[1]+"$')", 1)
			}
			if insert != nil { // a Merge table takes no rows
				plain = strings.Replace(plain, "."+insert[1]+" ", "."+insert[1]+"_local ", 1)
			}
			for range 2 { // each can be run again
				if err := db.exec(t.Context(), time.Minute, plain); err != nil {
					t.Fatalf("%s: %v\n%s", s.Name, err, plain)
				}
			}
		}
	}
	if tables == 0 || len(keys) != tables {
		t.Errorf("%d tables and %d distributed ones over them", tables, len(keys))
	}
	for table, key := range keys {
		name := strings.TrimSuffix(table, "_local")
		// What a shard merges must have come to it: the key follows from the sorting key.
		var sorting, engine string
		if err := db.conn.QueryRow(t.Context(), "SELECT sorting_key, engine FROM system.tables WHERE database = '"+cfg.Database+"' AND name = '"+table+"'").Scan(&sorting, &engine); err != nil {
			t.Fatal(err)
		}
		if err := db.exec(t.Context(), time.Minute, "SELECT "+key+" AS shard FROM "+cfg.Database+"."+name+" WHERE toUInt64(shard) >= 0"); err != nil {
			t.Errorf("the sharding key of %s: %v", name, err)
		}
		for column := range strings.FieldsFuncSeq(key, func(r rune) bool { return r != '_' && (r < '0' || r > '9' && r < 'A' || r > 'Z' && r < 'a' || r > 'z') }) {
			if engine != "MergeTree" && !regexp.MustCompile(`\b`+column+`\b`).MatchString(sorting) && column != "cityHash64" && column != "least" && column != "greatest" {
				t.Errorf("%s (%s) is sharded by %s, which its sorting key %s does not hold: rows that are to become one would lie apart", name, engine, column, sorting)
			}
		}
		// The distributed table has the columns of the other.
		columns := func(of string) string {
			return query(t, db, "SELECT groupArray((name, type, default_kind)) AS c FROM (SELECT * FROM system.columns WHERE database = '"+cfg.Database+"' AND table = '"+of+"' ORDER BY position)")
		}
		if a, b := columns(name), columns(table); a != b {
			t.Errorf("%s has columns %s\n%s has %s", name, a, table, b)
		}
	}
	for view := range strings.FieldsSeq(one(t, db, "SELECT arrayStringConcat(groupArray(name), ' ') FROM system.tables WHERE database = '"+cfg.Database+"' AND engine = 'View'")) {
		if err := db.exec(t.Context(), time.Minute, "SELECT * FROM "+cfg.Database+"."+view); err != nil {
			t.Errorf("the view %s over distributed tables: %v", view, err)
		}
	}
}

func one(t *testing.T, db *ClickHouse, sql string) (v string) {
	t.Helper()
	if err := db.conn.QueryRow(t.Context(), sql).Scan(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestClusterRewrite(t *testing.T) {
	cfg := DefaultClickHouseConfig()
	clustered(&cfg)
	d := cfg.clusterDDL()
	for _, test := range []struct{ in, want string }{
		{"CREATE TABLE IF NOT EXISTS postern.t (a UInt8 COMMENT 'ENGINE = MergeTree ORDER BY (', b String) -- ENGINE = x\nENGINE=ReplacingMergeTree(a) PARTITION BY a ORDER BY (a, lower(b)) SETTINGS x = 'ORDER BY' COMMENT 'it''s'",
			"CREATE TABLE IF NOT EXISTS postern.t_local ON CLUSTER 'flows' (a UInt8 COMMENT 'ENGINE = MergeTree ORDER BY (', b String) -- ENGINE = x\nENGINE=ReplicatedReplacingMergeTree(a) PARTITION BY a ORDER BY (a, lower(b)) SETTINGS x = 'ORDER BY' COMMENT 'it''s';\n" +
				"CREATE TABLE IF NOT EXISTS postern.t ON CLUSTER 'flows' AS postern.t_local\nENGINE = Distributed('flows', 'postern', 't_local', cityHash64(a, lower(b)))\nCOMMENT 'it''s'"},
		{"alter table postern.t ADD COLUMN c UInt8", "alter table postern.t_local ON CLUSTER 'flows' ADD COLUMN c UInt8;\nCREATE OR REPLACE TABLE postern.t ON CLUSTER 'flows' AS postern.t_local\nENGINE = Distributed('flows', 'postern', 't_local', cityHash64(a, lower(b)))\nCOMMENT 'it''s'"},
		{"CREATE OR REPLACE VIEW postern.v AS SELECT * FROM postern.t", "CREATE OR REPLACE VIEW postern.v ON CLUSTER 'flows' AS SELECT * FROM postern.t"},
		{"CREATE MATERIALIZED VIEW IF NOT EXISTS postern.m TO postern.t AS SELECT 'postern.t' AS b, a FROM postern.t",
			"CREATE MATERIALIZED VIEW IF NOT EXISTS postern.m ON CLUSTER 'flows' TO postern.t_local AS SELECT 'postern.t' AS b, a FROM postern.t_local"},
		{"INSERT INTO postern.t SELECT 1", "INSERT INTO postern.t SELECT 1\nSETTINGS distributed_foreground_insert = '1', insert_distributed_one_random_shard = '0', insert_quorum = 'auto', insert_quorum_parallel = '1'"},
		{"CREATE TABLE IF NOT EXISTS postern.l (a UInt8) ENGINE = Log", "no Replicated engine for Log"},
		{"CREATE TABLE IF NOT EXISTS postern.l (a UInt8) ENGINE = MergeTree", "no ORDER BY"},
		{"CREATE TABLE postern.l (a UInt8) ENGINE = Log", "nobody has thought about"},
		{"CREATE TABLE IF NOT EXISTS l (a UInt8) ENGINE = MergeTree ORDER BY a", "no name"},
		{"ALTER TABLE postern.unknown DROP COLUMN a", "no migration before it made"},
		{"CREATE MATERIALIZED VIEW IF NOT EXISTS postern.m REFRESH EVERY 1 HOUR TO postern.t AS SELECT 1", "no REFRESH"},
		{"OPTIMIZE TABLE postern.t", "nobody has thought about"},
	} {
		got, err := d.rewrite(test.in)
		if err != nil {
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s\n%v; want %s", test.in, err, test.want)
			}
			continue
		}
		if diff := cmp.Diff(test.want, strings.Join(got, ";\n")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.in, diff)
		}
	}
}

func TestClusterConfig(t *testing.T) {
	cfg := DefaultClickHouseConfig()
	clustered(&cfg)
	for want, change := range map[string]func(*ClickHouseConfig){
		"":                          func(*ClickHouseConfig) {},
		"is no name of a cluster":   func(c *ClickHouseConfig) { c.Cluster.Name = "a' b" },
		"a cluster needs servers":   func(c *ClickHouseConfig) { c.URL = URLEmbedded },
		"neither auto nor a number": func(c *ClickHouseConfig) { c.Cluster.Quorum = "most" },
		"replicas from 0 to 100":    func(c *ClickHouseConfig) { c.Cluster.Quorum = "-1" },
	} {
		c := cfg
		change(&c)
		if err := c.Validate(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	if s := cfg.insertSettings("x"); s["distributed_foreground_insert"] != "1" || s["insert_quorum"] != "auto" || s["insert_deduplication_token"] != "x" {
		t.Errorf("settings %v", s)
	}
	if s := (&ClickHouseConfig{}).insertSettings("x"); s["insert_quorum"] != "" {
		t.Errorf("settings without a cluster: %v", s)
	}
}
