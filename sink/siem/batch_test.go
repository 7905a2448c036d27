package siem

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// batchTarget takes several events at a time and notes which came together, and when.
type batchTarget struct {
	outboxTarget
	batch   Batch
	answers func(events []*Event) []error // nil: takes everything
	batches [][]string
	when    []time.Time
	mu      sync.Mutex
}

func (s *batchTarget) Batch() Batch { return s.batch }

func (s *batchTarget) Send(ctx context.Context, e *Event) error {
	return s.SendBatch(ctx, []*Event{e})[0]
}

func (s *batchTarget) SendBatch(_ context.Context, events []*Event) []error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []string
	for _, e := range events {
		ids = append(ids, e.ID)
	}
	s.batches, s.when = append(s.batches, ids), append(s.when, time.Now())
	errs := make([]error, len(events))
	if s.answers != nil {
		errs = s.answers(events)
	}
	for i, e := range events {
		if errs[min(i, len(errs)-1)] == nil {
			s.got = append(s.got, e.ID)
		}
	}
	return errs
}

// TestOutboxBatches: what is due goes together, as much as a target takes and no two events of one
// finding; each finding's stay in order, also where a part of a batch is not taken.
func TestOutboxBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := openTestOutbox(t, t.TempDir(), nil)
		n := 0
		s := &batchTarget{batch: Batch{Events: 7}, answers: func(events []*Event) []error {
			errs := make([]error, len(events))
			for i := range errs {
				if n++; n%5 == 0 {
					errs[i] = errServer
				}
			}
			return errs
		}}
		var events []Event
		for r := 1; r <= 4; r++ {
			for k := range 20 {
				events = append(events, revision(fmt.Sprint("k", k), r))
			}
		}
		putEvents(t, o, events...)
		defer runOutbox(o, s)()
		time.Sleep(20 * time.Hour)
		checkDepth(t, o, 0, 0)
		for _, b := range s.batches {
			keys := map[string]bool{}
			for _, id := range b {
				k, _, _ := strings.Cut(id, ":")
				keys[k] = true
			}
			if len(b) > 7 || len(keys) != len(b) {
				t.Errorf("batch %v", b)
			}
		}
		if n := len(s.batches); n > 60 { // 80 events, a fifth of which went twice
			t.Errorf("%d batches", n)
		}
		next := map[string]int{}
		for _, id := range s.taken() {
			k, r, _ := strings.Cut(id, ":")
			if next[k]++; r != fmt.Sprint(next[k]) {
				t.Errorf("%s came in place %d", id, next[k])
			}
		}
		if len(s.taken()) != 80 {
			t.Errorf("%d events arrived", len(s.taken()))
		}
	})
}

