package siem

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/postern/postern/flow"
)

func testOutboxConfig() OutboxConfig {
	c := DefaultOutboxConfig()
	c.Reserve = 0
	return c
}

func openTestOutbox(t testing.TB, dir string, log *slog.Logger) *Outbox {
	t.Helper()
	o, err := OpenOutbox(dir, "soc", DeliveryConfig{MaxAttempts: 10}, testOutboxConfig(), log, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() })
	return o
}

func (o *Outbox) failuresSeen() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.failures
}

// waitForOutbox waits for work of other goroutines, real disks and sockets among them.
func waitForOutbox(t testing.TB, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("did not come about within ten seconds")
		}
	}
}

// revision makes revision r of finding k.
func revision(k string, r int) Event {
	return Event{ID: k + ":" + strconv.Itoa(r), Key: k, Body: fmt.Appendf(nil, `{"id":%q,"revision":%d}`, k, r), Time: flow.Time(1000 + r)}
}

// outboxTarget is a Sender that notes what it took.
type outboxTarget struct {
	mu     sync.Mutex
	answer func(e *Event, try int) error // nil: takes everything
	tries  map[string]int
	at     map[string][]time.Time
	got    []string
}

func (s *outboxTarget) Send(_ context.Context, e *Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tries == nil {
		s.tries, s.at = map[string]int{}, map[string][]time.Time{}
	}
	s.tries[e.ID]++
	s.at[e.ID] = append(s.at[e.ID], time.Now())
	if s.answer != nil {
		if err := s.answer(e, s.tries[e.ID]); err != nil {
			return err
		}
	}
	s.got = append(s.got, e.ID)
	return nil
}

func (s *outboxTarget) taken() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.got)
}

func (s *outboxTarget) tried(id string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tries[id]
}

var (
	errServer = &DeliveryError{Retry: true, Status: 500, Response: "oops", Err: errors.New("the receiver answered 500")}
	errGone   = &DeliveryError{Retry: true, Status: 410, Gone: true, Err: errors.New("the receiver answered 410")}
)

// runOutbox runs o until stop is called.
func runOutbox(o *Outbox, s Sender) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { o.Run(ctx, s); close(done) }()
	return func() { cancel(); <-done }
}

func putEvents(t testing.TB, o *Outbox, events ...Event) {
	t.Helper()
	if err := o.Put(events); err != nil {
		t.Fatal(err)
	}
}

func flushOutbox(t testing.TB, o *Outbox) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := o.Flush(ctx); err != nil {
		t.Fatal(err)
	}
}

func checkDepth(t testing.TB, o *Outbox, waiting, dead int) {
	t.Helper()
	if w, d := o.Depth(); w != waiting || d != dead {
		t.Errorf("%d waiting, %d dead; want %d, %d", w, d, waiting, dead)
	}
}

func sameEvents(t testing.TB, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// TestOutboxOnce: an event is sent once however often it is put: twice in one
// Put, while it waits, after it was delivered, and after a restart.
func TestOutboxOnce(t *testing.T) {
	dir := t.TempDir()
	o, s := openTestOutbox(t, dir, nil), &outboxTarget{}
	putEvents(t, o, revision("a", 1), revision("a", 1))
	putEvents(t, o, revision("a", 1), revision("a", 2))
	checkDepth(t, o, 2, 0)
	stop := runOutbox(o, s)
	flushOutbox(t, o)
	putEvents(t, o, revision("a", 1), revision("a", 2), revision("a", 3))
	flushOutbox(t, o)
	stop()
	o.Close()

	o = openTestOutbox(t, dir, nil)
	checkDepth(t, o, 0, 0)
	putEvents(t, o, revision("a", 1), revision("a", 2), revision("a", 3), revision("a", 4))
	checkDepth(t, o, 1, 0)
	stop = runOutbox(o, s)
	flushOutbox(t, o)
	stop()
	sameEvents(t, s.taken(), "a:1", "a:2", "a:3", "a:4")
	if files, _ := os.ReadDir(filepath.Join(dir, "soc", queueFolder)); len(files) != 0 {
		t.Errorf("%d files of delivered events are left", len(files))
	}
}

// TestOutboxOrder: within a key strictly in order, whatever fails and however
// many keys are on their way at once.
func TestOutboxOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		o, err := OpenOutbox(t.TempDir(), "soc", DeliveryConfig{MaxAttempts: 100}, testOutboxConfig(), nil, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer o.Close()
		s := &outboxTarget{answer: func(*Event, int) error {
			if rng.IntN(3) == 0 {
				return errServer
			}
			return nil
		}}
		stop := runOutbox(o, s)
		defer stop()
		const keys, revisions = 20, 10
		for r := 1; r <= revisions; r++ {
			var events []Event
			for k := range keys {
				events = append(events, revision(fmt.Sprint("k", k), r))
			}
			putEvents(t, o, events...)
		}
		for {
			if w, _ := o.Depth(); w == 0 {
				break
			}
			time.Sleep(time.Minute)
		}
		next := map[string]int{}
		for _, id := range s.taken() {
			k, rev, _ := strings.Cut(id, ":")
			if next[k]++; rev != strconv.Itoa(next[k]) {
				t.Fatalf("%s came as number %d of its key", id, next[k])
			}
		}
		if len(s.taken()) != keys*revisions {
			t.Errorf("%d of %d", len(s.taken()), keys*revisions)
		}
	})
}

