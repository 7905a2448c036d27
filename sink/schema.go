package sink

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// ErrSchemaNewer says that the database was migrated by a newer Postern than this
// one, which must not write into tables it does not know.
var ErrSchemaNewer = errors.New("the database is newer than this postern")

// Migration is one step of the schema.
type Migration struct {
	Version    int
	Name       string   // as in the file's name
	Checksum   string   // SHA-256 of the file as it is in the binary, in hex
	Statements []string // SQL to run, in order
}

// Step is something that Migrate would do or does.
type Step struct {
	// Name is what it is: "0001 flows", "retention of flows".
	Name string
	// Statements are the SQL of the step, in order. Each can be run again without harm.
	Statements []string
	version    int
	checksum   string
}

// migrations reads the files in order of version, for this configuration.
func (c *ClickHouseConfig) migrations() ([]Migration, error) {
	return readMigrations(migrationFiles, c)
}

func readMigrations(fsys fs.FS, c *ClickHouseConfig) ([]Migration, error) {
	files, err := fs.Glob(fsys, "migrations/*.sql")
	if err != nil {
		return nil, err
	}
	slices.Sort(files)
	keep := map[string]time.Duration{}
	for _, r := range c.Retention.byTable() {
		keep[r.table] = r.keep
	}
	funcs := template.FuncMap{"ttl": func(table string) (string, error) {
		d, ok := keep[table]
		if !ok {
			return "", fmt.Errorf("no retention for table %q", table)
		}
		if d == 0 {
			return "", nil
		}
		return "TTL " + ttl(d), nil
	}}
	var out []Migration
	ddl := c.clusterDDL()
	for i, f := range files {
		text, err := fs.ReadFile(fsys, f)
		if err != nil {
			return nil, err
		}
		number, name, ok := strings.Cut(strings.TrimSuffix(path.Base(f), ".sql"), "_")
		version, err := strconv.Atoi(number)
		if !ok || err != nil || version != i+1 {
			return nil, fmt.Errorf("migration %s: want %04d_NAME.sql", f, i+1)
		}
		t, err := template.New(f).Funcs(funcs).Option("missingkey=error").Parse(string(text))
		if err != nil {
			return nil, err
		}
		var b bytes.Buffer
		if err := t.Execute(&b, map[string]any{"Database": c.Database, "DedupWindow": DedupWindow}); err != nil {
			return nil, err
		}
		sql, err := ddl.all(statements(b.String()))
		if err != nil {
			return nil, fmt.Errorf("migration %s: %w", f, err)
		}
		sum := sha256.Sum256(text)
		out = append(out, Migration{version, name, hex.EncodeToString(sum[:]), sql})
	}
	return out, nil
}

// statements cuts a file where a line ends in a semicolon and drops lines that are comments.
func statements(text string) []string {
	var out, lines []string
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(strings.TrimSpace(line), "--") || strings.TrimSpace(line) == "" {
			continue
		}
		if l, end := strings.CutSuffix(line, ";"); end {
			out = append(out, strings.Join(append(lines, l), "\n"))
			lines = nil
			continue
		}
		lines = append(lines, line)
	}
	if len(lines) > 0 {
		out = append(out, strings.Join(lines, "\n"))
	}
	return out
}

// ttl is the expression by which rows leave. It hangs on insert time alone, never on a flow's own.
func ttl(keep time.Duration) string {
	return "toDateTime(inserted_at) + toIntervalSecond(" + strconv.FormatInt(int64(keep/time.Second), 10) + ")"
}

func (c *ClickHouseConfig) preamble() ([]string, error) {
	return c.clusterDDL().all([]string{
		"CREATE DATABASE IF NOT EXISTS " + c.Database + " COMMENT 'Postern'",
		"CREATE TABLE IF NOT EXISTS " + c.Database + `.schema_migrations
(
    version UInt32 COMMENT 'number of the migration',
    name String COMMENT 'its name',
    checksum String COMMENT 'SHA-256 of its file',
    applied_at DateTime64(3, 'UTC') COMMENT 'when it had been applied'
)
ENGINE = ReplacingMergeTree(applied_at)
ORDER BY version
COMMENT 'which migrations have been applied'`,
	})
}

