package test

import (
	"bytes"
	"context"
	wire "encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/exporter"
)

var be = wire.BigEndian

// message is an IPFIX message of sets (RFC 7011, 3.1).
func message(domain, sequence uint32, at time.Time, sets ...[]byte) []byte {
	b := be.AppendUint16(nil, 10)
	b = be.AppendUint16(b, 0)
	b = be.AppendUint32(b, uint32(at.Unix()))
	b = be.AppendUint32(b, sequence)
	b = be.AppendUint32(b, domain)
	for _, s := range sets {
		b = append(b, s...)
	}
	be.PutUint16(b[2:], uint16(len(b)))
	return b
}

func set(id uint16, body ...byte) []byte {
	b := be.AppendUint16(nil, id)
	return append(be.AppendUint16(b, uint16(4+len(body))), body...)
}

// template is a template set of one template: pairs of element and length.
func template(id uint16, fields ...uint16) []byte {
	b := be.AppendUint16(nil, id)
	b = be.AppendUint16(b, uint16(len(fields)/2))
	for _, f := range fields {
		b = be.AppendUint16(b, f)
	}
	return set(2, b...)
}

// named is a template with a user's name, and a record for it.
var named = []uint16{8, 4, 12, 4, 7, 2, 11, 2, 4, 1, 1, 8, 2, 8, 89, 1, 152, 8, 153, 8, 371, 0xffff}

func namedRecord(at time.Time, port uint16, user string) []byte {
	b := []byte{10, 50, 0, 1, 10, 20, 0, 1}
	b = be.AppendUint16(b, port)
	b = be.AppendUint16(b, 3389)
	b = append(b, flow.ProtoTCP)
	b = be.AppendUint64(b, 500)
	b = be.AppendUint64(b, 5)
	b = append(b, 64) // forwarded
	b = be.AppendUint64(b, uint64(at.UnixMilli()))
	b = be.AppendUint64(b, uint64(at.UnixMilli()))
	if len(user) < 255 {
		b = append(b, byte(len(user)))
	} else {
		b = be.AppendUint16(append(b, 255), uint16(len(user)))
	}
	return append(b, user...)
}

// raw is a socket that sends what it is given.
func raw(t testing.TB, source, target string) func([]byte) {
	t.Helper()
	local, err := net.ResolveUDPAddr("udp", source+":0")
	if err != nil {
		t.Fatal(err)
	}
	remote, err := net.ResolveUDPAddr("udp", target)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.DialUDP("udp", local, remote)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return func(b []byte) {
		t.Helper()
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
	}
}

// hostile are names as nobody should have them.
var hostile = []string{
	`'; DROP TABLE flows; --`, `" OR 1=1 --`, `\`, `\'`, "`flows`", "a\nlevel=ERROR msg=forged", "a\r\ntime=2020-01-01T00:00:00Z level=ERROR msg=forged",
	"\x00\x01\x02\x7f", "\x1b[2J\x1b[31mred", "\xff\xfe\xfa", "caf\xe9", "\u2028\u2029\ufeff", "<script>alert(1)</script>", "{{.Secret}} ${HOME} %s%n",
	"=cmd|' /C calc'!A0", "tab\tcomma,quote\"", "\u202eesrever", strings.Repeat("A", 60_000), strings.Repeat("é", 30_000), strings.Repeat("\xf0\x9f", 20_000),
}

