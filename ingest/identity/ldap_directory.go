package identity

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-ldap/ldap/v3"

	"github.com/postern/postern/flow"
)

// ldapDirectory gathers what one read of an LDAP server says, whatever its schema, and makes
// facts of it. Entries and members are nodes, known by their DNs; a membership is an edge
// from a member to a group.
type ldapDirectory struct {
	cfg     LDAPConfig
	domains *flow.Domains
	domain  string // the one that names are of; empty for none
	now     flow.Time

	entries  int
	nodes    map[string]int32 // by DN, as it was spelt and as [foldDN] has it
	nodeSeen int32
	subjects []ldapSubject
	bySubj   map[int32]int // node → index in subjects
	groups   []ldapGroup
	byGroup  map[int32]int // node → index in groups
	primary  map[string]int32
	edges    []membership
	bases    []*ldap.DN // service accounts lie below these
	unread   []string   // names of entries that could not be made sense of
	bad      partialError
}

// ldapKind is what a subject is.
type ldapKind uint8

const (
	ldapUser ldapKind = iota
	ldapService
	ldapComputer
)

type ldapSubject struct {
	node     int32
	dn       string
	kind     ldapKind
	disabled bool
	name     string   // canonical
	aliases  []string // other names it is known by elsewhere
	device   string   // a computer's name in the DNS
	primary  string   // which group it is in without being a member; a key of ldapDirectory.primary
}

type ldapGroup struct {
	node int32
	name string // empty if it cannot be used; whoever is in the group is in the groups that it is in all the same
	dn   string
}

type membership struct{ member, group int32 } // nodes

func newLDAPDirectory(cfg LDAPConfig, domains *flow.Domains, now flow.Time) *ldapDirectory {
	d := &ldapDirectory{
		cfg: cfg, domains: domains, domain: cfg.Domain, now: now,
		nodes: map[string]int32{}, bySubj: map[int32]int{}, byGroup: map[int32]int{}, primary: map[string]int32{},
	}
	for _, b := range cfg.ServiceAccounts.Bases {
		if dn, err := ldap.ParseDN(b); err == nil {
			d.bases = append(d.bases, dn)
		}
	}
	return d
}

// room counts an entry.
func (d *ldapDirectory) room() error {
	if d.entries++; d.entries > d.cfg.MaxEntries {
		return fmt.Errorf("the directory has more than maxEntries (%d) users, groups and computers; raise it, or narrow them by base or filter", d.cfg.MaxEntries)
	}
	return nil
}

// node is the number of a DN, a new one if need be.
func (d *ldapDirectory) node(dn string) int32 {
	if n, ok := d.nodes[dn]; ok {
		return n
	}
	folded := foldDN(dn)
	n, ok := d.nodes[folded]
	if !ok {
		n = d.nodeSeen
		d.nodeSeen++
		d.nodes[folded] = n
	}
	if dn != folded {
		d.nodes[dn] = n
	}
	return n
}

// addSubject takes a user or computer; the same entry twice counts once, as pages of a
// directory that changes may overlap.
func (d *ldapDirectory) addSubject(dn string, s ldapSubject) {
	s.node, s.dn = d.node(dn), dn
	if _, ok := d.bySubj[s.node]; ok {
		return
	}
	if s.kind == ldapUser && len(d.bases) > 0 {
		if parsed, err := ldap.ParseDN(dn); err == nil && slices.ContainsFunc(d.bases, func(b *ldap.DN) bool { return b.AncestorOfFold(parsed) }) {
			s.kind = ldapService
		}
	}
	d.bySubj[s.node] = len(d.subjects)
	d.subjects = append(d.subjects, s)
}

// markService makes a user a service account.
func (d *ldapDirectory) markService(dn string) {
	if i, ok := d.bySubj[d.node(dn)]; ok && d.subjects[i].kind == ldapUser {
		d.subjects[i].kind = ldapService
	}
}

// addGroup takes a group; ok is false for one that was seen before.
func (d *ldapDirectory) addGroup(dn, name string) (node int32, ok bool) {
	node = d.node(dn)
	if _, seen := d.byGroup[node]; seen {
		return node, false
	}
	d.byGroup[node] = len(d.groups)
	d.groups = append(d.groups, ldapGroup{node: node, name: name, dn: dn})
	return node, true
}

func (d *ldapDirectory) addMember(member, group int32) error {
	if len(d.edges) >= d.cfg.MaxMembers {
		return fmt.Errorf("the directory's groups have more than maxMembers (%d) members; raise it, or narrow groups by base or filter", d.cfg.MaxMembers)
	}
	d.edges = append(d.edges, membership{member, group})
	return nil
}

