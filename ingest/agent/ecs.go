package agent

import (
	"bytes"

	"github.com/valyala/fastjson"

	"github.com/postern/postern/flow"
)

// ecs reads network events in the Elastic Common Schema, as Packetbeat, Filebeat's modules for
// firewalls and Elastic Agent write them. Fields: https://www.elastic.co/docs/reference/ecs,
// the sets base, source, destination, client, server, network, event, rule, observer, host,
// process and user. Fields may be nested or have dots in their names.
func ecs(v *fastjson.Value, e *entry) error {
	src, dst, event, network := at(v, "source"), at(v, "destination"), at(v, "event"), at(v, "network")
	f := ecsFields{v: v}
	v.GetObject().Visit(func(key []byte, _ *fastjson.Value) { f.dots = f.dots || bytes.IndexByte(key, '.') >= 0 })
	srcIP, dstIP := f.said(src, "source.", "ip"), f.said(dst, "destination.", "ip")
	client, server := at(v, "client"), at(v, "server")
	clientIP, serverIP := f.said(client, "client.", "ip"), f.said(server, "server.", "ip")
	if srcIP == nil && dstIP == nil && clientIP != nil {
		src, dst, srcIP, dstIP = client, server, clientIP, serverIP
		f.source, f.destination = "client.", "server."
	} else {
		f.source, f.destination = "source.", "destination."
	}
	if srcIP == nil || dstIP == nil {
		return NotFlow("an event without addresses")
	}
	if err := ecsOther(&f, v, event); err != nil {
		return err
	}

	r := e.flow(flow.SourceECS)
	if err := ends(r, srcIP, dstIP); err != nil {
		return err
	}
	switch {
	case clientIP == nil || bytes.Equal(srcIP, dstIP):
	case bytes.Equal(clientIP, srcIP):
		r.Has |= flow.HasInitiator
	case bytes.Equal(clientIP, dstIP):
		r.Has |= flow.HasResponder
	}
	if err := ecsTimes(&f, v, event, r); err != nil {
		return err
	}
	proto, ok := octet(num(f.field(network, "network.", "iana_number")))
	if !ok {
		proto, ok = protocol(f.said(network, "network.", "transport"))
	}
	setProto(r, proto, ok)
	if !r.IsICMP() {
		sp, ok := port16(num(f.field(src, f.source, "port")))
		setSrcPort(r, sp, ok)
		dp, ok := port16(num(f.field(dst, f.destination, "port")))
		setDstPort(r, dp, ok)
	}
	if flags, ok := num(f.field(at(v, "netflow"), "netflow.", "tcp_control_bits")); ok {
		setFlags(r, uint16(flags), flags <= 0xffff)
	}
	f.counters(r, src, dst, network)
	if a, ok := addr(f.said(src, f.source, "nat.ip")); ok {
		r.NATSrc, r.Has = a, r.Has|flow.HasNATSrc
	}
	if a, ok := addr(f.said(dst, f.destination, "nat.ip")); ok {
		r.NATDst, r.Has = a, r.Has|flow.HasNATDst
	}
	if p, ok := port16(num(f.field(src, f.source, "nat.port"))); ok && p != 0 {
		r.NATSrcPort, r.Has = p, r.Has|flow.HasNATSrcPort
	}
	if p, ok := port16(num(f.field(dst, f.destination, "nat.port"))); ok && p != 0 {
		r.NATDstPort, r.Has = p, r.Has|flow.HasNATDstPort
	}

	r.Enforced = f.enforced(event)
	r.EnforcedBy = e.name(f.first(at(v, "rule"), "rule.", "id", "name", "uuid"))
	r.App = e.name(f.first(network, "network.", "application", "protocol"))
	r.SrcHost, r.DstHost = e.name(f.said(src, f.source, "domain")), e.name(f.said(dst, f.destination, "domain"))
	e.ecsReporter(&f, r, network, srcIP, dstIP)
	if u := f.said(src, f.source, "user.name"); u != nil {
		r.SrcIdentity = e.account(f.said(src, f.source, "user.domain"), u)
	}
	if u := f.said(dst, f.destination, "user.name"); u != nil {
		r.DstIdentity = e.account(f.said(dst, f.destination, "user.domain"), u)
	}
	return nil
}

// ecsFields reads fields of an event.
type ecsFields struct {
	v                   *fastjson.Value
	source, destination string // the prefixes of the ends that are read
	dots                bool   // there are names with dots
}

// field is a field of a set: a member of its object, else of the event under the whole name.
func (f *ecsFields) field(set *fastjson.Value, prefix, name string) *fastjson.Value {
	if m := dig(set, name); m != nil || !f.dots {
		return m
	}
	var whole [48]byte
	return at(f.v, text(append(append(whole[:0], prefix...), name...)))
}

func (f *ecsFields) said(set *fastjson.Value, prefix, name string) []byte {
	return said(str(f.field(set, prefix, name)))
}

// first is the first of several fields that says something.
func (f *ecsFields) first(set *fastjson.Value, prefix string, names ...string) []byte {
	for _, name := range names {
		if b := f.said(set, prefix, name); b != nil {
			return b
		}
	}
	return nil
}

// has says whether a field that is a word or a list of words has a word.
func (f *ecsFields) has(set *fastjson.Value, prefix, name, word string) bool {
	m := f.field(set, prefix, name)
	if m == nil {
		return false
	}
	if string(str(m)) == word {
		return true
	}
	for _, w := range m.GetArray() {
		if string(str(w)) == word {
			return true
		}
	}
	return false
}

