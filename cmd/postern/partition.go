package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
	kgo "github.com/segmentio/kafka-go"
	"golang.org/x/sync/errgroup"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/kafka"
	"github.com/postern/postern/sink"
)

// partition is the work on one partition that the group gave to this process: range
// after range through a pipeline of its own.
//
//	open a range ─▶ fetch, decode ─▶ pipeline ─▶ checkpoint ─▶ close the range
//
// Opening and closing are commits of the group's position, which only the owner can
// make. Everything between is a deterministic function of the position, the checkpoint
// it names and the log, so whoever finds a range open does the same again.
type partition struct {
	*detection
	a    *kafka.Assignment
	log  *slog.Logger
	in   *partitionLog
	name string // kafka/CLUSTER/GROUP/TOPIC/PARTITION, for tokens

	pos     kafka.Position
	kept    partitionState
	pipe    *pipeline
	pin     *pinned
	changed bool // the stages work under settings that the configuration no longer has
	take    func(ctx context.Context, r *kafka.Record) error

	decoder *kafka.Decoder // our own topic
	edges   bool           // the edges topic
	foreign foreign        // a topic of others
	scratch *flow.Batch
	away    *handing             // what belongs to other partitions
	reg     *prometheus.Registry // of the stages
	closed  chan struct{}        // a range was closed
	lively  time.Time            // when there last was anything to do
}

// partitionState is what a checkpoint of a partition holds.
type partitionState struct {
	Version    int          `json:"version"`
	Settings   string       `json:"settings"` // of the stages, from here on
	Ledger     ledgerTotals `json:"ledger"`
	Sections   sections     `json:"sections"`
	Producers  producers    `json:"producers"`
	Replayed   replays      `json:"replayed,omitempty"`
	Last       flow.Time    `json:"last"` // the clock of the newest range
	Told       flow.Time    `json:"told"` // how far the edges topic was told of its contacts
	Born       flow.Time    `json:"born"` // the clock of the first range
	Pace       pace         `json:"pace"`
	Next       int64        `json:"next"`       // first offset that it does not reflect
	Ranges     uint64       `json:"ranges"`     // ranges that it reflects
	Partitions int          `json:"partitions"` // that flows are divided into
}

const partitionStateVersion = 1

// sections are the states of the stages by name. Those that are JSON stay that, others are in
// base64.
type sections map[string][]byte

// MarshalJSON implements json.Marshaler.
func (s sections) MarshalJSON() ([]byte, error) {
	raw := make(map[string]json.RawMessage, len(s))
	for name, state := range s {
		if raw[name] = state; len(state) == 0 || state[0] != '{' {
			text, err := json.Marshal(state)
			if err != nil {
				return nil, err
			}
			raw[name] = text
		}
	}
	return json.Marshal(raw)
}

// UnmarshalJSON implements json.Unmarshaler.
func (s *sections) UnmarshalJSON(b []byte) error {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(b, &raw); err != nil {
		return err
	}
	*s = make(sections, len(raw))
	for name, state := range raw {
		if (*s)[name] = state; len(state) == 0 || state[0] == '{' {
			continue
		}
		var binary []byte
		if err := json.Unmarshal(state, &binary); err != nil {
			return err
		}
		(*s)[name] = binary
	}
	return nil
}

// pace is how far time has come for the stages: to the receipt of the newest flow, and from
// there it goes on by the clock. Where flows waited in Kafka or in a collector's spool,
// halves of a conversation thereby wait for each other as they would have when they came;
// by the clock alone the end of every range would end every wait.
type pace struct {
	Newest flow.Time `json:"newest"` // receipt of the newest flow; 0 is none yet
	At     flow.Time `json:"at"`     // the clock of the range it came in
}

// take takes note of a flow in a range opened at at.
func (p *pace) take(received, at flow.Time) {
	if received = min(received, at); received > p.Newest {
		p.Newest, p.At = received, at
	}
}

// behind is how far the stages' time is behind the clock.
func (p *pace) behind() flow.Time { return p.At - p.Newest }

// producers is the highest number seen of each producer of a partition, and when. What
// does not rise was there before: a producer's retry, or what it made again after a crash.
type producers map[string]seen

