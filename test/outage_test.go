package test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern/postern/flow"
)

// gate is a TCP relay on an address of its own that can be shut and opened.
type gate struct {
	t      testing.TB
	addr   string
	target string
	relay  func(in, out net.Conn) // carries between the two until one ends

	mu       sync.Mutex
	listener net.Listener
	conns    map[net.Conn]bool
}

func newGate(t testing.TB, target string) *gate {
	t.Helper()
	g := &gate{t: t, addr: freePort(t, "tcp"), target: target, relay: relayAll, conns: map[net.Conn]bool{}}
	g.open()
	t.Cleanup(g.shut)
	return g
}

func (g *gate) open() {
	g.t.Helper()
	l, err := net.Listen("tcp", g.addr)
	if err != nil {
		g.t.Fatal(err)
	}
	g.mu.Lock()
	g.listener = l
	g.mu.Unlock()
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return // shut
			}
			out, err := net.Dial("tcp", g.target)
			if err != nil {
				in.Close()
				continue
			}
			g.mu.Lock()
			shut := g.listener != l
			g.conns[in], g.conns[out] = true, true
			g.mu.Unlock()
			if shut {
				in.Close()
				out.Close()
			}
			go func() {
				g.relay(in, out)
				g.mu.Lock()
				delete(g.conns, in)
				delete(g.conns, out)
				g.mu.Unlock()
			}()
		}
	}()
}

// relayAll carries everything both ways.
func relayAll(in, out net.Conn) {
	var both sync.WaitGroup
	for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
		both.Go(func() {
			_, _ = io.Copy(pair[0], pair[1]) // ends with either side
			pair[0].Close()
			pair[1].Close()
		})
	}
	both.Wait()
}

// shut cuts every connection and takes no new one.
func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.listener != nil {
		g.listener.Close()
		g.listener = nil
	}
	for c := range g.conns {
		c.Close()
	}
	clear(g.conns)
}

// resident is the memory a process holds, in bytes.
func resident(t testing.TB, pid int) int {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(raw))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// withServer makes a service that stores in the ClickHouse of another one, through a gate.
func withServer(t *testing.T, extra string) (s *server, clickhouse *gate) {
	t.Helper()
	other := newServer(t, livePolicy(false), "")
	other.start()
	raw, err := os.ReadFile(filepath.Join(other.data, "clickhouse.json"))
	if err != nil {
		t.Fatal(err)
	}
	var at struct {
		URL string `json:"url"`
	}
	if err := json.Unmarshal(raw, &at); err != nil {
		t.Fatal(err)
	}
	clickhouse = newGate(t, strings.TrimPrefix(at.URL, "http://"))
	s = newServer(t, livePolicy(false), fmt.Sprintf("clickhouse: {url: \"http://default@%s\", database: outage, password: file:%s}\n%s",
		clickhouse.addr, filepath.Join(other.data, "clickhouse.token"), extra))
	s.amend("ingest:\n", "ingest:\n  spool: {maxBytes: 2MiB, segmentSize: 128KiB, segmentAge: 500ms}\n")
	return s, clickhouse
}

// TestClickHouseAway: while ClickHouse is away flows are received and wait on disk,
// memory stays bounded and every sum closes; a full spool refuses by reason; when
// ClickHouse is back everything that was accepted arrives, once (THREATS 41).
func TestClickHouseAway(t *testing.T) {
	hook := newReceiver(t)
	s, clickhouse := withServer(t, hook.section())
	s.start()
	fw := firewall(t, s.udp)
	number := 0
	burst := func(datagrams int) {
		t.Helper()
		for range datagrams {
			var records []flow.Record
			for range 9 {
				number++
				r := session(time.Now(), fmt.Sprintf("10.50.%d.%d", number%3, number%200), "10.20.0.1", uint16(1024+number%60000), 443)
				if number%500 == 0 {
					r.DstPort = 3389
				}
				r.BytesRaw = uint64(number)
				records = append(records, r)
			}
			fw.export(records...)
		}
	}
	burst(20)
	s.arrived(fw)

	clickhouse.shut()
	s.until("/readyz to say that ClickHouse is away", 30*time.Second, func() bool { return s.get("/readyz") != nil })
	before := s.ledger()
	burst(300)
	s.until("flows to be received without ClickHouse", 30*time.Second, func() bool { return s.ledger().Datagrams.Received == fw.send.Sent() })
	for range 3 { // stays so while it retries
		during := s.ledger()
		if during.Records.Written != before.Records.Written {
			t.Errorf("%d records written without ClickHouse", during.Records.Written-before.Records.Written)
		}
		if n := during.Datagrams.Rejected.Sum(); n != 0 {
			t.Errorf("%d datagrams refused, though the spool has room", n)
		}
	}
	if s.spooled() < 300*900 {
		t.Errorf("the spool holds %d bytes; 300 datagrams do not fit in that", s.spooled())
	}

	// Until the spool is full, and beyond.
	for i := 0; s.ledger().Datagrams.Rejected[flow.RejectSpoolFull] < 50; i++ {
		if i > 40 {
			t.Fatal("the spool was never full")
		}
		burst(200)
	}
	if n := s.spooled(); n > 2<<20 {
		t.Errorf("the spool takes %d bytes, more than its 2 MiB", n)
	}
	if rss := resident(t, s.cmd.Process.Pid); rss > 600<<20 {
		t.Errorf("%d MiB of memory while ClickHouse is away", rss>>20)
	} else {
		t.Logf("%d datagrams sent, %d MiB of memory while ClickHouse is away", fw.send.Sent(), rss>>20)
	}
	s.until("all that was sent to be counted", 30*time.Second, func() bool { return s.ledger().Datagrams.Received == fw.send.Sent() })

	clickhouse.open()
	total := s.arrived(fw)
	if total.Records.Written != total.Records.Decoded || total.Datagrams.Decoded+total.Datagrams.Rejected.Sum() != fw.send.Sent() {
		t.Errorf("not everything that was accepted is written: %+v", total)
	}
	if want := total.Datagrams.Decoded * 9; total.Records.Written != want {
		t.Errorf("%d records written of %d datagrams, want %d", total.Records.Written, total.Datagrams.Decoded, want)
	}
	if n := s.number("SELECT count() AS n FROM flows"); n != int(total.Records.Written) {
		t.Errorf("ClickHouse holds %d flows, the ledger says %d", n, total.Records.Written)
	}
	if n := s.number("SELECT count() - uniqExact(bytes) AS n FROM flows"); n != 0 {
		t.Errorf("%d flows are stored twice", n)
	}
	s.until("the service to be ready again", 30*time.Second, func() bool { return s.get("/readyz") == nil })
	want := s.number("SELECT uniqExact(client, server) AS n FROM flows WHERE reason = 'denied'")
	s.until("every finding to be stored and delivered", 30*time.Second, func() bool {
		return len(hook.findings(t)) == want && s.number("SELECT count() AS n FROM findings") == want
	})
	if want == 0 {
		t.Error("no flow was denied; nothing is shown of findings")
	}
	// Refused at the door, told by reason.
	if s.metric("postern_ledger_datagrams", `reason="spool_full"`) == 0 || s.metric("postern_ledger_closes") != 1 {
		t.Error("the metrics do not tell of the full spool")
	}
	s.stop()
}

