package ingest

import (
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"github.com/postern/postern/flow"
)

// Capture yields the UDP datagrams of a pcap or pcapng file, plain or in gzip,
// in file order. A Capture is not safe for concurrent use, but for Progress.
type Capture struct {
	name  string
	size  int64
	read  atomic.Int64
	close func() error

	next  func() (data []byte, ci gopacket.CaptureInfo, link layers.LinkType, err error)
	dg    Datagram
	stats CaptureStats
	frags fragments
}

// CaptureStats says what became of a capture's packets. Packets is the sum of
// Datagrams, Skipped, Fragments and Unreadable.
type CaptureStats struct {
	Packets   uint64 `json:"packets"`
	Datagrams uint64 `json:"datagrams"`
	// Skipped are packets that are no UDP: other protocols, no IP at all.
	Skipped uint64 `json:"skipped"`
	// Fragments were put together with others, or wait; FragmentsLost of them
	// never made a whole datagram.
	Fragments     uint64 `json:"fragments"`
	FragmentsLost uint64 `json:"fragments_lost"`
	// Truncated are datagrams of which the file holds only the beginning
	// (snap length); they are yielded as they are.
	Truncated uint64 `json:"truncated"`
	// Unreadable are packets whose headers do not parse or whose link type is unknown.
	Unreadable uint64 `json:"unreadable"`
}

// ErrNoCapture is a file that does not begin as captures do.
var ErrNoCapture = errors.New("no capture")

// OpenCapture opens a capture file; "-" is standard input. Its error is [ErrNoCapture] where
// the file is none.
func OpenCapture(path string) (*Capture, error) {
	if path == "-" {
		return NewCapture(os.Stdin, "standard input", 0)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	size := int64(0)
	if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
		size = st.Size()
	} else if err == nil && st.IsDir() {
		f.Close()
		return nil, fmt.Errorf("%s is a directory; give a pcap or pcapng file", path)
	}
	c, err := NewCapture(f, path, size)
	if err != nil {
		f.Close()
		return nil, err
	}
	c.close = f.Close
	return c, nil
}

// NewCapture reads a capture from r. name stands in errors; size is the number of
// bytes of r if known, else 0, and serves Progress alone.
func NewCapture(r io.Reader, name string, size int64) (*Capture, error) {
	c := &Capture{name: name, size: size, close: func() error { return nil }}
	br := bufio.NewReaderSize(counter{r, &c.read}, 1<<16)
	magic, err := br.Peek(4)
	if len(magic) >= 2 && magic[0] == 0x1f && magic[1] == 0x8b {
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, fmt.Errorf("%s: gzip: %w", name, err)
		}
		br = bufio.NewReaderSize(z, 1<<16)
		if magic, err = br.Peek(4); err != nil && len(magic) < 4 {
			return nil, fmt.Errorf("%s: the gzip stream holds %d bytes (%w); a capture has a header of at least 24", name, len(magic), err)
		}
	} else if err != nil && len(magic) < 4 {
		return nil, fmt.Errorf("%s: only %d bytes; a capture has a header of at least 24", name, len(magic))
	}
	switch binary.BigEndian.Uint32(magic) {
	case 0x0a0d0d0a:
		ng, err := pcapgo.NewNgReader(br, pcapgo.NgReaderOptions{WantMixedLinkType: true, SkipUnknownVersion: true})
		if err != nil {
			return nil, fmt.Errorf("%s: pcapng: %w", name, err)
		}
		c.next = func() ([]byte, gopacket.CaptureInfo, layers.LinkType, error) {
			data, ci, err := ng.ZeroCopyReadPacketData()
			if err != nil {
				return nil, ci, 0, err
			}
			in, err := ng.Interface(ci.InterfaceIndex)
			return data, ci, in.LinkType, err
		}
	case 0xa1b2c3d4, 0xd4c3b2a1, 0xa1b23c4d, 0x4d3cb2a1:
		pc, err := pcapgo.NewReader(br)
		if err != nil {
			return nil, fmt.Errorf("%s: pcap: %w", name, err)
		}
		c.next = func() ([]byte, gopacket.CaptureInfo, layers.LinkType, error) {
			data, ci, err := pc.ZeroCopyReadPacketData()
			return data, ci, pc.LinkType(), err
		}
	default:
		return nil, fmt.Errorf("%s is %w: it begins with % x; a pcap file begins with a1 b2 c3 d4 (or that reversed, or a1 b2 3c 4d), a pcapng file with 0a 0d 0d 0a, either may be in gzip", name, ErrNoCapture, magic)
	}
	return c, nil
}

