package sink

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
)

func testFinding(id string, revision uint64) *flow.Finding {
	return &flow.Finding{
		ID: id, SchemaVersion: flow.FindingSchema, Revision: revision, Type: flow.FindingExpired, Title: fmt.Sprintf("title %d", revision),
		Severity: flow.High, Confidence: 0.85, Client: "10.0.0.1", Server: "2001:db8::1", Orientation: "known", Service: "tcp/443",
		SrcSegment: "workstations", DstSegment: "vault", Observed: "allow", Expected: "deny", Reason: "expired-exception", Outcome: "escaped",
		Failed: []string{"identity", "rule"}, Missing: []string{"process"}, Rule: "r'1", Exception: "EX-1", Ticket: "CHG-1", Owner: "team",
		Requester: "ana", Approver: "raj", PolicyVersion: "abc", PolicyCommit: "c0ffee", PolicySince: today, Techniques: []string{"T1021"}, Continues: "f0",
		Edges: []flow.Edge{{Source: "10.0.0.1", Destination: "2001:db8::1", Port: 443, Protocol: "tcp"},
			{Source: hostile[0], Destination: hostile[5], Port: 1, Protocol: "udp"}},
		EdgesTotal: 2, Samples: []json.RawMessage{[]byte(`{"a":1}`), []byte(`{"b":"\u0000"}`)}, Sentence: hostile[5], Next: hostile[8],
		SuppressedBy: hostile[0], Suppressed: 7,
		Detail: flow.Detail{Subject: "ssh|" + hostile[0], Score: 0.75, ScoreParts: []flow.ScorePart{{Name: "rare", Points: 40, Says: hostile[1]}, {Name: "policy", Points: -5, Says: "x"}},
			Ends:      []flow.End{{Address: "10.0.0.1", Identity: hostile[5], IdentityAge: new(int32), IdentityCertainty: 0.5}, {Address: "2001:db8::1"}},
			Hops:      []flow.Hop{{Client: flow.End{Address: "10.0.0.1"}, Server: flow.End{Address: "10.0.0.2"}, Service: "tcp/22", Start: today, End: today, Session: "18446744073709551615"}},
			Exporters: []string{"192.0.2.1"}, Observers: []string{hostile[8]}, Query: "SELECT 1"},
	}
}

// A finding comes back from the view as it is in webhooks, member by member.
func TestFindingRoundTrip(t *testing.T) { overBoth(t, testFindingRoundTrip) }

func testFindingRoundTrip(t *testing.T, p protocol) {
	db := p.open(t, nil)
	f := testFinding("f1", 3)
	f.FirstSeen, f.LastSeen, f.Count = today, today+500, 7
	bare := &flow.Finding{ID: "f2", SchemaVersion: 1, Revision: 1, FirstSeen: today, LastSeen: today, Count: 1}
	if _, err := db.InsertContributions(t.Context(), insertNo(1), []flow.Contribution{
		{Sessions: 7, FirstSeen: today, LastSeen: today + 500, Finding: f},
		{Sessions: 1, FirstSeen: today, LastSeen: today, Finding: bare},
	}); err != nil {
		t.Fatal(err)
	}
	for _, f := range []*flow.Finding{f, bare} {
		text, err := json.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		want, got := map[string]any{}, map[string]any{}
		if err := json.Unmarshal(text, &want); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(query(t, db, "SELECT * FROM findings WHERE id = '"+f.ID+"'")), &got); err != nil {
			t.Fatal(err)
		}
		// Samples are JSON as text; members that JSON leaves out are empty.
		var samples []any
		for _, s := range got["samples"].([]any) {
			var v any
			if err := json.Unmarshal([]byte(s.(string)), &v); err != nil {
				t.Fatal(err)
			}
			samples = append(samples, v)
		}
		for _, k := range []string{"score_parts", "ends", "hops"} { // lists as JSON text
			var v any
			if s := got[k].(string); s != "" {
				if err := json.Unmarshal([]byte(s), &v); err != nil {
					t.Fatal(err)
				}
				got[k] = v
			}
		}
		if got["samples"] = samples; samples == nil {
			delete(got, "samples")
		}
		for k, v := range got {
			if _, ok := want[k]; !ok && (v == nil || v == "" || v == 0. || cmp.Equal(v, []any{})) {
				delete(got, k)
			}
		}
		if want["edges"] == nil {
			want["edges"] = []any{}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("finding %s differs (-JSON +view):\n%s", f.ID, diff)
		}
	}
}

