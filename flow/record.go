package flow

// Record is one exported flow record and what Postern found out about it: the
// wire fields that ingest filled, who and where that enrich added, and the
// verdict of policy. It is a value of fixed size without pointers, so a million
// of them cost the garbage collector nothing; a test asserts both.
//
// A biflow record (RFC 5103) is one Record with the Rev fields set; two
// unidirectional halves are two Records of one session.
type Record struct {
	// ID tells this record from every other: a hash of where it stood in its
	// input (source, position, index), so that reading the same input again
	// gives the same id, while identical records in different datagrams differ.
	ID uint64

	Start, End Time // the flow's own times, by the exporter's clock (sFlow: receipt)
	Received   Time // arrival, or the packet's stamp in a capture

	Exporter Addr   // who told it: source address of the datagram, agent address in sFlow
	Src, Dst Addr   // as on the wire; not yet client and server
	NATSrc   Addr   // after translation (IPFIX 225, 281)
	NATDst   Addr   // after translation (IPFIX 226, 282)
	Domain   uint32 // observation domain (IPFIX), source id (v9), engine type and id (v5), sub-agent (sFlow)

	// SamplingRate is packets seen per packet counted; 0 is unknown, 1 unsampled.
	SamplingRate uint32

	// Counters as the exporter wrote them, not scaled; see [Record.Bytes].
	BytesRaw, PacketsRaw       uint64
	RevBytesRaw, RevPacketsRaw uint64

	InIf, OutIf uint32
	User, App   Name // userName (371) belongs to the Src end; application name or id

	// Told by agents and by logs of enforcement; see Reporter for whose words they are.
	Observer               Name // the agent, sensor or node, by its own name
	EnforcedBy             Name // the policy or rule that enforcement named
	SrcHost, DstHost       Name // an end as the agent calls it: pod, virtual machine, host name
	SrcProcess, DstProcess Name // the program at that end

	Has     Has
	Quality Quality

	// Skew is the exporter's smoothed clock error in milliseconds (header clock
	// minus receipt), set only where it is beyond the tolerance (QualityClockSkew).
	Skew int32

	SrcPort, DstPort       uint16
	NATSrcPort, NATDstPort uint16
	TCPFlags, RevTCPFlags  uint16 // OR over the flow (IPFIX 6, 16 bits)

	Proto            uint8
	Source           Source
	ICMPType         uint8
	ICMPCode         uint8
	ForwardingStatus uint8    // IPFIX 89, RFC 7270 4.12: status in the upper two bits
	FirewallEvent    uint8    // IPFIX 233
	Direction        uint8    // flowDirection, IPFIX 61: 0 ingress, 1 egress
	BiflowDirection  uint8    // IPFIX 239, RFC 5103 6.3: 1 initiator, 2 reverse initiator, 3 perimeter
	Enforced         Observed // what the log says that enforcement did
	Reporter         Reporter // which end the agent that told it sits at

	// Filled by enrich.
	Oriented             Orientation
	OtherHalf            bool // its other half was seen: there was traffic both ways
	SrcSegment           Name
	DstSegment           Name
	SrcWorkload          Name
	DstWorkload          Name
	SrcIdentity          Name // user or workload identity; NoName is not known, never "nobody". Agents' logs fill it on ingest
	DstIdentity          Name
	SrcDoubt             Doubt // why it is not all known who is behind an end
	DstDoubt             Doubt
	OrientationCertainty uint8 // percent, 0–100

	// SrcSilence and DstSilence are for how many seconds before the flow the source that said
	// who is behind an end had been silent; -1 where no source said so.
	SrcSilence, DstSilence int32
	// SrcIdentityFrom and DstIdentityFrom are the sources, as configured, whose word the
	// identities are; NoName where the record itself tells them, or nobody does.
	SrcIdentityFrom, DstIdentityFrom Name

	// Filled by judging.
	Verdict Verdict
}

// Has says which optional wire fields the exporter sent; an absent field is
// unknown, never zero.
type Has uint32

