package agent

import (
	"bytes"
	"strings"

	"github.com/valyala/fastjson"

	"github.com/postern/postern/flow"
)

// The fields that are read of each end; its number times ecsEndFields goes before.
const (
	ecsIP = iota
	ecsPort
	ecsBytes
	ecsPackets
	ecsDomain
	ecsNATIP
	ecsNATPort
	ecsEndUser
	ecsEndUserDomain
	ecsEndFields
)

const (
	ecsSource = iota * ecsEndFields
	ecsDestination
	ecsClient
	ecsServer
	ecsEnds
)

// The fields that are read beside them.
const (
	ecsTimestamp = ecsEnds + iota
	ecsType
	ecsStart
	ecsEnd
	ecsDuration
	ecsCategory
	ecsEventType
	ecsAction
	ecsNumber
	ecsTransport
	ecsNetworkBytes
	ecsNetworkPackets
	ecsApplication
	ecsProtocol
	ecsNetworkDirection
	ecsFlags
	ecsFinal
	ecsRuleID
	ecsRuleName
	ecsRuleUUID
	ecsObserverName
	ecsObserverHostname
	ecsObserverIP
	ecsObserverSerial
	ecsHostName
	ecsHostHostname
	ecsHostIP
	ecsAgentType
	ecsAgentName
	ecsExecutable
	ecsProcessName
	ecsUserName
	ecsUserDomain
)

var ecsEndNames = []string{
	ecsIP:            "ip",
	ecsPort:          "port",
	ecsBytes:         "bytes",
	ecsPackets:       "packets",
	ecsDomain:        "domain",
	ecsNATIP:         "nat.ip",
	ecsNATPort:       "nat.port",
	ecsEndUser:       "user.name",
	ecsEndUserDomain: "user.domain",
}

var ecsNames = []string{
	ecsTimestamp - ecsEnds:        "@timestamp",
	ecsType - ecsEnds:             "type",
	ecsStart - ecsEnds:            "event.start",
	ecsEnd - ecsEnds:              "event.end",
	ecsDuration - ecsEnds:         "event.duration",
	ecsCategory - ecsEnds:         "event.category",
	ecsEventType - ecsEnds:        "event.type",
	ecsAction - ecsEnds:           "event.action",
	ecsNumber - ecsEnds:           "network.iana_number",
	ecsTransport - ecsEnds:        "network.transport",
	ecsNetworkBytes - ecsEnds:     "network.bytes",
	ecsNetworkPackets - ecsEnds:   "network.packets",
	ecsApplication - ecsEnds:      "network.application",
	ecsProtocol - ecsEnds:         "network.protocol",
	ecsNetworkDirection - ecsEnds: "network.direction",
	ecsFlags - ecsEnds:            "netflow.tcp_control_bits",
	ecsFinal - ecsEnds:            "flow.final",
	ecsRuleID - ecsEnds:           "rule.id",
	ecsRuleName - ecsEnds:         "rule.name",
	ecsRuleUUID - ecsEnds:         "rule.uuid",
	ecsObserverName - ecsEnds:     "observer.name",
	ecsObserverHostname - ecsEnds: "observer.hostname",
	ecsObserverIP - ecsEnds:       "observer.ip",
	ecsObserverSerial - ecsEnds:   "observer.serial_number",
	ecsHostName - ecsEnds:         "host.name",
	ecsHostHostname - ecsEnds:     "host.hostname",
	ecsHostIP - ecsEnds:           "host.ip",
	ecsAgentType - ecsEnds:        "agent.type",
	ecsAgentName - ecsEnds:        "agent.name",
	ecsExecutable - ecsEnds:       "process.executable",
	ecsProcessName - ecsEnds:      "process.name",
	ecsUserName - ecsEnds:         "user.name",
	ecsUserDomain - ecsEnds:       "user.domain",
}

// ecsPaths are the fields in the order of the constants: each a member of its set's object, else
// of the event under its whole name.
func ecsPaths() *paths {
	p := &paths{}
	add := func(name string) {
		set, field, ok := strings.Cut(name, ".")
		if !ok {
			p.add([]string{name})
			return
		}
		var ways [][]string
		for _, way := range digWays(field) {
			ways = append(ways, append([]string{set}, way...))
		}
		p.add(append(ways, []string{name})...)
	}
	for _, end := range []string{"source.", "destination.", "client.", "server."} {
		for _, name := range ecsEndNames {
			add(end + name)
		}
	}
	for _, name := range ecsNames {
		add(name)
	}
	return p
}

