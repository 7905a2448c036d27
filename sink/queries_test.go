package sink

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/postern/postern/flow"
)

// asked is when the questions are asked in these tests.
var asked = time.Date(2026, 6, 30, 0, 0, 0, 0, time.UTC)

// seenEdge is what one line of the generated roll-up says; days count back from when it is asked.
type seenEdge struct {
	daysAgo                                   float64
	identity, client, from, server, to        string
	service, reason, outcome, rule, exception string
	srcWorkload, dstWorkload                  string
	sessions                                  int
}

// keepAll lets nothing expire, however long ago `asked` will be.
func keepAll(c *ClickHouseConfig) { c.Retention = RetentionConfig{} }

// estate makes a database whose roll-up has 60 days of other people's traffic beside the edges given.
func estate(t *testing.T, edges ...seenEdge) *ClickHouse {
	t.Helper()
	db := open(t, keepAll)
	run := func(sql string) {
		t.Helper()
		if err := db.exec(t.Context(), time.Minute, sql); err != nil {
			t.Fatal(err)
		}
	}
	const columns = "INSERT INTO %s.edge_hours (hour, reason, server, service, client, src_segment, dst_segment, src_workload, dst_workload, src_identity, expected, observed, outcome, rule, exception, " +
		"sessions, answered, client_bytes, server_bytes, first_seen, last_seen, live_first_seen, input, inserted_at) "
	head := fmt.Sprintf(columns, db.cfg.Database)
	run(head + fmt.Sprintf(`SELECT toDateTime(%d, 'UTC') - toIntervalHour(1 + number %% 1440), 'permitted', toIPv6(concat('10.9.0.', toString(number %% 199))), 'tcp/8080',
		toIPv6(concat('10.8.', toString(intDiv(number, 1440) %% 100), '.1')), 'lab', 'lab', '', '', '', 'allow', 'allow', 'permitted', 'lab-allow', '', 1, 1, 100, 200,
		toDateTime(%d, 'UTC') - toIntervalHour(1 + number %% 1440), toDateTime(%d, 'UTC') - toIntervalHour(number %% 1440), 4294967295, 'noise', toDateTime(%d, 'UTC')
		FROM numbers(144000) SETTINGS max_partitions_per_insert_block = 100`, asked.Unix(), asked.Unix(), asked.Unix(), asked.Unix()))
	var rows []string
	for _, e := range edges {
		at := asked.Add(-time.Duration(e.daysAgo * float64(24*time.Hour)))
		hour := at.Truncate(time.Hour).Unix()
		expected := "deny"
		if e.reason == "permitted" || e.reason == "waived" {
			expected = "allow"
		}
		rows = append(rows, fmt.Sprintf("(toDateTime(%d, 'UTC'), '%s', toIPv6('%s'), '%s', toIPv6('%s'), '%s', '%s', '%s', '%s', '%s', '%s', 'allow', '%s', '%s', '%s', %d, %d, %d, %d, %d, %d, 4294967295, 'told', toDateTime(%d, 'UTC'))",
			hour, e.reason, e.server, e.service, e.client, e.from, e.to, e.srcWorkload, e.dstWorkload, strings.ReplaceAll(e.identity, `\`, `\\`), expected, e.outcome, e.rule, e.exception,
			e.sessions, e.sessions, 10*e.sessions, 20*e.sessions, hour+60, hour+120, asked.Unix()))
	}
	if len(rows) > 0 {
		run(head + "VALUES " + strings.Join(rows, ", "))
	}
	return db
}

// ask asks a question as of `asked`, reading at most so many rows; asking what reads more fails.
func ask(t *testing.T, db *ClickHouse, name string, params map[string]string, maxRows int, columns ...string) []string {
	t.Helper()
	q, err := FindNamedQuery(name)
	if err != nil {
		t.Fatal(err)
	}
	bound, err := q.Bind(params, asked)
	if err != nil {
		t.Fatal(err)
	}
	ctx := clickhouse.Context(t.Context(), clickhouse.WithSettings(clickhouse.Settings{"max_rows_to_read": maxRows}))
	sql := "SELECT toString(tuple(" + strings.Join(columns, ", ") + ")) AS row FROM (" + q.SQL + ")"
	var out strings.Builder
	if err := db.QueryWith(ctx, sql, bound, FormatCSV, &out); err != nil {
		t.Errorf("%s: %v", name, err)
		return nil
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")[1:]
	for i, l := range lines {
		lines[i] = strings.ReplaceAll(strings.Trim(l, `"`), "::ffff:", "")
	}
	return lines
}

func wantAnswer(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("answer\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// week is how many rows a question about a week of edges may read of 60 days with 144,000 of others: the
// week itself and what shares its granules.
const week, month = 30_000, 90_000

// holding is an exception that holds when it is asked.
func holding(id string, endsInDays int) RegisteredException {
	at := flow.TimeOf(asked)
	return RegisteredException{ID: id, Class: "vendor", Owner: "pay", Ticket: "CHG-" + id, ApprovedAt: at - 50*24*flow.Hour, Expires: at + flow.Time(endsInDays)*24*flow.Hour,
		Source: "{workload: jump-3}", Destination: "{segment: vault}", Services: []string{"tcp/443"}, PairsGranted: 8, PortsGranted: 1}
}

func register(t *testing.T, db *ClickHouse, r *Register) {
	t.Helper()
	r.Version, r.At = version(1), flow.TimeOf(asked)-60*24*flow.Hour
	accept(t, db, r, r.At, "one")
}

func TestAskOfAnException(t *testing.T) {
	use := seenEdge{1, `CORP\ann`, "10.50.3.3", "office", "10.20.0.11", "vault", "tcp/443", "waived", "permitted", "no-vault", "EX-1", "jump-3", "vault-1", 5}
	older, alone, twice, ruled, gone := use, use, use, use, use
	older.daysAgo, older.sessions = 9, 2
	alone.client, alone.identity, alone.sessions = "10.50.3.4", "", 3
	twice.client = "10.50.3.5" // every flow of it fits EX-2 too
	ruled.client = "10.50.3.6" // a rule permits it since
	gone.client = "10.50.3.7"  // EX-3 fitted too, which has ended since
	since := ruled
	since.daysAgo, since.reason, since.rule, since.exception = 0.5, "permitted", "allow-vault", ""
	misuse := use
	misuse.reason, misuse.outcome, misuse.service = "out-of-scope", "blocked", "tcp/22"
	other := use
	other.exception, other.client = "EX-2", "10.50.3.8"
	db := estate(t, use, older, alone, twice, ruled, gone, since, misuse, other)
	ended := holding("EX-3", 5)
	ended.Expires = flow.TimeOf(asked) - 24*flow.Hour
	register(t, db, &Register{Exceptions: []RegisteredException{holding("EX-1", 5), holding("EX-2", 90), ended}})
	for client, others := range map[string]string{"10.50.3.5": "['EX-2', 'EX-9']", "10.50.3.7": "['EX-3']", "10.50.3.3": "[]"} {
		if err := db.exec(t.Context(), time.Minute, fmt.Sprintf("INSERT INTO %s.flows (time_start, inserted_at, client, server, service, reason, exception, others) SELECT toDateTime(%d) - 86400, toDateTime(%d), '%s', '10.20.0.11', 'tcp/443', 'waived', 'EX-1', %s",
			db.cfg.Database, asked.Unix(), asked.Unix(), client, others)); err != nil {
			t.Fatal(err)
		}
	}

	got := ask(t, db, "exception-use", map[string]string{"exception": "EX-1"}, week, "src_identity", "client", "server", "service", "reason", "outcome", "n", "bytes")
	wantAnswer(t, got,
		`('CORP\\ann','10.50.3.3','10.20.0.11','tcp/22','out-of-scope','blocked',5,150)`, `('CORP\\ann','10.50.3.3','10.20.0.11','tcp/443','waived','permitted',5,150)`,
		`('CORP\\ann','10.50.3.5','10.20.0.11','tcp/443','waived','permitted',5,150)`, `('CORP\\ann','10.50.3.6','10.20.0.11','tcp/443','waived','permitted',5,150)`,
		`('CORP\\ann','10.50.3.7','10.20.0.11','tcp/443','waived','permitted',5,150)`, `('','10.50.3.4','10.20.0.11','tcp/443','waived','permitted',3,90)`)
	wantAnswer(t, ask(t, db, "exception-use", map[string]string{"exception": "EX-1", "days": "1", "until": "2026-06-21T02:00:00Z"}, week, "client", "n"), `('10.50.3.3',2)`)
	wantAnswer(t, ask(t, db, "exception-use", map[string]string{"exception": "EX-1' OR 1=1 --\\"}, week, "client"))

	wantAnswer(t, ask(t, db, "exception-gone", map[string]string{"exception": "EX-1"}, 2*month, "client", "src_workload", "server", "service", "identities", "n"),
		`('10.50.3.3','jump-3','10.20.0.11','tcp/443',['CORP\\ann'],7)`, `('10.50.3.7','jump-3','10.20.0.11','tcp/443',['CORP\\ann'],5)`, `('10.50.3.4','jump-3','10.20.0.11','tcp/443',[],3)`)

	wantAnswer(t, ask(t, db, "exception-grants", nil, month, "exception", "pairs_granted", "pairs_used", "per_cent", "services_used", "identities", "n"),
		`('EX-2',8,1,12.5,1,1,5)`, `('EX-1',8,5,62.5,1,1,25)`)
	wantAnswer(t, ask(t, db, "exceptions-expiring", map[string]string{"days": "14"}, month, "exception", "owner", "ticket", "days_left", "n", "pairs"),
		`('EX-1','pay','CHG-EX-1',5,25,5)`)
}

func TestAskWhoReached(t *testing.T) {
	waived := seenEdge{1, "ann", "10.50.3.3", "office", "10.20.0.11", "vault", "tcp/443", "waived", "permitted", "no-vault", "EX-1", "", "vault-1", 5}
	ruled, escaped, blocked, elsewhere := waived, waived, waived, waived
	ruled.reason, ruled.exception, ruled.client = "permitted", "", "10.50.3.4"
	escaped.reason, escaped.outcome, escaped.client, escaped.exception, escaped.sessions = "expired-exception", "escaped", "10.50.3.5", "EX-0", 2
	blocked.reason, blocked.outcome, blocked.client = "denied", "blocked", "10.50.3.6"
	elsewhere.to, elsewhere.dstWorkload = "office", "files-1"
	db := estate(t, waived, ruled, escaped, blocked, elsewhere)
	register(t, db, &Register{Segments: []RegisteredSegment{{Name: "vault", Zone: "pci", Tier: "high", Stage: "enforced"}},
		Workloads:  []RegisteredWorkload{{Name: "vault-1", App: "tokens", Segment: "vault", Tier: "high", Stage: "enforced"}},
		Exceptions: []RegisteredException{{ID: "EX-0", Owner: "pay", Ticket: "CHG-0", ApprovedAt: 1, Expires: flow.TimeOf(asked) - 3*24*flow.Hour}}})
	for _, target := range []string{"vault", "vault-1", "tokens", "pci"} {
		wantAnswer(t, ask(t, db, "reach", map[string]string{"target": target}, week, "exception", "reason", "client", "n"),
			`('EX-0','expired-exception','10.50.3.5',2)`, `('EX-1','waived','10.50.3.3',5)`, `('','permitted','10.50.3.4',5)`)
	}
	wantAnswer(t, ask(t, db, "exceptions-expired", nil, week, "exception", "owner", "toString(ended)", "client", "outcome", "n"),
		`('EX-0','pay','2026-06-27 00:00:00.000','10.50.3.5','escaped',2)`)
	wantAnswer(t, ask(t, db, "escaped", nil, week, "rule", "src_segment", "dst_segment", "service", "n", "clients", "exceptions"),
		`('no-vault','office','vault','tcp/443',2,1,['EX-0'])`)
	wantAnswer(t, ask(t, db, "blocked", map[string]string{"days": "7"}, week, "client", "n", "servers", "towards", "rules"), `('10.50.3.6',5,1,['vault'],['no-vault'])`)
	wantAnswer(t, ask(t, db, "zones", nil, week, "from_zone", "to_zone", "n", "n_permitted", "n_blocked", "n_escaped", "volume"),
		`('lab','lab',16800,16800,0,0,5040000)`, `('office','pci',17,10,5,2,510)`, `('office','office',5,5,0,0,150)`)
	wantAnswer(t, ask(t, db, "host", map[string]string{"host": "10.50.3.3", "days": "7"}, week, "way", "peer", "workload", "exception", "n"),
		`('asked','10.20.0.11','files-1','EX-1',5)`, `('asked','10.20.0.11','vault-1','EX-1',5)`)
	wantAnswer(t, ask(t, db, "host", map[string]string{"host": "vault-1", "days": "7"}, week, "way", "peer", "n"),
		`('was asked by','10.50.3.3',5)`, `('was asked by','10.50.3.4',5)`, `('was asked by','10.50.3.6',5)`, `('was asked by','10.50.3.5',2)`)
	wantAnswer(t, ask(t, db, "host", map[string]string{"host": "no such host", "days": "7"}, week, "way"))
}

func TestAskWhatIsNew(t *testing.T) {
	known := seenEdge{20, "", "10.50.3.3", "office", "10.20.0.11", "vault", "tcp/443", "permitted", "permitted", "r", "", "", "", 1}
	again, fresh, within, today, forgotten := known, known, known, known, known
	again.daysAgo = 0.5
	fresh.daysAgo, fresh.service = 0.5, "tcp/22"
	within.daysAgo, within.service, within.to = 0.5, "tcp/23", "office"
	today.daysAgo, today.service = -0.2, "tcp/24"
	forgotten.daysAgo, forgotten.service = 40, "tcp/22"
	db := estate(t, known, again, fresh, within, today, forgotten)
	wantAnswer(t, ask(t, db, "new-edges", nil, month, "client", "server", "service", "n", "reasons"), `('10.50.3.3','10.20.0.11','tcp/22',1,['permitted'])`)
	// The bound on what is read is one: a question that reads more fails.
	q, _ := FindNamedQuery("new-edges")
	bound, _ := q.Bind(nil, asked)
	ctx := clickhouse.Context(t.Context(), clickhouse.WithSettings(clickhouse.Settings{"max_rows_to_read": 1000}))
	if err := db.QueryWith(ctx, q.SQL, bound, FormatCSV, &strings.Builder{}); err == nil || !strings.Contains(err.Error(), "TOO_MANY_ROWS") {
		t.Errorf("reading more than was allowed: %v", err)
	}
	wantAnswer(t, ask(t, db, "new-edges", map[string]string{"days": "45"}, 2*month, "service"))
	wantAnswer(t, ask(t, db, "new-edges", map[string]string{"days": "5"}, week, "service"), `('tcp/22')`, `('tcp/443')`)
}

func TestAskWhatIsUnused(t *testing.T) {
	used := seenEdge{1, "", "10.50.3.3", "office", "10.20.0.11", "vault", "tcp/443", "waived", "permitted", "no-vault", "EX-used", "", "", 5}
	misused := used
	misused.reason, misused.exception, misused.outcome = "out-of-scope", "EX-misused", "blocked"
	db := estate(t, used, misused)
	young := holding("EX-young", 90)
	young.ApprovedAt = flow.TimeOf(asked) - 2*24*flow.Hour
	early := holding("EX-early", 90)
	early.NotBefore = flow.TimeOf(asked) + flow.Hour
	never := holding("EX-never-approved", 90)
	never.ApprovedAt = 0
	register(t, db, &Register{Exceptions: []RegisteredException{holding("EX-used", 90), holding("EX-misused", 90), holding("EX-idle", 90), young, early, never},
		Rules: []RegisteredRule{{ID: "no-vault", Action: "deny"}, {ID: "idle", Action: "deny", Source: "{zone: office}"}, {ID: "held-back", Action: "deny", Staged: true}, {ID: "lab-allow", Action: "allow"}}})
	unused := func() []string {
		t.Helper()
		return ask(t, db, "exceptions-unused", nil, 2*month, "id", "answer", "not_seen")
	}
	wantAnswer(t, unused(), `('EX-idle','unused',[])`, `('EX-misused','unused',[])`, `('EX-young','unused',[])`)
	wantAnswer(t, ask(t, db, "rules-unused", nil, month, "rule", "action", "source", "not_seen"), `('idle','deny','{zone: office}',0)`)
	// A gap ten days ago: of those that held then nobody can say; of the young one one can.
	from := flow.TimeOf(asked) - 10*24*flow.Hour
	spot := flow.BlindSpot{ID: "b", Version: 1, Kind: "silent-exporter", Subject: "exporter", About: "exporter 192.0.2.1", From: from, Until: from + flow.Hour}
	long := spot
	long.ID, long.From, long.Until = "old", from-60*24*flow.Hour, from-59*24*flow.Hour
	if _, err := db.InsertBlindSpots(t.Context(), insertNo(1), []flow.BlindSpot{spot, long}); err != nil {
		t.Fatal(err)
	}
	wantAnswer(t, unused(), `('EX-young','unused',[])`, `('EX-idle','nobody can say: not everything was seen',['exporter 192.0.2.1'])`,
		`('EX-misused','nobody can say: not everything was seen',['exporter 192.0.2.1'])`)
	wantAnswer(t, ask(t, db, "rules-unused", nil, month, "rule", "not_seen"), `('idle',1)`)
	wantAnswer(t, ask(t, db, "silent", map[string]string{"days": "14"}, 100, "kind", "subject", "about", "minutes"), `('silent-exporter','exporter','exporter 192.0.2.1',60)`)
	wantAnswer(t, ask(t, db, "silent", map[string]string{"days": "10", "until": "2026-06-30T00:30:00Z"}, 100, "minutes"), `(30)`)
	wantAnswer(t, ask(t, db, "silent", nil, 100, "about"))
	// The roll-up begins later than the time that is asked for.
	if err := db.exec(t.Context(), time.Minute, fmt.Sprintf("DELETE FROM %s.edge_hours WHERE hour < toDateTime(%d, 'UTC')", db.cfg.Database, asked.Add(-5*24*time.Hour).Unix())); err != nil {
		t.Fatal(err)
	}
	if err := db.exec(t.Context(), time.Minute, "TRUNCATE TABLE "+db.cfg.Database+".blind_spot_versions"); err != nil {
		t.Fatal(err)
	}
	wantAnswer(t, unused(), `('EX-young','unused',[])`, `('EX-idle','nobody can say: the roll-up begins later',[])`, `('EX-misused','nobody can say: the roll-up begins later',[])`)
}

func TestAskOfFindingsLedgerAndCoverage(t *testing.T) {
	db := open(t, keepAll)
	at := flow.TimeOf(asked) - flow.Hour
	for i, f := range []flow.Finding{
		{ID: "a", Revision: 1, Owner: "pay", Severity: flow.High, Type: "expired-exception"}, {ID: "a", Revision: 2, Owner: "pay", Severity: flow.Critical, Type: "expired-exception"},
		{ID: "b", Revision: 1, Owner: "pay", Severity: flow.Critical, Type: "expired-exception"}, {ID: "c", Revision: 1, Owner: "net", Severity: flow.Low, Type: "beacon"},
		{ID: "judged", Revision: 1, Owner: "net", Severity: flow.Low, Type: "beacon"}, {ID: "held", Revision: 1, Owner: "net", Severity: flow.Low, Type: "beacon", SuppressedBy: "SUP-1"},
		{ID: "grouped", Revision: 1, Owner: "net", Severity: flow.Low, Type: "beacon", GroupedBy: "c"},
		{ID: "looked-at", Revision: 1, Owner: "net", Severity: flow.Low, Type: "beacon"}, {ID: "old", Revision: 1, Owner: "net", Severity: flow.Low, Type: "beacon"},
	} {
		ins := insertNo(i)
		if ins.At = at; f.ID == "old" {
			ins.At -= 40 * 24 * flow.Hour
		}
		if _, err := db.InsertContributions(t.Context(), ins, []flow.Contribution{{Finding: &f, Sessions: 1, FirstSeen: at, LastSeen: at}}); err != nil {
			t.Fatal(err)
		}
	}
	for id, judgment := range map[string]string{"judged": "false-positive", "looked-at": "acknowledged"} {
		if err := db.exec(t.Context(), time.Minute, fmt.Sprintf("INSERT INTO %s.feedback (finding, judgment, judged_at, inserted_at) VALUES ('%s', '%s', toDateTime(%d), toDateTime(%d))", db.cfg.Database, id, judgment, asked.Unix(), asked.Unix())); err != nil {
			t.Fatal(err)
		}
	}
	wantAnswer(t, ask(t, db, "findings-open", nil, 100, "owner", "severity", "type", "n", "ids"), `('pay','critical','expired-exception',2,['a','b'])`, `('net','low','beacon',2,['c','looked-at'])`)

	account := flow.Ledger{}
	one := account.Of(flow.MustParseAddr("192.0.2.1"))
	one.Datagrams.Received, one.Datagrams.Decoded, one.Datagrams.Queued = 10, 7, 3
	one.Records.Decoded, one.Records.Written = 70, 70
	two := account.Of(flow.MustParseAddr("192.0.2.2"))
	two.Datagrams.Received, two.Datagrams.Decoded = 10, 8 // two are nowhere
	for i, when := range []flow.Time{at - 1000, at} {
		ins := insertNo(100 + i)
		ins.At = when
		if _, err := db.InsertLedger(t.Context(), ins, "spool-1", when, account); err != nil {
			t.Fatal(err)
		}
	}
	wantAnswer(t, ask(t, db, "ledger", nil, 100, "exporter", "datagrams", "datagrams_waiting", "records_stored", "open"), `('192.0.2.2',10,0,0,2)`, `('192.0.2.1',10,3,70,0)`)

	register(t, db, &Register{Coverage: []Coverage{{"enforced", "crown-jewel", 3, 1}, {"staged", "crown-jewel", 1, 1}, {"none", "none", 4, 0}}})
	later := &Register{Version: version(2), At: flow.TimeOf(asked) + flow.Hour, Coverage: []Coverage{{"enforced", "low", 9, 9}}}
	accept(t, db, later, later.At, "one")
	wantAnswer(t, ask(t, db, "coverage", nil, 100, "tier", "n", "n_enforced", "n_staged", "n_open", "per_cent_enforced"), `('crown-jewel',4,3,1,0,75)`, `('none',4,0,0,4,0)`)
	wantAnswer(t, ask(t, db, "coverage", map[string]string{"until": "2026-07-01"}, 100, "tier", "n"), `('low',9)`)
}

// Every question is tried above, says what its parameters are, and refuses what they are not.
func TestNamedQueries(t *testing.T) {
	for _, q := range NamedQueries() {
		for _, p := range q.Params {
			if p.Example == "" {
				t.Errorf("%s: %s has neither a default nor an example", q.Name, p.Name)
			}
		}
		if !strings.Contains(q.SQL, "LIMIT ") {
			t.Errorf("%s: without a limit an answer may be of any length", q.Name)
		}
	}
	use, err := FindNamedQuery("exception-use")
	if err != nil {
		t.Fatal(err)
	}
	bound, err := use.Bind(map[string]string{"exception": "EX-1", "until": "2026-10-01T02:00:00+02:00"}, asked)
	if err != nil || bound["until"] != "2026-10-01 00:00:00" || bound["days"] != "7" || bound["exception"] != "EX-1" {
		t.Errorf("%v, %v", bound, err)
	}
	for want, given := range map[string]map[string]string{
		"needs exception (the exception's id); write --param exception=EX-2041": {},
		"has no parameter exeption; it has exception, days, until":              {"exception": "x", "exeption": "y"},
		`days is "-1"; write a whole number from 0 to 65535`:                    {"exception": "x", "days": "-1"},
		`until is "tomorrow"; write a time as 2026-10-01T09:00:00Z`:             {"exception": "x", "until": "tomorrow"},
	} {
		if _, err := use.Bind(given, asked); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", given, err, want)
		}
	}
	if _, err := FindNamedQuery("no-such"); err == nil || !strings.Contains(err.Error(), "--list") {
		t.Errorf("an unknown query: %v", err)
	}
	for want, text := range map[string]string{
		"x.sql:1: want a question":           "-- No question.\nSELECT 1",
		"x.sql:2: a parameter that cannot":   "-- Why?\n-- param :\nSELECT 1",
		"the SQL has no {a:TYPE}":            "-- Why?\n-- param a: it\nSELECT 1",
		"nothing is said of the parameter b": "-- Why?\nSELECT {b:String}",
	} {
		if _, err := readNamedQuery("x.sql", text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// Values of parameters arrive as they are, whatever they hold, and only where the statement asks for them.
func TestQueryWith(t *testing.T) {
	db := open(t, nil)
	for _, v := range append([]string{`CORP\ann`, `\N`, "a\tb\nc", "'; DROP TABLE flows --", ""}, hostile...) {
		var out strings.Builder
		if err := db.QueryWith(context.Background(), "SELECT hex({v:String}) AS v", map[string]string{"v": v}, FormatCSV, &out); err != nil {
			t.Errorf("%q: %v", v, err)
		} else if got, want := out.String(), fmt.Sprintf("v\n%X\n", v); got != want {
			t.Errorf("%q came as %s", v, got)
		}
	}
	if err := db.QueryWith(t.Context(), "SELECT @v", map[string]string{"v": "1"}, FormatCSV, &strings.Builder{}); err == nil || !strings.Contains(err.Error(), "no parameter v; write {v:String}") {
		t.Errorf("a parameter that is not there: %v", err)
	}
}
