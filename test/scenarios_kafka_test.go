package test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/kafka"
	"github.com/postern/postern/policy"
	"github.com/postern/postern/test/broker"
	"github.com/postern/postern/test/scenario"
)

// throughServe are those that go through `postern serve` as well, which is every role in one process.
var throughServe = []string{"chain", "pivot", "blind-host", "blind-logons", "drift-segments", "growth"}

// What happens before and a day after everything else, in every partition of the flows topic: in
// a live process time does not come to an end, it only goes on; and where no flow has come yet it
// is that of the clock, which is not that of a scenario.
const (
	comeIn = "\nsession %s 0s 198.51.100.1-16 > 198.51.100.101-104 udp/53\n"
	moveOn = "session %s 0s 198.51.100.1-16 > 198.51.100.101-104 udp/53 every 26h times 2\n"
)

// TestScenariosThroughKafka: two detectors, one of which is killed in the middle, find what
// one process finds, under the same ids and as often.
func TestScenariosThroughKafka(t *testing.T) {
	var names []string
	for _, file := range scenarioFiles(t) {
		names = append(names, strings.TrimSuffix(filepath.Base(file), ".txt"))
	}
	throughBroker(t, names, "detect", "detect")
}

// TestScenariosThroughServe: so does one process that is all of it, and is killed in the middle.
func TestScenariosThroughServe(t *testing.T) { throughBroker(t, throughServe, "serve") }

// sideBySide is how many scenarios are played at a time. Each has topics, a group and a database of
// its own, and waits for most of its time until the group takes who was killed for gone.
const sideBySide = 4

// throughBroker plays scenarios to processes that share the work, of which the first is killed.
func throughBroker(t *testing.T, names []string, commands ...string) {
	b := broker.Shared(t)
	postern(t) // built once, before several ask for it
	var running sync.WaitGroup
	places := make(chan struct{}, sideBySide)
	for _, name := range names {
		places <- struct{}{}
		running.Go(func() {
			defer func() { <-places }()
			t.Run(name, func(t *testing.T) { throughKilled(t, b, name, commands) })
		})
	}
	running.Wait()
}

// throughKilled plays one.
func throughKilled(t *testing.T, b *broker.Broker, name string, commands []string) {
	file := filepath.Join("..", "detect", "testdata", name+".txt")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	parse := func(text string) *scenario.Scenario {
		s, err := scenario.Parse(file, []byte(text), scenario.DefaultSettings(), func(folder string) fs.FS {
			return os.DirFS(filepath.Join(filepath.Dir(file), folder))
		})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := parse(string(text))
	s = parse(string(text) + fmt.Sprintf(comeIn+moveOn, s.Begin().Add(-2*time.Hour), s.End().Add(2*time.Hour)))
	// The first part is nothing but what comes in everywhere, or little else.
	const parts = 5
	want, err := s.Run(scenario.Options{})
	if err != nil {
		t.Fatal(err)
	}

	d := newDeployment(t, []string{b.Addr()}, b.Topic(t, commands[0]+"-"+name), "postern: v1\n")
	versions := s.Versions()
	slices.SortFunc(versions, func(a, b scenario.Version) int { return cmp.Compare(a.Since, b.Since) })
	since := policy.Always
	switch n := len(versions); n {
	case 0: // none is in force at any time of the scenario
		d.writePolicy("postern: v1\nsegments:\n  - {name: later, prefixes: [192.0.2.0/24]}\n")
		since = flow.TimeOf(time.Date(2250, 1, 1, 0, 0, 0, 0, time.UTC))
	default:
		d.policy, since = unpacked(t, versions[n-1].Policy), versions[n-1].Since
	}
	role := func(command string) *server {
		extra := dedented(s.Config) + d.identities(s)
		if command == "serve" {
			extra += fmt.Sprintf("kafka: {brokers: [%q], prefix: %s, group: %s, partitions: %d, replication: 1}\n", b.Addr(), d.kafka.Prefix, d.kafka.Group, d.kafka.Partitions)
		}
		r := d.role(command, settings{extra: extra})
		r.amend("enrich: {window: 2s}\ndetect: {updateEvery: 1s}\n", "")
		if command != "serve" {
			r.amend("timeout: 3s", "timeout: 30s") // several begin at a time
		}
		r.amend("since: 2020-01-01T00:00:00Z", "since: "+max(since, longAgo).String())
		return r
	}
	collector := role("collect")
	run(t, "kafka", "init", "-c", collector.config)
	client := d.client()
	d.identify(client, s)
	d.announce(client, versions)
	handOn := handedOn(t, d, collector, s, parts)
	handOn(0)
	var detectors []*server
	for _, command := range commands {
		r := role(command)
		r.launch()
		detectors = append(detectors, r)
	}
	for _, r := range detectors {
		r.until("each process to have its partitions", 90*time.Second, func() bool { return r.partitions() == d.kafka.Partitions/len(commands) })
	}
	handOn(1)
	collector.until("the detectors to be at work", time.Minute, func() bool { return collector.number("SELECT count() FROM flows") > 0 })
	handOn(2)
	if err := detectors[0].kill(syscall.SIGKILL); err == nil {
		t.Error("the detector ended by itself")
	}
	for part := 3; part < parts; part++ {
		handOn(part)
	}
	detectors[0].start()
	expected := asStored(want, s.End())
	var diff string
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(2 * time.Second) { // asking takes more than detecting
		if diff = gocmp.Diff(expected, stored(collector)); diff == "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("it was found otherwise (-in one process +through Kafka):\n%s", diff)
		}
	}
	// What an agent hid is found where all partitions meet, and stands in the session as well.
	hidden := int64(0)
	for _, f := range want.Findings {
		if f.Type == flow.FindingUnseen {
			hidden += f.Count
		}
	}
	if got := collector.query("SELECT id FROM sessions WHERE has(contradictions, 'unseen')"); int64(len(got)) != hidden {
		t.Errorf("%d sessions are stored as unseen by an agent, and findings count %d", len(got), hidden)
	}
	for _, r := range append(detectors, collector) {
		if r.cmd != nil {
			r.stop()
		}
	}
}

