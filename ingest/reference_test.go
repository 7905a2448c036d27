package ingest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/netsampler/goflow2/v2/decoders/netflow"
	"github.com/netsampler/goflow2/v2/decoders/netflowlegacy"
	"github.com/netsampler/goflow2/v2/decoders/sflow"
	"github.com/postern/postern/flow"
)

// reference decodes datagrams with goflow2, whose own decoding ours is compared
// with. It keeps templates by exporter as we do, and guards goflow2 where it does
// not guard itself.
type reference struct {
	templates map[string]netflow.NetFlowTemplateSystem
	// variable: a template with fields of variable length was seen. goflow2 takes
	// such a field to need no byte at all, and makes one more record of what is
	// left of a set, reading beyond its end as empty.
	variable bool
}

var errUnfit = errors.New("not for goflow2")

// guarded refuses templates on which goflow2 does not return: records of no
// bytes, of which any set holds infinitely many.
type guarded struct {
	netflow.NetFlowTemplateSystem
	ref *reference
}

func (g guarded) AddTemplate(version uint16, domain uint32, id uint16, t any) error {
	var f []netflow.Field
	switch t := t.(type) {
	case netflow.TemplateRecord:
		f = t.Fields
	case netflow.IPFIXOptionsTemplateRecord:
		f = append(append(f, t.Scopes...), t.Options...)
	case netflow.NFv9OptionsTemplateRecord:
		f = append(append(f, t.Scopes...), t.Options...)
	}
	for _, f := range f {
		g.ref.variable = g.ref.variable || f.Length == variable
	}
	if netflow.GetTemplateSize(version, f) == 0 {
		return errUnfit
	}
	return g.NetFlowTemplateSystem.AddTemplate(version, domain, id, t)
}

// decode gives goflow2's flow records in our fields; ok is false where it did
// not take the whole datagram.
func (ref *reference) decode(dg *Datagram) (facts []fact, ok bool) {
	b := dg.Payload
	if len(b) < 4 {
		return nil, false
	}
	if ref.templates == nil {
		ref.templates = map[string]netflow.NetFlowTemplateSystem{}
	}
	key := fmt.Sprint(dg.Exporter)
	ts := ref.templates[key]
	if ts == nil {
		ts = guarded{netflow.CreateTemplateSystem(), ref}
		ref.templates[key] = ts
	}
	switch v := binary.BigEndian.Uint16(b); v {
	case 5:
		var p netflowlegacy.PacketNetFlowV5
		if netflowlegacy.DecodeMessageVersion(bytes.NewBuffer(b), &p) != nil || int(p.Count) > v5Records || v5Header+int(p.Count)*v5Record > len(b) {
			return nil, false
		}
		for _, r := range p.Records {
			facts = append(facts, fact{"src_addr": flow.AddrFrom4(uint32(r.SrcAddr)).String(), "dst_addr": flow.AddrFrom4(uint32(r.DstAddr)).String(),
				"src_port": fmt.Sprint(r.SrcPort), "dst_port": fmt.Sprint(r.DstPort), "proto": fmt.Sprint(r.Proto), "tcp_flags": fmt.Sprint(r.TCPFlags),
				"bytes_raw": fmt.Sprint(r.DOctets), "packets_raw": fmt.Sprint(r.DPkts), "in_if": fmt.Sprint(r.Input), "out_if": fmt.Sprint(r.Output)})
		}
		return facts, true
	case 9:
		if len(b) < v9Header {
			return nil, false
		}
		// Its walk ends at the header's count of records, ours at the end.
		b = bytes.Clone(b)
		b[2], b[3] = 0xff, 0xff
		var p netflow.NFv9Packet
		err := netflow.DecodeMessageVersion(bytes.NewBuffer(b), ts, &p, nil)
		return referenceFacts(p.FlowSets, true), err == nil
	case 10:
		for len(b) >= ipfixHeader {
			length := int(binary.BigEndian.Uint16(b[2:]))
			if binary.BigEndian.Uint16(b) != 10 || length < ipfixHeader || length > len(b) {
				return facts, false
			}
			var p netflow.IPFIXPacket
			if err := netflow.DecodeMessageVersion(bytes.NewBuffer(b[:length:length]), ts, nil, &p); err != nil {
				return facts, false
			}
			facts = append(facts, referenceFacts(p.FlowSets, false)...)
			b = b[length:]
		}
		return facts, len(b) == 0
	case 0:
		var p sflow.Packet
		if sflow.DecodeMessageVersion(bytes.NewBuffer(b), &p) != nil {
			return nil, false
		}
		for _, s := range p.Samples {
			var records []sflow.FlowRecord
			f := fact{"packets_raw": "1"}
			switch s := s.(type) {
			case sflow.FlowSample:
				records = s.Records
				f["sampling_rate"] = fmt.Sprint(s.SamplingRate)
			case sflow.ExpandedFlowSample:
				records = s.Records
				f["sampling_rate"] = fmt.Sprint(s.SamplingRate)
			case nil:
				return nil, false
			default:
				continue
			}
			for _, r := range records {
				switch r := r.Data.(type) {
				case sflow.SampledHeader:
					f["bytes_raw"] = fmt.Sprint(r.FrameLength)
				case nil:
					return nil, false
				}
			}
			facts = append(facts, f)
		}
		return facts, true
	}
	return nil, false
}

