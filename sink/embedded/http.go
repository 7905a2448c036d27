package embedded

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go/compress"
	chproto "github.com/ClickHouse/ch-go/proto"
	"github.com/klauspost/compress/zstd"
)

const (
	maxQuery   = 1 << 20   // bytes of a statement's text; the engine's own default is 256 KiB
	maxParams  = 256       // query parameters and settings of one request
	spillAbove = 8 << 20   // bytes of an insert's body kept in memory; the rest goes to a file
	maxWhole   = 256 << 20 // bytes of a result whose format cannot be streamed
)

// ServeHTTP speaks ClickHouse's HTTP interface.
func (e *Engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// A write deadline belongs to the connection and outlives the request that set it.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
	h := w.Header()
	h.Set("X-ClickHouse-Server-Display-Name", "postern-embedded")
	h.Set("X-ClickHouse-Timezone", "UTC")
	switch {
	case r.URL.Path == "/ping":
		_, _ = io.WriteString(w, "Ok.\n")
		return
	case r.URL.Path != "/":
		http.Error(w, "There is nothing here; queries go to /", http.StatusNotFound)
		return
	}
	if r.Method != http.MethodPost && r.Method != http.MethodGet && r.Method != http.MethodHead {
		e.refused("request")
		http.Error(w, "a query is a GET or a POST", http.StatusMethodNotAllowed)
		return
	}
	if r.URL.RawQuery == "" && r.Method != http.MethodPost {
		_, _ = io.WriteString(w, "Ok.\n")
		return
	}
	q, err := newRequest(r)
	if err != nil {
		e.refused("request")
		e.fail(w, r, request{}, err)
		return
	}
	q.access = e.authorize(r)
	if q.access == accessNone {
		e.refused("auth")
		h.Set("WWW-Authenticate", `Basic realm="ClickHouse server HTTP API"`)
		e.fail(w, r, q, &Exception{Code: codeAuthentication, Message: "Authentication failed: the token is missing or wrong; send it as the password. (AUTHENTICATION_FAILED)"})
		return
	}
	e.running.Add(1)
	defer e.running.Done()
	if err := e.serve(w, r, q); errors.Is(err, errBroken) {
		panic(http.ErrAbortHandler) // net/http's way to end a body without its last chunk
	} else if err != nil {
		e.fail(w, r, q, err)
	}
}

// errBroken is the end of a result that failed after its first byte was sent.
var errBroken = errors.New("the result broke off")

func (e *Engine) refused(reason string) { e.metrics.refused.WithLabelValues(reason).Inc() }

// request is what the URL says.
type request struct {
	access     access
	query      string
	database   string
	format     string // default_format
	revision   uint64 // client_protocol_version
	compress   bool
	decompress bool
	method     string // network_compression_method
	settings   []param
	params     []param
	readOnly   bool // GET: what is only looked at
}

// ignored parameters have no meaning here: there is one user, and results are
// always complete before their last byte.
var ignored = []string{"user", "password", "quota_key", "query_id", "stacktrace", "buffer_size", "wait_end_of_query", "session_timeout", "role", "close_session"}

func newRequest(r *http.Request) (request, error) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return request{}, badRequest("the URL's query cannot be read: %v", err)
	}
	if len(values) > maxParams {
		return request{}, badRequest("%d parameters in the URL; at most %d", len(values), maxParams)
	}
	q := request{readOnly: r.Method != http.MethodPost, method: "LZ4", database: r.Header.Get("X-ClickHouse-Database"), format: r.Header.Get("X-ClickHouse-Format")}
	for name, vs := range values {
		v := vs[len(vs)-1]
		switch {
		case name == "query":
			q.query = v
		case name == "database":
			q.database = v
		case name == "default_format":
			q.format = v
		case name == "client_protocol_version":
			if q.revision, err = strconv.ParseUint(v, 10, 32); err != nil {
				return request{}, badRequest("client_protocol_version %q is no number", v)
			}
		case name == "compress":
			q.compress = truth(v)
		case name == "decompress":
			q.decompress = truth(v)
		case name == "session_id" || name == "session_check":
			if v != "" && v != "0" {
				return request{}, &Exception{Code: codeSupportDisabled, Message: "the embedded ClickHouse keeps no HTTP sessions; send settings with each request and use ordinary tables (SUPPORT_IS_DISABLED)"}
			}
		case strings.HasPrefix(name, "param_"):
			q.params = append(q.params, param{name[len("param_"):], v})
		case slices.Contains(ignored, name):
		default:
			if name == "network_compression_method" {
				q.method = strings.ToUpper(v)
			}
			q.settings = append(q.settings, param{name, v})
		}
	}
	byName := func(a, b param) int { return strings.Compare(a.name, b.name) }
	slices.SortFunc(q.settings, byName)
	slices.SortFunc(q.params, byName)
	if q.format == "" {
		q.format = "TabSeparated"
	}
	return q, nil
}

