package identity

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/test/part"
)

// cluster is a real API server with its etcd; see test/kubernetes/apiserver. It has no nodes:
// the test says in a pod's status what a kubelet would.
type cluster struct {
	t          *testing.T
	dir        string
	port, etcd string
	client     *http.Client
	token      string // of an administrator
	run        *part.Program
}

// freePorts gives n ports of loopback that follow one another.
func freePorts(t *testing.T, n int) int {
	t.Helper()
next:
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		first := l.Addr().(*net.TCPAddr).Port
		l.Close()
		for i := 1; i < n; i++ {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", first+i))
			if err != nil {
				continue next
			}
			l.Close()
		}
		return first
	}
	t.Fatal("no free ports")
	return 0
}

// startCluster starts a server, or skips the test where there is none.
func startCluster(t *testing.T) *cluster {
	t.Helper()
	if _, err := os.Stat("../../.cache/kubernetes/go.sum"); err != nil {
		part.Missing(t, "there is no Kubernetes API server; make kubernetes builds one")
	}
	first := freePorts(t, 3)
	c := &cluster{t: t, dir: t.TempDir(), port: fmt.Sprint(first), etcd: fmt.Sprint(first + 1)}
	c.start()
	t.Cleanup(c.stop)
	return c
}

// start starts the server on what was stored and waits until it is ready.
func (c *cluster) start() {
	c.t.Helper()
	log := filepath.Join(c.dir, "log")
	var err error
	if c.run, err = part.Start(exec.Command("../../test/kubernetes/apiserver", "run", c.dir, c.port, c.etcd), log); err != nil {
		c.t.Fatal(err)
	}
	if err := c.run.Await(func() error {
		if err := c.trusts(); err != nil {
			return err
		}
		return c.ready()
	}); err != nil {
		c.t.Fatalf("the API server: %v\n%s", err, part.Tail(log))
	}
}

// stop ends the server; what was stored stays.
func (c *cluster) stop() {
	c.t.Helper()
	if err := c.run.End(nil); err != nil {
		c.t.Errorf("the API server: %v", err)
	}
}

// trusts makes the client, once the certificate is there.
func (c *cluster) trusts() error {
	if c.client != nil {
		return nil
	}
	pem, err := os.ReadFile(filepath.Join(c.dir, "ca.crt"))
	if err != nil {
		return err
	}
	token, err := os.ReadFile(filepath.Join(c.dir, "admin.token"))
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return errors.New("no certificate yet")
	}
	c.token = strings.TrimSpace(string(token))
	c.client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	return nil
}

func (c *cluster) url(path string) string { return "https://127.0.0.1:" + c.port + path }

func (c *cluster) ready() error {
	req, err := http.NewRequest(http.MethodGet, c.url("/readyz"), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	resp, err := c.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("/readyz says %s", resp.Status)
	}
	return nil
}

// do asks the API as an administrator.
func (c *cluster) do(method, path string, body any) map[string]any {
	c.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		c.t.Fatal(err)
	}
	req, err := http.NewRequest(method, c.url(path), bytes.NewReader(b))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	req.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/strategic-merge-patch+json")
	}
	resp, err := c.client.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode/100 != 2 {
		c.t.Fatalf("%s %s: %s, %v\n%s", method, path, resp.Status, err, text)
	}
	var out map[string]any
	if err := json.Unmarshal(text, &out); err != nil {
		c.t.Fatal(err)
	}
	return out
}

type object = map[string]any

// pod makes a pod that runs on node-1 at addrs. controller is the kind and name of what owns it.
func (c *cluster) pod(namespace, name, kind, controller string, labels object, addrs ...string) {
	c.t.Helper()
	meta := object{"name": name, "labels": labels}
	if kind != "" {
		meta["ownerReferences"] = []object{{"apiVersion": "apps/v1", "kind": kind, "name": controller, "uid": "0b5e3c1e-0000-4000-8000-000000000001", "controller": true}}
	}
	c.do(http.MethodPost, "/api/v1/namespaces/"+namespace+"/pods", object{"apiVersion": "v1", "kind": "Pod", "metadata": meta,
		"spec": object{"nodeName": "node-1", "serviceAccountName": "web", "containers": []object{{"name": "c", "image": "none"}}}})
	c.runs(namespace, name, addrs...)
}

// runs says what a kubelet says of a pod that runs.
func (c *cluster) runs(namespace, name string, addrs ...string) {
	c.t.Helper()
	var ips []object
	for _, a := range addrs {
		ips = append(ips, object{"ip": a})
	}
	now := time.Now().UTC().Format(time.RFC3339)
	c.do(http.MethodPatch, "/api/v1/namespaces/"+namespace+"/pods/"+name+"/status", object{"status": object{"phase": "Running", "podIP": addrs[0], "podIPs": ips,
		"hostIP": "192.0.2.1", "hostIPs": []object{{"ip": "192.0.2.1"}}, "startTime": now,
		"conditions": []object{{"type": "PodReadyToStartContainers", "status": "True", "lastTransitionTime": now}}}})
}

