package detect

import (
	"fmt"
	"slices"
	"strings"

	"github.com/postern/postern/flow"
)

// FanOutConfig says from when on a host administers too many others that it never did before.
type FanOutConfig struct {
	// Least is how many hosts newly reached within ten minutes, an hour or a day are the least to
	// be told of, whatever was usual.
	Least int `yaml:"least"`
	// Times is how many times as many as the most that was usual for the host they must be.
	Times int `yaml:"times"`
	// Unusual is how unusual the hosts reached within SlowDays must be together (each by its
	// score, less 40) at least where they are fewer.
	Unusual int `yaml:"unusual"`
	// Budget is how many of those a day and 10,000 hosts are told of at most on a usual day.
	Budget float64 `yaml:"budget"`
	// SlowDays is over how many days slow ones are added up.
	SlowDays int `yaml:"slowDays"`
}

// DefaultFanOutConfig gives the defaults.
func DefaultFanOutConfig() FanOutConfig {
	return FanOutConfig{
		Least: 12, // an administrator's afternoon has fewer that are new
		Times: 3,
		// Two hosts of 60 each: what one alone is just not told for.
		Unusual:  40,
		Budget:   0.5,
		SlowDays: 7,
	}
}

// fanOut follows how many hosts a host newly administers: within ten minutes, an hour and a day
// against the most that was usual for it, and over days how unusual they are together.
type fanOut struct {
	by     map[int32]*newPeers
	budget budget // of the days' sums
}

// newPeers is what one host newly reached lately.
type newPeers struct {
	Addr    flow.Addr // of the host, for the snapshot
	Windows [len(fanWindows)]window
	Recent  [maxSpread]reach
	N       int32 // of Recent; the oldest makes room
	Last    flow.Time
	After   flow.Time // what was before it was told of: not again
	Noted   int64     // the day whose sum is Score
	Score   uint8
	Told    int64     // the day on which it was told of last
	Alerted flow.Time // when last as an alert
	Most    int32     // how many hosts that named
	Why     int8      // the window that gave rise to that; len(fanWindows): unusual together
}

// window counts new peers within tumbling windows.
type window struct {
	Start flow.Time
	N     uint16
	Most  uint16 // in any window before that was not told of
}

type reach struct {
	At      flow.Time
	Server  flow.Addr
	Port    uint16
	Class   class
	Unusual uint8
	Mapped  bool
}

var fanWindows = [...]struct {
	length flow.Time
	says   string
}{{10 * minuteMillis, "ten minutes"}, {hourMillis, "an hour"}, {dayMillis, "a day"}}

// maxSpread is how many new peers of a host are remembered one by one; an alert names no more.
const maxSpread = 32

func newFanOut() fanOut { return fanOut{by: map[int32]*newPeers{}} }

func (f *fanOut) contact(b *Behaviour, v *visit) {
	if !v.New || !v.Class.administers() || v.Class == classDatabase || v.Fate.failed() || v.allowedAgain() || b.hosts.list[v.server].Served[v.Class] > fewAdminister {
		return
	}
	s := f.by[v.client]
	if s == nil {
		s = &newPeers{Addr: b.hosts.list[v.client].Addr}
		f.by[v.client] = s
	}
	s.Last = v.at
	again := false
	for i := range s.Recent[:s.N] {
		if r := &s.Recent[i]; r.Server == v.Server.Addr && v.at-r.At < flow.Time(b.bcfg.FanOut.SlowDays)*dayMillis {
			again = true
			r.Unusual = max(r.Unusual, uint8(min(v.unusual, 255)))
		}
	}
	if !again {
		if s.N == maxSpread {
			copy(s.Recent[:], s.Recent[1:])
			s.N--
		}
		s.Recent[s.N] = reach{v.at, v.Server.Addr, v.Server.Port, v.Class, uint8(min(v.unusual, 255)), v.Mapped}
		s.N++
	}
	why := -1
	for i := range s.Windows {
		w := &s.Windows[i]
		if v.at >= w.Start+fanWindows[i].length {
			if s.Told == 0 || w.Start == 0 || dayOf(w.Start) != s.Told {
				w.Most = max(w.Most, w.N)
			}
			w.Start, w.N = v.at-v.at%fanWindows[i].length, 0
		}
		if !again {
			count(&w.N)
		}
		if why < 0 && int(w.N) >= b.bcfg.FanOut.Least && int(w.N) > b.bcfg.FanOut.Times*int(w.Most) {
			why = i
		}
	}
	if b.learning(v.at) {
		return
	}
	if why >= 0 && s.mean() < 40 {
		why = -1 // hosts that many administer in this way
	}
	if why < 0 {
		if sum, n := s.together(v.at, b.bcfg.FanOut.SlowDays, b.began+millis(b.bcfg.Learn)); n >= 2 && f.tooMuch(b, s, v.at, sum) {
			why = len(fanWindows)
		}
	}
	if day := dayOf(v.Start); why >= 0 || s.Told == day {
		switch {
		case s.Told != day:
			s.Why, s.After = int8(why), v.at
		case why >= 0 && why < int(s.Why): // so many by now that they are told of however usual each is
			s.Why = int8(why)
		}
		s.Told = day
		f.raise(b, s, v)
	}
}

