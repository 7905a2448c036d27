package siem

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern/postern/flow"
)

// hostileTexts are names as nobody should have them.
var hostileTexts = []string{
	`'; DROP TABLE flows; --`, `\`, `"`, "a\r\n<14>1 forged", "\x00\x07\x7f\x1b[31m", "caf\u00e9 \u202eesrever\u2069", "<script>alert(1)</script>", "{{.Secret}} ${HOME} %s%n",
	"<!channel> <@U1> @here [click](https://evil.example) *b* _i_ `c` ~s~ # h", "=|=\\=", "]", strings.Repeat("A", 9000), "\xff\xfe",
}

func TestTargetFilter(t *testing.T) {
	f := messageFinding()
	f.Owner, f.Exception, f.DstSegment, f.Techniques = "Team-Payments", "EX-12", "pci-vault", []string{"T1021"}
	f.Ends = []flow.End{{Workload: "jump-3", Identity: "acme@vendor"}, {Workload: "vault-1"}}
	for name, c := range map[string]struct {
		filter FilterConfig
		want   bool
	}{
		"nothing asked":       {FilterConfig{}, true},
		"below":               {FilterConfig{MinSeverity: "critical"}, false},
		"at":                  {FilterConfig{MinSeverity: "high"}, true},
		"type":                {FilterConfig{Types: []string{flow.FindingScan, flow.FindingExpired}}, true},
		"other type":          {FilterConfig{Types: []string{flow.FindingScan}}, false},
		"owner, by any case":  {FilterConfig{Owners: []string{"team-payments"}}, true},
		"other owner":         {FilterConfig{Owners: []string{"team-web"}}, false},
		"rank, not spelling":  {FilterConfig{Where: `severity >= medium and severity < critical`}, true},
		"words":               {FilterConfig{Where: `dst_segment startsWith "pci" and exception == "EX-12" and "T1021" in techniques`}, true},
		"ends":                {FilterConfig{Where: `any(workloads, # startsWith "jump") and "acme@vendor" in identities`}, true},
		"no":                  {FilterConfig{Where: `owner == "Team-Web"`}, false},
		"all must hold":       {FilterConfig{MinSeverity: "low", Owners: []string{"team-payments"}, Where: `count > 1000`}, false},
		"what goes wrong":     {FilterConfig{Where: `exporters[3] == "x"`}, true},
		"no time of its own":  {FilterConfig{Where: `confidence >= 0`}, true},
		"text that is hidden": {FilterConfig{Where: `not (sentenceless)`}, false},
	} {
		t.Run(name, func(t *testing.T) {
			c.filter.MinSeverity = cmp.Or(c.filter.MinSeverity, "informational")
			got, err := c.filter.compile()
			if name == "text that is hidden" {
				if err == nil || !strings.Contains(err.Error(), "where: column 6") || !strings.Contains(err.Error(), "sentenceless") {
					t.Errorf("an unknown word: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.wants(f) != c.want {
				t.Errorf("wants is %v", !c.want)
			}
		})
	}
	for text, want := range map[string]string{
		`severity >= "high"`: "where: column", `severity`: "bool", `now() > now()`: "now", `type = "x"`: "where: column", `where(`: "where: column",
	} {
		if _, err := (&FilterConfig{MinSeverity: "low", Where: text}).compile(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if _, err := (&FilterConfig{MinSeverity: "low", Types: []string{"scans"}}).compile(); err == nil || !strings.Contains(err.Error(), `types[0]: there is no finding "scans"`) {
		t.Errorf("an unknown type: %v", err)
	}
}

// TestTargetConfig: each kind says what is wrong with it, beginning with the key.
func TestTargetConfig(t *testing.T) {
	for want, c := range map[string]TargetConfig{
		"name":                         {Name: "../x", File: &FileConfig{Path: "x"}},
		"give one of webhook, splunk":  {Name: "x"},
		"both webhook and file":        {Name: "x", File: &FileConfig{Path: "x"}, Webhook: &WebhookConfig{}},
		"splunk.token":                 {Name: "x", Splunk: &SplunkConfig{}},
		"splunk.ack ":                  {Name: "x", Splunk: &SplunkConfig{Token: "env:T", Ack: "maybe"}},
		"splunk.url":                   {Name: "x", Splunk: &SplunkConfig{Token: "env:T"}},
		"elastic.index":                {Name: "x", Elastic: &ElasticConfig{Index: "Upper"}},
		"elastic.mode":                 {Name: "x", Elastic: &ElasticConfig{Index: "i", Mode: "both"}},
		"elastic.username":             {Name: "x", Elastic: &ElasticConfig{Index: "i", Username: "u"}},
		"elastic.apiKey and username":  {Name: "x", Elastic: &ElasticConfig{Index: "i", Username: "u", Password: "env:P", APIKey: "env:K"}},
		"sentinel.rule":                {Name: "x", Sentinel: &SentinelConfig{}},
		"sentinel.stream":              {Name: "x", Sentinel: &SentinelConfig{Rule: "dcr-1", Stream: "a/b"}},
		"sentinel.batch":               {Name: "x", Sentinel: &SentinelConfig{Rule: "dcr-1", Stream: "S", Tenant: "t", Client: "c", Secret: "env:S", Batch: 1000}},
		"sentinel.authority: url":      {Name: "x", Sentinel: &SentinelConfig{Rule: "dcr-1", Stream: "S", Tenant: "t", Client: "c", Secret: "env:S", Authority: "http://login.test"}},
		"syslog.address":               {Name: "x", Syslog: &SyslogConfig{Address: "siem"}},
		"syslog.plain sends":           {Name: "x", Syslog: &SyslogConfig{Address: "siem:514", Plain: true}},
		"syslog.plain means":           {Name: "x", Syslog: &SyslogConfig{Address: "siem:514", Plain: true, DoorConfig: DoorConfig{AllowPrivate: true}, TLSConfig: TLSConfig{CAFile: "x"}}},
		"syslog.facility":              {Name: "x", Syslog: &SyslogConfig{Address: "siem:514", Facility: 24}},
		"syslog.framing":               {Name: "x", Syslog: &SyslogConfig{Address: "siem:514", Framing: "words"}},
		"syslog.hostname":              {Name: "x", Syslog: &SyslogConfig{Address: "siem:514", Hostname: "a b"}},
		"syslog.certFile and keyFile":  {Name: "x", Syslog: &SyslogConfig{Address: "siem:514", TLSConfig: TLSConfig{CertFile: "x"}}},
		"kafka.brokers is empty":       {Name: "x", Kafka: &KafkaConfig{Topic: "t"}},
		"kafka.brokers[0]":             {Name: "x", Kafka: &KafkaConfig{Topic: "t", Brokers: []string{"b"}}},
		"kafka.topic":                  {Name: "x", Kafka: &KafkaConfig{Topic: "a b", Brokers: []string{"b:9092"}}},
		"kafka.plain sends":            {Name: "x", Kafka: &KafkaConfig{Topic: "t", Brokers: []string{"b:9092"}, Plain: true}},
		"kafka.mechanism \"ntlm\"":     {Name: "x", Kafka: &KafkaConfig{Topic: "t", Brokers: []string{"b:9092"}, Mechanism: "ntlm"}},
		"kafka.mechanism, username":    {Name: "x", Kafka: &KafkaConfig{Topic: "t", Brokers: []string{"b:9092"}, Mechanism: "plain"}},
		"kafka.mechanism plain sends":  {Name: "x", Kafka: &KafkaConfig{Topic: "t", Brokers: []string{"b:9092"}, Mechanism: "plain", Username: "u", Password: "env:P", Plain: true, DoorConfig: DoorConfig{AllowPrivate: true}}},
		"chat.address":                 {Name: "x", Chat: &ChatConfig{}},
		"chat.style":                   {Name: "x", Chat: &ChatConfig{Address: "env:A", Style: "irc"}},
		"chat.link":                    {Name: "x", Chat: &ChatConfig{Address: "env:A", Link: "javascript:alert(1)"}},
		"file.path":                    {Name: "x", File: &FileConfig{}},
		"file.maxSize":                 {Name: "x", File: &FileConfig{Path: "x", MaxSize: 10}},
		"encoding: \"leef\"":           {Name: "x", Encoding: "leef", File: &FileConfig{Path: "x"}},
		"encoding: cef":                {Name: "x", Encoding: "cef", Elastic: &ElasticConfig{HTTPConfig: HTTPConfig{URL: "https://e.test"}, Index: "i"}},
		"template: the message":        {Name: "x", Encoding: "json", Template: "t", File: &FileConfig{Path: "x"}},
		"minSeverity":                  {Name: "x", FilterConfig: FilterConfig{MinSeverity: "severe"}, File: &FileConfig{Path: "x"}},
		"maxAttempts":                  {Name: "x", DeliveryConfig: DeliveryConfig{MaxAttempts: -1}, File: &FileConfig{Path: "x"}},
		"where: column":                {Name: "x", FilterConfig: FilterConfig{Where: "a b"}, File: &FileConfig{Path: "x"}},
		"webhook.secrets is empty":     {Name: "x", Webhook: &WebhookConfig{}},
		"splunk.certFile and keyFile ": {Name: "x", Splunk: &SplunkConfig{Token: "env:T", HTTPConfig: HTTPConfig{URL: "https://s.test", TLSConfig: TLSConfig{KeyFile: "k"}}}},
	} {
		c.Fill()
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), want) && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", want, err)
		}
	}
}

// TestTargetRefusesInward: scenario 37 for whatever is no webhook: a destination that is not public is refused once its
// name is known, before anything is sent, and that is counted and logged.
func TestTargetRefusesInward(t *testing.T) {
	reached := false
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	defer srv.Close()
	address := strings.TrimPrefix(srv.URL, "http://")
	for name, c := range map[string]TargetConfig{
		"splunk":  {Name: "x", Splunk: &SplunkConfig{Token: "t", HTTPConfig: HTTPConfig{URL: "https://" + address}}},
		"elastic": {Name: "x", Elastic: &ElasticConfig{Index: "i", HTTPConfig: HTTPConfig{URL: "https://" + address}}},
		"chat":    {Name: "x", Chat: &ChatConfig{Address: "https://" + address}},
		"syslog":  {Name: "x", Syslog: &SyslogConfig{Address: address}},
		"kafka":   {Name: "x", Kafka: &KafkaConfig{Brokers: []string{address}, Topic: "t"}},
		"sentinel": {Name: "x", Sentinel: &SentinelConfig{Rule: "dcr-1", Stream: "S", Tenant: "t", Client: "c", Secret: "s", Authority: "https://" + address,
			HTTPConfig: HTTPConfig{URL: "https://" + address}}},
	} {
		t.Run(name, func(t *testing.T) {
			c.Fill()
			var logged strings.Builder
			target := newTestTarget(t, c, slog.New(slog.NewTextHandler(&logged, nil)), nil)
			e := findingEvent(t, "a", 1, flow.High)
			err := target.Send(t.Context(), &e)
			if err == nil || !strings.Contains(err.Error(), "refused") {
				t.Errorf("sending to %s: %v", address, err)
			}
			if !strings.Contains(logged.String(), "audit=true") || !strings.Contains(logged.String(), "kind=loopback") {
				t.Errorf("logged %q", logged.String())
			}
		})
	}
	if reached {
		t.Error("something was sent")
	}
}

// TestTargetTemplate: a template is tried before it is used, and what it makes has to suit the target.
func TestTargetTemplate(t *testing.T) {
	write := func(text string) string {
		path := filepath.Join(t.TempDir(), "message.tmpl")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	target := func(text string) (*Target, error) {
		c := testWebhookConfig("https://soc.example/")
		c.Template = write(text)
		return NewTarget(c, TargetOptions{Secret: asIs})
	}
	for text, want := range map[string]string{
		`{"text": "{{.sentence`:                "message.tmpl:1",
		`{"text": {{json .nothing.there}}}`:    "tried on a sample",
		`plain {{.severity}}`:                  "no JSON object",
		`{"text": "{{.sentence}}`:              "no JSON object",
		`{{/* nothing */}}`:                    "makes nothing",
		`{"x": "{{printf "%030000d" 1}}"}`:     "20000",
		`{"owner": {{json .owner}}, "n": NaN}`: "no JSON object",
	} {
		if _, err := target(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	as, err := templateEncoder(write(`{"summary": {{json .sentence}}, "who": {{json .owner}}, "how": "{{upper .severity}}", "why": {{join ", " .techniques | json}}}`), true)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range hostileTexts {
		f := Sample()
		f.Sentence, f.Owner = text, text
		e, err := NewEvent(f)
		if err != nil {
			t.Fatal(err)
		}
		b, err := as(&e)
		var got struct{ Summary, Who, How, Why string }
		var sent flow.Finding
		_ = json.Unmarshal(e.Body, &sent)
		if err != nil || json.Unmarshal(b, &got) != nil || got.Summary != sent.Sentence || got.Who != sent.Owner || got.How != "INFORMATIONAL" || got.Why != "T1021" {
			t.Errorf("%.40q: %v, %.200s", text, err, b)
		}
	}
}

// TestFile: lines are whole whatever happened, and a file that is moved away or full goes on in a new one.
func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "findings.jsonl")
	c := TargetConfig{Name: "file", File: &FileConfig{Path: path}}
	c.Fill()
	send := func(target *Target, from, to int) {
		t.Helper()
		var events []*Event
		for r := from; r <= to; r++ {
			e := findingEvent(t, "a", r, flow.High)
			events = append(events, &e)
		}
		for _, err := range target.SendBatch(t.Context(), events) {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	revisions := func(path string) string {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for line := range strings.Lines(string(b)) {
			var f flow.Finding
			if err := json.Unmarshal([]byte(line), &f); err != nil || !strings.HasSuffix(line, "\n") {
				t.Fatalf("line %.100q: %v", line, err)
			}
			out = append(out, fmt.Sprint(f.Revision))
		}
		return strings.Join(out, " ")
	}
	target := newTestTarget(t, c, nil, nil)
	send(target, 1, 3)
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"id":"half of a li`); err != nil { // a crash
		t.Fatal(err)
	}
	f.Close()
	again := newTestTarget(t, c, nil, nil)
	send(again, 4, 5)
	if got := revisions(path); got != "1 2 3 4 5" {
		t.Errorf("after a crash: %s", got)
	}
	if err := os.Rename(path, path+".old"); err != nil { // logrotate
		t.Fatal(err)
	}
	send(again, 6, 6)
	if old, now := revisions(path+".old"), revisions(path); old != "1 2 3 4 5" || now != "6" {
		t.Errorf("after a rotation: %s, %s", old, now)
	}
	c.File.MaxSize, c.File.Keep = flow.MiB, 2
	small := newTestTarget(t, c, nil, nil)
	for from := 7; from < 6000; from += 500 {
		send(small, from, from+499)
	}
	files, _ := filepath.Glob(path + "*")
	if want := []string{path, path + ".1", path + ".2", path + ".old"}; !slices.Equal(files, want) {
		t.Errorf("files %v, want %v", files, want)
	}
	last := strings.Fields(revisions(path+".2") + " " + revisions(path+".1") + " " + revisions(path))
	for i := 1; i < len(last); i++ {
		var a, b int
		fmt.Sscan(last[i-1], &a)
		fmt.Sscan(last[i], &b)
		if b != a+1 {
			t.Fatalf("revision %d comes after %d", b, a)
		}
	}
	if err := os.WriteFile(path+".binary", []byte(strings.Repeat("x", 50_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	c.File.Path = path + ".binary"
	e := findingEvent(t, "a", 1, flow.High)
	if err := newTestTarget(t, c, nil, nil).Send(t.Context(), &e); err == nil || !strings.Contains(err.Error(), "another program's") {
		t.Errorf("a file of others: %v", err)
	}
}

// TestChat: what people read says how many there are and tells the worst, and no name in it speaks to the chat.
func TestChat(t *testing.T) {
	for _, style := range []string{"slack", "teams"} {
		t.Run(style, func(t *testing.T) {
			var bodies []map[string]any
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				var m map[string]any
				if err := json.NewDecoder(r.Body).Decode(&m); err != nil {
					t.Error(err)
				}
				bodies = append(bodies, m)
			}))
			defer srv.Close()
			c := TargetConfig{Name: "team", Chat: &ChatConfig{Address: srv.URL + "/services/secret", Style: style, Link: "https://grafana.example/d/finding?id={id}"}}
			c.Chat.AllowInsecure, c.Chat.AllowPrivate = true, true
			c.Fill()
			target := newTestTarget(t, c, nil, nil)
			var events []*Event
			for i, text := range hostileTexts {
				f := Sample()
				f.ID, f.Severity, f.Sentence, f.Owner, f.Exception = fmt.Sprintf("%016x", i), flow.Low, text, text, text
				if i == 3 {
					f.Severity = flow.High
				}
				e, err := NewEvent(f)
				if err != nil {
					t.Fatal(err)
				}
				events = append(events, &e)
			}
			for _, err := range target.SendBatch(t.Context(), events) {
				if err != nil {
					t.Fatal(err)
				}
			}
			all, _ := json.Marshal(bodies)
			text := string(all)
			if len(bodies) != 1 || len(text) > 28_000 {
				t.Fatalf("%d messages of %d bytes", len(bodies), len(text))
			}
			head := fmt.Sprintf("%d findings: 1 high, %d low", len(hostileTexts), len(hostileTexts)-1)
			if !strings.Contains(text, head) || !strings.Contains(text, fmt.Sprintf("and %d more", len(hostileTexts)-8)) || !strings.Contains(text, "id=0000000000000003") {
				t.Errorf("message %s", text)
			}
			for _, bad := range []string{"\\u0007", "\\u001b", "\\u202e", "\\u0000", "\u202e"} {
				if strings.Contains(text, bad) {
					t.Errorf("the message holds %q", bad)
				}
			}
			if style == "slack" {
				var m struct{ Text string }
				_ = json.Unmarshal(all[1:len(all)-1], &m)
				if strings.ContainsAny(m.Text, "<>") || strings.Contains(m.Text, "@here") {
					t.Errorf("the text speaks to the chat: %s", m.Text)
				}
			} else if strings.Contains(text, "](https://evil") {
				t.Error("a name made a link")
			}
		})
	}
}

// authority signs certificates for a test: pairs written as NAME.pem and NAME.key in a folder, beside ca.pem.
func authority(t *testing.T, names ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	write := func(name, kind string, der []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	must(err)
	write("ca.pem", "CERTIFICATE", der)
	for i, name := range names {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(err)
		cert := &x509.Certificate{SerialNumber: big.NewInt(int64(i) + 2), Subject: pkix.Name{CommonName: name}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
		der, err := x509.CreateCertificate(rand.Reader, cert, ca, key.Public(), caKey)
		must(err)
		write(name+".pem", "CERTIFICATE", der)
		der, err = x509.MarshalPKCS8PrivateKey(key)
		must(err)
		write(name+".key", "PRIVATE KEY", der)
	}
	return dir
}

// TestTargetMutualTLS: we show a certificate to who asks for one, the newest that is on disk; nobody gets less than TLS 1.2.
func TestTargetMutualTLS(t *testing.T) {
	dir := authority(t, "server", "first", "second")
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "server.pem"), filepath.Join(dir, "server.key"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	ca, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil || !roots.AppendCertsFromPEM(ca) {
		t.Fatal(err)
	}
	var who []string
	serve := func(versions ...uint16) *httptest.Server {
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			who = append(who, r.TLS.PeerCertificates[0].Subject.CommonName)
		}))
		srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots, MinVersion: versions[0], MaxVersion: versions[1]}
		srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
		srv.StartTLS()
		t.Cleanup(srv.Close)
		return srv
	}
	srv := serve(tls.VersionTLS12, tls.VersionTLS13)
	c := testWebhookConfig(srv.URL)
	c.Webhook.CAFile = filepath.Join(dir, "ca.pem")
	if err := newTestTarget(t, c, nil, nil).Send(t.Context(), webhookEvent); err == nil {
		t.Error("the receiver took somebody without a certificate")
	}
	c.Webhook.CertFile, c.Webhook.KeyFile = filepath.Join(dir, "first.pem"), filepath.Join(dir, "first.key")
	target := newTestTarget(t, c, nil, nil)
	if err := target.Send(t.Context(), webhookEvent); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{".pem", ".key"} { // it is renewed
		if err := os.Rename(filepath.Join(dir, "second"+kind), filepath.Join(dir, "first"+kind)); err != nil {
			t.Fatal(err)
		}
	}
	target.sender.(*webhook).Close() // the connection that stands goes on as who it was
	if err := target.Send(t.Context(), webhookEvent); err != nil || !slices.Equal(who, []string{"first", "second"}) {
		t.Errorf("%v: came as %v", err, who)
	}
	old := serve(tls.VersionTLS10, tls.VersionTLS11)
	c.Webhook.URL = old.URL
	if err := newTestTarget(t, c, nil, nil).Send(t.Context(), webhookEvent); err == nil {
		t.Error("TLS 1.1 was spoken")
	}
	c.Webhook.KeyFile = filepath.Join(dir, "none.key")
	if _, err := NewTarget(c, TargetOptions{Secret: asIs}); err == nil || !strings.Contains(err.Error(), "none.key") {
		t.Errorf("a key that is not there: %v", err)
	}
}
