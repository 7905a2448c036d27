package ingest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/postern/postern/flow"
)

// Lines is a batch of a log's lines, decoded before they came to the spool.
type Lines struct {
	Exporter flow.Addr // who sent them; the zero address if it was no host
	Received flow.Time
	Mark     Mark
	Counts   LineCounts
	Records  []byte // the flows that they told, in a form that the spool does not look into
	// More says that the next batch belongs to this one: after a crash they are there
	// together or not at all.
	More bool
}

// LineCounts says what became of the lines of a batch.
type LineCounts struct {
	Read     uint32 // told flows
	NotFlow  uint32 // told something else
	Rejected uint32 // could not be read
}

// Sum is how many lines there were.
func (c LineCounts) Sum() uint64 { return uint64(c.Read) + uint64(c.NotFlow) + uint64(c.Rejected) }

// Mark says how far an input has come: a file, a request. It is durable with the lines before
// it, so whoever goes on from it neither loses nor doubles any.
type Mark struct {
	Key   [16]byte // names the input; the zero key is none, and is not remembered
	To    uint64   // bytes of a file, batches of a request
	Check uint64   // what the owner of the key wants to know again
	Ended bool     // nothing comes behind it
	// Keep is how long the mark is remembered after it was made, in whole seconds.
	Keep time.Duration
}

// linesHeaderLen is the length of what stands before the records in an entry's payload:
//
//	 0  key       16 bytes
//	16  to        uint64
//	24  check     uint64
//	32  read      uint32
//	36  not flow  uint32
//	40  rejected  uint32
//	44  keep, s   uint32
//	48  flags     uint8: 1 ended, 2 more
const linesHeaderLen = 49

// MaxLinesRecords is how long [Lines.Records] may be.
const MaxLinesRecords = maxPayload - linesHeaderLen

func (l *Lines) append(b []byte) []byte {
	b = append(b, l.Mark.Key[:]...)
	b = binary.BigEndian.AppendUint64(b, l.Mark.To)
	b = binary.BigEndian.AppendUint64(b, l.Mark.Check)
	b = binary.BigEndian.AppendUint32(b, l.Counts.Read)
	b = binary.BigEndian.AppendUint32(b, l.Counts.NotFlow)
	b = binary.BigEndian.AppendUint32(b, l.Counts.Rejected)
	b = binary.BigEndian.AppendUint32(b, uint32(l.Mark.Keep/time.Second))
	var flags byte
	if l.Mark.Ended {
		flags |= 1
	}
	if l.More {
		flags |= moreFollow
	}
	return append(append(b, flags), l.Records...)
}

// Lines is the entry as it was appended; only for EntryLines. Records lie in the segment's
// buffer. ok is false if the payload is too short to be one.
func (e *Entry) Lines() (l Lines, ok bool) {
	b := e.Payload
	if len(b) < linesHeaderLen {
		return l, false
	}
	be := binary.BigEndian
	l = Lines{Exporter: e.Exporter, Received: e.Time, Records: b[linesHeaderLen:]}
	copy(l.Mark.Key[:], b)
	l.Mark.To, l.Mark.Check = be.Uint64(b[16:]), be.Uint64(b[24:])
	l.Counts = LineCounts{be.Uint32(b[32:]), be.Uint32(b[36:]), be.Uint32(b[40:])}
	l.Mark.Keep, l.Mark.Ended, l.More = time.Duration(be.Uint32(b[44:]))*time.Second, b[48]&1 != 0, b[48]&moreFollow != 0
	return l, true
}

const moreFollow = 2

// unfinished says whether an entry begins a group, or the rest of one, whose last is missing.
// next reads the entry behind into e.
func (e *Entry) unfinished(next func(*Entry) bool) bool {
	for l, ok := e.Lines(); ok && l.More; l, ok = e.Lines() {
		if !next(e) || e.Kind != EntryLines {
			return true
		}
	}
	return false
}

// AppendLines appends batches behind each other and says how many were taken. Fewer than all
// are taken only with an error: [ErrSpoolNotWritten] when there is no room or the disk
// refuses. What was taken survives kill -9; against loss of power there is [Spool.Sync].
func (s *Spool) AppendLines(batches []Lines) (taken int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var entries []Entry
	for taken < len(batches) {
		group := batches[taken:]
		for i := range group {
			if !group[i].More {
				group = group[:i+1]
				break
			}
		}
		entries = entries[:0]
		for i := range group {
			l := &group[i]
			if len(l.Records) > MaxLinesRecords {
				return taken, fmt.Errorf("spool: the flows of a batch of lines are %d bytes; at most %d fit", len(l.Records), MaxLinesRecords)
			}
			entries = append(entries, Entry{Kind: EntryLines, Time: l.Received, Exporter: l.Exporter, Payload: l.append(nil)})
		}
		if err := s.appendEntries(entries, int64(s.cfg.MaxBytes)-s.reserve); err != nil {
			return taken, err
		}
		for i := range group {
			s.noteLines(s.open(), &group[i])
			s.metrics.lines.Add(float64(group[i].Counts.Sum()))
		}
		taken += len(group)
	}
	return taken, nil
}

// noteLines takes note of lines in segment g.
func (s *Spool) noteLines(g *segmentFile, l *Lines) {
	if g.lines == nil {
		g.lines = map[flow.Addr]uint64{}
	}
	exporter := l.Exporter
	if _, known := g.lines[exporter]; !known && len(g.lines) >= maxRefusedExporters {
		exporter = flow.Addr{}
	}
	g.lines[exporter] += l.Counts.Sum()
	if l.Mark.Key == ([16]byte{}) {
		return
	}
	m := keptMark{l.Mark, l.Received}
	g.marks = append(g.marks, m)
	s.marks.set(m)
}

