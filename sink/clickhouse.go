package sink

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/compress"
	"github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/postern/postern/flow"
)

// DedupWindow is how many of the last tokens each table remembers. The widest
// re-read is what was inserted since the last checkpoint. From a spool that is a token
// or two: segments are sealed at least once a second and hold at most 4 MiB, and a
// checkpoint follows each; some hundreds if checkpoints are made a minute apart.
// Replaying a capture a second time re-reads all of it: 100,000 tokens of [MaxFlowRows]
// rows are 13 billion flows. From Kafka one partition's range may come again while all
// others went on meanwhile: 1,000 inserts a second leave it 100 seconds, and detectors
// refuse to make so many that it is less than ten minutes. A token costs the server
// about 100 bytes.
const DedupWindow = 100_000

// Insert names one insert. All of it must be the same whenever the same range of
// input is written again; then ClickHouse stores the range once.
type Insert struct {
	// Token is unlike that of any other range: spool id, segment and chunk, or file
	// hash, batch and policy hash.
	Token string
	// Input is what was read: the spool's id or file:HASH.
	Input string
	// At is when the range was sealed, as recorded with it: never the clock at the time of
	// inserting. It becomes inserted_at, by which tables are partitioned, and a token
	// is only recognised within its partition.
	At flow.Time
}

func (i Insert) check() error {
	if i.Token == "" || i.At <= 0 {
		return permanent(fmt.Errorf("an insert needs a token and the time its range was sealed; it has token %q, time %d", i.Token, i.At))
	}
	return nil
}

// token is what the server compares: a range sealed at another time is another range.
func (i Insert) token() string { return fmt.Sprintf("%s@%d", i.Token, i.At) }

// Written says what became of an insert.
type Written struct {
	Rows  int // rows sent
	Bytes int // bytes sent, before compression
	// Duplicate is true if the server said that it had these rows already. Only the native
	// protocol tells; over HTTP, and so with the embedded engine, it stays false and
	// the rows count as written, once for the range.
	Duplicate bool
}

// ClickHouse is a connection to a server or to the embedded engine. Safe for
// concurrent use; a [FlowWriter] made from it is not.
type ClickHouse struct {
	cfg     ClickHouseConfig
	conn    driver.Conn
	log     *slog.Logger
	metrics *clickhouseMetrics
	options clickhouse.Options

	mu       sync.Mutex            // guards what follows: one insert is sent at a time
	registry prometheus.Registerer // where the metrics are while it is open, or nil
	raw      *ch.Client            // for native inserts; nil over HTTP and while not connected
	block    block                 // the block being sent over HTTP
	plain    []byte                // a frame of it
	packed   []byte                // all of it, compressed
	pack     *compress.Writer
}

// Options is what Open needs beyond the configuration.
type Options struct {
	// Endpoint and Token are where the embedded engine listens (http://127.0.0.1:PORT) and
	// what it asks for; needed if the URL is `embedded`.
	Endpoint, Token string
	// Password is what ClickHouseConfig.Password refers to.
	Password string
	Logger   *slog.Logger          // nil logs nothing
	Metrics  prometheus.Registerer // nil registers nothing
}

var compressions = map[string]clickhouse.CompressionMethod{
	"": clickhouse.CompressionNone, "none": clickhouse.CompressionNone,
	"lz4": clickhouse.CompressionLZ4, "zstd": clickhouse.CompressionZSTD,
}

