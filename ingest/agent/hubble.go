package agent

import (
	"bytes"

	"github.com/valyala/fastjson"

	"github.com/postern/postern/flow"
)

// hubble reads what `hubble observe -o json` and the exporter write: observer.proto and
// flow.proto of Cilium's API as JSON, in the form of an ExportEvent or the Flow by itself.
func hubble(v *fastjson.Value, e *entry) error {
	f := v
	if g := at(v, "flow"); g != nil {
		f = g
	} else if at(v, "lost_events") != nil || at(v, "agent_event") != nil || at(v, "debug_event") != nil || at(v, "node_status") != nil {
		return NotFlow("an event of the agent")
	}
	ip := at(f, "IP")
	if ip == nil {
		if at(f, "verdict") != nil {
			return NotFlow("a flow without IP")
		}
		return fieldError("flow", nil, "a member of that name, or one named IP")
	}
	r := e.flow(flow.SourceHubble)
	if err := ends(r, str(ip, "source"), str(ip, "destination")); err != nil {
		return err
	}
	if t := str(f, "time"); t != nil {
		at, ok := when(t)
		if !ok {
			return fieldError("time", t, "a time such as 2026-10-02T15:04:05.123Z")
		}
		r.Start = at
	}
	e.hubblePorts(r, at(f, "l4"))

	switch v := str(f, "verdict"); string(v) {
	case "FORWARDED", "REDIRECTED", "TRACED", "TRANSLATED":
		r.Enforced = flow.ObservedAllow
	case "DROPPED", "ERROR":
		r.Enforced = flow.ObservedDeny
	case "AUDIT":
		r.Enforced = flow.ObservedAudit
	}

	node := str(f, "node_name")
	if node == nil {
		node = str(v, "node_name")
	}
	if node != nil {
		r.Observer = e.name(node)
	}
	src, dst := at(f, "source"), at(f, "destination")
	r.SrcHost, r.SrcIdentity = e.hubbleEnd(src)
	r.DstHost, r.DstIdentity = e.hubbleEnd(dst)

	// is_reply is null where Cilium does not know; `reply`, which is older, cannot say so.
	// Absent, false was left out by a version before is_reply, or it is not known either.
	reply := f.GetBool("reply")
	known, told := reply, f.Get("is_reply")
	if told != nil && told.Type() != fastjson.TypeNull {
		reply, known = told.GetBool(), true
	}
	switch {
	case known && reply:
		r.Has |= flow.HasResponder
	case known:
		r.Has |= flow.HasInitiator
	}
	// traffic_direction is that of the connection: an answer to what came in is INGRESS too,
	// and goes out.
	ingress := string(str(f, "traffic_direction")) == "INGRESS"
	switch {
	case !ingress && string(str(f, "traffic_direction")) != "EGRESS":
	case told != nil && !known: // null: it may be either's
	case ingress == reply:
		r.Direction, r.Has, r.Reporter = 1, r.Has|flow.HasDirection, flow.ReporterSource
	default:
		r.Direction, r.Has, r.Reporter = 0, r.Has|flow.HasDirection, flow.ReporterDestination
	}
	r.EnforcedBy = e.hubblePolicy(f, r, ingress)
	if at(f, "l7") != nil {
		r.App = e.name(hubbleApp(at(f, "l7")))
	}
	return nil
}

func (e *entry) hubblePorts(r *flow.Record, l4 *fastjson.Value) {
	if l4 == nil {
		return
	}
	for _, p := range [...]struct {
		key    string
		number uint8
	}{{"TCP", flow.ProtoTCP}, {"UDP", flow.ProtoUDP}, {"SCTP", flow.ProtoSCTP}} {
		l := at(l4, p.key)
		if l == nil {
			continue
		}
		setProto(r, p.number, true)
		sp, ok := port16(num(l, "source_port"))
		setSrcPort(r, sp, ok)
		dp, ok := port16(num(l, "destination_port"))
		setDstPort(r, dp, ok)
		if flags := at(l, "flags"); flags != nil {
			var set uint16
			for i, name := range [...]string{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"} {
				if flags.GetBool(name) {
					set |= 1 << i
				}
			}
			setFlags(r, set, true)
		}
		return
	}
	for _, p := range [...]struct {
		key    string
		number uint8
	}{{"ICMPv4", flow.ProtoICMP}, {"ICMPv6", flow.ProtoICMPv6}} {
		if l := at(l4, p.key); l != nil {
			setProto(r, p.number, true)
			// protojson leaves zeros out.
			typ, _ := octet(num(l, "type"))
			code, _ := octet(num(l, "code"))
			setICMP(r, typ, code, true)
			return
		}
	}
}

var (
	labelAccount   = []byte("k8s:io.cilium.k8s.policy.serviceaccount=")
	labelReserved  = []byte("reserved:")
	labelNamespace = []byte("k8s:io.kubernetes.pod.namespace=")
)

// hubbleEnd gives the name of an endpoint, namespace/pod, and its identity: the service
// account as namespace/account, else what Cilium reserves for it, such as reserved:world.
func (e *entry) hubbleEnd(end *fastjson.Value) (host, identity flow.Name) {
	if end == nil {
		return
	}
	namespace, account, reserved := str(end, "namespace"), []byte(nil), []byte(nil)
	for _, l := range end.GetArray("labels") {
		b := l.GetStringBytes()
		switch {
		case bytes.HasPrefix(b, labelAccount):
			account = b[len(labelAccount):]
		case bytes.HasPrefix(b, labelReserved) && reserved == nil:
			reserved = b
		case namespace == nil && bytes.HasPrefix(b, labelNamespace):
			namespace = b[len(labelNamespace):]
		}
	}
	if pod := str(end, "pod_name"); pod != nil {
		host = e.path(namespace, pod)
	}
	switch {
	case account != nil:
		identity = e.path(namespace, account)
	case reserved != nil:
		identity = e.name(reserved)
	}
	return host, identity
}

// hubblePolicy is what decided: the policy that Cilium names as allowing or denying, in the
// direction that was enforced; for a drop without one, the reason.
func (e *entry) hubblePolicy(f *fastjson.Value, r *flow.Record, ingress bool) flow.Name {
	key := "egress_"
	if ingress {
		key = "ingress_"
	}
	what := "allowed_by"
	if r.Enforced == flow.ObservedDeny {
		what = "denied_by"
	}
	if p := f.Get(key + what); p != nil {
		if first := p.Get("0"); first != nil {
			return e.path(str(first, "namespace"), str(first, "name"))
		}
	}
	if r.Enforced == flow.ObservedDeny {
		if why := str(f, "drop_reason_desc"); why != nil {
			return e.path([]byte("drop"), why)
		}
	}
	return flow.NoName
}

func hubbleApp(l7 *fastjson.Value) []byte {
	switch {
	case at(l7, "dns") != nil:
		return []byte("dns")
	case at(l7, "http") != nil:
		return []byte("http")
	case at(l7, "kafka") != nil:
		return []byte("kafka")
	}
	return nil
}

func knownHubble(_ []byte, v *fastjson.Value) string {
	switch {
	case v == nil:
	case v.Exists("flow", "verdict"):
		return "a JSON object with flow.verdict"
	case v.Exists("verdict") && v.Exists("traffic_direction"):
		return "a JSON object with verdict and traffic_direction"
	}
	return ""
}
