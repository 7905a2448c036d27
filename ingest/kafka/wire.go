package kafka

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/cespare/xxhash/v2"

	"github.com/postern/postern/flow"
)

// A value of the flows topic is a batch of flow records of one partition, laid out
// by column. It is not compressed by itself: Kafka's record batch is, once. All
// fixed-size integers are little-endian; "uvarint" is the unsigned LEB128 of
// encoding/binary.
//
//	offset  size
//	0       4     magic "PFLW"
//	4       1     major version, wireMajor
//	5       1     minor version, wireMinor; says nothing to a reader
//	6       2     rows, at most BatchRows
//	8       16    producer
//	24      4     epoch
//	28      4     partition
//	32      4     partitions
//	36      8     sequence
//	44      1     number of columns
//	45            columns: id (1), encoding (1), length of the content (4), content
//
// A reader skips columns whose id it does not know, and takes a column that is not
// there as zero in every row; a writer leaves such columns out. So a column may be
// added under the next free id with only the minor version raised, and binaries of
// both kinds read each other's values. Only what an older reader would misread
// raises the major version, and that reader refuses the value. A reader reads every
// major version from 1 to its own, since the topic still holds what older writers
// wrote.
//
// The columns and their encodings are in wire_columns.go.
const (
	wireMagic  = "PFLW"
	wireMajor  = 1
	wireMinor  = 1
	headerSize = 45
	columnHead = 6
)

// BatchRows is how many records a value holds at most. A thousand rows are enough
// for the dictionaries and constant columns to cost next to nothing a row, and few
// enough that columns of a batch stay in the processor's cache while it is written.
const BatchRows = 1024

// Header says where a batch stands among the others of its producer. Producer,
// Epoch, Partition and Seq together name a batch: two values that agree in them are
// the same batch, sent twice.
type Header struct {
	Producer   [16]byte // a spool's id, or a hash of the foreign partition the flows came from
	Epoch      uint32   // rises when the topic's number of partitions is changed
	Partition  uint32   // the partition the batch was cut for, from 0
	Partitions uint32   // the number of partitions the batch was cut for
	Seq        uint64   // strictly rising per producer, epoch and partition
}

func (h *Header) append(dst []byte, rows int) []byte {
	le := binary.LittleEndian
	dst = append(append(dst, wireMagic...), wireMajor, wireMinor)
	dst = le.AppendUint16(dst, uint16(rows))
	dst = append(dst, h.Producer[:]...)
	dst = le.AppendUint32(dst, h.Epoch)
	dst = le.AppendUint32(dst, h.Partition)
	dst = le.AppendUint32(dst, h.Partitions)
	dst = le.AppendUint64(dst, h.Seq)
	return append(dst, 0) // the number of columns is not known yet
}

// ReadHeader reads only the header and the number of rows. An error says why value
// is no batch that this binary can read.
func ReadHeader(value []byte) (h Header, rows int, err error) {
	if len(value) < len(wireMagic)+2 || string(value[:len(wireMagic)]) != wireMagic {
		return h, 0, fmt.Errorf("no batch of flows: %d bytes that do not begin with %q and a version", len(value), wireMagic)
	}
	switch v := value[4]; {
	case v > wireMajor:
		return h, 0, fmt.Errorf("a batch of flows of wire version %d, this binary reads versions up to %d: upgrade detectors before collectors", v, wireMajor)
	case v == 0:
		return h, 0, errors.New("a batch of flows of wire version 0, which never was: versions begin at 1")
	}
	if len(value) < headerSize {
		return h, 0, fmt.Errorf("a batch of flows cut short: %d bytes, its header has %d", len(value), headerSize)
	}
	le := binary.LittleEndian
	if rows = int(le.Uint16(value[6:])); rows > BatchRows {
		return h, 0, fmt.Errorf("a batch of flows with %d rows, at most %d are allowed", rows, BatchRows)
	}
	copy(h.Producer[:], value[8:])
	h.Epoch, h.Partition, h.Partitions = le.Uint32(value[24:]), le.Uint32(value[28:]), le.Uint32(value[32:])
	h.Seq = le.Uint64(value[36:])
	return h, rows, nil
}

// seed begins the ids of the batch's records.
func (h *Header) seed() uint64 {
	le := binary.LittleEndian
	v := flow.Mix(le.Uint64(h.Producer[:]))
	v = flow.Mix(v ^ le.Uint64(h.Producer[8:]))
	v = flow.Mix(v ^ (uint64(h.Epoch)<<32 | uint64(h.Partition)))
	return flow.Mix(v ^ h.Seq)
}

// Partition is where the flows between a and b go, of n partitions; zero if n is
// less than two. Both directions of a conversation and all its observers meet in
// one partition, since neither the order of a and b nor ports take part.
//
// The number is fixed for good and can be computed elsewhere. Of each address take
// the canonical form ([flow.Addr.Canonical]: behind 64:ff9b::/96 stands the IPv4
// address) as 16 bytes in network byte order, IPv4 as ::ffff:a.b.c.d. Put the
// smaller of the two, as bytes, before the larger, and let x be the XXH64 with seed
// 0 of those 32 bytes. The partition is the upper 64 bits of the 128-bit product
// x·n, that is ⌊x·n / 2⁶⁴⌋.
func Partition(a, b flow.Addr, n int) int {
	if n < 2 {
		return 0
	}
	a, b = a.Canonical(), b.Canonical()
	if a.Compare(b) > 0 {
		a, b = b, a
	}
	var key [32]byte
	be := binary.BigEndian
	be.PutUint64(key[0:], a.Hi)
	be.PutUint64(key[8:], a.Lo)
	be.PutUint64(key[16:], b.Hi)
	be.PutUint64(key[24:], b.Lo)
	hi, _ := bits.Mul64(xxhash.Sum64(key[:]), uint64(n))
	return int(hi)
}
