package sink

import (
	"encoding/binary"
	mathbits "math/bits"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go/proto"

	"github.com/postern/postern/flow"
)

// extend makes s longer by n elements, whose values are whatever was there.
func extend[S ~[]T, T any](s S, n int) S { return slices.Grow(s, n)[:len(s)+n] }

// optional is a Nullable column; an absent value is NULL, never zero.
type optional[T any, C ~[]T] struct {
	null   proto.ColUInt8
	values C
}

func (c *optional[T, C]) extend(n int) { c.null, c.values = extend(c.null, n), extend(c.values, n) }
func (c *optional[T, C]) reset()       { c.null, c.values = c.null[:0], c.values[:0] }

func (c *optional[T, C]) set(i int, present bool, v T) {
	if present {
		c.null[i], c.values[i] = 0, v
		return
	}
	var none T
	c.null[i], c.values[i] = 1, none
}

// nullable hands an optional to the encoder as Nullable(T).
type nullable struct {
	null   *proto.ColUInt8
	values proto.ColInput
}

func (c nullable) Type() proto.ColumnType { return proto.ColumnTypeNullable.Sub(c.values.Type()) }
func (c nullable) Rows() int              { return c.null.Rows() }

func (c nullable) EncodeColumn(b *proto.Buffer) {
	c.null.EncodeColumn(b)
	c.values.EncodeColumn(b)
}

func (c nullable) WriteColumn(w *proto.Writer) {
	c.null.WriteColumn(w)
	c.values.WriteColumn(w)
}

// words is an Enum8 column: the numbers of one of package flow's vocabularies,
// with the words in its type.
type words struct {
	proto.ColUInt8
	name proto.ColumnType
	n    uint8 // how many words there are
}

func (c *words) Type() proto.ColumnType { return c.name }

// set writes word v; a number without a word becomes the first word, since
// ClickHouse would store it and then fail every query that reads it.
func (c *words) set(i int, v uint8) {
	if v >= c.n {
		v = 0
	}
	c.ColUInt8[i] = v
}

