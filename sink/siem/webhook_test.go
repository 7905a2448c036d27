package siem

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/postern/postern/flow"
)

// The vectors that the reference libraries of Standard Webhooks test themselves with.
const (
	vectorID      = "msg_p5jXN8AQM9LWM0D4loKWxJek"
	vectorStamp   = "1614265330"
	vectorBody    = `{"test": 2432232314}`
	vectorSecret  = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	vectorSign    = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
	vectorKey     = "whsk_VEVTVFNJR05JTkdLRVlET05PVFVTRVRISVNGT1JBTlk="
	vectorKeySign = "v1a,tQ9V2XOqn7jL/DQenEFpqIugdBVtiMmER5mhSkXBNwM0mkATuDe6KYYUuxqtaiHeYGb7KaaBRdM5WqyeFiL8Ag=="
)

func TestWebhookSignatureVectors(t *testing.T) {
	keys, err := parseWebhookKeys([]string{vectorSecret, vectorKey}, false)
	if err != nil {
		t.Fatal(err)
	}
	got := signWebhook(keys, vectorID, vectorStamp, []byte(vectorBody))
	if want := vectorSign + " " + vectorKeySign; got != want {
		t.Errorf("signature %s, want %s", got, want)
	}
}

// TestWebhookAgainstReferenceLibrary has what we sign verified by the library that
// the standard's authors keep, and what it signs by us.
func TestWebhookAgainstReferenceLibrary(t *testing.T) {
	for i := range 200 {
		secret, body := NewWebhookSecret(), []byte(fmt.Sprintf(`{"n":%d,"text":"%s"}`, i, strings.Repeat("ü", i)))
		lib, err := standardwebhooks.NewWebhook(secret)
		if err != nil {
			t.Fatal(err)
		}
		now, id := time.Now(), fmt.Sprintf("f%d:%d", i, i)
		stamp := fmt.Sprint(now.Unix())
		keys, err := parseWebhookKeys([]string{NewWebhookSecret(), secret}, false)
		if err != nil {
			t.Fatal(err)
		}
		h := http.Header{}
		h.Set(HeaderWebhookID, id)
		h.Set(HeaderWebhookTimestamp, stamp)
		h.Set(HeaderWebhookSignature, signWebhook(keys, id, stamp, body))
		if err := lib.Verify(body, h); err != nil {
			t.Fatalf("the library refuses our signature: %v", err)
		}
		theirs, err := lib.Sign(id, now, body)
		if err != nil {
			t.Fatal(err)
		}
		h.Set(HeaderWebhookSignature, theirs)
		if err := Verify([]string{secret}, h, body, WebhookTolerance, now); err != nil {
			t.Fatalf("we refuse the library's signature: %v", err)
		}
	}
}

func vectorHeaders(signature string) http.Header {
	h := http.Header{}
	h.Set(HeaderWebhookID, vectorID)
	h.Set(HeaderWebhookTimestamp, vectorStamp)
	h.Set(HeaderWebhookSignature, signature)
	return h
}