// skip notes an entry that could not be made sense of. What was said of it before, under
// any of its names, stays as it was. It returns nil: reading goes on.
func (d *ldapDirectory) skip(dn string, names []string, format string, a ...any) error {
	err := fmt.Errorf("%q: "+format, append([]any{shorten(dn)}, a...)...)
	d.bad.note(err)
	for _, name := range names {
		if d.bad.subjects == nil {
			d.bad.subjects = map[string]bool{}
		}
		d.bad.subjects[name] = true
	}
	return nil
}

// skipSubject is skip for a user or computer whose names are known. Its own stays its own.
func (d *ldapDirectory) skipSubject(dn string, s *ldapSubject, format string, a ...any) error {
	d.unread = append(d.unread, s.name)
	return d.skip(dn, append(s.aliases, s.name), format, a...)
}

// subjectName is the canonical name of a user or computer; empty if there is none.
func (d *ldapDirectory) subjectName(name string) string {
	if d.domain != "" && !strings.Contains(name, "@") {
		name += "@" + d.domain
	}
	canonical, kind := d.domains.Principal(name)
	if kind == flow.PrincipalSystem {
		return "" // those are never looked up
	}
	return canonical
}

// facts is what the directory says, ordered by subject. The error is a *partialError, or
// that of ctx.
func (d *ldapDirectory) facts(ctx context.Context) ([]flow.Fact, error) {
	d.nameGroups()
	own, other := d.spokenNames()
	parents := d.parents()

	// Groups in the order of their names: a set of them in ascending order is then the
	// names in ascending order.
	order := make([]int32, d.nodeSeen) // node → place among the groups, by name; -1 for none
	for i := range order {
		order[i] = -1
	}
	slices.SortFunc(d.groups, func(a, b ldapGroup) int { return strings.Compare(a.name, b.name) })
	for i, g := range d.groups {
		order[g.node] = int32(i) //nolint:gosec // maxEntries bounds it
	}

	facts := make([]flow.Fact, 0, len(d.subjects))
	lists := map[string][]string{}       // one list for all who are in the same groups
	seen := make([]int32, len(d.groups)) // which subject saw the group last, plus one
	var found []int32                    // the groups of a subject; also what is still to be followed
	for i := range d.subjects {
		if i%1024 == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		s := &d.subjects[i]
		if own[s.name] > 1 {
			d.bad.note(fmt.Errorf("%q is the name of %d entries, so nothing is said of it", s.name, own[s.name]))
			continue
		}
		found = found[:0]
		reach := func(group int32) {
			if g := order[group]; g >= 0 && seen[g] != int32(i)+1 { //nolint:gosec // maxEntries bounds it
				seen[g] = int32(i) + 1 //nolint:gosec // maxEntries bounds it
				found = append(found, g)
			}
		}
		for _, p := range parents.of(s.node) {
			reach(p)
		}
		if p, ok := d.primary[s.primary]; ok && s.primary != "" {
			reach(p)
		}
		for j := 0; j < len(found) && len(found) <= maxGroupsOf; j++ { // each group once, so circles end
			for _, p := range parents.of(d.groups[found[j]].node) {
				reach(p)
			}
		}
		if len(found) > maxGroupsOf {
			_ = d.skip(s.dn, append(s.aliases, s.name), "it is in more than %d groups", maxGroupsOf)
			continue
		}
		slices.Sort(found)
		f := flow.Fact{Kind: flow.FactDirectory, Subject: s.name, Groups: d.groupNames(found, lists), Disabled: s.disabled}
		switch s.kind {
		case ldapUser:
			f.User = s.name
		case ldapService:
			f.Account = s.name
		case ldapComputer:
			f.Device = s.device
		}
		facts = append(facts, f)
		for _, alias := range s.aliases {
			// Nobody can silence a colleague by taking that name as a second one.
			if own[alias] == 0 && other[alias] == 1 {
				f.Subject = alias
				facts = append(facts, f)
			}
		}
	}
	slices.SortFunc(facts, func(a, b flow.Fact) int { return strings.Compare(a.Subject, b.Subject) })
	for i := range facts {
		// Who takes a colleague's name and cannot be read keeps nothing of the colleague's.
		delete(d.bad.subjects, facts[i].Subject)
	}
	return facts, d.bad.orNil()
}

// groupNames is the names of groups, by their places. Lists are shared.
func (d *ldapDirectory) groupNames(places []int32, lists map[string][]string) []string {
	if len(places) == 0 {
		return nil
	}
	key := make([]byte, 0, 4*len(places))
	for _, p := range places {
		key = binary.LittleEndian.AppendUint32(key, uint32(p)) //nolint:gosec // a place is not negative
	}
	names, ok := lists[string(key)]
	if !ok {
		for _, p := range places {
			if name := d.groups[p].name; name != "" {
				names = append(names, name)
			}
		}
		lists[string(key)] = names
	}
	return names
}

