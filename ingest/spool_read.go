package ingest

import (
	"context"
	"fmt"
	"io"
	"iter"

	"github.com/postern/postern/flow"
)

// Segment is a sealed segment in memory. It is valid until the next call of
// [Spool.Next].
type Segment struct {
	header segmentHeader
	buf    []byte // the whole file; where it was damaged, header and good entries
	lost   map[flow.Addr]uint64
	lostL  map[flow.Addr]uint64
}

// Seq is its number. Numbers rise and are never given twice in the life of a
// spool; some may be missing.
func (g *Segment) Seq() uint64 { return g.header.seq }

// Spool is the id of the directory it stood in.
func (g *Segment) Spool() SpoolID { return g.header.id }

// ChunkRows is how many rows an insert of its flows holds.
func (g *Segment) ChunkRows() int { return int(g.header.chunkRows) }

// Created is when it was opened.
func (g *Segment) Created() flow.Time { return g.header.created }

// Lost is how many datagrams by exporter were appended to it by this process and
// could not be read back; nil if all could.
func (g *Segment) Lost() map[flow.Addr]uint64 { return g.lost }

// LostLines is how many lines of logs by who sent them could not be read back; nil if all
// could.
func (g *Segment) LostLines() map[flow.Addr]uint64 { return g.lostL }

// Entries gives the entries, without lines of a group that was not finished, in the order they were appended. It may be called
// again for the same once more.
func (g *Segment) Entries() iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		var e Entry
		whole := 0 // up to here groups are known to be whole
		for at := segmentHeaderLen; at < len(g.buf); {
			at = g.header.readEntry(g.buf, at, &e)
			if e.Kind == EntryLines && at > whole {
				ahead, last := at, e
				if last.unfinished(func(n *Entry) bool {
					if ahead >= len(g.buf) {
						return false
					}
					ahead = g.header.readEntry(g.buf, ahead, n)
					return true
				}) {
					continue
				}
				whole = ahead
			}
			if !yield(e) {
				return
			}
		}
	}
}

// parse checks a whole segment file, which it takes over. Afterwards buf holds
// good entries only.
func (g *Segment) parse(buf []byte) (d damage, err error) {
	g.buf, g.lost, g.lostL = buf[:0], nil, nil
	if g.header, err = parseSegmentHeader(buf); err != nil {
		return d, err
	}
	// Entries move down over what was damaged, never up, so the walk ahead still
	// reads what stood there.
	good := buf[:segmentHeaderLen]
	_, _, d = scanSegment(&g.header, buf, func(_ *Entry, raw []byte) { good = append(good, raw...) })
	g.buf = good
	return d, nil
}

// Seek makes [Spool.Next] go on behind segment after: the one that the last
// checkpoint reflects. Zero is the beginning.
func (s *Spool) Seek(after uint64) {
	s.mu.Lock()
	s.cursor = after
	s.mu.Unlock()
}

// Next gives the next sealed segment in order and waits for one if need be. It
// gives io.EOF behind the last one after [Spool.Stop] or [Spool.Close], and ctx's
// error when ctx ends. After any other error, which is the disk's, the same
// segment is tried again.
func (s *Spool) Next(ctx context.Context) (*Segment, error) {
	for {
		s.mu.Lock()
		g := s.nextFile()
		ready := g != nil && g.sealed && g.synced
		end := s.stopped && (g == nil || !g.sealed)
		s.mu.Unlock()
		if ready {
			return s.read(g) // what a sealed segment says of itself changes no more
		}
		if end {
			return nil, io.EOF
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.ready:
		}
	}
}

// Behind says whether another sealed segment waits behind the one that
// [Spool.Next] gave last: the consumer has not caught up.
func (s *Spool) Behind() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.nextFile()
	return g != nil && g.sealed
}

func (s *Spool) nextFile() *segmentFile {
	for _, g := range s.segments {
		if g.seq > s.cursor {
			return g
		}
	}
	return nil
}

func (s *Spool) read(f *segmentFile) (*Segment, error) {
	g := &s.segment
	buf, err := readSegmentFile(f.path, g.buf)
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	d, err := g.parse(buf)
	if err != nil {
		// It had a header when it was written or opened; the disk has lost it since.
		// The segment comes out empty, with all its datagrams lost.
		g.header, d = f.segmentHeader, damage{tail: int64(len(buf))}
		g.buf = f.segmentHeader.append(buf[:0])
	}
	missing := f.size - int64(len(buf))
	if d.middle > 0 || d.tail > 0 || missing > 0 {
		s.tell(f, g, d.middle+d.tail+max(missing, 0))
	}
	s.mu.Lock()
	s.cursor = f.seq
	s.mu.Unlock()
	return g, nil
}

// tell counts what was in a segment and is not any more.
func (s *Spool) tell(f *segmentFile, g *Segment, bytes int64) {
	read, lines := map[flow.Addr]uint64{}, map[flow.Addr]uint64{}
	for e := range g.Entries() {
		switch e.Kind {
		case EntryDatagram:
			read[e.Exporter]++
		case EntryLines:
			if l, ok := e.Lines(); ok {
				lines[e.Exporter] += l.Counts.Sum()
			}
		}
	}
	var lost uint64
	for _, c := range f.counts {
		if n := c.datagrams - min(c.datagrams, read[c.exporter.addr]); n > 0 {
			if g.lost == nil {
				g.lost = map[flow.Addr]uint64{}
			}
			g.lost[c.exporter.addr] = n
			lost += n
		}
	}
	for a, had := range f.lines {
		if n := had - min(had, lines[a]); n > 0 {
			if g.lostL == nil {
				g.lostL = map[flow.Addr]uint64{}
			}
			g.lostL[a] = n
			s.log.Error("spool: lines of logs were damaged after they were written", "segment", f.seq, "exporter", a.String(), "lines", n)
		}
	}
	if lost > 0 {
		s.metrics.corruptBytes.Add(float64(bytes))
		s.metrics.lost.Add(float64(lost))
		s.log.Error("spool: a segment was damaged after it was written, what can be read of it is used",
			"segment", f.seq, "bytes", bytes, "datagrams", lost)
	}
}
