package sink

import (
	"context"
	"slices"

	"github.com/ClickHouse/ch-go/proto"

	"github.com/postern/postern/flow"
)

// SessionWriter turns versions of sessions into one block of the session_versions table and
// inserts it. Its columns are used again for every block. Not safe for concurrent use.
type SessionWriter struct {
	db    *ClickHouse
	names *flow.Names
	rows  int
	cols  sessionColumns
	input proto.Input
}

// NewSessionWriter makes a writer of sessions whose names are in names. [SessionWriter.Bind]
// comes before the first flush.
func NewSessionWriter(names *flow.Names) *SessionWriter {
	w := &SessionWriter{names: names}
	w.cols.init()
	w.input = w.cols.input()
	w.Reset()
	return w
}

// Bind says where Flush inserts.
func (w *SessionWriter) Bind(db *ClickHouse) { w.db = db }

// Rows is how many rows have been appended since the last flush or reset.
func (w *SessionWriter) Rows() int { return w.rows }

// Reset forgets what was appended.
func (w *SessionWriter) Reset() {
	w.rows = 0
	w.cols.reset()
}

// Append adds rows to the block. It keeps nothing of them. The caller flushes before the
// block would exceed [MaxFlowRows].
func (w *SessionWriter) Append(sessions []flow.Session) {
	texts := w.names.Texts()
	w.cols.extend(len(sessions))
	for i := range sessions {
		w.cols.set(w.rows+i, &sessions[i], texts)
	}
	w.rows += len(sessions)
}

// Flush inserts the block under ins and empties the writer. After an error the block is still
// there, so that the caller can flush it again under the same [Insert]; see [Retryable]. A
// block without rows is not sent.
func (w *SessionWriter) Flush(ctx context.Context, ins Insert) (Written, error) {
	if w.rows == 0 {
		return Written{}, nil
	}
	w.cols.seal(w.rows, ins)
	done, err := w.db.insertBlock(ctx, "session_versions", w.input, w.rows, ins)
	if err != nil {
		return Written{}, err
	}
	w.Reset()
	return done, nil
}

// FlushWithRetry flushes until it succeeds, the failure is one that trying again cannot mend,
// or ctx ends.
func (w *SessionWriter) FlushWithRetry(ctx context.Context, ins Insert) (Written, error) {
	return retry(ctx, w.db, "session_versions", func() (Written, error) { return w.Flush(ctx, ins) })
}

// arrayOf is an Array column; the arrays of one row have the same length.
type arrayOf struct {
	offsets *proto.ColUInt64
	data    proto.ColInput
}

func (c arrayOf) Type() proto.ColumnType { return proto.ColumnTypeArray.Sub(c.data.Type()) }
func (c arrayOf) Rows() int              { return len(*c.offsets) }

func (c arrayOf) EncodeColumn(b *proto.Buffer) {
	c.offsets.EncodeColumn(b)
	c.data.EncodeColumn(b)
}

func (c arrayOf) WriteColumn(w *proto.Writer) {
	c.offsets.WriteColumn(w)
	c.data.WriteColumn(w)
}

// sessionColumns are the columns of the session_versions table; the schema says what each means.
type sessionColumns struct {
	id, version, partOf, conversation            proto.ColUInt64
	began, start, end                            proto.ColDateTime64
	client, server                               proto.ColIPv6
	clientPort, serverPort                       optional16
	service                                      services
	orientation                                  words
	certainty, proto                             proto.ColUInt8
	nat                                          words
	natClient, natServer                         optionalIP
	natClientPort, natServerPort                 optional16
	bothWays, clientAgent, serverAgent           proto.ColBool
	clientBytes, clientPackets                   optional64
	serverBytes, serverPackets                   optional64
	clientFlags, serverFlags                     proto.ColUInt16
	srcSegment, dstSegment                       names
	srcWorkload, dstWorkload                     names
	srcIdentity, dstIdentity                     names
	srcIdentityFrom, dstIdentityFrom             names
	srcCertainty, dstCertainty                   proto.ColUInt8
	srcHost, dstHost, srcProcess, dstProcess     names
	enforcedBy                                   names
	contradictions, quality                      sets
	records                                      proto.ColUInt32
	observersTotal                               proto.ColUInt16
	observers                                    proto.ColUInt64 // where each row's observers end
	observerExporter                             proto.ColIPv6
	observerDomain, observerRecords              proto.ColUInt32
	observerName                                 nameArrays
	observerSource, observerReporter, observerOf words
	observerFirst, observerLast                  proto.ColDateTime64
	observerSkew                                 proto.ColInt32
	record                                       flow.Record // tells services
	verdictColumns
	insertColumns
}

