package test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/postern/postern/ingest/kafka"
	"github.com/postern/postern/test/broker"
)

// numberedLine is a line of Zeek's that is known by its byte count.
func numberedLine(at time.Time, n uint64) string {
	return fmt.Sprintf(`{"ts":%.3f,"uid":"C%d","id.orig_h":"10.50.0.%d","id.orig_p":%d,"id.resp_h":"10.20.0.%d","id.resp_p":443,"proto":"tcp","conn_state":"SF","history":"ShADadFf","orig_pkts":3,"resp_pkts":2,"orig_ip_bytes":%d,"resp_ip_bytes":80}`,
		float64(at.UnixMilli())/1000, n, n%200, 1024+n%60000, n%5, n) + "\n"
}

// logRig is a service that takes logs by all ways.
type logRig struct {
	*server
	http, syslog string
	folder       string
}

func newLogRig(t *testing.T) *logRig {
	r := &logRig{server: newRole(t, "serve"), http: freePort(t, "tcp"), syslog: freePort(t, "tcp")}
	r.folder = filepath.Join(r.dir, "zeek")
	if err := os.MkdirAll(r.folder, 0o700); err != nil {
		t.Fatal(err)
	}
	r.writePolicy(crashPolicy)
	r.configure(fmt.Sprintf(`data: %s
ingest:
  netflow: {listen: ""}
  sflow: {listen: ""}
  logs:
    http: {listen: "%s", token: "env:POSTERN_TEST_LOGS"}
    files: [{paths: ["%s/conn*"], format: zeek, observer: sensor-1}]
    syslog: [{listen: "%s", format: zeek}]
policy: {dir: %s, since: 2020-01-01T00:00:00Z}
embedded: {listen: "127.0.0.1:0", maxMemory: 1GiB}
admin: {listen: "%s"}
`, r.data, r.http, r.folder, r.syslog, r.policyDir(), r.admin))
	t.Setenv("POSTERN_TEST_LOGS", "s3cret")
	return r
}

// post sends a body; code 0 is nobody there.
func (r *logRig) post(format, key string, body []byte) (code int, answer map[string]any) {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write(body)
	_ = z.Close()
	req, err := http.NewRequest(http.MethodPost, "http://"+r.http+"/v1/logs/"+format, &packed)
	if err != nil {
		return 0, nil
	}
	req.Header.Set("Authorization", "Bearer s3cret")
	req.Header.Set("Content-Encoding", "gzip")
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	client := http.Client{Timeout: 5 * time.Second}
	res, err := client.Do(req)
	if err != nil {
		return 0, nil
	}
	defer res.Body.Close()
	_ = json.NewDecoder(res.Body).Decode(&answer)
	return res.StatusCode, answer
}

