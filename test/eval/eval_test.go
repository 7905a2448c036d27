package main

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
)

// fixtures is the folder of real captures; without it the test is skipped.
func fixtures(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("POSTERN_FIXTURES")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "fixtures")
	}
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("no fixtures in %s; set POSTERN_FIXTURES to their folder", dir)
	}
	return dir
}

func fixtureData(t testing.TB) *dataset {
	t.Helper()
	dir := fixtures(t)
	data, err := readDataset(flow.NewNames(0), filepath.Join(dir, "lateral"), filepath.Join(dir, "agent", "windows"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestSmoke runs everything once, small, and reads the last line.
func TestSmoke(t *testing.T) {
	var out bytes.Buffer
	o := options{fixtures: fixtures(t), seeds: []uint64{testSeed}, sizes: []int{250}, short: 2, verbose: true}
	if err := evaluate(t.Context(), o, &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	var got map[string]float64
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &got); err != nil {
		t.Fatalf("the last line: %v: %s", err, lines[len(lines)-1])
	}
	want := []string{"alerts_per_day_per_10k_hosts", "memory_mb", "precision", "recall_chains", "recall_labelled"}
	if d := cmp.Diff(want, slices.Sorted(maps.Keys(got))); d != "" {
		t.Error(d)
	}
}

func TestFixtureLabels(t *testing.T) {
	data := fixtureData(t)
	bad := 0
	hidden := map[string]bool{}
	for _, c := range data.campaigns {
		for e, k := range c.labels {
			if k == malicious {
				bad++
			}
			if c.undecidable[e] {
				hidden[c.name+" "+e.String()] = true
			}
		}
	}
	// Rows of labels.tsv counted by hand: 10 of conversations labelled from both ends otherwise.
	if len(data.campaigns) != 14 || bad != 34 || data.dropped != 10 || len(data.notes) != 0 {
		t.Errorf("%d campaigns, %d malicious edges, %d rows dropped, notes %q", len(data.campaigns), bad, data.dropped, data.notes)
	}
	zerologon := "otrf-atomic/mimikatz_CVE-2020-1472_Unauthenticated_NetrServerAuthenticate2 172.18.39.5 > 172.18.38.5 tcp/"
	if !maps.Equal(hidden, map[string]bool{zerologon + "135": true, zerologon + "445": true}) {
		t.Errorf("not decidable: %v", hidden)
	}
}

// TestEmbedding: roles are kept, attackers are above their victims and below, and nothing of
// the captures' own addresses is left.
func TestEmbedding(t *testing.T) {
	data := fixtureData(t)
	c := testCompany(t, testSeed, 1000, 0)
	names := flow.NewNames(0)
	above, below := 0, 0
	taken := map[int32]bool{}
	for k, campaign := range data.campaigns {
		m := embed(campaign, c, random(testSeed, streamCampaigns, k), names, k, taken)
		for _, f := range formats {
			rs, a := m.place(f.layout, f.logs)
			if len(rs) == 0 {
				t.Errorf("%s: nothing in %s", campaign.name, f)
			}
			told := map[edge]bool{}
			for i := range rs {
				r := &rs[i]
				if r.Start < c.start+flow.Time(c.b.Learning)*24*hour || r.End > c.start+flow.Time(c.b.Days)*24*hour {
					t.Fatalf("%s: a record at %s", campaign.name, r.Start)
				}
				for _, x := range [...]flow.Addr{r.Src, r.Dst} {
					if s := x.String(); strings.HasPrefix(s, "172.18.") || strings.HasPrefix(s, "10.0.1.") || s == "10.10.10.5" {
						t.Fatalf("%s: %s is left", campaign.name, s)
					}
				}
				if r.Source == flow.SourceIPFIX && !r.Any(flow.HasInitiator|flow.HasBiflowDirection|flow.HasResponder) && r.Src.Compare(r.Dst) > 0 {
					t.Fatalf("%s: softflowd tells the lower address first, not %s before %s", campaign.name, r.Src, r.Dst)
				}
				told[edge{r.Src, r.Dst, r.DstPort, r.Proto}], told[edge{r.Dst, r.Src, r.SrcPort, r.Proto}] = true, true
			}
			n := 0
			for e, class := range a.truth {
				if class != malicious {
					continue
				}
				if n++; !told[e] {
					t.Errorf("%s, %s: no record of %s", campaign.name, f, e)
				}
				if e.src.Compare(e.dst) > 0 {
					above++
				} else {
					below++
				}
			}
			for _, class := range campaign.labels {
				if class == malicious {
					n--
				}
			}
			if n != 0 {
				t.Errorf("%s, %s: %d more malicious edges than labelled", campaign.name, f, n)
			}
		}
	}
	if above < 10 || below < 10 {
		t.Errorf("%d attackers above, %d below", above, below)
	}
}

// TestMadeUp: every made-up attack is in the records of each layout, within the days that count.
func TestMadeUp(t *testing.T) {
	c := testCompany(t, testSeed, 1000, 0)
	_, ways := c.ordinaryPolicy()
	var first []*attack
	for _, l := range []layout{netflow5, netflow9, ipfix} {
		rs, list := madeUp(c, l, map[int32]bool{}, ways)
		if len(list) != chainsASpeed*3+scansAKind*3+pivots {
			t.Errorf("%d attacks", len(list))
		}
		told := map[edge]bool{}
		for i := range rs {
			r := &rs[i]
			told[edge{r.Src, r.Dst, r.DstPort, r.Proto}], told[edge{r.Dst, r.Src, r.SrcPort, r.Proto}] = true, true
			if r.Start < c.start+flow.Time(c.b.Learning)*24*hour || r.Start > c.start+flow.Time(c.b.Days)*24*hour {
				t.Fatalf("a record at %s", r.Start)
			}
		}
		for _, a := range list {
			for e := range a.truth {
				if !told[e] {
					t.Errorf("%s, %s: no record of %s", l, a.name, e)
				}
			}
		}
		if first == nil {
			first = list
		} else if !slices.EqualFunc(first, list, func(a, b *attack) bool { return maps.Equal(a.truth, b.truth) && slices.Equal(a.hops, b.hops) }) {
			t.Errorf("%s has other attacks", l)
		}
	}
}

// TestOtherFolder: a folder of somebody else's, with files that are of no use.
func TestOtherFolder(t *testing.T) {
	dir := fixtures(t)
	to := t.TempDir()
	put := func(name, from string, text string) {
		t.Helper()
		b := []byte(text)
		if from != "" {
			var err error
			if b, err = os.ReadFile(filepath.Join(dir, from)); err != nil {
				t.Fatal(err)
			}
		}
		path := filepath.Join(to, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("deep/er/labels.tsv", "", "dataset\tcase\tfile\tsrc\tdst\tdport\tproto\tlabel\n"+
		"mine\tone\tsomewhere/first.pcapng\t172.18.39.5\t172.18.39.6\t135\ttcp\tmalicious_lateral\n"+
		"mine\tone\tsomewhere/first.pcapng\t172.18.39.5\tnobody\t135\ttcp\tmalicious_lateral\n"+
		"mine\ttwo\tabsent.cap\t172.18.39.5\t172.18.39.6\t135\ttcp\tmalicious_lateral\n")
	put("a/first.ipfix.pcap", "lateral/export/schtask_create_2020-12-1907003032.ipfix.pcap", "")
	put("a/b/first.nf9.pcap", "", "this is no capture")
	put("a/README", "", "nothing")
	put("a/second.nf5.pcap", "lateral/export/schtask_create_2020-12-1907003032.nf5.pcap", "")
	data, err := readDataset(flow.NewNames(0), to)
	if err != nil {
		t.Fatal(err)
	}
	if len(data.campaigns) != 1 || len(data.campaigns[0].records[fromIPFIX]) == 0 || len(data.campaigns[0].labels) != 1 {
		t.Errorf("%d campaigns", len(data.campaigns))
	}
	rs, a := data.campaigns[0].cold(netflow5, false)
	if len(rs) != 0 || a.absent != 1 {
		t.Errorf("in v5 %d records, %d edges absent", len(rs), a.absent)
	}
	if rs, a = data.campaigns[0].cold(ipfix, false); len(rs) == 0 || a.absent != 0 {
		t.Errorf("in IPFIX %d records, %d edges absent", len(rs), a.absent)
	}
	notes := strings.Join(data.notes, "\n")
	for _, want := range []string{"labels.tsv:3: not used", "first.nf9.pcap: not used", "README: not used", "second.nf5.pcap: not used: no row", "mine/two: labelled, but none"} {
		if !strings.Contains(notes, want) {
			t.Errorf("no note %q in\n%s", want, notes)
		}
	}
	if _, err := readDataset(flow.NewNames(0), t.TempDir()); err == nil {
		t.Error("a folder without labels was taken")
	}
}

// TestSnapshotGoesOn: what goes on from a snapshot finds what one run through would have.
func TestSnapshotGoesOn(t *testing.T) {
	c := testCompany(t, testSeed, 250, 2)
	text, ways := c.ordinaryPolicy()
	names := flow.NewNames(0)
	made, attacks := madeUp(c, ipfix, map[int32]bool{}, ways)
	l, err := learn(c, names, text, ipfix)
	if err != nil {
		t.Fatal(err)
	}
	parts, err := l.goOn(names, text, format{ipfix, false}, merged(made), nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := newStages(names, text)
	if err != nil {
		t.Fatal(err)
	}
	whole := newTraffic(c, ipfix)
	for rs := whole.next(); rs != nil; rs = whole.next() {
		s.feed(rs)
		if whole.day == c.b.Learning && whole.hour == 0 {
			whole.inserted = merged(made)
		}
	}
	s.finish(c.start + flow.Time(c.b.Days)*24*hour)
	if len(attacks) == 0 || len(parts.findings) == 0 {
		t.Fatal("nothing was found, so nothing was compared")
	}
	if len(parts.findings) != len(s.findings) {
		t.Fatalf("%d findings, want %d", len(parts.findings), len(s.findings))
	}
	for id, f := range s.findings {
		if p := parts.findings[id]; p == nil || p.last.Revision != f.last.Revision || p.highest != f.highest {
			t.Errorf("finding %s differs", id)
		}
	}
}

// TestClocks: how far a log's stamps are off is found by the conversations that flows tell of as
// well, and its records come when that happened.
func TestClocks(t *testing.T) {
	for _, c := range fixtureData(t).campaigns {
		for log, skew := range c.skews {
			want := flow.Time(0)
			if strings.HasSuffix(c.name, "/schtask_create") && log.source == flow.SourceWFP {
				want = -5 * hour // stamped in local time that is called UTC
			}
			if d := skew - want; d < -70_000 || d > 70_000 {
				t.Errorf("%s: %s is %d ms off", c.name, log.source, skew)
			}
		}
		from, to := flow.Time(0), flow.Time(0)
		for i, r := range c.records[fromIPFIX] {
			if i == 0 || r.Start < from {
				from = r.Start
			}
			to = max(to, r.End)
		}
		if !strings.HasSuffix(c.name, "/schtask_create") {
			continue
		}
		rs, _ := c.cold(ipfix, true)
		for i := range rs {
			if at := rs[i].Received; at < from-10*minute || at > to+10*minute {
				t.Errorf("%s: a record of %s comes at %s; the capture is from %s to %s", c.name, rs[i].Source, at, from, to)
			}
		}
	}
}
