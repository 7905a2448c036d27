package embedded

import "strings"

// statement is what the endpoint must know of a text before the engine sees it:
// whether data follows an INSERT, and which output format a query names. Anything
// that decides about permission is left to the engine's own parser.
type statement struct {
	verb   string // first word in upper case: SELECT, INSERT, SET …
	format string // FORMAT of a query at the end of its text, or of an INSERT's data

	formatStart, formatEnd int // where a query's FORMAT and its word stand

	insertData bool   // an INSERT whose data follows: FORMAT, VALUES or neither
	head       string // that INSERT without FORMAT clause and data
	data       string // what of the data stands in the text already
}

// tokenKind is as coarse as the task allows.
type tokenKind int

const (
	tokenEnd tokenKind = iota
	tokenWord
	tokenQuoted // `x`, "x", 'x', $tag$x$tag$
	tokenOther  // one byte of anything else
)

type lexer struct {
	s   string
	pos int
}

// next returns the next token after white space and comments.
func (l *lexer) next() (kind tokenKind, start, end int) {
	s := l.s
	for l.pos < len(s) {
		c := s[l.pos]
		switch {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' || c == '\v':
			l.pos++
		case c == '#' && l.pos+1 < len(s) && (s[l.pos+1] == ' ' || s[l.pos+1] == '!'), strings.HasPrefix(s[l.pos:], "--"):
			n := strings.IndexByte(s[l.pos:], '\n')
			if n < 0 {
				n = len(s) - l.pos
			}
			l.pos += n
		case strings.HasPrefix(s[l.pos:], "/*"):
			n := strings.Index(s[l.pos+2:], "*/")
			if n < 0 {
				l.pos = len(s)
				break
			}
			l.pos += n + 4
		case c == '\'' || c == '"' || c == '`':
			start = l.pos
			l.pos = quotedEnd(s, l.pos)
			return tokenQuoted, start, l.pos
		case c == '$':
			start = l.pos
			if n := strings.IndexByte(s[l.pos+1:], '$'); n >= 0 && isWord(s[l.pos+1:l.pos+1+n]) {
				tag := s[l.pos : l.pos+n+2]
				if m := strings.Index(s[l.pos+len(tag):], tag); m >= 0 {
					l.pos += m + 2*len(tag)
					return tokenQuoted, start, l.pos
				}
			}
			l.pos++
			return tokenOther, start, l.pos
		case wordByte(c):
			start = l.pos
			for l.pos < len(s) && wordByte(s[l.pos]) {
				l.pos++
			}
			return tokenWord, start, l.pos
		default:
			l.pos++
			return tokenOther, l.pos - 1, l.pos
		}
	}
	return tokenEnd, len(s), len(s)
}

func wordByte(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}

func isWord(s string) bool {
	for i := range len(s) {
		if !wordByte(s[i]) {
			return false
		}
	}
	return true
}

// quotedEnd returns the position after the quoted text that begins at i; an
// escape is a backslash or the quote doubled.
func quotedEnd(s string, i int) int {
	q := s[i]
	for i++; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case q:
			if i+1 < len(s) && s[i+1] == q {
				i++
				continue
			}
			return i + 1
		}
	}
	return len(s)
}

// parseStatement never fails: what it does not understand is for the engine to
// refuse.
func parseStatement(s string) statement {
	l := &lexer{s: s}
	word := func() (tokenKind, string, int, int) {
		k, a, b := l.next()
		if k == tokenWord {
			return k, strings.ToUpper(s[a:b]), a, b
		}
		return k, s[a:b], a, b
	}
	var st statement
	k, w, _, _ := word()
	for k == tokenOther && w == "(" { // (SELECT …) UNION …
		k, w, _, _ = word()
	}
	if k != tokenWord {
		return st
	}
	st.verb = w
	if st.verb == "INSERT" {
		st.parseInsert(l, word)
		return st
	}
	for depth := 0; ; {
		k, w, start, _ := word()
		switch {
		case k == tokenEnd:
			return st
		case k == tokenOther && w == "(":
			depth++
		case k == tokenOther && w == ")":
			depth--
		case k == tokenWord && w == "FORMAT" && depth <= 0:
			if k, _, a, b := word(); k == tokenWord {
				st.format, st.formatStart, st.formatEnd = s[a:b], start, b
			}
		}
	}
}

// withoutFormat returns the text of a query without its FORMAT, if the word behind
// that names one of formats (in lower case): `ORDER BY format DESC` stays.
func (st statement) withoutFormat(text string, formats map[string]bool) string {
	if st.formatEnd == 0 || !formats[strings.ToLower(st.format)] {
		return text
	}
	return text[:st.formatStart] + " " + text[st.formatEnd:]
}

