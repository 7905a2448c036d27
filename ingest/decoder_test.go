package ingest

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/postern/postern/flow"
)

func TestNetFlow5(t *testing.T) {
	h := newHarness(DecoderConfig{BelieveClock: true})
	r := h.feed(v5(2, 2))
	if len(r) != 2 {
		t.Fatalf("%d records, want 2", len(r))
	}
	want := fact{"src_addr": "10.0.0.1", "dst_addr": "10.0.0.2", "src_port": "1024", "dst_port": "2048", "proto": "1", "icmp_type": "8", "icmp_code": "0",
		"tcp_flags": "18", "packets_raw": "5", "bytes_raw": "500", "packets": "500", "bytes": "50000", "in_if": "1", "out_if": "2",
		"sampling_rate": "100", "domain": "258",
		"start": fmt.Sprint(t0*1000 + 500 - 1000), "end": fmt.Sprint(t0*1000 + 500 - 500)}
	got := view(&r[0], h.names)
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s is %q, want %q", k, got[k], v)
		}
	}
	if r[0].ID == r[1].ID {
		t.Error("two records of one datagram have one id")
	}
	h.check(t)
}

// A count beyond what the datagram holds, or beyond what v5 allows, yields what
// is there and a rejection.
func TestNetFlow5Count(t *testing.T) {
	for _, c := range []struct{ count, holds, want int }{{55000, 2, 2}, {3, 2, 2}, {31, 31, 30}, {0, 1, 0}} {
		h := newHarness(DecoderConfig{BelieveClock: true})
		if n := len(h.feed(v5(c.count, c.holds))); n != c.want {
			t.Errorf("count %d with %d records gave %d, want %d", c.count, c.holds, n, c.want)
		}
		if h.account().Datagrams.Rejected[flow.RejectCount] != 1 {
			t.Errorf("count %d with %d records: not rejected as bad_count", c.count, c.holds)
		}
		h.check(t)
	}
}

func TestMalformed(t *testing.T) {
	usualTemplate := set(0, tmpl(256, usual...))
	for _, c := range []struct {
		name   string
		b      []byte
		reason flow.Reject
		want   int
	}{
		{"empty", nil, flow.RejectTruncated, 0},
		{"unknown version", u32(0x00070000), flow.RejectVersion, 0},
		{"v5 header cut", v5(1, 1)[:20], flow.RejectTruncated, 0},
		{"v9 header cut", v9(1, 1)[:19], flow.RejectTruncated, 0},
		{"v9 without a set", v9(1, 1), flow.RejectMalformed, 0},
		{"v9 set shorter than its header", v9(1, 1, cat(u16(256), u16(3), []byte{1})), flow.RejectMalformed, 0},
		{"v9 set longer than the datagram", v9(1, 1, usualTemplate, cat(u16(256), u16(400), usualRecords(2))), flow.RejectTruncated, 2},
		{"v9 set too short for a record", v9(1, 1, usualTemplate, set(256, []byte{1, 2, 3, 4, 5})), flow.RejectMalformed, 0},
		{"template of fields that are not there", v9(1, 1, set(0, cat(u16(256), u16(65535), u32(0x00080004)))), flow.RejectMalformed, 0},
		{"template of empty records", v9(1, 1, set(0, tmpl(256, 8, 0))), flow.RejectMalformed, 0},
		{"template of no fields in v9", v9(1, 1, set(0, tmpl(256))), flow.RejectMalformed, 0},
		{"ipfix shorter than its header", cat(u16(10), u16(8), make([]byte, 12)), flow.RejectMalformed, 0},
		{"ipfix longer than the datagram", append(u16(10), cat(u16(900), make([]byte, 20))...), flow.RejectTruncated, 0},
		{"ipfix field beyond its set", ipfixMsg(1, 1, set(2, variedTemplate(300)), set(300, variedRecord("x")[:45], []byte{255, 255, 255}, make([]byte, 20), []byte{1})), flow.RejectMalformed, 0},
		{"sflow header cut", sflowDatagram(1)[:20], flow.RejectTruncated, 0},
		{"sflow sample beyond the datagram", sflowDatagram(1, cat(u32(1), u32(999), u32(1))), flow.RejectTruncated, 0},
		{"sflow sample cut", sflowDatagram(1, cat(u32(1), u32(4), u32(1))), flow.RejectMalformed, 0},
		{"sflow of 4 billion samples", append(sflowDatagram(1)[:24], u32(0xffffffff)...), flow.RejectTruncated, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHarness(DecoderConfig{BelieveClock: true})
			if n := len(h.feed(c.b)); n != c.want {
				t.Errorf("%d records, want %d", n, c.want)
			}
			if a := h.account().Datagrams; a.Rejected[c.reason] != 1 || a.Rejected.Sum() != 1 {
				t.Errorf("rejected %v, want one %s", a.Rejected.Map(), c.reason)
			}
			h.check(t)
		})
	}
}

