package test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/exporter"
	"github.com/postern/postern/test/broker"
)

// numbered is exporters that send numbered flows: mostly what policy allows, each
// fiftieth denied. A flow's two directions count 2n and 2n+1 bytes, so that each row can
// be told from all others.
type numbered struct {
	t       testing.TB
	devices []*device
	number  uint64
	ids     map[uint64]bool // of the rows that what was sent makes
}

func newNumbered(t testing.TB, target string) *numbered {
	t.Helper()
	tr := &numbered{t: t, ids: map[uint64]bool{}}
	for i, cfg := range []exporter.Config{
		{Protocol: flow.SourceNetFlowV9, Domain: 1},
		{Protocol: flow.SourceIPFIX, Domain: 2, Biflow: true, BiflowDirection: true},
		{Protocol: flow.SourceNetFlowV9, Domain: 3},
	} {
		cfg.TemplatePackets = 5
		tr.devices = append(tr.devices, newDevice(t, fmt.Sprintf("127.0.0.%d", 2+i), target, cfg))
	}
	return tr
}

// Flows of which one is denied, and pairs of hosts that the denied ones are between.
const (
	deniedEach  = 50
	deniedPairs = 24
)

// send exports n flows, of one exporter.
func (tr *numbered) send(n int) {
	tr.t.Helper()
	d := tr.devices[tr.number/uint64(n)%uint64(len(tr.devices))]
	now := time.Now()
	var list []flow.Record
	for range n {
		tr.number++
		k := tr.number
		r := session(now, fmt.Sprintf("10.50.0.%d", k%200), fmt.Sprintf("10.20.0.%d", k%5), uint16(1024+k%60000), 443)
		r.BytesRaw, r.RevBytesRaw = 2*k, 2*k+1
		if pair := k / deniedEach % deniedPairs; k%deniedEach == 0 {
			r.Src, r.Dst = flow.AddrFrom4(0x0a320000+uint32(pair)), flow.AddrFrom4(0x0a320100+uint32(pair))
			r.DstPort = 3389
		}
		tr.ids[2*k] = true
		if d != tr.devices[1] { // IPFIX tells both directions in one record
			tr.ids[2*k+1] = true
		}
		list = append(list, r)
	}
	d.export(list...)
}

// sent is how many datagrams went out.
func (tr *numbered) sent() (n uint64) {
	for _, d := range tr.devices {
		n += d.send.Sent()
	}
	return n
}

// compare holds the rows in ClickHouse against what was sent.
func (tr *numbered) compare(s *server) (missing, doubled int) {
	tr.t.Helper()
	stored := map[uint64]int{}
	for _, row := range s.query("SELECT bytes, count() AS n FROM flows GROUP BY bytes") {
		stored[uint64(row["bytes"].(float64))] = int(row["n"].(float64))
	}
	var examples []uint64
	for id := range tr.ids {
		if stored[id] == 0 {
			missing++
		}
	}
	for id, n := range stored {
		if n > 1 || !tr.ids[id] {
			doubled += n
			if tr.ids[id] {
				doubled--
			}
			examples = append(examples, id)
		}
	}
	if missing+doubled > 0 {
		tr.t.Errorf("of %d rows that were sent %d are missing and %d too many are stored, such as %d", len(tr.ids), missing, doubled, examples[:min(len(examples), 10)])
	}
	return missing, doubled
}

// TestCollectDetectForward takes flows from real datagrams through collect, the broker,
// two detectors, ClickHouse and forward to a receiver, and holds what arrives against
// what was sent and against what one process makes of the same datagrams.
func TestCollectDetectForward(t *testing.T) {
	b := broker.Shared(t)
	d := newDeployment(t, []string{b.Addr()}, b.Topic(t, "chain"), crashPolicy)
	const lateness = 20 * time.Second // nothing may be late: one process sees the flows sooner than the other two
	hook := newReceiver(t)
	collector := d.role("collect", settings{})
	run(t, "kafka", "init", "-c", collector.config)
	collector.start()
	detectors := []*server{d.role("detect", settings{extra: quickSessions(lateness)}), d.role("detect", settings{extra: quickSessions(lateness)})}
	for _, s := range detectors {
		s.launch()
	}
	forward := d.role("forward", settings{extra: hook.section()})
	forward.launch()
	alone := d.role("serve", settings{database: d.database + "_alone", extra: quickSessions(lateness)})
	alone.start()
	for _, s := range detectors {
		s.until("each detector to have partitions", 90*time.Second, func() bool { return s.partitions() == 2 })
	}

	tr, copied := newNumbered(t, collector.udp), newNumbered(t, alone.udp)
	for i, x := range tr.devices {
		x.also = copied.devices[i].send
	}
	for range 200 {
		tr.send(100)
	}
	rows := uint64(len(tr.ids))
	collected := collector.arrived(tr.devices...)
	if collected.Records.Decoded != rows || collected.Records.Written != rows || collected.Datagrams.Decoded != tr.sent() {
		t.Errorf("the collector has %+v of %d datagrams with %d records", collected, tr.sent(), rows)
	}
	all, distinct := d.topicFlows(d.client())
	if all != rows || distinct != rows {
		t.Errorf("%d records on the flows topic, %d without repetitions; %d were collected", all, distinct, rows)
	}
	var judged flow.Account
	collector.until("the detectors to have stored everything", 90*time.Second, func() (done bool) {
		var err error
		judged, err = stockOf(detectors)
		return err == nil && judged.Records.Written >= rows && judged.Records.InFlight == 0
	})
	if r := judged.Records; r.Decoded != all || r.Decoded != r.Written+r.Duplicate+r.Rejected.Sum() {
		t.Errorf("%d records on the topic, the detectors have %+v", all, r)
	}
	for i, s := range detectors {
		if s.ledger().Records.Written == 0 {
			t.Errorf("detector %d got no work", i)
		}
	}
	tr.compare(collector)

	// As one process has it.
	alone.arrived(copied.devices...)
	const verdicts = "SELECT reason, outcome, count() AS n, sum(bytes) AS bytes FROM flows GROUP BY ALL ORDER BY ALL"
	if diff := cmp.Diff(alone.query(verdicts), collector.query(verdicts)); diff != "" {
		t.Errorf("verdicts differ (-serve +detect):\n%s", diff)
	}
	const findings = "SELECT id, type, client, server, service, count, first_seen, last_seen, severity FROM findings ORDER BY id"
	if diff := cmp.Diff(alone.query(findings), collector.query(findings)); diff != "" {
		t.Errorf("findings differ (-serve +detect):\n%s", diff)
	}
	if n, of := collector.edgesAgree(lateness, int(tr.number)), alone.edgesAgree(lateness, int(tr.number)); n != of || n != int(tr.number) {
		t.Errorf("%d sessions are counted, by one process %d; %d were sent", n, of, tr.number)
	}
	if diff := cmp.Diff(alone.query(rolledUp+" ORDER BY ALL"), collector.query(rolledUp+" ORDER BY ALL")); diff != "" {
		t.Errorf("the roll-ups differ (-serve +detect):\n%s", diff)
	}
	if n := collector.number("SELECT count() FROM findings"); n != deniedPairs {
		t.Errorf("%d findings, want %d", n, deniedPairs)
	}

	d.told(hook, collector)
	compareFindings(t, collector, hook)
	forward.stop()
	for _, s := range detectors {
		s.stop()
	}
	collector.stop()
}