func TestVerify(t *testing.T) {
	at := time.Unix(1614265330, 0)
	key, err := parseWebhookKey(vectorKey, false)
	if err != nil {
		t.Fatal(err)
	}
	public := "whpk_" + base64.StdEncoding.EncodeToString(key.public)
	other := NewWebhookSecret()
	for _, c := range []struct {
		name      string
		secrets   []string
		signature string
		body      string
		now       time.Time
		want      error
	}{
		{"as sent", []string{vectorSecret}, vectorSign, vectorBody, at, nil},
		{"the second signature", []string{vectorSecret}, "v1,AAAA v2,x v1 " + vectorSign, vectorBody, at, nil},
		{"the second secret", []string{other, vectorSecret}, vectorSign, vectorBody, at, nil},
		{"public key", []string{public}, vectorKeySign, vectorBody, at, nil},
		{"private key", []string{vectorKey}, vectorKeySign, vectorBody, at, nil},
		{"five minutes late", []string{vectorSecret}, vectorSign, vectorBody, at.Add(5 * time.Minute), nil},
		{"later", []string{vectorSecret}, vectorSign, vectorBody, at.Add(5*time.Minute + time.Second), ErrWebhookTimestamp},
		{"too early", []string{vectorSecret}, vectorSign, vectorBody, at.Add(-5*time.Minute - time.Second), ErrWebhookTimestamp},
		{"another body", []string{vectorSecret}, vectorSign, vectorBody + " ", at, ErrWebhookSignature},
		{"another secret", []string{other}, vectorSign, vectorBody, at, ErrWebhookSignature},
		{"HMAC taken for ed25519", []string{vectorSecret}, "v1a" + vectorSign[2:], vectorBody, at, ErrWebhookSignature},
		{"public key as HMAC", []string{public}, vectorSign, vectorBody, at, ErrWebhookSignature},
		{"nothing signed", []string{vectorSecret}, "v1,", vectorBody, at, ErrWebhookSignature},
		{"beyond the bound", []string{vectorSecret}, strings.Repeat("v1,AAAA ", maxWebhookSignatures) + vectorSign, vectorBody, at, ErrWebhookSignature},
		{"no signature", []string{vectorSecret}, "", vectorBody, at, ErrWebhookHeaders},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := Verify(c.secrets, vectorHeaders(c.signature), []byte(c.body), WebhookTolerance, c.now); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
	h := vectorHeaders(vectorSign)
	h.Set(HeaderWebhookTimestamp, "soon")
	if err := Verify([]string{vectorSecret}, h, []byte(vectorBody), WebhookTolerance, at); !errors.Is(err, ErrWebhookHeaders) {
		t.Errorf("a timestamp that is no number: %v", err)
	}
	if err := Verify(nil, vectorHeaders(vectorSign), []byte(vectorBody), WebhookTolerance, at); err == nil {
		t.Error("without a secret everything passes")
	}
}

func TestWebhookSecretsRefused(t *testing.T) {
	enc := base64.StdEncoding.EncodeToString
	wrong := append(bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)...)
	for _, s := range []string{"", "hunter2hunter2", "whsec_", "whsec_!!", "whsec_" + enc(make([]byte, 23)), "whsec_" + enc(make([]byte, 65)),
		"whsk_" + enc(make([]byte, 31)), "whsk_" + enc(wrong), "whpk_" + enc(make([]byte, 32))} {
		_, err := parseWebhookKey(s, false)
		if err == nil {
			t.Errorf("%q is taken for a secret", s)
		} else if text := strings.TrimPrefix(s, "whsec_"); len(text) > 8 && strings.Contains(err.Error(), text) {
			t.Errorf("the error repeats the secret: %v", err)
		}
	}
	for _, n := range []int{24, 64} {
		if _, err := parseWebhookKey("whsec_"+enc(make([]byte, n)), false); err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	full := ed25519.NewKeyFromSeed(make([]byte, 32))
	if _, err := parseWebhookKey("whsk_"+enc(full), false); err != nil {
		t.Errorf("seed and public key: %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	f.Add(vectorID, vectorStamp, vectorSign, []byte(vectorBody))
	f.Add("", "-1", "v1, v1a,==", []byte{0})
	f.Fuzz(func(t *testing.T, id, stamp, signature string, body []byte) {
		h := http.Header{}
		h.Set(HeaderWebhookID, id)
		h.Set(HeaderWebhookTimestamp, stamp)
		h.Set(HeaderWebhookSignature, signature)
		err := Verify([]string{vectorSecret, vectorKey}, h, body, WebhookTolerance, time.Unix(1614265330, 0))
		if err == nil && !(id == vectorID && string(body) == vectorBody) {
			t.Fatalf("forged: id %q, timestamp %q, signature %q, body %q", id, stamp, signature, body)
		}
		if d := retryAfter(stamp, time.Unix(0, 0)); d < 0 || d > maxAnswerBackoff {
			t.Fatalf("Retry-After %q gives %s", stamp, d)
		}
	})
}

func testWebhookConfig(url string) TargetConfig {
	c := TargetConfig{Name: "soc", Webhook: &WebhookConfig{Secrets: []string{vectorSecret}}}
	c.Webhook.URL, c.Webhook.AllowInsecure, c.Webhook.AllowPrivate = url, true, true
	c.Fill()
	return c
}

// asIs takes secrets for references to themselves.
func asIs(ref string) (string, error) { return ref, nil }

func newTestTarget(t testing.TB, c TargetConfig, log *slog.Logger, reg prometheus.Registerer) *Target {
	t.Helper()
	w, err := NewTarget(c, TargetOptions{Secret: asIs, Log: log, Reg: reg})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

var webhookEvent = &Event{ID: "f1:2", Key: "f1", Body: []byte(`{"id":"f1","revision":2}`)}

func TestWebhookSend(t *testing.T) {
	var got http.Header
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = r.Header.Clone()
		if err := Verify([]string{vectorSecret}, r.Header, body, WebhookTolerance, time.Now()); err != nil {
			t.Error(err)
		}
		if r.Method != http.MethodPost || string(body) != string(webhookEvent.Body) {
			t.Errorf("%s %s", r.Method, body)
		}
	}))
	defer srv.Close()
	c := testWebhookConfig(srv.URL + "/in")
	c.Webhook.Secrets = []string{NewWebhookSecret(), vectorSecret, vectorKey} // in the middle of a rotation
	c.Webhook.Headers = map[string]string{"Authorization": "Bearer abc"}
	reg := prometheus.NewPedanticRegistry()
	if err := newTestTarget(t, c, nil, reg).Send(t.Context(), webhookEvent); err != nil {
		t.Fatal(err)
	}
	if got.Get("Authorization") != "Bearer abc" || got.Get("Content-Type") != "application/json" || got.Get(HeaderWebhookID) != "f1:2" {
		t.Errorf("headers %v", got)
	}
	if n := len(strings.Split(got.Get(HeaderWebhookSignature), " ")); n != 3 {
		t.Errorf("%d signatures for three secrets", n)
	}
	if n := testutil.CollectAndCount(reg, "postern_target_attempts_total"); n != 1 {
		t.Errorf("%d attempt series", n)
	}
}

// TestWebhookFaults: whatever a receiver does, the attempt ends in time and says
// truthfully how it went.
func TestWebhookFaults(t *testing.T) {
	stop := make(chan struct{})
	var followed atomic.Bool
	mux := http.NewServeMux()
	status := func(code int, header, value string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if header != "" {
				w.Header().Set(header, value)
			}
			w.WriteHeader(code)
			io.WriteString(w, "no\x1b[31m\nluck\xff")
		}
	}
	for _, code := range []int{400, 401, 404, 500, 502, 503, 504} {
		mux.Handle(fmt.Sprintf("/%d", code), status(code, "", ""))
	}
	mux.Handle("/429", status(429, "Retry-After", "120"))
	mux.Handle("/410", status(410, "", ""))
	mux.Handle("/302", status(302, "Location", "/elsewhere"))
	mux.Handle("/307", status(307, "Location", "/elsewhere"))
	mux.HandleFunc("/elsewhere", func(http.ResponseWriter, *http.Request) { followed.Store(true) })
	mux.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-stop:
		case <-r.Context().Done():
		}
	})
	mux.HandleFunc("/drip", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		<-stop
	})
	mux.HandleFunc("/flood", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(500)
		for range 1000 {
			if _, err := w.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/hangup", func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			conn.Close()
		}
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(func() { // after the parallel subtests
		close(stop)
		srv.Close()
		if followed.Load() {
			t.Error("a redirect was followed")
		}
	})
	for _, c := range []struct {
		path   string
		want   DeliveryError
		result string
	}{
		{"/400", DeliveryError{Retry: true, Status: 400}, "4xx"},
		{"/401", DeliveryError{Retry: true, Denied: true, Status: 401}, "denied"},
		{"/404", DeliveryError{Retry: true, Status: 404}, "4xx"},
		{"/500", DeliveryError{Retry: true, Status: 500}, "5xx"},
		{"/502", DeliveryError{Retry: true, Status: 502}, "5xx"},
		{"/503", DeliveryError{Retry: true, Status: 503}, "5xx"},
		{"/504", DeliveryError{Retry: true, Status: 504}, "5xx"},
		{"/429", DeliveryError{Retry: true, Status: 429, After: 2 * time.Minute}, "throttled"},
		{"/410", DeliveryError{Retry: true, Status: 410, Gone: true}, "gone"},
		{"/302", DeliveryError{Retry: true, Status: 302}, "3xx"},
		{"/307", DeliveryError{Retry: true, Status: 307}, "3xx"},
		{"/slow", DeliveryError{Retry: true}, "timeout"},
		{"/drip", DeliveryError{}, "2xx"},
		{"/flood", DeliveryError{Retry: true, Status: 500}, "5xx"},
		{"/hangup", DeliveryError{Retry: true}, "error"},
	} {
		t.Run(c.path, func(t *testing.T) {
			t.Parallel()
			cfg := testWebhookConfig(srv.URL + c.path)
			cfg.Webhook.Timeout = time.Second
			begin := time.Now()
			err := newTestTarget(t, cfg, nil, nil).Send(t.Context(), webhookEvent)
			var d *DeliveryError
			if c.result == "2xx" && err == nil {
				return // a 2xx has accepted, however its body goes on
			}
			if !errors.As(err, &d) {
				t.Fatalf("got %v", err)
			}
			if got := (DeliveryError{Retry: d.Retry, Status: d.Status, After: d.After, Gone: d.Gone, Denied: d.Denied}); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
			if r := attemptResult(err); r != c.result {
				t.Errorf("counted as %s, want %s", r, c.result)
			}
			if strings.Contains(err.Error(), srv.URL) {
				t.Errorf("the error repeats the URL, which may hold a token: %v", err)
			}
			if len(d.Response) > 3*answerExcerpt || !utf8.ValidString(d.Response) || strings.ContainsAny(d.Response, "\x1b\n") {
				t.Errorf("excerpt %q", d.Response)
			}
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("took %s", took)
			}
		})
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 10, 1, 12, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "0": 0, "-5": 0, "soon": 0, "120": 2 * time.Minute, "99999999": 24 * time.Hour, "99999999999999999999": 0,
		now.Add(time.Hour).Format(http.TimeFormat):  time.Hour,
		now.Add(-time.Hour).Format(http.TimeFormat): 0,
	} {
		if got := retryAfter(value, now); got != want {
			t.Errorf("%q: %s, want %s", value, got, want)
		}
	}
}

