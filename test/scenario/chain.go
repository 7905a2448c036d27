package scenario

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/postern/postern/detect"
	"github.com/postern/postern/enrich"
	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/kafka"
	"github.com/postern/postern/policy"
)

// Settings are the parts of the program's configuration that bear on what the stages find,
// by the names they have there.
type Settings struct {
	Enrich   enrich.Config         `yaml:"enrich"`
	Sessions enrich.SessionsConfig `yaml:"sessions"`
	Detect   detect.Config         `yaml:"detect"`
}

// DefaultSettings gives the program's defaults.
func DefaultSettings() Settings {
	return Settings{enrich.DefaultConfig(), enrich.DefaultSessionsConfig(), detect.DefaultConfig()}
}

// Version is a policy and the time from which it is in force.
type Version struct {
	Policy *policy.Policy
	Since  flow.Time
}

// Chain is the stages from a decoded record to a finding, as the program wires them. It is
// not safe for concurrent use.
type Chain struct {
	// OnFlow, if set, sees every judged record, in order. It must not keep it.
	OnFlow func(r *flow.Record, names *flow.Names)

	settings Settings
	versions []Version
	facts    []flow.Fact
	beats    []flow.Heartbeat

	names     *flow.Names
	history   *policy.History
	identity  *enrich.Identity
	parts     []part // of pairs; one, unless they are divided as with Kafka
	behaviour *detect.Behaviour

	// Where pairs are divided: the draw of who is behind, what is on its way to the detectors of
	// behaviour, and how far time has come.
	rng   *rand.Rand
	edges []digest
	clock flow.Time

	in     *flow.Batch
	out    *flow.Batch
	last   map[string]*flow.Finding // as stored, or told, last
	told   map[string]uint64        // the revision that was told last
	counts map[string]int64
	spots  map[string]flow.BlindSpot
	wrong  []string
}

// part is the stages that know of nothing but pairs of endpoints.
type part struct {
	pairer   *enrich.Pairer
	detector *detect.Detector
	sessions *enrich.Sessions
	contacts *detect.Contacts
}

// digest is what a part has told the detectors of behaviour.
type digest struct {
	part  int
	value []byte
}

// NewChain makes the stages, empty. facts are what was said of who is behind addresses; each
// counts from when it was known. beats are when its sources were heard.
func NewChain(set Settings, versions []Version, facts []flow.Fact, beats []flow.Heartbeat) (*Chain, error) {
	c := &Chain{settings: set, versions: versions, facts: facts, beats: beats, in: flow.NewBatch(1, nil), out: flow.NewBatch(64, nil),
		parts: make([]part, 1), last: map[string]*flow.Finding{}, told: map[string]uint64{}, counts: map[string]int64{}, spots: map[string]flow.BlindSpot{}}
	if err := c.build(); err != nil {
		return nil, err
	}
	return c, nil
}

// build makes every stage anew, as a start of the program does.
func (c *Chain) build() (err error) {
	c.names = flow.NewNames(0)
	if c.identity, err = enrich.NewIdentity(enrich.DefaultIdentityConfig(), c.names, nil); err != nil {
		return err
	}
	c.history = policy.NewHistory(c.names, policy.DefaultConfig())
	for _, v := range c.versions {
		if err := c.history.Add(v.Policy, v.Since); err != nil {
			return err
		}
		c.identity.NameGroups(v.Policy.Groups())
	}
	c.identity.Take(c.facts, flow.Heartbeat{})
	for _, b := range c.beats {
		c.identity.Take(nil, b)
	}
	for i := range c.parts {
		if err = c.buildPart(&c.parts[i]); err != nil {
			return err
		}
	}
	c.behaviour, err = detect.NewBehaviour(c.settings.Detect, len(c.parts), detect.Versions{History: c.history}, c.names, nil)
	return err
}

func (c *Chain) buildPart(p *part) (err error) {
	set := c.settings
	set.Detect.SessionLateness = max(set.Sessions.Lateness, set.Sessions.CloudLateness) + set.Sessions.Settle
	if p.pairer, err = enrich.NewPairer(set.Enrich, c.history, enrich.DeclaredBy(c.history), c.names, nil); err != nil {
		return err
	}
	p.pairer.Identify(c.identity)
	p.pairer.Translated(&set.Sessions)
	if p.detector, err = detect.New(set.Detect, detect.Versions{History: c.history}, c.names, nil); err != nil {
		return err
	}
	if p.contacts, err = detect.NewContacts(set.Detect, c.names, nil); err != nil {
		return err
	}
	p.sessions, err = enrich.NewSessions(set.Sessions, c.identity.Domains(), c.names, nil)
	return err
}

