package detect

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/postern/postern/flow"
)

// NewsConfig says when the use of an exception is news to its owner and its requester.
type NewsConfig struct {
	// Silence is for how long an exception was not used before its next use is told.
	Silence time.Duration `yaml:"silence"`
	// Times is how many times as many sessions an hour as ever before are told.
	Times int `yaml:"times"`
	// Least is how many sessions an hour are told at all as more than usual.
	Least int `yaml:"least"`
}

// DefaultNewsConfig gives the defaults.
func DefaultNewsConfig() NewsConfig {
	return NewsConfig{
		Silence: 30 * 24 * time.Hour, // what is used every month is not silent for so long
		Times:   5,                   // of the busiest hour of four weeks, which is itself above the usual
		Least:   30,                  // one every two minutes: below it five times as many are still few
	}
}

func (c *NewsConfig) validate() error {
	if c.Silence < 24*time.Hour || c.Silence > keepUses {
		return fmt.Errorf("detect.behaviour.news.silence is %v; write a duration from 24h to %v", c.Silence, keepUses)
	}
	if c.Times < 2 || c.Times > 1000 {
		return fmt.Errorf("detect.behaviour.news.times is %d; write a number from 2 to 1000", c.Times)
	}
	if c.Least < 1 || c.Least > 1<<20 {
		return fmt.Errorf("detect.behaviour.news.least is %d; write a number from 1 to %d", c.Least, 1<<20)
	}
	return nil
}

// news tells the owner and the requester of an exception of uses that they may not know of: the
// first one, one after a long silence, and far more than ever before. Whether a use was meant
// nobody knows as well as they do.
type news struct {
	uses map[flow.Name]*use
	// after is, by the address of a host, the use of it that was news within the last hour.
	after map[flow.Addr]after
}

// after is what else a host does in the hour after a use that was news.
type after struct {
	Client    flow.Addr
	Exception flow.Name
	At        flow.Time
	Day       int64 // of the finding
}

// use is how an exception was used. It is a value of fixed size.
type use struct {
	Exception flow.Name
	Last      flow.Time // when a use settled last
	// Hours is the sessions by hour of the last 24, Hour the newest; Peaks the most of an hour by
	// day of the last 32, Day the newest, both counted from the epoch and kept by their remainder.
	Hours [24]uint32
	Peaks [32]uint32
	Hour  int64
	Day   int64
	// What was told of the day of that number.
	ToldDay  int64
	Why      uint8
	Silent   flow.Time // for how long it had been
	Blind    flow.Time // for how much of the time without any use not all was seen
	Busy     int64     // the hour with far more than usual
	BusyN    uint32
	BusyMost uint32 // the most of an hour before
}

const (
	whyFirst uint8 = 1 << iota
	whySince       // the first as far as there is data
	whySilent
	whyBusy
)

const (
	maxUses = 1 << 16
	// maxAfter is how many hosts are followed for the hour after a use; one for each exception
	// that is news at once.
	maxAfter = 1 << 12
	// unusualAfter is from which score of a hundred on what a host does after a use is added.
	unusualAfter = 25
	// keepUses is for how long an exception that is not used is remembered.
	keepUses = 400 * 24 * time.Hour
	// usualDays is on how many days an exception must have been used to have something usual,
	// peakDays how many days back that looks.
	usualDays = 5
	peakDays  = 28
)

func newNews() news { return news{uses: map[flow.Name]*use{}, after: map[flow.Addr]after{}} }

// used says whether a contact is a use of an exception that got through.
func (v *visit) used() bool {
	e := v.Verdict.Exception
	return v.Verdict.Reason == flow.ReasonWaived && e != flow.NoName && e != flow.OverflowName && !v.Fate.failed()
}

// contact looks at one contact.
func (n *news) contact(b *Behaviour, v *visit) {
	if !v.used() {
		n.elsewhere(b, v)
		return
	}
	u := n.uses[v.Verdict.Exception]
	why, silent, blind := uint8(0), flow.Time(0), flow.Time(0)
	switch {
	case u == nil:
		if len(n.uses) >= maxUses {
			b.bm.unfollowed.Inc()
			b.pressed(boundUses, flow.Addr{}, 1, v.at)
			return
		}
		u = &use{Exception: v.Verdict.Exception}
		n.uses[u.Exception] = u
		// What began before there was anything to see, or while exporters came in one by one, may
		// have been used before.
		since := b.began
		if facts, known := b.policy.ExceptionFacts(v.Start, u.Exception); known && facts.NotBefore >= b.began+hourMillis {
			why, since = whyFirst, facts.NotBefore
		} else if v.at >= b.began+millis(b.bcfg.Learn) {
			why = whySince
		}
		// Not if for most of that time whoever tells of it now could not.
		if blind = max(0, v.at-since) - b.sightOf(v.Contact, since, v.at).watched; why != 0 && 2*blind > v.at-since {
			why = 0
		}
	case v.at-u.Last >= millis(b.bcfg.News.Silence):
		silent = v.at - u.Last
		if blind = silent - b.sightOf(v.Contact, u.Last, v.at).watched; silent-blind >= millis(b.bcfg.News.Silence) {
			why = whySilent
		}
	}
	u.Last = max(u.Last, v.at)
	if why != 0 {
		u.begin(dayOf(v.Start))
		u.Why |= why
		u.Silent, u.Blind = max(u.Silent, silent), max(u.Blind, blind)
		n.tell(b, v, u, dayOf(v.Start), 1)
	}
	// Those that were not passed on came within a few minutes before the edge was seen last.
	if v.Repeats > 0 {
		n.count(b, v, u, v.Known, v.Repeats)
	}
	n.count(b, v, u, v.at, 1)
}

