package test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/postern/postern/test/part"
)

const chartFolder = "../deploy/helm/postern"

// chartValues are files of values to render the chart with.
func chartValues(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(chartFolder + "/ci/*.yaml")
	if err != nil || len(files) < 3 {
		t.Fatalf("values in ci/: %v, %v", files, err)
	}
	return files
}

// render gives what the chart makes of a file of values.
func render(t *testing.T, chart, values string, more ...string) []object {
	t.Helper()
	return documents(t, output(t, ".", deployTool(t, "helm"), append([]string{"template", "postern", chart, "--namespace", "flows", "-f", values}, more...)...))
}

func kinds(docs []object, kind string) []object {
	return slices.DeleteFunc(slices.Clone(docs), func(d object) bool { return d["kind"] != kind })
}

func objectOf(docs []object, kind, name string) object {
	for _, d := range kinds(docs, kind) {
		if at(d, "metadata", "name") == name {
			return d
		}
	}
	return nil
}

// templates are the pods of everything that makes pods, by the name of what makes them.
func templates(docs []object) map[string]object {
	out := map[string]object{}
	for _, kind := range []string{"StatefulSet", "Deployment", "Job"} {
		for _, d := range kinds(docs, kind) {
			out[fmt.Sprint(at(d, "metadata", "name"))], _ = at(d, "spec", "template").(object)
		}
	}
	return out
}

// selects says whether a selector's labels are all among others.
func selects(selector, labels any) bool {
	have, _ := labels.(object)
	want, _ := at(selector, "matchLabels").(object)
	for k, v := range want {
		if have[k] != v {
			return false
		}
	}
	return true
}

// TestChartLint: helm has nothing to say against the chart, and what has to be said is asked for.
func TestChartLint(t *testing.T) {
	helm := deployTool(t, "helm")
	for _, values := range chartValues(t) {
		output(t, ".", helm, "lint", "--strict", "--quiet", "-f", values, chartFolder)
	}
	least := chartFolder + "/ci/least.yaml"
	for set, want := range map[string]string{
		"kafka.brokers=null":                             "kafka.brokers: name at least one broker",
		"clickhouse.url=":                                "clickhouse.url: name the server",
		"admin.existingSecret=":                          "admin.existingSecret: name the Secret",
		"policy.existingConfigMap=":                      "policy.existingConfigMap: name the ConfigMap",
		"collect.exporters=null":                         "collect.exporters: say who may send",
		"collect.logs.enabled=true":                      "collect.logs.existingSecret: name the Secret",
		"kafka.partitionz=3":                             "partitionz",
		"detect.replicas=many":                           "detect/replicas",
		"collect.spool.maxBytes=lots":                    "maxBytes",
		"clickhouse.url=clickhouse://postern:pw@ch:9000": "clickhouse/url", // a password would be in a ConfigMap
		"image.tag=latest":                               "image/tag",
	} {
		out, err := exec.Command(helm, "template", "postern", chartFolder, "-f", least, "--set", set).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("--set %s: %v: %.500s", set, err, out)
		}
	}
}

// TestChart holds what the manifests say of each other, however the chart is set.
func TestChart(t *testing.T) {
	for _, values := range chartValues(t) {
		t.Run(filepath.Base(values), func(t *testing.T) {
			docs := render(t, chartFolder, values)
			pods := templates(docs)
			if len(pods) == 0 {
				t.Fatal("nothing runs")
			}
			for name, pod := range pods {
				checkPod(t, docs, name, pod)
			}
			checkConfigurations(t, docs, pods)
			if !strings.Contains(values, "detect-only") { // which turns them off
				checkNetwork(t, docs, pods)
			}
			for _, d := range kinds(docs, "ScaledObject") {
				checkScaling(t, docs, d)
			}
			for _, d := range slices.Concat(kinds(docs, "PodDisruptionBudget"), kinds(docs, "Service")) {
				selector := at(d, "spec", "selector")
				if d["kind"] == "Service" {
					selector = object{"matchLabels": selector}
				}
				if !slices.ContainsFunc(slices.Collect(maps.Values(pods)), func(p object) bool { return selects(selector, at(p, "metadata", "labels")) }) {
					t.Errorf("%s %v selects nobody", d["kind"], at(d, "metadata", "name"))
				}
			}
		})
	}
}

