//go:build !linux

package ingest

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
)

// One socket, one datagram a call: what every system has.
const reusePort = false

func controlSocket(_, _ string, _ syscall.RawConn) error { return nil }

// setReceiveBuffer asks for a receive buffer; these systems do not tell what they grant.
func setReceiveBuffer(c *net.UDPConn, n int) (granted int) {
	_ = c.SetReadBuffer(n)
	return 0
}

func socketDrops(*net.UDPConn) (uint32, error) { return 0, errors.ErrUnsupported }

type batchReader struct {
	conn *net.UDPConn
	buf  []byte // one byte longer than what is taken, to tell what was cut
	n    int
	from netip.AddrPort
}

func newBatchReader(c *net.UDPConn, _, size int) *batchReader {
	return &batchReader{conn: c, buf: make([]byte, size+1)}
}

func (r *batchReader) read() (int, error) {
	var err error
	if r.n, r.from, err = r.conn.ReadFromUDPAddrPort(r.buf); err != nil {
		return 0, err
	}
	return 1, nil
}

func (r *batchReader) datagram(int) (payload []byte, from netip.AddrPort, truncated bool) {
	size := len(r.buf) - 1
	return r.buf[:min(r.n, size)], r.from, r.n > size
}
