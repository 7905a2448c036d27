//go:build unix

package embedded_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/sink/embedded"
	"github.com/postern/postern/sink/embedded/embeddedtest"
	"github.com/postern/postern/test/part"
)

// TestMain runs the engine itself where the test binary was started as a child:
// tests that kill it need a process of its own.
func TestMain(m *testing.M) {
	if dir := os.Getenv("POSTERN_TEST_CHILD"); dir != "" {
		child(dir)
		return
	}
	os.Exit(m.Run())
}

const childToken, childReader = "child-token", "child-reader"

func child(dir string) {
	cfg := embedded.DefaultConfig()
	cfg.DataDir, cfg.Listen, cfg.Token, cfg.ReadOnlyToken = dir, "127.0.0.1:0", childToken, childReader
	cfg.MaxMemory = flow.GiB
	if os.Getenv("POSTERN_TEST_DISK") != "" {
		cfg.MaxDisk = 64 * flow.MiB
	}
	if os.Getenv("POSTERN_TEST_NATIVE") != "" {
		cfg.Native.Listen = "127.0.0.1:0"
	}
	fail := func(err error) {
		fmt.Println("failed:", err)
		os.Exit(3)
	}
	e, err := embedded.New(cfg, slog.New(slog.NewTextHandler(os.Stderr, nil)), nil)
	if err != nil {
		fail(err)
	}
	if os.Getenv("POSTERN_TEST_PATIENCE") != "" {
		e.SetPatience(time.Second)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	select {
	case err := <-done:
		fail(err)
	case <-e.Ready():
		fmt.Println("ready:", e.Addr())
		if a := e.NativeAddr(); a != nil {
			fmt.Println("native:", a)
		}
	}
	if err := <-done; err != nil {
		fail(err)
	}
	fmt.Println("ended")
}

// spawn starts a child on dir and returns its address, or what it failed with.
func spawn(t testing.TB, dir string, env ...string) (cmd *exec.Cmd, addr string, out *bufio.Scanner, err error) {
	t.Helper()
	embeddedtest.Start(t) // so that the library is there
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), "POSTERN_TEST_CHILD="+dir), env...)
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	out = bufio.NewScanner(pipe)
	for out.Scan() {
		if a, ok := strings.CutPrefix(out.Text(), "ready: "); ok {
			return cmd, a, out, nil
		}
		if f, ok := strings.CutPrefix(out.Text(), "failed: "); ok {
			return cmd, "", out, errors.New(f)
		}
	}
	t.Fatal("the child said nothing")
	return
}

