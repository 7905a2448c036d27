package enrich

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	gocmp "github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/policy"
)

// The oracle answers slowly and obviously, from a list of all facts, by text: for each
// attribute it tries every combination of the facts in doubt, holding or not, and knows
// it only where all come out alike. It shares nothing with the store.

type identityOracle struct {
	facts   []flow.Fact
	beats   []flow.Heartbeat
	order   []string
	domains *flow.Domains
	horizon flow.Time
	// Facts were dropped by retention, so that "gap" and "unknown" are the same.
	dropped bool
}

// oracleAnswer is an Answer by text.
type oracleAnswer struct {
	Workload, Device, User, Account, Identity, Posture string
	Groups                                             []string
	Source, UserSource, GroupSource                    string
	Staleness                                          int64
	Why, GroupsWhy                                     []string
	Confidence                                         uint8
	MoreGroups, Disabled                               bool
}

type oracleFact struct {
	*flow.Fact
	rank  int
	doubt []string // in doubt, and why; nil: it holds
}

func canonicalFact(d *flow.Domains, f flow.Fact) flow.Fact {
	name := func(s string, machines bool) string {
		t, kind := d.Principal(s)
		if kind == flow.PrincipalUser || kind == flow.PrincipalMachine && machines {
			return t
		}
		return ""
	}
	f.User, f.Account, f.Subject = name(f.User, false), name(f.Account, true), name(f.Subject, true)
	f.Groups = slices.Compact(slices.Sorted(slices.Values(f.Groups)))
	if f.Confidence == 0 {
		f.Confidence = 100
	}
	return f
}

// known gives the facts that count at the cut.
func (o *identityOracle) known(cut flow.Time, about func(f *flow.Fact) bool) (out []*flow.Fact) {
	for i := range o.facts {
		f := &o.facts[i]
		if f.Known > cut || !about(f) {
			continue
		}
		newest := true
		for j := range o.facts {
			g := &o.facts[j]
			if g.Known > f.Known && g.Known <= cut && g.Source == f.Source && g.Kind == f.Kind && g.Addr == f.Addr && g.Subject == f.Subject &&
				g.Since == f.Since && g.Session == f.Session {
				newest = false
			}
		}
		if newest && !slices.ContainsFunc(out, func(g *flow.Fact) bool { return gocmp.Equal(f, g) }) {
			out = append(out, f)
		}
	}
	order := func(session string) uint64 { // arbitrary, yet always the same
		if session == "" {
			return 0
		}
		return xxhash.Sum64String(session)
	}
	slices.SortFunc(out, func(a, b *flow.Fact) int {
		la, lb := 1, 1
		if a.Kind == flow.FactLease {
			la = 0
		}
		if b.Kind == flow.FactLease {
			lb = 0
		}
		return cmp.Or(cmp.Compare(la, lb), cmp.Compare(a.Since, b.Since), cmp.Compare(a.Source, b.Source),
			cmp.Compare(order(a.Session), order(b.Session)))
	})
	return out
}

// interval says how a fact's interval lies to t: 2 within for certain, 1 perhaps, 0 not.
func interval(f *flow.Fact, t flow.Time) int {
	if f.Until != 0 && f.Until <= f.Since {
		return 0
	}
	if t < f.Since {
		if t >= f.Since.Add(-f.SinceSlack) {
			return 1
		}
		return 0
	}
	if f.Until == 0 || t < f.Until.Add(-f.UntilSlack) {
		return 2
	}
	if t < f.Until {
		return 1
	}
	return 0
}

func (o *identityOracle) heard(source string, cut flow.Time) (h flow.Heartbeat, ok bool) {
	for _, b := range o.beats {
		if b.Source == source && b.At <= cut && (!ok || b.At > h.At || b.At == h.At && b.StaleAfter != 0 && (h.StaleAfter == 0 || b.StaleAfter < h.StaleAfter)) {
			h, ok = b, true
		}
	}
	return h, ok
}

