package agent

import (
	"bytes"
	"net/netip"
	"strings"
	"time"

	"github.com/valyala/fastjson"

	"github.com/postern/postern/flow"
)

// radius is an accounting request (RFC 2866): a block of FreeRADIUS's detail file, or a JSON
// object whose members are attributes. Of an attribute that is there several times the first
// counts. See docs/agents/radius.md.
type radius struct {
	status, session, user        []byte
	nas4, nas6, nasName          []byte
	framed4, framed6, prefix6    []byte
	station                      []byte
	event, stamp, delay, elapsed []byte
	text                         []byte // what was unquoted, and numbers
}

func newRadius(d *EventDecoder) (eventParser, error) {
	r := &radius{}
	return func(item []byte) error {
		*r = radius{text: r.text[:0]}
		if len(item) > 0 && item[0] == '{' {
			v, err := d.d.object(item)
			if err != nil {
				return err
			}
			v.GetObject().Visit(func(key []byte, v *fastjson.Value) { r.set(key, r.value(v)) })
			r.user = r.escapedTwice(r.user)
		} else if err := r.block(item); err != nil {
			return err
		}
		return r.read(d)
	}, nil
}

// escapedTwice takes off what FreeRADIUS's JSON module leaves in a text, which it escapes and
// then escapes as a whole (seen with 3.2.1). No account's name has one of these pairs.
func (r *radius) escapedTwice(b []byte) []byte {
	if bytes.IndexByte(b, '\\') < 0 {
		return b
	}
	from := len(r.text)
	for i := 0; i < len(b); i++ {
		if b[i] == '\\' && i+1 < len(b) && (b[i+1] == '\\' || b[i+1] == '"' || b[i+1] == '/') {
			i++
		}
		r.text = append(r.text, b[i])
	}
	return r.text[from:len(r.text):len(r.text)]
}

// value is what a member says: a scalar, the first of a list, or the member value of an
// object, as rlm_json writes them.
func (r *radius) value(v *fastjson.Value) []byte {
	for range 3 {
		switch v.Type() {
		case fastjson.TypeObject:
			if v = v.Get("value"); v == nil {
				return nil
			}
		case fastjson.TypeArray:
			if v = v.Get("0"); v == nil {
				return nil
			}
		default:
			return scalar(v, &r.text)
		}
	}
	return nil
}

// block takes in the lines of a block: a stamp, then attributes, each indented.
func (r *radius) block(item []byte) error {
	attributes := 0
	for line := range bytes.SplitSeq(item, []byte{'\n'}) {
		if len(line) == 0 || line[0] != '\t' && line[0] != ' ' {
			continue
		}
		key, value, ok := bytes.Cut(line, []byte(" = "))
		if !ok {
			continue
		}
		attributes++
		r.set(bytes.TrimRight(bytes.TrimSpace(key), ":+ "), r.unquote(bytes.TrimSpace(value)))
	}
	if attributes == 0 {
		return fieldError("block", item, "lines of attributes, indented, such as \tAcct-Status-Type = Start")
	}
	return nil
}

// unquote reads a value in quotes, in which backslashes stand before what would end it, n,
// r, t and three octal digits.
func (r *radius) unquote(b []byte) []byte {
	if len(b) < 2 || b[0] != '"' || b[len(b)-1] != '"' {
		return b
	}
	if b = b[1 : len(b)-1]; bytes.IndexByte(b, '\\') < 0 {
		return b
	}
	from := len(r.text)
	for i := 0; i < len(b); i++ {
		c := b[i]
		if c != '\\' || i+1 == len(b) {
			r.text = append(r.text, c)
			continue
		}
		i++
		switch c = b[i]; {
		case c == 'n':
			c = '\n'
		case c == 'r':
			c = '\r'
		case c == 't':
			c = '\t'
		case c >= '0' && c <= '3' && i+2 < len(b) && b[i+1]-'0' < 8 && b[i+2]-'0' < 8:
			c = (c-'0')<<6 | (b[i+1]-'0')<<3 | (b[i+2] - '0')
			i += 2
		}
		r.text = append(r.text, c)
	}
	return r.text[from:len(r.text):len(r.text)]
}

