package agent

import "testing"

func FuzzECS(f *testing.F) { fuzzFormat(f, "ecs") }

// BenchmarkECS measures lines that tell flows, and the whole sample, of which half is refused.
func BenchmarkECS(b *testing.B) {
	b.Run("flows", func(b *testing.B) { benchLines(b, "ecs", "ecs.log", 0, 1, 2, 3, 4, 5) })
	b.Run("sample", func(b *testing.B) { benchFormat(b, "ecs", "") })
}
