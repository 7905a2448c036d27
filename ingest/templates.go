package ingest

import (
	"bytes"
	"encoding/binary"
	"time"

	"github.com/postern/postern/flow"
)

// How template ids that are used for two things at once are told apart
// (SEMANTICS, "Templates").
const (
	alternation = time.Minute // two layouts taking turns within this are a conflict
	maxPorts    = 16          // source ports that one split id may have
)

// kind says what a template's records are.
type kind uint8

const (
	kindFlows kind = iota
	kindOptions9
	kindOptionsIPFIX
)

// template is a layout as an exporter told it.
type template struct {
	kind    kind
	scopes  int    // how many of its fields are scope (options)
	raw     []byte // its field specifiers as they came: what makes two layouts the same
	port    uint16 // who told it last
	at      flow.Time
	changed bool // another layout had been told under this id

	plan    *plan        // kindFlows
	options *optionsPlan // otherwise
}

func (t *template) same(k kind, scopes int, raw []byte) bool {
	return t.kind == k && t.scopes == scopes && bytes.Equal(t.raw, raw)
}

// slot is what stands under one template id of a domain.
type slot struct {
	cur *template // in use, unless split or quarantined

	// The layout that cur replaced and when: one that comes back soon is a conflict.
	previous   *template
	replacedAt flow.Time

	byPort map[uint16]*template // split: each source port has its own

	quarantined bool
	candidate   *template // quarantined: the layout told last, since when
	since       flow.Time
}

// count is how many templates the slot holds.
func (s *slot) count() int {
	if s.byPort != nil {
		return len(s.byPort)
	}
	return 1
}

// lookup gives the template for data of that port; nil if there is none.
func (s *slot) lookup(port uint16) *template {
	if s.byPort != nil {
		return s.byPort[port]
	}
	return s.cur
}

// templates reads a template set: RFC 3954, 5.2; RFC 7011, 3.4.1.
func (d *Decoder) templates(m *message, b []byte, out *flow.Batch) {
	be := binary.BigEndian
	all := false // withdrawn already: once a set is enough
	for len(b) >= 4 {
		id, n := be.Uint16(b), int(be.Uint16(b[2:]))
		if id < firstDataSet && zero(b) {
			return // padding
		}
		if n == 0 && m.source == flow.SourceIPFIX {
			if id != ipfixTemplate {
				d.withdraw(m, id)
			} else if !all {
				d.withdrawAll(m, false)
				all = true
			}
			b = b[4:]
			continue
		}
		raw, rest, ok := specifiers(b[4:], n, m.source == flow.SourceIPFIX)
		if !ok || id < firstDataSet {
			d.reject(flow.RejectMalformed)
			return
		}
		b = rest
		d.learn(m, id, kindFlows, 0, raw, out)
	}
}

// optionsTemplates9 reads an options template set of v9: RFC 3954, 6.1.
func (d *Decoder) optionsTemplates9(m *message, b []byte, out *flow.Batch) {
	be := binary.BigEndian
	for len(b) >= 6 {
		id, scope, option := be.Uint16(b), int(be.Uint16(b[2:])), int(be.Uint16(b[4:]))
		if id < firstDataSet && zero(b) {
			return
		}
		if id < firstDataSet || scope%4 != 0 || option%4 != 0 || 6+scope+option > len(b) {
			d.reject(flow.RejectMalformed)
			return
		}
		raw := b[6 : 6+scope+option]
		b = b[6+scope+option:]
		d.learn(m, id, kindOptions9, scope/4, raw, out)
	}
}

// optionsTemplatesIPFIX reads an options template set of IPFIX: RFC 7011, 3.4.2.
func (d *Decoder) optionsTemplatesIPFIX(m *message, b []byte, out *flow.Batch) {
	be := binary.BigEndian
	all := false
	for len(b) >= 4 {
		id, n := be.Uint16(b), int(be.Uint16(b[2:]))
		if id < firstDataSet && zero(b) {
			return
		}
		if n == 0 {
			if id != ipfixOptionsTemplate {
				d.withdraw(m, id)
			} else if !all {
				d.withdrawAll(m, true)
				all = true
			}
			b = b[4:]
			continue
		}
		if len(b) < 6 {
			d.reject(flow.RejectMalformed)
			return
		}
		scopes := int(be.Uint16(b[4:]))
		raw, rest, ok := specifiers(b[6:], n, true)
		if !ok || id < firstDataSet || scopes == 0 || scopes > n {
			d.reject(flow.RejectMalformed)
			return
		}
		b = rest
		d.learn(m, id, kindOptionsIPFIX, scopes, raw, out)
	}
}

// specifiers cuts n field specifiers off the front of b.
func specifiers(b []byte, n int, enterprise bool) (raw, rest []byte, ok bool) {
	end := 0
	for range n {
		if end+4 > len(b) {
			return nil, nil, false
		}
		if enterprise && b[end]&0x80 != 0 {
			end += 4
		}
		end += 4
	}
	if end > len(b) {
		return nil, nil, false
	}
	return b[:end], b[end:], true
}