// TestOutboxSchedule: ten attempts over about 75 hours, then a dead letter that
// says everything, and the next revision goes on.
func TestOutboxSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		o := openTestOutbox(t, dir, nil)
		s := &outboxTarget{answer: func(e *Event, _ int) error {
			if e.ID == "a:1" {
				return errServer
			}
			return nil
		}}
		stop := runOutbox(o, s)
		defer stop()
		begin := time.Now()
		putEvents(t, o, revision("a", 1), revision("a", 2))
		time.Sleep(100 * time.Hour)
		at := s.at["a:1"]
		if len(at) != 10 {
			t.Fatalf("%d attempts", len(at))
		}
		for i, want := range retryDelays {
			if got := at[i+1].Sub(at[i]); got < want || got > want*12/10+2*time.Second {
				t.Errorf("wait %d was %s, want %s and up to a fifth more", i+1, got, want)
			}
		}
		if span := at[9].Sub(begin); span < 75*time.Hour || span > 91*time.Hour {
			t.Errorf("the last attempt came after %s", span)
		}
		sameEvents(t, s.taken(), "a:2")
		checkDepth(t, o, 0, 1)
		letters, err := ListDeadLetters(dir, "soc")
		if err != nil || len(letters) != 1 {
			t.Fatal(letters, err)
		}
		l := letters[0]
		if l.ID != "a:1" || l.Key != "a" || l.Target != "soc" || l.Attempts != 10 || l.Status != 500 || l.Response != "oops" ||
			l.Reason != errServer.Error() || l.Time != 1001 || l.FirstAttempt != flow.TimeOf(begin) || string(l.Body) != `{"id":"a","revision":1}` {
			t.Errorf("%+v", l)
		}
	})
}

// TestOutboxThreeDaysAway is scenario 38: a receiver that is away for three days
// loses nothing, gets every key in order with the original times, and need not
// wait for the schedule's next day once it is back.
func TestOutboxThreeDaysAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := openTestOutbox(t, t.TempDir(), nil)
		back := time.Now().Add(72 * time.Hour)
		s := &outboxTarget{answer: func(e *Event, _ int) error {
			if e.Time != flow.Time(1000+int(e.ID[len(e.ID)-1]-'0')) {
				t.Errorf("%s has time %d", e.ID, e.Time)
			}
			if time.Now().Before(back) {
				return errServer
			}
			return nil
		}}
		stop := runOutbox(o, s)
		defer stop()
		for r := 1; r <= 3; r++ {
			for k := range 50 {
				putEvents(t, o, revision(fmt.Sprint("k", k), r))
			}
			time.Sleep(20 * time.Hour)
		}
		time.Sleep(time.Until(back) - time.Minute)
		checkDepth(t, o, 150, 0)
		time.Sleep(time.Minute)
		putEvents(t, o, revision("new", 1)) // the world goes on, and it shows that the receiver is back
		time.Sleep(3 * time.Minute)
		checkDepth(t, o, 0, 0)
		next := map[string]int{}
		for _, id := range s.taken() {
			k, rev, _ := strings.Cut(id, ":")
			if next[k]++; rev != strconv.Itoa(next[k]) {
				t.Errorf("%s came as number %d of its key", id, next[k])
			}
		}
	})
}

// TestOutboxShortOutage: where one event after another failed it was the target, so
// its first success has all of them tried at once instead of minutes later; an
// event that fails alone keeps to its schedule.
func TestOutboxShortOutage(t *testing.T) {
	for name, c := range map[string]struct {
		events int
		left   int // ten seconds after the receiver is back
	}{"all fail": {3, 0}, "one fails": {1, 1}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := openTestOutbox(t, t.TempDir(), nil)
				away := true
				s := &outboxTarget{answer: func(*Event, int) error {
					if away {
						return errServer
					}
					return nil
				}}
				stop := runOutbox(o, s)
				defer stop()
				for k := range c.events {
					putEvents(t, o, revision(fmt.Sprint("k", k), 1))
				}
				time.Sleep(30 * time.Second) // two attempts each: the next is minutes away
				away = false
				putEvents(t, o, revision("new", 1))
				time.Sleep(10 * time.Second)
				checkDepth(t, o, c.left, 0)
			})
		})
	}
}

