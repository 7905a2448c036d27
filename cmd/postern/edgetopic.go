package main

import (
	"context"
	"errors"
	"fmt"

	kgo "github.com/segmentio/kafka-go"

	"github.com/postern/postern/detect"
	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/kafka"
)

// Whoever works on a partition of the flows topic sees the sessions of its pairs, and the
// detectors of behaviour look at the whole estate. What they need of it is thin, so it goes
// through partition 0 of the edges topic, and whoever has that one looks at all of it:
//
//	flows/0 ─▶ contacts ─┐
//	flows/1 ─▶ contacts ─┼▶ edges/0 ─▶ behaviour ─▶ findings
//	flows/2 ─▶ contacts ─┘
//
// A range's digest is on the topic before the range is closed. A range that is repeated makes
// the same digest under the same number, and whoever reads it passes over what it has.

// headerDigest says of a digest what [kafka.Header] says of flows: producer, partition of the
// flows topic, how many there are, and number. Its key is the group.
const headerDigest = "of"

// Numbers of a digest: the range, the part of it.
const partBits = 20

const (
	// digestContacts is how many contacts a value holds at most, some 50 kB. Under the same
	// number there must be the same ones, so neither hangs on the configuration.
	digestContacts = 48
	// digestCounts is how many counts of windows it holds at most, of about 100 bytes each.
	digestCounts = 256
	// digestSize bounds a value: what is larger because of long names is halved. It is less than
	// the least that kafka.maxMessage may be.
	digestSize = 56 << 10
	// silentFor is how far time goes on, in milliseconds, before a partition without contacts
	// says so: until it does nothing that settled meanwhile elsewhere is looked at.
	silentFor = flow.Time(5000)
)

// publish puts what a range has to tell to the detectors of behaviour on the edges topic.
func (w *partition) publish(ctx context.Context, u unit, d *detect.Digest) error {
	if len(d.Contacts)+d.Counts() == 0 && d.Until < w.kept.Told+silentFor {
		return nil
	}
	h := kafka.Header{Producer: w.producer(), Partition: uint32(w.a.Partition), Partitions: uint32(w.partitions), Seq: u.number << partBits}
	topic, limit := w.cfg.Kafka.Topic(kafka.TopicEdges), int(w.client.Config().MaxMessage)/2
	var messages []kafka.Message
	size := 0
	send := func() error {
		_, err := w.client.Produce(ctx, topic, 0, messages...)
		messages, size = messages[:0], 0
		return err
	}
	var add func(part detect.Digest) error
	add = func(part detect.Digest) error {
		contacts, counts := len(part.Contacts), part.Counts()
		if contacts <= digestContacts && counts <= digestCounts {
			if value := part.Encode(w.names); contacts+counts <= 1 || len(value) <= digestSize {
				if size += len(value); size > limit && len(messages) > 0 {
					if err := send(); err != nil {
						return err
					}
					size = len(value)
				}
				of := fmt.Appendf(nil, "%x %d %d %d", h.Producer, h.Partition, h.Partitions, h.Seq)
				messages = append(messages, kafka.Message{Key: []byte(w.cfg.Kafka.Group), Value: value, Headers: []kgo.Header{{Key: headerDigest, Value: of}}})
				if h.Seq++; h.Seq>>partBits != u.number {
					return fmt.Errorf("the digest of range %d has more than %d parts", u.number, 1<<partBits-1)
				}
				return nil
			}
			contacts, counts = (contacts+1)/2, counts/2
		}
		first, rest := part.Cut(min(contacts, digestContacts), min(counts, digestCounts)) // only the last says how far it goes
		if err := add(first); err != nil {
			return err
		}
		return add(rest)
	}
	if err := add(*d); err != nil {
		return err
	}
	if err := send(); err != nil {
		return err
	}
	w.kept.Told = max(w.kept.Told, d.Until)
	return nil
}

// digestOf reads where a digest stands among the others of its producer.
func digestOf(r *kafka.Record) (h kafka.Header, err error) {
	for _, each := range r.Headers {
		if each.Key == headerDigest {
			var producer []byte
			if _, err = fmt.Sscanf(string(each.Value), "%x %d %d %d", &producer, &h.Partition, &h.Partitions, &h.Seq); err == nil && len(producer) != len(h.Producer) {
				err = fmt.Errorf("a producer of %d bytes", len(producer))
			}
			if err != nil {
				return h, fmt.Errorf("the header %q is %.100q: %w", headerDigest, each.Value, err)
			}
			copy(h.Producer[:], producer)
			return h, nil
		}
	}
	return h, errors.New("a digest without a header that says of which partition it is")
}

// buildEdges makes the stages of partition 0 of the edges topic.
func (w *partition) buildEdges(set stageSettings, cfg *pipelineConfig) (err error) {
	w.pin = &pinned{w.history}
	cfg.behaviour, err = detect.NewBehaviour(set.Detect, w.partitions, detect.Versions{History: w.pin}, w.names, w.reg)
	cfg.store, cfg.blocks = w.rows, w.blocks
	w.take = w.takeDigest
	return err
}

// takeDigest takes a value of the edges topic in.
func (w *partition) takeDigest(ctx context.Context, r *kafka.Record) error {
	if string(r.Key) != w.cfg.Kafka.Group {
		return nil // another group reads all flows for itself
	}
	h, err := digestOf(r)
	var d *detect.Digest
	if err == nil {
		d, err = detect.DecodeDigest(r.Value, w.names)
	}
	if err != nil {
		return w.in.dead(ctx, r, err)
	}
	if !w.fresh(r, &h) {
		w.met.duplicates.Inc()
		return nil
	}
	w.met.values.Inc()
	from := int(h.Partition)
	if int(h.Partitions) != w.partitions || from >= w.partitions {
		// What was told before pairs were divided anew: how far a partition of that division was
		// says nothing of one of this.
		from, d.Until = from%w.partitions, 0
	}
	w.pipe.behaviour.Take(from, d)
	return nil
}

// isEdges says whether a topic is that of the contacts.
func (d *detection) isEdges(topic string) bool { return topic == d.cfg.Kafka.Topic(kafka.TopicEdges) }

// idle has nothing to do until the partition is given away or the process stops.
func idle(ctx context.Context, a *kafka.Assignment) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-a.Stopping:
		return nil
	}
}