func (o *identityOracle) stale(source string, at, cut flow.Time) bool {
	h, ok := o.heard(source, cut)
	return ok && h.StaleAfter != 0 && at.Sub(h.At) > h.StaleAfter
}

func (o *identityOracle) rank(f *flow.Fact, users bool) int {
	i := slices.Index(o.order, f.Source)
	if i < 0 {
		i = len(o.order)
	}
	if users {
		i = 0
	}
	return int(f.Kind)*1000 + i
}

// worlds decides one attribute in every world, and gives it if all agree.
func (o *identityOracle) worlds(sure, maybe []oracleFact, value func(f *flow.Fact) string, users bool, why map[string]bool) (string, *flow.Fact) {
	pick := func(fs []oracleFact) (out []oracleFact) {
		for _, f := range fs {
			if value(f.Fact) != "" {
				f.rank = o.rank(f.Fact, users)
				out = append(out, f)
			}
		}
		return out
	}
	sure, maybe = pick(sure), pick(maybe)
	decide := func(fs []oracleFact) (v string, many bool) {
		best := 1 << 30
		for _, f := range fs {
			best = min(best, f.rank)
		}
		for _, f := range fs {
			if f.rank == best {
				if v != "" && v != value(f.Fact) {
					return "", true
				}
				v = value(f.Fact)
			}
		}
		return v, false
	}
	for _, f := range sure {
		for _, g := range sure {
			if value(f.Fact) != value(g.Fact) && !allOneSource(sure) {
				why["disagree"] = true
			}
		}
	}
	v, many := decide(sure)
	if many {
		why["ambiguous"] = true
		return "", nil
	}
	for world := range 1 << len(maybe) {
		fs := slices.Clone(sure)
		for i := range maybe {
			if world>>i&1 != 0 {
				fs = append(fs, maybe[i])
			}
		}
		if w, many := decide(fs); w != v || many {
			v = ""
		}
	}
	if v == "" {
		for _, f := range maybe {
			for _, d := range f.doubt {
				why[d] = true
			}
		}
		return "", nil
	}
	var by *flow.Fact
	best := 1 << 30
	for _, f := range sure {
		best = min(best, f.rank)
	}
	for _, f := range sure {
		if f.rank == best && (by == nil || f.Confidence > by.Confidence || f.Confidence == by.Confidence && f.Source < by.Source) {
			by = f.Fact
		}
	}
	return v, by
}

func allOneSource(fs []oracleFact) bool {
	for _, f := range fs {
		if f.Source != fs[0].Source {
			return false
		}
	}
	return true
}

// session says how the lease of a session stands.
func session(f *flow.Fact, all []*flow.Fact, at flow.Time) int {
	var leases, surely, perhaps, after []*flow.Fact
	for _, l := range all {
		if l.Kind != flow.FactLease || l.Until != 0 && l.Until <= l.Since {
			continue
		}
		leases = append(leases, l)
		switch begin := l.Since.Add(-l.SinceSlack); {
		case interval(l, f.Since) == 2:
			surely = append(surely, l)
		case interval(l, f.Since) == 1:
			perhaps = append(perhaps, l)
		case begin <= f.Since || begin >= f.Since.Add(2*time.Minute):
		case len(after) == 0 || begin < after[0].Since.Add(-after[0].SinceSlack):
			after = []*flow.Fact{l}
		case begin == after[0].Since.Add(-after[0].SinceSlack):
			after = append(after, l)
		}
	}
	under := surely
	if under == nil {
		under = perhaps
	}
	if under == nil {
		under = after
	}
	if under == nil {
		best := 0
		for _, l := range leases {
			best = max(best, interval(l, at))
		}
		return 2 - best
	}
	stand := map[int]bool{}
	for _, l := range under {
		best := 0
		for _, m := range leases {
			same := l == m
			if l.Device != "" && m.Device != "" {
				same = same || l.Device == m.Device
			} else {
				same = same || l.Workload != "" && l.Workload == m.Workload
			}
			if same {
				best = max(best, interval(m, at))
			}
		}
		stand[best] = true
	}
	if len(stand) > 1 {
		return 1
	}
	return slices.Collect(maps.Keys(stand))[0]
}

