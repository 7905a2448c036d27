package agent

import (
	"bytes"

	"github.com/valyala/fastjson"

	"github.com/postern/postern/flow"
)

const ocsfNetworkActivity = 4001

// ocsf reads Network Activity (class 4001) of the Open Cybersecurity Schema Framework, 1.0 to
// 1.9: events/network/network_activity.json, profiles/security_control.json, host.json and
// datetime.json of the schema, https://schema.ocsf.io.
func ocsf(v *fastjson.Value, e *entry) error {
	class, ok := num(v, "class_uid")
	switch {
	case !ok:
		return fieldError("class_uid", nil, "the number of a class, of network activity 4001")
	case class != ocsfNetworkActivity:
		return NotFlow("another class of OCSF")
	}
	if activity, ok := num(v, "activity_id"); ok && activity == 7 {
		return NotFlow("a program that listens")
	}
	src, dst, info := at(v, "src_endpoint"), at(v, "dst_endpoint"), at(v, "connection_info")
	srcIP, dstIP := said(str(src, "ip")), said(str(dst, "ip"))
	if srcIP == nil || dstIP == nil {
		return NotFlow("network activity without an address")
	}
	r := e.flow(flow.SourceOCSF)
	if err := ends(r, srcIP, dstIP); err != nil {
		return err
	}
	if err := ocsfTimes(v, r); err != nil {
		return err
	}
	proto, ok := octet(num(info, "protocol_num"))
	if !ok {
		proto, ok = protocol(str(info, "protocol_name"))
	}
	setProto(r, proto, ok)
	if !r.IsICMP() {
		sp, ok := port16(num(src, "port"))
		setSrcPort(r, sp, ok)
		dp, ok := port16(num(dst, "port"))
		setDstPort(r, dp, ok)
	}
	flags, ok := num(info, "tcp_flags")
	setFlags(r, uint16(flags), ok && flags <= 0xffff)
	ocsfTraffic(at(v, "traffic"), r)
	if n, ok := num(v, "count"); ok && n > 1 {
		r.Quality |= flow.QualityAggregated
	}

	device := at(v, "device")
	r.Reporter = ocsfReporter(v, device, src, dst, srcIP, dstIP)
	if direction, ok := num(info, "direction_id"); ok && r.Reporter != flow.ReporterElsewhere && (direction == 1 || direction == 2) {
		setDirection(r, direction == 2)
	}
	switch initiator, ok := num(v, "initiator_id"); {
	case ok && initiator == 1:
		r.Has |= flow.HasInitiator
	case ok && initiator == 2:
		r.Has |= flow.HasResponder
	case !ok && v.GetBool("is_src_dst_assignment_known"):
		r.Has |= flow.HasInitiator
	}
	r.Enforced = ocsfEnforced(v)
	rule := tells(at(v, "firewall_rule"), "uid", "name")
	if rule == nil {
		rule = tells(at(v, "policy"), "uid", "name")
	}
	r.EnforcedBy = e.name(rule)

	r.SrcHost, r.DstHost = e.name(tells(src, "hostname", "name")), e.name(tells(dst, "hostname", "name"))
	actor := at(v, "actor")
	p, u := at(actor, "process"), at(actor, "user")
	program := said(str(p, "file", "path"))
	if program == nil {
		program = tells(p, "name", "file.name")
	}
	process := e.name(program)
	user := e.account(said(str(u, "domain")), tells(u, "name", "email_addr", "uid"))
	if r.Reporter == flow.ReporterDestination {
		r.DstProcess, r.DstIdentity = process, user
	} else { // the schema's actor is whose activity it is
		r.SrcProcess, r.SrcIdentity = process, user
	}
	app := tells(v, "app_name", "app_protocol_name")
	if app == nil {
		app = said(str(dst, "svc_name"))
	}
	r.App = e.name(app)
	observer := tells(device, "hostname", "name", "uid", "ip")
	if observer == nil {
		observer = tells(at(v, "network_observation_point"), "hostname", "name")
	}
	if observer != nil {
		r.Observer = e.name(observer)
	}
	return nil
}

// ocsfTimes fills the times: milliseconds since 1970 or, in the profile datetime, RFC 3339.
func ocsfTimes(v *fastjson.Value, r *flow.Record) (err error) {
	if r.Start, err = ocsfTime(v, "start_time", "start_time_dt"); err != nil {
		return err
	}
	if r.End, err = ocsfTime(v, "end_time", "end_time_dt"); err != nil {
		return err
	}
	if duration, ok := num(v, "duration"); ok && r.Start != 0 && r.End == 0 && duration < 1e12 {
		r.End = r.Start + flow.Time(duration)
	}
	if r.Start == 0 && r.End == 0 {
		r.Start, err = ocsfTime(v, "time", "time_dt")
	}
	return err
}

func ocsfTime(v *fastjson.Value, key, text string) (flow.Time, error) {
	f := at(v, key)
	if f == nil {
		return moment(v, text)
	}
	n, ok := num(f)
	if !ok || n > maxEpoch*1000 {
		return 0, fieldError(key, shown(f), "milliseconds since 1970")
	}
	return flow.Time(n), nil
}

// ocsfTraffic fills the counters: out is from the source to the destination. Where nothing but
// the sum is told, that is taken.
func ocsfTraffic(t *fastjson.Value, r *flow.Record) {
	n, ok := num(t, "bytes_out")
	m, back := num(t, "bytes_in")
	if !ok && !back {
		n, ok = num(t, "bytes")
	}
	setBytes(r, n, ok)
	setRevBytes(r, m, back)
	n, ok = num(t, "packets_out")
	m, back = num(t, "packets_in")
	if !ok && !back {
		n, ok = num(t, "packets")
	}
	setPackets(r, n, ok)
	setRevPackets(r, m, back)
}

// ocsfReporter is the end that observed: as the event says, else that whose address or name
// the device has.
func ocsfReporter(v, device, src, dst *fastjson.Value, srcIP, dstIP []byte) flow.Reporter {
	switch point, _ := num(v, "observation_point_id"); point {
	case 1:
		return flow.ReporterSource
	case 2:
		return flow.ReporterDestination
	case 3:
		return flow.ReporterElsewhere
	}
	is := func(ip, name []byte) bool {
		d := said(str(device, "ip"))
		h := said(str(device, "hostname"))
		return d != nil && bytes.Equal(d, ip) || h != nil && bytes.Equal(h, name)
	}
	atSrc, atDst := is(srcIP, said(str(src, "hostname"))), is(dstIP, said(str(dst, "hostname")))
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
func ocsfEnforced(v *fastjson.Value) flow.Observed {
	action, _ := num(v, "action_id")
	disposition, _ := num(v, "disposition_id")
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