// Plan lists what Migrate would do now, without doing it; empty if the schema
// and the retention are as configured. It is [ErrSchemaNewer] if the database was
// migrated by a newer Postern, and an error if a migration that was applied reads
// differently in this binary.
func (db *ClickHouse) Plan(ctx context.Context) ([]Step, error) {
	ctx, cancel := context.WithTimeout(ctx, db.cfg.Timeouts.Query)
	defer cancel()
	all, err := db.cfg.migrations()
	if err != nil {
		return nil, permanent(err)
	}
	applied, exists, err := db.applied(ctx)
	if err != nil {
		return nil, err
	}
	var steps []Step
	if !exists {
		preamble, err := db.cfg.preamble()
		if err != nil {
			return nil, permanent(err)
		}
		steps = append(steps, Step{Name: "database " + db.cfg.Database, Statements: preamble})
	}
	if newest := slices.Max(append(mapKeys(applied), 0)); newest > len(all) {
		return nil, permanent(fmt.Errorf("%w: database %s has migration %d, this binary knows %d; use the newer postern, or another clickhouse.database",
			ErrSchemaNewer, db.cfg.Database, newest, len(all)))
	}
	for _, m := range all {
		sum, done := applied[m.Version]
		if !done {
			steps = append(steps, Step{fmt.Sprintf("%04d %s", m.Version, m.Name), m.Statements, m.Version, m.Checksum})
		} else if sum != m.Checksum {
			return nil, permanent(fmt.Errorf("migration %04d %s was applied to database %s with another text (checksum %.12s, here %.12s); applied migrations are never edited: use the postern that applied it, or another clickhouse.database",
				m.Version, m.Name, db.cfg.Database, sum, m.Checksum))
		}
	}
	retention, err := db.planRetention(ctx)
	if err != nil {
		return nil, err
	}
	return append(steps, retention...), nil
}

func mapKeys(m map[int]string) []int {
	var out []int
	for k := range m {
		out = append(out, k)
	}
	return out
}

