package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/exporter"
	"github.com/postern/postern/test/part"
	"github.com/postern/postern/test/radius"
)

const dhcpScript = "kea/dhcp"

const leasePolicy = `
postern: v1
segments:
  - {name: office, prefixes: [10.99.0.0/24], stage: enforced, default: {in: deny, out: allow}, owner: o}
  - {name: servers, prefixes: [10.20.0.0/16], stage: enforced, default: {in: deny, out: allow}, owner: o}
rules:
  - {id: alice, action: allow, from: {identity: alice@corp}, to: {segment: servers}, services: [tcp/443], owner: o, reason: r}
  - {id: staff, action: allow, from: {group: staff}, to: {segment: servers}, services: [tcp/8443], owner: o, reason: r}
`

// kea is a real Kea server with one address to give.
type kea struct {
	t   testing.TB
	dir string
}

func startKea(t testing.TB) *kea {
	t.Helper()
	if os.Geteuid() != 0 {
		part.Missing(t, "a DHCP server in a network namespace needs root")
	}
	part.Need(t, "iproute2 busybox kea-dhcp4-server", "ip", "busybox", "kea-dhcp4")
	needNamespaces(t)
	// A socket's path holds 107 bytes, fewer than the name of a test's folder may have.
	dir, err := os.MkdirTemp("", "kea")
	if err != nil {
		t.Fatal(err)
	}
	k := &kea{t, dir}
	t.Cleanup(func() {
		k.run("down")
		os.RemoveAll(dir)
	})
	k.run("up")
	return k
}

