package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestExampleConfiguration: what deploy/ tells people to install is accepted.
func TestExampleConfiguration(t *testing.T) {
	cfg, err := loadConfig(filepath.Join("..", "..", "deploy", "postern.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Targets) != 1 || cfg.Targets[0].Webhook.Timeout == 0 || len(cfg.Ingest.NetFlow.Exporters) == 0 {
		t.Errorf("the example does not say what it seems to say: %+v", cfg)
	}
}

// TestExampleWithKafka: so is the one for the roles around Kafka, and it says how to make
// its topics.
func TestExampleWithKafka(t *testing.T) {
	cfg, err := loadConfig(filepath.Join("..", "..", "deploy", "kafka.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Kafka.Brokers) != 3 || cfg.Kafka.SASL.Mechanism == "" || len(cfg.Targets) != 1 {
		t.Errorf("the example does not say what it seems to say: %+v", cfg.Kafka)
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
	other := regexp.MustCompile(`^(postern: v1|rules:|exceptions:|suppressions:|inventory:\n  - address|apiVersion:)`)
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

// TestUnits: the systemd units verify, on machines that have systemd's tool.
func TestUnits(t *testing.T) {
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Logf("systemd-analyze is not on this machine; the units' directives were not verified: %v", err)
	}
	for name, wants := range map[string][]string{
		"postern.service":  {"ExecStart=/usr/local/bin/postern serve -c /etc/postern/postern.yaml"},
		"postern@.service": {"ExecStart=/usr/local/bin/postern %i -c /etc/postern/%i.yaml"},
	} {
		raw, err := os.ReadFile(filepath.Join("..", "..", "deploy", name))
		if err != nil {
			t.Fatal(err)
		}
		unit := string(raw)
		for _, want := range append(wants, "ExecReload=/bin/kill -HUP", "NoNewPrivileges=true") {
			if !strings.Contains(unit, want) {
				t.Errorf("%s lacks %q", name, want)
			}
		}
		if tool == "" {
			continue
		}
		// The binary is not installed where the unit expects it; everything else must be right.
		local := filepath.Join(t.TempDir(), strings.Replace(name, "@", "@detect", 1))
		if err := os.WriteFile(local, []byte(strings.ReplaceAll(unit, "/usr/local/bin/postern", "/bin/true")), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(tool, "verify", local).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}
