package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"github.com/postern/postern/ingest/kafka"
)

func kafkaCommand() *cobra.Command {
	var where kafkaFlags
	cmd := &cobra.Command{
		Use:   "kafka",
		Short: "Our topics in Kafka: create them, divide flows anew, look after what could not be read",
	}
	cmd.PersistentFlags().StringVarP(&where.config, "config", "c", "", "configuration file")
	cmd.AddCommand(kafkaInitCommand(&where), kafkaPartitionsCommand(&where), kafkaDeadCommand(&where))
	return cmd
}

// kafkaFlags are how a command finds the cluster.
type kafkaFlags struct{ config string }

// with runs do with a connection to the cluster of the configuration.
func (f *kafkaFlags) with(do func(config, *kafka.Client) error) error {
	cfg, err := loadConfig(f.config)
	if err != nil {
		return err
	}
	if !cfg.Kafka.Enabled() {
		return errNoKafka
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	client, err := kafka.Open(cfg.Kafka, resolveSecret, kafka.Options{Logger: log})
	if err != nil {
		return fmt.Errorf("kafka.%w", err)
	}
	return errors.Join(do(cfg, client), client.Close())
}

func kafkaInitCommand(where *kafkaFlags) *cobra.Command {
	var plan, commands bool
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Create our topics",
		Long: `Creates the topics that do not exist, with partitions, replicas and settings as the configuration has them.
A topic that exists is never changed; where it differs, it is said how.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			say := func(line string) { fmt.Fprintln(out, line) }
			return where.with(func(cfg config, client *kafka.Client) error {
				topics := kafka.Plan(cfg.Kafka)
				if commands {
					for _, t := range topics {
						say(t.Command(cfg.Kafka.Brokers[0]))
					}
				}
				if !plan {
					if commands {
						return nil
					}
					return client.Apply(cmd.Context(), topics, say)
				}
				for _, t := range topics {
					fmt.Fprint(out, t)
				}
				missing, err := client.Missing(cmd.Context(), topics, say)
				if err != nil {
					fmt.Fprintln(cmd.ErrOrStderr(), "which of them exist is not known:", err)
					return nil
				}
				for _, t := range missing {
					say(t.Name + ": would be created")
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&plan, "plan", false, "show what would be created and what exists; change nothing")
	cmd.Flags().BoolVar(&commands, "commands", false, "print the commands of Kafka's own tool that create the topics; change nothing")
	cmd.MarkFlagsMutuallyExclusive("plan", "commands")
	return cmd
}

func kafkaDeadCommand(where *kafkaFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dead",
		Short: "Values that could not be read, and putting them back",
		Long: `A value that a detector or forwarder cannot read is put on the dead-letter topic, with the reason and where it stood.
It stays there until the topic's retention removes it, replayed or not.`,
	}
	cmd.AddCommand(kafkaDeadListCommand(where), kafkaDeadShowCommand(where), kafkaDeadReplayCommand(where))
	return cmd
}

// errEnough stops reading dead letters before their end.
var errEnough = errors.New("enough")

func kafkaDeadListCommand(where *kafkaFlags) *cobra.Command {
	var from int64
	var limit int
	cmd := &cobra.Command{
		Use: "list", Short: "List dead letters, oldest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 {
				return fmt.Errorf("--limit is %d; it must be at least 1", limit)
			}
			t := table.NewWriter()
			t.SetStyle(table.StyleLight)
			t.Style().Format.Header = text.FormatDefault
			t.AppendHeader(table.Row{"letter", "topic", "partition", "offset", "time", "reason"})
			var next int64
			err := where.with(func(_ config, client *kafka.Client) (err error) {
				next, err = client.DeadLetters(cmd.Context(), from, func(at int64, d kafka.DeadLetter) error {
					if t.Length() >= limit {
						return errEnough
					}
					var when string
					if !d.Time.IsZero() {
						when = d.Time.UTC().Format(time.RFC3339)
					}
					t.AppendRow(table.Row{at, d.Topic, d.Partition, d.Offset, when, oneLine(d.Reason)})
					return nil
				})
				return err
			})
			more := errors.Is(err, errEnough)
			if err != nil && !more {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), t.Render())
			if more {
				fmt.Fprintf(cmd.OutOrStdout(), "there are more; go on with --from %d\n", next)
			}
			return nil
		},
	}
	cmd.Flags().Int64Var(&from, "from", 0, "begin with this letter")
	cmd.Flags().IntVar(&limit, "limit", 1000, "show so many at most")
	return cmd
}

