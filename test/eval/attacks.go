package main

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/postern/postern/flow"
)

const minute = hour / 60

// speeds of made-up attacks.
var speeds = []string{"minutes", "hours", "days"}

// How many of each are put into a run. Few enough that they do not meet in a thousand hosts,
// enough for a rate that says something.
const (
	chainsASpeed = 4
	scansAKind   = 2
	pivots       = 4
)

// plot makes up attacks in a company.
type plot struct {
	c     *company
	l     layout
	rng   *rand.Rand
	taken map[int32]bool
	out   []flow.Record
	list  []*attack
}

// madeUp makes the records and the truth of chains, scans and, where there are exceptions,
// pivots. The same seed gives the same attacks in every layout.
func madeUp(c *company, l layout, taken map[int32]bool, through []way) ([]flow.Record, []*attack) {
	p := &plot{c: c, l: l, rng: random(c.seed, streamAttacks, 0), taken: taken}
	for _, speed := range speeds {
		for k := range chainsASpeed {
			p.chain(speed, 3+k%3, k)
		}
	}
	for _, speed := range []string{"fast", "medium", "slow"} {
		for k := range scansAKind {
			p.scan(speed, k, k%2 == 1)
		}
	}
	for k, w := range through {
		p.pivot(w, k)
	}
	return p.out, p.list
}

// begin draws a time from which span is left.
func (p *plot) begin(span flow.Time) flow.Time {
	first := p.c.start + flow.Time(p.c.b.Learning)*24*hour
	room := flow.Time(p.c.b.Days-p.c.b.Learning)*24*hour - span - hour
	return first + flow.Time(p.rng.Int64N(int64(max(room, hour))))
}

func (p *plot) day(at flow.Time) int { return int((at - p.c.start) / (24 * hour)) }

// pick draws a host of the roles that nothing else has been done to. It keeps its address: an
// attacker follows a name, but labels are by address.
func (p *plot) pick(roles ...string) int32 {
	var all []int32
	for _, r := range roles {
		all = append(all, p.c.byRole[p.c.roleOf(r)]...)
	}
	var h int32
	for range 1000 {
		h = all[p.rng.IntN(len(all))]
		if !p.taken[h] && p.c.hosts[h].born <= max(0, p.c.b.Learning-2) && p.c.hosts[h].gone > p.c.b.Days && p.c.moved[h] == nil {
			break
		}
	}
	p.taken[h] = true
	return h
}

var servers = []string{"app-server", "web-server", "file-server", "database", "print-server", "mail-server"}

// step is a session of an attacker on one of the ways there are to a host, with the port mapper
// before it where that way has one. It lasts until end, if that is not 0.
func (p *plot) step(a *attack, from, to int32, at, end flow.Time) edge {
	h := &p.c.hosts[to]
	ways := []string{"smb", "rpc", "rdp", "winrm"}
	if h.linux {
		ways = []string{"ssh"}
	}
	s := p.c.b.Services[ways[p.rng.IntN(len(ways))]]
	v := p.talk(from, to, s.port, at)
	v.shape(p.rng, s.Bytes, s.Seconds)
	if end != 0 && !s.Dynamic {
		v.end = max(v.end, end)
	}
	p.tell(a, v, malicious)
	hop := edge{v.client, v.server, v.serverPort, v.proto}
	if s.Dynamic {
		w := p.talk(from, to, h.rpc[p.rng.IntN(3)], v.start+20)
		w.clientPort = v.clientPort + 1
		w.shape(p.rng, s.Then[:3], s.Then[3:])
		if end != 0 {
			w.end = max(w.end, end)
		}
		p.tell(a, w, malicious)
	}
	return hop
}

func (p *plot) talk(from, to int32, port uint16, at flow.Time) *conversation {
	return &conversation{client: flow.AddrFrom4(p.c.addr(from, p.day(at))), server: flow.AddrFrom4(p.c.addr(to, p.day(at))),
		clientPort: clientPort(p.rng, p.c.hosts[from].linux), serverPort: port, proto: flow.ProtoTCP, start: at, exporter: exporterOf(&p.c.hosts[from])}
}

func (p *plot) tell(a *attack, v *conversation, k class) {
	rs := v.records(p.l, nil)
	for i := range rs {
		rs[i].Received = rs[i].End + 1000
		rs[i].ID = 1<<63 | uint64(len(p.out)+i)
	}
	p.out = append(p.out, rs...)
	e := edge{v.client, v.server, v.serverPort, v.proto}
	a.truth[e] = max(a.truth[e], k)
	a.alias[edge{v.server, v.client, v.clientPort, v.proto}] = e
}

