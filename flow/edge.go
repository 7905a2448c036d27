package flow

// Hour is a span of [Time]: what roll-ups count by.
const Hour = Time(60 * 60 * 1000)

// EdgeKey is what the hourly roll-up of sessions tells apart: who talks to whom by which
// service, where the two are and who was behind them, and what policy and enforcement say of
// it. It is comparable and may be a map key.
type EdgeKey struct {
	// Client and Server are the ends, canonical; while Open the lower and the higher one.
	Client, Server                 Addr
	ServerPort                     uint16 // 0 while Open, and of protocols without ports
	Proto                          uint8
	ICMPType, ICMPCode             uint8 // of the request
	HasPorts, HasICMP, Open        bool
	ClientSegment, ServerSegment   Name
	ClientWorkload, ServerWorkload Name
	ClientIdentity, ServerIdentity Name // NoName is not known
	Rule, Exception                Name
	Expected, Staged               Expected
	Reason                         Reason
	Observed                       Observed
	Outcome                        Outcome
}

// EdgeContribution is what a session adds to its edge in the hour that it began in, or takes
// back where more is known of it now. The sums over all contributions are those over the last
// version of every session that stands by itself; a sum is a difference until all of them are
// there. It is a value of fixed size without pointers.
type EdgeContribution struct {
	Hour Time // a multiple of [Hour]
	EdgeKey
	// Sessions counts the session itself, Answered it where there was traffic both ways, Live
	// it while it is not over: 1, 0 or -1.
	Sessions, Answered, Live int8
	// What each end sent, as a session has it; differences may be below zero.
	ClientBytes, ClientPackets, ServerBytes, ServerPackets int64
	// First and Last are when the session began and ended as far as it is known; zero where
	// nothing is told of that. Over says that they are so for good.
	First, Last Time
	Over        bool
	// Session, of a session that is over, is its id; Ended is what the watermark had passed when its
	// idle time had; Sent is what its client and its server sent in all. Contributions of what is
	// over come in the order of Ended.
	Session uint64
	Ended   Time
	Sent    [2]uint64
}
