package identity

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"

	"github.com/postern/postern/flow"
)

// parsed reads a whole file by a parser and gives leases and complaints.
func parsed(t *testing.T, p leaseParser, text string) (out []lease, complaints []string) {
	t.Helper()
	n, err := p.parse([]byte(text), func(l lease) error { out = append(out, l); return nil }, func(err error) { complaints = append(complaints, err.Error()) })
	if err != nil {
		t.Fatal(err)
	}
	if rest := text[n:]; strings.TrimSpace(rest) != "" {
		complaints = append(complaints, "waits: "+rest)
	}
	return out, complaints
}

const keaHeader4 = "address,hwaddr,client_id,valid_lifetime,expire,subnet_id,fqdn_fwd,fqdn_rev,hostname,state,user_context\n"

func TestKeaParser(t *testing.T) {
	addr := flow.MustParseAddr
	for _, c := range []struct {
		name, text string
		want       []lease
		complaints []string
	}{
		// As Kea 2.2.0 wrote them.
		{"given, given back, given to another", keaHeader4 +
			"10.99.0.50,02:00:00:00:00:0a,01:02:00:00:00:00:0a,20,1795284592,1,0,0,alpha,0,\n" +
			"10.99.0.50,02:00:00:00:00:0a,01:02:00:00:00:00:0a,0,1795284572,1,0,0,alpha,0,\n" +
			"10.99.0.50,02:00:00:00:00:0b,01:02:00:00:00:00:0b,20,1795284597,1,0,0,beta,0,\n" +
			"10.99.0.50,02:00:00:00:00:0b,01:02:00:00:00:00:0b,20,1795284612,1,0,0,,2,\n", []lease{
			{addr: addr("10.99.0.50"), device: "02:00:00:00:00:0a", host: "alpha", begin: 1795284572_000, until: 1795284592_000},
			{addr: addr("10.99.0.50"), device: "02:00:00:00:00:0a", host: "alpha", begin: 1795284572_000, until: 1795284572_000, over: true},
			{addr: addr("10.99.0.50"), device: "02:00:00:00:00:0b", host: "beta", begin: 1795284577_000, until: 1795284597_000},
			{addr: addr("10.99.0.50"), device: "02:00:00:00:00:0b", begin: 1795284592_000, until: 1795284612_000, over: true, ended: 1795284612_000},
		}, nil},
		{"the columns of Kea 1.0, without state", "address,hwaddr,client_id,valid_lifetime,expire,subnet_id,fqdn_fwd,fqdn_rev,hostname\n" +
			"192.0.2.7,06:07:08:09:0a:bc,,200,1000,8,1,1,Host.Example.COM.\n",
			[]lease{{addr: addr("192.0.2.7"), device: "06:07:08:09:0a:bc", host: "host.example.com", begin: 800_000, until: 1000_000}}, nil},
		{"the columns of Kea 2.6, in another order", "hwaddr,address,expire,valid_lifetime,client_id,subnet_id,fqdn_fwd,fqdn_rev,hostname,state,user_context,pool_id\n" +
			",192.0.2.7,1000,200,ff:01,8,1,1,a&#x2cb,0,{ \"x\": 1&#x2c \"y\": 2 },0\r\n",
			[]lease{{addr: addr("192.0.2.7"), device: "id:ff:01", host: "a_b", begin: 800_000, until: 1000_000}}, nil},
		{"declined: the address is in use by somebody else", keaHeader4 + "192.0.2.7,,,86400,90000,1,0,0,,1,\n",
			[]lease{{addr: addr("192.0.2.7"), begin: 3600_000, until: 90000_000, over: true, ended: 3600_000}}, nil},
		{"for ever", keaHeader4 + "192.0.2.7,06:07:08:09:0a:bc,,4294967295,4294968295,1,0,0,,0,\n",
			[]lease{{addr: addr("192.0.2.7"), device: "06:07:08:09:0a:bc", begin: 1000_000}}, nil},
		{"DHCPv6: an address and a prefix", "address,duid,valid_lifetime,expire,subnet_id,pref_lifetime,lease_type,iaid,prefix_len,fqdn_fwd,fqdn_rev,hostname,hwaddr,state,user_context,hwtype,hwaddr_source\n" +
			"2001:db8:1::1,00:01:02:03:04:05:06:0a:0b:0c:0d:0e:0f,200,1000,8,100,0,7,128,0,0,h,,0,,,\n" +
			"2001:db8:2::,00:01:02:03:04:05:06:0a:0b:0c:0d:0e:0f,200,1000,8,100,2,7,56,0,0,h,,0,,,\n",
			[]lease{{addr: addr("2001:db8:1::1"), device: "duid:00:01:02:03:04:05:06:0a:0b:0c:0d:0e:0f", host: "h", begin: 800_000, until: 1000_000}}, nil},
		{"bad lines lose no neighbour", keaHeader4 +
			"10.0.0.300,02:00:00:00:00:0a,,20,1000,1,0,0,a,0,\n" +
			"10.0.0.3,02:00:00:00:00:0a,,soon,1000,1,0,0,a,0,\n" +
			"10.0.0.3,02:00:00:00:00:0a,,2000,1000,1,0,0,a,0,\n" +
			"10.0.0.3,02:00:00:00:00:0a,,20,1000,1,0,0,a,0,,,,\n" +
			"10.0.0.3,,,20,1000,1,0,0,a,0,\n" +
			"10.0.0.4,02:00:00:00:00:0b,,20,1000,1,0,0,b,0,\n" +
			"10.0.0.5,02:00:00:00:00",
			[]lease{{addr: addr("10.0.0.4"), device: "02:00:00:00:00:0b", host: "b", begin: 980_000, until: 1000_000}}, []string{
				`f:2: address "10.0.0.300" is none`, `f:3: valid_lifetime "soon" is no number`,
				`f:4: it expires at 1000, after 2000 seconds, and so began before 1970`, `f:5: it has 14 fields, the header has 11`,
				`f:6: it names no hardware address, DUID or client id`, "waits: 10.0.0.5,02:00:00:00:00"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, complaints := parsed(t, &keaParser{file: "f"}, c.text)
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(lease{})); diff != "" {
				t.Errorf("leases (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.complaints, complaints); diff != "" {
				t.Errorf("complaints (-want +got):\n%s", diff)
			}
		})
	}
	if _, err := (&keaParser{file: "f"}).parse([]byte("ip,mac\n"), nil, nil); err == nil || !strings.HasPrefix(err.Error(), "f:1:1: the first line names no column address; it must be") {
		t.Errorf("another file: %v", err)
	}
}

