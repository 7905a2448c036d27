package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/user"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/sink"
)

// verbs are how people judge findings: on the command line and in the admin API alike.
var verbs = []struct {
	name, judgment, short string
	reason                bool // must say why
}{
	{"ack", sink.Acknowledged, "Say that somebody looks at a finding", false},
	{"true", sink.JudgedTrue, "Say that a finding is true and matters", false},
	{"false-positive", sink.JudgedFalsePositive, "Say that a finding is wrong, or that nobody needs to know", true},
}

// desk is where people ask for findings and judge them.
type desk struct {
	db  *sink.ClickHouse
	now func() flow.Time
	via string // command or api
}

// verdict is what somebody says of a finding.
type verdict struct {
	By     string `json:"by"`
	Reason string `json:"reason"`
}

const (
	maxPerson = 256
	maxReason = 4096
)

// check refuses what is no name or no reason.
func (v *verdict) check(reason bool) error {
	v.By, v.Reason = strings.TrimSpace(v.By), strings.TrimSpace(v.Reason)
	switch {
	case v.By == "":
		return errors.New("nobody judges: say who by")
	case len(v.By) > maxPerson:
		return fmt.Errorf("by is %d bytes long; keep it within %d", len(v.By), maxPerson)
	case len(v.Reason) > maxReason:
		return fmt.Errorf("reason is %d bytes long; keep it within %d", len(v.Reason), maxReason)
	case strings.ContainsFunc(v.By+v.Reason, unicode.IsControl):
		return errors.New("by and reason hold control characters; write each on one line")
	case reason && v.Reason == "":
		return errors.New("it has no reason; say why, since others will have to decide by it")
	}
	return nil
}

// judge records what somebody says of a finding, and gives it as it was before.
func (d *desk) judge(ctx context.Context, id, judgment string, reason bool, v verdict) (*sink.JudgedFinding, error) {
	if err := v.check(reason); err != nil {
		return nil, invalid(err)
	}
	f, err := d.finding(ctx, id)
	if err != nil {
		return nil, err
	}
	return f, d.db.Judge(ctx, &f.Finding, sink.Judgment{Judgment: judgment, By: v.By, At: d.now(), Reason: v.Reason, Revision: f.Revision, Via: d.via})
}

const leastPrefix = 4

// finding finds by id or by its beginning.
func (d *desk) finding(ctx context.Context, id string) (*sink.JudgedFinding, error) {
	id = strings.ToLower(strings.TrimSpace(id))
	if len(id) < leastPrefix || len(id) > 64 || strings.Trim(id, "0123456789abcdef") != "" {
		return nil, invalid(fmt.Errorf("%.80q is no id of a finding, nor the beginning of one: write at least %d of its hexadecimal digits", id, leastPrefix))
	}
	return d.db.Finding(ctx, id)
}

// invalid marks an error as the fault of whoever asked.
func invalid(err error) error { return invalidError{err} }

type invalidError struct{ error }

func (e invalidError) Unwrap() error { return e.error }

// findingQuery is which findings are asked for, as people write it.
type findingQuery struct {
	since, severity, typ, owner, suppressedBy, groupedBy string
	unjudged                                             bool
	limit                                                int
}

// maxListed bounds an answer: 1,000 findings of at most 20 kB each.
const maxListed = 1000

func (q *findingQuery) filter(now flow.Time) (f sink.FindingFilter, err error) {
	f = sink.FindingFilter{Type: q.typ, Owner: q.owner, Unjudged: q.unjudged, SuppressedBy: q.suppressedBy, GroupedBy: q.groupedBy, Limit: q.limit}
	if q.since != "" {
		if f.Since, err = sinceOf(q.since, now); err != nil {
			return f, invalid(err)
		}
	}
	if q.severity != "" {
		if err := f.Severity.UnmarshalText([]byte(q.severity)); err != nil {
			return f, invalid(fmt.Errorf("severity: %w", err))
		}
	}
	if types := flow.FindingTypes(); q.typ != "" && !slices.Contains(types, q.typ) {
		return f, invalid(fmt.Errorf("type %.80q is none of a finding; write one of %s", q.typ, strings.Join(types, ", ")))
	}
	if q.limit < 1 || q.limit > maxListed {
		return f, invalid(fmt.Errorf("limit is %d; write a number from 1 to %d", q.limit, maxListed))
	}
	return f, nil
}