// begin makes what was told of an earlier day forgotten.
func (u *use) begin(day int64) {
	if u.ToldDay != day {
		u.ToldDay, u.Why, u.Silent, u.Blind, u.Busy, u.BusyN, u.BusyMost = day, 0, 0, 0, 0, 0, 0
	}
}

// count counts sessions of an hour and tells if they are far more than usual.
func (n *news) count(b *Behaviour, v *visit, u *use, at flow.Time, sessions uint32) {
	if at < 0 {
		return
	}
	hour, day := int64(at/hourMillis), dayOf(at)
	if u.Hour == 0 {
		u.Hour, u.Day = hour, day
	}
	for h := max(u.Hour+1, hour-int64(len(u.Hours))+1); h <= hour; h++ {
		u.Hours[h%int64(len(u.Hours))] = 0
	}
	for d := max(u.Day+1, day-int64(len(u.Peaks))+1); d <= day; d++ {
		u.Peaks[d%int64(len(u.Peaks))] = 0
	}
	u.Hour, u.Day = max(u.Hour, hour), max(u.Day, day)
	if hour <= u.Hour-int64(len(u.Hours)) {
		return // longer ago than hours are kept
	}
	of := &u.Hours[hour%int64(len(u.Hours))]
	*of += min(sessions, 1<<31-*of)
	peak := &u.Peaks[day%int64(len(u.Peaks))]
	*peak = max(*peak, *of)

	most, days := uint32(0), 0
	for d := max(day-peakDays, u.Day-int64(len(u.Peaks))+1); d < day; d++ {
		if p := u.Peaks[d%int64(len(u.Peaks))]; p > 0 {
			most = max(most, p)
			days++
		}
	}
	cfg := &b.bcfg.News
	if days < usualDays || *of < uint32(cfg.Least) || uint64(*of) < uint64(cfg.Times)*uint64(most) {
		return
	}
	u.begin(day)
	before := uint32(0)
	if u.Busy == hour {
		if *of < 2*u.BusyN {
			return // it is told again when it has doubled
		}
		before = u.BusyN
	}
	u.Why |= whyBusy
	u.Busy, u.BusyN, u.BusyMost = hour, *of, most
	n.tell(b, v, u, day, int64(*of-before))
}

// elsewhere adds to the finding what the host did elsewhere in the hour after, where that is
// unusual. What is reached from the server of the use is another detector's.
func (n *news) elsewhere(b *Behaviour, v *visit) {
	if len(n.after) == 0 || v.unusual < unusualAfter || b.learning(v.at) {
		return
	}
	a, known := n.after[b.hosts.list[v.client].Addr]
	if !known || v.at-a.At > hourMillis {
		return
	}
	k := key{Type: flow.FindingNews, Subject: b.names.Text(a.Exception), Day: a.Day}
	f := b.findings[k]
	if f == nil || slices.Contains(f.Edges, edgeOf(v.Contact)) {
		return
	}
	t, s := f.Told, *f.Told.Story
	if !strings.Contains(s.Sentence, afterSays) {
		s.Sentence += afterSays
	} else {
		s.Sentence = strings.TrimSuffix(s.Sentence, ".") + ", "
	}
	if len(s.Sentence) < maxAfterSays {
		z := b.endOf(&v.Session, true)
		s.Sentence += who(v.Server.Addr, z.Workload, z.Segment, "", z.Process) + " on " + string(v.AppendService(nil)) + "."
	} else {
		s.Sentence = strings.TrimSuffix(s.Sentence, ", ") + "."
	}
	s.Edges = []flow.Edge{edgeOf(v.Contact)}
	t.Story = &s
	b.raise(k, t, 0, v.Contact)
}

