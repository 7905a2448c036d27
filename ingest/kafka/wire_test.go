package kafka

import (
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
)

var update = flag.Bool("update", false, "write the golden files of this wire version anew")

var testHeader = Header{Producer: [16]byte{1, 2, 3, 15: 16}, Epoch: 7, Partition: 5, Partitions: 12, Seq: 1 << 40}

// stays lists the fields of flow.Record that do not travel, and why.
var stays = map[string]string{
	"ID":                   "made anew of the batch's header and the index",
	"Oriented":             "filled by enrich, behind the topic",
	"OtherHalf":            "filled by enrich, behind the topic",
	"SrcSegment":           "filled by enrich, behind the topic",
	"DstSegment":           "filled by enrich, behind the topic",
	"SrcWorkload":          "filled by enrich, behind the topic",
	"DstWorkload":          "filled by enrich, behind the topic",
	"OrientationCertainty": "filled by enrich, behind the topic",
	"SrcDoubt":             "filled by enrich, behind the topic",
	"DstDoubt":             "filled by enrich, behind the topic",
	"SrcSilence":           "filled by enrich, behind the topic",
	"DstSilence":           "filled by enrich, behind the topic",
	"SrcIdentityFrom":      "filled by enrich, behind the topic",
	"DstIdentityFrom":      "filled by enrich, behind the topic",
	"Verdict":              "filled by judging, behind the topic",
}

// decode decodes on a decoder of its own and fails on error.
func decode(tb testing.TB, names *flow.Names, value []byte) (Header, []flow.Record) {
	tb.Helper()
	out := flow.NewBatch(0, nil)
	h, err := NewDecoder(names).Decode(value, out)
	if err != nil {
		tb.Fatal(err)
	}
	return h, out.Records
}

// fields calls f with every field of the record that is a number or an address.
func fields(v reflect.Value, f func(name string, v reflect.Value)) {
	for i := range v.NumField() {
		f(v.Type().Field(i).Name, v.Field(i))
	}
}

// A new field of flow.Record either gets a column or a reason in stays.
func TestEveryFieldTravels(t *testing.T) {
	var set func(v reflect.Value)
	set = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.Bool:
			v.SetBool(true)
		case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
			v.SetInt(3)
		case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
			v.SetUint(3)
		case reflect.Struct:
			fields(v, func(_ string, v reflect.Value) { set(v) })
		case reflect.Array:
			for i := range v.Len() {
				set(v.Index(i))
			}
		default:
			t.Fatalf("a field of kind %v: teach this test", v.Kind())
		}
	}
	names := flow.NewNames(0)
	for _, s := range []string{"two", "three"} {
		names.Intern(s)
	}
	var all []string
	fields(reflect.ValueOf(&flow.Record{}).Elem(), func(name string, _ reflect.Value) { all = append(all, name) })
	for i, name := range all {
		// One row alone has constant columns, three have packed ones.
		for _, rows := range []int{1, 3} {
			in := make([]flow.Record, rows)
			set(reflect.ValueOf(&in[0]).Elem().Field(i))
			_, out := decode(t, names, NewEncoder(names).Append(nil, testHeader, in))
			for row := range in {
				in[row].ID = out[row].ID
			}
			switch same := cmp.Equal(in, out); {
			case stays[name] == "" && !same:
				t.Errorf("field %s does not travel: give it a column, or list it in stays with the reason\n%s", name, cmp.Diff(in, out))
			case stays[name] != "" && same && name != "ID":
				t.Errorf("field %s travels though stays says it does not: %s", name, stays[name])
			}
			for row := range out {
				want := in[row]
				reflect.ValueOf(&want).Elem().Field(i).Set(reflect.ValueOf(&out[row]).Elem().Field(i))
				if diff := cmp.Diff(want, out[row]); diff != "" {
					t.Errorf("field %s changes others:\n%s", name, diff)
				}
			}
		}
	}
	for name := range stays {
		if _, ok := reflect.TypeFor[flow.Record]().FieldByName(name); !ok {
			t.Errorf("stays lists %s, which no record has", name)
		}
	}
}

