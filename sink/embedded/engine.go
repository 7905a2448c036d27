package embedded

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postern/postern/flow"
)

// Config is the configuration of the embedded engine.
type Config struct {
	// Library is the path of libchdb.so; empty means the one in CacheDir.
	Library string `yaml:"library"`
	// CacheDir is where `postern engine fetch` puts the library; empty means
	// $POSTERN_CACHE, else the user's cache directory.
	CacheDir string `yaml:"cacheDir"`
	// DataDir holds the database. One process at a time may use it.
	DataDir string `yaml:"dataDir"`
	// Database is the database of the tables, created if it is missing, and the
	// one a request without a database speaks to.
	Database string `yaml:"database"`
	// Listen is the loopback address of the HTTP endpoint; port 0 takes a free one.
	Listen string `yaml:"listen"`
	// Native is the second door, for clients of the native protocol.
	Native NativeConfig `yaml:"native"`
	// Token is the password of full access, SQL that reads local files included;
	// empty means a random one for each start.
	Token string `yaml:"token"`
	// ReadOnlyToken is the password of read-only access, for Grafana; empty means
	// there is none.
	ReadOnlyToken string `yaml:"readOnlyToken"`
	// MaxMemory caps what the engine allocates; a statement beyond it fails with
	// code 241 and the process lives on.
	MaxMemory flow.Size `yaml:"maxMemory"`
	// MaxDisk caps the data directory; at the cap inserts are refused with code
	// 243 until space is free again. 0 is no cap.
	MaxDisk flow.Size `yaml:"maxDisk"`
	// MarkCache caps the cache of index marks, part of MaxMemory.
	MarkCache flow.Size `yaml:"markCache"`
	// MaxQueries is how many queries run at a time; further ones wait up to
	// QueueTime and are refused with code 202 then.
	MaxQueries int `yaml:"maxQueries"`
	// MaxInserts is how many inserts run at a time, beside the queries.
	MaxInserts int `yaml:"maxInserts"`
	// MaxInsertSize caps the body of one insert after decompression.
	MaxInsertSize flow.Size `yaml:"maxInsertSize"`
	// QueueTime is how long a request waits for its turn.
	QueueTime time.Duration `yaml:"queueTime"`
	// ReadOnlyTime caps a statement under ReadOnlyToken.
	ReadOnlyTime time.Duration `yaml:"readOnlyTime"`
}

// NativeConfig is the endpoint of ClickHouse's native TCP protocol.
type NativeConfig struct {
	// Listen is its loopback address; port 0 takes a free one, empty means that there is none.
	Listen string `yaml:"listen"`
}

// DefaultConfig returns the defaults; DataDir is left to the caller.
func DefaultConfig() Config {
	return Config{
		Database: "postern",
		// A port of our own: 8123 is a server's, and 127.0.0.1:8123 answering with
		// other data than a server installed later would is a nasty surprise.
		Listen: "127.0.0.1:18123",
		// 2 GiB is what a day's roll-ups of ten thousand flows/s need with room
		// (spike: 790 MB peak with two inserters and six query loops); on small
		// machines a quarter of the memory, so that the pipeline, the page cache
		// and the system keep the rest. The engine's own default is 90 %.
		MaxMemory: min(2*flow.GiB, systemMemory()/4),
		// At an assumed 30 bytes a flow on disk, 5,000 flows/s take 12 GiB a day:
		// 5,000 × 86,400 × 30 B. 50 GiB is four days of that or a month of 700
		// flows/s, and still a size that a laptop's disk can spare.
		MaxDisk: 50 * flow.GiB,
		// 16 bytes a mark and column, 8,192 rows a mark: 30 columns × 1e9 rows /
		// 8,192 × 16 B = 56 MiB. The engine's own default is 5 GB.
		MarkCache:  64 * flow.MiB,
		MaxQueries: 8, // a dashboard asks for about eight panels at once
		MaxInserts: 4, // the sink's chunks in flight
		// A batch of 500,000 rows × 500 B, twice the largest the sink sends.
		MaxInsertSize: 256 * flow.MiB,
		QueueTime:     30 * time.Second,
		ReadOnlyTime:  60 * time.Second,
	}
}