func newAttack(kind, speed string, k int) *attack {
	return &attack{name: fmt.Sprintf("%s of %s %d", kind, speed, k+1), kind: kind, speed: speed,
		truth: map[edge]class{}, alias: map[edge]edge{}}
}

// chain goes on from host to host. Half of them keep the session to a host open while they go
// on from there, the others come back by a way that is none of the network's: an implant that
// calls home.
func (p *plot) chain(speed string, hops, k int) {
	a := newAttack("chain", speed, k)
	gap := map[string][2]flow.Time{"minutes": {minute, 15 * minute}, "hours": {40 * minute, 4 * hour}, "days": {9 * hour, 26 * hour}}[speed]
	at := p.begin(flow.Time(hops) * gap[1])
	a.start = at
	from := p.pick("workstation", "developer")
	open := k%2 == 0
	for n := range hops {
		roles := servers
		switch {
		case n == hops-1:
			roles = []string{"database", "domain-controller", "file-server", "backup-server"}
		case p.rng.IntN(2) == 0:
			roles = []string{"workstation", "developer"}
		}
		to := p.pick(roles...)
		next := at + gap[0] + flow.Time(p.rng.Int64N(int64(gap[1]-gap[0])))
		end := flow.Time(0)
		if open {
			end = min(next+10*minute, at+longest)
		}
		a.hops = append(a.hops, p.step(a, from, to, at, end))
		from, at = to, next
	}
	p.list = append(p.list, a)
}

// scan asks many hosts for one service, or few hosts for many. Half of the addresses are of
// nobody, and of the hosts most refuse or do not answer.
func (p *plot) scan(speed string, k int, vertical bool) {
	kind := "scan"
	if vertical {
		kind = "port scan"
	}
	a := newAttack(kind, speed, k)
	a.kind = "scan"
	n, gap := 60, 2*flow.Time(1000)
	switch speed {
	case "medium":
		n, gap = 40, 3*minute
	case "slow":
		n, gap = 20, 3*hour // "a new peer each few hours"
	}
	at := p.begin(flow.Time(n) * gap * 5 / 4)
	a.start = at
	from := p.pick("workstation", "developer", "app-server")
	a.source = flow.AddrFrom4(p.c.addr(from, p.day(at)))
	port := []uint16{445, 3389, 22, 135, 5985}[p.rng.IntN(5)]
	victim := p.pick(servers...)
	ports := p.rng.Perm(10000)
	all := slices.Concat(p.c.byRole[p.c.roleOf("workstation")], p.c.byRole[p.c.roleOf("app-server")])
	for i := range n {
		to := victim
		if vertical {
			port = uint16(ports[i]) + 1
		} else {
			to = all[p.rng.IntN(len(all))]
		}
		v := p.talk(from, to, port, at)
		v.client = a.source
		switch u := p.rng.Float64(); {
		case !vertical && u < 0.45:
			v.server = flow.AddrFrom4(p.c.nets[p.rng.IntN(len(p.c.nets))].base | uint32(1+p.rng.IntN(253)))
			v.dead = true
		case u < 0.6:
			v.dead = true
		case u < 0.85 || vertical && u < 0.95:
			v.refused = true
		}
		v.shape(p.rng, []float64{300, 200, 0.3}, []float64{0.2, 0.5})
		if v.server != v.client {
			p.tell(a, v, malicious)
		}
		at += gap*3/4 + flow.Time(p.rng.Int64N(int64(gap)/2))
	}
	p.list = append(p.list, a)
}

// way is one that an exception opens: from whom, to whom, on which port.
type way struct {
	from, to int32
	port     uint16
}

// pivot comes in through an exception and goes on to where that does not reach.
func (p *plot) pivot(w way, k int) {
	speed := speeds[k%2] // minutes, hours
	a := newAttack("pivot", speed, k)
	gap := map[string]flow.Time{"minutes": 8 * minute, "hours": 50 * minute}[speed]
	at := p.begin(4 * gap)
	a.start = at
	s := p.c.b.Services["rdp"]
	v := p.talk(w.from, w.to, w.port, at)
	v.shape(p.rng, s.Bytes, s.Seconds)
	v.end = max(v.end, at+gap)
	p.tell(a, v, malicious)
	a.hops = append(a.hops, edge{v.client, v.server, v.serverPort, v.proto})
	from := w.to
	for range 2 {
		at += gap
		to := p.pick(servers...)
		a.hops = append(a.hops, p.step(a, from, to, at, at+gap))
		from = to
	}
	p.list = append(p.list, a)
}

// merged puts records of attacks into the order in which they are told.
func merged(lists ...[]flow.Record) []flow.Record {
	out := slices.Concat(lists...)
	slices.SortStableFunc(out, func(a, b flow.Record) int { return cmp.Compare(a.Received, b.Received) })
	return out
}
