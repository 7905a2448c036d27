package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/postern/postern/detect"
	"github.com/postern/postern/flow"
	"github.com/postern/postern/sink"
)

// recaller tells from the roll-up of edges what was seen before.
type recaller interface {
	// recall is [sink.ClickHouse.Recall]; it waits for the store.
	recall(ctx context.Context, pairs []sink.Pair, from, before flow.Time) ([]sink.SeenEdge, error)
}

// recall waits until ClickHouse answers: whether an edge is new may not hang on whether it was
// there just then.
func (s *durableStore) recall(ctx context.Context, pairs []sink.Pair, from, before flow.Time) (seen []sink.SeenEdge, err error) {
	if err := s.wait(ctx); err != nil {
		return nil, err
	}
	return seen, s.insist(ctx, "edges seen before", func() error {
		seen, err = s.db.Recall(ctx, pairs, from, before)
		return err
	})
}

// recallGap is how long before a session the roll-up is complete: what was stored since may not be
// there yet, and where input is read again, is there already.
const recallGap = 2 * flow.Hour

// confirm asks the store about contacts that look new and may only have been forgotten.
func (j *judging) confirm(ctx context.Context, digest *detect.Digest) error {
	unsure := digest.Unsure()
	if j.past == nil || len(unsure) == 0 {
		return nil
	}
	byHour := map[flow.Time][]*detect.Contact{}
	for _, c := range unsure {
		h := c.Start - c.Start%flow.Hour
		byHour[h] = append(byHour[h], c)
	}
	for _, hour := range slices.Sorted(maps.Keys(byHour)) {
		contacts := byHour[hour]
		pairs := make([]sink.Pair, len(contacts))
		for i, c := range contacts {
			pairs[i] = sink.Pair{Client: c.Client.Addr, Server: c.Server.Addr}
		}
		slices.SortFunc(pairs, func(a, b sink.Pair) int {
			return cmp.Or(a.Client.Compare(b.Client), a.Server.Compare(b.Server))
		})
		seen, err := j.past.recall(ctx, slices.Compact(pairs), hour-j.remember, hour-recallGap)
		if err != nil {
			return fmt.Errorf("edges seen before: %w", err)
		}
		for _, c := range contacts {
			c.Recall(lastOf(seen, c))
		}
	}
	return nil
}

// lastOf is when the edge of a contact, and when any of its pair, was seen last. A dynamic port
// stands for whatever was asked of the endpoint mapper before.
func lastOf(seen []sink.SeenEdge, c *detect.Contact) (edge, pair flow.Time) {
	service := string(c.AppendService(nil))
	for i := range seen {
		e := &seen[i]
		if e.Client != c.Client.Addr || e.Server != c.Server.Addr {
			continue
		}
		pair = max(pair, e.Last)
		if e.Service == service || c.Mapped && strings.HasSuffix(e.Service, "/135") {
			edge = max(edge, e.Last)
		}
	}
	return edge, pair
}
