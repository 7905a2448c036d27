package flow

import (
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"
	"unsafe"
)

// TestRecordShape holds the promise of the package comment: a fixed size and no
// pointers, so that the garbage collector never looks inside a batch.
func TestRecordShape(t *testing.T) {
	if size := unsafe.Sizeof(Record{}); size > 384 {
		t.Errorf("a Record takes %d bytes; more than 384 costs memory bandwidth in every stage", size)
	}
	holdsNoPointer(t, "Record", reflect.TypeFor[Record]())
	t.Logf("a Record takes %d bytes, a Verdict %d", unsafe.Sizeof(Record{}), unsafe.Sizeof(Verdict{}))
}

// holdsNoPointer fails the test for every part of a type that the garbage collector would follow.
func holdsNoPointer(t *testing.T, path string, typ reflect.Type) {
	t.Helper()
	switch typ.Kind() {
	case reflect.Struct:
		for f := range typ.Fields() {
			holdsNoPointer(t, path+"."+f.Name, f.Type)
		}
	case reflect.Array:
		holdsNoPointer(t, path+"[]", typ.Elem())
	case reflect.Pointer, reflect.Slice, reflect.String, reflect.Map, reflect.Interface, reflect.Chan, reflect.Func, reflect.UnsafePointer:
		t.Errorf("%s is a %s, which holds a pointer", path, typ.Kind())
	}
}

func TestAddrSpellings(t *testing.T) {
	for _, c := range []struct{ in, text, canonical string }{
		{"10.1.1.1", "10.1.1.1", "10.1.1.1"},
		{"::ffff:10.1.1.1", "10.1.1.1", "10.1.1.1"},
		{"64:ff9b::10.1.1.1", "64:ff9b::a01:101", "10.1.1.1"},
		{"64:ff9b:1::10.1.1.1", "64:ff9b:1::a01:101", "64:ff9b:1::a01:101"}, // RFC 8215 is no well-known translation
		{"2001:db8::1", "2001:db8::1", "2001:db8::1"},
		{"::", "::", "::"},
	} {
		a := MustParseAddr(c.in)
		if a.String() != c.text || a.Canonical().String() != c.canonical {
			t.Errorf("%s reads as %s, canonically %s; want %s and %s", c.in, a, a.Canonical(), c.text, c.canonical)
		}
		if back := AddrFrom16(a.As16()); back != a {
			t.Errorf("%s does not survive its bytes", c.in)
		}
	}
}

func TestCompareOrdersAsNumbers(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		a, b := Addr{rng.Uint64N(3), rng.Uint64N(3)}, Addr{rng.Uint64N(3), rng.Uint64N(3)}
		x, y := a.As16(), b.As16()
		if want := strings.Compare(string(x[:]), string(y[:])); a.Compare(b) != want {
			t.Fatalf("%v and %v compare as %d, their bytes as %d", a, b, a.Compare(b), want)
		}
	}
}

func TestTimes(t *testing.T) {
	at := time.Date(2026, 10, 2, 23, 59, 59, 987_654_321, time.FixedZone("", 7200))
	v := TimeOf(at)
	if v.String() != "2026-10-02T21:59:59.987Z" || v.Day() != "2026-10-02" {
		t.Errorf("%v, day %s", v, v.Day())
	}
	var back Time
	if err := back.UnmarshalText([]byte("2026-10-02T23:59:59.987+02:00")); err != nil || back != v {
		t.Errorf("%v, %v", back, err)
	}
	if err := back.UnmarshalText([]byte("yesterday")); err == nil {
		t.Error("yesterday is read as a time")
	}
}

func TestScaledCountersDoNotWrap(t *testing.T) {
	r := Record{BytesRaw: 1 << 60, PacketsRaw: 7, SamplingRate: 1000}
	if r.Bytes() != ^uint64(0) || r.Packets() != 7000 {
		t.Errorf("%d bytes, %d packets", r.Bytes(), r.Packets())
	}
	r.SamplingRate = 0
	if r.Packets() != 7 {
		t.Errorf("an unknown rate scales to %d", r.Packets())
	}
}

