package agent

import "testing"

func FuzzCalico(f *testing.F) { fuzzFormat(f, "calico") }

func BenchmarkCalico(b *testing.B) { benchFormat(b, "calico", "") }
