package sink

import (
	"context"
	"io"
	"slices"

	"github.com/ClickHouse/ch-go/proto"

	"github.com/postern/postern/flow"
)

// MaxFlowRows is how many rows a block may hold. A flow takes about 300 bytes on the wire,
// so a full block is some 40 MB; it stays well below the million rows at which
// an engine cuts an insert in two, since only an insert that is one block is
// stored whole or not at all.
const MaxFlowRows = 1 << 17

// FlowWriter turns records into one block of the flows table and inserts it. Its
// columns are used again for every block, so that in a steady state appending
// allocates nothing. Not safe for concurrent use.
type FlowWriter struct {
	db    *ClickHouse
	names *flow.Names
	rows  int
	cols  flowColumns
	input proto.Input
	// texts is the names' snapshot of the last batch; the records of a block may
	// need the later ones, never fewer.
	texts   []string
	encoded block // for Encode
}

// NewFlowWriter makes a writer of records whose names are in names.
func (db *ClickHouse) NewFlowWriter(names *flow.Names) *FlowWriter {
	w := NewFlowWriter(names)
	w.Bind(db)
	return w
}

// NewFlowWriter makes a writer before there is a database to write to: flows can
// be encoded while ClickHouse is still away. [FlowWriter.Bind] comes before the
// first flush.
func NewFlowWriter(names *flow.Names) *FlowWriter {
	w := &FlowWriter{names: names}
	w.cols.init()
	w.input = w.cols.input()
	w.Reset()
	return w
}

// Bind says where Flush inserts.
func (w *FlowWriter) Bind(db *ClickHouse) { w.db = db }

// Rows is how many records have been appended since the last flush or reset.
func (w *FlowWriter) Rows() int { return w.rows }

// Reset forgets what was appended.
func (w *FlowWriter) Reset() {
	w.rows = 0
	w.cols.reset()
}

// Append adds the records of a batch to the block. It only reads the batch and
// keeps nothing of it. The caller flushes before the block would exceed [MaxFlowRows].
func (w *FlowWriter) Append(b *flow.Batch) { w.AppendRecords(b.Records) }

// AppendRecords is Append for a part of a batch.
func (w *FlowWriter) AppendRecords(records []flow.Record) {
	w.texts = w.names.Texts()
	w.cols.extend(len(records))
	for part := range slices.Chunk(records, chunk) {
		w.cols.fill(w.rows, part, w.texts)
		w.rows += len(part)
	}
}

// Flush inserts the block under ins and empties the writer. After an error the
// block is still there, so that the caller can flush it again under the same
// [Insert]; see [Retryable]. A block without rows is not sent.
func (w *FlowWriter) Flush(ctx context.Context, ins Insert) (Written, error) {
	if w.rows == 0 {
		return Written{}, nil
	}
	w.cols.seal(w.rows, ins)
	done, err := w.db.insertBlock(ctx, "flows", w.input, w.rows, ins)
	if err != nil {
		return Written{}, err
	}
	w.Reset()
	return done, nil
}

// FlushWithRetry flushes until it succeeds, the failure is one that trying again
// cannot mend, or ctx ends. The caller's pipeline stands still meanwhile; what
// arrives waits in the spool.
func (w *FlowWriter) FlushWithRetry(ctx context.Context, ins Insert) (Written, error) {
	return retry(ctx, w.db, "flows", func() (Written, error) { return w.Flush(ctx, ins) })
}

// Encode writes the block to out in ClickHouse's Native format, revision 0, as
// Flush sends it, and keeps it. It is for measuring.
func (w *FlowWriter) Encode(out io.Writer, ins Insert) (int64, error) {
	w.cols.seal(w.rows, ins)
	if err := w.encoded.encode(w.input, w.rows); err != nil {
		return 0, err
	}
	return io.Copy(out, w.encoded.reader())
}

