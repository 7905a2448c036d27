package intake

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/gaissmai/bart"
	"golang.org/x/sync/semaphore"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest"
	"github.com/postern/postern/ingest/agent"
)

const (
	// syslogEvery is how long messages are gathered before they are handed on.
	syslogEvery = 200 * time.Millisecond
	// syslogIdle closes connections that say nothing; senders connect again.
	syslogIdle = 10 * time.Minute
	// handshakeTime bounds TLS's beginning.
	handshakeTime = 10 * time.Second
	// syslogLast is how long what was received waits for room when the process stops.
	syslogLast = 3 * time.Second
	// syslogHeld is how many bytes of messages a connection holds beside one of the longest.
	syslogHeld = 1 << 20
)

// syslogDoor takes syslog over TCP or TLS: messages framed by their length or by line feeds
// (RFC 5425, RFC 6587), with headers of RFC 5424 or RFC 3164. Syslog knows no
// acknowledgement: what the sender's system, the network and the last fifth of a second here
// hold when either side dies is lost, and neither side can know.
type syslogDoor struct {
	in       *Intake
	cfg      *SyslogConfig
	listener net.Listener
	secured  *tls.Config
	senders  *bart.Lite // nil: there is no list
}

func (in *Intake) openSyslog(ctx context.Context, cfg *SyslogConfig) (d *syslogDoor, err error) {
	d = &syslogDoor{in: in, cfg: cfg}
	if cfg.Senders != nil {
		if d.senders, err = ingest.ParseAllowList(cfg.Senders); err != nil {
			return nil, fmt.Errorf("senders: %w", err)
		}
		if d.senders.Size() == 0 {
			in.log.Warn("the list of senders is empty, nobody may connect; list those that may send", "syslog", cfg.Listen)
		}
	}
	if d.secured, err = cfg.TLS.config(true); err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	d.listener, err = lc.Listen(ctx, "tcp", cfg.Listen)
	return d, err
}

// run accepts connections until ctx ends.
func (d *syslogDoor) run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { d.listener.Close() })
	defer stop()
	room := d.cfg.MaxConnections
	if room == 0 {
		room = defaultSyslogConnections
	}
	slots := make(chan struct{}, room)
	d.in.log.Info("taking logs", "syslog", d.listener.Addr().String(), "tls", d.secured != nil)
	for {
		conn, err := d.listener.Accept()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // out of descriptors, for instance
			d.in.log.Warn("a syslog connection could not be accepted", "err", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		peer, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
		if !d.allowed(peer.Addr()) {
			d.refuse(conn, peer, "not on the list of senders")
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			d.refuse(conn, peer, "too many connections")
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			d.in.met.connections.Inc()
			defer d.in.met.connections.Dec()
			if err := d.serve(ctx, conn, peer.Addr()); err != nil {
				d.in.log.Warn("a syslog connection has ended", "peer", peer.String(), "err", err)
			}
		})
	}
}

func (d *syslogDoor) allowed(ip netip.Addr) bool {
	ip = ip.Unmap()
	if d.senders == nil {
		return ip.IsLoopback() || d.cfg.TLS.ClientCA != ""
	}
	return d.senders.Lookup(ip)
}

func (d *syslogDoor) refuse(conn net.Conn, peer netip.AddrPort, why string) {
	d.in.met.refused.Inc()
	d.in.log.Debug("a syslog connection is refused", "peer", peer.String(), "why", why)
	conn.Close()
}

