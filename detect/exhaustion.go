package detect

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/postern/postern/flow"
)

// What is remembered is bounded, and whoever can send packets can fill it: with sources that do
// not exist, or with all ports of a server (THREATS 34). A bound that bites is a blind spot, and
// told as one: what is no longer followed, whose sources pushed it out, and since when.

// Pressure is that a bound bit: something had to be forgotten, or was not followed.
type Pressure struct {
	What   string    // one of the bounds
	Prefix flow.Addr // the first address of the /24 or /56 behind it; zero: there are many
	N      uint64    // how many of what
	At     flow.Time // the minute
}

// The bounds. Those of edges are in edgeRanks.
const (
	boundAttempts = "failed attempts"
	boundRepeats  = "uses of exceptions"
	boundMappers  = "endpoint mappers"
	boundFresh    = "pairs that began to administer"
	boundHosts    = "hosts"
	boundTried    = "hosts that only tried"
	boundWaiting  = "contacts of inputs that are ahead"
	boundUses     = "exceptions in use"
	boundBeats    = "edges whose times are followed"
	boundWays     = "steps from host to host"
	boundDenied   = "denied sources"
	boundHeard    = "windows of who is heard"
	boundTellers  = "exporters and sensors"
	boundAgents   = "hosts with agents"
	boundRules    = "rules by point of enforcement"
	boundSpots    = "blind spots"
	boundUnmapped = "prefixes in no segment"
	boundFloods   = "findings of floods"
	boundUntold   = "sessions that an agent did not tell of"
)

// boundSays is what a bound's bite means.
var boundSays = map[string]struct {
	lost     string
	severity flow.Severity
	setting  string
}{
	edgeRanks[0]:  {"attempts that were never answered were forgotten: tried again they look like first ones", flow.Low, "detect.behaviour.maxEdges"},
	edgeRanks[1]:  {"edges within segments were forgotten: seen again they look new", flow.Medium, "detect.behaviour.maxEdges"},
	edgeRanks[2]:  {"edges between segments were forgotten: seen again they look new", flow.High, "detect.behaviour.maxEdges"},
	boundAttempts: {"failed attempts were not looked at one by one: how many hosts and ports a scan tried is a lower bound", flow.Low, ""},
	boundRepeats:  {"uses of exceptions were not counted", flow.Medium, ""},
	boundMappers:  {"endpoint mappers that were asked were not remembered: dynamic ports of their clients look like services of their own", flow.Medium, ""},
	boundFresh:    {"what came with the first remote administration of a pair was not looked at one by one", flow.Low, ""},
	boundHosts:    {"hosts were forgotten before their time: what is normal for them is learned anew", flow.Medium, "detect.behaviour.maxHosts"},
	boundWaiting:  {"contacts were looked at before those of inputs that are behind: ways over hosts of both may be missed", flow.Medium, ""},
	boundScans:    {"failed first contacts were forgotten before their time: slow scans may be missed", flow.Medium, "detect.behaviour.maxHosts"},
	boundBeats:    {"edges that were new lately are not followed any more, those used least first: beacons over them may be missed", flow.Low, "detect.behaviour.maxEdges"},
	boundUses:     {"further exceptions were not followed: whether their use is news is not told", flow.Medium, ""},
	boundDenied:   {"denied sessions were not counted for their source: that it is stopped more and more is not told", flow.Low, ""},
	boundFloods:   {"findings were not counted for the flood that they are part of: they are stored, and where their source has many more told of by nobody", flow.Medium, "detect.tellEach"},
	boundWays:     {"sessions were not remembered as steps from host to host: chains and pivots by them are missed", flow.Medium, "detect.behaviour.chain.maxHops"},
	boundHeard:    {"who told of flows was not counted: silent exporters, silent hosts and drift may be missed", flow.Medium, ""},
	boundTellers:  {"further exporters were not followed: their silence, losses and clocks are not told", flow.Medium, ""},
	boundAgents:   {"further hosts with agents, or that should have one, were not followed: that one is silent is not told", flow.Medium, "detect.behaviour.maxHosts"},
	boundRules:    {"further rules were not looked at: that enforcement does not keep to them is not told", flow.Low, ""},
	boundSpots:    {"blind spots were forgotten before their time: what follows from their silence may be claimed", flow.Low, ""},
	boundUnmapped: {"further prefixes that are in no segment were not looked at", flow.Low, ""},
	boundUntold:   {"sessions that an agent did not tell of, though others saw them, were not looked at: that it hides some may be missed", flow.Low, ""},
	boundTried:    {"hosts that had only tried to reach others and never did were forgotten", flow.Low, "detect.behaviour.maxHosts"},
}

