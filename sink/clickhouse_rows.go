package sink

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/postern/postern/flow"
)

const contributionColumns = "id, revision, sessions, batch_first_seen, batch_last_seen, schema_version, type, title, severity, confidence, " +
	"client, server, orientation, service, src_segment, dst_segment, observed, expected, reason, outcome, failed, missing, rule, exception, " +
	"ticket, owner, requester, approver, policy_version, techniques, continues, edges, edges_total, samples, sentence, next, suppressed_by, suppressed, grouped_by, " +
	"subject, score, score_parts, ends, hops, exporters, observers, query, policy_commit, policy_since, " +
	"batch_ordinal, input, inserted_at"

// InsertContributions stores what one batch added to findings. The findings view
// sums them, so a batch written again under the same [Insert] changes nothing.
func (db *ClickHouse) InsertContributions(ctx context.Context, ins Insert, cs []flow.Contribution) (Written, error) {
	at := ins.At.Std()
	return db.insertRows(ctx, "finding_contributions", contributionColumns, ins, len(cs), func(i int) []any {
		c := &cs[i]
		f := c.Finding
		edges := make([]map[string]any, len(f.Edges))
		for i, e := range f.Edges {
			edges[i] = map[string]any{"source": e.Source, "destination": e.Destination, "port": e.Port, "protocol": e.Protocol}
		}
		samples := make([]string, len(f.Samples))
		for i, s := range f.Samples {
			samples[i] = string(s)
		}
		return []any{f.ID, f.Revision, c.Sessions, instant(c.FirstSeen), instant(c.LastSeen), uint16(f.SchemaVersion), f.Type, f.Title,
			f.Severity.String(), f.Confidence, f.Client, f.Server, f.Orientation, f.Service, f.SrcSegment, f.DstSegment,
			f.Observed, f.Expected, f.Reason, f.Outcome, list(f.Failed), list(f.Missing), f.Rule, f.Exception,
			f.Ticket, f.Owner, f.Requester, f.Approver, f.PolicyVersion, list(f.Techniques), f.Continues, edges,
			uint64(max(f.EdgesTotal, 0)), samples, f.Sentence, f.Next, f.SuppressedBy, f.Suppressed, f.GroupedBy,
			f.Subject, f.Score, jsonList(f.ScoreParts), jsonList(f.Ends), jsonList(f.Hops), list(f.Exporters), list(f.Observers), f.Query,
			f.PolicyCommit, unless0(f.PolicySince), uint32(i), ins.Input, at}
	})
}

// InsertBlindSpots stores versions of blind spots; the blind_spots view shows the newest of each.
func (db *ClickHouse) InsertBlindSpots(ctx context.Context, ins Insert, spots []flow.BlindSpot) (Written, error) {
	return db.insertRows(ctx, "blind_spot_versions", "id, version, kind, subject, about, address, source, domain, name, segment, "+
		"time_from, time_until, details, finding, input, inserted_at", ins, len(spots), func(i int) []any {
		s := &spots[i]
		var about, until any
		if !s.Address.IsZero() {
			about = address(s.Address)
		}
		if s.Until != 0 {
			until = instant(s.Until)
		}
		return []any{s.ID, s.Version, s.Kind, s.Subject, s.About, about, s.Source, s.Domain, s.Name, s.Segment,
			instant(s.From), until, s.Details, s.Finding, ins.Input, ins.At.Std()}
	})
}

// instant is t for the driver, which would read the zero time.Time as the year 1.
func instant(t flow.Time) time.Time { return time.UnixMilli(int64(t)).UTC() }

// unless0 is t for a nullable column.
func unless0(t flow.Time) *time.Time {
	if t == 0 {
		return nil
	}
	at := instant(t)
	return &at
}

// jsonList is a list as JSON text, empty where it has nothing.
func jsonList[T any](l []T) string {
	if len(l) == 0 {
		return ""
	}
	b, err := json.Marshal(l)
	if err != nil { // texts and numbers
		panic("sink: " + err.Error())
	}
	return string(b)
}

