package enrich

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/policy"
)

// IdentityConfig says how facts about who is behind an address are kept and joined.
type IdentityConfig struct {
	// Hold is for how long after a flow's end facts may still become known that count for
	// it. Live judging waits that long; replay applies the same cut. 0s to 1h.
	Hold time.Duration `yaml:"hold"`
	// Retention is for how long facts that ended are kept, in event time. Flows older than
	// that are judged without identity. 1h to 8760h.
	Retention time.Duration `yaml:"retention"`
	// MaxFacts bounds the facts held, earlier versions of one included. Beyond it those
	// that ended longest ago go first; an address that lost some answers "full" for that time.
	MaxFacts int `yaml:"maxFacts"`
	// DefaultDomain is the domain whose users are written without one: with corp.example.com,
	// alice@corp.example.com and alice are the same. Empty joins none.
	DefaultDomain string `yaml:"defaultDomain"`
	// Domains gives a domain's other names, such as CORP: corp.example.com, so that
	// CORP\alice and alice@corp.example.com are the same.
	Domains map[string]string `yaml:"domains"`
	// Order lists sources by name. Where two of the same kind differ about a workload, a
	// device, a service account or a posture the one that stands first decides; sources not
	// listed come last and none of them before another.
	Order []string `yaml:"order"`
}

// DefaultIdentityConfig gives the defaults.
func DefaultIdentityConfig() IdentityConfig {
	return IdentityConfig{
		Hold: time.Minute, // SEMANTICS, "Identity"
		// Two weeks: a topic is commonly kept for one, and what is read again from its
		// start finds the facts of its time.
		Retention: 14 * 24 * time.Hour,
		// 200,000 addresses of 8 intervals are 1.6 million facts; at some 190 bytes with
		// all that finds them, 2 Mi facts are 400 MB. Memory is taken as facts come.
		MaxFacts: 2 << 20,
	}
}

// maxFacts is the largest setting of MaxFacts: the table numbers addresses in 24 bits.
const maxFacts = 1<<24 - 2

// Validate says what is wrong with the configuration and what would be right.
func (c *IdentityConfig) Validate() error {
	if c.Hold < 0 || c.Hold > time.Hour {
		return fmt.Errorf("hold is %v; write a duration from 0s to 1h, such as 60s", c.Hold)
	}
	if c.Retention < time.Hour || c.Retention > 8760*time.Hour {
		return fmt.Errorf("retention is %v; write a duration from 1h to 8760h, such as 336h", c.Retention)
	}
	if c.MaxFacts < 1 || c.MaxFacts > maxFacts {
		return fmt.Errorf("maxFacts is %d; write a number from 1 to %d", c.MaxFacts, maxFacts)
	}
	if len(c.Order) > 250 {
		return fmt.Errorf("order lists %d sources; list at most 250", len(c.Order))
	}
	for i, name := range c.Order {
		if name == "" || slices.Contains(c.Order[:i], name) {
			return fmt.Errorf("order lists %q twice or without a name; list each source once", name)
		}
	}
	for from, to := range c.Domains {
		if from == "" || to == "" {
			return fmt.Errorf("domains has %q: %q; write both a name and the domain it stands for, such as CORP: corp.example.com", from, to)
		}
	}
	return nil
}

// Why is a set of reasons why something about an address is not known.
type Why = flow.Doubt

// The reasons, as package flow has them.
const (
	WhyUnknown   = flow.DoubtUnknown
	WhyGap       = flow.DoubtGap
	WhyStale     = flow.DoubtStale
	WhyBorder    = flow.DoubtBorder
	WhyAmbiguous = flow.DoubtAmbiguous
	WhyDisagree  = flow.DoubtDisagree
	WhyFull      = flow.DoubtFull
	WhyExpired   = flow.DoubtExpired
)

