package embedded

import (
	"bytes"
	"errors"
	"io"
	"net/http/httptest"
	"testing"

	"github.com/ClickHouse/ch-go/compress"
)

func compressed(t testing.TB, m compress.Method, parts ...string) []byte {
	var out []byte
	w := compress.NewWriter(0, m)
	for _, p := range parts {
		if err := w.Compress([]byte(p)); err != nil {
			t.Fatal(err)
		}
		out = append(out, w.Data...)
	}
	return out
}

func TestBlockReader(t *testing.T) {
	for _, m := range []compress.Method{compress.None, compress.LZ4, compress.LZ4HC, compress.ZSTD} {
		b := compressed(t, m, "hello ", "world", "")
		got, err := io.ReadAll(newBlockReader(bytes.NewReader(b)))
		if err != nil || string(got) != "hello world" {
			t.Fatalf("%v: %q %v", m, got, err)
		}
		whole := compressed(t, m, "hello ")
		// A body that ends anywhere but behind a block is an error, never a shorter body.
		for cut := 1; cut < len(b); cut++ {
			if cut == len(whole) || cut == len(compressed(t, m, "hello ", "world")) {
				continue
			}
			if _, err := io.ReadAll(newBlockReader(bytes.NewReader(b[:cut]))); err == nil {
				t.Fatalf("%v: cut at %d of %d was taken for whole", m, cut, len(b))
			}
		}
		b[len(whole)-1] ^= 1
		if _, err := io.ReadAll(newBlockReader(bytes.NewReader(b))); err == nil {
			t.Fatalf("%v: a flipped bit was not seen", m)
		}
	}
}

func FuzzBlockReader(f *testing.F) {
	f.Add(compressed(f, compress.LZ4, "hello", "world"))
	f.Add(compressed(f, compress.ZSTD, "hello"))
	f.Add([]byte("x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		// A header may claim 128 MiB; memory beyond that would be a defect.
		_, err := io.Copy(io.Discard, io.LimitReader(newBlockReader(bytes.NewReader(b)), 1<<30))
		if err == nil && len(b) > 0 && len(b) < blockChecksum+blockHeader {
			t.Fatal("less than a header was taken for a body")
		}
	})
}

func FuzzRequest(f *testing.F) {
	f.Add("query=SELECT+1&param_x=1&max_threads=2&compress=1&client_protocol_version=54460")
	f.Add("session_id=x")
	f.Add("a=%zz;")
	f.Fuzz(func(t *testing.T, raw string) {
		r := httptest.NewRequest("POST", "/", nil)
		r.URL.RawQuery = raw
		q, err := newRequest(r)
		if ex := (*Exception)(nil); err != nil && !errors.As(err, &ex) {
			t.Fatal(err)
		}
		if len(q.settings)+len(q.params) > maxParams {
			t.Fatal("more parameters than allowed")
		}
	})
}

func TestSpill(t *testing.T) {
	s := &spill{dir: t.TempDir(), limit: 3 * spillAbove}
	defer s.Close()
	var want bytes.Buffer
	piece := bytes.Repeat([]byte("0123456789abcdef"), 40_000)
	for range 30 {
		want.Write(piece)
		if _, err := s.Write(piece); err != nil {
			t.Fatal(err)
		}
	}
	if s.file == nil || s.mem.Len() > spillAbove {
		t.Fatalf("%d bytes are kept in memory", s.mem.Len())
	}
	var got bytes.Buffer
	if err := s.each(func(p []byte) error { got.Write(p); return nil }); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want.Bytes()) {
		t.Fatal("the body came back changed")
	}
	if _, err := s.Write(make([]byte, 3*spillAbove)); !errors.Is(err, errTooBig) {
		t.Fatal(err)
	}
}

func TestValidate(t *testing.T) {
	good := DefaultConfig()
	good.DataDir = "x"
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"no directory": func(c *Config) { c.DataDir = "" }, "not loopback": func(c *Config) { c.Listen = "0.0.0.0:8123" }, "all": func(c *Config) { c.Listen = ":8123" },
		"same tokens": func(c *Config) { c.Token, c.ReadOnlyToken = "a", "a" }, "little memory": func(c *Config) { c.MaxMemory = 1 }, "default": func(c *Config) { c.Database = "default" },
		"no queries": func(c *Config) { c.MaxQueries = 0 }, "no port": func(c *Config) { c.Listen = "127.0.0.1" }, "marks": func(c *Config) { c.MarkCache = c.MaxMemory },
	} {
		c := good
		change(&c)
		if c.Validate() == nil {
			t.Errorf("%s is taken for good", name)
		}
	}
}