// TestHostileStrings sends names through everything: flows and findings as JSON,
// ClickHouse, webhooks, the log (THREATS 36, and 24 for their length).
func TestHostileStrings(t *testing.T) {
	at := time.Now().Add(-time.Second)
	var datagrams [][]byte
	for i, user := range hostile {
		datagrams = append(datagrams, message(9, uint32(i), at, template(256, named...), set(256, namedRecord(at, uint16(40000+i), user)...)))
	}
	clean := func(t *testing.T, where, got, user string) {
		t.Helper()
		want := user
		if len(want) > 256 {
			want = want[:256]
		}
		if want = strings.ToValidUTF8(want, "\ufffd"); strings.ToValidUTF8(got, "\ufffd") != want && got != strings.Join(strings.Split(want, "\ufffd"), "\ufffd") {
			// A run of bad bytes may come out as one replacement or as one a byte.
			squeeze := func(s string) string {
				for strings.Contains(s, "\ufffd\ufffd") {
					s = strings.ReplaceAll(s, "\ufffd\ufffd", "\ufffd")
				}
				return s
			}
			if squeeze(got) != squeeze(want) {
				t.Errorf("%s: %q came out as %q", where, want, got)
			}
		}
	}

	t.Run("replay", func(t *testing.T) {
		var packets []exporter.Packet
		for _, d := range datagrams {
			packets = append(packets, exporter.Packet{At: flow.TimeOf(at), Src: netip.MustParseAddrPort("192.0.2.1:4000"), Dst: netip.MustParseAddrPort("192.0.2.9:2055"), Payload: d})
		}
		var buf bytes.Buffer
		if err := exporter.WritePcap(&buf, packets); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "hostile.pcap")
		if err := os.WriteFile(path, buf.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, flag := range []string{"--flows", "--findings"} {
			out := run(t, "replay", "--no-store", "--policy", policyFolder(t, livePolicy(false)), flag, "-", path)
			if !utf8.ValidString(out) {
				t.Errorf("%s prints what is no UTF-8", flag)
			}
			for i, c := range []byte(out) {
				if c < ' ' && c != '\n' || c == 0x7f {
					t.Fatalf("%s prints the control character %#x at %d", flag, c, i)
				}
			}
			lines := jsonLines(t, out)
			if flag == "--findings" {
				violations := slices.DeleteFunc(lines, func(m map[string]any) bool { return m["type"] != flow.FindingDenied })
				if len(violations) != 1 {
					t.Errorf("%d violations of the policy, want one", len(violations))
				}
				continue
			}
			if len(lines) != len(hostile) {
				t.Fatalf("%d lines, want %d", len(lines), len(hostile))
			}
			for i, m := range lines {
				clean(t, "JSON", m["user"].(string), hostile[i])
			}
		}
	})

	t.Run("serve", func(t *testing.T) {
		hook := newReceiver(t)
		s := newServer(t, livePolicy(false), "log: {level: debug}\n"+hook.section())
		s.start()
		send := raw(t, "127.0.0.2", s.udp)
		for round := range 10 { // 200 kB of each long one
			for _, d := range datagrams {
				send(d)
			}
			s.until("a round to be received", 30*time.Second, func() bool { return s.ledger().Datagrams.Received >= uint64((round+1)*len(datagrams)) })
		}
		s.settle()
		users := map[int]string{}
		for _, row := range s.query("SELECT client_port, server_port, user FROM flows") {
			for _, p := range []string{"client_port", "server_port"} {
				if port := int(row[p].(float64)); port >= 40000 {
					users[port-40000] = row["user"].(string)
				}
			}
		}
		if len(users) != len(hostile) {
			t.Fatalf("%d of %d names are in ClickHouse", len(users), len(hostile))
		}
		for i, user := range hostile {
			clean(t, "ClickHouse", users[i], user)
		}
		if out := run(t, "query", "-c", s.config, "SELECT user FROM flows"); strings.ContainsAny(out, "\x1b\x00\r") {
			t.Error("a table sends control characters to the terminal")
		}
		s.until("the finding to be delivered", 30*time.Second, func() bool { return len(hook.findings(t)) == 1 })
		for _, f := range hook.findings(t) {
			for _, sample := range f.Samples {
				var m map[string]any
				if err := json.Unmarshal(sample, &m); err != nil {
					t.Error(err)
				}
			}
		}
		if rss := resident(t, s.cmd.Process.Pid); rss > 2<<30 {
			t.Errorf("%d MiB of memory", rss>>20)
		}
		s.stop()
		for line := range strings.Lines(s.logs()) {
			if !strings.HasPrefix(line, "time=") || strings.ContainsAny(strings.TrimSuffix(line, "\n"), "\x00\x1b\r") {
				t.Fatalf("a line of the log is no record: %q", line)
			}
		}
	})
}

