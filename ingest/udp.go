package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gaissmai/bart"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/postern/postern/flow"
)

// ListenerConfig is one UDP address that exporters send to.
type ListenerConfig struct {
	// Listen is the address and port, host:port; :2055 is every address of the host.
	Listen string `yaml:"listen"`
	// Exporters is the allow-list: addresses and prefixes that may send. Off
	// loopback it is required, and an empty one accepts nothing. Without it a
	// listener on loopback accepts loopback.
	Exporters []string `yaml:"exporters"`
	// Sockets is how many sockets share the port (SO_REUSEPORT); the kernel spreads
	// exporters over them by address and port. 0 is one a CPU. Where the system has
	// no such thing there is one.
	Sockets int `yaml:"sockets"`
	// ReceiveBuffer is the kernel's buffer of each socket: what may arrive while the
	// process is busy.
	ReceiveBuffer flow.Size `yaml:"receiveBuffer"`
	// Batch is how many datagrams one system call reads at most.
	Batch int `yaml:"batch"`
	// MaxDatagram is the largest payload taken; larger ones are refused (too_large).
	MaxDatagram flow.Size `yaml:"maxDatagram"`
}

// DefaultListenerConfig gives the defaults for an address.
func DefaultListenerConfig(listen string) ListenerConfig {
	return ListenerConfig{
		Listen: listen,
		// 16 MiB are some 7,000 full datagrams as the kernel counts them (with its own
		// overhead of about 900 bytes each): 0.35 s at 20,000 a second.
		ReceiveBuffer: 16 * flow.MiB,
		// 64 datagrams a call make the call's own cost some 1/64; more gains nothing.
		Batch: 64,
		// The most a UDP datagram can hold. Only pages that were written to take
		// memory, so it costs nothing where datagrams are small.
		MaxDatagram: 64 * flow.KiB,
	}
}

// Validate says what is wrong with the configuration.
func (c *ListenerConfig) Validate() error {
	host, _, err := net.SplitHostPort(c.Listen)
	switch {
	case err != nil:
		return fmt.Errorf("listen is %q: %w; write host:port, such as 127.0.0.1:2055 or :2055", c.Listen, err)
	case c.Sockets < 0 || c.Sockets > 256:
		return fmt.Errorf("sockets is %d; it must be between 0 (one a CPU) and 256", c.Sockets)
	case c.ReceiveBuffer < 0 || c.ReceiveBuffer > flow.GiB:
		return fmt.Errorf("receiveBuffer is %v; it must be between 0 (the system's own) and 1GiB", c.ReceiveBuffer)
	case c.Batch < 1 || c.Batch > 1024:
		return fmt.Errorf("batch is %d; it must be between 1 and 1024", c.Batch)
	case c.MaxDatagram < 512 || c.MaxDatagram > 64*flow.KiB:
		return fmt.Errorf("maxDatagram is %v; it must be between 512 and 64KiB", c.MaxDatagram)
	case c.Exporters == nil && !LoopbackHost(host):
		return fmt.Errorf("listen %s can be reached from other hosts and there is no allow-list; write exporters: [10.0.0.1, 10.1.0.0/16] with those that may send", c.Listen)
	}
	if _, err = ParseAllowList(c.Exporters); err != nil {
		return fmt.Errorf("exporters %w", err)
	}
	return nil
}

// LoopbackHost says whether a host that is listened at can be reached from this machine only.
func LoopbackHost(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// ParseAllowList reads a list of addresses and prefixes that may send. The error says what the
// list has.
func ParseAllowList(list []string) (*bart.Lite, error) {
	t := new(bart.Lite)
	for _, text := range list {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			ip, ipErr := netip.ParseAddr(text)
			if ipErr != nil || ip.Zone() != "" {
				return nil, fmt.Errorf("has %q, which is neither an address nor a prefix; write 10.0.0.1 or 10.1.0.0/16", text)
			}
			p = netip.PrefixFrom(ip, ip.BitLen())
		}
		if p.Addr().Is4In6() {
			if p.Bits() < 96 {
				return nil, fmt.Errorf("has %q, which is wider than IPv4 itself; write the IPv4 prefix", text)
			}
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		if m := p.Masked(); m != p {
			return nil, fmt.Errorf("has %q, which has bits beyond its length; write %s", text, m)
		}
		t.Insert(p)
	}
	return t, nil
}

// Sink is where a listener puts datagrams. [Spool] is one.
type Sink interface {
	// Append takes datagrams whose payloads are valid during the call and says how
	// many it took; it counts by itself those it refused.
	Append([]Datagram) (accepted int)
	// Refuse counts datagrams that are not even offered.
	Refuse(exporter flow.Addr, reason flow.Reject, n uint64)
}

// ListenerOptions is what a listener needs from outside.
type ListenerOptions struct {
	Sink       Sink                  // required
	Clock      func() flow.Time      // required: the injected clock, asked once a batch
	Logger     *slog.Logger          // nil: silent
	Registerer prometheus.Registerer // nil: no metrics
}

const (
	// drainFor bounds how long a listener goes on reading after its end was asked
	// for: what the kernel had queued by then, not what keeps coming.
	drainFor = 100 * time.Millisecond
	// drainIdle is how long an empty socket is waited for while draining.
	drainIdle = 5 * time.Millisecond
	// maxStrangers bounds how many exporters off the allow-list are told apart in
	// the life of a listener; the rest counts under the zero address.
	maxStrangers = 256
)

// Listener receives datagrams on one UDP address and appends them to a [Sink]. It
// parses nothing. NewListener is inert; Bind takes the port and Run receives.
type Listener struct {
	cfg   ListenerConfig
	sink  Sink
	clock func() flow.Time
	log   *slog.Logger
	reg   prometheus.Registerer

	allow atomic.Pointer[bart.Lite]

	mu        sync.Mutex
	conns     []*net.UDPConn
	drops     []uint64 // by socket, as far as they were read
	lastDrops []uint32
	strangers map[flow.Addr]struct{}
	warned    bool // that the table of strangers is full

	metrics listenerMetrics
}

// NewListener makes a listener; it opens no socket yet.
func NewListener(cfg ListenerConfig, opts ListenerOptions) (*Listener, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("udp: %w", err)
	}
	if opts.Sink == nil || opts.Clock == nil {
		return nil, errors.New("udp: a listener needs a sink and a clock")
	}
	l := &Listener{cfg: cfg, sink: opts.Sink, clock: opts.Clock, log: opts.Logger, reg: opts.Registerer,
		strangers: map[flow.Addr]struct{}{}}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	if err := l.SetExporters(cfg.Exporters); err != nil {
		return nil, err
	}
	return l, nil
}

