package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ClickHouse/ch-go/compress"
)

const (
	maxQuery   = 1 << 20   // bytes of a statement's text; the engine's own default is 256 KiB
	maxParams  = 256       // query parameters and settings of one request
	spillAbove = 8 << 20   // bytes of an insert's body kept in memory; the rest goes to a file
	maxWhole   = 256 << 20 // bytes of a result whose format cannot be streamed
)

// request is what a front knows of a statement beside its text.
type request struct {
	access     access
	query      string
	database   string
	format     string // default_format
	revision   uint64 // protocol revision of the client; 0 is plain Native
	compress   bool
	decompress bool
	method     string // network_compression_method
	settings   []param
	params     []param
	readOnly   bool // GET: what is only looked at

	tellDuplicate bool // whether an insert's rows were there already is asked for
}

// outputFormat is what the result of a statement is written in.
func (q request) outputFormat(st statement) string {
	if st.format != "" {
		return st.format
	}
	return q.format
}

func badRequest(format string, a ...any) *Exception {
	return &Exception{Code: codeBadArguments, Message: fmt.Sprintf(format, a...) + " (BAD_ARGUMENTS)"}
}

func bodyError(err error) error {
	if ex := (*Exception)(nil); errors.As(err, &ex) {
		return ex
	}
	return &Exception{Code: codeCannotDecompress, Message: fmt.Sprintf("the request's body cannot be read: %v (CANNOT_DECOMPRESS)", err)}
}

// checkSettings refuses settings the engine does not know and those the token may not set.
func (e *Engine) checkSettings(q request) error {
	for _, s := range q.settings {
		if !e.names[s.name] {
			e.refused("request")
			return &Exception{Code: codeUnknownSetting, Message: "Neither a setting nor a parameter of the interface: " + strconv.Quote(s.name) + " (UNKNOWN_SETTING)"}
		}
		if q.access == accessRead && !readerSetting(s.name) {
			e.refused("readonly")
			return refuse("the read-only token does not allow the setting " + s.name)
		}
	}
	return nil
}

// checkStatement refuses what needs no look by the engine: nothing at all, an INSERT
// without the right to it, an INSERT into a full database.
func (e *Engine) checkStatement(q request, st statement) error {
	if st.verb == "" {
		e.refused("request")
		return &Exception{Code: codeSyntaxError, Message: "Empty query (SYNTAX_ERROR)"}
	}
	if st.verb != "INSERT" {
		return nil
	}
	if q.readOnly || q.access != accessFull {
		e.refused("readonly")
		return refuse("Cannot execute query in readonly mode: an INSERT needs the token of full access, and over HTTP a POST")
	}
	if limit := int64(e.cfg.MaxDisk); limit > 0 && e.diskUsed.Load() >= limit {
		e.refused("disk")
		return &Exception{Code: CodeNotEnoughSpace, Message: fmt.Sprintf("the embedded database takes %d bytes and its cap is %d (embedded.maxDisk); retry later: space is free again when data expires or is dropped, or raise the cap (NOT_ENOUGH_SPACE)", e.diskUsed.Load(), limit)}
	}
	return nil
}

// acquire waits for a turn.
func (e *Engine) acquire(ctx context.Context, slots chan struct{}) error {
	select {
	case slots <- struct{}{}:
		return nil
	default:
	}
	t := time.NewTimer(e.cfg.QueueTime)
	defer t.Stop()
	select {
	case slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return &Exception{Code: codeQueryCancelled, Message: "Query was cancelled while it waited for its turn (QUERY_WAS_CANCELLED)"}
	case <-t.C:
		e.refused("busy")
		return &Exception{Code: codeTooManyQueries, Message: fmt.Sprintf("Too many simultaneous queries: %d run and this one waited %v; retry later (TOO_MANY_SIMULTANEOUS_QUERIES)", cap(slots), e.cfg.QueueTime)}
	}
}