// The optional wire fields.
const (
	HasStart Has = 1 << iota
	HasEnd
	HasSrc
	HasDst
	HasSrcPort
	HasDstPort
	HasProto
	HasTCPFlags
	HasBytes
	HasPackets
	HasRevTCPFlags
	HasRevBytes
	HasRevPackets
	HasInIf
	HasOutIf
	HasNATSrc
	HasNATDst
	HasNATSrcPort
	HasNATDstPort
	HasICMP // type and code
	HasForwardingStatus
	HasFirewallEvent
	HasDirection
	HasBiflowDirection
	// HasInitiator says that Src is the initiator by the meaning of the fields
	// themselves (initiatorOctets 231, responderOctets 232: Cisco ASA, NetScaler).
	HasInitiator
	// HasResponder says likewise that Src is the responder: the record tells the reply.
	HasResponder
	// HasSrcIdentity and HasDstIdentity say that whoever told the record named the identity.
	HasSrcIdentity
	HasDstIdentity
)

// All says whether every field of h is present.
func (r *Record) All(h Has) bool { return r.Has&h == h }

// Any says whether at least one field of h is present.
func (r *Record) Any(h Has) bool { return r.Has&h != 0 }

// NamesFull says whether a name of the wire fields did not fit the table any more.
func (r *Record) NamesFull() bool {
	for _, n := range [...]Name{r.User, r.App, r.Observer, r.EnforcedBy, r.SrcHost, r.DstHost, r.SrcProcess, r.DstProcess, r.SrcIdentity, r.DstIdentity} {
		if n == OverflowName {
			return true
		}
	}
	return false
}

// scale multiplies a counter by the sampling rate, holding at the largest value
// instead of wrapping.
func (r *Record) scale(v uint64) uint64 {
	n := uint64(r.SamplingRate)
	if n <= 1 {
		return v
	}
	if v > ^uint64(0)/n {
		return ^uint64(0)
	}
	return v * n
}

// Bytes is the byte count scaled by sampling.
func (r *Record) Bytes() uint64 { return r.scale(r.BytesRaw) }

// Packets is the packet count scaled by sampling.
func (r *Record) Packets() uint64 { return r.scale(r.PacketsRaw) }

// RevBytes is the byte count of the reverse direction scaled by sampling.
func (r *Record) RevBytes() uint64 { return r.scale(r.RevBytesRaw) }

// RevPackets is the packet count of the reverse direction scaled by sampling.
func (r *Record) RevPackets() uint64 { return r.scale(r.RevPacketsRaw) }

// Biflow says whether the record tells both directions.
func (r *Record) Biflow() bool { return r.Any(HasRevBytes | HasRevPackets | HasRevTCPFlags) }

// Reporter is the end of a flow that the agent which told it sits at. An agent speaks
// with authority of its own end only.
type Reporter uint8

// Where an agent can sit.
const (
	ReporterElsewhere   Reporter = iota // on the path, or not known
	ReporterSource                      // at Src
	ReporterDestination                 // at Dst
)

var reporterTexts = [...]string{"", "source", "destination"}

func (r Reporter) String() string { return text(reporterTexts[:], int(r)) }

// Orientation says which end of a record is the client (initiator).
type Orientation uint8

// The orientations.
const (
	// Open: the record does not tell, and neither did its other half.
	Open Orientation = iota
	// Forward: Src is the client.
	Forward
	// Reverse: Dst is the client; the record tells the reply.
	Reverse
)

// Ends gives the client's and the server's address. While the orientation is
// open it is the pair in ascending order of address, then port, so that both
// halves of a conversation name the same pair.
func (r *Record) Ends() (client, server Addr) {
	if r.swapped() {
		return r.Dst, r.Src
	}
	return r.Src, r.Dst
}

// Ports gives the ports in the order of [Record.Ends].
func (r *Record) Ports() (client, server uint16) {
	if r.swapped() {
		return r.DstPort, r.SrcPort
	}
	return r.SrcPort, r.DstPort
}

