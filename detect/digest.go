package detect

import (
	"fmt"

	"github.com/postern/postern/flow"
)

// Digest is what [Contacts] passes on of one stretch of input.
type Digest struct {
	// Until is the watermark: what settles later comes in a later digest.
	Until flow.Time
	// Contacts are in the order in which they settled.
	Contacts []Contact
	// Pressed is which bounds bit meanwhile.
	Pressed []Pressure
	// Untold are sessions that an end's own agent may have hidden, in the order in which they were over.
	Untold []flow.Untold
	// Observations are the counts of the windows that ended.
	Observations
}

// Counts is how much it holds beside contacts: counts of windows and of bounds that bit, and sessions
// that an agent may have hidden.
func (d *Digest) Counts() int {
	return len(d.Pressed) + len(d.Untold) + d.Observations.Len()
}

// Cut gives a digest of the first contacts and counts, and one of the rest, which alone says how far
// it goes: until that is taken in, nothing of the first is looked at. Both share its memory.
func (d *Digest) Cut(contacts, counts int) (first, rest Digest) {
	rest = *d
	contacts = min(contacts, len(d.Contacts))
	first.Contacts, rest.Contacts = d.Contacts[:contacts], d.Contacts[contacts:]
	pressed := min(counts, len(d.Pressed))
	first.Pressed, rest.Pressed = d.Pressed[:pressed], d.Pressed[pressed:]
	counts -= pressed
	untold := min(counts, len(d.Untold))
	first.Untold, rest.Untold = d.Untold[:untold], d.Untold[untold:]
	first.Observations = rest.Observations.Cut(counts - untold)
	return first, rest
}

const (
	digestMagic   = "postern digest\n"
	digestVersion = 8
)

// Encode gives the digest as bytes that stand for themselves: names are text. names is the
// table its names come from.
func (d *Digest) Encode(names *flow.Names) []byte {
	w := newStateWriter(names)
	w.time(d.Until)
	saveAll(w, d.Contacts)
	savePressures(w, d.Pressed)
	saveAll(w, d.Untold)
	d.Observations.save(w)
	return w.bytes(digestMagic, digestVersion)
}

// DecodeDigest reads what Encode wrote; its names go to names.
func DecodeDigest(b []byte, names *flow.Names) (*Digest, error) {
	r := newStateReader(b, digestMagic, digestVersion, names)
	d := &Digest{Until: r.time()}
	d.Contacts = loadAll[Contact](r)
	d.Pressed = loadPressures(r)
	d.Untold = loadAll[flow.Untold](r)
	d.Observations.load(r)
	if err := r.end(); err != nil {
		return nil, fmt.Errorf("reading a digest of contacts: %w", err)
	}
	return d, nil
}