// divide divides pairs among n before anything is taken in; seed draws which of them is behind.
func (c *Chain) divide(n int, seed uint64) error {
	c.parts, c.rng = make([]part, n), rand.New(rand.NewPCG(seed, 3))
	return c.build()
}

// Names is the table that records' names come from; [Chain.Restart] makes another.
func (c *Chain) Names() *flow.Names { return c.names }

// Process takes decoded records in.
func (c *Chain) Process(in *flow.Batch) {
	if len(c.parts) == 1 {
		c.parts[0].pairer.Process(in, c.out)
		c.observe(&c.parts[0])
		return
	}
	for i := range in.Records {
		r := &in.Records[i]
		c.in.Reset()
		*c.in.Next() = *r
		c.clock = max(c.clock, r.Received, r.End)
		p := &c.parts[kafka.Partition(r.Src, r.Dst, len(c.parts))]
		p.pairer.Process(c.in, c.out)
		c.observe(p)
	}
}

// Tick tells every stage the time of the injected clock.
func (c *Chain) Tick(now flow.Time) {
	for i := range c.parts {
		c.tick(&c.parts[i], now)
	}
}

func (c *Chain) tick(p *part, now flow.Time) {
	p.pairer.Tick(now, c.out)
	c.observe(p)
	p.detector.Tick(now)
	p.sessions.Tick(now)
}

func (c *Chain) observe(p *part) {
	p.detector.Observe(c.out)
	p.sessions.Observe(c.out)
	p.contacts.Observe(c.out)
	if c.OnFlow != nil {
		for i := range c.out.Records {
			c.OnFlow(&c.out.Records[i], c.names)
		}
	}
	c.out.Reset()
}

// EndUnit ends a unit of input: what it gave rise to is collected. Where pairs are divided some
// of the parts are behind, and so is who reads what they tell.
func (c *Chain) EndUnit() error { return c.endUnit(false) }

// endUnit is EndUnit; all says that it is the end of one for every part, as before a checkpoint.
func (c *Chain) endUnit(all bool) error {
	for i := range c.parts {
		p := &c.parts[i]
		if c.rng != nil {
			if c.rng.IntN(3) == 0 && !all {
				continue
			}
			if c.clock > 0 && c.rng.IntN(2) == 0 {
				c.tick(p, c.clock)
			}
		}
		c.settle(p, p.sessions.Collect)
		c.pass(i, p.sessions.Watermark())
		c.take(p.detector.Collect())
	}
	n := len(c.edges)
	if c.rng != nil {
		n = c.rng.IntN(n + 1)
	}
	if err := c.look(n); err != nil {
		return err
	}
	c.take(c.behaviour.Collect())
	c.keep(c.behaviour.BlindSpots(false))
	return nil
}

// Flush ends the input for good.
func (c *Chain) Flush() error {
	if c.rng != nil {
		c.Tick(c.clock) // those without flows at the end hear of it by the clock
	}
	for i := range c.parts {
		p := &c.parts[i]
		p.pairer.Flush(c.out)
		c.observe(p)
		c.settle(p, p.sessions.Flush)
		c.pass(i, math.MaxInt64)
		c.take(p.detector.Flush())
	}
	if err := c.look(len(c.edges)); err != nil {
		return err
	}
	c.take(c.behaviour.Flush())
	c.keep(c.behaviour.BlindSpots(true))
	return nil
}

// pass passes on what settled in a part.
func (c *Chain) pass(i int, until flow.Time) {
	d := c.parts[i].contacts.Collect(until)
	c.edges = append(c.edges, digest{i, d.Encode(c.names)})
}

// look has the detectors of behaviour look at the first n digests on their way.
func (c *Chain) look(n int) error {
	for _, each := range c.edges[:n] {
		d, err := detect.DecodeDigest(each.value, c.names)
		if err != nil {
			return err
		}
		c.behaviour.Take(each.part, d)
	}
	c.edges = slices.Delete(c.edges, 0, n)
	return nil
}