// Segments gives the segments in the order of [Record.Ends].
func (r *Record) Segments() (client, server Name) {
	if r.swapped() {
		return r.DstSegment, r.SrcSegment
	}
	return r.SrcSegment, r.DstSegment
}

// Workloads gives the workloads in the order of [Record.Ends].
func (r *Record) Workloads() (client, server Name) {
	if r.swapped() {
		return r.DstWorkload, r.SrcWorkload
	}
	return r.SrcWorkload, r.DstWorkload
}

// Identities gives the identities in the order of [Record.Ends].
func (r *Record) Identities() (client, server Name) {
	if r.swapped() {
		return r.DstIdentity, r.SrcIdentity
	}
	return r.SrcIdentity, r.DstIdentity
}

// Hosts gives the names that agents have for the ends, in the order of [Record.Ends].
func (r *Record) Hosts() (client, server Name) {
	if r.swapped() {
		return r.DstHost, r.SrcHost
	}
	return r.SrcHost, r.DstHost
}

// Processes gives the programs in the order of [Record.Ends].
func (r *Record) Processes() (client, server Name) {
	if r.swapped() {
		return r.DstProcess, r.SrcProcess
	}
	return r.SrcProcess, r.DstProcess
}

// process is the program at the reporter's end; where that is not told, the one that is known.
func (r *Record) process() Name {
	if r.Reporter == ReporterDestination && r.DstProcess != NoName || r.SrcProcess == NoName {
		return r.DstProcess
	}
	return r.SrcProcess
}

// ReporterEnd is the end of the conversation that the reporter sits at, "client" or
// "server"; empty where that is not known.
func (r *Record) ReporterEnd() string {
	switch {
	case r.Reporter == ReporterElsewhere:
		return ""
	case (r.Reporter == ReporterSource) == r.swapped():
		return "server"
	}
	return "client"
}

// Doubts gives why it is not all known who is behind the ends, in the order of [Record.Ends].
func (r *Record) Doubts() (client, server Doubt) {
	if r.swapped() {
		return r.DstDoubt, r.SrcDoubt
	}
	return r.SrcDoubt, r.DstDoubt
}

// Silences gives for how many seconds the sources that said who is behind the ends had been
// silent, in the order of [Record.Ends].
func (r *Record) Silences() (client, server int32) {
	if r.swapped() {
		return r.DstSilence, r.SrcSilence
	}
	return r.SrcSilence, r.DstSilence
}

// IdentitySources gives the sources whose word the identities are, in the order of [Record.Ends].
func (r *Record) IdentitySources() (client, server Name) {
	if r.swapped() {
		return r.DstIdentityFrom, r.SrcIdentityFrom
	}
	return r.SrcIdentityFrom, r.DstIdentityFrom
}

// Translated gives the addresses behind a translation (NAT), in the order of [Record.Ends];
// zero where none is told or nothing was translated.
func (r *Record) Translated() (client, server Addr) {
	if r.Any(HasNATSrc) && r.NATSrc != r.Src {
		client = r.NATSrc.Canonical()
	}
	if r.Any(HasNATDst) && r.NATDst != r.Dst {
		server = r.NATDst.Canonical()
	}
	if r.swapped() {
		return server, client
	}
	return client, server
}

// Swapped says whether [Record.Ends] and its like give Dst first.
func (r *Record) Swapped() bool { return r.swapped() }

func (r *Record) swapped() bool {
	switch r.Oriented {
	case Forward:
		return false
	case Reverse:
		return true
	}
	c := r.Src.Compare(r.Dst)
	return c > 0 || c == 0 && r.SrcPort > r.DstPort
}

// Protocol numbers (IANA) that the code speaks of by name.
const (
	ProtoICMP   = 1
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoICMPv6 = 58
	ProtoSCTP   = 132
)

// IsICMP says whether the record is ICMP of either family.
func (r *Record) IsICMP() bool { return r.Proto == ProtoICMP || r.Proto == ProtoICMPv6 }

// TCP flags as they stand in [Record.TCPFlags].
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
)
