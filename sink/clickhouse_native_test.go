package sink

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/postern/postern/flow"
)

// What ClickHouse answers is an answer whichever of the two libraries brings it, and
// the rows stay for another attempt.
func TestAnswersAreClassified(t *testing.T) {
	overBoth(t, func(t *testing.T, p protocol) {
		db := p.open(t, nil)
		for sql, want := range map[string]struct {
			code  int32
			again bool
		}{
			"SELECT nothing FROM " + db.cfg.Database + ".flows":      {47, false},
			"INSERT INTO " + db.cfg.Database + ".nowhere VALUES (1)": {60, true},
			"SELECT groupArray(number) FROM numbers(1000000000)":     {241, true},
			"SELECT throwIf(1)": {395, true},
			"SELECT sleep(3) SETTINGS max_execution_time = 1":                  {159, true},
			"SELECT * FROM " + db.cfg.Database + ".flows SETTINGS no_such = 1": {115, false},
		} {
			err := db.exec(t.Context(), time.Minute, sql)
			if code, ok := exceptionCode(err); !ok || code != want.code || Retryable(err) != want.again {
				t.Errorf("%s: %v (retryable %v); want code %d, %v", sql, err, Retryable(err), want.code, want.again)
			}
		}
	})
}

// A result that breaks off is an error, after whatever rows came.
func TestExceptionMidStream(t *testing.T) {
	overBoth(t, func(t *testing.T, p protocol) {
		db := p.open(t, nil)
		rows, err := db.conn.Query(t.Context(), "SELECT number, throwIf(number = 100000) FROM numbers(200000) SETTINGS max_block_size = 1000")
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for rows.Next() {
			n++
		}
		var ex *clickhouse.Exception
		if err := errors.Join(rows.Err(), rows.Close()); !errors.As(err, &ex) || ex.Code != 395 || n == 0 || n > 100_000 {
			t.Errorf("%d rows, then %v", n, err)
		}
		if err := db.Ping(t.Context()); err != nil {
			t.Errorf("after it: %v", err)
		}
	})
}

// Whoever stops waiting, in a query or in an insert, is let go at once, and the engine
// goes on with neither.
func TestStopWaiting(t *testing.T) {
	overBoth(t, func(t *testing.T, p protocol) {
		db := p.open(t, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		start := time.Now()
		if err := db.exec(ctx, time.Minute, "SELECT count() FROM numbers(1000000000000) WHERE cityHash64(number) = 79"); err == nil || !Retryable(err) || time.Since(start) > 5*time.Second {
			t.Errorf("a query: %v after %v", err, time.Since(start))
		}
		// A view that sleeps makes an insert slow.
		slow := "CREATE MATERIALIZED VIEW " + db.cfg.Database + ".slow ENGINE = Null AS SELECT sleepEachRow(0.05) AS s FROM " + db.cfg.Database + ".flows"
		if err := db.exec(t.Context(), time.Minute, slow); err != nil {
			t.Fatal(err)
		}
		names := flow.NewNames(0)
		w := db.NewFlowWriter(names)
		w.AppendRecords(randomRecords(rand.New(rand.NewPCG(1, 1)), names, 50))
		ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		start = time.Now()
		if _, err := w.Flush(ctx, insertNo(1)); err == nil || !Retryable(err) || time.Since(start) > 5*time.Second || w.Rows() != 50 {
			t.Errorf("an insert: %v after %v, %d rows left", err, time.Since(start), w.Rows())
		}
		if err := db.exec(t.Context(), time.Minute, "DROP TABLE "+db.cfg.Database+".slow SYNC"); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			running := query(t, db, "SELECT count() AS n FROM system.processes WHERE query LIKE '%= 79' OR query LIKE 'INSERT INTO "+db.cfg.Database+".flows%'")
			if running == `{"n":0}` {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("still running: %s", running)
			}
		}
		// The same range again: once, whether the engine had got as far or not.
		if _, err := w.Flush(t.Context(), insertNo(1)); err != nil {
			t.Fatal(err)
		}
		wantQuery(t, db, "SELECT count() AS n FROM flows", `{"n":50}`)
	})
}

// A server that goes away in the middle of an insert over the native protocol is dialled
// anew for the next.
func TestNativeDialsAgain(t *testing.T) {
	db := overNative.open(t, nil)
	names := flow.NewNames(0)
	w := db.NewFlowWriter(names)
	flush := func(n int) error {
		w.AppendRecords(randomRecords(rand.New(rand.NewPCG(1, uint64(n))), names, 10))
		_, err := w.Flush(t.Context(), insertNo(n))
		return err
	}
	if err := flush(1); err != nil {
		t.Fatal(err)
	}
	if err := db.raw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := flush(2); !errors.Is(err, ch.ErrClosed) || !Retryable(err) || strings.Contains(err.Error(), db.options.Auth.Password) {
		t.Errorf("over a closed connection: %v", err)
	}
	if _, err := w.Flush(t.Context(), insertNo(2)); err != nil {
		t.Errorf("again: %v", err)
	}
	wantQuery(t, db, "SELECT count() AS n FROM flows", `{"n":20}`)
}
