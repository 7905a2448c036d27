package flow

import (
	"bytes"
	"strconv"
	"unicode/utf8"
)

// AppendJSON appends the record as one JSON object, without a newline: the wire
// fields as `postern decode` prints them, and after judging the fields that
// `postern replay --flows` adds. Absent fields are left out. It does not allocate
// beyond growing b.
func (r *Record) AppendJSON(b []byte, names []string) []byte {
	w := jsonWriter{b: append(b, '{'), names: names}
	w.time("time_start", r.Start, true)
	w.time("time_end", r.End, true)
	w.time("time_received", r.Received, r.Received != 0)
	w.addr("exporter", r.Exporter, !r.Exporter.IsZero())
	w.uint("domain", uint64(r.Domain), true)
	w.str("source", r.Source.String())
	w.addr("src_addr", r.Src, r.Any(HasSrc))
	w.addr("dst_addr", r.Dst, r.Any(HasDst))
	w.uint("src_port", uint64(r.SrcPort), r.Any(HasSrcPort))
	w.uint("dst_port", uint64(r.DstPort), r.Any(HasDstPort))
	w.uint("proto", uint64(r.Proto), r.Any(HasProto))
	w.uint("tcp_flags", uint64(r.TCPFlags), r.Any(HasTCPFlags))
	w.uint("bytes", r.Bytes(), r.Any(HasBytes))
	w.uint("packets", r.Packets(), r.Any(HasPackets))
	w.uint("rev_bytes", r.RevBytes(), r.Any(HasRevBytes))
	w.uint("rev_packets", r.RevPackets(), r.Any(HasRevPackets))
	w.uint("rev_tcp_flags", uint64(r.RevTCPFlags), r.Any(HasRevTCPFlags))
	w.uint("in_if", uint64(r.InIf), r.Any(HasInIf))
	w.uint("out_if", uint64(r.OutIf), r.Any(HasOutIf))
	w.uint("sampling_rate", uint64(r.SamplingRate), r.SamplingRate != 0)
	w.uint("bytes_raw", r.BytesRaw, r.Any(HasBytes))
	w.uint("packets_raw", r.PacketsRaw, r.Any(HasPackets))
	w.uint("rev_bytes_raw", r.RevBytesRaw, r.Any(HasRevBytes))
	w.uint("rev_packets_raw", r.RevPacketsRaw, r.Any(HasRevPackets))
	w.addr("nat_src_addr", r.NATSrc, r.Any(HasNATSrc))
	w.addr("nat_dst_addr", r.NATDst, r.Any(HasNATDst))
	w.uint("nat_src_port", uint64(r.NATSrcPort), r.Any(HasNATSrcPort))
	w.uint("nat_dst_port", uint64(r.NATDstPort), r.Any(HasNATDstPort))
	w.uint("icmp_type", uint64(r.ICMPType), r.Any(HasICMP))
	w.uint("icmp_code", uint64(r.ICMPCode), r.Any(HasICMP))
	w.uint("forwarding_status", uint64(r.ForwardingStatus), r.Any(HasForwardingStatus))
	w.uint("firewall_event", uint64(r.FirewallEvent), r.Any(HasFirewallEvent))
	if r.Any(HasDirection) {
		if r.Direction == 0 {
			w.str("direction", "ingress")
		} else {
			w.str("direction", "egress")
		}
	}
	w.name("user", r.User)
	w.name("app", r.App)
	w.name("observer", r.Observer)
	w.name("policy", r.EnforcedBy)
	w.name("process", r.process())
	switch {
	case r.Any(HasInitiator):
		w.str("initiator", "source")
	case r.Any(HasResponder):
		w.str("initiator", "destination")
	}
	w.key("quality")
	w.texts(uint32(r.Quality), qualityTexts[:])
	if r.Verdict.Reason == ReasonNone {
		if r.Reporter != ReporterElsewhere {
			w.str("reporter", r.Reporter.String())
		}
		w.name("src_host", r.SrcHost)
		w.name("dst_host", r.DstHost)
		w.name("src_process", r.SrcProcess)
		w.name("dst_process", r.DstProcess)
		w.name("src_identity", r.SrcIdentity)
		w.name("dst_identity", r.DstIdentity)
		if r.Enforced != ObservedUnknown {
			w.str("observed", r.Enforced.String())
		}
	} else {
		v := &r.Verdict
		client, server := r.Ends()
		cseg, sseg := r.Segments()
		cwl, swl := r.Workloads()
		cid, sid := r.Identities()
		w.addr("client", client, r.Any(HasSrc|HasDst))
		w.addr("server", server, r.Any(HasSrc|HasDst))
		w.key("service")
		w.b = append(r.appendService(append(w.b, '"')), '"')
		w.name("src_segment", cseg)
		w.name("dst_segment", sseg)
		w.name("src_workload", cwl)
		w.name("dst_workload", swl)
		w.name("src_identity", cid)
		w.name("dst_identity", sid)
		cdoubt, sdoubt := r.Doubts()
		csilent, ssilent := r.Silences()
		w.doubt("src", cdoubt, csilent)
		w.doubt("dst", sdoubt, ssilent)
		chost, shost := r.Hosts()
		cproc, sproc := r.Processes()
		if r.Reporter != ReporterElsewhere {
			w.str("reporter", r.ReporterEnd())
		}
		w.name("src_host", chost)
		w.name("dst_host", shost)
		w.name("src_process", cproc)
		w.name("dst_process", sproc)
		w.str("observed", v.Observed.String())
		w.str("expected", v.Expected.String())
		w.str("staged", v.Staged.String())
		w.str("staged_reason", v.StagedReason.String())
		w.str("reason", v.Reason.String())
		w.str("outcome", v.Outcome.String())
		w.key("confidence")
		w.b = strconv.AppendFloat(w.b, float64(v.Confidence)/100, 'g', -1, 64)
		w.name("rule", v.Rule)
		w.name("exception", v.Exception)
		if v.Failed != 0 {
			w.key("failed")
			w.texts(uint32(v.Failed), dimensionTexts[:])
		}
		if v.Missing != 0 {
			w.key("missing")
			w.texts(uint32(v.Missing), dimensionTexts[:])
		}
		if v.OthersTotal > 0 {
			w.key("others")
			w.b = append(w.b, '[')
			for i := range min(int(v.OthersTotal), MaxOthers) {
				if i > 0 {
					w.b = append(w.b, ',')
				}
				w.b = AppendJSONString(w.b, w.text(v.Others[i]))
			}
			w.b = append(w.b, ']')
			w.uint("others_total", uint64(v.OthersTotal), true)
		}
		w.time("valid_until", v.ValidUntil, v.ValidUntil != 0)
		w.name("policy_version", v.PolicyVersion)
	}
	return append(w.b, '}')
}

