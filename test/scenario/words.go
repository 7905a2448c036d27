package scenario

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/agnivade/levenshtein"

	"github.com/postern/postern/flow"
)

// word is a word of a line and the column it begins at.
type word struct {
	text   string
	column int
}

// split splits a line at blanks outside quotes; quotes are taken away.
func (p *parser) split(s string) (out []word, ok bool) {
	var cur strings.Builder
	began, quoted := 0, 0 // columns; zero: not in a word, not in quotes
	end := func() {
		if began > 0 {
			out = append(out, word{cur.String(), began})
			cur.Reset()
			began = 0
		}
	}
	column := 0
	for _, r := range s {
		column++
		if (r == ' ' || r == '\t') && quoted == 0 {
			end()
			continue
		}
		if began == 0 {
			began = column
		}
		switch {
		case r != '"':
			cur.WriteRune(r)
		case quoted == 0:
			quoted = column
		default:
			quoted = 0
		}
	}
	if quoted > 0 {
		p.wrong(quoted, "a quote is opened and not closed", `close it with "`)
		return nil, false
	}
	end()
	if len(out) == 0 {
		p.wrong(1, "the line has no word", "remove it")
		return nil, false
	}
	return out, true
}

// time reads RFC 3339, or +DURATION since what stood before where that is allowed.
func (p *parser) time(w word, relative bool) (t flow.Time, ok bool) {
	if d, plus := strings.CutPrefix(w.text, "+"); plus && relative {
		if p.previous == 0 {
			p.wrong(w.column, fmt.Sprintf("%q is since the line before, and none has a time", w.text), "write the first time as 2026-10-03T09:00:00Z")
			return 0, false
		}
		gap, ok := p.duration(word{d, w.column + 1})
		return p.previous.Add(gap), ok
	}
	at, err := time.Parse(time.RFC3339Nano, w.text)
	if err != nil {
		right := "write it as 2026-10-03T09:00:00Z"
		if relative {
			right += ", or as +5m since the line before"
		}
		p.wrong(w.column, fmt.Sprintf("%q is no time", w.text), right)
		return 0, false
	}
	if t = flow.TimeOf(at); t <= 0 || at.Year() >= 2200 {
		p.wrong(w.column, fmt.Sprintf("%q is too long ago or too far ahead", w.text), "times are between 1970 and 2200")
		return 0, false
	}
	return t, true
}

// maxDuration bounds every duration of a file.
const maxDuration = 10 * 366 * 24 * time.Hour

// duration reads 90s, 10m, 6h, 14d, 1d12h.
func (p *parser) duration(w word) (time.Duration, bool) {
	days, rest, has := strings.Cut(w.text, "d")
	var d time.Duration
	if !has {
		rest = w.text
	} else if n, err := strconv.ParseUint(days, 10, 12); err == nil {
		d = time.Duration(n) * 24 * time.Hour
	} else {
		rest = w.text // says that it is none
	}
	if rest != "" || !has {
		r, err := time.ParseDuration(rest)
		if err != nil || r < 0 {
			p.wrong(w.column, fmt.Sprintf("%q is no duration", w.text), "write it as 200ms, 90s, 10m, 6h or 14d")
			return 0, false
		}
		d += r
	}
	if d > maxDuration {
		p.wrong(w.column, fmt.Sprintf("%q is too long", w.text), "ten years are the most")
		return 0, false
	}
	return d, true
}

func isName(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i, r := range s {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		if !letter && (i == 0 || (r < '0' || r > '9') && r != '-' && r != '_') {
			return false
		}
	}
	return true
}

// addresses reads what an end of a line stands for: a name, an address, a prefix, a range,
// or several of these with commas.
func (p *parser) addresses(w word, text string) (out []flow.Addr, ok bool) {
	for part := range strings.SplitSeq(text, ",") {
		some, ok := p.some(w, part)
		if !ok {
			return nil, false
		}
		if len(out)+len(some) > maxHosts {
			p.wrong(w.column, fmt.Sprintf("%q are more than %d addresses", w.text, maxHosts), "name fewer hosts")
			return nil, false
		}
		out = append(out, some...)
	}
	if p.addrs += len(out); p.addrs > maxAddrs {
		p.wrong(w.column, fmt.Sprintf("with this line the scenario names more than %d addresses", maxAddrs), "name fewer hosts, or split the scenario")
		return nil, false
	}
	return out, true
}

