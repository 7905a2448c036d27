package kafka

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/netsampler/goflow2/v2/format"
	_ "github.com/netsampler/goflow2/v2/format/binary"
	_ "github.com/netsampler/goflow2/v2/format/json"
	flowpb "github.com/netsampler/goflow2/v2/pb"
	protoproducer "github.com/netsampler/goflow2/v2/producer/proto"
	"github.com/netsampler/goflow2/v2/utils"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest"
	"github.com/postern/postern/ingest/exporter"
	"github.com/postern/postern/ingest/goflow2"
)

var goflowNow = flow.TimeOf(time.Date(2026, 10, 5, 8, 0, 0, 0, time.UTC))

// goflowPipe is goflow2's pipeline as its binary puts it together; what would go
// to Kafka gathers in values.
type goflowPipe struct {
	*utils.AutoFlowPipe
	values [][]byte
}

func (p *goflowPipe) Send(_, data []byte) error {
	p.values = append(p.values, bytes.Clone(data))
	return nil
}

func newGoflowPipe(t testing.TB, formatName string, cfg *protoproducer.ProducerConfig) *goflowPipe {
	t.Helper()
	f, err := format.FindFormat(formatName)
	if err != nil {
		t.Fatal(err)
	}
	mapped, err := cfg.Compile()
	if err != nil {
		t.Fatal(err)
	}
	producer, err := protoproducer.CreateProtoProducer(mapped, protoproducer.CreateSamplingSystem)
	if err != nil {
		t.Fatal(err)
	}
	p := &goflowPipe{}
	p.AutoFlowPipe = utils.NewFlowPipe(&utils.PipeConfig{Format: f, Transport: p, Producer: producer})
	return p
}

func (p *goflowPipe) feed(t testing.TB, payload []byte, received flow.Time) {
	t.Helper()
	src := netip.MustParseAddrPort("192.0.2.1:2055")
	if err := p.DecodeFlow(&utils.Message{Src: src, Dst: src, Payload: payload, Received: received.Std()}); err != nil {
		t.Fatal(err)
	}
}