func TestISCParser(t *testing.T) {
	addr := flow.MustParseAddr
	at := func(s string) flow.Time {
		v, err := time.Parse(time.DateTime, s)
		if err != nil {
			t.Fatal(err)
		}
		return flow.TimeOf(v)
	}
	for _, c := range []struct {
		name, text string
		want       []lease
		complaints []string
	}{
		{"version 4", `# The format of this file is documented in the dhcpd.leases(5) manual page.
# This lease file was written by isc-dhcp-4.4.3-P1

# authoring-byte-order entry is generated, DO NOT DELETE
authoring-byte-order little-endian;

server-duid "\000\001\000\001\054\373\021\"\002\000\000\000\000\001";

failover peer "a" state {
  my state normal at 4 2026/11/19 08:00:00;
}
lease 10.0.0.7 {
  starts 4 2026/11/19 08:00:00;
  ends 4 2026/11/19 09:00:00;
  tstp 4 2026/11/19 09:00:00;
  cltt 4 2026/11/19 08:00:00;
  binding state active;
  next binding state free;
  rewind binding state free;
  hardware ethernet 02:00:00:00:00:0A;
  uid "\001\002\000\000\000\000\012";
  set vendor-class-identifier = "udhcp {1.35}; \"x\"";
  client-hostname "Laptop-7.";
  on expiry or release { set x = "}"; }
}
lease 10.0.0.7 {
  starts 4 2026/11/19 08:00:00;
  ends 4 2026/11/19 08:30:15;
  tstp 4 2026/11/19 08:30:15;
  cltt 4 2026/11/19 08:00:00;
  binding state free;
  hardware ethernet 02:00:00:00:00:0a;
}
lease 10.0.0.8 {
  starts epoch 1795075200; # Thu Nov 19 08:00:00 2026
  ends never;
  binding state active;
  uid "\001\002";
}
lease 10.0.0.9 { starts 4 2026/11/19 08:00:00; ends 4 2026/11/19 09:00:00; binding state abandoned; }
`, []lease{
			{addr: addr("10.0.0.7"), device: "02:00:00:00:00:0a", host: "laptop-7", begin: at("2026-11-19 08:00:00"), until: at("2026-11-19 09:00:00")},
			{addr: addr("10.0.0.7"), device: "02:00:00:00:00:0a", begin: at("2026-11-19 08:00:00"), until: at("2026-11-19 08:30:15"), over: true, ended: at("2026-11-19 08:30:15")},
			{addr: addr("10.0.0.8"), device: "id:01:02", begin: 1795075200_000},
			{addr: addr("10.0.0.9"), begin: at("2026-11-19 08:00:00"), until: at("2026-11-19 09:00:00"), over: true},
		}, nil},
		{"DHCPv6", `ia-na "\001\000\000\000\000\001\000\001\054\373\021\"\002\000\000\000\000\012" {
  cltt 4 2026/11/19 08:00:00;
  iaaddr 2001:db8::7 {
    binding state active;
    preferred-life 375;
    max-life 600;
    ends 4 2026/11/19 08:10:00;
  }
  iaaddr 2001:db8::8 {
    binding state expired;
    preferred-life 375;
    max-life 600;
    ends 4 2026/11/19 08:05:00;
  }
}
ia-pd "\001\000\000\000\000\003\000\001" {
  cltt 4 2026/11/19 08:00:00;
  iaprefix 2001:db8:7::/56 { binding state active; ends 4 2026/11/19 08:10:00; }
}
`, []lease{
			{addr: addr("2001:db8::7"), device: "duid:00:01:00:01:2c:fb:11:22:02:00:00:00:00:0a", begin: at("2026-11-19 08:00:00"), until: at("2026-11-19 08:10:00")},
			{addr: addr("2001:db8::8"), device: "duid:00:01:00:01:2c:fb:11:22:02:00:00:00:00:0a", begin: at("2026-11-19 08:00:00"), until: at("2026-11-19 08:05:00"),
				over: true, ended: at("2026-11-19 08:05:00")},
		}, nil},
		{"broken off, and wrong", `lease 10.0.0.1 {
  starts 4 2026/11/19 08:00:00;
  client-hostname "never clo
lease 10.0.0.2 {
  starts 4 2026/11/19 08:00:00;
  ends 4 2026/11/19 09:00:00;
  binding state active;
  hardware ethernet 02:00:00:00:00:0b;
}
lease 10.0.0.3 {
  starts someday;
  binding state active;
}
lease ten { binding state free; }
lease 10.0.0.4 { starts 4 2026/11/19 08:00:00; binding state active; hardware ethernet 02:00:00:00:00:0b; }
lease 10.0.0.5;
lease 10.0.0.6 {
  starts 4 2026/11/19 08`, []lease{
			{addr: addr("10.0.0.2"), device: "02:00:00:00:00:0b", begin: at("2026-11-19 08:00:00"), until: at("2026-11-19 09:00:00")},
		}, []string{
			"f:1: a declaration is broken off", "f:10: starts is no time; it must read WEEKDAY YYYY/MM/DD HH:MM:SS or epoch SECONDS",
			`f:14: "ten" is no address`, "f:15: it has no ends; a lease without end says ends never",
			`f:16: a declaration must read lease ADDRESS { … } or ia-na "ID" { … }`, "waits: lease 10.0.0.6 {\n  starts 4 2026/11/19 08"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, complaints := parsed(t, &iscParser{file: "f"}, c.text)
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(lease{})); diff != "" {
				t.Errorf("leases (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.complaints, complaints); diff != "" {
				t.Errorf("complaints (-want +got):\n%s", diff)
			}
			// The same in pieces, as it is read while the server writes.
			p := &iscParser{file: "f"}
			var again []lease
			var rest []byte
			for _, b := range []byte(c.text) {
				rest = append(rest, b)
				if b != '\n' && b != '}' {
					continue
				}
				n, err := p.parse(rest, func(l lease) error { again = append(again, l); return nil }, func(error) {})
				if err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
			}
			if diff := cmp.Diff(got, again, cmp.AllowUnexported(lease{})); diff != "" {
				t.Errorf("in pieces (-whole +pieces):\n%s", diff)
			}
		})
	}
}