type seen struct {
	Epoch uint32    `json:"epoch"`
	Seq   uint64    `json:"seq"`
	At    flow.Time `json:"at"`
}

// maxProducers bounds the producers remembered: a new data directory of a collector is
// a new one. Beyond it the one unheard for longest is forgotten.
const maxProducers = 4096

// fresh takes note of a batch and says whether it is new.
func (p producers) fresh(h *kafka.Header, at flow.Time) bool {
	key := string(h.Producer[:])
	last, known := p[key]
	if known && (h.Epoch < last.Epoch || h.Epoch == last.Epoch && h.Seq <= last.Seq) {
		return false
	}
	p[key] = seen{h.Epoch, h.Seq, at}
	if len(p) > maxProducers {
		oldest := key
		for k, s := range p {
			if o := p[oldest]; s.At < o.At || s.At == o.At && k < oldest {
				oldest = k
			}
		}
		delete(p, oldest)
	}
	return true
}

// replays is the newest dead letters that were put back and taken in since. Their
// numbers are below their producers' highest.
type replays []uint64

const maxReplays = 4096

// fresh takes note of a batch and says whether it is new.
func (p *replays) fresh(h *kafka.Header) bool {
	id := sourceID(fmt.Sprintf("%x/%d/%d/%d", h.Producer, h.Epoch, h.Partition, h.Seq))
	if slices.Contains(*p, id) {
		return false
	}
	*p = append(*p, id)
	*p = (*p)[max(0, len(*p)-maxReplays):]
	return true
}

// MarshalJSON writes a list, since keys are bytes and no text.
func (p producers) MarshalJSON() ([]byte, error) {
	type entry struct {
		Producer []byte `json:"producer"`
		seen
	}
	list := make([]entry, 0, len(p))
	for _, k := range slices.Sorted(maps.Keys(p)) {
		list = append(list, entry{[]byte(k), p[k]})
	}
	return json.Marshal(list)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (p *producers) UnmarshalJSON(b []byte) error {
	var list []struct {
		Producer []byte `json:"producer"`
		seen
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return err
	}
	*p = producers{}
	for _, e := range list {
		(*p)[string(e.Producer)] = e.seen
	}
	return nil
}

// work works on a partition until ctx ends, the partition is lost or the process stops.
func (d *detection) work(ctx context.Context, a *kafka.Assignment) error {
	if d.isEdges(a.Topic) && a.Partition != 0 {
		return idle(ctx, a) // a topic that was made with more has nothing in them
	}
	name := fmt.Sprintf("%s/%d", a.Topic, a.Partition)
	err := d.workOn(ctx, a, name)
	if !errors.Is(err, kafka.ErrDeposed) {
		d.trouble(name, err)
	}
	context.AfterFunc(ctx, func() { d.trouble(name, nil) }) // it is somebody else's then
	return err
}

func (d *detection) workOn(ctx context.Context, a *kafka.Assignment, name string) error {
	w := &partition{
		detection: d, a: a, log: d.log.With("topic", a.Topic, "partition", a.Partition),
		name:    fmt.Sprintf("kafka/%s/%s/%s", d.cluster, d.cfg.Kafka.Group, name),
		scratch: flow.NewBatch(kafka.BatchRows, nil), reg: prometheus.NewRegistry(), closed: make(chan struct{}, 1), lively: time.Now(),
	}
	if err := d.sameDivision(ctx); err != nil {
		return err
	}
	// A partition that is new has no checkpoint that says what it was made for; the others do.
	if err := d.divisionKept(ctx); err != nil {
		return err
	}
	w.in = &partitionLog{a: a, client: d.client, log: w.log, met: d.met.log}
	if err := w.load(ctx); err != nil {
		return err
	}
	d.own(w)
	defer d.disown(w)
	defer w.pipe.release()
	defer w.in.follow(ctx, w.pos.Offset)()
	d.trouble(name, nil)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.pipe.runStore(gctx, w) })
	g.Go(func() error {
		defer close(w.pipe.out)
		return w.ranges(gctx)
	})
	err := g.Wait()
	if err == nil {
		last, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		d.tell(last, w)
	}
	return err
}

