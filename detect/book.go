package detect

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/postern/postern/flow"
)

// book is the findings that are held, whoever makes them: a sighting adds to one, collect gives
// what was added and what is to be told. Event time is its owner's clock. It is not safe for
// concurrent use. What it holds is bounded.
type book struct {
	cfg   *Config
	names *flow.Names
	m     *bookMetrics
	// policy says what is suppressed and what findings name of it; nil: nothing.
	policy Policy

	lateness, updateEvery flow.Time

	clock, swept flow.Time
	findings     map[key]*finding
	pending      map[*finding]struct{} // changed since they were told last
	touched      []*finding            // changed in this segment
	woken        []*finding            // pending ones to be looked at by the next Collect beside these
	waiting      wakes                 // pending ones that nothing but time or a change brings to be told
	leaving      []*finding            // forgotten before their last change was told
	full         bool                  // there is no more to forget until the next Collect
	sessions     int
	// groups is how many findings of a type, a source and a day are held; see flood.go.
	groups map[groupKey]int
}

func newBook(cfg *Config, names *flow.Names, m *bookMetrics) book {
	b := book{cfg: cfg, names: names, m: m, lateness: millis(cfg.Lateness), updateEvery: millis(cfg.UpdateEvery)}
	b.reset()
	return b
}

func (d *book) reset() {
	d.clock, d.swept, d.sessions, d.full, d.touched, d.leaving = 0, 0, 0, false, nil, nil
	d.findings, d.pending, d.groups = map[key]*finding{}, map[*finding]struct{}{}, map[groupKey]int{}
	d.woken, d.waiting = nil, nil
}

// add adds a sighting to its finding; r is its record, nil if it was held.
func (d *book) add(s *sighting, r *flow.Record) {
	d.m.raised.Inc()
	f := d.findings[s.Key]
	if f == nil {
		d.makeRoom()
		f = &finding{Key: s.Key, ID: s.Key.id(), Span: s.Span, Told: s.Told, Sessions: map[uint32]spans{}}
		d.complete(&f.Told, r)
		d.findings[s.Key] = f
		d.group(f)
		d.m.created.WithLabelValues(s.Key.Type).Inc()
	}
	f.Closed = false
	f.Records++
	f.Firm = f.Firm || s.Firm
	f.Span.Start, f.Span.End = min(f.Span.Start, s.Span.Start), max(f.Span.End, s.Span.End)
	if s.Told.standsBefore(&f.Told) {
		f.Told = s.Told
		d.complete(&f.Told, r)
	}
	if r != nil {
		f.told(r.Exporter, d.names.Text(r.Observer))
	} else {
		addObserver(&f.Exporters, []byte(s.Exporter))
		addObserver(&f.Observers, []byte(s.Observer))
	}
	if s.Told.Open && s.Session != 0 {
		f.LowPorts = addPort(f.LowPorts, uint16(s.Session>>16))
		f.HighPorts = addPort(f.HighPorts, uint16(s.Session))
	}
	if f.wantsSample(&s.Told) {
		j := s.Sample
		if r != nil {
			j = r.AppendJSON(nil, d.names.Texts())
		}
		f.addSample(sample{Start: s.Told.Start, Record: s.Told.Record, JSON: j})
	}
	d.quieten(f, s)
	grown := int64(1)
	if !s.Whole {
		grown = d.session(f, s)
	}
	d.touch(f, grown, s.Span)
}

// complete adds what only the record that stands for a finding is asked for.
func (d *book) complete(t *told, r *flow.Record) {
	if d.stamp(t); r != nil {
		t.Ends = d.endsOf(r)
	}
}

// stamp names the policy version that a finding is told under: the one its record was judged
// by, or, of what no verdict is behind, the one in force then.
func (d *book) stamp(t *told) {
	if d.policy == nil {
		return
	}
	version, commit, since := d.policy.Stamp(t.Start)
	if t.PolicyVersion == "" && t.Story != nil {
		t.PolicyVersion = version
	}
	if t.PolicyVersion == version {
		t.PolicyCommit, t.PolicySince = commit, since
	}
}