// TestWebhookDestinations is scenario 37 of the threats: where a webhook may go is
// decided on the address that is about to be connected to.
func TestWebhookDestinations(t *testing.T) {
	for _, c := range []struct {
		address                          string
		plain, private, listed, insecure bool // allowed by: default, allowPrivate, allowCIDRs, http:// with allowPrivate
	}{
		{"8.8.8.8", true, true, true, false},
		{"2606:4700::1111", true, true, true, false},
		{"64:ff9b::808:808", true, true, true, false}, // NAT64 of 8.8.8.8
		{"127.0.0.1", false, true, true, true},
		{"127.255.0.1", false, true, true, true},
		{"::1", false, true, true, true},
		{"::ffff:127.0.0.1", false, true, true, true},
		{"64:ff9b::7f00:1", false, true, true, true},
		{"10.1.2.3", false, true, true, true},
		{"172.31.0.1", false, true, true, true},
		{"192.168.1.1", false, true, true, true},
		{"::ffff:192.168.1.1", false, true, true, true},
		{"64:ff9b::a01:203", false, true, true, true},
		{"100.64.0.1", false, true, true, true},
		{"fd00::1", false, true, true, true},
		{"169.254.169.254", false, false, true, false},
		{"::ffff:169.254.169.254", false, false, true, false},
		{"64:ff9b::a9fe:a9fe", false, false, true, false},
		{"fe80::1%eth0", false, false, true, false},
		{"0.0.0.0", false, false, true, false},
		{"0.1.2.3", false, false, true, false},
		{"::", false, false, true, false},
		{"::7f00:1", false, false, true, false}, // IPv4-compatible 127.0.0.1
		{"64:ff9b:1::a00:1", false, false, true, false},
		{"2002:7f00:1::", false, false, true, false}, // 6to4 of 127.0.0.1
		{"2001::1", false, false, true, false},
		{"224.0.0.1", false, false, true, false},
		{"255.255.255.255", false, false, true, false},
		{"192.0.2.1", false, false, true, false},
		{"198.18.0.1", false, false, true, false},
		{"ff02::1", false, false, true, false},
		{"fec0::1", false, false, true, false},
	} {
		ip := netip.MustParseAddr(c.address)
		bare, _, _ := classifyAddress(ip)
		for name, d := range map[string]struct {
			door doorkeeper
			want bool
		}{
			"by default":        {doorkeeper{}, c.plain},
			"with allowPrivate": {doorkeeper{allowPrivate: true}, c.private},
			"listed":            {doorkeeper{allow: []netip.Prefix{netip.PrefixFrom(bare, bare.BitLen())}}, c.listed},
			"over http://":      {doorkeeper{allowPrivate: true, plain: true}, c.insecure},
		} {
			if err := d.door.check(ip); (err == nil) != d.want {
				t.Errorf("%s %s: %v", c.address, name, err)
			}
		}
	}
	if got := canonicalPrefix(netip.MustParsePrefix("::ffff:10.1.2.3/104")); got != netip.MustParsePrefix("10.0.0.0/8") {
		t.Errorf("mapped prefix: %s", got)
	}
}

