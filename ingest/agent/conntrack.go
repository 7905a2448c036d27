package agent

import (
	"bytes"

	"github.com/valyala/fastjson"

	"github.com/postern/postern/flow"
)

// What `conntrack -E` and `conntrack -L` of conntrack-tools print, with or without
// -o timestamp, ktimestamp, extended and id; /proc/net/nf_conntrack; and the same in syslog
// or the journal. The form is that of nfct_snprintf in libnetfilter_conntrack:
// https://git.netfilter.org/libnetfilter_conntrack/tree/src/conntrack/snprintf_default.c

func newConntrack(*Decoder) parser {
	return func(line []byte, e *entry) error {
		h, msg, err := e.message(line)
		if err != nil {
			return err
		}
		return conntrack(&h, msg, e)
	}
}

// tuple is one direction of a connection.
type tuple struct {
	src, dst       []byte
	sport, dport   []byte
	typ, code      []byte
	packets, bytes []byte
}

// conntrack reads a line. Whatever is not in brackets and has no = stands at its beginning:
// the family and its number, if extended, the protocol and its number, the time left, the state.
func conntrack(h *header, msg []byte, e *entry) error {
	var (
		tuples           [2]tuple
		n                = -1 // the tuple being read
		words            [6][]byte
		nwords           int
		event            []byte
		at, begun, ended flow.Time
		age              []byte
	)
	for rest := msg; len(rest) > 0; {
		switch rest[0] {
		case ' ', '\t':
			rest = rest[1:]
			continue
		case '[':
			end := bytes.IndexByte(rest, ']')
			if end < 0 {
				return fieldError("line", msg, "an event of conntrack's; a bracket is open")
			}
			in := rest[1:end]
			rest = rest[end+1:]
			if v, ok := bytes.CutPrefix(in, []byte("start=")); ok {
				begun, _ = e.ctime(v)
			} else if v, ok := bytes.CutPrefix(in, []byte("stop=")); ok {
				ended, _ = e.ctime(v)
			} else if n < 0 && event == nil && len(in) > 0 {
				if in[0] >= '0' && in[0] <= '9' {
					t, ok := epoch(bytes.TrimSpace(in))
					if !ok {
						return fieldError("time", in, "seconds since 1970")
					}
					at = t
				} else {
					event = in
				}
			}
			continue
		}
		word := rest
		if i := bytes.IndexAny(rest, " \t"); i >= 0 {
			word, rest = rest[:i], rest[i+1:]
		} else {
			rest = nil
		}
		i := bytes.IndexByte(word, '=')
		if i < 0 {
			if n < 0 && nwords < len(words) {
				words[nwords] = word
				nwords++
			}
			continue
		}
		key, v := word[:i], word[i+1:]
		if string(key) == "src" {
			if n++; n == len(tuples) {
				return fieldError("line", msg, "two tuples")
			}
			tuples[n].src = v
			continue
		}
		if string(key) == "delta-time" {
			age = v
		}
		if n < 0 {
			continue
		}
		t := &tuples[n]
		switch string(key) {
		case "dst":
			t.dst = v
		case "sport":
			t.sport = v
		case "dport":
			t.dport = v
		case "type":
			t.typ = v
		case "code":
			t.code = v
		case "packets":
			t.packets = v
		case "bytes":
			t.bytes = v
		}
	}
	if n < 0 {
		if bytes.Contains(msg, []byte("conntrack-tools")) {
			return NotFlow("a remark of conntrack's")
		}
		if h.at != 0 || h.host != nil || h.app != nil {
			return NotFlow("another message of the log")
		}
		return fieldError("line", msg, "an event of conntrack's, with src= and dst=")
	}
	switch string(event) {
	case "UPDATE":
		return NotFlow("an update of a connection")
	case "", "NEW", "DESTROY":
	default:
		return fieldError("event", event, "NEW, UPDATE or DESTROY")
	}
	proto, state, ok := conntrackProto(words[:nwords])
	if !ok {
		return NotFlow("an expectation of a connection") // which has no protocol by name
	}
	r := e.flow(flow.SourceConntrack)
	if err := ends(r, tuples[0].src, tuples[0].dst); err != nil {
		return err
	}
	setProto(r, proto, true)
	orig, reply := &tuples[0], &tuples[1]
	setPorts(r, orig.sport, orig.dport)
	if r.IsICMP() {
		typ, okT := octet(atou(orig.typ))
		code, okC := octet(atou(orig.code))
		setICMP(r, typ, code, okT && okC)
	}
	count, ok := atou(orig.packets)
	setPackets(r, count, ok)
	count, ok = atou(orig.bytes)
	setBytes(r, count, ok)
	count, ok = atou(reply.packets)
	setRevPackets(r, count, ok)
	count, ok = atou(reply.bytes)
	setRevBytes(r, count, ok)
	if err := conntrackNAT(r, reply); err != nil {
		return err
	}
	// A new connection that is established at once was there before its tracking: who
	// began it is not known.
	if string(event) != "NEW" || string(state) != "ESTABLISHED" {
		r.Has |= flow.HasInitiator
	}

	h.stamp(e, r)
	if at == 0 {
		at = h.at
	}
	switch string(event) {
	case "NEW":
		r.Start = max(at, begun)
	case "DESTROY":
		if r.Start, r.End = begun, at; at == 0 {
			r.End = ended
		}
		conntrackBegun(r, age)
	default: // of a list: at is when it was printed, the counters go on
		r.Quality |= flow.QualityAggregated
		if r.Start, r.End = begun, at; at != 0 {
			conntrackBegun(r, age)
		}
	}
	return nil
}

