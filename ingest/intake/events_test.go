package intake

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest"
	"github.com/postern/postern/ingest/agent"
	"github.com/postern/postern/ingest/identity"
)

// sink keeps what it is given, each event as kind and session.
type sink struct {
	mu    sync.Mutex
	got   []string
	calls int
	fail  error
}

func (s *sink) NewDecoder(maxItem int) (*agent.EventDecoder, error) {
	return agent.NewEventDecoder("radius", agent.EventConfig{}, maxItem)
}

func (s *sink) Take(_ context.Context, events []agent.SessionEvent) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calls++; s.fail != nil {
		return s.fail
	}
	for _, ev := range events {
		s.got = append(s.got, ev.Kind.String()+" "+ev.Session)
	}
	return nil
}

func (s *sink) taken() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.got)
}

func (s *sink) failing(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

// block is a request as FreeRADIUS writes it, jsonLine likewise.
func block(kind string, session int) string {
	return fmt.Sprintf("Fri Oct  2 15:05:00 2026\n\tAcct-Status-Type = %s\n\tAcct-Session-Id = \"%d\"\n\tUser-Name = \"alice\"\n\tNAS-IP-Address = 192.0.2.1\n\tFramed-IP-Address = 10.8.0.5\n\tTimestamp = 1790953500\n\n", kind, session)
}

func jsonLine(kind string, session int) string {
	return fmt.Sprintf(`{"Acct-Status-Type":%q,"Acct-Session-Id":"%d","User-Name":"alice","NAS-IP-Address":"192.0.2.1","Framed-IP-Address":"10.8.0.5"}`, kind, session)
}

func newEventRig(t *testing.T, change func(*Config)) (*rig, *sink) {
	r, s := newRig(t, change), &sink{}
	r.events = map[string]EventSink{"vpn": s}
	return r, s
}

func (r *rig) wantEvents(s *sink, want ...string) {
	r.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end) && len(s.taken()) < len(want); time.Sleep(5 * time.Millisecond) {
	}
	if d := cmp.Diff(want, s.taken()); d != "" {
		r.Error(d)
	}
}

// TestEventsHTTP: a request of session events is answered like one of flows, when they last;
// one that comes again is not taken in again.
func TestEventsHTTP(t *testing.T) {
	r, s := newEventRig(t, onHTTP)
	r.start()
	body := []byte(block("Start", 1) + block("Tunnel-Start", 2) + "nonsense\n\n" + jsonLine("Stop", 1) + "\n")
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write(body)
	_ = z.Close()
	code, a := r.postTo("/v1/events/vpn", packed.Bytes(), "Content-Encoding", "gzip")
	if code != 200 || a.Format != "radius" || a.Lines != 4 || a.Accepted != 3 || a.Events != 2 || a.Rejected != 1 || a.Flows != 0 || a.NotFlows["another Acct-Status-Type"] != 1 || len(a.Errors) != 1 || a.Duplicate {
		t.Errorf("%d %+v", code, a)
	}
	r.wantEvents(s, "start 1", "stop 1")
	if code, a := r.postTo("/v1/events/vpn", packed.Bytes(), "Content-Encoding", "gzip"); code != 200 || !a.Duplicate || a.Events != 2 {
		t.Errorf("again: %d %+v", code, a)
	}
	if code, a := r.postTo("/v1/events/vpn", body, "Idempotency-Key", "k"); code != 200 || a.Duplicate {
		t.Errorf("under a key: %d %+v", code, a)
	}
	if code, _ := r.postTo("/v1/events/vpn", []byte(block("Start", 9)), "Idempotency-Key", "k"); code != 422 {
		t.Errorf("another body under the key: %d", code)
	}
	r.wantEvents(s, "start 1", "stop 1", "start 1", "stop 1")
	if code, a := r.postTo("/v1/events/nobody", body); code != 404 || a.Error != `"nobody" is no source of sessions; want one of vpn` {
		t.Errorf("%d %+v", code, a)
	}
	if code, _ := r.postTo("/v1/events/vpn", body, "Authorization", "Bearer wrong"); code != 401 {
		t.Errorf("without the token: %d", code)
	}
	if code, a := r.postTo("/v1/events/vpn", []byte("nonsense")); code != 400 {
		t.Errorf("nonsense: %d %+v", code, a)
	}
	r.drain()
	if c, want := r.counts(), (ingest.LineCounts{NotFlow: 6, Rejected: 2}); c != want {
		t.Errorf("lines %+v; want %+v", c, want)
	}
}

// TestEventsNotTaken: what its source does not take is not acknowledged, and taken when it
// comes again.
func TestEventsNotTaken(t *testing.T) {
	r, s := newEventRig(t, onHTTP)
	r.start()
	s.failing(errors.New("no room"))
	body := []byte(jsonLine("Start", 1))
	if code, a := r.postTo("/v1/events/vpn", body); code != 503 || a.Error != "no room" {
		t.Errorf("%d %+v", code, a)
	}
	s.failing(nil)
	if code, a := r.postTo("/v1/events/vpn", body); code != 200 || a.Duplicate {
		t.Errorf("%d %+v", code, a)
	}
	r.wantEvents(s, "start 1")
}

