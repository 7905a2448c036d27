package ingest

import "testing"

// TestXDROpaque: opaque data is followed by padding to a word (RFC 4506, 4.9), and
// what comes next begins behind it.
func TestXDROpaque(t *testing.T) {
	for n := range 9 {
		b := make([]byte, n, n+8)
		for len(b)%4 != 0 {
			b = append(b, 0xee)
		}
		x := xdr{b: append(b, 0, 0, 0, 7)}
		if got := x.opaque(uint32(n)); len(got) != n {
			t.Errorf("%d bytes: got %d", n, len(got))
		}
		if next := x.word(); next != 7 || x.bad {
			t.Errorf("%d bytes: the next word is %#x", n, next)
		}
	}
	x := xdr{b: []byte{1, 2, 3, 4, 5}}
	if got := x.opaque(5); len(got) != 5 || x.bad {
		t.Error("missing padding at the very end is borne")
	}
	if x = (xdr{b: []byte{1, 2, 3, 4}}); x.opaque(5) != nil || !x.bad {
		t.Error("more than is there")
	}
}
