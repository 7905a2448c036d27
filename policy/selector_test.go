package policy

import (
	"testing"

	"github.com/postern/postern/flow"
)

// What a selector's text says is what the selector says: it is loaded again and compared.
func TestSelectorString(t *testing.T) {
	const head = `postern: v1
segments:
  - {name: vault, zone: pci, tier: crown-jewel, prefixes: [10.20.0.0/24]}
  - {name: office, zone: office, prefixes: [10.50.0.0/16]}
workloads:
  - {name: jump-3, app: "1e5", role: jump, env: "yes", addresses: [10.50.3.3], labels: {site: fra1, "on": "a, b"}}
  - {name: jump-4, app: tools, role: jump, env: prod, addresses: [10.50.3.4], labels: {site: "12"}}
rules:
  - {id: r, action: deny, to: {any: true}, from: `
	for text, want := range map[string]string{
		`{any: true}`:                                                   `{any: true}`,
		`{workload: jump-3}`:                                            `{workload: jump-3}`,
		`{segment: [vault, office]}`:                                    `{segment: [office, vault]}`,
		`{zone: pci, tier: [crown-jewel]}`:                              `{zone: pci, tier: crown-jewel}`,
		`{app: "1e5", env: "yes"}`:                                      `{app: "1e5", env: "yes"}`,
		`{cidr: [10.50.0.0/24, "::1/128"]}`:                             `{cidr: [10.50.0.0/24, "::1/128"]}`,
		`{labels: {site: [fra1, "12"], "on": "a, b"}}`:                  `{labels: {"on": "a, b", site: ["12", fra1]}}`,
		`{identity: 'CORP\ann "x"', group: admins, posture: managed}`:   `{identity: "CORP\\ann \"x\"", group: admins, posture: managed}`,
		`{process: "C:\\a b.exe", not: {workload: jump-4}}`:             `{process: "C:\\a b.exe", not: {workload: jump-4}}`,
		`{zone: office, not: [{workload: jump-4}, {posture: managed}]}`: `{zone: office, not: [{posture: managed}, {workload: jump-4}]}`,
	} {
		first := load(t, head+text+"}\n").Rules[0].From
		got := first.String()
		if got != want {
			t.Errorf("%s reads %s, want %s", text, got, want)
		}
		again := load(t, head+got+"}\n").Rules[0].From
		if compareSelector(first, again) != 0 {
			t.Errorf("%s read again reads %s", got, again.String())
		}
	}
	if got := (&Selector{}).String(); got != "{}" {
		t.Errorf("an empty selector reads %s", got)
	}
}

func TestGranted(t *testing.T) {
	p := load(t, example(t))
	names := flow.NewNames(0)
	x := Compile(p, names, DefaultConfig())
	for id, want := range map[string][2]uint64{"EX-2041": {1, 1}, "no-such": {}} {
		if pairs, ports := x.Granted(names.Intern(id)); pairs != want[0] || ports != want[1] {
			t.Errorf("%s grants %d pairs and %d ports, want %v", id, pairs, ports, want)
		}
	}
	wide := load(t, `postern: v1
segments:
  - {name: a, prefixes: [10.1.0.0/24]}
  - {name: b, prefixes: [10.2.0.0/30], stage: enforced}
  - {name: six, prefixes: ["2001:db8::/64"]}
exceptions:
  - {id: v4, from: {segment: a}, to: {segment: b}, services: [tcp/1-10, udp/53], requested: {by: x, at: 2026-01-01T00:00:00Z}, expires: 2027-01-01T00:00:00Z}
  - {id: v6, from: {segment: six}, to: {segment: [b, six]}, services: [tcp/22], requested: {by: x, at: 2026-01-01T00:00:00Z}, expires: 2027-01-01T00:00:00Z}
`)
	x = Compile(wide, names, DefaultConfig())
	for id, want := range map[string][2]uint64{"v4": {1024, 11}, "v6": {1<<64 - 1, 1}} {
		if pairs, ports := x.Granted(names.Intern(id)); pairs != want[0] || ports != want[1] {
			t.Errorf("%s grants %d pairs and %d ports, want %v", id, pairs, ports, want)
		}
	}
}
