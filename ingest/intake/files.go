package intake

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/fsnotify/fsnotify"

	"github.com/postern/postern/ingest"
	"github.com/postern/postern/ingest/agent"
)

const (
	// filesEvery is how often files are looked at when nothing says that they changed.
	filesEvery = time.Second
	// fileChunk is how much of a file is read at a time: some megabytes a second of many
	// files come in turns.
	fileChunk = 1 << 20
	// fileHead is how much of its beginning tells a file from others.
	fileHead = 1024
	// fileRest is how long a file that no pattern names any more is still read: whoever wrote
	// it may not have closed it.
	fileRest = 10 * time.Second
	// fileKept is how long it is remembered how far a file was read, and fileRenew how long
	// before that is said again of one that is still there: it may not change for years.
	fileKept  = 90 * 24 * time.Hour
	fileRenew = 30 * 24 * time.Hour
	// primeBytes is how much of a file is looked at for headers when it is gone on with.
	primeBytes = 64 << 10
	// maxFiles bounds the files that are followed at a time.
	maxFiles = 4096
)

// follower follows files. How far each was read stands in the marks of its batches: a file is
// found again by its beginning, whatever its name is by then.
type follower struct {
	in    *Intake
	table *table
	open  []*followed
	marks map[[16]byte]ingest.Mark // of files that are not open
	told  map[string]bool
	watch *fsnotify.Watcher
	buf   []byte
	full  bool

	// packed are packed files that there is no more to be read of, as long as they stay as
	// they are, by path.
	packed map[string]packedFile
}

// packedFile is a packed file that is not open.
type packedFile struct {
	info    fs.FileInfo
	key     [16]byte // of its mark
	renewed time.Time
}

// followed is a file that is open.
type followed struct {
	*reader
	cfg   *FilesConfig
	path  string
	file  *os.File
	info  fs.FileInfo
	src   *bufio.Reader // of an unpacker; nil: file itself
	done  int64         // bytes handed on, unpacked: whole lines
	rest  []byte        // read behind them
	gone  time.Time
	ended bool

	renewed time.Time // when its mark was said again
	again   bool      // it ended for a reason that may have passed

	beginning []byte    // at most fileHead bytes
	size      int64     // when the beginning was looked at last
	changed   time.Time // likewise
}

// followFiles follows files until ctx ends.
func (in *Intake) followFiles(ctx context.Context) error {
	f := &follower{in: in, table: in.newTable(), marks: map[[16]byte]ingest.Mark{}, told: map[string]bool{}, packed: map[string]packedFile{}}
	for _, m := range in.opts.Log.Marks() {
		if m.Keep == fileKept {
			f.marks[m.Key] = m
		}
	}
	var wake chan fsnotify.Event
	var lost chan error
	if w, err := fsnotify.NewBufferedWatcher(1024); err == nil {
		f.watch, wake, lost = w, w.Events, w.Errors
		defer w.Close()
	} else {
		in.log.Warn("changes of files are seen each second only", "err", err)
	}
	defer f.closeAll()
	for {
		f.look()
		if err := f.renew(ctx); err != nil && ctx.Err() == nil {
			in.log.Error("how far files were read cannot be kept for longer", "err", err)
		}
		more := false
		for _, file := range f.open {
			again, err := f.take(ctx, file)
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				f.trouble(file.path, err)
				_, unreadable := errors.AsType[*unpackError](err)
				file.ended, file.again = true, !unreadable
			}
			more = more || again
		}
		f.sweep()
		if more {
			if ctx.Err() != nil {
				return nil
			}
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
			// What follows in the same moment is taken with it.
			time.Sleep(20 * time.Millisecond)
			for len(wake) > 0 {
				<-wake
			}
		case err := <-lost: // too many at once, as a rule; all files are looked at in any case
			in.log.Debug("changes of files were missed", "err", err)
		case <-time.After(filesEvery):
		}
	}
}

func (f *follower) trouble(path string, err error) {
	if text := path + ": " + err.Error(); !f.told[text] && len(f.told) < 1000 {
		f.told[text] = true
		f.in.log.Error("a file of logs cannot be followed", "file", path, "err", err)
	}
}

