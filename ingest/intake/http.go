package intake

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest"
	"github.com/postern/postern/ingest/agent"
)

// requestsKept is how long a request is recognised when it comes again.
const requestsKept = 24 * time.Hour

// eventsWait is how long a request waits for the source of its session events.
const eventsWait = 10 * time.Second

// httpDoor takes logs as HTTP requests: POST /v1/logs/FORMAT, lines or JSON, plain or packed
// with gzip or zstd. A request is answered when its flows last. One that comes again, by its
// Idempotency-Key or without one by its body, is answered alike and not taken in again.
type httpDoor struct {
	in       *Intake
	listener net.Listener
	token    string
	slots    chan struct{}
	tables   chan *table // those at rest; each belongs to one request at a time

	mu       sync.Mutex // held while a request is looked up and appended
	eventsMu sync.Mutex // likewise, of session events, which may have to wait for their source
}

func (in *Intake) openHTTP(ctx context.Context) (d *httpDoor, err error) {
	cfg := &in.cfg.HTTP
	d = &httpDoor{in: in, token: in.opts.Token, slots: make(chan struct{}, cfg.Concurrent), tables: make(chan *table, cfg.Concurrent)}
	if cfg.Token != "" {
		if d.token, err = in.opts.Resolve(cfg.Token); err != nil {
			return nil, fmt.Errorf("token: %w", err)
		}
	}
	if d.token == "" {
		return nil, errors.New("token: there is none; an endpoint that takes logs without asking who sends them would let anybody clear or make findings")
	}
	secured, err := cfg.TLS.config(false)
	if err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	if d.listener, err = lc.Listen(ctx, "tcp", cfg.Listen); err != nil {
		return nil, err
	}
	if secured != nil {
		secured.NextProtos = []string{"h2", "http/1.1"}
		d.listener = tls.NewListener(d.listener, secured)
	}
	return d, nil
}

