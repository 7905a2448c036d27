package broker

import (
	"context"
	"testing"
	"time"

	kgo "github.com/segmentio/kafka-go"
)

// Cluster is several nodes, each broker and controller, so that a majority of them
// carries on when one is lost.
type Cluster struct {
	t     testing.TB
	nodes []*Broker
}

// StartCluster runs n nodes (three or more, for one to be missed) for t, waits until
// they have found each other, and ends them when t is over.
func StartCluster(t testing.TB, n int, opts ...Option) *Cluster {
	t.Helper()
	need(t)
	nodes, err := prepare(t.TempDir(), n, opts)
	if err != nil {
		t.Fatalf("preparing a Kafka cluster: %v", err)
	}
	for _, b := range nodes {
		b.own(t)
		if err := b.start(); err != nil {
			t.Fatal(err)
		}
	}
	c := &Cluster{t: t, nodes: nodes}
	for _, b := range nodes {
		if err := ready(b.Addr(), n); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// Brokers are the nodes, running or not. Their own Restart waits for one broker to be
// known; [Cluster.Restart] waits for all that run.
func (c *Cluster) Brokers() []*Broker { return c.nodes }

// Addrs are the addresses of all nodes, running or not: what a client is configured with.
func (c *Cluster) Addrs() []string {
	var addrs []string
	for _, b := range c.nodes {
		addrs = append(addrs, b.Addr())
	}
	return addrs
}

// Kill ends node i (from 0) as a power cut would.
func (c *Cluster) Kill(i int) { c.nodes[i].Kill() }

// Stop asks node i (from 0) to end in order; it hands its partitions over first.
func (c *Cluster) Stop(i int) { c.nodes[i].Stop() }

// Restart runs node i (from 0) again and waits until it knows all nodes that run.
func (c *Cluster) Restart(i int) {
	b := c.nodes[i]
	b.Stop()
	err := b.start()
	if err == nil {
		err = ready(b.Addr(), len(c.running()))
	}
	if err != nil {
		c.t.Errorf("restarting node %d of the Kafka cluster: %v", i, err)
	}
}

func (c *Cluster) running() (nodes []*Broker) {
	for _, b := range c.nodes {
		if b.Pid() != 0 {
			nodes = append(nodes, b)
		}
	}
	return nodes
}

// CreateTopic is [Broker.CreateTopic], with up to three replicas of each partition.
func (c *Cluster) CreateTopic(t testing.TB, prefix string, partitions int, config ...kgo.ConfigEntry) string {
	t.Helper()
	running := c.running()
	if len(running) == 0 {
		t.Fatal("no node of the Kafka cluster runs")
	}
	name := running[0].Topic(t, prefix)
	if err := createTopic(running[0].Addr(), name, partitions, min(len(c.nodes), 3), config); err != nil {
		t.Fatalf("creating topic %s: %v", name, err)
	}
	return name
}

// Leader waits until a running node leads the partition and returns which (from 0).
func (c *Cluster) Leader(t testing.TB, topic string, partition int) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		for _, b := range c.running() {
			if i := c.leader(ctx, b, topic, partition); i >= 0 && c.nodes[i].Pid() != 0 {
				return i
			}
		}
		if ctx.Err() != nil {
			t.Fatalf("nobody leads partition %d of %s", partition, topic)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// leader is who leads by what one node knows, or -1.
func (c *Cluster) leader(ctx context.Context, b *Broker, topic string, partition int) int {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	client := newClient(b.Addr())
	defer closeClient(client)
	meta, err := client.Metadata(ctx, &kgo.MetadataRequest{Topics: []string{topic}})
	if err != nil {
		return -1
	}
	for _, t := range meta.Topics {
		for _, p := range t.Partitions {
			if p.ID == partition && p.Error == nil && p.Leader.ID >= 1 && p.Leader.ID <= len(c.nodes) {
				return p.Leader.ID - 1
			}
		}
	}
	return -1
}
