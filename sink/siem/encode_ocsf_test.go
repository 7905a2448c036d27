package siem

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/postern/postern/flow"
)

// releasedOCSF is what the release that events declare has.
func releasedOCSF(t testing.TB) map[string][]string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "ocsf-"+ocsfVersion+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	has := map[string][]string{}
	for line := range strings.Lines(string(b)) {
		name, list, ok := strings.Cut(line, ": ")
		if !ok {
			name, list, ok = strings.Cut(line, "= ")
		}
		if ok && !strings.HasPrefix(line, "#") {
			has[name] = strings.Fields(list)
		}
	}
	return has
}

// checkOCSF says whether what a finding says is in the event it is encoded as, and whether the
// release knows the event's own attributes.
func checkOCSF(f *flow.Finding, release map[string][]string) error {
	e, err := encoded(encodeOCSF, f)
	if err != nil {
		return err
	}
	var errs []error
	class := map[string]string{"2003": "compliance_finding", "2004": "detection_finding", "4001": "network_activity"}[fmt.Sprint(e["class_uid"])]
	for name := range e {
		if !slices.Contains(release[class], name) {
			errs = append(errs, fmt.Errorf("%s of OCSF %s has no %s", class, ocsfVersion, name))
		}
	}
	compare := func(want string, path ...any) {
		if got := at(e, path...); !says(got, want) {
			errs = append(errs, fmt.Errorf("OCSF: %v is %q, want %q", path, got, want))
		}
	}
	compare(f.EventID(), "metadata", "uid")
	compare(f.ID, "metadata", "correlation_uid")
	compare(f.Sentence, "message")
	if class == "network_activity" {
		compare(f.Title, "unmapped", "title")
		compare(f.Next, "unmapped", "next")
	} else {
		compare(f.ID, "finding_info", "uid")
		compare(f.Title, "finding_info", "title")
		compare(f.Next, "remediation", "desc")
	}
	for name, want := range map[string]string{"exception": f.Exception, "ticket": f.Ticket, "owner": f.Owner, "requester": f.Requester,
		"approver": f.Approver, "rule": f.Rule, "subject": f.Subject, "client": f.Client, "server": f.Server, "policy_version": f.PolicyVersion} {
		compare(want, "unmapped", name)
	}
	if got := at(e, "unmapped", "query"); !saysQuery(got, f.Query) {
		errs = append(errs, fmt.Errorf("OCSF: the query is %q, want %q", got, f.Query))
	}
	return errors.Join(errs...)
}

// ocsfLeftOut are the recommended attributes of a class that no event of Postern's has, and why.
var ocsfLeftOut = map[string]string{
	"device":          "no agent of Postern's runs where it happened; the ends are in evidences, src_endpoint and dst_endpoint",
	"status_code":     "nothing here has a code",
	"status_detail":   "says nothing that message does not",
	"timezone_offset": "all times are UTC",
	"traffic":         "a finding counts sessions, not bytes",
	"url":             "flows have none",
	"proxy":           "flows name none",
}

// TestOCSF holds events to the schema in the fixtures and to the release that they declare.
func TestOCSF(t *testing.T) {
	schema, release := ocsfFixture(t), releasedOCSF(t)
	classes := map[string]int{}
	for _, f := range everyFinding() {
		if err := checkOCSF(f, release); err != nil {
			t.Errorf("%s: %v", f.Type, err)
		}
		e, err := encoded(encodeOCSF, f)
		if err != nil {
			t.Fatal(err)
		}
		for _, has := range []map[string][]string{nil, release} {
			schema.release = has
			wrong, missing := schema.event(e)
			for _, w := range wrong {
				t.Errorf("%s: %s\nin %s", f.Type, w, toJSON(t, e))
			}
			for _, m := range missing {
				_, known := ocsfLeftOut[m]
				_, pointed := address(f.Client)
				full := pointed && f.Server != "" && f.Service != "" && f.Sentence != "" && f.Next != "" && f.Confidence != 0 && f.Outcome != ""
				later := !slices.Contains(release[schema.byUID[fmt.Sprint(e["class_uid"])].Name], m)
				if full && tellEnds(f).Proto != "" && !known && !later {
					t.Errorf("%s: %s is recommended and missing in %s", f.Type, m, toJSON(t, e))
				}
			}
		}
		if t.Failed() {
			t.FailNow()
		}
		classes[fmt.Sprint(e["class_uid"])]++
		if version := at(e, "metadata", "version"); version != ocsfVersion || !regexp.MustCompile(`^\d+\.\d+\.\d+$`).MatchString(ocsfVersion) {
			t.Fatalf("metadata.version %v is no release", version)
		}
	}
	if len(classes) != 3 {
		t.Errorf("only these classes were seen: %v", classes)
	}
}