// mean is how unusual the hosts of the last day are on the whole.
func (s *newPeers) mean() int {
	sum, n := 0, 0
	for i := range s.Recent[:s.N] {
		if r := &s.Recent[i]; s.Last-r.At < dayMillis {
			sum += int(r.Unusual)
			n++
		}
	}
	return sum / max(n, 1)
}

// together is how unusual the hosts of some days are together, and how many they are.
func (s *newPeers) together(at flow.Time, days int, from flow.Time) (sum, n int) {
	for i := range s.Recent[:s.N] {
		if r := &s.Recent[i]; at-r.At < flow.Time(days)*dayMillis && r.At >= max(from, s.After) && r.Unusual > unusualFrom {
			sum += int(r.Unusual) - unusualFrom
			n++
		}
	}
	return sum, n
}

// unusualFrom is what of a score does not count when several are added up.
const unusualFrom = 40

// tooMuch says whether the hosts that one newly reached are too unusual together: more so than
// those of any other on a usual day.
func (f *fanOut) tooMuch(b *Behaviour, s *newPeers, at flow.Time, sum int) bool {
	// Who reaches new hosts every day does so by trade.
	score := min(sum/2/max(1, int(s.Windows[2].Most)/2), budgetScores-1)
	if day := dayOf(at); s.Noted != day {
		s.Noted, s.Score = day, 0
	}
	if score > int(s.Score) {
		if s.Score > 0 {
			f.budget.unnote(at, int(s.Score))
		}
		f.budget.note(at, score)
		s.Score = uint8(score)
	}
	hosts := b.estate()
	return score >= f.budget.threshold(at, b.began+millis(b.bcfg.Learn), int(b.bcfg.FanOut.Budget*1000)*hosts/10_000, b.bcfg.FanOut.Unusual/2, budgetScores-1)
}