func dial(t testing.TB, addr, token string, change func(*clickhouse.Options)) driver.Conn {
	t.Helper()
	opt := &clickhouse.Options{Protocol: clickhouse.HTTP, Addr: []string{addr}, Auth: clickhouse.Auth{Username: "default", Password: token}, ReadTimeout: time.Minute}
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

// open connects the real driver to the shared engine over HTTP.
func open(t testing.TB, change func(*clickhouse.Options)) driver.Conn {
	t.Helper()
	return overHTTP.open(t, change)
}

// front is a way to the engine: each of its tests that can runs over both.
type front clickhouse.Protocol

const (
	overHTTP   = front(clickhouse.HTTP)
	overNative = front(clickhouse.Native)
)

func (f front) open(t testing.TB, change func(*clickhouse.Options)) driver.Conn {
	t.Helper()
	return f.dial(t, tokenOf(t), change)
}

func (f front) dial(t testing.TB, token string, change func(*clickhouse.Options)) driver.Conn {
	t.Helper()
	addr := addrOf(t)
	if f == overNative {
		addr, _ = embeddedtest.Native(t)
	}
	return dial(t, addr, token, func(o *clickhouse.Options) {
		o.Protocol = clickhouse.Protocol(f)
		if change != nil {
			change(o)
		}
	})
}

// overBoth runs a test over both fronts, each time on a database without tables.
func overBoth(t *testing.T, test func(*testing.T, front)) {
	for _, f := range []front{overHTTP, overNative} {
		t.Run(clickhouse.Protocol(f).String(), func(t *testing.T) {
			c := open(t, nil)
			t.Cleanup(func() {
				for table := range strings.FieldsSeq(one[string](t, c, "SELECT arrayStringConcat(groupArray(name), ' ') FROM system.tables WHERE database = 'postern'")) {
					exe(t, c, "DROP TABLE "+table+" SYNC")
				}
			})
			test(t, f)
		})
	}
}

func exe(t testing.TB, c driver.Conn, q string) {
	t.Helper()
	if err := c.Exec(context.Background(), q); err != nil {
		t.Fatalf("%s: %v", q, err)
	}
}

func one[T any](t testing.TB, c driver.Conn, q string) (v T) {
	t.Helper()
	if err := c.QueryRow(context.Background(), q).Scan(&v); err != nil {
		t.Fatalf("%s: %v", q, err)
	}
	return v
}

func withToken(ctx context.Context, token string) context.Context {
	return clickhouse.Context(ctx, clickhouse.WithSettings(clickhouse.Settings{"insert_deduplication_token": token}))
}

func insertInts(c driver.Conn, table, token string, from, n uint64) error {
	b, err := c.PrepareBatch(withToken(context.Background(), token), "INSERT INTO "+table)
	if err != nil {
		return err
	}
	for i := range n {
		if err := b.Append(from + i); err != nil {
			return err
		}
	}
	return b.Send()
}

func code(err error) int32 {
	if ex, ok := errors.AsType[*clickhouse.Exception](err); ok {
		return ex.Code
	}
	return -1
}

func TestTypes(t *testing.T) { overBoth(t, testTypes) }

func testTypes(t *testing.T, f front) {
	type row struct {
		A  uint64
		L  string
		I6 netip.Addr
		D  time.Time
		DT time.Time
		AR []string
		M  map[string]uint32
		N  *int32
		E  string
		B  bool
		F  float64
		FS string
		D2 [][]uint16
		NL []*string
	}
	mk := func(i uint64) row {
		n := int32(-i)
		p := &n
		if i%2 == 0 {
			p = nil
		}
		s := "nul"
		return row{A: i, L: fmt.Sprint("l", i%5), I6: netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i)), D: time.UnixMilli(1_760_000_000_123 + int64(i)).UTC(),
			DT: time.Unix(1_760_000_000+int64(i), 0).UTC(), AR: []string{"a", fmt.Sprint(i)}, M: map[string]uint32{"k": uint32(i)}, N: p,
			E: []string{"in", "out"}[i%2], B: i%3 == 0, F: float64(i) / 3, FS: "abcd", D2: [][]uint16{{1}, {}, {2, uint16(i)}}, NL: []*string{nil, &s}}
	}
	const ddl = ` (A UInt64, L LowCardinality(String), I6 IPv6, D DateTime64(3), DT DateTime('UTC'), AR Array(LowCardinality(String)), M Map(LowCardinality(String), UInt32),
		N Nullable(Int32), E Enum8('in' = 1, 'out' = 2), B Bool, F Float64, FS FixedString(4), D2 Array(Array(UInt16)), NL Array(Nullable(String))) ENGINE = MergeTree ORDER BY A`
	for _, m := range []clickhouse.CompressionMethod{clickhouse.CompressionNone, clickhouse.CompressionLZ4, clickhouse.CompressionZSTD, clickhouse.CompressionGZIP} {
		if m == clickhouse.CompressionGZIP && f == overNative {
			continue
		}
		t.Run(m.String(), func(t *testing.T) {
			c := f.open(t, func(o *clickhouse.Options) {
				o.Compression = &clickhouse.Compression{Method: m, Level: 3}
				if m == clickhouse.CompressionGZIP {
					o.Settings = clickhouse.Settings{"enable_http_compression": 1}
				}
			})
			table := "types_" + m.String()
			exe(t, c, "CREATE TABLE "+table+ddl)
			b, err := c.PrepareBatch(context.Background(), "INSERT INTO "+table)
			if err != nil {
				t.Fatal(err)
			}
			var want []row
			for i := range uint64(3000) {
				r := mk(i)
				want = append(want, r)
				if err := b.AppendStruct(&r); err != nil {
					t.Fatal(err)
				}
			}
			if err := b.Send(); err != nil {
				t.Fatal(err)
			}
			var got []row
			if err := c.Select(context.Background(), &got, "SELECT * FROM "+table+" ORDER BY A SETTINGS max_block_size = 700"); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
				t.Fatal(d[:min(len(d), 2000)])
			}
		})
	}
}

func TestBindAndParameters(t *testing.T) { overBoth(t, testBindAndParameters) }

func testBindAndParameters(t *testing.T, f front) {
	c := f.open(t, nil)
	var a string
	var n uint64
	ctx := clickhouse.Context(context.Background(), clickhouse.WithParameters(clickhouse.Parameters{"s": "it's \\\\ a\\ttab", "n": "7"}))
	if err := c.QueryRow(ctx, "SELECT {s:String}, {n:UInt64}").Scan(&a, &n); err != nil || a != "it's \\ a\ttab" || n != 7 { // a value is escaped as in TSV
		t.Fatalf("%q %d %v", a, n, err)
	}
	if err := c.QueryRow(context.Background(), "SELECT ?, toUInt64(?)", "x'y", 3).Scan(&a, &n); err != nil || a != "x'y" || n != 3 {
		t.Fatalf("%q %d %v", a, n, err)
	}
	// Settings hold for their own statement and no longer.
	ctx = clickhouse.Context(context.Background(), clickhouse.WithSettings(clickhouse.Settings{"max_threads": 1, "max_block_size": 77}))
	if err := c.QueryRow(ctx, "SELECT toString(getSetting('max_block_size')), toUInt64(getSetting('max_threads'))").Scan(&a, &n); err != nil || a != "77" || n != 1 {
		t.Fatalf("%q %d %v", a, n, err)
	}
	if got := one[string](t, c, "SELECT toString(getSetting('max_block_size'))"); got == "77" {
		t.Fatal("a setting outlived its statement")
	}
	if got := one[string](t, c, "SELECT toString(getSetting('min_free_disk_bytes_to_perform_insert'))"); got != "268435456" {
		t.Fatalf("min_free_disk_bytes_to_perform_insert is %s", got)
	}
	if one[bool](t, c, "SELECT getSetting('async_insert')") {
		t.Fatal("async_insert is on")
	}
	if got := one[string](t, c, "SELECT currentDatabase()"); got != "postern" {
		t.Fatal(got)
	}
	if got := one[string](t, c, "SELECT timezone()"); got != "UTC" {
		t.Fatal(got)
	}
}