func TestVersion9(t *testing.T) {
	h := newHarness(DecoderConfig{BelieveClock: true})
	r := h.feed(v9(1, 5, set(0, tmpl(256, usual...)), set(256, usualRecords(3))))
	if len(r) != 3 {
		t.Fatalf("%d records, want 3", len(r))
	}
	want := fact{"src_addr": "10.0.0.2", "dst_addr": "192.168.0.1", "src_port": "40001", "dst_port": "443", "proto": "6", "tcp_flags": "27",
		"packets_raw": "11", "bytes_raw": "1001", "in_if": "3", "out_if": "7", "direction": "0", "fwd": "1", "domain": "5",
		"start": fmt.Sprint(t0*1000 - 10_001), "end": fmt.Sprint(t0*1000 - 1000)}
	got := view(&r[1], h.names)
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s is %q, want %q", k, got[k], v)
		}
	}
	h.check(t)
}

// An uptime that wrapped between a flow's start and its export.
func TestUptimeWraps(t *testing.T) {
	h := newHarness(DecoderConfig{BelieveClock: true})
	b := v9(1, 5, set(0, tmpl(256, 8, 4, 12, 4, 22, 4, 21, 4)), set(256, u32(1), u32(2), u32(0xffffff00), u32(0x10)))
	copy(b[4:], u32(0x100)) // uptime
	r := h.feed(b)
	if len(r) != 1 || r[0].Start != t0*1000-0x200 || r[0].End != t0*1000-0xf0 {
		t.Errorf("got %v", r)
	}
}

func TestIPFIX(t *testing.T) {
	h := newHarness(DecoderConfig{BelieveClock: true})
	r := h.feed(ipfixMsg(0, 6, set(2, variedTemplate(300)), set(300, variedRecord("alice"), variedRecord("bob"), []byte{0, 0, 0})))
	if len(r) != 2 {
		t.Fatalf("%d records, want 2", len(r))
	}
	want := fact{"src_addr": "2001:db8::1", "dst_addr": "2001:db8::2", "dst_port": "3389", "bytes_raw": "256", "rev_bytes": "77", "user": "bob",
		"start": fmt.Sprint(t0*1000 - 5000), "end": fmt.Sprint(t0*1000 - 5000)}
	got := view(&r[1], h.names)
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s is %q, want %q", k, got[k], v)
		}
	}
	if r[0].Any(flow.HasInitiator) {
		t.Error("a biflow names an initiator that nobody vouched for")
	}
	h.check(t)
}

func TestBiflowInitiator(t *testing.T) {
	h := newHarness(DecoderConfig{BelieveClock: true, BiflowInitiator: []ExporterPrefix{{netip.MustParsePrefix("192.0.2.0/24")}}})
	r := h.feed(ipfixMsg(0, 6, set(2, variedTemplate(300)), set(300, variedRecord("a"))))
	if len(r) != 1 || !r[0].Any(flow.HasInitiator) {
		t.Error("the configured exporter's biflow names no initiator")
	}
	h = newHarness(DecoderConfig{BelieveClock: true})
	r = h.feed(v9(1, 1, set(0, tmpl(256, 8, 4, 12, 4, 231, 4, 232, 4)), set(256, u32(1), u32(2), u32(30), u32(40))))
	if len(r) != 1 || !r[0].Any(flow.HasInitiator) || r[0].BytesRaw != 30 || r[0].RevBytesRaw != 40 {
		t.Errorf("initiator and responder octets: %+v", r)
	}
}

// Data that waits comes out where its template comes, with its own times and ids.
func TestParked(t *testing.T) {
	data := v9(2, 5, set(256, usualRecords(2)))
	direct := newHarness(DecoderConfig{BelieveClock: true})
	direct.feed(v9(1, 5, set(0, tmpl(256, usual...))))
	direct.pos = 0
	want := append([]flow.Record(nil), direct.feed(data)...)

	h := newHarness(DecoderConfig{BelieveClock: true})
	if n := len(h.feed(data)); n != 0 {
		t.Fatalf("%d records without a template", n)
	}
	if a := h.account(); a.Datagrams.Parked != 1 || a.SetsParked != 1 {
		t.Errorf("not parked: %+v", a.Datagrams)
	}
	h.check(t)
	h.now += 5000
	got := append([]flow.Record(nil), h.feed(v9(3, 5, set(0, tmpl(256, usual...)), set(256, usualRecords(1))))...)
	if len(got) != 3 {
		t.Fatalf("%d records, want the 2 that waited and 1", len(got))
	}
	for i := range want {
		want[i].Quality |= flow.QualityParked
		if d := cmp.Diff(want[i], got[i]); d != "" {
			t.Errorf("record %d differs from one decoded at once:\n%s", i, d)
		}
	}
	if a := h.account(); a.Datagrams.Parked != 0 || a.Datagrams.Decoded != 2 {
		t.Errorf("after the template: %+v", a.Datagrams)
	}
	h.check(t)
}

