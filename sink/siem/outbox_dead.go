package siem

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/postern/postern/flow"
)

// DeadLetter is an event that could not be delivered, and why. It lies in the
// target's dead/ folder as one JSON file.
type DeadLetter struct {
	ID     string    `json:"id"`
	Key    string    `json:"key"`
	Seq    uint64    `json:"seq"`
	Time   flow.Time `json:"time"` // of the event
	Urgent bool      `json:"urgent,omitempty"`
	Target string    `json:"target"`

	Reason       string    `json:"reason"`
	Attempts     int       `json:"attempts"` // that counted
	Sends        int       `json:"sends"`    // all, also those after a restart or an outage, which do not count
	FirstAttempt flow.Time `json:"first_attempt"`
	Died         flow.Time `json:"died"`
	Status       int       `json:"status,omitempty"`   // of the last answer
	Response     string    `json:"response,omitempty"` // its beginning

	Body json.RawMessage `json:"body"`
}

func (e *outboxEntry) letter(target string, body []byte, now time.Time) DeadLetter {
	return DeadLetter{ID: e.id, Key: e.key, Seq: e.seq, Time: e.time, Urgent: e.urgent, Target: target,
		Reason: cutText(e.last.Error(), 500), Attempts: e.attempts, Sends: e.sends,
		FirstAttempt: flow.TimeOf(e.first), Died: flow.TimeOf(now), Status: e.last.Status, Response: e.last.Response, Body: body}
}

// letterName is the file name of an event's dead letter; ids are no file names.
func letterName(id string) string {
	sum := sha256.Sum256([]byte(id))
	return hex.EncodeToString(sum[:16]) + ".json"
}

func encodeLetter(l *DeadLetter) ([]byte, error) {
	if len(l.Body) > 0 && !json.Valid(l.Body) {
		quoted, err := json.Marshal(string(l.Body)) // a body that is no JSON is kept as text
		if err != nil {
			return nil, err
		}
		l.Body = quoted
	}
	b, err := json.Marshal(l)
	return append(b, '\n'), err
}

// readLetter reads a dead letter; an error names no content.
func readLetter(name string) (DeadLetter, error) {
	var l DeadLetter
	b, err := os.ReadFile(name)
	if err != nil {
		return l, err
	}
	if err := json.Unmarshal(b, &l); err != nil {
		return l, fmt.Errorf("%s is no dead letter: %w", filepath.Base(name), err)
	}
	event := Event{ID: l.ID, Key: l.Key, Body: l.Body}
	if err := event.Validate(); err != nil {
		return l, fmt.Errorf("%s is no dead letter: %w", filepath.Base(name), err)
	}
	return l, nil
}

// writeDead makes a dead letter durable. One that was being replayed is first
// rewritten where it is and then moved, so that at no time it lies in both folders
// and somebody who replays it again at once loses nothing.
func (o *Outbox) writeDead(l *DeadLetter, from *outboxFile) (size int64, err error) {
	b, err := encodeLetter(l)
	if err != nil {
		return 0, err
	}
	name := o.path(deadFolder, letterName(l.ID))
	if !from.replay {
		return int64(len(b)), o.writeOrReserve(name, b)
	}
	if err := o.writeOrReserve(from.path, b); err != nil {
		return 0, err
	}
	if err := os.Rename(from.path, name); err != nil {
		return 0, err
	}
	return int64(len(b)), errors.Join(syncDir(o.path(replayFolder)), syncDir(o.path(deadFolder)))
}

// scanReplay takes up what was moved into replay/.
func (o *Outbox) scanReplay() {
	files, err := os.ReadDir(o.path(replayFolder))
	if err != nil {
		o.met.errors.Inc()
		o.log.Error("replay folder not readable", "error", err)
		return
	}
	for _, d := range files {
		if !strings.HasSuffix(d.Name(), ".json") {
			continue
		}
		o.takeUp(o.path(replayFolder, d.Name()))
	}
}

func (o *Outbox) takeUp(name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.replaying[name] {
		return
	}
	letter, err := readLetter(name)
	info, statErr := os.Stat(name)
	if err = errors.Join(err, statErr); err != nil {
		o.met.corrupt.Inc()
		o.log.Error("replayed dead letter set aside", "file", name, "error", err)
		if err := os.Rename(name, name+".damaged"); err != nil {
			o.met.errors.Inc()
		}
		return
	}
	now := o.clock()
	f := &outboxFile{path: name, size: info.Size(), live: 1, replay: true}
	o.queueBytes += f.size
	o.replaying[name] = true
	if _, waits := o.pending[letter.ID]; waits {
		f.live = 0
		o.emptied = append(o.emptied, f)
		return
	}
	o.add(&outboxEntry{id: letter.ID, key: letter.Key, seq: letter.Seq, time: letter.Time, file: f, size: len(letter.Body), due: now, next: now, urgent: letter.Urgent})
	o.met.replayed.Inc()
	o.log.Info("dead letter taken up again", "event", letter.ID)
	o.stir()
}

