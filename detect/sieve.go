package detect

// sieve tells by one look that a hash is not among a few thousand: it has a bit for each of them,
// and for one in five of the others where there are as many as it is made for, 65,536. 32 kB stay
// in a processor's cache. What is taken away keeps its bit until it is made anew.
type sieve [1 << 12]uint64

func (s *sieve) bit(hash uint64) (word *uint64, mask uint64) {
	h := hash >> 40 // the edges of a line of their table differ there
	return &s[h>>6%uint64(len(s))], 1 << (h & 63)
}

func (s *sieve) add(hash uint64) {
	word, mask := s.bit(hash)
	*word |= mask
}

func (s *sieve) has(hash uint64) bool {
	word, mask := s.bit(hash)
	return *word&mask != 0
}
