package sink

import (
	"context"
	"math"
	"slices"

	"github.com/ClickHouse/ch-go/proto"

	"github.com/postern/postern/flow"
)

// EdgeWriter turns what sessions add to the hourly roll-up into one block of the edge_hours
// table and inserts it. Its columns are used again for every block. Not safe for concurrent use.
type EdgeWriter struct {
	db    *ClickHouse
	names *flow.Names
	rows  int
	cols  edgeColumns
	input proto.Input
}

// NewEdgeWriter makes a writer of contributions whose names are in names. [EdgeWriter.Bind]
// comes before the first flush.
func NewEdgeWriter(names *flow.Names) *EdgeWriter {
	w := &EdgeWriter{names: names}
	w.cols.init()
	w.input = w.cols.input()
	w.Reset()
	return w
}

// Bind says where Flush inserts.
func (w *EdgeWriter) Bind(db *ClickHouse) { w.db = db }

// Rows is how many rows have been appended since the last flush or reset.
func (w *EdgeWriter) Rows() int { return w.rows }

// Reset forgets what was appended.
func (w *EdgeWriter) Reset() {
	w.rows = 0
	w.cols.reset()
}

// Append adds rows to the block. It keeps nothing of them. The caller flushes before the
// block would exceed [MaxFlowRows].
func (w *EdgeWriter) Append(edges []flow.EdgeContribution) {
	texts := w.names.Texts()
	w.cols.extend(len(edges))
	for i := range edges {
		w.cols.set(w.rows+i, &edges[i], texts)
	}
	w.rows += len(edges)
}

// Flush inserts the block under ins and empties the writer. After an error the block is still
// there, so that the caller can flush it again under the same [Insert]; see [Retryable]. A
// block without rows is not sent.
func (w *EdgeWriter) Flush(ctx context.Context, ins Insert) (Written, error) {
	if w.rows == 0 {
		return Written{}, nil
	}
	w.cols.seal(w.rows, ins)
	done, err := w.db.insertBlock(ctx, "edge_hours", w.input, w.rows, ins)
	if err != nil {
		return Written{}, err
	}
	w.Reset()
	return done, nil
}

// FlushWithRetry flushes until it succeeds, the failure is one that trying again cannot mend,
// or ctx ends.
func (w *EdgeWriter) FlushWithRetry(ctx context.Context, ins Insert) (Written, error) {
	return retry(ctx, w.db, "edge_hours", func() (Written, error) { return w.Flush(ctx, ins) })
}

// aggregate is a column that merges add up, or take the least or the greatest of.
type aggregate struct {
	function string
	proto.ColInput
}

func (c aggregate) Type() proto.ColumnType {
	return proto.ColumnType("SimpleAggregateFunction(" + c.function + ", " + string(c.ColInput.Type()) + ")")
}

// edgeColumns are the columns of the edge_hours table; the schema says what each means.
type edgeColumns struct {
	hour                                  proto.ColDateTime
	server, client                        proto.ColIPv6
	service                               services
	reason, orientation, expected, staged words
	observed, outcome                     words
	srcSegment, dstSegment                names
	srcWorkload, dstWorkload              names
	srcIdentity, dstIdentity              names
	rule, exception                       names
	sessions, answered, live              proto.ColInt64
	clientBytes, clientPackets            proto.ColInt64
	serverBytes, serverPackets            proto.ColInt64
	first, last, liveFirst, liveLast      proto.ColDateTime
	record                                flow.Record // tells services
	insertColumns
}

func (c *edgeColumns) init() {
	c.insertColumns.init()
	for _, t := range c.times() {
		*t = proto.ColDateTime{Location: c.insertedAt.Location}
	}
	c.reason, c.orientation = newWords(vocabulary(flow.Reason.String)), newWords([]string{"known", "open"})
	c.expected, c.staged = newWords(vocabulary(flow.Expected.String)), newWords(vocabulary(flow.Expected.String))
	c.observed, c.outcome = newWords(vocabulary(flow.Observed.String)), newWords(vocabulary(flow.Outcome.String))
}

// input lists the columns in the order of the table.
func (c *edgeColumns) input() proto.Input {
	return proto.Input{
		{Name: "hour", Data: &c.hour},
		{Name: "reason", Data: &c.reason},
		{Name: "server", Data: &c.server},
		{Name: "service", Data: &c.service},
		{Name: "client", Data: &c.client},
		{Name: "orientation", Data: &c.orientation},
		{Name: "src_segment", Data: &c.srcSegment},
		{Name: "dst_segment", Data: &c.dstSegment},
		{Name: "src_workload", Data: &c.srcWorkload},
		{Name: "dst_workload", Data: &c.dstWorkload},
		{Name: "src_identity", Data: &c.srcIdentity},
		{Name: "dst_identity", Data: &c.dstIdentity},
		{Name: "expected", Data: &c.expected},
		{Name: "staged", Data: &c.staged},
		{Name: "observed", Data: &c.observed},
		{Name: "outcome", Data: &c.outcome},
		{Name: "rule", Data: &c.rule},
		{Name: "exception", Data: &c.exception},
		{Name: "sessions", Data: aggregate{"sum", &c.sessions}},
		{Name: "answered", Data: aggregate{"sum", &c.answered}},
		{Name: "live", Data: aggregate{"sum", &c.live}},
		{Name: "client_bytes", Data: aggregate{"sum", &c.clientBytes}},
		{Name: "client_packets", Data: aggregate{"sum", &c.clientPackets}},
		{Name: "server_bytes", Data: aggregate{"sum", &c.serverBytes}},
		{Name: "server_packets", Data: aggregate{"sum", &c.serverPackets}},
		{Name: "first_seen", Data: aggregate{"min", &c.first}},
		{Name: "last_seen", Data: aggregate{"max", &c.last}},
		{Name: "live_first_seen", Data: aggregate{"min", &c.liveFirst}},
		{Name: "live_last_seen", Data: aggregate{"max", &c.liveLast}},
		{Name: "input", Data: &c.inputName},
		{Name: "inserted_at", Data: aggregate{"max", &c.insertedAt}},
	}
}