// oneLine makes text that may hold bytes of a stranger safe for a terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return utf8.RuneError
		}
		return r
	}, s)
}

// shownLetter is a dead letter as JSON; bytes are base64.
type shownLetter struct {
	Letter    int64         `json:"letter"`
	Topic     string        `json:"topic"`
	Partition int           `json:"partition"`
	Offset    int64         `json:"offset"`
	Time      time.Time     `json:"time,omitzero"`
	Reason    string        `json:"reason"`
	Key       []byte        `json:"key"`
	Value     []byte        `json:"value"`
	Headers   []shownHeader `json:"headers,omitempty"`
	Cut       int           `json:"cut,omitempty"` // bytes that are missing
}

type shownHeader struct {
	Key   string `json:"key"`
	Value []byte `json:"value"`
}

func kafkaDeadShowCommand(where *kafkaFlags) *cobra.Command {
	return &cobra.Command{
		Use: "show LETTER…", Short: "Print dead letters in full, as JSON with bytes in base64", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			letters, err := letterNumbers(args)
			if err != nil {
				return err
			}
			enc := json.NewEncoder(cmd.OutOrStdout())
			enc.SetIndent("", "  ")
			return where.with(func(_ config, client *kafka.Client) error {
				for _, at := range letters {
					d, err := client.DeadLetter(cmd.Context(), at)
					if err != nil {
						return err
					}
					s := shownLetter{at, d.Topic, d.Partition, d.Offset, d.Time, d.Reason, d.Key, d.Value, nil, d.Cut}
					for _, h := range d.Headers {
						s.Headers = append(s.Headers, shownHeader(h))
					}
					if err := enc.Encode(s); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

func letterNumbers(args []string) ([]int64, error) {
	numbers := make([]int64, len(args))
	for i, a := range args {
		n, err := strconv.ParseInt(a, 10, 64)
		if err != nil || n < 0 {
			return nil, fmt.Errorf("%q is no letter; give a number of the first column of `postern kafka dead list`", a)
		}
		numbers[i] = n
	}
	return numbers, nil
}

func kafkaDeadReplayCommand(where *kafkaFlags) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "replay LETTER… | --all", Short: "Put values back behind the partition they stood in",
		Long: `Puts each value back behind its topic's partition, as it was, for those who read the topic to read it again. The letter stays
on the dead-letter topic until its retention ends; what is replayed twice is read twice. With --all a value of which there are
several letters, because a range was worked on again, is put back once.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return errors.New("name the letters to replay, or say --all")
			}
			letters, err := letterNumbers(args)
			if err != nil {
				return err
			}
			return where.with(func(_ config, client *kafka.Client) error {
				r := replaying{client: client, cmd: cmd}
				if all {
					err = r.all(cmd.Context())
				} else {
					err = r.some(cmd.Context(), letters)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "replayed: %d\n", r.done)
				if err == nil && r.failed > 0 {
					err = fmt.Errorf("letters that could not be replayed: %d", r.failed)
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "replay every dead letter")
	return cmd
}

// replaying puts dead letters back.
type replaying struct {
	client       *kafka.Client
	cmd          *cobra.Command
	done, failed int
}

func (r *replaying) all(ctx context.Context) error {
	type place struct {
		topic     string
		partition int
		offset    int64
	}
	seen := map[place]bool{}
	_, err := r.client.DeadLetters(ctx, 0, func(at int64, d kafka.DeadLetter) error {
		p := place{d.Topic, d.Partition, d.Offset}
		if seen[p] {
			return nil
		}
		seen[p] = true
		return r.one(ctx, at, d)
	})
	return err
}

func (r *replaying) some(ctx context.Context, letters []int64) error {
	for _, at := range letters {
		d, err := r.client.DeadLetter(ctx, at)
		if err != nil {
			return err
		}
		if err := r.one(ctx, at, d); err != nil {
			return err
		}
	}
	return nil
}

// one puts a letter back. What stands in the way of this one alone is told and counted.
func (r *replaying) one(ctx context.Context, at int64, d kafka.DeadLetter) error {
	offset, err := r.client.ReplayDead(ctx, d)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		r.failed++
		fmt.Fprintf(r.cmd.ErrOrStderr(), "letter %d: %v\n", at, err)
	default:
		r.done++
		fmt.Fprintf(r.cmd.OutOrStdout(), "letter %d: offset %d of %s/%d is offset %d now\n", at, d.Offset, d.Topic, d.Partition, offset)
	}
	return nil
}
