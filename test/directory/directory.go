package directory

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	startLimit = 60 * time.Second // a loaded machine takes ten times as long as a quiet one
	stopLimit  = 20 * time.Second
)

// Server is one running directory. Its methods are called by the test's own goroutine.
type Server struct {
	// LDAPS and LDAP are its URLs; at LDAP it offers StartTLS.
	LDAPS, LDAP string
	// Base is the DN below which all its entries lie.
	Base string
	// CAFile is a PEM file of the authority that signed its certificate, which is for
	// the name Host and not for its address.
	CAFile, Host string
	// CertFile and KeyFile are a client's certificate of the same authority.
	CertFile, KeyFile string
	// AdminDN may change everything; ReaderDN is an ordinary user who reads.
	AdminDN, AdminPassword   string
	ReaderDN, ReaderPassword string

	t      testing.TB
	dir    string
	script string
	cmd    *exec.Cmd
	stdin  io.Closer // its end is the end of the process
	done   chan struct{}
	run    []string
}

// Change applies LDIF (RFC 2849) as the administrator, over TLS.
func (s *Server) Change(ldif string) {
	s.t.Helper()
	cmd := exec.Command("ldapmodify", "-x", "-H", s.LDAPS, "-D", s.AdminDN, "-w", s.AdminPassword)
	// The certificate names the host, and the client connects to an address.
	cmd.Env = append(os.Environ(), "LDAPTLS_CACERT="+s.CAFile, "LDAPTLS_REQCERT=allow")
	cmd.Stdin = strings.NewReader(ldif)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("changing the directory: %v\n%s\n%s", err, out, ldif)
	}
}

// Stop asks the server to end and waits until it has.
func (s *Server) Stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	select {
	case <-s.done:
	case <-time.After(stopLimit):
		s.t.Errorf("the directory did not end within %v", stopLimit)
		_ = s.cmd.Process.Kill()
		<-s.done
	}
	s.stdin.Close()
	s.cmd = nil
}

// Start runs the server again, with the same entries, at the same URLs.
func (s *Server) Start() {
	s.t.Helper()
	if s.cmd != nil {
		s.t.Fatal("the directory runs already")
	}
	out, err := os.OpenFile(s.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer out.Close() // the process has its own
	cmd := exec.Command(s.script, s.run...)
	cmd.Stdout, cmd.Stderr = out, out
	stdin, err := cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.cmd, s.stdin, s.done = cmd, stdin, make(chan struct{})
	go func(done chan struct{}) {
		_ = cmd.Wait() // how it ended is in the log
		close(done)
	}(s.done)
	if err := s.ready(); err != nil {
		s.t.Fatal(err)
	}
}

// ready waits until the server shakes hands.
func (s *Server) ready() error {
	pem, err := os.ReadFile(s.CAFile)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	address := strings.TrimPrefix(s.LDAPS, "ldaps://")
	if !strings.Contains(address, ":") {
		address += ":636"
	}
	for begun := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", address, &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: s.Host})
		if err == nil {
			return c.Close()
		}
		select {
		case <-s.done:
			return fmt.Errorf("the directory at %s ended: %w", address, err)
		default:
		}
		if time.Since(begun) > startLimit {
			return fmt.Errorf("the directory at %s did not answer within %v: %w", address, startLimit, err)
		}
	}
}

// own ties the server to t.
func (s *Server) own() {
	s.t.Cleanup(func() {
		s.Stop()
		if s.t.Failed() {
			log, _ := os.ReadFile(s.log())
			lines := slices.Collect(bytes.Lines(log))
			s.t.Logf("the end of the directory's log:\n%s", bytes.Join(lines[max(0, len(lines)-60):], nil))
		}
	})
}

func (s *Server) log() string { return filepath.Join(s.dir, "log") }

// call runs the script once.
func (s *Server) call(env []string, stdin string, args ...string) {
	s.t.Helper()
	cmd := exec.Command(s.script, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("%s %s: %v\n%s", filepath.Base(s.script), strings.Join(args, " "), err, out)
	}
}

// prepare finds the script and makes the folder and the certificates.
func prepare(t testing.TB, script, host string) *Server {
	t.Helper()
	home, err := root()
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, dir: t.TempDir(), script: filepath.Join(home, "test", "directory", script), Host: host}
	if err := s.certificates(); err != nil {
		t.Fatalf("certificates: %v", err)
	}
	return s
}

// root finds the module, from the folder that `go test` runs in.
func root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "test", "directory", "slapd.sh")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("test/directory/slapd.sh is in no folder above this one")
		}
		dir = parent
	}
}

// need skips t where one of the programs is not there, and fails it in CI.
func need(t testing.TB, asRoot bool, packages string, programs ...string) {
	t.Helper()
	missing := ""
	for _, p := range programs {
		if _, err := exec.LookPath(p); err == nil {
			continue
		}
		if _, err := os.Stat(filepath.Join("/usr/sbin", p)); err != nil { // not in everybody's PATH
			missing = p + " is not installed (on Debian: apt-get install " + packages + ")"
		}
	}
	if missing == "" && asRoot && os.Geteuid() != 0 {
		missing = "Samba listens on ports below 1024, which needs root"
	}
	if missing == "" {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal(missing)
	}
	t.Skip(missing)
}

// certificates makes an authority, and certificates for the server and a client.
func (s *Server) certificates() error {
	dir := filepath.Join(s.dir, "tls")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	s.CAFile, s.CertFile, s.KeyFile = filepath.Join(dir, "ca.pem"), filepath.Join(dir, "client.pem"), filepath.Join(dir, "client-key.pem")
	template := func(serial int64, name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
			KeyUsage:    x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
	}
	write := func(name, kind string, der []byte) error {
		return os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
	}
	authority := template(1, "Postern test authority")
	authority.IsCA, authority.BasicConstraintsValid = true, true
	authority.KeyUsage, authority.ExtKeyUsage = x509.KeyUsageCertSign, nil
	authorityKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	sign := func(c *x509.Certificate, certFile, keyFile string) error {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		der, err := x509.CreateCertificate(rand.Reader, c, authority, &key.PublicKey, authorityKey)
		if err != nil {
			return err
		}
		pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return err
		}
		return errors.Join(write(certFile, "CERTIFICATE", der), write(keyFile, "PRIVATE KEY", pkcs8))
	}
	der, err := x509.CreateCertificate(rand.Reader, authority, authority, &authorityKey.PublicKey, authorityKey)
	if err != nil {
		return err
	}
	server := template(2, s.Host)
	server.DNSNames = []string{s.Host}
	return errors.Join(write(s.CAFile, "CERTIFICATE", der),
		sign(server, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")),
		sign(template(3, "postern"), s.CertFile, s.KeyFile))
}
