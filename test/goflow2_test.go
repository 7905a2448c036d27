package test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	kgo "github.com/segmentio/kafka-go"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/exporter"
	"github.com/postern/postern/ingest/kafka"
	"github.com/postern/postern/test/broker"
)

// goflow2Binary builds goflow2 as its module has it, once a test process, and gives its path.
var goflow2Binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "goflow2-test-")
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-modfile=tools/go.mod", "-o", dir, "github.com/netsampler/goflow2/v2/cmd/goflow2")
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building goflow2: %w\n%s", err, out)
	}
	return filepath.Join(dir, "goflow2"), nil
})

// startGoflow2 runs goflow2 until the test is over and gives the address that it takes
// datagrams at. It has one worker, because several would take a datagram before the one
// with its template.
func startGoflow2(t testing.TB, kafkaAddr, topic, format string) string {
	t.Helper()
	path, err := goflow2Binary()
	if err != nil {
		t.Fatal(err)
	}
	udp, web := freePort(t, "udp"), freePort(t, "tcp")
	cmd := exec.Command(path, "-listen", "flow://"+udp+"?workers=1", "-addr", web, "-format", format,
		"-transport", "kafka", "-transport.kafka.brokers", kafkaAddr, "-transport.kafka.topic", topic, "-transport.kafka.flushfreq", "100ms")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself; Wait tells
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Errorf("goflow2 ended with %v and said:\n%s", err, tail(log.String(), 4000))
		}
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		resp, err := http.Get("http://" + web + "/__health")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return udp
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("goflow2 is not ready: %v", err)
		}
	}
}

// goflowPolicy has a reason for every kind of conversation that the observers tell of.
func goflowPolicy(now time.Time) string {
	at := func(d time.Duration) string { return now.Add(d).UTC().Format(time.RFC3339) }
	exception := func(id, to, services string, notBefore, expires time.Duration) string {
		return fmt.Sprintf(`  - id: %s
    class: migration
    from: {segment: vendors}
    to: {workload: %s}
    services: [%s]
    ticket: CHG-1
    owner: team
    reason: a move
    requested: {by: ana, at: %s}
    approved: [{by: raj, role: segment-owner, at: %s}]
    notBefore: %s
    expires: %s
`, id, to, services, at(-50*time.Hour), at(-49*time.Hour), at(notBefore), at(expires))
	}
	return `
postern: v1
segments:
  - {name: office, zone: office, prefixes: [10.50.0.0/16, "2001:db8:50::/64"], stage: enforced, default: {in: deny, out: allow}}
  - {name: servers, zone: core, tier: high, prefixes: [10.20.0.0/16, "2001:db8:20::/64"], stage: enforced, default: {in: deny, out: allow}}
  - {name: vendors, zone: vendor, prefixes: [10.60.0.0/16], stage: enforced, default: {in: deny, out: deny}}
  - {name: printers, zone: devices, prefixes: [10.80.0.0/16], stage: staged, default: {in: deny, out: deny}}
workloads:
  - {name: web-1, app: shop, role: web, env: prod, addresses: [10.20.0.5, "2001:db8:20::5"]}
  - {name: db-1, app: shop, role: database, env: prod, addresses: [10.20.0.6]}
rules:
  - {id: office-to-web, action: allow, from: {zone: office}, to: {app: shop, role: web}, services: [tcp/443, udp/53, icmp/echo], owner: team, reason: the shop}
  - {id: no-office-east-west, action: deny, from: {zone: office}, to: {zone: office}, services: [tcp/3389, tcp/445], owner: team, reason: workstations}
exceptions:
` + exception("EX-EXPIRED", "web-1", "tcp/443", -48*time.Hour, -24*time.Hour) +
		exception("EX-VALID", "db-1", "tcp/5432", -48*time.Hour, 48*time.Hour) +
		exception("EX-ENDED", "db-1", "tcp/8443", -48*time.Hour, -10*time.Minute)
}

// observers are exporters of every protocol that tell of the same kinds of conversations,
// each of clients of its own.
type observers struct {
	devices []*device
	number  uint64 // of the last record; each carries its own as its byte count
	rows    int    // that what was sent makes
}

