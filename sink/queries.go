package sink

import (
	"cmp"
	"context"
	"embed"
	"fmt"
	"io"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
)

//go:embed queries/*.sql
var queryFiles embed.FS

// NamedQuery is a question that people ask, kept as SQL with parameters: queries/NAME.sql. The file
// begins with comments: the question, remarks, and a line for each parameter,
//
//	-- param NAME [= DEFAULT]: MEANING[; for example VALUE]
//
// whose type is that of {NAME:TYPE} in the SQL. A default may be now (a DateTime) or yesterday (a Date).
type NamedQuery struct {
	Name     string
	Question string // one sentence
	Notes    string // what an answer does and does not say; paragraphs as in the file, may be empty
	Params   []QueryParam
	SQL      string
}

// QueryParam is a parameter of a named query.
type QueryParam struct {
	Name    string
	Type    string // as ClickHouse writes it
	Default string // empty if Required
	// Required parameters have no default.
	Required bool
	Meaning  string
	Example  string // a value; the default where the file gives none
}

// NamedQueries lists the questions by name. The caller must not write to them.
var NamedQueries = sync.OnceValue(func() []NamedQuery {
	files, err := queryFiles.ReadDir("queries")
	if err != nil {
		panic("sink: " + err.Error())
	}
	var out []NamedQuery
	for _, f := range files { // sorted by name
		text, err := queryFiles.ReadFile("queries/" + f.Name())
		if err != nil {
			panic("sink: " + err.Error())
		}
		q, err := readNamedQuery(f.Name(), string(text))
		if err != nil {
			panic("sink: " + err.Error())
		}
		out = append(out, q)
	}
	return out
})

// FindNamedQuery gives the question of a name.
func FindNamedQuery(name string) (*NamedQuery, error) {
	all := NamedQueries()
	if i := slices.IndexFunc(all, func(q NamedQuery) bool { return q.Name == name }); i >= 0 {
		return &all[i], nil
	}
	return nil, fmt.Errorf("there is no query %q; postern query --list shows them, and SQL is written with spaces", name)
}

var (
	paramLine  = regexp.MustCompile(`^param (\w+)(?: = ([^:]+))?: (.+?)(?:; for example (.+))?$`)
	paramInSQL = regexp.MustCompile(`\{(\w+):([^{}]+)\}`)
)

// readNamedQuery reads a file; line numbers in its errors count from 1.
func readNamedQuery(file, text string) (NamedQuery, error) {
	q := NamedQuery{Name: strings.TrimSuffix(path.Base(file), ".sql")}
	lines := strings.Split(strings.TrimSpace(text), "\n")
	var notes []string
	n := 0
	for ; n < len(lines) && strings.HasPrefix(lines[n], "--"); n++ {
		line := strings.TrimPrefix(strings.TrimPrefix(lines[n], "--"), " ")
		switch {
		case n == 0:
			q.Question = line
		case strings.HasPrefix(line, "param "):
			m := paramLine.FindStringSubmatch(line)
			if m == nil {
				return q, fmt.Errorf("%s:%d: a parameter that cannot be read; write -- param NAME = DEFAULT: MEANING", file, n+1)
			}
			q.Params = append(q.Params, QueryParam{Name: m[1], Default: m[2], Required: m[2] == "", Meaning: m[3], Example: cmp.Or(m[4], m[2])})
		default:
			notes = append(notes, line)
		}
	}
	q.Notes, q.SQL = strings.TrimSpace(strings.Join(notes, "\n")), strings.Join(lines[n:], "\n")
	if !strings.HasSuffix(q.Question, "?") || q.SQL == "" {
		return q, fmt.Errorf("%s:1: want a question as the first comment and SQL after the comments", file)
	}
	types := parameterTypes(q.SQL)
	for i := range q.Params {
		p := &q.Params[i]
		if p.Type = types[p.Name]; p.Type == "" {
			return q, fmt.Errorf("%s: the SQL has no {%s:TYPE}", file, p.Name)
		}
		delete(types, p.Name)
	}
	for name := range types {
		return q, fmt.Errorf("%s: nothing is said of the parameter %s; write -- param %s: MEANING", file, name, name)
	}
	return q, nil
}

// parameterTypes are the types of the parameters that a statement names.
func parameterTypes(sql string) map[string]string {
	types := map[string]string{}
	for _, m := range paramInSQL.FindAllStringSubmatch(sql, -1) {
		types[m[1]] = m[2]
	}
	return types
}

// Bind completes the values given for the parameters with the defaults as of now and checks them.
func (q *NamedQuery) Bind(given map[string]string, now time.Time) (map[string]string, error) {
	out := map[string]string{}
	for _, p := range q.Params {
		v, ok := given[p.Name]
		switch {
		case !ok && p.Required:
			return nil, fmt.Errorf("query %s needs %s (%s); write --param %s=%s", q.Name, p.Name, p.Meaning, p.Name, p.Example)
		case !ok:
			v = p.Default
		}
		v, err := p.value(v, now)
		if err != nil {
			return nil, fmt.Errorf("query %s: %w", q.Name, err)
		}
		out[p.Name] = v
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if _, known := out[name]; !known {
			return nil, fmt.Errorf("query %s has no parameter %s; it has %s", q.Name, name, strings.Join(q.parameterNames(), ", "))
		}
	}
	return out, nil
}

func (q *NamedQuery) parameterNames() []string {
	names := make([]string, len(q.Params))
	for i, p := range q.Params {
		names[i] = p.Name
	}
	return names
}

// value is v as ClickHouse reads it for the parameter's type.
func (p *QueryParam) value(v string, now time.Time) (string, error) {
	switch {
	case strings.HasPrefix(p.Type, "DateTime"):
		if v == "now" {
			return now.UTC().Format(time.DateTime), nil
		}
		for _, layout := range []string{time.RFC3339, time.DateTime, time.DateOnly} {
			if t, err := time.Parse(layout, v); err == nil {
				return t.UTC().Format(time.DateTime), nil
			}
		}
		return "", fmt.Errorf("%s is %q; write a time as 2026-10-01T09:00:00Z, a day as 2026-10-01, or now", p.Name, v)
	case p.Type == "Date":
		if v == "yesterday" {
			return now.UTC().AddDate(0, 0, -1).Format(time.DateOnly), nil
		}
		if _, err := time.Parse(time.DateOnly, v); err != nil {
			return "", fmt.Errorf("%s is %q; write a day as 2026-10-01, or yesterday", p.Name, v)
		}
	case p.Type == "UInt16":
		if _, err := strconv.ParseUint(v, 10, 16); err != nil {
			return "", fmt.Errorf("%s is %q; write a whole number from 0 to 65535", p.Name, v)
		}
	}
	return v, nil
}

// QueryWith is [ClickHouse.Query] of a statement with parameters, {name:Type} in its text. Values
// travel beside the statement and are never part of it.
func (db *ClickHouse) QueryWith(ctx context.Context, sql string, params map[string]string, format Format, w io.Writer) error {
	types := parameterTypes(sql)
	var args []any
	for _, name := range slices.Sorted(maps.Keys(params)) {
		if types[name] == "" {
			return fmt.Errorf("the statement has no parameter %s; write {%s:String} where its value belongs", name, name)
		}
		args = append(args, clickhouse.Named(name, params[name]))
	}
	return db.query(ctx, sql, args, format, w)
}
