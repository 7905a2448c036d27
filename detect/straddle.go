package detect

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/postern/postern/flow"
)

// A session may begin while its exception holds and go on after it ended. One
// record that spans the end past the grace is an outlived-exception at once. A
// later record of the same five-tuple is judged expired-exception; where it
// follows without a gap beyond sessionGap it belongs to that session and joins
// its finding instead — also where no single record spans the end.
//
// Whether it does can be said only once everything that began before it has come.
// So a record that may join is held until event time has passed its start by the
// lateness, and then decided from all that came: the order of arrival does not
// show. A record that began later than that after the end, of a five-tuple that
// nothing is known of, is told at once.

// tuple is an unordered five-tuple; for ICMP lowPort is the service.
type tuple struct {
	Low      flow.Addr `json:"low"`
	High     flow.Addr `json:"high"`
	LowPort  uint16    `json:"lowPort"`
	HighPort uint16    `json:"highPort"`
	Proto    uint8     `json:"proto"`
}

func tupleOf(r *flow.Record) tuple {
	a, z := r.Src.Canonical(), r.Dst.Canonical()
	ap, zp := r.SrcPort, r.DstPort
	if r.IsICMP() {
		ap, zp = 0, 0
	}
	if c := cmp.Or(a.Compare(z), cmp.Compare(ap, zp)); c > 0 {
		a, z, ap, zp = z, a, zp, ap
	}
	if r.IsICMP() {
		ap = icmpService(r)
	}
	return tuple{a, z, ap, zp, r.Proto}
}

func (t *tuple) compare(o *tuple) int {
	return cmp.Or(t.Low.Compare(o.Low), t.High.Compare(o.High), cmp.Compare(t.LowPort, o.LowPort),
		cmp.Compare(t.HighPort, o.HighPort), cmp.Compare(t.Proto, o.Proto))
}

// straddle is what is known of one five-tuple around the end of its exceptions.
type straddle struct {
	Tuple tuple      `json:"tuple"`
	Roots []root     `json:"roots,omitempty"`
	Held  []sighting `json:"held,omitempty"`
}

// root is a session that an exception allowed up to close before its end.
type root struct {
	Span      span      `json:"span"` // grows by the records that join
	Until     flow.Time `json:"until"`
	Exception string    `json:"exception"`
	Facts     Facts     `json:"facts"`
}

// maxRoots and maxHeldPerTuple bound one five-tuple; only a forger exceeds them.
const (
	maxRoots        = 16
	maxHeldPerTuple = 256
)

// watch notes a waived record that ends close to the end of its exception.
func (d *Detector) watch(r *flow.Record) {
	until, gap := r.Verdict.ValidUntil, d.sessionGap
	if until == 0 || r.Verdict.Exception == flow.NoName || max(r.End, r.Start)+gap < until {
		return
	}
	st := d.straddleOf(tupleOf(r))
	if st == nil {
		return
	}
	n := root{Span: span{r.Start, max(r.Start, r.End)}, Until: until, Exception: d.names.Text(r.Verdict.Exception)}
	n.Facts, _ = d.policy.ExceptionFacts(r.Start, r.Verdict.Exception)
	kept := st.Roots[:0]
	for _, o := range st.Roots {
		if o.Exception == n.Exception && o.Until == n.Until && o.Span.Start <= n.Span.End+gap && n.Span.Start <= o.Span.End+gap {
			n.Span.Start, n.Span.End = min(n.Span.Start, o.Span.Start), max(n.Span.End, o.Span.End)
			continue
		}
		kept = append(kept, o)
	}
	st.Roots = kept
	if len(st.Roots) >= maxRoots {
		d.m.unwatched.Inc()
		return
	}
	st.Roots = append(st.Roots, n)
}

func (d *Detector) straddleOf(t tuple) *straddle {
	st := d.straddles[t]
	if st == nil {
		if len(d.straddles) >= d.cfg.MaxStraddles {
			d.m.unwatched.Inc()
			return nil
		}
		st = &straddle{Tuple: t}
		d.straddles[t] = st
	}
	return st
}

