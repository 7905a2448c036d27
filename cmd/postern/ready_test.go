package main

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postern/postern/flow"
)

// fakeRole is a role that says what it is told to say.
type fakeRole struct {
	prometheus.Gatherer
	wrong error
}

func (f *fakeRole) run(context.Context) error { return nil }
func (f *fakeRole) ready() error              { return f.wrong }
func (f *fakeRole) ledger() flow.Ledger       { return flow.Ledger{} }

// TestReady: the command says what the admin address says, by its words and its status, and needs no token.
func TestReady(t *testing.T) {
	cfg := defaultConfig()
	cfg.Data, cfg.Admin.Listen = t.TempDir(), "127.0.0.1:0"
	r := &fakeRole{Gatherer: prometheus.NewRegistry()}
	a, err := openAdmin(&cfg, r, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := strings.Cut(a.listener.Addr().String(), ":")
	// Inside a container the address is every one of the host.
	file := writeFile(t, filepath.Join(t.TempDir(), "postern.yaml"), "admin: {listen: \":"+port+"\"}\n")
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- a.run(ctx) }()

	if out, _, err := command(t, "ready", "-c", file); err != nil || out != "ready\n" {
		t.Errorf("a role that is ready: %q, %v", out, err)
	}
	r.wrong = errors.New("ClickHouse is not connected yet")
	out, _, err := command(t, "ready", "-c", file)
	if code, ok := errors.AsType[exitError](err); !ok || code != 1 || out != "ClickHouse is not connected yet\n" {
		t.Errorf("a role that is not: %q, %v", out, err)
	}
	if out, _, err := command(t, "ready", "--alive", "-c", file); err != nil || out != "ok\n" {
		t.Errorf("alive: %q, %v", out, err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if _, _, err := command(t, "ready", "-c", file); err == nil || !strings.Contains(err.Error(), "nobody answers") {
		t.Errorf("where nobody is: %v", err)
	}
	if _, _, err := command(t, "ready", "-c", writeFile(t, filepath.Join(t.TempDir(), "postern.yaml"), "admin: {listen: \"\"}\n")); err == nil || !strings.Contains(err.Error(), "admin.listen") {
		t.Errorf("without an address: %v", err)
	}
}
