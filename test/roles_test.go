package test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/kafka"
	"github.com/postern/postern/sink/embedded/embeddedtest"
)

// deployment is what the roles of one installation share: a Kafka cluster with topics
// of their own, a database, and a policy folder.
type deployment struct {
	t          testing.TB
	kafka      kafka.Config
	clickhouse string // http://host:port
	database   string
	token      string // file of the password
	policy     string // folder
}

// newDeployment prepares one at brokers, and does not create its topics yet. name is
// nobody else's.
func newDeployment(t testing.TB, brokers []string, name, policy string) *deployment {
	t.Helper()
	d := &deployment{t: t, kafka: kafka.DefaultConfig(), database: strings.NewReplacer(".", "_", "-", "_").Replace(name), policy: t.TempDir()}
	d.kafka.Brokers, d.kafka.Prefix, d.kafka.Group = brokers, name, name
	d.kafka.Partitions, d.kafka.Replication = 4, min(len(brokers), 3)
	var password string
	d.clickhouse, password = embeddedtest.Start(t)
	d.token = filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(d.token, []byte(password), 0o600); err != nil {
		t.Fatal(err)
	}
	// The engine is shared by the tests of a process, and each database takes its memory.
	t.Cleanup(func() {
		for _, database := range []string{d.database, d.database + "_alone"} {
			req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, d.clickhouse, strings.NewReader("DROP DATABASE IF EXISTS "+database+" SYNC"))
			if err != nil {
				t.Fatal(err)
			}
			req.SetBasicAuth("default", password)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Errorf("dropping %s: %v", database, err)
				continue
			}
			if said, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
				t.Errorf("dropping %s: %s %s", database, resp.Status, said)
			}
			resp.Body.Close()
		}
	})
	d.writePolicy(policy)
	return d
}

func (d *deployment) writePolicy(text string) {
	d.t.Helper()
	if err := os.WriteFile(filepath.Join(d.policy, "policy.yaml"), []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

// settings are what differs between roles, or between two starts of one.
type settings struct {
	brokers    []string // instead of the deployment's
	clickhouse string   // likewise
	database   string   // likewise
	linger     time.Duration
	reach      flow.Size // ingest.kafka.range
	chunkRows  int
	extra      string // appended
}

// role makes a role; it is not started.
func (d *deployment) role(command string, set settings) *server {
	d.t.Helper()
	s := newRole(d.t, command)
	d.configure(s, set)
	return s
}

// configure writes a role's configuration. What is paced by seconds is quicker than by
// default, so that a test need not wait.
func (d *deployment) configure(s *server, set settings) {
	d.t.Helper()
	brokers, clickhouse, database := d.kafka.Brokers, d.clickhouse, d.database
	if set.brokers != nil {
		brokers = set.brokers
	}
	if set.clickhouse != "" {
		clickhouse = set.clickhouse
	}
	if set.database != "" {
		database = set.database
	}
	kafkaSection := fmt.Sprintf("kafka: {brokers: [\"%s\"], prefix: %s, group: %s, partitions: %d, replication: %d, timeout: 3s}",
		strings.Join(brokers, `","`), d.kafka.Prefix, d.kafka.Group, d.kafka.Partitions, d.kafka.Replication)
	if s.role == "serve" {
		kafkaSection = ""
	}
	s.configure(fmt.Sprintf(`data: %s
ingest:
  netflow: {listen: "%s"}
  sflow: {listen: ""}
  kafka: {linger: %v, range: %d}
  spool: {segmentAge: 200ms, chunkRows: %d}
%s
policy: {dir: %s, since: 2020-01-01T00:00:00Z}
enrich: {window: 2s}
detect: {updateEvery: 1s}
clickhouse: {url: "%s", database: %s, password: file:%s}
admin: {listen: "%s"}
shutdown: 10s
%s`, s.data, s.udp, max(set.linger, 100*time.Millisecond), max(set.reach, 64*flow.KiB), max(set.chunkRows, 500), kafkaSection,
		d.policy, strings.Replace(clickhouse, "http://", "http://default@", 1), database, d.token, s.admin, set.extra))
}

// client reaches the cluster as the test itself.
func (d *deployment) client() *kafka.Client {
	d.t.Helper()
	c, err := kafka.Open(d.kafka, nil, kafka.Options{})
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { c.Close() })
	return c
}

// read gives each record of a topic, all there is.
func (d *deployment) read(c *kafka.Client, topic string, each func(partition int, r *kafka.Record)) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	n, err := c.Partitions(ctx, topic)
	if err != nil {
		d.t.Fatal(err)
	}
	for p := range n {
		next, end, err := c.Offsets(ctx, topic, p)
		for err == nil && next < end {
			var f kafka.Fetched
			f, err = c.Fetch(ctx, topic, p, next, 4<<20, time.Second)
			for i := range f.Records {
				each(p, &f.Records[i])
			}
			next = f.Next
		}
		if err != nil {
			d.t.Fatal(err)
		}
	}
}

