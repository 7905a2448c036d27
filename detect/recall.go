package detect

import "github.com/postern/postern/flow"

// maxUnsure bounds the contacts of one digest that are looked for in what is stored; of the rest it
// stays unsure whether they are new.
const maxUnsure = 2048

// Unsure gives the contacts that look new and may only have been forgotten, since edges had to go
// before their time, at most so many. Whoever has the roll-up of edges can tell; see
// [Contact.Recall]. They belong to the digest.
func (d *Digest) Unsure() (out []*Contact) {
	for i := range d.Contacts {
		if c := &d.Contacts[i]; c.Unsure && len(out) < maxUnsure {
			out = append(out, c)
		}
	}
	return out
}

// Recall says when the edge of a contact, and when anything of its pair, was seen last before by
// traffic that is normal; 0 never. The contact is not unsure any more.
func (c *Contact) Recall(edge, pair flow.Time) {
	c.Unsure = false
	c.New, c.NewPair = c.New && edge == 0, c.NewPair && pair == 0
	c.Known = max(c.Known, edge)
}