// randomRecords makes n records in which every travelling field takes every kind of
// value: absent, alike, small, spread out and of full width.
func randomRecords(rnd *rand.Rand, names *flow.Names, n int) []flow.Record {
	texts := []flow.Name{flow.NoName, flow.OverflowName}
	for i := range 40 {
		texts = append(texts, names.Intern(strings.Repeat("né", rnd.IntN(9))+fmt.Sprint(i)))
	}
	hosts := make([]flow.Addr, 1+rnd.IntN(300))
	for i := range hosts {
		switch rnd.IntN(8) {
		case 0:
			hosts[i] = flow.Addr{Hi: 0x20010db8_00000000 | uint64(rnd.IntN(4)), Lo: rnd.Uint64()}
		case 1:
			hosts[i] = flow.Addr{Hi: rnd.Uint64(), Lo: rnd.Uint64()}
		default:
			hosts[i] = flow.AddrFrom4(rnd.Uint32() >> 16)
		}
	}
	out := make([]flow.Record, n)
	v := reflect.ValueOf(out)
	for i, f := range reflect.VisibleFields(reflect.TypeFor[flow.Record]()) {
		if stays[f.Name] != "" {
			continue
		}
		kind, shift, constant := rnd.IntN(6), rnd.IntN(64), rnd.Uint64()
		number := func() uint64 {
			switch kind {
			case 0:
				return 0
			case 1:
				return constant
			case 2:
				return constant + rnd.Uint64()>>shift
			case 3: // few values
				return constant * uint64(rnd.IntN(5))
			case 4: // mostly small
				if rnd.IntN(50) == 0 {
					return rnd.Uint64()
				}
				return rnd.Uint64N(100)
			}
			return rnd.Uint64()
		}
		for row := range n {
			field := v.Index(row).Field(i)
			switch {
			case field.Type() == reflect.TypeFor[flow.Addr]():
				switch kind {
				case 0:
				case 1:
					field.Set(reflect.ValueOf(hosts[0]))
				case 2:
					field.Set(reflect.ValueOf(flow.Addr{Hi: rnd.Uint64(), Lo: rnd.Uint64()}))
				default:
					field.Set(reflect.ValueOf(hosts[rnd.IntN(len(hosts))]))
				}
			case field.Type() == reflect.TypeFor[flow.Name]():
				field.SetUint(uint64(texts[number()%uint64(len(texts))]))
			case field.CanInt():
				field.SetInt(int64(number()) << (64 - field.Type().Bits()) >> (64 - field.Type().Bits()))
			default:
				field.SetUint(number() << (64 - field.Type().Bits()) >> (64 - field.Type().Bits()))
			}
		}
	}
	for i := range out {
		if r := &out[i]; r.NamesFull() {
			r.Quality |= flow.QualityNamesFull
		}
	}
	return out
}

// withIDs is records as they come back under h.
func withIDs(h Header, records []flow.Record) []flow.Record {
	for i := range records {
		records[i].ID = flow.Mix(h.seed() + uint64(i))
	}
	return records
}

func TestRoundTrip(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	names := flow.NewNames(0)
	enc, dec := NewEncoder(names), NewDecoder(names)
	out := flow.NewBatch(0, nil)
	for round := range 150 {
		n := []int{0, 1, 2, 7, 8, 9, 255, 257, BatchRows - 1, BatchRows}[rnd.IntN(10)]
		h := Header{Epoch: rnd.Uint32(), Partition: rnd.Uint32(), Partitions: rnd.Uint32(), Seq: rnd.Uint64()}
		binary.LittleEndian.PutUint64(h.Producer[8:], rnd.Uint64())
		in := withIDs(h, randomRecords(rnd, names, n))
		value := enc.Append([]byte("before"), h, in)[len("before"):]
		before := len(out.Records)
		got, err := dec.Decode(value, out)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if got != h {
			t.Fatalf("round %d: header %+v, want %+v", round, got, h)
		}
		if diff := cmp.Diff(in, out.Records[before:], cmp.Transformer("none", func(r []flow.Record) []flow.Record { return append([]flow.Record{}, r...) })); diff != "" {
			t.Fatalf("round %d, %d records:\n%s", round, n, diff)
		}
		if again := enc.Append(nil, h, out.Records[before:]); string(again) != string(value) {
			t.Fatalf("round %d: encoding what was decoded gives other bytes", round)
		}
		if h2, rows, err := ReadHeader(value); h2 != h || rows != n || err != nil {
			t.Fatalf("round %d: ReadHeader gave %+v, %d, %v", round, h2, rows, err)
		}
		if len(out.Records) > 5000 {
			out.Records = out.Records[:0]
		}
	}
}

