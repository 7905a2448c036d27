package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	kgo "github.com/segmentio/kafka-go"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/kafka"
	"github.com/postern/postern/sink/siem"
	"github.com/postern/postern/test/broker"
)

// eventMessage is an event as a detector puts it on the findings topic.
func eventMessage(t testing.TB, id string, revision uint64, severity flow.Severity) kafka.Message {
	t.Helper()
	e, err := siem.NewEvent(&flow.Finding{ID: id, SchemaVersion: flow.FindingSchema, Revision: revision, Severity: severity, LastSeen: flow.Time(1_700_000_000_000 + revision)})
	if err != nil {
		t.Fatal(err)
	}
	return kafka.Message{Key: []byte(id), Value: e.Body, Headers: []kgo.Header{
		{Key: headerEvent, Value: []byte(e.ID)}, {Key: headerSeverity, Value: []byte(severity.String())},
	}}
}

func TestNoticeOf(t *testing.T) {
	read := func(m kafka.Message) (notice, error) {
		return noticeOf(&kafka.Record{Key: m.Key, Value: m.Value, Headers: m.Headers})
	}
	n, err := read(eventMessage(t, "f1", 3, flow.High))
	if err != nil || n.finding.Severity != flow.High || n.event.ID != "f1:3" || n.event.Key != "f1" || n.event.Time != 1_700_000_000_003 || !json.Valid(n.event.Body) {
		t.Errorf("%+v, %v", n, err)
	}
	for name, test := range map[string]struct {
		spoil func(*kafka.Message)
		want  string
	}{
		"no event":          {func(m *kafka.Message) { m.Headers = m.Headers[1:] }, `"event" is missing`},
		"no severity":       {func(m *kafka.Message) { m.Headers = m.Headers[:1] }, `"severity" is missing`},
		"odd severity":      {func(m *kafka.Message) { m.Headers[1].Value = []byte("grave") }, `"severity": `},
		"another key":       {func(m *kafka.Message) { m.Key = []byte("f2") }, "must speak of the same event"},
		"another event":     {func(m *kafka.Message) { m.Headers[0].Value = []byte("f1:4") }, "must speak of the same event"},
		"id of a space":     {func(m *kafka.Message) { m.Headers[0].Value = []byte("f1 :3") }, "printable ASCII"},
		"empty id":          {func(m *kafka.Message) { m.Headers[0].Value = nil }, "at least one"},
		"long id":           {func(m *kafka.Message) { m.Headers[0].Value = []byte(strings.Repeat("f", 201)) }, "200 bytes"},
		"long body":         {func(m *kafka.Message) { m.Value = make([]byte, siem.MaxMessage) }, "less than"},
		"body cut":          {func(m *kafka.Message) { m.Value = m.Value[:len(m.Value)-1] }, "no finding"},
		"body of something": {func(m *kafka.Message) { m.Value = []byte(`[1]`) }, "no finding"},
		"no body":           {func(m *kafka.Message) { m.Value = nil }, "no finding"},
	} {
		m := eventMessage(t, "f1", 3, flow.High)
		test.spoil(&m)
		if _, err := read(m); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

// FuzzNoticeOf: what is taken for an event is one that an outbox takes, of its own key.
func FuzzNoticeOf(f *testing.F) {
	m := eventMessage(f, "f1", 3, flow.High)
	f.Add(m.Key, m.Headers[0].Value, m.Headers[1].Value, m.Value)
	f.Add([]byte("f"), []byte("f:1"), []byte("low"), []byte(`{"id":"f","revision":1}`))
	f.Fuzz(func(t *testing.T, key, event, severity, value []byte) {
		n, err := noticeOf(&kafka.Record{Key: key, Value: value, Headers: []kgo.Header{{Key: headerEvent, Value: event}, {Key: headerSeverity, Value: severity}}})
		if err != nil {
			return
		}
		if err := n.event.Validate(); err != nil || n.event.Key != string(key) || !strings.HasPrefix(n.event.ID, string(key)+":") || !json.Valid(n.event.Body) {
			t.Errorf("%+v: %v", n, err)
		}
	})
}

// TestForwardRefuses: without somebody to read from or to tell there is nothing to do.
func TestForwardRefuses(t *testing.T) {
	cfg := defaultConfig()
	if _, err := newForwarder(cfg, slog.New(slog.DiscardHandler)); !errors.Is(err, errNoKafka) {
		t.Errorf("without Kafka: %v", err)
	}
	cfg.Kafka.Brokers = []string{"127.0.0.1:9"}
	if _, err := newForwarder(cfg, slog.New(slog.DiscardHandler)); !errors.Is(err, errNoReceiver) {
		t.Errorf("without a receiver: %v", err)
	}
}

// testTarget is a webhook whose secret is in POSTERN_TEST_SECRET.
func testTarget(url string) siem.TargetConfig {
	t := siem.TargetConfig{Name: "soc", Webhook: &siem.WebhookConfig{Secrets: []string{"env:POSTERN_TEST_SECRET"}}}
	t.Webhook.URL = url
	t.Fill()
	return t
}

// soc is a receiver of webhooks that keeps what it got in order.
type soc struct {
	*httptest.Server
	t      *testing.T
	secret string

	mu     sync.Mutex
	refuse func(id string) bool // nil: takes everything
	ids    []string
}

func newSIEM(t *testing.T, secret string) *soc {
	s := &soc{t: t, secret: secret}
	s.Server = httptest.NewServer(http.HandlerFunc(s.receive))
	t.Cleanup(s.Close)
	return s
}

func (s *soc) receive(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err == nil {
		err = siem.Verify([]string{s.secret}, r.Header, body, siem.WebhookTolerance, time.Now())
	}
	var f flow.Finding
	if err == nil {
		err = json.Unmarshal(body, &f)
	}
	id := r.Header.Get(siem.HeaderWebhookID)
	if err != nil || f.EventID() != id || f.LastSeen != flow.Time(1_700_000_000_000+f.Revision) {
		s.t.Errorf("%s: %v, body %s", id, err, body)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse != nil && s.refuse(id) {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	s.ids = append(s.ids, id)
}

func (s *soc) got() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.ids...)
}

// forwardConfig is a cluster with our topics, and a receiver of everything from low on.
func forwardConfig(t *testing.T, b *broker.Broker) (config, *kafka.Client, *soc) {
	t.Helper()
	cfg := defaultConfig()
	cfg.Data, cfg.Admin.Listen = t.TempDir(), ""
	cfg.Kafka.Brokers, cfg.Kafka.Prefix, cfg.Kafka.Partitions, cfg.Kafka.Replication = []string{b.Addr()}, b.Topic(t, "forward"), 2, 1
	cfg.Kafka.Group = b.Topic(t, "group")
	secret := siem.NewWebhookSecret()
	t.Setenv("POSTERN_TEST_SECRET", secret)
	hook := newSIEM(t, secret)
	cfg.Targets = []siem.TargetConfig{testTarget(hook.URL)}
	cfg.Targets[0].Webhook.AllowPrivate, cfg.Targets[0].Webhook.AllowInsecure = true, true
	cfg.Outbox.Reserve = 0
	client, err := kafka.Open(cfg.Kafka, nil, kafka.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	if err := client.Apply(t.Context(), kafka.Plan(cfg.Kafka), func(string) {}); err != nil {
		t.Fatal(err)
	}
	return cfg, client, hook
}

// forwarding runs a forwarder until stop is called.
func forwarding(t *testing.T, cfg config) (f *forwarder, stop func()) {
	t.Helper()
	f, err := newForwarder(cfg, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return f, running(t, f)
}

// running runs a role until stop is called.
func running(t *testing.T, r interface{ run(context.Context) error }) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.run(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// eventually waits until ok says so.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for " + what)
		}
	}
}

// metric gives the sum over a metric's labels.
func (f *forwarder) metric(t *testing.T, name string) (sum float64) {
	t.Helper()
	families, err := f.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			for _, m := range family.Metric {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// TestForward takes events off a real broker to a receiver: each comes, in the order of
// its finding's revisions, over restarts and with what is no event among them.
func TestForward(t *testing.T) {
	b := broker.Shared(t)
	cfg, client, hook := forwardConfig(t, b)
	topic := cfg.Kafka.Topic(kafka.TopicFindings)
	const findings = 30
	send := func(from, to uint64) {
		for r := from; r <= to; r++ {
			for i := range findings {
				id := fmt.Sprintf("finding-%d", i)
				m := eventMessage(t, id, r, flow.Medium)
				low := eventMessage(t, "low-"+id, r, flow.Informational)
				// A detector that repeats a range puts its events once more.
				if _, err := client.Produce(t.Context(), topic, i%2, m, low, m); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	inOrder := func(ids []string, revisions int) {
		t.Helper()
		newest := map[string]int{}
		for _, each := range ids {
			id, text, _ := strings.Cut(each, ":")
			var revision int
			if _, err := fmt.Sscan(text, &revision); err != nil || !strings.HasPrefix(id, "finding-") || revision != newest[id]+1 {
				t.Errorf("%s came after revision %d", each, newest[id])
			}
			newest[id] = revision
		}
		if len(newest) != findings || len(ids) != findings*revisions {
			t.Errorf("%d events of %d findings came, want %d of %d", len(ids), len(newest), findings*revisions, findings)
		}
	}

	send(1, 2)
	poison := kafka.Message{Key: []byte("k"), Value: []byte("no event"), Headers: []kgo.Header{{Key: headerEvent, Value: []byte("k:1")}}}
	if _, err := client.Produce(t.Context(), topic, 0, poison); err != nil {
		t.Fatal(err)
	}
	send(3, 3)
	f, stop := forwarding(t, cfg)
	defer stop()
	eventually(t, "three revisions", func() bool { return len(hook.got()) >= 3*findings })
	eventually(t, "the end of the topic", func() bool {
		return f.metric(t, "postern_forward_events_total") >= 3*3*findings && f.metric(t, "postern_kafka_lag") == 0
	})
	if err := f.ready(); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]float64{
		"postern_forward_events_total": 3 * 3 * findings, "postern_outbox_put_total": 3 * findings, "postern_outbox_duplicate_total": 3 * findings,
		"postern_kafka_dead_letters_total": 1, "postern_kafka_skipped_offsets_total": 0,
	} {
		if got := f.metric(t, name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	stop()
	inOrder(hook.got(), 3)
	dead := 0
	_, err := client.DeadLetters(t.Context(), 0, func(_ int64, d kafka.DeadLetter) error {
		dead++
		if d.Topic != topic || d.Partition != 0 || string(d.Value) != "no event" || !strings.Contains(d.Reason, `"severity" is missing`) {
			t.Errorf("the dead letter is %+v", d)
		}
		return nil
	})
	if err != nil || dead != 1 {
		t.Errorf("%d dead letters, %v", dead, err)
	}

	// The receiver is away: events are off the topic, and in the outbox over a restart.
	hook.mu.Lock()
	hook.refuse = func(string) bool { return true }
	hook.mu.Unlock()
	send(4, 4)
	f, stop = forwarding(t, cfg)
	defer stop()
	eventually(t, "the events in the outbox", func() bool { return f.metric(t, "postern_outbox_events") >= findings })
	stop()
	inOrder(hook.got(), 3)
	hook.mu.Lock()
	hook.refuse = nil
	hook.mu.Unlock()
	send(5, 5)
	_, stop = forwarding(t, cfg)
	defer stop()
	eventually(t, "five revisions", func() bool { return len(hook.got()) >= 5*findings })
	stop()
	inOrder(hook.got(), 5)
}

// TestForwardHolds: while an outbox is full the rest waits on the topic, /readyz says
// why, and a stop does not wait for it.
func TestForwardHolds(t *testing.T) {
	b := broker.Shared(t)
	cfg, client, hook := forwardConfig(t, b)
	cfg.Outbox.MaxEvents = 3
	hook.refuse = func(string) bool { return true }
	const events = 10
	for i := range uint64(events) {
		if _, err := client.Produce(t.Context(), cfg.Kafka.Topic(kafka.TopicFindings), 1, eventMessage(t, "held", i+1, flow.High)); err != nil {
			t.Fatal(err)
		}
	}
	f, stop := forwarding(t, cfg)
	defer stop()
	eventually(t, "the outbox to fill", func() bool { return errors.Is(f.ready(), siem.ErrOutboxFull) })
	if n := f.metric(t, "postern_outbox_events"); n != 3 {
		t.Errorf("%v events wait in an outbox of 3", n)
	}
	began := time.Now()
	stop()
	if took := time.Since(began); took >= cfg.Shutdown {
		t.Errorf("the stop took %v", took)
	}
	hook.mu.Lock()
	hook.refuse = nil
	hook.mu.Unlock()
	f, stop = forwarding(t, cfg)
	defer stop()
	eventually(t, "everything", func() bool { return len(hook.got()) >= events })
	eventually(t, "an outbox with room", func() bool { return f.ready() == nil })
	stop()
	for i, id := range hook.got() {
		if id != fmt.Sprintf("held:%d", i+1) {
			t.Errorf("event %d is %s", i+1, id)
		}
	}
}

// sendFunc is a receiver that is a function.
type sendFunc func(*siem.Event) error

func (f sendFunc) Send(_ context.Context, e *siem.Event) error { return f(e) }

// TestForwardThreeDaysAway is scenario 38 for what comes by the findings topic: a
// receiver that is away for three days, over restarts of the forwarder that read part
// of the topic again, gets everything, in order by finding and with its own times.
func TestForwardThreeDaysAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := defaultConfig()
		cfg.Data, cfg.Kafka.Brokers, cfg.Outbox.Reserve = t.TempDir(), []string{"127.0.0.1:9"}, 0
		t.Setenv("POSTERN_TEST_SECRET", siem.NewWebhookSecret())
		cfg.Targets = []siem.TargetConfig{testTarget("https://siem.example.net/")}
		const findings, revisions = 20, 6
		back := time.Now().Add(72 * time.Hour)
		var mu sync.Mutex
		newest := map[string]uint64{}
		receive := sendFunc(func(e *siem.Event) error {
			mu.Lock()
			defer mu.Unlock()
			if time.Now().Before(back) {
				return errors.New("away")
			}
			newest[e.Key]++
			if r := newest[e.Key]; e.ID != fmt.Sprintf("%s:%d", e.Key, r) || e.Time != flow.Time(1_700_000_000_000+r) {
				t.Errorf("%s of time %d came as number %d of its finding", e.ID, e.Time, r)
			}
			return nil
		})
		var log []kafka.Record // the topic
		for r := uint64(1); r <= revisions; r++ {
			for i := range findings {
				m := eventMessage(t, fmt.Sprintf("f%d", i), r, flow.High)
				log = append(log, kafka.Record{Key: m.Key, Value: m.Value, Headers: m.Headers})
			}
			f, err := newForwarder(cfg, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			if err := f.told.open(); err != nil {
				t.Fatal(err)
			}
			// What the one before had taken and not committed comes again.
			if err := f.take(t.Context(), nil, log[max(0, len(log)-2*findings):]); err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithTimeout(t.Context(), 14*time.Hour)
			_ = f.told.list[0].outbox.Run(ctx, receive)
			stop()
			if err := errors.Join(f.told.close(), f.client.Close()); err != nil {
				t.Fatal(err)
			}
		}
		for i := range findings {
			if n := newest[fmt.Sprintf("f%d", i)]; n != revisions {
				t.Errorf("%d revisions of f%d came, want %d", n, i, revisions)
			}
		}
	})
}

// lockedBuffer is a log to look into while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestForwardSkips: where the log does not have the offset that the group stands at,
// as after the loss of a broker's disk, forwarding goes on behind what there is.
func TestForwardSkips(t *testing.T) {
	b := broker.Shared(t)
	cfg, client, hook := forwardConfig(t, b)
	topic := cfg.Kafka.Topic(kafka.TopicFindings)
	put := func(revision uint64) {
		if _, err := client.Produce(t.Context(), topic, 0, eventMessage(t, "f", revision, flow.High)); err != nil {
			t.Fatal(err)
		}
	}
	cfg.Kafka.Timeout = time.Second
	put(1)
	eventually(t, "the group to have a coordinator, and its offset to be set", func() bool {
		res, err := client.Kafka().OffsetCommit(t.Context(), &kgo.OffsetCommitRequest{GroupID: cfg.Kafka.Group + ".forward", GenerationID: -1,
			Topics: map[string][]kgo.OffsetCommit{topic: {{Partition: 0, Offset: 100}}}})
		return err == nil && res.Topics[topic][0].Error == nil
	})
	cfg.Kafka.Timeout = time.Second // what ends too early is asked again for three of these
	var log lockedBuffer
	f, err := newForwarder(cfg, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	stop := running(t, f)
	defer stop()
	eventually(t, "the loss to be told", func() bool { return strings.Contains(log.String(), "from=100 to=0") })
	put(2)
	eventually(t, "both: of what is there now nothing is left out", func() bool { return len(hook.got()) == 2 })
	if got := hook.got(); got[0] != "f:1" || got[1] != "f:2" {
		t.Errorf("%v came", got)
	}
}
