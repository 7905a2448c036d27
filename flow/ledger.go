package flow

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

// Reject is why a datagram or a record was refused. Every refusal has one.
type Reject uint8

// The reasons for refusing. Their numbers stand in the spool: new ones go to the end.
const (
	RejectMalformed       Reject = iota // it does not parse: lengths, unknown set structure
	RejectTruncated                     // shorter than its own header says
	RejectVersion                       // no protocol version we know
	RejectCount                         // a NetFlow v5 count beyond what the datagram holds
	RejectExporter                      // its exporter is not on the allow-list
	RejectNoTemplate                    // its template did not come in time
	RejectParkFull                      // no room to wait for its template
	RejectQuarantined                   // its template id is quarantined: two layouts alternate
	RejectSpoolFull                     // no room on disk
	RejectTooLarge                      // larger than a UDP datagram may be
	RejectPanic                         // decoding it failed in an unforeseen way (a bug, counted and survived)
	RejectTableFull                     // no room for another exporter, template or sampler
	RejectRecordMalformed               // a record's field runs beyond its set
	RejectSpoolLost                     // a datagram that was in the spool could not be read back
	numRejects
)

var rejectTexts = [numRejects]string{"malformed", "truncated", "unknown_version", "bad_count", "exporter_not_allowed",
	"template_missing", "park_full", "template_quarantined", "spool_full", "too_large", "panic", "table_full",
	"record_malformed", "spool_lost"}

func (r Reject) String() string { return text(rejectTexts[:], int(r)) }

// Rejects lists every reason in order.
func Rejects() []Reject {
	out := make([]Reject, numRejects)
	for i := range out {
		out[i] = Reject(i)
	}
	return out
}

// Rejected counts by reason.
type Rejected [numRejects]uint64

// Sum is the count over all reasons.
func (r *Rejected) Sum() (n uint64) {
	for _, v := range r {
		n += v
	}
	return n
}

func (r *Rejected) add(o *Rejected) {
	for i, v := range o {
		r[i] += v
	}
}

// Map is the reasons that occurred, by name.
func (r *Rejected) Map() map[string]uint64 {
	m := map[string]uint64{}
	for i, v := range r {
		if v > 0 {
			m[rejectTexts[i]] = v
		}
	}
	return m
}

// Account is the ledger of one exporter: sums that must close, the first two over what came in
// as datagrams and as lines of logs.
//
//	datagrams: Received = Decoded + Rejected + Parked + Queued
//	lines:     Received = Read + NotFlow + Rejected + Queued + Lost
//	records:   Decoded = Written + Duplicate + Rejected + InFlight
//
// Parked, Queued and InFlight are counted where the things are (the parking lot,
// the spool, the batches and the block being written), never derived from the
// other terms; that is what makes the sums say something. The other fields stand
// beside the sums.
type Account struct {
	Datagrams DatagramAccount `json:"datagrams"`
	Lines     LineAccount     `json:"lines"`
	Records   RecordAccount   `json:"records"`

	Templates   uint64 `json:"templates"` // template and options template records
	Options     uint64 `json:"options"`   // options data records
	Counters    uint64 `json:"counters"`  // sFlow counter samples
	Gaps        uint64 `json:"gaps"`      // estimate: units the exporter's sequence numbers skipped
	Reordered   uint64 `json:"reordered"` // datagrams whose sequence number ran backwards
	Restarts    uint64 `json:"restarts"`  // times its sequence or uptime started over
	SetsParked  uint64 `json:"sets_parked"`
	SetsSkipped uint64 `json:"sets_skipped"` // sets of no known kind, by their own length
}

// DatagramAccount is the sum over datagrams; see [Account].
type DatagramAccount struct {
	Received uint64   `json:"received"`
	Decoded  uint64   `json:"decoded"`
	Parked   uint64   `json:"parked"`
	Queued   uint64   `json:"queued"`
	Rejected Rejected `json:"rejected"`
}

// LineAccount is the sum over lines of logs; see [Account]. A line may tell several flows, or
// something that is none.
type LineAccount struct {
	Received uint64 `json:"received"`
	Read     uint64 `json:"read"`     // told flows
	NotFlow  uint64 `json:"not_flow"` // told something else
	Rejected uint64 `json:"rejected"` // could not be read
	Queued   uint64 `json:"queued"`   // in the spool
	Lost     uint64 `json:"lost"`     // were in the spool and could not be read back
}

