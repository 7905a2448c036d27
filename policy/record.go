package policy

import (
	"github.com/postern/postern/flow"
)

// JudgeRecord judges a record by the version in force at its start. It fills the
// record's Verdict and the segments and workloads of both ends, and reads its
// Oriented.
//
// While Oriented is Open both readings are judged. The same verdict either way
// stands. If either is permitted the record is, with lowered confidence, and
// Oriented becomes that reading (OrientationCertainty 50). Otherwise Oriented
// stays Open and the verdict is the graver of the two. Where the readings differ
// in reason, rule or exception settled is false: whoever can still learn which end
// began sets Oriented and judges again, or lets this verdict stand. Judging again
// gives the same.
//
// It neither allocates nor keeps r, and is safe for concurrent use on different
// records.
func (h *History) JudgeRecord(r *flow.Record) (settled bool) { return h.JudgeRecordAs(r, nil) }

// Who is what is known of the ends of a record beside what it holds itself. Of each only
// groups and posture are read.
type Who struct{ Src, Dst Party }

// JudgeRecordAs is JudgeRecord with what is known of the ends; nil is nothing.
func (h *History) JudgeRecordAs(r *flow.Record, who *Who) (settled bool) {
	line := h.line.Load()
	x := line.at(r.Start)
	r.SrcSegment, r.DstSegment, r.SrcWorkload, r.DstWorkload = 0, 0, 0, 0
	if x == nil {
		r.Verdict = flow.Verdict{Reason: flow.ReasonUnverified, StagedReason: flow.ReasonUnverified, Observed: observed(r)}
		return true
	}
	reading, settled := x.judgeRecord(r, who, r.Start, &r.Verdict, true)
	if r.Skew != 0 {
		line.doubtBySkew(r, who)
		if r.Verdict.Reason == flow.ReasonExpiryUncertain {
			reading = r.Oriented
		}
	}
	if reading != r.Oriented {
		r.Oriented, r.OrientationCertainty = reading, readByVerdict
	}
	if r.Oriented == flow.Open {
		r.Quality |= flow.QualityDirectionOpen
	} else {
		r.Quality &^= flow.QualityDirectionOpen
	}
	return settled
}

// readByVerdict is the certainty of an orientation that was chosen because that
// reading is permitted.
const readByVerdict = 50

// judgeRecord judges r as if it had begun at t. It gives the reading that the
// verdict stands for; with fill it also writes segments and workloads into r.
func (x *Index) judgeRecord(r *flow.Record, who *Who, t flow.Time, v *flow.Verdict, fill bool) (reading flow.Orientation, settled bool) {
	var src, dst *region
	if r.Any(flow.HasSrc) {
		src = x.region(r.Src)
		if fill {
			r.SrcSegment, r.SrcWorkload = src.segment, src.workload
		}
	}
	if r.Any(flow.HasDst) {
		dst = x.region(r.Dst)
		if fill {
			r.DstSegment, r.DstWorkload = dst.segment, dst.workload
		}
	}
	var c Conversation
	switch r.Oriented {
	case flow.Forward:
		conversation(r, who, t, flow.Forward, &c)
		x.judge(&c, src, dst, v)
	case flow.Reverse:
		conversation(r, who, t, flow.Reverse, &c)
		x.judge(&c, dst, src, v)
	default:
		return x.judgeOpen(r, who, t, src, dst, v)
	}
	trust(r, v)
	return r.Oriented, true
}

// judgeOpen judges both readings of r and joins them. The reading in ascending
// order of addresses comes first, so that both halves of a conversation come to
// the same.
func (x *Index) judgeOpen(r *flow.Record, who *Who, t flow.Time, src, dst *region, v *flow.Verdict) (reading flow.Orientation, settled bool) {
	one, other := flow.Forward, flow.Reverse
	if cmp := r.Src.Compare(r.Dst); cmp > 0 || cmp == 0 && r.SrcPort > r.DstPort {
		one, other = other, one
	}
	var c Conversation
	var w flow.Verdict
	for _, each := range [...]struct {
		reading flow.Orientation
		v       *flow.Verdict
	}{{one, v}, {other, &w}} {
		conversation(r, who, t, each.reading, &c)
		if each.reading == flow.Forward {
			x.judge(&c, src, dst, each.v)
		} else {
			x.judge(&c, dst, src, each.v)
		}
	}
	reading = flow.Open
	settled = v.Reason == w.Reason && v.Rule == w.Rule && v.Exception == w.Exception
	if settled {
		if grade(w.Staged, w.StagedReason) < grade(v.Staged, v.StagedReason) {
			v.Staged, v.StagedReason = w.Staged, w.StagedReason
		}
		trust(r, v)
		return reading, true
	}
	missing := v.Missing | w.Missing
	if grade(w.Expected, w.Reason) < grade(v.Expected, v.Reason) {
		*v, one = w, other
	}
	switch {
	case v.Expected == flow.ExpectAllow:
		reading = one
	case v.Reason == flow.ReasonUnverified:
		v.Missing = missing
	}
	v.Confidence = scaled(v.Confidence, factorOpen)
	trust(r, v)
	return reading, false
}