// loadState reads a checkpoint in partition in of the state topic.
func loadState(ctx context.Context, client *kafka.Client, in int, place kafka.Place) (kept partitionState, err error) {
	raw, err := client.LoadState(ctx, in, place)
	if err == nil {
		err = json.Unmarshal(raw, &kept)
	}
	if err == nil && kept.Version != partitionStateVersion {
		err = fmt.Errorf("it is of version %d, this postern reads version %d; let the postern that wrote it close its range first", kept.Version, partitionStateVersion)
	}
	if err != nil {
		err = fmt.Errorf("the checkpoint: %w", err)
	}
	return kept, err
}

// load finds where the group stands and puts the stages back to the checkpoint there.
func (w *partition) load(ctx context.Context) (err error) {
	var ours bool
	if w.pos, ours, err = w.a.Position(ctx); err != nil {
		return err
	}
	if !ours {
		if w.pos.State, err = w.client.FindState(ctx, w.cfg.Kafka.Group, w.a.Topic, w.a.Partition, w.stateIn()); err != nil {
			return err
		}
	}
	w.kept = partitionState{Version: partitionStateVersion, Producers: producers{}}
	if w.pos.State.Known() {
		kept, err := loadState(ctx, w.client, w.stateIn(), w.pos.State)
		switch {
		case errors.Is(err, kafka.ErrStateLost):
			// What waited for its other half and what findings had counted is gone. Going on
			// is better than standing still, but nobody should have to find out by himself.
			w.log.Error("going on with nothing remembered", "error", err)
			w.met.lost.Inc()
		case err != nil:
			return err
		case kept.Partitions != w.partitions:
			return errDivision(kept.Partitions, w.partitions)
		default:
			w.kept = kept
		}
	}
	if !ours {
		if err := w.settle(ctx); err != nil {
			return err
		}
	}
	if w.pos.Open == nil && w.kept.Settings != w.settings {
		// Durable before anything is made under them: whoever finds a range open looks here.
		// Numbered on, so that it does not take the place of the one the position names.
		if err := w.close(ctx, kafka.Position{Offset: w.pos.Offset, Ranges: w.pos.Ranges + 1}); err != nil {
			return err
		}
	}
	return w.build()
}

// stateIn is the partition of the state topic that holds the checkpoints.
func (w *partition) stateIn() int { return w.a.Partition % w.partitions }

// settle decides where to begin without a position of ours: a new group, one whose
// offsets the cluster forgot, or offsets that somebody set. What a checkpoint reflects
// is not taken in again, or its flows would be in the store and in findings twice.
func (w *partition) settle(ctx context.Context) error {
	first, end, err := w.client.Offsets(ctx, w.a.Topic, w.a.Partition)
	if err != nil {
		return err
	}
	set := w.pos.Offset // -1: by nobody
	w.pos.Ranges = w.kept.Ranges
	switch done := w.kept.Next; {
	case !w.pos.State.Known() || done > end: // nothing done, or the topic was made anew
		if set < 0 {
			w.pos.Offset = first
		}
	case set < 0:
		w.pos.Offset = done
	case set < done:
		w.log.Warn("the group's offset was set back; what was taken in before is passed over. To judge it again use `postern replay`, or a new kafka.group with a new database",
			"offset", set, "done", done)
		w.pos.Offset = done
	case set > done:
		w.log.Warn("the group's offset was set ahead; what lies between is not taken in", "done", done, "offset", set)
		w.met.log.skipped.Add(float64(set - done))
	}
	return nil
}