// The names of one process are numbers, another has others for the same texts.
func TestNamesAreText(t *testing.T) {
	here, there := flow.NewNames(0), flow.NewNames(3)
	there.Intern("occupied")
	in := []flow.Record{
		{User: here.Intern("alice"), App: here.Intern("ssh"), SrcIdentity: here.Intern("alice")},
		{DstIdentity: here.Intern("alice"), User: flow.OverflowName},
	}
	there = flow.NewNames(0)
	there.Intern("occupied")
	_, out := decode(t, there, NewEncoder(here).Append(nil, testHeader, in))
	for i, want := range [][4]string{{"alice", "ssh", "alice", ""}, {"(too many names)", "", "", "alice"}} {
		r := &out[i]
		if got := [4]string{there.Text(r.User), there.Text(r.App), there.Text(r.SrcIdentity), there.Text(r.DstIdentity)}; got != want {
			t.Errorf("record %d has names %q, want %q", i, got, want)
		}
	}
	if out[1].User != flow.OverflowName || out[1].Quality != flow.QualityNamesFull || out[0].Quality != 0 {
		t.Errorf("overflow: name %d, quality %v and %v", out[1].User, out[0].Quality.Texts(), out[1].Quality.Texts())
	}
	full := flow.NewNames(3) // room for one
	_, out = decode(t, full, NewEncoder(here).Append(nil, testHeader, in[:1]))
	if full.Text(out[0].User) != "alice" || out[0].App != flow.OverflowName || out[0].Quality != flow.QualityNamesFull {
		t.Errorf("a full table: user %q, app %d, quality %v", full.Text(out[0].User), out[0].App, out[0].Quality.Texts())
	}
}

func TestIDs(t *testing.T) {
	names := flow.NewNames(0)
	seen := map[uint64]string{}
	in := make([]flow.Record, BatchRows)
	base := testHeader
	for what, change := range map[string]func(*Header){
		"base":      func(*Header) {},
		"producer":  func(h *Header) { h.Producer[0]++ },
		"producer2": func(h *Header) { h.Producer[15]++ },
		"epoch":     func(h *Header) { h.Epoch++ },
		"partition": func(h *Header) { h.Partition++ },
		"sequence":  func(h *Header) { h.Seq++ },
	} {
		h := base
		change(&h)
		_, out := decode(t, names, NewEncoder(names).Append(nil, h, in))
		for i, r := range out {
			at := fmt.Sprint(what, " ", i)
			if other, ok := seen[r.ID]; ok {
				t.Fatalf("%s and %s have the same id", at, other)
			}
			seen[r.ID] = at
		}
	}
}

