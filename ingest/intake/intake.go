package intake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest"
	"github.com/postern/postern/ingest/agent"
)

// Log makes batches last. [ingest.Spool] is one.
type Log interface {
	// AppendLines makes batches last in their order and says how many it took; fewer than
	// all only with an error.
	AppendLines(batches []ingest.Lines) (taken int, err error)
	// Sync makes what was appended durable against loss of power.
	Sync() error
	// Mark is the newest mark under a key, if it is still remembered.
	Mark(key [16]byte) (ingest.Mark, bool)
	// Marks are all of them.
	Marks() []ingest.Mark
}

// Encode appends to dst what records are written as; key and number together name them. All
// records are of one batch, of at most BatchRecords.
type Encode func(dst []byte, key [16]byte, number uint64, records []flow.Record) []byte

// BatchRecords is how many records a batch holds at most.
const BatchRecords = 1024

// Options is what an intake needs from outside.
type Options struct {
	Log Log // required
	// Encoder makes what writes records whose names are in names. Required.
	Encoder func(names *flow.Names) Encode
	// Clock is the injected clock. Required.
	Clock func() flow.Time
	// Resolve follows a reference to a secret. Required where one is configured.
	Resolve func(ref string) (string, error)
	// Token is what HTTP asks for where the configuration names none.
	Token string
	// Events are the sources that logs of sessions belong to, by their names in the
	// configuration. HTTP takes them at /v1/events/NAME.
	Events map[string]EventSink
	// Rejected is the file that a sample of the lines which could not be read goes to;
	// empty: nowhere.
	Rejected   string
	Stdin      io.Reader
	Logger     *slog.Logger          // nil: silent
	Registerer prometheus.Registerer // nil: no metrics
}

// EventSink is what takes session events: the source of a name.
type EventSink interface {
	// NewDecoder makes a decoder of its log's lines.
	NewDecoder(maxItem int) (*agent.EventDecoder, error)
	// Take returns when the events last. Events may be brought again.
	Take(ctx context.Context, events []agent.SessionEvent) error
}

// Intake is all ways in of a configuration.
type Intake struct {
	cfg      Config
	opts     Options
	log      *slog.Logger
	met      *metrics
	rejected *sample

	http   *httpDoor
	syslog []*syslogDoor
}

// New makes an intake; it opens nothing.
func New(cfg Config, opts Options) (*Intake, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	for i := range cfg.Files {
		if err := KnownEvents(cfg.Files[i].Events, opts.Events); err != nil {
			return nil, fmt.Errorf("files[%d].events: %w", i, err)
		}
	}
	for i := range cfg.Syslog {
		if err := KnownEvents(cfg.Syslog[i].Events, opts.Events); err != nil {
			return nil, fmt.Errorf("syslog[%d].events: %w", i, err)
		}
	}
	in := &Intake{cfg: cfg, opts: opts, log: opts.Logger, met: newMetrics(opts.Registerer)}
	if in.log == nil {
		in.log = slog.New(slog.DiscardHandler)
	}
	in.rejected = &sample{path: opts.Rejected, cfg: cfg.Rejected, log: in.log}
	return in, nil
}

// Bind takes the addresses.
func (in *Intake) Bind(ctx context.Context) (err error) {
	if in.cfg.HTTP.Listen != "" {
		if in.http, err = in.openHTTP(ctx); err != nil {
			return fmt.Errorf("http: %w", err)
		}
	}
	for i := range in.cfg.Syslog {
		d, err := in.openSyslog(ctx, &in.cfg.Syslog[i])
		if err != nil {
			return errors.Join(fmt.Errorf("syslog[%d]: %w", i, err), in.Close())
		}
		in.syslog = append(in.syslog, d)
	}
	return nil
}

// Close gives the addresses free that Run has not taken over.
func (in *Intake) Close() (err error) {
	if in.http != nil {
		err = in.http.listener.Close()
	}
	for _, d := range in.syslog {
		err = errors.Join(err, d.listener.Close())
	}
	return err
}

// HTTPAddr is the address that HTTP is served at; empty if it is not.
func (in *Intake) HTTPAddr() string {
	if in.http == nil {
		return ""
	}
	return in.http.listener.Addr().String()
}

// SyslogAddrs are the addresses that syslog is served at, in the order of the configuration.
func (in *Intake) SyslogAddrs() (out []string) {
	for _, d := range in.syslog {
		out = append(out, d.listener.Addr().String())
	}
	return out
}

// Run takes logs in until ctx ends. It returns when what was begun is handed on or, of what
// can be repeated, given up.
func (in *Intake) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if in.http != nil {
		g.Go(func() error { return in.http.run(ctx) })
	}
	for _, d := range in.syslog {
		g.Go(func() error { return d.run(ctx) })
	}
	if len(in.cfg.Files) > 0 {
		g.Go(func() error { return in.followFiles(ctx) })
	}
	if in.cfg.Stdin.Format != "" {
		g.Go(func() error { return in.readStdin(ctx) })
	}
	return g.Wait()
}

