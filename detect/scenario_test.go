package detect_test

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/postern/postern/detect"
	"github.com/postern/postern/enrich"
	"github.com/postern/postern/flow"
	"github.com/postern/postern/policy"
)

// A scenario is a text file of policies, flows at times, and what must come of
// them. A line is
//
//	# a remark
//	policy FOLDER [since TIME]     FOLDER as seen from the scenario
//	policy [since TIME]            the indented lines that follow are the policy
//	flow TIME DURATION SRC[:PORT] > DST[:PORT] PROTO [KEY=VALUE ...] [=> KEY=VALUE ...]
//	tick TIME                      the injected clock says TIME
//	segment                        an input segment ends here
//	finding KEY=VALUE ...          a finding that must come of it
//
// TIME is RFC 3339; after the first one a flow may say +DURATION since the flow
// before. IPv6 addresses with a port stand in brackets. What a flow says of itself:
// flags= (letters of FSRPAU), packets=, user=, observed= (allow, deny),
// exporter=, skew= (a duration), type= and code= (ICMP), both (a biflow with
// traffic both ways), arrives=N (it comes as the Nth, the others in their order).
// After => stands what its verdict must be, after finding what the finding must
// be, by the names of the fields in JSON (of a list its members with commas; a
// value in quotes may hold blanks; ~= asks for a part). Every finding must be
// named by one line.
type scenario struct {
	policies []since
	steps    []step
	findings []expectation
}

type since struct {
	at   flow.Time
	fsys fs.FS
	line int
}

type step struct {
	line    int
	kind    string // flow, tick, segment
	at      flow.Time
	rec     flow.Record
	user    string
	arrives int
	want    expectation
}

type expectation struct {
	line   int
	fields []field
}

type field struct {
	key, value string
	part       bool
}

// fieldsOf splits a line at blanks outside quotes.
func fieldsOf(s string) (out []string) {
	var cur strings.Builder
	quoted, any := false, false
	for _, r := range s {
		switch {
		case r == '"':
			quoted, any = !quoted, true
		case (r == ' ' || r == '\t') && !quoted:
			if any {
				out = append(out, cur.String())
			}
			cur.Reset()
			any = false
		default:
			cur.WriteRune(r)
			any = true
		}
	}
	if any {
		out = append(out, cur.String())
	}
	return out
}

func parseExpectation(line int, words []string) (e expectation, err error) {
	e.line = line
	for _, w := range words {
		k, v, ok := strings.Cut(w, "=")
		if !ok {
			return e, fmt.Errorf("line %d: %q is no KEY=VALUE", line, w)
		}
		part := strings.HasSuffix(k, "~")
		e.fields = append(e.fields, field{strings.TrimSuffix(k, "~"), v, part})
	}
	return e, nil
}

func parseScenario(path string) (*scenario, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	s := &scenario{}
	var last flow.Time
	var inline *since
	var text strings.Builder
	closeInline := func() {
		if inline != nil {
			inline.fsys = fstest.MapFS{"policy.yaml": {Data: []byte(text.String())}}
			s.policies = append(s.policies, *inline)
			inline = nil
			text.Reset()
		}
	}
	sc := bufio.NewScanner(strings.NewReader(string(b)))
	for n := 1; sc.Scan(); n++ {
		line := sc.Text()
		if inline != nil && (line == "" || line[0] == ' ') {
			text.WriteString(strings.TrimPrefix(line, "  ") + "\n")
			continue
		}
		closeInline()
		if line == "" || line[0] == '#' {
			continue
		}
		words := fieldsOf(line)
		switch words[0] {
		case "policy":
			p := since{at: policy.Always, line: n}
			words = words[1:]
			folder := ""
			if len(words) > 0 && words[0] != "since" {
				folder, words = words[0], words[1:]
			}
			if len(words) == 2 && words[0] == "since" {
				if err := p.at.UnmarshalText([]byte(words[1])); err != nil {
					return nil, fmt.Errorf("%s:%d: %w", path, n, err)
				}
			} else if len(words) != 0 {
				return nil, fmt.Errorf("%s:%d: want: policy [FOLDER] [since TIME]", path, n)
			}
			if folder == "" {
				inline = &p
				continue
			}
			p.fsys = os.DirFS(filepath.Join(filepath.Dir(path), folder))
			s.policies = append(s.policies, p)
		case "flow":
			st, err := parseFlow(n, words[1:], last)
			if err != nil {
				return nil, fmt.Errorf("%s:%d: %w", path, n, err)
			}
			last = st.rec.Start
			s.steps = append(s.steps, st)
		case "tick":
			st := step{line: n, kind: "tick"}
			if len(words) != 2 || st.at.UnmarshalText([]byte(words[1])) != nil {
				return nil, fmt.Errorf("%s:%d: want: tick TIME", path, n)
			}
			s.steps = append(s.steps, st)
		case "segment":
			s.steps = append(s.steps, step{line: n, kind: "segment"})
		case "finding":
			e, err := parseExpectation(n, words[1:])
			if err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			s.findings = append(s.findings, e)
		default:
			return nil, fmt.Errorf("%s:%d: %q is none of policy, flow, tick, segment, finding", path, n, words[0])
		}
	}
	closeInline()
	for i := 0; i < len(s.steps); i++ {
		if to := s.steps[i].arrives; to > 0 && to-1 != i {
			st := s.steps[i]
			st.arrives = 0
			s.steps = slices.Delete(s.steps, i, i+1)
			s.steps = slices.Insert(s.steps, to-1, st)
			i = -1
		}
	}
	return s, sc.Err()
}