// observed is what the observers are, in the order of their addresses, 127.0.0.2 and on.
var observed = []exporter.Config{
	{Protocol: flow.SourceNetFlowV5, Domain: 258},
	{Protocol: flow.SourceNetFlowV9, Domain: 2, TemplatePackets: 5},
	{Protocol: flow.SourceIPFIX, Domain: 3, TemplatePackets: 5, Rich: true, Names: flow.NewNames(0)},
	{Protocol: flow.SourceIPFIX, Domain: 4, TemplatePackets: 5, Biflow: true, BiflowDirection: true},
	{Protocol: flow.SourceSFlowV5, Domain: 5, SamplingRate: 100},
}

// newObservers sends everything to target, and once more to two ports, one for NetFlow and
// one for sFlow.
func newObservers(t testing.TB, target, alsoNetFlow, alsoSFlow string) *observers {
	t.Helper()
	o := &observers{number: 100}
	for i, cfg := range observed {
		source, also := fmt.Sprintf("127.0.0.%d", 2+i), alsoNetFlow
		cfg.Agent = flow.MustParseAddr(source)
		if cfg.Protocol == flow.SourceSFlowV5 {
			also = alsoSFlow
		}
		d := newDevice(t, source, target, cfg)
		d.also = newDevice(t, source, also, cfg).send
		o.devices = append(o.devices, d)
	}
	return o
}

// send has each observer tell of so many rounds of conversations, of every kind one a round.
func (o *observers) send(rounds int) {
	for i, d := range o.devices {
		for range rounds {
			list := o.conversations(i)
			d.export(list...)
			for _, r := range list {
				o.rows++
				if r.Biflow() && !observed[i].Biflow {
					o.rows++
				}
			}
		}
	}
}

// conversations is one of every kind, seen by observer i.
func (o *observers) conversations(i int) []flow.Record {
	now := time.Now()
	var out []flow.Record
	add := func(client, server string, cport, sport uint16, change ...func(*flow.Record)) {
		o.number++
		r := session(now, fmt.Sprintf(client, i, o.number%7), server, cport, sport)
		r.BytesRaw, r.RevBytesRaw, r.InIf, r.OutIf = 2*o.number, 2*o.number+1, 3, 4
		r.Has |= flow.HasInIf | flow.HasOutIf
		if observed[i].Protocol == flow.SourceSFlowV5 {
			r.PacketsRaw, r.RevPacketsRaw = 1, 1 // each packet is a sample
		}
		for _, c := range change {
			c(&r)
		}
		out = append(out, r)
	}
	proto := func(p uint8) func(*flow.Record) {
		return func(r *flow.Record) {
			r.Proto, r.TCPFlags, r.RevTCPFlags = p, 0, 0
			r.Has &^= flow.HasTCPFlags | flow.HasRevTCPFlags
		}
	}
	lone := func(r *flow.Record) { // nobody answered
		r.TCPFlags, r.PacketsRaw = flow.SYN, 1
		r.Has &^= flow.HasRevBytes | flow.HasRevPackets | flow.HasRevTCPFlags
	}
	oneWay := func(r *flow.Record) { r.Has &^= flow.HasRevBytes | flow.HasRevPackets | flow.HasRevTCPFlags }
	forwarding := func(status, event uint8) func(*flow.Record) {
		return func(r *flow.Record) {
			r.ForwardingStatus, r.FirewallEvent = status, event
			r.Has |= flow.HasForwardingStatus | flow.HasFirewallEvent
		}
	}
	port := uint16(40000 + o.number%20000)
	const office, vendor = "10.50.%d.%d", "10.60.%d.%d"
	add(office, "10.20.0.5", port, 443)
	add(office, "10.20.0.5", port, 53, proto(flow.ProtoUDP))
	add(office, "10.50.200.1", port, 3389)
	add(office, "10.50.200.2", port, 445, lone)
	add(office, "10.20.0.6", port, 22, forwarding(128, 0)) // dropped
	add(office, "10.20.0.6", port, 23, lone, forwarding(0, 3))
	add(office, "10.20.0.6", port, 161, proto(flow.ProtoUDP)) // that it got through is told by the other half alone
	add(vendor, "10.20.0.5", port, 443)
	add(vendor, "10.20.0.6", port, 5432)
	add(vendor, "10.20.0.6", port, 22)
	add(vendor, "10.20.0.6", port, 8443, func(r *flow.Record) { // outlives its exception
		r.Start, r.End = flow.TimeOf(now.Add(-15*time.Minute)), flow.TimeOf(now.Add(-3*time.Minute))
	})
	add(office, "10.80.0.1", port, 9100)
	add("192.168.%d.%d", "10.90.0.1", port, 443)
	add(office, "10.20.0.5", 0, 0, proto(50), oneWay)
	ping := func(typ uint8) func(*flow.Record) {
		return func(r *flow.Record) {
			proto(flow.ProtoICMP)(r)
			oneWay(r)
			r.ICMPType, r.Has = typ, r.Has&^(flow.HasSrcPort|flow.HasDstPort)|flow.HasICMP
		}
	}
	add(office, "10.20.0.5", 0, 0, ping(8))
	add(office, "10.20.0.5", 0, 0, ping(0), func(r *flow.Record) { r.Src, r.Dst = r.Dst, r.Src })
	switch { // neither port says who serves
	case observed[i].Biflow:
		add(office, "10.20.0.6", port, 50010)
	case observed[i].Protocol != flow.SourceSFlowV5: // which tells no beginning
		add(office, "10.20.0.6", port, 50010, oneWay)
		add(office, "10.20.0.6", port, 50010, oneWay, func(r *flow.Record) {
			r.Src, r.SrcPort, r.Dst, r.DstPort = r.Dst, r.DstPort, out[len(out)-1].Src, r.SrcPort
			r.Start, r.End = r.Start+20, r.End+20
		})
	}
	if observed[i].Protocol != flow.SourceNetFlowV5 {
		add("2001:db8:50::%d:%d", "2001:db8:20::5", port, 443)
		add("2001:db8:50::%d:%d", "2001:db8:20::5", port, 22)
	}
	return out
}

