package detect

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/postern/postern/flow"
)

// drift finds where enforcement does not do what the policy says, by rule and point of
// enforcement, and rules that two points enforce differently. State is of the day.
type drift struct {
	points []rulePoint
	byKey  map[RuleKey]int32 // At is the day
}

// rulePoint is what a point of enforcement did under a rule on a day.
type rulePoint struct {
	Key   RuleKey // At is the day; By is in By
	N     RuleHeard
	By    [maxBy]flow.Name // by what it says that it decided
	Told  bool
	Split bool
}

const (
	maxBy         = 4
	maxRulePoints = 1 << 14 // about 120 bytes each
	// driftLeast is from how many flows on: one may have been under way as a rule changed.
	driftLeast = 3
	// driftMany is from how many on it is more than a leak, where most of the rule's flows are so.
	driftMany = 100
)

func newDrift() drift { return drift{byKey: map[RuleKey]int32{}} }

func (d *drift) adopt() {
	clear(d.byKey)
	for i := range d.points {
		d.byKey[d.points[i].Key] = int32(i)
	}
}

func (d *drift) forget(day int64) {
	d.points = slices.DeleteFunc(d.points, func(p rulePoint) bool { return int64(p.Key.At) < day-1 })
	d.adopt()
}

func (d *drift) save(w *stateWriter) { saveAll(w, d.points) }

func (d *drift) load(r *stateReader) {
	d.points = loadAll[rulePoint](r)
	d.adopt()
}

// rule takes in what a point of enforcement did under a rule in ten minutes.
func (d *drift) rule(b *Behaviour, k *RuleKey, n *RuleHeard) {
	at := minuteTime(k.At)
	day := *k
	day.At, day.By = uint32(dayOf(at)), flow.NoName
	i, known := d.byKey[day]
	if !known {
		if len(d.points) >= maxRulePoints {
			b.bm.unruled.Inc()
			b.pressed(boundRules, flow.Addr{}, 1, at)
			return
		}
		i = int32(len(d.points))
		d.byKey[day] = i
		d.points = append(d.points, rulePoint{Key: day})
	}
	p := &d.points[i]
	p.N.add(n)
	if wrong := n.Escaped + n.Misblocked; wrong > 0 {
		for j, by := range p.By {
			if by == k.By || k.By == flow.NoName {
				break
			}
			if by == flow.NoName {
				p.By[j] = k.By
				break
			}
		}
		d.drifts(b, p, at, wrong)
	}
	d.splits(b, p, at)
}

// where is a point of enforcement in words.
func (d *drift) where(b *Behaviour, k *RuleKey) string {
	switch {
	case k.Name != flow.NoName:
		return fmt.Sprintf("%s (%v)", word(b.names.Text(k.Name)), k.Source)
	case k.Addr.IsZero():
		return k.Source.String()
	}
	return fmt.Sprintf("%v (%v)", k.Addr, k.Source)
}

func (d *drift) subject(b *Behaviour, k *RuleKey) string {
	return b.names.Text(k.Rule) + "|" + k.Source.String() + "|" + b.names.Text(k.Name)
}

// drifts tells of a rule that a point does not keep to.
func (d *drift) drifts(b *Behaviour, p *rulePoint, at flow.Time, grown uint32) {
	wrong := p.N.Escaped + p.N.Misblocked
	if wrong < driftLeast {
		return
	}
	if !p.Told {
		p.Told, grown = true, wrong
	}
	severity := flow.Low
	if wrong >= driftMany && 2*wrong > p.N.Allowed+p.N.Denied {
		severity = flow.Medium
	}
	rule, where := b.names.Text(p.Key.Rule), d.where(b, &p.Key)
	var how []string
	if p.N.Escaped > 0 {
		how = append(how, times(int(p.N.Escaped), "flow", "flows")+" that it denies were let through")
	}
	if p.N.Misblocked > 0 {
		how = append(how, times(int(p.N.Misblocked), "flow", "flows")+" that it permits were stopped")
	}
	sentence := fmt.Sprintf("%s does not do what %s says: %s today, of %s under it there.", capital(where), ruleWords(rule), strings.Join(how, " and "),
		times(int(p.N.Allowed+p.N.Denied), "flow", "flows"))
	var by []string
	for _, n := range p.By {
		if n != flow.NoName {
			by = append(by, word(b.names.Text(n)))
		}
	}
	if slices.Sort(by); len(by) > 0 {
		sentence += " It names as its own rule " + strings.Join(by, ", ") + "."
	}
	k := key{Type: flow.FindingDrift, Client: p.Key.Addr, Subject: d.subject(b, &p.Key), Day: int64(p.Key.At)}
	out := blindTold(severity, 70, at, at+hostWindow*minuteMillis, "Enforcement differs from "+ruleWords(rule)+" at "+where, sentence,
		"Compare what is configured there with the policy: one of them is out of date.")
	out.Rule = rule
	d.at(b, &out, &p.Key)
	out.Story.Where += " AND outcome IN ('escaped', 'misblocked')"
	b.raise(k, out, int64(grown))
}