func (p *Pressure) compare(o *Pressure) int {
	return cmp.Or(cmp.Compare(p.At, o.At), strings.Compare(p.What, o.What), p.Prefix.Compare(o.Prefix))
}

// maxPressed bounds the prefixes told of by themselves within a minute.
const maxPressed = 64

// press notes in a list that a bound bit within a minute.
func press(list []Pressure, what string, prefix flow.Addr, n int, minute uint32) []Pressure {
	at := flow.Time(minute) * minuteMillis
	same := 0
	for i := len(list) - 1; i >= 0 && list[i].At == at; i-- {
		p := &list[i]
		if p.What == what && p.Prefix == prefix {
			p.N += uint64(n)
			return list
		}
		if p.What == what {
			same++
		}
	}
	if same >= maxPressed && !prefix.IsZero() {
		return press(list, what, flow.Addr{}, n, minute)
	}
	return append(list, Pressure{what, prefix, uint64(n), at})
}

func savePressures(w *stateWriter, list []Pressure) {
	w.u64(uint64(len(list)))
	for i := range list {
		p := &list[i]
		w.u64(uint64(len(p.What)))
		w.b = append(w.b, p.What...)
		w.u64(p.Prefix.Hi)
		w.u64(p.Prefix.Lo)
		w.u64(p.N)
		w.time(p.At)
	}
}

func loadPressures(r *stateReader) (list []Pressure) {
	for range r.count(5) {
		n := r.count(1)
		if r.err != nil {
			return nil
		}
		what := string(r.b[:n])
		r.b = r.b[n:]
		list = append(list, Pressure{what, flow.Addr{Hi: r.u64(), Lo: r.u64()}, r.u64(), r.time()})
	}
	return list
}

// press notes that a bound of the contacts bit.
func (c *Contacts) press(what string, prefix flow.Addr, n int, minute uint32) {
	c.pressed = press(c.pressed, what, prefix, n, minute)
}

// edge is [edgeTable.use] that notes what had to go.
func (c *Contacts) edge(hash uint64, prefix flow.Addr, minute uint32) (s *edgeSlot, known bool) {
	s, known, lost := c.edges.use(hash, prefix, minute)
	for _, l := range lost {
		c.press(edgeRanks[l.rank], l.prefix, l.n, minute)
	}
	return s, known
}

// How many failed attempts at new edges are passed on a minute, of one prefix and in all. A scan
// shows in nine; a flood of made-up sources would fill topics and queues with contacts of about
// a kilobyte each: a megabyte a second at most.
const (
	maxFailedOfHome = 1 << 13
	maxFailed       = 1 << 16
)

// failedBudget counts the failed attempts passed on this minute.
type failedBudget struct {
	minute uint32
	all    uint32
	homes  [homes]uint16
}

// spend says whether one more may be passed on.
func (f *failedBudget) spend(minute uint32, home uint16) bool {
	if minute != f.minute {
		*f = failedBudget{minute: minute}
	}
	if f.all >= maxFailed || f.homes[home] >= maxFailedOfHome {
		return false
	}
	f.all++
	f.homes[home]++
	return true
}