// TestOutboxDenied: a target that does not accept our credentials costs no event an attempt, is asked
// seldom, and gets everything once they are mended. An event that alone is answered so, while others are taken, has its
// content refused, and becomes a dead letter.
func TestOutboxDenied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewPedanticRegistry()
		o, err := OpenOutbox(t.TempDir(), "soc", DeliveryConfig{MaxAttempts: 3}, testOutboxConfig(), nil, reg, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer o.Close()
		o.scan = time.Hour
		denied, asked := true, 0
		s := &outboxTarget{answer: func(e *Event, _ int) error {
			if denied || e.Key == "poison" {
				asked++
				return &DeliveryError{Retry: true, Denied: true, Status: 403, Err: errors.New("the receiver answered 403")}
			}
			return nil
		}}
		putEvents(t, o, revision("poison", 1), revision("a", 1), revision("b", 1), revision("a", 2))
		defer runOutbox(o, s)()
		time.Sleep(100 * time.Hour)
		checkDepth(t, o, 4, 0)
		if asked < 320 || asked > 420 {
			t.Errorf("asked %d times in 100 hours", asked)
		}
		if err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP postern_outbox_denied 1 while the target does not accept our credentials.
# TYPE postern_outbox_denied gauge
postern_outbox_denied{target="soc"} 1
# HELP postern_outbox_oldest_seconds Age of the event that has waited longest, since it was put in; 0 while none waits.
# TYPE postern_outbox_oldest_seconds gauge
postern_outbox_oldest_seconds{target="soc"} 360000
`), "postern_outbox_denied", "postern_outbox_oldest_seconds"); err != nil {
			t.Error(err)
		}
		denied = false
		time.Sleep(40 * time.Minute) // the first that is asked with may be the one that is refused
		got := s.taken()
		slices.Sort(got)
		sameEvents(t, got, "a:1", "a:2", "b:1")
		for i := range 5 { // the world goes on
			putEvents(t, o, revision("c", i+1))
			time.Sleep(time.Hour)
		}
		checkDepth(t, o, 0, 1)
	})
}

// TestOutboxRate: a limit paces what is sent; what is critical has a limit of its own.
func TestOutboxRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rate Rate
		if err := rate.UnmarshalText([]byte("600/m")); err != nil {
			t.Fatal(err)
		}
		o, err := OpenOutbox(t.TempDir(), "soc", DeliveryConfig{MaxAttempts: 3, Rate: rate}, testOutboxConfig(), nil, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer o.Close()
		s := &batchTarget{batch: Batch{Events: 50}}
		var events []Event
		for k := range 300 {
			events = append(events, revision(fmt.Sprint("k", k), 1))
		}
		putEvents(t, o, events...)
		begin := time.Now()
		defer runOutbox(o, s)()
		time.Sleep(10 * time.Second)
		urgent := revision("urgent", 1)
		urgent.Urgent = true
		putEvents(t, o, urgent)
		time.Sleep(time.Second)
		got := s.taken()
		if !slices.Contains(got, "urgent:1") || len(got) < 100 || len(got) > 130 {
			t.Errorf("%d arrived in 11 s at 10 a second, the critical one among them: %v", len(got), slices.Contains(got, "urgent:1"))
		}
		flushOutbox(t, o)
		if took := time.Since(begin); took < 28*time.Second || took > 31*time.Second {
			t.Errorf("300 events at 10 a second took %s", took)
		}
	})
	for _, text := range []string{"10", "0/s", "10/d", "-1/s", "1.5/s", "10/s ", "9999999/s"} {
		var r Rate
		if err := r.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q passed for a rate", text)
		}
	}
}

// TestOutboxGathers: a target that wants to hear of things together does so after a while, of what is critical at
// once, and of everything when it is flushed.
func TestOutboxGathers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := openTestOutbox(t, t.TempDir(), nil)
		s := &batchTarget{batch: Batch{Events: 100, Wait: 5 * time.Minute}}
		defer runOutbox(o, s)()
		begin := time.Now()
		for k := range 30 {
			putEvents(t, o, revision(fmt.Sprint("k", k), 1))
			time.Sleep(6 * time.Second)
		}
		urgent := revision("urgent", 1)
		urgent.Urgent = true
		putEvents(t, o, urgent)
		time.Sleep(time.Second)
		sameEvents(t, s.taken(), "urgent:1")
		time.Sleep(10 * time.Minute)
		if len(s.batches) != 2 || len(s.batches[1]) != 30 || s.when[1].Sub(begin) != 5*time.Minute {
			t.Errorf("batches %v", s.batches)
		}
		putEvents(t, o, revision("last", 1))
		flushOutbox(t, o)
		if len(s.batches) != 3 || time.Since(begin) > 14*time.Minute {
			t.Errorf("flushed %v after %s", s.batches, time.Since(begin))
		}
	})
}

// TestOutboxProbes: a target that was away for days is noticed to be back within minutes, however long its events
// still wait for their next attempt; and that costs no attempts.
func TestOutboxProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := openTestOutbox(t, t.TempDir(), nil)
		o.scan = time.Hour
		away := true
		s := &outboxTarget{answer: func(*Event, int) error {
			if away {
				return &DeliveryError{Retry: true, Err: errors.New("connection refused")}
			}
			return nil
		}}
		putEvents(t, o, revision("a", 1), revision("a", 2))
		defer runOutbox(o, s)()
		time.Sleep(50 * time.Hour)
		if n := s.tried("a:1"); n < 500 || n > 700 {
			t.Errorf("asked %d times in 50 hours", n)
		}
		checkDepth(t, o, 2, 0)
		away = false
		time.Sleep(7 * time.Minute)
		sameEvents(t, s.taken(), "a:1", "a:2")
	})
}