// identities is the part of a configuration that has detectors ask who is behind addresses.
func (d *deployment) identities(s *scenario.Scenario) string {
	if facts, _ := s.Identities(); len(facts) == 0 {
		return ""
	}
	inventory := filepath.Join(d.t.TempDir(), "inventory.csv")
	if err := os.WriteFile(inventory, []byte("address,workload\n203.0.113.250,nobody\n"), 0o600); err != nil {
		d.t.Fatal(err)
	}
	return fmt.Sprintf("identity: {hold: 1s, inventory: [{name: other, path: %s}]}\n", inventory)
}

// asStored is what was found in one process, a line for each finding and blind spot. Which bounds bite is left
// out: each partition has its own; and so is the end of input, at which nothing ends in a live process.
func asStored(want *scenario.Result, end flow.Time) (lines []string) {
	for _, f := range want.Findings {
		if f.Type != flow.FindingPressure {
			lines = append(lines, fmt.Sprint(f.ID, " ", f.Type, " ", f.Severity, " ×", f.Count, " ", f.FirstSeen, " ", f.LastSeen, " ", f.Title, ": ", f.Sentence))
		}
	}
	for _, n := range want.BlindSpots {
		if n.Until > end.Add(-time.Minute) {
			n.Until = 0
		}
		if n.Kind != flow.FindingPressure {
			lines = append(lines, fmt.Sprint(n.ID, " ", n.Kind, " ", n.About, " ", n.From, " ", n.Until, " ", n.Details, " ", n.Finding))
		}
	}
	slices.Sort(lines)
	return lines
}

// stored is the same as the database has it.
func stored(s *server) (lines []string) {
	for _, r := range s.query("SELECT id, type, severity, count, first_seen, last_seen, title, sentence FROM findings WHERE type != '" + flow.FindingPressure + "'") {
		lines = append(lines, fmt.Sprint(r["id"], " ", r["type"], " ", r["severity"], " ×", r["count"], " ", stamp(r["first_seen"]), " ", stamp(r["last_seen"]), " ", r["title"], ": ", r["sentence"]))
	}
	for _, r := range s.query("SELECT id, kind, about, time_from, time_until, details, finding FROM blind_spots WHERE kind != '" + flow.FindingPressure + "'") {
		until := flow.Time(0).String()
		if r["time_until"] != nil {
			until = stamp(r["time_until"])
		}
		lines = append(lines, fmt.Sprint(r["id"], " ", r["kind"], " ", r["about"], " ", stamp(r["time_from"]), " ", until, " ", r["details"], " ", r["finding"]))
	}
	slices.Sort(lines)
	return lines
}

