package flow

import (
	"reflect"
	"testing"
)

func conversationRecord(src string, sp uint16, dst string, dp uint16, proto uint8) Record {
	return Record{Has: HasSrc | HasDst | HasSrcPort | HasDstPort | HasProto, Src: MustParseAddr(src), Dst: MustParseAddr(dst), SrcPort: sp, DstPort: dp, Proto: proto}
}

// TestConversation: both directions, every spelling of an address and both halves of an echo
// are one conversation; and its id never changes, since stored rows hang on it.
func TestConversation(t *testing.T) {
	one := conversationRecord("10.0.0.2", 445, "10.0.0.9", 50000, ProtoTCP)
	if id := one.Conversation(); id != 0x617fc29c4f0549f4 {
		t.Errorf("the id of a conversation is %#x; what is stored says otherwise", id)
	}
	if id := SessionID(one.Conversation(), 1_600_000_000_000); id != 0x1e9fe4adfb2410af {
		t.Errorf("the id of a session is %#x; what is stored says otherwise", id)
	}
	echo, reply := conversationRecord("10.0.0.9", 1, "10.0.0.2", 2, ProtoICMP), conversationRecord("10.0.0.2", 0, "10.0.0.9", 0, ProtoICMP)
	echo.Has, reply.Has = echo.Has|HasICMP, reply.Has|HasICMP
	echo.ICMPType = 8
	for _, c := range []struct {
		name string
		a, b Record
		same bool
	}{
		{"the other direction", one, conversationRecord("10.0.0.9", 50000, "10.0.0.2", 445, ProtoTCP), true},
		{"IPv4-mapped", one, conversationRecord("::ffff:10.0.0.9", 50000, "10.0.0.2", 445, ProtoTCP), true},
		{"NAT64", one, conversationRecord("64:ff9b::10.0.0.9", 50000, "10.0.0.2", 445, ProtoTCP), true},
		{"ports swapped", one, conversationRecord("10.0.0.9", 445, "10.0.0.2", 50000, ProtoTCP), false},
		{"another protocol", one, conversationRecord("10.0.0.9", 50000, "10.0.0.2", 445, ProtoUDP), false},
		{"an echo and its reply", echo, reply, true},
	} {
		if same := c.a.Conversation() == c.b.Conversation(); same != c.same {
			t.Errorf("%s: the same %v, want %v", c.name, same, c.same)
		}
	}
	one.Has &^= HasProto
	if one.Conversation() != 0 {
		t.Error("a record without a protocol is of a conversation")
	}
}

func TestTranslatedOf(t *testing.T) {
	r := conversationRecord("10.0.0.9", 50000, "198.51.100.7", 443, ProtoTCP)
	if _, _, ok, partly := TranslatedOf(&r); ok || partly {
		t.Error("translated without NAT fields")
	}
	r.Has |= HasNATSrc | HasNATDst | HasNATSrcPort | HasNATDstPort
	r.NATSrc, r.NATDst, r.NATSrcPort, r.NATDstPort = r.Src, r.Dst, r.SrcPort, r.DstPort
	if _, _, ok, partly := TranslatedOf(&r); ok || partly {
		t.Error("translated into itself")
	}
	r.NATSrc, r.NATSrcPort = MustParseAddr("203.0.113.9"), 61000
	behind := conversationRecord("203.0.113.9", 61000, "198.51.100.7", 443, ProtoTCP)
	c, low, ok, partly := TranslatedOf(&r)
	want, wantLow, _ := ConversationOf(&behind)
	if c != want || low != wantLow || !ok || partly {
		t.Errorf("got %+v, %v, %v, %v", c, low, ok, partly)
	}
	r.Has &^= HasNATSrcPort
	if _, _, ok, partly := TranslatedOf(&r); ok || !partly {
		t.Error("translated to a port that nobody told")
	}
}

// TestSessionShape holds what the type promises: a fixed size and no pointers.
func TestSessionShape(t *testing.T) {
	holdsNoPointer(t, "Session", reflect.TypeFor[Session]())
	holdsNoPointer(t, "EdgeContribution", reflect.TypeFor[EdgeContribution]())
}

func BenchmarkConversation(b *testing.B) {
	r := conversationRecord("10.0.0.2", 445, "10.0.0.9", 50000, ProtoTCP)
	n := uint64(0)
	for b.Loop() {
		r.SrcPort++
		n ^= r.Conversation()
	}
	_ = n
}

func TestSessionRecord(t *testing.T) {
	s := Session{ID: 7, Start: 1000, End: 2000, Proto: ProtoTCP, HasPorts: true, BothWays: true, Verdict: Verdict{Reason: ReasonDenied, Observed: ObservedDeny},
		Client: SessionEnd{Addr: MustParseAddr("10.0.0.9"), Port: 50000, Bytes: 10, HasBytes: true}, Server: SessionEnd{Addr: MustParseAddr("10.0.0.2"), Port: 445, TCPFlags: SYN | ACK}}
	s.Conversation = func() uint64 {
		r := conversationRecord("10.0.0.9", 50000, "10.0.0.2", 445, ProtoTCP)
		return r.Conversation()
	}()
	r := s.Record()
	client, server := r.Ends()
	if client != s.Client.Addr || server != s.Server.Addr || r.Service() != "tcp/445" || r.Conversation() != s.Conversation || r.Bytes() != 10 ||
		!r.All(HasBytes|HasRevTCPFlags) || r.Any(HasRevBytes|HasTCPFlags|HasICMP|HasNATSrc) || r.Enforced != ObservedDeny || !r.OtherHalf || r.ID != 7 {
		t.Errorf("%+v", r)
	}
	s.Open = true
	if r := s.Record(); r.Oriented != Open || r.Quality&QualityDirectionOpen == 0 || string(s.AppendService(nil)) != r.Service() {
		t.Errorf("open: %+v", r)
	}
	if n := reflect.TypeFor[Session]().NumField(); n != 31 {
		t.Errorf("a session has %d fields instead of 31; see what of it its record tells", n)
	}
}
