package main

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/postern/postern/flow"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// adminConfig is the address for operators: metrics, health, profiles.
type adminConfig struct {
	// Listen is the address of /metrics, /healthz, /readyz, /ledger, /findings and /debug/pprof; empty turns it off.
	Listen string `yaml:"listen"`
	// Token is a secret reference to the bearer token that all but /healthz and /readyz ask for. Unset: one is made and kept in admin.token in the data directory.
	Token string `yaml:"token"`
	// Open lets anyone who reaches the address read it without a token. Nobody can judge findings there then.
	Open bool `yaml:"open"`
}

// admin answers operators about a role.
type admin struct {
	role     role
	listener net.Listener // nil: nobody is answered
	token    string       // empty: open
	log      *slog.Logger
}

// openAdmin binds the admin address, if there is one.
func openAdmin(c *config, r role, log *slog.Logger) (a *admin, err error) {
	a = &admin{role: r, log: log}
	if c.Admin.Listen == "" {
		return a, nil
	}
	if !c.Admin.Open {
		if c.Admin.Token != "" {
			a.token, err = resolveSecret(c.Admin.Token)
		} else {
			a.token, err = keptToken(c.Data, "admin.token")
		}
		if err != nil {
			return nil, fmt.Errorf("admin.token: %w", err)
		}
	}
	if a.listener, err = net.Listen("tcp", c.Admin.Listen); err != nil {
		return nil, fmt.Errorf("admin.listen: %w", err)
	}
	return a, nil
}

// run serves until ctx ends.
func (a *admin) run(ctx context.Context) error {
	if a.listener == nil {
		<-ctx.Done()
		return nil
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := a.role.ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ready\n"))
	})
	mux.Handle("GET /metrics", a.guard(promhttp.HandlerFor(a.role, promhttp.HandlerOpts{})))
	mux.Handle("GET /ledger", a.guard(http.HandlerFunc(a.serveLedger)))
	a.findings(mux)
	mux.Handle("GET /debug/pprof/", a.guard(http.HandlerFunc(pprof.Index)))
	mux.Handle("GET /debug/pprof/profile", a.guard(http.HandlerFunc(pprof.Profile)))
	mux.Handle("GET /debug/pprof/symbol", a.guard(http.HandlerFunc(pprof.Symbol)))
	mux.Handle("GET /debug/pprof/trace", a.guard(http.HandlerFunc(pprof.Trace)))
	srv := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(a.log.Handler(), slog.LevelWarn),
	}
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			_ = srv.Close()
		}
	})
	defer stop()
	if err := srv.Serve(a.listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// guard asks for the token, in constant time.
func (a *admin) guard(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if a.token != "" && subtle.ConstantTimeCompare([]byte(got), []byte(a.token)) != 1 {
			w.Header().Set("WWW-Authenticate", `Bearer realm="postern"`)
			http.Error(w, "a bearer token is needed; it is in admin.token in the data directory", http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// serveLedger writes both ledgers by exporter, and whether they close.
func (a *admin) serveLedger(w http.ResponseWriter, _ *http.Request) {
	l := a.role.ledger()
	closes := "yes"
	if err := l.Check(); err != nil {
		closes = err.Error()
	}
	w.Header().Set("Content-Type", "application/json")
	total := l.Total()
	_ = json.NewEncoder(w).Encode(struct {
		Closes    string       `json:"closes"`
		Total     flow.Account `json:"total"`
		Exporters flow.Ledger  `json:"exporters"`
	}{closes, total, l}) // the client went away; there is nobody to tell
}

// keptToken reads the token in a file of the data directory, or makes one there
// that only the owner can read.
func keptToken(dir, name string) (string, error) {
	path := filepath.Join(dir, name)
	b, err := os.ReadFile(path)
	if err == nil && len(strings.TrimSpace(string(b))) >= 32 {
		return strings.TrimSpace(string(b)), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	var raw [24]byte
	_, _ = rand.Read(raw[:]) // never fails (crypto/rand)
	token := base64.RawURLEncoding.EncodeToString(raw[:])
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	return token, writeDurably(path, []byte(token+"\n"))
}