// TestOutboxThrottle: a failing receiver gets one attempt at a time with growing
// pauses, however many events wait, and a Retry-After holds all of them.
func TestOutboxThrottle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := openTestOutbox(t, t.TempDir(), nil)
		s := &outboxTarget{answer: func(*Event, int) error { return errServer }}
		stop := runOutbox(o, s)
		for k := range 1000 {
			putEvents(t, o, revision(fmt.Sprint("k", k), 1))
		}
		time.Sleep(time.Hour)
		stop()
		total := 0
		for _, n := range s.tries {
			total += n
		}
		// The pauses are a minute in the end, lengthened by up to a fifth: 3,600 s / 72 s are 50.
		if total < 50 || total > 100 {
			t.Errorf("%d attempts in an hour, want about one a minute", total)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		o := openTestOutbox(t, t.TempDir(), nil)
		asked := false
		s := &outboxTarget{answer: func(*Event, int) error {
			if asked {
				return nil
			}
			asked = true
			return &DeliveryError{Retry: true, Status: 429, After: 10 * time.Minute, Err: errors.New("429")}
		}}
		putEvents(t, o, revision("a", 1), revision("b", 1), revision("c", 1))
		o.cfg.Concurrency = 1
		stop := runOutbox(o, s)
		defer stop()
		time.Sleep(10*time.Minute - time.Second)
		sameEvents(t, s.taken())
		time.Sleep(10 * time.Second)
		checkDepth(t, o, 0, 0)
	})
}

// TestOutboxGone: 410 stops all sending until the service is started again; the
// events are kept, in order, and no attempt is counted.
func TestOutboxGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		o := openTestOutbox(t, dir, nil)
		s := &outboxTarget{answer: func(*Event, int) error { return errGone }}
		stop := runOutbox(o, s)
		putEvents(t, o, revision("a", 1))
		flushOutbox(t, o)
		putEvents(t, o, revision("a", 2), revision("b", 1))
		time.Sleep(200 * time.Hour)
		checkDepth(t, o, 3, 0)
		if s.tried("a:1") != 1 || s.tried("b:1") != 0 {
			t.Errorf("a disabled target was spoken to: %v", s.tries)
		}
		stop()
		o.Close()
		o = openTestOutbox(t, dir, nil)
		s.answer = nil
		stop = runOutbox(o, s)
		defer stop()
		flushOutbox(t, o)
		checkDepth(t, o, 0, 0)
		if got := s.taken(); slices.Index(got, "a:1") > slices.Index(got, "a:2") || len(got) != 3 {
			t.Errorf("%v", got)
		}
	})
}

// TestOutboxRestart: attempts made before a restart still count, and those that
// the restart itself brings about do not.
func TestOutboxRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := &outboxTarget{answer: func(*Event, int) error { return errServer }}
		o := openTestOutbox(t, dir, nil)
		putEvents(t, o, revision("a", 1))
		stop := runOutbox(o, s)
		time.Sleep(time.Hour) // attempts at 0, 5 s, 5 min, 35 min
		stop()
		o.Close()
		before := s.tried("a:1")
		for range 5 {
			o = openTestOutbox(t, dir, nil)
			stop = runOutbox(o, s)
			time.Sleep(time.Second)
			stop()
			o.Close()
		}
		q, err := QueuedEvents(dir, "soc")
		if err != nil || len(q) != 1 || q[0].Attempts != before || before != 4 || q[0].Status != 500 || q[0].Next == 0 {
			t.Errorf("%+v, %v; %d attempts before", q, err, before)
		}
		if s.tried("a:1") != before+5 {
			t.Errorf("%d attempts, want one more for each start", s.tried("a:1"))
		}
	})
}