func (c *sessionColumns) init() {
	c.verdictColumns.init()
	c.insertColumns.init()
	for _, t := range [...]*proto.ColDateTime64{&c.began, &c.start, &c.end, &c.observerFirst, &c.observerLast} {
		*t = millis()
	}
	reporters := []string{"", "client", "server"}
	c.orientation = newWords([]string{"known", "open"})
	c.nat = newWords(vocabulary(flow.NAT.String))
	c.observerOf = newWords(vocabulary(flow.Observed.String))
	c.observerSource, c.observerReporter = newWords(vocabulary(flow.Source.String)), newWords(reporters)
	c.quality = newSets(bits(func(b uint32) []string { return flow.Quality(b).Texts() }))
	c.contradictions = newSets(bits(func(b uint32) []string {
		if b > 0x80 {
			return nil
		}
		return flow.Contradictions(b).Texts()
	}))
}

// input lists the columns in the order of the table.
func (c *sessionColumns) input() proto.Input {
	return slices.Concat(proto.Input{
		{Name: "id", Data: &c.id},
		{Name: "version", Data: &c.version},
		{Name: "part_of", Data: &c.partOf},
		{Name: "conversation", Data: &c.conversation},
		{Name: "began", Data: &c.began},
		{Name: "time_start", Data: &c.start},
		{Name: "time_end", Data: &c.end},
		{Name: "client", Data: &c.client},
		{Name: "server", Data: &c.server},
		{Name: "client_port", Data: nullable{&c.clientPort.null, &c.clientPort.values}},
		{Name: "server_port", Data: nullable{&c.serverPort.null, &c.serverPort.values}},
		{Name: "service", Data: &c.service},
		{Name: "orientation", Data: &c.orientation},
		{Name: "orientation_certainty", Data: &c.certainty},
		{Name: "proto", Data: &c.proto},
		{Name: "nat", Data: &c.nat},
		{Name: "nat_client", Data: nullable{&c.natClient.null, &c.natClient.values}},
		{Name: "nat_server", Data: nullable{&c.natServer.null, &c.natServer.values}},
		{Name: "nat_client_port", Data: nullable{&c.natClientPort.null, &c.natClientPort.values}},
		{Name: "nat_server_port", Data: nullable{&c.natServerPort.null, &c.natServerPort.values}},
		{Name: "both_ways", Data: &c.bothWays},
		{Name: "client_bytes", Data: nullable{&c.clientBytes.null, &c.clientBytes.values}},
		{Name: "client_packets", Data: nullable{&c.clientPackets.null, &c.clientPackets.values}},
		{Name: "server_bytes", Data: nullable{&c.serverBytes.null, &c.serverBytes.values}},
		{Name: "server_packets", Data: nullable{&c.serverPackets.null, &c.serverPackets.values}},
		{Name: "client_tcp_flags", Data: &c.clientFlags},
		{Name: "server_tcp_flags", Data: &c.serverFlags},
		{Name: "src_segment", Data: &c.srcSegment},
		{Name: "dst_segment", Data: &c.dstSegment},
		{Name: "src_workload", Data: &c.srcWorkload},
		{Name: "dst_workload", Data: &c.dstWorkload},
		{Name: "src_identity", Data: &c.srcIdentity},
		{Name: "dst_identity", Data: &c.dstIdentity},
		{Name: "src_identity_from", Data: &c.srcIdentityFrom},
		{Name: "dst_identity_from", Data: &c.dstIdentityFrom},
		{Name: "src_identity_certainty", Data: &c.srcCertainty},
		{Name: "dst_identity_certainty", Data: &c.dstCertainty},
		{Name: "src_host", Data: &c.srcHost},
		{Name: "dst_host", Data: &c.dstHost},
		{Name: "src_process", Data: &c.srcProcess},
		{Name: "dst_process", Data: &c.dstProcess},
		{Name: "src_agent", Data: &c.clientAgent},
		{Name: "dst_agent", Data: &c.serverAgent},
	}, c.verdictColumns.input(), proto.Input{
		{Name: "enforced_by", Data: &c.enforcedBy},
		{Name: "contradictions", Data: &c.contradictions},
		{Name: "quality", Data: &c.quality},
		{Name: "records", Data: &c.records},
		{Name: "observers_total", Data: &c.observersTotal},
		{Name: "observers.exporter", Data: arrayOf{&c.observers, &c.observerExporter}},
		{Name: "observers.domain", Data: arrayOf{&c.observers, &c.observerDomain}},
		{Name: "observers.name", Data: &c.observerName},
		{Name: "observers.source", Data: arrayOf{&c.observers, &c.observerSource}},
		{Name: "observers.reporter", Data: arrayOf{&c.observers, &c.observerReporter}},
		{Name: "observers.observed", Data: arrayOf{&c.observers, &c.observerOf}},
		{Name: "observers.records", Data: arrayOf{&c.observers, &c.observerRecords}},
		{Name: "observers.first", Data: arrayOf{&c.observers, &c.observerFirst}},
		{Name: "observers.last", Data: arrayOf{&c.observers, &c.observerLast}},
		{Name: "observers.skew_ms", Data: arrayOf{&c.observers, &c.observerSkew}},
	}, c.insertColumns.input())
}

