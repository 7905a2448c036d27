package kafka

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	kgocompress "github.com/segmentio/kafka-go/compress"
	"github.com/segmentio/kafka-go/compress/lz4"
	"github.com/segmentio/kafka-go/compress/snappy"
	"github.com/segmentio/kafka-go/compress/zstd"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest"
	"github.com/postern/postern/ingest/exporter"
)

// BenchmarkWire takes generated traffic over the hop, without the broker: encode,
// compress, decompress, decode, each for itself and with each of Kafka's codecs as
// kafka-go has them. ns/flow is of one core; bytes/flow is the size of the values.
//
// The traffic: 8 exporters tell 2 s of 80,000 flows a second between 4,000 clients
// and 500 servers, a few of which have most of it (Zipf), both directions as records
// of their own; one conversation in ten speaks IPv6, one in thirty ICMP. It goes
// through IPFIX and our decoder, by Partition into 12 partitions, and into batches
// of a second, as collect cuts them.
func BenchmarkWire(b *testing.B) {
	names := flow.NewNames(0)
	batches, _ := wireBatches(b, names)
	// A turn is one batch a partition: as much as lies in the processor's caches when
	// a pipeline hands its records on.
	batches, flows := batches[:12], 0
	for _, records := range batches {
		flows += len(records)
	}
	enc, dec := NewEncoder(names), NewDecoder(names)
	values := make([][]byte, len(batches))
	size := 0
	for i, records := range batches {
		values[i] = enc.Append(nil, Header{Seq: uint64(i)}, records)
		size += len(values[i])
	}
	report := func(b *testing.B, size int) {
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*flows), "ns/flow")
		b.ReportMetric(float64(size)/float64(flows), "bytes/flow")
		b.ReportMetric(0, "ns/op")
	}
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		var dst []byte
		for b.Loop() {
			for i, records := range batches {
				dst = enc.Append(dst[:0], Header{Seq: uint64(i)}, records)
			}
		}
		report(b, size)
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		out := flow.NewBatch(BatchRows, nil)
		for b.Loop() {
			for _, v := range values {
				out.Records = out.Records[:0]
				if _, err := dec.Decode(v, out); err != nil {
					b.Fatal(err)
				}
			}
		}
		report(b, size)
	})
	b.Run("partition", func(b *testing.B) {
		for b.Loop() {
			for _, records := range batches {
				for i := range records {
					if Partition(records[i].Src, records[i].Dst, 12) > 11 {
						b.Fatal("no such partition")
					}
				}
			}
		}
		report(b, 0)
	})
	codecs := []struct {
		name  string
		codec kgocompress.Codec
	}{
		{"zstd-1", &zstd.Codec{Level: 1}}, {"zstd-3", &zstd.Codec{Level: 3}}, {"zstd-7", &zstd.Codec{Level: 7}}, {"zstd-11", &zstd.Codec{Level: 11}},
		{"lz4", new(lz4.Codec)}, {"snappy", new(snappy.Codec)}, {"snappy-better", &snappy.Codec{Compression: snappy.BetterCompression}},
	}
	for _, c := range codecs {
		squeeze := func(dst *bytes.Buffer, v []byte) {
			w := c.codec.NewWriter(dst)
			if _, err := w.Write(v); err != nil {
				b.Fatal(err)
			}
			if err := w.Close(); err != nil {
				b.Fatal(err)
			}
		}
		expand := func(dst *bytes.Buffer, v []byte) {
			r := c.codec.NewReader(bytes.NewReader(v))
			if _, err := io.Copy(dst, r); err != nil {
				b.Fatal(err)
			}
			if err := r.Close(); err != nil {
				b.Fatal(err)
			}
		}
		small, size := make([][]byte, len(values)), 0
		for i, v := range values {
			var buf bytes.Buffer
			squeeze(&buf, v)
			small[i] = buf.Bytes()
			size += len(small[i])
		}
		var buf bytes.Buffer
		b.Run("compress-"+c.name, func(b *testing.B) {
			for b.Loop() {
				for _, v := range values {
					buf.Reset()
					squeeze(&buf, v)
				}
			}
			report(b, size)
		})
		b.Run("decompress-"+c.name, func(b *testing.B) {
			for b.Loop() {
				for _, v := range small {
					buf.Reset()
					expand(&buf, v)
				}
			}
			report(b, size)
		})
		b.Run("all-"+c.name, func(b *testing.B) {
			var dst []byte
			var there bytes.Buffer
			out := flow.NewBatch(BatchRows, nil)
			for b.Loop() {
				for i, records := range batches {
					dst = enc.Append(dst[:0], Header{Seq: uint64(i)}, records)
					buf.Reset()
					squeeze(&buf, dst)
					there.Reset()
					expand(&there, buf.Bytes())
					out.Records = out.Records[:0]
					if _, err := dec.Decode(there.Bytes(), out); err != nil {
						b.Fatal(err)
					}
				}
			}
			report(b, size)
		})
	}
}