func TestTokens(t *testing.T) { overBoth(t, testTokens) }

func testTokens(t *testing.T, f front) {
	c := f.open(t, nil)
	const window = " ENGINE = MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 1000"
	exe(t, c, "CREATE TABLE tokens (a UInt64)"+window)
	exe(t, c, "CREATE TABLE tokens_sum (a UInt64, n UInt64) ENGINE = SummingMergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 1000")
	exe(t, c, "CREATE MATERIALIZED VIEW tokens_mv TO tokens_sum AS SELECT a % 10 AS a, count() AS n FROM tokens GROUP BY a")
	dedup := f.open(t, func(o *clickhouse.Options) {
		o.Settings = clickhouse.Settings{"deduplicate_blocks_in_dependent_materialized_views": 1}
	})
	for _, tok := range []string{"one", "one", "two", "one"} {
		if err := insertInts(dedup, "tokens", tok, 0, 1000); err != nil {
			t.Fatal(err)
		}
	}
	if n := one[uint64](t, c, "SELECT count() FROM tokens"); n != 2000 {
		t.Errorf("%d rows from two tokens, want 2000", n)
	}
	if n := one[uint64](t, c, "SELECT sum(n) FROM tokens_sum"); n != 2000 {
		t.Errorf("%d counted in the view, want 2000", n)
	}
}

func addrOf(t testing.TB) string {
	u, _ := embeddedtest.Start(t)
	return strings.TrimPrefix(u, "http://")
}

func tokenOf(t testing.TB) string {
	_, token := embeddedtest.Start(t)
	return token
}

func TestErrors(t *testing.T) { overBoth(t, testErrors) }

func testErrors(t *testing.T, f front) {
	for _, m := range []clickhouse.CompressionMethod{clickhouse.CompressionNone, clickhouse.CompressionLZ4} {
		c := f.open(t, func(o *clickhouse.Options) { o.Compression = &clickhouse.Compression{Method: m} })
		ctx := context.Background()
		for q, want := range map[string]int32{
			"SELECT * FROM nowhere":  60,
			"SELEC 1":                62,
			"nonsense":               62,
			"SELECT 1; SELECT 2":     62,
			"SELECT nofunction(1)":   46,
			"SELECT * FROM nodb.tab": 81,
			"DROP TABLE nowhere":     60,
			// 100,000 rows are out before it fails: the status was 200 long ago.
			"SELECT throwIf(number = 100000), number FROM numbers(200000) SETTINGS max_block_size = 1000": 395,
		} {
			rows, err := c.Query(ctx, q)
			if err == nil {
				for rows.Next() {
				}
				err = rows.Err()
				rows.Close()
			}
			if code(err) != want {
				t.Errorf("%v %s: %v; want code %d", m, q, err, want)
			}
		}
		if err := c.Exec(clickhouse.Context(ctx, clickhouse.WithSettings(clickhouse.Settings{"no_such_setting": 1})), "SELECT 1"); code(err) != 115 {
			t.Errorf("unknown setting: %v", err)
		}
		if err := c.Exec(clickhouse.Context(ctx, clickhouse.WithSettings(clickhouse.Settings{"session_id": "x"})), "SELECT 1"); f == overHTTP && code(err) != 344 {
			t.Errorf("session: %v", err)
		}
		if err := c.Exec(ctx, "INSERT INTO nowhere VALUES (1)"); code(err) != 60 {
			t.Errorf("insert into nowhere: %v", err)
		}
	}
	c := f.open(t, func(o *clickhouse.Options) { o.Auth.Password = "wrong" })
	if err := c.Ping(context.Background()); code(err) != 516 {
		t.Errorf("wrong token: %v", err)
	}
}

func TestInsertText(t *testing.T) { overBoth(t, testInsertText) }

func testInsertText(t *testing.T, f front) {
	c := f.open(t, nil)
	exe(t, c, "CREATE TABLE txt (a UInt64, s String) ENGINE = MergeTree ORDER BY a")
	exe(t, c, "INSERT INTO txt VALUES (1, 'a;b FORMAT x'), (2, 'c')")
	exe(t, c, "INSERT INTO postern.txt (a, s) FORMAT JSONEachRow {\"a\": 3, \"s\": \"VALUES\"}\n{\"a\": 4, \"s\": \"é\"}")
	exe(t, c, "INSERT INTO txt SELECT number + 5, 'sel' FROM numbers(3)")
	if got := one[string](t, c, "SELECT arrayStringConcat(groupArray(concat(toString(a), s)), ',') FROM (SELECT * FROM txt ORDER BY a)"); got != "1a;b FORMAT x,2c,3VALUES,4é,5sel,6sel,7sel" {
		t.Fatal(got)
	}
	if err := c.Exec(context.Background(), "INSERT INTO txt VALUES (8, 'ok'), (9, broken"); code(err) < 0 {
		t.Fatalf("broken values: %v", err)
	}
	if n := one[uint64](t, c, "SELECT count() FROM txt"); n != 7 {
		t.Fatalf("%d rows after a broken insert, want 7", n)
	}
}

