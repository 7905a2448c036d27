package siem

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/postern/postern/flow"
)

// Event is one thing a target must be told once.
type Event struct {
	// ID names the event: finding id and revision. 1 to 200 printable ASCII
	// characters other than space and full stop (Standard Webhooks signs
	// id.timestamp.body).
	ID string
	// Key is what order is kept by: the finding id. Up to 200 bytes.
	Key string
	// Body is the message, JSON of less than MaxMessage bytes.
	Body []byte
	// Time is when it happened, by event time.
	Time flow.Time
	// Urgent events go before others, in a place of their own, and find room where others filled
	// the outbox; so does what they come behind: the order of their key is kept.
	Urgent bool
}

// Validate says where e breaks the rules of its fields, and what would be right.
func (e *Event) Validate() error {
	if e.ID == "" || len(e.ID) > 200 || len(e.Key) > 200 {
		return fmt.Errorf("event %.40q: id and key must have at most 200 bytes, and the id at least one", e.ID)
	}
	for i := range len(e.ID) {
		if c := e.ID[i]; c <= ' ' || c >= 0x7f || c == '.' {
			return fmt.Errorf("event %q: the id may hold printable ASCII only, without spaces and full stops", e.ID)
		}
	}
	if len(e.Body) >= MaxMessage {
		return fmt.Errorf("event %s: the body has %d bytes and must have less than %d", e.ID, len(e.Body), MaxMessage)
	}
	return nil
}

// Sender hands events to a target. Send makes one attempt, may be called from
// several goroutines, and must not keep e. nil is delivered; an error that is no
// *[DeliveryError] counts as one to try again.
type Sender interface {
	Send(ctx context.Context, e *Event) error
}

// BatchSender is a Sender that hands over several events at a time, no two of them
// of one finding.
type BatchSender interface {
	Sender
	// Batch says how many events there may be, and for how long the first waits for others.
	Batch() Batch
	// SendBatch makes one attempt. It gives an error for each event, in their order, as Send would,
	// or one error for all of them: then an error that is not to be tried again has each event tried by
	// itself, so that one that is refused takes no others along.
	SendBatch(ctx context.Context, events []*Event) []error
}

// Batch bounds what is sent at a time.
type Batch struct {
	Events int           // at most; 0 is 1
	Wait   time.Duration // that the first waits for others; urgent events do not
}

// DeliveryError is why an attempt failed and what is to be done about it.
type DeliveryError struct {
	// Retry: try again later; otherwise the event is a dead letter at once.
	Retry bool
	// Gone: the target wants no more events until a restart or another configuration.
	Gone bool
	// Denied: the target did not accept who we are. That is no fault of the event, unless
	// others are taken meanwhile: the target is asked again with pauses of up to 15 minutes.
	Denied bool
	// After is the least time to wait, as the target asked; zero if it did not.
	After time.Duration
	// Status is the HTTP status; zero if there was no answer.
	Status int
	// Response is the beginning of the answer, made printable.
	Response string
	Err      error

	apart bool // of a batch that was refused as a whole
}

func (e *DeliveryError) Error() string { return e.Err.Error() }
func (e *DeliveryError) Unwrap() error { return e.Err }

// ErrOutboxFull is what Put returns, wrapped, when events do not fit: the caller
// holds what it was doing and puts the same events again later.
var ErrOutboxFull = errors.New("the outbox is full")

// OutboxConfig bounds one target's outbox.
type OutboxConfig struct {
	// MaxEvents is how many events wait at most, dead letters included. Beyond it the pipeline
	// holds. A sixteenth of it, and of MaxBytes, is for critical findings alone.
	MaxEvents int `yaml:"maxEvents"`
	// MaxBytes is how much disk they may take.
	MaxBytes flow.Size `yaml:"maxBytes"`
	// Reserve is a file kept beside them; it is given up when the disk is full, so that findings can still be written.
	Reserve flow.Size `yaml:"reserve"`
	// Remember is how many delivered events are remembered by id, so that the same event is not sent again after a crash.
	Remember int `yaml:"remember"`
	// Concurrency is how many events are on their way to a target at once, each of another finding;
	// critical findings have one place more.
	Concurrency int `yaml:"concurrency"`
}

// DefaultOutboxConfig is what applies unless said otherwise.
func DefaultOutboxConfig() OutboxConfig {
	return OutboxConfig{
		// 100,000 waiting events are 250 bytes of memory each, 25 MB; a site with
		// 10 findings a minute fills them in a week.
		MaxEvents: 100_000,
		// At a usual 3 kB a message 100,000 are 300 MB.
		MaxBytes: 512 * flow.MiB,
		// Some 800 messages of the largest size.
		Reserve: 16 * flow.MiB,
		// After a crash no more is read again than since the last checkpoint;
		// 100,000 ids are some 15 MB.
		Remember: 100_000,
		// A receiver that takes 200 ms still gets 20 events a second.
		Concurrency: 4,
	}
}

