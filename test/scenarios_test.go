package test

import (
	"bytes"
	wire "encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/exporter"
	"github.com/postern/postern/policy"
	"github.com/postern/postern/test/scenario"
)

// ipfix plays a scenario's exporters. Each record goes out in a datagram of its own, with a
// template of exactly the fields that the record has, so that what is decoded from it is what
// the scenario runs in one process.
type ipfix struct {
	templates map[string]uint16 // by layout
	sequence  map[flow.Addr]uint32
}

// field is an information element of a record, in the direction that the record tells or,
// by RFC 5103, in the other.
type element struct {
	id      uint16
	reverse bool
	value   []byte
	varies  bool // of variable length
}

func elementsOf(r *flow.Record, user string) (out []element) {
	number := func(id uint16, size int, v uint64) {
		b := wire.BigEndian.AppendUint64(nil, v)
		out = append(out, element{id: id, value: b[8-size:]})
	}
	reverse := func(id uint16, size int, v uint64) {
		number(id, size, v)
		out[len(out)-1].reverse = true
	}
	src, dst := r.Src.Netip(), r.Dst.Netip()
	if src.Is4() {
		out = append(out, element{id: 8, value: src.AsSlice()}, element{id: 12, value: dst.AsSlice()})
	} else {
		out = append(out, element{id: 27, value: src.AsSlice()}, element{id: 28, value: dst.AsSlice()})
	}
	number(4, 1, uint64(r.Proto))
	number(152, 8, uint64(r.Start))
	number(153, 8, uint64(r.End))
	number(1, 8, r.BytesRaw)
	number(2, 8, r.PacketsRaw)
	for _, e := range []struct {
		has     flow.Has
		id      uint16
		size    int
		reverse bool
		v       uint64
	}{
		{flow.HasSrcPort, 7, 2, false, uint64(r.SrcPort)}, {flow.HasDstPort, 11, 2, false, uint64(r.DstPort)}, {flow.HasTCPFlags, 6, 2, false, uint64(r.TCPFlags)},
		{flow.HasFirewallEvent, 233, 1, false, uint64(r.FirewallEvent)}, {flow.HasBiflowDirection, 239, 1, false, uint64(r.BiflowDirection)},
		{flow.HasRevBytes, 1, 8, true, r.RevBytesRaw}, {flow.HasRevPackets, 2, 8, true, r.RevPacketsRaw}, {flow.HasRevTCPFlags, 6, 2, true, uint64(r.RevTCPFlags)},
	} {
		switch {
		case !r.Any(e.has):
		case e.reverse:
			reverse(e.id, e.size, e.v)
		default:
			number(e.id, e.size, e.v)
		}
	}
	if r.Any(flow.HasICMP) {
		id := uint16(32)
		if r.Proto == flow.ProtoICMPv6 {
			id = 139
		}
		number(id, 2, uint64(r.ICMPType)<<8|uint64(r.ICMPCode))
	}
	if r.SamplingRate != 0 {
		number(34, 4, uint64(r.SamplingRate))
	}
	if user != "" {
		out = append(out, element{id: 371, value: append([]byte{byte(len(user))}, user...), varies: true})
	}
	return out
}

// datagram is a record with its template.
func (x *ipfix) datagram(r *scenario.Told, user string) []byte {
	const enterprise, reversePEN, variable = 0x8000, 29305, 0xffff
	var layout, data []byte
	elements := elementsOf(&r.Record, user)
	for _, e := range elements {
		id, size := e.id, uint16(len(e.value))
		if e.varies {
			size = variable
		}
		if e.reverse {
			id |= enterprise
		}
		layout = wire.BigEndian.AppendUint16(layout, id)
		layout = wire.BigEndian.AppendUint16(layout, size)
		if e.reverse {
			layout = wire.BigEndian.AppendUint32(layout, reversePEN)
		}
		data = append(data, e.value...)
	}
	id, known := x.templates[string(layout)]
	if !known {
		id = uint16(256 + len(x.templates))
		x.templates[string(layout)] = id
	}
	if r.Quality&flow.QualitySequenceGap != 0 {
		x.sequence[r.Exporter] += 7 // as many records were in datagrams that did not arrive
	}
	b := wire.BigEndian.AppendUint16(nil, 10)
	b = wire.BigEndian.AppendUint16(b, uint16(16+8+len(layout)+4+len(data)))
	b = wire.BigEndian.AppendUint32(b, uint32(r.At/1000))
	b = wire.BigEndian.AppendUint32(b, x.sequence[r.Exporter])
	b = wire.BigEndian.AppendUint32(b, 0) // the observation domain
	x.sequence[r.Exporter]++
	b = wire.BigEndian.AppendUint16(b, 2)
	b = wire.BigEndian.AppendUint16(b, uint16(8+len(layout)))
	b = wire.BigEndian.AppendUint16(b, id)
	b = wire.BigEndian.AppendUint16(b, uint16(len(elements)))
	b = append(b, layout...)
	b = wire.BigEndian.AppendUint16(b, id)
	b = wire.BigEndian.AppendUint16(b, uint16(4+len(data)))
	return append(b, data...)
}

