package flow

// Index is where among rows of sessions, and among what they added to the roll-up of edges, is what
// detectors look for. Rows are large, there are several of a session, and by the time that they are
// read they are in no cache any more; of nearly all of them detectors need nothing but what is here.
type Index struct {
	// First are the first versions of sessions that stand by themselves, in the order of their rows.
	First []First
	// Mappers are the places among First of those of an endpoint mapper; see [EndpointMapper].
	Mappers []int32
	// Blocked are the places of rows whose outcome is [OutcomeBlocked].
	Blocked []int32
	// Over are the contributions of sessions that are over, in their order, which is that of Ended.
	Over []Over
}

// EndpointMapper says whether a port is that of an endpoint mapper, which tells clients on which port
// a service is to be had (MS-RPCE 2.1.1: 135, and 593 behind HTTP).
func EndpointMapper(proto uint8, port uint16) bool {
	return proto == ProtoTCP && (port == 135 || port == 593)
}

// First is what detectors read of the first version of any session. It is a value of fixed size
// without pointers.
type First struct {
	Settled, Start, End Time
	Client, Server      FirstEnd
	Exception           Name
	Row                 int32 // its place among the rows

	Proto, ICMPType, ICMPCode uint8
	HasPorts, HasICMP, Open   bool
	Answered                  bool // before it settled
	OrientationCertainty      uint8
	NAT                       NAT
	Reason                    Reason
	Observed                  Observed
	Outcome                   Outcome
	Reporters                 uint8 // the bit of each [Reporter] among its observers
}

// FirstEnd is one side of it.
type FirstEnd struct {
	Addr              Addr
	Port, TCPFlags    uint16
	Segment, Workload Name
	Own               bool
}

// Over is what detectors read of the contribution of any session that is over. It is a value of fixed
// size without pointers.
type Over struct {
	Client, Server     Addr
	Ended, First       Time
	Sent               uint64 // the more of what the two ends sent
	Place              int32  // of the contribution
	ServerPort         uint16
	Proto              uint8
	ICMPType, ICMPCode uint8
	HasICMP, Open      bool
}

func (e *SessionEnd) first() FirstEnd {
	return FirstEnd{e.Addr, e.Port, e.TCPFlags, e.Segment, e.Workload, e.Own}
}

// Row takes in a row, which is complete; row is its place.
func (x *Index) Row(row int, s *Session) {
	if s.Into != 0 {
		return
	}
	v := &s.Verdict
	if v.Outcome == OutcomeBlocked {
		x.Blocked = append(x.Blocked, int32(row))
	}
	if s.Settled == 0 {
		return
	}
	f := First{Settled: s.Settled, Start: s.Start, End: s.End, Client: s.Client.first(), Server: s.Server.first(), Exception: v.Exception, Row: int32(row),
		Proto: s.Proto, ICMPType: s.ICMPType, ICMPCode: s.ICMPCode, HasPorts: s.HasPorts, HasICMP: s.HasICMP, Open: s.Open,
		Answered: s.Answered != 0 && s.Answered < s.Settled, OrientationCertainty: s.OrientationCertainty, NAT: s.NAT,
		Reason: v.Reason, Observed: v.Observed, Outcome: v.Outcome}
	for i := range s.Observers[:min(int(s.ObserversTotal), len(s.Observers))] {
		f.Reporters |= 1 << s.Observers[i].Reporter
	}
	if EndpointMapper(f.Proto, f.Server.Port) {
		x.Mappers = append(x.Mappers, int32(len(x.First)))
	}
	x.First = append(x.First, f)
}

// Edge takes in a contribution to an edge; place is its place.
func (x *Index) Edge(place int, c *EdgeContribution) {
	if c.Over {
		x.Over = append(x.Over, Over{Client: c.Client, Server: c.Server, Ended: c.Ended, First: c.First, Sent: max(c.Sent[0], c.Sent[1]), Place: int32(place),
			ServerPort: c.ServerPort, Proto: c.Proto, ICMPType: c.ICMPType, ICMPCode: c.ICMPCode, HasICMP: c.HasICMP, Open: c.Open})
	}
}

// IndexOf indexes rows and contributions.
func IndexOf(rows []Session, edges []EdgeContribution) Index {
	var x Index
	for i := range rows {
		x.Row(i, &rows[i])
	}
	for i := range edges {
		x.Edge(i, &edges[i])
	}
	return x
}

// Reset empties the index; what it held is overwritten.
func (x *Index) Reset() {
	x.First, x.Mappers, x.Blocked, x.Over = x.First[:0], x.Mappers[:0], x.Blocked[:0], x.Over[:0]
}
