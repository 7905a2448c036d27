package exporter_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"github.com/netsampler/goflow2/v2/decoders/netflow"
	"github.com/netsampler/goflow2/v2/decoders/netflowlegacy"
	"github.com/netsampler/goflow2/v2/decoders/sflow"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/exporter"
)

const now = flow.Time(1_750_000_000_123)

const basics = flow.HasStart | flow.HasEnd | flow.HasSrc | flow.HasDst | flow.HasProto | flow.HasBytes | flow.HasPackets | flow.HasInIf | flow.HasOutIf

// records makes n records of every shape.
func records(n int, names *flow.Names) []flow.Record {
	rng := rand.New(rand.NewPCG(1, 2))
	out := make([]flow.Record, n)
	for i := range out {
		r := &out[i]
		r.Has = basics
		r.Src, r.Dst = flow.AddrFrom4(rng.Uint32()|1), flow.AddrFrom4(rng.Uint32()|1)
		if rng.IntN(3) == 0 {
			r.Src, r.Dst = flow.Addr{Hi: 0x20010db8 << 32, Lo: rng.Uint64()}, flow.Addr{Hi: 0x20010db8 << 32, Lo: rng.Uint64()}
		}
		r.Start = now - flow.Time(rng.IntN(3_000_000))
		r.End = r.Start + flow.Time(rng.IntN(100_000))
		r.PacketsRaw = 1 + rng.Uint64N(10)
		r.BytesRaw = r.PacketsRaw * (100 + rng.Uint64N(1300))
		r.InIf, r.OutIf = uint32(1+rng.IntN(60)), uint32(1+rng.IntN(60))
		switch rng.IntN(4) {
		case 0:
			r.Proto = flow.ProtoICMP
			if !r.Src.Is4() {
				r.Proto = flow.ProtoICMPv6
			}
			r.ICMPType, r.ICMPCode = uint8(rng.IntN(200)), uint8(rng.IntN(10))
			r.Has |= flow.HasICMP
		case 1:
			r.Proto = flow.ProtoUDP
			r.SrcPort, r.DstPort = uint16(rng.Uint32()), uint16(rng.Uint32())
			r.Has |= flow.HasSrcPort | flow.HasDstPort
		default:
			r.Proto = flow.ProtoTCP
			r.SrcPort, r.DstPort, r.TCPFlags = uint16(rng.Uint32()), uint16(rng.Uint32()), uint16(rng.IntN(64))
			r.Has |= flow.HasSrcPort | flow.HasDstPort | flow.HasTCPFlags
		}
		if rng.IntN(2) == 0 {
			r.RevBytesRaw, r.RevPacketsRaw = rng.Uint64N(1e6), 1+rng.Uint64N(10)
			r.Has |= flow.HasRevBytes | flow.HasRevPackets
			if r.Proto == flow.ProtoTCP {
				r.RevTCPFlags = uint16(rng.IntN(64))
				r.Has |= flow.HasRevTCPFlags
			}
			r.BiflowDirection = 1
		}
		r.NATSrc, r.NATDst = r.Src, r.Dst
		if rng.IntN(2) == 0 {
			r.NATSrc.Lo ^= 0x11
			r.NATSrcPort = uint16(rng.Uint32())
			r.Has |= flow.HasNATSrc | flow.HasNATSrcPort
		} else {
			r.NATSrcPort = r.SrcPort
		}
		r.NATDstPort = r.DstPort
		r.ForwardingStatus, r.FirewallEvent, r.Direction = 64, uint8(rng.IntN(6)), uint8(rng.IntN(2))
		if names != nil && rng.IntN(2) == 0 {
			r.User = names.Intern([]string{"anna", "bernd.long.name", "x"}[rng.IntN(3)])
		}
	}
	return out
}

// told is what a test compares: the fields a protocol tells of a record.
type told struct {
	Start, End                        flow.Time
	Src, Dst                          flow.Addr
	SrcPort, DstPort                  uint16
	Proto                             uint8
	Flags, RevFlags                   uint16
	ICMP                              uint16
	Bytes, Packets, RevBytes, RevPkts uint64
	In, Out                           uint32
	NATSrc, NATDst                    flow.Addr
	NATSrcPort, NATDstPort            uint16
	Status, Event, Direction, Biflow  uint8
	User                              string
}