// Answer is who was behind an address at a time, as far as it was known at another. It is
// a value of fixed size without pointers. NoName is not known, never "nobody".
type Answer struct {
	Workload, Device flow.Name
	User, Account    flow.Name // in canonical form; see [flow.Domains.Principal]
	// Identity is what a policy's identity: is compared with: the user, or where no source
	// speaks of users, the service account. A user in doubt is no identity, even with an account.
	Identity flow.Name
	Posture  flow.Name
	// Groups are those of the identity, the ones that policy names first, by directory then
	// by the fact about the address; NoName ends them.
	Groups [policy.MaxGroups]flow.Name

	// Source said who holds the address, UserSource who the user is, GroupSource what the
	// identity belongs to. NoName where nothing was said.
	Source, UserSource, GroupSource flow.Name

	// Staleness is for how many milliseconds before the flow the source had been silent
	// that of those three was silent longest; -1 where none tells when it was heard.
	Staleness int64

	Why       Why // why Workload to Posture are not all known
	GroupsWhy Why // why Groups, Disabled and a directory's posture are not

	Confidence uint8 // percent, the least of the facts that decided; 0 if none
	MoreGroups bool  // there may be groups beyond these
	Disabled   bool  // a directory says that the identity may not log on

	postureOfIdentity bool // a directory's, which goes with the identity
}

// Fill puts what judging asks for into p.
func (a *Answer) Fill(p *policy.Party) {
	p.Identity, p.Posture, p.Groups, p.MoreGroups = a.Identity, a.Posture, a.Groups, a.MoreGroups
}

// Identity keeps what sources said about who is behind addresses, when that was so and
// when it became known, and finds who it was as of a time and of what was known then.
//
// # What counts
//
// Of the facts about the same (source, address, since, session) the one known last by the
// cut counts. It holds in [since, until); inside a slack it is in doubt, and so it is when
// the source had been silent for longer than its limit: the last heartbeat by the cut lies
// too far before the time asked for. Each of workload, device, user, service account and
// posture is decided on its own: by the facts of the first kind that say something of it
// (session, lease, static), of one kind by the configured order, users excepted. Where those
// differ it is not known, and it is not known where a fact in doubt could change it.
// A session also ends with the lease it began under, unless the same device or workload
// goes on with another: who was logged on at an address is not on whoever has it next.
//
// A directory's facts are about a user or account; of each directory the one that began
// last counts. Groups of several directories and of the fact about the address add up.
//
// # Concurrency
//
// Readers take a [View], which holds a read lock, for a batch at a time; within it a lookup
// takes no lock and does not allocate, and readers never wait for each other. [Identity.Take]
// holds the write lock for at most 256 facts at a time, half a millisecond. The other way, to
// exchange a whole copy atomically, would copy 25 MB of holders for 200,000 addresses
// whenever a fact comes. Every method but those of View takes what locks it needs and may
// be called from any goroutine, not from within a View.
//
// # Determinism
//
// Answers depend on the facts, heartbeats, ticks and the groups that policy names, not on
// the order in which facts came, with two exceptions: which facts go when the cap bites,
// and a source that contradicts itself out of order. Telling the same again adds no fact: of
// a run of equal tellings, or ones that put off an end before it came, the first and the
// last time are kept. A different telling that was known in between, yet comes only after
// three or more of them, counts until the last. No clock is asked.
type Identity struct {
	mu      sync.RWMutex
	cfg     IdentityConfig
	names   *flow.Names
	domains *flow.Domains
	m       *identityMetrics

	places    table
	classes   classes
	subjects  []holder // what directories say, by user or account
	subjectAt []uint32 // by flow.Name: index in subjects + 1

	sources    []source
	sourceIDs  map[string]uint16
	groups     groupSets
	canonical  canonicalNames
	facts      int       // versions held
	clock      flow.Time // the latest tick
	horizon    flow.Time // what is older is not answered any more
	swept      flow.Time // the horizon of the latest sweep
	lost       lost      // of addresses and subjects that are held no longer
	noneEnded  bool      // no fact that could make room
	dirty      []dirty
	scratch    scratch
	perHolder  int // bound on the versions of one address
	beatsLimit int
}

