package siem

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/http/httpguts"

	"github.com/postern/postern/flow"
)

// WebhookConfig is one receiver of findings.
type WebhookConfig struct {
	// Name names the target in metrics, logs and `postern outbox`; its outbox lies in a folder of that name. Lower-case letters, digits, `-` and `_`, at most 64.
	Name string `yaml:"name"`
	// URL is where findings are posted: `https://…`, without user information. Redirects are not followed.
	URL string `yaml:"url"`
	// Secrets are references to the signing secrets, the newest first; every message carries a signature by each, so a secret is rotated by adding the new one, changing the receiver, and removing the old one. A secret is `whsec_…` (HMAC-SHA256, 24–64 bytes) or `whsk_…` (ed25519 seed).
	Secrets []string `yaml:"secrets"`
	// Headers are sent with every message, for instance an Authorization header; values may be secret references.
	Headers map[string]string `yaml:"headers"`
	// MinSeverity is the least severity that is told: informational, low, medium, high or critical.
	MinSeverity string `yaml:"minSeverity"`
	// Timeout bounds one attempt, from the look-up of the name to the last byte of the answer.
	Timeout time.Duration `yaml:"timeout"`
	// MaxAttempts is after how many failed attempts an event becomes a dead letter.
	MaxAttempts int `yaml:"maxAttempts"`
	// AllowPrivate lets the receiver be at a private, shared or loopback address; link-local ones still have to be listed under allowCIDRs.
	AllowPrivate bool `yaml:"allowPrivate"`
	// AllowCIDRs are destinations that are allowed whatever kind they are.
	AllowCIDRs []netip.Prefix `yaml:"allowCIDRs"`
	// AllowInsecure lets the URL be http://, for private and loopback destinations only.
	AllowInsecure bool `yaml:"allowInsecure"`
	// CAFile is a PEM file of certificates to trust instead of the system's.
	CAFile string `yaml:"caFile"`
	// Proxy is an http:// or https:// proxy to go through. It is the proxy that then resolves names and must refuse inward destinations; addresses written in url are still checked here. Proxy settings in the environment are ignored.
	Proxy string `yaml:"proxy"`
}

// DefaultWebhookConfig is a target with everything but name, url and secrets.
func DefaultWebhookConfig() WebhookConfig {
	return WebhookConfig{
		MinSeverity: flow.Low.String(),
		// Standard Webhooks recommends 15 to 30 s. The shorter: concurrency × 15 s is
		// how long a receiver that hangs can hold up its queue before it is throttled.
		Timeout: 15 * time.Second,
		// With webhookDelays the tenth attempt comes after 75 h 35 min: a receiver
		// that is away from Friday evening to Monday evening loses nothing.
		MaxAttempts: 10,
	}
}

var targetNameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)

func validTargetName(name string) error {
	if !targetNameForm.MatchString(name) {
		return fmt.Errorf("name %q: it names a folder and a metric label; write 1 to 64 lower-case letters, digits, - or _, beginning with a letter or digit", name)
	}
	return nil
}

// Validate says what is wrong with c and what would be right. It looks at no
// secret and resolves no name.
func (c *WebhookConfig) Validate() error {
	if err := validTargetName(c.Name); err != nil {
		return fmt.Errorf("webhook: %w", err)
	}
	if err := c.validate(); err != nil {
		return fmt.Errorf("webhook %s: %w", c.Name, err)
	}
	return nil
}

