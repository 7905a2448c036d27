package ingest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postern/postern/flow"
)

// SpoolConfig says how much the spool holds and how it writes.
type SpoolConfig struct {
	// MaxBytes is how much disk the spool may take. When it is full, the newest
	// datagrams are refused (spool_full); a small part is kept free for ticks,
	// policy changes and the count of what was refused.
	MaxBytes flow.Size `yaml:"maxBytes"`
	// SegmentSize is the size at which a segment is sealed and handed on.
	SegmentSize flow.Size `yaml:"segmentSize"`
	// SegmentAge is the age at which a segment is sealed and handed on, however
	// small. It is most of the delay between a datagram and its row.
	SegmentAge time.Duration `yaml:"segmentAge"`
	// SyncEvery is how often what was written is made durable against loss of
	// power. 0 leaves it to the operating system; kill -9 loses nothing either way.
	SyncEvery time.Duration `yaml:"syncEvery"`
	// ChunkRows is how many rows an insert of a segment's flows holds. It is kept
	// in each segment, so that inserts repeat the same whatever is set later.
	ChunkRows int `yaml:"chunkRows"`
	// MaxExporters is how many exporters the spool keeps count of at a time.
	// Datagrams of further ones are refused (table_full).
	MaxExporters int `yaml:"maxExporters"`
}

// DefaultSpoolConfig gives the defaults.
func DefaultSpoolConfig() SpoolConfig {
	return SpoolConfig{
		// At 2,000 datagrams/s (56,000 flows/s) of 1,400 bytes, 4 GiB hold 25 minutes
		// of an absent ClickHouse.
		MaxBytes: 4 * flow.GiB,
		// 2,900 datagrams of 1,400 bytes, some 80,000 flows: one good insert.
		SegmentSize: 4 * flow.MiB,
		// The bound of what SEMANTICS allows to be on its way (maxUnspooled).
		SegmentAge: time.Second,
		SyncEvery:  time.Second,
		// 64 Ki rows: one insert for a usual segment, two for a dense one.
		ChunkRows: 1 << 16,
		// With 1,024 segments of 4 MiB and every exporter in each, 16 Ki exporters
		// would count in 16 Ki × 1 Ki × 16 bytes = 256 MiB; but 2,900 datagrams have
		// at most 2,900 exporters, so 48 MiB at worst.
		MaxExporters: 1 << 14,
	}
}

// Validate says what is wrong with the configuration.
func (c *SpoolConfig) Validate() error {
	switch {
	case c.SegmentSize < 128*flow.KiB || c.SegmentSize > 256*flow.MiB:
		return fmt.Errorf("segmentSize is %v; it must be between 128KiB (one datagram of any size) and 256MiB (one segment is read into memory)", c.SegmentSize)
	case c.MaxBytes < 4*c.SegmentSize:
		return fmt.Errorf("maxBytes is %v; it must be at least four segments, %v", c.MaxBytes, 4*c.SegmentSize)
	case c.SegmentAge < 10*time.Millisecond || c.SegmentAge > time.Minute:
		return fmt.Errorf("segmentAge is %v; it must be between 10ms and 1m", c.SegmentAge)
	case c.SyncEvery < 0 || c.SyncEvery > time.Minute:
		return fmt.Errorf("syncEvery is %v; it must be between 0 (left to the operating system) and 1m", c.SyncEvery)
	case c.ChunkRows < 1 || c.ChunkRows > 1<<24:
		return fmt.Errorf("chunkRows is %d; it must be between 1 and %d", c.ChunkRows, 1<<24)
	case c.MaxExporters < 1 || c.MaxExporters > 1<<20:
		return fmt.Errorf("maxExporters is %d; it must be between 1 and %d", c.MaxExporters, 1<<20)
	}
	return nil
}

// SpoolOptions is what the spool needs from outside.
type SpoolOptions struct {
	Clock      func() flow.Time      // required: the injected clock
	Logger     *slog.Logger          // nil: silent
	Registerer prometheus.Registerer // nil: no metrics
}

// ErrSpoolLocked says that another process has the directory.
var ErrSpoolLocked = errors.New("another process uses this spool")