// scanDead counts the dead letters anew if the folder changed: `postern outbox`
// moves and removes them beside the running service.
func (o *Outbox) scanDead() {
	o.counting.Lock()
	defer o.counting.Unlock()
	info, err := os.Stat(o.path(deadFolder))
	if err != nil {
		o.met.errors.Inc()
		return
	}
	o.mu.Lock()
	seen := o.deadSeen
	o.mu.Unlock()
	if info.ModTime().Equal(seen) {
		return
	}
	files, err := os.ReadDir(o.path(deadFolder))
	if err != nil {
		o.met.errors.Inc()
		return
	}
	count, size := 0, int64(0)
	for _, d := range files {
		if info, err := d.Info(); err == nil && strings.HasSuffix(d.Name(), ".json") {
			count++
			size += info.Size()
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	// What changed while counting has made the folder newer than info and is counted next time; so is
	// what may change in the tick of the file system's clock that info is of.
	o.deadCount, o.deadBytes, o.deadSeen = count, size, info.ModTime()
	if time.Since(info.ModTime()) < folderTick {
		o.deadSeen = time.Time{}
	}
}

// The functions below work on an outbox folder from outside: offline, or beside
// the service that has it open, which notices within two seconds.

// OutboxTargets lists the targets that have an outbox in dir.
func OutboxTargets(dir string) ([]string, error) {
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var targets []string
	for _, d := range files {
		if info, err := os.Stat(filepath.Join(dir, d.Name(), deadFolder)); err == nil && info.IsDir() {
			targets = append(targets, d.Name())
		}
	}
	return targets, nil
}

// QueuedEvent is an event that waits, as an outsider sees it.
type QueuedEvent struct {
	ID, Key  string
	Time     flow.Time // of the event
	Attempts int
	Next     flow.Time // of its next attempt; zero before the first
	Status   int       // of the last answer
	Reason   string    // why the last attempt failed
}

// QueuedEvents lists what waits for a target, in order. Beside a running service
// it is a moment's view.
func QueuedEvents(dir, target string) ([]QueuedEvent, error) {
	if err := validTargetName(target); err != nil {
		return nil, err
	}
	s, err := readOutbox(filepath.Join(dir, target))
	if err != nil {
		return nil, fmt.Errorf("outbox %s: %w", target, err)
	}
	out := make([]QueuedEvent, 0, len(s.entries))
	for _, e := range s.entries {
		q := QueuedEvent{ID: e.id, Key: e.key, Time: e.time, Attempts: e.attempts, Next: flow.TimeOf(e.next)}
		if e.last != nil {
			q.Status, q.Reason = e.last.Status, e.last.Error()
		}
		out = append(out, q)
	}
	return out, nil
}

// ListDeadLetters lists a target's dead letters in the order of their events,
// those with one of ids, or all if there is none; an id that no dead letter has is
// passed over, since it may be another target's. A file that cannot be read is
// part of the error; the others are listed all the same.
func ListDeadLetters(dir, target string, ids ...string) ([]DeadLetter, error) {
	names, err := deadNames(dir, target, ids)
	var out []DeadLetter
	for _, name := range names {
		l, readErr := readLetter(name)
		if errors.Is(readErr, fs.ErrNotExist) {
			continue // replayed while we looked
		}
		if readErr != nil {
			err = errors.Join(err, readErr)
			continue
		}
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b DeadLetter) int { return cmp.Or(cmp.Compare(a.Seq, b.Seq), cmp.Compare(a.ID, b.ID)) })
	return out, err
}

// ReplayDeadLetters has dead letters sent again, those with one of ids, or all if
// there is none, and says how many it found. Each begins anew with no attempt behind it.
func ReplayDeadLetters(dir, target string, ids ...string) (int, error) {
	names, err := deadNames(dir, target, ids)
	folder, n := filepath.Join(dir, target, replayFolder), 0
	if len(names) > 0 {
		err = errors.Join(err, os.MkdirAll(folder, 0o700))
	}
	for _, name := range names {
		switch renameErr := os.Rename(name, filepath.Join(folder, filepath.Base(name))); {
		case renameErr == nil:
			n++
		case !errors.Is(renameErr, fs.ErrNotExist):
			err = errors.Join(err, renameErr)
		}
	}
	if n > 0 {
		err = errors.Join(err, syncDir(folder), syncDir(filepath.Join(dir, target, deadFolder)))
	}
	return n, err
}

// DropDeadLetters removes dead letters for good, those with one of ids, or all if
// there is none, and says how many it found.
func DropDeadLetters(dir, target string, ids ...string) (int, error) {
	names, err := deadNames(dir, target, ids)
	n := 0
	for _, name := range names {
		switch removeErr := os.Remove(name); {
		case removeErr == nil:
			n++
		case !errors.Is(removeErr, fs.ErrNotExist):
			err = errors.Join(err, removeErr)
		}
	}
	if n > 0 {
		err = errors.Join(err, syncDir(filepath.Join(dir, target, deadFolder)))
	}
	return n, err
}

// deadNames gives the files of the dead letters with ids, or all.
func deadNames(dir, target string, ids []string) ([]string, error) {
	if err := validTargetName(target); err != nil {
		return nil, err
	}
	folder := filepath.Join(dir, target, deadFolder)
	if len(ids) == 0 {
		files, err := os.ReadDir(folder)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		var names []string
		for _, d := range files {
			if strings.HasSuffix(d.Name(), ".json") {
				names = append(names, filepath.Join(folder, d.Name()))
			}
		}
		return names, err
	}
	var names []string
	for _, id := range ids {
		name := filepath.Join(folder, letterName(id))
		if _, err := os.Stat(name); err == nil {
			names = append(names, name)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return names, nil
}
