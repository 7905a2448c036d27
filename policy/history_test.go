package policy

import (
	"bytes"
	"fmt"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/postern/postern/flow"
)

const small = `postern: v1
segments:
  - {name: pci, prefixes: [10.20.0.0/24], stage: enforced, default: deny}
  - {name: office, prefixes: [10.50.0.0/16]}
`

func withException(id, expires string) string {
	return small + fmt.Sprintf(`exceptions:
  - id: %s
    class: vendor
    from: {cidr: 10.50.1.1}
    to: {segment: pci}
    services: [tcp/443]
    ticket: T
    owner: o
    reason: r
    requested: {by: ana, at: 2026-01-01T00:00:00Z}
    approved: [{by: raj, at: 2026-01-01T00:00:00Z}]
    notBefore: 2026-01-01T00:00:00Z
    expires: %s
`, id, expires)
}

// judge judges a TCP flow to port 443 and gives its verdict.
func judge(h *History, src, dst string, start flow.Time) flow.Verdict {
	r := flow.Record{Start: start, Src: flow.MustParseAddr(src), Dst: flow.MustParseAddr(dst), SrcPort: 50000, DstPort: 443, Proto: 6, Oriented: flow.Forward,
		Has: flow.HasSrc | flow.HasDst | flow.HasSrcPort | flow.HasDstPort | flow.HasProto}
	h.JudgeRecord(&r)
	return r.Verdict
}

func TestHistoryWithoutAnyVersion(t *testing.T) {
	h := NewHistory(flow.NewNames(0), DefaultConfig())
	v := judge(h, "10.50.1.1", "10.20.0.1", 1000)
	if v.Reason != flow.ReasonUnverified || v.Expected != flow.ExpectUnknown || v.Outcome != flow.OutcomeNone || v.PolicyVersion != flow.NoName {
		t.Errorf("without a policy the verdict is %+v", v)
	}
	if h.Latest() != nil || h.At(0) != nil {
		t.Error("a history without versions has one")
	}
}

// TestHistoryOrder adds the same versions in every order: the verdicts at every
// time must be the same (THREATS 3, invariant 2).
func TestHistoryOrder(t *testing.T) {
	versions := []struct {
		src   string
		since string
	}{
		{withException("A", "2026-06-01T00:00:00Z"), "2026-01-10T00:00:00Z"},
		{small, "2026-02-01T00:00:00Z"},
		{withException("B", "2026-06-01T00:00:00Z"), "2026-03-01T00:00:00Z"},
		{withException("A", "2026-06-01T00:00:00Z"), "2026-04-01T00:00:00Z"},
	}
	var want string
	for _, order := range [][]int{{0, 1, 2, 3}, {3, 2, 1, 0}, {2, 0, 3, 1}, {1, 3, 0, 2}} {
		names := flow.NewNames(0)
		h := NewHistory(names, DefaultConfig())
		for _, i := range order {
			if err := h.Add(load(t, versions[i].src), at(versions[i].since)); err != nil {
				t.Fatal(err)
			}
		}
		got := ""
		for day := range 600 {
			start := at("2026-01-01T00:00:00Z").Add(time.Duration(day) * 24 * time.Hour)
			v := judge(h, "10.50.1.1", "10.20.0.1", start)
			got += fmt.Sprintf("%d %v %s %s %v\n", day, v.Reason, names.Text(v.Exception), names.Text(v.PolicyVersion), v.ValidUntil)
		}
		if want == "" {
			want = got
		}
		if got != want {
			t.Errorf("order %v gives other verdicts", order)
		}
		if n := len(h.Intervals()); n != 4 {
			t.Errorf("order %v gives %d intervals, not 4", order, n)
		}
	}
}

func TestHistoryAddAgain(t *testing.T) {
	h := NewHistory(flow.NewNames(0), DefaultConfig())
	a, b := load(t, small), load(t, withException("A", "2026-06-01T00:00:00Z"))
	for _, add := range []struct {
		p     *Policy
		since flow.Time
		bad   bool
		n     int
	}{{a, 100, false, 1}, {a, 100, false, 1}, {a, 200, false, 1}, {b, 100, true, 1}, {b, 300, false, 2}, {a, 400, false, 3}} {
		if err := h.Add(add.p, add.since); (err != nil) != add.bad {
			t.Errorf("adding from %d: %v", add.since, err)
		}
		if n := len(h.Intervals()); n != add.n {
			t.Errorf("after adding from %d there are %d intervals, not %d", add.since, n, add.n)
		}
	}
	in := h.Intervals()
	if in[0].Until != 300 || in[1].Until != 400 || in[2].Until != maxTime || h.At(99) != nil || h.At(100) != in[0].Index || h.At(399) != in[1].Index {
		t.Errorf("intervals are %+v", in)
	}
}

