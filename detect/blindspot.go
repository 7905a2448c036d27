package detect

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/postern/postern/flow"
)

// BlindConfig says when it is told that something is not seen any more.
type BlindConfig struct {
	// History is how long who tells of flows must have been heard before its silence means
	// anything: what is usual must be known over a day and a night.
	History time.Duration `yaml:"history"`
	// Least is for how long an exporter must be silent at least. It is three times as long as
	// it has ever been silent in the weeks before.
	Least time.Duration `yaml:"least"`
	// Most is for how long one must be silent that is silent every night: a long weekend is usual.
	Most time.Duration `yaml:"most"`
	// Host is for how long the agent of a host must be silent while others see the host answer.
	Host time.Duration `yaml:"host"`
	// Sessions is how many such answers there must be, and how many sessions a host without
	// any agent must have where an agent is required; of one edge one in ten minutes counts.
	Sessions int `yaml:"sessions"`
}

// DefaultBlindConfig gives the defaults.
func DefaultBlindConfig() BlindConfig {
	return BlindConfig{
		History:  24 * time.Hour,
		Least:    10 * time.Minute,   // exporters tell something every minute or so; some templates only every ten
		Most:     5 * 24 * time.Hour, // from the Thursday before Easter to the Tuesday after
		Host:     30 * time.Minute,   // an agent that is being updated is back by then
		Sessions: 3,                  // with Host, one edge that is used all the time is enough
	}
}

func (c *BlindConfig) validate() error {
	for _, d := range []struct {
		key         string
		v           time.Duration
		least, most time.Duration
	}{
		{"history", c.History, time.Minute, 90 * 24 * time.Hour}, {"least", c.Least, 2 * time.Minute, 24 * time.Hour},
		{"most", c.Most, c.Least, 90 * 24 * time.Hour}, {"host", c.Host, 10 * time.Minute, 30 * 24 * time.Hour},
	} {
		if d.v < d.least || d.v > d.most {
			return fmt.Errorf("detect.behaviour.blind.%s is %v; write a duration from %v to %v", d.key, d.v, d.least, d.most)
		}
	}
	if c.Sessions < 1 || c.Sessions > 1000 {
		return fmt.Errorf("detect.behaviour.blind.sessions is %d; write a number from 1 to 1000", c.Sessions)
	}
	return nil
}

// spots finds what is not seen: exporters and agents that fall silent, lose, change or go by
// wrong clocks, and keeps when that was, so that nothing is claimed of that time.
type spots struct {
	cfg *BlindConfig
	m   *behaviourMetrics

	tellers  []teller
	byTeller map[HeardKey]int32
	any      teller    // all of them together
	resumed  uint32    // the minute at which something was heard again after nothing was
	next     flow.Time // nobody falls silent before

	agents []agentHost
	byHost map[flow.Addr]int32
	spoke  map[flow.Name]uint32 // agents that have a name, by it: when they told of something last, wherever
	bare   []bareSegment

	drift drift
	hush  hush // not part of the state: it is found anew

	list    []spot           // in the order in which they were found
	leaving []flow.BlindSpot // forgotten before their last change was told
}

const (
	maxTellers = 1 << 16 // about 150 bytes each: 10 MB
	maxSpots   = 1 << 12
)

func newSpots(cfg *BlindConfig, m *behaviourMetrics) spots {
	return spots{cfg: cfg, m: m, byTeller: map[HeardKey]int32{}, byHost: map[flow.Addr]int32{}, spoke: map[flow.Name]uint32{}, drift: newDrift()}
}

// next gives when the next window ends.
func (o *Observations) next() (at flow.Time, more bool) {
	at = maxTime
	if len(o.Heard) > 0 {
		at = flow.Time(o.Heard[0].Key.At+heardWindow) * minuteMillis
	}
	if len(o.Hosts) > 0 {
		at = min(at, flow.Time(o.Hosts[0].Key.At+hostWindow)*minuteMillis)
	}
	if len(o.Rules) > 0 {
		at = min(at, flow.Time(o.Rules[0].Key.At+hostWindow)*minuteMillis)
	}
	if len(o.Denied) > 0 {
		at = min(at, flow.Time(o.Denied[0].Key.At+hostWindow)*minuteMillis)
	}
	if len(o.Bulk) > 0 {
		at = min(at, flow.Time(o.Bulk[0].Key.At+bulkOver)*minuteMillis)
	}
	if len(o.Reports) > 0 {
		at = min(at, flow.Time(o.Reports[0].Key.At+hostWindow)*minuteMillis)
	}
	return at, at != maxTime
}

