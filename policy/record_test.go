package policy

import (
	"testing"

	"github.com/postern/postern/flow"
)

const open = `postern: v1
segments:
  - {name: ws, prefixes: [10.50.0.0/16], stage: enforced, default: {in: deny, out: allow}}
  - {name: dc, prefixes: [10.60.0.0/24], stage: enforced, default: {in: deny, out: deny}}
  - {name: free, prefixes: [10.70.0.0/16], stage: observe}
rules:
  - {id: no-east-west, action: deny, from: {segment: ws}, to: {segment: ws}}
  - {id: dc-services, action: allow, from: {segment: ws}, to: {segment: dc}, services: [tcp/49152-65535, udp/53]}
  - {id: push, action: allow, from: {segment: dc}, to: {segment: ws}, services: [tcp/7777]}
  - {id: admin, action: allow, from: {segment: ws, identity: adm}, to: {segment: dc}, services: [tcp/22]}
exceptions:
  - id: EX
    class: vendor
    from: {cidr: 10.50.1.1}
    to: {cidr: 10.60.0.9}
    services: [tcp/2000]
    ticket: T
    owner: o
    reason: r
    requested: {by: ana, at: 2026-01-01T00:00:00Z}
    approved: [{by: raj, at: 2026-01-01T00:00:00Z}]
    notBefore: 2026-02-01T00:00:00Z
    expires: 2026-03-01T00:00:00Z
`

const tuple = flow.HasSrc | flow.HasDst | flow.HasSrcPort | flow.HasDstPort | flow.HasProto

func tcp(src string, sport uint16, dst string, dport uint16) flow.Record {
	return flow.Record{Start: at("2026-02-10T00:00:00Z"), Src: flow.MustParseAddr(src), Dst: flow.MustParseAddr(dst), SrcPort: sport, DstPort: dport, Proto: 6, Has: tuple}
}

func history(t testing.TB, src string) (*History, *flow.Names) {
	t.Helper()
	names := flow.NewNames(0)
	h := NewHistory(names, DefaultConfig())
	if err := h.Add(load(t, src), Always); err != nil {
		t.Fatal(err)
	}
	return h, names
}

// mirror is the same record told from the other side.
func mirror(r flow.Record) flow.Record {
	r.Src, r.Dst, r.SrcPort, r.DstPort = r.Dst, r.Src, r.DstPort, r.SrcPort
	switch r.Oriented {
	case flow.Forward:
		r.Oriented = flow.Reverse
	case flow.Reverse:
		r.Oriented = flow.Forward
	}
	return r
}