// ecsOther says what an event with addresses is that tells no flow; nil if it may tell one.
func ecsOther(f *ecsFields, v, event *fastjson.Value) error {
	switch kind := str(v, "type"); {
	case string(kind) == "flow":
		return nil
	case len(kind) > 0 && string(f.said(at(v, "agent"), "agent.", "type")) == "packetbeat":
		return NotFlow("a request within a flow")
	}
	if f.field(event, "event.", "category") == nil || f.has(event, "event.", "category", "network") ||
		f.has(event, "event.", "category", "network_traffic") || f.has(event, "event.", "category", "intrusion_detection") {
		return nil
	}
	return NotFlow("an event that is not about the network")
}

func ecsTimes(f *ecsFields, v, event *fastjson.Value, r *flow.Record) error {
	var err error
	read := func(name string) (t flow.Time) {
		if m := f.field(event, "event.", name); m != nil && err == nil {
			t, err = moment(m)
		}
		return t
	}
	r.Start, r.End = read("start"), read("end")
	if err != nil {
		return err
	}
	if d, ok := num(f.field(event, "event.", "duration")); ok && r.Start != 0 && r.End == 0 && d < 1e18 {
		r.End = r.Start + flow.Time(d/1e6)
	}
	if r.Start == 0 && r.End == 0 {
		r.Start, err = moment(v, "@timestamp")
	}
	return err
}

// counters fills what both ends sent. An intermediate state of Packetbeat's repeats them from
// the beginning on: its last one tells them.
func (f *ecsFields) counters(r *flow.Record, src, dst, network *fastjson.Value) {
	if final := f.field(at(f.v, "flow"), "flow.", "final"); final != nil && final.Type() == fastjson.TypeFalse {
		return
	}
	n, ok := num(f.field(src, f.source, "bytes"))
	m, back := num(f.field(dst, f.destination, "bytes"))
	if !ok && !back {
		n, ok = num(f.field(network, "network.", "bytes"))
	}
	setBytes(r, n, ok)
	setRevBytes(r, m, back)
	n, ok = num(f.field(src, f.source, "packets"))
	m, back = num(f.field(dst, f.destination, "packets"))
	if !ok && !back {
		n, ok = num(f.field(network, "network.", "packets"))
	}
	setPackets(r, n, ok)
	setRevPackets(r, m, back)
}

// enforced is what enforcement did: by the type of the event, else by an action that can mean
// nothing else.
func (f *ecsFields) enforced(event *fastjson.Value) flow.Observed {
	switch {
	case f.has(event, "event.", "type", "denied"):
		return flow.ObservedDeny
	case f.has(event, "event.", "type", "allowed"):
		return flow.ObservedAllow
	}
	action := f.said(event, "event.", "action")
	var low [16]byte
	if len(action) > len(low) {
		return flow.ObservedUnknown
	}
	for i, c := range action {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		low[i] = c
	}
	switch string(low[:len(action)]) {
	case "deny", "denied", "drop", "dropped", "block", "blocked", "reject", "rejected", "flow_denied", "flow_dropped":
		return flow.ObservedDeny
	case "allow", "allowed", "accept", "accepted", "permit", "permitted", "pass", "passed":
		return flow.ObservedAllow
	}
	return flow.ObservedUnknown
}

// ecsReporter finds where the observer sits, and sets what is told of the end it sits at.
func (e *entry) ecsReporter(f *ecsFields, r *flow.Record, network *fastjson.Value, srcIP, dstIP []byte) {
	v := f.v
	host := at(v, "host")
	name := f.first(at(v, "observer"), "observer.", "name", "hostname", "ip", "serial_number")
	onPath := name != nil
	if name == nil {
		name = f.first(host, "host.", "name", "hostname")
	}
	if name == nil {
		name = f.said(at(v, "agent"), "agent.", "name")
	}
	if name != nil {
		r.Observer = e.name(name)
	}
	// ingress and egress are as of a host; inbound, outbound and the like as of a perimeter.
	switch direction := f.said(network, "network.", "direction"); {
	case string(direction) == "ingress":
		setDirection(r, false)
		if !onPath {
			r.Reporter = flow.ReporterDestination
		}
	case string(direction) == "egress":
		setDirection(r, true)
		if !onPath {
			r.Reporter = flow.ReporterSource
		}
	case !onPath:
		atSrc, atDst := f.has(host, "host.", "ip", text(srcIP)), f.has(host, "host.", "ip", text(dstIP))
		switch {
		case atSrc && !atDst:
			r.Reporter = flow.ReporterSource
		case atDst && !atSrc:
			r.Reporter = flow.ReporterDestination
		}
	}
	if r.Reporter == flow.ReporterElsewhere {
		return
	}
	process := e.name(f.first(at(v, "process"), "process.", "executable", "name"))
	u := at(v, "user")
	user := e.account(f.said(u, "user.", "domain"), f.said(u, "user.", "name"))
	if r.Reporter == flow.ReporterSource {
		r.SrcProcess, r.SrcIdentity = process, user
	} else {
		r.DstProcess, r.DstIdentity = process, user
	}
}

func knownECS(_ []byte, v *fastjson.Value) string {
	if v == nil || !v.Exists("@timestamp") {
		return ""
	}
	for _, field := range [...]string{"ecs.version", "source.ip", "destination.ip", "event.category", "event.kind"} {
		if dig(v, field) != nil {
			return "a JSON object with @timestamp and " + field
		}
	}
	return ""
}
