package agent

import (
	"bytes"

	"github.com/valyala/fastjson"

	"github.com/postern/postern/flow"
)

// Azure's flow logs: of virtual networks (version 4), and of network security groups
// (versions 1 and 2), an element of "records" a line. Fields:
// https://learn.microsoft.com/azure/network-watcher/vnet-flow-logs-overview and
// https://learn.microsoft.com/azure/network-watcher/nsg-flow-logs-overview

var azureEncryption, azureBegun = []byte("encryption"), []byte("B")

// azure reads a record. Each holds tuples of many flows; one that is no good costs itself.
func azure(v *fastjson.Value, e *entry) error {
	var p parts
	switch {
	case v.Exists("flowRecords"):
		observer := e.name(azureObserver(str(v, "macAddress"), str(v, "flowLogResourceID")))
		for _, f := range v.GetArray("flowRecords", "flows") {
			acl := lastOf(azureSaid(str(f, "aclID")))
			for _, g := range f.GetArray("flowGroups") {
				by := e.path(acl, azureSaid(str(g, "rule")))
				for _, t := range g.GetArray("flowTuples") {
					from := len(e.out.Records)
					p.took(e, from, e.azureVNet(t.GetStringBytes(), observer, by))
				}
			}
		}
	case v.Exists("properties", "flows"):
		group := lastOf(str(v, "resourceId"))
		for _, f := range v.GetArray("properties", "flows") {
			by := e.path(group, azureSaid(str(f, "rule")))
			for _, n := range f.GetArray("flows") {
				observer := e.name(azureObserver(str(n, "mac"), str(v, "resourceId")))
				for _, t := range n.GetArray("flowTuples") {
					from := len(e.out.Records)
					p.took(e, from, e.azureNSG(t.GetStringBytes(), observer, by))
				}
			}
		}
	case v.Exists("category"):
		return NotFlow("another log of Azure's")
	default:
		return fieldError("flowRecords", nil, "that of a virtual network's flow log, or properties.flows of a network security group's")
	}
	return p.result(e)
}

// azureObserver is the interface where it was captured, else the resource that keeps the log.
func azureObserver(mac, resource []byte) []byte {
	if len(mac) > 0 {
		return mac
	}
	return resource
}

// azureSaid is what a text says; "unspecified" is nothing.
func azureSaid(b []byte) []byte {
	if bytes.EqualFold(b, []byte("unspecified")) {
		return nil
	}
	return said(b)
}

// azureTuple cuts a tuple into its fields.
func azureTuple(t []byte) (f [13][]byte, n int) {
	if len(t) == 0 {
		return f, 0
	}
	from := 0
	for i, c := range t {
		if c == ',' {
			if n < len(f) {
				f[n] = t[from:i]
			}
			from, n = i+1, n+1
		}
	}
	if n < len(f) {
		f[n] = t[from:]
	}
	return f, n + 1
}

// azureVNet reads milliseconds, source, destination, ports, protocol, direction, state,
// encryption, and packets and bytes both ways.
func (e *entry) azureVNet(t []byte, observer, by flow.Name) error {
	f, n := azureTuple(t)
	if n != 13 {
		return fieldError("flow tuple", t, "13 fields")
	}
	proto, ok := octet(atou(f[5]))
	if !ok {
		return fieldError("protocol", f[5], "a number up to 255")
	}
	r := e.flow(flow.SourceAzureVNet)
	setProto(r, proto, true)
	if err := e.azureFlow(r, &f, f[6], f[7], f[9:13]); err != nil {
		return err
	}
	r.Observer, r.EnforcedBy, r.Enforced = observer, by, flow.ObservedAllow
	if string(f[7]) == "D" {
		r.Enforced = flow.ObservedDeny
		if by == flow.NoName { // for want of encryption
			r.EnforcedBy = e.path(azureEncryption, f[8])
		}
	}
	return nil
}

// azureNSG reads seconds, source, destination, ports, T or U, direction, decision; in version
// 2 state, and packets and bytes both ways.
func (e *entry) azureNSG(t []byte, observer, by flow.Name) error {
	f, n := azureTuple(t)
	if n != 8 && n != 13 {
		return fieldError("flow tuple", t, "8 fields, or 13 in version 2")
	}
	r := e.flow(flow.SourceAzureNSG)
	switch string(f[5]) {
	case "T":
		setProto(r, flow.ProtoTCP, true)
	case "U":
		setProto(r, flow.ProtoUDP, true)
	default:
		return fieldError("protocol", f[5], "T or U")
	}
	state := f[8] // nil in version 1
	if n == 8 {
		state = azureBegun // version 1 tells each once
	}
	if err := e.azureFlow(r, &f, f[6], state, f[9:13]); err != nil {
		return err
	}
	r.Observer, r.EnforcedBy = observer, by
	switch string(f[7]) {
	case "A":
		r.Enforced = flow.ObservedAllow
	case "D":
		r.Enforced = flow.ObservedDeny
	default:
		return fieldError("decision", f[7], "A or D")
	}
	return nil
}

// azureFlow reads what both tuples have: time, addresses and ports, direction, state, and the
// counters, which count what came since the tuple before.
func (e *entry) azureFlow(r *flow.Record, f *[13][]byte, direction, state []byte, counters [][]byte) error {
	at, ok := azureTime(f[0])
	if !ok {
		return fieldError("time", f[0], "seconds or milliseconds since 1970")
	}
	if err := ends(r, f[1], f[2]); err != nil {
		return err
	}
	setPorts(r, f[3], f[4])
	switch string(direction) {
	case "I":
		r.Direction, r.Reporter = 0, flow.ReporterDestination
	case "O":
		r.Direction, r.Reporter = 1, flow.ReporterSource
	default:
		return fieldError("direction", direction, "I or O")
	}
	r.Has |= flow.HasDirection | flow.HasInitiator
	switch string(state) {
	case "B", "D":
		r.Start = at
	case "C", "E":
		r.End = at
		r.Quality |= flow.QualityAggregated
		n, ok := atou(counters[0])
		setPackets(r, n, ok)
		n, ok = atou(counters[1])
		setBytes(r, n, ok)
		n, ok = atou(counters[2])
		setRevPackets(r, n, ok)
		n, ok = atou(counters[3])
		setRevBytes(r, n, ok)
	default:
		return fieldError("state", state, "B, C, E or D")
	}
	return nil
}

// azureTime reads seconds or, of virtual networks, milliseconds.
func azureTime(b []byte) (flow.Time, bool) {
	n, ok := atou(b)
	switch {
	case !ok || n == 0 || n >= maxEpoch*1000:
		return 0, false
	case n >= maxEpoch:
		return flow.Time(n), true
	}
	return flow.Time(n * 1000), true
}

func knownAzure(_ []byte, v *fastjson.Value) string {
	switch {
	case v == nil:
	case v.Exists("flowRecords", "flows"):
		return "a JSON object with flowRecords.flows"
	case string(str(v, "category")) == "NetworkSecurityGroupFlowEvent", v.Exists("properties", "flows", "0", "flows"):
		return "a JSON object with properties.flows of a network security group"
	}
	return ""
}
