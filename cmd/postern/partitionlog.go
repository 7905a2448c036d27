package main

import (
	"context"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postern/postern/ingest/kafka"
)

// partitionLog is what all roles do alike with the log of a partition that they read.
type partitionLog struct {
	a      *kafka.Assignment
	client *kafka.Client
	log    *slog.Logger // names the partition
	met    *logMetrics
	// recognised: what is read twice is known by its number or id.
	recognised bool

	read atomic.Int64 // the offset it is read up to
}

// logMetrics are the metrics of whoever reads partitions.
type logMetrics struct {
	behind  *prometheus.GaugeVec
	skipped prometheus.Counter
}

func newLogMetrics(reg prometheus.Registerer) *logMetrics {
	m := &logMetrics{
		behind: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "postern_kafka_lag",
			Help: "Values of a partition's log that are not read yet, asked at least every ten seconds."}, []string{"topic", "partition"}),
		skipped: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_kafka_skipped_offsets_total",
			Help: "Offsets that retention or the loss of a log took away before they were read. Alert on any."}),
	}
	reg.MustRegister(m.behind, m.skipped)
	return m
}

// lag takes note that the log is read up to an offset and ends at another.
func (l *partitionLog) lag(read, end int64) {
	l.read.Store(read)
	l.show(end)
}

func (l *partitionLog) show(end int64) {
	l.met.behind.WithLabelValues(l.a.Topic, strconv.Itoa(l.a.Partition)).Set(float64(max(0, end-l.read.Load())))
}

// lagEvery is how often the end of a log is asked for where reading it does not tell.
const lagEvery = 10 * time.Second

// follow keeps the lag up to date from an offset on, also while nothing is read because
// whoever takes it is slow. stop ends that, and what is said of the partition: it is
// read by others now.
func (l *partitionLog) follow(ctx context.Context, from int64) (stop func()) {
	l.read.Store(from)
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	asking.Go(func() {
		_ = every(ctx, lagEvery, func() {
			if _, end, err := l.client.Offsets(ctx, l.a.Topic, l.a.Partition); err == nil {
				l.show(end)
			}
		})
	})
	return func() {
		cancel()
		asking.Wait()
		l.met.behind.DeleteLabelValues(l.a.Topic, strconv.Itoa(l.a.Partition))
	}
}

// skip is where to go on where the log does not give the offsets from to need: retention
// was quicker than we, or the log was cut at its end. Nothing is lost, and it is from, if
// they are there after all. A log that ends too early is asked again for a while, since a
// new leader learns from its followers how far it may be read.
func (l *partitionLog) skip(ctx context.Context, from, need int64) (to int64, lost bool, err error) {
	for began := time.Now(); ; {
		first, end, err := l.client.Offsets(ctx, l.a.Topic, l.a.Partition)
		if err != nil {
			return from, false, err
		}
		switch {
		case first > from:
			to = first
		case end < need && time.Since(began) < 3*l.client.Config().Timeout:
			select {
			case <-ctx.Done():
				return from, false, ctx.Err()
			case <-time.After(500 * time.Millisecond):
			}
			l.client.Refresh()
			continue
		case end < need: // an unclean election, or the topic was made anew
			to = l.restart(first, end)
		default:
			return from, false, nil
		}
		l.log.Error("offsets are gone before they were read; what they held is lost", "from", from, "to", to)
		l.met.skipped.Add(float64(max(0, to-from)))
		return to, true, nil
	}
}

// restart is where to go on in a log that ends before what was read of it. What is ours
// tells what was there before, so all of it is read; of topics of others it cannot be
// known, and what there is now is left out.
func (l *partitionLog) restart(first, end int64) int64 {
	if l.recognised {
		return first
	}
	l.met.skipped.Add(float64(end - first))
	return end
}

// dead puts a value that cannot be read where a person finds it, and the partition goes on.
func (l *partitionLog) dead(ctx context.Context, r *kafka.Record, reason error) error {
	l.log.Error("a value cannot be read; it is kept on the dead-letter topic", "offset", r.Offset, "error", reason)
	return l.client.PutDead(ctx, kafka.DeadLetter{Topic: l.a.Topic, Partition: l.a.Partition, Offset: r.Offset,
		Time: r.Time, Key: r.Key, Value: r.Value, Headers: r.Headers, Reason: reason.Error()})
}