// grade orders the verdicts of two readings: the lowest stands. An allowance goes
// first; then what cannot be told, since the other reading may be the true one;
// then denials, the one that implicates an exception more before the one that does
// so less.
func grade(e flow.Expected, reason flow.Reason) int {
	switch reason {
	case flow.ReasonPermitted:
		return 0
	case flow.ReasonWaived:
		return 1
	case flow.ReasonUncovered:
		return 2
	case flow.ReasonUnverified:
		return 3
	case flow.ReasonExpired:
		return 4
	case flow.ReasonNotYetValid:
		return 5
	case flow.ReasonUnapproved:
		return 6
	case flow.ReasonOutOfScope:
		return 7
	}
	return 8 + int(e)
}

// trust lowers the confidence by how far the record itself can be trusted.
func trust(r *flow.Record, v *flow.Verdict) {
	if r.Oriented != flow.Open && r.OrientationCertainty != 0 {
		v.Confidence = scaled(v.Confidence, min(100, r.OrientationCertainty))
	}
	if r.Quality&flow.QualityClockSkew != 0 {
		v.Confidence = scaled(v.Confidence, factorClockSkew)
	}
	if r.Quality&(flow.QualityClockUnusable|flow.QualityTimeMissing) != 0 {
		v.Confidence = scaled(v.Confidence, factorClockBroken)
	}
}

// conversation writes one reading of r into c.
func conversation(r *flow.Record, who *Who, t flow.Time, reading flow.Orientation, c *Conversation) {
	*c = Conversation{Start: t, End: r.End, Proto: r.Proto, ICMPType: r.ICMPType, ICMPCode: r.ICMPCode, Observed: observed(r)}
	if evidenceOf(r) {
		c.Evidence = EvidenceBothWays
	}
	hasClient, hasServer, hasPort := flow.HasSrc, flow.HasDst, flow.HasDstPort
	c.Client.Addr, c.Server.Addr, c.Port = r.Src, r.Dst, r.DstPort
	c.Client.Identity, c.Server.Identity = r.SrcIdentity, r.DstIdentity
	c.Client.Process, c.Server.Process = r.SrcProcess, r.DstProcess
	if reading == flow.Reverse {
		hasClient, hasServer, hasPort = flow.HasDst, flow.HasSrc, flow.HasSrcPort
		c.Client.Addr, c.Server.Addr, c.Port = r.Dst, r.Src, r.SrcPort
		c.Client.Identity, c.Server.Identity = r.DstIdentity, r.SrcIdentity
		c.Client.Process, c.Server.Process = r.DstProcess, r.SrcProcess
		// A reply is judged as the request it answers: icmp/echo permits its replies.
		c.ICMPType = icmpRequest(r.Proto, r.ICMPType)
	}
	if who != nil {
		client, server := &who.Src, &who.Dst
		if reading == flow.Reverse {
			client, server = server, client
		}
		c.Client.attributes(client)
		c.Server.attributes(server)
	}
	for _, k := range [...]struct {
		has   flow.Has
		known Known
	}{{hasClient, KnownClient}, {hasServer, KnownServer}, {hasPort, KnownPort}, {flow.HasProto, KnownProto}, {flow.HasICMP, KnownICMP}} {
		if r.Any(k.has) {
			c.Known |= k.known
		}
	}
}

// attributes takes over what only the store of identities knows.
func (p *Party) attributes(q *Party) {
	p.Posture, p.Groups, p.MoreGroups = q.Posture, q.Groups, q.MoreGroups
}

// icmpRequest gives the type of the request that an ICMP reply answers (RFC 792,
// RFC 950, RFC 4443); every other type is its own.
func icmpRequest(proto, typ uint8) uint8 {
	switch {
	case proto == flow.ProtoICMP && typ == 0:
		return 8
	case proto == flow.ProtoICMP && (typ == 14 || typ == 16 || typ == 18):
		return typ - 1
	case proto == flow.ProtoICMPv6 && typ == 129:
		return 128
	}
	return typ
}