// The vectors were computed by another implementation of XXH64, written after its
// specification, and are fixed for good.
func TestPartition(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want map[int]int // by the number of partitions
	}{
		{"10.0.0.1", "10.0.0.2", map[int]int{1: 0, 2: 0, 12: 1, 1000: 111, 1073741824: 119634546}},
		{"10.0.0.2", "10.0.0.1", map[int]int{1: 0, 2: 0, 12: 1, 1000: 111, 1073741824: 119634546}},
		{"192.0.2.7", "192.0.2.7", map[int]int{1: 0, 2: 1, 12: 8, 1000: 733, 1073741824: 787634067}},
		{"10.0.0.1", "2001:db8::1", map[int]int{1: 0, 2: 1, 12: 8, 1000: 669, 1073741824: 718559176}},
		{"2001:db8::1", "2001:db8::2", map[int]int{1: 0, 2: 0, 12: 0, 1000: 8, 1073741824: 8732141}},
		{"64:ff9b::a00:1", "10.0.0.2", map[int]int{1: 0, 2: 0, 12: 1, 1000: 111, 1073741824: 119634546}},
		{"::", "10.0.0.1", map[int]int{1: 0, 2: 0, 12: 0, 1000: 49, 1073741824: 53501783}},
		{"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::", map[int]int{1: 0, 2: 1, 12: 11, 1000: 922, 1073741824: 990201477}},
	} {
		a, b := flow.MustParseAddr(c.a), flow.MustParseAddr(c.b)
		for n, want := range c.want {
			if got, back := Partition(a, b, n), Partition(b, a, n); got != want || back != want {
				t.Errorf("%s and %s of %d: %d, the other way round %d, want %d", c.a, c.b, n, got, back, want)
			}
		}
		if Partition(a, b, 0) != 0 || Partition(a, b, -1) != 0 {
			t.Errorf("%s and %s of no partitions: not 0", c.a, c.b)
		}
	}
}

// A reader skips what it does not know and takes what is missing as zero.
func TestRollingUpgrade(t *testing.T) {
	names := flow.NewNames(0)
	in := withIDs(testHeader, randomRecords(rand.New(rand.NewPCG(3, 4)), names, 100))
	value := NewEncoder(names).Append(nil, testHeader, in)
	newer := append([]byte{}, value...)
	newer[5]++ // a later minor version
	for _, id := range []byte{0, numColumns, 255} {
		newer = append(newer, id, 99, 3, 0, 0, 0, 'n', 'e', 'w')
		newer[headerSize-1]++
	}
	if _, out := decode(t, names, newer); !cmp.Equal(in, out) {
		t.Errorf("a value with unknown columns reads differently:\n%s", cmp.Diff(in, out))
	}
	bare := testHeader.append(nil, 3)
	if _, out := decode(t, names, bare); !cmp.Equal(withIDs(testHeader, make([]flow.Record, 3)), out) {
		t.Errorf("a value without columns: %+v", out)
	}
	// A column that the batch before had filled is zero again.
	dec, out := NewDecoder(names), flow.NewBatch(0, nil)
	for _, v := range [][]byte{value, bare} {
		out.Records = out.Records[:0]
		if _, err := dec.Decode(v, out); err != nil {
			t.Fatal(err)
		}
	}
	if !cmp.Equal(withIDs(testHeader, make([]flow.Record, 3)), out.Records) {
		t.Errorf("a value without columns after another: %+v", out.Records)
	}
}