// Validate says what is wrong with c and what would be right.
func (c *OutboxConfig) Validate() error {
	switch {
	case c.MaxEvents < 1:
		return fmt.Errorf("outbox: maxEvents %d; it must be at least 1", c.MaxEvents)
	case c.MaxBytes < flow.MiB:
		return fmt.Errorf("outbox: maxBytes %s; it must be at least 1MiB", c.MaxBytes)
	case c.Reserve < 0 || c.Reserve > flow.GiB:
		return fmt.Errorf("outbox: reserve %s; it must lie between 0 and 1GiB", c.Reserve)
	case c.Remember < 1000:
		return fmt.Errorf("outbox: remember %d; it must be at least 1000, or a crash repeats what was sent", c.Remember)
	case c.Concurrency < 1 || c.Concurrency > 64:
		return fmt.Errorf("outbox: concurrency %d; it must lie between 1 and 64", c.Concurrency)
	}
	return nil
}

// retryDelays are the waits between attempts that Standard Webhooks 1.0.0 gives
// as its example; they add up to 75 h 35 min 5 s. Beyond the last it repeats.
var retryDelays = []time.Duration{5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour,
	10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour}

const (
	outboxScan      = 2 * time.Second  // how soon a replayed dead letter is noticed
	outboxThrottle  = time.Second      // the first pause of a target that failed; it doubles
	maxThrottle     = time.Minute      // the longest
	outageProbe     = 5 * time.Minute  // how often a target that is away is asked at least, whatever its events wait for
	deniedThrottle  = time.Minute      // the first pause of a target that does not accept our credentials; it doubles
	maxDenied       = 15 * time.Minute // the longest: as long as a new token may lie unused, once somebody has put it in
	outageSends     = 30               // an event that was sent so often waits its turn even after an outage
	shutdownGrace   = 5 * time.Second  // what attempts under way get when the service stops
	deadLetterRetry = 10 * time.Second // pause after a dead letter could not be written
	folderTick      = time.Second      // no file system in use stamps coarser
)

// Outbox keeps events for one target on disk until they are delivered, in order
// by key, or become dead letters. Its folder holds
//
//	queue/      files of events, one or more for each Put
//	dead/       dead letters, one file each
//	replay/     dead letters that are to be sent again
//	journal     what became of events: attempts, deliveries
//	reserve     disk space for bad times
//	lock        held by the process that has the outbox open
//
// Safe for concurrent use. Memory is bounded by the configuration: bodies stay on disk.
type Outbox struct {
	dir, target string
	cfg         OutboxConfig
	how         DeliveryConfig
	pace        [lanes]*rate.Limiter
	log         *slog.Logger
	reg         prometheus.Registerer
	met         *outboxMetrics
	clock       func() time.Time
	delays      []time.Duration // tests shorten them
	throttle    time.Duration   // likewise
	scan        time.Duration   // likewise
	write       func(name string, b []byte) error

	putting sync.Mutex // one Put at a time
	// counting is held shared from before a dead letter is written until it is counted, and alone
	// while all are counted, or one would be counted twice. It is taken before mu.
	counting sync.RWMutex

	mu         sync.Mutex
	lock       *os.File
	journal    *outboxJournal
	seq        uint64
	pending    map[string]*outboxEntry // by event id
	keys       map[string][]*outboxEntry
	due        [lanes]outboxHeap // the first of each key that is not on its way
	urgent     map[string]int    // by key: how many urgent events wait
	known      outboxMemory
	emptied    []*outboxFile   // all delivered, to be removed
	replaying  map[string]bool // files in replay/ that were taken up
	queueBytes int64
	deadCount  int
	deadBytes  int64
	deadSeen   time.Time // modification time of dead/ when it was counted
	inFlight   int
	full       bool
	closed     bool
	gone       string // why the target is disabled
	denied     bool   // the last attempt failed for want of credentials
	taken      uint64 // how many events were delivered
	flushing   int    // how many wait for everything to be sent: no batch waits for others meanwhile
	failures   int    // in a row
	failedID   string // the event that failed first of them
	outage     bool   // it is the target that fails, not the event
	failedFrom time.Time
	failedLast time.Time
	paused     time.Time     // nothing is sent before
	wake       chan struct{} // something may be due
	changed    chan struct{} // closed and replaced when the state changes
}

// outboxFile is a file that holds the bodies of one or more waiting events.
type outboxFile struct {
	path   string
	size   int64
	live   int
	replay bool // a dead letter sent again; its body is inside JSON
}

// outboxEntry is a waiting event, without its body.
type outboxEntry struct {
	id, key  string
	seq      uint64 // order over all
	time     flow.Time
	file     *outboxFile
	offset   int64
	size     int
	crc      uint32
	attempts int  // that count
	sends    int  // all, repeats after a restart or an outage included
	free     bool // the next failure does not count: the target just came back
	first    time.Time
	next     time.Time // by the schedule
	due      time.Time // next, or earlier if free
	last     *DeliveryError
	index    int // in the heap
	urgent   bool
	alone    bool // not in a batch: one with it was refused
	probe    bool // sent before its time, to see whether the target is back
	lane     int  // where its key was when it was last there
	// deniedAt is how many events had been delivered, and one, when it was first denied.
	deniedAt uint64
}