func truth(v string) bool { return v == "1" || strings.EqualFold(v, "true") }

func badRequest(format string, a ...any) *Exception {
	return &Exception{Code: codeBadArguments, Message: fmt.Sprintf(format, a...) + " (BAD_ARGUMENTS)"}
}

// serve runs one statement. Unless it is errBroken, an error means nothing was
// written yet.
func (e *Engine) serve(w http.ResponseWriter, r *http.Request, q request) error {
	control := http.NewResponseController(w)
	if t, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); t == "multipart/form-data" {
		e.refused("request")
		return &Exception{Code: codeNotImplemented, Message: "the embedded ClickHouse takes no external tables (multipart/form-data); put the values into the query or into a table (NOT_IMPLEMENTED)"}
	}
	for _, s := range q.settings {
		if !e.names[s.name] {
			e.refused("request")
			return &Exception{Code: codeUnknownSetting, Message: "Neither a setting nor a parameter of the HTTP interface: " + strconv.Quote(s.name) + " (UNKNOWN_SETTING)"}
		}
		if q.access == accessRead && !readerSetting(s.name) {
			e.refused("readonly")
			return refuse("the read-only token does not allow the setting " + s.name)
		}
	}
	_ = control.SetReadDeadline(time.Now().Add(e.patience))
	body, err := decodeBody(r, q)
	if err != nil {
		e.refused("request")
		return err
	}
	body = &patientReader{r: body, control: control, patience: e.patience}

	text, st := q.query, parseStatement(q.query)
	var data io.Reader
	if st.insertData {
		data = io.MultiReader(strings.NewReader(st.data), body)
	} else {
		more, err := io.ReadAll(io.LimitReader(body, maxQuery+1))
		if err != nil {
			e.refused("request")
			return bodyError(err)
		}
		if len(more) > 0 {
			if text != "" {
				text += "\n"
			}
			text += string(more)
			st = parseStatement(text)
		}
		if st.insertData {
			data = io.MultiReader(strings.NewReader(st.data), body)
		} else if len(more) > maxQuery {
			e.refused("size")
			return &Exception{Code: codeSyntaxError, Message: fmt.Sprintf("Max query size exceeded: the statement is longer than %d bytes (SYNTAX_ERROR)", maxQuery)}
		}
	}
	if st.verb == "" {
		e.refused("request")
		return &Exception{Code: codeSyntaxError, Message: "Empty query (SYNTAX_ERROR)"}
	}
	if st.verb == "INSERT" && (q.readOnly || q.access != accessFull) {
		e.refused("readonly")
		return refuse("Cannot execute query in readonly mode: an INSERT needs a POST and the token of full access")
	}
	if st.verb == "INSERT" {
		if limit := int64(e.cfg.MaxDisk); limit > 0 && e.diskUsed.Load() >= limit {
			e.refused("disk")
			return &Exception{Code: CodeNotEnoughSpace, Message: fmt.Sprintf("the embedded database takes %d bytes and its cap is %d (embedded.maxDisk); retry later: space is free again when data expires or is dropped, or raise the cap (NOT_ENOUGH_SPACE)", e.diskUsed.Load(), limit)}
		}
		if st.insertData {
			return e.insert(w, r, q, st, data)
		}
	}
	return e.query(w, r, q, text, st)
}

// patientReader gives the client some time for each piece of its body. At the end
// the deadline is taken off: net/http goes on reading to see the client leave, and
// would take the deadline for that.
type patientReader struct {
	r        io.Reader
	control  *http.ResponseController
	patience time.Duration
}

