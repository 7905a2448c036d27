package agent

import (
	"bytes"

	"github.com/valyala/fastjson"

	"github.com/postern/postern/flow"
)

// calico reads the flow logs of Calico Enterprise and Calico Cloud as JSON. Fields:
// https://docs.tigera.io/calico-enterprise/latest/observability/elastic/flow/datatypes. What
// Goldmane and Whisker of Calico tell has the same names and no addresses.
func calico(v *fastjson.Value, e *entry) error {
	reporter := str(v, "reporter")
	if reporter == nil && !v.Exists("action") {
		return fieldError("reporter", nil, "src or dst")
	}
	src, dst := said(str(v, "source_ip")), said(str(v, "dest_ip"))
	if src == nil || dst == nil {
		return NotFlow("aggregated, without an address")
	}
	r := e.flow(flow.SourceCalico)
	if err := ends(r, src, dst); err != nil {
		return err
	}
	r.Has |= flow.HasInitiator
	var err error
	if r.Start, err = calicoTime(v, "start_time"); err != nil {
		return err
	}
	if r.End, err = calicoTime(v, "end_time"); err != nil {
		return err
	}
	if p, ok := octet(num(v, "proto")); ok {
		setProto(r, p, true)
	} else {
		p, ok := protocol(str(v, "proto"))
		setProto(r, p, ok)
	}
	sp, spOK := port16(num(v, "source_port"))
	dp, dpOK := port16(num(v, "dest_port"))
	if !r.IsICMP() {
		setSrcPort(r, sp, spOK && sp != 0) // aggregated rows have none
		setDstPort(r, dp, dpOK && dp != 0)
	}
	r.Quality |= flow.QualityAggregated

	// What comes in and goes out is told as of the end that reports.
	sent, received := [...]string{"bytes_out", "packets_out"}, [...]string{"bytes_in", "packets_in"}
	process := said(str(v, "process_name"))
	if string(process) == "*" {
		process = nil
	}
	switch string(reporter) {
	case "src", "Src":
		r.Reporter = flow.ReporterSource
		r.SrcProcess = e.name(process)
	case "dst", "Dst":
		r.Reporter = flow.ReporterDestination
		r.DstProcess = e.name(process)
		sent, received = received, sent
	}
	if r.Reporter != flow.ReporterElsewhere {
		n, ok := num(v, sent[0])
		setBytes(r, n, ok)
		n, ok = num(v, sent[1])
		setPackets(r, n, ok)
		n, ok = num(v, received[0])
		setRevBytes(r, n, ok)
		n, ok = num(v, received[1])
		setRevPackets(r, n, ok)
	}

	action := str(v, "action")
	switch string(action) {
	case "allow", "Allow":
		r.Enforced, action = flow.ObservedAllow, []byte("allow")
	case "deny", "Deny":
		r.Enforced, action = flow.ObservedDeny, []byte("deny")
	}
	if p := calicoPolicy(at(v, "policies"), action); p != nil {
		r.EnforcedBy = e.name(p)
	}
	r.SrcHost, r.SrcIdentity = e.calicoEnd(v, "source_type", "source_namespace", "source_name", "source_name_aggr", "source_labels")
	r.DstHost, r.DstIdentity = e.calicoEnd(v, "dest_type", "dest_namespace", "dest_name", "dest_name_aggr", "dest_labels")
	if service := said(str(v, "dest_service_name")); service != nil {
		r.App = e.path(said(str(v, "dest_service_namespace")), service)
	}
	if host := said(str(v, "host")); host != nil {
		r.Observer = e.name(host)
	}
	return nil
}

func calicoTime(v *fastjson.Value, key string) (flow.Time, error) {
	f := at(v, key)
	if f == nil {
		return 0, nil
	}
	if t, ok := when(f.GetStringBytes()); ok {
		return t, nil
	}
	if t, ok := epochOf(f); ok {
		return t, nil
	}
	return 0, fieldError(key, shown(f), "seconds since 1970, or RFC 3339")
}

// calicoPolicy is the policy that decided: of the trace, lines of index|tier|policy|action|rule,
// the last that is enforced and did what was done. Staged policies decide nothing.
func calicoPolicy(policies *fastjson.Value, action []byte) (name []byte) {
	trace := policies.GetArray("enforced_policies")
	if len(trace) == 0 {
		trace = policies.GetArray("all_policies")
	}
	for _, t := range trace {
		var part [4][]byte
		rest := t.GetStringBytes()
		for i := range part {
			part[i], rest, _ = bytes.Cut(rest, []byte{'|'})
		}
		if bytes.Equal(part[3], action) && len(action) > 0 && !calicoStaged(part[2]) {
			name = part[2]
		}
	}
	return name
}

// calicoStaged says whether a policy of a trace is staged: staged:… behind its namespace, or
// by the kind before its name.
func calicoStaged(policy []byte) bool {
	if bytes.Contains(policy, []byte("staged:")) {
		return true
	}
	kind, _, ok := bytes.Cut(policy, []byte{':'})
	return ok && (string(kind) == "sgnp" || string(kind) == "snp" || string(kind) == "sknp")
}

var labelCalicoAccount = []byte("projectcalico.org/serviceaccount=")

// calicoEnd gives the name of an endpoint as namespace/name, where the row is of one or of
// the pods of one workload (name-*); and its service account as namespace/account.
func (e *entry) calicoEnd(v *fastjson.Value, kind, namespace, name, aggregated, labels string) (host, identity flow.Name) {
	switch string(str(v, kind)) {
	case "net", "ns": // an address outside, a set of networks
		return
	}
	ns := said(str(v, namespace))
	n := said(str(v, name))
	if n == nil {
		n = said(str(v, aggregated))
	}
	if n != nil && string(n) != "pub" && string(n) != "pvt" {
		host = e.path(ns, n)
	}
	list := at(v, labels)
	if l := at(list, "labels"); l != nil {
		list = l
	}
	for _, l := range list.GetArray() {
		if account, ok := bytes.CutPrefix(l.GetStringBytes(), labelCalicoAccount); ok && len(account) > 0 {
			identity = e.path(ns, account)
		}
	}
	return host, identity
}

func knownCalico(_ []byte, v *fastjson.Value) string {
	if v != nil && v.Exists("reporter") && v.Exists("source_namespace") && v.Exists("dest_namespace") {
		return "a JSON object with reporter, source_namespace and dest_namespace"
	}
	return ""
}