// TestWebhookRefusesInward: real look-ups and dials. The receiver must not see a
// connection, not even one that is closed at once.
func TestWebhookRefusesInward(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	accepted := make(chan struct{}, 8)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			accepted <- struct{}{}
			conn.Close()
		}
	}()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0"} {
		var logged bytes.Buffer
		c := testWebhookConfig("https://" + net.JoinHostPort(strings.Trim(host, "[]"), port) + "/token-in-path")
		c.Webhook.AllowInsecure, c.Webhook.AllowPrivate = false, false
		reg := prometheus.NewRegistry()
		err := newTestTarget(t, c, slog.New(slog.NewJSONHandler(&logged, nil)), reg).Send(t.Context(), webhookEvent)
		var refused *refusedError
		if !errors.As(err, &refused) || attemptResult(err) != "refused" {
			t.Errorf("%s: %v", host, err)
		}
		if line := logged.String(); !strings.Contains(line, `"audit":true`) || strings.Contains(line, "token-in-path") {
			t.Errorf("%s: audit line %s", host, line)
		}
		if n := testutil.CollectAndCount(reg, "postern_target_refused_total"); n < 1 {
			t.Errorf("%s: refusal not counted", host)
		}
	}
	select {
	case <-accepted:
		t.Error("a refused destination was connected to")
	default:
	}
}

