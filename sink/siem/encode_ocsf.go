package siem

import (
	"math"

	"github.com/postern/postern/flow"
)

// ocsfVersion is the release of the schema (https://schema.ocsf.io/1.5.0) that events declare and
// keep to: no attribute and no value of an enumeration is newer. 1.5.0 is the oldest that has
// compliance.checks and names for evidence.
const ocsfVersion = "1.5.0"

// The classes that findings are told in.
const (
	ocsfCompliance = 2003
	ocsfDetection  = 2004
	ocsfNetwork    = 4001
)

// ocsfClass says in which class a finding is told.
//
// A conversation that an exception was used for, in force or not, is Network Activity with the
// security control profile: who reached whom, under which authorization, and what was done about
// it. What enforcement, agents and the map of segments are, held against what is declared, is a
// Compliance Finding. All else is a Detection Finding. The type decides, and that it has an end,
// which Network Activity cannot be without; neither changes while a finding lives.
func ocsfClass(f *flow.Finding) int {
	switch f.Type {
	case flow.FindingExpired, flow.FindingNotYetValid, flow.FindingUnapproved, flow.FindingOutlived, flow.FindingGrown, flow.FindingNews:
		if f.Client != "" || f.Server != "" {
			return ocsfNetwork
		}
	case flow.FindingDrift, flow.FindingSplit, flow.FindingUnmapped, flow.FindingMisplaced, flow.FindingUnseenSegment, flow.FindingAgentMissing:
		return ocsfCompliance
	}
	return ocsfDetection
}

func encodeOCSF(f *flow.Finding) ([]byte, error) {
	return fitted(f, MaxMessage, func(f *flow.Finding) ([]byte, error) {
		o, err := ocsf(f)
		if err != nil {
			return nil, err
		}
		return marshal(o)
	})
}

func ocsf(f *flow.Finding) (object, error) {
	class, t := ocsfClass(f), tellEnds(f)
	e := object{
		"class_uid":      class,
		"time":           int64(f.LastSeen),
		"start_time":     int64(f.FirstSeen),
		"end_time":       int64(f.LastSeen),
		"message":        f.Sentence,
		"is_alert":       f.Severity >= flow.Medium && f.SuppressedBy == "" && f.GroupedBy == "",
		"attacks":        ocsfAttacks(f.Techniques),
		"policy":         ocsfPolicy(f),
		"firewall_rule":  filled(object{"uid": f.Rule, "name": f.Rule}),
		"authorizations": ocsfAuthorizations(f),
		"observables":    nil,
		"confidence_id":  ocsfConfidence(f.Confidence),
		"confidence":     ocsfConfidences[ocsfConfidence(f.Confidence)],
	}
	if f.Count > 0 {
		e["count"] = f.Count
	}
	if c := math.Round(f.Confidence * 100); c >= 0 && c <= 100 {
		e["confidence_score"] = int(c)
	}
	if s := math.Round(f.Score * 100); s > 0 && s <= 100 {
		e["risk_score"] = int(s)
	}
	e["severity_id"], e["severity"] = ocsfSeverity(f.Severity)
	e["action_id"], e["action"], e["disposition_id"], e["disposition"] = ocsfDone(f)
	profiles := []string{"security_control"}

	var err error
	mapped := []string{"id", "severity", "confidence", "first_seen", "last_seen", "count", "sentence", "techniques"}
	if class == ocsfNetwork {
		if ocsfConversation(e, f, &t) {
			profiles = append(profiles, "host")
		}
	} else {
		ocsfFinding(e, f, &t, class)
		mapped = append(mapped, "title", "next", "continues", "grouped_by")
	}
	e["metadata"] = filled(object{
		"version": ocsfVersion, "profiles": profiles,
		"product": object{"name": "Postern", "vendor_name": "Postern", "feature": filled(object{"name": f.Type})},
		"uid":     f.EventID(), "correlation_uid": f.ID, "event_code": f.Type,
		"log_name": "findings", "log_provider": "postern", "original_time": f.LastSeen.String(),
	})
	if e["unmapped"], err = otherwise(f, mapped...); err != nil {
		return nil, err
	}
	return filled(e), nil
}