// goflowDeployment is a chain of goflow2, its topic, two detectors and a database, and
// a service that gets the same datagrams and has a database of its own.
type goflowDeployment struct {
	*deployment
	topic     string // goflow2's
	alone     *server
	detectors []*server
	*observers
}

const (
	goflowPartitions = 3
	pairingWindow    = 8 * time.Second
)

func newGoflowDeployment(t testing.TB, format string) *goflowDeployment {
	t.Helper()
	b := broker.Shared(t)
	g := &goflowDeployment{
		deployment: newDeployment(t, []string{b.Addr()}, b.Topic(t, "goflow2-"+format), goflowPolicy(time.Now())),
		topic:      b.CreateTopic(t, "goflow2-values", goflowPartitions),
	}
	for range 2 {
		g.detectors = append(g.detectors, g.detector(settings{}, format))
	}
	run(t, "kafka", "init", "-c", g.detectors[0].config)
	for _, s := range g.detectors {
		s.launch()
	}
	g.alone = g.role("serve", settings{database: g.database + "_alone"})
	g.alone.amend(`sflow: {listen: ""}`, fmt.Sprintf("sflow: {listen: %q}", g.alone.sflow))
	g.alone.amend("window: 2s", "window: "+pairingWindow.String())
	g.alone.start()
	udp := startGoflow2(t, b.Addr(), g.topic, map[string]string{"protobuf": "bin", "json": "json"}[format])
	g.observers = newObservers(t, udp, g.alone.udp, g.alone.sflow)
	t.Cleanup(func() {
		if t.Failed() { // where what is missing got to
			values := 0
			g.read(g.client(), g.topic, func(int, *kafka.Record) { values++ })
			all, distinct := g.topicFlows(g.client())
			t.Logf("%d rows to be stored; %d values of goflow2, %d records on the flows topic, %d without repetitions", g.rows, values, all, distinct)
		}
	})
	g.working(g.detectors...)
	return g
}

