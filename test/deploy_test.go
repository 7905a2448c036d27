package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/postern/postern/test/part"
)

// What deploy/ ships is looked at by the tools of those who made its formats, and by what each
// file says of the others. Nothing is started here but a Kubernetes API server without nodes.

// object is a part of something written in YAML or JSON.
type object = map[string]any

// deployTool gives the path of a tool that test/deploy/tools built; helm comes of building the API server.
func deployTool(t *testing.T, name string) string {
	t.Helper()
	built := "../.cache/deploy/" + name
	if name == "helm" {
		built = "../.cache/kubernetes/helm"
	}
	for _, there := range []string{"../.cache/deploy/stamp", built} {
		if _, err := os.Stat(there); err != nil {
			part.Missing(t, "helm, compose-go and BuildKit's linter are not there; make kubernetes deploy-tools builds them")
		}
	}
	path, err := filepath.Abs(built)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// output runs a tool in a folder and gives its standard output.
func output(t *testing.T, dir, tool string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(tool, args...)
	cmd.Dir = dir
	var diag bytes.Buffer
	cmd.Stderr = &diag
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", filepath.Base(tool), strings.Join(args, " "), err, out, diag.Bytes())
	}
	return out
}

// at follows keys and positions; nil where there is nothing.
func at(v any, path ...any) any {
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, _ := v.(object)
			v = m[p]
		case int:
			l, _ := v.([]any)
			if p >= len(l) {
				return nil
			}
			v = l[p]
		}
	}
	return v
}

// each is the parts of a list.
func each(v any) []object {
	list, _ := v.([]any)
	out := make([]object, 0, len(list))
	for _, e := range list {
		if m, ok := e.(object); ok {
			out = append(out, m)
		}
	}
	return out
}

// within says whether a path is a folder or below it.
func within(path, folder string) bool {
	return path == folder || strings.HasPrefix(path, strings.TrimSuffix(folder, "/")+"/")
}

// secretFiles are the files that a configuration reads secrets and keys from.
func secretFiles(config string) []string {
	var out []string
	for _, m := range regexp.MustCompile(`(?:file:|(?:ca|cert|key): )(/[^\s,}"]+)`).FindAllStringSubmatch(config, -1) {
		out = append(out, m[1])
	}
	return out
}

const composeFolder = "../deploy/compose"

// TestCompose: the compose file is one by the specification's own library, what it refers to is there, and
// nothing in it may do more than it has to.
func TestCompose(t *testing.T) {
	tool := deployTool(t, "compose")
	folder, err := filepath.Abs(composeFolder)
	if err != nil {
		t.Fatal(err)
	}
	var model object
	if err := json.Unmarshal(output(t, folder, tool, "--format", "json", "compose.yaml"), &model); err != nil {
		t.Fatal(err)
	}
	services, _ := model["services"].(object)
	for _, want := range []string{"collect", "detect", "forward", "topics", "kafka", "clickhouse", "prometheus", "grafana"} {
		if services[want] == nil {
			t.Errorf("there is no service %s", want)
		}
	}
	// Their images write into their own root when they start.
	writes := []string{"kafka"}
	secrets, _ := model["secrets"].(object)
	for name, s := range services {
		s, _ := s.(object)
		image := fmt.Sprint(s["image"])
		if _, tag, ok := strings.Cut(image, ":"); !ok || tag == "latest" {
			t.Errorf("%s: image %s: say which version", name, image)
		}
		if s["privileged"] == true || len(each(s["devices"])) > 0 || s["network_mode"] != nil || s["pid"] != nil || len(each(s["cap_add"])) > 0 {
			t.Errorf("%s may do more than a container should", name)
		}
		if !slices.Contains(anyStrings(s["cap_drop"]), "ALL") || !slices.Contains(anyStrings(s["security_opt"]), "no-new-privileges:true") {
			t.Errorf("%s: capabilities %v, security options %v", name, s["cap_drop"], s["security_opt"])
		}
		if s["read_only"] != true && !slices.Contains(writes, name) {
			t.Errorf("%s: its root can be written", name)
		}
		if user := fmt.Sprint(s["user"]); name != "kafka" && !regexp.MustCompile(`^[1-9]\d*:\d+$`).MatchString(user) {
			t.Errorf("%s: runs as %v", name, s["user"])
		}
		if s["healthcheck"] == nil && name != "topics" {
			t.Errorf("%s: nobody looks whether it works", name)
		}
		for _, p := range each(s["ports"]) {
			if p["protocol"] != "udp" && p["host_ip"] != "127.0.0.1" {
				t.Errorf("%s: port %v is open to the network", name, p["published"])
			}
		}
		for _, v := range each(s["volumes"]) {
			if v["type"] != "bind" {
				continue
			}
			if _, err := os.Stat(fmt.Sprint(v["source"])); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if v["read_only"] != true {
				t.Errorf("%s: %v could be written", name, v["source"])
			}
			if v["target"] == "/etc/postern/postern.yaml" {
				readsItsSecrets(t, name, fmt.Sprint(v["source"]), s)
			}
		}
		env, _ := s["environment"].(object)
		for k, v := range env {
			if regexp.MustCompile(`(?i)(password|secret|token)`).MatchString(k) && !strings.HasPrefix(fmt.Sprint(v), "/run/secrets/") {
				t.Errorf("%s: %s is not by file", name, k)
			}
		}
		for _, ref := range each(s["secrets"]) {
			if secrets[fmt.Sprint(ref["source"])] == nil {
				t.Errorf("%s: there is no secret %v", name, ref["source"])
			}
		}
	}
	if at(model, "networks", "back", "internal") != true {
		t.Error("the network of Kafka, ClickHouse and Prometheus has a way out")
	}
	for _, name := range []string{"kafka", "clickhouse", "prometheus"} {
		if networks, _ := at(services, name, "networks").(object); len(networks) != 1 || at(services, name, "ports") != nil {
			t.Errorf("%s is reached from elsewhere than the inner network", name)
		}
	}
	run(t, "check", "-c", filepath.Join(folder, "postern.yaml"), "../deploy/config/policy")
}

