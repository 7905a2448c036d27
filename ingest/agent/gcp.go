package agent

import (
	"bytes"
	"encoding/base64"
	"fmt"

	"github.com/valyala/fastjson"

	"github.com/postern/postern/flow"
)

// Google Cloud's VPC flow logs and firewall rules logs: entries of Cloud Logging, and the same
// in the envelope of Pub/Sub. Fields:
// https://cloud.google.com/vpc/docs/about-flow-logs-records and
// https://cloud.google.com/firewall/docs/vpc-log-format (firewall-policy-log-format)

func newGCP(d *Decoder) parser {
	var data []byte
	return ofJSON(func(v *fastjson.Value, e *entry) (err error) {
		if m := str(v, "message", "data"); m != nil {
			if data, err = base64.StdEncoding.AppendDecode(data[:0], m); err != nil {
				return fieldError("message.data", m, "base64")
			}
			if v, err = d.tree(data); err != nil {
				return fmt.Errorf("message.data is no JSON: %w", err)
			}
		}
		return gcp(v, e)
	})(d)
}

// gcp reads an entry, or its payload by itself.
func gcp(v *fastjson.Value, e *entry) error {
	p := at(v, "jsonPayload")
	if p == nil {
		p = v
	}
	c := at(p, "connection")
	switch {
	case c == nil && (v.Exists("logName") || v.Exists("insertId")):
		return NotFlow("another log of Google Cloud's")
	case c == nil:
		return fieldError("jsonPayload.connection", nil, "that of a VPC flow log or of a firewall rules log")
	case p.Exists("disposition"):
		return gcpFirewall(v, p, c, e)
	}
	return gcpVPC(v, p, c, e)
}

// gcpConnection reads the five-tuple.
func gcpConnection(r *flow.Record, c *fastjson.Value) error {
	if err := ends(r, str(c, "src_ip"), str(c, "dest_ip")); err != nil {
		return err
	}
	proto, ok := octet(num(c, "protocol"))
	setProto(r, proto, ok)
	if r.Any(flow.HasProto) && !hasPorts(r.Proto) {
		return nil
	}
	port, ok := port16(num(c, "src_port"))
	setSrcPort(r, port, ok)
	port, ok = port16(num(c, "dest_port"))
	setDstPort(r, port, ok)
	return nil
}

// gcpVPC reads what one side saw of one direction of a connection.
func gcpVPC(v, p, c *fastjson.Value, e *entry) error {
	r := e.flow(flow.SourceGCPVPC)
	if err := gcpConnection(r, c); err != nil {
		return err
	}
	for _, t := range [...]struct {
		key string
		to  *flow.Time
	}{{"start_time", &r.Start}, {"end_time", &r.End}} {
		if b := str(p, t.key); b != nil {
			at, ok := when(b)
			if !ok {
				return fieldError(t.key, b, "a time such as 2026-10-02T15:04:05.123Z")
			}
			*t.to = at
		}
	}
	r.Quality |= flow.QualityAggregated
	n, ok := num(p, "bytes_sent")
	setBytes(r, n, ok)
	n, ok = num(p, "packets_sent")
	setPackets(r, n, ok)
	r.SrcHost, r.SrcIdentity = e.gcpEnd(at(p, "src_instance"), at(p, "src_gke_details"))
	r.DstHost, r.DstIdentity = e.gcpEnd(at(p, "dest_instance"), at(p, "dest_gke_details"))
	var own *fastjson.Value
	switch string(str(p, "reporter")) {
	case "SRC":
		r.Reporter, own = flow.ReporterSource, at(p, "src_instance")
	case "DEST":
		r.Reporter, own = flow.ReporterDestination, at(p, "dest_instance")
	case "SRC_GATEWAY":
		own = at(p, "src_gateway")
	case "DEST_GATEWAY":
		own = at(p, "dest_gateway")
	}
	r.Observer = e.gcpObserver(own, v)
	return nil
}

// gcpEnd gives what is at an end: a pod as namespace/pod and its workload as
// namespace/workload, else a virtual machine.
func (e *entry) gcpEnd(instance, gke *fastjson.Value) (host, identity flow.Name) {
	if pod := at(gke, "pod"); pod != nil {
		namespace := str(pod, "pod_namespace")
		if workload := str(pod, "pod_workload", "workload_name"); workload != nil {
			identity = e.path(namespace, workload)
		}
		return e.path(namespace, str(pod, "pod_name")), identity
	}
	return e.name(str(instance, "vm_name")), flow.NoName
}

// gcpObserver is the machine or gateway that reported, as project/name; where metadata is
// left out, the subnet as project/subnet.
func (e *entry) gcpObserver(own, v *fastjson.Value) flow.Name {
	for _, key := range [...]string{"vm_name", "name"} {
		if name := str(own, key); name != nil {
			return e.path(str(own, "project_id"), name)
		}
	}
	labels := at(v, "resource", "labels")
	if subnet := str(labels, "subnetwork_name"); subnet != nil {
		return e.path(str(labels, "project_id"), subnet)
	}
	return flow.NoName
}

// gcpFirewall reads a connection that a rule allowed or denied, told once at its beginning.
func gcpFirewall(v, p, c *fastjson.Value, e *entry) error {
	r := e.flow(flow.SourceGCPFirewall)
	if err := gcpConnection(r, c); err != nil {
		return err
	}
	if b := str(v, "timestamp"); b != nil {
		at, ok := when(b)
		if !ok {
			return fieldError("timestamp", b, "a time such as 2026-10-02T15:04:05.123Z")
		}
		r.Start = at
	}
	r.Has |= flow.HasInitiator
	switch d := str(p, "disposition"); string(d) {
	case "ALLOWED":
		r.Enforced = flow.ObservedAllow
	case "DENIED":
		r.Enforced = flow.ObservedDeny
	case "INTERCEPTED": // handed on to be inspected; what came of it is not in this log
	default:
		return fieldError("disposition", d, "ALLOWED, DENIED or INTERCEPTED")
	}
	r.EnforcedBy = e.name(str(p, "rule_details", "reference"))
	instance := at(p, "instance")
	r.Observer = e.gcpObserver(instance, v)
	own := e.name(str(instance, "vm_name"))
	remote := e.name(str(p, "remote_instance", "vm_name"))
	switch string(str(p, "rule_details", "direction")) {
	case "INGRESS":
		r.Direction, r.Has, r.Reporter = 0, r.Has|flow.HasDirection, flow.ReporterDestination
		r.DstHost, r.SrcHost = own, remote
	case "EGRESS":
		r.Direction, r.Has, r.Reporter = 1, r.Has|flow.HasDirection, flow.ReporterSource
		r.SrcHost, r.DstHost = own, remote
	}
	return nil
}

func knownGCP(_ []byte, v *fastjson.Value) string {
	switch {
	case v == nil:
	case v.Exists("jsonPayload", "connection", "src_ip"):
		return "a JSON object with jsonPayload.connection"
	case bytes.Contains(str(v, "logName"), []byte("%2Fvpc_flows")), bytes.Contains(str(v, "logName"), []byte("%2Ffirewall")):
		return "an entry of Cloud Logging with the log name of VPC flows or the firewall"
	case v.Exists("message", "attributes", "logging.googleapis.com/timestamp"):
		return "a Pub/Sub message from Cloud Logging"
	}
	return ""
}
