package identity

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/itchyny/gojq"
	"golang.org/x/net/http/httpguts"

	"github.com/postern/postern/flow"
)

// HTTPConfig is an API that is read page by page; a jq program makes entries of its answers.
type HTTPConfig struct {
	// Name is what this source is called in metrics, in stored flows and by `postern explain`.
	Name string `yaml:"name"`
	// Preset fills in whatever is left empty for a product: okta or netbox. url then is the address of the organisation or server alone.
	Preset string `yaml:"preset"`
	// URL is what is asked for, `https://…`, without user information. http:// is for this machine only, unless allowInsecure is set.
	URL string `yaml:"url"`
	// AllowInsecure lets the URL be http://: anyone on the path may then read the token and say who is behind an address.
	AllowInsecure bool `yaml:"allowInsecure"`
	// Method is GET or POST.
	Method string `yaml:"method"`
	// Body is sent with POST, as JSON.
	Body string `yaml:"body"`
	// Headers are sent with every request; values may be secret references (env:NAME or file:PATH).
	Headers map[string]string `yaml:"headers"`
	// Token is a reference to a secret (env:NAME or file:PATH), never the secret itself. It is read anew for each read.
	Token string `yaml:"token"`
	// TokenScheme is the word before the token in the Authorization header, such as Bearer, Token or SSWS.
	TokenScheme string `yaml:"tokenScheme"`
	// TLS is how to trust the server and how to show who we are.
	TLS TLSConfig `yaml:"tls"`
	// Proxy is an http:// or https:// proxy to go through. Proxy settings in the environment are ignored.
	Proxy string `yaml:"proxy"`
	// Pages is how one page leads to the next.
	Pages PagesConfig `yaml:"pages"`
	// Related are lists that are read first; each is a variable of the program under map.
	Related []RelatedConfig `yaml:"related"`
	// Map is a jq program. It is run once for each page, with the page as its input, and gives objects with the keys address or addresses, workload, device, user, account, groups, posture, since, until, or instead of an address subject and disabled. null is passed over.
	Map string `yaml:"map"`
	// MaxPage is the largest answer, unpacked.
	MaxPage flow.Size `yaml:"maxPage"`
	// MaxBytes is the most of all answers of one read together.
	MaxBytes flow.Size `yaml:"maxBytes"`
	// MaxPages is the most requests of one read. A read that would need more is not whole: it tells nothing.
	MaxPages int `yaml:"maxPages"`
	// MapTimeout is the longest the program may run for one page.
	MapTimeout time.Duration `yaml:"mapTimeout"`
	// Timeout bounds one request, from the look-up of the name to the last byte of the answer.
	Timeout time.Duration `yaml:"timeout"`
	// Every is the time from one whole read to the next, and thereby how uncertain the time of a change is.
	Every time.Duration `yaml:"every"`
	// StaleAfter is how long after the last whole read what it said still counts; 0 is for ever. A read also ends after it.
	StaleAfter time.Duration `yaml:"staleAfter"`
}

// PagesConfig is how one page leads to the next.
type PagesConfig struct {
	// By is none, link (the Link header's rel="next", RFC 8288), next (a URL in the answer), offset or page (a number in the query).
	By string `yaml:"by"`
	// Next is, by next, a jq program that gives the next page's URL, or null after the last.
	Next string `yaml:"next"`
	// Param is, by offset and page, the query parameter that counts: items passed over, or pages from first on.
	Param string `yaml:"param"`
	// First is the number of the first page, by page.
	First int `yaml:"first"`
	// SizeParam is, by offset and page, the query parameter that says how many items a page has.
	SizeParam string `yaml:"sizeParam"`
	// Size is how many items a page has. By offset and page, a page with fewer is the last.
	Size int `yaml:"size"`
	// Items is, by offset and page, a jq program that gives the items of a page, to count them.
	Items string `yaml:"items"`
}