// look takes in the windows that end at a time.
func (s *spots) look(b *Behaviour, o *Observations, at flow.Time) {
	minute := uint32(at / minuteMillis)
	for len(o.Heard) > 0 && o.Heard[0].Key.At+heardWindow == minute {
		s.heard(b, &o.Heard[0].Key, &o.Heard[0].N)
		o.Heard = o.Heard[1:]
	}
	for len(o.Hosts) > 0 && o.Hosts[0].Key.At+hostWindow == minute {
		s.host(b, &o.Hosts[0].Key, &o.Hosts[0].N)
		o.Hosts = o.Hosts[1:]
	}
	for len(o.Rules) > 0 && o.Rules[0].Key.At+hostWindow == minute {
		s.drift.rule(b, &o.Rules[0].Key, &o.Rules[0].N)
		o.Rules = o.Rules[1:]
	}
}

// minuteTime is when a minute begins.
func minuteTime(minute uint32) flow.Time { return flow.Time(minute) * minuteMillis }

// spot is a blind spot and what of it was told to whoever stores it.
type spot struct {
	flow.BlindSpot
	Told   uint64    `json:"told"` // its version then
	ToldAt flow.Time `json:"toldAt"`
}

// over says whether nothing more is to come of it: neither is it open nor will it be joined.
func (o *spot) over(now flow.Time) bool { return o.Until != 0 && o.Until+spotJoins < now }

// BlindSpots gives those that are new or have changed, by id: each when it is found, at most
// once per [Config.UpdateEvery] while it grows, and once it is over; all that have changed if
// nothing more comes. What it gives belongs to the caller.
func (b *Behaviour) BlindSpots(all bool) (out []flow.BlindSpot) {
	s := &b.spots
	for i := range s.list {
		o := &s.list[i]
		if o.Version != o.Told && (all || o.Told == 0 || o.over(b.clock) || b.clock >= o.ToldAt+b.updateEvery) {
			o.Told, o.ToldAt = o.Version, b.clock
			out = append(out, o.BlindSpot)
		}
	}
	out = append(out, s.leaving...)
	s.leaving = nil
	slices.SortFunc(out, func(x, y flow.BlindSpot) int { return strings.Compare(x.ID, y.ID) })
	return out
}

// note keeps a blind spot; one of the same kind and about the same that it touches grows.
// until is 0 while it is not over.
func (s *spots) note(b *Behaviour, n flow.BlindSpot) {
	for i := len(s.list) - 1; i >= 0; i-- {
		o := &s.list[i]
		if o.Kind != n.Kind || o.About != n.About || o.Address != n.Address {
			continue
		}
		if o.Until != 0 && o.Until+spotJoins < n.From {
			break
		}
		n.ID, n.Version, n.From = o.ID, o.Version, o.From
		if n.Finding = cmp.Or(n.Finding, o.Finding); n != o.BlindSpot {
			n.Version++
			o.BlindSpot = n
		}
		return
	}
	if len(s.list) >= maxSpots {
		s.dropSpot(b, n.From)
	}
	n.Version = 1
	n.ID = spotID(&n)
	s.list = append(s.list, spot{BlindSpot: n})
}

// spotJoins is how far apart two may be and still be one.
const spotJoins = 10 * minuteMillis

// dropSpot forgets the one that was over first; if none is, the oldest.
func (s *spots) dropSpot(b *Behaviour, at flow.Time) {
	least := 0
	for i := range s.list {
		if o, l := &s.list[i], &s.list[least]; o.Until != 0 && (l.Until == 0 || o.Until < l.Until) {
			least = i
		}
	}
	s.leave(&s.list[least])
	s.list = slices.Delete(s.list, least, least+1)
	s.m.spotsDropped.Inc()
	b.pressed(boundSpots, flow.Addr{}, 1, max(at, b.until))
}

