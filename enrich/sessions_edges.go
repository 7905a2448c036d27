package enrich

import "github.com/postern/postern/flow"

// The hourly roll-up counts sessions by edge. Rows that replace each other cannot be summed, so
// Sessions says itself what a session adds: all of it once, when it is over, which for nearly
// all is minutes after they began. One that goes on is counted with its second row, and what
// changes from row to row is given as a difference; where its edge changes (a verdict, who is
// the client) it is taken from the one and given to the other. One that turns out to be part of
// another is taken back. So at any time the sums are those over the newest rows, less what is
// not counted yet.
//
// When a session began and ended is a least and a greatest of the edge, which nobody can take
// back. So that is told for good only when it is over; before, apart, for as long as it is live.

// tally is what the row of a session that was written last tells for the roll-up.
type tally struct {
	tallied
	version        uint64
	bytes, packets [2]uint64 // of the client, of the server
	first, last    flow.Time
	bothWays       bool
	counted        bool // it was given out
}

// tallied is what of a session's edge may change.
type tallied struct {
	segment, workload    [2]flow.Name // of the client, of the server
	identity             [2]flow.Name // likewise
	rule, exception      flow.Name
	expected, staged     flow.Expected
	reason               flow.Reason
	observed             flow.Observed
	outcome              flow.Outcome
	open, clientIsHigher bool
}

// set takes in the row that is written of a session of conv; whether it was counted stays.
func (t *tally) set(conv *flow.Conversation, row *flow.Session) {
	if row.Version < t.version {
		return // the row before stays the one that counts, as where what is behind a translation was forgotten
	}
	c, v, d := &row.Client, &row.Server, &row.Verdict
	t.version = row.Version
	t.tallied = tallied{segment: [2]flow.Name{c.Segment, v.Segment}, workload: [2]flow.Name{c.Workload, v.Workload},
		identity: [2]flow.Name{c.Identity, v.Identity}, rule: d.Rule, exception: d.Exception, expected: d.Expected, staged: d.Staged, reason: d.Reason, observed: d.Observed, outcome: d.Outcome,
		open: row.Open, clientIsHigher: c.Addr != conv.Low || c.Addr == v.Addr && c.Port != conv.LowPort}
	t.bytes, t.packets = [2]uint64{c.Bytes, v.Bytes}, [2]uint64{c.Packets, v.Packets}
	t.first, t.last, t.bothWays = row.Start, row.End, row.BothWays
}

// edge adds an empty contribution to the edge and the hour of a session.
func (x *Sessions) edge(conv *flow.Conversation, began flow.Time, t *tally) *flow.EdgeContribution {
	if x.edges == nil {
		x.edges = make([]flow.EdgeContribution, 0, x.usualEdges+x.usualEdges/4+16)
	}
	x.edges = append(x.edges, flow.EdgeContribution{})
	c := &x.edges[len(x.edges)-1]
	if c.Hour = began - began%flow.Hour; c.Hour > began { // before 1970
		c.Hour -= flow.Hour
	}
	c.Client, c.Server, c.ServerPort = conv.Low, conv.High, conv.HighPort
	if t.clientIsHigher {
		c.Client, c.Server, c.ServerPort = conv.High, conv.Low, conv.LowPort
	}
	switch c.Proto = conv.Proto; c.Proto {
	case flow.ProtoICMP, flow.ProtoICMPv6:
		c.HasICMP, c.ServerPort = conv.LowPort != 0, 0
		c.ICMPType, c.ICMPCode = uint8(conv.LowPort>>8), uint8(conv.LowPort)
	default:
		c.HasPorts = conv.LowPort|conv.HighPort != 0
	}
	if c.Open = t.open; c.Open {
		c.ServerPort = 0
	}
	c.ClientSegment, c.ServerSegment, c.ClientWorkload, c.ServerWorkload = t.segment[0], t.segment[1], t.workload[0], t.workload[1]
	c.ClientIdentity, c.ServerIdentity = t.identity[0], t.identity[1]
	c.Rule, c.Exception, c.Expected, c.Staged = t.rule, t.exception, t.expected, t.staged
	c.Reason, c.Observed, c.Outcome = t.reason, t.observed, t.outcome
	return c
}

