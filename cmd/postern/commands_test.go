package main

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/policy"
)

// command runs a command in this process and gives what it printed and its status.
func command(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := rootCommand()
	var out, diag bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&diag)
	cmd.SetArgs(args)
	err = cmd.ExecuteContext(t.Context())
	return out.String(), diag.String(), err
}

func writeFile(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// demoFolder is the policy of the demo's company as files.
func demoFolder(t *testing.T, start time.Time) string {
	t.Helper()
	dir := t.TempDir()
	if err := writeDemoPolicy(dir, start, true); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestCheck(t *testing.T) {
	good := demoFolder(t, time.Now())
	out, _, err := command(t, "check", good)
	if err != nil || !regexp.MustCompile(`12 segments, 19 workloads, 16 rules, 10 exceptions; version \S+\n$`).MatchString(out) {
		t.Errorf("a good folder: %v\n%s", err, out)
	}
	for name, test := range map[string]struct{ file, text, want string }{
		"unknown key":        {"policy", "postern: v1\nsegmnets: []\n", `p.yaml:2:1: .*"segmnets".*; did you mean "segments"\?`},
		"unknown key below":  {"policy", "postern: v1\nsegments:\n  - name: a\n    prefxes: [10.0.0.0/8]\n", `p.yaml:4:5: .*"prefxes".*; did you mean "prefixes"\?`},
		"everything open":    {"policy", "postern: v1\nsegments:\n  - {name: a, prefixes: [10.0.0.0/8]}\nexceptions:\n  - id: EX-1\n    class: vendor\n    from: {any: true}\n    to: {any: true}\n    ticket: T-1\n    owner: o\n    reason: r\n    requested: {by: a, at: 2026-01-01T00:00:00Z}\n    approved: [{by: b, role: r, at: 2026-01-01T00:00:00Z}]\n    notBefore: 2026-01-01T00:00:00Z\n    expires: 2026-01-02T00:00:00Z\n", `p.yaml:\d+:\d+: .*; `},
		"a colon in braces":  {"config", "kafka: {brokers: [kafka-1:9092]}\n", `postern.yaml:1:26: .*put a text that holds a colon in quotes`},
		"key of settings":    {"config", "ingest:\n  netflw: {listen: \"127.0.0.1:1\"}\n", `postern.yaml:2:3: unknown key "netflw"; did you mean "netflow"\?`},
		"duration":           {"config", "detect:\n  grace: soon\n", `postern.yaml:2:10: "soon" is no length of time; write it with its unit`},
		"no such source":     {"config", "ingest:\n  logs:\n    files: [{paths: [/var/log/vpn], events: vpn}]\n", `postern.yaml:3:45: .*"vpn" is no source of sessions; there is none`},
		"no such hosts":      {"config", "identity:\n  sessions: [{name: logons, format: windows-logon, hosts: [office]}]\n", `postern.yaml:2:60: .*"office" is no source; name one`},
		"no format":          {"config", "ingest:\n  logs:\n    files: [{paths: [/var/log/vpn]}]\n", `postern.yaml:3:\d+: .*"" is no format of agent logs; use one of aws, `},
		"no unit":            {"config", "clickhouse:\n  retention: {flows: 30}\n", `postern.yaml:2:22: "30" is no length of time; write it with its unit`},
		"size":               {"config", "ingest:\n  spool:\n    maxBytes: lots\n", `postern.yaml:3:15: .*; write 512KiB`},
		"out of range":       {"config", "detect:\n  updateEvery: 1ms\n", `postern.yaml:2:\d+: .*write a duration`},
		"too soon for pairs": {"config", "enrich:\n  window: 15s\nsessions:\n  lateness: 12s\n", `postern.yaml:4:\d+: .*shorter than enrich.window \(15s\)`},
		"off loopback":       {"config", "ingest:\n  netflow:\n    listen: 0.0.0.0:2055\n", `postern.yaml:3:\d+: .*allow-list; write exporters`},
		"secret itself":      {"config", "targets:\n  - name: siem\n    webhook:\n      url: https://siem.example/\n      secrets: [\"whsec_c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0\"]\n", `postern.yaml:\d+:\d+: .*env:NAME or file:PATH`},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			args := []string{"check", dir}
			if test.file == "policy" {
				writeFile(t, filepath.Join(dir, "p.yaml"), test.text)
			} else {
				args = []string{"check", "-c", writeFile(t, filepath.Join(dir, "postern.yaml"), test.text), good}
			}
			out, _, err := command(t, args...)
			var status exitError
			if !errors.As(err, &status) || status != 1 {
				t.Errorf("status %v, want 1", err)
			}
			if !regexp.MustCompile(test.want).MatchString(out) {
				t.Errorf("said\n%swant a line like %s", out, test.want)
			}
			if strings.Contains(out, "c2VjcmV0") {
				t.Errorf("the secret is printed:\n%s", out)
			}
		})
	}
	for _, text := range []string{"", "# nothing is said\n", "---\n", "ingest:\n"} {
		if out, _, err := command(t, "check", "-c", writeFile(t, filepath.Join(t.TempDir(), "postern.yaml"), text), good); err != nil {
			t.Errorf("a configuration of the defaults, %q: %v\n%s", text, err, out)
		}
	}
	if out, _, err := command(t, "check", filepath.Join(t.TempDir(), "nowhere")); err == nil || !strings.Contains(out, "is no folder") {
		t.Errorf("no folder: %v\n%s", err, out)
	}
	if _, _, err := command(t, "check", "-c", filepath.Join(t.TempDir(), "nowhere.yaml")); err == nil {
		t.Error("no configuration: status 0")
	}
}

