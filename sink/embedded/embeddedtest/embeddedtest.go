// Package embeddedtest gives tests of other packages the real embedded ClickHouse:
// one engine a test process, in a temporary directory, fetched if it is not cached.
package embeddedtest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern/postern/sink/embedded"
)

const prefix = "postern-embeddedtest-"

var start = sync.OnceValues(func() (*embedded.Engine, error) {
	sweep()
	lib, err := embedded.Locate("")
	if errors.Is(err, embedded.ErrNotCached) {
		fmt.Fprintln(os.Stderr, "embeddedtest: fetching the embedded ClickHouse (178 MB, once)")
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
		defer cancel()
		lib, err = embedded.Fetch(ctx, "", nil)
	}
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", prefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		return nil, err
	}
	cfg := embedded.DefaultConfig()
	cfg.Library, cfg.DataDir, cfg.Listen = lib, dir, "127.0.0.1:0"
	cfg.Native.Listen = "127.0.0.1:0"
	cfg.ReadOnlyToken = "reader"
	cfg.MaxMemory = 2 << 30 // several test processes share a machine
	e, err := embedded.New(cfg, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return nil, err
	}
	failed := make(chan error, 1)
	go func() { failed <- e.Run(context.Background()) }() // ends with the process
	select {
	case err := <-failed:
		return nil, err
	case <-e.Ready():
		return e, nil
	}
})

// sweep removes what earlier test processes left; a process cannot remove its own
// directory while the engine runs in it.
func sweep() {
	left, _ := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	for _, dir := range left {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), prefix), "-")
		if _, err := os.Stat("/proc/" + pid); errors.Is(err, os.ErrNotExist) {
			_ = os.RemoveAll(dir)
		}
	}
}

// Start returns the URL (http://127.0.0.1:port) and the full token of the test
// process's engine; the read-only token is "reader". The first call starts it. All
// tests of the process share it: make a database of your own where names could
// meet. Where there is no engine for the platform the test is skipped; any other
// failure fails it.
func Start(t testing.TB) (url, token string) {
	t.Helper()
	e := engine(t)
	return "http://" + e.Addr().String(), e.Token()
}

// Native returns the address (127.0.0.1:port) and the full token of the same engine
// for the native protocol.
func Native(t testing.TB) (addr, token string) {
	t.Helper()
	e := engine(t)
	return e.NativeAddr().String(), e.Token()
}

func engine(t testing.TB) *embedded.Engine {
	t.Helper()
	if err := embedded.Supported(); err != nil {
		t.Skip(err)
	}
	e, err := start()
	if err != nil {
		t.Fatalf("the embedded ClickHouse: %v", err)
	}
	return e
}
