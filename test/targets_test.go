package test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	kgo "github.com/segmentio/kafka-go"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/postern/postern/sink/siem"
	"github.com/postern/postern/test/broker"
	"github.com/postern/postern/test/part"
)

// taker is a real receiver of findings: what it has, by event id in the order of arrival, and how it is
// killed and started again.
type taker struct {
	section string // that leads to it in a configuration
	has     func() []string
	crash   func()
}

// TestTargets has one service tell rsyslog, syslog-ng, OpenSearch, Kafka, a webhook's receiver and a file of every
// revision of its findings, while each of them is killed once and the service too. Everything arrives
// everywhere, each finding's revisions in their order.
func TestTargets(t *testing.T) {
	t.Parallel()
	needSenders(t)
	if _, err := os.Stat("../.cache/opensearch/pom.xml"); err != nil {
		part.Missing(t, "OpenSearch is not there; test/opensearch/node fetch gets it")
	}
	dir := t.TempDir()
	takers := map[string]*taker{
		"rsyslog":    newSyslogTaker(t, "receive-rsyslog"),
		"syslog-ng":  newSyslogTaker(t, "receive-syslog-ng"),
		"opensearch": newOpenSearch(t),
		"kafka":      newKafkaTaker(t),
		"webhook":    newWebhookTaker(t, filepath.Join(dir, "secret")),
		"file":       {section: fmt.Sprintf("    file: {path: %s/findings.jsonl}\n", dir), has: func() []string { return linesOf(filepath.Join(dir, "findings.jsonl"), jsonEvent) }},
	}
	section := "targets:\n"
	for _, name := range []string{"rsyslog", "syslog-ng", "opensearch", "kafka", "webhook", "file"} {
		section += "  - name: " + name + "\n    minSeverity: informational\n" + takers[name].section
	}
	s := newServer(t, crashPolicy, section+"enrich: {window: 2s}\ndetect: {updateEvery: 1s}\n"+quickSessions(4*time.Second))
	g := newGenerator(t, s.udp)
	s.start()
	g.sendFor(3 * time.Second)
	for _, name := range []string{"rsyslog", "opensearch", "webhook"} {
		takers[name].crash()
		g.sendFor(time.Second)
	}
	_ = s.kill(syscall.SIGKILL) // its status is the signal's
	s.start()
	for _, name := range []string{"syslog-ng", "kafka"} {
		takers[name].crash()
		g.sendFor(time.Second)
	}
	g.sendFor(2 * time.Second)
	s.settle()
	idle := func() bool {
		var metrics string
		if err := s.get("/metrics", &metrics); err != nil {
			return false
		}
		for line := range strings.Lines(metrics) {
			if strings.HasPrefix(line, "postern_outbox_events{") && !strings.HasSuffix(line, " 0\n") {
				return false
			}
		}
		return true
	}
	s.until("the outboxes to be empty", 2*time.Minute, idle)
	told := map[string][]string{}
	s.until("everybody to have the same events", time.Minute, func() bool {
		want := -1
		for name, r := range takers {
			told[name] = unique(r.has())
			if want >= 0 && len(told[name]) != want {
				return false
			}
			want = len(told[name])
		}
		return want > 0 && idle()
	})
	all := map[string]bool{}
	for _, id := range told["file"] {
		all[id] = true
	}
	for name, ids := range told {
		next := map[string]int{}
		for _, id := range ids {
			finding, revision, _ := strings.Cut(id, ":")
			var n int
			_, _ = fmt.Sscan(revision, &n)
			if !all[id] || n <= next[finding] {
				t.Errorf("%s: event %s came after revision %d", name, id, next[finding])
			}
			next[finding] = n
		}
	}
	stored := s.number("SELECT count() AS n FROM (SELECT DISTINCT id, revision FROM finding_revisions)")
	t.Logf("%d events told to each of %d, %d revisions stored", len(all), len(told), stored)
	if revised := s.number("SELECT count() AS n FROM findings WHERE revision > 1"); revised == 0 {
		t.Error("no finding has a second revision; the test shows less than it says")
	}
	s.stop()
}

