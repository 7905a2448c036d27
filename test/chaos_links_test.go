package test

import (
	endian "encoding/binary"
	"io"
	"net"
	"sync"
	"testing"
)

// link is the way of a collector to one broker: a relay that can be cut, and that can
// keep the broker's answers to produce requests to itself, as a network does that fails
// between a write and its acknowledgement.
type link struct {
	*gate

	mu   sync.Mutex
	kept chan<- struct{} // is told of an answer that was kept; nil: none is
}

// newLink relays from an address that is known before the broker's is; see towards.
func newLink(t testing.TB) *link {
	t.Helper()
	l := &link{gate: &gate{t: t, addr: freePort(t, "tcp"), conns: map[net.Conn]bool{}}}
	l.relay = l.carry
	return l
}

// towards opens the link to a broker.
func (l *link) towards(broker string) {
	l.t.Helper()
	l.target = broker
	l.open()
	l.t.Cleanup(l.shut)
}

// keep makes the link keep answers to produce requests, and say so if somebody listens.
func (l *link) keep(kept chan<- struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kept = kept
}

// hear ends keep. Connections in which an answer is missing are cut.
func (l *link) hear() {
	l.t.Helper()
	l.keep(nil)
	l.shut()
	l.open()
}

const apiProduce = 0

// carry relays requests and answers one by one (Kafka protocol: a length of four bytes
// before each; a request begins with key, version and correlation id, an answer with
// the correlation id).
func (l *link) carry(in, out net.Conn) {
	var mu sync.Mutex
	produced := map[uint32]bool{} // correlation ids of produce requests
	var both sync.WaitGroup
	both.Go(func() {
		frames(in, out, func(f []byte) bool {
			if len(f) >= 8 && endian.BigEndian.Uint16(f) == apiProduce {
				mu.Lock()
				produced[endian.BigEndian.Uint32(f[4:])] = true
				mu.Unlock()
			}
			return true
		})
	})
	both.Go(func() {
		frames(out, in, func(f []byte) bool {
			id := endian.BigEndian.Uint32(f)
			mu.Lock()
			answer := produced[id]
			delete(produced, id)
			mu.Unlock()
			l.mu.Lock()
			defer l.mu.Unlock()
			if !answer || l.kept == nil {
				return true
			}
			select {
			case l.kept <- struct{}{}:
			default:
			}
			return false
		})
	})
	both.Wait()
}

// frames copies what begins with its length, unless pass says no, until either side ends.
func frames(from, to net.Conn, pass func([]byte) bool) {
	defer from.Close()
	defer to.Close()
	for {
		var head [4]byte
		if _, err := io.ReadFull(from, head[:]); err != nil {
			return
		}
		n := endian.BigEndian.Uint32(head[:])
		if n < 4 || n > 64<<20 {
			return
		}
		frame := make([]byte, 4+n)
		copy(frame, head[:])
		if _, err := io.ReadFull(from, frame[4:]); err != nil {
			return
		}
		if pass(frame[4:]) {
			if _, err := to.Write(frame); err != nil {
				return
			}
		}
	}
}