// The view's sums do not depend on how contributions are cut into batches, nor
// on their order, and a batch that is sent again changes nothing.
func TestFindingsAggregate(t *testing.T) {
	db := open(t, nil)
	rnd := rand.New(rand.NewPCG(9, 9))
	var all []flow.Contribution
	for i := range 40 {
		c := flow.Contribution{Sessions: int64(rnd.IntN(5)) - 1, FirstSeen: today + flow.Time(rnd.IntN(1000)), Finding: testFinding(fmt.Sprintf("f%d", i%3), uint64(1+i/3))}
		c.LastSeen = c.FirstSeen + flow.Time(rnd.IntN(1000))
		all = append(all, c)
	}
	type sum struct {
		count       int64
		first, last flow.Time
		revision    uint64
	}
	want := map[string]*sum{}
	for _, c := range all {
		s := want[c.Finding.ID]
		if s == nil {
			s = &sum{first: c.FirstSeen}
			want[c.Finding.ID] = s
		}
		s.count += c.Sessions
		s.first, s.last = min(s.first, c.FirstSeen), max(s.last, c.LastSeen)
		s.revision = max(s.revision, c.Finding.Revision)
	}
	var wants []string
	for i := range 3 {
		s := want[fmt.Sprintf("f%d", i)]
		wants = append(wants, fmt.Sprintf(`{"id":"f%d","count":%d,"first_seen":"%s","last_seen":"%s","revision":%d,"title":"title %d","severity":"high"}`,
			i, s.count, s.first, s.last, s.revision, s.revision))
	}
	const ask = "SELECT id, count, first_seen, last_seen, revision, title, severity FROM findings ORDER BY id"
	for cut := range 3 {
		if err := db.exec(t.Context(), time.Minute, "TRUNCATE TABLE "+db.cfg.Database+".finding_contributions"); err != nil {
			t.Fatal(err)
		}
		cs := slices.Clone(all)
		if cut > 0 {
			rnd.Shuffle(len(cs), func(i, j int) { cs[i], cs[j] = cs[j], cs[i] })
		}
		n := 0
		for batch := range slices.Chunk(cs, []int{40, 7, 1}[cut]) {
			for range 2 { // each twice, as after a crash
				ins := Insert{Token: fmt.Sprintf("cut%d/%d", cut, n), Input: "x", At: today}
				if _, err := db.InsertContributions(t.Context(), ins, batch); err != nil {
					t.Fatal(err)
				}
			}
			n++
		}
		wantQuery(t, db, ask, strings.Join(wants, "\n"))
	}
}

// The newest version of a blind spot counts, whichever came last, and the same range again changes nothing.
func TestBlindSpots(t *testing.T) {
	db := open(t, nil)
	spot := flow.BlindSpot{ID: "b1", Version: 1, Kind: flow.FindingSilentExporter, Subject: flow.BlindExporter, About: hostile[0],
		Address: flow.MustParseAddr("192.0.2.1"), Source: "ipfix", Domain: 7, Name: hostile[5], Segment: "dmz", From: today, Details: hostile[8], Finding: "f1"}
	all := flow.BlindSpot{ID: "b2", Version: 3, Kind: flow.FindingSilentExporter, Subject: flow.BlindEverything, About: "everybody", From: today, Until: today + 5}
	over := spot
	over.Version, over.Until = 2, today+60_000
	for range 2 {
		for i, list := range [][]flow.BlindSpot{{over}, {spot, all}} {
			if _, err := db.InsertBlindSpots(t.Context(), insertNo(i), list); err != nil {
				t.Fatal(err)
			}
		}
	}
	wantQuery(t, db, "SELECT count() AS n FROM blind_spot_versions", `{"n":3}`)
	wantQuery(t, db, "SELECT version, kind, subject, address, source, domain, toUnixTimestamp64Milli(time_from) = "+fmt.Sprint(int64(today))+" AS f, "+
		"toUnixTimestamp64Milli(time_until) = "+fmt.Sprint(int64(over.Until))+" AS u, finding FROM blind_spots WHERE id = 'b1'",
		`{"version":2,"kind":"silent-exporter","subject":"exporter","address":"192.0.2.1","source":"ipfix","domain":7,"f":1,"u":1,"finding":"f1"}`)
	wantQuery(t, db, "SELECT version, subject, address FROM blind_spots WHERE id = 'b2'", `{"version":3,"subject":"everything","address":null}`)
	if err := db.DeleteInput(t.Context(), insertNo(0).Input); err != nil {
		t.Fatal(err)
	}
	wantQuery(t, db, "SELECT count() AS n FROM blind_spot_versions", `{"n":0}`)
}

func TestInsertLedger(t *testing.T) {
	db := open(t, nil)
	l := flow.Ledger{}
	a := l.Of(flow.MustParseAddr("192.0.2.1"))
	a.Datagrams = flow.DatagramAccount{Received: 10, Decoded: 6, Parked: 1, Queued: 1}
	a.Datagrams.Rejected[flow.RejectMalformed] = 2
	a.Records = flow.RecordAccount{Decoded: 9, Written: 5, Duplicate: 1, InFlight: 1}
	a.Records.Rejected[flow.RejectRecordMalformed] = 2
	a.Gaps, a.SetsSkipped = 4, 5
	a.Lines = flow.LineAccount{Received: 21, Read: 1, NotFlow: 2, Rejected: 3, Queued: 4, Lost: 11}
	l.Of(flow.MustParseAddr("2001:db8::5")).Templates = 3
	if err := l.Check(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := db.InsertLedger(t.Context(), insertNo(1), "here", today, l); err != nil {
			t.Fatal(err)
		}
	}
	wantQuery(t, db, "SELECT exporter, datagrams_received, datagrams_rejected_by, records_written, records_rejected_by, gaps, templates, "+
		"datagrams_received = datagrams_decoded + datagrams_rejected + datagrams_parked + datagrams_queued AS d, "+
		"lines_received, lines_received = lines_read + lines_not_flow + lines_rejected + lines_queued + lines_lost AS l, "+
		"records_decoded = records_written + records_duplicate + records_rejected + records_in_flight AS r FROM ledger ORDER BY exporter",
		`{"exporter":"192.0.2.1","datagrams_received":10,"datagrams_rejected_by":{"malformed":2},"records_written":5,"records_rejected_by":{"record_malformed":2},"gaps":4,"templates":0,"d":1,"lines_received":21,"l":1,"r":1}
{"exporter":"2001:db8::5","datagrams_received":0,"datagrams_rejected_by":{},"records_written":0,"records_rejected_by":{},"gaps":0,"templates":3,"d":1,"lines_received":0,"l":1,"r":1}`)
}

