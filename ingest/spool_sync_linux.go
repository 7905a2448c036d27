package ingest

import (
	"os"

	"golang.org/x/sys/unix"
)

// syncData makes the contents of a file durable, but not its time stamps.
func syncData(f *os.File) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	// Control holds the descriptor while it is in use, so that closing the file at
	// the same time cannot make it another file's.
	var syncErr error
	if err := conn.Control(func(fd uintptr) { syncErr = unix.Fdatasync(int(fd)) }); err != nil {
		return err
	}
	return syncErr
}
