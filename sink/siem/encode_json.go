package siem

import "github.com/postern/postern/flow"

// encodeJSON is the finding itself, as webhooks have it.
func encodeJSON(f *flow.Finding) ([]byte, error) {
	m, err := asTold(f)
	if err != nil {
		return nil, err
	}
	return MarshalFinding(m)
}