// unique is ids without those that came before.
func unique(ids []string) []string {
	seen := map[string]bool{}
	var out []string
	for _, id := range ids {
		if !seen[id] {
			seen[id] = true
			out = append(out, id)
		}
	}
	return out
}

func linesOf(path string, event func(line []byte) string) []string {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var out []string
	for line := range bytes.Lines(b) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // being written
		}
		if id := event(line); id != "" {
			out = append(out, id)
		}
	}
	return out
}

func jsonEvent(line []byte) string {
	var f struct {
		ID       string
		Revision int
	}
	if err := json.Unmarshal(line, &f); err != nil {
		return ""
	}
	return fmt.Sprintf("%s:%d", f.ID, f.Revision)
}

var syslogEvent = regexp.MustCompile(`^(?:<\d+>)?1 \d{4}-\d\d-\d\dT\S+Z \S+ postern - [a-z-]+ \[postern@32473 event="([0-9a-f]+:\d+)" finding="[0-9a-f]+"\] (?:CEF:0\||\{")`)

// newSyslogTaker runs rsyslog or syslog-ng; it wants a certificate of whoever comes.
func newSyslogTaker(t testing.TB, what string) *taker {
	t.Helper()
	a := newAuthority(t, "server", "postern")
	door := freePort(t, "tcp")
	_, port, _ := net.SplitHostPort(door)
	start := func() *program { return startProgram(t, what, syslogSender, what, a.Dir, port) }
	p := start()
	k := &taker{
		has: func() []string {
			return linesOf(filepath.Join(a.Dir, "received"), func(line []byte) string {
				m := syslogEvent.FindSubmatch(line)
				if m == nil {
					t.Errorf("%s took %.300q", what, line)
					return ""
				}
				return string(m[1])
			})
		},
		crash: func() {
			_ = p.run.End(syscall.SIGKILL) // its status is the signal's
			time.Sleep(500 * time.Millisecond)
			p = start()
		},
	}
	encoding := "cef"
	if what == "receive-syslog-ng" {
		encoding = "json"
	}
	k.section = fmt.Sprintf("    encoding: %s\n    syslog: {address: \"localhost:%s\", allowPrivate: true, caFile: %[3]s/ca.pem, certFile: %[3]s/postern.pem, keyFile: %[3]s/postern-key.pem}\n",
		encoding, port, a.Dir)
	return k
}

