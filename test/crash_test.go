package test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/exporter"
)

const crashPolicy = `
postern: v1
segments:
  - {name: office, prefixes: [10.50.0.0/16], stage: enforced, default: {in: deny, out: allow}}
  - {name: servers, prefixes: [10.20.0.0/16], stage: enforced, default: {in: deny, out: allow}}
rules:
  - id: office-to-servers
    action: allow
    from: {segment: office}
    to: {segment: servers}
    services: [tcp/443]
    owner: team
    reason: the applications
`

// TestKill9 kills the service in the middle of ingest, again and again, and asks
// afterwards whether ledgers, ClickHouse and findings agree with what was sent
// (THREATS 41, DESIGN invariant 6). POSTERN_SEED and POSTERN_ROUNDS set the rounds.
func TestKill9(t *testing.T) {
	seed := envNumber(t, "POSTERN_SEED", uint64(time.Now().UnixNano()))
	rounds := int(envNumber(t, "POSTERN_ROUNDS", 20))
	t.Logf("seed %d, %d rounds; repeat with POSTERN_SEED=%d", seed, rounds, seed)
	rng := rand.New(rand.NewPCG(seed, 9))

	hook := newReceiver(t)
	s := newServer(t, crashPolicy, hook.section()+"enrich: {window: 2s}\n"+quickSessions(4*time.Second))
	g := newGenerator(t, s.udp)
	for range rounds {
		s.launch()
		// Sometimes it is killed while it starts, mostly in the middle of work.
		g.sendFor(time.Duration(rng.IntN(2500)) * time.Millisecond)
		_ = s.kill(syscall.SIGKILL) // its status is the signal's
	}
	s.start()
	before := g.sent
	g.sendFor(500 * time.Millisecond) // nothing of these may be lost
	whole := g.sent - before
	total := s.settle()

	received := int(total.Datagrams.Received)
	t.Logf("sent %d datagrams in %d rounds while a socket was open, received %d; %d rows, %d findings, %d events came twice",
		g.sent, rounds, received, total.Records.Written, len(hook.findings(t)), hook.twice)
	// At most a second's worth a kill: what was in the process's hands.
	if lost := g.sent - received; lost < 0 || lost > rounds*g.rate {
		t.Errorf("%d of %d datagrams are lost; at most %d may be", lost, g.sent, rounds*g.rate)
	}
	if received < whole {
		t.Errorf("%d datagrams received, but %d were sent to the service that was not killed", received, whole)
	}
	if total.Records.Decoded != total.Records.Written {
		t.Errorf("%d records decoded, %d written", total.Records.Decoded, total.Records.Written)
	}
	if n := s.number("SELECT count() AS n FROM flows"); n != int(total.Records.Written) {
		t.Errorf("ClickHouse holds %d flows, the ledger says %d were written", n, total.Records.Written)
	}
	if n := s.number("SELECT count() - uniqExact(record_id) AS n FROM flows"); n != 0 {
		t.Errorf("%d flows are stored twice by record id", n)
	}
	// Each record carries its own number as its byte count.
	if n := s.number("SELECT count() - uniqExact(bytes) AS n FROM flows"); n != 0 {
		t.Errorf("%d flows are stored twice by their number", n)
	}
	compareFindings(t, s, hook)
	t.Logf("%d sessions are counted in the roll-up", s.edgesAgree(4*time.Second, 1))
	s.stop()
}

// compareFindings holds what the flows imply against the findings view and
// against what the receiver was told.
func compareFindings(t *testing.T, s *server, hook *receiver) {
	t.Helper()
	want := map[string]int{}
	for _, row := range s.query(`SELECT toString(toIPv4(client)) || ' ' || toString(toIPv4(server)) || ' ' || service || ' ' || toString(toDate(time_start)) AS key, uniqExact(client_port) AS sessions
		FROM flows WHERE reason = 'denied' AND outcome = 'escaped' GROUP BY key`) {
		want[row["key"].(string)] = int(row["sessions"].(float64))
	}
	if len(want) == 0 {
		t.Fatal("no flow was denied; the test shows nothing")
	}
	stored := map[string]int{}
	ids := map[string]string{}
	for _, row := range s.query("SELECT id, client || ' ' || server || ' ' || service || ' ' || toString(toDate(first_seen)) AS key, count FROM findings WHERE type = 'policy-violation'") {
		key := row["key"].(string)
		if _, twice := stored[key]; twice {
			t.Errorf("two findings for %s", key)
		}
		stored[key], ids[row["id"].(string)] = int(row["count"].(float64)), key
	}
	for key, n := range want {
		if stored[key] != n {
			t.Errorf("%s: %d sessions in the flows, %d in the finding", key, n, stored[key])
		}
	}
	if len(stored) != len(want) {
		t.Errorf("%d findings stored, %d implied by the flows", len(stored), len(want))
	}
	violations := func() map[string]flow.Finding { // what behaviour gives rise to is not implied by single flows
		told := hook.findings(t)
		maps.DeleteFunc(told, func(_ string, f flow.Finding) bool { return f.Type != flow.FindingDenied })
		return told
	}
	s.until("every finding to be delivered", 20*time.Second, func() bool { return len(violations()) >= len(want) })
	for id, f := range violations() {
		if ids[id] == "" {
			t.Errorf("the receiver was told of %s (%s), which is not stored", id, f.Sentence)
		}
	}
	if len(violations()) != len(want) {
		t.Errorf("%d findings delivered, %d implied", len(violations()), len(want))
	}
	for _, b := range hook.bad {
		t.Error(b)
	}
}

