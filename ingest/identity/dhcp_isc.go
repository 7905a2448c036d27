package identity

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/postern/postern/flow"
)

// newISCFile follows the lease file of ISC dhcpd, dhcpd.leases or dhcpd6.leases (its
// manual page dhcpd.leases(5)). Every change of a lease is a declaration at the file's
// end that replaces the earlier one of the address. From time to time the server writes
// a new file with the last declaration of each and keeps the one before as dhcpd.leases~.
func newISCFile(l leases, path string) *leaseFile {
	return &leaseFile{
		leases: l, path: path,
		older: func() []string {
			if before := path + "~"; exists(before) {
				return []string{before}
			}
			return nil
		},
		parse: func(file string) leaseParser { return &iscParser{file: file} },
	}
}

// iscParser reads one file of dhcpd's.
type iscParser struct {
	file string
	line int // lines before what parse is given next
}

func (p *iscParser) parse(b []byte, entry func(lease) error, bad func(error)) (n int, err error) {
	for {
		// Blanks and comments.
		start := n
		for start < len(b) && (b[start] <= ' ' || b[start] == '#') {
			if b[start] == '#' {
				end := bytes.IndexByte(b[start:], '\n')
				if end < 0 {
					return p.took(b, n, start), nil
				}
				start += end
			}
			start++
		}
		n = p.took(b, n, start)
		end, whole, found := iscStatement(b[start:])
		if !found {
			return n, nil
		}
		if !whole {
			bad(fmt.Errorf("%s:%d: a declaration is broken off", p.file, p.line+1))
		} else if err := p.statement(b[start:start+end], entry, bad); err != nil {
			return n, err
		}
		n = p.took(b, n, start+end)
	}
}

// took counts the lines of b[from:to] and gives to.
func (p *iscParser) took(b []byte, from, to int) int {
	p.line += bytes.Count(b[from:to], []byte{'\n'})
	return to
}

// iscStatement finds the end of the statement that b begins with. found is false while
// its end has not been written; whole is false where another declaration begins at the
// start of a line within it, which happens after a crash in the middle of writing.
func iscStatement(b []byte) (end int, whole, found bool) {
	depth, inText := 0, false
	for i := 0; i < len(b); i++ {
		c := b[i]
		switch {
		case c == '\n':
			if rest := b[i+1:]; bytes.HasPrefix(rest, []byte("lease ")) || bytes.HasPrefix(rest, []byte("ia-")) {
				return i + 1, false, true
			}
		case inText && c == '\\':
			i++
		case c == '"':
			inText = !inText
		case inText:
		case c == '#':
			next := bytes.IndexByte(b[i:], '\n')
			if next < 0 {
				return 0, false, false
			}
			i += next - 1
		case c == '{':
			depth++
		case c == '}':
			if depth--; depth <= 0 {
				return i + 1, depth == 0, true
			}
		case c == ';' && depth == 0:
			return i + 1, true, true
		}
	}
	return 0, false, false
}

// iscToken is a word, a text in quotes, or one of { } ;.
type iscToken struct {
	text   string
	inText bool
	line   int // of the statement
}

func (t iscToken) is(s string) bool { return !t.inText && t.text == s }

func iscTokens(b []byte) (out []iscToken) {
	line := 0
	for i := 0; i < len(b); {
		switch c := b[i]; {
		case c == '\n':
			line++
			i++
		case c <= ' ':
			i++
		case c == '#':
			for i < len(b) && b[i] != '\n' {
				i++
			}
		case c == '"':
			var text []byte
			for i++; i < len(b) && b[i] != '"'; i++ {
				if b[i] != '\\' || i+1 >= len(b) {
					text = append(text, b[i])
					continue
				}
				i++
				if i+2 < len(b) && isOctal(b[i:i+3]) {
					v, _ := strconv.ParseUint(string(b[i:i+3]), 8, 16) // isOctal has looked
					text = append(text, byte(v))
					i += 2
					continue
				}
				switch b[i] {
				case 't':
					text = append(text, '\t')
				case 'n':
					text = append(text, '\n')
				case 'r':
					text = append(text, '\r')
				case 'b':
					text = append(text, '\b')
				default:
					text = append(text, b[i])
				}
			}
			i++
			out = append(out, iscToken{string(text), true, line})
		case c == '{' || c == '}' || c == ';':
			out = append(out, iscToken{string(c), false, line})
			i++
		default:
			from := i
			for i < len(b) && b[i] > ' ' && !bytes.ContainsRune([]byte(`{};"#`), rune(b[i])) {
				i++
			}
			out = append(out, iscToken{string(b[from:i]), false, line})
		}
	}
	return out
}

func isOctal(b []byte) bool {
	return b[0] >= '0' && b[0] <= '3' && b[1] >= '0' && b[1] <= '7' && b[2] >= '0' && b[2] <= '7'
}

