package exporter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/postern/postern/flow"
)

// Config says what an exporter is and how it speaks.
type Config struct {
	// Protocol is the format; required.
	Protocol flow.Source
	// Domain is the observation domain (IPFIX), the source id (v9), the engine type
	// and id in the lower 16 bits (v5), the sub-agent (sFlow).
	Domain uint32
	// Agent is the agent address sFlow writes into its datagrams.
	Agent flow.Addr
	// Boot is when the exporter started: its uptime counts from here. Zero is an hour
	// before the first export.
	Boot flow.Time
	// SamplingRate is told to the collector: in options data (v9, IPFIX), in the
	// header (v5, at most 16,383), in each sample (sFlow). 0 and 1 are unsampled; then
	// v9 and IPFIX send no options.
	SamplingRate uint32
	// Rich adds NAT, forwarding status, firewall event, direction and the user's name
	// to the templates of v9 and IPFIX.
	Rich bool
	// Biflow exports records that tell both directions as biflows (RFC 5103; IPFIX
	// only). Everywhere else, and without it, such a record becomes two.
	Biflow bool
	// BiflowDirection adds biflowDirection (239) to biflow templates.
	BiflowDirection bool
	// Names resolves Record.User; needed only with Rich.
	Names *flow.Names
	// TemplatePackets and TemplateInterval are after how many datagrams and after how
	// much time templates and options are sent again. Zero is 20 datagrams, 60 s.
	TemplatePackets  int
	TemplateInterval time.Duration
	// HoldTemplates leaves the templates out of the first datagrams, so many of them:
	// data before its template, as a collector meets it after a restart.
	HoldTemplates int
	// MaxPayload bounds a datagram. Zero is 1,400 bytes.
	MaxPayload int
}

const (
	defaultTemplatePackets  = 20
	defaultTemplateInterval = time.Minute
	// 1,400 bytes fit into an Ethernet frame behind a tunnel header or two.
	defaultMaxPayload = 1400
	// minPayload holds all templates of the richest exporter (850 bytes) and its
	// longest record (390) together.
	minPayload = 1300
	// v5Records is how many records a v5 datagram holds at most.
	v5Records = 30
)

// Exporter encodes records. Not safe for concurrent use.
type Exporter struct {
	cfg Config
	buf []byte

	boot     flow.Time
	sequence uint32 // as the protocol counts, see the encoders
	packets  int    // datagrams sent
	tmplAt   int    // datagrams sent when the templates went out last
	tmplTime flow.Time
	told     bool // templates went out at least once
	samples  uint32
	pool     uint32
	halves   [2]flow.Record
}

// New makes an exporter.
func New(cfg Config) (*Exporter, error) {
	if cfg.TemplatePackets == 0 {
		cfg.TemplatePackets = defaultTemplatePackets
	}
	if cfg.TemplateInterval == 0 {
		cfg.TemplateInterval = defaultTemplateInterval
	}
	if cfg.MaxPayload == 0 {
		cfg.MaxPayload = defaultMaxPayload
	}
	switch {
	case cfg.Protocol < flow.SourceNetFlowV5 || cfg.Protocol > flow.SourceSFlowV5:
		return nil, fmt.Errorf("exporter: %v is no protocol to export", cfg.Protocol)
	case cfg.MaxPayload < minPayload || cfg.MaxPayload > 65507:
		return nil, fmt.Errorf("exporter: datagrams of %d bytes; they must be between %d and 65,507", cfg.MaxPayload, minPayload)
	case cfg.Protocol == flow.SourceNetFlowV5 && cfg.SamplingRate > 0x3fff:
		return nil, fmt.Errorf("exporter: NetFlow v5 has 14 bits for the sampling rate, %d does not fit", cfg.SamplingRate)
	case cfg.Protocol == flow.SourceSFlowV5 && cfg.Agent.IsZero():
		return nil, errors.New("exporter: sFlow needs an agent address")
	}
	return &Exporter{cfg: cfg, boot: cfg.Boot}, nil
}

// Export encodes records as of now and hands each datagram to emit, which must
// not keep it. It stops at the first error of emit. v5 leaves out what is not
// IPv4; skipped says how many records that were.
func (x *Exporter) Export(now flow.Time, records []flow.Record, emit func([]byte) error) (skipped int, err error) {
	if x.boot == 0 {
		x.boot = now.Add(-time.Hour)
	}
	switch x.cfg.Protocol {
	case flow.SourceNetFlowV5:
		return x.exportV5(now, records, emit)
	case flow.SourceSFlowV5:
		return 0, x.exportSFlow(now, records, emit)
	default:
		return 0, x.exportSets(now, records, emit)
	}
}

// uptime is the exporter's sysUptime in milliseconds at t; it wraps after 49.7
// days as the wire does.
func (x *Exporter) uptime(t flow.Time) uint32 { return uint32(t - x.boot) }

