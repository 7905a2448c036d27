package policy

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
)

// TestDiagnostics holds every complaint of the loader: where it points, what it
// says is wrong and what it says would be right.
func TestDiagnostics(t *testing.T) {
	const seg = "postern: v1\nsegments: [{name: s, zone: z, prefixes: [10.0.0.0/24], stage: enforced}]\n"                                                            // lines 1 and 2
	const exc = "exceptions:\n- id: E\n  class: vendor\n  from: {cidr: 10.9.0.1}\n  to: {segment: s}\n  services: [tcp/443]\n  ticket: T\n  owner: o\n  reason: r\n" // to line 11
	const req = "  requested: {by: ana, at: 2026-01-01T00:00:00Z}\n"
	const end = "  expires: 2026-02-01T00:00:00Z\n"
	for _, c := range []struct {
		what, src string
		want      []string // one a line, file left out
	}{
		{"good", seg, nil},
		{"unknown section", seg + "rulez: []\n", []string{`3:1: the policy has no key "rulez"; did you mean "rules"?`}},
		{"unknown key", "postern: v1\nsegments:\n  - name: s\n    prefixs: [10.0.0.0/8]\n", []string{
			`3:5: a segment has no prefixes; add prefixes:`, `4:5: a segment has no key "prefixs"; did you mean "prefixes"?`}},
		{"unknown key in a selector", seg + "rules:\n- {id: r, action: deny, from: {segmnt: s}, to: {any: true}}\n", []string{`4:32: from has no key "segmnt"; did you mean "segment"?`}},
		{"version", "postern: v2\nsegments: [{name: s, prefixes: [10.0.0.0/24]}]\n", []string{`1:10: version "v2" of the language is not known here; write postern: v1`}},
		{"no version", "segments: [{name: s, prefixes: [10.0.0.0/24]}]\n", []string{`warning: no file says which version of the language it is written in; write postern: v1 in one of the files`}},
		{"says nothing", "postern: v1\n", []string{`the policy says nothing: no segments, no rules, no exceptions; declare segments and rules`}},
		{"not YAML", "postern: [v1\n", []string{`1:10: this is no YAML: sequence end token ']' not found; write plain YAML`}},
		{"a list", "- a\n", []string{`1:1: the policy is a list, not keys with values; write sections such as segments: and rules:`}},
		{"anchor", "segments: &a []\n", []string{`1:11: an anchor is not part of the language; write the value out where it is needed`}},
		{"alias", "segments: *a\n", []string{`1:11: an alias is not part of the language; write the value out`}},
		{"merge", "segments:\n- <<: {}\n", []string{`2:3: a merge key is not part of the language; write the keys out`}},
		{"tag", "segments: !!seq []\n", []string{`1:11: a tag is not part of the language; write the plain value`}},
		{"deep", "segments: " + strings.Repeat("[", 100) + "\n", []string{`1:34: nested deeper than 24; nothing in the language needs that`}},
		{"deep dashes", "segments:\n" + strings.Repeat("- ", 100) + "a\n", []string{`2:49: nested deeper than 24; nothing in the language needs that`}},
		{"tier", "postern: v1\nsegments: [{name: s, prefixes: [10.0.0.0/24], tier: crownjewel}]\n", []string{
			`2:53: tier cannot be "crownjewel"; did you mean "crown-jewel"? It is one of low, normal, high, crown-jewel`}},
		{"stage", "postern: v1\nsegments: [{name: s, prefixes: [10.0.0.0/24], stage: 7}]\n", []string{`2:54: stage cannot be "7"; write observe, staged, enforced`}},
		{"default", "postern: v1\nsegments: [{name: s, prefixes: [10.0.0.0/24], default: {in: dny}}]\n", []string{
			`2:61: default cannot be "dny"; did you mean "deny"? It is one of allow, deny`}},
		{"prefix", "postern: v1\nsegments: [{name: s, prefixes: [10.0.0/24]}]\n", []string{`2:33: a segment's prefix "10.0.0/24" is no prefix; write 10.20.0.0/24 or 2001:db8::/32`}},
		{"host bits", "postern: v1\nsegments: [{name: s, prefixes: [10.0.0.7/24]}]\n", []string{
			`2:33: warning: a segment's prefix "10.0.0.7/24" has bits set beyond its length; it is read as 10.0.0.0/24; write that, or 10.0.0.7/32 for the one address`}},
		{"same prefix twice", "postern: v1\nsegments:\n- {name: a, prefixes: [10.0.0.0/24]}\n- {name: b, prefixes: [\"::ffff:10.0.0.0/120\"]}\n", []string{
			`4:24: the prefix 10.0.0.0/24 is in segment "a" and in segment "b"; keep it in one; the other is at p.yaml:3:24`}},
		{"segment twice", seg + "---\nsegments: [{name: s, prefixes: [10.1.0.0/24]}]\n", []string{`4:12: the segment "s" is declared twice; put its prefixes together there: p.yaml:2:12`}},
		{"reserved segment", "postern: v1\nsegments: [{name: internet, prefixes: [10.0.0.0/24]}]\n", []string{
			`2:12: the segment name "internet" is reserved for whatever is in no segment and not private; choose another name`}},
		{"empty prefixes", "postern: v1\nsegments: [{name: s, prefixes: []}]\n", []string{`2:32: prefixes is an empty list; name at least one, or leave the key out`}},
		{"multicast segment", "postern: v1\nsegments: [{name: s, prefixes: [239.0.0.0/8]}]\n", []string{
			`2:33: warning: 239.0.0.0/8 is multicast, broadcast, link-local or unspecified and stays uncovered; leave it out; a rule's cidr can speak of such addresses`}},
		{"address in two workloads", seg + "workloads:\n- {name: a, addresses: [10.0.0.1]}\n- {name: b, addresses: [\"64:ff9b::10.0.0.1\"]}\n", []string{
			`5:25: the address 10.0.0.1 is in workload "a" and in workload "b"; an address is in one workload; the other is at p.yaml:4:25`}},
		{"workload prefix", seg + "workloads: [{name: a, addresses: [10.0.0.0/24]}]\n", []string{
			`3:35: "10.0.0.0/24" is no address; write one address such as 10.20.0.11; prefixes belong to segments`}},
		{"rule twice", seg + "rules:\n- {id: r, action: deny, from: {any: true}, to: {any: true}}\n- {id: r, action: deny, from: {any: true}, to: {any: true}}\n", []string{
			`5:3: the rule "r" is declared twice; choose another id; the other is at p.yaml:4:3`}},
		{"key twice", seg + "rules:\n- {id: r, id: q, action: deny, from: {any: true}, to: {any: true}}\n", []string{
			`4:11: this is no YAML: mapping key "id" already defined at [4:4]; write plain YAML`}},
		{"rule without from", seg + "rules:\n- {id: r, action: deny, to: {any: true}}\n", []string{`4:3: a rule has no from; add from:`}},
		{"empty from", seg + "rules:\n- {id: r, action: deny, from: {}, to: {any: true}}\n", []string{`4:31: from is empty; write from: {segment: NAME}, or {any: true} for everything`}},
		{"from: any", seg + "rules:\n- {id: r, action: deny, from: any, to: {any: true}}\n", []string{`4:31: from is the text "any", not keys with values; write from: {any: true}`}},
		{"empty services", seg + "rules:\n- {id: r, action: deny, from: {any: true}, to: {any: true}, services: []}\n", []string{
			`4:71: services is an empty list; name at least one, or leave the key out`}},
		{"unknown service", "services: {https: tcp/443}\n" + seg + "rules:\n- {id: r, action: deny, from: {any: true}, to: {any: true}, services: [htps]}\n", []string{
			`5:72: no service "htps" is declared; did you mean "https"? Otherwise write tcp/443, udp/5000-5100, icmp/echo, icmp/3/1, or a protocol number such as 47`}},
		{"bad port", seg + "rules:\n- {id: r, action: deny, from: {any: true}, to: {any: true}, services: [tcp/70000]}\n", []string{
			`4:72: "70000" is no port of "tcp/70000"; ports are 0 to 65535, write tcp/443, udp/5000-5100, icmp/echo, icmp/3/1, or a protocol number such as 47`}},
		{"backwards", seg + "rules:\n- {id: r, action: deny, from: {any: true}, to: {any: true}, services: [tcp/90-80]}\n", []string{
			`4:72: the range in "tcp/90-80" runs backwards; write tcp/80-90`}},
		{"icmp type", seg + "rules:\n- {id: r, action: deny, from: {any: true}, to: {any: true}, services: [icmp/ecko]}\n", []string{
			`4:72: "ecko" is no type of icmp; did you mean "echo"?, or a number from 0 to 255`}},
		{"unknown segment", seg + "rules:\n- {id: r, action: deny, from: {segment: t}, to: {zone: zz}}\n", []string{
			`4:41: no segment "t" is declared; did you mean "s"?`, `4:56: no zone "zz" is declared; did you mean "z"?`}},
		{"unknown app", seg + "rules:\n- {id: r, action: deny, from: {app: shop}, to: {any: true}}\n", []string{
			`4:37: warning: no workload here has app "shop"; it matches nothing until an inventory names one`}},
		{"cidr of a workload", seg + "workloads: [{name: w, addresses: [10.0.0.1]}]\nrules:\n- {id: r, action: deny, from: {cidr: 10.0.0.1/32}, to: {any: true}}\n", []string{
			`5:38: warning: cidr 10.0.0.1/32 is the workload "w"; name the workload, or its app and role: they outlive an address`}},
		{"not in not", seg + "rules:\n- {id: r, action: deny, from: {any: true, not: {not: {zone: z}}}, to: {any: true}}\n", []string{
			`4:54: not stands inside not; name what is meant under from`}},
		{"wildcard", seg + "rules:\n- {id: r, action: deny, from: {identity: \"*\"}, to: {any: true}}\n", []string{
			`4:42: the language has no wildcard; identity "*" means nothing; leave the key out where it does not matter`}},
		{"hostile text", seg + "rules:\n- {id: \"r\\n\\e[31m\", action: deny, from: {any: true}, to: {any: true}}\n", []string{
			`4:8: a rule's id "r\n\x1b[31m" has control characters; write it on one line without them`}},
		{"reserved id", seg + "rules:\n- {id: \"default:in:s\", action: deny, from: {any: true}, to: {any: true}}\n", []string{
			`4:8: a rule's id "default:in:s" is reserved for what a segment's default decides; choose another name`}},

		{"exception", seg + exc + req + end, nil},
		{"never ends", seg + exc + req, []string{`4:3: exception "E" has no expires; add expires:`}},
		{"bare exception", seg + "exceptions:\n- {id: E, from: {cidr: 10.9.0.1}, to: {segment: s}, services: [tcp/1], expires: 2026-02-01T00:00:00Z}\n", []string{
			`4:3: warning: exception "E" has no class; add class:`, `4:3: warning: exception "E" has no owner; add owner:`, `4:3: warning: exception "E" has no reason; add reason:`,
			`4:3: warning: exception "E" has no requested; add requested:`, `4:3: warning: exception "E" has no ticket; add ticket:`}},
		{"time without zone", seg + exc + req + "  expires: 2026-02-01T00:00:00\n", []string{
			`13:12: expires "2026-02-01T00:00:00" is no time; times carry a zone: write 2026-02-01T00:00:00Z`}},
		{"a date", seg + exc + req + "  expires: 2026-02-01\n", []string{`13:12: expires "2026-02-01" is no time; times carry a zone: write 2026-02-01T00:00:00Z`}},
		{"ends before it begins", seg + exc + req + end + "  notBefore: 2026-02-01T00:00:00Z\n", []string{
			`13:3: exception "E" expires before it begins; validity is [notBefore, expires): let it end after it begins`}},
		{"self-approval", seg + exc + req + end + "  approved: [{by: Ana , at: 2026-01-02T00:00:00Z}, {by: raj, at: 2026-01-02T00:00:00Z}]\n", []string{
			`14:14: exception "E" is approved by its own requester "ana"; have somebody else approve it`}},
		{"approved without a requester", seg + exc + end + "  approved: [{by: raj, at: 2026-01-02T00:00:00Z}]\n", []string{
			`4:3: warning: exception "E" has no requested; add requested:`,
			`4:3: exception "E" is approved but does not say who requested it; add requested: {by: NAME, at: TIME}; nobody approves what they asked for`}},
		{"overrides", seg + exc + req + end + "  overrides: [nope, never, yes-please]\nrules:\n- {id: never, action: override-deny, from: {any: true}, to: {any: true}}\n" +
			"- {id: yes-please, action: allow, from: {any: true}, to: {any: true}}\n- {id: no, action: deny, mode: staged, from: {any: true}, to: {any: true}}\n", []string{
			`14:15: no rule "nope" is declared; did you mean "no"?`,
			`14:21: the rule "never" is an override-deny; no exception beats an override-deny; name deny rules only`,
			`14:28: the rule "yes-please" allows; there is nothing to override; name the deny rules that stand in the way`}},
		{"class", seg + strings.Replace(exc, "vendor", "vender", 1) + req + end, []string{
			`5:10: class cannot be "vender"; did you mean "vendor"? It is one of opt-out, migration, vendor, break-glass`}},
	} {
		t.Run(c.what, func(t *testing.T) {
			p, diags := Load(fstest.MapFS{"p.yaml": {Data: []byte(c.src)}})
			var got []string
			for _, d := range diags {
				got = append(got, strings.TrimSpace(strings.TrimPrefix(strings.TrimPrefix(d.String(), "p.yaml:"), " ")))
			}
			if d := gocmp.Diff(c.want, got); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
			if (p == nil) != (diags.Err() != nil) {
				t.Errorf("there is a policy: %v; the error is %v", p != nil, diags.Err())
			}
		})
	}
}