// RelatedConfig is a list that is read before the pages themselves, page by page as they are.
type RelatedConfig struct {
	// Name is the variable's name, without $.
	Name string `yaml:"name"`
	// URL is what is asked for; a path beginning with / is at the same server.
	URL string `yaml:"url"`
	// Items is a jq program that gives the items of a page.
	Items string `yaml:"items"`
	// Each is a jq program that gives, for an item, a further URL to read all pages of; null for none. Without it nothing more is read.
	Each string `yaml:"each"`
	// Value is a jq program that makes the variable's value of the list of {item, related}, related being what Each led to.
	Value string `yaml:"value"`
}

// What PagesConfig.By may be.
const (
	pagesNone   = "none"
	pagesLink   = "link"
	pagesNext   = "next"
	pagesOffset = "offset"
	pagesPage   = "page"
)

// DefaultHTTPConfig is the configuration of somebody who said what to ask for and what
// to make of it.
func DefaultHTTPConfig() HTTPConfig {
	return HTTPConfig{
		Method: http.MethodGet,
		// A page of a thousand NetBox addresses is some 1.5 MB.
		MaxPage: 16 * flow.MiB,
		// 200,000 addresses at 1.5 kB. One page at a time is in memory; related lists
		// are in memory as a whole.
		MaxBytes: 512 * flow.MiB,
		// 200,000 items by 200, with as many again for groups' members.
		MaxPages: 2000,
		// A program takes milliseconds for a thousand items.
		MapTimeout: 10 * time.Second,
		// A page comes within seconds even of a slow NetBox.
		Timeout: 30 * time.Second,
		// Who is moved to another group waits half of it on average. It is well within
		// the usual request limits of the products there are presets for.
		Every: 5 * time.Minute,
		// Four reads that failed, with room for the server's own maintenance.
		StaleAfter: 30 * time.Minute,
	}
}

// Validate says what is wrong and what would be right, all of it at once; each error
// begins with its key. It reads no file and connects to nothing.
func (c HTTPConfig) Validate() error {
	if _, known := httpPresets[c.Preset]; c.Preset != "" && !known {
		return fmt.Errorf("preset: %q is not known; use one of %s, or leave it out and write url, pages and map", c.Preset, strings.Join(slices.Sorted(maps.Keys(httpPresets)), ", "))
	}
	c = c.withPreset()
	errs := []error{validSourceName(c.Name)}
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	u, err := url.Parse(c.URL)
	switch {
	case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.Opaque != "":
		bad("url: must read https://host/path") // not repeated: it may hold a secret
	case u.User != nil:
		bad("url: holds user information, which ends up in logs; use token or headers, with a secret reference")
	case u.Scheme == "http" && !c.AllowInsecure && !thisMachine(u.Hostname()):
		bad("url: has no TLS: anyone on the path could read the token and say who is behind an address; use https://, or set allowInsecure")
	}
	if c.Method != http.MethodGet && c.Method != http.MethodPost {
		bad("method: %q cannot be used; write GET or POST", c.Method)
	}
	if c.Body != "" && (c.Method != http.MethodPost || !json.Valid([]byte(c.Body))) {
		bad("body: must be JSON, and goes with method POST only")
	}
	for _, name := range slices.Sorted(maps.Keys(c.Headers)) {
		value := c.Headers[name]
		canonical := http.CanonicalHeaderKey(name)
		switch {
		case !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value):
			bad("headers: %q or its value is no HTTP header", name)
		case slices.Contains([]string{"Host", "Content-Type", "Content-Length", "Transfer-Encoding", "Connection", "Accept-Encoding"}, canonical):
			bad("headers: %s is set by postern itself; leave it out", name)
		case canonical == "Authorization" && c.Token != "":
			bad("headers: Authorization is made of token; leave one of them out")
		}
	}
	if c.Token != "" && !httpguts.ValidHeaderFieldName(c.TokenScheme) {
		bad("tokenScheme: %q is no word; write Bearer, unless the server wants another", c.TokenScheme)
	}
	errs = append(errs, c.TLS.validate()...)
	if c.Proxy != "" {
		if p, err := url.Parse(c.Proxy); err != nil || p.Scheme != "http" && p.Scheme != "https" || p.Hostname() == "" {
			bad("proxy: must read http://host:port or https://host:port")
		}
	}
	if c.Map == "" {
		bad("map: is empty; write a jq program such as .results[] | {address, workload: .name}")
	}
	if _, err := compileHTTP(&c); err != nil {
		errs = append(errs, err)
	}
	switch c.Pages.By {
	case pagesNone, pagesLink:
	case pagesNext:
		if c.Pages.Next == "" {
			bad("pages.next: is empty; write a jq program that gives the next page's URL, such as .next")
		}
	case pagesOffset, pagesPage:
		if c.Pages.Param == "" || c.Pages.Size < 1 || c.Pages.Items == "" {
			bad("pages: by %s needs param, size and items; write for instance param: %s, size: 100, items: .results", c.Pages.By, c.Pages.By)
		}
	default:
		bad("pages.by: %q is not known; use none, link, next, offset or page", c.Pages.By)
	}
	for i, r := range c.Related {
		if r.URL == "" || r.Items == "" || r.Value == "" || !isVariable(r.Name) {
			bad("related[%d]: needs a name of letters and digits, url, items and value", i)
		}
	}
	if c.MaxPage < flow.KiB || c.MaxPage > flow.GiB {
		bad("maxPage: %v is out of range; it must lie between 1KiB and 1GiB", c.MaxPage)
	}
	if c.MaxBytes < c.MaxPage || c.MaxBytes > 64*flow.GiB {
		bad("maxBytes: %v is out of range; it must lie between maxPage and 64GiB", c.MaxBytes)
	}
	if c.MaxPages < 1 || c.MaxPages > 1_000_000 {
		bad("maxPages: %d is out of range; it must lie between 1 and 1000000", c.MaxPages)
	}
	if c.MapTimeout < 10*time.Millisecond || c.MapTimeout > 10*time.Minute {
		bad("mapTimeout: %v is out of range; it must lie between 10ms and 10m", c.MapTimeout)
	}
	errs = append(errs, validTimeout(c.Timeout))
	errs = append(errs, validPoll(c.Every, c.StaleAfter)...)
	return errors.Join(errs...)
}

