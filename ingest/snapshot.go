package ingest

import (
	"cmp"
	"container/list"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/postern/postern/flow"
)

// snapshotVersion changes with the form below; another version is refused.
const snapshotVersion = 1

// The snapshot is JSON in a fixed order, so that equal states give equal bytes.
// Plans are not in it: they are compiled again.
type decoderSnapshot struct {
	Version   int                  `json:"version"`
	Now       flow.Time            `json:"now"`
	ExpiredAt flow.Time            `json:"expired_at"`
	SweptAt   flow.Time            `json:"swept_at"`
	Ledger    []accountSnapshot    `json:"ledger"`
	Exporters []exporterSnapshot   `json:"exporters"`
	Parked    []parkedSetSnapshot  `json:"parked"` // oldest first
	Datagrams []parkedDataSnapshot `json:"parked_datagrams"`
}

type accountSnapshot struct {
	Exporter flow.Addr    `json:"exporter"`
	Account  flow.Account `json:"account"`
}

type exporterSnapshot struct {
	Addr      flow.Addr        `json:"addr"`
	Skew      flow.Time        `json:"skew,omitempty"`
	SkewKnown bool             `json:"skew_known,omitempty"`
	Domains   []domainSnapshot `json:"domains"`
}

type domainSnapshot struct {
	Source      flow.Source       `json:"source"`
	Domain      uint32            `json:"domain"`
	Seq         sequence          `json:"seq"`
	Init        flow.Time         `json:"init,omitempty"`
	DefaultRate uint32            `json:"default_rate,omitempty"`
	Samplers    map[uint64]uint32 `json:"samplers,omitempty"`
	Interfaces  map[uint64]uint32 `json:"interfaces,omitempty"`
	Apps        map[uint64]string `json:"apps,omitempty"`
	Slots       []slotSnapshot    `json:"slots,omitempty"`
	Heard       domainTotals      `json:"heard"`
}

type slotSnapshot struct {
	ID         uint16             `json:"id"`
	Current    *templateSnapshot  `json:"current,omitempty"`
	Previous   *templateSnapshot  `json:"previous,omitempty"`
	ReplacedAt flow.Time          `json:"replaced_at,omitempty"`
	ByPort     []templateSnapshot `json:"by_port,omitempty"`
	Candidate  *templateSnapshot  `json:"candidate,omitempty"` // quarantined
	Since      flow.Time          `json:"since,omitempty"`
}

type templateSnapshot struct {
	Kind    kind      `json:"kind,omitempty"`
	Scopes  int       `json:"scopes,omitempty"`
	Raw     []byte    `json:"raw"`
	Port    uint16    `json:"port"` // also the key where split by port
	At      flow.Time `json:"at"`
	Changed bool      `json:"changed,omitempty"`
}

type parkedDataSnapshot struct {
	Account *flow.Addr  `json:"account,omitempty"` // nil: counted already
	Failed  bool        `json:"failed,omitempty"`
	Reason  flow.Reject `json:"reason,omitempty"`
}

type parkedSetSnapshot struct {
	Exporter  flow.Addr    `json:"exporter"`
	Source    flow.Source  `json:"source"`
	Domain    uint32       `json:"domain"`
	Datagram  int          `json:"datagram"` // index in Datagrams
	ID        uint16       `json:"id"`
	Ordinal   int          `json:"ordinal"`
	Since     flow.Time    `json:"since"`
	Seed      uint64       `json:"seed"`
	Received  flow.Time    `json:"received"`
	Export    flow.Time    `json:"export"`
	Uptime    uint32       `json:"uptime,omitempty"`
	HasUptime bool         `json:"has_uptime,omitempty"`
	Port      uint16       `json:"port"`
	Unusable  bool         `json:"unusable,omitempty"`
	Skew      int32        `json:"skew,omitempty"`
	Quality   flow.Quality `json:"quality,omitempty"`
	Data      []byte       `json:"data"`
}