// The budget of issue 4, without what the broker's framing adds to a batch.
func TestWireSize(t *testing.T) {
	names := flow.NewNames(0)
	batches, flows := wireBatches(t, names)
	var buf bytes.Buffer
	codec := new(snappy.Codec)
	raw, small, enc := 0, 0, NewEncoder(names)
	for i, records := range batches {
		v := enc.Append(nil, Header{Seq: uint64(i)}, records)
		buf.Reset()
		w := codec.NewWriter(&buf)
		if _, err := w.Write(v); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		raw, small = raw+len(v), small+buf.Len()
	}
	t.Logf("%d flows in %d batches: %.1f bytes a flow, %.1f compressed", flows, len(batches), float64(raw)/float64(flows), float64(small)/float64(flows))
	if small > 40*flows {
		t.Errorf("%.1f bytes a flow, at most 40 are allowed", float64(small)/float64(flows))
	}
}

func wireBatches(tb testing.TB, names *flow.Names) (batches [][]flow.Record, flows int) {
	const (
		partitions = 12
		second     = 80_000
	)
	rnd := rand.New(rand.NewPCG(7, 8))
	clients, servers := rand.NewZipf(rnd, 1.2, 40, 3999), rand.NewZipf(rnd, 1.2, 10, 499)
	ports := []uint16{443, 53, 445, 80, 389, 88, 1433, 5432, 8080, 9092, 22, 3389, 6443, 3306, 636, 135, 9200, 27017, 5985, 8443}
	port := rand.NewZipf(rnd, 1.3, 2, uint64(len(ports)-1))
	scatter := func(v uint64, n uint32) uint32 { return uint32(flow.Mix(v)>>32) % n } // ranks lie anywhere in the estate
	start := flow.TimeOf(time.Date(2026, 10, 5, 8, 0, 0, 0, time.UTC))
	exporters := make([]*exporter.Exporter, 8)
	for i := range exporters {
		x, err := exporter.New(exporter.Config{Protocol: flow.SourceIPFIX, Domain: uint32(i), Boot: start.Add(-240 * time.Hour)})
		if err != nil {
			tb.Fatal(err)
		}
		exporters[i] = x
	}
	decoder := ingest.NewDecoder(ingest.DefaultDecoderConfig(), names, nil)
	decoded := flow.NewBatch(second, nil)
	position := uint64(0)
	for s := range 2 {
		decoded.Records = decoded.Records[:0]
		var cut [partitions][]flow.Record
		for tick := range 10 {
			now := start.Add(time.Duration(s)*time.Second + time.Duration(tick)*100*time.Millisecond)
			for i, x := range exporters {
				var records []flow.Record
				for range second / 10 / len(exporters) / 2 {
					packets := 1 + uint64(rnd.ExpFloat64()*20)
					back := 1 + uint64(float64(packets)*(0.5+rnd.Float64()))
					end := now - flow.Time(rnd.IntN(4000))
					c, v := clients.Uint64(), servers.Uint64()
					r := flow.Record{
						Start: end - min(flow.Time(rnd.ExpFloat64()*8000), 55_000), End: end,
						Src:     flow.AddrFrom4(10<<24 | scatter(c, 50)<<16 | scatter(c+1e6, 1<<16)),
						Dst:     flow.AddrFrom4(10<<24 | scatter(v+2e6, 50)<<16 | scatter(v+3e6, 1<<16)),
						SrcPort: uint16(32768 + rnd.IntN(28000)), DstPort: ports[port.Uint64()], Proto: flow.ProtoTCP, TCPFlags: []uint16{0x1b, 0x1b, 0x1b, 0x1a, 0x18, 0x02, 0x14}[rnd.IntN(7)],
						PacketsRaw: packets, BytesRaw: packets*60 + uint64(rnd.IntN(1400*int(packets))), InIf: uint32(1 + rnd.IntN(8)), OutIf: uint32(1 + rnd.IntN(8)),
						Has: flow.HasStart | flow.HasEnd | flow.HasSrc | flow.HasDst | flow.HasSrcPort | flow.HasDstPort | flow.HasProto | flow.HasTCPFlags |
							flow.HasBytes | flow.HasPackets | flow.HasInIf | flow.HasOutIf,
					}
					if c%10 == 3 {
						r.Src = flow.Addr{Hi: 0x20010db8_00000000 | uint64(scatter(c, 50)), Lo: flow.Mix(c)}
						r.Dst = flow.Addr{Hi: 0x20010db8_00000000 | uint64(scatter(v, 50)), Lo: v}
					}
					switch {
					case r.DstPort == 53:
						r.Proto, r.TCPFlags, r.Has = flow.ProtoUDP, 0, r.Has&^flow.HasTCPFlags
					case rnd.IntN(30) == 0:
						r.Proto, r.TCPFlags, r.SrcPort, r.DstPort, r.ICMPType = flow.ProtoICMP, 0, 0, 0, 8
						r.Has = r.Has&^(flow.HasTCPFlags|flow.HasSrcPort|flow.HasDstPort) | flow.HasICMP
						if !r.Src.Is4() {
							r.Proto, r.ICMPType = flow.ProtoICMPv6, 128
						}
					}
					a := r
					a.Src, a.Dst, a.SrcPort, a.DstPort, a.InIf, a.OutIf = r.Dst, r.Src, r.DstPort, r.SrcPort, r.OutIf, r.InIf
					a.PacketsRaw, a.BytesRaw = back, back*60+uint64(rnd.IntN(1400*int(back)))
					a.Start, a.End = r.Start+flow.Time(rnd.IntN(50)), r.End-flow.Time(rnd.IntN(3))
					a.Start = min(a.Start, a.End)
					records = append(records, r, a)
				}
				_, err := x.Export(now, records, func(p []byte) error {
					position++
					decoder.Decode(&ingest.Datagram{Position: position, Received: now.Add(time.Duration(2+rnd.IntN(3)) * time.Millisecond),
						Exporter: flow.AddrFrom4(0xc0000201 + uint32(i)), Port: 2055, Payload: bytes.Clone(p)}, decoded)
					return nil
				})
				if err != nil {
					tb.Fatal(err)
				}
			}
		}
		for _, r := range decoded.Records {
			p := Partition(r.Src, r.Dst, partitions)
			if cut[p] = append(cut[p], r); len(cut[p]) == BatchRows {
				batches, cut[p] = append(batches, cut[p]), nil
			}
			flows++
		}
		for _, rest := range cut {
			if len(rest) > 0 {
				batches = append(batches, rest)
			}
		}
	}
	if flows != 2*second {
		tb.Fatal(fmt.Errorf("%d flows of %d", flows, 2*second))
	}
	return batches, flows
}