func isVariable(s string) bool {
	for i, c := range []byte(s) {
		if c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

func thisMachine(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// httpPrograms are a configuration's jq programs.
type httpPrograms struct {
	mapping, next, items *gojq.Code
	related              []struct{ items, each, value *gojq.Code }
}

// compileHTTP compiles the programs. They see their input and the related lists only:
// no environment, no files, no modules, no further input.
func compileHTTP(c *HTTPConfig) (*httpPrograms, error) {
	var errs []error
	compile := func(key, program string, options ...gojq.CompilerOption) *gojq.Code {
		if program == "" {
			return nil
		}
		q, err := gojq.Parse(program)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, jqError(program, err)))
			return nil
		}
		code, err := gojq.Compile(q, options...)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: this is no jq program: %w", key, err))
			return nil
		}
		return code
	}
	p := &httpPrograms{next: compile("pages.next", c.Pages.Next), items: compile("pages.items", c.Pages.Items)}
	var variables []string
	for i, r := range c.Related {
		key := fmt.Sprintf("related[%d].", i)
		p.related = append(p.related, struct{ items, each, value *gojq.Code }{
			compile(key+"items", r.Items), compile(key+"each", r.Each), compile(key+"value", r.Value)})
		if isVariable(r.Name) {
			variables = append(variables, "$"+r.Name)
		}
	}
	p.mapping = compile("map", c.Map, gojq.WithVariables(variables))
	return p, errors.Join(errs...)
}

// jqError says where in a program something is wrong.
func jqError(program string, err error) error {
	if p, ok := errors.AsType[*gojq.ParseError](err); ok {
		before := program[:min(max(p.Offset-len(p.Token), 0), len(program))]
		line := strings.Count(before, "\n") + 1
		column := len(before) - strings.LastIndexByte(before, '\n')
		return fmt.Errorf("this is no jq program, at its line %d, column %d: %w", line, column, err)
	}
	return fmt.Errorf("this is no jq program: %w", err)
}