func TestParkedExpires(t *testing.T) {
	h := newHarness(DecoderConfig{BelieveClock: true, ParkTime: time.Minute})
	h.feed(v9(2, 5, set(256, usualRecords(2)), set(257, usualRecords(2))))
	h.Tick(h.now.Add(59 * time.Second))
	if h.account().Datagrams.Parked != 1 {
		t.Error("given up too early")
	}
	h.Tick(h.now.Add(61 * time.Second))
	if a := h.account().Datagrams; a.Parked != 0 || a.Rejected[flow.RejectNoTemplate] != 1 {
		t.Errorf("after its time: %+v", a)
	}
	if h.parkedBytes != 0 {
		t.Errorf("%d bytes still counted", h.parkedBytes)
	}
	h.check(t)
}

func TestParkFull(t *testing.T) {
	for name, cfg := range map[string]DecoderConfig{"sets": {ParkSets: 1}, "bytes": {ParkBytes: 600}, "bytes of an exporter": {ParkBytesPerExporter: 600}} {
		cfg.BelieveClock = true
		h := newHarness(cfg)
		h.feed(v9(1, 5, set(256, usualRecords(2))))
		h.feed(v9(2, 5, set(256, usualRecords(2))))
		if a := h.account().Datagrams; a.Parked != 1 || a.Rejected[flow.RejectParkFull] != 1 {
			t.Errorf("%s: %+v", name, a)
		}
		h.check(t)
	}
}

// layoutA and layoutB are two layouts of one length under one id.
var (
	layoutA = set(0, tmpl(256, 8, 4, 12, 4))
	layoutB = set(0, tmpl(256, 12, 4, 8, 4))
	twoAddr = set(256, u32(1), u32(2))
)

func TestTemplateChanges(t *testing.T) {
	h := newHarness(DecoderConfig{BelieveClock: true})
	r := h.feed(v9(1, 5, layoutA, twoAddr))
	if r[0].Src.V4() != 1 || r[0].Quality&flow.QualityTemplateChanged != 0 {
		t.Errorf("layout A: %v", r[0].Quality.Texts())
	}
	h.now += 10_000
	r = h.feed(v9(2, 5, layoutB, twoAddr))
	if r[0].Src.V4() != 2 || r[0].Quality&flow.QualityTemplateChanged == 0 {
		t.Errorf("a new layout does not hold at once: %v", r[0])
	}
	// Back to A, but after more than a minute: a change, not an alternation.
	h.now += 61_000
	if r = h.feed(v9(3, 5, layoutA, twoAddr)); len(r) != 1 || r[0].Src.V4() != 1 {
		t.Errorf("back after a minute: %v", r)
	}
	h.check(t)
}

func TestTemplatesOfTwoPorts(t *testing.T) {
	h := newHarness(DecoderConfig{BelieveClock: true})
	for i := range 3 {
		h.port = 1001
		h.feed(v9(uint32(2*i), 5, layoutA))
		h.port = 1002
		h.feed(v9(uint32(2*i+1), 5, layoutB))
		h.now += 1000
	}
	h.port = 1001
	if r := h.feed(v9(9, 5, twoAddr)); len(r) != 1 || r[0].Src.V4() != 1 {
		t.Errorf("port 1001 has layout A: %v", r)
	}
	h.port = 1002
	if r := h.feed(v9(10, 5, twoAddr)); len(r) != 1 || r[0].Src.V4() != 2 {
		t.Errorf("port 1002 has layout B: %v", r)
	}
	h.check(t)
}

func TestQuarantine(t *testing.T) {
	h := newHarness(DecoderConfig{BelieveClock: true})
	for range 2 {
		h.feed(v9(1, 5, layoutA))
		h.feed(v9(2, 5, layoutB))
		h.now += 1000
	}
	if r := h.feed(v9(3, 5, twoAddr)); len(r) != 0 {
		t.Errorf("data of a quarantined id was decoded: %v", r)
	}
	if a := h.account().Datagrams; a.Rejected[flow.RejectQuarantined] != 1 {
		t.Errorf("not counted: %v", a.Rejected.Map())
	}
	// Layout B alone for a minute: it holds.
	for range 7 {
		h.feed(v9(4, 5, layoutB))
		h.now += 10_000
	}
	if r := h.feed(v9(5, 5, twoAddr)); len(r) != 1 || r[0].Src.V4() != 2 || r[0].Quality&flow.QualityTemplateChanged == 0 {
		t.Errorf("after a minute: %v", r)
	}
	h.check(t)
}

