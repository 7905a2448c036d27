package siem

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/postern/postern/flow"
)

// Encoding is a form in which a finding is told to a system of somebody else's making.
type Encoding struct {
	Name string // as a configuration says it
	Doc  string
	// ContentType is the media type of what Encode gives.
	ContentType string
	// Encode gives one revision of a finding, without a line feed at the end. The same finding
	// always gives the same bytes, also when it went through its own JSON before. JSON is shorter
	// than [MaxMessage], a line of CEF than [MaxCEF]; what does not fit is left out as
	// [MarshalFinding] says. The finding is not changed. It fails only where the id and what else
	// must stay whole fill a message by themselves.
	Encode func(*flow.Finding) ([]byte, error)
}

// Encodings are those there are; docs/encodings.md says what stands where.
var Encodings = []Encoding{
	{"json", "the finding as it is, by docs/schema/finding.schema.json", "application/json", encodeJSON},
	{"ocsf", "Open Cybersecurity Schema Framework " + ocsfVersion, "application/json", encodeOCSF},
	{"ecs", "Elastic Common Schema " + ecsVersion, "application/json", encodeECS},
	{"cef", "Common Event Format, version 0, one line", "text/plain; charset=utf-8", encodeCEF},
}

// LookupEncoding gives the encoding of that name.
func LookupEncoding(name string) (Encoding, error) {
	var names []string
	for _, e := range Encodings {
		if e.Name == name {
			return e, nil
		}
		names = append(names, e.Name)
	}
	return Encoding{}, fmt.Errorf("%q is no encoding; write one of %s", name, strings.Join(names, ", "))
}

// asTold is a finding as whoever decodes its JSON has it: a copy of its own, in which what is no
// UTF-8 has been replaced.
func asTold(f *flow.Finding) (*flow.Finding, error) {
	b, err := json.Marshal(f)
	if err != nil {
		return nil, fmt.Errorf("finding %q as JSON: %w", f.ID, err)
	}
	m := new(flow.Finding)
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("finding %q from its JSON: %w", f.ID, err)
	}
	m.EdgesTotal = max(m.EdgesTotal, len(m.Edges))
	m.Edges = m.Edges[:min(len(m.Edges), flow.MaxEdges)]
	return m, nil
}

// marshal is json.Marshal without a control character in what comes of it.
func marshal(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	return flow.EscapeDEL(b), err
}

// fitted gives what form makes of a finding, in less than most bytes.
func fitted(f *flow.Finding, most int, form func(*flow.Finding) ([]byte, error)) ([]byte, error) {
	m, err := asTold(f)
	if err != nil {
		return nil, err
	}
	return fit(m, most, form, shorten)
}

// fit takes from m what it can do without until form makes less than most bytes of it; cut
// shortens its texts.
func fit(m *flow.Finding, most int, form func(*flow.Finding) ([]byte, error), cut func(m *flow.Finding, n int)) ([]byte, error) {
	longest := 1024
	for {
		b, err := form(m)
		if err != nil {
			return nil, fmt.Errorf("finding %q: %w", m.ID, err)
		}
		if len(b) < most {
			return b, nil
		}
		switch {
		case len(m.Samples) > 0:
			m.Samples = m.Samples[:len(m.Samples)-1]
		case len(m.Edges) > 10:
			m.Edges = m.Edges[:len(m.Edges)*9/10]
		case longest >= 16:
			cut(m, longest)
			longest /= 2
		case len(m.Edges) > 0:
			m.Edges = m.Edges[:len(m.Edges)-1]
		case len(m.Hops)+len(m.Ends)+len(m.ScoreParts)+len(m.Exporters)+len(m.Observers)+len(m.Techniques)+len(m.Failed)+len(m.Missing) > 0:
			m.Hops, m.Ends, m.ScoreParts, m.Exporters, m.Observers, m.Techniques, m.Failed, m.Missing = nil, nil, nil, nil, nil, nil, nil, nil
		default:
			return nil, fmt.Errorf("finding %q does not fit into %d bytes; its id and its fixed words must be shorter", m.ID, most)
		}
	}
}

