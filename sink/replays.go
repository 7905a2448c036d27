package sink

import (
	"context"
	"fmt"
	"time"

	"github.com/postern/postern/flow"
)

// Replay is a capture file that was read into the flows table.
type Replay struct {
	Input   string    // the file's content hash, as in [Insert.Input]
	Policy  string    // the policy it was judged by
	Rows    uint64    // flows it gave; 0 until it was read to the end
	Started flow.Time // [Insert.At] of its flows
}

// LastReplay is the newest replay of an input; its Policy is empty if there was none.
func (db *ClickHouse) LastReplay(ctx context.Context, input string) (Replay, error) {
	ctx, cancel := context.WithTimeout(ctx, db.cfg.Timeouts.Query)
	defer cancel()
	r := Replay{Input: input}
	var started time.Time
	err := db.conn.QueryRow(ctx, "SELECT argMax(policy, inserted_at), argMax(rows, inserted_at), argMax(started_at, inserted_at) FROM "+
		db.cfg.Database+".replays WHERE input = ?", input).Scan(&r.Policy, &r.Rows, &started)
	if err != nil {
		return r, fmt.Errorf("looking for an earlier replay of %s: %w", input, db.redact(err))
	}
	r.Started = flow.Time(started.UnixMilli())
	return r, nil
}

// NoteReplay records a replay as of now: at its beginning without rows, at its end with them.
func (db *ClickHouse) NoteReplay(ctx context.Context, r Replay, now flow.Time) error {
	ins := Insert{Token: fmt.Sprintf("replay %s %s %d %d", r.Input, r.Policy, r.Rows, now), At: now}
	_, err := db.insertRows(ctx, "replays", "input, policy, rows, started_at, inserted_at", ins, 1, func(int) []any {
		return []any{r.Input, r.Policy, r.Rows, r.Started.Std(), now.Std()}
	})
	return err
}