// insertTarget finds in the head of an INSERT what it inserts into, as DESCRIBE TABLE
// takes it, and the columns it lists; nil if it lists none.
func insertTarget(head string) (target string, columns []string, err error) {
	l := &lexer{s: head}
	kind, start, end := l.next() // INSERT
	is := func(w string) bool { return kind == tokenWord && strings.EqualFold(head[start:end], w) }
	other := func(c byte) bool { return kind == tokenOther && head[start] == c }
	next := func() { kind, start, end = l.next() }
	for next(); is("INTO") || is("TABLE"); next() {
	}
	function := is("FUNCTION")
	if function {
		next()
	}
	from, to := start, end
	for next(); other('.'); next() {
		next()
		to = end
	}
	if function {
		depth := 0
		for ; kind != tokenEnd; next() {
			if other('(') {
				depth++
			} else if other(')') {
				if depth--; depth == 0 {
					to = end
					next()
					break
				}
			}
		}
	}
	target = head[from:to]
	if !other('(') {
		return target, nil, nil
	}
	columns = []string{}
	for name := ""; ; {
		next()
		switch {
		case kind == tokenWord || other('.'):
			name += head[start:end]
		case kind == tokenQuoted:
			name += unquote(head[start:end])
		case (other(',') || other(')')) && name != "":
			if columns, name = append(columns, name), ""; head[start] == ')' {
				return target, columns, nil
			}
		default:
			return "", nil, &Exception{Code: codeNotImplemented, Message: "the columns of an INSERT over the native protocol of the embedded ClickHouse must be written out, name by name (NOT_IMPLEMENTED)"}
		}
	}
}

// parseInsert reads INSERT [INTO] [TABLE] [FUNCTION] name [(columns)] [SETTINGS …]
// up to what says where the rows come from.
func (st *statement) parseInsert(l *lexer, word func() (tokenKind, string, int, int)) {
	s := l.s
	k, w, _, _ := word()
	if k == tokenWord && w == "INTO" {
		k, w, _, _ = word()
	}
	for k == tokenWord && (w == "TABLE" || w == "FUNCTION") {
		k, w, _, _ = word()
	}
	// The name is in hand now, whatever word it is; a qualified one goes on.
	depth := 0
	for {
		k, w, a, b := word()
		switch {
		case k == tokenEnd:
			st.insertData, st.head, st.format = true, s, "Values"
			return
		case k == tokenOther && w == ".":
			word()
		case k == tokenOther && w == "(":
			depth++
		case k == tokenOther && w == ")":
			depth--
		case k != tokenWord || depth > 0:
		case w == "VALUES":
			st.insertData, st.head, st.format, st.data = true, s[:a], "Values", s[b:]
			return
		case w == "FORMAT":
			k, _, fa, fb := word()
			if k != tokenWord {
				return
			}
			if strings.EqualFold(s[fa:fb], "Values") {
				st.insertData, st.head, st.format, st.data = true, s[:a], "Values", s[fb:]
				return
			}
			st.insertData, st.head, st.format = true, s[:a], s[fa:fb]
			// The rest is data, byte for byte, after blanks and one line end.
			rest := strings.TrimLeft(s[fb:], " \t\f")
			rest = strings.TrimPrefix(rest, "\r")
			st.data = strings.TrimPrefix(rest, "\n")
			return
		case w == "SELECT" || w == "WITH" || w == "FROM" || w == "WATCH" || w == "EXPLAIN":
			return
		}
	}
}

// streamable are the formats whose output is the same whether the engine formats
// a result at once or block by block: no header, no footer, nothing between rows
// that the end of a block would lose.
var streamable = map[string]bool{
	"Native": true, "TSV": true, "TabSeparated": true, "TSVRaw": true, "TabSeparatedRaw": true,
	"CSV": true, "JSONEachRow": true, "JSONLines": true, "NDJSON": true, "JSONCompactEachRow": true,
	"JSONStringsEachRow": true, "RowBinary": true, "RawBLOB": true, "LineAsString": true,
}

// quoteString writes s as a string literal of ClickHouse.
func quoteString(s string) string {
	var b strings.Builder
	b.Grow(len(s) + 2)
	b.WriteByte('\'')
	for i := range len(s) {
		switch c := s[i]; c {
		case '\'', '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case 0:
			b.WriteString(`\0`)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('\'')
	return b.String()
}

// quoteIdentifier writes s as a quoted identifier of ClickHouse.
func quoteIdentifier(s string) string {
	return "`" + strings.NewReplacer("\\", "\\\\", "`", "\\`").Replace(s) + "`"
}