// build makes the stages: under the settings of the configuration, or while a range is
// open that was begun under others, under those.
func (w *partition) build() (err error) {
	set := w.set
	if w.kept.Settings != w.settings && w.kept.Settings != "" { // empty: a checkpoint that is gone
		w.log.Info("settings changed while a range was open; it is worked through as it was begun")
		if set, err = parseSettings(w.kept.Settings); err != nil {
			return err
		}
		w.changed = true
	}
	cfg := pipelineConfig{names: w.names, log: w.log}
	if w.foreign, err = w.foreignOf(w.a.Topic, set); err != nil {
		return err
	}
	switch w.edges = w.isEdges(w.a.Topic); {
	case w.foreign != nil:
		// Judged by whoever gets the partition that the flows belong to.
		topic := w.topic()
		cfg.store, cfg.blocks = topic, newBlocks(2, topic)
		w.take = w.takeForeign
	case w.edges:
		if err = w.buildEdges(set, &cfg); err != nil {
			return err
		}
	default:
		w.pin = &pinned{w.history}
		reg := prometheus.WrapRegistererWith(prometheus.Labels{"partition": strconv.Itoa(w.a.Partition)}, w.reg)
		if cfg.judging, err = judges(set, w.pin, w.identity, w.names, reg); err != nil {
			return err
		}
		cfg.past, _ = w.rows.(recaller)
		cfg.store, cfg.blocks, cfg.publish = w.rows, w.blocks, w.publish
		w.decoder = kafka.NewDecoder(w.names)
		w.take = w.takeOwn
		topic := w.topic()
		w.away = &handing{topic: topic, block: <-newBlocks(1, topic)}
	}
	w.in.recognised = w.foreign == nil
	w.pipe = newPipeline(cfg)
	return w.pipe.restore(&checkpoint{Ledger: w.kept.Ledger, state: w.kept.Sections})
}

// topic is the flows topic as this partition writes to it.
func (w *partition) topic() *flowTopic {
	return newDividedTopic(w.client, w.names, w.log, w.producer, w.partitions)
}

// producer is who this partition is where it writes to topics of ours.
func (w *partition) producer() [16]byte {
	return producerOf(fmt.Sprintf("%s@%d", w.name, w.kept.Born))
}

// judges says whether flows are judged here.
func (w *partition) judges() bool { return w.foreign == nil && !w.edges }

// ranges works on range after range.
func (w *partition) ranges(ctx context.Context) error {
	for {
		records, err := w.next(ctx)
		if err != nil {
			return err
		}
		if w.pos.Open == nil { // stopping
			return nil
		}
		if err := w.run(ctx, records); err != nil {
			return err
		}
		if w.changed {
			return nil // what was open under other settings is closed; the stages are made anew
		}
	}
}

// next gives the values of the open range, or opens one.
func (w *partition) next(ctx context.Context) ([]kafka.Record, error) {
	if w.pos.Open != nil {
		w.log.Info("repeating the range that was open", "from", w.pos.Offset, "to", w.pos.Open.To)
		if _, err := w.known(ctx, nil); err != nil {
			return nil, err
		}
		w.met.repeated.Inc()
		records, err := w.again(ctx, w.pos.Offset, w.pos.Open.To)
		if err != nil {
			return nil, err
		}
		versions, err := w.policy.until(ctx, w.pos.Open.Policy)
		w.pin.set(versions)
		return records, err
	}
	records, to, err := w.gather(ctx)
	if err != nil || to < 0 {
		return nil, err
	}
	if known, err := w.known(ctx, records); err != nil || !known {
		return nil, err
	}
	policy, versions := w.policy.now()
	w.pin.set(versions)
	w.pos.Open = &kafka.Range{To: to, At: max(wallClock(), w.kept.Last+1), Policy: policy, Rows: w.cfg.Ingest.Spool.ChunkRows}
	return records, w.a.Commit(ctx, w.pos)
}

// known waits until all that counts of who was behind the flows of a range has become known
// and was read. false is that the process stops before.
func (w *partition) known(ctx context.Context, records []kafka.Record) (bool, error) {
	if !w.cfg.Identity.enabled() || !w.judges() {
		return true, nil
	}
	var last flow.Time
	for i := range records {
		last = max(last, flow.TimeOf(records[i].Time))
	}
	if last > 0 && !waitUntil(ctx, w.a.Stopping, last.Add(w.cfg.Identity.Hold+factsGrace)) {
		return false, ctx.Err()
	}
	return true, w.facts.sync(ctx)
}

// busyTick and idleTick are how often time goes on for a partition without values:
// while something may wait for it, and otherwise.
const (
	busyTick = time.Second
	idleTick = 20 * time.Second
	busyFor  = 3 * time.Minute
	// edgesTick is that of the edges topic, where only digests tell of time.
	edgesTick = time.Hour
)

