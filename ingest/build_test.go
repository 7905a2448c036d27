package ingest

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"github.com/postern/postern/flow"
)

// Datagrams for tests are built here, byte by byte and independently of the code
// that reads them.

func u16(v int) []byte    { return binary.BigEndian.AppendUint16(nil, uint16(v)) }
func u32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func u64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

func cat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// set frames a set; template makes a template record of (element, length) pairs.
func set(id int, body ...[]byte) []byte {
	b := cat(body...)
	return cat(u16(id), u16(4+len(b)), b)
}

func specs(pairs ...int) (b []byte) {
	for _, p := range pairs {
		b = append(b, u16(p)...)
	}
	return b
}

func tmpl(id int, pairs ...int) []byte {
	return cat(u16(id), u16(len(pairs)/2), specs(pairs...))
}

const t0 = 1_700_000_000 // the clock of the exporters in tests, seconds

func v9(seq, domain uint32, sets ...[]byte) []byte {
	return cat(u16(9), u16(len(sets)), u32(10_000_000), u32(t0), u32(seq), u32(domain), cat(sets...))
}

func ipfixMsg(seq, domain uint32, sets ...[]byte) []byte {
	b := cat(sets...)
	return cat(u16(10), u16(16+len(b)), u32(t0), u32(seq), u32(domain), b)
}

// The usual template: addresses, ports, protocol, flags, counters, interfaces,
// times; 45 bytes.
var usual = []int{8, 4, 12, 4, 7, 2, 11, 2, 4, 1, 6, 1, 1, 4, 2, 4, 10, 4, 14, 4, 22, 4, 21, 4, 61, 1, 89, 1, 48, 2, 5, 1}

func usualRecord(i int) []byte {
	return cat(u32(0x0a000001+uint32(i)), u32(0xc0a80001), u16(40000+i), u16(443), []byte{6, 0x1b}, u32(uint32(1000+i)), u32(uint32(10+i)),
		u32(3), u32(7), u32(uint32(9_990_000-i)), u32(9_999_000), []byte{0, 0x40}, u16(0), []byte{0})
}

func usualRecords(n int) (b []byte) {
	for i := range n {
		b = append(b, usualRecord(i)...)
	}
	return b
}

// varied is an IPFIX template with IPv6, reduced sizes, a reverse element and a
// user name of variable length.
func variedTemplate(id int) []byte {
	return cat(u16(id), u16(9), specs(27, 16, 28, 16, 7, 2, 11, 2, 4, 1, 1, 5), specs(0x8000|1, 3), u32(29305), specs(371, 0xffff), specs(152, 8))
}

func variedRecord(user string) []byte {
	a := cat(u64(0x20010db800000000), u64(1))
	b := cat(u64(0x20010db800000000), u64(2))
	return cat(a, b, u16(50000), u16(3389), []byte{6}, []byte{0, 0, 0, 1, 0}, []byte{0, 0, 77}, []byte{byte(len(user))}, []byte(user), u64(t0*1000-5000))
}

func v5(count, n int) []byte {
	b := cat(u16(5), u16(count), u32(10_000_000), u32(t0), u32(500_000_000), u32(77), []byte{1, 2}, u16(0x4000|100))
	for i := range n {
		b = append(b, cat(u32(0x0a000001), u32(0x0a000002+uint32(i)), u32(0), u16(1), u16(2), u32(5), u32(500), u32(9_999_000), u32(9_999_500),
			u16(1024), u16(0x0800), []byte{0, 0x12, 1, 0}, u16(0), u16(0), []byte{24, 24}, u16(0))...)
	}
	return b
}

func ethernetFrame(etherType int, vlans []int, payload []byte) []byte {
	b := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}
	for _, v := range vlans {
		b = append(b, cat(u16(0x8100), u16(v))...)
	}
	return cat(b, u16(etherType), payload)
}

func ip4Packet(proto byte, fragment int, payload []byte) []byte {
	return cat([]byte{0x45, 0}, u16(20+len(payload)), u16(7), u16(fragment), []byte{64, proto}, u16(0), u32(0x0a000001), u32(0x0a000002), payload)
}

func ip6Packet(next byte, payload []byte) []byte {
	return cat([]byte{0x60, 0, 0, 0}, u16(len(payload)), []byte{next, 64}, u64(0x20010db800000000), u64(1), u64(0x20010db800000000), u64(2), payload)
}

func tcpHeader(flags byte) []byte {
	return cat(u16(40000), u16(443), u32(1), u32(2), []byte{0x50, flags}, u16(100), u16(0), u16(0))
}

func sflowSample(format uint32, header []byte, frame int) []byte {
	pad := make([]byte, (4-len(header)%4)%4)
	raw := cat(u32(1), u32(uint32(frame)), u32(4), u32(uint32(len(header))), header, pad)
	records := cat(u32(1), u32(uint32(len(raw))), raw)
	var b []byte
	if format == 1 {
		b = cat(u32(1), u32(3), u32(512), u32(1000), u32(0), u32(3), u32(7), u32(1), records)
	} else {
		b = cat(u32(1), u32(0), u32(3), u32(512), u32(1000), u32(0), u32(0), u32(3), u32(0), u32(7), u32(1), records)
	}
	return cat(u32(format), u32(uint32(len(b))), b)
}