// TestWebhookIgnoresProxyEnvironment: what the environment says must not lead
// findings elsewhere; what the configuration says does.
func TestWebhookProxy(t *testing.T) {
	proxied := make(chan string, 4)
	proxy := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { proxied <- r.Host }))
	defer proxy.Close()
	receiver := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer receiver.Close()
	t.Setenv("HTTP_PROXY", proxy.URL)
	t.Setenv("HTTPS_PROXY", proxy.URL)

	if err := newTestTarget(t, testWebhookConfig(receiver.URL), nil, nil).Send(t.Context(), webhookEvent); err != nil {
		t.Error(err)
	}
	if len(proxied) != 0 {
		t.Error("the proxy of the environment was used")
	}
	c := testWebhookConfig("http://receiver.invalid/in")
	c.Webhook.Proxy = proxy.URL
	if err := newTestTarget(t, c, nil, nil).Send(t.Context(), webhookEvent); err != nil {
		t.Error(err)
	}
	if got := <-proxied; got != "receiver.invalid" {
		t.Errorf("the proxy was asked for %q", got)
	}
	c.Webhook.URL = "http://169.254.169.254/in"
	if _, err := NewTarget(c, TargetOptions{Secret: asIs}); err == nil {
		t.Error("a proxy opens the way to a link-local address")
	}
}

