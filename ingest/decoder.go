package ingest

import (
	"container/list"
	"encoding/binary"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/postern/postern/flow"
	"github.com/prometheus/client_golang/prometheus"
)

// Decoder turns datagrams of NetFlow v5, v9, IPFIX and sFlow v5 into records.
//
// It walks messages, sets and samples itself and copies fields by plans compiled
// from the templates; goflow2's decoders are the reference its tests compare
// every fixture and fuzz input with. docs/formats.md ("Why not goflow2's walk")
// says what was measured and what stood against using them here.
//
// What comes out depends on the datagrams and ticks that went in, on nothing
// else: two decoders fed alike give the same records and the same snapshots. A
// Decoder is not safe for concurrent use.
type Decoder struct {
	cfg       DecoderConfig
	log       *slog.Logger
	names     *flow.Names
	exporters map[flow.Addr]*exporter
	ledger    flow.Ledger
	metrics   *decoderMetrics

	now       flow.Time // the newest time of receipt or tick
	expiredAt flow.Time
	sweptAt   flow.Time

	numTemplates int
	parked       list.List // of *parkedSet, oldest first
	parkedBytes  flow.Size

	// Of the datagram being decoded.
	msg      message
	rejected bool
	reason   flow.Reject
	parking  *parkedDatagram
}

// exporter is what is known about one exporter.
type exporter struct {
	addr            flow.Addr
	account         *flow.Account
	domains         map[domainKey]*domain
	zero            [int(flow.SourceSFlowV5) + 1]*domain // domain 0, which speaks for all
	last            *domain
	biflowInitiator bool

	skew      flow.Time // smoothed header clock minus receipt
	skewKnown bool

	templates   int
	samplers    int
	apps        int
	parkedBytes flow.Size
}

type domainKey struct {
	source flow.Source
	domain uint32
}

// domain is the state of one observation domain.
type domain struct {
	domainKey
	ex    *exporter
	seq   sequence
	slots map[uint16]*slot
	// waiting holds the parked sets by template id, oldest first.
	waiting map[uint16][]*parkedSet

	init        flow.Time // systemInitTimeMilliseconds from options
	samplers    map[uint64]uint32
	interfaces  map[uint64]uint32
	defaultRate uint32
	rules       []SamplingRule // of the configuration, those that may match here
	apps        map[uint64]flow.Name

	heard domainTotals
}

// message is what the records of one message share.
type message struct {
	ex        *exporter
	dom       *domain
	seed      uint64 // of record ids: source and position
	received  flow.Time
	export    flow.Time // the exporter's clock
	uptime    uint32    // milliseconds
	port      uint16
	source    flow.Source
	hasUptime bool
	unusable  bool // the exporter's clock
	skew      int32
	quality   flow.Quality
}

const (
	clockUnusable = 24 * time.Hour
	// A flow longer than a year or a day ahead of its export is no time but a
	// mistake; the export time stands in. Firewalls tell the start of connections
	// that last months.
	maxAge   = flow.Time(366 * 24 * time.Hour / time.Millisecond)
	maxAhead = flow.Time(24 * time.Hour / time.Millisecond)
)

// NewDecoder makes a decoder that interns strings in names and registers its
// metrics with reg, which may be nil. Fields of cfg that are zero take their
// default.
func NewDecoder(cfg DecoderConfig, names *flow.Names, reg prometheus.Registerer) *Decoder {
	cfg.fill()
	d := &Decoder{cfg: cfg, log: cfg.Log, names: names, metrics: newDecoderMetrics(reg)}
	d.reset()
	return d
}

func (d *Decoder) reset() {
	d.exporters = map[flow.Addr]*exporter{}
	d.ledger = flow.Ledger{}
	d.parked.Init()
	d.now, d.expiredAt, d.sweptAt, d.numTemplates, d.parkedBytes = 0, 0, 0, 0, 0
}