func TestWithdrawal(t *testing.T) {
	h := newHarness(DecoderConfig{BelieveClock: true})
	h.feed(ipfixMsg(0, 6, set(2, variedTemplate(300), variedTemplate(301))))
	h.feed(ipfixMsg(0, 6, set(2, u16(300), u16(0))))
	if r := h.feed(ipfixMsg(0, 6, set(300, variedRecord("x")))); len(r) != 0 {
		t.Error("a withdrawn template is still used")
	}
	if r := h.feed(ipfixMsg(0, 6, set(301, variedRecord("x")))); len(r) != 1 {
		t.Error("withdrawing one template took another")
	}
	h.feed(ipfixMsg(0, 6, set(3, cat(u16(400), u16(2), u16(1), specs(302, 8, 34, 4)))))
	h.feed(ipfixMsg(0, 6, set(2, u16(2), u16(0)))) // all
	if h.numTemplates != 1 {
		t.Errorf("%d templates left, want the options template", h.numTemplates)
	}
	h.feed(ipfixMsg(0, 6, set(3, u16(3), u16(0)))) // all options templates
	if h.numTemplates != 0 {
		t.Errorf("%d templates left", h.numTemplates)
	}
	h.check(t)
}

func TestTemplateTTL(t *testing.T) {
	h := newHarness(DecoderConfig{BelieveClock: true, TemplateTTL: time.Hour})
	h.feed(v9(1, 5, layoutA))
	h.Tick(h.now.Add(2 * time.Hour))
	if h.numTemplates != 0 {
		t.Error("a template outlived its time")
	}
}

func TestTableFull(t *testing.T) {
	h := newHarness(DecoderConfig{BelieveClock: true, MaxTemplatesPerExporter: 1})
	h.feed(v9(1, 5, layoutA))
	h.feed(v9(2, 5, set(0, tmpl(300, 8, 4))))
	if h.account().Datagrams.Rejected[flow.RejectTableFull] != 1 {
		t.Error("a second template is not refused")
	}
	h = newHarness(DecoderConfig{BelieveClock: true, MaxDomains: 1})
	h.feed(v9(1, 5, layoutA))
	h.feed(v9(1, 6, layoutA))
	if h.account().Datagrams.Rejected[flow.RejectTableFull] != 1 {
		t.Error("a second domain is not refused")
	}
	h = newHarness(DecoderConfig{BelieveClock: true, MaxExporters: 1})
	h.feed(v9(1, 5, layoutA))
	h.Decode(&Datagram{Exporter: flow.AddrFrom4(9), Payload: v9(1, 5, layoutA)}, h.out)
	if h.Ledger().Of(flow.Addr{}).Datagrams.Rejected[flow.RejectTableFull] != 1 || len(h.exporters) != 1 {
		t.Error("a second exporter is not refused")
	}
	h.check(t)
}

