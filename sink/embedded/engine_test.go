package embedded_test

import (
	"context"
	"strings"
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/postern/postern/sink/embedded/embeddedtest"
)

// open connects the real driver to the shared engine.
func open(t testing.TB, change func(*clickhouse.Options)) driver.Conn {
	t.Helper()
	url, token := embeddedtest.Start(t)
	opt := &clickhouse.Options{
		Protocol: clickhouse.HTTP,
		Addr:     []string{strings.TrimPrefix(url, "http://")},
		Auth:     clickhouse.Auth{Username: "default", Password: token},
	}
	if change != nil {
		change(opt)
	}
	c, err := clickhouse.Open(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestDriver(t *testing.T) {
	c := open(t, nil)
	ctx := context.Background()
	if err := c.Ping(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Exec(ctx, "CREATE TABLE driver (a UInt32, b LowCardinality(String)) ENGINE = MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 100"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		b, err := c.PrepareBatch(clickhouse.Context(ctx, clickhouse.WithSettings(clickhouse.Settings{"insert_deduplication_token": "a"})), "INSERT INTO driver")
		if err != nil {
			t.Fatal(err)
		}
		for i := range uint32(1000) {
			if err := b.Append(i, "x"); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Send(); err != nil {
			t.Fatal(err)
		}
	}
	var n uint64
	if err := c.QueryRow(ctx, "SELECT count() FROM driver WHERE b = 'x'").Scan(&n); err != nil || n != 1000 {
		t.Fatalf("%d rows, %v; want 1000", n, err)
	}
}