// Validate says what is wrong with c.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	if c.DataDir == "" {
		bad("dataDir is empty; name the directory the database is to live in")
	}
	if c.Database == "" || c.Database == "default" || c.Database == "system" || strings.ContainsAny(c.Database, "/\x00") {
		bad("database %q cannot be used; name one of your own, such as postern", c.Database)
	}
	loopback := func(key, listen, example string) {
		host, port, err := net.SplitHostPort(listen)
		if err != nil {
			bad("%s %q is no host:port; write %s", key, listen, example)
			return
		}
		a, err := netip.ParseAddr(host)
		if host != "localhost" && (err != nil || !a.IsLoopback()) {
			bad("%s %q is not a loopback address; SQL can read local files, so the endpoint stays on 127.0.0.1 or [::1]", key, listen)
		}
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			bad("%s %q has no port between 0 and 65535", key, listen)
		}
	}
	loopback("listen", c.Listen, "127.0.0.1:18123")
	if c.Native.Listen != "" {
		loopback("native.listen", c.Native.Listen, "127.0.0.1:19000")
	}
	if c.Token != "" && c.Token == c.ReadOnlyToken {
		bad("token and readOnlyToken are the same; the second would not be read-only")
	}
	if c.MaxMemory < 256*flow.MiB {
		bad("maxMemory %v is too small for the engine; at least 256MiB", c.MaxMemory)
	}
	if c.MarkCache < flow.MiB || c.MarkCache > c.MaxMemory/2 {
		bad("markCache %v must be between 1MiB and half of maxMemory (%v)", c.MarkCache, c.MaxMemory)
	}
	if c.MaxDisk < 0 || c.MaxDisk > 0 && c.MaxDisk < 64*flow.MiB {
		bad("maxDisk %v must be 0 (no cap) or at least 64MiB", c.MaxDisk)
	}
	if c.MaxQueries < 1 || c.MaxQueries > 64 {
		bad("maxQueries %d must be between 1 and 64", c.MaxQueries)
	}
	if c.MaxInserts < 1 || c.MaxInserts > 64 {
		bad("maxInserts %d must be between 1 and 64", c.MaxInserts)
	}
	if c.MaxInsertSize < flow.MiB || c.MaxInsertSize > 4*flow.GiB {
		bad("maxInsertSize %v must be between 1MiB and 4GiB", c.MaxInsertSize)
	}
	if c.QueueTime <= 0 || c.ReadOnlyTime < time.Second {
		bad("queueTime (%v) must be positive and readOnlyTime (%v) a second or more", c.QueueTime, c.ReadOnlyTime)
	}
	return errors.Join(errs...)
}

// Engine is one embedded ClickHouse and its endpoint. [New] starts nothing; Run
// does, once. The methods are safe for concurrent use.
type Engine struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	token   [sha256.Size]byte
	reader  [sha256.Size]byte

	ready  chan struct{}
	addr   net.Addr     // set before ready is closed, as is native
	native *nativeFront // nil if there is none

	lib     *library
	version string // of the server, as it names itself
	guard   *guard
	names   map[string]bool // settings the engine knows
	formats map[string]bool // formats it knows, in lower case

	controlMu sync.Mutex
	control   *session // open for life: closing the last connection stops the engine

	queries, inserts chan struct{}
	serial           atomic.Uint64 // of statements, for KILL
	writes           writes
	running          sync.WaitGroup

	// patience is how long a client may stand still in the middle of a body before
	// its connection is given up: it holds a turn meanwhile.
	patience time.Duration

	diskUsed atomic.Int64
	nextWalk time.Time // of Run's goroutine
}

// New checks cfg and returns an engine that Run starts. Metrics are registered on
// reg unless it is nil.
func New(cfg Config, log *slog.Logger, reg prometheus.Registerer) (*Engine, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("embedded ClickHouse: %w", err)
	}
	if cfg.Token == "" {
		b := make([]byte, 24)
		if _, err := rand.Read(b); err != nil {
			return nil, err
		}
		cfg.Token = hex.EncodeToString(b)
	}
	e := &Engine{
		cfg: cfg, log: log, metrics: newMetrics(reg),
		token: sha256.Sum256([]byte(cfg.Token)), reader: sha256.Sum256([]byte(cfg.ReadOnlyToken)),
		patience: time.Minute, ready: make(chan struct{}), queries: make(chan struct{}, cfg.MaxQueries), inserts: make(chan struct{}, cfg.MaxInserts),
	}
	e.metrics.diskLimit.Set(float64(cfg.MaxDisk))
	e.metrics.memLimit.Set(float64(cfg.MaxMemory))
	return e, nil
}

