package main

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"

	"github.com/postern/postern/flow"
)

// attack is something that was put into a run and should be found, or at least not count as
// ordinary: a campaign of the dataset, or one that was made up.
type attack struct {
	name   string
	kind   string // captured, chain, scan, pivot
	speed  string
	start  flow.Time
	truth  map[edge]class
	alias  map[edge]edge
	hidden map[edge]bool // not decidable from flows
	absent int           // malicious edges of which these records tell nothing
	hops   []edge        // of a chain or pivot, in their order
	source flow.Addr     // of a scan
}

// newcomer is who stands for a captured host.
type newcomer struct {
	to    flow.Addr
	local bool      // a host of the company
	by    flow.Addr // the exporter of its site
	logs  []logger  // it has
}

// logger is what writes one of a host's logs.
type logger struct {
	hostLog
	skew flow.Time // how far its clock is ahead
}

// cold is a campaign as it was captured, from one kind of exporter, with host logs or without.
func (c *campaign) cold(l layout, logs bool) ([]flow.Record, *attack) {
	kinds := []source{[...]source{fromV5, fromV9, fromIPFIX}[l], fromZeek}
	a := &attack{name: c.name, kind: "captured", truth: maps.Clone(c.labels), alias: c.aliases, hidden: c.undecidable}
	if logs {
		kinds = append(kinds, fromWindows)
		if len(c.records[fromWindows]) > 0 {
			a.hidden = nil
		}
	}
	var out []flow.Record
	for _, k := range kinds {
		out = append(out, c.records[k]...)
	}
	for i := range out {
		r := &out[i]
		// A second after it happened, whatever its own clock says: the captures' own stamps are made up.
		r.Received = r.End + 1000 - c.skews[hostLog{r.Source, r.Observer}]
	}
	slices.SortStableFunc(out, func(a, b flow.Record) int { return cmp.Compare(a.Received, b.Received) })
	a.compare(out)
	return out, a
}

// compare notes that what is in an attack's records and labelled by nobody is neutral, and takes
// off what is labelled and not in them: another format may have it.
func (a *attack) compare(rs []flow.Record) {
	told := map[edge]bool{}
	defer func() {
		for e, k := range a.truth {
			if k == malicious && !told[e] {
				delete(a.truth, e)
				a.absent++
			}
		}
	}()
	for i := range rs {
		r := &rs[i]
		if a.start == 0 || r.Start < a.start {
			a.start = r.Start
		}
		for _, e := range [...]edge{{r.Src, r.Dst, r.DstPort, r.Proto}, {r.Dst, r.Src, r.SrcPort, r.Proto}} {
			told[e] = true
			if _, ok := a.truth[e]; ok {
				continue
			}
			if _, ok := a.alias[e]; !ok {
				a.truth[e] = neutral
			}
		}
	}
}

// span is from when to when a campaign was recorded.
func (c *campaign) span() (from, to flow.Time) {
	for _, rs := range c.records {
		for i := range rs {
			if from == 0 || rs[i].Start < from {
				from = rs[i].Start
			}
			to = max(to, rs[i].End)
		}
	}
	return from, to
}

// embedding is a campaign placed in a company: who stands for whom, and when.
type embedding struct {
	c     *campaign
	of    map[flow.Addr]newcomer
	shift flow.Time
	names *flow.Names
	mark  string
}

// embed draws who stands for a campaign's hosts, and when it happens: after the days of
// learning. taken are hosts that stand for others already.
func embed(c *campaign, co *company, rng *rand.Rand, names *flow.Names, nth int, taken map[int32]bool) *embedding {
	m := &embedding{c: c, of: map[flow.Addr]newcomer{}, names: names, mark: "#" + strconv.Itoa(nth)}
	from, to := c.span()
	first := co.start + flow.Time(co.b.Learning)*24*hour
	room := flow.Time(co.b.Days-co.b.Learning)*24*hour - (to - from) - hour
	at := first + flow.Time(rng.Int64N(int64(max(room, hour))))
	m.shift = at - from
	day := int((at - co.start) / (24 * hour))
	seen := map[flow.Addr]bool{}
	for e := range c.labels {
		seen[e.src], seen[e.dst] = true, true
	}
	for _, rs := range c.records {
		for i := range rs {
			seen[rs[i].Src], seen[rs[i].Dst] = true, true
		}
	}
	addrs := slices.SortedFunc(maps.Keys(seen), flow.Addr.Compare)
	for _, a := range addrs {
		ip := a.Netip()
		switch {
		case c.outside[a]:
			m.of[a] = newcomer{to: internet(400_000 + rng.IntN(1_000_000))}
		case !a.Is4() || !ip.IsPrivate() || a.V4()&0xff == 0xff:
			continue // groups, this host itself, what has no place in the company; broadcasts below
		case c.servers[a]:
			m.of[a] = co.stand(rng, day, taken, "domain-controller")
		default:
			m.of[a] = co.stand(rng, day, taken, "workstation", "laptop", "developer")
		}
	}
	for _, a := range addrs { // the broadcast address of the net of whoever of its net comes first
		if a.Is4() && a.Netip().IsPrivate() && a.V4()&0xff == 0xff && !c.outside[a] {
			for _, b := range addrs {
				if n := m.of[b]; n.local && b.V4()>>8 == a.V4()>>8 {
					m.of[a] = newcomer{to: flow.AddrFrom4(n.to.V4() | 0xff)}
					break
				}
			}
		}
	}
	for i := range c.records[fromWindows] {
		r := &c.records[fromWindows][i]
		at := r.Src
		if r.Reporter == flow.ReporterDestination {
			at = r.Dst
		}
		log := hostLog{r.Source, r.Observer}
		if n, ok := m.of[at]; ok && n.local && r.Reporter != flow.ReporterElsewhere && r.Observer != flow.NoName {
			log.observer = m.renamed(r.Observer)
			if !slices.ContainsFunc(n.logs, func(a logger) bool { return a.hostLog == log }) {
				n.logs = append(n.logs, logger{log, c.skews[hostLog{r.Source, r.Observer}]})
				m.of[at] = n
			}
		}
	}
	return m
}