// Snapshot is the decoder's whole state: templates, options, sequences, clocks,
// parked sets and the ledger. Equal states give equal bytes.
func (d *Decoder) Snapshot() ([]byte, error) {
	s := decoderSnapshot{Version: snapshotVersion, Now: d.now, ExpiredAt: d.expiredAt, SweptAt: d.sweptAt}
	accounts := map[*flow.Account]flow.Addr{}
	for _, a := range d.ledger.Exporters() {
		accounts[d.ledger[a]] = a
		s.Ledger = append(s.Ledger, accountSnapshot{a, *d.ledger[a]})
	}
	for _, a := range slices.SortedFunc(maps.Keys(d.exporters), flow.Addr.Compare) {
		ex := d.exporters[a]
		es := exporterSnapshot{Addr: a, Skew: ex.skew, SkewKnown: ex.skewKnown}
		keys := slices.SortedFunc(maps.Keys(ex.domains), func(a, b domainKey) int {
			return cmp.Or(cmp.Compare(a.source, b.source), cmp.Compare(a.domain, b.domain))
		})
		for _, k := range keys {
			dom := ex.domains[k]
			ds := domainSnapshot{Source: k.source, Domain: k.domain, Seq: dom.seq, Init: dom.init, DefaultRate: dom.defaultRate, Heard: dom.heard,
				Samplers: dom.samplers, Interfaces: dom.interfaces, Apps: map[uint64]string{}}
			for id, n := range dom.apps {
				ds.Apps[id] = d.names.Text(n)
			}
			for _, id := range slices.Sorted(maps.Keys(dom.slots)) {
				sl := dom.slots[id]
				ss := slotSnapshot{ID: id, Current: snapshotTemplate(sl.cur), Previous: snapshotTemplate(sl.previous),
					ReplacedAt: sl.replacedAt, Candidate: snapshotTemplate(sl.candidate), Since: sl.since}
				for _, port := range slices.Sorted(maps.Keys(sl.byPort)) {
					t := snapshotTemplate(sl.byPort[port])
					t.Port = port
					ss.ByPort = append(ss.ByPort, *t)
				}
				ds.Slots = append(ds.Slots, ss)
			}
			es.Domains = append(es.Domains, ds)
		}
		s.Exporters = append(s.Exporters, es)
	}
	index := map[*parkedDatagram]int{}
	for e := d.parked.Front(); e != nil; e = e.Next() {
		p := e.Value.(*parkedSet)
		i, known := index[p.datagram]
		if !known {
			i = len(s.Datagrams)
			index[p.datagram] = i
			pd := parkedDataSnapshot{Failed: p.datagram.failed, Reason: p.datagram.reason}
			if p.datagram.account != nil {
				a := accounts[p.datagram.account]
				pd.Account = &a
			}
			s.Datagrams = append(s.Datagrams, pd)
		}
		m := &p.msg
		s.Parked = append(s.Parked, parkedSetSnapshot{Exporter: m.ex.addr, Source: m.source, Domain: m.dom.domain, Datagram: i,
			ID: p.id, Ordinal: p.ordinal, Since: p.since, Seed: m.seed, Received: m.received, Export: m.export,
			Uptime: m.uptime, HasUptime: m.hasUptime, Port: m.port, Unusable: m.unusable, Skew: m.skew, Quality: m.quality, Data: p.data})
	}
	return json.Marshal(s)
}

func snapshotTemplate(t *template) *templateSnapshot {
	if t == nil {
		return nil
	}
	return &templateSnapshot{t.kind, t.scopes, t.raw, t.port, t.at, t.changed}
}