const (
	afterSays    = " Within the hour after, the same host did what is unusual for it and reached "
	maxAfterSays = 2000
)

// tell makes the finding: one for each exception and day.
func (n *news) tell(b *Behaviour, v *visit, u *use, day, sessions int64) {
	t := b.toldOf(v.Contact, flow.Informational, 95)
	t.Facts, _ = b.policy.ExceptionFacts(v.Start, u.Exception)
	if u.Blind >= spotJoins {
		t.Confidence = 80
	}
	name := word(t.Exception)
	a, z := b.endOf(&v.Session, false), b.endOf(&v.Session, true)
	var titles, says []string
	if u.Why&whyFirst != 0 {
		titles = append(titles, "used for the first time")
		says = append(says, "was used for the first time since it began to hold on "+moment(t.Facts.NotBefore)+partly(u.Blind))
	}
	if u.Why&whySince != 0 {
		titles = append(titles, "used for the first time in sight")
		says = append(says, "was used for the first time since "+moment(b.began)+", when there was the first traffic to see"+partly(u.Blind))
	}
	if u.Why&whySilent != 0 {
		titles = append(titles, "used after a long silence")
		says = append(says, "was used after "+times(int(u.Silent/dayMillis), "day", "days")+" without"+partly(u.Blind))
	}
	if u.Why&whyBusy != 0 {
		titles = append(titles, "used far more than usual")
		says = append(says, fmt.Sprintf("was used by %s within the hour from %s on, and in no hour of the four weeks before by more than %d",
			times(int(u.BusyN), "session", "sessions"), moment(flow.Time(u.Busy)*hourMillis), u.BusyMost))
	}
	var asked []string
	for _, who := range []string{t.Facts.Owner, t.Facts.Requester} {
		if who = word(who); who != "" && !slices.Contains(asked, who) {
			asked = append(asked, who)
		}
	}
	ask := "Ask whoever asked for the exception"
	if len(asked) > 0 {
		ask = "Ask " + strings.Join(asked, " and ")
	}
	t.Story = &story{
		Title: "Exception " + name + " " + strings.Join(titles, ", "),
		Sentence: "Exception " + name + " " + strings.Join(says, "; it ") + ": " +
			who(v.Client.Addr, a.Workload, a.Segment, a.Identity, a.Process) + " reached " +
			who(v.Server.Addr, z.Workload, z.Segment, "", z.Process) + " on " + t.Service + ".",
		Next: ask + " whether this was meant. If it was, nothing need be done; if not, revoke the exception and look at what " +
			v.Client.Addr.String() + " did since.",
		Ends: []flow.End{a, z}, Edges: []flow.Edge{edgeOf(v.Contact)}, Client: v.Client.Addr, Server: v.Server.Addr,
	}
	k := key{Type: flow.FindingNews, Subject: b.names.Text(u.Exception), Day: day}
	if f := b.findings[k]; f != nil {
		if _, also, found := strings.Cut(f.Told.Story.Sentence, afterSays); found {
			t.Story.Sentence += afterSays + also
		}
	}
	b.raise(k, t, sessions, v.Contact)
	client := b.hosts.list[v.client].Addr
	if _, known := n.after[client]; !known && len(n.after) >= maxAfter {
		b.bm.unfollowed.Inc()
		b.pressed(boundUses, flow.Addr{}, 1, v.at)
		return
	}
	n.after[client] = after{client, u.Exception, v.at, day}
}

// tend forgets exceptions that are not used any more.
func (n *news) tend(now flow.Time) {
	for e, u := range n.uses {
		if u.Last < now-millis(keepUses) {
			delete(n.uses, e)
		}
	}
	for c, a := range n.after {
		if a.At < now-hourMillis {
			delete(n.after, c)
		}
	}
}

func (n *news) save(w *stateWriter) {
	list := make([]use, 0, len(n.uses))
	for _, u := range n.uses {
		list = append(list, *u)
	}
	slices.SortFunc(list, func(x, y use) int { return cmp.Compare(w.names.Text(x.Exception), w.names.Text(y.Exception)) })
	saveAll(w, list)
	later := make([]after, 0, len(n.after))
	for _, a := range n.after {
		later = append(later, a)
	}
	slices.SortFunc(later, func(x, y after) int { return x.Client.Compare(y.Client) })
	saveAll(w, later)
}

func (n *news) load(r *stateReader) {
	list := loadAll[use](r)
	if len(list) > maxUses {
		r.fail(errState)
		return
	}
	for i := range list {
		if u := &list[i]; u.Hour < 0 || u.Day < 0 {
			r.fail(errState)
			return
		}
		n.uses[list[i].Exception] = &list[i]
	}
	for _, a := range loadAll[after](r) {
		n.after[a.Client] = a
	}
}
