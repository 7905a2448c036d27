package ingest

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/postern/postern/flow"
)

func linesSpool(t *testing.T, dir string, now *flow.Time) *Spool {
	t.Helper()
	s, err := OpenSpool(dir, DefaultSpoolConfig(), SpoolOptions{Clock: func() flow.Time { return *now }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func batchNo(n byte, more bool) Lines {
	l := Lines{Exporter: flow.MustParseAddr("192.0.2.1"), Received: 1_000_000, Counts: LineCounts{Read: uint32(n), NotFlow: 1, Rejected: 2},
		Records: slices.Repeat([]byte{n}, int(n)*10), More: more}
	if !more {
		l.Mark = Mark{Key: [16]byte{1}, To: uint64(n), Check: 7, Keep: time.Hour}
	}
	return l
}

// readLines reads what a spool holds of lines, and removes it.
func readLines(t *testing.T, s *Spool) (out []Lines) {
	t.Helper()
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	for {
		open := false
		for _, g := range s.segments {
			open = open || g.sealed && g.seq > s.cursor
		}
		if !open {
			return out
		}
		seg, err := s.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for e := range seg.Entries() {
			if l, ok := e.Lines(); ok && e.Kind == EntryLines {
				l.Records = slices.Clone(l.Records)
				out = append(out, l)
			}
		}
		if err := s.Remove(seg.Seq()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLinesGroups cuts the spool's file at every byte: of batches that belong together either
// all are there or none, and the mark says the same.
func TestLinesGroups(t *testing.T) {
	now := flow.Time(1_000_000)
	whole := filepath.Join(t.TempDir(), "s")
	s := linesSpool(t, whole, &now)
	if n, err := s.AppendLines([]Lines{batchNo(1, false), batchNo(2, true), batchNo(3, true), batchNo(4, false), batchNo(5, false)}); n != 5 || err != nil {
		t.Fatal(n, err)
	}
	if c := s.Counts(0); c.Lines[flow.MustParseAddr("192.0.2.1")] != 1+2+3+4+5+5*3 {
		t.Errorf("counts %v", c.Lines)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(whole, "*"+segmentSuffix))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	raw, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for cut := segmentHeaderLen; cut <= len(raw); cut++ {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(files[0])), raw[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		s := linesSpool(t, dir, &now)
		mark, marked := s.Mark([16]byte{1})
		var waiting uint64
		for _, n := range s.Counts(0).Lines {
			waiting += n
		}
		var got []byte
		var sum uint64
		for _, l := range readLines(t, s) {
			got = append(got, l.Records[0])
			sum += l.Counts.Sum()
		}
		state := fmt.Sprintf("%v to %d", got, mark.To)
		if marked != (len(got) > 0) || waiting != sum {
			t.Fatalf("cut at %d: %s, marked %v, %d lines waited and %d came", cut, state, marked, waiting, sum)
		}
		seen[state]++
		s.Close()
	}
	for _, want := range []string{"[] to 0", "[1] to 1", "[1 2 3 4] to 4", "[1 2 3 4 5] to 5"} {
		if seen[want] == 0 {
			t.Errorf("never %s", want)
		}
		delete(seen, want)
	}
	if len(seen) > 0 {
		t.Errorf("also %v", seen)
	}
}

// TestMarksLast shows that marks outlive their segments, and are forgotten in time.
func TestMarksLast(t *testing.T) {
	now := flow.Time(1_000_000)
	dir := t.TempDir()
	s := linesSpool(t, dir, &now)
	const many = 3 << 14 // so that the book is written anew
	for n := range many {
		l := batchNo(1, false)
		l.Mark.To, l.Mark.Key[1] = uint64(n), byte(n%8)
		if _, err := s.AppendLines([]Lines{l}); err != nil {
			t.Fatal(err)
		}
		if n%(1<<13) == 0 {
			readLines(t, s)
		}
	}
	readLines(t, s)
	reopen := func() {
		t.Helper()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = linesSpool(t, dir, &now)
	}
	reopen()
	for k := range 8 {
		if m, ok := s.Mark([16]byte{1, byte(k)}); !ok || m.To != uint64(many-8+k) || m.Check != 7 || m.Keep != time.Hour {
			t.Errorf("mark %d: %+v %v", k, m, ok)
		}
	}
	book := filepath.Join(dir, marksFile)
	if st, err := os.Stat(book); err != nil || st.Size() > (1<<14+many/2)*markLen {
		t.Errorf("the book has %v bytes (%v): it is never written anew", st.Size(), err)
	}
	// What a crash left half written costs nothing but itself.
	f, err := os.OpenFile(book, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.Write(make([]byte, markLen/2))
	_ = f.Close()
	reopen()
	if _, err := s.AppendLines([]Lines{batchNo(9, false)}); err != nil {
		t.Fatal(err)
	}
	readLines(t, s)
	reopen()
	if m, ok := s.Mark([16]byte{1}); !ok || m.To != 9 {
		t.Errorf("behind a torn end: %+v %v", m, ok)
	}
	if len(s.Marks()) != 8 {
		t.Errorf("%d marks, want 8", len(s.Marks()))
	}
	now = now.Add(2 * time.Hour)
	if _, ok := s.Mark([16]byte{1}); ok || len(s.Marks()) != 0 {
		t.Error("marks are remembered beyond their time")
	}
}

// TestMarksForgotten: more requests than are remembered do not make a file be read again.
func TestMarksForgotten(t *testing.T) {
	book := markBook{live: map[[16]byte]keptMark{}}
	set := func(kind byte, i int, keep time.Duration) {
		m := keptMark{Mark{To: 1, Keep: keep}, flow.Time(i)}
		m.Key[0] = kind
		binary.BigEndian.PutUint32(m.Key[1:], uint32(i))
		book.set(m)
	}
	const files = 100
	for i := range files {
		set(1, i, 90*24*time.Hour)
	}
	for i := range maxMarks + maxMarks/8 {
		set(2, i, 24*time.Hour)
	}
	if len(book.live) != maxMarks {
		t.Errorf("%d marks are remembered, want %d", len(book.live), maxMarks)
	}
	left := 0
	for key := range book.live {
		if key[0] == 1 {
			left++
		}
	}
	if left != files {
		t.Errorf("%d of %d files are remembered", left, files)
	}
}