// split gives a record as the one or two unidirectional records that tell it.
func (x *Exporter) split(r *flow.Record) []flow.Record {
	x.halves[0] = *r
	if !r.Biflow() {
		return x.halves[:1]
	}
	f, b := &x.halves[0], &x.halves[1]
	const rev = flow.HasRevBytes | flow.HasRevPackets | flow.HasRevTCPFlags
	f.Has &^= rev
	*b = *f
	f.RevBytesRaw, f.RevPacketsRaw, f.RevTCPFlags = 0, 0, 0
	b.Src, b.Dst, b.SrcPort, b.DstPort = r.Dst, r.Src, r.DstPort, r.SrcPort
	b.NATSrc, b.NATDst, b.NATSrcPort, b.NATDstPort = r.NATDst, r.NATSrc, r.NATDstPort, r.NATSrcPort
	b.Has = swapHas(b.Has, flow.HasNATSrc, flow.HasNATDst)
	b.Has = swapHas(b.Has, flow.HasNATSrcPort, flow.HasNATDstPort)
	b.InIf, b.OutIf = r.OutIf, r.InIf
	b.BytesRaw, b.PacketsRaw, b.TCPFlags = r.RevBytesRaw, r.RevPacketsRaw, r.RevTCPFlags
	b.RevBytesRaw, b.RevPacketsRaw, b.RevTCPFlags = 0, 0, 0
	b.User = flow.NoName // userName belongs to the source
	return x.halves[:2]
}

// swapHas exchanges two bits of a set.
func swapHas(h, a, b flow.Has) flow.Has {
	out := h &^ (a | b)
	if h&a != 0 {
		out |= b
	}
	if h&b != 0 {
		out |= a
	}
	return out
}

// exportV5 writes NetFlow v5: a header of 24 bytes and records of 48. The sequence
// counts flows.
func (x *Exporter) exportV5(now flow.Time, records []flow.Record, emit func([]byte) error) (skipped int, err error) {
	limit := min(v5Records, (x.cfg.MaxPayload-24)/48)
	n := 0
	send := func() error {
		if n == 0 {
			return nil
		}
		b := x.buf
		binary.BigEndian.PutUint16(b[0:], 5)
		binary.BigEndian.PutUint16(b[2:], uint16(n))
		binary.BigEndian.PutUint32(b[4:], x.uptime(now))
		binary.BigEndian.PutUint32(b[8:], uint32(now/1000))
		binary.BigEndian.PutUint32(b[12:], uint32(now%1000)*1e6)
		binary.BigEndian.PutUint32(b[16:], x.sequence)
		binary.BigEndian.PutUint16(b[20:], uint16(x.cfg.Domain))
		var sampling uint16
		if x.cfg.SamplingRate > 1 {
			sampling = 1<<14 | uint16(x.cfg.SamplingRate) // mode 1: one packet in so many
		}
		binary.BigEndian.PutUint16(b[22:], sampling)
		x.sequence += uint32(n)
		x.packets++
		n = 0
		return emit(b)
	}
	for i := range records {
		for _, r := range x.split(&records[i]) {
			if !r.Src.Is4() || !r.Dst.Is4() {
				skipped++
				continue
			}
			if n == 0 {
				x.buf = append(x.buf[:0], make([]byte, 24)...)
			}
			x.buf = x.appendV5(x.buf, &r)
			if n++; n == limit {
				if err := send(); err != nil {
					return skipped, err
				}
			}
		}
	}
	return skipped, send()
}

func (x *Exporter) appendV5(b []byte, r *flow.Record) []byte {
	dstPort := r.DstPort
	if r.IsICMP() {
		dstPort = uint16(r.ICMPType)<<8 | uint16(r.ICMPCode) // as routers do
	}
	b = binary.BigEndian.AppendUint32(b, r.Src.V4())
	b = binary.BigEndian.AppendUint32(b, r.Dst.V4())
	b = binary.BigEndian.AppendUint32(b, 0) // next hop
	b = binary.BigEndian.AppendUint16(b, uint16(r.InIf))
	b = binary.BigEndian.AppendUint16(b, uint16(r.OutIf))
	b = binary.BigEndian.AppendUint32(b, uint32(min(r.PacketsRaw, 1<<32-1)))
	b = binary.BigEndian.AppendUint32(b, uint32(min(r.BytesRaw, 1<<32-1)))
	b = binary.BigEndian.AppendUint32(b, x.uptime(r.Start))
	b = binary.BigEndian.AppendUint32(b, x.uptime(r.End))
	b = binary.BigEndian.AppendUint16(b, r.SrcPort)
	b = binary.BigEndian.AppendUint16(b, dstPort)
	b = append(b, 0, byte(r.TCPFlags), r.Proto, 0)
	return append(b, make([]byte, 8)...) // AS numbers, masks, padding
}
