package kafka

import (
	"context"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	flowpb "github.com/netsampler/goflow2/v2/pb"
	protoproducer "github.com/netsampler/goflow2/v2/producer/proto"
	kgo "github.com/segmentio/kafka-go"
	"golang.org/x/sync/errgroup"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/test/broker"
)

// BenchmarkHop takes the traffic of BenchmarkWire through a real broker, in 12
// partitions, and back, in each form that the flows may have on the way:
//
//	postern            our batches, as collect writes them
//	goflow2-each       a protobuf message a value, as goflow2 writes them: its client's
//	                   batches of up to 1 MB, uncompressed, which is its default
//	goflow2-each-zstd  the same, compressed
//	goflow2-1024       1,024 length-delimited messages a value, uncompressed
//	goflow2-1024-zstd  the same, compressed
//
// cpu-ns/flow is processor time of this process, kernel and garbage collection
// included, from records to records: encode, compress, send; fetch, decompress,
// decode. The broker is a process of its own and not in it. sent and fetched are all
// bytes that went through the sockets, in bytes a flow.
func BenchmarkHop(b *testing.B) {
	br := broker.Shared(b)
	names := flow.NewNames(0)
	batches, _ := wireBatches(b, names)
	// A turn is a second of traffic: seven values a partition, one request.
	const partitions, second = 12, 80_000
	var turn [partitions][][]flow.Record
	var flows []flow.Record
	for _, records := range batches {
		p := Partition(records[0].Src, records[0].Dst, partitions)
		turn[p] = append(turn[p], records)
		if flows = append(flows, records...); len(flows) >= second {
			break
		}
	}
	messages := make([]protoproducer.ProtoProducerMessage, len(flows))
	for i := range flows {
		goflowMessageOf(&messages[i].FlowMessage, &flows[i], uint32(i))
	}
	const valueMax = 1_000_000 - 100 // goflow2's transport.kafka.maxmsgbytes, less the batch's own header
	perValue := func(n int) func(*testing.B, *hop) time.Duration {
		return func(b *testing.B, h *hop) time.Duration {
			began := cpuTime(b)
			for p, next := 0, 0; p < partitions; p++ {
				var values []kgo.Record
				size := 0
				for end := len(messages) * (p + 1) / partitions; next < end; {
					var value []byte
					for range min(n, end-next) {
						m, err := messages[next].MarshalBinary()
						if err != nil {
							b.Fatal(err)
						}
						value = append(value, m...)
						next++
					}
					if size += len(value) + maxRecordOverhead; size > valueMax {
						h.produce(b, p, values)
						values, size = values[:0], len(value)+maxRecordOverhead
					}
					values = append(values, kgo.Record{Value: kgo.NewBytes(value)})
				}
				h.produce(b, p, values)
			}
			return cpuTime(b) - began
		}
	}
	foreign := func(b *testing.B) func([]byte, *flow.Batch) error {
		f := newForeign(b, formatGoflow2Protobuf)
		return func(value []byte, out *flow.Batch) error {
			_, err := f.Decode(value, 1, 0, out)
			return err
		}
	}
	enc := NewEncoder(names)
	var cut []flow.Record
	var values [partitions][]byte
	var requests [partitions][]Message
	ours := func(b *testing.B, h *hop) (cpu time.Duration) {
		for p := range turn {
			values[p], requests[p] = values[p][:0], requests[p][:0]
			for i, records := range turn[p] {
				// Divided by partition they have just been written, and lie in the caches.
				cut = append(cut[:0], records...)
				began, from := cpuTime(b), len(values[p])
				values[p] = enc.Append(values[p], Header{Seq: uint64(i)}, cut)
				cpu += cpuTime(b) - began
				requests[p] = append(requests[p], Message{Value: values[p][from:]})
			}
		}
		began := cpuTime(b)
		var all errgroup.Group
		for p := range requests {
			all.Go(func() error {
				_, err := h.c.Produce(b.Context(), h.topic, p, requests[p]...)
				return err
			})
		}
		if err := all.Wait(); err != nil {
			b.Fatal(err)
		}
		return cpu + cpuTime(b) - began
	}
	for _, c := range []struct {
		name  string
		codec kgo.Compression
		send  func(*testing.B, *hop) time.Duration
		read  func(*testing.B) func([]byte, *flow.Batch) error
	}{
		{"postern", kgo.Snappy, ours, func(*testing.B) func([]byte, *flow.Batch) error {
			dec := NewDecoder(names)
			return func(value []byte, out *flow.Batch) error {
				_, err := dec.Decode(value, out)
				return err
			}
		}},
		{"goflow2-each", 0, perValue(1), foreign},
		{"goflow2-each-zstd", kgo.Zstd, perValue(1), foreign},
		{"goflow2-1024", 0, perValue(1024), foreign},
		{"goflow2-1024-zstd", kgo.Zstd, perValue(1024), foreign},
	} {
		b.Run(c.name, func(b *testing.B) {
			cfg := realConfig(br.Addr())
			cfg.Prefix = br.Topic(b, "hop")
			h := &hop{topic: cfg.Topic(TopicFlows), codec: c.codec}
			h.open(b, cfg)
			decode, out := c.read(b), flow.NewBatch(BatchRows, nil)
			var next [partitions]int64
			consume := func() {
				got := 0
				for p := 0; got < len(flows); p = (p + 1) % partitions {
					f, err := h.c.Fetch(b.Context(), h.topic, p, next[p], 4<<20, 10*time.Millisecond)
					if err != nil {
						b.Fatal(err)
					}
					for _, r := range f.Records {
						out.Records = out.Records[:0]
						if err := decode(r.Value, out); err != nil {
							b.Fatal(err)
						}
						got += len(out.Records)
					}
					next[p] = f.Next
				}
			}
			for began := time.Now(); time.Since(began) < time.Second; { // until connections, buffers and the broker are warm
				c.send(b, h)
				consume()
			}
			var sending, reading time.Duration
			var sent, fetched int64
			for b.Loop() {
				wire := h.written.Load()
				sending += c.send(b, h)
				sent += h.written.Load() - wire
				wire = h.read.Load()
				began := cpuTime(b)
				consume()
				reading += cpuTime(b) - began
				fetched += h.read.Load() - wire
			}
			n := float64(b.N * len(flows))
			b.ReportMetric(float64((sending+reading).Nanoseconds())/n, "cpu-ns/flow")
			b.ReportMetric(float64(sending.Nanoseconds())/n, "produce-ns/flow")
			b.ReportMetric(float64(reading.Nanoseconds())/n, "consume-ns/flow")
			b.ReportMetric(float64(sent)/n, "sent-B/flow")
			b.ReportMetric(float64(fetched)/n, "fetched-B/flow")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// hop is a client that counts what goes through its sockets, and a topic.
type hop struct {
	c             *Client
	topic         string
	codec         kgo.Compression
	written, read atomic.Int64
}

func (h *hop) open(b *testing.B, cfg Config) {
	b.Helper()
	c, err := Open(cfg, nil, Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	dial := c.trans.Dial
	c.trans.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		return countedConn{conn, h}, err
	}
	if err := c.Apply(b.Context(), []TopicSpec{{Name: h.topic, Partitions: 12, Replication: 1}}, func(string) {}); err != nil {
		b.Fatal(err)
	}
	h.c = c
}

// produce is what a client does that has nothing to do with our own topic.
func (h *hop) produce(b *testing.B, partition int, records []kgo.Record) {
	b.Helper()
	res, err := h.c.kafka.Produce(b.Context(), &kgo.ProduceRequest{Topic: h.topic, Partition: partition, RequiredAcks: kgo.RequireAll,
		Records: kgo.NewRecordReader(records...), Compression: h.codec})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		b.Fatal(err)
	}
}

type countedConn struct {
	net.Conn
	h *hop
}

func (c countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.h.read.Add(int64(n))
	return n, err
}

func (c countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.h.written.Add(int64(n))
	return n, err
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// goflowMessageOf is the message that goflow2 makes of a record that came by IPFIX.
func goflowMessageOf(m *flowpb.FlowMessage, r *flow.Record, seq uint32) {
	address := func(a flow.Addr) []byte { return a.Netip().AsSlice() }
	m.Type = flowpb.FlowMessage_IPFIX
	m.TimeReceivedNs, m.TimeFlowStartNs, m.TimeFlowEndNs = uint64(r.Received)*1e6, uint64(r.Start)*1e6, uint64(r.End)*1e6
	m.SequenceNum, m.ObservationDomainId, m.SamplingRate = seq, r.Domain, uint64(r.SamplingRate)
	m.SamplerAddress, m.SrcAddr, m.DstAddr = address(r.Exporter), address(r.Src), address(r.Dst)
	m.Bytes, m.Packets = r.BytesRaw, r.PacketsRaw
	m.InIf, m.OutIf, m.Proto, m.SrcPort, m.DstPort = r.InIf, r.OutIf, uint32(r.Proto), uint32(r.SrcPort), uint32(r.DstPort)
	m.TcpFlags, m.IcmpType, m.IcmpCode = uint32(r.TCPFlags), uint32(r.ICMPType), uint32(r.ICMPCode)
	m.Etype = 0x0800
	if !r.Src.Is4() {
		m.Etype = 0x86dd
	}
}