// TestOpenOrientation: both readings are judged, and told from either side they
// come to the same (THREATS 15).
func TestOpenOrientation(t *testing.T) {
	h, names := history(t, open)
	for _, c := range []struct {
		what    string
		r       flow.Record
		settled bool
		reason  flow.Reason
		rule    string
		except  string
		reading flow.Orientation
		open    bool
	}{
		{"denied by the same rule either way stands", tcp("10.50.1.2", 50001, "10.50.1.3", 50002), true, flow.ReasonDenied, "no-east-west", "", flow.Open, true},
		{"permitted one way is permitted", tcp("10.50.1.2", 50001, "10.60.0.1", 50002), false, flow.ReasonPermitted, "dc-services", "", flow.Forward, false},
		{"the same told by the server", tcp("10.60.0.1", 50002, "10.50.1.2", 50001), false, flow.ReasonPermitted, "dc-services", "", flow.Reverse, false},
		{"denied otherwise each way names the pair", tcp("10.50.1.2", 1001, "10.60.0.1", 1002), false, flow.ReasonDenied, "default:in:dc", "", flow.Open, true},
		{"waived one way is waived", tcp("10.50.1.1", 1001, "10.60.0.9", 2000), false, flow.ReasonWaived, "default:in:dc", "EX", flow.Forward, false},
		{"misuse one way, denied the other", tcp("10.50.1.1", 2001, "10.60.0.9", 1001), false, flow.ReasonOutOfScope, "default:in:dc", "EX", flow.Open, true},
		{"permitted where the higher address is the client", tcp("10.60.0.1", 1001, "10.50.1.2", 7777), false, flow.ReasonPermitted, "push", "", flow.Forward, false},
		{"that told by its server", tcp("10.50.1.2", 7777, "10.60.0.1", 1001), false, flow.ReasonPermitted, "push", "", flow.Reverse, false},
		{"misuse where the higher address is the client", tcp("10.60.0.9", 2000, "10.50.1.1", 2000), false, flow.ReasonWaived, "default:in:dc", "EX", flow.Reverse, false},
		{"one way cannot be told", tcp("10.50.1.2", 1001, "10.60.0.1", 22), false, flow.ReasonUnverified, "", "", flow.Open, true},
		{"uncovered either way", tcp("10.70.1.2", 1001, "10.71.0.1", 22), true, flow.ReasonUncovered, "", "", flow.Open, true},
	} {
		r := c.r
		settled := h.JudgeRecord(&r)
		v := r.Verdict
		if settled != c.settled || v.Reason != c.reason || names.Text(v.Rule) != c.rule || names.Text(v.Exception) != c.except || r.Oriented != c.reading ||
			(r.Quality&flow.QualityDirectionOpen != 0) != c.open {
			t.Errorf("%s: settled %v, %v by %q %q, reading %v, quality %v", c.what, settled, v.Reason, names.Text(v.Rule), names.Text(v.Exception), r.Oriented, r.Quality.Texts())
		}
		// The other half tells the same.
		m := mirror(c.r)
		if got := h.JudgeRecord(&m); got != settled || m.Verdict != v {
			t.Errorf("%s: told from the other side %+v, not %+v", c.what, m.Verdict, v)
		}
		rc, rs := r.Ends()
		if mc, ms := m.Ends(); rc != mc || rs != ms {
			t.Errorf("%s: ends are %v %v and %v %v", c.what, rc, rs, mc, ms)
		}
		// Judging again, the orientation not having become known, changes nothing.
		again := r
		h.JudgeRecord(&again)
		if again.Verdict != v || again.Oriented != r.Oriented {
			t.Errorf("%s: judged again %+v, not %+v", c.what, again.Verdict, v)
		}
		// The orientation becoming known decides.
		known := r
		known.Oriented, known.OrientationCertainty = flow.Forward, 100
		if !h.JudgeRecord(&known) || known.Quality&flow.QualityDirectionOpen != 0 {
			t.Errorf("%s: oriented and still open", c.what)
		}
		if !settled && v.Reason == flow.ReasonPermitted && v.Confidence >= known.Verdict.Confidence && known.Verdict.Reason == flow.ReasonPermitted {
			t.Errorf("%s: confidence %d is not lowered", c.what, v.Confidence)
		}
	}
}

func TestMissingAddress(t *testing.T) {
	h, _ := history(t, open)
	r := tcp("10.50.1.2", 1, "10.60.0.1", 2)
	r.Oriented = flow.Forward
	r.Has &^= flow.HasSrc
	h.JudgeRecord(&r)
	if r.Verdict.Reason != flow.ReasonUnverified || r.Verdict.Missing != flow.DimSource || r.SrcSegment != flow.NoName || r.DstSegment == flow.NoName {
		t.Errorf("judged %+v", r.Verdict)
	}
	r.Oriented = flow.Reverse
	h.JudgeRecord(&r)
	if r.Verdict.Missing != flow.DimDestination {
		t.Errorf("missing %v", r.Verdict.Missing.Texts())
	}
}