// The lanes: in the first one are keys of which an urgent event waits.
const (
	laneUrgent = iota
	laneOrdinary
	lanes
)

// reserved is how much of what may wait only urgent events may take.
func reserved[T int | int64](most T) T { return most / 16 }

type outboxHeap []*outboxEntry

func (h outboxHeap) Len() int { return len(h) }
func (h outboxHeap) Less(i, j int) bool {
	if !h[i].due.Equal(h[j].due) {
		return h[i].due.Before(h[j].due)
	}
	return h[i].seq < h[j].seq
}
func (h outboxHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i]; h[i].index, h[j].index = i, j }
func (h *outboxHeap) Push(x any) {
	e := x.(*outboxEntry)
	e.index = len(*h)
	*h = append(*h, e)
}

func (h *outboxHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	e.index = -1
	return e
}

// outboxMemory remembers the newest n ids that are done with.
type outboxMemory struct {
	max  int
	ids  map[string]struct{}
	ring []string
	next int
}

func (m *outboxMemory) add(id string) {
	if _, ok := m.ids[id]; ok {
		return
	}
	if len(m.ring) < m.max {
		m.ring = append(m.ring, id)
	} else {
		delete(m.ids, m.ring[m.next])
		m.ring[m.next] = id
		m.next = (m.next + 1) % m.max
	}
	m.ids[id] = struct{}{}
}

func (m *outboxMemory) has(id string) bool { _, ok := m.ids[id]; return ok }

// all lists the ids, oldest first.
func (m *outboxMemory) all() []string {
	return append(slices.Clone(m.ring[m.next:]), m.ring[:m.next]...)
}

type outboxMetrics struct {
	put, duplicate, held, delivered, dead, replayed, errors, corrupt prometheus.Counter
	gauges                                                           []prometheus.Collector
}

func newOutboxMetrics(o *Outbox) (*outboxMetrics, error) {
	labels := prometheus.Labels{"target": o.target}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_outbox_" + name, Help: help, ConstLabels: labels})
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "postern_outbox_" + name, Help: help, ConstLabels: labels}, func() float64 {
			o.mu.Lock()
			defer o.mu.Unlock()
			return f()
		})
	}
	flag := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	m := &outboxMetrics{
		put:       counter("put_total", "Events taken in."),
		duplicate: counter("duplicate_total", "Events put again and recognised by their id."),
		held:      counter("held_total", "Times Put refused for want of room, so that the pipeline held."),
		delivered: counter("delivered_total", "Events delivered."),
		dead:      counter("dead_total", "Events that became dead letters."),
		replayed:  counter("replayed_total", "Dead letters taken up again."),
		errors:    counter("disk_errors_total", "Errors of the disk under the outbox."),
		corrupt:   counter("corrupt_total", "Queue files or entries that were damaged and set aside."),
		gauges: []prometheus.Collector{
			gauge("events", "Events waiting.", func() float64 { return float64(len(o.pending)) }),
			gauge("dead_letters", "Dead letters.", func() float64 { return float64(o.deadCount) }),
			gauge("bytes", "Disk taken by waiting events and dead letters.", func() float64 { return float64(o.queueBytes + o.deadBytes) }),
			gauge("full", "1 while the last Put was refused for want of room.", func() float64 { return flag(o.full) }),
			gauge("disabled", "1 while the target is disabled because it said that it wants no more events (410 Gone).", func() float64 { return flag(o.gone != "") }),
			gauge("denied", "1 while the target does not accept our credentials.", func() float64 { return flag(o.denied) }),
			gauge("oldest_seconds", "Age of the event that has waited longest, since it was put in; 0 while none waits.", func() float64 {
				oldest := uint64(math.MaxUint64)
				for _, q := range o.keys { // by age, but for what was replayed
					oldest = min(oldest, q[0].seq)
				}
				if oldest == math.MaxUint64 {
					return 0
				}
				return max(o.clock().Sub(time.Unix(0, int64(oldest))).Seconds(), 0)
			}),
			gauge("failing_seconds", "For how long every attempt has failed; 0 while the target takes events.", func() float64 {
				if o.failures == 0 {
					return 0
				}
				return o.clock().Sub(o.failedFrom).Seconds()
			}),
		},
	}
	return m, registerCollectors(o.reg, m.collectors())
}

func (m *outboxMetrics) collectors() []prometheus.Collector {
	return append([]prometheus.Collector{m.put, m.duplicate, m.held, m.delivered, m.dead, m.replayed, m.errors, m.corrupt}, m.gauges...)
}