// shorten cuts every text that a network, a ticket system or a person chose to n bytes and an
// ellipsis. SQL that was cut says something else: a query that is longer is left out.
func shorten(m *flow.Finding, n int) {
	cutFinding(m, n)
	m.PolicyCommit, m.SuppressedBy, m.Subject = cutText(m.PolicyCommit, n), cutText(m.SuppressedBy, n), cutText(m.Subject, n)
	if len(m.Query) > 4*n {
		m.Query = ""
	}
	for i := range m.Ends {
		shortenEnd(&m.Ends[i], n)
	}
	for i := range m.Hops {
		h := &m.Hops[i]
		shortenEnd(&h.Client, n)
		shortenEnd(&h.Server, n)
		h.Service, h.Exception, h.Session = cutText(h.Service, n), cutText(h.Exception, n), cutText(h.Session, n)
	}
	for i := range m.ScoreParts {
		m.ScoreParts[i].Name, m.ScoreParts[i].Says = cutText(m.ScoreParts[i].Name, n), cutText(m.ScoreParts[i].Says, n)
	}
	for _, list := range [][]string{m.Exporters, m.Observers, m.Techniques, m.Failed, m.Missing} {
		for i := range list {
			list[i] = cutText(list[i], n)
		}
	}
}

func shortenEnd(e *flow.End, n int) {
	for _, s := range []*string{&e.Address, &e.Translated, &e.Workload, &e.Segment, &e.Host, &e.Identity, &e.IdentityFrom, &e.Process} {
		*s = cutText(*s, n)
	}
}

// object is a JSON object on its way out; encoding/json sorts its members.
type object map[string]any

// filled is o without the members that say nothing: empty texts, lists and objects.
func filled(o object) object {
	for k, v := range o {
		empty := false
		switch v := v.(type) {
		case nil:
			empty = true
		case string:
			empty = v == ""
		case []string:
			empty = len(v) == 0
		case []object:
			empty = len(v) == 0
		case object:
			empty = len(v) == 0
		}
		if empty {
			delete(o, k)
		}
	}
	return o
}

// otherwise lists the members of a finding, under their own names, for which an encoding has no
// place of its own: all but those in has. So a member that is new is told, too.
func otherwise(f *flow.Finding, has ...string) (object, error) {
	b, err := json.Marshal(f)
	if err != nil {
		return nil, err
	}
	members := map[string]json.RawMessage{}
	if err := json.Unmarshal(b, &members); err != nil {
		return nil, err
	}
	for _, k := range has {
		delete(members, k)
	}
	o := object{}
	for k, v := range members {
		switch string(v) {
		case `""`, `null`, `[]`:
		default:
			o[k] = v
		}
	}
	return o, nil
}

// told is what encodings share of a finding: who its two ends are, as far as that is known.
type told struct {
	Client, Server flow.End
	Proto          string
	Number         int // of the protocol; -1 where none is known
	Port           int // of the server; -1 where none is known
}

func tellEnds(f *flow.Finding) told {
	t := told{Client: flow.End{Address: f.Client, Segment: f.SrcSegment}, Server: flow.End{Address: f.Server, Segment: f.DstSegment}, Number: -1, Port: -1}
	for i, e := range f.Ends {
		switch {
		case e.Address == "":
		case e.Address == f.Client && i == 0:
			t.Client = e
		case e.Address == f.Server:
			t.Server = e
		}
	}
	proto, port, _ := strings.Cut(f.Service, "/")
	switch proto {
	case "icmp":
		t.Number = flow.ProtoICMP
	case "tcp":
		t.Number = flow.ProtoTCP
	case "udp":
		t.Number = flow.ProtoUDP
	case "icmpv6":
		t.Number = flow.ProtoICMPv6
	case "sctp":
		t.Number = flow.ProtoSCTP
	default:
		n, err := strconv.ParseUint(proto, 10, 8)
		if err != nil {
			return t
		}
		t.Number = int(n)
	}
	t.Proto = proto
	if proto == "tcp" || proto == "udp" || proto == "sctp" {
		if n, err := strconv.ParseUint(port, 10, 16); err == nil {
			t.Port = int(n)
		}
	}
	return t
}

// address says whether a text is an IP address that every schema takes: no zone, and of IPv4 no
// other form than the dotted one.
func address(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	return a, err == nil && a.Zone() == "" && !a.Is4In6()
}