// TestComposePrometheus: Prometheus's own tool takes its configuration.
func TestComposePrometheus(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		part.Missing(t, "promtool is not on this machine; Prometheus's configuration was not checked")
	}
	output(t, composeFolder, promtool, "check", "config", "--syntax-only", "prometheus/prometheus.yml")
}

// TestComposeDataSources: Grafana's data sources in compose are those that the dashboards are made for.
func TestComposeDataSources(t *testing.T) {
	sources := func(file string) []string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, s := range each(documents(t, text)[0]["datasources"]) {
			out = append(out, fmt.Sprint(s["uid"], " ", s["type"], " ", s["name"]))
		}
		return out
	}
	want := []string{"postern-clickhouse grafana-clickhouse-datasource Postern ClickHouse", "postern-prometheus prometheus Postern Prometheus"}
	files, err := filepath.Glob("../dashboards/provisioning/datasources/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, composeFolder+"/grafana/datasources.yaml") {
		if got := sources(file); !slices.Equal(got, want) {
			t.Errorf("%s: %q", file, got)
		}
	}
}

func anyStrings(v any) []string {
	list, _ := v.([]any)
	var out []string
	for _, e := range list {
		out = append(out, fmt.Sprint(e))
	}
	return out
}

// readsItsSecrets holds that a service that judges or tells is given what its configuration reads.
func readsItsSecrets(t *testing.T, name, file string, service object) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var given []string
	for _, ref := range each(service["secrets"]) {
		given = append(given, "/run/secrets/"+fmt.Sprint(ref["source"]))
	}
	for _, want := range secretFiles(string(text)) {
		if strings.Contains(want, "clickhouse") && name != "detect" || name == "topics" {
			continue // none of theirs
		}
		if !slices.Contains(given, want) {
			t.Errorf("%s is not given %s", name, want)
		}
	}
}