// Open connects and makes sure that somebody answers. It changes nothing on the
// server; see [ClickHouse.Migrate]. Its errors are [Retryable] where the server does
// not answer, not where the configuration is wrong.
func Open(ctx context.Context, cfg ClickHouseConfig, opt Options) (*ClickHouse, error) {
	if err := cfg.Validate(); err != nil {
		return nil, permanent(err)
	}
	t, err := cfg.target()
	if err != nil {
		return nil, permanent(err)
	}
	if t.embedded {
		addr, ok := strings.CutPrefix(opt.Endpoint, "http://")
		if !ok {
			return nil, permanent(errors.New("the embedded engine is not running: no endpoint was given"))
		}
		t.addr = strings.TrimSuffix(addr, "/")
		if t.user == "" {
			t.user = "default"
		}
		opt.Password = opt.Token
	}
	db := &ClickHouse{cfg: cfg, log: opt.Logger, metrics: newClickHouseMetrics()}
	if db.log == nil {
		db.log = slog.New(slog.DiscardHandler)
	}
	db.options = clickhouse.Options{
		Protocol:    clickhouse.Native,
		Addr:        []string{t.addr},
		Auth:        clickhouse.Auth{Username: t.user, Password: opt.Password},
		DialTimeout: cfg.Timeouts.Dial,
		ReadTimeout: max(cfg.Timeouts.Insert, cfg.Timeouts.Query, cfg.Timeouts.Migration),
		Compression: &clickhouse.Compression{Method: compressions[cfg.Compression]},
		ClientInfo:  clickhouse.ClientInfo{Products: []struct{ Name, Version string }{{"postern", ""}}},
	}
	if t.http {
		db.options.Protocol = clickhouse.HTTP
	}
	if cfg.Cluster.Name != "" {
		// A subquery over a distributed table inside of a query over one is refused otherwise.
		db.options.Settings = clickhouse.Settings{"distributed_product_mode": "global"}
	}
	if t.tls {
		host, _, _ := net.SplitHostPort(t.addr)
		if db.options.TLS, err = cfg.TLS.config(host); err != nil {
			return nil, permanent(err)
		}
		if cfg.TLS.InsecureSkipVerify {
			db.log.Warn("ClickHouse's certificate is not checked: anyone on the path may read and alter what is sent", "address", t.addr)
		}
	}
	if t.embedded {
		// A proxy from the environment must never see the engine's token.
		db.options.TransportFunc = func(rt *http.Transport) (http.RoundTripper, error) {
			rt.Proxy = nil
			return rt, nil
		}
	}
	if m := compressions[cfg.Compression]; m != clickhouse.CompressionNone {
		db.pack = compress.NewWriter(compress.LevelZero, compress.Method(m))
	}
	if db.conn, err = clickhouse.Open(&db.options); err != nil {
		return nil, db.redact(err)
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeouts.Dial+cfg.Timeouts.Query)
	defer cancel()
	if err := db.Ping(ctx); err != nil {
		_ = db.conn.Close()
		return nil, fmt.Errorf("ClickHouse at %s does not answer: %w", t.addr, err)
	}
	// Only now, and until Close, so that whoever has to open again can.
	if db.registry = opt.Metrics; db.registry != nil {
		db.registry.MustRegister(db.metrics.collectors()...)
	}
	return db, nil
}

// Ping asks whether the server answers.
func (db *ClickHouse) Ping(ctx context.Context) error {
	var one uint8
	return db.redact(db.conn.QueryRow(ctx, "SELECT 1").Scan(&one))
}

// Database is the name of the database everything is in.
func (db *ClickHouse) Database() string { return db.cfg.Database }

// Close ends all connections and takes its metrics back, once.
func (db *ClickHouse) Close() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.registry != nil {
		for _, c := range db.metrics.collectors() {
			db.registry.Unregister(c)
		}
		db.registry = nil
	}
	db.dropRaw()
	return db.conn.Close()
}

// redact takes the password out of an error's text, wherever a library put it.
func (db *ClickHouse) redact(err error) error {
	p := db.options.Auth.Password
	if err == nil || p == "" || !strings.Contains(err.Error(), p) {
		return err
	}
	return &redacted{err: err, text: strings.ReplaceAll(err.Error(), p, "[password]")}
}

// redacted is err under another text. What it wraps can still be asked for by type.
type redacted struct {
	err  error
	text string
}

