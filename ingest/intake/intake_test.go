package intake

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest"
	"github.com/postern/postern/ingest/agent"
)

// rig is an intake before a real spool.
type rig struct {
	*testing.T
	dir   string
	cfg   Config
	spool *ingest.Spool
	in    *Intake
	end   func()
	taken []taken // of segments read so far
	full  atomic.Bool
	nowMs atomic.Int64
	stdin io.Reader

	events map[string]EventSink
}

// taken is a batch as the pipeline sees it.
type taken struct {
	ingest.Lines
	ports []uint16 // source ports of its flows: tests number lines by them
	hosts []string // observers
}

func newRig(t *testing.T, change func(*Config)) *rig {
	r := &rig{T: t, dir: t.TempDir(), cfg: DefaultConfig()}
	r.nowMs.Store(1_790_953_500_000)
	if change != nil {
		change(&r.cfg)
	}
	r.openSpool()
	t.Cleanup(func() { r.stop(); r.spool.Close() })
	return r
}

func (r *rig) clock() flow.Time { return flow.Time(r.nowMs.Load()) }

func (r *rig) openSpool() {
	r.Helper()
	var err error
	if r.spool, err = ingest.OpenSpool(filepath.Join(r.dir, "spool"), ingest.DefaultSpoolConfig(), ingest.SpoolOptions{Clock: r.clock}); err != nil {
		r.Fatal(err)
	}
}

// AppendLines is the spool's, unless the test says that there is no room.
func (r *rig) AppendLines(b []ingest.Lines) (int, error) {
	if r.full.Load() {
		return 0, ingest.ErrSpoolNotWritten
	}
	return r.spool.AppendLines(b)
}
func (r *rig) Sync() error                           { return r.spool.Sync() }
func (r *rig) Mark(key [16]byte) (ingest.Mark, bool) { return r.spool.Mark(key) }
func (r *rig) Marks() []ingest.Mark                  { return r.spool.Marks() }
func portsOnly(names *flow.Names) Encode {
	return func(dst []byte, _ [16]byte, _ uint64, records []flow.Record) []byte {
		for i := range records {
			dst = binary.BigEndian.AppendUint16(dst, records[i].SrcPort)
			host := names.Text(records[i].Observer)
			dst = append(append(dst, byte(len(host))), host...)
		}
		return dst
	}
}

// start begins taking logs in.
func (r *rig) start() {
	r.Helper()
	var err error
	r.in, err = New(r.cfg, Options{Log: r, Encoder: portsOnly, Clock: r.clock, Token: "secret", Rejected: filepath.Join(r.dir, "rejected.ndjson"), Stdin: r.stdin, Events: r.events})
	if err != nil {
		r.Fatal(err)
	}
	if err := r.in.Bind(r.Context()); err != nil {
		r.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.in.Run(ctx) }()
	r.end = func() {
		cancel()
		if err := <-done; err != nil {
			r.Error(err)
		}
		r.end = nil
	}
}

func (r *rig) stop() {
	if r.end != nil {
		r.end()
	}
}

// restart ends the process as kill -9 does to the spool: what was appended is there.
func (r *rig) restart() {
	r.Helper()
	r.stop()
	if err := r.spool.Close(); err != nil {
		r.Fatal(err)
	}
	r.openSpool()
	r.start()
}

// drain reads what the spool holds, as the pipeline does, and removes it.
func (r *rig) drain() {
	r.Helper()
	if err := r.spool.Flush(); err != nil {
		r.Fatal(err)
	}
	for first := true; first || r.spool.Behind(); first = false {
		ctx, cancel := context.WithTimeout(r.Context(), 100*time.Millisecond)
		seg, err := r.spool.Next(ctx)
		cancel()
		if err != nil {
			return
		}
		for e := range seg.Entries() {
			l, ok := e.Lines()
			if e.Kind != ingest.EntryLines || !ok {
				continue
			}
			one := taken{Lines: l}
			for b := l.Records; len(b) > 0; {
				one.ports = append(one.ports, binary.BigEndian.Uint16(b))
				one.hosts = append(one.hosts, string(b[3:3+b[2]]))
				b = b[3+b[2]:]
			}
			r.taken = append(r.taken, one)
		}
		if err := r.spool.Remove(seg.Seq()); err != nil {
			r.Fatal(err)
		}
	}
}

