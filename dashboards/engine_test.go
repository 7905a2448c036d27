package dashboards

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/postern/postern/sink"
	"github.com/postern/postern/sink/embedded/embeddedtest"
)

// engine is a database of the real engine as Grafana meets it: by HTTP, as a user that may only read.
type engine struct{ url, token, reader, database string }

// answer is what the engine says to a query, with what it had to read.
type answer struct {
	Meta []struct{ Name, Type string }
	Data [][]any
	Read struct {
		Rows  uint64  `json:"rows_read"`
		Bytes uint64  `json:"bytes_read"`
		Took  float64 `json:"elapsed"` // seconds
	} `json:"statistics"`
}

// migrated makes a database with all migrations.
func migrated(t *testing.T, database string) engine {
	t.Helper()
	at, token := embeddedtest.Start(t)
	cfg := sink.DefaultClickHouseConfig()
	cfg.Database = database
	db, err := sink.Open(t.Context(), cfg, sink.Options{Endpoint: at, Token: token})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Migrate(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	e := engine{at, token, "reader", database}
	t.Cleanup(func() {
		_, _ = e.do(context.WithoutCancel(t.Context()), "default", token, "DROP DATABASE "+database+" SYNC", nil)
	})
	return e
}

func (e engine) do(ctx context.Context, user, token, sql string, settings url.Values) ([]byte, error) {
	q := url.Values{"database": {e.database}}
	maps.Copy(q, settings)
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url+"/?"+q.Encode(), strings.NewReader(sql))
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-ClickHouse-User", user)
	req.Header.Set("X-ClickHouse-Key", token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%d: %s", resp.StatusCode, b)
	}
	return b, err
}

// insert runs a statement that writes.
func (e engine) insert(t testing.TB, sql string) {
	t.Helper()
	if _, err := e.do(t.Context(), "default", e.token, sql, nil); err != nil {
		t.Fatalf("%v\n%s", err, sql)
	}
}

// ask runs a query that only reads.
func (e engine) ask(ctx context.Context, sql string) (a answer, err error) {
	return e.askAs(ctx, "reader", e.reader, sql)
}

func (e engine) askAs(ctx context.Context, user, token, sql string) (a answer, err error) {
	b, err := e.do(ctx, user, token, sql, url.Values{"default_format": {"JSONCompact"}, "output_format_json_quote_64bit_integers": {"0"}})
	if err == nil {
		err = json.Unmarshal(b, &a)
	}
	return a, err
}