func tell(r *flow.Record, rich bool, user string) told {
	t := told{Start: r.Start, End: r.End, Src: r.Src, Dst: r.Dst, SrcPort: r.SrcPort, DstPort: r.DstPort, Proto: r.Proto,
		Flags: r.TCPFlags, RevFlags: r.RevTCPFlags, Bytes: r.BytesRaw, Packets: r.PacketsRaw, RevBytes: r.RevBytesRaw,
		RevPkts: r.RevPacketsRaw, In: r.InIf, Out: r.OutIf}
	if r.IsICMP() {
		t.ICMP = uint16(r.ICMPType)<<8 | uint16(r.ICMPCode)
	}
	if rich {
		t.NATSrc, t.NATDst, t.NATSrcPort, t.NATDstPort = r.NATSrc, r.NATDst, r.NATSrcPort, r.NATDstPort
		t.Status, t.Event, t.Direction, t.User = r.ForwardingStatus, r.FirewallEvent, r.Direction, user
	}
	return t
}

// expect is what a collector should understand of records, by each protocol's reach.
func expect(rs []flow.Record, cfg exporter.Config, names *flow.Names) (out []told) {
	for i := range rs {
		r := &rs[i]
		user := ""
		if names != nil {
			user = names.Text(r.User)
		}
		t := tell(r, cfg.Rich, user)
		if cfg.Biflow && cfg.Protocol == flow.SourceIPFIX {
			if r.Biflow() && cfg.BiflowDirection {
				t.Biflow = r.BiflowDirection
			}
			out = append(out, t)
			continue
		}
		back := t
		t.RevBytes, t.RevPkts, t.RevFlags = 0, 0, 0
		out = append(out, t)
		if r.Biflow() {
			back.Src, back.Dst, back.SrcPort, back.DstPort = t.Dst, t.Src, t.DstPort, t.SrcPort
			back.NATSrc, back.NATDst, back.NATSrcPort, back.NATDstPort = t.NATDst, t.NATSrc, t.NATDstPort, t.NATSrcPort
			back.In, back.Out, back.User = t.Out, t.In, ""
			back.Bytes, back.Packets, back.Flags = r.RevBytesRaw, r.RevPacketsRaw, r.RevTCPFlags
			back.RevBytes, back.RevPkts, back.RevFlags = 0, 0, 0
			out = append(out, back)
		}
	}
	return out
}