// ocsfFinding adds what Detection and Compliance Finding have and Network Activity has not.
func ocsfFinding(e object, f *flow.Finding, t *told, class int) {
	name := "Detection Finding"
	if class == ocsfCompliance {
		name = "Compliance Finding"
	}
	activity, doing := 2, "Update"
	if f.Revision <= 1 {
		activity, doing = 1, "Create"
	}
	e["class_name"], e["category_uid"], e["category_name"] = name, 2, "Findings"
	e["activity_id"], e["activity_name"] = activity, doing
	e["type_uid"], e["type_name"] = class*100+activity, name+": "+doing
	e["status_id"], e["status"] = 1, "New"
	if f.SuppressedBy != "" {
		e["status_id"], e["status"] = 3, "Suppressed"
	}
	var related []object
	if f.Continues != "" {
		related = append(related, object{"uid": f.Continues, "desc": "the finding of the day before that this one goes on"})
	}
	if f.GroupedBy != "" {
		related = append(related, object{"uid": f.GroupedBy, "desc": "the finding that tells of this one and of many others"})
	}
	kind := object{"name": f.Type, "uid": f.Type, "type_id": 1, "type": "Rule"}
	if behaves(f.Type) {
		kind["type_id"], kind["type"] = 2, "Behavioral"
	}
	e["finding_info"] = filled(object{
		"uid": f.ID, "title": f.Title, "desc": f.Sentence, "types": texts(f.Type),
		"first_seen_time": int64(f.FirstSeen), "last_seen_time": int64(f.LastSeen),
		"attacks": e["attacks"], "related_events": related, "analytic": kind,
		"data_sources": texts(append(append([]string(nil), f.Exporters...), f.Observers...)...),
	})
	if f.Next != "" {
		e["remediation"] = object{"desc": f.Next}
	}

	var evidences []object
	if ends := filled(object{
		"src_endpoint": ocsfEndpoint(&t.Client, -1), "dst_endpoint": ocsfEndpoint(&t.Server, t.Port), "actor": ocsfActor(&t.Client),
	}); len(ends) > 0 {
		if t.Number >= 0 {
			ends["connection_info"] = ocsfConnection(t)
		}
		evidences = append(evidences, ends)
	}
	for i := range f.Hops {
		h := &f.Hops[i]
		way := tellEnds(&flow.Finding{Service: h.Service})
		step := filled(object{
			"name": h.Exception, "uid": h.Session, "actor": ocsfActor(&h.Client),
			"src_endpoint": ocsfEndpoint(&h.Client, -1), "dst_endpoint": ocsfEndpoint(&h.Server, way.Port),
		})
		if step["src_endpoint"] != nil || step["dst_endpoint"] != nil {
			evidences = append(evidences, step)
		}
	}
	e["evidences"] = evidences
	e["observables"] = ocsfObservables("evidences[0].", t)

	resource := ocsfResource(&t.Server)
	if len(resource) == 0 {
		resource = ocsfResource(&t.Client)
	}
	for i := 0; len(resource) == 0 && i < len(f.Ends); i++ {
		resource = ocsfResource(&f.Ends[i])
	}
	if len(resource) == 0 {
		resource = filled(object{"name": f.Subject})
	}
	if len(resource) > 0 {
		e["resources"] = []object{resource}
	}
	if class == ocsfCompliance {
		severity, caption := ocsfSeverity(f.Severity)
		check := object{"uid": f.Type, "name": f.Type, "desc": f.Title, "status_id": 3, "status": "Fail", "severity_id": severity, "severity": caption}
		e["compliance"] = filled(object{
			"control": f.Type, "desc": f.Title, "status_id": 3, "status": "Fail", "status_details": texts(f.Sentence),
			"requirements": texts(f.Rule), "checks": []object{filled(check)},
		})
	}
}

// ocsfConversation adds what Network Activity has and findings have not, and says whether it knows
// who acted, which is of the host profile.
func ocsfConversation(e object, f *flow.Finding, t *told) (acted bool) {
	const traffic = 6
	e["class_name"], e["category_uid"], e["category_name"] = "Network Activity", 4, "Network Activity"
	e["activity_id"], e["activity_name"] = traffic, "Traffic"
	e["type_uid"], e["type_name"] = ocsfNetwork*100+traffic, "Network Activity: Traffic"
	switch passed, stopped := fate(f); {
	case passed:
		e["status_id"], e["status"] = 1, "Success"
	case stopped:
		e["status_id"], e["status"] = 2, "Failure"
	default:
		e["status_id"], e["status"] = 0, "Unknown"
	}
	e["src_endpoint"], e["dst_endpoint"] = ocsfEndpoint(&t.Client, -1), ocsfEndpoint(&t.Server, t.Port)
	if t.Number >= 0 {
		e["connection_info"] = ocsfConnection(t)
	}
	actor := ocsfActor(&t.Client)
	e["actor"] = actor
	e["observables"] = ocsfObservables("", t)
	return len(actor) > 0
}

func ocsfSeverity(s flow.Severity) (id int, caption string) {
	return int(s) + 1, [...]string{"Informational", "Low", "Medium", "High", "Critical"}[min(s, flow.Critical)]
}

var ocsfConfidences = [...]string{"Unknown", "Low", "Medium", "High"}

func ocsfConfidence(c float64) int {
	switch {
	case c >= 0.8:
		return 3
	case c >= 0.5:
		return 2
	case c > 0:
		return 1
	}
	return 0
}