// TestObserved holds the table of docs/policy.md, "Observed and outcome".
func TestObserved(t *testing.T) {
	h, _ := history(t, open)
	const ack, syn, fin, rst, psh = flow.ACK, flow.SYN, flow.FIN, flow.RST, flow.PSH
	for _, c := range []struct {
		what       string
		set        func(r *flow.Record)
		observed   flow.Observed
		denied     flow.Outcome // where policy denies
		allowed    flow.Outcome // where policy allows
		confidence uint8
	}{
		{"nothing told", func(*flow.Record) {}, flow.ObservedUnknown, flow.OutcomeAttempted, flow.OutcomeAttempted, 80},
		{"forwarded", func(r *flow.Record) { r.ForwardingStatus = 64; r.Has |= flow.HasForwardingStatus }, flow.ObservedAllow, flow.OutcomeEscaped, flow.OutcomePermitted, 100},
		{"dropped by ACL", func(r *flow.Record) { r.ForwardingStatus = 129; r.Has |= flow.HasForwardingStatus }, flow.ObservedDeny, flow.OutcomeBlocked, flow.OutcomeMisblocked, 100},
		{"consumed", func(r *flow.Record) { r.ForwardingStatus = 195; r.Has |= flow.HasForwardingStatus }, flow.ObservedAllow, flow.OutcomeEscaped, flow.OutcomePermitted, 100},
		{"consumed, adjacency incomplete", func(r *flow.Record) { r.ForwardingStatus = 194; r.Has |= flow.HasForwardingStatus }, flow.ObservedUnknown, flow.OutcomeAttempted, flow.OutcomeAttempted, 80},
		{"status unknown", func(r *flow.Record) { r.Has |= flow.HasForwardingStatus }, flow.ObservedUnknown, flow.OutcomeAttempted, flow.OutcomeAttempted, 80},
		{"firewall: created", func(r *flow.Record) { r.FirewallEvent = 1; r.Has |= flow.HasFirewallEvent }, flow.ObservedAllow, flow.OutcomeEscaped, flow.OutcomePermitted, 100},
		{"firewall: deleted", func(r *flow.Record) { r.FirewallEvent = 2; r.Has |= flow.HasFirewallEvent }, flow.ObservedAllow, flow.OutcomeEscaped, flow.OutcomePermitted, 100},
		{"firewall: denied", func(r *flow.Record) { r.FirewallEvent = 3; r.Has |= flow.HasFirewallEvent }, flow.ObservedDeny, flow.OutcomeBlocked, flow.OutcomeMisblocked, 100},
		{"firewall: alert", func(r *flow.Record) { r.FirewallEvent = 4; r.Has |= flow.HasFirewallEvent }, flow.ObservedAudit, flow.OutcomeEscaped, flow.OutcomePermitted, 100},
		{"firewall: update", func(r *flow.Record) { r.FirewallEvent = 5; r.Has |= flow.HasFirewallEvent }, flow.ObservedAllow, flow.OutcomeEscaped, flow.OutcomePermitted, 100},
		{"a denial beside forwarding counts", func(r *flow.Record) {
			r.ForwardingStatus, r.FirewallEvent = 64, 3
			r.Has |= flow.HasForwardingStatus | flow.HasFirewallEvent
		}, flow.ObservedDeny, flow.OutcomeBlocked, flow.OutcomeMisblocked, 100},
		{"a lone SYN", flags(syn, 1), flow.ObservedUnknown, flow.OutcomeAttempted, flow.OutcomeAttempted, 80},
		{"SYN, then RST", flags(syn|rst, 2), flow.ObservedUnknown, flow.OutcomeAttempted, flow.OutcomeAttempted, 80},
		{"a lone RST with ACK", flags(rst|ack, 1), flow.ObservedUnknown, flow.OutcomeAttempted, flow.OutcomeAttempted, 80},
		{"a lone ACK", flags(ack, 1), flow.ObservedUnknown, flow.OutcomeAttempted, flow.OutcomeAttempted, 80},
		{"ACKs", flags(ack, 4), flow.ObservedUnknown, flow.OutcomeEscaped, flow.OutcomePermitted, 90},
		{"SYN and ACK", flags(syn|ack, 2), flow.ObservedUnknown, flow.OutcomeEscaped, flow.OutcomePermitted, 90},
		{"data", flags(ack|psh, 1), flow.ObservedUnknown, flow.OutcomeEscaped, flow.OutcomePermitted, 90},
		{"data, then RST", flags(syn|ack|psh|rst, 9), flow.ObservedUnknown, flow.OutcomeEscaped, flow.OutcomePermitted, 90},
		{"an end", flags(ack|fin, 1), flow.ObservedUnknown, flow.OutcomeEscaped, flow.OutcomePermitted, 90},
		{"answered in the same record", reverse(syn, syn|ack), flow.ObservedUnknown, flow.OutcomeEscaped, flow.OutcomePermitted, 90},
		{"refused in the same record", reverse(syn, rst|ack), flow.ObservedUnknown, flow.OutcomeAttempted, flow.OutcomeAttempted, 80},
		{"reverse packets without flags", func(r *flow.Record) { r.RevPacketsRaw = 3; r.Has |= flow.HasRevPackets }, flow.ObservedUnknown, flow.OutcomeEscaped, flow.OutcomePermitted, 90},
		{"no reverse packets", func(r *flow.Record) { r.Has |= flow.HasRevPackets | flow.HasRevBytes }, flow.ObservedUnknown, flow.OutcomeAttempted, flow.OutcomeAttempted, 80},
		{"its other half was seen", func(r *flow.Record) { r.OtherHalf = true }, flow.ObservedUnknown, flow.OutcomeEscaped, flow.OutcomePermitted, 90},
		{"its other half refused a SYN", func(r *flow.Record) { flags(syn, 1)(r); r.OtherHalf = true }, flow.ObservedUnknown, flow.OutcomeAttempted, flow.OutcomeAttempted, 80},
	} {
		denied, allowed := tcp("10.50.1.2", 40000, "10.60.0.1", 80), tcp("10.50.1.2", 40000, "10.60.0.1", 50000)
		for _, x := range []struct {
			r    *flow.Record
			want flow.Outcome
		}{{&denied, c.denied}, {&allowed, c.allowed}} {
			x.r.Oriented = flow.Forward
			c.set(x.r)
			h.JudgeRecord(x.r)
			if v := x.r.Verdict; v.Observed != c.observed || v.Outcome != x.want || v.Confidence != c.confidence {
				t.Errorf("%s, expected %v: observed %v, outcome %v, confidence %d", c.what, v.Expected, v.Observed, v.Outcome, v.Confidence)
			}
		}
	}
}

