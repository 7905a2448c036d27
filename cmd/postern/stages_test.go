package main

import (
	"log/slog"
	"net/netip"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest"
)

// TestStageSettingsReadBack: settings in a checkpoint are the settings.
func TestStageSettingsReadBack(t *testing.T) {
	cfg := defaultConfig()
	domain, sampler := uint32(7), uint64(1)
	cfg.Ingest.Decode.Sampling = []ingest.SamplingRule{
		{Exporter: ingest.ExporterPrefix{Prefix: netip.MustParsePrefix("192.0.2.0/24")}, Domain: &domain, Rate: 100}, {Sampler: &sampler, Rate: 1000},
	}
	cfg.Enrich.Window = 42 * time.Second
	want, text, err := cfg.stageSettings()
	if err != nil {
		t.Fatal(err)
	}
	var got stageSettings
	if err := yaml.Unmarshal([]byte(text), &got); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	if len(want.Decode.BiflowInitiator) == 0 {
		got.Decode.BiflowInitiator, want.Decode.BiflowInitiator = nil, nil
	}
	if len(want.Sessions.NATPools) == 0 {
		got.Sessions.NATPools, want.Sessions.NATPools = nil, nil
	}
	if len(want.Logs.Custom) == 0 {
		got.Logs.Custom, want.Logs.Custom = nil, nil
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("settings read back as\n%+v, were\n%+v", got, want)
	}
}

// TestChangedSettingsComeBehindWhatWasBegun: after a crash, segments that wait are
// worked through under the settings they were begun with; the change comes behind
// them, and a crash in between makes no difference.
func TestChangedSettingsComeBehindWhatWasBegun(t *testing.T) {
	cfg := defaultConfig()
	cfg.Data = t.TempDir()
	cfg.Policy.Dir = filepath.Join(cfg.Data, "policy")
	start := func(window time.Duration) *service {
		t.Helper()
		c := cfg
		c.Enrich.Window = window
		s, err := newService(c, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		s.spool, err = ingest.OpenSpool(filepath.Join(c.Data, "spool"), c.Ingest.Spool, ingest.SpoolOptions{Clock: func() flow.Time { return 1_790_000_000_000 }})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.openPipeline(); err != nil {
			t.Fatal(err)
		}
		return s
	}
	window := func(text string) time.Duration {
		t.Helper()
		var set stageSettings
		if err := yaml.Unmarshal([]byte(text), &set); err != nil {
			t.Fatal(err)
		}
		return set.Enrich.Window
	}
	fill := func(s *service, segments int) {
		t.Helper()
		for range segments {
			if s.spool.Append([]ingest.Datagram{{Received: 1_790_000_000_000, Exporter: flow.MustParseAddr("192.0.2.1"), Payload: []byte("no flow")}}) != 1 {
				t.Fatal("not taken")
			}
			if err := s.spool.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	// work takes segments with the store's part beside, and ends like a crash.
	work := func(s *service, segments int) {
		t.Helper()
		s.pipe.store = nowhere{}
		stored := make(chan error, 1)
		go func() { stored <- s.pipe.runStore(t.Context(), s.saved) }()
		for range segments {
			seg, err := s.spool.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			s.checkpointed = time.Time{} // every segment gets its checkpoint
			if err := s.segment(t.Context(), seg); err != nil {
				t.Fatal(err)
			}
		}
		close(s.pipe.out)
		if err := <-stored; err != nil {
			t.Fatal(err)
		}
		if err := s.spool.Close(); err != nil {
			t.Fatal(err)
		}
	}
	inForce := func() time.Duration {
		t.Helper()
		cp, err := checkpoints{filepath.Join(cfg.Data, "state")}.load()
		if err != nil {
			t.Fatal(err)
		}
		return window(cp.Settings)
	}

	s := start(15 * time.Second)
	fill(s, 4)
	work(s, 1) // and is killed with three segments waiting

	s = start(30 * time.Second)
	if s.next == nil || window(s.settings) != 15*time.Second {
		t.Fatalf("waiting segments are worked through with a window of %v", window(s.settings))
	}
	work(s, 1) // and is killed again before it has caught up
	if inForce() != 15*time.Second {
		t.Fatalf("the change came too early: %v", inForce())
	}

	s = start(30 * time.Second)
	fill(s, 1)
	work(s, 3)
	if s.next != nil || inForce() != 30*time.Second {
		t.Fatalf("the change did not come: %v", inForce())
	}

	// Nothing waits: the change holds at once, and durably, before anything is made under it.
	s = start(45 * time.Second)
	if s.next != nil || window(s.settings) != 45*time.Second || inForce() != 45*time.Second {
		t.Fatalf("the change is not in force: %v, checkpoint %v", window(s.settings), inForce())
	}
	if err := s.spool.Close(); err != nil {
		t.Fatal(err)
	}
}