// detector makes a detector that reads goflow2's topic as well.
func (g *goflowDeployment) detector(set settings, format string) *server {
	g.t.Helper()
	s := g.role("detect", set)
	g.reconfigure(s, set, format)
	return s
}

func (g *goflowDeployment) reconfigure(s *server, set settings, format string) {
	g.t.Helper()
	g.configure(s, set)
	s.amend("kafka: {linger:", fmt.Sprintf("kafka: {topics: [{topic: %s, format: goflow2-%s}], linger:", g.topic, format))
	// Halves of a conversation come by different partitions of goflow2's topic, and one
	// may be read well before the other.
	s.amend("window: 2s", "window: "+pairingWindow.String())
}

// working waits until these detectors have all partitions of our topic and of goflow2's, and
// each some of both.
func (g *goflowDeployment) working(detectors ...*server) {
	g.t.Helper()
	detectors[0].until("each detector to have partitions of both topics", 60*time.Second, func() bool {
		ours, theirs := 0, 0
		for _, s := range detectors {
			var text string
			if s.get("/metrics", &text) != nil {
				return false
			}
			all := strings.Count(text, "\npostern_kafka_lag{")
			b := len(regexp.MustCompile(`(?m)^postern_kafka_lag{.*topic="`+regexp.QuoteMeta(g.topic)+`"}`).FindAllString(text, -1))
			if b == 0 || b == all {
				return false
			}
			ours, theirs = ours+all-b, theirs+b
		}
		return ours == g.kafka.Partitions+1 && theirs == goflowPartitions // and the one of edges
	})
}

// stored waits until both ways have stored what was sent, and have exactly that.
func (g *goflowDeployment) stored() {
	g.t.Helper()
	const rows = "SELECT count() FROM flows"
	g.alone.until("the service to have stored all rows", 60*time.Second, func() bool { return g.alone.number(rows) >= g.rows })
	g.alone.settle()
	g.alone.until("the detectors to have stored all rows", 60*time.Second, func() bool {
		_, err := stockOf(g.detectors)
		return err == nil && g.detectors[0].number(rows) >= g.rows
	})
	for _, s := range []*server{g.alone, g.detectors[0]} {
		if n := s.number(rows); n != g.rows {
			g.t.Errorf("%s stored %d rows of %d", s.role, n, g.rows)
		}
	}
}

// byKey is what a query gives, by the columns that tell a row from all others.
func (g *goflowDeployment) byKey(s *server, query string, key ...string) map[string]map[string]any {
	g.t.Helper()
	out := map[string]map[string]any{}
	for _, row := range s.query(query) {
		var name []string
		for _, k := range key {
			name = append(name, fmt.Sprint(row[k]))
		}
		id := strings.Join(name, " ")
		if out[id] != nil {
			g.t.Errorf("%s has %s twice", s.role, id)
		}
		out[id] = row
	}
	return out
}

const (
	allFlows    = "SELECT *, src_addr, dst_addr, src_port, dst_port FROM flows"
	allFindings = "SELECT * FROM findings"
)

// goflowDeviation is what the way through goflow2 may make differ, and why.
type goflowDeviation struct {
	reason  string
	from    []string // exporters; nil is all
	service string   // as the service stored it; empty is all
	columns string
	when    func(alone, chain any) bool // nil is any difference
}

// The observers by the addresses that they have as exporters.
var (
	fromV5, fromV9, fromIPFIX, fromBiflow, fromSFlow = "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5", "127.0.0.6"
)

func zeroUntold(alone, chain any) bool { return alone == 0.0 && chain == nil }

func untold(_, chain any) bool { return chain == nil || chain == "" || chain == 0.0 }

// near says whether two times are those of one datagram's receipt by two processes.
func near(alone, chain any) bool {
	a, errA := time.Parse(time.RFC3339, fmt.Sprint(alone))
	b, errB := time.Parse(time.RFC3339, fmt.Sprint(chain))
	return errA == nil && errB == nil && a.Sub(b).Abs() < 5*time.Second
}

// What hangs on who is the client.
const ofClient = "client server client_port server_port service oriented orientation_certainty swapped src_segment dst_segment src_workload dst_workload quality rule "

