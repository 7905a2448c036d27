package main

import (
	"context"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/sink"
)

// TestRollupCheck: sessions whose contribution never came are found by check and by the night, once.
func TestRollupCheck(t *testing.T) {
	path := serverConfig(t)
	cfg, err := loadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := command(t, "migrate", "-c", path); err != nil {
		t.Fatal(err)
	}
	day := 24 * flow.Hour
	now := wallClock()
	began := (now - 50*flow.Hour) / flow.Hour * flow.Hour
	lost := func(id uint64, input string, at flow.Time) {
		t.Helper()
		names := flow.NewNames(0)
		s := flow.Session{ID: id, Version: 1, Conversation: id, Began: began, Start: began, End: began + 60_000, Proto: flow.ProtoTCP, HasPorts: true, BothWays: true,
			Client: flow.SessionEnd{Addr: flow.MustParseAddr("10.0.0.1"), Port: 40000, Bytes: 100, HasBytes: true}, Server: flow.SessionEnd{Addr: flow.MustParseAddr("10.0.0.2"), Port: 443, Bytes: 900, HasBytes: true}}
		err := connectClickHouse(t.Context(), cfg, slog.New(slog.DiscardHandler), func(ctx context.Context, db *sink.ClickHouse) error {
			return storeSessions(ctx, db, names, sink.Insert{Token: input + "/" + at.String(), Input: input, At: at}, []flow.Session{s})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	lost(1, "spool/a", began+day)
	says := func(want string, wantErr string, args ...string) {
		t.Helper()
		out, _, err := command(t, append([]string{"rollup", args[0], "-c", path}, args[1:]...)...)
		if !regexp.MustCompile(want).MatchString(out) || (err == nil) != (wantErr == "") || err != nil && !strings.Contains(err.Error(), wantErr) {
			t.Errorf("%v: %v\n%s\nwant %q, %q", args, err, out, want, wantErr)
		}
	}
	hour := began.Std().Format(time.RFC3339)
	says(`differs.* 1 .* 0 .* 1000 .* 0 `, "1 hours of the roll-up differ", "check")
	says(`0 hours agree, 0 were made anew, 0 differ, 0 may still change`, "", "check", "--days", "1")
	says(`^`+hour[:13]+`.* is made anew: 1 of 1 edges differed; 1 sessions and 1000 bytes are counted, before 0 and 0\n$`, "", "rebuild", "--hour", hour)
	says(`agrees: 1 sessions, 1 edges\n$`, "", "rebuild", "--hour", hour)
	says(`^1 hours agree, `, "", "check")
	says(`agrees`, "", "check", "--all")
	says(`^$`, `"2026-11-22T14:05:00Z" is no full hour; write it as`, "rebuild", "--hour", "2026-11-22T14:05:00Z")
	says(`^$`, "--days 0", "check", "--days", "0")

	// By night, and only then; what a source may still change waits.
	reg := prometheus.NewRegistry()
	n := newNightly(cfg, slog.New(slog.DiscardHandler), reg)
	midnight := now / day * day
	count := func(result string) int { return int(testutil.ToFloat64(n.hours.WithLabelValues(result))) }
	err = connectClickHouse(t.Context(), cfg, slog.New(slog.DiscardHandler), func(ctx context.Context, db *sink.ClickHouse) error {
		lost(2, "spool/b", began+2*60_000)
		n.look(ctx, db, midnight+2*flow.Hour)
		n.look(ctx, db, midnight+3*flow.Hour+9*60_000)
		if n := testutil.ToFloat64(n.hours.WithLabelValues(rollupRepaired)) + testutil.ToFloat64(n.hours.WithLabelValues(rollupUnsettled)); n != 0 {
			t.Errorf("%v hours were looked at before it was time", n)
		}
		n.look(ctx, db, midnight+3*flow.Hour+10*60_000)
		n.look(ctx, db, midnight+3*flow.Hour+11*60_000)
		if count(rollupRepaired) != 1 || count(rollupDiffers) != 0 || testutil.ToFloat64(n.ended) != float64(midnight+3*flow.Hour+10*60_000)/1000 {
			t.Errorf("%d repaired, %d differ, ended at %v", count(rollupRepaired), count(rollupDiffers), testutil.ToFloat64(n.ended))
		}
		n.look(ctx, db, midnight+day+4*flow.Hour)
		if count(rollupRepaired) != 1 || count(rollupAgrees) != 1 {
			t.Errorf("the night after: %d repaired, %d agree", count(rollupRepaired), count(rollupAgrees))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	off := newNightly(cfg, slog.New(slog.DiscardHandler), nil)
	off.cfg.ClickHouse.Rollup.CheckAt = ""
	off.look(t.Context(), nil, midnight)
	off.look(t.Context(), nil, midnight+2*day) // would need a database
}
