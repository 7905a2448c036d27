package ingest

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/postern/postern/flow"
)

const spoolEpoch = flow.Time(1_700_000_000_000)

func smallSpool() SpoolConfig {
	c := DefaultSpoolConfig()
	c.SegmentSize = 128 * flow.KiB
	c.MaxBytes = 8 * flow.MiB
	c.SyncEvery = 0
	return c
}

func openSpool(t testing.TB, dir string, cfg SpoolConfig) *Spool {
	t.Helper()
	s, err := OpenSpool(dir, cfg, SpoolOptions{Clock: func() flow.Time { return spoolEpoch }, Registerer: prometheus.NewPedanticRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func spoolAddr(i int) flow.Addr { return flow.AddrFrom4(0x0a000000 + uint32(i)) }

// testDatagrams makes n datagrams of 5 exporters whose payloads say their ordinal.
func testDatagrams(from, n, size int) []Datagram {
	ds := make([]Datagram, n)
	for i := range ds {
		k := from + i
		p := make([]byte, size)
		binary.BigEndian.PutUint64(p, uint64(k))
		for j := 8; j < size; j++ {
			p[j] = byte(k + j)
		}
		ds[i] = Datagram{Received: spoolEpoch + flow.Time(k), Exporter: spoolAddr(k % 5), Port: uint16(k), Payload: p}
	}
	return ds
}

// copied is an entry that outlives its segment.
func copied(e Entry) Entry {
	e.Payload = slices.Clone(e.Payload)
	return e
}

// readSpool reads to the end of a stopped spool.
func readSpool(t testing.TB, s *Spool) (entries []Entry, seqs []uint64) {
	t.Helper()
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	for {
		g, err := s.Next(t.Context())
		if errors.Is(err, io.EOF) {
			return entries, seqs
		}
		if err != nil {
			t.Fatal(err)
		}
		seqs = append(seqs, g.Seq())
		for e := range g.Entries() {
			entries = append(entries, copied(e))
		}
	}
}

func datagramEntries(entries []Entry) (ds []Datagram) {
	for _, e := range entries {
		if e.Kind == EntryDatagram {
			ds = append(ds, e.Datagram())
		}
	}
	return ds
}

func TestSpoolRoundTrip(t *testing.T) {
	dir := t.TempDir()
	s := openSpool(t, dir, smallSpool())
	want := testDatagrams(0, 500, 1000)
	if n := s.Append(want[:250]); n != 250 {
		t.Fatalf("appended %d of 250", n)
	}
	if err := s.Policy([]byte("policy v2"), spoolEpoch+7); err != nil {
		t.Fatal(err)
	}
	s.Refuse(spoolAddr(9), flow.RejectExporter, 3)
	s.Refuse(spoolAddr(9), flow.RejectTooLarge, 1)
	if err := s.Tick(spoolEpoch + 8); err != nil {
		t.Fatal(err)
	}
	if n := s.Append(want[250:]); n != 250 {
		t.Fatalf("appended %d of 250", n)
	}
	for i := range want {
		want[i].Position = uint64(i)
	}
	entries, seqs := readSpool(t, s)
	if diff := cmp.Diff(want, datagramEntries(entries)); diff != "" {
		t.Error(diff)
	}
	if len(seqs) < 4 || !slices.IsSorted(seqs) {
		t.Errorf("500 kB in segments of 128 KiB came as segments %v", seqs)
	}
	var others []Entry
	for _, e := range entries {
		if e.Kind != EntryDatagram {
			others = append(others, e)
		}
	}
	wantOthers := []Entry{
		{Kind: EntryPolicy, Time: spoolEpoch + 7, Position: 250, Payload: []byte("policy v2")},
		{Kind: EntryRefused, Reason: flow.RejectExporter, Time: spoolEpoch, Exporter: spoolAddr(9), Position: 250, Count: 3},
		{Kind: EntryRefused, Reason: flow.RejectTooLarge, Time: spoolEpoch, Exporter: spoolAddr(9), Position: 250, Count: 1},
		{Kind: EntryTick, Time: spoolEpoch + 8, Position: 250, Payload: []byte{}},
	}
	for i := range others {
		if others[i].Kind == EntryTick {
			others[i].Payload = []byte{}
		}
	}
	if diff := cmp.Diff(wantOthers, others); diff != "" {
		t.Error(diff)
	}

	// The same again after a restart, with other settings: positions, contents and
	// the rows of a chunk are as they were.
	id := s.ID()
	s.Close()
	cfg := smallSpool()
	cfg.ChunkRows = 1000
	s = openSpool(t, dir, cfg)
	if s.ID() != id {
		t.Errorf("the id changed from %v to %v", id, s.ID())
	}
	g, err := s.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if g.ChunkRows() != DefaultSpoolConfig().ChunkRows || g.Spool() != id || g.Seq() != seqs[0] {
		t.Errorf("segment %d of %v has %d rows a chunk", g.Seq(), g.Spool(), g.ChunkRows())
	}
	s.Seek(0)
	again, seqsAgain := readSpool(t, s)
	if diff := cmp.Diff(want, datagramEntries(again)); diff != "" {
		t.Error(diff)
	}
	if !slices.Equal(seqs, seqsAgain) {
		t.Errorf("segments %v became %v", seqs, seqsAgain)
	}
}

func TestSpoolGoesOnWhereItStopped(t *testing.T) {
	dir := t.TempDir()
	var position, last uint64
	for round := range 4 {
		s := openSpool(t, dir, smallSpool())
		s.Append(testDatagrams(0, 300, 900))
		entries, seqs := readSpool(t, s)
		ds := datagramEntries(entries)
		if len(ds) != 300 || ds[0].Position != position {
			t.Fatalf("round %d: %d datagrams from position %d, want 300 from %d", round, len(ds), ds[0].Position, position)
		}
		if seqs[0] <= last {
			t.Fatalf("round %d: segment %d is given again after %d", round, seqs[0], last)
		}
		position, last = position+300, seqs[len(seqs)-1]
		if round == 2 {
			// Partly removed: what is left comes again.
			if err := s.Remove(seqs[0]); err != nil {
				t.Fatal(err)
			}
			s.Close()
			s = openSpool(t, dir, smallSpool())
			if _, left := readSpool(t, s); !slices.Equal(left, seqs[1:]) {
				t.Fatalf("after removing %d of %v segments %v are left", seqs[0], seqs, left)
			}
		}
		if err := s.Remove(last); err != nil {
			t.Fatal(err)
		}
		if c := s.Counts(0); len(c.Datagrams) != 0 || len(s.exporters) != 0 {
			t.Fatalf("round %d: everything is removed, but %v are counted and %d exporters kept", round, c, len(s.exporters))
		}
		s.Close()
	}
}

func TestSpoolSeek(t *testing.T) {
	s := openSpool(t, t.TempDir(), smallSpool())
	s.Append(testDatagrams(0, 500, 1000))
	_, seqs := readSpool(t, s)
	s.Seek(seqs[1])
	g, err := s.Next(t.Context())
	if err != nil || g.Seq() != seqs[2] {
		t.Fatalf("behind segment %d comes %v, %v; want %d", seqs[1], g, err, seqs[2])
	}
}

// TestSpoolTornTail cuts the last segment at every byte: what was whole before the
// cut is there, nothing else, and the next position follows.
func TestSpoolTornTail(t *testing.T) {
	dir := t.TempDir()
	s := openSpool(t, dir, smallSpool())
	want := testDatagrams(0, 6, 40)
	s.Append(want)
	path := s.open().path
	s.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const entry = entryHeaderLen + 40
	for cut := range whole {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(path)), whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		s := openSpool(t, dir, smallSpool())
		n := max(0, cut-segmentHeaderLen) / entry
		s.Append(testDatagrams(100, 1, 40))
		if got := sumCounts(s.Counts(0).Datagrams); got != uint64(n+1) {
			t.Fatalf("cut at %d: %d datagrams are counted, want %d", cut, got, n+1)
		}
		entries, _ := readSpool(t, s)
		ds := datagramEntries(entries)
		if len(ds) != n+1 {
			t.Fatalf("cut at %d: %d datagrams, want %d", cut, len(ds), n+1)
		}
		for i, d := range ds[:n] {
			if d.Position != uint64(i) || !slices.Equal(d.Payload, want[i].Payload) {
				t.Fatalf("cut at %d: datagram %d is %v", cut, i, d)
			}
		}
		if ds[n].Position != uint64(n) {
			t.Fatalf("cut at %d: the next datagram has position %d, want %d", cut, ds[n].Position, n)
		}
		if cut > segmentHeaderLen {
			torn := testutil.ToFloat64(s.metrics.tornBytes)
			if want := float64((cut - segmentHeaderLen) % entry); torn != want {
				t.Fatalf("cut at %d: %v torn bytes, want %v", cut, torn, want)
			}
		}
		s.Close()
	}
}

func sumCounts(m map[flow.Addr]uint64) (n uint64) {
	for _, v := range m {
		n += v
	}
	return n
}

// TestSpoolDamage turns every byte of a segment: at most the entry it stands in is
// lost, and the loss is counted, at the start and while running.
func TestSpoolDamage(t *testing.T) {
	dir := t.TempDir()
	s := openSpool(t, dir, smallSpool())
	s.Append(testDatagrams(0, 5, 40))
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	s.Append(testDatagrams(5, 1, 40))
	path := s.segments[0].path
	const entry = entryHeaderLen + 40
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for at := range whole {
		broken := slices.Clone(whole)
		broken[at] ^= 0x41
		if err := os.WriteFile(path, broken, 0o600); err != nil {
			t.Fatal(err)
		}
		s.Seek(0)
		g, err := s.Next(t.Context())
		if err != nil {
			t.Fatalf("byte %d: %v", at, err)
		}
		var got []uint64
		for e := range g.Entries() {
			got = append(got, e.Position)
		}
		want := []uint64{0, 1, 2, 3, 4}
		if at < segmentHeaderLen {
			want = nil
		} else {
			i := (at - segmentHeaderLen) / entry
			want = slices.Delete(want, i, i+1)
		}
		if !slices.Equal(got, want) || sumCounts(g.Lost()) != uint64(5-len(want)) {
			t.Fatalf("byte %d: positions %v came and %v are lost, want %v", at, got, g.Lost(), want)
		}
	}
	s.Close()

	// The same segment at the start of a process.
	broken := slices.Clone(whole)
	broken[segmentHeaderLen+2*entry+50] ^= 1
	if err := os.WriteFile(path, broken, 0o600); err != nil {
		t.Fatal(err)
	}
	s = openSpool(t, dir, smallSpool())
	if n := testutil.ToFloat64(s.metrics.lost); n != 1 {
		t.Errorf("%v datagrams are counted as lost, want 1", n)
	}
	if n := sumCounts(s.Counts(0).Datagrams); n != 5 {
		t.Errorf("%d datagrams can be read, want 5", n)
	}
	s.Close()
	// Without its header a segment is set aside, and the others go on.
	broken[3] ^= 1
	if err := os.WriteFile(path, broken, 0o600); err != nil {
		t.Fatal(err)
	}
	s = openSpool(t, dir, smallSpool())
	entries, _ := readSpool(t, s)
	if ds := datagramEntries(entries); len(ds) != 1 || ds[0].Position != 5 {
		t.Errorf("beside a segment without header %v came, want the datagram at position 5", ds)
	}
	if _, err := os.Stat(path + badSuffix); err != nil {
		t.Error(err)
	}
}

// TestSpoolHiddenEntry lays a good entry of another spool inside a datagram and
// destroys the entry around it: it must not be taken for one of ours.
func TestSpoolHiddenEntry(t *testing.T) {
	other := openSpool(t, t.TempDir(), smallSpool())
	other.Append(testDatagrams(77, 1, 40))
	inner, err := os.ReadFile(other.open().path)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s := openSpool(t, dir, smallSpool())
	ds := testDatagrams(0, 3, 40)
	ds[1].Payload = inner[segmentHeaderLen:]
	s.Append(ds)
	path := s.open().path
	s.Close()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[segmentHeaderLen+entryHeaderLen+40+1]++ // the marker of the second entry
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s = openSpool(t, dir, smallSpool())
	entries, _ := readSpool(t, s)
	got := datagramEntries(entries)
	if len(got) != 2 || got[0].Position != 0 || got[1].Position != 2 {
		t.Errorf("%v came, want positions 0 and 2", got)
	}
}

func TestSpoolFull(t *testing.T) {
	cfg := smallSpool()
	cfg.MaxBytes = 4 * cfg.SegmentSize
	dir := t.TempDir()
	s := openSpool(t, dir, cfg)
	const total = 2000
	accepted := 0
	for i := 0; i < total; i += 50 {
		accepted += s.Append(testDatagrams(i, 50, 1000))
	}
	if accepted == 0 || accepted >= 512 {
		t.Fatalf("%d datagrams of 1,044 bytes fitted into 512 KiB", accepted)
	}
	if err := s.Tick(spoolEpoch); err != nil {
		t.Errorf("a tick finds no room: %v", err)
	}
	if err := s.Policy([]byte("p"), spoolEpoch); err != nil {
		t.Errorf("a policy change finds no room: %v", err)
	}
	check := func(s *Spool) {
		t.Helper()
		c := s.Counts(0)
		var refused flow.Rejected
		for _, r := range c.Refused {
			for i, n := range r {
				refused[i] += n
			}
		}
		if sumCounts(c.Datagrams) != uint64(accepted) || refused[flow.RejectSpoolFull] != uint64(total-accepted) || refused.Sum() != refused[flow.RejectSpoolFull] {
			t.Errorf("counted %d appended and %v refused, want %d and %d", sumCounts(c.Datagrams), refused.Map(), accepted, total-accepted)
		}
	}
	check(s)
	if s.Bytes() > int64(cfg.MaxBytes) {
		t.Errorf("%d bytes are taken, %d are allowed", s.Bytes(), cfg.MaxBytes)
	}
	s.Close()
	s = openSpool(t, dir, cfg)
	check(s)
	g, err := s.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(g.Seq()); err != nil {
		t.Fatal(err)
	}
	if n := s.Append(testDatagrams(0, 20, 1000)); n != 20 {
		t.Errorf("with a segment removed only %d of 20 fit", n)
	}
	var onDisk int64
	for _, g := range s.segments {
		info, err := os.Stat(g.path)
		if err != nil {
			t.Fatal(err)
		}
		onDisk += info.Size()
	}
	if onDisk != s.Bytes() {
		t.Errorf("%d bytes are on disk, %d are counted", onDisk, s.Bytes())
	}
}

func TestSpoolWriteErrors(t *testing.T) {
	s := openSpool(t, t.TempDir(), smallSpool())
	s.Append(testDatagrams(0, 10, 100))
	// A descriptor that cannot be written to fails like a broken disk.
	good := s.open().file
	broken, err := os.Open(s.open().path)
	if err != nil {
		t.Fatal(err)
	}
	defer broken.Close()
	s.open().file = broken
	if n := s.Append(testDatagrams(10, 10, 100)); n != 0 {
		t.Errorf("%d datagrams were taken by a disk that does not write", n)
	}
	if err := s.Tick(spoolEpoch); !errors.Is(err, ErrSpoolNotWritten) {
		t.Errorf("a tick that was not written gives %v", err)
	}
	s.open().file = good
	if n := s.Append(testDatagrams(10, 10, 100)); n != 10 {
		t.Errorf("once the disk writes again %d of 10 are taken", n)
	}
	c := s.Counts(0)
	var refused flow.Rejected
	for _, r := range c.Refused {
		refused[flow.RejectSpoolFull] += r[flow.RejectSpoolFull]
	}
	if sumCounts(c.Datagrams) != 20 || refused[flow.RejectSpoolFull] != 10 {
		t.Errorf("counted %d and %v", sumCounts(c.Datagrams), refused.Map())
	}
	entries, _ := readSpool(t, s)
	ds := datagramEntries(entries)
	if len(ds) != 20 || ds[19].Position != 19 {
		t.Errorf("%d datagrams came back, want 20", len(ds))
	}
}

// TestSpoolOpensOnFullDisk makes the directory refuse new files, as a full disk
// does: the spool opens all the same, gives what it has, and writes once there is
// room, under a number of its own.
func TestSpoolOpensOnFullDisk(t *testing.T) {
	dir := t.TempDir()
	s := openSpool(t, dir, smallSpool())
	s.Append(testDatagrams(0, 10, 100))
	first := s.open().seq
	s.Close()
	// A folder in the place of the next file fails like a disk without room.
	blocked := s.path(first + 1)
	if err := os.Mkdir(blocked, 0o700); err != nil {
		t.Fatal(err)
	}
	s = openSpool(t, dir, smallSpool())
	if n := s.Append(testDatagrams(10, 5, 100)); n != 0 {
		t.Errorf("%d datagrams are taken without a file", n)
	}
	g, err := s.Next(t.Context())
	if err != nil || g.Seq() != first {
		t.Fatalf("%v, %v; want segment %d", g, err, first)
	}
	if err := s.Remove(first); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.path(first)); err != nil {
		t.Error("the last segment with a number is gone")
	}
	if err := os.Remove(blocked); err != nil {
		t.Fatal(err)
	}
	if n := s.Append(testDatagrams(15, 5, 100)); n != 5 {
		t.Errorf("%d of 5 datagrams are taken with room again", n)
	}
	if err := s.Remove(first); err != nil {
		t.Fatal(err)
	}
	entries, seqs := readSpool(t, s)
	if ds := datagramEntries(entries); len(ds) != 5 || ds[0].Position != 10 || !slices.Equal(seqs, []uint64{first + 1}) {
		t.Errorf("segments %v with %d datagrams", seqs, len(ds))
	}
	var refused flow.Rejected
	for _, e := range entries {
		if e.Kind == EntryRefused {
			refused[e.Reason] += e.Count
		}
	}
	if refused[flow.RejectSpoolFull] != 5 {
		t.Errorf("refused %v, want 5 as spool_full", refused.Map())
	}
}

func TestSpoolCountsByExporter(t *testing.T) {
	dir := t.TempDir()
	s := openSpool(t, dir, smallSpool())
	s.Append(testDatagrams(0, 1000, 500))
	s.Refuse(spoolAddr(1), flow.RejectExporter, 7)
	check := func(s *Spool) {
		t.Helper()
		c := s.Counts(0)
		for i := range 5 {
			if c.Datagrams[spoolAddr(i)] != 200 {
				t.Errorf("exporter %d: %d datagrams, want 200", i, c.Datagrams[spoolAddr(i)])
			}
		}
		if r := c.Refused[spoolAddr(1)]; r[flow.RejectExporter] != 7 {
			t.Errorf("refused: %v", r.Map())
		}
	}
	check(s) // with refusals in memory
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	check(s) // with refusals on disk
	// Behind every segment the counts are what the segments behind it hold.
	var position uint64
	for range len(s.segments) - 1 {
		g, err := s.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for e := range g.Entries() {
			if e.Kind == EntryDatagram {
				position++
			}
		}
		if n := sumCounts(s.Counts(g.Seq()).Datagrams); n != 1000-position {
			t.Errorf("behind segment %d: %d, want %d", g.Seq(), n, 1000-position)
		}
	}
	s.Close()
	check(openSpool(t, dir, smallSpool()))
}

func TestSpoolBoundedTables(t *testing.T) {
	cfg := smallSpool()
	cfg.MaxExporters = 10
	s := openSpool(t, t.TempDir(), cfg)
	for i := range 15 {
		s.Append([]Datagram{{Exporter: spoolAddr(i), Payload: []byte("x")}})
	}
	for i := range 2 * maxRefusedExporters {
		s.Refuse(spoolAddr(i), flow.RejectExporter, 1)
	}
	c := s.Counts(0)
	if len(c.Datagrams) != 10 || sumCounts(c.Datagrams) != 10 {
		t.Errorf("%d exporters are counted, want 10", len(c.Datagrams))
	}
	var refused flow.Rejected
	for _, r := range c.Refused {
		for i, n := range r {
			refused[i] += n
		}
	}
	if len(c.Refused) > maxRefusedExporters+1 || refused[flow.RejectExporter] != 2*maxRefusedExporters || refused[flow.RejectTableFull] != 5 {
		t.Errorf("%d exporters with refusals, %v", len(c.Refused), refused.Map())
	}
}

func TestSpoolOneProcess(t *testing.T) {
	dir := t.TempDir()
	s := openSpool(t, dir, smallSpool())
	if _, err := OpenSpool(dir, smallSpool(), SpoolOptions{Clock: s.clock}); !errors.Is(err, ErrSpoolLocked) {
		t.Errorf("opening it twice gives %v", err)
	}
	s.Close()
	openSpool(t, dir, smallSpool())
}

func TestSpoolConcurrentAppends(t *testing.T) {
	cfg := smallSpool()
	cfg.MaxBytes = 64 * flow.MiB
	cfg.SegmentAge = 10 * time.Millisecond
	s := openSpool(t, t.TempDir(), cfg)
	var now atomic.Int64
	s.clock = func() flow.Time { return flow.Time(now.Add(1)) }
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() { s.Run(ctx) })

	const writers, each = 8, 2000
	got := map[string]int{}
	var last uint64
	positions := uint64(0)
	consumed := make(chan error, 1)
	go func() {
		for {
			g, err := s.Next(t.Context())
			if errors.Is(err, io.EOF) {
				err = nil
			}
			if g == nil || err != nil {
				consumed <- err
				return
			}
			if g.Seq() <= last {
				consumed <- fmt.Errorf("segment %d came after %d", g.Seq(), last)
				return
			}
			last = g.Seq()
			for e := range g.Entries() {
				if e.Kind != EntryDatagram {
					continue
				}
				if e.Position != positions {
					consumed <- fmt.Errorf("position %d came, want %d", e.Position, positions)
					return
				}
				positions++
				got[string(e.Payload)]++
			}
			if err := s.Remove(g.Seq()); err != nil {
				consumed <- err
				return
			}
		}
	}()
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := 0; i < each; i += 20 {
				ds := make([]Datagram, 20)
				for j := range ds {
					ds[j] = Datagram{Exporter: spoolAddr(w), Payload: fmt.Appendf(nil, "%d-%d", w, i+j)}
				}
				if n := s.Append(ds); n != len(ds) {
					t.Errorf("writer %d: %d of %d taken", w, n, len(ds))
				}
				s.Counts(0)
			}
		})
	}
	wg.Wait()
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
	if err := <-consumed; err != nil {
		t.Fatal(err)
	}
	cancel()
	run.Wait()
	if len(got) != writers*each {
		t.Errorf("%d datagrams came, want %d", len(got), writers*each)
	}
	for p, n := range got {
		if n != 1 {
			t.Errorf("%s came %d times", p, n)
		}
	}
}

func TestSpoolSealsByAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clock := func() flow.Time { return flow.TimeOf(time.Now()) }
		cfg := smallSpool()
		cfg.SyncEvery = time.Second
		s, err := OpenSpool(t.TempDir(), cfg, SpoolOptions{Clock: clock})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { s.Run(ctx); close(done) }()
		segments := func() int {
			s.mu.Lock()
			defer s.mu.Unlock()
			return len(s.segments)
		}
		start := time.Now()
		s.Append(testDatagrams(0, 1, 100))
		g, err := s.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if age := time.Since(start); age < time.Second || age > 1500*time.Millisecond {
			t.Errorf("a segment came after %v, want about 1s", age)
		}
		if n := len(slices.Collect(g.Entries())); n != 1 {
			t.Errorf("%d entries", n)
		}
		// An idle spool makes no segments.
		time.Sleep(time.Minute)
		if n := segments(); n != 2 {
			t.Errorf("after a minute of nothing there are %d segments", n)
		}
		// A reader that is behind gets larger segments, not more of them.
		for i := range 600 {
			s.Append(testDatagrams(i, 1, 100))
			time.Sleep(time.Second / 2)
		}
		if n := segments(); n > maxWaiting+3 {
			t.Errorf("%d segments wait for a reader that sleeps", n)
		}
		cancel()
		<-done
	})
}

