package goflow2

import (
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"testing"

	flowpb "github.com/netsampler/goflow2/v2/pb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// randomMessage makes a message with about half of its fields.
func randomMessage(rng *rand.Rand) *flowpb.FlowMessage {
	m := &flowpb.FlowMessage{}
	some := func() bool { return rng.IntN(2) == 0 }
	num := func() uint32 { return uint32(rng.Uint64() >> (32 + rng.IntN(33))) }
	big := func() uint64 { return rng.Uint64() >> rng.IntN(65) }
	for _, p := range []*uint32{&m.SequenceNum, &m.Etype, &m.Proto, &m.SrcPort, &m.DstPort, &m.InIf, &m.OutIf, &m.SrcVlan, &m.DstVlan, &m.VlanId,
		&m.IpTos, &m.ForwardingStatus, &m.IpTtl, &m.IpFlags, &m.TcpFlags, &m.IcmpType, &m.IcmpCode, &m.Ipv6FlowLabel, &m.FragmentId, &m.FragmentOffset,
		&m.SrcAs, &m.DstAs, &m.NextHopAs, &m.SrcNet, &m.DstNet, &m.ObservationDomainId, &m.ObservationPointId} {
		if some() {
			*p = num()
		}
	}
	for _, p := range []*uint64{&m.SamplingRate, &m.TimeReceivedNs, &m.TimeFlowStartNs, &m.TimeFlowEndNs, &m.Bytes, &m.Packets, &m.SrcMac, &m.DstMac} {
		if some() {
			*p = big()
		}
	}
	for _, p := range []*[]byte{&m.SamplerAddress, &m.SrcAddr, &m.DstAddr, &m.NextHop, &m.BgpNextHop} {
		if some() {
			*p = make([]byte, []int{4, 16, 16, 4, 0, 7}[rng.IntN(6)])
			for i := range *p {
				(*p)[i] = byte(rng.Uint32())
			}
		}
	}
	if some() {
		m.Type = flowpb.FlowMessage_FlowType(rng.IntN(6))
	}
	for range rng.IntN(4) {
		m.LayerStack = append(m.LayerStack, flowpb.FlowMessage_LayerStack(rng.IntN(14)))
		m.LayerSize = append(m.LayerSize, num())
		m.AsPath = append(m.AsPath, num())
		m.MplsIp = append(m.MplsIp, []byte{1, 2, 3, byte(rng.IntN(256))})
	}
	if some() { // fields this schema does not know
		var b []byte
		b = protowire.AppendTag(b, 999, protowire.VarintType)
		b = protowire.AppendVarint(b, rng.Uint64())
		b = protowire.AppendTag(b, 1000, protowire.Fixed64Type)
		b = protowire.AppendFixed64(b, rng.Uint64())
		b = protowire.AppendTag(b, 1001, protowire.Fixed32Type)
		b = protowire.AppendFixed32(b, rng.Uint32())
		b = protowire.AppendTag(b, 20000, protowire.BytesType)
		b = protowire.AppendBytes(b, []byte("anything"))
		m.ProtoReflect().SetUnknown(b)
	}
	return m
}

// referenceMessage is what goflow2's generated code reads, as ours should.
func referenceMessage(m *flowpb.FlowMessage) (out Message) {
	out.kind = uint64(uint32(m.Type))
	out.rate, out.bytes, out.packets = m.SamplingRate, m.Bytes, m.Packets
	out.receivedNs, out.startNs, out.endNs = m.TimeReceivedNs, m.TimeFlowStartNs, m.TimeFlowEndNs
	out.proto, out.srcPort, out.dstPort = uint64(m.Proto), uint64(m.SrcPort), uint64(m.DstPort)
	out.inIf, out.outIf, out.flags, out.fragment = uint64(m.InIf), uint64(m.OutIf), uint64(m.TcpFlags), uint64(m.FragmentOffset)
	out.icmpType, out.icmpCode, out.forwarding = uint64(m.IcmpType), uint64(m.IcmpCode), uint64(m.ForwardingStatus)
	out.domain, out.startSec = uint64(m.ObservationDomainId), uint64(m.IpFlags)
	out.sampler, _ = AddrFromBytes(m.SamplerAddress)
	out.src, out.hasSrc = AddrFromBytes(m.SrcAddr)
	out.dst, out.hasDst = AddrFromBytes(m.DstAddr)
	for _, l := range m.LayerStack {
		if l >= 0 && l < 32 {
			out.layers |= 1 << l
		}
	}
	return out
}

// comparable clears what the generated code does not know.
func (m Message) comparable() Message {
	m.startSec = uint64(uint32(m.startSec)) // 64 bits in 1.x, 32 as ip_flags
	m.known, m.hasReceivedNs, m.hasDirection, m.hasBiflow = false, false, false, false
	m.receivedSec, m.endSec, m.startMilli, m.endMilli, m.direction, m.biflow = 0, 0, 0, 0, 0, 0
	return m
}

// TestWire holds our reading of the wire format to the generated one, on
// messages, on several merged into one, and on broken ones.
func TestWire(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	broken := 0
	for i := range 20_000 {
		var b []byte
		for range 1 + rng.IntN(10)/8 {
			part, err := proto.Marshal(randomMessage(rng))
			if err != nil {
				t.Fatal(err)
			}
			b = append(b, part...)
		}
		if i%4 == 0 && len(b) > 0 {
			b[rng.IntN(len(b))] ^= byte(1 << rng.IntN(8))
			b = b[:rng.IntN(len(b)+1)]
		}
		if checkWire(t, b) {
			broken++
		}
	}
	if broken < 500 {
		t.Errorf("only %d messages were broken; the test tests little", broken)
	}
}

// checkWire reads b with both and says whether both refuse it.
func checkWire(t *testing.T, b []byte) (refused bool) {
	t.Helper()
	var reference flowpb.FlowMessage
	var ours Message
	theirErr, err := proto.Unmarshal(b, &reference), ours.Unmarshal(b)
	switch {
	case err != nil && theirErr != nil:
		return true
	case err != nil:
		if errors.Is(err, ErrTag) { // a group, which we refuse
			return true
		}
		t.Fatalf("%x: goflow2's own code reads it, ours says %v", b, err)
	case theirErr != nil && packedElsewhere(b):
		return false
	case theirErr != nil:
		t.Fatalf("%x: ours reads it, goflow2's own code says %v", b, theirErr)
	}
	if got, want := ours.comparable(), referenceMessage(&reference); got != want {
		t.Fatalf("%x:\n got %+v\nwant %+v", b, got, want)
	}
	return false
}

// packedElsewhere says whether b has a packed field that we skip, which goflow2's
// own code looks into and may find broken.
func packedElsewhere(b []byte) bool {
	for len(b) > 0 {
		num, kind, n := protowire.ConsumeField(b)
		if n < 0 {
			return false
		}
		switch num {
		case 80, 81, 101, 102, 104:
			if kind == protowire.BytesType {
				return true
			}
		}
		b = b[n:]
	}
	return false
}

// FuzzUnmarshal: no bytes are read otherwise than goflow2's own code reads them.
func FuzzUnmarshal(f *testing.F) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 8 {
		b, err := proto.Marshal(randomMessage(rng))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	for _, s := range []string{"020804", "0b", "7a00", "b2062803", "ba060103", "b206063030303030fb"} {
		b, err := hex.DecodeString(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) { checkWire(t, b) })
}
