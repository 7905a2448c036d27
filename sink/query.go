package sink

import (
	"bufio"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/big"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/jedib0t/go-pretty/v6/table"
	prettytext "github.com/jedib0t/go-pretty/v6/text"

	"github.com/postern/postern/flow"
)

// Format is how Query writes rows.
type Format string

// The formats.
const (
	// FormatTable is for people: aligned columns, control characters escaped, at most [MaxTableRows] rows.
	FormatTable Format = "table"
	// FormatJSON is one object a line. 64-bit integers are numbers; readers that
	// hold numbers as float64 lose digits beyond 2^53.
	FormatJSON Format = "json"
	// FormatCSV is RFC 4180 with a line of names.
	FormatCSV Format = "csv"
)

// MaxTableRows bounds a table, which must be held in memory to be aligned.
const MaxTableRows = 10_000

// Query runs one statement of SQL with the database of the configuration as
// the default and writes its rows to w. Any type ClickHouse can send is
// written; what stands in arrays, tuples and maps is written as JSON within a
// table's cell or a CSV field.
func (db *ClickHouse) Query(ctx context.Context, sql string, format Format, w io.Writer) error {
	return db.query(ctx, sql, nil, format, w)
}

func (db *ClickHouse) query(ctx context.Context, sql string, args []any, format Format, w io.Writer) error {
	var out rowWriter
	buffered := bufio.NewWriterSize(w, 64<<10)
	switch format {
	case FormatTable:
		out = &tableWriter{w: buffered}
	case FormatJSON:
		out = &jsonRows{w: buffered}
	case FormatCSV:
		out = &csvRows{w: csv.NewWriter(buffered)}
	default:
		return fmt.Errorf("format %q is not known; use table, json or csv", format)
	}
	sql = strings.TrimRight(strings.TrimSpace(sql), ";")
	if sql == "" {
		return fmt.Errorf("no SQL; write a statement such as SELECT count() FROM flows")
	}
	opt := db.options
	opt.Auth.Database = db.cfg.Database
	opt.MaxOpenConns, opt.MaxIdleConns = 1, 1
	conn, err := clickhouse.Open(&opt)
	if err != nil {
		return db.redact(err)
	}
	defer conn.Close() //nolint:errcheck // nothing is buffered in it
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return db.redact(err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	if err := writeRows(rows, out); err != nil {
		return db.redact(err)
	}
	return buffered.Flush()
}

type rowWriter interface {
	head(names []string, types []string)
	row(values []any) error
	end() error
}

func writeRows(rows driver.Rows, out rowWriter) error {
	types := rows.ColumnTypes()
	names, kinds, dest := make([]string, len(types)), make([]string, len(types)), make([]any, len(types))
	for i, t := range types {
		names[i], kinds[i] = t.Name(), t.DatabaseTypeName()
		dest[i] = reflect.New(t.ScanType()).Interface()
	}
	if len(types) > 0 {
		out.head(names, kinds)
	}
	values := make([]any, len(types))
	for rows.Next() {
		for i := range dest { // a NULL must not leave the value of the row before
			reflect.ValueOf(dest[i]).Elem().SetZero()
		}
		if err := rows.Scan(dest...); err != nil {
			return err
		}
		for i := range dest {
			values[i] = plain(reflect.ValueOf(dest[i]).Elem(), kinds[i])
		}
		if err := out.row(values); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	return out.end()
}

// number is a decimal number as text, more exact than a float64.
type number string

// object is a JSON object whose members keep their order.
type object []member

type member struct {
	name  string
	value any
}

// plain turns what the driver scanned into nil, bool, int64, uint64, float64,
// *big.Int, number, string, []any or object. kind is ClickHouse's name of the type.
func plain(v reflect.Value, kind string) any {
	for v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
		if v.IsNil() {
			return nil
		}
		if b, ok := reflect.TypeAssert[*big.Int](v); ok {
			return b
		}
		v = v.Elem()
	}
	if !v.IsValid() {
		return nil
	}
	switch x := v.Interface().(type) {
	case time.Time:
		return instantText(x, kind)
	case net.IP:
		if a, ok := netip.AddrFromSlice(x); ok {
			return a.Unmap().String()
		}
		return ""
	case big.Int:
		return new(big.Int).Set(&x)
	case fmt.Stringer:
		if strings.HasPrefix(within(kind, "Nullable"), "Decimal") {
			return number(x.String())
		}
		return x.String()
	case []byte:
		if !strings.HasPrefix(kind, "Array(") {
			return string(x)
		}
	}
	switch v.Kind() {
	case reflect.Bool:
		return v.Bool()
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return v.Int()
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return v.Uint()
	case reflect.Float32:
		f, _ := strconv.ParseFloat(strconv.FormatFloat(v.Float(), 'g', -1, 32), 64)
		return f
	case reflect.Float64:
		return v.Float()
	case reflect.String:
		return v.String()
	case reflect.Slice, reflect.Array:
		inner := within(kind, "Array")
		list := make([]any, v.Len())
		for i := range list {
			list[i] = plain(v.Index(i), inner)
		}
		return list
	case reflect.Map:
		o := object{}
		for _, k := range v.MapKeys() {
			o = append(o, member{text(plain(k, "")), plain(v.MapIndex(k), "")})
		}
		slices.SortFunc(o, func(a, b member) int { return strings.Compare(a.name, b.name) })
		return o
	case reflect.Struct:
		o := object{}
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				o = append(o, member{f.Name, plain(v.Field(i), "")})
			}
		}
		return o
	}
	return fmt.Sprint(v.Interface())
}