// TestEventsMany: a long body is handed on in one piece and in its order.
func TestEventsMany(t *testing.T) {
	r, s := newEventRig(t, onHTTP)
	r.start()
	var body strings.Builder
	var want []string
	for i := range 3 * maxHeldEvents {
		body.WriteString(jsonLine("Start", i) + "\n")
		want = append(want, fmt.Sprintf("start %d", i))
	}
	if code, a := r.postTo("/v1/events/vpn", []byte(body.String())); code != 200 || a.Events != uint64(len(want)) {
		t.Errorf("%d %+v", code, a)
	}
	r.wantEvents(s, want...)
	if s.calls != 1 {
		t.Errorf("handed on in %d pieces", s.calls)
	}
	r.drain()
	if len(r.taken) != 3 {
		t.Errorf("%d batches in the spool", len(r.taken))
	}
}

// TestEventsFiles: a detail file that grows while it is followed, with a block of which only a
// part is there, and with restarts.
func TestEventsFiles(t *testing.T) {
	dir := t.TempDir()
	r, s := newEventRig(t, func(c *Config) {
		c.Files = []FilesConfig{{Paths: []string{filepath.Join(dir, "detail")}, Events: "vpn"}}
	})
	r.dir = dir
	r.spool.Close()
	r.openSpool()
	r.start()
	second := block("Start", 2)
	r.write("detail", block("Start", 1)+second[:60])
	r.wantEvents(s, "start 1")
	r.restart()
	r.write("detail", second[60:]+block("Stop", 1))
	r.wantEvents(s, "start 1", "start 2", "stop 1")
	r.restart()
	r.write("detail", block("Stop", 2))
	r.wantEvents(s, "start 1", "start 2", "stop 1", "stop 2")
}

// TestEventsSyslog: events as syslog carries them.
func TestEventsSyslog(t *testing.T) {
	r, s := newEventRig(t, func(c *Config) { c.Syslog = []SyslogConfig{{Listen: "127.0.0.1:0", Events: "vpn"}} })
	r.start()
	c, err := net.Dial("tcp", r.in.SyslogAddrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	m := "<13>1 2026-10-02T15:05:00Z nas freeradius - - - " + jsonLine("Start", 1)
	fmt.Fprintf(c, "%d %s<13>Oct  2 15:05:00 nas freeradius[7]: %s\n", len(m), m, jsonLine("Stop", 1))
	c.Close()
	r.wantEvents(s, "start 1", "stop 1")
}

// TestEventsConfig: sources that are not there, and a format beside one.
func TestEventsConfig(t *testing.T) {
	for _, c := range []struct {
		change func(*Config)
		events map[string]EventSink
		want   string
	}{
		{func(c *Config) { c.Files = []FilesConfig{{Paths: []string{"x"}, Events: "vpn"}} }, nil,
			`files[0].events: "vpn" is no source of sessions; there is none, write one in identity.sessions`},
		{func(c *Config) { c.Syslog = []SyslogConfig{{Listen: "127.0.0.1:0", Events: "vpm"}} }, map[string]EventSink{"vpn": &sink{}},
			`syslog[0].events: "vpm" is no source of sessions; want one of vpn`},
		{func(c *Config) { c.Files = []FilesConfig{{Paths: []string{"x"}, Format: "zeek", Events: "vpn"}} }, nil,
			`files[0].format: is "zeek" beside events; give one of them`},
	} {
		cfg := DefaultConfig()
		c.change(&cfg)
		_, err := New(cfg, Options{Clock: func() flow.Time { return 1 }, Events: c.events})
		if err == nil || err.Error() != c.want {
			t.Errorf("%v; want %s", err, c.want)
		}
	}
}

// TestEventsDocs: what the page about sessions shows can be written like that.
func TestEventsDocs(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "docs", "identity-sessions.md"))
	if err != nil {
		t.Fatal(err)
	}
	configs := 0
	for block := range strings.SplitSeq(string(b), "```") {
		text, found := strings.CutPrefix(block, "yaml\n")
		if !found {
			continue
		}
		configs++
		var c struct {
			Identity identity.Config `yaml:"identity"`
			Ingest   struct {
				Logs Config `yaml:"logs"`
			} `yaml:"ingest"`
		}
		c.Ingest.Logs = DefaultConfig()
		if err := yaml.UnmarshalWithOptions([]byte(text), &c, yaml.Strict()); err != nil {
			t.Errorf("%v in\n%s", err, text)
			continue
		}
		sources, err := identity.New(c.Identity, identity.Options{StateDir: t.TempDir()})
		if err != nil {
			t.Errorf("%v in\n%s", err, text)
		}
		events := map[string]EventSink{}
		for _, s := range sources {
			if s, ok := s.(*identity.Sessions); ok {
				events[s.Name()] = s
			}
		}
		if _, err := New(c.Ingest.Logs, Options{Clock: func() flow.Time { return 1 }, Events: events}); err != nil || len(events) != 1 {
			t.Errorf("%v in\n%s", err, text)
		}
	}
	if configs != 3 {
		t.Errorf("%d examples", configs)
	}
}
