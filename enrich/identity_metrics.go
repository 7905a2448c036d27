package enrich

import "github.com/prometheus/client_golang/prometheus"

// took is what became of a fact.
type took int

const (
	tookNew     took = iota
	tookAgain        // told before, or an end put off in time
	tookInvalid      // no source, address, subject or time of knowing
	tookExpired      // it ended before what is kept
	tookFull         // no more may be held
	tookOutcomes
)

var tookTexts = [tookOutcomes]string{"new", "again", "invalid", "expired", "full"}

type identityMetrics struct {
	facts, addresses, subjects prometheus.Gauge
	took                       [tookOutcomes]prometheus.Counter
	expired, evicted           prometheus.Counter
	beatsDropped               prometheus.Counter
	groupsFull                 prometheus.Counter
	beats                      *prometheus.GaugeVec
}

func newIdentityMetrics(reg prometheus.Registerer) *identityMetrics {
	taken := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_enrich_identity_received_facts_total",
		Help: "Facts told by sources by outcome: new, again (nothing new in it), invalid, expired (ended before what is kept), full (identity.maxFacts)."}, []string{"outcome"})
	m := &identityMetrics{
		facts: prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_enrich_identity_facts",
			Help: "Facts held, earlier versions included."}),
		addresses: prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_enrich_identity_addresses",
			Help: "Addresses about which facts are held."}),
		subjects: prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_enrich_identity_subjects",
			Help: "Users and accounts about which facts are held."}),
		expired: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_enrich_identity_expired_facts_total",
			Help: "Facts dropped because they ended longer ago than identity.retention."}),
		evicted: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_enrich_identity_evicted_facts_total",
			Help: "Facts dropped before their time because no more may be held (identity.maxFacts, or 4,096 about one address)."}),
		beatsDropped: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_enrich_identity_dropped_heartbeats_total",
			Help: "Heartbeats dropped before their time because a source may have no more than 262,144."}),
		groupsFull: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_enrich_identity_cut_groups_total",
			Help: "Lists of groups cut because one fact may name no more than 1,024."}),
		beats: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "postern_enrich_identity_heartbeat_seconds",
			Help: "Time of the latest heartbeat of a source, in seconds since 1970."}, []string{"source"}),
	}
	for i, text := range tookTexts {
		m.took[i] = taken.WithLabelValues(text)
	}
	if reg != nil {
		reg.MustRegister(taken, m.facts, m.addresses, m.subjects, m.expired, m.evicted, m.beatsDropped, m.groupsFull, m.beats)
	}
	return m
}