// ErrSpoolNotWritten says that a tick or a policy change did not reach the disk.
var ErrSpoolNotWritten = errors.New("the spool has no room or cannot write")

const (
	segmentSuffix = ".seg"
	badSuffix     = ".bad" // added to the name of a segment without a readable header

	// maxRefusedExporters bounds how many exporters the refusals of one segment are
	// told apart by; the rest counts under the zero address.
	maxRefusedExporters = 1024
	// maxWaiting is how many sealed segments may wait for the reader before age
	// alone no longer seals: with the reader behind, small segments would only
	// make more files and come no sooner.
	maxWaiting = 16
	// logEvery is how often the same trouble is logged.
	logEvery = 10 * time.Second
)

// Spool is the local log between the sockets and the pipeline: every datagram is
// appended to a file before anything is made of it, and stays until the pipeline
// has written a checkpoint that reflects it.
//
// What Append returned for is in the kernel's hands and survives kill -9; loss of
// power costs what was not yet synced (SyncEvery). A segment is handed to the
// reader only once it is durable, so that its number, which is part of
// deduplication tokens, is never given to other contents.
//
// Append, AppendLines, Sync, Mark, Refuse, Tick, Policy, Counts and Remove are safe for concurrent use.
// Next and Seek belong to one consumer.
type Spool struct {
	dir     string
	cfg     SpoolConfig
	clock   func() flow.Time
	log     *slog.Logger
	reg     prometheus.Registerer
	metrics *spoolMetrics
	lock    *os.File
	id      SpoolID
	reserve int64

	wake  chan struct{} // something was sealed: sync it
	ready chan struct{} // something may be read

	mu        sync.Mutex
	segments  []*segmentFile // ascending, the last one is open
	bytes     int64          // of all segments
	exporters map[flow.Addr]*spoolExporter
	touched   []*spoolExporter // with datagrams in the open segment
	index     uint32           // datagrams in the open segment
	seed      uint32           // of the open segment
	pending   map[flow.Addr]*flow.Rejected
	marks     markBook
	buf       []byte           // entries not yet written, only within a call
	staged    []*spoolExporter // the exporters of the datagrams in buf
	stopped   bool
	closed    bool
	dirty     bool // the open segment has what was not synced
	troubleAt flow.Time
	fullAt    flow.Time

	syncing sync.Mutex // held while files are made durable; before mu

	cursor  uint64 // the last segment given out by Next, or sought
	segment Segment
}

type spoolExporter struct {
	addr   flow.Addr
	refs   int    // sealed segments that count it
	active uint64 // datagrams in the open segment
}

type exporterCount struct {
	exporter  *spoolExporter
	datagrams uint64
}

// segmentFile is what is known of a segment on disk.
type segmentFile struct {
	segmentHeader
	path    string
	size    int64
	oldest  flow.Time // of its first entry
	entries bool
	counts  []exporterCount // sealed only
	refused map[flow.Addr]*flow.Rejected
	lines   map[flow.Addr]uint64 // of logs, by who sent them
	marks   []keptMark
	file    *os.File // open until sealed and synced
	sealed  bool
	synced  bool
}