// serve takes the messages of a connection.
func (d *syslogDoor) serve(ctx context.Context, conn net.Conn, peer netip.Addr) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) })
	defer stop()
	stream := conn
	if d.secured != nil {
		secured := tls.Server(conn, d.secured)
		hctx, cancel := context.WithTimeout(ctx, handshakeTime)
		err := secured.HandshakeContext(hctx)
		cancel()
		if err != nil {
			d.in.met.refused.Inc()
			return fmt.Errorf("TLS: %w", err)
		}
		stream = secured
	}
	s, err := d.in.newStream("syslog", d.cfg.Format, d.cfg.Events, agent.Origin{Exporter: flow.AddrFromNetip(peer)})
	if err != nil {
		return err
	}
	if s.events != nil {
		s.events.sys = true
	} else {
		s.decode = s.dec.DecodeSyslog
	}
	// What was received is handed on also when the process stops, if there is room soon.
	last, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(syslogLast, end) })()
	messages := make(chan []byte, 256)
	room := semaphore.NewWeighted(int64(d.in.cfg.MaxLine) + syslogHeld)
	failed := make(chan error, 1)
	go func() {
		failed <- frames(ctx, stream, int(d.in.cfg.MaxLine), func(m []byte) {
			d.in.met.bytes.WithLabelValues("syslog").Add(float64(len(m)))
			if room.Acquire(last, int64(len(m))) != nil {
				return // nobody takes it any more; the connection is about to be closed
			}
			select {
			case messages <- m:
			case <-last.Done():
			}
		})
		close(messages)
	}()
	tick := time.NewTicker(syslogEvery)
	defer tick.Stop()
	for {
		select {
		case m, ok := <-messages:
			if !ok {
				return errors.Join(s.flush(last), quiet(<-failed))
			}
			s.origin.Received = d.in.opts.Clock()
			s.line(m, s.at, nil)
			room.Release(int64(len(m)))
			s.at++
			if s.full() {
				if err := s.flush(last); err != nil {
					return err
				}
			}
		case <-tick.C:
			if err := s.flush(last); err != nil {
				return err
			}
		}
	}
}

// quiet is err, unless a connection just ended.
func quiet(err error) error {
	var timeout net.Error
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.As(err, &timeout) && timeout.Timeout() {
		return nil
	}
	return err
}

// frames reads messages: by their length where one begins with a number, else by line feed
// (RFC 6587, 3.4). A message longer than limit is cut there. When ctx has ended it reads no
// more than it has.
func frames(ctx context.Context, r io.Reader, limit int, got func([]byte)) error {
	b := bufio.NewReaderSize(r, 64<<10)
	for {
		deadline(ctx, r)
		first, err := b.Peek(1)
		if err != nil {
			return err
		}
		switch {
		case first[0] == '\n' || first[0] == '\r' || first[0] == 0:
			_, _ = b.Discard(1)
		case first[0] >= '1' && first[0] <= '9':
			n, err := length(b)
			if err != nil {
				return err
			}
			m, err := exactly(b, min(n, limit))
			if err != nil {
				return err
			}
			got(m)
			if n > limit {
				if _, err := io.CopyN(io.Discard, b, int64(n-limit)); err != nil {
					return err
				}
			}
		default:
			m, err := untilLine(b, limit)
			if len(m) > 0 {
				got(m)
			}
			if err != nil {
				return err
			}
		}
	}
}

// deadline bounds how long the next message may take.
func deadline(ctx context.Context, r io.Reader) {
	conn, ok := r.(net.Conn)
	if !ok {
		return
	}
	_ = conn.SetReadDeadline(time.Now().Add(syslogIdle))
	if ctx.Err() != nil { // looked at afterwards: the end may have set its own just before
		_ = conn.SetReadDeadline(time.Now())
	}
}

// maxFrame bounds the length that a frame may say.
const maxFrame = 64 << 20

// length reads the length of a frame and the space behind it.
func length(b *bufio.Reader) (n int, err error) {
	for {
		c, err := b.ReadByte()
		if err != nil {
			return 0, err
		}
		if c == ' ' {
			return n, nil
		}
		if n = n*10 + int(c-'0'); c < '0' || c > '9' || n > maxFrame {
			return 0, fmt.Errorf("a frame begins with %q where its length should stand; want octet counting (RFC 5425) or a line that begins with <", c)
		}
	}
}

// exactly reads n bytes. It takes no more memory than twice what has come, whatever n says.
func exactly(r io.Reader, n int) (m []byte, err error) {
	for len(m) < n {
		k := min(n-len(m), max(len(m), 64<<10))
		m = append(m, make([]byte, k)...)
		if _, err := io.ReadFull(r, m[len(m)-k:]); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func untilLine(b *bufio.Reader, limit int) (m []byte, err error) {
	for {
		part, err := b.ReadSlice('\n')
		if room := limit - len(m); room > 0 {
			m = append(m, part[:min(room, len(part))]...)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		for len(m) > 0 && (m[len(m)-1] == '\n' || m[len(m)-1] == '\r') {
			m = m[:len(m)-1]
		}
		return m, err
	}
}