// Service is the record's service as the policy language writes it: tcp/443,
// icmp/8/0, 47. While the orientation is open it is the protocol alone.
func (r *Record) Service() string { return string(r.appendService(nil)) }

// AppendService appends [Record.Service] to b without allocating.
func (r *Record) AppendService(b []byte) []byte { return r.appendService(b) }

func (r *Record) appendService(b []byte) []byte {
	if !r.Any(HasProto) {
		return append(b, "unknown"...)
	}
	b = AppendProto(b, r.Proto)
	switch {
	case r.IsICMP():
		if r.Any(HasICMP) {
			b = strconv.AppendUint(append(b, '/'), uint64(r.ICMPType), 10)
			b = strconv.AppendUint(append(b, '/'), uint64(r.ICMPCode), 10)
		}
	case r.Oriented != Open && r.Any(HasSrcPort|HasDstPort) && (r.Proto == ProtoTCP || r.Proto == ProtoUDP || r.Proto == ProtoSCTP):
		_, port := r.Ports()
		b = strconv.AppendUint(append(b, '/'), uint64(port), 10)
	}
	return b
}

// AppendProto appends a protocol number as the policy language writes it: tcp,
// udp, icmp, icmpv6, sctp, else the number.
func AppendProto(b []byte, proto uint8) []byte {
	switch proto {
	case ProtoTCP:
		return append(b, "tcp"...)
	case ProtoUDP:
		return append(b, "udp"...)
	case ProtoICMP:
		return append(b, "icmp"...)
	case ProtoICMPv6:
		return append(b, "icmpv6"...)
	case ProtoSCTP:
		return append(b, "sctp"...)
	}
	return strconv.AppendUint(b, uint64(proto), 10)
}

type jsonWriter struct {
	b     []byte
	names []string
}

// key starts a member; every key in use is plain ASCII and needs no escaping.
func (w *jsonWriter) key(k string) {
	if w.b[len(w.b)-1] != '{' {
		w.b = append(w.b, ',')
	}
	w.b = append(append(append(w.b, '"'), k...), '"', ':')
}

func (w *jsonWriter) uint(k string, v uint64, present bool) {
	if present {
		w.key(k)
		w.b = strconv.AppendUint(w.b, v, 10)
	}
}

func (w *jsonWriter) time(k string, t Time, present bool) {
	if present {
		w.key(k)
		w.b = append(t.AppendTo(append(w.b, '"')), '"')
	}
}

func (w *jsonWriter) addr(k string, a Addr, present bool) {
	if present {
		w.key(k)
		w.b = append(a.AppendTo(append(w.b, '"')), '"')
	}
}

func (w *jsonWriter) str(k, v string) {
	w.key(k)
	w.b = AppendJSONString(w.b, v)
}

func (w *jsonWriter) text(n Name) string { return text(w.names, int(n)) }

func (w *jsonWriter) name(k string, n Name) {
	if n != NoName {
		w.str(k, w.text(n))
	}
}

func (w *jsonWriter) doubt(end string, d Doubt, silence int32) {
	if d != 0 {
		w.key(end + "_doubt")
		w.texts(uint32(d), doubtTexts[:])
	}
	w.uint(end+"_silence", uint64(max(silence, 0)), silence > 0)
}

func (w *jsonWriter) texts(set uint32, texts []string) {
	w.b = append(w.b, '[')
	for i, t := range texts {
		if set&(1<<i) != 0 {
			if w.b[len(w.b)-1] != '[' {
				w.b = append(w.b, ',')
			}
			w.b = append(append(append(w.b, '"'), t...), '"')
		}
	}
	w.b = append(w.b, ']')
}

// AppendJSONString appends s as a JSON string. Control characters, quotes,
// backslashes and the line separators U+2028/9 are escaped, bytes that are no
// UTF-8 become U+FFFD, so that whatever a host on the network says stays inside
// the string.
func AppendJSONString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			switch {
			case c == '"' || c == '\\':
				b = append(b, '\\', c)
			case c < 0x20 || c == 0x7f:
				b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			default:
				b = append(b, c)
			}
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			b = append(b, `\ufffd`...)
		case r == '\u2028' || r == '\u2029':
			b = append(b, `\u202`...)
			b = append(b, hex[r&15])
		default:
			b = append(b, s[i:i+n]...)
		}
		i += n
	}
	return append(b, '"')
}

// EscapeDEL gives JSON with DEL escaped: the one control character that JSON lets stand in a text, and
// that a terminal obeys. encoding/json leaves it; texts of a finding may hold what a host calls itself.
func EscapeDEL(b []byte) []byte { return bytes.ReplaceAll(b, []byte{0x7f}, []byte(`\u007f`)) }
