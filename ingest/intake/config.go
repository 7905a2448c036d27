package intake

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest"
	"github.com/postern/postern/ingest/agent"
)

// Config is how logs of agents, clouds and firewalls come in.
type Config struct {
	// HTTP is the address that logs are posted to.
	HTTP HTTPConfig `yaml:"http"`
	// Files are files and folders that are followed.
	Files []FilesConfig `yaml:"files"`
	// Syslog are addresses that syslog is sent to, over TCP or TLS.
	Syslog []SyslogConfig `yaml:"syslog"`
	// Stdin is standard input, read to its end.
	Stdin StdinConfig `yaml:"stdin"`
	// Decode is how lines become flows.
	Decode agent.Config `yaml:"decode"`
	// MaxLine is how long a line or a JSON object may be; longer ones are passed over and counted.
	MaxLine flow.Size `yaml:"maxLine"`
	// Rejected bounds the sample of lines that could not be read, in rejected-lines.ndjson in the data directory.
	Rejected RejectedConfig `yaml:"rejected"`
}

// HTTPConfig is the address that logs are posted to, at /v1/logs/FORMAT, and those of sessions at /v1/events/NAME.
type HTTPConfig struct {
	// Listen is the address; empty turns it off.
	Listen string `yaml:"listen"`
	// Token is a secret reference to the bearer token that senders show. Unset: one is made and kept in logs.token in the data directory.
	Token string `yaml:"token"`
	// TLS is the certificate shown to senders, and with clientCA the one asked of them; a client's certificate then stands in for the token. Off loopback it is required.
	TLS TLSConfig `yaml:"tls"`
	// MaxBody is how many bytes a request may have, unpacked. A packed one may be as long on the wire.
	MaxBody flow.Size `yaml:"maxBody"`
	// Concurrent is how many requests are worked on at a time; further ones wait, as long as a request may take.
	Concurrent int `yaml:"concurrent"`
	// Timeout is how long a request may take altogether.
	Timeout time.Duration `yaml:"timeout"`
}

// FilesConfig is a group of files of one format.
type FilesConfig struct {
	// Paths are files, folders (every file in them) and patterns such as /var/log/zeek/*/conn*.log. Names that end in .gz are unpacked and read once.
	Paths []string `yaml:"paths"`
	// Format is the format, or auto.
	Format string `yaml:"format"`
	// Events is the name of one of identity.sessions whose log this is; it stands instead of a format.
	Events string `yaml:"events"`
	// Observer is who wrote the files, where their lines do not say so.
	Observer string `yaml:"observer"`
}

// SyslogConfig is an address that syslog is sent to (RFC 5424 or RFC 3164, by RFC 5425 and RFC 6587).
type SyslogConfig struct {
	// Listen is the address.
	Listen string `yaml:"listen"`
	// Format is the format of the messages, or auto: each connection is then taken for what its first messages are.
	Format string `yaml:"format"`
	// Events is the name of one of identity.sessions whose log this is; it stands instead of a format.
	Events string `yaml:"events"`
	// TLS is the certificate shown to senders, and with clientCA the one asked of them. Without it messages come in the clear.
	TLS TLSConfig `yaml:"tls"`
	// Senders is the allow-list: addresses and prefixes that may connect. Off loopback it is required, unless tls.clientCA is set.
	Senders []string `yaml:"senders"`
	// MaxConnections is how many connections may be open; further ones are closed at once.
	MaxConnections int `yaml:"maxConnections"`
}

// StdinConfig is standard input.
type StdinConfig struct {
	// Format is the format, or auto; empty leaves standard input alone.
	Format string `yaml:"format"`
	// Observer is who wrote it, where the lines do not say so.
	Observer string `yaml:"observer"`
}

// TLSConfig is the server's side of TLS.
type TLSConfig struct {
	// Cert is a PEM file of the certificate and those that signed it.
	Cert string `yaml:"cert"`
	// Key is the PEM file of its private key.
	Key string `yaml:"key"`
	// ClientCA is a PEM file of the authorities that senders' certificates must be signed by.
	ClientCA string `yaml:"clientCA"`
}

// DefaultConfig gives the defaults.
func DefaultConfig() Config {
	return Config{
		HTTP: HTTPConfig{
			// 256 MiB are some 200,000 lines of Hubble; encoded they are a tenth of that.
			MaxBody: 256 * flow.MiB,
			// One core reads some 200 MB/s; more at a time only take memory.
			Concurrent: 4,
			Timeout:    2 * time.Minute,
		},
		Decode: agent.Config{ClockTolerance: 30 * time.Second},
		// A block of Azure's flow log is up to 4 MiB; lines of others are far shorter.
		MaxLine:  16 * flow.MiB,
		Rejected: RejectedConfig{PerMinute: 100, MaxBytes: 16 * flow.MiB, MaxLine: 4 * flow.KiB},
	}
}

const defaultSyslogConnections = 256