func (f *follower) closeAll() {
	for _, file := range f.open {
		file.file.Close()
	}
}

// look finds the files that the patterns name and opens those that are new.
func (f *follower) look() {
	now := time.Now()
	seen, paths := map[*followed]bool{}, map[string]bool{}
	for i := range f.in.cfg.Files {
		cfg := &f.in.cfg.Files[i]
		for _, path := range f.paths(cfg) {
			info, err := os.Stat(path)
			if err != nil || !info.Mode().IsRegular() {
				continue
			}
			paths[path] = true
			if f.atRest(path, info, now) {
				continue
			}
			file := f.held(info)
			if file != nil {
				file.path, file.info = path, info
			} else if info.Size() > 0 {
				if file, err = f.begin(cfg, path); err != nil {
					f.trouble(path, err)
				}
			}
			if file != nil {
				seen[file] = true
			}
		}
	}
	maps.DeleteFunc(f.packed, func(path string, _ packedFile) bool { return !paths[path] })
	var behind int64
	for _, file := range f.open {
		if seen[file] {
			file.gone = time.Time{}
		} else if file.gone.IsZero() {
			file.gone = now
		}
		if file.src == nil {
			behind += max(0, file.info.Size()-file.done)
		}
	}
	f.in.met.files.Set(float64(len(f.open)))
	f.in.met.behind.Set(float64(behind))
}

