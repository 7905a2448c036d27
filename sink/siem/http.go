package siem

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

// HTTPConfig is how a target that speaks HTTP is reached.
type HTTPConfig struct {
	// URL is where messages are sent: `https://…`, without user information. Redirects are not followed.
	URL string `yaml:"url"`
	// Headers are sent with every message, for instance an Authorization header; values may be secret references.
	Headers map[string]string `yaml:"headers"`
	// Timeout bounds one attempt, from the look-up of the name to the last byte of the answer.
	Timeout time.Duration `yaml:"timeout"`
	// Proxy is an http:// or https:// proxy to go through. It is the proxy that then resolves names and must refuse inward destinations; addresses written in url are still checked here. Proxy settings in the environment are ignored.
	Proxy string `yaml:"proxy"`
	// AllowInsecure lets the URL be http://, for private and loopback destinations only.
	AllowInsecure bool `yaml:"allowInsecure"`

	DoorConfig `yaml:",inline"`
	TLSConfig  `yaml:",inline"`
}

// DoorConfig says where a target may be, beside the public Internet.
type DoorConfig struct {
	// AllowPrivate lets the receiver be at a private, shared or loopback address; link-local ones still have to be listed under allowCIDRs.
	AllowPrivate bool `yaml:"allowPrivate"`
	// AllowCIDRs are destinations that are allowed whatever kind they are.
	AllowCIDRs []netip.Prefix `yaml:"allowCIDRs"`
}

// TLSConfig is how a receiver is trusted and how it knows us. TLS is 1.2 or later.
type TLSConfig struct {
	// CAFile is a PEM file of certificates to trust instead of the system's.
	CAFile string `yaml:"caFile"`
	// CertFile is a PEM file of our own certificate, for receivers that ask for one. It and the key are read anew for each connection, so that they can be renewed.
	CertFile string `yaml:"certFile"`
	// KeyFile is the PEM file of its private key.
	KeyFile string `yaml:"keyFile"`
}

func (c *TLSConfig) validate() error {
	if (c.CertFile == "") != (c.KeyFile == "") {
		return errors.New("certFile and keyFile go together; give both or neither")
	}
	return nil
}

// client is the configuration of the client's side; it reads the CA now.
func (c *TLSConfig) client(serverName string) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: serverName}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("caFile: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("caFile %s holds no certificate; it must be PEM", c.CAFile)
		}
	}
	if c.CertFile != "" {
		load := func() (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("certFile %s and keyFile %s: %w", c.CertFile, c.KeyFile, err)
			}
			return &pair, nil
		}
		if _, err := load(); err != nil { // an error at the start is better than one at the first finding
			return nil, err
		}
		t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return t, nil
}

func (c *DoorConfig) validate() error {
	for _, p := range c.AllowCIDRs {
		if !p.IsValid() {
			return errors.New("allowCIDRs: an entry is no prefix; write 10.1.2.0/24")
		}
	}
	return nil
}

// door is who decides of connections.
func (c *DoorConfig) door(plain bool) *doorkeeper {
	d := &doorkeeper{allowPrivate: c.AllowPrivate, plain: plain}
	for _, p := range c.AllowCIDRs {
		d.allow = append(d.allow, canonicalPrefix(p))
	}
	return d
}

// Fill gives c the defaults of what it does not say.
func (c *HTTPConfig) Fill() {
	if c.Timeout == 0 {
		// Standard Webhooks recommends 15 to 30 s. The shorter: concurrency × 15 s is
		// how long a receiver that hangs can hold up its queue before it is throttled.
		c.Timeout = 15 * time.Second
	}
	c.URL = strings.TrimSpace(c.URL)
}

func (c *HTTPConfig) validate() error {
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
	if c.Timeout < time.Second || c.Timeout > 2*time.Minute {
		return fmt.Errorf("timeout %s; it must lie between 1s and 2m", c.Timeout)
	}
	for name, value := range c.Headers {
		if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			return fmt.Errorf("headers: %q or its value is no HTTP header", name)
		}
		switch h := http.CanonicalHeaderKey(name); {
		case strings.HasPrefix(h, "Webhook-"), slices.Contains([]string{"Host", "Content-Type", "Content-Length", "Content-Encoding", "Transfer-Encoding", "Connection", "Te", "Trailer", "Upgrade"}, h):
			return fmt.Errorf("headers: %s is set by postern itself; leave it out", name)
		}
	}
	if c.Proxy != "" {
		p, err := url.Parse(c.Proxy)
		if err != nil || p.Scheme != "http" && p.Scheme != "https" || p.Hostname() == "" {
			return errors.New("proxy must read http://host:port or https://host:port")
		}
	}
	if err := c.DoorConfig.validate(); err != nil {
		return err
	}
	return c.TLSConfig.validate()
}