// httpReader reads an API. It is used by one goroutine.
type httpReader struct {
	cfg      HTTPConfig
	base     *url.URL
	client   *http.Client
	resolve  func(ref string) (string, error)
	programs *httpPrograms
	clock    func() flow.Time
	log      *slog.Logger

	// Of the read that is going on.
	header http.Header
	pages  int
	bytes  int64
}

// newHTTP makes a source of an API. It reads certificates and whether there is a token,
// and connects to nothing.
func newHTTP(cfg HTTPConfig, resolve func(ref string) (string, error), stateDir string, clock func() flow.Time, log *slog.Logger, met *metrics) (*polled, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r, err := newHTTPReader(cfg, resolve, clock, log)
	if err != nil {
		return nil, err
	}
	return newPolled(r.cfg.Name, flow.FactStatic, r.cfg.Every, r.cfg.StaleAfter, r, stateDir, clock, log, met), nil
}

func newHTTPReader(cfg HTTPConfig, resolve func(ref string) (string, error), clock func() flow.Time, log *slog.Logger) (*httpReader, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withPreset()
	r := &httpReader{cfg: cfg, resolve: resolve, clock: clock, log: log.With("source", cfg.Name)}
	var err error
	if r.base, err = url.Parse(cfg.URL); err != nil {
		return nil, errors.New("url: must read https://host/path")
	}
	if r.programs, err = compileHTTP(&cfg); err != nil {
		return nil, err
	}
	if r.client, err = boundedHTTPClient(cfg.TLS, cfg.Proxy, cfg.Timeout); err != nil {
		return nil, err
	}
	if _, err := r.headers(); err != nil {
		return nil, err
	}
	return r, nil
}

// maxRedirects is how often a server may send a request elsewhere on itself.
const maxRedirects = 3

// boundedHTTPClient is a client that talks to no other host than it was told, through no
// proxy but the one it was told.
func boundedHTTPClient(trust TLSConfig, proxy string, timeout time.Duration) (*http.Client, error) {
	config, err := trust.config()
	if err != nil {
		return nil, err
	}
	t := &http.Transport{
		TLSClientConfig:        config,
		ForceAttemptHTTP2:      true,
		DialContext:            (&net.Dialer{Timeout: timeout, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:    timeout,
		ResponseHeaderTimeout:  timeout,
		MaxIdleConnsPerHost:    2,
		MaxConnsPerHost:        4,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 256 << 10,
	}
	if proxy != "" {
		u, err := url.Parse(proxy)
		if err != nil {
			return nil, errors.New("proxy: must read http://host:port")
		}
		t.Proxy = http.ProxyURL(u)
	}
	return &http.Client{
		Transport: t,
		Timeout:   timeout,
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if len(via) > maxRedirects || !sameOrigin(req.URL, via[0].URL) {
				return http.ErrUseLastResponse // the 3xx is the answer
			}
			return nil
		},
	}, nil
}

func sameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && strings.EqualFold(a.Host, b.Host)
}

// headers are those of every request, with the secrets in them.
func (r *httpReader) headers() (http.Header, error) {
	secret := func(key, ref string) (string, error) {
		v, err := readSecret(r.resolve, key, ref)
		if err != nil {
			return "", err
		}
		if v == "" || !httpguts.ValidHeaderFieldValue(v) {
			return "", fmt.Errorf("%s: what %s holds is empty or has characters that no header may have", key, ref)
		}
		return v, nil
	}
	h := http.Header{"Accept": {"application/json"}, "User-Agent": {"postern"}}
	for _, name := range slices.Sorted(maps.Keys(r.cfg.Headers)) {
		value := r.cfg.Headers[name]
		if strings.HasPrefix(value, "env:") || strings.HasPrefix(value, "file:") {
			var err error
			if value, err = secret("headers: "+name, value); err != nil {
				return nil, err
			}
		}
		h.Set(name, value)
	}
	if r.cfg.Token != "" {
		token, err := secret("token", r.cfg.Token)
		if err != nil {
			return nil, err
		}
		h.Set("Authorization", r.cfg.TokenScheme+" "+token)
	}
	if r.cfg.Method == http.MethodPost {
		h.Set("Content-Type", "application/json")
	}
	return h, nil
}

