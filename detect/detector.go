package detect

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/postern/postern/flow"
	"github.com/prometheus/client_golang/prometheus"
)

const maxTime = flow.Time(math.MaxInt64)

// Detector makes findings of judged records. Event time is the latest end seen,
// capped at receipt plus the tolerance, and what Tick says. It is not safe for
// concurrent use. Its state is bounded.
type Detector struct {
	cfg    Config
	policy Policy
	names  *flow.Names
	m      *metrics

	lateness, grace, sessionGap, updateEvery flow.Time

	clock, swept flow.Time
	findings     map[key]*finding
	pending      map[*finding]struct{} // changed since they were told last
	touched      []*finding            // changed in this segment
	leaving      []*finding            // forgotten before their last change was told
	full         bool                  // there is no more to forget until the next Collect
	sessions     int
	straddles    map[tuple]*straddle
	held         int
	nextHeld     flow.Time // the earliest start among the held
}

// New makes a Detector. names is the table the records' names come from; reg may
// be nil.
func New(cfg Config, policy Policy, names *flow.Names, reg prometheus.Registerer) (*Detector, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	d := &Detector{cfg: cfg, policy: policy, names: names, m: newMetrics(reg), lateness: millis(cfg.Lateness),
		grace: millis(cfg.Grace), sessionGap: millis(cfg.SessionGap), updateEvery: millis(cfg.UpdateEvery)}
	d.reset()
	return d, nil
}

func (d *Detector) reset() {
	d.clock, d.swept, d.sessions, d.held, d.nextHeld = 0, 0, 0, 0, maxTime
	d.touched, d.leaving, d.full = nil, nil, false
	d.findings, d.pending, d.straddles = map[key]*finding{}, map[*finding]struct{}{}, map[tuple]*straddle{}
}

// Observe looks at every record of a judged batch. It only reads the batch and
// keeps nothing of it.
func (d *Detector) Observe(b *flow.Batch) {
	d.m.received.Add(float64(len(b.Records)))
	late := 0
	for i := range b.Records {
		r := &b.Records[i]
		t := r.End
		if d.cfg.ClockTolerance > 0 && r.Received != 0 {
			t = min(t, r.Received.Add(d.cfg.ClockTolerance))
		}
		if t > d.clock {
			d.clock = t
		}
		if r.Start < d.clock-d.lateness {
			late++
		}
		v := &r.Verdict
		switch v.Reason {
		case flow.ReasonNone, flow.ReasonUncovered, flow.ReasonUnverified, flow.ReasonExpiryUncertain:
			continue
		case flow.ReasonPermitted:
			if v.Outcome != flow.OutcomeMisblocked {
				continue
			}
		}
		d.judged(r)
	}
	d.m.late.Add(float64(late))
}

// judged takes a record whose verdict may matter.
func (d *Detector) judged(r *flow.Record) {
	v := &r.Verdict
	if v.Reason == flow.ReasonWaived && v.Outcome != flow.OutcomeMisblocked && v.Outcome != flow.OutcomeBlocked {
		d.watch(r)
		d.scope(r)
		if v.ValidUntil != 0 && r.End > v.ValidUntil+d.grace {
			s := d.sight(r, flow.FindingOutlived)
			s.Told.ValidUntil = v.ValidUntil
			d.add(&s, r)
			return
		}
	}
	typ, ok := classify(v)
	switch {
	case !ok:
	case typ == flow.FindingExpired:
		d.expired(r)
	default:
		s := d.sight(r, typ)
		d.add(&s, r)
	}
}

// add adds a sighting to its finding; r is its record, nil if it was held.
func (d *Detector) add(s *sighting, r *flow.Record) {
	d.m.raised.Inc()
	f := d.findings[s.Key]
	if f == nil {
		d.makeRoom()
		f = &finding{Key: s.Key, ID: s.Key.id(), Span: s.Span, Told: s.Told, Sessions: map[uint32]spans{}}
		d.findings[s.Key] = f
		d.m.created.WithLabelValues(s.Key.Type).Inc()
	}
	f.Closed = false
	f.Records++
	f.Firm = f.Firm || s.Firm
	f.Span.Start, f.Span.End = min(f.Span.Start, s.Span.Start), max(f.Span.End, s.Span.End)
	if s.Told.standsBefore(&f.Told) {
		f.Told = s.Told
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
	d.touch(f, d.session(f, s), s.Span)
}

// session counts a sighting's session and links the finding with that of the day
// before and of the day after where the session crosses midnight.
func (d *Detector) session(f *finding, s *sighting) (grown int64) {
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
			d.touch(t, 0, span{t.Span.Start, t.Span.Start})
		}
	}
	return int64(n)
}

