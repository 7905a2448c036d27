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
		WHERE t.database = '`+db.cfg.Database+`' AND t.engine != 'MaterializedView' ORDER BY indexOf(['flows', 'sessions', 'session_versions', 'edges', 'edges_daily', 'segment_pairs', 'edge_hours', 'edge_days', 'findings', 'finding_contributions', 'finding_revisions', 'judged_findings', 'detector_judgments', 'judgments', 'feedback', 'blind_spots', 'blind_spot_versions', 'exceptions', 'exception_use', 'exception_use_daily', 'exception_versions', 'rules', 'rule_versions', 'segments', 'segment_versions', 'workloads', 'workload_versions', 'coverage_history', 'coverage_versions', 'policy_timeline', 'policy_versions', 'exporters', 'ledger', 'replays', 'schema_migrations'], t.name), c.position`)
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
	viewOf := map[string]string{"blind_spots": "blind_spot_versions", "judgments": "feedback", "judged_findings": "findings", "sessions": "session_versions", "findings": "finding_contributions", "edges": "edge_hours", "edges_daily": "edge_days", "segment_pairs": "edge_hours",
		"exceptions": "exception_versions", "rules": "rule_versions", "segments": "segment_versions", "workloads": "workload_versions", "coverage_history": "coverage_versions",
		"policy_timeline": "policy_versions", "exception_use": "edges", "exception_use_daily": "edges_daily", "finding_revisions": "findings"}
	viewOnly := map[string]string{
		"findings.first_seen": "earliest time over all batches", "findings.last_seen": "latest time over all batches", "findings.count": "sessions over all batches",
		"edges.first_seen": "when the first of the sessions began, to the second", "edges.last_seen": "when the last of the sessions ended, as far as it is known",
		"edges_daily.day": "the UTC day that the sessions began on", "edges_daily.sessions": "sessions that began on the day", "edges_daily.hours": "hours of the day with any; also those of sessions that turned out to be others",
		"edges_daily.first_seen": "when the first of the sessions began, to the second", "edges_daily.last_seen": "when the last of the sessions ended, as far as it is known",
		"segment_pairs.permitted": "of these, allowed and seen to pass", "segment_pairs.blocked": "of these, denied and stopped", "segment_pairs.escaped": "of these, denied and not stopped",
		"segment_pairs.misblocked": "of these, allowed and stopped", "segment_pairs.attempted": "of these, without an answer, where nobody said what enforcement did",
		"segment_pairs.undecided": "of these, not judged, uncovered or unverified", "segment_pairs.blocked_rate": "blocked / sessions, 0 to 1", "segment_pairs.escaped_rate": "escaped / sessions, 0 to 1",
		"segment_pairs.bytes":   "bytes that both ends sent",
		"exceptions.state":      "unapproved, not-yet-valid, active, expiring (holds, and ends within 14 days), expired, revoked or removed, at the time of asking",
		"exceptions.ended":      "the earliest of expires, revoked_at and removed_at, which may be to come",
		"exceptions.removed_at": "when the first version of policy without it came into force; NULL while it stands in the files",
		"exceptions.since":      "from when on that version of policy was in force", "rules.since": "from when on that version of policy is in force",
		"segments.since": "from when on that version of policy is in force", "workloads.since": "from when on that version of policy is in force",
		"coverage_history.since": "from when on it was so", "coverage_history.until": "until when; NULL: it is so now",
		"policy_timeline.policy_version": "the first 16 digits of the hash, as findings and flows name it", "policy_timeline.until": "until when; NULL: it is in force now",
		"finding_revisions.at": "when the input was sealed that made it", "finding_revisions.count": "sessions up to this revision",
		"finding_revisions.first_seen": "earliest time up to this revision", "finding_revisions.last_seen": "latest time up to this revision",
		"judgments.id": "the finding's id", "judgments.judged_revision": "the revision of the finding that was judged", "judgments.judgments": "how often it was judged",
		"judged_findings.judgment": "the judgment that counts; empty where nobody judged", "judged_findings.judged_by": "who judged, as they said",
		"judged_findings.judged_at": "when", "judged_findings.judgment_reason": "why", "judged_findings.judged_revision": "the revision that was judged", "judged_findings.judgments": "how often it was judged",
		"detector_judgments.day": "the UTC day on which the findings were first seen", "detector_judgments.type": "kind of finding, which names the detector", "detector_judgments.findings": "findings of the day",
		"detector_judgments.unjudged": "of these, judged by nobody", "detector_judgments.acknowledged": "of these, looked at by somebody", "detector_judgments.judged_true": "of these, true",
		"detector_judgments.judged_false_positive": "of these, false positives", "detector_judgments.true_ratio": "true / (true + false positives), 0 to 1; NULL where none is either",
		"detector_judgments.false_ratio": "false positives / (true + false positives), 0 to 1; NULL where none is either", "detector_judgments.suppressed": "of these, with records that came while a suppression held",
	}
	for _, c := range page {
		if c.table != last {
			b.WriteString(heads[c.table])
			last = c.table
		}
		if c.comment == "" {
			c.comment = viewOnly[c.table+"."+c.column]
		}
		for of := viewOf[c.table]; c.comment == "" && of != ""; of = viewOf[of] {
			if c.comment = viewOnly[of+"."+c.column]; c.comment != "" {
				break
			}
			for _, o := range page {
				if o.table == of && o.column == c.column {
					c.comment = o.comment
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