// TestAllowList: off loopback only those on the list may send; what others send is
// counted and goes no further. Sequence numbers are watched (THREATS 22).
func TestAllowList(t *testing.T) {
	s := newServer(t, livePolicy(false), "")
	_, port, err := net.SplitHostPort(s.udp)
	if err != nil {
		t.Fatal(err)
	}
	open := fmt.Sprintf(`listen: "0.0.0.0:%s"`, port)
	s.amend(fmt.Sprintf(`listen: "%s"`, s.udp), open)
	if out, _, err := try(t, "check", "-c", s.config); err == nil || !strings.Contains(out, "allow-list") || !positioned.MatchString(out) {
		t.Errorf("a listener off loopback without an allow-list: %v\n%s", err, out)
	}
	s.amend(open, open+", exporters: []")
	s.start()
	friend, stranger := firewall(t, s.udp), newDevice(t, "127.0.0.3", s.udp, exporter.Config{Protocol: flow.SourceNetFlowV9, Domain: 1, TemplatePackets: 1})
	one := session(time.Now(), "10.50.0.1", "10.20.0.1", 1234, 443)
	friend.export(one)
	s.until("a datagram to be refused", 30*time.Second, func() bool { return s.ledger().Datagrams.Rejected[flow.RejectExporter] == 1 })
	if log := s.logs(); !strings.Contains(log, "exporters") {
		t.Error("the log does not say that an empty allow-list accepts nothing")
	}
	s.stop()

	s.amend("exporters: []", "exporters: [127.0.0.2]")
	s.start()
	for range 5 {
		friend.export(one)
		stranger.export(one, one)
	}
	s.until("the datagrams to arrive", 30*time.Second, func() bool { return s.ledger().Datagrams.Received == friend.send.Sent()+stranger.send.Sent() })
	total := s.settle()
	if got := total.Datagrams.Rejected[flow.RejectExporter]; got != stranger.send.Sent()+1 {
		t.Errorf("%d datagrams refused, want %d", got, stranger.send.Sent()+1)
	}
	if total.Records.Written != 5 {
		t.Errorf("%d records written, want 5", total.Records.Written)
	}
	if n := s.metric("postern_ledger_datagrams", `exporter="127.0.0.3"`, `reason="exporter_not_allowed"`); n != float64(stranger.send.Sent()) {
		t.Errorf("metrics count %v of the stranger's datagrams as refused", n)
	}

	// Somebody writes the friend's address on an envelope: the sequence numbers jump.
	send := raw(t, "127.0.0.2", s.udp)
	send(message(4, 90_000, time.Now(), template(999, named...), set(999, namedRecord(time.Now(), 7, "x")...)))
	s.until("the gap to be counted", 30*time.Second, func() bool { return s.ledger().Gaps > 1000 })
	friend.export(one)
	s.until("the numbers to run backwards", 30*time.Second, func() bool { l := s.ledger(); return l.Reordered+l.Restarts > 0 })
	s.stop()
}