// Decode appends the records of dg to out, and those of parked sets whose
// template it brought. It keeps nothing of dg.
func (d *Decoder) Decode(dg *Datagram, out *flow.Batch) {
	d.advance(dg.Received)
	before := len(out.Records)
	d.rejected, d.reason, d.parking = false, 0, nil
	ex := d.exporter(dg.Exporter)
	var account *flow.Account
	m := &d.msg
	if ex == nil {
		account = d.ledger.Of(flow.Addr{}) // all those beyond MaxExporters together
		account.Datagrams.Received++
		d.reject(flow.RejectTableFull)
		*m = message{}
	} else {
		account = ex.account
		account.Datagrams.Received++
		*m = message{ex: ex, received: dg.Received, port: dg.Port,
			seed: flow.Mix(flow.Mix(d.cfg.SourceID) + dg.Position)}
		d.dispatch(m, dg.Payload, out, before)
		n := uint64(len(out.Records) - before)
		m.ex.account.Records.Decoded += n
		if n > 0 {
			m.dom.heard.SamplingRate = out.Records[len(out.Records)-1].SamplingRate
		}
		d.metrics.records[m.source].Add(float64(n))
	}
	d.metrics.datagrams[m.source].Inc()

	a := &account.Datagrams
	p := d.parking
	d.parking = nil
	if p != nil && p.failed {
		d.reject(p.reason)
	}
	switch {
	case d.rejected:
		a.Rejected[d.reason]++
		d.metrics.rejected(d.reason)
		if p != nil {
			p.account = nil // what waits still comes out, but the datagram is counted
		}
	case p != nil && p.waiting > 0:
		a.Parked++
	default:
		a.Decoded++
	}
	d.metrics.parkedSets.Set(float64(d.parked.Len()))
	d.metrics.parkedBytes.Set(float64(d.parkedBytes))
	d.metrics.templates.Set(float64(d.numTemplates))
}

