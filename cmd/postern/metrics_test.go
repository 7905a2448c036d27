package main

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/postern/postern/flow"
)

// TestNamesCollector: that names no longer fit is seen.
func TestNamesCollector(t *testing.T) {
	names := flow.NewNames(4)
	for _, n := range []string{"a", "b", "c", "d", "a", "c"} { // two are reserved
		names.InternBytes([]byte(n))
	}
	want := `
# HELP postern_names Names held, of flows, identities and policy, of at most 1,048,576, another 262,144 of identities and 65,536 of policy. They are held until the process ends.
# TYPE postern_names gauge
postern_names 4
# HELP postern_names_overflow_total Times that a name no longer fitted; it reads (too many names), is not known to policy, and the flow is marked names_full.
# TYPE postern_names_overflow_total counter
postern_names_overflow_total 3
`
	if err := testutil.CollectAndCompare(newNamesCollector(names), strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}
