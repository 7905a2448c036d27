package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest"
	"github.com/postern/postern/ingest/agent"
	"github.com/postern/postern/ingest/intake"
	"github.com/postern/postern/ingest/kafka"
)

// encodeLines writes the flows of a log for the spool, in the form that the flows topic has.
func encodeLines(names *flow.Names) intake.Encode {
	enc := kafka.NewEncoder(names)
	return func(dst []byte, key [16]byte, number uint64, records []flow.Record) []byte {
		return enc.Append(dst, kafka.Header{Producer: key, Seq: number}, records)
	}
}

// openIntake makes the ways in for logs and takes their addresses.
func (s *service) openIntake(ctx context.Context) (err error) {
	cfg := s.cfg.Ingest.Logs
	var token string
	if cfg.HTTP.Listen != "" && cfg.HTTP.Token == "" {
		if token, err = keptToken(s.cfg.Data, "logs.token"); err != nil {
			return fmt.Errorf("ingest.logs.http.token: %w", err)
		}
	}
	s.intake, err = intake.New(cfg, intake.Options{
		Log: s.spool, Events: s.sources.events, Encoder: encodeLines, Clock: wallClock, Resolve: resolveSecret, Token: token,
		Rejected: filepath.Join(s.cfg.Data, "rejected-lines.ndjson"), Stdin: os.Stdin,
		Logger: s.log.With("intake", "logs"), Registerer: s.registry,
	})
	if err == nil {
		err = s.intake.Bind(ctx)
	}
	if err != nil {
		err = fmt.Errorf("ingest.logs.%w", err)
	}
	return err
}

// lines takes a batch of a log's lines of the open unit. It blocks while the store is behind.
func (p *pipeline) lines(ctx context.Context, l *ingest.Lines) error {
	p.gate.Lock()
	a := p.totals[l.Exporter]
	a.Lines.Queued -= min(a.Lines.Queued, l.Counts.Sum())
	a.Lines.Read += uint64(l.Counts.Read)
	a.Lines.NotFlow += uint64(l.Counts.NotFlow)
	a.Lines.Rejected += uint64(l.Counts.Rejected)
	p.totals[l.Exporter] = a
	p.gate.Unlock()
	if len(l.Records) == 0 {
		return nil
	}
	if p.unpack == nil {
		p.unpack, p.unpacked = kafka.NewDecoder(p.names), flow.NewBatch(intake.BatchRecords, nil)
	}
	p.unpacked.Reset()
	if _, err := p.unpack.Decode(l.Records, p.unpacked); err != nil {
		return fmt.Errorf("the spool holds flows of a log in a way that this postern does not read: %w", err)
	}
	return p.records(ctx, func(b *flow.Batch) { b.Records = append(b.Records, p.unpacked.Records...) })
}

// admitLines counts lines of the unit about to be worked through.
func (p *pipeline) admitLines(exporter flow.Addr, n uint64) {
	a := p.totals[exporter]
	a.Lines.Received += n
	a.Lines.Queued += n
	p.totals[exporter] = a
}

// loseLines counts lines that were in the spool and could not be read back.
func (p *pipeline) loseLines(exporter flow.Addr, n uint64) {
	a := p.totals[exporter]
	a.Lines.Received += n
	a.Lines.Lost += n
	p.totals[exporter] = a
}

// logValues reads the values of a topic that agents' logs come by: a value is one line or
// several, each by itself.
type logValues struct {
	dec    *agent.Decoder
	split  agent.Splitter
	reason error
}

func newLogValues(format string, cfg agent.Config, maxLine flow.Size, names *flow.Names) (*logValues, error) {
	dec, err := agent.NewDecoder(format, cfg, names)
	return &logValues{dec: dec, split: agent.Splitter{MaxItem: int(maxLine)}}, err
}

// Decode implements foreign. Lines that are no flows are not refused.
func (v *logValues) Decode(value []byte, seed uint64, received flow.Time, out *flow.Batch) (refused int, err error) {
	v.reason = nil
	split, read, before := v.split, 0, len(out.Records)
	origin := agent.Origin{Seed: seed, Received: received}
	for at := 0; at < len(value); {
		item, n, err := split.Next(value[at:], true)
		if err == nil && len(item) > 0 {
			err = v.dec.Decode(item, uint64(at), &origin, out)
		}
		var not agent.NotFlow
		switch {
		case err != nil && !errors.As(err, &not):
			refused++
			if v.reason == nil {
				v.reason = err
			}
		case len(item) > 0:
			read++
		}
		at += n
	}
	if read == 0 && refused > 0 && len(out.Records) == before {
		return refused, v.reason
	}
	return refused, nil
}

