package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	kgo "github.com/segmentio/kafka-go"

	"github.com/postern/postern/ingest/kafka"
	"github.com/postern/postern/policy"
)

// policyLog is the order in which all detectors bring policy versions into force: a
// topic of one partition. Whoever sees a new version in its folder puts it there,
// source and all; each applies what stands there, the first acceptance counting for
// all, and a range of flows is judged by the log up to a place that is recorded with it.
type policyLog struct {
	client *kafka.Client
	keeper *policyKeeper
	log    *slog.Logger
	topic  string
	ctx    context.Context // of the process: the keeper announces under it

	mu      sync.Mutex
	next    int64 // offset up to which the log was applied
	applied []appliedVersion
	stale   string // hash of what the folder held at the start, if the log had replaced it before
}

type appliedVersion struct {
	offset int64
	activation
}

// announcement is a value of the policy topic, compressed by zstd as a whole.
type announcement struct {
	activation
	Source json.RawMessage `json:"source"` // as [policy.Policy.Source] gives it
}

func newPolicyLog(client *kafka.Client, keeper *policyKeeper, log *slog.Logger) *policyLog {
	l := &policyLog{client: client, keeper: keeper, log: log, ctx: context.Background(), topic: client.Config().Topic(kafka.TopicPolicy)}
	keeper.append = l.announce
	return l
}

// announce puts a version into the log. The reader, ours and everybody's, applies it.
func (l *policyLog) announce(a activation) error {
	l.mu.Lock()
	if a.Hash != l.stale {
		l.stale = ""
	}
	stale := l.stale != ""
	l.mu.Unlock()
	if stale {
		return fmt.Errorf("version %s was replaced by another detector before this one started, as by a checkout that is behind: bring the folder up to date; "+
			"if the old policy is meant to come back, change a line of it (a comment is enough)", a.Hash)
	}
	_, source := l.keeper.versions()
	raw, err := source(a.Hash)
	if err != nil {
		return err
	}
	text, err := json.Marshal(announcement{a, raw})
	if err != nil {
		return err
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(l.ctx, time.Minute)
	defer cancel()
	if _, err = l.client.Produce(ctx, l.topic, 0, kafka.Message{Key: fmt.Appendf(nil, "%s@%d", a.Hash, a.Accepted), Value: enc.EncodeAll(text, nil)}); err != nil {
		return fmt.Errorf("%w: %w", errNotAppended, err)
	}
	return nil
}

// start says what the folder holds when the process starts. A version that the log has
// replaced is not brought back by a detector that was away meanwhile.
func (l *policyLog) start(hash string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := func(a appliedVersion) bool { return a.Hash == hash }
	if n := len(l.applied); n > 0 && !was(l.applied[n-1]) && slices.ContainsFunc(l.applied, was) {
		l.stale = hash
	}
}

// catchUp applies what the log holds at this moment.
func (l *policyLog) catchUp(ctx context.Context) error {
	_, end, err := l.client.Offsets(ctx, l.topic, 0)
	if err != nil {
		return err
	}
	for {
		l.mu.Lock()
		next := l.next
		l.mu.Unlock()
		if next >= end {
			break
		}
		if err := l.step(ctx); err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.applied); n > 0 {
		l.keeper.mu.Lock()
		l.keeper.latest = l.applied[n-1].Hash // what the others took already is not announced again
		l.keeper.mu.Unlock()
	}
	return nil
}

// run applies what comes until ctx ends.
func (l *policyLog) run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := l.step(ctx); err != nil && ctx.Err() == nil {
			l.log.Warn("reading the policy log; trying again", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
	return nil
}

// step reads on from where the log was applied to.
func (l *policyLog) step(ctx context.Context) error {
	l.mu.Lock()
	next := l.next
	l.mu.Unlock()
	f, err := l.client.Fetch(ctx, l.topic, 0, next, 4<<20, time.Second)
	if errors.Is(err, kgo.OffsetOutOfRange) {
		var first int64
		if first, _, err = l.client.Offsets(ctx, l.topic, 0); err == nil {
			l.mu.Lock()
			l.next = first
			l.mu.Unlock()
		}
	}
	if err != nil {
		return err
	}
	for i := range f.Records {
		if err := l.apply(&f.Records[i]); err != nil {
			return err
		}
	}
	l.mu.Lock()
	l.next = max(l.next, f.Next)
	l.mu.Unlock()
	return nil
}

// apply brings one announcement into force. What cannot be read is told and passed
// over, as by all detectors; what this disk refuses is tried again, since the others do
// not pass it over.
func (l *policyLog) apply(r *kafka.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.Offset < l.next {
		return nil // read again after one that was refused
	}
	a, err := parseAnnouncement(r.Value)
	switch {
	case err != nil:
		l.log.Error("a version in the policy log cannot be brought into force", "topic", l.topic, "offset", r.Offset, "error", err)
	case slices.ContainsFunc(l.applied, func(b appliedVersion) bool { return b.Hash == a.Hash && b.Accepted == a.Accepted }):
		// Produced a second time: what came between stays in force.
	default:
		if err := l.keeper.keep(a.Hash, a.Source); err != nil {
			return err
		}
		err := l.keeper.enter(a.activation)
		if _, disk := errors.AsType[*fs.PathError](err); disk {
			return err
		}
		if err != nil {
			l.log.Error("a version in the policy log cannot be brought into force", "topic", l.topic, "offset", r.Offset, "error", err)
			break
		}
		l.applied = append(l.applied, appliedVersion{r.Offset, a.activation})
	}
	l.next = r.Offset + 1
	return nil
}

// maxAnnouncement bounds a version's source, 64 MiB, against a value that unpacks to anything.
const maxAnnouncement = 64 << 20

func parseAnnouncement(value []byte) (announcement, error) {
	var a announcement
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxAnnouncement))
	if err != nil {
		return a, err
	}
	defer dec.Close()
	text, err := dec.DecodeAll(value, nil)
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal(text, &a); err != nil {
		return a, err
	}
	p, err := policy.ParseSource(a.Source)
	if err != nil {
		return a, err
	}
	if p.Hash() != a.Hash {
		return a, fmt.Errorf("the source's hash is %s, not %s as announced", p.Hash(), a.Hash)
	}
	return a, nil
}

// now is how far the log was applied, and the versions that gives.
func (l *policyLog) now() (next int64, versions *policy.History) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.next, l.keeper.history.Fork()
}

// until is the versions as they were when the log had been applied up to next. It waits
// until it is applied so far here too.
func (l *policyLog) until(ctx context.Context, next int64) (*policy.History, error) {
	for began := time.Now(); ; {
		at, _ := l.now()
		if at >= next {
			break
		}
		if time.Since(began) > 3*l.client.Config().Timeout {
			l.log.Error("the policy log ends before the place that a range was judged by; it is judged by what there is", "topic", l.topic, "place", next, "end", at)
			break
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	l.mu.Lock()
	var list []activation
	for _, a := range l.applied {
		if a.offset < next {
			list = append(list, a.activation)
		}
	}
	var all *policy.History
	if len(list) == len(l.applied) {
		all = l.keeper.history.Fork()
	}
	l.mu.Unlock()
	if all != nil {
		return all, nil
	}
	return l.keeper.historyOf(list)
}

// pinned is the policy that a partition's stages ask: the versions that the open
// range is judged by.
type pinned struct{ *policy.History }

func (p *pinned) set(h *policy.History) {
	if p != nil { // flows that are handed on are judged by nobody here
		p.History = h
	}
}
