package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestExampleConfiguration: what deploy/ tells people to install is accepted.
func TestExampleConfiguration(t *testing.T) {
	cfg, err := loadConfig(filepath.Join("..", "..", "deploy", "postern.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Webhooks) != 1 || cfg.Webhooks[0].Timeout == 0 || len(cfg.Ingest.NetFlow.Exporters) == 0 {
		t.Errorf("the example does not say what it seems to say: %+v", cfg)
	}
}

// TestUnit: the systemd unit verifies, on machines that have systemd's tool.
func TestUnit(t *testing.T) {
	path := filepath.Join("..", "..", "deploy", "postern.service")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	unit := string(raw)
	for _, want := range []string{"ExecStart=/usr/local/bin/postern serve -c /etc/postern/postern.yaml", "ExecReload=/bin/kill -HUP", "NoNewPrivileges=true"} {
		if !strings.Contains(unit, want) {
			t.Errorf("the unit lacks %q", want)
		}
	}
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Logf("systemd-analyze is not on this machine; the unit's directives were not verified: %v", err)
		return
	}
	// The binary is not installed where the unit expects it; everything else must be right.
	local := filepath.Join(t.TempDir(), "postern.service")
	if err := os.WriteFile(local, []byte(strings.ReplaceAll(unit, "/usr/local/bin/postern", "/bin/true")), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(tool, "verify", local).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
