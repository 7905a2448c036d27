package kafka

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/postern/postern/flow"
)

// Decoder reads batches. It is reused and not safe for concurrent use.
type Decoder struct {
	names *flow.Names
	full  string // how a name that did not fit reads

	cols    columns
	filled  [numColumns]bool // whether the column may hold something else than zero
	entries [maxEntries]uint64
	addrs   [maxEntries + 1]flow.Addr
	texts   [maxTexts][]byte
	ids     [maxTexts + 1]flow.Name
	dict    [maxDict]uint64
}

// NewDecoder makes a Decoder that gives names of the table names.
func NewDecoder(names *flow.Names) *Decoder {
	return &Decoder{names: names, full: names.Text(flow.OverflowName)}
}

// content is what a value says of one column.
type content struct {
	there    bool
	encoding byte
	body     []byte
}

// Decode appends the records of value to out and gives its header. On error
// nothing is appended, and the error says which column is at fault and why; it
// holds no text of the value.
//
// A record's id is [flow.Mix] of seed + index, where seed mixes the header's producer,
// epoch, partition and sequence one after another and index counts the batch's
// records from zero: the same value always gives the same ids, and different
// batches give different ones but for the chance of two random 64-bit numbers
// being near one another.
//
// Names come from the network and are entered as such; where the table is full the
// record carries [flow.QualityNamesFull]. All memory is of fixed size but that of
// out, which grows by at most [BatchRows] records.
func (d *Decoder) Decode(value []byte, out *flow.Batch) (Header, error) {
	h, rows, err := ReadHeader(value)
	if err != nil {
		return h, err
	}
	var found [numColumns]content
	if err := split(value, &found); err != nil {
		return h, err
	}
	fail := func(id int, err error) (Header, error) {
		return h, fmt.Errorf("a batch of flows, sequence %d: column %s: %w", h.Seq, columnInfo[id].name, err)
	}
	addrs, id, err := d.readAddrs(&found)
	if err != nil {
		return fail(id, err)
	}
	texts, err := d.readTexts(found[colTexts])
	if err != nil {
		return fail(colTexts, err)
	}
	for id := firstRowColumn; id < numColumns; id++ {
		column := d.cols[id][:rows]
		if !found[id].there {
			if d.filled[id] {
				clear(d.cols[id][:])
				d.filled[id] = false
			}
			continue
		}
		d.filled[id] = true
		most := largest(id)
		switch {
		case id >= colExporter && id <= colNATDst:
			most = uint64(addrs)
		case id >= colUser && id <= colDstIdentity:
			most = uint64(texts)
		}
		if err := d.ints(column, found[id].encoding, found[id].body, most); err != nil {
			return fail(id, err)
		}
	}
	for i, t := range d.texts[:texts] {
		d.texts[i] = nil // the value need not outlive the call
		if string(t) == d.full {
			d.ids[i+1] = flow.OverflowName
		} else {
			d.ids[i+1] = d.names.InternBytes(t)
		}
	}
	d.fill(&h, rows, out)
	return h, nil
}

// split finds the columns of a value whose header has been read.
func split(value []byte, found *[numColumns]content) error {
	b := value[headerSize:]
	for i := range int(value[headerSize-1]) {
		if len(b) < columnHead {
			return fmt.Errorf("a batch of flows cut short: %d columns, the %d. begins %d bytes before the end", value[headerSize-1], i+1, len(b))
		}
		id, n := int(b[0]), binary.LittleEndian.Uint32(b[2:])
		if uint64(n) > uint64(len(b)-columnHead) {
			return fmt.Errorf("a batch of flows cut short: column %d has %d bytes, %d are left", id, n, len(b)-columnHead)
		}
		if id > 0 && id < numColumns {
			if found[id].there {
				return fmt.Errorf("a batch of flows with column %s twice", columnInfo[id].name)
			}
			found[id] = content{true, b[1], b[columnHead : columnHead+int(n)]}
		}
		b = b[columnHead+int(n):]
	}
	if len(b) > 0 {
		return fmt.Errorf("a batch of flows with %d bytes after its last column", len(b))
	}
	return nil
}

