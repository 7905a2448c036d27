package agent

import (
	"github.com/valyala/fastjson"

	"github.com/postern/postern/flow"
)

// illumio reads traffic flow summaries of Illumio's Policy Compute Engine: as it sends them
// to syslog and Fluentd, and as its API exports the results of a query. Fields:
// https://product-docs-repo.illumio.com/Tech-Docs/Core/25.2/REST-APIs, "Traffic Flow Types
// and Properties", "Manage Traffic Flows Using REST API", "Explorer APIs".
func illumio(v *fastjson.Value, e *entry) error {
	if v.Exists("policy_decision") || v.Exists("timestamp_range") {
		return e.illumioExport(v)
	}
	if !v.Exists("src_ip") && v.Exists("event_type") {
		return NotFlow("an event of the PCE")
	}
	r := e.flow(flow.SourceIllumio)
	if err := ends(r, said(str(v, "src_ip")), said(str(v, "dst_ip"))); err != nil {
		return err
	}
	var err error
	if r.Start, err = moment(v, "timestamp"); err != nil {
		return err
	}
	if d, ok := seconds(v, "interval_sec"); ok && r.Start != 0 {
		r.End = r.Start + d
	}
	switch pd, ok := num(v, "pd"); {
	case ok && pd == 0:
		r.Enforced = flow.ObservedAllow
	case ok && pd == 1:
		r.Enforced = flow.ObservedAudit
	case ok && pd == 2:
		r.Enforced = flow.ObservedDeny
	}
	e.illumioService(v, r, "dst_port")
	switch string(str(v, "dir")) {
	case "O":
		illumioReporter(r, flow.ReporterSource)
	case "I":
		illumioReporter(r, flow.ReporterDestination)
	}
	e.illumioOwner(r, said(str(v, "pn")), said(str(v, "un")))
	src, dst := said(str(v, "src_hostname")), said(str(v, "dst_hostname"))
	e.illumioHosts(r, src, dst, said(str(v, "fqdn")), said(str(v, "pce_fqdn")))
	r.App = e.name(illumioLabel(at(v, "dst_labels"), "app"))

	// In and out are as of the end that reports: of this window, else since the beginning.
	out, outOK := first(v, "dbo", "tbo")
	in, inOK := first(v, "dbi", "tbi")
	illumioBytes(r, out, outOK, in, inOK)
	return nil
}

// illumioExport reads a result of a traffic query.
func (e *entry) illumioExport(v *fastjson.Value) error {
	r := e.flow(flow.SourceIllumio)
	src, dst, service := at(v, "src"), at(v, "dst"), at(v, "service")
	if err := ends(r, said(str(src, "ip")), said(str(dst, "ip"))); err != nil {
		return err
	}
	var err error
	if r.Start, err = moment(v, "timestamp_range", "first_detected"); err != nil {
		return err
	}
	if r.End, err = moment(v, "timestamp_range", "last_detected"); err != nil {
		return err
	}
	// draft_policy_decision is what policy would say that is not in force: not read.
	switch string(str(v, "policy_decision")) {
	case "allowed":
		r.Enforced = flow.ObservedAllow
	case "potentially_blocked", "potentially_blocked_by_source", "potentially_blocked_by_destination":
		r.Enforced = flow.ObservedAudit
	case "blocked", "blocked_by_source", "blocked_by_destination":
		r.Enforced = flow.ObservedDeny
	}
	e.illumioService(service, r, "port")
	sent, received := "src_bo", "src_bi"
	switch string(str(v, "flow_direction")) {
	case "outbound":
		illumioReporter(r, flow.ReporterSource)
	case "inbound":
		illumioReporter(r, flow.ReporterDestination)
		sent, received = "dst_bi", "dst_bo"
	}
	n, ok := num(v, sent)
	setBytes(r, n, ok)
	n, ok = num(v, received)
	setRevBytes(r, n, ok)
	e.illumioOwner(r, said(str(service, "process_name")), said(str(service, "user_name")))
	e.illumioHosts(r, said(str(src, "workload", "hostname")), said(str(dst, "workload", "hostname")), said(str(dst, "fqdn")), nil)
	r.App = e.name(illumioLabel(at(dst, "workload", "labels"), "app"))
	return nil
}

// illumioService fills protocol and port: of the service, the client's port is never told.
func (e *entry) illumioService(v *fastjson.Value, r *flow.Record, port string) {
	r.Quality |= flow.QualityAggregated
	r.Has |= flow.HasInitiator
	proto, ok := octet(num(v, "proto"))
	setProto(r, proto, ok)
	if r.IsICMP() {
		typ, typOK := octet(first(v, "type", "icmp_type"))
		code, codeOK := octet(first(v, "code", "icmp_code"))
		setICMP(r, typ, code, typOK && codeOK)
		return
	}
	dp, ok := port16(num(v, port))
	setDstPort(r, dp, ok)
}

// illumioReporter sets which end the agent that reported sits at. Its side is the flow's
// direction there.
func illumioReporter(r *flow.Record, at flow.Reporter) {
	r.Reporter = at
	setDirection(r, at == flow.ReporterSource)
}

func (e *entry) illumioOwner(r *flow.Record, process, user []byte) {
	switch r.Reporter {
	case flow.ReporterSource:
		r.SrcProcess, r.SrcIdentity = e.name(process), e.name(user)
	case flow.ReporterDestination:
		r.DstProcess, r.DstIdentity = e.name(process), e.name(user)
	}
}

func (e *entry) illumioHosts(r *flow.Record, src, dst, fqdn, pce []byte) {
	r.SrcHost, r.DstHost = e.name(src), e.name(dst)
	observer := pce
	switch {
	case r.Reporter == flow.ReporterSource && src != nil:
		observer = src
	case r.Reporter == flow.ReporterDestination && dst != nil:
		observer = dst
	}
	if observer != nil {
		r.Observer = e.name(observer)
	}
	if dst == nil {
		r.DstHost = e.name(fqdn)
	}
}

func illumioBytes(r *flow.Record, out uint64, outOK bool, in uint64, inOK bool) {
	switch r.Reporter {
	case flow.ReporterSource:
		setBytes(r, out, outOK)
		setRevBytes(r, in, inOK)
	case flow.ReporterDestination:
		setBytes(r, in, inOK)
		setRevBytes(r, out, outOK)
	}
}

// illumioLabel is the value of a label: of an object by key, or of a list of key and value.
func illumioLabel(labels *fastjson.Value, key string) []byte {
	if labels == nil {
		return nil
	}
	for _, l := range labels.GetArray() {
		if string(str(l, "key")) == key {
			return said(str(l, "value"))
		}
	}
	return said(str(labels, key))
}

// first is the first of several members that is a number.
func first(v *fastjson.Value, keys ...string) (uint64, bool) {
	for _, key := range keys {
		if n, ok := num(v, key); ok {
			return n, true
		}
	}
	return 0, false
}

func knownIllumio(_ []byte, v *fastjson.Value) string {
	switch {
	case v == nil:
	case v.Exists("pd") && v.Exists("src_ip") && v.Exists("dst_ip"):
		return "a JSON object with pd, src_ip and dst_ip"
	case v.Exists("policy_decision") && v.Exists("timestamp_range"):
		return "a JSON object with policy_decision and timestamp_range"
	case v.Exists("pce_fqdn") && v.Exists("event_type"):
		return "a JSON object with pce_fqdn and event_type"
	}
	return ""
}
