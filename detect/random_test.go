package detect_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postern/postern/test/scenario"
)

// randomScenario is some days of a small network in which anything may happen: administrators,
// scans, refusals, blocks, beacons, chains of logons, exceptions used in and out of time.
func randomScenario(rng *rand.Rand) string {
	var b strings.Builder
	b.WriteString(`policy
  postern: v1
  segments:
    - {name: vault, prefixes: [10.20.0.0/24], tier: crown-jewel, stage: enforced, default: deny, agent: required}
    - {name: servers, prefixes: [10.30.0.0/24], stage: enforced, default: {in: allow, out: allow}}
    - {name: office, prefixes: [10.50.0.0/16], stage: enforced, default: {in: deny, out: allow}}
  workloads:
    - {name: jump-1, role: jump, addresses: [10.30.0.1]}
    - {name: vault-1, role: db, addresses: [10.20.0.1]}
  rules:
    - {id: jump-to-vault, action: allow, from: {role: jump}, to: {segment: vault}, services: [tcp/22]}
  exceptions:
    - id: EX-1
      class: vendor
      from: {cidr: 10.50.0.1/32}
      to: {segment: servers}
      services: [tcp/3389]
      ticket: CHG-1
      owner: ops
      reason: support
      requested: {by: ana, at: 2026-10-01T00:00:00Z}
      approved: [{by: raj, at: 2026-10-01T01:00:00Z}]
      notBefore: 2026-10-02T00:00:00Z
      expires: 2026-10-06T00:00:00Z
    - id: EX-2
      class: migration
      from: {segment: servers}
      to: {segment: vault}
      services: [tcp/445]
      ticket: CHG-2
      owner: ops
      reason: move
      requested: {by: ana, at: 2026-10-01T00:00:00Z}
      approved: [{by: raj, at: 2026-10-01T01:00:00Z}]
      expires: 2026-11-06T00:00:00Z
config
  detect: {behaviour: {learn: 24h}}
host clients 10.50.0.1-30 agent
host servers 10.30.0.1-12 agent
host vaults  10.20.0.1-4
any finding
`)
	start := time.Date(2026, 10, 3, 0, 0, 0, 0, time.UTC)
	at := func() string {
		return start.Add(time.Duration(rng.Int64N(int64(8 * 24 * time.Hour)))).Truncate(time.Millisecond).Format(time.RFC3339Nano)
	}
	pick := func(list ...string) string { return list[rng.IntN(len(list))] }
	one := func() string {
		switch rng.IntN(4) {
		case 0:
			return fmt.Sprintf("10.20.0.%d", 1+rng.IntN(4))
		case 1:
			return fmt.Sprintf("10.30.0.%d", 1+rng.IntN(12))
		}
		return fmt.Sprintf("10.50.0.%d", 1+rng.IntN(30))
	}
	many := func() string { return pick("clients", "servers", "vaults", one(), one(), one()) }
	for range 30 {
		service := pick("tcp/22", "tcp/3389", "tcp/445", "tcp/443", "tcp/135", "tcp/5985", "udp/53", "icmp/echo", "tcp/49670", "tcp/22,23,80,445,3389")
		ended := pick("", "", "", "unanswered", "blocked", "halves", "by=router,client", "by=server")
		if strings.HasPrefix(service, "tcp") && rng.IntN(6) == 0 {
			ended = "refused"
		}
		repeat := pick("", "one every 20m", "one every 3s", "one every 5h jitter 1h", "every 1h times 20 jitter 5m", "every 6h for 5d", "every 1s times 30")
		client, server := one(), many()
		if rng.IntN(3) == 0 {
			client, server = many(), one()
		}
		if strings.HasPrefix(repeat, "every") {
			client, server = one(), one()
		}
		fmt.Fprintf(&b, "session %s %s %s > %s %s %s %s sent=%dkB received=%dkB%s\n", at(), pick("0s", "200ms", "30s", "70s", "5m"), client, server, service,
			ended, repeat, 1+rng.IntN(5000), 1+rng.IntN(5000), pick("", "", " user=ana", " user=bob process=psexec.exe"))
	}
	if rng.IntN(2) == 0 {
		fmt.Fprintf(&b, "silent servers since %s\n", at())
	}
	// Agents that tell of much, of others after a while, of one sort only, and look away now and then.
	for range 3 {
		watched := fmt.Sprintf("10.30.0.%d", 1+rng.IntN(12))
		fmt.Fprintf(&b, "session %s %s 10.50.0.1-%d > %s tcp/8080 every %s times %d jitter %s\n", at(), pick("1s", "20s", "4m"), 2+rng.IntN(4), watched,
			pick("1m", "4m", "11m"), 30+rng.IntN(30), pick("5s", "20s"))
		for range 3 {
			hidden := [2]string{pick("10.50.0.70", "10.50.0.71", "10.50.0.3"), watched}
			if rng.IntN(3) == 0 {
				slices.Reverse(hidden[:])
			}
			fmt.Fprintf(&b, "session +%s %s %s > %s %s by=router%s\n", pick("0s", "3m", "25m", "65m"), pick("0s", "40s", "5m", "50m"), hidden[0], hidden[1],
				pick("tcp/22", "tcp/445", "tcp/22", "udp/53", "icmp/echo"), pick("", " unanswered", "", " every 7m times 5 jitter 2m"))
		}
	}
	// Beacons, and what is gathered and sent on, among hosts without agents.
	quiet := func() string { return fmt.Sprintf("10.50.0.%d", 31+rng.IntN(8)) }
	for range 3 {
		fmt.Fprintf(&b, "session %s %s %s > %s %s%s every %s times %d jitter %s sent=%dkB received=%dkB\n", at(), pick("0s", "2s", "11m"), quiet(), quiet(), pick("tcp/8443", "tcp/445", "udp/4444", "tcp/50123", "icmp/echo"),
			pick("", "", " cut=none"), pick("11m", "15m", "1h"), 30+rng.IntN(60), pick("1m", "3m"), 1+rng.IntN(100), 1+rng.IntN(100))
	}
	for range 2 {
		hub := quiet()
		fmt.Fprintf(&b, "session %s 2m %s > 10.50.0.41-60 tcp/8000 received=%dMB one every %s\nsession +%s 15m %s > %s tcp/8443 sent=300MB\n", at(), hub, 4+rng.IntN(20), pick("1m", "11m"),
			pick("20m", "2h", "7h"), pick(hub, quiet()), pick(quiet(), "198.51.100.7"))
	}
	return b.String()
}

// TestRandomScenarios: whatever happens, what is found does not hang on restarts, on how the
// input is cut, or on the order of arrival.
func TestRandomScenarios(t *testing.T) {
	first := uint64(time.Now().UnixNano()) % 1_000_000 // POSTERN_SEED repeats one
	if s := os.Getenv("POSTERN_SEED"); s != "" {
		var err error
		if first, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d", first)
	n := uint64(2)
	if testing.Short() {
		n = 1
	}
	found := map[string]int{}
	for seed := first; seed < first+n; seed++ {
		text := randomScenario(rand.New(rand.NewPCG(seed, 11)))
		s, err := scenario.Parse("random", []byte(text), scenario.DefaultSettings(), nil)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		res, err := s.Prove(scenario.Options{})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		for _, p := range res.Problems {
			t.Errorf("seed %d: %.4000s", seed, p.In("random"))
		}
		for _, f := range res.Findings {
			found[f.Type]++
		}
		if t.Failed() {
			t.Logf("the scenario:\n%s", text)
			return
		}
	}
	t.Logf("found: %v", found)
	if len(found) == 0 {
		t.Error("nothing was found at all")
	}
}