// resolved is c with the header values that are references replaced by what they refer to.
func (c HTTPConfig) resolved(get func(ref string) (string, error)) (HTTPConfig, error) {
	headers := make(map[string]string, len(c.Headers))
	for name, value := range c.Headers {
		if strings.HasPrefix(value, "env:") || strings.HasPrefix(value, "file:") {
			secret, err := get(value)
			if err != nil {
				return c, fmt.Errorf("header %s: %w", name, err)
			}
			value = secret
		}
		headers[name] = value
	}
	c.Headers = headers
	return c, nil
}

// httpDoor speaks HTTP with one receiver.
type httpDoor struct {
	cfg    HTTPConfig
	url    *url.URL
	client *http.Client
	clock  func() time.Time
}

// newHTTPDoor makes the client of a configuration that was validated and resolved.
// It connects to nothing.
func newHTTPDoor(cfg HTTPConfig, at *place) (*httpDoor, error) {
	h := &httpDoor{cfg: cfg, clock: at.clock}
	var err error
	if h.url, err = url.Parse(cfg.URL); err != nil {
		return nil, errors.New("url does not parse")
	}
	trust, err := cfg.client("")
	if err != nil {
		return nil, err
	}
	t := &http.Transport{
		TLSClientConfig:        trust,
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    4,
		MaxConnsPerHost:        64,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		TLSHandshakeTimeout:    cfg.Timeout,
	}
	door := cfg.door(h.url.Scheme == "http")
	dialer := &net.Dialer{KeepAlive: 30 * time.Second}
	if cfg.Proxy == "" {
		dialer.Control = door.control(at, h.url.Hostname())
	} else {
		proxy, err := url.Parse(cfg.Proxy)
		if err != nil {
			return nil, errors.New("proxy does not parse")
		}
		if ip, err := netip.ParseAddr(h.url.Hostname()); err == nil {
			if err := door.check(ip); err != nil {
				return nil, err
			}
		}
		t.Proxy = http.ProxyURL(proxy)
	}
	t.DialContext = dialer.DialContext
	h.client = &http.Client{
		Transport: t,
		// A redirect would lead where nobody configured: the 3xx is the answer.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return h, nil
}

func (h *httpDoor) Close() { h.client.CloseIdleConnections() }

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   []byte // its beginning
}

const (
	answerExcerpt    = 512      // bytes of an answer that a dead letter keeps
	answerDrain      = 64 << 10 // bytes of an answer that are read so that the connection can be used again
	maxAnswerBackoff = 24 * time.Hour
)

// post sends body to u, within the configured time, and reads at most the first most bytes of
// the answer. The error is a *[DeliveryError].
func (h *httpDoor) post(ctx context.Context, u *url.URL, header http.Header, body []byte, most int64) (*answer, error) {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, &DeliveryError{Retry: true, Err: errors.New("the request cannot be built")}
	}
	for name, value := range h.cfg.Headers {
		req.Header.Set(name, value)
	}
	req.Header.Set("User-Agent", "postern")
	maps.Copy(req.Header, header)
	resp, err := h.client.Do(req)
	if err != nil {
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err // without the URL, whose path or query may be a secret
		}
		return nil, &DeliveryError{Retry: true, Err: err}
	}
	defer resp.Body.Close()
	a := &answer{status: resp.StatusCode, header: resp.Header}
	a.body, err = io.ReadAll(io.LimitReader(resp.Body, most))
	if err != nil && most > answerExcerpt { // else what it says does not matter
		return nil, &DeliveryError{Retry: true, Status: a.status, Err: fmt.Errorf("the answer broke off: %w", err)}
	}
	_, _ = io.CopyN(io.Discard, resp.Body, answerDrain) // what is lost here is a connection, not an event
	return a, nil
}

// verdict is what an answer says of the attempt, by its status; nil for 2xx. What is a fault of
// the request itself (400, 413, 422 and the like) is not tried again.
func (h *httpDoor) verdict(a *answer) *DeliveryError {
	if a.status/100 == 2 {
		return nil
	}
	d := &DeliveryError{Retry: true, Status: a.status, Response: printableExcerpt(a.body[:min(len(a.body), answerExcerpt)])}
	d.Err = fmt.Errorf("the receiver answered %d %s", a.status, http.StatusText(a.status))
	switch a.status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusProxyAuthRequired:
		d.Denied = true
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		d.After = retryAfter(a.header.Get("Retry-After"), h.clock())
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity:
		d.Retry = false
	}
	if a.status/100 == 3 {
		d.Err = fmt.Errorf("%w; redirects are not followed, change the URL", d.Err)
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
	return min(max(d, 0), maxAnswerBackoff)
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

// gzipped compresses a body.
func gzipped(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write(b) // to memory
	_ = w.Close()
	return out.Bytes()
}