// topicFlows counts the rows on the flows topic: all of them, and without what is there twice.
func (d *deployment) topicFlows(c *kafka.Client) (all, distinct uint64) {
	d.t.Helper()
	seen := map[string]bool{}
	d.read(c, d.kafka.Topic(kafka.TopicFlows), func(p int, r *kafka.Record) {
		h, rows, err := kafka.ReadHeader(r.Value)
		if err != nil {
			d.t.Fatal(err)
		}
		if int(h.Partition) != p {
			d.t.Errorf("a value cut for partition %d lies in %d", h.Partition, p)
		}
		all += uint64(rows)
		if key := fmt.Sprintf("%x/%d/%d/%d", h.Producer, h.Epoch, p, h.Seq); !seen[key] {
			seen[key] = true
			distinct += uint64(rows)
		}
	})
	return all, distinct
}

// topicFindings is the events on the findings topic by id, and what is wrong with them:
// one that is there twice must be the same both times.
func (d *deployment) topicFindings(c *kafka.Client) (out map[string]flow.Finding, wrong []string) {
	d.t.Helper()
	bodies := map[string]string{}
	out = map[string]flow.Finding{}
	d.read(c, d.kafka.Topic(kafka.TopicFindings), func(_ int, r *kafka.Record) {
		var f flow.Finding
		if err := json.Unmarshal(r.Value, &f); err != nil {
			d.t.Fatal(err)
		}
		id := f.EventID()
		if old, known := bodies[id]; known && old != string(r.Value) {
			wrong = append(wrong, fmt.Sprintf("event %s is on the topic twice, with other content:\n%s\n%s", id, old, r.Value))
		}
		bodies[id], out[id] = string(r.Value), f
	})
	return out, wrong
}

// told waits until the receiver has every event of the findings topic, the newest of each
// finding being what the findings view says of it, and gives the events by id.
func (d *deployment) told(hook *receiver, s *server) map[string]flow.Finding {
	d.t.Helper()
	c := d.client()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		events, wrong := d.topicFindings(c)
		stored := s.query("SELECT id, revision, count FROM findings")
		received := hook.findings(d.t)
		behind := 0
		for _, row := range stored {
			f := received[row["id"].(string)]
			if f.Revision != uint64(row["revision"].(float64)) || f.Count != int64(row["count"].(float64)) {
				behind++
			}
		}
		if len(wrong) == 0 && behind == 0 && len(stored) == len(received) && hook.has(maps.Keys(events)) {
			return events
		}
		if len(wrong) > 0 || time.Now().After(deadline) {
			d.t.Errorf("%d events on the topic, %d received, %d of %d findings not as the view has them; %q", len(events), hook.count(), behind, len(stored), wrong[:min(len(wrong), 3)])
			return events
		}
	}
}

// partitions is how many of the flows topic a detector works on.
func (s *server) partitions() (n int) {
	var text string
	if s.get("/metrics", &text) != nil {
		return 0
	}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "postern_kafka_lag{") && strings.Contains(line, `.flows"`) {
			n++
		}
	}
	return n
}

// stockOf takes stock of several processes that share the work.
func stockOf(list []*server) (sum flow.Account, err error) {
	for _, s := range list {
		var l stock
		if err := s.get("/ledger", &l); err != nil {
			return sum, err
		}
		if l.Closes != "yes" {
			return sum, fmt.Errorf("the ledger of %s does not close: %s", s.role, l.Closes)
		}
		sum.Add(&l.Total)
	}
	return sum, nil
}

// door is the way of one role to ClickHouse.
type door struct {
	*httptest.Server

	mu      sync.Mutex
	refuses bool
	armed   int // inserts until act
	act     func()
}

func newDoor(t testing.TB, clickhouse string) *door {
	t.Helper()
	target, err := url.Parse(clickhouse)
	if err != nil {
		t.Fatal(err)
	}
	d := &door{}
	relay := httputil.NewSingleHostReverseProxy(target)
	relay.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) } // whoever asked was killed
	relay.ModifyResponse = func(r *http.Response) error {
		if r.StatusCode == http.StatusOK && strings.HasPrefix(r.Request.URL.Query().Get("query"), "INSERT") {
			d.stored()
		}
		return nil
	}
	d.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.mu.Lock()
		refuses := d.refuses
		d.mu.Unlock()
		if refuses {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		relay.ServeHTTP(w, r)
	}))
	t.Cleanup(d.Close)
	return d
}

// refuse makes ClickHouse refuse everything, or no longer.
func (d *door) refuse(yes bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refuses = yes
}

// onStored runs act once, when ClickHouse has acknowledged the n-th insert from now on
// and before that is told.
func (d *door) onStored(n int, act func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.armed, d.act = n, act
}

func (d *door) stored() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.armed--; d.armed == 0 {
		d.act()
	}
}
