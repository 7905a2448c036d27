package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/enrich"
	"github.com/postern/postern/flow"
)

// lease is a fact that a source tells.
func lease(addr, user string, since, until flow.Time) flow.Fact {
	return flow.Fact{Source: "dhcp", Kind: flow.FactLease, Addr: flow.MustParseAddr(addr), Since: since, Until: until, User: user}
}

// openedFacts opens the log of a data directory and gives what it holds, one line each.
func openedFacts(t *testing.T, data string) (l *factLog, held []string) {
	t.Helper()
	store, err := enrich.NewIdentity(enrich.DefaultIdentityConfig(), flow.NewNames(0), nil)
	if err != nil {
		t.Fatal(err)
	}
	if l, err = openFacts(data, store, time.Hour, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if err := l.told(t.Context(), func(facts []flow.Fact) {
		for i := range facts {
			held = append(held, facts[i].Addr.String()+" "+facts[i].User)
		}
	}); err != nil {
		t.Fatal(err)
	}
	return l, held
}

func (l *factLog) mustTell(t *testing.T, beat flow.Time, facts ...flow.Fact) {
	t.Helper()
	b := flow.Heartbeat{}
	if beat != 0 {
		b = flow.Heartbeat{Source: "dhcp", At: beat}
	}
	if err := l.tell(t.Context(), facts, b); err != nil {
		t.Fatal(err)
	}
}

// TestFactLog: what was told is there after a restart, in its order; an end that a crash left
// unfinished is cut off and what is told then stands behind whole lines; looking through it
// leaves out what ended long ago, and what is told afterwards is in the file that is read next.
func TestFactLog(t *testing.T) {
	data := t.TempDir()
	now := wallClock()
	hour := flow.Time(time.Hour / time.Millisecond)
	l, held := openedFacts(t, data)
	if len(held) != 0 {
		t.Fatalf("a new log holds %q", held)
	}
	l.mustTell(t, now-3*hour, lease("10.0.0.1", "ann", now-4*hour, now-3*hour), lease("10.0.0.2", "bob", now-4*hour, 0))
	l.mustTell(t, 0, lease("10.0.0.3", "cid", now-4*hour, now+hour))
	l.mustTell(t, now, lease("10.0.0.3", "cid", now-4*hour, now-2*hour)) // ended earlier than was thought
	if err := l.close(); err != nil {
		t.Fatal(err)
	}

	f, err := os.OpenFile(factsPath(data), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"facts":[{"source":"dhcp","ki`); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	l, held = openedFacts(t, data)
	if got := strings.Join(held, ", "); got != "10.0.0.1 ann, 10.0.0.2 bob, 10.0.0.3 cid, 10.0.0.3 cid" {
		t.Fatalf("after a crash it holds %s", got)
	}
	l.mustTell(t, 0, lease("10.0.0.4", "dan", now, 0))

	if err := l.compact(now); err != nil {
		t.Fatal(err)
	}
	l.mustTell(t, 0, lease("10.0.0.5", "eve", now, 0))
	if err := l.compact(now); err != nil {
		t.Fatal(err)
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	l, held = openedFacts(t, data)
	if got := strings.Join(held, ", "); got != "10.0.0.2 bob, 10.0.0.4 dan, 10.0.0.5 eve" {
		t.Errorf("after it was looked through it holds %s", got)
	}
	text, err := os.ReadFile(factsPath(data))
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(text, []byte(`"beat"`)); n != 1 {
		t.Errorf("%d heartbeats, want the one that still says something:\n%s", n, text)
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
}

// TestFactLogFailedWrite: of a telling that could not be written nothing is left, whatever is
// told after it. In a process of its own, since the limit holds for all of one.
func TestFactLogFailedWrite(t *testing.T) {
	const child = "POSTERN_TEST_FAILED_WRITE"
	if os.Getenv(child) == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFactLogFailedWrite$", "-test.v")
		cmd.Env = append(os.Environ(), child+"=1")
		if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS: TestFactLogFailedWrite")) {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	data := t.TempDir()
	l, _ := openedFacts(t, data)
	defer func() { _ = l.close() }()
	l.mustTell(t, 0, lease("10.0.0.1", "ann", 1000, 0))
	before := l.size

	// The largest size a file of this process may have stops the write half way.
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	small := limit
	small.Cur = uint64(before) + 100
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &small); err != nil {
		t.Fatal(err)
	}
	err := l.tell(t.Context(), []flow.Fact{lease("10.0.0.2", strings.Repeat("b", 200), 1000, 0)}, flow.Heartbeat{})
	if rerr := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); rerr != nil {
		t.Fatal(rerr)
	}
	if !errors.Is(err, syscall.EFBIG) {
		t.Fatalf("the write gave %v", err)
	}
	if st, err := os.Stat(factsPath(data)); err != nil || st.Size() != before {
		t.Errorf("the file has %v bytes (%v), want %d", st.Size(), err, before)
	}
	l.mustTell(t, 0, lease("10.0.0.3", "cid", 1000, 0))
	again, held := openedFacts(t, data)
	if got := strings.Join(held, ", "); got != "10.0.0.1 ann, 10.0.0.3 cid" {
		t.Errorf("it holds %s", got)
	}
	if err := again.close(); err != nil {
		t.Fatal(err)
	}
}

// TestFactLogToldMeanwhile: sources tell while the log is looked through, again and again.
// Nothing that they told is missing at the end, nothing twice, and all of it is in order.
func TestFactLogToldMeanwhile(t *testing.T) {
	data := t.TempDir()
	now := wallClock()
	l, _ := openedFacts(t, data)
	const tellings = 400
	done := make(chan error)
	go func() {
		for i := range tellings {
			if err := l.tell(t.Context(), []flow.Fact{lease("10.0.0.1", fmt.Sprintf("u%d", i), now+flow.Time(i), 0),
				lease("10.0.0.2", "gone", 1000+flow.Time(i), 2000)}, flow.Heartbeat{}); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	rounds := 0
	for running := true; running; rounds++ {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			running = false
		default:
		}
		if err := l.compact(now); err != nil {
			t.Fatal(err)
		}
	}
	if rounds < 3 {
		t.Fatalf("it was looked through only %d times", rounds)
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	l, held := openedFacts(t, data)
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	var want []string
	for i := range tellings {
		want = append(want, fmt.Sprintf("10.0.0.1 u%d", i))
	}
	if d := cmp.Diff(want, held); d != "" {
		t.Errorf("after %d rounds:\n%s", rounds, d)
	}
}