func (e *redacted) Error() string        { return e.text }
func (e *redacted) Is(target error) bool { return errors.Is(e.err, target) }
func (e *redacted) As(target any) bool   { return errors.As(e.err, target) }

// insertSettings are sent with every insert, so that nothing depends on how a server is set up.
func (c *ClickHouseConfig) insertSettings(token string) map[string]string {
	settings := map[string]string{
		"insert_deduplicate":                                 "1",
		"insert_deduplication_token":                         token,
		"deduplicate_blocks_in_dependent_materialized_views": "1",
		"async_insert":                                       "0",
		// One insert is one block is one part: stored whole or not at all.
		"max_insert_block_size":       "1048576",
		"min_insert_block_size_rows":  "1048576",
		"min_insert_block_size_bytes": "1073741824",
		"max_insert_threads":          "1",
		// A replay of an old file may touch more days than a live stream.
		"max_partitions_per_insert_block":          "100",
		"input_format_parallel_parsing":            "0",
		"input_format_defaults_for_omitted_fields": "1",
	}
	maps.Copy(settings, c.Cluster.insertSettings())
	return settings
}

// insertBlock sends one block under a token. Over HTTP it goes through
// clickhouse-go as Native bytes; over TCP clickhouse-go has no door for a
// block made by somebody else, so ch-go, its lower layer, sends it.
func (db *ClickHouse) insertBlock(ctx context.Context, table string, in proto.Input, rows int, ins Insert) (Written, error) {
	if err := ins.check(); err != nil {
		return Written{}, err
	}
	if rows > MaxFlowRows {
		return Written{}, permanent(fmt.Errorf("a block of %d rows; at most %d go into one insert", rows, MaxFlowRows))
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, db.cfg.Timeouts.Insert)
	defer cancel()
	start := time.Now()
	done := Written{Rows: rows}
	var err error
	if db.options.Protocol == clickhouse.HTTP {
		done.Bytes, err = db.insertHTTP(ctx, table, in, rows, ins)
	} else {
		done.Duplicate, err = db.insertNative(ctx, table, in, ins)
	}
	db.metrics.insert(table, done, time.Since(start), err)
	if err != nil {
		return Written{}, fmt.Errorf("inserting %d rows into %s: %w", rows, table, db.redact(err))
	}
	return done, nil
}

func (db *ClickHouse) insertInto(table string, in proto.Input) string {
	var b strings.Builder
	b.WriteString("INSERT INTO " + db.cfg.Database + "." + table + " (")
	for i, c := range in {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(c.Name)
	}
	b.WriteString(")")
	return b.String()
}

// frame is how many bytes are compressed at once: ClickHouse's own default.
const frame = 1 << 20

// block is a block of the Native format, revision 0, as a run of parts: numbers
// stay in their columns' memory and are first copied into the socket. It is
// good until its columns change or the next block is encoded.
type block struct {
	parts [][]byte
	size  int
	buf   proto.Buffer // what stands between the columns, and the names
}

func (b *block) encode(in proto.Input, rows int) error {
	b.parts, b.size = b.parts[:0], 0
	w := proto.NewWriter(b, &b.buf)
	b.buf.Reset()
	if err := (proto.Block{Columns: len(in), Rows: rows}).WriteBlock(w, 0, in); err != nil {
		return err
	}
	_, err := w.Flush()
	return err
}

// Write takes a part, as proto.Writer hands them over; it keeps p itself.
func (b *block) Write(p []byte) (int, error) {
	b.parts, b.size = append(b.parts, p), b.size+len(p)
	return len(p), nil
}

// reader reads a block from its beginning.
func (b *block) reader() *blockReader {
	return &blockReader{rest: b.parts}
}

// blockReader is a request's body. The HTTP transport may go on reading a body after
// the request has failed; after release it finds nothing, so that the columns can be written again.
type blockReader struct {
	mu   sync.Mutex
	rest [][]byte // the first part may have been read in part
	at   int
	over bool
}