func sflowDatagram(seq uint32, samples ...[]byte) []byte {
	return cat(u32(5), u32(1), u32(0x0a0000fe), u32(9), u32(seq), u32(1000), u32(uint32(len(samples))), cat(samples...))
}

// generated is a datagram of every kind.
func generated() [][]byte {
	tcp := ethernetFrame(0x0800, []int{10, 20}, ip4Packet(6, 0, tcpHeader(0x12)))
	return [][]byte{
		v5(3, 3),
		v9(1, 5, set(0, tmpl(256, usual...)), set(256, usualRecords(3))),
		v9(2, 5, set(256, usualRecords(4))),
		v9(3, 5, set(1, cat(u16(257), u16(4), u16(8), specs(1, 4, 48, 4, 34, 4))), set(257, u32(1), u32(1), u32(100))),
		ipfixMsg(0, 6, set(2, variedTemplate(300)), set(300, variedRecord("alice"), variedRecord("bob"))),
		cat(ipfixMsg(2, 6, set(300, variedRecord("carol"))), ipfixMsg(3, 6, set(2, variedTemplate(301)), set(301, variedRecord("d")))),
		ipfixMsg(4, 6, set(3, cat(u16(400), u16(3), u16(1), specs(302, 8, 309, 4, 310, 4))), set(400, u64(5), u32(1), u32(256))),
		sflowDatagram(1, sflowSample(1, tcp, 1000), sflowSample(3, tcp, 900), cat(u32(2), u32(4), u32(0))),
	}
}

// capture is a capture file of the generated datagrams, a TCP packet, a fragmented
// datagram and one behind VLAN tags.
func capture(t testing.TB, format string) []byte {
	var buf bytes.Buffer
	var write func(gopacket.CaptureInfo, []byte) error
	switch format {
	case "pcap":
		w := pcapgo.NewWriter(&buf)
		if err := w.WriteFileHeader(65535, layers.LinkTypeEthernet); err != nil {
			t.Fatal(err)
		}
		write = w.WritePacket
	case "pcapng":
		w, err := pcapgo.NewNgWriter(&buf, layers.LinkTypeEthernet)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Flush()
		write = w.WritePacket
		for i, f := range captureFrames() {
			if err := write(gopacket.CaptureInfo{Timestamp: time.Unix(t0, int64(i)*1e6), CaptureLength: len(f), Length: len(f)}, f); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		return buf.Bytes()
	}
	for i, f := range captureFrames() {
		if err := write(gopacket.CaptureInfo{Timestamp: time.Unix(t0, int64(i)*1e6), CaptureLength: len(f), Length: len(f)}, f); err != nil {
			t.Fatal(err)
		}
	}
	return buf.Bytes()
}

func udp(payload []byte) []byte {
	return cat(u16(30000), u16(2055), u16(8+len(payload)), u16(0), payload)
}

func captureFrames() (frames [][]byte) {
	for _, g := range generated() {
		frames = append(frames, ethernetFrame(0x0800, nil, ip4Packet(17, 0, udp(g))))
	}
	frames = append(frames, ethernetFrame(0x0800, nil, ip4Packet(6, 0, tcpHeader(2))))
	frames = append(frames, ethernetFrame(0x0806, nil, make([]byte, 28)))
	whole := udp(generated()[1])
	frames = append(frames, ethernetFrame(0x0800, nil, ip4Packet(17, 64/8, whole[64:])), // the last part first
		ethernetFrame(0x0800, nil, ip4Packet(17, 0x2000, whole[:64])))
	frames = append(frames, ethernetFrame(0x86dd, []int{10, 20}, ip6Packet(0, cat([]byte{17, 0, 1, 4, 0, 0, 0, 0}, udp(v5(1, 1))))))
	return frames
}

func gzipped(t testing.TB, b []byte) []byte {
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	if _, err := z.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// harness feeds payloads as datagrams of one exporter.
type harness struct {
	*Decoder
	names *flow.Names
	out   *flow.Batch
	now   flow.Time
	port  uint16
	pos   uint64
}

func newHarness(cfg DecoderConfig) *harness {
	names := flow.NewNames(0)
	return &harness{Decoder: NewDecoder(cfg, names, nil), names: names, out: flow.NewBatch(64, nil), now: t0 * 1000, port: 2055}
}

var testExporter = flow.MustParseAddr("192.0.2.1")

// feed decodes b and gives its records.
func (h *harness) feed(b []byte) []flow.Record {
	n := len(h.out.Records)
	h.Decode(&Datagram{Position: h.pos, Received: h.now, Exporter: testExporter, Port: h.port, Payload: b}, h.out)
	h.pos++
	return h.out.Records[n:]
}

func (h *harness) account() *flow.Account { return h.Ledger().Of(testExporter) }

// check asserts that both sums close.
func (h *harness) check(t *testing.T) {
	t.Helper()
	total := h.Ledger().Total()
	total.Records.Written = uint64(len(h.out.Records))
	if err := total.Check(); err != nil {
		t.Error(err)
	}
}