func (f *fanOut) raise(b *Behaviour, s *newPeers, v *visit) {
	k := b.keyOf(flow.FindingFanOut, v.client, "", v.Start)
	a := b.endOf(&v.Session, false)
	days := 1
	var says string
	if int(s.Why) == len(fanWindows) {
		days = b.bcfg.FanOut.SlowDays
		says = times(days, "day", "days")
	} else {
		says = fanWindows[s.Why].says
	}
	var edges []flow.Edge
	var kinds, techniques []string
	proto := string(flow.AppendProto(nil, flow.ProtoTCP))
	score := 0
	for i := range s.Recent[:s.N] {
		r := &s.Recent[i]
		if v.at-r.At >= flow.Time(days)*dayMillis {
			continue
		}
		edges = append(edges, flow.Edge{Source: v.Client.Addr.String(), Destination: r.Server.String(), Port: r.Port, Protocol: proto})
		score = max(score, int(r.Unusual))
		if c := r.Class.String(); !slices.Contains(kinds, c) {
			kinds = append(kinds, c)
		}
		if c := r.Class.technique(); c != "" && !slices.Contains(techniques, c) {
			techniques = append(techniques, c)
		}
	}
	slices.Sort(kinds)
	slices.Sort(techniques)
	most := 0
	severity := flow.Medium
	if i := int(s.Why); i < len(fanWindows) {
		most = int(s.Windows[i].Most)
	}
	if score >= 80 && len(edges) >= 2*b.bcfg.FanOut.Least {
		severity = flow.High
	}
	h, within, again := &b.hosts.list[v.client], millis(b.bcfg.again()), ""
	if old := b.findings[k]; old == nil || old.Told.Severity < flow.Medium {
		before := s.Most > 0 && v.at-s.Alerted < within && len(edges) < 2*int(s.Most)
		if before || int(s.Why) == len(fanWindows) && h.toldOf(v.at, within, score) {
			severity = flow.Low
			again = " It was told of before, on " + max(h.Told, s.Alerted).Std().Format("2006-01-02") + ", for what was as unusual."
		}
	}
	if severity >= flow.Medium {
		h.tellOf(v.at, within, score)
		s.Alerted, s.Most = v.at, max(s.Most, int32(len(edges)))
	}
	caveat, certain := b.caveat(v.Contact)
	t := b.toldOf(v.Contact, severity, less(70, certain))
	t.DstSegment, t.DstWorkload, t.DstProcess, t.Service = "", "", "", ""
	parts := []flow.ScorePart{{Name: "peers", Points: min(60, 4*len(edges)), Says: times(len(edges), "host", "hosts") + " newly reached within " + says},
		{Name: "usual", Points: -min(30, most), Says: fmt.Sprintf("at most %d were usual for it within that time", most)},
		{Name: "rarity", Points: score / 3, Says: "how unusual the most unusual of them is"}}
	t.Story = &story{
		Title: "One host newly administers many others",
		Sentence: who(v.Client.Addr, a.Workload, a.Segment, a.Identity, a.Process) + " reached " + times(len(edges), "host", "hosts") + " by remote administration (" +
			strings.Join(kinds, ", ") + ") within " + says + " that it never reached so before; at most " + fmt.Sprint(most) + " were usual for it." + caveat + again,
		Next:       "Ask whoever uses " + v.Client.Addr.String() + " what was rolled out. If nobody knows, cut it off and look at the hosts it reached, the first of them first.",
		Techniques: techniques, Score: min(100, max(score, 50+2*len(edges))), Parts: parts, Ends: []flow.End{a}, Edges: edges, Client: v.Client.Addr,
	}
	b.raise(k, t, 1, v.Contact)
}

func (f *fanOut) forget(i int32) { delete(f.by, i) }

// tend forgets peers that are too old to matter.
func (f *fanOut) tend(b *Behaviour) {
	keep := flow.Time(max(b.bcfg.FanOut.SlowDays, 14)) * dayMillis
	for i, s := range f.by {
		if b.tended-s.Last > keep {
			delete(f.by, i)
		}
	}
}

func (f *fanOut) save(w *stateWriter) {
	type kept struct {
		Host  int32
		Peers newPeers
	}
	list := make([]kept, 0, len(f.by))
	for i, s := range f.by {
		list = append(list, kept{i, *s})
	}
	slices.SortFunc(list, func(x, y kept) int { return int(x.Host) - int(y.Host) })
	saveAll(w, list)
	saveAll(w, []budget{f.budget})
}

func (f *fanOut) load(r *stateReader, h *hosts) {
	type kept struct {
		Host  int32
		Peers newPeers
	}
	for _, k := range loadAll[kept](r) {
		if k.Host < 0 || int(k.Host) >= len(h.list) || k.Peers.N < 0 || k.Peers.N > maxSpread {
			r.fail(errState)
			return
		}
		f.by[k.Host] = &k.Peers
	}
	if n := loadAll[budget](r); len(n) == 1 {
		f.budget = n[0]
	} else {
		r.fail(errState)
	}
}

func (c *FanOutConfig) validate() error {
	if c.Least < 3 || c.Times < 1 || c.Unusual < 1 || c.SlowDays < 1 || c.SlowDays > 14 {
		return fmt.Errorf("detect.behaviour.fanOut: least is %d, times %d, unusual %d, slowDays %d; write at least 3, 1, 1 and 1, and at most 14 days", c.Least, c.Times, c.Unusual, c.SlowDays)
	}
	return nil
}
