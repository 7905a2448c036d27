package agent

import (
	"testing"
	"time"

	"github.com/postern/postern/flow"
)

func FuzzWindows(f *testing.F) { fuzzFormat(f, "windows") }

func BenchmarkWindows(b *testing.B) { benchFormat(b, "windows", "windows/*.jsonl") }

// The counts were taken from the files with Python's json.
func TestWindowsFixtures(t *testing.T) {
	d := checkTally(t, "windows", "windows/*.jsonl", tally{lines: 3141, flows: 1855,
		observed: map[string]int{"allow": 1351, "deny": 30, "unknown": 474},
		notFlow:  map[string]int{"a bind to a port (5158)": 1286}})
	spot(t, d, 16, `{"source":"wfp","time_start":"2020-09-22T18:53:30.000Z","src_addr":"172.18.39.5","src_port":62782,"dst_addr":"172.18.39.6","dst_port":445,"proto":6,
		"direction":"ingress","observed":"allow","observer":"WORKSTATION6.theshire.local","reporter":"destination","initiator":"source",
		"policy":"filter/79935","dst_process":"System","src_process":null,"src_identity":null,"dst_identity":null,"bytes":null}`)
	spot(t, d, 26, `{"source":"sysmon","time_start":"2020-09-22T18:53:31.668Z","src_addr":"172.18.39.5","src_port":62782,"dst_addr":"172.18.39.6","dst_port":445,"proto":6,
		"observer":"WORKSTATION5.theshire.local","reporter":"source","initiator":"source","src_process":"System","src_identity":"NT AUTHORITY\\SYSTEM",
		"observed":null,"direction":null,"policy":null,"src_host":null,"dst_host":null,"dst_process":null}`)
	spot(t, d, 28, `{"time_start":"2020-09-22T18:53:29.807Z","observer":"WORKSTATION6.theshire.local","reporter":"destination","initiator":"source",
		"dst_process":"System","dst_identity":"NT AUTHORITY\\SYSTEM","src_identity":null}`)
	spot(t, d, 142, `{"time_start":"2020-09-17T21:32:10.608Z","src_addr":"172.18.38.5","src_port":53,"dst_addr":"172.18.39.5","dst_port":54893,"proto":17,
		"observer":"MORDORDC.theshire.local","reporter":"source","initiator":"destination","src_process":"C:\\Windows\\System32\\dns.exe","dst_process":null}`)
	spot(t, d, 154, `{"time_start":"2020-09-17T21:32:14.000Z","src_addr":"172.18.39.5","src_port":61405,"dst_addr":"172.18.39.6","dst_port":135,
		"observed":"deny","direction":"ingress","reporter":"destination","policy":"filter/72408","dst_process":"\\device\\harddiskvolume2\\windows\\system32\\svchost.exe"}`)
	spot(t, d, 3119, `{"time_start":"2020-12-19T11:59:21.008Z","observer":"WORKSTATION5.theshire.local","reporter":"source","src_process":null,"src_identity":null}`)
	// The stamps of this campaign's security events are five hours early, and stay so.
	spot(t, d, 3131, `{"time_start":"2020-12-19T07:00:22.230Z","observer":"WORKSTATION6.theshire.local","reporter":"destination","initiator":"source"}`)

	// Both logs of a host tell most of Sysmon's connections. They have to agree on who began
	// and at which end the host is, though they name source and destination otherwise.
	type key struct {
		observer     flow.Name
		proto        uint8
		a, b         flow.Addr
		aPort, bPort uint16
	}
	by := func(r *flow.Record) (k key, clientIsA bool) {
		k = key{observer: r.Observer, proto: r.Proto, a: r.Src, b: r.Dst, aPort: r.SrcPort, bPort: r.DstPort}
		clientIsA = r.Any(flow.HasInitiator)
		if c := r.Src.Compare(r.Dst); c > 0 || c == 0 && r.SrcPort > r.DstPort {
			k.a, k.b, k.aPort, k.bPort, clientIsA = k.b, k.a, k.bPort, k.aPort, !clientIsA
		}
		return k, clientIsA
	}
	told := map[key]int{} // by WFP: 1 the host is the client, 2 the server; 4 a is the client, 8 b
	end := func(r *flow.Record) (bits int) {
		_, clientIsA := by(r)
		bits = 8
		if clientIsA {
			bits = 4
		}
		if r.Any(flow.HasInitiator) == (r.Reporter == flow.ReporterSource) {
			return bits | 1
		}
		return bits | 2
	}
	for i := range d.batch.Records {
		if r := &d.batch.Records[i]; r.Source == flow.SourceWFP {
			k, _ := by(r)
			told[k] |= end(r)
		}
	}
	both := 0
	for i := range d.batch.Records {
		r := &d.batch.Records[i]
		if r.Source != flow.SourceSysmon {
			continue
		}
		k, _ := by(r)
		if bits := told[k]; bits != 0 {
			both++
			if bits&end(r) != end(r) {
				t.Errorf("Sysmon and WFP of %s differ about %v:%d and %v:%d", d.names.Text(r.Observer), r.Src, r.SrcPort, r.Dst, r.DstPort)
			}
		}
	}
	t.Logf("%d of 474 connections of Sysmon's are told by WFP of the same host too", both)
	if both < 300 {
		t.Errorf("only %d are told by both logs", both)
	}
}

