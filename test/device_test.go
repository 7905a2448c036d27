package test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/exporter"
)

// device is an exporter on an address of its own.
type device struct {
	t      testing.TB
	encode *exporter.Exporter
	send   *exporter.Sender
	also   *exporter.Sender // gets the same datagrams; may be nil
}

func newDevice(t testing.TB, source, target string, cfg exporter.Config) *device {
	t.Helper()
	d := &device{t: t}
	var err error
	if d.encode, err = exporter.New(cfg); err != nil {
		t.Fatal(err)
	}
	d.send, err = exporter.NewSender(exporter.SenderConfig{Source: netip.MustParseAddr(source), Target: netip.MustParseAddrPort(target), Rate: 2000})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.send.Close() })
	return d
}

// firewall is a device whose records name the client.
func firewall(t testing.TB, target string) *device {
	return newDevice(t, "127.0.0.2", target, exporter.Config{Protocol: flow.SourceIPFIX, Domain: 4, Biflow: true, BiflowDirection: true, TemplatePackets: 1})
}

func (d *device) export(records ...flow.Record) {
	d.t.Helper()
	ctx := context.Background()
	_, err := d.encode.Export(flow.TimeOf(time.Now()), records, func(b []byte) error {
		if d.also != nil {
			if err := d.also.Send(ctx, b); err != nil {
				return err
			}
		}
		return d.send.Send(ctx, b)
	})
	if err != nil {
		d.t.Fatal(err)
	}
}

// session is a conversation that both ends spoke in and whose client is named.
func session(start time.Time, client, server string, cport, sport uint16) flow.Record {
	return flow.Record{
		Start: flow.TimeOf(start), End: flow.TimeOf(start), Src: flow.MustParseAddr(client), Dst: flow.MustParseAddr(server),
		SrcPort: cport, DstPort: sport, Proto: flow.ProtoTCP, TCPFlags: flow.SYN | flow.ACK | flow.PSH, RevTCPFlags: flow.SYN | flow.ACK | flow.PSH,
		BytesRaw: 900, PacketsRaw: 5, RevBytesRaw: 7000, RevPacketsRaw: 9, BiflowDirection: 1,
		Has: flow.HasStart | flow.HasEnd | flow.HasSrc | flow.HasDst | flow.HasSrcPort | flow.HasDstPort | flow.HasProto | flow.HasTCPFlags |
			flow.HasBytes | flow.HasPackets | flow.HasRevBytes | flow.HasRevPackets | flow.HasRevTCPFlags | flow.HasBiflowDirection,
	}
}

// amend replaces a part of the server's configuration.
func (s *server) amend(old, text string) {
	s.t.Helper()
	raw, err := os.ReadFile(s.config)
	if err != nil {
		s.t.Fatal(err)
	}
	if !strings.Contains(string(raw), old) {
		s.t.Fatalf("the configuration does not say %q:\n%s", old, raw)
	}
	if err := os.WriteFile(s.config, []byte(strings.Replace(string(raw), old, text, 1)), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// metric is the sum over the series of a name that contain all labels, as text.
func (s *server) metric(name string, labels ...string) float64 {
	s.t.Helper()
	var text string
	if err := s.get("/metrics", &text); err != nil {
		s.t.Fatal(err)
	}
	sum := 0.0
next:
	for line := range strings.Lines(text) {
		series, value, ok := strings.Cut(strings.TrimSpace(line), "} ")
		if !ok {
			series, value, ok = strings.Cut(strings.TrimSpace(line), " ")
		}
		if got, _, _ := strings.Cut(series, "{"); !ok || got != name {
			continue
		}
		for _, l := range labels {
			if !strings.Contains(series, l) {
				continue next
			}
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			s.t.Fatal(err)
		}
		sum += v
	}
	return sum
}

// logs is what the service has logged.
func (s *server) logs() string {
	s.t.Helper()
	raw, err := os.ReadFile(s.log.Name())
	if err != nil {
		s.t.Fatal(err)
	}
	return string(raw)
}

// verdicts is reason and policy version of each flow by client port.
func (s *server) verdicts() map[int]string {
	s.t.Helper()
	out := map[int]string{}
	for _, row := range s.query("SELECT client_port, reason, exception FROM flows") {
		out[int(row["client_port"].(float64))] = strings.TrimSpace(fmt.Sprint(row["reason"], " ", row["exception"]))
	}
	return out
}

var positioned = regexp.MustCompile(`[\w.-]+\.yaml:\d+:\d+: `)

// arrived waits until everything that devices sent was received and stored.
func (s *server) arrived(devices ...*device) flow.Account {
	s.t.Helper()
	sent := uint64(0)
	for _, d := range devices {
		sent += d.send.Sent()
	}
	s.until("everything sent to be received", 60*time.Second, func() bool { return s.ledger().Datagrams.Received >= sent })
	return s.settle()
}