func TestErrors(t *testing.T) {
	names := flow.NewNames(0)
	column := func(rows int, columns ...[]byte) []byte {
		v := testHeader.append(nil, rows)
		for _, c := range columns {
			v[headerSize-1]++
			v = append(v, c[0], c[1])
			v = binary.LittleEndian.AppendUint32(v, uint32(len(c)-2))
			v = append(v, c[2:]...)
		}
		return v
	}
	good := column(4, []byte{colProto, encConst, 6})
	with := func(at int, b ...byte) []byte {
		v := append([]byte{}, good...)
		copy(v[at:], b)
		return v
	}
	many := binary.AppendUvarint(nil, maxEntries+1)
	for _, c := range []struct {
		value []byte
		want  string
	}{
		{nil, `no batch of flows: 0 bytes that do not begin with "PFLW" and a version`},
		{[]byte(`{"type":"FLOW"}`), `no batch of flows: 15 bytes that do not begin with "PFLW" and a version`},
		{with(4, 2), "a batch of flows of wire version 2, this binary reads versions up to 1: upgrade detectors before collectors"},
		{with(4, 0), "a batch of flows of wire version 0, which never was: versions begin at 1"},
		{good[:headerSize-1], "a batch of flows cut short: 44 bytes, its header has 45"},
		{with(6, 1, 4), "a batch of flows with 1025 rows, at most 1024 are allowed"},
		{good[:headerSize+3], "a batch of flows cut short: 1 columns, the 1. begins 3 bytes before the end"},
		{good[:len(good)-1], "a batch of flows cut short: column 34 has 1 bytes, 0 are left"},
		{append(with(0), 0), "a batch of flows with 1 bytes after its last column"},
		{column(4, []byte{colProto, encConst, 6}, []byte{colProto, encConst, 6}), "a batch of flows with column proto twice"},
		{column(4, []byte{colProto, encConst}), "column proto: value: cut short or beyond 64 bits"},
		{column(4, []byte{colProto, encConst, 6, 6}), "column proto: 1 bytes after the last value"},
		{column(4, []byte{colProto, encConst, 0x80, 2}), "column proto: value 256, it can be at most 255"},
		{column(4, []byte{colProto, 7, 6}), "column proto: encoding 7, this binary reads 0 to 2"},
		{column(4, []byte{colProto, encTexts, 6}), "column proto: encoding 3, this binary reads 0 to 2"},
		{column(4, []byte{colProto, encPacked}), "column proto: base: cut short"},
		{column(4, []byte{colProto, encPacked, 1}), "column proto: cut short before the width"},
		{column(4, []byte{colProto, encPacked, 1, 57, 0}), "column proto: width 57, it can be 0 to 56 or 64"},
		{column(4, []byte{colProto, encPacked, 1, 4}), "column proto: number of exceptions: cut short"},
		{column(4, []byte{colProto, encPacked, 1, 4, 0, 0}), "column proto: 4 values of 4 bits take 2 bytes, 1 are left"},
		{column(4, []byte{colProto, encPacked, 1, 4, 1, 0, 0, 0}), "column proto: cut short within the exceptions"},
		{column(4, []byte{colProto, encPacked, 1, 4, 1, 0, 0, 4, 0, 1}), "column proto: exception for row 4 after row -1 of 4"},
		{column(4, []byte{colProto, encPacked, 1, 4, 2, 0, 0, 2, 0, 1, 2, 0, 1}), "column proto: exception for row 2 after row 2 of 4"},
		{column(4, []byte{colBytes, encPacked, 1, 64, 1}), "bytes: 4 values of 64 bits take 32 bytes, 0 are left"},
		{column(1, append(append([]byte{colBytes, encPacked, 0, 64, 1}, make([]byte, 8)...), 0, 0, 1)), "column bytes: exception for row 0 beyond 64 bits"},
		{column(4, []byte{colProto, encPacked, 0xff, 1, 1, 0, 0b0100}), "column proto: value 256, it can be at most 255"},
		{column(4, []byte{colProto, encPacked, 1, 1, 1, 0, 2, 0, 0x80, 1}), "column proto: value 257, it can be at most 255"},
		{column(4, []byte{colProto, encDict, 2, 6, 0x80, 2, 1, 0}), "column proto: value 256, it can be at most 255"},
		{column(4, []byte{colProto, encDict, 0}), "column proto: 0 entries, there can be 1 to 256"},
		{column(4, []byte{colProto, encDict, 2, 6}), "column proto: entry: cut short"},
		{column(4, []byte{colProto, encDict, 2, 6, 17, 2, 0b10_00_01_00}), "column proto: row 3 has entry 3 of 2"},
		{column(4, []byte{colSrc, encConst, 1}), "column src: value 1, it can be at most 0"},
		{column(4, []byte{colUser, encConst, 1}), "column user: value 1, it can be at most 0"},
		{column(4, []byte{colTexts, encConst, 1}), "column texts: encoding 0, it has encoding 3"},
		{column(4, []byte{colTexts, encTexts, 1, 3, 'a'}), "column texts: text 1 has 3 bytes, 1 are left"},
		{column(4, binary.AppendUvarint([]byte{colTexts, encTexts}, maxTexts+1)), "column texts: 10241 entries, there can be 10240"},
		{column(4, []byte{colAddr4, encConst, 0, 1}), "column addr4: 0 entries, there can be 1 to 5120"},
		{column(4, append(append([]byte{colAddr6Hi, encConst}, many...), 0)), "column addr6_hi: 5121 entries, there can be 1 to 5120"},
		{column(4, []byte{colAddr6Hi, encConst, 2, 1}, []byte{colAddr6Lo, encConst, 1, 1}), "column addr6_lo: 1 entries, column addr6_hi has 2"},
		{column(4, []byte{colAddr6Hi, encConst, 2, 1}), "column addr6_lo: 0 entries, column addr6_hi has 2"},
	} {
		out := flow.NewBatch(4, nil)
		out.Next().ID = 1
		_, err := NewDecoder(names).Decode(c.value, out)
		switch {
		case err == nil:
			t.Errorf("%x: no error, want %q", c.value, c.want)
		case !strings.Contains(err.Error(), c.want):
			t.Errorf("%x:\n got %q\nwant %q", c.value, err, c.want)
		}
		if len(out.Records) != 1 {
			t.Errorf("%x: %d records were appended", c.value, len(out.Records)-1)
		}
	}
	if held, _ := names.Len(); held != 2 {
		t.Errorf("refused values entered %d names", held-2)
	}
}

