package embedded

import (
	"errors"
	"runtime"
	"unsafe"
)

// library is the part of libchdb's C interface (chdb.h, 26.7) this package
// calls. Every field is a C function; handles are opaque pointers of the engine,
// kept as uintptr because they are no Go memory.
type library struct {
	version func() string

	// setSignalHandlers(0) must be called before the first connect: the handlers
	// libchdb would install swallow the SIGSEGV Go turns into a panic.
	setSignalHandlers func(enabled int32)

	connect func(argc int32, argv unsafe.Pointer) unsafe.Pointer
	close   func(conn unsafe.Pointer)

	query       func(conn uintptr, q unsafe.Pointer, qlen uintptr, format unsafe.Pointer, flen uintptr, names, nameLens, values, valueLens unsafe.Pointer, n uintptr) uintptr
	streamQuery func(conn uintptr, q unsafe.Pointer, qlen uintptr, format unsafe.Pointer, flen uintptr, names, nameLens, values, valueLens unsafe.Pointer, n uintptr) uintptr
	streamFetch func(conn, result uintptr) uintptr
	streamStop  func(conn, result uintptr)
	destroy     func(result uintptr)

	insert        func(conn uintptr, q unsafe.Pointer, qlen uintptr, format unsafe.Pointer, flen uintptr, names, nameLens, values, valueLens unsafe.Pointer, n uintptr) uintptr
	insertAppend  func(stream uintptr, data unsafe.Pointer, n uintptr) int32
	insertDone    func(stream uintptr) uintptr
	insertCancel  func(stream uintptr)
	insertError   func(stream uintptr) string
	insertDestroy func(stream uintptr)

	resultBuffer       func(result uintptr) unsafe.Pointer
	resultLength       func(result uintptr) uintptr
	resultRowsRead     func(result uintptr) uint64
	resultStorageRows  func(result uintptr) uint64
	resultStorageBytes func(result uintptr) uint64
	resultRowsWritten  func(result uintptr) uint64
	resultBytesWritten func(result uintptr) uint64
	resultError        func(result uintptr) string

	classify func(conn uintptr, q unsafe.Pointer, qlen uintptr, db unsafe.Pointer, dblen uintptr, out unsafe.Pointer) int32
}

// symbols lists what must be found in the library, and where it goes.
func (l *library) symbols() []symbol {
	return []symbol{
		{"chdb_version", &l.version},
		{"chdb_set_signal_handlers_enabled", &l.setSignalHandlers},
		{"chdb_connect", &l.connect},
		{"chdb_close_conn", &l.close},
		{"chdb_query_with_params_n", &l.query},
		{"chdb_stream_query_with_params_n", &l.streamQuery},
		{"chdb_stream_fetch_result", &l.streamFetch},
		{"chdb_stream_cancel_query", &l.streamStop},
		{"chdb_destroy_query_result", &l.destroy},
		{"chdb_stream_insert_with_params_n", &l.insert},
		{"chdb_stream_append", &l.insertAppend},
		{"chdb_stream_done", &l.insertDone},
		{"chdb_stream_cancel_insert", &l.insertCancel},
		{"chdb_stream_insert_error", &l.insertError},
		{"chdb_destroy_insert_stream", &l.insertDestroy},
		{"chdb_result_buffer", &l.resultBuffer},
		{"chdb_result_length", &l.resultLength},
		{"chdb_result_rows_read", &l.resultRowsRead},
		{"chdb_result_storage_rows_read", &l.resultStorageRows},
		{"chdb_result_storage_bytes_read", &l.resultStorageBytes},
		{"chdb_result_rows_written", &l.resultRowsWritten},
		{"chdb_result_bytes_written", &l.resultBytesWritten},
		{"chdb_result_error", &l.resultError},
		{"chdb_classify_query_n", &l.classify},
	}
}

type symbol struct {
	name string
	fn   any
}

// param is one server-side query parameter, {name:Type} in the text.
type param struct{ name, value string }