// ecs reads network events in the Elastic Common Schema, as Packetbeat, Filebeat's modules for
// firewalls and Elastic Agent write them. Fields: https://www.elastic.co/docs/reference/ecs,
// the sets base, source, destination, client, server, network, event, rule, observer, host,
// process and user. Fields may be nested or have dots in their names.
func ecs(f *found, e *entry) error {
	src, dst := ecsSource, ecsDestination
	srcIP, dstIP := f.said(src+ecsIP), f.said(dst+ecsIP)
	clientIP, serverIP := f.said(ecsClient+ecsIP), f.said(ecsServer+ecsIP)
	if srcIP == nil && dstIP == nil && clientIP != nil {
		src, dst, srcIP, dstIP = ecsClient, ecsServer, clientIP, serverIP
	}
	if srcIP == nil || dstIP == nil {
		return NotFlow("an event without addresses")
	}
	if err := ecsOther(f); err != nil {
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
	if err := ecsTimes(f, r); err != nil {
		return err
	}
	proto, ok := octet(f.num(ecsNumber))
	if !ok {
		proto, ok = protocol(f.said(ecsTransport))
	}
	setProto(r, proto, ok)
	if !r.IsICMP() {
		sp, ok := port16(f.num(src + ecsPort))
		setSrcPort(r, sp, ok)
		dp, ok := port16(f.num(dst + ecsPort))
		setDstPort(r, dp, ok)
	}
	if flags, ok := f.num(ecsFlags); ok {
		setFlags(r, uint16(flags), flags <= 0xffff)
	}
	ecsCounters(f, r, src, dst)
	if a, ok := addr(f.said(src + ecsNATIP)); ok {
		r.NATSrc, r.Has = a, r.Has|flow.HasNATSrc
	}
	if a, ok := addr(f.said(dst + ecsNATIP)); ok {
		r.NATDst, r.Has = a, r.Has|flow.HasNATDst
	}
	if p, ok := port16(f.num(src + ecsNATPort)); ok && p != 0 {
		r.NATSrcPort, r.Has = p, r.Has|flow.HasNATSrcPort
	}
	if p, ok := port16(f.num(dst + ecsNATPort)); ok && p != 0 {
		r.NATDstPort, r.Has = p, r.Has|flow.HasNATDstPort
	}

	r.Enforced = ecsEnforced(f)
	r.EnforcedBy = e.name(f.firstSaid(ecsRuleID, ecsRuleName, ecsRuleUUID))
	r.App = e.name(f.firstSaid(ecsApplication, ecsProtocol))
	r.SrcHost, r.DstHost = e.name(f.said(src+ecsDomain)), e.name(f.said(dst+ecsDomain))
	e.ecsReporter(f, r, srcIP, dstIP)
	if u := f.said(src + ecsEndUser); u != nil {
		r.SrcIdentity = e.account(f.said(src+ecsEndUserDomain), u)
	}
	if u := f.said(dst + ecsEndUser); u != nil {
		r.DstIdentity = e.account(f.said(dst+ecsEndUserDomain), u)
	}
	return nil
}

// ecsOther says what an event with addresses is that tells no flow; nil if it may tell one.
func ecsOther(f *found) error {
	switch kind := f.str(ecsType); {
	case string(kind) == "flow":
		return nil
	case len(kind) > 0 && string(f.said(ecsAgentType)) == "packetbeat":
		return NotFlow("a request within a flow")
	}
	if f.at(ecsCategory).kind == valueNone || f.has(ecsCategory, "network") || f.has(ecsCategory, "network_traffic") || f.has(ecsCategory, "intrusion_detection") {
		return nil
	}
	return NotFlow("an event that is not about the network")
}

func ecsTimes(f *found, r *flow.Record) (err error) {
	if r.Start, err = f.moment(ecsStart, "time"); err != nil {
		return err
	}
	if r.End, err = f.moment(ecsEnd, "time"); err != nil {
		return err
	}
	if d, ok := f.num(ecsDuration); ok && r.Start != 0 && r.End == 0 && d < 1e18 {
		r.End = r.Start + flow.Time(d/1e6)
	}
	if r.Start == 0 && r.End == 0 {
		r.Start, err = f.moment(ecsTimestamp, "@timestamp")
	}
	return err
}

// ecsCounters fills what both ends sent. An intermediate state of Packetbeat's repeats them from
// the beginning on: its last one tells them.
func ecsCounters(f *found, r *flow.Record, src, dst int) {
	if final, ok := f.at(ecsFinal).truth(); ok && !final {
		return
	}
	n, ok := f.num(src + ecsBytes)
	m, back := f.num(dst + ecsBytes)
	if !ok && !back {
		n, ok = f.num(ecsNetworkBytes)
	}
	setBytes(r, n, ok)
	setRevBytes(r, m, back)
	n, ok = f.num(src + ecsPackets)
	m, back = f.num(dst + ecsPackets)
	if !ok && !back {
		n, ok = f.num(ecsNetworkPackets)
	}
	setPackets(r, n, ok)
	setRevPackets(r, m, back)
}

// ecsEnforced is what enforcement did: by the type of the event, else by an action that can mean
// nothing else.
func ecsEnforced(f *found) flow.Observed {
	switch {
	case f.has(ecsEventType, "denied"):
		return flow.ObservedDeny
	case f.has(ecsEventType, "allowed"):
		return flow.ObservedAllow
	}
	action := f.said(ecsAction)
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
func (e *entry) ecsReporter(f *found, r *flow.Record, srcIP, dstIP []byte) {
	name := f.firstSaid(ecsObserverName, ecsObserverHostname, ecsObserverIP, ecsObserverSerial)
	onPath := name != nil
	if name == nil {
		name = f.firstSaid(ecsHostName, ecsHostHostname, ecsAgentName)
	}
	if name != nil {
		r.Observer = e.name(name)
	}
	// ingress and egress are as of a host; inbound, outbound and the like as of a perimeter.
	switch direction := f.said(ecsNetworkDirection); {
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
		atSrc, atDst := f.has(ecsHostIP, text(srcIP)), f.has(ecsHostIP, text(dstIP))
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
	process := e.name(f.firstSaid(ecsExecutable, ecsProcessName))
	user := e.account(f.said(ecsUserDomain), f.said(ecsUserName))
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