// Validate says what is wrong with the configuration.
func (c *Config) Validate() error {
	var errs []error
	check := func(key string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
		}
	}
	format := func(key, name, events string) {
		if events != "" {
			if name != "" {
				check(key+".format", fmt.Errorf("is %q beside events; give one of them", name))
			}
			return
		}
		key += ".format"
		_, err := agent.NewDecoder(name, c.Decode, flow.NewNames(1))
		check(key, err)
	}
	if h := &c.HTTP; h.Listen != "" {
		check("http.listen", address(h.Listen))
		check("http.tls", h.TLS.validate())
		if !onLoopback(h.Listen) && h.TLS.Cert == "" {
			check("http.listen", fmt.Errorf("%s can be reached from other hosts, and the token would go over the wire in the clear; set http.tls.cert and http.tls.key", h.Listen))
		}
		if h.MaxBody < flow.KiB || h.MaxBody > 4*flow.GiB {
			check("http.maxBody", fmt.Errorf("is %v; it must be between 1KiB and 4GiB", h.MaxBody))
		}
		if h.Concurrent < 1 || h.Concurrent > 256 {
			check("http.concurrent", fmt.Errorf("is %d; it must be between 1 and 256", h.Concurrent))
		}
		if h.Timeout < time.Second || h.Timeout > time.Hour {
			check("http.timeout", fmt.Errorf("is %v; it must be between 1s and 1h", h.Timeout))
		}
	}
	for i := range c.Files {
		f := &c.Files[i]
		key := fmt.Sprintf("files[%d]", i)
		if len(f.Paths) == 0 {
			check(key+".paths", errors.New("is empty; name a file, a folder or a pattern"))
		}
		for _, p := range f.Paths {
			if _, err := filepath.Match(p, ""); err != nil {
				check(key+".paths", fmt.Errorf("%q is no pattern: %w", p, err))
			}
		}
		format(key, f.Format, f.Events)
	}
	for i := range c.Syslog {
		s := &c.Syslog[i]
		key := fmt.Sprintf("syslog[%d]", i)
		check(key+".listen", address(s.Listen))
		check(key+".tls", s.TLS.validate())
		format(key, s.Format, s.Events)
		_, err := ingest.ParseAllowList(s.Senders)
		check(key+".senders", err)
		if !onLoopback(s.Listen) && s.Senders == nil && s.TLS.ClientCA == "" {
			check(key+".senders", fmt.Errorf("listen %s can be reached from other hosts and nothing says who may send; write senders: [10.0.0.1, 10.1.0.0/16], or set tls.clientCA", s.Listen))
		}
		if s.MaxConnections < 0 || s.MaxConnections > 1<<16 {
			check(key+".maxConnections", fmt.Errorf("is %d; it must be between 0 (%d) and %d", s.MaxConnections, defaultSyslogConnections, 1<<16))
		}
	}
	if c.Stdin.Format != "" {
		format("stdin", c.Stdin.Format, "")
	}
	check("decode", c.Decode.Validate())
	if z := c.Decode.ZoneOffset; z < -14*time.Hour || z > 14*time.Hour {
		check("decode.zoneOffset", fmt.Errorf("is %v; it must be between -14h and 14h", z))
	}
	if c.Decode.ClockTolerance < 0 || c.Decode.ClockTolerance > time.Hour {
		check("decode.clockTolerance", fmt.Errorf("is %v; it must be between 0 and 1h", c.Decode.ClockTolerance))
	}
	if c.MaxLine < flow.KiB || c.MaxLine > 256*flow.MiB {
		check("maxLine", fmt.Errorf("is %v; it must be between 1KiB and 256MiB", c.MaxLine))
	}
	if r := &c.Rejected; r.PerMinute < 0 || r.MaxBytes < flow.KiB || r.MaxLine < 0 || r.MaxLine > r.MaxBytes/2 {
		check("rejected", fmt.Errorf("perMinute %d, maxBytes %v, maxLine %v; perMinute must not be below zero, maxBytes at least 1KiB, maxLine at most half of it", r.PerMinute, r.MaxBytes, r.MaxLine))
	}
	return errors.Join(errs...)
}

func address(listen string) error {
	if _, _, err := net.SplitHostPort(listen); err != nil {
		return fmt.Errorf("%q: %w; write host:port, such as 127.0.0.1:6514", listen, err)
	}
	return nil
}

func onLoopback(listen string) bool {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return true // said already
	}
	return ingest.LoopbackHost(host)
}

func (t *TLSConfig) validate() error {
	switch {
	case (t.Cert == "") != (t.Key == ""):
		return errors.New("has only one of cert and key; give both or neither")
	case t.ClientCA != "" && t.Cert == "":
		return errors.New("has a clientCA without cert and key; a client's certificate is only asked for over TLS")
	}
	return nil
}

// config reads the files; nil if there is no TLS. required says that a client without a
// certificate is turned away.
func (t *TLSConfig) config(required bool) (*tls.Config, error) {
	if t.Cert == "" {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, fmt.Errorf("tls.cert: %w", err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	if t.ClientCA == "" {
		return c, nil
	}
	pem, err := os.ReadFile(t.ClientCA)
	if err != nil {
		return nil, fmt.Errorf("tls.clientCA: %w", err)
	}
	c.ClientCAs = x509.NewCertPool()
	if !c.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("tls.clientCA: %s holds no certificate; it must be a PEM file", t.ClientCA)
	}
	if c.ClientAuth = tls.VerifyClientCertIfGiven; required {
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return c, nil
}