// TestISCReal reads what dhcpd 4.4.3-P1 wrote while one client was given its only address,
// renewed it and gave it back at 18:45:35, and another got it, and vanished.
func TestISCReal(t *testing.T) {
	b, err := os.ReadFile("testdata/dhcpd-4.4.3-P1.leases")
	if err != nil {
		t.Fatal(err)
	}
	h := newHistory(flow.TimeOf(time.Date(2026, 11, 21, 19, 0, 0, 0, time.UTC)))
	leases, complaints := parsed(t, &iscParser{file: "f"}, string(b))
	for _, l := range leases {
		if err := h.add(l); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, c := range h.holders[flow.MustParseAddr("10.98.0.50")] {
		got = append(got, fmt.Sprint(c.Fact.Workload, " ", c.Fact.Device, " ", c.Fact.Since, " ", c.Fact.Until, " ", c.Fact.UntilSlack))
	}
	if diff := cmp.Diff([]string{
		"alpha 02:00:00:00:00:0a 2026-11-21T18:45:16.000Z 2026-11-21T18:45:35.000Z 0s",
		"beta 02:00:00:00:00:0b 2026-11-21T18:45:38.000Z 2026-11-21T18:46:08.000Z 0s",
	}, got); diff != "" || len(complaints) > 0 || len(leases) != 5 {
		t.Errorf("%d leases, %v (-want +got):\n%s", len(leases), complaints, diff)
	}
}

// keaSim is a DHCP server that does random things, and what is then true.
type keaSim struct {
	rng    *rand.Rand
	path   string
	now    int64 // seconds
	holder map[string]*simLease
	truth  map[string][]simLease
	kept   map[string]string // the last line of each address, for the clean-up
}

type simLease struct {
	device, host       string
	begin, heard, ends int64
	over               int64 // 0 while held
}

func (s *keaSim) write(line string) {
	addr, _, _ := strings.Cut(line, ",")
	s.kept[addr] = line
	f, err := os.OpenFile(s.path, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	if info, _ := f.Stat(); info.Size() == 0 {
		_, _ = f.WriteString(keaHeader4)
	}
	_, _ = f.WriteString(line)
}

const simLifetime = 100

func (s *keaSim) step(addr string) {
	h := s.holder[addr]
	if h != nil && h.over == 0 && s.now >= h.ends {
		h.over = h.ends
		s.truth[addr] = append(s.truth[addr], *h)
		if s.rng.IntN(2) == 0 {
			s.write(fmt.Sprintf("%s,%s,,%d,%d,1,0,0,,2,\n", addr, h.device, simLifetime, h.ends))
		}
		s.holder[addr] = nil
		return
	}
	switch what := s.rng.IntN(4); {
	case h == nil && what < 2:
		d := s.rng.IntN(3)
		n := &simLease{device: fmt.Sprintf("02:00:00:00:00:0%d", d), host: fmt.Sprintf("h%d", d), begin: s.now, heard: s.now, ends: s.now + simLifetime}
		s.holder[addr] = n
		s.write(fmt.Sprintf("%s,%s,,%d,%d,1,0,0,%s,0,\n", addr, n.device, simLifetime, n.ends, n.host))
	case h != nil && what == 0: // renewed
		h.heard, h.ends = s.now, s.now+simLifetime
		s.write(fmt.Sprintf("%s,%s,,%d,%d,1,0,0,%s,0,\n", addr, h.device, simLifetime, h.ends, h.host))
	case h != nil && what == 1: // given back
		h.over = s.now
		s.truth[addr] = append(s.truth[addr], *h)
		s.write(fmt.Sprintf("%s,%s,,0,%d,1,0,0,%s,0,\n", addr, h.device, h.heard, h.host))
		s.holder[addr] = nil
	}
}

// clean does what kea-lfc does: the last line of each lease, without those removed.
func (s *keaSim) clean() {
	var b strings.Builder
	b.WriteString(keaHeader4)
	for addr, line := range s.kept {
		if strings.Split(line, ",")[3] == "0" {
			delete(s.kept, addr)
			continue
		}
		b.WriteString(line)
	}
	if err := errors.Join(os.WriteFile(s.path+".2", []byte(b.String()), 0o600), os.Remove(s.path), os.WriteFile(s.path, []byte(keaHeader4), 0o600)); err != nil {
		panic(err)
	}
}

// TestKeaRandom follows random servers with clean-ups, restarts and crashes. Whatever the
// luck, no address is ever credited to a client that did not hold it then, outside what
// is said to be uncertain (THREATS 14); and while it looks often, who holds one is known.
func TestKeaRandom(t *testing.T) {
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 9))
		dir := t.TempDir()
		s := &keaSim{rng: rng, path: filepath.Join(dir, "kea-leases4.csv"), now: 1_000_000, holder: map[string]*simLease{}, truth: map[string][]simLease{}, kept: map[string]string{}}
		s.write("10.0.0.9,02:00:00:00:00:09,,4294967295,4295967295,1,0,0,fixed,0,\n")
		var rec recorder
		clock := func() flow.Time { return flow.Time(s.now)*1000 + 500 }
		newOne := func() *leaseFile {
			f := newKeaFile(newLeases("kea", time.Minute, 0, dir, clock, quiet(), nil), s.path)
			if err := f.load(); err != nil {
				t.Fatal(err)
			}
			return f
		}
		f := newOne()
		follow := func() {
			if err := f.follow(t.Context(), rec.tell); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if err := f.saveIfDue(false); err != nil {
				t.Fatal(err)
			}
		}
		follow()
		defer func() { f.close() }()
		addrs := []string{"10.0.0.1", "10.0.0.2"}
		for range 150 {
			s.now += int64(1 + rng.IntN(20))
			for _, a := range addrs {
				s.step(a)
			}
			switch rng.IntN(12) {
			case 0:
				s.clean()
			case 1: // stopped and started
				if err := f.saveIfDue(true); err != nil {
					t.Fatal(err)
				}
				f.close()
				f = newOne()
			case 2: // killed
				f.close()
				f = newOne()
			case 3: // does not look for a while
				continue
			case 4: // killed in the middle of telling
				ctx, cancel := context.WithCancel(t.Context())
				rec.fail = func() error { cancel(); return errors.New("dead") }
				_ = f.follow(ctx, rec.tell)
				cancel()
				rec.fail = nil
				f.close()
				f = newOne()
			}
			follow()
			for _, a := range addrs {
				h := s.holder[a]
				var known []flow.Fact
				for _, c := range rec.of(a) {
					if now := clock(); c.Since <= now && (c.Until == 0 || c.Until > now) {
						known = append(known, c)
					}
				}
				if h == nil && len(known) != 0 || h != nil && h.ends*1000 > int64(clock()) && (len(known) == 0 || slices.ContainsFunc(known, func(c flow.Fact) bool { return c.Workload != h.host })) {
					t.Fatalf("seed %d at %d: %s is held by %+v, known %+v, of\n%+v; table %+v", seed, s.now, a, h, known, rec.of(a)[max(0, len(rec.of(a))-3):], f.table[flow.MustParseAddr(a)])
				}
			}
		}
		follow()
		for _, a := range addrs {
			if h := s.holder[a]; h != nil {
				s.truth[a] = append(s.truth[a], *h)
			}
			for _, c := range rec.of(a) {
				for _, h := range s.truth[a] {
					if h.host == c.Workload {
						continue
					}
					// Nobody else's lease may overlap with what is told for certain.
					begin, end := h.begin*1000, h.ends*1000
					if h.over != 0 {
						end = min(end, h.over*1000)
					}
					sure := c.Until.Add(-c.UntilSlack)
					if int64(c.Since) < end && int64(sure) > begin {
						t.Fatalf("seed %d: %s told of %s from %d to %d (%v), but %s had it from %d to %d", seed, c.Workload, a, c.Since, c.Until, c.UntilSlack, h.host, begin, end)
					}
				}
			}
		}
		if fixed := rec.of("10.0.0.9"); len(fixed) != 1 || fixed[0].Until != 0 || fixed[0].Since != 1_000_000_000 {
			t.Fatalf("seed %d: the lease without end: %+v", seed, fixed)
		}
	}
}

