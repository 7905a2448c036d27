package test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/exporter"
	"github.com/postern/postern/test/broker"
	"github.com/postern/postern/test/directory"
)

const identityPolicy = `
postern: v1
segments:
  - {name: office, prefixes: [10.50.0.0/16], stage: enforced, default: {in: deny, out: allow}, owner: o}
  - {name: servers, prefixes: [10.20.0.0/16], stage: enforced, default: {in: deny, out: allow}, owner: o}
rules:
  - {id: admins, action: allow, from: {group: Server-Admins}, to: {segment: servers}, services: [tcp/22], owner: o, reason: administration}
  - {id: web, action: allow, from: {identity: 'CORP\alice'}, to: {segment: servers}, services: [tcp/443], owner: o, reason: r}
  - {id: managed, action: allow, from: {posture: managed}, to: {segment: servers}, services: [tcp/8443], owner: o, reason: r}
`

// identityDirectory is a company of three: bob is an administrator by way of another group.
const identityDirectory = `dn: CN=Alice,CN=Users,%[1]s
objectClass: user
sAMAccountName: Alice
userAccountControl: 66080

dn: CN=Bob,CN=Users,%[1]s
objectClass: user
sAMAccountName: bob
userAccountControl: 66080

dn: CN=Mallory,CN=Users,%[1]s
objectClass: user
sAMAccountName: mallory
userAccountControl: 66082

dn: CN=unix,CN=Users,%[1]s
objectClass: group
sAMAccountName: unix
member: CN=Bob,CN=Users,%[1]s

dn: CN=Server-Admins,CN=Users,%[1]s
objectClass: group
sAMAccountName: Server-Admins
member: CN=unix,CN=Users,%[1]s
`

