package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern/postern/sink"
	"github.com/postern/postern/sink/embedded/embeddedtest"
)

// serverConfig is a configuration file for a server with tables of its own.
func serverConfig(t *testing.T) string {
	t.Helper()
	url, token := embeddedtest.Start(t)
	t.Setenv("POSTERN_TEST_CLICKHOUSE", token)
	return writeFile(t, filepath.Join(t.TempDir(), "postern.yaml"), fmt.Sprintf("data: %s\nclickhouse: {url: %q, user: default, password: env:POSTERN_TEST_CLICKHOUSE, database: ask_%d}\n",
		t.TempDir(), url, time.Now().UnixNano()))
}

func TestQueryCommand(t *testing.T) {
	cfg := serverConfig(t)
	if out, _, err := command(t, "migrate", "-c", cfg); err != nil || !strings.HasSuffix(out, "steps applied\n") {
		t.Fatalf("%q, %v", out, err)
	}
	out, _, err := command(t, "query", "--list")
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range sink.NamedQueries() {
		if !strings.Contains(out, q.Name) || !strings.Contains(out, q.Question) {
			t.Errorf("--list does not tell of %s", q.Name)
		}
		args := []string{"query", "-c", cfg, "--format", "csv", q.Name}
		for _, p := range q.Params {
			if p.Required {
				args = append(args, "--param", p.Name+"="+p.Example)
			}
		}
		if out, _, err := command(t, args...); err != nil || strings.Count(out, "\n") > 1 {
			t.Errorf("%v on empty tables: %q, %v", args, out, err)
		}
	}
	for _, c := range []struct {
		want string
		args []string
	}{
		{"{\"a\":\"x = 'y'\"}\n", []string{"-f", "json", "--param", "v=x = 'y'", "SELECT {v:String} AS a"}},
		{"a\n7\n", []string{"-f", "csv", "SELECT 7 AS a"}},
	} {
		if out, _, err := command(t, append([]string{"query", "-c", cfg}, c.args...)...); err != nil || out != c.want {
			t.Errorf("%v: %q, %v; want %q", c.args, out, err, c.want)
		}
	}
	for want, args := range map[string][]string{
		`there is no query "exeption-use"`:    {"exeption-use"},
		"query exception-use needs exception": {"exception-use"},
		`--param "exception" is no parameter`: {"exception-use", "--param", "exception"},
		"has no parameter day;":               {"escaped", "--param", "day=1"},
		"the statement has no parameter v":    {"SELECT 1", "--param", "v=1"},
	} {
		if _, _, err := command(t, append([]string{"query", "-c", cfg}, args...)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
}

// What an administrator is given names no password, and no server is asked for it.
func TestMigrateGrants(t *testing.T) {
	cfg := writeFile(t, filepath.Join(t.TempDir(), "postern.yaml"), "clickhouse: {url: 'clickhouse://ch.example:9000', database: segments}\n")
	out, _, err := command(t, "migrate", "-c", cfg, "--grants", "--reader", "auditor", "--grafana", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"GRANT INSERT ON segments.flows TO segments_role_write;\n", "CREATE USER IF NOT EXISTS auditor IDENTIFIED WITH sha256_hash BY '<SHA-256", "GRANT segments_role_read TO auditor;\n", "sha256sum"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
	if strings.Contains(out, "grafana") || strings.Contains(out, "embedded") {
		t.Errorf("a user that nobody asked for:\n%s", out)
	}
	if _, _, err := command(t, "migrate", "-c", cfg, "--grants", "--plan"); err == nil {
		t.Error("--grants and --plan at once")
	}
}
