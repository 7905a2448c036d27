package test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/sink/siem"
)

// binary builds the real command once a test process and gives its path.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "postern-test-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "postern")
	out, err := exec.Command("go", "build", "-o", path, "../cmd/postern").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building postern: %w\n%s", err, out)
	}
	return path, nil
})

func postern(t testing.TB) string {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// run runs a postern command to its end and gives what it printed on standard output.
func run(t testing.TB, args ...string) string {
	t.Helper()
	out, diag, err := try(t, args...)
	if err != nil {
		t.Fatalf("postern %s: %v\n%s%s", strings.Join(args, " "), err, out, diag)
	}
	return out
}

func try(t testing.TB, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := exec.Command(postern(t), args...)
	var out, diag bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diag
	err = cmd.Run()
	return out.String(), diag.String(), err
}

// server is a data directory with a configuration, and the service on it while
// one runs.
type server struct {
	t      testing.TB
	role   string // the command that runs on it: serve, collect …
	dir    string
	config string
	data   string
	udp    string // address of the NetFlow listener
	sflow  string
	admin  string

	cmd *exec.Cmd
	log *os.File
}

// newServer writes a configuration with free loopback ports. policy is the text of
// the one policy file; extra is appended to the configuration.
func newServer(t testing.TB, policy, extra string) *server {
	t.Helper()
	s := newRole(t, "serve")
	s.writePolicy(policy)
	s.configure(fmt.Sprintf(`data: %s
ingest:
  netflow: {listen: "%s"}
  sflow: {listen: "%s"}
policy: {dir: %s, since: 2020-01-01T00:00:00Z}
embedded: {listen: "127.0.0.1:0", maxMemory: 1GiB}
admin: {listen: "%s"}
%s`, s.data, s.udp, s.sflow, s.policyDir(), s.admin, extra))
	return s
}

// newRole takes a folder and free loopback ports for a command that runs until it is
// told to end. It has no configuration yet.
func newRole(t testing.TB, role string) *server {
	t.Helper()
	s := &server{t: t, role: role, dir: t.TempDir()}
	s.config, s.data = filepath.Join(s.dir, "postern.yaml"), filepath.Join(s.dir, "data")
	s.udp, s.sflow, s.admin = freePort(t, "udp"), freePort(t, "udp"), freePort(t, "tcp")
	var err error
	if s.log, err = os.Create(filepath.Join(s.dir, "log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.kill(syscall.SIGKILL)
		s.log.Close()
		if t.Failed() {
			raw, _ := os.ReadFile(s.log.Name()) // the test has failed already
			t.Logf("the log of %s:\n%s", role, tail(string(raw), 12000))
		}
	})
	return s
}

// configure writes the configuration that the next start reads.
func (s *server) configure(text string) {
	s.t.Helper()
	if err := os.WriteFile(s.config, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func tail(s string, n int) string {
	if len(s) > n {
		return "…" + s[len(s)-n:]
	}
	return s
}

func (s *server) policyDir() string { return filepath.Join(s.dir, "policy") }

func (s *server) writePolicy(text string) {
	s.t.Helper()
	if err := os.MkdirAll(s.policyDir(), 0o700); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.policyDir(), "policy.yaml"), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// givenPorts are those that freePort gave in this process.
var givenPorts sync.Map

// freePort finds a port that nobody uses now, below those that the system gives to
// outgoing connections: while whoever listens there is down, none may take its place.
func freePort(t testing.TB, network string) string {
	t.Helper()
	for range 100 {
		addr := fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(10000))
		if _, again := givenPorts.LoadOrStore(network+addr, true); again {
			continue // whoever got it may not listen yet
		}
		var c io.Closer
		var err error
		if network == "udp" {
			c, err = net.ListenPacket(network, addr)
		} else {
			c, err = net.Listen(network, addr)
		}
		if err == nil {
			c.Close()
			return addr
		}
	}
	t.Fatalf("no free %s port", network)
	return ""
}

// start starts the service and waits until it is ready.
func (s *server) start() {
	s.t.Helper()
	s.launch()
	s.until("the service to be ready", 60*time.Second, func() bool { return s.get("/readyz") == nil })
}

// launch starts the service without waiting.
func (s *server) launch() {
	s.t.Helper()
	cmd := exec.Command(postern(s.t), s.role, "-c", s.config)
	cmd.Stdout, cmd.Stderr = s.log, s.log
	// Whatever becomes of the test, the service does not outlive it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.cmd = cmd
}

// kill ends the service by a signal and waits for its end.
func (s *server) kill(sig os.Signal) error {
	if s.cmd == nil {
		return nil
	}
	cmd := s.cmd
	s.cmd = nil
	_ = cmd.Process.Signal(sig) // it may have ended by itself; Wait tells
	return cmd.Wait()
}

// stop ends the service as an operator would and fails if it complains.
func (s *server) stop() {
	s.t.Helper()
	if err := s.kill(syscall.SIGTERM); err != nil {
		s.t.Fatalf("the service ended with %v", err)
	}
}

func (s *server) until(what string, patience time.Duration, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

// get asks the admin address.
func (s *server) get(path string, into ...any) error {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+s.admin+path, nil)
	if err != nil {
		return err
	}
	if token, err := os.ReadFile(filepath.Join(s.data, "admin.token")); err == nil {
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", path, resp.Status, body)
	}
	for _, v := range into {
		if text, ok := v.(*string); ok {
			*text = string(body)
			continue
		}
		if err := json.Unmarshal(body, v); err != nil {
			return err
		}
	}
	return nil
}

// stock is what /ledger says.
type stock struct {
	Closes string       `json:"closes"`
	Total  flow.Account `json:"total"`
}

// ledger takes stock and fails if a sum does not close.
func (s *server) ledger() flow.Account {
	s.t.Helper()
	var l stock
	if err := s.get("/ledger", &l); err != nil {
		s.t.Fatal(err)
	}
	if l.Closes != "yes" {
		s.t.Fatalf("the ledger does not close: %s", l.Closes)
	}
	return l.Total
}

// settle waits until everything that was received is stored.
func (s *server) settle() flow.Account {
	s.t.Helper()
	var total flow.Account
	s.until("everything received to be stored", 60*time.Second, func() bool {
		total = s.ledger()
		return total.Datagrams.Queued == 0 && total.Records.InFlight == 0
	})
	return total
}

// query asks ClickHouse through the command, as a user would.
func (s *server) query(sql string) []map[string]any {
	s.t.Helper()
	out := run(s.t, "query", "-c", s.config, "-f", "json", sql)
	var rows []map[string]any
	for dec := json.NewDecoder(strings.NewReader(out)); dec.More(); {
		var row map[string]any
		if err := dec.Decode(&row); err != nil {
			s.t.Fatalf("%v in %s", err, out)
		}
		rows = append(rows, row)
	}
	return rows
}

// number is the one number that a query gives.
func (s *server) number(sql string) int {
	s.t.Helper()
	rows := s.query(sql)
	if len(rows) != 1 {
		s.t.Fatalf("%s gave %d rows", sql, len(rows))
	}
	for _, v := range rows[0] {
		if f, ok := v.(float64); ok {
			return int(f)
		}
	}
	s.t.Fatalf("%s gave %v", sql, rows[0])
	return 0
}

// receiver takes webhooks, verifies them and keeps every event.
type receiver struct {
	*http.Server
	secret string
	addr   string

	mu     sync.Mutex
	events map[string]json.RawMessage // by webhook-id
	newest map[string]uint64          // revision, by finding
	bad    []string
	twice  int
}

// newReceiver starts a receiver; section is its part of a configuration.
func newReceiver(t testing.TB) *receiver {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{secret: siem.NewWebhookSecret(), addr: l.Addr().String(), events: map[string]json.RawMessage{}, newest: map[string]uint64{}}
	r.Server = &http.Server{Handler: http.HandlerFunc(r.receive), ReadHeaderTimeout: time.Second}
	go func() { _ = r.Serve(l) }() // ends with Close
	t.Cleanup(func() { _ = r.Close() })
	t.Setenv("POSTERN_TEST_WEBHOOK", r.secret)
	return r
}

func (r *receiver) section() string {
	return fmt.Sprintf(`targets:
  - name: test
    minSeverity: informational
    webhook:
      url: http://%s/
      secrets: [env:POSTERN_TEST_WEBHOOK]
      allowPrivate: true
      allowInsecure: true
`, r.addr)
}

func (r *receiver) receive(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(io.LimitReader(req.Body, 64<<10))
	if err == nil {
		err = siem.Verify([]string{r.secret}, req.Header, body, time.Minute, time.Now())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	id := req.Header.Get("webhook-id")
	finding, number, _ := strings.Cut(id, ":")
	revision, _ := strconv.ParseUint(number, 10, 64) // zero is out of order
	switch old, seen := r.events[id]; {
	case err != nil:
		r.bad = append(r.bad, err.Error())
		w.WriteHeader(http.StatusBadRequest)
		return
	case seen && !bytes.Equal(old, body):
		r.bad = append(r.bad, fmt.Sprintf("event %s came twice with other content:\n%s\n%s", id, old, body))
	case seen:
		r.twice++
	case revision <= r.newest[finding]:
		r.bad = append(r.bad, fmt.Sprintf("revision %d of %s came after %d", revision, finding, r.newest[finding]))
	}
	r.newest[finding] = max(r.newest[finding], revision)
	r.events[id] = body
	w.WriteHeader(http.StatusNoContent)
}

// has says whether all these events were received.
func (r *receiver) has(ids iter.Seq[string]) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range ids {
		if r.events[id] == nil {
			return false
		}
	}
	return true
}

// count is how many events were received.
func (r *receiver) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.events)
}

// findings is the newest revision of each finding that was received.
func (r *receiver) findings(t testing.TB) map[string]flow.Finding {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]flow.Finding{}
	for id, body := range r.events {
		var f flow.Finding
		if err := json.Unmarshal(body, &f); err != nil {
			t.Fatal(err)
		}
		if f.EventID() != id {
			t.Errorf("webhook-id %s carries event %s", id, f.EventID())
		}
		if old, ok := out[f.ID]; !ok || old.Revision < f.Revision {
			out[f.ID] = f
		}
	}
	return out
}
