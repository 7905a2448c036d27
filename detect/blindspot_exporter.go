package detect

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/postern/postern/flow"
)

// teller is who tells of flows, and how it usually does. Times are minutes since the epoch. It
// is a value of fixed size without pointers.
type teller struct {
	Key         HeardKey // without its minute
	First, Last uint32
	Minutes     uint32 // in which it was heard
	// Gaps are the longest silences of this week and of those before it, in minutes.
	Week   uint32
	Gaps   [6]uint32
	Silent uint32 // since when it is told to be; 0 while it speaks

	Rates    [maxRates]uint32 // sampling rates, ascending; 0 behind them
	RateSeen [maxRates]uint32 // when each was told last

	SkewRun, SkewFrom uint32 // minutes in a row, and since when
	Skew              int32

	// Of the day: how often its sequence numbers skipped, in how many minutes, since when.
	Day                     int32
	Lost, LossRun, LossFrom uint32
	Stale, StaleFrom        uint32 // minutes and the first of them
}

const week = 7 * 24 * 60

// longNight is how long a silence is, in minutes, beyond which a teller counts as one that is
// not heard at night; such a one is not heard on holidays either.
const longNight = 4 * 60

// oftenHeard is in how many minutes of a day, on average, a teller must be heard for its silence
// to mean anything: one that is heard now and then is silent most of the time.
const oftenHeard = 48

func (s *spots) adoptTellers() {
	clear(s.byTeller)
	for i := range s.tellers {
		s.byTeller[s.tellers[i].Key] = int32(i)
	}
}

// heard takes in what a teller told in a minute.
func (s *spots) heard(b *Behaviour, k *HeardKey, n *Heard) {
	at := k.At
	who := *k
	who.At = 0
	i, known := s.byTeller[who]
	if !known {
		if len(s.tellers) >= maxTellers {
			s.m.unheard.Inc()
			b.pressed(boundTellers, k.Addr, 1, minuteTime(at))
			return
		}
		i = int32(len(s.tellers))
		s.byTeller[who] = i
		s.tellers = append(s.tellers, teller{Key: who, First: at, Last: at, Week: at / week, Day: int32(dayOf(minuteTime(at)))})
	}
	t := &s.tellers[i]
	if day := int32(dayOf(minuteTime(at))); day != t.Day {
		t.Day, t.Lost, t.LossRun, t.Stale = day, 0, 0, 0
	}
	if k.Kind == heardStale {
		s.stale(b, t, at, n)
		t.Last = at
		return
	}
	if s.any.Minutes == 0 {
		s.any = teller{First: at, Last: at, Minutes: 1, Week: at / week}
	}
	if at > s.any.Last {
		if s.any.Silent != 0 {
			s.resumed = at
			s.backAll(b, at)
		}
		s.any.spoke(at, at-s.any.Last)
	}
	if t.Silent != 0 {
		s.back(b, t, at)
	}
	t.spoke(at, at-min(max(t.Last, s.resumed), at))
	s.rates(b, t, at, n)
	s.skewed(b, t, at, n)
	if n.Gaps > 0 {
		s.lost(b, t, at, n)
	}
}

// spoke notes that it was heard, gap minutes after the time before.
func (t *teller) spoke(at, gap uint32) {
	if w := at / week; w != t.Week {
		for ; t.Week < w && t.Week+uint32(len(t.Gaps)) > w; t.Week++ {
			copy(t.Gaps[1:], t.Gaps[:len(t.Gaps)-1])
			t.Gaps[0] = 0
		}
		if t.Week != w { // longer ago than is kept: what was usual then still is what is known
			t.Week = w
		}
	}
	t.Gaps[0] = max(t.Gaps[0], gap)
	t.Last = max(t.Last, at)
	t.Minutes++
}

// patience is for how many minutes it must be silent for that to mean something.
func (s *spots) patience(t *teller) uint32 {
	longest := max(slices.Max(t.Gaps[:]), 1)
	least, most := uint32(millis(s.cfg.Least)/minuteMillis), uint32(millis(s.cfg.Most)/minuteMillis)
	if longest >= longNight {
		return max(most, 3*longest)
	}
	return max(3*longest, least)
}