// add adds a tally to a contribution, or takes it off where sign is -1.
func add(c *flow.EdgeContribution, t *tally, sign int8, live bool) {
	c.Sessions += sign
	if t.bothWays {
		c.Answered += sign
	}
	if live {
		c.Live += sign
	}
	by := int64(sign)
	c.ClientBytes += by * int64(t.bytes[0])
	c.ServerBytes += by * int64(t.bytes[1])
	c.ClientPackets += by * int64(t.packets[0])
	c.ServerPackets += by * int64(t.packets[1])
}

// count gives what session i adds to the roll-up with its newest row, was being its tally
// before that row was written; over, if no further row will come.
func (x *Sessions) count(i int32, was *tally, over bool) {
	s := &x.list[i]
	now := &s.tally
	if !was.counted {
		now.counted = true
		x.uncounted--
		x.m.counted.Inc()
	} else if was.tallied != now.tallied {
		x.takeBack(&s.conv, s.began, was)
	}
	c := x.edge(&s.conv, s.began, now)
	c.First, c.Last, c.Over = now.first, now.last, over
	if over {
		c.Session, c.Ended, c.Sent = s.id, now.last+x.hold(s.conv.Proto)+1, now.bytes
		x.index.Edge(len(x.edges)-1, c)
	}
	add(c, now, 1, !over)
	if was.counted && was.tallied == now.tallied {
		add(c, was, -1, true)
	}
}

// takeBack takes off the roll-up what of a live session is in it.
func (x *Sessions) takeBack(conv *flow.Conversation, began flow.Time, was *tally) {
	add(x.edge(conv, began, was), was, -1, true)
}

// uncount takes off the roll-up what is part of another session now, which live says of it.
func (x *Sessions) uncount(conv *flow.Conversation, began flow.Time, was *tally, live bool) {
	if !was.counted {
		x.uncounted--
		return
	}
	x.m.takenBack.Inc()
	add(x.edge(conv, began, was), was, -1, live)
}

// leaveBehind leaves with what waits for a host's clock what the host told of the session that it
// stands as, which is over, and what is counted of that session if it is all of it, in case it turns
// out to be part of another.
func (x *Sessions) leaveBehind(s *sess) {
	if x.strays.live == 0 || !s.exported.empty() {
		return
	}
	alone := s.nObs == 1 && len(s.more) == 0
	x.strays.each(s.cid, func(st *stray) bool {
		if st.sess == s.id {
			x.refreshFrom(st, s)
			st.alone = alone
			if alone {
				st.tally = s.tally
			}
		}
		return true
	})
}

// Edges gives what the sessions collected since the last call add to the hourly roll-up. Call
// it after Collect or Flush, for it belongs to the same input. What it gives belongs to the caller.
func (x *Sessions) Edges() []flow.EdgeContribution {
	edges := x.edges
	x.edges, x.usualEdges = nil, len(edges)
	return edges
}

// Index is the index of what Collect or Flush, and after it Edges, gave. It holds until the next
// Collect or Flush.
func (x *Sessions) Index() *flow.Index { return &x.indexed }

// tally codes a tally of a session that began then.
func (c *coder) tally(t *tally, began flow.Time) {
	for k := range 2 {
		c.name(&t.segment[k])
		c.name(&t.workload[k])
		if !c.reading || c.version >= 8 { // before, what was counted was counted without
			c.name(&t.identity[k])
		}
		c.u64(&t.bytes[k])
		c.u64(&t.packets[k])
	}
	c.u64(&t.version)
	c.name(&t.rule)
	c.name(&t.exception)
	coded(c, &t.expected)
	coded(c, &t.staged)
	coded(c, &t.reason)
	coded(c, &t.observed)
	coded(c, &t.outcome)
	c.bool(&t.open)
	c.bool(&t.clientIsHigher)
	first, last := t.first-began, t.last-began
	coded(c, &first)
	coded(c, &last)
	if c.reading {
		t.first, t.last = began+first, began+last
	}
	c.bool(&t.bothWays)
	c.bool(&t.counted)
}
