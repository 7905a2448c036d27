package agent

import (
	"bytes"
	"strings"

	"github.com/valyala/fastjson"

	"github.com/postern/postern/flow"
)

const ocsfNetworkActivity = 4001

// The members that are read.
const (
	ocsfClass = iota
	ocsfActivity
	ocsfCount
	ocsfMoment
	ocsfMomentText
	ocsfStart
	ocsfStartText
	ocsfEnd
	ocsfEndText
	ocsfDuration
	ocsfSrcIP
	ocsfSrcPort
	ocsfSrcHostname
	ocsfSrcName
	ocsfDstIP
	ocsfDstPort
	ocsfDstHostname
	ocsfDstName
	ocsfService
	ocsfProtocol
	ocsfProtocolName
	ocsfDirection
	ocsfFlags
	ocsfBytes
	ocsfBytesIn
	ocsfBytesOut
	ocsfPackets
	ocsfPacketsIn
	ocsfPacketsOut
	ocsfAction
	ocsfDisposition
	ocsfInitiator
	ocsfAssigned
	ocsfPointID
	ocsfPointHostname
	ocsfPointName
	ocsfRule
	ocsfRuleName
	ocsfPolicy
	ocsfPolicyName
	ocsfApp
	ocsfAppProtocol
	ocsfProcessPath
	ocsfProcessName
	ocsfProcessFile
	ocsfUserDomain
	ocsfUserName
	ocsfUserEmail
	ocsfUserID
	ocsfDeviceHostname
	ocsfDeviceName
	ocsfDeviceID
	ocsfDeviceIP
)

var ocsfNames = []string{
	ocsfClass:          "class_uid",
	ocsfActivity:       "activity_id",
	ocsfCount:          "count",
	ocsfMoment:         "time",
	ocsfMomentText:     "time_dt",
	ocsfStart:          "start_time",
	ocsfStartText:      "start_time_dt",
	ocsfEnd:            "end_time",
	ocsfEndText:        "end_time_dt",
	ocsfDuration:       "duration",
	ocsfSrcIP:          "src_endpoint.ip",
	ocsfSrcPort:        "src_endpoint.port",
	ocsfSrcHostname:    "src_endpoint.hostname",
	ocsfSrcName:        "src_endpoint.name",
	ocsfDstIP:          "dst_endpoint.ip",
	ocsfDstPort:        "dst_endpoint.port",
	ocsfDstHostname:    "dst_endpoint.hostname",
	ocsfDstName:        "dst_endpoint.name",
	ocsfService:        "dst_endpoint.svc_name",
	ocsfProtocol:       "connection_info.protocol_num",
	ocsfProtocolName:   "connection_info.protocol_name",
	ocsfDirection:      "connection_info.direction_id",
	ocsfFlags:          "connection_info.tcp_flags",
	ocsfBytes:          "traffic.bytes",
	ocsfBytesIn:        "traffic.bytes_in",
	ocsfBytesOut:       "traffic.bytes_out",
	ocsfPackets:        "traffic.packets",
	ocsfPacketsIn:      "traffic.packets_in",
	ocsfPacketsOut:     "traffic.packets_out",
	ocsfAction:         "action_id",
	ocsfDisposition:    "disposition_id",
	ocsfInitiator:      "initiator_id",
	ocsfAssigned:       "is_src_dst_assignment_known",
	ocsfPointID:        "observation_point_id",
	ocsfPointHostname:  "network_observation_point.hostname",
	ocsfPointName:      "network_observation_point.name",
	ocsfRule:           "firewall_rule.uid",
	ocsfRuleName:       "firewall_rule.name",
	ocsfPolicy:         "policy.uid",
	ocsfPolicyName:     "policy.name",
	ocsfApp:            "app_name",
	ocsfAppProtocol:    "app_protocol_name",
	ocsfProcessPath:    "actor.process.file.path",
	ocsfProcessName:    "actor.process.name",
	ocsfProcessFile:    "actor.process.file.name",
	ocsfUserDomain:     "actor.user.domain",
	ocsfUserName:       "actor.user.name",
	ocsfUserEmail:      "actor.user.email_addr",
	ocsfUserID:         "actor.user.uid",
	ocsfDeviceHostname: "device.hostname",
	ocsfDeviceName:     "device.name",
	ocsfDeviceID:       "device.uid",
	ocsfDeviceIP:       "device.ip",
}