// TestWindowsZones reads times of NXLog, which have no zone.
func TestWindowsZones(t *testing.T) {
	const received = flow.Time(1_790_953_450_000) // 2026-10-02 15:04:10
	for _, c := range []struct {
		name, times string
		cfg         Config
		want        string
	}{
		{"against @timestamp", `"EventTime":"2026-10-02 11:04:05","EventReceivedTime":"2026-10-02 11:04:07","@timestamp":"2026-10-02T15:04:08.5Z"`, Config{BelieveClock: true}, "2026-10-02T15:04:05.000Z"},
		{"Kathmandu", `"EventTime":"2026-10-02 20:49:05","EventReceivedTime":"2026-10-02 20:49:05","@timestamp":"2026-10-02T15:04:08.5Z"`, Config{BelieveClock: true}, "2026-10-02T15:04:05.000Z"},
		{"old when it was read", `"EventTime":"2026-10-02 10:00:00","EventReceivedTime":"2026-10-02 11:04:07","@timestamp":"2026-10-02T15:04:08Z"`, Config{BelieveClock: true}, "2026-10-02T14:00:00.000Z"},
		{"forwarded late, so by its age", `"EventTime":"2026-10-02 11:04:05","EventReceivedTime":"2026-10-02 11:04:07","@timestamp":"2026-10-02T15:30:07Z"`, Config{BelieveClock: true}, "2026-10-02T15:30:05.000Z"},
		{"against receipt", `"EventTime":"2026-10-02 17:04:05","EventReceivedTime":"2026-10-02 17:04:09"`, Config{ClockTolerance: time.Minute}, "2026-10-02T15:04:05.000Z"},
		{"against receipt, days late", `"EventTime":"2026-09-30 17:04:05","EventReceivedTime":"2026-09-30 17:04:09"`, Config{ClockTolerance: time.Minute, ZoneOffset: 2 * time.Hour}, "2026-09-30T15:04:05.000Z"},
		{"in a file", `"EventTime":"2026-10-02 17:04:05","EventReceivedTime":"2026-10-02 17:04:09"`, Config{BelieveClock: true, ZoneOffset: 2 * time.Hour}, "2026-10-02T15:04:05.000Z"},
		{"in a file, nothing configured", `"EventTime":"2026-10-02 17:04:05"`, Config{BelieveClock: true}, "2026-10-02T17:04:05.000Z"},
		{"with a zone", `"EventTime":"2026-10-02T17:04:05.25+02:00","@timestamp":"2026-10-02T16:04:08Z"`, Config{BelieveClock: true}, "2026-10-02T15:04:05.250Z"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := NewDecoder("windows", c.cfg, flow.NewNames(0))
			if err != nil {
				t.Fatal(err)
			}
			batch := flow.NewBatch(1, nil)
			line := `{"EventID":5156,"Channel":"Security","SourceAddress":"10.0.0.1","DestAddress":"10.0.0.2",` + c.times + `}`
			if err := d.Decode([]byte(line), 0, &Origin{Received: received}, batch); err != nil {
				t.Fatal(err)
			}
			if got := batch.Records[0].Start.String(); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}