// TestWildcardExceptions is THREATS 7 as far as the check goes.
func TestWildcardExceptions(t *testing.T) {
	for _, c := range []struct {
		from, to, services string
		refused            bool
	}{
		{"{cidr: 10.9.0.1}", "{segment: s}", "[tcp/443]", false},
		{"{any: true}", "{segment: s}", "[tcp/443]", true},
		{"{segment: s}", "{any: true}", "[tcp/443]", true},
		{"{any: true, identity: ana}", "{segment: s}", "[tcp/443]", false}, // any adds nothing beside an identity
		{"{not: {segment: s}}", "{segment: s}", "[tcp/443]", true},
		{"{cidr: 0.0.0.0/0}", "{segment: s}", "[tcp/443]", true},
		{"{cidr: '::/0'}", "{segment: s}", "[tcp/443]", true},
		{"{cidr: [0.0.0.0/1, 128.0.0.0/1]}", "{segment: s}", "[tcp/443]", true},
		{"{cidr: '::ffff:0:0/96'}", "{segment: s}", "[tcp/443]", true},
		{"{cidr: 10.0.0.0/8}", "{segment: s}", "[tcp/443]", false},
		{"{segment: s}", "{cidr: 0.0.0.0/0}", "[tcp/443]", true},
		{"{cidr: 10.9.0.1}", "{segment: s}", "", true},
		{"{cidr: 10.9.0.1}", "{segment: s}", "[tcp]", true},
		{"{cidr: 10.9.0.1}", "{segment: s}", "[tcp/1-65535]", true},
		{"{cidr: 10.9.0.1}", "{segment: s}", "[tcp/0-30000, tcp/30001-65535]", true},
		{"{cidr: 10.9.0.1, identity: scanner}", "{segment: s}", "", false},
		{"{cidr: 10.9.0.1, identity: '*'}", "{segment: s}", "[tcp/443]", true},
		{"{segment: internet}", "{segment: s}", "[tcp/443]", false},
	} {
		services := ""
		if c.services != "" {
			services = ", services: " + c.services
		}
		src := fmt.Sprintf(`postern: v1
segments: [{name: s, prefixes: [10.0.0.0/24], stage: enforced}]
exceptions: [{id: E, class: vendor, ticket: T, owner: o, reason: r, requested: {by: ana, at: 2026-01-01T00:00:00Z}, expires: 2026-02-01T00:00:00Z,
  from: %s, to: %s%s}]
`, c.from, c.to, services)
		p, diags := Load(fstest.MapFS{"p.yaml": {Data: []byte(src)}})
		if (p == nil) != c.refused {
			t.Errorf("from %s to %s services %s: refused %v\n%v", c.from, c.to, c.services, p == nil, diags)
		}
	}
}