// list is s, never nil.
func list(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// InsertLedger stores a snapshot of the ledgers, one row an exporter, as of at.
func (db *ClickHouse) InsertLedger(ctx context.Context, ins Insert, instance string, at flow.Time, l flow.Ledger) (Written, error) {
	exporters := l.Exporters()
	return db.insertRows(ctx, "ledger", "at, instance, exporter, datagrams_received, datagrams_decoded, datagrams_parked, datagrams_queued, "+
		"datagrams_rejected, datagrams_rejected_by, records_decoded, records_written, records_duplicate, records_in_flight, records_rejected, "+
		"records_rejected_by, templates, options, counters, gaps, reordered, restarts, sets_parked, sets_skipped, inserted_at, "+
		"lines_received, lines_read, lines_not_flow, lines_rejected, lines_queued, lines_lost",
		ins, len(exporters), func(i int) []any {
			a := l[exporters[i]]
			d, r := &a.Datagrams, &a.Records
			return []any{instant(at), instance, address(exporters[i]), d.Received, d.Decoded, d.Parked, d.Queued, d.Rejected.Sum(), d.Rejected.Map(),
				r.Decoded, r.Written, r.Duplicate, r.InFlight, r.Rejected.Sum(), r.Rejected.Map(),
				a.Templates, a.Options, a.Counters, a.Gaps, a.Reordered, a.Restarts, a.SetsParked, a.SetsSkipped, ins.At.Std(),
				a.Lines.Received, a.Lines.Read, a.Lines.NotFlow, a.Lines.Rejected, a.Lines.Queued, a.Lines.Lost}
		})
}

// address is a for the driver.
func address(a flow.Addr) net.IP {
	b := a.As16()
	return b[:]
}

// Exporter is what is known of one exporter and observation domain.
type Exporter struct {
	Exporter            flow.Addr
	Domain              uint32
	Source              flow.Source
	FirstSeen, LastSeen flow.Time
	Datagrams, Records  uint64
	Templates           uint32
	SamplingRate        uint32
	Gaps                uint64
	Skew                time.Duration // its clock minus ours
}

// InsertExporters stores a snapshot of who exports, as of at.
func (db *ClickHouse) InsertExporters(ctx context.Context, ins Insert, instance string, at flow.Time, es []Exporter) (Written, error) {
	return db.insertRows(ctx, "exporters", "at, instance, exporter, domain, source, first_seen, last_seen, datagrams, records, templates, "+
		"sampling_rate, gaps, skew_ms, inserted_at", ins, len(es), func(i int) []any {
		e := &es[i]
		return []any{instant(at), instance, address(e.Exporter), e.Domain, e.Source.String(), instant(e.FirstSeen), instant(e.LastSeen),
			e.Datagrams, e.Records, e.Templates, e.SamplingRate, e.Gaps, e.Skew.Milliseconds(), ins.At.Std()}
	})
}

// PolicyVersion is one policy coming into force.
type PolicyVersion struct {
	Hash       string
	Since      flow.Time // in force from then on, until the next version's Since
	AcceptedAt flow.Time
	Instance   string
	Source     string // the policy in full
	Commit     string // the Git commit it was taken from, empty if that is not known
}

// InsertPolicyVersion records that this instance accepted a policy. Of several
// instances that accept the same, the first counts; see [ClickHouse.PolicyVersions].
func (db *ClickHouse) InsertPolicyVersion(ctx context.Context, v PolicyVersion) (Written, error) {
	ins := Insert{Token: fmt.Sprintf("policy %s %d %s", v.Hash, v.Since, v.Instance), At: v.AcceptedAt}
	return db.insertRows(ctx, "policy_versions", "hash, since, accepted_at, instance, source, git_commit, inserted_at", ins, 1, func(int) []any {
		return []any{v.Hash, instant(v.Since), instant(v.AcceptedAt), v.Instance, v.Source, v.Commit, ins.At.Std()}
	})
}

// PolicyVersions reads the policies that came into force, in order of Since, which is
// also the order to load them in. Where instances accepted one policy one after
// another the first acceptance counts for all; a policy that comes back after
// another one is a version of its own.
func (db *ClickHouse) PolicyVersions(ctx context.Context) ([]PolicyVersion, error) {
	ctx, cancel := context.WithTimeout(ctx, db.cfg.Timeouts.Query)
	defer cancel()
	rows, err := db.conn.Query(ctx, "SELECT hash, since, accepted_at, instance, source, git_commit FROM "+db.cfg.Database+
		".policy_versions ORDER BY since, accepted_at, hash, instance")
	if err != nil {
		return nil, fmt.Errorf("reading policy versions: %w", db.redact(err))
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	var out []PolicyVersion
	for rows.Next() {
		var v PolicyVersion
		var since, accepted time.Time
		if err := rows.Scan(&v.Hash, &since, &accepted, &v.Instance, &v.Source, &v.Commit); err != nil {
			return nil, fmt.Errorf("reading policy versions: %w", db.redact(err))
		}
		v.Since, v.AcceptedAt = flow.Time(since.UnixMilli()), flow.Time(accepted.UnixMilli())
		out = append(out, v)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading policy versions: %w", db.redact(err))
	}
	return firstAcceptances(out), nil
}

// firstAcceptances leaves one version of each run of equal policies.
func firstAcceptances(vs []PolicyVersion) []PolicyVersion {
	slices.SortStableFunc(vs, func(a, b PolicyVersion) int {
		return cmp.Or(cmp.Compare(a.Since, b.Since), cmp.Compare(a.AcceptedAt, b.AcceptedAt), cmp.Compare(a.Hash, b.Hash))
	})
	return slices.CompactFunc(vs, func(a, b PolicyVersion) bool { return a.Hash == b.Hash })
}

// InsertedAt is the time under which flows of an input were first stored, zero if there are
// none. Whoever reads a file again uses it as [Insert.At], so that the tokens are
// those of the first time.
func (db *ClickHouse) InsertedAt(ctx context.Context, input string) (flow.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, db.cfg.Timeouts.Query)
	defer cancel()
	var n uint64
	var at time.Time
	if err := db.conn.QueryRow(ctx, "SELECT count(), min(inserted_at) FROM "+db.cfg.Database+".flows WHERE input = ?", input).Scan(&n, &at); err != nil {
		return 0, fmt.Errorf("looking for input %s: %w", input, db.redact(err))
	}
	if n == 0 {
		return 0, nil
	}
	return flow.Time(at.UnixMilli()), nil
}

// DeleteInput removes all flows, sessions, edges, contributions and blind spots of an input, as replaying a file under another
// policy does before it writes. The deleted rows' tokens stay remembered: what is
// written afterwards needs another [Insert.At].
func (db *ClickHouse) DeleteInput(ctx context.Context, input string) error {
	for _, table := range inputTables {
		ctx, cancel := context.WithTimeout(ctx, db.cfg.Timeouts.Migration)
		err := db.conn.Exec(ctx, "DELETE FROM "+db.cfg.Database+"."+db.cfg.Cluster.stored(table)+db.cfg.Cluster.on()+" WHERE input = ?", input)
		cancel()
		if err != nil {
			return fmt.Errorf("removing input %s from %s: %w", input, table, db.redact(err))
		}
	}
	return nil
}
