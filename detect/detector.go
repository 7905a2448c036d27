package detect

import (
	"math"
	"time"

	"github.com/postern/postern/flow"
	"github.com/prometheus/client_golang/prometheus"
)

const maxTime = flow.Time(math.MaxInt64)

// Detector makes findings of judged records. Event time is the latest end seen,
// capped at receipt plus the tolerance, and what Tick says. It is not safe for
// concurrent use. Its state is bounded.
type Detector struct {
	book
	m *metrics

	grace, sessionGap flow.Time

	straddles map[tuple]*straddle
	held      int
	nextHeld  flow.Time // the earliest start among the held
}

// New makes a Detector. names is the table the records' names come from; reg may
// be nil.
func New(cfg Config, policy Policy, names *flow.Names, reg prometheus.Registerer) (*Detector, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	m := newMetrics(reg)
	d := &Detector{book: newBook(&cfg, names, &m.bookMetrics), m: m,
		grace: millis(cfg.Grace), sessionGap: millis(cfg.SessionGap)}
	d.book.policy = policy
	d.reset()
	return d, nil
}

func (d *Detector) reset() {
	d.book.reset()
	d.held, d.nextHeld, d.straddles = 0, maxTime, map[tuple]*straddle{}
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
		d.forgetStraddles()
		d.sweep()
	}
	return d.told(false)
}

// Flush is Collect at the end of a replay: nothing more will come, so what was
// held is decided and every change told.
func (d *Detector) Flush() (contributions []flow.Contribution, events []*flow.Finding) {
	d.release(maxTime)
	return d.told(true)
}

func (d *Detector) told(all bool) (contributions []flow.Contribution, events []*flow.Finding) {
	d.m.straddles.Set(float64(len(d.straddles)))
	d.m.holding.Set(float64(d.held))
	return d.collect(all)
}