func TestSampling(t *testing.T) {
	samplerTemplate := set(1, cat(u16(257), u16(4), u16(8), specs(1, 4, 48, 4, 34, 4)))
	interfaceTemplate := set(1, cat(u16(258), u16(4), u16(4), specs(2, 4, 34, 4)))
	one, seven, five := uint64(1), uint32(7), uint32(5)
	bySampler := set(0, tmpl(256, 8, 4, 12, 4, 1, 4, 10, 4, 48, 1))
	plain := set(0, tmpl(260, 8, 4, 12, 4, 1, 4, 10, 4))
	record := func(sampler int) []byte { return set(256, u32(1), u32(2), u32(100), u32(7), []byte{byte(sampler)}) }
	plainRecord := set(260, u32(1), u32(2), u32(100), u32(7))
	for _, c := range []struct {
		name    string
		rules   []SamplingRule
		before  [][]byte
		b       []byte
		rate    uint32
		unknown bool
	}{
		{"announced for the sampler", nil, [][]byte{v9(1, 5, samplerTemplate, set(257, u32(0), u32(1), u32(64)))}, v9(2, 5, bySampler, record(1)), 64, false},
		{"announced for another", nil, [][]byte{v9(1, 5, samplerTemplate, set(257, u32(0), u32(2), u32(64)))}, v9(2, 5, bySampler, record(1)), 0, true},
		{"announced in domain 0", nil, [][]byte{v9(1, 0, samplerTemplate, set(257, u32(0), u32(1), u32(64)))}, v9(2, 5, bySampler, record(1)), 64, false},
		{"sampler 0 is none", nil, nil, v9(2, 5, bySampler, record(0)), 0, false},
		{"configured for the sampler", []SamplingRule{{Sampler: &one, Rate: 1000}}, nil, v9(2, 5, bySampler, record(1)), 1000, false},
		{"the wire goes first", []SamplingRule{{Sampler: &one, Rate: 1000}}, [][]byte{v9(1, 5, samplerTemplate, set(257, u32(0), u32(1), u32(64)))}, v9(2, 5, bySampler, record(1)), 64, false},
		{"announced for the interface", nil, [][]byte{v9(1, 5, interfaceTemplate, set(258, u32(7), u32(32)))}, v9(2, 5, plain, plainRecord), 32, false},
		{"zero in the record, announced for the interface", nil, [][]byte{v9(1, 5, interfaceTemplate, set(258, u32(7), u32(32)))},
			v9(2, 5, set(0, tmpl(256, 8, 4, 1, 4, 10, 4, 34, 4)), set(256, u32(1), u32(100), u32(7), u32(0))), 32, false},
		{"configured for the interface", []SamplingRule{{Interface: &seven, Rate: 16}}, nil, v9(2, 5, plain, plainRecord), 16, false},
		{"configured for the domain", []SamplingRule{{Domain: &five, Rate: 8}}, nil, v9(2, 5, plain, plainRecord), 8, false},
		{"configured for another exporter", []SamplingRule{{Exporter: ExporterPrefix{netip.MustParsePrefix("198.51.100.1/32")}, Rate: 8}}, nil, v9(2, 5, plain, plainRecord), 0, false},
		{"in the record", []SamplingRule{{Rate: 8}}, nil, v9(2, 5, set(0, tmpl(256, 8, 4, 1, 4, 34, 4)), set(256, u32(1), u32(100), u32(10))), 10, false},
		{"packets and space", nil, nil, ipfixMsg(0, 5, set(2, tmpl(256, 8, 4, 1, 4, 305, 4, 306, 4)), set(256, u32(1), u32(100), u32(1), u32(99))), 100, false},
		{"size of population", nil, nil, ipfixMsg(0, 5, set(2, tmpl(256, 8, 4, 1, 4, 309, 4, 310, 4)), set(256, u32(1), u32(100), u32(2), u32(512))), 256, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHarness(DecoderConfig{BelieveClock: true, Sampling: c.rules})
			for _, b := range c.before {
				h.feed(b)
			}
			r := h.feed(c.b)
			if len(r) != 1 || r[0].SamplingRate != c.rate || (r[0].Quality&flow.QualitySamplingUnknown != 0) != c.unknown {
				t.Fatalf("rate %d, %v; want %d, unknown %v", r[0].SamplingRate, r[0].Quality.Texts(), c.rate, c.unknown)
			}
			if h.account().Options != uint64(len(c.before)) {
				t.Errorf("%d options, want %d", h.account().Options, len(c.before))
			}
			h.check(t)
		})
	}
}

func TestApplications(t *testing.T) {
	h := newHarness(DecoderConfig{BelieveClock: true})
	flows := set(0, tmpl(256, 8, 4, 95, 4))
	rec := set(256, u32(1), []byte{3, 0, 0, 80})
	if r := h.feed(v9(1, 5, flows, rec)); h.names.Text(r[0].App) != "3..80" {
		t.Errorf("without a name: %q", h.names.Text(r[0].App))
	}
	h.feed(v9(2, 5, set(1, cat(u16(257), u16(4), u16(8), specs(1, 4, 95, 4, 96, 8))), set(257, u32(0), []byte{3, 0, 0, 80}, []byte("http\x00\x00\x00\x00"))))
	if r := h.feed(v9(3, 5, rec)); h.names.Text(r[0].App) != "http" {
		t.Errorf("with a name: %q", h.names.Text(r[0].App))
	}
}

func TestClock(t *testing.T) {
	b := v9(1, 5, set(0, tmpl(256, usual...)), set(256, usualRecord(0)))
	for _, c := range []struct {
		name    string
		off     time.Duration // of the exporter against us
		quality flow.Quality
		skew    time.Duration
		start   time.Duration // against our clock
	}{
		{"right", 0, 0, 0, -10 * time.Second},
		{"within the tolerance", 20 * time.Second, 0, 0, 10 * time.Second},
		{"beyond it", -5 * time.Minute, flow.QualityClockSkew, -5 * time.Minute, -310 * time.Second},
		{"unusable", 48 * time.Hour, flow.QualityClockUnusable, 0, 0},
	} {
		h := newHarness(DecoderConfig{})
		h.now = flow.Time(t0 * 1000).Add(-c.off)
		r := h.feed(b)[0]
		if q := r.Quality & (flow.QualityClockSkew | flow.QualityClockUnusable); q != c.quality {
			t.Errorf("%s: quality %v", c.name, q.Texts())
		}
		if got := time.Duration(r.Skew) * time.Millisecond; got != c.skew {
			t.Errorf("%s: skew %s, want %s", c.name, got, c.skew)
		}
		if got := r.Start.Sub(h.now); got != c.start {
			t.Errorf("%s: start is %s from receipt, want %s", c.name, got, c.start)
		}
		believed := newHarness(DecoderConfig{BelieveClock: true})
		believed.now = h.now
		if r := believed.feed(b)[0]; r.Start != t0*1000-10_000 || r.Quality&(flow.QualityClockSkew|flow.QualityClockUnusable) != 0 {
			t.Errorf("%s, believed: %s %v", c.name, r.Start, r.Quality.Texts())
		}
	}
}

