package test

import (
	"bytes"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postern/postern/test/part"
)

const routerScript = "netfilter/router"

const routerPolicy = `
postern: v1
segments:
  - {name: office, prefixes: [10.60.0.0/24], stage: enforced, default: {in: deny, out: allow}, owner: o}
  - {name: servers, prefixes: [192.0.2.0/24], stage: enforced, default: {in: deny, out: allow}, owner: o}
rules:
  - {id: web, action: allow, from: {segment: office}, to: {segment: servers}, services: [tcp/80, tcp/443, icmp/echo], owner: o, reason: the shop}
  - {id: published, action: allow, from: {segment: office}, to: {segment: office}, services: [tcp/8080], owner: o, reason: the shop by its old name}
`

// needRouter ends the test where there can be no router in namespaces.
func needRouter(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		part.Missing(t, "network namespaces and the kernel's log need root")
	}
	part.Need(t, "iproute2 nftables conntrack ulogd2 busybox", "ip", "nft", "conntrack", "ulogd", "busybox", "stdbuf")
	needNamespaces(t)
	if f, err := os.Open("/dev/kmsg"); err != nil {
		part.Missing(t, "the kernel's log cannot be read here: "+err.Error())
	} else {
		f.Close()
	}
}

// needNamespaces ends the test where no network namespace can be made.
func needNamespaces(t testing.TB) {
	t.Helper()
	probe := fmt.Sprint("postern-probe-", os.Getpid(), "-", t.Name())
	if out, err := exec.Command("ip", "netns", "add", probe).CombinedOutput(); err != nil {
		part.Missing(t, "network namespaces cannot be made here: "+string(out))
	}
	if out, err := exec.Command("ip", "netns", "del", probe).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// router calls the script and gives what it printed.
func router(t testing.TB, stdin string, args ...string) string {
	t.Helper()
	cmd := exec.Command(routerScript, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("router %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// namespaceID is the number in the names of the namespaces.
func namespaceID(t testing.TB, dir string) string {
	t.Helper()
	cmd := exec.Command("cksum")
	cmd.Stdin = strings.NewReader(dir)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	id, _, _ := strings.Cut(string(out), " ")
	return id
}

// TestNetfilter lets real connections pass a real Linux router, which translates addresses,
// lets through and drops. What conntrack writes is followed as a file; what nftables logs comes
// from the kernel's log by a real rsyslog, and from NFLOG by a real ulogd. Verdict, translation,
// counters and who began are stored as they were, and what got through although it should not is
// a finding, however it was told.
func TestNetfilter(t *testing.T) {
	t.Parallel()
	needRouter(t)
	needSenders(t)
	const ofAll = "/proc/sys/net/netfilter/nf_log_all_netns"
	before, _ := os.ReadFile(ofAll) // absent before the module is loaded

	s := newRole(t, "serve")
	door := freePort(t, "tcp")
	_, port, _ := net.SplitHostPort(door)
	dir := t.TempDir()
	word := fmt.Sprintf("pt%d", os.Getpid()) + strconv.FormatInt(time.Now().UnixMilli()%1e6, 10)
	s.writePolicy(routerPolicy)
	s.configure(fmt.Sprintf(`data: %s
ingest:
  netflow: {listen: ""}
  sflow: {listen: ""}
  logs:
    files:
      - {paths: ["%[2]s/conntrack.log"], format: conntrack, observer: router}
      - {paths: ["%[2]s/ulogd.log"], format: netfilter, observer: router}
    syslog: [{listen: "%[3]s", format: netfilter}]
policy: {dir: %[4]s, since: 2020-01-01T00:00:00Z}
embedded: {listen: "127.0.0.1:0", maxMemory: 1GiB}
admin: {listen: "%[5]s"}
# Short, so that sessions are written while the test waits.
enrich: {window: 2s}
sessions: {lateness: 10s}
`, s.data, dir, door, s.policyDir(), s.admin))
	s.start()
	r := startProgram(t, "the router", routerScript, "run", dir, word)
	s.until("the router", 20*time.Second, func() bool {
		_, err := os.Stat(filepath.Join(dir, "ready"))
		return err == nil
	})
	kernel := startProgram(t, "rsyslog of the kernel's log", syslogSender, "kernel", t.TempDir(), port, word)

	began := time.Now().Add(-time.Second)
	text := strings.Repeat("x", 3000)
	for _, c := range []struct {
		to, port string
		answered bool
	}{
		{"192.0.2.20", "80", true}, {"192.0.2.20", "22", true}, {"192.0.2.20", "443", true}, {"10.60.0.1", "8080", true},
		{"192.0.2.20", "3389", false}, {"192.0.2.20", "445", false}, {"192.0.2.20", "23", false},
	} {
		want := ""
		if c.answered {
			want = text
		}
		if got := router(t, text, "send", dir, c.to, c.port); got != want {
			t.Fatalf("%s:%s sent %d bytes back, want %d", c.to, c.port, len(got), len(want))
		}
	}
	router(t, "", "ping", dir, "192.0.2.20")

	// All that was followed is forgotten, and told.
	var told []byte
	destroyed := regexp.MustCompile(`(?m)^.*\[DESTROY\].*$`)
	s.until("conntrack to tell the end of all connections", 20*time.Second, func() bool {
		router(t, "", "list", dir)
		told, _ = os.ReadFile(filepath.Join(dir, "conntrack.log"))
		return len(destroyed.FindAll(told, -1)) == 5
	})
	const conntracks, kernels, ulogds = 5 + 5, 8, 3 // at least: SYNs are repeated
	s.until("what was logged to arrive", 20*time.Second, func() bool {
		return s.number("SELECT count() AS n FROM flows WHERE source = 'conntrack'") == conntracks &&
			s.number("SELECT count() AS n FROM flows WHERE source = 'netfilter' AND service = 'icmp/8/0'") > 0 &&
			s.number("SELECT count() AS n FROM flows WHERE source = 'netfilter' AND service IN ('tcp/443', 'tcp/23')") >= ulogds
	})
	total := s.settle()
	if total.Lines.Rejected != 0 {
		t.Errorf("the ledger says %+v", total)
	}
	if n := s.number("SELECT count() AS n FROM flows WHERE source = 'netfilter'"); n < kernels+ulogds-2 {
		t.Errorf("%d logged packets are stored", n)
	}

	// What nftables said, by service: repeated SYNs say the same.
	got := map[string]string{}
	for _, row := range s.query(`SELECT service, source, observed, outcome, rule, enforced_by, toString(client) AS c, toString(server) AS s, oriented, direction, reporter, observer
		FROM flows WHERE source = 'netfilter'`) {
		v := fmt.Sprint(row["observed"], " ", row["outcome"], " ", row["rule"], " by ", row["enforced_by"], ": ", row["c"], " ", row["s"], " ", row["oriented"])
		if old := got[row["service"].(string)]; old != "" && old != v {
			t.Errorf("%v: %s, and %s", row["service"], old, v)
		}
		got[row["service"].(string)] = v
		if row["direction"] != "" || row["reporter"] != "" || row["observer"] == "" {
			t.Errorf("a packet that was forwarded is seen from an end, or by nobody: %v", row)
		}
	}
	const ends = ": ::ffff:10.60.0.10 ::ffff:192.0.2.20 forward"
	want := map[string]string{
		"tcp/80":   "allow permitted web by " + word + " web ACCEPT" + ends,
		"tcp/22":   "allow escaped default:in:servers by " + word + " ssh ACCEPT" + ends,
		"tcp/3389": "deny blocked default:in:servers by " + word + " rdp DROP" + ends,
		"tcp/445":  "deny blocked default:in:servers by " + word + " smb REJECT" + ends,
		"tcp/443":  "allow permitted web by " + word + " tls ACCEPT" + ends,
		"tcp/23":   "deny blocked default:in:servers by " + word + " telnet DROP" + ends,
		"icmp/8/0": "allow permitted web by " + word + " ping ACCEPT" + ends,
	}
	for service, v := range want {
		if got[service] != v {
			t.Errorf("%s: %s\nwant %s", service, got[service], v)
		}
	}
	if len(got) != len(want) {
		t.Errorf("services %v", got)
	}

	// What conntrack said: translation and counters as its own lines have them.
	type counted struct{ packets, bytes, revPackets, revBytes string }
	counters := map[string]counted{}
	field := regexp.MustCompile(`(\w+)=(\S+)`)
	for _, line := range destroyed.FindAll(told, -1) {
		all := map[string][]string{}
		for _, m := range field.FindAllSubmatch(line, -1) {
			all[string(m[1])] = append(all[string(m[1])], string(m[2]))
		}
		service := "icmp"
		if bytes.Contains(line, []byte(" tcp ")) {
			service = all["dport"][0]
		}
		counters[service] = counted{all["packets"][0], all["bytes"][0], all["packets"][1], all["bytes"][1]}
	}
	seen := map[string]bool{}
	for _, row := range s.query(`SELECT service, server_port, toString(src_addr) AS src, toString(dst_addr) AS dst, toString(nat_src_addr) AS ns, toString(nat_dst_addr) AS nd, nat_dst_port,
		packets_raw, bytes_raw, rev_packets_raw, rev_bytes_raw, toString(client) AS c, oriented, observed, outcome, reason, time_start >= fromUnixTimestamp64Milli(toInt64(` + strconv.FormatInt(began.UnixMilli(), 10) + `)) AS fresh
		FROM flows WHERE source = 'conntrack'`) {
		service := strings.TrimPrefix(row["service"].(string), "tcp/")
		if service == "icmp/8/0" {
			service = "icmp"
		}
		nat := fmt.Sprint(row["src"], " ", row["dst"], " ", row["ns"], " ", row["nd"], " ", row["nat_dst_port"])
		wantNAT := "::ffff:10.60.0.10 ::ffff:192.0.2.20 ::ffff:192.0.2.1 <nil> <nil>"
		if service == "8080" {
			wantNAT = "::ffff:10.60.0.10 ::ffff:10.60.0.1 ::ffff:192.0.2.1 ::ffff:192.0.2.20 80"
		}
		if nat != wantNAT {
			t.Errorf("%s: translated %s, want %s", service, nat, wantNAT)
		}
		if row["c"] != "::ffff:10.60.0.10" || row["oriented"] != "forward" || row["observed"] != "unknown" || row["fresh"] != 1.0 {
			t.Errorf("%s: %v", service, row)
		}
		if row["packets_raw"] == nil {
			if row["outcome"] != "attempted" {
				t.Errorf("%s is new, and %v", service, row["outcome"])
			}
			continue
		}
		if seen[service] {
			t.Errorf("%s ended twice", service)
		}
		seen[service] = true
		if c, want := fmt.Sprint(row["packets_raw"], row["bytes_raw"], row["rev_packets_raw"], row["rev_bytes_raw"]), counters[service]; c != fmt.Sprint(want.packets, " ", want.bytes, " ", want.revPackets, " ", want.revBytes) {
			t.Errorf("%s: counted %s, want %v", service, c, want)
		}
		if outcome := map[bool]string{true: "escaped", false: "permitted"}[service == "22"]; row["outcome"] != outcome {
			t.Errorf("%s: %v, want %s: both ends spoke", service, row["outcome"], outcome)
		}
	}
	if !slices.Equal(slices.Sorted(maps.Keys(seen)), []string{"22", "443", "80", "8080", "icmp"}) {
		t.Errorf("ended: %v", seen)
	}

	s.until("the finding", 20*time.Second, func() bool { return s.number("SELECT count() AS n FROM findings") > 0 })
	for _, row := range s.query("SELECT type, service, client, server, outcome FROM findings") {
		if row["service"] != "tcp/22" || row["type"] != "policy-violation" || row["client"] != "10.60.0.10" || row["server"] != "192.0.2.20" {
			t.Errorf("a finding of %v", row)
		}
	}

	// Log and conntrack are one session, with the verdict of the one and the counters of the other.
	const written = "SELECT count() AS n FROM sessions FINAL WHERE service IN ('tcp/22', 'tcp/3389')"
	s.until("the sessions to be written", 40*time.Second, func() bool { return s.number(written) >= 2 })
	for _, row := range s.query(`SELECT service, records, observers_total, observed, outcome, nat, toString(client) AS c, toString(server) AS s, toString(nat_client) AS nc, client_packets, client_bytes, server_packets, server_bytes
		FROM sessions FINAL WHERE service IN ('tcp/22', 'tcp/3389')`) {
		got := fmt.Sprint(row["observed"], " ", row["outcome"], " ", row["nat"], " ", row["nc"], " ", row["c"], " ", row["s"], " of ", row["observers_total"])
		want := "deny blocked none <nil> ::ffff:10.60.0.10 ::ffff:192.0.2.20 of 1"
		if row["service"] == "tcp/22" {
			want = "allow escaped translated ::ffff:192.0.2.1 ::ffff:10.60.0.10 ::ffff:192.0.2.20 of 2"
			c := counters["22"]
			if n := fmt.Sprint(row["client_packets"], " ", row["client_bytes"], " ", row["server_packets"], " ", row["server_bytes"]); n != fmt.Sprint(c.packets, " ", c.bytes, " ", c.revPackets, " ", c.revBytes) {
				t.Errorf("the session counts %s, conntrack %v", n, c)
			}
			if row["records"] != 3.0 {
				t.Errorf("it was told by %v records; want the log's, conntrack's NEW and its DESTROY", row["records"])
			}
		}
		if got != want {
			t.Errorf("the session of %v: %s, want %s", row["service"], got, want)
		}
	}
	if n := s.number(written); n != 2 {
		t.Errorf("%d sessions, want 2", n)
	}
	kernel.stop()
	r.stop()
	if left, err := exec.Command("ip", "netns", "list").Output(); err != nil || bytes.Contains(left, []byte(namespaceID(t, dir))) {
		t.Errorf("namespaces are left: %v %s", err, left)
	}
	if after, _ := os.ReadFile(ofAll); len(before) > 0 && !bytes.Equal(before, after) {
		t.Errorf("nf_log_all_netns was %s and is %s", before, after)
	}
	s.stop()
}