// Ready is closed when the endpoint answers. It is never closed where Run fails
// before; wait for both.
func (e *Engine) Ready() <-chan struct{} { return e.ready }

// Addr is the endpoint's address; valid once Ready is closed.
func (e *Engine) Addr() net.Addr { return e.addr }

// NativeAddr is the address for the native protocol, nil if there is none; valid once
// Ready is closed.
func (e *Engine) NativeAddr() net.Addr {
	if e.native == nil {
		return nil
	}
	return e.native.ln.Addr()
}

// Token is the password of full access, the configured or the random one.
func (e *Engine) Token() string { return e.cfg.Token }

// URL is a clickhouse-go data source name of full access; valid once Ready is
// closed. It holds the token: do not log it.
func (e *Engine) URL() string {
	u := url.URL{Scheme: "http", User: url.UserPassword("default", e.cfg.Token), Host: e.addr.String(), Path: "/" + e.cfg.Database}
	return u.String()
}

// started is set by the first Run of the process: libchdb boots once, and a second
// boot in one process is known to corrupt its allocator (chdb.h, chdb_connect).
var started atomic.Bool

// ErrInUse is wrapped by Run's error where another process holds the data directory.
var ErrInUse = errors.New("the data directory is in use")

// grace is how long Run lets statements end after its context is done before it
// kills them; a batch insert takes well under a second.
const grace = 5 * time.Second

// Run starts the engine, serves until ctx is done or something fails, then waits
// for running statements, kills what is left after a grace period and closes the
// engine. It returns nil after an orderly end.
func (e *Engine) Run(ctx context.Context) (err error) {
	path := e.cfg.Library
	if path == "" {
		if path, err = Locate(e.cfg.CacheDir); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(e.cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("embedded ClickHouse: the data directory: %w", err)
	}
	unlock, err := lockDir(e.cfg.DataDir)
	if err != nil {
		return err
	}
	defer unlock()
	if !started.CompareAndSwap(false, true) {
		return errors.New("embedded ClickHouse was started before in this process; it can be started once")
	}
	if err := e.open(path); err != nil {
		return err
	}
	defer e.close()

	ln, err := net.Listen("tcp", e.cfg.Listen)
	if err != nil {
		return fmt.Errorf("embedded ClickHouse: %w; another listen address can be set as embedded.listen", err)
	}
	// Requests outlive ctx by the grace period, so they have a context of their own.
	base, kill := context.WithCancel(context.WithoutCancel(ctx))
	defer kill()
	srv := &http.Server{
		Handler:           e,
		BaseContext:       func(net.Listener) context.Context { return base },
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    256 << 10, // a query may stand in the URL
		ErrorLog:          slog.NewLogLogger(e.log.Handler(), slog.LevelDebug),
	}
	e.addr = ln.Addr()
	failed := make(chan error, 2)
	where := []any{"address", e.addr.String()}
	if e.cfg.Native.Listen != "" {
		if e.native, err = e.listenNative(base); err != nil {
			return errors.Join(err, ln.Close())
		}
		where = append(where, "native", e.NativeAddr().String())
		go e.native.serve()
	}
	go func() { failed <- srv.Serve(ln) }()
	e.log.Info("embedded ClickHouse is ready", append(where, "version", e.version, "data", e.cfg.DataDir)...)
	close(e.ready)

	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for done := false; !done; {
		select {
		case err = <-failed:
			done = true
		case <-ctx.Done():
			done = true
		case <-tick.C:
			e.watch()
		}
	}
	stop, cancel := context.WithTimeout(base, grace)
	defer cancel()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		if e.native != nil {
			e.native.drain(stop)
		}
	}()
	if srv.Shutdown(stop) != nil {
		kill() // every statement under way is killed by its watcher
		_ = srv.Close()
	}
	<-drained
	kill()
	if e.native != nil {
		e.native.close()
	}
	e.running.Wait() // the engine must not be closed under a statement
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}

