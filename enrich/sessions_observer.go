package enrich

import (
	"time"

	"github.com/postern/postern/flow"
)

func ms(d time.Duration) flow.Time { return flow.Time(d / time.Millisecond) }

// obsKey says who an observer is. One exporter that tells a flow as it comes in and as it
// goes out is two, or it would be counted twice.
type obsKey struct {
	exporter flow.Addr
	domain   uint32
	observer flow.Name
	source   flow.Source
	at       uint8 // 0 elsewhere, 1 at the lower end, 2 at the higher end
	dir      uint8 // 0 not told, 1 ingress, 2 egress
}

// What an observer told, in obs.has; shifted by the end that sent it, or that is named.
const (
	hasBytes   = 1 << 0
	hasPackets = 1 << 2
	// hasNamed: it named the identity of that end itself; else that is what was known of the address.
	hasNamed = 1 << 4
)

// obs is what one observer told of a session. Pairs are of the lower and the higher end.
type obs struct {
	obsKey
	next        int32
	first, last flow.Time // corrected by skew
	bytes       [2]uint64 // that the end sent
	packets     [2]uint64
	flags       [2]uint16
	records     uint32
	skew        int32 // milliseconds taken off its stamps
	has         uint8
	enforced    uint8 // bits by flow.Observed
	sampled     bool
	biflow      bool
	enforcedBy  flow.Name // by what it enforced hardest
	identity    [2]flow.Name
	process     [2]flow.Name
	hostName    [2]flow.Name
	from        [2]flow.Name // the source whose word the identity is, of what was known of the address
	heard       [2]flow.Time // when that source was last heard, as of the first record that says so; 0 not told
}

// hostKey says whose clock stamps a host's records: each log of a host has one of its own.
type hostKey struct {
	observer flow.Name
	exporter flow.Addr // where the observer has no name
	source   flow.Source
}

func (k *obsKey) host() hostKey {
	h := hostKey{observer: k.observer, source: k.source}
	if k.observer == flow.NoName {
		h.exporter = k.exporter
	}
	return h
}

func (o *obs) fill(r *flow.Record, low bool) {
	src, dst := ends(low)
	o.obsKey = obsKey{exporter: r.Exporter, domain: r.Domain, observer: r.Observer, source: r.Source}
	switch r.Reporter {
	case flow.ReporterSource:
		o.at = uint8(src) + 1
	case flow.ReporterDestination:
		o.at = uint8(dst) + 1
	default:
		if r.Any(flow.HasDirection) {
			o.dir = r.Direction&1 + 1
		}
	}
	o.next, o.first, o.last = -1, r.Start, max(r.Start, r.End)
	o.bytes[src], o.bytes[dst] = r.Bytes(), r.RevBytes()
	o.packets[src], o.packets[dst] = r.Packets(), r.RevPackets()
	if r.Any(flow.HasBytes) {
		o.has |= hasBytes << src
	}
	if r.Any(flow.HasRevBytes) {
		o.has |= hasBytes << dst
	}
	if r.Any(flow.HasPackets) {
		o.has |= hasPackets << src
	}
	if r.Any(flow.HasRevPackets) {
		o.has |= hasPackets << dst
	}
	o.flags[src], o.flags[dst] = r.TCPFlags, r.RevTCPFlags
	o.records = 1
	o.sampled, o.biflow = r.SamplingRate > 1, r.Biflow()
	seen := r.Verdict.Observed
	if r.Verdict.Reason == flow.ReasonNone {
		seen = r.Enforced
	}
	o.enforced, o.enforcedBy = 1<<(seen&3), r.EnforcedBy
	o.identity[src], o.identity[dst] = r.SrcIdentity, r.DstIdentity
	if o.identity[src] == flow.NoName {
		o.identity[src] = r.User
	}
	if r.Any(flow.HasSrcIdentity) || r.User != flow.NoName {
		o.has |= hasNamed << src
	}
	if r.Any(flow.HasDstIdentity) {
		o.has |= hasNamed << dst
	}
	o.hear(src, r.SrcIdentityFrom, r.Start, r.SrcSilence)
	o.hear(dst, r.DstIdentityFrom, r.Start, r.DstSilence)
	o.process[src], o.process[dst] = r.SrcProcess, r.DstProcess
	o.hostName[src], o.hostName[dst] = r.SrcHost, r.DstHost
}

