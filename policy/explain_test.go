package policy

import (
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
)

// TestExplain holds the explanation people read, step by step.
func TestExplain(t *testing.T) {
	names := flow.NewNames(0)
	x := Compile(load(t, example(t)), names, DefaultConfig())
	c := Conversation{Client: Party{Addr: flow.MustParseAddr("10.50.3.3"), Identity: names.Intern("acme-support\x1b[2J")}, Server: Party{Addr: flow.MustParseAddr("10.20.0.11")},
		Start: at("2026-10-03T00:00:00Z"), Proto: 6, Port: 443, Known: KnownTuple}
	got := x.Explain(&c).String()
	version := names.Text(x.Version())
	want := `client   10.50.3.3, segment workstations, zone office, workload jump-3, role jump-host, identity acme-support�[2J, stage staged, tier normal
server   10.20.0.11, segment cardholder-data, zone pci, workload vault-1, app tokenization-vault, role api, env prod, stage enforced, tier crown-jewel
service  tcp/443
at       2026-10-03T00:00:00.000Z
policy   ` + version + `

  coverage: covered: the client is in workstations (staged), the server in cardholder-data (enforced)
  rule no-office-east-west (deny, staged): does not match: destination, service differ
  rule pay-to-vault (allow): does not match: source, identity differ
> default default:in:cardholder-data (denies): no rule decides, so the default does: it denies
> exception EX-2041 (valid): is implicated (out-of-scope): its scope does not match in identity
> result: out-of-scope by EX-2041, rule default:in:cardholder-data, failing in identity
`
	if d := gocmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	// The explanation's verdict is the judge's, and it names what decides.
	c.Client.Identity = names.Intern("acme-support")
	e := x.Explain(&c)
	var v flow.Verdict
	x.Judge(&c, &v)
	if e.Verdict != v {
		t.Errorf("explained %+v, judged %+v", e.Verdict, v)
	}
	if s := e.Steps[len(e.Steps)-2]; s.ID != "EX-2041" || !s.Decides || !strings.HasPrefix(s.Why, "waives the denial until 2026-10-09") {
		t.Errorf("the step of the exception is %+v", s)
	}
	// Every rule and exception is considered, whatever comes out.
	if len(e.Steps) != 1+2+1+1+1 {
		t.Errorf("%d steps", len(e.Steps))
	}
}

func TestShares(t *testing.T) {
	x := Compile(load(t, `postern: v1
segments:
  - {name: a, tier: crown-jewel, prefixes: [10.0.0.0/24, "2001:db8::/64"], stage: enforced}
  - {name: b, prefixes: [10.0.0.0/16], stage: observe}
  - {name: c, prefixes: [10.0.0.128/25], stage: enforced}
workloads:
  - {name: w1, addresses: [10.0.0.1, "2001:db8::1"]}
  - {name: w2, addresses: [10.0.0.2, 10.0.7.1]}
  - {name: w3, addresses: [192.168.0.1]}
`), flow.NewNames(0), DefaultConfig())
	want := []Share{{StageNone, TierNone, 1, 0}, {StageObserve, TierNormal, 0, 65536 - 256}, {StageObserve, TierCrownJewel, 1, 0},
		{StageEnforced, TierNormal, 0, 128}, {StageEnforced, TierCrownJewel, 1, 128}}
	if d := gocmp.Diff(want, x.Shares()); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}