// statement reads one statement at the top of the file. What is about no address (a
// prefix, a host, a failover peer) is passed over.
func (p *iscParser) statement(b []byte, entry func(lease) error, bad func(error)) error {
	tokens := iscTokens(b)
	wrong := func(t iscToken, err error) {
		bad(fmt.Errorf("%s:%d: %w", p.file, p.line+1+t.line, err))
	}
	if len(tokens) < 3 || !tokens[2].is("{") {
		if len(tokens) > 0 && (tokens[0].is("lease") || tokens[0].is("ia-na")) {
			wrong(tokens[0], errors.New("a declaration must read lease ADDRESS { … } or ia-na \"ID\" { … }"))
		}
		return nil
	}
	body := tokens[3:]
	switch {
	case tokens[0].is("lease"):
		var e iscEntry
		e.read(body)
		if e.device == "" {
			e.device = deviceOf("", "", e.client)
		}
		l, err := e.lease(tokens[1].text, e.starts, e.cltt)
		if err != nil {
			wrong(tokens[0], err)
			return nil
		}
		return entry(l)
	case tokens[0].is("ia-na") || tokens[0].is("ia-ta"):
		// The text is the IAID, four bytes, and the client's DUID.
		id := tokens[1].text
		if !tokens[1].inText || len(id) < 5 {
			wrong(tokens[1], errors.New("the identifier is shorter than an IAID and a DUID"))
			return nil
		}
		var outer iscEntry
		for i := 0; i < len(body); {
			if !body[i].is("iaaddr") || i+2 >= len(body) || !body[i+2].is("{") {
				i = outer.one(body, i)
				continue
			}
			at := body[i]
			inner := iscEntry{device: deviceOf("", hexColons(id[4:]), "")}
			n := inner.read(body[i+3:])
			l, err := inner.lease(body[i+1].text, outer.cltt, inner.cltt)
			if i += 3 + n; err != nil {
				wrong(at, err)
			} else if err := entry(l); err != nil {
				return err
			}
		}
	}
	return nil
}

// iscEntry is what the statements within a declaration say.
type iscEntry struct {
	starts, cltt, ends flow.Time
	never, hasEnds     bool
	state              string
	device, client     string
	host               string
	err                error
}

// read reads statements up to the closing brace and gives how many tokens that took.
func (e *iscEntry) read(t []iscToken) int {
	for i := 0; i < len(t); {
		if t[i].is("}") {
			return i + 1
		}
		i = e.one(t, i)
	}
	return len(t)
}

// one reads the statement at i and gives where the next begins.
func (e *iscEntry) one(t []iscToken, i int) int {
	from := i
	for i < len(t) && !t[i].is(";") && !t[i].is("{") && !t[i].is("}") {
		i++
	}
	words := t[from:i]
	if i < len(t) && t[i].is("{") { // a block that says nothing about the lease, such as on expiry { … }
		for depth := 0; i < len(t); i++ {
			if t[i].is("{") {
				depth++
			} else if t[i].is("}") {
				if depth--; depth == 0 {
					return i + 1
				}
			}
		}
		return i
	}
	i++
	if len(words) < 2 {
		return i
	}
	switch words[0].text {
	case "starts":
		e.starts = e.time(words)
	case "cltt":
		e.cltt = e.time(words)
	case "ends":
		e.hasEnds = true
		if e.never = words[1].is("never"); !e.never {
			e.ends = e.time(words)
		}
	case "binding":
		if len(words) == 3 && words[1].is("state") {
			e.state = words[2].text
		}
	case "hardware":
		if len(words) == 3 {
			e.device = cleanDevice(words[2].text)
		}
	case "uid":
		if e.client = words[1].text; words[1].inText {
			e.client = hexColons(e.client)
		}
	case "client-hostname":
		e.host = cleanHost(words[1].text)
	}
	return i
}

// time reads WEEKDAY YYYY/MM/DD HH:MM:SS, in UTC, or epoch SECONDS, which dhcpd writes
// under db-time-format local.
func (e *iscEntry) time(words []iscToken) flow.Time {
	if words[1].is("epoch") && len(words) == 3 {
		if v, err := strconv.ParseUint(words[2].text, 10, 62); err == nil && v <= maxSeconds {
			return flow.Time(v) * 1000
		}
	} else if len(words) == 4 {
		if t, err := time.Parse("2006/1/2 15:04:05", words[2].text+" "+words[3].text); err == nil && t.Year() >= 1970 {
			return flow.TimeOf(t)
		}
	}
	if e.err == nil {
		e.err = fmt.Errorf("%s is no time; it must read WEEKDAY YYYY/MM/DD HH:MM:SS or epoch SECONDS", words[0].text)
	}
	return 0
}

func (e *iscEntry) lease(address string, begin, otherwise flow.Time) (l lease, err error) {
	ip, err := netip.ParseAddr(address)
	if err != nil || ip.Zone() != "" {
		return l, fmt.Errorf("%s is no address", quoted(address))
	}
	if e.err != nil {
		return l, e.err
	}
	if begin == 0 {
		begin = otherwise
	}
	l = lease{addr: flow.AddrFromNetip(ip).Canonical(), device: e.device, host: e.host, begin: begin, until: e.ends}
	switch e.state {
	case "active", "bootp", "": // files of before version 3 say no state
		switch {
		case begin == 0:
			return l, errors.New("it has neither starts nor cltt")
		case !e.hasEnds:
			return l, errors.New("it has no ends; a lease without end says ends never")
		case l.device == "":
			return l, errors.New("it names neither hardware address nor uid")
		case l.until != 0 && l.until < begin:
			return l, errors.New("it ends before it starts")
		}
	case "abandoned": // found in use by another than who held it
		l.over, l.device = true, ""
	default: // free, expired, released, reset, backup
		l.over, l.ended = true, e.ends
	}
	return l, nil
}

// hexColons writes bytes as 01:02:0a.
func hexColons(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if i > 0 {
			b.WriteByte(':')
		}
		fmt.Fprintf(&b, "%02x", s[i])
	}
	return b.String()
}