func TestCancel(t *testing.T) { overBoth(t, testCancel) }

func testCancel(t *testing.T, f front) {
	c := f.open(t, nil)
	for _, q := range []string{
		"SELECT sleepEachRow(1), number FROM numbers(60) SETTINGS max_block_size = 1, function_sleep_max_microseconds_per_block = 100000000",
		"SELECT count() FROM numbers(1000000000000) WHERE cityHash64(number) = 1",
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		start := time.Now()
		rows, err := c.Query(ctx, q)
		if err == nil {
			for rows.Next() {
			}
			err = rows.Err()
			rows.Close()
		}
		cancel()
		if err == nil || time.Since(start) > 10*time.Second {
			t.Fatalf("%s: %v after %v", q, err, time.Since(start))
		}
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		n := one[uint64](t, c, "SELECT count() FROM system.processes WHERE query NOT LIKE '%system.processes%'")
		if n == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d statements still run after their clients went away", n)
		}
	}
}

// TestStandingStill: deadlines for bodies neither end a long statement nor outlive
// their request on the connection.
func TestStandingStill(t *testing.T) {
	_, addr, _, err := spawn(t, t.TempDir(), "POSTERN_TEST_PATIENCE=1")
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, addr, childToken, func(o *clickhouse.Options) { o.MaxOpenConns = 1 })
	if n := one[uint64](t, c, "SELECT count() FROM (SELECT sleepEachRow(1) FROM numbers(4)) SETTINGS max_block_size = 1"); n != 4 {
		t.Fatalf("%d rows", n)
	}
	exe(t, c, "CREATE TABLE s (a UInt8) ENGINE = Memory")
	time.Sleep(1500 * time.Millisecond)
	exe(t, c, "INSERT INTO s VALUES (1)")
}

func TestConcurrency(t *testing.T) { overBoth(t, testConcurrency) }

func testConcurrency(t *testing.T, f front) {
	c := f.open(t, func(o *clickhouse.Options) { o.MaxOpenConns = 16 })
	exe(t, c, "CREATE TABLE conc (a UInt64) ENGINE = MergeTree ORDER BY a")
	var wg sync.WaitGroup
	for g := range 12 {
		wg.Go(func() {
			for i := range 10 {
				if g%3 == 0 {
					if err := insertInts(c, "conc", fmt.Sprint("c", g, "-", i), uint64(i), 100); err != nil {
						t.Error(err)
					}
					continue
				}
				var n uint64
				if err := c.QueryRow(context.Background(), fmt.Sprintf("SELECT toUInt64(%d)", g*1000+i)).Scan(&n); err != nil || n != uint64(g*1000+i) {
					t.Errorf("%d %v", n, err)
				}
			}
		})
	}
	wg.Wait()
	if n := one[uint64](t, c, "SELECT count() FROM conc"); n != 4000 {
		t.Fatalf("%d rows, want 4000", n)
	}
}

func TestMemoryCap(t *testing.T) { overBoth(t, testMemoryCap) }

func testMemoryCap(t *testing.T, f front) {
	c := f.open(t, nil)
	err := c.Exec(context.Background(), "SELECT length(groupArray(number)) FROM numbers(2000000000)")
	if code(err) != 241 {
		t.Fatalf("%v; want code 241", err)
	}
	if got := one[uint8](t, c, "SELECT 1"); got != 1 {
		t.Fatal(got)
	}
}