// Reason implements foreign.
func (v *logValues) Reason() error { return v.reason }

// logFile is a log that is read from its beginning to its end.
type logFile struct {
	cfg    intake.Config
	format string
	names  *flow.Names
	diag   io.Writer
	seed   uint64

	lines    flow.LineAccount
	why      string
	notFlow  map[string]uint64
	rejected map[string]uint64
	sessions bool // its lines tell session events
	events   uint64
}

// maxReasons bounds how many reasons of one kind are told apart.
const maxReasons = 100

// each calls do with the flows of a file, some lines' at a time; do empties the batch.
func (l *logFile) each(ctx context.Context, path string, do func(*flow.Batch) error) error {
	dcfg := l.cfg.Decode
	dcfg.BelieveClock = true
	dec, err := agent.NewDecoder(l.format, dcfg, l.names)
	if err != nil {
		return err
	}
	split := agent.Splitter{MaxItem: int(l.cfg.MaxLine)}
	batch := flow.NewBatch(flow.BatchSize, nil)
	origin := agent.Origin{Seed: l.seed}
	if err := l.items(ctx, path, split.Next, func(item []byte, at uint64, err error) error {
		if err == nil {
			err = dec.Decode(item, at, &origin, batch)
		}
		l.count(err)
		if len(batch.Records) < flow.BatchSize/2 {
			return nil
		}
		err = do(batch)
		batch.Reset()
		return err
	}); err != nil {
		return err
	}
	if format, why := dec.Format(); why != "" {
		l.why = fmt.Sprintf("%s is taken for %s: %s", path, format, why)
	}
	err = do(batch)
	batch.Reset()
	return err
}

// eachEvent calls do with the session events of a file, a line's at a time.
func (l *logFile) eachEvent(ctx context.Context, path string, cfg agent.EventConfig, do func([]agent.SessionEvent) error) error {
	cfg.BelieveClock = true
	dec, err := agent.NewEventDecoder(l.format, cfg, int(l.cfg.MaxLine))
	if err != nil {
		return err
	}
	var events []agent.SessionEvent
	return l.items(ctx, path, dec.Next, func(item []byte, _ uint64, err error) error {
		events = events[:0]
		if err == nil {
			events, err = dec.Decode(item, &agent.Origin{}, events)
		}
		if not, ok := errors.AsType[agent.NotEvent](err); ok {
			err = agent.NotFlow(not) // counted alike, as in the ledgers
		}
		l.count(err)
		l.events += uint64(len(events))
		return do(events)
	})
}

// items calls take with each item of a file, as next cuts them, and its place; err is one
// that cannot be taken.
func (l *logFile) items(ctx context.Context, path string, next func(buf []byte, eof bool) (item []byte, n int, err error), take func(item []byte, at uint64, err error) error) (err error) {
	src, size, closeFile, err := openLog(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeFile()) }()
	if l.notFlow == nil {
		l.notFlow, l.rejected = map[string]uint64{}, map[string]uint64{}
	}
	bar := newProgress(l.diag, path, size, true)
	defer bar.done()
	var buf []byte
	var at uint64
	for end := false; !end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		buf = slices.Grow(buf, 1<<20)
		n, rerr := io.ReadFull(src, buf[len(buf):len(buf)+1<<20])
		buf = buf[:len(buf)+n]
		end = errors.Is(rerr, io.EOF) || errors.Is(rerr, io.ErrUnexpectedEOF)
		if rerr != nil && !end {
			return fmt.Errorf("%s: %w", path, rerr)
		}
		rest := buf
		for len(rest) > 0 {
			item, n, serr := next(rest, end)
			if n == 0 {
				break
			}
			if serr != nil || len(item) > 0 {
				if err := take(item, at, serr); err != nil {
					return err
				}
			}
			at += uint64(n)
			rest = rest[n:]
		}
		buf = append(buf[:0], rest...)
		bar.set(int64(at), size)
	}
	return nil
}

// count counts a line by what came of it.
func (l *logFile) count(err error) {
	l.lines.Received++
	count := func(m map[string]uint64, why string) {
		if _, known := m[why]; !known && len(m) >= maxReasons {
			why = "further reasons"
		}
		m[why]++
	}
	var not agent.NotFlow
	switch {
	case err == nil:
		l.lines.Read++
	case errors.As(err, &not):
		l.lines.NotFlow++
		count(l.notFlow, string(not))
	default:
		l.lines.Rejected++
		count(l.rejected, err.Error())
	}
}