// set takes in an attribute.
func (r *radius) set(key, value []byte) {
	var to *[]byte
	switch string(key) {
	case "Acct-Status-Type":
		to = &r.status
	case "Acct-Session-Id":
		to = &r.session
	case "User-Name":
		to = &r.user
	case "NAS-IP-Address":
		to = &r.nas4
	case "NAS-IPv6-Address":
		to = &r.nas6
	case "NAS-Identifier":
		to = &r.nasName
	case "Framed-IP-Address":
		to = &r.framed4
	case "Framed-IPv6-Address":
		to = &r.framed6
	case "Framed-IPv6-Prefix":
		to = &r.prefix6
	case "Calling-Station-Id":
		to = &r.station
	case "Event-Timestamp":
		to = &r.event
	case "Timestamp": // when FreeRADIUS wrote it
		to = &r.stamp
	case "Acct-Delay-Time":
		to = &r.delay
	case "Acct-Session-Time":
		to = &r.elapsed
	}
	if to != nil && *to == nil {
		*to = said(value)
	}
}

// read adds what the request tells.
func (r *radius) read(d *EventDecoder) error {
	ev := SessionEvent{}
	switch string(r.status) {
	case "Start", "1":
		ev.Kind = SessionStart
	case "Stop", "2":
		ev.Kind = SessionStop
	case "Interim-Update", "Alive", "3":
		ev.Kind = SessionUpdate
	case "Accounting-On", "7":
		ev.Kind = SessionOn
	case "Accounting-Off", "8":
		ev.Kind = SessionOff
	case "":
		return NotEvent("a request without Acct-Status-Type")
	default:
		return NotEvent("another Acct-Status-Type")
	}
	for _, nas := range [...][]byte{r.nas4, r.nas6, r.nasName} {
		if nas != nil {
			ev.Host = strings.ToLower(eventText(nas))
			break
		}
	}
	if ev.Host == "" {
		return fieldError("NAS", nil, "NAS-IP-Address, NAS-IPv6-Address or NAS-Identifier")
	}
	var err error
	if ev.At, err = r.time(d); err != nil {
		return err
	}
	if ev.Kind == SessionOn || ev.Kind == SessionOff {
		d.add(ev)
		return nil
	}
	if r.session == nil {
		return fieldError("Acct-Session-Id", nil, "the session's id")
	}
	if len(r.session) > maxEventText {
		return fieldError("Acct-Session-Id", r.session, "at most 256 bytes")
	}
	ev.Session = string(r.session)
	if n, ok := atou(r.elapsed); ok && n < maxEpoch && ev.Kind != SessionStart {
		ev.Began = ev.At - flow.Time(n)*1000
	}
	ev.Device = strings.ToLower(eventText(r.station))
	if mac, ok := stationMAC(r.station); ok {
		ev.Device, ev.On = mac, mac
	}
	if r.user != nil { // a stop may do without
		ev.User = eventText(r.user)
		// Of a machine, or of a device that logs in with its own address, nobody is the user;
		// but whoever had the address before has it no longer.
		mac, isMAC := stationMAC(r.user)
		if isMAC && mac == ev.Device || !person(ev.User) || strings.HasPrefix(strings.ToLower(ev.User), "host/") {
			ev.User = ""
		}
	}
	return r.places(d, ev)
}

// places adds the event, for each address that it names: with IPv4 and IPv6 these are two.
func (r *radius) places(d *EventDecoder, ev SessionEvent) error {
	was := len(d.out)
	if r.framed4 != nil {
		a, ok := addr(r.framed4)
		if !ok {
			return fieldError("Framed-IP-Address", r.framed4, "an IP address")
		}
		// 255.255.255.255 and …254 say that somebody else chooses (RFC 2865, 5.8).
		if v := a.V4(); a.Is4() && v != 0 && v < 0xfffffffe {
			ev.Addr = a
			d.add(ev)
		}
	}
	six := r.framed6
	if host, ok := bytes.CutSuffix(r.prefix6, []byte("/128")); ok && six == nil {
		six = host
	}
	if six != nil {
		a, ok := addr(six)
		if !ok || a.Is4() {
			return fieldError("Framed-IPv6-Address", six, "an IPv6 address")
		}
		if !a.IsZero() {
			ev.Addr = a
			d.add(ev)
		}
	}
	if len(d.out) == was {
		d.add(ev)
	}
	return nil
}

