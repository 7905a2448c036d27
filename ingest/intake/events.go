package intake

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/agent"
)

// Logs of sessions come by the same ways as those of flows. Their events go to the source
// that they belong to, which makes them last; then a batch of lines without flows is appended
// for its mark and its counts. A crash in between has the events brought again, which changes
// nothing.

// maxHeldEvents is how many events are gathered before they are handed on: some megabyte.
const maxHeldEvents = 4096

// eventReader is what a reader has besides where its lines tell session events.
type eventReader struct {
	sink EventSink
	dec  *agent.EventDecoder
	sys  bool // lines come as syslog
	held []agent.SessionEvent
	cut  int    // of those, how many belong to batches that were cut
	told uint64 // events so far
}

// KnownEvents says what is wrong with the name of a source of sessions, if anything is; empty
// is none.
func KnownEvents[V any](source string, sources map[string]V) error {
	if _, known := sources[source]; known || source == "" {
		return nil
	}
	if len(sources) == 0 {
		return fmt.Errorf("%q is no source of sessions; there is none, write one in identity.sessions", source)
	}
	return fmt.Errorf("%q is no source of sessions; want one of %s", source, strings.Join(slices.Sorted(maps.Keys(sources)), ", "))
}

// newEventReader is newReader for the log of a source of sessions.
func (in *Intake) newEventReader(way, source string, origin agent.Origin, key [16]byte, t *table) (*reader, error) {
	if err := KnownEvents(source, in.opts.Events); err != nil {
		return nil, err
	}
	e := &eventReader{sink: in.opts.Events[source]}
	var err error
	if e.dec, err = e.sink.NewDecoder(int(in.cfg.MaxLine)); err != nil {
		return nil, err
	}
	return &reader{in: in, way: way, origin: origin, key: key, next: e.dec.Next, events: e, table: t, batch: flow.NewBatch(1, nil), why: map[string]uint64{}}, nil
}

// readerOf makes a reader of a format of flows or, where it is named, of a source's log.
func (in *Intake) readerOf(way, format, source string, origin agent.Origin, key [16]byte, t *table) (*reader, error) {
	if source != "" {
		return in.newEventReader(way, source, origin, key, t)
	}
	return in.newReader(way, format, origin, key, t)
}

// take takes a line in.
func (e *eventReader) take(line []byte, o *agent.Origin) (err error) {
	before := len(e.held)
	if e.sys {
		e.held, err = e.dec.DecodeSyslog(line, o, e.held)
	} else {
		e.held, err = e.dec.Decode(line, o, e.held)
	}
	e.told += uint64(len(e.held) - before)
	if not, ok := errors.AsType[agent.NotEvent](err); ok {
		return agent.NotFlow(not) // counted like a line of another log that tells no flow
	}
	return err
}

// give hands on the events that were gathered; without an error they last.
func (r *reader) give(ctx context.Context) error {
	if r.events == nil || len(r.events.held) == 0 {
		return nil
	}
	if err := r.events.sink.Take(ctx, r.events.held); err != nil {
		return err
	}
	r.events.held, r.events.cut = r.events.held[:0], 0
	return nil
}

// format is the format of the lines and, of auto, why.
func (r *reader) format() (name, why string) {
	if r.events != nil {
		return r.events.dec.Format(), ""
	}
	return r.dec.Format()
}

// rename goes on with another table of names.
func (r *reader) rename(t *table) {
	r.table = t
	if r.dec != nil {
		r.dec.Rename(t.names)
	}
}

// prime takes in a line from the beginning; more says that the next may bear on what follows.
func (r *reader) prime(item []byte) (more bool) {
	if r.events != nil {
		return r.events.dec.Prime(item)
	}
	return r.dec.Prime(item)
}
