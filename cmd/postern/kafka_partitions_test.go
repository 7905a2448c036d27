package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"
	kgo "github.com/segmentio/kafka-go"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/kafka"
	"github.com/postern/postern/sink"
	"github.com/postern/postern/test/broker"
)

// remembering is a store that also keeps what it is told of findings.
type remembering struct {
	counting
	told map[string]*flow.Finding // by id, the highest revision
}

func (r *remembering) findings(_ context.Context, _ sink.Insert, _ []flow.Contribution, events []*flow.Finding) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range events {
		if had := r.told[f.ID]; had == nil || had.Revision < f.Revision {
			r.told[f.ID] = f
		}
	}
	return nil
}

// brief is what each finding said last, in the order of their ids.
func (r *remembering) brief() (out []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(r.told)) {
		f := r.told[id]
		out = append(out, fmt.Sprintf("%s revision %d: %s %s %s -> %s ×%d", id, f.Revision, f.Type, f.Outcome, f.Client, f.Server, f.Count))
	}
	return out
}

// switchRig is a group of detectors under a policy, with a collector and a topic of
// others' flows before them.
type switchRig struct {
	*kafkaRig
	began     flow.Time
	stored    *remembering
	verdicts  tally
	collector *flowTopic
	foreign   string
	unit, id  uint64
}

const switchPairs = 40 // so that every partition has some