// hear notes whose word an identity is and when that source was heard last before.
func (o *obs) hear(k int, from flow.Name, start flow.Time, silence int32) {
	if o.from[k] = from; from != flow.NoName && silence >= 0 {
		o.heard[k] = start - flow.Time(silence)*1000
	}
}

// hearBoth joins who two records have an identity from. Who is heard later than a record is
// heard later than an earlier one too, so the least time is that of the first record, whichever
// came first and whatever comes behind it.
func (x *Sessions) hearBoth(n, o *obs, k int) {
	a, b := n.heard[k], o.heard[k]
	switch {
	case o.from[k] == flow.NoName:
	case n.from[k] == flow.NoName, b != 0 && (a == 0 || b < a):
		n.from[k], n.heard[k] = o.from[k], b
	case a == b:
		n.from[k] = x.least(n.from[k], o.from[k])
	}
}

// shift takes an offset of the host's clock off its stamps.
func (o *obs) shift(offset flow.Time) {
	o.first, o.last, o.skew = o.first-offset, o.last-offset, o.skew+int32(offset)
}

// correct takes an offset off, and with it what was known of the addresses at the wrong time.
func (o *obs) correct(offset flow.Time) {
	o.shift(offset)
	for k := range o.identity {
		if o.has&(hasNamed<<k) == 0 {
			o.identity[k], o.from[k], o.heard[k] = flow.NoName, flow.NoName, 0
		}
	}
}

// mergeObs adds what the same observer told otherwise.
func (x *Sessions) mergeObs(n, o *obs) {
	n.first, n.last = min(n.first, o.first), max(n.last, o.last)
	for k := range 2 {
		n.bytes[k] = addCapped(n.bytes[k], o.bytes[k])
		n.packets[k] = addCapped(n.packets[k], o.packets[k])
		n.flags[k] |= o.flags[k]
		n.identity[k] = x.least(n.identity[k], o.identity[k])
		x.hearBoth(n, o, k)
		n.process[k] = x.least(n.process[k], o.process[k])
		n.hostName[k] = x.least(n.hostName[k], o.hostName[k])
	}
	n.records += o.records
	if o.skew > n.skew {
		n.skew = o.skew
	}
	n.has |= o.has
	switch a, b := hardest(n.enforced), hardest(o.enforced); {
	case a == b:
		n.enforcedBy = x.least(n.enforcedBy, o.enforcedBy)
	case weightOf[b] > weightOf[a]:
		n.enforcedBy = o.enforcedBy
	}
	n.enforced |= o.enforced
	n.sampled = n.sampled || o.sampled
	n.biflow = n.biflow || o.biflow
}

func addCapped(a, b uint64) uint64 {
	if a+b < a {
		return ^uint64(0)
	}
	return a + b
}

// weightOf orders what enforcement can have done: a denial by anybody counts, then audit.
var weightOf = [4]uint8{flow.ObservedUnknown: 0, flow.ObservedAllow: 1, flow.ObservedAudit: 2, flow.ObservedDeny: 3}

// hardest is what counts of a set of what enforcement did.
func hardest(set uint8) flow.Observed {
	switch {
	case set&(1<<flow.ObservedDeny) != 0:
		return flow.ObservedDeny
	case set&(1<<flow.ObservedAudit) != 0:
		return flow.ObservedAudit
	case set&(1<<flow.ObservedAllow) != 0:
		return flow.ObservedAllow
	}
	return flow.ObservedUnknown
}

// rank says how far an observer's counts of what an end sent can be trusted.
func (o *obs) rank() int {
	switch {
	case o.at != 0:
		return 4
	case o.sampled:
		return 1
	case o.biflow:
		return 3
	}
	return 2
}
