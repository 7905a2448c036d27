package directory

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern/postern/test/part"
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

	t       testing.TB
	dir     string
	script  string
	run     []string
	running *part.Program // nil: it does not run
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
	if s.running == nil {
		return
	}
	if err := s.running.End(syscall.SIGTERM); err != nil {
		s.t.Errorf("the directory: %v", err)
	}
	s.running = nil
}

// Start runs the server again, with the same entries, at the same URLs.
func (s *Server) Start() {
	s.t.Helper()
	if s.running != nil {
		s.t.Fatal("the directory runs already")
	}
	running, err := part.Start(exec.Command(s.script, s.run...), s.log())
	if err != nil {
		s.t.Fatal(err)
	}
	s.running = running
	pem, err := os.ReadFile(s.CAFile)
	if err != nil {
		s.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	address := strings.TrimPrefix(s.LDAPS, "ldaps://")
	if !strings.Contains(address, ":") {
		address += ":636"
	}
	if err := running.Await(func() error { // until it shakes hands
		c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", address, &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: s.Host})
		if err != nil {
			return err
		}
		return c.Close()
	}); err != nil {
		s.t.Fatalf("the directory at %s: %v", address, err)
	}
}

// own ties the server to t.
func (s *Server) own() {
	s.t.Cleanup(func() {
		s.Stop()
		if s.t.Failed() {
			s.t.Logf("the end of the directory's log:\n%s", part.Tail(s.log()))
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
	home, err := part.Root()
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, dir: t.TempDir(), script: filepath.Join(home, "test", "directory", script), Host: host}
	if err := s.certificates(); err != nil {
		t.Fatalf("certificates: %v", err)
	}
	return s
}

// certificates makes an authority, and certificates for the server and a client.
func (s *Server) certificates() error {
	dir := filepath.Join(s.dir, "tls")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	a, err := part.NewAuthority(dir)
	if err != nil {
		return err
	}
	s.CAFile = a.File()
	s.CertFile, s.KeyFile = a.Files("postern")
	return errors.Join(a.Issue("server", s.Host), a.Issue("postern"))
}