func (c *sessionColumns) numbers() [5]*proto.ColUInt64 {
	return [...]*proto.ColUInt64{&c.id, &c.version, &c.partOf, &c.conversation, &c.observers}
}

func (c *sessionColumns) times() [3]*proto.ColDateTime64 {
	return [...]*proto.ColDateTime64{&c.began, &c.start, &c.end}
}

func (c *sessionColumns) names() [13]*names {
	return [...]*names{&c.srcSegment, &c.dstSegment, &c.srcWorkload, &c.dstWorkload, &c.srcIdentity, &c.dstIdentity,
		&c.srcIdentityFrom, &c.dstIdentityFrom, &c.srcHost, &c.dstHost, &c.srcProcess, &c.dstProcess, &c.enforcedBy}
}

func (c *sessionColumns) bytes() [4]*proto.ColUInt8 {
	return [...]*proto.ColUInt8{&c.certainty, &c.proto, &c.srcCertainty, &c.dstCertainty}
}

func (c *sessionColumns) bools() [3]*proto.ColBool {
	return [...]*proto.ColBool{&c.bothWays, &c.clientAgent, &c.serverAgent}
}

func (c *sessionColumns) optional() [10]interface {
	extend(int)
	reset()
} {
	return [...]interface {
		extend(int)
		reset()
	}{&c.clientPort, &c.serverPort, &c.natClient, &c.natServer, &c.natClientPort, &c.natServerPort,
		&c.clientBytes, &c.clientPackets, &c.serverBytes, &c.serverPackets}
}

// extend makes room for n rows; what each observer has grows as it is set.
func (c *sessionColumns) extend(n int) {
	c.verdictColumns.extend(n)
	for _, v := range c.numbers() {
		*v = extend(*v, n)
	}
	for _, v := range c.times() {
		v.Data = extend(v.Data, n)
	}
	for _, v := range c.names() {
		v.extend(n)
	}
	for _, v := range c.bytes() {
		*v = extend(*v, n)
	}
	for _, v := range c.bools() {
		*v = extend(*v, n)
	}
	for _, v := range c.optional() {
		v.extend(n)
	}
	c.client, c.server = extend(c.client, n), extend(c.server, n)
	c.orientation.ColUInt8, c.nat.ColUInt8 = extend(c.orientation.ColUInt8, n), extend(c.nat.ColUInt8, n)
	c.contradictions.extend(n)
	c.quality.extend(n)
	c.service.extend(n)
	c.clientFlags, c.serverFlags = extend(c.clientFlags, n), extend(c.serverFlags, n)
	c.observersTotal, c.records = extend(c.observersTotal, n), extend(c.records, n)
	c.observerName.extend(n)
}

func (c *sessionColumns) reset() {
	c.verdictColumns.reset()
	c.insertColumns.reset()
	for _, v := range c.numbers() {
		v.Reset()
	}
	for _, v := range c.times() {
		v.Reset()
	}
	for _, v := range c.names() {
		v.reset()
	}
	for _, v := range c.bytes() {
		v.Reset()
	}
	for _, v := range c.bools() {
		v.Reset()
	}
	for _, v := range c.optional() {
		v.reset()
	}
	c.client.Reset()
	c.server.Reset()
	c.orientation.Reset()
	c.nat.Reset()
	c.contradictions.reset()
	c.quality.reset()
	c.service.reset()
	c.clientFlags.Reset()
	c.serverFlags.Reset()
	c.observersTotal.Reset()
	c.records.Reset()
	c.observerName.reset()
	c.observerExporter.Reset()
	c.observerDomain.Reset()
	c.observerRecords.Reset()
	c.observerSource.Reset()
	c.observerReporter.Reset()
	c.observerOf.Reset()
	c.observerFirst.Reset()
	c.observerLast.Reset()
	c.observerSkew.Reset()
}