func (r *blockReader) Read(p []byte) (n int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return 0, io.ErrClosedPipe
	}
	for n < len(p) && len(r.rest) > 0 {
		c := copy(p[n:], r.rest[0][r.at:])
		n, r.at = n+c, r.at+c
		if r.at == len(r.rest[0]) {
			r.rest, r.at = r.rest[1:], 0
		}
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// writeSize is how much of a body is written at a time. The HTTP transport makes a
// chunk of each write and needs three system calls for it; by itself it would
// write 32 KiB.
const writeSize = 256 << 10

// WriteTo writes what is left. It writes from a copy, so that release need not wait
// for a server that does not read.
func (r *blockReader) WriteTo(w io.Writer) (n int64, err error) {
	buf := make([]byte, writeSize)
	for {
		k, err := io.ReadFull(r, buf)
		if k > 0 {
			m, err := w.Write(buf[:k])
			if n += int64(m); err != nil {
				return n, err
			}
		}
		switch err {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF:
			return n, nil
		default:
			return n, err
		}
	}
}

// Close ends reading; the transport calls it.
func (r *blockReader) Close() error {
	r.release()
	return nil
}

// release makes sure that nothing of the block is read from now on.
func (r *blockReader) release() {
	r.mu.Lock()
	r.rest, r.over = nil, true
	r.mu.Unlock()
}

func (db *ClickHouse) insertHTTP(ctx context.Context, table string, in proto.Input, rows int, ins Insert) (int, error) {
	if err := db.block.encode(in, rows); err != nil {
		return 0, permanent(err)
	}
	settings := clickhouse.Settings{}
	for k, v := range db.cfg.insertSettings(ins.token()) {
		settings[k] = v
	}
	r := db.block.reader()
	defer r.release()
	var body io.Reader = r
	if db.pack != nil {
		db.packed = db.packed[:0]
		db.plain = extend(db.plain[:0], frame)
		for {
			n, err := io.ReadFull(body, db.plain)
			if n == 0 {
				break
			}
			if err := db.pack.Compress(db.plain[:n]); err != nil {
				return 0, permanent(err)
			}
			db.packed = append(db.packed, db.pack.Data...)
			if err != nil {
				break
			}
		}
		r = (&block{parts: [][]byte{db.packed}}).reader()
		defer r.release()
		body, settings["decompress"] = r, "1"
	}
	err := db.conn.InsertFormat(clickhouse.Context(ctx, clickhouse.WithSettings(settings)), "Native", db.insertInto(table, in), body)
	return db.block.size, err
}

func (db *ClickHouse) insertNative(ctx context.Context, table string, in proto.Input, ins Insert) (duplicate bool, err error) {
	if db.raw == nil {
		if db.raw, err = db.dialRaw(ctx); err != nil {
			return false, err
		}
	}
	q := ch.Query{
		Body:  db.insertInto(table, in) + " VALUES",
		Input: in,
		OnProfileEvents: func(_ context.Context, events []ch.ProfileEvent) error {
			for _, e := range events {
				if e.Name == "DuplicatedInsertedBlocks" && e.Value > 0 {
					duplicate = true
				}
			}
			return nil
		},
	}
	for k, v := range db.cfg.insertSettings(ins.token()) {
		q.Settings = append(q.Settings, ch.Setting{Key: k, Value: v, Important: k == "insert_deduplication_token"})
	}
	if err = db.raw.Do(ctx, q); err != nil {
		// Whatever was in the middle of being said is over; the next insert dials anew.
		db.dropRaw()
	}
	return duplicate, err
}

func (db *ClickHouse) dialRaw(ctx context.Context) (*ch.Client, error) {
	o := ch.Options{
		Address:          db.options.Addr[0],
		Database:         "default",
		User:             db.options.Auth.Username,
		Password:         db.options.Auth.Password,
		ClientName:       "postern",
		ReadTimeout:      db.cfg.Timeouts.Insert,
		DialTimeout:      db.cfg.Timeouts.Dial,
		HandshakeTimeout: db.cfg.Timeouts.Dial,
		TLS:              db.options.TLS,
	}
	switch db.cfg.Compression {
	case "lz4":
		o.Compression = ch.CompressionLZ4
	case "zstd":
		o.Compression = ch.CompressionZSTD
	}
	if o.TLS != nil {
		d := &tls.Dialer{NetDialer: &net.Dialer{Timeout: o.DialTimeout}, Config: o.TLS}
		o.Dialer = d
		o.TLS = nil
	}
	return ch.Dial(ctx, o)
}

func (db *ClickHouse) dropRaw() {
	if db.raw != nil {
		_ = db.raw.Close()
		db.raw = nil
	}
}

// exec runs one statement within a time of its own.
func (db *ClickHouse) exec(ctx context.Context, timeout time.Duration, sql string) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return db.redact(db.conn.Exec(ctx, sql))
}