func (c *WebhookConfig) validate() error {
	u, err := url.Parse(c.URL)
	switch {
	case err != nil:
		// url.Error repeats the URL, which may hold a token.
		return errors.New("url does not parse; write https://host/path")
	case u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.Opaque != "":
		return errors.New("url must read https://host/path")
	case u.User != nil:
		return errors.New("url holds user information, which ends up in logs; put credentials under headers, as a secret reference")
	case u.Fragment != "":
		return errors.New("url holds a fragment, which is never sent; leave out what follows #")
	case u.Scheme == "http" && !c.AllowInsecure:
		return errors.New("url is http://, which sends findings unencrypted; use https://, or set allowInsecure for a receiver at a private or loopback address")
	case u.Scheme == "http" && !c.AllowPrivate && len(c.AllowCIDRs) == 0:
		return errors.New("url is http://, which is for private and loopback destinations only; set allowPrivate or allowCIDRs too, or use https://")
	}
	if len(c.Secrets) == 0 {
		return errors.New("secrets is empty; give at least one, so that the receiver can tell a finding from a forgery")
	}
	var severity flow.Severity
	if err := severity.UnmarshalText([]byte(c.MinSeverity)); err != nil {
		return fmt.Errorf("minSeverity: %w", err)
	}
	if c.Timeout < time.Second || c.Timeout > 2*time.Minute {
		return fmt.Errorf("timeout %s; it must lie between 1s and 2m", c.Timeout)
	}
	if c.MaxAttempts < 1 || c.MaxAttempts > 100 {
		return fmt.Errorf("maxAttempts %d; it must lie between 1 and 100", c.MaxAttempts)
	}
	for name, value := range c.Headers {
		if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			return fmt.Errorf("headers: %q or its value is no HTTP header", name)
		}
		switch h := http.CanonicalHeaderKey(name); {
		case strings.HasPrefix(h, "Webhook-"), slices.Contains([]string{"Host", "Content-Type", "Content-Length", "Transfer-Encoding", "Connection", "Te", "Trailer", "Upgrade"}, h):
			return fmt.Errorf("headers: %s is set by postern itself; leave it out", name)
		}
	}
	for _, p := range c.AllowCIDRs {
		if !p.IsValid() {
			return errors.New("allowCIDRs: an entry is no prefix; write 10.1.2.0/24")
		}
	}
	if c.Proxy != "" {
		p, err := url.Parse(c.Proxy)
		if err != nil || p.Scheme != "http" && p.Scheme != "https" || p.Hostname() == "" {
			return errors.New("proxy must read http://host:port or https://host:port")
		}
	}
	return nil
}

// Resolve is c with every secret, and every header value that is a reference
// (env:NAME, file:PATH), replaced by what get makes of it.
func (c WebhookConfig) Resolve(get func(ref string) (string, error)) (WebhookConfig, error) {
	secrets, headers := make([]string, len(c.Secrets)), make(map[string]string, len(c.Headers))
	for i, ref := range c.Secrets {
		value, err := get(ref)
		if err != nil {
			return c, fmt.Errorf("webhook %s: secret %d: %w", c.Name, i+1, err)
		}
		secrets[i] = value
	}
	for name, value := range c.Headers {
		if strings.HasPrefix(value, "env:") || strings.HasPrefix(value, "file:") {
			secret, err := get(value)
			if err != nil {
				return c, fmt.Errorf("webhook %s: header %s: %w", c.Name, name, err)
			}
			value = secret
		}
		headers[name] = value
	}
	c.Secrets, c.Headers = secrets, headers
	return c, nil
}

// Wants says whether the target is told of a finding of severity s.
func (c *WebhookConfig) Wants(s flow.Severity) bool {
	var least flow.Severity
	return least.UnmarshalText([]byte(c.MinSeverity)) == nil && s >= least
}

// Webhook posts events to one receiver, signed as Standard Webhooks 1.0.0 says.
// It is a [Sender]: it makes one attempt and says how it went; the [Outbox] keeps
// and repeats. Safe for concurrent use.
type Webhook struct {
	cfg    WebhookConfig
	url    *url.URL
	keys   []webhookKey
	client *http.Client
	log    *slog.Logger
	met    *webhookMetrics
	clock  func() time.Time
}

type webhookMetrics struct {
	attempts *prometheus.CounterVec
	refused  *prometheus.CounterVec
	seconds  prometheus.Histogram
	reg      prometheus.Registerer
}

