package agent

import "testing"

func FuzzGCP(f *testing.F) { fuzzFormat(f, "gcp") }

func BenchmarkGCP(b *testing.B) {
	b.Run("vpc", func(b *testing.B) { benchLines(b, "gcp", "gcp.log", 0, 1, 2, 3, 4) })
	b.Run("firewall", func(b *testing.B) { benchLines(b, "gcp", "gcp.log", 5, 6, 7) })
	b.Run("pubsub", func(b *testing.B) { benchLines(b, "gcp", "gcp.log", 12) })
}
