package detect_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest"
	"github.com/postern/postern/policy"
	"github.com/postern/postern/test/scenario"
)

// fixtures is the folder of real captures; without it the test is skipped.
func fixtures(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("POSTERN_FIXTURES")
	if dir == "" {
		dir = filepath.Join("..", "..", "shared", "fixtures")
	}
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("no fixtures in %s; set POSTERN_FIXTURES to their folder", dir)
	}
	return dir
}

// replayed is a capture through decoder, enrich, policy and detect.
type replayed struct {
	*scenario.Chain
	flows []flow.Record
}

func replay(t testing.TB, path string, versions ...scenario.Version) *replayed {
	t.Helper()
	c, err := scenario.NewChain(scenario.DefaultSettings(), versions, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := &replayed{Chain: c}
	c.OnFlow = func(f *flow.Record, _ *flow.Names) { r.flows = append(r.flows, *f) }
	capture, err := ingest.OpenCapture(path)
	if err != nil {
		t.Fatal(err)
	}
	defer capture.Close()
	d := ingest.NewDecoder(ingest.DefaultDecoderConfig(), c.Names(), nil)
	for {
		dg, err := capture.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b := flow.NewBatch(64, nil)
		d.Decode(dg, b)
		c.Process(b)
		if err := c.EndUnit(); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	return r
}

type label struct {
	name, src, dst, port string
}

// labels gives the labelled edges of each capture's base name.
func labels(t testing.TB, dir string) map[string][]label {
	t.Helper()
	f, err := os.Open(filepath.Join(dir, "lateral", "labels.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := map[string][]label{}
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		w := strings.Split(sc.Text(), "\t")
		if len(w) < 9 || w[0] != "otrf-atomic" {
			continue
		}
		base := strings.TrimSuffix(filepath.Base(w[2]), filepath.Ext(w[2]))
		out[base] = append(out[base], label{w[8], w[3], w[4], w[5]})
	}
	return out
}

// TestLateralMovement: in every capture and in all three formats each edge
// labelled malicious between workstations is a violation, dynamic ports on both
// sides included, and nothing that goes to the domain controller's services is,
// though softflowd names the domain controller as the source of every biflow. What
// got through is a finding; a lone SYN that nobody answered is denied and counted.
func TestLateralMovement(t *testing.T) {
	dir := fixtures(t)
	edges := labels(t, dir)
	pol, diags := policy.Load(os.DirFS(filepath.Join("testdata", "lateral-policy")))
	if err := diags.Err(); err != nil {
		t.Fatal(err)
	}
	malicious, escaped, controller := 0, 0, 0
	for _, format := range []string{"nf5", "nf9", "ipfix"} {
		files, err := filepath.Glob(filepath.Join(dir, "lateral", "export", "*."+format+".pcap"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no captures of %s: %v", format, err)
		}
		for _, path := range files {
			base := strings.TrimSuffix(filepath.Base(path), "."+format+".pcap")
			t.Run(format+"/"+base, func(t *testing.T) {
				c := replay(t, path, scenario.Version{Policy: pol, Since: policy.Always})
				if len(edges[base]) == 0 {
					t.Fatalf("no labels for %s", base)
				}
				for _, l := range edges[base] {
					denied, through := violations(c, l)
					found := reported(c, l)
					switch toController := strings.HasPrefix(l.dst, "172.18.38."); {
					case l.name == "malicious_lateral" && !toController:
						malicious++
						if through {
							escaped++
						}
						if !denied || found != through {
							t.Errorf("%s → %s:%s is labelled %s; denied: %v, got through: %v, a finding: %v", l.src, l.dst, l.port, l.name, denied, through, found)
						}
					case toController:
						controller++
						if denied || found {
							t.Errorf("%s → %s:%s goes to the domain controller's services; denied: %v, a finding: %v", l.src, l.dst, l.port, denied, found)
						}
					}
				}
				for _, f := range c.Findings() {
					if strings.HasPrefix(f.Client, "172.18.38.") || strings.HasPrefix(f.Server, "172.18.38.") {
						t.Errorf("a finding about the domain controller: %s", f.Sentence)
					}
				}
			})
		}
	}
	t.Logf("%d labelled edges between workstations, %d of them got through; %d to the domain controller", malicious, escaped, controller)
}

// violations says whether a flow of a labelled edge is judged as denied, and
// whether one of them got through. While the orientation is open the edge may be
// either reading.
func violations(c *replayed, l label) (denied, through bool) {
	for i := range c.flows {
		r := &c.flows[i]
		client, server := r.Ends()
		cport, sport := r.Ports()
		straight := client.String() == l.src && server.String() == l.dst && fmt.Sprint(sport) == l.port
		swapped := r.Oriented == flow.Open && server.String() == l.src && client.String() == l.dst && fmt.Sprint(cport) == l.port
		if (straight || swapped) && r.Verdict.Reason == flow.ReasonDenied {
			denied = true
			through = through || r.Verdict.Outcome == flow.OutcomeEscaped
		}
	}
	return denied, through
}

// reported says whether a finding speaks of a labelled edge.
func reported(c *replayed, l label) bool {
	for _, f := range c.Findings() {
		for _, e := range f.Edges {
			if f.Type == flow.FindingDenied && e.Source == l.src && e.Destination == l.dst && fmt.Sprint(e.Port) == l.port {
				return true
			}
		}
	}
	return false
}