// TestLeaseFileLive follows files as they are written: half a line waits, a truncated
// file and a replaced one are read again, and what is appended is told within a second.
func TestLeaseFileLive(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "dhcpd.leases")
	lease := func(addr, mac, name, starts, ends string) string {
		return fmt.Sprintf("lease %s {\n  starts %s;\n  ends %s;\n  binding state active;\n  hardware ethernet %s;\n  client-hostname \"%s\";\n}\n", addr, starts, ends, mac, name)
	}
	const s1, e1, s2, e2 = "4 2026/11/19 08:00:00", "4 2036/11/19 09:00:00", "4 2026/11/19 08:30:00", "4 2036/11/19 09:30:00"
	write := func(flag int, text string) {
		t.Helper()
		f, err := os.OpenFile(path, flag|os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	first := lease("10.0.0.1", "02:00:00:00:00:01", "one", s1, e1)
	write(os.O_TRUNC, first)
	cfg := DefaultDHCPConfig()
	cfg.Name, cfg.Server, cfg.Leases, cfg.Every = "isc", "isc", path, time.Second
	sources, err := New(Config{DHCP: []DHCPConfig{cfg}}, Options{StateDir: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	var rec recorder
	stop := running(t, sources[0], rec.tell)
	held := func(n int, name string) func([]flow.Fact) bool {
		return func(f []flow.Fact) bool {
			return len(f) == n && f[n-1].Workload == name && f[n-1].Until > flow.TimeOf(time.Now())
		}
	}
	await(t, &rec, "10.0.0.1", time.Second, "read at the start", held(1, "one"))

	second := lease("10.0.0.1", "02:00:00:00:00:02", "two", s2, e2)
	write(os.O_APPEND, second[:len(second)/2])
	time.Sleep(700 * time.Millisecond)
	if f := rec.of("10.0.0.1"); len(f) != 1 {
		t.Errorf("half an entry was read: %+v", f)
	}
	write(os.O_APPEND, second[len(second)/2:])
	facts := await(t, &rec, "10.0.0.1", time.Second, "appended", held(2, "two"))
	if facts[0].Until != facts[1].Since || facts[0].UntilSlack != 0 {
		t.Errorf("the one before ended at %v, the next began at %v", facts[0].Until, facts[1].Since)
	}

	// The server writes its file anew and keeps the one before.
	third := lease("10.0.0.3", "02:00:00:00:00:03", "three", s1, e1)
	write(os.O_APPEND, third)
	if err := errors.Join(os.WriteFile(path+".new", []byte("# written anew\n"+second+third), 0o600), os.Rename(path, path+"~"), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
	await(t, &rec, "10.0.0.3", time.Second, "in the new file", held(1, "three"))

	// Truncated in place, and then the same size again with something else in it.
	os.Remove(path + "~")
	write(os.O_TRUNC, second+strings.Replace(third, `"three"`, `"drei"`, 1)+"#####\n")
	await(t, &rec, "10.0.0.3", 2*time.Second, "written anew in place", func(f []flow.Fact) bool { return len(f) >= 1 && f[len(f)-1].Workload == "drei" })

	// A lease that is no longer in the file at all is over.
	write(os.O_TRUNC, third)
	facts = await(t, &rec, "10.0.0.1", 2*time.Second, "gone from the file", func(f []flow.Fact) bool {
		return len(f) == 2 && f[1].Until <= flow.TimeOf(time.Now())
	})
	if facts[1].UntilSlack <= 0 || facts[1].UntilSlack > 5*time.Second {
		t.Errorf("gone from the file: %+v", facts[1])
	}
	if err := stop(); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}

	// A file that is away is a failure, not the end of every lease.
	os.Remove(path)
	rec.take()
	stop = running(t, sources[0], rec.tell)
	time.Sleep(300 * time.Millisecond)
	if facts, beats := rec.take(); len(facts)+len(beats) > 0 {
		t.Errorf("without the file it told %v and %v", facts, beats)
	}
	if err := stop(); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestKeaAnswers: what Kea answers by socket and by its agent, whole and not.
func TestKeaAnswers(t *testing.T) {
	lease := func(i int) string {
		return fmt.Sprintf(`{"client-id":"01:02","cltt":1000,"fqdn-fwd":false,"fqdn-rev":false,"hostname":"h%d","hw-address":"02:00:00:00:00:%02x","ip-address":"10.0.0.%d","state":0,"subnet-id":1,"valid-lft":4294967295}`, i, i, i)
	}
	pages := map[string]string{
		"start":    `[{"result":0,"text":"2 IPv4 lease(s) found.","arguments":{"count":2,"leases":[` + lease(1) + `,` + lease(2) + `]}}]`,
		"10.0.0.2": `[{"result":0,"text":"2 IPv4 lease(s) found.","arguments":{"count":2,"leases":[` + lease(3) + `,` + lease(4) + `]}}]`,
		"10.0.0.4": `[{"result":3,"text":"0 IPv4 lease(s) found.","arguments":{"count":0,"leases":[]}}]`,
	}
	var auth string
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var c struct {
			Command   string
			Service   []string
			Arguments struct {
				From  string
				Limit int
			}
		}
		auth = r.Header.Get("Authorization")
		if err := json.NewDecoder(r.Body).Decode(&c); err != nil || c.Command != "lease4-get-page" || c.Service[0] != "dhcp4" || c.Arguments.Limit != 2 {
			t.Errorf("asked %+v (%v)", c, err)
		}
		fmt.Fprint(w, pages[c.Arguments.From])
	}))
	defer server.Close()
	cfg := DefaultDHCPConfig()
	cfg.Name, cfg.URL, cfg.User, cfg.Password, cfg.TLS.CA = "kea", server.URL+"/", "postern", "env:PW", caFile(t, server)
	src, err := newDHCP(cfg, func(ref string) (string, error) { return "secret of " + ref, nil }, "", func() flow.Time { return 2_000_000 }, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	k := src.(*keaCommands)
	k.page = 2
	var rec recorder
	if err := k.poll(t.Context(), rec.tell); err != nil {
		t.Fatal(err)
	}
	if open := rec.open(); len(open) != 4 || open[3].Workload != "h4" || open[3].Since != 1_000_000 {
		t.Errorf("leases %+v", open)
	}
	if auth != "Basic cG9zdGVybjpzZWNyZXQgb2YgZW52OlBX" {
		t.Errorf("Authorization: %s", auth)
	}
	for _, c := range []struct{ answer, want string }{
		{`[{"result":2,"text":"'lease4-get-page' command not supported."}]`, "libdhcp_lease_cmds.so"},
		{`{"result":1,"text":"limit must be > 0"}`, `"limit must be > 0"`},
		{`{"hello":1}`, "no result"},
		{`[]`, "no list of one"},
		{`<html>`, "no JSON"},
		{pages["start"], "no address to go on from"}, // the same page again and again
	} {
		rec.take()
		k.ask = func(context.Context, []byte) ([]byte, error) { return []byte(c.answer), nil }
		err := k.poll(t.Context(), rec.tell)
		facts, beats := rec.take()
		if err == nil || !strings.Contains(err.Error(), c.want) || len(facts)+len(beats) > 0 {
			t.Errorf("%s: %v, told %v %v", c.answer, err, facts, beats)
		}
	}
}

// TestKeaRenewedBetweenPolls: a client seen in two reads one after the other goes on with
// its lease; after a long time without a read that is not taken for granted.
func TestKeaRenewedBetweenPolls(t *testing.T) {
	now, cltt := flow.Time(1_000_000_000), int64(999_990)
	cfg := DefaultDHCPConfig()
	cfg.Name, cfg.Socket = "kea", "/nowhere"
	src, err := newDHCP(cfg, nil, "", func() flow.Time { return now }, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	k := src.(*keaCommands)
	k.ask = func(context.Context, []byte) ([]byte, error) {
		return fmt.Appendf(nil, `{"result":0,"arguments":{"leases":[{"ip-address":"10.0.0.1","hw-address":"02:00:00:00:00:01","hostname":"a","cltt":%d,"state":0,"valid-lft":3600}]}}`, cltt), nil
	}
	var rec recorder
	poll := func(after time.Duration, renewed int64) []flow.Fact {
		t.Helper()
		now, cltt = now.Add(after), cltt+renewed
		if err := k.poll(t.Context(), rec.tell); err != nil {
			t.Fatal(err)
		}
		return rec.of("10.0.0.1")
	}
	poll(0, 0)
	if f := poll(15*time.Second, 20); len(f) != 1 || f[0].Since != 999_990_000 || f[0].Until != 1_003_610_000 || f[0].UntilSlack != 0 {
		t.Errorf("renewed between two reads: %+v", f)
	}
	f := poll(30*time.Minute, 1500)
	if len(f) != 2 || f[1].Since != 1_001_510_000 || f[0].Until != f[1].Since || f[0].Until.Add(-f[0].UntilSlack) != 1_000_015_000 {
		t.Errorf("after half an hour: %+v", f)
	}
}

// TestKeaSocket: a server that accepts and says nothing is given up.
func TestKeaSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "sock")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	begin := time.Now()
	if _, err := keaSocket(path, 100*time.Millisecond)(t.Context(), []byte("{}")); err == nil || time.Since(begin) > 5*time.Second {
		t.Errorf("after %v: %v", time.Since(begin), err)
	}
}

func TestCleanHost(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "Laptop-7.example.net.": "laptop-7.example.net", "a b": "a_b", "x\r\nSet-Cookie: y": "xset-cookie__y",
		"\x1b[31mred": "_31mred", "bad\xffutf": "bad_utf", "..": "", "ÄÖ": "äö", "<script>": "_script_",
		strings.Repeat("é", 200): strings.Repeat("é", 126),
	} {
		if got := cleanHost(in); got != want {
			t.Errorf("cleanHost(%q) = %q, want %q", in, got, want)
		}
	}
}

