//go:build unix

package ingest

import (
	"bytes"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/netsampler/goflow2/v2/decoders/netflow"
	"github.com/netsampler/goflow2/v2/decoders/netflowlegacy"
	"github.com/netsampler/goflow2/v2/decoders/sflow"
	"github.com/netsampler/goflow2/v2/producer"
	protoproducer "github.com/netsampler/goflow2/v2/producer/proto"
	"github.com/postern/postern/flow"
)

// The benchmarks decode one datagram of an exporter whose templates are known,
// again and again, and report per flow. Beside ours stand goflow2's decoder, its
// decoder with its protobuf producer, and for template formats its walk alone,
// with a store whose templates it does not know so that it leaves data sets raw.
// cpu-ns/flow is processor time, garbage collection included; on a machine that
// others use too it says more than the clock.

func BenchmarkDecodeV5(b *testing.B) {
	benchmark(b, nil, v5(30, 30), 30)
}

func BenchmarkDecodeV9(b *testing.B) {
	benchmark(b, v9(1, 5, set(0, tmpl(256, usual...))), v9(2, 5, set(256, usualRecords(24))), 24)
}

func BenchmarkDecodeIPFIX(b *testing.B) {
	benchmark(b, ipfixMsg(1, 5, set(2, tmpl(256, usual...))), ipfixMsg(2, 5, set(256, usualRecords(24))), 24)
}

// IPFIX with fields of variable length.
func BenchmarkDecodeIPFIXVariable(b *testing.B) {
	var records []byte
	for range 16 {
		records = append(records, variedRecord("alice@example")...)
	}
	benchmark(b, ipfixMsg(1, 5, set(2, variedTemplate(300))), ipfixMsg(2, 5, set(300, records)), 16)
}

func BenchmarkDecodeSFlow(b *testing.B) {
	var samples [][]byte
	header := cat(ethernetFrame(0x0800, []int{10}, ip4Packet(6, 0, tcpHeader(0x10))), make([]byte, 68))
	for range 7 {
		samples = append(samples, sflowSample(1, header, 1500))
	}
	benchmark(b, nil, sflowDatagram(1, samples...), 7)
}

// opaque is a template of a type goflow2 does not know.
type opaque struct{ netflow.NetFlowTemplateSystem }

func (o opaque) GetTemplate(uint16, uint32, uint16) (any, error) { return struct{}{}, nil }

func benchmark(b *testing.B, template, data []byte, flows int) {
	var started int64
	cpu := func() int64 {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	report := func(b *testing.B, before *runtime.MemStats) {
		used := cpu() - started
		var after runtime.MemStats
		runtime.ReadMemStats(&after)
		n := float64(b.N * flows)
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/n, "ns/flow")
		b.ReportMetric(float64(used)/n, "cpu-ns/flow")
		b.ReportMetric(float64(after.Mallocs-before.Mallocs)/n, "allocs/flow")
		b.ReportMetric(n/b.Elapsed().Seconds(), "flows/s")
		b.ReportMetric(0, "ns/op")
	}
	b.Run("postern", func(b *testing.B) {
		h := newHarness(DecoderConfig{})
		h.out = flow.NewBatch(flow.BatchSize, nil)
		if template != nil {
			h.feed(template)
		}
		dg := &Datagram{Received: h.now, Exporter: testExporter, Port: 2055, Payload: data}
		var before runtime.MemStats
		runtime.ReadMemStats(&before)
		started = cpu()
		for b.Loop() {
			if len(h.out.Records)+flows > cap(h.out.Records) {
				h.out.Records = h.out.Records[:0]
			}
			dg.Position++
			h.Decode(dg, h.out)
		}
		report(b, &before)
		if h.account().Datagrams.Rejected.Sum() > 0 {
			b.Fatalf("rejected: %v", h.account().Datagrams.Rejected.Map())
		}
	})
	walk := func(ts netflow.NetFlowTemplateSystem) any {
		buf := bytes.NewBuffer(data)
		var err error
		var msg any
		switch data[1] {
		case 5:
			p := new(netflowlegacy.PacketNetFlowV5)
			msg, err = p, netflowlegacy.DecodeMessageVersion(buf, p)
		case 9:
			p := new(netflow.NFv9Packet)
			msg, err = p, netflow.DecodeMessageVersion(buf, ts, p, nil)
		case 10:
			p := new(netflow.IPFIXPacket)
			msg, err = p, netflow.DecodeMessageVersion(buf, ts, nil, p)
		case 0:
			p := new(sflow.Packet)
			msg, err = p, sflow.DecodeMessageVersion(buf, p)
		}
		if err != nil {
			b.Fatal(err)
		}
		return msg
	}
	ts := netflow.CreateTemplateSystem()
	if template != nil {
		if err := netflow.DecodeMessageVersion(bytes.NewBuffer(template), ts, new(netflow.NFv9Packet), new(netflow.IPFIXPacket)); err != nil {
			b.Fatal(err)
		}
		b.Run("goflow2-walk-only", func(b *testing.B) {
			var before runtime.MemStats
			runtime.ReadMemStats(&before)
			started = cpu()
			for b.Loop() {
				walk(opaque{ts})
			}
			report(b, &before)
		})
	}
	b.Run("goflow2-decode", func(b *testing.B) {
		var before runtime.MemStats
		runtime.ReadMemStats(&before)
		started = cpu()
		for b.Loop() {
			walk(ts)
		}
		report(b, &before)
	})
	b.Run("goflow2-decode-and-produce", func(b *testing.B) {
		cfg, err := (&protoproducer.ProducerConfig{}).Compile()
		if err != nil {
			b.Fatal(err)
		}
		p, err := protoproducer.CreateProtoProducer(cfg, protoproducer.CreateSamplingSystem)
		if err != nil {
			b.Fatal(err)
		}
		src := netip.MustParseAddrPort("192.0.2.1:2055")
		args := &producer.ProduceArgs{Src: src, Dst: src, SamplerAddress: src.Addr(), TimeReceived: time.Unix(t0, 0)}
		var before runtime.MemStats
		runtime.ReadMemStats(&before)
		started = cpu()
		for b.Loop() {
			out, err := p.Produce(walk(ts), args)
			if err != nil {
				b.Fatal(err)
			}
			p.Commit(out)
		}
		report(b, &before)
	})
}
