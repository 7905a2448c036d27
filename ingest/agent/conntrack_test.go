package agent

import "testing"

func FuzzConntrack(f *testing.F) { fuzzFormat(f, "conntrack") }

func BenchmarkConntrack(b *testing.B) { benchLines(b, "conntrack", "conntrack.log", 0, 3, 4, 5, 7, 9) }