func TestTimes(t *testing.T) {
	export := flow.Time(t0 * 1000)
	ntp := func(ms int64) []byte {
		return u64(uint64(ms/1000+2_208_988_800)<<32 | uint64(ms%1000)<<32/1000 + 1)
	}
	for _, c := range []struct {
		name       string
		pairs      []int
		record     []byte
		start, end flow.Time
		quality    flow.Quality
	}{
		{"seconds", []int{8, 4, 150, 4, 151, 4}, cat(u32(1), u32(t0-60), u32(t0-1)), export - 60_000, export - 1000, 0},
		{"milliseconds", []int{8, 4, 152, 8, 153, 8}, cat(u32(1), u64(t0*1000-1500), u64(t0*1000-500)), export - 1500, export - 500, 0},
		{"microseconds", []int{8, 4, 154, 8, 155, 8}, cat(u32(1), ntp(t0*1000-1500), ntp(t0*1000-500)), export - 1500, export - 500, 0},
		{"nanoseconds", []int{8, 4, 156, 8, 157, 8}, cat(u32(1), ntp(t0*1000-1500), ntp(t0*1000-500)), export - 1500, export - 500, 0},
		{"milliseconds before seconds", []int{8, 4, 150, 4, 152, 8, 153, 8}, cat(u32(1), u32(t0-9), u64(t0*1000-1500), u64(t0*1000-500)), export - 1500, export - 500, 0},
		{"delta", []int{8, 4, 158, 4, 159, 4}, cat(u32(1), u32(2_000_000), u32(1_000_000)), export - 2000, export - 1000, 0},
		{"end and duration", []int{8, 4, 153, 8, 161, 4}, cat(u32(1), u64(t0*1000), u32(700)), export - 700, export, 0},
		{"start and event", []int{8, 4, 152, 8, 323, 8}, cat(u32(1), u64(t0*1000-900), u64(t0*1000-100)), export - 900, export - 100, 0},
		{"system start in the record", []int{8, 4, 160, 8, 22, 4, 21, 4}, cat(u32(1), u64(t0*1000-50_000), u32(10_000), u32(20_000)), export - 40_000, export - 30_000, 0},
		{"no system start", []int{8, 4, 22, 4, 21, 4}, cat(u32(1), u32(10_000), u32(20_000)), export - 10_000, export, flow.QualityTimeMissing},
		{"none", []int{8, 4}, u32(1), export, export, flow.QualityTimeMissing},
		{"impossible", []int{8, 4, 152, 8, 153, 8}, cat(u32(1), u64(1), u64(1<<63)), export, export, flow.QualityTimeMissing},
		{"reversed", []int{8, 4, 150, 4, 151, 4}, cat(u32(1), u32(t0-1), u32(t0-60)), export - 1000, export - 1000, flow.QualityTimeReversed},
	} {
		h := newHarness(DecoderConfig{BelieveClock: true})
		r := h.feed(ipfixMsg(0, 1, set(2, tmpl(256, c.pairs...)), set(256, c.record)))
		if len(r) != 1 {
			t.Errorf("%s: %d records", c.name, len(r))
			continue
		}
		if r[0].Start != c.start || r[0].End != c.end {
			t.Errorf("%s: %s to %s, want %s to %s", c.name, r[0].Start, r[0].End, c.start, c.end)
		}
		if q := r[0].Quality & (flow.QualityTimeMissing | flow.QualityTimeReversed); q != c.quality {
			t.Errorf("%s: quality %v, want %v", c.name, q.Texts(), c.quality.Texts())
		}
	}
}

func TestSequence(t *testing.T) {
	for _, c := range []struct {
		name                     string
		seqs                     []uint32
		gaps, reordered, restart uint64
	}{
		{"in order", []uint32{5, 6, 7}, 0, 0, 0},
		{"a gap", []uint32{5, 9}, 3, 0, 0},
		{"late, not lost", []uint32{5, 7, 6, 8}, 0, 1, 0},
		{"wraps", []uint32{0xffffffff, 0, 1}, 0, 0, 0},
		{"started over", []uint32{100_000, 1, 2}, 0, 0, 1},
	} {
		h := newHarness(DecoderConfig{BelieveClock: true})
		for _, s := range c.seqs {
			h.feed(v9(s, 1, layoutA))
		}
		a := h.account()
		if a.Gaps != c.gaps || a.Reordered != c.reordered || a.Restarts != c.restart {
			t.Errorf("%s: %d gaps, %d reordered, %d restarts", c.name, a.Gaps, a.Reordered, a.Restarts)
		}
	}
	// IPFIX counts data records; a message that lost 3 records.
	h := newHarness(DecoderConfig{BelieveClock: true})
	h.feed(ipfixMsg(0, 6, set(2, variedTemplate(300)), set(300, variedRecord("a"), variedRecord("b"))))
	h.feed(ipfixMsg(5, 6, set(300, variedRecord("c"))))
	if g := h.account().Gaps; g != 3 {
		t.Errorf("IPFIX: %d gaps, want 3", g)
	}
}

