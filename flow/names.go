package flow

import (
	"slices"
	"sync"
)

// Name is an interned string: a user, an application, a segment, a rule id. It is
// meaningful only together with the [Names] that gave it out and never leaves
// the process; on disk and on the wire names are text.
type Name uint32

const (
	// NoName is the name that is not there; its text is empty.
	NoName Name = 0
	// OverflowName stands for every string that no longer fitted.
	OverflowName Name = 1
)

const (
	overflowText  = "(too many names)"
	maxNameLength = 256 // bytes of one name; longer ones are cut
	// DefaultMaxNames bounds a table unless said otherwise: 1 Mi names of
	// typically 20 bytes are about 80 MB.
	DefaultMaxNames = 1 << 20
	// factNames is the room beyond the cap for what sources of identities tell: who
	// comes new is known even after the names of flows have filled the table. It is
	// a quarter of the usual cap, some 20 MB.
	factNames = 1 << 18
	// trustedNames is the room beyond both for names that come from our own
	// files: a policy can be loaded even after the network has filled the table.
	trustedNames = 1 << 16
)

// Names interns strings. It grows to a cap and then gives [OverflowName], so that
// hostile input cannot grow memory without bound. The zero value is not usable;
// make one with [NewNames]. Safe for concurrent use; looking up a known name
// does not allocate.
type Names struct {
	mu       sync.RWMutex
	ids      map[string]Name
	texts    []string
	max      int
	overflow uint64
}

// NewNames makes a table of at most maxNames names; zero or less means [DefaultMaxNames].
func NewNames(maxNames int) *Names {
	if maxNames <= 0 {
		maxNames = DefaultMaxNames
	}
	return &Names{ids: map[string]Name{}, texts: []string{"", overflowText}, max: maxNames}
}

// Intern gives the name of s, a new one if need be. It is for what comes from our
// own files and checkpoints, for which some room is kept; names from the network
// go through [Names.InternBytes]. Strings beyond 256 bytes are cut; the empty
// string is [NoName].
func (n *Names) Intern(s string) Name { return n.intern(s, n.max+factNames+trustedNames) }

// InternFact is Intern for what the configured sources of identities tell.
func (n *Names) InternFact(s string) Name { return n.intern(s, n.max+factNames) }

func (n *Names) intern(s string, limit int) Name {
	if s == "" {
		return NoName
	}
	if len(s) > maxNameLength {
		s = s[:maxNameLength]
	}
	n.mu.RLock()
	id, ok := n.ids[s]
	n.mu.RUnlock()
	if ok {
		return id
	}
	return n.add(s, limit)
}

// InternBytes is Intern for bytes from the network, which the caller goes on using.
func (n *Names) InternBytes(b []byte) Name {
	if len(b) == 0 {
		return NoName
	}
	if len(b) > maxNameLength {
		b = b[:maxNameLength]
	}
	n.mu.RLock()
	id, ok := n.ids[string(b)]
	n.mu.RUnlock()
	if ok {
		return id
	}
	return n.add(string(b), n.max)
}

func (n *Names) add(s string, limit int) Name {
	n.mu.Lock()
	defer n.mu.Unlock()
	if id, ok := n.ids[s]; ok {
		return id
	}
	if len(n.texts) >= limit {
		n.overflow++
		return OverflowName
	}
	id := Name(len(n.texts))
	n.texts = append(n.texts, s)
	n.ids[s] = id
	return id
}

// Lookup gives the name of s without adding it; ok is false for a string never interned.
func (n *Names) Lookup(s string) (id Name, ok bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	id, ok = n.ids[s]
	return id, ok || s == ""
}

// Text is the string behind id; an id this table never gave out reads as empty.
func (n *Names) Text(id Name) string {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if int(id) >= len(n.texts) {
		return ""
	}
	return n.texts[id]
}

// Texts is a snapshot of all texts, indexed by Name, for encoding a column
// without a lock a row. The caller must not write to it.
func (n *Names) Texts() []string {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return slices.Clip(n.texts)
}

// Len is how many names the table holds, the two reserved ones included;
// overflow is how often a name no longer fitted.
func (n *Names) Len() (held int, overflow uint64) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return len(n.texts), n.overflow
}
