package policy

import (
	"runtime"
	"testing"

	"github.com/postern/postern/flow"
)

// TestVersionCost holds what [History] says a version costs, since a history keeps
// many. The names and the loaded policy are not counted.
func TestVersionCost(t *testing.T) {
	const versions = 8
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for _, test := range []struct {
		name string
		p    *Policy
		most uint64
	}{
		// 256 KiB are the first step of the address table, which is plain for speed.
		{"example", load(t, example(t)), 320 << 10},
		{"1,000 rules, 500 exceptions, 2,000 workloads", estate(1000, 500), 2 << 20},
	} {
		names := flow.NewNames(0)
		Compile(test.p, names, DefaultConfig()) // interns all names
		var keep [versions]*Index
		before := heap()
		for i := range keep {
			keep[i] = Compile(test.p, names, DefaultConfig())
		}
		cost := (heap() - before) / versions
		runtime.KeepAlive(&keep)
		runtime.KeepAlive(test.p)
		t.Logf("%s: %d KiB a version", test.name, cost>>10)
		if cost > test.most {
			t.Errorf("%s: a version costs %d KiB, more than %d", test.name, cost>>10, test.most>>10)
		}
	}
}

// TestLaterVersionCost holds what a history pays for a version in which only the
// dates of an exception differ from the one before: tables and rows are shared.
func TestLaterVersionCost(t *testing.T) {
	const versions, most = 9, 1 << 20
	names := flow.NewNames(0)
	h := NewHistory(names, DefaultConfig())
	policies := make([]*Policy, versions)
	for i := range policies {
		policies[i] = estate(1000, 500)
		policies[i].Exceptions[i].Expires++
		policies[i].computeHash()
	}
	add := func(i int) {
		if err := h.Add(policies[i], flow.Time(i)); err != nil {
			t.Fatal(err)
		}
	}
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	add(0)
	before := heap()
	for i := 1; i < versions; i++ {
		add(i)
	}
	cost := (heap() - before) / (versions - 1)
	runtime.KeepAlive(h)
	runtime.KeepAlive(policies)
	t.Logf("%d KiB a later version", cost>>10)
	if cost > most {
		t.Errorf("a later version costs %d KiB, more than %d", cost>>10, most>>10)
	}
	if n := len(h.Intervals()); n != versions {
		t.Errorf("%d versions, want %d", n, versions)
	}
}
