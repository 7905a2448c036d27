package siem

import (
	"slices"
	"strconv"
	"strings"

	"github.com/postern/postern/flow"
)

// ecsVersion is the release of the Elastic Common Schema that documents declare and keep to
// (https://www.elastic.co/guide/en/ecs/8.11/index.html): no field is newer.
const ecsVersion = "8.11.0"

func encodeECS(f *flow.Finding) ([]byte, error) {
	return fitted(f, MaxMessage, func(f *flow.Finding) ([]byte, error) {
		o, err := ecs(f)
		if err != nil {
			return nil, err
		}
		return marshal(o)
	})
}

// ecs is a finding as one document, its fields nested. What the schema has no field for is under
// postern, by the finding's own names. Samples are texts there: what a flow holds is no two times
// the same, and each member would be a field of the index.
func ecs(f *flow.Finding) (object, error) {
	t := tellEnds(f)
	category, types := ecsKind(f)
	event := filled(object{
		"kind": "alert", "category": category, "type": types, "action": f.Type, "reason": f.Reason,
		"outcome": ecsOutcome(f), "id": f.EventID(), "module": "postern", "dataset": "postern.finding", "provider": "postern",
		"start": f.FirstSeen.String(), "end": f.LastSeen.String(),
	})
	event["severity"] = int(f.Severity)
	event["sequence"] = f.Revision
	if f.Score > 0 && f.Score <= 1 {
		event["risk_score"] = f.Score * 100
	}
	client, server := ecsEnd(&t.Client, -1), ecsEnd(&t.Server, t.Port)
	o := object{
		"ecs": object{"version": ecsVersion}, "message": f.Sentence, "event": event,
		"observer": object{"vendor": "Postern", "product": "Postern"},
		"rule":     filled(object{"name": f.Rule, "category": f.Type, "description": f.Title, "ruleset": "postern", "version": f.PolicyVersion}),
		"threat":   ecsThreat(f.Techniques),
		"source":   client, "destination": server,
		"network": ecsNetwork(&t),
		"related": ecsRelated(f, &t),
		"labels":  filled(object{"exception": f.Exception, "ticket": f.Ticket, "owner": f.Owner, "requester": f.Requester, "approver": f.Approver}),
	}
	o["@timestamp"] = f.LastSeen.String()
	if f.LastSeen == 0 { // each document has to have one
		o["@timestamp"] = string(f.LastSeen.AppendTo(nil))
	}
	if f.Orientation != "open" { // else nobody knows which is which
		o["client"], o["server"] = client, server
	}
	if t.Client.Identity != "" {
		o["user"] = object{"name": t.Client.Identity}
	}
	if p := t.Client.Process; strings.ContainsAny(p, `/\`) {
		o["process"] = object{"executable": p}
	} else if p != "" {
		o["process"] = object{"name": p}
	}
	rest, err := otherwise(f, "samples", "sentence", "first_seen", "last_seen")
	if err != nil {
		return nil, err
	}
	var samples []string
	for _, s := range f.Samples {
		samples = append(samples, string(s))
	}
	rest["samples"] = samples
	o["postern"] = filled(rest)
	return filled(o), nil
}

// ecsKind gives event.category and event.type, of the words that the schema allows together.
func ecsKind(f *flow.Finding) (category, types []string) {
	switch f.Type {
	case flow.FindingDrift, flow.FindingSplit, flow.FindingUnmapped, flow.FindingMisplaced, flow.FindingUnseenSegment:
		return []string{"configuration"}, []string{"info"}
	case flow.FindingSilentExporter, flow.FindingSilentHost, flow.FindingAgentMissing, flow.FindingLoss, flow.FindingStale,
		flow.FindingSkew, flow.FindingSampling, flow.FindingPressure:
		return []string{"host"}, []string{"info"}
	}
	category, types = []string{"network"}, []string{"connection"}
	if behaves(f.Type) {
		category, types = []string{"intrusion_detection", "network"}, []string{"connection", "info"}
	}
	switch passed, stopped := fate(f); {
	case passed:
		types = append(types, "allowed")
	case stopped:
		types = append(types, "denied")
	}
	return category, types
}

func ecsOutcome(f *flow.Finding) string {
	switch passed, stopped := fate(f); {
	case passed:
		return "success"
	case stopped:
		return "failure"
	}
	return "unknown"
}

// ecsEnd is nil where nothing is known of an end.
func ecsEnd(e *flow.End, port int) object {
	o := filled(object{"address": e.Address, "domain": e.Host})
	if _, ok := address(e.Address); ok {
		o["ip"] = e.Address
	}
	if e.Identity != "" {
		o["user"] = object{"name": e.Identity}
	}
	if len(o) > 0 && port >= 0 {
		o["port"] = port
	}
	return o
}

func ecsNetwork(t *told) object {
	o := object{}
	if t.Number >= 0 {
		o["iana_number"] = strconv.Itoa(t.Number)
	}
	switch t.Number {
	case flow.ProtoICMPv6:
		o["transport"] = "ipv6-icmp" // as IANA calls it
	case flow.ProtoTCP, flow.ProtoUDP, flow.ProtoICMP, flow.ProtoSCTP:
		o["transport"] = t.Proto
	}
	for _, e := range []string{t.Client.Address, t.Server.Address} {
		if a, ok := address(e); ok && a.Is4() {
			o["type"] = "ipv4"
		} else if ok {
			o["type"] = "ipv6"
		}
	}
	return o
}

func ecsThreat(techniques []string) object {
	var ids, names, subs, subNames []string
	for _, id := range texts(techniques...) {
		parent, sub := technique(id)
		if !slices.Contains(ids, parent) {
			ids, names = append(ids, parent), append(names, techniqueNames[parent])
		}
		if sub {
			subs, subNames = append(subs, id), append(subNames, techniqueNames[id])
		}
	}
	if len(ids) == 0 {
		return nil
	}
	return object{"framework": "MITRE ATT&CK", "technique": filled(object{"id": ids, "name": texts(names...),
		"subtechnique": filled(object{"id": subs, "name": texts(subNames...)})})}
}

// ecsRelated gathers what one looks for in other documents, wherever in this one it stands.
func ecsRelated(f *flow.Finding, t *told) object {
	var ip, hosts, users []string
	end := func(e *flow.End) {
		for _, s := range []string{e.Address, e.Translated} {
			if _, ok := address(s); ok {
				ip = append(ip, s)
			}
		}
		hosts, users = append(hosts, e.Host), append(users, e.Identity)
	}
	end(&t.Client)
	end(&t.Server)
	for i := range f.Ends {
		end(&f.Ends[i])
	}
	for i := range f.Hops {
		end(&f.Hops[i].Client)
		end(&f.Hops[i].Server)
	}
	sorted := func(list []string) []string {
		slices.Sort(list)
		return slices.Compact(texts(list...))
	}
	return filled(object{"ip": sorted(ip), "hosts": sorted(hosts), "user": sorted(users)})
}