func TestExplain(t *testing.T) {
	start := time.Date(2026, 3, 10, 12, 0, 0, 0, time.UTC)
	dir := demoFolder(t, start)
	at := start.Format(time.RFC3339)
	for name, test := range map[string]struct {
		args []string
		want []string
	}{
		"permitted": {[]string{"10.30.0.10", "10.20.0.11", "tcp/443"}, []string{"permitted", "pay-to-vault"}},
		"denied":    {[]string{"10.50.1.23", "10.50.1.77", "tcp/445"}, []string{"denied", "no-office-east-west"}},
		"waived":    {[]string{"10.40.0.21", "10.30.0.20", "tcp/5432"}, []string{"waived", "EX-2077"}},
		"expired":   {[]string{"10.60.0.3", "10.20.0.11", "tcp/443"}, []string{"expired-exception", "EX-2041"}},
		"mapped":    {[]string{"::ffff:10.60.0.3", "10.20.0.11", "tcp/443"}, []string{"expired-exception", "EX-2041"}},
		"uncovered": {[]string{"10.90.0.1", "10.90.0.2", "udp/9"}, []string{"uncovered"}},
	} {
		out, _, err := command(t, append([]string{"explain", "--policy", dir, "--at", at}, test.args...)...)
		for _, w := range test.want {
			if err != nil || !strings.Contains(out, w) {
				t.Errorf("%s: %v, no %q in\n%s", name, err, w, out)
			}
		}
	}
	// The same flow while the exception was valid.
	out, _, err := command(t, "explain", "--policy", dir, "--at", start.Add(-100*time.Hour).Format(time.RFC3339), "10.60.0.3", "10.20.0.11", "tcp/443")
	if err != nil || !strings.Contains(out, "waived") {
		t.Errorf("in its time: %v\n%s", err, out)
	}
	out, _, err = command(t, "explain", "--json", "--policy", dir, "--at", at, "10.60.0.3", "10.20.0.11", "tcp/443")
	if err != nil || !strings.Contains(out, `"reason": "expired-exception"`) || !strings.Contains(out, `"steps"`) {
		t.Errorf("as JSON: %v\n%s", err, out)
	}
	for _, bad := range [][]string{{"10.0.0", "10.0.0.1", "tcp/1"}, {"10.0.0.2", "10.0.0.1", "tcp/1-5"}, {"10.0.0.2", "10.0.0.1", "http"}, {"10.0.0.2", "10.0.0.1", "tcp/1", "--at", "noon"}} {
		if _, _, err := command(t, append([]string{"explain", "--policy", dir}, bad...)...); err == nil || strings.Count(err.Error(), "\n") > 0 {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

func TestHelpVersionCompletion(t *testing.T) {
	out, _, err := command(t, "version")
	if err != nil || !regexp.MustCompile(`^postern \S+ \(go1\.\S+, \w+/\w+\)\n$`).MatchString(out) {
		t.Errorf("version: %v, %q", err, out)
	}
	help, _, err := command(t, "--help")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range rootCommand().Commands() {
		if !strings.Contains(help, "  "+c.Name()+" ") {
			t.Errorf("--help does not list %s", c.Name())
		}
		text, _, err := command(t, c.Name(), "--help")
		if err != nil || !strings.Contains(text, "Usage:") || c.Short == "" {
			t.Errorf("%s --help: %v\n%s", c.Name(), err, text)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		out, _, err := command(t, "completion", shell)
		if err != nil || !strings.Contains(out, "postern") || len(out) < 1000 {
			t.Errorf("completion %s: %v, %d bytes", shell, err, len(out))
		}
	}
	for _, wrong := range [][]string{{"sevre"}, {"serve", "extra"}, {"decode"}, {"replay"}, {"check", "a", "b"}, {"decode", "--nonsense", "x"}} {
		if _, _, err := command(t, wrong...); err == nil {
			t.Errorf("%v: no error", wrong)
		}
	}
	var said strings.Builder
	if got := run(context.Background(), []string{"decode", filepath.Join(t.TempDir(), "nowhere.pcap")}, &said); got != 1 || strings.Contains(said.String(), "usage:") {
		t.Errorf("status %d for a file that is not there: %s", got, &said)
	}
	said.Reset()
	if got := run(context.Background(), []string{"explain", "10.0.0.1"}, &said); got != 1 || !strings.Contains(said.String(), "usage: postern explain SRC DST PROTO/PORT ") {
		t.Errorf("status %d for a command line that is wrong: %s", got, &said)
	}
}

// TestSecrets: what a reference points to is read, what is no reference is refused
// without being repeated.
func TestSecrets(t *testing.T) {
	t.Setenv("POSTERN_TEST_SECRET", " hush\n")
	path := writeFile(t, filepath.Join(t.TempDir(), "secret"), "hush\n")
	for _, ref := range []string{"env:POSTERN_TEST_SECRET", "file:" + path} {
		if got, err := resolveSecret(ref); got != "hush" || err != nil {
			t.Errorf("%s gave %q, %v", ref, got, err)
		}
	}
	for _, ref := range []string{"hush-hush", "env:POSTERN_TEST_UNSET", "file:" + path + ".not", ""} {
		if got, err := resolveSecret(ref); err == nil || got != "" || strings.Contains(err.Error(), "hush-hush") {
			t.Errorf("%s gave %q, %v", ref, got, err)
		}
	}
	dir := filepath.Join(t.TempDir(), "data")
	first, err := keptToken(dir, "t")
	if err != nil || len(first) < 32 {
		t.Fatalf("%q, %v", first, err)
	}
	if again, err := keptToken(dir, "t"); again != first || err != nil {
		t.Errorf("a kept token is %q, then %q, %v", first, again, err)
	}
	for _, name := range []string{dir, filepath.Join(dir, "t")} {
		st, err := os.Stat(name)
		if err != nil || st.Mode().Perm()&fs.FileMode(0o077) != 0 {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
	}
}

// TestDemoCompares: the demo fails where something planted was not found, and where
// something was found that nobody planted.
func TestDemoCompares(t *testing.T) {
	c := newCompany(1)
	_, _, byPeople := c.people(time.Now(), 0)
	misuse := slices.Concat(c.misuse(), c.afterDeletion(0), byPeople)
	if len(misuse) != 22 {
		t.Fatalf("%d misuses are planted", len(misuse))
	}
	r := &demoReceiver{findings: map[string]*flow.Finding{}}
	for i, p := range misuse {
		id := string(rune('a' + i))
		r.findings[id] = &flow.Finding{ID: id, Type: p.kind, Client: p.client, Server: p.server, Service: p.service, Exception: p.exception}
	}
	if m, x := r.missing(misuse), r.extra(misuse); len(m)+len(x) != 0 {
		t.Fatalf("all was found: %d missing, %d extra", len(m), len(x))
	}
	for id, f := range r.findings {
		delete(r.findings, id)
		if m := r.missing(misuse); len(m) != 1 || m[0].key() != foundKey(f) {
			t.Errorf("%s was not found, missing says %v", foundKey(f), m)
		}
		wrong := *f
		wrong.Exception += "x"
		r.findings[id] = &wrong
		if m, x := r.missing(misuse), r.extra(misuse); len(m) != 1 || len(x) != 1 {
			t.Errorf("%s was found with another exception: %d missing, %d extra", foundKey(f), len(m), len(x))
		}
		r.findings[id] = f
	}
}

// TestDemoTraffic: the same seed draws the same traffic, which ends before it is told.
func TestDemoTraffic(t *testing.T) {
	start := time.Date(2026, 3, 10, 12, 0, 0, 0, time.UTC)
	draw := func(seed uint64) (a, b []flow.Record) {
		c := newCompany(seed)
		c.everyday()
		c.misuse()
		return c.records(start)
	}
	switch1, fw1 := draw(1)
	switch2, fw2 := draw(1)
	other, _ := draw(2)
	same := func(a, b []flow.Record) bool {
		if len(a) != len(b) {
			return false
		}
		for i := range a {
			if a[i] != b[i] {
				return false
			}
		}
		return true
	}
	if !same(switch1, switch2) || !same(fw1, fw2) || same(switch1, other) {
		t.Error("the traffic does not follow the seed")
	}
	for _, r := range append(switch1, fw1...) {
		if r.End > flow.TimeOf(start)+1 || r.Start > r.End || r.Start < flow.TimeOf(start.Add(-31*time.Minute)) {
			t.Fatalf("a flow from %v to %v in a demo that starts at %v", r.Start, r.End, start)
		}
	}
}

// TestDemoAnyHour: whenever the demo is started, what a pipeline newly reaches it reaches on one day by UTC;
// on two it would be an administrator, of whom nothing that the demo plants is unusual.
func TestDemoAnyHour(t *testing.T) {
	for quarter := range 24 * 4 {
		start := time.Date(2026, 11, 22, 0, 15*quarter, 7, 0, time.UTC)
		c := newCompany(1)
		c.week(start)
		first := map[string]time.Time{}
		for _, v := range c.all {
			if at := start.Add(v.start); v.sport == 22 && strings.HasPrefix(v.client, "10.40.0.") && (first[v.client+v.server].IsZero() || at.Before(first[v.client+v.server])) {
				first[v.client+v.server] = at
			}
		}
		days := map[string]bool{}
		for _, at := range first {
			days[at.Format(time.DateOnly)] = true
		}
		if len(first) != 16 || len(days) != 1 {
			t.Errorf("started at %s: %d ways newly gone on %d days, want 16 on one", start.Format(time.TimeOnly), len(first), len(days))
		}
	}
}

// TestDemoSilent: those of whom the demo says nothing are there, in its last half hour and in the
// week before.
func TestDemoSilent(t *testing.T) {
	live, week := newCompany(1), newCompany(1)
	live.everyday()
	week.week(time.Date(2026, 11, 22, 16, 30, 0, 0, time.UTC))
	for _, client := range []string{backup, scanner, "10.50.9.9", "10.50.9.10", "10.40.0.21", "10.40.0.22"} {
		for name, c := range map[string]*company{"half hour": live, "week": week} {
			n := 0
			for _, v := range c.all {
				if v.client == client && v.proto == tcp && v.replies > 0 && v.end >= v.start && v.end <= 0 {
					n++
				}
			}
			if n < 4 {
				t.Errorf("%s began %d conversations in the %s", client, n, name)
			}
		}
	}
}

// TestNotReadyYet: a policy that was read and has its turn later is told apart from one that
// was not read.
func TestNotReadyYet(t *testing.T) {
	names := flow.NewNames(0)
	k := newPolicyKeeper(policyConfig{Dir: demoFolder(t, time.Now())}, t.TempDir(), names, policy.NewHistory(names, policy.Config{}), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	k.append = func(activation) error { return nil } // it stays in the spool
	if err := k.ready(); err == nil || err.Error() != "no policy is in force yet" {
		t.Error(err)
	}
	if err := k.reload(wallClock()); err != nil {
		t.Fatal(err)
	}
	if err := k.ready(); err == nil || !strings.Contains(err.Error(), "no policy is in force yet; the one that was read has its turn ") {
		t.Error(err)
	}
}
