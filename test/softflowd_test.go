package test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

const softflowdPolicy = `
postern: v1
segments:
  - {name: workstations, prefixes: [10.50.0.0/16], stage: enforced, default: {in: deny, out: allow}}
  - {name: directory, prefixes: [10.10.0.0/24], stage: enforced, default: {in: deny, out: allow}}
rules:
  - id: directory-services
    action: allow
    from: {segment: workstations}
    to: {segment: directory}
    services: [tcp/445, tcp/135, tcp/49152-65535]
    owner: team
    reason: logon
`

// TestSoftflowd lets the real exporter softflowd watch real packets and export what
// it saw, live, as v5, v9 and IPFIX, to the real service (THREATS 15 among others:
// in bidirectional IPFIX softflowd names the lower address as source).
func TestSoftflowd(t *testing.T) {
	softflowd, err := exec.LookPath("softflowd")
	if err != nil {
		t.Fatalf("softflowd is not installed; `make test` installs it from Debian: %v", err)
	}
	hook := newReceiver(t)
	s := newServer(t, softflowdPolicy, hook.section())
	capture, talks := traffic(t)
	s.start()
	for _, mode := range [][]string{{"-v", "5"}, {"-v", "9"}, {"-v", "10", "-b"}} {
		args := append([]string{"-r", capture, "-n", s.udp, "-d", "-p", filepath.Join(s.dir, "pid"), "-c", "none"}, mode...) // its control socket would block it
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		out, err := exec.CommandContext(ctx, softflowd, args...).CombinedOutput()
		cancel()
		if err != nil {
			t.Fatalf("softflowd %v: %v\n%s", mode, err, out)
		}
	}
	s.until("all flows to arrive", 30*time.Second, func() bool { return s.ledger().Records.Decoded >= uint64(5*len(talks)) })
	total := s.settle()
	if n := total.Datagrams.Rejected.Sum(); n > 0 {
		t.Errorf("%d datagrams rejected", n)
	}
	bytesSent := 0
	for _, talk := range talks {
		bytesSent += talk.bytes
	}
	for _, row := range s.query("SELECT source, count() AS flows, sum(bytes) + sum(rev_bytes) AS bytes FROM flows GROUP BY source ORDER BY source") {
		want := 2 * len(talks) // a record a direction
		if row["source"] == "ipfix" {
			want = len(talks)
		}
		if row["flows"] != float64(want) {
			t.Errorf("%v: %v flows, want %d", row["source"], row["flows"], want)
		}
		if row["bytes"] != float64(bytesSent) {
			t.Errorf("%v: %v bytes, the packets held %d", row["source"], row["bytes"], bytesSent)
		}
	}
	// Whatever the format: the same conversations are violations, and no others.
	want := map[string]bool{}
	for _, talk := range talks {
		if !talk.allowed {
			want[talk.pair()] = true
		}
	}
	for _, source := range []string{"netflow_v5", "netflow_v9", "ipfix"} {
		got := map[string]bool{}
		for _, row := range s.query(fmt.Sprintf(`SELECT DISTINCT least(toString(toIPv4(client)), toString(toIPv4(server))) || ' ' ||
			greatest(toString(toIPv4(client)), toString(toIPv4(server))) AS pair FROM flows WHERE source = '%s' AND outcome = 'escaped'`, source)) {
			got[row["pair"].(string)] = true
		}
		for pair := range want {
			if !got[pair] {
				t.Errorf("%s: %s is no violation", source, pair)
			}
		}
		for pair := range got {
			if !want[pair] {
				t.Errorf("%s: %s is a violation", source, pair)
			}
		}
	}
	// Where the record tells who began, the client is named.
	if n := s.number("SELECT count() AS n FROM flows WHERE server_port = 445 AND oriented != 'open' AND startsWith(toString(toIPv4(client)), '10.50.')"); n == 0 {
		t.Error("no flow to port 445 names its client")
	}
	s.until("the findings to be delivered", 20*time.Second, func() bool { return len(hook.findings(t)) > 0 })
	s.stop()
}

// talk is one conversation of the packets.
type talk struct {
	client, server net.IP
	cport, sport   uint16
	allowed        bool
	bytes          int // of IP packets both ways
}

func (k talk) pair() string {
	a, b := k.client.String(), k.server.String()
	if a > b {
		a, b = b, a
	}
	return a + " " + b
}

// traffic writes a capture of TCP conversations of the last minute.
func traffic(t *testing.T) (string, []talk) {
	t.Helper()
	var talks []talk
	dc := net.IPv4(10, 10, 0, 10).To4()
	for i := range 20 {
		w := net.IPv4(10, 50, 1, byte(10+i)).To4()
		talks = append(talks,
			talk{client: w, server: dc, cport: uint16(50000 + i), sport: 445, allowed: true},
			// The RPC port that the end-point mapper gave out: dynamic at both ends.
			talk{client: w, server: dc, cport: uint16(51000 + i), sport: 49671, allowed: true})
	}
	for i := range 5 {
		a, b := net.IPv4(10, 50, 2, byte(200-i)).To4(), net.IPv4(10, 50, 2, byte(10+i)).To4()
		port := uint16(445)
		if i%2 == 1 {
			port = 62123 // dynamic at both ends, between workstations
		}
		talks = append(talks, talk{client: a, server: b, cport: uint16(52000 + i), sport: port})
	}
	path := filepath.Join(t.TempDir(), "traffic.pcap")
	var buf bytes.Buffer
	w := pcapgo.NewWriter(&buf)
	if err := w.WriteFileHeader(65535, layers.LinkTypeEthernet); err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(-time.Minute)
	for i := range talks {
		k := &talks[i]
		send := func(fromClient bool, flags string, payload int) {
			at = at.Add(3 * time.Millisecond)
			k.bytes += writeTCP(t, w, at, k, fromClient, flags, payload)
		}
		send(true, "S", 0)
		send(false, "SA", 0)
		send(true, "A", 0)
		send(true, "PA", 200+i)
		send(false, "PA", 900+i)
		send(true, "FA", 0)
		send(false, "FA", 0)
		send(true, "A", 0)
	}
	if err := os.WriteFile(path, buf.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, talks
}

// writeTCP writes one packet and gives the length of its IP part.
func writeTCP(t *testing.T, w *pcapgo.Writer, at time.Time, k *talk, fromClient bool, flags string, payload int) int {
	t.Helper()
	ip := layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: k.client, DstIP: k.server}
	tcp := layers.TCP{SrcPort: layers.TCPPort(k.cport), DstPort: layers.TCPPort(k.sport), Seq: 1, Window: 65535}
	if !fromClient {
		ip.SrcIP, ip.DstIP = ip.DstIP, ip.SrcIP
		tcp.SrcPort, tcp.DstPort = tcp.DstPort, tcp.SrcPort
	}
	for _, f := range flags {
		switch f {
		case 'S':
			tcp.SYN = true
		case 'A':
			tcp.ACK = true
		case 'P':
			tcp.PSH = true
		case 'F':
			tcp.FIN = true
		}
	}
	if err := tcp.SetNetworkLayerForChecksum(&ip); err != nil {
		t.Fatal(err)
	}
	eth := layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, EthernetType: layers.EthernetTypeIPv4}
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		&eth, &ip, &tcp, gopacket.Payload(make([]byte, payload)))
	if err != nil {
		t.Fatal(err)
	}
	b := buf.Bytes()
	if err := w.WritePacket(gopacket.CaptureInfo{Timestamp: at, CaptureLength: len(b), Length: len(b)}, b); err != nil {
		t.Fatal(err)
	}
	return len(b) - 14
}
