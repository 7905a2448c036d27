package kafka

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/goflow2"
)

// maxJSONDepth bounds how deep values that are stepped over may nest; goflow2's
// own are one array deep.
const maxJSONDepth = 32

var (
	errJSONObject = errors.New("an object is missing; a goflow2 message begins with {")
	errJSONSyntax = errors.New("this is no JSON")
	errJSONArray  = errors.New("the array does not end")
	errJSONDeep   = fmt.Errorf("values nest deeper than %d", maxJSONDepth)
)

// What may stand where in a value.
const (
	jsonElement  = iota // an object, or the beginning or end of an array
	jsonNext            // in an array behind an object: a comma or the end
	jsonAnother         // behind the comma: an object
	jsonRecovery        // behind a line that was given up: any of them
)

// decodeJSON reads a value of objects: one, several behind each other, or arrays of
// them. What is no JSON costs its line.
func (f *Foreign) decodeJSON(value []byte, seed uint64, received flow.Time, out *flow.Batch) (refused int) {
	s := jsonScanner{b: value}
	before := len(out.Records)
	inArray, want := false, jsonElement
	for i := uint64(0); ; i++ {
		var c byte
		var more bool
		for punctuation := true; punctuation; {
			s.space()
			c, more = s.peek()
			switch {
			case !more:
				if inArray {
					f.refuseJSON(s.i, errJSONArray)
					refused++
				}
				return refused
			case c == '[' && !inArray && want != jsonNext:
				inArray, want = true, jsonElement
			case c == ']' && inArray && want != jsonAnother:
				inArray, want = false, jsonElement
			case c == ',' && inArray && (want == jsonNext || want == jsonRecovery):
				want = jsonAnother
			default:
				punctuation = false
				continue
			}
			s.i++
		}
		start, err := s.i, errJSONObject
		switch {
		case want == jsonNext:
			err = errJSONSyntax
		case c == '{':
			f.msg = goflow2.Message{}
			err = s.object(&f.msg)
		}
		want = jsonElement
		if inArray {
			want = jsonNext
		}
		switch {
		case err != nil:
			f.refuseJSON(s.i, err)
			refused++
			// An object that ends early takes what follows for its own: its line is given
			// up, and no more.
			s.i, want = len(value), jsonRecovery
			if n := bytes.IndexByte(value[start:], '\n'); n >= 0 {
				s.i = start + n
			}
		case !f.msg.Known():
			f.refuse(errForeignNoFlow)
			refused++
		case len(out.Records)-before >= maxForeignRecords:
			f.refuse(errForeignMany)
			refused++
		default:
			r := out.Next()
			r.ID = flow.Mix(seed + i)
			f.msg.Record(r, received)
		}
	}
}

// refuseJSON is refuse with the place, which only the first reason needs.
func (f *Foreign) refuseJSON(at int, reason error) {
	if f.reason == nil {
		f.reason = fmt.Errorf("JSON, byte %d: %w", at, reason)
	}
}

// jsonScanner reads JSON (RFC 8259) from the front to the back without copying.
type jsonScanner struct {
	b []byte
	i int
}

func (s *jsonScanner) space() {
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case ' ', '\t', '\r', '\n':
			s.i++
		default:
			return
		}
	}
}

func (s *jsonScanner) peek() (c byte, ok bool) {
	if s.i >= len(s.b) {
		return 0, false
	}
	return s.b[s.i], true
}

// take steps over white space and c.
func (s *jsonScanner) take(c byte) bool {
	s.space()
	if s.i < len(s.b) && s.b[s.i] == c {
		s.i++
		return true
	}
	return false
}

// scalar is a string or number, or anything else that is stepped over.
type scalar struct {
	kind byte   // '"' a string without escapes, '0' a number, 0 anything else
	text []byte // of the string between its quotes
}

// object reads an object that begins at s.i into m.
func (s *jsonScanner) object(m *goflow2.Message) error {
	if !s.take('{') {
		return errJSONObject
	}
	if s.take('}') {
		return nil
	}
	for {
		s.space()
		key, _, ok := s.str()
		if !ok || !s.take(':') {
			return errJSONSyntax
		}
		s.space()
		f, known := goflow2.FieldOf(key)
		if c, _ := s.peek(); known && f.Kind() == goflow2.Layers && c == '[' {
			if err := s.layers(m, f); err != nil {
				return err
			}
		} else {
			v, err := s.value(0)
			if err != nil {
				return err
			}
			if known {
				v.put(m, f)
			}
		}
		switch {
		case s.take(','):
		case s.take('}'):
			return nil
		default:
			return errJSONSyntax
		}
	}
}

// put gives v, the value of field f, to m; one that is not of the field's kind tells nothing.
func (v scalar) put(m *goflow2.Message, f goflow2.Field) {
	switch f.Kind() {
	case goflow2.Number:
		m.Set(f, v.text, v.kind == '"')
	case goflow2.Address:
		a, ok := v.address()
		m.SetAddr(f, a, ok)
	case goflow2.Time:
		ns, ok := v.nanoseconds()
		m.SetTime(f, ns, ok)
	case goflow2.Layers: // not as an array
		m.Set(f, nil, false)
	case goflow2.Name: // of topics, names are not read
	}
}

// layers reads the array of layer_stack, which is f.
func (s *jsonScanner) layers(m *goflow2.Message, f goflow2.Field) error {
	m.Set(f, nil, false)
	s.i++
	if s.take(']') {
		return nil
	}
	for {
		s.space()
		v, err := s.value(1)
		if err != nil {
			return err
		}
		m.Set(f, v.text, v.kind == '"')
		switch {
		case s.take(','):
		case s.take(']'):
			return nil
		default:
			return errJSONSyntax
		}
	}
}