// played writes what a scenario's exporters send, as so many captures, one after the other.
func played(t *testing.T, s *scenario.Scenario, captures int) (paths []string) {
	t.Helper()
	if why := s.Exported(); why != "" {
		t.Skip(why)
	}
	names := flow.NewNames(0)
	told := s.Told(names)
	x := ipfix{map[string]uint16{}, map[flow.Addr]uint32{}}
	var packets []exporter.Packet
	for i := range told {
		from, to := netip.AddrPortFrom(told[i].Exporter.Netip(), 4000), netip.MustParseAddrPort("192.0.2.250:2055")
		packets = append(packets, exporter.Packet{At: told[i].At, Src: from, Dst: to, Payload: x.datagram(&told[i], names.Text(told[i].User))})
	}
	dir := t.TempDir()
	for k := range captures {
		var b bytes.Buffer
		if err := exporter.WritePcap(&b, packets[k*len(packets)/captures:(k+1)*len(packets)/captures]); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, filepath.Join(dir, fmt.Sprintf("%d.pcap", k)))
		if err := os.WriteFile(paths[k], b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return paths
}

// unpacked writes the files of a policy into a folder.
func unpacked(t *testing.T, p *policy.Policy) string {
	t.Helper()
	var files []struct{ Name, Text string }
	if err := json.Unmarshal(p.Source(), &files); err != nil || len(files) == 0 {
		t.Fatalf("%v: %.200s", err, p.Source())
	}
	dir := t.TempDir()
	for _, f := range files {
		path := filepath.Join(dir, filepath.FromSlash(f.Name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(f.Text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// underPolicy gives a scenario's policy as the arguments of a command.
func underPolicy(t *testing.T, s *scenario.Scenario) []string {
	t.Helper()
	versions := s.Versions()
	switch {
	case len(versions) > 1:
		t.Skip("it has several policies, and a command takes one")
	case len(versions) == 0: // none is in force at any time of the scenario
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "p.yaml"), []byte("postern: v1\nsegments:\n  - {name: later, prefixes: [192.0.2.0/24]}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return []string{"--policy", dir, "--policy-at", "2250-01-01T00:00:00Z"}
	}
	args := []string{"--policy", unpacked(t, versions[0].Policy)}
	if versions[0].Since != policy.Always {
		args = append(args, "--policy-at", versions[0].Since.String())
	}
	return args
}

// knowing writes what a scenario's source of identities said into a data directory, as a service that ran there did.
func knowing(t *testing.T, s *scenario.Scenario) string {
	t.Helper()
	dir := t.TempDir()
	facts, beats := s.Identities()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	add := func(said map[string]any) {
		if err := enc.Encode(said); err != nil {
			t.Fatal(err)
		}
	}
	add(map[string]any{"facts": facts})
	for _, beat := range beats {
		add(map[string]any{"beat": beat})
	}
	if err := os.Mkdir(filepath.Join(dir, "facts"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "facts", "facts.ndjson"), b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// essence is what of findings does not hang on how records are called: all but the samples,
// the revision and the version of the policy.
func essence(t *testing.T, findings []*flow.Finding) []string {
	t.Helper()
	var out []string
	for _, f := range findings {
		g := *f
		g.Samples, g.Revision, g.PolicyVersion = nil, 0, ""
		b, err := json.Marshal(&g)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(b))
	}
	slices.Sort(out)
	return out
}

// scenarioFiles are those that detection is tested with.
func scenarioFiles(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("../detect/testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	return files
}

// eachScenario runs a test for each of them.
func eachScenario(t *testing.T, test func(t *testing.T, s *scenario.Scenario)) {
	for _, file := range scenarioFiles(t) {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			s, err := scenario.Read(file, scenario.DefaultSettings())
			if err != nil {
				t.Fatal(err)
			}
			test(t, s)
		})
	}
}

// TestScenariosReplayed: what detection finds of a scenario in one process, the real program
// finds of the datagrams that tell of it.
func TestScenariosReplayed(t *testing.T) {
	eachScenario(t, func(t *testing.T, s *scenario.Scenario) {
		capture, args := played(t, s, 1)[0], underPolicy(t, s)
		want, err := s.Run(scenario.Options{})
		if err != nil {
			t.Fatal(err)
		}
		// What a suppression holds back to the end is not told, nor one by one what a flood is made of.
		want.Findings = slices.DeleteFunc(want.Findings, func(f *flow.Finding) bool { return f.SuppressedBy != "" || f.GroupedBy != "" })
		config := filepath.Join(t.TempDir(), "postern.yaml")
		if err := os.WriteFile(config, []byte("data: "+knowing(t, s)+"\n"+dedented(s.Config)), 0o600); err != nil {
			t.Fatal(err)
		}
		out := run(t, append(append([]string{"replay", "--no-store", "-c", config, "--findings", "-"}, args...), capture)...)
		var got []*flow.Finding
		for dec := json.NewDecoder(strings.NewReader(out)); dec.More(); {
			f := &flow.Finding{}
			if err := dec.Decode(f); err != nil {
				t.Fatal(err)
			}
			got = append(got, f)
		}
		if d := gocmp.Diff(essence(t, want.Findings), essence(t, got)); d != "" {
			t.Errorf("%s: %d findings, replay has %d (-in one process +replay)\n%s", s.Name, len(want.Findings), len(got), d)
		}
	})
}
