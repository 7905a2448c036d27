package agent

import (
	"bytes"

	"github.com/valyala/fastjson"

	"github.com/postern/postern/flow"
)

// Log lines of Linux's packet filters, nftables' log and iptables' LOG, from the kernel's
// log, syslog or the journal; ulogd's LOGEMU writes the same. The form is that of the
// kernel: net/netfilter/nf_log_syslog.c.
//
// A line tells one packet.

func newNetfilter(*Decoder) parser {
	return func(line []byte, e *entry) error {
		h, msg, err := e.message(line)
		if err != nil {
			return err
		}
		if t, rest, ok := e.kernelTime(msg); ok {
			if msg = rest; h.at == 0 {
				h.at = t
			}
		}
		return netfilter(&h, msg, e)
	}
}

// kernelTime takes off what the kernel's log has before a message: [12345.678901], which
// counts from when the machine began and is no time, or what `dmesg -T` makes of it.
func (e *entry) kernelTime(b []byte) (t flow.Time, rest []byte, ok bool) {
	b = bytes.TrimLeft(b, " ")
	if len(b) == 0 || b[0] != '[' {
		return 0, b, false
	}
	end := bytes.IndexByte(b, ']')
	if end < 0 {
		return 0, b, false
	}
	in, rest := bytes.TrimLeft(b[1:end], " "), bytes.TrimLeft(b[end+1:], " ")
	if t, ok = e.ctime(in); ok {
		return t, rest, true
	}
	whole, frac, dot := bytes.Cut(in, []byte{'.'})
	return 0, rest, dot && decimal(whole) && decimal(frac)
}

// netfilter reads a message: a prefix, which is the rule's, then IN= and the rest.
func netfilter(h *header, msg []byte, e *entry) error {
	in := netfilterBegin(msg)
	if in < 0 {
		return NotFlow("another message of the log")
	}
	prefix, rest := msg[:in], msg[in:]
	var (
		ifIn, ifOut      []byte
		src, dst         []byte
		length, proto    []byte
		sport, dport     []byte
		typ, code        []byte
		flags            uint16
		header           bool // of TCP
		protoKnown, icmp bool
	)
	for len(rest) > 0 {
		if rest[0] == '[' { // the packet that an ICMP error quotes
			rest = rest[quoted(rest):]
			continue
		}
		i := bytes.IndexByte(rest, ' ')
		word := rest
		if i < 0 {
			rest = nil
		} else {
			word, rest = rest[:i], rest[i+1:]
		}
		if len(word) == 0 {
			continue
		}
		eq := bytes.IndexByte(word, '=')
		if eq < 0 {
			switch string(word) { // CWR and ECE too, which TCP has above URG
			case "SYN":
				flags |= flow.SYN
			case "ACK":
				flags |= flow.ACK
			case "FIN":
				flags |= flow.FIN
			case "RST":
				flags |= flow.RST
			case "PSH":
				flags |= flow.PSH
			case "URG":
				flags |= flow.URG
			case "ECE":
				flags |= 1 << 6
			case "CWR":
				flags |= 1 << 7
			}
			continue
		}
		key, v := word[:eq], word[eq+1:]
		switch string(key) {
		case "IN":
			ifIn = v
		case "OUT":
			ifOut = v
		case "SRC":
			src = v
		case "DST":
			dst = v
		case "LEN":
			if length == nil { // the next is UDP's
				length = v
			}
		case "PROTO":
			proto, protoKnown = v, true
		case "SPT":
			sport = v
		case "DPT":
			dport = v
		case "TYPE":
			typ, icmp = v, true
		case "CODE":
			code = v
		case "RES":
			header = true
		}
	}
	if src == nil && dst == nil {
		return NotFlow("a packet without IP")
	}
	r := e.flow(flow.SourceNetfilter)
	if err := ends(r, src, dst); err != nil {
		return err
	}
	if protoKnown {
		p, ok := protocol(proto)
		setProto(r, p, ok)
	}
	port, ok := port16(atou(sport))
	setSrcPort(r, port, ok)
	port, ok = port16(atou(dport))
	setDstPort(r, port, ok)
	if icmp && r.IsICMP() {
		t, okT := octet(atou(typ))
		c, okC := octet(atou(code))
		setICMP(r, t, c, okT && okC)
	}
	if header && r.Proto == flow.ProtoTCP {
		setFlags(r, flags, true)
		switch flags & (flow.SYN | flow.ACK) { // of one packet
		case flow.SYN:
			r.Has |= flow.HasInitiator
		case flow.SYN | flow.ACK:
			r.Has |= flow.HasResponder
		}
	}
	n, ok := atou(length)
	setBytes(r, n, ok)
	setPackets(r, 1, true)
	switch {
	case len(ifIn) > 0 && len(ifOut) == 0:
		r.Direction, r.Has = 0, r.Has|flow.HasDirection
	case len(ifOut) > 0 && len(ifIn) == 0:
		r.Direction, r.Has = 1, r.Has|flow.HasDirection
	}
	tag := netfilterTag(prefix)
	r.EnforcedBy = e.name(tag)
	r.Enforced = netfilterVerdict(tag)
	h.stamp(e, r)
	return nil
}