// longestSince is how long ago one may ask for.
const longestSince = 100 * 365 * 24 * time.Hour

// sinceOf reads a time, or how long ago: 24h, 7d.
func sinceOf(s string, now flow.Time) (flow.Time, error) {
	var t flow.Time
	if err := t.UnmarshalText([]byte(s)); err == nil {
		return t, nil
	}
	ago, unit := s, time.Duration(1)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		ago, unit = days+"h", 24
	}
	d, err := time.ParseDuration(ago)
	if err != nil || d <= 0 || d > longestSince/unit {
		return 0, fmt.Errorf("since %.80q is no time; write 24h, 7d or 2026-10-05T12:00:00Z", s)
	}
	return now.Add(-d * unit), nil
}

func findingCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "finding",
		Short: "Findings: list them, judge them, draft a suppression",
		Long: `Reads findings from ClickHouse, the service's embedded one or a server, and records what people say of them: who
judged what, when and why. Judgments are only ever added, and the newest of a finding counts; they change no
verdict and silence nothing. What shall be silent for a while is asked for by suppress and approved by somebody
else. A finding is named by its id, or by as much of its beginning as no other shares.`,
		Example: `  postern finding list --since 24h --severity medium --unjudged
  postern finding show 3f2a9c1d
  postern finding false-positive 3f2a9c1d --reason "the new backup server, CHG-4711"
  postern finding suppress 3f2a9c1d --reason "until the agent is replaced" --ticket CHG-4711 --into policy/suppressions.yaml`,
	}
	var where clientFlags
	cmd.PersistentFlags().StringVarP(&where.config, "config", "c", "", "configuration file")
	cmd.PersistentFlags().StringVar(&where.data, "data", "", "data directory, instead of the configuration's")
	at := func(cmd *cobra.Command, do func(context.Context, *desk) error) error {
		cfg, log, err := where.load()
		if err != nil {
			return err
		}
		return withDesk(cmd.Context(), cfg, log, do)
	}
	cmd.AddCommand(findingListCommand(at), findingShowCommand(at))
	for _, v := range verbs {
		cmd.AddCommand(findingJudgeCommand(at, v.name, v.judgment, v.short, v.reason))
	}
	cmd.AddCommand(findingSuppressCommand(at))
	return cmd
}

type atDesk func(*cobra.Command, func(context.Context, *desk) error) error

// withDesk works on the findings of a configuration's ClickHouse.
func withDesk(ctx context.Context, cfg config, log *slog.Logger, do func(context.Context, *desk) error) error {
	return withClickHouse(ctx, cfg, log, func(ctx context.Context, db *sink.ClickHouse) error {
		return do(ctx, &desk{db: db, now: wallClock, via: "command"})
	})
}

func findingListCommand(at atDesk) *cobra.Command {
	var q findingQuery
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Short: "List findings, those seen last first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return at(cmd, func(ctx context.Context, d *desk) error {
				filter, err := q.filter(d.now())
				if err != nil {
					return err
				}
				filter.Limit++ // to know whether there are more
				list, err := d.db.Findings(ctx, filter)
				if err != nil {
					return err
				}
				more := len(list) == filter.Limit
				if more {
					list = list[:q.limit]
				}
				out := cmd.OutOrStdout()
				if asJSON {
					for i := range list {
						if err := printJSON(out, &list[i], ""); err != nil {
							return err
						}
					}
				} else {
					fmt.Fprintln(out, findingTable(list))
				}
				if more {
					fmt.Fprintf(cmd.ErrOrStderr(), "there are more than %d; ask for a later --since, or raise --limit\n", q.limit)
				}
				return nil
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&q.since, "since", "7d", "seen since then: 24h, 7d or 2026-10-05T12:00:00Z; empty is ever")
	f.StringVar(&q.severity, "severity", "", "this severity or graver")
	f.StringVar(&q.typ, "type", "", "only this type, which names the detector")
	f.StringVar(&q.owner, "owner", "", "only this owner's")
	f.BoolVar(&q.unjudged, "unjudged", false, "only those that nobody judged")
	f.StringVar(&q.suppressedBy, "suppressed-by", "", "only those that this suppression holds back; * is any")
	f.StringVar(&q.groupedBy, "grouped-by", "", "only those that the finding of this id tells of together (a finding-flood); * is any")
	f.IntVar(&q.limit, "limit", 100, "at most so many")
	f.BoolVar(&asJSON, "json", false, "print each as JSON, a line each")
	return cmd
}

