package policy

import (
	"fmt"
	"strings"
	"testing"
	"testing/fstest"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
)

const suppressionBase = `postern: v1
segments: [{name: s, zone: z, prefixes: [10.20.0.0/24], stage: enforced}]
rules: [{id: no-rdp, action: deny, from: {any: true}, to: {segment: s}}]
suppressions:
`

// suppressionText is a suppression that is in order, with lines put in the place of some
// of its own, by key.
func suppressionText(instead map[string]string) string {
	var b strings.Builder
	for i, line := range [][2]string{
		{"id", "SUP-1"}, {"detector", "policy-violation"},
		{"key", "{client: 10.50.1.23, server: 10.20.0.11, service: tcp/3389, rule: no-rdp}"},
		{"ticket", "CHG-1"}, {"owner", "soc"}, {"reason", "known backup"},
		{"requested", "{by: ana, at: 2026-10-01T09:00:00Z}"},
		{"approved", "[{by: raj, role: soc-lead, at: 2026-10-01T12:00:00Z}]"},
		{"notBefore", "2026-10-02T00:00:00Z"}, {"expires", "2026-10-16T00:00:00Z"},
	} {
		v, changed := instead[line[0]]
		if changed && v == "" {
			continue
		}
		if !changed {
			v = line[1]
		}
		lead := "  "
		if i == 0 {
			lead = "- "
		}
		fmt.Fprintf(&b, "%s%s: %s\n", lead, line[0], v)
	}
	for _, k := range keysOf(instead) {
		if !strings.Contains(b.String(), " "+k+": ") && instead[k] != "" {
			fmt.Fprintf(&b, "  %s: %s\n", k, instead[k])
		}
	}
	return b.String()
}

