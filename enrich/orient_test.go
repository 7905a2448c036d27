package enrich

import (
	"testing"

	"github.com/postern/postern/flow"
)

// rec makes a record of a TCP, UDP or SCTP conversation told in one direction.
func rec(proto uint8, src string, sport uint16, dst string, dport uint16) flow.Record {
	return flow.Record{Has: flow.HasSrc | flow.HasDst | flow.HasSrcPort | flow.HasDstPort | flow.HasProto,
		Proto: proto, Src: flow.MustParseAddr(src), SrcPort: sport, Dst: flow.MustParseAddr(dst), DstPort: dport}
}

func with(r flow.Record, f func(r *flow.Record)) flow.Record { f(&r); return r }

func flags(f uint16, packets uint64) func(*flow.Record) {
	return func(r *flow.Record) {
		r.TCPFlags, r.PacketsRaw = f, packets
		r.Has |= flow.HasTCPFlags | flow.HasPackets
	}
}

func icmp(proto, typ uint8) func(*flow.Record) {
	return func(r *flow.Record) {
		r.Proto, r.ICMPType = proto, typ
		r.Has = flow.HasSrc | flow.HasDst | flow.HasProto | flow.HasICMP
	}
}

const all = flow.SYN | flow.ACK | flow.PSH | flow.FIN

func TestOrient(t *testing.T) {
	var declared Ports
	declared.Add(flow.ProtoTCP, 50100, 50100)
	declared.Add(flow.ProtoTCP, 49152, 65535) // too wide to say anything
	dynamic := rec(flow.ProtoTCP, "10.0.0.9", 51712, "10.0.0.5", 65077)
	ping := rec(flow.ProtoICMP, "10.0.0.9", 0, "10.0.0.5", 0)
	for _, c := range []struct {
		name string
		r    flow.Record
		want flow.Orientation
		sure uint8
	}{
		{"initiator octets", with(dynamic, func(r *flow.Record) { r.Has |= flow.HasInitiator }), flow.Forward, 100},
		{"initiator octets beat ports", with(rec(flow.ProtoTCP, "10.0.0.9", 443, "10.0.0.5", 51000), func(r *flow.Record) { r.Has |= flow.HasInitiator }), flow.Forward, 100},
		{"biflow initiator", with(dynamic, func(r *flow.Record) { r.Has |= flow.HasBiflowDirection; r.BiflowDirection = 1 }), flow.Forward, 95},
		{"biflow reverse initiator", with(dynamic, func(r *flow.Record) { r.Has |= flow.HasBiflowDirection; r.BiflowDirection = 2 }), flow.Reverse, 95},
		{"biflow perimeter says nothing", with(dynamic, func(r *flow.Record) { r.Has |= flow.HasBiflowDirection; r.BiflowDirection = 3 }), flow.Open, 0},
		{"multicast", rec(flow.ProtoUDP, "10.0.0.9", 5353, "224.0.0.251", 5353), flow.Forward, 100},
		{"v6 multicast", rec(flow.ProtoUDP, "fe80::1", 5353, "ff02::fb", 5353), flow.Forward, 100},
		{"lone syn", with(dynamic, flags(flow.SYN, 1)), flow.Forward, 98},
		{"retransmitted syn and reset", with(dynamic, flags(flow.SYN|flow.RST, 4)), flow.Forward, 98},
		{"single syn+ack", with(dynamic, flags(flow.SYN|flow.ACK, 1)), flow.Reverse, 98},
		{"two packets syn+ack may be the client's", with(dynamic, flags(flow.SYN|flow.ACK, 2)), flow.Open, 0},
		{"all flags say nothing", with(dynamic, flags(all, 9)), flow.Open, 0},
		{"reset and ack", with(dynamic, flags(flow.RST|flow.ACK, 1)), flow.Open, 0},
		{"flags beat ports", with(rec(flow.ProtoTCP, "10.0.0.9", 443, "10.0.0.5", 51000), flags(flow.SYN, 1)), flow.Forward, 98},
		{"biflow syn in the reverse direction", with(with(dynamic, flags(flow.RST|flow.ACK, 1)), func(r *flow.Record) {
			r.Has |= flow.HasRevTCPFlags
			r.RevTCPFlags = flow.SYN
		}), flow.Reverse, 98},
		{"biflow syn in both", with(with(dynamic, flags(all, 9)), func(r *flow.Record) { r.Has |= flow.HasRevTCPFlags; r.RevTCPFlags = all }), flow.Open, 0},
		{"biflow with one set of flags", with(with(dynamic, flags(flow.SYN, 1)), func(r *flow.Record) { r.Has |= flow.HasRevPackets }), flow.Open, 0},
		{"service against ephemeral", rec(flow.ProtoTCP, "10.0.0.9", 51712, "10.0.0.5", 445), flow.Forward, 90},
		{"the reply", rec(flow.ProtoTCP, "10.0.0.5", 445, "10.0.0.9", 51712), flow.Reverse, 90},
		{"softflowd names the lower address first", with(rec(flow.ProtoTCP, "10.0.0.5", 88, "10.0.0.9", 51738), func(r *flow.Record) { r.Has |= flow.HasRevBytes | flow.HasRevPackets }), flow.Reverse, 90},
		{"service against unregistered", rec(flow.ProtoTCP, "10.0.0.9", 1893, "10.0.0.5", 445), flow.Forward, 80},
		{"well known above 1023", rec(flow.ProtoTCP, "10.0.0.9", 51712, "10.0.0.5", 3389), flow.Forward, 90},
		{"declared", rec(flow.ProtoTCP, "10.0.0.9", 51712, "10.0.0.5", 50100), flow.Forward, 90},
		{"declared for tcp only", rec(flow.ProtoUDP, "10.0.0.9", 51712, "10.0.0.5", 50100), flow.Open, 0},
		{"two services", rec(flow.ProtoUDP, "10.0.0.9", 123, "10.0.0.5", 123), flow.Open, 0},
		{"two dynamic ports", dynamic, flow.Open, 0},
		{"port zero is no service", rec(flow.ProtoUDP, "10.0.0.9", 0, "10.0.0.5", 51000), flow.Open, 0},
		{"no ports (a fragment)", with(dynamic, func(r *flow.Record) { r.Has &^= flow.HasSrcPort | flow.HasDstPort }), flow.Open, 0},
		{"no address", with(rec(flow.ProtoTCP, "10.0.0.9", 51712, "10.0.0.5", 445), func(r *flow.Record) { r.Has &^= flow.HasDst }), flow.Open, 0},
		{"no protocol", with(rec(flow.ProtoTCP, "10.0.0.9", 51712, "10.0.0.5", 445), func(r *flow.Record) { r.Has &^= flow.HasProto }), flow.Open, 0},
		{"gre", rec(47, "10.0.0.9", 51712, "10.0.0.5", 445), flow.Open, 0},
		{"echo", with(ping, icmp(flow.ProtoICMP, 8)), flow.Forward, 100},
		{"echo reply", with(ping, icmp(flow.ProtoICMP, 0)), flow.Reverse, 100},
		{"timestamp reply", with(ping, icmp(flow.ProtoICMP, 14)), flow.Reverse, 100},
		{"v6 echo", with(ping, icmp(flow.ProtoICMPv6, 128)), flow.Forward, 100},
		{"v6 echo reply", with(ping, icmp(flow.ProtoICMPv6, 129)), flow.Reverse, 100},
		{"icmp error", with(ping, icmp(flow.ProtoICMP, 3)), flow.Open, 0},
		{"icmp biflow", with(with(ping, icmp(flow.ProtoICMP, 8)), func(r *flow.Record) { r.Has |= flow.HasRevPackets }), flow.Open, 0},
		{"icmp without type", with(with(ping, icmp(flow.ProtoICMP, 8)), func(r *flow.Record) { r.Has &^= flow.HasICMP }), flow.Open, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := c.r
			Orient(&r, &declared)
			if r.Oriented != c.want || r.OrientationCertainty != c.sure {
				t.Errorf("oriented %d at %d %%, want %d at %d %%", r.Oriented, r.OrientationCertainty, c.want, c.sure)
			}
		})
	}
}