func TestWebhookTLS(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	defer srv.Close()
	c := testWebhookConfig(srv.URL)
	if err := newTestTarget(t, c, nil, nil).Send(t.Context(), webhookEvent); err == nil {
		t.Error("an unknown certificate was trusted")
	}
	c.Webhook.CAFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(c.Webhook.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := newTestTarget(t, c, nil, nil).Send(t.Context(), webhookEvent); err != nil {
		t.Errorf("caFile: %v", err)
	}
	if err := os.WriteFile(c.Webhook.CAFile, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewTarget(c, TargetOptions{Secret: asIs}); err == nil || !strings.Contains(err.Error(), "PEM") {
		t.Errorf("a caFile without certificate: %v", err)
	}
}

func TestWebhookConfigValidate(t *testing.T) {
	good := testWebhookConfig("https://soc.example/in?x=1")
	good.Webhook.AllowInsecure, good.Webhook.AllowPrivate, good.Webhook.Secrets = false, false, []string{"env:SECRET"}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*TargetConfig){
		"name":             func(c *TargetConfig) { c.Name = "../soc" },
		"https://host":     func(c *TargetConfig) { c.Webhook.URL = "soc.example" },
		"must read https":  func(c *TargetConfig) { c.Webhook.URL = "ftp://soc.example" },
		"does not parse":   func(c *TargetConfig) { c.Webhook.URL = "https://soc.example/%zz" },
		"user information": func(c *TargetConfig) { c.Webhook.URL = "https://me:pw@soc.example" },
		"fragment":         func(c *TargetConfig) { c.Webhook.URL = "https://soc.example/#x" },
		"unencrypted":      func(c *TargetConfig) { c.Webhook.URL = "http://soc.example" },
		"only":             func(c *TargetConfig) { c.Webhook.URL, c.Webhook.AllowInsecure = "http://soc.example", true },
		"secrets":          func(c *TargetConfig) { c.Webhook.Secrets = nil },
		"minSeverity":      func(c *TargetConfig) { c.MinSeverity = "severe" },
		"timeout":          func(c *TargetConfig) { c.Webhook.Timeout = 0 },
		"maxAttempts":      func(c *TargetConfig) { c.MaxAttempts = 0 },
		"no HTTP header":   func(c *TargetConfig) { c.Webhook.Headers = map[string]string{"X": "a\r\nHost: b"} },
		"set by postern":   func(c *TargetConfig) { c.Webhook.Headers = map[string]string{"webhook-ID": "x"} },
		"allowCIDRs":       func(c *TargetConfig) { c.Webhook.AllowCIDRs = []netip.Prefix{{}} },
		"proxy":            func(c *TargetConfig) { c.Webhook.Proxy = "socks" },
	} {
		c, part := good, *good.Webhook
		c.Webhook = &part
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "me:pw") {
			t.Errorf("%s: %v", want, err)
		}
	}
	if refs := good.References(); len(refs) != 1 || refs["webhook.secrets[0]"] != "env:SECRET" {
		t.Errorf("references %v", refs)
	}
	good.Webhook.Headers = map[string]string{"Authorization": "env:TOKEN"}
	got, err := good.Webhook.resolved(func(ref string) (string, error) { return "<" + ref + ">", nil })
	if err != nil || got.Secrets[0] != "<env:SECRET>" || got.Headers["Authorization"] != "<env:TOKEN>" || good.Webhook.Secrets[0] != "env:SECRET" {
		t.Errorf("resolved %+v, %v", got, err)
	}
	if _, err := NewTarget(good, TargetOptions{Secret: func(string) (string, error) { return "", os.ErrNotExist }}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a reference that leads nowhere: %v", err)
	}
}

func messageFinding() *flow.Finding {
	return &flow.Finding{ID: "0123456789abcdef", SchemaVersion: flow.FindingSchema, Revision: 3, Type: flow.FindingExpired,
		Severity: flow.High, Client: "10.1.1.1", Server: "10.2.2.2", LastSeen: 1_790_000_000_000, Sentence: "who, what, why"}
}