// readAddrs fills d.addrs and gives how many there are beside the zero address.
func (d *Decoder) readAddrs(found *[numColumns]content) (n, id int, err error) {
	read := func(id, limit int) (values []uint64, err error) {
		c := found[id]
		if !c.there {
			return nil, nil
		}
		count, body, err := uvarint(c.body, "number of entries")
		if err != nil {
			return nil, err
		}
		if count == 0 || count > uint64(limit) {
			return nil, fmt.Errorf("%d entries, there can be 1 to %d", count, limit)
		}
		values = d.entries[:count]
		return values, d.ints(values, c.encoding, body, largest(id))
	}
	values, err := read(colAddr4, maxEntries)
	if err != nil {
		return 0, colAddr4, err
	}
	for i, v := range values {
		d.addrs[i+1] = flow.AddrFrom4(uint32(v))
	}
	n4 := len(values)
	if values, err = read(colAddr6Hi, maxEntries-n4); err != nil {
		return 0, colAddr6Hi, err
	}
	for i, v := range values {
		d.addrs[n4+i+1].Hi = v
	}
	n6 := len(values)
	if values, err = read(colAddr6Lo, maxEntries-n4); err != nil {
		return 0, colAddr6Lo, err
	}
	if len(values) != n6 {
		return 0, colAddr6Lo, fmt.Errorf("%d entries, column %s has %d", len(values), columnInfo[colAddr6Hi].name, n6)
	}
	for i, v := range values {
		d.addrs[n4+i+1].Lo = v
	}
	return n4 + n6, 0, nil
}

// readTexts fills d.texts with parts of the value.
func (d *Decoder) readTexts(c content) (int, error) {
	if !c.there {
		return 0, nil
	}
	if c.encoding != encTexts {
		return 0, fmt.Errorf("encoding %d, it has encoding %d", c.encoding, encTexts)
	}
	count, b, err := uvarint(c.body, "number of entries")
	if err != nil {
		return 0, err
	}
	if count > maxTexts {
		return 0, fmt.Errorf("%d entries, there can be %d", count, maxTexts)
	}
	for i := range int(count) {
		var n uint64
		if n, b, err = uvarint(b, "length of a text"); err != nil {
			return 0, err
		}
		if n > uint64(len(b)) {
			return 0, fmt.Errorf("text %d has %d bytes, %d are left", i+1, n, len(b))
		}
		d.texts[i], b = b[:n], b[n:]
	}
	return int(count), after(b)
}

func uvarint(b []byte, what string) (uint64, []byte, error) {
	v, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, nil, fmt.Errorf("%s: cut short or beyond 64 bits", what)
	}
	return v, b[n:], nil
}

func after(b []byte) error {
	if len(b) > 0 {
		return fmt.Errorf("%d bytes after the last value", len(b))
	}
	return nil
}

// largest is the largest value that fits into a field of the column.
func largest(id int) uint64 { return ^uint64(0) >> (64 - columnInfo[id].bits) }

// ints reads len(v) values, none of which may exceed most.
func (d *Decoder) ints(v []uint64, encoding byte, b []byte, most uint64) (err error) {
	switch encoding {
	case encConst:
		var value uint64
		if value, b, err = uvarint(b, "value"); err != nil {
			return err
		}
		if value > most {
			return beyond(value, most)
		}
		for i := range v {
			v[i] = value
		}
	case encPacked:
		b, err = unpackBased(v, b, most)
	case encDict:
		b, err = d.unpackDict(v, b, most)
	default:
		err = fmt.Errorf("encoding %d, this binary reads 0 to %d", encoding, encDict)
	}
	if err != nil {
		return err
	}
	return after(b)
}

func beyond(value, most uint64) error {
	return fmt.Errorf("value %d, it can be at most %d", value, most)
}