// ports are those of every flow that was handed on, in order.
func (r *rig) ports() (out []uint16) {
	r.Helper()
	r.drain()
	for _, t := range r.taken {
		out = append(out, t.ports...)
	}
	return out
}

func (r *rig) counts() (c ingest.LineCounts) {
	for _, t := range r.taken {
		c.Read += t.Counts.Read
		c.NotFlow += t.Counts.NotFlow
		c.Rejected += t.Counts.Rejected
	}
	return c
}

// eventually waits until so many flows were handed on.
func (r *rig) eventually(want int) []uint16 {
	r.Helper()
	var got []uint16
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if got = r.ports(); len(got) >= want {
			return got
		}
	}
	r.Fatalf("%d flows came, want %d", len(got), want)
	return nil
}

// conn is a line of Zeek's with a number for its source port.
func conn(n int) string {
	return fmt.Sprintf(`{"ts":1790953445.5,"uid":"C%d","id.orig_h":"10.0.0.1","id.orig_p":%d,"id.resp_h":"10.0.0.2","id.resp_p":443,"proto":"tcp","conn_state":"SF"}`, n, n)
}

func conns(from, to int) string {
	var b strings.Builder
	for n := from; n < to; n++ {
		b.WriteString(conn(n) + "\n")
	}
	return b.String()
}

func numbers(from, to int) (out []uint16) {
	for n := from; n < to; n++ {
		out = append(out, uint16(n))
	}
	return out
}

func (r *rig) want(got, want []uint16) {
	r.Helper()
	if !slices.Equal(got, want) {
		r.Errorf("%d flows %v…, want %d %v…", len(got), got[:min(len(got), 8)], len(want), want[:min(len(want), 8)])
	}
}

// post sends a body and gives the answer.
func (r *rig) post(format string, body []byte, header ...string) (int, answer) {
	r.Helper()
	return r.postTo("/v1/logs/"+format, body, header...)
}

func (r *rig) postTo(path string, body []byte, header ...string) (int, answer) {
	r.Helper()
	req, err := http.NewRequestWithContext(r.Context(), http.MethodPost, "http://"+r.in.HTTPAddr()+path, bytes.NewReader(body))
	if err != nil {
		r.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer secret")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		r.Fatal(err)
	}
	defer res.Body.Close()
	var a answer
	if err := json.NewDecoder(res.Body).Decode(&a); err != nil {
		r.Fatalf("%d: %v", res.StatusCode, err)
	}
	return res.StatusCode, a
}

func onHTTP(c *Config) { c.HTTP.Listen = "127.0.0.1:0" }