// TestComposeUp: one command makes passwords that nobody knows, once, and starts it all. A program
// that writes down how it is called stands in for Docker.
func TestComposeUp(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("cp", "-r", composeFolder, filepath.Join(dir, "compose")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	folder := filepath.Join(dir, "compose")
	if err := os.RemoveAll(filepath.Join(folder, "secrets")); err != nil { // of whoever works here
		t.Fatal(err)
	}
	docker := filepath.Join(dir, "bin", "docker")
	if err := errors.Join(os.Mkdir(filepath.Dir(docker), 0o700),
		os.WriteFile(docker, []byte("#!/bin/sh\necho \"$@\" >>\"$CALLS\"\n"), 0o700)); err != nil {
		t.Fatal(err)
	}
	calls := filepath.Join(dir, "calls")
	up := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(filepath.Join(folder, "up"), args...)
		cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(docker)+":"+os.Getenv("PATH"), "CALLS="+calls)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	read := func(name string) string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(folder, "secrets", name))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	told := up()
	made := map[string]string{}
	for _, name := range []string{"admin_token", "clickhouse_password", "clickhouse_grafana_password", "grafana_password"} {
		made[name] = read(name)
		if len(made[name]) != 32 || strings.Contains(told, made[name]) {
			t.Errorf("%s: %d characters, told: %v", name, len(made[name]), strings.Contains(told, made[name]))
		}
	}
	distinct := map[string]bool{}
	for _, v := range made {
		distinct[v] = true
	}
	if len(distinct) != len(made) {
		t.Error("two passwords are the same")
	}
	users := read("clickhouse_users.xml")
	if strings.Contains(users, "@") || strings.Contains(users, made["clickhouse_password"]) || len(regexp.MustCompile(`>[0-9a-f]{64}<`).FindAllString(users, -1)) != 2 {
		t.Errorf("ClickHouse's users do not have the hashes of their passwords:\n%s", users)
	}
	if info, err := os.Stat(filepath.Join(folder, "secrets")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder of the secrets: %v, %v", info.Mode(), err)
	}
	if up("--progress", "plain"); read("admin_token") != made["admin_token"] {
		t.Error("a second start makes other passwords")
	}
	b, err := os.ReadFile(calls)
	want := "compose -f compose.yaml up --detach --build --wait\ncompose -f compose.yaml --progress plain up --detach --build --wait\n"
	if err != nil || string(b) != want {
		t.Errorf("Docker was called with\n%s%v", b, err)
	}
}

// dockerfile is what BuildKit's parser and linter say of deploy/Dockerfile.
type dockerfile struct {
	Warnings []string
	Args     map[string]string
	Stages   []struct {
		Name, Base string
		Commands   []struct{ Name, Text string }
	}
}