// OpenSpool opens the spool in dir, or makes one. It reads what a former process
// left, cuts what that process had not finished writing, and seals its last
// segment. It fails with [ErrSpoolLocked] if another process has the directory.
func OpenSpool(dir string, cfg SpoolConfig, opts SpoolOptions) (*Spool, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	if opts.Clock == nil {
		return nil, errors.New("spool: no clock given")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	if err := lockFile(lock); err != nil {
		lock.Close()
		return nil, fmt.Errorf("spool %s: %w (%w)", dir, ErrSpoolLocked, err)
	}
	s := &Spool{
		dir: dir, cfg: cfg, clock: opts.Clock, log: opts.Logger, reg: opts.Registerer, lock: lock,
		reserve:   min(int64(cfg.MaxBytes)/16, 4<<20),
		wake:      make(chan struct{}, 1),
		ready:     make(chan struct{}, 1),
		exporters: map[flow.Addr]*spoolExporter{},
		pending:   map[flow.Addr]*flow.Rejected{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.metrics = newSpoolMetrics(s)
	if err := s.load(); err != nil {
		s.closeFiles()
		return nil, fmt.Errorf("spool %s: %w", dir, err)
	}
	if err := s.metrics.register(s.reg); err != nil {
		s.closeFiles()
		return nil, fmt.Errorf("spool: %w", err)
	}
	return s, nil
}

// load reads the directory and opens a new segment behind what it finds.
func (s *Spool) load() error {
	names, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	if err := s.marks.load(s.dir); err != nil {
		return err
	}
	var seqs []uint64
	var last uint64
	for _, n := range names {
		text, bad := strings.CutSuffix(n.Name(), badSuffix)
		text, ok := strings.CutSuffix(text, segmentSuffix)
		seq, err := strconv.ParseUint(text, 10, 64)
		if !ok || err != nil || n.IsDir() {
			continue
		}
		last = max(last, seq)
		if !bad {
			seqs = append(seqs, seq)
		}
	}
	slices.Sort(seqs)
	var (
		buf      []byte
		position uint64
		known    bool // position follows from what was read before
	)
	for _, seq := range seqs {
		g := &segmentFile{path: s.path(seq), sealed: true, synced: true}
		g.seq = seq
		if buf, err = readSegmentFile(g.path, buf); err != nil {
			return err
		}
		h, err := parseSegmentHeader(buf)
		if errors.Is(err, errSegmentVersion) {
			return fmt.Errorf("%s: %w; let the program that wrote it finish it, or move it away", g.path, err)
		}
		if err != nil || h.seq != seq {
			if err := s.setAside(g.path, len(buf)); err != nil {
				return err
			}
			// Nobody knows how many datagrams it held; positions must not repeat, so
			// room is left for as many as can have been.
			if len(buf) > segmentHeaderLen {
				position += uint64(len(buf) / entryHeaderLen)
				known = false
			}
			continue
		}
		if len(s.segments) > 0 && h.id != s.id {
			return fmt.Errorf("%s belongs to another spool (id %v, the segments before have %v); move one of the two away", g.path, h.id, s.id)
		}
		g.segmentHeader, s.id = h, h.id
		if known && h.first > position {
			s.metrics.lost.Add(float64(h.first - position))
			s.log.Error("spool: datagrams before this segment are lost", "segment", seq, "datagrams", h.first-position)
		}
		if err := s.account(g, buf); err != nil {
			return err
		}
		position, known = g.first+uint64(s.index), true
		s.segments = append(s.segments, g)
		s.bytes += g.size
	}
	if len(s.segments) == 0 {
		if _, err := rand.Read(s.id[:]); err != nil {
			return err
		}
		position = 0
	}
	if err := s.create(last+1, position); err != nil {
		if len(s.segments) == 0 {
			return err
		}
		// A full disk must not keep the service from reading what fills it. The file
		// is made with the first write that finds room.
		s.trouble(err)
		s.begin(s.newSegment(last+1, position))
		return nil
	}
	// A segment without entries says nothing. It goes only now that the number
	// behind it stands on the disk.
	for i := 0; i < len(s.segments)-1; {
		if s.segments[i].entries {
			i++
			continue
		}
		if err := s.removeAt(i); err != nil {
			return err
		}
	}
	return syncDir(s.dir)
}

// account fills g from the contents of its file and cuts what is torn. s.index is
// left at the number of datagrams.
func (s *Spool) account(g *segmentFile, buf []byte) error {
	g.size = int64(len(buf))
	var group []Lines // of which the last has not come yet
	end, datagrams, d := scanSegment(&g.segmentHeader, buf, func(e *Entry, _ []byte) {
		if e.Kind != EntryLines {
			group = group[:0]
		}
		if !g.entries {
			g.entries, g.oldest = true, e.Time
		}
		switch e.Kind {
		case EntryDatagram:
			s.count(s.exporter(e.Exporter))
		case EntryRefused:
			if int(e.Reason) < len(flow.Rejected{}) {
				addRefused(&g.refused, e.Exporter, e.Reason, e.Count)
			}
		case EntryLines:
			if l, ok := e.Lines(); ok {
				if group = append(group, l); !l.More {
					for i := range group {
						s.noteLines(g, &group[i])
					}
					group = group[:0]
				}
			}
		}
	})
	s.index = datagrams
	s.settle(g)
	if d.middle > 0 {
		s.metrics.corruptBytes.Add(float64(d.middle))
		s.metrics.lost.Add(float64(d.lost))
		s.log.Error("spool: damaged segment, what can be read of it is kept", "segment", g.seq, "bytes", d.middle, "datagrams", d.lost)
	}
	f, err := os.OpenFile(g.path, os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if d.tail > 0 {
		s.metrics.tornBytes.Add(float64(d.tail))
		s.log.Warn("spool: the end of a segment was not finished", "segment", g.seq, "bytes", d.tail)
		if !d.gaveUp {
			if err := f.Truncate(int64(end)); err != nil {
				return err
			}
			g.size = int64(end)
		}
	}
	// What kill -9 left in the page cache becomes durable before it is given out.
	if s.cfg.SyncEvery > 0 {
		return syncData(f)
	}
	return nil
}

// setAside takes a file without a readable header out of the way.
func (s *Spool) setAside(path string, size int) error {
	if size <= segmentHeaderLen {
		// A crash between making the file and writing its header: nothing was in it.
		s.metrics.tornBytes.Add(float64(size))
		return os.Remove(path)
	}
	s.metrics.corruptBytes.Add(float64(size))
	s.log.Error("spool: a segment has no readable header and is set aside", "file", path+badSuffix, "bytes", size)
	return os.Rename(path, path+badSuffix)
}

func readSegmentFile(path string, buf []byte) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return buf[:0], err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return buf[:0], err
	}
	size := int(min(info.Size(), maxSegment))
	buf = slices.Grow(buf[:0], size)[:size]
	n, err := io.ReadFull(f, buf)
	buf = buf[:n]
	// A bad place on the disk is damage like any other: what was read before it counts.
	if err != nil && n == 0 && size > 0 || errors.Is(err, os.ErrPermission) {
		return buf, fmt.Errorf("%s: %w", path, err)
	}
	return buf, nil
}

func (s *Spool) path(seq uint64) string {
	return filepath.Join(s.dir, fmt.Sprintf("%020d%s", seq, segmentSuffix))
}

// create opens a new segment, which becomes the open one.
func (s *Spool) create(seq, first uint64) error {
	g := s.newSegment(seq, first)
	if err := s.makeFile(g); err != nil {
		return err
	}
	s.begin(g)
	return nil
}

func (s *Spool) newSegment(seq, first uint64) *segmentFile {
	g := &segmentFile{path: s.path(seq), size: segmentHeaderLen}
	g.segmentHeader = segmentHeader{id: s.id, seq: seq, first: first, created: s.clock(), chunkRows: uint32(s.cfg.ChunkRows)}
	return g
}

// begin makes g the open segment.
func (s *Spool) begin(g *segmentFile) {
	s.segments = append(s.segments, g)
	s.index, s.seed = 0, g.segmentHeader.seed()
}

// makeFile makes the file of a new segment, with its header.
func (s *Spool) makeFile(g *segmentFile) error {
	f, err := os.OpenFile(g.path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(g.segmentHeader.append(nil), 0); err != nil {
		f.Close()
		return errors.Join(err, os.Remove(g.path))
	}
	g.file = f
	s.bytes += segmentHeaderLen
	return nil
}

// open is the segment being written.
func (s *Spool) open() *segmentFile { return s.segments[len(s.segments)-1] }

func (s *Spool) exporter(a flow.Addr) *spoolExporter {
	x := s.exporters[a]
	if x == nil {
		x = &spoolExporter{addr: a}
		s.exporters[a] = x
	}
	return x
}

func (s *Spool) count(x *spoolExporter) {
	if x.active == 0 {
		s.touched = append(s.touched, x)
	}
	x.active++
}

// settle moves the counts of the open segment into g.
func (s *Spool) settle(g *segmentFile) {
	g.counts = make([]exporterCount, len(s.touched))
	for i, x := range s.touched {
		g.counts[i] = exporterCount{x, x.active}
		x.refs++
		x.active = 0
	}
	s.touched = s.touched[:0]
}

func (s *Spool) forget(x *spoolExporter) {
	if x.refs == 0 && x.active == 0 {
		delete(s.exporters, x.addr)
	}
}

func addRefused(m *map[flow.Addr]*flow.Rejected, a flow.Addr, reason flow.Reject, n uint64) {
	if *m == nil {
		*m = map[flow.Addr]*flow.Rejected{}
	}
	r := (*m)[a]
	if r == nil {
		if len(*m) >= maxRefusedExporters {
			a = flow.Addr{}
			r = (*m)[a]
		}
		if r == nil {
			r = new(flow.Rejected)
			(*m)[a] = r
		}
	}
	r[reason] += n
}

// ID is the id of this directory.
func (s *Spool) ID() SpoolID { return s.id }

// Append writes datagrams behind each other in one go and says how many were
// taken; the others were refused and are counted, as spool_full, table_full or
// too_large. What was taken survives kill -9. The payloads are copied; Position is
// not read, the spool numbers by itself.
func (s *Spool) Append(ds []Datagram) (accepted int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		// Between the end of the spool and that of the process there is no one left
		// to count for; the sender's own sequence numbers tell.
		return 0
	}
	var cached *spoolExporter
	for i := range ds {
		d := &ds[i]
		if len(d.Payload) > 0xffff {
			s.refuse(d.Exporter, flow.RejectTooLarge, 1)
			continue
		}
		need := int64(entryHeaderLen + len(d.Payload))
		if s.bytes+int64(len(s.buf))+need+segmentHeaderLen > int64(s.cfg.MaxBytes)-s.reserve {
			s.refuse(d.Exporter, flow.RejectSpoolFull, 1)
			s.full()
			continue
		}
		g := s.open()
		if size := g.size + int64(len(s.buf)); size+need > int64(s.cfg.SegmentSize) && size > segmentHeaderLen {
			accepted += s.flush()
			if err := s.seal(); err != nil {
				s.trouble(err)
				s.refuse(d.Exporter, flow.RejectSpoolFull, 1)
				continue
			}
			g, cached = s.open(), nil
		}
		if cached == nil || cached.addr != d.Exporter {
			if cached = s.exporters[d.Exporter]; cached == nil {
				if len(s.exporters) >= s.cfg.MaxExporters {
					s.refuse(d.Exporter, flow.RejectTableFull, 1)
					continue
				}
				cached = s.exporter(d.Exporter)
			}
		}
		e := Entry{Kind: EntryDatagram, Time: d.Received, Exporter: d.Exporter, Port: d.Port, Payload: d.Payload}
		s.buf = appendEntry(s.buf, &e, s.seed, g.size+int64(len(s.buf)), s.index+uint32(len(s.staged)))
		s.staged = append(s.staged, cached)
		if g.oldest == 0 {
			g.oldest = s.clock()
		}
	}
	return accepted + s.flush()
}

// flush writes what is in buf and counts it; if it cannot be written, it is
// refused.
func (s *Spool) flush() (accepted int) {
	if len(s.buf) == 0 {
		return 0
	}
	err := s.write()
	if err != nil {
		s.trouble(err)
		for _, x := range s.staged {
			s.refuse(x.addr, flow.RejectSpoolFull, 1)
			s.forget(x)
		}
	} else {
		accepted = len(s.staged)
		for _, x := range s.staged {
			s.count(x)
		}
		s.index += uint32(accepted)
		s.metrics.appended.Add(float64(accepted))
	}
	s.staged = s.staged[:0]
	return accepted
}

// write puts buf behind the open segment, all of it or nothing.
func (s *Spool) write() error {
	g := s.open()
	if g.file == nil {
		if err := s.makeFile(g); err != nil {
			s.buf = s.buf[:0]
			s.metrics.writeErrors.Inc()
			return err
		}
	}
	n, err := g.file.WriteAt(s.buf, g.size)
	if err != nil {
		// Part of it may stand there and would be read after a crash although it
		// was refused.
		if n > 0 {
			err = errors.Join(err, g.file.Truncate(g.size))
		}
		s.buf = s.buf[:0]
		s.metrics.writeErrors.Inc()
		return err
	}
	g.size += int64(n)
	g.entries = true
	s.bytes += int64(n)
	s.dirty = true
	s.metrics.appendedBytes.Add(float64(n))
	s.buf = s.buf[:0]
	return nil
}

// Refuse counts datagrams that were refused before they could be appended. The
// counts are written with the next tick or at the end of the segment, within a
// second.
func (s *Spool) Refuse(exporter flow.Addr, reason flow.Reject, n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse(exporter, reason, n)
}

func (s *Spool) refuse(exporter flow.Addr, reason flow.Reject, n uint64) {
	if n == 0 {
		return
	}
	addRefused(&s.pending, exporter, reason, n)
	s.metrics.refused.WithLabelValues(reason.String()).Add(float64(n))
}

// writeRefused writes the refusals counted so far.
func (s *Spool) writeRefused() error {
	if len(s.pending) == 0 {
		return nil
	}
	addrs := make([]flow.Addr, 0, len(s.pending))
	for a := range s.pending {
		addrs = append(addrs, a)
	}
	slices.SortFunc(addrs, flow.Addr.Compare)
	g, now := s.open(), s.clock()
	for _, a := range addrs {
		for reason, n := range s.pending[a] {
			if n > 0 {
				e := Entry{Kind: EntryRefused, Reason: flow.Reject(reason), Time: now, Exporter: a, Count: n}
				s.buf = appendEntry(s.buf, &e, s.seed, g.size+int64(len(s.buf)), s.index)
			}
		}
	}
	if s.bytes+int64(len(s.buf)) > int64(s.cfg.MaxBytes) {
		s.buf = s.buf[:0]
		return ErrSpoolNotWritten
	}
	if err := s.write(); err != nil {
		return err
	}
	if g.oldest == 0 {
		g.oldest = now
	}
	for _, a := range addrs {
		for reason, n := range s.pending[a] {
			if n > 0 {
				addRefused(&g.refused, a, flow.Reject(reason), n)
			}
		}
	}
	clear(s.pending)
	return nil
}

// Tick notes a time of the injected clock, so that reading the spool again sees
// idleness and silence where they were seen first.
func (s *Spool) Tick(at flow.Time) error { return s.control(&Entry{Kind: EntryTick, Time: at}) }

// Policy notes that a policy version came into force at this place. text is given
// back as it is, at most 1 MiB of it.
func (s *Spool) Policy(text []byte, at flow.Time) error {
	if len(text) > maxPayload {
		return fmt.Errorf("spool: the text of a policy change is %d bytes; at most %d fit", len(text), maxPayload)
	}
	return s.control(&Entry{Kind: EntryPolicy, Time: at, Payload: text})
}

func (s *Spool) control(e *Entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		if err := s.writeRefused(); err != nil {
			s.trouble(err)
		}
	}
	return s.appendEntries([]Entry{*e}, int64(s.cfg.MaxBytes))
}

// appendEntries writes entries that are no datagrams into one segment, as long as the spool
// stays within limit.
func (s *Spool) appendEntries(entries []Entry, limit int64) error {
	if s.closed {
		return fmt.Errorf("%w: it is closed", ErrSpoolNotWritten)
	}
	var need int64
	for i := range entries {
		need += entryHeaderLen + int64(len(entries[i].Payload))
	}
	g := s.open()
	if g.entries && g.size+need > int64(s.cfg.SegmentSize) {
		if err := s.seal(); err != nil {
			s.trouble(err)
			return fmt.Errorf("%w: %w", ErrSpoolNotWritten, err)
		}
		g = s.open()
	}
	if s.bytes+need > limit {
		s.full()
		return fmt.Errorf("%w: it is full", ErrSpoolNotWritten)
	}
	for i := range entries {
		s.buf = appendEntry(s.buf, &entries[i], s.seed, g.size+int64(len(s.buf)), s.index)
	}
	if err := s.write(); err != nil {
		s.trouble(err)
		return fmt.Errorf("%w: %w", ErrSpoolNotWritten, err)
	}
	if g.oldest == 0 {
		g.oldest = entries[0].Time
	}
	return nil
}

func (s *Spool) trouble(err error) {
	if now := s.clock(); s.troubleAt == 0 || now.Sub(s.troubleAt) >= logEvery {
		s.troubleAt = now
		s.log.Error("spool: cannot write, datagrams are refused while this lasts", "dir", s.dir, "err", err)
	}
}

func (s *Spool) full() {
	if now := s.clock(); s.fullAt == 0 || now.Sub(s.fullAt) >= logEvery {
		s.fullAt = now
		s.log.Error("spool: full, the newest datagrams are refused; see whether ClickHouse takes rows, or raise maxBytes",
			"dir", s.dir, "bytes", s.bytes, "limit", s.cfg.MaxBytes.String())
	}
}

// seal ends the open segment and opens the next one. On error the open segment
// stays as it was.
func (s *Spool) seal() error {
	if err := s.writeRefused(); err != nil {
		s.trouble(err)
	}
	g := s.open()
	if err := s.create(g.seq+1, g.first+uint64(s.index)); err != nil {
		return err
	}
	s.settle(g)
	g.sealed, s.dirty = true, false
	if s.cfg.SyncEvery == 0 {
		s.finish(g)
	}
	notify(s.wake)
	return nil
}

// finish gives a sealed segment to the reader.
func (s *Spool) finish(g *segmentFile) {
	if g.file != nil {
		g.file.Close()
		g.file = nil
	}
	g.synced = true
	notify(s.ready)
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run seals segments by age, writes refusals and makes segments durable, until
// ctx ends. Without it, segments come only by size or [Spool.Flush].
func (s *Spool) Run(ctx context.Context) error {
	interval := min(s.cfg.SegmentAge/4, 250*time.Millisecond)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var sinceSync time.Duration
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-tick.C:
			s.sealByAge()
			if sinceSync += interval; s.cfg.SyncEvery > 0 && sinceSync >= s.cfg.SyncEvery {
				sinceSync = 0
				_ = s.syncOpen() // told and counted
			}
		}
		_ = s.syncSealed() // likewise
	}
}