func newSwitchRig(t *testing.T, began flow.Time) *switchRig {
	k := newKafkaRig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	k.ctx = ctx
	k.cfg.Enrich.Window = 2 * time.Minute // nothing that waits is decided while the test lasts
	k.cfg.Policy.Dir, k.cfg.Policy.Since = filepath.Join(k.cfg.Data, "policy"), began.Add(-time.Hour)
	file := writeFile(t, filepath.Join(k.cfg.Policy.Dir, "p.yaml"), `postern: v1
segments:
  - {name: office, prefixes: [10.1.0.0/16], stage: enforced, default: {in: deny, out: allow}, owner: o}
  - {name: vault, prefixes: [10.2.0.0/16], stage: enforced, default: {in: deny, out: allow}, owner: o}
rules:
  - {id: web, action: allow, from: {segment: office}, to: {segment: vault}, services: [tcp/443], owner: o, reason: r}
`)
	for _, path := range []string{file, k.cfg.Policy.Dir} {
		if err := os.Chtimes(path, time.Time{}, time.Now().Add(-time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	foreign := broker.Shared(t).CreateTopic(t, "foreign", 4)
	k.cfg.Ingest.Kafka.Topics = []foreignTopic{{foreign, "goflow2-json"}}
	return &switchRig{kafkaRig: k, began: began, stored: &remembering{counting{rowsOf: map[string]int{}}, map[string]*flow.Finding{}},
		collector: k.collector(0), foreign: foreign}
}

// send hands on one record of each pair from its client to its server, or as the answer.
func (k *switchRig) send(clientPort, serverPort uint16, answer, biflow bool, at time.Duration) {
	k.Helper()
	var records []flow.Record
	for i := range switchPairs {
		k.id++
		r := flow.Record{
			ID: k.id, Src: addr(fmt.Sprintf("10.1.0.%d", 1+i)), Dst: addr(fmt.Sprintf("10.2.0.%d", 1+i)), SrcPort: clientPort, DstPort: serverPort,
			Proto: flow.ProtoTCP, Start: k.began.Add(at), End: k.began.Add(at), Received: k.began.Add(at), Exporter: addr("192.0.2.1"), PacketsRaw: 1,
			Has: flow.HasSrc | flow.HasDst | flow.HasSrcPort | flow.HasDstPort | flow.HasProto | flow.HasPackets,
		}
		if answer {
			r.Src, r.Dst, r.SrcPort, r.DstPort = r.Dst, r.Src, r.DstPort, r.SrcPort
		}
		if biflow {
			r.Has, r.RevPacketsRaw = r.Has|flow.HasRevPackets, 1
		}
		records = append(records, r)
	}
	k.unit++
	block := &block{writer: k.collector.writer(), exporters: map[flow.Addr]uint64{}}
	block.add(records)
	if _, err := k.collector.rows(k.ctx, unit{number: k.unit}, 0, block); err != nil {
		k.Fatal(err)
	}
}

// goflow2 hands on a permitted flow in each partition of the topic of others.
func (k *switchRig) goflow2() {
	k.Helper()
	for p := range 4 {
		k.id++
		value := fmt.Sprintf(`{"type":"IPFIX","time_received_ns":%d,"time_flow_start_ns":%[1]d,"time_flow_end_ns":%[1]d,"sampler_address":"192.0.2.9",`+
			`"src_addr":"10.1.1.%d","dst_addr":"10.2.1.%[2]d","src_port":%d,"dst_port":443,"proto":"TCP","packets":1,"bytes":40}`, int64(k.began)*1e6, p, 40000+k.id)
		if _, err := k.client.Produce(k.ctx, k.foreign, p, kafka.Message{Value: []byte(value)}); err != nil {
			k.Fatal(err)
		}
	}
}

// detect runs a detector until its ledger tells of so many flows written and waiting,
// and stops it in order.
func (k *switchRig) detect(written, waiting uint64, and func()) {
	k.Helper()
	d, err := newDetection(k.cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		k.Fatal(err)
	}
	d.rows, d.blocks = k.stored, newBlocks(detectBlocks, k.stored)
	if err := d.begin(k.ctx); err != nil {
		k.Fatal(err)
	}
	run, stop := context.WithCancel(k.ctx)
	done := make(chan error, 1)
	go func() { done <- d.member.Run(run, k.cfg.Shutdown, d.work) }()
	var sum flow.RecordAccount
	for deadline := time.Now().Add(40 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		l := d.ledger()
		if err := l.Check(); err != nil {
			k.Error(err)
		}
		if t := l.Total(); t.Records != sum {
			sum = t.Records
		} else if sum.Written == written && sum.InFlight == waiting {
			break
		}
	}
	for _, w := range d.mine() {
		if err := w.pipe.ledger(nil).Check(); err != nil {
			k.Errorf("%s: %v", w.name, err)
		}
	}
	if and != nil {
		and()
	}
	stop()
	if err := <-done; err != nil {
		k.Error(err)
	}
	_ = d.client.Close()
	k.verdicts.merge(d.verdicts())
	var lost dto.Metric
	if err := d.met.lost.Write(&lost); err != nil || lost.GetCounter().GetValue() > 0 {
		k.Errorf("checkpoints were not found: %v %v", &lost, err)
	}
	if sum.Written != written || sum.InFlight != waiting || k.stored.total() != int(written) {
		k.Errorf("%d flows are written and %d wait, %d rows are stored; want %d, %d and %[4]d", sum.Written, sum.InFlight, k.stored.total(), written, waiting)
	}
}

// story sends flows through detectors that are stopped in the middle, when one half of
// conversations waits for the other and findings are open; between is done meanwhile.
func (k *switchRig) story(between func()) {
	const n = switchPairs
	k.send(40001, 443, false, true, 0)    // permitted
	k.send(40002, 445, false, true, 0)    // denied, seen both ways: a finding at once
	k.send(51000, 52000, false, false, 0) // denied either way: waits to know who began
	k.goflow2()
	k.detect(2*n+4, n, nil)
	k.send(40004, 445, false, true, 0) // adds to the finding; lies there as it was divided before
	k.send(40001, 443, false, true, 0)
	k.goflow2()
	between()
	k.send(51000, 52000, true, false, 20*time.Millisecond) // the other half
	k.send(40002, 445, false, true, 0)                     // goes on with the session
	k.send(40005, 445, false, false, 0)                    // denied, one way: waits in vain
	k.detect(5*n+8, 3*n, nil)
	k.send(40001, 443, false, true, 10*time.Minute) // ends every wait
	k.detect(9*n+8, 0, nil)
}

// TestKafkaPartitions changes the number of partitions in the middle of a story, dying
// before the last step the first time: nothing of it shows in what is stored and found.
func TestKafkaPartitions(t *testing.T) {
	began := wallClock()
	plain := newSwitchRig(t, began)
	plain.story(func() {})
	if len(plain.stored.told) != 2*switchPairs {
		t.Fatalf("%d findings, want %d: %s", len(plain.stored.told), 2*switchPairs, plain.stored.brief())
	}

	k := newSwitchRig(t, began)
	var said []string
	make := func(to int) *switchOver {
		said = nil
		return newSwitchOver(k.cfg, k.client, to, func(line string) { said = append(said, line) })
	}
	k.story(func() {
		s := make(5)
		s.plan = true
		if err := s.run(k.ctx); err != nil {
			t.Fatal(err)
		}
		if n, err := k.client.Partitions(k.ctx, s.flows); err != nil || n != 2 {
			t.Fatalf("a plan left %d partitions (%v), want 2", n, err)
		}
		if !slices.Contains(said, "would give topic "+s.flows+" 5 partitions instead of 2") {
			t.Errorf("the plan is %q", said)
		}
		s = make(5)
		if err := s.read(k.ctx); err != nil {
			t.Fatal(err)
		}
		if err := s.prepare(k.ctx); err != nil {
			t.Fatal(err)
		}
		// Dead here.
		d, err := newDetection(k.cfg, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if err := d.ask(k.ctx); err == nil || !strings.Contains(err.Error(), "postern kafka partitions 5") {
			t.Errorf("a detector that starts now says %v, want what is to be done", err)
		}
		_ = d.client.Close()
		for range 2 { // the second time nothing is left to do
			if err := make(5).run(k.ctx); err != nil {
				t.Fatal(err)
			}
		}
		if len(said) != 1 || !strings.Contains(said[0], "nothing is to be done") {
			t.Errorf("the second call said %q", said)
		}
	})
	if d := cmp.Diff(plain.stored.brief(), k.stored.brief()); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(plain.verdicts.verdicts, k.verdicts.verdicts); d != "" {
		t.Errorf("verdicts: %s", d)
	}
	if n := k.verdicts.verdicts[flow.ReasonDenied][flow.OutcomeAttempted]; n != switchPairs {
		t.Errorf("%d flows are judged without their other half, want %d", n, switchPairs)
	}
	partitions := map[string]bool{}
	for token := range k.stored.rowsOf {
		partitions[strings.Split(token, "/")[4]] = true
	}
	if len(partitions) != 5 {
		t.Errorf("rows came by partitions %v, want 0 to 4", slices.Sorted(maps.Keys(partitions)))
	}
}

func TestKafkaPartitionsRefuses(t *testing.T) {
	k := newSwitchRig(t, wallClock())
	refuses := func(to int, want string) {
		t.Helper()
		err := newSwitchOver(k.cfg, k.client, to, func(line string) { t.Errorf("it does something: %s", line) }).run(k.ctx)
		if err == nil || !regexp.MustCompile(want).MatchString(err.Error()) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	flows, group := k.collector.topic, k.cfg.Kafka.Group
	k.send(40001, 443, false, true, 0)
	k.detect(switchPairs, 0, func() {
		refuses(5, `has members now \(postern.*SIGTERM`)
		if err := k.client.SetPositions(k.ctx, group, kafka.Positions{flows: {0: {}}}); !errors.Is(err, kafka.ErrGroupBusy) {
			t.Errorf("a position beside a member: %v", err)
		}
	})
	refuses(1, "has 2 partitions, and Kafka cannot take partitions away")

	at, err := k.client.Positions(k.ctx, group)
	if err != nil {
		t.Fatal(err)
	}
	set := func(change func(p *kafka.Position)) {
		t.Helper()
		p := *at[flows][1]
		change(&p)
		if err := k.client.SetPositions(k.ctx, group, kafka.Positions{flows: {1: &p}}); err != nil {
			t.Fatal(err)
		}
	}
	set(func(p *kafka.Position) { p.Open = &kafka.Range{To: p.Offset + 1} })
	refuses(5, `the range of \S+/1 from offset \d+ to \d+ is open; start one detector and stop it`)
	set(func(p *kafka.Position) { p.State.Sum++ })
	refuses(5, "the checkpoint is gone.*--forget")
	s := newSwitchOver(k.cfg, k.client, 5, func(string) {})
	s.forget, s.plan = true, true
	if err := s.run(k.ctx); err != nil {
		t.Errorf("to be forgotten: %v", err)
	}
	if _, err := k.client.Kafka().OffsetCommit(k.ctx, &kgo.OffsetCommitRequest{GroupID: group, GenerationID: -1,
		Topics: map[string][]kgo.OffsetCommit{flows: {{Partition: 1, Offset: 0}}}}); err != nil {
		t.Fatal(err)
	}
	refuses(5, `somebody set the offset of group \S+ on \S+/1`)

	for _, n := range []string{"0", "1001", "many"} {
		if _, _, err := command(t, "kafka", "partitions", n); err == nil || !strings.Contains(err.Error(), "between 1 and 1000") {
			t.Errorf("%s partitions: %v", n, err)
		}
	}
}