// fields reads what specifiers cut.
func fields(raw []byte, enterprise bool) []field {
	be := binary.BigEndian
	var out []field
	for len(raw) >= 4 {
		f := field{element: be.Uint16(raw), length: be.Uint16(raw[2:])}
		raw = raw[4:]
		if enterprise && f.element&0x8000 != 0 {
			f.element &^= 0x8000
			f.pen = be.Uint32(raw)
			raw = raw[4:]
		}
		out = append(out, f)
	}
	return out
}

// learn takes a template, new, again or changed, and decodes what waits for it.
func (d *Decoder) learn(m *message, id uint16, k kind, scopes int, raw []byte, out *flow.Batch) {
	m.ex.account.Templates++
	s := m.dom.slots[id]
	if s != nil && !s.quarantined {
		if t := s.lookup(m.port); t != nil && t.same(k, scopes, raw) {
			t.at, t.port = d.now, m.port // the usual case: told again
			return
		}
	}
	if s == nil && !d.roomForTemplate(m.ex) {
		d.reject(flow.RejectTableFull)
		return
	}
	t := &template{kind: k, scopes: scopes, raw: bytes.Clone(raw), port: m.port, at: d.now}
	if !t.build(m.source) {
		d.reject(flow.RejectMalformed)
		return
	}
	switch {
	case s == nil:
		m.dom.slots[id] = &slot{cur: t}
		d.countTemplates(m.ex, 1)
	case s.quarantined:
		t.changed = true
		if !s.candidate.same(k, scopes, raw) {
			s.candidate, s.since = t, d.now
		}
		if d.now.Sub(s.since) < alternation {
			return
		}
		*s = slot{cur: s.candidate, previous: nil}
		s.cur.at = d.now
	case s.byPort != nil:
		old := s.byPort[m.port]
		if old == nil {
			if len(s.byPort) >= maxPorts || !d.roomForTemplate(m.ex) {
				d.quarantine(m, s, t)
				return
			}
			d.countTemplates(m.ex, 1)
		}
		t.changed = true
		s.byPort[m.port] = t
	case s.previous != nil && s.previous.same(k, scopes, raw) && d.now.Sub(s.replacedAt) < alternation:
		// The layout before this one is back within a minute.
		t.changed = true
		if s.cur.port == m.port || !d.roomForTemplate(m.ex) {
			d.quarantine(m, s, t)
			return
		}
		*s = slot{byPort: map[uint16]*template{s.cur.port: s.cur, m.port: t}}
		d.countTemplates(m.ex, 1)
	default:
		t.changed = true
		s.previous, s.replacedAt, s.cur = s.cur, d.now, t
		s.previous.plan, s.previous.options = nil, nil // only its layout is of use
	}
	d.unpark(m, id, out)
}

func (d *Decoder) quarantine(m *message, s *slot, t *template) {
	d.countTemplates(m.ex, 1-s.count())
	*s = slot{quarantined: true, candidate: t, since: d.now}
}

// withdraw forgets a template (RFC 7011, 8.1); of an id that is split, the
// sender's own.
func (d *Decoder) withdraw(m *message, id uint16) {
	s := m.dom.slots[id]
	switch {
	case s == nil:
	case s.byPort != nil && s.byPort[m.port] == nil:
	case len(s.byPort) > 1:
		delete(s.byPort, m.port)
		d.countTemplates(m.ex, -1)
	default:
		d.countTemplates(m.ex, -s.count())
		delete(m.dom.slots, id)
	}
}

// withdrawAll forgets all templates, or all options templates, of a domain.
func (d *Decoder) withdrawAll(m *message, options bool) {
	for id, s := range m.dom.slots {
		t := s.lookup(m.port)
		if s.quarantined {
			t = s.candidate
		}
		if t != nil && (t.kind != kindFlows) == options {
			d.withdraw(m, id)
		}
	}
}

func (d *Decoder) roomForTemplate(ex *exporter) bool {
	return d.numTemplates < d.cfg.MaxTemplates && ex.templates < d.cfg.MaxTemplatesPerExporter
}

func (d *Decoder) countTemplates(ex *exporter, n int) {
	ex.templates += n
	d.numTemplates += n
}

// build compiles t; false if its records would be empty.
func (t *template) build(source flow.Source) (ok bool) {
	f := fields(t.raw, source == flow.SourceIPFIX)
	if t.kind == kindFlows {
		t.plan, ok = compile(f, source == flow.SourceNetFlowV9)
		return ok
	}
	t.options, ok = compileOptions(f, t.scopes, t.kind)
	return ok
}

