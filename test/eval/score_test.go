package main

import (
	"math"
	"testing"

	"github.com/postern/postern/flow"
)

func addr(s string) flow.Addr { return flow.MustParseAddr(s) }

func TestWilson(t *testing.T) {
	for _, c := range []struct {
		r         ratio
		low, high float64
	}{ // computed by hand from Wilson's formula with z = 1.96
		{ratio{0, 10}, 0, 0.2775}, {ratio{10, 10}, 0.7225, 1}, {ratio{5, 10}, 0.2366, 0.7634}, {ratio{95, 100}, 0.8882, 0.9785},
	} {
		if low, high := c.r.wilson(); math.Abs(low-c.low) > 1e-3 || math.Abs(high-c.high) > 1e-3 {
			t.Errorf("%v: %.4f–%.4f, want %.4f–%.4f", c.r, low, high, c.low, c.high)
		}
	}
}

func alert(id string, severity flow.Severity, typ string, total int, edges ...flow.Edge) (string, *told) {
	return id, &told{last: &flow.Finding{ID: id, Type: typ, Edges: edges, EdgesTotal: total, LastSeen: 2000}, highest: severity, first: 1500}
}

func TestCredit(t *testing.T) {
	const start, learned = flow.Time(1000), flow.Time(500)
	bad := func(n uint16) (flow.Edge, edge) {
		return flow.Edge{Source: "10.0.0.1", Destination: "10.0.0.2", Port: n, Protocol: "tcp"}, edge{addr("10.0.0.1"), addr("10.0.0.2"), n, flow.ProtoTCP}
	}
	good := flow.Edge{Source: "10.0.0.8", Destination: "10.0.0.9", Port: 445, Protocol: "tcp"}
	b1, e1 := bad(135)
	b2, e2 := bad(445)
	b3, e3 := bad(5985)
	back := flow.Edge{Source: "10.0.0.2", Destination: "10.0.0.1", Port: 50001, Protocol: "tcp"}
	beacon := flow.Edge{Source: "10.0.0.1", Destination: "203.0.113.9", Port: 80, Protocol: "tcp"}
	newAttack := func() []*attack {
		return []*attack{{name: "c", kind: "captured", start: start,
			truth:  map[edge]class{e1: malicious, e2: malicious, e3: malicious, {addr("10.0.0.1"), addr("203.0.113.9"), 80, flow.ProtoTCP}: neutral},
			alias:  map[edge]edge{{addr("10.0.0.2"), addr("10.0.0.1"), 50001, flow.ProtoTCP}: e1},
			hidden: map[edge]bool{e3: true}}}
	}
	for _, c := range []struct {
		name                string
		severity            flow.Severity
		typ                 string
		total               int
		edges               []flow.Edge
		logs                bool
		hit, n, right, asid int
		wrong               int
	}{
		{"an alert", flow.Medium, "x", 2, []flow.Edge{b1, b2}, false, 2, 2, 1, 0, 0},
		{"a finding that is no alert", flow.Low, "x", 2, []flow.Edge{b1, b2}, false, 0, 2, 0, 0, 0},
		{"a violation found by a rule", flow.High, flow.FindingDenied, 1, []flow.Edge{b1}, false, 0, 2, 0, 0, 0},
		{"half of it ordinary", flow.High, "x", 2, []flow.Edge{b1, good}, false, 1, 2, 1, 0, 0},
		{"more than half ordinary", flow.High, "x", 3, []flow.Edge{b1, good, good}, false, 0, 2, 1, 0, 0},
		{"neutral edges count for nothing", flow.High, "x", 3, []flow.Edge{b1, beacon, beacon}, false, 1, 2, 1, 0, 0},
		{"too many edges", flow.High, "x", 33, []flow.Edge{b1}, false, 0, 2, 1, 0, 0},
		{"the same conversation from its other end", flow.High, "x", 1, []flow.Edge{back}, false, 1, 2, 1, 0, 0},
		{"only neutral", flow.High, "x", 1, []flow.Edge{beacon}, false, 0, 2, 0, 1, 0},
		{"ordinary", flow.High, "x", 1, []flow.Edge{good}, false, 0, 2, 0, 0, 1},
		{"without edges", flow.High, "x", 0, nil, false, 0, 2, 0, 0, 1},
		{"what flows do not tell, with logs", flow.High, "x", 1, []flow.Edge{b3}, true, 1, 3, 1, 0, 0},
		{"what flows do not tell, without", flow.High, "x", 1, []flow.Edge{b3}, false, 0, 2, 1, 0, 0},
	} {
		id, f := alert("1", c.severity, c.typ, c.total, c.edges...)
		attacks := newAttack()
		if c.logs {
			attacks[0].hidden = nil
		}
		s := credit(map[string]*told{id: f}, attacks, learned, (*told).alert)
		if s.labelled != (ratio{c.hit, c.n}) || s.right != c.right || s.aside != c.asid || len(s.wrong) != c.wrong {
			t.Errorf("%s: labelled %v, right %d, aside %d, wrong %d", c.name, s.labelled, s.right, s.aside, len(s.wrong))
		}
	}
	// Told by two alerts, an edge is one edge.
	id1, f1 := alert("1", flow.High, "x", 1, b1)
	id2, f2 := alert("2", flow.High, "y", 1, b1)
	s := credit(map[string]*told{id1: f1, id2: f2}, newAttack(), learned, (*told).alert)
	if s.labelled.hit != 1 || s.precision() != (ratio{2, 2}) {
		t.Errorf("twice: %v, %v", s.labelled, s.precision())
	}
	// What was over before the attack began is about something else.
	f1.last.LastSeen = start - 1
	if s := credit(map[string]*told{id1: f1}, newAttack(), learned, (*told).alert); s.labelled.hit != 0 || len(s.wrong) != 1 {
		t.Errorf("before: %v, %d wrong", s.labelled, len(s.wrong))
	}
	// In the days of learning nothing counts.
	f1.last.LastSeen, f1.first = learned-1, learned-1
	if s := credit(map[string]*told{id1: f1}, newAttack(), learned, (*told).alert); s.alerts != 0 || s.learning != 1 {
		t.Errorf("learning: %d alerts", s.alerts)
	}
}