func (o *identityOracle) lookup(addr flow.Addr, at, cut flow.Time) (a oracleAnswer) {
	a.Staleness = -1
	cut = max(at, cut)
	if at < o.horizon {
		a.Why, a.GroupsWhy = []string{"expired"}, []string{"expired"}
		return a
	}
	all := o.known(cut, func(f *flow.Fact) bool { return f.Kind != flow.FactDirectory && f.Addr == addr })
	var sure, maybe []oracleFact
	why := map[string]bool{}
	for _, f := range all {
		st := interval(f, at)
		if st != 0 && f.Kind == flow.FactSession {
			st = min(st, session(f, all, at))
		}
		if st == 0 {
			continue
		}
		of := oracleFact{Fact: f}
		if st == 1 {
			of.doubt = append(of.doubt, "border")
		}
		if o.stale(f.Source, at, cut) {
			of.doubt = append(of.doubt, "stale")
		}
		if of.doubt == nil {
			sure = append(sure, of)
		} else {
			maybe = append(maybe, of)
		}
	}
	switch {
	case len(sure) > 0:
	case len(maybe) > 0:
		for _, f := range maybe {
			for _, d := range f.doubt {
				why[d] = true
			}
		}
	case len(all) > 0:
		why["gap"] = true
	default:
		why["unknown"] = true
	}
	credit := func(to *string, source string) {
		if *to != "" {
			return
		}
		*to = source
		if h, ok := o.heard(source, cut); ok {
			a.Staleness = max(a.Staleness, int64(at-h.At), 0)
		}
	}
	set := func(to *string, source *string, value func(f *flow.Fact) string, users bool) {
		v, by := o.worlds(sure, maybe, value, users, why)
		*to = v
		if by != nil {
			credit(source, by.Source)
			if a.Confidence == 0 || by.Confidence < a.Confidence {
				a.Confidence = by.Confidence
			}
		}
	}
	set(&a.Workload, &a.Source, func(f *flow.Fact) string { return f.Workload }, false)
	set(&a.Device, &a.Source, func(f *flow.Fact) string { return f.Device }, false)
	set(&a.Account, &a.Source, func(f *flow.Fact) string { return f.Account }, false)
	set(&a.Posture, &a.Source, func(f *flow.Fact) string { return f.Posture }, false)
	set(&a.User, &a.UserSource, func(f *flow.Fact) string { return f.User }, true)
	a.Identity = a.User
	if a.User == "" {
		a.Identity = a.Account
		for _, f := range append(slices.Clone(sure), maybe...) {
			if f.User != "" {
				a.Identity = ""
			}
		}
	}
	a.Why = o.sorted(why)
	if a.Identity == "" {
		return a
	}
	add := func(groups []string) {
		for _, g := range groups {
			if !slices.Contains(a.Groups, g) {
				if len(a.Groups) == policy.MaxGroups {
					a.MoreGroups = true
				} else {
					a.Groups = append(a.Groups, g)
				}
			}
		}
	}
	o.directory(&a, at, cut, credit, add)
	for _, f := range sure {
		if f.User == a.Identity || a.User == "" && f.Account == a.Identity {
			add(f.Groups)
		}
	}
	return a
}

