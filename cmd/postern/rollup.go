package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/sink"
)

// rollupSlack is what a session may be counted later than its time is up: what waits on the way, and
// other sources that event time waits for.
const rollupSlack = time.Hour

// settling is when an hour of the roll-up changes no more under a configuration.
func settling(cfg config, now flow.Time) sink.Settling {
	s := &cfg.Sessions
	idle := max(s.Idle.TCP, s.Idle.UDP, s.Idle.ICMP, s.Idle.Other, s.Join)
	return sink.Settling{Now: now, After: idle + s.UpdateEvery + max(s.Lateness, s.CloudLateness) + s.Settle + rollupSlack}
}

// What an hour of the roll-up was found to be.
const (
	rollupAgrees    = "agrees"
	rollupDiffers   = "differs"
	rollupRepaired  = "repaired"
	rollupUnsettled = "unsettled"
)

// checkRollup compares the hours from from on and before before and, with repair, makes those anew
// that differ; then the days with their hours. told hears of each hour, and of each day that differs.
func checkRollup(ctx context.Context, db *sink.ClickHouse, when sink.Settling, from, before flow.Time, repair bool, told func(sink.RollupHour, string)) error {
	hours, err := db.RollupHours(ctx, from, before)
	if err != nil {
		return err
	}
	for _, hour := range hours {
		h, err := db.CompareHour(ctx, hour, when)
		if err != nil {
			return err
		}
		switch {
		case h.Unsettled != "":
			told(h, rollupUnsettled)
		case h.Differ == 0:
			told(h, rollupAgrees)
		case !repair:
			told(h, rollupDiffers)
		default:
			now, err := db.RebuildHour(ctx, h, when)
			if err != nil {
				return err
			}
			if now.Differ > 0 { // somebody wrote meanwhile: the next check finds it settled or not
				told(now, rollupDiffers)
			} else {
				told(h, rollupRepaired)
			}
		}
	}
	days, err := db.CompareDays(ctx, from, before, when.Now)
	if err != nil {
		return err
	}
	for _, d := range days {
		h := sink.RollupHour{Hour: d.Day, Differ: d.Differ, Unsettled: "the day differs from its hours"}
		if !repair {
			told(h, rollupDiffers)
			continue
		}
		if err := db.RebuildDay(ctx, d, when.Now); err != nil {
			return err
		}
		told(h, rollupRepaired)
	}
	return nil
}

// nightly checks the roll-up once a day.
type nightly struct {
	cfg   config
	log   *slog.Logger
	hours *prometheus.CounterVec
	ended prometheus.Gauge
	done  flow.Time // the time that was due last, 0 before the first look
}

func newNightly(cfg config, log *slog.Logger, reg prometheus.Registerer) *nightly {
	n := &nightly{cfg: cfg, log: log,
		hours: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_rollup_hours_total",
			Help: "Hours of the roll-up that the nightly check compared with their sessions, by result: agrees, repaired, unsettled (something may still change it), differs (it did so again after it was made anew)."}, []string{"result"}),
		ended: prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_rollup_check_timestamp_seconds",
			Help: "When the nightly check of the roll-up last came to its end, in seconds since 1970; 0 if it did not since the start."}),
	}
	for _, result := range []string{rollupAgrees, rollupDiffers, rollupRepaired, rollupUnsettled} {
		n.hours.WithLabelValues(result)
	}
	if reg != nil {
		reg.MustRegister(n.hours, n.ended)
	}
	return n
}

// look checks if the time of day has come since the look before; a check that failed comes again with
// the next look.
func (n *nightly) look(ctx context.Context, db *sink.ClickHouse, now flow.Time) {
	at, ok, err := n.cfg.ClickHouse.Rollup.At()
	if !ok || err != nil {
		return
	}
	day := 24 * flow.Hour
	offset := flow.Time(at / time.Millisecond)
	due := (now-offset)/day*day + offset
	if n.done == 0 || due <= n.done {
		n.done = max(n.done, due)
		return
	}
	from := (now - flow.Time(n.cfg.ClickHouse.Rollup.Days)*day) / flow.Hour * flow.Hour
	err = checkRollup(ctx, db, settling(n.cfg, now), from, now, true, func(h sink.RollupHour, result string) {
		n.hours.WithLabelValues(result).Inc()
		switch result {
		case rollupRepaired:
			n.log.Warn("an hour of the roll-up differed from its sessions and was made anew", "hour", h.Hour, "edges", h.Differ, "sessions", h.Sessions, "counted", h.Counted)
		case rollupDiffers:
			n.log.Warn("an hour of the roll-up differs from its sessions again", "hour", h.Hour, "edges", h.Differ)
		case rollupUnsettled:
			n.log.Debug("an hour of the roll-up may still change", "hour", h.Hour, "why", h.Unsettled)
		}
	})
	if err != nil {
		if ctx.Err() == nil {
			n.log.Warn("the roll-up could not be compared with its sessions; it is tried again in some minutes", "error", err)
		}
		return
	}
	n.done = due
	n.ended.Set(float64(now) / 1000)
}

func rollupCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rollup",
		Short: "Compare the hourly roll-up with the sessions it was made of, and make hours anew",
		Long: `The hourly roll-up (edges, exception_use and what dashboards ask) is added up from what each session adds.
check recomputes hours from the sessions, the newest version of each that stands by itself, and says where the two
differ; rebuild makes an hour anew. What it writes are the differences, in one insert: whoever asks sees the hour
as it was or as it is. An hour that something may still change, or whose sessions have left, stays as it is. The
service does this by itself every night (clickhouse.rollup).`,
	}
	cmd.AddCommand(rollupCheckCommand(), rollupRebuildCommand())
	return cmd
}

func rollupCheckCommand() *cobra.Command {
	var where clientFlags
	var days int
	var repair, all bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say which hours differ from their sessions; with --repair make them anew",
		Example: `  postern rollup check -c postern.yaml --days 7
  postern rollup check -c postern.yaml --days 30 --repair`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, log, err := where.load()
			if err != nil {
				return err
			}
			if days < 1 || days > 400 {
				return fmt.Errorf("--days %d: it must be from 1 to 400", days)
			}
			return withClickHouse(cmd.Context(), cfg, log, func(ctx context.Context, db *sink.ClickHouse) error {
				now := wallClock()
				return rollupReport(cmd.OutOrStdout(), all, func(told func(sink.RollupHour, string)) error {
					return checkRollup(ctx, db, settling(cfg, now), (now-flow.Time(days)*24*flow.Hour)/flow.Hour*flow.Hour, now, repair, told)
				})
			})
		},
	}
	where.add(cmd)
	cmd.Flags().IntVar(&days, "days", 7, "how many days back")
	cmd.Flags().BoolVar(&repair, "repair", false, "make hours that differ anew")
	cmd.Flags().BoolVar(&all, "all", false, "list the hours that agree, too")
	return cmd
}

func rollupRebuildCommand() *cobra.Command {
	var where clientFlags
	var at string
	cmd := &cobra.Command{
		Use:     "rebuild --hour TIME",
		Short:   "Make one hour of the roll-up anew",
		Example: `  postern rollup rebuild -c postern.yaml --hour 2026-11-22T14:00:00Z`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			hour, err := time.Parse(time.RFC3339, at)
			if err != nil || !hour.Equal(hour.Truncate(time.Hour)) {
				return fmt.Errorf("--hour %q is no full hour; write it as 2026-11-22T14:00:00Z", at)
			}
			cfg, log, err := where.load()
			if err != nil {
				return err
			}
			return withClickHouse(cmd.Context(), cfg, log, func(ctx context.Context, db *sink.ClickHouse) error {
				when := settling(cfg, wallClock())
				was, err := db.CompareHour(ctx, flow.TimeOf(hour), when)
				if err != nil {
					return err
				}
				now, err := db.RebuildHour(ctx, was, when)
				switch out := cmd.OutOrStdout(); {
				case errors.Is(err, sink.ErrUnsettled):
					return fmt.Errorf("the hour stays as it is: %s", was.Unsettled)
				case err != nil:
					return err
				case was.Differ == 0:
					fmt.Fprintf(out, "%s agrees: %d sessions, %d edges\n", was.Hour, was.Sessions, was.Edges)
				case now.Differ > 0:
					return fmt.Errorf("%d edges differ after the hour was made anew: something else writes to it; try again later", now.Differ)
				default:
					fmt.Fprintf(out, "%s is made anew: %d of %d edges differed; %d sessions and %d bytes are counted, before %d and %d\n",
						was.Hour, was.Differ, was.Edges, now.Counted, now.Counts, was.Counted, was.Counts)
				}
				return nil
			})
		},
	}
	where.add(cmd)
	cmd.Flags().StringVar(&at, "hour", "", "when the hour begins, in RFC 3339, such as 2026-11-22T14:00:00Z")
	_ = cmd.MarkFlagRequired("hour")
	return cmd
}

// rollupReport prints what do tells: the hours that do not agree, or all, and how many there are of each.
// It is an error if one differs in the end.
func rollupReport(w io.Writer, all bool, do func(told func(sink.RollupHour, string)) error) error {
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	t.AppendHeader(table.Row{"hour", "", "sessions", "counted", "bytes", "counted", "edges", "differ", "wider", "why"})
	count := map[string]int{}
	err := do(func(h sink.RollupHour, result string) {
		count[result]++
		if all || result != rollupAgrees {
			t.AppendRow(table.Row{h.Hour, result, h.Sessions, h.Counted, h.Bytes, h.Counts, h.Edges, h.Differ, h.Wider, h.Unsettled})
		}
	})
	if t.Length() > 0 {
		fmt.Fprintln(w, t.Render())
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "%d hours agree, %d were made anew, %d differ, %d may still change\n", count[rollupAgrees], count[rollupRepaired], count[rollupDiffers], count[rollupUnsettled])
	if count[rollupDiffers] > 0 {
		return fmt.Errorf("%d hours of the roll-up differ from their sessions; --repair makes them anew", count[rollupDiffers])
	}
	return nil
}
