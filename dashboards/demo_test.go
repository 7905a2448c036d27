package dashboards

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/postern/postern/sink/embedded"
	"github.com/postern/postern/test/part"
)

// demo is a running `postern demo`: the real binary, with its engine and its metrics.
type demo struct {
	engine
	admin, token string // where its metrics are, and what it asks for them
}

// startDemo runs the real binary's demo until it says that it stays up.
func startDemo(t *testing.T) demo {
	t.Helper()
	if err := embedded.Supported(); err != nil {
		t.Skip(err)
	}
	if _, err := embedded.Locate(""); err != nil {
		t.Skipf("the embedded ClickHouse is not fetched: %v", err)
	}
	dir := t.TempDir()
	bin := filepath.Join(dir, "postern")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "../cmd/postern").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 8*time.Minute)
	cmd := exec.CommandContext(ctx, bin, "demo", "--data", dir)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	var diag bytes.Buffer
	cmd.Stderr = &diag
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		cancel()
		<-done
		_ = cmd.Wait() // it was told to end
	})
	d := demo{engine: engine{database: "postern"}}
	query, admin := regexp.MustCompile(`curl -s '(http://[^/]+)/\?user=reader'`), regexp.MustCompile(`curl -s (http://[^/]+)/ledger`)
	up, said := make(chan struct{}), &strings.Builder{}
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			fmt.Fprintln(said, lines.Text())
			if m := query.FindStringSubmatch(lines.Text()); m != nil {
				d.url = m[1]
			}
			if m := admin.FindStringSubmatch(lines.Text()); m != nil {
				d.admin = strings.TrimPrefix(m[1], "http://")
				close(up)
			}
		}
	}()
	select {
	case <-up:
	case <-done:
		t.Fatalf("the demo ended:\n%s%s", said, diag.String())
	}
	for file, token := range map[string]*string{"clickhouse-readonly.token": &d.reader, "admin.token": &d.token} {
		b, err := os.ReadFile(filepath.Join(dir, "data", file))
		if err != nil {
			t.Fatal(err)
		}
		*token = strings.TrimSpace(string(b))
	}
	return d
}

// TestDemo: on what the demo leaves behind no panel is empty, neither those that ask the tables
// nor those that ask Prometheus, which here is Debian's and scrapes the demo.
func TestDemo(t *testing.T) {
	d := startDemo(t)
	prom := startPrometheus(t, d)
	patience := time.Now().Add(3 * time.Minute)
	for _, f := range Catalog() {
		for _, v := range f.Templating.List {
			if v.Type == "query" && *v.Source == clickHouse {
				if a, err := d.ask(t.Context(), v.Query); err != nil || len(a.Data) == 0 {
					t.Errorf("%s: variable %s: %v, %v", f.Name, v.Name, a.Data, err)
				}
			}
		}
		for _, p := range f.Panels {
			for _, q := range p.Targets {
				if q.Source == prometheus {
					continue
				}
				sql, err := view(f.Dashboard, p, map[string][]string{"exception": {"EX-2077"}, "severity": {"critical", "high", "medium"}}).expand(q.SQL)
				if err != nil {
					t.Fatal(err)
				}
				// The roll-up counts a session once it is over: the last half hour fills within minutes.
				a, err := d.ask(t.Context(), sql)
				for err == nil {
					if err = fits(p.Type, q, a); err == nil || time.Now().After(patience) {
						break
					}
					time.Sleep(2 * time.Second)
					a, err = d.ask(t.Context(), sql)
				}
				if err != nil {
					t.Errorf("%s: %s: %v\n%s", f.Name, p.Title, err, sql)
				}
			}
		}
	}
	a, err := d.ask(t.Context(), "SELECT toDate(max(hour)) - toDate(min(hour)), countIf(input = 'generated') > 0 FROM edge_hours")
	if err != nil || a.Data[0][0].(float64) < 29 || a.Data[0][1].(float64) == 0 {
		t.Errorf("the demo goes back %v days, generated: %v", a.Data, err)
	}
	if prom == "" {
		part.Missing(t, "Prometheus is not installed (Debian: prometheus); the Pipeline dashboard was not tried")
	}
	for _, p := range pipeline().Panels {
		for _, q := range p.Targets {
			if q.may {
				continue
			}
			if n, err := series(t.Context(), prom, promExpand(q.Expr)); err != nil || n == 0 {
				t.Errorf("%s: %s: %d series, %v", p.Title, q.Expr, n, err)
			}
		}
	}
	for _, v := range pipeline().Templating.List {
		if v.Type == "query" {
			name, label, _ := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(v.Query, "label_values("), ")"), ", ")
			if n, err := series(t.Context(), prom, "count by ("+label+") ("+name+")"); err != nil || n == 0 {
				t.Errorf("variable %s: %d values, %v", v.Name, n, err)
			}
		}
	}
}

// promExpand fills in what Grafana does: all instances, and four times the scrape interval.
func promExpand(expr string) string {
	return strings.NewReplacer("$instance", ".*", "$__rate_interval", "20s").Replace(expr)
}

// startPrometheus scrapes a demo every second, evaluates the rules as often, and gives its address once
// rates can be told; empty where it is not installed.
func startPrometheus(t *testing.T, d demo) string {
	t.Helper()
	bin, err := exec.LookPath("prometheus")
	if err != nil {
		return ""
	}
	rules, err := filepath.Abs("rules/postern.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := fmt.Sprintf(`global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [%q]
scrape_configs:
  - job_name: postern
    authorization: {credentials: %q}
    static_configs: [{targets: [%q]}]
`, rules, d.token, d.admin)
	if err := os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := free.Addr().String()
	free.Close()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	cmd := exec.CommandContext(ctx, bin, "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+at, "--log.level=warn")
	var diag bytes.Buffer
	cmd.Stderr = &diag
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); _ = cmd.Wait() })
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(500 * time.Millisecond) {
		if n, err := series(t.Context(), at, "count_over_time(postern_ledger_closes[1m]) > 15"); err == nil && n > 0 {
			return at
		} else if time.Now().After(deadline) {
			t.Fatalf("Prometheus does not scrape the demo: %v\n%s", err, diag.String())
		}
	}
}

// series says how many series an expression gives now.
func series(ctx context.Context, at, expr string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at+"/api/v1/query?"+url.Values{"query": {expr}}.Encode(), nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return 0, err
	}
	var answer struct {
		Error string
		Data  struct{ Result []json.RawMessage }
	}
	if err := json.Unmarshal(b, &answer); err != nil || answer.Error != "" {
		return 0, fmt.Errorf("%w %s", err, answer.Error)
	}
	return len(answer.Data.Result), nil
}