func (s *Spool) sealByAge() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	if err := s.writeRefused(); err != nil {
		s.trouble(err)
	}
	g := s.open()
	if !g.entries {
		return
	}
	// A clock that ran backwards must not keep a segment open for ever.
	if age := s.clock().Sub(g.oldest); age >= 0 && age < s.cfg.SegmentAge {
		return
	}
	waiting := 0
	for i := len(s.segments) - 2; i >= 0 && s.segments[i].seq > s.cursor; i-- {
		waiting++
	}
	if waiting >= maxWaiting {
		return
	}
	if err := s.seal(); err != nil {
		s.trouble(err)
	}
}

func (s *Spool) syncOpen() error {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	s.mu.Lock()
	f, dirty := s.open().file, s.dirty && !s.closed
	s.dirty = false
	s.mu.Unlock()
	if !dirty {
		return nil
	}
	return s.sync(f)
}

func (s *Spool) sync(f *os.File) error {
	start := time.Now()
	err := syncData(f)
	s.metrics.syncSeconds.Observe(time.Since(start).Seconds())
	if err != nil && !errors.Is(err, os.ErrClosed) {
		s.metrics.syncErrors.Inc()
		s.log.Error("spool: cannot make a segment durable; loss of power may cost it", "file", f.Name(), "err", err)
		return fmt.Errorf("spool: %w", err)
	}
	return nil
}

