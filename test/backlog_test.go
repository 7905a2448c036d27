package test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/exporter"
	"github.com/postern/postern/test/broker"
)

// TestBacklog has detectors come when flows have waited in Kafka for longer than halves
// of a conversation wait for each other, and read them in ranges that part such halves: what
// is found is what one process found while they came (THREATS 29).
func TestBacklog(t *testing.T) {
	b := broker.Shared(t)
	d := newDeployment(t, []string{b.Addr()}, b.Topic(t, "backlog"), crashPolicy)
	d.kafka.Partitions = 1
	collector, alone := d.role("collect", settings{}), d.role("serve", settings{database: d.database + "_alone"})
	run(t, "kafka", "init", "-c", collector.config)
	collector.start()
	alone.start()
	x := newDevice(t, "127.0.0.2", collector.udp, exporter.Config{Protocol: flow.SourceNetFlowV9, TemplatePackets: 5})
	x.also = newDevice(t, "127.0.0.2", alone.udp, exporter.Config{Protocol: flow.SourceNetFlowV9}).send

	// Denied, and of UDP only the other half says that it got through.
	now, bytes := time.Now(), uint64(100)
	half := func(client, server string, cport, sport uint16) flow.Record {
		bytes++
		r := session(now, client, server, cport, sport)
		r.Proto, r.BytesRaw = flow.ProtoUDP, bytes
		r.Has &^= flow.HasTCPFlags | flow.HasRevBytes | flow.HasRevPackets | flow.HasRevTCPFlags
		return r
	}
	const conversations = 50
	var asked, answered []flow.Record
	for i := range uint16(conversations) {
		client := fmt.Sprintf("10.50.0.%d", i%10)
		asked = append(asked, half(client, "10.20.0.1", 40000+i, 161))
		answered = append(answered, half("10.20.0.1", client, 161, 40000+i))
	}
	x.export(asked...)
	// What does not compress, more than a range holds.
	rng := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		var list []flow.Record
		for range 100 {
			r := half("192.168.0.1", "192.168.0.2", uint16(rng.Uint32()), 443)
			r.Src, r.Dst = flow.AddrFrom4(0xc0a80000|rng.Uint32()&0xffff), flow.AddrFrom4(0xc0a80000|rng.Uint32()&0xffff)
			r.PacketsRaw = uint64(1 + rng.IntN(1<<20))
			list = append(list, r)
		}
		x.export(list...)
	}
	x.export(answered...)
	const rows = 2*conversations + 100*100
	for _, s := range []*server{collector, alone} {
		s.until("all flows to have come through", 60*time.Second, func() bool {
			r := s.ledger().Records
			return r.Written == rows && r.InFlight == 0
		})
	}

	detector := d.role("detect", settings{})
	detector.start()
	detector.until("all rows", 60*time.Second, func() bool { return detector.number("SELECT count() FROM flows") >= rows })
	if n := detector.number("SELECT count(DISTINCT inserted_at) FROM flows"); n < 2 {
		t.Errorf("what waited was read in %d range; the test tests nothing", n)
	}
	const verdicts = "SELECT bytes, client, server, service, oriented, reason, outcome, other_half FROM flows WHERE service = 'udp/161' ORDER BY bytes"
	if diff := cmp.Diff(alone.query(verdicts), detector.query(verdicts)); diff != "" {
		t.Errorf("verdicts differ (-serve +detect):\n%s", tail(diff, 2000))
	}
	const findings = "SELECT id, type, client, server, service, count, first_seen, last_seen, severity, outcome FROM findings ORDER BY id"
	if diff := cmp.Diff(alone.query(findings), detector.query(findings)); diff != "" {
		t.Errorf("findings differ (-serve +detect):\n%s", tail(diff, 2000))
	}
	if n := detector.number("SELECT count() FROM findings"); n != 10 {
		t.Errorf("%d findings, want 10", n)
	}
}