func flags(f uint16, packets uint64) func(*flow.Record) {
	return func(r *flow.Record) {
		r.TCPFlags, r.PacketsRaw = f, packets
		r.Has |= flow.HasTCPFlags | flow.HasPackets
	}
}

func reverse(f, rev uint16) func(*flow.Record) {
	return func(r *flow.Record) {
		r.TCPFlags, r.RevTCPFlags, r.PacketsRaw, r.RevPacketsRaw = f, rev, 1, 1
		r.Has |= flow.HasTCPFlags | flow.HasPackets | flow.HasRevTCPFlags | flow.HasRevPackets
	}
}

// TestReplyIsEvidence: a record that tells the reply shows that the request came
// through, unless the reply is a refusal.
func TestReplyIsEvidence(t *testing.T) {
	h, _ := history(t, open)
	for _, c := range []struct {
		what    string
		proto   uint8
		flags   uint16
		certain uint8
		want    flow.Outcome
	}{
		{"UDP reply", flow.ProtoUDP, 0, 100, flow.OutcomePermitted},
		{"UDP, only a reading", flow.ProtoUDP, 0, readByVerdict, flow.OutcomeAttempted},
		{"SYN with ACK", flow.ProtoTCP, flow.SYN | flow.ACK, 100, flow.OutcomePermitted},
		{"RST with ACK", flow.ProtoTCP, flow.RST | flow.ACK, 100, flow.OutcomeAttempted},
	} {
		r := tcp("10.60.0.1", 53, "10.50.1.2", 40000)
		if r.Proto = c.proto; c.proto == flow.ProtoTCP {
			r.SrcPort = 50000
			flags(c.flags, 1)(&r)
		}
		r.Oriented, r.OrientationCertainty = flow.Reverse, c.certain
		h.JudgeRecord(&r)
		if r.Verdict.Outcome != c.want {
			t.Errorf("%s: %v, not %v (%v)", c.what, r.Verdict.Outcome, c.want, r.Verdict.Reason)
		}
	}
}