func TestSpoolEntriesDoNotAllocate(t *testing.T) {
	s := openSpool(t, t.TempDir(), smallSpool())
	s.Append(testDatagrams(0, 100, 1000))
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	g, err := s.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var bytes int
	if n := testing.AllocsPerRun(10, func() {
		for e := range g.Entries() {
			bytes += len(e.Payload)
		}
	}); n > 0 {
		t.Errorf("walking 100 entries allocates %v times", n)
	}
	ds := testDatagrams(0, 64, 500)
	s.Append(ds)
	if n := testing.AllocsPerRun(10, func() { s.Append(ds[:8]) }); n > 0 {
		t.Errorf("appending 8 datagrams allocates %v times", n)
	}
}

func TestSpoolConfigValidate(t *testing.T) {
	good := DefaultSpoolConfig()
	if err := good.Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	for _, spoil := range []func(*SpoolConfig){
		func(c *SpoolConfig) { c.SegmentSize = 1 },
		func(c *SpoolConfig) { c.MaxBytes = c.SegmentSize },
		func(c *SpoolConfig) { c.SegmentAge = 0 },
		func(c *SpoolConfig) { c.SyncEvery = -1 },
		func(c *SpoolConfig) { c.ChunkRows = 0 },
		func(c *SpoolConfig) { c.MaxExporters = 0 },
	} {
		c := DefaultSpoolConfig()
		spoil(&c)
		if c.Validate() == nil {
			t.Errorf("%+v passes", c)
		}
	}
}