// Bounds that no configuration needs to know of.
const (
	maxSources = 1024
	// maxPerHolder bounds the versions of one address: a terminal server with 100 logons
	// a day for two weeks has 2,800.
	maxPerHolder = 4096
	// maxBeats bounds the heartbeats of one source: one in five seconds for two weeks.
	maxBeats = 1 << 18
	// takeChunk is how many facts are taken in under one lock.
	takeChunk = 256
)

// lost is the hull of what was dropped because of a cap.
type lost struct {
	from, to flow.Time // times for which facts were dropped
	known    flow.Time // the latest time at which one of them became known
}

func (l *lost) add(from, to, known flow.Time) {
	if l.known == 0 {
		*l = lost{from, to, known}
		return
	}
	*l = lost{min(l.from, from), max(l.to, to), max(l.known, known)}
}

func (l *lost) covers(at, cut flow.Time) bool {
	return l.known != 0 && (at >= l.from && at < l.to || cut < l.known)
}

// NewIdentity makes an empty Identity. names is the table that answers' names come from;
// reg may be nil.
func NewIdentity(cfg IdentityConfig, names *flow.Names, reg prometheus.Registerer) (*Identity, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Identity{cfg: cfg, names: names, domains: flow.NewDomains(cfg.DefaultDomain, cfg.Domains), m: newIdentityMetrics(reg),
		perHolder: maxPerHolder, beatsLimit: maxBeats}
	s.reset()
	return s, nil
}

func (s *Identity) reset() {
	s.places, s.classes, s.subjects, s.subjectAt = newTable(), newClasses(), nil, nil
	s.sources, s.sourceIDs = nil, map[string]uint16{}
	s.groups.reset()
	s.facts, s.clock, s.horizon, s.swept, s.lost, s.noneEnded = 0, 0, 0, 0, lost{}, false
}

// Domains gives the spellings of domains as configured, for formats that tell users.
func (s *Identity) Domains() *flow.Domains { return s.domains }

// Cut gives the time as of which facts count for a flow that ended then.
func (s *Identity) Cut(end flow.Time) flow.Time { return end.Add(s.cfg.Hold) }

// Take takes in facts, whose Known is stamped, and a heartbeat unless it is the zero one,
// in any order of arrival. Facts that cannot be are counted and left out.
func (s *Identity) Take(facts []flow.Fact, b flow.Heartbeat) {
	for chunk := range slices.Chunk(facts, takeChunk) {
		s.mu.Lock()
		for i := range chunk {
			s.m.took[s.put(&chunk[i])].Inc()
		}
		s.rebuildDirty()
		s.gauge()
		s.mu.Unlock()
	}
	if b.Source != "" {
		s.mu.Lock()
		s.beat(b)
		s.mu.Unlock()
	}
}

func (s *Identity) beat(b flow.Heartbeat) {
	id, ok := s.sourceOf(b.Source)
	if !ok || b.At <= 0 || b.At > latest {
		s.m.took[tookInvalid].Inc()
		return
	}
	src := &s.sources[id]
	limit := flow.Time(0)
	if b.StaleAfter > 0 {
		limit = max(1, flow.Time(b.StaleAfter/time.Millisecond))
	}
	if b.At < src.forgotten {
		return
	}
	src.add(beat{b.At, limit})
	if len(src.beats) > s.beatsLimit {
		n := len(src.beats) / 4
		src.beats = slices.Clone(src.beats[n:])
		src.forgotten = src.beats[0].at
		src.index()
		s.m.beatsDropped.Add(float64(n))
	}
	s.m.beats.WithLabelValues(b.Source).Set(float64(src.beats[len(src.beats)-1].at) / 1000)
}