func unpackBased(v []uint64, b []byte, most uint64) (rest []byte, err error) {
	base, b, err := uvarint(b, "base")
	if err != nil {
		return nil, err
	}
	width, b, err := readWidth(b)
	if err != nil {
		return nil, err
	}
	exceptions, b, err := uvarint(b, "number of exceptions")
	if err != nil {
		return nil, err
	}
	packed, b, err := cut(b, len(v), width)
	if err != nil {
		return nil, err
	}
	unpack(v, packed, base, width)
	row := -1
	for range exceptions {
		if len(b) < 2 {
			return nil, errors.New("cut short within the exceptions")
		}
		next := int(binary.LittleEndian.Uint16(b))
		if next <= row || next >= len(v) {
			return nil, fmt.Errorf("exception for row %d after row %d of %d", next, row, len(v))
		}
		row = next
		var above uint64
		if above, b, err = uvarint(b[2:], "exception"); err != nil {
			return nil, err
		}
		if above > ^uint64(0)>>width {
			return nil, fmt.Errorf("exception for row %d beyond 64 bits", row)
		}
		v[row] += above << width
	}
	// Values are looked at only if base and width let one be too large.
	if widest := ^uint64(0) >> (64 - width); exceptions > 0 || base > most || widest > most-base {
		var high uint64
		for _, x := range v {
			high = max(high, x)
		}
		if high > most {
			return nil, beyond(high, most)
		}
	}
	return b, nil
}

func (d *Decoder) unpackDict(v []uint64, b []byte, most uint64) (rest []byte, err error) {
	count, b, err := uvarint(b, "number of entries")
	if err != nil {
		return nil, err
	}
	if count == 0 || count > maxDict {
		return nil, fmt.Errorf("%d entries, there can be 1 to %d", count, maxDict)
	}
	for i := range int(count) {
		if d.dict[i], b, err = uvarint(b, "entry"); err != nil {
			return nil, err
		}
		if d.dict[i] > most {
			return nil, beyond(d.dict[i], most)
		}
	}
	width, b, err := readWidth(b)
	if err != nil {
		return nil, err
	}
	packed, b, err := cut(b, len(v), width)
	if err != nil {
		return nil, err
	}
	unpack(v, packed, 0, width)
	for i, p := range v {
		if p >= count {
			return nil, fmt.Errorf("row %d has entry %d of %d", i, p+1, count)
		}
		v[i] = d.dict[p&(maxDict-1)]
	}
	return b, nil
}

func readWidth(b []byte) (uint, []byte, error) {
	if len(b) == 0 {
		return 0, nil, errors.New("cut short before the width")
	}
	if b[0] > maxWidth && b[0] != 64 {
		return 0, nil, fmt.Errorf("width %d, it can be 0 to %d or 64", b[0], maxWidth)
	}
	return uint(b[0]), b[1:], nil
}

// cut takes n packed values off b.
func cut(b []byte, n int, width uint) (packed, rest []byte, err error) {
	size := (n*int(width) + 7) / 8
	if len(b) < size {
		return nil, nil, fmt.Errorf("%d values of %d bits take %d bytes, %d are left", n, width, size, len(b))
	}
	return b[:size], b[size:], nil
}

// unpack adds base to each packed value.
func unpack(v []uint64, packed []byte, base uint64, width uint) {
	le := binary.LittleEndian
	switch width {
	case 0:
		for i := range v {
			v[i] = base
		}
		return
	case 64:
		for i := range v {
			v[i] = base + le.Uint64(packed[8*i:])
		}
		return
	}
	mask := uint64(1)<<width - 1
	var at uint
	i := 0
	// Eight values begin at a whole byte; four of at most 16 bits, beginning at a
	// half byte at worst, are in one load.
	if width <= 16 {
		for ; i+8 <= len(v) && at>>3+16 <= uint(len(packed)); i += 8 {
			g := v[i : i+8 : i+8]
			x := le.Uint64(packed[at>>3:])
			g[0] = base + x&mask
			g[1] = base + x>>(width&63)&mask
			g[2] = base + x>>(2*width&63)&mask
			g[3] = base + x>>(3*width&63)&mask
			at += 4 * width
			x = le.Uint64(packed[at>>3:]) >> (at & 7)
			g[4] = base + x&mask
			g[5] = base + x>>(width&63)&mask
			g[6] = base + x>>(2*width&63)&mask
			g[7] = base + x>>(3*width&63)&mask
			at += 4 * width
		}
	}
	// As long as eight bytes are left, one load holds the value.
	for ; i < len(v) && at>>3+8 <= uint(len(packed)); i++ {
		v[i] = base + le.Uint64(packed[at>>3:])>>(at&7)&mask
		at += width
	}
	if i == len(v) {
		return
	}
	var tail [16]byte
	from := at >> 3
	copy(tail[:], packed[from:])
	for ; i < len(v); i++ {
		v[i] = base + le.Uint64(tail[at>>3-from:])>>(at&7)&mask
		at += width
	}
}