// arguments is the command line of the engine. Every one is pinned: what is not
// named here is the engine's own default for a whole server.
func (e *Engine) arguments() []string {
	mem := int64(e.cfg.MaxMemory)
	return []string{
		"clickhouse",
		"--path=" + e.cfg.DataDir,
		"--logger.level=fatal",
		// Without this a terminal on standard error gets the engine's trace.
		"--logger.console=0",
		"--logger.console_log_level=none",
		"--max_server_memory_usage=" + strconv.FormatInt(mem, 10),
		"--mark_cache_size=" + strconv.FormatInt(int64(e.cfg.MarkCache), 10),
		"--uncompressed_cache_size=0",
		"--index_mark_cache_size=16777216",
		"--index_uncompressed_cache_size=0",
		"--primary_index_cache_size=67108864",
		"--query_cache.max_size_in_bytes=0",
		"--mmap_cache_size=0",
		"--compiled_expression_cache_size=16777216",
		// Two threads merge: the pipeline beside them has one or two cores of work.
		"--background_pool_size=2",
		"--background_merges_mutations_concurrency_ratio=2",
		"--background_schedule_pool_size=4",
		"--background_common_pool_size=2",
		"--background_move_pool_size=1",
		"--background_fetches_pool_size=1",
		// Settings of this connection; every connection gets them.
		"--async_insert=0",
		"--implicit_select=0",
		"--max_memory_usage=" + strconv.FormatInt(mem/10*8, 10), // leave a fifth to merges and other statements
		"--max_query_size=" + strconv.Itoa(maxQuery),
		// Merges and the rest of the machine need some room; below it an insert
		// fails with code 243, as at the disk cap.
		"--min_free_disk_bytes_to_perform_insert=268435456",
	}
}

