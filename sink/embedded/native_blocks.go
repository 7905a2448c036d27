package embedded

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

const (
	maxBlockColumns = 10_000
	maxBlockRows    = 100_000_000
	maxTypeDepth    = 32
	maxValues       = 1 << 36 // of the arrays of a block; times the largest value it stays within 64 bits
)

// blockCopy copies blocks of the native protocol from one stream into another in the
// Native format (revision 0), which is what the engine takes. A block has no length
// of its own: only who knows how each type is serialized finds where it ends. Nothing
// is held in memory but the reader's and the writer's buffers; no length or count
// that the peer names makes any.
type blockCopy struct {
	in       *bufio.Reader
	out      *bufio.Writer
	revision uint64
}

// next copies a block and returns how many columns and rows it has; one without
// columns, which ends a run of blocks, is not written.
func (c *blockCopy) next() (columns, rows uint64, err error) {
	defer func() {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
	}()
	for { // what is said of the block
		field, err := binary.ReadUvarint(c.in)
		if err != nil {
			return 0, 0, err
		}
		if field == 0 {
			break
		}
		size := map[uint64]int{1: 1, 2: 4}[field] // overflows, bucket
		if size == 0 {
			return 0, 0, fmt.Errorf("field %d in a block's information", field)
		}
		if _, err := c.in.Discard(size); err != nil {
			return 0, 0, err
		}
	}
	if columns, err = binary.ReadUvarint(c.in); err != nil {
		return 0, 0, err
	}
	if rows, err = binary.ReadUvarint(c.in); err != nil {
		return 0, 0, err
	}
	if columns > maxBlockColumns || rows > maxBlockRows || columns == 0 && rows > 0 {
		return 0, 0, fmt.Errorf("a block of %d columns and %d rows; at most %d and %d are taken", columns, rows, maxBlockColumns, maxBlockRows)
	}
	if columns == 0 {
		return 0, 0, nil
	}
	c.putUvarint(columns)
	c.putUvarint(rows)
	for range columns {
		if err := c.column(rows); err != nil {
			return 0, 0, err
		}
	}
	return columns, rows, c.out.Flush()
}

func (c *blockCopy) column(rows uint64) error {
	head := packets{in: c.in, left: 2 * maxName}
	name, err := head.text(maxName)
	if err != nil {
		return err
	}
	kind, err := head.text(maxName)
	if err != nil {
		return err
	}
	if c.revision >= revisionCustom {
		own, err := c.in.ReadByte()
		if err != nil {
			return err
		}
		if own != 0 {
			return &Exception{Code: codeNotImplemented, Message: fmt.Sprintf("column %s is serialized in an own way (sparse, say); send it plainly (NOT_IMPLEMENTED)", quoteIdentifier(name))}
		}
	}
	t, err := parseType(kind, 0)
	if err != nil {
		return &Exception{Code: codeNotImplemented, Message: fmt.Sprintf("column %s: %v; send it in another type, or over HTTP (NOT_IMPLEMENTED)", quoteIdentifier(name), err)}
	}
	c.putText(name)
	c.putText(kind)
	if rows == 0 {
		return nil
	}
	if err := c.prefix(t); err != nil {
		return fmt.Errorf("column %s: %w", quoteIdentifier(name), err)
	}
	if err := c.data(t, rows); err != nil {
		return fmt.Errorf("column %s: %w", quoteIdentifier(name), err)
	}
	return nil
}

func (c *blockCopy) putUvarint(v uint64) {
	var b [binary.MaxVarintLen64]byte
	_, _ = c.out.Write(b[:binary.PutUvarint(b[:], v)]) // an error stays with the writer
}

func (c *blockCopy) putText(s string) {
	c.putUvarint(uint64(len(s)))
	_, _ = c.out.WriteString(s)
}

// bytes copies n bytes.
func (c *blockCopy) bytes(n uint64) error {
	for n > 0 {
		if c.in.Buffered() == 0 {
			if _, err := c.in.Peek(1); err != nil {
				return err
			}
		}
		b, err := c.in.Peek(int(min(uint64(c.in.Buffered()), n)))
		if err != nil {
			return err
		}
		if _, err := c.out.Write(b); err != nil {
			return err
		}
		n -= uint64(len(b))
		if _, err := c.in.Discard(len(b)); err != nil {
			return err
		}
	}
	return nil
}

