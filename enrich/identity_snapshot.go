package enrich

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/postern/postern/flow"
)

// identityMagic begins a snapshot; its last byte rises whenever what follows changes its meaning.
const identityMagic = "postern identity\x01"

// Snapshot is the whole state but for the groups that policy names; the same state gives
// the same bytes, whatever the order in which facts came. Spans are not in it, they are
// worked out again. It takes about 45 bytes a fact.
func (s *Identity) Snapshot() ([]byte, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	e := encoder{names: s.names.Texts(), refs: map[flow.Name]uint64{}}
	var body []byte
	e.b = nil
	e.times(s.clock, s.horizon, s.swept)
	e.lost(&s.lost)
	order := make([]int, len(s.sources))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(s.sources[a].name, s.sources[b].name) })
	place := make([]uint64, len(s.sources))
	e.uint(uint64(len(order)))
	for n, i := range order {
		src := &s.sources[i]
		place[i] = uint64(n)
		e.text(src.name)
		e.times(src.forgotten)
		e.uint(uint64(len(src.beats)))
		var last flow.Time
		for _, b := range src.beats {
			e.times(b.at-last, b.limit)
			last = b.at
		}
	}
	holders := func(hs []holder, compare func(a, b *holder) int, key func(h *holder)) {
		sorted := make([]*holder, len(hs))
		for i := range hs {
			sorted[i] = &hs[i]
		}
		slices.SortFunc(sorted, compare)
		e.uint(uint64(len(sorted)))
		for _, h := range sorted {
			key(h)
			e.times(h.past.first)
			e.lost(&h.past.lost)
			e.uint(uint64(len(h.past.versions)))
			for i := range h.past.versions {
				v := &h.past.versions[i]
				e.version(v, place[v.source], &s.groups.sets[v.groups])
			}
		}
	}
	holders(s.places.holders, func(a, b *holder) int { return a.key.Compare(b.key) }, func(h *holder) {
		b := h.key.As16()
		e.b = append(e.b, b[:]...)
	})
	holders(s.subjects, func(a, b *holder) int { return cmp.Compare(e.names[a.key.Lo], e.names[b.key.Lo]) }, func(h *holder) {
		e.name(flow.Name(h.key.Lo))
	})
	body, e.b = e.b, []byte(identityMagic)
	e.uint(uint64(len(e.used)))
	for _, t := range e.used {
		e.text(t)
	}
	return append(e.b, body...), nil
}

// Restore replaces the state by that of a snapshot; the groups that policy names stay. After
// an error the Identity is empty.
func (s *Identity) Restore(b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reset()
	if err := s.restore(b); err != nil {
		s.reset()
		s.dirty = s.dirty[:0]
		return fmt.Errorf("reading the snapshot of identity: %w", err)
	}
	s.gauge()
	return nil
}

func (s *Identity) restore(b []byte) error {
	if len(b) < len(identityMagic) || string(b[:len(identityMagic)]) != identityMagic {
		return errors.New("it is not one, or of another version than this program reads")
	}
	d := decoder{b: b[len(identityMagic):]}
	d.names = append(d.names, flow.NoName, flow.OverflowName)
	for range d.count(1) {
		d.names = append(d.names, s.names.Intern(d.text()))
	}
	s.clock, s.horizon, s.swept = d.time(), d.time(), d.time()
	s.lost = d.lost()
	for range d.count(3) {
		name := d.text()
		id, ok := s.sourceOf(name)
		if !ok || int(id) != len(s.sources)-1 || id > 0 && s.sources[id-1].name >= name {
			return fmt.Errorf("source %q is out of order, or one too many", name)
		}
		src := &s.sources[id]
		src.forgotten = d.time()
		var last flow.Time
		for range d.count(2) {
			step, limit := d.time(), d.time()
			if last += step; step <= 0 || last > latest || limit < 0 {
				return fmt.Errorf("source %q has heartbeats out of order", name)
			}
			src.beats = append(src.beats, beat{last, limit})
		}
		src.index()
	}
	for range d.count(20) {
		var key [16]byte
		copy(key[:], d.bytes(16))
		a := flow.AddrFrom16(key)
		if a.IsZero() || a != a.Canonical() || s.places.find(a) != nil {
			return fmt.Errorf("address %v stands there twice or is none", a)
		}
		if err := s.restoreHolder(&d, &s.places.holders[s.places.add(a)]); err != nil {
			return fmt.Errorf("address %v: %w", a, err)
		}
	}
	for range d.count(5) {
		name := d.name()
		if d.err != nil {
			return d.err
		}
		if name == flow.NoName || name == flow.OverflowName || s.subject(name) != nil {
			return fmt.Errorf("subject %q stands there twice or is none", s.names.Text(name))
		}
		h, _ := s.newHolder(true, flow.Addr{Lo: uint64(name)})
		if err := s.restoreHolder(&d, h); err != nil {
			return fmt.Errorf("subject %q: %w", s.names.Text(name), err)
		}
	}
	if d.err == nil && len(d.b) > 0 {
		return fmt.Errorf("%d bytes follow its end", len(d.b))
	}
	return d.err
}

