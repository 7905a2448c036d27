package policy

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/postern/postern/flow"
)

// TestCases runs the corpus in testdata/cases: what POLICY says, case by case, in
// tables a reader can follow. A file holds one or more policies,
//
//	--- policy [since TIME]
//	(YAML)
//
// and flows, one a line, judged by the policy in force at their time:
//
//	--- flows
//	CLIENT SERVER SERVICE TIME => REASON [rule=ID] [exception=ID] [failed=…] [missing=…] [others=…] [staged=REASON] [until=TIME]
//
// An end is an address, what is known of it in brackets: 10.0.0.1(identity=ana).
// A service of which the port is not known is written tcp/?. Times are of 2026 and
// UTC: 10-03 or 10-03T12:30:00. What an expectation leaves out of exception,
// failed, missing and others must be empty.
func TestCases(t *testing.T) {
	files, err := filepath.Glob("testdata/cases/*.txt")
	if err != nil || len(files) < 8 {
		t.Fatalf("found %d case files, %v", len(files), err)
	}
	total := 0
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { total += runCases(t, file) })
	}
	if total < 80 {
		t.Errorf("only %d cases were run", total)
	}
}

func caseTime(t *testing.T, s string) flow.Time {
	t.Helper()
	if !strings.Contains(s, "T") {
		s += "T00:00:00"
	}
	var ft flow.Time
	if err := ft.UnmarshalText([]byte("2026-" + s + "Z")); err != nil {
		t.Fatal(err)
	}
	return ft
}

var endPattern = regexp.MustCompile(`^([^(]+)(?:\((.*)\))?$`)

func caseParty(t *testing.T, names *flow.Names, s string) (p Party) {
	m := endPattern.FindStringSubmatch(s)
	if m == nil {
		t.Fatalf("%q is no end", s)
	}
	p.Addr = flow.AddrFromNetip(netip.MustParseAddr(m[1]))
	if m[2] == "" {
		return p
	}
	groups := 0
	for kv := range strings.SplitSeq(m[2], ",") {
		k, v, _ := strings.Cut(kv, "=")
		n := names.Intern(v)
		switch k {
		case "identity":
			p.Identity = n
		case "group":
			p.Groups[groups] = n
			groups++
		case "process":
			p.Process = n
		case "posture":
			p.Posture = n
		default:
			t.Fatalf("%q is nothing known of an end", k)
		}
	}
	return p
}

func caseConversation(t *testing.T, names *flow.Names, client, server, service, start string) (c Conversation) {
	c = Conversation{Client: caseParty(t, names, client), Server: caseParty(t, names, server), Start: caseTime(t, start), Known: KnownTuple | KnownICMP}
	if proto, ok := strings.CutSuffix(service, "/?"); ok {
		service, c.Known = proto, c.Known&^(KnownPort|KnownICMP)
	}
	r, err := ParseService(service)
	if err != nil {
		t.Fatal(err)
	}
	c.Proto, c.Port = r.Proto, r.Low
	c.ICMPType, c.ICMPCode = uint8(r.Low>>8), uint8(r.Low)
	return c
}

func runCases(t *testing.T, file string) (n int) {
	src, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	names := flow.NewNames(0)
	h := NewHistory(names, DefaultConfig())
	for _, part := range strings.Split("\n"+string(src), "\n--- ")[1:] {
		head, body, _ := strings.Cut(part, "\n")
		if words := strings.Fields(head); words[0] == "policy" {
			since := Always
			if len(words) == 3 {
				since = caseTime(t, words[2])
			}
			p, diags := Load(fstest.MapFS{"p.yaml": {Data: []byte(body)}})
			if err := diags.Err(); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			if err := h.Add(p, since); err != nil {
				t.Fatal(err)
			}
			continue
		}
		for line := range strings.SplitSeq(body, "\n") {
			if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
				continue
			}
			runCase(t, names, h, line)
			n++
		}
	}
	return n
}

func runCase(t *testing.T, names *flow.Names, h *History, line string) {
	left, right, _ := strings.Cut(line, "=>")
	in, want := strings.Fields(left), strings.Fields(right)
	if len(in) != 4 || len(want) == 0 {
		t.Fatalf("%q is no case", line)
	}
	c := caseConversation(t, names, in[0], in[1], in[2], in[3])
	v := flow.Verdict{Reason: flow.ReasonUnverified, StagedReason: flow.ReasonUnverified}
	x := h.At(c.Start)
	if x != nil {
		x.Judge(&c, &v)
	}
	var others []string
	for _, o := range v.Others {
		if o != flow.NoName {
			others = append(others, names.Text(o))
		}
	}
	until := ""
	if v.ValidUntil != 0 {
		until = strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(v.ValidUntil.String(), "2026-"), ".000Z"), "T00:00:00")
	}
	got := map[string]string{"rule": names.Text(v.Rule), "exception": names.Text(v.Exception), "failed": strings.Join(v.Failed.Texts(), ","),
		"missing": strings.Join(v.Missing.Texts(), ","), "others": strings.Join(others, ","), "staged": v.StagedReason.String(), "until": until}
	expect := map[string]string{"exception": "", "failed": "", "missing": "", "others": ""}
	for _, w := range want[1:] {
		k, val, _ := strings.Cut(w, "=")
		expect[k] = val
	}
	wrong := ""
	if v.Reason.String() != want[0] {
		wrong = fmt.Sprintf(" reason is %v;", v.Reason)
	}
	for k, val := range expect {
		if got[k] != val {
			wrong += fmt.Sprintf(" %s is %q;", k, got[k])
		}
	}
	if wrong != "" {
		t.Errorf("%s\n   %s", line, wrong)
		if x != nil {
			t.Logf("\n%v", x.Explain(&c))
		}
	}
}
