package sink

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/postern/postern/flow"
)

// Pair is who began sessions and who answered them.
type Pair struct{ Client, Server flow.Addr }

// SeenEdge says when a service of a pair was used last.
type SeenEdge struct {
	Pair
	Service string // as policy writes it
	Last    flow.Time
}

// maxRecalled bounds the pairs of one question: 60 kB of SQL.
const maxRecalled = 512

// Recall tells which services the pairs used in the hours that begin from from on and before before,
// by sessions that were answered and that neither policy nor enforcement speaks against nor an
// exception let in: what detectors of behaviour take for normal. It reads the hourly roll-up.
func (db *ClickHouse) Recall(ctx context.Context, pairs []Pair, from, before flow.Time) (seen []SeenEdge, err error) {
	for part := range slices.Chunk(pairs, maxRecalled) {
		if seen, err = db.recall(ctx, seen, part, from, before); err != nil {
			return nil, fmt.Errorf("looking for edges seen before: %w", db.redact(err))
		}
	}
	return seen, nil
}

func (db *ClickHouse) recall(ctx context.Context, seen []SeenEdge, pairs []Pair, from, before flow.Time) ([]SeenEdge, error) {
	ctx, cancel := context.WithTimeout(ctx, db.cfg.Timeouts.Query)
	defer cancel()
	var in strings.Builder
	for i, p := range pairs {
		if i > 0 {
			in.WriteByte(',')
		}
		fmt.Fprintf(&in, "(toIPv6('%s'),toIPv6('%s'))", p.Client, p.Server) // addresses only
	}
	rows, err := db.conn.Query(ctx, "SELECT client, server, service, max(last_seen) AS last FROM "+db.cfg.Database+`.edges
		WHERE hour >= ? AND hour < ? AND (client, server) IN (`+in.String()+`) AND orientation = 'known' AND answered > 0 AND observed != 'deny'
			AND exception = '' AND reason IN ('', 'permitted', 'uncovered', 'unverified', 'expiry-uncertain')
		GROUP BY client, server, service ORDER BY client, server, service`, from.Std(), before.Std())
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	for rows.Next() {
		var client, server netip.Addr
		var e SeenEdge
		var last time.Time
		if err := rows.Scan(&client, &server, &e.Service, &last); err != nil {
			return nil, err
		}
		e.Client, e.Server, e.Last = flow.AddrFromNetip(client), flow.AddrFromNetip(server), flow.Time(last.UnixMilli())
		seen = append(seen, e)
	}
	return seen, rows.Err()
}