// What hangs on the service not being known.
const ofService = ofClient + "expected reason staged staged_reason outcome confidence missing "

var goflowDeviations = []goflowDeviation{
	{reason: "each way makes its own", columns: "record_id input inserted_at"},
	{reason: "each process has its own receipt", columns: "time_received", when: near},
	{reason: "each process has its own receipt", from: []string{fromSFlow}, columns: "time_start time_end", when: near}, // there is no other time
	{reason: "goflow2 tells the domain of v9 and IPFIX alone", from: []string{fromV5, fromSFlow}, columns: "domain", when: untold},
	{reason: "a message of goflow2 does not tell zero from nothing", from: []string{fromV9, fromIPFIX, fromBiflow},
		columns: "src_port dst_port client_port server_port tcp_flags icmp_type icmp_code forwarding_status", when: zeroUntold},
	{reason: "so an echo reply, 0/0, may be any ICMP and of any conversation of it", from: []string{fromV9, fromIPFIX, fromBiflow}, service: "icmp/0/0", columns: ofService + "conversation"},
	{reason: "goflow2 2.2.6 never tells the ICMP type of a sampled packet", from: []string{fromSFlow}, service: "icmp/0/0", columns: ofService + "icmp_type icmp_code conversation"},
	{reason: "goflow2 2.2.6 never tells the ICMP type of a sampled packet", from: []string{fromSFlow}, service: "icmp/8/0", columns: ofService + "icmp_type icmp_code conversation"},
	{reason: "goflow2 does not read these unless its mapping says so", from: []string{fromIPFIX},
		columns: "direction firewall_event nat_src_addr nat_dst_addr nat_src_port nat_dst_port", when: untold},
	{reason: "so what the firewall did is not known", from: []string{fromIPFIX}, service: "tcp/23", columns: "observed outcome confidence"},
	{reason: "goflow2 does not read the reverse direction of a biflow, nor 239", from: []string{fromBiflow},
		columns: "biflow_direction rev_tcp_flags rev_bytes rev_packets rev_bytes_raw rev_packets_raw", when: untold},
	{reason: "so there is less to tell by who the client is and what got through", from: []string{fromBiflow}, columns: "orientation_certainty confidence"},
	{reason: "and of UDP nothing that got through", from: []string{fromBiflow}, service: "udp/53", columns: "outcome"},
	{reason: "and of UDP nothing that got through", from: []string{fromBiflow}, service: "udp/161", columns: "outcome"},
	{reason: "and between two ports of no service nothing that the client is told by", from: []string{fromBiflow}, service: "tcp/50010", columns: ofClient},
}

// sameVerdicts holds the rows that came by goflow2 against those of the service: every
// column is equal but for the deviations, which must all occur.
func (g *goflowDeployment) sameVerdicts() {
	g.t.Helper()
	alone, chain := g.byKey(g.alone, allFlows, "exporter", "bytes_raw"), g.byKey(g.detectors[0], allFlows, "exporter", "bytes_raw")
	used, wrong := map[string]bool{}, map[string]int{}
	for id, a := range alone {
		b := chain[id]
		if b == nil {
			g.t.Errorf("no row %s came by goflow2", id)
			continue
		}
		for column := range a {
			if reflect.DeepEqual(a[column], b[column]) {
				continue
			}
			excepted := false
			for _, d := range goflowDeviations {
				if (d.from == nil || slices.Contains(d.from, a["exporter"].(string))) && (d.service == "" || d.service == a["service"]) &&
					slices.Contains(strings.Fields(d.columns), column) && (d.when == nil || d.when(a[column], b[column])) {
					excepted, used[d.reason] = true, true
				}
			}
			if !excepted {
				wrong[fmt.Sprintf("%s, %s: %s is %v, by goflow2 %v", a["exporter"], a["service"], column, a[column], b[column])]++
			}
		}
	}
	for _, what := range slices.Sorted(maps.Keys(wrong)) {
		g.t.Errorf("%s (%d rows)", what, wrong[what])
	}
	for _, d := range goflowDeviations {
		if !used[d.reason] {
			g.t.Errorf("it is listed, but does not occur, that %s", d.reason)
		}
	}
}

