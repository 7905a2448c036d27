package sink

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

//go:generate env POSTERN_WRITE_DOCS=1 go test -run ^TestTablesPage$ .

const tablesPage = "../docs/tables.md"

// TestTablesPage holds docs/tables.md to what the engine says about the tables
// after all migrations; with POSTERN_WRITE_DOCS=1 it writes the page.
func TestTablesPage(t *testing.T) {
	db := open(t, nil)
	rows, err := db.conn.Query(t.Context(), `SELECT t.name, t.comment, t.engine, t.partition_key, t.sorting_key, extract(t.engine_full, 'TTL .*?toIntervalSecond\\((\\d+)\\)'),
		c.name, c.type, c.comment, c.default_kind
		FROM system.tables AS t INNER JOIN system.columns AS c ON c.database = t.database AND c.table = t.name
		WHERE t.database = '`+db.cfg.Database+`' ORDER BY indexOf(['flows', 'sessions', 'session_versions', 'findings', 'finding_contributions', 'policy_versions', 'exporters', 'ledger', 'replays', 'schema_migrations'], t.name), c.position`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var b strings.Builder
	b.WriteString("# Tables\n\nGenerated from the schema by `go generate ./sink`; do not edit. How to ask: clickhouse.md.\n")
	last := ""
	cell := strings.NewReplacer("|", `\|`, "\n", " ").Replace
	var page []struct{ table, column, kind, comment, computed string }
	var heads = map[string]string{}
	for rows.Next() {
		var table, tableComment, engine, partition, order, seconds, column, kind, comment, computed string
		if err := rows.Scan(&table, &tableComment, &engine, &partition, &order, &seconds, &column, &kind, &comment, &computed); err != nil {
			t.Fatal(err)
		}
		head := "\n## " + table + "\n\n" + strings.ToUpper(tableComment[:1]) + tableComment[1:] + ".\n\n"
		if order != "" {
			head += "Ordered by `" + order + "`"
			if partition != "" {
				head += ", partitioned by `" + partition + "`"
			}
			keep := "kept for ever"
			if seconds != "" {
				var n int
				if _, err := fmt.Sscan(seconds, &n); err != nil {
					t.Fatal(err)
				}
				keep = fmt.Sprintf("kept %d days after insertion", n/86400)
			}
			head += "; by default " + keep + ".\n\n"
		}
		heads[table] = head + "| column | type | meaning |\n|---|---|---|\n"
		page = append(page, struct{ table, column, kind, comment, computed string }{table, column, kind, comment, computed})
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	viewOnly := map[string]string{"first_seen": "earliest time over all batches", "last_seen": "latest time over all batches", "count": "sessions over all batches"}
	for _, c := range page {
		if c.table != last {
			b.WriteString(heads[c.table])
			last = c.table
		}
		if c.comment == "" && c.table == "sessions" {
			for _, o := range page {
				if o.table == "session_versions" && o.column == c.column {
					c.comment = o.comment
				}
			}
		}
		if c.comment == "" && c.table == "findings" {
			if c.comment = viewOnly[c.column]; c.comment == "" {
				for _, o := range page {
					if o.table == "finding_contributions" && o.column == c.column {
						c.comment = o.comment
					}
				}
			}
		}
		if c.comment == "" {
			t.Errorf("%s.%s has no comment", c.table, c.column)
		}
		if c.computed == "ALIAS" {
			c.comment += " (computed when asked for by name; not in `SELECT *`)"
		}
		fmt.Fprintf(&b, "| `%s` | `%s` | %s |\n", c.column, cell(c.kind), cell(c.comment))
	}
	if os.Getenv("POSTERN_WRITE_DOCS") != "" {
		if err := os.WriteFile(tablesPage, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	have, err := os.ReadFile(tablesPage)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != b.String() {
		t.Errorf("%s does not tell the schema any more; run go generate ./sink", tablesPage)
	}
}

// The SQL in docs/clickhouse.md runs against the schema.
func TestDocumentedQueries(t *testing.T) {
	db := open(t, nil)
	text, err := os.ReadFile("../docs/clickhouse.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(text), "```sql\n")[1:]
	if len(blocks) < 8 {
		t.Errorf("%d queries in docs/clickhouse.md; some are not marked as sql", len(blocks))
	}
	for _, b := range blocks {
		sql, _, _ := strings.Cut(b, "```")
		var out strings.Builder
		if err := db.Query(t.Context(), sql, FormatTable, &out); err != nil {
			t.Errorf("%v\n%s", err, sql)
		}
	}
}
