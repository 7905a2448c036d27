package agent

import "testing"

func FuzzAzure(f *testing.F) { fuzzFormat(f, "azure") }

func BenchmarkAzure(b *testing.B) { benchLines(b, "azure", "azure.log", 0) }