func TestSFlow(t *testing.T) {
	tcp := tcpHeader(0x12)
	for _, c := range []struct {
		name   string
		header []byte
		want   fact
	}{
		{"IPv4 in two VLAN tags", ethernetFrame(0x0800, []int{10, 20}, ip4Packet(6, 0, tcp)), fact{"src_addr": "10.0.0.1", "dst_addr": "10.0.0.2", "src_port": "40000", "dst_port": "443", "proto": "6", "tcp_flags": "18"}},
		{"IPv6 with extension headers", ethernetFrame(0x86dd, nil, ip6Packet(0, cat([]byte{60, 0, 1, 4, 0, 0, 0, 0}, []byte{6, 0, 1, 4, 0, 0, 0, 0}, tcp))), fact{"src_addr": "2001:db8::1", "proto": "6", "dst_port": "443"}},
		{"ICMPv6", ethernetFrame(0x86dd, nil, ip6Packet(58, []byte{128, 0, 0, 0, 0, 0, 0, 0})), fact{"proto": "58", "icmp_type": "128", "icmp_code": "0", "src_port": ""}},
		{"a later fragment has no ports", ethernetFrame(0x0800, nil, ip4Packet(17, 100, make([]byte, 40))), fact{"proto": "17", "src_port": ""}},
		{"MPLS", ethernetFrame(0x8847, nil, cat(u32(0x00010040), u32(0x00011140), ip4Packet(6, 0, tcp))), fact{"src_addr": "10.0.0.1", "dst_port": "443"}},
		{"ARP", ethernetFrame(0x0806, nil, make([]byte, 28)), fact{"src_addr": "", "proto": ""}},
		{"cut in the IP header", ethernetFrame(0x0800, nil, ip4Packet(6, 0, tcp))[:30], fact{"src_addr": ""}},
	} {
		for _, format := range []uint32{1, 3} {
			h := newHarness(DecoderConfig{})
			r := h.feed(sflowDatagram(1, sflowSample(format, c.header, 1500)))
			if len(r) != 1 {
				t.Fatalf("%s: %d records", c.name, len(r))
			}
			c.want["bytes_raw"], c.want["packets"], c.want["sampling_rate"], c.want["in_if"], c.want["out_if"] = "1500", "512", "512", "3", "7"
			c.want["exporter"], c.want["domain"] = "10.0.0.254", "9"
			got := view(&r[0], h.names)
			for k, v := range c.want {
				if got[k] != v {
					t.Errorf("%s, format %d: %s is %q, want %q", c.name, format, k, got[k], v)
				}
			}
			if r[0].Start != h.now || r[0].Quality&flow.QualityTimeMissing != 0 {
				t.Errorf("%s: sFlow's time is its receipt", c.name)
			}
			h.check(t)
		}
	}
}

func TestSnapshot(t *testing.T) {
	h := newHarness(DecoderConfig{})
	all := generated()
	h.feed(v9(9, 5, set(999, usualRecords(1)))) // waits
	for _, b := range all {
		h.feed(b)
	}
	for range 2 { // one split by port, one quarantined
		h.feed(v9(20, 7, layoutA))
		h.port++
		h.feed(v9(21, 7, layoutB))
		h.port--
		h.feed(v9(20, 8, layoutA))
		h.feed(v9(21, 8, layoutB))
	}
	state, err := h.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	r := newHarness(DecoderConfig{})
	r.names.Intern("something else") // names are not the same numbers
	if err := r.Restore(state); err != nil {
		t.Fatal(err)
	}
	again, err := r.Snapshot()
	if err != nil || !bytes.Equal(state, again) {
		t.Fatalf("state changed on its way (%v):\n%s\n%s", err, state, again)
	}
	r.now, r.pos = h.now, h.pos
	for _, b := range append(all, v9(10, 5, set(0, tmpl(999, usual...))), v9(22, 7, twoAddr), v9(23, 8, twoAddr)) {
		want, got := h.feed(b), r.feed(b)
		if len(want) != len(got) {
			t.Fatalf("%d records after restoring, %d without", len(got), len(want))
		}
		for i := range want {
			a, b := string(want[i].AppendJSON(nil, h.names.Texts())), string(got[i].AppendJSON(nil, r.names.Texts()))
			if a != b || want[i].ID != got[i].ID {
				t.Errorf("after restoring:\n%s\nwithout:\n%s", b, a)
			}
		}
	}
	if d := cmp.Diff(h.Ledger(), r.Ledger()); d != "" {
		t.Error(d)
	}
	if err := r.Restore([]byte(`{"version":99}`)); err == nil || !strings.Contains(err.Error(), "99") {
		t.Errorf("another version: %v", err)
	}
}