// ocsfPaths are the members in the order of the constants.
func ocsfPaths() *paths {
	p := &paths{}
	for i, name := range ocsfNames {
		way := strings.Split(name, ".")
		if i == ocsfProcessFile {
			p.add([]string{"actor", "process", "file.name"}, way) // a name with a dot in it, too
			continue
		}
		p.add(way)
	}
	return p
}

// ocsf reads Network Activity (class 4001) of the Open Cybersecurity Schema Framework, 1.0 to
// 1.9: events/network/network_activity.json, profiles/security_control.json, host.json and
// datetime.json of the schema, https://schema.ocsf.io.
func ocsf(f *found, e *entry) error {
	class, ok := f.num(ocsfClass)
	switch {
	case !ok:
		return fieldError("class_uid", nil, "the number of a class, of network activity 4001")
	case class != ocsfNetworkActivity:
		return NotFlow("another class of OCSF")
	}
	if activity, ok := f.num(ocsfActivity); ok && activity == 7 {
		return NotFlow("a program that listens")
	}
	srcIP, dstIP := f.said(ocsfSrcIP), f.said(ocsfDstIP)
	if srcIP == nil || dstIP == nil {
		return NotFlow("network activity without an address")
	}
	r := e.flow(flow.SourceOCSF)
	if err := ends(r, srcIP, dstIP); err != nil {
		return err
	}
	if err := ocsfTimes(f, r); err != nil {
		return err
	}
	proto, ok := octet(f.num(ocsfProtocol))
	if !ok {
		proto, ok = protocol(f.str(ocsfProtocolName))
	}
	setProto(r, proto, ok)
	if !r.IsICMP() {
		sp, ok := port16(f.num(ocsfSrcPort))
		setSrcPort(r, sp, ok)
		dp, ok := port16(f.num(ocsfDstPort))
		setDstPort(r, dp, ok)
	}
	flags, ok := f.num(ocsfFlags)
	setFlags(r, uint16(flags), ok && flags <= 0xffff)
	ocsfTraffic(f, r)
	if n, ok := f.num(ocsfCount); ok && n > 1 {
		r.Quality |= flow.QualityAggregated
	}

	r.Reporter = ocsfReporter(f, srcIP, dstIP)
	if direction, ok := f.num(ocsfDirection); ok && r.Reporter != flow.ReporterElsewhere && (direction == 1 || direction == 2) {
		setDirection(r, direction == 2)
	}
	known, told := f.at(ocsfAssigned).truth()
	switch initiator, ok := f.num(ocsfInitiator); {
	case ok && initiator == 1:
		r.Has |= flow.HasInitiator
	case ok && initiator == 2:
		r.Has |= flow.HasResponder
	case !ok && told && known:
		r.Has |= flow.HasInitiator
	}
	r.Enforced = ocsfEnforced(f)
	r.EnforcedBy = e.name(f.firstSaid(ocsfRule, ocsfRuleName, ocsfPolicy, ocsfPolicyName))

	r.SrcHost, r.DstHost = e.name(f.firstSaid(ocsfSrcHostname, ocsfSrcName)), e.name(f.firstSaid(ocsfDstHostname, ocsfDstName))
	process := e.name(f.firstSaid(ocsfProcessPath, ocsfProcessName, ocsfProcessFile))
	user := e.account(f.said(ocsfUserDomain), f.firstSaid(ocsfUserName, ocsfUserEmail, ocsfUserID))
	if r.Reporter == flow.ReporterDestination {
		r.DstProcess, r.DstIdentity = process, user
	} else { // the schema's actor is whose activity it is
		r.SrcProcess, r.SrcIdentity = process, user
	}
	r.App = e.name(f.firstSaid(ocsfApp, ocsfAppProtocol, ocsfService))
	if observer := f.firstSaid(ocsfDeviceHostname, ocsfDeviceName, ocsfDeviceID, ocsfDeviceIP, ocsfPointHostname, ocsfPointName); observer != nil {
		r.Observer = e.name(observer)
	}
	return nil
}