// number copies eight bytes and returns them as a number.
func (c *blockCopy) number() (uint64, error) {
	b, err := c.in.Peek(8)
	if err != nil {
		return 0, err
	}
	v := binary.LittleEndian.Uint64(b)
	return v, c.bytes(8)
}

// prefix copies what the serialization says before the data of a column.
func (c *blockCopy) prefix(t valueType) error {
	if t.kind == lowCardinality {
		if v, err := c.number(); err != nil || v != 1 {
			return errors.Join(err, fmt.Errorf("version %d of a dictionary where 1 was expected", v))
		}
		return nil
	}
	for _, p := range t.parts {
		if err := c.prefix(p); err != nil {
			return err
		}
	}
	return nil
}

// data copies rows values.
func (c *blockCopy) data(t valueType, rows uint64) error {
	switch t.kind {
	case fixed:
		return c.bytes(rows * t.size)
	case varied:
		for range rows {
			n, err := binary.ReadUvarint(c.in)
			if err != nil {
				return err
			}
			c.putUvarint(n)
			if err := c.bytes(n); err != nil {
				return err
			}
		}
		return nil
	case nullable:
		if err := c.bytes(rows); err != nil {
			return err
		}
		return c.data(t.parts[0], rows)
	case array:
		var end uint64
		for range rows {
			v, err := c.number()
			if err != nil {
				return err
			}
			if v < end || v > maxValues {
				return fmt.Errorf("an array that ends at %d behind one that ends at %d; at most %d is taken", v, end, uint64(maxValues))
			}
			end = v
		}
		return c.data(t.parts[0], end)
	case tuple:
		for _, p := range t.parts {
			if err := c.data(p, rows); err != nil {
				return err
			}
		}
		return nil
	case lowCardinality:
		return c.dictionary(t.parts[0], rows)
	}
	return fmt.Errorf("no such kind of type: %d", t.kind)
}

// dictionary copies a column of keys and positions among them.
func (c *blockCopy) dictionary(keys valueType, rows uint64) error {
	const additionalKeys, globalDictionary = 1 << 9, 1 << 8
	for rows > 0 {
		flags, err := c.number()
		if err != nil {
			return err
		}
		if flags&globalDictionary != 0 || flags&additionalKeys == 0 || flags&0xff > 3 {
			return fmt.Errorf("a dictionary of kind %#x", flags)
		}
		n, err := c.number()
		if err != nil {
			return err
		}
		if n > maxBlockRows {
			return fmt.Errorf("a dictionary of %d keys", n)
		}
		if err := c.data(keys, n); err != nil {
			return err
		}
		if n, err = c.number(); err != nil {
			return err
		}
		if n == 0 || n > rows {
			return fmt.Errorf("a dictionary for %d rows where %d are left", n, rows)
		}
		if err := c.bytes(n << (flags & 0xff)); err != nil {
			return err
		}
		rows -= n
	}
	return nil
}

// valueType is what must be known of a type to find the end of its values.
type valueType struct {
	kind  typeKind
	size  uint64 // of a fixed value, in bytes; never 0
	parts []valueType
}

type typeKind int

const (
	fixed          typeKind = iota
	varied                  // a length and as many bytes
	nullable                // a byte a row, then the values
	array                   // an offset a row, then the values
	tuple                   // one column after the other
	lowCardinality          // keys and positions
)

// fixedSizes of values, by the name of the type in front of any parentheses.
var fixedSizes = map[string]uint64{
	"Int8": 1, "UInt8": 1, "Bool": 1, "Enum8": 1, "Nothing": 1,
	"Int16": 2, "UInt16": 2, "Enum16": 2, "Date": 2, "BFloat16": 2,
	"Int32": 4, "UInt32": 4, "Float32": 4, "Date32": 4, "DateTime": 4, "Time": 4, "IPv4": 4, "Decimal32": 4,
	"Int64": 8, "UInt64": 8, "Float64": 8, "DateTime64": 8, "Time64": 8, "Decimal64": 8,
	"Int128": 16, "UInt128": 16, "UUID": 16, "IPv6": 16, "Decimal128": 16,
	"Int256": 32, "UInt256": 32, "Decimal256": 32,
}