// syncSealed makes sealed segments durable and gives them to the reader.
func (s *Spool) syncSealed() (err error) {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	s.mu.Lock()
	var todo []*segmentFile
	for i := len(s.segments) - 2; i >= 0 && !s.segments[i].synced; i-- {
		todo = append(todo, s.segments[i])
	}
	s.mu.Unlock()
	if len(todo) == 0 {
		return nil
	}
	slices.Reverse(todo)
	if err = syncDir(s.dir); err != nil {
		s.metrics.syncErrors.Inc()
		s.log.Error("spool: cannot make the directory durable", "dir", s.dir, "err", err)
	}
	for _, g := range todo {
		s.mu.Lock()
		f := g.file
		s.mu.Unlock()
		if f != nil {
			err = errors.Join(err, s.sync(f))
		}
		s.mu.Lock()
		s.finish(g)
		s.mu.Unlock()
	}
	return err
}

// Flush seals the open segment if it holds anything, whatever its age, and gives
// it to the reader.
func (s *Spool) Flush() error {
	s.mu.Lock()
	var err error
	if !s.closed {
		if err = s.writeRefused(); err == nil && s.open().entries {
			err = s.seal()
		}
	}
	s.mu.Unlock()
	_ = s.syncSealed() // told and counted
	return err
}

