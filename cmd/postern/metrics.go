package main

import (
	"cmp"
	"slices"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/policy"
)

// namesCollector shows how full the table of names is.
type namesCollector struct {
	names          *flow.Names
	held, overflow *prometheus.Desc
}

func newNamesCollector(names *flow.Names) *namesCollector {
	return &namesCollector{
		names: names,
		held: prometheus.NewDesc("postern_names",
			"Names held, of flows, identities and policy, of at most 1,048,576, another 262,144 of identities and 65,536 of policy. They are held until the process ends.", nil, nil),
		overflow: prometheus.NewDesc("postern_names_overflow_total",
			"Times that a name no longer fitted; it reads (too many names), is not known to policy, and the flow is marked names_full.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *namesCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.held
	ch <- c.overflow
}

// Collect implements prometheus.Collector.
func (c *namesCollector) Collect(ch chan<- prometheus.Metric) {
	held, overflow := c.names.Len()
	ch <- prometheus.MustNewConstMetric(c.held, prometheus.GaugeValue, float64(held))
	ch <- prometheus.MustNewConstMetric(c.overflow, prometheus.CounterValue, float64(overflow))
}

// ledgerCollector shows the ledgers as metrics, taking stock at each scrape.
type ledgerCollector struct {
	take      func() flow.Ledger
	datagrams *prometheus.Desc
	lines     *prometheus.Desc
	records   *prometheus.Desc
	beside    *prometheus.Desc
	closes    *prometheus.Desc
}

func newLedgerCollector(take func() flow.Ledger) *ledgerCollector {
	return &ledgerCollector{
		take: take,
		datagrams: prometheus.NewDesc("postern_ledger_datagrams",
			"Datagrams by exporter and term of the ledger: received = decoded + rejected + parked + queued. Rejected ones carry their reason.",
			[]string{"exporter", "term", "reason"}, nil),
		lines: prometheus.NewDesc("postern_ledger_lines",
			"Lines of logs by who sent them (:: is no host) and term of the ledger: received = read + not_flow + rejected + queued + lost.",
			[]string{"exporter", "term"}, nil),
		records: prometheus.NewDesc("postern_ledger_records",
			"Flow records by exporter and term of the ledger: decoded = written + duplicate + rejected + in_flight. Rejected ones carry their reason.",
			[]string{"exporter", "term", "reason"}, nil),
		beside: prometheus.NewDesc("postern_exporter_events",
			"What stands beside the ledger, by exporter: templates, options, counters, gaps (estimate of what its sequence numbers skipped), reordered, restarts, sets_parked, sets_skipped.",
			[]string{"exporter", "kind"}, nil),
		closes: prometheus.NewDesc("postern_ledger_closes",
			"1 if all ledgers of every exporter add up, 0 if something was lost without being counted.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *ledgerCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.datagrams
	ch <- c.lines
	ch <- c.records
	ch <- c.beside
	ch <- c.closes
}

// Collect implements prometheus.Collector.
func (c *ledgerCollector) Collect(ch chan<- prometheus.Metric) {
	l := c.take()
	closes := 1.0
	if l.Check() != nil {
		closes = 0
	}
	ch <- prometheus.MustNewConstMetric(c.closes, prometheus.GaugeValue, closes)
	for _, exporter := range l.Exporters() {
		a, e := l[exporter], exporter.String()
		gauge := func(d *prometheus.Desc, v uint64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), append([]string{e}, labels...)...)
		}
		gauge(c.datagrams, a.Datagrams.Received, "received", "")
		gauge(c.datagrams, a.Datagrams.Decoded, "decoded", "")
		gauge(c.datagrams, a.Datagrams.Parked, "parked", "")
		gauge(c.datagrams, a.Datagrams.Queued, "queued", "")
		if a.Lines.Received > 0 {
			for term, v := range map[string]uint64{"received": a.Lines.Received, "read": a.Lines.Read, "not_flow": a.Lines.NotFlow,
				"rejected": a.Lines.Rejected, "queued": a.Lines.Queued, "lost": a.Lines.Lost} {
				gauge(c.lines, v, term)
			}
		}
		gauge(c.records, a.Records.Decoded, "decoded", "")
		gauge(c.records, a.Records.Written, "written", "")
		gauge(c.records, a.Records.Duplicate, "duplicate", "")
		gauge(c.records, a.Records.InFlight, "in_flight", "")
		for _, r := range flow.Rejects() {
			if n := a.Datagrams.Rejected[r]; n > 0 {
				gauge(c.datagrams, n, "rejected", r.String())
			}
			if n := a.Records.Rejected[r]; n > 0 {
				gauge(c.records, n, "rejected", r.String())
			}
		}
		for kind, v := range map[string]uint64{"templates": a.Templates, "options": a.Options, "counters": a.Counters, "gaps": a.Gaps,
			"reordered": a.Reordered, "restarts": a.Restarts, "sets_parked": a.SetsParked, "sets_skipped": a.SetsSkipped} {
			gauge(c.beside, v, kind)
		}
	}
}

// tally counts judged flows: by verdict, and by the segment of the server, from
// which the share of flows in each stage follows. Written by one goroutine under
// the pipeline's gate.
type tally struct {
	verdicts [numReasons][numOutcomes]uint64
	segments []uint64 // by name of the server's segment; names are small numbers
}

const (
	numReasons  = int(flow.ReasonExpiryUncertain) + 1
	numOutcomes = int(flow.OutcomeAttempted) + 1
)

func (t *tally) add(b *flow.Batch) {
	for i := range b.Records {
		r := &b.Records[i]
		t.verdicts[r.Verdict.Reason][r.Verdict.Outcome]++
		_, segment := r.Segments()
		if int(segment) >= len(t.segments) {
			t.segments = append(t.segments, make([]uint64, int(segment)+1-len(t.segments))...)
		}
		t.segments[segment]++
	}
}

func (t *tally) merge(o tally) {
	for reason := range o.verdicts {
		for outcome, n := range o.verdicts[reason] {
			t.verdicts[reason][outcome] += n
		}
	}
	if n := len(o.segments); n > len(t.segments) {
		t.segments = append(t.segments, make([]uint64, n-len(t.segments))...)
	}
	for i, n := range o.segments {
		t.segments[i] += n
	}
}

// table renders the verdicts for people, the most frequent first.
func (t *tally) table() string {
	type row struct {
		n       uint64
		reason  flow.Reason
		outcome flow.Outcome
	}
	var rows []row
	for reason := range t.verdicts {
		for outcome, n := range t.verdicts[reason] {
			if n > 0 {
				rows = append(rows, row{n, flow.Reason(reason), flow.Outcome(outcome)})
			}
		}
	}
	slices.SortStableFunc(rows, func(a, b row) int { return cmp.Compare(b.n, a.n) })
	w := table.NewWriter()
	w.SetStyle(table.StyleLight)
	w.Style().Format.Header = text.FormatDefault
	w.AppendHeader(table.Row{"flows", "reason", "outcome"})
	for _, r := range rows {
		w.AppendRow(table.Row{r.n, r.reason, r.outcome})
	}
	return w.Render() + "\n"
}

// policyCollector shows how flows were judged and how much of the estate is under
// policy, which is what management reads.
type policyCollector struct {
	take      func() tally // a copy
	history   *policy.History
	flows     *prometheus.Desc
	staged    *prometheus.Desc
	workloads *prometheus.Desc
	addresses *prometheus.Desc
}

func newPolicyCollector(take func() tally, history *policy.History) *policyCollector {
	byStage := []string{"stage", "tier"}
	return &policyCollector{
		take: take, history: history,
		flows: prometheus.NewDesc("postern_flows_total", "Judged flows by reason and outcome.", []string{"reason", "outcome"}, nil),
		staged: prometheus.NewDesc("postern_policy_flows_total",
			"Judged flows by stage and tier of the server's segment, as the policy now in force has it; none is in no segment.", byStage, nil),
		workloads: prometheus.NewDesc("postern_policy_workloads", "Workloads in the inventory by stage and tier of their segment.", byStage, nil),
		addresses: prometheus.NewDesc("postern_policy_addresses", "IPv4 addresses of segments by stage and tier.", byStage, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *policyCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.flows
	ch <- c.staged
	ch <- c.workloads
	ch <- c.addresses
}

// Collect implements prometheus.Collector.
func (c *policyCollector) Collect(ch chan<- prometheus.Metric) {
	t := c.take()
	for reason := range t.verdicts {
		for outcome, n := range t.verdicts[reason] {
			if n > 0 {
				ch <- prometheus.MustNewConstMetric(c.flows, prometheus.CounterValue, float64(n),
					flow.Reason(reason).String(), flow.Outcome(outcome).String())
			}
		}
	}
	idx := c.history.Latest()
	if idx == nil {
		return
	}
	type key struct {
		stage policy.Stage
		tier  policy.Tier
	}
	flows := map[key]uint64{}
	for name, n := range t.segments {
		var k key
		if s := idx.Segment(flow.Name(name)); s != nil {
			k = key{s.Stage, s.Tier}
		}
		flows[k] += n
	}
	for k, n := range flows {
		ch <- prometheus.MustNewConstMetric(c.staged, prometheus.CounterValue, float64(n), k.stage.String(), k.tier.String())
	}
	for _, s := range idx.Shares() {
		stage, tier := s.Stage.String(), s.Tier.String()
		ch <- prometheus.MustNewConstMetric(c.workloads, prometheus.GaugeValue, float64(s.Workloads), stage, tier)
		ch <- prometheus.MustNewConstMetric(c.addresses, prometheus.GaugeValue, s.Addresses, stage, tier)
	}
}
