package identity

import (
	"context"

	"github.com/postern/postern/flow"
)

// Source is a place that knows who is behind addresses.
type Source interface {
	// Name is the name that the configuration gives it; no two sources share one.
	Name() string
	// Run tells what the source knows and what changes there until ctx ends. Trouble with
	// the source is logged and counted, and tried again; only what no trying again mends
	// (a file that cannot be parsed at start, a certificate that is no certificate) ends Run.
	Run(ctx context.Context, tell Tell) error
}

// Tell takes facts in and makes them last; beat, unless zero, says that the source was
// read whole or heard at that time. It returns when both are durable, and the facts'
// Known is stamped there. Facts and heartbeat are one step: no restart comes between.
type Tell func(ctx context.Context, facts []flow.Fact, beat flow.Heartbeat) error
