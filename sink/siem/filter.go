package siem

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/file"
	"github.com/expr-lang/expr/vm"

	"github.com/postern/postern/flow"
)

// FilterConfig says which findings a target is told; all that is given must hold.
type FilterConfig struct {
	// MinSeverity is the least severity that is told: informational, low, medium, high or critical.
	MinSeverity string `yaml:"minSeverity"`
	// Types are the types of finding that are told, see docs/detectors; all if empty.
	Types []string `yaml:"types"`
	// Owners are those whose rules and exceptions the findings are about, so that an application's team gets what concerns it; all if empty.
	Owners []string `yaml:"owners"`
	// Where is an expression that must hold, such as `severity >= high and dst_segment startsWith "pci"`; docs/siem.md lists its words.
	Where string `yaml:"where"`
}

// filter is a FilterConfig, compiled.
type filter struct {
	least  flow.Severity
	types  []string
	owners []string
	where  *vm.Program
}

// filterWords are what an expression speaks of: the finding's own fields under the names they have
// in JSON, the severities by rank, and lists of what stands in its ends.
type filterWords struct {
	Type       string   `expr:"type"`
	Severity   int      `expr:"severity"`
	Confidence float64  `expr:"confidence"`
	Count      int64    `expr:"count"`
	Revision   int64    `expr:"revision"`
	Title      string   `expr:"title"`
	Client     string   `expr:"client"`
	Server     string   `expr:"server"`
	Service    string   `expr:"service"`
	SrcSegment string   `expr:"src_segment"`
	DstSegment string   `expr:"dst_segment"`
	Observed   string   `expr:"observed"`
	Expected   string   `expr:"expected"`
	Reason     string   `expr:"reason"`
	Outcome    string   `expr:"outcome"`
	Failed     []string `expr:"failed"`
	Missing    []string `expr:"missing"`
	Rule       string   `expr:"rule"`
	Exception  string   `expr:"exception"`
	Ticket     string   `expr:"ticket"`
	Owner      string   `expr:"owner"`
	Requester  string   `expr:"requester"`
	Approver   string   `expr:"approver"`
	Techniques []string `expr:"techniques"`
	Subject    string   `expr:"subject"`
	Score      float64  `expr:"score"`
	Exporters  []string `expr:"exporters"`
	Observers  []string `expr:"observers"`
	Workloads  []string `expr:"workloads"`
	Identities []string `expr:"identities"`
	Hosts      []string `expr:"hosts"`
	Edges      int      `expr:"edges_total"`

	Informational int `expr:"informational"`
	Low           int `expr:"low"`
	Medium        int `expr:"medium"`
	High          int `expr:"high"`
	Critical      int `expr:"critical"`
}

func thatOf(f *flow.Finding) filterWords {
	w := filterWords{
		Type: f.Type, Severity: int(f.Severity), Confidence: f.Confidence, Count: f.Count, Revision: int64(f.Revision), Title: f.Title,
		Client: f.Client, Server: f.Server, Service: f.Service, SrcSegment: f.SrcSegment, DstSegment: f.DstSegment,
		Observed: f.Observed, Expected: f.Expected, Reason: f.Reason, Outcome: f.Outcome, Failed: f.Failed, Missing: f.Missing,
		Rule: f.Rule, Exception: f.Exception, Ticket: f.Ticket, Owner: f.Owner, Requester: f.Requester, Approver: f.Approver,
		Techniques: f.Techniques, Subject: f.Subject, Score: f.Score, Exporters: f.Exporters, Observers: f.Observers, Edges: f.EdgesTotal,
		Informational: int(flow.Informational), Low: int(flow.Low), Medium: int(flow.Medium), High: int(flow.High), Critical: int(flow.Critical),
	}
	known := func(list *[]string, s string) {
		if s != "" && !slices.Contains(*list, s) {
			*list = append(*list, s)
		}
	}
	for _, e := range f.Ends {
		known(&w.Workloads, e.Workload)
		known(&w.Identities, e.Identity)
		known(&w.Hosts, e.Host)
	}
	return w
}

// compile makes the filter of c; errors begin with the key.
func (c *FilterConfig) compile() (*filter, error) {
	f := &filter{types: c.Types, owners: c.Owners}
	if err := f.least.UnmarshalText([]byte(c.MinSeverity)); err != nil {
		return nil, fmt.Errorf("minSeverity: %w", err)
	}
	for i, t := range c.Types {
		if !slices.Contains(flow.FindingTypes(), t) {
			return nil, fmt.Errorf("types[%d]: there is no finding %q; docs/detectors/README.md lists them", i, t)
		}
	}
	if c.Where == "" {
		return f, nil
	}
	var err error
	// now() would make of the same finding another answer at another time.
	if f.where, err = expr.Compile(c.Where, expr.Env(filterWords{}), expr.AsBool(), expr.DisableBuiltin("now"), expr.MaxNodes(500)); err != nil {
		if at, ok := errors.AsType[*file.Error](err); ok {
			return nil, fmt.Errorf("where: column %d of the expression: %s", at.Column+1, at.Message)
		}
		return nil, fmt.Errorf("where: %w", err)
	}
	return f, nil
}

// wants says whether fd passes. An expression that cannot be worked out for a finding lets it
// through: too much is told rather than too little.
func (f *filter) wants(fd *flow.Finding) bool {
	if fd.Severity < f.least || len(f.types) > 0 && !slices.Contains(f.types, fd.Type) ||
		len(f.owners) > 0 && !slices.ContainsFunc(f.owners, func(o string) bool { return strings.EqualFold(o, fd.Owner) }) {
		return false
	}
	if f.where == nil {
		return true
	}
	out, err := expr.Run(f.where, thatOf(fd))
	yes, ok := out.(bool)
	return err != nil || !ok || yes
}