// run calls the script and gives what it printed.
func (k *kea) run(what string, args ...string) string {
	k.t.Helper()
	cmd := exec.Command(dhcpScript, append([]string{what, k.dir}, args...)...)
	cmd.Env = append(os.Environ(), "LIFETIME="+strconv.Itoa(leaseLifetime))
	out, err := cmd.CombinedOutput()
	if err != nil {
		k.t.Fatalf("dhcp %s: %v\n%s", what, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (k *kea) file() string { return filepath.Join(k.dir, "kea-leases4.csv") }

// lease gives when the newest lease began and ends, as Kea has written it.
func (k *kea) lease() (since, until time.Time) {
	k.t.Helper()
	raw, err := os.ReadFile(k.file())
	if err != nil {
		k.t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	column := map[string]string{}
	values := strings.Split(lines[len(lines)-1], ",")
	for i, name := range strings.Split(lines[0], ",") {
		column[name] = values[i]
	}
	expire, err1 := strconv.ParseInt(column["expire"], 10, 64)
	lifetime, err2 := strconv.ParseInt(column["valid_lifetime"], 10, 64)
	if err1 != nil || err2 != nil {
		k.t.Fatalf("%v %v in %s", err1, err2, raw)
	}
	return time.Unix(expire-lifetime, 0), time.Unix(expire, 0)
}

// leaseLifetime is how many seconds a lease lasts.
const leaseLifetime = 8

// TestLeaseReused has a real Kea give one address to one laptop after another, while flows come
// in, and judges each flow by who held the address when it began: before the first lease, under
// it, after it was given back, under the next one, and after that has expired. Alice, who logged
// on at the first laptop and never off, as a real FreeRADIUS has written down, is credited with
// nothing that came after; in a gap nobody is, and the flow is unverified and says why (THREATS
// 14). Sent again later, after a kill, all are judged the same.
func TestLeaseReused(t *testing.T) {
	t.Parallel()
	k := startKea(t)
	accounting := radius.Start(t, "UTC")
	const address = "10.99.0.50"
	s := newRole(t, "serve")
	s.writePolicy(leasePolicy)
	inventory := filepath.Join(s.dir, "inventory.csv")
	write := func(rows string) {
		t.Helper()
		if err := os.WriteFile(inventory+".next", []byte("address,user,groups,since,until\n"+rows), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(inventory+".next", inventory); err != nil {
			t.Fatal(err)
		}
	}
	write("")
	s.configure(fmt.Sprintf(`data: %s
ingest:
  netflow: {listen: "%s"}
  sflow: {listen: ""}
  logs: {files: [{paths: [%s], events: logons}]}
policy: {dir: %s, since: 2020-01-01T00:00:00Z}
embedded: {listen: "127.0.0.1:0", maxMemory: 1GiB}
admin: {listen: "%s"}
identity:
  hold: 2s
  dhcp: [{name: office-dhcp, server: kea, leases: %s, every: 1s}]
  inventory: [{name: assets, path: %s, every: 1s}]
  sessions: [{name: logons, format: radius, maxLength: 0s}]
`, s.data, s.udp, accounting.Detail, s.policyDir(), s.admin, k.file(), inventory))
	s.start()
	d := newDevice(t, "127.0.0.2", s.udp, exporter.Config{Protocol: flow.SourceIPFIX, Domain: 1, Biflow: true, BiflowDirection: true})

	type step struct {
		name string
		want map[uint16]string // by server port
		at   time.Time
	}
	var steps []*step
	ports := []uint16{443, 8443}
	send := func(st *step, first int) {
		t.Helper()
		for i, port := range ports {
			d.export(session(st.at, address, "10.20.0.1", uint16(first+i), port))
		}
	}
	// told does something and waits until a source has told of it.
	told := func(source string, do func()) {
		t.Helper()
		facts := func() float64 {
			return s.metric("postern_identity_source_facts_told_total", fmt.Sprintf("source=%q", source))
		}
		before := facts()
		do()
		s.until(source+" to tell of it", 10*time.Second, func() bool { return facts() > before })
	}
	obtain := func(name, mac string) {
		t.Helper()
		told("office-dhcp", func() {
			if got := k.run("obtain", name, mac); got != address {
				t.Fatalf("%s got %s", name, got)
			}
		})
	}
	// passes sends flows that begin now, more than a second from what happened before and will
	// happen next: Kea's times are whole seconds, and an end is known to half of one.
	passes := func(name string, want map[uint16]string) {
		t.Helper()
		time.Sleep(1200 * time.Millisecond)
		st := &step{name: name, want: want, at: time.Now()}
		send(st, 50_000+10*len(steps))
		steps = append(steps, st)
		time.Sleep(1500 * time.Millisecond)
	}
	// What directories say of anybody is unknown: there is none.
	nobody := map[uint16]string{443: "unverified   [gap]", 8443: "unverified   [gap]"}
	told("logons", func() {
		accounting.Send("Acct-Status-Type = Start\nAcct-Session-Id = 1\nUser-Name = alice@corp\nNAS-IP-Address = 192.0.2.1\nFramed-IP-Address = " + address)
	})
	passes("before any lease", nobody)
	obtain("alpha", "02:00:00:00:00:0a")
	passes("alpha, where alice is logged on", map[uint16]string{443: "permitted alice@corp alpha [unknown]", 8443: "unverified alice@corp alpha [unknown]"})
	told("office-dhcp", func() { k.run("release") })
	passes("given back", nobody)
	obtain("beta", "02:00:00:00:00:0b")
	passes("beta, of whose user nobody knows", map[uint16]string{443: "unverified  beta []", 8443: "unverified  beta []"})
	k.run("leave")
	_, expires := k.lease()
	time.Sleep(time.Until(expires))
	passes("beta's lease has expired", nobody)
	obtain("gamma", "02:00:00:00:00:0c")
	since, _ := k.lease()
	told("assets", func() { write(fmt.Sprintf("%s,bob@corp,staff,%s,\n", address, since.UTC().Format(time.RFC3339))) })
	passes("gamma, which is bob's", map[uint16]string{443: "denied bob@corp gamma [unknown]", 8443: "permitted bob@corp gamma [unknown]"})

	check := func(first int) {
		t.Helper()
		s.until("the flows to be judged", 40*time.Second, func() bool {
			return s.number(fmt.Sprintf("SELECT count() AS n FROM flows WHERE client_port >= %d AND client_port < %d", first, first+1000)) == len(steps)*len(ports)
		})
		rows := map[int]string{}
		for _, row := range s.query("SELECT client_port, reason, src_identity, src_host, arrayStringConcat(src_doubt, ',') AS doubt FROM flows") {
			rows[int(row["client_port"].(float64))] = fmt.Sprintf("%v %v %v [%v]", row["reason"], row["src_identity"], row["src_host"], row["doubt"])
		}
		for n, st := range steps {
			for i, port := range ports {
				if got := rows[first+10*n+i]; got != st.want[port] {
					t.Errorf("%s, tcp/%d: %s, want %s", st.name, port, got, st.want[port])
				}
			}
		}
	}
	check(50_000)

	out := run(t, "explain", "-c", s.config, "--at", steps[2].at.UTC().Format(time.RFC3339Nano), address, "10.20.0.1", "tcp/443")
	for _, want := range []string{"office-dhcp: workload alpha", "logons: user alice@corp", ": ended"} {
		if !strings.Contains(out, want) {
			t.Errorf("explain does not say %q:\n%s", want, out)
		}
	}

	_ = s.kill(syscall.SIGKILL)
	s.start()
	for n, st := range steps {
		send(st, 51_000+10*n)
	}
	check(51_000)
	check(50_000)
	s.stop()
}