// str reads a string that begins at s.i, its quotes excluded; escaped says that
// it holds escapes, which are left as they stand.
func (s *jsonScanner) str() (text []byte, escaped, ok bool) {
	if s.i >= len(s.b) || s.b[s.i] != '"' {
		return nil, false, false
	}
	start := s.i + 1
	for i := start; i < len(s.b); i++ {
		switch c := s.b[i]; {
		case c == '"':
			s.i = i + 1
			return s.b[start:i], escaped, true
		case c < ' ':
			s.i = i
			return nil, escaped, false
		case c == '\\':
			escaped = true
			i++
			if i >= len(s.b) {
				break
			}
			switch s.b[i] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				for range 4 {
					i++
					if i >= len(s.b) || !hexDigit(s.b[i]) {
						s.i = min(i, len(s.b))
						return nil, true, false
					}
				}
			default:
				s.i = i
				return nil, true, false
			}
		}
	}
	s.i = len(s.b)
	return nil, escaped, false
}

func hexDigit(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// value reads any value that begins at s.i; arrays and objects are stepped over.
func (s *jsonScanner) value(depth int) (v scalar, err error) {
	c, ok := s.peek()
	switch {
	case !ok:
		return v, errJSONSyntax
	case c == '"':
		text, escaped, ok := s.str()
		if !ok {
			return v, errJSONSyntax
		}
		if !escaped {
			v = scalar{'"', text}
		}
		return v, nil
	case c == '-' || '0' <= c && c <= '9':
		start := s.i
		if !s.num() {
			return v, errJSONSyntax
		}
		return scalar{'0', s.b[start:s.i]}, nil
	case c == 't':
		return v, s.literal("true")
	case c == 'f':
		return v, s.literal("false")
	case c == 'n':
		return v, s.literal("null")
	case c == '[' || c == '{':
		return v, s.skip(c, depth)
	}
	return v, errJSONSyntax
}

// skip steps over an array or object that begins at s.i.
func (s *jsonScanner) skip(open byte, depth int) error {
	if depth >= maxJSONDepth {
		return errJSONDeep
	}
	end := byte(']')
	if open == '{' {
		end = '}'
	}
	s.i++
	if s.take(end) {
		return nil
	}
	for {
		s.space()
		if open == '{' {
			if _, _, ok := s.str(); !ok || !s.take(':') {
				return errJSONSyntax
			}
			s.space()
		}
		if _, err := s.value(depth + 1); err != nil {
			return err
		}
		switch {
		case s.take(','):
		case s.take(end):
			return nil
		default:
			return errJSONSyntax
		}
	}
}

func (s *jsonScanner) literal(word string) error {
	if !bytes.HasPrefix(s.b[s.i:], []byte(word)) {
		return errJSONSyntax
	}
	s.i += len(word)
	return nil
}

// num steps over a number (RFC 8259, 6).
func (s *jsonScanner) num() bool {
	digits := func() bool {
		start := s.i
		for s.i < len(s.b) && '0' <= s.b[s.i] && s.b[s.i] <= '9' {
			s.i++
		}
		return s.i > start
	}
	if s.b[s.i] == '-' {
		s.i++
	}
	zero := s.i < len(s.b) && s.b[s.i] == '0'
	start := s.i
	if !digits() || zero && s.i > start+1 {
		return false
	}
	if c, _ := s.peek(); c == '.' {
		s.i++
		if !digits() {
			return false
		}
	}
	if c, _ := s.peek(); c == 'e' || c == 'E' {
		s.i++
		if c, _ := s.peek(); c == '+' || c == '-' {
			s.i++
		}
		return digits()
	}
	return true
}

// nanoseconds is v as a time, a number of nanoseconds or in the form of RFC 3339,
// as goflow2's renderer datetimenano prints it.
func (v scalar) nanoseconds() (uint64, bool) {
	if n, ok := goflow2.ParseNumber(v.text); ok || v.kind != '"' {
		return n, ok
	}
	var t time.Time
	if t.UnmarshalText(v.text) != nil || t.Year() < 1970 || t.Year() > 2261 {
		return 0, false
	}
	return uint64(t.UnixNano()), true
}

// address is v as an address in text form.
func (v scalar) address() (a flow.Addr, ok bool) {
	if v.kind != '"' {
		return a, false
	}
	if ip, ok := dotted(v.text); ok {
		return flow.AddrFrom4(ip), true
	}
	if len(v.text) == 0 || len(v.text) > 64 {
		return a, false
	}
	ip, err := netip.ParseAddr(string(v.text))
	return flow.AddrFromNetip(ip), err == nil
}

// dotted reads an IPv4 address in text form.
func dotted(b []byte) (ip uint32, ok bool) {
	for part := range 4 {
		n, digits := uint32(0), 0
		for digits < len(b) && digits < 3 && '0' <= b[digits] && b[digits] <= '9' {
			n = n*10 + uint32(b[digits]-'0')
			digits++
		}
		if digits == 0 || n > 255 || digits > 1 && b[0] == '0' {
			return 0, false
		}
		ip, b = ip<<8|n, b[digits:]
		if part < 3 {
			if len(b) == 0 || b[0] != '.' {
				return 0, false
			}
			b = b[1:]
		}
	}
	return ip, len(b) == 0
}