// TestOrientMirrored: a half and its mirror image name the same client, whatever
// the ports (THREATS 15).
func TestOrientMirrored(t *testing.T) {
	ports := []uint16{0, 1, 53, 443, 445, 1023, 1024, 3389, 8080, 20000, 32767, 32768, 50100, 65535}
	for _, a := range ports {
		for _, b := range ports {
			r := rec(flow.ProtoTCP, "10.0.0.9", a, "10.0.0.5", b)
			m := rec(flow.ProtoTCP, "10.0.0.5", b, "10.0.0.9", a)
			Orient(&r, nil)
			Orient(&m, nil)
			c1, s1 := r.Ends()
			c2, s2 := m.Ends()
			if c1 != c2 || s1 != s2 || r.OrientationCertainty != m.OrientationCertainty {
				t.Errorf("ports %d and %d: %v→%v one way, %v→%v the other", a, b, c1, s1, c2, s2)
			}
		}
	}
}

func BenchmarkOrient(b *testing.B) {
	recs := []flow.Record{
		rec(flow.ProtoTCP, "10.0.0.9", 51712, "10.0.0.5", 445),
		rec(flow.ProtoTCP, "10.0.0.5", 443, "10.0.0.9", 40000),
		rec(flow.ProtoUDP, "10.0.0.9", 53535, "10.0.0.5", 53),
		rec(flow.ProtoTCP, "10.0.0.9", 51712, "10.0.0.5", 65077),
	}
	var declared Ports
	declared.Add(flow.ProtoTCP, 50100, 50100)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		Orient(&recs[i&3], &declared)
	}
}