// TestHistoryForget drops old intervals and must still implicate their exceptions,
// for as long as implicateFor says and no longer.
func TestHistoryForget(t *testing.T) {
	names := flow.NewNames(0)
	h := NewHistory(names, Config{ImplicateFor: 24 * time.Hour})
	for i, src := range []string{withException("A", "2026-06-01T00:00:00Z"), small, withException("B", "2026-06-01T00:00:00Z")} {
		if err := h.Add(load(t, src), at(fmt.Sprintf("2026-02-0%dT00:00:00Z", i+1))); err != nil {
			t.Fatal(err)
		}
	}
	h.Forget(at("2026-02-02T00:00:00Z"))
	if n := len(h.Intervals()); n != 2 {
		t.Fatalf("%d intervals are left, not 2", n)
	}
	check := func(start, reason, exception string) {
		t.Helper()
		v := judge(h, "10.50.1.1", "10.20.0.1", at(start))
		if v.Reason.String() != reason || names.Text(v.Exception) != exception {
			t.Errorf("at %s: %v by %q, not %s by %q", start, v.Reason, names.Text(v.Exception), reason, exception)
		}
	}
	check("2026-02-01T12:00:00Z", "unverified", "")
	check("2026-02-02T12:00:00Z", "expired-exception", "A")
	// Whoever tells of it finds its ticket and owner though it is gone from the files.
	if e, ends, ok := h.At(at("2026-02-02T12:00:00Z")).Exception(names.Intern("A")); !ok || e.Ticket != "T" || ends != at("2026-02-02T00:00:00Z") {
		t.Errorf("the removed exception is %+v and ended %v", e, ends)
	}
	// A later version is compiled anew from what was forgotten, too.
	if err := h.Add(load(t, small+"rules: [{id: x, action: allow, from: {segment: office}, to: {segment: pci}, services: [udp/9]}]\n"), at("2026-02-02T18:00:00Z")); err != nil {
		t.Fatal(err)
	}
	check("2026-02-02T23:59:59Z", "expired-exception", "A")
	check("2026-02-03T12:00:00Z", "waived", "B")
	h.Forget(at("2030-01-01T00:00:00Z"))
	if n := len(h.Intervals()); n != 1 {
		t.Errorf("%d intervals are left, not the newest alone", n)
	}
}

// TestHistoryReload stores versions and reads them back: verdicts stay.
func TestHistoryReload(t *testing.T) {
	names := flow.NewNames(0)
	h := NewHistory(names, DefaultConfig())
	for i, src := range []string{withException("A", "2026-06-01T00:00:00Z"), small} {
		if err := h.Add(load(t, src), at(fmt.Sprintf("2026-02-0%dT00:00:00Z", i+1))); err != nil {
			t.Fatal(err)
		}
	}
	again := NewHistory(names, DefaultConfig())
	for _, v := range h.Intervals() {
		p, err := ParseSource(v.Index.Policy().Source())
		if err != nil {
			t.Fatal(err)
		}
		if p.Hash() != v.Index.Policy().Hash() || !bytes.Equal(p.Source(), v.Index.Policy().Source()) {
			t.Error("the hash or the source changed on the way")
		}
		if err := again.Add(p, v.Since); err != nil {
			t.Fatal(err)
		}
	}
	for _, start := range []string{"2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z", "2026-02-02T00:00:00Z"} {
		if a, b := judge(h, "10.50.1.1", "10.20.0.1", at(start)), judge(again, "10.50.1.1", "10.20.0.1", at(start)); a != b {
			t.Errorf("at %s: %+v before, %+v after", start, a, b)
		}
	}
	if _, err := ParseSource([]byte(`[{"name":"a.yaml","text":"rules: nonsense"}]`)); err == nil {
		t.Error("a stored version that does not load was taken")
	}
	if _, err := ParseSource([]byte("no JSON")); err == nil {
		t.Error("something that is no stored version was taken")
	}
}

// TestHistoryConcurrent reads while versions are added; run with -race.
func TestHistoryConcurrent(t *testing.T) {
	h := NewHistory(flow.NewNames(0), DefaultConfig())
	if err := h.Add(load(t, small), Always); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					if v := judge(h, "10.50.1.1", "10.20.0.1", 1000); v.Reason != flow.ReasonDenied {
						t.Errorf("judged %v", v.Reason)
						return
					}
				}
			}
		})
	}
	for i := range 20 {
		p, diags := Load(fstest.MapFS{"p.yaml": {Data: fmt.Appendf(nil, "%sservices: {s%d: tcp/%d}\n", small, i, i)}})
		if diags.Err() != nil {
			t.Fatal(diags)
		}
		if err := h.Add(p, flow.Time(10_000+i)); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
}

func TestFork(t *testing.T) {
	names := flow.NewNames(0)
	h := NewHistory(names, DefaultConfig())
	one, two, three := estate(10, 5), estate(20, 5), estate(30, 5)
	for i, p := range []*Policy{one, two} {
		if err := h.Add(p, flow.Time(1000*(i+1))); err != nil {
			t.Fatal(err)
		}
	}
	f := h.Fork()
	if f.At(1500) != h.At(1500) || f.At(2500) != h.At(2500) {
		t.Error("a fork does not share the versions it began with")
	}
	if err := f.Add(three, 3000); err != nil {
		t.Fatal(err)
	}
	if got := h.At(3500).Policy(); got != two {
		t.Error("what was added to the fork shows in the history it came from")
	}
	if got := f.At(3500).Policy(); got != three {
		t.Error("what was added to the fork does not show in it")
	}
	h.Forget(2000)
	if f.At(1500) == nil {
		t.Error("what the history forgot is gone from the fork")
	}
}