// openLog opens a log, unpacked; - is standard input. size is 0 where it is not known.
func openLog(path string) (src io.Reader, size int64, done func() error, err error) {
	done = func() error { return nil }
	src = os.Stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, 0, nil, err
		}
		if st, err := f.Stat(); err == nil {
			size = st.Size()
		}
		src, done = f, f.Close
	}
	b := bufio.NewReaderSize(src, 64<<10)
	if magic, err := b.Peek(2); err == nil && bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, 0, nil, errors.Join(err, done())
		}
		return z, 0, done, nil
	}
	return b, size, done, nil
}

// decodeLogs writes the flows of logs to out and what became of their lines to diag.
func decodeLogs(ctx context.Context, cfg intake.Config, format string, files []string, out, diag io.Writer) error {
	l := &logFile{cfg: cfg, format: format, names: flow.NewNames(0), diag: diag}
	if _, err := agent.NewDecoder(format, cfg.Decode, l.names); err != nil {
		return err
	}
	var line []byte
	ledger := flow.Ledger{}
	return l.decode(files, out, ledger, func(i int, file string, w *bufio.Writer) error {
		l.seed = uint64(i)
		l.why = ""
		before := l.lines
		if err := l.each(ctx, file, func(b *flow.Batch) error {
			texts := l.names.Texts()
			for i := range b.Records {
				r := &ledger.Of(b.Records[i].Exporter).Records
				r.Decoded++
				r.Written++ // printed is as far as they go
				line = append(b.Records[i].AppendJSON(line[:0], texts), '\n')
				if _, err := w.Write(line); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
		if l.why != "" {
			fmt.Fprintln(diag, l.why)
		}
		if format == agent.Auto && l.lines.Read == before.Read && l.lines.Received > before.Received {
			fmt.Fprintf(diag, "%s told no flow; is it a log of sessions? auto does not guess those: --format %s\n", file, eventFormatNames())
		}
		return nil
	})
}

// decodeEvents is decodeLogs for logs of sessions.
func decodeEvents(ctx context.Context, cfg intake.Config, format string, ecfg agent.EventConfig, files []string, out, diag io.Writer) error {
	l := &logFile{cfg: cfg, format: format, diag: diag, sessions: true}
	return l.decode(files, out, flow.Ledger{}, func(_ int, file string, w *bufio.Writer) error {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		return l.eachEvent(ctx, file, ecfg, func(events []agent.SessionEvent) error {
			for i := range events {
				if err := enc.Encode(&events[i]); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// decode calls do with each file and what it may write to, and sums up.
func (l *logFile) decode(files []string, out io.Writer, ledger flow.Ledger, do func(i int, file string, w *bufio.Writer) error) error {
	w := bufio.NewWriterSize(out, 1<<16)
	var err error
	for i, file := range files {
		if err = do(i, file, w); err != nil {
			break
		}
	}
	if ferr := w.Flush(); err == nil {
		err = ferr
	}
	if err != nil && l.lines.Received == 0 {
		return err // such as a file that is not there
	}
	ledger.Of(flow.Addr{}).Lines.Add(&l.lines)
	return errors.Join(err, l.summary(l.diag, ledger))
}

// summary writes what became of lines, first for people, then as one JSON line for programs.
func (l *logFile) summary(w io.Writer, ledger flow.Ledger) error {
	one, some := "flow", "flows"
	if l.sessions {
		one, some = "event", "events"
	}
	fmt.Fprintf(w, "lines:     %d read, %d told %s, %d were no %s, %d rejected\n", l.lines.Received, l.lines.Read, some, l.lines.NotFlow, some, l.lines.Rejected)
	for _, why := range slices.Sorted(maps.Keys(l.notFlow)) {
		fmt.Fprintf(w, "  no %s, %s: %d\n", one, why, l.notFlow[why])
	}
	for _, why := range slices.Sorted(maps.Keys(l.rejected)) {
		fmt.Fprintf(w, "  rejected, %s: %d\n", why, l.rejected[why])
	}
	t := ledger.Total()
	if l.sessions {
		fmt.Fprintf(w, "events:    %d decoded\n", l.events)
	} else {
		fmt.Fprintf(w, "records:   %d decoded\n", t.Records.Decoded)
	}
	raw, err := json.Marshal(struct {
		Lines    flow.LineAccount  `json:"lines"`
		NotFlows map[string]uint64 `json:"not_flows"`
		Rejected map[string]uint64 `json:"rejected"`
		Flows    uint64            `json:"flows"`
		Events   uint64            `json:"events,omitempty"`
	}{l.lines, l.notFlow, l.rejected, t.Records.Decoded, l.events})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s\n", raw)
	return err
}