func TestDecoderConfig(t *testing.T) {
	c := DefaultDecoderConfig()
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	c.ParkTime = -1
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "parkTime") {
		t.Errorf("a negative parkTime: %v", err)
	}
	c = DefaultDecoderConfig()
	c.Sampling = []SamplingRule{{}}
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "rate") {
		t.Errorf("a rule without a rate: %v", err)
	}
}

func TestDecoderConfigYAML(t *testing.T) {
	var c DecoderConfig
	text := "clockTolerance: 10s\nparkBytes: 2MiB\nbiflowInitiator: [192.0.2.7, 2001:db8::/32]\nsampling:\n- {exporter: 192.0.2.0/24, sampler: 1, rate: 1000}\n- {rate: 2}\n"
	if err := yaml.Unmarshal([]byte(text), &c); err != nil {
		t.Fatal(err)
	}
	one := uint64(1)
	want := DecoderConfig{ClockTolerance: 10 * time.Second, ParkBytes: 2 * flow.MiB,
		BiflowInitiator: []ExporterPrefix{{netip.MustParsePrefix("192.0.2.7/32")}, {netip.MustParsePrefix("2001:db8::/32")}},
		Sampling:        []SamplingRule{{Exporter: ExporterPrefix{netip.MustParsePrefix("192.0.2.0/24")}, Sampler: &one, Rate: 1000}, {Rate: 2}}}
	if d := cmp.Diff(want, c, cmp.Comparer(func(a, b ExporterPrefix) bool { return a == b })); d != "" {
		t.Error(d)
	}
	for _, bad := range []string{"sampling: [{exporter: router1, rate: 2}]", "biflowInitiator: [192.0.2.7/24]"} {
		if err := yaml.Unmarshal([]byte(bad), &c); err == nil || !strings.Contains(err.Error(), "write") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// Ids tell source, position, set and record apart, and only those.
func TestRecordIDs(t *testing.T) {
	seen := map[uint64]string{}
	for source := range uint64(3) {
		h := newHarness(DecoderConfig{BelieveClock: true, SourceID: source})
		h.feed(v9(1, 5, set(0, tmpl(256, usual...))))
		for range 50 {
			for i, r := range h.feed(v9(2, 5, set(256, usualRecords(20)), set(256, usualRecords(20)))) {
				at := fmt.Sprint(source, h.pos, i)
				if other, twice := seen[r.ID]; twice {
					t.Fatalf("%s and %s have one id", at, other)
				}
				seen[r.ID] = at
			}
		}
	}
	a, b := newHarness(DecoderConfig{BelieveClock: true, SourceID: 7}), newHarness(DecoderConfig{BelieveClock: true, SourceID: 7})
	if x, y := a.feed(v5(1, 1))[0].ID, b.feed(v5(1, 1))[0].ID; x != y {
		t.Errorf("the same input gives ids %x and %x", x, y)
	}
}

// A panic while decoding costs that datagram and nothing else.
func TestPanic(t *testing.T) {
	h := newHarness(DecoderConfig{BelieveClock: true})
	h.feed(v9(1, 5, layoutA))
	h.Decoder.exporters[testExporter].domains[domainKey{flow.SourceNetFlowV9, 5}].slots[256].cur.plan = nil // what no input can do
	if r := h.feed(v9(2, 5, twoAddr)); len(r) != 0 {
		t.Error("records of a datagram that failed")
	}
	if h.account().Datagrams.Rejected[flow.RejectPanic] != 1 {
		t.Error("the panic is not counted")
	}
	if r := h.feed(v5(1, 1)); len(r) != 1 {
		t.Error("the decoder does not go on")
	}
	h.check(t)
}

// Decoding a datagram of known templates does not allocate at all.
func TestDecodeAllocates(t *testing.T) {
	for name, b := range map[string][]byte{
		"v5": v5(30, 30), "v9": v9(2, 5, set(256, usualRecords(24))),
		"IPFIX": ipfixMsg(2, 6, set(300, variedRecord("alice"), variedRecord("bob"))),
		"sFlow": generated()[7],
	} {
		h := newHarness(DecoderConfig{})
		h.out = flow.NewBatch(64, nil)
		h.feed(v9(1, 5, set(0, tmpl(256, usual...))))
		h.feed(ipfixMsg(0, 6, set(2, variedTemplate(300)), set(300, variedRecord("alice"), variedRecord("bob"))))
		h.feed(b)
		dg := &Datagram{Received: h.now, Exporter: testExporter, Port: 2055, Payload: b}
		n := testing.AllocsPerRun(200, func() {
			h.out.Records = h.out.Records[:0]
			dg.Position++
			h.Decode(dg, h.out)
		})
		if n != 0 || len(h.out.Records) == 0 {
			t.Errorf("%s: %v allocations a datagram of %d records", name, n, len(h.out.Records))
		}
	}
}