// statistics of one statement, as the engine counts them.
type statistics struct {
	rowsRead, bytesRead       uint64
	rowsWritten, bytesWritten uint64
	duplicate                 bool // the rows of an insert are known to have been there already
}

// session is one connection of the engine: one statement at a time, its own
// settings and current database. It is not safe for concurrent use.
type session struct {
	lib  *library
	ref  unsafe.Pointer // chdb_connection*, what chdb_connect returns and chdb_close_conn takes
	conn uintptr        // chdb_connection, what everything else takes
}

var errConnect = errors.New("the engine refused the connection")

func (l *library) open(args []string) (*session, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	argv := make([]unsafe.Pointer, len(args)+1)
	for i, a := range args {
		b := append([]byte(a), 0)
		pin.Pin(&b[0])
		argv[i] = unsafe.Pointer(&b[0])
	}
	pin.Pin(&argv[0])
	h := l.connect(int32(len(args)), unsafe.Pointer(&argv[0]))
	if h == nil || *(*uintptr)(h) == 0 {
		return nil, errConnect
	}
	return &session{lib: l, ref: h, conn: *(*uintptr)(h)}, nil
}

// Close ends the connection; a second call does nothing.
func (s *session) Close() {
	if s.ref != nil {
		s.lib.close(s.ref)
		s.ref, s.conn = nil, 0
	}
}

// cparams lays parameters out as the four parallel arrays of the C interface.
type cparams struct {
	names, values       []unsafe.Pointer
	nameLens, valueLens []uintptr
	pn, pnl, pv, pvl    unsafe.Pointer
}

func (c *cparams) fill(pin *runtime.Pinner, ps []param) {
	if len(ps) == 0 {
		return
	}
	for _, p := range ps {
		n, v := cbytes(pin, p.name), cbytes(pin, p.value)
		c.names, c.nameLens = append(c.names, n), append(c.nameLens, uintptr(len(p.name)))
		c.values, c.valueLens = append(c.values, v), append(c.valueLens, uintptr(len(p.value)))
	}
	pin.Pin(&c.names[0])
	pin.Pin(&c.nameLens[0])
	pin.Pin(&c.values[0])
	pin.Pin(&c.valueLens[0])
	c.pn, c.pnl = unsafe.Pointer(&c.names[0]), unsafe.Pointer(&c.nameLens[0])
	c.pv, c.pvl = unsafe.Pointer(&c.values[0]), unsafe.Pointer(&c.valueLens[0])
}

// cbytes copies s, with a zero byte behind it, to memory pinned until pin is released.
func cbytes(pin *runtime.Pinner, s string) unsafe.Pointer {
	b := make([]byte, len(s)+1)
	copy(b, s)
	pin.Pin(&b[0])
	return unsafe.Pointer(&b[0])
}

// Query runs one statement and returns the whole result.
func (s *session) Query(q, format string, ps ...param) ([]byte, statistics, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	var c cparams
	c.fill(&pin, ps)
	r := s.lib.query(s.conn, cbytes(&pin, q), uintptr(len(q)), cbytes(&pin, format), uintptr(len(format)), c.pn, c.pnl, c.pv, c.pvl, uintptr(len(ps)))
	return s.lib.take(r)
}

// take copies a materialised result out of the engine and releases it.
func (l *library) take(r uintptr) ([]byte, statistics, error) {
	if r == 0 {
		return nil, statistics{}, errors.New("the engine returned no result")
	}
	defer l.destroy(r)
	st := statistics{
		rowsRead: l.resultStorageRows(r), bytesRead: l.resultStorageBytes(r),
		rowsWritten: l.resultRowsWritten(r), bytesWritten: l.resultBytesWritten(r),
	}
	if e := l.resultError(r); e != "" {
		return nil, st, parseException(e)
	}
	n := l.resultLength(r)
	if n == 0 {
		return nil, st, nil
	}
	out := make([]byte, n)
	copy(out, unsafe.Slice((*byte)(l.resultBuffer(r)), n))
	return out, st, nil
}

