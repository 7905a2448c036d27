package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/agent"
	"github.com/postern/postern/ingest/kafka"
)

func collectCommand() *cobra.Command {
	cmd := roleCommand(&cobra.Command{
		Use:   "collect -c postern.yaml [FILE…]",
		Short: "Receive flows, or read captures, and hand them on through Kafka",
		Long: `Runs the UDP listeners, the spool and decoding, and writes what they give to the flows topic,
where detectors read it. While Kafka is away flows wait in the spool on disk and go on in
order when it is back. Nothing is judged here and no policy is read.

With files (captures: pcap, pcapng, either in gzip; with --format logs, see decode) their flows are handed on instead, and the
command ends. Exporters' clocks are believed. A file that is handed on again, because the command was
interrupted or by mistake, is recognised by its content, as long as ingest.decode and the number of
partitions are the same.`,
	}, func(cfg config, log *slog.Logger) (role, error) { return newCollector(cfg, log) })
	var format string
	receive := cmd.RunE
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, files []string) error {
		if len(files) == 0 {
			return receive(cmd, files)
		}
		path, err := cmd.Flags().GetString("config")
		if err != nil {
			return err
		}
		return collectFiles(cmd.Context(), path, format, files, cmd.ErrOrStderr())
	}
	cmd.Flags().StringVar(&format, "format", "", "the files are logs of this format, or auto")
	return cmd
}

// collectFiles hands the flows of captures on.
func collectFiles(ctx context.Context, path, format string, files []string, stderr io.Writer) (err error) {
	cfg, err := loadConfig(path)
	if err != nil {
		return err
	}
	if !cfg.Kafka.Enabled() {
		return errNoKafka
	}
	r := &replayer{cfg: cfg, log: cfg.logger(), names: flow.NewNames(0), stderr: stderr, ledger: flow.Ledger{}, format: format}
	client, err := kafka.Open(cfg.Kafka, resolveSecret, kafka.Options{Logger: r.log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	n, err := client.Partitions(ctx, cfg.Kafka.Topic(kafka.TopicFlows))
	if err != nil {
		return err
	}
	settings, err := yaml.Marshal(cfg.Ingest.Decode)
	if format != "" {
		settings, err = yaml.Marshal(struct {
			Format string
			Logs   agent.Config
		}{format, cfg.Ingest.Logs.Decode})
	}
	if err != nil {
		return err
	}
	// Cut otherwise, a number would stand for other flows than it did before.
	source := &capturedFile{cuts: fmt.Sprintf("%d/%d/%s", n, cfg.Ingest.Spool.ChunkRows, settings)}
	if err := r.run(ctx, files, newDividedTopic(client, r.names, r.log, source.producer, n), source); err != nil {
		return err
	}
	if err := r.told(stderr); err != nil {
		return err
	}
	return r.ledger.Check()
}

// capturedFile is the file that is being handed on: a producer of its own.
type capturedFile struct{ input, cuts string }

func (c *capturedFile) producer() [16]byte { return producerOf(c.input + "/" + c.cuts) }

func (c *capturedFile) begin(_ context.Context, input, _ string) (flow.Time, string, error) {
	c.input = input
	return 1, "", nil
}

func (c *capturedFile) done(context.Context, string, string, flow.Time, uint64) error { return nil }

func (c *capturedFile) policyVersion(context.Context, string, flow.Time, []byte, string) error {
	return nil
}

// errNoKafka is a role that needs Kafka without one.
var errNoKafka = errors.New("kafka.brokers is empty; name at least one broker, such as kafka-1.example.net:9092")

// newCollector makes a service that ends behind decoding.
func newCollector(cfg config, log *slog.Logger) (*service, error) {
	if !cfg.Kafka.Enabled() {
		return nil, errNoKafka
	}
	s := &service{cfg: cfg, log: log, registry: newRegistry(), names: flow.NewNames(0), saved: checkpoints{filepath.Join(cfg.Data, "state")}, stopping: make(chan struct{})}
	client, err := kafka.Open(cfg.Kafka, resolveSecret, kafka.Options{Logger: log, Metrics: s.registry})
	if err != nil {
		return nil, err
	}
	s.store = newFlowTopic(client, s.names, log, func() [16]byte { return s.spool.ID() },
		filepath.Join(cfg.Data, "division.json"), func() (oldest, open uint64) { return s.spool.Segments() })
	return s, nil
}