// longAgo is since when a policy is in force that always was.
var longAgo = flow.TimeOf(time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC))

// announce puts several versions into the policy topic, as detectors did at the time of each: one that
// starts today brings its own into force from today on.
func (d *deployment) announce(client *kafka.Client, versions []scenario.Version) {
	d.t.Helper()
	if len(versions) < 2 {
		return
	}
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		d.t.Fatal(err)
	}
	for i, v := range versions {
		since := max(v.Since, longAgo)
		text, err := json.Marshal(map[string]any{"hash": v.Policy.Hash(), "since": since, "accepted": since + 1, "source": json.RawMessage(v.Policy.Source())})
		if err != nil {
			d.t.Fatal(err)
		}
		if _, err := client.Produce(context.Background(), d.kafka.Topic(kafka.TopicPolicy), 0, kafka.Message{Key: fmt.Appendf(nil, "version/%d", i), Value: enc.EncodeAll(text, nil)}); err != nil {
			d.t.Fatal(err)
		}
	}
}

// identify puts what a scenario's source of identities says where detectors read it, as a collector does.
func (d *deployment) identify(client *kafka.Client, s *scenario.Scenario) {
	d.t.Helper()
	facts, beats := s.Identities()
	var told []kafka.Message
	add := func(key string, said map[string]any) {
		value, err := json.Marshal(said)
		if err != nil {
			d.t.Fatal(err)
		}
		told = append(told, kafka.Message{Key: []byte(key), Value: value})
	}
	for i := range facts {
		add(fmt.Sprintf("fact/%d", i), map[string]any{"facts": facts[i : i+1]})
	}
	for i := range beats {
		add(fmt.Sprintf("beat/%d", i), map[string]any{"beat": beats[i]})
	}
	if len(told) == 0 {
		return
	}
	if _, err := client.Produce(context.Background(), d.kafka.Topic(kafka.TopicFacts), 0, told...); err != nil {
		d.t.Fatal(err)
	}
}

// dedented is the config lines of a scenario as they stand in a file of other sections.
func dedented(config string) string {
	first := strings.TrimLeft(config, " ")
	return strings.TrimPrefix(strings.ReplaceAll("\n"+config, "\n"+config[:len(config)-len(first)], "\n"), "\n")
}

// handedOn gives how the parts of a scenario come to the flows topic, one after the other: as
// captures of what its exporters send, by `postern collect`; or, where agents tell of it, as
// the values that a collector would have written.
func handedOn(t *testing.T, d *deployment, collector *server, s *scenario.Scenario, parts int) func(part int) {
	t.Helper()
	if s.Exported() == "" {
		captures := played(t, s, parts)
		return func(part int) { run(t, "collect", "-c", collector.config, captures[part]) }
	}
	names := flow.NewNames(0)
	told, client, encoder := s.Told(names), d.client(), kafka.NewEncoder(names)
	return func(part int) {
		t.Helper()
		partitions := make([][]flow.Record, d.kafka.Partitions)
		for _, r := range told[part*len(told)/parts : (part+1)*len(told)/parts] {
			r.Received = r.At
			p := kafka.Partition(r.Src, r.Dst, len(partitions))
			partitions[p] = append(partitions[p], r.Record)
		}
		for p, records := range partitions {
			seq := uint64(part) << 32
			for some := range slices.Chunk(records, 50) {
				seq++
				h := kafka.Header{Producer: [16]byte{1}, Partition: uint32(p), Partitions: uint32(len(partitions)), Seq: seq}
				if _, err := client.Produce(context.Background(), d.kafka.Topic(kafka.TopicFlows), p, kafka.Message{Value: encoder.Append(nil, h, some)}); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// stamp is a time of ClickHouse as findings write it.
func stamp(v any) string {
	at, err := time.Parse("2006-01-02 15:04:05.999", fmt.Sprint(v))
	if err != nil {
		return fmt.Sprint(v)
	}
	return flow.TimeOf(at).String()
}