// nameGroups gives groups that share a name their DNs instead: whoever may create a group
// somewhere in a directory must not become a member of another one by naming it alike.
func (d *ldapDirectory) nameGroups() {
	count := make(map[string]int, len(d.groups))
	for _, g := range d.groups {
		count[strings.ToLower(g.name)]++
	}
	for i := range d.groups {
		g := &d.groups[i]
		n := count[strings.ToLower(g.name)]
		if g.name == "" || n == 1 {
			continue
		}
		d.bad.note(fmt.Errorf("%q: %d groups are named %q, so each goes by its DN; set groups.name to an attribute that tells them apart", shorten(g.dn), n, g.name))
		g.name, _ = cleanName(g.dn)
	}
}

// spokenNames counts the entries that go by each name: as their own, and as another one.
func (d *ldapDirectory) spokenNames() (own, other map[string]int) {
	own, other = make(map[string]int, len(d.subjects)), make(map[string]int, len(d.subjects))
	for i := range d.subjects {
		s := &d.subjects[i]
		own[s.name]++
		slices.Sort(s.aliases)
		s.aliases = slices.DeleteFunc(slices.Compact(s.aliases), func(a string) bool { return a == s.name || a == "" })
		for _, a := range s.aliases {
			other[a]++
		}
	}
	for _, name := range d.unread {
		own[name]++
	}
	return own, other
}

// parentLists is the groups that each node is a member of.
type parentLists struct {
	first  []int32 // node → where its groups begin
	groups []int32
}

func (p parentLists) of(node int32) []int32 { return p.groups[p.first[node]:p.first[node+1]] }

func (d *ldapDirectory) parents() parentLists {
	p := parentLists{first: make([]int32, d.nodeSeen+1), groups: make([]int32, len(d.edges))}
	for _, e := range d.edges {
		p.first[e.member+1]++
	}
	for i := range d.nodeSeen {
		p.first[i+1] += p.first[i]
	}
	at := slices.Clone(p.first)
	for _, e := range d.edges {
		p.groups[at[e.member]] = e.group
		at[e.member]++
	}
	d.edges = nil
	return p
}

// foldDN is a DN in the one form that all its spellings share: distinguishedNameMatch
// with caseIgnoreMatch (RFC 4517, 4.2.15), which is how directories compare people and
// groups.
func foldDN(s string) string {
	dn, err := ldap.ParseDN(s)
	if err != nil {
		return strings.ToLower(s)
	}
	for _, rdn := range dn.RDNs {
		for _, a := range rdn.Attributes {
			a.Type, a.Value = strings.ToLower(a.Type), strings.ToLower(strings.Join(strings.Fields(a.Value), " "))
		}
		slices.SortFunc(rdn.Attributes, func(a, b *ldap.AttributeTypeAndValue) int {
			return strings.Compare(a.Type+"="+a.Value, b.Type+"="+b.Value)
		})
	}
	return dn.String()
}

// cleanName is a name as it may be stored and compared; ok is false for one that is empty,
// too long, not UTF-8, or holds what cannot be seen.
func cleanName(s string) (string, bool) {
	s = strings.TrimSpace(s)
	if s == "" || len(s) > maxEntryName || !utf8.ValidString(s) {
		return "", false
	}
	if strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == utf8.RuneError }) {
		return "", false
	}
	return s, true
}

// shorten cuts what is shown of a DN.
func shorten(s string) string {
	if len(s) <= maxEntryName {
		return s
	}
	return s[:maxEntryName-4] + "…"
}

// nameOf is an entry's name by an attribute: of several values the one that the DN begins
// with, else the first in order. ok is false if none can be used.
func nameOf(e *ldap.Entry, attribute string) (name string, others []string, ok bool) {
	if strings.EqualFold(attribute, "dn") {
		name, ok = cleanName(e.DN)
		return name, nil, ok
	}
	var names []string
	for _, v := range e.GetEqualFoldAttributeValues(attribute) {
		if v, ok := cleanName(v); ok && !strings.Contains(v, `\`) {
			names = append(names, v)
		}
	}
	if len(names) == 0 {
		return "", nil, false
	}
	slices.Sort(names)
	names = slices.Compact(names)
	at := 0
	if len(names) > 1 {
		if dn, err := ldap.ParseDN(e.DN); err == nil && len(dn.RDNs) > 0 {
			for _, a := range dn.RDNs[0].Attributes {
				if i := slices.Index(names, a.Value); i >= 0 && strings.EqualFold(a.Type, attribute) {
					at = i
				}
			}
		}
	}
	return names[at], slices.Delete(slices.Clone(names), at, at+1), true
}
