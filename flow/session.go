package flow

import (
	"math/bits"
	"strconv"
)

// Conversation is an unordered five-tuple: the two ends in ascending order of address, then
// port, and the protocol. Addresses are canonical ([Addr.Canonical]). A port that was not
// told, and of protocols without ports, is 0. Of ICMP LowPort is the type of the request and
// the code (type × 256 + code) and HighPort 0, so that both halves of an echo are one
// conversation. It is comparable and may be a map key.
type Conversation struct {
	Low, High         Addr
	LowPort, HighPort uint16
	Proto             uint8
}

// ConversationOf gives the conversation of a record, and whether its Src is the lower end.
// ok is false where an address or the protocol is not known: such a record is of no
// conversation.
func ConversationOf(r *Record) (c Conversation, srcLow, ok bool) {
	if !r.All(HasSrc | HasDst | HasProto) {
		return c, false, false
	}
	c, srcLow = conversation(r, r.Src, r.Dst, r.SrcPort, r.DstPort)
	return c, srcLow, true
}

// TranslatedOf is [ConversationOf] for the tuple behind a translation (NAT). ok is false
// where the record does not tell that tuple in full or nothing was translated; partly says
// that it tells of a translation, but not enough to know the tuple.
func TranslatedOf(r *Record) (c Conversation, srcLow, ok, partly bool) {
	if !r.Any(HasNATSrc|HasNATDst) || !r.All(HasSrc|HasDst|HasProto) {
		return c, false, false, false
	}
	src, dst, sp, dp := r.Src, r.Dst, r.SrcPort, r.DstPort
	ports := !r.IsICMP() && r.Any(HasSrcPort|HasDstPort)
	if r.Any(HasNATSrc) && r.NATSrc != r.Src && !r.NATSrc.IsZero() {
		src = r.NATSrc
		if r.Any(HasNATSrcPort) {
			sp = r.NATSrcPort
		} else {
			partly = ports // whether the port was kept is not known
		}
	} else if r.Any(HasNATSrcPort) && r.NATSrcPort != 0 {
		sp = r.NATSrcPort
	}
	if r.Any(HasNATDst) && r.NATDst != r.Dst && !r.NATDst.IsZero() {
		dst = r.NATDst
		if r.Any(HasNATDstPort) {
			dp = r.NATDstPort
		} else {
			partly = partly || ports
		}
	} else if r.Any(HasNATDstPort) && r.NATDstPort != 0 {
		dp = r.NATDstPort
	}
	if partly {
		return c, false, false, true
	}
	c, srcLow = conversation(r, src, dst, sp, dp)
	before, _ := conversation(r, r.Src, r.Dst, r.SrcPort, r.DstPort)
	return c, srcLow, c != before, false
}

func conversation(r *Record, src, dst Addr, sp, dp uint16) (c Conversation, srcLow bool) {
	c.Proto = r.Proto
	src, dst = src.Canonical(), dst.Canonical()
	icmp := r.IsICMP()
	if icmp {
		sp, dp = 0, 0
	}
	order := src.Compare(dst)
	if srcLow = order < 0 || order == 0 && sp <= dp; srcLow {
		c.Low, c.High, c.LowPort, c.HighPort = src, dst, sp, dp
	} else {
		c.Low, c.High, c.LowPort, c.HighPort = dst, src, dp, sp
	}
	if icmp && r.Any(HasICMP) {
		c.LowPort = uint16(icmpRequestType(r.Proto, r.ICMPType))<<8 | uint16(r.ICMPCode)
	}
	return c, srcLow
}

// icmpRequestType is the type of the request that a reply answers, else the type itself.
func icmpRequestType(proto, typ uint8) uint8 {
	if proto == ProtoICMPv6 {
		if typ == 129 { // echo reply, RFC 4443
			return 128
		}
		return typ
	}
	switch typ {
	case 0: // echo reply, RFC 792
		return 8
	case 14, 16, 18: // replies about time, information, address mask: RFC 792, RFC 950
		return typ - 1
	}
	return typ
}

// The numbers that conversations are hashed with: digits of the golden ratio and of the
// square roots of 2, 3 and 5. Stored ids hang on them; they never change.
const (
	hash0 = 0x9e3779b97f4a7c15
	hash1 = 0x6a09e667f3bcc908
	hash2 = 0xbb67ae8584caa73b
	hash3 = 0x3c6ef372fe94f82b
)