func (c *cluster) remove(namespace, name string) {
	c.t.Helper()
	c.do(http.MethodDelete, "/api/v1/namespaces/"+namespace+"/pods/"+name, object{"gracePeriodSeconds": 0})
}

// grant gives the rights that the page for users writes down, and a token of that account.
func (c *cluster) grant() (token string) {
	c.t.Helper()
	page, err := os.ReadFile("../../docs/identity-kubernetes.md")
	if err != nil {
		c.t.Fatal(err)
	}
	var text string
	for block := range strings.SplitSeq(string(page), "```") {
		if t, found := strings.CutPrefix(block, "yaml\n"); found && strings.Contains(t, "kind: ClusterRoleBinding") {
			text = t
		}
	}
	c.do(http.MethodPost, "/api/v1/namespaces", object{"metadata": object{"name": "postern"}})
	made := 0
	for doc := range strings.SplitSeq(text, "---\n") {
		var o object
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			c.t.Fatal(err)
		}
		path := map[string]string{"ServiceAccount": "/api/v1/namespaces/postern/serviceaccounts", "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
			"ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"}[fmt.Sprint(o["kind"])]
		c.do(http.MethodPost, path, o)
		made++
	}
	if made != 3 {
		c.t.Fatalf("the page gives %d objects", made)
	}
	out := c.do(http.MethodPost, "/api/v1/namespaces/postern/serviceaccounts/postern/token", object{"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": object{}})
	return out["status"].(object)["token"].(string)
}

// compact makes etcd forget what was before now, so that nobody can watch on from there.
func (c *cluster) compact() {
	c.t.Helper()
	ask := func(path, body string) string {
		resp, err := http.Post("http://127.0.0.1:"+c.etcd+path, "application/json", strings.NewReader(body))
		if err != nil {
			c.t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			c.t.Fatalf("etcd: %s, %v: %s", resp.Status, err, b)
		}
		return string(b)
	}
	var got struct{ Header struct{ Revision string } }
	if err := json.Unmarshal([]byte(ask("/v3/kv/range", `{"key":"AA=="}`)), &got); err != nil {
		c.t.Fatal(err)
	}
	ask("/v3/kv/compaction", `{"revision":"`+got.Header.Revision+`","physical":true}`)
}

// relay hands connections on to the API server while it is open.
type relay struct {
	listener net.Listener
	to       string

	mu   sync.Mutex
	open chan struct{} // closed while it is
	cut  []net.Conn
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{listener: l, to: to, open: make(chan struct{})}
	close(r.open)
	t.Cleanup(func() { l.Close(); r.close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go r.hand(c)
		}
	}()
	return r
}

// hand hands a connection on. Where the relay is closed it waits, and whoever made it too.
func (r *relay) hand(c net.Conn) {
	r.mu.Lock()
	open := r.open
	r.mu.Unlock()
	<-open
	s, err := net.Dial("tcp", r.to)
	if err != nil {
		c.Close()
		return
	}
	r.mu.Lock()
	r.cut = append(r.cut, c, s)
	r.mu.Unlock()
	go func() { _, _ = io.Copy(s, c); s.Close() }()
	_, _ = io.Copy(c, s)
	c.Close()
}

// close breaks off what there is.
func (r *relay) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open = make(chan struct{})
	for _, c := range r.cut {
		c.Close()
	}
	r.cut = nil
}

func (r *relay) reopen() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.open)
}

