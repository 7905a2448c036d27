package ingest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/postern/postern/flow"
)

// The form of a segment file, all numbers big-endian.
//
//	header (segmentHeaderLen bytes)
//	   0  magic "POSTERN\x01"
//	   8  format version           uint16
//	  10  reserved                 uint16
//	  12  rows per insert chunk    uint32
//	  16  spool id                 16 bytes
//	  32  segment number           uint64
//	  40  position of its first datagram  uint64
//	  48  time of creation         int64, ms
//	  56  reserved                 uint32
//	  60  CRC32C of the 60 bytes before
//
//	entry (entryHeaderLen bytes and the payload), one after the other
//	   0  marker 0xa55e            uint16
//	   2  kind                     uint8
//	   3  reason (refused)         uint8
//	   4  length of the payload    uint32
//	   8  CRC32C                   uint32
//	  12  datagrams before it in this segment  uint32
//	  16  time                     int64, ms
//	  24  exporter                 16 bytes
//	  40  source port              uint16
//	  42  reserved                 uint16
//	  44  payload
//
// The checksum of an entry starts from the spool id and the segment number and
// covers the entry's place in the file. An entry that somebody hid in a
// datagram's payload therefore never passes for one of ours when a reader looks
// for its place again after damage.
const (
	segmentMagic     = "POSTERN\x01"
	segmentVersion   = 1
	segmentHeaderLen = 64
	entryHeaderLen   = 44
	entryMarker      = 0xa55e

	// maxPayload bounds a payload: datagrams are at most 64 KiB by themselves,
	// the text of a policy version may be longer.
	maxPayload = 1 << 20
	// maxSegment bounds what is read of one file, whatever its size.
	maxSegment = 256<<20 + 2*maxPayload
	// resyncBudget bounds the bytes checksummed while looking for the next good
	// entry behind damage. A segment full of markers would otherwise cost its
	// length times maxPayload.
	resyncBudget = 64 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// EntryKind is what an entry of the spool says.
type EntryKind uint8

// The kinds of entry. Numbers are on disk and never change; a reader passes over
// kinds it does not know.
const (
	// EntryDatagram is a datagram as it came.
	EntryDatagram EntryKind = 1
	// EntryTick is a time of the injected clock.
	EntryTick EntryKind = 2
	// EntryRefused says that Count datagrams of Exporter were refused for Reason
	// before they reached the spool.
	EntryRefused EntryKind = 3
	// EntryPolicy says that a policy version came into force here; Payload is the
	// text handed to [Spool.Policy].
	EntryPolicy EntryKind = 4
	// EntryLines is a batch of a log's lines, see [Entry.Lines].
	EntryLines EntryKind = 5
)

// Entry is one entry of a segment, a value. Payload lies in the segment's buffer
// and is valid as long as the segment is.
type Entry struct {
	Kind     EntryKind
	Reason   flow.Reject // EntryRefused
	Port     uint16      // EntryDatagram: the exporter's UDP source port
	Time     flow.Time   // receipt, or when it was noted
	Exporter flow.Addr   // EntryDatagram, EntryRefused, EntryLines
	Position uint64      // EntryDatagram: its ordinal in the spool; else that of the next datagram
	Count    uint64      // EntryRefused
	Payload  []byte      // EntryDatagram, EntryPolicy, EntryLines
}

// Datagram is the entry as the decoder takes it; only for EntryDatagram.
func (e *Entry) Datagram() Datagram {
	return Datagram{Position: e.Position, Received: e.Time, Exporter: e.Exporter, Port: e.Port, Payload: e.Payload}
}

// SpoolID names a spool directory for its life. It is part of every
// deduplication token made of the spool's segments.
type SpoolID [16]byte

func (id SpoolID) String() string { return fmt.Sprintf("%x", id[:]) }

type segmentHeader struct {
	id        SpoolID
	seq       uint64
	first     uint64 // position of its first datagram
	created   flow.Time
	chunkRows uint32
}

func (h *segmentHeader) append(b []byte) []byte {
	n := len(b)
	b = append(b, segmentMagic...)
	b = binary.BigEndian.AppendUint16(b, segmentVersion)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint32(b, h.chunkRows)
	b = append(b, h.id[:]...)
	b = binary.BigEndian.AppendUint64(b, h.seq)
	b = binary.BigEndian.AppendUint64(b, h.first)
	b = binary.BigEndian.AppendUint64(b, uint64(h.created))
	b = binary.BigEndian.AppendUint32(b, 0)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[n:], castagnoli))
}

var (
	errSegmentHeader  = errors.New("no segment header, or a damaged one")
	errSegmentVersion = errors.New("segment of another format version")
)

func parseSegmentHeader(b []byte) (h segmentHeader, err error) {
	if len(b) < segmentHeaderLen || string(b[:8]) != segmentMagic ||
		crc32.Checksum(b[:60], castagnoli) != binary.BigEndian.Uint32(b[60:]) {
		return h, errSegmentHeader
	}
	if v := binary.BigEndian.Uint16(b[8:]); v != segmentVersion {
		return h, fmt.Errorf("%w: it is of version %d, this program reads version %d", errSegmentVersion, v, segmentVersion)
	}
	h.chunkRows = binary.BigEndian.Uint32(b[12:])
	copy(h.id[:], b[16:])
	h.seq = binary.BigEndian.Uint64(b[32:])
	h.first = binary.BigEndian.Uint64(b[40:])
	h.created = flow.Time(binary.BigEndian.Uint64(b[48:]))
	return h, nil
}