// OpenOutbox opens, or makes, the outbox of a target in the folder dir/target.
// An event that has failed how.MaxAttempts times becomes a dead letter. Everything
// that waited is due at once, without that counting as an attempt: people restart
// a service because they mended something. It fails if another process has the
// outbox open. log, reg and clock may be nil. [Outbox.Close] gives it up.
func OpenOutbox(dir, target string, how DeliveryConfig, cfg OutboxConfig, log *slog.Logger, reg prometheus.Registerer, clock func() time.Time) (*Outbox, error) {
	if err := validTargetName(target); err != nil {
		return nil, fmt.Errorf("outbox: %w", err)
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := how.Validate(); err != nil {
		return nil, fmt.Errorf("outbox %s: %w", target, err)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if clock == nil {
		clock = time.Now
	}
	o := &Outbox{
		dir: filepath.Join(dir, target), target: target, cfg: cfg, how: how,
		log: log.With("target", target), reg: reg, clock: clock, delays: retryDelays, throttle: outboxThrottle, scan: outboxScan, write: writeDurably,
		pending: map[string]*outboxEntry{}, replaying: map[string]bool{}, keys: map[string][]*outboxEntry{}, urgent: map[string]int{},
		known: outboxMemory{max: cfg.Remember, ids: map[string]struct{}{}},
		wake:  make(chan struct{}, 1), changed: make(chan struct{}),
	}
	for lane := range o.pace {
		o.pace[lane] = how.Rate.limiter()
	}
	var err error
	if o.met, err = newOutboxMetrics(o); err != nil {
		return nil, fmt.Errorf("outbox %s: %w", target, err)
	}
	if err := o.open(); err != nil {
		unregisterCollectors(o.reg, o.met.collectors())
		if o.lock != nil {
			o.lock.Close()
		}
		return nil, fmt.Errorf("outbox %s: %w", target, err)
	}
	return o, nil
}

func (o *Outbox) open() error {
	for _, d := range []string{o.dir, o.path(queueFolder), o.path(deadFolder), o.path(replayFolder)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	if err := errors.Join(syncDir(filepath.Dir(o.dir)), syncDir(o.dir)); err != nil {
		return err
	}
	lock, err := os.OpenFile(o.path("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	o.lock = lock
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("%s is in use by another process: %w", o.dir, err)
	}
	for _, d := range []string{queueFolder, deadFolder, replayFolder, ""} {
		stale, _ := filepath.Glob(o.path(d, "*.tmp")) // the pattern is sound
		for _, name := range stale {
			_ = os.Remove(name) // a crash left it half written
		}
	}
	now := o.clock()
	state, err := readOutbox(o.dir)
	if err != nil {
		return err
	}
	for _, c := range state.corrupt {
		o.met.corrupt.Inc()
		o.log.Error("outbox file damaged; what can be read of it is kept", "file", c.path, "error", c.err)
	}
	for _, id := range state.done {
		o.known.add(id)
	}
	o.seq = uint64(now.UnixNano())
	for _, f := range state.files {
		o.queueBytes += f.size
		if f.live == 0 {
			o.emptied = append(o.emptied, f)
		}
	}
	for _, e := range state.entries {
		e.due, e.free = now, true
		o.seq = max(o.seq, e.seq+1)
		o.add(e)
	}
	if o.journal, err = openOutboxJournal(o.path(journalFile), state.journalLines); err != nil {
		return err
	}
	o.scanReplay()
	o.scanDead()
	o.sweep()
	o.makeReserve()
	return nil
}

func (o *Outbox) path(elem ...string) string {
	return filepath.Join(append([]string{o.dir}, elem...)...)
}

// Close releases the folder. It must not be called while Run runs.
func (o *Outbox) Close() error {
	o.sweep()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil
	}
	o.closed = true
	unregisterCollectors(o.reg, o.met.collectors())
	return errors.Join(o.journal.close(), o.lock.Close())
}

// add takes an entry into the queue of its key, by sequence; the caller holds mu
// or is alone.
func (o *Outbox) add(e *outboxEntry) {
	e.index = -1
	o.pending[e.id] = e
	q := o.keys[e.key]
	at := len(q)
	for at > 0 && q[at-1].seq > e.seq && (at > 1 || q[0].index >= 0) { // the first stays while it is on its way
		at--
	}
	if e.urgent {
		o.urgent[e.key]++
	}
	hurry := len(q) > 0 && q[0].index >= 0 && q[0].lane != o.lane(e.key)
	if len(q) > 0 && (at == 0 || hurry) {
		heap.Remove(&o.due[q[0].lane], q[0].index)
	}
	o.keys[e.key] = slices.Insert(q, at, e)
	if at == 0 || hurry {
		o.queue(o.keys[e.key][0])
	}
}

// lane is that of a key; the caller holds mu or is alone.
func (o *Outbox) lane(key string) int {
	if o.urgent[key] > 0 {
		return laneUrgent
	}
	return laneOrdinary
}

// queue has the first entry of a key wait for its turn; the caller holds mu or is alone.
func (o *Outbox) queue(e *outboxEntry) {
	e.lane = o.lane(e.key)
	heap.Push(&o.due[e.lane], e)
}

// leave takes an entry that is done with out of the queue; the caller holds mu
// and the entry is on its way.
func (o *Outbox) leave(e *outboxEntry) {
	delete(o.pending, e.id)
	o.known.add(e.id)
	if e.urgent {
		if o.urgent[e.key]--; o.urgent[e.key] == 0 {
			delete(o.urgent, e.key)
		}
	}
	if q := o.keys[e.key][1:]; len(q) == 0 {
		delete(o.keys, e.key)
	} else {
		o.keys[e.key] = q
		o.queue(q[0])
	}
	if e.file.live--; e.file.live == 0 && e.file.path != "" {
		o.emptied = append(o.emptied, e.file)
	}
}

// stir wakes the scheduler and whoever waits for a change; the caller holds mu.
func (o *Outbox) stir() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
	close(o.changed)
	o.changed = make(chan struct{})
}

// Put takes events in. When it returns nil they survive a crash of the process
// and of the machine. An event whose id is waiting, dead or among the remembered
// delivered ones is passed over, so putting the same again is harmless. If they
// do not all fit, those that fit are taken, in order, urgent ones also from what is
// reserved for them, and the error is ErrOutboxFull: the caller holds and puts them all again later. After any other
// error it does the same; only an event that breaks the rules of [Event] stays
// refused, and then none is taken.
func (o *Outbox) Put(events []Event) error {
	for i := range events {
		if err := events[i].Validate(); err != nil {
			return fmt.Errorf("outbox %s: %w", o.target, err)
		}
	}
	o.putting.Lock()
	defer o.putting.Unlock()

	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		return fmt.Errorf("outbox %s: %w", o.target, os.ErrClosed)
	}
	if o.queueBytes+o.deadBytes > int64(o.cfg.MaxBytes)/2 {
		o.sweepLocked() // files whose events are delivered still take room
	}
	room, bytes := o.cfg.MaxEvents-len(o.pending)-o.deadCount, int64(o.cfg.MaxBytes)-o.queueBytes-o.deadBytes
	fresh, seen, full := make([]Event, 0, len(events)), map[string]bool{}, false
	hurry, behind := map[string]bool{}, map[string]bool{} // keys: urgent ones, and those of which one did not fit
	for i := range events {
		if events[i].Urgent {
			hurry[events[i].Key] = true
		}
	}
	for _, e := range events {
		if _, waits := o.pending[e.ID]; waits || seen[e.ID] || o.known.has(e.ID) {
			o.met.duplicate.Inc()
			continue
		}
		if behind[e.Key] {
			continue
		}
		size, left, bytesLeft := int64(len(e.Body)+outboxOverhead(&e)), room, bytes
		if !hurry[e.Key] && o.urgent[e.Key] == 0 {
			left, bytesLeft = room-reserved(o.cfg.MaxEvents), bytes-reserved(int64(o.cfg.MaxBytes))
			if full {
				continue
			}
		}
		if left < 1 || bytesLeft < size {
			full, behind[e.Key] = true, true
			continue
		}
		room, bytes = room-1, bytes-size
		seen[e.ID] = true
		fresh = append(fresh, e)
	}
	seq := max(o.seq, uint64(o.clock().UnixNano()))
	o.seq = seq + uint64(len(fresh))
	waiting, dead := len(o.pending), o.deadCount
	o.mu.Unlock()

	for len(fresh) > 0 {
		n := 0
		for size := 0; n < len(fresh) && n < 512 && size < 1<<20; n++ { // a file stays until its last event is done with
			size += len(fresh[n].Body)
		}
		if err := o.putFile(seq, fresh[:n]); err != nil {
			return fmt.Errorf("outbox %s: %w", o.target, err)
		}
		seq, fresh = seq+uint64(n), fresh[n:]
	}
	o.mu.Lock()
	began := full && !o.full
	o.full = full
	o.mu.Unlock()
	if !full {
		return nil
	}
	o.met.held.Inc()
	if began {
		o.log.Error("outbox full: the pipeline holds until the target takes events or dead letters are replayed or dropped",
			"waiting", waiting, "dead", dead, "maxEvents", o.cfg.MaxEvents, "maxBytes", o.cfg.MaxBytes.String())
	}
	return fmt.Errorf("outbox %s: %w: %d waiting, %d dead letters; the target must take events, or dead letters be replayed or dropped", o.target, ErrOutboxFull, waiting, dead)
}

func (o *Outbox) putFile(seq uint64, events []Event) error {
	b, entries := encodeQueueFile(seq, events)
	name := o.path(queueFolder, queueFileName(seq))
	if err := o.writeOrReserve(name, b); err != nil {
		return err
	}
	f := &outboxFile{path: name, size: int64(len(b)), live: len(entries)}
	now := o.clock()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.queueBytes += f.size
	for _, e := range entries {
		e.file, e.due, e.next = f, now, now
		o.add(e)
	}
	o.met.put.Add(float64(len(entries)))
	o.stir()
	return nil
}

// writeOrReserve writes a file durably; on a full disk it gives the reserve up.
func (o *Outbox) writeOrReserve(name string, b []byte) error {
	err := o.write(name, b)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		if gone := os.Remove(o.path(reserveFile)); gone == nil {
			o.log.Error("disk full: the outbox gives its reserve up", "reserve", o.cfg.Reserve.String())
			_ = syncDir(o.dir)
			err = o.write(name, b)
		}
	}
	if err != nil {
		o.met.errors.Inc()
	}
	return err
}