type (
	optional8  = optional[uint8, proto.ColUInt8]
	optional16 = optional[uint16, proto.ColUInt16]
	optional32 = optional[uint32, proto.ColUInt32]
	optional64 = optional[uint64, proto.ColUInt64]
	optionalIP = optional[proto.IPv6, proto.ColIPv6]
)

// flowColumns are the columns of the flows table; the schema says what each means.
type flowColumns struct {
	start, end, received       proto.ColDateTime64
	exporter, client, server   proto.ColIPv6
	domain, samplingRate       proto.ColUInt32
	source                     words
	clientPort, serverPort     optional16
	service                    services
	oriented                   words
	certainty                  proto.ColUInt8
	swapped, otherHalf         proto.ColBool
	proto                      optional8
	tcpFlags, revTCPFlags      optional16
	bytes, packets             proto.ColUInt64
	revBytes, revPackets       proto.ColUInt64
	bytesRaw, packetsRaw       optional64
	revBytesRaw, revPacketsRaw optional64
	inIf, outIf                optional32
	natSrc, natDst             optionalIP
	natSrcPort, natDstPort     optional16
	icmpType, icmpCode         optional8
	forwarding, firewall       optional8
	direction                  words
	biflow                     optional8
	user, app                  names
	quality                    sets
	skew                       proto.ColInt32
	srcSegment, dstSegment     names
	srcWorkload, dstWorkload   names
	srcIdentity, dstIdentity   names
	observer, enforcedBy       names
	srcHost, dstHost           names
	srcProcess, dstProcess     names
	reporter                   words
	srcDoubt, dstDoubt         sets
	srcSilence, dstSilence     proto.ColInt32
	recordID, conversation     proto.ColUInt64
	verdictColumns
	insertColumns
}

func (c *flowColumns) init() {
	c.verdictColumns.init()
	c.insertColumns.init()
	c.start, c.end, c.received = millis(), millis(), millis()
	c.source = newWords(vocabulary(flow.Source.String))
	c.oriented = newWords([]string{"open", "forward", "reverse"})
	c.direction = newWords([]string{"", "ingress", "egress"})
	c.reporter = newWords([]string{"", "client", "server"})
	c.quality = newSets(bits(func(b uint32) []string { return flow.Quality(b).Texts() }))
	doubts := bits(func(b uint32) []string { return flow.Doubt(b).Texts() })
	c.srcDoubt, c.dstDoubt = newSets(doubts), newSets(doubts)
}

