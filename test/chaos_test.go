package test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/kafka"
	"github.com/postern/postern/test/broker"
)

// chaos is a deployment under way: datagrams go in, and things happen to its parts.
type chaos struct {
	t         *testing.T
	rng       *rand.Rand
	d         *deployment
	cluster   *broker.Cluster
	links     []*link // the collector's, one a broker
	collector *server
	detectors []*detector
	forward   *server
	started   []*server // those that are gone too
	hook      *receiver
	stream    *stream
	versions  int // of the policy, beside the first
}

// detector is one with a door of its own to ClickHouse.
type detector struct {
	*server
	door *door
}

// stream sends flows until it is told to end. What it sent is on the collector's disk
// before it sends more, so that the collector may be killed at any time between.
type stream struct {
	*numbered
	collector *server
	mu        sync.Mutex // held while something is on its way
	stop      context.CancelFunc
	done      chan struct{}
}

func startStream(tr *numbered, collector *server) *stream {
	ctx, stop := context.WithCancel(context.Background())
	s := &stream{numbered: tr, collector: collector, stop: stop, done: make(chan struct{})}
	go s.run(ctx)
	tr.t.Cleanup(s.end)
	return s
}

func (s *stream) run(ctx context.Context) {
	defer close(s.done)
	for {
		s.mu.Lock()
		s.send(20)
		ok := s.received(ctx)
		s.mu.Unlock()
		if !ok {
			s.t.Errorf("%d datagrams sent, the collector does not have them all", s.sent())
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(15 * time.Millisecond):
		}
	}
}

// received waits until the collector has what was sent. It gives up after a minute, and
// after a moment once ctx has ended.
func (s *stream) received(ctx context.Context) bool {
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		var l stock
		if s.collector.get("/ledger", &l) == nil && l.Total.Datagrams.Received >= s.sent() {
			return true
		}
		if waited := time.Since(began); waited > time.Minute || waited > 5*time.Second && ctx.Err() != nil {
			return false
		}
	}
}

// between runs do while nothing is on its way to the collector.
func (s *stream) between(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do()
}

// end stops sending. It may be called again.
func (s *stream) end() {
	s.stop()
	<-s.done
}