// TestIdentity judges flows by who had an address when they began: an inventory says whose
// laptops hold an address one after the other, and a real Active Directory which groups their
// people are in. Nobody is credited with what is the former owner's, in a gap, beyond the
// staleness of a source, or after a kill (THREATS 9, 11, 14).
func TestIdentity(t *testing.T) {
	ad := directory.StartActiveDirectory(t, fmt.Sprintf(identityDirectory, "DC=corp,DC=example,DC=net"))
	s := newRole(t, "serve")
	s.writePolicy(identityPolicy)
	inventory := filepath.Join(s.dir, "inventory.csv")
	write := func(lines ...string) {
		t.Helper()
		text := "address,user,posture,since,until\n" + strings.Join(lines, "\n") + "\n"
		if err := os.WriteFile(inventory+".next", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(inventory+".next", inventory); err != nil {
			t.Fatal(err)
		}
	}
	write("10.50.0.9,CORP\\mallory,managed,,")
	t.Setenv("POSTERN_TEST_LDAP", ad.ReaderPassword)
	s.configure(fmt.Sprintf(`data: %s
ingest:
  netflow: {listen: "%s"}
  sflow: {listen: ""}
policy: {dir: %s, since: 2020-01-01T00:00:00Z}
embedded: {listen: "127.0.0.1:0", maxMemory: 1GiB}
admin: {listen: "%s"}
identity:
  hold: 2s
  domains: {corp.example.net: corp}
  inventory: [{name: office, path: %s, every: 1s, staleAfter: 8s}]
  ldap:
    - {name: corp, urls: [%s], tls: {ca: %s, serverName: %s}, bindDN: "%s", password: "env:POSTERN_TEST_LDAP", every: 1s, staleAfter: 1h}
`, s.data, s.udp, s.policyDir(), s.admin, inventory, ad.LDAPS, ad.CAFile, ad.Host, ad.ReaderDN))
	s.start()
	read := func() {
		t.Helper()
		s.until("the sources to have been read", 30*time.Second, func() bool {
			return s.metric("postern_identity_source_reads_total", `source="corp"`) > 0 && s.metric("postern_identity_source_reads_total", `source="office"`) > 0
		})
	}
	read()
	time.Sleep(1100 * time.Millisecond) // what the first read shows holds from then on
	at := time.Now().UTC().Truncate(time.Millisecond)
	stamp := func(d time.Duration) string { return at.Add(d).Format(time.RFC3339Nano) }
	write(
		"10.50.0.7,alice@corp.example.net,,"+stamp(-time.Hour)+","+stamp(2*time.Second), // until the second second
		"10.50.0.7,CORP\\Bob,,"+stamp(4*time.Second)+",",                                // from the fourth on
		"10.50.0.9,CORP\\mallory,managed,,",
		"10.50.0.10,alice,,"+stamp(-time.Hour)+",", "10.50.0.10,bob@corp,,"+stamp(-time.Hour)+",") // both at once
	time.Sleep(time.Until(at.Add(6 * time.Second)))
	const proto = flow.SourceIPFIX
	d := newDevice(t, "127.0.0.2", s.udp, exporter.Config{Protocol: proto, Domain: 1, Biflow: true, BiflowDirection: true})
	type step struct {
		name   string
		client string
		at     time.Duration
		port   uint16
		want   string
	}
	steps := []step{
		{"alice has the address", "10.50.0.7", 1 * time.Second, 443, "permitted alice@corp []"},
		{"alice is no administrator", "10.50.0.7", 1 * time.Second, 22, "denied alice@corp []"},
		{"nobody has it", "10.50.0.7", 3 * time.Second, 443, "unverified  [gap]"},
		{"bob has it", "10.50.0.7", 5 * time.Second, 443, "denied bob@corp []"},
		{"bob is an administrator by nesting", "10.50.0.7", 5 * time.Second, 22, "permitted bob@corp []"},
		{"a managed laptop, whoever has it", "10.50.0.9", 1 * time.Second, 8443, "permitted mallory@corp []"},
		{"no posture is known", "10.50.0.7", 5 * time.Second, 8443, "unverified bob@corp []"},
		{"two at once", "10.50.0.10", 1 * time.Second, 443, "unverified  [ambiguous]"},
		{"nobody ever said", "10.50.0.11", 1 * time.Second, 443, "unverified  [unknown]"},
	}
	send := func(steps []step, base time.Time, first uint16) {
		t.Helper()
		var list []flow.Record
		for i, st := range steps {
			list = append(list, session(base.Add(st.at), st.client, "10.20.0.1", first+uint16(i), st.port))
		}
		d.export(list...)
	}
	check := func(steps []step, first uint16) {
		t.Helper()
		rows := map[uint16]string{}
		s.until("the flows to be judged", 30*time.Second, func() bool {
			for _, row := range s.query("SELECT client_port, reason, src_identity, arrayStringConcat(src_doubt, ',') AS doubt FROM flows") {
				rows[uint16(row["client_port"].(float64))] = fmt.Sprintf("%v %v [%v]", row["reason"], row["src_identity"], row["doubt"])
			}
			return rows[first+uint16(len(steps))-1] != ""
		})
		for i, st := range steps {
			if got := rows[first+uint16(i)]; got != st.want {
				t.Errorf("%s: %s, want %s", st.name, got, st.want)
			}
		}
	}
	send(steps, at, 50_000)
	check(steps, 50_000)

	// What was known is known after a kill; and what becomes known later rewrites nothing.
	_ = s.kill(syscall.SIGKILL)
	write("10.50.0.7,CORP\\mallory,,"+stamp(-time.Hour)+",", "10.50.0.9,CORP\\mallory,managed,,")
	s.start()
	read()
	again := []step{{"alice had it", "10.50.0.7", 1 * time.Second, 443, "permitted alice@corp []"}, {"bob had it", "10.50.0.7", 5 * time.Second, 22, "permitted bob@corp []"}}
	send(again, at, 51_000)
	check(again, 51_000)
	check(steps, 50_000)

	out := run(t, "explain", "-c", s.config, "--at", stamp(5*time.Second), "10.50.0.7", "10.20.0.1", "tcp/22")
	for _, want := range []string{"client 10.50.0.7 at " + stamp(5 * time.Second)[:19], "identity bob@corp", "group server-admins", "office: user bob@corp", "corp: subject bob@corp", "known since", ": ended", ": counts"} {
		if !strings.Contains(out, want) {
			t.Errorf("explain does not say %q:\n%s", want, out)
		}
	}

	// A source that is away for too long is not believed.
	if err := os.Remove(inventory); err != nil {
		t.Fatal(err)
	}
	s.until("the inventory to be missed", 20*time.Second, func() bool { return s.metric("postern_identity_source_failures_total", `source="office"`) > 0 })
	gone := time.Now()
	time.Sleep(10 * time.Second)
	stale := []step{{"a stale source", "10.50.0.9", 9 * time.Second, 8443, "unverified  [stale]"}}
	send(stale, gone, 52_000)
	check(stale, 52_000)
	s.stop()
}

// TestIdentityThroughKafka has a collector find out who is behind addresses, and two detectors
// judge by it alike, also one that comes later.
func TestIdentityThroughKafka(t *testing.T) {
	b := broker.Shared(t)
	d := newDeployment(t, []string{b.Addr()}, b.Topic(t, "who"), identityPolicy)
	inventory := filepath.Join(t.TempDir(), "inventory.csv")
	begin := time.Now().UTC().Add(-time.Hour).Format(time.RFC3339)
	var lines strings.Builder
	lines.WriteString("address,user,since\n")
	for i := range 50 { // every second one is alice's
		fmt.Fprintf(&lines, "10.50.0.%d,%s,%s\n", i, []string{"alice@corp", "mallory@corp"}[i%2], begin)
	}
	if err := os.WriteFile(inventory, []byte(lines.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	extra := fmt.Sprintf("identity:\n  hold: 1s\n  inventory: [{name: office, path: %s, every: 1s}]\n", inventory)
	collector := d.role("collect", settings{extra: extra})
	run(t, "kafka", "init", "-c", collector.config)
	collector.start()
	one := d.role("detect", settings{extra: extra})
	one.start()
	send := newDevice(t, "127.0.0.2", collector.udp, exporter.Config{Protocol: flow.SourceIPFIX, Domain: 1, Biflow: true, BiflowDirection: true})
	round := func(n int) {
		t.Helper()
		var list []flow.Record
		for i := range 50 {
			list = append(list, session(time.Now(), fmt.Sprintf("10.50.0.%d", i), fmt.Sprintf("10.20.0.%d", i%7), uint16(1000*n+i), 443))
		}
		send.export(list...)
		one.until("the flows to be stored", 60*time.Second, func() bool { return one.number("SELECT count() FROM flows") == 50*n })
	}
	collector.until("the inventory to be read", 30*time.Second, func() bool { return collector.metric("postern_identity_source_reads_total") > 0 })
	round(1)
	other := d.role("detect", settings{extra: extra})
	other.start()
	one.until("the detectors to share the work", 60*time.Second, func() bool { return other.partitions() > 0 && one.partitions() > 0 })
	round(2)
	got := map[string]int{}
	for _, row := range one.query("SELECT reason || ' ' || src_identity AS v, count() AS n FROM flows GROUP BY v") {
		got[row["v"].(string)] = int(row["n"].(float64))
	}
	if want := map[string]int{"permitted alice@corp": 50, "denied mallory@corp": 50}; !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	for _, s := range []*server{other, one, collector} {
		s.stop()
	}
}
