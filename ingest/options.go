package ingest

import (
	"bytes"
	"strconv"

	"github.com/postern/postern/flow"
)

// Options data (RFC 3954, 6; RFC 7011, 3.4.2) tells about the exporter itself:
// sampling rates, application names, when the system started. It is never a flow.

// scope9Interface is v9's scope type for an interface (RFC 3954, 6.1).
const scope9Interface = 2

type optionField struct {
	field
	code opcode
	// interfaceScope: the record speaks of this interface only.
	interfaceScope bool
	applicationID  bool
}

type optionsPlan struct {
	fields []optionField
	size   int // of the shortest record
}

func compileOptions(fs []field, scopes int, k kind) (p *optionsPlan, ok bool) {
	p = &optionsPlan{}
	for i, f := range fs {
		if f.length == 0 {
			continue // or a record of one byte could take thousands of steps
		}
		o := optionField{field: f}
		scope := i < scopes
		if t := lookup(f, k == kindOptions9); t.code.fits(f.length) && !(scope && k == kindOptions9) {
			o.code = t.code
		}
		numeric := f.pen == 0 && f.length >= 1 && f.length <= 8
		o.interfaceScope = scope && numeric &&
			(k == kindOptions9 && f.element == scope9Interface || k == kindOptionsIPFIX && (f.element == 10 || f.element == 14))
		o.applicationID = o.code == opAppID
		p.fields = append(p.fields, o)
		if f.length == variable {
			p.size++
		} else {
			p.size += int(f.length)
		}
	}
	return p, p.size > 0 && p.size <= 0xffff
}

// optionsSet reads the records of an options data set.
func (d *Decoder) optionsSet(m *message, p *optionsPlan, b []byte) (n int) {
	whole := len(b)
	for ; len(b) >= p.size; n++ {
		used, ok := d.option(m, p, b)
		if !ok {
			if !zero(b) {
				d.reject(flow.RejectMalformed)
			}
			return n
		}
		b = b[used:]
		m.ex.account.Options++
	}
	if n == 0 && whole > 0 && !zero(b) {
		d.reject(flow.RejectMalformed)
	}
	return n
}

func (d *Decoder) option(m *message, p *optionsPlan, b []byte) (n int, ok bool) {
	var (
		s             scratch
		r             flow.Record // what set writes beside s is of no use here
		app           []byte
		name          []byte
		ifIndex       uint32
		interfaceOnly bool
	)
	for i := range p.fields {
		o := &p.fields[i]
		length := int(o.length)
		if o.length == variable {
			var ok bool
			if length, n, ok = variableLength(b, n); !ok {
				return n, false
			}
		}
		if n+length > len(b) {
			return n, false
		}
		f := b[n : n+length]
		n += length
		switch {
		case o.interfaceScope:
			ifIndex, interfaceOnly = uint32(number(f)), true
		case o.applicationID:
			app = f
		case o.code == opAppName:
			name = f
		case o.code != opSkip && o.code != opUser:
			d.set(m, o.code, f, &r, &s)
		}
	}
	dom := m.dom
	if s.init != 0 {
		dom.init = s.init
	}
	if id, ok := applicationID(app); ok {
		if name = bytes.TrimRight(name, "\x00 "); len(name) > 0 {
			d.nameApplication(m, id, name)
		}
	}
	if rate := s.rate(); rate != 0 {
		switch {
		case s.id != 0:
			d.announce(m, dom.samplers, s.id, rate)
		case interfaceOnly:
			d.announce(m, dom.interfaces, uint64(ifIndex), rate)
		default:
			dom.defaultRate = rate
		}
	}
	return n, true
}

// announce keeps a sampling rate, as far as the exporter may.
func (d *Decoder) announce(m *message, rates map[uint64]uint32, key uint64, rate uint32) {
	if _, known := rates[key]; !known {
		if m.ex.samplers >= d.cfg.MaxSamplers {
			d.reject(flow.RejectTableFull)
			return
		}
		m.ex.samplers++
	}
	rates[key] = rate
}

// applicationID reads an applicationId (RFC 6759, 4): one byte of classification
// engine, the rest selector.
func applicationID(b []byte) (id uint64, ok bool) {
	if len(b) < 2 || len(b) > 8 {
		return 0, false
	}
	return uint64(b[0])<<56 | number(b[1:]), true
}

func (d *Decoder) nameApplication(m *message, id uint64, name []byte) {
	if _, known := m.dom.apps[id]; !known {
		if m.ex.apps >= d.cfg.MaxApplications {
			d.reject(flow.RejectTableFull)
			return
		}
		m.ex.apps++
	}
	m.dom.apps[id] = d.names.InternBytes(name)
}

// application is the name of an application id as the exporter told it, else
// "engine..selector".
func (d *Decoder) application(dom *domain, b []byte, r *flow.Record) flow.Name {
	id, ok := applicationID(b)
	if !ok || id == 0 {
		return flow.NoName
	}
	name, ok := dom.apps[id]
	if !ok {
		if name, ok = d.domain0(dom).apps[id]; !ok {
			var buf [24]byte
			t := strconv.AppendUint(buf[:0], id>>56, 10)
			t = strconv.AppendUint(append(t, ".."...), id<<8>>8, 10)
			name = d.names.InternBytes(t)
		}
	}
	if name == flow.OverflowName {
		r.Quality |= flow.QualityNamesFull
	}
	return name
}

// text interns a string field; exporters pad with zeros or blanks.
func (d *Decoder) text(b []byte, r *flow.Record) flow.Name {
	n := d.names.InternBytes(bytes.TrimRight(b, "\x00 "))
	if n == flow.OverflowName {
		r.Quality |= flow.QualityNamesFull
	}
	return n
}