// TestPoisonedTemplates: a layout that changes from one port quarantines the id,
// from two ports splits it, and nobody else is touched; what is malformed is
// counted and the service lives on (THREATS 23, 24).
func TestPoisonedTemplates(t *testing.T) {
	s := newServer(t, livePolicy(false), "enrich: {window: 1s}\n")
	s.start()
	sent := uint64(0)
	sender := func(source string) func([]byte) {
		send := raw(t, source, s.udp)
		return func(b []byte) { send(b); sent++ }
	}
	arrived := func() flow.Account {
		t.Helper()
		s.until("what was sent to be received", 30*time.Second, func() bool { return s.ledger().Datagrams.Received >= sent })
		return s.settle()
	}
	now := time.Now
	layoutA, layoutB := template(256, named...), template(256, 12, 4, 8, 4, 1, 8, 2, 8, 89, 1, 152, 8, 153, 8, 11, 2, 7, 2, 4, 1, 371, 0xffff)
	dataA := func(port uint16) []byte { return set(256, namedRecord(now(), 40000+port, "a")...) }

	// One port: by turns.
	victim, poisoner := sender("127.0.0.2"), sender("127.0.0.2")
	for i := range 6 {
		victim(message(1, uint32(i), now(), layoutA))
		victim(message(1, uint32(i), now(), layoutB))
		victim(message(1, uint32(i), now(), dataA(uint16(100+i))))
	}
	// Another domain of the same exporter, and another exporter, meanwhile.
	victim(message(2, 0, now(), layoutA, dataA(200)))
	other := sender("127.0.0.3")
	other(message(1, 0, now(), layoutA, dataA(201)))
	total := arrived()
	if total.Datagrams.Rejected[flow.RejectQuarantined] == 0 {
		t.Errorf("nothing is quarantined: %+v", total)
	}
	whole := s.number("SELECT count() AS n FROM flows WHERE user = 'a' AND client_port IN (40200, 40201)")
	if whole != 2 {
		t.Errorf("%d of the 2 innocent records arrived", whole)
	}

	// Two ports: each keeps its own layout. The kernel may give them to two sockets,
	// so each waits for the other: else they would not alternate.
	taken := func() {
		t.Helper()
		s.until("a datagram to be received", 30*time.Second, func() bool { return s.ledger().Datagrams.Received >= sent })
	}
	for i := range 6 {
		victim(message(3, uint32(i), now(), layoutA, dataA(uint16(300+i))))
		taken()
		poisoner(message(3, uint32(i), now(), layoutB))
		taken()
	}
	for i := range 4 {
		victim(message(3, uint32(20+i), now(), dataA(uint16(310+i))))
	}
	arrived()
	if n := s.number("SELECT count() AS n FROM flows WHERE domain = 3 AND user = 'a' AND server_port = 3389 AND client_port BETWEEN 40300 AND 40319"); n != 10 {
		t.Errorf("%d of the victim's 10 records are whole", n)
	}

	// Whatever else comes.
	rng := rand.New(rand.NewPCG(1, 2))
	good := message(5, 0, now(), layoutA, dataA(400))
	for i := range 300 {
		b := bytes.Clone(good)
		switch i % 4 {
		case 0:
			b = b[:rng.IntN(len(b))]
		case 1:
			b[rng.IntN(len(b))] ^= byte(1 + rng.IntN(255))
		case 2:
			b = make([]byte, rng.IntN(200))
			for j := range b {
				b[j] = byte(rng.Uint32())
			}
		case 3: // huge claims: fields of a template, a set's length, a v5 count
			b = [][]byte{
				message(5, 0, now(), set(2, 1, 0, 0xff, 0xff, 0, 8, 0, 4)), message(5, 0, now(), []byte{1, 0, 0xff, 0xff}),
				message(5, 0, now(), set(3, 1, 0, 0xff, 0xff, 0xff, 0xff)), append([]byte{0, 5, 0xd6, 0xd8}, make([]byte, 20)...), {0, 9},
			}[rng.IntN(5)]
		}
		other(b)
	}
	total = arrived()
	if total.Datagrams.Rejected[flow.RejectMalformed] == 0 || total.Datagrams.Rejected[flow.RejectPanic] != 0 {
		t.Errorf("malformed datagrams: %v", total.Datagrams.Rejected.Map())
	}
	last := sender("127.0.0.4")
	last(message(1, 0, now(), layoutA, dataA(500)))
	before := total.Records.Written
	if total = arrived(); total.Records.Written != before+1 {
		t.Error("a good record after all that did not arrive")
	}
	s.stop()
}

// TestWebhookInward: a receiver inside the network is not spoken to unless allowed,
// by address or by name; the refusal is in the audit log and the service goes on
// (THREATS 37).
func TestWebhookInward(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	knocked := make(chan struct{}, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			knocked <- struct{}{}
			c.Close()
		}
	}()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	hook := newReceiver(t) // and one that is allowed
	section := hook.section()
	for i, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "169.254.169.254"} {
		section += fmt.Sprintf("  - {name: inward-%d, minSeverity: informational, webhook: {url: \"https://%s:%s/\", secrets: [\"env:POSTERN_TEST_WEBHOOK\"]}}\n", i, host, port)
	}
	s := newServer(t, livePolicy(false), section)
	s.start()
	fw := firewall(t, s.udp)
	fw.export(session(time.Now(), "10.50.0.1", "10.20.0.1", 1234, 3389))
	s.arrived(fw)
	s.until("the refusals to be audited", 60*time.Second, func() bool {
		refused := map[string]bool{}
		for line := range strings.Lines(s.logs()) {
			if strings.Contains(line, `msg="destination refused"`) && strings.Contains(line, "audit=true") {
				_, target, _ := strings.Cut(line, "target=")
				refused[strings.Fields(target)[0]] = true
			}
		}
		return len(refused) == 4
	})
	s.until("the allowed receiver to be told", 30*time.Second, func() bool { return len(hook.findings(t)) == 1 })
	select {
	case <-knocked:
		t.Error("the receiver was connected to")
	default:
	}
	if out := run(t, "outbox", "list", "-c", s.config); strings.Count(out, "inward-") < 4 || !strings.Contains(out, "refused") {
		t.Errorf("the outbox does not say why it waits:\n%s", out)
	}
	fw.export(session(time.Now(), "10.50.0.2", "10.20.0.1", 1235, 443))
	s.arrived(fw)
	if err := s.get("/readyz"); err != nil {
		t.Error(err)
	}
	s.stop()
}