// TestOrderMeansNothing shuffles files, file names, sections, items and list values:
// hash and verdicts stay (invariant 2, THREATS 5).
func TestOrderMeansNothing(t *testing.T) {
	segments := []string{"{name: a, zone: z, prefixes: [10.0.0.0/24, 10.0.1.0/24, '2001:db8::/64'], stage: enforced}",
		"{stage: enforced, prefixes: ['::ffff:10.1.0.0/112', 10.2.0.0/16], name: b, default: {out: deny}}", "{name: c, prefixes: [10.3.0.0/16]}"}
	workloads := []string{"{name: w1, app: x, addresses: [10.0.0.1, 10.0.0.2]}", "{name: w2, labels: {k: v, j: u}, addresses: [10.0.0.3]}"}
	rules := []string{"{id: r1, action: deny, from: {segment: [a, b]}, to: {segment: [c, a]}, services: [tcp/22, tcp/80-90, tcp/91]}",
		"{id: r2, action: deny, from: {any: true, not: [{app: x}, {zone: z}]}, to: {any: true}, services: [ssh]}", "{id: r3, action: allow, from: {labels: {j: [u, t], k: v}}, to: {cidr: [10.3.0.0/24, 10.3.1.0/24]}}"}
	var exceptions []string
	for i := range 4 {
		exceptions = append(exceptions, fmt.Sprintf("{id: E%d, class: vendor, ticket: T, owner: o, reason: r, overrides: [r1, r2], from: {workload: [w1, w2]}, to: {segment: c}, services: [tcp/22], requested: {by: ana, at: 2026-01-01T00:00:00Z}, "+
			"approved: [{by: raj, at: 2026-01-02T00:00:00Z}, {by: kim, at: 2026-01-01T00:00:00Z}], expires: 2026-02-01T00:00:00Z}", i))
	}
	shuffleList := func(g gen, s string) string { // [x, y] in some other order, where nothing nests
		for _, l := range []string{"a, b", "c, a", "tcp/22, tcp/80-90, tcp/91", "r1, r2", "w1, w2", "u, t", "10.3.0.0/24, 10.3.1.0/24", "10.0.0.1, 10.0.0.2",
			"{by: raj, at: 2026-01-02T00:00:00Z}, {by: kim, at: 2026-01-01T00:00:00Z}", "{app: x}, {zone: z}"} {
			parts := strings.Split(l, ", ")
			if strings.HasPrefix(l, "{by") {
				parts = []string{"{by: raj, at: 2026-01-02T00:00:00Z}", "{by: kim, at: 2026-01-01T00:00:00Z}"}
			}
			g.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
			s = strings.Replace(s, "["+l+"]", "["+strings.Join(parts, ", ")+"]", 1)
		}
		return s
	}
	var hash, verdicts string
	for seed := range uint64(50) {
		g := gen{rand.New(rand.NewPCG(seed, 1))}
		files := fstest.MapFS{"x.yaml": {Data: []byte("postern: v1\nservices: {ssh: tcp/22}\n")}, "notes.txt": {Data: []byte("not: [YAML")}, ".hidden/y.yaml": {Data: []byte("rules: broken")}}
		for name, items := range map[string][]string{"segments": segments, "workloads": workloads, "rules": rules, "exceptions": exceptions} {
			items = slices.Clone(items)
			g.Shuffle(len(items), func(i, j int) { items[i], items[j] = items[j], items[i] })
			cut := g.IntN(len(items) + 1)
			for _, part := range [][]string{items[:cut], items[cut:]} {
				if len(part) == 0 {
					continue
				}
				src := name + ":\n"
				for _, it := range part {
					src += "  # a comment\n  - " + shuffleList(g, it) + "\n"
				}
				files[fmt.Sprintf("%c/%d.%s", 'a'+rune(g.IntN(5)), g.Uint64(), pick(g, []string{"yaml", "yml"}))] = &fstest.MapFile{Data: []byte(src)}
			}
		}
		p, diags := Load(files)
		if err := diags.Err(); err != nil {
			t.Fatal(err)
		}
		names := flow.NewNames(0)
		for range g.IntN(50) {
			names.Intern(fmt.Sprint("other ", g.IntN(100))) // ids differ; verdicts must not
		}
		x := Compile(p, names, DefaultConfig())
		got := ""
		for _, src := range []string{"10.0.0.1", "10.0.0.3", "10.1.0.1", "10.3.0.7"} {
			for _, dst := range []string{"10.3.0.1", "10.0.0.2", "10.2.0.1"} {
				for _, port := range []uint16{22, 85} {
					c := Conversation{Client: Party{Addr: flow.MustParseAddr(src)}, Server: Party{Addr: flow.MustParseAddr(dst)}, Proto: 6, Port: port, Known: KnownTuple, Start: at("2026-01-10T00:00:00Z")}
					var v flow.Verdict
					x.Judge(&c, &v)
					got += fmt.Sprintf("%s %s %d: %+v\n", src, dst, port, asOracle(&v, names))
				}
			}
		}
		if hash == "" {
			hash, verdicts = p.Hash(), got
		}
		if p.Hash() != hash {
			t.Fatalf("seed %d: the hash shows how the files were written", seed)
		}
		if got != verdicts {
			t.Fatalf("seed %d: verdicts show how the files were written:\n%s", seed, gocmp.Diff(verdicts, got))
		}
	}
	changed, diags := Load(fstest.MapFS{"a.yaml": {Data: []byte("postern: v1\nsegments: [" + segments[0] + "]\n")}})
	if diags.Err() != nil || changed.Hash() == hash {
		t.Error("another policy has the same hash")
	}
}

