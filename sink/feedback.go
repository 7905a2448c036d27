package sink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/postern/postern/flow"
)

// The judgments of a finding.
const (
	// Acknowledged says that somebody looks at it.
	Acknowledged = "acknowledged"
	// JudgedTrue says that it is so and matters.
	JudgedTrue = "true"
	// JudgedFalsePositive says that it is not so, or that nobody needs to know.
	JudgedFalsePositive = "false-positive"
)

// Judgments lists them in the order of the docs.
func Judgments() []string { return []string{Acknowledged, JudgedTrue, JudgedFalsePositive} }

// ErrNoFinding says that there is no finding of an id.
var ErrNoFinding = errors.New("there is no such finding")

// Judgment is what somebody said of a finding. Judgments are only ever added; the newest of a
// finding counts.
type Judgment struct {
	Judgment string    `json:"judgment"` // one of [Judgments]
	By       string    `json:"judged_by"`
	At       flow.Time `json:"judged_at"`
	Reason   string    `json:"judgment_reason"`
	Revision uint64    `json:"judged_revision"` // of the finding that was judged
	Via      string    `json:"via,omitempty"`   // command or api
}

// JudgedFinding is a finding as it is stored, with the judgment that counts.
type JudgedFinding struct {
	flow.Finding
	Judgment  *Judgment `json:"judgment,omitempty"`  // nil: nobody judged it
	Judgments uint64    `json:"judgments,omitempty"` // how often it was judged
}

// Judge stores a judgment of a finding. The same again changes nothing.
func (db *ClickHouse) Judge(ctx context.Context, f *flow.Finding, j Judgment) error {
	if !slices.Contains(Judgments(), j.Judgment) {
		return fmt.Errorf("%q is no judgment; write %s", j.Judgment, strings.Join(Judgments(), ", "))
	}
	ins := Insert{Token: fmt.Sprintf("judgment %s %d %s %q %q", f.ID, j.At, j.Judgment, j.By, j.Reason), At: j.At}
	_, err := db.insertRows(ctx, "feedback", "finding, revision, type, first_seen, judgment, judged_by, judged_at, judgment_reason, via, inserted_at",
		ins, 1, func(int) []any {
			return []any{f.ID, f.Revision, f.Type, instant(f.FirstSeen), j.Judgment, j.By, instant(j.At), j.Reason, j.Via, j.At.Std()}
		})
	return err
}

// FindingFilter says which findings are asked for; its zero value says all.
type FindingFilter struct {
	ID       string // an id, or its beginning
	Since    flow.Time
	Severity flow.Severity // at least
	Type     string
	Owner    string
	Unjudged bool // only those that nobody judged
	// SuppressedBy is the suppression that holds them back; "*" is any.
	SuppressedBy string
	// GroupedBy is the id of the finding that tells of them together, or its beginning; "*" is any.
	GroupedBy string
	Limit     int // at most so many, those seen last first; 0: no limit
}

// Findings gives the findings that a filter asks for, those seen last first.
func (db *ClickHouse) Findings(ctx context.Context, q FindingFilter) ([]JudgedFinding, error) {
	ctx, cancel := context.WithTimeout(ctx, db.cfg.Timeouts.Query)
	defer cancel()
	where, args := []string{"severity >= ?"}, []any{q.Severity.String()}
	also := func(condition string, arg ...any) { where, args = append(where, condition), append(args, arg...) }
	if q.ID != "" {
		also("startsWith(id, ?)", q.ID)
	}
	if q.Since != 0 {
		// Both: the first is what spares the view most of its sums.
		also("id IN (SELECT id FROM "+db.cfg.Database+".finding_contributions WHERE batch_last_seen >= fromUnixTimestamp64Milli(toInt64(?)))", int64(q.Since))
		also("last_seen >= fromUnixTimestamp64Milli(toInt64(?))", int64(q.Since))
	}
	if q.Type != "" {
		also("type = ?", q.Type)
	}
	if q.Owner != "" {
		also("owner = ?", q.Owner)
	}
	if q.Unjudged {
		also("judgments = 0")
	}
	if q.SuppressedBy == "*" {
		also("suppressed_by != ''")
	} else if q.SuppressedBy != "" {
		also("suppressed_by = ?", q.SuppressedBy)
	}
	if q.GroupedBy == "*" {
		also("grouped_by != ''")
	} else if q.GroupedBy != "" {
		also("startsWith(grouped_by, ?)", q.GroupedBy)
	}
	sql := "SELECT * FROM " + db.cfg.Database + ".judged_findings WHERE " + strings.Join(where, " AND ") + " ORDER BY last_seen DESC, id"
	if q.Limit > 0 {
		sql += fmt.Sprintf(" LIMIT %d", q.Limit)
	}
	rows, err := db.conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("reading findings: %w", db.redact(err))
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	out := findingRows{}
	if err := writeRows(rows, &out); err != nil {
		return nil, fmt.Errorf("reading findings: %w", db.redact(err))
	}
	return out.list, nil
}

