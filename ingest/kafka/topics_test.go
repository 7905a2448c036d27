package kafka

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func setting(t *testing.T, s TopicSpec, key string) string {
	t.Helper()
	value, n := "", 0
	for _, c := range s.Config {
		if c.Key == key {
			value = c.Value
			n++
		}
	}
	if n > 1 {
		t.Errorf("%s sets %s %d times", s.Name, key, n)
	}
	return value
}

func TestPlan(t *testing.T) {
	cfg := testConfig()
	cfg.Prefix, cfg.Partitions, cfg.Replication, cfg.Retention = "net", 6, 3, 36*time.Hour
	var got []string
	for _, s := range Plan(cfg) {
		if s.Why == "" || s.Replication != 3 || setting(t, s, "min.insync.replicas") != "2" || setting(t, s, "max.message.bytes") != "1048649" {
			t.Errorf("%+v", s)
		}
		got = append(got, fmt.Sprintf("%s %d %s %s %s", s.Name, s.Partitions, setting(t, s, "cleanup.policy"), setting(t, s, "retention.ms"), setting(t, s, "min.compaction.lag.ms")))
	}
	want := `net.flows 6 delete 129600000 
net.edges 1 delete 129600000 
net.findings 6 delete 604800000 
net.state 6 compact  3600000
net.policy 1 compact  
net.facts 1 compact  129600000
net.dead 1 delete 1209600000 `
	if s := strings.Join(got, "\n"); s != want {
		t.Errorf("got\n%s\nwant\n%s", s, want)
	}
	cfg.Replication = 1
	if v := setting(t, Plan(cfg)[0], "min.insync.replicas"); v != "1" {
		t.Errorf("with one replica, %s must be in sync", v)
	}
}

func TestTopicSpecString(t *testing.T) {
	s := TopicSpec{Name: "postern.policy", Partitions: 1, Replication: 3, Why: "Because.", Config: []TopicSetting{{"cleanup.policy", "compact"}, {"segment.bytes", "1"}}}
	want := "postern.policy: 1 partition, 3 replicas\n    Because.\n    cleanup.policy=compact\n    segment.bytes=1\n"
	if got := s.String(); got != want {
		t.Errorf("got\n%s", got)
	}
	want = "kafka-topics.sh --bootstrap-server b:9092 --create --topic postern.policy --partitions 1 --replication-factor 3 --config cleanup.policy=compact --config segment.bytes=1"
	if got := s.Command("b:9092"); got != want {
		t.Errorf("got %s", got)
	}
}