// referenceFacts reads the fields that need no interpretation from goflow2's
// values; each element once, as we do where a template repeats one.
func referenceFacts(sets []any, v9 bool) (facts []fact) {
	names := map[uint16]string{7: "src_port", 11: "dst_port", 4: "proto", 10: "in_if", 14: "out_if", 1: "bytes_raw", 2: "packets_raw"}
	bits := map[uint16]int{7: 16, 11: 16, 4: 8, 10: 32, 14: 32, 1: 64, 2: 64}
	for _, s := range sets {
		data, ok := s.(netflow.DataFlowSet)
		if !ok {
			continue
		}
		for _, r := range data.Records {
			f := fact{}
			count := map[string]int{}
			for _, v := range r.Values {
				b, _ := v.Value.([]byte)
				if v.PenProvided && v.Pen != 0 {
					continue
				}
				if name, ok := names[v.Type]; ok && len(b) >= 1 && len(b) <= 8 {
					n := number(b)
					if w := bits[v.Type]; w < 64 {
						n &= 1<<w - 1
					}
					f[name] = fmt.Sprint(n)
					count[name]++
				}
				if name := map[uint16]string{8: "src_addr", 12: "dst_addr"}[v.Type]; name != "" && len(b) == 4 {
					f[name] = flow.AddrFrom4(binary.BigEndian.Uint32(b)).String()
					count[name]++
				}
				switch v.Type {
				case 27, 28, 23, 24, 171, 172, 180, 181, 182, 183:
					count[map[uint16]string{27: "src_addr", 28: "dst_addr", 23: "bytes_raw", 171: "bytes_raw", 24: "packets_raw", 172: "packets_raw",
						180: "src_port", 182: "src_port", 181: "dst_port", 183: "dst_port"}[v.Type]] += 2
				}
			}
			for k, n := range count {
				if n != 1 {
					delete(f, k)
				}
			}
			facts = append(facts, f)
		}
	}
	return facts
}

// disagree says where facts and records differ, empty if nowhere. Both are of
// one datagram, in order.
func disagree(facts []fact, records []flow.Record, names *flow.Names) string {
	if len(facts) != len(records) {
		return fmt.Sprintf("%d records, goflow2 has %d", len(records), len(facts))
	}
	var out []string
	for i, f := range facts {
		v := view(&records[i], names)
		for k, want := range f {
			if got, ok := v[k]; ok && got != want {
				out = append(out, fmt.Sprintf("record %d: %s is %s, goflow2 has %s", i, k, got, want))
			}
		}
	}
	return strings.Join(out, "\n")
}
