package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/postern/postern/flow"
)

// role is what a process is: serve, collect, detect or forward.
type role interface {
	prometheus.Gatherer
	// run works until ctx ends, then brings what was begun to an end.
	run(ctx context.Context) error
	// ready says why the role cannot do its work, nil if it can.
	ready() error
	ledger() flow.Ledger
}

// roleCommand completes the command of a role.
func roleCommand(cmd *cobra.Command, make func(config, *slog.Logger) (role, error)) *cobra.Command {
	var path string
	cmd.Args = cobra.NoArgs
	cmd.Flags().StringVarP(&path, "config", "c", "", "configuration file; without one, the defaults, which are all on loopback")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := loadConfig(path)
		if err != nil {
			return err
		}
		r, err := make(cfg, cfg.logger())
		if err != nil {
			return err
		}
		return r.run(cmd.Context())
	}
	return cmd
}

// around does work until ctx ends, while what serves it goes on: that ends after the
// work, and ends the work if it fails.
func around(ctx context.Context, work func(context.Context) error, serving ...func(context.Context) error) error {
	last, endLast := context.WithCancel(context.WithoutCancel(ctx))
	defer endLast()
	g, gctx := errgroup.WithContext(last)
	for _, each := range serving {
		g.Go(func() error { return each(gctx) })
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	context.AfterFunc(gctx, stop)
	err := unlessEnded(work(ctx))
	endLast()
	return errors.Join(err, unlessEnded(g.Wait()))
}

// every does something again and again until ctx ends, first after one period.
func every(ctx context.Context, period time.Duration, do func()) error {
	t := time.NewTicker(period)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			do()
		}
	}
}

// allRoles is `postern serve` with Kafka: every role in one process, with a topic
// between each two. Others of any role can work beside it.
type allRoles struct {
	cfg   config
	log   *slog.Logger
	roles []namedRole
}

type namedRole struct {
	name string
	role
}

// newAllRoles puts the roles together. Findings are forwarded if there is a receiver.
func newAllRoles(cfg config, log *slog.Logger) (*allRoles, error) {
	all := &allRoles{cfg: cfg, log: log}
	cfg.Admin.Listen = "" // all answer at one address
	var errs []error
	add := func(name string, r role, err error) {
		all.roles, errs = append(all.roles, namedRole{name, r}), append(errs, err)
	}
	collector, err := newCollector(cfg, log.With("role", "collect"))
	add("collect", collector, err)
	detection, err := newDetection(cfg, log.With("role", "detect"))
	add("detect", detection, err)
	if len(cfg.Targets) > 0 {
		forwarder, err := newForwarder(cfg, log.With("role", "forward"))
		add("forward", forwarder, err)
	}
	return all, errors.Join(errs...)
}

// run runs the roles and answers operators until the last has ended.
func (a *allRoles) run(ctx context.Context) error {
	answering, err := openAdmin(&a.cfg, a, a.log)
	if err != nil {
		return err
	}
	return around(ctx, func(ctx context.Context) error {
		g, ctx := errgroup.WithContext(ctx)
		for _, r := range a.roles {
			g.Go(func() error {
				err := r.run(ctx)
				if err == nil && ctx.Err() == nil {
					err = errors.New("ended by itself")
				}
				if err != nil {
					return fmt.Errorf("%s: %w", r.name, err)
				}
				return nil
			})
		}
		return g.Wait()
	}, answering.run)
}

// ready says what keeps any of the roles from its work.
func (a *allRoles) ready() error {
	var errs []error
	for _, r := range a.roles {
		if err := r.ready(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", r.name, err))
		}
	}
	return errors.Join(errs...)
}

// ledger is datagrams as the collector counts them and records as the detector does:
// each sum closes where its things are. What lies on the flows topic between the two is
// the collector's written less the detector's decoded, in the metrics of both.
func (a *allRoles) ledger() flow.Ledger {
	l := flow.Ledger{}
	if collector := a.roles[0].role.(*service); !collector.listening.Load() {
		return l // starting, or stopping
	}
	for exporter, account := range a.roles[0].ledger() {
		into := l.Of(exporter)
		*into = *account
		into.Records = flow.RecordAccount{} // counted behind the topic
	}
	for exporter, account := range a.roles[1].ledger() {
		l.Of(exporter).Records = account.Records
	}
	return l
}

// Gather implements prometheus.Gatherer: the metrics of all roles, each with its role.
func (a *allRoles) Gather() ([]*dto.MetricFamily, error) {
	var all prometheus.Gatherers
	for _, r := range a.roles {
		all = append(all, prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
			families, err := r.Gather()
			for _, f := range families {
				for _, m := range f.Metric {
					m.Label = append(m.Label, &dto.LabelPair{Name: new("role"), Value: new(r.name)})
				}
			}
			return families, err
		}))
	}
	return all.Gather()
}
