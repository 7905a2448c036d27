package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/postern/postern/detect"
	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest"
	"github.com/postern/postern/ingest/kafka"
	"github.com/postern/postern/sink"
)

// pipeline is the flow's journey through one process:
//
//	input ─▶ decode ─▶ orient, pair, judge ─▶ detect ─▶ encode ┊ insert ─▶ tell ─▶ checkpoint
//
// Its input comes in units: a segment of the spool, a capture file, or a range of a
// Kafka partition. Between two Kafka topics some of its stages are elsewhere: `collect`
// ends after decoding, `detect` begins behind it. Left of the
// dotted line one goroutine works through a unit, right of it another makes the
// result last, so that waiting for ClickHouse overlaps with decoding. Between them
// are at most [storeBlocks] encoded blocks: when ClickHouse is slow or away the
// left side waits, and the spool on disk takes what arrives meanwhile.
//
// Everything left of the line is a deterministic state machine over the entries of
// its input. Nothing there asks a clock.
type pipeline struct {
	names       *flow.Names
	decoder     *ingest.Decoder // nil where records come decoded
	judging                     // nothing where they go on unjudged
	last, final bool            // nothing more comes of this input; nothing more comes at all
	store       store
	log         *slog.Logger
	// publish, if set, makes the digest of a unit's contacts last elsewhere.
	publish func(ctx context.Context, u unit, d *detect.Digest) error

	// onFlow, if set, sees every judged batch in order (replay --flows).
	onFlow func(*flow.Batch) error
	// onEvents, if set, sees every finding event in order (replay --findings).
	onEvents func([]*flow.Finding) error

	chunkRows int // rows an insert, constant for an input
	unit      unit
	chunk     int
	decoded   *flow.Batch // what the decoder filled so far
	judged    *flow.Batch
	taken     int // of judged, what is in a block already
	observed  int // of judged, what detection has seen
	free      chan *block
	block     *block // the one being filled
	out       chan storeItem

	// gate is held for reading while records move, and for writing by whoever
	// takes stock: at that moment every record is in exactly one place.
	gate        sync.RWMutex
	totals      ledgerTotals         // received, written, duplicate, refused before decoding
	queued      map[flow.Addr]uint64 // datagrams of the open unit not yet decoded
	storing     map[*block]struct{}
	judgedSoFar tally

	// What the newest checkpoint took, in nanoseconds: its making, and its saving.
	snapshotTook, saveTook atomic.Int64

	unpack   *kafka.Decoder // of lines, decoded before they came to the spool; nil until there are any
	unpacked *flow.Batch
}

// unit names a piece of input: every insert of it carries its token and a number.
type unit struct {
	sink.Insert
	number uint64 // rises from unit to unit of one input
}

// rowWriter takes rows in for the store. It keeps nothing of records.
type rowWriter interface {
	AppendRecords(records []flow.Record)
	Reset()
}

// block is rows on their way to the store, and whose they are. Without a writer
// (replay --no-store) rows end here.
type block struct {
	writer    rowWriter
	rows      int
	exporters map[flow.Addr]uint64
}

func (b *block) add(records []flow.Record) {
	if b.writer != nil {
		b.writer.AppendRecords(records)
	}
	b.rows += len(records)
	for i := 0; i < len(records); { // records of one datagram lie together
		from, n := records[i].Exporter, i
		for i < len(records) && records[i].Exporter == from {
			i++
		}
		b.exporters[from] += uint64(i - n)
	}
}

func (b *block) reset() {
	if b.writer != nil {
		b.writer.Reset()
	}
	b.rows = 0
	clear(b.exporters)
}

// storeBlocks is how many encoded blocks there are: one being filled, one being
// inserted, one in between. At 65,536 rows of about 300 bytes each that is 60 MB.
const storeBlocks = 3

