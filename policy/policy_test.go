package policy

import (
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/postern/postern/flow"
)

// load loads one file's text and fails the test on any error.
func load(t testing.TB, src string) *Policy {
	t.Helper()
	p, diags := Load(fstest.MapFS{"policy.yaml": {Data: []byte(src)}})
	if err := diags.Err(); err != nil {
		t.Fatalf("loading:\n%v", err)
	}
	return p
}

// example is POLICY's example, with the workloads it speaks of.
func example(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "example.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func at(s string) flow.Time {
	var t flow.Time
	if err := t.UnmarshalText([]byte(s)); err != nil {
		panic(err)
	}
	return t
}

func TestExampleJudged(t *testing.T) {
	names := flow.NewNames(0)
	h := NewHistory(names, DefaultConfig())
	if err := h.Add(load(t, example(t)), Always); err != nil {
		t.Fatal(err)
	}
	r := flow.Record{Start: at("2026-10-03T00:00:00Z"), Src: flow.MustParseAddr("10.50.3.3"), Dst: flow.MustParseAddr("10.20.0.11"),
		DstPort: 443, SrcPort: 50000, Proto: 6, Oriented: flow.Forward, SrcIdentity: names.Intern("acme-support"),
		Has: flow.HasSrc | flow.HasDst | flow.HasDstPort | flow.HasSrcPort | flow.HasProto}
	if !h.JudgeRecord(&r) {
		t.Error("not settled")
	}
	if r.Verdict.Reason != flow.ReasonWaived || names.Text(r.Verdict.Exception) != "EX-2041" || names.Text(r.Verdict.Rule) != "default:in:cardholder-data" {
		t.Errorf("got %v by %q and %q", r.Verdict.Reason, names.Text(r.Verdict.Rule), names.Text(r.Verdict.Exception))
	}
	if names.Text(r.SrcWorkload) != "jump-3" || names.Text(r.DstSegment) != "cardholder-data" {
		t.Errorf("ends are %q and %q", names.Text(r.SrcWorkload), names.Text(r.DstSegment))
	}
}
