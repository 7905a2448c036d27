package siem

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern/postern/flow"
)

// ecsFields are the fields that are used, with their types, and the words that some of them allow.
var ecsFields = sync.OnceValues(func() (fields map[string]string, words map[string][]string) {
	fields, words = map[string]string{}, map[string][]string{}
	b, err := os.ReadFile(filepath.Join("testdata", "ecs-8.11.txt"))
	if err != nil {
		panic(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		if name, list, ok := strings.Cut(line, " = "); ok {
			words[name] = strings.Fields(list)
		} else if name, typ, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			fields[name] = typ
		}
	}
	return fields, words
})

// checkECS says whether a document has fields that the schema knows, with values that Elasticsearch
// takes for their types and words that the schema allows, and says what the finding says.
func checkECS(f *flow.Finding) error {
	doc, err := encoded(encodeECS, f)
	if err != nil {
		return err
	}
	fields, words := ecsFields()
	var errs []error
	say := func(format string, a ...any) { errs = append(errs, fmt.Errorf("ECS: "+format, a...)) }
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			if len(v) == 0 {
				say("%s holds nothing", path)
			}
			for k, x := range v {
				if p := strings.TrimPrefix(path+"."+k, "."); p != "postern" {
					walk(p, x)
				}
			}
			return
		case []any:
			if len(v) == 0 || fields[path] != "keyword" && fields[path] != "ip" {
				say("%s is a list: %v", path, v)
			}
			for _, x := range v {
				walk(path, x)
			}
			return
		}
		s, isText := v.(string)
		n, isNumber := v.(json.Number)
		var ok bool
		switch typ := fields[path]; typ {
		case "keyword", "match_only_text":
			ok = isText && s != ""
		case "ip":
			_, err := netip.ParseAddr(s)
			ok = isText && err == nil && !strings.Contains(s, "%")
		case "date":
			_, err := time.Parse("2006-01-02T15:04:05.000Z", s)
			ok = isText && err == nil
		case "long":
			_, err := n.Int64()
			ok = isNumber && err == nil
		case "float":
			_, err := n.Float64()
			ok = isNumber && err == nil
		default:
			say("%s is no field of the schema that the table of this test has; look it up there", path)
			return
		}
		if allowed := words[path]; !ok || allowed != nil && !slices.Contains(allowed, s) {
			say("%s: %v", path, v)
		}
	}
	walk("", doc)
	categories, _ := at(doc, "event", "category").([]any)
	types, _ := at(doc, "event", "type").([]any)
	for _, typ := range types {
		if !slices.ContainsFunc(categories, func(c any) bool {
			return slices.Contains(words[fmt.Sprint("event.type of ", c)], fmt.Sprint(typ))
		}) {
			say("event.type %v goes with none of %v", typ, categories)
		}
	}
	for _, path := range []string{"@timestamp", "ecs.version", "event.kind", "event.category", "event.type", "event.outcome", "event.id"} {
		if follow(doc, path) == nil {
			say("no %s", path)
		}
	}
	for path, want := range map[string]string{"message": f.Sentence, "event.id": f.EventID(), "event.action": f.Type, "rule.name": f.Rule, "rule.description": f.Title,
		"labels.exception": f.Exception, "labels.ticket": f.Ticket, "labels.owner": f.Owner, "labels.requester": f.Requester, "labels.approver": f.Approver,
		"postern.next": f.Next, "postern.id": f.ID, "postern.subject": f.Subject} {
		if got := follow(doc, path); !says(got, want) {
			say("%s is %q, want %q", path, got, want)
		}
	}
	if got := at(doc, "postern", "query"); !saysQuery(got, f.Query) {
		say("the query is %q, want %q", got, f.Query)
	}
	if (at(doc, "client") == nil) != (f.Orientation == "open" || at(doc, "source") == nil) {
		say("orientation %s, client %v", f.Orientation, at(doc, "client"))
	}
	return errors.Join(errs...)
}

// TestECS: findings of every type are documents of the schema.
func TestECS(t *testing.T) {
	for _, f := range everyFinding() {
		if err := checkECS(f); err != nil {
			t.Fatalf("%s: %v", f.Type, err)
		}
	}
}

// TestECSWhole: what of one finding stands where.
func TestECSWhole(t *testing.T) {
	f := &flow.Finding{
		ID: "3f1c9a5be07d42c6", SchemaVersion: 1, Revision: 2, Type: flow.FindingPivot, Title: "On from EX-2140", Severity: flow.High,
		FirstSeen: 1_790_000_000_000, LastSeen: 1_790_000_060_000, Client: "10.60.0.4", Server: "2001:db8:30::20", Orientation: "known", Service: "tcp/22",
		Observed: "allow", Outcome: "permitted", Rule: "apps-to-db", PolicyVersion: "9c1e", Exception: "EX-2140", Ticket: "CHG-1", Techniques: []string{"T1021.004", "T1078"},
		Sentence: "s", Samples: []json.RawMessage{json.RawMessage(`{"a":1}`)},
		Detail: flow.Detail{Score: 0.5, Hops: []flow.Hop{{Client: flow.End{Address: "10.60.0.4", Identity: "ivo"}, Server: flow.End{Address: "10.30.0.50", Host: "jump-1"}}},
			Ends: []flow.End{{Address: "10.60.0.4", Identity: "ivo", Process: "/usr/bin/ssh"}, {Address: "2001:db8:30::20", Workload: "pay-db-1"}}},
	}
	doc, err := encoded(encodeECS, f)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"@timestamp": "2026-09-21T14:14:20.000Z", "ecs.version": "8.11.0", "event.kind": "alert", "event.category[0]": "intrusion_detection", "event.category[1]": "network",
		"event.type[0]": "connection", "event.type[1]": "info", "event.type[2]": "allowed", "event.outcome": "success", "event.id": "3f1c9a5be07d42c6:2", "event.severity": "3",
		"event.sequence": "2", "event.risk_score": "50", "event.start": "2026-09-21T14:13:20.000Z",
		"source.ip": "10.60.0.4", "client.user.name": "ivo", "destination.ip": "2001:db8:30::20", "server.port": "22", "network.transport": "tcp", "network.iana_number": "6",
		"network.type": "ipv6", "process.executable": "/usr/bin/ssh", "user.name": "ivo", "rule.name": "apps-to-db", "rule.category": "exception-pivot", "rule.version": "9c1e",
		"threat.technique.id[0]": "T1021", "threat.technique.id[1]": "T1078", "threat.technique.subtechnique.name[0]": "SSH", "labels.exception": "EX-2140", "labels.ticket": "CHG-1",
		"related.ip[0]": "10.30.0.50", "related.hosts[0]": "jump-1", "related.user[0]": "ivo", "postern.samples[0]": `{"a":1}`, "postern.hops[0].client.identity": "ivo",
	} {
		if got := fmt.Sprint(follow(doc, path)); got != want {
			t.Errorf("%s is %v, want %v", path, got, want)
		}
	}
}
