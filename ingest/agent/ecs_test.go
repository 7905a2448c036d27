package agent

import "testing"

func FuzzECS(f *testing.F) { fuzzFormat(f, "ecs") }

func BenchmarkECS(b *testing.B) { benchFormat(b, "ecs", "") }