// ocsfDone tells what enforcement did, as far as somebody said so, and what came of it, which is
// known of more: an answer shows that something got through.
func ocsfDone(f *flow.Finding) (actionID int, action string, dispositionID int, disposition string) {
	switch f.Observed {
	case flow.ObservedAllow.String():
		actionID, action = 1, "Allowed"
	case flow.ObservedDeny.String():
		actionID, action = 2, "Denied"
	case flow.ObservedAudit.String():
		return 3, "Observed", 17, "Logged"
	default:
		action = "Unknown"
	}
	switch passed, stopped := fate(f); {
	case passed:
		return actionID, action, 1, "Allowed"
	case stopped:
		return actionID, action, 2, "Blocked"
	}
	return actionID, action, 15, "Detected"
}

func ocsfPolicy(f *flow.Finding) object {
	if f.PolicyVersion == "" {
		return nil
	}
	return object{"name": "Postern policy", "uid": f.PolicyVersion, "version": f.PolicyVersion}
}

// ocsfAuthorizations has the exception: what authorizes, or would.
func ocsfAuthorizations(f *flow.Finding) []object {
	if f.Exception == "" {
		return nil
	}
	a := object{"policy": filled(object{
		"uid": f.Exception, "name": f.Exception, "desc": f.Reason,
		"data": filled(object{"ticket": f.Ticket, "owner": f.Owner, "requester": f.Requester, "approver": f.Approver}),
	})}
	switch f.Expected {
	case flow.ExpectAllow.String():
		a["decision"] = "Approved"
	case flow.ExpectDeny.String():
		a["decision"] = "Denied"
	}
	return []object{a}
}

// ocsfAttacks names techniques of MITRE ATT&CK; of a sub-technique its technique as well.
func ocsfAttacks(ids []string) (attacks []object) {
	for _, id := range ids {
		if id == "" {
			continue
		}
		parent, sub := technique(id)
		a := object{"technique": filled(object{"uid": parent, "name": techniqueNames[parent]})}
		if sub {
			a["sub_technique"] = filled(object{"uid": id, "name": techniqueNames[id]})
		}
		attacks = append(attacks, a)
	}
	return attacks
}

// ocsfEndpoint is nil where nothing is known of an end.
func ocsfEndpoint(e *flow.End, port int) object {
	o := object{"hostname": e.Host, "name": e.Workload}
	if _, ok := address(e.Address); ok {
		o["ip"] = e.Address
	} else if e.Workload == "" {
		o["name"] = e.Address
	}
	if filled(o); len(o) == 0 {
		return nil
	}
	if e.Segment != "" {
		o["zone"] = e.Segment
	}
	if port >= 0 {
		o["port"] = port
	}
	return o
}

// ocsfActor is who used the end: a person or an account, and the program it was done with.
func ocsfActor(e *flow.End) object {
	o := filled(object{"app_name": e.Process})
	if e.Identity != "" {
		o["user"] = object{"name": e.Identity}
	}
	return o
}

func ocsfConnection(t *told) object {
	c := object{"direction_id": 0, "direction": "Unknown", "protocol_num": t.Number}
	switch {
	case t.Number == flow.ProtoICMPv6:
		c["protocol_name"] = "ipv6-icmp" // as IANA calls it
	case t.Proto != "" && (t.Proto[0] < '0' || t.Proto[0] > '9'):
		c["protocol_name"] = t.Proto
	}
	for _, e := range []string{t.Client.Address, t.Server.Address} {
		if a, ok := address(e); ok && a.Is4() {
			c["protocol_ver_id"], c["protocol_ver"] = 4, "Internet Protocol version 4 (IPv4)"
		} else if ok {
			c["protocol_ver_id"], c["protocol_ver"] = 6, "Internet Protocol version 6 (IPv6)"
		}
	}
	return c
}

func ocsfResource(e *flow.End) object {
	o := filled(object{"name": e.Workload, "uid": e.Address})
	if len(o) == 0 {
		return nil
	}
	if _, ok := address(e.Address); ok {
		o["ip"] = e.Address
	}
	if e.Host != "" {
		o["hostname"] = e.Host
	}
	if e.Segment != "" {
		o["group"] = object{"name": e.Segment}
	}
	return o
}

// ocsfObservables points at what one looks for elsewhere; at is the way to the ends.
func ocsfObservables(at string, t *told) (list []object) {
	add := func(name string, id int, typ, value string) {
		if value != "" {
			list = append(list, object{"name": at + name, "type_id": id, "type": typ, "value": value})
		}
	}
	ends := []struct {
		name string
		end  *flow.End
	}{{"src_endpoint", &t.Client}, {"dst_endpoint", &t.Server}}
	for _, x := range ends {
		if _, ok := address(x.end.Address); ok {
			add(x.name+".ip", 2, "IP Address", x.end.Address)
		}
		add(x.name+".hostname", 1, "Hostname", x.end.Host)
	}
	add("actor.user.name", 4, "User Name", t.Client.Identity)
	return list
}

// texts lists those that say something.
func texts(list ...string) (out []string) {
	for _, s := range list {
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}
