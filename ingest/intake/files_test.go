package intake

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// packed is text as gzip packs it.
func (r *rig) packed(text string) string {
	r.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write([]byte(text)); err != nil {
		r.Fatal(err)
	}
	if err := z.Close(); err != nil {
		r.Fatal(err)
	}
	return b.String()
}

// unchangedSince makes a file one that was written at a time.
func (r *rig) unchangedSince(name string, at time.Time) {
	r.Helper()
	if err := os.Chtimes(filepath.Join(r.dir, name), at, at); err != nil {
		r.Fatal(err)
	}
}

// TestFilesPackedInPieces: of a packed file that is found while it is written, or that was
// left in its middle, what is there is read, and the rest when it is finished.
func TestFilesPackedInPieces(t *testing.T) {
	r := newRig(t, nil)
	onFiles("zeek", filepath.Join(r.dir, "*.gz"))(&r.cfg)
	const lines = 60_000
	whole := r.packed(conns(0, lines))
	r.write("conn.log.gz", whole[:len(whole)/2])
	r.start()
	r.eventually(lines / 4)
	time.Sleep(1500 * time.Millisecond)
	half := len(r.ports())
	if half >= lines {
		t.Fatalf("%d flows came of half a file", half)
	}
	r.restart()
	time.Sleep(500 * time.Millisecond)
	if n := len(r.ports()); n != half {
		t.Errorf("%d flows came of a file that has not changed", n-half)
	}
	r.write("conn.log.gz", whole[len(whole)/2:])
	r.unchangedSince("conn.log.gz", time.Now().Add(-time.Minute))
	r.eventually(lines)
	r.restart()
	time.Sleep(1500 * time.Millisecond) // nothing more comes
	r.want(r.ports(), numbers(0, lines))
}

// TestFilesPackedClosed: a packed file that was read is not held open, also not after a
// restart, so that a folder may hold any number of them.
func TestFilesPackedClosed(t *testing.T) {
	r := newRig(t, nil)
	onFiles("zeek", r.dir)(&r.cfg)
	for i := range 20 {
		r.write(fmt.Sprintf("conn.%d.log.gz", i), r.packed(conns(10*i, 10*i+10)))
	}
	r.start()
	closed := func() {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); testutil.ToFloat64(r.in.met.files) > 0; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%v files are still open", testutil.ToFloat64(r.in.met.files))
			}
		}
	}
	r.eventually(200)
	closed()
	r.restart()
	r.write("conn.20.log.gz", r.packed(conns(200, 210)))
	r.eventually(210)
	closed()
	got := r.ports()
	slices.Sort(got)
	r.want(got, numbers(0, 210))
}

// TestFilesPackedEvents: what the source of session events did not take of a packed file comes
// again when it takes it.
func TestFilesPackedEvents(t *testing.T) {
	r, s := newEventRig(t, nil)
	r.cfg.Files = []FilesConfig{{Paths: []string{filepath.Join(r.dir, "*.gz")}, Events: "vpn"}}
	s.failing(errors.New("no room"))
	r.write("detail.gz", r.packed(jsonLine("Start", 1)+"\n"))
	r.start()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		s.mu.Lock()
		calls := s.calls
		s.mu.Unlock()
		if calls > 0 {
			break
		}
	}
	s.failing(nil)
	r.wantEvents(s, "start 1")
}

// TestFilesThereForLong: a file that has not changed for longer than marks are kept is not
// read again.
func TestFilesThereForLong(t *testing.T) {
	r := newRig(t, nil)
	onFiles("zeek", filepath.Join(r.dir, "*.log"), filepath.Join(r.dir, "*.gz"))(&r.cfg)
	r.write("conn.log", conns(0, 5))
	r.write("conn.1.log.gz", r.packed(conns(5, 10)))
	r.start()
	r.eventually(10)
	for range 5 {
		r.drain()
		r.nowMs.Add((fileKept * 2 / 3).Milliseconds())
		r.restart()
		time.Sleep(300 * time.Millisecond)
	}
	r.write("conn.log", conns(10, 12))
	r.eventually(12)
	got := r.ports()
	slices.Sort(got)
	r.want(got, numbers(0, 12))
}