func (p *patientReader) Read(b []byte) (int, error) {
	_ = p.control.SetReadDeadline(time.Now().Add(p.patience))
	n, err := p.r.Read(b)
	if err != nil {
		_ = p.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

func bodyError(err error) error {
	if ex := (*Exception)(nil); errors.As(err, &ex) {
		return ex
	}
	return &Exception{Code: codeCannotDecompress, Message: fmt.Sprintf("the request's body cannot be read: %v (CANNOT_DECOMPRESS)", err)}
}

// decodeBody takes off what the headers and decompress=1 say the body is wrapped in.
func decodeBody(r *http.Request, q request) (io.Reader, error) {
	var body io.Reader = r.Body
	switch enc := r.Header.Get("Content-Encoding"); enc {
	case "", "identity":
	case "gzip":
		z, err := gzip.NewReader(body)
		if err != nil {
			return nil, bodyError(err)
		}
		body = z
	case "deflate":
		z, err := zlib.NewReader(body)
		if err != nil {
			return nil, bodyError(err)
		}
		body = z
	case "zstd":
		z, err := zstd.NewReader(body, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(64<<20))
		if err != nil {
			return nil, bodyError(err)
		}
		body = z.IOReadCloser()
	default:
		return nil, &Exception{Code: codeNotImplemented, Message: fmt.Sprintf("Content-Encoding %q is not supported; gzip, deflate, zstd and decompress=1 are (NOT_IMPLEMENTED)", enc)}
	}
	if q.decompress {
		body = newBlockReader(body)
	}
	return body, nil
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

// insert stores a body. The engine sees the first byte only when the last one has
// arrived: it would keep the blocks it has cut from a body that breaks off.
func (e *Engine) insert(w http.ResponseWriter, r *http.Request, q request, st statement, data io.Reader) (err error) {
	ctx := r.Context()
	if err := e.acquire(ctx, e.inserts); err != nil {
		return err
	}
	defer func() { <-e.inserts }()
	sp := &spill{dir: e.spillDir(), limit: int64(e.cfg.MaxInsertSize)}
	defer sp.Close()
	if _, err := io.Copy(sp, data); err != nil {
		if errors.Is(err, errTooBig) {
			e.refused("size")
			return &Exception{Code: codeLimitExceeded, Message: fmt.Sprintf("the body of an insert is larger than %v (embedded.maxInsertSize); send smaller batches (LIMIT_EXCEEDED)", e.cfg.MaxInsertSize)}
		}
		e.refused("request")
		return bodyError(err)
	}
	end := e.begin("insert")
	defer func() { end(err) }()
	s, tag, err := e.session(q)
	if err != nil {
		return err
	}
	defer s.Close()
	in, err := s.Insert(st.head, st.format, q.params...)
	if err != nil {
		return err
	}
	defer in.Close()
	defer e.watchKill(ctx, tag)()
	if err := sp.each(func(p []byte) error {
		_, err := in.Write(p)
		return err
	}); err != nil {
		return err
	}
	stat, err := in.Commit()
	if err != nil {
		return err
	}
	e.metrics.rows.Add(float64(stat.rowsWritten))
	e.metrics.bytes.Add(float64(sp.n))
	summary(w, stat)
	w.WriteHeader(http.StatusOK)
	return nil
}

func summary(w http.ResponseWriter, st statistics) {
	w.Header().Set("X-ClickHouse-Summary", fmt.Sprintf(`{"read_rows":"%d","read_bytes":"%d","written_rows":"%d","written_bytes":"%d"}`,
		st.rowsRead, st.bytesRead, st.rowsWritten, st.bytesWritten))
}

// query runs everything that is no insert with a body.
func (e *Engine) query(w http.ResponseWriter, r *http.Request, q request, text string, st statement) (err error) {
	ctx := r.Context()
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
	format := q.format
	if st.format != "" {
		format = st.format
	}
	out := &result{w: w, r: r, q: q, format: format, control: http.NewResponseController(w), patience: e.patience}
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
	b, stat, err := s.Query(text, format, q.params...)
	if err != nil {
		return err
	}
	summary(w, stat)
	if len(b) == 0 {
		w.Header().Set("Content-Length", "0")
		w.WriteHeader(http.StatusOK)
		return nil
	}
	if err := out.write(b); err != nil {
		return out.breakOff(err)
	}
	return out.close()
}

// stream sends a result block by block; what goes wrong after the first block goes
// into the body's trailer.
func (e *Engine) stream(rows *rowStream, out *result) error {
	ended := false
	defer func() { rows.Close(ended) }()
	for {
		b, stat, err := rows.Next()
		if err != nil {
			ended = true
			return out.breakOff(err)
		}
		if len(b) == 0 {
			ended = true
			if !out.begun {
				summary(out.w, stat)
				out.w.Header().Set("Content-Length", "0")
				out.w.WriteHeader(http.StatusOK)
				return nil
			}
			return out.close()
		}
		if err := out.write(b); err != nil {
			return out.breakOff(err)
		}
	}
}

// fail answers with an exception: the status a server would choose, the code in a
// header and the text in the body.
func (e *Engine) fail(w http.ResponseWriter, r *http.Request, q request, err error) {
	ex := (*Exception)(nil)
	if !errors.As(err, &ex) {
		ex = &Exception{Code: codeUnknownException, Message: err.Error()}
		e.log.Error("embedded ClickHouse: a request failed", "error", err)
	}
	status := http.StatusInternalServerError
	switch ex.Code {
	case codeAuthentication:
		status = http.StatusUnauthorized
	case codeReadonly, codeAccessDenied:
		status = http.StatusForbidden
	case codeTooManyQueries:
		status = http.StatusServiceUnavailable
	case CodeNotEnoughSpace:
		status = http.StatusInsufficientStorage
	case codeLimitExceeded:
		status = http.StatusRequestEntityTooLarge
	case codeNotImplemented, codeSupportDisabled:
		status = http.StatusNotImplemented
	case 60, 81, 46, 5, 24: // unknown table, database, function …
		status = http.StatusNotFound
	case codeSyntaxError, codeBadArguments, codeUnknownSetting, codeUnknownFormat, codeCannotDecompress, codeCannotParse, 26, 27, 38, 41, 47, 53, 70, 72:
		status = http.StatusBadRequest
	}
	h := w.Header()
	h.Set("X-ClickHouse-Exception-Code", strconv.Itoa(ex.Code))
	h.Set("Content-Type", "text/plain; charset=UTF-8")
	h.Del("Content-Encoding")
	h.Del("Content-Length")
	msg := []byte(ex.Error() + " (version " + e.version + " (embedded))\n")
	if q.compress { // as a server does: the client asked for compressed answers
		c := compress.NewWriter(0, compressMethod(q.method))
		if c.Compress(msg) == nil {
			msg = c.Data
		}
	}
	w.WriteHeader(status)
	_, _ = w.Write(msg)
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

// result writes a statement's output as the request asked for it.
type result struct {
	w        http.ResponseWriter
	r        *http.Request
	q        request
	format   string
	control  *http.ResponseController
	patience time.Duration

	begun bool
	gz    *gzip.Writer
	block *compress.Writer
	frame chproto.Buffer
	tag   string
}

const exceptionMarker = "__exception__"

var contentTypes = map[string]string{
	"JSON": "application/json", "JSONCompact": "application/json", "JSONStrings": "application/json", "JSONEachRow": "application/x-ndjson",
	"CSV": "text/csv", "CSVWithNames": "text/csv", "CSVWithNamesAndTypes": "text/csv", "Native": "application/octet-stream", "RowBinary": "application/octet-stream",
	"RowBinaryWithNamesAndTypes": "application/octet-stream", "Parquet": "application/octet-stream", "Arrow": "application/octet-stream", "Markdown": "text/markdown", "XML": "application/xml",
}

func (o *result) begin() {
	o.begun = true
	h := o.w.Header()
	h.Set("X-ClickHouse-Format", o.format)
	if t := contentTypes[o.format]; t != "" {
		h.Set("Content-Type", t+"; charset=UTF-8")
	} else {
		h.Set("Content-Type", "text/tab-separated-values; charset=UTF-8")
	}
	o.tag = fmt.Sprintf("%016x", time.Now().UnixNano())
	h.Set("X-ClickHouse-Exception-Tag", o.tag)
	if o.q.compress {
		o.block = compress.NewWriter(0, compressMethod(o.q.method))
	}
	for _, s := range o.q.settings {
		if s.name == "enable_http_compression" && truth(s.value) && !o.q.compress && strings.Contains(o.r.Header.Get("Accept-Encoding"), "gzip") {
			h.Set("Content-Encoding", "gzip")
			o.gz = gzip.NewWriter(o.w)
		}
	}
	o.w.WriteHeader(http.StatusOK)
}

func (o *result) write(b []byte) error {
	if o.format == "Native" && o.q.revision > 0 {
		o.frame.Reset()
		if err := reframe(&o.frame, b, o.q.revision); err != nil {
			return &Exception{Code: codeNotImplemented, Message: err.Error() + " (NOT_IMPLEMENTED)"}
		}
		b = o.frame.Buf
	}
	if !o.begun {
		o.begin()
	}
	// A reader that stands still would hold the connection and its turn for ever.
	_ = o.control.SetWriteDeadline(time.Now().Add(o.patience))
	switch {
	case o.block != nil:
		for part := range slices.Chunk(b, 1<<20) {
			if err := o.block.Compress(part); err != nil {
				return err
			}
			if _, err := o.w.Write(o.block.Data); err != nil {
				return err
			}
		}
		return nil
	case o.gz != nil:
		_, err := o.gz.Write(b)
		return err
	}
	_, err := o.w.Write(b)
	return err
}

func (o *result) close() error {
	if o.gz != nil {
		_ = o.gz.Close()
	}
	return nil
}

// breakOff ends a result that failed. Before the first byte the error is the
// answer; later it is the framed exception servers since 25.11 end a body with,
// and the connection is closed without the last chunk so that no client takes the
// body for whole.
func (o *result) breakOff(err error) error {
	if !o.begun {
		return err
	}
	ex := (*Exception)(nil)
	if !errors.As(err, &ex) {
		return errBroken // the client is gone
	}
	msg := ex.Error()
	tail := fmt.Sprintf("\r\n%s\r\n%s\r\n%s\n%d %s\r\n%s\r\n", exceptionMarker, o.tag, msg, len(msg)+1, o.tag, exceptionMarker)
	if o.gz != nil {
		_, _ = io.WriteString(o.gz, tail)
		_ = o.gz.Close()
	} else {
		_, _ = io.WriteString(o.w, tail)
	}
	_ = o.control.Flush()
	return errBroken
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