func TestCreditChain(t *testing.T) {
	hop := func(a, b string) edge { return edge{addr(a), addr(b), 445, flow.ProtoTCP} }
	hops := []edge{hop("10.0.0.1", "10.0.0.2"), hop("10.0.0.2", "10.0.0.3"), hop("10.0.0.3", "10.0.0.4"), hop("10.0.0.4", "10.0.0.5"), hop("10.0.0.5", "10.0.0.6")}
	attacks := func() []*attack {
		a := &attack{name: "chain", kind: "chain", speed: "hours", start: 1000, hops: hops, truth: map[edge]class{}}
		for _, e := range hops {
			a.truth[e] = malicious
		}
		return []*attack{a}
	}
	said := func(of ...int) map[string]*told {
		var edges []flow.Edge
		for _, k := range of {
			edges = append(edges, flow.Edge{Source: hops[k].src.String(), Destination: hops[k].dst.String(), Port: 445, Protocol: "tcp"})
		}
		id, f := alert("1", flow.High, "x", len(edges), edges...)
		return map[string]*told{id: f}
	}
	for _, c := range []struct {
		of          []int
		found, path int
	}{{nil, 0, 0}, {[]int{0}, 0, 0}, {[]int{0, 1}, 0, 1}, {[]int{0, 2, 4}, 1, 0}, {[]int{0, 1, 2}, 1, 1}} {
		s := credit(said(c.of...), attacks(), 0, (*told).alert)
		if s.chains.hit != c.found || s.paths.hit != c.path || s.chains.n != 1 {
			t.Errorf("hops %v: found %v, path %v", c.of, s.chains, s.paths)
		}
	}
}

func TestContradictingLabels(t *testing.T) {
	there := edge{addr("10.0.0.1"), addr("10.0.0.2"), 65077, flow.ProtoTCP}
	back := edge{addr("10.0.0.2"), addr("10.0.0.1"), 51737, flow.ProtoTCP}
	open := edge{addr("10.0.0.1"), addr("10.0.0.2"), 135, flow.ProtoTCP}
	c := &campaign{labels: map[edge]class{}, aliases: map[edge]edge{}}
	c.records[fromIPFIX] = []flow.Record{
		{Src: there.src, Dst: there.dst, SrcPort: 51737, DstPort: 65077, Proto: flow.ProtoTCP},
		{Src: open.src, Dst: open.dst, SrcPort: 50000, DstPort: 135, Proto: flow.ProtoTCP},
	}
	dropped := c.label([]labelRow{{edge: there, class: malicious}, {edge: back, class: benign}, {edge: open, class: malicious}, {edge: open, class: malicious}})
	if dropped != 2 || c.labels[there] != neutral || c.labels[back] != neutral || c.labels[open] != malicious {
		t.Errorf("%d dropped, %v", dropped, c.labels)
	}
	if c.aliases[edge{open.dst, open.src, 50000, flow.ProtoTCP}] != open {
		t.Errorf("aliases %v", c.aliases)
	}
}