// checkPod holds what Pod Security's profile `restricted` does not ask for.
func checkPod(t *testing.T, docs []object, name string, pod object) {
	t.Helper()
	spec := at(pod, "spec")
	if may := at(spec, "automountServiceAccountToken") == true; may != strings.HasSuffix(name, "-identity") {
		t.Errorf("%s: has a token of the API server: %v", name, may)
	}
	volumes := map[any]object{}
	for _, v := range each(at(spec, "volumes")) {
		volumes[v["name"]] = v
	}
	for _, claim := range each(at(objectOf(docs, "StatefulSet", name), "spec", "volumeClaimTemplates")) {
		volumes[at(claim, "metadata", "name")] = claim
	}
	for _, c := range each(at(spec, "containers")) {
		if at(c, "securityContext", "readOnlyRootFilesystem") != true {
			t.Errorf("%s: its root can be written", name)
		}
		if at(c, "resources", "limits", "memory") == nil || at(c, "resources", "requests", "cpu") == nil {
			t.Errorf("%s: asks for nothing, or has no end: %v", name, c["resources"])
		}
		for _, m := range each(c["volumeMounts"]) {
			if volumes[m["name"]] == nil {
				t.Errorf("%s: mounts %v, which there is not", name, m["name"])
			}
		}
		if image := fmt.Sprint(c["image"]); !regexp.MustCompile(`:[^:/]+$`).MatchString(image) || strings.HasSuffix(image, ":latest") {
			t.Errorf("%s: image %s", name, image)
		}
		if strings.Contains(name, "-topics-") {
			continue // it ends
		}
		for probe, path := range map[string]string{"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"} {
			if at(c, probe, "httpGet", "path") != path || at(c, probe, "httpGet", "port") != "admin" {
				t.Errorf("%s: %s is %v", name, probe, c[probe])
			}
		}
	}
}