func newForeign(t testing.TB, formatName string) *Foreign {
	t.Helper()
	f, err := NewForeign(formatName, flow.NewNames(0))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// goflowRecords are flows of all kinds, zeros where zeros mean something.
func goflowRecords(n int) []flow.Record {
	rng := rand.New(rand.NewPCG(7, 8))
	const basics = flow.HasStart | flow.HasEnd | flow.HasSrc | flow.HasDst | flow.HasProto | flow.HasBytes | flow.HasPackets | flow.HasInIf | flow.HasOutIf
	out := make([]flow.Record, n)
	for i := range out {
		r := &out[i]
		r.Has = basics
		r.Src, r.Dst = flow.AddrFrom4(rng.Uint32()), flow.AddrFrom4(rng.Uint32())
		if rng.IntN(3) == 0 {
			r.Src, r.Dst = flow.Addr{Hi: 0x20010db8 << 32, Lo: rng.Uint64()}, flow.Addr{Hi: 0x20010db8 << 32, Lo: rng.Uint64()}
		}
		r.Start = goflowNow - 1 - flow.Time(rng.IntN(3_000_000))
		r.End = r.Start + flow.Time(rng.IntN(100_000))
		r.PacketsRaw = 1 + rng.Uint64N(10)
		r.BytesRaw = r.PacketsRaw * (100 + rng.Uint64N(1300))
		r.InIf, r.OutIf = uint32(rng.IntN(6)), uint32(rng.IntN(6))
		switch rng.IntN(5) {
		case 0:
			r.Proto = flow.ProtoICMP
			if !r.Src.Is4() {
				r.Proto = flow.ProtoICMPv6
			}
			r.ICMPType, r.ICMPCode = uint8([]int{0, 3, 8, 128, 129, 255}[rng.IntN(6)]), uint8(rng.IntN(3))
			r.Has |= flow.HasICMP
		case 1:
			r.Proto = flow.ProtoUDP
			r.SrcPort, r.DstPort = uint16(rng.IntN(3)*rng.IntN(1<<16)), uint16(rng.IntN(3)*rng.IntN(1<<16))
			r.Has |= flow.HasSrcPort | flow.HasDstPort
		case 2:
			if r.Proto = []uint8{2, 47, 50, 132}[rng.IntN(4)]; r.Proto == flow.ProtoSCTP {
				r.SrcPort, r.DstPort = uint16(rng.Uint32()|1), uint16(rng.Uint32()|1)
				r.Has |= flow.HasSrcPort | flow.HasDstPort
			}
		default:
			r.Proto = flow.ProtoTCP
			r.SrcPort, r.DstPort, r.TCPFlags = uint16(rng.Uint32()), uint16(rng.Uint32()), uint16(rng.IntN(256))
			r.Has |= flow.HasSrcPort | flow.HasDstPort | flow.HasTCPFlags
		}
	}
	return out
}

// goflowDatagrams are n records as an exporter sends them.
func goflowDatagrams(t testing.TB, cfg exporter.Config, n int) (out [][]byte) {
	t.Helper()
	x, err := exporter.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.Export(goflowNow, goflowRecords(n), func(b []byte) error {
		out = append(out, bytes.Clone(b))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// goflowFields are what goflow2 carries of a record.
var goflowFields = []struct {
	name  string
	value func(r *flow.Record) any
	has   flow.Has // 0 is always there
}{
	{"source", func(r *flow.Record) any { return r.Source }, 0},
	{"received", func(r *flow.Record) any { return r.Received }, 0},
	{"exporter", func(r *flow.Record) any { return r.Exporter }, 0},
	{"domain", func(r *flow.Record) any { return r.Domain }, 0},
	{"sampling_rate", func(r *flow.Record) any { return r.SamplingRate }, 0},
	{"start", func(r *flow.Record) any { return r.Start }, 0},
	{"end", func(r *flow.Record) any { return r.End }, 0},
	{"has_times", func(r *flow.Record) any { return r.Has & (flow.HasStart | flow.HasEnd) }, 0},
	{"quality", func(r *flow.Record) any { return r.Quality }, 0},
	{"src", func(r *flow.Record) any { return r.Src }, flow.HasSrc},
	{"dst", func(r *flow.Record) any { return r.Dst }, flow.HasDst},
	{"proto", func(r *flow.Record) any { return r.Proto }, flow.HasProto},
	{"src_port", func(r *flow.Record) any { return r.SrcPort }, flow.HasSrcPort},
	{"dst_port", func(r *flow.Record) any { return r.DstPort }, flow.HasDstPort},
	{"tcp_flags", func(r *flow.Record) any { return r.TCPFlags }, flow.HasTCPFlags},
	{"bytes", func(r *flow.Record) any { return r.BytesRaw }, flow.HasBytes},
	{"packets", func(r *flow.Record) any { return r.PacketsRaw }, flow.HasPackets},
	{"in_if", func(r *flow.Record) any { return r.InIf }, flow.HasInIf},
	{"out_if", func(r *flow.Record) any { return r.OutIf }, flow.HasOutIf},
	{"icmp", func(r *flow.Record) any { return uint16(r.ICMPType)<<8 | uint16(r.ICMPCode) }, flow.HasICMP},
	{"forwarding_status", func(r *flow.Record) any { return r.ForwardingStatus }, flow.HasForwardingStatus},
	{"direction", func(r *flow.Record) any { return r.Direction }, flow.HasDirection},
	{"biflow_direction", func(r *flow.Record) any { return r.BiflowDirection }, flow.HasBiflowDirection},
}

// How a field may deviate.
const (
	goflowZero    = "zero" // our decoder has zero, a message of goflow2 does not tell it from nothing
	goflowUntold  = "untold"
	goflowDiffers = "differs"
)

// goflowDeviation is where the way through goflow2 tells something else than our
// own decoder, and why.
type goflowDeviation struct {
	source, field, how, reason string
	proto                      uint8 // 0 is any
}

const (
	goflowZeroReason      = "version 3 of protocol buffers does not tell a zero from a field that is not there, and a template may lack it"
	goflowNoDomainReason  = "goflow2 fills observation_domain_id for v9 and IPFIX only: engine and sub-agent are lost"
	goflowICMPReason      = "goflow2 reads the type only the first time its ICMP parser is called for a packet, and counts the call before it makes it"
	goflowSCTPReason      = "goflow2 reads no SCTP header of a sampled packet"
	goflowDirectionReason = "goflow2 does not read 61 unless its mapping says so"
)

var goflowDeviations = []goflowDeviation{
	{"netflow_v5", "domain", goflowDiffers, goflowNoDomainReason, 0},
	{"sflow_v5", "domain", goflowDiffers, goflowNoDomainReason, 0},
	{"netflow_v9", "src_port", goflowZero, goflowZeroReason, 0},
	{"netflow_v9", "dst_port", goflowZero, goflowZeroReason, 0},
	{"netflow_v9", "tcp_flags", goflowZero, goflowZeroReason, 0},
	{"netflow_v9", "in_if", goflowZero, goflowZeroReason, 0},
	{"netflow_v9", "out_if", goflowZero, goflowZeroReason, 0},
	{"netflow_v9", "icmp", goflowZero, goflowZeroReason, 0},
	{"netflow_v9", "forwarding_status", goflowZero, goflowZeroReason, 0},
	{"netflow_v9", "direction", goflowUntold, goflowDirectionReason, 0},
	{"ipfix", "src_port", goflowZero, goflowZeroReason, 0},
	{"ipfix", "dst_port", goflowZero, goflowZeroReason, 0},
	{"ipfix", "tcp_flags", goflowZero, goflowZeroReason, 0},
	{"ipfix", "in_if", goflowZero, goflowZeroReason, 0},
	{"ipfix", "out_if", goflowZero, goflowZeroReason, 0},
	{"ipfix", "icmp", goflowZero, goflowZeroReason, 0},
	{"ipfix", "forwarding_status", goflowZero, goflowZeroReason, 0},
	{"ipfix", "direction", goflowUntold, goflowDirectionReason, 0},
	{"sflow_v5", "in_if", goflowZero, goflowZeroReason, 0},
	{"sflow_v5", "out_if", goflowZero, goflowZeroReason, 0},
	{"sflow_v5", "icmp", goflowUntold, goflowICMPReason, 0},
	{"sflow_v5", "src_port", goflowUntold, goflowSCTPReason, flow.ProtoSCTP},
	{"sflow_v5", "dst_port", goflowUntold, goflowSCTPReason, flow.ProtoSCTP},
}

// TestGoflow2Chain takes datagrams of every protocol through goflow2's pipeline
// and back, as protobuf and as JSON, and through our own decoder: every field that
// goflow2 carries must be equal but for the deviations, which must all occur.
func TestGoflow2Chain(t *testing.T) {
	used := map[goflowDeviation]bool{}
	for _, source := range []flow.Source{flow.SourceNetFlowV5, flow.SourceNetFlowV9, flow.SourceIPFIX, flow.SourceSFlowV5} {
		for _, rate := range []uint32{0, 100} {
			for _, rich := range []bool{false, true} {
				t.Run(fmt.Sprintf("%v/%d/%v", source, rate, rich), func(t *testing.T) {
					cfg := exporter.Config{Protocol: source, Domain: 42, SamplingRate: rate, Rich: rich, Names: flow.NewNames(0),
						Agent: flow.MustParseAddr("192.0.2.77"), TemplatePackets: 5}
					received := goflowNow + 3
					own := flow.NewBatch(4096, nil)
					decoder := ingest.NewDecoder(ingest.DecoderConfig{BelieveClock: true}, cfg.Names, nil)
					pipes := []*goflowPipe{newGoflowPipe(t, "bin", nil), newGoflowPipe(t, "json", nil)}
					for i, b := range goflowDatagrams(t, cfg, 700) {
						decoder.Decode(&ingest.Datagram{Position: uint64(i), Received: received, Exporter: flow.MustParseAddr("192.0.2.1"), Port: 2055, Payload: b}, own)
						for _, p := range pipes {
							p.feed(t, b, received)
						}
					}
					if n := len(own.Records); n < 400 {
						t.Fatalf("our decoder gave %d records only", n)
					}
					var decoded [3][]flow.Record
					for i, values := range [][][]byte{pipes[0].values, pipes[1].values, {bytes.Join(pipes[0].values, nil)}} {
						f := newForeign(t, []string{formatGoflow2Protobuf, formatGoflow2JSON, formatGoflow2Protobuf}[i])
						out := flow.NewBatch(16, nil)
						for j, v := range values {
							if refused, err := f.Decode(v, uint64(j), received+500, out); refused != 0 || err != nil {
								t.Fatalf("value %d refused: %v, %x", j, err, v)
							}
						}
						decoded[i] = out.Records
					}
					// JSON and a sequence behind lengths give what single messages give.
					if diff := cmp.Diff(decoded[0], decoded[1]); diff != "" {
						t.Fatalf("protobuf and JSON differ:\n%s", diff)
					}
					if diff := cmp.Diff(decoded[0], decoded[2]); diff != "" {
						t.Fatalf("single messages and a sequence of them differ:\n%s", diff)
					}
					if len(decoded[0]) != len(own.Records) {
						t.Fatalf("%d records by goflow2, %d by our decoder", len(decoded[0]), len(own.Records))
					}
					wrong := 0
					for i := range own.Records {
						for _, m := range goflowCompare(&own.Records[i], &decoded[0][i], used) {
							if wrong++; wrong <= 10 {
								t.Errorf("record %d: %s", i, m)
							}
						}
					}
					if wrong > 10 {
						t.Errorf("and %d more", wrong-10)
					}
				})
			}
		}
	}
	for _, d := range goflowDeviations {
		if !used[d] {
			t.Errorf("deviation %v is listed but does not occur", d)
		}
	}
}

func goflowCompare(own, foreign *flow.Record, used map[goflowDeviation]bool) (wrong []string) {
	for _, f := range goflowFields {
		a, b := f.value(own), f.value(foreign)
		hasA, hasB := f.has == 0 || own.Any(f.has), f.has == 0 || foreign.Any(f.has)
		if hasA == hasB && (!hasA || a == b) {
			continue
		}
		how := goflowDiffers
		if hasA && !hasB {
			how = goflowUntold
			if fmt.Sprint(a) == "0" {
				how = goflowZero
			}
		}
		excepted := false
		for _, d := range goflowDeviations {
			if d.source == own.Source.String() && d.field == f.name && (d.proto == 0 || d.proto == own.Proto) && (d.how == how || d.how == goflowUntold && how == goflowZero) {
				excepted, used[d] = true, true
			}
		}
		if !excepted {
			wrong = append(wrong, fmt.Sprintf("%s %s: ours %v (%v), goflow2's %v (%v), protocol %d", f.name, how, a, hasA, b, hasB, own.Proto))
		}
	}
	return wrong
}

// TestGoflow2Mapping has goflow2 tell the direction, as its own mapping.yaml does,
// and times in the form of RFC 3339: zero is then a direction.
func TestGoflow2Mapping(t *testing.T) {
	cfg := &protoproducer.ProducerConfig{}
	cfg.Formatter.Fields = []string{"type", "time_received_ns", "time_flow_start_ns", "time_flow_end_ns", "src_addr", "dst_addr", "flow_direction"}
	cfg.Formatter.Protobuf = []protoproducer.ProtobufFormatterConfig{{Name: "flow_direction", Index: 42, Type: "varint"}}
	cfg.Formatter.Render = map[string]protoproducer.RendererID{"time_received_ns": protoproducer.RendererDateTimeNano, "time_flow_start_ns": protoproducer.RendererDateTimeNano}
	cfg.IPFIX.Mapping = []protoproducer.NetFlowMapField{{Type: 61, Destination: "flow_direction"}}
	for i, name := range []string{"bin", "json"} {
		p := newGoflowPipe(t, name, cfg)
		own := flow.NewBatch(16, nil)
		decoder := ingest.NewDecoder(ingest.DecoderConfig{BelieveClock: true}, flow.NewNames(0), nil)
		x, err := exporter.New(exporter.Config{Protocol: flow.SourceIPFIX, Rich: true, Names: flow.NewNames(0)})
		if err != nil {
			t.Fatal(err)
		}
		rs := goflowRecords(2)
		rs[1].Direction = 1
		if _, err := x.Export(goflowNow, rs, func(b []byte) error {
			p.feed(t, b, goflowNow)
			decoder.Decode(&ingest.Datagram{Received: goflowNow, Payload: b}, own)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		out := flow.NewBatch(16, nil)
		f := newForeign(t, []string{formatGoflow2Protobuf, formatGoflow2JSON}[i])
		for _, v := range p.values {
			if _, err := f.Decode(v, 0, 0, out); err != nil {
				t.Fatalf("%v: %s", err, v)
			}
		}
		if len(out.Records) != 2 || len(own.Records) != 2 {
			t.Fatalf("%s: %d and %d records, want 2", name, len(out.Records), len(own.Records))
		}
		for j := range out.Records {
			r, o := &out.Records[j], &own.Records[j]
			if !r.Any(flow.HasDirection) || int(r.Direction) != j || r.Received != goflowNow || r.Start != o.Start || r.End != o.End || r.Src != o.Src {
				t.Errorf("%s: record %d is %+v, our decoder has %+v", name, j, r, o)
			}
		}
	}
}

func delimit(messages ...[]byte) (b []byte) {
	for _, m := range messages {
		b = append(protowire.AppendVarint(b, uint64(len(m))), m...)
	}
	return b
}

// randomFields are fields of numbers that messages have and of others, of any wire type.
func randomFields(rng *rand.Rand) (b []byte) {
	for range rng.IntN(20) {
		num := protowire.Number(1 + rng.IntN(1<<rng.IntN(16)))
		switch kind := rng.IntN(4); {
		case kind == 0:
			b = protowire.AppendFixed32(protowire.AppendTag(b, num, protowire.Fixed32Type), rng.Uint32())
		case kind == 1:
			b = protowire.AppendFixed64(protowire.AppendTag(b, num, protowire.Fixed64Type), rng.Uint64())
		case kind == 2 && num != 103: // packed numbers
			b = protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), make([]byte, rng.IntN(40)))
		default:
			b = protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), rng.Uint64()>>rng.IntN(65))
		}
	}
	return b
}

// TestGoflow2Framing: single messages and sequences are told apart, whatever the
// length of the messages is.
func TestGoflow2Framing(t *testing.T) {
	f := newForeign(t, formatGoflow2Protobuf)
	rng := rand.New(rand.NewPCG(3, 4))
	out := flow.NewBatch(16, nil)
	check := func(value []byte, want int) {
		t.Helper()
		out.Reset()
		if refused, err := f.Decode(value, 1, goflowNow, out); refused != 0 || err != nil || len(out.Records) != want {
			t.Fatalf("%x: %d records, %d refused (%v), want %d", value, len(out.Records), refused, err, want)
		}
	}
	for size := range 400 {
		var messages [][]byte
		for range 1 + rng.IntN(5) {
			m := &flowpb.FlowMessage{Type: flowpb.FlowMessage_FlowType(1 + rng.IntN(4)), SrcAddr: []byte{10, 0, 0, 1}, NextHop: make([]byte, size)}
			m.ProtoReflect().SetUnknown(randomFields(rng))
			b, err := proto.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			messages = append(messages, b)
			check(b, 1)
			check(delimit(b), 1)
		}
		check(delimit(messages...), len(messages))
	}
	// Messages without a type, as others may write them.
	untyped, err := proto.Marshal(&flowpb.FlowMessage{SrcAddr: []byte{10, 0, 0, 1}, DstAddr: []byte{10, 0, 0, 2}, Proto: 6})
	if err != nil {
		t.Fatal(err)
	}
	check(untyped, 1)
	check(delimit(untyped, untyped), 2)
}

func TestGoflow2Refused(t *testing.T) {
	typed, err := proto.Marshal(&flowpb.FlowMessage{Type: flowpb.FlowMessage_IPFIX, SrcAddr: []byte{10, 0, 0, 1}, Bytes: 5})
	if err != nil {
		t.Fatal(err)
	}
	two := delimit(typed, typed)
	line := `{"type":"IPFIX","src_addr":"10.0.0.1"}`
	for _, c := range []struct {
		name, format, value string
		records, refused    int
		reason              error
	}{
		{"nothing", formatGoflow2Protobuf, "", 0, 1, errForeignEmpty},
		{"the last is cut", formatGoflow2Protobuf, string(two[:len(two)-1]), 1, 1, errProtoFrame},
		{"a message is cut", formatGoflow2Protobuf, string(typed[:len(typed)-1]), 0, 1, goflow2.ErrVarint},
		{"one between is broken", formatGoflow2Protobuf, string(delimit(typed, []byte{0x0b}, typed)), 2, 1, goflow2.ErrTag},
		{"one between is another's", formatGoflow2Protobuf, string(delimit(typed, []byte{0xf8, 0x3e, 1}, typed)), 2, 1, errProtoNoFlow},
		{"an empty one", formatGoflow2Protobuf, string(delimit(typed, nil)), 1, 1, errProtoNoFlow},
		{"another's message", formatGoflow2Protobuf, "\xf8\x3e\x01", 0, 1, errProtoNoFlow},
		{"JSON as protobuf", formatGoflow2Protobuf, line, 0, 1, goflow2.ErrTag},
		{"nothing", formatGoflow2JSON, "", 0, 1, errForeignEmpty},
		{"white space", formatGoflow2JSON, " \r\n\t", 0, 1, errForeignEmpty},
		{"no array's element", formatGoflow2JSON, "[]", 0, 1, errForeignEmpty},
		{"protobuf as JSON", formatGoflow2JSON, "\x08\x04", 0, 1, errJSONObject},
		{"lines", formatGoflow2JSON, line + "\n" + line + "\r\n\n", 2, 0, nil},
		{"without lines", formatGoflow2JSON, line + line, 2, 0, nil},
		{"an array", formatGoflow2JSON, " [" + line + " , " + line + "]\n", 2, 0, nil},
		{"arrays", formatGoflow2JSON, "[" + line + "][" + line + "]" + line, 3, 0, nil},
		{"an array in lines", formatGoflow2JSON, "[\n" + line + ",\n" + `{"type":}` + ",\n" + line + "\n]", 2, 1, errJSONSyntax},
		{"an array that does not end", formatGoflow2JSON, "[" + line, 1, 1, errJSONArray},
		{"an array with a comma too many", formatGoflow2JSON, "[" + line + ",]", 1, 2, errJSONObject},
		{"an array without commas", formatGoflow2JSON, "[" + line + line + "]", 1, 2, errJSONSyntax},
		{"commas without an array", formatGoflow2JSON, line + "," + line, 1, 1, errJSONObject},
		{"a cut line", formatGoflow2JSON, line + "\n" + line[:20] + "\n" + line, 2, 1, errJSONSyntax},
		{"a cut line at a comma", formatGoflow2JSON, line[:15] + ",\n" + line, 1, 1, errJSONSyntax},
		{"another's object", formatGoflow2JSON, `{"level":"info"}` + line + "{}", 1, 2, errForeignNoFlow},
		{"a number", formatGoflow2JSON, "17", 0, 1, errJSONObject},
		{"depth", formatGoflow2JSON, `{"x":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + "}", 0, 1, errJSONDeep},
	} {
		f := newForeign(t, c.format)
		out := flow.NewBatch(1, nil)
		refused, err := f.Decode([]byte(c.value), 7, goflowNow, out)
		if len(out.Records) != c.records || refused != c.refused || !errors.Is(f.Reason(), c.reason) || (err != nil) != (c.records == 0) {
			t.Errorf("%s, %s: %d records, %d refused, reason %v, error %v; want %d, %d, %v", c.format, c.name,
				len(out.Records), refused, f.Reason(), err, c.records, c.refused, c.reason)
		}
		seen := map[uint64]bool{}
		for i := range out.Records {
			if seen[out.Records[i].ID] {
				t.Errorf("%s, %s: an id twice", c.format, c.name)
			}
			seen[out.Records[i].ID] = true
		}
	}
	if _, err := NewForeign("goflow", flow.NewNames(0)); err == nil || !strings.Contains(err.Error(), "goflow2-json, goflow2-protobuf") {
		t.Errorf("an unknown format gives %v", err)
	}
}

// TestGoflow2Bounded: no value makes more records than the cap.
func TestGoflow2Bounded(t *testing.T) {
	const extra = 5
	for name, one := range map[string]string{formatGoflow2Protobuf: "\x02\x08\x04", formatGoflow2JSON: `{"type":4}`} {
		f := newForeign(t, name)
		out := flow.NewBatch(maxForeignRecords, nil)
		refused, err := f.Decode([]byte(strings.Repeat(one, maxForeignRecords+extra)), 0, goflowNow, out)
		if len(out.Records) != maxForeignRecords || refused != extra || err != nil || !errors.Is(f.Reason(), errForeignMany) {
			t.Errorf("%s: %d records, %d refused, %v, %v", name, len(out.Records), refused, err, f.Reason())
		}
	}
}

// TestGoflow2Version1 reads what goflow2 1.x writes.
func TestGoflow2Version1(t *testing.T) {
	sec := uint64(goflowNow / 1000)
	var b []byte
	add := func(num protowire.Number, v uint64) {
		b = protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
	}
	addBytes := func(num protowire.Number, v ...byte) {
		b = protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), v)
	}
	add(1, 3)
	add(2, sec)
	add(3, 100)
	add(5, sec-5)
	addBytes(6, 10, 0, 0, 1)
	addBytes(7, 10, 0, 0, 2)
	add(9, 1500)
	add(10, 3)
	addBytes(11, 192, 0, 2, 1)
	add(20, 6)
	add(21, 40000)
	add(22, 443)
	add(26, 27)
	add(30, 0x800)
	add(38, sec-9)
	add(42, 1)
	add(63, (sec-9)*1000+250)
	add(64, (sec-5)*1000+750)
	text := fmt.Sprintf(`{"Type":"NETFLOW_V9","TimeReceived":%d,"SequenceNum":3,"SamplingRate":100,"FlowDirection":1,"SamplerAddress":"192.0.2.1",`+
		`"TimeFlowStart":%d,"TimeFlowEnd":%d,"TimeFlowStartMs":%d,"TimeFlowEndMs":%d,"Bytes":1500,"Packets":3,"SrcAddr":"10.0.0.1","DstAddr":"10.0.0.2",`+
		`"Etype":2048,"Proto":6,"SrcPort":40000,"DstPort":443,"InIf":0,"OutIf":0,"SrcMac":"00:00:00:00:00:00","TCPFlags":27,"IcmpType":0,"IcmpCode":0,`+
		`"FragmentOffset":0,"BiFlowDirection":0,"NextHop":"","HasMpls":false,"MplsLabelIp":"","AsPath":[],"IcmpName":"","ProtoName":"TCP"}`,
		sec, sec-9, sec-5, (sec-9)*1000+250, (sec-5)*1000+750)
	var names map[string]any
	if err := json.Unmarshal([]byte(text), &names); err != nil {
		t.Fatal(err)
	}
	want := flow.Record{ID: flow.Mix(9), Source: flow.SourceNetFlowV9, Exporter: flow.MustParseAddr("192.0.2.1"), Received: goflowNow,
		Start: goflowNow - 9000 + 250, End: goflowNow - 5000 + 750, Src: flow.MustParseAddr("10.0.0.1"), Dst: flow.MustParseAddr("10.0.0.2"),
		SamplingRate: 100, BytesRaw: 1500, PacketsRaw: 3, SrcPort: 40000, DstPort: 443, TCPFlags: 27, Proto: 6, Direction: 1,
		Has: flow.HasStart | flow.HasEnd | flow.HasSrc | flow.HasDst | flow.HasBytes | flow.HasPackets | flow.HasSrcPort | flow.HasDstPort |
			flow.HasTCPFlags | flow.HasProto | flow.HasDirection}
	lower := strings.NewReplacer("TimeReceived", "time_received", "TimeFlowStartMs", "time_flow_start_ms", "TCPFlags", "tcp_flags",
		":1500", `:"1500"`, `"Proto":6`, `"Proto":"TCP"`).Replace(text) // as other printers of the message do
	for i, value := range []string{string(b), text, lower} {
		f := newForeign(t, []string{formatGoflow2Protobuf, formatGoflow2JSON, formatGoflow2JSON}[i])
		out := flow.NewBatch(1, nil)
		if _, err := f.Decode([]byte(value), 9, goflowNow+100, out); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]flow.Record{want}, out.Records); diff != "" {
			t.Errorf("form %d (-want +got):\n%s", i, diff)
		}
	}
}

// TestGoflow2Meaning: what zeros and odd values mean.
func TestGoflow2Meaning(t *testing.T) {
	ns := func(at flow.Time) uint64 { return uint64(at) * 1e6 }
	const times = flow.HasStart | flow.HasEnd
	stack := func(l ...flowpb.FlowMessage_LayerStack) []flowpb.FlowMessage_LayerStack { return l }
	for _, c := range []struct {
		name     string
		m        *flowpb.FlowMessage
		received flow.Time
		check    func(r *flow.Record) bool
	}{
		{"v5 tells all", &flowpb.FlowMessage{Type: 2}, goflowNow, func(r *flow.Record) bool {
			return r.All(flow.HasSrcPort|flow.HasDstPort|flow.HasTCPFlags|flow.HasBytes|flow.HasPackets|flow.HasInIf|flow.HasOutIf|flow.HasProto) && r.Quality&flow.QualityCounterMissing == 0
		}},
		{"v5 echo reply", &flowpb.FlowMessage{Type: 2, Proto: 1}, goflowNow, func(r *flow.Record) bool { return r.Any(flow.HasICMP) }},
		{"v9 tells nothing", &flowpb.FlowMessage{Type: 3}, goflowNow, func(r *flow.Record) bool {
			return r.Has == 0 && r.Quality == flow.QualityAddressMissing|flow.QualityCounterMissing|flow.QualityTimeMissing && r.Start == goflowNow && r.Received == goflowNow
		}},
		{"v9 type in the port", &flowpb.FlowMessage{Type: 3, Proto: 1, DstPort: 0x0303}, goflowNow, func(r *flow.Record) bool {
			return r.Any(flow.HasICMP) && r.ICMPType == 3 && r.ICMPCode == 3 && r.DstPort == 0x0303
		}},
		{"IPFIX has no type in the port", &flowpb.FlowMessage{Type: 4, Proto: 1, DstPort: 0x0303}, goflowNow, func(r *flow.Record) bool { return !r.Any(flow.HasICMP) }},
		{"ICMP of TCP", &flowpb.FlowMessage{Type: 4, Proto: 6, IcmpType: 3}, goflowNow, func(r *flow.Record) bool { return !r.Any(flow.HasICMP) }},
		{"sFlow ICMP without its type", &flowpb.FlowMessage{Type: 1, Proto: 1, LayerStack: stack(0, 1, 7)}, goflowNow, func(r *flow.Record) bool { return !r.Any(flow.HasICMP) }},
		{"sFlow ICMP with its type", &flowpb.FlowMessage{Type: 1, Proto: 1, IcmpType: 8, LayerStack: stack(0, 1, 7)}, goflowNow, func(r *flow.Record) bool {
			return r.Any(flow.HasICMP) && r.ICMPType == 8
		}},
		{"sFlow null scan", &flowpb.FlowMessage{Type: 1, Proto: 6, LayerStack: stack(0, 1, 3)}, goflowNow, func(r *flow.Record) bool {
			return r.All(flow.HasTCPFlags | flow.HasSrcPort | flow.HasDstPort)
		}},
		{"sFlow TCP in GRE", &flowpb.FlowMessage{Type: 1, Proto: 47, LayerStack: stack(0, 1, 9, 1, 3)}, goflowNow, func(r *flow.Record) bool {
			return !r.Any(flow.HasTCPFlags | flow.HasSrcPort | flow.HasDstPort)
		}},
		{"sFlow fragment", &flowpb.FlowMessage{Type: 1, Proto: 17, SrcPort: 7, DstPort: 8, FragmentOffset: 185, LayerStack: stack(0, 1, 4)}, goflowNow, func(r *flow.Record) bool {
			return !r.Any(flow.HasSrcPort | flow.HasDstPort)
		}},
		{"sFlow interfaces", &flowpb.FlowMessage{Type: 1, InIf: 3, OutIf: 2<<30 | 5}, goflowNow, func(r *flow.Record) bool {
			return r.InIf == 3 && r.Any(flow.HasInIf) && !r.Any(flow.HasOutIf)
		}},
		{"sFlow times", &flowpb.FlowMessage{Type: 1, TimeReceivedNs: ns(goflowNow), TimeFlowStartNs: ns(goflowNow), TimeFlowEndNs: ns(goflowNow)}, goflowNow + 5, func(r *flow.Record) bool {
			return r.Start == goflowNow && r.End == goflowNow && !r.Any(times) && r.Quality&flow.QualityTimeMissing == 0
		}},
		{"export time", &flowpb.FlowMessage{Type: 4, TimeReceivedNs: ns(goflowNow) + 7e6, TimeFlowStartNs: ns(goflowNow), TimeFlowEndNs: ns(goflowNow)}, 0, func(r *flow.Record) bool {
			return r.Start == goflowNow && r.End == goflowNow && !r.Any(times) && r.Quality&flow.QualityTimeMissing != 0
		}},
		{"whole seconds before", &flowpb.FlowMessage{Type: 4, TimeReceivedNs: ns(goflowNow) + 7e9, TimeFlowStartNs: ns(goflowNow), TimeFlowEndNs: ns(goflowNow)}, 0, func(r *flow.Record) bool {
			return r.All(times) && r.Quality&flow.QualityTimeMissing == 0
		}},
		{"wrapped uptime", &flowpb.FlowMessage{Type: 3, TimeReceivedNs: ns(goflowNow), TimeFlowStartNs: ns(goflowNow - 9 + 1<<32), TimeFlowEndNs: ns(goflowNow - 8)}, 0, func(r *flow.Record) bool {
			return r.All(times) && r.Start == goflowNow-9 && r.End == goflowNow-8
		}},
		{"a start before 1970", &flowpb.FlowMessage{Type: 3, TimeReceivedNs: ns(86_400_000), TimeFlowStartNs: ns(86_400_000 + 1<<31 + 1), TimeFlowEndNs: ns(86_400_000)}, 0, func(r *flow.Record) bool {
			return r.Has&times == flow.HasEnd && r.Start == 86_400_000 && r.End == 86_400_000
		}},
		{"a start of the future", &flowpb.FlowMessage{Type: 4, TimeReceivedNs: ns(goflowNow), TimeFlowStartNs: ns(goflowNow + 1<<32), TimeFlowEndNs: ns(goflowNow - 8)}, 0, func(r *flow.Record) bool {
			return r.Has&times == flow.HasEnd && r.Start == goflowNow-8 && r.End == goflowNow-8
		}},
		{"reversed", &flowpb.FlowMessage{Type: 3, TimeReceivedNs: ns(goflowNow), TimeFlowStartNs: ns(goflowNow - 5), TimeFlowEndNs: ns(goflowNow - 8)}, 0, func(r *flow.Record) bool {
			return r.End == r.Start && r.Quality&flow.QualityTimeReversed != 0
		}},
		{"receipt of another year", &flowpb.FlowMessage{Type: 3, TimeReceivedNs: 1<<63 - 1}, goflowNow, func(r *flow.Record) bool { return r.Received == goflowNow }},
		{"receipt some days ago", &flowpb.FlowMessage{Type: 3, TimeReceivedNs: ns(goflowNow - 1e8)}, goflowNow, func(r *flow.Record) bool { return r.Received == goflowNow-1e8 }},
		{"numbers too large", &flowpb.FlowMessage{Type: 4, Proto: 256 + 6, SrcPort: 1 << 16, DstPort: 1<<16 + 443, TcpFlags: 1 << 16, SamplingRate: 1 << 40}, goflowNow, func(r *flow.Record) bool {
			return !r.Any(flow.HasProto|flow.HasSrcPort|flow.HasDstPort|flow.HasTCPFlags) && r.SamplingRate == 1<<32-1
		}},
		{"addresses of no length", &flowpb.FlowMessage{Type: 4, SrcAddr: make([]byte, 5), DstAddr: make([]byte, 4), SamplerAddress: make([]byte, 4)}, goflowNow, func(r *flow.Record) bool {
			return r.Has == flow.HasDst && r.Dst == flow.AddrFrom4(0) && r.Exporter.IsZero() && r.Quality&flow.QualityAddressMissing != 0
		}},
	} {
		b, err := proto.Marshal(c.m)
		if err != nil {
			t.Fatal(err)
		}
		out := flow.NewBatch(1, nil)
		f := newForeign(t, formatGoflow2Protobuf)
		if _, err := f.Decode(b, 1, c.received, out); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if r := &out.Records[0]; !c.check(r) {
			t.Errorf("%s: %+v", c.name, r)
		}
	}
}

// TestGoflow2SampledICMP holds the reason for not taking a zero for the type of a
// sampled ICMP packet. Should goflow2 read it one day, layer_stack says that it did.
func TestGoflow2SampledICMP(t *testing.T) {
	frame := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0,
		0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
		3, 1, 0, 0, 0, 0, 0, 0}
	var m protoproducer.ProtoProducerMessage
	if err := protoproducer.ParsePacket(&m, frame, nil, nil); err != nil {
		t.Fatal(err)
	}
	if m.Proto != 1 || len(m.LayerStack) != 3 || m.IcmpType != 0 || m.IcmpCode != 0 {
		t.Errorf("goflow2 reads %v", &m.FlowMessage)
	}
}

// TestGoflow2Values: the forms a value in JSON may have.
func TestGoflow2Values(t *testing.T) {
	f := newForeign(t, formatGoflow2JSON)
	for text, check := range map[string]func(r *flow.Record) bool{
		`{"bytes":"18446744073709551615"}`: func(r *flow.Record) bool { return r.BytesRaw == 1<<64-1 },
		`{"bytes":18446744073709551616}`:   func(r *flow.Record) bool { return !r.Any(flow.HasBytes) },
		`{"bytes":-1}`:                     func(r *flow.Record) bool { return !r.Any(flow.HasBytes) },
		`{"bytes":1.5e3}`:                  func(r *flow.Record) bool { return r.BytesRaw == 1500 },
		`{"bytes":null}`:                   func(r *flow.Record) bool { return !r.Any(flow.HasBytes) },
		`{"bytes":{"a":[1,{}]}}`:           func(r *flow.Record) bool { return !r.Any(flow.HasBytes) },
		`{"bytes":1,"bytes":2}`:            func(r *flow.Record) bool { return r.BytesRaw == 2 },
		`{"proto":"6"}`:                    func(r *flow.Record) bool { return r.Proto == 6 },
		`{"proto":"IPv6-ICMP"}`:            func(r *flow.Record) bool { return r.Proto == 58 },
		`{"proto":"unknown"}`:              func(r *flow.Record) bool { return !r.Any(flow.HasProto) },
		`{"type":1,"proto":6}`:             func(r *flow.Record) bool { return r.Source == flow.SourceSFlowV5 },
		`{"type":"FLOWUNKNOWN","proto":6}`: func(r *flow.Record) bool { return r.Source == flow.SourceUnknown },
		`{"src_addr":"2001:db8::1"}`:       func(r *flow.Record) bool { return r.Src == flow.MustParseAddr("2001:db8::1") },
		`{"src_addr":"::ffff:10.0.0.1"}`:   func(r *flow.Record) bool { return r.Src == flow.MustParseAddr("10.0.0.1") },
		`{"src_addr":"10.0.0.256"}`:        func(r *flow.Record) bool { return !r.Any(flow.HasSrc) },
		`{"src_addr":"10.0.0.01"}`:         func(r *flow.Record) bool { return !r.Any(flow.HasSrc) },
		`{"src_addr":""}`:                  func(r *flow.Record) bool { return !r.Any(flow.HasSrc) },
		`{"src_addr":17}`:                  func(r *flow.Record) bool { return !r.Any(flow.HasSrc) },
		`{"src_port":4294967297}`:          func(r *flow.Record) bool { return !r.Any(flow.HasSrcPort) },
		`{"timeReceivedNs":"1700000000000000000"}`: func(r *flow.Record) bool {
			return r.Received == 1700000000000
		},
		`{"time_received_ns":"2026-10-05T08:00:00.25Z"}`: func(r *flow.Record) bool { return r.Received == goflowNow+250 },
		`{"time_received_ns":"2026"}`:                    func(r *flow.Record) bool { return r.Received == goflowNow+1 || r.Received == 0 },
		`{"x":"\u00e9\n\"","b":true,"c":false,"proto":17}`: func(r *flow.Record) bool {
			return r.Proto == 17
		},
	} {
		out := flow.NewBatch(1, nil)
		received := goflowNow + 1
		if strings.Contains(text, "1700") {
			received = 0
		}
		if _, err := f.Decode([]byte(text), 1, received, out); err != nil {
			t.Errorf("%s: %v", text, err)
		} else if r := &out.Records[0]; !check(r) {
			t.Errorf("%s: %+v", text, r)
		}
	}
}

// goflowValues are values of a topic as goflow2 writes them, of a usual mix.
func goflowValues(t testing.TB, formatName string, n int) [][]byte {
	p := newGoflowPipe(t, formatName, nil)
	for _, b := range goflowDatagrams(t, exporter.Config{Protocol: flow.SourceNetFlowV9, Domain: 1, SamplingRate: 100}, n) {
		p.feed(t, b, goflowNow+3)
	}
	return p.values
}

// TestGoflow2Allocations: decoding protobuf allocates nothing.
func TestGoflow2Allocations(t *testing.T) {
	values := goflowValues(t, "bin", 1000)
	f := newForeign(t, formatGoflow2Protobuf)
	out := flow.NewBatch(len(values), nil)
	for name, values := range map[string][][]byte{"one a value": values, "sequence": {bytes.Join(values, nil)}} {
		if n := testing.AllocsPerRun(10, func() {
			out.Records = out.Records[:0]
			for i, v := range values {
				if refused, err := f.Decode(v, uint64(i), goflowNow, out); refused != 0 || err != nil {
					t.Fatal(err)
				}
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations for %d records", name, n, len(out.Records))
		}
	}
}

// BenchmarkForeign decodes values of goflow2, whose flows are two thirds IPv4.
func BenchmarkForeign(b *testing.B) {
	bin := goflowValues(b, "bin", 1000)
	for _, c := range []struct {
		name, format string
		values       [][]byte
	}{
		{"protobuf", formatGoflow2Protobuf, bin},
		{"protobuf-sequence", formatGoflow2Protobuf, [][]byte{bytes.Join(bin, nil)}},
		{"json", formatGoflow2JSON, goflowValues(b, "json", 1000)},
	} {
		b.Run(c.name, func(b *testing.B) {
			f := newForeign(b, c.format)
			out := flow.NewBatch(len(bin), nil)
			size := 0
			for _, v := range c.values {
				size += len(v)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for b.Loop() {
				out.Records = out.Records[:0]
				for i, v := range c.values {
					if refused, err := f.Decode(v, uint64(i), goflowNow, out); refused != 0 || err != nil {
						b.Fatal(err)
					}
				}
			}
			runtime.ReadMemStats(&after)
			n := float64(b.N * len(bin))
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/n, "ns/flow")
			b.ReportMetric(float64(after.Mallocs-before.Mallocs)/n, "allocs/flow")
			b.ReportMetric(float64(size)/float64(len(bin)), "B/flow")
			b.ReportMetric(0, "ns/op")
		})
	}
	b.Run("json-encoding/json", func(b *testing.B) { // the standard library, into plain fields only
		values := goflowValues(b, "json", 1000)
		for b.Loop() {
			for _, v := range values {
				var m struct {
					Type, Proto    string
					Received       uint64 `json:"time_received_ns"`
					Start          uint64 `json:"time_flow_start_ns"`
					End            uint64 `json:"time_flow_end_ns"`
					Rate           uint64 `json:"sampling_rate"`
					Sampler        string `json:"sampler_address"`
					Src            string `json:"src_addr"`
					Dst            string `json:"dst_addr"`
					Bytes, Packets uint64
					SrcPort        uint32 `json:"src_port"`
					DstPort        uint32 `json:"dst_port"`
					InIf           uint32 `json:"in_if"`
					OutIf          uint32 `json:"out_if"`
					Flags          uint32 `json:"tcp_flags"`
				}
				if err := json.Unmarshal(v, &m); err != nil {
					b.Fatal(err)
				}
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(values)), "ns/flow")
		b.ReportMetric(0, "ns/op")
	})
	b.Run("protobuf-generated", func(b *testing.B) { // goflow2's own code, into its message only
		for b.Loop() {
			for _, v := range bin {
				v, _ := protowire.ConsumeBytes(v)
				var m flowpb.FlowMessage
				if err := proto.Unmarshal(v, &m); err != nil {
					b.Fatal(err)
				}
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(bin)), "ns/flow")
		b.ReportMetric(0, "ns/op")
	})
}

// checkForeign holds what every decoding must hold.
func checkForeign(t *testing.T, f *Foreign, value []byte) (records []flow.Record, refused int) {
	out := flow.NewBatch(4, nil)
	refused, err := f.Decode(value, 3, goflowNow, out)
	if (err != nil) != (len(out.Records) == 0) || (f.Reason() != nil) != (refused > 0) || len(out.Records) > maxForeignRecords {
		t.Fatalf("%d records, %d refused, error %v, reason %v", len(out.Records), refused, err, f.Reason())
	}
	for i := range out.Records {
		if r := &out.Records[i]; r.End < r.Start || r.Received != goflowNow && (r.Received < goflowNow-goflow2.MaxAge || r.Received > goflowNow+goflow2.MaxAhead) {
			t.Fatalf("times of %+v", r)
		}
	}
	again := flow.NewBatch(4, nil)
	if n, _ := f.Decode(value, 3, goflowNow, again); n != refused || cmp.Diff(out.Records, again.Records) != "" {
		t.Fatal("the same value decodes differently")
	}
	return out.Records, refused
}

func FuzzGoflow2Protobuf(f *testing.F) {
	values := goflowValues(f, "bin", 40)
	for _, v := range values[:8] {
		f.Add(v)
		f.Add(v[1:])
	}
	f.Add(bytes.Join(values[:3], nil))
	for _, s := range []string{"020804", "0b", "7a00", "b2062803", "ba060103", "b206063030303030fb"} {
		b, err := hex.DecodeString(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	decoder := newForeign(f, formatGoflow2Protobuf)
	f.Fuzz(func(t *testing.T, value []byte) {
		checkForeign(t, decoder, value)
	})
}

func FuzzGoflow2JSON(f *testing.F) {
	values := goflowValues(f, "json", 40)
	for _, v := range values[:6] {
		f.Add(v)
	}
	f.Add(bytes.Join(values[:2], []byte("\n")))
	f.Add([]byte("[" + string(bytes.Join(values[:2], []byte(","))) + "]"))
	f.Add([]byte(`{"TimeReceived":"1","x":[1e5,-0.1,"\u00ff",null,{"a":true}],"proto":"TCP","layer_stack":[3,"UDP"]}`))
	decoder := newForeign(f, formatGoflow2JSON)
	f.Fuzz(func(t *testing.T, value []byte) {
		records, refused := checkForeign(t, decoder, value)
		// What is wholly taken is JSON to encoding/json too; what that calls one object
		// is one record or an object without a field of ours, if it is not too deep.
		if refused == 0 {
			for d := json.NewDecoder(bytes.NewReader(value)); ; {
				var v any
				if err := d.Decode(&v); err == io.EOF {
					break
				} else if err != nil {
					t.Fatalf("%q: encoding/json says %v", value, err)
				}
			}
		}
		var object map[string]any
		if json.Unmarshal(value, &object) == nil && object != nil && len(records) == 0 &&
			!errors.Is(decoder.Reason(), errForeignNoFlow) && !errors.Is(decoder.Reason(), errJSONDeep) {
			t.Fatalf("%q: encoding/json reads it, ours says %v", value, decoder.Reason())
		}
	})
}