// fill appends the records that the columns tell.
func (d *Decoder) fill(h *Header, rows int, out *flow.Batch) {
	n := len(out.Records)
	out.Records = slices.Grow(out.Records, rows)[:n+rows]
	seed := h.seed()
	c := &d.cols
	var received flow.Time
	records := out.Records[n:]
	for i := range records {
		r := &records[i]
		*r = flow.Record{}
		r.ID = flow.Mix(seed + uint64(i))
		i &= BatchRows - 1 // the compiler leaves out its checks
		received += flow.Time(unzigzag(c[colReceived][i]))
		r.Received = received
		r.End = received - flow.Time(unzigzag(c[colEnd][i]))
		r.Start = r.End - flow.Time(c[colStart][i])
		r.Exporter = d.addrs[c[colExporter][i]]
		r.Src = d.addrs[c[colSrc][i]]
		r.Dst = d.addrs[c[colDst][i]]
		r.Domain = uint32(c[colDomain][i])
		r.SamplingRate = uint32(c[colSamplingRate][i])
		r.BytesRaw = c[colBytes][i]
		r.PacketsRaw = c[colPackets][i]
		r.InIf = uint32(c[colInIf][i])
		r.OutIf = uint32(c[colOutIf][i])
		r.Has = flow.Has(c[colHas][i])
		r.Quality = flow.Quality(c[colQuality][i])
		r.SrcPort = uint16(c[colSrcPort][i])
		r.DstPort = uint16(c[colDstPort][i])
		r.TCPFlags = uint16(c[colTCPFlags][i])
		r.Proto = uint8(c[colProto][i])
		r.Source = flow.Source(c[colSource][i])
		r.ICMPType = uint8(c[colICMPType][i])
		r.ICMPCode = uint8(c[colICMPCode][i])
	}
	for id, filled := range d.filled {
		if filled && columnInfo[id].rare {
			d.fillRare(records)
			return
		}
	}
}

func (d *Decoder) fillRare(records []flow.Record) {
	c := &d.cols
	for i := range records {
		r := &records[i]
		i &= BatchRows - 1
		r.NATSrc = d.addrs[c[colNATSrc][i]]
		r.NATDst = d.addrs[c[colNATDst][i]]
		r.RevBytesRaw = c[colRevBytes][i]
		r.RevPacketsRaw = c[colRevPackets][i]
		r.User = d.ids[c[colUser][i]]
		r.App = d.ids[c[colApp][i]]
		r.SrcIdentity = d.ids[c[colSrcIdentity][i]]
		r.DstIdentity = d.ids[c[colDstIdentity][i]]
		r.Skew = int32(c[colSkew][i])
		r.NATSrcPort = uint16(c[colNATSrcPort][i])
		r.NATDstPort = uint16(c[colNATDstPort][i])
		r.RevTCPFlags = uint16(c[colRevTCPFlags][i])
		r.ForwardingStatus = uint8(c[colForwardingStatus][i])
		r.FirewallEvent = uint8(c[colFirewallEvent][i])
		r.Direction = uint8(c[colDirection][i])
		r.BiflowDirection = uint8(c[colBiflowDirection][i])
		r.Observer = d.ids[c[colObserver][i]]
		r.EnforcedBy = d.ids[c[colEnforcedBy][i]]
		r.SrcHost = d.ids[c[colSrcHost][i]]
		r.DstHost = d.ids[c[colDstHost][i]]
		r.SrcProcess = d.ids[c[colSrcProcess][i]]
		r.DstProcess = d.ids[c[colDstProcess][i]]
		r.Enforced = flow.Observed(c[colEnforced][i])
		r.Reporter = flow.Reporter(c[colReporter][i])
		if r.NamesFull() {
			r.Quality |= flow.QualityNamesFull
		}
	}
}
