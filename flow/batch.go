package flow

import "sync/atomic"

// BatchSize is the usual number of records in a batch: 4,096 records of some
// 400 bytes are 1.6 MB, enough that handing one on costs nothing a record and
// few enough that a handful in flight stays small.
const BatchSize = 4096

// Batch is a run of records on their way. See the package comment for who owns it.
type Batch struct {
	Records []Record

	refs atomic.Int32
	done func(*Batch)
}

// NewBatch makes an empty batch with room for n records, held once. done, if not
// nil, runs when the last holder releases; it may reuse the batch after [Batch.Reset].
func NewBatch(n int, done func(*Batch)) *Batch {
	b := &Batch{Records: make([]Record, 0, n), done: done}
	b.refs.Store(1)
	return b
}

// Next adds a zeroed record at the end and returns it; the pointer holds until
// the next call. It grows the batch if it is full.
func (b *Batch) Next() *Record {
	n := len(b.Records)
	if n < cap(b.Records) {
		b.Records = b.Records[:n+1]
		b.Records[n] = Record{}
	} else {
		b.Records = append(b.Records, Record{})
	}
	return &b.Records[n]
}

// Drop takes back the record that Next gave last.
func (b *Batch) Drop() { b.Records = b.Records[:len(b.Records)-1] }

// Full says whether the batch holds as many records as it has room for.
func (b *Batch) Full() bool { return len(b.Records) == cap(b.Records) }

// Retain adds a holder, who only reads.
func (b *Batch) Retain() { b.refs.Add(1) }

// Release takes a holder away; the last one runs the acknowledgement. Releasing
// more often than holding panics, since it would acknowledge what is still in use.
func (b *Batch) Release() {
	switch n := b.refs.Add(-1); {
	case n < 0:
		panic("flow: batch released more often than it was held")
	case n == 0 && b.done != nil:
		b.done(b)
	}
}

// Reset empties a batch that nobody holds and gives it its first holder.
func (b *Batch) Reset() {
	b.Records = b.Records[:0]
	b.refs.Store(1)
}
