package ingest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postern/postern/flow"
)

// memorySink keeps what a listener hands over.
type memorySink struct {
	mu        sync.Mutex
	datagrams []Datagram
	refused   map[flow.Addr]*flow.Rejected
	stall     chan struct{} // not nil: Append waits until it is closed
}

func (m *memorySink) Append(ds []Datagram) int {
	if m.stall != nil {
		<-m.stall
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range ds {
		d.Payload = bytes.Clone(d.Payload)
		m.datagrams = append(m.datagrams, d)
	}
	return len(ds)
}

func (m *memorySink) Refuse(a flow.Addr, reason flow.Reject, n uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	addRefused(&m.refused, a, reason, n)
}

func (m *memorySink) count() (taken, refused int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.refused {
		refused += int(r.Sum())
	}
	return len(m.datagrams), refused
}

// listen starts a listener and gives what stops it and waits for its end.
func listen(t testing.TB, cfg ListenerConfig, sink Sink) (*Listener, func()) {
	t.Helper()
	l, err := NewListener(cfg, ListenerOptions{Sink: sink, Clock: func() flow.Time { return spoolEpoch },
		Registerer: prometheus.NewPedanticRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := l.Bind(ctx); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("the listener ends with %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("the listener does not end")
		}
	})
	t.Cleanup(stop)
	return l, stop
}

func dial(t testing.TB, from string, to netip.AddrPort) *net.UDPConn {
	t.Helper()
	c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0)), net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Skipf("this system has no %s: %v", from, err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}

// TestListenerAlone: a second listener on the port is refused, though the sockets of one share
// it: each would get some of the exporters.
func TestListenerAlone(t *testing.T) {
	l, stop := listen(t, DefaultListenerConfig("127.0.0.1:0"), &memorySink{})
	second, err := NewListener(DefaultListenerConfig(l.Addr().String()), ListenerOptions{Sink: &memorySink{}, Clock: func() flow.Time { return spoolEpoch }})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Bind(t.Context()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("a second listener: %v", err)
	}
	stop()
	if err := second.Bind(t.Context()); err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := second.Run(ctx); err != nil {
		t.Error(err)
	}
}

func TestListenerReceives(t *testing.T) {
	sink := &memorySink{}
	cfg := DefaultListenerConfig("127.0.0.1:0")
	cfg.Sockets = 3
	l, stop := listen(t, cfg, sink)
	const exporters, each = 8, 200
	ports := map[flow.Addr]uint16{}
	for i := range exporters {
		from := fmt.Sprintf("127.0.0.%d", 2+i)
		c := dial(t, from, l.Addr())
		ports[flow.MustParseAddr(from)] = c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		for k := range each {
			var b [8]byte
			binary.BigEndian.PutUint64(b[:], uint64(k))
			if _, err := c.Write(b[:]); err != nil {
				t.Fatal(err)
			}
		}
	}
	waitFor(t, "all datagrams", func() bool { n, _ := sink.count(); return n == exporters*each })
	stop()
	next := map[flow.Addr]uint64{}
	for _, d := range sink.datagrams {
		if ports[d.Exporter] != d.Port || d.Received != spoolEpoch {
			t.Fatalf("%v", d)
		}
		if k := binary.BigEndian.Uint64(d.Payload); k != next[d.Exporter] {
			t.Fatalf("exporter %v: datagram %d came, want %d", d.Exporter, k, next[d.Exporter])
		}
		next[d.Exporter]++
	}
	for _, n := range l.KernelDrops() {
		if n != 0 {
			t.Errorf("the kernel dropped %d", n)
		}
	}
}

// TestListenerDrains stops a listener while datagrams are queued: all of them come.
func TestListenerDrains(t *testing.T) {
	sink := &memorySink{stall: make(chan struct{})}
	cfg := DefaultListenerConfig("127.0.0.1:0")
	cfg.Sockets, cfg.Batch = 2, 4
	l, stop := listen(t, cfg, sink)
	const n = 500
	for i := range 5 {
		c := dial(t, fmt.Sprintf("127.0.0.%d", 2+i), l.Addr())
		for range n / 5 {
			if _, err := c.Write([]byte("queued")); err != nil {
				t.Fatal(err)
			}
		}
	}
	time.AfterFunc(20*time.Millisecond, func() { close(sink.stall) })
	stop()
	if taken, _ := sink.count(); taken != n {
		t.Errorf("%d of %d queued datagrams came", taken, n)
	}
}

