package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"github.com/postern/postern/sink/siem"
)

func outboxCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "outbox",
		Short: "Findings that wait for a receiver, and those that were given up",
		Long: `Each receiver has an outbox in the data directory. An event that could not be delivered in all its attempts
becomes a dead letter: it is kept with the reason until it is replayed or dropped. The commands work beside a
running service, which notices a replay by itself.`,
	}
	var where clientFlags
	var target string
	cmd.PersistentFlags().StringVarP(&where.config, "config", "c", "", "configuration file")
	cmd.PersistentFlags().StringVar(&where.data, "data", "", "data directory, instead of the configuration's")
	cmd.PersistentFlags().StringVar(&target, "target", "", "only this receiver")

	// each runs do for every receiver that was asked for.
	each := func(do func(dir, target string) error) error {
		cfg, _, err := where.load()
		if err != nil {
			return err
		}
		targets, err := siem.OutboxTargets(outboxDir(cfg))
		if err != nil {
			return err
		}
		found := false
		for _, t := range targets {
			if target == "" || t == target {
				found = true
				if err := do(outboxDir(cfg), t); err != nil {
					return err
				}
			}
		}
		if target != "" && !found {
			return fmt.Errorf("there is no outbox for a receiver %q in %s", target, outboxDir(cfg))
		}
		return nil
	}

	list := &cobra.Command{
		Use: "list", Short: "List what waits and what was given up", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			t := table.NewWriter()
			t.SetStyle(table.StyleLight)
			t.Style().Format.Header = text.FormatDefault
			t.AppendHeader(table.Row{"receiver", "event", "state", "since", "attempts", "last answer"})
			err := each(func(dir, name string) error {
				queued, err := siem.QueuedEvents(dir, name)
				if err != nil {
					return err
				}
				for _, q := range queued {
					t.AppendRow(table.Row{name, q.ID, "waiting", q.Time, q.Attempts, q.Reason})
				}
				dead, err := siem.ListDeadLetters(dir, name)
				if err != nil {
					return err
				}
				for _, d := range dead {
					t.AppendRow(table.Row{name, d.ID, "given up", d.Time, d.Attempts, d.Reason})
				}
				return nil
			})
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), t.Render())
			return nil
		},
	}
	show := &cobra.Command{
		Use: "show EVENT…", Short: "Print dead letters in full, as JSON", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, ids []string) error {
			enc := json.NewEncoder(cmd.OutOrStdout())
			enc.SetIndent("", "  ")
			return each(func(dir, name string) error {
				dead, err := siem.ListDeadLetters(dir, name, ids...)
				for i := range dead {
					err = errors.Join(err, enc.Encode(dead[i]))
				}
				return err
			})
		},
	}
	cmd.AddCommand(list, show,
		deadLetterCommand("replay", "Put dead letters back in line; without ids, all of them", each, siem.ReplayDeadLetters),
		deadLetterCommand("drop", "Delete dead letters; --all for all of them", each, siem.DropDeadLetters))
	return cmd
}

// deadLetterCommand is a command that does something to dead letters by event id.
func deadLetterCommand(name, short string, each func(func(dir, target string) error) error,
	do func(dir, target string, ids ...string) (int, error),
) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: name + " [EVENT…]", Short: short,
		RunE: func(cmd *cobra.Command, ids []string) error {
			if name == "drop" && len(ids) == 0 && !all {
				return errors.New("name the events to delete, or say --all")
			}
			total := 0
			err := each(func(dir, target string) error {
				n, err := do(dir, target, ids...)
				total += n
				return err
			})
			fmt.Fprintf(cmd.OutOrStdout(), "dead letters: %d\n", total)
			return err
		},
	}
	if name == "drop" {
		cmd.Flags().BoolVar(&all, "all", false, "delete every dead letter")
	}
	return cmd
}
