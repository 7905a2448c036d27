package enrich

import (
	"net/netip"
	"testing"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/policy"
)

// waiving permits everything by an exception.
type waiving struct{ names *flow.Names }

func (p waiving) JudgeRecordAs(r *flow.Record, _ *policy.Who) bool {
	r.Verdict = flow.Verdict{Reason: flow.ReasonWaived, Expected: flow.ExpectAllow, Outcome: flow.OutcomePermitted, Exception: p.names.Intern("EX-1"), Rule: p.names.Intern("r"), Confidence: 90}
	return true
}

// TestNATPool credits no exception to what is behind a translation, unless the record says who
// that is (THREATS 13).
func TestNATPool(t *testing.T) {
	names := flow.NewNames(0)
	p, err := NewPairer(DefaultConfig(), waiving{names}, nil, names, nil)
	if err != nil {
		t.Fatal(err)
	}
	p.Translated(&SessionsConfig{NATPools: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/28")}})
	for _, c := range []struct {
		name   string
		src    string
		nat    string
		reason flow.Reason
	}{
		{"from inside", "10.0.0.5", "", flow.ReasonWaived},
		{"from the pool", "203.0.113.7", "", flow.ReasonUnverified},
		{"from inside, told with its translation", "10.0.0.5", "203.0.113.7", flow.ReasonWaived},
	} {
		r := half(1, c.src, 40000, "10.9.0.1", 443, 0, 0, flow.SYN|flow.ACK)
		if c.nat != "" {
			r.NATSrc, r.Has = flow.MustParseAddr(c.nat), r.Has|flow.HasNATSrc
		}
		out := flow.NewBatch(1, nil)
		p.Process(batchOf(r), out)
		p.Flush(out)
		v := out.Records[0].Verdict
		if v.Reason != c.reason || (v.Exception != flow.NoName) != (c.reason == flow.ReasonWaived) || v.Missing&flow.DimSource == 0 != (c.reason == flow.ReasonWaived) {
			t.Errorf("%s: %v by exception %q, missing %v", c.name, v.Reason, names.Text(v.Exception), v.Missing.Texts())
		}
	}
}
