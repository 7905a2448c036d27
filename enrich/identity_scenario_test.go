package enrich

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/policy"
)

// clock gives the time hh:mm on the day of all scenarios.
func clock(hhmm string) flow.Time {
	t, err := time.Parse("2006-01-02 15:04", "2026-03-02 "+hhmm)
	if err != nil {
		panic(err)
	}
	return flow.TimeOf(t)
}

var (
	tenFive = flow.MustParseAddr("10.0.0.5")
	tenSix  = flow.MustParseAddr("10.0.0.6")
)

func lease(since, until, known, device string) flow.Fact {
	f := flow.Fact{Source: "dhcp", Kind: flow.FactLease, Addr: tenFive, Since: clock(since), Known: clock(known), Device: device, Workload: device + ".corp"}
	if until != "" {
		f.Until = clock(until)
	}
	return f
}

func logon(since, until, known, user string) flow.Fact {
	f := flow.Fact{Source: "logons", Kind: flow.FactSession, Addr: tenFive, Since: clock(since), Known: clock(known), User: user, Session: user}
	if until != "" {
		f.Until = clock(until)
	}
	return f
}

func memberOf(since, known, user string, groups ...string) flow.Fact {
	return flow.Fact{Source: "ad", Kind: flow.FactDirectory, Subject: user, Since: clock(since), Known: clock(known), Groups: groups}
}

// who gives what is asked for as "workload user groups why".
func who(s *Identity, addr flow.Addr, at, cut string) string {
	v := s.View()
	defer v.Close()
	var a Answer
	v.Lookup(addr, clock(at), clock(cut), &a)
	t := texts(s.names, &a, false)
	return strings.TrimSpace(fmt.Sprint(t.Workload, " ", t.Identity, " ", t.Groups, " ", t.Why))
}