func TestListenerAllowList(t *testing.T) {
	sink := &memorySink{}
	cfg := DefaultListenerConfig("127.0.0.1:0")
	cfg.Exporters = []string{"127.0.0.2", "127.0.1.0/24"}
	l, _ := listen(t, cfg, sink)
	send := func(from string) {
		t.Helper()
		before, beforeRefused := sink.count()
		if _, err := dial(t, from, l.Addr()).Write([]byte(from)); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "a datagram from "+from, func() bool { n, r := sink.count(); return n+r > before+beforeRefused })
	}
	for _, from := range []string{"127.0.0.2", "127.0.0.3", "127.0.1.77"} {
		send(from)
	}
	check := func(taken []string, refused map[string]uint64) {
		t.Helper()
		sink.mu.Lock()
		defer sink.mu.Unlock()
		var got []string
		for _, d := range sink.datagrams {
			got = append(got, d.Exporter.String())
		}
		if !slices.Equal(got, taken) {
			t.Errorf("taken from %v, want %v", got, taken)
		}
		for a, r := range sink.refused {
			if r[flow.RejectExporter] != refused[a.String()] || r.Sum() != r[flow.RejectExporter] {
				t.Errorf("refused from %v: %v, want %d", a, r.Map(), refused[a.String()])
			}
		}
		if len(sink.refused) != len(refused) {
			t.Errorf("refused from %d exporters, want %d", len(sink.refused), len(refused))
		}
	}
	check([]string{"127.0.0.2", "127.0.1.77"}, map[string]uint64{"127.0.0.3": 1})

	if err := l.SetExporters([]string{"nonsense"}); err == nil {
		t.Error("a list of nonsense is taken")
	}
	if err := l.SetExporters([]string{"::ffff:127.0.0.3"}); err != nil {
		t.Fatal(err)
	}
	send("127.0.0.2")
	send("127.0.0.3")
	check([]string{"127.0.0.2", "127.0.1.77", "127.0.0.3"}, map[string]uint64{"127.0.0.3": 1, "127.0.0.2": 1})
}