// run serves until ctx ends.
func (d *httpDoor) run(ctx context.Context) error {
	cfg := &d.in.cfg.HTTP
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/logs/{format}", d.serve)
	mux.HandleFunc("POST /v1/events/{source}", d.serve)
	srv := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: cfg.Timeout, WriteTimeout: cfg.Timeout + 10*time.Second,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(d.in.log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			_ = srv.Close()
		}
	})
	defer stop()
	d.in.log.Info("taking logs", "http", d.listener.Addr().String(), "tls", cfg.TLS.Cert != "")
	if err := srv.Serve(d.listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// answer is what a request is told.
type answer struct {
	Format    string            `json:"format,omitempty"`
	Why       string            `json:"why,omitempty"` // how `auto` knew
	Lines     uint64            `json:"lines"`
	Accepted  uint64            `json:"accepted"` // lines that were read, flows or not
	Flows     uint64            `json:"flows"`
	Events    uint64            `json:"events,omitempty"` // session events
	NotFlows  map[string]uint64 `json:"not_flows,omitempty"`
	Rejected  uint64            `json:"rejected"`
	Errors    []lineError       `json:"errors,omitempty"` // the first of the rejected lines
	Duplicate bool              `json:"duplicate,omitempty"`
	Error     string            `json:"error,omitempty"` // of the request as a whole
}

func (d *httpDoor) reply(w http.ResponseWriter, code int, a *answer) {
	d.in.met.requests.WithLabelValues(strconv.Itoa(code)).Inc()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(a) // the client went away; there is nobody to tell
}

func (d *httpDoor) serve(w http.ResponseWriter, r *http.Request) {
	refuse := func(code int, format string, args ...any) {
		d.reply(w, code, &answer{Error: fmt.Sprintf(format, args...)})
	}
	if !d.authorised(r) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="postern"`)
		refuse(http.StatusUnauthorized, "a bearer token is needed, or a client certificate where the server trusts one")
		return
	}
	select {
	case d.slots <- struct{}{}:
		defer func() { <-d.slots }()
	case <-r.Context().Done():
		return
	}
	cfg := &d.in.cfg.HTTP
	body := http.MaxBytesReader(w, r.Body, int64(cfg.MaxBody))
	hashed := sha256.New()
	src, err := unpack(io.TeeReader(body, hashed), r.Header.Get("Content-Encoding"))
	if err != nil {
		refuse(http.StatusUnsupportedMediaType, "%v", err)
		return
	}
	defer src.Close()
	exporter := flow.Addr{}
	if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		exporter = flow.AddrFromNetip(peer.Addr())
	}
	format := r.PathValue("format")
	idempotency := r.Header.Get("Idempotency-Key")
	if len(idempotency) > 256 {
		refuse(http.StatusBadRequest, "the Idempotency-Key has %d bytes; at most 256 are taken", len(idempotency))
		return
	}
	req := &request{door: d, origin: agent.Origin{Exporter: exporter, Received: d.in.opts.Clock(), Observer: r.Header.Get("Postern-Observer")}, hashed: hashed}
	var held *table
	select {
	case held = <-d.tables:
	default:
		held = d.in.newTable()
	}
	code, err := req.read(r.Context(), src, format, r.PathValue("source"), idempotency, held)
	if req.reader != nil {
		held = req.table // perhaps a new one
	}
	select {
	case d.tables <- held:
	default:
	}
	a := req.answer()
	if err != nil {
		a.Error = err.Error()
		if code == http.StatusServiceUnavailable {
			w.Header().Set("Retry-After", "5")
		}
	}
	d.reply(w, code, a)
}

// authorised says whether a request shows the token, in constant time, or a certificate.
func (d *httpDoor) authorised(r *http.Request) bool {
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		return true
	}
	got, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return subtle.ConstantTimeCompare([]byte(got), []byte(d.token)) == 1
}

// unpack gives a body unpacked.
func unpack(body io.Reader, encoding string) (io.ReadCloser, error) {
	switch strings.ToLower(encoding) {
	case "", "identity":
		return io.NopCloser(body), nil
	case "gzip", "x-gzip":
		return &lazyGzip{src: body}, nil
	case "zstd":
		z, err := zstd.NewReader(body, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(16<<20))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return nil, fmt.Errorf("Content-Encoding %q is not known; use gzip, zstd or none", encoding)
}

// lazyGzip reads the header with the first byte, so that a bad one is an error of reading.
type lazyGzip struct {
	src io.Reader
	z   *gzip.Reader
}

func (l *lazyGzip) Read(b []byte) (n int, err error) {
	if l.z == nil {
		if l.z, err = gzip.NewReader(l.src); err != nil {
			return 0, err
		}
	}
	return l.z.Read(b)
}

func (l *lazyGzip) Close() error { return nil }

// request is one that is being read.
type request struct {
	*reader
	door      *httpDoor
	origin    agent.Origin
	hashed    hash.Hash // of the body as it came
	duplicate bool
}

// read reads a body, decodes it and makes it last; code is the status to answer with.
func (q *request) read(ctx context.Context, src io.Reader, format, source, idempotency string, t *table) (code int, err error) {
	in := q.door.in
	// The key is known when the body is. Ids of flows have to be the same when the request
	// comes again, so they hang on the lines' own content and place.
	if source == "" {
		q.reader, err = in.newReader("http", format, q.origin, [16]byte{}, t)
	} else {
		format = "events\x00" + source
		q.reader, err = in.newEventReader("http", source, q.origin, [16]byte{}, t)
	}
	if err != nil {
		return http.StatusNotFound, err
	}
	body, err := io.ReadAll(&capped{src: src, left: int64(in.cfg.HTTP.MaxBody)})
	if err != nil {
		if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge || errors.Is(err, errBodyTooLong) {
			return http.StatusRequestEntityTooLarge, fmt.Errorf("the body is longer than %v, packed or unpacked; send less at a time", in.cfg.HTTP.MaxBody)
		}
		if slow, ok := errors.AsType[net.Error](err); ok && slow.Timeout() {
			return http.StatusRequestTimeout, fmt.Errorf("the body did not come within %v, waiting for others included; send it again", in.cfg.HTTP.Timeout)
		}
		return http.StatusBadRequest, fmt.Errorf("the body cannot be read: %w", err)
	}
	sum := q.hashed.Sum(nil)
	mark := ingest.Mark{Check: binary.BigEndian.Uint64(sum), Keep: requestsKept}
	name := "body\x00" + string(sum)
	if idempotency != "" {
		name = "key\x00" + idempotency
	}
	named := sha256.Sum256([]byte("http\x00" + format + "\x00" + name))
	copy(mark.Key[:], named[:])
	q.key = mark.Key
	q.reader.origin.Seed = binary.BigEndian.Uint64(named[16:])
	in.met.bytes.WithLabelValues("http").Add(float64(len(body)))

	batches := q.batches(body, &mark)
	if len(batches) == 0 {
		return http.StatusOK, nil // nothing in it
	}
	if q.total.Read+q.total.NotFlow == 0 {
		return http.StatusBadRequest, errors.New("none of the lines could be read; nothing is taken in")
	}
	return q.keep(ctx, batches)
}

// batches cuts a body and decodes it.
func (q *request) batches(body []byte, mark *ingest.Mark) (out []ingest.Lines) {
	cut := func(last bool) {
		mark.To++
		mark.Ended = last
		out = q.cut(out, *mark)
	}
	for at := 0; at < len(body); {
		item, n, err := q.next(body[at:], true)
		if err != nil || len(item) > 0 {
			q.line(item, uint64(at), err)
		}
		at += n
		if q.full() {
			cut(at >= len(body))
		}
	}
	if q.counts.Sum() > 0 {
		cut(true)
	}
	if len(out) > 0 {
		out[len(out)-1].Mark.Ended = true
	}
	return out
}

// keep makes batches last, unless they do.
func (q *request) keep(ctx context.Context, batches []ingest.Lines) (code int, err error) {
	d := q.door
	mu := &d.mu
	if q.events != nil {
		mu = &d.eventsMu
	}
	mu.Lock()
	last := batches[len(batches)-1].Mark
	had, known := d.in.opts.Log.Mark(last.Key)
	if known && had.Check != last.Check {
		mu.Unlock()
		return http.StatusUnprocessableEntity, errors.New("the Idempotency-Key was used for another body within a day; nothing is taken in")
	}
	if known {
		// It was begun and did not come to its end: what is missing follows.
		q.duplicate = had.Ended
		for len(batches) > 0 && (had.Ended || batches[0].Mark.To <= had.To) {
			batches = batches[1:]
		}
	}
	if len(batches) > 0 {
		waiting, cancel := context.WithTimeout(ctx, eventsWait)
		err = q.give(waiting)
		cancel()
	}
	if err == nil {
		_, err = d.in.opts.Log.AppendLines(batches)
	}
	mu.Unlock()
	if err == nil {
		err = d.in.opts.Log.Sync()
	}
	switch {
	case errors.Is(err, ingest.ErrSpoolNotWritten):
		return http.StatusServiceUnavailable, fmt.Errorf("there is no room at present: %w", err)
	case err != nil:
		return http.StatusServiceUnavailable, err
	}
	return http.StatusOK, nil
}

func (q *request) answer() *answer {
	a := &answer{Duplicate: q.duplicate}
	if q.reader == nil {
		return a
	}
	a.Format, a.Why = q.format()
	a.Lines, a.Flows, a.NotFlows = q.lines, q.flows, q.why
	a.Accepted = uint64(q.total.Read) + uint64(q.total.NotFlow)
	a.Rejected, a.Errors = uint64(q.total.Rejected), q.errs
	if q.events != nil {
		a.Events = q.events.told
	}
	return a
}

var errBodyTooLong = errors.New("too long")

// capped ends with errBodyTooLong where more comes than may.
type capped struct {
	src  io.Reader
	left int64
}

func (c *capped) Read(b []byte) (int, error) {
	if c.left <= 0 {
		if n, err := c.src.Read(make([]byte, 1)); n == 0 {
			return 0, err
		}
		return 0, errBodyTooLong
	}
	n, err := c.src.Read(b[:min(int64(len(b)), c.left)])
	c.left -= int64(n)
	return n, err
}
