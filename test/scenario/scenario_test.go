package scenario

import (
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/fstest"
)

const company = `
policy
  postern: v1
  segments:
    - {name: vault, prefixes: [10.20.0.0/24], stage: enforced, default: deny}
    - {name: office, prefixes: [10.50.0.0/16]}
  workloads:
    - {name: jump-1, role: jump-host, addresses: [10.50.0.8]}
  rules:
    - {id: no-rdp, action: deny, from: {segment: office}, to: {segment: vault}, services: [tcp/3389]}
    - {id: web, action: allow, from: {segment: office}, to: {segment: vault}, services: [tcp/443]}
host laptop 10.50.0.7
host vault  10.20.0.1
host desks  10.50.1.1-5
`

func parse(t testing.TB, text string) *Scenario {
	t.Helper()
	s, err := Parse("x.txt", []byte(text), DefaultSettings(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// prove runs a scenario in every way and gives what was wrong, as text.
func prove(t testing.TB, text string) string {
	t.Helper()
	res, err := parse(t, text).Prove(Options{})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, p := range res.Problems {
		out = append(out, p.In("x.txt"))
	}
	return strings.Join(out, "\n")
}

// TestLanguage: scenarios that hold.
func TestLanguage(t *testing.T) {
	for name, text := range map[string]string{
		"sessions": `
session 2026-10-03T09:00:00Z 10m laptop > vault tcp/443                   => reason=permitted client=laptop
session +1m 5s laptop > vault tcp/3389 sent=2MB received=40kB user=ana    => reason=denied outcome=escaped bytes=2000000
session +1m 0s laptop > vault tcp/22 refused                              => outcome=attempted
session +1m 3s laptop > vault tcp/23 unanswered                           => outcome=attempted
session +1m 0s laptop > vault tcp/25 blocked                              => outcome=blocked
session +1m 2s laptop > vault tcp/3389 halves
finding service=tcp/3389 client=laptop count=2 severity>=medium edges.0.port=3389 edges.*.destination=vault edges_total<2 sentence~=ana
no finding service=tcp/22
no finding service=tcp/23
no finding service=tcp/25
`,
		"repeats": `
session 2026-10-03T09:00:00Z 1s desks > vault tcp/3389 every 8h times 4 jitter 10m
session 2026-10-05T00:00:00Z 1s laptop > 10.20.0.0/29 tcp/3389,22 one every 1h
flow 2026-10-05T00:00:00Z 1s laptop:50001 > vault:443 tcp both every 12h for 3d  => reason=permitted
segment
restart 2026-10-03T20:00:00Z
10 findings service=tcp/3389 client=desks count=2 first_seen<2026-10-05T00:00:00Z
6 findings service=tcp/3389 client=laptop count=1
any finding service=tcp/22
`,
		"out of order": `
shuffle 4s
session 2026-10-03T09:00:00Z 8h laptop > vault tcp/3389
session 2026-10-03T09:00:00Z 1s laptop > vault tcp/3389 every 1m times 100
finding count=101
`,
		"order that matters": `
shuffle none
flow 2026-10-03T09:00:00Z 1s laptop:50001 > vault:3389 tcp both late=3h
flow 2026-10-03T10:00:00Z 1s laptop:50002 > vault:3389 tcp both
tick 2026-10-03T10:30:00Z
finding count=2
`,
		"agents and logons": `
logon 2026-10-03T08:00:00Z ana laptop until 2026-10-03T12:00:00Z
session 2026-10-03T09:00:00Z 1s laptop > vault tcp/3389 by=router,client,server process=mstsc.exe  => src_identity=ana
session 2026-10-03T13:00:00Z 1s laptop > vault tcp/443  => src_identity=
finding count=1 sentence~="as ana"
`,
		"places and agents": `
host jump 10.50.0.8 segment office workload jump-1 agent
host box  10.60.0.1
silent jump since 2026-10-03T10:00:00Z until 2026-10-03T11:00:00Z
session 2026-10-03T09:00:00Z 1s jump > vault tcp/3389 user=ana  => src_identity=ana
session 2026-10-03T10:30:00Z 1s jump > vault tcp/3389
silent 192.0.2.1 since 2026-10-03T12:00:00Z
session 2026-10-03T12:30:00Z 1s jump > vault tcp/22
session 2026-10-03T12:30:00Z 1s box > vault tcp/22
finding service=tcp/3389 client=jump count=2
finding service=tcp/22 client=jump
`,
		"settings": `
config
  detect: {grace: 2m}
  sessions: {lateness: 5m}
session 2026-10-03T09:00:00Z 1s laptop > vault tcp/443
`,
	} {
		t.Run(name, func(t *testing.T) {
			if wrong := prove(t, company+text); wrong != "" {
				t.Error(wrong)
			}
		})
	}
}

// TestDocumentation: every example in the documentation is a scenario that holds.
func TestDocumentation(t *testing.T) {
	page, err := os.ReadFile("../../docs/scenarios.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for part := range strings.SplitSeq(string(page), "```scenario\n") {
		if n++; n == 1 {
			continue // before the first
		}
		text, _, _ := strings.Cut(part, "```")
		if wrong := prove(t, text); wrong != "" {
			t.Errorf("example %d: %s", n-1, wrong)
		}
	}
	if n < 4 {
		t.Errorf("%d examples were found, want 3 or more", n-1)
	}
	for _, o := range optionNames {
		if !strings.Contains(string(page), o+"=") {
			t.Errorf("the page does not speak of %s=", o)
		}
	}
}

// TestInclude: several scenarios share a network; what is wrong in it is said with its own file.
func TestInclude(t *testing.T) {
	const main = "include net/hosts.txt\nsession 2026-10-03T09:00:00Z 1s laptop > vault tcp/3389\nfinding client=laptop\n"
	read := func(text, hosts string) (*Scenario, error) {
		fsys := fstest.MapFS{"net/hosts.txt": {Data: []byte(hosts)}, "net/pol/p.yaml": {Data: []byte("postern: v1\nsegments:\n  - {name: vault, prefixes: [10.20.0.0/24], stage: enforced, default: deny}\n")}}
		return Parse("dir/x.txt", []byte(text), DefaultSettings(), func(folder string) fs.FS {
			sub, err := fs.Sub(fsys, folder)
			if err != nil {
				t.Fatal(err)
			}
			return sub
		})
	}
	s, err := read(main, "policy pol\nhost laptop 10.50.0.7\nhost vault 10.20.0.1 segment vault\n")
	if err != nil {
		t.Fatal(err)
	}
	res, err := s.Prove(Options{})
	if err != nil || len(res.Problems) > 0 {
		t.Fatal(err, res.Problems)
	}
	for _, c := range []struct{ text, hosts, want string }{
		{main, "policy pol\nhost laptop 10.50.0.\n", `dir/net/hosts.txt:2:13: "10.50.0." is no address`},
		{main, "include again.txt\n", "dir/net/hosts.txt:1:1: a file that is included includes another"},
		{"include none.txt", "", `dir/x.txt:1:9: "none.txt" cannot be read`},
		{"include", "", "dir/x.txt:1:1: one file is included by a line"},
	} {
		if _, err := read(c.text, c.hosts); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
	if s, err = read(main, "policy pol\nhost laptop 10.50.0.7\nhost vault 10.20.0.1 segment volt\n"); err != nil {
		t.Fatal(err)
	}
	if res, err = s.Run(Options{}); err != nil || len(res.Problems) != 1 || !strings.HasPrefix(res.Problems[0].In("dir/x.txt"), "dir/net/hosts.txt:3: ") {
		t.Errorf("%v, %+v", err, res)
	}
}

// TestProblems: what does not hold is said, with its line and what came instead.
func TestProblems(t *testing.T) {
	const base = "session 2026-10-03T09:00:00Z 1s laptop > vault tcp/3389"
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"another verdict", base + " => reason=waived\nany finding", []string{`x.txt:16: the flow is judged otherwise: reason is "denied", want "waived"`, "rule=no-rdp"}},
		{"a finding that nobody names", base, []string{"x.txt: a finding came that no line names: policy-violation", "client=10.50.0.7"}},
		{"one that does not come", base + "\nfinding client=laptop count>=2", []string{`x.txt:17: no finding came that is so: finding client=laptop count>=2`, `count is "1", want >= 2`}},
		{"silence that is broken", base + "\nno finding client=laptop", []string{"x.txt:17: a finding came that must not: policy-violation"}},
		{"a host elsewhere", "host a 10.20.0.9 segment office\nhost b 10.50.0.8 workload jump-2\n" + base + "\nany finding", []string{
			`x.txt:16: the policy has a (10.20.0.9) in segment "vault", not in "office"`, `x.txt:17: the policy has b (10.50.0.8) as workload "jump-1", not as "jump-2"`}},
		{"too few", base + "\n2 findings client=laptop", []string{"x.txt:17: 1 of 2 findings came that are so: 2 findings client=laptop", "no other finding came"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := prove(t, company+"\n"+c.text)
			for _, w := range c.want {
				if !strings.Contains(got, w) {
					t.Errorf("it does not say %q:\n%s", w, got)
				}
			}
		})
	}
}

// TestErrors: a file that cannot be read says where, what is wrong and what would be right.
func TestErrors(t *testing.T) {
	const at = "2026-10-03T09:00:00Z"
	for _, c := range []struct{ text, want string }{
		{"flows " + at, `x.txt:1:1: "flows" begins no line of a scenario; did you mean flow?`},
		{"expect finding type=scan", `x.txt:1:1: "expect" begins no line of a scenario; a line begins with # for a remark, or with one of policy`},
		{"\ufefftick", "x.txt:1:1: a tick has one time"},
		{"tick \xff", "x.txt:1:1: the file is no text; save it as UTF-8"},
		{"session 2026-10-03 09:00:00Z 1s 10.0.0.1 > 10.0.0.2 tcp/22", `x.txt:1:9: "2026-10-03" is no time; write it as 2026-10-03T09:00:00Z`},
		{"session " + at + " 1 min 10.0.0.1 > 10.0.0.2 tcp/22", `x.txt:1:30: "1" is no duration; write it as 200ms`},
		{"session " + at + " 1s 10.0.0.1 > 10.0.0.2 tcp/22 blokced", `x.txt:1:60: "blokced" is not understood here; did you mean blocked?`},
		{"session " + at + " 1s 10.0.0.1 > 10.0.0.2 tcp/22 quietly", `x.txt:1:60: "quietly" is not understood here; write KEY=VALUE, or one of every`},
		{"session " + at + " 1s 10.0.0.1 > 10.0.0.2 tcp/22 => reason=denyed", `x.txt:1:70: "denyed" is no reason; did you mean denied?`},
		{"no finding outcome=escapd", `x.txt:1:20: "escapd" is no outcome; did you mean escaped?`},
		{"no finding failed=source,serv1ce", `x.txt:1:19: "serv1ce" is no failed; did you mean service?`},
		{"host desks 10.0.0.1\nno finding client=dsks", `x.txt:2:19: "dsks" is no address and no host that a line above names; did you mean desks?`},
		{"no finding count>=two", `x.txt:1:19: "two" has no order; compare with a number`},
		{"no finding outcome>blocked", `x.txt:1:20: "blocked" has no order`},
		{"host web 10.0.0.2\nsession " + at + " 1s 10.0.0.1 > web tcp/22\nsilent web since " + at, "x.txt:3:8: nobody tells anything there who could be silent; name a host that its host line says has an agent"},
		{"session " + at + " 1s 10.0.0.1 > 10.0.0.2 tcp/22\nsilent logons since " + at, "x.txt: the source of identities is silent, and it never said anything; add a logon line"},
		{"session yesterday 1s 10.0.0.1 > 10.0.0.2 tcp/22", `x.txt:1:9: "yesterday" is no time; write it as 2026-10-03T09:00:00Z, or as +5m`},
		{"session +1m 1s 10.0.0.1 > 10.0.0.2 tcp/22", `x.txt:1:9: "+1m" is since the line before, and none has a time`},
		{"session " + at + " soon 10.0.0.1 > 10.0.0.2 tcp/22", `x.txt:1:30: "soon" is no duration; write it as`},
		{"host vault 10.0.0.2\nsession " + at + " 1s 10.0.0.1 > valt tcp/22", `x.txt:2:44: "valt" is no address and no host that a line above names; did you mean vault?`},
		{"session " + at + " 1s 10.0.0.1 > 10.0.0.2 tcp/ssh", `x.txt:1:53: "ssh" is no port of "tcp/ssh"`},
		{"session " + at + " 1s 10.0.0.1 > 10.0.0.2 tcp", "x.txt:1:53: the session has no service; write tcp/443"},
		{"session " + at + " 1s 10.0.0.1 - 10.0.0.2 tcp/22", "x.txt:1:42: the line is no session; write: session TIME"},
		{"session " + at + " 1s 10.0.0.1 > 10.0.0.2 tcp/22 usr=ana", `x.txt:1:60: a flow has no "usr"; did you mean user?`},
		{"session " + at + " 1s 10.0.0.1 > 10.0.0.2 udp/53 refused", "x.txt:1:60: only TCP is refused; write unanswered"},
		{"session " + at + " 1s 10.0.0.1 > 10.0.0.2 tcp/22 times 4", "x.txt:1:60: times, for and jitter belong to a repeat; write: every 6h times 20"},
		{"session " + at + " 1s 10.0.0.1 > 10.0.0.2 tcp/22 every 1ms for 9d", "x.txt:1:60: it happens more than 200000 times"},
		{"session " + at + " 1s 10.0.0.0/17 > 10.1.0.0/16 tcp/22", "x.txt:1:"},
		{"session " + at + " 1s 10.0.0.0/18 > 10.1.0.0/20 tcp/22", "x.txt:1:1: with this line the scenario has more than 200000 flows"},
		{"flow " + at + " 1s 10.0.0.1:1 > 10.0.0.2:22 tcp refused", `x.txt:1:59: "refused" is said of a session`},
		{"flow " + at + " 1s 10.0.0.1:1 > 10.0.0.2:22 tcp arrives=4", `a flow has no "arrives"; write late=5m`},
		{"flow " + at + " 1s 10.0.0.1:1 > 10.0.0.2:22 tcp flags=SX", `'X' is no TCP flag; write letters of FSRPAU`},
		{"flow " + at + " 1s 10.0.0.1:1 > [2001:db8::1]:22 tcp", "of different families"},
		{"session " + at + " 1s 10.0.0.1 > 10.0.0.2 tcp/22 => raeson=denied", `a flow has no "raeson"; did you mean reason?`},
		{"finding clint=10.0.0.1", `x.txt:1:9: a finding has no "clint"; did you mean client?`},
		{"no finding type=policy-violatoin", `x.txt:1:17: there is no finding of type "policy-violatoin"; did you mean policy-violation?`},
		{"finding severity>=hgh", `"hgh" is no severity; did you mean high?`},
		{"finding edges.port=22", "edges is a list: write its number or * for any, as edges.0.…"},
		{"finding edges.0.prt=22", "did you mean port?"},
		{"finding", "x.txt:1:1: it is not said which finding"},
		{"0 findings type=x", `"0" is no number of findings`},
		{`finding title~="half`, "x.txt:1:16: a quote is opened and not closed"},
		{"  indented", "x.txt:1:1: an indented line belongs to nothing"},
		{"policy\n  postern: v1\n  segmnts: []\n", "x.txt:3:3: "},
		{"config\n  detect: {gracee: 2m}\n", "x.txt:2:12: this setting cannot be read: unknown field \"gracee\""},
		{"config\n  detect: {grace: 200h}\n", "x.txt:1:1: detect.grace is 200h0m0s; write a duration from"},
		{"policy nowhere", "x.txt:1:8: there is no folder nowhere; name the folder that holds the policy files, as seen from this file"},
		{"tick " + at, "nothing happens in this scenario; add a flow or a session line"},
		{"host a 10.0.0.1 segmnt vault", `x.txt:1:17: "segmnt" is not understood here; write: host NAME ADDRESS [segment NAME]`},
		{"silent 10.0.0.1 from " + at, "x.txt:1:1: a silence has a host and a time; write: silent HOST since TIME"},
		{"silent logons", "x.txt:1:1: a silence has a time; write: silent logons since TIME"},
		{"silent logons since", "x.txt:1:1: a silence has a time; write: silent logons since TIME"},
		{"silent logons from " + at, `x.txt:1:15: "from" is not understood here; write: silent logons since TIME`},
		{"silent logons since " + at + " until " + at, "x.txt:1:48: the silence ends before it begins"},
		{"silent logons since " + at + " limit 5s", `x.txt:1:48: "5s" is no limit of a silence; write 1m or more`},
		{"silent logons since " + at + " limit 5m until +1h", `x.txt:1:42: "limit" is not understood here`},
		{"host logons 10.0.0.1", "x.txt:1:6: logons is what the source of identities is called; give the host another name"},
		{"host 1st 10.0.0.1", `x.txt:1:6: "1st" is no name of a host`},
		{"host a 10.0.0.1\nhost a 10.0.0.2", "x.txt:2:6: the host a is named in line 1 already"},
		{"shuffle please", "x.txt:1:9: "},
	} {
		_, err := Parse("x.txt", []byte(c.text), DefaultSettings(), func(string) fs.FS { return os.DirFS("nowhere") })
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s:\n got %v\nwant %s", c.text, err, c.want)
		}
	}
}

// FuzzParse: whatever stands in a file, reading it ends, within bounds.
func FuzzParse(f *testing.F) {
	f.Add(company + "session 2026-10-03T09:00:00Z 10m desks > vault tcp/22,3389-3391 every 6h times 3 jitter 1m user=ana => reason=denied\nfinding client=laptop edges.*.port>=3 title~=\"a b\"\nno finding\n")
	f.Add("flow 2026-10-03T09:00:00Z 1s [2001:db8::1]:50000 > [2001:db8::2]:22 tcp flags=SA observed=deny\ntick +1h\nsegment\nrestart 2026-10-03T10:00:00Z\nshuffle 5s\n3 findings type=x\n")
	f.Add("logon 2026-10-03T09:00:00Z ana 10.0.0.1\nsilent logons since +1h until +2h limit 30m\nsession +1m 1s 10.0.0.1 > 10.0.0.2 tcp/22\n")
	f.Add("config\n  detect: {grace: 2m}\nlogon 2026-10-03T09:00:00Z ana 10.0.0.1 until +8h\nsession +1m 1d1h 10.0.0.1-9,10.0.1.0/30 > 10.0.2.1 icmp/echo by=client,router cut=none one every 1ms\n")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse("x.txt", []byte(text), DefaultSettings(), func(string) fs.FS { return fstest.MapFS{} })
		if err == nil && s.Flows() > maxFlows {
			t.Errorf("%d flows", s.Flows())
		}
	})
}