// conntrackBegun finds the start of a connection by its age in seconds.
func conntrackBegun(r *flow.Record, age []byte) {
	if s, ok := atou(age); ok && r.Start == 0 && s < maxEpoch && r.End > flow.Time(s*1000) {
		r.Start = r.End - flow.Time(s*1000)
	}
}

// conntrackProto finds the protocol among the words before the first tuple, and the state
// behind it, if there is one.
func conntrackProto(words [][]byte) (proto uint8, state []byte, ok bool) {
	if len(words) >= 2 && (string(words[0]) == "ipv4" || string(words[0]) == "ipv6") {
		words = words[2:]
	}
	if len(words) < 2 {
		return 0, nil, false
	}
	if proto, ok = octet(atou(words[1])); !ok {
		return 0, nil, false
	}
	if len(words) > 3 {
		state = words[3]
	}
	return proto, state, true
}

// conntrackNAT sets what the connection is translated to, where the reply does not simply
// turn the original round.
func conntrackNAT(r *flow.Record, reply *tuple) error {
	if reply.src == nil {
		return nil
	}
	src, ok := addr(reply.src)
	if !ok {
		return fieldError("source of the reply", reply.src, "an IP address")
	}
	dst, ok := addr(reply.dst)
	if !ok {
		return fieldError("destination of the reply", reply.dst, "an IP address")
	}
	ports := r.All(flow.HasSrcPort | flow.HasDstPort)
	sport, ok := port16(atou(reply.sport))
	ports = ports && ok
	dport, ok := port16(atou(reply.dport))
	ports = ports && ok
	if dst != r.Src || ports && dport != r.SrcPort {
		if r.NATSrc, r.Has = dst, r.Has|flow.HasNATSrc; ports {
			r.NATSrcPort, r.Has = dport, r.Has|flow.HasNATSrcPort
		}
	}
	if src != r.Dst || ports && sport != r.DstPort {
		if r.NATDst, r.Has = src, r.Has|flow.HasNATDst; ports {
			r.NATDstPort, r.Has = sport, r.Has|flow.HasNATDstPort
		}
	}
	return nil
}

func knownConntrack(line []byte, v *fastjson.Value) string {
	where := "a line"
	if v != nil {
		if line = str(v, "MESSAGE"); line == nil {
			return ""
		}
		where = "an entry of the journal"
	}
	if i := bytes.Index(line, []byte(" src=")); i >= 0 && bytes.Contains(line, []byte(" dst=")) {
		rest := line[i+1:]
		if bytes.Contains(rest, []byte(" src=")) && !bytes.Contains(line, []byte("CEF:")) {
			return where + " with the two tuples of a tracked connection"
		}
	}
	return ""
}
