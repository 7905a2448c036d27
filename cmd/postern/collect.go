package main

import (
	"errors"
	"log/slog"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/kafka"
)

func collectCommand() *cobra.Command {
	return roleCommand(&cobra.Command{
		Use:   "collect -c postern.yaml",
		Short: "Receive flows and hand them on through Kafka",
		Long: `Runs the UDP listeners, the spool and decoding, and writes what they give to the flows topic,
where detectors read it. While Kafka is away flows wait in the spool on disk and go on in
order when it is back. Nothing is judged here and no policy is read.`,
	}, func(cfg config, log *slog.Logger) (role, error) { return newCollector(cfg, log) })
}

// errNoKafka is a role that needs Kafka without one.
var errNoKafka = errors.New("kafka.brokers is empty; name at least one broker, such as kafka-1.example.net:9092")

// newCollector makes a service that ends behind decoding.
func newCollector(cfg config, log *slog.Logger) (*service, error) {
	if !cfg.Kafka.Enabled() {
		return nil, errNoKafka
	}
	s := &service{cfg: cfg, log: log, registry: newRegistry(), names: flow.NewNames(0), saved: checkpoints{filepath.Join(cfg.Data, "state")}}
	client, err := kafka.Open(cfg.Kafka, resolveSecret, kafka.Options{Logger: log, Metrics: s.registry})
	if err != nil {
		return nil, err
	}
	s.store = newFlowTopic(client, s.names, log, func() [16]byte { return s.spool.ID() },
		filepath.Join(s.saved.dir, "division.json"), func() bool { return !s.spool.Behind() })
	return s, nil
}