// spooled is how many bytes the spool takes on disk.
func (s *server) spooled() int {
	s.t.Helper()
	sum := 0
	entries, err := os.ReadDir(filepath.Join(s.data, "spool"))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, e := range entries {
		if st, err := e.Info(); err == nil { // else removed meanwhile
			sum += int(st.Size())
		}
	}
	return sum
}

// TestReceiverAway: a receiver that fails and then is away, also across a restart,
// loses no event and gets the revisions of each finding in order.
func TestReceiverAway(t *testing.T) {
	hook := newReceiver(t)
	var mu sync.Mutex
	newest := map[string]uint64{}
	refusals := 0
	inner := hook.Handler
	hook.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, rev, _ := strings.Cut(r.Header.Get("webhook-id"), ":")
		n, err := strconv.ParseUint(rev, 10, 64)
		mu.Lock()
		refusals++
		refuse := refusals == 2 // once: the next attempt is five seconds later, the one after that five minutes
		if !refuse {
			if err != nil || n < newest[id] { // one that came within updateEvery is told with the next
				t.Errorf("revision %s of %s came after %d", rev, id, newest[id])
			}
			newest[id] = n
		}
		mu.Unlock()
		if refuse {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		inner.ServeHTTP(w, r)
	})
	relay := newGate(t, hook.addr)
	section := strings.Replace(hook.section(), hook.addr, relay.addr, 1)
	s := newServer(t, livePolicy(false), "detect: {updateEvery: 1s}\n"+section)
	s.start()
	fw := firewall(t, s.udp)
	port := uint16(2000)
	violate := func() {
		for i := range 5 {
			port++
			fw.export(session(time.Now(), fmt.Sprintf("10.50.0.%d", 1+i), "10.20.0.1", port, 3389))
		}
		s.arrived(fw)
	}
	violate()
	s.until("the first findings", 30*time.Second, func() bool { return len(hook.findings(t)) == 5 })

	relay.shut()
	for range 3 {
		violate()
		time.Sleep(1100 * time.Millisecond) // updateEvery: each round is a revision of its own
	}
	waiting := func() int { return strings.Count(run(t, "outbox", "list", "-c", s.config), "waiting") }
	s.until("events to wait in the outbox", 30*time.Second, func() bool { return waiting() >= 5 })
	s.stop() // and they outlive a restart
	s.start()
	relay.open()
	s.until("everything to be delivered", 90*time.Second, func() bool { return waiting() == 0 })
	revisions := map[string]int{}
	for _, row := range s.query("SELECT id, revision, count FROM findings") {
		id, revision := row["id"].(string), int(row["revision"].(float64))
		mu.Lock()
		if newest[id] != uint64(revision) {
			t.Errorf("the newest revision of %s that was told is %d, and %d is stored", id, newest[id], revision)
		}
		mu.Unlock()
		revisions[id] = revision
		if row["count"].(float64) != 4 {
			t.Errorf("finding %v counts %v sessions, want 4", row["id"], row["count"])
		}
	}
	got := hook.findings(t)
	for id, f := range got {
		if f.Count != 4 {
			t.Errorf("the receiver knows of %d sessions of %s, want 4", f.Count, id)
		}
	}
	if len(got) != 5 || len(revisions) != 5 {
		t.Errorf("%d findings delivered, %d stored, want 5", len(got), len(revisions))
	}
	for _, b := range hook.bad {
		t.Error(b)
	}
	s.stop()
}
