package kafka

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"

	"github.com/postern/postern/flow"
)

// The columns. An id, once given, keeps its meaning; new ones go to the end.
//
// The first four are dictionaries: their content begins with a uvarint, how many
// entries they hold. An address column holds for each row 0 for the zero address,
// i for the i-th entry of addr4, and beyond those the entries of addr6. A name
// column holds 0 for no name, i for the i-th entry of texts.
//
// Times are relative, so that what is alike in a batch is small: received to the
// row before (the first to zero), as zigzag; end as zigzag(received − end); start
// as end − start, modulo 2⁶⁴.
const (
	colAddr4   = iota + 1 // IPv4 addresses as integers
	colAddr6Hi            // the upper and
	colAddr6Lo            // the lower halves of other addresses, as many of each
	colTexts
	colReceived
	colEnd
	colStart
	colExporter
	colSrc
	colDst
	colNATSrc
	colNATDst
	colDomain
	colSamplingRate
	colBytes
	colPackets
	colRevBytes
	colRevPackets
	colInIf
	colOutIf
	colUser
	colApp
	colSrcIdentity
	colDstIdentity
	colHas
	colQuality
	colSkew // the 32 bits of the two's complement
	colSrcPort
	colDstPort
	colNATSrcPort
	colNATDstPort
	colTCPFlags
	colRevTCPFlags
	colProto
	colSource
	colICMPType
	colICMPCode
	colForwardingStatus
	colFirewallEvent
	colDirection
	colBiflowDirection
	// Since minor version 1.
	colObserver
	colEnforcedBy
	colSrcHost
	colDstHost
	colSrcProcess
	colDstProcess
	colEnforced
	colReporter
	numColumns

	firstRowColumn = colReceived
)

// columnInfo is a column's name, as messages say it, and how many bits a value may have.
// Columns that are rare are in a batch together or not at all filled; see transpose.
var columnInfo = [numColumns]struct {
	name string
	bits int
	rare bool
}{
	colAddr4: {"addr4", 32, false}, colAddr6Hi: {"addr6_hi", 64, false}, colAddr6Lo: {"addr6_lo", 64, false}, colTexts: {"texts", 0, false},
	colReceived: {"received", 64, false}, colEnd: {"end", 64, false}, colStart: {"start", 64, false},
	colExporter: {"exporter", 16, false}, colSrc: {"src", 16, false}, colDst: {"dst", 16, false}, colNATSrc: {"nat_src", 16, true}, colNATDst: {"nat_dst", 16, true},
	colDomain: {"domain", 32, false}, colSamplingRate: {"sampling_rate", 32, false},
	colBytes: {"bytes", 64, false}, colPackets: {"packets", 64, false}, colRevBytes: {"rev_bytes", 64, true}, colRevPackets: {"rev_packets", 64, true},
	colInIf: {"in_if", 32, false}, colOutIf: {"out_if", 32, false},
	colUser: {"user", 16, true}, colApp: {"app", 16, true}, colSrcIdentity: {"src_identity", 16, true}, colDstIdentity: {"dst_identity", 16, true},
	colHas: {"has", 32, false}, colQuality: {"quality", 32, false}, colSkew: {"skew", 32, true},
	colSrcPort: {"src_port", 16, false}, colDstPort: {"dst_port", 16, false}, colNATSrcPort: {"nat_src_port", 16, true}, colNATDstPort: {"nat_dst_port", 16, true},
	colTCPFlags: {"tcp_flags", 16, false}, colRevTCPFlags: {"rev_tcp_flags", 16, true},
	colProto: {"proto", 8, false}, colSource: {"source", 8, false}, colICMPType: {"icmp_type", 8, false}, colICMPCode: {"icmp_code", 8, false},
	colForwardingStatus: {"forwarding_status", 8, true}, colFirewallEvent: {"firewall_event", 8, true},
	colDirection: {"direction", 8, true}, colBiflowDirection: {"biflow_direction", 8, true},
	colObserver: {"observer", 16, true}, colEnforcedBy: {"enforced_by", 16, true}, colSrcHost: {"src_host", 16, true}, colDstHost: {"dst_host", 16, true},
	colSrcProcess: {"src_process", 16, true}, colDstProcess: {"dst_process", 16, true}, colEnforced: {"enforced", 8, true}, colReporter: {"reporter", 8, true},
}