func parseEnd(s string) (flow.Addr, uint16, bool, error) {
	host, port := s, ""
	if i := strings.LastIndexByte(s, ':'); i >= 0 && (s[0] == '[' || strings.Count(s, ":") == 1) {
		host, port = strings.Trim(s[:i], "[]"), s[i+1:]
	}
	a, err := flow.ParseAddr(host)
	if err != nil || port == "" {
		return a, 0, false, err
	}
	p, err := strconv.ParseUint(port, 10, 16)
	return a, uint16(p), true, err
}

func parseFlow(line int, w []string, last flow.Time) (st step, err error) {
	st = step{line: line, kind: "flow"}
	var want []string
	if i := slices.Index(w, "=>"); i >= 0 {
		w, want = w[:i], w[i+1:]
	}
	if len(w) < 6 || w[3] != ">" {
		return st, fmt.Errorf("want: flow TIME DURATION SRC[:PORT] > DST[:PORT] PROTO [KEY=VALUE ...] [=> KEY=VALUE ...]")
	}
	r := &st.rec
	r.ID = uint64(line)
	if d, ok := strings.CutPrefix(w[0], "+"); ok {
		gap, err := time.ParseDuration(d)
		if err != nil {
			return st, err
		}
		r.Start = last.Add(gap)
	} else if err := r.Start.UnmarshalText([]byte(w[0])); err != nil {
		return st, err
	}
	d, err := time.ParseDuration(w[1])
	if err != nil {
		return st, err
	}
	r.End = r.Start.Add(d)
	r.Has = flow.HasStart | flow.HasEnd | flow.HasSrc | flow.HasDst | flow.HasProto | flow.HasPackets | flow.HasBytes
	r.PacketsRaw, r.BytesRaw = 5, 500
	var hasPort bool
	if r.Src, r.SrcPort, hasPort, err = parseEnd(w[2]); err != nil {
		return st, err
	} else if hasPort {
		r.Has |= flow.HasSrcPort
	}
	if r.Dst, r.DstPort, hasPort, err = parseEnd(w[4]); err != nil {
		return st, err
	} else if hasPort {
		r.Has |= flow.HasDstPort
	}
	rng, err := policy.ParseService(w[5])
	if err != nil {
		return st, err
	}
	r.Proto, r.Exporter, r.Source = rng.Proto, flow.MustParseAddr("192.0.2.1"), flow.SourceIPFIX
	for _, o := range w[6:] {
		k, v, _ := strings.Cut(o, "=")
		n, numErr := strconv.ParseUint(v, 10, 32)
		switch k {
		case "flags":
			r.Has |= flow.HasTCPFlags
			for _, c := range v {
				i := strings.IndexRune("FSRPAU", c)
				if i < 0 {
					return st, fmt.Errorf("%q is none of the flags FSRPAU", c)
				}
				r.TCPFlags |= 1 << i
			}
			numErr = nil
		case "packets":
			r.PacketsRaw = n
		case "user":
			st.user, numErr = v, nil
		case "observed":
			r.Has |= flow.HasFirewallEvent
			r.FirewallEvent = map[string]uint8{"allow": 2, "deny": 3, "audit": 4}[v]
			numErr = nil
		case "exporter":
			r.Exporter, numErr = flow.MustParseAddr(v), nil
		case "skew":
			d, err := time.ParseDuration(v)
			if err != nil {
				return st, err
			}
			r.Skew, numErr = int32(d/time.Millisecond), nil
			r.Quality |= flow.QualityClockSkew
		case "type":
			r.Has |= flow.HasICMP
			r.ICMPType = uint8(n)
		case "code":
			r.Has |= flow.HasICMP
			r.ICMPCode = uint8(n)
		case "both":
			r.Has |= flow.HasRevPackets | flow.HasRevBytes
			r.RevPacketsRaw, r.RevBytesRaw, numErr = 4, 400, nil
		case "arrives":
			st.arrives = int(n)
		default:
			return st, fmt.Errorf("a flow has no %q", k)
		}
		if numErr != nil {
			return st, fmt.Errorf("%s: %w", o, numErr)
		}
	}
	st.want, err = parseExpectation(line, want)
	return st, err
}

// chain is the stages from a decoded record to a finding, as cmd wires them.
type chain struct {
	t     testing.TB
	names *flow.Names
	hist  *policy.History
	pair  *enrich.Pairer
	det   *detect.Detector

	flows  []flow.Record
	counts map[string]int64
	last   map[string]*flow.Finding
	events []*flow.Finding
}