// deadline is when a teller counts as silent; false if its silence says nothing.
func (s *spots) deadline(t *teller) (flow.Time, bool) {
	if t.Silent != 0 || t.Key.Kind != heardTeller || t.Minutes < 60 || t.Minutes/((t.Last-t.First)/(24*60)+1) < oftenHeard ||
		minuteTime(t.Last-t.First) < millis(s.cfg.History) {
		return 0, false
	}
	return minuteTime(max(t.Last, s.resumed) + 1 + s.patience(t)), true
}

// time finds who has been silent for too long by a time.
func (s *spots) time(b *Behaviour, now flow.Time) {
	if now < s.next {
		return
	}
	// Nobody whose silence does not count yet falls silent within the least time.
	s.next = now + millis(s.cfg.Least)
	if s.any.Silent != 0 {
		return
	}
	allAt, counts := s.deadline(&s.any)
	var due []int32
	when := func(i int32) flow.Time { d, _ := s.deadline(&s.tellers[i]); return d }
	speaking := int32(0)
	for i := range s.tellers {
		t := &s.tellers[i]
		d, ok := s.deadline(t)
		if !ok {
			continue
		}
		speaking++
		if d > now {
			s.next = min(s.next, d)
		} else if !s.ofFewAgents(t) {
			due = append(due, int32(i))
		}
	}
	if counts && allAt > now {
		s.next = min(s.next, allAt)
	}
	slices.SortFunc(due, func(x, y int32) int {
		return cmp.Or(cmp.Compare(when(x), when(y)), strings.Compare(s.subject(b, &s.tellers[x]), s.subject(b, &s.tellers[y])))
	})
	for _, i := range due {
		if counts && speaking > 1 && allAt <= now && allAt <= when(i) {
			break // not one is silent but all
		}
		s.silent(b, &s.tellers[i])
		speaking--
	}
	if counts && speaking > 1 && allAt <= now {
		s.silentAll(b, int(speaking))
	}
}

// who is a teller in words.
func (s *spots) who(b *Behaviour, t *teller) string {
	k := &t.Key
	switch {
	case k.Name != flow.NoName:
		return fmt.Sprintf("sensor %s (%v)", word(b.names.Text(k.Name)), k.Source)
	case k.Addr.IsZero():
		return fmt.Sprintf("the log feed of %v", k.Source)
	case k.Domain != 0:
		return fmt.Sprintf("exporter %v (%v, domain %d)", k.Addr, k.Source, k.Domain)
	}
	return fmt.Sprintf("exporter %v (%v)", k.Addr, k.Source)
}

// subject tells it from every other.
func (s *spots) subject(b *Behaviour, t *teller) string {
	k := &t.Key
	return k.Source.String() + "|" + strconv.FormatUint(uint64(k.Domain), 10) + "|" + k.Addr.String() + "|" + b.names.Text(k.Name)
}

func (s *spots) keyOf(b *Behaviour, t *teller, typ string, at flow.Time) key {
	return key{Type: typ, Client: t.Key.Addr, Subject: s.subject(b, t), Day: dayOf(at)}
}

// ofTeller fills in whom a blind spot is about.
func (s *spots) ofTeller(b *Behaviour, t *teller, n flow.BlindSpot) flow.BlindSpot {
	k := &t.Key
	n.Subject, n.About, n.Address, n.Source, n.Domain, n.Name = flow.BlindExporter, s.who(b, t), k.Addr, k.Source.String(), k.Domain, b.names.Text(k.Name)
	if k.Addr.IsZero() && k.Name == flow.NoName {
		n.Subject = flow.BlindFeed
	}
	return n
}

// notWaitedFor is of who was silent for as long as anything is remembered.
const notWaitedFor = "it was silent for as long as anything is remembered and is not waited for any longer"

