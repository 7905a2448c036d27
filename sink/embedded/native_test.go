//go:build unix

package embedded_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/ext"

	"github.com/postern/postern/sink/embedded/embeddedtest"
)

func raw(t *testing.T, change func(*ch.Options)) *ch.Client {
	t.Helper()
	addr, token := embeddedtest.Native(t)
	o := ch.Options{Address: addr, Password: token}
	if change != nil {
		change(&o)
	}
	c, err := ch.Dial(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestNativeRaw goes through ch-go, which shares no code of the protocol's course
// with clickhouse-go: blocks both ways in every compression, a duplicate told.
func TestNativeRaw(t *testing.T) {
	for i, m := range []ch.Compression{ch.CompressionDisabled, ch.CompressionLZ4, ch.CompressionZSTD, ch.CompressionNone} {
		t.Run(m.String(), func(t *testing.T) {
			c := raw(t, func(o *ch.Options) { o.Compression, o.Database = m, "postern" })
			if err := c.Ping(t.Context()); err != nil {
				t.Fatal(err)
			}
			do := func(body string) {
				t.Helper()
				if err := c.Do(t.Context(), ch.Query{Body: body}); err != nil {
					t.Fatal(err)
				}
			}
			table := fmt.Sprint("native_raw_", i)
			do("CREATE TABLE " + table + " (n UInt64, s LowCardinality(String), a Array(String), d UInt8 DEFAULT 7 COMMENT 'line\nline\t''tab''', e String EPHEMERAL, m UInt8 MATERIALIZED 1) ENGINE = MergeTree ORDER BY n SETTINGS non_replicated_deduplication_window = 10")
			t.Cleanup(func() { exe(t, open(t, nil), "DROP TABLE "+table) })
			const rows, blocks = 50_000, 3
			for try := range 2 {
				var n proto.ColUInt64
				s, a := proto.NewLowCardinality[string](new(proto.ColStr)), proto.NewArray[string](new(proto.ColStr))
				sent, answers, duplicate := 0, 0, false
				fill := func() {
					n.Reset()
					s.Reset()
					a.Reset()
					for i := range rows {
						n.Append(uint64(sent*rows + i))
						s.Append(fmt.Sprint("s", i%9))
						a.Append([]string{"x", fmt.Sprint(i)}[:i%3])
					}
					sent++
				}
				fill()
				input := proto.Input{{Name: "n", Data: &n}, {Name: "s", Data: s}, {Name: "a", Data: a}}
				if err := c.Do(t.Context(), ch.Query{
					Body: "INSERT INTO " + table + " (n, s, a) VALUES", Input: input,
					Settings: []ch.Setting{{Key: "insert_deduplication_token", Value: "once", Important: true}},
					OnInput: func(context.Context) error {
						if sent == blocks {
							input.Reset()
							return io.EOF
						}
						fill()
						return nil
					},
					OnProfileEvents: func(_ context.Context, es []ch.ProfileEvent) error {
						answers++
						for _, e := range es {
							duplicate = duplicate || e.Name == "DuplicatedInsertedBlocks" && e.Value == 1
						}
						return nil
					},
				}); err != nil {
					t.Fatal(err)
				}
				if answers != blocks+1 { // clickhouse-driver (Python) waits for one behind each block, and at the end
					t.Errorf("%d packets of events for %d blocks", answers, blocks)
				}
				if duplicate != (try == 1) {
					t.Errorf("attempt %d: told that the rows were there already: %v", try+1, duplicate)
				}
			}
			var n, sum proto.ColUInt64
			var total int
			var profile proto.Profile
			if err := c.Do(t.Context(), ch.Query{Body: "SELECT n, n * 2 AS twice FROM " + table + " FORMAT Pretty", Result: proto.Results{{Name: "n", Data: &n}, {Name: "twice", Data: &sum}},
				OnResult: func(_ context.Context, b proto.Block) error {
					for i := range n {
						if sum[i] != 2*n[i] {
							return fmt.Errorf("%d and %d in a row", n[i], sum[i])
						}
					}
					total += b.Rows
					return nil
				},
				OnProfile: func(_ context.Context, p proto.Profile) error { profile = p; return nil },
			}); err != nil {
				t.Fatal(err)
			}
			if total != rows*blocks || profile.Rows != rows*blocks {
				t.Errorf("%d rows read, %d told; want %d", total, profile.Rows, rows*blocks)
			}
			if got := one[uint64](t, open(t, nil), "SELECT countIf(length(a) = n % 50000 % 3 AND d = 7 AND m = 1 AND s = concat('s', toString(n % 50000 % 9))) FROM "+table); got != rows*blocks {
				t.Errorf("%d rows are as they were sent, want %d", got, rows*blocks)
			}
		})
	}
}

// TestNativeLongStatement: ch-go gives up where it hears nothing for three seconds.
func TestNativeLongStatement(t *testing.T) {
	c := raw(t, func(o *ch.Options) { o.ReadTimeout = 2 * time.Second })
	var n proto.ColUInt64
	if err := c.Do(t.Context(), ch.Query{Body: "SELECT count() FROM (SELECT sleepEachRow(1) FROM numbers(3)) SETTINGS max_block_size = 1", Result: proto.Results{{Data: &n}}}); err != nil {
		t.Fatal(err)
	}
}

// TestNativeEmptyResult: a client must learn the columns of no rows.
func TestNativeEmptyResult(t *testing.T) {
	c := overNative.open(t, nil)
	for q, want := range map[string]string{
		"SELECT number AS n, toString(number) AS `a b` FROM numbers(3) WHERE number > 5;": "n UInt64, a b String",
		"WITH 5 AS x SELECT x FROM numbers(0) -- nothing":                                 "x UInt8",
		"SHOW TABLES LIKE 'nothing of the kind'":                                          "name String",
	} {
		rows, err := c.Query(t.Context(), q)
		if err != nil {
			t.Errorf("%s: %v", q, err)
			continue
		}
		var got []string
		for _, ct := range rows.ColumnTypes() {
			got = append(got, ct.Name()+" "+ct.DatabaseTypeName())
		}
		if rows.Next() || strings.Join(got, ", ") != want {
			t.Errorf("%s: columns %s, want %s and no row", q, strings.Join(got, ", "), want)
		}
		if err := rows.Close(); err != nil {
			t.Error(err)
		}
	}
}

// What the front refuses it refuses with an exception, and the connection lives on.
func TestNativeRefuses(t *testing.T) {
	c := overNative.open(t, func(o *clickhouse.Options) { o.MaxOpenConns = 1 })
	exe(t, c, "CREATE TABLE native_refuses (a UInt64, v Variant(String, UInt64)) ENGINE = Memory")
	defer exe(t, c, "DROP TABLE native_refuses")
	table, err := ext.NewTable("ids", ext.Column("id", "UInt64"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(10_000) {
		if err := table.Append(i); err != nil {
			t.Fatal(err)
		}
	}
	ctx := clickhouse.Context(t.Context(), clickhouse.WithExternalTable(table))
	if err := c.Exec(ctx, "SELECT count() FROM ids"); code(err) != 48 || !strings.Contains(err.Error(), "external tables") {
		t.Errorf("an external table: %v", err)
	}
	for q, want := range map[string]int32{"INSERT INTO nowhere": 60, "INSERT INTO native_refuses (a, b)": 16, "INSERT INTO native_refuses (* EXCEPT v)": 48} {
		client := raw(t, nil)
		var a proto.ColUInt64
		err := client.Do(t.Context(), ch.Query{Body: strings.ReplaceAll(q, "INTO ", "INTO postern.") + " VALUES", Input: proto.Input{{Name: "a", Data: &a}}})
		var ex *ch.Exception
		if !errors.As(err, &ex) || int32(ex.Code) != want || ex.Name != "DB::Exception" {
			t.Errorf("%s: %v; want code %d", q, err, want)
		}
	}
	b, err := c.PrepareBatch(t.Context(), "INSERT INTO native_refuses (a, v)")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Append(uint64(1), clickhouse.NewVariant("x")); err != nil {
		t.Fatal(err)
	}
	if err := b.Send(); code(err) != 48 || !strings.Contains(err.Error(), "`v`") {
		t.Errorf("a column that cannot be measured: %v", err)
	}
	if n := one[uint64](t, c, "SELECT count() FROM native_refuses"); n != 0 {
		t.Errorf("%d rows of refused inserts", n)
	}
}

// USE holds for its connection, nothing else outlives its statement.
func TestNativeUse(t *testing.T) {
	c := overNative.open(t, func(o *clickhouse.Options) { o.MaxOpenConns, o.MaxIdleConns = 1, 1 })
	exe(t, c, "USE `system`;")
	if got := one[string](t, c, "SELECT currentDatabase()"); got != "system" {
		t.Errorf("database %s", got)
	}
	if got := one[string](t, overNative.open(t, nil), "SELECT currentDatabase()"); got != "postern" {
		t.Errorf("another connection's database is %s", got)
	}
}

// An insert whose client goes, or cancels, before the block that ends it leaves nothing.
func TestNativeAbortedInsert(t *testing.T) {
	c := open(t, nil)
	exe(t, c, "CREATE TABLE native_aborted (a UInt64) ENGINE = MergeTree ORDER BY a")
	defer exe(t, c, "DROP TABLE native_aborted")
	for _, cancel := range []bool{true, false} {
		ctx, stop := context.WithCancel(t.Context())
		client := raw(t, nil)
		a := make(proto.ColUInt64, 1_000_000)
		blocks := 0
		err := client.Do(ctx, ch.Query{Body: "INSERT INTO postern.native_aborted VALUES", Input: proto.Input{{Name: "a", Data: &a}}, OnInput: func(context.Context) error {
			if blocks++; blocks == 3 { // more than a block of the engine
				if cancel {
					stop()
					return context.Canceled
				}
				return errors.New("the client is gone")
			}
			return nil
		}})
		stop()
		if err == nil {
			t.Fatal("a broken insert succeeded")
		}
		_ = client.Close()
	}
	time.Sleep(300 * time.Millisecond)
	if n := one[uint64](t, c, "SELECT count() FROM native_aborted"); n != 0 {
		t.Errorf("%d rows of inserts that broke off", n)
	}
}

// A statement whose client is gone without a word is killed.
func TestNativeDroppedConnection(t *testing.T) {
	c := open(t, nil)
	left := func() uint64 {
		return one[uint64](t, c, "SELECT count() FROM system.processes WHERE query LIKE '%cityHash64(number) = 77%' AND query NOT LIKE '%system.processes%'")
	}
	addr, token := embeddedtest.Native(t)
	var conn net.Conn
	client, err := ch.Dial(t.Context(), ch.Options{Address: addr, Password: token, Dialer: dialer(func(ctx context.Context, network, address string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, network, address)
		return conn, err
	}, &conn)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- client.Do(context.Background(), ch.Query{Body: "SELECT count() FROM numbers(1000000000000) WHERE cityHash64(number) = 77"})
	}()
	wait := func(want uint64) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); left() != want; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d statements run, want %d", left(), want)
			}
		}
	}
	wait(1)
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if <-done == nil {
		t.Error("a query over a closed connection succeeded")
	}
	wait(0)
}