// The encodings of a column's values, n of them.
const (
	// encConst: a uvarint, the value of every row.
	encConst = iota
	// encPacked: base (uvarint), width (1 byte, 0–56 or 64), number of exceptions
	// (uvarint), then the low width bits of value − base of every row, packed from
	// the lowest bit up, in ⌈n·width/8⌉ bytes; then the exceptions in rising order
	// of row: the row (2 bytes) and (value − base) >> width (uvarint). The few
	// values that are much larger than the others are exceptions, so that they do
	// not widen all.
	encPacked
	// encDict: number of entries (uvarint, 1–256), the entries (uvarint each), width
	// (1 byte), and the place of every row's value among them, packed as above.
	encDict
	// encTexts, of the column texts alone: for each its length (uvarint) and bytes.
	encTexts
)

const (
	// maxEntries is how many addresses a batch can name: five a row.
	maxEntries = 5 * BatchRows
	// maxTexts is how many names: ten a row.
	maxTexts = 10 * BatchRows
	// maxDict bounds encDict as it is read, maxTried as it is written: what has more
	// different values gains little.
	maxDict  = 256
	maxTried = 64
)

// columns holds a batch transposed, so that records, which are large, are walked
// once. The eight values more than a batch has keep the columns from beginning a
// multiple of 4 KiB apart, where the first-level cache would hold only a few at once.
type columns [numColumns][BatchRows + 8]uint64

// Encoder writes batches. It is reused and not safe for concurrent use.
type Encoder struct {
	names *flow.Names
	cols  columns

	addrs table
	texts table
	dict  table

	entries [maxEntries]uint64
	places  [maxEntries]uint64
	remap   [maxEntries + 1]uint16
	beyond  [maxEntries]uint16 // rows of a column whose values are exceptions
}

// NewEncoder makes an Encoder of records whose names are of the table names.
func NewEncoder(names *flow.Names) *Encoder {
	return &Encoder{names: names, addrs: newTable(13), texts: newTable(13), dict: newTable(10)}
}

// Append appends the value that holds records under h to dst. It panics if there
// are more than [BatchRows] records. The same header, records and name texts
// always give the same bytes.
func (e *Encoder) Append(dst []byte, h Header, records []flow.Record) []byte {
	if len(records) > BatchRows {
		panic(fmt.Sprintf("kafka: a batch of %d records, at most %d fit", len(records), BatchRows))
	}
	start := len(dst)
	dst = h.append(dst, len(records))
	count := start + headerSize - 1
	if len(records) == 0 {
		return dst
	}
	rare := e.transpose(records)
	dst = e.appendAddrs(dst, count, len(records), rare)
	dst = e.appendTexts(dst, count)
	for id := firstRowColumn; id < numColumns; id++ {
		if columnInfo[id].rare && !rare {
			continue
		}
		dst = e.appendInts(dst, count, id, e.cols[id][:len(records)], false)
	}
	return dst
}

// transpose fills the columns and the dictionaries of addresses and names. In most
// batches the columns of transposeRare are zero throughout; then they are not walked
// and rare is false.
func (e *Encoder) transpose(records []flow.Record) (rare bool) {
	e.addrs.reset()
	e.texts.reset()
	c := &e.cols
	var received flow.Time
	var exporter flow.Addr
	var exporterAt, any uint64
	for i := range records {
		r := &records[i]
		i &= BatchRows - 1 // the compiler leaves out its checks
		if r.Exporter != exporter {
			exporter, exporterAt = r.Exporter, e.addr(r.Exporter)
		}
		c[colReceived][i], received = zigzag(int64(r.Received-received)), r.Received
		c[colEnd][i] = zigzag(int64(r.Received - r.End))
		c[colStart][i] = uint64(r.End - r.Start)
		c[colExporter][i] = exporterAt
		c[colSrc][i] = e.addr(r.Src)
		c[colDst][i] = e.addr(r.Dst)
		c[colDomain][i] = uint64(r.Domain)
		c[colSamplingRate][i] = uint64(r.SamplingRate)
		c[colBytes][i] = r.BytesRaw
		c[colPackets][i] = r.PacketsRaw
		c[colInIf][i] = uint64(r.InIf)
		c[colOutIf][i] = uint64(r.OutIf)
		c[colHas][i] = uint64(r.Has)
		c[colQuality][i] = uint64(r.Quality)
		c[colSrcPort][i] = uint64(r.SrcPort)
		c[colDstPort][i] = uint64(r.DstPort)
		c[colTCPFlags][i] = uint64(r.TCPFlags)
		c[colProto][i] = uint64(r.Proto)
		c[colSource][i] = uint64(r.Source)
		c[colICMPType][i] = uint64(r.ICMPType)
		c[colICMPCode][i] = uint64(r.ICMPCode)
		any |= r.NATSrc.Hi | r.NATSrc.Lo | r.NATDst.Hi | r.NATDst.Lo | r.RevBytesRaw | r.RevPacketsRaw |
			uint64(r.User|r.App|r.SrcIdentity|r.DstIdentity) | uint64(uint32(r.Skew)) |
			uint64(r.NATSrcPort|r.NATDstPort|r.RevTCPFlags) |
			uint64(r.ForwardingStatus|r.FirewallEvent|r.Direction|r.BiflowDirection) |
			uint64(r.Observer|r.EnforcedBy|r.SrcHost|r.DstHost|r.SrcProcess|r.DstProcess) | uint64(r.Enforced) | uint64(r.Reporter)
	}
	if any == 0 {
		return false
	}
	e.transposeRare(records)
	return true
}

