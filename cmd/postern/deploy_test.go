package main

import (
	"path/filepath"
	"regexp"
	"testing"

	"github.com/postern/postern/sink"
)

// TestExampleConfigurations: what deploy/ tells people to install is accepted, beside the policy that it
// ships, and says what it seems to say.
func TestExampleConfigurations(t *testing.T) {
	for size, says := range map[string]func(c config) bool{
		"small":  func(c config) bool { return c.ClickHouse.URL == sink.URLEmbedded && !c.Kafka.Enabled() },
		"medium": func(c config) bool { return c.ClickHouse.TLS.Enabled && c.Identity.enabled() && !c.Kafka.Enabled() },
		"large": func(c config) bool {
			return len(c.Kafka.Brokers) == 3 && c.Kafka.SASL.Mechanism != "" && c.ClickHouse.TLS.Enabled
		},
	} {
		file := filepath.Join("..", "..", "deploy", "config", size+".yaml")
		cfg, err := loadConfig(file)
		if err != nil {
			t.Fatal(err)
		}
		if !says(cfg) || len(cfg.Ingest.NetFlow.Exporters) == 0 {
			t.Errorf("%s.yaml does not say what it seems to say: %+v", size, cfg)
		}
		if out, _, err := command(t, "check", "-c", file, filepath.Join("..", "..", "deploy", "config", "policy")); err != nil {
			t.Errorf("postern check: %v: %s", err, out)
		}
	}
}

// TestDocumentedConfigurations: what the pages show as configuration is one, from its first
// key on, so that it can be copied.
func TestDocumentedConfigurations(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	agents, err := filepath.Glob("../../docs/agents/*.md")
	if err != nil {
		t.Fatal(err)
	}
	// Files of other kinds: policies, an inventory, objects of Kubernetes.
	other := regexp.MustCompile(`^(postern: v1|rules:|exceptions:|suppressions:|inventory:\n  - address|apiVersion:|rule_files:)`)
	block := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$")
	checked := 0
	for _, page := range append(pages, agents...) {
		for i, m := range block.FindAllStringSubmatch(mustRead(t, page), -1) {
			if other.MatchString(m[1]) {
				continue
			}
			checked++
			file := writeFile(t, filepath.Join(t.TempDir(), "postern.yaml"), m[1])
			if _, err := loadConfig(file); err != nil {
				t.Errorf("%s, yaml block %d: %v", page, i+1, err)
			}
		}
	}
	if checked < 20 {
		t.Errorf("only %d configurations were found", checked)
	}
}