func (s *Identity) restoreHolder(d *decoder, h *holder) error {
	p := h.past
	p.first, p.lost = d.time(), d.lost()
	n := d.count(17)
	if n == 0 && d.err == nil || n > maxPerHolder+1 {
		return fmt.Errorf("%d facts; write 1 to %d", n, maxPerHolder)
	}
	if n > maxFacts-s.facts {
		return fmt.Errorf("more than %d facts", maxFacts)
	}
	p.versions = make([]version, 0, n)
	for range n {
		v := d.version(s)
		if d.err != nil {
			return d.err
		}
		if (v.kind == flow.FactDirectory) != p.subject {
			return errors.New("a fact of a directory about an address, or the other way round")
		}
		if k := len(p.versions); k > 0 {
			last := &p.versions[k-1]
			if c := s.compareKey(p.subject, last, &v); c > 0 || c == 0 && last.last >= v.known {
				return errors.New("facts out of order")
			}
		}
		p.versions = append(p.versions, v)
		s.facts++
	}
	s.rebuild(h, earliest, latest)
	return nil
}

// encoder writes the parts of a snapshot.
type encoder struct {
	b     []byte
	names []string
	refs  map[flow.Name]uint64
	used  []string
}

func (e *encoder) uint(v uint64) { e.b = binary.AppendUvarint(e.b, v) }

func (e *encoder) times(ts ...flow.Time) {
	for _, t := range ts {
		e.b = binary.AppendVarint(e.b, int64(t))
	}
}

func (e *encoder) text(t string) {
	e.uint(uint64(len(t)))
	e.b = append(e.b, t...)
}

func (e *encoder) lost(l *lost) { e.times(l.from, l.to, l.known) }

// name writes a reference to a text, which mean something outside the table of names.
func (e *encoder) name(n flow.Name) {
	ref := uint64(n)
	if n > flow.OverflowName {
		var ok bool
		if ref, ok = e.refs[n]; !ok {
			ref = uint64(len(e.used) + 2)
			e.refs[n] = ref
			e.used = append(e.used, e.names[n])
		}
	}
	e.uint(ref)
}

func (e *encoder) version(v *version, source uint64, groups *groupSet) {
	e.uint(source)
	var flags byte
	if v.disabled {
		flags |= 1
	}
	if groups.more {
		flags |= 2
	}
	if v.middle {
		flags |= 8
	}
	until := flow.Time(0)
	if v.until == latest {
		flags |= 4
	} else {
		until = v.until - v.since
	}
	e.b = append(e.b, byte(v.kind), v.confidence, flags)
	e.times(v.since, until, v.known-v.since, v.last-v.known)
	e.uint(uint64(v.sinceSlack))
	e.uint(uint64(v.untilSlack))
	e.uint(v.session)
	for _, n := range [...]flow.Name{v.workload, v.device, v.user, v.account, v.posture} {
		e.name(n)
	}
	e.uint(uint64(len(groups.names)))
	for _, n := range groups.names {
		e.name(n)
	}
}

// decoder reads the parts of a snapshot. After an error it gives zeroes.
type decoder struct {
	b     []byte
	names []flow.Name
	err   error
}

var errCut = errors.New("it is cut short or holds a number beyond its range")

func (d *decoder) fail() {
	d.b, d.err = nil, errCut
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

// time reads a time or a span of it.
func (d *decoder) time() flow.Time {
	v, n := binary.Varint(d.b)
	if n <= 0 || v < int64(earliest) || v > int64(latest) {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return flow.Time(v)
}

// count reads a number of things that take at least size bytes each.
func (d *decoder) count(size int) int {
	n := d.uint()
	if n > uint64(len(d.b)/size) {
		d.fail()
		return 0
	}
	return int(n)
}

func (d *decoder) bytes(n int) []byte {
	if n > len(d.b) {
		d.fail()
		return nil
	}
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) text() string { return string(d.bytes(d.count(1))) }

func (d *decoder) lost() lost { return lost{d.time(), d.time(), d.time()} }

func (d *decoder) name() flow.Name {
	i := d.uint()
	if i >= uint64(len(d.names)) {
		d.fail()
		return flow.NoName
	}
	return d.names[i]
}

func (d *decoder) version(s *Identity) (v version) {
	source := d.uint()
	head := d.bytes(3)
	if d.err != nil || source >= uint64(len(s.sources)) {
		d.fail()
		return v
	}
	v.source, v.kind, v.confidence, v.disabled, v.middle = uint16(source), flow.FactKind(head[0]), head[1], head[2]&1 != 0, head[2]&8 != 0
	v.since = d.time()
	v.until = v.since + d.time()
	if head[2]&4 != 0 {
		v.until = latest
	}
	v.known = v.since + d.time()
	v.last = v.known + d.time()
	sinceSlack, untilSlack := d.uint(), d.uint()
	v.session = d.uint()
	for _, n := range [...]*flow.Name{&v.workload, &v.device, &v.user, &v.account, &v.posture} {
		*n = d.name()
	}
	x := &s.scratch
	x.groups = x.groups[:0]
	n := d.count(1)
	for range n {
		x.groups = append(x.groups, d.name())
	}
	if v.kind < flow.FactSession || v.kind > flow.FactStatic || v.confidence < 1 || v.confidence > 100 || v.since < 0 || v.until < 0 || v.until > latest ||
		v.known <= 0 || v.last < v.known || v.last > latest || max(sinceSlack, untilSlack) > 1<<32-1 || n > maxGroupsOfFact {
		d.fail()
	}
	if d.err != nil {
		return v
	}
	v.sinceSlack, v.untilSlack = uint32(sinceSlack), uint32(untilSlack)
	// A name that no longer fits this table is a group that cannot be told.
	kept := slices.DeleteFunc(x.groups, func(n flow.Name) bool { return n <= flow.OverflowName })
	v.groups = s.groups.intern(kept, head[2]&2 != 0 || len(kept) < n)
	return v
}