// leave has what was not told of a spot yet told, although it is forgotten.
func (s *spots) leave(o *spot) {
	if o.Version != o.Told && len(s.leaving) < maxSpots {
		s.leaving = append(s.leaving, o.BlindSpot)
	}
}

// during is for how long of a stretch of time any of the blind spots that fit lasted.
func (s *spots) during(from, until flow.Time, fits func(*spot) bool) (total flow.Time) {
	var found []span
	for i := range s.list {
		n := &s.list[i]
		end := cmp.Or(n.Until, until)
		if n.From < until && end > from && fits(n) {
			found = append(found, span{max(n.From, from), min(end, until)})
		}
	}
	slices.SortFunc(found, func(x, y span) int { return cmp.Or(cmp.Compare(x.Start, y.Start), cmp.Compare(x.End, y.End)) })
	at := from
	for _, f := range found {
		if f.End > at {
			total += f.End - max(f.Start, at)
			at = f.End
		}
	}
	return total
}

func spotID(n *flow.BlindSpot) string {
	b := []byte("postern blind spot 1")
	for _, t := range [...]string{n.Kind, n.About} {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(t))), t...)
	}
	a := n.Address.As16()
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(append(b, a[:]...), uint64(n.From)))
	return hex.EncodeToString(sum[:16])
}

// forget drops what is too old to matter. It runs once an hour of event time.
func (s *spots) forget(b *Behaviour) {
	before := b.until - millis(b.bcfg.Remember)
	s.list = slices.DeleteFunc(s.list, func(o spot) bool {
		old := o.Until != 0 && o.Until < before
		if old {
			s.leave(&o)
		}
		return old
	})
	old := uint32(max(before, 0) / minuteMillis)
	n := len(s.tellers)
	for i := range s.tellers {
		if t := &s.tellers[i]; t.Last < old && t.Silent != 0 {
			s.note(b, s.ofTeller(b, t, flow.BlindSpot{Kind: flow.FindingSilentExporter, From: minuteTime(t.Silent), Until: b.until, Details: notWaitedFor}))
		}
	}
	if s.tellers = slices.DeleteFunc(s.tellers, func(t teller) bool { return t.Last < old }); len(s.tellers) != n {
		s.adoptTellers()
	}
	s.forgetHosts(b, old)
	s.drift.forget(dayOf(b.until))
	s.m.tellers.Set(float64(len(s.tellers)))
	s.m.spots.Set(float64(len(s.list)))
}

func (s *spots) save(w *stateWriter) error {
	w.u64(uint64(s.resumed)) // when to look next is found anew
	saveAll(w, []teller{s.any})
	saveAll(w, s.tellers)
	saveAll(w, s.agents)
	saveAll(w, s.bare)
	s.drift.save(w)
	if err := w.json(s.list); err != nil {
		return err
	}
	return w.json(s.leaving)
}

func (s *spots) load(r *stateReader) {
	s.resumed, s.next, s.hush = uint32(r.u64()), 0, hush{}
	if all := loadAll[teller](r); len(all) == 1 {
		s.any = all[0]
	} else {
		r.fail(errState)
	}
	s.tellers, s.agents = loadAll[teller](r), loadAll[agentHost](r)
	s.bare = loadAll[bareSegment](r)
	s.drift.load(r)
	r.json(&s.list)
	r.json(&s.leaving)
	s.adoptTellers()
	s.adoptHosts()
}

// blindTold begins what a finding about a blind spot tells.
func blindTold(severity flow.Severity, confidence uint8, from, until flow.Time, title, sentence, next string, techniques ...string) told {
	return told{Severity: severity, Confidence: confidence, Start: from,
		Story: &story{Title: title, Sentence: sentence, Next: next, Techniques: techniques, Until: until}}
}

// roughly is a length of time in words.
func roughly(t flow.Time) string {
	switch d := t / minuteMillis; {
	case d < 2:
		return "a minute"
	case d < 120:
		return fmt.Sprintf("%d minutes", d)
	case d < 48*60:
		return fmt.Sprintf("%d hours", d/60)
	default:
		return fmt.Sprintf("%d days", d/(24*60))
	}
}