// makeReserve lays the reserve file down if it is not there; without room it is
// tried again at the next opening.
func (o *Outbox) makeReserve() {
	if info, err := os.Stat(o.path(reserveFile)); err == nil && info.Size() == int64(o.cfg.Reserve) {
		return
	}
	_ = os.Remove(o.path(reserveFile))
	if o.cfg.Reserve == 0 {
		return
	}
	// Random bytes, since file systems may store zeros or repetition without taking space.
	var seed [32]byte
	src, b := rand.NewChaCha8(seed), make([]byte, o.cfg.Reserve)
	_, _ = src.Read(b) // documented never to fail
	if err := writeDurably(o.path(reserveFile), b); err != nil {
		o.met.errors.Inc()
		o.log.Warn("no room for the outbox reserve", "reserve", o.cfg.Reserve.String(), "error", err)
	}
}

// Depth is how many events wait and how many dead letters there are.
func (o *Outbox) Depth() (waiting, dead int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.pending), o.deadCount
}

// Flush waits until nothing is on its way and nothing is due: every event that
// still waits does so for its next attempt, or behind such a one. It needs Run to
// be running.
func (o *Outbox) Flush(ctx context.Context) error {
	o.mu.Lock()
	o.flushing++
	o.stir()
	o.mu.Unlock()
	defer func() {
		o.mu.Lock()
		o.flushing--
		o.mu.Unlock()
	}()
	for {
		o.mu.Lock()
		settled := o.inFlight == 0
		for _, l := range o.due {
			settled = settled && (len(l) == 0 || o.gone != "" || l[0].due.After(o.clock()))
		}
		changed := o.changed
		o.mu.Unlock()
		if settled {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Run sends events with s until ctx ends; then attempts under way get five
// seconds, and what is not delivered stays. It returns nil. One Run at a time.
func (o *Outbox) Run(ctx context.Context, s Sender) error {
	most := Batch{Events: 1}
	if b, ok := s.(BatchSender); ok {
		most = b.Batch()
		most.Events = max(most.Events, 1)
	}
	sending, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var workers sync.WaitGroup
	defer func() {
		grace := time.AfterFunc(shutdownGrace, stop)
		workers.Wait()
		grace.Stop()
		o.sweep()
	}()
	scan := time.NewTicker(o.scan)
	defer scan.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		o.mu.Lock()
		wait := o.dispatch(most, func(batch []*outboxEntry) {
			workers.Go(func() { o.attempt(sending, s, batch) })
		})
		o.mu.Unlock()
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return nil
		case <-o.wake:
		case <-timer.C:
		case <-scan.C:
			o.scanReplay()
			o.scanDead()
			o.sweep()
		}
	}
}

// dispatch starts what is due and says how long until more will be; the caller
// holds mu. A target that failed gets one attempt at a time.
func (o *Outbox) dispatch(most Batch, start func([]*outboxEntry)) time.Duration {
	now, wait := o.clock(), time.Hour // a change wakes the loop earlier
	for lane := range o.due {
		due, limit := &o.due[lane], o.cfg.Concurrency
		if lane == laneUrgent {
			limit++ // one more, so that it never waits for others to come back
		}
		if o.failures > 0 {
			limit = 1
		}
		for o.gone == "" && o.inFlight < limit && len(*due) > 0 {
			e := (*due)[0]
			at := e.due
			if lane == laneOrdinary && e.sends == 0 && len(*due) < most.Events && o.flushing == 0 {
				at = at.Add(most.Wait)
			}
			if at.Before(o.paused) {
				at = o.paused
			}
			if at.After(now) {
				wait = min(wait, at.Sub(now))
				break
			}
			allowed, next := affordable(o.pace[lane], now)
			if allowed == 0 {
				wait = min(wait, next)
				break
			}
			batch := []*outboxEntry{heap.Pop(due).(*outboxEntry)}
			for len(batch) < min(most.Events, allowed) && !e.alone && len(*due) > 0 && !(*due)[0].alone && !(*due)[0].due.After(now) {
				batch = append(batch, heap.Pop(due).(*outboxEntry))
			}
			o.pace[lane].AllowN(now, len(batch))
			o.inFlight++
			start(batch)
		}
	}
	if o.outage && o.gone == "" && o.inFlight == 0 {
		at := o.failedLast.Add(outageProbe)
		if at.Before(o.paused) {
			at = o.paused
		}
		if at.After(now) {
			return min(wait, at.Sub(now))
		}
		for lane := range o.due {
			if due := &o.due[lane]; len(*due) > 0 {
				e := heap.Pop(due).(*outboxEntry)
				e.probe = true
				o.inFlight++
				start([]*outboxEntry{e})
				break
			}
		}
	}
	return wait
}

// affordable says how many events a limit lets through now, and if none, in how long one.
func affordable(l *rate.Limiter, now time.Time) (n int, next time.Duration) {
	tokens := l.TokensAt(now)
	if tokens >= 1 {
		return int(min(tokens, math.MaxInt32)), 0
	}
	return 0, time.Duration((1-tokens)/float64(l.Limit())*float64(time.Second)) + time.Millisecond
}

// attempt sends a batch and records how it went.
func (o *Outbox) attempt(ctx context.Context, s Sender, batch []*outboxEntry) {
	defer func() {
		o.mu.Lock()
		o.inFlight--
		o.stir()
		o.mu.Unlock()
	}()
	events, sent := make([]*Event, 0, len(batch)), make([]*outboxEntry, 0, len(batch))
	for _, e := range batch {
		body, err := e.read()
		if err != nil {
			o.met.corrupt.Inc()
			o.log.Error("outbox entry unreadable; it becomes a dead letter without its body", "event", e.id, "file", e.file.path, "error", err)
			o.finish(e, nil, &DeliveryError{Err: fmt.Errorf("its body could not be read back: %w", err)})
			continue
		}
		events, sent = append(events, &Event{ID: e.id, Key: e.key, Body: body, Time: e.time, Urgent: e.urgent}), append(sent, e)
	}
	if len(events) == 0 {
		return
	}
	errs := send(ctx, s, events)
	if ctx.Err() != nil && slices.ContainsFunc(errs, func(d *DeliveryError) bool { return d != nil }) {
		// The service stops: no fault of the target. What it took is noted, the rest stays.
		for i, e := range sent {
			if errs[i] == nil {
				o.finish(e, events[i].Body, nil)
				continue
			}
			o.mu.Lock()
			o.queue(e)
			o.mu.Unlock()
		}
		return
	}
	o.judge(sent, errs)
	for i, e := range sent {
		o.finish(e, events[i].Body, errs[i])
	}
}

// send makes one attempt and gives the error of each event; one error for all of several
// events that is not to be tried again is told with Retry, and the events go alone from now on.
func send(ctx context.Context, s Sender, events []*Event) []*DeliveryError {
	var errs []error
	if b, ok := s.(BatchSender); ok && len(events) > 1 {
		errs = b.SendBatch(ctx, events)
	} else {
		errs = []error{s.Send(ctx, events[0])}
	}
	out := make([]*DeliveryError, len(events))
	for i := range out {
		err := errs[min(i, len(errs)-1)]
		if err != nil && !errors.As(err, &out[i]) {
			out[i] = &DeliveryError{Retry: true, Err: err}
		}
		if len(errs) == 1 && len(events) > 1 && out[i] != nil && !out[i].Retry && !out[i].Gone && !out[i].Denied {
			d := *out[i]
			d.apart = true
			out[i] = &d
		}
	}
	return out
}

// judge takes from an attempt what it says about the target.
func (o *Outbox) judge(sent []*outboxEntry, errs []*DeliveryError) {
	now := o.clock()
	o.mu.Lock()
	defer o.mu.Unlock()
	var worst *DeliveryError
	failed := 0
	for i, d := range errs {
		if d == nil {
			continue
		}
		failed++
		if worst == nil || d.After > worst.After || d.Denied && !worst.Denied {
			worst = d
		}
		if d.Gone && o.gone == "" {
			o.gone = d.Error()
			o.log.Error("target disabled until a restart or another configuration; its events are kept", "event", sent[i].id, "error", d.Err)
		}
	}
	if failed < len(sent) {
		o.taken += uint64(len(sent) - failed)
		o.succeeded(now)
	}
	switch {
	case worst == nil || worst.Gone || worst.apart:
	case failed == len(sent):
		o.failed(now, sent, worst)
	case worst.Status == http.StatusTooManyRequests || worst.After > 0: // it took some and is full
		o.paused = now.Add(max(outboxJitter(o.throttle), worst.After))
	}
}

// finish records how an attempt went; d is nil if it was delivered.
func (o *Outbox) finish(e *outboxEntry, body []byte, d *DeliveryError) {
	now := o.clock()
	o.mu.Lock()
	defer o.mu.Unlock()
	if e.probe {
		if e.probe = false; d != nil && d.Retry && !d.Gone { // it still is: the event waits as it did
			o.queue(e)
			return
		}
	}
	e.sends++
	if e.first.IsZero() {
		e.first = now
	}
	if d == nil {
		o.record(journalLine{Done: e.id})
		o.leave(e)
		o.met.delivered.Inc()
		return
	}
	e.last = d
	if d.Gone {
		o.queue(e)
		return
	}
	if d.apart {
		e.alone, e.due = true, now
		o.queue(e)
		return
	}
	if d.Denied && (e.deniedAt == 0 || e.deniedAt == o.taken+1) {
		e.deniedAt = o.taken + 1
		e.due = now.Add(d.After)
		if e.due.Before(o.paused) {
			e.due = o.paused // behind others, so that another asks next
		}
		o.queue(e)
		return
	}
	if !e.free || !e.next.After(now) {
		e.attempts++
		e.next = now.Add(max(outboxJitter(o.delays[min(e.attempts, len(o.delays))-1]), d.After))
	}
	e.free = false
	e.due = e.next
	if at := now.Add(d.After); e.due.Before(at) {
		e.due = at
	}
	if d.Retry && e.attempts < o.how.MaxAttempts {
		o.record(journalLine{Tried: e.id, Attempts: e.attempts, Sends: e.sends, First: e.first.UnixMilli(), Next: e.next.UnixMilli(), Status: d.Status, Error: cutText(d.Error(), 300)})
		o.queue(e)
		o.log.Warn("event not delivered; it is tried again", "event", e.id, "attempt", e.attempts, "of", o.how.MaxAttempts,
			"next", e.due.UTC(), "status", d.Status, "error", d.Err, "response", d.Response)
		return
	}
	letter := e.letter(o.target, body, now)
	o.mu.Unlock() // the entry is on its way, so nobody else touches it
	o.counting.RLock()
	defer o.counting.RUnlock()
	size, err := o.writeDead(&letter, e.file)
	o.mu.Lock()
	if err != nil {
		o.log.Error("dead letter not written; the event stays in the queue", "event", e.id, "error", err)
		e.attempts = max(e.attempts-1, 0)
		e.due = now.Add(deadLetterRetry)
		o.queue(e)
		return
	}
	o.record(journalLine{Dead: e.id})
	if e.file.replay { // the file itself went to dead/
		delete(o.replaying, e.file.path)
		o.queueBytes -= e.file.size
		e.file.path = ""
	}
	o.leave(e)
	o.deadCount++
	o.deadBytes += size
	o.met.dead.Inc()
	o.log.Error("event is a dead letter now", "event", e.id, "attempts", e.attempts, "reason", letter.Reason, "status", d.Status)
}

// failed throttles the target: the pause doubles with each failure in a row and
// is at least what the target asked for. The caller holds mu.
func (o *Outbox) failed(now time.Time, sent []*outboxEntry, d *DeliveryError) {
	if o.failures == 0 {
		o.failedFrom, o.failedID = now, sent[0].id
	}
	o.failedLast = now
	// One event that fails may be at fault itself, unless nobody looked at it: there was no answer, or one
	// that speaks of the moment.
	unseen := d.Status == 0 || d.Status == http.StatusTooManyRequests || d.Status >= http.StatusBadGateway && d.Status <= http.StatusGatewayTimeout
	o.outage = o.outage || unseen || len(sent) > 1 || sent[0].id != o.failedID
	o.failures++
	pause := min(o.throttle<<min(o.failures-1, 10), maxThrottle)
	if d.Denied {
		pause = min(deniedThrottle<<min(o.failures-1, 10), maxDenied)
		if !o.denied {
			o.log.Error("the target does not accept our credentials; its events wait, and it is asked again now and then",
				"status", d.Status, "error", d.Err, "response", d.Response)
		}
	}
	o.denied = d.Denied
	if at := now.Add(max(outboxJitter(pause), d.After)); at.After(o.paused) {
		o.paused = at
	}
}

// succeeded ends the throttling. After an outage every event that waits for its next attempt gets one now that does not
// count: it failed for no fault of its own, and the schedule may have it wait for
// another day. The caller holds mu.
func (o *Outbox) succeeded(now time.Time) {
	outage := o.outage
	o.failures, o.paused, o.outage, o.denied = 0, time.Time{}, false, false
	if !outage {
		return
	}
	for lane := range o.due {
		for _, e := range o.due[lane] {
			if e.due.After(now) && e.sends < outageSends {
				e.due, e.free = now, true
			}
		}
		heap.Init(&o.due[lane])
	}
	o.log.Info("target takes events again", "after", now.Sub(o.failedFrom).Round(time.Second))
}

// outboxJitter adds up to a fifth, so that what failed together does not come back
// together. It only adds: a receiver may be away for as long as the schedule says.
func outboxJitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (1 + 0.2*rand.Float64()))
}