func (o *identityOracle) directory(a *oracleAnswer, at, cut flow.Time, credit func(*string, string), add func([]string)) {
	all := o.known(cut, func(f *flow.Fact) bool { return f.Kind == flow.FactDirectory && f.Subject == a.Identity })
	why := map[string]bool{}
	last := map[string]*flow.Fact{}
	for _, f := range all {
		if f.Since.Add(-f.SinceSlack) <= at && (last[f.Source] == nil || f.Since > last[f.Source].Since) {
			last[f.Source] = f
		}
	}
	var sources []string
	for name := range last {
		sources = append(sources, name)
	}
	slices.Sort(sources)
	var sure, maybe []oracleFact
	for _, name := range sources {
		f := last[name]
		st, of := interval(f, at), oracleFact{Fact: f}
		if st == 0 {
			continue
		}
		if st == 1 {
			of.doubt = append(of.doubt, "border")
		}
		if o.stale(name, at, cut) {
			of.doubt = append(of.doubt, "stale")
		}
		if of.doubt != nil {
			maybe = append(maybe, of)
			for _, d := range of.doubt {
				why[d] = true
			}
			continue
		}
		sure = append(sure, of)
		credit(&a.GroupSource, name)
		a.Disabled = a.Disabled || f.Disabled
		add(f.Groups)
	}
	switch {
	case len(sure) > 0:
		a.MoreGroups = a.MoreGroups || len(maybe) > 0
	case len(maybe) > 0:
	case len(all) > 0:
		why["gap"] = true
	default:
		why["unknown"] = true
	}
	posture, _ := o.worlds(sure, maybe, func(f *flow.Fact) string { return f.Posture }, false, why)
	if a.Posture == "" {
		a.Posture = posture
	}
	a.GroupsWhy = o.sorted(why)
}

func (o *identityOracle) sorted(why map[string]bool) (out []string) {
	for _, t := range Why(0xffff).Texts() {
		if o.dropped && t == "unknown" && why["unknown"] {
			t = "gap"
		} else if !why[t] {
			continue
		}
		out = append(out, t)
	}
	return slices.Compact(out)
}

// texts gives an Answer by text.
func texts(names *flow.Names, a *Answer, gapIsUnknown bool) oracleAnswer {
	why := func(w Why) []string {
		if gapIsUnknown && w&WhyUnknown != 0 {
			w = w&^WhyUnknown | WhyGap
		}
		return w.Texts()
	}
	t := oracleAnswer{Workload: names.Text(a.Workload), Device: names.Text(a.Device), User: names.Text(a.User), Account: names.Text(a.Account),
		Identity: names.Text(a.Identity), Posture: names.Text(a.Posture), Source: names.Text(a.Source), UserSource: names.Text(a.UserSource),
		GroupSource: names.Text(a.GroupSource), Staleness: a.Staleness, Why: why(a.Why), GroupsWhy: why(a.GroupsWhy), Confidence: a.Confidence,
		MoreGroups: a.MoreGroups, Disabled: a.Disabled}
	for _, g := range a.Groups {
		if g == flow.NoName {
			break
		}
		t.Groups = append(t.Groups, names.Text(g))
	}
	return t
}

