package agent

import "testing"

func FuzzOCSF(f *testing.F) { fuzzFormat(f, "ocsf") }

// BenchmarkOCSF measures lines that tell flows, and the whole sample, of which half is refused.
func BenchmarkOCSF(b *testing.B) {
	b.Run("flows", func(b *testing.B) { benchLines(b, "ocsf", "ocsf.log", 0, 1, 2, 3, 4, 5) })
	b.Run("sample", func(b *testing.B) { benchFormat(b, "ocsf", "") })
}
