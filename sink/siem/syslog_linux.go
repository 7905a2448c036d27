package siem

import (
	"net"

	"golang.org/x/sys/unix"
)

// unacknowledged is how many bytes were written to c and not acknowledged by the other side's
// kernel; 0 where nobody can say.
func unacknowledged(c *net.TCPConn) int {
	if c == nil {
		return 0
	}
	n := 0
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			n, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) // 0 with an error
		})
	}
	return n
}
