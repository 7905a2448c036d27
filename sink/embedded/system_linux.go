package embedded

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern/postern/flow"
)

// systemMemory is the machine's memory or the control group's cap, whichever is
// smaller.
func systemMemory() flow.Size {
	total := 4 * flow.GiB
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		total = flow.Size(uint64(info.Totalram) * uint64(info.Unit)) //nolint:unconvert // 32 bits wide on some platforms
	}
	if b, err := os.ReadFile("/sys/fs/cgroup/memory.max"); err == nil {
		if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil {
			total = min(total, flow.Size(n))
		}
	}
	return max(total, flow.GiB)
}

// allocated is what a file takes on disk.
func allocated(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}

// lockDir takes the lock of a data directory; the kernel lets go of it when the
// process dies, however it dies.
func lockDir(dir string) (unlock func(), err error) {
	path := filepath.Join(dir, "postern.lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("embedded ClickHouse: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("embedded ClickHouse: locking %s: %w", path, err)
		}
		owner := "another process"
		if b, err := os.ReadFile(path); err == nil {
			if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
				owner = "process " + strconv.Itoa(pid)
				if pid == os.Getpid() {
					owner = "this process"
				}
				if c, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm"); err == nil {
					owner += fmt.Sprintf(" (%s)", strings.TrimSpace(string(c)))
				}
			}
		}
		return nil, fmt.Errorf("%w: %s is held by %s; ask that one over HTTP, stop it, or choose another embedded.dataDir", ErrInUse, dir, owner)
	}
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("embedded ClickHouse: writing %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// waitLock takes a lock that several processes share, or waits for it.
func waitLock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}
