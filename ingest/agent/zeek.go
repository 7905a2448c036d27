package agent

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/valyala/fastjson"

	"github.com/postern/postern/flow"
)

// Zeek's conn.log, in its own tab-separated form with a header, and as JSON with
// id.orig_h or, where a forwarder cannot have dots, id_orig_h. Fields:
// https://docs.zeek.org/en/master/scripts/base/protocols/conn/main.zeek.html
//
// Other logs of Zeek that name a connection (ssh.log, rdp.log, dns.log …) are evidence
// about it by its uid and no flows.

// zeekConn is a line of conn.log as it is read of either form.
type zeekConn struct {
	orig, resp               []byte
	proto, service           []byte
	state, history           []byte
	ts, duration             zeekTime
	origPort, respPort       zeekNumber
	origPackets, respPackets zeekNumber
	origIPBytes, respIPBytes zeekNumber // with IP headers
	origBytes, respBytes     zeekNumber // payload
}

type zeekNumber struct {
	n  uint64
	ok bool
}

type zeekTime struct {
	t  flow.Time
	ok bool
}

// zeek is a stream of Zeek's lines.
type zeek struct {
	columns   []string // of the tab-separated form
	separator byte
	unset     []byte
	path      string
}

func newZeek(d *Decoder) parser {
	z := &zeek{separator: '\t', unset: []byte("-")}
	asJSON := ofJSON(zeekJSON)(d)
	return func(line []byte, e *entry) error {
		switch {
		case len(line) > 0 && line[0] == '{':
			return asJSON(line, e)
		case len(line) > 0 && line[0] == '#':
			return z.header(line)
		}
		return z.tsv(line, e)
	}
}

// header takes a line of the header in.
func (z *zeek) header(line []byte) error {
	if v, ok := bytes.CutPrefix(line, []byte("#separator ")); ok {
		if hex, ok := bytes.CutPrefix(v, []byte(`\x`)); ok {
			if n, err := strconv.ParseUint(string(hex), 16, 8); err == nil {
				v = []byte{byte(n)}
			}
		}
		if len(v) != 1 {
			return fieldError("#separator", v, `one byte, such as \x09`)
		}
		z.separator = v[0]
		return NotFlow("a header")
	}
	key, rest, _ := bytes.Cut(line, []byte{z.separator})
	switch string(key) {
	case "#unset_field":
		z.unset = bytes.Clone(rest)
	case "#path":
		z.path = string(rest)
	case "#fields":
		if len(rest) > 4096 {
			return fieldError("#fields", rest, "at most 4096 bytes")
		}
		z.columns = strings.Split(string(rest), string(z.separator))
	}
	return NotFlow("a header")
}

var errZeekHeader = errors.New("tab-separated without a header; want a #fields line before it, or JSON")

func (z *zeek) tsv(line []byte, e *entry) error {
	if len(z.columns) == 0 {
		return errZeekHeader
	}
	if z.path != "" && z.path != "conn" {
		return NotFlow("a line of another log of Zeek's")
	}
	var c zeekConn
	n := 0
	for v := range bytes.SplitSeq(line, []byte{z.separator}) {
		if n < len(z.columns) && !bytes.Equal(v, z.unset) && string(v) != "(empty)" {
			c.set(z.columns[n], v)
		}
		n++
	}
	if n != len(z.columns) {
		return fmt.Errorf("%d fields; the header names %d", n, len(z.columns))
	}
	return c.read(e)
}

func (c *zeekConn) set(field string, v []byte) {
	number := func(to *zeekNumber) { to.n, to.ok = atou(v) }
	switch field {
	case "ts":
		if c.ts.t, c.ts.ok = epoch(v); !c.ts.ok {
			c.ts.t, c.ts.ok = when(v)
		}
	case "id.orig_h":
		c.orig = v
	case "id.resp_h":
		c.resp = v
	case "id.orig_p":
		number(&c.origPort)
	case "id.resp_p":
		number(&c.respPort)
	case "proto":
		c.proto = v
	case "service":
		c.service = v
	case "duration":
		c.duration.t, c.duration.ok = epoch(v)
	case "conn_state":
		c.state = v
	case "history":
		c.history = v
	case "orig_pkts":
		number(&c.origPackets)
	case "resp_pkts":
		number(&c.respPackets)
	case "orig_ip_bytes":
		number(&c.origIPBytes)
	case "resp_ip_bytes":
		number(&c.respIPBytes)
	case "orig_bytes":
		number(&c.origBytes)
	case "resp_bytes":
		number(&c.respBytes)
	}
}