// sourceOf gives the number of a source, a new one if need be; false if there are too many.
func (s *Identity) sourceOf(name string) (uint16, bool) {
	id, ok := s.sourceIDs[name]
	if ok {
		return id, true
	}
	if name == "" || len(name) > flow.MaxPrincipal || len(s.sources) >= maxSources {
		return 0, false
	}
	order := slices.Index(s.cfg.Order, name)
	if order < 0 {
		order = len(s.cfg.Order)
	}
	id = uint16(len(s.sources))
	s.sources = append(s.sources, source{name: name, id: s.names.Intern(name), order: uint8(order)})
	s.sourceIDs[name] = id
	return id, true
}

// Tick moves event time on to now, which comes from an injected clock or the watermark:
// what ended longer than the retention ago is not answered any more and dropped.
func (s *Identity) Tick(now flow.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now <= s.clock || now > latest {
		return
	}
	s.clock = now
	retention := flow.Time(s.cfg.Retention / time.Millisecond)
	s.horizon = max(s.horizon, now-retention)
	// Looking through all facts is worth it once a sixty-fourth of them may have expired.
	if s.horizon > 0 && s.horizon-s.swept >= max(retention/64, 60_000) {
		s.sweep()
	}
	s.gauge()
}

// NameGroups says which groups policy names. They are listed first in answers, and once
// any is named only they count for MoreGroups: the others decide nothing. Call it when a
// version of policy is loaded, before flows are judged by it; names add up.
func (s *Identity) NameGroups(names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.groups.relevant(s.names, names)
}

func (s *Identity) gauge() {
	s.m.facts.Set(float64(s.facts))
	s.m.addresses.Set(float64(len(s.places.holders)))
	s.m.subjects.Set(float64(len(s.subjects)))
}

// View is the right to look things up. It holds a read lock: take one for a batch, give it
// back with Close, and call nothing but its own methods in between.
type View struct{ s *Identity }

// View takes the read lock.
func (s *Identity) View() View {
	s.mu.RLock()
	return View{s}
}

// Close gives the read lock back.
func (v View) Close() { v.s.mu.RUnlock() }

// Lookup fills a with who was behind addr at a time, by the facts known by the cut. A cut
// before at counts as at: nothing is known of what has not happened yet.
func (v View) Lookup(addr flow.Addr, at, cut flow.Time, a *Answer) {
	s := v.s
	h := s.places.find(addr.Canonical())
	if h == nil {
		s.miss(at, cut, a)
		return
	}
	f := found{h: h, b: h.at(at)}
	if h := s.subject(s.identity(f.b)); h != nil {
		f.subject, f.said = h, h.at(at)
	}
	s.near(&s.classes.all[f.b.class], max(at, cut), &f.near)
	s.answer(&f, at, cut, a)
}

// found is what a question leads to.
type found struct {
	h       *holder
	b       *span
	subject *holder  // of the identity, nil if there is none
	said    *span    // of subject
	near    [2]int32 // what near gave of b
}

// near finds about where the last heartbeats are of the sources that c hangs on, and gives
// something of them so that they are loaded.
func (s *Identity) near(c *class, cut flow.Time, near *[2]int32) (sum uint64) {
	for n, i := range c.sources {
		if i == 0 {
			break
		}
		src := &s.sources[i-1]
		k := src.near(cut)
		if near[n] = int32(k); k >= 0 {
			sum += uint64(src.ats[k])
		}
	}
	return sum
}

// fresh says whether none of the sources that c hangs on is stale, and for how long each
// had been silent.
func (s *Identity) fresh(c *class, near *[2]int32, at, cut flow.Time, silence *[2]int64) bool {
	for n, i := range c.sources {
		if i == 0 {
			break
		}
		silent, stale := s.sources[i-1].silence(int(near[n]), at, cut)
		if stale {
			return false
		}
		silence[n] = silent
	}
	return true
}

