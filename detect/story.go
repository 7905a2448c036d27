package detect

import (
	"cmp"
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"github.com/postern/postern/flow"
)

// story is what a finding about behaviour tells beside what it is about: words, edges, the way
// that was taken, and what the score is made of. A detector tells it anew whenever it adds to
// the finding; the newest counts.
type story struct {
	Title      string   `json:"title"`
	Sentence   string   `json:"sentence"`
	Next       string   `json:"next"`
	Techniques []string `json:"techniques,omitempty"`

	Score int              `json:"score,omitempty"` // 0 to 100
	Parts []flow.ScorePart `json:"parts,omitempty"`
	Ends  []flow.End       `json:"ends,omitempty"` // client, server; of a finding about one host that one
	Hops  []flow.Hop       `json:"hops,omitempty"` // the way, in the order of time

	// Where is the condition of the query that finds what is behind it, of sessions, or where
	// Flows says so of flows; empty: the pairs of its edges.
	Where string `json:"where,omitempty"`
	Flows bool   `json:"flows,omitempty"`

	// Exporters and Observers it is about, where no contact says so.
	Exporters []flow.Addr `json:"-"`
	Observers []flow.Name `json:"-"`
	// Edges of this sighting; those of the finding are of all its sightings.
	Edges []flow.Edge `json:"-"`
	// Client and Server, where the key does not name an address: of a host known by its workload.
	Client flow.Addr `json:"client,omitzero"`
	Server flow.Addr `json:"server,omitzero"`
	// Until is when it ended, and told.Start when it began, where contacts do not say so; zero:
	// they do, or it is told of a moment.
	Until flow.Time `json:"-"`
}

// maxStoryEdges bounds the edges that a finding remembers; beyond they are only counted.
const maxStoryEdges = 256

// addEdges adds edges in the order of their first sighting.
func (f *finding) addEdges(edges []flow.Edge) {
	for _, e := range edges {
		switch {
		case slices.Contains(f.Edges, e):
		case len(f.Edges) < maxStoryEdges:
			f.Edges = append(f.Edges, e)
			f.EdgesTotal++
		default:
			f.EdgesTotal++ // it may have been counted before: from here on it is an upper bound
		}
	}
}

// edgeOf is the edge that a contact went over.
func edgeOf(c *Contact) flow.Edge {
	port := c.Server.Port
	if c.HasICMP {
		port = 0
	}
	return flow.Edge{Source: c.Client.Addr.String(), Destination: c.Server.Addr.String(), Port: port, Protocol: string(flow.AppendProto(nil, c.Proto))}
}

// endOf is one side of a session in full.
func (d *book) endOf(s *flow.Session, server bool) flow.End {
	e := &s.Client
	if server {
		e = &s.Server
	}
	out := d.endFrom(e.Addr, e.Workload, e.Segment, e.Host, e.Process)
	d.identify(&out, e.Identity, e.IdentityFrom, ageOf(s.Start, e), e.IdentityCertain)
	out.Translated = translated(s.Translated(server))
	return out
}

// translated is an address behind a translation as findings tell it.
func translated(a flow.Addr) string {
	if a.IsZero() {
		return ""
	}
	return a.String()
}

func (d *book) endFrom(a flow.Addr, workload, segment, host, process flow.Name) flow.End {
	n := d.names
	return flow.End{Address: a.String(), Workload: n.Text(workload), Segment: n.Text(segment), Host: n.Text(host), Process: n.Text(process)}
}

// identify puts into an end who it was and who says so. age is in seconds; -1 is not known.
func (d *book) identify(out *flow.End, identity, from flow.Name, age int32, certain uint8) {
	if identity == flow.NoName {
		return
	}
	out.Identity, out.IdentityFrom, out.IdentityCertainty = d.names.Text(identity), d.names.Text(from), float64(certain)/100
	if out.IdentityFrom == "" {
		out.IdentityFrom = "exporter"
	}
	if age >= 0 {
		out.IdentityAge = &age
	}
}

// ageOf is for how many seconds whoever says who an end was had been silent as a session began:
// not at all if that was whoever told of the session, -1 if it is not known.
func ageOf(start flow.Time, e *flow.SessionEnd) int32 {
	if e.IdentityHeard == 0 {
		return -1
	}
	return int32(min(max(start-e.IdentityHeard, 0)/1000, 1<<31-1))
}

