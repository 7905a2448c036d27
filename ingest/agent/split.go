package agent

import (
	"bytes"
	"errors"
)

// Splitter cuts a stream into items, lines or JSON values: lines, with or without a carriage
// return; JSON objects a line (NDJSON); arrays of objects, or an object whose first member
// is an array `records`, as clouds write them; objects over several lines. What cannot be
// cut is given as a line, so that it costs nothing but itself.
//
// The zero value is ready, with MaxItem to be set. It looks at bytes and keeps none.
type Splitter struct {
	// MaxItem is how many bytes an item may have.
	MaxItem int

	skipping bool // the rest of an item that is too long
	array    bool // inside an array of objects
}

// ErrItemTooLong is an item beyond MaxItem: it is passed over up to its end.
var ErrItemTooLong = errors.New("the line is too long")

// Next gives the next item of buf and how many bytes of buf end with it. With n == 0 there is
// no whole item: more bytes are needed. At the end of the stream (eof) what is left is one.
// item is empty where the bytes hold none (empty lines, brackets). The error says that an
// item is passed over; n bytes are done with all the same.
func (s *Splitter) Next(buf []byte, eof bool) (item []byte, n int, err error) {
	if s.skipping {
		i := bytes.IndexByte(buf, '\n')
		if i < 0 {
			return nil, len(buf), nil
		}
		s.skipping = false
		return nil, i + 1, nil
	}
	n = s.blank(buf, eof)
	if n > 0 || len(buf) == 0 {
		return nil, n, nil
	}
	switch k := opening(buf); {
	case k < 0 && !eof:
		return nil, 0, nil
	case k > 0:
		s.array = true
		return nil, k, nil
	}
	if buf[0] == '{' && (s.array || !wholeLine(buf)) {
		switch k, broken := object(buf[:min(len(buf), s.MaxItem)]); {
		case k > 0:
			return buf[:k], k, nil
		case !broken && !eof && len(buf) <= s.MaxItem:
			return nil, 0, nil
		}
		// It does not end. Of an array in one line the next element is looked for.
		if s.array {
			if k := nextElement(buf); k > 0 {
				return buf[:k], k, nil
			}
		}
	}
	end := bytes.IndexByte(buf, '\n')
	line := buf
	if end >= 0 {
		line = buf[:end]
	}
	switch {
	case end < 0 && !eof && len(buf) <= s.MaxItem:
		return nil, 0, nil
	case len(line) > s.MaxItem:
		if end < 0 {
			s.skipping = !eof
			return nil, len(buf), ErrItemTooLong
		}
		return nil, end + 1, ErrItemTooLong
	case end < 0:
		return trim(line), len(buf), nil
	}
	return trim(line), end + 1, nil
}

// blank is how many bytes at the beginning are white space, or what stands between the
// elements of an array. Of a line of text, a tab or a comma at its beginning is an empty column.
func (s *Splitter) blank(b []byte, eof bool) int {
	i := 0
	for i < len(b) && between(b[i]) {
		i++
	}
	switch {
	case s.array, i == len(b) && eof, i < len(b) && (b[i] == '{' || b[i] == '[' || b[i] == '}'):
		return i
	}
	if line := bytes.LastIndexByte(b[:i], '\n') + 1; i == len(b) || bytes.ContainsAny(b[line:i], "\t,]") {
		return line
	}
	return i
}

func between(c byte) bool {
	return c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == ',' || c == ']'
}

// opening is how many bytes at the beginning open an array of objects, by themselves or as
// the member "records" of an object; and those that close the latter. It is below zero
// where more bytes would tell.
func opening(b []byte) int {
	switch b[0] {
	case '[':
		switch i := 1 + space(b[1:]); {
		case i == len(b):
			return -1
		case b[i] == '{' || b[i] == ']':
			return 1
		}
	case '}': // behind the array
		return 1
	case '{':
		i := 1 + space(b[1:])
		rest, ok := bytes.CutPrefix(b[i:], []byte(`"records"`))
		if !ok {
			return 0
		}
		i = len(b) - len(rest)
		i += space(b[i:])
		if i < len(b) && b[i] == ':' {
			i++
			i += space(b[i:])
			if i < len(b) && b[i] == '[' {
				return i + 1
			}
		}
	}
	return 0
}

