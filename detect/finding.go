package detect

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"

	"github.com/postern/postern/flow"
)

const (
	maxSamples = 20
	// maxSampleBytes bounds the samples of one message, so that with 100 edges of
	// IPv6 addresses (13 kB) it stays below 20 kB.
	maxSampleBytes = 5 << 10
	// maxEdgeBytes bounds the edges of one message.
	maxEdgeBytes = 12 << 10
)

// finding is a finding's state: aggregates that no order of adding can change.
type finding struct {
	Key      key              `json:"key"`
	ID       string           `json:"id"`
	Records  uint64           `json:"records"` // records added
	Count    int64            `json:"count"`   // sessions
	Span     span             `json:"span"`
	Told     told             `json:"told"`
	Linked   bool             `json:"linked,omitempty"` // goes on with the finding of the day before
	Closed   bool             `json:"closed,omitempty"`
	Sessions map[uint32]spans `json:"sessions,omitempty"`
	// LowPorts and HighPorts are the ports seen at the lower and the higher address
	// of an open pair, ascending; at most 65,536 each.
	LowPorts  []uint16 `json:"lowPorts,omitempty"`
	HighPorts []uint16 `json:"highPorts,omitempty"`
	Samples   []sample `json:"samples,omitempty"`

	// What came of its sessions; see [Detector.Settle]. Refused are the spans that were
	// stopped, by client's port, Stopped is how many sessions they cover, Turned how many at
	// most while that was news. Firm: somebody saw one get through.
	Refused map[uint32]spans `json:"refused,omitempty"`
	Stopped int64            `json:"stopped,omitempty"`
	Turned  uint64           `json:"turned,omitempty"`
	Firm    bool             `json:"firm,omitempty"`

	// Who told of its sightings, ascending; and, of a finding about behaviour, the edges that
	// they spoke of.
	Exporters  []string    `json:"exporters,omitempty"`
	Observers  []string    `json:"observers,omitempty"`
	Edges      []flow.Edge `json:"edges,omitempty"`
	EdgesTotal int         `json:"edgesTotal,omitempty"`

	ToldRevision uint64    `json:"toldRevision,omitempty"`
	ToldAt       flow.Time `json:"toldAt,omitempty"`

	// Grouped: its source gave rise to too many of its type for it to be told by itself.
	Grouped bool `json:"grouped,omitempty"`

	// What suppressions do; see suppress.go. Suppressed are the records that came while one
	// held, Fresh is that there is something to tell beside them. Quiet is which one held, and
	// HeldAt when a change was held back, both since a change was told.
	Suppressed uint64    `json:"suppressed,omitempty"`
	Fresh      bool      `json:"fresh,omitempty"`
	Quiet      lull      `json:"quiet,omitzero"`
	HeldAt     flow.Time `json:"heldAt,omitempty"`

	waits bool // among those that wait to be told again; see wake.go

	// What this segment added so far.
	Touched bool  `json:"touched,omitempty"`
	Grown   int64 `json:"grown,omitempty"`
	Added   span  `json:"added,omitzero"`
}

type sample struct {
	Start  flow.Time       `json:"start"`
	Record uint64          `json:"record"`
	JSON   json.RawMessage `json:"json"`
}

func (s *sample) compare(o *sample) int {
	return cmp.Or(cmp.Compare(s.Start, o.Start), cmp.Compare(s.Record, o.Record))
}

// revision rises with everything that is added and depends on nothing else.
func (f *finding) revision() uint64 {
	if f.Linked {
		return f.Records + f.Turned + 1
	}
	return f.Records + f.Turned
}

// remembered is how many spans the finding holds, of its sessions and of what was stopped.
func (f *finding) remembered() (n int) {
	for _, held := range [...]map[uint32]spans{f.Sessions, f.Refused} {
		for _, s := range held {
			n += len(s)
		}
	}
	return n
}

// wantsSample says whether a record would be among the samples: the earliest few.
func (f *finding) wantsSample(t *told) bool {
	n := len(f.Samples)
	return n < maxSamples || (&sample{Start: t.Start, Record: t.Record}).compare(&f.Samples[n-1]) < 0
}

// sampled adds a session to the samples, if it is none of them and there is room for it.
func (f *finding) sampled(start flow.Time, session uint64, text func() []byte) {
	s := sample{Start: start, Record: session}
	if at, known := slices.BinarySearchFunc(f.Samples, s, func(a, b sample) int { return a.compare(&b) }); !known && at < maxSamples {
		s.JSON = text()
		f.addSample(s)
	}
}

func (f *finding) addSample(s sample) {
	i, _ := slices.BinarySearchFunc(f.Samples, s, func(a, b sample) int { return a.compare(&b) })
	f.Samples = slices.Insert(f.Samples, i, s)
	if len(f.Samples) > maxSamples {
		f.Samples = f.Samples[:maxSamples]
	}
}

func addPort(ports []uint16, p uint16) []uint16 {
	i, ok := slices.BinarySearch(ports, p)
	if ok {
		return ports
	}
	return slices.Insert(ports, i, p)
}

