package siem

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern/postern/flow"
)

// pipes is a listener within a synctest bubble, where there are no sockets.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) dial(ctx context.Context) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.conns <- theirs:
		return ours, nil
	case <-p.done:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// httpKinds are the targets that speak HTTP, with receivers as their documentation has them.
var httpKinds = map[string]func(t testing.TB) (TargetConfig, *kept, http.Handler){
	"webhook": func(t testing.TB) (TargetConfig, *kept, http.Handler) {
		s := &webhookServer{kept{t: t}}
		return testWebhookConfig("http://siem.test/"), &s.kept, s
	},
	"splunk with acknowledgement": func(t testing.TB) (TargetConfig, *kept, http.Handler) {
		s := &hecServer{kept: kept{t: t}, acks: true, delay: 8 * time.Second, pending: map[int64][]string{}, due: map[int64]time.Time{}}
		crashes := rand.New(rand.NewPCG(7, 7))
		s.losing = func() bool { return crashes.IntN(10) == 0 } // accepted, and gone before it was indexed
		return splunkTarget("require"), &s.kept, s
	},
	"splunk without": func(t testing.TB) (TargetConfig, *kept, http.Handler) {
		s := &hecServer{kept: kept{t: t}}
		return splunkTarget("auto"), &s.kept, s
	},
	"elastic": func(t testing.TB) (TargetConfig, *kept, http.Handler) {
		full := rand.New(rand.NewPCG(8, 8))
		s := &bulkServer{kept: kept{t: t}, mode: "events", docs: map[string]int64{}, busy: func() bool { return full.IntN(5) == 0 }}
		return elasticTarget("events"), &s.kept, s
	},
	"elastic, a document a finding": func(t testing.TB) (TargetConfig, *kept, http.Handler) {
		s := &bulkServer{kept: kept{t: t}, mode: "findings", docs: map[string]int64{}}
		return elasticTarget("findings"), &s.kept, s
	},
	"sentinel": func(t testing.TB) (TargetConfig, *kept, http.Handler) {
		s := &sentinelServer{kept: kept{t: t}}
		c := TargetConfig{Name: "soc", Sentinel: &SentinelConfig{Rule: "dcr-0123456789abcdef", Stream: "Custom-Postern_CL", Tenant: "tenant-1", Client: "app", Secret: "app-secret"}}
		c.Sentinel.URL, c.Sentinel.Authority, c.Sentinel.AllowInsecure, c.Sentinel.AllowPrivate = "http://siem.test", "http://siem.test", true, true
		c.Fill()
		return c, &s.kept, s
	},
}

func splunkTarget(ack string) TargetConfig {
	c := TargetConfig{Name: "soc", Splunk: &SplunkConfig{Token: "hec-token", Ack: ack}}
	c.Splunk.URL, c.Splunk.AllowInsecure, c.Splunk.AllowPrivate = "http://siem.test", true, true
	c.Fill()
	return c
}

func elasticTarget(mode string) TargetConfig {
	c := TargetConfig{Name: "soc", Encoding: "json", Elastic: &ElasticConfig{Index: "logs-postern", Mode: mode, APIKey: "key"}}
	c.Elastic.URL, c.Elastic.AllowInsecure, c.Elastic.AllowPrivate = "http://siem.test", true, true
	c.Fill()
	return c
}

// through has a target's connections go to the receiver that stands at the moment.
func through(t testing.TB, target *Target, at func() *pipes) {
	t.Helper()
	var h *httpDoor
	switch s := target.sender.(type) {
	case *webhook:
		h = s.httpDoor
	case *splunk:
		h = s.httpDoor
	case *elastic:
		h = s.httpDoor
	case *sentinel:
		h = s.httpDoor
	case *chat:
		h = s.httpDoor
	}
	h.client.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return at().dial(ctx) }
}