func (e *Encoder) transposeRare(records []flow.Record) {
	c := &e.cols
	for i := range records {
		r := &records[i]
		i &= BatchRows - 1
		c[colNATSrc][i] = e.addr(r.NATSrc)
		c[colNATDst][i] = e.addr(r.NATDst)
		c[colRevBytes][i] = r.RevBytesRaw
		c[colRevPackets][i] = r.RevPacketsRaw
		c[colUser][i] = e.name(r.User)
		c[colApp][i] = e.name(r.App)
		c[colSrcIdentity][i] = e.name(r.SrcIdentity)
		c[colDstIdentity][i] = e.name(r.DstIdentity)
		c[colSkew][i] = uint64(uint32(r.Skew))
		c[colNATSrcPort][i] = uint64(r.NATSrcPort)
		c[colNATDstPort][i] = uint64(r.NATDstPort)
		c[colRevTCPFlags][i] = uint64(r.RevTCPFlags)
		c[colForwardingStatus][i] = uint64(r.ForwardingStatus)
		c[colFirewallEvent][i] = uint64(r.FirewallEvent)
		c[colDirection][i] = uint64(r.Direction)
		c[colBiflowDirection][i] = uint64(r.BiflowDirection)
		c[colObserver][i] = e.name(r.Observer)
		c[colEnforcedBy][i] = e.name(r.EnforcedBy)
		c[colSrcHost][i] = e.name(r.SrcHost)
		c[colDstHost][i] = e.name(r.DstHost)
		c[colSrcProcess][i] = e.name(r.SrcProcess)
		c[colDstProcess][i] = e.name(r.DstProcess)
		c[colEnforced][i] = uint64(r.Enforced)
		c[colReporter][i] = uint64(r.Reporter)
	}
}

func (e *Encoder) addr(a flow.Addr) uint64 {
	if a.IsZero() {
		return 0
	}
	return uint64(e.addrs.place(a)) + 1
}

func (e *Encoder) name(n flow.Name) uint64 {
	if n == flow.NoName {
		return 0
	}
	return uint64(e.texts.place(flow.Addr{Lo: uint64(n)})) + 1
}

// appendAddrs writes the dictionary of addresses and, where both families occur,
// moves the entries of IPv4 before the others.
func (e *Encoder) appendAddrs(dst []byte, count, rows int, rare bool) []byte {
	keys := e.addrs.keys
	n4 := 0
	for _, a := range keys {
		if a.Is4() {
			e.entries[n4] = uint64(a.V4())
			n4++
		}
	}
	if n4 > 0 {
		dst = e.appendInts(dst, count, colAddr4, e.entries[:n4], true)
	}
	if n4 == len(keys) {
		return dst
	}
	i4, i6 := 0, 0
	for i, a := range keys {
		if a.Is4() {
			i4++
			e.remap[i+1] = uint16(i4)
			continue
		}
		e.entries[i6] = a.Hi
		i6++
		e.remap[i+1] = uint16(n4 + i6)
	}
	dst = e.appendInts(dst, count, colAddr6Hi, e.entries[:i6], true)
	i6 = 0
	for _, a := range keys {
		if !a.Is4() {
			e.entries[i6] = a.Lo
			i6++
		}
	}
	dst = e.appendInts(dst, count, colAddr6Lo, e.entries[:i6], true)
	for id := colExporter; id <= colNATDst; id++ {
		if columnInfo[id].rare && !rare {
			continue
		}
		c := e.cols[id][:rows]
		for i, v := range c {
			c[i] = uint64(e.remap[v])
		}
	}
	return dst
}

