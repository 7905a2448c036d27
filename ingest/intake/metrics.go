package intake

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/postern/postern/ingest"
)

type metrics struct {
	linesTotal  *prometheus.CounterVec
	bytes       *prometheus.CounterVec
	requests    *prometheus.CounterVec
	generations prometheus.Counter
	connections prometheus.Gauge
	refused     prometheus.Counter
	files       prometheus.Gauge
	behind      prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		linesTotal: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_ingest_log_lines_total",
			Help: "Lines of logs, by format and by what became of them: read, not_flow, rejected."}, []string{"format", "outcome"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_ingest_log_bytes_total",
			Help: "Bytes of logs taken in, unpacked, by the way they came: http, file, syslog, stdin."}, []string{"way"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_ingest_log_requests_total",
			Help: "HTTP requests that brought logs, by the status they were answered with."}, []string{"code"}),
		generations: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_ingest_log_name_generations_total",
			Help: "Times that the names which logs brought filled their table, and an empty one took its place."}),
		connections: prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_ingest_syslog_connections",
			Help: "Open syslog connections."}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_ingest_syslog_refused_connections_total",
			Help: "Syslog connections refused because there were too many, the sender is not allowed, or TLS failed."}),
		files: prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_ingest_log_files",
			Help: "Files of logs that are followed."}),
		behind: prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_ingest_log_files_behind_bytes",
			Help: "Bytes of followed files that have not been taken in yet."}),
	}
	if reg != nil {
		reg.MustRegister(m.linesTotal, m.bytes, m.requests, m.generations, m.connections, m.refused, m.files, m.behind)
	}
	return m
}

func (m *metrics) lines(format string, c ingest.LineCounts) {
	if format == "" {
		format = "unknown"
	}
	for outcome, n := range map[string]uint32{"read": c.Read, "not_flow": c.NotFlow, "rejected": c.Rejected} {
		if n > 0 {
			m.linesTotal.WithLabelValues(format, outcome).Add(float64(n))
		}
	}
}
