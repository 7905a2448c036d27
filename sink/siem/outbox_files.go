package siem

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/postern/postern/flow"
)

// The names inside an outbox folder; see [Outbox].
const (
	queueFolder  = "queue"
	deadFolder   = "dead"
	replayFolder = "replay"
	journalFile  = "journal"
	reserveFile  = "reserve"
)

// A queue file is a run of events: for each a line of JSON that says how many
// bytes of body follow, the body as it is, and a newline. It is written whole
// under another name, made durable, and renamed; it never changes afterwards.

type queueHeader struct {
	ID   string    `json:"id"`
	Key  string    `json:"key"`
	Seq  uint64    `json:"seq"`
	Time flow.Time `json:"time"`
	Size int       `json:"size"`
	CRC  uint32    `json:"crc"` // CRC-32C of the body
	// Urgent is that of the event.
	Urgent bool `json:"urgent,omitempty"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func queueFileName(seq uint64) string { return fmt.Sprintf("%020d.events", seq) }

func encodeQueueFile(seq uint64, events []Event) ([]byte, []*outboxEntry) {
	var b []byte
	entries := make([]*outboxEntry, len(events))
	for i := range events {
		e := &events[i]
		h := queueHeader{ID: e.ID, Key: e.Key, Seq: seq + uint64(i), Time: e.Time, Size: len(e.Body), CRC: crc32.Checksum(e.Body, castagnoli), Urgent: e.Urgent}
		line, _ := json.Marshal(h) // strings and numbers always marshal
		b = append(append(b, line...), '\n')
		entries[i] = &outboxEntry{id: e.ID, key: e.Key, seq: h.Seq, time: e.Time, offset: int64(len(b)), size: h.Size, crc: h.CRC, urgent: e.Urgent}
		b = append(append(b, e.Body...), '\n')
	}
	return b, entries
}

// outboxOverhead is about what a queue file holds for an event beside its body.
func outboxOverhead(e *Event) int { return len(e.ID) + len(e.Key) + 120 }

// decodeQueueFile reads the headers of a queue file and checks the bodies. What
// is good before the first damage is returned with the error.
func decodeQueueFile(b []byte) ([]*outboxEntry, error) {
	var entries []*outboxEntry
	for at := 0; at < len(b); {
		n := bytes.IndexByte(b[at:], '\n')
		if n < 0 {
			return entries, fmt.Errorf("byte %d: a header without its end", at)
		}
		var h queueHeader
		if err := json.Unmarshal(b[at:at+n], &h); err != nil {
			return entries, fmt.Errorf("byte %d: no header: %w", at, err)
		}
		at += n + 1
		if h.Size < 0 || h.Size >= MaxMessage || h.Size >= len(b)-at || b[at+h.Size] != '\n' {
			return entries, fmt.Errorf("byte %d: a body of %d bytes does not end where it should", at, h.Size)
		}
		if crc32.Checksum(b[at:at+h.Size], castagnoli) != h.CRC {
			return entries, fmt.Errorf("byte %d: the body does not match its checksum", at)
		}
		event := Event{ID: h.ID, Key: h.Key}
		if err := event.Validate(); err != nil {
			return entries, fmt.Errorf("byte %d: %w", at, err)
		}
		entries = append(entries, &outboxEntry{id: h.ID, key: h.Key, seq: h.Seq, time: h.Time, offset: int64(at), size: h.Size, crc: h.CRC, urgent: h.Urgent})
		at += h.Size + 1
	}
	return entries, nil
}

// read gives the body of a waiting event.
func (e *outboxEntry) read() ([]byte, error) {
	if e.file.replay {
		letter, err := readLetter(e.file.path)
		return letter.Body, err
	}
	f, err := os.Open(e.file.path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, e.size)
	if _, err := f.ReadAt(b, e.offset); err != nil {
		return nil, err
	}
	if crc32.Checksum(b, castagnoli) != e.crc {
		return nil, errors.New("it does not match its checksum")
	}
	return b, nil
}

// outboxState is what a folder holds, read without the lock.
type outboxState struct {
	entries      []*outboxEntry // waiting, by sequence
	files        []*outboxFile
	done         []string // delivered or dead, oldest first
	journalLines int
	corrupt      []corruptFile
}

type corruptFile struct {
	path string
	err  error
}

// readOutbox reads queue/ and the journal. A damaged file costs what is damaged
// and stays where it is for a person to look at, under another ending.
func readOutbox(dir string) (*outboxState, error) {
	s := &outboxState{}
	tried, err := s.readJournal(filepath.Join(dir, journalFile))
	if err != nil {
		return nil, err
	}
	done := make(map[string]bool, len(s.done))
	for _, id := range s.done {
		done[id] = true
	}
	dead, err := os.ReadDir(filepath.Join(dir, deadFolder))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	letters := make(map[string]bool, len(dead))
	for _, d := range dead {
		letters[d.Name()] = true
	}
	files, err := os.ReadDir(filepath.Join(dir, queueFolder))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, d := range files {
		if !strings.HasSuffix(d.Name(), ".events") {
			continue
		}
		f := &outboxFile{path: filepath.Join(dir, queueFolder, d.Name())}
		b, err := os.ReadFile(f.path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // delivered while we looked
		}
		if err != nil {
			return nil, err
		}
		f.size = int64(len(b))
		entries, err := decodeQueueFile(b)
		if err != nil {
			s.corrupt = append(s.corrupt, corruptFile{f.path, err})
		}
		for _, e := range entries {
			if done[e.id] {
				continue
			}
			done[e.id] = true // the same event in a second file, after a Put that failed half-way
			if letters[letterName(e.id)] {
				// It died just before the journal could say so.
				s.done = append(s.done, e.id)
				continue
			}
			e.file = f
			if t, ok := tried[e.id]; ok {
				e.attempts, e.sends, e.first, e.next = t.Attempts, t.Sends, time.UnixMilli(t.First), time.UnixMilli(t.Next)
				e.last = &DeliveryError{Retry: true, Status: t.Status, Err: errors.New(t.Error)}
			}
			f.live++
			s.entries = append(s.entries, e)
		}
		s.files = append(s.files, f)
	}
	slices.SortFunc(s.entries, func(a, b *outboxEntry) int { return cmp.Compare(a.seq, b.seq) })
	return s, nil
}

// journalLine is one line of the journal: an event that was delivered, one that
// became a dead letter, or how far the attempts for one have come.
type journalLine struct {
	Done     string `json:"done,omitempty"`
	Dead     string `json:"dead,omitempty"`
	Tried    string `json:"tried,omitempty"`
	Attempts int    `json:"attempts,omitempty"`
	Sends    int    `json:"sends,omitempty"`
	First    int64  `json:"first,omitempty"` // ms
	Next     int64  `json:"next,omitempty"`  // ms
	Status   int    `json:"status,omitempty"`
	Error    string `json:"error,omitempty"`
}

// readJournal reads the lines that are whole; a crash can tear the last one.
func (s *outboxState) readJournal(name string) (map[string]journalLine, error) {
	tried := map[string]journalLine{}
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return tried, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 64<<10)
	for {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return tried, nil
		}
		if err != nil {
			return nil, err
		}
		s.journalLines++
		var l journalLine
		if json.Unmarshal(line, &l) != nil {
			continue
		}
		switch {
		case l.Tried != "":
			tried[l.Tried] = l
		case l.Done != "" || l.Dead != "":
			s.done = append(s.done, cmp.Or(l.Done, l.Dead))
			delete(tried, cmp.Or(l.Done, l.Dead))
		}
	}
}

// outboxJournal is the open journal. Guarded by the outbox's mu.
type outboxJournal struct {
	file  *os.File
	lines int
}

func openOutboxJournal(name string, lines int) (*outboxJournal, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	// End a torn last line, so that the next one stands by itself.
	if info, err := f.Stat(); err == nil && info.Size() > 0 {
		var last [1]byte
		if _, err := f.ReadAt(last[:], info.Size()-1); err == nil && last[0] != '\n' {
			if _, err := f.Write([]byte{'\n'}); err != nil {
				return nil, errors.Join(err, f.Close())
			}
		}
	}
	return &outboxJournal{file: f, lines: lines}, nil
}

func (j *outboxJournal) append(l journalLine) error {
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	j.lines++
	_, err = j.file.Write(append(b, '\n'))
	return err
}

func (j *outboxJournal) sync() error { return j.file.Sync() }

func (j *outboxJournal) close() error { return errors.Join(j.file.Sync(), j.file.Close()) }

// rewrite replaces the journal by one that says only what still matters.
func (j *outboxJournal) rewrite(done []string, pending map[string]*outboxEntry) error {
	var b bytes.Buffer
	enc, lines := json.NewEncoder(&b), 0
	for _, id := range done {
		lines++
		if err := enc.Encode(journalLine{Done: id}); err != nil {
			return err
		}
	}
	for _, e := range pending {
		if e.sends == 0 || e.last == nil {
			continue
		}
		lines++
		if err := enc.Encode(journalLine{Tried: e.id, Attempts: e.attempts, Sends: e.sends, First: e.first.UnixMilli(), Next: e.next.UnixMilli(),
			Status: e.last.Status, Error: cutText(e.last.Error(), 300)}); err != nil {
			return err
		}
	}
	name := j.file.Name()
	if err := writeDurably(name, b.Bytes()); err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_ = j.file.Close() // its content is history
	j.file, j.lines = f, lines
	return nil
}

// writeDurably writes a file so that after a crash it is there whole or not at
// all: under another name, synced, renamed, and the folder synced.
func writeDurably(name string, b []byte) (err error) {
	tmp := name + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp)
		}
	}()
	if _, err = f.Write(b); err != nil {
		return errors.Join(err, f.Close())
	}
	if err = f.Sync(); err != nil {
		return errors.Join(err, f.Close())
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(tmp, name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

// syncDir makes the names in a folder durable.
func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
