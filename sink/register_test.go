package sink

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/postern/postern/flow"
)

// accept writes a version's register and that an instance accepted it.
func accept(t testing.TB, db *ClickHouse, r *Register, since flow.Time, instance string) {
	t.Helper()
	if err := db.InsertRegister(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if _, err := db.InsertPolicyVersion(t.Context(), PolicyVersion{Hash: r.Version + strings.Repeat("0", 48), Since: since, AcceptedAt: r.At, Instance: instance, Source: "{}"}); err != nil {
		t.Fatal(err)
	}
}

// version is the name of the n-th version.
func version(n int) string { return fmt.Sprintf("%016x", n) }

func TestRegister(t *testing.T) {
	db := open(t, nil)
	now := flow.TimeOf(time.Now()) // the state of an exception is that of the moment it is asked for
	const day = 24 * flow.Hour
	approved := func(id string, from, to flow.Time) RegisteredException {
		return RegisteredException{ID: id, Class: "vendor", RequestedBy: "ana", RequestedAt: now - 40*day, ApprovedAt: now - 39*day, ApprovedBy: []string{"raj", "lea"},
			ApproverRoles: []string{"segment-owner", "ciso"}, NotBefore: from, Expires: to, Services: []string{"tcp/443"}, PairsGranted: 4, PortsGranted: 1}
	}
	revoked := approved("EX-revoked", 0, now+90*day)
	revoked.RevokedAt, revoked.RevokedBy, revoked.RevokedFor = now-day, "raj", "not needed"
	soon := approved("EX-revoked-soon", 0, now+90*day)
	soon.RevokedAt = now + 2*day
	never := approved("EX-unapproved", 0, now+90*day)
	never.ApprovedAt, never.ApprovedBy, never.ApproverRoles = 0, nil, nil
	forever := approved("EX-active", now-30*day, flow.TimeOf(time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)))
	first := &Register{Version: version(1), At: now - 30*day,
		Exceptions: []RegisteredException{approved("EX-removed", 0, now+90*day), approved("EX-expired", 0, now-5*day), forever},
		Segments:   []RegisteredSegment{{Name: "vault", Tier: "crown-jewel", Stage: "staged"}},
		Coverage:   []Coverage{{"staged", "crown-jewel", 2, 256}, {"observe", "low", 8, 512}}}
	second := &Register{Version: version(2), At: now - 10*day,
		Exceptions: []RegisteredException{approved("EX-expired", 0, now-5*day), approved("EX-expiring", 0, now+13*day), forever, approved("EX-early", now+day, now+40*day), revoked, soon, never},
		Segments: []RegisteredSegment{{Name: "vault", Zone: "pci", Tier: "crown-jewel", Stage: "enforced", Owner: "pay", AgentRequired: true, DenyIn: true,
			Prefixes: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/24"), netip.MustParsePrefix("2001:db8::/64")}, Workloads: 2}},
		Workloads: []RegisteredWorkload{{Name: hostile[0], App: "vault", Segment: "vault", Zone: "pci", Tier: "crown-jewel", Stage: "enforced",
			Addresses: []netip.Addr{netip.MustParseAddr("10.20.0.11"), netip.MustParseAddr("2001:db8::11")}, Labels: map[string]string{"site": "fra1"}}},
		Rules:    []RegisteredRule{{ID: "no-smb", Action: "override-deny", Staged: true, Source: "{any: true}", Destination: "{segment: vault}"}},
		Coverage: []Coverage{{"enforced", "crown-jewel", 2, 256}, {"observe", "low", 9, 512}}}
	for range 2 { // what is told again changes nothing
		accept(t, db, first, first.At, "one")
		accept(t, db, second, second.At, "one")
		accept(t, db, second, second.At+1, "two")
	}
	// A policy tried out on a capture, and a version that a binary accepted which knows no register.
	accept(t, db, &Register{Version: version(3), At: now - day, Exceptions: []RegisteredException{approved("EX-tried", 0, now+day)}}, 0, "replay")
	if _, err := db.InsertPolicyVersion(t.Context(), PolicyVersion{Hash: version(4), Since: now - day, AcceptedAt: now - day, Instance: "old", Source: "{}"}); err != nil {
		t.Fatal(err)
	}

	wantQuery(t, db, "SELECT id, state, ended = expires AS at_expiry, dateDiff('day', removed_at, now()) AS removed_days_ago, policy_version FROM exceptions ORDER BY id",
		strings.Join([]string{
			`{"id":"EX-active","state":"active","at_expiry":1,"removed_days_ago":null,"policy_version":"0000000000000002"}`,
			`{"id":"EX-early","state":"not-yet-valid","at_expiry":1,"removed_days_ago":null,"policy_version":"0000000000000002"}`,
			`{"id":"EX-expired","state":"expired","at_expiry":1,"removed_days_ago":null,"policy_version":"0000000000000002"}`,
			`{"id":"EX-expiring","state":"expiring","at_expiry":1,"removed_days_ago":null,"policy_version":"0000000000000002"}`,
			`{"id":"EX-removed","state":"removed","at_expiry":0,"removed_days_ago":10,"policy_version":"0000000000000001"}`,
			`{"id":"EX-revoked","state":"revoked","at_expiry":0,"removed_days_ago":null,"policy_version":"0000000000000002"}`,
			`{"id":"EX-revoked-soon","state":"expiring","at_expiry":0,"removed_days_ago":null,"policy_version":"0000000000000002"}`,
			`{"id":"EX-unapproved","state":"unapproved","at_expiry":1,"removed_days_ago":null,"policy_version":"0000000000000002"}`,
		}, "\n"))
	wantQuery(t, db, "SELECT approved_by, approver_roles, services, pairs_granted, ports_granted, toYear(expires) AS y FROM exceptions WHERE id = 'EX-active'",
		`{"approved_by":["raj","lea"],"approver_roles":["segment-owner","ciso"],"services":["tcp/443"],"pairs_granted":4,"ports_granted":1,"y":2261}`)
	wantQuery(t, db, "SELECT * EXCEPT since FROM segments",
		`{"name":"vault","zone":"pci","tier":"crown-jewel","stage":"enforced","owner":"pay","agent_required":true,"default_in":"deny","default_out":"allow","prefixes":["10.20.0.0/24","2001:db8::/64"],"workloads":2,"policy_version":"0000000000000002"}`)
	wantQuery(t, db, "SELECT name = '"+strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(hostile[0])+"' AS same, addresses, labels, stage FROM workloads",
		`{"same":1,"addresses":["10.20.0.11","2001:db8::11"],"labels":{"site":"fra1"},"stage":"enforced"}`)
	wantQuery(t, db, "SELECT id, action, mode, destination FROM rules", `{"id":"no-smb","action":"override-deny","mode":"staged","destination":"{segment: vault}"}`)
	wantQuery(t, db, "SELECT policy_version, until IS NULL AS in_force FROM policy_timeline ORDER BY since",
		`{"policy_version":"0000000000000001","in_force":0}`+"\n"+`{"policy_version":"0000000000000002","in_force":1}`)
	wantQuery(t, db, "SELECT policy_version, sumIf(workloads, stage = 'enforced') / sum(workloads) AS share FROM coverage_history GROUP BY policy_version ORDER BY min(since)",
		`{"policy_version":"0000000000000001","share":0}`+"\n"+`{"policy_version":"0000000000000002","share":0.18181818181818182}`)
	registered, err := db.Registered(t.Context())
	if err != nil || registered[version(2)] != second.At || len(registered) != 3 {
		t.Errorf("registered %v, %v", registered, err)
	}
}

// Where nobody but replays brought a policy, the register is that of the newest replay.
func TestRegisterOfReplaysAlone(t *testing.T) {
	db := open(t, nil)
	wantQuery(t, db, "SELECT (SELECT count() FROM exceptions) + (SELECT count() FROM segments) + (SELECT count() FROM workloads) AS n", `{"n":0}`)
	accept(t, db, &Register{Version: version(1), At: today, Segments: []RegisteredSegment{{Name: "a", Tier: "low", Stage: "observe"}}}, 0, "replay")
	accept(t, db, &Register{Version: version(2), At: today + 9, Segments: []RegisteredSegment{{Name: "b", Tier: "low", Stage: "observe"}}}, 0, "replay")
	wantQuery(t, db, "SELECT name FROM segments", `{"name":"b"}`)
}

func TestExceptionUseAndRevisions(t *testing.T) {
	db := open(t, nil)
	names := flow.NewNames(0)
	hour := today / flow.Hour * flow.Hour
	edge := func(exception string, at flow.Time, sessions int8) flow.EdgeContribution {
		return flow.EdgeContribution{Hour: at, EdgeKey: flow.EdgeKey{Client: flow.MustParseAddr("10.0.0.1"), Server: flow.MustParseAddr("10.0.0.2"), Proto: 6, HasPorts: true, ServerPort: 443,
			Exception: names.Intern(exception), Reason: flow.ReasonWaived, Outcome: flow.OutcomePermitted}, Sessions: sessions, Answered: sessions, ClientBytes: 10, First: at + 1000, Last: at + 5000, Over: true}
	}
	w := NewEdgeWriter(names)
	w.Bind(db)
	w.Append([]flow.EdgeContribution{edge("EX-1", hour, 1), edge("EX-1", hour, 1), edge("EX-1", hour-flow.Hour, 1), edge("", hour, 1), edge("EX-2", hour, 1), edge("EX-2", hour, -1)})
	if _, err := w.Flush(t.Context(), insertNo(1)); err != nil {
		t.Fatal(err)
	}
	wantQuery(t, db, "SELECT exception, reason, service, src_identity, sessions, client_bytes, dateDiff('second', first_seen, last_seen) AS seconds FROM exception_use ORDER BY hour",
		`{"exception":"EX-1","reason":"waived","service":"tcp/443","src_identity":"","sessions":1,"client_bytes":10,"seconds":4}`+"\n"+
			`{"exception":"EX-1","reason":"waived","service":"tcp/443","src_identity":"","sessions":2,"client_bytes":20,"seconds":4}`)
	wantQuery(t, db, "SELECT exception, sum(sessions) AS n, sum(hours) AS hours FROM exception_use_daily GROUP BY exception", `{"exception":"EX-1","n":3,"hours":2}`)

	for i, c := range []flow.Contribution{
		{Finding: &flow.Finding{ID: "f", Revision: 1, Severity: flow.Low, Sentence: "one"}, Sessions: 3, FirstSeen: today, LastSeen: today + 10},
		{Finding: &flow.Finding{ID: "f", Revision: 2, Severity: flow.High, Sentence: "two", Owner: "pay"}, Sessions: 4, FirstSeen: today - 10, LastSeen: today + 5},
	} {
		if _, err := db.InsertContributions(t.Context(), insertNo(i+2), []flow.Contribution{c}); err != nil {
			t.Fatal(err)
		}
	}
	wantQuery(t, db, "SELECT revision, severity, count, dateDiff('millisecond', first_seen, last_seen) AS ms, sentence, owner FROM finding_revisions ORDER BY revision",
		`{"revision":1,"severity":"low","count":3,"ms":10,"sentence":"one","owner":""}`+"\n"+`{"revision":2,"severity":"high","count":7,"ms":20,"sentence":"two","owner":"pay"}`)
}