// TestOpenPairIsTheSameFromBothHalves: while nobody knows who began, both halves
// of a conversation name the same pair in the same order.
func TestOpenPairIsTheSameFromBothHalves(t *testing.T) {
	a := Record{Src: MustParseAddr("10.0.0.9"), Dst: MustParseAddr("10.0.0.3"), SrcPort: 50000, DstPort: 49671}
	b := Record{Src: a.Dst, Dst: a.Src, SrcPort: a.DstPort, DstPort: a.SrcPort}
	c1, s1 := a.Ends()
	c2, s2 := b.Ends()
	if c1 != c2 || s1 != s2 || c1 != MustParseAddr("10.0.0.3") {
		t.Errorf("%v %v and %v %v", c1, s1, c2, s2)
	}
}

func TestNamesAreBounded(t *testing.T) {
	n := NewNames(4)
	a := n.InternBytes([]byte("a"))
	if b := n.InternBytes([]byte("b")); b == a || n.Text(b) != "b" || n.Text(a) != "a" {
		t.Errorf("%d %d", a, b)
	}
	if got := n.InternBytes([]byte("c")); got != OverflowName {
		t.Errorf("a full table gave %d (%s)", got, n.Text(got))
	}
	if got := n.InternBytes([]byte("a")); got != a {
		t.Error("a known name is lost when the table is full")
	}
	if got := n.Intern("policy-rule"); got == OverflowName || n.Text(got) != "policy-rule" {
		t.Error("the network filled the table and a policy cannot be loaded any more")
	}
	if got := n.InternFact("alice@corp"); got == OverflowName || n.Text(got) != "alice@corp" {
		t.Error("the network filled the table and who comes new is not known any more")
	}
	long := n.Intern(strings.Repeat("x", 1000))
	if len(n.Text(long)) != maxNameLength {
		t.Errorf("a name of %d bytes is kept", len(n.Text(long)))
	}
	if allocs := testing.AllocsPerRun(100, func() { n.InternBytes([]byte{'a'}) }); allocs != 0 {
		t.Errorf("looking up a known name allocates %v times", allocs)
	}
	if _, overflow := n.Len(); overflow != 1 {
		t.Errorf("%d overflows counted, 1 happened", overflow)
	}
}

func TestBatchAcknowledgesOnce(t *testing.T) {
	acks := 0
	b := NewBatch(2, func(*Batch) { acks++ })
	b.Next().SrcPort = 1
	b.Next().SrcPort = 2
	if !b.Full() {
		t.Error("not full")
	}
	b.Next().SrcPort = 3 // grows
	b.Drop()
	b.Retain()
	b.Release()
	if acks != 0 {
		t.Fatal("acknowledged while somebody holds it")
	}
	b.Release()
	if acks != 1 {
		t.Fatalf("acknowledged %d times", acks)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("released once too often without a panic")
			}
		}()
		b.Release()
	}()
	b.Reset()
	if r := b.Next(); *r != (Record{}) {
		t.Error("a record of a batch used again is not empty")
	}
}

func TestLedgerChecksItself(t *testing.T) {
	l := Ledger{}
	a := l.Of(MustParseAddr("192.0.2.1"))
	a.Datagrams = DatagramAccount{Received: 10, Decoded: 6, Parked: 1, Queued: 2}
	a.Datagrams.Rejected[RejectMalformed] = 1
	a.Records = RecordAccount{Decoded: 100, Written: 90, Duplicate: 4, InFlight: 6}
	if err := l.Check(); err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	var back Ledger
	if err := json.Unmarshal(raw, &back); err != nil || !reflect.DeepEqual(back, l) {
		t.Errorf("%s does not read back: %v", raw, err)
	}
	a.Records.InFlight--
	if err := l.Check(); err == nil || !strings.Contains(err.Error(), "192.0.2.1") {
		t.Errorf("a lost record gives %v", err)
	}
	a.Records.InFlight++
	a.Datagrams.Decoded--
	if l.Check() == nil {
		t.Error("a lost datagram is not noticed")
	}
}