// generator sends numbered flows: mostly what policy allows, now and then a denied
// one, some as two halves that wait for each other.
type generator struct {
	t      *testing.T
	rate   int // datagrams a second
	sent   int // datagrams the kernel took while a socket was open at the other end
	number uint64
	v9     *exporter.Exporter
	ipfix  *exporter.Exporter
	sender *exporter.Sender
	local  string // the collector's address as the kernel's list has it
}

func newGenerator(t *testing.T, to string) *generator {
	t.Helper()
	g := &generator{t: t, rate: 400}
	var err error
	if g.v9, err = exporter.New(exporter.Config{Protocol: flow.SourceNetFlowV9, Domain: 1, TemplatePackets: 5}); err != nil {
		t.Fatal(err)
	}
	if g.ipfix, err = exporter.New(exporter.Config{Protocol: flow.SourceIPFIX, Domain: 2, Biflow: true, BiflowDirection: true, TemplatePackets: 5}); err != nil {
		t.Fatal(err)
	}
	g.sender, err = exporter.NewSender(exporter.SenderConfig{Source: netip.MustParseAddr("127.0.0.2"), Target: netip.MustParseAddrPort(to), Rate: g.rate})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.sender.Close() })
	g.local = fmt.Sprintf(" 0100007F:%04X ", netip.MustParseAddrPort(to).Port())
	return g
}

// sendFor sends for a while. Only what was sent while a socket was open counts.
func (g *generator) sendFor(d time.Duration) {
	ctx := context.Background()
	for end := time.Now().Add(d); time.Now().Before(end); {
		x := g.ipfix
		if g.number%3 == 0 {
			x = g.v9
		}
		now := flow.TimeOf(time.Now())
		_, err := x.Export(now, g.records(now), func(b []byte) error {
			open := g.listening()
			if err := g.sender.Send(ctx, b); err != nil {
				return err
			}
			if open && g.listening() {
				g.sent++
			}
			return nil
		})
		if err != nil {
			g.t.Fatal(err)
		}
	}
}

// listening says whether somebody has the port, by the kernel's own list.
func (g *generator) listening() bool {
	list, err := os.ReadFile("/proc/net/udp")
	if err != nil {
		g.t.Fatal(err)
	}
	return strings.Contains(string(list), g.local)
}

func (g *generator) records(now flow.Time) []flow.Record {
	var out []flow.Record
	for range 8 {
		g.number++
		r := flow.Record{
			Start: now - 1000, End: now, Src: flow.AddrFrom4(0x0a320000 + uint32(g.number%200)), Dst: flow.AddrFrom4(0x0a140001),
			SrcPort: uint16(20000 + g.number%40000), DstPort: 443, Proto: flow.ProtoTCP, TCPFlags: flow.SYN | flow.ACK | flow.PSH,
			BytesRaw: 2 * g.number, PacketsRaw: 3, BiflowDirection: 1,
			RevBytesRaw: 2*g.number + 1, RevPacketsRaw: 2, RevTCPFlags: flow.SYN | flow.ACK,
			Has: flow.HasStart | flow.HasEnd | flow.HasSrc | flow.HasDst | flow.HasSrcPort | flow.HasDstPort | flow.HasProto | flow.HasTCPFlags |
				flow.HasBytes | flow.HasPackets | flow.HasRevBytes | flow.HasRevPackets | flow.HasRevTCPFlags | flow.HasBiflowDirection,
		}
		if g.number%97 == 0 { // denied: into the office; one pair in 40
			r.Dst, r.DstPort = flow.AddrFrom4(0x0a320000+uint32(g.number/97%40)), 3389
		}
		out = append(out, r)
	}
	return out
}

func envNumber(t *testing.T, name string, unsaid uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return unsaid
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatal(fmt.Errorf("%s: %w", name, err))
	}
	return n
}
