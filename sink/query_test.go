package sink

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"strings"
	"testing"
	"unicode"
)

func TestQueryTypes(t *testing.T) { overBoth(t, testQueryTypes) }

func testQueryTypes(t *testing.T, p protocol) {
	db := p.openEmpty(t, nil)
	if err := db.Migrate(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	for sql, want := range map[string]string{
		"SELECT 1 AS a, -5 AS b, 18446744073709551615 AS c, 0.5 AS d, toFloat32(0.1) AS e, true AS f":                                             `{"a":1,"b":-5,"c":18446744073709551615,"d":0.5,"e":0.1,"f":true}`,
		"SELECT CAST(NULL AS Nullable(UInt8)) AS a, toNullable(7) AS b, CAST(NULL AS Nullable(IPv6)) AS c":                                        `{"a":null,"b":7,"c":null}`,
		"SELECT toIPv6('::ffff:10.0.0.1') AS a, toIPv6('2001:db8::1') AS b, toIPv4('10.0.0.2') AS c":                                              `{"a":"10.0.0.1","b":"2001:db8::1","c":"10.0.0.2"}`,
		"SELECT toDateTime64('2026-10-01 02:03:04.056', 3, 'UTC') AS a, toDate('2026-10-01') AS b, toDateTime('2026-10-01 02:03:04', 'UTC') AS c": `{"a":"2026-10-01T02:03:04.056Z","b":"2026-10-01","c":"2026-10-01T02:03:04Z"}`,
		"SELECT ['a', 'b'] AS a, [] AS b, [toIPv6('::1')] AS c, [[1], [2, 3]] AS d":                                                               `{"a":["a","b"],"b":[],"c":["::1"],"d":[[1],[2,3]]}`,
		"SELECT map('k', 1, 'a', 2) AS a, CAST((1, 'x') AS Tuple(n UInt8, s String)) AS b":                                                        `{"a":{"a":2,"k":1},"b":{"n":1,"s":"x"}}`,
		"SELECT CAST([(1, 'x')] AS Array(Tuple(n UInt8, s String))) AS a, (1, 'two') AS b":                                                        `{"a":[{"n":1,"s":"x"}],"b":[1,"two"]}`,
		"SELECT toLowCardinality('x') AS a, CAST('b' AS Enum8('a' = 0, 'b' = 1)) AS b, toUUID('61f0c404-5cb3-11e7-907b-a6006ad3dba0') AS c":       `{"a":"x","b":"b","c":"61f0c404-5cb3-11e7-907b-a6006ad3dba0"}`,
		"SELECT toDecimal64(1.25, 2) AS a, toUInt128('340282366920938463463374607431768211455') AS b, nan AS c":                                   `{"a":1.25,"b":340282366920938463463374607431768211455,"c":null}`,
		"SELECT number AS n FROM numbers(3)":                        "{\"n\":0}\n{\"n\":1}\n{\"n\":2}",
		"SELECT if(number = 1, NULL, number) AS n FROM numbers(3);": "{\"n\":0}\n{\"n\":null}\n{\"n\":2}",
		"SELECT count() AS n FROM flows":                            `{"n":0}`, // the configured database is the default one
	} {
		wantQuery(t, db, sql, want)
	}
	for _, sql := range []string{"SELECT number FROM numbers(0)", "SELECT 1 FROM flows"} {
		var table bytes.Buffer
		if err := db.Query(t.Context(), sql, FormatTable, &table); err != nil || !strings.HasSuffix(table.String(), "0 rows\n") {
			t.Errorf("%s: %v\n%s", sql, err, &table)
		}
	}
	if err := db.Query(t.Context(), "SELECT nonsense", FormatJSON, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("a wrong statement: %v", err)
	}
	if err := db.Query(t.Context(), " ; ", FormatJSON, &bytes.Buffer{}); err == nil {
		t.Error("no statement at all was accepted")
	}
	if err := db.Query(t.Context(), "SELECT 1", "xml", &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "table, json or csv") {
		t.Errorf("a wrong format: %v", err)
	}
}

// sqlString spells s as a ClickHouse string without trusting any escaping.
func sqlString(s string) string {
	var b strings.Builder
	for i := range len(s) {
		fmt.Fprintf(&b, "%02x", s[i])
	}
	return "unhex('" + b.String() + "')"
}

// What hosts on the network may say stays inside its cell, whatever the format (THREATS 36).
func TestQueryHostileStrings(t *testing.T) { overBoth(t, testQueryHostileStrings) }

func testQueryHostileStrings(t *testing.T, p protocol) {
	db := p.openEmpty(t, nil)
	if err := db.Migrate(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	for _, s := range hostile {
		sql := "SELECT " + sqlString(s) + " AS a, [" + sqlString(s) + "] AS b, 'end' AS c"
		var out bytes.Buffer
		if err := db.Query(t.Context(), sql, FormatCSV, &out); err != nil {
			t.Fatal(err)
		}
		records, err := csv.NewReader(&out).ReadAll()
		if err != nil || len(records) != 2 || len(records[1]) != 3 {
			t.Fatalf("%q: CSV does not parse back: %v %q", s, err, records)
		}
		// RFC 4180 readers fold CR LF; nothing else may change.
		if want := strings.ReplaceAll(s, "\r\n", "\n"); records[1][0] != want || records[1][2] != "end" {
			t.Errorf("CSV gave %q for %q", records[1], s)
		}
		out.Reset()
		if err := db.Query(t.Context(), sql, FormatTable, &out); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(out.String(), "\n"); n != 6 {
			t.Errorf("%q: a table of one row has %d lines:\n%s", s, n, out.String())
		}
		for _, r := range out.String() {
			if r != '\n' && !unicode.IsPrint(r) {
				t.Errorf("%q: %U reached the terminal", s, r)
			}
		}
	}
}

func TestQueryTable(t *testing.T) {
	db := openEmpty(t, nil)
	if err := db.Migrate(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := db.Query(t.Context(), "SELECT * FROM (SELECT toIPv6('10.0.0.1') AS client, 12 AS n, CAST(NULL AS Nullable(String)) AS x UNION ALL SELECT toIPv6('2001:db8::1'), 3, NULL) ORDER BY n", FormatTable, &out); err != nil {
		t.Fatal(err)
	}
	want := `┌─────────────┬────┬──────┐
│ client      │  n │ x    │
├─────────────┼────┼──────┤
│ 2001:db8::1 │  3 │ NULL │
│ 10.0.0.1    │ 12 │ NULL │
└─────────────┴────┴──────┘
2 rows
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}