// idShown is how much of an id tables show: 48 bits tell any two of a company's findings apart.
const idShown = 12

func shortID(id string) string { return id[:min(idShown, len(id))] }

func findingTable(list []sink.JudgedFinding) string {
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	t.AppendHeader(table.Row{"id", "severity", "type", "last seen", "sessions", "what", "owner", "judged"})
	for i := range list {
		f := &list[i]
		judged := ""
		if f.Judgment != nil {
			judged = f.Judgment.Judgment + " by " + f.Judgment.By
		} else if f.SuppressedBy != "" {
			judged = "(suppressed by " + f.SuppressedBy + ")"
		} else if f.GroupedBy != "" {
			judged = "(told with others by " + shortID(f.GroupedBy) + ")"
		}
		t.AppendRow(table.Row{shortID(f.ID), f.Severity, f.Type, f.LastSeen, f.Count, sink.Visible(whatOf(&f.Finding)),
			sink.Visible(f.Owner), sink.Visible(judged)})
	}
	return t.Render()
}

// whatOf says in a few words what a finding is about.
func whatOf(f *flow.Finding) string {
	var ends []string
	for _, end := range []string{f.Client, f.Server} {
		if end != "" {
			ends = append(ends, end)
		}
	}
	join := " → "
	if f.Orientation == "open" {
		join = " ↔ "
	}
	what := strings.Join(ends, join)
	if f.Service != "" {
		what += " " + f.Service
	}
	if f.Exception != "" {
		return what + " by " + f.Exception
	}
	if f.Rule != "" {
		return what + " against " + f.Rule
	}
	return what
}

func findingShowCommand(at atDesk) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "show ID", Short: "Print all there is of a finding, in words or as JSON", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return at(cmd, func(ctx context.Context, d *desk) error {
				shown, err := d.show(ctx, args[0])
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(cmd.OutOrStdout(), shown, "  ")
				}
				return findingText(cmd.OutOrStdout(), shown)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print it as JSON")
	return cmd
}

// shownFinding is a finding with all that was ever said of it.
type shownFinding struct {
	sink.JudgedFinding
	History []sink.Judgment `json:"history,omitempty"` // newest first
}

func (d *desk) show(ctx context.Context, id string) (*shownFinding, error) {
	f, err := d.finding(ctx, id)
	if err != nil {
		return nil, err
	}
	history, err := d.db.JudgmentsOf(ctx, f.ID)
	return &shownFinding{*f, history}, err
}

func findingJudgeCommand(at atDesk, name, judgment, short string, reason bool) *cobra.Command {
	var v verdict
	cmd := &cobra.Command{
		Use: name + " ID", Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if v.By == "" {
				v.By = osUser()
			}
			return at(cmd, func(ctx context.Context, d *desk) error {
				f, err := d.judge(ctx, args[0], judgment, reason, v)
				if err != nil {
					return err
				}
				before := ""
				if j := f.Judgment; j != nil {
					before = fmt.Sprintf(" (before: %s by %s at %s)", j.Judgment, sink.Visible(j.By), j.At)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %s by %s%s\n", f.ID, judgment, sink.Visible(v.By), before)
				return nil
			})
		},
	}
	addVerdictFlags(cmd, &v, reason)
	return cmd
}

func addVerdictFlags(cmd *cobra.Command, v *verdict, reason bool) {
	cmd.Flags().StringVar(&v.By, "by", "", "who says so; by default the user of this machine")
	why := "why"
	if reason {
		why += "; required"
	}
	cmd.Flags().StringVar(&v.Reason, "reason", "", why)
}

// osUser is who runs the command, as the operating system knows them; empty if it does not.
func osUser() string {
	u, err := user.Current()
	if err != nil {
		return ""
	}
	return u.Username
}

// printJSON writes v and a line's end; texts in it may hold what hosts chose to say.
func printJSON(w io.Writer, v any, indent string) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", indent)
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err := w.Write(flow.EscapeDEL(b.Bytes()))
	return err
}