// timeless is a finding's query without the times it spans.
func timeless(query any) string {
	return regexp.MustCompile(`'\d{4}-[^']*'`).ReplaceAllString(query.(string), "'…'")
}

// sameFindings holds the findings of what came by goflow2 against those of the service.
func (g *goflowDeployment) sameFindings() {
	g.t.Helper()
	alone, chain := g.byKey(g.alone, allFindings, "id"), g.byKey(g.detectors[0], allFindings, "id")
	// Clients of observer i have i in a place of their own.
	of := func(i int, client string) bool {
		return strings.HasPrefix(client, fmt.Sprintf("10.50.%d.", i)) || strings.HasPrefix(client, fmt.Sprintf("10.60.%d.", i)) || strings.HasPrefix(client, fmt.Sprintf("2001:db8:50::%d:", i))
	}
	const biflow, sflow = 3, 4
	// A biflow whose ports do not tell the client is a finding about the client, and by goflow2,
	// which does not tell 239, one about the pair.
	pairs := map[string]any{} // sessions by the workstation
	for id, b := range chain {
		if _, known := alone[id]; known {
			continue
		}
		if server := b["server"].(string); of(biflow, server) && b["orientation"] == "open" {
			pairs[server] = b["count"]
			continue
		}
		g.t.Errorf("by goflow2 there is a finding more, %s: %s → %s %s, %v times", b["type"], b["client"], b["server"], b["service"], b["count"])
	}
	attempts := 0
	for id, a := range alone {
		client := a["client"].(string)
		b := chain[id]
		switch {
		case b != nil:
		case of(biflow, client) && a["service"] == "tcp/50010" && pairs[client] == a["count"]:
			continue
		case of(biflow, client) && a["service"] == "udp/161": // that it got through is not known
			attempts++
			continue
		default:
			g.t.Errorf("by goflow2 there is no finding %s: %s → %s %s, %v times", a["type"], client, a["server"], a["service"], a["count"])
			continue
		}
		for column := range a {
			switch {
			case reflect.DeepEqual(a[column], b[column]):
			case column == "revision": // how often it was told
			case column == "samples": // which rows came first
			case column == "confidence" && of(biflow, client): // as of the rows
			case (column == "first_seen" || column == "last_seen") && (of(sflow, client) || of(sflow, a["server"].(string))) && near(a[column], b[column]):
			case column == "query" && of(sflow, client) && timeless(a[column]) == timeless(b[column]): // spans those times
			default:
				g.t.Errorf("%s %s → %s %s: %s is %v, by goflow2 %v", a["type"], client, a["server"], a["service"], column, a[column], b[column])
			}
		}
	}
	if len(pairs) == 0 || attempts == 0 || len(alone) < 50 {
		g.t.Errorf("%d findings, %d of pairs, %d of attempts; the test tests little", len(alone), len(pairs), attempts)
	}
}

// TestGoflow2Chain has the real goflow2 take datagrams of all protocols and hand them on by
// Kafka, two detectors make of its messages what they make of flows, and holds that
// against what one process makes of the same datagrams.
func TestGoflow2Chain(t *testing.T) {
	for _, format := range []string{"protobuf", "json"} {
		t.Run(format, func(t *testing.T) {
			g := newGoflowDeployment(t, format)
			g.send(10)
			g.stored()
			g.sameVerdicts()
			g.sameFindings()
			for i, s := range g.detectors {
				if s.ledger().Records.Written == 0 || s.metric("postern_kafka_values_total") == 0 {
					t.Errorf("detector %d got no work", i)
				}
			}
			for _, s := range g.detectors {
				s.stop()
			}
			if all, distinct := g.topicFlows(g.client()); all != uint64(g.rows) || distinct != all {
				t.Errorf("%d records on the flows topic, %d without repetitions; goflow2 was sent %d", all, distinct, g.rows)
			}
			g.alone.stop()
		})
	}
}