// SetExporters replaces the allow-list while the listener runs; on error the old
// one stays. nil is loopback only where the listener is on loopback, else nothing.
func (l *Listener) SetExporters(list []string) error {
	if host, _, _ := net.SplitHostPort(l.cfg.Listen); list == nil && LoopbackHost(host) {
		list = []string{"127.0.0.0/8", "::1"}
	}
	t, err := ParseAllowList(list)
	if err != nil {
		return fmt.Errorf("udp: exporters %w", err)
	}
	if t.Size() == 0 {
		l.log.Warn("udp: the allow-list is empty, nothing is accepted; list the exporters that may send", "listen", l.cfg.Listen)
	}
	l.allow.Store(t)
	return nil
}

// Bind opens the sockets, so that [Listener.Addr] is known and what arrives is
// queued by the kernel until Run. Run binds by itself where this was not done.
func (l *Listener) Bind(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns != nil {
		return nil
	}
	n := l.cfg.Sockets
	if n == 0 {
		n = runtime.GOMAXPROCS(0)
	}
	if !reusePort {
		n = 1
	}
	addr := l.cfg.Listen
	if reusePort {
		// Sockets that share a port would share it with those of another process of this user
		// too, which would silently get its part of the exporters.
		alone, err := new(net.ListenConfig).ListenPacket(ctx, "udp", addr)
		if err != nil {
			return fmt.Errorf("udp: %w", err)
		}
		if err := alone.Close(); err != nil {
			return fmt.Errorf("udp: %w", err)
		}
	}
	lc := net.ListenConfig{Control: controlSocket}
	var conns []*net.UDPConn
	for range n {
		pc, err := lc.ListenPacket(ctx, "udp", addr)
		if err != nil {
			for _, c := range conns {
				c.Close()
			}
			return fmt.Errorf("udp: %w", err)
		}
		c := pc.(*net.UDPConn)
		conns = append(conns, c)
		addr = c.LocalAddr().String() // port 0 is any port for the first, the same for all
		if want := int(l.cfg.ReceiveBuffer); want > 0 {
			if got := setReceiveBuffer(c, want); got > 0 && got < want && len(conns) == 1 {
				l.log.Warn("udp: the kernel grants a smaller receive buffer than asked for; bursts may be dropped",
					"listen", l.cfg.Listen, "asked", want, "granted", got, "remedy", fmt.Sprintf("sysctl -w net.core.rmem_max=%d", want))
			}
		}
	}
	l.metrics = newListenerMetrics(addr)
	if err := l.metrics.register(l.reg); err != nil {
		for _, c := range conns {
			c.Close()
		}
		return fmt.Errorf("udp: %w", err)
	}
	l.conns, l.drops, l.lastDrops = conns, make([]uint64, n), make([]uint32, n)
	return nil
}

// Addr is the bound address; not valid before [Listener.Bind].
func (l *Listener) Addr() netip.AddrPort {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.conns) == 0 {
		return netip.AddrPort{}
	}
	a := l.conns[0].LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// Run receives until ctx ends, then takes what the kernel had already queued (at
