package ingest

import "github.com/prometheus/client_golang/prometheus"

type listenerMetrics struct {
	datagrams prometheus.Counter
	bytes     prometheus.Counter
	refused   prometheus.Counter
	errors    prometheus.Counter
	drops     *prometheus.CounterVec
}

func newListenerMetrics(addr string) listenerMetrics {
	l := prometheus.Labels{"listen": addr}
	return listenerMetrics{
		datagrams: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_ingest_udp_datagrams_total", ConstLabels: l,
			Help: "Datagrams received, those refused included."}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_ingest_udp_bytes_total", ConstLabels: l,
			Help: "Payload bytes received."}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_ingest_udp_refused_datagrams_total", ConstLabels: l,
			Help: "Datagrams received and not taken: off the allow-list, too large, or no room in the spool."}),
		errors: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_ingest_udp_errors_total", ConstLabels: l,
			Help: "Reads of a socket that failed."}),
		drops: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_ingest_udp_kernel_drops_total", ConstLabels: l,
			Help: "Datagrams the kernel dropped because the socket's buffer was full."}, []string{"socket"}),
	}
}

func (m *listenerMetrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.datagrams, m.bytes, m.refused, m.errors, m.drops}
}

func (m *listenerMetrics) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	for _, c := range m.collectors() {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}

func (m *listenerMetrics) unregister(r prometheus.Registerer) {
	if r == nil {
		return
	}
	for _, c := range m.collectors() {
		r.Unregister(c)
	}
}
