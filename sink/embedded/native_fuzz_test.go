package embedded

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"io"
	"testing"

	chproto "github.com/ClickHouse/ch-go/proto"
)

// nativeBlock is a block as clients send it, of many types.
func nativeBlock(t testing.TB, revision int) []byte {
	t.Helper()
	var n chproto.ColUInt64
	var u chproto.ColUUID
	s, lc := new(chproto.ColStr), chproto.NewLowCardinality[string](new(chproto.ColStr))
	nl := chproto.NewColNullable[string](new(chproto.ColStr))
	deep := chproto.NewArray[[]string](chproto.NewArray[string](chproto.NewLowCardinality[string](new(chproto.ColStr))))
	m := chproto.NewMap[string, uint64](new(chproto.ColStr), new(chproto.ColUInt64))
	for i := range uint64(5) {
		n.Append(i)
		u.Append([16]byte{byte(i)})
		s.Append("value")
		lc.Append([]string{"a", "b"}[i%2])
		nl.Append(chproto.NewNullable("x"))
		deep.Append([][]string{{"p", "q"}, {}})
		m.Append(map[string]uint64{"k": i})
	}
	in := chproto.Input{{Name: "n", Data: &n}, {Name: "u", Data: &u}, {Name: "s", Data: s}, {Name: "lc", Data: lc}, {Name: "nl", Data: nl}, {Name: "deep", Data: deep}, {Name: "m", Data: m}}
	var b chproto.Buffer
	if err := (chproto.Block{Info: chproto.BlockInfo{BucketNum: -1}, Columns: len(in), Rows: 5}).EncodeBlock(&b, revision, in); err != nil {
		t.Fatal(err)
	}
	return b.Buf
}

// copyBlock returns what one block becomes and what is left of src.
func copyBlock(src []byte, revision uint64) (out []byte, left int, err error) {
	var w bytes.Buffer
	in := bufio.NewReader(bytes.NewReader(src))
	c := blockCopy{in: in, out: bufio.NewWriter(&w), revision: revision}
	_, _, err = c.next()
	rest, _ := io.Copy(io.Discard, in)
	return w.Bytes(), int(rest), err
}

func TestBlockCopy(t *testing.T) {
	plain := nativeBlock(t, 0)
	for _, revision := range []int{revisionOldest, revisionCustom - 1, revisionCustom, revisionServer} {
		src := nativeBlock(t, revision)
		got, left, err := copyBlock(append(src, "tail"...), uint64(revision))
		if err != nil || left != 4 || !bytes.Equal(got, plain) {
			t.Errorf("revision %d: %v, %d bytes left, %d bytes copied of %d", revision, err, left, len(got), len(plain))
		}
		for cut := range len(src) {
			if _, _, err := copyBlock(src[:cut], uint64(revision)); err == nil {
				t.Errorf("revision %d: a block cut after %d of %d bytes was taken for whole", revision, cut, len(src))
			}
		}
	}
}

func TestParseType(t *testing.T) {
	for name, want := range map[string]uint64{ // bytes of a fixed value; 0 is anything else
		"DateTime64(3, 'Europe/Berlin')": 8, "Enum8('a, (b' = 1, 'it\\'s' = 2)": 1, "Decimal(38, 10)": 16, "Decimal(9,2)": 4, "FixedString(7)": 7, "IntervalDay": 8,
		"SimpleAggregateFunction(sum, UInt64)": 8, "LowCardinality(Nullable(FixedString(3)))": 0, "Tuple(a String, `b c` Array(UInt8))": 0, "Map(LowCardinality(String), UInt32)": 0,
		"Nested(x UInt8, y String)": 0, "MultiPolygon": 0, "Array(Nullable(Nothing))": 0, "Tuple(UInt8, DateTime('UTC'))": 0,
	} {
		if got, err := parseType(name, 0); err != nil || got.size != want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for _, name := range []string{"", "Variant(String)", "JSON", "Dynamic", "AggregateFunction(sum, UInt8)", "FixedString(0)", "FixedString(99999999)", "Array(", "Array()", "Tuple()", "Decimal(77, 1)",
		"LowCardinality(Array(String))", "Nothing2", "Array(String", string(bytes.Repeat([]byte("Array("), 40)) + "String" + string(bytes.Repeat([]byte(")"), 40))} {
		if got, err := parseType(name, 0); err == nil {
			t.Errorf("%.40s: %+v", name, got)
		}
	}
}

func FuzzNativeBlock(f *testing.F) {
	f.Add(nativeBlock(f, revisionServer))
	f.Add([]byte{1, 0, 2, 255, 255, 255, 255, 0, 1, 1, 1, 'a', 6, 'S', 't', 'r', 'i', 'n', 'g', 0, 200, 1})
	f.Fuzz(func(t *testing.T, src []byte) {
		out, _, err := copyBlock(src, revisionServer)
		if len(out) > len(src) {
			t.Fatalf("%d bytes became %d", len(src), len(out))
		}
		if err != nil || len(out) == 0 {
			return
		}
		// What came out is a block of the plain format and reads as one.
		again, left, err := copyBlock(append([]byte{0}, out...), 0)
		if err != nil || left != 0 || !bytes.Equal(again, out) {
			t.Fatalf("the copy reads differently: %v, %d left\n%s", err, left, hex.Dump(out))
		}
	})
}

func FuzzNativeQuery(f *testing.F) {
	for _, revision := range []int{revisionOldest, revisionSecret, revisionQueryTime, revisionReplicas, revisionServer} {
		var b chproto.Buffer
		chproto.Query{ID: "1", Body: "SELECT {a:String}", Compression: chproto.CompressionEnabled,
			Info:     chproto.ClientInfo{Interface: chproto.InterfaceTCP, Query: chproto.ClientQueryInitial, ClientName: "x", Major: 1},
			Settings: []chproto.Setting{{Key: "max_threads", Value: "1", Important: true}}, Parameters: []chproto.Parameter{{Key: "a", Value: "'it\\'s'"}}}.EncodeAware(&b, revision)
		f.Add(b.Buf[1:], uint64(revision))
		p := packets{in: bufio.NewReader(bytes.NewReader(b.Buf[1:]))}
		q, err := p.query(uint64(revision))
		if err != nil || q.text != "SELECT {a:String}" || !q.compress || len(q.settings) != 1 || !q.settings[0].important || q.settings[0].value != "1" ||
			revision >= revisionParams && (len(q.params) != 1 || q.params[0].value != "it's") {
			f.Fatalf("revision %d: %+v, %v", revision, q, err)
		}
	}
	var b chproto.Buffer
	chproto.ClientHello{Name: "x", ProtocolVersion: revisionServer, User: "u", Password: "p"}.Encode(&b)
	f.Add(b.Buf[1:], uint64(0))
	f.Fuzz(func(t *testing.T, src []byte, revision uint64) {
		p := packets{in: bufio.NewReader(bytes.NewReader(src))}
		if h, err := p.hello(); err == nil && len(h.client)+len(h.database)+len(h.user)+len(h.pass) > maxName {
			t.Fatal("a hello beyond the limit")
		}
		p = packets{in: bufio.NewReader(bytes.NewReader(src))}
		q, err := p.query(revision)
		if err == nil && (len(q.text) > maxQuery || len(q.settings) > maxParams || len(q.params) > maxParams) {
			t.Fatal("a query beyond the limits")
		}
	})
}