// append hands batches on, waiting while there is no room, and says how many were taken
// when ctx ended.
func (in *Intake) append(ctx context.Context, batches []ingest.Lines) error {
	for told := false; ; {
		n, err := in.opts.Log.AppendLines(batches)
		if batches = batches[n:]; len(batches) == 0 {
			return nil
		}
		if !errors.Is(err, ingest.ErrSpoolNotWritten) {
			return err
		}
		if !told {
			in.log.Warn("logs wait: the spool takes nothing", "err", err)
			told = true
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// namesRoom is how many names a generation holds. What hosts say fills it, what is beyond
// would read "(too many names)"; so a reader goes on with an empty table when it is full.
// 64 Ki names of at most 256 bytes are at most 20 MB, typically 2.
const namesRoom = 1 << 16

// table is a generation of names with what encodes them. Names live as text in what was
// encoded; so a table can be thrown away between two batches.
type table struct {
	names  *flow.Names
	encode Encode
}

func (in *Intake) newTable() *table {
	names := flow.NewNames(namesRoom)
	return &table{names, in.opts.Encoder(names)}
}

// renew gives the table, or an empty one where the next batch might not fit any more.
func (in *Intake) renew(t *table) *table {
	if held, _ := t.names.Len(); held < namesRoom*3/4 {
		return t
	}
	in.met.generations.Inc()
	return in.newTable()
}

// reader makes batches of one input.
type reader struct {
	in     *Intake
	way    string // http, file, syslog, stdin
	origin agent.Origin
	key    [16]byte
	dec    *agent.Decoder
	decode func(line []byte, pos uint64, o *agent.Origin, out *flow.Batch) error // dec's
	next   func(buf []byte, eof bool) (item []byte, n int, err error)            // cuts bytes into lines
	events *eventReader                                                          // of a log of sessions
	table  *table
	batch  *flow.Batch
	counts ingest.LineCounts
	number uint64 // of the batch being filled, unique under the key

	why   map[string]uint64 // of lines that are no flows, by what they are
	errs  []lineError
	lines uint64
	flows uint64
	total ingest.LineCounts
}

// lineError is a line that could not be read.
type lineError struct {
	Line   uint64 `json:"line"`
	Offset uint64 `json:"offset"`
	Error  string `json:"error"`
}

// maxLineErrors bounds how many lines of an input are told one by one.
const maxLineErrors = 20

// maxReasons bounds how many kinds of lines that are no flows are told apart.
const maxReasons = 32

func (in *Intake) newReader(way, format string, origin agent.Origin, key [16]byte, t *table) (*reader, error) {
	dec, err := agent.NewDecoder(format, in.cfg.Decode, t.names)
	if err != nil {
		return nil, err
	}
	split := &agent.Splitter{MaxItem: int(in.cfg.MaxLine)}
	return &reader{next: split.Next, in: in, way: way, origin: origin, key: key, dec: dec, decode: dec.Decode, table: t, batch: flow.NewBatch(BatchRecords, nil), why: map[string]uint64{}}, nil
}

// line takes a line in; pos is its place in the input.
func (r *reader) line(line []byte, pos uint64, tooLong error) {
	r.lines++
	before := len(r.batch.Records)
	err := tooLong
	switch {
	case err != nil:
	case r.events != nil:
		err = r.events.take(line, &r.origin)
	default:
		err = r.decode(line, pos, &r.origin, r.batch)
	}
	var not agent.NotFlow
	switch {
	case err == nil && r.events != nil:
		r.counts.NotFlow++
	case err == nil:
		r.counts.Read++
		r.flows += uint64(len(r.batch.Records) - before)
	case errors.As(err, &not):
		r.counts.NotFlow++
		if _, known := r.why[string(not)]; known || len(r.why) < maxReasons {
			r.why[string(not)]++
		}
	default:
		// Of a line with several flows some may be good.
		r.counts.Rejected++
		r.flows += uint64(len(r.batch.Records) - before)
		if len(r.errs) < maxLineErrors {
			r.errs = append(r.errs, lineError{r.lines, pos, err.Error()})
		}
		name, _ := r.format()
		r.in.rejected.add(rejectedLine{r.origin.Received, r.way, name, r.origin.Observer, pos, err.Error(), line})
	}
}

// full says whether the batch should be cut. A quarter leaves room for a line of many flows, and
// with ten names of 256 bytes a flow is still a payload that fits.
func (r *reader) full() bool {
	return len(r.batch.Records) >= BatchRecords/4 || r.events != nil && len(r.events.held)-r.events.cut >= maxHeldEvents
}

// cut appends what was gathered to batches, with a mark. A batch of lines that told nothing is
// one too: they are counted. What does not fit into one batch is several that belong together.
func (r *reader) cut(batches []ingest.Lines, mark ingest.Mark) []ingest.Lines {
	name, _ := r.format()
	r.in.met.lines(name, r.counts)
	records := r.batch.Records
	for {
		part, payload := r.encode(records)
		l := ingest.Lines{Exporter: r.origin.Exporter, Received: r.origin.Received, Counts: r.counts, Records: payload}
		r.total.Read += r.counts.Read
		r.total.NotFlow += r.counts.NotFlow
		r.total.Rejected += r.counts.Rejected
		r.counts = ingest.LineCounts{} // the lines are counted with the first part
		records = records[part:]
		if l.More = len(records) > 0; !l.More {
			l.Mark = mark
			batches = append(batches, l)
			break
		}
		batches = append(batches, l)
	}
	if r.batch.Reset(); cap(r.batch.Records) > 4*BatchRecords {
		// One line may tell a hundred thousand flows; a reader of a quiet file or
		// connection does not keep the room for them.
		r.batch = flow.NewBatch(BatchRecords, nil)
	}
	if r.events != nil {
		r.events.cut = len(r.events.held)
	} else {
		r.table = r.in.renew(r.table)
		r.dec.Rename(r.table.names)
	}
	return batches
}

// encode writes as many of records as fit.
func (r *reader) encode(records []flow.Record) (n int, payload []byte) {
	if len(records) == 0 {
		return 0, nil
	}
	for n = min(len(records), BatchRecords); ; n = (n + 1) / 2 {
		if payload = r.table.encode(nil, r.key, r.number, records[:n]); len(payload) <= ingest.MaxLinesRecords {
			r.number++
			return n, payload
		}
	}
}