// time is when it happened. Event-Timestamp is the NAS's word (RFC 2869, 5.3); FreeRADIUS
// writes it in its own local time with the zone's name, which says little: the offset is
// found by its Timestamp, in seconds since 1970, less the delay, or by the receipt. Where
// the Timestamp cannot be brought together with it, as of a NAS that has lost its clock, that
// counts.
func (r *radius) time(d *EventDecoder) (flow.Time, error) {
	var received flow.Time
	if r.stamp != nil {
		var ok bool
		if received, ok = epoch(r.stamp); !ok {
			return 0, fieldError("Timestamp", r.stamp, "seconds since 1970")
		}
	} else if o := d.d.entry.o; !d.cfg.BelieveClock {
		received = o.Received
	}
	if n, ok := atou(r.delay); ok && received != 0 && n < maxEpoch {
		received = max(received-flow.Time(n)*1000, 1)
	}
	if r.event == nil {
		if received == 0 {
			return 0, fieldError("Event-Timestamp", nil, "a time; there is no Timestamp either")
		}
		return received, nil
	}
	t, zoned, ok := radiusTime(r.event)
	switch {
	case !ok:
		return 0, fieldError("Event-Timestamp", r.event, "a time such as \"Oct  2 2026 15:04:05 UTC\", seconds since 1970, or 2026-10-02T15:04:05Z")
	case received == 0:
		if !zoned {
			t = t.Add(-d.cfg.ZoneOffset)
		}
		return t, nil
	case zoned:
		if away := t.Sub(received); away > clockUnusable || r.stamp != nil && away < -clockUnusable {
			return received, nil
		}
		return t, nil
	}
	if offset, ok := zoneBetween(t, received); ok {
		return t - offset, nil
	}
	if r.stamp == nil { // it came much later, which tells no zone
		return t.Add(-d.cfg.ZoneOffset), nil
	}
	return received, nil
}

// radiusTime reads a time as FreeRADIUS writes it; zoned says that its zone is known.
func radiusTime(b []byte) (t flow.Time, zoned, ok bool) {
	if t, ok := epoch(b); ok {
		return t, true, true
	}
	if t, ok := when(b); ok {
		return t, len(b) > 19 && bytes.ContainsAny(b[19:], "Zz+-"), true
	}
	for _, layout := range [...]string{"Jan _2 2006 15:04:05", "Mon Jan _2 15:04:05 2006", "Mon Jan _2 2006 15:04:05"} {
		if len(b) < len(layout) {
			continue
		}
		at, err := time.Parse(layout, string(b[:len(layout)]))
		if err != nil {
			continue
		}
		zone := string(bytes.TrimSpace(b[len(layout):]))
		zoned := zone == "UTC" || zone == "GMT" || zone == "Z"
		return flow.TimeOf(at), zoned, at.Year() > 1970
	}
	return 0, false, false
}

// stationMAC reads a MAC address in any of its spellings (RFC 3580, 3.21: with the name of a
// wireless network behind it) and writes it as 00:00:5e:00:53:01.
func stationMAC(b []byte) (string, bool) {
	var digits [12]byte
	n, i, plain := 0, 0, true
	for ; i < len(b) && n < len(digits); i++ {
		switch c := b[i] | 0x20; {
		case b[i] >= '0' && b[i] <= '9':
			digits[n] = c
			n++
		case c >= 'a' && c <= 'f':
			digits[n], plain = c, false
			n++
		case b[i] == ':' || b[i] == '-' || b[i] == '.':
			plain = false
		default:
			return "", false
		}
	}
	if n < len(digits) || i < len(b) && b[i] != ':' || plain { // twelve digits are a phone's number
		return "", false
	}
	if _, err := netip.ParseAddr(text(b[:i])); err == nil { // 10.11.12.13.… is an address
		return "", false
	}
	out := make([]byte, 0, 17)
	for k := 0; k < len(digits); k += 2 {
		if k > 0 {
			out = append(out, ':')
		}
		out = append(out, digits[k:k+2]...)
	}
	return string(out), true
}