// faults are what happens. Each ends with everything at work again, or about to be.
var faults = []struct {
	name string
	do   func(c *chaos)
}{
	{"a detector is killed", func(c *chaos) {
		c.wait(0, 3*time.Second)
		c.replace(c.anyDetector())
	}},
	{"a detector is killed between ClickHouse's answer and the commit", func(c *chaos) {
		d, killed := c.anyDetector(), make(chan struct{})
		d.door.onStored(1+c.rng.IntN(4), func() {
			_ = d.kill(syscall.SIGKILL) // its status is the signal's
			close(killed)
		})
		c.expect("an insert", 30*time.Second, killed)
		c.relaunch(d)
	}},
	{"a detector is held still until its partitions are given away", func(c *chaos) {
		d := c.anyDetector()
		_ = d.cmd.Process.Signal(syscall.SIGSTOP) // it runs: relaunch launched it
		c.wait(11*time.Second, 14*time.Second)
		_ = d.cmd.Process.Signal(syscall.SIGCONT)
	}},
	{"a third detector joins and leaves", func(c *chaos) {
		d := c.newDetector()
		d.until("the third detector to have partitions", 60*time.Second, func() bool { return d.partitions() > 0 })
		c.wait(0, 3*time.Second)
		if c.coin() {
			_ = d.kill(syscall.SIGKILL)
		} else {
			d.stop()
		}
	}},
	{"batch size and linger change, both detectors restarted", func(c *chaos) {
		for _, d := range c.detectors {
			if c.coin() {
				_ = d.kill(syscall.SIGKILL)
			} else {
				d.stop()
			}
		}
		for _, d := range c.detectors {
			c.relaunch(d)
		}
	}},
	{"ClickHouse refuses for ten seconds", func(c *chaos) {
		for _, d := range c.detectors {
			d.door.refuse(true)
		}
		time.Sleep(10 * time.Second)
		for _, d := range c.detectors {
			d.door.refuse(false)
		}
	}},
	{"answers to produce requests are lost, and the collector is killed before it tries again", func(c *chaos) {
		c.loseAnswers()
		c.stream.between(func() { c.replaceCollector() })
	}},
	{"answers to produce requests are lost", func(c *chaos) {
		c.loseAnswers()
		c.wait(0, 4*time.Second)
		c.hear()
	}},
	{"the collector's connections are cut", func(c *chaos) {
		for _, l := range c.links {
			l.shut()
		}
		c.wait(0, 4*time.Second)
		for _, l := range c.links {
			l.open()
		}
	}},
	{"the collector is killed", func(c *chaos) {
		c.wait(0, 2*time.Second)
		c.stream.between(func() { c.replaceCollector() })
	}},
	{"a broker is restarted in order", func(c *chaos) {
		i := c.rng.IntN(len(c.links))
		c.cluster.Stop(i)
		c.cluster.Restart(i)
	}},
	{"all brokers are killed at once", func(c *chaos) {
		c.killBrokers()
		c.restartBrokers()
	}},
	{"the leader of a partition is lost", func(c *chaos) {
		topic := c.d.kafka.Topic([]string{kafka.TopicFlows, kafka.TopicFlows, kafka.TopicState, kafka.TopicFindings}[c.rng.IntN(4)])
		leader := c.cluster.Leader(c.t, topic, c.rng.IntN(c.d.kafka.Partitions))
		c.cluster.Kill(leader)
		c.wait(3*time.Second, 6*time.Second)
		c.cluster.Restart(leader)
	}},
	{"forward is killed", func(c *chaos) {
		c.wait(0, 2*time.Second)
		_ = c.forward.kill(syscall.SIGKILL)
		c.wait(0, 2*time.Second)
		c.forward.launch()
	}},
	{"the leader of a partition is lost, and a detector killed meanwhile", func(c *chaos) {
		leader := c.cluster.Leader(c.t, c.d.kafka.Topic(kafka.TopicFlows), c.rng.IntN(c.d.kafka.Partitions))
		c.cluster.Kill(leader)
		c.wait(0, 4*time.Second)
		d := c.anyDetector()
		_ = d.kill(syscall.SIGKILL)
		c.relaunch(d)
		c.wait(0, 4*time.Second)
		c.cluster.Restart(leader)
	}},
	{"everything is killed at once", func(c *chaos) {
		c.wait(0, 2*time.Second)
		c.stream.between(func() {
			c.killBrokers()
			for _, s := range c.roles() {
				_ = s.kill(syscall.SIGKILL)
			}
			c.restartBrokers()
			c.forward.launch()
			for _, d := range c.detectors {
				c.relaunch(d)
			}
			c.replaceCollector()
		})
	}},
	{"the policy changes, and a detector is killed", func(c *chaos) {
		const versions = "SELECT uniqExact(policy_version) FROM flows"
		before := c.collector.number(versions)
		c.versions++
		c.d.writePolicy(strings.Replace(crashPolicy, "the applications", fmt.Sprintf("the applications, version %d", c.versions), 1))
		c.wait(0, 3*time.Second)
		c.replace(c.anyDetector())
		c.collector.until("flows to be judged by another version", 60*time.Second, func() bool { return c.collector.number(versions) > before })
	}},
}

func (c *chaos) killBrokers() {
	for i := range c.links {
		c.cluster.Kill(i)
	}
}

func (c *chaos) restartBrokers() {
	var all sync.WaitGroup
	for i := range c.links {
		all.Go(func() { c.cluster.Restart(i) })
	}
	all.Wait()
}

func (c *chaos) coin() bool { return c.rng.IntN(2) == 0 }

// wait lets the deployment go on for a while.
func (c *chaos) wait(least, most time.Duration) {
	time.Sleep(least + time.Duration(c.rng.Int64N(int64(most-least))))
}

func (c *chaos) expect(what string, patience time.Duration, happened <-chan struct{}) {
	c.t.Helper()
	select {
	case <-happened:
	case <-time.After(patience):
		c.t.Fatalf("waited %v for %s", patience, what)
	}
}

func (c *chaos) anyDetector() *detector { return c.detectors[c.rng.IntN(len(c.detectors))] }

// newDetector starts a detector.
func (c *chaos) newDetector() *detector {
	d := &detector{newRole(c.t, "detect"), newDoor(c.t, c.d.clickhouse)}
	c.started = append(c.started, d.server)
	c.relaunch(d)
	return d
}

