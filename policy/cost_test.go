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
		{"example", load(t, example(t)), 64 << 10},
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