// applied gives the checksums of the migrations that have been applied, by version.
func (db *ClickHouse) applied(ctx context.Context) (sums map[int]string, exists bool, err error) {
	var n uint64
	if err := db.conn.QueryRow(ctx, "SELECT count() FROM system.tables WHERE database = '"+db.cfg.Database+
		"' AND name = 'schema_migrations'").Scan(&n); err != nil {
		return nil, false, fmt.Errorf("looking for the schema of database %s: %w", db.cfg.Database, db.redact(err))
	}
	if n == 0 {
		return nil, false, nil
	}
	rows, err := db.conn.Query(ctx, "SELECT version, argMax(checksum, applied_at) FROM "+db.cfg.Database+".schema_migrations GROUP BY version")
	if err != nil {
		return nil, false, db.redact(err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	sums = map[int]string{}
	for rows.Next() {
		var version uint32
		var sum string
		if err := rows.Scan(&version, &sum); err != nil {
			return nil, false, db.redact(err)
		}
		sums[int(version)] = sum
	}
	return sums, true, db.redact(rows.Err())
}

// planRetention lists the tables whose TTL is not the configured one.
func (db *ClickHouse) planRetention(ctx context.Context) ([]Step, error) {
	rows, err := db.conn.Query(ctx, "SELECT name, create_table_query FROM system.tables WHERE database = '"+db.cfg.Database+"'")
	if err != nil {
		return nil, db.redact(err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	ddl := map[string]string{}
	for rows.Next() {
		var name, q string
		if err := rows.Scan(&name, &q); err != nil {
			return nil, db.redact(err)
		}
		ddl[name] = q
	}
	if err := rows.Err(); err != nil {
		return nil, db.redact(err)
	}
	var steps []Step
	for _, r := range db.cfg.Retention.byTable() {
		stored := db.cfg.Cluster.stored(r.table)
		q, ok := ddl[stored]
		if !ok {
			continue // its migration will make it so
		}
		table := db.cfg.Database + "." + stored + db.cfg.Cluster.on()
		has := strings.Contains(q, " TTL toDateTime(inserted_at)") || strings.Contains(q, "\nTTL ")
		switch {
		case r.keep == 0 && has:
			steps = append(steps, Step{Name: "retention of " + r.table, Statements: []string{"ALTER TABLE " + table + " REMOVE TTL"}})
		case r.keep > 0 && !strings.Contains(q, ttl(r.keep)):
			steps = append(steps, Step{Name: "retention of " + r.table, Statements: []string{"ALTER TABLE " + table + " MODIFY TTL " + ttl(r.keep)}})
		}
	}
	return steps, nil
}

// Migrate brings the database to this binary's schema and the configured retention.
// Every statement can be run twice and each migration is noted once it is
// through, so two instances that start together, and one that starts again
// after being killed, end with the same schema. progress, if not nil, is called
// before each step.
func (db *ClickHouse) Migrate(ctx context.Context, progress func(done, total int, s Step)) error {
	steps, err := db.Plan(ctx)
	if err != nil {
		return err
	}
	return db.apply(ctx, steps, progress)
}

// ErrNotReversible says that a migration cannot be taken back without losing rows.
var ErrNotReversible = errors.New("the migration cannot be taken back")

// PlanBack lists what MigrateBack would do. It is [ErrNotReversible] if a migration after version
// to did more than add.
func (db *ClickHouse) PlanBack(ctx context.Context, to int) ([]Step, error) {
	ctx, cancel := context.WithTimeout(ctx, db.cfg.Timeouts.Query)
	defer cancel()
	all, err := db.cfg.migrations()
	if err != nil {
		return nil, permanent(err)
	}
	if to < 1 || to > len(all) {
		return nil, permanent(fmt.Errorf("there is no schema of version %d; this binary knows 1 to %d", to, len(all)))
	}
	applied, _, err := db.applied(ctx)
	if err != nil {
		return nil, err
	}
	newest := slices.Max(append(mapKeys(applied), 0))
	if newest > len(all) {
		return nil, permanent(fmt.Errorf("%w: database %s has migration %d, this binary knows %d; only the newer postern can take it back",
			ErrSchemaNewer, db.cfg.Database, newest, len(all)))
	}
	var steps []Step
	for version := newest; version > to; version-- {
		statements, err := db.cfg.back(all[:version])
		if err != nil {
			return nil, permanent(err)
		}
		steps = append(steps, Step{Name: fmt.Sprintf("%04d %s, taken back", version, all[version-1].Name), Statements: statements})
	}
	if len(steps) > 0 { // last, so that what is interrupted begins again
		steps = append(steps, Step{Name: "what is noted of them", Statements: []string{
			fmt.Sprintf("DELETE FROM %s.%s%s WHERE version > %d", db.cfg.Database, db.cfg.Cluster.stored(migrationsTable), db.cfg.Cluster.on(), to)}})
	}
	return steps, nil
}

// MigrateBack takes migrations back until the newest is of version to, so that a binary that knows no
// more can start: views are what they were, or gone, and the tables and columns that were added stay,
// with their rows, for whoever migrates again. Nothing of this binary may write meanwhile, or it
// would migrate again at its next start.
func (db *ClickHouse) MigrateBack(ctx context.Context, to int, progress func(done, total int, s Step)) error {
	steps, err := db.PlanBack(ctx, to)
	if err != nil {
		return err
	}
	return db.apply(ctx, steps, progress)
}

// back are the statements that take the last of these migrations back.
func (c *ClickHouseConfig) back(migrations []Migration) ([]string, error) {
	last := migrations[len(migrations)-1]
	view := func(sql string) string {
		m := ddlForm.FindStringSubmatch(sql)
		if len(m) == 0 || m[2] != "VIEW" {
			return ""
		}
		return m[5]
	}
	before := map[string]string{} // views and their text
	for _, m := range migrations[:len(migrations)-1] {
		for _, sql := range m.Statements {
			if name := view(sql); name != "" {
				before[name] = strings.Replace(sql, "CREATE VIEW IF NOT EXISTS ", "CREATE OR REPLACE VIEW ", 1)
			}
		}
	}
	var out []string
	for _, sql := range slices.Backward(last.Statements) { // what is made of others comes after them
		switch name := view(sql); {
		case name != "" && before[name] != "":
			out = append(out, before[name])
		case name != "":
			out = append(out, "DROP VIEW IF EXISTS "+c.Database+"."+name+c.Cluster.on())
		case !adds(sql):
			return nil, fmt.Errorf("%w: %04d %s: %.80q does more than add", ErrNotReversible, last.Version, last.Name, sql)
		}
	}
	return out, nil
}

// addsRows is what fills a table that the same migration makes.
var addsRows = regexp.MustCompile(`^INSERT INTO \w+\.(edge_days) `)

// adds says whether a statement takes nothing from a table and leaves all of what was written to it
// before readable and writable by the same names.
func adds(sql string) bool {
	if addsRows.MatchString(sql) {
		return true
	}
	m := ddlForm.FindStringSubmatch(sql)
	switch {
	case m == nil:
		return false
	case m[2] == "TABLE", m[2] == "MATERIALIZED VIEW": // or, on a cluster, the Distributed table over one
		return true
	case m[3] == "TABLE":
		for _, clause := range alterClause.FindAllStringSubmatch(sql, -1) {
			switch clause[1] {
			case "ADD COLUMN IF NOT EXISTS", "MODIFY COLUMN", "MODIFY ORDER BY":
			default:
				return false
			}
		}
		return true
	}
	return false
}

// apply runs steps in order.
func (db *ClickHouse) apply(ctx context.Context, steps []Step, progress func(done, total int, s Step)) error {
	for i, s := range steps {
		if progress != nil {
			progress(i, len(steps), s)
		}
		for _, sql := range s.Statements {
			if err := db.exec(ctx, db.cfg.Timeouts.Migration, sql); err != nil {
				return fmt.Errorf("migration %s: %w", s.Name, err)
			}
		}
		if s.version == 0 {
			continue
		}
		if err := db.exec(ctx, db.cfg.Timeouts.Migration, fmt.Sprintf(
			"INSERT INTO %s.schema_migrations (version, name, checksum, applied_at) SETTINGS async_insert = 0%s VALUES (%d, '%s', '%s', now64(3))",
			db.cfg.Database, db.cfg.Cluster.settingsClause(), s.version, s.Name, s.checksum)); err != nil {
			return fmt.Errorf("noting migration %s: %w", s.Name, err)
		}
		db.log.Info("schema migrated", "migration", s.Name, "database", db.cfg.Database)
	}
	return nil
}