// seed is what the checksum of every entry of a segment starts from.
func (h *segmentHeader) seed() uint32 {
	var b [24]byte
	copy(b[:], h.id[:])
	binary.BigEndian.PutUint64(b[16:], h.seq)
	return crc32.Checksum(b[:], castagnoli)
}

// appendEntry appends e; at is the place in the file where it will stand, index
// the number of datagrams before it in the segment.
func appendEntry(b []byte, e *Entry, seed uint32, at int64, index uint32) []byte {
	n := len(b)
	payload := e.Payload
	var count [8]byte
	if e.Kind == EntryRefused {
		binary.BigEndian.PutUint64(count[:], e.Count)
		payload = count[:]
	}
	var h [entryHeaderLen]byte
	binary.BigEndian.PutUint16(h[0:], entryMarker)
	h[2], h[3] = byte(e.Kind), byte(e.Reason)
	binary.BigEndian.PutUint32(h[4:], uint32(len(payload)))
	binary.BigEndian.PutUint32(h[12:], index)
	binary.BigEndian.PutUint64(h[16:], uint64(e.Time))
	binary.BigEndian.PutUint64(h[24:], e.Exporter.Hi)
	binary.BigEndian.PutUint64(h[32:], e.Exporter.Lo)
	binary.BigEndian.PutUint16(h[40:], e.Port)
	b = append(b, h[:]...)
	b = append(b, payload...)
	binary.BigEndian.PutUint32(b[n+8:], entrySum(b[n:], seed, at))
	return b
}

// entrySum is the checksum of the entry in b, whose own checksum field is left out.
func entrySum(b []byte, seed uint32, at int64) uint32 {
	// The place goes into the start value: it is as good as eight bytes more and
	// needs no buffer.
	sum := crc32.Update(seed^uint32(at)*0x9e3779b1, castagnoli, b[:8])
	return crc32.Update(sum, castagnoli, b[12:])
}

// entryAt gives the length of a good entry at b[at:], or 0. sum says how many
// bytes were checksummed for the answer.
func entryAt(b []byte, at int, seed uint32) (n, sum int) {
	rest := b[at:]
	if len(rest) < entryHeaderLen || binary.BigEndian.Uint16(rest) != entryMarker {
		return 0, 0
	}
	size := binary.BigEndian.Uint32(rest[4:])
	if size > maxPayload || int(size) > len(rest)-entryHeaderLen {
		return 0, 0
	}
	n = entryHeaderLen + int(size)
	if EntryKind(rest[2]) == EntryRefused && size != 8 {
		return 0, 0
	}
	if entrySum(rest[:n], seed, int64(at)) != binary.BigEndian.Uint32(rest[8:]) {
		return 0, n
	}
	return n, n
}

// readEntry fills e from a good entry at b[at:] and gives the place behind it.
func (h *segmentHeader) readEntry(b []byte, at int, e *Entry) int {
	rest := b[at:]
	size := int(binary.BigEndian.Uint32(rest[4:]))
	e.Kind, e.Reason = EntryKind(rest[2]), flow.Reject(rest[3])
	e.Position = h.first + uint64(binary.BigEndian.Uint32(rest[12:]))
	e.Time = flow.Time(binary.BigEndian.Uint64(rest[16:]))
	e.Exporter = flow.Addr{Hi: binary.BigEndian.Uint64(rest[24:]), Lo: binary.BigEndian.Uint64(rest[32:])}
	e.Port = binary.BigEndian.Uint16(rest[40:])
	e.Payload = rest[entryHeaderLen : entryHeaderLen+size : entryHeaderLen+size]
	e.Count = 0
	if e.Kind == EntryRefused {
		e.Count = binary.BigEndian.Uint64(e.Payload)
		e.Payload = nil
	}
	return at + entryHeaderLen + size
}

// damage is what a scan of a segment could not read.
type damage struct {
	tail   int64  // bytes behind the last good entry
	middle int64  // bytes passed over between good entries
	lost   uint64 // datagrams that stood in the middle, told by the positions
	gaveUp bool   // the tail may hold good entries: looking for them cost too much
}

// scanSegment walks the entries of a whole segment file, checksums included, and
// calls visit for each good one with its bytes. It gives the place behind the
// last good entry and what it had to pass over. It never fails: what cannot be
// read is damage.
func scanSegment(h *segmentHeader, b []byte, visit func(e *Entry, raw []byte)) (end int, datagrams uint32, d damage) {
	seed := h.seed()
	var e Entry
	at, budget := segmentHeaderLen, resyncBudget
	end = at
	for at < len(b) {
		n, _ := entryAt(b, at, seed)
		if n == 0 {
			// Most often the length is good and the payload is not; looking byte
			// by byte finds the next entry in every case.
			for at++; at < len(b) && budget > 0; at++ {
				var sum int
				if b[at] != entryMarker>>8 {
					continue
				}
				if n, sum = entryAt(b, at, seed); n > 0 {
					break
				}
				budget -= sum
			}
			if n == 0 {
				d.gaveUp = budget <= 0
				break
			}
			d.middle += int64(at - end)
		}
		next := h.readEntry(b, at, &e)
		index := binary.BigEndian.Uint32(b[at+12:])
		if index > datagrams {
			d.lost += uint64(index - datagrams)
			datagrams = index
		}
		if e.Kind == EntryDatagram {
			datagrams++
		}
		visit(&e, b[at:next])
		at, end = next, next
	}
	d.tail = int64(len(b) - end)
	return end, datagrams, d
}