// paths lists the files that a group names, in order.
func (f *follower) paths(cfg *FilesConfig) (out []string) {
	for _, p := range cfg.Paths {
		found, err := filepath.Glob(p)
		if err != nil {
			continue // checked with the configuration
		}
		for _, path := range found {
			if info, err := os.Stat(path); err == nil && info.IsDir() {
				f.see(path)
				entries, err := os.ReadDir(path)
				if err != nil {
					f.trouble(path, err)
				}
				for _, e := range entries {
					if e.Type().IsRegular() && !strings.HasPrefix(e.Name(), ".") {
						out = append(out, filepath.Join(path, e.Name()))
					}
				}
				continue
			}
			f.see(filepath.Dir(path))
			out = append(out, path)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (f *follower) see(dir string) {
	if f.watch != nil && !slices.Contains(f.watch.WatchList(), dir) {
		_ = f.watch.Add(dir) // a folder that cannot be watched is looked at each second
	}
}

// atRest says whether there is no more to be read of a packed file. One that ended in its
// middle, and has become more since, is left until it is finished: it has to be unpacked from
// its beginning.
func (f *follower) atRest(path string, info fs.FileInfo, now time.Time) bool {
	was, ok := f.packed[path]
	if !ok {
		return false
	}
	if !os.SameFile(was.info, info) || (was.info.Size() != info.Size() || !was.info.ModTime().Equal(info.ModTime())) && now.Sub(info.ModTime()).Abs() > fileRest {
		delete(f.packed, path)
		return false
	}
	return true
}

// renew has it remembered for longer how far the files were read that are there: after a start
// and every 30 days.
func (f *follower) renew(ctx context.Context) error {
	now := time.Now()
	var again []ingest.Lines
	due := func(key [16]byte, renewed *time.Time) {
		if now.Sub(*renewed) < fileRenew {
			return
		}
		*renewed = now
		if m, ok := f.in.opts.Log.Mark(key); ok {
			again = append(again, ingest.Lines{Received: f.in.opts.Clock(), Mark: m})
		}
	}
	for _, file := range f.open {
		due(file.key, &file.renewed)
	}
	for path, file := range f.packed {
		due(file.key, &file.renewed)
		f.packed[path] = file
	}
	if len(again) == 0 {
		return nil
	}
	return f.in.append(ctx, again)
}

// held finds the open file that info is of.
func (f *follower) held(info fs.FileInfo) *followed {
	for _, file := range f.open {
		if os.SameFile(file.info, info) {
			return file
		}
	}
	return nil
}

// begin opens a file: where it was read before it goes on there. nil without an error: there
// is nothing to do about it.
func (f *follower) begin(cfg *FilesConfig, path string) (_ *followed, err error) {
	if len(f.open) >= maxFiles {
		if !f.full {
			f.full = true
			f.in.log.Error("too many files of logs; further ones wait until others end", "files", maxFiles)
		}
		return nil, nil
	}
	h, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	file := &followed{cfg: cfg, path: path, file: h}
	defer func() {
		if err != nil || file.reader == nil {
			h.Close()
		}
	}()
	// What the path was of before it was opened may have been renamed in between.
	if file.info, err = h.Stat(); err != nil || file.info.Size() == 0 || !file.info.Mode().IsRegular() {
		return nil, err
	}
	if strings.HasSuffix(path, ".gz") {
		z, err := gzip.NewReader(h)
		if err != nil {
			return nil, err
		}
		file.src = bufio.NewReaderSize(unpacker{z}, 64<<10)
	}
	mark, err := f.find(file)
	if err != nil {
		return nil, err
	}
	if file.src != nil && mark.Ended {
		f.packed[path] = packedFile{info: file.info, key: mark.Key}
		return nil, nil
	}
	if _, ours := f.marks[mark.Key]; ours {
		delete(f.marks, mark.Key)
	} else if _, err := rand.Read(mark.Key[:]); err != nil {
		return nil, err
	}
	file.reader, err = f.in.readerOf("file", cfg.Format, cfg.Events, agent.Origin{Seed: binary.BigEndian.Uint64(mark.Key[:]), Observer: cfg.Observer}, mark.Key, f.table)
	if err != nil {
		return nil, err
	}
	file.number = mark.To // rises with the place in the file
	if mark.To > 0 {
		if err := file.resume(int64(mark.To)); err != nil {
			return nil, err
		}
		f.in.log.Info("going on with a file of logs", "file", path, "offset", mark.To)
	}
	f.open = append(f.open, file)
	return file, nil
}

// find looks for the mark of a file: of those whose beginning is the file's, the one that
// says furthest. It may be that of a file which is open: logs are rotated by copying, and
// packed beside the original.
func (f *follower) find(file *followed) (best ingest.Mark, err error) {
	head, err := file.head(fileHead)
	if err != nil {
		return best, err
	}
	sums := map[int]uint64{}
	consider := func(m ingest.Mark) {
		n := int(min(m.To, fileHead))
		if n == 0 || n > len(head) || file.src == nil && int64(m.To) > file.info.Size() {
			return
		}
		sum, known := sums[n]
		if !known {
			sum = xxhash.Sum64(head[:n])
			sums[n] = sum
		}
		if sum == m.Check && m.To > best.To {
			best = m
		}
	}
	for _, m := range f.marks {
		consider(m)
	}
	for _, other := range f.open {
		if m, ok := f.in.opts.Log.Mark(other.key); ok {
			consider(m)
		}
	}
	return best, nil
}

// head gives the first n bytes, or as many as there are, of a file that is not read yet.
func (file *followed) head(n int) ([]byte, error) {
	if file.src != nil {
		b, err := file.src.Peek(n)
		if _, cut := errors.AsType[*unpackError](err); cut || errors.Is(err, io.EOF) {
			err = nil
		}
		return slices.Clone(b), err
	}
	b := make([]byte, n)
	k, err := file.file.ReadAt(b, 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return b[:k], err
}

// resume goes on at an offset. What stands at the file's beginning may bear on what comes:
// column names, an array that was opened.
func (file *followed) resume(offset int64) error {
	head, err := file.head(int(min(offset, primeBytes)))
	if err != nil {
		return err
	}
	for at := 0; at < len(head); {
		item, n, err := file.next(head[at:], false)
		if n == 0 || err == nil && len(item) > 0 && !file.prime(item) {
			break
		}
		at += n
	}
	file.beginning = head[:min(len(head), fileHead)]
	if file.src == nil {
		_, err = file.file.Seek(offset, io.SeekStart)
	} else {
		_, err = io.CopyN(io.Discard, file.src, offset)
		if errors.Is(err, io.EOF) {
			err = errors.New("it is shorter than what was read of it before")
		}
	}
	file.done = offset
	return err
}

// take reads on in a file; again says that there is more at once.
func (f *follower) take(ctx context.Context, file *followed) (again bool, err error) {
	if file.ended {
		return false, nil
	}
	read := file.done + int64(len(file.rest))
	if file.src == nil {
		if cut, err := file.cutShort(read); err != nil || cut {
			if cut {
				f.in.log.Info("a file of logs was cut; it is read from its beginning", "file", file.path, "read", read)
				file.ended = true // and begun anew, under a key of its own
			}
			return cut, err
		}
	}
	f.buf = append(f.buf[:0], file.rest...)
	buf := slices.Grow(f.buf, fileChunk)
	n, err := io.ReadFull(file.source(), buf[len(buf):len(buf)+fileChunk])
	buf = buf[:len(buf)+n]
	f.buf = buf
	f.in.met.bytes.WithLabelValues("file").Add(float64(n))
	end := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	var broken error // what is unpacked up to there is good
	if cut, ok := errors.AsType[*unpackError](err); ok {
		broken = cut
	} else if err != nil && !end {
		return false, err
	}
	last := end && (file.src != nil || !file.gone.IsZero() && time.Since(file.gone) > fileRest)
	if n == 0 && !last {
		return false, broken
	}
	if k := fileHead - len(file.beginning); k > 0 {
		fresh := buf[len(file.rest):]
		file.beginning = append(file.beginning, fresh[:min(k, len(fresh))]...)
	}
	if err := f.lines(ctx, file, buf, last); err != nil {
		return false, err
	}
	file.ended = last
	return !end, broken
}

// cutShort says whether a file is not any more what was read of it: shorter, or with another
// beginning.
func (file *followed) cutShort(read int64) (bool, error) {
	info, err := file.file.Stat()
	if err != nil || info.Size() < read {
		return err == nil, err
	}
	if info.Size() == file.size && info.ModTime().Equal(file.changed) {
		return false, nil
	}
	file.size, file.changed = info.Size(), info.ModTime()
	head := make([]byte, len(file.beginning))
	if _, err := file.file.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	return !bytes.Equal(head, file.beginning), nil
}

// unpacker is a packed file unpacked.
type unpacker struct{ z *gzip.Reader }

func (u unpacker) Read(b []byte) (int, error) {
	n, err := u.z.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &unpackError{err.Error()}
	}
	return n, err
}

// unpackError is that a packed file is broken or not finished.
type unpackError struct{ why string }

func (e *unpackError) Error() string {
	return "it cannot be unpacked further, and is looked at again when it has changed: " + e.why
}

func (file *followed) source() io.Reader {
	if file.src != nil {
		return file.src
	}
	return file.file
}

// lines hands on what buf holds of whole lines.
func (f *follower) lines(ctx context.Context, file *followed, buf []byte, last bool) error {
	file.origin.Received = f.in.opts.Clock()
	file.rename(f.table)
	var batches []ingest.Lines
	rest, done := buf, file.done
	for len(rest) > 0 {
		item, n, err := file.next(rest, last)
		if n == 0 {
			break
		}
		if err != nil || len(item) > 0 {
			file.line(item, uint64(done), err)
		}
		done += int64(n)
		rest = rest[n:]
		if file.full() && len(rest) > 0 {
			batches = file.cut(batches, file.mark(done, false))
		}
	}
	if file.counts.Sum() > 0 || last {
		batches = file.cut(batches, file.mark(done, last))
	}
	f.table = file.table
	if err := file.give(ctx); err != nil {
		return err
	}
	if err := f.in.append(ctx, batches); err != nil {
		return err
	}
	file.done = done
	file.rest = append(file.rest[:0], rest...)
	return nil
}

// mark says how far the file was read, and how to find it again.
func (file *followed) mark(to int64, ended bool) ingest.Mark {
	return ingest.Mark{Key: file.key, To: uint64(to), Ended: ended, Keep: fileKept, Check: xxhash.Sum64(file.beginning[:min(to, int64(len(file.beginning)))])}
}

// sweep closes files that have ended.
func (f *follower) sweep() {
	f.open = slices.DeleteFunc(f.open, func(file *followed) bool {
		if !file.ended {
			return false
		}
		file.file.Close()
		if file.src != nil && !file.again {
			f.packed[file.path] = packedFile{file.info, file.key, file.renewed}
		}
		if m, ok := f.in.opts.Log.Mark(file.key); ok {
			f.marks[m.Key] = m
		}
		f.full = false
		return true
	})
}