// TestSpoolKill kills a child that appends, at random moments, and checks that
// nothing it acknowledged is lost and nothing comes twice, over the life of one
// directory.
func TestSpoolKill(t *testing.T) {
	if dir := os.Getenv("POSTERN_TEST_SPOOL_CHILD"); dir != "" {
		spoolChild(t, dir)
		return
	}
	rounds := 25
	if testing.Short() {
		rounds = 3
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	next, seen := uint64(0), map[uint64]bool{} // the datagram's own number, by payload
	var position, lastSeq uint64
	for round := range rounds {
		cmd := exec.Command(os.Args[0], "-test.run=^TestSpoolKill$")
		cmd.Env = append(os.Environ(), "POSTERN_TEST_SPOOL_CHILD="+dir, fmt.Sprintf("POSTERN_TEST_SPOOL_FROM=%d", next))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		acks := make(chan uint64, 1)
		first := make(chan struct{})
		go func() {
			var acked uint64
			started := false
			for lines := bufio.NewScanner(out); lines.Scan(); {
				if _, err := fmt.Sscanf(lines.Text(), "ack %d", &acked); err == nil && !started {
					started = true
					close(first)
				}
			}
			acks <- acked
		}()
		select {
		case <-first:
		case <-time.After(30 * time.Second):
			cmd.Process.Kill()
			t.Fatal("the child does not append")
		}
		time.Sleep(time.Duration(rng.IntN(60_000)) * time.Microsecond)
		cmd.Process.Kill()
		acked := <-acks
		cmd.Wait()

		s := openSpool(t, dir, smallSpool())
		counted := sumCounts(s.Counts(0).Datagrams)
		entries, seqs := readSpool(t, s)
		ds := datagramEntries(entries)
		if uint64(len(ds)) != counted {
			t.Fatalf("round %d: %d datagrams are counted, %d came", round, counted, len(ds))
		}
		for _, d := range ds {
			n := binary.BigEndian.Uint64(d.Payload)
			if seen[n] {
				t.Fatalf("round %d: datagram %d came twice", round, n)
			}
			seen[n] = true
			if d.Position != position {
				t.Fatalf("round %d: position %d, want %d", round, d.Position, position)
			}
			position++
		}
		for n := next; n < acked; n++ {
			if !seen[n] {
				t.Fatalf("round %d: datagram %d was acknowledged (up to %d) and is lost", round, n, acked)
			}
		}
		if len(seqs) > 0 {
			if seqs[0] <= lastSeq {
				t.Fatalf("round %d: segment %d is given again", round, seqs[0])
			}
			lastSeq = seqs[len(seqs)-1]
		}
		if err := s.Remove(lastSeq); err != nil {
			t.Fatal(err)
		}
		s.Close()
		if len(ds) > 0 {
			next = max(acked, binary.BigEndian.Uint64(ds[len(ds)-1].Payload)+1)
		}
	}
	t.Logf("%d datagrams over %d kills", len(seen), rounds)
}

// spoolChild appends until it is killed and says after each Append up to which
// number datagrams were taken.
func spoolChild(t *testing.T, dir string) {
	var from int
	fmt.Sscanf(os.Getenv("POSTERN_TEST_SPOOL_FROM"), "%d", &from)
	cfg := smallSpool()
	cfg.SyncEvery = time.Second
	cfg.SegmentAge = 10 * time.Millisecond
	cfg.MaxBytes = flow.GiB
	s, err := OpenSpool(dir, cfg, SpoolOptions{Clock: func() flow.Time { return flow.TimeOf(time.Now()) }})
	if err != nil {
		t.Fatal(err)
	}
	go s.Run(context.Background())
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		ds := testDatagrams(from, 1+from%70, 200)
		if n := s.Append(ds); n != len(ds) {
			t.Fatalf("%d of %d taken", n, len(ds))
		}
		from += len(ds)
		fmt.Printf("ack %d\n", from)
	}
}