// heardBy adds which exporter or sensor a finding is about and how to find what that told.
func (s *spots) heardBy(b *Behaviour, t *teller, out told) told {
	k, where := &t.Key, "source = "+sqlText(t.Key.Source.String())
	if !k.Addr.IsZero() {
		where += " AND exporter = " + sqlAddr(k.Addr) + " AND domain = " + strconv.FormatUint(uint64(k.Domain), 10)
		out.Story.Exporters = []flow.Addr{k.Addr}
	}
	if k.Name != flow.NoName {
		where += " AND observer = " + sqlText(b.names.Text(k.Name))
		out.Story.Observers = []flow.Name{k.Name}
	}
	out.Story.Flows, out.Story.Where = true, where
	return out
}

const blindNext = "Nothing follows from what did not come in this time: do not take an exception for unused, nor a network for quiet."

// silent tells that a teller has fallen silent.
func (s *spots) silent(b *Behaviour, t *teller) {
	from := max(t.Last, s.resumed) + 1
	t.Silent = from
	since, who := minuteTime(from), s.who(b, t)
	k := s.keyOf(b, t, flow.FindingSilentExporter, since)
	b.raise(k, s.heardBy(b, t, blindTold(flow.Low, 80, since, 0, capital(who)+" is silent",
		fmt.Sprintf("%s has told nothing since %s. In the weeks before it was never silent for longer than %s. What only it sees is not seen.",
			capital(who), moment(since), roughly(minuteTime(max(slices.Max(t.Gaps[:]), 1)))),
		"Check that it runs, that its address and port of export are right, and every firewall between it and Postern. "+blindNext, "T1562")), 1)
	s.note(b, s.ofTeller(b, t, flow.BlindSpot{Kind: flow.FindingSilentExporter, From: since, Finding: k.id()}))
}

// back tells that it is heard again.
func (s *spots) back(b *Behaviour, t *teller, at uint32) {
	since, until, who := minuteTime(t.Silent), minuteTime(at), s.who(b, t)
	t.Silent = 0
	k := s.keyOf(b, t, flow.FindingSilentExporter, since)
	if b.findings[k] != nil && until < since+dayMillis {
		b.raise(k, s.heardBy(b, t, blindTold(flow.Low, 80, since, until, capital(who)+" was silent",
			fmt.Sprintf("%s told nothing from %s to %s (%s) and is heard again. What only it sees was not seen.", capital(who), moment(since), moment(until), roughly(until-since)),
			"Find out why. "+blindNext, "T1562")), 0)
	}
	s.note(b, s.ofTeller(b, t, flow.BlindSpot{Kind: flow.FindingSilentExporter, From: since, Until: until, Finding: k.id()}))
}

func keyOfAll(at flow.Time) key {
	return key{Type: flow.FindingSilentExporter, Subject: "all", Day: dayOf(at)}
}

const aboutAll = "everybody"

func (s *spots) silentAll(b *Behaviour, n int) {
	from := max(s.any.Last, s.resumed) + 1
	s.any.Silent = from
	since := minuteTime(from)
	k := keyOfAll(since)
	b.raise(k, blindTold(flow.Low, 90, since, 0, "Nothing is heard from anybody",
		fmt.Sprintf("None of the %d exporters and logs that are usually heard has told anything since %s. Nothing is seen.", n, moment(since)),
		"Check Postern's own network, its listeners and the allow-list of exporters. "+blindNext, "T1562"), 1)
	s.note(b, flow.BlindSpot{Kind: flow.FindingSilentExporter, Subject: flow.BlindEverything, About: aboutAll, From: since, Finding: k.id()})
}

func (s *spots) backAll(b *Behaviour, at uint32) {
	since, until := minuteTime(s.any.Silent), minuteTime(at)
	s.any.Silent = 0
	k := keyOfAll(since)
	if b.findings[k] != nil && until < since+dayMillis {
		b.raise(k, blindTold(flow.Low, 90, since, until, "Nothing was heard from anybody",
			fmt.Sprintf("From %s to %s (%s) nothing was heard from anybody.", moment(since), moment(until), roughly(until-since)),
			"Find out why. "+blindNext, "T1562"), 0)
	}
	s.note(b, flow.BlindSpot{Kind: flow.FindingSilentExporter, Subject: flow.BlindEverything, About: aboutAll, From: since, Until: until, Finding: k.id()})
}

