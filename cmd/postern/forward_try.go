package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/sink/siem"
)

func forwardTestCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "test -c postern.yaml TARGET",
		Short: "Send a sample to a target and say how that went",
		Long: `Sends a finding that says of itself that it is a test, once, past the outbox and past what the target
wants to be told, and prints what came back. Each call is an event of its own. It works beside a running service.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := loadConfig(path)
			if err != nil {
				return err
			}
			var names []string
			for _, t := range cfg.Targets {
				if t.Name == args[0] {
					return tryTarget(cmd, t, time.Now())
				}
				names = append(names, t.Name)
			}
			if len(names) == 0 {
				return errNoReceiver
			}
			return fmt.Errorf("there is no target %q; there are %s", args[0], strings.Join(names, ", "))
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", "", "configuration file")
	return cmd
}

// tryTarget sends the sample of a moment to a target.
func tryTarget(cmd *cobra.Command, cfg siem.TargetConfig, now time.Time) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	target, err := siem.NewTarget(cfg, siem.TargetOptions{Secret: resolveSecret, Log: log})
	if err != nil {
		return err
	}
	f := siem.Sample()
	f.ID = fmt.Sprintf("%016x", now.UnixMilli()) // an event of its own: a receiver knows repeats
	f.FirstSeen, f.LastSeen = flow.TimeOf(now), flow.TimeOf(now)
	e, err := siem.NewEvent(f)
	if err != nil {
		return errors.Join(err, target.Close())
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), 3*time.Minute)
	defer cancel()
	err = target.Send(ctx, &e)
	took := time.Since(now).Round(time.Millisecond)
	out := cmd.OutOrStdout()
	d, ok := errors.AsType[*siem.DeliveryError](err)
	switch {
	case err == nil:
		fmt.Fprintf(out, "%s: event %s was taken after %s\n", cfg.Name, e.ID, took)
		return target.Close()
	case ok && d.Response != "":
		err = fmt.Errorf("%s: event %s was not taken (%s): %w; it said: %s", cfg.Name, e.ID, took, err, d.Response)
	default:
		err = fmt.Errorf("%s: event %s was not taken (%s): %w", cfg.Name, e.ID, took, err)
	}
	return errors.Join(err, target.Close())
}