// replace kills a detector and starts it again, sometimes only after the others took over.
func (c *chaos) replace(d *detector) {
	_ = d.kill(syscall.SIGKILL)
	if c.coin() {
		c.wait(0, 12*time.Second)
	}
	c.relaunch(d)
}

// relaunch starts a detector that does not run, with another linger, size of ranges and
// size of inserts.
func (c *chaos) relaunch(d *detector) {
	c.d.configure(d.server, settings{
		clickhouse: d.door.URL,
		linger:     []time.Duration{100 * time.Millisecond, 300 * time.Millisecond, time.Second, 2 * time.Second}[c.rng.IntN(4)],
		reach:      []flow.Size{64 * flow.KiB, 256 * flow.KiB, 8 * flow.MiB}[c.rng.IntN(3)],
		chunkRows:  []int{50, 170, 1000, 1 << 16}[c.rng.IntN(4)],
		extra:      quickSessions(4 * time.Second),
	})
	d.launch()
}

// replaceCollector kills the collector and starts it again.
func (c *chaos) replaceCollector() {
	_ = c.collector.kill(syscall.SIGKILL)
	c.hear()
	c.configureCollector()
	c.collector.launch()
	c.collector.until("the collector to listen", 30*time.Second, func() bool { return c.collector.get("/healthz") == nil })
}

func (c *chaos) configureCollector() {
	var brokers []string
	for _, l := range c.links {
		brokers = append(brokers, l.addr)
	}
	c.d.configure(c.collector, settings{brokers: brokers, chunkRows: []int{100, 1000, 1 << 16}[c.rng.IntN(3)]})
}

// loseAnswers makes the links keep answers to produce requests, and waits for the first.
func (c *chaos) loseAnswers() {
	c.t.Helper()
	kept := make(chan struct{}, 1)
	for _, l := range c.links {
		l.keep(kept)
	}
	c.expect("an answer to a produce request", 30*time.Second, kept)
}

// hear ends loseAnswers.
func (c *chaos) hear() {
	for _, l := range c.links {
		l.hear()
	}
}

// working fails if a role has ended.
func (c *chaos) working() {
	c.t.Helper()
	for _, s := range c.roles() {
		s.until(s.role+" to answer", 20*time.Second, func() bool { return s.get("/healthz") == nil })
	}
}

func (c *chaos) roles() []*server {
	return append([]*server{c.collector, c.forward}, c.detecting()...)
}

func (c *chaos) detecting() (list []*server) {
	for _, d := range c.detectors {
		list = append(list, d.server)
	}
	return list
}

// TestChaos lets things happen to every part of a deployment while flows are sent, and
// asks afterwards whether each flow is in ClickHouse exactly once, each revision of each
// finding was received, and all ledgers close. POSTERN_ROUNDS and POSTERN_SEED choose
// the rounds; `make chaos` sets them.
func TestChaos(t *testing.T) {
	seed := envNumber(t, "POSTERN_SEED", 140)
	rounds := int(envNumber(t, "POSTERN_ROUNDS", 3))
	t.Logf("seed %d, %d rounds; repeat with make chaos ROUNDS=%d SEED=%d", seed, rounds, rounds, seed)
	c := &chaos{t: t, rng: rand.New(rand.NewPCG(seed, 29)), hook: newReceiver(t)}
	verdict := "ended early"
	defer func() {
		result := "PASS"
		if t.Failed() {
			result = "FAIL"
			c.keepLogs(filepath.Join("..", ".cache", fmt.Sprintf("chaos-%d", seed)))
		}
		t.Logf("chaos: %d rounds, seed %d: %s: %s", rounds, seed, verdict, result)
	}()

	began := time.Now()
	c.start()
	t.Logf("everything is up after %.1f s", time.Since(began).Seconds())
	var order []int
	for round := range rounds {
		if len(order) == 0 { // each fault once before any comes again
			order = c.rng.Perm(len(faults))
		}
		fault := faults[order[0]]
		order = order[1:]
		began = time.Now()
		fault.do(c)
		c.wait(500*time.Millisecond, 2*time.Second)
		c.working()
		t.Logf("round %d: %s (%.1f s, %d datagrams sent)", round+1, fault.name, time.Since(began).Seconds(), c.stream.sent())
	}
	c.stream.end()
	began = time.Now()
	verdict = c.verdict()
	t.Logf("everything came to rest within %.1f s", time.Since(began).Seconds())
}