// TestKubernetesReal: a real API server lists in pages, watches, selects, refuses whom it does
// not know, and forgets; with no more rights than the page for users asks for.
func TestKubernetesReal(t *testing.T) {
	c := startCluster(t)
	token := c.grant()
	c.do(http.MethodPost, "/api/v1/namespaces", object{"metadata": object{"name": "shop"}})
	// More than a page, so that the list is taken on by its token.
	const many = kubePage + 60
	for i := range many {
		c.pod("shop", fmt.Sprintf("batch-%d", i), "Job", "batch", object{"part": "many"}, fmt.Sprintf("10.9.%d.%d", i/200, 1+i%200))
	}
	c.pod("shop", "web-5d4f-abcde", "ReplicaSet", "web-5d4f", object{"app": "checkout", "pod-template-hash": "5d4f"}, "10.1.0.5", "fd00::5")

	cfg := DefaultKubernetesConfig()
	path := newRelay(t, "127.0.0.1:"+c.port)
	cfg.Name, cfg.Server, cfg.Token, cfg.Lag, cfg.TLS.CA = "prod", "https://"+path.listener.Addr().String(), "env:TOKEN", time.Second, filepath.Join(c.dir, "ca.crt")
	cfg.GroupLabels = []string{"app", "tier"}
	rec, dir := &recorder{}, t.TempDir()
	met, err := newMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	said := filepath.Join(t.TempDir(), "said")
	log, err := os.Create(said)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	watch := func(token string) (stop func()) {
		s, err := newKubernetes(cfg, func(string) (string, error) { return token, nil }, dir, clockNow, slog.New(slog.NewTextHandler(log, nil)), met)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx, rec.tell) }()
		return func() {
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("it ended with %v", err)
			}
		}
	}

	// Whom the server does not know it tells nothing.
	stop := watch("nobody")
	time.Sleep(2 * time.Second)
	stop()
	if text, err := os.ReadFile(said); err != nil || len(rec.open()) != 0 || !bytes.Contains(text, []byte("401")) {
		t.Fatalf("%d facts without a right; it says, %v:\n%s", len(rec.open()), err, text)
	}

	stop = watch(token)
	defer func() { stop() }()
	first := await(t, rec, "fd00::5", 30*time.Second, "the list", func(f []flow.Fact) bool { return len(f) == 1 })[0]
	if first.Workload != "shop/web" || first.Device != "node-1" || first.Account != "shop/web" || first.Until != 0 ||
		strings.Join(first.Groups, " ") != "shop/app=checkout system:serviceaccounts:shop" {
		t.Errorf("%+v", first)
	}
	if n := len(rec.open()); n != many+2 {
		t.Errorf("%d facts of %d pods", n, many+1)
	}

	// A label is added, the pod goes, another has its address.
	c.do(http.MethodPatch, "/api/v1/namespaces/shop/pods/web-5d4f-abcde", object{"metadata": object{"labels": object{"tier": "front"}}})
	await(t, rec, "10.1.0.5", 10*time.Second, "the label", func(f []flow.Fact) bool { return len(f) == 2 && len(f[1].Groups) == 3 })
	gone := clockNow()
	c.remove("shop", "web-5d4f-abcde")
	ended := await(t, rec, "10.1.0.5", 10*time.Second, "the end", func(f []flow.Fact) bool { return len(f) == 2 && f[1].Until != 0 })
	if late := ended[1].Until - gone; late < 0 || late > 5000 {
		t.Errorf("it ended %d ms after it was deleted", late)
	}
	c.pod("shop", "db-0", "StatefulSet", "db", nil, "10.1.0.5")
	reused := await(t, rec, "10.1.0.5", 10*time.Second, "the next pod", func(f []flow.Fact) bool { return len(f) == 3 && f[2].Until == 0 })
	if reused[2].Workload != "shop/db" || reused[2].Since < ended[1].Until-1000 {
		t.Errorf("%+v after %+v", reused[2], ended[1])
	}

	// A connection breaks, and what happens meanwhile the server has forgotten when there is
	// another, but not what is now: 410 Gone, and everything is listed anew.
	c.remove("shop", "batch-7")
	await(t, rec, "10.9.0.8", 10*time.Second, "the end of batch-7", func(f []flow.Fact) bool { return len(f) == 1 && f[0].Until != 0 })
	path.close()
	c.remove("shop", "batch-8")
	c.pod("shop", "late-0", "", "", nil, "10.1.0.9")
	c.stop()
	c.start()
	c.compact()
	c.stop() // what it remembers itself goes as well
	c.start()
	path.reopen()
	await(t, rec, "10.9.0.9", 60*time.Second, "the end of batch-8", func(f []flow.Fact) bool { return len(f) == 1 && f[0].Until != 0 })
	await(t, rec, "10.1.0.9", 60*time.Second, "the pod that came meanwhile", func(f []flow.Fact) bool { return len(f) == 1 && f[0].Workload == "shop/late-0" })
	if text, err := os.ReadFile(said); err != nil || !bytes.Contains(text, []byte("410 Gone")) {
		t.Errorf("nothing was gone, %v:\n%s", err, text)
	}
	if n := len(rec.open()); n != many-2+1+1 {
		t.Errorf("%d addresses are held, want %d", n, many)
	}

	// A label selector: a pod that stops matching ends here, though it runs on.
	stop()
	cfg.LabelSelector, cfg.Name, dir = "tier in (web)", "selected", t.TempDir()
	rec = &recorder{}
	stop = watch(token)
	c.pod("shop", "sel-0", "", "", object{"tier": "web"}, "10.1.0.20")
	await(t, rec, "10.1.0.20", 10*time.Second, "the pod that matches", func(f []flow.Fact) bool { return len(f) == 1 })
	c.do(http.MethodPatch, "/api/v1/namespaces/shop/pods/sel-0", object{"metadata": object{"labels": object{"tier": "db"}}})
	await(t, rec, "10.1.0.20", 10*time.Second, "its end", func(f []flow.Fact) bool { return len(f) == 1 && f[0].Until != 0 })
	if n := len(rec.open()); n != 0 {
		t.Errorf("%d pods match", n)
	}
}