func TestAppendPanicsBeyondBatchRows(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	NewEncoder(flow.NewNames(0)).Append(nil, testHeader, make([]flow.Record, BatchRows+1))
}

func TestAllocations(t *testing.T) {
	names := flow.NewNames(0)
	enc, dec := NewEncoder(names), NewDecoder(names)
	in := randomRecords(rand.New(rand.NewPCG(5, 6)), names, BatchRows)
	out := flow.NewBatch(BatchRows, nil)
	var value []byte
	if n := testing.AllocsPerRun(20, func() {
		value = enc.Append(value[:0], testHeader, in)
		out.Records = out.Records[:0]
		if _, err := dec.Decode(value, out); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations a batch once warm", n)
	}
}

// golden are the batches of the golden files, made of fixed seeds.
func golden() (names *flow.Names, batches map[string][]flow.Record) {
	names = flow.NewNames(0)
	batches = map[string][]flow.Record{
		"empty": {},
		"all-fields": {{
			Start: 1_790_000_000_123, End: 1_790_000_001_456, Received: 1_790_000_003_000,
			Exporter: flow.MustParseAddr("192.0.2.1"), Src: flow.MustParseAddr("10.1.2.3"), Dst: flow.MustParseAddr("2001:db8::7"),
			NATSrc: flow.MustParseAddr("198.51.100.9"), NATDst: flow.MustParseAddr("2001:db8::8"), Domain: 9, SamplingRate: 1000,
			BytesRaw: 1234, PacketsRaw: 12, RevBytesRaw: 4321, RevPacketsRaw: 21, InIf: 3, OutIf: 4,
			User: names.Intern("CORP\\alice"), App: names.Intern("13..453"), SrcIdentity: names.Intern("alice@example.org"), DstIdentity: names.Intern("db-1"),
			Has: 1<<25 - 1, Quality: flow.QualityClockSkew | flow.QualityParked, Skew: -90_000,
			SrcPort: 51234, DstPort: 443, NATSrcPort: 1025, NATDstPort: 8443, TCPFlags: flow.SYN | flow.ACK, RevTCPFlags: flow.SYN | flow.RST,
			Proto: flow.ProtoTCP, Source: flow.SourceIPFIX, ICMPType: 8, ICMPCode: 1, ForwardingStatus: 0x40, FirewallEvent: 2, Direction: 1, BiflowDirection: 1,
			Observer: names.Intern("node-a"), EnforcedBy: names.Intern("shop/checkout-egress"), SrcHost: names.Intern("shop/checkout-1"), DstHost: names.Intern("data/orders-0"),
			SrcProcess: names.Intern("/usr/bin/curl"), DstProcess: names.Intern("/usr/lib/postgres"), Enforced: flow.ObservedDeny, Reporter: flow.ReporterDestination,
		}, {
			Start: 0, End: 1_790_000_001_456, Received: 1_790_000_002_000, Exporter: flow.MustParseAddr("2001:db8:ffff::1"),
			Src: flow.MustParseAddr("10.1.2.3"), Dst: flow.MustParseAddr("10.9.9.9"), Proto: flow.ProtoICMP, ICMPType: 3, ICMPCode: 13,
			BytesRaw: 1<<64 - 1, Has: flow.HasSrc | flow.HasDst | flow.HasICMP, Skew: 90_000, Source: flow.SourceNetFlowV9, DstIdentity: names.Intern("alice@example.org"),
		}},
	}
	for seed := range uint64(8) {
		rnd := rand.New(rand.NewPCG(seed, 42))
		batches[fmt.Sprintf("random-%d", seed)] = randomRecords(rnd, names, 20+rnd.IntN(60))
	}
	return names, batches
}

// readable is a record as a golden file's expectation has it: every travelling
// field by name, names as text.
func readable(names *flow.Names, r *flow.Record) map[string]any {
	m := map[string]any{"ID": fmt.Sprint(r.ID)}
	fields(reflect.ValueOf(r).Elem(), func(name string, v reflect.Value) {
		if stays[name] != "" || v.IsZero() {
			return
		}
		switch x := v.Interface().(type) {
		case flow.Name:
			m[name] = names.Text(x)
		case flow.Addr:
			m[name] = x.String()
		default:
			switch {
			case v.CanInt():
				m[name] = fmt.Sprint(v.Int())
			default:
				m[name] = fmt.Sprint(v.Uint())
			}
		}
	})
	return m
}

// TestGolden reads the files that each version of the format left behind. With
// -update it writes those of this version, and of no other; they are written once, before
// the version is first released, and kept.
func TestGolden(t *testing.T) {
	dir := filepath.Join("testdata", "wire")
	names, batches := golden()
	if *update {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, records := range batches {
			file := filepath.Join(dir, fmt.Sprintf("v%d.%d-%s", wireMajor, wireMinor, name))
			var text []byte
			for i := range withIDs(testHeader, records) {
				line, err := json.Marshal(readable(names, &records[i]))
				if err != nil {
					t.Fatal(err)
				}
				text = append(append(text, line...), '\n')
			}
			if err := os.WriteFile(file+".bin", NewEncoder(names).Append(nil, testHeader, records), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file+".jsonl", text, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	versions := map[byte]int{}
	for _, g := range goldenFiles(t) {
		versions[g.value[4]]++
		names := flow.NewNames(0)
		h, records := decode(t, names, g.value)
		if h != testHeader {
			t.Errorf("%s: header %+v", g.name, h)
		}
		if diff := cmp.Diff(g.want, readables(names, records)); diff != "" {
			t.Errorf("%s reads differently (-want +got):\n%s", g.name, diff)
		}
	}
	for v := byte(1); v <= wireMajor; v++ {
		if versions[v] == 0 {
			t.Errorf("there is no file of version %d", v)
		}
	}
}

// goldenFile is a value as a version wrote it, and what it says.
type goldenFile struct {
	name  string
	value []byte
	want  []map[string]any
}

func goldenFiles(t *testing.T) (out []goldenFile) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "wire", "v*.bin"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d golden files, %v", len(files), err)
	}
	for _, file := range files {
		g := goldenFile{name: filepath.Base(file)}
		if g.value, err = os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(strings.TrimSuffix(file, ".bin") + ".jsonl")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			var m map[string]any
			if err := json.Unmarshal([]byte(line), &m); err != nil {
				t.Fatal(err)
			}
			g.want = append(g.want, m)
		}
		out = append(out, g)
	}
	return out
}

func readables(names *flow.Names, records []flow.Record) (out []map[string]any) {
	for i := range records {
		out = append(out, readable(names, &records[i]))
	}
	return out
}
