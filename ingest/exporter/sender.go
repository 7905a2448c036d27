package exporter

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// SenderConfig says from where to where datagrams are sent, and how fast.
type SenderConfig struct {
	// Source is the address to send from; 127.0.0.2, 127.0.0.3 … let one machine
	// play many exporters. The zero value leaves the choice to the system.
	Source netip.Addr
	// Port is the source port; 0 leaves it to the system.
	Port uint16
	// Target is the collector.
	Target netip.AddrPort
	// Rate bounds the datagrams a second; 0 is unbounded.
	Rate int
}

// Sender sends datagrams over UDP. Not safe for concurrent use.
type Sender struct {
	conn  *net.UDPConn
	every time.Duration // between datagrams
	next  time.Time
	sent  uint64
}

// maxBurst is how far a sender that was held up may run ahead of its rate: some
// datagrams back to back, not a second's worth.
const maxBurst = 10 * time.Millisecond

// NewSender opens the socket.
func NewSender(cfg SenderConfig) (*Sender, error) {
	if !cfg.Target.IsValid() {
		return nil, errors.New("exporter: no target given; write address:port")
	}
	var local *net.UDPAddr
	if cfg.Source.IsValid() || cfg.Port != 0 {
		source := cfg.Source
		if !source.IsValid() {
			source = netip.IPv4Unspecified()
			if cfg.Target.Addr().Is6() {
				source = netip.IPv6Unspecified()
			}
		}
		local = net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, cfg.Port))
	}
	conn, err := net.DialUDP("udp", local, net.UDPAddrFromAddrPort(cfg.Target))
	if err != nil {
		return nil, fmt.Errorf("exporter: %w", err)
	}
	s := &Sender{conn: conn}
	if cfg.Rate > 0 {
		s.every = time.Second / time.Duration(cfg.Rate)
	}
	return s, nil
}

// Send sends one datagram, after waiting for its turn. That nobody listened when
// an earlier one arrived is no error: UDP exporters do not care.
func (s *Sender) Send(ctx context.Context, b []byte) error {
	if s.every > 0 {
		now := time.Now()
		if s.next.Before(now.Add(-maxBurst)) {
			s.next = now.Add(-maxBurst)
		}
		if wait := s.next.Sub(now); wait > 0 {
			t := time.NewTimer(wait)
			select {
			case <-ctx.Done():
				t.Stop()
				return ctx.Err()
			case <-t.C:
			}
		}
		s.next = s.next.Add(s.every)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err := s.conn.Write(b)
	if errors.Is(err, syscall.ECONNREFUSED) {
		_, err = s.conn.Write(b) // the error told of an earlier datagram; this one was not sent yet
		if errors.Is(err, syscall.ECONNREFUSED) {
			err = nil
		}
	}
	if err != nil {
		return fmt.Errorf("exporter: %w", err)
	}
	s.sent++
	return nil
}

// Emit is Send as [Exporter.Export] takes it.
func (s *Sender) Emit(ctx context.Context) func([]byte) error {
	return func(b []byte) error { return s.Send(ctx, b) }
}

// Sent is how many datagrams were sent.
func (s *Sender) Sent() uint64 { return s.sent }

// LocalAddr is where datagrams come from.
func (s *Sender) LocalAddr() netip.AddrPort {
	return s.conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// Close closes the socket.
func (s *Sender) Close() error { return s.conn.Close() }
