package sink

import (
	"context"
	"errors"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/cenkalti/backoff/v5"
)

// A refusal is an error that trying again cannot mend.
type refusal struct{ err error }

func permanent(err error) error  { return &refusal{err} }
func (e *refusal) Error() string { return e.err.Error() }
func (e *refusal) Unwrap() error { return e.err }

// refusals are the answers of ClickHouse that say the data or the schema is
// wrong (ErrorCodes.cpp): the same insert will be refused for ever. Every other
// code is about the server's state (memory, disk, parts, read-only, network,
// quotas, passwords), which an operator can mend while the spool holds the flows.
var refusals = map[int32]string{
	2: "unsupported parameter", 6: "cannot parse text", 7: "incorrect number of columns", 8: "no such column in the block",
	9: "sizes of columns do not match", 10: "column not found in block", 16: "no such column in table",
	20: "number of columns does not match", 26: "cannot parse quoted string", 27: "cannot parse input",
	32: "attempt to read after the end", 33: "cannot read all data", 34: "too many arguments", 36: "bad arguments",
	38: "cannot parse date", 41: "cannot parse date and time", 43: "illegal type", 44: "illegal column", 47: "unknown identifier",
	48: "not implemented", 49: "logical error", 50: "unknown type", 53: "type mismatch", 62: "syntax error",
	69: "argument out of bound", 70: "cannot convert type", 72: "cannot parse number", 73: "unknown format", 115: "unknown setting",
	117: "incorrect data", 131: "too large string", 128: "too large array", 190: "sizes of arrays do not match",
	349: "cannot insert NULL", 469: "constraint violated", 636: "cannot extract structure", 691: "unknown element of enum",
}

// Retryable says whether the same insert may succeed later: the network, a
// time-out, too little memory, too many parts, a read-only table, a full disk,
// a missing right. It is false for what is wrong with the rows or the schema,
// which must be reported and counted, not sent again; and for a nil error.
func Retryable(err error) bool {
	if err == nil {
		return false
	}
	if _, ok := errors.AsType[*refusal](err); ok {
		return false
	}
	code, ok := exceptionCode(err)
	if !ok {
		return true // it never reached the server, or the answer never reached us
	}
	_, refused := refusals[code]
	return !refused
}

// exceptionCode is the code ClickHouse gave, if the error is an answer of ClickHouse.
func exceptionCode(err error) (int32, bool) {
	if e, ok := errors.AsType[*clickhouse.Exception](err); ok {
		return e.Code, true
	}
	if raw, ok := errors.AsType[*ch.Exception](err); ok {
		return int32(raw.Code), true
	}
	return 0, false
}

// The pauses between attempts: at first shorter than a segment takes to fill,
// at last as long as an operator does not notice.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 30 * time.Second
)

// retry runs do until it succeeds, fails for good, or ctx ends. It says so in the log at
// the first failure, and then each time the pause has grown to its longest.
func retry[T any](ctx context.Context, db *ClickHouse, table string, do func() (T, error)) (T, error) {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = firstPause, lastPause
	failures := 0
	done, err := backoff.Retry(ctx, func() (T, error) {
		v, err := do()
		if err != nil && !Retryable(err) {
			return v, backoff.Permanent(err)
		}
		return v, err
	}, backoff.WithBackOff(pause), backoff.WithMaxElapsedTime(0), backoff.WithNotify(func(err error, next time.Duration) {
		failures++
		db.metrics.retries.WithLabelValues(table).Inc()
		if failures == 1 || next > lastPause/2 {
			db.log.Warn("ClickHouse does not take rows; trying again", "table", table, "failures", failures, "pause", next, "error", err)
		}
	}))
	if err == nil && failures > 0 {
		db.log.Info("ClickHouse takes rows again", "table", table, "failures", failures)
	}
	return done, err
}
