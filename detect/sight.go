package detect

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/postern/postern/flow"
)

// What was never seen is new only to who was looking. Detectors that say so of an edge ask here
// for how long those who told of it now have been telling at all: an exporter that is new, or was
// silent for weeks, or an agent just installed, shows much that went on all the time.

// sight is how well one who tells of a contact could see it before.
type sight struct {
	watched flow.Time // for how long, of the time asked for
	since   flow.Time // when it was heard first, where that is later than the time asked for
	blind   flow.Time // for how long it told nothing
	who     string    // in words; empty where nobody is known who told
}

// heardBy says whether an observer told of a contact before that settled: others may be listed
// or not, as input was cut.
func (c *Contact) heardBy(o *flow.SessionObserver) bool { return o.First < c.Settled }

// observers lists who told of a contact before it settled.
func (c *Contact) observers(do func(*flow.SessionObserver)) {
	for i := range c.Observers[:min(int(c.ObserversTotal), len(c.Observers))] {
		if o := &c.Observers[i]; c.heardBy(o) {
			do(o)
		}
	}
}

// sightOf gives the best sight that anybody who told of a contact had within a stretch of time.
func (b *Behaviour) sightOf(c *Contact, from, until flow.Time) (best sight) {
	first := true
	c.observers(func(o *flow.SessionObserver) {
		if s := b.sightOfOne(c, o, from, until); first || s.watched > best.watched {
			best, first = s, false
		}
	})
	if first {
		best.watched = until - from
	}
	return best
}

func (b *Behaviour) sightOfOne(c *Contact, o *flow.SessionObserver, from, until flow.Time) (s sight) {
	since := until
	fits := func(n *spot) bool { return false }
	if o.Reporter != flow.ReporterElsewhere && !inCloud(o.Source) {
		end := &c.Client
		if o.Reporter == flow.ReporterDestination {
			end = &c.Server
		}
		s.who = "its agent"
		if i, known := b.spots.byHost[end.Addr]; known && b.spots.agents[i].Agent == o.Observer {
			since = minuteTime(b.spots.agents[i].First)
		} else if !known && len(b.spots.agents) >= b.bcfg.MaxHosts {
			since = from // not followed
		}
		feed := o.Source.String()
		fits = func(n *spot) bool {
			return n.Kind == flow.FindingSilentHost && n.Address == end.Addr || n.Subject == flow.BlindFeed && n.Source == feed
		}
	} else {
		k := tellerOf(o.Source, o.Exporter, o.Domain, o.Observer, o.Reporter)
		if i, known := b.spots.byTeller[k]; known {
			t := &b.spots.tellers[i]
			since, s.who = minuteTime(t.First), b.spots.who(b, t)
		} else if len(b.spots.tellers) >= maxTellers {
			since = from // not followed
		} else {
			s.who = b.spots.who(b, &teller{Key: k})
		}
		source, name := k.Source.String(), b.names.Text(k.Name)
		fits = func(n *spot) bool {
			return n.Address == k.Addr && n.Domain == k.Domain && n.Source == source && n.Name == name &&
				(n.Subject == flow.BlindExporter || n.Subject == flow.BlindFeed)
		}
	}
	if since > from {
		s.since = min(since, until)
		from = s.since
	}
	s.blind = b.spots.during(from, until, func(n *spot) bool {
		return n.Subject == flow.BlindEverything || n.Kind == flow.FindingSilentExporter && fits(n) || n.Kind == flow.FindingSilentHost && fits(n)
	})
	s.watched = until - from - s.blind
	return s
}

// forgot is when, within a stretch of time, answered edges were first forgotten before their
// time; 0: none were.
func (s *spots) forgot(from, until flow.Time) (first flow.Time) {
	for i := range s.list {
		n := &s.list[i]
		if n.Kind == flow.FindingPressure && (n.About == edgeRanks[1] || n.About == edgeRanks[2]) && n.From < until && n.Until > from && (first == 0 || n.From < first) {
			first = n.From
		}
	}
	return first
}

// unwatched says whether who told of a contact has not been telling for long enough to know what
// is new: for it the time to learn is not over, though it is for others.
func (b *Behaviour) unwatched(c *Contact) bool {
	from := max(b.began, c.Settled-millis(b.bcfg.Remember))
	return b.sightOf(c, from, c.Settled).watched < min(millis(b.bcfg.Learn), c.Settled-from)
}

