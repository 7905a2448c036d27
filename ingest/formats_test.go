package ingest

import (
	"bytes"
	"maps"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/netsampler/goflow2/v2/decoders/netflow"
	"github.com/netsampler/goflow2/v2/decoders/netflowlegacy"
)

// docs/formats.md lists exactly the elements that are read.
func TestFormatsPage(t *testing.T) {
	page, err := os.ReadFile("../docs/formats.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile(`^\| ([0-9, ]+) \|`)
	tables := map[string][]uint16{}
	head := ""
	for line := range strings.SplitSeq(string(page), "\n") {
		if m := row.FindStringSubmatch(line); m != nil {
			for n := range strings.SplitSeq(m[1], ",") {
				v, err := strconv.ParseUint(strings.TrimSpace(n), 10, 16)
				if err != nil {
					t.Fatal(err)
				}
				tables[head] = append(tables[head], uint16(v))
			}
		} else if cols := strings.Split(line, "|"); len(cols) > 2 && !strings.HasPrefix(line, "|--") {
			head = strings.TrimSpace(cols[1])
		}
	}
	for head, m := range map[string]map[uint16]target{"element": elements, "reverse element (enterprise 29305)": reverseElements,
		"element of YAF (enterprise 6871)": yafElements, "element of v9 beyond the registry": privateElements} {
		got := slices.Sorted(slices.Values(tables[head]))
		if d := cmp.Diff(slices.Sorted(maps.Keys(m)), got); d != "" {
			t.Errorf("table %q: the code reads (-), the page lists (+):\n%s", head, d)
		}
	}
}

// TestGoflow2 holds the reasons for not walking messages with goflow2. Should one
// no longer be true, look at docs/formats.md, "Why not goflow2's walk", again.
func TestGoflow2(t *testing.T) {
	decode := func(ts netflow.NetFlowTemplateSystem, b []byte) (records int, err error) {
		var p9 netflow.NFv9Packet
		var p10 netflow.IPFIXPacket
		err = netflow.DecodeMessageVersion(bytes.NewBuffer(b), ts, &p9, &p10)
		for _, s := range append(p9.FlowSets, p10.FlowSets...) {
			if d, ok := s.(netflow.DataFlowSet); ok {
				records += len(d.Records)
			}
		}
		return records, err
	}
	ours := func(b ...[]byte) (int, bool) {
		h := newHarness(DecoderConfig{BelieveClock: true})
		n := 0
		for _, b := range b {
			n += len(h.feed(b))
		}
		return n, h.account().Datagrams.Rejected.Sum() > 0
	}
	for _, c := range []struct {
		name         string
		b            []byte
		records      int  // that goflow2 gives
		fails        bool // whether it says so
		ours         int
		oursRejected bool
	}{
		{"a set of a reserved id ends the message", ipfixMsg(0, 1, set(2, tmpl(256, 8, 4)), set(4, u32(0)), set(256, u32(1))), 0, true, 1, false},
		{"a set longer than its message is cut silently", v9(1, 1, set(0, tmpl(256, 8, 4)), cat(u16(256), u16(400), u32(1))), 1, false, 1, true},
		{"data beyond v9's count is not read", func() []byte {
			b := v9(1, 1, set(0, tmpl(256, 8, 4)), set(256, u32(1)))
			copy(b[2:], u16(1))
			return b
		}(), 0, false, 1, false},
		{"an IPFIX length below 16 wraps", func() []byte {
			b := ipfixMsg(0, 1, set(2, tmpl(256, 8, 4)), set(256, u32(1)))
			copy(b[2:], u16(8))
			return b
		}(), 1, false, 0, true},
	} {
		n, err := decode(netflow.CreateTemplateSystem(), c.b)
		if n != c.records || (err != nil) != c.fails {
			t.Errorf("%s: goflow2 gives %d records, error %v; noted are %d, %v", c.name, n, err, c.records, c.fails)
		}
		if n, rejected := ours(c.b); n != c.ours || rejected != c.oursRejected {
			t.Errorf("%s: we give %d records, rejected %v; want %d, %v", c.name, n, rejected, c.ours, c.oursRejected)
		}
	}
	t.Run("a v5 count is believed", func(t *testing.T) {
		var p netflowlegacy.PacketNetFlowV5
		if err := netflowlegacy.DecodeMessageVersion(bytes.NewBuffer(v5(55_582, 30)), &p); err != nil || len(p.Records) != 55_582 {
			t.Errorf("%d records, %v", len(p.Records), err)
		}
	})
	t.Run("a withdrawal of an options template reads on", func(t *testing.T) {
		b := ipfixMsg(0, 1, set(3, u16(300), u16(0)), set(2, tmpl(256, 8, 4)), set(256, u32(1)))
		if _, err := decode(netflow.CreateTemplateSystem(), b); err == nil {
			t.Error("goflow2 reads it")
		}
		if n, rejected := ours(b); n != 1 || rejected {
			t.Errorf("we give %d records, rejected %v", n, rejected)
		}
	})
	t.Run("a claim of 65,535 fields allocates", func(t *testing.T) {
		b := v9(1, 1, set(0, cat(u16(256), u16(65535), u32(0x00080004))))
		size := func(f func()) uint64 {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			f()
			runtime.ReadMemStats(&after)
			return after.TotalAlloc - before.TotalAlloc
		}
		if n := size(func() { decode(netflow.CreateTemplateSystem(), b) }); n < 500_000 {
			t.Errorf("goflow2 allocates %d bytes", n)
		}
		h := newHarness(DecoderConfig{})
		h.feed(v9(0, 1, set(0, tmpl(256, 8, 4))))
		if n := size(func() { h.feed(b) }); n > 10_000 {
			t.Errorf("we allocate %d bytes", n)
		}
	})
}