func (c *edgeColumns) times() [5]*proto.ColDateTime {
	return [...]*proto.ColDateTime{&c.hour, &c.first, &c.last, &c.liveFirst, &c.liveLast}
}

func (c *edgeColumns) words() [6]*words {
	return [...]*words{&c.reason, &c.orientation, &c.expected, &c.staged, &c.observed, &c.outcome}
}

func (c *edgeColumns) names() [8]*names {
	return [...]*names{&c.srcSegment, &c.dstSegment, &c.srcWorkload, &c.dstWorkload, &c.srcIdentity, &c.dstIdentity, &c.rule, &c.exception}
}

func (c *edgeColumns) sums() [7]*proto.ColInt64 {
	return [...]*proto.ColInt64{&c.sessions, &c.answered, &c.live, &c.clientBytes, &c.clientPackets, &c.serverBytes, &c.serverPackets}
}

func (c *edgeColumns) extend(n int) {
	for _, v := range c.times() {
		v.Data = slices.Grow(v.Data, n)[:len(v.Data)+n]
	}
	for _, v := range c.words() {
		v.ColUInt8 = extend(v.ColUInt8, n)
	}
	for _, v := range c.names() {
		v.extend(n)
	}
	for _, v := range c.sums() {
		*v = extend(*v, n)
	}
	c.client, c.server = extend(c.client, n), extend(c.server, n)
	c.service.extend(n)
}

func (c *edgeColumns) reset() {
	c.insertColumns.reset()
	for _, v := range c.times() {
		v.Reset()
	}
	for _, v := range c.words() {
		v.Reset()
	}
	for _, v := range c.names() {
		v.reset()
	}
	for _, v := range c.sums() {
		v.Reset()
	}
	c.client.Reset()
	c.server.Reset()
	c.service.reset()
}

// What stands for no time: the neutral elements of least and greatest.
const (
	noFirst = proto.DateTime(math.MaxUint32)
	noLast  = proto.DateTime(0)
)

// second is the second of a time as ClickHouse's DateTime has it, from 1970 to 2106; what
// lies beyond becomes the border.
func second(t flow.Time) proto.DateTime {
	return proto.DateTime(min(max(t, 0)/1000, math.MaxUint32))
}

// set writes row i.
func (c *edgeColumns) set(i int, e *flow.EdgeContribution, texts []string) {
	c.hour.Data[i] = second(e.Hour)
	c.client[i], c.server[i] = e.Client.As16(), e.Server.As16()
	c.record = flow.Record{Has: flow.HasProto, Proto: e.Proto, ICMPType: e.ICMPType, ICMPCode: e.ICMPCode, DstPort: e.ServerPort, Oriented: flow.Forward}
	if e.HasPorts {
		c.record.Has |= flow.HasSrcPort | flow.HasDstPort
	}
	if e.HasICMP {
		c.record.Has |= flow.HasICMP
	}
	c.orientation.set(i, 0)
	if e.Open {
		c.record.Oriented = flow.Open
		c.orientation.set(i, 1)
	}
	c.service.set(i, &c.record, e.ServerPort)
	c.reason.set(i, uint8(e.Reason))
	c.expected.set(i, uint8(e.Expected))
	c.staged.set(i, uint8(e.Staged))
	c.observed.set(i, uint8(e.Observed))
	c.outcome.set(i, uint8(e.Outcome))
	columns := c.names()
	for k, n := range [...]flow.Name{e.ClientSegment, e.ServerSegment, e.ClientWorkload, e.ServerWorkload, e.ClientIdentity, e.ServerIdentity, e.Rule, e.Exception} {
		columns[k].set(i, n, texts)
	}
	sums := c.sums()
	for k, n := range [...]int64{int64(e.Sessions), int64(e.Answered), int64(e.Live), e.ClientBytes, e.ClientPackets, e.ServerBytes, e.ServerPackets} {
		(*sums[k])[i] = n
	}
	c.first.Data[i], c.last.Data[i], c.liveFirst.Data[i], c.liveLast.Data[i] = noFirst, noLast, noFirst, noLast
	switch {
	case e.First == 0 && e.Last == 0:
	case e.Over:
		c.first.Data[i], c.last.Data[i] = second(e.First), second(e.Last)
	default:
		c.liveFirst.Data[i], c.liveLast.Data[i] = second(e.First), second(e.Last)
	}
}
