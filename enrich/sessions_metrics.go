package enrich

import "github.com/prometheus/client_golang/prometheus"

type sessionsMetrics struct {
	received, written, superseded       prometheus.Counter
	late, apart, tooMany, evicted, more prometheus.Counter
	joined, offsets, forgotten, unasked prometheus.Counter
	strangers                           prometheus.Counter
	first, counted, takenBack           prometheus.Counter
	contradictions                      *prometheus.CounterVec
	held, unjoined, hosts, agents       prometheus.Gauge
	uncounted                           prometheus.Gauge
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
		unasked:    counter("untold_overflow_total", "Sessions that an end with an agent did not tell of and that are not looked at for it, because there were too many within ten minutes."),
		strangers:  counter("untold_strangers_total", "Sessions of hosts whose agent, if they have one, never told of anything in this partition, and that are not looked at for what it did not tell because there were too many within ten minutes: most of them where few hosts have agents."),
		first:      counter("first_written_total", "Sessions written for the first time, and those that a checkpoint handed over before they were counted. first_written + taken_back = counted + superseded + uncounted, always."),
		counted:    counter("counted_total", "Sessions counted in the hourly roll-up (edge_hours)."),
		takenBack:  counter("taken_back_total", "Sessions taken off the hourly roll-up because they turned out to be part of another."),
		contradictions: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_enrich_sessions_contradictions_total",
			Help: "Things that observers of one session told differently, by kind."}, []string{"kind"}),
		held:      gauge("held", "Sessions held."),
		unjoined:  gauge("unjoined", "Hosts' observations that wait for a clock offset."),
		hosts:     gauge("host_clocks", "Host logs whose clocks are followed."),
		agents:    gauge("agents", "Addresses whose agents' reports are followed."),
		uncounted: gauge("uncounted", "Sessions of which a version is written and that the hourly roll-up does not count yet: they are not over."),
	}
	if reg != nil {
		reg.MustRegister(m.received, m.written, m.superseded, m.late, m.apart, m.tooMany, m.evicted, m.more, m.joined, m.offsets,
			m.forgotten, m.unasked, m.strangers, m.contradictions, m.held, m.unjoined, m.hosts, m.agents, m.first, m.counted, m.takenBack, m.uncounted)
	}
	return m
}