// at adds which point of enforcement a finding is about and how to find what was judged there.
func (d *drift) at(b *Behaviour, t *told, k *RuleKey) {
	s := t.Story
	s.Flows = true
	if s.Where == "" {
		s.Where = "rule = " + sqlText(b.names.Text(k.Rule))
	}
	if !k.Addr.IsZero() {
		s.Exporters = append(s.Exporters, k.Addr)
	}
	if k.Name != flow.NoName {
		s.Observers = append(s.Observers, k.Name)
	}
}

func ruleWords(rule string) string {
	if segment, ok := defaultOf(rule); ok {
		return "the default of " + word(segment)
	}
	return "rule " + word(rule)
}

// inCloud says whether a point of enforcement is a cloud's.
func inCloud(s flow.Source) bool { return s >= flow.SourceAWSVPC && s <= flow.SourceGCPFirewall }

// leans says what a point mostly does with a rule's flows: allow or deny, unknown if both.
func (n *RuleHeard) leans() flow.Observed {
	switch all := n.Allowed + n.Denied; {
	case all < driftLeast:
	case 10*n.Allowed >= 9*all:
		return flow.ObservedAllow
	case 10*n.Denied >= 9*all:
		return flow.ObservedDeny
	}
	return flow.ObservedUnknown
}

// splits tells of a rule that one point enforces and another does not, one of them in a cloud.
func (d *drift) splits(b *Behaviour, p *rulePoint, at flow.Time) {
	if p.N.leans() == flow.ObservedUnknown {
		return
	}
	var other *rulePoint
	for i := range d.points {
		o := &d.points[i]
		if o.Key.At != p.Key.At || o.Key.Rule != p.Key.Rule || inCloud(o.Key.Source) == inCloud(p.Key.Source) || o.Split && p.Split ||
			o.N.leans() == flow.ObservedUnknown || o.N.leans() == p.N.leans() {
			continue
		}
		if other == nil || strings.Compare(d.subject(b, &o.Key)+o.Key.Addr.String(), d.subject(b, &other.Key)+other.Key.Addr.String()) < 0 {
			other = o
		}
	}
	if other == nil {
		return
	}
	p.Split, other.Split = true, true
	lets, stops := p, other
	if p.N.leans() == flow.ObservedDeny {
		lets, stops = other, p
	}
	rule := b.names.Text(p.Key.Rule)
	k := key{Type: flow.FindingSplit, Subject: rule, Day: int64(p.Key.At)}
	out := blindTold(flow.Low, 70, at, at+hostWindow*minuteMillis, capital(ruleWords(rule))+" is enforced in one place and not in another",
		fmt.Sprintf("%s let %s under %s through today, and %s stopped %s under the same rule. The cloud and the other side do not enforce it alike.",
			capital(d.where(b, &lets.Key)), times(int(lets.N.Allowed), "flow", "flows"), ruleWords(rule), d.where(b, &stops.Key), times(int(stops.N.Denied), "flow", "flows")),
		"Compare the security groups or firewall rules of the cloud with those on premises: a host that moves finds another policy.")
	out.Rule = rule
	d.at(b, &out, &lets.Key)
	d.at(b, &out, &stops.Key)
	b.raise(k, out, int64(cmp.Or(min(lets.N.Allowed, stops.N.Denied), 1)))
}
