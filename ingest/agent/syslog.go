package agent

import (
	"bytes"
	"fmt"
	"time"

	"github.com/postern/postern/flow"
)

// header is what stands before a message: a header of syslog, or the fields of the journal.
type header struct {
	at   flow.Time // zero: not told
	host []byte
	app  []byte // RFC 5424's APP-NAME, or the tag before the colon
}

// stamp gives r what the header knows of a line that does not say it itself.
func (h *header) stamp(e *entry, r *flow.Record) {
	r.Start = h.at
	if len(h.host) > 0 {
		r.Observer = e.name(h.host)
	}
}

// message gives the message of a line that a kernel or a program wrote to syslog or to the
// journal, or by itself.
func (e *entry) message(line []byte) (header, []byte, error) {
	if len(line) > 0 && line[0] == '{' {
		return e.journal(line)
	}
	h, msg := e.syslog(line)
	return h, msg, nil
}

// journal reads an entry of systemd's journal as `journalctl -o json` writes it. Fields:
// https://www.freedesktop.org/software/systemd/man/latest/systemd.journal-fields.html
func (e *entry) journal(line []byte) (h header, msg []byte, err error) {
	v, err := e.d.tree(line)
	if err != nil {
		return h, nil, fmt.Errorf("no JSON: %w", err)
	}
	m := at(v, "MESSAGE")
	if m == nil {
		return h, nil, NotFlow("an entry of the journal without a message")
	}
	if msg = m.GetStringBytes(); msg == nil {
		// What is no UTF-8 the journal writes as an array of numbers.
		for _, b := range m.GetArray() {
			msg = append(msg, byte(b.GetUint()))
		}
	}
	for _, key := range [...]string{"_SOURCE_REALTIME_TIMESTAMP", "__REALTIME_TIMESTAMP"} {
		if us, ok := num(v, key); ok && us < maxEpoch*1e6 {
			h.at = flow.Time(us / 1000)
			break
		}
	}
	h.host, h.app = str(v, "_HOSTNAME"), str(v, "SYSLOG_IDENTIFIER")
	return h, msg, nil
}

// syslog takes the header off a line: RFC 5424; RFC 3164, also without its priority as
// files have it; and the same with a stamp of RFC 3339, as rsyslog writes files. A line
// without one is the message.
func (e *entry) syslog(line []byte) (h header, msg []byte) {
	b, pri := priority(line)
	if pri && len(b) > 2 && b[0] == '1' && b[1] == ' ' {
		return syslog5424(b[2:])
	}
	token, rest := cut(b)
	if t, ok := whenShort(token); ok {
		h.at, b = t, rest
	} else if t, n := e.stamp3164(b); n > 0 {
		h.at, b = t, bytes.TrimLeft(b[n:], " ")
	} else if !pri {
		return h, line
	} else {
		h.app, msg = tag(b)
		return h, msg
	}
	// Some leave the host out.
	if token, rest = cut(b); len(token) > 0 && token[len(token)-1] != ':' && token[0] != '[' && !bytes.ContainsAny(token, "=|<") {
		h.host, b = token, rest
	}
	h.app, msg = tag(b)
	return h, msg
}

// priority takes <PRI> off.
func priority(line []byte) (rest []byte, ok bool) {
	if len(line) < 3 || line[0] != '<' {
		return line, false
	}
	for i := 1; i < len(line) && i <= 4; i++ {
		switch c := line[i]; {
		case c == '>' && i > 1:
			return line[i+1:], true
		case c < '0' || c > '9':
			return line, false
		}
	}
	return line, false
}

// tag takes the name of a program off: name[123]: or kernel:. What ends in a colon alone
// may as well belong to the message.
func tag(b []byte) (app, rest []byte) {
	token, rest := cut(b)
	if name, ok := bytes.CutSuffix(token, []byte("]:")); ok {
		if i := bytes.LastIndexByte(name, '['); i > 0 && decimal(name[i+1:]) {
			return name[:i], rest
		}
	}
	if string(token) == "kernel:" {
		return token[:len(token)-1], rest
	}
	return nil, b
}

func decimal(b []byte) bool {
	_, ok := atou(b)
	return ok
}

// cut takes the first word off, and the spaces behind it.
func cut(b []byte) (word, rest []byte) {
	i := bytes.IndexByte(b, ' ')
	if i < 0 {
		return b, nil
	}
	word = b[:i]
	for i < len(b) && b[i] == ' ' {
		i++
	}
	return word, b[i:]
}

// syslog5424 reads a header of RFC 5424 behind its version.
func syslog5424(b []byte) (h header, msg []byte) {
	nilValue := func(w []byte) []byte {
		if len(w) == 1 && w[0] == '-' {
			return nil
		}
		return w
	}
	var word []byte
	word, b = cut(b)
	h.at, _ = when(word)
	word, b = cut(b)
	h.host = nilValue(word)
	word, b = cut(b)
	h.app = nilValue(word)
	_, b = cut(b) // PROCID
	_, b = cut(b) // MSGID
	b = bytes.TrimLeft(structured(b), " ")
	return h, bytes.TrimPrefix(b, []byte("\xef\xbb\xbf"))
}

