package enrich

import (
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/postern/postern/flow"
)

// TestSessionsUntold: which ends of a session that is over should have told of it, if they have an
// agent that tells of every connection.
func TestSessionsUntold(t *testing.T) {
	const c, s = "10.0.0.9", "10.0.0.2"
	for _, k := range []struct {
		name   string
		change func(names *flow.Names, r *flow.Record)
		by     flow.Reporter // an agent tells as well
		want   [2]bool
	}{
		{name: "neither told", want: [2]bool{true, true}},
		{name: "the client's agent told", by: flow.ReporterSource, want: [2]bool{false, true}},
		{name: "the server's agent told", by: flow.ReporterDestination, want: [2]bool{true, false}},
		{name: "of UDP no beginning is known", change: func(_ *flow.Names, r *flow.Record) { r.Proto, r.TCPFlags = flow.ProtoUDP, 0 }, want: [2]bool{true, true}},
		{name: "stopped on the way", change: func(_ *flow.Names, r *flow.Record) { r.Enforced = flow.ObservedDeny }},
		{name: "older than any log", change: func(_ *flow.Names, r *flow.Record) { r.TCPFlags, r.RevTCPFlags = flow.ACK, flow.ACK }},
		{name: "half of it is the internet", change: func(names *flow.Names, r *flow.Record) { r.DstSegment = names.Intern("internet") }, want: [2]bool{true, false}},
		{name: "the other end only sent", change: func(names *flow.Names, r *flow.Record) {
			*r = hostTold(names, 9000, "far", flow.ReporterSource, r.Dst.String(), r.DstPort, r.Src.String(), r.SrcPort, 70)
		}},
	} {
		names := flow.NewNames(0)
		x := newTestSessions(t, DefaultSessionsConfig(), names)
		r := told(9000, c, 50000, s, 445, 70, 75)
		r.Has |= flow.HasRevPackets
		r.RevPacketsRaw = 3
		if k.change != nil {
			k.change(names, &r)
		}
		rs := []flow.Record{r}
		if k.by != flow.ReporterElsewhere {
			rs = append(rs, hostTold(names, 9001, "own", k.by, c, 50000, s, 445, 70))
		}
		through(x, rs, 1)
		list := x.Untold()
		if k.want == [2]bool{} {
			if len(list) != 0 {
				t.Errorf("%s: %+v", k.name, list)
			}
			continue
		}
		if len(list) != 1 || list[0].Side != k.want || list[0].Left != 0 {
			t.Errorf("%s: %+v", k.name, list)
			continue
		}
		u := &list[0]
		if row := &u.Session; row.ID == 0 || row.Client.Addr.String() != c || row.Settled <= row.Start || u.Over <= row.End+120_000 || row.Version != uint64(len(rs)) {
			t.Errorf("%s: over at %v: %+v", k.name, u.Over, row)
		}
		if u.Side[0] && u.Side[1] && u.Source != [2]flow.Source{flow.SourceNetFlowV9, flow.SourceNetFlowV9} {
			t.Errorf("%s: the witnesses are %v", k.name, u.Source)
		}
	}
}

// TestSessionsUntoldBounds: of hosts that are not known to have an agent few sessions are passed on in ten
// minutes, of those that are known to have one many, and the rest is counted.
func TestSessionsUntoldBounds(t *testing.T) {
	names := flow.NewNames(0)
	x := newTestSessions(t, DefaultSessionsConfig(), names)
	var strangers float64
	many := func(src string, n int, at float64) (passed, left int) {
		for i := range n {
			x.Observe(batchOf(told(uint64(i+1), src, uint16(20000+i), fmt.Sprintf("10.1.%d.%d", i/250, i%250), 445, at, at)))
		}
		x.Observe(batchOf(told(1, "10.9.0.1", 1, "10.9.0.2", 2, at+1500, at+1500)))
		x.Collect()
		strangers = testutil.ToFloat64(x.m.strangers)
		state, err := x.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		list := x.Untold()
		x = newTestSessions(t, DefaultSessionsConfig(), names)
		if err := x.Restore(state); err != nil {
			t.Fatal(err)
		}
		for _, u := range list {
			if left += int(u.Left); u.Session.Client.Addr.String() == src {
				passed++
			}
		}
		return passed, left
	}
	for _, at := range []float64{0, 6000} {
		if passed, left := many("10.0.0.9", 2*maxStrangers, at); passed != maxStrangers || left != 0 {
			t.Errorf("of a host without an agent %d were passed on, want %d; %d left", passed, maxStrangers, left)
		}
	}
	if strangers < maxStrangers || strangers > maxStrangers+2 {
		t.Errorf("%v sessions were left, want %d", strangers, maxStrangers)
	}
	x.Observe(batchOf(hostTold(names, 1, "own", flow.ReporterSource, "10.0.0.8", 1000, "10.0.0.2", 445, 12000)))
	if passed, left := many("10.0.0.8", 2*maxUntold, 12000); passed != maxUntold || left != maxUntold {
		t.Errorf("of a host with an agent %d were passed on, want %d; %d left", passed, maxUntold, left)
	}
	if passed, _ := many("10.0.0.8", 2*maxStrangers, 12000+2*24*3600); passed != maxStrangers {
		t.Errorf("two days after its agent told last %d were passed on, want %d", passed, maxStrangers)
	}
}