func newWebhookMetrics(reg prometheus.Registerer, target string) (*webhookMetrics, error) {
	labels := prometheus.Labels{"target": target}
	m := &webhookMetrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_webhook_attempts_total", ConstLabels: labels,
			Help: "Attempts to post an event, by result: 2xx, 3xx, 4xx, 5xx, gone, throttled, timeout, refused, error."}, []string{"result"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_webhook_refused_total", ConstLabels: labels,
			Help: "Connections refused because of where they led, by kind of destination."}, []string{"kind"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "postern_webhook_duration_seconds", ConstLabels: labels,
			Help: "How long an attempt took.", Buckets: []float64{.005, .02, .1, .5, 1, 2, 5, 15, 30}}),
		reg: reg,
	}
	return m, registerCollectors(reg, m.collectors())
}

func (m *webhookMetrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.attempts, m.refused, m.seconds}
}

// registerCollectors registers every collector or none; a nil reg takes all.
func registerCollectors(reg prometheus.Registerer, collectors []prometheus.Collector) error {
	if reg == nil {
		return nil
	}
	for i, c := range collectors {
		if err := reg.Register(c); err != nil {
			unregisterCollectors(reg, collectors[:i])
			return fmt.Errorf("metrics: %w", err)
		}
	}
	return nil
}

func unregisterCollectors(reg prometheus.Registerer, collectors []prometheus.Collector) {
	if reg == nil {
		return
	}
	for _, c := range collectors {
		reg.Unregister(c)
	}
}

// NewWebhook makes a target from a configuration whose secrets and headers are
// resolved (see [WebhookConfig.Resolve]). It connects to nothing. log, reg and
// clock may be nil.
func NewWebhook(cfg WebhookConfig, log *slog.Logger, reg prometheus.Registerer, clock func() time.Time) (*Webhook, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	keys, err := parseWebhookKeys(cfg.Secrets, false)
	if err != nil {
		return nil, fmt.Errorf("webhook %s: %w", cfg.Name, err)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if clock == nil {
		clock = time.Now
	}
	w := &Webhook{cfg: cfg, keys: keys, log: log.With("target", cfg.Name), clock: clock}
	w.url, _ = url.Parse(cfg.URL) // Validate has parsed it
	transport, err := w.transport()
	if err != nil {
		return nil, fmt.Errorf("webhook %s: %w", cfg.Name, err)
	}
	w.client = &http.Client{
		Transport: transport,
		// A redirect would lead where nobody configured: the 3xx is the answer.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if w.met, err = newWebhookMetrics(reg, cfg.Name); err != nil {
		return nil, fmt.Errorf("webhook %s: %w", cfg.Name, err)
	}
	return w, nil
}

func (w *Webhook) transport() (*http.Transport, error) {
	roots, err := webhookRoots(w.cfg.CAFile)
	if err != nil {
		return nil, err
	}
	t := &http.Transport{
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    4,
		MaxConnsPerHost:        64,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		TLSHandshakeTimeout:    w.cfg.Timeout,
	}
	door := &doorkeeper{allowPrivate: w.cfg.AllowPrivate, plain: w.url.Scheme == "http"}
	for _, p := range w.cfg.AllowCIDRs {
		door.allow = append(door.allow, canonicalPrefix(p))
	}
	dialer := &net.Dialer{KeepAlive: 30 * time.Second}
	if w.cfg.Proxy == "" {
		// Control sees the address of each connection after resolution and before
		// connecting, so a name that is rebound between a check and its use gains
		// nothing.
		dialer.Control = func(_, address string, _ syscall.RawConn) error {
			ap, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("destination %q refused: it is no address", address)
			}
			err = door.check(ap.Addr())
			if refused, ok := errors.AsType[*refusedError](err); ok {
				w.met.refused.WithLabelValues(refused.what).Inc()
				w.log.Warn("webhook destination refused", "audit", true, "host", w.url.Hostname(), "address", refused.address.String(),
					"kind", refused.what, "reason", refused.why)
			}
			return err
		}
	} else {
		proxy, err := url.Parse(w.cfg.Proxy)
		if err != nil {
			return nil, errors.New("proxy does not parse")
		}
		if ip, err := netip.ParseAddr(w.url.Hostname()); err == nil {
			if err := door.check(ip); err != nil {
				return nil, err
			}
		}
		t.Proxy = http.ProxyURL(proxy)
	}
	t.DialContext = dialer.DialContext
	return t, nil
}