// endsOf is who was at the ends of a record, in the order of [flow.Record.Ends].
func (d *book) endsOf(r *flow.Record) (out [2]flow.End) {
	var addr, behind [2]flow.Addr
	var workload, segment, host, process, identity, from [2]flow.Name
	var silence [2]int32
	addr[0], addr[1] = r.Ends()
	behind[0], behind[1] = r.Translated()
	workload[0], workload[1] = r.Workloads()
	segment[0], segment[1] = r.Segments()
	host[0], host[1] = r.Hosts()
	process[0], process[1] = r.Processes()
	identity[0], identity[1] = r.Identities()
	from[0], from[1] = r.IdentitySources()
	silence[0], silence[1] = r.Silences()
	own := r.ReporterEnd()
	for k := range out {
		out[k] = d.endFrom(addr[k].Canonical(), workload[k], segment[k], host[k], process[k])
		out[k].Translated = translated(behind[k])
		if from[k] != flow.NoName {
			d.identify(&out[k], identity[k], from[k], silence[k], certainByAddress)
			continue
		}
		certain := uint8(certainByAddress)
		switch own {
		case [...]string{"client", "server"}[k]:
			certain = certainByAgent
		case "client", "server":
			certain = certainByFarAgent
		}
		d.identify(&out[k], identity[k], r.Observer, 0, certain)
	}
	return out
}

// How sure an identity is, in percent, by whose word it is; as sessions have it.
const (
	certainByAgent    = 100 // the end's own agent
	certainByAddress  = 70  // an exporter, or what is known of the address
	certainByFarAgent = 60  // the other end's agent
)

// ends is who was at either end of what a finding tells, as far as its verdict says.
func (t *told) ends() []flow.End {
	if t.Ends[0].Address == "" {
		return nil
	}
	return slices.Clone(t.Ends[:])
}

// observersOf adds who told of a session.
func (f *finding) observersOf(s *flow.Session, names *flow.Names) {
	for i := range s.Observers[:min(int(s.ObserversTotal), len(s.Observers))] {
		f.told(s.Observers[i].Exporter, names.Text(s.Observers[i].Observer))
	}
}

// told adds who told of a sighting. Mostly they are known.
func (f *finding) told(exporter flow.Addr, observer string) {
	var text [64]byte
	addObserver(&f.Exporters, exporter.AppendTo(text[:0]))
	addObserver(&f.Observers, []byte(observer))
}

// addObserver adds a name to those that a finding tells: the least of them in the order of
// text, so that it does not matter which came first.
func addObserver(to *[]string, name []byte) {
	if len(name) == 0 {
		return
	}
	i := 0
	for i < len(*to) && (*to)[i] < string(name) {
		i++
	}
	if i == maxObserversTold || i < len(*to) && (*to)[i] == string(name) {
		return
	}
	*to = slices.Insert(*to, i, string(name))
	*to = (*to)[:min(len(*to), maxObserversTold)]
}

// maxObserversTold is how many exporters and observers a finding names.
const maxObserversTold = 16

// raise adds what contacts say to a finding; the newest telling counts, and no finding becomes
// less severe. n is how many sessions it adds.
func (d *book) raise(k key, t told, n int64, contacts ...*Contact) *finding {
	// When sessions began, not when they ended: that is not known yet when they settle.
	sp := span{t.Start, max(t.Start, t.Story.Until)}
	for i, c := range contacts {
		if i == 0 {
			sp = span{c.Start, c.Start}
		}
		sp.Start, sp.End = min(sp.Start, c.Start), max(sp.End, c.Start)
	}
	if u := t.Story.Until; u != 0 {
		sp.Start, sp.End = min(sp.Start, t.Start), max(sp.End, u)
	}
	d.m.raised.Inc()
	f := d.findings[k]
	if f == nil {
		d.makeRoom()
		f = &finding{Key: k, ID: k.id(), Span: sp, Told: t, Sessions: map[uint32]spans{}}
		d.findings[k] = f
		d.m.created.WithLabelValues(k.Type).Inc()
		before := k
		before.Day--
		if y := d.findings[before]; y != nil && sp.Start-y.Span.End <= hourMillis {
			f.Linked = true
		}
	}
	f.Closed = false
	f.Records++
	f.Span.Start, f.Span.End = min(f.Span.Start, sp.Start), max(f.Span.End, sp.End)
	t.Severity = max(t.Severity, f.Told.Severity)
	d.stamp(&t)
	f.addEdges(t.Story.Edges)
	for _, a := range t.Story.Exporters {
		f.told(a, "")
	}
	for _, n := range t.Story.Observers {
		addObserver(&f.Observers, []byte(d.names.Text(n)))
	}
	f.Told = t
	for _, c := range contacts {
		f.observersOf(&c.Session, d.names)
		f.sampled(c.Start, c.ID, func() []byte { return d.sampleOf(c) })
	}
	d.quieten(f, &sighting{Key: k, Span: sp, Told: t})
	d.touch(f, n, sp)
	return f
}