// identity gives whom a span says the identity to be, NoName if nobody or it is not known.
func (s *Identity) identity(b *span) flow.Name {
	switch {
	case b.user != flow.NoName:
		return b.user
	case b.account != flow.NoName && s.classes.all[b.class].flags&noIdentity == 0:
		return b.account
	}
	return flow.NoName
}

// miss answers for an address of which nothing is held.
func (s *Identity) miss(at, cut flow.Time, a *Answer) {
	*a = Answer{Staleness: -1}
	switch {
	case at < s.horizon:
		a.Why, a.GroupsWhy = WhyExpired, WhyExpired
	case s.lost.covers(at, max(at, cut)):
		a.Why = WhyFull
	default:
		a.Why = WhyUnknown
	}
}

// answer answers with what was found.
func (s *Identity) answer(f *found, at, cut flow.Time, a *Answer) {
	*a = Answer{Staleness: -1}
	cut = max(at, cut)
	if at < s.horizon {
		a.Why, a.GroupsWhy = WhyExpired, WhyExpired
		return
	}
	b := f.b
	c := &s.classes.all[b.class]
	var silence [2]int64
	if b.unsettled(cut) || c.flags&slowBody != 0 || !s.fresh(c, &f.near, at, cut, &silence) {
		s.lookupSlow(f.h, b, at, cut, a)
		return
	}
	a.Workload, a.Device, a.User, a.Account, a.Posture = b.workload, b.device, b.user, b.account, c.posture
	a.Why, a.Confidence = c.why, c.confidence
	if i := c.flags >> placeShift & 3; i != 0 {
		a.Source, a.Staleness = s.sources[c.sources[i-1]-1].id, silence[i-1]
	}
	if i := c.flags >> userShift & 3; i != 0 {
		a.UserSource, a.Staleness = s.sources[c.sources[i-1]-1].id, max(a.Staleness, silence[i-1])
	}
	a.Identity = s.identity(b)
	if a.Identity != flow.NoName {
		s.join(f.subject, f.said, at, cut, a)
		if c.groups != 0 {
			s.groups.list(c.groups, a)
		}
	}
}

// Resolve puts into a the user that the flow's own agent told, with the groups of its time:
// an agent goes before all other sources. Where a, a zero Answer or one that Lookup filled,
// has another user, that is a disagreement. The name may be in any spelling; a name that
// stands for no user changes nothing.
func (v View) Resolve(user flow.Name, at, cut flow.Time, a *Answer) {
	s := v.s
	user = s.canonical.of(s, user)
	if user == flow.NoName || user == flow.OverflowName {
		return
	}
	if a.User != flow.NoName && a.User != user {
		a.Why |= WhyDisagree
	}
	if a.User == user && a.Identity == user {
		return
	}
	if a.Identity != flow.NoName && a.Identity != user { // groups and state of another
		a.Groups, a.MoreGroups, a.Disabled = [policy.MaxGroups]flow.Name{}, false, false
		if a.postureOfIdentity {
			a.Posture, a.postureOfIdentity = flow.NoName, false
		}
	}
	// What kept the user unknown does not matter any more; whatever else it kept unknown
	// stays NoName.
	a.Why &^= WhyAmbiguous
	a.User, a.Identity, a.UserSource, a.GroupSource, a.GroupsWhy = user, user, flow.NoName, flow.NoName, 0
	if cut = max(at, cut); at < s.horizon {
		a.GroupsWhy = WhyExpired
		return
	}
	s.joinTo(at, cut, a)
}

// Canonical gives the canonical form of a user's name, NoName if it stands for no user.
// It does not allocate for a name it has seen.
func (s *Identity) Canonical(user flow.Name) flow.Name { return s.canonical.of(s, user) }

// credit puts a source's name into to and accounts for its staleness.
func (s *Identity) credit(to *flow.Name, i uint16, at, cut flow.Time, a *Answer) {
	src := &s.sources[i]
	*to = src.id
	if b, known, _ := src.heard(cut); known {
		a.Staleness = max(a.Staleness, int64(at-b.at), 0)
	}
}

