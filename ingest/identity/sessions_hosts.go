package identity

import (
	"cmp"
	"slices"
	"strings"

	"github.com/postern/postern/flow"
)

// maxKnownHosts bounds what is known of where hosts are.
const maxKnownHosts = 1 << 17

// knownHosts is at which addresses hosts and devices are, as other sources say it. A host is
// found by its name or its MAC address, in any case. A name with a domain is found without it
// where no other domain has one of that name, and a name that was told without a domain is
// that of any.
type knownHosts struct {
	facts   map[hostKey]flow.Fact
	byName  map[string]map[hostKey]bool
	byLabel map[string]map[hostKey]bool // of names with a domain
}

// hostKey is what a fact is about.
type hostKey struct {
	source string
	factIdentity
}

func newKnownHosts() *knownHosts {
	return &knownHosts{facts: map[hostKey]flow.Fact{}, byName: map[string]map[hostKey]bool{}, byLabel: map[string]map[hostKey]bool{}}
}

// hostFact is what is kept of a fact.
func hostFact(f *flow.Fact) flow.Fact {
	return flow.Fact{Source: f.Source, Addr: f.Addr, Since: f.Since, Until: f.Until, SinceSlack: f.SinceSlack, UntilSlack: f.UntilSlack,
		Session: f.Session, Workload: strings.ToLower(f.Workload), Device: strings.ToLower(f.Device)}
}

func hostNames(f *flow.Fact) []string {
	out := make([]string, 0, 2)
	for _, name := range [...]string{f.Workload, f.Device} {
		if name != "" && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// learn takes in a fact, notes the sessions that it bears on, and says whether it was news.
func (h *knownHosts) learn(f *flow.Fact, met *sessionMetrics, st *sessionState, dirty dirtySessions) bool {
	key := hostKey{f.Source, identityOf(f)}
	before, known := h.facts[key]
	switch {
	case known && before.Until == f.Until && before.UntilSlack == f.UntilSlack && before.SinceSlack == f.SinceSlack && before.Workload == f.Workload && before.Device == f.Device:
		return false
	case !known && len(h.facts) >= maxKnownHosts:
		met.hostsDropped.Inc()
		return false
	}
	names := hostNames(f)
	if known {
		names = append(names, hostNames(&before)...)
		h.remove(&before)
	}
	h.put(f)
	for _, name := range names {
		st.on(name, func(g *sessionGroup) { st.spread(g, dirty) })
	}
	return true
}

func (h *knownHosts) put(f *flow.Fact) {
	key := hostKey{f.Source, identityOf(f)}
	h.facts[key] = *f
	add := func(in map[string]map[hostKey]bool, name string) {
		if in[name] == nil {
			in[name] = map[hostKey]bool{}
		}
		in[name][key] = true
	}
	for _, name := range hostNames(f) {
		add(h.byName, name)
		if l := flow.HostLabel(name); l != name {
			add(h.byLabel, l)
		}
	}
}

func (h *knownHosts) remove(f *flow.Fact) {
	key := hostKey{f.Source, identityOf(f)}
	delete(h.facts, key)
	del := func(in map[string]map[hostKey]bool, name string) {
		delete(in[name], key)
		if len(in[name]) == 0 {
			delete(in, name)
		}
	}
	for _, name := range hostNames(f) {
		del(h.byName, name)
		if l := flow.HostLabel(name); l != name {
			del(h.byLabel, l)
		}
	}
}

// of finds where a host is or was.
func (h *knownHosts) of(name string) (out []flow.Fact) {
	if name == "" {
		return nil
	}
	add := func(keys map[hostKey]bool) {
		for key := range keys {
			out = append(out, h.facts[key])
		}
	}
	add(h.byName[name])
	if l := flow.HostLabel(name); l != name {
		add(h.byName[l])
	} else if full := h.fullName(name); full != "" {
		add(h.byName[full])
	}
	slices.SortFunc(out, func(a, b flow.Fact) int {
		return cmp.Or(compareFacts(a, b), strings.Compare(a.Source, b.Source))
	})
	return out
}

// fullName is the one name with a domain that begins so; empty if there are several.
func (h *knownHosts) fullName(l string) (full string) {
	for key := range h.byLabel[l] {
		f := h.facts[key]
		for _, name := range hostNames(&f) {
			if flow.HostLabel(name) != l || name == l {
				continue
			}
			if full != "" && full != name {
				return ""
			}
			full = name
		}
	}
	return full
}

// old are the facts that ended longer ago than sessions are remembered.
func (h *knownHosts) old(now flow.Time) (out []flow.Fact) {
	for _, f := range h.facts {
		if f.Until != 0 && f.Until.Add(rememberSessions) < now {
			out = append(out, f)
		}
	}
	return out
}

func (h *knownHosts) save() []flow.Fact {
	out := make([]flow.Fact, 0, len(h.facts))
	for _, f := range h.facts {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b flow.Fact) int {
		return cmp.Or(strings.Compare(a.Source, b.Source), compareFacts(a, b))
	})
	return out
}