// Stop says that nothing more will be appended: it flushes, and [Spool.Next] gives
// io.EOF behind the last segment. What is appended all the same is kept for the
// next start.
func (s *Spool) Stop() error {
	err := s.Flush()
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	notify(s.ready)
	return err
}

// Close makes the open segment durable and gives the directory free. What is in
// the spool stays there.
func (s *Spool) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	err := s.writeRefused()
	if s.cfg.SyncEvery > 0 {
		for _, g := range s.segments {
			if g.file != nil {
				err = errors.Join(err, syncData(g.file))
			}
		}
		err = errors.Join(err, syncDir(s.dir))
	}
	s.closed, s.stopped = true, true
	s.metrics.unregister(s.reg)
	s.closeFiles()
	notify(s.ready)
	return err
}

func (s *Spool) closeFiles() {
	for _, g := range s.segments {
		if g.file != nil {
			g.file.Close()
		}
	}
	s.lock.Close()
}

// Remove deletes the segments up to and including through. The open segment
// always stays: its number is what the next one counts from.
func (s *Spool) Remove(through uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.segments) > 1 && s.segments[0].seq <= through {
		if g := s.open(); len(s.segments) == 2 && g.file == nil && !s.closed {
			// Its number is not on the disk yet, see load; the one before holds it.
			if err := s.makeFile(g); err != nil {
				s.trouble(err)
				return nil
			}
		}
		if err := s.removeAt(0); err != nil {
			return fmt.Errorf("spool: %w", err)
		}
	}
	return nil
}