// rowStream is a SELECT under way; its chunks are whole blocks.
type rowStream struct {
	s *session
	r uintptr
}

// Stream starts a statement whose result is fetched block by block.
func (s *session) Stream(q, format string, ps ...param) (*rowStream, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	var c cparams
	c.fill(&pin, ps)
	r := s.lib.streamQuery(s.conn, cbytes(&pin, q), uintptr(len(q)), cbytes(&pin, format), uintptr(len(format)), c.pn, c.pnl, c.pv, c.pvl, uintptr(len(ps)))
	if r == 0 {
		return nil, errors.New("the engine returned no result")
	}
	if e := s.lib.resultError(r); e != "" {
		s.lib.destroy(r)
		return nil, parseException(e)
	}
	return &rowStream{s: s, r: r}, nil
}

// Next returns the next chunk, nil at the end.
func (st *rowStream) Next() ([]byte, statistics, error) {
	return st.s.lib.take(st.s.lib.streamFetch(st.s.conn, st.r))
}

// Close stops the statement if it has not ended and releases it; once.
func (st *rowStream) Close(ended bool) {
	if st.r == 0 {
		return
	}
	if !ended {
		st.s.lib.streamStop(st.s.conn, st.r)
	}
	st.s.lib.destroy(st.r)
	st.r = 0
}

// insertStream is an INSERT whose data is handed over in pieces.
type insertStream struct {
	s *session
	h uintptr
}

// Insert starts an INSERT; q has no FORMAT clause and no data.
func (s *session) Insert(q, format string, ps ...param) (*insertStream, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	var c cparams
	c.fill(&pin, ps)
	h := s.lib.insert(s.conn, cbytes(&pin, q), uintptr(len(q)), cbytes(&pin, format), uintptr(len(format)), c.pn, c.pnl, c.pv, c.pvl, uintptr(len(ps)))
	if h == 0 {
		return nil, errors.New("the engine returned no insert stream")
	}
	if e := s.lib.insertError(h); e != "" {
		s.lib.insertDestroy(h)
		return nil, parseException(e)
	}
	return &insertStream{s: s, h: h}, nil
}

// Write hands over a piece of the data; the engine copies it and may block.
func (in *insertStream) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	var pin runtime.Pinner
	pin.Pin(&p[0])
	st := in.s.lib.insertAppend(in.h, unsafe.Pointer(&p[0]), uintptr(len(p)))
	pin.Unpin()
	if st != 0 {
		if e := in.s.lib.insertError(in.h); e != "" {
			return 0, parseException(e)
		}
		return 0, errors.New("the engine refused the data of an insert")
	}
	return len(p), nil
}

// Commit ends the data and waits until the rows are stored.
func (in *insertStream) Commit() (statistics, error) {
	_, st, err := in.s.lib.take(in.s.lib.insertDone(in.h))
	return st, err
}

// Close releases the stream and cancels it where Commit was not called; once.
func (in *insertStream) Close() {
	if in.h == 0 {
		return
	}
	in.s.lib.insertDestroy(in.h)
	in.h = 0
}

// queryClass is what a statement does to what outlives it (chdb_query_class).
type queryClass uint32

const (
	classReadOnly queryClass = iota
	classMutating
	classMutatingGlobal
	classControl
	classUnknown
)

// Classify parses q with the engine's own parser and runs nothing.
func (s *session) Classify(q string) (class queryClass, statements int, err error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	out := new([4]uint32) // chdb_query_analysis_v1: struct_size, statement_count, flags, query_class
	out[0] = uint32(unsafe.Sizeof(*out))
	pin.Pin(out)
	if s.lib.classify(s.conn, cbytes(&pin, q), uintptr(len(q)), nil, 0, unsafe.Pointer(out)) != 0 {
		return classUnknown, 0, errors.New("the engine could not classify the statement")
	}
	return queryClass(out[3]), int(out[1]), nil
}