// session counts a sighting's session and links the finding with that of the day
// before and of the day after where the session crosses midnight.
func (d *book) session(f *finding, s *sighting) (grown int64) {
	sess, known := f.Sessions[s.Session]
	if !known && d.sessions >= d.cfg.MaxSessions {
		d.m.untracked.Inc()
		return 1
	}
	idle := d.cfg.Idle.of(s.Key.Proto)
	before, stopped := len(sess), f.covered(s.Session)
	merged, n := sess.add(s.Span, idle)
	if f.Sessions == nil {
		f.Sessions = map[uint32]spans{}
	}
	f.Sessions[s.Session] = sess
	f.Stopped += f.covered(s.Session) - stopped
	d.sessions += len(sess) - before

	midnight := flow.Time(f.Key.Day * dayMillis)
	if !f.Linked && merged.Start-idle <= midnight {
		k := f.Key
		k.Day--
		if y := d.findings[k]; y != nil && y.Sessions[s.Session].touches(merged, idle) {
			f.Linked = true
		}
	}
	if merged.End+idle >= midnight+dayMillis {
		k := f.Key
		k.Day++
		if t := d.findings[k]; t != nil && !t.Linked && t.Sessions[s.Session].touches(merged, idle) {
			t.Linked = true
			t.news()
			d.touch(t, 0, span{t.Span.Start, t.Span.Start})
		}
	}
	return int64(n)
}

// touch notes what this segment added to a finding.
func (d *book) touch(f *finding, grown int64, s span) {
	if !f.Touched {
		f.Touched, f.Grown, f.Added = true, 0, s
		d.touched = append(d.touched, f)
	}
	f.Count += grown
	f.Grown += grown
	f.Added.Start, f.Added.End = min(f.Added.Start, s.Start), max(f.Added.End, s.End)
	d.pending[f] = struct{}{}
}

func (d *book) collect(all bool) (contributions []flow.Contribution, events []*flow.Finding) {
	byID := func(a, b *finding) int { return cmp.Compare(a.ID, b.ID) }
	if all {
		for _, f := range d.findings {
			d.reopen(f)
		}
	}
	slices.SortFunc(d.touched, byID)
	rendered := map[*finding]*flow.Finding{}
	for _, f := range d.touched {
		out := f.render()
		out.SuppressedBy, out.GroupedBy = d.suppressor(f), f.groupedBy()
		rendered[f] = out
		contributions = append(contributions, flow.Contribution{Sessions: f.Grown, FirstSeen: f.Added.Start, LastSeen: f.Added.End, Finding: out})
		f.Touched, f.Grown, f.Added = false, 0, span{}
	}
	touched := d.touched
	d.touched, d.full = nil, false
	slices.SortFunc(d.leaving, byID)
	for _, f := range d.leaving {
		events = append(events, d.tell(f, f.render()))
	}
	d.leaving = nil
	for _, f := range d.awake(touched, all) {
		if f.groupedBy() != "" {
			delete(d.pending, f)
			continue
		}
		if d.suppressor(f) != "" {
			d.hold(f, all)
			d.wait(f)
			continue
		}
		if !all && !f.Closed && f.ToldRevision != 0 && d.clock < f.ToldAt+d.updateEvery {
			d.wait(f)
			continue
		}
		delete(d.pending, f)
		if f.revision() == f.ToldRevision {
			continue
		}
		out := rendered[f]
		if out == nil {
			out = f.render()
		}
		events = append(events, d.tell(f, out))
	}
	slices.SortStableFunc(events, func(a, b *flow.Finding) int { return cmp.Compare(a.ID, b.ID) })
	d.m.open.Set(float64(len(d.findings)))
	d.m.sessions.Set(float64(d.sessions))
	return contributions, events
}

func (d *book) tell(f *finding, out *flow.Finding) *flow.Finding {
	f.ToldRevision, f.ToldAt = out.Revision, d.clock
	f.Fresh, f.Quiet, f.HeldAt = false, lull{}, 0
	d.m.events.WithLabelValues(out.Severity.String()).Inc()
	return out
}

// keepClosed is how long a closed finding is remembered, so that a record that
// comes very late adds to it instead of starting it anew.
const keepClosed = 24 * time.Hour