// TestDockerfile: BuildKit's linter has nothing to say, and what comes out has no shell, no root and no version
// that moves by itself.
func TestDockerfile(t *testing.T) {
	tool := deployTool(t, "dockerfile")
	var d dockerfile
	if err := json.Unmarshal(output(t, "..", tool, "deploy/Dockerfile"), &d); err != nil {
		t.Fatal(err)
	}
	for _, w := range d.Warnings {
		t.Error(w)
	}
	for name, image := range d.Args {
		if repository, tag, ok := strings.Cut(image, ":"); !ok || tag == "latest" || strings.Contains(repository, "/") {
			t.Errorf("%s=%s: an official image with its version", name, image)
		}
	}
	bases := map[string]string{}
	last := d.Stages[len(d.Stages)-1]
	for _, s := range d.Stages {
		if _, stage := bases[s.Base]; !stage && s.Base != "scratch" && !strings.HasPrefix(s.Base, "${") {
			t.Errorf("stage %s stands on %s, which is neither a stage nor a pinned argument", s.Name, s.Base)
		}
		bases[s.Name] = s.Base
		for _, c := range s.Commands {
			if _, from, copied := strings.Cut(c.Text, "--from="); copied {
				if stage, _, _ := strings.Cut(from, " "); bases[stage] == "" {
					t.Errorf("%s: there is no stage %s before", c.Text, stage)
				}
			}
			if c.Name == "ADD" {
				t.Errorf("%s: COPY does what it says", c.Text)
			}
		}
	}
	if last.Name != "postern" || bases["postern"] != "runtime" || bases["embedded"] != "runtime" || bases["runtime"] != "scratch" {
		t.Errorf("stages stand on %v, and the last is %s", bases, last.Name)
	}
	for _, s := range d.Stages {
		var says []string
		for _, c := range s.Commands {
			says = append(says, c.Text)
		}
		if s.Name == "runtime" && (!slices.Contains(says, "USER 65532:65532") || !strings.Contains(strings.Join(says, "\n"), `ENTRYPOINT ["/usr/local/bin/postern"]`)) {
			t.Errorf("the image is %q", says)
		}
	}
	listed, err := os.ReadFile("../deploy/Dockerfile.dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	var sent []string
	for line := range strings.Lines(string(listed)) {
		if file, again := strings.CutPrefix(strings.TrimSpace(line), "!"); again {
			sent = append(sent, file)
		}
	}
	for _, p := range goList(t, "-deps", "./cmd/postern") {
		if folder, ours := strings.CutPrefix(p.ImportPath, modulePath+"/"); ours && !slices.ContainsFunc(sent, func(s string) bool { return within(folder, s) }) {
			t.Errorf("Dockerfile.dockerignore leaves out %s, which the binary is built from", folder)
		}
	}
}

// TestImageRoot: the commands that gather the image's root do, and postern runs in it, as the image's user,
// while nothing of it can be written. There is no Docker here; the commands are those of the Dockerfile.
func TestImageRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("chroot needs root; the image's root was not tried")
	}
	text, err := os.ReadFile("../deploy/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	_, script, begun := strings.Cut(string(text), "RUN <<END\n")
	script, _, ended := strings.Cut(script, "\nEND\n")
	if !begun || !ended {
		t.Fatal("the Dockerfile gathers its root in another way")
	}
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	if err := os.Chmod(dir, 0o755); err != nil { // another user looks into it
		t.Fatal(err)
	}
	if err := os.Symlink(postern(t), filepath.Join(dir, "postern")); err != nil {
		t.Fatal(err)
	}
	script = strings.ReplaceAll(script, "cp /out/postern ", "cp -L /out/postern ")
	if out, err := exec.Command("sh", "-c", strings.ReplaceAll(script, "/out/", dir+"/")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, f := range []string{"config/small.yaml", "config/policy/policy.yaml"} {
		b, err := os.ReadFile("../deploy/" + f)
		to := filepath.Join(root, "etc/postern", f)
		if err := errors.Join(err, os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, b, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	inside := func(args ...string) (string, error) {
		out, err := exec.Command("unshare", append([]string{"--mount", "sh", "-c",
			`mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec chroot --userspec=65532:65532 "$0" /usr/local/bin/postern "$@"`, root}, args...)...).CombinedOutput()
		return string(out), err
	}
	if out, err := inside("check", "-c", "/etc/postern/config/small.yaml", "/etc/postern/config/policy"); err != nil || !strings.Contains(out, "2 segments") {
		t.Errorf("postern in the image's root: %v: %s", err, out)
	}
	if out, err := inside("serve"); err == nil || !strings.Contains(out, "read-only file system") {
		t.Errorf("the root can be written: %v: %s", err, out)
	}
	var size int64
	if err := filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			info, err := e.Info()
			if err != nil {
				return err
			}
			if filepath.Base(path) != "postern" {
				size += info.Size()
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if size > 8<<20 {
		t.Errorf("beside the binary the image holds %d bytes", size)
	}
}

// TestUnits: the systemd units verify, and expose as little as systemd itself measures.
func TestUnits(t *testing.T) {
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		part.Missing(t, "systemd-analyze is not on this machine; the units were not verified")
	}
	for name, runs := range map[string]string{
		"postern.service":  "serve -c /etc/postern/postern.yaml",
		"postern@.service": "%i -c /etc/postern/%i.yaml",
	} {
		raw, err := os.ReadFile("../deploy/systemd/" + name)
		if err != nil {
			t.Fatal(err)
		}
		unit := string(raw)
		for _, want := range []string{"ExecStart=/usr/local/bin/postern " + runs + "\n", "ExecReload=/bin/kill -HUP", "Restart=always", "SystemCallFilter=@system-service"} {
			if !strings.Contains(unit, want) {
				t.Errorf("%s lacks %q", name, want)
			}
		}
		// The binary is not installed where the unit expects it; everything else must be right.
		local := filepath.Join(t.TempDir(), strings.Replace(name, "@", "@detect", 1))
		if err := os.WriteFile(local, []byte(strings.ReplaceAll(unit, "/usr/local/bin/postern", "/bin/true")), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(tool, "verify", local).CombinedOutput()
		if err != nil || strings.Contains(string(out), filepath.Base(local)) { // it tells of other units as well
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		out, err = exec.Command(tool, "security", "--offline=true", "--threshold=20", "--no-pager", local).CombinedOutput()
		if err != nil { // above 2.0 of 10
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

// documents are those of a YAML stream.
func documents(t *testing.T, text []byte) []object {
	t.Helper()
	var out []object
	for dec := yaml.NewDecoder(bytes.NewReader(text)); ; {
		var d object
		if err := dec.Decode(&d); errors.Is(err, io.EOF) {
			return out
		} else if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if d != nil {
			out = append(out, d)
		}
	}
}