// TestOCSFClasses: which class each type of finding is told in.
func TestOCSFClasses(t *testing.T) {
	want := map[int][]string{
		ocsfNetwork: {flow.FindingExpired, flow.FindingNotYetValid, flow.FindingUnapproved, flow.FindingOutlived, flow.FindingGrown, flow.FindingNews},
		ocsfCompliance: {flow.FindingAgentMissing, flow.FindingDrift, flow.FindingSplit, flow.FindingUnmapped, flow.FindingMisplaced,
			flow.FindingUnseenSegment},
	}
	for _, typ := range flow.FindingTypes() {
		class := ocsfDetection
		for c, types := range want {
			if slices.Contains(types, typ) {
				class = c
			}
		}
		if got := ocsfClass(&flow.Finding{Type: typ, Client: "10.0.0.1"}); got != class {
			t.Errorf("%s is told as %d, want %d", typ, got, class)
		}
		if got := ocsfClass(&flow.Finding{Type: typ}); got == ocsfNetwork {
			t.Errorf("%s without an end is told as Network Activity, which has one", typ)
		}
	}
}

// TestOCSFWhole: one event of each class, member for member.
func TestOCSFWhole(t *testing.T) {
	f := &flow.Finding{
		ID: "3f1c9a5be07d42c6", SchemaVersion: 1, Revision: 2, Type: flow.FindingExpired, Title: "Expired exception in use", Severity: flow.High, Confidence: 0.9,
		FirstSeen: 1_790_000_000_000, LastSeen: 1_790_000_060_000, Count: 4, Client: "10.60.0.3", Server: "10.20.0.11", Orientation: "known", Service: "tcp/443",
		SrcSegment: "vendor", DstSegment: "vault", Observed: "allow", Expected: "deny", Reason: "expired-exception", Outcome: "escaped",
		Rule: "default-deny", Exception: "EX-2041", Ticket: "CHG-88123", Owner: "team-payments", Requester: "ivo", Approver: "ana", PolicyVersion: "9c1e",
		Techniques: []string{"T1021.004"}, Sentence: "ivo reached the vault.", Next: "Renew it or close it.",
		Detail: flow.Detail{Score: 0.75, Query: "SELECT 1", Ends: []flow.End{
			{Address: "10.60.0.3", Segment: "vendor", Host: "vpn-3", Identity: "ivo", Process: "/usr/bin/curl"},
			{Address: "10.20.0.11", Segment: "vault", Workload: "vault-1"}}},
	}
	e, err := encoded(encodeOCSF, f)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]any{
		"class_uid": "4001", "activity_id": "6", "type_uid": "400106", "category_uid": "4", "severity_id": "4", "time": "1790000060000", "count": "4",
		"action_id": "1", "disposition_id": "1", "status_id": "1", "confidence_score": "90", "risk_score": "75", "is_alert": "true",
		"metadata.uid": "3f1c9a5be07d42c6:2", "metadata.correlation_uid": "3f1c9a5be07d42c6", "metadata.original_time": "2026-09-21T14:14:20.000Z",
		"metadata.profiles[0]": "security_control", "metadata.profiles[1]": "host",
		"src_endpoint.ip": "10.60.0.3", "src_endpoint.zone": "vendor", "src_endpoint.hostname": "vpn-3", "actor.user.name": "ivo", "actor.app_name": "/usr/bin/curl",
		"dst_endpoint.ip": "10.20.0.11", "dst_endpoint.port": "443", "dst_endpoint.name": "vault-1", "connection_info.protocol_num": "6",
		"policy.uid": "9c1e", "firewall_rule.name": "default-deny", "authorizations[0].decision": "Denied", "authorizations[0].policy.uid": "EX-2041",
		"authorizations[0].policy.data.ticket": "CHG-88123", "attacks[0].technique.uid": "T1021", "attacks[0].sub_technique.uid": "T1021.004", "attacks[0].sub_technique.name": "SSH",
		"unmapped.query": "SELECT 1", "unmapped.next": "Renew it or close it.", "unmapped.outcome": "escaped", "unmapped.revision": "2",
	} {
		if got := fmt.Sprint(follow(e, path)); got != want {
			t.Errorf("%s is %v, want %v", path, got, want)
		}
	}
	f.Type, f.Observed, f.Outcome, f.Continues = flow.FindingOutOfScope, "deny", "blocked", "0000000000000001"
	if e, err = encoded(encodeOCSF, f); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]any{
		"class_uid": "2004", "activity_id": "2", "type_uid": "200402", "status_id": "1", "action_id": "2", "disposition_id": "2",
		"finding_info.uid": "3f1c9a5be07d42c6", "finding_info.types[0]": "out-of-scope", "finding_info.first_seen_time": "1790000000000",
		"finding_info.attacks[0].technique.uid": "T1021", "finding_info.related_events[0].uid": "0000000000000001",
		"evidences[0].src_endpoint.ip": "10.60.0.3", "evidences[0].dst_endpoint.port": "443", "evidences[0].actor.user.name": "ivo",
		"resources[0].name": "vault-1", "resources[0].group.name": "vault", "remediation.desc": "Renew it or close it.", "observables[0].name": "evidences[0].src_endpoint.ip",
	} {
		if got := fmt.Sprint(follow(e, path)); got != want {
			t.Errorf("%s is %v, want %v", path, got, want)
		}
	}
	f.Type, f.Revision, f.SuppressedBy = flow.FindingDrift, 1, "SUP-1"
	if e, err = encoded(encodeOCSF, f); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]any{
		"class_uid": "2003", "activity_id": "1", "type_uid": "200301", "status_id": "3", "is_alert": "false", "compliance.status_id": "3",
		"compliance.checks[0].uid": "enforcement-drift", "unmapped.suppressed_by": "SUP-1",
	} {
		if got := fmt.Sprint(follow(e, path)); got != want {
			t.Errorf("%s is %v, want %v", path, got, want)
		}
	}
}