// observed is what the exporter itself says enforcement did: an agent's log, forwarding
// status (IPFIX 89, RFC 7270 4.12) and firewall event (IPFIX 233). Of two, a denial counts.
func observed(r *flow.Record) flow.Observed {
	o := r.Enforced
	if o == flow.ObservedDeny {
		return o
	}
	if r.Any(flow.HasForwardingStatus) {
		switch r.ForwardingStatus >> 6 {
		case 1:
			o = flow.ObservedAllow
		case 2:
			return flow.ObservedDeny
		case 3: // consumed by the device; 194 is an incomplete adjacency: nobody answered
			if r.ForwardingStatus != 194 {
				o = flow.ObservedAllow
			}
		}
	}
	if r.Any(flow.HasFirewallEvent) {
		switch r.FirewallEvent {
		case 1, 2, 5: // created, deleted, updated: there was a flow
			o = flow.ObservedAllow
		case 3:
			return flow.ObservedDeny
		case 4:
			o = flow.ObservedAudit
		}
	}
	return o
}

// evidenceOf says whether a record nobody's enforcement spoke of shows that the
// conversation got through: traffic both ways, or TCP flags that only a completed
// handshake leaves. A lone SYN, a lone RST and the pair of both do not.
func evidenceOf(r *flow.Record) bool {
	flags := r.TCPFlags
	tcp := r.Proto == flow.ProtoTCP && r.Any(flow.HasProto)
	if tcp && r.Any(flow.HasTCPFlags) && established(flags, r.PacketsRaw) {
		return true
	}
	// The other direction, told by this record.
	if r.Any(flow.HasRevPackets) && r.RevPacketsRaw > 0 || r.Any(flow.HasRevBytes) && r.RevBytesRaw > 0 {
		if !tcp || !r.Any(flow.HasRevTCPFlags) {
			return true
		}
		return answered(r.RevTCPFlags) && (!r.Any(flow.HasTCPFlags) || answered(flags))
	}
	certain := r.OrientationCertainty == 0 || r.OrientationCertainty > readByVerdict
	if r.OtherHalf || r.Oriented == flow.Reverse && certain {
		return !tcp || !r.Any(flow.HasTCPFlags) || r.Oriented == flow.Reverse && answered(flags)
	}
	return false
}

// established says whether one direction's flags prove a handshake: an
// acknowledgement together with data or an end, or after a SYN, or in more than one
// packet.
func established(flags uint16, packets uint64) bool {
	if flags&flow.ACK == 0 {
		return false
	}
	if flags&(flow.PSH|flow.FIN) != 0 {
		return true
	}
	return flags&flow.RST == 0 && (flags&flow.SYN != 0 || packets > 1)
}

// answered says whether flags are more than a refusal (RST, RST with ACK) and, for
// a direction that opens, more than nothing.
func answered(flags uint16) bool {
	return flags&(flow.SYN|flow.PSH|flow.FIN) != 0 || flags&flow.ACK != 0 && flags&flow.RST == 0
}

// doubtBySkew makes the verdict expiry-uncertain where it would be another within
// the exporter's clock error either way.
func (l *timeline) doubtBySkew(r *flow.Record, who *Who) {
	v := &r.Verdict
	if v.Reason == flow.ReasonUnverified {
		return
	}
	skew := flow.Time(r.Skew)
	if skew < 0 {
		skew = -skew
	}
	from, to := r.Start-skew, r.Start+skew
	doubt := func(x *Index, t flow.Time) bool {
		w := flow.Verdict{Reason: flow.ReasonUnverified, StagedReason: flow.ReasonUnverified}
		if x != nil {
			x.judgeRecord(r, who, t, &w, false)
		}
		if w.StagedReason != v.StagedReason {
			v.Staged, v.StagedReason = flow.ExpectUnknown, flow.ReasonExpiryUncertain
		}
		if w.Reason == v.Reason {
			return false
		}
		exception := v.Exception
		if exception == flow.NoName {
			exception = w.Exception
		}
		*v = flow.Verdict{PolicyVersion: v.PolicyVersion, Rule: v.Rule, Exception: exception, Reason: flow.ReasonExpiryUncertain,
			Staged: v.Staged, StagedReason: v.StagedReason, Observed: v.Observed}
		return true
	}
	if doubt(l.at(from), from) {
		return
	}
	for i := range l.intervals {
		in := &l.intervals[i]
		if in.Until <= from || in.Since > to {
			continue
		}
		if in.Since > from && doubt(in.Index, in.Since) {
			return
		}
		for _, t := range in.Index.instants {
			if t > from && t <= to && t >= in.Since && t < in.Until && doubt(in.Index, t) {
				return
			}
		}
	}
}