// set writes row i.
func (c *sessionColumns) set(i int, s *flow.Session, texts []string) {
	c.id[i], c.version[i], c.partOf[i], c.conversation[i] = s.ID, s.Version, s.Into, s.Conversation
	c.began.Data[i], c.start.Data[i], c.end.Data[i] = proto.DateTime64(s.Began), proto.DateTime64(s.Start), proto.DateTime64(s.End)
	a, b := &s.Client, &s.Server
	c.client[i], c.server[i] = a.Addr.As16(), b.Addr.As16()
	c.clientPort.set(i, s.HasPorts, a.Port)
	c.serverPort.set(i, s.HasPorts, b.Port)
	c.record = flow.Record{Has: flow.HasProto, Proto: s.Proto, ICMPType: s.ICMPType, ICMPCode: s.ICMPCode, DstPort: b.Port, Oriented: flow.Forward}
	if s.HasPorts {
		c.record.Has |= flow.HasSrcPort | flow.HasDstPort
	}
	if s.HasICMP {
		c.record.Has |= flow.HasICMP
	}
	c.orientation.set(i, 0)
	if s.Open {
		c.record.Oriented = flow.Open
		c.orientation.set(i, 1)
	}
	c.service.set(i, &c.record, b.Port)
	c.certainty[i], c.proto[i] = s.OrientationCertainty, s.Proto
	c.nat.set(i, uint8(s.NAT))
	translated := s.NAT == flow.NATTranslated
	c.natClient.set(i, translated, s.NATClient.As16())
	c.natServer.set(i, translated, s.NATServer.As16())
	c.natClientPort.set(i, translated && s.HasPorts, s.NATClientPort)
	c.natServerPort.set(i, translated && s.HasPorts, s.NATServerPort)
	c.bothWays[i], c.clientAgent[i], c.serverAgent[i] = s.BothWays, a.Own, b.Own
	c.clientBytes.set(i, a.HasBytes, a.Bytes)
	c.clientPackets.set(i, a.HasPackets, a.Packets)
	c.serverBytes.set(i, b.HasBytes, b.Bytes)
	c.serverPackets.set(i, b.HasPackets, b.Packets)
	c.clientFlags[i], c.serverFlags[i] = a.TCPFlags, b.TCPFlags
	columns := c.names()
	for k, n := range [...]flow.Name{a.Segment, b.Segment, a.Workload, b.Workload, a.Identity, b.Identity, a.IdentityFrom, b.IdentityFrom,
		a.Host, b.Host, a.Process, b.Process, s.EnforcedBy} {
		columns[k].set(i, n, texts)
	}
	c.srcCertainty[i], c.dstCertainty[i] = a.IdentityCertain, b.IdentityCertain
	v := &s.Verdict
	c.observed.set(i, uint8(v.Observed))
	c.expected.set(i, uint8(v.Expected))
	c.staged.set(i, uint8(v.Staged))
	c.stagedReason.set(i, uint8(v.StagedReason))
	c.reason.set(i, uint8(v.Reason))
	c.outcome.set(i, uint8(v.Outcome))
	c.confidence[i], c.othersTotal[i] = float32(v.Confidence)/100, v.OthersTotal
	c.rule.set(i, v.Rule, texts)
	c.exception.set(i, v.Exception, texts)
	c.policyVersion.set(i, v.PolicyVersion, texts)
	c.failed.set(i, uint32(v.Failed))
	c.missing.set(i, uint32(v.Missing))
	c.others.set(i, v.Others[:min(int(v.OthersTotal), flow.MaxOthers)], texts)
	c.validUntil.set(i, v.ValidUntil != 0, proto.DateTime64(v.ValidUntil))
	c.contradictions.set(i, uint32(s.Contradictions))
	c.quality.set(i, uint32(s.Quality))
	c.records[i], c.observersTotal[i] = s.Records, s.ObserversTotal
	c.setObservers(i, s, texts)
}

func (c *sessionColumns) setObservers(i int, s *flow.Session, texts []string) {
	n := min(int(s.ObserversTotal), flow.MaxObservers)
	var observers [flow.MaxObservers]flow.Name
	at := len(c.observerSource.ColUInt8)
	c.observerSource.ColUInt8 = extend(c.observerSource.ColUInt8, n)
	c.observerReporter.ColUInt8 = extend(c.observerReporter.ColUInt8, n)
	c.observerOf.ColUInt8 = extend(c.observerOf.ColUInt8, n)
	for k := range s.Observers[:n] {
		o := &s.Observers[k]
		observers[k] = o.Observer
		c.observerExporter = append(c.observerExporter, o.Exporter.As16())
		c.observerDomain = append(c.observerDomain, o.Domain)
		c.observerRecords = append(c.observerRecords, o.Records)
		c.observerSource.set(at+k, uint8(o.Source))
		c.observerReporter.set(at+k, uint8(o.Reporter))
		c.observerOf.set(at+k, uint8(o.Observed))
		c.observerFirst.Data = append(c.observerFirst.Data, proto.DateTime64(o.First))
		c.observerLast.Data = append(c.observerLast.Data, proto.DateTime64(o.Last))
		c.observerSkew = append(c.observerSkew, o.Skew)
	}
	c.observerName.set(i, observers[:n], texts)
	c.observers[i] = uint64(len(c.observerSkew))
}
