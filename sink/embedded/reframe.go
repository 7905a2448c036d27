package embedded

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	chproto "github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2/lib/column"
	"github.com/ClickHouse/clickhouse-go/v2/lib/proto"
)

// reframe appends to dst the Native blocks of src, which the engine writes for
// protocol revision 0, as a client of the given revision expects them: with block
// info and a serialization flag a column. The columns are decoded and encoded
// again because only that finds where a column ends; a type the driver's own
// library does not know (a state of an aggregate function, say) is an error here
// as it would be at the client. each, if it is not nil, is called when a block has
// been appended.
func reframe(dst *chproto.Buffer, src []byte, revision uint64, each func(*proto.Block) error) error {
	raw := bytes.NewReader(src)
	in := chproto.NewReader(raw)
	for {
		block := proto.Block{ServerContext: &column.ServerContext{Revision: revision, Timezone: time.UTC}}
		if err := block.Decode(in, 0); err != nil {
			if errors.Is(err, io.EOF) && len(block.Columns) == 0 {
				return nil
			}
			return fmt.Errorf("a result block for protocol revision %d: %w", revision, err)
		}
		if block.Rows() == 0 {
			names, types := columnsOf(&block)
			encodeHeader(dst, names, types, revision)
		} else if err := encodeBlock(dst, &block, revision); err != nil {
			return fmt.Errorf("a result block for protocol revision %d: %w", revision, err)
		}
		if each != nil {
			if err := each(&block); err != nil {
				return err
			}
		}
	}
}

// columnsOf returns the names and types of a block's columns.
func columnsOf(block *proto.Block) (names, types []string) {
	for _, c := range block.Columns {
		names, types = append(names, c.Name()), append(types, string(c.Type()))
	}
	return names, types
}

// encodeHeader appends a block of no rows: there is no state prefix without them.
func encodeHeader(dst *chproto.Buffer, names, types []string, revision uint64) {
	encodeBlockHead(dst, len(names), 0, revision)
	for i, name := range names {
		dst.PutString(name)
		dst.PutString(types[i])
		if revision >= revisionCustom {
			dst.PutBool(false)
		}
	}
}

// encodeBlockHead appends what stands before the columns of a block.
func encodeBlockHead(dst *chproto.Buffer, columns, rows int, revision uint64) {
	chproto.Block{Info: chproto.BlockInfo{BucketNum: -1}, Columns: columns, Rows: rows}.EncodeAware(dst, int(revision))
}

// encodeBlock is the driver's own encoding, but for the byte a row that a column
// of bare NULLs takes on the wire, which the driver reads and does not write.
func encodeBlock(dst *chproto.Buffer, block *proto.Block, revision uint64) error {
	if err := block.EncodeHeader(dst, revision); err != nil {
		return err
	}
	for i, c := range block.Columns {
		if err := block.EncodeColumn(dst, revision, i); err != nil {
			return err
		}
		if t := c.Type(); t == "Nothing" || t == "Nullable(Nothing)" {
			dst.PutRaw(make([]byte, block.Rows()))
		}
	}
	return nil
}
