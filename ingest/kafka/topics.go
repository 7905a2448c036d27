package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	kgo "github.com/segmentio/kafka-go"
)

// TopicSpec is a topic as it should be.
type TopicSpec struct {
	Name        string
	Partitions  int
	Replication int
	// Config are settings of the topic, in the order they are shown.
	Config []TopicSetting
	// Why is one sentence for people.
	Why string
}

// TopicSetting is one setting of a topic.
type TopicSetting struct{ Key, Value string }

// Topics of a fixed retention.
const (
	findingsRetention = 7 * day  // what forward may be away for; it is thin
	deadRetention     = 14 * day // time for somebody to look, and to repair a decoder
	// stateLag keeps superseded checkpoints for a while. What a committed offset names is
	// superseded only sixteen ranges later; the rest is for whoever looks.
	stateLag = time.Hour
)

// Plan is all topics of ours as cfg wants them. It depends on nothing else.
func Plan(cfg Config) []TopicSpec {
	set := func(kv ...string) []TopicSetting {
		var s []TopicSetting
		for i := 0; i < len(kv); i += 2 {
			s = append(s, TopicSetting{kv[i], kv[i+1]})
		}
		// Kafka counts a batch's header in; messages are bounded before compression, so
		// none of ours is larger.
		return append(s,
			TopicSetting{"max.message.bytes", strconv.FormatInt(int64(cfg.MaxMessage)+batchOverhead, 10)},
			// Batches are stored as they come; anything else would make brokers compress
			// all flows once more.
			TopicSetting{"compression.type", "producer"})
	}
	ms := func(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }
	replicas := cfg.Replication
	// A write counts when this many replicas have it. One less than all lets a broker
	// restart; with two replicas or one that would be one alone.
	inSync := strconv.Itoa(max(1, replicas-1))
	topic := func(kind string, partitions int, config []TopicSetting, why string) TopicSpec {
		return TopicSpec{Name: cfg.Topic(kind), Partitions: partitions, Replication: replicas,
			Config: append(config, TopicSetting{"min.insync.replicas", inSync}), Why: why}
	}
	const segment = 256 << 20 // retention drops whole segments
	return []TopicSpec{
		topic(TopicFlows, cfg.Partitions, set("cleanup.policy", "delete", "retention.ms", ms(cfg.Retention), "segment.bytes", strconv.Itoa(segment)),
			"Batches of flows, divided by the pair of endpoints; kept as long as detectors may be away."),
		topic(TopicEdges, 1, set("cleanup.policy", "delete", "retention.ms", ms(cfg.Retention), "segment.bytes", strconv.Itoa(segment)),
			"What detectors pass on to the detectors of behaviour: first sightings, remote administration, failures. In one partition, since those look at the whole estate."),
		topic(TopicFindings, cfg.Partitions, set("cleanup.policy", "delete", "retention.ms", ms(findingsRetention), "segment.bytes", strconv.Itoa(64<<20)),
			"What is told to receivers; kept as long as `postern forward` may be away."),
		topic(TopicState, cfg.Partitions, set("cleanup.policy", "compact", "min.compaction.lag.ms", ms(stateLag), "max.compaction.lag.ms", ms(2*stateLag),
			// A segment is compacted only once it is no longer written to.
			"segment.bytes", strconv.Itoa(16<<20), "segment.ms", ms(6*time.Hour), "min.cleanable.dirty.ratio", "0.1", "delete.retention.ms", ms(stateLag)),
			"Detectors' checkpoints, the newest of each key, and all of the last hour; partition by partition as flows."),
		topic(TopicPolicy, 1, set("cleanup.policy", "compact", "segment.bytes", strconv.Itoa(16<<20)),
			"Policies in the order they came into force, under keys that never repeat: compaction removes none, and none expires."),
		topic(TopicFacts, 1, set("cleanup.policy", "compact", "min.compaction.lag.ms", ms(cfg.Retention), "segment.bytes", strconv.Itoa(16<<20)),
			"What sources say of who is behind addresses, for all detectors; under keys that name address and begin, so that no former owner is lost."),
		topic(TopicDead, 1, set("cleanup.policy", "delete", "retention.ms", ms(deadRetention), "segment.bytes", strconv.Itoa(64<<20)),
			"Values that could not be decoded, with the reason and where they stood, until somebody has looked."),
	}
}

// batchOverhead is the header of a batch of records.
const batchOverhead = 61 + 12

// String is the topic as `postern kafka init --plan` shows it: its name and shape,
// the reason, and the settings a line each.
func (t TopicSpec) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s, %s\n    %s\n", t.Name, count(t.Partitions, "partition"), count(t.Replication, "replica"), t.Why)
	for _, s := range t.Config {
		fmt.Fprintf(&b, "    %s=%s\n", s.Key, s.Value)
	}
	return b.String()
}

// Command is how Kafka's own tool makes the topic, for those who let nothing else
// make topics.
func (t TopicSpec) Command(broker string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "kafka-topics.sh --bootstrap-server %s --create --topic %s --partitions %d --replication-factor %d", broker, t.Name, t.Partitions, t.Replication)
	for _, s := range t.Config {
		fmt.Fprintf(&b, " --config %s=%s", s.Key, s.Value)
	}
	return b.String()
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.Itoa(n) + " " + what + "s"
}