type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

func (f dialFunc) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return f(ctx, network, address)
}

// dialer keeps what dial makes in conn.
func dialer(dial dialFunc, conn *net.Conn) ch.Dialer {
	return dialFunc(func(ctx context.Context, network, address string) (c net.Conn, err error) {
		*conn, err = dial(ctx, network, address)
		return *conn, err
	})
}

// What is no client of this protocol is told so, or cut off, and costs nothing.
func TestNativeStrangers(t *testing.T) {
	addr, token := embeddedtest.Native(t)
	hello := func(revision int, password string) []byte {
		var b proto.Buffer
		proto.ClientHello{Name: "x", ProtocolVersion: revision, User: "u", Password: password}.Encode(&b)
		return b.Buf
	}
	var huge proto.Buffer // a name of 2⁶² bytes
	huge.PutByte(0)
	huge.PutUVarInt(1 << 62)
	query := func(settings int) []byte {
		var b proto.Buffer
		b.PutRaw(hello(54460, token))
		b.PutString("") // addendum
		q := proto.Query{Body: "SELECT 1", Info: proto.ClientInfo{Interface: proto.InterfaceTCP, Query: proto.ClientQueryInitial}}
		for i := range settings {
			q.Settings = append(q.Settings, proto.Setting{Key: fmt.Sprint("s", i), Value: "1"})
		}
		q.EncodeAware(&b, 54460)
		return b.Buf
	}
	block := func(columns, rows int) []byte {
		b := proto.Buffer{Buf: query(0)}
		proto.ClientCodeData.Encode(&b)
		b.PutString("")
		(proto.Block{Columns: columns, Rows: rows}).EncodeAware(&b, 54460)
		return b.Buf
	}
	for name, c := range map[string]struct {
		send []byte
		want string
	}{
		"http":          {[]byte("GET / HTTP/1.1\r\n\r\n"), "HTTP is on embedded.listen"},
		"old client":    {hello(54000, token), "54429 or later is needed"},
		"wrong token":   {hello(54460, "x"), "AUTHENTICATION_FAILED"},
		"no token":      {hello(54460, ""), "AUTHENTICATION_FAILED"},
		"long name":     {huge.Buf, "at most 65536 are taken"},
		"tls":           {[]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), ""},
		"packet":        {append(hello(54460, token), 0, 9), "packet 9 is not known"},
		"settings":      {query(300), "more than 256 settings"},
		"many columns":  {block(1<<30, 1), "at most 10000 and 100000000 are taken"},
		"many rows":     {block(1, 1<<40), "at most 10000 and 100000000 are taken"},
		"rows without":  {block(0, 1), "a block of 0 columns and 1 rows"},
		"another query": {append(query(0), 1), "packet 1 where data was expected"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.Write(c.send); err != nil {
				t.Fatal(err)
			}
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			got, err := io.ReadAll(conn)
			if err != nil && !errors.Is(err, syscall.ECONNRESET) || !bytes.Contains(got, []byte(c.want)) {
				t.Errorf("answer %.300q, %v; want it to hold %q", got, err, c.want)
			}
		})
	}
}