// Restore puts the decoder into the state that Snapshot told. On an error the
// decoder is empty, as a new one.
func (d *Decoder) Restore(b []byte) (err error) {
	d.reset()
	defer func() {
		if err != nil {
			d.reset()
		}
	}()
	var s decoderSnapshot
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("decoder state: %w", err)
	}
	if s.Version != snapshotVersion {
		return fmt.Errorf("decoder state is of version %d; this program writes and reads %d", s.Version, snapshotVersion)
	}
	d.now, d.expiredAt, d.sweptAt = s.Now, s.ExpiredAt, s.SweptAt
	for _, a := range s.Ledger {
		account := a.Account
		d.ledger[a.Exporter] = &account
	}
	for _, es := range s.Exporters {
		ex := d.exporter(es.Addr)
		if ex == nil {
			return fmt.Errorf("decoder state holds more than maxExporters (%d) exporters", d.cfg.MaxExporters)
		}
		ex.skew, ex.skewKnown = es.Skew, es.SkewKnown
		for _, ds := range es.Domains {
			dom := d.domain(ex, domainKey{ds.Source, ds.Domain})
			if dom == nil || int(ds.Source) >= len(ex.zero) {
				return fmt.Errorf("decoder state of %s holds more than maxDomains (%d) domains", es.Addr, d.cfg.MaxDomains)
			}
			dom.seq, dom.init, dom.defaultRate, dom.heard = ds.Seq, ds.Init, ds.DefaultRate, ds.Heard
			maps.Copy(dom.samplers, ds.Samplers)
			maps.Copy(dom.interfaces, ds.Interfaces)
			ex.samplers += len(ds.Samplers) + len(ds.Interfaces)
			ex.apps += len(ds.Apps)
			for _, id := range slices.Sorted(maps.Keys(ds.Apps)) {
				dom.apps[id] = d.names.Intern(ds.Apps[id])
			}
			for _, ss := range ds.Slots {
				sl := &slot{cur: ss.Current.restore(ds.Source), previous: ss.Previous.restore(ds.Source), replacedAt: ss.ReplacedAt,
					candidate: ss.Candidate.restore(ds.Source), quarantined: ss.Candidate != nil, since: ss.Since}
				for i := range ss.ByPort {
					if sl.byPort == nil {
						sl.byPort = map[uint16]*template{}
					}
					t := ss.ByPort[i].restore(ds.Source)
					if t == nil {
						return fmt.Errorf("decoder state of %s: template %d does not compile", es.Addr, ss.ID)
					}
					sl.byPort[t.port] = t
				}
				if sl.cur == nil && sl.candidate == nil && sl.byPort == nil {
					return fmt.Errorf("decoder state of %s: template %d does not compile", es.Addr, ss.ID)
				}
				dom.slots[ss.ID] = sl
				d.countTemplates(ex, sl.count())
			}
		}
	}
	datagrams := make([]*parkedDatagram, len(s.Datagrams))
	for i, pd := range s.Datagrams {
		datagrams[i] = &parkedDatagram{failed: pd.Failed, reason: pd.Reason}
		if pd.Account != nil {
			datagrams[i].account = d.ledger.Of(*pd.Account)
		}
	}
	d.parked = list.List{}
	for _, ps := range s.Parked {
		ex := d.exporters[ps.Exporter]
		if ex == nil || ps.Datagram < 0 || ps.Datagram >= len(datagrams) {
			return fmt.Errorf("decoder state: a parked set of %s belongs to nothing", ps.Exporter)
		}
		dom := ex.domains[domainKey{ps.Source, ps.Domain}]
		if dom == nil {
			return fmt.Errorf("decoder state: a parked set of %s belongs to no domain", ps.Exporter)
		}
		dg := datagrams[ps.Datagram]
		dg.waiting++
		d.hold(&parkedSet{datagram: dg, id: ps.ID, ordinal: ps.Ordinal, since: ps.Since, data: ps.Data,
			msg: message{ex: ex, dom: dom, seed: ps.Seed, received: ps.Received, export: ps.Export, uptime: ps.Uptime, port: ps.Port,
				source: ps.Source, hasUptime: ps.HasUptime, unusable: ps.Unusable, skew: ps.Skew, quality: ps.Quality}})
	}
	return nil
}

func (s *templateSnapshot) restore(source flow.Source) *template {
	if s == nil {
		return nil
	}
	t := &template{kind: s.Kind, scopes: s.Scopes, raw: s.Raw, port: s.Port, at: s.At, changed: s.Changed}
	if !t.build(source) {
		return nil
	}
	return t
}
