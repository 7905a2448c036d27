package enrich

import "github.com/prometheus/client_golang/prometheus"

type sessionsMetrics struct {
	received, written, superseded       prometheus.Counter
	late, apart, tooMany, evicted, more prometheus.Counter
	joined, offsets, forgotten          prometheus.Counter
	contradictions                      *prometheus.CounterVec
	held, unjoined, hosts, agents       prometheus.Gauge
}

func newSessionsMetrics(reg prometheus.Registerer) *sessionsMetrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_enrich_sessions_" + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_enrich_sessions_" + name, Help: help})
	}
	m := &sessionsMetrics{
		received:   counter("received_records_total", "Observations that reached the merging of sessions."),
		written:    counter("written_total", "Versions of sessions written."),
		superseded: counter("superseded_total", "Sessions written that turned out to be part of another."),
		late:       counter("late_records_total", "Observations kept out of sessions because they came too late (sessions.lateness), or a host's clock is ahead of receipt."),
		apart:      counter("apart_records_total", "Observations of no conversation: an address or the protocol is missing."),
		tooMany:    counter("conversation_overflow_records_total", "Observations kept out because too many sessions of one conversation are held; only forgers exceed that."),
		evicted:    counter("evicted_total", "Sessions written and forgotten before their time because no more are held (sessions.maxSessions)."),
		more:       counter("observer_overflow_total", "Observers beyond those that a session lists."),
		joined:     counter("joined_hosts_total", "Hosts' observations joined once the offset of the host's clock was known."),
		offsets:    counter("clock_offsets_total", "Times that sessions agreed on the offset of a host's clock."),
		forgotten:  counter("unjoined_overflow_total", "Hosts' observations no longer looked for because too many wait for a clock offset (sessions.maxUnjoined), or hosts not followed (sessions.maxHosts)."),
		contradictions: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_enrich_sessions_contradictions_total",
			Help: "Things that observers of one session told differently, by kind."}, []string{"kind"}),
		held:     gauge("held", "Sessions held."),
		unjoined: gauge("unjoined", "Hosts' observations that wait for a clock offset."),
		hosts:    gauge("host_clocks", "Host logs whose clocks are followed."),
		agents:   gauge("agents", "Addresses whose agents' reports are followed."),
	}
	if reg != nil {
		reg.MustRegister(m.received, m.written, m.superseded, m.late, m.apart, m.tooMany, m.evicted, m.more, m.joined, m.offsets,
			m.forgotten, m.contradictions, m.held, m.unjoined, m.hosts, m.agents)
	}
	return m
}