type counter struct {
	r io.Reader
	n *atomic.Int64
}

func (c counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n.Add(int64(n))
	return n, err
}

// Next gives the next datagram, which holds until the call after; [io.EOF] at
// the end of the file. Any other error says where the file is broken; what was
// yielded before stands.
func (c *Capture) Next() (*Datagram, error) {
	for {
		data, ci, link, err := c.next()
		if errors.Is(err, io.EOF) {
			c.stats.FragmentsLost += c.frags.give()
			return nil, io.EOF
		}
		if err != nil {
			c.stats.FragmentsLost += c.frags.give()
			if errors.Is(err, io.ErrUnexpectedEOF) {
				return nil, fmt.Errorf("%s: the file ends in the middle of packet %d; it was cut short", c.name, c.stats.Packets+1)
			}
			return nil, fmt.Errorf("%s: packet %d: %w", c.name, c.stats.Packets+1, err)
		}
		c.stats.Packets++
		at := flow.TimeOf(ci.Timestamp)
		p, ok, known := frame(link, data)
		switch {
		case !known:
			c.stats.Unreadable++
			continue
		case !ok, p.proto != protoUDP:
			c.stats.Skipped++
			continue
		}
		truncated := p.truncated
		if p.fragment {
			c.stats.Fragments++
			whole, lost := c.frags.add(&p, at)
			c.stats.FragmentsLost += lost
			if whole == nil {
				continue
			}
			p.payload = whole
			c.stats.Fragments--
		}
		if len(p.payload) < 8 {
			c.stats.Unreadable++
			continue
		}
		be := binary.BigEndian
		length := int(be.Uint16(p.payload[4:]))
		payload := p.payload[8:]
		switch {
		case length >= 8 && length-8 <= len(payload):
			payload = payload[:length-8]
			truncated = false
		case length != 0: // zero is a jumbogram: what IP says holds
			truncated = true
		}
		if truncated {
			c.stats.Truncated++
		}
		c.dg = Datagram{Position: c.stats.Datagrams, Received: at, Exporter: p.src, Port: be.Uint16(p.payload), Payload: payload}
		c.stats.Datagrams++
		return &c.dg, nil
	}
}

const protoUDP = flow.ProtoUDP

// Stats says what became of the packets so far.
func (c *Capture) Stats() CaptureStats { return c.stats }

// Progress gives the bytes read of the file and its size, 0 if that is not
// known. It may be called from another goroutine.
func (c *Capture) Progress() (read, size int64) { return c.read.Load(), c.size }

// Close closes the file that OpenCapture opened.
func (c *Capture) Close() error { return c.close() }

// Link types (https://www.tcpdump.org/linktypes.html) that pcap files use for
// raw IP besides 101; their numbers differ by system.
const (
	linkNull   = 0
	linkRawBSD = 14
	linkRaw12  = 12
	linkSLL2   = 276
	linkIPv4   = 228
	linkIPv6   = 229
)