// Sync makes what was appended durable against loss of power.
func (s *Spool) Sync() error {
	if s.cfg.SyncEvery == 0 {
		return nil // left to the operating system
	}
	return errors.Join(s.syncSealed(), s.syncOpen())
}

// Mark is the newest mark under a key that was appended to this spool, if it is still
// remembered.
func (s *Spool) Mark(key [16]byte) (Mark, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.marks.live[key]
	return m.Mark, ok && !m.expired(s.clock())
}

// Marks are all marks that are remembered, in no order.
func (s *Spool) Marks() []Mark {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Mark, 0, len(s.marks.live))
	now := s.clock()
	for _, m := range s.marks.live {
		if !m.expired(now) {
			out = append(out, m.Mark)
		}
	}
	return out
}

// keptMark is a mark and when it was made.
type keptMark struct {
	Mark
	at flow.Time
}

func (m *keptMark) expired(now flow.Time) bool { return now.Sub(m.at) > m.Keep }

// markBook remembers marks beyond the life of the segments that they came in: before a
// segment is removed its marks are appended to a file.
type markBook struct {
	path  string
	live  map[[16]byte]keptMark
	lines int // in the file
}

const (
	marksFile = "marks"
	// maxMarks bounds the marks that are remembered: a day of ten requests a second. Beyond
	// it some are forgotten that would be before long, and a request that is repeated later
	// counts twice.
	maxMarks = 1 << 20
	// markLen is the length of a mark in the file: key, to, check, at (8 each), keep (4),
	// flags (1), three bytes of nothing, CRC32C of what is before (4).
	markLen = 16 + 8 + 8 + 8 + 4 + 4 + 4
)

func appendMark(b []byte, m *keptMark) []byte {
	n := len(b)
	b = append(b, m.Key[:]...)
	b = binary.BigEndian.AppendUint64(b, m.To)
	b = binary.BigEndian.AppendUint64(b, m.Check)
	b = binary.BigEndian.AppendUint64(b, uint64(m.at))
	b = binary.BigEndian.AppendUint32(b, uint32(m.Keep/time.Second))
	var flags byte
	if m.Ended {
		flags = 1
	}
	b = append(b, flags, 0, 0, 0)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[n:], castagnoli))
}

func readMark(b []byte) (m keptMark, ok bool) {
	be := binary.BigEndian
	if crc32.Checksum(b[:markLen-4], castagnoli) != be.Uint32(b[markLen-4:]) {
		return m, false
	}
	copy(m.Key[:], b)
	m.To, m.Check, m.at = be.Uint64(b[16:]), be.Uint64(b[24:]), flow.Time(be.Uint64(b[32:]))
	m.Keep, m.Ended = time.Duration(be.Uint32(b[40:]))*time.Second, b[44]&1 != 0
	return m, true
}

// set takes note of a mark. Entries are set in their order, so the newest counts.
func (k *markBook) set(m keptMark) {
	if _, known := k.live[m.Key]; !known && len(k.live) >= maxMarks {
		k.forget()
	}
	k.live[m.Key] = m
}

// forget forgets a mark: of some, taken as they come, the one that has the least time left. A
// flood of requests, which are remembered for a day, so leaves the files, whose marks are for
// months.
func (k *markBook) forget() {
	var first keptMark
	n := 0
	for _, m := range k.live {
		if n == 0 || m.at.Add(m.Keep) < first.at.Add(first.Keep) {
			first = m
		}
		if n++; n == 16 {
			break
		}
	}
	delete(k.live, first.Key)
}

// load reads the marks of segments that are gone. What is damaged is passed over.
func (k *markBook) load(dir string) error {
	k.path, k.live, k.lines = filepath.Join(dir, marksFile), map[[16]byte]keptMark{}, 0
	b, err := os.ReadFile(k.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for ; len(b) >= markLen; b = b[markLen:] {
		k.lines++
		if m, ok := readMark(b); ok {
			k.set(m)
		}
	}
	if len(b) > 0 { // the end was not finished: what comes must not be read askew
		k.lines = 1 << 62
	}
	return nil
}

// keep makes the marks of a segment last that is about to go.
func (k *markBook) keep(marks []keptMark, now flow.Time) error {
	if len(marks) == 0 {
		return nil
	}
	if k.lines+len(marks) > 1<<14 && k.lines > 2*len(k.live) {
		return k.rewrite(now)
	}
	f, err := os.OpenFile(k.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	var b []byte
	for i := range marks {
		b = appendMark(b, &marks[i])
	}
	if _, err = f.Write(b); err == nil {
		err = syncData(f)
	}
	if err != nil {
		k.lines = 1 << 62 // part of it may stand there: the next is written anew
	}
	k.lines += len(marks)
	return errors.Join(err, f.Close())
}

// rewrite writes the marks that are still to be remembered anew, among them those of
// segments that are still there.
func (k *markBook) rewrite(now flow.Time) error {
	var b []byte
	lines := 0
	for key, m := range k.live {
		if m.expired(now) {
			delete(k.live, key)
			continue
		}
		b = appendMark(b, &m)
		lines++
	}
	next := k.path + ".next"
	f, err := os.OpenFile(next, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(b); err == nil {
		err = syncData(f)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(next, k.path); err != nil {
		return err
	}
	k.lines = lines
	return syncDir(filepath.Dir(k.path))
}