func zeekJSON(v *fastjson.Value, e *entry) error {
	var c zeekConn
	id := func(dots, underscores string) *fastjson.Value {
		if f := v.Get(dots); f != nil {
			return f
		}
		return v.Get(underscores)
	}
	number := func(key string) (n zeekNumber) {
		n.n, n.ok = num(v, key)
		return n
	}
	c.orig, c.resp = str(id("id.orig_h", "id_orig_h")), str(id("id.resp_h", "id_resp_h"))
	if c.orig == nil && c.resp == nil && v.Exists("uid") {
		return NotFlow("a line of another log of Zeek's")
	}
	c.origPort.n, c.origPort.ok = num(id("id.orig_p", "id_orig_p"))
	c.respPort.n, c.respPort.ok = num(id("id.resp_p", "id_resp_p"))
	if ts := at(v, "ts"); ts != nil {
		if c.ts.t, c.ts.ok = epochOf(ts); !c.ts.ok {
			c.ts.t, c.ts.ok = when(str(ts)) // LogAscii::json_timestamps = JSON::TS_ISO8601
		}
	}
	c.duration.t, c.duration.ok = seconds(v, "duration")
	c.proto, c.service, c.state, c.history = str(v, "proto"), str(v, "service"), str(v, "conn_state"), str(v, "history")
	c.origPackets, c.respPackets = number("orig_pkts"), number("resp_pkts")
	c.origIPBytes, c.respIPBytes = number("orig_ip_bytes"), number("resp_ip_bytes")
	c.origBytes, c.respBytes = number("orig_bytes"), number("resp_bytes")
	if c.proto == nil && c.state == nil {
		return NotFlow("a line of another log of Zeek's")
	}
	return c.read(e)
}

// read makes the flow of a line.
func (c *zeekConn) read(e *entry) error {
	r := e.flow(flow.SourceZeek)
	if err := ends(r, c.orig, c.resp); err != nil {
		return err
	}
	if !c.ts.ok {
		return errors.New("no ts; want seconds since 1970, or RFC 3339")
	}
	r.Start = c.ts.t
	if c.duration.ok {
		r.End = r.Start + c.duration.t
	}
	proto, ok := protocol(c.proto)
	setProto(r, proto, ok)
	sp, spOK := port16(c.origPort.n, c.origPort.ok)
	dp, dpOK := port16(c.respPort.n, c.respPort.ok)
	if ok && proto == flow.ProtoICMP {
		// Zeek writes the type in the place of the source's port, the code in the other.
		setICMP(r, uint8(sp), uint8(dp), spOK && dpOK && sp < 256 && dp < 256)
		if len(c.orig) > 0 && !r.Src.Is4() { // it calls both icmp
			r.Proto = flow.ProtoICMPv6
		}
	} else {
		setSrcPort(r, sp, spOK)
		setDstPort(r, dp, dpOK)
	}
	if c.service != nil {
		r.App = e.name(c.service)
	}
	setPackets(r, c.origPackets.n, c.origPackets.ok)
	setRevPackets(r, c.respPackets.n, c.respPackets.ok)
	bytes, rev := c.origIPBytes, c.respIPBytes
	if !bytes.ok && !rev.ok {
		bytes, rev = c.origBytes, c.respBytes // without headers, where nothing better is told
	}
	setBytes(r, bytes.n, bytes.ok)
	setRevBytes(r, rev.n, rev.ok)
	if r.Proto == flow.ProtoTCP {
		orig, resp := zeekFlags(c.history)
		setFlags(r, orig, c.history != nil)
		if c.history != nil {
			r.RevTCPFlags, r.Has = resp, r.Has|flow.HasRevTCPFlags
		}
	}
	switch string(c.state) {
	case "OTH", "SHR", "RSTRH": // midstream, or the originator's half was not seen
		// history may begin with ^: Zeek turned the connection round by its ports.
	case "":
	default:
		r.Has |= flow.HasInitiator
	}
	return nil
}

// zeekFlags are the TCP flags of both directions as history tells them: upper case is the
// originator's, lower case the responder's. Data and bare acknowledgements both carry ACK.
func zeekFlags(history []byte) (orig, resp uint16) {
	for _, c := range history {
		to, k := &orig, c
		if c >= 'a' && c <= 'z' {
			to, k = &resp, c-('a'-'A')
		}
		switch k {
		case 'S':
			*to |= flow.SYN
		case 'H':
			*to |= flow.SYN | flow.ACK
		case 'A', 'D':
			*to |= flow.ACK
		case 'F':
			*to |= flow.FIN | flow.ACK
		case 'R':
			*to |= flow.RST
		}
	}
	return orig, resp
}

func knownZeek(line []byte, v *fastjson.Value) string {
	switch {
	case bytes.HasPrefix(line, []byte("#separator ")):
		return "a header that begins with #separator"
	case v == nil:
	case v.Exists("id.orig_h"), v.Exists("id_orig_h"):
		return "a JSON object with id.orig_h"
	}
	return ""
}