// checkConfigurations has postern check each role's configuration, and looks whether the secrets that it
// reads are mounted where it runs.
func checkConfigurations(t *testing.T, docs []object, pods map[string]object) {
	t.Helper()
	config, _ := at(objectOf(docs, "ConfigMap", "postern"), "data").(object)
	if len(config) == 0 {
		t.Fatal("there are no configurations")
	}
	policy := "../deploy/config/policy"
	if files, ok := at(objectOf(docs, "ConfigMap", "postern-policy"), "data").(object); ok {
		policy = t.TempDir()
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(policy, name), []byte(fmt.Sprint(text)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for file, text := range config {
		path := filepath.Join(t.TempDir(), file)
		if err := os.WriteFile(path, []byte(fmt.Sprint(text)), 0o600); err != nil {
			t.Fatal(err)
		}
		run(t, "check", "-c", path, policy)
		pod := pods["postern-"+strings.TrimSuffix(file, ".yaml")]
		if pod == nil {
			t.Errorf("%s is nobody's", file)
			continue
		}
		var mounts []string
		for _, m := range each(at(pod, "spec", "containers", 0, "volumeMounts")) {
			mounts = append(mounts, fmt.Sprint(m["mountPath"]))
		}
		for _, secret := range secretFiles(fmt.Sprint(text)) {
			if !slices.ContainsFunc(mounts, func(m string) bool { return strings.HasPrefix(m, "/etc/postern/secrets/") && within(secret, m) }) {
				t.Errorf("%s reads %s, and mounted are %v", file, secret, mounts)
			}
		}
	}
}

// checkNetwork: nothing goes anywhere by default, each port that a pod names is let in, and Kafka and ClickHouse
// are let out to.
func checkNetwork(t *testing.T, docs []object, pods map[string]object) {
	t.Helper()
	policies := kinds(docs, "NetworkPolicy")
	for name, pod := range pods {
		labels := at(pod, "metadata", "labels")
		denied := false
		allowed := map[string]bool{}
		for _, p := range policies {
			if !selects(at(p, "spec", "podSelector"), labels) {
				continue
			}
			types := anyStrings(at(p, "spec", "policyTypes"))
			in, out := each(at(p, "spec", "ingress")), each(at(p, "spec", "egress"))
			denied = denied || len(in)+len(out) == 0 && slices.Contains(types, "Ingress") && slices.Contains(types, "Egress")
			if len(in) > 0 && !slices.Contains(types, "Ingress") || len(out) > 0 && !slices.Contains(types, "Egress") {
				t.Errorf("%v has rules that its policyTypes pass over", at(p, "metadata", "name"))
			}
			for way, rules := range map[string][]object{"in": in, "out": out} {
				for _, r := range rules {
					if len(each(r["ports"])) == 0 {
						t.Errorf("%v opens every port", at(p, "metadata", "name"))
					}
					for _, port := range each(r["ports"]) {
						if way == "in" && port["protocol"] == "UDP" && len(each(r["from"])) == 0 {
							t.Errorf("%v lets everybody send flows, not the exporters", at(p, "metadata", "name"))
						}
						allowed[fmt.Sprint(way, " ", port["protocol"], "/", port["port"])] = true
					}
				}
			}
		}
		if !denied {
			t.Errorf("%s: what is not allowed is not denied", name)
		}
		wants := []string{"out UDP/53"}
		config := fmt.Sprint(at(objectOf(docs, "ConfigMap", "postern"), "data", "detect.yaml"))
		for _, m := range regexp.MustCompile(`(?m)^ +- kafka[^:]*:(\d+)$`).FindAllStringSubmatch(config, -1) {
			wants = append(wants, "out TCP/"+m[1])
		}
		clickhouse := "out TCP/" + regexp.MustCompile(`url: .*:(\d+)`).FindStringSubmatch(config)[1]
		for _, c := range each(at(pod, "spec", "containers")) {
			for _, port := range each(c["ports"]) {
				wants = append(wants, fmt.Sprint("in ", port["protocol"], "/", port["containerPort"]))
			}
		}
		switch name {
		case "postern-detect":
			wants = append(wants, clickhouse)
		case "postern-forward":
			wants = append(wants, "out TCP/443")
		}
		for _, want := range wants {
			if !allowed[want] {
				t.Errorf("%s: %s is not allowed; only %v", name, want, allowed)
			}
		}
		if name != "postern-detect" && allowed[clickhouse] {
			t.Errorf("%s reaches ClickHouse, and has nothing to do there", name)
		}
	}
}

// checkScaling: what is scaled is there and says no number of its own, and what it is scaled by is what
// detectors read.
func checkScaling(t *testing.T, docs []object, scaled object) {
	t.Helper()
	target := objectOf(docs, "Deployment", fmt.Sprint(at(scaled, "spec", "scaleTargetRef", "name")))
	if target == nil || at(target, "spec", "replicas") != nil {
		t.Errorf("it scales %v, which there is not or says how many it is", at(scaled, "spec", "scaleTargetRef"))
	}
	var config struct {
		Kafka struct {
			Brokers       []string
			Prefix, Group string
			Partitions    uint64
		}
	}
	text := fmt.Sprint(at(objectOf(docs, "ConfigMap", "postern"), "data", "detect.yaml"))
	if err := yaml.Unmarshal([]byte(text), &config); err != nil {
		t.Fatal(err)
	}
	m := at(scaled, "spec", "triggers", 0, "metadata")
	if at(m, "consumerGroup") != config.Kafka.Group || at(m, "topic") != config.Kafka.Prefix+".flows" || at(m, "bootstrapServers") != strings.Join(config.Kafka.Brokers, ",") {
		t.Errorf("scaled by %v, while detectors read %+v", m, config.Kafka)
	}
	if most, _ := at(scaled, "spec", "maxReplicaCount").(uint64); most == 0 || most > config.Kafka.Partitions {
		t.Errorf("up to %v detectors for %d partitions", at(scaled, "spec", "maxReplicaCount"), config.Kafka.Partitions)
	}
	if objectOf(docs, "TriggerAuthentication", fmt.Sprint(at(scaled, "spec", "triggers", 0, "authenticationRef", "name"))) == nil {
		t.Error("KEDA has nothing to log in to Kafka with")
	}
}

// TestChartPackage: the packed chart makes what the folder does, and takes dashboards and rules along as they
// are in dashboards/, to which the chart has a link.
func TestChartPackage(t *testing.T) {
	helm := deployTool(t, "helm")
	dir := t.TempDir()
	output(t, ".", helm, "package", chartFolder, "--destination", dir)
	packed, err := filepath.Glob(dir + "/*.tgz")
	if err != nil || len(packed) != 1 {
		t.Fatalf("%v, %v", packed, err)
	}
	whole := chartFolder + "/ci/whole.yaml"
	text := func(chart string) []byte {
		return output(t, ".", helm, "template", "postern", chart, "-f", whole)
	}
	got := text(packed[0])
	if !bytes.Equal(got, text(chartFolder)) {
		t.Error("the packed chart makes something else than its folder")
	}
	shown := map[string]string{}
	docs := documents(t, got)
	for _, d := range kinds(docs, "ConfigMap") {
		if at(d, "metadata", "labels", "grafana_dashboard") == "1" {
			data, _ := d["data"].(object)
			for name, text := range data {
				shown[name] = fmt.Sprint(text)
			}
		}
	}
	dashboards, err := filepath.Glob("../dashboards/grafana/*.json")
	if err != nil {
		t.Fatal(err)
	}
	if len(dashboards) != len(shown) {
		t.Errorf("%d dashboards, and the chart has %d", len(dashboards), len(shown))
	}
	for _, file := range dashboards {
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if shown[filepath.Base(file)] != string(want) {
			t.Errorf("%s is another one in the chart", file)
		}
	}
	rules, err := filepath.Glob("../dashboards/rules/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	groups := 0
	for _, file := range rules {
		if strings.HasSuffix(file, "_test.yaml") {
			continue // promtool's
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range documents(t, text) {
			groups += len(each(d["groups"]))
		}
	}
	if n := len(each(at(kinds(docs, "PrometheusRule")[0], "spec", "groups"))); n != groups {
		t.Errorf("%d groups of rules, and the chart has %d", groups, n)
	}
}

// apiServer is a real Kubernetes API server without nodes (test/kubernetes/apiserver).
type apiServer struct {
	url, token string
	client     *http.Client
}

func startAPIServer(t *testing.T) *apiServer {
	t.Helper()
	if _, err := os.Stat("../.cache/kubernetes/go.sum"); err != nil {
		part.Missing(t, "there is no Kubernetes API server; make kubernetes builds one")
	}
	dir := t.TempDir()
	ports, err := part.FreePorts(2) // etcd takes the one after its own as well, which is hardly ever taken
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(dir, "log")
	running, err := part.Start(exec.Command("kubernetes/apiserver", "run", dir, fmt.Sprint(ports[0]), fmt.Sprint(ports[1])), log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := running.End(nil); err != nil {
			t.Errorf("the API server: %v", err)
		}
	})
	s := &apiServer{url: fmt.Sprintf("https://127.0.0.1:%d", ports[0])}
	if err := running.Await(func() error {
		pem, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
		token, err2 := os.ReadFile(filepath.Join(dir, "admin.token"))
		if err := errors.Join(err, err2); err != nil {
			return err
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(pem)
		s.token = strings.TrimSpace(string(token))
		s.client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
		_, _, err = s.do(http.MethodGet, "/readyz", nil)
		return err
	}); err != nil {
		t.Fatalf("the API server: %v\n%s", err, part.Tail(log))
	}
	return s
}

// do asks the API, and gives what it answered and warned of.
func (s *apiServer) do(method, path string, body any) (answer []byte, warnings []string, err error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, nil, err
	}
	req, err := http.NewRequest(method, s.url+path, bytes.NewReader(text))
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+s.token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	if answer, err = io.ReadAll(resp.Body); err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, answer)
	}
	return answer, resp.Header.Values("Warning"), err
}

// collection is where objects of a kind are made.
func collection(d object, namespace string) string {
	kind := strings.ToLower(fmt.Sprint(d["kind"]))
	plural := kind + "s"
	if base, ok := strings.CutSuffix(kind, "policy"); ok {
		plural = base + "policies"
	}
	path := "/apis/" + fmt.Sprint(d["apiVersion"])
	if d["apiVersion"] == "v1" {
		path = "/api/v1"
	}
	if strings.HasPrefix(kind, "clusterrole") || kind == "customresourcedefinition" || kind == "namespace" {
		return path + "/" + plural
	}
	return path + "/namespaces/" + namespace + "/" + plural
}

// TestChartOnServer: a real API server takes all that the chart makes, with no field that it does not know, in
// a namespace that enforces Pod Security's profile `restricted`. Nothing is stored (dryRun).
func TestChartOnServer(t *testing.T) {
	deployTool(t, "helm")
	definitions, err := filepath.Glob("../.cache/deploy/crds/*.yaml")
	if err != nil || len(definitions) != 4 {
		t.Fatalf("definitions of KEDA's and Prometheus Operator's kinds: %v, %v", definitions, err)
	}
	s := startAPIServer(t)
	must := func(path string, body any) {
		t.Helper()
		if _, _, err := s.do(http.MethodPost, path, body); err != nil {
			t.Fatal(err)
		}
	}
	must("/api/v1/namespaces", object{"metadata": object{"name": "flows", "labels": object{
		"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted"}}})
	for _, file := range definitions {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range documents(t, text) {
			must(collection(d, ""), d)
		}
	}
	kinds := map[any]int{}
	for _, values := range chartValues(t) {
		for _, d := range render(t, chartFolder, values) {
			name := fmt.Sprintf("%s: %s %v", filepath.Base(values), d["kind"], at(d, "metadata", "name"))
			path := collection(d, "flows") + "?dryRun=All&fieldValidation=Strict"
			var warnings []string
			for range 100 { // a kind that was defined a moment ago
				if _, warnings, err = s.do(http.MethodPost, path, d); err == nil || !strings.Contains(err.Error(), "404 ") {
					break
				}
				time.Sleep(100 * time.Millisecond)
			}
			if err != nil || len(warnings) > 0 {
				t.Errorf("%s: %v %q", name, err, warnings)
			}
			kinds[d["kind"]]++
			// The controllers that make pods of them do not run here: a pod is made as they would.
			if pod, ok := at(d, "spec", "template").(object); ok {
				pod["apiVersion"], pod["kind"] = "v1", "Pod"
				pod["metadata"].(object)["name"] = "one"
				for _, claim := range each(at(d, "spec", "volumeClaimTemplates")) {
					volumes := at(pod, "spec", "volumes").([]any)
					pod["spec"].(object)["volumes"] = append(volumes, object{"name": at(claim, "metadata", "name"), "emptyDir": object{}})
				}
				if _, _, err := s.do(http.MethodPost, "/api/v1/namespaces/flows/pods?dryRun=All&fieldValidation=Strict", pod); err != nil {
					t.Errorf("%s: its pod: %v", name, err)
				}
			}
		}
	}
	for _, kind := range []string{"ScaledObject", "TriggerAuthentication", "ServiceMonitor", "PrometheusRule", "NetworkPolicy", "PodDisruptionBudget", "StatefulSet", "Deployment", "Job", "ClusterRoleBinding"} {
		if kinds[kind] == 0 {
			t.Errorf("no %s was looked at", kind)
		}
	}
	// It does look: a field that there is not, and a pod that asks for too much.
	deployment := object{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": object{"name": "x"}, "spec": object{"replicaz": 1}}
	if _, _, err := s.do(http.MethodPost, collection(deployment, "flows")+"?dryRun=All&fieldValidation=Strict", deployment); err == nil || !strings.Contains(err.Error(), "replicaz") {
		t.Errorf("an unknown field: %v", err)
	}
	pod := object{"metadata": object{"name": "x"}, "spec": object{"containers": []object{{"name": "c", "image": "i:1"}}}}
	if _, _, err := s.do(http.MethodPost, "/api/v1/namespaces/flows/pods?dryRun=All", pod); err == nil || !strings.Contains(err.Error(), "restricted") {
		t.Errorf("a pod without a security context: %v", err)
	}
}
