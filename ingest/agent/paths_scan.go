package agent

import "bytes"

// What fastjson is to make a tree of, only to be looked through once, is scanned here instead:
// the line is checked and passed over, and what is at places taken out of it. What is not plain
// is left to fastjson, so that there is one reader that decides: lines that it would refuse, and
// texts with escapes.

const (
	maxScanDepth = 64
	// maxScanValue bounds a value that fastjson reads: each place has a parser, which keeps
	// what memory it took.
	maxScanValue = 1 << 10
)

// scan looks through a line that is a JSON object, as [found.read] does through the tree of
// it. It gives up on what is not plain, and on every line that fastjson would refuse: that is
// false, and the line is to be read whole.
func (f *found) scan(line []byte) bool {
	if f.paths.lists {
		return false
	}
	f.begin()
	i := blankFrom(line, 0)
	if i == len(line) || line[i] != '{' {
		return false
	}
	i = f.scanObject(&f.paths.root, line, i+1, 1)
	return i >= 0 && blankFrom(line, i) == len(line)
}

// blankFrom is where white space ends that may begin at i.
func blankFrom(b []byte, i int) int {
	for i < len(b) && b[i] <= ' ' && (b[i] == ' ' || b[i] == '\n' || b[i] == '\t' || b[i] == '\r') {
		i++
	}
	return i
}

// scanObject passes over an object from behind its brace and gives where it ends, -1 if the scan
// gives up. Where nothing of it is looked for, n is nil.
func (f *found) scanObject(n *pathNode, b []byte, i, depth int) int {
	if i = blankFrom(b, i); i < len(b) && b[i] == '}' {
		return i + 1
	}
	for {
		if i == len(b) || b[i] != '"' {
			return -1
		}
		i++
		k := i
		for k < len(b) && b[k] != '"' {
			if b[k] == '\\' {
				return -1
			}
			k++
		}
		key := b[i:k]
		if i = blankFrom(b, min(k+1, len(b))); i == len(b) || b[i] != ':' {
			return -1
		}
		var e *pathEdge
		if n != nil && len(key) < len(n.byLength) {
			for _, c := range n.byLength[len(key)] {
				if string(key) == c.key {
					e = c
					break
				}
			}
		}
		from := blankFrom(b, i+1)
		if i = f.scanMember(e, b, from, depth); i < 0 {
			return -1
		}
		if i = blankFrom(b, i); i == len(b) {
			return -1
		}
		switch b[i] {
		case ',':
			i = blankFrom(b, i+1)
		case '}':
			return i + 1
		default:
			return -1
		}
	}
}

// scanMember passes over the value of a member, and notes it where it is looked for.
func (f *found) scanMember(e *pathEdge, b []byte, from, depth int) (to int) {
	if e == nil {
		return f.scanValue(nil, b, from, depth)
	}
	if !f.first(e) {
		return -1 // two of a name
	}
	to = f.scanValue(e.next, b, from, depth)
	if to < 0 || e.place < 0 || !f.better(e) {
		return to
	}
	raw := b[from:to]
	v := value{text: raw}
	switch c := raw[0]; {
	case c == 'n':
	case c == 't' || c == 'f':
		v.kind = valueTruth
	case c == '"' && bytes.IndexByte(raw, '\\') < 0:
		v.kind, v.text = valueText, raw[1:len(raw)-1]
	case c == '"' || c == '[' || c == '{':
		if len(raw) > maxScanValue {
			return -1
		}
		tree, err := f.parsers[e.place].ParseBytes(raw)
		if err != nil {
			return -1
		}
		v = f.value(tree)
	default:
		v.kind = valueNumber
	}
	f.note(e, v)
	return to
}

// scanValue passes over a value; n is what is looked for if it is an object.
func (f *found) scanValue(n *pathNode, b []byte, i, depth int) int {
	if i == len(b) || depth > maxScanDepth {
		return -1
	}
	switch b[i] {
	case '"':
		return scanText(b, i+1)
	case '{':
		return f.scanObject(n, b, i+1, depth+1)
	case '[':
		if i = blankFrom(b, i+1); i < len(b) && b[i] == ']' {
			return i + 1
		}
		for {
			if i = f.scanValue(nil, b, i, depth+1); i < 0 {
				return -1
			}
			if i = blankFrom(b, i); i == len(b) {
				return -1
			}
			switch b[i] {
			case ',':
				i = blankFrom(b, i+1)
			case ']':
				return i + 1
			default:
				return -1
			}
		}
	case 't':
		return scanWord(b, i, "true")
	case 'f':
		return scanWord(b, i, "false")
	case 'n':
		return scanWord(b, i, "null")
	}
	// A number, as widely as fastjson takes it but for its first digit.
	if b[i] == '-' {
		i++
	}
	if i == len(b) || b[i] < '0' || b[i] > '9' {
		return -1
	}
	for i < len(b) && (b[i] >= '0' && b[i] <= '9' || b[i] == '.' || b[i] == '-' || b[i] == '+' || b[i] == 'e' || b[i] == 'E') {
		i++
	}
	return i
}

func scanWord(b []byte, i int, word string) int {
	if !bytes.HasPrefix(b[i:], []byte(word)) {
		return -1
	}
	return i + len(word)
}

// scanText gives the place behind a text that begins behind its quote at i; below zero if its
// end is not in b.
func scanText(b []byte, i int) int {
	for from := i; ; {
		k := bytes.IndexByte(b[i:], '"')
		if k < 0 {
			return -1
		}
		i += k + 1
		back := 0
		for j := i - 2; j >= from && b[j] == '\\'; j-- {
			back++
		}
		if back%2 == 0 {
			return i
		}
	}
}
