package detect

import "slices"

// counts are what is counted in open windows: a list in the order in which keys came, and where
// in it each of them is. Places are found by hash with open addressing, eight bytes each of
// which half is of the hash, so that the list is read for hardly any key but the one looked for.
type counts[K counted, N any] struct {
	places []countPlace // a power of two of them, at most three quarters in use
	list   []Tally[K, N]
	most   int
}

// counted is a key of counts. Its hash lives no longer than the process.
type counted interface {
	comparable
	hash() uint64
}

// countPlace is where in the list a key is, from 1; 0 is an empty place.
type countPlace struct{ hash, at uint32 }

const minCountPlaces = 1 << 6

func newCounts[K counted, N any](most int) counts[K, N] {
	return counts[K, N]{places: make([]countPlace, minCountPlaces), most: most}
}

// find gives the place of a key: its own, or the empty one where it would go.
func (c *counts[K, N]) find(k *K, hash uint64) *countPlace {
	mask := uint64(len(c.places) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		p := &c.places[i]
		if p.at == 0 || uint64(p.hash) == hash>>32 && c.list[p.at-1].Key == *k {
			return p
		}
	}
}

// of gives what is counted under a key, nil if no more may be.
func (c *counts[K, N]) of(k *K) *N { return c.ofHash(k, (*k).hash()) }

// ofHash is of for a key of which the hash is known.
func (c *counts[K, N]) ofHash(k *K, hash uint64) *N {
	p := c.find(k, hash)
	if p.at == 0 {
		if len(c.list) >= c.most {
			return nil
		}
		if n := len(c.list); n+n/3 >= len(c.places) {
			c.place(2 * len(c.places))
			p = c.find(k, hash)
		}
		c.list = append(c.list, Tally[K, N]{Key: *k})
		*p = countPlace{uint32(hash >> 32), uint32(len(c.list))}
	}
	return &c.list[p.at-1].N
}

// take takes out the windows that are over.
func (c *counts[K, N]) take(over func(*K) bool) (out []Tally[K, N]) {
	rest, out := split(c.list, over)
	if len(out) > 0 {
		c.adopt(rest)
	}
	return out
}

// split takes out of a list what is over; both parts stay in their order.
func split[K, N any](list []Tally[K, N], over func(*K) bool) (rest, out []Tally[K, N]) {
	n := 0
	for i := range list {
		if over(&list[i].Key) {
			n++
		}
	}
	if n == 0 {
		return list, nil
	}
	out = make([]Tally[K, N], 0, n)
	rest = slices.DeleteFunc(list, func(t Tally[K, N]) bool {
		if over(&t.Key) {
			out = append(out, t)
			return true
		}
		return false
	})
	return rest, out
}

// adopt makes a list the one that is counted in. Each key is in it once.
func (c *counts[K, N]) adopt(list []Tally[K, N]) {
	c.list = list
	c.place(len(c.places))
}

// place finds places anew for all that is counted, of so many or more.
func (c *counts[K, N]) place(size int) {
	for n := len(c.list); n+n/3 >= size; {
		size *= 2
	}
	if size == len(c.places) {
		clear(c.places)
	} else {
		c.places = make([]countPlace, size)
	}
	for i := range c.list {
		k := &c.list[i].Key
		hash := (*k).hash()
		*c.find(k, hash) = countPlace{uint32(hash >> 32), uint32(i) + 1}
	}
}