func TestIdentityScenarios(t *testing.T) {
	beat := func(source, at string, after time.Duration) flow.Heartbeat {
		return flow.Heartbeat{Source: source, At: clock(at), StaleAfter: after}
	}
	type ask struct{ at, cut, want string }
	slack := func(f flow.Fact, since, until time.Duration) flow.Fact {
		f.SinceSlack, f.UntilSlack = since, until
		return f
	}
	for name, c := range map[string]struct {
		facts []flow.Fact
		beats []flow.Heartbeat
		asks  []ask
	}{
		"reuse after a lease (THREATS 14)": {
			facts: []flow.Fact{lease("09:00", "11:00", "09:00", "laptop-a"), lease("11:30", "13:30", "11:30", "laptop-b"), logon("09:05", "", "09:05", "alice"),
				memberOf("08:00", "08:00", "alice", "admins")},
			asks: []ask{
				{"08:59", "10:00", "[] [gap]"},
				{"08:59", "08:59", "[] [unknown]"},
				{"09:00", "09:01", "laptop-a.corp  [] []"},
				{"10:00", "10:01", "laptop-a.corp alice [admins] []"},
				{"11:00", "11:01", "[] [gap]"}, // half-open; alice never logged off, yet she is gone
				{"11:29", "11:31", "[] [gap]"},
				{"11:30", "11:31", "laptop-b.corp  [] []"},
				{"13:30", "13:31", "[] [gap]"},
			},
		},
		"a renewed lease keeps its session": {
			facts: []flow.Fact{lease("09:00", "11:00", "09:00", "laptop-a"), lease("10:00", "12:00", "10:00", "laptop-a"), logon("09:05", "", "09:05", "alice")},
			asks:  []ask{{"10:59", "11:00", "laptop-a.corp alice [] []"}, {"11:30", "11:31", "laptop-a.corp alice [] []"}, {"12:00", "12:01", "[] [gap]"}},
		},
		"an address passed on within the minute of a logon (THREATS 14)": {
			facts: []flow.Fact{lease("09:00", "09:06", "09:00", "laptop-a"), lease("09:06", "", "09:06", "laptop-b"), logon("09:05", "", "09:05", "alice")},
			asks:  []ask{{"09:05", "09:06", "laptop-a.corp alice [] []"}, {"09:06", "09:07", "laptop-b.corp  [] []"}, {"10:00", "10:01", "laptop-b.corp  [] []"}},
		},
		"a logon stamped before its lease": {
			facts: []flow.Fact{lease("09:00", "09:10", "09:00", "laptop-a"), logon("09:15", "", "09:15", "bob"), lease("09:16", "09:30", "09:16", "laptop-b"), lease("09:30", "", "09:30", "laptop-c")},
			asks:  []ask{{"09:15", "09:15", "bob [] []"}, {"09:16", "09:17", "laptop-b.corp bob [] []"}, {"09:30", "09:31", "laptop-c.corp  [] []"}},
		},
		"a logon within a poll in which the lease changed": {
			facts: []flow.Fact{slack(lease("09:00", "09:10", "09:00", "laptop-a"), 0, 5*time.Minute), slack(lease("09:10", "", "09:10", "laptop-b"), 5*time.Minute, 0), logon("09:08", "", "09:08", "bob")},
			asks:  []ask{{"09:20", "09:21", "laptop-b.corp  [] [border]"}},
		},
		"an end told late rewrites nothing": {
			facts: []flow.Fact{lease("09:00", "17:00", "09:00", "laptop-a"), lease("09:00", "10:00", "12:00", "laptop-a"), lease("10:30", "", "12:00", "laptop-b")},
			asks: []ask{
				{"11:00", "11:01", "laptop-a.corp  [] []"}, // that is what was known
				{"11:00", "12:00", "laptop-b.corp  [] []"},
				{"10:15", "12:00", "[] [gap]"},
				{"10:15", "11:59", "laptop-a.corp  [] []"},
			},
		},
		"a stale source": {
			facts: []flow.Fact{lease("09:00", "17:00", "09:00", "laptop-a")},
			beats: []flow.Heartbeat{beat("dhcp", "09:00", 10*time.Minute), beat("dhcp", "10:00", 10*time.Minute)},
			asks: []ask{
				{"09:10", "09:11", "laptop-a.corp  [] []"},
				{"09:11", "09:12", "[] [stale]"},
				{"09:11", "10:00", "laptop-a.corp  [] []"}, // the next reading says that nothing changed
				{"10:30", "10:31", "[] [stale]"},
			},
		},
		"a border known by polling": {
			facts: []flow.Fact{slack(lease("09:00", "11:00", "09:00", "laptop-a"), 0, 5*time.Minute), slack(lease("11:00", "", "11:00", "laptop-b"), 5*time.Minute, 0)},
			asks:  []ask{{"10:54", "11:05", "laptop-a.corp  [] []"}, {"10:55", "11:05", "[] [border]"}, {"11:00", "11:05", "laptop-b.corp  [] []"}},
		},
		"several users": {
			facts: []flow.Fact{lease("08:00", "", "08:00", "jump"), logon("09:00", "12:00", "09:00", "alice"), logon("10:00", "11:00", "10:00", `CORP\bob`),
				logon("10:15", "", "10:15", "JUMP$"), logon("10:15", "", "10:15", `NT AUTHORITY\SYSTEM`)},
			asks: []ask{{"09:30", "09:31", "jump.corp alice [] []"}, {"10:30", "10:31", "jump.corp  [] [ambiguous]"}, {"11:30", "11:31", "jump.corp alice [] []"},
				{"12:30", "12:31", "jump.corp  [] []"}},
		},
		"a group joined later": {
			facts: []flow.Fact{logon("09:00", "", "09:00", "alice"), memberOf("08:00", "08:00", "alice", "staff"), memberOf("10:00", "10:01", "alice", "admins", "staff")},
			asks: []ask{{"09:59", "10:30", "alice [staff] []"}, {"10:00", "10:00", "alice [staff] []"}, {"10:00", "10:01", "alice [admins staff] []"},
				{"11:00", "11:01", "alice [admins staff] []"}},
		},
		"sources that disagree": {
			facts: []flow.Fact{lease("09:00", "", "09:00", "laptop-a"),
				{Source: "cmdb", Kind: flow.FactStatic, Addr: tenFive, Known: clock("08:00"), Workload: "printer", User: "carol"},
				logon("10:00", "", "10:00", "alice")},
			asks: []ask{{"08:30", "08:31", "printer carol [] []"}, {"09:30", "09:31", "laptop-a.corp carol [] [disagree]"}, {"10:30", "10:31", "laptop-a.corp alice [] [disagree]"}},
		},
		"an account where users are in doubt": {
			facts: []flow.Fact{{Source: "pods", Kind: flow.FactLease, Addr: tenFive, Since: clock("09:00"), Known: clock("09:00"), Workload: "pay", Account: "svc-pay"},
				slack(logon("09:30", "", "09:30", "alice"), 5*time.Minute, 0)},
			asks: []ask{{"09:10", "09:11", "pay svc-pay [] []"}, {"09:26", "09:31", "pay  [] [border]"}, {"09:30", "09:31", "pay alice [] []"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := newTestIdentity(t, nil)
			s.Take(c.facts, flow.Heartbeat{})
			for _, b := range c.beats {
				s.Take(nil, b)
			}
			for _, a := range c.asks {
				want := a.want
				if got := strings.TrimSpace(who(s, tenFive, a.at, a.cut)); got != want {
					t.Errorf("at %s as known at %s: %q, want %q", a.at, a.cut, got, want)
				}
			}
			if got := who(s, tenSix, "10:00", "10:01"); got != "[] [unknown]" {
				t.Errorf("of an address nobody speaks of: %q", got)
			}
		})
	}
}

func TestIdentityResolve(t *testing.T) {
	s, names := newTestIdentity(t, testDomainConfig)
	ad := memberOf("08:00", "08:00", "bob", "admins")
	ad.Posture, ad.Disabled = "managed", true
	of := logon("09:00", "", "09:00", "alice")
	of.Groups = []string{"vpn"}
	s.Take([]flow.Fact{lease("08:00", "", "08:00", "jump"), of, logon("10:00", "", "10:00", "bob"), ad, memberOf("08:00", "08:00", "alice", "staff")}, flow.Heartbeat{})
	v := s.View()
	defer v.Close()
	var a Answer
	for _, c := range []struct {
		at, user string
		want     oracleAnswer
	}{
		{"09:30", `corp.example\BOB`, oracleAnswer{Workload: "jump.corp", Device: "jump", User: "bob", Identity: "bob", Posture: "managed", Groups: []string{"admins"},
			Source: "dhcp", GroupSource: "ad", Staleness: -1, Why: []string{"disagree"}, Confidence: 100, Disabled: true}},
		{"10:30", "bob@corp.example.com", oracleAnswer{Workload: "jump.corp", Device: "jump", User: "bob", Identity: "bob", Posture: "managed", Groups: []string{"admins"},
			Source: "dhcp", GroupSource: "ad", Staleness: -1, Confidence: 100, Disabled: true}},
		{"09:30", "Alice", oracleAnswer{Workload: "jump.corp", Device: "jump", User: "alice", Identity: "alice", Groups: []string{"staff", "vpn"},
			Source: "dhcp", UserSource: "logons", GroupSource: "ad", Staleness: -1, Confidence: 100}},
		{"09:30", "JUMP$", oracleAnswer{Workload: "jump.corp", Device: "jump", User: "alice", Identity: "alice", Groups: []string{"staff", "vpn"},
			Source: "dhcp", UserSource: "logons", GroupSource: "ad", Staleness: -1, Confidence: 100}},
		{"09:30", "dave", oracleAnswer{Workload: "jump.corp", Device: "jump", User: "dave", Identity: "dave",
			Source: "dhcp", Staleness: -1, Why: []string{"disagree"}, GroupsWhy: []string{"unknown"}, Confidence: 100}},
	} {
		v.Lookup(tenFive, clock(c.at), clock(c.at), &a)
		v.Resolve(names.Intern(c.user), clock(c.at), clock(c.at), &a)
		if d := gocmp.Diff(c.want, texts(names, &a, false)); d != "" {
			t.Errorf("%s at %s (-want +got):\n%s", c.user, c.at, d)
		}
	}
	var p policy.Party
	a.Fill(&p)
	if p.Identity != a.Identity || p.Groups != a.Groups {
		t.Errorf("filled %+v from %+v", p, a)
	}
}

// TestIdentityNamedGroups: whoever is in very many groups is in those that policy names.
func TestIdentityNamedGroups(t *testing.T) {
	s, _ := newTestIdentity(t, nil)
	many := memberOf("08:00", "08:00", "alice")
	for i := range 40 {
		many.Groups = append(many.Groups, fmt.Sprintf("g%02d", i))
	}
	s.Take([]flow.Fact{logon("09:00", "", "09:00", "alice"), many}, flow.Heartbeat{})
	ask := func() (a Answer) {
		v := s.View()
		defer v.Close()
		v.Lookup(tenFive, clock("10:00"), clock("10:00"), &a)
		return a
	}
	if a := ask(); !a.MoreGroups || s.names.Text(a.Groups[7]) != "g07" {
		t.Errorf("without policy: %+v", texts(s.names, &a, false))
	}
	s.NameGroups([]string{"g33", "g39", "other"})
	if a := ask(); a.MoreGroups || s.names.Text(a.Groups[0]) != "g33" || s.names.Text(a.Groups[1]) != "g39" || s.names.Text(a.Groups[2]) != "g00" {
		t.Errorf("policy names g33 and g39: %+v", texts(s.names, &a, false))
	}
	s.NameGroups(many.Groups[:9])
	if a := ask(); !a.MoreGroups || s.names.Text(a.Groups[7]) != "g07" {
		t.Errorf("policy names more than fit: %+v", texts(s.names, &a, false))
	}
}

// TestIdentityCap: what no longer fits is answered "full", never with somebody else, and
// what ended longest ago goes first.
func TestIdentityCap(t *testing.T) {
	reg := prometheus.NewRegistry()
	cfg := DefaultIdentityConfig()
	cfg.MaxFacts = 64
	names := flow.NewNames(0)
	s, err := NewIdentity(cfg, names, reg)
	if err != nil {
		t.Fatal(err)
	}
	static := flow.Fact{Source: "cmdb", Kind: flow.FactStatic, Addr: tenFive, Known: clock("00:00"), Workload: "old"}
	s.Take([]flow.Fact{static}, flow.Heartbeat{})
	for i := range 200 { // leases of five minutes, one after the other
		since := clock("01:00") + flow.Time(i*300_000)
		s.Take([]flow.Fact{{Source: "dhcp", Kind: flow.FactLease, Addr: tenFive, Since: since, Until: since + 300_000, Known: since, Workload: fmt.Sprint("w", i)}}, flow.Heartbeat{})
	}
	v := s.View()
	full := 0
	for i := range 200 {
		var a Answer
		at := clock("01:00") + flow.Time(i*300_000) + 1000
		v.Lookup(tenFive, at, clock("23:59"), &a)
		switch w := names.Text(a.Workload); {
		case w == fmt.Sprint("w", i) && a.Why == WhyDisagree:
		case w == "" && a.Why == WhyFull:
			if full != i {
				t.Fatalf("lease %d is dropped and one before it is not", i)
			}
			full++
		default:
			t.Fatalf("lease %d: workload %q, %v", i, w, a.Why.Texts())
		}
	}
	v.Close()
	if full < 200-64 || full > 200-50 || s.facts > 64 {
		t.Errorf("%d of 200 leases dropped, %d facts held; at most 64 may be", full, s.facts)
	}
	if n := testutil.ToFloat64(s.m.evicted); int(n) != full {
		t.Errorf("%v evictions counted, %d seen", n, full)
	}

	// Facts that never ended cannot go: then new ones are refused, and their time is full.
	for i := range 100 {
		s.Take([]flow.Fact{{Source: "pods", Kind: flow.FactLease, Addr: flow.AddrFrom4(uint32(1000 + i)), Since: clock("12:00"), Known: clock("12:00"), Workload: "pod"}}, flow.Heartbeat{})
	}
	if n := testutil.ToFloat64(s.m.took[tookFull]); n == 0 || s.facts > 64 {
		t.Errorf("%v facts refused, %d held", n, s.facts)
	}
	if got := who(s, flow.AddrFrom4(1099), "13:00", "13:01"); got != "[] [full]" {
		t.Errorf("an address whose fact was refused: %q", got)
	}
	// An end that no longer fits must not leave the previous owner in place.
	s.Take([]flow.Fact{{Source: "pods", Kind: flow.FactLease, Addr: flow.AddrFrom4(1000), Since: clock("12:00"), Until: clock("14:00"), Known: clock("14:00"), Workload: "pod"}}, flow.Heartbeat{})
	if got := who(s, flow.AddrFrom4(1000), "15:00", "15:01"); got != "[] [full]" {
		t.Errorf("after an end that did not fit: %q", got)
	}
	b, err := s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	again, _ := newTestIdentity(t, func(c *IdentityConfig) { c.MaxFacts = 64 })
	if err := again.Restore(b); err != nil {
		t.Fatal(err)
	}
	for _, addr := range []flow.Addr{tenFive, flow.AddrFrom4(1000), flow.AddrFrom4(1001), flow.AddrFrom4(1099)} {
		for _, at := range []string{"00:30", "02:00", "12:30", "17:00", "23:00"} {
			if a, b := who(s, addr, at, "23:59"), who(again, addr, at, "23:59"); a != b {
				t.Errorf("%v at %s: %q, restored %q", addr, at, a, b)
			}
		}
	}
}

// TestIdentityCapDirectory: when the last word of a directory goes, what it said before
// does not come back.
func TestIdentityCapDirectory(t *testing.T) {
	s, _ := newTestIdentity(t, func(c *IdentityConfig) { c.MaxFacts = 10 })
	left := memberOf("09:00", "09:00", "alice", "staff")
	left.Until = clock("10:00")
	s.Take([]flow.Fact{memberOf("08:00", "08:00", "alice", "admins"), left, logon("07:00", "", "07:00", "alice")}, flow.Heartbeat{})
	for _, c := range []struct{ at, want string }{{"08:30", "alice [admins] []"}, {"09:30", "alice [staff] []"}, {"11:00", "alice [] []"}} {
		if got := who(s, tenFive, c.at, "12:00"); got != c.want {
			t.Errorf("at %s: %q, want %q", c.at, got, c.want)
		}
	}
	for i := range 10 {
		s.Take([]flow.Fact{{Source: "pods", Kind: flow.FactLease, Addr: flow.AddrFrom4(uint32(1000 + i)), Since: clock("12:00"), Known: clock("12:00"), Workload: "pod"}}, flow.Heartbeat{})
	}
	if s.subject(s.names.Intern("alice")) != nil {
		t.Fatal("the directory's facts are still held")
	}
	for _, at := range []string{"08:30", "09:30", "11:00"} {
		if got := who(s, tenFive, at, "12:00"); got != "alice [] []" {
			t.Errorf("at %s: %q", at, got)
		}
	}
}

// TestIdentityOneAddress: one address cannot take all the room, nor all the time.
func TestIdentityOneAddress(t *testing.T) {
	s, _ := newTestIdentity(t, nil)
	s.perHolder = 100
	for i := range 1000 {
		since := clock("01:00") + flow.Time(i*1000)
		s.Take([]flow.Fact{{Source: "vpn", Kind: flow.FactSession, Addr: tenFive, Since: since, Until: since + 60_000, Known: since, User: fmt.Sprint("u", i)}}, flow.Heartbeat{})
	}
	if n := len(s.places.holders[0].past.versions); n > 100 {
		t.Errorf("%d facts of one address; at most 100 may be", n)
	}
	if got := who(s, tenFive, "01:02", "23:00"); got != "[] [full]" {
		t.Errorf("of what was dropped: %q", got)
	}
	if got := who(s, tenFive, "01:17", "23:00"); got != "[] [ambiguous]" {
		t.Errorf("of what was kept: %q", got)
	}
}

func TestIdentityHeartbeatsForgotten(t *testing.T) {
	s, _ := newTestIdentity(t, nil)
	s.beatsLimit = 8
	s.Take([]flow.Fact{lease("01:00", "", "01:00", "laptop-a")}, flow.Heartbeat{})
	for i := range 20 {
		s.Take(nil, flow.Heartbeat{Source: "dhcp", At: clock("01:00") + flow.Time(i*60_000), StaleAfter: 5 * time.Minute})
	}
	if got := who(s, tenFive, "01:03", "01:04"); got != "[] [stale]" {
		t.Errorf("as of a heartbeat that was dropped: %q", got)
	}
	if got := who(s, tenFive, "01:18", "01:19"); got != "laptop-a.corp  [] []" {
		t.Errorf("as of one that is there: %q", got)
	}
}

func TestIdentityExplain(t *testing.T) {
	s, _ := newTestIdentity(t, nil)
	s.Take([]flow.Fact{lease("09:00", "11:00", "09:00", "laptop-a"), lease("11:30", "13:30", "11:30", "laptop-b"), logon("09:05", "", "09:05", "alice"),
		logon("11:35", "", "11:35", "bob"), logon("11:35", "12:00", "12:05", "bob"), memberOf("08:00", "08:00", "bob", "staff"), memberOf("10:00", "10:00", "bob", "admins")},
		flow.Heartbeat{Source: "dhcp", At: clock("11:40"), StaleAfter: time.Hour})
	e := s.Explain(tenFive, clock("11:45"), clock("11:46"))
	var got []string
	for _, c := range append(e.Facts, e.Subject...) {
		got = append(got, fmt.Sprint(c.Source, " ", c.Device+c.User+strings.Join(c.Groups, "+"), ": ", c.Counts, ", ", c.Age))
	}
	want := []string{"dhcp laptop-a: ended, 5m0s", "logons alice: its lease ended, 0s", "dhcp laptop-b: counts, 5m0s", "logons bob: counts, 0s",
		"logons bob: known later, 0s", "ad staff: followed by a later one, 0s", "ad admins: counts, 0s"}
	if d := gocmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if s.names.Text(e.Answer.Identity) != "bob" || e.Answer.Staleness != 300_000 {
		t.Errorf("answer %+v", texts(s.names, &e.Answer, false))
	}
}

func TestIdentityInvalidFacts(t *testing.T) {
	s, _ := newTestIdentity(t, nil)
	good := lease("09:00", "11:00", "09:00", "laptop-a")
	for name, change := range map[string]func(f *flow.Fact){
		"no source":        func(f *flow.Fact) { f.Source = "" },
		"no address":       func(f *flow.Fact) { f.Addr = flow.Addr{} },
		"no kind":          func(f *flow.Fact) { f.Kind = 0 },
		"not stamped":      func(f *flow.Fact) { f.Known = 0 },
		"time beyond time": func(f *flow.Fact) { f.Since = 1 << 60 },
		"before 1970":      func(f *flow.Fact) { f.Since = -1 },
		"no subject":       func(f *flow.Fact) { f.Kind = flow.FactDirectory },
		"the system":       func(f *flow.Fact) { f.Kind, f.Subject = flow.FactDirectory, "SYSTEM" },
	} {
		f := good
		change(&f)
		before := testutil.ToFloat64(s.m.took[tookInvalid])
		s.Take([]flow.Fact{f}, flow.Heartbeat{})
		if testutil.ToFloat64(s.m.took[tookInvalid]) != before+1 || s.facts != 0 {
			t.Errorf("%s: taken in", name)
		}
	}
}

func TestIdentityConfig(t *testing.T) {
	cfg := DefaultIdentityConfig()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(c *IdentityConfig){
		"hold ":      func(c *IdentityConfig) { c.Hold = 2 * time.Hour },
		"retention ": func(c *IdentityConfig) { c.Retention = time.Minute },
		"maxFacts ":  func(c *IdentityConfig) { c.MaxFacts = 1 << 24 },
		"order ":     func(c *IdentityConfig) { c.Order = []string{"a", "a"} },
		"domains ":   func(c *IdentityConfig) { c.Domains = map[string]string{"CORP": ""} },
	} {
		cfg := DefaultIdentityConfig()
		change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// TestIdentityBatch: many lookups at once answer as one by one do, and neither allocates.
func TestIdentityBatch(t *testing.T) {
	s := smallCompany(t, 64, 12)
	v := s.View()
	defer v.Close()
	var qs []Question
	for i := range 300 {
		at := clock("01:00") + flow.Time(i*97_001)
		qs = append(qs, Question{Addr: flow.AddrFrom4(0x0a000000 + uint32(i%70)), At: at, Cut: at + flow.Time(i%3*40_000) - 20_000})
	}
	as := make([]Answer, len(qs))
	v.LookupAll(qs, as)
	for i, q := range qs {
		var a Answer
		v.Lookup(q.Addr, q.At, q.Cut, &a)
		if a != as[i] {
			t.Errorf("%+v: one by one %+v, all at once %+v", q, texts(s.names, &a, false), texts(s.names, &as[i], false))
		}
	}
	if n := testing.AllocsPerRun(20, func() {
		v.LookupAll(qs, as)
		for i := range qs {
			v.Lookup(qs[i].Addr, qs[i].At, qs[i].Cut-60_000, &as[i])
			v.Resolve(as[i].User, qs[i].At, qs[i].Cut, &as[i])
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// smallCompany makes addresses with leases one after the other and sessions.
func smallCompany(t testing.TB, addrs, leases int) *Identity {
	s, _ := newTestIdentity(t, nil)
	s.Take([]flow.Fact{memberOf("00:00", "00:00", "u1", "staff"), memberOf("02:00", "02:00", "u1", "admins", "staff"), memberOf("00:00", "00:00", "u2", "staff")},
		flow.Heartbeat{Source: "ad", At: clock("02:00"), StaleAfter: 4 * time.Hour})
	for i := range addrs {
		for n := range leases {
			addr, since := flow.AddrFrom4(0x0a000000+uint32(i)), clock("01:00")+flow.Time(n*1_800_000)
			s.Take([]flow.Fact{{Source: "dhcp", Kind: flow.FactLease, Addr: addr, Since: since, Until: since + 1_700_000, UntilSlack: 30 * time.Second, Known: since + 1000, Device: fmt.Sprint("d", n)},
				{Source: "logons", Kind: flow.FactSession, Addr: addr, Since: since + 60_000, Known: since + 61_000, User: fmt.Sprint("u", (i+n)%4)},
				{Source: "vpn", Kind: flow.FactSession, Addr: addr, Since: since + 90_000, Until: since + 900_000, Known: since + 91_000, User: fmt.Sprint("u", (i+n/2)%4), Groups: []string{"vpn"}}},
				flow.Heartbeat{Source: "dhcp", At: since, StaleAfter: 20 * time.Minute})
		}
	}
	return s
}

func FuzzIdentityRestore(f *testing.F) {
	b, err := smallCompany(f, 2, 2).Snapshot()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	s, _ := newTestIdentity(f, nil)
	s.Take([]flow.Fact{lease("09:00", "11:00", "09:00", "laptop-a"), logon("09:05", "", "09:05", "alice"), memberOf("08:00", "08:00", "alice", "a", "b")},
		flow.Heartbeat{Source: "dhcp", At: clock("09:00"), StaleAfter: time.Minute})
	if b, err = s.Snapshot(); err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(identityMagic))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, _ := newTestIdentity(t, nil)
		if err := s.Restore(b); err != nil {
			if got, err := s.Snapshot(); err != nil || len(got) > 64 {
				t.Fatalf("after an error the state is %d bytes (%v)", len(got), err)
			}
			return
		}
		// What was read is a state like any other: it answers, takes facts and comes out again.
		for _, at := range []string{"00:00", "09:30", "12:00"} {
			who(s, tenFive, at, at)
			s.Explain(tenFive, clock(at), clock("23:00"))
		}
		s.Take([]flow.Fact{lease("09:00", "10:00", "12:00", "laptop-a"), memberOf("09:00", "09:00", "alice", "c")}, flow.Heartbeat{})
		s.Tick(clock("13:00"))
		one, err := s.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		again, _ := newTestIdentity(t, nil)
		if err := again.Restore(one); err != nil {
			t.Fatalf("its own snapshot: %v", err)
		}
		if two, err := again.Snapshot(); err != nil || !bytes.Equal(one, two) {
			t.Fatalf("restored, the snapshot is another (%v)", err)
		}
	})
}

// TestIdentityConcurrent has readers look up while facts come in; for the race detector,
// and nobody may ever see the owner of another time.
func TestIdentityConcurrent(t *testing.T) {
	s, names := newTestIdentity(t, nil)
	done := make(chan struct{})
	var readers sync.WaitGroup
	for r := range 3 {
		readers.Go(func() {
			var a Answer
			as := make([]Answer, 1)
			for i := r; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				v := s.View()
				for n := range 50 {
					at := clock("01:00") + flow.Time(n*60_000) + 30_000
					v.Lookup(tenFive, at, at+60_000, &a)
					if w := names.Text(a.Workload); w != "" && w != fmt.Sprint("w", n) {
						t.Errorf("minute %d: %q", n, w)
					}
					v.LookupAll([]Question{{Addr: tenFive, At: at, Cut: at}}, as)
					v.Resolve(names.Intern("someone"), at, at, &as[0])
				}
				v.Close()
			}
		})
	}
	for n := range 50 {
		since := clock("01:00") + flow.Time(n*60_000)
		facts := []flow.Fact{{Source: "dhcp", Kind: flow.FactLease, Addr: tenFive, Since: since, Until: since + 60_000, Known: since, Workload: fmt.Sprint("w", n)}}
		for i := range 300 {
			facts = append(facts, flow.Fact{Source: "dhcp", Kind: flow.FactLease, Addr: flow.AddrFrom4(uint32(n*300 + i + 1)), Since: since, Known: since, Workload: "other"})
		}
		s.Take(facts, flow.Heartbeat{Source: "dhcp", At: since, StaleAfter: time.Hour})
		s.Tick(since)
		s.NameGroups([]string{fmt.Sprint("g", n)})
		if n%10 == 0 {
			if _, err := s.Snapshot(); err != nil {
				t.Error(err)
			}
		}
	}
	close(done)
	readers.Wait()
}