// findingEvent is revision r of finding k, as the pipeline makes it.
func findingEvent(t testing.TB, k string, r int, s flow.Severity) Event {
	t.Helper()
	f := Sample()
	f.ID, f.Revision, f.Severity = k, uint64(r), s
	f.LastSeen = f.LastSeen.Add(time.Duration(r) * time.Minute)
	e, err := NewEvent(f)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TestTargetsThreeDaysAway is scenario 38 for every target that speaks HTTP: over 72 hours without it, a storm of
// 429, an hour of refused credentials, crashes of the receiver and of Postern, each revision of each
// finding arrives, in order, and nothing is given up. While one is away another takes everything at once.
func TestTargetsThreeDaysAway(t *testing.T) {
	for name, make := range httpKinds {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				cfg, got, handler := make(t)
				cfg.MaxAttempts = 10
				var mu sync.Mutex
				door := newPipes()
				at := func() *pipes { mu.Lock(); defer mu.Unlock(); return door }
				quiet := slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
				start := func() *http.Server {
					mu.Lock()
					door = newPipes()
					srv := &http.Server{Handler: handler, ErrorLog: quiet}
					d := door
					mu.Unlock()
					go srv.Serve(d)
					return srv
				}
				srv := start()
				open := func() (*Outbox, func()) {
					target, err := NewTarget(cfg, TargetOptions{Secret: asIs})
					if err != nil {
						t.Fatal(err)
					}
					through(t, target, at)
					o, err := OpenOutbox(dir, cfg.Name, cfg.DeliveryConfig, testOutboxConfig(), nil, nil, nil)
					if err != nil {
						t.Fatal(err)
					}
					o.scan = time.Hour // days pass here, and nobody replays anything
					stop := runOutbox(o, target)
					return o, func() { stop(); o.Close(); target.Close() }
				}
				o, stop := open()
				revisions, total := map[string]int{}, 0
				rng := rand.New(rand.NewPCG(1, 2))
				// found puts events in, some of every hour.
				found := func(n int) {
					var events []Event
					for range n {
						k := fmt.Sprintf("%016x", rng.IntN(60))
						revisions[k]++
						events = append(events, findingEvent(t, k, revisions[k], flow.Severity(1+rng.IntN(4))))
					}
					total += n
					putEvents(t, o, events...)
				}
				found(100)
				time.Sleep(time.Hour)
				before := len(got.all())
				if before < 90 {
					t.Fatalf("%d of the first 100 arrived", before)
				}
				// Three days away; Postern is restarted within.
				srv.Close()
				for hour := range 72 {
					found(4)
					time.Sleep(time.Hour)
					if hour == 30 {
						stop()
						o, stop = open()
					}
				}
				srv = start()
				// Back, and full for half an hour.
				until := time.Now().Add(30 * time.Minute)
				refused := 0
				got.mu.Lock()
				got.fault = func(w http.ResponseWriter) bool {
					if !time.Now().Before(until) {
						return false
					}
					refused++
					w.Header().Set("Retry-After", "30")
					w.WriteHeader(http.StatusTooManyRequests)
					return true
				}
				got.mu.Unlock()
				found(20)
				time.Sleep(31 * time.Minute)
				got.mu.Lock()
				if refused == 0 || refused > 120 {
					t.Errorf("asked %d times in half an hour of 429 with Retry-After 30", refused)
				}
				// Then somebody lets the credentials run out, for six hours.
				until = time.Now().Add(6 * time.Hour)
				asked := 0
				got.fault = func(w http.ResponseWriter) bool {
					if !time.Now().Before(until) {
						return false
					}
					asked++
					w.WriteHeader(http.StatusUnauthorized)
					return true
				}
				got.mu.Unlock()
				found(30)
				time.Sleep(6*time.Hour + 20*time.Minute)
				got.mu.Lock()
				if asked == 0 || asked > 80 {
					t.Errorf("asked %d times in six hours without credentials", asked)
				}
				got.fault = nil
				got.mu.Unlock()
				// The receiver crashes now and then, in the middle of answers too.
				for range 20 {
					found(10)
					time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
					srv.Close()
					time.Sleep(time.Duration(rng.IntN(20)) * time.Second)
					srv = start()
				}
				time.Sleep(4 * time.Hour)
				if waiting, dead := o.Depth(); waiting != 0 || dead != 0 {
					t.Errorf("%d wait and %d were given up", waiting, dead)
				}
				stop()
				srv.Close()
				next := map[string]int{}
				for _, id := range got.all() {
					k, r, _ := strings.Cut(id, ":")
					if next[k]++; r != fmt.Sprint(next[k]) {
						t.Fatalf("finding %s: revision %s came in place %d", k, r, next[k])
					}
				}
				if !maps.Equal(next, revisions) {
					t.Errorf("%d events arrived of %d", len(got.all()), total)
				}
				again := 0
				for _, n := range got.times {
					again += n - 1
				}
				t.Logf("%d events of %d findings, %d came twice, %d refused by 429, %d by 401", total, len(revisions), again, refused, asked)
			})
		})
	}
}

// TestTargetsPoison: an event that a receiver refuses for its content becomes a dead letter by itself, and
// what went with it in a request arrives.
func TestTargetsPoison(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(httpKinds)) {
		if name == "webhook" || name == "elastic, a document a finding" { // those know of no content
			continue
		}
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				cfg, got, handler := httpKinds[name](t)
				door := newPipes()
				srv := &http.Server{Handler: handler}
				go srv.Serve(door)
				defer srv.Close()
				target, err := NewTarget(cfg, TargetOptions{Secret: asIs})
				if err != nil {
					t.Fatal(err)
				}
				defer target.Close()
				through(t, target, func() *pipes { return door })
				o, err := OpenOutbox(dir, cfg.Name, cfg.DeliveryConfig, testOutboxConfig(), nil, nil, nil)
				if err != nil {
					t.Fatal(err)
				}
				defer o.Close()
				var events []Event
				for i := range 60 {
					k := fmt.Sprintf("%016x", i)
					if i == 13 || i == 47 {
						k = fmt.Sprintf("poison%d", i)
					}
					events = append(events, findingEvent(t, k, 1, flow.High))
				}
				putEvents(t, o, events...)
				defer runOutbox(o, target)()
				time.Sleep(time.Hour)
				if n := len(got.all()); n != 58 {
					t.Errorf("%d events arrived, want 58", n)
				}
				checkDepth(t, o, 0, 2)
			})
		})
	}
}