// render makes the finding that is told and stored. It is a copy of its own.
func (f *finding) render() *flow.Finding {
	f = f.settled()
	t := &f.Told
	out := &flow.Finding{
		ID: f.ID, SchemaVersion: flow.FindingSchema, Revision: f.revision(), Type: f.Key.Type,
		Severity: t.Severity, Confidence: float64(t.Confidence) / 100,
		FirstSeen: f.Span.Start, LastSeen: f.Span.End, Count: f.Count,
		Client: f.Key.Client.String(), Server: f.Key.Server.String(), Orientation: "known",
		Service: t.Service, SrcSegment: t.SrcSegment, DstSegment: t.DstSegment,
		Observed: t.Observed.String(), Expected: t.Expected.String(), Reason: t.Reason.String(), Outcome: t.Outcome.String(),
		Failed: t.Failed.Texts(), Missing: t.Missing.Texts(),
		Rule: t.Rule, PolicyVersion: t.PolicyVersion, PolicyCommit: t.PolicyCommit, PolicySince: t.PolicySince,
		Techniques: techniques(&f.Key, t), Edges: []flow.Edge{}, Suppressed: int64(f.Suppressed),
		Detail: flow.Detail{Subject: f.Key.subject(), Exporters: slices.Clone(f.Exporters), Observers: slices.Clone(f.Observers), Ends: t.ends()},
	}
	if t.Open {
		out.Orientation = "open"
	}
	if t.Exception != "" {
		out.Exception, out.Ticket, out.Owner = t.Exception, t.Facts.Ticket, t.Facts.Owner
		out.Requester, out.Approver = t.Facts.Requester, t.Facts.Approver
	}
	if out.Owner == "" {
		out.Owner = t.SegmentOwner
	}
	if f.Linked {
		before := f.Key
		before.Day--
		out.Continues = before.id()
	}
	if t.Story != nil {
		f.tell(out)
	} else {
		out.Title, out.Sentence, out.Next = f.title(), f.sentence(), f.next()
		out.Score, out.ScoreParts = scored(t, f.Key.Type)
		f.edges(out)
	}
	out.Sentence += f.suppressedText()
	out.Query = query(out, t.Story)
	size := 0
	for _, s := range f.Samples {
		if size += len(s.JSON); size > maxSampleBytes {
			break
		}
		out.Samples = append(out.Samples, s.JSON)
	}
	fit(out)
	return out
}

// maxMessage is the most bytes a finding may have in JSON (SEMANTICS, "Findings").
const maxMessage = 20_000

// fit takes samples and then edges away, and at last the ends of long names, until a finding
// fits into a message. Only names at their full length, full of what JSON escapes sixfold,
// make that needed.
func fit(out *flow.Finding) {
	size := 1500 + len(out.Title) + len(out.Sentence) + len(out.Next) + 150*len(out.Edges) + 2*len(out.Approver) + 2*len(out.Query) + 200*len(out.ScoreParts)
	for _, s := range []string{out.SrcSegment, out.DstSegment, out.Rule, out.Exception, out.Ticket, out.Owner, out.Requester, out.Approver, out.PolicyVersion,
		out.PolicyCommit, out.Subject} {
		size += 6 * len(s)
	}
	eachEnd(out, func(e *flow.End) {
		size += 300
		for _, s := range namesOfEnd(e) {
			size += 6 * len(*s)
		}
	})
	for _, list := range [][]string{out.Exporters, out.Observers} {
		for _, s := range list {
			size += 3 + 6*len(s)
		}
	}
	for _, s := range out.Samples {
		size += len(s)
	}
	most := maxWord
	for size > maxMessage {
		b, err := json.Marshal(out)
		if err != nil || len(b) <= maxMessage {
			return
		}
		switch {
		case len(out.Samples) > 0:
			out.Samples = out.Samples[:len(out.Samples)-1]
		case len(out.Edges) > 1:
			out.Edges = out.Edges[:len(out.Edges)/2]
		case most > 0:
			out.Ends, out.Hops = slices.Clone(out.Ends), slices.Clone(out.Hops)
			eachEnd(out, func(e *flow.End) {
				for _, s := range namesOfEnd(e) {
					if len(*s) > most {
						*s = strings.ToValidUTF8((*s)[:most], "") + "…"
					}
				}
			})
			most /= 2
		default:
			return
		}
	}
}

// eachEnd calls do with every end that a finding tells of.
func eachEnd(out *flow.Finding, do func(*flow.End)) {
	for i := range out.Ends {
		do(&out.Ends[i])
	}
	for i := range out.Hops {
		do(&out.Hops[i].Client)
		do(&out.Hops[i].Server)
	}
}

// namesOfEnd are the texts of an end that others chose.
func namesOfEnd(e *flow.End) [6]*string {
	return [...]*string{&e.Workload, &e.Segment, &e.Host, &e.Identity, &e.IdentityFrom, &e.Process}
}

// edges lists what the finding speaks of: one edge where client and server are
// known; of an open pair both readings of every conversation, since either end
// may have been the server.
func (f *finding) edges(out *flow.Finding) {
	proto := string(flow.AppendProto(nil, f.Key.Proto))
	if len(f.LowPorts)+len(f.HighPorts) == 0 {
		port := f.Key.Port
		if f.Key.Proto == flow.ProtoICMP || f.Key.Proto == flow.ProtoICMPv6 {
			port = 0
		}
		out.Edges = append(out.Edges, flow.Edge{Source: out.Client, Destination: out.Server, Port: port, Protocol: proto})
		out.EdgesTotal = 1
		return
	}
	size := 0
	add := func(src, dst string, ports []uint16, room int) {
		for _, p := range ports {
			if size += 70 + len(src) + len(dst); room == 0 || size > maxEdgeBytes {
				return
			}
			out.Edges = append(out.Edges, flow.Edge{Source: src, Destination: dst, Port: p, Protocol: proto})
			room--
		}
	}
	// Half the room for each reading, the rest for whichever has more.
	low := min(len(f.HighPorts), max(flow.MaxEdges/2, flow.MaxEdges-len(f.LowPorts)))
	add(out.Client, out.Server, f.HighPorts, low)
	add(out.Server, out.Client, f.LowPorts, flow.MaxEdges-low)
	out.EdgesTotal = len(f.HighPorts) + len(f.LowPorts)
}
