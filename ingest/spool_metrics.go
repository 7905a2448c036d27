package ingest

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/postern/postern/flow"
)

type spoolMetrics struct {
	appended      prometheus.Counter
	appendedBytes prometheus.Counter
	lines         prometheus.Counter
	refused       *prometheus.CounterVec
	syncSeconds   prometheus.Histogram
	syncErrors    prometheus.Counter
	writeErrors   prometheus.Counter
	tornBytes     prometheus.Counter
	corruptBytes  prometheus.Counter
	lost          prometheus.Counter

	collectors []prometheus.Collector
}

func newSpoolMetrics(s *Spool) *spoolMetrics {
	m := &spoolMetrics{
		appended: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_ingest_spool_datagrams_total",
			Help: "Datagrams written to the spool."}),
		appendedBytes: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_ingest_spool_written_bytes_total",
			Help: "Bytes written to the spool, headers included."}),
		lines: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_ingest_spool_lines_total",
			Help: "Lines of logs whose flows were written to the spool."}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_ingest_spool_refused_datagrams_total",
			Help: "Datagrams refused before or by the spool, by reason."}, []string{"reason"}),
		syncSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "postern_ingest_spool_sync_seconds",
			Help: "Time to make a segment durable.", Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 5}}),
		syncErrors: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_ingest_spool_sync_errors_total",
			Help: "Attempts to make a segment durable that failed."}),
		writeErrors: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_ingest_spool_write_errors_total",
			Help: "Writes to the spool that failed; what they held was refused."}),
		tornBytes: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_ingest_spool_torn_bytes_total",
			Help: "Bytes of unfinished entries cut from segments at start."}),
		corruptBytes: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_ingest_spool_corrupt_bytes_total",
			Help: "Damaged bytes of segments that were passed over."}),
		lost: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_ingest_spool_lost_datagrams_total",
			Help: "Datagrams that were in the spool and could not be read back."}),
	}
	gauge := func(name, help string, f func(*Spool) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			s.mu.Lock()
			defer s.mu.Unlock()
			return f(s)
		})
	}
	m.collectors = []prometheus.Collector{m.appended, m.appendedBytes, m.lines, m.refused, m.syncSeconds, m.syncErrors,
		m.writeErrors, m.tornBytes, m.corruptBytes, m.lost,
		gauge("postern_ingest_spool_bytes", "Bytes of segments on disk.",
			func(s *Spool) float64 { return float64(s.bytes) }),
		gauge("postern_ingest_spool_limit_bytes", "Bytes of segments the spool may hold.",
			func(s *Spool) float64 { return float64(s.cfg.MaxBytes) }),
		gauge("postern_ingest_spool_segments", "Segments on disk, the open one included.",
			func(s *Spool) float64 { return float64(len(s.segments)) }),
		gauge("postern_ingest_spool_oldest_seconds", "Age of the oldest entry on disk.",
			func(s *Spool) float64 {
				for _, g := range s.segments {
					if g.oldest != 0 {
						return max(0, s.clock().Sub(g.oldest).Seconds())
					}
				}
				return 0
			}),
	}
	for _, r := range []flow.Reject{flow.RejectSpoolFull, flow.RejectTableFull, flow.RejectExporter, flow.RejectTooLarge} {
		m.refused.WithLabelValues(r.String())
	}
	return m
}

func (m *spoolMetrics) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	for _, c := range m.collectors {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}

func (m *spoolMetrics) unregister(r prometheus.Registerer) {
	if r == nil {
		return
	}
	for _, c := range m.collectors {
		r.Unregister(c)
	}
}
