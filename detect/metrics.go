package detect

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// bookMetrics are those of findings held.
type bookMetrics struct {
	raised             prometheus.Counter
	created, events    *prometheus.CounterVec
	suppressed         *prometheus.CounterVec
	grouped            *prometheus.CounterVec
	evicted, untracked prometheus.Counter
	open, sessions     prometheus.Gauge
}

func (m *bookMetrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.raised, m.created, m.events, m.suppressed, m.grouped, m.evicted, m.untracked, m.open, m.sessions}
}

// newBookMetrics makes the metrics of one book; the stage goes into their names.
func newBookMetrics(stage, raisedBy string) bookMetrics {
	prefix := "postern_" + stage + "_"
	return bookMetrics{
		raised: prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + "raised_" + raisedBy + "s_total",
			Help: "How many of the " + raisedBy + "s taken in gave rise to a finding or added to one."}),
		created: prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "findings_total",
			Help: "Findings created, by type."}, []string{"type"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "events_total",
			Help: "Changes of findings told, by severity."}, []string{"severity"}),
		suppressed: prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "suppressed_events_total",
			Help: "Changes of findings that a suppression held back, by type."}, []string{"type"}),
		grouped: prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "grouped_findings_total",
			Help: "Findings that were stored and not told by themselves because their source gave rise to too many (detect.tellEach), by type."}, []string{"type"}),
		evicted: prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + "findings_evicted_total",
			Help: "Findings forgotten before their time because no more may be held (detect.maxFindings)."}),
		untracked: prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + "sessions_untracked_total",
			Help: "Records counted as a session each because no more sessions may be remembered (detect.maxSessions)."}),
		open:     prometheus.NewGauge(prometheus.GaugeOpts{Name: prefix + "findings", Help: "Findings held."}),
		sessions: prometheus.NewGauge(prometheus.GaugeOpts{Name: prefix + "sessions", Help: "Sessions remembered for counting."}),
	}
}

type metrics struct {
	bookMetrics
	received, late, unwatched prometheus.Counter
	straddles, holding        prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_detect_" + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_detect_" + name, Help: help})
	}
	m := &metrics{
		bookMetrics: newBookMetrics("detect", "record"),
		received:    counter("received_records_total", "Judged records that reached the stage."),
		late:        counter("late_records_total", "Records that came later than the lateness; their sessions may be counted apart."),
		unwatched:   counter("straddles_unwatched_total", "Records at the end of their exception that no more could be watched for (detect.maxStraddles)."),
		straddles:   gauge("straddles", "Five-tuples watched across the end of their exception."),
		holding:     gauge("held_records", "Records waiting to be told from a session that outlived its exception."),
	}
	if reg != nil {
		reg.MustRegister(append(m.all(), m.received, m.late, m.unwatched, m.straddles, m.holding)...)
	}
	return m
}

type behaviourMetrics struct {
	bookMetrics
	scansForgotten, undenied     prometheus.Counter
	received, forced, unfollowed prometheus.Counter
	untold, ungrouped, unflooded prometheus.Counter
	unseen, unseenDropped        prometheus.Counter
	hosts, forgotten, waiting    prometheus.Gauge
	behind                       []prometheus.Gauge // by input; none of a single one
	chain                        chainMetrics
	spotsMetrics
}

func newBehaviourMetrics(inputs int, reg prometheus.Registerer) *behaviourMetrics {
	m := &behaviourMetrics{
		bookMetrics: newBookMetrics("behaviour", "contact"),
		received:    prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_behaviour_received_contacts_total", Help: "Contacts that reached the stage."}),
		untold:      prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_behaviour_new_edges_dropped_total", Help: "First contacts of a pair that could not be followed because too many others are."}),
		ungrouped:   prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_behaviour_groups_dropped_total", Help: "Unusual contacts that could not be counted for their part of the network because too many others are."}),
		chain:       newChainMetrics(),
		unflooded: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_behaviour_floods_uncounted_total",
			Help: "Findings that could not be counted for the flood that they are part of because too many others are."}),
		unseen: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_behaviour_untold_sessions_total",
			Help: "Sessions looked at for whether an end's own agent, telling of others then, hid them."}),
		unseenDropped: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_behaviour_untold_sessions_dropped_total",
			Help: "Sessions not looked at for that because too many waited for what agents told after them."}),
		hosts:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_behaviour_hosts", Help: "Hosts followed."}),
		forgotten: prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_behaviour_hosts_forgotten", Help: "Hosts forgotten before their time because no more may be followed (detect.behaviour.maxHosts)."}),
		scansForgotten: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_behaviour_scan_attempts_forgotten_total",
			Help: "Failed first contacts forgotten before their time because no more may be remembered (detect.behaviour.maxHosts)."}),
		undenied: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_behaviour_denied_sources_forgotten_total",
			Help: "Sources of denied sessions forgotten before their time because no more may be remembered."}),
		forced: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_behaviour_unwaited_total",
			Help: "Times that contacts were looked at before all partitions were as far, because too many waited. Alert on any: see postern_behaviour_lag."}),
		unfollowed: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_behaviour_exceptions_unfollowed_total", Help: "Uses of exceptions that were not followed because too many exceptions are in use."}),
		waiting:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_behaviour_waiting_contacts", Help: "Contacts that wait for partitions which are behind."}),
	}
	m.spotsMetrics = newSpotsMetrics()
	behind := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "postern_behaviour_lag",
		Help: "Seconds by which each partition of the flows topic is behind the foremost in what it told of contacts; detectors of behaviour wait for the last."}, []string{"input"})
	if inputs > 1 {
		for i := range inputs {
			m.behind = append(m.behind, behind.WithLabelValues(strconv.Itoa(i)))
		}
	}
	if reg != nil {
		reg.MustRegister(append(m.all(), m.scansForgotten, m.undenied, m.unflooded, m.received, m.unfollowed, m.untold, m.ungrouped, m.unseen, m.unseenDropped, m.hosts, m.forgotten, m.forced, m.waiting, behind, m.chain.dropped, m.chain.held)...)
		reg.MustRegister(m.tellers, m.spots, m.unheard, m.spotsDropped, m.unruled)
	}
	return m
}

// spotsMetrics are those of blind spots and drift.
type spotsMetrics struct {
	tellers, spots                 prometheus.Gauge
	unheard, spotsDropped, unruled prometheus.Counter
}

func newSpotsMetrics() spotsMetrics {
	return spotsMetrics{
		tellers:      prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_behaviour_tellers", Help: "Exporters, observation domains, sensors and logs whose silence would be noticed."}),
		spots:        prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_behaviour_blind_spots", Help: "Blind spots remembered, those that are over included."}),
		unheard:      prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_behaviour_unheard_total", Help: "Minutes of exporters and of hosts whose silence would not be noticed because no more may be followed."}),
		spotsDropped: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_behaviour_blind_spots_dropped_total", Help: "Blind spots forgotten before their time because no more may be remembered."}),
		unruled:      prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_behaviour_rules_dropped_total", Help: "Ten minutes of a rule at a point of enforcement that drift was not looked for in because no more may be followed."}),
	}
}