func (e *Encoder) appendTexts(dst []byte, count int) []byte {
	if len(e.texts.keys) == 0 {
		return dst
	}
	texts := e.names.Texts()
	dst, at := begin(dst, count, colTexts)
	dst = binary.AppendUvarint(dst, uint64(len(e.texts.keys)))
	for _, k := range e.texts.keys {
		var s string
		if k.Lo < uint64(len(texts)) {
			s = texts[k.Lo]
		}
		dst = binary.AppendUvarint(dst, uint64(len(s)))
		dst = append(dst, s...)
	}
	return end(dst, at, encTexts)
}

// begin opens a column, end closes it.
func begin(dst []byte, count, id int) ([]byte, int) {
	dst[count]++
	return append(dst, byte(id), 0, 0, 0, 0, 0), len(dst)
}

func end(dst []byte, at int, encoding byte) []byte {
	dst[at+1] = encoding
	binary.LittleEndian.PutUint32(dst[at+2:], uint32(len(dst)-at-columnHead))
	return dst
}

// appendInts writes a column of integers in the encoding that is smallest; one that
// is zero throughout is left out, unless it is a dictionary, which says how long it is.
func (e *Encoder) appendInts(dst []byte, count, id int, v []uint64, dictionary bool) []byte {
	low, high := span(v)
	if high == 0 && !dictionary {
		return dst
	}
	dst, at := begin(dst, count, id)
	if dictionary {
		dst = binary.AppendUvarint(dst, uint64(len(v)))
	}
	if low == high {
		return end(binary.AppendUvarint(dst, low), at, encConst)
	}
	width, size := packedWidth(v, low, high)
	if width > 3 { // where a dictionary would gain little it is not tried
		if w, ok := e.collect(v, low, high, size); ok {
			dst = binary.AppendUvarint(dst, uint64(len(e.dict.keys)))
			for _, k := range e.dict.keys {
				dst = binary.AppendUvarint(dst, k.Lo)
			}
			return end(pack(append(dst, byte(w)), e.places[:len(v)], 0, w), at, encDict)
		}
	}
	exceptions := 0
	if (high-low)>>width != 0 {
		for i, x := range v {
			e.beyond[exceptions] = uint16(i) // written over unless it is one
			if (x-low)>>(width&63) != 0 {
				exceptions++
			}
		}
	}
	dst = binary.AppendUvarint(dst, low)
	dst = binary.AppendUvarint(append(dst, byte(width)), uint64(exceptions))
	dst = pack(dst, v, low, width)
	for _, i := range e.beyond[:exceptions] {
		dst = binary.LittleEndian.AppendUint16(dst, i)
		dst = binary.AppendUvarint(dst, (v[i]-low)>>width)
	}
	return end(dst, at, encPacked)
}

// span is the smallest and the largest value. Most columns of most batches are
// constant, which is quicker seen.
func span(v []uint64) (low, high uint64) {
	first, same := v[0], v
	for len(same) >= 4 && (same[0]^first)|(same[1]^first)|(same[2]^first)|(same[3]^first) == 0 {
		same = same[4:]
	}
	low, high = first, first
	// Two of each, which do not wait for one another.
	low2, high2 := first, first
	for ; len(same) >= 2; same = same[2:] {
		low, high = min(low, same[0]), max(high, same[0])
		low2, high2 = min(low2, same[1]), max(high2, same[1])
	}
	if len(same) > 0 {
		low, high = min(low, same[0]), max(high, same[0])
	}
	return min(low, low2), max(high, high2)
}

// packedWidth is the width at which encPacked is about smallest, and about how many
// bits it takes. It looks at every third row of a large batch only.
func packedWidth(v []uint64, low, high uint64) (width uint, size int) {
	longest := bits.Len64(high - low)
	if longest <= 8 { // there is little to gain
		return uint(longest), longest * len(v)
	}
	step := 1
	if len(v) >= 128 {
		step = 3
	}
	var lengths [65]int
	rows := 0
	for i := 0; i < len(v); i += step {
		lengths[bits.Len64(v[i]-low)]++
		rows++
	}
	if width, size = uint(longest), longest*rows; longest > maxWidth {
		width, size = 64, 64*rows
	}
	beyond := 0
	for w := longest - 1; w >= 0; w-- {
		beyond += lengths[w+1]
		// An exception is its row and a uvarint, which has seven bits a byte.
		if s := w*rows + beyond*(16+8*((longest-w+6)/7)); s < size && w <= maxWidth {
			width, size = uint(w), s
		}
	}
	return width, size * step
}