// input lists the columns in the order of the table.
func (c *flowColumns) input() proto.Input {
	return slices.Concat(proto.Input{
		{Name: "time_start", Data: &c.start},
		{Name: "time_end", Data: &c.end},
		{Name: "time_received", Data: &c.received},
		{Name: "exporter", Data: &c.exporter},
		{Name: "domain", Data: &c.domain},
		{Name: "source", Data: &c.source},
		{Name: "client", Data: &c.client},
		{Name: "server", Data: &c.server},
		{Name: "client_port", Data: nullable{&c.clientPort.null, &c.clientPort.values}},
		{Name: "server_port", Data: nullable{&c.serverPort.null, &c.serverPort.values}},
		{Name: "service", Data: &c.service},
		{Name: "oriented", Data: &c.oriented},
		{Name: "orientation_certainty", Data: &c.certainty},
		{Name: "swapped", Data: &c.swapped},
		{Name: "other_half", Data: &c.otherHalf},
		{Name: "proto", Data: nullable{&c.proto.null, &c.proto.values}},
		{Name: "tcp_flags", Data: nullable{&c.tcpFlags.null, &c.tcpFlags.values}},
		{Name: "bytes", Data: &c.bytes},
		{Name: "packets", Data: &c.packets},
		{Name: "rev_tcp_flags", Data: nullable{&c.revTCPFlags.null, &c.revTCPFlags.values}},
		{Name: "rev_bytes", Data: &c.revBytes},
		{Name: "rev_packets", Data: &c.revPackets},
		{Name: "sampling_rate", Data: &c.samplingRate},
		{Name: "bytes_raw", Data: nullable{&c.bytesRaw.null, &c.bytesRaw.values}},
		{Name: "packets_raw", Data: nullable{&c.packetsRaw.null, &c.packetsRaw.values}},
		{Name: "rev_bytes_raw", Data: nullable{&c.revBytesRaw.null, &c.revBytesRaw.values}},
		{Name: "rev_packets_raw", Data: nullable{&c.revPacketsRaw.null, &c.revPacketsRaw.values}},
		{Name: "in_if", Data: nullable{&c.inIf.null, &c.inIf.values}},
		{Name: "out_if", Data: nullable{&c.outIf.null, &c.outIf.values}},
		{Name: "nat_src_addr", Data: nullable{&c.natSrc.null, &c.natSrc.values}},
		{Name: "nat_dst_addr", Data: nullable{&c.natDst.null, &c.natDst.values}},
		{Name: "nat_src_port", Data: nullable{&c.natSrcPort.null, &c.natSrcPort.values}},
		{Name: "nat_dst_port", Data: nullable{&c.natDstPort.null, &c.natDstPort.values}},
		{Name: "icmp_type", Data: nullable{&c.icmpType.null, &c.icmpType.values}},
		{Name: "icmp_code", Data: nullable{&c.icmpCode.null, &c.icmpCode.values}},
		{Name: "forwarding_status", Data: nullable{&c.forwarding.null, &c.forwarding.values}},
		{Name: "firewall_event", Data: nullable{&c.firewall.null, &c.firewall.values}},
		{Name: "direction", Data: &c.direction},
		{Name: "biflow_direction", Data: nullable{&c.biflow.null, &c.biflow.values}},
		{Name: "user", Data: &c.user},
		{Name: "app", Data: &c.app},
		{Name: "quality", Data: &c.quality},
		{Name: "skew_ms", Data: &c.skew},
		{Name: "src_segment", Data: &c.srcSegment},
		{Name: "dst_segment", Data: &c.dstSegment},
		{Name: "src_workload", Data: &c.srcWorkload},
		{Name: "dst_workload", Data: &c.dstWorkload},
		{Name: "src_identity", Data: &c.srcIdentity},
		{Name: "dst_identity", Data: &c.dstIdentity},
	}, c.verdictColumns.input(), proto.Input{
		{Name: "record_id", Data: &c.recordID},
	}, c.insertColumns.input(), proto.Input{
		{Name: "observer", Data: &c.observer},
		{Name: "reporter", Data: &c.reporter},
		{Name: "enforced_by", Data: &c.enforcedBy},
		{Name: "src_host", Data: &c.srcHost},
		{Name: "dst_host", Data: &c.dstHost},
		{Name: "src_process", Data: &c.srcProcess},
		{Name: "dst_process", Data: &c.dstProcess},
		{Name: "src_doubt", Data: &c.srcDoubt},
		{Name: "dst_doubt", Data: &c.dstDoubt},
		{Name: "src_silence", Data: &c.srcSilence},
		{Name: "dst_silence", Data: &c.dstSilence},
		{Name: "conversation", Data: &c.conversation},
	})
}