// TestSkew: within the exporter's clock error of a border the verdict is
// expiry-uncertain, never a silent allow (THREATS 1).
func TestSkew(t *testing.T) {
	h, names := history(t, open)
	day := func(s string) flow.Time { return at("2026-" + s + "Z") }
	for _, c := range []struct {
		start flow.Time
		skew  int32
		want  flow.Reason
	}{
		{day("03-01T00:00:00"), 0, flow.ReasonExpired},
		{day("02-28T23:59:59.999"), 0, flow.ReasonWaived},
		{day("02-28T23:59:00"), 40_000, flow.ReasonWaived},
		{day("02-28T23:59:30"), 40_000, flow.ReasonExpiryUncertain},
		{day("02-28T23:59:30"), -40_000, flow.ReasonExpiryUncertain},
		{day("02-28T23:59:20"), 40_000, flow.ReasonExpiryUncertain}, // the border itself is in
		{day("02-28T23:59:19.999"), 40_000, flow.ReasonWaived},
		{day("03-01T00:00:30"), 40_000, flow.ReasonExpiryUncertain},
		{day("03-01T00:00:40"), 40_000, flow.ReasonExpired}, // 00:00:00 is the earliest it can be
		{day("03-01T00:00:39.999"), 40_000, flow.ReasonExpiryUncertain},
		{day("01-31T23:59:30"), 40_000, flow.ReasonExpiryUncertain},
		{day("02-15T00:00:00"), 80_000_000, flow.ReasonWaived},
	} {
		r := tcp("10.50.1.1", 40000, "10.60.0.9", 2000)
		r.Start, r.Skew, r.Oriented = c.start, c.skew, flow.Forward
		if c.skew != 0 {
			r.Quality |= flow.QualityClockSkew
		}
		h.JudgeRecord(&r)
		v := r.Verdict
		if v.Reason != c.want {
			t.Errorf("%v ± %d ms: %v, not %v", c.start, c.skew, v.Reason, c.want)
		}
		if v.Reason == flow.ReasonExpiryUncertain && (v.Expected != flow.ExpectUnknown || v.Outcome != flow.OutcomeNone || names.Text(v.Exception) != "EX" || v.Confidence != 0 || v.ValidUntil != 0) {
			t.Errorf("%v: uncertain and %+v", c.start, v)
		}
	}
}

// TestSkewAcrossVersions: a new version coming into force within the clock error.
func TestSkewAcrossVersions(t *testing.T) {
	names := flow.NewNames(0)
	h := NewHistory(names, DefaultConfig())
	for since, src := range map[string]string{"2026-01-01T00:00:00Z": open,
		"2026-02-10T00:00:00Z": open[:len(open)-1] + "\nservices: {web: tcp/80}\nworkloads: [{name: w, addresses: [10.60.0.1]}]\n",
		"2026-02-20T00:00:00Z": small} {
		if err := h.Add(load(t, src), at(since)); err != nil {
			t.Fatal(err)
		}
	}
	for start, want := range map[string]flow.Reason{
		"2026-02-09T23:59:50Z": flow.ReasonWaived, // the next version says the same
		"2026-02-19T23:59:50Z": flow.ReasonExpiryUncertain,
		"2026-02-20T00:00:10Z": flow.ReasonExpiryUncertain,
		"2026-02-20T00:01:10Z": flow.ReasonUncovered,
	} {
		r := tcp("10.50.1.1", 40000, "10.60.0.9", 2000)
		r.Start, r.Skew, r.Oriented = at(start), 60_000, flow.Forward
		h.JudgeRecord(&r)
		if r.Verdict.Reason != want {
			t.Errorf("at %s: %v, not %v", start, r.Verdict.Reason, want)
		}
	}
}

// TestNoAllocation: judging allocates nothing, whatever comes out.
func TestNoAllocation(t *testing.T) {
	names := flow.NewNames(0)
	h := NewHistory(names, DefaultConfig())
	if err := h.Add(estate(1000, 500), Always); err != nil {
		t.Fatal(err)
	}
	flows := traffic(names, 2000)
	var v flow.Verdict
	x := h.Latest()
	reasons := map[flow.Reason]int{}
	for i := range flows {
		c := &flows[i]
		x.Judge(c, &v)
		reasons[v.Reason]++
	}
	if len(reasons) < 6 {
		t.Errorf("only %v are tried", reasons)
	}
	i := 0
	if n := testing.AllocsPerRun(4000, func() { x.Judge(&flows[i%2000], &v); i++ }); n != 0 {
		t.Errorf("Judge allocates %v times", n)
	}
	if n := testing.AllocsPerRun(4000, func() {
		c := &flows[i%2000]
		r := flow.Record{Start: c.Start, Src: c.Client.Addr, Dst: c.Server.Addr, SrcPort: 40000, DstPort: c.Port, Proto: 6, Has: tuple, Skew: int32(i % 2 * 40)}
		h.JudgeRecord(&r)
		i++
	}); n != 0 {
		t.Errorf("JudgeRecord allocates %v times", n)
	}
	if n := testing.AllocsPerRun(4000, func() { x.Endpoint(flows[i%2000].Client.Addr); i++ }); n != 0 {
		t.Errorf("Endpoint allocates %v times", n)
	}
}