func TestHTTP(t *testing.T) {
	r := newRig(t, onHTTP)
	r.start()
	body := conns(1, 4) + `{"ts":1,"uid":"x","id.orig_h":"10.0.0.1","id.resp_h":"vault","proto":"tcp","conn_state":"SF"}` + "\n" + `{"ts":2,"uid":"y","version":2}` + "\nnonsense\n" + conns(4, 6)
	code, a := r.post("zeek", []byte(body))
	if code != 200 || a.Lines != 8 || a.Accepted != 6 || a.Flows != 5 || a.Rejected != 2 || a.NotFlows["a line of another log of Zeek's"] != 1 || a.Duplicate {
		t.Errorf("%d %+v", code, a)
	}
	if len(a.Errors) != 2 || a.Errors[0].Line != 4 || a.Errors[0].Offset != uint64(len(conns(1, 4))) || !strings.Contains(a.Errors[0].Error, `"vault"`) {
		t.Errorf("errors %+v", a.Errors)
	}
	r.want(r.ports(), numbers(1, 6))
	if c := r.counts(); c != (ingest.LineCounts{Read: 5, NotFlow: 1, Rejected: 2}) {
		t.Errorf("counted %+v", c)
	}
	if kept, err := os.ReadFile(filepath.Join(r.dir, "rejected.ndjson")); err != nil || bytes.Count(kept, []byte("\n")) != 2 || !bytes.Contains(kept, []byte(`"line":"nonsense"`)) {
		t.Errorf("rejected lines kept: %s %v", kept, err)
	}

	// The same again, packed or as an array, is not the same body; the same bytes are.
	code, a = r.post("zeek", []byte(body))
	if code != 200 || !a.Duplicate || a.Lines != 8 || a.Flows != 5 {
		t.Errorf("again: %d %+v", code, a)
	}
	array := "[" + strings.Join(strings.Split(strings.TrimSpace(conns(10, 13)), "\n"), ",\n ") + "]"
	if code, a = r.post(AutoFormat, []byte(array)); code != 200 || a.Format != "zeek" || a.Why == "" || a.Flows != 3 {
		t.Errorf("an array: %d %+v", code, a)
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write([]byte(conns(20, 22)))
	_ = z.Close()
	if code, a = r.post("zeek", packed.Bytes(), "Content-Encoding", "gzip"); code != 200 || a.Flows != 2 {
		t.Errorf("gzip: %d %+v", code, a)
	}
	zs, _ := zstd.NewWriter(nil)
	if code, a = r.post("zeek", zs.EncodeAll([]byte(conns(30, 32)), nil), "Content-Encoding", "zstd"); code != 200 || a.Flows != 2 {
		t.Errorf("zstd: %d %+v", code, a)
	}
	r.want(r.ports(), slices.Concat(numbers(1, 6), numbers(10, 13), numbers(20, 22), numbers(30, 32)))
}

// AutoFormat is what a sender writes who does not know.
const AutoFormat = "auto"

func TestHTTPRefuses(t *testing.T) {
	r := newRig(t, func(c *Config) { onHTTP(c); c.HTTP.MaxBody = 4 * flow.KiB })
	r.start()
	zeros := bytes.Repeat([]byte("0"), 1<<20)
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, _ = z.Write(zeros)
	_ = z.Close()
	for _, c := range []struct {
		name   string
		code   int
		says   string
		format string
		body   string
		header []string
	}{
		{"no token", 401, "bearer token", "zeek", conn(1), []string{"Authorization", ""}},
		{"another token", 401, "bearer token", "zeek", conn(1), []string{"Authorization", "Bearer secreT"}},
		{"an unknown format", 404, "did you mean zeek?", "zek", conn(1), nil},
		{"too long", 413, "longer than 4KiB", "zeek", conns(1, 100), nil},
		{"too long once unpacked", 413, "longer than 4KiB", "zeek", bomb.String(), []string{"Content-Encoding", "gzip"}},
		{"no gzip", 400, "gzip", "zeek", conn(1), []string{"Content-Encoding", "gzip"}},
		{"an unknown packing", 415, "use gzip, zstd", "zeek", conn(1), []string{"Content-Encoding", "br"}},
		{"nothing of use", 400, "none of the lines", "zeek", "x\ny\n", nil},
		{"a long key", 400, "at most 256", "zeek", conn(1), []string{"Idempotency-Key", strings.Repeat("k", 300)}},
	} {
		if code, a := r.post(c.format, []byte(c.body), c.header...); code != c.code || !strings.Contains(a.Error, c.says) {
			t.Errorf("%s: %d %q, want %d %q", c.name, code, a.Error, c.code, c.says)
		}
	}
	r.full.Store(true)
	if code, a := r.post("zeek", []byte(conn(1))); code != 503 || !strings.Contains(a.Error, "no room") {
		t.Errorf("no room: %d %+v", code, a)
	}
	if got := r.ports(); len(got) > 0 {
		t.Errorf("%v were taken in all the same", got)
	}
	r.full.Store(false)
	if code, a := r.post("zeek", []byte(conn(1))); code != 200 || a.Duplicate {
		t.Errorf("after it was refused: %d %+v", code, a)
	}
	r.want(r.ports(), numbers(1, 2))
}

// TestHTTPIdempotency sends what was sent before: after a restart, after the pipeline has
// removed it, and after it was begun and not finished.
func TestHTTPIdempotency(t *testing.T) {
	r := newRig(t, onHTTP)
	r.start()
	body := []byte(conns(1, 2000)) // several batches
	if code, a := r.post("zeek", body, "Idempotency-Key", "k1"); code != 200 || a.Duplicate {
		t.Fatalf("%d %+v", code, a)
	}
	if code, a := r.post("zeek", []byte(conn(7)), "Idempotency-Key", "k1"); code != 422 || !strings.Contains(a.Error, "another body") {
		t.Errorf("another body under the same key: %d %+v", code, a)
	}
	r.restart() // the marks stand in the segments
	if code, a := r.post("zeek", body, "Idempotency-Key", "k1"); code != 200 || !a.Duplicate {
		t.Errorf("after a restart: %d %+v", code, a)
	}
	r.want(r.ports(), numbers(1, 2000)) // and are removed
	r.restart()                         // so they stand in the book
	if code, a := r.post("zeek", body, "Idempotency-Key", "k1"); code != 200 || !a.Duplicate {
		t.Errorf("after the segments are gone: %d %+v", code, a)
	}
	r.want(r.ports(), numbers(1, 2000))

	// A crash between two batches of a request: the rest is taken when it comes again.
	cut := &crashing{rig: r, after: 3}
	r.in.opts.Log = cut
	if code, _ := r.post("zeek", []byte(conns(3000, 5000)), "Idempotency-Key", "k2"); code != 503 {
		t.Errorf("a crash in the middle: %d", code)
	}
	r.restart()
	if code, a := r.post("zeek", []byte(conns(3000, 5000)), "Idempotency-Key", "k2"); code != 200 || a.Duplicate {
		t.Errorf("after it: %d %+v", code, a)
	}
	r.want(r.ports(), slices.Concat(numbers(1, 2000), numbers(3000, 5000)))

	r.nowMs.Add(25 * time.Hour.Milliseconds())
	r.restart()
	r.nowMs.Add(1)
	for range 2 { // forgotten after a day, then known again
		_, _ = r.post("zeek", body, "Idempotency-Key", "k1")
	}
	if got := len(r.ports()); got != 1999+2000+1999 {
		t.Errorf("%d flows after a day, want the request taken once more: %d", got, 1999+2000+1999)
	}
}

// crashing takes some batches and then no more.
type crashing struct {
	*rig
	after int
}

func (c *crashing) AppendLines(b []ingest.Lines) (int, error) {
	n, err := c.rig.AppendLines(b[:min(c.after, len(b))])
	return n, errors.Join(err, errors.New("the disk is gone"))
}

// write appends to a file.
func (r *rig) write(name, text string) {
	r.Helper()
	f, err := os.OpenFile(filepath.Join(r.dir, name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		r.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		r.Fatal(err)
	}
	if err := f.Close(); err != nil {
		r.Fatal(err)
	}
}

func onFiles(format string, paths ...string) func(*Config) {
	return func(c *Config) { c.Files = []FilesConfig{{Paths: paths, Format: format, Observer: "sensor-1"}} }
}

// TestHTTPTooSlow: a body that did not come in time is one to send again, not a bad one.
func TestHTTPTooSlow(t *testing.T) {
	r := newRig(t, func(c *Config) { onHTTP(c); c.HTTP.Timeout = time.Second })
	r.start()
	c, err := net.Dial("tcp", r.in.HTTPAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := fmt.Fprintf(c, "POST /v1/logs/zeek HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\nContent-Length: 100000\r\n\r\n%s\n", conn(1)); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 4096)
	n, err := io.ReadAtLeast(c, answer, 200)
	if got := string(answer[:n]); !strings.HasPrefix(got, "HTTP/1.1 408 ") || !strings.Contains(got, "did not come within 1s") {
		t.Errorf("%v: %s", err, got)
	}
	if got := r.ports(); len(got) > 0 {
		t.Errorf("%v were taken in all the same", got)
	}
}

// TestLineOfManyFlows: what a line told that had many flows is handed on whole, and the room
// for it is not kept.
func TestLineOfManyFlows(t *testing.T) {
	r := newRig(t, nil)
	in, err := New(r.cfg, Options{Log: r, Encoder: portsOnly, Clock: r.clock})
	if err != nil {
		t.Fatal(err)
	}
	from, err := in.newReader("file", "azure", agent.Origin{Received: r.clock()}, [16]byte{1}, in.newTable())
	if err != nil {
		t.Fatal(err)
	}
	const flows = 20_000
	tuples := make([]string, flows)
	for i := range tuples {
		tuples[i] = fmt.Sprintf(`"1790953445,10.0.0.1,10.0.0.2,%d,443,T,O,A,B,,,,"`, i)
	}
	from.line([]byte(`{"category":"NetworkSecurityGroupFlowEvent","properties":{"flows":[{"rule":"r","flows":[{"mac":"m","flowTuples":[`+strings.Join(tuples, ",")+`]}]}]}}`), 0, nil)
	records := 0
	for _, b := range from.cut(nil, ingest.Mark{}) {
		records += len(b.Records) / len("..\x01m") // as portsOnly writes them
	}
	if records != flows || len(from.errs) > 0 || cap(from.batch.Records) > 4*BatchRecords {
		t.Errorf("%d flows, want %d; errors %v; room for %d is kept", records, flows, from.errs, cap(from.batch.Records))
	}
}

// TestFilesFollowed grows, rotates, copies, cuts and packs a log while it is followed, with
// restarts between: every line comes once.
func TestFilesFollowed(t *testing.T) {
	r := newRig(t, nil)
	onFiles("zeek", filepath.Join(r.dir, "logs", "conn*"))(&r.cfg)
	if err := os.Mkdir(filepath.Join(r.dir, "logs"), 0o700); err != nil {
		t.Fatal(err)
	}
	path := func(name string) string { return filepath.Join(r.dir, "logs", name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	r.start()
	r.write("logs/conn.log", conns(0, 3)+conn(3)[:20])
	r.want(r.eventually(3), numbers(0, 3))
	r.write("logs/conn.log", conn(3)[20:]+"\n")
	r.want(r.eventually(4), numbers(0, 4))
	if r.taken[0].hosts[0] != "sensor-1" {
		t.Errorf("observer %q", r.taken[0].hosts[0])
	}

	r.restart()
	r.write("logs/conn.log", conns(4, 10))
	r.want(r.eventually(10), numbers(0, 10))

	// Renamed, and a new one in its place, while nobody looks.
	r.stop()
	r.write("logs/conn.log", conns(10, 12))
	must(os.Rename(path("conn.log"), path("conn.log.1")))
	r.write("logs/conn.log", conns(12, 15))
	r.restart()
	r.eventually(15)

	// Copied and cut.
	raw, err := os.ReadFile(path("conn.log"))
	must(err)
	must(os.WriteFile(path("conn.log.2"), raw, 0o600))
	must(os.Truncate(path("conn.log"), 0))
	r.write("logs/conn.log", conns(15, 18))
	r.eventually(18)

	// Packed beside the original, which goes.
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	raw, err = os.ReadFile(path("conn.log"))
	must(err)
	_, _ = z.Write(append(raw, conns(18, 20)...))
	must(z.Close())
	must(os.WriteFile(path("conn.log.3.gz"), packed.Bytes(), 0o600))
	must(os.Remove(path("conn.log")))
	r.eventually(20)
	r.restart()
	r.write("logs/conn.log", conns(20, 22))
	r.eventually(22)
	time.Sleep(1500 * time.Millisecond) // nothing more comes
	got := r.ports()
	slices.Sort(got)
	r.want(got, numbers(0, 22))
}

// TestFilesResumeHeaders goes on in files whose beginning bears on their rest.
func TestFilesResumeHeaders(t *testing.T) {
	r := newRig(t, nil)
	onFiles("zeek", filepath.Join(r.dir, "*.log"))(&r.cfg)
	row := func(n int) string {
		return fmt.Sprintf("1790953445.5\tC%d\t10.0.0.1\t%d\t10.0.0.2\t443\ttcp\tSF\n", n, n)
	}
	r.write("tsv.log", "#separator \\x09\n#path\tconn\n#fields\tts\tuid\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tproto\tconn_state\n"+row(1))
	r.write("array.log", "[\n"+conn(100)+", "+conn(101)+",\n")
	r.start()
	r.eventually(3)
	r.restart()
	r.write("tsv.log", row(2))
	r.write("array.log", conn(102)+", "+conn(103)+"]\n")
	got := r.eventually(6)
	slices.Sort(got)
	r.want(got, []uint16{1, 2, 100, 101, 102, 103})
	if c := r.counts(); c.Rejected > 0 {
		t.Errorf("%d lines were rejected", c.Rejected)
	}
}

// TestFilesAtATurn follows a file that is larger than what is read at a time, killed at random
// places: the spool is what it was at the kill.
func TestFilesAtATurn(t *testing.T) {
	r := newRig(t, nil)
	onFiles("zeek", filepath.Join(r.dir, "big.log"))(&r.cfg)
	const lines = 30_000
	r.write("big.log", conns(0, lines))
	for i := range 5 {
		r.in, r.end = nil, nil
		c := &crashing{rig: r, after: 3 + 7*i}
		in, err := New(r.cfg, Options{Log: c, Encoder: portsOnly, Clock: r.clock})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		_ = in.Run(ctx)
		cancel()
		if err := r.spool.Close(); err != nil {
			t.Fatal(err)
		}
		r.openSpool()
	}
	r.start()
	r.want(r.eventually(lines), numbers(0, lines))
}

func TestStdin(t *testing.T) {
	read, write := io.Pipe()
	r := newRig(t, func(c *Config) { c.Stdin = StdinConfig{Format: "zeek", Observer: "here"} })
	r.stdin = read
	r.start()
	_, _ = io.WriteString(write, conns(1, 3)+conn(3))
	r.want(r.eventually(2), numbers(1, 3))
	_ = write.Close()
	r.want(r.eventually(3), numbers(1, 4))
}

func TestSyslogFrames(t *testing.T) {
	r := newRig(t, func(c *Config) {
		c.Syslog = []SyslogConfig{{Listen: "127.0.0.1:0", Format: "zeek"}}
	})
	r.start()
	send := func(text string) {
		t.Helper()
		c, err := net.Dial("tcp", r.in.SyslogAddrs()[0])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
	}
	m := "<134>1 2026-10-02T15:04:05Z zeek-1 zeek 12 - - " + conn(1)
	send(fmt.Sprintf("%d %s", len(m), m))                                  // RFC 5425
	send("<134>Oct  2 15:04:05 zeek-2 zeek[12]: " + conn(2) + "\n")        // RFC 3164 by line
	send("<134>1 2026-10-02T15:04:05Z zeek-1 zeek - - - nonsense\r\n\x00") // rejected
	got := r.eventually(2)
	slices.Sort(got)
	r.want(got, numbers(1, 3))
	hosts := map[string]bool{}
	for _, b := range r.taken {
		for _, h := range b.hosts {
			hosts[h] = true
		}
		if b.Exporter != flow.MustParseAddr("127.0.0.1") {
			t.Errorf("sent by %v", b.Exporter)
		}
	}
	if !hosts["zeek-1"] || !hosts["zeek-2"] {
		t.Errorf("observers %v", hosts)
	}
	send("x <134> no length") // ends that connection only
	send(fmt.Sprintf("%d %s", len(m), m))
	r.eventually(3)
}

func TestSyslogSenders(t *testing.T) {
	r := newRig(t, func(c *Config) {
		c.Syslog = []SyslogConfig{{Listen: "127.0.0.1:0", Format: "zeek", Senders: []string{"192.0.2.0/24"}}}
	})
	r.start()
	c, err := net.Dial("tcp", r.in.SyslogAddrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !strings.Contains(fmt.Sprint(err), "reset") {
		t.Errorf("a sender that is not on the list is served: %v", err)
	}
}

// TestSyslogSendersWritten: the list reads as the one of exporters does.
func TestSyslogSendersWritten(t *testing.T) {
	for _, c := range []struct {
		senders []string
		is      bool
		says    string
	}{
		{nil, true, ""}, // loopback
		{[]string{}, false, ""},
		{[]string{"127.0.0.1"}, true, ""},
		{[]string{"::ffff:127.0.0.0/104"}, true, ""},
		{[]string{"::1", "10.0.0.0/8"}, false, ""},
		{[]string{"127.0.0.1/8"}, false, `syslog[0].senders: has "127.0.0.1/8", which has bits beyond its length; write 127.0.0.0/8`},
		{[]string{"::/0", "::ffff:0.0.0.0/90"}, false, `which is wider than IPv4 itself`},
		{[]string{"host"}, false, `syslog[0].senders: has "host", which is neither an address nor a prefix; write 10.0.0.1 or 10.1.0.0/16`},
	} {
		cfg := DefaultConfig()
		cfg.Syslog = []SyslogConfig{{Listen: "127.0.0.1:0", Format: "zeek", Senders: c.senders}}
		if err := cfg.Validate(); (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: %v, want %q", c.senders, err, c.says)
		}
		if c.says != "" {
			continue
		}
		d, err := (&Intake{log: slog.New(slog.DiscardHandler)}).openSyslog(t.Context(), &cfg.Syslog[0])
		if err != nil {
			t.Fatal(err)
		}
		d.listener.Close()
		for _, ip := range []string{"127.0.0.1", "::ffff:127.0.0.1"} {
			if is := d.allowed(netip.MustParseAddr(ip)); is != c.is {
				t.Errorf("%v: %s is allowed %v, want %v", c.senders, ip, is, c.is)
			}
		}
	}
}

// TestSyslogStops: who never pauses holds up no end.
func TestSyslogStops(t *testing.T) {
	r := newRig(t, func(c *Config) {
		c.Syslog = []SyslogConfig{{Listen: "127.0.0.1:0", Format: "zeek"}}
	})
	m := "<134>1 2026-10-02T15:04:05Z zeek-1 zeek 12 - - " + conn(1)
	flood := []byte(strings.Repeat(fmt.Sprintf("%d %s", len(m), m), 500))
	for range 20 {
		r.start()
		for range 4 {
			c, err := net.Dial("tcp", r.in.SyslogAddrs()[0])
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				defer c.Close()
				for {
					if _, err := c.Write(flood); err != nil {
						return
					}
				}
			}()
		}
		time.Sleep(20 * time.Millisecond)
		began := time.Now()
		r.stop()
		if took := time.Since(began); took > 5*time.Second {
			t.Fatalf("it took %v to end", took)
		}
		r.taken = nil
		r.drain()
	}
}

func TestNamesRenewed(t *testing.T) {
	r := newRig(t, onHTTP)
	r.start()
	var b strings.Builder
	const lines = namesRoom + 1000
	for n := range lines {
		fmt.Fprintf(&b, `{"ts":1790953445.5,"uid":"C","id.orig_h":"10.0.0.1","id.orig_p":%d,"id.resp_h":"10.0.0.2","id.resp_p":443,"proto":"tcp","conn_state":"SF","service":"s%d"}`+"\n", n%60000, n)
	}
	if code, a := r.post("zeek", []byte(b.String())); code != 200 || a.Flows != lines {
		t.Fatalf("%d %+v", code, a)
	}
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte("5 hello6 world!<1>x\n\x00<2>y"), 16)
	f.Add([]byte("999999999 x"), 3)
	f.Fuzz(func(t *testing.T, raw []byte, limit int) {
		limit = 1 + limit&0xff
		_ = frames(t.Context(), bytes.NewReader(raw), limit, func(m []byte) {
			if len(m) > limit {
				t.Errorf("a message of %d bytes, at most %d", len(m), limit)
			}
		})
	})
}

func TestConfig(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"http.listen: .*in the clear":  func(c *Config) { c.HTTP.Listen = ":8080" },
		"only one of cert and key":     func(c *Config) { c.HTTP.Listen, c.HTTP.TLS.Cert = "127.0.0.1:1", "x" },
		"did you mean zeek":            func(c *Config) { onFiles("zek", "/x")(c) },
		"files\\[0\\].paths: is empty": func(c *Config) { onFiles("zeek")(c) },
		"is no pattern":                func(c *Config) { onFiles("zeek", "[")(c) },
		"nothing says who may send":    func(c *Config) { c.Syslog = []SyslogConfig{{Listen: ":514", Format: "auto"}} },
		"neither an address nor": func(c *Config) {
			c.Syslog = []SyslogConfig{{Listen: "127.0.0.1:1", Format: "auto", Senders: []string{"x"}}}
		},
		"stdin.format":                  func(c *Config) { c.Stdin.Format = "x" },
		"maxLine: is 1;":                func(c *Config) { c.MaxLine = 1 },
		"rejected: ":                    func(c *Config) { c.Rejected.PerMinute = -1 },
		"decode.clockTolerance: is -1s": func(c *Config) { c.Decode.ClockTolerance = -time.Second },
	} {
		c := DefaultConfig()
		change(&c)
		if err := c.Validate(); err == nil || !matches(want, err.Error()) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	c := DefaultConfig()
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}

func matches(pattern, text string) bool { return regexp.MustCompile(pattern).MatchString(text) }