// enum spells the type of a vocabulary as ClickHouse does.
func enum(texts []string) proto.ColumnType {
	var b strings.Builder
	b.WriteString("Enum8(")
	for i, t := range texts {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString("'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(t) + "' = " + strconv.Itoa(i))
	}
	b.WriteString(")")
	return proto.ColumnType(b.String())
}

func newWords(texts []string) words { return words{name: enum(texts), n: uint8(len(texts))} }

// vocabulary lists the words of one of package flow's types, which answer "?"
// beyond their last.
func vocabulary[T ~uint8](word func(T) string) []string {
	var out []string
	for i := range 127 {
		t := word(T(i))
		if t == "?" {
			break
		}
		out = append(out, t)
	}
	return out
}

// bits lists the words of a set type, bit by bit.
func bits(texts func(bit uint32) []string) []string {
	var out []string
	for i := range 32 {
		t := texts(1 << i)
		if len(t) == 0 {
			break
		}
		out = append(out, t[0])
	}
	return out
}

// sets is an Array(Enum8) column made of bit sets.
type sets struct {
	offsets proto.ColUInt64
	data    proto.ColUInt8
	name    proto.ColumnType
	mask    uint32
}

func newSets(texts []string) sets {
	return sets{name: proto.ColumnTypeArray.Sub(enum(texts)), mask: 1<<len(texts) - 1}
}

func (c *sets) extend(n int) { c.offsets = extend(c.offsets, n) }
func (c *sets) reset()       { c.offsets, c.data = c.offsets[:0], c.data[:0] }

func (c *sets) set(i int, v uint32) {
	for v &= c.mask; v != 0; v &= v - 1 {
		c.data = append(c.data, uint8(mathbits.TrailingZeros32(v)))
	}
	c.offsets[i] = uint64(len(c.data))
}

func (c *sets) Type() proto.ColumnType { return c.name }
func (c *sets) Rows() int              { return len(c.offsets) }

func (c *sets) EncodeColumn(b *proto.Buffer) {
	c.offsets.EncodeColumn(b)
	c.data.EncodeColumn(b)
}

func (c *sets) WriteColumn(w *proto.Writer) {
	c.offsets.WriteColumn(w)
	c.data.WriteColumn(w)
}

// dictionary is a LowCardinality(String) column: the texts of this block once,
// and for each row which of them it holds. Its wire form (ClickHouse,
// SerializationLowCardinality): state version 1; then a flag word with the width
// of the keys, the texts, the keys.
type dictionary struct {
	keys  []uint32
	texts proto.ColStr
	gen   uint32 // tells this block's slots from those of blocks before
}

// slot says which key a name has in the block of generation gen.
type slot struct{ gen, key uint32 }

const (
	dictionaryVersion = 1
	dictionaryFlags   = 1<<9 | 1<<10 // has additional keys; need update dictionary
)

func (c *dictionary) extend(n int) { c.keys = extend(c.keys, n) }

func (c *dictionary) reset() {
	c.keys = c.keys[:0]
	c.texts.Reset()
	c.gen++
}

func (c *dictionary) Type() proto.ColumnType {
	return proto.ColumnTypeLowCardinality.Sub(proto.ColumnTypeString)
}
func (c *dictionary) Rows() int                   { return len(c.keys) }
func (c *dictionary) EncodeState(b *proto.Buffer) { b.PutInt64(dictionaryVersion) }
func (c *dictionary) WriteColumn(w *proto.Writer) { w.ChainBuffer(c.EncodeColumn) }
func (c *dictionary) EncodeColumn(b *proto.Buffer) {
	if len(c.keys) == 0 {
		return
	}
	width := 0
	switch n := c.texts.Rows(); {
	case n > 1<<16:
		width = 2
	case n > 1<<8:
		width = 1
	}
	b.PutInt64(dictionaryFlags | int64(width))
	b.PutInt64(int64(c.texts.Rows()))
	c.texts.EncodeColumn(b)
	b.PutInt64(int64(len(c.keys)))
	at := len(b.Buf)
	b.Buf = extend(b.Buf, len(c.keys)<<width)
	out := b.Buf[at:]
	switch width {
	case 0:
		for i, k := range c.keys {
			out[i] = uint8(k)
		}
	case 1:
		for i, k := range c.keys {
			binary.LittleEndian.PutUint16(out[2*i:], uint16(k))
		}
	case 2:
		for i, k := range c.keys {
			binary.LittleEndian.PutUint32(out[4*i:], k)
		}
	}
}

// names is a dictionary of interned names. It holds eight bytes for every id up
// to the highest it has met.
type names struct {
	dictionary
	slots []slot
}

// key gives the key of a name in this block.
func (c *names) key(id flow.Name, texts []string) uint32 {
	if int(id) < len(c.slots) {
		if s := c.slots[id]; s.gen == c.gen {
			return s.key
		}
	}
	return c.add(id, texts)
}

func (c *names) set(i int, id flow.Name, texts []string) { c.keys[i] = c.key(id, texts) }

func (c *names) add(id flow.Name, texts []string) uint32 {
	if int(id) >= len(texts) {
		id = flow.NoName // an id the table never gave out reads as empty
	}
	if int(id) >= len(c.slots) {
		c.slots = extend(c.slots, int(id)+1-len(c.slots))
	}
	if s := c.slots[id]; s.gen == c.gen {
		return s.key
	}
	k := uint32(c.texts.Rows())
	c.texts.Append(texts[id])
	c.slots[id] = slot{c.gen, k}
	return k
}

// nameArrays is an Array(LowCardinality(String)) column.
type nameArrays struct {
	offsets proto.ColUInt64
	names
}

func (c *nameArrays) Type() proto.ColumnType { return proto.ColumnTypeArray.Sub(c.names.Type()) }
func (c *nameArrays) Rows() int              { return len(c.offsets) }
func (c *nameArrays) extend(n int)           { c.offsets = extend(c.offsets, n) }

func (c *nameArrays) reset() {
	c.offsets = c.offsets[:0]
	c.names.reset()
}

func (c *nameArrays) set(i int, ids []flow.Name, texts []string) {
	for _, id := range ids {
		c.keys = append(c.keys, c.key(id, texts))
	}
	c.offsets[i] = uint64(len(c.keys))
}

func (c *nameArrays) EncodeColumn(b *proto.Buffer) {
	c.offsets.EncodeColumn(b)
	c.names.EncodeColumn(b)
}

func (c *nameArrays) WriteColumn(w *proto.Writer) { w.ChainBuffer(c.EncodeColumn) }

// services is a dictionary of services, found by what makes their text. Each
// protocol with ports or types has a table of its own, made when first met: at
// most five of 512 KiB.
type services struct {
	dictionary
	protos  [256]slot
	details [256][]slot
	unknown slot
	scratch []byte
}

func (c *services) set(i int, r *flow.Record, serverPort uint16) {
	s := &c.unknown
	if r.Any(flow.HasProto) {
		s = &c.protos[r.Proto]
		switch r.Proto {
		case flow.ProtoICMP, flow.ProtoICMPv6:
			if r.Any(flow.HasICMP) {
				s = c.detail(r.Proto, uint16(r.ICMPType)<<8|uint16(r.ICMPCode))
			}
		case flow.ProtoTCP, flow.ProtoUDP, flow.ProtoSCTP:
			if r.Oriented != flow.Open && r.Any(flow.HasSrcPort|flow.HasDstPort) {
				s = c.detail(r.Proto, serverPort)
			}
		}
	}
	if s.gen != c.gen {
		s.gen, s.key = c.gen, uint32(c.texts.Rows())
		c.scratch = r.AppendService(c.scratch[:0])
		c.texts.AppendBytes(c.scratch)
	}
	c.keys[i] = s.key
}

func (c *services) detail(proto uint8, n uint16) *slot {
	if c.details[proto] == nil {
		c.details[proto] = make([]slot, 1<<16)
	}
	return &c.details[proto][n]
}

// constant is a LowCardinality(String) column with one text in every row.
type constant struct {
	text string
	rows int
}

func (c *constant) Type() proto.ColumnType {
	return proto.ColumnTypeLowCardinality.Sub(proto.ColumnTypeString)
}
func (c *constant) Rows() int                   { return c.rows }
func (c *constant) EncodeState(b *proto.Buffer) { b.PutInt64(dictionaryVersion) }
func (c *constant) WriteColumn(w *proto.Writer) { w.ChainBuffer(c.EncodeColumn) }

func (c *constant) EncodeColumn(b *proto.Buffer) {
	if c.rows == 0 {
		return
	}
	b.PutInt64(dictionaryFlags)
	b.PutInt64(1)
	b.PutString(c.text)
	b.PutInt64(int64(c.rows))
	at := len(b.Buf)
	b.Buf = extend(b.Buf, c.rows)
	clear(b.Buf[at:])
}

func millis() proto.ColDateTime64 {
	return proto.ColDateTime64{Location: time.UTC, Precision: proto.PrecisionMilli, PrecisionSet: true}
}

// instants are the values of a DateTime64(3) column.
type instants []proto.DateTime64

func (c instants) column() *proto.ColDateTime64 {
	t := millis()
	t.Data = c
	return &t
}
func (c instants) Type() proto.ColumnType       { return c.column().Type() }
func (c instants) Rows() int                    { return len(c) }
func (c instants) EncodeColumn(b *proto.Buffer) { c.column().EncodeColumn(b) }
func (c instants) WriteColumn(w *proto.Writer)  { c.column().WriteColumn(w) }

// verdictColumns are those of a verdict, of a flow or of a session.
type verdictColumns struct {
	observed, expected, staged     words
	stagedReason, reason, outcome  words
	confidence                     proto.ColFloat32
	rule, exception, policyVersion names
	failed, missing                sets
	others                         nameArrays
	othersTotal                    proto.ColUInt16
	validUntil                     optional[proto.DateTime64, instants]
}

func (c *verdictColumns) init() {
	c.observed = newWords(vocabulary(flow.Observed.String))
	c.expected, c.staged = newWords(vocabulary(flow.Expected.String)), newWords(vocabulary(flow.Expected.String))
	c.stagedReason, c.reason = newWords(vocabulary(flow.Reason.String)), newWords(vocabulary(flow.Reason.String))
	c.outcome = newWords(vocabulary(flow.Outcome.String))
	dimensions := bits(func(b uint32) []string { return flow.Dimensions(b).Texts() })
	c.failed, c.missing = newSets(dimensions), newSets(dimensions)
}

func (c *verdictColumns) input() proto.Input {
	return proto.Input{
		{Name: "observed", Data: &c.observed},
		{Name: "expected", Data: &c.expected},
		{Name: "staged", Data: &c.staged},
		{Name: "staged_reason", Data: &c.stagedReason},
		{Name: "reason", Data: &c.reason},
		{Name: "outcome", Data: &c.outcome},
		{Name: "confidence", Data: &c.confidence},
		{Name: "rule", Data: &c.rule},
		{Name: "exception", Data: &c.exception},
		{Name: "failed", Data: &c.failed},
		{Name: "missing", Data: &c.missing},
		{Name: "others", Data: &c.others},
		{Name: "others_total", Data: &c.othersTotal},
		{Name: "valid_until", Data: nullable{&c.validUntil.null, &c.validUntil.values}},
		{Name: "policy_version", Data: &c.policyVersion},
	}
}

func (c *verdictColumns) words() [6]*words {
	return [...]*words{&c.observed, &c.expected, &c.staged, &c.stagedReason, &c.reason, &c.outcome}
}

func (c *verdictColumns) extend(n int) {
	for _, w := range c.words() {
		w.ColUInt8 = extend(w.ColUInt8, n)
	}
	c.rule.extend(n)
	c.exception.extend(n)
	c.policyVersion.extend(n)
	c.failed.extend(n)
	c.missing.extend(n)
	c.others.extend(n)
	c.confidence, c.othersTotal = extend(c.confidence, n), extend(c.othersTotal, n)
	c.validUntil.extend(n)
}

func (c *verdictColumns) reset() {
	for _, w := range c.words() {
		w.Reset()
	}
	c.rule.reset()
	c.exception.reset()
	c.policyVersion.reset()
	c.failed.reset()
	c.missing.reset()
	c.others.reset()
	c.confidence.Reset()
	c.othersTotal.Reset()
	c.validUntil.reset()
}

// insertColumns are those that an [Insert] gives all rows of its block.
type insertColumns struct {
	inputName  constant
	insertedAt proto.ColDateTime64
}

func (c *insertColumns) init() { c.insertedAt = millis() }

func (c *insertColumns) input() proto.Input {
	return proto.Input{{Name: "input", Data: &c.inputName}, {Name: "inserted_at", Data: &c.insertedAt}}
}

func (c *insertColumns) seal(rows int, ins Insert) {
	c.insertedAt.Data = extend(c.insertedAt.Data[:0], rows)
	for i := range c.insertedAt.Data {
		c.insertedAt.Data[i] = proto.DateTime64(ins.At)
	}
	c.inputName.text, c.inputName.rows = ins.Input, rows
}

func (c *insertColumns) reset() {
	c.insertedAt.Reset()
	c.inputName.rows = 0
}