// data decodes a data set by its template, or parks it until that comes. It gives
// the number of data records, -1 if that is not known.
func (d *Decoder) data(m *message, id uint16, b []byte, ordinal int, out *flow.Batch) int {
	s := m.dom.slots[id]
	if s == nil {
		d.parkSet(m, id, b, ordinal)
		return -1
	}
	if s.quarantined {
		if d.now.Sub(s.since) < alternation {
			d.reject(flow.RejectQuarantined)
			return -1
		}
		*s = slot{cur: s.candidate}
	}
	t := s.lookup(m.port)
	if t == nil {
		d.parkSet(m, id, b, ordinal)
		return -1
	}
	if d.now.Sub(t.at) > d.cfg.TemplateTTL {
		d.countTemplates(m.ex, -s.count())
		delete(m.dom.slots, id)
		d.parkSet(m, id, b, ordinal)
		return -1
	}
	return d.dataSet(m, t, b, ordinal, out)
}

// dataSet decodes a data set by t.
func (d *Decoder) dataSet(m *message, t *template, b []byte, ordinal int, out *flow.Batch) int {
	if t.kind != kindFlows {
		return d.optionsSet(m, t.options, b)
	}
	p := t.plan
	n := 0
	q := p.quality
	if t.changed {
		q |= flow.QualityTemplateChanged
	}
	whole := len(b)
	for ; len(b) >= p.size; n++ {
		r := m.record(out, ordinal, n)
		r.Has, r.Quality = p.has, r.Quality|q
		var s scratch
		if p.varies {
			used, ok := d.varying(m, p, b, r, &s)
			if !ok {
				m.drop(out)
				if zero(b) {
					break // padding that looked like a record of empty strings
				}
				rec := &m.ex.account.Records
				rec.Decoded++
				rec.Rejected[flow.RejectRecordMalformed]++
				d.reject(flow.RejectMalformed)
				return n
			}
			b = b[used:]
		} else {
			d.fixed(m, p, b, r, &s)
			b = b[p.size:]
		}
		m.finish(r, p, &s)
	}
	if n == 0 && whole > 0 && !zero(b) {
		d.reject(flow.RejectMalformed) // too short for even one record
	}
	return n
}

// finish turns what only together means something into fields of r.
func (m *message) finish(r *flow.Record, p *plan, s *scratch) {
	need := p.need
	if need&needICMP != 0 {
		if r.Proto == flow.ProtoICMPv6 {
			r.ICMPType, r.ICMPCode = s.icmpType6, s.icmpCode6
		} else {
			r.ICMPType, r.ICMPCode = s.icmpType4, s.icmpCode4
		}
	}
	if need&needICMPPort != 0 && r.IsICMP() && r.ICMPType|r.ICMPCode == 0 && r.Has&flow.HasDstPort != 0 {
		icmpFromPort(r)
	}
	if need&needInitiator != 0 || r.Has&(flow.HasRevBytes|flow.HasRevPackets|flow.HasRevTCPFlags) != 0 && m.ex.biflowInitiator {
		r.Has |= flow.HasInitiator
	}
	if need&needSamplingField != 0 {
		r.SamplingRate = s.rate()
	}
	switch {
	case r.SamplingRate != 0:
	case s.id != 0:
		r.SamplingRate = m.dom.samplerRate(s.id, r.InIf, r.Any(flow.HasInIf))
		if r.SamplingRate == 0 {
			r.Quality |= flow.QualitySamplingUnknown
		}
	default: // no sampler, or number 0, which is none
		r.SamplingRate = m.dom.rate(r.InIf, r.Any(flow.HasInIf))
	}

	start, end := s.start, s.end
	if need&needUptime != 0 {
		init := s.init
		if init == 0 {
			init = m.dom.init
		}
		up := start == 0 && s.seen&seenUpStart != 0 && s.upStart|s.upEnd != 0
		upEnd := end == 0 && s.seen&seenUpEnd != 0 && s.upStart|s.upEnd != 0
		switch {
		case m.hasUptime:
			if up {
				start = m.atUptime(s.upStart)
			}
			if upEnd {
				end = m.atUptime(s.upEnd)
			}
		case init != 0:
			if up {
				start = init + flow.Time(s.upStart)
			}
			if upEnd {
				end = init + flow.Time(s.upEnd)
			}
		case up && upEnd && start == 0 && end == 0:
			// IPFIX without the system's start time: only the duration is told.
			r.Quality |= flow.QualityTimeMissing
			end = m.export
			start = end - flow.Time(max(int32(s.upEnd-s.upStart), 0))
			m.settleAs(r, start, end)
			return
		}
	}
	if end == 0 {
		end = s.observed
	}
	if s.duration > 0 {
		switch {
		case end == 0 && start != 0:
			end = start + s.duration
		case start == 0 && end != 0:
			start = end - s.duration
		case start == 0 && end == 0 && s.duration < maxAge:
			end, start = m.export, m.export-s.duration
			r.Quality |= flow.QualityTimeMissing
			m.settleAs(r, start, end)
			return
		}
	}
	m.settle(r, start, end)
}