// session opens a connection of the engine for one statement, with its database
// and settings, and returns the tag it can be killed by. A connection costs a
// tenth of a millisecond; that a statement has one of its own is why nothing it
// sets outlives it.
func (e *Engine) session(q request) (*session, string, error) {
	tag := "postern-" + strconv.FormatUint(e.serial.Add(1), 10)
	s, err := e.lib.open(append(e.arguments(), "--log_comment="+tag))
	if err != nil {
		return nil, "", err
	}
	db := q.database
	if db == "" {
		db = e.cfg.Database
	}
	set := new(strings.Builder)
	add := func(name, value string) {
		if set.Len() == 0 {
			set.WriteString("SET ")
		} else {
			set.WriteString(", ")
		}
		set.WriteString(name + " = " + value)
	}
	if q.access == accessRead {
		// Defaults first: a request may ask for less time, and readonly comes last.
		add("max_execution_time", strconv.Itoa(int(e.cfg.ReadOnlyTime/time.Second)))
		add("max_memory_usage", strconv.FormatInt(int64(e.cfg.MaxMemory)/2, 10))
		add("max_result_bytes", strconv.Itoa(maxWhole))
	}
	for _, p := range q.settings {
		if p.name == "log_comment" || p.name == "readonly" {
			continue // the first is our tag; the second goes by the token
		}
		if q.access == accessRead && p.name == "max_execution_time" {
			if v, err := strconv.ParseFloat(p.value, 64); err != nil || v <= 0 || v > e.cfg.ReadOnlyTime.Seconds() {
				continue
			}
		}
		add(p.name, quoteString(p.value))
	}
	if q.access == accessRead {
		add("readonly", "1")
	}
	_, _, err = s.Query("USE "+quoteIdentifier(db), "Null")
	if err == nil && set.Len() > 0 {
		_, _, err = s.Query(set.String(), "Null")
	}
	if err != nil {
		s.Close()
		return nil, "", err
	}
	return s, tag, nil
}

// watchKill kills the statement of the tag once ctx is done, again and again until
// the returned function is called, because a kill that comes before the statement
// has started finds nothing. That function waits for a kill under way.
func (e *Engine) watchKill(ctx context.Context, tag string) (end func()) {
	done, idle := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(idle)
		select {
		case <-done:
			return
		case <-ctx.Done():
		}
		e.metrics.killed.Inc()
		for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
			e.kill(tag)
			select {
			case <-done:
				return
			case <-time.After(wait):
			}
		}
	}()
	return func() { close(done); <-idle }
}

// begin counts a statement that runs and returns what counts its end.
func (e *Engine) begin(kind string) func(err error) {
	start := time.Now()
	e.metrics.running.WithLabelValues(kind).Inc()
	return func(err error) {
		e.metrics.running.WithLabelValues(kind).Dec()
		e.metrics.seconds.WithLabelValues(kind).Observe(time.Since(start).Seconds())
		result := "ok"
		if err != nil {
			result = "error"
		}
		e.metrics.requests.WithLabelValues(kind, result).Inc()
	}
}

// insert stores what fill writes. The engine sees the first byte only when fill has
// ended without an error: it would keep the blocks it has cut from a body that
// breaks off. An error of fill that is no *Exception is about the request's body.
func (e *Engine) insert(ctx context.Context, q request, head, format string, fill func(io.Writer) error) (stat statistics, err error) {
	if err := e.acquire(ctx, e.inserts); err != nil {
		return stat, err
	}
	defer func() { <-e.inserts }()
	sp := &spill{dir: e.spillDir(), limit: int64(e.cfg.MaxInsertSize)}
	defer sp.Close()
	if err := fill(sp); err != nil {
		if errors.Is(err, errTooBig) {
			e.refused("size")
			return stat, &Exception{Code: codeLimitExceeded, Message: fmt.Sprintf("the body of an insert is larger than %v (embedded.maxInsertSize); send smaller batches (LIMIT_EXCEEDED)", e.cfg.MaxInsertSize)}
		}
		e.refused("request")
		return stat, bodyError(err)
	}
	end := e.begin("insert")
	defer func() { end(err) }()
	s, tag, err := e.session(q)
	if err != nil {
		return stat, err
	}
	defer s.Close()
	in, err := s.Insert(head, format, q.params...)
	if err != nil {
		return stat, err
	}
	defer in.Close()
	defer e.watchKill(ctx, tag)()
	if err := sp.each(func(p []byte) error {
		_, err := in.Write(p)
		return err
	}); err != nil {
		return stat, err
	}
	duplicate := e.writes.begin(e, q.tellDuplicate)
	stat, err = in.Commit()
	stat.duplicate = duplicate()
	if err != nil {
		return stat, err
	}
	e.metrics.rows.Add(float64(stat.rowsWritten))
	e.metrics.bytes.Add(float64(sp.n))
	return stat, nil
}

// writes tells whether one write met rows that were there already. The engine counts
// duplicates for the whole process only, so the answer is known where no other
// write ran meanwhile.
type writes struct {
	mu      sync.Mutex
	running int
	begun   int
}

// begin counts a write in and returns what counts it out and says, if it is asked,
// whether its rows are known to have been duplicates.
func (w *writes) begin(e *Engine, ask bool) func() (duplicate bool) {
	w.mu.Lock()
	w.running++
	w.begun++
	alone, serial := ask && w.running == 1, w.begun
	w.mu.Unlock()
	before := e.duplicates(alone)
	return func() bool {
		after := e.duplicates(alone)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.running--
		return alone && serial == w.begun && after > before
	}
}

