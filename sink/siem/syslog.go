package siem

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/postern/postern/flow"
)

// SyslogConfig is a syslog server that takes RFC 5424 messages by TLS (RFC 5425) or, within the own
// network, by TCP (RFC 6587).
//
// Syslog has no answer that says a message was taken. An event counts as delivered when the receiver's
// kernel has it and the connection was still standing Confirm later; what was sent on a connection that
// broke sooner is sent again. A receiver that crashes later loses what it had not written down.
type SyslogConfig struct {
	// Address is where the server listens, host:port; 6514 is the port for TLS.
	Address string `yaml:"address"`
	// Plain sends by TCP without TLS, for private and loopback destinations only.
	Plain bool `yaml:"plain"`
	// Facility is who speaks, 0 to 23; 13 is the audit log, 16 to 23 are local0 to local7.
	Facility int `yaml:"facility"`
	// Hostname is what we call ourselves; empty is the machine's name.
	Hostname string `yaml:"hostname"`
	// Framing tells messages apart: octets, the number of bytes before each, or lines, one a line. TLS asks for octets.
	Framing string `yaml:"framing"`
	// ServerName is the name that the server's certificate must be for, if not the host of the address.
	ServerName string `yaml:"serverName"`
	// Confirm is for how long a connection must stand after a message, before the message counts as delivered.
	Confirm time.Duration `yaml:"confirm"`
	// Timeout bounds connecting, and writing a batch.
	Timeout time.Duration `yaml:"timeout"`

	DoorConfig `yaml:",inline"`
	TLSConfig  `yaml:",inline"`
}

// Fill gives c the defaults of what it does not say.
func (c *SyslogConfig) Fill() {
	if c.Framing == "" {
		c.Framing = "octets"
	}
	if c.Facility == 0 { // the kernel's, which nobody else may claim
		c.Facility = 16
	}
	if c.Confirm == 0 {
		// A receiver's process that dies with bytes unread has its kernel answer with a reset
		// within a round trip.
		c.Confirm = time.Second
	}
	if c.Timeout == 0 {
		c.Timeout = 15 * time.Second
	}
}

func (c *SyslogConfig) validate() error {
	host, port, err := net.SplitHostPort(c.Address)
	n, e := strconv.ParseUint(port, 10, 16)
	switch {
	case err != nil || e != nil || n == 0 || host == "":
		return fmt.Errorf("address %q is none; write host:port, such as syslog.example.net:6514", c.Address)
	case c.Plain && !c.AllowPrivate && len(c.AllowCIDRs) == 0:
		return errors.New("plain sends findings unencrypted, which is for private and loopback destinations only; set allowPrivate or allowCIDRs too, or use TLS")
	case c.Plain && (c.CAFile != "" || c.CertFile != "" || c.ServerName != ""):
		return errors.New("plain means no TLS, so caFile, certFile and serverName have no effect; take plain out, or them")
	case c.Facility < 1 || c.Facility > 23:
		return fmt.Errorf("facility %d; it must lie between 1 and 23", c.Facility)
	case c.Framing != "octets" && c.Framing != "lines":
		return fmt.Errorf("framing %q is not known; use octets or lines", c.Framing)
	case c.Hostname != "" && headerWord(c.Hostname, 255) != c.Hostname:
		return fmt.Errorf("hostname %q; it may have 255 printable ASCII characters, without spaces", c.Hostname)
	case c.Confirm < 10*time.Millisecond || c.Confirm > time.Minute:
		return fmt.Errorf("confirm %s; it must lie between 10ms and 1m", c.Confirm)
	case c.Timeout < time.Second || c.Timeout > 2*time.Minute:
		return fmt.Errorf("timeout %s; it must lie between 1s and 2m", c.Timeout)
	}
	if err := c.DoorConfig.validate(); err != nil {
		return err
	}
	return c.TLSConfig.validate()
}

func (c *SyslogConfig) references() map[string]string { return nil }

func (c *SyslogConfig) open(_ func(string) (string, error), at *place) (Sender, error) {
	s := &syslog{cfg: *c, as: at.as, host: c.Hostname}
	host, _, _ := net.SplitHostPort(c.Address) // was validated
	s.dialer = &net.Dialer{Timeout: c.Timeout, KeepAlive: 30 * time.Second, Control: c.door(c.Plain).control(at, host)}
	if !c.Plain {
		name := c.ServerName
		if name == "" {
			name = host
		}
		var err error
		if s.tls, err = c.client(name); err != nil {
			return nil, err
		}
	}
	if s.host == "" {
		s.host, _ = os.Hostname() // "-" where it is not known
	}
	s.host = headerWord(s.host, 255)
	return s, nil
}

// syslog holds the connections that are not in use; each is used by one batch at a time.
type syslog struct {
	cfg    SyslogConfig
	as     encoder
	host   string
	dialer *net.Dialer
	tls    *tls.Config // nil: TCP alone

	mu     sync.Mutex
	idle   []*syslogConn
	closed bool
}

// syslogConn is a connection, with word of its end.
type syslogConn struct {
	net.Conn
	raw   *net.TCPConn
	ended chan struct{} // closed once it is over
	err   error         // why, after that
}

// watch reads until the connection ends; a syslog server says nothing.
func (c *syslogConn) watch() {
	defer close(c.ended)
	b := make([]byte, 512)
	for {
		if _, c.err = c.Read(b); c.err != nil {
			return
		}
	}
}

