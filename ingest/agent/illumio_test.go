package agent

import "testing"

func FuzzIllumio(f *testing.F) { fuzzFormat(f, "illumio") }

func BenchmarkIllumio(b *testing.B) { benchFormat(b, "illumio", "") }