func (c *Chain) settle(p *part, collect func() ([]flow.Session, []flow.Contradiction)) {
	versions, contradictions := collect()
	edges, index := p.sessions.Edges(), p.sessions.Index()
	p.detector.Settle(versions, index)
	p.detector.Contradict(contradictions)
	p.contacts.Sessions(versions, edges, index)
	p.contacts.Untold(p.sessions.Untold())
}

func (c *Chain) take(contributions []flow.Contribution, events []*flow.Finding) {
	for i := range contributions {
		f := contributions[i].Finding
		c.counts[f.ID] += contributions[i].Sessions
		c.last[f.ID] = f
	}
	for _, f := range events {
		if old := c.told[f.ID]; old >= f.Revision {
			c.wrong = append(c.wrong, fmt.Sprintf("finding %s (%s) was told at revision %d and then at %d; revisions rise", f.ID, f.Type, old, f.Revision))
		}
		c.told[f.ID], c.last[f.ID] = f.Revision, f
	}
}

// keep takes in versions of blind spots, as the program stores them.
func (c *Chain) keep(spots []flow.BlindSpot) {
	for _, n := range spots {
		if old := c.spots[n.ID]; old.Version >= n.Version {
			c.wrong = append(c.wrong, fmt.Sprintf("blind spot %s (%s) was told at version %d and then at %d; versions rise", n.ID, n.About, old.Version, n.Version))
		}
		c.spots[n.ID] = n
	}
}

// BlindSpots is the last version of every blind spot, by when it began, then id.
func (c *Chain) BlindSpots() []flow.BlindSpot {
	return slices.SortedFunc(maps.Values(c.spots), func(a, b flow.BlindSpot) int {
		return cmp.Or(cmp.Compare(a.From, b.From), strings.Compare(a.ID, b.ID))
	})
}

// stage is a stage whose state crosses units.
type stage interface {
	Snapshot() ([]byte, error)
	Restore([]byte) error
}

// stages lists them in their order; who is behind addresses is told anew, as the program reads
// its journal.
func (c *Chain) stages() []stage {
	list := []stage{c.behaviour}
	for i := range c.parts {
		p := &c.parts[i]
		list = append(list, p.pairer, p.detector, p.sessions, p.contacts)
	}
	return list
}

// Restart ends the unit, takes a checkpoint of every stage, throws the stages away and
// begins with new ones at the checkpoint: what a kill and a start of the program do.
func (c *Chain) Restart() error {
	if err := c.endUnit(true); err != nil {
		return err
	}
	var states [][]byte
	for _, s := range c.stages() {
		b, err := s.Snapshot()
		if err != nil {
			return fmt.Errorf("taking a checkpoint: %w", err)
		}
		states = append(states, b)
	}
	if err := c.build(); err != nil {
		return err
	}
	for i, s := range c.stages() {
		if err := s.Restore(states[i]); err != nil {
			return fmt.Errorf("restoring the checkpoint: %w", err)
		}
	}
	return nil
}

// Findings is the last state of every finding, by first sight, then id; one that a suppression
// holds back is among them.
func (c *Chain) Findings() []*flow.Finding {
	out := make([]*flow.Finding, 0, len(c.last))
	for _, f := range c.last {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b *flow.Finding) int {
		if a.FirstSeen != b.FirstSeen {
			return int(a.FirstSeen - b.FirstSeen)
		}
		return strings.Compare(a.ID, b.ID)
	})
	return out
}

// Wrong lists what may not be at the end, whatever the input: a revision that did not rise, a
// change that nobody was told of, contributions that do not add up to what a finding says.
func (c *Chain) Wrong() []string {
	out := slices.Clone(c.wrong)
	for id, n := range c.counts {
		f := c.last[id]
		if c.told[id] < f.Revision && f.SuppressedBy == "" && f.GroupedBy == "" {
			out = append(out, fmt.Sprintf("finding %s (%s) is at revision %d and was last told at %d, though nothing suppresses it", id, f.Type, f.Revision, c.told[id]))
		}
		if f.Count != n {
			out = append(out, fmt.Sprintf("finding %s (%s): contributions add up to %d, it says %d", id, f.Type, n, f.Count))
		}
	}
	slices.Sort(out)
	return out
}