func newChain(t testing.TB, policies ...since) *chain {
	t.Helper()
	c := &chain{t: t, names: flow.NewNames(0), counts: map[string]int64{}, last: map[string]*flow.Finding{}}
	c.hist = policy.NewHistory(c.names, policy.DefaultConfig())
	for _, p := range policies {
		loaded, diags := policy.Load(p.fsys)
		if err := diags.Err(); err != nil {
			t.Fatalf("the policy of line %d: %v", p.line, err)
		}
		if err := c.hist.Add(loaded, p.at); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if c.pair, err = enrich.NewPairer(enrich.DefaultConfig(), c.hist, enrich.DeclaredBy(c.hist), c.names, nil); err != nil {
		t.Fatal(err)
	}
	if c.det, err = detect.New(detect.DefaultConfig(), detect.Versions{History: c.hist}, c.names, nil); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *chain) batch(in *flow.Batch) {
	out := flow.NewBatch(len(in.Records), nil)
	c.pair.Process(in, out)
	c.det.Observe(out)
	c.flows = append(c.flows, out.Records...)
}

func (c *chain) tick(now flow.Time) {
	out := flow.NewBatch(1, nil)
	c.pair.Tick(now, out)
	c.det.Observe(out)
	c.det.Tick(now)
	c.flows = append(c.flows, out.Records...)
}

func (c *chain) segment() { c.take(c.det.Collect()) }

func (c *chain) flush() {
	out := flow.NewBatch(1, nil)
	c.pair.Flush(out)
	c.det.Observe(out)
	c.flows = append(c.flows, out.Records...)
	c.take(c.det.Flush())
}

func (c *chain) take(contributions []flow.Contribution, events []*flow.Finding) {
	for _, k := range contributions {
		c.counts[k.Finding.ID] += k.Sessions
	}
	for _, f := range events {
		if old := c.last[f.ID]; old != nil && old.Revision >= f.Revision {
			c.t.Errorf("finding %s was told at revision %d and then at %d", f.ID, old.Revision, f.Revision)
		}
		c.last[f.ID] = f
	}
	c.events = append(c.events, events...)
}

// findings is the last state of every finding, by id.
func (c *chain) findings() []*flow.Finding {
	var out []*flow.Finding
	for _, f := range c.last {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b *flow.Finding) int { return strings.Compare(a.ID, b.ID) })
	return out
}

func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			s, err := parseScenario(path)
			if err != nil {
				t.Fatal(err)
			}
			runScenario(t, s)
		})
	}
}

func runScenario(t *testing.T, s *scenario) {
	c := newChain(t, s.policies...)
	for i := range s.steps {
		st := &s.steps[i]
		switch st.kind {
		case "tick":
			c.tick(st.at)
		case "segment":
			c.segment()
		default:
			b := flow.NewBatch(1, nil)
			r := b.Next()
			*r = st.rec
			r.User = c.names.Intern(st.user)
			c.batch(b)
		}
	}
	c.flush()
	judged := map[uint64]map[string]any{}
	for i := range c.flows {
		judged[c.flows[i].ID] = decoded(t, c.flows[i].AppendJSON(nil, c.names.Texts()))
	}
	for i := range s.steps {
		st := &s.steps[i]
		if st.kind != "flow" {
			continue
		}
		for _, f := range st.want.fields {
			if got := shown(judged[st.rec.ID][f.key]); !f.holds(got) {
				t.Errorf("line %d: %s is %q, want %q", st.line, f.key, got, f.value)
			}
		}
	}
	left := c.findings()
	for _, want := range s.findings {
		i := slices.IndexFunc(left, func(f *flow.Finding) bool { return want.unmet(t, f) == "" })
		if i >= 0 {
			left = slices.Delete(left, i, i+1)
			continue
		}
		t.Errorf("line %d: no finding is so", want.line)
		for _, f := range left {
			t.Logf("  %s: %s", f.Type, want.unmet(t, f))
		}
	}
	for _, f := range left {
		t.Errorf("a finding that no line names: %s (%s, %s, count %d): %s", f.Type, f.Severity, f.Outcome, f.Count, f.Sentence)
	}
	for id, n := range c.counts {
		if f := c.last[id]; f == nil || f.Count != n {
			t.Errorf("finding %s: contributions add up to %d, it says %v", id, n, f)
		}
	}
}

func (f *field) holds(got string) bool {
	return got == f.value || f.part && strings.Contains(got, f.value)
}

// unmet is the first field of f that is not as expected; empty if all are.
func (e *expectation) unmet(t *testing.T, f *flow.Finding) string {
	m := decoded(t, marshalled(t, f))
	for _, w := range e.fields {
		if got := shown(m[w.key]); !w.holds(got) {
			return fmt.Sprintf("%s is %q, want %q", w.key, got, w.value)
		}
	}
	return ""
}