// structured passes over STRUCTURED-DATA: - or elements in brackets, whose values may hold
// escaped brackets within quotes.
func structured(b []byte) []byte {
	if len(b) > 0 && b[0] == '-' {
		return b[1:]
	}
	for len(b) > 0 && b[0] == '[' {
		quoted, end := false, 0
		for i := 1; i < len(b) && end == 0; i++ {
			switch {
			case b[i] == '\\' && quoted:
				i++
			case b[i] == '"':
				quoted = !quoted
			case b[i] == ']' && !quoted:
				end = i + 1
			}
		}
		if end == 0 {
			return nil
		}
		b = b[end:]
	}
	return b
}

// whenShort is [when], and without seconds, as 2026-10-02T15:04Z.
func whenShort(b []byte) (flow.Time, bool) {
	if len(b) == 17 && b[16] == 'Z' && b[13] == ':' {
		var full [20]byte
		copy(full[:], b[:16])
		copy(full[16:], ":00Z")
		return when(full[:])
	}
	return when(b)
}

// month reads Jan to Dec; 0 is none.
func month(b []byte) int64 {
	switch string(b) {
	case "Jan":
		return 1
	case "Feb":
		return 2
	case "Mar":
		return 3
	case "Apr":
		return 4
	case "May":
		return 5
	case "Jun":
		return 6
	case "Jul":
		return 7
	case "Aug":
		return 8
	case "Sep":
		return 9
	case "Oct":
		return 10
	case "Nov":
		return 11
	case "Dec":
		return 12
	}
	return 0
}

// clock reads hh:mm:ss at the beginning of b, in milliseconds of the day, with a fraction
// where one follows, and how many bytes that took; 0 if it is none.
func clock(b []byte) (ms int64, n int) {
	if len(b) < 8 || b[2] != ':' || b[5] != ':' {
		return 0, 0
	}
	for i, c := range b[:8] {
		if i != 2 && i != 5 && (c < '0' || c > '9') {
			return 0, 0
		}
	}
	two := func(i int) int64 { return int64(b[i]-'0')*10 + int64(b[i+1]-'0') }
	if two(0) > 23 || two(3) > 59 || two(6) > 60 {
		return 0, 0
	}
	ms, n = (two(0)*3600+two(3)*60+two(6))*1000, 8
	if len(b) > 9 && b[8] == '.' {
		scale := int64(100)
		for n = 9; n < len(b) && b[n] >= '0' && b[n] <= '9'; n++ {
			ms += int64(b[n]-'0') * scale
			scale /= 10
		}
	}
	return ms, n
}

// stamp3164 reads Mmm dd hh:mm:ss at the beginning of b, and how many bytes that took; 0 if
// it is none. It has neither year nor zone: the year is the one that brings it nearest to
// receipt, the zone is the configuration's.
func (e *entry) stamp3164(b []byte) (flow.Time, int) {
	if len(b) < 14 || b[3] != ' ' {
		return 0, 0
	}
	mon := month(b[:3])
	if mon == 0 {
		return 0, 0
	}
	n := 4
	for n < 6 && b[n] == ' ' {
		n++
	}
	day := int64(0)
	for ; n < 7 && n < len(b) && b[n] >= '0' && b[n] <= '9'; n++ {
		day = day*10 + int64(b[n]-'0')
	}
	if day < 1 || day > 31 || n >= len(b) || b[n] != ' ' {
		return 0, 0
	}
	n++
	ms, k := clock(b[n:])
	if k == 0 {
		return 0, 0
	}
	best := flow.Time(0)
	received := e.o.Received
	year := int64(received.Std().Year())
	for _, y := range [...]int64{year - 1, year, year + 1} {
		if day > monthDays(y, mon) {
			continue // the 29th of February
		}
		t := flow.Time(days(y, mon, day)*86400_000+ms) - e.zone()
		if best == 0 || distance(t, received) < distance(best, received) {
			best = t
		}
	}
	return best, n + k
}

func distance(a, b flow.Time) time.Duration { return a.Sub(b).Abs() }

func monthDays(y, m int64) int64 {
	if m == 12 {
		return 31
	}
	return days(y, m+1, 1) - days(y, m, 1)
}

// zone is how far ahead of UTC clocks are that do not say it.
func (e *entry) zone() flow.Time { return flow.Time(e.d.cfg.ZoneOffset.Milliseconds()) }

// ctime reads Sat Nov 21 18:33:02 2026, a time of the host's zone.
func (e *entry) ctime(b []byte) (flow.Time, bool) {
	if len(b) != 24 || b[3] != ' ' || b[7] != ' ' || b[10] != ' ' || b[19] != ' ' {
		return 0, false
	}
	mon := month(b[4:7])
	day, okD := atou(bytes.TrimLeft(b[8:10], " "))
	year, okY := atou(b[20:24])
	ms, n := clock(b[11:19])
	if mon == 0 || !okD || day < 1 || !okY || n != 8 || int64(day) > monthDays(int64(year), mon) {
		return 0, false
	}
	return flow.Time(days(int64(year), mon, int64(day))*86400_000+ms) - e.zone(), true
}