// linger is how long values of a range are gathered: where stages remember much and their
// checkpoint takes long, as long as makes that a twentieth of the time, up to a bound.
func (w *partition) linger() time.Duration {
	took := time.Duration(w.pipe.snapshotTook.Load() + w.pipe.saveTook.Load())
	return max(w.cfg.Ingest.Kafka.Linger, min(checkpointShare*took, maxLinger))
}

// maxLinger bounds by how much what is found is late for the sake of checkpoints.
const maxLinger = 30 * time.Second

// gather fetches what a range shall hold: what comes within linger, up to the size of a
// range. It comes back with nothing when it is time for a tick, and with to < 0 when the
// process stops.
func (w *partition) gather(ctx context.Context) (records []kafka.Record, to int64, err error) {
	began, next, size := time.Now(), w.pos.Offset, int64(0)
	tick := busyTick
	switch {
	case w.edges:
		tick = edgesTick
	case time.Since(w.lively) > busyFor:
		tick = idleTick
	}
	for {
		select {
		case <-w.a.Stopping:
			return nil, -1, nil
		case <-ctx.Done():
			return nil, -1, ctx.Err()
		default:
		}
		wait := w.linger() - time.Since(began)
		if len(records) == 0 {
			wait = tick - time.Since(began)
		}
		if wait <= 0 || size >= int64(w.cfg.Ingest.Kafka.Range) {
			return records, next, nil
		}
		f, err := w.client.Fetch(ctx, w.a.Topic, w.a.Partition, next, int64(w.cfg.Ingest.Kafka.Range)-size, min(wait, 250*time.Millisecond))
		if errors.Is(err, kgo.OffsetOutOfRange) && len(records) == 0 {
			if next, _, err = w.in.skip(ctx, next, next); err == nil {
				w.pos.Offset = next
				continue
			}
		}
		if err != nil {
			w.client.Refresh()
			return nil, -1, err
		}
		w.in.lag(f.Next, f.High)
		if len(f.Records) > 0 && len(records) == 0 {
			began, w.lively = time.Now(), time.Now()
		}
		records, next = append(records, f.Records...), f.Next
		size += int64(f.Bytes)
	}
}

// again fetches the values of a range once more.
func (w *partition) again(ctx context.Context, from, to int64) (records []kafka.Record, err error) {
	for next := from; next < to; {
		f, err := w.client.Fetch(ctx, w.a.Topic, w.a.Partition, next, int64(w.cfg.Ingest.Kafka.Range), 250*time.Millisecond)
		switch {
		case errors.Is(err, kgo.OffsetOutOfRange) || err == nil && f.Next == next && f.High <= next:
			at, lost, err := w.in.skip(ctx, next, next+1)
			if err != nil {
				return nil, err
			}
			if lost && at <= next { // the log ends here
				w.in.met.skipped.Add(float64(to - next))
				return records, nil
			}
			next = at
		case err != nil:
			w.client.Refresh()
			return nil, err
		default:
			for _, r := range f.Records {
				if r.Offset < to {
					records = append(records, r)
				}
			}
			next = f.Next
		}
	}
	return records, nil
}