// more adds a contact to a finding whose telling stays as it is.
func (d *book) more(f *finding, n int64, c *Contact) {
	d.m.raised.Inc()
	sp := span{c.Start, c.Start} // it may go on: see raise
	f.Closed = false
	f.Records++
	f.Span.Start, f.Span.End = min(f.Span.Start, sp.Start), max(f.Span.End, sp.End)
	f.addEdges([]flow.Edge{edgeOf(c)})
	d.quieten(f, &sighting{Key: f.Key, Span: sp, Told: f.Told})
	d.touch(f, n, sp)
}

// sampleOf is a session as a sample shows it: what of it was certain when it settled. Bytes and
// ends are in the database.
func (d *book) sampleOf(c *Contact) []byte {
	n := d.names
	b, _ := json.Marshal(struct { // texts and numbers: it cannot fail
		Session    string    `json:"session"`
		Start      flow.Time `json:"time_start"`
		Client     string    `json:"client"`
		ClientPort uint16    `json:"client_port"`
		Server     string    `json:"server"`
		Service    string    `json:"service"`
		Fate       string    `json:"fate"`
		Identity   string    `json:"identity,omitempty"`
		Process    string    `json:"process,omitempty"`
		Reason     string    `json:"reason,omitempty"`
		Exception  string    `json:"exception,omitempty"`
	}{strconv.FormatUint(c.ID, 10), c.Start, c.Client.Addr.String(), c.Client.Port, c.Server.Addr.String(), string(c.AppendService(nil)), c.Fate.String(),
		n.Text(c.Client.Identity), n.Text(c.Client.Process), c.Verdict.Reason.String(), n.Text(c.Verdict.Exception)})
	return b
}

// toldOf begins what a finding tells from the contact that gives rise to it.
func (d *book) toldOf(c *Contact, severity flow.Severity, confidence uint8) told {
	n, v := d.names, &c.Verdict
	t := told{Severity: severity, Confidence: confidence, Outcome: v.Outcome, Observed: v.Observed, Expected: v.Expected, Reason: v.Reason,
		Open: c.Open, Service: string(c.AppendService(nil)), SrcSegment: n.Text(c.Client.Segment), DstSegment: n.Text(c.Server.Segment),
		SrcWorkload: n.Text(c.Client.Workload), DstWorkload: n.Text(c.Server.Workload), Identity: n.Text(c.Client.Identity),
		SrcProcess: n.Text(c.Client.Process), DstProcess: n.Text(c.Server.Process),
		Rule: n.Text(v.Rule), Exception: n.Text(v.Exception), PolicyVersion: n.Text(v.PolicyVersion), Start: c.Start, Record: c.ID}
	if d.policy != nil {
		t.Tier, t.SegmentOwner = d.policy.SegmentFacts(c.Start, c.Server.Segment)
		if v.Exception != flow.NoName {
			t.Facts, _ = d.policy.ExceptionFacts(c.Start, v.Exception)
		}
	}
	return t
}

