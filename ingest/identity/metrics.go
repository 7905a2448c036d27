package identity

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those of all sources, by source. A nil one counts for nobody.
type metrics struct {
	reads       *prometheus.CounterVec
	failures    *prometheus.CounterVec
	told        *prometheus.CounterVec
	lastSuccess *prometheus.GaugeVec
	staleAfter  *prometheus.GaugeVec
	facts       *prometheus.GaugeVec
	badEntries  *prometheus.GaugeVec
	events      *prometheus.CounterVec
	open        *prometheus.GaugeVec
	hostsFull   *prometheus.CounterVec
	reg         prometheus.Registerer
}

// sourceMetrics are those of one source.
type sourceMetrics struct {
	reads, failures, told                      prometheus.Counter
	lastSuccess, staleAfter, facts, badEntries prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_identity_source_" + name, Help: help}, []string{"source"})
	}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "postern_identity_source_" + name, Help: help}, []string{"source"})
	}
	m := &metrics{
		reads:       counter("reads_total", "Reads of an identity source that were begun, by source."),
		failures:    counter("failures_total", "Reads of an identity source that failed or were not whole, by source; they end no fact."),
		told:        counter("facts_told_total", "Facts that an identity source told: begun, ended or extended."),
		lastSuccess: gauge("last_success_timestamp_seconds", "When the last whole read of an identity source began."),
		staleAfter:  gauge("stale_after_seconds", "After how long without a whole read what an identity source said is unverified; 0 is never."),
		facts:       gauge("facts", "Facts that an identity source holds and that have not been ended."),
		badEntries:  gauge("bad_entries", "Entries (rows, leases, items) that could not be read, of the last whole read."),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_identity_session_events_total",
			Help: "Session events by source and outcome: taken, unpaired (an end whose beginning is not known), full (dropped for want of room), invalid."}, []string{"source", "outcome"}),
		open:      gauge("sessions", "Sessions that an identity source holds, with those that ended lately."),
		hostsFull: counter("hosts_dropped_total", "Facts about where hosts are that were dropped for want of room."),
		reg:       reg,
	}
	if reg == nil {
		return m, nil
	}
	all := m.collectors()
	for i, c := range all {
		if err := reg.Register(c); err != nil {
			unregister(reg, all[:i])
			return nil, fmt.Errorf("metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.reads, m.failures, m.told, m.lastSuccess, m.staleAfter, m.facts, m.badEntries, m.events, m.open, m.hostsFull}
}

// unregister takes the metrics back.
func (m *metrics) unregister() { unregister(m.reg, m.collectors()) }

func unregister(reg prometheus.Registerer, collectors []prometheus.Collector) {
	if reg == nil {
		return
	}
	for _, c := range collectors {
		reg.Unregister(c)
	}
}

// source is what one source counts on.
func (m *metrics) source(name string) *sourceMetrics {
	if m == nil {
		m, _ = newMetrics(nil) // without a registry nothing can go wrong
	}
	return &sourceMetrics{
		reads: m.reads.WithLabelValues(name), failures: m.failures.WithLabelValues(name), told: m.told.WithLabelValues(name),
		lastSuccess: m.lastSuccess.WithLabelValues(name), staleAfter: m.staleAfter.WithLabelValues(name),
		facts: m.facts.WithLabelValues(name), badEntries: m.badEntries.WithLabelValues(name),
	}
}

// sessionOutcome is what became of an event.
type sessionOutcome uint8

const (
	sessionTaken sessionOutcome = iota
	sessionUnpaired
	sessionFull
	sessionInvalid
)

var sessionOutcomeTexts = [...]string{"taken", "unpaired", "full", "invalid"}

// sessionMetrics are those of a source of sessions.
type sessionMetrics struct {
	*sourceMetrics
	events       [len(sessionOutcomeTexts)]prometheus.Counter
	open         prometheus.Gauge
	hostsDropped prometheus.Counter
}

// sessions is what a source of sessions counts on.
func (m *metrics) sessions(name string) *sessionMetrics {
	if m == nil {
		m, _ = newMetrics(nil) // without a registry nothing can go wrong
	}
	out := &sessionMetrics{sourceMetrics: m.source(name), open: m.open.WithLabelValues(name), hostsDropped: m.hostsFull.WithLabelValues(name)}
	for i, text := range sessionOutcomeTexts {
		out.events[i] = m.events.WithLabelValues(name, text)
	}
	return out
}