func TestMarshalFinding(t *testing.T) {
	f := messageFinding()
	for i := range 250 {
		f.Edges = append(f.Edges, flow.Edge{Source: fmt.Sprintf("2001:db8:ffff:ffff:ffff:ffff:ffff:%x", i), Destination: "2001:db8:ffff:ffff:ffff:ffff:ffff:1", Port: 65535, Protocol: "tcp"})
	}
	f.EdgesTotal = 1000
	for range 5 {
		f.Samples = append(f.Samples, json.RawMessage(`{"client":"`+strings.Repeat("x", 2500)+`"}`))
	}
	before := len(f.Samples)
	e, err := NewEvent(f)
	if err != nil {
		t.Fatal(err)
	}
	if e.ID != "0123456789abcdef:3" || e.Key != f.ID || e.Time != f.LastSeen {
		t.Errorf("event %q, key %q", e.ID, e.Key)
	}
	var got flow.Finding
	if err := json.Unmarshal(e.Body, &got); err != nil {
		t.Fatal(err)
	}
	if len(e.Body) >= MaxMessage || got.EdgesTotal != 1000 || len(got.Edges) != flow.MaxEdges || got.Sentence != f.Sentence {
		t.Errorf("%d bytes, %d edges of %d, sentence %q", len(e.Body), len(got.Edges), got.EdgesTotal, got.Sentence)
	}
	if len(f.Edges) != 250 || len(f.Samples) != before {
		t.Error("the finding was changed")
	}
	if again, _ := MarshalFinding(f); !bytes.Equal(again, e.Body) {
		t.Error("the same finding gives other bytes")
	}
	small := messageFinding()
	b, err := MarshalFinding(small)
	if err != nil || !bytes.Contains(b, []byte(`"edges":[]`)) {
		t.Errorf("%s, %v", b, err)
	}
	got = flow.Finding{}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	small.Edges = []flow.Edge{}
	if diff := cmp.Diff(*small, got); diff != "" {
		t.Errorf("a finding that fits is told whole (-want +got):\n%s", diff)
	}
}

// TestMarshalFindingHostile is scenario 36: strings from the network stay inside
// their JSON string, and can neither break out nor burst the message.
func TestMarshalFindingHostile(t *testing.T) {
	for _, evil := range []string{`"},"severity":"low`, "</script><script>alert(1)</script>", "\u2028\u2029", "\x00\x1b[2J\r\n", "\xff\xfe", "'; DROP TABLE findings --",
		strings.Repeat("\x01", 300), strings.Repeat("𝔢", 9000), strings.Repeat("\"", 40000)} {
		f := messageFinding()
		f.Client, f.Server, f.Title, f.Ticket, f.Owner, f.Sentence, f.Next, f.Rule, f.Exception = evil, evil, evil, evil, evil, evil, evil, evil, evil
		f.SrcSegment, f.DstSegment, f.Requester, f.Approver, f.Service = evil, evil, evil, evil, evil
		for range flow.MaxEdges {
			f.Edges = append(f.Edges, flow.Edge{Source: evil, Destination: evil, Protocol: evil})
		}
		f.Samples = []json.RawMessage{flow.AppendJSONString(nil, evil)}
		b, err := MarshalFinding(f)
		if err != nil {
			t.Errorf("%.20q: %v", evil, err)
			continue
		}
		var got flow.Finding
		if err := json.Unmarshal(b, &got); err != nil || len(b) >= MaxMessage || got.Severity != flow.High || got.ID != f.ID || got.EdgesTotal != flow.MaxEdges {
			t.Errorf("%.20q: %d bytes, severity %s, %d edges, %v", evil, len(b), got.Severity, got.EdgesTotal, err)
		}
		if !utf8.Valid(b) || bytes.ContainsAny(b, "<>\n\x00\x1b") {
			t.Errorf("%.20q: raw in the message", evil)
		}
	}
}

// TestWebhookLogsHostile: an answer that tries to forge log lines stays one attribute.
func TestWebhookLogsHostile(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(500)
		io.WriteString(w, "\nlevel=INFO msg=\"all is well\"\x1b[2K")
	}))
	defer srv.Close()
	var logged bytes.Buffer
	o := openTestOutbox(t, t.TempDir(), slog.New(slog.NewTextHandler(&logged, nil)))
	if err := o.Put([]Event{{ID: "f1:1", Key: "f1", Body: []byte("{}")}}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- o.Run(ctx, newTestTarget(t, testWebhookConfig(srv.URL), nil, nil)) }()
	waitForOutbox(t, func() bool { return o.failuresSeen() > 0 })
	cancel()
	<-done
	for line := range strings.Lines(logged.String()) {
		if strings.HasPrefix(line, "level=INFO") || strings.Contains(line, "\x1b") {
			t.Errorf("forged: %q", line)
		}
	}
	if !strings.Contains(logged.String(), "all is well") {
		t.Error("the answer is not in the log at all")
	}
}
