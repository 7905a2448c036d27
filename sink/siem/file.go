package siem

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/postern/postern/flow"
)

// FileConfig is a file that others follow (Filebeat, Vector, an agent of the SIEM's), a line a message.
// A line is on disk before its event counts as delivered. Whoever rotates the file by renaming it finds a
// new one in its place with the next event.
type FileConfig struct {
	// Path is the file; its folder must exist.
	Path string `yaml:"path"`
	// MaxSize is at what size the file is renamed to .1, .1 to .2 and so on; 0 leaves that to others.
	MaxSize flow.Size `yaml:"maxSize"`
	// Keep is how many of the renamed files stay.
	Keep int `yaml:"keep"`
}

// Fill gives c the defaults of what it does not say.
func (c *FileConfig) Fill() {
	if c.Keep == 0 {
		c.Keep = 5
	}
}

func (c *FileConfig) validate() error {
	switch {
	case c.Path == "":
		return errors.New("path is empty; name a file")
	case c.MaxSize != 0 && c.MaxSize < flow.MiB:
		return fmt.Errorf("maxSize %s; it must be at least 1MiB, or 0", c.MaxSize)
	case c.Keep < 1 || c.Keep > 1000:
		return fmt.Errorf("keep %d; it must lie between 1 and 1000", c.Keep)
	}
	return nil
}

func (c *FileConfig) references() map[string]string { return nil }

func (c *FileConfig) open(_ func(string) (string, error), at *place) (Sender, error) {
	return &lines{cfg: *c, as: at.as}, nil
}

// lines writes to a file.
type lines struct {
	cfg FileConfig
	as  encoder

	mu   sync.Mutex
	file *os.File
	size int64
}

// Batch implements [BatchSender].
func (l *lines) Batch() Batch { return Batch{Events: 500} }

// Send implements [Sender].
func (l *lines) Send(ctx context.Context, e *Event) error { return l.SendBatch(ctx, []*Event{e})[0] }

// SendBatch implements [BatchSender].
func (l *lines) SendBatch(_ context.Context, events []*Event) []error {
	made, o := eachOf(events, l.line)
	if err := l.write(bytes.Join(made, nil)); err != nil {
		return o.all(&DeliveryError{Retry: true, Err: err})
	}
	return o.errs
}

func (l *lines) line(e *Event) ([]byte, error) {
	m, err := l.as(e)
	if err != nil {
		return nil, err
	}
	if bytes.ContainsAny(m, "\r\n") {
		return nil, &DeliveryError{Err: errors.New("the message has several lines, and a file has one a message")}
	}
	return slices.Concat(m, []byte("\n")), nil
}

func (l *lines) write(b []byte) (err error) {
	if len(b) == 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.ready(); err != nil {
		return err
	}
	_, err = l.file.Write(b)
	if err == nil {
		err = l.file.Sync()
	}
	if err != nil {
		// Half a line may be there; opening it again cuts that off.
		_ = l.file.Close()
		l.file = nil
		return err
	}
	l.size += int64(len(b))
	return nil
}

// ready has the file open that is at the path, with room in it; the caller holds mu.
func (l *lines) ready() error {
	if l.file != nil {
		there, err := os.Stat(l.cfg.Path)
		mine, e := l.file.Stat()
		if err != nil || e != nil || !os.SameFile(there, mine) || there.Size() < l.size { // moved away, or cut
			_ = l.file.Close()
			l.file = nil
		}
	}
	if l.file != nil && l.cfg.MaxSize > 0 && l.size >= int64(l.cfg.MaxSize) {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	if l.file != nil {
		return nil
	}
	f, err := os.OpenFile(l.cfg.Path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	size, err := wholeLines(f)
	if err == nil {
		err = syncDir(filepath.Dir(l.cfg.Path))
	}
	if err != nil {
		f.Close()
		return err
	}
	l.file, l.size = f, size
	return nil
}

func (l *lines) rotate() error {
	name := func(n int) string { return fmt.Sprintf("%s.%d", l.cfg.Path, n) }
	for n := l.cfg.Keep - 1; n >= 1; n-- {
		if err := os.Rename(name(n), name(n+1)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := os.Rename(l.cfg.Path, name(1)); err != nil {
		return err
	}
	_ = l.file.Close()
	l.file = nil
	return nil
}

// wholeLines cuts what a crash left of a last line off and gives the size of the rest: its event
// was not delivered, and comes again.
func wholeLines(f *os.File) (int64, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || size == 0 {
		return size, err
	}
	from := max(size-MaxMessage-1, 0)
	b := make([]byte, size-from)
	if _, err := f.ReadAt(b, from); err != nil {
		return 0, err
	}
	end := from + int64(bytes.LastIndexByte(b, '\n')+1)
	if end == from && from > 0 {
		return 0, fmt.Errorf("%s ends in no line of ours; is it another program's file?", f.Name())
	}
	if end < size {
		return end, f.Truncate(end)
	}
	return size, nil
}

// Close closes the file.
func (l *lines) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}