// TestSuppressionDiagnostics holds every complaint about a suppression: where it points,
// what is wrong and what would be right.
func TestSuppressionDiagnostics(t *testing.T) {
	for _, c := range []struct {
		what    string
		instead map[string]string
		more    string // further suppressions
		want    []string
	}{
		{what: "in order"},
		{what: "unknown key", instead: map[string]string{"detectr": "x"}, want: []string{`15:3: a suppression has no key "detectr"; did you mean "detector"?`}},
		{what: "unknown detector", instead: map[string]string{"detector": "policy-violations"}, want: []string{
			`6:13: detector cannot be "policy-violations"; did you mean "policy-violation"? It is one of ` + strings.Join(flow.FindingTypes(), ", ")}},
		{what: "unknown key of the key", instead: map[string]string{"key": "{clint: 10.50.1.23}"}, want: []string{`7:9: key has no key "clint"; did you mean "client"?`}},
		{what: "empty key", instead: map[string]string{"key": "{}"}, want: []string{
			`7:8: key is empty: nothing is suppressed everywhere; write what the finding says of itself; postern finding suppress ID drafts it`}},
		{what: "prefix", instead: map[string]string{"key": "{client: 10.0.0.0/8}"}, want: []string{
			`7:17: client "10.0.0.0/8" is more than one host; a suppression is of one key; write the one that the finding names, such as 10.50.1.23`}},
		{what: "several hosts", instead: map[string]string{"key": "{server: [10.0.0.1, 10.0.0.2]}"}, want: []string{`7:17: server is a list; write one value`}},
		{what: "any", instead: map[string]string{"key": "{server: any}"}, want: []string{
			`7:17: server "any" is more than one host; a suppression is of one key; write the one that the finding names, such as 10.50.1.23`}},
		{what: "rule and exception", instead: map[string]string{"key": "{client: 10.50.1.23, rule: no-rdp, exception: no-rdp}"}, want: []string{
			`7:43: key names a rule and an exception; keep the one that the finding is about`,
			`5:3: warning: suppression "SUP-1" is of exception "no-rdp", which is not declared; it may have been removed from the files; otherwise check the id`}},
		{what: "a subject", instead: map[string]string{"key": "{subject: \"ssh|jump-3\"}"}},
		{what: "a subject and more", instead: map[string]string{"key": "{client: 10.50.1.23, subject: ssh}"}, want: []string{
			`7:29: key has subject beside other keys; keep subject alone if the finding has one`}},
		{what: "a hostile subject", instead: map[string]string{"key": "{subject: \"a\\tb\"}"}, want: []string{
			`7:18: subject "a\tb" has control characters; write it as the finding has it`}},
		{what: "unknown rule", instead: map[string]string{"key": "{client: 10.50.1.23, rule: no-rpd}"}, want: []string{
			`5:3: warning: suppression "SUP-1" is of rule "no-rpd", which is not declared; did you mean "no-rdp"?`}},
		{what: "a default", instead: map[string]string{"key": "{client: 10.50.1.23, rule: \"default:in:s\"}"}},
		{what: "service", instead: map[string]string{"key": "{client: 10.50.1.23, service: tcp/99999}"}, want: []string{
			`7:38: "99999" is no port of "tcp/99999"; ports are 0 to 65535, write tcp/443, udp/5000-5100, icmp/echo, icmp/3/1, or a protocol number such as 47`}},
		{what: "critical", instead: map[string]string{"upTo": "critical"}, want: []string{
			`15:9: what is critical is never suppressed; write informational, low, medium, high`}},
		{what: "approved by its requester", instead: map[string]string{"approved": "[{by: \" Ana \", role: soc-lead, at: 2026-10-01T12:00:00Z}]"}, want: []string{
			`12:14: suppression "SUP-1" is approved by its own requester "ana"; have somebody else approve it`}},
		{what: "approved before the request", instead: map[string]string{"requested": "{by: ana, at: 2026-10-01T12:00:00.001Z}"}, want: []string{
			`12:14: suppression "SUP-1" was approved before it was requested; have it approved anew; an approval is of what was requested before`}},
		{what: "requested long ago", instead: map[string]string{"notBefore": "2026-11-01T00:00:00Z", "expires": "2026-11-16T00:00:00Z"}, want: []string{
			`13:3: suppression "SUP-1" begins more than 30 days after it was requested; request it when it is needed`}},
		{what: "unapproved", instead: map[string]string{"approved": "[]"}, want: []string{
			`5:3: warning: suppression "SUP-1" is not approved and does nothing yet; have somebody other than its requester approve it: approved: [{by: NAME, role: ROLE, at: TIME}]`}},
		{what: "nobody requested it", instead: map[string]string{"requested": ""}, want: []string{
			`5:3: suppression "SUP-1" has no requested; add requested:`,
			`5:3: suppression "SUP-1" is approved but does not say who requested it; add requested: {by: NAME, at: TIME}; nobody approves what they asked for`}},
		{what: "no end", instead: map[string]string{"expires": ""}, want: []string{`5:3: suppression "SUP-1" has no expires; add expires:`}},
		{what: "ends before it begins", instead: map[string]string{"expires": "2026-10-02T00:00:00Z"}, want: []string{
			`14:3: suppression "SUP-1" expires before it begins; it holds over [notBefore, expires): let it end after it begins`}},
		{what: "30 days", instead: map[string]string{"expires": "2026-11-01T00:00:00Z"}},
		{what: "longer", instead: map[string]string{"expires": "2026-11-01T00:00:00.001Z"}, want: []string{
			`14:3: suppression "SUP-1" lasts longer than 30 days; let it end by 2026-11-01T00:00:00.000Z; what is still so then can be asked for anew`}},
		{what: "longer without notBefore", instead: map[string]string{"notBefore": "", "expires": "2026-11-01T00:00:00Z"}, want: []string{
			`13:3: suppression "SUP-1" lasts longer than 30 days; let it end by 2026-10-31T09:00:00.000Z; what is still so then can be asked for anew`}},
		{what: "twice", more: suppressionText(map[string]string{"key": "{client: 10.50.1.24}"}), want: []string{
			`15:3: the suppression "SUP-1" is declared twice; choose another id; the other is at p.yaml:5:3`}},
		{what: "overlapping", more: suppressionText(map[string]string{"id": "SUP-2", "notBefore": "2026-10-15T00:00:00Z", "expires": "2026-11-10T00:00:00Z"}), want: []string{
			`15:3: suppressions "SUP-1" and "SUP-2" are of the same finding at the same time; keep one of them, or let it begin when the other has expired; the other is at p.yaml:5:3`}},
		{what: "one after the other", more: suppressionText(map[string]string{"id": "SUP-2", "notBefore": "2026-10-16T00:00:00Z", "expires": "2026-11-10T00:00:00Z"})},
		{what: "no ticket", instead: map[string]string{"ticket": ""}, want: []string{`5:3: warning: suppression "SUP-1" has no ticket; add ticket:`}},
	} {
		t.Run(c.what, func(t *testing.T) {
			p, diags := Load(fstest.MapFS{"p.yaml": {Data: []byte(suppressionBase + suppressionText(c.instead) + c.more)}})
			var got []string
			for _, d := range diags {
				got = append(got, strings.TrimPrefix(strings.TrimPrefix(d.String(), "p.yaml:"), " "))
			}
			less := func(s []string) map[string]bool {
				m := map[string]bool{}
				for _, x := range s {
					m[x] = true
				}
				return m
			}
			if diff := gocmp.Diff(less(c.want), less(got)); diff != "" {
				t.Error(diff)
			}
			if (p == nil) != (diags.Err() != nil) {
				t.Errorf("policy %v with errors %v", p != nil, diags.Err())
			}
		})
	}
}