// The engine ends while a native statement runs: it is killed after the grace period
// and the process ends in order.
func TestNativeShutdown(t *testing.T) {
	cmd, _, out, err := spawn(t, t.TempDir(), "POSTERN_TEST_NATIVE=1")
	if err != nil {
		t.Fatal(err)
	}
	addr, ok := "", false
	for !ok && out.Scan() {
		addr, ok = strings.CutPrefix(out.Text(), "native: ")
	}
	c := dial(t, addr, childToken, func(o *clickhouse.Options) { o.Protocol = clickhouse.Native })
	exe(t, c, "SELECT 1") // and a connection that waits
	failed := make(chan error, 1)
	go func() {
		failed <- dial(t, addr, childToken, func(o *clickhouse.Options) { o.Protocol = clickhouse.Native }).
			Exec(context.Background(), "SELECT count() FROM numbers(1000000000000) WHERE cityHash64(number) = 78")
	}()
	for n := uint64(0); n < 1; {
		n = one[uint64](t, c, "SELECT count() FROM system.processes WHERE query LIKE '%= 78%' AND query NOT LIKE '%system.processes%'")
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err == nil {
		t.Error("a query outlived the engine")
	}
	if !lastLine(out, "ended") {
		t.Error("the process did not end in order")
	}
}

func lastLine(out *bufio.Scanner, want string) bool {
	last := ""
	for out.Scan() {
		last = out.Text()
	}
	return last == want
}