// tell fills a finding with the story of its newest sighting.
func (f *finding) tell(out *flow.Finding) {
	s := f.Told.Story
	out.Title, out.Sentence, out.Next, out.Techniques = s.Title, s.Sentence, s.Next, s.Techniques
	out.Score, out.ScoreParts, out.Hops = float64(s.Score)/100, s.Parts, s.Hops
	if len(s.Parts) == 0 {
		points := 25 * int(f.Told.Severity)
		out.Score = float64(points) / 100
		out.ScoreParts = []flow.ScorePart{{Name: "type", Points: points, Says: "a finding of type " + f.Key.Type + " is told as " + f.Told.Severity.String() + " here"}}
	}
	if s.Ends != nil {
		out.Ends = s.Ends
	}
	if !s.Client.IsZero() {
		out.Client = s.Client.String()
	}
	if !s.Server.IsZero() {
		out.Server = s.Server.String()
	}
	if len(out.Ends) == 2 { // of a way those are the first and the last host, and the verdict is of its last step
		out.SrcSegment, out.DstSegment = out.Ends[0].Segment, out.Ends[1].Segment
	}
	if f.Key.Client.IsZero() && s.Client.IsZero() {
		out.Client = ""
	}
	if f.Key.Server.IsZero() && s.Server.IsZero() {
		out.Server = ""
	}
	if len(out.Ends) == 0 && out.Client != "" {
		out.Ends = []flow.End{{Address: out.Client, Workload: f.Told.SrcWorkload, Segment: f.Told.SrcSegment}}
	}
	out.Edges, out.EdgesTotal = []flow.Edge{}, f.EdgesTotal
	size := 0
	for _, e := range f.Edges {
		if size += 70 + len(e.Source) + len(e.Destination); size > maxEdgeBytes || len(out.Edges) == flow.MaxEdges {
			break
		}
		out.Edges = append(out.Edges, e)
	}
}

// query is the SQL that finds the sessions behind a finding, and those beyond its samples.
func query(out *flow.Finding, s *story) string {
	quote := func(b []byte, s string) []byte {
		b = append(b, '\'')
		b = append(b, s...) // addresses and times only
		return append(b, '\'')
	}
	table := "sessions"
	if s != nil && s.Flows {
		table = "flows"
	}
	b := []byte("SELECT * FROM " + table + " WHERE time_start >= ")
	b = quote(b, (out.FirstSeen - minuteMillis).String())
	b = append(b, " AND time_start <= "...)
	b = quote(b, (out.LastSeen + minuteMillis).String())
	ends := map[flow.Edge]bool{}
	var list []flow.Edge
	for _, e := range out.Edges {
		if e.Port, e.Protocol = 0, ""; !ends[e] && len(list) < maxQueryPairs {
			ends[e] = true
			list = append(list, e)
		}
	}
	slices.SortFunc(list, func(x, y flow.Edge) int {
		return cmp.Or(cmp.Compare(x.Source, y.Source), cmp.Compare(x.Destination, y.Destination))
	})
	switch {
	case out.Type == flow.FindingBlocked: // edges are but some of them
		b = append(quote(append(b, " AND client = toIPv6("...), out.Client), ") AND (observed = 'deny'"...)
		if out.Server != "" { // what got through
			b = append(quote(append(b, " OR server = toIPv6("...), out.Server), ')')
		}
		b = append(b, ')')
	case out.Type == flow.FindingFlood:
		b = append(quote(append(b, " AND client = toIPv6("...), out.Client), ')')
	case s != nil && s.Where != "":
		b = append(append(append(b, " AND ("...), s.Where...), ')')
	case len(list) > 0:
		b = append(b, " AND (client, server) IN ("...)
		for i, e := range list {
			if i > 0 {
				b = append(b, ", "...)
			}
			b = append(quote(append(b, "(toIPv6("...), e.Source), "), toIPv6("...)
			b = append(quote(b, e.Destination), "))"...)
		}
		b = append(b, ')')
	case out.Client != "":
		b = append(quote(append(b, " AND client = toIPv6("...), out.Client), ')')
	}
	return string(append(b, " ORDER BY time_start"...))
}

// sqlText is a name as SQL writes it: names may hold what hosts on the network chose to say.
func sqlText(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(s) + "'"
}

// sqlAddr is an address as SQL writes it.
func sqlAddr(a flow.Addr) string { return "toIPv6('" + a.String() + "')" }

// maxQueryPairs bounds the pairs that a query names.
const maxQueryPairs = 20

// times says a number of something in words.
func times(n int, one, many string) string {
	if n == 1 {
		return "one " + one
	}
	return strconv.Itoa(n) + " " + many
}