// dispatch decodes by the version in the first bytes. A panic costs the datagram
// its records and nothing else.
func (d *Decoder) dispatch(m *message, b []byte, out *flow.Batch, before int) {
	defer func() {
		if v := recover(); v != nil {
			out.Records = out.Records[:before]
			d.rejected, d.reason = true, flow.RejectPanic
			d.log.Error("decoding a datagram failed; please report it", "exporter", m.ex.addr.String(),
				"panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		}
	}()
	if len(b) < 4 {
		d.reject(flow.RejectTruncated)
		return
	}
	switch binary.BigEndian.Uint16(b) {
	case 5:
		d.netflow5(m, b, out)
	case 9:
		d.netflow9(m, b, out)
	case 10:
		d.ipfix(m, b, out)
	case 0:
		if binary.BigEndian.Uint32(b) == 5 {
			d.sflow(m, b, out)
			return
		}
		fallthrough
	default:
		d.reject(flow.RejectVersion)
	}
}

// reject says that the datagram being decoded is refused; the first reason counts.
func (d *Decoder) reject(r flow.Reject) {
	if !d.rejected {
		d.rejected, d.reason = true, r
	}
}

// Tick moves the decoder's time on: sets that waited too long are given up and
// templates that were not told again forgotten. Time never runs back.
func (d *Decoder) Tick(now flow.Time) { d.advance(now) }

func (d *Decoder) advance(now flow.Time) {
	if now <= d.now {
		return
	}
	d.now = now
	if now.Sub(d.expiredAt) >= time.Second {
		d.expiredAt = now
		d.expireParked()
	}
	if now.Sub(d.sweptAt) >= time.Minute {
		d.sweptAt = now
		d.sweepTemplates()
	}
}

func (d *Decoder) sweepTemplates() {
	for _, ex := range d.exporters {
		for _, dom := range ex.domains {
			for id, s := range dom.slots {
				for port, t := range s.byPort {
					if d.now.Sub(t.at) > d.cfg.TemplateTTL {
						delete(s.byPort, port)
						d.countTemplates(ex, -1)
					}
				}
				if s.byPort != nil && len(s.byPort) == 0 {
					delete(dom.slots, id)
				}
				t := s.cur
				if s.quarantined {
					t = s.candidate
				}
				if t != nil && d.now.Sub(t.at) > d.cfg.TemplateTTL {
					delete(dom.slots, id)
					d.countTemplates(ex, -1)
				}
			}
		}
	}
}

// Ledger is the live accounts by exporter; the caller must not keep it across
// calls of Decode from another goroutine. Written, Queued and InFlight are the
// caller's to fill in a copy. Records of sFlow are with their agent's address,
// datagrams always with the address they came from; the zero address gathers
// what came from exporters beyond MaxExporters.
func (d *Decoder) Ledger() flow.Ledger { return d.ledger }

// exporter is the state of an exporter, nil if the table is full.
func (d *Decoder) exporter(a flow.Addr) *exporter {
	ex := d.exporters[a]
	if ex == nil {
		if len(d.exporters) >= d.cfg.MaxExporters {
			return nil
		}
		ex = &exporter{addr: a, account: d.ledger.Of(a), domains: map[domainKey]*domain{}}
		for _, p := range d.cfg.BiflowInitiator {
			ex.biflowInitiator = ex.biflowInitiator || p.Contains(a.Netip())
		}
		d.exporters[a] = ex
	}
	return ex
}

// domain is the state of a domain of ex, nil if it may have no more.
func (d *Decoder) domain(ex *exporter, k domainKey) *domain {
	if ex.last != nil && ex.last.domainKey == k {
		return ex.last
	}
	dom := ex.domains[k]
	if dom == nil {
		if len(ex.domains) >= d.cfg.MaxDomains {
			return nil
		}
		dom = &domain{domainKey: k, ex: ex, slots: map[uint16]*slot{}, waiting: map[uint16][]*parkedSet{},
			samplers: map[uint64]uint32{}, interfaces: map[uint64]uint32{}, apps: map[uint64]flow.Name{}}
		for _, r := range d.cfg.Sampling {
			if (!r.Exporter.IsValid() || r.Exporter.Contains(ex.addr.Netip())) && (r.Domain == nil || *r.Domain == k.domain) {
				dom.rules = append(dom.rules, r)
			}
		}
		ex.domains[k] = dom
		if k.domain == 0 {
			ex.zero[k.source] = dom
		}
	}
	ex.last = dom
	return dom
}

// domain0 is the domain that speaks for the whole exporter (RFC 7011, 3.1), dom
// itself if there is none.
func (d *Decoder) domain0(dom *domain) *domain {
	if z := dom.ex.zero[dom.source]; z != nil {
		return z
	}
	return dom
}

// enter finds the state that a message belongs to and judges its clock. agent
// is sFlow's; false if there is no room for another exporter or domain.
func (d *Decoder) enter(m *message, agent flow.Addr, domain uint32) bool {
	if agent != (flow.Addr{}) && agent != m.ex.addr {
		ex := d.exporter(agent)
		if ex == nil {
			d.reject(flow.RejectTableFull)
			return false
		}
		m.ex = ex
	}
	m.dom = d.domain(m.ex, domainKey{m.source, domain})
	if m.dom == nil {
		d.reject(flow.RejectTableFull)
		return false
	}
	m.dom.heard.message(m.received)
	m.skew, m.unusable, m.quality = 0, false, 0
	if m.export <= 0 {
		m.export = m.received // it has no clock
	}
	if d.cfg.BelieveClock || m.source == flow.SourceSFlowV5 {
		return true
	}
	skew := m.ex.clock(m.export-m.received, flow.Time(d.cfg.ClockTolerance/time.Millisecond))
	off := max(skew, -skew)
	switch {
	case off > flow.Time(clockUnusable/time.Millisecond):
		m.unusable, m.quality = true, flow.QualityClockUnusable
	case off > flow.Time(d.cfg.ClockTolerance/time.Millisecond):
		m.skew, m.quality = int32(skew), flow.QualityClockSkew
	}
	return true
}

// clock smooths the exporter's clock error: an eighth of each new deviation, so
// that one datagram held up by the network says little, but a clock that was set
// is followed at once.
func (ex *exporter) clock(sample, tolerance flow.Time) flow.Time {
	off := sample - ex.skew
	if !ex.skewKnown || off > tolerance || off < -tolerance {
		ex.skew, ex.skewKnown = sample, true
	} else {
		ex.skew += off / 8
	}
	return ex.skew
}

// record adds a record to out, with what all records of m share.
func (m *message) record(out *flow.Batch, set, i int) *flow.Record {
	m.dom.heard.Records++
	r := out.Next()
	r.ID = flow.Mix(m.seed + uint64(set)<<32 + uint64(i))
	r.Received = m.received
	r.Exporter = m.ex.addr
	r.Domain = m.dom.domain
	r.Source = m.source
	r.Quality = m.quality
	if m.dom.seq.Skipped { // the first record after the gap says so
		m.dom.seq.Skipped = false
		r.Quality |= flow.QualitySequenceGap
	}
	r.Skew = m.skew
	return r
}

// drop takes back the record that was added last.
func (m *message) drop(out *flow.Batch) {
	m.dom.heard.Records--
	if last := &out.Records[len(out.Records)-1]; last.Quality&flow.QualitySequenceGap != 0 {
		m.dom.seq.Skipped = true
	}
	out.Drop()
}

// atUptime is when the exporter had been up for t milliseconds, by its header
// clock. The counter wraps every 49.7 days; a flow is at most half of that away.
func (m *message) atUptime(t uint32) flow.Time {
	return m.export - flow.Time(int32(m.uptime-t))
}

// settle puts the times into r; zero or impossible ones are not known.
func (m *message) settle(r *flow.Record, start, end flow.Time) {
	lo, hi := max(min(m.export, m.received)-maxAge, 1), max(m.export, m.received)+maxAhead
	if start < lo || start > hi {
		start = 0
	}
	if end < lo || end > hi {
		end = 0
	}
	switch {
	case start == 0 && end == 0:
		r.Quality |= flow.QualityTimeMissing
		start, end = m.export, m.export
	case start == 0:
		r.Has |= flow.HasEnd
		start = end
	case end == 0:
		r.Has |= flow.HasStart
		end = start
	default:
		r.Has |= flow.HasStart | flow.HasEnd
	}
	m.settleAs(r, start, end)
}

// settleAs puts times into r that were judged already.
func (m *message) settleAs(r *flow.Record, start, end flow.Time) {
	if end < start {
		r.Quality |= flow.QualityTimeReversed
		end = start
	}
	if m.unusable {
		start, end = m.received, m.received
	}
	r.Start, r.End = start, end
}

// rate is the sampling rate of records that name no sampler: what the exporter
// announced for the interface, for the domain, for all domains, else what the
// configuration says, else 0.
func (dom *domain) rate(inIf uint32, known bool) uint32 {
	zero := dom.ex.zero[dom.source]
	if known && len(dom.interfaces) > 0 {
		if v := dom.interfaces[uint64(inIf)]; v != 0 {
			return v
		}
	}
	if dom.defaultRate != 0 {
		return dom.defaultRate
	}
	if zero != nil && zero.defaultRate != 0 {
		return zero.defaultRate
	}
	if len(dom.rules) == 0 {
		return 0
	}
	return dom.configured(0, false, inIf, known)
}

// samplerRate is the rate of a sampler: as announced, else as configured, else 0.
func (dom *domain) samplerRate(id uint64, inIf uint32, known bool) uint32 {
	if v := dom.samplers[id]; v != 0 {
		return v
	}
	if zero := dom.ex.zero[dom.source]; zero != nil {
		if v := zero.samplers[id]; v != 0 {
			return v
		}
	}
	return dom.configured(id, true, inIf, known)
}

func (dom *domain) configured(id uint64, sampler bool, inIf uint32, known bool) uint32 {
	for i := range dom.rules {
		r := &dom.rules[i]
		if (r.Sampler == nil || sampler && *r.Sampler == id) && (r.Interface == nil || known && *r.Interface == inIf) {
			return r.Rate
		}
	}
	return 0
}

// decoderMetrics are the counters of a decoder.
type decoderMetrics struct {
	datagrams   [int(flow.SourceSFlowV5) + 1]prometheus.Counter
	records     [int(flow.SourceSFlowV5) + 1]prometheus.Counter
	reasons     []prometheus.Counter
	parkedSets  prometheus.Gauge
	parkedBytes prometheus.Gauge
	templates   prometheus.Gauge
}

func newDecoderMetrics(reg prometheus.Registerer) *decoderMetrics {
	datagrams := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_ingest_decode_datagrams_total",
		Help: "Datagrams handed to the decoder, by protocol."}, []string{"protocol"})
	records := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_ingest_decode_records_total",
		Help: "Flow records decoded, by protocol."}, []string{"protocol"})
	rejected := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_ingest_decode_rejected_datagrams_total",
		Help: "Datagrams the decoder rejected, by reason."}, []string{"reason"})
	m := &decoderMetrics{
		parkedSets: prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_ingest_decode_parked_sets",
			Help: "Data sets waiting for their template."}),
		parkedBytes: prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_ingest_decode_parked_bytes",
			Help: "Bytes of data sets waiting for their template."}),
		templates: prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_ingest_decode_templates",
			Help: "Templates held, over all exporters."}),
	}
	for s := range m.datagrams {
		m.datagrams[s] = datagrams.WithLabelValues(flow.Source(s).String())
		m.records[s] = records.WithLabelValues(flow.Source(s).String())
	}
	for _, r := range flow.Rejects() {
		m.reasons = append(m.reasons, rejected.WithLabelValues(r.String()))
	}
	if reg != nil {
		reg.MustRegister(datagrams, records, rejected, m.parkedSets, m.parkedBytes, m.templates)
	}
	return m
}

func (m *decoderMetrics) rejected(r flow.Reject) { m.reasons[r].Inc() }
