package detect

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/postern/postern/flow"
)

// TestDigestCut: a digest that is told in parts is what it is in one, whatever the parts, and
// nothing of it is looked at before the last, which says how far it goes.
func TestDigestCut(t *testing.T) {
	var d Digest
	minute := uint32(base / minuteMillis)
	minute -= minute % hostWindow
	for i := range uint32(30) {
		d.Heard = append(d.Heard, Tally[HeardKey, Heard]{HeardKey{At: minute + i, Source: flow.SourceIPFIX, Addr: flow.MustParseAddr("192.0.2.1")}, Heard{Records: i}})
		d.Hosts = append(d.Hosts, Tally[HostKey, HostHeard]{HostKey{At: minute, Addr: flow.Addr{Lo: uint64(i)}}, HostHeard{Told: [2]uint32{i, 1}}})
		d.Rules = append(d.Rules, Tally[RuleKey, RuleHeard]{RuleKey{At: minute, Addr: flow.Addr{Lo: uint64(i)}}, RuleHeard{Allowed: i}})
		d.Pressed = append(d.Pressed, Pressure{What: boundHosts, N: uint64(i), At: minuteTime(minute)})
		d.Contacts = append(d.Contacts, Contact{Session: flow.Session{ID: uint64(i), Settled: minuteTime(minute) + flow.Time(i)}})
	}
	d.Until = minuteTime(minute + 40)
	take := func(contacts, counts int) ([]byte, Digest) {
		names := flow.NewNames(0)
		b, err := NewBehaviour(DefaultConfig(), 1, fakePolicy{names: names}, names, nil)
		if err != nil {
			t.Fatal(err)
		}
		var all, part Digest
		for rest := d; ; {
			if part, rest = rest.Cut(contacts, counts); len(part.Contacts) > contacts || part.Counts() > counts {
				t.Fatalf("a part of %d contacts and %d counts, want at most %d and %d", len(part.Contacts), part.Counts(), contacts, counts)
			}
			last := len(rest.Contacts)+rest.Counts() == 0
			if part.Until != 0 {
				t.Fatal("a first part says how far it goes")
			} else if last {
				part.Until = rest.Until
			} else if b.until != 0 {
				t.Fatal("looked at before the last part came")
			}
			all.Contacts, all.Pressed = append(all.Contacts, part.Contacts...), append(all.Pressed, part.Pressed...)
			all.Observations.append(&part.Observations)
			if b.Take(0, &part); last {
				all.Until = rest.Until
				break
			}
		}
		state, err := b.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		return state, all
	}
	want, _ := take(1000, 1000)
	for _, n := range []struct{ contacts, counts int }{{1, 1}, {7, 11}, {0, 3}, {30, 50}} {
		if n.contacts == 0 { // counts alone first
			first, rest := d.Cut(0, 3)
			if len(first.Contacts) != 0 || first.Counts() != 3 || len(rest.Contacts) != len(d.Contacts) || rest.Counts() != d.Counts()-3 {
				t.Errorf("three counts cut off leave %d and %d", len(rest.Contacts), rest.Counts())
			}
			continue
		}
		got, all := take(n.contacts, n.counts)
		if diff := cmp.Diff(d, all, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("parts of %d and %d are not the whole (-want +got):\n%s", n.contacts, n.counts, diff)
		}
		if string(got) != string(want) {
			t.Errorf("told in parts of %d and %d it leaves another state", n.contacts, n.counts)
		}
	}
}