// setBack has the group begin at offset 0 again, as Kafka's own tool does it.
func (d *deployment) setBack(c *kafka.Client, topics ...string) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	req := kgo.OffsetCommitRequest{GroupID: d.kafka.Group, GenerationID: -1, Topics: map[string][]kgo.OffsetCommit{}}
	for _, topic := range topics {
		n, err := c.Partitions(ctx, topic)
		if err != nil {
			d.t.Fatal(err)
		}
		for p := range n {
			req.Topics[topic] = append(req.Topics[topic], kgo.OffsetCommit{Partition: p})
		}
	}
	res, err := c.Kafka().OffsetCommit(ctx, &req)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, topic := range res.Topics {
		for _, p := range topic {
			if p.Error != nil {
				d.t.Fatal(p.Error)
			}
		}
	}
}

// without leaves out columns that may differ where the same is stored a second time.
func without(rows map[string]map[string]any, columns ...string) map[string]map[string]any {
	for _, row := range rows {
		for _, c := range columns {
			delete(row, c)
		}
	}
	return rows
}

// TestKafkaReplayed reads what was read already, cut otherwise, and takes partitions from
// one detector to another: rows and findings stay as they are (THREATS 29).
func TestKafkaReplayed(t *testing.T) {
	g := newGoflowDeployment(t, "protobuf")
	g.send(4)
	g.stored()

	// The group's offsets are set back, and ranges and chunks are cut otherwise.
	for _, s := range g.detectors {
		s.stop()
	}
	g.setBack(g.client(), g.topic, g.kafka.Topic(kafka.TopicFlows))
	other := settings{linger: 400 * time.Millisecond, reach: 256 * flow.KiB, chunkRows: 1000}
	for _, s := range g.detectors {
		g.reconfigure(s, other, "protobuf")
		s.launch()
	}
	g.working(g.detectors...)
	noticed := map[string]bool{}
	for _, s := range g.detectors {
		for _, m := range regexp.MustCompile(`the group's offset was set back.* (topic=\S+ partition=\d+) offset=0 `).FindAllStringSubmatch(s.logs(), -1) {
			noticed[m[1]] = true
		}
	}
	if len(noticed) != g.kafka.Partitions+goflowPartitions {
		t.Errorf("detectors noticed of %v that their offsets were set back, want all", slices.Sorted(maps.Keys(noticed)))
	}
	// A third detector joins and leaves while flows come. What comes now stands behind what
	// was read already, so by the time it is stored, that would be stored again as well.
	third := g.detector(settings{}, "protobuf")
	third.launch()
	g.send(2)
	g.working(append(g.detectors, third)...)
	g.send(2)
	third.stop()
	g.send(2)
	g.working(g.detectors...)
	g.stored()
	g.sameVerdicts()
	g.sameFindings()
	flows, findings := g.byKey(g.detectors[0], allFlows, "record_id"), g.byKey(g.detectors[0], allFindings, "id")

	// Another group reads all of it once more, cut otherwise, into a database of its own.
	again := *g.deployment
	again.kafka.Group, again.database = g.kafka.Group+".again", g.database+"_again"
	reader := again.role("detect", settings{chunkRows: 2000})
	reader.amend("linger: 100ms", "linger: 30ms")
	reader.amend("window: 2s", "window: "+pairingWindow.String())
	reader.start()
	reader.until("another group to have stored all rows", 60*time.Second, func() bool { return reader.number("SELECT count() FROM flows") >= g.rows })
	own := []string{"input", "inserted_at"}
	if diff := cmp.Diff(without(flows, own...), without(g.byKey(reader, allFlows, "record_id"), own...)); diff != "" {
		t.Errorf("flows as another group has them (-first +second):\n%s", tail(diff, 4000))
	}
	own = []string{"revision", "samples"} // how often it was told, and which rows came first
	if diff := cmp.Diff(without(findings, own...), without(g.byKey(reader, allFindings, "id"), own...)); diff != "" {
		t.Errorf("findings as another group has them (-first +second):\n%s", tail(diff, 4000))
	}
	reader.stop()
	for _, s := range g.detectors {
		s.stop()
	}
	g.alone.stop()
}
