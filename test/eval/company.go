package main

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/postern/postern/flow"
)

// company is a generated network: its hosts, their addresses over the days, and whom each of
// them deals with. It is made of a seed, a size and the behaviour alone.
type company struct {
	b     *behaviour
	seed  uint64
	start flow.Time
	hosts []host

	byRole [][]int32         // hosts of a role, in the order of their popularity
	bySite [][][]int32       // the same a role and site
	pools  [][]int32         // whom a habit goes to
	nets   []subnet          // of all hosts
	moved  map[int32][]int32 // addresses by day of the hosts whose address changes
	at     map[uint32]int32  // the host that holds an address on the first day; leases are not in it

	habits  [][]habitOf // by host
	changes []change    // of peers, in the order of days
}

type host struct {
	role   int
	site   int
	net    int
	addr   uint32
	born   int // day it joins, 0 from the beginning
	gone   int // day it is gone, days+1 never
	linux  bool
	rpc    [3]uint16 // its dynamic ports of DCE/RPC
	curve  float64   // by how much busier than the median it is
	office bool
}

// habitOf is a habit as one host has it.
type habitOf struct {
	habit int
	since int
	rate  float64
	peers []peer
}

// peer is who a host deals with: a host by its number, or something else.
type peer int32

// What else a peer can be, with a number of 24 bits.
const (
	peerInternet = iota + 1
	peerDead
	peerGroup
	peerBroadcast
	peerSubnet
)

func other(kind, n int) peer { return peer(-(kind<<24 | n&0xffffff)) }

func (p peer) host() bool { return p >= 0 }

func (p peer) split() (kind, n int) { return int(-p) >> 24, int(-p) & 0xffffff }

type subnet struct {
	base uint32 // its /24
	site int
	used int // addresses given out, from .10 on
}

type change struct {
	day  int
	host int32
	what int // place in habits of the host
	peer peer
	slot int
}

// The numbers that random streams are told apart by.
const (
	streamCompany = iota + 1
	streamTraffic
	streamAttacks
	streamCampaigns
)

func random(seed uint64, stream, part int) *rand.Rand {
	return rand.New(rand.NewPCG(seed, uint64(stream)<<32|uint64(part)))
}

// dataCentre is the site of the servers.
const dataCentre = 0

// newCompany generates a company of size hosts.
func newCompany(b *behaviour, seed uint64, size int) *company {
	c := &company{b: b, seed: seed, start: flow.TimeOf(b.Start), moved: map[int32][]int32{}, at: map[uint32]int32{}}
	rng := random(seed, streamCompany, size)
	counts := make([]int, len(b.roleNames))
	rest, workstations := size, 0
	for i, name := range b.roleNames {
		if name == "workstation" {
			workstations = i
			continue
		}
		counts[i] = b.Roles[name].count(size)
		rest -= counts[i]
	}
	counts[workstations] = max(rest, 10)
	sites := 1 + max(1, (size*3/4+b.Sites.Hosts/2)/b.Sites.Hosts)
	// Sites are /16 nets in no order, so that servers are now above and now below their clients.
	nets := rng.Perm(250)
	c.byRole = make([][]int32, len(counts))
	for r, n := range counts {
		for range n {
			c.add(rng, r, 0, sites)
		}
	}
	workdays := 0
	for day := 1; day < b.Days; day++ {
		if wd := b.Start.AddDate(0, 0, day).Weekday(); wd == time.Saturday || wd == time.Sunday {
			continue
		}
		workdays++
		for r, n := range counts {
			rate := b.Churn.Server
			if role := b.Roles[b.roleNames[r]]; role.Net == "office" {
				rate = b.Churn.Hire
			} else if role.Net == "device" {
				rate = b.Churn.Hire / 2
			}
			for range poisson(rng, rate*float64(n)) {
				c.add(rng, r, day, sites)
			}
		}
	}
	for i := range c.hosts {
		h := &c.hosts[i]
		name := b.roleNames[h.role]
		if counts[h.role] > 5 && name != "domain-controller" && rng.Float64() < b.Churn.Leave*float64(workdays) {
			h.gone = h.born + 1 + rng.IntN(b.Days)
		}
	}
	c.addresses(rng, nets, sites)
	c.pools = make([][]int32, len(b.Habits))
	c.bySite = make([][][]int32, len(c.byRole))
	for r := range c.byRole {
		c.bySite[r] = make([][]int32, sites)
		for _, i := range c.byRole[r] {
			c.bySite[r][c.hosts[i].site] = append(c.bySite[r][c.hosts[i].site], i)
		}
	}
	c.habitsOf(rng)
	return c
}

