package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
)

// eventConfig is the configuration that a sample is read with.
func eventConfig(t testing.TB, sample string) EventConfig {
	t.Helper()
	cfg := EventConfig{BelieveClock: true, Clients: strings.HasSuffix(sample, "-clients")}
	if cfg.Clients {
		cfg.LogonTypes = append(DefaultLogonTypes(), 3)
	}
	if strings.HasPrefix(sample, "custom") {
		raw, err := os.ReadFile(filepath.Join("testdata", "events", "custom.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		cfg.Custom = &CustomEventConfig{}
		if err := yaml.UnmarshalWithOptions(raw, cfg.Custom, yaml.Strict()); err != nil {
			t.Fatal(err)
		}
	}
	return cfg
}

// decodeEvents decodes a whole input that comes step bytes at a time.
func decodeEvents(t testing.TB, format string, cfg EventConfig, raw []byte, step int) (text []string) {
	t.Helper()
	d, err := NewEventDecoder(format, cfg, 1<<14)
	if err != nil {
		t.Fatal(err)
	}
	o := Origin{Received: flow.Time(1_790_960_000_000), Observer: "Gateway"}
	var events []SessionEvent
	have, done := 0, 0
	for done < len(raw) {
		item, n, err := d.Next(raw[done:have], have == len(raw))
		if err == nil && len(item) > 0 {
			events, err = d.Decode(item, &o, events[:0])
			for i := range events {
				b, err := json.Marshal(&events[i])
				if err != nil {
					t.Fatal(err)
				}
				text = append(text, string(b))
			}
		}
		var not NotEvent
		switch {
		case errors.As(err, &not):
			text = append(text, err.Error())
		case err != nil:
			text = append(text, "rejected: "+err.Error())
		}
		if done += n; n == 0 {
			if have == len(raw) {
				t.Fatalf("cutting stands still at byte %d", done)
			}
			have = min(have+step, len(raw))
		}
	}
	return text
}

// TestEventSamples decodes the samples of each format and compares with what is expected,
// in one piece and as bytes trickle in.
func TestEventSamples(t *testing.T) {
	for _, f := range EventFormats() {
		files, err := filepath.Glob(filepath.Join("testdata", "events", f.Name+"*.log"))
		if err != nil || len(files) == 0 {
			t.Errorf("%s has no sample (%v)", f.Name, err)
		}
		for _, file := range files {
			name := strings.TrimSuffix(filepath.Base(file), ".log")
			t.Run(name, func(t *testing.T) {
				raw, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				text := decodeEvents(t, f.Name, eventConfig(t, name), raw, len(raw))
				golden := strings.TrimSuffix(file, ".log") + ".golden"
				if *update {
					if err := os.WriteFile(golden, []byte(strings.Join(text, "\n")+"\n"), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(golden)
				if err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(strings.Split(string(want), "\n"), append(text, "")); d != "" {
					t.Error(d)
				}
				for _, step := range []int{1, 7, 1000} {
					if d := cmp.Diff(text, decodeEvents(t, f.Name, eventConfig(t, name), raw, step)); d != "" {
						t.Errorf("%d bytes at a time: %s", step, d)
					}
				}
			})
		}
	}
}

// TestEventBlocks: a block that is too long costs itself and no neighbour.
func TestEventBlocks(t *testing.T) {
	good := "Fri Oct  2 17:25:00 2026\n\tAcct-Status-Type = Accounting-On\n\tNAS-IP-Address = 192.0.2.1\n\tTimestamp = 1790954700\n\n"
	long := "Fri Oct  2 17:25:00 2026\n" + strings.Repeat("\tClass = 0x00\n", 2000) + "\n"
	raw := []byte(good + long + strings.ReplaceAll(good, "\n", "\r\n") + `{"Acct-Status-Type":"Accounting-Off","NAS-Identifier":"x","Event-Timestamp":1790954700}` + "\n" + strings.TrimSpace(good))
	for _, step := range []int{1, 5000, 1 << 20} {
		got := decodeEvents(t, "radius", EventConfig{BelieveClock: true}, raw, step)
		on := `{"kind":"on","at":"2026-10-02T15:25:00.000Z","host":"192.0.2.1"}`
		want := []string{on, "rejected: the line is too long", on, `{"kind":"off","at":"2026-10-02T15:25:00.000Z","host":"x"}`, on}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%d bytes at a time: %s", step, d)
		}
	}
}

// TestEventSyslog: the header goes, and what it names is not needed.
func TestEventSyslog(t *testing.T) {
	d, err := NewEventDecoder("radius", EventConfig{}, 1<<16)
	if err != nil {
		t.Fatal(err)
	}
	o := Origin{Received: 1_790_954_700_000}
	for _, header := range []string{"<13>1 2026-10-02T15:25:00Z nas freeradius - - - ", "<13>Oct  2 15:25:00 nas freeradius: ", ""} {
		got, err := d.DecodeSyslog([]byte(header+`{"Acct-Status-Type":"Accounting-On","NAS-Identifier":"x"}`), &o, nil)
		want := []SessionEvent{{Kind: SessionOn, At: o.Received, Host: "x"}}
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%q: %v %s", header, err, diff)
		}
	}
}

// TestEventClock: an event without a usable time happened when it came.
func TestEventClock(t *testing.T) {
	d, err := NewEventDecoder("radius", EventConfig{}, 1<<16)
	if err != nil {
		t.Fatal(err)
	}
	o := Origin{Received: 1_790_954_700_000}
	for _, c := range []struct {
		members string
		want    flow.Time
	}{
		{``, o.Received},
		{`,"Acct-Delay-Time":10`, o.Received - 10_000},
		{`,"Event-Timestamp":1790954400`, 1_790_954_400_000},
		{`,"Event-Timestamp":1790958300`, 1_790_958_300_000}, // an hour ahead: from then on
		{`,"Event-Timestamp":1801958300`, o.Received},
		{`,"Timestamp":1801958300`, o.Received},
		{`,"Event-Timestamp":946684980,"Timestamp":1790954000`, 1_790_954_000_000},
	} {
		got, err := d.Decode([]byte(`{"Acct-Status-Type":"Accounting-On","NAS-Identifier":"x"`+c.members+`}`), &o, nil)
		if err != nil || len(got) != 1 || got[0].At != c.want {
			t.Errorf("%s: %v %v; want %v", c.members, got, err, c.want)
		}
	}
}

func TestEventErrors(t *testing.T) {
	custom := func(change func(c *CustomEventConfig)) EventConfig {
		c := CustomEventConfig{Fields: map[string]string{"kind": "k", "session": "s", "user": "u"}}
		change(&c)
		return EventConfig{Custom: &c}
	}
	for _, c := range []struct {
		format string
		cfg    EventConfig
		want   string
	}{
		{"radios", EventConfig{}, `"radios" is no format of session events; did you mean radius? It may be one of custom, radius, windows-logon`},
		{"syslog", EventConfig{}, `"syslog" is no format of session events; use one of custom, radius, windows-logon`},
		{"windows-logon", EventConfig{LogonTypes: []int{2, 99}}, "logonTypes: 99 is no type of logon; want some of 2 (interactive), 3 (network), 7 (unlock), 10 (remote interactive), 11 (cached)"},
		{"custom", EventConfig{}, "custom is missing; it says how the lines are read"},
		{"custom", custom(func(c *CustomEventConfig) { delete(c.Fields, "user") }), "custom: fields.user is missing; want the path of that field"},
		{"custom", custom(func(c *CustomEventConfig) { c.Fields["addr"] = "a" }), "custom: fields.addr is no field of a session event; did you mean at?"},
		{"custom", custom(func(c *CustomEventConfig) { c.Fields["at"] = "a" }),
			"custom: time is missing; want rfc3339, s, ms, us, ns or a layout of Go with a zone, such as 2006-01-02 15:04:05 -0700"},
		{"custom", custom(func(c *CustomEventConfig) { c.Values = map[string]map[string]string{"kind": {"in": "begin"}} }),
			`custom: values.kind["in"] is "begin"; want one of start, update, away, stop, off, on`},
		{"custom", custom(func(c *CustomEventConfig) { c.EventIf = ".a |" }),
			`custom: eventIf: no jq program, at its line 1, column 5: unexpected EOF; want a path such as src.ip, a text in quotes or a jq program`},
	} {
		_, err := NewEventDecoder(c.format, c.cfg, 1<<16)
		if err == nil || err.Error() != c.want {
			t.Errorf("%s: %v; want %s", c.format, err, c.want)
		}
	}
}

func TestStationMAC(t *testing.T) {
	for in, want := range map[string]string{
		"00-00-5E-00-53-01": "00:00:5e:00:53:01", "00:00:5e:00:53:01": "00:00:5e:00:53:01", "0000.5e00.5301": "00:00:5e:00:53:01",
		"00005E005301": "00:00:5e:00:53:01", "00-00-5E-00-53-01:corp wifi": "00:00:5e:00:53:01",
		"491701234567": "", "10.8.0.5": "", "100.101.102.103": "", "alice": "", "": "", "00-00-5E-00-53": "", "00-00-5E-00-53-01x": "", "2001:db8:aaaa::1": "",
	} {
		if got, ok := stationMAC([]byte(in)); got != want || ok != (want != "") {
			t.Errorf("%q: %q %v; want %q", in, got, ok, want)
		}
	}
}

// TestEventDocs: the page about each format names every text that its errors and events use
// as a kind, and exists.
func TestEventDocs(t *testing.T) {
	for _, f := range EventFormats() {
		if f.Name == "custom" {
			continue // in docs/identity-sessions.md
		}
		b, err := os.ReadFile(filepath.Join("..", "..", "docs", "agents", f.Name+".md"))
		if err != nil || !bytes.Contains(b, []byte("`"+f.Name+"`")) {
			t.Errorf("%s has no page of its own: %v", f.Name, err)
		}
	}
}

// fuzzEvents checks what holds for every input: no panic, the same again from the same
// bytes however they come, and nothing without a time and a kind.
func fuzzEvents(f *testing.F, format string) {
	files, err := filepath.Glob(filepath.Join("testdata", "events", format+"*.log"))
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
		for line := range bytes.Lines(raw) {
			f.Add(line)
		}
	}
	cfg := eventConfig(f, format)
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 1<<14 {
			return
		}
		a := decodeEvents(t, format, cfg, raw, len(raw))
		if b := decodeEvents(t, format, cfg, raw, len(raw)); !slices.Equal(a, b) {
			t.Errorf("the same bytes give something else: %s", cmp.Diff(a, b))
		}
		for _, text := range a {
			if text[0] != '{' {
				continue
			}
			var ev SessionEvent
			if err := json.Unmarshal([]byte(text), &ev); err != nil {
				t.Fatalf("%s: %v", text, err)
			}
			all := ev.Kind == SessionOn || ev.Kind == SessionOff
			if ev.At <= 0 || ev.Began > ev.At || ev.Began < 0 || all != (ev.Session == "") || len(ev.User) > maxEventText ||
				all && !reflect.DeepEqual(ev, SessionEvent{Kind: ev.Kind, At: ev.At, Host: ev.Host}) {
				t.Errorf("an event %s", text)
			}
		}
	})
}

func FuzzWindowsLogon(f *testing.F) { fuzzEvents(f, "windows-logon") }
func FuzzRadius(f *testing.F)       { fuzzEvents(f, "radius") }
func FuzzCustomEvents(f *testing.F) { fuzzEvents(f, "custom") }

func BenchmarkEvents(b *testing.B) {
	for _, format := range []string{"windows-logon", "radius"} {
		b.Run(format, func(b *testing.B) {
			raw, err := os.ReadFile(filepath.Join("testdata", "events", format+".log"))
			if err != nil {
				b.Fatal(err)
			}
			d, err := NewEventDecoder(format, EventConfig{}, 1<<20)
			if err != nil {
				b.Fatal(err)
			}
			o := Origin{Received: 1_790_960_000_000}
			var events []SessionEvent
			b.SetBytes(int64(len(raw)))
			b.ReportAllocs()
			for b.Loop() {
				for at := 0; at < len(raw); {
					item, n, err := d.Next(raw[at:], true)
					if err == nil && len(item) > 0 {
						events, _ = d.Decode(item, &o, events[:0])
					}
					at += n
				}
			}
		})
	}
}