func fuzzLeases(f *testing.F, parser func() leaseParser) {
	f.Fuzz(func(t *testing.T, b []byte) {
		var whole []lease
		h := newHistory(1795284600_000)
		rest := func(b []byte, p leaseParser, entry func(lease) error) []byte {
			n, err := p.parse(b, entry, func(error) {})
			if n < 0 || n > len(b) {
				t.Fatalf("took %d of %d bytes", n, len(b))
			}
			if err != nil {
				return nil
			}
			return b[n:]
		}
		left := rest(b, parser(), func(l lease) error {
			if l.addr.IsZero() && !bytes.Contains(b, []byte("::")) && !bytes.Contains(b, []byte("0.0.0.0")) {
				t.Fatalf("a lease without address: %+v", l)
			}
			whole = append(whole, l)
			return h.add(l)
		})
		for addr, list := range h.holders {
			for i, c := range list {
				if c.Fact.Until != 0 && c.Fact.Until < c.Fact.Since {
					t.Fatalf("%v: ends before it begins: %+v", addr, c)
				}
				if i > 0 && list[i-1].Fact.Until == 0 {
					t.Fatalf("%v: two hold it at once: %+v", addr, list)
				}
			}
		}
		// In two pieces it is the same.
		if len(b) == 0 || left == nil {
			return
		}
		p, cut := parser(), int(b[0])*len(b)/256
		var pieces []lease
		entry := func(l lease) error { pieces = append(pieces, l); return nil }
		after := rest(b[:cut], p, entry)
		rest(append(slices.Clone(after), b[cut:]...), p, entry)
		if diff := cmp.Diff(whole, pieces, cmp.AllowUnexported(lease{})); diff != "" {
			t.Fatalf("in two pieces, cut at %d (-whole +pieces):\n%s", cut, diff)
		}
	})
}

