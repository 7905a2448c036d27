package detect

import (
	"testing"

	"github.com/postern/postern/flow"
)

// TestMappedPortIsNotOpen: on dynamic ports at both ends whoever asked the endpoint mapper just
// before is the client, be its address the lower or the higher one.
func TestMappedPortIsNotOpen(t *testing.T) {
	for _, c := range []struct{ client, server string }{{"10.0.0.1", "10.0.0.2"}, {"10.0.0.2", "10.0.0.1"}} {
		contacts := newTestContacts(t)
		client, server := flow.MustParseAddr(c.client), flow.MustParseAddr(c.server)
		end := func(a flow.Addr, port uint16) flow.SessionEnd {
			return flow.SessionEnd{Addr: a, Port: port, TCPFlags: flow.SYN | flow.ACK | flow.PSH, Packets: 9, HasPackets: true}
		}
		session := func(id uint64, at flow.Time, clientPort, serverPort uint16, open bool) flow.Session {
			s := flow.Session{ID: id, Conversation: id, Start: at, End: at + 20, Began: at, Settled: at + 30_000, Answered: at + 1, Proto: flow.ProtoTCP, HasPorts: true,
				BothWays: true, Client: end(client, clientPort), Server: end(server, serverPort), OrientationCertainty: 90}
			if open {
				s.Open, s.OrientationCertainty = true, 0
				if client.Compare(server) > 0 {
					s.Client, s.Server = s.Server, s.Client
				}
			}
			return s
		}
		takeIn(contacts, []flow.Session{session(1, 1_000_000, 56607, 135, false), session(2, 1_000_009, 56608, 49726, true)}, nil)
		d := contacts.Collect(maxTime)
		if len(d.Contacts) != 2 {
			t.Fatalf("%s to %s: %d contacts", c.client, c.server, len(d.Contacts))
		}
		for i := range d.Contacts {
			if x := &d.Contacts[i]; x.Open || x.Client.Addr != client || x.Server.Addr != server || x.Class != classRPC || x.Mapped != (i == 1) {
				t.Errorf("%s to %s: contact %d is of %s and %s, open %v, mapped %v, %s", c.client, c.server, i, x.Client.Addr, x.Server.Addr, x.Open, x.Mapped, x.Class)
			}
		}
	}
}

// TestMappedAtOnce: a log stamped in whole seconds has the endpoint mapper and what it handed out
// begin at the same time. Which of the two comes first does not matter.
func TestMappedAtOnce(t *testing.T) {
	const at = flow.Time(1_000_000)
	session := func(id uint64, start flow.Time, port uint16) flow.Session {
		return flow.Session{ID: id, Conversation: id, Start: start, End: start + 20, Began: start, Settled: start + 20_001, Answered: start + 1, Proto: flow.ProtoTCP, HasPorts: true,
			BothWays: true, OrientationCertainty: 90,
			Client: flow.SessionEnd{Addr: flow.MustParseAddr("10.0.0.1"), Port: uint16(50_000 + id), TCPFlags: flow.SYN | flow.ACK | flow.PSH},
			Server: flow.SessionEnd{Addr: flow.MustParseAddr("10.0.0.2"), Port: port, TCPFlags: flow.SYN | flow.ACK | flow.PSH}}
	}
	again := session(9, at-5000, 443) // a later version between them
	again.Settled = 0
	port, mapper := session(5, at, 49_726), session(6, at, 135)
	for name, rows := range map[string][]flow.Session{
		"mapper last":  {port, again, mapper},
		"mapper first": {mapper, again, port},
	} {
		contacts := newTestContacts(t)
		takeIn(contacts, rows, nil)
		d := contacts.Collect(maxTime)
		if len(d.Contacts) != 2 {
			t.Fatalf("%s: %d contacts", name, len(d.Contacts))
		}
		for i := range d.Contacts {
			if x := &d.Contacts[i]; x.Mapped != (x.Server.Port == 49_726) {
				t.Errorf("%s: port %d is mapped: %v", name, x.Server.Port, x.Mapped)
			}
		}
	}
}