func webhookRoots(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("caFile: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("caFile %s holds no certificate; it must be PEM", file)
	}
	return pool, nil
}

// Close gives up idle connections and the metrics.
func (w *Webhook) Close() {
	w.client.CloseIdleConnections()
	unregisterCollectors(w.met.reg, w.met.collectors())
}

const (
	webhookExcerpt    = 512      // bytes of an answer that a dead letter keeps
	webhookDrain      = 64 << 10 // bytes of an answer that are read so that the connection can be used again
	maxWebhookBackoff = 24 * time.Hour
)

// Send makes one attempt. nil means the receiver answered 2xx; otherwise the
// error is a *[DeliveryError].
func (w *Webhook) Send(ctx context.Context, e *Event) error {
	begin := w.clock()
	err := w.post(ctx, e, begin)
	w.met.seconds.Observe(w.clock().Sub(begin).Seconds())
	w.met.attempts.WithLabelValues(attemptResult(err)).Inc()
	return err
}

func (w *Webhook) post(ctx context.Context, e *Event, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, w.cfg.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url.String(), bytes.NewReader(e.Body))
	if err != nil {
		return &DeliveryError{Retry: true, Err: errors.New("the request cannot be built")}
	}
	for name, value := range w.cfg.Headers {
		req.Header.Set(name, value)
	}
	stamp := strconv.FormatInt(now.Unix(), 10)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "postern")
	req.Header[HeaderWebhookID] = []string{e.ID}
	req.Header[HeaderWebhookTimestamp] = []string{stamp}
	req.Header[HeaderWebhookSignature] = []string{signWebhook(w.keys, e.ID, stamp, e.Body)}
	resp, err := w.client.Do(req)
	if err != nil {
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err // without the URL, whose path or query may be a secret
		}
		return &DeliveryError{Retry: true, Err: err}
	}
	defer resp.Body.Close()
	excerpt, _ := io.ReadAll(io.LimitReader(resp.Body, webhookExcerpt))
	_, _ = io.CopyN(io.Discard, resp.Body, webhookDrain) // what is lost here is a connection, not an event
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return nil
	}
	d := &DeliveryError{Retry: true, Status: resp.StatusCode, Response: printableExcerpt(excerpt)}
	switch resp.StatusCode {
	case http.StatusGone:
		d.Gone = true
		d.Err = errors.New("the receiver answered 410 Gone: it wants no more events")
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		d.After = retryAfter(resp.Header.Get("Retry-After"), w.clock())
		d.Err = fmt.Errorf("the receiver answered %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	default:
		d.Err = fmt.Errorf("the receiver answered %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
		if resp.StatusCode/100 == 3 {
			d.Err = fmt.Errorf("%w; redirects are not followed, change the URL", d.Err)
		}
	}
	return d
}

// retryAfter reads Retry-After (RFC 9110, 10.2.3): seconds or a date. Nonsense and
// the past are zero; more than a day is a day.
func retryAfter(value string, now time.Time) time.Duration {
	var d time.Duration
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		d = time.Duration(seconds) * time.Second
	} else if at, err := http.ParseTime(value); err == nil {
		d = at.Sub(now)
	}
	return min(max(d, 0), maxWebhookBackoff)
}

// printableExcerpt makes text of bytes a stranger sent: no control characters, valid UTF-8.
func printableExcerpt(b []byte) string {
	return strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(string(b), "�"))
}

func attemptResult(err error) string {
	var d *DeliveryError
	if !errors.As(err, &d) {
		return "2xx"
	}
	_, refused := errors.AsType[*refusedError](err)
	switch {
	case d.Gone:
		return "gone"
	case d.Status == http.StatusTooManyRequests:
		return "throttled"
	case d.Status != 0:
		return strconv.Itoa(d.Status/100) + "xx"
	case refused:
		return "refused"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	}
	return "error"
}