// run makes of the open range what is to be made of it, and closes it.
func (w *partition) run(ctx context.Context, records []kafka.Record) error {
	r := w.pos.Open
	if w.kept.Born == 0 {
		w.kept.Born = r.At
	}
	w.kept.Last = r.At
	w.pipe.chunkRows = r.Rows
	w.pipe.begin(unit{sink.Insert{
		Token: fmt.Sprintf("%s/%d/%d-%d", w.name, w.pos.Ranges, w.pos.Offset, r.To), Input: w.name, At: r.At,
	}, w.pos.Ranges})
	for i := range records {
		if err := w.take(ctx, &records[i]); err != nil {
			return err
		}
	}
	if err := w.away.flush(ctx, 1); err != nil {
		return err
	}
	if err := w.pipe.tick(ctx, r.At-w.kept.Pace.behind()); err != nil {
		return err
	}
	if err := w.pipe.end(ctx, &checkpoint{}, nil, func() error { w.closed <- struct{}{}; return nil }); err != nil {
		return err
	}
	select {
	case <-w.closed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// save makes a checkpoint last and closes the range that led to it.
func (w *partition) save(ctx context.Context, cp *checkpoint) error {
	w.kept.Ledger, w.kept.Sections = cp.Ledger, cp.state
	if err := w.close(ctx, kafka.Position{Offset: w.pos.Open.To, Ranges: w.pos.Ranges + 1}); err != nil {
		return backoff.Permanent(err) // the client has tried again what may succeed
	}
	return nil
}

// close makes a checkpoint last that reflects everything before next, with the settings
// for what comes behind it, and then moves the group's position there.
func (w *partition) close(ctx context.Context, next kafka.Position) error {
	w.kept.Settings, w.kept.Next, w.kept.Ranges, w.kept.Partitions = w.settings, next.Offset, next.Ranges, w.partitions
	raw, err := json.Marshal(w.kept)
	if err != nil {
		return err
	}
	next.State, err = w.client.SaveState(ctx, w.cfg.Kafka.Group, w.a.Topic, w.a.Partition, w.stateIn(), next.Ranges, raw)
	if err != nil {
		return err
	}
	w.pos = next
	return w.a.Commit(ctx, next)
}

// fresh takes note of a value of our own topics and says whether it is new.
func (w *partition) fresh(r *kafka.Record, h *kafka.Header) bool {
	if r.Replayed() {
		return w.kept.Replayed.fresh(h)
	}
	return w.kept.Producers.fresh(h, w.pos.Open.At)
}

// takeOwn takes a value of our own topic in.
func (w *partition) takeOwn(ctx context.Context, r *kafka.Record) error {
	w.scratch.Reset()
	h, err := w.decoder.Decode(r.Value, w.scratch)
	if err != nil {
		return w.in.dead(ctx, r, err)
	}
	if !w.fresh(r, &h) {
		w.met.duplicates.Inc()
		w.pipe.repeated(w.scratch)
		return nil
	}
	w.met.values.Inc()
	w.met.fill.Observe(float64(len(w.scratch.Records)))
	if int(h.Partition) != w.a.Partition || int(h.Partitions) != w.partitions {
		return w.away.take(ctx, w)
	}
	for i := range w.scratch.Records {
		w.kept.Pace.take(w.scratch.Records[i].Received, w.pos.Open.At)
	}
	return w.pipe.records(ctx, func(b *flow.Batch) { b.Records = append(b.Records, w.scratch.Records...) })
}

// handing gathers flows that were cut for another division than the topic has now, and
// divides them anew: a collector that does not know of the change yet, or what lay in
// the log when it came. They are counted where they arrive.
type handing struct {
	topic *flowTopic
	block *block
	unit  uint64
	chunk int
}

// take takes in what w has decoded.
func (a *handing) take(ctx context.Context, w *partition) error {
	if a.unit != w.pos.Ranges {
		a.unit, a.chunk = w.pos.Ranges, 0
	}
	a.block.add(w.scratch.Records)
	return a.flush(ctx, w.pipe.chunkRows)
}

// flush hands on what was gathered, if it is at least so many flows.
func (a *handing) flush(ctx context.Context, least int) error {
	if a == nil || a.block.rows < least {
		return nil
	}
	if _, err := a.topic.rows(ctx, unit{number: a.unit}, a.chunk, a.block); err != nil {
		return err
	}
	a.chunk++
	a.block.reset()
	return nil
}

// takeForeign takes a value of a topic of others in.
func (w *partition) takeForeign(ctx context.Context, r *kafka.Record) error {
	seed := sourceID(fmt.Sprintf("%s/%d/%d", w.cluster+"/"+w.a.Topic, w.a.Partition, r.Offset))
	w.scratch.Reset()
	refused, err := w.foreign.Decode(r.Value, seed, flow.TimeOf(r.Time), w.scratch)
	if err != nil {
		return w.in.dead(ctx, r, err)
	}
	w.met.values.Inc()
	if refused > 0 {
		w.met.refused.Add(float64(refused))
		w.log.Warn("a value holds messages that are no flows", "offset", r.Offset, "refused", refused, "first", w.foreign.Reason())
	}
	return w.pipe.records(ctx, func(b *flow.Batch) { b.Records = append(b.Records, w.scratch.Records...) })
}
