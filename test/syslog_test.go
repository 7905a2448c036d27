package test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/postern/postern/test/part"
)

// newAuthority makes an authority of a new folder that has issued certificates for localhost.
func newAuthority(t testing.TB, names ...string) *part.Authority {
	t.Helper()
	a, err := part.NewAuthority(t.TempDir())
	for _, name := range names {
		if err == nil {
			err = a.Issue(name, "localhost", "127.0.0.1")
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// program is one that a script of ours has started, until its standard input ends.
type program struct {
	t    testing.TB
	name string
	run  *part.Program
}

// startProgram runs a script in the foreground; what it said is shown if the test has failed.
func startProgram(t testing.TB, name string, script ...string) *program {
	t.Helper()
	log := filepath.Join(t.TempDir(), "said")
	run, err := part.Start(exec.Command(script[0], script[1:]...), log)
	if err != nil {
		t.Fatal(err)
	}
	p := &program{t, name, run}
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			t.Logf("what %s said:\n%s", name, part.Tail(log))
		}
	})
	return p
}

// stop ends it in order and waits.
func (p *program) stop() {
	p.t.Helper()
	if err := p.run.End(nil); err != nil {
		p.t.Errorf("%s: %v", p.name, err)
	}
}

const syslogSender = "syslog/sender"

// needSenders ends the test where rsyslog and syslog-ng are not there.
func needSenders(t testing.TB) {
	t.Helper()
	if _, err := os.Stat("../.cache/syslog/fetched"); err != nil {
		part.Missing(t, "rsyslog and syslog-ng are not there; on Debian, test/syslog/sender fetch gets them")
	}
}

// sending is a real sender and the file of numbered lines that it sends.
type sending struct {
	*program
	dir   string
	first uint64 // number of the first line
	line  func(at time.Time, n uint64) string

	mu sync.Mutex
	at []time.Time // when each line was written
}