// within is T of wrapper(T), or kind itself.
func within(kind, wrapper string) string {
	if s, ok := strings.CutPrefix(kind, wrapper+"("); ok {
		return strings.TrimSuffix(s, ")")
	}
	return kind
}

func instantText(t time.Time, kind string) string {
	kind = within(within(kind, "LowCardinality"), "Nullable")
	switch {
	case strings.HasPrefix(kind, "DateTime64(3"):
		return t.UTC().Format("2006-01-02T15:04:05.000Z")
	case strings.HasPrefix(kind, "DateTime64"):
		return t.UTC().Format(time.RFC3339Nano)
	case strings.HasPrefix(kind, "DateTime"):
		return t.UTC().Format(time.RFC3339)
	case strings.HasPrefix(kind, "Date"):
		return t.Format(time.DateOnly)
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// text is a value without structure as it stands in a table or CSV; structure is JSON.
func text(v any) string {
	switch x := v.(type) {
	case nil:
		return ""
	case string:
		return x
	case []any, object:
		return string(appendValue(nil, x))
	case float64:
		return strconv.FormatFloat(x, 'g', -1, 64)
	}
	return fmt.Sprint(v)
}

func appendValue(b []byte, v any) []byte {
	switch x := v.(type) {
	case nil:
		return append(b, "null"...)
	case bool:
		return strconv.AppendBool(b, x)
	case int64:
		return strconv.AppendInt(b, x, 10)
	case uint64:
		return strconv.AppendUint(b, x, 10)
	case float64:
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return append(b, "null"...) // JSON has no such numbers
		}
		j, _ := json.Marshal(x)
		return append(b, j...)
	case *big.Int:
		return x.Append(b, 10)
	case number:
		return append(b, x...)
	case []any:
		b = append(b, '[')
		for i, e := range x {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendValue(b, e)
		}
		return append(b, ']')
	case object:
		b = append(b, '{')
		for i, m := range x {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(flow.AppendJSONString(b, m.name), ':')
			b = appendValue(b, m.value)
		}
		return append(b, '}')
	}
	return flow.AppendJSONString(b, text(v))
}

type jsonRows struct {
	w     *bufio.Writer
	names []string
	buf   []byte
}

func (j *jsonRows) head(names, _ []string) { j.names = names }
func (j *jsonRows) end() error             { return nil }

func (j *jsonRows) row(values []any) error {
	o := make(object, len(values))
	for i, v := range values {
		o[i] = member{j.names[i], v}
	}
	j.buf = append(appendValue(j.buf[:0], o), '\n')
	_, err := j.w.Write(j.buf)
	return err
}

type csvRows struct {
	w      *csv.Writer
	fields []string
}

func (c *csvRows) head(names, _ []string) {
	c.fields = make([]string, len(names))
	_ = c.w.Write(names) // an error comes again at end
}

func (c *csvRows) row(values []any) error {
	for i, v := range values {
		c.fields[i] = text(v)
	}
	return c.w.Write(c.fields)
}

func (c *csvRows) end() error {
	c.w.Flush()
	return c.w.Error()
}

type tableWriter struct {
	w       io.Writer
	t       table.Writer
	rows    int
	dropped int
}

func (t *tableWriter) head(names, kinds []string) {
	t.t = table.NewWriter()
	style := table.StyleLight
	style.Options.SeparateRows = false
	style.Format.Header = prettytext.FormatDefault // names as they are, since they are what one writes in SQL
	t.t.SetStyle(style)
	row := make(table.Row, len(names))
	var configs []table.ColumnConfig
	for i, n := range names {
		row[i] = Visible(n)
		if k := within(kinds[i], "Nullable"); strings.HasPrefix(k, "UInt") || strings.HasPrefix(k, "Int") || strings.HasPrefix(k, "Float") || strings.HasPrefix(k, "Decimal") {
			configs = append(configs, table.ColumnConfig{Number: i + 1, Align: prettytext.AlignRight, AlignHeader: prettytext.AlignRight})
		}
	}
	t.t.SetColumnConfigs(configs)
	t.t.AppendHeader(row)
}

func (t *tableWriter) row(values []any) error {
	if t.rows >= MaxTableRows {
		t.dropped++
		return nil
	}
	t.rows++
	row := make(table.Row, len(values))
	for i, v := range values {
		if row[i] = Visible(text(v)); v == nil {
			row[i] = "NULL"
		}
	}
	t.t.AppendRow(row)
	return nil
}

func (t *tableWriter) end() error {
	if t.t != nil { // over HTTP an answer without rows has no columns either
		if _, err := fmt.Fprintln(t.w, t.t.Render()); err != nil {
			return err
		}
	}
	unit := "rows"
	if t.rows == 1 {
		unit = "row"
	}
	_, err := fmt.Fprintf(t.w, "%d %s\n", t.rows, unit)
	if t.dropped > 0 && err == nil {
		_, err = fmt.Fprintf(t.w, "%d more not shown; use json or csv for all of them\n", t.dropped)
	}
	return err
}

// Visible makes a string safe to show on a terminal: control characters,
// direction overrides and bytes that are no UTF-8 are shown as escapes instead of
// acted upon.
func Visible(s string) string {
	clean := func(r rune) bool { return unicode.IsPrint(r) }
	if utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !clean(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case clean(r):
			b.WriteString(s[i : i+n])
		default:
			q := strconv.QuoteRuneToASCII(r)
			b.WriteString(q[1 : len(q)-1])
		}
		i += n
	}
	return b.String()
}
