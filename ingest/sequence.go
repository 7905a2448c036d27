package ingest

import "github.com/postern/postern/flow"

// sequence follows the sequence numbers of one exporter and domain. What it
// finds are estimates beside the ledger: UDP neither keeps order nor tells what
// it lost.
type sequence struct {
	Next   uint32 `json:"next"` // what the next datagram should carry
	Synced bool   `json:"synced,omitempty"`
	Uptime uint32 `json:"uptime,omitempty"` // of the last datagram, milliseconds
	Gaps   uint64 `json:"gaps,omitempty"`   // units skipped, as in the account
	// Skipped: there was a gap and no record since then says so yet.
	Skipped bool `json:"skipped,omitempty"`
}

const (
	// A datagram that comes this many units late is late; more is a restart.
	// 4,096 units are 64 datagrams of 64 records.
	reorderWindow = 1 << 12
	// A jump ahead by more than this is a restart with another number, not a loss:
	// 16 Mi records are more than an hour at 4,000 flows/s.
	gapWindow = 1 << 24
	// Uptime may run back this far (milliseconds) by reordering.
	uptimeSlack = 60_000
)

// datagram takes the sequence number of a datagram that holds units of what the
// protocol counts. uptime is the exporter's in milliseconds; ok says whether the
// protocol tells one.
func (s *sequence) datagram(a *flow.Account, seq, units, uptime uint32, ok bool) {
	s.held(a, units, s.begins(a, seq, uptime, ok))
}

// begins is datagram for one whose units are known once it has been read, by held: a gap before it
// is said by its own first record, not by that of the next. late says that the next was here before.
func (s *sequence) begins(a *flow.Account, seq, uptime uint32, ok bool) (late bool) {
	ahead := int32(seq - s.Next)
	switch {
	case !s.Synced:
	case ok && int32(uptime-s.Uptime) < -uptimeSlack,
		ahead < -reorderWindow, ahead > gapWindow,
		!ok && seq == 0 && ahead < 0:
		a.Restarts++
	case ahead < 0:
		a.Reordered++
		return true
	default:
		s.Skipped = s.Skipped || ahead > 0
		a.Gaps += uint64(ahead)
		s.Gaps += uint64(ahead)
	}
	s.Next, s.Uptime, s.Synced = seq, uptime, true
	return false
}

// held says how many units the datagram held that begins took.
func (s *sequence) held(a *flow.Account, units uint32, late bool) {
	if late { // it had been taken for lost when its successor came
		a.Gaps -= min(a.Gaps, uint64(units))
		s.Gaps -= min(s.Gaps, uint64(units))
		return
	}
	s.Next += units
}

// lost says that the units of the last datagram are not known, so that the next
// number cannot be foretold.
func (s *sequence) lost() { s.Synced = false }
