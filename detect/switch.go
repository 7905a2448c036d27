package detect

import (
	"slices"

	"github.com/postern/postern/flow"
)

// identities are as whom each host reached others: those may change on the way through it.
type identities struct {
	of   []int32 // by the host's place: that of its list, and one; 0: none
	list []asWhom
	free []int32
}

// asWhom is the identities of one host.
type asWhom struct {
	Since flow.Time
	Names [maxIdentities]flow.Name
	N     int32
	// Many: there were more. Then nothing is said of this host: people share it.
	Many bool
}

const maxIdentities = 12

// sure is from which certainty on an identity is one, in percent. What is ambiguous or
// disagreed on is not known at all and has none.
const sure = 50

func identityOf(e *flow.SessionEnd) flow.Name {
	if e.Identity == flow.OverflowName || e.IdentityCertain != 0 && e.IdentityCertain < sure {
		return flow.NoName
	}
	return e.Identity
}

func (e *hopEnd) identity() flow.Name {
	if e.Identity == flow.OverflowName || e.Certain != 0 && e.Certain < sure {
		return flow.NoName
	}
	return e.Identity
}

// switchedOn says whether somebody goes on as somebody else than who came in.
func switchedOn(in, on *hop) bool {
	a, z := in.Client.identity(), on.Client.identity()
	return a != flow.NoName && z != flow.NoName && a != z
}

// usual says whether a host is known to reach others as whom it does in a contact, or not known
// well enough to say.
func (k *identities) usual(b *Behaviour, v *visit) bool {
	id := identityOf(&v.Client)
	if id == flow.NoName || b.early(v.at) {
		return true
	}
	if int(v.client) >= len(k.of) || k.of[v.client] == 0 {
		return b.hosts.list[v.client].First > v.at-millis(b.bcfg.Learn)
	}
	s := &k.list[k.of[v.client]-1]
	if s.Many || b.hosts.list[v.client].First > v.at-millis(b.bcfg.Learn) {
		return true
	}
	return slices.Contains(s.Names[:s.N], id)
}

// learn notes as whom a host reaches others.
func (k *identities) learn(v *visit) {
	id := identityOf(&v.Client)
	if id == flow.NoName || v.bad {
		return
	}
	for int(v.client) >= len(k.of) {
		k.of = append(k.of, 0)
	}
	if k.of[v.client] == 0 {
		if n := len(k.free); n > 0 {
			k.of[v.client] = k.free[n-1] + 1
			k.free = k.free[:n-1]
		} else {
			k.list = append(k.list, asWhom{})
			k.of[v.client] = int32(len(k.list))
		}
		k.list[k.of[v.client]-1] = asWhom{Since: v.at}
	}
	s := &k.list[k.of[v.client]-1]
	if slices.Contains(s.Names[:s.N], id) {
		return
	}
	if s.N == maxIdentities {
		s.Many = true
		return
	}
	s.Names[s.N] = id
	s.N++
}

func (k *identities) forget(i int32) {
	if int(i) < len(k.of) && k.of[i] != 0 {
		k.list[k.of[i]-1] = asWhom{}
		k.free = append(k.free, k.of[i]-1)
		k.of[i] = 0
	}
}

func (k *identities) save(w *stateWriter) {
	of, list := make([]int32, len(k.of)), make([]asWhom, 0, len(k.list))
	for p, i := range k.of {
		if i != 0 {
			list = append(list, k.list[i-1])
			of[p] = int32(len(list))
		}
	}
	for len(of) > 0 && of[len(of)-1] == 0 {
		of = of[:len(of)-1]
	}
	saveAll(w, of)
	saveAll(w, list)
}

func (k *identities) load(r *stateReader, hosts int) {
	k.of, k.list = loadAll[int32](r), loadAll[asWhom](r)
	whole, n := len(k.of) <= hosts, int32(0)
	for _, i := range k.of {
		if i != 0 {
			n++
			whole = whole && i == n
		}
	}
	whole = whole && int(n) == len(k.list)
	for i := range k.list {
		whole = whole && k.list[i].N >= 0 && k.list[i].N <= maxIdentities
	}
	if r.err == nil && !whole {
		r.fail(errState)
	}
}

// switched tells of somebody who goes on from a host as somebody else than any of those who came
// in to it, as whom that host never reached others. told says that a chain or a pivot tells of
// this step already.
func (c *chains) switched(b *Behaviour, v *visit, h *hop, from *causes, told bool) bool {
	if from.n == 0 || !v.Class.administers() || c.known.usual(b, v) {
		return false
	}
	for _, i := range from.list[:from.n] {
		if !switchedOn(&c.hops[i], h) {
			return false
		}
	}
	if told {
		return true
	}
	in := &c.hops[from.best]
	severity := flow.Low
	if from.n == 1 || v.New {
		severity = flow.Medium
	}
	score := 40
	parts := []flow.ScorePart{{Name: "identity", Points: 40, Says: "on as somebody as whom this host never reached others"}}
	if from.n == 1 {
		score += 20
		parts = append(parts, flow.ScorePart{Name: "cause", Points: 20, Says: "nobody else came in"})
	}
	if v.New {
		score += 10
		parts = append(parts, flow.ScorePart{Name: "new", Points: 10, Says: "to where it never went before"})
	}
	h.Switched = true
	path := []*hop{in, h}
	n := b.names
	was, is := n.Text(in.Client.Identity), n.Text(h.Client.Identity)
	t := b.toldOf(v.Contact, severity, uint8(max(40, 80/from.n)))
	t.Story = c.story(b, v, path, "Somebody came in as "+word(was)+" and went on as "+word(is))
	t.Story.Sentence += " " + b.placeOf(&h.Client) + " never reached other hosts as " + word(is) + " before."
	t.Story.Next = "Ask " + word(was) + " whether they may use " + word(is) + ". If not, change the password of " + word(is) + " and look at how " + b.placeOf(&h.Client) + " came to know it."
	t.Story.Score, t.Story.Parts = min(100, score+int(h.Points)/2), parts
	c.tell(b, v, t, b.keyOf(flow.FindingSwitch, v.client, was+"|"+is, v.Start), path)
	return true
}