// keepLogs copies what every process has logged.
func (c *chaos) keepLogs(dir string) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		c.t.Error(err)
	}
	for i, s := range c.started {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%s-%d.log", s.role, i)), []byte(s.logs()), 0o600); err != nil {
			c.t.Error(err)
		}
	}
	c.t.Logf("what all processes logged is in %s", dir)
}

// start starts three brokers, a collector, two detectors and a forwarder, and sends.
func (c *chaos) start() {
	t := c.t
	t.Helper()
	var addrs []string
	for range 3 {
		c.links = append(c.links, newLink(t))
		addrs = append(addrs, c.links[len(c.links)-1].addr)
	}
	c.cluster = broker.StartCluster(t, len(c.links), broker.WithAdvertised(addrs...))
	for i, l := range c.links {
		l.towards(c.cluster.Brokers()[i].BehindAddr())
	}
	c.d = newDeployment(t, c.cluster.Addrs(), c.cluster.Brokers()[0].Topic(t, "chaos"), crashPolicy)
	c.collector = newRole(t, "collect")
	c.configureCollector()
	run(t, "kafka", "init", "-c", c.collector.config)
	c.collector.start()
	for range 2 {
		c.detectors = append(c.detectors, c.newDetector())
	}
	c.forward = c.d.role("forward", settings{extra: c.hook.section()})
	c.forward.launch()
	for _, s := range c.detecting() {
		s.until("each detector to have partitions", 90*time.Second, func() bool { return s.partitions() > 0 })
	}
	c.started = append(c.started, c.collector, c.forward)
	c.stream = startStream(newNumbered(t, c.collector.udp), c.collector)
}

// verdict waits until everything is where it should be and counts it.
func (c *chaos) verdict() string {
	t := c.t
	t.Helper()
	c.working()
	total := c.collector.arrived(c.stream.devices...)
	rows := uint64(len(c.stream.ids))
	ledgers := "closed"
	if total.Records.Decoded != rows || total.Records.Written != rows || total.Datagrams.Decoded != c.stream.sent() {
		ledgers = "open"
		t.Errorf("the collector has %+v of %d datagrams with %d records", total, c.stream.sent(), rows)
	}
	all, distinct := c.d.topicFlows(c.d.client())
	if distinct != rows {
		t.Errorf("%d records are on the flows topic without repetitions, %d were sent", distinct, rows)
	}
	var judged flow.Account
	var why error
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if judged, why = stockOf(c.detecting()); why == nil && judged.Records.Decoded >= all && judged.Records.InFlight == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("the detectors do not come to rest: %v", why)
			break
		}
	}
	if r := judged.Records; r.Decoded != all || r.Decoded-r.Duplicate != rows || r.Decoded != r.Written+r.Duplicate+r.Rejected.Sum() || why != nil {
		ledgers = "open"
		t.Errorf("%d records on the topic, %d of them repetitions; the detectors have %+v, %v", all, all-distinct, r, why)
	}
	missing, doubled := c.stream.compare(c.collector)

	events := c.d.told(c.hook, c.collector)
	findings := map[string]bool{}
	for _, f := range events {
		findings[f.ID] = true
	}
	for _, row := range c.collector.query(`SELECT type, client, server, service, exception, toDate(first_seen) AS day, groupArray(id) AS ids FROM findings
		GROUP BY ALL HAVING count() > 1`) {
		t.Errorf("several findings of one thing: %v", row)
	}
	compareFindings(t, c.collector, c.hook)
	counted := c.collector.edgesAgree(4*time.Second, 1)
	for _, s := range c.started {
		for line := range strings.Lines(s.logs()) {
			if strings.Contains(line, "level=ERROR") && (strings.Contains(line, "lost") || strings.Contains(line, "remembered")) {
				t.Errorf("%s: %s", s.role, line)
			}
		}
	}
	return fmt.Sprintf("%d flows sent in %d records, %d of them twice on the topic; %d rows, %d missing, %d doubled; %d sessions counted; %d findings, %d revisions, %d of them received; ledgers %s",
		c.stream.number, rows, all-distinct, c.collector.number("SELECT count() FROM flows"), missing, doubled, counted, len(findings), len(events), c.hook.count(), ledgers)
}