// collect fills e.dict and e.places with the different values of v, if they are few
// enough that encDict takes fewer than size bits. It gives up as soon as the first
// rows look like random ones.
func (e *Encoder) collect(v []uint64, low, high uint64, size int) (width uint, ok bool) {
	e.dict.reset()
	places := e.places[:len(v)]
	last, place := ^v[0], 0
	if high-low < 256 { // a byte's worth of values needs no hashing
		var seen [256]uint8
		for i, x := range v {
			p := &seen[uint8(x-low)]
			if *p == 0 {
				if place = len(e.dict.keys); place >= maxTried || place >= 16 && 2*place > i {
					return 0, false
				}
				e.dict.keys = append(e.dict.keys, flow.Addr{Lo: x})
				*p = uint8(place + 1)
			}
			places[i] = uint64(*p - 1)
		}
	} else {
		for i, x := range v {
			if x != last {
				last, place = x, e.dict.place(flow.Addr{Lo: x})
				if place >= maxTried || place >= 16 && 2*place > i {
					return 0, false
				}
			}
			places[i] = uint64(place)
		}
	}
	width = uint(bits.Len(uint(len(e.dict.keys) - 1)))
	need := int(width) * len(v)
	for _, k := range e.dict.keys {
		need += 8 * ((bits.Len64(k.Lo) + 6) / 7)
	}
	return width, need < size
}

// maxWidth is the widest packing below 64: one load of eight bytes holds a value
// wherever in a byte it begins.
const maxWidth = 56

// pack appends the low width bits of each value less base.
func pack(dst []byte, v []uint64, base uint64, width uint) []byte {
	if width == 0 {
		return dst
	}
	size, at := (len(v)*int(width)+7)/8, len(dst)
	dst = slices.Grow(dst, size+8)[:at+size+8] // room for the last write of eight bytes
	mask := ^uint64(0) >> (64 - width)
	var acc uint64
	var n uint
	// Steps wait for one another, so a step is four values or two where they fit.
	i := 0
	switch {
	case width <= 16:
		for ; i+4 <= len(v); i += 4 {
			g := v[i : i+4 : i+4]
			x := (g[0]-base)&mask | (g[1]-base)&mask<<(width&63) | (g[2]-base)&mask<<(2*width&63) | (g[3]-base)&mask<<(3*width&63)
			acc |= x << (n & 63)
			if n += 4 * width; n >= 64 {
				binary.LittleEndian.PutUint64(dst[at:], acc)
				at += 8
				n -= 64
				acc = x >> (4*width - n)
			}
		}
	case width <= 32:
		for ; i+2 <= len(v); i += 2 {
			g := v[i : i+2 : i+2]
			x := (g[0]-base)&mask | (g[1]-base)&mask<<(width&63)
			acc |= x << (n & 63)
			if n += 2 * width; n >= 64 {
				binary.LittleEndian.PutUint64(dst[at:], acc)
				at += 8
				n -= 64
				acc = x >> (2*width - n)
			}
		}
	}
	for _, x := range v[i:] {
		x = (x - base) & mask
		acc |= x << (n & 63)
		if n += width; n >= 64 {
			binary.LittleEndian.PutUint64(dst[at:], acc)
			at += 8
			n -= 64
			acc = x >> (width - n)
		}
	}
	if n > 0 {
		binary.LittleEndian.PutUint64(dst[at:], acc)
	}
	return dst[:len(dst)-8]
}

func zigzag(v int64) uint64   { return uint64(v<<1) ^ uint64(v>>63) }
func unzigzag(v uint64) int64 { return int64(v>>1) ^ -int64(v&1) }

// table numbers keys in the order in which they first come. Integers are keys with
// Hi zero.
type table struct {
	slots  []uint16 // place + 1; 0 is free
	keys   []flow.Addr
	shift  uint
	hi, lo uint64
}

// newTable makes a table of 1<<size slots, of which the caller fills two thirds at
// most. Hosts on the network choose the keys, so the multipliers are drawn at random;
// what is written does not depend on them.
func newTable(size uint) table {
	return table{slots: make([]uint16, 1<<size), shift: 64 - size, hi: rand.Uint64() | 1, lo: rand.Uint64() | 1}
}

func (t *table) reset() {
	if len(t.keys) > 0 {
		clear(t.slots)
		t.keys = t.keys[:0]
	}
}

// place is the number of k, a new one if need be.
func (t *table) place(k flow.Addr) int {
	mask := len(t.slots) - 1
	for i := int((k.Hi*t.hi + k.Lo*t.lo) >> t.shift); ; i++ {
		slot := &t.slots[i&mask]
		if *slot == 0 {
			t.keys = append(t.keys, k)
			*slot = uint16(len(t.keys))
			return len(t.keys) - 1
		}
		if p := int(*slot) - 1; t.keys[p] == k {
			return p
		}
	}
}