func (f *failedBudget) appendTo(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, f.minute)
	b = binary.LittleEndian.AppendUint32(b, f.all)
	n := 0
	for _, v := range f.homes {
		if v > 0 {
			n++
		}
	}
	b = binary.LittleEndian.AppendUint16(b, uint16(n))
	for i, v := range f.homes {
		if v > 0 {
			b = binary.LittleEndian.AppendUint16(b, uint16(i))
			b = binary.LittleEndian.AppendUint16(b, v)
		}
	}
	return b
}

func (f *failedBudget) read(b []byte) ([]byte, error) {
	if len(b) < 10 {
		return nil, errContacts
	}
	f.minute, f.all = binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
	n := int(binary.LittleEndian.Uint16(b[8:]))
	b = b[10:]
	if len(b) < 4*n {
		return nil, errContacts
	}
	for range n {
		home := binary.LittleEndian.Uint16(b)
		if home >= homes {
			return nil, errContacts
		}
		f.homes[home] = binary.LittleEndian.Uint16(b[2:])
		b = b[4:]
	}
	return b, nil
}

// exhaustion tells of bounds that bit, one finding for each and UTC day.
type exhaustion struct {
	waiting []Pressure // of minutes that are not over
	days    map[pressedKey]*pressedDay
}

type pressedKey struct {
	what string
	day  int64
}

// pressedDay is how a bound bit on one day.
type pressedDay struct {
	What     string          `json:"what"`
	Day      int64           `json:"day"`
	Since    flow.Time       `json:"since"`
	N        uint64          `json:"n"`
	Prefixes []pressedPrefix `json:"prefixes,omitempty"` // at most maxPressed
}

type pressedPrefix struct {
	Prefix flow.Addr `json:"prefix"`
	N      uint64    `json:"n"`
}

func newExhaustion() exhaustion { return exhaustion{days: map[pressedKey]*pressedDay{}} }

// pressed notes that a bound bit: n of what had to be forgotten, or were not followed, because
// of a source of a prefix (any of its addresses; zero where there is no single one). It is told
// once the minute is over.
func (b *Behaviour) pressed(what string, prefix flow.Addr, n int, at flow.Time) {
	if !prefix.IsZero() {
		prefix = prefixOf(prefix)
	}
	b.exhaustion.waiting = press(b.exhaustion.waiting, what, prefix, n, uint32(at/minuteMillis))
}

// relieve tells of what bit in the minutes that are over.
func (b *Behaviour) relieve(until flow.Time) {
	x := &b.exhaustion
	minute := until - until%minuteMillis
	if !slices.ContainsFunc(x.waiting, func(p Pressure) bool { return p.At < minute }) {
		return
	}
	slices.SortStableFunc(x.waiting, func(p, q Pressure) int { return p.compare(&q) })
	n := 0
	for n < len(x.waiting) && x.waiting[n].At < minute {
		n++
	}
	for i := 0; i < n; {
		at, what := x.waiting[i].At, x.waiting[i].What
		k := pressedKey{what, dayOf(at)}
		d := x.days[k]
		if d == nil {
			d = &pressedDay{What: what, Day: k.day, Since: at}
			x.days[k] = d
		}
		before := d.N
		for ; i < n && x.waiting[i].At == at && x.waiting[i].What == what; i++ {
			d.add(&x.waiting[i])
		}
		b.tellPressure(d, at, int64(d.N-before))
	}
	x.waiting = slices.Delete(x.waiting, 0, n)
}

func (d *pressedDay) add(p *Pressure) {
	d.N += p.N
	if p.Prefix.IsZero() {
		return
	}
	for i := range d.Prefixes {
		if d.Prefixes[i].Prefix == p.Prefix {
			d.Prefixes[i].N += p.N
			return
		}
	}
	if len(d.Prefixes) < maxPressed {
		d.Prefixes = append(d.Prefixes, pressedPrefix{p.Prefix, p.N})
	}
}