// read implements reader.
func (r *httpReader) read(ctx context.Context) ([]flow.Fact, error) {
	if r.cfg.StaleAfter > 0 {
		var done context.CancelFunc
		ctx, done = context.WithTimeout(ctx, r.cfg.StaleAfter)
		defer done()
	}
	var err error
	if r.header, err = r.headers(); err != nil {
		return nil, err
	}
	r.pages, r.bytes = 0, 0
	defer r.client.CloseIdleConnections()
	var variables []any
	for i := range r.cfg.Related {
		v, err := r.readRelated(ctx, i)
		if err != nil {
			return nil, fmt.Errorf("related[%d]: %w", i, err)
		}
		variables = append(variables, v)
	}
	var facts []flow.Fact
	partial := &partialError{}
	page := 0
	err = r.each(ctx, r.base, r.cfg.Method, func(body any) error {
		page++
		item := 0
		return r.run(ctx, r.programs.mapping, body, variables, func(v any) error {
			item++
			more, addrs, subject, err := httpEntry(v)
			if err != nil {
				partial.add(fmt.Errorf("page %d, item %d: %w", page, item, err), addrs, subject)
				return nil
			}
			if facts = append(facts, more...); len(facts) > maxFacts {
				return fmt.Errorf("it gives more than %d entries", maxFacts)
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return facts, partial.orNil()
}

// readRelated reads one related list and makes the variable's value of it.
func (r *httpReader) readRelated(ctx context.Context, i int) (any, error) {
	cfg, programs := r.cfg.Related[i], r.programs.related[i]
	first, err := r.reference(r.base, cfg.URL)
	if err != nil {
		return nil, err
	}
	list := []any{}
	gather := func(u *url.URL, into *[]any) error {
		return r.each(ctx, u, http.MethodGet, func(body any) error {
			return r.run(ctx, programs.items, body, nil, func(v any) error {
				// An array as a whole, or its items one by one.
				if a, ok := v.([]any); ok {
					*into = append(*into, a...)
				} else if v != nil {
					*into = append(*into, v)
				}
				return nil
			})
		})
	}
	var items []any
	if err := gather(first, &items); err != nil {
		return nil, err
	}
	for _, item := range items {
		related := []any{}
		if programs.each != nil {
			var next string
			if err := r.run(ctx, programs.each, item, nil, func(v any) error { return textOrNull(v, &next) }); err != nil {
				return nil, fmt.Errorf("each: %w", err)
			}
			if next != "" {
				u, err := r.reference(first, next)
				if err != nil {
					return nil, fmt.Errorf("each: %w", err)
				}
				if err := gather(u, &related); err != nil {
					return nil, err
				}
			}
		}
		list = append(list, map[string]any{"item": item, "related": related})
	}
	var value any
	if err := r.run(ctx, programs.value, list, nil, func(v any) error { value = v; return nil }); err != nil {
		return nil, fmt.Errorf("value: %w", err)
	}
	return value, nil
}

func textOrNull(v any, into *string) error {
	switch v := v.(type) {
	case nil:
		*into = ""
	case string:
		*into = v
	default:
		return fmt.Errorf("it gave %s, not a URL or null", gojq.TypeOf(v))
	}
	return nil
}

// run runs a program on a value, within its time.
func (r *httpReader) run(ctx context.Context, code *gojq.Code, input any, variables []any, each func(v any) error) error {
	ctx, done := context.WithTimeout(ctx, r.cfg.MapTimeout)
	defer done()
	iter := code.RunWithContext(ctx, input, variables...)
	for {
		v, ok := iter.Next()
		if !ok {
			return nil
		}
		if err, failed := v.(error); failed {
			if ctx.Err() != nil {
				return fmt.Errorf("the jq program took longer than %v (mapTimeout)", r.cfg.MapTimeout)
			}
			if halt, ok := errors.AsType[*gojq.HaltError](err); ok && halt.Value() == nil {
				return nil
			}
			return fmt.Errorf("the jq program failed: %s", quotedLong(err.Error()))
		}
		if err := each(v); err != nil {
			return err
		}
	}
}

// quotedLong shows a message that may repeat what a server said.
func quotedLong(s string) string {
	if len(s) > 400 {
		s = s[:400] + "…"
	}
	return strconv.Quote(s)
}

// each asks for every page, beginning with first.
func (r *httpReader) each(ctx context.Context, first *url.URL, method string, page func(body any) error) error {
	p := r.cfg.Pages
	u := *first
	count := p.First
	if p.By == pagesOffset {
		count = 0
	}
	setQuery := func() {
		q := u.Query()
		q.Set(p.Param, strconv.Itoa(count))
		if p.SizeParam != "" {
			q.Set(p.SizeParam, strconv.Itoa(p.Size))
		}
		u.RawQuery = q.Encode()
	}
	if p.By == pagesOffset || p.By == pagesPage {
		setQuery()
	}
	seen := map[string]bool{}
	for number := 1; ; number++ {
		if seen[u.String()] {
			return fmt.Errorf("page %d is one that was read before; the server leads in a circle", number)
		}
		seen[u.String()] = true
		body, header, err := r.get(ctx, &u, method)
		if err == nil {
			err = page(body)
		}
		if err != nil {
			return fmt.Errorf("page %d of %s: %w", number, first.Path, err)
		}
		next := ""
		switch p.By {
		case pagesNone:
			return nil
		case pagesLink:
			next = linkNext(header.Values("Link"))
		case pagesNext:
			err = r.run(ctx, r.programs.next, body, nil, func(v any) error { return textOrNull(v, &next) })
		default:
			n := 0
			err = r.run(ctx, r.programs.items, body, nil, func(v any) error {
				if a, ok := v.([]any); ok {
					n += len(a)
				} else if v != nil {
					n++
				}
				return nil
			})
			if err == nil && n < p.Size {
				return nil
			}
			if count++; p.By == pagesOffset {
				count += n - 1
			}
			setQuery()
			next = u.String()
		}
		if err != nil {
			return fmt.Errorf("page %d of %s: pages: %w", number, first.Path, err)
		}
		if next == "" {
			return nil
		}
		following, err := r.reference(&u, next)
		if err != nil {
			return fmt.Errorf("page %d of %s: %w", number, first.Path, err)
		}
		u = *following
	}
}

// reference resolves a URL that an answer gave. It must lead to the host that is
// configured, since the token goes with it; the scheme is always the configured one,
// because servers behind a proxy often do not know theirs.
func (r *httpReader) reference(from *url.URL, ref string) (*url.URL, error) {
	v, err := url.Parse(ref)
	if err != nil {
		return nil, errors.New("the next page's address does not parse")
	}
	v = from.ResolveReference(v)
	if v.Scheme != "https" && v.Scheme != "http" || !strings.EqualFold(v.Hostname(), r.base.Hostname()) || v.User != nil {
		return nil, fmt.Errorf("it leads to another host, %s, which does not get the token; write that host in url if it is the right one", quoted(v.Host))
	}
	v.Scheme, v.Host, v.Fragment = r.base.Scheme, r.base.Host, ""
	return v, nil
}

// linkNext is the target of a Link header with the relation next (RFC 8288).
func linkNext(headers []string) string {
	for _, h := range headers {
		for h != "" {
			open := strings.IndexByte(h, '<')
			if open < 0 {
				break
			}
			length := strings.IndexByte(h[open:], '>')
			if length < 0 {
				break
			}
			target := h[open+1 : open+length]
			rest := h[open+length+1:]
			// Parameters reach to the comma before the next target.
			end, inText := len(rest), false
			for i := range len(rest) {
				if rest[i] == '"' {
					inText = !inText
				} else if rest[i] == ',' && !inText {
					end = i
					break
				}
			}
			for param := range strings.SplitSeq(rest[:end], ";") {
				name, value, _ := strings.Cut(strings.TrimSpace(param), "=")
				if strings.EqualFold(strings.TrimSpace(name), "rel") &&
					slices.ContainsFunc(strings.Fields(strings.Trim(strings.TrimSpace(value), `"`)), func(s string) bool { return strings.EqualFold(s, "next") }) {
					return target
				}
			}
			h = rest[end:]
		}
	}
	return ""
}

const (
	// maxPatience is how long a read waits for a server that asks to be left alone;
	// longer, and the read fails and comes again with the next poll.
	maxPatience = time.Minute
	maxWaits    = 10 // a request
)

// get asks for one page. A server that says when to come again is asked again then.
func (r *httpReader) get(ctx context.Context, u *url.URL, method string) (body any, header http.Header, err error) {
	for waits := 0; ; waits++ {
		if r.pages++; r.pages > r.cfg.MaxPages {
			return nil, nil, fmt.Errorf("more than %d requests would be needed (maxPages); nothing of this read counts", r.cfg.MaxPages)
		}
		b, status, header, err := r.request(ctx, u, method)
		if err != nil {
			return nil, nil, err
		}
		switch {
		case status == http.StatusOK:
		case status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable:
			wait := r.comeAgain(header)
			if wait <= 0 || wait > maxPatience || waits >= maxWaits {
				return nil, nil, fmt.Errorf("the server answered %d %s", status, http.StatusText(status))
			}
			r.log.Info("the server asks to be left alone", "status", status, "for", wait.String())
			select {
			case <-ctx.Done():
				return nil, nil, ctx.Err()
			case <-time.After(wait):
			}
			continue
		case status/100 == 3:
			return nil, nil, fmt.Errorf("the server answered %d %s; redirects to other hosts are not followed, since the token would go with them; change the url", status, http.StatusText(status))
		default:
			return nil, nil, fmt.Errorf("the server answered %d %s: %s", status, http.StatusText(status), quoted(string(b)))
		}
		if err := json.Unmarshal(b, &body); err != nil {
			return nil, nil, fmt.Errorf("the answer is no JSON: %w", err)
		}
		return body, header, nil
	}
}

func (r *httpReader) request(ctx context.Context, u *url.URL, method string) (answer []byte, status int, header http.Header, err error) {
	var content io.Reader
	if method == http.MethodPost {
		content = strings.NewReader(r.cfg.Body)
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), content)
	if err != nil {
		return nil, 0, nil, errors.New("the request cannot be built")
	}
	req.Header = r.header.Clone()
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, 0, nil, withoutURL(err)
	}
	defer resp.Body.Close()
	limit := min(int64(r.cfg.MaxPage), int64(r.cfg.MaxBytes)-r.bytes)
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, 0, nil, withoutURL(err)
	}
	if int64(len(b)) > limit {
		return nil, 0, nil, fmt.Errorf("the answers are larger than maxPage (%v) or, together, maxBytes (%v); nothing of this read counts", r.cfg.MaxPage, r.cfg.MaxBytes)
	}
	r.bytes += int64(len(b))
	return b, resp.StatusCode, resp.Header, nil
}

// withoutURL takes the URL, whose query may be a secret, out of an error.
func withoutURL(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

// comeAgain reads when a server wants to be asked again: Retry-After (RFC 9110, 10.2.3),
// else X-Rate-Limit-Reset in seconds since 1970, as Okta has it. Zero if it says nothing.
func (r *httpReader) comeAgain(h http.Header) time.Duration {
	now := r.clock().Std()
	if v := h.Get("Retry-After"); v != "" {
		if seconds, err := strconv.ParseUint(v, 10, 31); err == nil {
			return time.Duration(seconds) * time.Second
		}
		if at, err := http.ParseTime(v); err == nil {
			return at.Sub(now)
		}
		return 0
	}
	if v, err := strconv.ParseUint(h.Get("X-Rate-Limit-Reset"), 10, 40); err == nil {
		return max(time.Unix(int64(v), 0).Sub(now), time.Second) //nolint:gosec // 40 bits fit
	}
	return 0
}

var httpFields = append(slices.Clone(entryFields), "subject", "disabled")

// httpEntry makes facts of an object that the mapping gave.
func httpEntry(v any) (facts []flow.Fact, addrs []flow.Addr, subject string, err error) {
	if v == nil {
		return nil, nil, "", nil
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, nil, "", fmt.Errorf("the program gave %s; it must give objects such as {address, workload}", gojq.TypeOf(v))
	}
	var e entry
	for _, key := range slices.Sorted(maps.Keys(m)) {
		value := m[key]
		if !slices.Contains(httpFields, key) {
			err = errors.Join(err, fmt.Errorf("there is no key %s; %s", quoted(key), nearestField(key, httpFields)))
			continue
		}
		if value == nil {
			continue
		}
		if key == "disabled" {
			if e.disabled, ok = value.(bool); !ok {
				err = errors.Join(err, fmt.Errorf("disabled is %s; it must be true or false", gojq.TypeOf(value)))
			}
			continue
		}
		texts, ok := httpTexts(value)
		about := key == "address" || key == "addresses"
		list := about || key == "groups"
		if !ok || len(texts) != 1 && !list {
			e.unread = e.unread || about
			err = errors.Join(err, fmt.Errorf("%s is %s; it must be a text%s", key, gojq.TypeOf(value), map[bool]string{true: " or a list of texts"}[list]))
			continue
		}
		switch key {
		case "address", "addresses":
			e.addresses = append(e.addresses, texts...)
		case "groups":
			e.groups = append(e.groups, texts...)
		case "subject":
			e.subject = texts[0]
		default:
			e.set(key, texts[0])
		}
	}
	facts, addrs, wrong := e.facts()
	if err == nil && wrong == nil {
		return facts, addrs, "", nil
	}
	if subject, _, _ = readName("subject", e.subject); subject != "" {
		addrs = nil
	}
	if err == nil {
		err = wrong
	}
	return nil, addrs, subject, err
}

// httpTexts is a text or a list of them; numbers are texts too.
func httpTexts(v any) ([]string, bool) {
	switch v := v.(type) {
	case string:
		return []string{v}, true
	case int:
		return []string{strconv.Itoa(v)}, true
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
			return []string{strconv.FormatInt(int64(v), 10)}, true
		}
	case []any:
		out := make([]string, 0, len(v))
		for _, item := range v {
			if _, nested := item.([]any); nested {
				return nil, false
			}
			t, ok := httpTexts(item)
			if !ok {
				return nil, false
			}
			out = append(out, t...)
		}
		return out, true
	}
	return nil, false
}

// keaHTTP asks Kea's control agent, or a server of version 2.7 or later itself, by HTTP.
func keaHTTP(client *http.Client, address string, header func() (http.Header, error)) func(ctx context.Context, command []byte) ([]byte, error) {
	return func(ctx context.Context, command []byte) ([]byte, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(command))
		if err != nil {
			return nil, errors.New("the request cannot be built")
		}
		if req.Header, err = header(); err != nil {
			return nil, err
		}
		resp, err := client.Do(req)
		if err != nil {
			return nil, withoutURL(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("the server answered %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
		}
		return readAnswer(resp.Body)
	}
}

// maxKeaAnswer bounds a page of 1,024 leases, which are some 300 bytes each without
// user context.
const maxKeaAnswer = 32 << 20

func readAnswer(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxKeaAnswer+1))
	if err == nil && len(b) > maxKeaAnswer {
		err = fmt.Errorf("the answer is larger than %v", flow.Size(maxKeaAnswer))
	}
	return b, err
}

// keaSocket asks a Kea server by its control socket; a connection is one command.
func keaSocket(path string, timeout time.Duration) func(ctx context.Context, command []byte) ([]byte, error) {
	return func(ctx context.Context, command []byte) ([]byte, error) {
		ctx, done := context.WithTimeout(ctx, timeout)
		defer done()
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", path)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) }) // ends what is being waited for
		defer stop()
		if _, err := c.Write(command); err != nil {
			return nil, err
		}
		return readAnswer(c)
	}
}
