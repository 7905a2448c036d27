package radius

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	startLimit = 60 * time.Second // a loaded machine takes ten times as long as a quiet one
	stopLimit  = 20 * time.Second
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
	cmd    *exec.Cmd
	stdin  io.Closer // its end is the end of the process
	done   chan struct{}
}

// Start starts a server whose clock reads in the named zone (such as Europe/Berlin). It
// skips t where FreeRADIUS is not installed, and fails it in CI. It ends with t.
func Start(t testing.TB, zone string) *Server {
	t.Helper()
	for _, program := range []string{"/usr/sbin/freeradius", "/usr/bin/radclient"} {
		if _, err := os.Stat(program); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s is not installed", program)
			}
			t.Skipf("%s is not installed; make test installs freeradius and freeradius-utils on Debian", program)
		}
	}
	home, err := root()
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
	out, err := os.OpenFile(s.log(), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer out.Close() // the process has its own
	s.cmd = exec.Command(s.script, "run", s.dir, s.port)
	s.cmd.Env = append(os.Environ(), "TZ="+zone)
	s.cmd.Stdout, s.cmd.Stderr = out, out
	if s.stdin, err = s.cmd.StdinPipe(); err != nil {
		return err
	}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	s.done = make(chan struct{})
	go func() {
		_ = s.cmd.Wait() // how it ended is in the log
		close(s.done)
	}()
	s.t.Cleanup(s.stop)
	for begun := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		log, err := os.ReadFile(s.log())
		if err == nil && bytes.Contains(log, []byte("Ready to process requests")) {
			return nil
		}
		select {
		case <-s.done:
			return fmt.Errorf("FreeRADIUS has ended: %s", log)
		default:
		}
		if time.Since(begun) > startLimit {
			return fmt.Errorf("FreeRADIUS was not ready within %v: %s", startLimit, log)
		}
	}
}

func (s *Server) log() string { return filepath.Join(s.dir, "log") }

func (s *Server) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	select {
	case <-s.done:
	case <-time.After(stopLimit):
		s.t.Errorf("FreeRADIUS did not end within %v", stopLimit)
		_ = s.cmd.Process.Kill()
		<-s.done
	}
	s.stdin.Close()
	if s.t.Failed() {
		log, _ := os.ReadFile(s.log())
		s.t.Logf("FreeRADIUS said:\n%s", log)
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

// root finds the module, from the folder that `go test` runs in.
func root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "test", "radius", "freeradius.sh")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("test/radius/freeradius.sh is in no folder above this one")
		}
		dir = parent
	}
}
