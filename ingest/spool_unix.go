//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package ingest

import (
	"os"
	"syscall"
)

// lockFile takes the lock of a file for this process without waiting. The kernel
// gives it back when the process ends, however it ends.
func lockFile(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) }

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