func (s *Identity) lookupSlow(h *holder, b *span, at, cut flow.Time, a *Answer) {
	past, c := h.past, &s.classes.all[b.class]
	if past.lost.covers(at, cut) {
		a.Why = WhyFull
		return
	}
	if !b.unsettled(cut) && c.flags&(slowBody|doubtBody) == 0 && c.sources[0] != 0 && c.sources[1] == 0 {
		a.Why = WhyStale // all that was said came from one source, and that is stale
		return
	}
	var f said
	q := query{s: s, at: at, cut: cut, beats: true}
	q.place(past, &f)
	a.Workload, a.Device, a.User, a.Account, a.Posture, a.Identity = f.workload, f.device, f.user, f.account, f.posture, f.identity
	a.Why, a.Confidence = f.why, f.confidence
	if f.placeSource != 0 {
		s.credit(&a.Source, f.placeSource-1, at, cut, a)
	}
	if f.userSource != 0 {
		s.credit(&a.UserSource, f.userSource-1, at, cut, a)
	}
	if a.Identity == flow.NoName {
		return
	}
	s.joinTo(at, cut, a)
	q.placeGroups(past, &f, func(set uint32) bool {
		s.groups.list(set, a)
		return true
	})
}

// joinTo adds what directories say of a's identity.
func (s *Identity) joinTo(at, cut flow.Time, a *Answer) {
	h := s.subject(a.Identity)
	var b *span
	if h != nil {
		b = h.at(at)
	}
	s.join(h, b, at, cut, a)
}

// join adds what directories say of a's identity: b of h, which is nil if they say nothing.
func (s *Identity) join(h *holder, b *span, at, cut flow.Time, a *Answer) {
	if h == nil {
		a.GroupsWhy = WhyUnknown
		if s.lost.covers(at, cut) {
			a.GroupsWhy = WhyFull
		}
		return
	}
	c := &s.classes.all[b.class]
	var near [2]int32
	var silence [2]int64
	s.near(c, cut, &near)
	if b.unsettled(cut) || c.flags&slowBody != 0 || !s.fresh(c, &near, at, cut, &silence) {
		s.joinSlow(h.past, at, cut, a)
		return
	}
	a.GroupsWhy = c.why
	a.Disabled = c.flags&disabledBody != 0
	a.MoreGroups = a.MoreGroups || c.flags&moreBody != 0
	if a.Posture == flow.NoName && c.posture != flow.NoName {
		a.Posture, a.postureOfIdentity = c.posture, true
	}
	if i := c.flags >> placeShift & 3; i != 0 {
		a.GroupSource, a.Staleness = s.sources[c.sources[i-1]-1].id, max(a.Staleness, silence[i-1])
	}
	if c.groups != 0 {
		s.groups.list(c.groups, a)
	}
}

func (s *Identity) joinSlow(past *past, at, cut flow.Time, a *Answer) {
	if past.lost.covers(at, cut) {
		a.GroupsWhy = WhyFull
		return
	}
	var f said
	q := query{s: s, at: at, cut: cut, beats: true}
	q.subject(past, &f, func(set uint32) {
		s.groups.list(set, a)
	})
	a.GroupsWhy = f.why
	a.Disabled = f.disabled
	a.MoreGroups = a.MoreGroups || f.more
	if a.Posture == flow.NoName && f.posture != flow.NoName {
		a.Posture, a.postureOfIdentity = f.posture, true
	}
	if f.placeSource != 0 {
		s.credit(&a.GroupSource, f.placeSource-1, at, cut, a)
	}
}

func (s *Identity) subject(name flow.Name) *holder {
	if int(name) >= len(s.subjectAt) {
		return nil
	}
	if i := s.subjectAt[name]; i != 0 {
		return &s.subjects[i-1]
	}
	return nil
}