// newOpenSearch runs a node of OpenSearch.
func newOpenSearch(t testing.TB) *taker {
	t.Helper()
	dir, door := t.TempDir(), freePort(t, "tcp")
	_, port, _ := net.SplitHostPort(door)
	client := http.Client{Timeout: 10 * time.Second}
	ask := func(method, path, body string) ([]byte, error) {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+door+path, strings.NewReader(body))
		if err != nil {
			return nil, err
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode/100 != 2 {
			err = fmt.Errorf("%s %s: %s %s", method, path, resp.Status, b)
		}
		return b, err
	}
	start := func() *program {
		p := startProgram(t, "opensearch", "opensearch/node", "run", dir, port)
		if err := p.run.Await(func() error {
			_, err := ask("GET", "/_cluster/health?wait_for_status=yellow&timeout=1s", "")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := start()
	// What ECS says of the types, for the fields that a finding would else have guessed for it.
	if _, err := ask("PUT", "/logs-postern", `{"settings":{"number_of_replicas":0},"mappings":{"properties":{"@timestamp":{"type":"date"}}}}`); err != nil {
		t.Fatal(err)
	}
	k := &taker{
		has: func() []string {
			// In the order in which they were indexed.
			b, err := ask("POST", "/logs-postern/_search?filter_path=hits.hits._id", `{"size":10000,"sort":["_seq_no"],"_source":false}`)
			if err == nil {
				_, err = ask("POST", "/logs-postern/_refresh", "") // for the next time
			}
			if err != nil {
				t.Log(err)
				return nil
			}
			var found struct {
				Hits struct {
					Hits []struct {
						ID string `json:"_id"`
					}
				}
			}
			_ = json.Unmarshal(b, &found) // an answer that cannot be read holds nothing
			var out []string
			for _, h := range found.Hits.Hits {
				out = append(out, h.ID)
			}
			return out
		},
		crash: func() {
			_ = p.run.End(syscall.SIGKILL)
			p = start()
		},
	}
	k.section = fmt.Sprintf("    elastic: {url: \"http://%s\", index: logs-postern, allowPrivate: true, allowInsecure: true}\n", door)
	return k
}

// newKafkaTaker runs a broker and makes a topic there.
func newKafkaTaker(t testing.TB) *taker {
	t.Helper()
	b := broker.Start(t)
	topic := b.CreateTopic(t, "soc", 3)
	k := &taker{
		has: func() []string {
			var out []string
			for p := range 3 {
				out = append(out, topicEvents(t, b.Addr(), topic, p)...)
			}
			return out
		},
		crash: func() { b.Kill(); b.Restart() },
	}
	k.section = fmt.Sprintf("    kafka: {brokers: [\"%s\"], topic: %s, plain: true, allowPrivate: true}\n", b.Addr(), topic)
	return k
}

// topicEvents are those of one partition, by their header; the key has to be the finding.
func topicEvents(t testing.TB, addr, topic string, partition int) []string {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn, err := kgo.DialLeader(ctx, "tcp", addr, topic, partition)
	if err != nil {
		t.Log(err)
		return nil
	}
	defer conn.Close()
	_, last, err := conn.ReadOffsets()
	if err != nil || last == 0 {
		return nil
	}
	r := kgo.NewReader(kgo.ReaderConfig{Brokers: []string{addr}, Topic: topic, Partition: partition, MaxWait: 100 * time.Millisecond})
	defer r.Close()
	var out []string
	for {
		m, err := r.ReadMessage(ctx)
		if err != nil {
			t.Log(err)
			return out
		}
		for _, h := range m.Headers {
			if h.Key == "postern-event" && strings.HasPrefix(string(h.Value), string(m.Key)+":") && jsonEvent(m.Value) == string(h.Value) {
				out = append(out, string(h.Value))
			}
		}
		if m.Offset == last-1 {
			return out
		}
	}
}

// newWebhookTaker is a receiver that verifies with the library of Standard Webhooks.
func newWebhookTaker(t testing.TB, secretFile string) *taker {
	t.Helper()
	secret := siem.NewWebhookSecret()
	if err := os.WriteFile(secretFile, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	verifier, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var ids []string
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(io.LimitReader(r.Body, siem.MaxMessage))
		if err == nil {
			err = verifier.Verify(body, r.Header)
		}
		id := r.Header.Get(siem.HeaderWebhookID)
		if err != nil || jsonEvent(body) != id {
			t.Errorf("webhook %s: %v", id, err)
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		ids = append(ids, id)
	})
	door := freePort(t, "tcp")
	start := func() *http.Server {
		l, err := net.Listen("tcp", door)
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: handler, ReadHeaderTimeout: time.Second}
		go func() { _ = srv.Serve(l) }() // ends with Close
		return srv
	}
	srv := start()
	t.Cleanup(func() { _ = srv.Close() })
	k := &taker{
		has: func() []string {
			mu.Lock()
			defer mu.Unlock()
			return append([]string(nil), ids...)
		},
		crash: func() {
			_ = srv.Close()
			time.Sleep(500 * time.Millisecond)
			srv = start()
		},
	}
	k.section = fmt.Sprintf("    webhook: {url: \"http://%s/\", secrets: [\"file:%s\"], allowPrivate: true, allowInsecure: true}\n", door, secretFile)
	return k
}
