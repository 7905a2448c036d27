package main

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postern/postern/sink"
)

// judgmentMetrics are how findings were judged, as the store says every minute. Every
// process that shares a store says the same, so nobody sums them over processes.
type judgmentMetrics struct {
	judged, ratio *prometheus.GaugeVec
}

func newJudgmentMetrics(reg prometheus.Registerer) *judgmentMetrics {
	m := &judgmentMetrics{
		judged: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "postern_findings_judged",
			Help: "Findings in the store by type and by the judgment that counts (acknowledged, true, false-positive). The same in every process that shares the store."}, []string{"type", "judgment"}),
		ratio: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "postern_findings_true_ratio",
			Help: "Of the findings judged true or false-positive, the part that is true, 0 to 1, by type; absent where none is judged. The false part is 1 less it."}, []string{"type"}),
	}
	if reg != nil {
		reg.MustRegister(m.judged, m.ratio)
	}
	return m
}

// count asks the store; what fails is told, and the numbers stay as they were.
func (m *judgmentMetrics) count(ctx context.Context, db *sink.ClickHouse, log *slog.Logger) {
	counts, err := db.JudgmentCounts(ctx)
	if err != nil {
		if ctx.Err() == nil {
			log.Warn("judgments of findings cannot be counted; their metrics stay as they were", "error", err)
		}
		return
	}
	m.set(counts)
}

func (m *judgmentMetrics) set(counts []sink.JudgmentCount) {
	m.judged.Reset()
	m.ratio.Reset()
	type tally struct{ right, wrong uint64 }
	by := map[string]tally{}
	for _, c := range counts {
		m.judged.WithLabelValues(c.Type, c.Judgment).Set(float64(c.Findings))
		t := by[c.Type]
		switch c.Judgment {
		case sink.JudgedTrue:
			t.right += c.Findings
		case sink.JudgedFalsePositive:
			t.wrong += c.Findings
		}
		by[c.Type] = t
	}
	for typ, t := range by {
		if n := t.right + t.wrong; n > 0 {
			m.ratio.WithLabelValues(typ).Set(float64(t.right) / float64(n))
		}
	}
}
