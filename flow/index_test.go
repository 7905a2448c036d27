package flow

import (
	"reflect"
	"slices"
	"testing"
)

// TestIndex: first versions and what is blocked are found among rows, and what is over among
// contributions; what became part of another session is neither.
func TestIndex(t *testing.T) {
	first := Session{Settled: 50, Start: 10, End: 20, Answered: 15, Proto: ProtoTCP, HasPorts: true, OrientationCertainty: 90, NAT: NATTranslated, ObserversTotal: 2,
		Client: SessionEnd{Addr: AddrFrom4(1), Port: 40000, TCPFlags: SYN, Segment: 3, Workload: 4},
		Server: SessionEnd{Addr: AddrFrom4(2), Port: 22, TCPFlags: SYN | RST, Segment: 5, Workload: 6, Own: true}}
	first.Verdict = Verdict{Exception: 7, Reason: ReasonWaived, Observed: ObservedAllow, Outcome: OutcomePermitted}
	first.Observers[0].Reporter, first.Observers[1].Reporter, first.Observers[2].Reporter = ReporterElsewhere, ReporterDestination, ReporterSource
	late := first // answered after it had settled
	late.Answered, late.ObserversTotal = 50, 200
	later := first
	later.Settled, later.Verdict.Outcome = 0, OutcomeBlocked
	blocked := first
	blocked.Verdict.Outcome = OutcomeBlocked
	part := blocked
	part.Into = 9
	got := IndexOf([]Session{part, first, later, late, blocked}, []EdgeContribution{{}, {Over: true}, {Live: 1},
		{Over: true, Ended: 90, First: 10, Last: 20, Sent: [2]uint64{700, 20}, EdgeKey: EdgeKey{Client: AddrFrom4(1), Server: AddrFrom4(2), ServerPort: 22, Proto: ProtoTCP}}})
	mapper := first
	mapper.Server.Port = 135
	if x := IndexOf([]Session{first, part, mapper, later, mapper}, nil); !slices.Equal(x.Mappers, []int32{1, 2}) {
		t.Errorf("mappers are at %d among what settled, want 1 and 2", x.Mappers)
	}

	want := First{Settled: 50, Start: 10, End: 20, Row: 1, Proto: ProtoTCP, HasPorts: true, OrientationCertainty: 90, NAT: NATTranslated, Answered: true,
		Client:    FirstEnd{Addr: AddrFrom4(1), Port: 40000, TCPFlags: SYN, Segment: 3, Workload: 4},
		Server:    FirstEnd{Addr: AddrFrom4(2), Port: 22, TCPFlags: SYN | RST, Segment: 5, Workload: 6, Own: true},
		Exception: 7, Reason: ReasonWaived, Observed: ObservedAllow, Outcome: OutcomePermitted, Reporters: 1<<ReporterElsewhere | 1<<ReporterDestination}
	wantLate, wantBlocked := want, want
	wantLate.Row, wantLate.Answered, wantLate.Reporters = 3, false, 1<<ReporterElsewhere|1<<ReporterDestination|1<<ReporterSource
	wantBlocked.Row, wantBlocked.Outcome = 4, OutcomeBlocked
	if w := (Index{First: []First{want, wantLate, wantBlocked}, Blocked: []int32{2, 4}, Over: []Over{{Place: 1}, {Client: AddrFrom4(1), Server: AddrFrom4(2), Ended: 90, First: 10, Sent: 700, Place: 3, ServerPort: 22, Proto: ProtoTCP}}}); !reflect.DeepEqual(got, w) {
		t.Errorf("the index is\n%+v, want\n%+v", got, w)
	}
	if got.Reset(); len(got.First)+len(got.Blocked)+len(got.Over) != 0 {
		t.Errorf("reset it holds %+v", got)
	}
}
