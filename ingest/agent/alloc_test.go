package agent

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/postern/postern/flow"
)

// TestAllocations holds that lines which tell flows cost no memory of their own once their
// names are known.
func TestAllocations(t *testing.T) {
	for _, format := range []string{"windows", "suricata", "calico", "illumio", "ocsf", "ecs", "goflow2"} {
		raw, err := os.ReadFile(filepath.Join("testdata", format+".log"))
		if err != nil {
			t.Fatal(err)
		}
		d, err := NewDecoder(format, Config{BelieveClock: true}, flow.NewNames(0))
		if err != nil {
			t.Fatal(err)
		}
		o := Origin{Seed: 1, Received: 1_700_000_000_000}
		batch := flow.NewBatch(64, nil)
		for line := range bytes.Lines(raw) {
			line = bytes.TrimSpace(line)
			decode := func() error {
				batch.Reset()
				return d.Decode(line, 0, &o, batch)
			}
			if decode() != nil {
				continue
			}
			if n := testing.AllocsPerRun(20, func() { _ = decode() }); n != 0 {
				t.Errorf("%s: %v allocations by %s", format, n, line)
			}
		}
	}
}

// TestManyValues: values of two bytes do not take memory by the gigabyte.
func TestManyValues(t *testing.T) {
	o := Origin{Received: 1_700_000_000_000}
	for format, outer := range map[string][2]string{
		"suricata": {`{"event_type":"dns","x":[0`, "]}"}, "aws": {`{"x":[0`, "]}"}, "conntrack": {`{"MESSAGE":"x","y":[0`, "]}"}, "gcp": {`{"x":[0`, "]}"}, Auto: {`{"flow":{"verdict":1},"x":[0`, "]}"},
	} {
		d, err := NewDecoder(format, Config{}, flow.NewNames(0))
		if err != nil {
			t.Fatal(err)
		}
		line := slices.Concat([]byte(outer[0]), bytes.Repeat([]byte(`,1`), 4<<20), []byte(outer[1]))
		batch := flow.NewBatch(1, nil)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err = d.Decode(line, 0, &o, batch)
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - before.TotalAlloc; took > 64<<20 || err == nil || errors.As(err, new(NotFlow)) {
			t.Errorf("%s: %v after %d MiB", format, err, took>>20)
		}
	}
	// What is in strings does not count, and a million commas are not too many there.
	d, err := NewDecoder("suricata", Config{}, flow.NewNames(0))
	if err != nil {
		t.Fatal(err)
	}
	long := slices.Concat([]byte(`{"event_type":"dns","x":"\""`), []byte(`,"y":"`), bytes.Repeat([]byte(",[{"), 1<<19), []byte(`"}`))
	if err := d.Decode(long, 0, &o, flow.NewBatch(1, nil)); !errors.As(err, new(NotFlow)) {
		t.Error(err)
	}
}

// TestLongLineReleased: a line that is long keeps no memory when it is read.
func TestLongLineReleased(t *testing.T) {
	line := slices.Concat([]byte(`{"event_type":"dns","x":[0`), bytes.Repeat([]byte(",1"), maxValues*3/4), []byte("]}"))
	held := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	d, err := NewDecoder("suricata", Config{}, flow.NewNames(0))
	if err != nil {
		t.Fatal(err)
	}
	events, err := NewEventDecoder("radius", EventConfig{}, 8<<20)
	if err != nil {
		t.Fatal(err)
	}
	o := Origin{Received: 1_700_000_000_000}
	batch := flow.NewBatch(1, nil)
	before := held()
	if err := d.Decode(line, 0, &o, batch); !errors.As(err, new(NotFlow)) {
		t.Fatal(err)
	}
	if _, err := events.Decode(line, &o, nil); !errors.As(err, new(NotEvent)) {
		t.Fatal(err)
	}
	if kept := held() - before; kept > 16<<20 {
		t.Errorf("%d MiB are kept of a line of %d", kept>>20, len(line)>>20)
	}
	runtime.KeepAlive(line)
	runtime.KeepAlive(d)
	runtime.KeepAlive(events)
}