// store is where a pipeline's results last: ClickHouse and the outbox, or nowhere.
// Its methods return when the result is durable, and retry until ctx ends.
type store interface {
	// writer makes an empty block for rows; nil where rows do not last.
	writer() rowWriter
	// rows inserts a block under a range's name, the chunk of a unit; duplicate says that
	// the store had it already.
	rows(ctx context.Context, u unit, chunk int, b *block) (duplicate bool, err error)
	// sessions makes versions of sessions last.
	sessions(ctx context.Context, ins sink.Insert, versions []flow.Session) error
	// edges makes what sessions add to the hourly roll-up last.
	edges(ctx context.Context, ins sink.Insert, edges []flow.EdgeContribution) error
	// blindSpots makes what was not seen last.
	blindSpots(ctx context.Context, ins sink.Insert, spots []flow.BlindSpot) error
	// findings makes contributions and events last.
	findings(ctx context.Context, ins sink.Insert, c []flow.Contribution, events []*flow.Finding) error
}

// storeItem is one step right of the line: a block to insert, or a unit's end.
type storeItem struct {
	unit  unit // its token with the chunk's number, where there is a block
	chunk int
	block *block

	end      bool
	contribs []flow.Contribution
	events   []*flow.Finding
	sessions []flow.Session
	edges    []flow.EdgeContribution
	spots    []flow.BlindSpot
	digest   detect.Digest
	cp       *checkpoint  // to save when all before it is durable; may be nil
	done     func() error // after that
}

type pipelineConfig struct {
	names   *flow.Names
	decoder *ingest.Decoder
	judging
	store   store
	log     *slog.Logger
	publish func(ctx context.Context, u unit, d *detect.Digest) error // may be nil
	// chunkRows is the number of rows after which a block is inserted.
	chunkRows int
	// blocks are taken from here and put back, by several pipelines; nil: blocks of its own.
	blocks chan *block
}

// newBlocks makes n empty blocks.
func newBlocks(n int, st store) chan *block {
	free := make(chan *block, n)
	for range n {
		free <- &block{writer: st.writer(), exporters: map[flow.Addr]uint64{}}
	}
	return free
}

func newPipeline(cfg pipelineConfig) *pipeline {
	p := &pipeline{
		names: cfg.names, decoder: cfg.decoder, judging: cfg.judging,
		store: cfg.store, log: cfg.log, publish: cfg.publish,
		chunkRows: cfg.chunkRows,
		decoded:   flow.NewBatch(flow.BatchSize, nil),
		judged:    flow.NewBatch(flow.BatchSize, nil),
		free:      cfg.blocks,
		out:       make(chan storeItem, storeBlocks),
		totals:    ledgerTotals{},
		queued:    map[flow.Addr]uint64{},
		storing:   map[*block]struct{}{},
	}
	if p.free == nil {
		p.free = newBlocks(storeBlocks, p.store)
	}
	return p
}

// begin opens a unit of input.
func (p *pipeline) begin(u unit) { p.unit, p.chunk = u, 0 }

// records takes records that fill adds to the batch, which were decoded elsewhere. It
// blocks while the store is behind.
func (p *pipeline) records(ctx context.Context, fill func(*flow.Batch)) error {
	p.gate.RLock()
	from := len(p.decoded.Records)
	fill(p.decoded)
	for i := from; i < len(p.decoded.Records); {
		exporter, n := p.decoded.Records[i].Exporter, i
		for i < len(p.decoded.Records) && p.decoded.Records[i].Exporter == exporter {
			i++
		}
		a := p.totals[exporter]
		a.Records.Decoded += uint64(i - n)
		p.totals[exporter] = a
	}
	p.gate.RUnlock()
	if len(p.decoded.Records) < flow.BatchSize {
		return nil
	}
	return p.advance(ctx, nil)
}

// datagram takes one datagram of the open unit. It blocks while the store is behind.
func (p *pipeline) datagram(ctx context.Context, d *ingest.Datagram) error {
	p.gate.RLock()
	if n := p.queued[d.Exporter]; n > 0 {
		p.queued[d.Exporter] = n - 1
	}
	p.decoder.Decode(d, p.decoded)
	p.gate.RUnlock()
	if len(p.decoded.Records) < flow.BatchSize {
		return nil
	}
	return p.advance(ctx, nil)
}

// repeated counts records that were there before and are not taken in again.
func (p *pipeline) repeated(b *flow.Batch) {
	p.gate.RLock()
	defer p.gate.RUnlock()
	for i := range b.Records {
		a := p.totals[b.Records[i].Exporter]
		a.Records.Decoded++
		a.Records.Duplicate++
		p.totals[b.Records[i].Exporter] = a
	}
}