// expired takes a record that is judged expired-exception: it is held if it may
// belong to a session that its exception allowed, else told.
func (d *Detector) expired(r *flow.Record) {
	s := d.sight(r, flow.FindingExpired)
	t := tupleOf(r)
	st := d.straddles[t]
	if st == nil && !d.justEnded(r) {
		d.add(&s, r)
		return
	}
	if d.clock > s.Span.Start+d.lateness { // everything that began before it has come, or it is late
		d.settle(st, &s, r)
		return
	}
	if st == nil {
		if st = d.straddleOf(t); st == nil {
			d.add(&s, r)
			return
		}
	}
	if len(st.Held) >= maxHeldPerTuple {
		d.m.unwatched.Inc()
		d.settle(st, &s, r)
		return
	}
	s.Sample = r.AppendJSON(nil, d.names.Texts())
	s.Told.Ends, s.Exporter, s.Observer = d.endsOf(r), r.Exporter.String(), d.names.Text(r.Observer)
	st.Held = append(st.Held, s)
	d.held++
	d.nextHeld = min(d.nextHeld, s.Span.Start)
}

// justEnded says whether one of the exceptions that r implicates ended so shortly
// before r began that a session it allowed may go on in r and not have come yet.
func (d *Detector) justEnded(r *flow.Record) bool {
	v := &r.Verdict
	within := func(e flow.Name) bool {
		f, ok := d.policy.ExceptionFacts(r.Start, e)
		return ok && f.Ends != 0 && f.Ends <= r.Start && r.Start <= f.Ends+max(d.sessionGap, d.lateness)
	}
	if within(v.Exception) {
		return true
	}
	return slices.ContainsFunc(v.Others[:min(int(v.OthersTotal), flow.MaxOthers)], within)
}

// settle decides whether an expired record joins a session of st, which may be nil.
func (d *Detector) settle(st *straddle, s *sighting, r *flow.Record) {
	var best *root
	if st != nil {
		for i := range st.Roots {
			o := &st.Roots[i]
			if s.Span.Start < o.Span.Start || s.Span.Start > o.Span.End+d.sessionGap || s.Span.Start < o.Until {
				continue
			}
			if best == nil || cmp.Or(cmp.Compare(o.Until, best.Until), strings.Compare(o.Exception, best.Exception), cmp.Compare(o.Span.Start, best.Span.Start)) > 0 {
				best = o
			}
		}
	}
	if best == nil {
		d.add(s, r)
		return
	}
	best.Span.End = max(best.Span.End, s.Span.End)
	if s.Span.End <= best.Until+d.grace {
		return // wound down within the grace
	}
	s.Key.Type, s.Key.Subject = flow.FindingOutlived, best.Exception
	s.Told.Exception, s.Told.Facts, s.Told.ValidUntil = best.Exception, best.Facts, best.Until
	s.Told.Severity = severity(&s.Told, flow.FindingOutlived)
	d.add(s, r)
}

// release decides the held records that began before limit, earliest first, and
// forgets five-tuples that nothing can join any more.
func (d *Detector) release(limit flow.Time) {
	if d.held == 0 || d.nextHeld >= limit {
		return
	}
	d.nextHeld = maxTime
	for _, t := range slices.SortedFunc(maps.Keys(d.straddles), func(a, b tuple) int { return a.compare(&b) }) {
		st := d.straddles[t]
		if len(st.Held) == 0 {
			continue
		}
		slices.SortFunc(st.Held, func(a, b sighting) int {
			return cmp.Or(cmp.Compare(a.Span.Start, b.Span.Start), cmp.Compare(a.Told.Record, b.Told.Record))
		})
		n := 0
		for n < len(st.Held) && st.Held[n].Span.Start < limit {
			d.settle(st, &st.Held[n], nil)
			n++
		}
		d.held -= n
		st.Held = slices.Delete(st.Held, 0, n)
		if len(st.Held) > 0 {
			d.nextHeld = min(d.nextHeld, st.Held[0].Span.Start)
		}
	}
}

// forgetStraddles drops five-tuples whose sessions no record in time can join.
func (d *Detector) forgetStraddles() {
	for t, st := range d.straddles {
		st.Roots = slices.DeleteFunc(st.Roots, func(o root) bool {
			return max(o.Span.End, o.Until)+d.sessionGap+d.lateness < d.clock
		})
		if len(st.Roots) == 0 && len(st.Held) == 0 {
			delete(d.straddles, t)
		}
	}
}