func FuzzKeaLeases(f *testing.F) {
	f.Add([]byte(keaHeader4 + "10.99.0.50,02:00:00:00:00:0a,01:02:00:00:00:00:0a,20,1795284592,1,0,0,alpha,0,\n10.99.0.50,02:00:00:00:00:0a,,0,1795284572,1,0,0,a&#x2cb,0,\n"))
	f.Add([]byte("address,duid,valid_lifetime,expire,lease_type,hostname,state\n2001:db8::1,00:01,20,1000,0,h,2\n2001:db8::1,00:02,20,1000,0,h,0\n"))
	fuzzLeases(f, func() leaseParser { return &keaParser{file: "f"} })
}

func FuzzISCLeases(f *testing.F) {
	f.Add([]byte("lease 10.0.0.7 {\n starts 4 2026/11/19 08:00:00;\n ends 4 2026/11/19 09:00:00;\n binding state active;\n hardware ethernet 02:00:00:00:00:0A;\n uid \"\\001\\002\";\n}\nlease 10.0.0.7 { ends epoch 1795075200; binding state free; }\n"))
	f.Add([]byte("ia-na \"\\001\\000\\000\\000\\000\\001\" {\n cltt epoch 1795075200;\n iaaddr 2001:db8::7 {\n binding state active;\n ends never;\n }\n}\nlease \"x\n"))
	fuzzLeases(f, func() leaseParser { return &iscParser{file: "f"} })
}

