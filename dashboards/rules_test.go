package dashboards

import (
	"os"
	"os/exec"
	"path"
	"regexp"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/postern/postern/test/part"
)

type ruleFile struct {
	Groups []struct {
		Rules []struct {
			Alert, Record, Expr string
			Annotations         map[string]string
		}
	}
}

func rules(t *testing.T) ruleFile {
	t.Helper()
	raw, err := os.ReadFile("rules/postern.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var f ruleFile
	if err := yaml.Unmarshal(raw, &f); err != nil {
		t.Fatal(err)
	}
	return f
}

// TestRules runs Prometheus' own check and test of the rules, and holds every alert to a case
// in them and to its section of the runbooks.
func TestRules(t *testing.T) {
	cases, err := os.ReadFile("rules/postern_test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	book, err := os.ReadFile("../docs/runbooks.md")
	if err != nil {
		t.Fatal(err)
	}
	alerts := 0
	for _, g := range rules(t).Groups {
		for _, r := range g.Rules {
			if r.Alert == "" {
				continue
			}
			alerts++
			if !strings.Contains(string(cases), "alertname: "+r.Alert+"\n") {
				t.Errorf("%s: no case shows that it fires", r.Alert)
			}
			if got, want := path.Base(r.Annotations["runbook_url"]), "runbooks.md#"+strings.ToLower(r.Alert); got != want {
				t.Errorf("%s: leads to %s, not %s", r.Alert, got, want)
			}
			if !strings.Contains(string(book), "\n## "+r.Alert+"\n") {
				t.Errorf("docs/runbooks.md has no section %s", r.Alert)
			}
		}
	}
	if alerts < 10 {
		t.Errorf("%d alerts", alerts)
	}
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		part.Missing(t, "promtool is not installed (Debian: prometheus)")
	}
	for _, args := range [][]string{{"check", "rules", "postern.yaml"}, {"test", "rules", "postern_test.yaml"}} {
		cmd := exec.CommandContext(t.Context(), promtool, args...)
		cmd.Dir = "rules"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
}

var metricName = regexp.MustCompile(`\bpostern_[a-z0-9_]+`)

// TestMetricsExist: every metric that a rule or a panel asks for is one that the binary has.
func TestMetricsExist(t *testing.T) {
	page, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	var asked []string
	records := map[string]bool{}
	for _, g := range rules(t).Groups {
		for _, r := range g.Rules {
			asked = append(asked, r.Expr)
			records[r.Record] = true
		}
	}
	for _, p := range pipeline().Panels {
		for _, q := range p.Targets {
			asked = append(asked, q.Expr)
		}
	}
	recorded := regexp.MustCompile(`\binstance:\w+(:\w+)*`)
	for _, expr := range asked {
		for _, name := range recorded.FindAllString(expr, -1) {
			if !records[name] {
				t.Errorf("%s is asked for and not recorded", name)
			}
		}
		for _, name := range metricName.FindAllString(recorded.ReplaceAllString(expr, ""), -1) {
			if name = strings.TrimSuffix(name, "_bucket"); !strings.Contains(string(page), "| `"+name+"` |") {
				t.Errorf("docs/metrics.md has no %s", name)
			}
		}
	}
}