// stand draws a host of the roles that is there from the day on; it stands for one host only,
// but for domain controllers, of which there may be too few.
func (c *company) stand(rng *rand.Rand, day int, taken map[int32]bool, roles ...string) newcomer {
	var all []int32
	for _, r := range roles {
		all = append(all, c.byRole[c.roleOf(r)]...)
	}
	var h int32
	for range 1000 {
		h = all[rng.IntN(len(all))]
		if c.hosts[h].born <= max(0, c.b.Learning-2) && c.hosts[h].gone > day+1 && (!taken[h] || roles[0] == "domain-controller") {
			break
		}
	}
	taken[h] = true
	return newcomer{to: flow.AddrFrom4(c.addr(h, day)), local: true, by: exporterOf(&c.hosts[h])}
}

// renamed is a host's name in this embedding: several campaigns have hosts of one name.
func (m *embedding) renamed(n flow.Name) flow.Name {
	if n == flow.NoName {
		return n
	}
	return m.names.Intern(m.names.Text(n) + m.mark)
}

func (m *embedding) addr(a flow.Addr) flow.Addr {
	if n, ok := m.of[a]; ok {
		return n.to
	}
	return a
}

func (m *embedding) edge(e edge) edge { return edge{m.addr(e.src), m.addr(e.dst), e.port, e.proto} }

// place gives the campaign's records and truth as they are in the company.
func (m *embedding) place(l layout, logs bool) ([]flow.Record, *attack) {
	rs, was := m.c.cold(l, logs)
	a := &attack{name: was.name, kind: was.kind, truth: map[edge]class{}, alias: map[edge]edge{}, hidden: map[edge]bool{}}
	for e, k := range was.truth {
		a.truth[m.edge(e)] = k
	}
	for e, to := range was.alias {
		a.alias[m.edge(e)] = m.edge(to)
	}
	for e := range was.hidden {
		a.hidden[m.edge(e)] = true
	}
	for i := range rs {
		r := &rs[i]
		by := m.exporter(r)
		low := r.Src.Compare(r.Dst) < 0
		r.Src, r.Dst = m.addr(r.Src), m.addr(r.Dst)
		r.Start, r.End, r.Received = r.Start+m.shift, r.End+m.shift, r.Received+m.shift
		r.Observer, r.SrcHost, r.DstHost = m.renamed(r.Observer), m.renamed(r.SrcHost), m.renamed(r.DstHost)
		// Who tells the lower address first goes on doing so.
		if r.Source == flow.SourceIPFIX && low && r.Src.Compare(r.Dst) > 0 && r.Biflow() && !r.Any(flow.HasBiflowDirection|flow.HasInitiator|flow.HasResponder) {
			turn(r)
		}
		// The company's exporters tell of it, as of everything there: what another told, who was
		// never heard before, would be new for that alone. So they tell of what Zeek saw.
		if r.Source != flow.SourceWFP && r.Source != flow.SourceSysmon && !by.IsZero() {
			r.Exporter, r.Domain = by, 0
			if r.Source == flow.SourceZeek {
				r.Source, r.Observer, r.Reporter = [...]flow.Source{flow.SourceNetFlowV5, flow.SourceNetFlowV9, flow.SourceIPFIX}[l], flow.NoName, 0
			}
		}
		if a.start == 0 || r.Start < a.start {
			a.start = r.Start
		}
	}
	return rs, a
}

// exporter is the one that tells of a conversation: that of the site of its lower address, of those
// that stand for somebody of the company.
func (m *embedding) exporter(r *flow.Record) flow.Addr {
	low, high := r.Src, r.Dst
	if low.Compare(high) > 0 {
		low, high = high, low
	}
	if n, ok := m.of[low]; ok && n.local {
		return n.by
	}
	return m.of[high].by
}

// turn tells a biflow from its other end.
func turn(r *flow.Record) {
	r.Src, r.Dst = r.Dst, r.Src
	r.SrcPort, r.DstPort = r.DstPort, r.SrcPort
	r.BytesRaw, r.RevBytesRaw = r.RevBytesRaw, r.BytesRaw
	r.PacketsRaw, r.RevPacketsRaw = r.RevPacketsRaw, r.PacketsRaw
	r.TCPFlags, r.RevTCPFlags = r.RevTCPFlags, r.TCPFlags
}