// rates finds a sampling rate that an exporter did not have before.
func (s *spots) rates(b *Behaviour, t *teller, at uint32, n *Heard) {
	usual := minuteTime(t.Last-t.First) >= millis(s.cfg.History) && t.Rates[0] != 0
	var before []string
	for _, r := range t.Rates {
		if r != 0 {
			before = append(before, "1 in "+strconv.FormatUint(uint64(r), 10))
		}
	}
	for _, r := range n.Rates {
		if r == 0 {
			break
		}
		if i := slices.Index(t.Rates[:], r); i >= 0 {
			t.RateSeen[i] = at
			continue
		}
		if usual {
			since, who := minuteTime(at), s.who(b, t)
			k := s.keyOf(b, t, flow.FindingSampling, since)
			b.raise(k, s.heardBy(b, t, blindTold(flow.Low, 90, since, since+minuteMillis, capital(who)+" samples at another rate",
				fmt.Sprintf("%s tells of 1 packet in %d since %s; before it was %s. Counts from before and after cannot be compared, and short flows that were seen may not be seen now.",
					capital(who), r, moment(since), strings.Join(before, ", ")),
				"Ask who runs it whether that was meant. For a day nothing is claimed of what did not come through it.", "T1562")), 1)
			s.note(b, s.ofTeller(b, t, flow.BlindSpot{Kind: flow.FindingSampling, From: since, Until: since + dayMillis, Finding: k.id(),
				Details: fmt.Sprintf("1 packet in %d; before it was %s", r, strings.Join(before, ", "))}))
		}
		// In the place of the one that was told longest ago.
		least := 0
		for i := range t.RateSeen {
			if t.Rates[i] == 0 || t.Rates[least] != 0 && t.RateSeen[i] < t.RateSeen[least] {
				least = i
			}
			if t.Rates[least] == 0 {
				break
			}
		}
		t.Rates[least], t.RateSeen[least] = r, at
	}
}

// skewMinutes is in how many minutes running a clock must be off: one datagram that the
// network held up moves what is known of a clock.
const skewMinutes = 3

// skewed finds an exporter whose clock is off beyond tolerance.
func (s *spots) skewed(b *Behaviour, t *teller, at uint32, n *Heard) {
	if n.Skewed == 0 {
		if t.SkewRun >= skewMinutes {
			s.note(b, s.ofTeller(b, t, flow.BlindSpot{Kind: flow.FindingSkew, From: minuteTime(t.SkewFrom), Until: minuteTime(at), Details: offBy(t.Skew)}))
		}
		t.SkewRun = 0
		return
	}
	if t.SkewRun == 0 {
		t.SkewFrom = at
	}
	t.SkewRun++
	t.Skew = n.Skew
	if t.SkewRun != skewMinutes && (t.SkewRun < skewMinutes || dayOf(minuteTime(at)) == dayOf(minuteTime(t.SkewFrom))) {
		return
	}
	if t.SkewRun > skewMinutes {
		t.SkewFrom = at // another day, another finding
	}
	since, who := minuteTime(t.SkewFrom), s.who(b, t)
	off := offBy(n.Skew)
	k := s.keyOf(b, t, flow.FindingSkew, since)
	b.raise(k, s.heardBy(b, t, blindTold(flow.Low, 90, since, minuteTime(at+1), "The clock of "+who+" is off",
		fmt.Sprintf("The clock of %s is off by %s since %s. When its flows began is not known better than that: near the end of an exception they are expiry-uncertain, and what came first cannot be told.", who, off, moment(since)),
		"Have it set its clock by NTP.", "T1070.006")), 1)
	s.note(b, s.ofTeller(b, t, flow.BlindSpot{Kind: flow.FindingSkew, From: since, Finding: k.id(), Details: off}))
}