// Close gives up the connections.
func (s *syslog) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, c := range s.idle {
		c.Close()
	}
	s.idle = nil
}

// Batch implements [BatchSender].
func (s *syslog) Batch() Batch { return Batch{Events: 100} }

// Send implements [Sender].
func (s *syslog) Send(ctx context.Context, e *Event) error { return s.SendBatch(ctx, []*Event{e})[0] }

// SendBatch implements [BatchSender]. Where a connection breaks nobody knows how much of the batch
// arrived, and all of it is sent again.
func (s *syslog) SendBatch(ctx context.Context, events []*Event) []error {
	frames, o := eachOf(events, s.frame)
	if len(o.sent) == 0 {
		return o.errs
	}
	if err := s.deliver(ctx, bytes.Join(frames, nil)); err != nil {
		return o.all(&DeliveryError{Retry: true, Err: err})
	}
	return o.errs
}

// frame is an event's message as it is told apart from the next.
func (s *syslog) frame(e *Event) ([]byte, error) {
	m, err := s.message(e)
	if err != nil {
		return nil, err
	}
	if s.cfg.Framing == "octets" {
		return slices.Concat(strconv.AppendInt(nil, int64(len(m)), 10), []byte(" "), m), nil
	}
	return append(m, '\n'), nil
}

func (s *syslog) deliver(ctx context.Context, frames []byte) error {
	c, err := s.conn(ctx)
	if err != nil {
		return err
	}
	keep := false
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if keep && !s.closed {
			s.idle = append(s.idle, c)
		} else {
			c.Close()
		}
	}()
	deadline := time.Now().Add(s.cfg.Timeout)
	if err := c.SetWriteDeadline(deadline); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetWriteDeadline(time.Unix(1, 0)) })
	_, err = c.Write(frames)
	stop()
	if err != nil {
		return err
	}
	for since := time.Now(); ; {
		select {
		case <-c.ended:
			return fmt.Errorf("the receiver ended the connection: %w", c.err)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(min(s.cfg.Confirm, 50*time.Millisecond)):
		}
		switch left := unacknowledged(c.raw); {
		case left == 0 && time.Since(since) >= s.cfg.Confirm:
			keep = true
			return nil
		case left > 0 && time.Now().After(deadline):
			return fmt.Errorf("the receiver's side has not taken %d bytes within %s", left, s.cfg.Timeout)
		case left > 0:
			since = time.Now()
		}
	}
}

// conn gives a connection that still stands, or a new one.
func (s *syslog) conn(ctx context.Context) (*syslogConn, error) {
	s.mu.Lock()
	for len(s.idle) > 0 {
		c := s.idle[len(s.idle)-1]
		s.idle = s.idle[:len(s.idle)-1]
		select {
		case <-c.ended:
			c.Close()
		default:
			s.mu.Unlock()
			return c, nil
		}
	}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	raw, err := s.dialer.DialContext(ctx, "tcp", s.cfg.Address)
	if err != nil {
		return nil, err
	}
	c := &syslogConn{Conn: raw, ended: make(chan struct{})}
	c.raw, _ = raw.(*net.TCPConn)
	if s.tls != nil {
		t := tls.Client(raw, s.tls)
		if err := t.HandshakeContext(ctx); err != nil {
			raw.Close()
			return nil, err
		}
		c.Conn = t
	}
	go c.watch() // ends with the connection
	return c, nil
}

// The severities of RFC 5424, 6.2.1.
var syslogSeverity = map[flow.Severity]int{flow.Critical: 2, flow.High: 3, flow.Medium: 4, flow.Low: 5, flow.Informational: 6}

// message is the RFC 5424 message of an event: its own time, the finding's type as MSGID, and the
// event's and the finding's id as structured data under the number that RFC 5612 leaves for examples
// and own use.
func (s *syslog) message(e *Event) ([]byte, error) {
	text, err := s.as(e)
	if err != nil {
		return nil, err
	}
	if !utf8.Valid(text) {
		return nil, &DeliveryError{Err: errors.New("the message is no UTF-8")}
	}
	text = bytes.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f { // a line is a line: what splits it would forge another
			return ' '
		}
		return r
	}, text)
	var f struct {
		Severity flow.Severity
		Type     string
	}
	_ = json.Unmarshal(e.Body, &f) // what it does not say is informational
	stamp := "-"
	if e.Time != 0 {
		stamp = e.Time.Std().Format("2006-01-02T15:04:05.000Z")
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "<%d>1 %s %s postern - %s [postern@32473 event=%s finding=%s] %s", s.cfg.Facility*8+syslogSeverity[f.Severity], stamp,
		headerWord(s.host, 255), headerWord(f.Type, 32), paramValue(e.ID), paramValue(e.Key), text)
	return b.Bytes(), nil
}

// headerWord is s as a header field: printable ASCII without spaces, at most n bytes, "-" for nothing.
func headerWord(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if r <= ' ' || r >= 0x7f {
			return -1
		}
		return r
	}, s)
	if s == "" {
		return "-"
	}
	return s[:min(len(s), n)]
}

// paramValue quotes a value of structured data (RFC 5424, 6.3.3).
func paramValue(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `]`, `\]`).Replace(strings.ToValidUTF8(s, "�")) + `"`
}