func TestGoStillWorks(t *testing.T) {
	open(t, nil)
	for range 3 {
		func() {
			defer func() {
				if recover() == nil {
					t.Error("a nil dereference did not panic")
				}
			}()
			var p *int
			_ = *p
		}()
	}
	if out, err := exec.Command("sh", "-c", "echo $TZ; exit 0").Output(); err != nil || string(out) != os.Getenv("TZ")+"\n" {
		t.Fatalf("%q %v", out, err)
	}
	runtime.GC()
	got := make(chan os.Signal, 1)
	signal.Notify(got, syscall.SIGUSR1)
	defer signal.Stop(got)
	if err := syscall.Kill(os.Getpid(), syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	select {
	case <-got:
	case <-time.After(5 * time.Second):
		t.Fatal("SIGUSR1 did not arrive")
	}
}

// curl runs the real one.
func curl(t *testing.T, args ...string) (status, body string) {
	t.Helper()
	part.Need(t, "curl", "curl")
	cmd := exec.Command("curl", append([]string{"-sS", "--max-time", "30", "-w", "\n%{http_code}"}, args...)...)
	out, err := cmd.CombinedOutput()
	i := bytes.LastIndexByte(out, '\n')
	if i < 0 {
		t.Fatalf("curl %q: %v: %s", args, err, out)
	}
	return string(out[i+1:]), string(out[:i])
}

func TestCurl(t *testing.T) {
	u, token := embeddedtest.Start(t)
	t.Setenv("NO_PROXY", "127.0.0.1")
	auth := "default:" + token
	for name, c := range map[string]struct {
		args         []string
		status, body string
	}{
		"ping":       {[]string{u + "/ping"}, "200", "Ok.\n"},
		"basic":      {[]string{"-u", auth, u, "--data-binary", "SELECT 1"}, "200", "1\n"},
		"header":     {[]string{"-H", "X-ClickHouse-Key: " + token, u, "-d", "SELECT 1"}, "200", "1\n"},
		"bearer":     {[]string{"-H", "Authorization: Bearer " + token, u, "-d", "SELECT 1"}, "200", "1\n"},
		"password":   {[]string{u + "/?password=" + token + "&query=SELECT+1"}, "200", "1\n"},
		"no token":   {[]string{u, "-d", "SELECT 1"}, "401", ""},
		"bad token":  {[]string{"-u", "default:x", u, "-d", "SELECT 1"}, "401", ""},
		"json":       {[]string{"-u", auth, u, "-d", "SELECT number AS n FROM numbers(2) FORMAT JSONCompact SETTINGS output_format_write_statistics = 0"}, "200", ""},
		"csv names":  {[]string{"-u", auth, u, "-d", "SELECT number AS n FROM numbers(100000) FORMAT CSVWithNames"}, "200", ""},
		"params":     {[]string{"-u", auth, u + "/?param_x=a%27b", "-d", "SELECT {x:String} FORMAT TSVRaw"}, "200", "a'b\n"},
		"setting":    {[]string{"-u", auth, u + "/?max_threads=1", "-d", "SELECT getSetting('max_threads')"}, "200", "1\n"},
		"get write":  {[]string{"-u", auth, "-G", u, "--data-urlencode", "query=CREATE TABLE curl_get (a UInt8) ENGINE = Memory"}, "403", ""},
		"create":     {[]string{"-u", auth, u, "-d", "CREATE TABLE IF NOT EXISTS curl_" + fmt.Sprint(os.Getpid()) + " (a UInt8) ENGINE = Memory"}, "200", ""},
		"syntax":     {[]string{"-u", auth, u, "-d", "SELECT FROM WHERE"}, "400", ""},
		"empty":      {[]string{"-u", auth, u, "-d", ""}, "400", ""},
		"set":        {[]string{"-u", auth, u, "-d", "SET max_threads = 1"}, "200", ""},
		"wrong path": {[]string{"-u", auth, u + "/admin"}, "404", ""},
		"put":        {[]string{"-u", auth, "-X", "PUT", u + "/?query=SELECT+1"}, "405", ""},
		"multipart":  {[]string{"-u", auth, "-F", "query=SELECT 1", u}, "501", ""},
		"delete":     {[]string{"-u", auth, u + "/?decompress=1", "-d", "SELECT 1 and then some bytes that are no block"}, "400", ""},
	} {
		t.Run(name, func(t *testing.T) {
			status, body := curl(t, c.args...)
			if status != c.status || c.body != "" && body != c.body {
				t.Errorf("%s %.300q; want %s %q", status, body, c.status, c.body)
			}
			switch name {
			case "csv names":
				if n := strings.Count(body, "\"n\""); n != 1 || strings.Count(body, "\n") != 100001 {
					t.Errorf("%d headers in %d lines", n, strings.Count(body, "\n"))
				}
			case "json":
				if !strings.Contains(body, `"rows": 2`) {
					t.Error(body)
				}
			}
		})
	}
	if _, body := curl(t, "-u", auth, u, "-d", "SELECT * FROM nowhere"); !strings.HasPrefix(body, "Code: 60. DB::Exception: ") {
		t.Error(body)
	}
	// A file as a body, with the statement in the URL, gzip on the way.
	table := fmt.Sprint("curl_ins_", os.Getpid())
	curl(t, "-u", auth, u, "-d", "CREATE TABLE "+table+" (a UInt64, s String) ENGINE = MergeTree ORDER BY a")
	csv := filepath.Join(t.TempDir(), "x.csv")
	if err := os.WriteFile(csv, []byte("1,one\n2,two\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gzip", "-k", csv).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	in := u + "/?query=" + url.QueryEscape("INSERT INTO "+table+" FORMAT CSV")
	if status, body := curl(t, "-u", auth, in, "--data-binary", "@"+csv); status != "200" {
		t.Error(status, body)
	}
	if status, body := curl(t, "-u", auth, "-H", "Content-Encoding: gzip", in, "--data-binary", "@"+csv+".gz"); status != "200" {
		t.Error(status, body)
	}
	if _, body := curl(t, "-u", auth, u, "-d", "SELECT count() FROM "+table); body != "4\n" {
		t.Error(body)
	}
	if _, body := curl(t, "-u", auth, "--compressed", u+"/?enable_http_compression=1", "-d", "SELECT count() FROM "+table); body != "4\n" {
		t.Error(body)
	}
	// A body that ends in the middle of a result is no whole body.
	cmd := exec.Command("curl", "-sS", "-u", auth, u, "-d", "SELECT throwIf(number = 100000) FROM numbers(200000) SETTINGS max_block_size = 1000")
	out, err := cmd.Output()
	if err == nil || !bytes.Contains(out, []byte("__exception__")) {
		t.Errorf("curl took a broken result for whole: %v, %d bytes", err, len(out))
	}
}

func TestAbortedInsertLeavesNothing(t *testing.T) {
	c := open(t, nil)
	exe(t, c, "CREATE TABLE aborted (a UInt64) ENGINE = MergeTree ORDER BY a")
	u, token := embeddedtest.Start(t)
	cmd := exec.Command("curl", "-sS", "-u", "default:"+token, u+"/?query="+url.QueryEscape("INSERT INTO aborted FORMAT TSV"), "-H", "Transfer-Encoding: chunked", "-T", "-", "-X", "POST")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := bytes.Repeat([]byte("12345678\n"), 1<<17)
	for range 20 { // 2.6 million rows, more than a block of the engine
		if _, err := in.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(300 * time.Millisecond)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	time.Sleep(500 * time.Millisecond)
	if n := one[uint64](t, c, "SELECT count() FROM aborted"); n != 0 {
		t.Fatalf("%d rows of an insert whose client died", n)
	}
}

func TestReadOnly(t *testing.T) { overBoth(t, testReadOnly) }

func testReadOnly(t *testing.T, f front) {
	full := f.open(t, nil)
	exe(t, full, "CREATE TABLE ro (a UInt64, s String) ENGINE = MergeTree ORDER BY a")
	exe(t, full, "INSERT INTO ro VALUES (1, 'x')")
	secret := filepath.Join(t.TempDir(), "secret.csv")
	if err := os.WriteFile(secret, []byte("1,hush\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := f.dial(t, "reader", func(o *clickhouse.Options) { o.Settings = clickhouse.Settings{"max_execution_time": 30} })
	run := func(ctx context.Context, q string) (out string, err error) {
		rows, err := c.Query(ctx, q)
		if err != nil {
			return "", err
		}
		defer rows.Close()
		for rows.Next() {
			vs := make([]any, len(rows.ColumnTypes()))
			for i, ct := range rows.ColumnTypes() {
				vs[i] = newOf(ct)
			}
			if err := rows.Scan(vs...); err != nil {
				return out, err
			}
			for _, v := range vs {
				out += fmt.Sprint(deref(v), " ")
			}
		}
		return out, rows.Err()
	}
	for _, q := range []string{
		"SELECT * FROM ro", "SELECT count() FROM postern.ro WHERE s = 'file(1)'", "SHOW TABLES", "SHOW CREATE TABLE ro", "DESCRIBE TABLE ro", "EXISTS TABLE ro",
		"EXPLAIN SELECT * FROM ro", "WITH 1 AS x SELECT x FROM numbers(3)", "SELECT name FROM system.databases", "SELECT a, count() FROM ro GROUP BY a ORDER BY a WITH FILL",
		"SELECT * FROM ro AS x JOIN (SELECT * FROM values('a UInt64', 1)) AS y USING a", "SELECT * FROM ro FORMAT Native", "(SELECT 1) UNION ALL (SELECT 2)",
	} {
		if _, err := run(context.Background(), q); err != nil {
			t.Errorf("%s: %v", q, err)
		}
	}
	for _, q := range []string{
		"INSERT INTO ro VALUES (2, 'y')", "INSERT INTO ro SELECT 2, 'y'", "CREATE TABLE ro2 (a UInt8) ENGINE = Memory", "CREATE TEMPORARY TABLE x (a UInt8)", "DROP TABLE ro",
		"ALTER TABLE ro DELETE WHERE 1", "TRUNCATE TABLE ro", "OPTIMIZE TABLE ro", "SYSTEM STOP MERGES", "KILL QUERY WHERE 1", "SET readonly = 0", "SET max_threads = 1", "USE default",
		"SELECT 1 SETTINGS readonly = 0", "SELECT 1 SETTINGS max_threads = 1", "SELECT * FROM (SELECT 1 SETTINGS max_memory_usage = 0)",
		"SELECT * FROM ro INTO OUTFILE '" + secret + ".out'", "ATTACH TABLE x", "BACKUP DATABASE postern TO File('/tmp/x')",
		"SELECT * FROM file('" + secret + "', CSV)", "SELECT file('" + secret + "')", "SELECT `fi\\x6ce`('" + secret + "')", "SELECT FILE('" + secret + "')",
		"SELECT * FROM `" + secret + "`", "SELECT * FROM '" + secret + "'", "SELECT * FROM default.`" + secret + "`", "SELECT 1 IN default.`" + secret + "`",
		"SELECT * APPLY(file) FROM (SELECT '" + secret + "' AS x)", "SELECT COLUMNS('x') APPLY (y -> file(y)) FROM (SELECT '" + secret + "' AS x)",
		"SELECT * REPLACE(file('" + secret + "') AS s) FROM ro", "WITH x -> file(x) AS f SELECT f('" + secret + "')", "SELECT arrayMap(x -> file(x), ['" + secret + "'])",
		"SHOW TABLES WHERE length(file('" + secret + "')) > 0", "DESCRIBE (SELECT file('" + secret + "'))", "DESCRIBE TABLE file('" + secret + "')",
		"EXPLAIN SELECT file('" + secret + "')", "EXPLAIN SYNTAX SELECT * FROM file('" + secret + "')", "SELECT * FROM (EXPLAIN SELECT file('" + secret + "'))",
		"SELECT * FROM ro ORDER BY file('" + secret + "')", "SELECT 1 UNION ALL SELECT length(file('" + secret + "'))",
		"SELECT * FROM eval('SELECT file(\\'" + secret + "\\')')", "SELECT * FROM cluster('default', view(SELECT 1))",
		"SELECT * FROM url('http://127.0.0.1:1/', LineAsString)", "SELECT * FROM s3('http://127.0.0.1:1/x')", "SELECT * FROM executable('id', TSV, 'a String')",
		"SELECT * FROM remote('127.0.0.1', system.one)", "SELECT * FROM merge('', '.*')", "SELECT * FROM sqlite('" + secret + "', 'x')", "SELECT * FROM filesystem('/etc')",
		"SELECT /*'*/ file('" + secret + "') /*'*/", "SELECT 1; SELECT file('" + secret + "')", "SELECT 1 PARALLEL WITH SELECT 2", "COPY ro TO '" + secret + "'", "EXECUTE AS default SELECT 1",
	} {
		out, err := run(context.Background(), q)
		if err == nil {
			t.Errorf("%s: was allowed", q)
		}
		if strings.Contains(out, "hush") || err != nil && strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: read the file", q)
		}
	}
	for _, s := range []clickhouse.Settings{{"additional_result_filter": "length(file('" + secret + "')) > 0"}, {"max_memory_usage": 0}, {"allow_introspection_functions": 1}} {
		if _, err := run(clickhouse.Context(context.Background(), clickhouse.WithSettings(s)), "SELECT 1"); code(err) != 164 {
			t.Errorf("%v: %v; want code 164", s, err)
		}
	}
	if _, err := run(clickhouse.Context(context.Background(), clickhouse.WithParameters(clickhouse.Parameters{"d": "default", "t": secret})), "SELECT * FROM {d:Identifier}.{t:Identifier}"); err == nil {
		t.Error("a parameter named a file")
	}
	if n := one[uint64](t, full, "SELECT count() FROM ro"); n != 1 {
		t.Fatalf("%d rows, want 1", n)
	}
}

func TestSecondProcess(t *testing.T) {
	dir := t.TempDir()
	cmd, _, out, err := spawn(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	_, _, _, err = spawn(t, dir)
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d", cmd.Process.Pid)) || !strings.Contains(err.Error(), "dataDir") {
		t.Fatalf("%v; want the other process's id %d", err, cmd.Process.Pid)
	}
	// SIGTERM ends the first in order.
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ended := false
	for out.Scan() {
		ended = ended || out.Text() == "ended"
	}
	if err := cmd.Wait(); err != nil || !ended {
		t.Fatalf("%v, ended %v", err, ended)
	}
}

// TestKill9 kills the engine in the middle of inserts, opens its directory again
// and repeats the insert that was not acknowledged under its token.
func TestKill9(t *testing.T) {
	dir := t.TempDir()
	const rows = 50_000
	var acked uint64
	for round := range 3 {
		cmd, addr, _, err := spawn(t, dir)
		if err != nil {
			t.Fatal(err)
		}
		c := dial(t, addr, childToken, func(o *clickhouse.Options) {
			o.Settings = clickhouse.Settings{"deduplicate_blocks_in_dependent_materialized_views": 1}
		})
		if round == 0 {
			exe(t, c, "CREATE TABLE k (a UInt64) ENGINE = MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 1000")
			exe(t, c, "CREATE TABLE kn (b UInt64, n UInt64) ENGINE = SummingMergeTree ORDER BY b SETTINGS non_replicated_deduplication_window = 1000")
			exe(t, c, "CREATE MATERIALIZED VIEW kv TO kn AS SELECT intDiv(a, 50000) AS b, count() AS n FROM k GROUP BY b")
		} else if n := one[uint64](t, c, "SELECT count() FROM k"); n < acked*rows || n > (acked+1)*rows || n%rows != 0 {
			t.Fatalf("round %d: %d rows after kill -9; %d batches of %d were acknowledged", round, n, acked, rows)
		}
		kill := time.AfterFunc(time.Duration(700+round*130)*time.Millisecond, func() { _ = cmd.Process.Kill() })
		// The first insert of a later round repeats what may be stored already.
		for insertInts(c, "k", fmt.Sprint("batch-", acked), acked*rows, rows) == nil {
			acked++
		}
		kill.Stop()
		_ = cmd.Wait()
	}
	_, addr, _, err := spawn(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, addr, childToken, func(o *clickhouse.Options) {
		o.Settings = clickhouse.Settings{"deduplicate_blocks_in_dependent_materialized_views": 1}
	})
	if err := insertInts(c, "k", fmt.Sprint("batch-", acked), acked*rows, rows); err != nil {
		t.Fatal(err)
	}
	acked++
	if acked < 3 {
		t.Fatalf("only %d batches were acknowledged; the test says nothing", acked)
	}
	if n, d, v := one[uint64](t, c, "SELECT count() FROM k"), one[uint64](t, c, "SELECT uniqExact(a) FROM k"), one[uint64](t, c, "SELECT sum(n) FROM kn"); n != acked*rows || d != n || v != n {
		t.Fatalf("%d rows, %d distinct, %d in the view; want %d each", n, d, v, acked*rows)
	}
	t.Logf("%d batches over four lives", acked)
}

func TestDiskCap(t *testing.T) {
	dir := t.TempDir()
	_, addr, _, err := spawn(t, dir, "POSTERN_TEST_DISK=1")
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, addr, childToken, nil)
	exe(t, c, "CREATE TABLE d (a String) ENGINE = MergeTree ORDER BY tuple()")
	exe(t, c, "INSERT INTO d SELECT randomString(1000) FROM numbers(90000)")
	insert := func() error { return c.Exec(context.Background(), "INSERT INTO d VALUES ('x')") }
	deadline := time.Now().Add(20 * time.Second)
	for code(insert()) != embedded.CodeNotEnoughSpace {
		if time.Now().After(deadline) {
			t.Fatal("inserts are still accepted beyond the cap")
		}
		time.Sleep(200 * time.Millisecond)
	}
	if n := one[uint64](t, c, "SELECT count() FROM d"); n < 90000 {
		t.Fatal("queries do not work at the cap")
	}
	exe(t, c, "DROP TABLE d SYNC")
	exe(t, c, "CREATE TABLE d (a String) ENGINE = MergeTree ORDER BY tuple()")
	for deadline = time.Now().Add(20 * time.Second); insert() != nil; time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("inserts are refused though space is free again")
		}
	}
}

func BenchmarkInsert30(b *testing.B) {
	for _, m := range []clickhouse.CompressionMethod{clickhouse.CompressionNone, clickhouse.CompressionLZ4} {
		b.Run(m.String(), func(b *testing.B) {
			c := open(b, func(o *clickhouse.Options) { o.Compression = &clickhouse.Compression{Method: m} })
			table := "bench_" + m.String()
			var cols []string
			for i := range 30 {
				cols = append(cols, fmt.Sprintf("c%d %s", i, []string{"UInt64", "UInt32", "UInt16"}[i%3]))
			}
			exe(b, c, "CREATE TABLE IF NOT EXISTS "+table+" ("+strings.Join(cols, ", ")+") ENGINE = MergeTree ORDER BY c0 SETTINGS non_replicated_deduplication_window = 1000")
			const rows = 100_000
			u64, u32, u16 := make([]uint64, rows), make([]uint32, rows), make([]uint16, rows)
			n := 0
			for b.Loop() {
				for i := range rows {
					v := uint64(n*rows+i) * 2654435761
					u64[i], u32[i], u16[i] = v, uint32(v), uint16(i)
				}
				batch, err := c.PrepareBatch(withToken(context.Background(), fmt.Sprint(table, os.Getpid(), n)), "INSERT INTO "+table)
				if err != nil {
					b.Fatal(err)
				}
				for i := range 30 {
					var err error
					switch i % 3 {
					case 0:
						err = batch.Column(i).Append(u64)
					case 1:
						err = batch.Column(i).Append(u32)
					case 2:
						err = batch.Column(i).Append(u16)
					}
					if err != nil {
						b.Fatal(err)
					}
				}
				if err := batch.Send(); err != nil {
					b.Fatal(err)
				}
				n++
			}
			b.ReportMetric(float64(n*rows)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

func BenchmarkSelectOne(b *testing.B) {
	c := open(b, nil)
	for b.Loop() {
		one[uint8](b, c, "SELECT 1")
	}
}

// TestBareNull reads columns that hold nothing but NULL beside others: a byte a
// row that the driver's library reads and would not write.
func TestBareNull(t *testing.T) { overBoth(t, testBareNull) }

func testBareNull(t *testing.T, f front) {
	rows, err := f.open(t, func(*clickhouse.Options) {}).Query(context.Background(), "SELECT number, NULL AS n, [] AS e, toString(number) AS s FROM numbers(5)")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	n := 0
	for rows.Next() {
		dest := make([]any, len(rows.ColumnTypes()))
		for i, c := range rows.ColumnTypes() {
			dest[i] = reflect.New(c.ScanType()).Interface()
		}
		if err := rows.Scan(dest...); err != nil {
			t.Fatal(err)
		}
		if got, want := *dest[3].(*string), fmt.Sprint(n); got != want {
			t.Errorf("row %d reads %q after the NULL", n, got)
		}
		n++
	}
	if err := rows.Err(); err != nil || n != 5 {
		t.Fatalf("%d rows, %v", n, err)
	}
}
