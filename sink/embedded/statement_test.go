package embedded

import (
	"errors"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseStatement(t *testing.T) {
	for in, want := range map[string]statement{
		"":         {},
		"select 1": {verb: "SELECT"},
		"/* INSERT */ -- x\n# y\nSELECT a FORMAT JSON":                 {verb: "SELECT", format: "JSON"},
		"((SELECT 1)) FORMAT CSV":                                      {verb: "SELECT", format: "CSV"},
		"SELECT 'FORMAT x', (1 FORMAT y), `FORMAT z`":                  {verb: "SELECT"},
		"SELECT $a$ FORMAT x $a$, 'it''s \\' FORMAT z'":                {verb: "SELECT"},
		"INSERT INTO t FORMAT Native\n\x01\x02":                        {verb: "INSERT", format: "Native", insertData: true, head: "INSERT INTO t ", data: "\x01\x02"},
		"insert into a.b (x, `values`) settings k='FORMAT' Values (1)": {verb: "INSERT", format: "Values", insertData: true, head: "insert into a.b (x, `values`) settings k='FORMAT' ", data: " (1)"},
		"INSERT INTO format FORMAT CSV \r\n1,2":                        {verb: "INSERT", format: "CSV", insertData: true, head: "INSERT INTO format ", data: "1,2"},
		"INSERT INTO TABLE FUNCTION null('a Int8') VALUES (1)":         {verb: "INSERT", format: "Values", insertData: true, head: "INSERT INTO TABLE FUNCTION null('a Int8') ", data: " (1)"},
		"INSERT INTO t SELECT 'FORMAT' FROM x":                         {verb: "INSERT"},
		"INSERT INTO t (a) WITH 1 AS x SELECT x":                       {verb: "INSERT"},
		"INSERT INTO t (a, b)":                                         {verb: "INSERT", format: "Values", insertData: true, head: "INSERT INTO t (a, b)"},
		"INSERT INTO t FORMAT Values (1)":                              {verb: "INSERT", format: "Values", insertData: true, head: "INSERT INTO t ", data: " (1)"},
	} {
		got := parseStatement(in)
		if clause := in[got.formatStart:got.formatEnd]; formatOf(got) != strings.ToUpper(clause) {
			t.Errorf("%q: the format is said in %q", in, clause)
		}
		got.formatStart, got.formatEnd = 0, 0
		if d := cmp.Diff(want, got, cmp.AllowUnexported(statement{})); d != "" {
			t.Errorf("%q:\n%s", in, d)
		}
	}
}

// formatOf is the FORMAT of a query as it is written.
func formatOf(s statement) string {
	if s.insertData || s.format == "" {
		return ""
	}
	return strings.ToUpper("FORMAT " + s.format)
}

func TestInsertTarget(t *testing.T) {
	for head, want := range map[string]string{
		"INSERT INTO t ": "t",
		"insert into a.`b.c` (x, `y z`, n.k) settings a = 1":   "a.`b.c`: x|y z|n.k",
		"INSERT INTO TABLE FUNCTION null('a Int8, b (c)') (a)": "null('a Int8, b (c)'): a",
		"INSERT INTO FUNCTION f(g(1), 2)":                      "f(g(1), 2)",
		"INSERT INTO t (* EXCEPT a)":                           "48",
		"INSERT INTO t (a, ":                                   "48",
		"INSERT INTO":                                          "",
	} {
		target, columns, err := insertTarget(head)
		got := target
		if columns != nil {
			got += ": " + strings.Join(columns, "|")
		}
		if ex, ok := errors.AsType[*Exception](err); ok {
			got = strconv.Itoa(ex.Code)
		}
		if got != want {
			t.Errorf("%q: %s, want %s", head, got, want)
		}
	}
}

func TestWithoutFormat(t *testing.T) {
	known := map[string]bool{"json": true}
	for in, want := range map[string]string{
		"SELECT 1 FORMAT JSON SETTINGS a = 1":       "SELECT 1   SETTINGS a = 1",
		"SELECT format FROM t ORDER BY format DESC": "SELECT format FROM t ORDER BY format DESC",
		"SELECT 1": "SELECT 1",
	} {
		if got := parseStatement(in).withoutFormat(in, known); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzParseStatement(f *testing.F) {
	for _, s := range []string{"SELECT 1 FORMAT JSON", "INSERT INTO t FORMAT Native\n\x01", "INSERT INTO `a\\`b`.c (d) VALUES (1)", "$a$x$a$ '\\", "/* -- ", "INSERT INTO t SETTINGS a='b' FORMAT CSV\r\n1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		st := parseStatement(s)
		if st.insertData && (!strings.HasPrefix(s, st.head) || !strings.HasSuffix(s, st.data) || len(st.head)+len(st.data) > len(s)) {
			t.Fatalf("%q: head %q and data %q are not its two ends", s, st.head, st.data)
		}
		_, _, _ = insertTarget(s)
		_ = st.withoutFormat(s, map[string]bool{strings.ToLower(st.format): true})
		if strings.ContainsAny(st.format, " '\"`(;") {
			t.Fatalf("%q: format %q", s, st.format)
		}
	})
}

func TestQuote(t *testing.T) {
	if got := quoteString("a'b\\c\x00"); got != `'a\'b\\c\0'` {
		t.Error(got)
	}
	if got := quoteIdentifier("a`b\\"); got != "`a\\`b\\\\`" {
		t.Error(got)
	}
}

func TestGuardTree(t *testing.T) {
	g := newGuard([]string{"file", "url", "numbers", "eval", "s3Cluster"})
	for line, ok := range map[string]bool{
		"Function numbers (children 1)": true, "Function sum (children 1)": true, " Literal 'Function file'": true, "Identifier file": true,
		"   Function FILE (alias x) (children 1)": false, "Function url": false, "Function S3CLUSTER (children 1)": false, "Function eval (children 1)": false,
		"Function aiGenerate (children 1)": false, "ColumnsApplyTransformer": false, "Set": false,
	} {
		if err := g.checkTree("SelectQuery (children 1)\n" + line + "\n"); (err == nil) != ok {
			t.Errorf("%s: %v", line, err)
		}
	}
}

func TestParseException(t *testing.T) {
	for in, want := range map[string]Exception{
		"Code: 60. DB::Exception: Unknown table. (UNKNOWN_TABLE)": {60, "Unknown table. (UNKNOWN_TABLE)"},
		"Error: Code: 241. DB::Exception: x\ny":                   {241, "x\ny"},
		"something else":                                          {codeUnknownException, "something else"},
	} {
		if got := parseException(in); *got != want {
			t.Errorf("%q: %+v", in, *got)
		}
	}
}