// caveat says in words, behind a sentence that something was never seen before, what was not seen
// in that time, and how much less sure it is for it, in percent; empty where all was.
func (b *Behaviour) caveat(c *Contact) (says string, certain uint8) {
	from := max(b.began, c.Settled-millis(b.bcfg.Remember))
	all := c.Settled - from
	s := b.sightOf(c, from, c.Settled)
	var parts []string
	if s.since != 0 && s.since-from >= hourMillis {
		parts = append(parts, capital(s.who)+", which tells of it, was not heard before "+moment(s.since)+".")
	}
	if s.blind >= spotJoins {
		parts = append(parts, "For "+roughly(s.blind)+" of that time "+cmp.Or(s.who, "whoever tells of it")+" told nothing, so it may have been so before.")
	}
	certain = 100
	if all > 0 && len(parts) > 0 {
		certain = uint8(max(20, 100*s.watched/all))
	}
	if forgot := b.spots.forgot(from, c.Settled); forgot != 0 {
		parts = append(parts, "Since "+moment(forgot)+" edges were forgotten for want of room (state-pressure), so it may have been so before.")
		certain = min(certain, 70)
	}
	if len(parts) == 0 {
		return "", 100
	}
	return " " + strings.Join(parts, " "), certain
}

// less is a confidence of which only so many percent are left.
func less(confidence, percent uint8) uint8 { return uint8(uint(confidence) * uint(percent) / 100) }

// impaired says in words whether everybody who told of a contact, but the client's own agent,
// saw only a part of what went on then: datagrams were lost, or packets are sampled. That nothing
// came back is less sure for it. Empty if one of them saw all.
func (b *Behaviour) impaired(c *Contact) (says string) {
	whole := false
	c.observers(func(o *flow.SessionObserver) {
		if whole || o.Reporter == flow.ReporterSource {
			return
		}
		k := tellerOf(o.Source, o.Exporter, o.Domain, o.Observer, o.Reporter)
		if i, known := b.spots.byTeller[k]; known && b.spots.tellers[i].samples() {
			says = cmp.Or(says, capital(b.spots.who(b, &b.spots.tellers[i]))+" tells of only some of the packets, so what came back may not have been seen.")
			return
		}
		source, name := k.Source.String(), b.names.Text(k.Name)
		whole = b.spots.during(c.Start-minuteMillis, c.Settled, func(n *spot) bool {
			return (n.Kind == flow.FindingLoss || n.Kind == flow.FindingSampling) && n.Address == k.Addr && n.Domain == k.Domain && n.Source == source && n.Name == name
		}) == 0
		if !whole {
			says = cmp.Or(says, "Datagrams of "+b.spots.who(b, &teller{Key: k})+" were lost at that time, so what came back may not have been seen.")
		}
	})
	if whole {
		return ""
	}
	return says
}

// hush is whether anybody who is usually heard is not, by the minute.
type hush struct {
	at                uint32 // the minute it is known of
	exporters, agents bool
}

// hushed says whether an exporter, or the agents of a format, have told nothing for longer than
// ever before, since at most a day: as long as that may be told of as silence later, and until what
// went by it has gone by others.
func (s *spots) hushed(at flow.Time) hush {
	minute := uint32(max(at, 0) / minuteMillis)
	if s.hush.at == minute {
		return s.hush
	}
	s.hush = hush{at: minute}
	for i := range s.tellers {
		t := &s.tellers[i]
		last := max(t.Last, s.resumed)
		if _, regular := s.deadline(t); !regular && t.Silent == 0 || last+1+slices.Max(t.Gaps[:]) >= minute || last+24*60 < minute {
			continue
		}
		if t.Key.Addr.IsZero() && t.Key.Name == flow.NoName {
			s.hush.agents = s.hush.agents || !inCloud(t.Key.Source)
		} else {
			s.hush.exporters = true
		}
	}
	return s.hush
}

// samples says whether it told lately that it counts only some of the packets.
func (t *teller) samples() bool {
	newest := 0
	for i := range t.Rates {
		if t.Rates[i] != 0 && (t.RateSeen[i] > t.RateSeen[newest] || t.Rates[newest] == 0) {
			newest = i
		}
	}
	return t.Rates[newest] > 1
}

// partly says of how much of a time nothing was seen, in words.
func partly(blind flow.Time) string {
	if blind < spotJoins {
		return ""
	}
	return fmt.Sprintf(" (for %s of that time who tells of it told nothing)", roughly(blind))
}