func TestListenerEmptyAllowList(t *testing.T) {
	var log bytes.Buffer
	sink := &memorySink{}
	for _, cfg := range []ListenerConfig{{Listen: "127.0.0.1:0"}, {Listen: "0.0.0.0:0"}, {Listen: "[::]:0"}} {
		log.Reset()
		cfg.Exporters, cfg.Batch, cfg.MaxDatagram = []string{}, 8, 2048
		l, err := NewListener(cfg, ListenerOptions{Sink: sink, Clock: func() flow.Time { return 0 }, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(log.String(), "nothing is accepted") {
			t.Errorf("%s: an empty list is not mentioned: %s", cfg.Listen, log.String())
		}
		if l.allow.Load().Lookup(netip.MustParseAddr("127.0.0.1")) {
			t.Errorf("%s: an empty list accepts loopback", cfg.Listen)
		}
	}
	open := DefaultListenerConfig(":2055")
	if err := open.Validate(); err == nil || !strings.Contains(err.Error(), "exporters:") {
		t.Errorf("a listener on every address without a list gives %v", err)
	}
}

// TestListenerFamilies receives IPv4 and IPv6 on one socket of both; an IPv4
// exporter has its IPv4 address.
func TestListenerFamilies(t *testing.T) {
	sink := &memorySink{}
	cfg := DefaultListenerConfig(":0")
	cfg.Exporters = []string{"127.0.0.1", "::1"}
	l, _ := listen(t, cfg, sink)
	for _, from := range []string{"127.0.0.1", "::1"} {
		c := dial(t, from, netip.AddrPortFrom(netip.MustParseAddr(from), l.Addr().Port()))
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "both", func() bool { n, _ := sink.count(); return n == 2 })
	sink.mu.Lock()
	defer sink.mu.Unlock()
	got := map[flow.Addr]bool{}
	for _, d := range sink.datagrams {
		got[d.Exporter] = true
	}
	if !got[flow.AddrFrom4(0x7f000001)] || !got[flow.MustParseAddr("::1")] {
		t.Errorf("exporters %v", got)
	}
}

func TestListenerTooLarge(t *testing.T) {
	sink := &memorySink{}
	cfg := DefaultListenerConfig("127.0.0.1:0")
	cfg.MaxDatagram = 600
	l, _ := listen(t, cfg, sink)
	c := dial(t, "127.0.0.1", l.Addr())
	for _, n := range []int{600, 601, 9000} {
		if _, err := c.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "three", func() bool { n, r := sink.count(); return n+r == 3 })
	sink.mu.Lock()
	defer sink.mu.Unlock()
	if r := sink.refused[flow.MustParseAddr("127.0.0.1")]; len(sink.datagrams) != 1 || len(sink.datagrams[0].Payload) != 600 || r[flow.RejectTooLarge] != 2 {
		t.Errorf("%d taken, refused %v", len(sink.datagrams), r.Map())
	}
}

// TestListenerKernelDrops overruns a small buffer: what was sent is what came and
// what the kernel says it dropped.
func TestListenerKernelDrops(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells what it dropped")
	}
	sink := &memorySink{stall: make(chan struct{})}
	cfg := DefaultListenerConfig("127.0.0.1:0")
	cfg.Sockets, cfg.ReceiveBuffer, cfg.Batch = 1, 16*flow.KiB, 1
	l, stop := listen(t, cfg, sink)
	c := dial(t, "127.0.0.1", l.Addr())
	const n = 1000
	for range n {
		if _, err := c.Write(make([]byte, 500)); err != nil {
			t.Fatal(err)
		}
	}
	close(sink.stall)
	stop()
	taken, _ := sink.count()
	var dropped uint64
	for _, d := range l.drops {
		dropped += d
	}
	if dropped == 0 || taken+int(dropped) != n {
		t.Errorf("%d sent, %d came, the kernel dropped %d", n, taken, dropped)
	}
}

func TestListenerStrangersAreBounded(t *testing.T) {
	l, err := NewListener(DefaultListenerConfig("127.0.0.1:0"), ListenerOptions{Sink: &memorySink{}, Clock: func() flow.Time { return 0 }})
	if err != nil {
		t.Fatal(err)
	}
	own := map[flow.Addr]bool{}
	for i := range 10 * maxStrangers {
		own[l.stranger(spoolAddr(i))] = true
	}
	if len(own) != maxStrangers+1 || !own[flow.Addr{}] {
		t.Errorf("%d addresses are told apart, want %d and the rest together", len(own), maxStrangers)
	}
}

func TestListenerConfigValidate(t *testing.T) {
	for _, spoil := range []func(*ListenerConfig){
		func(c *ListenerConfig) { c.Listen = "2055" },
		func(c *ListenerConfig) { c.Sockets = -1 },
		func(c *ListenerConfig) { c.Batch = 0 },
		func(c *ListenerConfig) { c.MaxDatagram = 1 },
		func(c *ListenerConfig) { c.ReceiveBuffer = -1 },
		func(c *ListenerConfig) { c.Exporters = []string{"10.0.0.1/8"} },
		func(c *ListenerConfig) { c.Exporters = []string{"router1"} },
		func(c *ListenerConfig) { c.Exporters = []string{"fe80::1%eth0"} },
		func(c *ListenerConfig) { c.Exporters = []string{"::ffff:0:0/90"} },
	} {
		c := DefaultListenerConfig("127.0.0.1:0")
		spoil(&c)
		if c.Validate() == nil {
			t.Errorf("%+v passes", c)
		}
	}
	c := DefaultListenerConfig(":2055")
	c.Exporters = []string{"10.0.0.0/8", "2001:db8::/32", "::ffff:192.0.2.0/120"}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}

// TestListenerIntoSpool goes all the way to the disk and closes the sum: sent =
// in the spool + refused.
func TestListenerIntoSpool(t *testing.T) {
	s := openSpool(t, t.TempDir(), smallSpool())
	cfg := DefaultListenerConfig("127.0.0.1:0")
	cfg.Exporters = []string{"127.0.0.2"}
	l, stop := listen(t, cfg, s)
	const each = 300
	for _, from := range []string{"127.0.0.2", "127.0.0.3"} {
		c := dial(t, from, l.Addr())
		for range each {
			if _, err := c.Write(make([]byte, 300)); err != nil {
				t.Fatal(err)
			}
		}
	}
	waitFor(t, "all", func() bool {
		c := s.Counts(0)
		r := c.Refused[flow.MustParseAddr("127.0.0.3")]
		return c.Datagrams[flow.MustParseAddr("127.0.0.2")] == each && r[flow.RejectExporter] == each
	})
	stop()
	entries, _ := readSpool(t, s)
	if n := len(datagramEntries(entries)); n != each {
		t.Errorf("%d datagrams in the spool, want %d", n, each)
	}
}

type countingSink struct{ n atomic.Int64 }

func (c *countingSink) Append(ds []Datagram) int { c.n.Add(int64(len(ds))); return len(ds) }

func (c *countingSink) Refuse(flow.Addr, flow.Reject, uint64) {}

// BenchmarkListener sends from 4 sockets over loopback; sender and receiver share
// the machine, so this is the two together. The senders wait when they are more
// than 2,000 datagrams ahead, so that nothing is dropped.
func BenchmarkListener(b *testing.B) {
	sink := &countingSink{}
	l, stop := listen(b, DefaultListenerConfig("127.0.0.1:0"), sink)
	payload := make([]byte, 1400)
	conns := make([]*net.UDPConn, 4)
	for i := range conns {
		conns[i] = dial(b, "127.0.0.1", l.Addr())
	}
	b.SetBytes(1400)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		for int64(i)-sink.n.Load() > 2000 {
			runtime.Gosched()
		}
		if _, err := conns[i%len(conns)].Write(payload); err != nil {
			b.Fatal(err)
		}
	}
	for deadline := time.Now().Add(time.Second); sink.n.Load() < int64(b.N) && time.Now().Before(deadline); {
		runtime.Gosched()
	}
	b.StopTimer()
	stop()
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/28, "ns/flow")
	b.ReportMetric(float64(int64(b.N)-sink.n.Load()), "lost")
}
