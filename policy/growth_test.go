package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/postern/postern/flow"
)

// growing is a policy whose exception A is from app x to role y; app and role are those of
// the second client and the second server.
func growing(app, role string, approved ...string) string {
	by := make([]string, len(approved))
	for i, t := range approved {
		by[i] = "{by: raj, at: " + t + "}"
	}
	return small + fmt.Sprintf(`workloads:
  - {name: c1, app: x, addresses: [10.50.1.1]}
  - {name: c2, app: %s, addresses: [10.50.1.2]}
  - {name: s1, role: y, addresses: [10.20.0.1]}
  - {name: s2, role: %s, addresses: [10.20.0.2]}
exceptions:
  - id: A
    class: vendor
    from: {app: x}
    to: {role: y}
    services: [tcp/443]
    ticket: T
    owner: o
    reason: r
    requested: {by: ana, at: 2026-01-01T00:00:00Z}
    approved: [%s]
    expires: 2026-12-01T00:00:00Z
`, app, role, strings.Join(by, ", "))
}

// TestScopeGrown: what came into a scope after the approval, in whatever order versions
// become known, across a removal, a revert and a new approval.
func TestScopeGrown(t *testing.T) {
	const jan, may = "2026-01-02T00:00:00Z", "2026-05-01T00:00:00Z"
	versions := []struct{ src, since string }{
		{growing("other", "other", jan), "2026-02-01T00:00:00Z"},
		{growing("x", "other", jan), "2026-03-01T00:00:00Z"},
		{growing("x", "y", jan), "2026-04-01T00:00:00Z"},
		{small, "2026-04-10T00:00:00Z"},                       // removed
		{growing("x", "y", jan), "2026-04-20T00:00:00Z"},      // and back: the approval is the old one
		{growing("x", "y", jan, may), "2026-05-02T00:00:00Z"}, // approved anew
		{growing("other", "y", jan, may), "2026-06-01T00:00:00Z"},
		{growing("x", "y", jan, may), "2026-07-01T00:00:00Z"}, // out and in again under one approval: never grown
	}
	type ends struct{ client, server string }
	const c1, c2, s1, s2 = "10.50.1.1", "10.50.1.2", "10.20.0.1", "10.20.0.2"
	const source, destination = flow.DimSource, flow.DimDestination
	for _, order := range [][]int{{0, 1, 2, 3, 4, 5, 6, 7}, {7, 6, 5, 4, 3, 2, 1, 0}, {4, 0, 6, 2, 7, 5, 1, 3}} {
		names := flow.NewNames(0)
		h := NewHistory(names, DefaultConfig())
		for _, i := range order {
			if err := h.Add(load(t, versions[i].src), at(versions[i].since)); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range []struct {
			at    string
			ends  ends
			grown flow.Dimensions
			since string
		}{
			{"2026-01-15T00:00:00Z", ends{c2, s2}, 0, ""}, // before any version
			{"2026-02-15T00:00:00Z", ends{c1, s1}, 0, ""},
			{"2026-02-15T00:00:00Z", ends{c2, s1}, 0, ""}, // outside still, which is not growth
			{"2026-03-15T00:00:00Z", ends{c1, s1}, 0, ""},
			{"2026-03-15T00:00:00Z", ends{c2, s1}, source, "2026-03-01T00:00:00Z"},
			{"2026-04-05T00:00:00Z", ends{c2, s1}, source, "2026-03-01T00:00:00Z"},
			{"2026-04-05T00:00:00Z", ends{c1, s2}, destination, "2026-04-01T00:00:00Z"},
			{"2026-04-05T00:00:00Z", ends{c2, s2}, source | destination, "2026-04-01T00:00:00Z"},
			{"2026-04-25T00:00:00Z", ends{c1, s2}, destination, "2026-04-01T00:00:00Z"},
			{"2026-05-15T00:00:00Z", ends{c2, s2}, 0, ""},
			{"2026-07-15T00:00:00Z", ends{c2, s2}, 0, ""},
			{"2026-07-15T00:00:00Z", ends{"10.50.9.9", s2}, 0, ""},
		} {
			grown, since := h.ScopeGrown(at(c.at), names.Intern("A"), flow.MustParseAddr(c.ends.client), flow.MustParseAddr(c.ends.server))
			want := flow.Time(0)
			if c.since != "" {
				want = at(c.since)
			}
			if grown != c.grown || since != want {
				t.Errorf("added in order %v: at %s %v: %v since %v, want %v since %q", order, c.at, c.ends, grown.Texts(), since, c.grown.Texts(), c.since)
			}
		}
		if grown, _ := h.ScopeGrown(at("2026-03-15T00:00:00Z"), names.Intern("nobody"), flow.MustParseAddr(c2), flow.MustParseAddr(s1)); grown != 0 {
			t.Errorf("an exception that does not exist has grown: %v", grown.Texts())
		}
		// What came in before the oldest version that is kept is no longer known.
		h.Forget(at("2026-03-15T00:00:00Z"))
		if grown, _ := h.ScopeGrown(at("2026-04-05T00:00:00Z"), names.Intern("A"), flow.MustParseAddr(c2), flow.MustParseAddr(s2)); !slices.Equal(grown.Texts(), []string{"destination"}) {
			t.Errorf("after Forget: %v", grown.Texts())
		}
		client, server, a, when := flow.MustParseAddr(c2), flow.MustParseAddr(s2), names.Intern("A"), at("2026-04-05T00:00:00Z")
		if n := testing.AllocsPerRun(100, func() { h.ScopeGrown(when, a, client, server) }); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}
