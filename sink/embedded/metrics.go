package embedded

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	requests  *prometheus.CounterVec // kind, result
	seconds   *prometheus.HistogramVec
	refused   *prometheus.CounterVec // reason
	killed    prometheus.Counter
	rows      prometheus.Counter
	bytes     prometheus.Counter
	running   *prometheus.GaugeVec // kind
	disk      prometheus.Gauge
	diskLimit prometheus.Gauge
	memory    prometheus.Gauge
	memLimit  prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_embedded_requests_total",
			Help: "Statements that ended, by kind (query, insert, other) and result (ok, error)."}, []string{"kind", "result"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "postern_embedded_request_seconds",
			Help:    "Time from a statement's start in the engine to its end, by kind.",
			Buckets: []float64{.001, .003, .01, .03, .1, .3, 1, 3, 10, 30, 100}}, []string{"kind"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_embedded_refused_total",
			Help: "Requests refused before the engine saw them, by reason (auth, busy, disk, size, readonly, request)."}, []string{"reason"}),
		killed: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_embedded_killed_total",
			Help: "Statements killed because the client went away, the time ran out or the endpoint stopped."}),
		rows: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_embedded_written_rows_total",
			Help: "Rows written by inserts, dependent views included."}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_embedded_insert_bytes_total",
			Help: "Bytes of insert bodies after decompression."}),
		running: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "postern_embedded_running",
			Help: "Statements in the engine now, by kind."}, []string{"kind"}),
		disk: prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_embedded_disk_bytes",
			Help: "Disk space the data directory takes."}),
		diskLimit: prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_embedded_disk_limit_bytes",
			Help: "Configured cap of the data directory; 0 is none. Inserts are refused at the cap."}),
		memory: prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_embedded_memory_bytes",
			Help: "Memory the engine counts as its own."}),
		memLimit: prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_embedded_memory_limit_bytes",
			Help: "Cap of the engine's memory; a statement beyond it fails with code 241."}),
	}
	if reg != nil {
		reg.MustRegister(m.requests, m.seconds, m.refused, m.killed, m.rows, m.bytes, m.running, m.disk, m.diskLimit, m.memory, m.memLimit)
	}
	return m
}