// TestOutboxFull: nothing is dropped; what fits is taken, the rest refused until
// there is room, and putting the same again is how the caller goes on.
func TestOutboxFull(t *testing.T) {
	cfg := testOutboxConfig()
	cfg.MaxEvents = 10
	reg := prometheus.NewPedanticRegistry()
	o, err := OpenOutbox(t.TempDir(), "soc", DeliveryConfig{MaxAttempts: 10}, cfg, nil, reg, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	var events []Event
	for k := range 25 {
		events = append(events, revision("a", k))
	}
	if err := o.Put(events); !errors.Is(err, ErrOutboxFull) {
		t.Fatalf("got %v", err)
	}
	checkDepth(t, o, 10, 0)
	if n, err := testutil.GatherAndCount(reg); err != nil || n != 16 {
		t.Errorf("%d series, %v", n, err)
	}
	if err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP postern_outbox_full 1 while the last Put was refused for want of room.
# TYPE postern_outbox_full gauge
postern_outbox_full{target="soc"} 1
`), "postern_outbox_full"); err != nil {
		t.Error(err)
	}
	s := &outboxTarget{}
	stop := runOutbox(o, s)
	defer stop()
	for o.Put(events) != nil {
		flushOutbox(t, o)
	}
	flushOutbox(t, o)
	want := make([]string, len(events))
	for i := range events {
		want[i] = events[i].ID
	}
	sameEvents(t, s.taken(), want...)

	cfg.MaxEvents, cfg.MaxBytes = 10_000, flow.MiB
	small, err := OpenOutbox(t.TempDir(), "soc", DeliveryConfig{MaxAttempts: 10}, cfg, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer small.Close()
	large := []byte(`"` + strings.Repeat("x", 19_000) + `"`)
	for i := 0; ; i++ {
		err := small.Put([]Event{{ID: fmt.Sprint(i), Key: "k", Body: large}})
		if errors.Is(err, ErrOutboxFull) {
			break
		}
		if err != nil || i > 60 {
			t.Fatalf("event %d of 19 kB in 1 MiB: %v", i, err)
		}
	}
	var disk int64
	filepath.Walk(small.dir, func(_ string, info os.FileInfo, _ error) error { disk += info.Size(); return nil })
	if disk > int64(flow.MiB)+64<<10 {
		t.Errorf("%d bytes on disk", disk)
	}
}

// urgent makes revision r of finding k, which is critical.
func urgent(k string, r int) Event {
	e := revision(k, r)
	e.Urgent = true
	return e
}

// TestOutboxUrgent: urgent events overtake whatever waits, also while every place is taken by
// others and after a restart, and never the event of their key before them.
func TestOutboxUrgent(t *testing.T) {
	cfg := testOutboxConfig()
	cfg.Concurrency = 2
	dir := t.TempDir()
	open := func() *Outbox {
		o, err := OpenOutbox(dir, "soc", DeliveryConfig{MaxAttempts: 10}, cfg, nil, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	o, held := open(), make(chan struct{})
	var mu sync.Mutex
	var begun, got []string
	s := senderFunc(func(ctx context.Context, e *Event) error {
		mu.Lock()
		begun = append(begun, e.ID)
		mu.Unlock()
		if strings.HasPrefix(e.ID, "low") {
			select {
			case <-held:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		mu.Lock()
		got = append(got, e.ID)
		mu.Unlock()
		return nil
	})
	var flood []Event
	for i := range 100 {
		flood = append(flood, revision(fmt.Sprintf("low%d", i), 1))
	}
	putEvents(t, o, flood...)
	stop := runOutbox(o, s)
	waitForOutbox(t, func() bool { mu.Lock(); defer mu.Unlock(); return len(begun) == 2 })
	putEvents(t, o, revision("c", 1), revision("c", 2))
	putEvents(t, o, urgent("c", 3), revision("c", 4), urgent("d", 1))
	waitForOutbox(t, func() bool { mu.Lock(); defer mu.Unlock(); return len(got) >= 4 })
	mu.Lock()
	inOrder := slices.DeleteFunc(slices.Clone(got), func(id string) bool { return id == "d:1" })
	if !slices.Equal(inOrder, []string{"c:1", "c:2", "c:3"}) || len(begun) != 6 {
		t.Errorf("delivered while others held every place: %v; begun: %v", got, begun)
	}
	mu.Unlock()
	stop() // the two on their way come back
	putEvents(t, o, urgent("e", 1))
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}

	cfg.Concurrency = 1
	o = open()
	defer o.Close()
	begun, got = nil, nil
	close(held)
	defer runOutbox(o, s)()
	flushOutbox(t, o)
	checkDepth(t, o, 0, 0)
	if len(got) != 102 || begun[0] != "e:1" {
		t.Errorf("after a restart %d were delivered, %v began first", len(got), begun[:3])
	}
}

// TestOutboxUrgentRoom: where others filled the outbox an urgent event still fits, with what comes
// before it of its key; and everything is delivered in the end, once and in order.
func TestOutboxUrgentRoom(t *testing.T) {
	cfg := testOutboxConfig()
	cfg.MaxEvents = 48
	o, err := OpenOutbox(t.TempDir(), "soc", DeliveryConfig{MaxAttempts: 10}, cfg, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	var first []Event
	for i := range 60 {
		first = append(first, revision(fmt.Sprintf("low%d", i), 1))
	}
	second := []Event{revision("low0", 2), revision("c", 1), urgent("c", 2), revision("low1", 2), revision("c", 3), urgent("d", 1), revision("d", 2)}
	if err := o.Put(first); !errors.Is(err, ErrOutboxFull) {
		t.Fatalf("got %v", err)
	}
	checkDepth(t, o, 45, 0)
	if err := o.Put(second); !errors.Is(err, ErrOutboxFull) {
		t.Fatalf("got %v", err)
	}
	checkDepth(t, o, 48, 0)
	o.mu.Lock()
	for id, want := range map[string]bool{"c:1": true, "c:2": true, "c:3": true, "d:1": false, "d:2": false, "low0:2": false} {
		if _, waits := o.pending[id]; waits != want {
			t.Errorf("%s waits: %v, want %v", id, waits, want)
		}
	}
	o.mu.Unlock()
	s := &outboxTarget{}
	defer runOutbox(o, s)()
	for _, events := range [][]Event{first, second} {
		for o.Put(events) != nil {
			flushOutbox(t, o)
		}
	}
	flushOutbox(t, o)
	got, last := s.taken(), map[string]int{}
	for _, id := range got {
		key, n, _ := strings.Cut(id, ":")
		r, _ := strconv.Atoi(n)
		if r != last[key]+1 {
			t.Errorf("%s came after revision %d", id, last[key])
		}
		last[key] = r
	}
	if len(got) != len(first)+len(second) {
		t.Errorf("%d events were delivered, want %d", len(got), len(first)+len(second))
	}
}

// TestOutboxDiskFull: when the disk is full the reserve is given up, so findings
// can still be written; beyond it Put fails and nothing is taken by halves.
func TestOutboxDiskFull(t *testing.T) {
	dir := t.TempDir()
	cfg := testOutboxConfig()
	cfg.Reserve = flow.MiB
	o, err := OpenOutbox(dir, "soc", DeliveryConfig{MaxAttempts: 10}, cfg, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	reserve := filepath.Join(dir, "soc", reserveFile)
	if info, err := os.Stat(reserve); err != nil || info.Size() != int64(flow.MiB) {
		t.Fatal("no reserve", err)
	}
	o.write = func(name string, b []byte) error {
		if _, err := os.Stat(reserve); err == nil {
			return fmt.Errorf("writing: %w", syscall.ENOSPC)
		}
		return writeDurably(name, b)
	}
	putEvents(t, o, revision("a", 1))
	if _, err := os.Stat(reserve); err == nil {
		t.Error("the reserve is still there")
	}
	o.write = func(string, []byte) error { return syscall.ENOSPC }
	if err := o.Put([]Event{revision("a", 2)}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v", err)
	}
	checkDepth(t, o, 1, 0)
	o.write = writeDurably
	putEvents(t, o, revision("a", 1), revision("a", 2))
	checkDepth(t, o, 2, 0)
	o.Close()
	o, err = OpenOutbox(dir, "soc", DeliveryConfig{MaxAttempts: 10}, cfg, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	checkDepth(t, o, 2, 0)
	if _, err := os.Stat(reserve); err != nil {
		t.Error("the reserve did not come back", err)
	}
}

func TestOutboxRefuses(t *testing.T) {
	dir := t.TempDir()
	o := openTestOutbox(t, dir, nil)
	for _, e := range []Event{{Key: "k", Body: []byte("{}")}, {ID: "a.1"}, {ID: "a b"}, {ID: "a\r\nX: y"}, {ID: "ü"}, {ID: strings.Repeat("a", 201)},
		{ID: "a", Key: strings.Repeat("k", 201)}, {ID: "a", Body: make([]byte, MaxMessage)}} {
		if err := o.Put([]Event{revision("good", 1), e}); err == nil || errors.Is(err, ErrOutboxFull) {
			t.Errorf("%.20q: %v", e.ID, err)
		}
	}
	checkDepth(t, o, 0, 0)
	if _, err := OpenOutbox(dir, "soc", DeliveryConfig{MaxAttempts: 10}, testOutboxConfig(), nil, nil, nil); !errors.Is(err, syscall.EWOULDBLOCK) {
		t.Errorf("a second process has it open too: %v", err)
	}
	for _, name := range []string{"", "..", "a/b", "A"} {
		if _, err := OpenOutbox(dir, name, DeliveryConfig{MaxAttempts: 10}, testOutboxConfig(), nil, nil, nil); err == nil {
			t.Errorf("target %q", name)
		}
	}
	o.Close()
	if err := o.Put([]Event{revision("a", 1)}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed, and Put gives %v", err)
	}
	for want, change := range map[string]func(*OutboxConfig){
		"maxEvents":   func(c *OutboxConfig) { c.MaxEvents = 0 },
		"maxBytes":    func(c *OutboxConfig) { c.MaxBytes = 1 },
		"reserve":     func(c *OutboxConfig) { c.Reserve = -1 },
		"remember":    func(c *OutboxConfig) { c.Remember = 1 },
		"concurrency": func(c *OutboxConfig) { c.Concurrency = 0 },
	} {
		c := DefaultOutboxConfig()
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// TestOutboxDeadLetters: list, replay and drop, beside a running service and
// offline; an earlier revision that is replayed goes before a later one that waits.
func TestOutboxDeadLetters(t *testing.T) {
	dir := t.TempDir()
	refuse := &DeliveryError{Status: 400, Err: errors.New("never")}
	mended := false
	var mu sync.Mutex
	s := &outboxTarget{answer: func(e *Event, _ int) error {
		mu.Lock()
		defer mu.Unlock()
		if !mended {
			return refuse
		}
		return nil
	}}
	o := openTestOutbox(t, dir, nil)
	o.throttle, o.scan = time.Millisecond, 10*time.Millisecond
	stop := runOutbox(o, s)
	putEvents(t, o, revision("a", 1), revision("b", 1), revision("c", 1), revision("d", 1))
	flushOutbox(t, o)
	checkDepth(t, o, 0, 4)
	if targets, err := OutboxTargets(dir); err != nil || !slices.Equal(targets, []string{"soc"}) {
		t.Errorf("%v, %v", targets, err)
	}

	// What was dead is not taken in again.
	putEvents(t, o, revision("a", 1))
	checkDepth(t, o, 0, 4)

	// Beside the running service; it dies again, and again nothing is lost.
	if n, err := ReplayDeadLetters(dir, "soc", "a:1"); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	waitForOutbox(t, func() bool { return s.tried("a:1") == 2 })
	flushOutbox(t, o)
	waitForOutbox(t, func() bool { _, dead := o.Depth(); return dead == 4 })
	mu.Lock()
	mended = true
	mu.Unlock()
	if n, err := ReplayDeadLetters(dir, "soc", "a:1", "x:9"); n != 1 || err != nil {
		t.Error(n, err)
	}
	waitForOutbox(t, func() bool { return slices.Contains(s.taken(), "a:1") })
	flushOutbox(t, o)

	if n, err := DropDeadLetters(dir, "soc", "d:1"); n != 1 || err != nil {
		t.Error(n, err)
	}
	if n, err := DropDeadLetters(dir, "soc", "x:9"); n != 0 || err != nil {
		t.Error("dropped what is not there", n, err)
	}
	waitForOutbox(t, func() bool { w, dead := o.Depth(); return w == 0 && dead == 2 })
	stop()

	// Offline.
	putEvents(t, o, revision("b", 2))
	o.Close()
	letters, err := ListDeadLetters(dir, "soc")
	if err != nil || len(letters) != 2 || letters[0].ID != "b:1" || letters[1].ID != "c:1" {
		t.Fatalf("%+v, %v", letters, err)
	}
	if n, err := ReplayDeadLetters(dir, "soc"); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	o = openTestOutbox(t, dir, nil)
	checkDepth(t, o, 3, 0)
	stop = runOutbox(o, s)
	flushOutbox(t, o)
	stop()
	got := s.taken()
	if len(got) != 4 || slices.Index(got, "b:1") > slices.Index(got, "b:2") || slices.Contains(got, "d:1") {
		t.Errorf("%v", got)
	}
	o.Close()
	o = openTestOutbox(t, dir, nil)
	checkDepth(t, o, 0, 0)
	for _, folder := range []string{queueFolder, deadFolder, replayFolder} {
		if files, _ := os.ReadDir(filepath.Join(dir, "soc", folder)); len(files) != 0 {
			t.Errorf("%s still holds %v", folder, files)
		}
	}
}

// TestOutboxCountsDeadOnce: a dead letter that lies in its folder while all of them
// are counted, but was not yet counted as a new one, is one letter.
func TestOutboxCountsDeadOnce(t *testing.T) {
	o := openTestOutbox(t, t.TempDir(), nil)
	var scans sync.WaitGroup
	o.write = func(name string, b []byte) error {
		err := writeDurably(name, b)
		if filepath.Base(filepath.Dir(name)) == deadFolder {
			counted := make(chan struct{})
			scans.Go(func() { o.scanDead(); close(counted) })
			select {
			case <-counted: // it need not wait for the letter to be counted
			case <-time.After(100 * time.Millisecond):
			}
		}
		return err
	}
	s := &outboxTarget{answer: func(*Event, int) error { return &DeliveryError{Status: 400, Err: errors.New("never")} }}
	stop := runOutbox(o, s)
	putEvents(t, o, revision("a", 1))
	flushOutbox(t, o)
	stop()
	scans.Wait()
	checkDepth(t, o, 0, 1)
	if err := o.Close(); err != nil {
		t.Error(err)
	}
}

// TestOutboxDamage: damaged files cost what is damaged and nothing else.
func TestOutboxDamage(t *testing.T) {
	dir := t.TempDir()
	o := openTestOutbox(t, dir, nil)
	putEvents(t, o, revision("a", 1), revision("a", 2), revision("a", 3))
	putEvents(t, o, revision("b", 1))
	o.Close()
	files, _ := filepath.Glob(filepath.Join(dir, "soc", queueFolder, "*.events"))
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	b[bytes.Index(b, []byte(`"revision":2`))] ^= 1
	folder := func(parts ...string) string { return filepath.Join(append([]string{dir, "soc"}, parts...)...) }
	for name, content := range map[string][]byte{files[0]: b, folder(queueFolder, "x.events.tmp"): b[:10], folder(journalFile): []byte("garbage\n{\"done\":\"b:"),
		folder(replayFolder, "x.json"): []byte("{"), folder(deadFolder, "y.json"): []byte("[]")} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var logged bytes.Buffer
	o = openTestOutbox(t, dir, slog.New(slog.NewTextHandler(&logged, nil)))
	checkDepth(t, o, 2, 1)
	if !strings.Contains(logged.String(), "checksum") {
		t.Errorf("not logged:\n%s", logged.String())
	}
	s := &outboxTarget{}
	stop := runOutbox(o, s)
	flushOutbox(t, o)
	stop()
	got := s.taken()
	slices.Sort(got)
	sameEvents(t, got, "a:1", "b:1")
	if _, err := ListDeadLetters(dir, "soc"); err == nil {
		t.Error("a dead letter that cannot be read is passed over in silence")
	}
	o.Close()
	o = openTestOutbox(t, dir, nil) // the torn line must not swallow those that came after it
	checkDepth(t, o, 0, 1)
}

// TestOutboxForgets: memory and journal stay bounded.
func TestOutboxForgets(t *testing.T) {
	dir := t.TempDir()
	cfg := testOutboxConfig()
	cfg.Remember = 1000
	o, err := OpenOutbox(dir, "soc", DeliveryConfig{MaxAttempts: 10}, cfg, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &outboxTarget{}
	stop := runOutbox(o, s)
	const n = 15_000
	for i := range n / 500 {
		var events []Event
		for j := range 500 {
			events = append(events, revision(fmt.Sprint("k", i*500+j), 1))
		}
		putEvents(t, o, events...)
		flushOutbox(t, o)
	}
	o.sweep()
	stop()
	if len(o.known.ids) != 1000 || o.journal.lines > 12_000 || len(s.taken()) != n {
		t.Errorf("%d ids remembered, %d journal lines, %d delivered", len(o.known.ids), o.journal.lines, len(s.taken()))
	}
	o.Close()
	if o, err = OpenOutbox(dir, "soc", DeliveryConfig{MaxAttempts: 10}, cfg, nil, nil, nil); err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	putEvents(t, o, revision(fmt.Sprint("k", n-1), 1), revision(fmt.Sprint("k", n-1000), 1))
	checkDepth(t, o, 0, 0)
}

// TestOutboxShutdown: an attempt under way when the service stops may end; one
// that hangs is cut off and does not count against the event.
func TestOutboxShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		o := openTestOutbox(t, dir, nil)
		putEvents(t, o, revision("quick", 1), revision("hangs", 1))
		stop := runOutbox(o, senderFunc(func(ctx context.Context, e *Event) error {
			if e.Key == "quick" {
				time.Sleep(2 * time.Second)
				return ctx.Err()
			}
			<-ctx.Done()
			return ctx.Err()
		}))
		synctest.Wait()
		begin := time.Now()
		stop()
		if took := time.Since(begin); took != shutdownGrace {
			t.Errorf("stopping took %s", took)
		}
		q, err := QueuedEvents(dir, "soc")
		if err != nil || len(q) != 1 || q[0].ID != "hangs:1" || q[0].Attempts != 0 {
			t.Errorf("%+v, %v", q, err)
		}
	})
}

type senderFunc func(context.Context, *Event) error

func (f senderFunc) Send(ctx context.Context, e *Event) error { return f(ctx, e) }

// TestOutboxWebhook: outbox and webhook together against a receiver that fails
// now and then, over real sockets.
func TestOutboxWebhook(t *testing.T) {
	r := newWebhookReceiver(t)
	o := openTestOutbox(t, t.TempDir(), nil)
	o.throttle, o.delays = time.Millisecond, []time.Duration{time.Millisecond}
	stop := runOutbox(o, newTestTarget(t, testWebhookConfig(r.URL), nil, nil))
	defer stop()
	for i := range 200 {
		putEvents(t, o, revision(fmt.Sprint("k", i%7), i/7))
	}
	waitForOutbox(t, func() bool { w, _ := o.Depth(); return w == 0 })
	r.check(t, 200)
}

// webhookReceiver takes verified events and fails one request in five. It notes the
// order in which events were first accepted.
type webhookReceiver struct {
	*httptest.Server
	mu    sync.Mutex
	n     int
	first map[string][]int // revisions by key
	seen  map[string]int
	bad   []string
}

func newWebhookReceiver(t testing.TB) *webhookReceiver {
	r := &webhookReceiver{first: map[string][]int{}, seen: map[string]int{}}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func (r *webhookReceiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return // the sender was killed
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.n++; r.n%5 == 0 {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	if err := Verify([]string{vectorSecret}, req.Header, body, WebhookTolerance, time.Now()); err != nil {
		r.bad = append(r.bad, err.Error())
	}
	var m struct {
		ID       string `json:"id"`
		Revision int    `json:"revision"`
	}
	if err := json.Unmarshal(body, &m); err != nil {
		r.bad = append(r.bad, err.Error())
	}
	id := req.Header.Get(HeaderWebhookID)
	if id != fmt.Sprint(m.ID, ":", m.Revision) {
		r.bad = append(r.bad, fmt.Sprintf("%s carries %s", id, body))
	}
	if r.seen[id]++; r.seen[id] == 1 {
		r.first[m.ID] = append(r.first[m.ID], m.Revision)
	}
}

// check asserts that n events came, every revision of every key, in order.
func (r *webhookReceiver) check(t testing.TB, n int) (repeats int) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, bad := range r.bad {
		t.Error(bad)
	}
	if len(r.seen) != n {
		t.Errorf("%d events of %d came", len(r.seen), n)
	}
	for k, revisions := range r.first {
		for i, rev := range revisions {
			if rev != i {
				t.Fatalf("key %s: revisions came as %v", k, revisions)
			}
		}
	}
	for _, times := range r.seen {
		repeats += times - 1
	}
	return repeats
}

const (
	childEnv      = "POSTERN_TEST_OUTBOX_CHILD"
	childTotal    = 12_000
	childPerPut   = 20
	childKeys     = 7
	childProgress = "progress"
)

// outboxChild is what the killed process does: like the pipeline it puts events,
// then writes down how far it has come, and begins there again after a crash.
func outboxChild(dir, url string) error {
	cfg := testWebhookConfig(url)
	w, err := NewTarget(cfg, TargetOptions{Secret: asIs})
	if err != nil {
		return err
	}
	o, err := OpenOutbox(dir, "soc", DeliveryConfig{MaxAttempts: 1000}, testOutboxConfig(), nil, nil, nil)
	if err != nil {
		return err
	}
	o.throttle, o.delays = time.Millisecond, []time.Duration{time.Millisecond}
	stop := runOutbox(o, w)
	progress := filepath.Join(dir, childProgress)
	from := 0
	if b, err := os.ReadFile(progress); err == nil {
		if from, err = strconv.Atoi(string(b)); err != nil {
			return err
		}
	}
	for ; from < childTotal; from += childPerPut {
		var events []Event
		for i := from; i < from+childPerPut; i++ {
			events = append(events, revision(fmt.Sprint("k", i%childKeys), i/childKeys))
		}
		if err := o.Put(events); err != nil {
			return err
		}
		if err := writeDurably(progress, []byte(strconv.Itoa(from+childPerPut))); err != nil {
			return err
		}
	}
	for {
		if err := o.Flush(context.Background()); err != nil {
			return err
		}
		if waiting, _ := o.Depth(); waiting == 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	stop()
	return o.Close()
}

// TestOutboxKill kills the process that has the outbox, at random moments, over
// and over: every event arrives, in order by key, and hardly any twice.
func TestOutboxKill(t *testing.T) {
	if dir, url, child := strings.Cut(os.Getenv(childEnv), "|"); child {
		if err := outboxChild(dir, url); err != nil {
			t.Fatal(err)
		}
		return
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	r, dir := newWebhookReceiver(t), t.TempDir()
	const rounds = 25
	killed := 0
	for round := 0; ; round++ {
		cmd := exec.Command(os.Args[0], "-test.run=^TestOutboxKill$")
		cmd.Env = append(os.Environ(), childEnv+"="+dir+"|"+r.URL)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if round < rounds {
			timer := time.AfterFunc(time.Duration(10+rng.IntN(120))*time.Millisecond, func() { cmd.Process.Kill() })
			err := cmd.Wait()
			timer.Stop()
			if err == nil {
				break
			}
			if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() {
				t.Fatalf("round %d: %v\n%s", round, err, out.String())
			}
			killed++
			continue
		}
		if err := cmd.Wait(); err != nil {
			t.Fatalf("the last round: %v\n%s", err, out.String())
		}
		break
	}
	if killed < 5 {
		t.Errorf("only %d rounds were killed; the child is done too soon for the test to say anything", killed)
	}
	repeats := r.check(t, childTotal)
	if repeats > killed*DefaultOutboxConfig().Concurrency {
		t.Errorf("%d events came twice in %d kills; at most those on their way may", repeats, killed)
	}
	t.Logf("%d kills, %d repeats", killed, repeats)
}

func FuzzQueueFile(f *testing.F) {
	b, _ := encodeQueueFile(7, []Event{revision("a", 1), revision("b", 2)})
	f.Add(b)
	f.Add(b[:len(b)-3])
	f.Add([]byte("{\"id\":\"a\",\"size\":-1}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := decodeQueueFile(b)
		for _, e := range entries {
			if e.offset < 0 || e.offset+int64(e.size) > int64(len(b)) {
				t.Fatalf("entry %q lies outside the file", e.id)
			}
		}
		if err == nil {
			events := make([]Event, len(entries))
			for i, e := range entries {
				events[i] = Event{ID: e.id, Key: e.key, Time: e.time, Body: b[e.offset : e.offset+int64(e.size)]}
			}
			if again, _ := encodeQueueFile(0, events); len(entries) > 0 {
				if back, err := decodeQueueFile(again); err != nil || len(back) != len(entries) {
					t.Fatalf("what was read cannot be written and read again: %v", err)
				}
			}
		}
	})
}

func FuzzDeadLetter(f *testing.F) {
	b, err := encodeLetter(&DeadLetter{ID: "a:1", Key: "a", Body: json.RawMessage(`{"x":1}`)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"id":"a.b"}`))
	name := filepath.Join(f.TempDir(), "letter.json")
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := readLetter(name)
		if err != nil {
			return
		}
		event := Event{ID: l.ID, Key: l.Key, Body: l.Body}
		if err := event.Validate(); err != nil {
			t.Fatalf("taken up against the rules: %v", err)
		}
	})
}

func BenchmarkOutboxPut(b *testing.B) {
	o := openTestOutbox(b, b.TempDir(), nil)
	o.cfg.MaxEvents, o.cfg.MaxBytes = 1<<30, 1<<40
	body := []byte(`"` + strings.Repeat("x", 3000) + `"`)
	n := 0
	for b.Loop() {
		events := make([]Event, 100)
		for i := range events {
			n++
			events[i] = Event{ID: "f:" + strconv.Itoa(n), Key: "f", Body: body}
		}
		if err := o.Put(events); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N*100)/b.Elapsed().Seconds(), "events/s")
}
