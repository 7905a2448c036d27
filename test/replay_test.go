package test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/exporter"
	"github.com/postern/postern/test/part"
)

// captured writes records as an exporter would send them, as a capture.
func captured(t *testing.T, cfg exporter.Config, records []flow.Record) string {
	t.Helper()
	x, err := exporter.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var packets []exporter.Packet
	for i := 0; i < len(records); i += 20 {
		some := records[i:min(i+20, len(records))]
		at := some[len(some)-1].End + 1000
		_, err := x.Export(at, some, func(b []byte) error {
			packets = append(packets, exporter.Packet{At: at, Src: netip.MustParseAddrPort("192.0.2.1:4000"), Dst: netip.MustParseAddrPort("192.0.2.9:2055"), Payload: bytes.Clone(b)})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var buf bytes.Buffer
	if err := exporter.WritePcap(&buf, packets); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "capture.pcap")
	if err := os.WriteFile(path, buf.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// workday is an hour of office traffic of which some is denied.
func workday() []flow.Record {
	var out []flow.Record
	start := time.Date(2026, 3, 10, 9, 0, 0, 0, time.UTC)
	for i := range 400 {
		r := session(start.Add(time.Duration(i)*9*time.Second), "10.50.0."+[]string{"1", "2", "3"}[i%3], "10.20.0.1", uint16(3000+i), 443)
		switch i % 50 {
		case 7:
			r.DstPort = 3389
		case 9:
			r.DstPort = 8080
		case 11:
			r.Dst, r.DstPort = flow.MustParseAddr("10.20.0.9"), 22
		}
		r.InIf, r.OutIf = 3, 4
		r.Has |= flow.HasInIf | flow.HasOutIf
		out = append(out, r)
	}
	return out
}

var biflows = exporter.Config{Protocol: flow.SourceIPFIX, Domain: 4, Biflow: true, BiflowDirection: true, SamplingRate: 10}

func policyFolder(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "policy.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// jsonLines reads one object a line.
func jsonLines(t *testing.T, text string) []map[string]any {
	t.Helper()
	var out []map[string]any
	for line := range strings.Lines(text) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		out = append(out, m)
	}
	return out
}

func lacks(t *testing.T, what string, m map[string]any, fields ...string) {
	t.Helper()
	for _, f := range fields {
		if _, ok := m[f]; !ok {
			t.Errorf("%s has no %s: %v", what, f, m)
		}
	}
}

var (
	decodeFields  = []string{"time_start", "time_end", "time_received", "exporter", "domain", "source", "src_addr", "dst_addr", "src_port", "dst_port", "proto", "tcp_flags", "bytes", "packets", "rev_bytes", "rev_packets", "rev_tcp_flags", "in_if", "out_if", "sampling_rate", "bytes_raw", "packets_raw", "rev_bytes_raw", "rev_packets_raw", "quality"}
	verdictFields = []string{"client", "server", "service", "src_segment", "dst_segment", "observed", "expected", "staged", "reason", "outcome", "confidence", "rule", "policy_version"}
	findingFields = []string{"id", "schema_version", "revision", "type", "title", "severity", "confidence", "first_seen", "last_seen", "count", "client", "server", "service", "src_segment", "dst_segment", "observed", "expected", "reason", "outcome", "rule", "policy_version", "edges", "edges_total", "samples", "sentence", "next"}
)

// TestReplayAlone: without a store, a configuration or anything else.
func TestReplayAlone(t *testing.T) {
	capture, dir := captured(t, biflows, workday()), policyFolder(t, livePolicy(true))
	t.Chdir(t.TempDir())
	t.Setenv("POSTERN_CACHE", filepath.Join(t.TempDir(), "empty")) // not even the engine
	flows, diag, err := try(t, "replay", "--no-store", "--policy", dir, "--flows", "-", capture)
	if err != nil {
		t.Fatalf("%v\n%s", err, diag)
	}
	lines := jsonLines(t, flows)
	if len(lines) != 400 {
		t.Fatalf("%d flows, want 400", len(lines))
	}
	reasons := map[any]int{}
	for _, m := range lines {
		lacks(t, "a flow", m, decodeFields...)
		lacks(t, "a flow", m, verdictFields...)
		reasons[m["reason"]]++
		if m["reason"] == "waived" {
			lacks(t, "a waived flow", m, "exception", "valid_until")
		}
		if m["bytes"].(float64) != 10*m["bytes_raw"].(float64) {
			t.Fatalf("bytes are not scaled by the sampling rate: %v", m)
		}
	}
	if reasons["denied"] != 16 || reasons["waived"] != 8 || reasons["permitted"] != 376 {
		t.Errorf("reasons %v", reasons)
	}
	findings, _, err := try(t, "replay", "--no-store", "--policy", dir, "--findings", "-", capture)
	if err != nil {
		t.Fatal(err)
	}
	found := jsonLines(t, findings)
	if len(found) == 0 {
		t.Fatal("no finding")
	}
	sessions := 0.0
	for _, m := range found {
		lacks(t, "a finding", m, findingFields...)
		sessions += m["count"].(float64)
	}
	if sessions != 16 {
		t.Errorf("findings count %v sessions, want 16", sessions)
	}
	again, _, err := try(t, "replay", "--no-store", "--policy", dir, "--findings", "-", capture)
	if err != nil || again != findings {
		t.Errorf("the same replay gave other findings: %v", err)
	}
	if !regexp.MustCompile(`16 │ +denied`).MatchString(diag) {
		t.Errorf("no table of verdicts:\n%s", diag)
	}
	if entries, err := os.ReadDir("."); err != nil || len(entries) > 0 {
		t.Errorf("replay --no-store left something behind: %v, %v", entries, err)
	}
}

// TestReplayIntoClickHouse: the same again changes nothing, another policy replaces
// what the file wrote, and both say so.
func TestReplayIntoClickHouse(t *testing.T) {
	s := newServer(t, livePolicy(true), "")
	s.start()
	capture := captured(t, biflows, workday())
	other := policyFolder(t, livePolicy(true, "tcp/8080"))
	count := func() (flows, denied, findings int) {
		t.Helper()
		return s.number("SELECT count() AS n FROM flows"), s.number("SELECT countIf(reason = 'denied') AS n FROM flows"),
			s.number("SELECT sum(count) AS n FROM findings")
	}
	check := func(what string, wantDenied int) {
		t.Helper()
		flows, denied, findings := count()
		if flows != 400 || denied != wantDenied || findings != wantDenied {
			t.Errorf("%s: %d flows, %d denied, %d sessions in findings; want 400, %d, %d", what, flows, denied, findings, wantDenied, wantDenied)
		}
		if n := s.edgesAgree(0, 400); n != 400 {
			t.Errorf("%s: %d sessions, want 400", what, n)
		}
	}
	replay := func(says string, args ...string) {
		t.Helper()
		_, diag, err := try(t, append([]string{"replay", "-c", s.config}, append(args, capture)...)...)
		if err != nil {
			t.Fatalf("%v\n%s", err, diag)
		}
		if !strings.Contains(diag, says) {
			t.Errorf("the summary does not say %q:\n%s", says, diag)
		}
	}
	replay("400 decoded")
	check("once", 16)
	rebuilds := func(says string) {
		t.Helper()
		for _, hour := range s.query("SELECT formatDateTime(hour, '%FT%TZ') AS h FROM edges GROUP BY hour ORDER BY hour") {
			if out := run(t, "rollup", "rebuild", "-c", s.config, "--hour", hour["h"].(string)); !strings.Contains(out, says) {
				t.Errorf("%s, want %q", out, says)
			}
		}
	}
	rebuilds("agrees")
	s.query("INSERT INTO edge_hours SELECT * FROM edge_hours") // as if the engine had forgotten its tokens
	rebuilds("is made anew")
	check("once, with a roll-up made anew", 16)
	s.query("DELETE FROM edge_hours WHERE reason = 'denied'")
	rebuilds("is made anew")
	check("once, with a part of the roll-up restored", 16)
	rebuilds("agrees")
	replay("nothing changes")
	check("twice", 16)
	replay("its 400 rows are replaced", "--policy", other)
	check("under another policy", 8)
	replay("its 400 rows are replaced")
	check("and back", 16)
	// A time at which the policy came into force is part of what rows are judged by.
	replay("are replaced", "--policy-at", "2026-03-10T09:30:00Z")
	if n := s.number("SELECT countIf(reason = 'unverified') AS n FROM flows"); n != 200 {
		t.Errorf("%d flows from before the policy are unverified, want 200", n)
	}
	// What the service receives is not touched by any of it.
	fw := firewall(t, s.udp)
	fw.export(session(time.Now(), "10.50.0.1", "10.20.0.1", 9, 443))
	s.arrived(fw)
	replay("are replaced")
	if flows, _, _ := count(); flows != 401 {
		t.Errorf("%d flows, want 401", flows)
	}
	if n := s.number("SELECT uniqExact(hash) AS n FROM policy_versions"); n != 2 {
		t.Errorf("%d policy versions are stored, want 2", n)
	}
	s.stop()
}

// TestDecodeInputs: every way a capture can come gives the same lines.
func TestDecodeInputs(t *testing.T) {
	capture := captured(t, biflows, workday())
	raw, err := os.ReadFile(capture)
	if err != nil {
		t.Fatal(err)
	}
	want, diag, err := try(t, "decode", capture)
	if err != nil {
		t.Fatalf("%v\n%s", err, diag)
	}
	lines := jsonLines(t, want)
	if len(lines) != 400 {
		t.Fatalf("%d lines, want 400", len(lines))
	}
	for _, m := range lines {
		lacks(t, "a record", m, decodeFields...)
		if _, judged := m["reason"]; judged {
			t.Fatalf("decode judges: %v", m)
		}
	}
	if lines[0]["time_start"] != "2026-03-10T09:00:00.000Z" || lines[0]["source"] != "ipfix" || lines[0]["bytes"] != 9000.0 || lines[0]["bytes_raw"] != 900.0 {
		t.Errorf("the first record: %v", lines[0])
	}
	var summary struct {
		Ledger flow.Account `json:"ledger"`
	}
	last := strings.TrimSpace(diag[strings.LastIndex(strings.TrimSpace(diag), "\n")+1:])
	if err := json.Unmarshal([]byte(last), &summary); err != nil {
		t.Fatalf("the summary's last line: %v\n%s", err, diag)
	}
	if l := summary.Ledger; l.Records.Decoded != 400 || l.Templates == 0 || l.Options == 0 || l.Datagrams.Received == 0 || l.Datagrams.Decoded != l.Datagrams.Received {
		t.Errorf("the summary's ledger: %+v", l)
	}

	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	if _, err := z.Write(raw); err != nil || z.Close() != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, path := range []string{write("c.pcap.gz", zipped.Bytes()), write("c.pcapng", asPcapng(t, raw)), write("no-suffix", raw)} {
		if got := run(t, "decode", path); got != want {
			t.Errorf("%s decodes to something else", filepath.Base(path))
		}
	}
	cmd := exec.Command(postern(t), "decode", "-")
	cmd.Stdin = bytes.NewReader(zipped.Bytes())
	if got, err := cmd.Output(); err != nil || string(got) != want {
		t.Errorf("standard input decodes to something else: %v", err)
	}
	// A file that breaks off: what stood before the break, an error, the ledger.
	got, diag, err := try(t, "decode", write("cut.pcap", raw[:len(raw)*2/3]))
	if err == nil || !strings.Contains(diag, "cut.pcap") || !strings.Contains(diag, `"ledger"`) {
		t.Errorf("a file that breaks off: %v\n%s", err, diag)
	}
	if n := strings.Count(got, "\n"); n < 200 || n >= 400 || !strings.HasPrefix(want, got) {
		t.Errorf("%d lines stand before the break", n)
	}
	for name, b := range map[string][]byte{"text": []byte("no capture at all, only words"), "empty": nil} {
		if out, diag, err := try(t, "decode", write(name, b)); err == nil || out != "" || !strings.Contains(diag, name) {
			t.Errorf("a file of %s: %v\n%s%s", name, err, out, diag)
		}
	}
	if _, diag, err := try(t, "replay", "--no-store", "--policy", policyFolder(t, livePolicy(true)), filepath.Join(dir, "cut.pcap")); err == nil || !strings.Contains(diag, "cut.pcap") {
		t.Errorf("replay of a file that breaks off: %v\n%s", err, diag)
	}
	if _, diag, err := try(t, "replay", "--no-store", "--policy", filepath.Join(dir, "nowhere"), capture); err == nil || !strings.Contains(diag, "nothing was replayed") {
		t.Errorf("replay without a policy: %v\n%s", err, diag)
	}
}

func asPcapng(t *testing.T, pcap []byte) []byte {
	t.Helper()
	r, err := pcapgo.NewReader(bytes.NewReader(pcap))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w, err := pcapgo.NewNgWriter(&out, layers.LinkTypeEthernet)
	if err != nil {
		t.Fatal(err)
	}
	for {
		b, ci, err := r.ReadPacketData()
		if err != nil {
			break // the end
		}
		ci = gopacket.CaptureInfo{Timestamp: ci.Timestamp, CaptureLength: len(b), Length: len(b)}
		if err := w.WritePacket(ci, b); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestProgress: a terminal sees how far it is, a pipe does not.
func TestProgress(t *testing.T) {
	var records []flow.Record
	for range 100 {
		records = append(records, workday()...)
	}
	slices.SortStableFunc(records, func(a, b flow.Record) int { return int(a.End - b.End) })
	capture, dir := captured(t, biflows, records), policyFolder(t, livePolicy(true))
	out, diag, err := try(t, "replay", "--no-store", "--policy", dir, capture)
	if err != nil || strings.ContainsAny(out+diag, "\r\x1b") {
		t.Errorf("piped output shows more than text: %v, %q", err, tail(out+diag, 300))
	}
	part.Need(t, "bsdutils", "script")
	cmd := exec.Command("script", "-qec", postern(t)+" replay --no-store --policy "+dir+" "+capture, "/dev/null")
	cmd.Env = append(os.Environ(), "TERM=xterm", "COLUMNS=120")
	seen, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, seen)
	}
	if !bytes.Contains(seen, []byte("%")) || !bytes.Contains(seen, []byte("B/s")) || !bytes.ContainsRune(seen, '\r') {
		t.Errorf("a terminal sees no progress:\n%q", tail(string(seen), 600))
	}
}