// quoted is the length of what begins with a bracket, up to the one that closes it.
func quoted(b []byte) int {
	depth := 0
	for i, c := range b {
		switch c {
		case '[':
			depth++
		case ']':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return len(b)
}

// netfilterBegin is where the kernel's own words begin: an IN= that is followed by OUT=, with
// nothing but an interface between. The prefix may be glued to it.
func netfilterBegin(msg []byte) int {
	for from := 0; ; {
		i := bytes.Index(msg[from:], []byte("IN="))
		if i < 0 {
			return -1
		}
		i += from
		rest := msg[i+3:]
		if k := bytes.IndexByte(rest, ' '); k >= 0 && k <= 15 && bytes.HasPrefix(rest[k+1:], []byte("OUT=")) {
			return i
		}
		from = i + 3
	}
}

// netfilterTag is a prefix without what is there to set it off: spaces, a colon at its end,
// brackets around it.
func netfilterTag(prefix []byte) []byte {
	t := bytes.Trim(prefix, " \t")
	t = bytes.TrimRight(t, ": ")
	if len(t) > 1 && t[0] == '[' && t[len(t)-1] == ']' {
		t = bytes.TrimSpace(t[1 : len(t)-1])
	}
	return t
}

// netfilterVerdict is what the words of a rule's tag say of what was done. Logging is no
// verdict, so a tag that does not say is unknown, and so is one that says both, or that
// something was not or would be done.
func netfilterVerdict(tag []byte) flow.Observed {
	verdict := flow.ObservedUnknown
	for i := 0; i < len(tag); {
		if !letter(tag[i]) {
			i++
			continue
		}
		var word [12]byte
		n := 0
		for ; i < len(tag) && letter(tag[i]); i++ {
			if n < len(word) {
				word[n] = tag[i] &^ ('a' - 'A')
			}
			n++
		}
		if n > len(word) {
			continue
		}
		var says flow.Observed
		switch string(word[:n]) {
		case "DROP", "DROPS", "DROPPED", "DENY", "DENIED", "BLOCK", "BLOCKED", "REJECT", "REJECTED":
			says = flow.ObservedDeny
		case "ACCEPT", "ACCEPTED", "ALLOW", "ALLOWED", "PASS", "PASSED", "PERMIT", "PERMITTED":
			says = flow.ObservedAllow
		case "AUDIT", "NO", "NOT", "NON", "WOULD", "TEST", "DRY":
			return flow.ObservedUnknown
		default:
			continue
		}
		if verdict != flow.ObservedUnknown && verdict != says {
			return flow.ObservedUnknown
		}
		verdict = says
	}
	return verdict
}

func letter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }

func knownNetfilter(line []byte, v *fastjson.Value) string {
	where := "a line"
	if v != nil {
		if line = str(v, "MESSAGE"); line == nil {
			return ""
		}
		where = "an entry of the journal"
	}
	if i := netfilterBegin(line); i >= 0 && bytes.Contains(line[i:], []byte(" LEN=")) && bytes.Contains(line[i:], []byte(" PROTO=")) {
		return where + " with IN=, OUT=, LEN= and PROTO= of the packet filter's log"
	}
	return ""
}
