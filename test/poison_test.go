package test

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/ingest/kafka"
	"github.com/postern/postern/test/broker"
)

// letter is a dead letter as `postern kafka dead show` prints it.
type letter struct {
	Letter    int64
	Topic     string
	Partition int
	Offset    int64
	Reason    string
	Key       []byte
	Value     []byte
}

// letters are the dead letters that `postern kafka dead list` has, each in full.
func (s *server) letters() (out []letter) {
	s.t.Helper()
	args := []string{"kafka", "dead", "show", "-c", s.config}
	for line := range strings.Lines(run(s.t, "kafka", "dead", "list", "-c", s.config)) {
		if cells := strings.Split(line, "│"); len(cells) > 1 {
			if n := strings.TrimSpace(cells[1]); n != "letter" {
				args = append(args, n)
			}
		}
	}
	if len(args) == 5 {
		return nil
	}
	for dec := json.NewDecoder(strings.NewReader(run(s.t, args...))); dec.More(); {
		var l letter
		if err := dec.Decode(&l); err != nil {
			s.t.Fatal(err)
		}
		out = append(out, l)
	}
	return out
}

// TestPoison puts values that cannot be read on goflow2's topic and on ours, between
// flows: each is kept as a dead letter, once, the flows are stored, and a value that is
// put back is kept again (THREATS 30).
func TestPoison(t *testing.T) {
	b := broker.Shared(t)
	d := newDeployment(t, []string{b.Addr()}, b.Topic(t, "poison"), crashPolicy)
	d.kafka.Partitions = 1 // so that one value stands behind the other
	theirs, ours := b.CreateTopic(t, "poison-values", 1), d.kafka.Topic(kafka.TopicFlows)
	s := d.role("detect", settings{})
	s.amend("kafka: {linger:", fmt.Sprintf("kafka: {topics: [{topic: %s, format: goflow2-json}], linger:", theirs))
	run(t, "kafka", "init", "-c", s.config)
	s.start()
	c := d.client()
	put := func(topic string, m kafka.Message) int64 {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		offset, err := c.Produce(ctx, topic, 0, m)
		if err != nil {
			t.Fatal(err)
		}
		return offset
	}
	rows := 0
	send := func() {
		t.Helper()
		now := time.Now().UnixNano()
		put(theirs, kafka.Message{Value: fmt.Appendf(nil, `{"type":"NETFLOW_V5","time_received_ns":%d,"time_flow_start_ns":%d,"time_flow_end_ns":%d,"bytes":%d,`+
			`"packets":3,"src_addr":"10.50.0.1","dst_addr":"10.20.0.1","proto":"TCP","src_port":40000,"dst_port":443,"sampler_address":"192.0.2.1"}`, now, now, now, 100+rows)})
		rows++
		s.until("the flow to be stored", 30*time.Second, func() bool { return s.number("SELECT count() FROM flows") >= rows })
	}
	send()

	// A value that is ours, to be broken in several ways.
	var good []byte
	d.read(c, ours, func(_ int, r *kafka.Record) { good = r.Value })
	broken := func(change func([]byte) []byte) []byte { return change(append([]byte(nil), good...)) }
	var want []letter
	for i, p := range []struct {
		topic string
		value []byte
	}{
		{theirs, []byte("this is no JSON")},
		{theirs, []byte(`{"src_addr": "10.50.0.1", "dst_`)},
		{theirs, []byte(`{}`)},
		{theirs, nil},
		{theirs, good},
		{ours, []byte("this is no batch of flows")},
		{ours, broken(func(b []byte) []byte { return b[:len(b)/2] })},
		{ours, broken(func(b []byte) []byte { b[len(b)-3] ^= 0x40; return b })},
		{ours, []byte{}},
	} {
		l := letter{Letter: int64(i), Topic: p.topic, Key: fmt.Appendf(nil, "key %d", i), Value: p.value}
		l.Offset = put(p.topic, kafka.Message{Key: l.Key, Value: l.Value})
		want = append(want, l)
		s.until("the value to be kept as a dead letter", 30*time.Second, func() bool { return len(s.letters()) > i })
		send()
	}
	compare := func(want []letter) {
		t.Helper()
		got := s.letters()
		for i := range got {
			if got[i].Reason == "" {
				t.Errorf("letter %d has no reason", i)
			}
			got[i].Reason = ""
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("dead letters (-want +got):\n%s", diff)
		}
	}
	compare(want)

	// Put back as it was, one of each topic, a value stands behind the flows that came
	// meanwhile, is still not to be read, and harms nobody.
	for _, i := range []int{0, 6} {
		out := run(t, "kafka", "dead", "replay", "-c", s.config, strconv.Itoa(i))
		if !strings.Contains(out, "replayed: 1") {
			t.Errorf("replay said %q", out)
		}
		s.until("the value to be kept once more", 30*time.Second, func() bool { return len(s.letters()) > len(want) })
		again := want[i]
		again.Letter = int64(len(want))
		_, next, err := c.Offsets(context.Background(), again.Topic, 0)
		if err != nil {
			t.Fatal(err)
		}
		again.Offset = next - 1
		want = append(want, again)
		send()
	}
	compare(want)

	// A value of ours that was read before is recognised when it is put back.
	put(ours, kafka.Message{Value: good})
	s.until("the value to be recognised", 30*time.Second, func() bool { return s.metric("postern_kafka_duplicate_values_total") == 1 })
	send()
	if n := s.number("SELECT count() FROM flows"); n != rows {
		t.Errorf("%d rows are stored, %d flows were sent", n, rows)
	}
	if n := s.metric("postern_kafka_dead_letters_total"); int(n) != len(want) {
		t.Errorf("the metric counts %v dead letters, there are %d", n, len(want))
	}
	if r := s.ledger().Records; r.Written != uint64(rows) || r.Rejected.Sum() != 0 || r.Duplicate != 1 {
		t.Errorf("the ledger has %+v of %d flows", r, rows)
	}
	s.stop()
}