func (c *flowColumns) extend(n int) {
	c.verdictColumns.extend(n)
	c.start.Data, c.end.Data, c.received.Data = extend(c.start.Data, n), extend(c.end.Data, n), extend(c.received.Data, n)
	c.exporter, c.client, c.server = extend(c.exporter, n), extend(c.client, n), extend(c.server, n)
	c.domain, c.samplingRate = extend(c.domain, n), extend(c.samplingRate, n)
	for _, w := range c.words() {
		w.ColUInt8 = extend(w.ColUInt8, n)
	}
	c.service.extend(n)
	c.certainty, c.swapped, c.otherHalf = extend(c.certainty, n), extend(c.swapped, n), extend(c.otherHalf, n)
	for _, o := range c.optional() {
		o.extend(n)
	}
	c.bytes, c.packets = extend(c.bytes, n), extend(c.packets, n)
	c.revBytes, c.revPackets = extend(c.revBytes, n), extend(c.revPackets, n)
	for _, d := range c.names() {
		d.extend(n)
	}
	c.quality.extend(n)
	c.srcDoubt.extend(n)
	c.dstDoubt.extend(n)
	c.srcSilence, c.dstSilence = extend(c.srcSilence, n), extend(c.dstSilence, n)
	c.skew = extend(c.skew, n)
	c.recordID, c.conversation = extend(c.recordID, n), extend(c.conversation, n)
}

func (c *flowColumns) reset() {
	c.verdictColumns.reset()
	c.insertColumns.reset()
	c.start.Reset()
	c.end.Reset()
	c.received.Reset()
	c.exporter.Reset()
	c.client.Reset()
	c.server.Reset()
	c.domain.Reset()
	c.samplingRate.Reset()
	for _, w := range c.words() {
		w.Reset()
	}
	c.service.reset()
	c.certainty.Reset()
	c.swapped.Reset()
	c.otherHalf.Reset()
	for _, o := range c.optional() {
		o.reset()
	}
	c.bytes.Reset()
	c.packets.Reset()
	c.revBytes.Reset()
	c.revPackets.Reset()
	for _, d := range c.names() {
		d.reset()
	}
	c.quality.reset()
	c.srcDoubt.reset()
	c.dstDoubt.reset()
	c.srcSilence.Reset()
	c.dstSilence.Reset()
	c.skew.Reset()
	c.recordID.Reset()
	c.conversation.Reset()
}

func (c *flowColumns) words() [4]*words {
	return [...]*words{&c.source, &c.oriented, &c.direction, &c.reporter}
}

func (c *flowColumns) names() [14]*names {
	return [...]*names{&c.user, &c.app, &c.srcSegment, &c.dstSegment, &c.srcWorkload, &c.dstWorkload,
		&c.srcIdentity, &c.dstIdentity, &c.observer, &c.enforcedBy, &c.srcHost, &c.dstHost, &c.srcProcess, &c.dstProcess}
}

func (c *flowColumns) optional() [20]interface {
	extend(int)
	reset()
} {
	return [...]interface {
		extend(int)
		reset()
	}{&c.clientPort, &c.serverPort, &c.proto, &c.tcpFlags, &c.revTCPFlags, &c.bytesRaw, &c.packetsRaw,
		&c.revBytesRaw, &c.revPacketsRaw, &c.inIf, &c.outIf, &c.natSrc, &c.natDst, &c.natSrcPort, &c.natDstPort,
		&c.icmpType, &c.icmpCode, &c.forwarding, &c.firewall, &c.biflow}
}

// chunk is how many records are written column by column at a time: their 27 KB
// stay in the first-level cache while each column is written in a run. Writing all
// of a record's columns at once instead touches ninety streams, which fall on the same
// cache sets, and takes twice the time.
const chunk = 64

