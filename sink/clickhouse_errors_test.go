package sink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go"
	chproto "github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/sink/embedded/embeddedtest"
)

func TestRetryable(t *testing.T) {
	answer := func(code int32) error { return &clickhouse.Exception{Code: code} }
	for name, test := range map[string]struct {
		err  error
		want bool
	}{
		"no error":          {nil, false},
		"refused":           {errors.New("dial tcp: connection refused"), true},
		"time-out":          {context.DeadlineExceeded, true},
		"cut off":           {io.ErrUnexpectedEOF, true},
		"bad gateway":       {&clickhouse.HTTPError{StatusCode: 502, Err: errors.New("bad gateway")}, true},
		"time-out inside":   {answer(159), true},
		"too many queries":  {answer(202), true},
		"memory":            {answer(241), true},
		"read-only":         {answer(242), true},
		"no space":          {answer(243), true},
		"too many parts":    {answer(252), true},
		"password":          {answer(516), true},
		"no such table":     {answer(60), true}, // somebody is migrating, or will
		"no such column":    {answer(16), false},
		"type":              {answer(53), false},
		"cannot parse":      {answer(27), false},
		"unknown setting":   {answer(115), false},
		"wrapped":           {fmt.Errorf("x: %w", answer(241)), true},
		"wrapped refusal":   {fmt.Errorf("x: %w", answer(117)), false},
		"ch-go":             {&ch.Exception{Code: chproto.ErrTypeMismatch}, false},
		"ch-go memory":      {&ch.Exception{Code: 241}, true},
		"ours":              {fmt.Errorf("x: %w", permanent(errors.New("no"))), false},
		"behind a password": {&redacted{err: answer(53), text: "x"}, false},
	} {
		if got := Retryable(test.err); got != test.want {
			t.Errorf("%s: retryable %v, want %v", name, got, test.want)
		}
	}
}

// What the server refuses for good is refused at once and says why; the block stays.
func TestRefusedForGood(t *testing.T) { overBoth(t, testRefusedForGood) }

func testRefusedForGood(t *testing.T, p protocol) {
	db := p.open(t, nil)
	names := flow.NewNames(0)
	w := db.NewFlowWriter(names)
	w.AppendRecords(randomRecords(rand.New(rand.NewPCG(1, 1)), names, 5))
	if err := db.exec(t.Context(), time.Minute, "ALTER TABLE "+db.cfg.Database+".flows DROP COLUMN out_if"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := w.FlushWithRetry(ctx, insertNo(1))
	if err == nil || Retryable(err) || !strings.Contains(err.Error(), "out_if") {
		t.Errorf("a column that is not there: %v", err)
	}
	if w.Rows() != 5 {
		t.Errorf("%d rows left, want 5", w.Rows())
	}
}

// A connection that breaks after the engine has stored the block, and one that
// breaks before, both end with the rows stored once.
func TestRetryStoresOnce(t *testing.T) {
	for _, when := range []string{"before", "after"} {
		t.Run(when, func(t *testing.T) {
			engine, token := embeddedtest.Start(t)
			u, err := url.Parse(engine)
			if err != nil {
				t.Fatal(err)
			}
			var broken atomic.Int32
			proxy := httputil.NewSingleHostReverseProxy(u)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.URL.Query().Get("query"), ".flows") && broken.Add(1) <= 3 {
					if when == "after" {
						proxy.ServeHTTP(httptest.NewRecorder(), r)
					}
					panic(http.ErrAbortHandler)
				}
				proxy.ServeHTTP(w, r)
			}))
			defer server.Close()
			direct := open(t, nil)
			cfg := direct.cfg
			db, err := Open(t.Context(), cfg, Options{Endpoint: server.URL, Token: token})
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			names := flow.NewNames(0)
			w := db.NewFlowWriter(names)
			w.AppendRecords(randomRecords(rand.New(rand.NewPCG(1, 1)), names, 50))
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			if _, err := w.FlushWithRetry(ctx, insertNo(1)); err != nil {
				t.Fatal(err)
			}
			if broken.Load() != 4 {
				t.Errorf("%d attempts, want 4", broken.Load())
			}
			wantQuery(t, direct, "SELECT count() AS n, uniqExact(record_id) AS u FROM flows", `{"n":50,"u":50}`)
		})
	}
}

