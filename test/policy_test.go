package test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern/postern/flow"
)

// livePolicy lets the office reach port 443, and more ports if said. EX-7 opens
// port 22 to one host while it is in the files.
func livePolicy(withException bool, more ...string) string {
	text := `
postern: v1
segments:
  - {name: office, prefixes: [10.50.0.0/16], stage: enforced, default: {in: deny, out: allow}, owner: team}
  - {name: servers, prefixes: [10.20.0.0/16], stage: enforced, default: {in: deny, out: allow}, owner: team}
rules:
  - id: office-to-servers
    action: allow
    from: {segment: office}
    to: {segment: servers}
    services: [` + strings.Join(append([]string{"tcp/443"}, more...), ", ") + `]
    owner: team
    reason: the applications
`
	if withException {
		text += `
exceptions:
  - id: EX-7
    class: migration
    from: {segment: office}
    to: {cidr: 10.20.0.9/32}
    services: [tcp/22]
    ticket: CHG-7
    owner: team
    reason: moving
    requested: {by: ana, at: 2024-01-01T00:00:00Z}
    approved: [{by: raj, role: owner, at: 2024-01-02T00:00:00Z}]
    notBefore: 2024-01-03T00:00:00Z
    expires: 2099-01-01T00:00:00Z
`
	}
	return text
}