// TestTokens: whoever reaches a port of the service still has to know its token,
// and the tokens are the owner's alone.
func TestTokens(t *testing.T) {
	s := newServer(t, livePolicy(false), "")
	s.start()
	ask := func(url, header, token string, body io.Reader) (int, string) {
		t.Helper()
		method := http.MethodGet
		if body != nil {
			method = http.MethodPost
		}
		req, err := http.NewRequestWithContext(context.Background(), method, url, body)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			req.Header.Set(header, token)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}
	token := func(name string) string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(s.data, name))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	admin := token("admin.token")
	for _, path := range []string{"/metrics", "/ledger", "/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/profile?seconds=1", "/debug/pprof/cmdline"} {
		for _, wrong := range []string{"", "Bearer ", "Bearer x" + admin, "Bearer " + admin[1:], "Basic " + admin} {
			if code, text := ask("http://"+s.admin+path, "Authorization", wrong, nil); code != http.StatusUnauthorized {
				t.Errorf("%s with %q: %d %.200s", path, wrong, code, text)
			}
		}
	}
	for _, path := range []string{"/metrics", "/ledger", "/debug/pprof/heap"} {
		if code, _ := ask("http://"+s.admin+path, "Authorization", "Bearer "+admin, nil); code != http.StatusOK {
			t.Errorf("%s with the token: %d", path, code)
		}
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if code, _ := ask("http://"+s.admin+path, "", "", nil); code != http.StatusOK {
			t.Errorf("%s asks for a token: %d", path, code)
		}
	}

	var at struct {
		URL string `json:"url"`
	}
	raw, err := os.ReadFile(filepath.Join(s.data, "clickhouse.json"))
	if err == nil {
		err = json.Unmarshal(raw, &at)
	}
	if err != nil {
		t.Fatal(err)
	}
	const key = "X-ClickHouse-Key"
	sql := func(key, token, text string) (int, string) {
		return ask(at.URL+"/", key, token, strings.NewReader(text))
	}
	for _, wrong := range []string{"", "x", admin} {
		if code, text := sql(key, wrong, "SELECT 1"); code < 400 {
			t.Errorf("ClickHouse answers without its token: %d %s", code, text)
		}
	}
	if code, text := sql(key, token("clickhouse.token"), "SELECT 1"); code != http.StatusOK || strings.TrimSpace(text) != "1" {
		t.Errorf("ClickHouse with its token: %d %s", code, text)
	}
	reader := token("clickhouse-readonly.token")
	if code, text := sql(key, reader, "SELECT count() FROM postern.flows"); code != http.StatusOK {
		t.Errorf("ClickHouse with the reader's token: %d %s", code, text)
	}
	for _, write := range []string{"DROP TABLE postern.flows", "INSERT INTO postern.replays (input) VALUES ('x')", "SELECT * FROM file('/etc/passwd', 'LineAsString')"} {
		if code, text := sql(key, reader, write); code < 400 {
			t.Errorf("the reader may %s: %d %s", write, code, text)
		}
	}

	err = filepath.WalkDir(s.data, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it was removed meanwhile, as segments are
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if mode := info.Mode().Perm(); mode&0o077 != 0 {
			t.Errorf("%s may be read by others: %v", path, mode)
		}
		if d.IsDir() && d.Name() == "clickhouse" {
			return fs.SkipDir // the engine's own files lie behind the owner's door
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	s.stop()
}