// worst gives the prefixes that pushed most, at most three, with their lengths.
func (d *pressedDay) worst() (list []pressedPrefix, bits []int) {
	list = slices.Clone(d.Prefixes)
	slices.SortFunc(list, func(p, q pressedPrefix) int {
		return cmp.Or(-cmp.Compare(p.N, q.N), p.Prefix.Compare(q.Prefix))
	})
	list = list[:min(3, len(list))]
	for _, p := range list {
		if p.Prefix.Is4() {
			bits = append(bits, 24)
		} else {
			bits = append(bits, 56)
		}
	}
	return list, bits
}

// behind says in words which prefixes pushed most.
func (d *pressedDay) behind() string {
	list, bits := d.worst()
	if len(list) == 0 {
		return "No single prefix is behind it."
	}
	var told []string
	for i, p := range list {
		told = append(told, fmt.Sprintf("%s/%d (%d of 100)", p.Prefix, bits[i], 100*p.N/d.N))
	}
	return "Most of it is the doing of sources in " + strings.Join(told, ", ") + "."
}

// where is the condition that finds what those prefixes did.
func (d *pressedDay) where() string {
	list, bits := d.worst()
	var ranges []string
	for i, p := range list {
		last := p.Prefix
		if bits[i] == 24 {
			last.Lo |= 0xff
		} else {
			last.Hi, last.Lo = last.Hi|0xff, 1<<64-1
		}
		ranges = append(ranges, "client BETWEEN "+sqlAddr(p.Prefix)+" AND "+sqlAddr(last))
	}
	return strings.Join(ranges, " OR ")
}

func (b *Behaviour) tellPressure(d *pressedDay, at flow.Time, n int64) {
	says, known := boundSays[d.What]
	if !known {
		says.lost, says.severity = "what belongs to "+d.What+" is no longer followed in full", flow.Medium
	}
	next := "Look at what these sources send: sources that do not exist show that somebody floods the network or its exporters. "
	if says.setting != "" {
		next += "If the traffic is meant to be, raise " + says.setting + "."
	} else {
		next += "Nothing need be set: what these sources did is in the database, though the detectors did not follow all of it."
	}
	t := told{Severity: says.severity, Confidence: 100, Start: at, Story: &story{
		Title: "State pressure: " + d.What,
		Sentence: fmt.Sprintf("Since %s there was no more room for %s, and %s (%s so far today). %s",
			moment(d.Since), d.What, says.lost, strconv.FormatUint(d.N, 10), d.behind()),
		Next: next, Where: d.where(),
	}}
	k := key{Type: flow.FindingPressure, Subject: d.What, Day: d.Day}
	b.raise(k, t, n)
	b.spots.note(b, flow.BlindSpot{Kind: flow.FindingPressure, Subject: flow.BlindState, About: d.What, From: at, Until: at + minuteMillis, Finding: k.id(),
		Details: says.lost})
}

// tend forgets the days that are over.
func (x *exhaustion) tend(now flow.Time) {
	for k := range x.days {
		if k.day < dayOf(now)-1 {
			delete(x.days, k)
		}
	}
}

func (x *exhaustion) save(w *stateWriter) error {
	savePressures(w, x.waiting)
	list := make([]*pressedDay, 0, len(x.days))
	for _, d := range x.days {
		list = append(list, d)
	}
	slices.SortFunc(list, func(p, q *pressedDay) int {
		return cmp.Or(cmp.Compare(p.Day, q.Day), strings.Compare(p.What, q.What))
	})
	return w.json(list)
}

func (x *exhaustion) load(r *stateReader) {
	x.waiting = loadPressures(r)
	var list []*pressedDay
	r.json(&list)
	for _, d := range list {
		if d == nil {
			r.fail(errState)
			return
		}
		x.days[pressedKey{d.What, d.Day}] = d
	}
}
