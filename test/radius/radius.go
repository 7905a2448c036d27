package radius

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/postern/postern/test/part"
)

// Server is a running FreeRADIUS. Its methods are called by the test's own goroutine.
type Server struct {
	// Detail, Simple and Object are the files that it writes accounting to: blocks of its
	// detail module, and lines of its JSON module with plain values and with types.
	Detail, Simple, Object string

	t      testing.TB
	dir    string
	port   string
	script string
	run    *part.Program
}

// Start starts a server whose clock reads in the named zone (such as Europe/Berlin). It
// skips t where FreeRADIUS is not installed, and fails it in CI. It ends with t.
func Start(t testing.TB, zone string) *Server {
	t.Helper()
	part.Need(t, "freeradius freeradius-utils", "freeradius", "radclient")
	home, err := part.Root()
	if err != nil {
		t.Fatal(err)
	}
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s := &Server{t: t, dir: dir, port: port, script: filepath.Join(home, "test", "radius", "freeradius.sh"),
		Detail: filepath.Join(dir, "detail"), Simple: filepath.Join(dir, "simple.json"), Object: filepath.Join(dir, "object.json")}
	if err := s.start(zone); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *Server) start(zone string) error {
	cmd := exec.Command(s.script, "run", s.dir, s.port)
	cmd.Env = append(os.Environ(), "TZ="+zone)
	var err error
	if s.run, err = part.Start(cmd, s.log()); err != nil {
		return err
	}
	s.t.Cleanup(s.stop)
	return s.run.Await(func() error {
		log, err := os.ReadFile(s.log())
		if err == nil && !bytes.Contains(log, []byte("Ready to process requests")) {
			err = fmt.Errorf("FreeRADIUS has said: %s", log)
		}
		return err
	})
}

func (s *Server) log() string { return filepath.Join(s.dir, "log") }

func (s *Server) stop() {
	if err := s.run.End(syscall.SIGTERM); err != nil {
		s.t.Errorf("FreeRADIUS: %v", err)
	}
	if s.t.Failed() {
		s.t.Logf("the end of what FreeRADIUS said:\n%s", part.Tail(s.log()))
	}
}

// Send sends accounting requests, each some lines of attributes as radclient reads them, one
// after the other, and returns when every one was answered: it is then written down.
func (s *Server) Send(requests ...string) {
	s.t.Helper()
	cmd := exec.Command(s.script, "send", s.dir, s.port)
	cmd.Stdin = strings.NewReader(strings.Join(requests, "\n\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("sending accounting requests: %v\n%s", err, out)
	}
}

// freePort finds a port that nobody listens on.
func freePort() (string, error) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return strconv.Itoa(conn.LocalAddr().(*net.UDPAddr).Port), nil
}
