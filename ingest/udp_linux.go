package ingest

import (
	"net"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

const reusePort = true

// controlSocket prepares a socket before it is bound.
func controlSocket(_, _ string, c syscall.RawConn) error {
	var optErr error
	err := c.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	})
	if err != nil {
		return err
	}
	return optErr
}

// setReceiveBuffer asks for a receive buffer of n bytes and says what the kernel
// grants, 0 if it does not tell. Beyond net.core.rmem_max it takes CAP_NET_ADMIN.
func setReceiveBuffer(c *net.UDPConn, n int) (granted int) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, n) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, n) // what it gave is asked for below
		}
		if v, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF); err == nil {
			granted = v / 2 // the kernel doubles what is asked for and tells the double (socket(7))
		}
	})
	return granted
}

// socketDrops is the kernel's count of what a socket dropped (SO_MEMINFO,
// SK_MEMINFO_DROPS); it wraps.
func socketDrops(c *net.UDPConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var info [unix.SK_MEMINFO_DROPS + 1]uint32
	size := uint32(unsafe.Sizeof(info))
	var errno syscall.Errno
	if err := raw.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&info[0])), uintptr(unsafe.Pointer(&size)), 0)
	}); err != nil {
		return 0, err
	}
	if errno != 0 {
		return 0, errno
	}
	return info[unix.SK_MEMINFO_DROPS], nil
}

// batchReader reads many datagrams by one system call (recvmmsg), into buffers it
// goes on using.
type batchReader struct {
	conn     *ipv4.PacketConn // serves sockets of both families: it only passes the call on
	messages []ipv4.Message
}

func newBatchReader(c *net.UDPConn, batch, size int) *batchReader {
	r := &batchReader{conn: ipv4.NewPacketConn(c), messages: make([]ipv4.Message, batch)}
	for i := range r.messages {
		r.messages[i].Buffers = [][]byte{make([]byte, size)}
	}
	return r
}

// read waits for datagrams and says how many came.
func (r *batchReader) read() (int, error) { return r.conn.ReadBatch(r.messages, 0) }

// datagram is the i-th of those read, valid until the next read.
func (r *batchReader) datagram(i int) (payload []byte, from netip.AddrPort, truncated bool) {
	m := &r.messages[i]
	if a, ok := m.Addr.(*net.UDPAddr); ok {
		from = a.AddrPort()
	}
	return m.Buffers[0][:m.N], from, m.Flags&unix.MSG_TRUNC != 0
}