// newSending makes the folder of a sender that knows the authority a.
func newSending(t testing.TB, a *part.Authority, first uint64, line func(time.Time, uint64) string) *sending {
	t.Helper()
	s := &sending{dir: t.TempDir(), first: first, line: line}
	for _, file := range []string{"ca.pem", "sender.pem", "sender-key.pem"} {
		raw, err := os.ReadFile(filepath.Join(a.Dir, file))
		if err == nil {
			err = os.WriteFile(filepath.Join(s.dir, file), raw, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(s.dir, "lines"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

// write appends n lines.
func (s *sending) write(n int) error {
	f, err := os.OpenFile(filepath.Join(s.dir, "lines"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	now := time.Now()
	var text strings.Builder
	s.mu.Lock()
	for range n {
		text.WriteString(s.line(now, s.first+uint64(len(s.at))))
		s.at = append(s.at, now)
	}
	s.mu.Unlock()
	_, err = f.WriteString(text.String())
	return errors.Join(err, f.Close())
}

func (s *sending) written() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.at)
}

// suricataLine is a line of Suricata's that is known by its byte count.
func suricataLine(at time.Time, n uint64) string {
	stamp := at.UTC().Format("2006-01-02T15:04:05.000000+0000")
	return fmt.Sprintf(`{"timestamp":%q,"flow_id":%d,"in_iface":"eth0","event_type":"flow","src_ip":"10.50.1.%d","src_port":%d,"dest_ip":"10.20.0.%d","dest_port":443,"proto":"TCP",`+
		`"flow":{"pkts_toserver":3,"pkts_toclient":2,"bytes_toserver":%d,"bytes_toclient":80,"start":%q,"end":%q,"age":0,"state":"closed","reason":"timeout","alerted":false},"tcp":{"tcp_flags":"1b","syn":true,"fin":true,"psh":true,"ack":true}}`,
		stamp, n, n%200, 1024+n%60000, n%5, n, stamp, stamp) + "\n"
}

// TestSyslogSenders has a real rsyslog and a real syslog-ng follow a file each and send its
// lines by TLS, through queues on disk, with certificates that are checked, while the service
// is ended once and killed once. Syslog has no acknowledgement: what is lost is lost around
// those moments alone, and what is stored twice was sent twice. Who has no certificate, or
// another authority's, is turned away and counted.
func TestSyslogSenders(t *testing.T) {
	t.Parallel()
	needSenders(t)
	ours, others := newAuthority(t, "server", "sender"), newAuthority(t, "sender")

	s := newRole(t, "serve")
	door := freePort(t, "tcp")
	_, port, _ := net.SplitHostPort(door)
	s.writePolicy(crashPolicy)
	s.configure(fmt.Sprintf(`data: %s
ingest:
  netflow: {listen: ""}
  sflow: {listen: ""}
  logs:
    syslog: [{listen: "%s", format: auto, tls: {cert: %[3]s/server.pem, key: %[3]s/server-key.pem, clientCA: %[3]s/ca.pem}}]
policy: {dir: %[4]s, since: 2020-01-01T00:00:00Z}
embedded: {listen: "127.0.0.1:0", maxMemory: 1GiB}
admin: {listen: "%[5]s"}
`, s.data, door, ours.Dir, s.policyDir(), s.admin))
	s.start()

	names := []string{"rsyslog", "syslog-ng"}
	senders := map[string]*sending{
		"rsyslog":   newSending(t, ours, 1<<32, numberedLine),
		"syslog-ng": newSending(t, ours, 2<<32, suricataLine),
	}
	var ended atomic.Bool
	var writers sync.WaitGroup
	for name, x := range senders {
		x.program = startProgram(t, name, syslogSender, name, x.dir, port, "sender")
		writers.Go(func() {
			for ; !ended.Load(); time.Sleep(10 * time.Millisecond) {
				if err := x.write(8); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	type outage struct{ from, to time.Time }
	var ends []outage
	for _, sig := range []os.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		s.until("both to send", 30*time.Second, func() bool { return s.metric("postern_ingest_syslog_connections") == 2 })
		time.Sleep(3 * time.Second)
		end := time.Now()
		err := s.kill(sig)
		took := time.Since(end)
		if sig == syscall.SIGTERM && (err != nil || took > 15*time.Second) {
			t.Errorf("it took %v to end, with %v", took, err)
		}
		time.Sleep(1500 * time.Millisecond)
		if queued, err := filepath.Glob(filepath.Join(senders["rsyslog"].dir, "queue", "forward.0*")); err != nil || len(queued) == 0 {
			t.Errorf("rsyslog has nothing in its queue on disk: %v", err)
		}
		s.start()
		ends = append(ends, outage{end, time.Now()})
	}
	s.until("both to send again", 30*time.Second, func() bool { return s.metric("postern_ingest_syslog_connections") == 2 })
	time.Sleep(2 * time.Second)
	ended.Store(true)
	writers.Wait()
	between := func(from uint64) string { return fmt.Sprintf("bytes >= %d AND bytes < %d", from, from+1<<32) }
	for _, name := range names {
		x := senders[name]
		last := x.first + uint64(x.written()) - 1
		s.until("the last line of "+name, 40*time.Second, func() bool {
			return s.number(fmt.Sprintf("SELECT count() AS n FROM flows WHERE bytes = %d", last)) > 0
		})
	}
	total := s.settle()
	if n := s.number("SELECT count() AS n FROM flows"); uint64(n) != total.Lines.Read || total.Records.Written != uint64(n) || total.Lines.Rejected != 0 {
		t.Errorf("ClickHouse holds %d flows, the ledger says %+v", n, total)
	}
	for _, name := range names {
		x := senders[name]
		came := make([]int, x.written())
		for _, row := range s.query(fmt.Sprintf("SELECT bytes - %d AS line, count() AS n FROM flows WHERE %s GROUP BY line", x.first, between(x.first))) {
			came[int(row["line"].(float64))] = int(row["n"].(float64))
		}
		lost, again, runs := 0, 0, 0
		for i, n := range came {
			switch {
			case n == 0:
				if lost++; i > 0 && came[i-1] > 0 {
					runs++
				}
				// A sender knows of an end when a write fails, and what it wrote before that is gone.
				if !slices.ContainsFunc(ends, func(o outage) bool {
					return x.at[i].After(o.from.Add(-2*time.Second)) && x.at[i].Before(o.to.Add(2*time.Second))
				}) {
					t.Errorf("%s: line %d, written at %v, is lost, and nothing happened then; ends were at %v", name, i, x.at[i], ends)
				}
			case n > 1+len(ends):
				t.Errorf("%s: line %d is stored %d times, and it was ended %d times", name, i, n, len(ends))
				fallthrough
			case n > 1:
				again += n - 1
			}
		}
		t.Logf("%s: %d lines written, %d (%.2f%%) lost in %d runs, %d stored again, at two ends of the service", name, len(came), lost, 100*float64(lost)/float64(len(came)), runs, again)
		if lost > len(came)/4 {
			t.Errorf("%s: %d of %d lines are lost", name, lost, len(came))
		}
	}

	// Nobody without a certificate of the right authority gets a word in.
	rows := s.number("SELECT count() AS n FROM flows")
	for i, intruder := range []struct{ program, certificate string }{{"rsyslog", "others"}, {"syslog-ng", "others"}, {"syslog-ng", ""}} {
		x := newSending(t, ours, uint64(3+i)<<32, numberedLine)
		name := ""
		if intruder.certificate != "" {
			name = "sender"
			for _, file := range []string{"sender.pem", "sender-key.pem"} {
				raw, err := os.ReadFile(filepath.Join(others.Dir, file))
				if err == nil {
					err = os.WriteFile(filepath.Join(x.dir, file), raw, 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := x.write(20); err != nil {
			t.Fatal(err)
		}
		before := s.metric("postern_ingest_syslog_refused_connections_total")
		x.program = startProgram(t, intruder.program+" without a right", syslogSender, intruder.program, x.dir, port, name)
		s.until(fmt.Sprintf("%+v to be refused", intruder), 20*time.Second, func() bool {
			return s.metric("postern_ingest_syslog_refused_connections_total") > before
		})
		x.stop()
	}
	time.Sleep(500 * time.Millisecond) // longer than messages are gathered
	s.settle()
	if n := s.number("SELECT count() AS n FROM flows"); n != rows {
		t.Errorf("%d flows came from senders without a right", n-rows)
	}
	for _, want := range []string{"client didn't provide a certificate", "certificate signed by unknown authority"} {
		if !strings.Contains(s.logs(), want) {
			t.Errorf("the log does not say %q", want)
		}
	}
	for _, x := range senders {
		x.stop()
	}
	s.stop()
}