func (p *parser) some(w word, s string) ([]flow.Addr, bool) {
	if h, named := p.s.hosts[s]; named {
		return h.addrs, true
	}
	if a, err := flow.ParseAddr(s); err == nil {
		return []flow.Addr{a}, true
	}
	if prefix, err := netip.ParsePrefix(s); err == nil {
		if prefix = prefix.Masked(); prefix.Addr().BitLen()-prefix.Bits() > 16 {
			p.wrong(w.column, fmt.Sprintf("%q holds more than %d addresses", s, maxHosts), "write a longer prefix")
			return nil, false
		}
		var out []flow.Addr
		for a := prefix.Addr(); a.IsValid() && prefix.Contains(a); a = a.Next() {
			out = append(out, flow.AddrFromNetip(a))
		}
		if prefix.Addr().Is4() && prefix.Bits() < 31 {
			out = out[1 : len(out)-1] // the network and its broadcast are no hosts
		}
		return out, true
	}
	if low, high, isRange := strings.Cut(s, "-"); isRange {
		if from, err := netip.ParseAddr(low); err == nil {
			if n, err := strconv.ParseUint(high, 10, 8); err == nil && from.Is4() {
				b := from.As4()
				b[3] = byte(n)
				high = netip.AddrFrom4(b).String()
			}
			if to, err := netip.ParseAddr(high); err == nil && to.BitLen() == from.BitLen() && !to.Less(from) {
				var out []flow.Addr
				for a := from; a.IsValid() && !to.Less(a); a = a.Next() {
					if out = append(out, flow.AddrFromNetip(a)); len(out) > maxHosts {
						p.wrong(w.column, fmt.Sprintf("%q holds more than %d addresses", s, maxHosts), "write a shorter range")
						return nil, false
					}
				}
				return out, true
			}
		}
	}
	p.noHost(w.column, s, "write an address, a prefix as 10.1.2.0/28, a range as 10.1.2.1-50, or the name of a host line above")
	return nil, false
}

// noHost says that a word is no address and no host.
func (p *parser) noHost(column int, s, right string) {
	if near := p.nearest(s); near != "" {
		right = fmt.Sprintf("did you mean %s? Else %s", near, right)
	}
	p.wrong(column, fmt.Sprintf("%q is no address and no host that a line above names", s), right)
}

// nearest is the host whose name differs least from s, at most by two letters.
func (p *parser) nearest(s string) (name string) {
	if len(s) > 64 {
		return ""
	}
	best := 3
	for h := range p.s.hosts {
		if d := levenshtein.ComputeDistance(h, s); d < best || d == best && h < name {
			name, best = h, d
		}
	}
	return name
}

// end reads HOST[:PORT] of a line; an IPv6 address with a port stands in brackets.
func (p *parser) end(w word) (addrs []flow.Addr, port uint16, hasPort, ok bool) {
	text, digits := w.text, ""
	if i := strings.LastIndexByte(text, ':'); i >= 0 && (text[0] == '[' || strings.Count(text, ":") == 1) {
		text, digits = text[:i], text[i+1:]
		hasPort = true
	}
	text = strings.TrimSuffix(strings.TrimPrefix(text, "["), "]")
	if hasPort {
		n, err := strconv.ParseUint(digits, 10, 16)
		if err != nil {
			p.wrong(w.column, fmt.Sprintf("%q is no port", digits), "write 10.1.2.3:443, or [2001:db8::1]:443")
			return nil, 0, false, false
		}
		port = uint16(n)
	}
	addrs, ok = p.addresses(w, text)
	return addrs, port, hasPort, ok
}

// at is the word of a text, for what comes behind a certain place; -1 if there is none.
func at(words []word, text string) int {
	return slices.IndexFunc(words, func(w word) bool { return w.text == text })
}