func (c *company) add(rng *rand.Rand, role, day, sites int) {
	r := c.b.Roles[c.b.roleNames[role]]
	h := host{role: role, born: day, gone: c.b.Days + 1, site: dataCentre, curve: math.Exp(0.3 * rng.NormFloat64())}
	if r.Net != "server" {
		h.site = 1 + rng.IntN(sites-1)
	}
	h.office = r.Net == "office"
	switch c.b.roleNames[role] {
	case "kubernetes-node", "ci-runner", "hypervisor", "proxy", "device", "printer":
		h.linux = true
	case "web-server", "app-server", "database":
		h.linux = rng.Float64() < 0.45
	case "developer":
		h.linux = rng.Float64() < 0.3
	}
	for i := range h.rpc {
		h.rpc[i] = 49664 + uint16(rng.IntN(60)) // Windows hands them out from 49664 on, services in the order of their start
	}
	if rng.Float64() < 0.1 {
		h.rpc[2] = 50000 + uint16(rng.IntN(15000)) // a service restarted long after the start
	}
	c.byRole[role] = append(c.byRole[role], int32(len(c.hosts)))
	c.hosts = append(c.hosts, h)
}

// addresses gives every host an address of its site's nets, and those on leases others in time.
func (c *company) addresses(rng *rand.Rand, sites []int, n int) {
	full := int(245 * (1 - c.b.Sites.Free))
	type key struct{ site, kind int }
	open := map[key]int{}
	third := make(map[key]int, n)
	for _, i := range rng.Perm(len(c.hosts)) {
		h := &c.hosts[i]
		k := key{h.site, map[string]int{"office": 1, "server": 100, "device": 180}[c.b.Roles[c.b.roleNames[h.role]].Net]}
		j, ok := open[k]
		if !ok || c.nets[j].used >= full {
			j = len(c.nets)
			c.nets = append(c.nets, subnet{base: 10<<24 | uint32(sites[h.site])<<16 | uint32(k.kind+third[k])<<8, site: h.site})
			third[k]++
			open[k] = j
		}
		h.net, h.addr = j, c.nets[j].base+10+uint32(c.nets[j].used)
		c.nets[j].used++
		c.at[h.addr] = int32(i)
	}
	// Leases: the free addresses of a site's office nets go round.
	free := make([][]uint32, n)
	leased := make([][]int32, n)
	for j := range c.nets {
		if s := &c.nets[j]; s.base>>8&0xff < 100 && s.site != dataCentre {
			for a := s.base + 10 + uint32(s.used); a < s.base+250; a++ {
				free[s.site] = append(free[s.site], a)
			}
		}
	}
	for i := range c.hosts {
		if c.b.Roles[c.b.roleNames[c.hosts[i].role]].DHCP {
			leased[c.hosts[i].site] = append(leased[c.hosts[i].site], int32(i))
			delete(c.at, c.hosts[i].addr)
			c.moved[int32(i)] = make([]int32, c.b.Days)
		}
	}
	for site := range leased {
		f := free[site]
		for _, i := range leased[site] {
			c.moved[i][0] = int32(c.hosts[i].addr)
		}
		for day := 1; day < c.b.Days; day++ {
			for _, i := range leased[site] {
				c.moved[i][day] = c.moved[i][day-1]
				if len(f) == 0 || rng.Float64() >= c.b.Churn.Lease {
					continue
				}
				k := rng.IntN(len(f))
				f[k], c.moved[i][day] = uint32(c.moved[i][day]), int32(f[k])
			}
		}
	}
}

// addr is a host's address on a day.
func (c *company) addr(i int32, day int) uint32 {
	if m := c.moved[i]; m != nil {
		return uint32(m[min(max(day, 0), len(m)-1)])
	}
	return c.hosts[i].addr
}

// there says whether a host is in the network on a day.
func (c *company) there(i int32, day int) bool {
	return c.hosts[i].born <= day && day < c.hosts[i].gone
}

// whose is the role of whoever holds an address, on some day.
func (c *company) whose() func(flow.Addr) string {
	of := map[flow.Addr]string{}
	for i := range c.hosts {
		name := c.b.roleNames[c.hosts[i].role]
		of[flow.AddrFrom4(c.hosts[i].addr)] = name
		for _, a := range c.moved[int32(i)] {
			of[flow.AddrFrom4(uint32(a))] = name
		}
	}
	return func(a flow.Addr) string {
		switch name := of[a]; {
		case name != "":
			return name
		case public(a):
			return "internet"
		}
		return "nobody"
	}
}

func (c *company) roleOf(name string) int { return slices.Index(c.b.roleNames, name) }

