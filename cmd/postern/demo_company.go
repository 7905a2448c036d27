package main

import (
	"embed"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/postern/postern/flow"
)

// The company of the demo: its policy, the traffic it makes, and what of that
// traffic is misuse. Times are relative to the start of the demo, so the traffic
// is always that of the last half hour, and of the week before (demo_week.go).

//go:embed demopolicy
var demoPolicy embed.FS

// writeDemoPolicy renders the company's policy into dir. withBackup says whether
// the exception of the backup server is (still) in the files.
func writeDemoPolicy(dir string, start time.Time, withBackup bool) error {
	at := func(d time.Duration) string { return start.Add(d).UTC().Format(time.RFC3339) }
	funcs := template.FuncMap{
		"ago": func(s string) (string, error) { d, err := time.ParseDuration(s); return at(-d), err },
		"in":  func(s string) (string, error) { d, err := time.ParseDuration(s); return at(d), err },
	}
	return fs.WalkDir(demoPolicy, "demopolicy", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := demoPolicy.ReadFile(path)
		if err != nil {
			return err
		}
		t, err := template.New(path).Funcs(funcs).Parse(string(raw))
		if err != nil {
			return err
		}
		return replaceFile(filepath.Join(dir, filepath.Base(path)), func(w io.Writer) error {
			return t.Execute(w, struct{ WithBackup bool }{withBackup})
		})
	})
}