// TestLogsKill9 sends numbered lines by HTTP, by files that are rotated, and by syslog, while the
// service is killed again and again: what was acknowledged, or stands in a file, is stored
// once, whatever was sent again.
func TestLogsKill9(t *testing.T) {
	seed := envNumber(t, "POSTERN_SEED", uint64(time.Now().UnixNano()))
	rounds := int(envNumber(t, "POSTERN_ROUNDS", 6))
	t.Logf("seed %d, %d rounds; repeat with POSTERN_SEED=%d", seed, rounds, seed)
	rng := rand.New(rand.NewPCG(seed, 11))
	r := newLogRig(t)

	const viaFile, viaSyslog = 1 << 32, 2 << 32
	var ended atomic.Bool
	var senders sync.WaitGroup
	var posted, filed, sent, repeated uint64
	senders.Go(func() {
		rng := rand.New(rand.NewPCG(seed, 12))
		var before []byte
		for batch := 0; !ended.Load(); batch++ {
			var body bytes.Buffer
			for range 1 + rng.IntN(3000) {
				body.WriteString(numberedLine(time.Now(), posted))
				posted++
			}
			for { // a shipper insists
				if code, _ := r.post("zeek", fmt.Sprint("batch-", batch), body.Bytes()); code == 200 {
					break
				} else if ended.Load() && code != 0 {
					t.Errorf("answered with %d", code)
				}
				time.Sleep(50 * time.Millisecond)
			}
			if rng.IntN(4) == 0 && before != nil { // and, not having heard the answer, sends again
				if code, _ := r.post("zeek", fmt.Sprint("batch-", batch-1), before); code == 200 {
					repeated++
				}
			}
			before = body.Bytes()
			time.Sleep(time.Duration(rng.IntN(60)) * time.Millisecond)
		}
	})
	senders.Go(func() {
		rng := rand.New(rand.NewPCG(seed, 13))
		log := filepath.Join(r.folder, "conn.log")
		for n := 0; !ended.Load(); n++ {
			f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
			if err != nil {
				t.Error(err)
				return
			}
			for range 1 + rng.IntN(2000) {
				line := numberedLine(time.Now(), viaFile+filed)
				cut := rng.IntN(len(line)) // a writer writes when its buffer is full
				_, _ = io.WriteString(f, line[:cut])
				_, _ = io.WriteString(f, line[cut:])
				filed++
			}
			_ = f.Close()
			if n%10 == 9 {
				_ = os.Rename(log, fmt.Sprintf("%s.%d", log, n))
			}
			time.Sleep(time.Duration(rng.IntN(60)) * time.Millisecond)
		}
	})
	senders.Go(func() {
		for !ended.Load() {
			c, err := net.DialTimeout("tcp", r.syslog, time.Second)
			if err != nil {
				time.Sleep(50 * time.Millisecond)
				continue
			}
			for !ended.Load() {
				m := "<134>1 2026-10-02T15:04:05Z zeek-1 zeek - - - " + strings.TrimSpace(numberedLine(time.Now(), viaSyslog+sent))
				if _, err := fmt.Fprintf(c, "%d %s", len(m), m); err != nil {
					break
				}
				sent++
				time.Sleep(time.Millisecond)
			}
			_ = c.Close()
		}
	})
	for range rounds {
		r.launch()
		time.Sleep(time.Duration(500+rng.IntN(2500)) * time.Millisecond)
		_ = r.kill(syscall.SIGKILL)
	}
	r.start()
	time.Sleep(time.Second)
	ended.Store(true)
	senders.Wait()
	r.until("every line of the files to be stored", 60*time.Second, func() bool {
		return r.number(fmt.Sprintf("SELECT count() AS n FROM flows WHERE bytes >= %d AND bytes < %d", uint64(viaFile), uint64(viaSyslog))) >= int(filed)
	})
	total := r.settle()
	count := func(from, to uint64) (rows, distinct int) {
		row := r.query(fmt.Sprintf("SELECT count() AS n, uniqExact(bytes) AS d FROM flows WHERE bytes >= %d AND bytes < %d", from, to))[0]
		return int(row["n"].(float64)), int(row["d"].(float64))
	}
	if rows, distinct := count(0, viaFile); rows != int(posted) || distinct != int(posted) {
		t.Errorf("%d lines were posted and acknowledged; %d rows, %d different", posted, rows, distinct)
	}
	if rows, distinct := count(viaFile, viaSyslog); rows != int(filed) || distinct != int(filed) {
		t.Errorf("%d lines stand in files; %d rows, %d different", filed, rows, distinct)
	}
	rows, distinct := count(viaSyslog, 1<<40)
	if rows != distinct || rows > int(sent) || rows == 0 {
		t.Errorf("%d messages were sent; %d rows, %d different", sent, rows, distinct)
	}
	t.Logf("posted %d lines (%d requests sent twice), filed %d, sent %d by syslog of which %d (%.1f%%) are lost", posted, repeated, filed, sent, int(sent)-rows, 100*float64(int(sent)-rows)/float64(sent))
	if n := r.number("SELECT count() AS n FROM flows"); uint64(n) != total.Lines.Read || total.Lines.Rejected != 0 || total.Records.Written != uint64(n) {
		t.Errorf("ClickHouse holds %d flows, the ledger says %+v", n, total)
	}
	r.stop()
}