// open loads the library, boots the engine and prepares the databases.
func (e *Engine) open(path string) error {
	restore, err := saveSignals()
	if err != nil {
		return err
	}
	defer restore()
	lib, err := loadLibrary(path)
	if err != nil {
		return fmt.Errorf("embedded ClickHouse: loading the engine: %w", err)
	}
	lib.setSignalHandlers(0) // before the first connection; it stays so for the process
	dir, err := filepath.Abs(e.cfg.DataDir)
	if err != nil {
		return err
	}
	e.cfg.DataDir = dir
	// What prepare put in place of `default` is written down; the engine makes its
	// own again at each start, and prepare could not replace that a second time.
	for _, name := range []string{"default.sql", "default.sql.tmp"} {
		if err := os.Remove(filepath.Join(dir, "metadata", name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("embedded ClickHouse: %w", err)
		}
	}
	s, err := lib.open(e.arguments())
	restore() // at once: a fault in what follows is Go's again
	if err != nil {
		return fmt.Errorf("embedded ClickHouse: opening %s: %w", dir, err)
	}
	e.lib, e.control = lib, s
	if err := e.prepare(); err != nil {
		e.close()
		return fmt.Errorf("embedded ClickHouse: preparing %s: %w", dir, err)
	}
	e.watch()
	return nil
}

func (e *Engine) prepare() error {
	do := func(q string) error {
		_, _, err := e.control.Query(q, "TSV")
		return err
	}
	if err := do("CREATE DATABASE IF NOT EXISTS " + quoteIdentifier(e.cfg.Database) + " ENGINE = Atomic"); err != nil {
		return err
	}
	if err := do("USE " + quoteIdentifier(e.cfg.Database)); err != nil {
		return err
	}
	// The engine's own `default` overlays the file system: a table name is a path
	// there, for a read-only user too. New connections need a database of that
	// name, so an empty one in memory takes its place.
	if err := do("DETACH DATABASE default"); err != nil {
		return err
	}
	if err := do("CREATE DATABASE default ENGINE = Memory"); err != nil {
		return err
	}
	out, _, err := e.control.Query("SELECT name FROM system.settings", "TSVRaw")
	if err != nil {
		return err
	}
	e.names = make(map[string]bool)
	for n := range strings.FieldsSeq(string(out)) {
		e.names[n] = true
	}
	if out, _, err = e.control.Query("SELECT lower(name) FROM system.formats", "TSVRaw"); err != nil {
		return err
	}
	e.formats = make(map[string]bool)
	for n := range strings.FieldsSeq(string(out)) {
		e.formats[n] = true
	}
	if out, _, err = e.control.Query("SELECT name FROM system.table_functions", "TSVRaw"); err != nil {
		return err
	}
	e.guard = newGuard(strings.Fields(string(out)))
	if out, _, err = e.control.Query("SELECT version()", "TSVRaw"); err != nil {
		return err
	}
	e.version = strings.TrimSpace(string(out))
	// What a crash left of spilled inserts.
	if err := os.RemoveAll(e.spillDir()); err != nil {
		return err
	}
	return os.MkdirAll(e.spillDir(), 0o700)
}

func (e *Engine) spillDir() string { return filepath.Join(e.cfg.DataDir, "postern-spill") }

func (e *Engine) close() {
	e.controlMu.Lock()
	defer e.controlMu.Unlock()
	if e.control != nil {
		e.control.Close()
		e.control = nil
	}
}

// duplicates is how many inserted blocks the engine has recognised as duplicates
// since it was started; 0 where nobody asks.
func (e *Engine) duplicates(ask bool) (n uint64) {
	if !ask {
		return 0
	}
	e.controlMu.Lock()
	defer e.controlMu.Unlock()
	if e.control == nil {
		return 0
	}
	out, _, err := e.control.Query("SELECT value FROM system.events WHERE event = 'DuplicatedInsertedBlocks'", "TSVRaw")
	if err == nil {
		n, _ = strconv.ParseUint(strings.TrimSpace(string(out)), 10, 64) // no row is 0
	}
	return n
}

// kill stops the statement with that tag; it returns before the statement has
// ended.
func (e *Engine) kill(tag string) {
	e.controlMu.Lock()
	defer e.controlMu.Unlock()
	if e.control == nil {
		return
	}
	if _, _, err := e.control.Query("KILL QUERY WHERE Settings['log_comment'] = "+quoteString(tag)+" ASYNC", "Null"); err != nil {
		e.log.Warn("embedded ClickHouse: killing a statement failed", "error", err)
	}
}

// watch measures disk and memory.
func (e *Engine) watch() {
	e.measureDisk()
	e.controlMu.Lock()
	defer e.controlMu.Unlock()
	if e.control == nil {
		return
	}
	if out, _, err := e.control.Query("SELECT value FROM system.metrics WHERE metric = 'MemoryTracking'", "TSVRaw"); err == nil {
		if v, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64); err == nil {
			e.metrics.memory.Set(v)
		}
	}
}

// measureDisk walks the data directory, which may hold a hundred thousand files:
// at most a fiftieth of the time goes into it.
func (e *Engine) measureDisk() {
	start := time.Now()
	if start.Before(e.nextWalk) {
		return
	}
	defer func() { e.nextWalk = time.Now().Add(50 * time.Since(start)) }()
	var used int64
	err := filepath.WalkDir(e.cfg.DataDir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // parts vanish while we walk
		}
		if info, err := d.Info(); err == nil && d.Type().IsRegular() {
			used += allocated(info)
		}
		return nil
	})
	if err == nil {
		if limit := int64(e.cfg.MaxDisk); limit > 0 && (used >= limit) != (e.diskUsed.Load() >= limit) {
			if used >= limit {
				e.log.Warn("embedded ClickHouse: the disk cap is reached; inserts are refused until space is free", "used", used, "cap", limit)
			} else {
				e.log.Info("embedded ClickHouse: inserts are accepted again", "used", used, "cap", limit)
			}
		}
		e.diskUsed.Store(used)
		e.metrics.disk.Set(float64(used))
	}
}

// access is what a token allows.
type access int

const (
	accessNone access = iota
	accessRead
	accessFull
)

// authorize compares in constant time; the user name does not matter.
func (e *Engine) authorize(secret string) access {
	got := sha256.Sum256([]byte(secret))
	full := subtle.ConstantTimeCompare(got[:], e.token[:])
	read := subtle.ConstantTimeCompare(got[:], e.reader[:])
	switch {
	case secret == "":
		return accessNone
	case full == 1:
		return accessFull
	case read == 1 && e.cfg.ReadOnlyToken != "":
		return accessRead
	}
	return accessNone
}
