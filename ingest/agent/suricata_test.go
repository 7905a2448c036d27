package agent

import "testing"

func FuzzSuricata(f *testing.F) { fuzzFormat(f, "suricata") }

func BenchmarkSuricata(b *testing.B) { benchFormat(b, "suricata", "") }