// TestLogsJudged shows a line of an agent's log on its way: what enforcement did, process and
// identity are stored, and a flow that got through although it should not is a finding.
func TestLogsJudged(t *testing.T) {
	r := newLogRig(t)
	r.start()
	now := time.Now().UTC().Format("2006-01-02T15:04:05.000Z")
	line := func(verdict string, port int) string {
		return fmt.Sprintf(`{"flow":{"time":%q,"verdict":%q,"IP":{"source":"10.50.0.7","destination":"10.20.0.1"},"l4":{"TCP":{"source_port":50000,"destination_port":%d,"flags":{"SYN":true}}},`+
			`"source":{"namespace":"shop","labels":["k8s:io.cilium.k8s.policy.serviceaccount=web"],"pod_name":"web-1"},"destination":{"namespace":"data","pod_name":"db-0"},"node_name":"node-a","traffic_direction":"EGRESS","is_reply":false}}`+"\n", now, verdict, port)
	}
	code, answer := r.post("auto", "", []byte(line("FORWARDED", 443)+line("FORWARDED", 22)+line("DROPPED", 23)))
	if code != 200 || answer["flows"] != 3.0 || answer["format"] != "hubble" {
		t.Fatalf("%d %v", code, answer)
	}
	r.until("the flows", 20*time.Second, func() bool { return r.number("SELECT count() AS n FROM flows") == 3 })
	got := map[string]string{}
	for _, row := range r.query("SELECT service, observed, outcome, src_identity, src_host, dst_host, observer, reporter, source FROM flows ORDER BY service") {
		got[row["service"].(string)] = fmt.Sprint(row["observed"], " ", row["outcome"], " ", row["src_identity"], " ", row["src_host"], " ", row["dst_host"], " ", row["observer"], " ", row["reporter"], " ", row["source"])
	}
	for service, want := range map[string]string{
		"tcp/443": "allow permitted shop/web shop/web-1 data/db-0 node-a client hubble",
		"tcp/22":  "allow escaped shop/web shop/web-1 data/db-0 node-a client hubble",
		"tcp/23":  "deny blocked shop/web shop/web-1 data/db-0 node-a client hubble",
	} {
		if got[service] != want {
			t.Errorf("%s: %s, want %s", service, got[service], want)
		}
	}
	r.until("the finding", 20*time.Second, func() bool { return r.number("SELECT count() AS n FROM findings WHERE service = 'tcp/22'") == 1 })
	r.stop()
}

// TestLogsThroughKafka reads an agent's topic of several partitions with two detectors: its
// flows pass through our own topic, by pair of endpoints, and are stored once; a value that is
// none of its lines is a dead letter.
func TestLogsThroughKafka(t *testing.T) {
	b := broker.Shared(t)
	d := newDeployment(t, []string{b.Addr()}, b.Topic(t, "agents"), crashPolicy)
	theirs := b.CreateTopic(t, "zeek-lines", 3)
	detector := func() *server {
		s := d.role("detect", settings{})
		s.amend("kafka: {linger:", fmt.Sprintf("kafka: {topics: [{topic: %s, format: zeek}], linger:", theirs))
		return s
	}
	one := detector()
	run(t, "kafka", "init", "-c", one.config)
	one.start()
	c := d.client()
	put := func(partition int, value string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if _, err := c.Produce(ctx, theirs, partition, kafka.Message{Value: []byte(value)}); err != nil {
			t.Fatal(err)
		}
	}
	var n uint64
	send := func(values int) {
		t.Helper()
		for i := range values {
			lines := ""
			for range 1 + i%50 {
				lines += numberedLine(time.Now(), n)
				n++
			}
			put(i%3, lines)
		}
	}
	send(60)
	put(1, "nonsense\n")
	put(2, `{"ts":1,"uid":"C","version":2}`) // of another log: no flow, no fault
	other := detector()
	other.start()
	one.until("the detectors to share the work", 60*time.Second, func() bool { return other.partitions() > 0 && one.partitions() > 0 })
	send(60)
	one.until("the flows to be stored", 60*time.Second, func() bool { return one.number("SELECT count() FROM flows") >= int(n) })
	row := one.query("SELECT count() AS n, uniqExact(bytes) AS d, countIf(source = 'zeek') AS z FROM flows")[0]
	if row["n"].(float64) != float64(n) || row["d"].(float64) != float64(n) || row["z"].(float64) != float64(n) {
		t.Errorf("%d lines were sent; stored are %v", n, row)
	}
	if letters := one.letters(); len(letters) != 1 || string(letters[0].Value) != "nonsense\n" || letters[0].Topic != theirs {
		t.Errorf("dead letters %+v", letters)
	}
	other.stop()
	one.stop()
}