// TestHostileStringsStayInside: THREATS 36, for JSON.
func TestHostileStringsStayInside(t *testing.T) {
	for _, s := range []string{"plain", `"quote`, `back\slash`, "new\nline\r\t", "\x00\x1b[31m\x7f", "\xff\xfe not UTF-8", "line\u2028sep\u2029", "ümläut 💥", `</script>`} {
		names := NewNames(0)
		r := Record{Has: HasSrc | HasDst, Start: 1, End: 2, User: names.Intern(s)}
		raw := r.AppendJSON(nil, names.Texts())
		var m map[string]any
		if err := json.Unmarshal(raw, &m); err != nil {
			t.Fatalf("%q makes %s: %v", s, raw, err)
		}
		if got, want := m["user"], strings.ToValidUTF8(s, "\ufffd"); strings.ReplaceAll(got.(string), "\ufffd\ufffd", "\ufffd") != want {
			t.Errorf("%q comes out as %q", s, got)
		}
		for _, c := range raw {
			if c < 0x20 || c == 0x7f {
				t.Errorf("%q leaves the control character %#x in %s", s, c, raw)
			}
		}
	}
}

func FuzzAppendJSONString(f *testing.F) {
	f.Add("a\x00\xff\u2028\"")
	f.Fuzz(func(t *testing.T, s string) {
		var back string
		if err := json.Unmarshal(AppendJSONString(nil, s), &back); err != nil {
			t.Fatalf("%q: %v", s, err)
		}
	})
}

func TestAppendJSONDoesNotAllocate(t *testing.T) {
	names := NewNames(0)
	r := Record{
		Has: ^Has(0), Start: 1_790_000_000_000, End: 1_790_000_001_000, Received: 1_790_000_002_000, Src: MustParseAddr("10.0.0.1"),
		Dst: MustParseAddr("2001:db8::1"), User: names.Intern("ana"), Quality: QualityParked, Verdict: Verdict{Reason: ReasonDenied, Failed: DimService},
	}
	texts := names.Texts()
	b := make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() { b = r.AppendJSON(b[:0], texts) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]Size{"0": 0, "512KiB": 512 * KiB, "4 MiB": 4 * MiB, "2GiB": 2 * GiB, "17": 17, "17B": 17} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%s reads as %d, %v", text, s, err)
		}
		var back Size
		if err := back.UnmarshalText([]byte(s.String())); err != nil || back != s {
			t.Errorf("%s is written as %s, which reads as %d", text, s, back)
		}
	}
	for _, text := range []string{"", "MiB", "-1", "1.5GiB", "4MB", "99999999999GiB"} {
		var s Size
		if s.UnmarshalText([]byte(text)) == nil {
			t.Errorf("%q reads as %d", text, s)
		}
	}
}

// TestWordsAreListedOnce: every enumeration has a word for each value and none twice.
func TestWordsAreListedOnce(t *testing.T) {
	for name, texts := range map[string][]string{
		"source": sourceTexts[:], "observed": observedTexts[:], "expected": expectedTexts[:], "reason": reasonTexts[:],
		"outcome": outcomeTexts[:], "severity": severityTexts[:], "dimension": dimensionTexts[:], "quality": qualityTexts[:], "reject": rejectTexts[:],
	} {
		seen := map[string]bool{}
		for i, w := range texts {
			if seen[w] || w == "" && (name != "reason" || i != 0) {
				t.Errorf("%s %d: %q", name, i, w)
			}
			seen[w] = true
		}
	}
	if len(Dimensions(1<<len(dimensionTexts)-1).Texts()) != len(dimensionTexts) || len(Quality(1<<len(qualityTexts)-1).Texts()) != len(qualityTexts) {
		t.Error("a word has no bit")
	}
	if DimLimit != 1<<(len(dimensionTexts)-1) || QualitySequenceGap != 1<<(len(qualityTexts)-1) {
		t.Error("a bit has no word")
	}
}