// TestSuppressionHolds holds when a suppression acts, and on what: never before its approval
// or notBefore, never from its expiry on, never on another detector or key, never on what
// is critical.
func TestSuppressionHolds(t *testing.T) {
	load := func(instead map[string]string) *Index {
		p, diags := Load(fstest.MapFS{"p.yaml": {Data: []byte(suppressionBase + suppressionText(instead))}})
		if p == nil {
			t.Fatal(diags)
		}
		return Compile(p, flow.NewNames(0), DefaultConfig())
	}
	key := FindingKey{Client: "10.50.1.23", Server: "10.20.0.11", Service: "tcp/3389", Rule: "no-rdp"}
	within := "2026-10-10T00:00:00Z"
	for _, c := range []struct {
		what    string
		instead map[string]string
		at      string
		typ     string
		key     func(*FindingKey)
		sev     flow.Severity
		want    bool
	}{
		{what: "holds", want: true},
		{what: "high, unsaid", sev: flow.High, want: true},
		{what: "critical", sev: flow.Critical},
		{what: "up to low, low", instead: map[string]string{"upTo": "low"}, sev: flow.Low, want: true},
		{what: "up to low, medium", instead: map[string]string{"upTo": "low"}, sev: flow.Medium},
		{what: "at notBefore", at: "2026-10-02T00:00:00Z", want: true},
		{what: "before notBefore", at: "2026-10-01T23:59:59.999Z"},
		{what: "at the end", at: "2026-10-16T00:00:00Z"},
		{what: "just before the end", at: "2026-10-15T23:59:59.999Z", want: true},
		{what: "unapproved", instead: map[string]string{"approved": "[]"}},
		{what: "approved later", instead: map[string]string{"approved": "[{by: raj, role: r, at: 2026-10-05T00:00:00Z}, {by: eva, role: r, at: 2026-10-10T00:00:00.001Z}]"}},
		{what: "approved in time", instead: map[string]string{"approved": "[{by: raj, role: r, at: 2026-10-10T00:00:00Z}]"}, want: true},
		{what: "another detector", typ: flow.FindingDenied + "x"},
		{what: "another detector that exists", typ: flow.FindingMisblocked},
		{what: "another client", key: func(k *FindingKey) { k.Client = "10.50.1.24" }},
		{what: "another server", key: func(k *FindingKey) { k.Server = "" }},
		{what: "another service", key: func(k *FindingKey) { k.Service = "tcp/3390" }},
		{what: "another rule", key: func(k *FindingKey) { k.Rule = "no-rdp2" }},
		{what: "an exception", key: func(k *FindingKey) { k.Rule, k.Exception = "", "no-rdp" }},
		{what: "spelled otherwise", instead: map[string]string{
			"key": `{client: "::ffff:10.50.1.23", server: "64:ff9b::10.20.0.11", service: tcp/3389-3389, rule: no-rdp}`}, want: true},
	} {
		t.Run(c.what, func(t *testing.T) {
			var at flow.Time
			if c.at == "" {
				c.at = within
			}
			if err := at.UnmarshalText([]byte(c.at)); err != nil {
				t.Fatal(err)
			}
			k, typ := key, flow.FindingDenied
			if c.key != nil {
				c.key(&k)
			}
			if c.typ != "" {
				typ = c.typ
			}
			s := load(c.instead).Suppression(at, typ, k, c.sev)
			if (s != nil) != c.want {
				t.Errorf("suppressed %v, want %v", s != nil, c.want)
			}
		})
	}
}