// sweep forgets sessions and findings that no record in time can add to.
func (d *book) sweep() {
	d.swept = d.clock
	for k, f := range d.findings {
		wanted := d.clock - max(d.lateness, millis(d.cfg.SessionLateness)) - d.cfg.Idle.of(k.Proto)
		for _, held := range [...]map[uint32]spans{f.Sessions, f.Refused} {
			for port, s := range held {
				d.sessions -= s.drop(wanted)
				if len(s) == 0 {
					delete(held, port)
				} else {
					held[port] = s
				}
			}
		}
		over := d.over(f)
		if closed := d.clock > over; closed != f.Closed {
			f.Closed = closed
			d.woken = append(d.woken, f)
		}
		d.reopen(f)
		if _, untold := d.pending[f]; !untold && !f.Touched && d.clock > over+d.keepsClosed(k.Type) {
			d.forget(f)
		}
	}
}

// over is when a finding closes: when no record in time can add to it any more.
func (d *book) over(f *finding) flow.Time {
	return max(f.Span.End, flow.Time((f.Key.Day+1)*dayMillis)) + d.lateness + d.cfg.Idle.longest()
}

// keepsClosed is how long a finding is remembered after it closed. A way from host to host may
// grow again out of any of its steps, each of which is open for a while.
func (d *book) keepsClosed(typ string) flow.Time {
	if typ == flow.FindingChain || typ == flow.FindingPivot {
		return max(millis(keepClosed), (maxDepth+1)*millis(d.cfg.Behaviour.Chain.Within))
	}
	return millis(keepClosed)
}

func (d *book) forget(f *finding) {
	d.sessions -= f.remembered()
	delete(d.findings, f.Key)
	d.ungroup(f)
}

// makeRoom forgets a sixteenth of the findings when no more may be held: closed ones first, then
// those that are not told one by one, then those seen longest ago; critical ones only when there
// are no others, whoever floods (THREATS 33). What was not told of them yet is told at
// the next Collect, also what a suppression held back: else it would be told never. What this segment added to stays until it is collected, so the
// cap may give way by as many findings as one segment makes.
func (d *book) makeRoom() {
	if len(d.findings) < d.cfg.MaxFindings || d.full {
		return
	}
	var old []*finding
	for _, f := range d.findings {
		if !f.Touched {
			old = append(old, f)
		}
	}
	d.full = len(old) == 0
	slices.SortFunc(old, func(a, b *finding) int {
		return cmp.Or(later(a.Told.Severity == flow.Critical, b.Told.Severity == flow.Critical), -later(a.Closed, b.Closed), -later(a.Grouped, b.Grouped),
			cmp.Compare(a.Span.End, b.Span.End), a.Key.compare(&b.Key))
	})
	for _, f := range old[:min(len(old), len(d.findings)-d.cfg.MaxFindings+d.cfg.MaxFindings/16+1)] {
		if _, untold := d.pending[f]; (untold || f.HeldAt != 0) && f.groupedBy() == "" {
			d.leaving = append(d.leaving, f)
		}
		delete(d.pending, f)
		d.forget(f)
		d.m.evicted.Inc()
	}
	d.unwait()
}

// save writes what is held.
func (d *book) save(w *stateWriter) error {
	w.time(d.clock)
	w.time(d.swept)
	if err := w.json(slices.SortedFunc(maps.Values(d.findings), func(a, b *finding) int { return a.Key.compare(&b.Key) })); err != nil {
		return err
	}
	return w.json(d.leaving)
}

func (d *book) load(r *stateReader) {
	d.clock, d.swept = r.time(), r.time()
	var list []*finding
	r.json(&list)
	r.json(&d.leaving)
	for i, f := range slices.Concat(list, d.leaving) {
		if f == nil || f.ID != f.Key.id() {
			r.fail(fmt.Errorf("finding %d does not have the id of what it is about", i))
			return
		}
	}
	d.adopt(list)
}

// adopt takes over findings of a snapshot.
func (d *book) adopt(list []*finding) {
	for _, f := range list {
		d.findings[f.Key] = f
		d.regroup(f)
		d.sessions += f.remembered()
		if f.Touched {
			d.touched = append(d.touched, f)
		}
		if f.Touched || f.revision() != f.ToldRevision && f.HeldAt == 0 {
			d.pending[f] = struct{}{}
			d.woken = append(d.woken, f)
			f.Fresh = f.Fresh || f.Suppressed == 0
		}
	}
}