func replaceFile(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := write(f); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// conversation is one client talking to one server, as the generator thinks of it.
type conversation struct {
	start, end     time.Duration // from the start of the demo; negative is before
	client, server string
	proto          uint8
	cport, sport   uint16
	bytes, replies uint64 // bytes asked and answered; no replies is a lone attempt
	refused        bool   // the answer is a reset
	event          uint8  // what the firewall did (IPFIX 233), 0 where a switch saw it
}

// company draws the traffic. Same seed, same traffic.
type company struct {
	rng   *rand.Rand
	all   []conversation
	port  uint16
	desks []string // the workstations there are
}

func newCompany(seed uint64) *company {
	c := &company{rng: rand.New(rand.NewPCG(seed, 0x706f737465726e)), port: 49200}
	c.desks = []string{"10.50.1.23", "10.50.1.77", "10.50.2.14", "10.50.3.8", "10.50.4.4", "10.50.5.31"} // of whom more is to be told
	for len(c.desks) < 60 {
		a := "10.50." + strconv.Itoa(1+c.rng.IntN(8)) + "." + strconv.Itoa(100+c.rng.IntN(100))
		if !slices.Contains(c.desks, a) {
			c.desks = append(c.desks, a)
		}
	}
	return c
}

// talk adds n conversations of a client with a server over the last half hour.
func (c *company) talk(n int, client, server string, proto uint8, sport uint16) {
	for range n {
		start := -time.Duration(1+c.rng.IntN(29*60)) * time.Second
		length := time.Duration(c.rng.IntN(20_000)) * time.Millisecond
		if start+length > 0 {
			length = 0
		}
		c.add(conversation{start: start, end: start + length, client: client, server: server, proto: proto, sport: sport,
			bytes: uint64(400 + c.rng.IntN(40_000)), replies: uint64(300 + c.rng.IntN(400_000))})
	}
}

func (c *company) add(v conversation) {
	if v.cport == 0 && (v.proto == flow.ProtoTCP || v.proto == flow.ProtoUDP) {
		c.port++
		if c.port > 65000 {
			c.port = 49200
		}
		v.cport = c.port
	}
	c.all = append(c.all, v)
}

func (c *company) workstation() string {
	return c.desks[c.rng.IntN(len(c.desks))]
}

const (
	tcp = flow.ProtoTCP
	udp = flow.ProtoUDP
)

// everyday is what must stay silent, in the order of size.
func (c *company) everyday() {
	for range 160 {
		w := c.workstation()
		c.talk(2, w, "10.10.0.10", udp, 53)
		c.talk(1, w, "10.10.0.11", tcp, 88)
		c.talk(1, w, "10.10.0.10", tcp, 389)
		c.talk(1, w, "10.10.0.10", tcp, 135)
		c.talk(1, w, "10.10.0.10", tcp, 49671) // the RPC port that the end-point mapper gave out: dynamic at both ends
		c.talk(2, w, "10.10.1.20", tcp, 445)
		c.talk(3, w, "203.0.113."+strconv.Itoa(1+c.rng.IntN(250)), tcp, 443)
		c.talk(1, w, "10.30.0.10", tcp, 443)
		c.talk(1, w, "10.80.0."+strconv.Itoa(10+c.rng.IntN(40)), tcp, 9100)
	}
	c.talk(200, "10.30.0.10", "10.20.0.11", tcp, 443)
	c.talk(80, "10.30.0.10", "10.20.0.12", tcp, 443)
	c.talk(40, "2001:db8:30::10", "2001:db8:20::11", tcp, 443)
	c.talk(150, "10.30.0.10", "10.30.0.20", tcp, 5432)
	c.talk(30, "10.10.0.10", "10.10.0.11", tcp, 389)
	c.talk(12, "10.40.0.21", "10.30.0.10", tcp, 8443)
	c.talk(12, "10.40.0.22", "10.30.0.10", tcp, 8443)
	c.talk(9, "10.40.0.21", "10.30.0.20", tcp, 5432) // EX-2077, as approved
	c.talk(7, "10.40.0.22", "10.10.1.20", tcp, 445)  // EX-2051 is valid; EX-2050 beside it has expired
	c.talk(6, "10.70.0.5", "10.10.1.20", tcp, 445)   // EX-2100, while it is still in the files
	c.talk(3, "10.50.9.9", "10.80.0.12", tcp, 22)    // denied by a staged rule: counted, not told
	c.talk(25, "10.90.0.7", "198.51.100.9", tcp, 443)
	for _, admin := range []string{"10.50.9.9", "10.50.9.10"} { // administrators on their usual round
		c.talk(2, admin, files, tcp, 3389)
		c.talk(1, admin, "10.30.0.10", tcp, 22)
		c.talk(1, admin, "10.30.0.20", tcp, 22)
	}
	c.talk(2, "10.40.0.21", "10.90.0.21", tcp, 22)
	c.talk(2, "10.40.0.22", "10.90.0.24", tcp, 22)
	c.backups(-29*time.Minute, 4*time.Minute)
	c.scan(-28*time.Minute, 20*time.Minute) // a week after the last
	for range 40 {                          // refused by the firewall, as it should be
		start := -time.Duration(60+c.rng.IntN(1500)) * time.Second
		c.add(conversation{start: start, end: start, client: "10.60.0.9",
			server: "10.20.0.12", proto: tcp, sport: 22, bytes: 60, event: 3})
	}
	for range 12 { // a lone knock that nobody answered
		s := -time.Duration(60+c.rng.IntN(1500)) * time.Second
		c.add(conversation{start: s, end: s, client: c.workstation(), server: c.workstation(), proto: tcp, sport: 3389, bytes: 60})
	}
}

// planted is one misuse that the demo must find, and nothing else.
type planted struct {
	what      string // for the table, if it is missed
	kind      string // type of finding
	client    string
	server    string
	service   string
	exception string
}

func (p planted) key() string {
	switch p.kind {
	case flow.FindingFirstSeen: // one a host and day, whomever it reached
		p.server, p.service = "", ""
	case flow.FindingChain, flow.FindingPivot: // a way, from its first host to its last
		p.service = ""
	}
	return strings.Join([]string{p.kind, p.client, p.server, p.service, p.exception}, "|")
}

// misuse adds what must be found before the exception of the backup server is
// deleted from the files, and says what that is.
func (c *company) misuse() []planted {
	c.talk(4, "10.60.0.3", "10.20.0.11", tcp, 443)
	c.talk(2, "10.40.0.21", "10.30.0.20", tcp, 22)
	c.talk(3, "10.40.0.22", "10.30.0.20", tcp, 5432)
	c.talk(1, "10.40.0.21", "10.30.0.10", tcp, 5432)
	c.add(conversation{start: -25 * time.Minute, end: -3 * time.Minute, client: "10.50.9.9", server: "10.10.0.10",
		proto: tcp, sport: 3389, bytes: 2_400_000, replies: 61_000_000})
	c.talk(3, "10.50.1.23", "10.50.1.77", tcp, 445)
	c.talk(1, "10.50.1.23", "10.50.2.14", tcp, 3389)
	c.talk(2, "10.50.3.8", "10.20.0.11", tcp, 443)
	// From a desk to the vault in three steps: each is permitted by a rule, nobody ever went so.
	c.at(-24*time.Minute, "10.50.5.31", wiki, 22)
	c.at(-18*time.Minute, wiki, "10.30.0.11", 22)
	c.at(-12*time.Minute, "10.30.0.11", "10.20.0.11", 22)
	// In by an exception that is valid, and on by a rule that permits it: nobody approved both.
	c.at(-21*time.Minute, "10.60.0.4", "10.30.0.50", 22)
	c.at(-14*time.Minute, "10.30.0.50", "10.30.0.20", 22)
	return []planted{
		{"an expired exception still in use", flow.FindingExpired, "10.60.0.3", "10.20.0.11", "tcp/443", "EX-2041"},
		{"an exception used on another port", flow.FindingOutOfScope, "10.40.0.21", "10.30.0.20", "tcp/22", "EX-2077"},
		{"an exception used by another host", flow.FindingOutOfScope, "10.40.0.22", "10.30.0.20", "tcp/5432", "EX-2077"},
		{"an exception used against another target", flow.FindingOutOfScope, "10.40.0.21", "10.30.0.10", "tcp/5432", "EX-2077"},
		{"a session that outlives its exception", flow.FindingOutlived, "10.50.9.9", "10.10.0.10", "tcp/3389", "EX-2090"},
		{"file sharing between workstations", flow.FindingDenied, "10.50.1.23", "10.50.1.77", "tcp/445", ""},
		{"remote desktop between workstations", flow.FindingDenied, "10.50.1.23", "10.50.2.14", "tcp/3389", ""},
		{"a workstation in the vault", flow.FindingDenied, "10.50.3.8", "10.20.0.11", "tcp/443", ""},
		{"a way from a desk to the vault", flow.FindingChain, "10.50.5.31", "10.20.0.11", "tcp/22", ""},
		{"on from where the vendor's exception ends", flow.FindingPivot, "10.60.0.4", "10.30.0.20", "tcp/22", "EX-2140"},
		// Its steps by themselves.
		{"from a desk to the wiki", flow.FindingFirstSeen, "10.50.5.31", wiki, "tcp/22", ""},
		{"from the wiki to the payment application", flow.FindingFirstSeen, wiki, "10.30.0.11", "tcp/22", ""},
		{"from the payment application to the vault", flow.FindingFirstSeen, "10.30.0.11", "10.20.0.11", "tcp/22", ""},
		{"from where the vendor came in to the database", flow.FindingFirstSeen, "10.30.0.50", "10.30.0.20", "tcp/22", ""},
		// What policy forbids is unusual here as well.
		{"a workstation administers others", flow.FindingFirstSeen, "10.50.1.23", "10.50.1.77", "tcp/445", ""},
		{"an administrator at the directory", flow.FindingFirstSeen, "10.50.9.9", "10.10.0.10", "tcp/3389", "EX-2090"},
		{"a pipeline administers the database", flow.FindingFirstSeen, "10.40.0.21", "10.30.0.20", "tcp/22", "EX-2077"},
		{"another pipeline at the database", flow.FindingFirstSeen, "10.40.0.22", "10.30.0.20", "tcp/5432", "EX-2077"},
	}
}

// afterDeletion adds the use of the exception that is no longer in the files.
func (c *company) afterDeletion(now time.Duration) []planted {
	for i := range 3 {
		s := now + time.Duration(i)*300*time.Millisecond
		c.add(conversation{start: s, end: s + 200*time.Millisecond, client: "10.70.0.5", server: "10.10.1.20", proto: tcp, sport: 445,
			bytes: 90_000, replies: 7_000_000})
	}
	return []planted{{"an exception deleted from the files and still used", flow.FindingExpired, "10.70.0.5", "10.10.1.20", "tcp/445", "EX-2100"}}
}

// records tells the conversations as their observers saw them: the switch as two
// unidirectional halves each, the firewall (for the segments behind it) as one
// biflow. Lone attempts are one half.
func (c *company) records(start time.Time) (byswitch, byfirewall []flow.Record) {
	for _, v := range c.all {
		r := flow.Record{
			Start: flow.TimeOf(start.Add(v.start)), End: flow.TimeOf(start.Add(v.end)),
			Src: flow.MustParseAddr(v.client), Dst: flow.MustParseAddr(v.server),
			SrcPort: v.cport, DstPort: v.sport, Proto: v.proto,
			BytesRaw: v.bytes, PacketsRaw: 1 + v.bytes/900,
			Has: flow.HasStart | flow.HasEnd | flow.HasSrc | flow.HasDst | flow.HasSrcPort | flow.HasDstPort | flow.HasProto |
				flow.HasBytes | flow.HasPackets | flow.HasTCPFlags,
		}
		answered := v.replies > 0
		if v.proto == tcp {
			r.TCPFlags = flow.SYN
			if answered && !v.refused {
				r.TCPFlags |= flow.ACK | flow.PSH | flow.FIN
			}
		}
		if v.event != 0 || behindFirewall(v.client) || behindFirewall(v.server) {
			if answered {
				r.RevBytesRaw, r.RevPacketsRaw, r.RevTCPFlags = v.replies, 1+v.replies/1200, r.TCPFlags
				r.Has |= flow.HasRevBytes | flow.HasRevPackets | flow.HasRevTCPFlags
			}
			r.BiflowDirection, r.FirewallEvent = 1, v.event
			r.Has |= flow.HasBiflowDirection
			if v.event != 0 {
				r.Has |= flow.HasFirewallEvent
			}
			byfirewall = append(byfirewall, r)
			continue
		}
		byswitch = append(byswitch, r)
		if answered {
			r.Src, r.Dst, r.SrcPort, r.DstPort = r.Dst, r.Src, r.DstPort, r.SrcPort
			r.BytesRaw, r.PacketsRaw = v.replies, 1+v.replies/1200
			if v.refused {
				r.TCPFlags = flow.RST | flow.ACK
			}
			r.Start++ // the answer comes a millisecond after the question
			if r.End < r.Start {
				r.End = r.Start
			}
			byswitch = append(byswitch, r)
		}
	}
	return byswitch, byfirewall
}

// behindFirewall says whether an address is in a zone that the firewall guards.
func behindFirewall(addr string) bool {
	for _, p := range []string{"10.20.0.", "10.60.0.", "2001:db8:20:"} {
		if strings.HasPrefix(addr, p) {
			return true
		}
	}
	return false
}
