package siem

import (
	"github.com/postern/postern/flow"
)

// encodeJSON is the finding itself: of what came as a message, the message.
func encodeJSON(f *flow.Finding) ([]byte, error) {
	return fitted(f, MaxMessage, func(f *flow.Finding) ([]byte, error) {
		if f.Edges == nil {
			f.Edges = []flow.Edge{}
		}
		return marshal(f)
	})
}
