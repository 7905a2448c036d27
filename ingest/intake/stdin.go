package intake

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"

	"github.com/postern/postern/ingest"
	"github.com/postern/postern/ingest/agent"
)

// readStdin reads standard input to its end. There is no going back in it: what was read
// and not yet appended when the process is killed is lost, at most a batch.
func (in *Intake) readStdin(ctx context.Context) error {
	s, err := in.newStream("stdin", in.cfg.Stdin.Format, "", agent.Origin{Observer: in.cfg.Stdin.Observer})
	if err != nil {
		return err
	}
	chunks := make(chan []byte)
	failed := make(chan error, 1)
	go func() { // a read of standard input cannot be ended
		for {
			b := make([]byte, 64<<10)
			n, err := in.opts.Stdin.Read(b)
			if n > 0 {
				select {
				case chunks <- b[:n]:
				case <-ctx.Done():
					return
				}
			}
			if err != nil {
				failed <- err
				return
			}
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case b := <-chunks:
			err = s.take(ctx, b, false)
		case err = <-failed:
			if !errors.Is(err, io.EOF) {
				return err
			}
			if err = s.take(ctx, nil, true); err == nil {
				in.log.Info("standard input has ended", "lines", s.lines, "flows", s.flows)
				<-ctx.Done()
				return nil
			}
		}
		if err != nil {
			return err
		}
	}
}

// stream is an input that comes bit by bit and cannot be gone back in.
type stream struct {
	*reader
	buf []byte
	at  uint64
}

func (in *Intake) newStream(way, format, events string, origin agent.Origin) (*stream, error) {
	var id [24]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	origin.Seed = binary.BigEndian.Uint64(id[16:])
	r, err := in.readerOf(way, format, events, origin, [16]byte(id[:16]), in.newTable())
	if err != nil {
		return nil, err
	}
	return &stream{reader: r}, nil
}

// take takes bytes in and hands on what they make up; at the end what is left too.
func (s *stream) take(ctx context.Context, b []byte, end bool) error {
	s.origin.Received = s.in.opts.Clock()
	s.in.met.bytes.WithLabelValues(s.way).Add(float64(len(b)))
	s.buf = append(s.buf, b...)
	rest := s.buf
	for len(rest) > 0 {
		item, n, err := s.next(rest, end)
		if n == 0 {
			break
		}
		if err != nil || len(item) > 0 {
			s.line(item, s.at, err)
		}
		s.at += uint64(n)
		rest = rest[n:]
		if s.full() {
			if err := s.flush(ctx); err != nil {
				return err
			}
		}
	}
	s.buf = append(s.buf[:0], rest...)
	return s.flush(ctx)
}

// flush hands on what was gathered.
func (s *stream) flush(ctx context.Context) error {
	if s.counts.Sum() == 0 {
		return nil
	}
	if err := s.give(ctx); err != nil {
		return err
	}
	return s.in.append(ctx, s.cut(nil, ingest.Mark{}))
}
