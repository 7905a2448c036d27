package agent

import (
	"bytes"

	"github.com/valyala/fastjson"

	"github.com/postern/postern/flow"
)

// suricata reads Suricata's EVE JSON: the events flow, netflow, alert and drop. Fields:
// https://docs.suricata.io/en/latest/output/eve/eve-json-format.html and etc/schema.json of
// its sources.
func suricata(v *fastjson.Value, e *entry) error {
	kind := str(v, "event_type")
	switch string(kind) {
	case "":
		return fieldError("event_type", kind, "one such as flow")
	case "flow", "netflow", "alert", "drop":
	default:
		return NotFlow("another event of Suricata's")
	}
	src, dst := said(str(v, "src_ip")), said(str(v, "dest_ip"))
	if src == nil && dst == nil {
		return NotFlow("an event without addresses")
	}
	r := e.flow(flow.SourceSuricata)
	if err := ends(r, src, dst); err != nil {
		return err
	}
	proto, ok := protocol(str(v, "proto"))
	setProto(r, proto, ok)
	if r.IsICMP() {
		typ, typOK := octet(num(v, "icmp_type"))
		code, codeOK := octet(num(v, "icmp_code"))
		setICMP(r, typ, code, typOK && codeOK)
	} else {
		sp, ok := port16(num(v, "src_port"))
		setSrcPort(r, sp, ok)
		dp, ok := port16(num(v, "dest_port"))
		setDstPort(r, dp, ok)
	}
	if app := said(str(v, "app_proto")); app != nil && string(app) != "failed" {
		r.App = e.name(app)
	}
	for _, sensor := range [...][]byte{str(v, "host"), str(v, "host", "name"), str(v, "in_iface")} {
		if sensor = said(sensor); sensor != nil {
			r.Observer = e.name(sensor)
			break
		}
	}
	switch string(kind) {
	case "flow":
		return suricataFlow(v, r)
	case "netflow":
		return suricataNetflow(v, r)
	}
	return e.suricataPacket(v, r)
}

// suricataFlow fills what the end of a flow tells: the source is the client.
func suricataFlow(v *fastjson.Value, r *flow.Record) (err error) {
	f := at(v, "flow")
	if r.Start, err = moment(f, "start"); err != nil {
		return err
	}
	if r.End, err = moment(f, "end"); err != nil {
		return err
	}
	number := func(key string) (uint64, bool) { return num(f, key) }
	n, ok := number("bytes_toserver")
	setBytes(r, n, ok)
	n, ok = number("pkts_toserver")
	setPackets(r, n, ok)
	n, ok = number("bytes_toclient")
	setRevBytes(r, n, ok)
	n, ok = number("pkts_toclient")
	setRevPackets(r, n, ok)
	tcp := at(v, "tcp")
	flags, known := hex16(str(tcp, "tcp_flags_ts"))
	rev, ok := hex16(str(tcp, "tcp_flags_tc"))
	seen := flags|rev != 0 // 00 is written too where TCP was not followed
	setFlags(r, flags, known && seen)
	setRevFlags(r, rev, ok && seen)
	// Of a TCP flow whose beginning Suricata did not see, the client is only who was seen
	// first.
	if !known || flags&flow.SYN != 0 {
		r.Has |= flow.HasInitiator
	}
	if string(str(f, "action")) == "drop" {
		r.Enforced = flow.ObservedDeny
	}
	return nil
}

// suricataNetflow fills what one direction of a flow tells. Which one is not said.
func suricataNetflow(v *fastjson.Value, r *flow.Record) (err error) {
	f := at(v, "netflow")
	if r.Start, err = moment(f, "start"); err != nil {
		return err
	}
	if r.End, err = moment(f, "end"); err != nil {
		return err
	}
	n, ok := num(f, "bytes")
	setBytes(r, n, ok)
	n, ok = num(f, "pkts")
	setPackets(r, n, ok)
	flags, ok := hex16(str(v, "tcp", "tcp_flags"))
	setFlags(r, flags, ok)
	return nil
}

// suricataPacket fills what an alert or a drop tells: of one packet, the source is who sent
// it. The counters beside it are those of a flow that goes on, and come again at its end.
func (e *entry) suricataPacket(v *fastjson.Value, r *flow.Record) (err error) {
	if r.Start, err = moment(v, "timestamp"); err != nil {
		return err
	}
	drop := at(v, "drop") != nil
	if drop || string(str(v, "alert", "action")) == "blocked" {
		r.Enforced = flow.ObservedDeny
	}
	if sid, ok := num(v, "alert", "signature_id"); ok {
		e.d.text = appendNumber(append(e.d.text[:0], "sid/"...), sid)
		r.EnforcedBy = e.name(e.d.text)
	} else if why := said(str(v, "drop", "reason")); why != nil {
		r.EnforcedBy = e.path([]byte("drop"), why)
	}
	client := said(str(v, "flow", "src_ip"))
	switch direction := str(v, "direction"); {
	case string(direction) == "to_server":
		r.Has |= flow.HasInitiator
	case string(direction) == "to_client":
		r.Has |= flow.HasResponder
	case client == nil:
	case bytes.Equal(client, str(v, "src_ip")) && !bytes.Equal(client, str(v, "dest_ip")):
		r.Has |= flow.HasInitiator
	case bytes.Equal(client, str(v, "dest_ip")) && !bytes.Equal(client, str(v, "src_ip")):
		r.Has |= flow.HasResponder
	}
	return nil
}

func knownSuricata(_ []byte, v *fastjson.Value) string {
	if v != nil && len(str(v, "event_type")) > 0 && v.Exists("timestamp") {
		return "a JSON object with event_type and timestamp"
	}
	return ""
}