// habitsOf draws for every host which habits it has and with whom.
func (c *company) habitsOf(rng *rand.Rand) {
	c.habits = make([][]habitOf, len(c.hosts))
	for k, h := range c.b.Habits {
		for _, name := range h.To {
			switch name {
			case "everything":
				for i := range c.hosts {
					c.pools[k] = append(c.pools[k], int32(i))
				}
			default:
				if r := c.roleOf(name); r >= 0 {
					c.pools[k] = append(c.pools[k], c.byRole[r]...)
				}
			}
		}
	}
	for k, h := range c.b.Habits {
		for _, who := range h.Who {
			for _, i := range c.byRole[c.roleOf(who)] {
				if rng.Float64() >= h.Share {
					continue
				}
				of := habitOf{habit: k, since: c.hosts[i].born, rate: h.Rate * math.Exp(h.Spread*rng.NormFloat64()-h.Spread*h.Spread/2)}
				if c.b.Roles[who].Administrators && of.since == 0 && h.To[0] != "subnet" && rng.Float64() < c.b.Churn.NewAdministrator*float64(c.b.Days) && slices.Contains(administers, h.Name) {
					of.since = 1 + rng.IntN(c.b.Days-1) // begins to administer during the time that is looked at
				}
				if h.Own > 0 && !h.All {
					for range 1 + poisson(rng, h.Own-1) {
						if p, ok := c.draw(rng, k, i, true); ok {
							of.peers = append(of.peers, p)
						}
					}
				}
				c.habits[i] = append(c.habits[i], of)
			}
		}
	}
	for day := 1; day < c.b.Days; day++ {
		if wd := c.b.Start.AddDate(0, 0, day).Weekday(); wd == time.Saturday || wd == time.Sunday {
			continue
		}
		for i := range c.habits {
			for j := range c.habits[i] {
				of := &c.habits[i][j]
				for slot := range of.peers {
					if rng.Float64() >= c.b.Churn.Move {
						continue
					}
					if p, ok := c.draw(rng, of.habit, int32(i), true); ok {
						c.changes = append(c.changes, change{day: day, host: int32(i), what: j, slot: slot, peer: p})
					}
				}
			}
		}
	}
}

// administers are the habits that make an administrator.
var administers = []string{"administer servers", "scripts over many servers", "by the jump host", "administer workstations", "help people"}

// draw draws a peer for a habit of host i: by popularity where it is to be a standing one, else
// any.
func (c *company) draw(rng *rand.Rand, k int, i int32, standing bool) (peer, bool) {
	h := c.b.Habits[k]
	switch h.To[0] {
	case "internet":
		if standing || rng.Float64() < 0.7 {
			return other(peerInternet, int(3000*math.Pow(rng.Float64(), 3))), true // what everybody uses
		}
		return other(peerInternet, 3000+rng.IntN(200_000)), true
	case "dead":
		return other(peerDead, rng.IntN(len(c.nets))<<8|252+rng.IntN(3)), true
	case "multicast":
		return other(peerGroup, rng.IntN(2)), true
	case "broadcast":
		return other(peerBroadcast, c.hosts[i].net), true
	case "subnet":
		net := c.hosts[i].net
		if !h.Near && rng.Float64() < 0.6 {
			net = rng.IntN(len(c.nets))
		}
		return other(peerSubnet, net<<8|1+rng.IntN(254)), true
	}
	pool := c.pools[k]
	if h.Near && c.hosts[i].site != dataCentre {
		r := c.roleOf(h.To[rng.IntN(len(h.To))])
		pool = c.bySite[r][c.hosts[i].site]
	}
	if len(pool) == 0 {
		return 0, false
	}
	for range 8 {
		u := rng.Float64()
		if standing {
			u = math.Pow(u, 2.2) // a few are everybody's
		}
		if p := pool[int(u*float64(len(pool)))]; p != i && c.hosts[p].born <= c.hosts[i].born+(c.b.Days) {
			return peer(p), true
		}
	}
	return 0, false
}

// resolve gives the address of a peer of host i on a day, and whether something is there.
func (c *company) resolve(p peer, day int) (addr flow.Addr, h int32, there bool) {
	if p.host() {
		return flow.AddrFrom4(c.addr(int32(p), day)), int32(p), c.there(int32(p), day)
	}
	kind, n := p.split()
	switch kind {
	case peerInternet:
		return internet(n), -1, true
	case peerDead:
		return flow.AddrFrom4(c.nets[n>>8].base | uint32(n&0xff)), -1, false
	case peerGroup:
		return flow.AddrFrom4([2]uint32{224<<24 | 251, 239<<24 | 255<<16 | 255<<8 | 250}[n]), -1, true
	case peerBroadcast:
		return flow.AddrFrom4(c.nets[n].base | 255), -1, true
	}
	a := c.nets[n>>8].base | uint32(n&0xff)
	if h, ok := c.at[a]; ok && c.there(h, day) {
		return flow.AddrFrom4(a), h, true
	}
	return flow.AddrFrom4(a), -1, false
}

// internet is the n-th public address that somebody uses.
func internet(n int) flow.Addr {
	v := uint32(uint64(n+1) * 0x9e3779b97f4a7c15 >> 40)
	return flow.AddrFrom4([4]uint32{23, 52, 104, 185}[n&3]<<24 | v)
}

func poisson(rng *rand.Rand, mean float64) (n int) {
	if mean <= 0 {
		return 0
	}
	if mean > 50 {
		return max(0, int(math.Round(mean+math.Sqrt(mean)*rng.NormFloat64())))
	}
	for t := rng.ExpFloat64(); t < mean; t += rng.ExpFloat64() {
		n++
	}
	return n
}
