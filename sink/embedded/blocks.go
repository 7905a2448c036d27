package embedded

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ClickHouse/ch-go/compress"
)

// A compressed block of ClickHouse: 16 bytes of checksum, then a header of method
// (1), size with this header (4) and size of the data (4), little endian.
const (
	blockChecksum = 16
	blockHeader   = 9
	maxBlock      = 128 << 20 // what ch-go's reader takes, before and after compression
)

// blockReader takes compressed blocks apart (decompress=1). ch-go's own reader
// cannot tell a body cut off inside a block from one that ends behind a block;
// this one hands it a block at a time and can.
type blockReader struct {
	in    io.Reader
	frame []byte
	src   bytes.Reader
	dec   *compress.Reader
	data  []byte
	rest  []byte
}

func newBlockReader(r io.Reader) *blockReader {
	b := &blockReader{in: r}
	b.dec = compress.NewReader(&b.src)
	return b
}

func (b *blockReader) Read(p []byte) (int, error) {
	for len(b.rest) == 0 {
		if err := b.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

func (b *blockReader) next() error {
	var head [blockChecksum + blockHeader]byte
	if _, err := io.ReadFull(b.in, head[:]); err != nil {
		return err // io.EOF only where not a byte came: the end
	}
	size := int64(binary.LittleEndian.Uint32(head[blockChecksum+1:]))
	data := int64(binary.LittleEndian.Uint32(head[blockChecksum+5:]))
	if size < blockHeader || size > maxBlock || data > maxBlock {
		return fmt.Errorf("a compressed block of %d bytes for %d; at most %d are taken", size, data, maxBlock)
	}
	frame := bytes.NewBuffer(append(b.frame[:0], head[:]...))
	if n, err := io.CopyN(frame, b.in, size-blockHeader); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("a compressed block breaks off after %d of %d bytes: %w", n, size-blockHeader, err)
	}
	b.frame = frame.Bytes()
	b.src.Reset(b.frame)
	if int64(cap(b.data)) < data {
		b.data = make([]byte, data)
	}
	b.rest = b.data[:data]
	if _, err := io.ReadFull(b.dec, b.rest); err != nil {
		b.rest = nil
		return fmt.Errorf("a compressed block: %w", err)
	}
	return nil
}