func TestSpoolMetrics(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	now := spoolEpoch
	s, err := OpenSpool(t.TempDir(), smallSpool(), SpoolOptions{Clock: func() flow.Time { return now }, Registerer: reg})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Append(testDatagrams(0, 3, 10))
	s.Refuse(spoolAddr(0), flow.RejectExporter, 2)
	now += 4000
	err = testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP postern_ingest_spool_datagrams_total Datagrams written to the spool.
# TYPE postern_ingest_spool_datagrams_total counter
postern_ingest_spool_datagrams_total 3
# HELP postern_ingest_spool_oldest_seconds Age of the oldest entry on disk.
# TYPE postern_ingest_spool_oldest_seconds gauge
postern_ingest_spool_oldest_seconds 4
# HELP postern_ingest_spool_refused_datagrams_total Datagrams refused before or by the spool, by reason.
# TYPE postern_ingest_spool_refused_datagrams_total counter
postern_ingest_spool_refused_datagrams_total{reason="exporter_not_allowed"} 2
postern_ingest_spool_refused_datagrams_total{reason="spool_full"} 0
postern_ingest_spool_refused_datagrams_total{reason="table_full"} 0
postern_ingest_spool_refused_datagrams_total{reason="too_large"} 0
# HELP postern_ingest_spool_segments Segments on disk, the open one included.
# TYPE postern_ingest_spool_segments gauge
postern_ingest_spool_segments 1
`), "postern_ingest_spool_datagrams_total", "postern_ingest_spool_oldest_seconds",
		"postern_ingest_spool_refused_datagrams_total", "postern_ingest_spool_segments")
	if err != nil {
		t.Error(err)
	}
}

// FuzzSegment feeds any bytes to the reader: it neither panics nor gives an entry
// that runs beyond the file, and reading its own result again changes nothing.
func FuzzSegment(f *testing.F) {
	h := segmentHeader{id: SpoolID{1, 2, 3}, seq: 7, first: 100, created: spoolEpoch, chunkRows: 10}
	whole := h.append(nil)
	for i, d := range testDatagrams(0, 4, 20) {
		e := Entry{Kind: EntryDatagram, Time: d.Received, Exporter: d.Exporter, Port: d.Port, Payload: d.Payload}
		whole = appendEntry(whole, &e, h.seed(), int64(len(whole)), uint32(i))
	}
	e := Entry{Kind: EntryRefused, Reason: flow.RejectExporter, Count: 4}
	whole = appendEntry(whole, &e, h.seed(), int64(len(whole)), 4)
	f.Add(whole, uint16(0), []byte(nil))
	f.Add(whole, uint16(90), []byte{0xa5, 0x5e, 1, 0, 0, 0, 0xff, 0xff})
	f.Add(whole, uint16(200), []byte{0})
	f.Add(whole[:segmentHeaderLen+10], uint16(70), []byte{1})
	f.Add([]byte{}, uint16(0), []byte{})
	f.Fuzz(func(t *testing.T, base []byte, at uint16, patch []byte) {
		b := slices.Clone(base)
		if int(at) < len(b) {
			copy(b[at:], patch)
		}
		size := len(b)
		var g Segment
		d, err := g.parse(b)
		if err != nil {
			return
		}
		n, kinds := 0, map[EntryKind]int{}
		for e := range g.Entries() {
			n += entryHeaderLen + len(e.Payload)
			if e.Kind == EntryRefused {
				n += 8
			}
			kinds[e.Kind]++
		}
		if segmentHeaderLen+n+int(d.middle+d.tail) != size {
			t.Errorf("%d bytes of entries and %+v do not add up to %d", n, d, size)
		}
		if int(at) >= len(base) && slices.Equal(base, whole) && !maps.Equal(kinds, map[EntryKind]int{EntryDatagram: 4, EntryRefused: 1}) {
			t.Errorf("an undamaged segment gives %v", kinds)
		}
	})
}

func BenchmarkSpoolAppend(b *testing.B) {
	for _, syncEvery := range []time.Duration{0, time.Second} {
		b.Run(fmt.Sprintf("sync=%v", syncEvery), func(b *testing.B) {
			cfg := DefaultSpoolConfig()
			cfg.SyncEvery = syncEvery
			s, err := OpenSpool(b.TempDir(), cfg, SpoolOptions{Clock: func() flow.Time { return flow.TimeOf(time.Now()) }})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			ctx, cancel := context.WithCancel(b.Context())
			done := make(chan struct{})
			go func() { s.Run(ctx); close(done) }()
			go func() {
				for {
					g, err := s.Next(ctx)
					if err != nil {
						return
					}
					s.Remove(g.Seq())
				}
			}()
			ds := testDatagrams(0, 64, 1400)
			b.SetBytes(1400)
			b.ReportAllocs()
			for i := 0; i < b.N; i += len(ds) {
				for s.Append(ds) < len(ds) {
					time.Sleep(time.Millisecond)
				}
			}
			b.StopTimer()
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/28, "ns/flow")
			cancel()
			<-done
		})
	}
}

func BenchmarkSpoolRead(b *testing.B) {
	cfg := DefaultSpoolConfig()
	cfg.SyncEvery = 0
	s := openSpool(b, b.TempDir(), cfg)
	for i := 0; i < 2900; i += 100 {
		s.Append(testDatagrams(i, 100, 1400))
	}
	if err := s.Flush(); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(1400)
	b.ReportAllocs()
	b.ResetTimer()
	var n int
	for n < b.N {
		s.Seek(0)
		g, err := s.Next(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		for e := range g.Entries() {
			n += min(1, len(e.Payload))
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n)/28, "ns/flow")
}