// touch notes what this segment added to a finding.
func (d *Detector) touch(f *finding, grown int64, s span) {
	if !f.Touched {
		f.Touched, f.Grown, f.Added = true, 0, s
		d.touched = append(d.touched, f)
	}
	f.Count += grown
	f.Grown += grown
	f.Added.Start, f.Added.End = min(f.Added.Start, s.Start), max(f.Added.End, s.End)
	d.pending[f] = struct{}{}
}

// Tick moves event time on to now, which comes from an injected clock.
func (d *Detector) Tick(now flow.Time) {
	if now > d.clock {
		d.clock = now
	}
}

// Collect gives what the records since the last Collect added to each finding,
// and the changes of findings that are now to be told: at creation, then at most
// once per updateEvery, and when a finding closes. Both are ordered by id. Call it
// once for each input segment, after its last batch; what it gives belongs to the
// caller.
//
// A finding closes when no record in time can add to it any more: when event time
// has passed the end of its day and its last record by the lateness and the
// longest idle time.
func (d *Detector) Collect() (contributions []flow.Contribution, events []*flow.Finding) {
	d.release(d.clock - d.lateness)
	if d.clock >= d.swept+millis(time.Minute) {
		d.sweep()
	}
	return d.collect(false)
}

// Flush is Collect at the end of a replay: nothing more will come, so what was
// held is decided and every change told.
func (d *Detector) Flush() (contributions []flow.Contribution, events []*flow.Finding) {
	d.release(maxTime)
	return d.collect(true)
}

func (d *Detector) collect(all bool) (contributions []flow.Contribution, events []*flow.Finding) {
	byID := func(a, b *finding) int { return cmp.Compare(a.ID, b.ID) }
	slices.SortFunc(d.touched, byID)
	rendered := map[*finding]*flow.Finding{}
	for _, f := range d.touched {
		out := f.render()
		rendered[f] = out
		contributions = append(contributions, flow.Contribution{Sessions: f.Grown, FirstSeen: f.Added.Start, LastSeen: f.Added.End, Finding: out})
		f.Touched, f.Grown, f.Added = false, 0, span{}
	}
	d.touched, d.full = nil, false
	slices.SortFunc(d.leaving, byID)
	for _, f := range d.leaving {
		events = append(events, d.tell(f, f.render()))
	}
	d.leaving = nil
	for _, f := range slices.SortedFunc(maps.Keys(d.pending), byID) {
		if !all && !f.Closed && f.ToldRevision != 0 && d.clock < f.ToldAt+d.updateEvery {
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
	d.m.straddles.Set(float64(len(d.straddles)))
	d.m.holding.Set(float64(d.held))
	return contributions, events
}

func (d *Detector) tell(f *finding, out *flow.Finding) *flow.Finding {
	f.ToldRevision, f.ToldAt = out.Revision, d.clock
	d.m.events.WithLabelValues(out.Severity.String()).Inc()
	return out
}

// keepClosed is how long a closed finding is remembered, so that a record that
// comes very late adds to it instead of starting it anew.
const keepClosed = 24 * time.Hour

// sweep forgets sessions, findings and five-tuples that no record in time can
// add to.
func (d *Detector) sweep() {
	d.swept = d.clock
	d.forgetStraddles()
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
		over := max(f.Span.End, flow.Time((k.Day+1)*dayMillis)) + d.lateness + d.cfg.Idle.longest()
		f.Closed = d.clock > over
		if _, untold := d.pending[f]; !untold && !f.Touched && d.clock > over+millis(keepClosed) {
			d.forget(f)
		}
	}
}

func (d *Detector) forget(f *finding) {
	d.sessions -= f.remembered()
	delete(d.findings, f.Key)
}

// makeRoom forgets a sixteenth of the findings when no more may be held: closed
// ones first, then those seen longest ago. What was not told of them yet is told at
// the next Collect. What this segment added to stays until it is collected, so the
// cap may give way by as many findings as one segment makes.
func (d *Detector) makeRoom() {
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
		switch {
		case a.Closed != b.Closed && a.Closed:
			return -1
		case a.Closed != b.Closed:
			return 1
		}
		return cmp.Or(cmp.Compare(a.Span.End, b.Span.End), a.Key.compare(&b.Key))
	})
	for _, f := range old[:min(len(old), len(d.findings)-d.cfg.MaxFindings+d.cfg.MaxFindings/16+1)] {
		if _, untold := d.pending[f]; untold {
			d.leaving = append(d.leaving, f)
			delete(d.pending, f)
		}
		d.forget(f)
		d.m.evicted.Inc()
	}
}