// record appends to the journal; the caller holds mu. What is lost with it is
// only knowledge of attempts and deliveries: events are then sent once more.
func (o *Outbox) record(l journalLine) {
	if err := o.journal.append(l); err != nil {
		o.met.errors.Inc()
		o.log.Error("outbox journal not written; after a crash events may be sent again", "error", err)
	}
}

// sweep removes files whose events are all done with, after the journal that says
// so is durable, and rewrites the journal when most of it is history.
func (o *Outbox) sweep() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sweepLocked()
}

func (o *Outbox) sweepLocked() {
	files := o.emptied
	if o.closed || len(files) == 0 {
		return
	}
	o.emptied = nil
	var err error
	if live := len(o.known.ring) + len(o.pending); o.journal.lines > 2*live+10_000 {
		err = o.journal.rewrite(o.known.all(), o.pending)
	} else {
		err = o.journal.sync()
	}
	if err != nil {
		o.met.errors.Inc()
		o.log.Error("outbox journal not made durable; delivered events stay on disk", "error", err)
		o.emptied = files
		return
	}
	for _, f := range files {
		if err := os.Remove(f.path); err != nil && !errors.Is(err, os.ErrNotExist) {
			o.met.errors.Inc()
			o.log.Error("delivered events not removed", "file", f.path, "error", err)
			o.emptied = append(o.emptied, f)
			continue
		}
		o.queueBytes -= f.size
		delete(o.replaying, f.path)
	}
}