func TestInsertExporters(t *testing.T) {
	db := open(t, nil)
	es := []Exporter{{Exporter: flow.MustParseAddr("192.0.2.1"), Domain: 7, Source: flow.SourceIPFIX, FirstSeen: today - 9, LastSeen: today,
		Datagrams: 1, Records: 2, Templates: 3, SamplingRate: 4, Gaps: 5, Skew: -1500 * time.Millisecond}}
	if _, err := db.InsertExporters(t.Context(), insertNo(1), "here", today, es); err != nil {
		t.Fatal(err)
	}
	wantQuery(t, db, "SELECT * EXCEPT (inserted_at, at, first_seen, last_seen), last_seen - first_seen AS seen FROM exporters",
		`{"instance":"here","exporter":"192.0.2.1","domain":7,"source":"ipfix","datagrams":1,"records":2,"templates":3,"sampling_rate":4,"gaps":5,"skew_ms":-1500,"seen":0.009}`)
}

func TestPolicyVersions(t *testing.T) {
	db := open(t, nil)
	if vs, err := db.PolicyVersions(t.Context()); err != nil || len(vs) != 0 {
		t.Fatalf("empty table: %v, %v", vs, err)
	}
	at := func(n flow.Time) flow.Time { return today + n*1000 }
	source := strings.Join(hostile, "\n")
	want := []PolicyVersion{
		{"a", at(1), at(1), "one", source, "c0ffee"},
		{"b", at(5), at(5), "two", "B", ""},
		{"a", at(9), at(9), "one", source, "c0ffee"}, // a revert is an interval of its own
	}
	all := append([]PolicyVersion{
		{"a", at(2), at(2), "two", source, "f00d"}, // the second acceptance of a
		{"b", at(6), at(6), "one", "B", ""},
		{"a", at(9) + 1, at(9) + 1, "two", source, "f00d"},
	}, want...)
	for range 2 { // each twice: an acceptance is recorded once
		for _, v := range all {
			if _, err := db.InsertPolicyVersion(t.Context(), v); err != nil {
				t.Fatal(err)
			}
		}
	}
	wantQuery(t, db, "SELECT count() AS n FROM policy_versions", `{"n":6}`)
	got, err := db.PolicyVersions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range want {
		want[i].Source = strings.ToValidUTF8(want[i].Source, "\ufffd")
		if i < len(got) {
			if got[i].Source != all[3+i].Source && i != 1 {
				t.Errorf("source of version %d came back as %q", i, got[i].Source)
			}
			got[i].Source = strings.ToValidUTF8(got[i].Source, "\ufffd")
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("versions differ (-want +got):\n%s", diff)
	}
}

func TestDeleteInput(t *testing.T) {
	db := open(t, nil)
	names := flow.NewNames(0)
	w := db.NewFlowWriter(names)
	records := randomRecords(rand.New(rand.NewPCG(7, 7)), names, 20)
	write := func(input string, at flow.Time) {
		t.Helper()
		w.AppendRecords(records)
		if _, err := w.Flush(t.Context(), Insert{Token: input + "/0", Input: input, At: at}); err != nil {
			t.Fatal(err)
		}
	}
	input := "file:" + hostile[0]
	write("file:other", today)
	write(input, today+5)
	if at, err := db.InsertedAt(t.Context(), input); err != nil || at != today+5 {
		t.Fatalf("inserted at %v, %v; want %v", at, err, today+5)
	}
	if err := db.DeleteInput(t.Context(), input); err != nil {
		t.Fatal(err)
	}
	wantQuery(t, db, "SELECT count() AS n, any(input) AS i FROM flows", `{"n":20,"i":"file:other"}`)
	if at, err := db.InsertedAt(t.Context(), input); err != nil || at != 0 {
		t.Errorf("inserted at %v, %v after deleting; want none", at, err)
	}
	// What was deleted can be written anew under another time, and under the old
	// one it is still known.
	write(input, today+5)
	wantQuery(t, db, "SELECT count() AS n FROM flows", `{"n":20}`)
	write(input, today+6)
	wantQuery(t, db, "SELECT count() AS n FROM flows", `{"n":40}`)
}