// TestSuppressionsChangeNoVerdict judges conversations with and without a suppression of
// what they give rise to: all is the same but the version's name. A policy that has none
// keeps the name that it had before the language knew of them.
func TestSuppressionsChangeNoVerdict(t *testing.T) {
	load := func(src string) *Policy {
		p, diags := Load(fstest.MapFS{"p.yaml": {Data: []byte(src)}})
		if p == nil {
			t.Fatal(diags)
		}
		return p
	}
	with, without := load(suppressionBase+suppressionText(nil)), load(suppressionBase)
	if with.Version() == without.Version() {
		t.Error("a suppression does not make another version")
	}
	if again, err := ParseSource(with.Source()); err != nil || again.Hash() != with.Hash() || len(again.Suppressions) != 1 {
		t.Errorf("read back: %v, %v", again, err)
	}
	const before = "da5810c7"
	if got := without.Version()[:8]; got != before {
		t.Errorf("the version of a policy without suppressions is %s, was %s", got, before)
	}
	names := flow.NewNames(0)
	a, b := Compile(with, names, DefaultConfig()), Compile(without, names, DefaultConfig())
	var at flow.Time
	if err := at.UnmarshalText([]byte("2026-10-10T00:00:00Z")); err != nil {
		t.Fatal(err)
	}
	for _, ends := range [][2]string{{"10.50.1.23", "10.20.0.11"}, {"10.20.0.11", "10.50.1.23"}, {"10.50.1.23", "10.50.1.24"}} {
		var c Conversation
		c.Client.Addr, _ = flow.ParseAddr(ends[0])
		c.Server.Addr, _ = flow.ParseAddr(ends[1])
		c.Known, c.Proto, c.Port = KnownClient|KnownServer|KnownProto|KnownPort, flow.ProtoTCP, 3389
		c.Start, c.End = at, at
		var v, w flow.Verdict
		a.Judge(&c, &v)
		b.Judge(&c, &w)
		v.PolicyVersion, w.PolicyVersion = 0, 0
		if diff := gocmp.Diff(w, v); diff != "" {
			t.Errorf("%v: %s", ends, diff)
		}
	}
}

// TestKeyOf takes of rule and exception what the finding's id is made of.
func TestKeyOf(t *testing.T) {
	f := flow.Finding{Type: flow.FindingExpired, Client: "10.0.0.1", Server: "10.0.0.2", Service: "tcp/443", Rule: "r", Exception: "E"}
	if got, want := KeyOf(&f), (FindingKey{Client: "10.0.0.1", Server: "10.0.0.2", Service: "tcp/443", Exception: "E"}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	f.Type = flow.FindingMisblocked
	if got := KeyOf(&f); got.Rule != "r" || got.Exception != "" {
		t.Errorf("%+v", got)
	}
	f.Subject = "ssh|jump-3"
	if got := KeyOf(&f); got != (FindingKey{Subject: "ssh|jump-3"}) {
		t.Errorf("%+v", got)
	}
}