// keaState follows a lease file of Kea's with state in dir, as Run does.
func keaState(t *testing.T, dir, path string) *leaseFile {
	t.Helper()
	f := newKeaFile(newLeases("kea", time.Minute, 0, dir, func() flow.Time { return 1_000_500_000 }, quiet(), nil), path)
	if err := f.load(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.close)
	return f
}

const keaHeader = "address,hwaddr,client_id,valid_lifetime,expire,subnet_id,fqdn_fwd,fqdn_rev,hostname,state,user_context\n"

// keaRow is a lease of ten hours of the client n.
func keaRow(n int) string {
	return fmt.Sprintf("10.0.0.%d,02:00:00:00:00:%02d,,36000,1036000,1,0,0,h%d,0,\n", n, n, n)
}

// TestLeasesTorn: a crash may leave the last line of the journal without its end; what is
// written after it is found again.
func TestLeasesTorn(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "kea-leases4.csv")
	var rec recorder
	text := keaHeader
	for n := 1; n <= 3; n++ {
		text += keaRow(n)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		f := keaState(t, dir, path)
		if want := []int{0, 0, 2}[n-1]; len(f.table) != want {
			t.Errorf("start %d: the table is %v; %d were written whole", n, f.table, want)
		}
		if err := f.follow(t.Context(), rec.tell); err != nil {
			t.Fatal(err)
		}
		f.close()
		if n > 1 {
			continue
		}
		journal := filepath.Join(dir, "kea.leases.journal")
		b, err := os.ReadFile(journal)
		if err == nil {
			err = os.WriteFile(journal, bytes.TrimSuffix(b, []byte("\n")), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestLeasesUntold: what was being told when the process died is told by the next one that
// can, also where one in between was stopped before it could read anything.
func TestLeasesUntold(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "kea-leases4.csv")
	if err := os.WriteFile(path, []byte(keaHeader+keaRow(1)), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	dead := recorder{fail: func() error { cancel(); return errors.New("dead") }}
	f := keaState(t, dir, path)
	if err := f.follow(ctx, dead.tell); err == nil || len(dead.all) != 1 {
		t.Fatalf("%v, told %+v", err, dead.all)
	}
	f.close()

	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	var rec recorder
	f = keaState(t, dir, path)
	stop := running(t, f, rec.tell)
	time.Sleep(100 * time.Millisecond)
	if err := stop(); !errors.Is(err, context.Canceled) || len(rec.all) != 0 {
		t.Fatalf("%v, told %+v", err, rec.all)
	}
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	if err := keaState(t, dir, path).follow(t.Context(), rec.tell); err != nil || len(rec.all) != 1 || rec.all[0].Workload != "h1" {
		t.Errorf("%v, told %+v", err, rec.all)
	}
}

// TestLeasesPast: leases that ended long ago and were told then are not told again each time
// that the server writes its file anew.
func TestLeasesPast(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "kea-leases4.csv")
	row := func(n, ends int) string {
		return fmt.Sprintf("10.0.0.%d,02:00:00:00:00:%02d,,3600,%d,1,0,0,h%d,0,\n", n, n, ends, n)
	}
	write := func(text string) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path+".new", []byte(keaHeader+text), 0o600), os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
	}
	now := flow.Time(1_000_000_000)
	var rec recorder
	f := newKeaFile(newLeases("kea", time.Minute, 0, dir, func() flow.Time { return now }, quiet(), nil), path)
	if err := f.load(); err != nil {
		t.Fatal(err)
	}
	defer f.close()
	follow := func(what string, want ...string) {
		t.Helper()
		if err := errors.Join(f.follow(t.Context(), rec.tell), f.saveIfDue(true)); err != nil {
			t.Fatal(err)
		}
		facts, _ := rec.take()
		var got []string
		for _, f := range facts {
			got = append(got, f.Workload)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: told of %q, want %q", what, got, want)
		}
	}
	old := row(1, 900_000) + row(2, 980_000) + row(3, 1_003_000)
	write(old)
	follow("at first", "h1", "h2", "h3")
	write("\n" + old)
	follow("written anew")
	now += 60_000
	write(old + row(4, 1_003_600) + row(5, 900_000))
	follow("one is new, and one is of a file that was not there before", "h4")
	now += 24 * 3_600_000
	write(row(4, 1_003_600))
	follow("the old ones are gone from the file", "h3")
}

// TestLeaseFileBroken: a file that cannot be read is tried again with growing pauses, however
// much happens in its folder.
func TestLeaseFileBroken(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "kea-leases4.csv")
	if err := os.WriteFile(path, []byte("no header\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := newKeaFile(newLeases("kea", time.Minute, 0, "", wallClock, quiet(), nil), path)
	var rec recorder
	stop := running(t, f, rec.tell)
	for range 75 {
		if err := os.WriteFile(filepath.Join(dir, "busy"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	_ = stop()
	var reads dto.Metric
	if err := f.met.reads.Write(&reads); err != nil {
		t.Fatal(err)
	}
	if n := reads.Counter.GetValue(); n < 2 || n > 5 {
		t.Errorf("it was read %v times in a second and a half", n)
	}
}
