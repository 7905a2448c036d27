package sink

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/postern/postern/flow"
)

// Register is what a version of policy says, taken apart, for the tables that are joined with
// what was seen. Where a time is zero the policy does not say it.
type Register struct {
	Version    string    // the name of the version, as findings and rows have it
	At         flow.Time // when it was accepted: retention counts from there
	Exceptions []RegisteredException
	Segments   []RegisteredSegment
	Workloads  []RegisteredWorkload
	Rules      []RegisteredRule
	Coverage   []Coverage
}

// RegisteredException is a row of exception_versions.
type RegisteredException struct {
	ID, Class                  string
	Ticket, Owner, Reason      string
	RequestedBy                string
	RequestedAt, ApprovedAt    flow.Time
	ApprovedBy, ApproverRoles  []string
	NotBefore, Expires         flow.Time
	RevokedAt                  flow.Time
	RevokedBy, RevokedFor      string
	Overrides                  []string
	Source, Destination        string // as policy writes them
	Services                   []string
	PairsGranted, PortsGranted uint64
}

// RegisteredSegment is a row of segment_versions.
type RegisteredSegment struct {
	Name, Zone, Tier, Stage, Owner string
	AgentRequired, DenyIn, DenyOut bool
	Prefixes                       []netip.Prefix
	Workloads                      uint32
}

// RegisteredWorkload is a row of workload_versions.
type RegisteredWorkload struct {
	Name, App, Role, Env, Owner string
	Segment, Zone, Tier, Stage  string
	Addresses                   []netip.Addr
	Labels                      map[string]string
}

// RegisteredRule is a row of rule_versions.
type RegisteredRule struct {
	ID, Action          string
	Staged              bool
	Source, Destination string // as policy writes them
	Services            []string
	Owner, Reason       string
}

// Coverage is a row of coverage_versions.
type Coverage struct {
	Stage, Tier string
	Workloads   uint32
	Addresses   float64
}

// Registered tells which versions of policy are in the register, and when the newest acceptance of
// each was that wrote it.
func (db *ClickHouse) Registered(ctx context.Context) (map[string]flow.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, db.cfg.Timeouts.Query)
	defer cancel()
	rows, err := db.conn.Query(ctx, "SELECT policy_version, max(inserted_at) FROM "+db.cfg.Database+".coverage_versions GROUP BY policy_version")
	if err != nil {
		return nil, fmt.Errorf("reading the register: %w", db.redact(err))
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	out := map[string]flow.Time{}
	for rows.Next() {
		var version string
		var at time.Time
		if err := rows.Scan(&version, &at); err != nil {
			return nil, fmt.Errorf("reading the register: %w", db.redact(err))
		}
		out[version] = flow.Time(at.UnixMilli())
	}
	return out, db.redact(rows.Err())
}

// InsertRegister stores what a version of policy says. Coverage comes last and has a row at
// least: what is in it is in the register whole.
func (db *ClickHouse) InsertRegister(ctx context.Context, r *Register) error {
	at := r.At.Std()
	insert := func(table, columns string, rows int, row func(i int) []any) error {
		for first := 0; first < rows; first += maxRegisterRows {
			ins := Insert{Token: fmt.Sprintf("register %s %s %d", table, r.Version, first), At: r.At}
			if _, err := db.insertRows(ctx, table, "policy_version, "+columns+", inserted_at", ins, min(rows-first, maxRegisterRows), func(i int) []any {
				return append(append([]any{r.Version}, row(first+i)...), at)
			}); err != nil {
				return err
			}
		}
		return nil
	}
	if err := insert("exception_versions", "id, class, ticket, owner, reason, requested_by, requested_at, approved_at, approved_by, approver_roles, "+
		"not_before, expires, revoked_at, revoked_by, revoked_for, overrides, source, destination, services, pairs_granted, ports_granted",
		len(r.Exceptions), func(i int) []any {
			e := &r.Exceptions[i]
			return []any{e.ID, e.Class, e.Ticket, e.Owner, e.Reason, e.RequestedBy, kept0(e.RequestedAt), kept0(e.ApprovedAt), list(e.ApprovedBy), list(e.ApproverRoles),
				kept0(e.NotBefore), instant(kept(e.Expires)), kept0(e.RevokedAt), e.RevokedBy, e.RevokedFor, list(e.Overrides), e.Source, e.Destination, list(e.Services),
				e.PairsGranted, e.PortsGranted}
		}); err != nil {
		return err
	}
	if err := insert("segment_versions", "name, zone, tier, stage, owner, agent_required, default_in, default_out, prefixes, workloads",
		len(r.Segments), func(i int) []any {
			s := &r.Segments[i]
			prefixes := make([]string, len(s.Prefixes))
			for i, p := range s.Prefixes {
				prefixes[i] = p.String()
			}
			return []any{s.Name, s.Zone, s.Tier, s.Stage, s.Owner, s.AgentRequired, denied(s.DenyIn), denied(s.DenyOut), prefixes, s.Workloads}
		}); err != nil {
		return err
	}
	if err := insert("workload_versions", "name, app, role, env, owner, segment, zone, tier, stage, addresses, labels",
		len(r.Workloads), func(i int) []any {
			w := &r.Workloads[i]
			addresses := make([]net.IP, len(w.Addresses))
			for i, a := range w.Addresses {
				addresses[i] = address(flow.AddrFromNetip(a))
			}
			labels := w.Labels
			if labels == nil {
				labels = map[string]string{}
			}
			return []any{w.Name, w.App, w.Role, w.Env, w.Owner, w.Segment, w.Zone, w.Tier, w.Stage, addresses, labels}
		}); err != nil {
		return err
	}
	if err := insert("rule_versions", "id, action, mode, source, destination, services, owner, reason", len(r.Rules), func(i int) []any {
		u := &r.Rules[i]
		mode := "enforce"
		if u.Staged {
			mode = "staged"
		}
		return []any{u.ID, u.Action, mode, u.Source, u.Destination, list(u.Services), u.Owner, u.Reason}
	}); err != nil {
		return err
	}
	coverage := r.Coverage
	if len(coverage) == 0 {
		coverage = []Coverage{{Stage: "none", Tier: "none"}}
	}
	return insert("coverage_versions", "stage, tier, workloads, addresses", len(coverage), func(i int) []any {
		c := &coverage[i]
		return []any{c.Stage, c.Tier, c.Workloads, c.Addresses}
	})
}

// maxRegisterRows is how many rows of a register an insert holds: clickhouse-go's batch keeps
// them whole.
const maxRegisterRows = 10_000

// latest is the last year's end that clickhouse-go, which counts in nanoseconds, can send: a policy
// may name any year.
var latest = flow.TimeOf(time.Date(2261, 12, 31, 23, 59, 59, 0, time.UTC))

func kept(t flow.Time) flow.Time { return min(max(t, 0), latest) }

// kept0 is t for a nullable column.
func kept0(t flow.Time) *time.Time { return unless0(kept(t)) }

func denied(deny bool) string {
	if deny {
		return "deny"
	}
	return "allow"
}