func (s *Spool) removeAt(i int) error {
	g := s.segments[i]
	if err := s.marks.keep(g.marks, s.clock()); err != nil {
		return err
	}
	if err := os.Remove(g.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if g.file != nil {
		g.file.Close()
		g.file = nil
	}
	for _, c := range g.counts {
		c.exporter.refs--
		s.forget(c.exporter)
	}
	s.bytes -= g.size
	s.segments = slices.Delete(s.segments, i, i+1)
	return nil
}

// SpoolCounts is what stands in a part of the spool.
type SpoolCounts struct {
	Datagrams map[flow.Addr]uint64        // appended, by exporter
	Refused   map[flow.Addr]flow.Rejected // refused before the spool or by it; the zero address stands for exporters too many to tell apart
	Lines     map[flow.Addr]uint64        // of logs, by who sent them, likewise
}

// Segments gives the numbers of the oldest segment there is and of the open one. They
// are the same where nothing waits.
func (s *Spool) Segments() (oldest, open uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.segments[0].seq, s.open().seq
}

// Counts is what was appended and refused in the segments behind after, the open
// one included, at one instant. With the ledger as of segment after it gives the
// totals of everything that ever came.
func (s *Spool) Counts(after uint64) SpoolCounts {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := SpoolCounts{Datagrams: map[flow.Addr]uint64{}, Refused: map[flow.Addr]flow.Rejected{}, Lines: map[flow.Addr]uint64{}}
	refused := func(m map[flow.Addr]*flow.Rejected) {
		for a, r := range m {
			sum := c.Refused[a]
			for i, n := range r {
				sum[i] += n
			}
			c.Refused[a] = sum
		}
	}
	for _, g := range s.segments {
		if g.seq <= after {
			continue
		}
		for _, x := range g.counts {
			c.Datagrams[x.exporter.addr] += x.datagrams
		}
		refused(g.refused)
		for a, n := range g.lines {
			c.Lines[a] += n
		}
	}
	for _, x := range s.touched {
		c.Datagrams[x.addr] += x.active
	}
	refused(s.pending)
	return c
}

// Bytes is how much disk the segments take.
func (s *Spool) Bytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes
}
