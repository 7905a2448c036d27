package embedded

import (
	"compress/gzip"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go/compress"
	chproto "github.com/ClickHouse/ch-go/proto"
	"github.com/klauspost/compress/zstd"
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
	q.access = e.authorize(secretOf(r))
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

// secretOf is the token a request brings, wherever it has it.
func secretOf(r *http.Request) string {
	if _, p, ok := r.BasicAuth(); ok {
		return p
	}
	if b, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		return b
	}
	if k := r.Header.Get("X-ClickHouse-Key"); k != "" {
		return k
	}
	return r.URL.Query().Get("password")
}

// errBroken is the end of a result that failed after its first byte was sent.
var errBroken = errors.New("the result broke off")

func (e *Engine) refused(reason string) { e.metrics.refused.WithLabelValues(reason).Inc() }

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

// serve runs one statement. Unless it is errBroken, an error means nothing was
// written yet.
func (e *Engine) serve(w http.ResponseWriter, r *http.Request, q request) error {
	control := http.NewResponseController(w)
	if t, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); t == "multipart/form-data" {
		e.refused("request")
		return &Exception{Code: codeNotImplemented, Message: "the embedded ClickHouse takes no external tables (multipart/form-data); put the values into the query or into a table (NOT_IMPLEMENTED)"}
	}
	if err := e.checkSettings(q); err != nil {
		return err
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
	if err := e.checkStatement(q, st); err != nil {
		return err
	}
	if st.insertData {
		stat, err := e.insert(r.Context(), q, st.head, st.format, func(w io.Writer) error {
			_, err := io.Copy(w, data)
			return err
		})
		if err != nil {
			return err
		}
		summary(w, stat)
		w.WriteHeader(http.StatusOK)
		return nil
	}
	out := &result{w: w, r: r, q: q, format: q.outputFormat(st), control: control, patience: e.patience}
	return out.breakOff(e.query(r.Context(), q, text, st, out))
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

func summary(w http.ResponseWriter, st statistics) {
	w.Header().Set("X-ClickHouse-Summary", fmt.Sprintf(`{"read_rows":"%d","read_bytes":"%d","written_rows":"%d","written_bytes":"%d"}`,
		st.rowsRead, st.bytesRead, st.rowsWritten, st.bytesWritten))
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
		if err := reframe(&o.frame, b, o.q.revision, nil); err != nil {
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

func (o *result) total(stat statistics) {
	if !o.begun {
		summary(o.w, stat)
	}
}

func (o *result) close() error {
	if !o.begun {
		o.w.Header().Set("Content-Length", "0")
		o.w.WriteHeader(http.StatusOK)
	}
	if o.gz != nil {
		_ = o.gz.Close()
	}
	return nil
}

// breakOff ends a result that failed with err, if it did. Before the first byte the error is the
// answer; later it is the framed exception servers since 25.11 end a body with,
// and the connection is closed without the last chunk so that no client takes the
// body for whole.
func (o *result) breakOff(err error) error {
	if err == nil || !o.begun {
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