// insertRows sends few rows by clickhouse-go's own batch, under a token, as one block.
func (db *ClickHouse) insertRows(ctx context.Context, table, columns string, ins Insert, rows int, row func(i int) []any) (Written, error) {
	if err := ins.check(); err != nil {
		return Written{}, err
	}
	if rows == 0 {
		return Written{}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, db.cfg.Timeouts.Insert)
	defer cancel()
	settings := clickhouse.Settings{}
	for k, v := range db.cfg.insertSettings(ins.token()) {
		settings[k] = v
	}
	start := time.Now()
	send := func() error {
		b, err := db.conn.PrepareBatch(clickhouse.Context(ctx, clickhouse.WithSettings(settings)),
			"INSERT INTO "+db.cfg.Database+"."+table+" ("+columns+")")
		if err != nil {
			return err
		}
		defer b.Close() //nolint:errcheck // after Send it has nothing left to say
		for i := range rows {
			if err := b.Append(row(i)...); err != nil {
				return permanent(err)
			}
		}
		return b.Send()
	}
	err := send()
	done := Written{Rows: rows}
	db.metrics.insert(table, done, time.Since(start), err)
	if err != nil {
		return Written{}, fmt.Errorf("inserting %d rows into %s: %w", rows, table, db.redact(err))
	}
	return done, nil
}

type clickhouseMetrics struct {
	rows, bytes, inserts *prometheus.CounterVec
	retries              *prometheus.CounterVec
	seconds              *prometheus.HistogramVec
}

func newClickHouseMetrics() *clickhouseMetrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_sink_" + name, Help: help}, labels)
	}
	return &clickhouseMetrics{
		rows:    counter("rows_total", "Rows that ClickHouse acknowledged.", "table"),
		bytes:   counter("bytes_total", "Bytes of those rows as sent over HTTP, before compression.", "table"),
		inserts: counter("inserts_total", "Inserts by how they ended: ok, duplicate, retry (may succeed later), refused (never will).", "table", "result"),
		retries: counter("retries_total", "Inserts that were tried again.", "table"),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "postern_sink_insert_seconds",
			Help: "Time an insert took, from encoding to the answer.", Buckets: prometheus.ExponentialBuckets(0.005, 2.5, 10)}, []string{"table"}),
	}
}

func (m *clickhouseMetrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.rows, m.bytes, m.inserts, m.retries, m.seconds}
}

func (m *clickhouseMetrics) insert(table string, w Written, took time.Duration, err error) {
	result := "ok"
	switch {
	case err != nil && Retryable(err):
		result = "retry"
	case err != nil:
		result = "refused"
	case w.Duplicate:
		result = "duplicate"
	}
	m.inserts.WithLabelValues(table, result).Inc()
	m.seconds.WithLabelValues(table).Observe(took.Seconds())
	if err == nil && !w.Duplicate {
		m.rows.WithLabelValues(table).Add(float64(w.Rows))
		m.bytes.WithLabelValues(table).Add(float64(w.Bytes))
	}
}