func space(b []byte) int {
	for i, c := range b {
		if c != ' ' && c != '\t' && c != '\r' && c != '\n' {
			return i
		}
	}
	return len(b)
}

// wholeLine says whether the first line of buf begins an object and is just that object, as
// far as can be told without reading it all: where it is not, reading it will tell. A line
// whose end is far is read; looking for the end of one without any would be to look through
// all of buf for each of its objects.
func wholeLine(buf []byte) bool {
	line := buf[:min(len(buf), nearEnd)]
	if end := bytes.IndexByte(line, '\n'); end >= 0 {
		line = line[:end]
	} else if len(buf) > len(line) {
		return false
	}
	line = trim(line)
	return len(line) > 1 && line[len(line)-1] == '}' && !bytes.Contains(line, []byte(`}{`))
}

const nearEnd = 64 << 10

// nextElement is the length of what stands before the next element of an array in the same
// line; 0 if there is none.
func nextElement(b []byte) int {
	for i, c := range b {
		switch {
		case c == '\n':
			return 0
		case c == '}' && i+1 < len(b) && b[i+1] == ',':
			if k := i + 2 + space(b[i+2:]); k < len(b) && b[k] == '{' {
				return i + 1
			}
		}
	}
	return 0
}

// trim cuts white space and what stands behind an element of an array. Of a line of text, a
// tab at its end is an empty column.
func trim(line []byte) []byte {
	element := len(line) > 0 && line[0] == '{'
	for len(line) > 0 {
		switch line[len(line)-1] {
		case ' ', '\r':
		case '\t', ',', ']':
			if !element {
				return line
			}
		default:
			return line
		}
		line = line[:len(line)-1]
	}
	return line
}

// maxNesting is how deep objects and arrays may be nested in an object over several lines or in
// an array. Logs are nested some ten deep.
const maxNesting = 63

// object is the length of the JSON object that b begins with; 0 if it does not end in b.
// broken says that it never will: something stands where JSON has it not. So a line that was
// cut off is told from an object over several lines by what comes next, and neither keeps
// the lines behind it waiting nor has all of them looked through.
func object(b []byte) (n int, broken bool) {
	const (
		key   = iota // or the end of the object
		colon        // behind a key
		value        // or the end of an array
		next         // behind a value: a comma or the end
	)
	arrays := uint64(0) // a bit for each depth that is an array
	depth, want := 0, value
	for i := 0; i < len(b); i++ {
		inArray := arrays>>depth&1 != 0
		switch c := b[i]; c {
		case ' ', '\t', '\r', '\n':
		case '{', '[':
			if depth++; want != value || depth > maxNesting {
				return 0, true
			}
			if c == '[' {
				arrays, want = arrays|1<<depth, value
			} else {
				arrays, want = arrays&^(1<<depth), key
			}
		case '}', ']':
			if inArray != (c == ']') || want == colon || want == value && !inArray {
				return 0, true
			}
			if depth--; depth == 0 {
				return i + 1, false
			}
			want = next
		case ',':
			if want != next {
				return 0, true
			}
			if want = key; inArray {
				want = value
			}
		case ':':
			if want != colon {
				return 0, true
			}
			want = value
		case '"':
			switch want {
			case key:
				want = colon
			case value:
				want = next
			default:
				return 0, true
			}
			end := scanText(b, i+1)
			if end < 0 {
				return 0, false
			}
			i = end - 1
		default: // a number or a word
			if want != value {
				return 0, true
			}
			want = next
			for i+1 < len(b) && !structural(b[i+1]) {
				i++
			}
		}
	}
	return 0, false
}

// structural says whether c ends a number or a word.
func structural(c byte) bool {
	switch c {
	case ' ', '\t', '\r', '\n', ',', ':', '{', '}', '[', ']', '"':
		return true
	}
	return false
}
