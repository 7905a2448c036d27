package agent

import "testing"

func FuzzOCSF(f *testing.F) { fuzzFormat(f, "ocsf") }

func BenchmarkOCSF(b *testing.B) { benchFormat(b, "ocsf", "") }