// TestEmptyPolicyIsNone is THREATS 39: nothing to load is no policy, never an open one.
func TestEmptyPolicyIsNone(t *testing.T) {
	for what, fsys := range map[string]fstest.MapFS{
		"no folder content": {}, "no policy files": {"README.md": {Data: []byte("hello")}}, "an empty file": {"a.yaml": {}},
		"comments": {"a.yaml": {Data: []byte("# nothing yet\n")}}, "empty sections": {"a.yaml": {Data: []byte("postern: v1\nrules:\nsegments: []\n")}},
		"one bad file beside a good one": {"a.yaml": {Data: []byte(small)}, "b.yaml": {Data: []byte("rules: [")}},
		"not UTF-8":                      {"a.yaml": {Data: []byte("postern: v1 # \xff\n")}},
	} {
		if p, diags := Load(fsys); p != nil || diags.Err() == nil {
			t.Errorf("%s: a policy was loaded (%v)", what, diags)
		}
	}
}

func TestLargeFilesAreRefused(t *testing.T) {
	big := append([]byte(small), make([]byte, maxFileSize)...)
	if p, diags := Load(fstest.MapFS{"a.yaml": {Data: big}}); p != nil || !strings.Contains(diags.String(), "too large") {
		t.Errorf("loaded: %v", diags)
	}
	many := fstest.MapFS{}
	for i := range maxFiles + 1 {
		many[fmt.Sprintf("%d.yaml", i)] = &fstest.MapFile{Data: []byte("postern: v1\n")}
	}
	if p, diags := Load(many); p != nil || !strings.Contains(diags.String(), "too many") {
		t.Errorf("loaded: %v", diags)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add(example(f))
	f.Add(small)
	f.Add(withException("E", "2026-06-01T00:00:00Z"))
	f.Add(suppressionBase + suppressionText(map[string]string{"upTo": "low"}))
	f.Add("a: &a [*a]\nb: {<<: *a}\n? x\n: y\n--- !!map\n'k': |\n  t\n")
	f.Add("segments: [{name: s, prefixes: ['::ffff:10.0.0.1/1', 0.0.0.0/0]}]\nrules: [{id: r, action: deny, from: {tier: high, not: [{posture: x}]}, to: {labels: {a: [b]}}, services: [icmp/3/1, 99]}]")
	f.Add(strings.Repeat("- ", 50) + "{[{[")
	c := Conversation{Client: Party{Addr: flow.MustParseAddr("10.50.3.3")}, Server: Party{Addr: flow.MustParseAddr("10.20.0.11")}, Proto: 6, Port: 443, Known: KnownTuple, Start: 1}
	f.Fuzz(func(t *testing.T, src string) {
		p, diags := Load(fstest.MapFS{"p.yaml": {Data: []byte(src)}})
		if (p == nil) != (diags.Err() != nil) {
			t.Fatalf("there is a policy: %v; the error is %v", p != nil, diags.Err())
		}
		for _, d := range diags {
			if strings.ContainsAny(d.String(), "\n\r\x1b") {
				t.Errorf("a diagnostic breaks its line: %q", d)
			}
			if d.Wrong == "" || !d.Warning && d.Right == "" {
				t.Errorf("a diagnostic says too little: %q", d)
			}
		}
		if p == nil {
			return
		}
		again, err := ParseSource(p.Source())
		if err != nil || again.Hash() != p.Hash() {
			t.Fatalf("the source does not read back: %v", err)
		}
		if _, err := json.Marshal(p); err != nil {
			t.Fatal(err)
		}
		x := Compile(p, flow.NewNames(0), DefaultConfig())
		var v flow.Verdict
		x.Judge(&c, &v)
		if v.Reason == flow.ReasonNone {
			t.Error("judged without a reason")
		}
		_ = x.Explain(&c).String()
		x.Shares()
	})
}