// frame reads the packet in a frame; ok is false if it holds no IP packet, known
// if the frame itself could not be read.
func frame(link layers.LinkType, b []byte) (p packet, ok, known bool) {
	be := binary.BigEndian
	var etherType uint16
	switch int(link) {
	case int(layers.LinkTypeEthernet):
		if etherType, b, known = ethernet(b); !known {
			return p, false, false
		}
	case int(layers.LinkTypeLinuxSLL):
		if len(b) < 16 {
			return p, false, false
		}
		if etherType, b, known = tagged(be.Uint16(b[14:]), b[16:]); !known {
			return p, false, false
		}
	case linkSLL2:
		if len(b) < 20 {
			return p, false, false
		}
		if etherType, b, known = tagged(be.Uint16(b), b[20:]); !known {
			return p, false, false
		}
	case linkNull, int(layers.LinkTypeLoop):
		// Four bytes of address family, in the byte order of the machine that
		// captured (loop: network order). Its numbers differ by system; the version
		// in the IP header does not.
		if len(b) < 4 {
			return p, false, false
		}
		p, ok = ip(b[4:])
		return p, ok, true
	case int(layers.LinkTypeRaw), linkRaw12, linkRawBSD, linkIPv4, linkIPv6:
		p, ok = ip(b)
		return p, ok, true
	default:
		return p, false, false
	}
	p, ok = network(etherType, b)
	return p, ok, true
}

// fragments puts IP fragments together, bounded in number, size and time.
type fragments struct {
	open map[fragmentKey]*reassembly
}

type fragmentKey struct {
	src, dst flow.Addr
	id       uint32
	proto    uint8
}

type reassembly struct {
	since flow.Time
	parts []part
	bytes int
	total int // 0 while the last fragment is missing
}

type part struct {
	offset int
	data   []byte
}

const (
	maxReassemblies = 256   // times 64 KiB are 16 MiB
	maxParts        = 64    // 64 KiB in fragments of 1 KiB
	maxWhole        = 65535 // bytes of an IP packet
	fragmentAge     = flow.Time(30_000)
)

// add takes a fragment; whole is the payload of the packet it completes. lost is
// how many fragments were given up.
func (f *fragments) add(p *packet, at flow.Time) (whole []byte, lost uint64) {
	if f.open == nil {
		f.open = map[fragmentKey]*reassembly{}
	}
	k := fragmentKey{p.src, p.dst, p.fragmentID, p.proto}
	r := f.open[k]
	if r != nil && (at-r.since > fragmentAge || r.since-at > fragmentAge) {
		lost += uint64(len(r.parts))
		delete(f.open, k)
		r = nil
	}
	if p.truncated || p.offset+len(p.payload) > maxWhole {
		if r != nil {
			lost += uint64(len(r.parts))
			delete(f.open, k)
		}
		return nil, lost + 1
	}
	if r == nil {
		if len(f.open) >= maxReassemblies {
			for k, o := range f.open {
				if at-o.since > fragmentAge || o.since-at > fragmentAge {
					lost += uint64(len(o.parts))
					delete(f.open, k)
				}
			}
			if len(f.open) >= maxReassemblies {
				return nil, lost + 1
			}
		}
		r = &reassembly{since: at}
		f.open[k] = r
	}
	for _, q := range r.parts {
		if p.offset < q.offset+len(q.data) && q.offset < p.offset+len(p.payload) {
			// Overlapping fragments are an attack or a repetition (RFC 5722): the
			// first stands.
			return nil, lost + 1
		}
	}
	if len(r.parts) >= maxParts {
		delete(f.open, k)
		return nil, lost + uint64(len(r.parts)) + 1
	}
	r.parts = append(r.parts, part{p.offset, append([]byte(nil), p.payload...)})
	r.bytes += len(p.payload)
	if !p.more {
		r.total = p.offset + len(p.payload)
	}
	if r.total == 0 || r.bytes < r.total {
		return nil, lost
	}
	delete(f.open, k)
	whole = make([]byte, r.total)
	for _, q := range r.parts {
		if q.offset+len(q.data) > len(whole) {
			return nil, lost + uint64(len(r.parts))
		}
		copy(whole[q.offset:], q.data)
	}
	return whole, lost
}

// give gives up everything that waits and says how many fragments that were.
func (f *fragments) give() (lost uint64) {
	for _, r := range f.open {
		lost += uint64(len(r.parts))
	}
	f.open = nil
	return lost
}