// TestOCSFCheckFails: the check of the schema finds what is wrong.
func TestOCSFCheckFails(t *testing.T) {
	schema := ocsfFixture(t)
	schema.release = releasedOCSF(t)
	f := &flow.Finding{ID: "1", Type: flow.FindingDenied, Client: "10.0.0.1", Server: "10.0.0.2", Service: "tcp/22", Title: "t", Sentence: "s", Severity: flow.Low}
	type m = map[string]any
	n := func(s string) json.Number { return json.Number(s) }
	for name, breaks := range map[string]struct {
		do   func(e m)
		says string
	}{
		"a required attribute is missing":       {func(e m) { delete(e, "severity_id") }, "severity_id: is required"},
		"a required member is missing":          {func(e m) { delete(e["metadata"].(m), "version") }, "metadata.version: is required"},
		"an attribute that there is not":        {func(e m) { e["colour"] = "red" }, "no such attribute"},
		"a member that there is not":            {func(e m) { e["finding_info"].(m)["colour"] = "red" }, "finding_info.colour"},
		"a value that is none":                  {func(e m) { e["severity_id"] = n("7") }, "severity_id: 7 is none of"},
		"an id and a caption that differ":       {func(e m) { e["severity"] = "High" }, "severity: High, but severity_id 2 is Low"},
		"a class that there is not":             {func(e m) { e["class_uid"] = n("2999") }, "is no class"},
		"a type of another class":               {func(e m) { e["type_uid"] = n("200301") }, "type_uid"},
		"a text for a number":                   {func(e m) { e["time"] = "now" }, "time: now is no integer"},
		"a fraction for an integer":             {func(e m) { e["confidence_score"] = n("0.5") }, "confidence_score"},
		"a number for a text":                   {func(e m) { e["message"] = n("1") }, "message: 1 is no text"},
		"a text for an object":                  {func(e m) { e["metadata"] = "x" }, "metadata: x is no object"},
		"an object for a list":                  {func(e m) { e["evidences"] = e["evidences"].([]any)[0] }, "no list"},
		"an address that is none":               {func(e m) { at(e, "evidences", 0, "src_endpoint").(m)["ip"] = "somewhere" }, "is no ip_t"},
		"a port beyond all":                     {func(e m) { at(e, "evidences", 0, "dst_endpoint").(m)["port"] = n("70000") }, "is not in [0 65535]"},
		"an endpoint without anything":          {func(e m) { at(e, "evidences", 0).(m)["src_endpoint"] = m{} }, "wants at_least_one"},
		"a profile of another class":            {func(e m) { at(e, "metadata").(m)["profiles"] = []any{"network_proxy"} }, "is no profile of"},
		"an attribute of a profile not named":   {func(e m) { delete(e["metadata"].(m), "profiles") }, "profile security_control"},
		"an attribute of a later release":       {func(e m) { e["raw_data_hash"] = m{"algorithm_id": n("3"), "value": "00"} }, "later release"},
		"a member of a later release":           {func(e m) { at(e, "resources", 0).(m)["role_id"] = n("1") }, "later release"},
		"a value of a later release":            {func(e m) { e["status_id"], e["status"] = n("6"), "Deleted" }, "status_id: 6 is since a later release"},
		"an attribute that is deprecated":       {func(e m) { e["compliance"] = m{"status_detail": "x"} }, "no such attribute"},
		"an observable that points at another":  {func(e m) { at(e, "observables", 0).(m)["value"] = "10.9.9.9" }, "observables[0]"},
		"an observable of no type":              {func(e m) { at(e, "observables", 0).(m)["type_id"] = n("777") }, "no type of observables"},
		"a list that is empty":                  {func(e m) { e["resources"] = []any{} }, "no list that holds something"},
		"an empty text":                         {func(e m) { e["message"] = "" }, "says nothing"},
		"an integer beyond what an integer has": {func(e m) { e["count"] = n("99999999999") }, "more than an integer"},
	} {
		e, err := encoded(encodeOCSF, f)
		if err != nil {
			t.Fatal(err)
		}
		if wrong, _ := schema.event(e); len(wrong) > 0 {
			t.Fatalf("whole: %v", wrong)
		}
		breaks.do(e)
		if wrong, _ := schema.event(e); !strings.Contains(strings.Join(wrong, "\n"), breaks.says) {
			t.Errorf("%s: %q, want %q", name, wrong, breaks.says)
		}
	}
}

// TestTechniqueNames holds that every technique that a detector names has its name here.
func TestTechniqueNames(t *testing.T) {
	used := map[string]bool{}
	files, err := filepath.Glob(filepath.Join("..", "..", "detect", "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range regexp.MustCompile(`"(T1\d{3}(?:\.\d{3})?)"`).FindAllStringSubmatch(string(b), -1) {
			parent, _, _ := strings.Cut(id[1], ".")
			used[id[1]], used[parent] = true, true
		}
	}
	if len(used) < 15 {
		t.Fatalf("only %v", used)
	}
	for _, id := range slices.Sorted(maps.Keys(used)) {
		if techniqueNames[id] == "" {
			t.Errorf("techniqueNames lacks %s", id)
		}
	}
}
