package detect

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	received, raised, late             prometheus.Counter
	created, events                    *prometheus.CounterVec
	evicted, untracked, unwatched      prometheus.Counter
	open, sessions, straddles, holding prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_detect_" + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_detect_" + name, Help: help})
	}
	m := &metrics{
		received: counter("received_records_total", "Judged records that reached the stage."),
		raised:   counter("raised_records_total", "Records that gave rise to a finding or added to one."),
		late:     counter("late_records_total", "Records that came later than the lateness; their sessions may be counted apart."),
		created: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_detect_findings_total",
			Help: "Findings created, by type."}, []string{"type"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_detect_events_total",
			Help: "Changes of findings told, by severity."}, []string{"severity"}),
		evicted:   counter("findings_evicted_total", "Findings forgotten before their time because no more may be held (detect.maxFindings)."),
		untracked: counter("sessions_untracked_total", "Records counted as a session each because no more sessions may be remembered (detect.maxSessions)."),
		unwatched: counter("straddles_unwatched_total", "Records at the end of their exception that no more could be watched for (detect.maxStraddles)."),
		open:      gauge("findings", "Findings held."),
		sessions:  gauge("sessions", "Sessions remembered for counting."),
		straddles: gauge("straddles", "Five-tuples watched across the end of their exception."),
		holding:   gauge("held_records", "Records waiting to be told from a session that outlived its exception."),
	}
	if reg != nil {
		reg.MustRegister(m.received, m.raised, m.late, m.created, m.events, m.evicted, m.untracked, m.unwatched,
			m.open, m.sessions, m.straddles, m.holding)
	}
	return m
}