// While ClickHouse is away flushing waits, and ends when told to.
func TestRetryEndsWithContext(t *testing.T) {
	db := open(t, nil)
	names := flow.NewNames(0)
	w := db.NewFlowWriter(names)
	w.AppendRecords(randomRecords(rand.New(rand.NewPCG(1, 1)), names, 5))
	db.cfg.Database = "no_such_database_at_all"
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := w.FlushWithRetry(ctx, insertNo(1)); err == nil {
		t.Error("flushing into nothing succeeded")
	}
	if ctx.Err() == nil {
		t.Error("gave up before the context ended")
	}
	if w.Rows() != 5 {
		t.Errorf("%d rows left, want 5", w.Rows())
	}
}

func TestPasswordStaysSecret(t *testing.T) {
	engine, _ := embeddedtest.Start(t)
	cfg := DefaultClickHouseConfig()
	const secret = "hunter2-hunter2"
	for _, u := range []string{URLEmbedded, strings.Replace(engine, "http://", "http://bob@", 1), "http://127.0.0.1:1", "clickhouse://127.0.0.1:1"} {
		cfg.URL = u
		_, err := Open(t.Context(), cfg, Options{Endpoint: engine, Token: secret, Password: secret})
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", u, err)
		}
	}
	cfg.URL = "http://127.0.0.1:1"
	if _, err := Open(t.Context(), cfg, Options{}); !Retryable(err) {
		t.Errorf("nobody listens: %v is not retryable", err)
	}
	cfg.Database = "default"
	if _, err := Open(t.Context(), cfg, Options{}); err == nil || Retryable(err) {
		t.Errorf("a wrong configuration: %v is retryable", err)
	}
	db := &ClickHouse{}
	db.options.Auth.Password = secret
	inner := &clickhouse.Exception{Code: 53, Message: "at http://x:" + secret + "@host"}
	err := db.redact(fmt.Errorf("x: %w", inner))
	var e *clickhouse.Exception
	if strings.Contains(err.Error(), secret) || !errors.As(err, &e) || e.Code != 53 {
		t.Errorf("redacted: %v", err)
	}
}

func TestClickHouseConfigValidate(t *testing.T) {
	c := DefaultClickHouseConfig()
	if err := c.Validate(); err != nil {
		t.Fatalf("the defaults: %v", err)
	}
	for want, change := range map[string]func(*ClickHouseConfig){
		"holds a password":         func(c *ClickHouseConfig) { c.URL = "clickhouse://me:secret@host" },
		"scheme \"mysql\"":         func(c *ClickHouseConfig) { c.URL = "mysql://host" },
		"names no host":            func(c *ClickHouseConfig) { c.URL = "clickhouse:///x" },
		"has parameters":           func(c *ClickHouseConfig) { c.URL = "http://host?secure=false" },
		"use https://":             func(c *ClickHouseConfig) { c.URL, c.TLS.Enabled = "http://host", true },
		"is no URL":                func(c *ClickHouseConfig) { c.URL = "http://me:secret%zz@host" },
		"no plain name":            func(c *ClickHouseConfig) { c.Database = "a; DROP" },
		"of its own":               func(c *ClickHouseConfig) { c.Database = "default" },
		"none, lz4 or zstd":        func(c *ClickHouseConfig) { c.Compression = "brotli" },
		"only one of cert and key": func(c *ClickHouseConfig) { c.TLS.Cert = "x" },
		"timeouts.insert is 0s":    func(c *ClickHouseConfig) { c.Timeouts.Insert = 0 },
		"retention.flows is 1m0s":  func(c *ClickHouseConfig) { c.Retention.Flows = time.Minute },
		"shorter than findings":    func(c *ClickHouseConfig) { c.Retention.PolicyVersions = time.Hour },
		"say it once":              func(c *ClickHouseConfig) { c.URL = "clickhouse://host/other" },
	} {
		c := DefaultClickHouseConfig()
		change(&c)
		err := c.Validate()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("shows the password: %v", err)
		}
	}
}
