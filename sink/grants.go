package sink

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Grantees are the users of a server that [ClickHouseConfig.Grants] makes; an empty one is left out.
type Grantees struct {
	Writer   string // the service: collect, detect, replay, feedback
	Migrator string // who brings the schema up to date; empty: the writer does
	Reader   string // people and scripts that ask
	Grafana  string // the data source of dashboards
}

// inputTables are the tables whose rows a replay under another policy replaces.
var inputTables = []string{"flows", "session_versions", "edge_hours", "edge_days", "finding_contributions", "blind_spot_versions"}

// Grants lists the statements that give each user what it needs and no more, for an administrator of
// a server to run: roles, their privileges, a profile of settings for those who only ask, and the
// users. Instead of a password's hash a user has a placeholder that no password fits. What is granted
// follows from the schema of this binary; every statement can be run again.
func (c *ClickHouseConfig) Grants(who Grantees) ([]string, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	shape, err := c.shape()
	if err != nil {
		return nil, err
	}
	var out []string
	add := func(format string, a ...any) { out = append(out, c.Cluster.everywhere(fmt.Sprintf(format, a...))) }
	db, taken := c.Database, map[string]bool{}
	user := func(name, role string) error {
		if !identifier.MatchString(name) {
			return fmt.Errorf("%q is no plain name of a user; use letters, digits and underscores", name)
		}
		if taken[name] || strings.HasPrefix(name, db+"_role_") {
			return fmt.Errorf("the name %s is used twice; give each its own", name)
		}
		taken[name] = true
		add("CREATE USER IF NOT EXISTS %s IDENTIFIED WITH sha256_hash BY '<SHA-256 of the password of %s, in hex>'", name, name)
		add("GRANT %s_role_%s TO %s", db, role, name)
		return nil
	}
	role := func(role string) string {
		add("CREATE ROLE IF NOT EXISTS %s_role_%s", db, role)
		return db + "_role_" + role
	}
	profile := func(role, settings string) {
		add("CREATE SETTINGS PROFILE IF NOT EXISTS %s_profile_%s SETTINGS %s TO %s_role_%s", db, role, settings, db, role)
	}

	if who.Writer == "" && who.Migrator != "" {
		return nil, errors.New("a migrator without a writer has nothing to prepare; name the writer too")
	}
	if who.Writer != "" {
		r := role("write")
		add("GRANT SELECT ON %s.* TO %s", db, r)
		add("GRANT SELECT ON system.tables TO %s", r)
		for _, t := range shape.tables {
			if t != migrationsTable {
				for _, t := range c.Cluster.parts(t) {
					add("GRANT INSERT ON %s.%s TO %s", db, t, r)
				}
			}
		}
		for _, t := range inputTables {
			parts := c.Cluster.parts(t)
			add("GRANT ALTER DELETE ON %s.%s TO %s", db, parts[len(parts)-1], r)
		}
		migrator := r
		if who.Migrator != "" {
			migrator = role("migrate")
			add("GRANT SELECT ON %s.* TO %s", db, migrator)
			add("GRANT SELECT ON system.tables TO %s", migrator)
			for _, t := range shape.filled {
				for _, t := range c.Cluster.parts(t) {
					add("GRANT INSERT ON %s.%s TO %s", db, t, migrator)
				}
			}
		}
		for _, t := range c.Cluster.parts(migrationsTable) {
			add("GRANT INSERT ON %s.%s TO %s", db, t, migrator)
		}
		add("GRANT ALTER DELETE ON %s.%s TO %s", db, c.Cluster.stored(migrationsTable), migrator) // where one is taken back
		if c.Cluster.Name != "" {
			// ON CLUSTER, and Distributed tables, which are made anew with their columns.
			add("GRANT DROP TABLE ON %s.* TO %s", db, migrator)
			for _, who := range slices.Compact([]string{r, migrator}) {
				add("GRANT CLUSTER, REMOTE ON *.* TO %s", who)
			}
		}
		add("GRANT %s ON %s.* TO %s", strings.Join(shape.privileges, ", "), db, migrator)
		if err := user(who.Writer, "write"); err != nil {
			return nil, err
		}
		if who.Migrator != "" {
			if err := user(who.Migrator, "migrate"); err != nil {
				return nil, err
			}
		}
	}
	// A reader may ask for less time and not for more. readonly = 1 refuses every write and every
	// setting but the time, which clients send along.
	const limits = "readonly = 1 CONST, max_execution_time = %[1]d MIN 1 MAX %[1]d CHANGEABLE_IN_READONLY, max_memory_usage = %[2]d CONST, max_result_bytes = %[3]d CONST"
	if who.Reader != "" {
		add("GRANT SELECT ON %s.* TO %s", db, role("read"))
		profile("read", fmt.Sprintf(limits, 300, 8<<30, 1<<30))
		if err := user(who.Reader, "read"); err != nil {
			return nil, err
		}
	}
	if who.Grafana != "" {
		add("GRANT SELECT ON %s.* TO %s", db, role("grafana"))
		profile("grafana", fmt.Sprintf(limits+", max_rows_to_read = 2000000000 CONST, max_concurrent_queries_for_user = 20 CONST", 30, 4<<30, 64<<20))
		if err := user(who.Grafana, "grafana"); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// parts are the tables that hold what is written to one: on a cluster the Distributed table and the
// one behind it.
func (c *ClusterConfig) parts(table string) []string {
	if c.Name == "" {
		return []string{table}
	}
	return []string{table, table + "_local"}
}

var accessForm = regexp.MustCompile(`^(GRANT|CREATE (?:USER|ROLE|SETTINGS PROFILE) IF NOT EXISTS \w+)`)

// everywhere has a statement about users or their rights run on every server of a cluster.
func (c *ClusterConfig) everywhere(sql string) string {
	if c.Name == "" {
		return sql
	}
	return accessForm.ReplaceAllString(sql, "${1}"+c.on())
}

// migrationsTable notes which migrations have been applied.
const migrationsTable = "schema_migrations"

// shape is what the migrations make and what making it takes.
type shape struct {
	tables, views []string
	filled        []string // tables that a migration writes to
	privileges    []string
}

// ddlForm is what the statements of the schema begin with.
var ddlForm = regexp.MustCompile(`^(?:CREATE (OR REPLACE )?(DATABASE|TABLE|(?:MATERIALIZED )?VIEW)(?: IF NOT EXISTS)?|ALTER (TABLE)) (\w+)(?:\.(\w+))?`)

// alterClauses are the clauses of ALTER TABLE that migrations and retention use, and the privilege of each.
var alterClauses = map[string]string{
	"ADD COLUMN": "ALTER ADD COLUMN", "MODIFY COLUMN": "ALTER MODIFY COLUMN", "MODIFY ORDER BY": "ALTER ORDER BY",
	"MODIFY TTL": "ALTER TTL", "REMOVE TTL": "ALTER TTL",
}

var alterClause = regexp.MustCompile(`(?m)^\s*(?:ALTER TABLE \S+\s+)?((?:ADD|MODIFY|REMOVE|DROP|RENAME|COMMENT|CLEAR|MATERIALIZE|RESET|DELETE|UPDATE)\b(?: [A-Z]+)*)`)

// shape reads it off the statements.
func (c *ClickHouseConfig) shape() (s shape, err error) {
	one := *c
	one.Cluster = ClusterConfig{} // what a cluster takes beside is known to Grants
	all, err := one.migrations()
	if err != nil {
		return s, err
	}
	preamble, err := one.preamble()
	if err != nil {
		return s, err
	}
	statements := slices.Concat(preamble, []string{"ALTER TABLE " + c.Database + ".flows MODIFY TTL " + ttl(day), "ALTER TABLE " + c.Database + ".flows REMOVE TTL"})
	for _, m := range all {
		statements = append(statements, m.Statements...)
	}
	tables, views, privileges := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, sql := range statements {
		if m := addsRows.FindStringSubmatch(sql); len(m) > 0 {
			s.filled = append(s.filled, m[1])
			continue
		}
		needs, object, err := privilegesOf(sql)
		if err != nil {
			return s, err
		}
		for _, p := range needs {
			privileges[p] = true
		}
		switch {
		case strings.HasPrefix(sql, "CREATE TABLE"):
			tables[object] = true
		case slices.Contains(needs, "CREATE VIEW"):
			views[object] = true
		}
	}
	s.tables, s.views, s.privileges = slices.Sorted(maps.Keys(tables)), slices.Sorted(maps.Keys(views)), slices.Sorted(maps.Keys(privileges))
	return s, nil
}

// privilegesOf says what a statement of the schema takes, and on which table or view of the database.
func privilegesOf(sql string) (needs []string, object string, err error) {
	m := ddlForm.FindStringSubmatch(sql)
	if m == nil {
		return nil, "", fmt.Errorf("a statement of the schema whose privileges are not known: %.80s", sql)
	}
	object = m[5]
	if m[3] == "" {
		needs = []string{"CREATE " + strings.TrimPrefix(m[2], "MATERIALIZED ")}
		if m[1] != "" {
			needs = append(needs, "DROP "+m[2])
		}
		return needs, object, nil
	}
	for _, clause := range alterClause.FindAllStringSubmatch(sql, -1) {
		found := false
		for text, p := range alterClauses {
			if strings.HasPrefix(clause[1], text) {
				needs, found = append(needs, p), true
			}
		}
		if !found {
			return nil, "", fmt.Errorf("a clause of the schema whose privileges are not known: %s", clause[1])
		}
	}
	if len(needs) == 0 {
		return nil, "", fmt.Errorf("a statement of the schema whose privileges are not known: %.80s", sql)
	}
	return needs, object, nil
}
