package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	kgo "github.com/segmentio/kafka-go"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/kafka"
)

// factTopic is what sources say, for all detectors: a topic of one partition. A fact's key is
// what it is about, so that compaction keeps the newest of each and no former owner of an
// address is lost; heartbeats have a key a quarter of an hour.
type factTopic struct {
	client *kafka.Client
	topic  string
	take   func([]flow.Fact, flow.Heartbeat) // nil: facts are told, not read
	log    *slog.Logger

	telling sync.Mutex

	mu   sync.Mutex
	next int64 // offset up to which it was read
}

func newFactTopic(client *kafka.Client, take func([]flow.Fact, flow.Heartbeat), log *slog.Logger) *factTopic {
	return &factTopic{client: client, topic: client.Config().Topic(kafka.TopicFacts), take: take, log: log}
}

// tell implements [identity.Tell]. A crash may leave the first of many facts behind; they are
// then told again under the same keys.
func (f *factTopic) tell(ctx context.Context, facts []flow.Fact, beat flow.Heartbeat) error {
	f.telling.Lock()
	defer f.telling.Unlock()
	known := wallClock()
	var batch []kafka.Message
	size := 0
	send := func() error {
		if len(batch) == 0 {
			return nil
		}
		_, err := f.client.Produce(ctx, f.topic, 0, batch...)
		batch, size = nil, 0
		return err
	}
	add := func(key string, t toldFacts) error {
		value, err := json.Marshal(t)
		if err != nil {
			return err
		}
		if size += len(key) + len(value) + 32; size > int(f.client.Config().MaxMessage)/2 {
			if err := send(); err != nil {
				return err
			}
			size = len(key) + len(value) + 32
		}
		batch = append(batch, kafka.Message{Key: []byte(key), Value: value})
		return nil
	}
	for i := range facts {
		facts[i].Known = known
		k := facts[i].Key()
		if err := add(fmt.Sprintf("fact/%s/%s/%s/%d/%s", k.Source, k.Addr, k.Subject, k.Since, k.Session), toldFacts{Facts: facts[i : i+1]}); err != nil {
			return err
		}
	}
	if beat.Source != "" {
		if err := add(fmt.Sprintf("beat/%s/%d", beat.Source, beat.At/flow.Time(15*time.Minute/time.Millisecond)), toldFacts{Beat: &beat}); err != nil {
			return err
		}
	}
	return send()
}

// sync reads everything that is in the topic at this moment.
func (f *factTopic) sync(ctx context.Context) error {
	_, end, err := f.client.Offsets(ctx, f.topic, 0)
	if err != nil {
		return err
	}
	for {
		f.mu.Lock()
		next := f.next
		f.mu.Unlock()
		if next >= end {
			return nil
		}
		if err := f.step(ctx); err != nil {
			return err
		}
	}
}

// told gives what the topic holds.
func (f *factTopic) told(ctx context.Context, take func([]flow.Fact)) error {
	return newFactTopic(f.client, func(facts []flow.Fact, _ flow.Heartbeat) { take(facts) }, f.log).sync(ctx)
}

// run reads what comes until ctx ends.
func (f *factTopic) run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := f.step(ctx); err != nil && ctx.Err() == nil {
			f.log.Warn("reading what is known of identities; trying again", "topic", f.topic, "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
	return nil
}

// step reads on.
func (f *factTopic) step(ctx context.Context) error {
	f.mu.Lock()
	next := f.next
	f.mu.Unlock()
	got, err := f.client.Fetch(ctx, f.topic, 0, next, 4<<20, time.Second)
	if errors.Is(err, kgo.OffsetOutOfRange) {
		var first int64
		if first, _, err = f.client.Offsets(ctx, f.topic, 0); err == nil {
			f.mu.Lock()
			f.next = first
			f.mu.Unlock()
		}
		return err
	}
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.next != next {
		return nil // somebody else read the same meanwhile
	}
	var facts []flow.Fact
	for i := range got.Records {
		r := &got.Records[i]
		if len(r.Value) == 0 {
			continue
		}
		var t toldFacts
		dec := json.NewDecoder(bytes.NewReader(r.Value))
		if err := dec.Decode(&t); err != nil {
			f.log.Error("what a source said cannot be read; it is passed over, as by all detectors", "topic", f.topic, "offset", r.Offset, "error", err)
			continue
		}
		facts = append(facts, t.Facts...)
		if t.Beat != nil { // it speaks of the facts before it
			f.take(facts, *t.Beat)
			facts = nil
		}
	}
	f.take(facts, flow.Heartbeat{})
	f.next = got.Next
	return nil
}
