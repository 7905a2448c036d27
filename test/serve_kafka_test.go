package test

import (
	"fmt"
	"testing"
	"time"

	"github.com/postern/postern/test/broker"
)

// TestServeThroughKafka: one process that is every role, beside a detector that joins it
// and leaves, and a restart.
func TestServeThroughKafka(t *testing.T) {
	b := broker.Shared(t)
	d := newDeployment(t, []string{b.Addr()}, b.Topic(t, "serve"), crashPolicy)
	hook := newReceiver(t)
	s := d.role("serve", settings{extra: hook.section() + fmt.Sprintf("kafka: {brokers: [%q], prefix: %s, group: %s, partitions: 4, replication: 1}\n",
		b.Addr(), d.kafka.Prefix, d.kafka.Group)})
	run(t, "kafka", "init", "-c", s.config)
	s.start()
	tr := newNumbered(t, s.udp)
	stored := func() {
		t.Helper()
		s.until("everything to be stored", 60*time.Second, func() bool {
			return s.number("SELECT count() FROM flows") >= len(tr.ids)
		})
	}
	for range 20 {
		tr.send(100)
	}
	stored()
	other := d.role("detect", settings{})
	other.launch()
	s.until("the detector to share the work", 60*time.Second, func() bool { return other.partitions() == 2 })
	for range 20 {
		tr.send(100)
	}
	stored()
	total := s.ledger()
	if total.Datagrams.Received != tr.sent() || total.Datagrams.Decoded != tr.sent() {
		t.Errorf("%d datagrams were sent, the ledger has %+v", tr.sent(), total.Datagrams)
	}
	if got := total.Records.Written + other.ledger().Records.Written; got != uint64(len(tr.ids)) {
		t.Errorf("%d rows were sent, the ledgers have %d", len(tr.ids), got)
	}
	for _, role := range []string{"collect", "detect", "forward"} {
		if s.metric("go_goroutines", fmt.Sprintf("role=%q", role)) == 0 {
			t.Errorf("the metrics have nothing of %s", role)
		}
	}
	other.stop()
	s.stop()
	s.start()
	for range 20 {
		tr.send(100)
	}
	stored()
	tr.compare(s)
	d.told(hook, s)
	compareFindings(t, s, hook)
	s.stop()
}