// Apply creates the topics that do not exist, and waits until they can be used. One
// that exists is never changed; where it differs, report is told how, in a line. The
// error, if any, names all topics that could not be made.
func (c *Client) Apply(ctx context.Context, topics []TopicSpec, report func(line string)) error {
	missing, err := c.Missing(ctx, topics, report)
	if err != nil {
		return err
	}
	var create []kgo.TopicConfig
	for _, t := range missing {
		config := kgo.TopicConfig{Topic: t.Name, NumPartitions: t.Partitions, ReplicationFactor: t.Replication}
		for _, s := range t.Config {
			config.ConfigEntries = append(config.ConfigEntries, kgo.ConfigEntry{ConfigName: s.Key, ConfigValue: s.Value})
		}
		create = append(create, config)
	}
	var errs []error
	for try := 0; len(create) > 0; try++ {
		res, err := c.kafka.CreateTopics(ctx, &kgo.CreateTopicsRequest{Topics: create})
		if err != nil {
			return c.explain("create topics", err)
		}
		var again []kgo.TopicConfig
		for _, t := range create {
			switch err := res.Errors[t.Topic]; {
			case err == nil, try > 0 && errors.Is(err, kgo.TopicAlreadyExists): // by the attempt before
				if err := c.settle(ctx, t.Topic, t.NumPartitions); err != nil {
					errs = append(errs, err)
					continue
				}
				report(fmt.Sprintf("%s: created with %s", t.Topic, count(t.NumPartitions, "partition")))
			case errors.Is(err, kgo.TopicAlreadyExists):
				report(t.Topic + ": somebody else created it just now")
			case errors.Is(err, kgo.RequestTimedOut) && try < 3: // a controller that has only just been elected
				again = append(again, t)
			case errors.Is(err, kgo.InvalidReplicationFactor):
				errs = append(errs, fmt.Errorf("%w; set kafka.replication to at most the number of brokers", c.explain("create topic "+t.Topic, err)))
			default:
				errs = append(errs, c.explain("create topic "+t.Topic, err))
			}
		}
		create = again
	}
	return errors.Join(errs...)
}

// Missing gives those of the topics that do not exist. Of each that does, report is
// told in a line whether it is as it should be. Nothing is changed.
func (c *Client) Missing(ctx context.Context, topics []TopicSpec, report func(line string)) ([]TopicSpec, error) {
	existing, err := c.describe(ctx, topics)
	if err != nil {
		return nil, err
	}
	var missing []TopicSpec
	for _, t := range topics {
		if is, ok := existing[t.Name]; ok {
			c.compare(t, is, report)
		} else {
			missing = append(missing, t)
		}
	}
	return missing, nil
}

// settle waits until every partition of a new topic has a leader that knows of it.
func (c *Client) settle(ctx context.Context, topic string, partitions int) error {
	for p := range partitions {
		if _, _, err := c.Offsets(ctx, topic, p); err != nil {
			return fmt.Errorf("%w (the topic was created)", err)
		}
	}
	return nil
}

// describe is what exists of the topics.
func (c *Client) describe(ctx context.Context, topics []TopicSpec) (map[string]TopicSpec, error) {
	names := make([]string, len(topics))
	for i, t := range topics {
		names[i] = t.Name
	}
	c.Refresh() // a topic made by somebody else just now
	meta, err := c.kafka.Metadata(ctx, &kgo.MetadataRequest{Topics: names})
	if err != nil {
		return nil, c.explain("ask for our topics", err)
	}
	existing := map[string]TopicSpec{}
	var resources []kgo.DescribeConfigRequestResource
	for _, t := range meta.Topics {
		if errors.Is(t.Error, kgo.UnknownTopicOrPartition) {
			continue
		}
		if t.Error != nil && len(t.Partitions) == 0 {
			return nil, c.explain("ask for topic "+t.Name, t.Error)
		}
		is := TopicSpec{Name: t.Name, Partitions: len(t.Partitions)}
		for _, p := range t.Partitions {
			is.Replication = max(is.Replication, len(p.Replicas))
		}
		existing[t.Name] = is
		resources = append(resources, kgo.DescribeConfigRequestResource{ResourceType: kgo.ResourceTypeTopic, ResourceName: t.Name})
	}
	if len(resources) == 0 {
		return existing, nil
	}
	configs, err := c.kafka.DescribeConfigs(ctx, &kgo.DescribeConfigsRequest{Resources: resources})
	if err != nil {
		return nil, c.explain("ask for our topics' settings", err)
	}
	for _, r := range configs.Resources {
		if r.Error != nil {
			return nil, c.explain("ask for the settings of topic "+r.ResourceName, r.Error)
		}
		is := existing[r.ResourceName]
		for _, e := range r.ConfigEntries {
			is.Config = append(is.Config, TopicSetting{e.ConfigName, e.ConfigValue})
		}
		existing[r.ResourceName] = is
	}
	return existing, nil
}

// compare says where a topic is not as it should be.
func (c *Client) compare(want, is TopicSpec, report func(line string)) {
	var differs []string
	if is.Partitions != want.Partitions {
		differs = append(differs, fmt.Sprintf("%s instead of %d", count(is.Partitions, "partition"), want.Partitions))
	}
	if is.Replication != want.Replication {
		differs = append(differs, fmt.Sprintf("%s instead of %d", count(is.Replication, "replica"), want.Replication))
	}
	for _, s := range want.Config {
		if i := slices.IndexFunc(is.Config, func(x TopicSetting) bool { return x.Key == s.Key }); i < 0 {
			differs = append(differs, fmt.Sprintf("%s is not told, instead of %s", s.Key, s.Value))
		} else if v := is.Config[i].Value; v != s.Value {
			differs = append(differs, fmt.Sprintf("%s=%s instead of %s", s.Key, v, s.Value))
		}
	}
	if len(differs) == 0 {
		report(want.Name + ": exists, as planned")
		return
	}
	report(want.Name + ": exists and is left as it is, with " + strings.Join(differs, ", "))
}
