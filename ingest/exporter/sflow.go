package exporter

import (
	"encoding/binary"

	"github.com/postern/postern/flow"
)

const (
	// maxSamples bounds the samples that tell one record. A record of more packets
	// is told by that many; each stands for one sampled packet.
	maxSamples = 16
	// sampledHeader is how many bytes of a frame a sample carries at most, as
	// agents are set up by default.
	sampledHeader = 128
)

// exportSFlow writes sFlow v5 datagrams of flow samples with raw packet headers
// (sflow_version_5.txt). A record becomes one sample a packet, at most 16; the
// frames share its bytes. The sequence counts datagrams.
func (x *Exporter) exportSFlow(now flow.Time, records []flow.Record, emit func([]byte) error) error {
	var samples uint32
	var countAt int
	begin := func() {
		b := binary.BigEndian.AppendUint32(x.buf[:0], 5)
		if x.cfg.Agent.Is4() {
			b = binary.BigEndian.AppendUint32(b, 1)
			b = binary.BigEndian.AppendUint32(b, x.cfg.Agent.V4())
		} else {
			a := x.cfg.Agent.As16()
			b = binary.BigEndian.AppendUint32(b, 2)
			b = append(b, a[:]...)
		}
		b = binary.BigEndian.AppendUint32(b, x.cfg.Domain)
		b = binary.BigEndian.AppendUint32(b, x.sequence)
		b = binary.BigEndian.AppendUint32(b, x.uptime(now))
		countAt = len(b)
		x.buf = binary.BigEndian.AppendUint32(b, 0)
		samples = 0
	}
	send := func() error {
		if samples == 0 {
			return nil
		}
		binary.BigEndian.PutUint32(x.buf[countAt:], samples)
		x.sequence++
		x.packets++
		samples = 0
		return emit(x.buf)
	}
	for i := range records {
		for _, r := range x.split(&records[i]) {
			n := max(1, min(r.PacketsRaw, maxSamples))
			for j := range n {
				size := r.BytesRaw / n
				if j == n-1 {
					size = r.BytesRaw - size*(n-1)
				}
				if samples == 0 {
					begin()
				}
				at := len(x.buf)
				x.appendSample(&r, uint32(min(size, 65000)))
				if len(x.buf) > x.cfg.MaxPayload && samples > 0 {
					sample := append([]byte(nil), x.buf[at:]...)
					x.buf = x.buf[:at]
					if err := send(); err != nil {
						return err
					}
					begin()
					x.buf = append(x.buf, sample...)
				}
				samples++
			}
		}
	}
	return send()
}

func (x *Exporter) appendSample(r *flow.Record, size uint32) {
	rate := max(1, x.cfg.SamplingRate)
	x.samples++
	x.pool += rate
	b := binary.BigEndian.AppendUint32(x.buf, 1) // flow_sample
	lengthAt := len(b)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint32(b, x.samples)
	b = binary.BigEndian.AppendUint32(b, r.InIf&0xffffff) // source: the interface it came in by
	b = binary.BigEndian.AppendUint32(b, rate)
	b = binary.BigEndian.AppendUint32(b, x.pool)
	b = binary.BigEndian.AppendUint32(b, 0) // drops
	b = binary.BigEndian.AppendUint32(b, r.InIf&0x3fffffff)
	b = binary.BigEndian.AppendUint32(b, r.OutIf&0x3fffffff)
	b = binary.BigEndian.AppendUint32(b, 1) // flow records

	b = binary.BigEndian.AppendUint32(b, 1) // raw packet header
	recordAt := len(b)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint32(b, 1) // Ethernet
	frameAt := len(b)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint32(b, 4) // stripped: the frame check sequence
	headerAt := len(b)
	b = binary.BigEndian.AppendUint32(b, 0)
	start := len(b)
	b = appendFrame(b, r, size)
	for len(b)-start < min(int(size), sampledHeader) {
		b = append(b, 0) // the payload of the packet, as far as it is carried
	}
	header := len(b) - start
	for (len(b)-start)%4 != 0 {
		b = append(b, 0)
	}
	binary.BigEndian.PutUint32(b[headerAt:], uint32(header))
	binary.BigEndian.PutUint32(b[frameAt:], max(size, uint32(header)))
	binary.BigEndian.PutUint32(b[recordAt:], uint32(len(b)-recordAt-4))
	binary.BigEndian.PutUint32(b[lengthAt:], uint32(len(b)-lengthAt-4))
	x.buf = b
}

// appendFrame writes the headers of an Ethernet frame of size bytes that belongs
// to r: Ethernet, IP, and TCP, UDP or ICMP. Checksums of the transport are left
// zero; a sampled header ends before what they would cover.
func appendFrame(b []byte, r *flow.Record, size uint32) []byte {
	b = append(b, 0x02, 0, 0, 0, 0, 2, 0x02, 0, 0, 0, 0, 1) // locally administered
	var transport [20]byte
	t := transport[:0]
	switch r.Proto {
	case flow.ProtoTCP:
		t = transport[:20]
		t[12], t[13] = 5<<4, byte(r.TCPFlags)
		binary.BigEndian.PutUint16(t[14:], 0xffff)
	case flow.ProtoUDP:
		t = transport[:8]
	case flow.ProtoSCTP:
		t = transport[:12]
	case flow.ProtoICMP, flow.ProtoICMPv6:
		t = transport[:8]
		t[0], t[1] = r.ICMPType, r.ICMPCode
	}
	if !r.IsICMP() && len(t) > 0 {
		binary.BigEndian.PutUint16(t[0:], r.SrcPort)
		binary.BigEndian.PutUint16(t[2:], r.DstPort)
	}
	ip := 20
	v4 := r.Src.Is4() && r.Dst.Is4()
	if !v4 {
		ip = 40
	}
	payload := max(int(size)-14-ip, len(t))
	if r.Proto == flow.ProtoUDP {
		binary.BigEndian.PutUint16(t[4:], uint16(payload))
	}
	if v4 {
		b = append(b, 0x08, 0x00)
		at := len(b)
		b = append(b, 0x45, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(ip+payload))
		b = append(b, 0, 0, 0x40, 0, 64, r.Proto, 0, 0)
		b = binary.BigEndian.AppendUint32(b, r.Src.V4())
		b = binary.BigEndian.AppendUint32(b, r.Dst.V4())
		binary.BigEndian.PutUint16(b[at+10:], checksum(b[at:]))
	} else {
		b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(payload))
		b = append(b, r.Proto, 64)
		src, dst := r.Src.As16(), r.Dst.As16()
		b = append(b, src[:]...)
		b = append(b, dst[:]...)
	}
	return append(b, t...)
}

// checksum is the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