// output is where a front wants the result of a statement. An error of write ends
// the statement and is what query returns.
type output interface {
	// total tells the statement's counts, once: before the first write where the result is
	// whole by then, else behind the last.
	total(statistics)
	write(b []byte) error // a piece of the result in the format, whole blocks
	close() error         // the result was whole
}

// query runs everything that is no insert with a body. An error may come behind
// some writes.
func (e *Engine) query(ctx context.Context, q request, text string, st statement, out output) (err error) {
	if err := e.acquire(ctx, e.queries); err != nil {
		return err
	}
	defer func() { <-e.queries }()
	kind := "other"
	if readOnlyVerbs[st.verb] {
		kind = "query"
	}
	end := e.begin(kind)
	defer func() { end(err) }()
	s, tag, err := e.session(q)
	if err != nil {
		return err
	}
	defer s.Close()
	class, n, err := s.Classify(text)
	if err != nil {
		return err
	}
	if n > 1 {
		return &Exception{Code: codeSyntaxError, Message: "Syntax error (Multi-statements are not allowed) (SYNTAX_ERROR)"}
	}
	if q.readOnly && class != classReadOnly && class != classUnknown {
		return refuse("Cannot execute query in readonly mode. For queries over HTTP, method GET implies readonly. You should use method POST for modifying queries.")
	}
	if q.access != accessFull {
		if err := e.guard.check(s, text, st, q.params); err != nil {
			return err
		}
	}
	defer e.watchKill(ctx, tag)()
	format := q.outputFormat(st)
	if class == classReadOnly && streamable[format] {
		rows, err := s.Stream(text, format, q.params...)
		if err == nil {
			return e.stream(rows, out)
		}
		if ex := (*Exception)(nil); !errors.As(err, &ex) || ex.Code != codeBadArguments || !strings.HasPrefix(ex.Message, "Streaming query is not supported") {
			return err
		}
	}
	if class == classReadOnly && !streamable[format] && q.access == accessFull { // the other has the cap anyway
		// The whole result will be in memory, in the engine's and once more in ours.
		if _, _, err := s.Query(fmt.Sprintf("SET max_result_bytes = %d", maxWhole), "Null"); err != nil {
			return err
		}
	}
	if st.verb == "INSERT" { // … SELECT
		defer e.writes.begin(e, false)()
	}
	b, stat, err := s.Query(text, format, q.params...)
	if err != nil {
		return err
	}
	out.total(stat)
	if len(b) > 0 {
		if err := out.write(b); err != nil {
			return err
		}
	}
	return out.close()
}

// stream sends a result block by block.
func (e *Engine) stream(rows *rowStream, out output) error {
	ended := false
	defer func() { rows.Close(ended) }()
	for {
		b, stat, err := rows.Next()
		if err != nil {
			ended = true
			return err
		}
		if len(b) == 0 {
			ended = true
			out.total(stat)
			return out.close()
		}
		if err := out.write(b); err != nil {
			return err
		}
	}
}

func compressMethod(name string) compress.Method {
	switch name {
	case "ZSTD":
		return compress.ZSTD
	case "LZ4HC":
		return compress.LZ4HC
	case "NONE":
		return compress.None
	}
	return compress.LZ4
}

var errTooBig = errors.New("too big")

// spill holds an insert's body: the first part in memory, the rest in a file that
// is gone when it is closed.
type spill struct {
	dir   string
	limit int64
	n     int64
	mem   bytes.Buffer
	file  *os.File
}

func (s *spill) Write(p []byte) (int, error) {
	if s.n+int64(len(p)) > s.limit {
		return 0, errTooBig
	}
	s.n += int64(len(p))
	if s.file == nil {
		if s.mem.Len()+len(p) <= spillAbove {
			return s.mem.Write(p)
		}
		f, err := os.CreateTemp(s.dir, "insert-*")
		if err != nil {
			return 0, err
		}
		_ = os.Remove(f.Name()) // unlinked at once: nothing to clean up after a crash
		s.file = f
	}
	return s.file.Write(p)
}

// each hands the body over in pieces.
func (s *spill) each(f func([]byte) error) error {
	for b := s.mem.Bytes(); len(b) > 0; {
		n := min(len(b), 1<<20)
		if err := f(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	if s.file == nil {
		return nil
	}
	if _, err := s.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for {
		n, err := s.file.Read(buf)
		if n > 0 {
			if err := f(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (s *spill) Close() {
	if s.file != nil {
		_ = s.file.Close()
		s.file = nil
	}
}
