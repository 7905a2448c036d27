package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/sink/embedded/embeddedtest"
)

// TestStoreComesLate has a ClickHouse that is not there at first, then answers and has no
// room for what a migration notes, and then has: the service waits, and neither dies nor
// measures twice.
func TestStoreComesLate(t *testing.T) {
	engine, token := embeddedtest.Start(t)
	target, err := url.Parse(engine)
	if err != nil {
		t.Fatal(err)
	}
	var away, full atomic.Int32
	proxy := httputil.NewSingleHostReverseProxy(target)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		switch {
		case away.Add(1) <= 2:
			panic(http.ErrAbortHandler)
		case bytes.Contains(body, []byte("INSERT INTO")) && full.Add(1) <= 2:
			w.Header().Set("X-ClickHouse-Exception-Code", "243")
			http.Error(w, "Code: 243. DB::Exception: not enough free space (NOT_ENOUGH_SPACE)", http.StatusInsufficientStorage)
		default:
			proxy.ServeHTTP(w, r)
		}
	}))
	defer server.Close()

	t.Setenv("POSTERN_TEST_CLICKHOUSE", token)
	cfg := defaultConfig()
	cfg.Data = t.TempDir()
	cfg.ClickHouse.URL, cfg.ClickHouse.Database = server.URL, fmt.Sprintf("late_%d", time.Now().UnixNano())
	cfg.ClickHouse.User, cfg.ClickHouse.Password = "default", "env:POSTERN_TEST_CLICKHOUSE"
	reg := prometheus.NewRegistry()
	store, err := newDurableStore(cfg, flow.NewNames(0), slog.New(slog.DiscardHandler), reg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := store.connect(ctx); err != nil {
		t.Fatal(err)
	}
	defer store.db.Close()
	if away.Load() <= 2 || full.Load() <= 2 {
		t.Errorf("%d requests and %d inserts: it was refused less often than the test means to", away.Load(), full.Load())
	}
	if _, err := store.database(); err != nil {
		t.Errorf("it is connected, and yet: %v", err)
	}
	if _, err := reg.Gather(); err != nil {
		t.Error(err)
	}
}
