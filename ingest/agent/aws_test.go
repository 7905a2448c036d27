package agent

import "testing"

func FuzzAWS(f *testing.F) { fuzzFormat(f, "aws") }

func BenchmarkAWS(b *testing.B) {
	b.Run("default", func(b *testing.B) { benchLines(b, "aws", "aws.log", 0, 1, 2, 3) })
	b.Run("custom", func(b *testing.B) { benchLines(b, "aws", "aws-custom.log", 0, 1, 2, 3, 4, 5, 6) })
	b.Run("json", func(b *testing.B) { benchLines(b, "aws", "aws-json.log", 0, 5, 6) })
}