func export(t *testing.T, cfg exporter.Config, rs []flow.Record) (datagrams [][]byte, skipped int) {
	t.Helper()
	x, err := exporter.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	limit := cfg.MaxPayload
	if limit == 0 {
		limit = 1400
	}
	for len(rs) > 0 {
		n := min(len(rs), 97)
		k, err := x.Export(now, rs[:n], func(b []byte) error {
			if len(b) > limit {
				t.Fatalf("a datagram of %d bytes", len(b))
			}
			datagrams = append(datagrams, bytes.Clone(b))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		skipped += k
		rs = rs[n:]
	}
	return datagrams, skipped
}

func number(b []byte) (v uint64) {
	for _, c := range b {
		v = v<<8 | uint64(c)
	}
	return v
}

func address(b []byte) flow.Addr {
	ip, _ := netip.AddrFromSlice(b)
	return flow.AddrFromNetip(ip)
}

// understand reads a data record as goflow2 decoded it. boot is the exporter's start.
func understand(t *testing.T, values []netflow.DataField, boot int64) (out told) {
	t.Helper()
	for _, v := range values {
		b := v.Value.([]byte)
		n := number(b)
		if v.PenProvided {
			if v.Pen != 29305 {
				t.Fatalf("enterprise %d", v.Pen)
			}
			switch v.Type {
			case 1:
				out.RevBytes = n
			case 2:
				out.RevPkts = n
			case 6:
				out.RevFlags = uint16(n)
			default:
				t.Fatalf("reverse element %d", v.Type)
			}
			continue
		}
		switch v.Type {
		case 1:
			out.Bytes = n
		case 2:
			out.Packets = n
		case 4:
			out.Proto = uint8(n)
		case 6:
			out.Flags = uint16(n)
		case 7:
			out.SrcPort = uint16(n)
		case 8, 27:
			out.Src = address(b)
		case 10:
			out.In = uint32(n)
		case 11:
			out.DstPort = uint16(n)
		case 12, 28:
			out.Dst = address(b)
		case 14:
			out.Out = uint32(n)
		case 21:
			out.End = flow.Time(boot + int64(n))
		case 22:
			out.Start = flow.Time(boot + int64(n))
		case 32, 139:
			out.ICMP = uint16(n)
		case 61:
			out.Direction = uint8(n)
		case 89:
			out.Status = uint8(n)
		case 152:
			out.Start = flow.Time(n)
		case 153:
			out.End = flow.Time(n)
		case 225, 281:
			out.NATSrc = address(b)
		case 226, 282:
			out.NATDst = address(b)
		case 227:
			out.NATSrcPort = uint16(n)
		case 228:
			out.NATDstPort = uint16(n)
		case 233:
			out.Event = uint8(n)
		case 239:
			out.Biflow = uint8(n)
		case 371:
			out.User = string(bytes.TrimRight(b, "\x00"))
		default:
			t.Fatalf("element %d", v.Type)
		}
	}
	return out
}

// TestSetsByGoflow2 has goflow2 decode what we encode as v9 and IPFIX.
func TestSetsByGoflow2(t *testing.T) {
	for _, protocol := range []flow.Source{flow.SourceNetFlowV9, flow.SourceIPFIX} {
		for shape := range 8 {
			rich, biflow, payload := shape&1 != 0, shape&2 != 0, 1400
			if shape&4 != 0 {
				payload = 9000
			}
			t.Run(fmt.Sprintf("%v/rich=%v/biflow=%v/%d", protocol, rich, biflow, payload), func(t *testing.T) {
				names := flow.NewNames(0)
				cfg := exporter.Config{Protocol: protocol, Domain: 42, SamplingRate: 100, Rich: rich, Biflow: biflow,
					BiflowDirection: biflow, Names: names, MaxPayload: payload, TemplatePackets: 7}
				rs := records(1000, names)
				datagrams, _ := export(t, cfg, rs)
				system := netflow.CreateTemplateSystem()
				var got []told
				var sequence uint32
				templates, rates := 0, 0
				for i, b := range datagrams {
					var sets []any
					var boot int64
					buf := bytes.NewBuffer(b[2:])
					if protocol == flow.SourceIPFIX {
						var p netflow.IPFIXPacket
						if err := netflow.DecodeMessageIPFIX(buf, system, &p); err != nil {
							t.Fatalf("datagram %d: %v", i, err)
						}
						if p.SequenceNumber != sequence || p.ObservationDomainId != 42 || int(p.Length) != len(b) || flow.Time(p.ExportTime) != now/1000 {
							t.Fatalf("datagram %d of %d bytes: header %+v, sequence should be %d", i, len(b), p, sequence)
						}
						sets = p.FlowSets
					} else {
						var p netflow.NFv9Packet
						if err := netflow.DecodeMessageNetFlow(buf, system, &p); err != nil {
							t.Fatalf("datagram %d: %v", i, err)
						}
						if p.SequenceNumber != uint32(i) || p.SourceId != 42 || flow.Time(p.UnixSeconds) != now/1000 {
							t.Fatalf("datagram %d: header %+v", i, p)
						}
						boot = int64(p.UnixSeconds)*1000 - int64(p.SystemUptime)
						sets = p.FlowSets
						n := 0
						for _, s := range sets {
							switch s := s.(type) {
							case netflow.TemplateFlowSet:
								n += len(s.Records)
							case netflow.NFv9OptionsTemplateFlowSet:
								n += len(s.Records)
							case netflow.OptionsDataFlowSet:
								n += len(s.Records)
							case netflow.DataFlowSet:
								n += len(s.Records)
							}
						}
						if int(p.Count) != n {
							t.Fatalf("datagram %d counts %d records and holds %d", i, p.Count, n)
						}
					}
					for _, s := range sets {
						switch s := s.(type) {
						case netflow.TemplateFlowSet:
							templates++
						case netflow.DataFlowSet:
							sequence += uint32(len(s.Records))
							for _, r := range s.Records {
								got = append(got, understand(t, r.Values, boot))
							}
						case netflow.OptionsDataFlowSet:
							sequence += uint32(len(s.Records))
							for _, r := range s.Records {
								if rate := number(r.OptionsValues[0].Value.([]byte)); r.OptionsValues[0].Type != 34 || rate != 100 {
									t.Fatalf("options %+v", r)
								}
								rates++
							}
						case netflow.RawFlowSet:
							t.Fatalf("datagram %d: a set without template %d", i, s.Id)
						}
					}
				}
				if diff := cmp.Diff(expect(rs, cfg, names), got); diff != "" {
					t.Error(diff)
				}
				if want := (len(datagrams) + 6) / 7; templates != want || rates != want {
					t.Errorf("%d datagrams have templates %d times and sampling %d times, want %d", len(datagrams), templates, rates, want)
				}
			})
		}
	}
}

func TestV5ByGoflow2(t *testing.T) {
	cfg := exporter.Config{Protocol: flow.SourceNetFlowV5, Domain: 0x0102, SamplingRate: 64}
	rs := records(500, nil)
	datagrams, skipped := export(t, cfg, rs)
	var want []told
	for _, w := range expect(rs, cfg, nil) {
		if w.Src.Is4() {
			want = append(want, w)
		} else {
			skipped--
		}
	}
	if skipped != 0 {
		t.Errorf("%d more are said to be skipped than there are IPv6 records", skipped)
	}
	var got []told
	for i, b := range datagrams {
		var p netflowlegacy.PacketNetFlowV5
		if err := netflowlegacy.DecodeMessageVersion(bytes.NewBuffer(b), &p); err != nil {
			t.Fatalf("datagram %d: %v", i, err)
		}
		if p.FlowSequence != uint32(len(got)) || int(p.Count)*48+24 != len(b) || p.SamplingInterval != 1<<14|64 || p.EngineType != 1 || p.EngineId != 2 {
			t.Fatalf("datagram %d: header %+v, sequence should be %d", i, p, len(got))
		}
		boot := flow.Time(p.UnixSecs)*1000 + flow.Time(p.UnixNSecs/1e6) - flow.Time(p.SysUptime)
		for _, r := range p.Records {
			w := told{Start: boot + flow.Time(r.First), End: boot + flow.Time(r.Last), Src: flow.AddrFrom4(uint32(r.SrcAddr)),
				Dst: flow.AddrFrom4(uint32(r.DstAddr)), SrcPort: r.SrcPort, DstPort: r.DstPort, Proto: r.Proto, Flags: uint16(r.TCPFlags),
				Bytes: uint64(r.DOctets), Packets: uint64(r.DPkts), In: uint32(r.Input), Out: uint32(r.Output)}
			if r.Proto == flow.ProtoICMP {
				w.ICMP, w.DstPort = r.DstPort, 0
			}
			got = append(got, w)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestSFlowByGoflow2 decodes the datagrams with goflow2 and the sampled headers
// with gopacket.
func TestSFlowByGoflow2(t *testing.T) {
	cfg := exporter.Config{Protocol: flow.SourceSFlowV5, Domain: 3, SamplingRate: 512, Agent: flow.MustParseAddr("10.0.0.1")}
	rs := records(300, nil)
	datagrams, _ := export(t, cfg, rs)
	var got []told
	want := expect(rs, cfg, nil)
	var samples uint32
	for i, b := range datagrams {
		var p sflow.Packet
		if err := sflow.DecodeMessageVersion(bytes.NewBuffer(b), &p); err != nil {
			t.Fatalf("datagram %d: %v", i, err)
		}
		if p.SequenceNumber != uint32(i) || p.SubAgentId != 3 || address(p.AgentIP) != cfg.Agent || int(p.SamplesCount) != len(p.Samples) {
			t.Fatalf("datagram %d: header %+v", i, p)
		}
		for _, s := range p.Samples {
			s := s.(sflow.FlowSample)
			samples++
			if s.SamplingRate != 512 || s.Header.SampleSequenceNumber != samples || s.SamplePool != samples*512 {
				t.Fatalf("datagram %d: sample %+v, want number %d", i, s.Header, samples)
			}
			raw := s.Records[0].Data.(sflow.SampledHeader)
			if int(raw.OriginalLength) > len(raw.HeaderData) || raw.OriginalLength > 128 {
				t.Fatalf("a header of %d bytes says %d", len(raw.HeaderData), raw.OriginalLength)
			}
			frame := gopacket.NewPacket(raw.HeaderData[:raw.OriginalLength], layers.LayerTypeEthernet, gopacket.NoCopy)
			w := told{In: s.Input, Out: s.Output, Bytes: uint64(raw.FrameLength), Packets: 1}
			switch ip := frame.NetworkLayer().(type) {
			case *layers.IPv4:
				w.Src, w.Dst, w.Proto = address(ip.SrcIP), address(ip.DstIP), uint8(ip.Protocol)
			case *layers.IPv6:
				w.Src, w.Dst, w.Proto = address(ip.SrcIP), address(ip.DstIP), uint8(ip.NextHeader)
			}
			if l, ok := frame.Layer(layers.LayerTypeTCP).(*layers.TCP); ok {
				w.SrcPort, w.DstPort, w.Flags = uint16(l.SrcPort), uint16(l.DstPort), uint16(l.Contents[13])
			} else if l, ok := frame.Layer(layers.LayerTypeUDP).(*layers.UDP); ok {
				w.SrcPort, w.DstPort = uint16(l.SrcPort), uint16(l.DstPort)
			} else if l, ok := frame.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok {
				w.ICMP = uint16(l.TypeCode)
			} else if l, ok := frame.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); ok {
				w.ICMP = uint16(l.TypeCode)
			}
			// Samples of one record stand behind each other.
			if k := len(got) - 1; k >= 0 && got[k].Packets < min(want[k].Packets, 16) {
				got[k].Bytes += w.Bytes
				got[k].Packets++
			} else {
				got = append(got, w)
			}
		}
	}
	for i := range want {
		w := &want[i]
		w.Start, w.End = 0, 0
		floor := headerLen(*w) * w.Packets
		if w.Bytes < floor || w.Bytes/w.Packets > 65000 {
			w.Bytes = 0 // a frame has its headers at least; such a record is told with more bytes
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%d records came, want %d", len(got), len(want))
	}
	for i := range got {
		if want[i].Bytes == 0 {
			got[i].Bytes = 0
		}
		if w, g := want[i], got[i]; w != g {
			t.Fatalf("record %d: %s", i, cmp.Diff(w, g))
		}
	}
}

func headerLen(w told) uint64 {
	n := uint64(14 + 20)
	if !w.Src.Is4() {
		n += 20
	}
	switch w.Proto {
	case flow.ProtoTCP:
		return n + 20
	default:
		return n + 8
	}
}

func TestHeldTemplates(t *testing.T) {
	cfg := exporter.Config{Protocol: flow.SourceIPFIX, HoldTemplates: 2}
	datagrams, _ := export(t, cfg, records(300, nil))
	for i, b := range datagrams[:3] {
		first := binary.BigEndian.Uint16(b[16:])
		if (first == 2) != (i == 2) {
			t.Errorf("datagram %d begins with set %d", i, first)
		}
	}
}

func TestTemplatesAgainAfterTime(t *testing.T) {
	x, err := exporter.New(exporter.Config{Protocol: flow.SourceNetFlowV9, TemplatePackets: 1000, TemplateInterval: 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	var sizes []int
	for _, at := range []flow.Time{0, 29_000, 30_000, 31_000} {
		if _, err := x.Export(now+at, records(1, nil), func(b []byte) error { sizes = append(sizes, len(b)); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if sizes[0] <= sizes[1] || sizes[2] != sizes[0] || sizes[3] != sizes[1] {
		t.Errorf("sizes %v: templates are due at 0 and 30 s", sizes)
	}
}

func TestDeterministic(t *testing.T) {
	for p := flow.SourceNetFlowV5; p <= flow.SourceSFlowV5; p++ {
		cfg := exporter.Config{Protocol: p, Agent: flow.MustParseAddr("10.0.0.1"), SamplingRate: 10, Rich: true}
		a, _ := export(t, cfg, records(200, nil))
		b, _ := export(t, cfg, records(200, nil))
		if !cmp.Equal(a, b) {
			t.Errorf("%v: the same records give other bytes", p)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for _, cfg := range []exporter.Config{
		{},
		{Protocol: flow.SourceIPFIX, MaxPayload: 100},
		{Protocol: flow.SourceNetFlowV5, SamplingRate: 1 << 14},
		{Protocol: flow.SourceSFlowV5},
	} {
		if _, err := exporter.New(cfg); err == nil {
			t.Errorf("%+v passes", cfg)
		}
	}
}

func TestSender(t *testing.T) {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := exporter.NewSender(exporter.SenderConfig{Source: netip.MustParseAddr("127.0.0.9"), Rate: 200,
		Target: c.LocalAddr().(*net.UDPAddr).AddrPort()})
	if err != nil {
		t.Skipf("this system has no 127.0.0.9: %v", err)
	}
	defer s.Close()
	start := time.Now()
	for i := range 40 {
		if err := s.Send(t.Context(), []byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(start); took < 150*time.Millisecond {
		t.Errorf("40 datagrams at 200 a second took %v", took)
	}
	buf := make([]byte, 10)
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, from, err := c.ReadFromUDPAddrPort(buf)
	if err != nil || n != 1 || buf[0] != 0 || from.Addr().Unmap() != netip.MustParseAddr("127.0.0.9") || s.Sent() != 40 {
		t.Errorf("%d bytes from %v, %v; %d sent", n, from, err, s.Sent())
	}
}

func TestWritePcap(t *testing.T) {
	packets := []exporter.Packet{
		{At: now, Src: netip.MustParseAddrPort("10.0.0.1:4000"), Dst: netip.MustParseAddrPort("10.0.0.2:2055"), Payload: []byte("one")},
		{At: now + 1, Src: netip.MustParseAddrPort("[2001:db8::1]:4000"), Dst: netip.MustParseAddrPort("[2001:db8::2]:4739"), Payload: make([]byte, 1400)},
	}
	var buf bytes.Buffer
	if err := exporter.WritePcap(&buf, packets); err != nil {
		t.Fatal(err)
	}
	in, err := pcapgo.NewReader(&buf)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range packets {
		data, info, err := in.ReadPacketData()
		if err != nil {
			t.Fatal(err)
		}
		p := gopacket.NewPacket(data, layers.LayerTypeEthernet, gopacket.Default)
		udp, ok := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
		if !ok {
			t.Fatalf("packet %d is no UDP: %v", i, p)
		}
		if flow.TimeOf(info.Timestamp) != want.At || uint16(udp.SrcPort) != want.Src.Port() || uint16(udp.DstPort) != want.Dst.Port() || !bytes.Equal(udp.Payload, want.Payload) {
			t.Errorf("packet %d: %v", i, p)
		}
	}
	if err := exporter.WritePcap(&buf, []exporter.Packet{{Src: packets[0].Src, Dst: packets[1].Dst}}); err == nil {
		t.Error("a packet from IPv4 to IPv6 passes")
	}
}

func BenchmarkExport(b *testing.B) {
	for _, p := range []flow.Source{flow.SourceNetFlowV5, flow.SourceNetFlowV9, flow.SourceIPFIX, flow.SourceSFlowV5} {
		b.Run(p.String(), func(b *testing.B) {
			x, err := exporter.New(exporter.Config{Protocol: p, Agent: flow.MustParseAddr("10.0.0.1")})
			if err != nil {
				b.Fatal(err)
			}
			rs := records(1000, nil)
			b.ReportAllocs()
			for i := 0; i < b.N; i += len(rs) {
				if _, err := x.Export(now, rs, func([]byte) error { return nil }); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