// offBy is a clock's error in words; 0 is one that is of no use.
func offBy(skew int32) string {
	switch {
	case skew > 0:
		return fmt.Sprintf("%d seconds ahead", skew/1000)
	case skew < 0:
		return fmt.Sprintf("%d seconds behind", -skew/1000)
	}
	return "more than a day"
}

// lossMinutes is in how many minutes of a day sequence numbers must skip for somebody to be
// told: now and then a datagram is lost in every network.
const lossMinutes = 3

// lost finds an exporter whose datagrams do not all arrive.
func (s *spots) lost(b *Behaviour, t *teller, at uint32, n *Heard) {
	if t.LossRun == 0 {
		t.LossFrom = at
	}
	t.LossRun++
	t.Lost += n.Gaps
	since, who := minuteTime(t.LossFrom), s.who(b, t)
	finding := ""
	if t.LossRun >= lossMinutes {
		k := s.keyOf(b, t, flow.FindingLoss, since)
		finding = k.id()
		grown := int64(n.Gaps)
		if t.LossRun == lossMinutes {
			grown = int64(t.Lost)
		}
		b.raise(k, s.heardBy(b, t, blindTold(flow.Low, 80, since, minuteTime(at+1), "Datagrams of "+who+" are lost",
			fmt.Sprintf("The sequence numbers of %s skipped %s in %s since %s: as many datagrams or more did not arrive, or came out of their order. The flows in them are not seen.",
				who, times(int(t.Lost), "time", "times"), times(int(t.LossRun), "minute", "minutes"), moment(since)),
			"Look at the drops of the socket and of the network between (postern_udp_… in the metrics, and the exporters table). "+blindNext)), grown)
	}
	s.note(b, s.ofTeller(b, t, flow.BlindSpot{Kind: flow.FindingLoss, From: minuteTime(at), Until: minuteTime(at + 1), Finding: finding,
		Details: "sequence numbers skipped " + times(int(t.Lost), "time", "times") + " on this UTC day"}))
}

// staleMinutes is in how many minutes of a day identities must have been stale.
const staleMinutes = 3

// stale finds a source of identities that says nothing new of a segment's hosts.
func (s *spots) stale(b *Behaviour, t *teller, at uint32, n *Heard) {
	if t.Stale == 0 {
		t.StaleFrom = at
	}
	t.Stale++
	t.Lost += n.Records // ends that were not known, so far today
	segment := b.names.Text(t.Key.Name)
	about := "hosts of no segment"
	if segment != "" {
		about = "segment " + word(segment)
	}
	since, finding := minuteTime(t.StaleFrom), ""
	if t.Stale >= staleMinutes {
		k := key{Type: flow.FindingStale, Subject: "segment|" + segment, Day: dayOf(since)}
		finding = k.id()
		out := blindTold(flow.Low, 80, since, minuteTime(at+1), "It is not known who is behind addresses: "+about,
			fmt.Sprintf("In %s since %s flows came from or went to %s whose source of identities had been silent for longer than its limit. Who was behind the addresses is not known; rules and exceptions that ask for it are unverified.",
				times(int(t.Stale), "minute", "minutes"), moment(since), about),
			"See which source is silent: postern_identity_… in the metrics, or postern explain for one of the flows.")
		out.SrcSegment = segment
		of := sqlText(segment)
		out.Story.Flows = true
		out.Story.Where = "src_segment = " + of + " AND has(src_doubt, 'stale') OR dst_segment = " + of + " AND has(dst_doubt, 'stale')"
		grown := int64(n.Records)
		if t.Stale == staleMinutes {
			grown = int64(t.Lost)
		}
		b.raise(k, out, grown)
	}
	s.note(b, flow.BlindSpot{Kind: flow.FindingStale, Subject: flow.BlindSegment, About: about, Segment: segment, From: minuteTime(at), Until: minuteTime(at + 1), Finding: finding})
}

// capital is a sentence's first word.
func capital(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
