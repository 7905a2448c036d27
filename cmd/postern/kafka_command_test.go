package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	kgo "github.com/segmentio/kafka-go"

	"github.com/postern/postern/ingest/kafka"
	"github.com/postern/postern/test/broker"
)

// kafkaFile is a configuration file for a cluster; extra are further keys below kafka.
func kafkaFile(t *testing.T, cfg kafka.Config, extra string) string {
	t.Helper()
	return writeFile(t, filepath.Join(t.TempDir(), "postern.yaml"), fmt.Sprintf(
		"kafka:\n  brokers: [%q]\n  prefix: %s\n  partitions: %d\n  replication: 1\n%s", cfg.Brokers[0], cfg.Prefix, cfg.Partitions, extra))
}

// kafkaClient is a cluster's configuration and a client of it.
func kafkaClient(t *testing.T, b *broker.Broker, prefix string) (kafka.Config, *kafka.Client) {
	t.Helper()
	cfg := kafka.DefaultConfig()
	cfg.Brokers, cfg.Prefix, cfg.Partitions, cfg.Replication = []string{b.Addr()}, b.Topic(t, prefix), 2, 1
	client, err := kafka.Open(cfg, nil, kafka.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return cfg, client
}

func TestKafkaInit(t *testing.T) {
	cfg, client := kafkaClient(t, broker.Shared(t), "init")
	topics := kafka.Plan(cfg)
	init := func(file string, flags ...string) string {
		t.Helper()
		out, _, err := command(t, append([]string{"kafka", "init", "-c", file}, flags...)...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	says := func(out, what string, n int) {
		t.Helper()
		if got := strings.Count(out, what); got != n {
			t.Errorf("%q is there %d times, want %d:\n%s", what, got, n, out)
		}
	}
	file := kafkaFile(t, cfg, "")
	out := init(file, "--plan")
	says(out, ": would be created\n", len(topics))
	for _, topic := range topics {
		says(out, topic.String(), 1)
	}
	says(init(file, "--commands"), "kafka-topics.sh --bootstrap-server "+cfg.Brokers[0]+" --create --topic "+cfg.Prefix, len(topics))
	if missing, err := client.Missing(t.Context(), topics, func(string) {}); err != nil || len(missing) != len(topics) {
		t.Fatalf("a plan and commands left %d topics to create: %v", len(missing), err)
	}
	says(init(file), ": created with ", len(topics))
	says(init(file), ": exists, as planned\n", len(topics))
	says(init(file, "--plan"), ": exists, as planned\n", len(topics))
	cfg.Partitions = 3
	out = init(kafkaFile(t, cfg, ""))
	says(out, ": exists and is left as it is, with 2 partitions instead of 3\n", 3)
}

// TestKafkaWithoutBroker: the plan needs no cluster, and what does says which it missed.
func TestKafkaWithoutBroker(t *testing.T) {
	cfg := kafka.DefaultConfig()
	cfg.Brokers = []string{"127.0.0.1:9"}
	file := kafkaFile(t, cfg, "")
	out, diag, err := command(t, "kafka", "init", "--plan", "-c", file)
	if err != nil || !strings.Contains(out, "postern.flows: 12 partitions") || !strings.Contains(diag, "not known") {
		t.Errorf("plan: %v\n%s%s", err, out, diag)
	}
	for _, args := range [][]string{{"init"}, {"dead", "list"}, {"dead", "show", "1"}, {"dead", "replay", "--all"}} {
		args = append(append([]string{"kafka"}, args...), "-c", file)
		if _, _, err := command(t, args...); err == nil || !strings.Contains(err.Error(), cfg.Brokers[0]) {
			t.Errorf("%v: %v", args, err)
		}
	}
	if _, _, err := command(t, "kafka", "init"); !errors.Is(err, errNoKafka) {
		t.Errorf("without brokers: %v", err)
	}
	bad := kafkaFile(t, cfg, "  tls: {enabled: true, ca: /nowhere/ca.pem}\n")
	if _, _, err := command(t, "kafka", "init", "-c", bad); err == nil || !strings.HasPrefix(err.Error(), "kafka.tls.ca: ") {
		t.Errorf("a certificate that is not there: %v", err)
	}
}

func TestKafkaDead(t *testing.T) {
	cfg, client := kafkaClient(t, broker.Shared(t), "dead")
	if err := client.Apply(t.Context(), kafka.Plan(cfg), func(string) {}); err != nil {
		t.Fatal(err)
	}
	file := kafkaFile(t, cfg, "")
	dead := func(args ...string) (string, string, error) {
		t.Helper()
		return command(t, append([]string{"kafka", "dead", "-c", file}, args...)...)
	}
	if out, _, err := dead("list"); err != nil || strings.Count(out, "\n") != 4 {
		t.Errorf("none: %v\n%s", err, out)
	}
	flows := cfg.Topic(kafka.TopicFlows)
	letter := kafka.DeadLetter{Topic: flows, Partition: 1, Offset: 7, Time: time.UnixMilli(1_700_000_000_000), Key: []byte("k"), Value: []byte{0xff, 0, 1},
		Headers: []kgo.Header{{Key: "h", Value: []byte("v")}}, Reason: "odd \x1b[31mbytes"}
	cut := letter
	cut.Offset, cut.Cut, cut.Time = 8, 1, time.Time{}
	for _, d := range []kafka.DeadLetter{letter, letter, cut} { // the second as after a range that was worked on again
		if err := client.PutDead(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}

	out, _, err := dead("list")
	if err != nil || strings.Count(out, flows) != 3 || strings.Count(out, "2023-11-14T22:13:20Z") != 2 || strings.Count(out, "odd \ufffd[31mbytes") != 3 || strings.Contains(out, "--from") {
		t.Errorf("list: %v\n%s", err, out)
	}
	out, _, err = dead("list", "--from", "1", "--limit", "1")
	if err != nil || strings.Count(out, flows) != 1 || !strings.HasSuffix(out, "go on with --from 2\n") {
		t.Errorf("list of one: %v\n%s", err, out)
	}
	out, _, err = dead("show", "0")
	if err != nil || !strings.Contains(out, `"value": "/wAB"`) {
		t.Errorf("show: %v\n%s", err, out)
	}
	var shown shownLetter
	if err := json.Unmarshal([]byte(out), &shown); err != nil {
		t.Fatal(err)
	}
	want := shownLetter{Topic: flows, Partition: 1, Offset: 7, Time: letter.Time.UTC(), Reason: letter.Reason, Key: letter.Key, Value: letter.Value, Headers: []shownHeader{{"h", []byte("v")}}}
	if diff := cmp.Diff(want, shown); diff != "" {
		t.Error(diff)
	}

	out, _, err = dead("replay", "1")
	if err != nil || !strings.Contains(out, "letter 1: offset 7 of "+flows+"/1 is offset 0 now\nreplayed: 1\n") {
		t.Errorf("replay of one: %v\n%s", err, out)
	}
	out, diag, err := dead("replay", "--all")
	if err == nil || !strings.Contains(err.Error(), "could not be replayed: 1") || !strings.HasSuffix(out, "replayed: 1\n") || !strings.Contains(diag, "letter 2: ") {
		t.Errorf("replay of all: %v\n%s%s", err, out, diag)
	}
	got, err := client.Fetch(t.Context(), flows, 1, 0, 1<<20, time.Second)
	if err != nil || len(got.Records) != 2 {
		t.Fatalf("%d values were put back, %v", len(got.Records), err)
	}
	for _, r := range got.Records {
		if !r.Replayed() {
			t.Error("what was put back does not say so")
		}
		r.Headers = r.Headers[:len(letter.Headers)] // behind them is what says so
		if diff := cmp.Diff(kafka.Record{Offset: r.Offset, Time: r.Time, Key: letter.Key, Value: letter.Value, Headers: letter.Headers}, r); diff != "" || !r.Time.Equal(letter.Time) {
			t.Errorf("time %v\n%s", r.Time, diff)
		}
	}
	for _, wrong := range []struct {
		args []string
		want string
	}{
		{[]string{"replay"}, "--all"},
		{[]string{"replay", "0", "--all"}, "--all"},
		{[]string{"replay", "first"}, `"first" is no letter`},
		{[]string{"show", "-1"}, "shorthand"},
		{[]string{"show", "99"}, "no dead letter at offset 99"},
		{[]string{"list", "--limit", "0"}, "at least 1"},
	} {
		if _, _, err := dead(wrong.args...); err == nil || !strings.Contains(err.Error(), wrong.want) {
			t.Errorf("%v: %v, want %q", wrong.args, err, wrong.want)
		}
	}
}
