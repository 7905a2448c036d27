package main

import (
	"context"
	"log/slog"
	"strconv"
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
}

// logMetrics are the metrics of whoever reads partitions.
type logMetrics struct {
	behind  *prometheus.GaugeVec
	skipped prometheus.Counter
}

func newLogMetrics(reg prometheus.Registerer) *logMetrics {
	m := &logMetrics{
		behind: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "postern_kafka_lag",
			Help: "Values behind the end of a partition's log, when it was last asked."}, []string{"topic", "partition"}),
		skipped: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_kafka_skipped_offsets_total",
			Help: "Offsets that retention or the loss of a log took away before they were read. Alert on any."}),
	}
	reg.MustRegister(m.behind, m.skipped)
	return m
}

// lag takes note of how many values are not read yet.
func (l *partitionLog) lag(n int64) {
	l.met.behind.WithLabelValues(l.a.Topic, strconv.Itoa(l.a.Partition)).Set(float64(max(0, n)))
}

// forget ends what is said of a partition that is read by others now.
func (l *partitionLog) forget() {
	l.met.behind.DeleteLabelValues(l.a.Topic, strconv.Itoa(l.a.Partition))
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
		case end < need:
			to = min(from, end) // an unclean election, or the topic was made anew
		default:
			return from, false, nil
		}
		l.log.Error("offsets are gone before they were read; what they held is lost", "from", from, "to", to)
		l.met.skipped.Add(float64(max(0, to-from)))
		return to, true, nil
	}
}

// dead puts a value that cannot be read where a person finds it, and the partition goes on.
func (l *partitionLog) dead(ctx context.Context, r *kafka.Record, reason error) error {
	l.log.Error("a value cannot be read; it is kept on the dead-letter topic", "offset", r.Offset, "error", reason)
	return l.client.PutDead(ctx, kafka.DeadLetter{Topic: l.a.Topic, Partition: l.a.Partition, Offset: r.Offset,
		Time: r.Time, Key: r.Key, Value: r.Value, Headers: r.Headers, Reason: reason.Error()})
}