// most for 100 ms), closes the sockets and returns nil. A listener runs once.
func (l *Listener) Run(ctx context.Context) error {
	if err := l.Bind(ctx); err != nil {
		return err
	}
	defer l.metrics.unregister(l.reg)
	defer l.readDrops()
	l.log.Info("udp: listening", "addr", l.Addr().String(), "sockets", len(l.conns))
	g, gctx := errgroup.WithContext(ctx)
	for i, c := range l.conns {
		g.Go(func() error {
			defer func() {
				l.readDrops() // a closed socket does not tell any more
				c.Close()
			}()
			woken := make(chan struct{})
			stop := context.AfterFunc(gctx, func() {
				_ = c.SetReadDeadline(time.Unix(1, 0)) // fails only on a closed socket, which wakes too
				close(woken)
			})
			defer stop()
			if err := l.receive(gctx, c, woken); err != nil {
				return fmt.Errorf("udp: socket %d of %s: %w", i, l.cfg.Listen, err)
			}
			return nil
		})
	}
	g.Go(func() error {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-gctx.Done():
				return nil
			case <-tick.C:
				l.readDrops()
			}
		}
	})
	return g.Wait()
}

// receive reads one socket until ctx ends and its queue is empty. woken is closed
// once the end of ctx has interrupted the read that may be waiting.
func (l *Listener) receive(ctx context.Context, c *net.UDPConn, woken <-chan struct{}) error {
	r := newBatchReader(c, l.cfg.Batch, int(l.cfg.MaxDatagram))
	ds := make([]Datagram, 0, l.cfg.Batch)
	var drainUntil time.Time
	var complained time.Time
	for {
		if ctx.Err() != nil {
			now := time.Now()
			if drainUntil.IsZero() {
				<-woken // or its deadline, which is long past, would come after ours
				drainUntil = now.Add(drainFor)
			}
			if !now.Before(drainUntil) {
				return nil
			}
			_ = c.SetReadDeadline(now.Add(drainIdle)) // fails only on a closed socket, whose read ends at once
		}
		n, err := r.read()
		if n > 0 {
			l.take(r, n, ds[:0])
		}
		var timeout net.Error
		switch {
		case err == nil:
		case errors.As(err, &timeout) && timeout.Timeout():
			if !drainUntil.IsZero() {
				return nil // the queue is empty
			}
			// The end of ctx interrupted the wait; what is queued comes next.
		case errors.Is(err, net.ErrClosed):
			return err
		default:
			// Out of buffers or memory passes; what it costs shows as kernel drops.
			l.metrics.errors.Inc()
			if now := time.Now(); now.Sub(complained) >= logEvery {
				complained = now
				l.log.Error("udp: cannot receive, trying again", "listen", l.cfg.Listen, "err", err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// take hands a batch that was read to the sink, without those that may not send.
func (l *Listener) take(r *batchReader, n int, ds []Datagram) {
	now := l.clock()
	allow := l.allow.Load()
	var bytes int
	for i := range n {
		payload, from, truncated := r.datagram(i)
		bytes += len(payload)
		ip := from.Addr().Unmap().WithZone("")
		exporter := flow.AddrFromNetip(ip)
		switch {
		case !allow.Lookup(ip):
			l.metrics.refused.Inc()
			l.sink.Refuse(l.stranger(exporter), flow.RejectExporter, 1)
		case truncated:
			l.metrics.refused.Inc()
			l.sink.Refuse(exporter, flow.RejectTooLarge, 1)
		default:
			ds = append(ds, Datagram{Received: now, Exporter: exporter, Port: from.Port(), Payload: payload})
		}
	}
	l.metrics.datagrams.Add(float64(n))
	l.metrics.bytes.Add(float64(bytes))
	if len(ds) > 0 {
		if k := l.sink.Append(ds); k < len(ds) {
			l.metrics.refused.Add(float64(len(ds) - k))
		}
	}
}

// stranger gives the address that a datagram from off the allow-list counts
// under. Their number is bounded: anybody can make up source addresses.
func (l *Listener) stranger(a flow.Addr) flow.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.strangers[a]; ok {
		return a
	}
	if len(l.strangers) >= maxStrangers {
		if !l.warned {
			l.warned = true
			l.log.Warn("udp: many exporters off the allow-list; further ones are counted together", "listen", l.cfg.Listen)
		}
		return flow.Addr{}
	}
	l.strangers[a] = struct{}{}
	l.log.Warn("udp: an exporter off the allow-list sends; add it to exporters if it may", "listen", l.cfg.Listen, "exporter", a.String())
	return a
}

// readDrops asks the kernel what each socket dropped so far.
func (l *Listener) readDrops() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, c := range l.conns {
		now, err := socketDrops(c)
		if err != nil {
			continue // closed, or a system that does not tell
		}
		if n := uint64(now - l.lastDrops[i]); n > 0 { // 32 bits, which wrap
			l.lastDrops[i] = now
			l.drops[i] += n
			l.metrics.drops.WithLabelValues(strconv.Itoa(i)).Add(float64(n))
		}
	}
}

// KernelDrops is how many datagrams the kernel dropped by socket because nobody
// read them in time; they are in no ledger, since nobody knows who sent them.
func (l *Listener) KernelDrops() []uint64 {
	l.readDrops()
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.drops)
}