// findingRows makes findings of rows whose columns are named as the members of a finding's
// JSON, so that a column which a later schema adds needs no word here.
type findingRows struct {
	names []string
	list  []JudgedFinding
}

func (r *findingRows) head(names, _ []string) { r.names = names }
func (r *findingRows) end() error             { return nil }

func (r *findingRows) row(values []any) error {
	o := make(object, 0, len(values))
	for i, v := range values {
		name := r.names[i]
		switch name {
		case "samples":
			samples := make([]any, len(v.([]any)))
			for i, s := range v.([]any) {
				samples[i] = number(s.(string)) // JSON already
			}
			v = samples
		case "score_parts", "ends", "hops":
			if v = number(v.(string)); v == number("") {
				continue
			}
		}
		o = append(o, member{name, v})
	}
	text := appendValue(nil, o)
	var f struct {
		flow.Finding
		Judgment  string `json:"judgment"`
		Judgments uint64 `json:"judgments"`
	}
	if err := json.Unmarshal(text, &f); err != nil {
		return fmt.Errorf("a stored finding cannot be read: %w", err)
	}
	one := JudgedFinding{Finding: f.Finding, Judgments: f.Judgments}
	if f.Judgments > 0 {
		var j Judgment
		// Members of the same names; the judgment itself is one of them.
		if err := json.Unmarshal(text, &j); err != nil {
			return fmt.Errorf("a stored judgment cannot be read: %w", err)
		}
		one.Judgment = &j
	}
	r.list = append(r.list, one)
	return nil
}

// maxCandidates is how many findings an ambiguous beginning of an id names.
const maxCandidates = 5

// Finding gives the finding of an id, or the only one whose id begins so. It is
// [ErrNoFinding] if there is none.
func (db *ClickHouse) Finding(ctx context.Context, id string) (*JudgedFinding, error) {
	if id == "" {
		return nil, ErrNoFinding
	}
	list, err := db.Findings(ctx, FindingFilter{ID: id, Limit: maxCandidates + 1})
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%w: no id begins with %q", ErrNoFinding, id)
	}
	var ids []string
	for i := range list {
		if list[i].ID == id {
			return &list[i], nil
		}
		ids = append(ids, list[i].ID)
	}
	if len(list) > 1 {
		if len(ids) > maxCandidates {
			ids = append(ids[:maxCandidates], "…")
		}
		return nil, &AmbiguousError{id, ids}
	}
	return &list[0], nil
}

// AmbiguousError says that several findings' ids begin alike.
type AmbiguousError struct {
	ID  string
	IDs []string // some of them
}

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("several findings' ids begin with %q; write more of it: %s", e.ID, strings.Join(e.IDs, ", "))
}

// JudgmentsOf lists what was said of a finding, the newest first.
func (db *ClickHouse) JudgmentsOf(ctx context.Context, id string) ([]Judgment, error) {
	ctx, cancel := context.WithTimeout(ctx, db.cfg.Timeouts.Query)
	defer cancel()
	rows, err := db.conn.Query(ctx, "SELECT judgment, judged_by, judged_at, judgment_reason, revision, via FROM "+db.cfg.Database+
		".feedback WHERE finding = ? ORDER BY judged_at DESC, inserted_at DESC, judged_by DESC", id)
	if err != nil {
		return nil, fmt.Errorf("reading judgments: %w", db.redact(err))
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	var out []Judgment
	for rows.Next() {
		var j Judgment
		var at time.Time
		if err := rows.Scan(&j.Judgment, &j.By, &at, &j.Reason, &j.Revision, &j.Via); err != nil {
			return nil, fmt.Errorf("reading judgments: %w", db.redact(err))
		}
		j.At = flow.Time(at.UnixMilli())
		out = append(out, j)
	}
	return out, db.redact(rows.Err())
}

// JudgmentCount is how many findings of a type have a judgment now.
type JudgmentCount struct {
	Type, Judgment string
	Findings       uint64
}

// JudgmentCounts counts judged findings by type and judgment, in this order.
func (db *ClickHouse) JudgmentCounts(ctx context.Context) ([]JudgmentCount, error) {
	ctx, cancel := context.WithTimeout(ctx, db.cfg.Timeouts.Query)
	defer cancel()
	rows, err := db.conn.Query(ctx, "SELECT type, toString(judgment) AS word, count() FROM "+db.cfg.Database+".judgments GROUP BY type, word ORDER BY type, word")
	if err != nil {
		return nil, fmt.Errorf("counting judgments: %w", db.redact(err))
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	var out []JudgmentCount
	for rows.Next() {
		var c JudgmentCount
		if err := rows.Scan(&c.Type, &c.Judgment, &c.Findings); err != nil {
			return nil, fmt.Errorf("counting judgments: %w", db.redact(err))
		}
		out = append(out, c)
	}
	return out, db.redact(rows.Err())
}