// fill writes at most chunk records into rows k and following of every column.
func (c *flowColumns) fill(k int, rs []flow.Record, texts []string) {
	var swaps [chunk]bool
	swapped := swaps[:len(rs)]
	for i := range rs {
		swapped[i] = rs[i].Swapped()
	}
	copy(c.swapped[k:], swapped)

	start, end, received := c.start.Data[k:k+len(rs)], c.end.Data[k:k+len(rs)], c.received.Data[k:k+len(rs)]
	id, domain, rate := c.recordID[k:k+len(rs)], c.domain[k:k+len(rs)], c.samplingRate[k:k+len(rs)]
	for i := range rs {
		r := &rs[i]
		start[i], end[i], received[i] = proto.DateTime64(r.Start), proto.DateTime64(r.End), proto.DateTime64(r.Received)
		id[i], domain[i], rate[i] = r.ID, r.Domain, r.SamplingRate
	}
	conversation := c.conversation[k : k+len(rs)]
	for i := range rs {
		conversation[i] = rs[i].Conversation()
	}
	exporter, client, server := c.exporter[k:k+len(rs)], c.client[k:k+len(rs)], c.server[k:k+len(rs)]
	for i := range rs {
		r := &rs[i]
		exporter[i] = r.Exporter.As16()
		src, dst := &r.Src, &r.Dst
		if swapped[i] {
			src, dst = dst, src
		}
		client[i], server[i] = src.As16(), dst.As16()
	}
	for i := range rs {
		r := &rs[i]
		if swapped[i] {
			c.clientPort.set(k+i, r.Any(flow.HasDstPort), r.DstPort)
			c.serverPort.set(k+i, r.Any(flow.HasSrcPort), r.SrcPort)
			c.service.set(k+i, r, r.SrcPort)
		} else {
			c.clientPort.set(k+i, r.Any(flow.HasSrcPort), r.SrcPort)
			c.serverPort.set(k+i, r.Any(flow.HasDstPort), r.DstPort)
			c.service.set(k+i, r, r.DstPort)
		}
	}
	bytes, packets := c.bytes[k:k+len(rs)], c.packets[k:k+len(rs)]
	revBytes, revPackets := c.revBytes[k:k+len(rs)], c.revPackets[k:k+len(rs)]
	for i := range rs {
		r := &rs[i]
		bytes[i], packets[i], revBytes[i], revPackets[i] = r.Bytes(), r.Packets(), r.RevBytes(), r.RevPackets()
	}
	for i := range rs {
		r := &rs[i]
		c.bytesRaw.set(k+i, r.Any(flow.HasBytes), r.BytesRaw)
		c.packetsRaw.set(k+i, r.Any(flow.HasPackets), r.PacketsRaw)
		c.revBytesRaw.set(k+i, r.Any(flow.HasRevBytes), r.RevBytesRaw)
		c.revPacketsRaw.set(k+i, r.Any(flow.HasRevPackets), r.RevPacketsRaw)
	}
	for i := range rs {
		r := &rs[i]
		c.proto.set(k+i, r.Any(flow.HasProto), r.Proto)
		c.tcpFlags.set(k+i, r.Any(flow.HasTCPFlags), r.TCPFlags)
		c.revTCPFlags.set(k+i, r.Any(flow.HasRevTCPFlags), r.RevTCPFlags)
		c.inIf.set(k+i, r.Any(flow.HasInIf), r.InIf)
		c.outIf.set(k+i, r.Any(flow.HasOutIf), r.OutIf)
	}
	for i := range rs {
		r := &rs[i]
		c.natSrc.set(k+i, r.Any(flow.HasNATSrc), r.NATSrc.As16())
		c.natDst.set(k+i, r.Any(flow.HasNATDst), r.NATDst.As16())
		c.natSrcPort.set(k+i, r.Any(flow.HasNATSrcPort), r.NATSrcPort)
		c.natDstPort.set(k+i, r.Any(flow.HasNATDstPort), r.NATDstPort)
	}
	for i := range rs {
		r := &rs[i]
		icmp := r.Any(flow.HasICMP)
		c.icmpType.set(k+i, icmp, r.ICMPType)
		c.icmpCode.set(k+i, icmp, r.ICMPCode)
		c.forwarding.set(k+i, r.Any(flow.HasForwardingStatus), r.ForwardingStatus)
		c.firewall.set(k+i, r.Any(flow.HasFirewallEvent), r.FirewallEvent)
		c.biflow.set(k+i, r.Any(flow.HasBiflowDirection), r.BiflowDirection)
		c.direction.set(k+i, directionWord(r))
	}
	certainty, otherHalf, skew := c.certainty[k:k+len(rs)], c.otherHalf[k:k+len(rs)], c.skew[k:k+len(rs)]
	for i := range rs {
		r := &rs[i]
		c.source.set(k+i, uint8(r.Source))
		c.oriented.set(k+i, uint8(r.Oriented))
		certainty[i], otherHalf[i], skew[i] = r.OrientationCertainty, r.OtherHalf, r.Skew
	}
	for i := range rs {
		r := &rs[i]
		c.user.set(k+i, r.User, texts)
		c.app.set(k+i, r.App, texts)
		cseg, sseg, cwl, swl, cid, sid := r.SrcSegment, r.DstSegment, r.SrcWorkload, r.DstWorkload, r.SrcIdentity, r.DstIdentity
		if swapped[i] {
			cseg, sseg, cwl, swl, cid, sid = sseg, cseg, swl, cwl, sid, cid
		}
		c.srcSegment.set(k+i, cseg, texts)
		c.dstSegment.set(k+i, sseg, texts)
		c.srcWorkload.set(k+i, cwl, texts)
		c.dstWorkload.set(k+i, swl, texts)
		c.srcIdentity.set(k+i, cid, texts)
		c.dstIdentity.set(k+i, sid, texts)
	}
	for i := range rs {
		r := &rs[i]
		c.observer.set(k+i, r.Observer, texts)
		c.enforcedBy.set(k+i, r.EnforcedBy, texts)
		chost, shost, cproc, sproc, reporter := r.SrcHost, r.DstHost, r.SrcProcess, r.DstProcess, uint8(r.Reporter)
		if swapped[i] {
			chost, shost, cproc, sproc = shost, chost, sproc, cproc
			if r.Reporter != flow.ReporterElsewhere {
				reporter = uint8(flow.ReporterSource+flow.ReporterDestination) - reporter
			}
		}
		cdoubt, sdoubt := r.Doubts()
		c.srcDoubt.set(k+i, uint32(cdoubt))
		c.dstDoubt.set(k+i, uint32(sdoubt))
		c.srcSilence[k+i], c.dstSilence[k+i] = r.Silences()
		c.reporter.set(k+i, reporter)
		c.srcHost.set(k+i, chost, texts)
		c.dstHost.set(k+i, shost, texts)
		c.srcProcess.set(k+i, cproc, texts)
		c.dstProcess.set(k+i, sproc, texts)
	}
	confidence, othersTotal := c.confidence[k:k+len(rs)], c.othersTotal[k:k+len(rs)]
	for i := range rs {
		v := &rs[i].Verdict
		c.observed.set(k+i, uint8(v.Observed))
		c.expected.set(k+i, uint8(v.Expected))
		c.staged.set(k+i, uint8(v.Staged))
		c.stagedReason.set(k+i, uint8(v.StagedReason))
		c.reason.set(k+i, uint8(v.Reason))
		c.outcome.set(k+i, uint8(v.Outcome))
		confidence[i], othersTotal[i] = float32(v.Confidence)/100, v.OthersTotal
	}
	for i := range rs {
		v := &rs[i].Verdict
		c.rule.set(k+i, v.Rule, texts)
		c.exception.set(k+i, v.Exception, texts)
		c.policyVersion.set(k+i, v.PolicyVersion, texts)
		c.validUntil.set(k+i, v.ValidUntil != 0, proto.DateTime64(v.ValidUntil))
	}
	for i := range rs {
		v := &rs[i].Verdict
		c.quality.set(k+i, uint32(rs[i].Quality))
		c.failed.set(k+i, uint32(v.Failed))
		c.missing.set(k+i, uint32(v.Missing))
		c.others.set(k+i, v.Others[:min(int(v.OthersTotal), flow.MaxOthers)], texts)
	}
}

func directionWord(r *flow.Record) uint8 {
	switch {
	case !r.Any(flow.HasDirection):
		return 0
	case r.Direction == 0:
		return 1
	}
	return 2
}