// release puts blocks in the place of those that a pipeline which was given up has
// taken: a request that was cut may still be reading them.
func (p *pipeline) release() {
	p.gate.Lock()
	defer p.gate.Unlock()
	for b := range p.storing {
		delete(p.storing, b)
		p.free <- &block{writer: p.store.writer(), exporters: map[flow.Addr]uint64{}}
	}
}

// tick tells every stage the time of the injected clock as the input recorded it.
func (p *pipeline) tick(ctx context.Context, now flow.Time) error {
	return p.advance(ctx, func() {
		if p.decoder != nil {
			p.decoder.Tick(now)
		}
		if p.pairer != nil {
			p.pairer.Tick(now, p.judged)
			p.observe() // before it is later: what came before the tick is not late
			p.detector.Tick(now)
			p.sessions.Tick(now)
		}
	})
}

// advance moves what was decoded on through judging and detection, then runs
// after, then fills blocks with it. Every block but a unit's last holds exactly
// chunkRows rows, so that a re-read cuts alike.
func (p *pipeline) advance(ctx context.Context, after func()) error {
	if err := p.judge(after); err != nil {
		return err
	}
	for p.taken < len(p.judged.Records) {
		if p.block == nil {
			if err := p.takeBlock(ctx); err != nil {
				return err
			}
		}
		p.gate.RLock()
		rest := p.judged.Records[p.taken:]
		rest = rest[:min(len(rest), p.chunkRows-p.block.rows)]
		p.block.add(rest)
		p.taken += len(rest)
		p.gate.RUnlock()
		if p.block.rows >= p.chunkRows {
			if err := p.handOn(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// judge is the part of advance during which records are between places.
func (p *pipeline) judge(after func()) error {
	p.gate.RLock()
	defer p.gate.RUnlock()
	p.judged.Reset()
	p.taken, p.observed = 0, 0
	if p.pairer != nil {
		p.pairer.Process(p.decoded, p.judged)
		p.decoded.Reset()
	} else {
		p.decoded, p.judged = p.judged, p.decoded
	}
	if after != nil {
		after()
	}
	if len(p.judged.Records) == 0 {
		return nil
	}
	p.observe()
	if p.onFlow != nil {
		return p.onFlow(p.judged)
	}
	return nil
}

// observe has the stages behind judging look at what they have not seen yet of judged.
func (p *pipeline) observe() {
	if p.detector == nil || p.observed == len(p.judged.Records) {
		return
	}
	b := &flow.Batch{Records: p.judged.Records[p.observed:]}
	p.detector.Observe(b)
	p.sessions.Observe(b)
	p.contacts.Observe(b)
	p.judgedSoFar.add(b)
	p.observed = len(p.judged.Records)
}

// takeBlock waits for an empty block: the store is behind while there is none.
func (p *pipeline) takeBlock(ctx context.Context) error {
	select {
	case p.block = <-p.free:
	case <-ctx.Done():
		return ctx.Err()
	}
	p.gate.Lock()
	p.storing[p.block] = struct{}{}
	p.gate.Unlock()
	return nil
}

// handOn sends the block to be inserted.
func (p *pipeline) handOn(ctx context.Context) error {
	item := storeItem{unit: p.unit, chunk: p.chunk, block: p.block}
	item.unit.Token += "/" + strconv.Itoa(p.chunk)
	p.chunk++
	p.block = nil
	return p.send(ctx, item)
}

func (p *pipeline) send(ctx context.Context, item storeItem) error {
	select {
	case p.out <- item:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// end closes the unit: what is left of it is inserted, its findings are told, cp
// (if not nil) is filled with every stage's state and extra and saved, done runs.
func (p *pipeline) end(ctx context.Context, cp *checkpoint, extra map[string][]byte, done func() error) error {
	if err := p.advance(ctx, nil); err != nil {
		return err
	}
	if p.block != nil && p.block.rows > 0 {
		if err := p.handOn(ctx); err != nil {
			return err
		}
	}
	// Nothing of the unit waits any more: a datagram that did not reach the decoder
	// is lost, and the sum has to show it.
	p.gate.Lock()
	clear(p.queued)
	p.gate.Unlock()
	var sessions []flow.Session
	var edges []flow.EdgeContribution
	var digest detect.Digest
	if p.sessions != nil {
		var err error
		if sessions, edges, digest, err = p.settle(ctx, p.last, p.final); err != nil {
			return err
		}
	}
	contribs, events := p.collect(p.final)
	sessions = append(sessions, p.unseen()...)
	spots := p.blindSpots(p.final)
	if p.onEvents != nil {
		if err := p.onEvents(events); err != nil {
			return err
		}
	}
	if cp != nil {
		began := time.Now()
		var err error
		if cp.state, err = p.snapshot(); err != nil {
			return err
		}
		p.snapshotTook.Store(int64(time.Since(began)))
		maps.Copy(cp.state, extra)
		cp.Ledger = p.received()
	}
	return p.send(ctx, storeItem{unit: p.unit, end: true, contribs: contribs, events: events, sessions: sessions, edges: edges, spots: spots, digest: digest, cp: cp, done: done})
}

// drain ends the input for good: what waits for another half is judged without it,
// and, if it was the last of several, what detection holds is decided.
func (p *pipeline) drain(ctx context.Context, last bool) error {
	if p.pairer == nil {
		return p.advance(ctx, nil)
	}
	p.last, p.final = true, last // of each input: times begin anew with the next
	return p.advance(ctx, func() { p.pairer.Flush(p.judged) })
}

// section is a stage whose state crosses units.
type section interface {
	Snapshot() ([]byte, error)
	Restore([]byte) error
}

func (p *pipeline) sections() map[string]section {
	out := map[string]section{}
	if p.decoder != nil {
		out["decoder"] = p.decoder
	}
	if p.pairer != nil {
		out["pairer"], out["detector"], out["sessions"], out["contacts"] = p.pairer, p.detector, p.sessions, p.contacts
	}
	if p.behaviour != nil {
		out["behaviour"] = p.behaviour
	}
	return out
}

func (p *pipeline) snapshot() (map[string][]byte, error) {
	out := map[string][]byte{}
	for name, s := range p.sections() {
		b, err := s.Snapshot()
		if err != nil {
			return nil, fmt.Errorf("state of the %s: %w", name, err)
		}
		out[name] = b
	}
	return out, nil
}

// use puts stages in the pipeline.
func (p *pipeline) use(decoder *ingest.Decoder, j judging) {
	p.decoder, p.judging = decoder, j
}

func (p *pipeline) restoreStages(state map[string][]byte) error {
	for name, s := range p.sections() {
		if b, ok := state[name]; ok {
			if err := s.Restore(b); err != nil {
				return fmt.Errorf("state of the %s: %w", name, err)
			}
		}
	}
	return nil
}

// restore puts every stage back to a checkpoint.
func (p *pipeline) restore(cp *checkpoint) error {
	if err := p.restoreStages(cp.state); err != nil {
		return err
	}
	p.totals = maps.Clone(cp.Ledger)
	if p.totals == nil {
		p.totals = ledgerTotals{}
	}
	return nil
}

// saver makes checkpoints last.
type saver interface {
	save(ctx context.Context, cp *checkpoint) error
}

// runStore makes results last, in order, until the pipeline is closed or ctx ends.
func (p *pipeline) runStore(ctx context.Context, saved saver) error {
	for {
		var item storeItem
		var ok bool
		select {
		case item, ok = <-p.out:
			if !ok {
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		}
		var err error
		if item.end {
			err = p.finish(ctx, saved, item)
		} else {
			err = p.insert(ctx, item)
		}
		if err != nil {
			return err
		}
	}
}

func (p *pipeline) insert(ctx context.Context, item storeItem) error {
	start := time.Now()
	duplicate, err := p.store.rows(ctx, item.unit, item.chunk, item.block)
	if err != nil {
		return err
	}
	p.log.Debug("inserted", "token", item.unit.Token, "rows", item.block.rows, "duplicate", duplicate, "took", time.Since(start))
	p.gate.Lock()
	for exporter, n := range item.block.exporters {
		a := p.totals[exporter]
		if duplicate {
			a.Records.Duplicate += n
		} else {
			a.Records.Written += n
		}
		p.totals[exporter] = a
	}
	delete(p.storing, item.block)
	item.block.reset()
	p.gate.Unlock()
	p.free <- item.block
	return nil
}

func (p *pipeline) finish(ctx context.Context, saved saver, item storeItem) error {
	if len(item.sessions) > 0 {
		if err := p.store.sessions(ctx, item.unit.Insert, item.sessions); err != nil {
			return err
		}
	}
	if len(item.edges) > 0 {
		if err := p.store.edges(ctx, item.unit.Insert, item.edges); err != nil {
			return err
		}
	}
	if len(item.spots) > 0 {
		if err := p.store.blindSpots(ctx, item.unit.Insert, item.spots); err != nil {
			return err
		}
	}
	if err := p.store.findings(ctx, item.unit.Insert, item.contribs, item.events); err != nil {
		return err
	}
	if p.publish != nil {
		if err := p.publish(ctx, item.unit, &item.digest); err != nil {
			return err
		}
	}
	if item.cp != nil {
		p.gate.RLock()
		for exporter, a := range p.totals {
			c := item.cp.Ledger[exporter]
			c.Records.Written, c.Records.Duplicate = a.Records.Written, a.Records.Duplicate
			item.cp.Ledger[exporter] = c
		}
		p.gate.RUnlock()
		began := time.Now()
		if err := p.insist(ctx, "checkpoint", func() error { return saved.save(ctx, item.cp) }); err != nil {
			return err
		}
		p.saveTook.Store(int64(time.Since(began)))
	}
	if item.done != nil {
		return p.insist(ctx, "removing what is stored", item.done)
	}
	return nil
}

// insist repeats what the disk refuses: a full disk is no reason to stop
// receiving, and until it succeeds nothing is thrown away. A permanent error is one
// that whoever returned it has no hope of.
func (p *pipeline) insist(ctx context.Context, what string, do func() error) error {
	for {
		err := do()
		if _, hopeless := errors.AsType[*backoff.PermanentError](err); err == nil || hopeless || ctx.Err() != nil {
			return err
		}
		p.log.Error("what is made cannot be made to last; trying again", "what", what, "error", err)
		select {
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// verdicts is a copy of how flows were judged so far.
func (p *pipeline) verdicts() tally {
	p.gate.Lock()
	defer p.gate.Unlock()
	t := p.judgedSoFar
	t.segments = slices.Clone(t.segments)
	return t
}

// received is the totals without what runStore counts, for a checkpoint.
func (p *pipeline) received() ledgerTotals {
	p.gate.RLock()
	defer p.gate.RUnlock()
	return maps.Clone(p.totals)
}

// admit counts datagrams that belong to the unit about to be worked through.
func (p *pipeline) admit(exporter flow.Addr, n uint64) {
	a := p.totals[exporter]
	a.Datagrams.Received += n
	p.totals[exporter] = a
	p.queued[exporter] += n
}

// refuse counts datagrams that were refused before the spool.
func (p *pipeline) refuse(exporter flow.Addr, reason flow.Reject, n uint64) {
	a := p.totals[exporter]
	a.Datagrams.Received += n
	a.Datagrams.Rejected[reason] += n
	p.totals[exporter] = a
}

// ledger takes stock: both sums, every term counted where its things are. waiting,
// if not nil, adds what lies in the spool behind the open unit.
func (p *pipeline) ledger(waiting func(flow.Ledger)) flow.Ledger {
	p.gate.Lock()
	defer p.gate.Unlock()
	l := flow.Ledger{}
	if p.decoder != nil {
		for exporter, a := range p.decoder.Ledger() {
			seen := *a
			seen.Datagrams.Received = 0 // the decoder's view; the spool's is the one that counts
			l.Of(exporter).Add(&seen)
		}
	}
	for exporter, a := range p.totals {
		l.Of(exporter).Add(&a)
	}
	for exporter, n := range p.queued {
		l.Of(exporter).Datagrams.Queued += n
	}
	for i := range p.decoded.Records {
		l.Of(p.decoded.Records[i].Exporter).Records.InFlight++
	}
	for i := range p.judged.Records[p.taken:] {
		l.Of(p.judged.Records[p.taken+i].Exporter).Records.InFlight++
	}
	if p.pairer != nil {
		p.pairer.Held(func(exporter flow.Addr, n uint64) { l.Of(exporter).Records.InFlight += n })
	}
	for b := range p.storing {
		for exporter, n := range b.exporters {
			l.Of(exporter).Records.InFlight += n
		}
	}
	if waiting != nil {
		waiting(l)
	}
	return l
}
