package identity

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/test/part"
)

// kea is a real Kea server in a network namespace; see test/kea/dhcp.
type kea struct {
	t   *testing.T
	dir string
}

// startKea starts a server, or skips the test where that cannot be done.
func startKea(t *testing.T, env ...string) *kea {
	t.Helper()
	if os.Getuid() != 0 {
		part.Missing(t, "network namespaces need root")
	}
	part.Need(t, "iproute2 busybox kea-dhcp4-server", "ip", "busybox", "kea-dhcp4")
	if out, err := exec.Command("ip", "netns", "list").CombinedOutput(); err != nil {
		part.Missing(t, "network namespaces cannot be used here: "+string(out))
	}
	// A socket's path holds 107 bytes, fewer than the name of a test's folder may have.
	dir, err := os.MkdirTemp("", "kea")
	if err != nil {
		t.Fatal(err)
	}
	k := &kea{t, dir}
	t.Cleanup(func() {
		k.run("down")
		os.RemoveAll(dir)
	})
	cmd := exec.Command("../../test/kea/dhcp", "up", dir)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("dhcp up: %v\n%s", err, out)
	}
	return k
}

func (k *kea) run(what string, args ...string) string {
	k.t.Helper()
	out, err := exec.Command("../../test/kea/dhcp", append([]string{what, k.dir}, args...)...).CombinedOutput()
	if err != nil {
		k.t.Fatalf("dhcp %s: %v\n%s", what, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (k *kea) leases() string { return filepath.Join(k.dir, "kea-leases4.csv") }

// await waits until check is content with what was told of the address.
func await(t *testing.T, rec *recorder, addr string, within time.Duration, what string, check func([]flow.Fact) bool) []flow.Fact {
	t.Helper()
	for end := time.Now().Add(within); ; {
		facts := rec.of(addr)
		if check(facts) {
			return facts
		}
		if time.Now().After(end) {
			b, _ := json.MarshalIndent(facts, "", " ")
			t.Fatalf("not within %v: %s; told of %s:\n%s", within, what, addr, b)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestKeaFollowed: two clients hold one address after another at a real server, and a
// third after the second is gone without a word. Each is told with its right borders
// within a second of the server's writing it down (THREATS 14).
func TestKeaFollowed(t *testing.T) {
	if testing.Short() {
		t.Skip("takes three quarters of a minute")
	}
	t.Parallel()
	k := startKea(t, "LIFETIME=20")
	cfg := DefaultDHCPConfig()
	cfg.Name, cfg.Leases, cfg.Every = "office", k.leases(), time.Second
	state := t.TempDir()
	var rec recorder
	follow := func() func() error {
		sources, err := New(Config{DHCP: []DHCPConfig{cfg}}, Options{StateDir: state})
		if err != nil {
			t.Fatal(err)
		}
		return running(t, sources[0], rec.tell)
	}
	stop := follow()

	before := flow.TimeOf(time.Now().Truncate(time.Second))
	addr := k.run("obtain", "alpha", "02:00:00:00:00:0a")
	got := flow.TimeOf(time.Now())
	facts := await(t, &rec, addr, time.Second, "the first client holds it", func(f []flow.Fact) bool { return len(f) == 1 })
	a := facts[0]
	if a.Workload != "alpha" || a.Device != "02:00:00:00:00:0a" || a.Kind != flow.FactLease || a.Since < before || a.Since > got || a.Until != a.Since.Add(20*time.Second) {
		t.Errorf("the first client: %+v", a)
	}

	// A renewal keeps its begin.
	facts = await(t, &rec, addr, 18*time.Second, "the lease is renewed", func(f []flow.Fact) bool { return len(f) == 1 && f[0].Until > a.Until })
	if facts[0].Since != a.Since {
		t.Errorf("renewed, it began at %v and not %v", facts[0].Since, a.Since)
	}

	// Released: that it is over is known within a second.
	released := flow.TimeOf(time.Now())
	k.run("release")
	done := flow.TimeOf(time.Now())
	facts = await(t, &rec, addr, time.Second, "the first client gave it back", func(f []flow.Fact) bool {
		return len(f) == 1 && f[0].Until <= flow.TimeOf(time.Now())
	})
	a = facts[0]
	if a.Until < released || a.Until > done.Add(time.Second) || a.Until.Add(-a.UntilSlack) > done {
		t.Errorf("released between %v and %v, told: until %v, at most %v before", released, done, a.Until, a.UntilSlack)
	}

	// Another client, while nobody follows; what happened is found afterwards.
	if err := stop(); err == nil || t.Context().Err() != nil {
		t.Fatal(err)
	}
	time.Sleep(1100 * time.Millisecond)
	if again := k.run("obtain", "beta", "02:00:00:00:00:0b"); again != addr {
		t.Fatalf("the second client got %s", again)
	}
	rec.take()
	stop = follow()
	facts = await(t, &rec, addr, 2*time.Second, "the second client holds it", func(f []flow.Fact) bool { return len(f) == 2 })
	b := facts[1]
	if b.Workload != "beta" || b.Device != "02:00:00:00:00:0b" || b.Since < released || facts[0].Until != a.Until {
		t.Errorf("the second client: %+v after %+v", b, facts[0])
	}
	if news, _ := rec.take(); len(news) != 1 {
		t.Errorf("after the restart it told %d facts, of which one is new: %+v", len(news), news)
	}

	// Gone without a word: the lease ends when it expires, and a third client comes.
	k.run("leave")
	facts = rec.of(addr)
	expires := facts[1].Until
	time.Sleep(time.Until(expires.Std()) + 2*time.Second)
	k.run("obtain", "gamma", "02:00:00:00:00:0c")
	facts = await(t, &rec, addr, 2*time.Second, "the third client holds it", func(f []flow.Fact) bool { return len(f) == 3 })
	if facts[1].Until > facts[2].Since || facts[1].Until < expires || facts[2].Workload != "gamma" {
		t.Errorf("the third client: %+v after %+v, which expired at %v", facts[2], facts[1], expires)
	}
	if err := stop(); err == nil {
		t.Error("it ended by itself")
	}
}

// TestKeaCommands: the same by lease4-get-page on the control socket.
func TestKeaCommands(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	t.Parallel()
	k := startKea(t, "LIFETIME=60")
	cfg := DefaultDHCPConfig()
	cfg.Name, cfg.Socket, cfg.Every = "office", filepath.Join(k.dir, "kea.sock"), time.Second
	sources, err := New(Config{DHCP: []DHCPConfig{cfg}}, Options{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	var rec recorder
	stop := running(t, sources[0], rec.tell)
	addr := k.run("obtain", "alpha", "02:00:00:00:00:0a")
	facts := await(t, &rec, addr, 3*time.Second, "the first client holds it", func(f []flow.Fact) bool { return len(f) == 1 })
	if f := facts[0]; f.Workload != "alpha" || f.Device != "02:00:00:00:00:0a" || f.Until != f.Since.Add(time.Minute) {
		t.Errorf("the first client: %+v", f)
	}
	released := flow.TimeOf(time.Now())
	k.run("release")
	facts = await(t, &rec, addr, 3*time.Second, "the first client gave it back", func(f []flow.Fact) bool {
		return len(f) == 1 && f[0].Until <= flow.TimeOf(time.Now())
	})
	if f := facts[0]; f.Until.Add(-f.UntilSlack) > flow.TimeOf(time.Now()) || f.Until < released || f.UntilSlack < 100*time.Millisecond || f.UntilSlack > 3*time.Second {
		t.Errorf("released at %v: %+v", released, f)
	}
	k.run("obtain", "beta", "02:00:00:00:00:0b")
	facts = await(t, &rec, addr, 3*time.Second, "the second client holds it", func(f []flow.Fact) bool { return len(f) == 2 })
	if facts[1].Workload != "beta" || facts[0].Until > facts[1].Since.Add(time.Second) {
		t.Errorf("the second client: %+v", facts)
	}
	if err := stop(); err == nil {
		t.Error("it ended by itself")
	}
}

// TestKeaCleanUp: while a real server cleans its lease file up, which moves it, every
// holder is still told, and nobody ends who holds an address.
func TestKeaCleanUp(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	t.Parallel()
	k := startKea(t, "LIFETIME=300", "LFC=2")
	cfg := DefaultDHCPConfig()
	cfg.Name, cfg.Leases, cfg.Every = "office", k.leases(), time.Second
	sources, err := New(Config{DHCP: []DHCPConfig{cfg}}, Options{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	var rec recorder
	stop := running(t, sources[0], rec.tell)
	names := []string{"one", "two", "three", "four"}
	var addr string
	for i, name := range names {
		addr = k.run("obtain", name, "02:00:00:00:00:1"+string(rune('0'+i)))
		await(t, &rec, addr, 2*time.Second, name+" holds it", func(f []flow.Fact) bool { return len(f) == i+1 && f[i].Workload == name })
		time.Sleep(2500 * time.Millisecond)
		if f := rec.of(addr)[i]; f.Until != f.Since.Add(300*time.Second) {
			t.Errorf("while the file was cleaned up %s was told to hold it from %v to %v", name, f.Since, f.Until)
		}
		k.run("release")
		time.Sleep(1100 * time.Millisecond)
	}
	if err := stop(); err == nil {
		t.Error("it ended by itself")
	}
	for i, f := range rec.of(addr) {
		if f.Workload != names[i] || f.Until > f.Since.Add(10*time.Second) {
			t.Errorf("holder %d: %+v", i, f)
		}
	}
	if _, err := os.Stat(k.leases() + ".2"); err != nil {
		t.Errorf("the server cleaned nothing up: %v", err)
	}
}
