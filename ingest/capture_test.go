package ingest

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// readAll gives copies of the datagrams of a capture.
func readAll(t *testing.T, c *Capture) (out []Datagram) {
	t.Helper()
	for {
		dg, err := c.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		d := *dg
		d.Payload = bytes.Clone(dg.Payload)
		out = append(out, d)
	}
}

func TestCapture(t *testing.T) {
	var first []Datagram
	for name, b := range map[string][]byte{"pcap": capture(t, "pcap"), "pcapng": capture(t, "pcapng"), "gzip": gzipped(t, capture(t, "pcapng"))} {
		c, err := NewCapture(bytes.NewReader(b), name, int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		got := readAll(t, c)
		if first == nil {
			first = got
		}
		if d := cmp.Diff(first, got); d != "" {
			t.Errorf("%s differs from the first:\n%s", name, d)
		}
		want := append(generated(), generated()[1], v5(1, 1))
		if len(got) != len(want) {
			t.Fatalf("%s: %d datagrams, want %d", name, len(got), len(want))
		}
		for i := range want {
			if !bytes.Equal(got[i].Payload, want[i]) || got[i].Position != uint64(i) || got[i].Port != 30000 {
				t.Errorf("%s: datagram %d is %+v", name, i, got[i])
			}
		}
		if got[0].Exporter.String() != "10.0.0.1" || got[len(got)-1].Exporter.String() != "2001:db8::1" || got[0].Received != t0*1000 || got[1].Received != t0*1000+1 {
			t.Errorf("%s: exporters and times: %+v", name, got[0])
		}
		s := c.Stats()
		if s.Packets != uint64(len(captureFrames())) || s.Skipped != 2 || s.Fragments != 1 || s.Datagrams+s.Skipped+s.Fragments+s.Unreadable != s.Packets {
			t.Errorf("%s: %+v", name, s)
		}
		if read, size := c.Progress(); read != size || size != int64(len(b)) {
			t.Errorf("%s: progress %d of %d at the end", name, read, size)
		}
	}
}

func TestCaptureLinkTypes(t *testing.T) {
	packet := ip4Packet(17, 0, udp(v5(1, 1)))
	packet6 := ip6Packet(44, cat([]byte{17, 0}, u16(0), u32(1), udp(v5(1, 1)))) // a fragment that is the whole
	for _, c := range []struct {
		name  string
		link  int
		frame []byte
	}{
		{"raw", 101, packet}, {"raw of BSD", 12, packet}, {"raw IPv6", 229, packet6},
		{"null", 0, cat([]byte{2, 0, 0, 0}, packet)}, {"loop", 108, cat([]byte{0, 0, 0, 2}, packet)},
		{"Linux cooked", 113, cat(make([]byte, 14), u16(0x0800), packet)},
		{"Linux cooked 2", 276, cat(u16(0x0800), make([]byte, 18), packet)},
		{"Ethernet, QinQ", 1, ethernetFrame(0x0800, []int{1, 2}, packet)},
		{"Ethernet, padded", 1, cat(ethernetFrame(0x0800, nil, packet), make([]byte, 10))},
	} {
		var buf bytes.Buffer
		w := pcapgo.NewWriterNanos(&buf)
		if err := w.WriteFileHeader(65535, layers.LinkType(c.link)); err != nil {
			t.Fatal(err)
		}
		if err := w.WritePacket(gopacket.CaptureInfo{CaptureLength: len(c.frame), Length: len(c.frame)}, c.frame); err != nil {
			t.Fatal(err)
		}
		r, err := NewCapture(bytes.NewReader(buf.Bytes()), c.name, 0)
		if err != nil {
			t.Fatal(err)
		}
		got := readAll(t, r)
		if len(got) != 1 || !bytes.Equal(got[0].Payload, v5(1, 1)) {
			t.Errorf("%s: %d datagrams, %+v", c.name, len(got), r.Stats())
		}
	}
}

func TestCaptureErrors(t *testing.T) {
	whole := capture(t, "pcap")
	for _, c := range []struct {
		name string
		b    []byte
		want string
	}{
		{"empty", nil, "only 0 bytes"},
		{"text", []byte("time,src,dst\n"), "is no capture: it begins with 74 69 6d 65"},
		{"cut in a packet", whole[:len(whole)-5], "ends in the middle of packet"},
		{"cut in the header", whole[:10], "pcap"},
		{"cut gzip", gzipped(t, whole)[:12], "gzip"},
	} {
		r, err := NewCapture(bytes.NewReader(c.b), "flows.pcap", 0)
		for err == nil {
			_, err = r.Next()
		}
		if errors.Is(err, io.EOF) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "flows.pcap") {
			t.Errorf("%s: %v; want %q and the file's name", c.name, err, c.want)
		}
	}
	if _, err := OpenCapture(t.TempDir()); err == nil || !strings.Contains(err.Error(), "directory") {
		t.Errorf("a directory: %v", err)
	}
	if _, err := OpenCapture(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// What a snap length cut is yielded as far as it goes, and counted.
func TestCaptureTruncated(t *testing.T) {
	var buf bytes.Buffer
	w := pcapgo.NewWriter(&buf)
	if err := w.WriteFileHeader(100, layers.LinkTypeEthernet); err != nil {
		t.Fatal(err)
	}
	f := ethernetFrame(0x0800, nil, ip4Packet(17, 0, udp(v5(3, 3))))
	if err := w.WritePacket(gopacket.CaptureInfo{CaptureLength: 100, Length: len(f)}, f[:100]); err != nil {
		t.Fatal(err)
	}
	c, err := NewCapture(bytes.NewReader(buf.Bytes()), "cut", 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, c); len(got) != 1 || len(got[0].Payload) != 100-42 || c.Stats().Truncated != 1 {
		t.Errorf("%d datagrams, %+v", len(got), c.Stats())
	}
}

// Fragments that never make a whole are bounded and counted.
func TestCaptureFragmentsLost(t *testing.T) {
	var buf bytes.Buffer
	w := pcapgo.NewWriter(&buf)
	if err := w.WriteFileHeader(65535, layers.LinkTypeRaw); err != nil {
		t.Fatal(err)
	}
	n := maxReassemblies + 10
	for i := range n {
		p := ip4Packet(17, 0x2000, make([]byte, 64))
		copy(p[4:], u16(i))
		if err := w.WritePacket(gopacket.CaptureInfo{CaptureLength: len(p), Length: len(p)}, p); err != nil {
			t.Fatal(err)
		}
	}
	c, err := NewCapture(bytes.NewReader(buf.Bytes()), "fragments", 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, c); len(got) != 0 || c.Stats().FragmentsLost != uint64(n) {
		t.Errorf("%d datagrams, %+v", len(got), c.Stats())
	}
}
