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
// as it would be at the client.
func reframe(dst *chproto.Buffer, src []byte, revision uint64) error {
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
			if err := block.EncodeHeader(dst, revision); err != nil {
				return err
			}
			for _, c := range block.Columns { // names and types only: there is no state prefix without rows
				dst.PutString(c.Name())
				dst.PutString(string(c.Type()))
				if revision >= proto.DBMS_MIN_REVISION_WITH_CUSTOM_SERIALIZATION {
					dst.PutBool(false)
				}
			}
			continue
		}
		if err := encodeBlock(dst, &block, revision); err != nil {
			return fmt.Errorf("a result block for protocol revision %d: %w", revision, err)
		}
	}
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