// Add adds o to l, term by term.
func (l *LineAccount) Add(o *LineAccount) {
	l.Received += o.Received
	l.Read += o.Read
	l.NotFlow += o.NotFlow
	l.Rejected += o.Rejected
	l.Queued += o.Queued
	l.Lost += o.Lost
}

// RecordAccount is the sum over flow records; see [Account].
type RecordAccount struct {
	Decoded   uint64   `json:"decoded"`
	Written   uint64   `json:"written"`
	Duplicate uint64   `json:"duplicate"`
	InFlight  uint64   `json:"in_flight"`
	Rejected  Rejected `json:"rejected"`
}

// MarshalJSON writes the reasons that occurred, by name.
func (r Rejected) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for i, v := range r {
		if v == 0 {
			continue
		}
		if len(b) > 1 {
			b = append(b, ',')
		}
		b = fmt.Appendf(b, "%q:%d", rejectTexts[i], v)
	}
	return append(b, '}'), nil
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (r *Rejected) UnmarshalJSON(b []byte) error {
	var m map[string]uint64
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	*r = Rejected{}
	for name, n := range m {
		i := slices.Index(rejectTexts[:], name)
		if i < 0 {
			return fmt.Errorf("%q is no reason for refusing", name)
		}
		r[i] = n
	}
	return nil
}

// Add adds o to a, term by term.
func (a *Account) Add(o *Account) {
	d, e := &a.Datagrams, &o.Datagrams
	d.Received += e.Received
	d.Decoded += e.Decoded
	d.Parked += e.Parked
	d.Queued += e.Queued
	d.Rejected.add(&e.Rejected)
	a.Lines.Add(&o.Lines)
	r, s := &a.Records, &o.Records
	r.Decoded += s.Decoded
	r.Written += s.Written
	r.Duplicate += s.Duplicate
	r.InFlight += s.InFlight
	r.Rejected.add(&s.Rejected)
	a.Templates += o.Templates
	a.Options += o.Options
	a.Counters += o.Counters
	a.Gaps += o.Gaps
	a.Reordered += o.Reordered
	a.Restarts += o.Restarts
	a.SetsParked += o.SetsParked
	a.SetsSkipped += o.SetsSkipped
}

// Check says which of the sums does not close, and by how much; nil if all do.
func (a *Account) Check() error {
	d, r := &a.Datagrams, &a.Records
	if sum := d.Decoded + d.Rejected.Sum() + d.Parked + d.Queued; sum != d.Received {
		return fmt.Errorf("datagrams do not add up: received %d, but decoded %d + rejected %d + parked %d + queued %d = %d",
			d.Received, d.Decoded, d.Rejected.Sum(), d.Parked, d.Queued, sum)
	}
	l := &a.Lines
	if sum := l.Read + l.NotFlow + l.Rejected + l.Queued + l.Lost; sum != l.Received {
		return fmt.Errorf("lines do not add up: received %d, but read %d + no flows %d + rejected %d + queued %d + lost %d = %d",
			l.Received, l.Read, l.NotFlow, l.Rejected, l.Queued, l.Lost, sum)
	}
	if sum := r.Written + r.Duplicate + r.Rejected.Sum() + r.InFlight; sum != r.Decoded {
		return fmt.Errorf("records do not add up: decoded %d, but written %d + duplicate %d + rejected %d + in flight %d = %d",
			r.Decoded, r.Written, r.Duplicate, r.Rejected.Sum(), r.InFlight, sum)
	}
	return nil
}

// Ledger is the accounts by exporter. Not safe for concurrent use; whoever holds
// one guards it.
type Ledger map[Addr]*Account

// Of is the account of an exporter, a new one if need be.
func (l Ledger) Of(exporter Addr) *Account {
	a := l[exporter]
	if a == nil {
		a = new(Account)
		l[exporter] = a
	}
	return a
}

// Add adds every account of o to l.
func (l Ledger) Add(o Ledger) {
	for e, a := range o {
		l.Of(e).Add(a)
	}
}

// Total is the sum over all exporters.
func (l Ledger) Total() Account {
	var t Account
	for _, a := range l {
		t.Add(a)
	}
	return t
}

// Exporters lists the exporters in ascending order of address.
func (l Ledger) Exporters() []Addr { return slices.SortedFunc(maps.Keys(l), Addr.Compare) }

// Check says which exporter's account does not close; nil if all do.
func (l Ledger) Check() error {
	for _, e := range l.Exporters() {
		if err := l[e].Check(); err != nil {
			return fmt.Errorf("exporter %s: %w", e, err)
		}
	}
	return nil
}