func newTestIdentity(t testing.TB, change func(*IdentityConfig)) (*Identity, *flow.Names) {
	t.Helper()
	cfg := DefaultIdentityConfig()
	if change != nil {
		change(&cfg)
	}
	names := flow.NewNames(0)
	s, err := NewIdentity(cfg, names, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s, names
}

// randomWorld makes facts and heartbeats in a small world, where everything meets.
func randomWorld(r *rand.Rand, versions int) (facts [][]flow.Fact, beats []flow.Heartbeat) {
	const step = 10_000
	moment := func() flow.Time { return flow.Time(1_000_000_000 + r.IntN(240)*step) }
	slack := func() time.Duration {
		if r.IntN(3) > 0 {
			return 0
		}
		return time.Duration(r.IntN(5)*step) * time.Millisecond
	}
	oneOf := func(s ...string) string { return s[r.IntN(len(s))] }
	groups := func(n int) (g []string) {
		for range r.IntN(n + 1) {
			g = append(g, fmt.Sprint("g", r.IntN(14)))
		}
		return g
	}
	for range 4 + r.IntN(40) {
		var f flow.Fact
		f.Since = moment()
		switch r.IntN(8) {
		case 0, 1, 2:
			f.Kind, f.Source = flow.FactSession, oneOf("logons", "vpn")
			f.User = oneOf("alice", `CORP\bob`, "ALICE@corp.example", "carol", "host$", `NT AUTHORITY\SYSTEM`)
			f.Session = oneOf("", "1", "2")
			if r.IntN(3) == 0 {
				f.Groups = groups(4)
			}
		case 3, 4:
			f.Kind, f.Source = flow.FactLease, oneOf("dhcp", "pods")
			f.Workload, f.Device = oneOf("", "web", "db"), oneOf("", "m1", "m2")
			f.Account, f.Posture = oneOf("", "", "svc-pay", "svc-log"), oneOf("", "", "managed")
			if r.IntN(4) == 0 {
				f.Groups = groups(2)
			}
		case 5:
			f.Kind, f.Source, f.Since = flow.FactStatic, "inventory", 0
			f.Workload, f.User, f.Posture = oneOf("web", "old"), oneOf("", "", "alice"), oneOf("", "unmanaged")
		default:
			f.Kind, f.Source = flow.FactDirectory, oneOf("ad", "okta")
			f.Subject = oneOf("alice", "bob@corp", "carol", "svc-pay")
			f.Groups, f.Posture, f.Disabled = groups(6), oneOf("", "managed", "unmanaged"), r.IntN(5) == 0
		}
		if f.Kind != flow.FactDirectory {
			f.Addr = flow.AddrFrom4(0x0a000000 | uint32(r.IntN(3)))
		}
		if f.Since != 0 {
			f.SinceSlack = slack()
		}
		f.Confidence = uint8(r.IntN(3) * 40)
		f.Known = max(f.Since, 1_000_000_000) + flow.Time(r.IntN(3)*step)
		var told []flow.Fact
		for v := range 1 + r.IntN(versions) {
			if v > 0 {
				f.Known += flow.Time(1 + r.IntN(30)*step)
				if r.IntN(3) == 0 {
					f.User = map[bool]string{true: "carol", false: ""}[f.Kind == flow.FactSession]
					f.Posture = oneOf("", "managed")
				}
			}
			switch r.IntN(4) {
			case 0:
				f.Until, f.UntilSlack = 0, 0
			case 1:
				f.Until, f.UntilSlack = f.Since+flow.Time(r.IntN(80)*step), slack()
			case 2:
				f.Until, f.UntilSlack = f.Known+flow.Time((r.IntN(9)-4)*step), slack()
			}
			if f.Until < 0 {
				f.Until = 0
			}
			told = append(told, f)
		}
		facts = append(facts, told)
	}
	// What is about the same may have been made twice: those are out.
	seen := map[string]bool{}
	facts = slices.DeleteFunc(facts, func(fs []flow.Fact) bool {
		f := fs[0]
		subject, _ := testDomains.Principal(f.Subject)
		key := fmt.Sprint(f.Source, f.Addr, subject, f.Since, f.Session)
		again := seen[key]
		seen[key] = true
		return again
	})
	for range r.IntN(30) {
		beats = append(beats, flow.Heartbeat{Source: oneOf("logons", "vpn", "dhcp", "pods", "ad", "okta"), At: moment(),
			StaleAfter: time.Duration(r.IntN(4)*20*step) * time.Millisecond})
	}
	return facts, beats
}

var (
	testAliases = map[string]string{"CORP.EXAMPLE": "corp.example.com"}
	testDomains = flow.NewDomains("corp.example.com", testAliases)
)

func testDomainConfig(c *IdentityConfig) {
	c.DefaultDomain, c.Domains = "corp.example.com", testAliases
}

// intake gives the facts in some order: with shuffle any, else each fact's versions in order.
func intake(r *rand.Rand, facts [][]flow.Fact, shuffle bool) (out []flow.Fact) {
	for _, fs := range facts {
		out = append(out, fs...)
		if r.IntN(4) == 0 {
			out = append(out, fs[r.IntN(len(fs))]) // delivered twice
		}
	}
	if shuffle {
		r.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
		return out
	}
	slices.SortStableFunc(out, func(a, b flow.Fact) int { return cmp.Compare(a.Known, b.Known) })
	return out
}

func take(r *rand.Rand, s *Identity, facts []flow.Fact, beats []flow.Heartbeat) {
	beats = slices.Clone(beats)
	r.Shuffle(len(beats), func(i, j int) { beats[i], beats[j] = beats[j], beats[i] })
	for len(facts) > 0 || len(beats) > 0 {
		n := min(len(facts), r.IntN(8))
		var b flow.Heartbeat
		if len(beats) > 0 {
			b, beats = beats[0], beats[1:]
		}
		s.Take(facts[:n], b)
		facts = facts[n:]
	}
}

// TestIdentityOracle compares the store with the oracle over random worlds.
func TestIdentityOracle(t *testing.T) {
	worlds, lookups := 800, 0
	if testing.Short() {
		worlds = 150
	}
	known := map[string]int{}
	for seed := range worlds {
		r := rand.New(rand.NewPCG(uint64(seed), 5))
		shuffle := seed%2 == 0
		versions := 8
		if shuffle {
			versions = 3 // a run of more than two tellings is not taken apart exactly
		}
		facts, beats := randomWorld(r, versions)
		order := [][]string{nil, {"pods"}, {"dhcp", "okta"}}[seed%3]
		s, names := newTestIdentity(t, func(c *IdentityConfig) { testDomainConfig(c); c.Order = order })
		o := &identityOracle{order: order, domains: testDomains, beats: beats}
		for _, fs := range facts {
			for _, f := range fs {
				o.facts = append(o.facts, canonicalFact(testDomains, f))
			}
		}
		take(r, s, intake(r, facts, shuffle), beats)
		if seed%5 == 1 { // as well from a snapshot
			b, err := s.Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			s, names = newTestIdentity(t, func(c *IdentityConfig) { testDomainConfig(c); c.Order = order })
			if err := s.Restore(b); err != nil {
				t.Fatal(err)
			}
		}
		v := s.View()
		for range 150 {
			addr := flow.AddrFrom4(0x0a000000 | uint32(r.IntN(4)))
			at := flow.Time(1_000_000_000-20_000+r.IntN(250)*10_000) + flow.Time(r.IntN(3)-1)
			cut := at + flow.Time(r.IntN(3)*30_000)
			if r.IntN(2) == 0 {
				cut = at + flow.Time(r.IntN(200)*10_000)
			}
			var a Answer
			v.Lookup(addr, at, cut, &a)
			want, got := o.lookup(addr, at, cut), texts(names, &a, false)
			if d := gocmp.Diff(want, got); d != "" {
				for _, f := range o.facts {
					if f.Addr == addr || f.Kind == flow.FactDirectory {
						t.Logf("%+v", f)
					}
				}
				t.Fatalf("seed %d, %v at %d, cut %d (-oracle +store):\n%s", seed, addr, at, cut, d)
			}
			lookups++
			for _, w := range append(slices.Clone(want.Why), want.GroupsWhy...) {
				known[w]++
			}
			if want.Identity != "" {
				known["identity"]++
			}
			if len(want.Groups) > 0 {
				known["groups"]++
			}
		}
		v.Close()
	}
	t.Logf("%d lookups: %v", lookups, known)
	for _, w := range append([]string{"identity", "groups"}, Why(0xffff).Texts()[:6]...) {
		if known[w] < lookups/400 {
			t.Errorf("only %d of %d lookups had %q: the test looks past it", known[w], lookups, w)
		}
	}
}

// TestIdentityOrder takes the same facts in two orders and wants the same snapshot.
func TestIdentityOrder(t *testing.T) {
	for seed := range 200 {
		r := rand.New(rand.NewPCG(uint64(seed), 6))
		facts, beats := randomWorld(r, 2)
		// Two that say differently at the same time.
		for i := range facts {
			if r.IntN(3) == 0 {
				f := facts[i][0]
				f.Until = f.Since + 77_000
				if len(facts[i]) > 1 || r.IntN(2) == 0 {
					f.Posture = "other"
				}
				facts[i] = append(facts[i], f)
			}
		}
		var first []byte
		for range 3 {
			s, _ := newTestIdentity(t, nil)
			take(r, s, intake(r, facts, true), beats)
			b, err := s.Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			if first == nil {
				first = b
			}
			if !bytes.Equal(b, first) {
				t.Fatalf("seed %d: the snapshot depends on the order", seed)
			}
			again, names := newTestIdentity(t, nil)
			names.Intern("shifts all names by one")
			if err := again.Restore(b); err != nil {
				t.Fatal(err)
			}
			if c, err := again.Snapshot(); err != nil || !bytes.Equal(b, c) {
				t.Fatalf("seed %d: restored, the snapshot is another (%v)", seed, err)
			}
		}
	}
}

// TestIdentityRetention compares with an oracle that forgets, too.
func TestIdentityRetention(t *testing.T) {
	expired := 0
	for seed := range 300 {
		r := rand.New(rand.NewPCG(uint64(seed), 7))
		facts, beats := randomWorld(r, 4)
		s, names := newTestIdentity(t, func(c *IdentityConfig) { testDomainConfig(c); c.Retention = time.Hour })
		o := &identityOracle{domains: testDomains, beats: beats, dropped: true}
		for _, fs := range facts {
			for _, f := range fs {
				o.facts = append(o.facts, canonicalFact(testDomains, f))
			}
		}
		all := intake(r, facts, false)
		half := r.IntN(len(all) + 1)
		take(r, s, all[:half], beats)
		now := flow.Time(1_000_000_000)
		if half > 0 {
			now = all[half-1].Known
		}
		for i := range 3 {
			now += flow.Time(r.IntN(150) * 10_000)
			s.Tick(now)
			o.horizon = max(o.horizon, now-3_600_000)
			if i == 0 {
				take(r, s, all[half:], nil)
			}
			v := s.View()
			for range 60 {
				addr := flow.AddrFrom4(0x0a000000 | uint32(r.IntN(4)))
				at := flow.Time(1_000_000_000 + r.IntN(250)*10_000)
				cut := at + flow.Time(r.IntN(100)*10_000)
				if r.IntN(3) == 0 { // of the oldest that is kept
					at = o.horizon + flow.Time(r.IntN(4)*10_000)
					cut = at + flow.Time(r.IntN(3)*10_000)
				}
				var a Answer
				v.Lookup(addr, at, cut, &a)
				want, got := o.lookup(addr, at, cut), texts(names, &a, true)
				if slices.Contains(want.Why, "expired") {
					expired++
				}
				if d := gocmp.Diff(want, got); d != "" {
					for _, f := range o.facts {
						if f.Addr == addr || f.Kind == flow.FactDirectory {
							t.Logf("%+v", f)
						}
					}
					t.Fatalf("seed %d, %v at %d, cut %d, horizon %d (-oracle +store):\n%s", seed, addr, at, cut, o.horizon, d)
				}
			}
			v.Close()
		}
	}
	if expired < 100 {
		t.Errorf("only %d lookups were of times no longer kept", expired)
	}
}

// TestIdentityBesideFullNames: names of flows, however many, do not keep from being known who
// comes new.
func TestIdentityBesideFullNames(t *testing.T) {
	names := flow.NewNames(8)
	s, err := NewIdentity(DefaultIdentityConfig(), names, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		names.InternBytes(fmt.Appendf(nil, "pod-%d", i))
	}
	addr := flow.MustParseAddr("10.0.0.1")
	s.Take([]flow.Fact{{Source: "vpn", Kind: flow.FactSession, Addr: addr, Since: 1_000_000, Known: 1_000_001, User: "alice", Device: "laptop", Groups: []string{"admins"}}},
		flow.Heartbeat{Source: "vpn", At: 1_000_001})
	v := s.View()
	defer v.Close()
	var a Answer
	v.Lookup(addr, 1_000_002, 1_000_002, &a)
	if names.Text(a.Identity) != "alice" || names.Text(a.Device) != "laptop" || names.Text(a.Groups[0]) != "admins" {
		t.Errorf("%s on %s in %s", names.Text(a.Identity), names.Text(a.Device), names.Text(a.Groups[0]))
	}
}
