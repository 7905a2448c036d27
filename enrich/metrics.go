package enrich

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	received, sent prometheus.Counter
	oriented       *prometheus.CounterVec
	paired, alone  prometheus.Counter
	overflow       prometheus.Counter
	held           prometheus.Gauge

	// The orientations, resolved once.
	forward, reverse, open prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		received: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_enrich_received_records_total",
			Help: "Records that reached the stage."}),
		sent: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_enrich_sent_records_total",
			Help: "Records that left the stage, oriented and judged."}),
		oriented: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_enrich_oriented_records_total",
			Help: "Records that left the stage by orientation: forward (source is the client), reverse, open."}, []string{"orientation"}),
		paired: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_enrich_paired_records_total",
			Help: "Records that waited and met their other half."}),
		alone: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_enrich_unpaired_records_total",
			Help: "Records that waited in vain and were judged without their other half."}),
		overflow: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_enrich_pair_overflow_records_total",
			Help: "Records judged without their other half because no more may wait (enrich.maxHeld)."}),
		held: prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_enrich_held_records",
			Help: "Records waiting for their other half."}),
	}
	m.forward = m.oriented.WithLabelValues("forward")
	m.reverse = m.oriented.WithLabelValues("reverse")
	m.open = m.oriented.WithLabelValues("open")
	if reg != nil {
		reg.MustRegister(m.received, m.sent, m.oriented, m.paired, m.alone, m.overflow, m.held)
	}
	return m
}
