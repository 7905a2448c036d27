package main

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/sink/siem"
)

// receivers are all who are told of findings, each with what waits for it.
type receivers struct {
	cfg  config
	log  *slog.Logger
	reg  prometheus.Registerer
	list []receiver

	mu      sync.Mutex
	waiting int   // how many are telling and wait for room
	held    error // why they wait
}

// receiver is one of them.
type receiver struct {
	target *siem.Target
	outbox *siem.Outbox
}

// notice is an event to tell, with what decides who wants it.
type notice struct {
	finding *flow.Finding
	event   siem.Event
}

// newReceivers makes the receivers of a configuration; it opens nothing.
func newReceivers(cfg config, log *slog.Logger, reg prometheus.Registerer) (*receivers, error) {
	r := &receivers{cfg: cfg, log: log, reg: reg}
	for _, t := range cfg.Targets {
		target, err := siem.NewTarget(t, siem.TargetOptions{Secret: resolveSecret, Log: log, Reg: reg})
		if err != nil {
			return nil, err
		}
		r.list = append(r.list, receiver{target: target})
	}
	return r, nil
}

func outboxDir(cfg config) string { return filepath.Join(cfg.Data, "outbox") }

// open takes the outboxes.
func (r *receivers) open() (err error) {
	for i, t := range r.cfg.Targets {
		r.list[i].outbox, err = siem.OpenOutbox(outboxDir(r.cfg), t.Name, t.DeliveryConfig, r.cfg.Outbox, r.log, r.reg, nil)
		if err != nil {
			return errors.Join(err, r.close())
		}
	}
	return nil
}

// close gives the outboxes free, and what leads to the targets.
func (r *receivers) close() (err error) {
	for _, one := range r.list {
		if one.outbox != nil {
			err = errors.Join(err, one.outbox.Close())
		}
		err = errors.Join(err, one.target.Close())
	}
	return err
}

// run delivers what waits until ctx ends.
func (r *receivers) run(ctx context.Context) error {
	var g errgroup.Group
	for _, one := range r.list {
		g.Go(func() error { return one.outbox.Run(ctx, one.target) })
	}
	return g.Wait()
}

// flush waits until nothing is due any more.
func (r *receivers) flush(ctx context.Context) error {
	for _, one := range r.list {
		if err := one.outbox.Flush(ctx); err != nil {
			return err
		}
	}
	return nil
}

// tell has every receiver told of findings; see put.
func (r *receivers) tell(ctx context.Context, findings []*flow.Finding) error {
	var notices []notice
	for _, f := range findings {
		e, err := siem.NewEvent(f)
		if err != nil {
			return err
		}
		notices = append(notices, notice{f, e})
	}
	return r.put(ctx, notices)
}

// put puts events into the outbox of every receiver that wants them, and waits
// while one is full: findings are never dropped. Nobody waits for another's outbox.
func (r *receivers) put(ctx context.Context, notices []notice) error {
	wanted := make([][]siem.Event, len(r.list))
	for i, one := range r.list {
		for _, n := range notices {
			if one.target.Wants(n.finding) {
				wanted[i] = append(wanted[i], n.event)
			}
		}
		if len(wanted[i]) > 0 && one.outbox.Put(wanted[i]) == nil {
			wanted[i] = nil
		}
	}
	for i, one := range r.list {
		events := wanted[i]
		if len(events) == 0 {
			continue
		}
		waits := false
		_, err := backoff.Retry(ctx, func() (struct{}, error) {
			err := one.outbox.Put(events)
			waits = r.wait(waits, err)
			return struct{}{}, err
		}, backoff.WithBackOff(newBackOff()), backoff.WithMaxElapsedTime(0))
		r.wait(waits, nil) // also where ctx ended
		if err != nil {
			return err
		}
	}
	return nil
}

// wait takes note of who waits and why; nil is that it is over. Several may tell at a
// time, so the reason stands until none of them waits.
func (r *receivers) wait(waited bool, why error) (waits bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case why != nil && !waited:
		r.waiting++
	case why == nil && waited:
		r.waiting--
	}
	if why != nil || r.waiting == 0 {
		r.held = why
	}
	return why != nil
}

// full says why whoever tells has to wait at present, nil if nobody does.
func (r *receivers) full() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.held
}