// TestPolicyLive walks a policy folder through its life while the service runs on:
// broken from the start, good, changed, broken again, emptied, an exception tidied
// away, a restart, a revert while nobody looked (THREATS 3, 4, 39).
func TestPolicyLive(t *testing.T) {
	s := newServer(t, "postern: v1\nsegmnets: []\n", "detect: {lateness: 1s}\n")
	s.launch()
	port := uint16(30000)
	want := map[int]string{}
	var fw *device
	// judged sends a flow that began at start and notes how it must be judged.
	judged := func(reason string, start time.Time, server string, sport uint16) {
		t.Helper()
		port++
		want[int(port)] = reason
		fw.export(session(start, "10.50.1.1", server, port, sport))
	}
	status := func(path string) int {
		resp, err := http.Get("http://" + s.admin + path)
		if err != nil {
			return 0
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	accepted := func(n float64) {
		t.Helper()
		s.until("the policy to be taken", 30*time.Second, func() bool { return s.metric("postern_policy_loads_total", `result="accepted"`) >= n })
	}
	hup := func() {
		t.Helper()
		if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}

	// No policy at all: nothing can be said, and the service says that it cannot.
	s.until("the service to answer", 60*time.Second, func() bool { return status("/healthz") == http.StatusOK })
	fw = firewall(t, s.udp)
	judged("unverified", time.Now(), "10.20.0.1", 443)
	judged("unverified", time.Now(), "10.20.0.1", 3389)
	s.until("the store to be there", 60*time.Second, func() bool { return s.ledger().Records.Written >= 2 })
	if got := status("/readyz"); got != http.StatusServiceUnavailable {
		t.Errorf("/readyz answers %d without a policy", got)
	}
	if err := s.get("/readyz"); err == nil || !strings.Contains(err.Error(), "no policy is in force") || !positioned.MatchString(err.Error()) {
		t.Errorf("/readyz does not say why: %v", err)
	}
	if s.metric("postern_policy_rejected") != 1 {
		t.Error("postern_policy_rejected is not 1")
	}

	// A file of no content and a folder of no file are no policy either.
	for _, empty := range []string{"", "postern: v1\n"} {
		rejected := s.metric("postern_policy_loads_total", `result="rejected"`)
		s.writePolicy(empty)
		hup()
		s.until("the empty policy to be refused", 30*time.Second, func() bool { return s.metric("postern_policy_loads_total", `result="rejected"`) > rejected })
		judged("unverified", time.Now(), "10.20.0.1", 443)
	}

	// The change alone is enough. Its version holds since 2020, as configured.
	s.writePolicy(livePolicy(true))
	accepted(1)
	s.until("the good policy to be in force", 30*time.Second, func() bool { return status("/readyz") == http.StatusOK })
	hourAgo := time.Now().Add(-time.Hour)
	judged("permitted", time.Now(), "10.20.0.1", 443)
	judged("denied", time.Now(), "10.20.0.1", 8080)
	judged("waived EX-7", time.Now(), "10.20.0.9", 22)

	// A folder that never comes to rest is taken at once by SIGHUP.
	s.writePolicy(livePolicy(true, "tcp/8080"))
	restless := time.Now()
	for i := 0; s.metric("postern_policy_loads_total", `result="accepted"`) < 2; i++ {
		if err := os.WriteFile(filepath.Join(s.policyDir(), "editor.swp"), fmt.Append(nil, i), 0o600); err != nil {
			t.Fatal(err)
		}
		if i == 3 {
			hup()
		}
		if time.Since(restless) > 30*time.Second {
			t.Fatal("SIGHUP did not make it take the policy")
		}
		time.Sleep(50 * time.Millisecond)
	}
	judged("permitted", time.Now(), "10.20.0.1", 8080)
	judged("denied", hourAgo, "10.20.0.1", 8080) // late: judged by the version of its own time

	// Broken, or gone: the last good version stays, and everybody is told.
	for _, spoil := range []func(){
		func() { s.writePolicy(livePolicy(true, "tcp/8080", "tcp/3389") + "\nrulez: []\n") },
		func() { s.writePolicy("") },
		func() {
			if err := os.Remove(filepath.Join(s.policyDir(), "policy.yaml")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		rejected := s.metric("postern_policy_loads_total", `result="rejected"`)
		spoil()
		hup()
		s.until("the bad policy to be refused", 30*time.Second, func() bool { return s.metric("postern_policy_loads_total", `result="rejected"`) > rejected })
		judged("permitted", time.Now(), "10.20.0.1", 8080)
		judged("denied", time.Now(), "10.20.0.1", 3389)
		if s.metric("postern_policy_rejected") != 1 {
			t.Error("postern_policy_rejected is not 1")
		}
		if got := status("/readyz"); got != http.StatusOK {
			t.Errorf("/readyz answers %d, though the last good policy is in force", got)
		}
	}
	if log := s.logs(); !strings.Contains(log, "rulez") || !positioned.MatchString(log) || !strings.Contains(log, "last good version, if there was one, stays in force") {
		t.Error("the log does not say where the broken policy is wrong")
	}

	// Tidied away and still used.
	s.writePolicy(livePolicy(false))
	hup()
	accepted(3)
	if s.metric("postern_policy_rejected") != 0 {
		t.Error("postern_policy_rejected is not 0 under a good policy")
	}
	judged("expired-exception EX-7", time.Now(), "10.20.0.9", 22)
	judged("waived EX-7", hourAgo, "10.20.0.9", 22)
	judged("denied", time.Now(), "10.20.0.1", 8080)
	s.arrived(fw)
	s.stop()

	// While nobody looked, it was put back as it was at first.
	s.writePolicy(livePolicy(true))
	s.start()
	s.until("the reverted policy to be in force", 30*time.Second, func() bool { return s.metric("postern_policy_loads_total", `result="accepted"`) >= 1 })
	judged("waived EX-7", time.Now(), "10.20.0.9", 22)
	judged("denied", time.Now(), "10.20.0.1", 8080)
	judged("denied", hourAgo, "10.20.0.1", 8080) // intervals outlive the restart
	s.arrived(fw)
	got := s.verdicts()
	for port, reason := range want {
		if got[port] != reason {
			t.Errorf("the flow from port %d is %q, want %q", port, got[port], reason)
		}
	}
	s.until("the finding to be stored", 30*time.Second, func() bool { return s.number("SELECT count() AS n FROM findings WHERE exception != ''") > 0 })
	var findings []string
	for _, row := range s.query("SELECT type, exception, ticket, sentence FROM findings WHERE exception != ''") {
		findings = append(findings, fmt.Sprint(row["type"], " ", row["exception"], " ", row["ticket"]))
	}
	if strings.Join(findings, ", ") != flow.FindingExpired+" EX-7 CHG-7" {
		t.Errorf("findings about the exception: %q", findings)
	}
	s.stop()

	// Every version is kept with the time it came into force.
	s.start()
	s.until("all versions to be in ClickHouse", 30*time.Second, func() bool {
		return s.number("SELECT uniqExact(since) AS n FROM policy_versions WHERE position(source, 'office-to-servers') > 0") == 4
	})
	if n := s.number("SELECT uniqExact(hash) AS n FROM policy_versions"); n != 3 {
		t.Errorf("%d versions in ClickHouse, want 3: the revert is an interval, not a version", n)
	}
	s.stop()
}

// TestPolicyFolderSwapped: deployments that swap a link instead of writing files.
func TestPolicyFolderSwapped(t *testing.T) {
	s := newServer(t, livePolicy(false), "")
	for _, name := range []string{"one", "two"} {
		if err := os.Rename(s.policyDir(), filepath.Join(s.dir, name)); err != nil {
			t.Fatal(err)
		}
		s.writePolicy(livePolicy(false, "tcp/8080"))
	}
	link := func(to string) {
		t.Helper()
		tmp := filepath.Join(s.dir, "link")
		if err := os.Symlink(to, tmp); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, s.policyDir()); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(s.policyDir()); err != nil {
		t.Fatal(err)
	}
	link("one")
	s.start()
	taken := func(n float64) {
		t.Helper()
		s.until("the change to be noticed", 30*time.Second, func() bool { return s.metric("postern_policy_loads_total", `result="accepted"`) >= n })
	}
	link("two")
	taken(2)
	s.writePolicy(livePolicy(false, "tcp/8443")) // a file behind the link
	taken(3)
	s.stop()
}

// TestRelabelled: an office machine is given the label that an exception speaks of, while the
// service runs. What it may do now nobody approved, and the owner is told, once, across a
// restart as well (THREATS 9).
func TestRelabelled(t *testing.T) {
	labelled := func(app string) string {
		return livePolicy(false) + `
workloads:
  - {name: pay-1, app: payments, addresses: [10.50.1.1]}
  - {name: desk-2, app: ` + app + `, addresses: [10.50.1.2]}
exceptions:
  - id: EX-9
    class: migration
    from: {app: payments}
    to: {cidr: 10.20.0.9/32}
    services: [tcp/22]
    ticket: CHG-9
    owner: team
    reason: moving
    requested: {by: ana, at: 2024-01-01T00:00:00Z}
    approved: [{by: raj, role: owner, at: 2024-01-02T00:00:00Z}]
    notBefore: 2024-01-03T00:00:00Z
    expires: 2099-01-01T00:00:00Z
`
	}
	s := newServer(t, labelled("desktops"), "detect: {lateness: 1s}\n")
	s.start()
	fw := firewall(t, s.udp)
	port := uint16(30000)
	reach := func(client string) {
		port++
		fw.export(session(time.Now(), client, "10.20.0.9", port, 22))
	}
	reach("10.50.1.1")
	reach("10.50.1.2")
	s.arrived(fw)
	s.writePolicy(labelled("payments"))
	s.until("the change to be in force", 30*time.Second, func() bool { return s.metric("postern_policy_loads_total", `result="accepted"`) >= 2 })
	reach("10.50.1.1")
	reach("10.50.1.2")
	s.arrived(fw)
	s.stop()
	s.start()
	reach("10.50.1.2")
	s.arrived(fw)
	s.stop()
	s.start()
	defer s.stop()
	if v := s.verdicts(); v[30001] != "waived EX-9" || v[30002] != "out-of-scope EX-9" || v[30003] != "waived EX-9" || v[30004] != "waived EX-9" || v[30005] != "waived EX-9" {
		t.Errorf("verdicts: %v", v)
	}
	var found []string
	for _, row := range s.query("SELECT type, client, toString(count) AS n, sentence FROM findings WHERE exception = 'EX-9' ORDER BY type") {
		found = append(found, fmt.Sprint(row["type"], " ", row["client"], " ", row["n"]))
		if row["type"] == flow.FindingGrown && !strings.Contains(fmt.Sprint(row["sentence"]), "into whose scope the source came on") {
			t.Errorf("the finding says %q", row["sentence"])
		}
	}
	if got := strings.Join(found, ", "); got != "out-of-scope 10.50.1.2 1, scope-growth 10.50.1.2 2" {
		t.Errorf("findings: %s", got)
	}
}