// longNames are types that are others by another name.
var longNames = map[string]string{
	"Point": "Tuple(Float64, Float64)", "Ring": "Array(Point)", "LineString": "Array(Point)",
	"MultiLineString": "Array(LineString)", "Polygon": "Array(Ring)", "MultiPolygon": "Array(Polygon)",
}

// parseType reads the name of a type as blocks carry it.
func parseType(name string, depth int) (valueType, error) {
	unknown := fmt.Errorf("the type %.100q is not known to the native protocol of the embedded ClickHouse", name)
	if depth > maxTypeDepth {
		return valueType{}, errors.New("a type nested too deep")
	}
	head, rest, has := strings.Cut(name, "(")
	var args []string
	if has {
		inner, ok := strings.CutSuffix(rest, ")")
		if !ok {
			return valueType{}, unknown
		}
		args = splitArguments(inner)
	}
	if long, ok := longNames[name]; ok {
		return parseType(long, depth+1)
	}
	if size, ok := fixedSizes[head]; ok {
		return valueType{kind: fixed, size: size}, nil
	}
	if strings.HasPrefix(head, "Interval") && !has {
		return valueType{kind: fixed, size: 8}, nil
	}
	of := func(kind typeKind, names ...string) (valueType, error) {
		t := valueType{kind: kind}
		for _, n := range names {
			p, err := parseType(n, depth+1)
			if err != nil {
				return valueType{}, err
			}
			t.parts = append(t.parts, p)
		}
		return t, nil
	}
	switch {
	case name == "String":
		return valueType{kind: varied}, nil
	case head == "FixedString" && len(args) == 1:
		n, err := strconv.ParseUint(args[0], 10, 20)
		if err != nil || n == 0 {
			return valueType{}, unknown
		}
		return valueType{kind: fixed, size: n}, nil
	case head == "Decimal" && len(args) >= 1:
		p, err := strconv.Atoi(args[0])
		for _, w := range []struct {
			digits int
			size   uint64
		}{{9, 4}, {18, 8}, {38, 16}, {76, 32}} {
			if err == nil && p >= 1 && p <= w.digits {
				return valueType{kind: fixed, size: w.size}, nil
			}
		}
	case head == "Nullable" && len(args) == 1:
		return of(nullable, args[0])
	case head == "Array" && len(args) == 1:
		return of(array, args[0])
	case head == "LowCardinality" && len(args) == 1:
		// NULL is one of the keys.
		key := args[0]
		if n, ok := strings.CutPrefix(key, "Nullable("); ok {
			key = strings.TrimSuffix(n, ")")
		}
		t, err := of(lowCardinality, key)
		if err == nil && t.parts[0].kind != fixed && t.parts[0].kind != varied {
			return valueType{}, unknown
		}
		return t, err
	case head == "SimpleAggregateFunction" && len(args) == 2:
		return parseType(args[1], depth+1)
	case head == "Tuple" && len(args) > 0, head == "Nested" && len(args) > 0:
		for i := range args {
			args[i] = withoutName(args[i])
		}
		t, err := of(tuple, args...)
		if head == "Nested" {
			t = valueType{kind: array, parts: []valueType{t}}
		}
		return t, err
	case head == "Map" && len(args) == 2:
		t, err := of(tuple, args...)
		return valueType{kind: array, parts: []valueType{t}}, err
	}
	return valueType{}, unknown
}

// splitArguments cuts at the commas outside of parentheses and quotes.
func splitArguments(s string) (out []string) {
	depth, from := 0, 0
	for l := (&lexer{s: s}); ; {
		k, a, b := l.next()
		switch {
		case k == tokenEnd:
			return append(out, strings.TrimSpace(s[from:]))
		case k != tokenOther:
		case s[a] == '(':
			depth++
		case s[a] == ')':
			depth--
		case s[a] == ',' && depth == 0:
			out = append(out, strings.TrimSpace(s[from:a]))
			from = b
		}
	}
}

// withoutName takes the name off an element of a tuple, if it has one.
func withoutName(s string) string {
	l := &lexer{s: s}
	if k, _, end := l.next(); k == tokenWord || k == tokenQuoted {
		if k, start, _ := l.next(); k == tokenWord && start > end {
			return s[start:]
		}
	}
	return s
}