func fold(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// ID is a hash of the conversation: the same for every observation of it, whoever told it
// and whenever, and never 0. It joins rows of flows with rows of sessions. It is not
// secret: whoever can make up flows can make up two conversations of one id.
func (c *Conversation) ID() uint64 {
	h := fold(c.Low.Hi^hash0, c.Low.Lo^hash1)
	h = fold(h^c.High.Hi^hash2, c.High.Lo^hash3)
	h = fold(h^(uint64(c.LowPort)<<32|uint64(c.HighPort)<<16|uint64(c.Proto)), hash0)
	return max(fold(h^hash2, hash1), 1)
}

// Conversation is the id of the record's conversation, 0 where it is of none.
func (r *Record) Conversation() uint64 {
	c, _, ok := ConversationOf(r)
	if !ok {
		return 0
	}
	return c.ID()
}

// SessionID is the id of a session of a conversation; see [Session.Began].
func SessionID(conversation uint64, began Time) uint64 {
	return max(fold(conversation^hash3, uint64(began)^hash0), 1)
}

// MaxObservers is how many observers a session lists.
const MaxObservers = 8

// NAT is what is known of a session's translation.
type NAT uint8

// What can be known of a translation.
const (
	NATNone       NAT = iota
	NATTranslated     // an observer told the tuples on both sides: they are one session
	// NATUnverified: an end is an address of a NAT pool, or a translation is told in part, and
	// the other side's tuple is not known. Who is behind it is not known either.
	NATUnverified
)

var natTexts = [...]string{"none", "translated", "unverified"}

func (n NAT) String() string { return text(natTexts[:], int(n)) }

// Contradictions is a set of kinds of [Contradiction].
type Contradictions uint8

// The kinds of contradiction.
const (
	ContradictIdentity Contradictions = 1 << iota // two identities for one side
	ContradictUnseen                              // an end with a healthy agent that never saw the session
	ContradictVerdict                             // one end's agent says that it stopped what the other end saw
)

var contradictionTexts = [...]string{"identity", "unseen", "verdict"}

// Texts lists the kinds by name, in their fixed order; nil if none.
func (c Contradictions) Texts() []string { return setTexts(uint32(c), contradictionTexts[:]) }

// Session is what all observers together say of one conversation without a gap beyond its
// protocol's idle time. It is a value of fixed size without pointers. A later version of a
// session replaces an earlier one. What detectors read of nearly all of them is in an [Index].
type Session struct {
	ID           uint64
	Conversation uint64 // of the side before translation
	Version      uint64 // rises with content
	// Into is the session that this one turned out to be part of; 0 while it stands by
	// itself. Nothing else of a session that is part of another counts.
	Into uint64
	// Settled, of the session's first version, is what the watermark had passed when it was
	// written; 0 of later ones. Each session has one first version, unless it became part of
	// another before, and first versions come in the order of Settled.
	Settled    Time
	Start, End Time
	// Answered is when both ends had sent something, as the records that say so began; 0 while one had not.
	Answered Time

	Verdict              Verdict // of the best informed observation, observed and outcome of all
	Open                 bool
	OrientationCertainty uint8 // percent
	Proto                uint8
	ICMPType, ICMPCode   uint8 // of the request
	HasPorts, HasICMP    bool
	NAT                  NAT
	BothWays             bool // there was traffic both ways
	Contradictions       Contradictions
	ObserversTotal       uint16 // holds at 64
	Records              uint32
	Quality              Quality
	EnforcedBy           Name

	// Client and Server are the ends, canonical; while Open the lower and the higher one.
	Client, Server SessionEnd
	Observers      [MaxObservers]SessionObserver

	// Began is when it began by what was known as it was written first. The id is made of
	// it, so it stays; Start is what is known now.
	Began                        Time
	NATClient, NATServer         Addr // after translation
	NATClientPort, NATServerPort uint16
}

// SessionEnd is one side of a session.
type SessionEnd struct {
	Addr            Addr
	Port            uint16
	TCPFlags        uint16 // that it sent, an OR
	Segment         Name
	Workload        Name
	Own             bool  // this side's own agent told of the session
	IdentityCertain uint8 // percent
	HasBytes        bool
	HasPackets      bool
	Identity        Name
	Process, Host   Name
	IdentityFrom    Name   // the observer or the source of identities whose word it is; NoName for an exporter
	Bytes, Packets  uint64 // that it sent, as the best observer told, scaled by sampling
	IdentityHeard   Time   // when that source was last heard before: of observers, the session's start; 0 if it does not tell
}

// SessionObserver is one who told of a session.
type SessionObserver struct {
	Exporter Addr
	Domain   uint32
	Observer Name
	Source   Source
	// Reporter is the end it sits at: [ReporterSource] is the client's.
	Reporter Reporter
	Observed Observed
	Records  uint32
	First    Time // corrected by Skew
	Last     Time
	Skew     int32 // milliseconds taken off its stamps
}

// Contradiction is something that observers of one session tell differently. It is said once
// a session, kind and side.
type Contradiction struct {
	ID         uint64 // of session, kind and side
	Kind       Contradictions
	Session    Session
	Server     bool // it is about the server's side, else the client's
	Claim      [2]Name
	Claimant   [2]Name // the observer that claims it; NoName for an exporter
	Source     [2]Source
	Confidence uint8 // percent
}

// About is the side that a contradiction is about.
func (c *Contradiction) About() *SessionEnd {
	if c.Server {
		return &c.Session.Server
	}
	return &c.Session.Client
}

// Untold is a session that is over and that others saw an end take part in whose own agent, if it has
// one that logs every connection, should have told of it and did not. Whether it has one, and
// whether that was telling of others then, is known of the whole estate only. It is a value of
// fixed size without pointers.
type Untold struct {
	// Session is its newest version; Settled is when its first version did.
	Session Session
	// Over is what the watermark had passed when it was over.
	Over Time
	// Side says which ends it is about: the client, the server.
	Side [2]bool
	// Witness and Source are who saw that end take part.
	Witness [2]Name // NoName for an exporter
	Source  [2]Source
	// Left, where it is not 0, is how many others had no room within the minute of Over; nothing else
	// is told then.
	Left uint32
}

// ContradictionID is the id of a contradiction.
func ContradictionID(session uint64, kind Contradictions, server bool) uint64 {
	v := uint64(kind) << 1
	if server {
		v |= 1
	}
	return max(fold(session^hash1, v^hash2), 1)
}

// Translated is the address behind a translation of the server's side or the client's; zero where
// that was not translated.
func (s *Session) Translated(server bool) Addr {
	e, behind := &s.Client, s.NATClient
	if server {
		e, behind = &s.Server, s.NATServer
	}
	if s.NAT != NATTranslated || behind == e.Addr {
		return Addr{}
	}
	return behind
}

// AppendService appends the session's service as the policy language writes it; while the
// session is open the protocol alone.
func (s *Session) AppendService(b []byte) []byte {
	b = AppendProto(b, s.Proto)
	switch {
	case s.HasICMP:
		b = strconv.AppendUint(append(b, '/'), uint64(s.ICMPType), 10)
		b = strconv.AppendUint(append(b, '/'), uint64(s.ICMPCode), 10)
	case !s.Open && s.HasPorts && (s.Proto == ProtoTCP || s.Proto == ProtoUDP || s.Proto == ProtoSCTP):
		b = strconv.AppendUint(append(b, '/'), uint64(s.Server.Port), 10)
	}
	return b
}

// Record is the session as one judged biflow, for whoever reads sessions as records: its id,
// client as Src, counters scaled, the verdict of all observers. What the session does not say
// is absent. A session that is part of another (Into) has no record of its own.
func (s *Session) Record() Record {
	c, v := &s.Client, &s.Server
	r := Record{ID: s.ID, Start: s.Start, End: s.End, Src: c.Addr, Dst: v.Addr, Proto: s.Proto,
		Has:          HasStart | HasEnd | HasSrc | HasDst | HasProto,
		SamplingRate: 1, Quality: s.Quality, EnforcedBy: s.EnforcedBy, Enforced: s.Verdict.Observed,
		BytesRaw: c.Bytes, PacketsRaw: c.Packets, RevBytesRaw: v.Bytes, RevPacketsRaw: v.Packets, TCPFlags: c.TCPFlags, RevTCPFlags: v.TCPFlags,
		SrcHost: c.Host, DstHost: v.Host, SrcProcess: c.Process, DstProcess: v.Process, SrcIdentity: c.Identity, DstIdentity: v.Identity,
		SrcSegment: c.Segment, DstSegment: v.Segment, SrcWorkload: c.Workload, DstWorkload: v.Workload,
		Oriented: Forward, OrientationCertainty: s.OrientationCertainty, OtherHalf: s.BothWays, Verdict: s.Verdict}
	for _, f := range [...]struct {
		has  bool
		what Has
	}{{s.HasPorts, HasSrcPort | HasDstPort}, {s.HasICMP, HasICMP}, {c.HasBytes, HasBytes}, {c.HasPackets, HasPackets}, {v.HasBytes, HasRevBytes},
		{v.HasPackets, HasRevPackets}, {s.Proto == ProtoTCP && c.TCPFlags != 0, HasTCPFlags}, {s.Proto == ProtoTCP && v.TCPFlags != 0, HasRevTCPFlags}} {
		if f.has {
			r.Has |= f.what
		}
	}
	if s.HasPorts {
		r.SrcPort, r.DstPort = c.Port, v.Port
	}
	if s.HasICMP {
		r.ICMPType, r.ICMPCode = s.ICMPType, s.ICMPCode
	}
	if s.Open {
		r.Oriented = Open
		r.Quality |= QualityDirectionOpen
	} else {
		r.Quality &^= QualityDirectionOpen
	}
	if s.NAT == NATTranslated {
		r.NATSrc, r.NATDst, r.NATSrcPort, r.NATDstPort = s.NATClient, s.NATServer, s.NATClientPort, s.NATServerPort
		r.Has |= HasNATSrc | HasNATDst
		if s.HasPorts {
			r.Has |= HasNATSrcPort | HasNATDstPort
		}
	}
	return r
}
