package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/agent"
	"github.com/postern/postern/ingest/kafka"
)

// kafkaIngestConfig is how detectors read from Kafka.
type kafkaIngestConfig struct {
	// Topics are topics of others to read flows from, such as goflow2's.
	Topics []foreignTopic `yaml:"topics"`
	// Linger is how long a detector gathers values before it works on them, unless they fill a range before. Longer is fewer and larger inserts.
	Linger time.Duration `yaml:"linger"`
	// Range is how much of a partition is worked on at once, as it comes from the broker. What is worked on is in memory, for each partition.
	Range flow.Size `yaml:"range"`
}

// foreignTopic is a topic of others.
type foreignTopic struct {
	// Topic is its name.
	Topic string `yaml:"topic"`
	// Format is what its values are: goflow2-protobuf, goflow2-json, or a format of logs (docs/agents), whose lines a value holds one or several of.
	Format string `yaml:"format"`
}

func defaultKafkaIngest() kafkaIngestConfig {
	return kafkaIngestConfig{
		// A second is what the spool of serve gathers as well.
		Linger: time.Second,
		// 8 MiB are some 250,000 flows of our own topic: a handful of inserts.
		Range: 8 * flow.MiB,
	}
}

// Validate says what is wrong with c.
func (c kafkaIngestConfig) Validate(logs agent.Config) error {
	for i, t := range c.Topics {
		if t.Topic == "" {
			return fmt.Errorf("topics[%d].topic: is empty; name the topic", i)
		}
		if _, err := agent.NewDecoder(t.Format, logs, flow.NewNames(1)); err != nil && !slices.Contains(kafka.Formats(), t.Format) {
			return fmt.Errorf("topics[%d].format: %w; of goflow2 %v", i, err, kafka.Formats())
		}
	}
	if c.Linger < 10*time.Millisecond || c.Linger > time.Minute {
		return fmt.Errorf("linger: is %v; it must lie between 10ms and 1m", c.Linger)
	}
	if c.Range < 64*flow.KiB || c.Range > 256*flow.MiB {
		return fmt.Errorf("range: is %v; it must lie between 64KiB and 256MiB", c.Range)
	}
	return nil
}