// ocsfTimes fills the times: milliseconds since 1970 or, in the profile datetime, RFC 3339.
func ocsfTimes(f *found, r *flow.Record) (err error) {
	if r.Start, err = ocsfTime(f, ocsfStart, ocsfStartText); err != nil {
		return err
	}
	if r.End, err = ocsfTime(f, ocsfEnd, ocsfEndText); err != nil {
		return err
	}
	if duration, ok := f.num(ocsfDuration); ok && r.Start != 0 && r.End == 0 && duration < 1e12 {
		r.End = r.Start + flow.Time(duration)
	}
	if r.Start == 0 && r.End == 0 {
		r.Start, err = ocsfTime(f, ocsfMoment, ocsfMomentText)
	}
	return err
}

func ocsfTime(f *found, number, text int) (flow.Time, error) {
	v := f.at(number)
	if v.kind == valueNone {
		return f.moment(text, ocsfNames[text])
	}
	n, ok := f.num(number)
	if !ok || n > maxEpoch*1000 {
		return 0, fieldError(ocsfNames[number], v.shown(), "milliseconds since 1970")
	}
	return flow.Time(n), nil
}

// ocsfTraffic fills the counters: out is from the source to the destination. Where nothing but
// the sum is told, that is taken.
func ocsfTraffic(f *found, r *flow.Record) {
	n, ok := f.num(ocsfBytesOut)
	m, back := f.num(ocsfBytesIn)
	if !ok && !back {
		n, ok = f.num(ocsfBytes)
	}
	setBytes(r, n, ok)
	setRevBytes(r, m, back)
	n, ok = f.num(ocsfPacketsOut)
	m, back = f.num(ocsfPacketsIn)
	if !ok && !back {
		n, ok = f.num(ocsfPackets)
	}
	setPackets(r, n, ok)
	setRevPackets(r, m, back)
}

// ocsfReporter is the end that observed: as the event says, else that whose address or name
// the device has.
func ocsfReporter(f *found, srcIP, dstIP []byte) flow.Reporter {
	switch point, _ := f.num(ocsfPointID); point {
	case 1:
		return flow.ReporterSource
	case 2:
		return flow.ReporterDestination
	case 3:
		return flow.ReporterElsewhere
	}
	d, h := f.said(ocsfDeviceIP), f.said(ocsfDeviceHostname)
	is := func(ip, name []byte) bool {
		return d != nil && bytes.Equal(d, ip) || h != nil && bytes.Equal(h, name)
	}
	atSrc, atDst := is(srcIP, f.said(ocsfSrcHostname)), is(dstIP, f.said(ocsfDstHostname))
	switch {
	case atSrc && !atDst:
		return flow.ReporterSource
	case atDst && !atSrc:
		return flow.ReporterDestination
	}
	return flow.ReporterElsewhere
}

// ocsfEnforced is what a control did, by its action and the disposition that came of it. A
// control that only observed (3) neither allowed nor denied.
func ocsfEnforced(f *found) flow.Observed {
	action, _ := f.num(ocsfAction)
	disposition, _ := f.num(ocsfDisposition)
	switch disposition {
	case 2, 6, 21, 25, 26: // blocked, dropped, reset, rejected, unauthorized
		return flow.ObservedDeny
	}
	switch {
	case action == 2:
		return flow.ObservedDeny
	case action == 1 && (disposition == 15 || disposition == 19), action != 3 && disposition == 19: // detected, alert: not blocked
		return flow.ObservedAudit
	case action == 1, action == 0 && disposition == 1:
		return flow.ObservedAllow
	}
	return flow.ObservedUnknown
}

func knownOCSF(_ []byte, v *fastjson.Value) string {
	if v != nil && v.Exists("class_uid") && (v.Exists("category_uid") || v.Exists("metadata")) {
		return "a JSON object with class_uid"
	}
	return ""
}
