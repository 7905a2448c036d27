package identity

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/postern/postern/flow"
)

// kubeTest is a cluster and what watches it, in the time of synctest.
type kubeTest struct {
	t     testing.TB
	api   *fakeAPI
	pipes *pipes
	cfg   KubernetesConfig
	dir   string
	reg   *prometheus.Registry
	met   *metrics
	rec   *recorder
	tell  Tell // rec's, unless set
	begin flow.Time
}

// inKube runs a test with a cluster.
func inKube(t *testing.T, test func(k *kubeTest)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		k := &kubeTest{t: t, api: newFakeAPI(), pipes: newPipes(), cfg: DefaultKubernetesConfig(), dir: dir, rec: &recorder{}, reg: prometheus.NewRegistry(), begin: clockNow()}
		k.cfg.Name, k.cfg.Server, k.cfg.GroupLabels = "prod", "http://127.0.0.1", []string{"app", "tier"}
		var err error
		if k.met, err = newMetrics(k.reg); err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: k.api, ErrorLog: nil}
		served := make(chan error, 1)
		go func() { served <- server.Serve(k.pipes) }()
		test(k)
		server.Close()
		<-served
	})
}

// start runs the source until what it gives is called.
func (k *kubeTest) start() (stop func()) {
	k.t.Helper()
	s, err := newKubernetes(k.cfg, func(string) (string, error) { return "secret", nil }, k.dir, clockNow, quiet(), k.met)
	if err != nil {
		k.t.Fatal(err)
	}
	s.client.Transport.(*http.Transport).DialContext = k.pipes.dial
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	tell := k.tell
	if tell == nil {
		tell = k.rec.tell
	}
	go func() { done <- s.Run(ctx, tell) }()
	return func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			k.t.Errorf("it ended with %v", err)
		}
	}
}

func (k *kubeTest) sleep(d time.Duration) { time.Sleep(d); synctest.Wait() }

// at is a time as seconds since the begin.
func (k *kubeTest) at(t flow.Time) float64 {
	if t == 0 {
		return 0
	}
	return t.Sub(k.begin).Seconds()
}

// seen is a fact in short, its times in seconds since the test began.
type seen struct {
	Workload              string
	Since, Begin          float64 // Begin is how early it may have begun
	Until, Certain        float64 // Certain is until when it surely held
	Device, Account, Tags string
}

func (k *kubeTest) of(addr string) (out []seen) {
	for _, f := range k.rec.of(addr) {
		s := seen{Workload: f.Workload, Since: k.at(f.Since), Begin: k.at(f.Since.Add(-f.SinceSlack)), Device: f.Device, Account: f.Account, Tags: strings.Join(f.Groups, " ")}
		if f.Until != 0 {
			s.Until, s.Certain = k.at(f.Until), k.at(f.Until.Add(-f.UntilSlack))
		}
		out = append(out, s)
	}
	return out
}

func (k *kubeTest) want(addr string, want ...seen) {
	k.t.Helper()
	if diff := cmp.Diff(want, k.of(addr)); diff != "" {
		k.t.Errorf("%s (-want +got):\n%s", addr, diff)
	}
}

// running makes a pod that has addresses, taken up now.
func podRunning(addrs ...string) func(map[string]any) {
	now := time.Now().UTC().Format(time.RFC3339)
	return func(pod map[string]any) {
		ips := []any{}
		for _, a := range addrs {
			ips = append(ips, map[string]any{"ip": a})
		}
		s := pod["status"].(map[string]any)
		s["phase"], s["podIPs"], s["podIP"] = "Running", ips, addrs[0]
		if s["startTime"] == nil {
			s["startTime"] = now
		}
	}
}

func podSet(section, key string, v any) func(map[string]any) {
	return func(pod map[string]any) { pod[section].(map[string]any)[key] = v }
}

func both(fs ...func(map[string]any)) func(map[string]any) {
	return func(pod map[string]any) {
		for _, f := range fs {
			f(pod)
		}
	}
}

// TestKubernetesLife: a pod from its making to its end, with two addresses, one of which
// another pod gets.
func TestKubernetesLife(t *testing.T) {
	inKube(t, func(k *kubeTest) {
		stop := k.start()
		defer stop()
		k.sleep(100 * time.Second)
		k.api.put("shop", "web-5d4f-abcde", both(podSet("metadata", "labels", map[string]any{"app": "checkout", "pod-template-hash": "5d4f", "other": "x"}),
			podSet("metadata", "ownerReferences", []any{map[string]any{"kind": "ReplicaSet", "name": "web-5d4f", "controller": true}}),
			podSet("spec", "serviceAccountName", "web"), podSet("status", "startTime", time.Now().UTC().Format(time.RFC3339))))
		k.sleep(30 * time.Second) // at 130 the image is there
		k.api.put("shop", "web-5d4f-abcde", podRunning("10.1.0.5", "fd00::5"))
		k.sleep(30 * time.Second)
		k.api.put("other", "x", nil) // something else is heard at 160
		k.sleep(5 * time.Second)
		k.api.put("shop", "web-5d4f-abcde", podSet("metadata", "labels", map[string]any{"app": "checkout", "tier": "front", "pod-template-hash": "5d4f"}))
		k.sleep(5 * time.Second)
		k.api.put("shop", "web-5d4f-abcde", podSet("metadata", "deletionTimestamp", "2000-01-01T00:03:20Z")) // stopping, and still there
		k.sleep(30 * time.Second)
		k.api.remove("shop", "web-5d4f-abcde") // at 200
		k.sleep(time.Second)
		k.api.put("shop", "db-0", both(podRunning("10.1.0.5"), podSet("metadata", "ownerReferences", []any{map[string]any{"kind": "StatefulSet", "name": "db", "controller": true}})))
		k.sleep(10 * time.Second)
		const groups = "shop/app=checkout system:serviceaccounts:shop"
		web := seen{Workload: "shop/web", Since: 130, Begin: 90, Until: 165, Certain: 150, Device: "node-1", Account: "shop/web", Tags: groups}
		more := seen{Workload: "shop/web", Since: 165, Begin: 150, Until: 200, Certain: 170, Device: "node-1", Account: "shop/web",
			Tags: "shop/app=checkout shop/tier=front system:serviceaccounts:shop"}
		more.Certain = 170 // a bookmark at 180, less the lag
		k.want("fd00::5", web, more)
		k.want("10.1.0.5", web, more, seen{Workload: "shop/db", Since: 201, Begin: 191, Device: "node-1", Account: "shop/default", Tags: "system:serviceaccounts:shop"})
		if n := k.api.saw("watch=true"); n != 1 {
			t.Errorf("%d watches", n)
		}
	})
}

// TestKubernetesReuse: the former holder of an address never keeps it, nor gets it back.
func TestKubernetesReuse(t *testing.T) {
	inKube(t, func(k *kubeTest) {
		stop := k.start()
		k.sleep(60 * time.Second)
		k.api.put("a", "old", podRunning("10.1.0.5"))
		k.sleep(60 * time.Second)
		k.api.put("a", "new", podRunning("10.1.0.5")) // at 120; the node of old is gone, and nobody says so
		k.sleep(20 * time.Second)
		k.api.put("a", "old", podSet("status", "message", "still shown"))
		k.sleep(20 * time.Second)
		old := seen{Workload: "a/old", Since: 60, Begin: 50, Until: 120, Certain: 110, Device: "node-1", Account: "a/default", Tags: "system:serviceaccounts:a"}
		young := seen{Workload: "a/new", Since: 120, Begin: 110, Device: "node-1", Account: "a/default", Tags: "system:serviceaccounts:a"}
		k.want("10.1.0.5", old, young)
		// A list says the same, also to a process that was not there.
		k.api.compact()
		k.api.drop()
		k.sleep(60 * time.Second)
		stop()
		stop = k.start()
		k.sleep(60 * time.Second)
		k.want("10.1.0.5", old, young)
		k.api.remove("a", "new") // at 280; the last bookmark came at 220+60
		k.sleep(20 * time.Second)
		k.api.put("a", "old", podSet("status", "message", "still shown"))
		k.sleep(20 * time.Second)
		stop()
		stop = k.start()
		defer stop()
		k.sleep(20 * time.Second)
		got := k.of("10.1.0.5")
		if len(got) != 2 || got[1].Until != 280 || got[1].Certain < 195 || got[1].Certain > 270 {
			t.Errorf("%+v", got)
		}
	})
}

// TestKubernetesTie: two pods that a first list shows with one address, none later than
// the other: nobody can tell who has it.
func TestKubernetesTie(t *testing.T) {
	inKube(t, func(k *kubeTest) {
		k.api.put("a", "one", podRunning("10.1.0.5"))
		k.api.put("b", "two", podRunning("10.1.0.5"))
		k.api.put("b", "three", podRunning("10.1.0.6"))
		k.sleep(10 * time.Second)
		k.api.put("b", "four", podRunning("10.1.0.6"))
		stop := k.start()
		defer stop()
		k.sleep(10 * time.Second)
		k.want("10.1.0.5")
		k.want("10.1.0.6", seen{Workload: "b/four", Since: 10, Begin: 0, Device: "node-1", Account: "b/default", Tags: "system:serviceaccounts:b"})
	})
}

// TestKubernetesNoIdentity: pods that share their node's addresses, and pods that ended.
func TestKubernetesNoIdentity(t *testing.T) {
	inKube(t, func(k *kubeTest) {
		stop := k.start()
		defer stop()
		k.sleep(60 * time.Second)
		k.api.put("kube-system", "proxy", both(podRunning("192.0.2.1"), podSet("spec", "hostNetwork", true)))
		k.api.put("kube-system", "same", both(podRunning("192.0.2.1", "10.1.0.9"), podSet("status", "hostIPs", []any{map[string]any{"ip": "192.0.2.1"}})))
		k.api.put("a", "job", both(podRunning("10.1.0.7"), podSet("status", "phase", "Succeeded")))
		k.api.put("a", "runs", podRunning("10.1.0.8"))
		k.sleep(20 * time.Second)
		k.want("192.0.2.1")
		k.want("10.1.0.7")
		if got := k.of("10.1.0.9"); len(got) != 1 {
			t.Errorf("%+v", got)
		}
		// It fails at 80, loses its address in the status for a moment, shows it again, and is
		// cleaned up long after that.
		k.api.put("a", "runs", both(podSet("status", "phase", "Failed"), podSet("status", "podIPs", nil), podSet("status", "podIP", "")))
		k.sleep(time.Second)
		k.api.put("a", "runs", podSet("status", "podIP", "10.1.0.8"))
		k.sleep(200 * time.Second)
		k.api.remove("a", "runs")
		k.sleep(time.Second)
		k.want("10.1.0.8", seen{Workload: "a/runs", Since: 60, Begin: 50, Until: 80, Certain: 50, Device: "node-1", Account: "a/default", Tags: "system:serviceaccounts:a"})
	})
}

// TestKubernetesAway: what happened while the watch was away is uncertain for as long.
func TestKubernetesAway(t *testing.T) {
	for name, away := range map[string]func(k *kubeTest){
		"the connection breaks, and the server is away": func(k *kubeTest) { k.api.refuseAll(503) },
		"410 Gone": func(k *kubeTest) { k.api.refuseAll(500) },
		"restart":  nil,
	} {
		t.Run(name, func(t *testing.T) {
			inKube(t, func(k *kubeTest) {
				k.api.put("a", "gone", podRunning("10.1.0.5"))
				k.api.put("a", "stays", podRunning("10.1.0.6"))
				stop := k.start()
				k.sleep(100 * time.Second) // a bookmark at 60
				if away == nil {
					stop()
				} else {
					away(k)
					k.api.drop()
				}
				k.sleep(50 * time.Second)
				k.api.remove("a", "gone")
				k.api.put("a", "new", podRunning("10.1.0.7")) // at 150
				if strings.HasPrefix(name, "410") {
					k.api.compact()
				}
				k.sleep(50 * time.Second)
				if away == nil {
					stop = k.start()
				} else {
					k.api.refuseAll(0)
				}
				defer func() { stop() }()
				k.sleep(60 * time.Second) // back by 230
				if got := k.of("10.1.0.5"); len(got) != 1 || got[0].Until < 200 || got[0].Until > 231 || got[0].Certain != 50 {
					t.Errorf("gone while it was away: %+v", got)
				}
				if got := k.of("10.1.0.7"); len(got) != 1 || got[0].Since < 200 || got[0].Since > 231 || got[0].Begin != 140 {
					t.Errorf("new while it was away: %+v", got)
				}
				k.want("10.1.0.6", seen{Workload: "a/stays", Begin: -10, Device: "node-1", Account: "a/default", Tags: "system:serviceaccounts:a"})
				_, beats := k.rec.take()
				for i, b := range beats {
					if at := k.at(b.At); at > 50 && at < 150 {
						t.Errorf("a heartbeat at %v, when nothing was heard", at)
					}
					if i > 0 && b.At <= beats[i-1].At {
						t.Errorf("heartbeats go back")
					}
				}
			})
		})
	}
}

// refuseAll makes every request fail with a code; 0 is none.
func (f *fakeAPI) refuseAll(code int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse = func(*http.Request) (int, string) { return code, "" }
}

// TestKubernetesBacklog: what a server sends right after a connection was lost happened
// some time ago, and so did what came while facts could not be stored.
func TestKubernetesBacklog(t *testing.T) {
	inKube(t, func(k *kubeTest) {
		for _, p := range []string{"1", "2", "3"} {
			k.api.put("a", "p"+p, podRunning("10.1.0."+p))
		}
		stop := k.start()
		defer stop()
		k.sleep(65 * time.Second)
		k.api.mu.Lock()
		k.api.refuse = func(*http.Request) (int, string) { time.Sleep(28 * time.Second); return 0, "" }
		k.api.mu.Unlock()
		k.api.drop()
		k.sleep(5 * time.Second)
		k.api.remove("a", "p1") // at 70
		k.sleep(5 * time.Second)
		k.api.remove("a", "p2") // at 75, and both are told at 93
		k.sleep(30 * time.Second)
		k.api.remove("a", "p3") // at 105, told at once; what came before is from when the watch had just begun
		k.sleep(time.Second)
		for _, addr := range []string{"10.1.0.1", "10.1.0.2", "10.1.0.3"} {
			if got := k.of(addr); len(got) != 1 || got[0].Certain != 50 || got[0].Until < 93 {
				t.Errorf("%s: %+v", addr, got)
			}
		}
		if lists, watches := k.api.saw("limit="), k.api.saw("watch=true"); lists != 1 || watches != 2 {
			t.Errorf("%d lists, %d watches", lists, watches)
		}
	})
}

// TestKubernetesStalled: what waited because facts could not be stored happened before it came.
func TestKubernetesStalled(t *testing.T) {
	inKube(t, func(k *kubeTest) {
		for i := range 250 {
			for j := range 3 {
				k.api.put("a", fmt.Sprintf("p%d-%d", i, j), podRunning(fmt.Sprintf("10.1.%d.%d", j, i)))
			}
		}
		var away atomic.Bool
		k.rec.fail = func() error {
			if away.Load() {
				return errors.New("the store is away")
			}
			return nil
		}
		stop := k.start()
		defer stop()
		k.sleep(65 * time.Second)
		away.Store(true)
		for j := range 3 { // more than what a reader may have read, and a server have sent
			for i := range 250 {
				k.api.remove("a", fmt.Sprintf("p%d-%d", i, j))
			}
			k.sleep(30 * time.Second)
		}
		away.Store(false)
		k.sleep(2 * time.Minute)
		late := 0
		for j := range 3 {
			for i := range 250 {
				removed := 65 + 30*float64(j)
				got := k.of(fmt.Sprintf("10.1.%d.%d", j, i))
				if len(got) != 1 || got[0].Until < removed || got[0].Certain > removed {
					t.Fatalf("%d-%d: removed at %v, %+v", i, j, removed, got)
				}
				if got[0].Until > removed+20 {
					late++
				}
			}
		}
		if late < 200 {
			t.Errorf("only %d were told late; nothing waited", late)
		}
	})
}

// TestKubernetesSilent: a server that sends no bookmarks is listed, so that silence can be
// told from a connection that is gone; and one that does neither is stale.
func TestKubernetesSilent(t *testing.T) {
	inKube(t, func(k *kubeTest) {
		k.api.bookmarks = 0
		k.api.put("a", "p", podRunning("10.1.0.1"))
		stop := k.start()
		defer stop()
		k.sleep(10 * time.Minute)
		_, beats := k.rec.take()
		if len(beats) < 4 || len(beats) > 6 || beats[len(beats)-1].StaleAfter != 5*time.Minute {
			t.Errorf("%d heartbeats: %+v", len(beats), beats)
		}
		k.api.refuseAll(500)
		k.sleep(10 * time.Minute)
		if _, beats := k.rec.take(); len(beats) > 0 {
			t.Errorf("heartbeats of a server that only fails: %v", beats)
		}
		if n := k.api.saw("") - 10; n < 15 || n > 60 {
			t.Errorf("%d requests in ten minutes of failures", n)
		}
	})
}

// TestKubernetesPages: a list in pages, and one that takes longer than the server keeps.
func TestKubernetesPages(t *testing.T) {
	inKube(t, func(k *kubeTest) {
		k.api.limit = 3
		for i := range 10 {
			k.api.put("a", "p"+string(rune('0'+i)), podRunning("10.1.0."+string(rune('0'+i))))
		}
		stop := k.start()
		k.sleep(20 * time.Second)
		if n := len(k.rec.open()); n != 10 || k.api.saw("limit=500") != 4 {
			t.Errorf("%d pods in %d pages", n, k.api.saw("limit=500"))
		}
		stop()
		k.api.refuse = func(r *http.Request) (int, string) {
			if r.URL.Query().Get("continue") != "" {
				return 410, ""
			}
			return 0, ""
		}
		k.api.remove("a", "p7")
		stop = k.start()
		defer stop()
		k.sleep(20 * time.Second)
		if n := len(k.rec.open()); n != 9 {
			t.Errorf("%d pods", n)
		}
	})
}

// TestKubernetesNamespaces: each has a list and a watch of its own, and one that is not
// watched any more ends.
func TestKubernetesNamespaces(t *testing.T) {
	inKube(t, func(k *kubeTest) {
		k.cfg.Namespaces, k.cfg.LabelSelector, k.cfg.Cluster = []string{"a", "b"}, "tier in (x,y)", "east"
		for _, n := range []string{"a", "b", "c"} {
			k.api.put(n, "p", podRunning("10.1.0."+string(n[0]-'a'+'1')))
		}
		stop := k.start()
		k.sleep(100 * time.Second)
		if n := len(k.rec.open()); n != 2 || k.api.saw("/api/v1/namespaces/a/pods?labelSelector=tier+in+%28x%2Cy%29&limit=500") != 1 {
			t.Errorf("%d, %v", n, k.api.requests)
		}
		k.want("10.1.0.1", seen{Workload: "a/p@east", Begin: -10, Device: "node-1", Account: "a/default@east", Tags: "system:serviceaccounts:a@east"})
		// The address goes from one namespace to another, and the watch of the former is late.
		k.api.put("b", "q", podRunning("10.1.0.1"))
		k.sleep(time.Second)
		k.api.put("a", "p", podSet("status", "message", "late"))
		k.sleep(time.Second)
		if got := k.of("10.1.0.1"); len(got) != 2 || got[0].Until != 100 || got[1].Until != 0 {
			t.Errorf("%+v", got)
		}
		stop()
		k.cfg.Namespaces = []string{"a"}
		stop = k.start()
		defer stop()
		k.sleep(10 * time.Second)
		if open := k.rec.open(); len(open) != 0 {
			t.Errorf("%+v", open)
		}
	})
}

// TestKubernetesCrash: what was not told before a crash is told again as it was.
func TestKubernetesCrash(t *testing.T) {
	inKube(t, func(k *kubeTest) {
		k.api.put("a", "p", podRunning("10.1.0.1"))
		k.api.put("a", "q", podRunning("10.1.0.2"))
		stop := k.start()
		k.sleep(100 * time.Second)
		broken := false
		k.rec.fail = func() error {
			if broken {
				return errors.New("the store is away")
			}
			return nil
		}
		broken = true
		k.api.remove("a", "p")
		k.sleep(time.Second)
		first := k.of("10.1.0.1")
		if len(first) != 1 || first[0].Until != 100 {
			t.Fatalf("%+v", first)
		}
		stop()
		broken = false
		k.rec.take()
		k.sleep(50 * time.Second)
		k.api.remove("a", "q")
		stop = k.start()
		defer stop()
		k.sleep(20 * time.Second)
		if diff := cmp.Diff(first, k.of("10.1.0.1")); diff != "" {
			t.Error(diff)
		}
		all, _ := k.rec.take()
		if n := len(slices.DeleteFunc(all, func(f flow.Fact) bool { return f.Addr != flow.MustParseAddr("10.1.0.1") })); n != 1 {
			t.Errorf("told %d times", n)
		}
		if got := k.of("10.1.0.2"); len(got) != 1 || got[0].Until < 151 || got[0].Certain != 90 {
			t.Errorf("%+v", got)
		}
	})
}

// TestKubernetesFaults: what servers answer that is no answer, told with what would be
// right, ends nothing; after it all goes on.
func TestKubernetesFaults(t *testing.T) {
	for _, c := range []struct {
		name   string
		code   int
		body   string
		onlyOn string
		log    string
	}{
		{"401", 401, "", "", "the token or certificate is not known there"},
		{"403", 403, "", "", "it needs the verbs list and watch on pods"},
		{"403 for watches", 403, "", "watch=true", "it needs the verbs list and watch on pods"},
		{"404", 404, "no", "", "server must name the API server"},
		{"a login page", 200, "<html>", "", "no list of pods"},
		{"half an answer", 200, `{"kind":"PodList","metadata":{"resourceVersion":"1"},"items":[{`, "", "no list of pods"},
		{"another kind", 200, `{"kind":"ServiceList","metadata":{"resourceVersion":"1"},"items":[]}`, "", "not PodList"},
		{"no version", 200, `{"kind":"PodList","metadata":{},"items":[]}`, "", "no resourceVersion"},
		{"a page that leads to itself", 200, `{"kind":"PodList","metadata":{"resourceVersion":"1","continue":"x"},"items":[]}`, "", "leads to itself"},
		{"a watch of nonsense", 200, "what?", "watch=true", "broke off"},
		{"a watch that fails within", 200, `{"type":"ERROR","object":{"kind":"Status","code":500,"message":"etcdserver: no leader"}}`, "watch=true", "no leader"},
		{"an event without version", 200, `{"type":"ADDED","object":{"kind":"Pod","metadata":{"uid":"x","name":"p","namespace":"a"}}}`, "watch=true", "no resourceVersion"},
		{"an event about nobody", 200, `{"type":"DELETED","object":{"kind":"Pod","metadata":{"resourceVersion":"7"}}}`, "watch=true", "without uid"},
		{"an endless event", 200, `{"type":"` + strings.Repeat("x", maxKubeEvent+1), "watch=true", "larger than 8 MiB"},
	} {
		t.Run(c.name, func(t *testing.T) {
			inKube(t, func(k *kubeTest) {
				k.api.put("a", "p", podRunning("10.1.0.1"))
				stop := k.start()
				k.sleep(20 * time.Second)
				stop()
				k.api.refuse = func(r *http.Request) (int, string) {
					if strings.Contains(r.URL.RawQuery, c.onlyOn) {
						return c.code, c.body
					}
					return 0, ""
				}
				s, err := newKubernetes(k.cfg, nil, k.dir, clockNow, nil, k.met)
				if err != nil {
					t.Fatal(err)
				}
				s.client.Transport.(*http.Transport).DialContext = k.pipes.dial
				r := &kubeReader{k: s, news: make(chan kubeNews, 10), log: s.log}
				if c.onlyOn == "" {
					_, err = r.list(context.Background())
				} else {
					_, err = r.watch(context.Background(), "100")
				}
				if err == nil || !strings.Contains(err.Error(), c.log) {
					t.Errorf("it says %v", err)
				}
				s.client.CloseIdleConnections()
				stop = k.start()
				defer func() { stop() }()
				k.sleep(3 * time.Minute)
				k.want("10.1.0.1", seen{Workload: "a/p", Begin: -10, Device: "node-1", Account: "a/default", Tags: "system:serviceaccounts:a"})
				if n := counterOf(t, k.reg, "postern_identity_source_failures_total"); n < 3 || n > 20 {
					t.Errorf("%v failures in three minutes", n)
				}
				k.api.refuseAll(0)
				k.sleep(time.Minute)
				k.api.remove("a", "p")
				k.sleep(time.Second)
				if open := k.rec.open(); len(open) != 0 {
					t.Errorf("it does not go on: %+v", open)
				}
			})
		})
	}
}

// TestKubernetesOddEvents: events that are not known, or about something else, lose no neighbour.
func TestKubernetesOddEvents(t *testing.T) {
	inKube(t, func(k *kubeTest) {
		stop := k.start()
		defer stop()
		k.sleep(20 * time.Second)
		k.api.spoil = func(line []byte) []byte {
			return append([]byte(`{"type":"RENAMED","object":{"x":1}}`+"\n"+`{"type":"ADDED","object":{"kind":"Table","rows":[]}}`+"\n"), line...)
		}
		k.api.put("a", "p", podRunning("10.1.0.1"))
		k.sleep(time.Second)
		if open := k.rec.open(); len(open) != 1 || k.api.saw("watch=true") != 1 {
			t.Errorf("%+v", open)
		}
		// A pod that makes no sense in an event: all is listed, where what it said stays, and
		// its neighbours are heard.
		k.api.put("a", "p", podSet("status", "podIPs", []any{map[string]any{"ip": "10.1.0.300"}}))
		k.api.put("a", "q", podRunning("10.1.0.2"))
		k.sleep(time.Minute)
		if open := k.rec.open(); len(open) != 2 || counterOf(t, k.reg, "postern_identity_source_bad_entries") != 1 {
			t.Errorf("%+v", open)
		}
		k.api.remove("a", "p")
		k.sleep(time.Second)
		if open := k.rec.open(); len(open) != 1 || open[0].Workload != "a/q" {
			t.Errorf("%+v", open)
		}
	})
}

// TestKubernetesTLS: a token that is read anew, an authority, and a real connection.
func TestKubernetesTLS(t *testing.T) {
	api := newFakeAPI()
	api.token = "first"
	api.put("a", "p", podRunning("10.1.0.1"))
	server := httptest.NewTLSServer(api)
	defer server.Close()
	token := filepath.Join(t.TempDir(), "token")
	write := func(s string) {
		if err := os.WriteFile(token, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("first")
	cfg := DefaultKubernetesConfig()
	cfg.Name, cfg.Server, cfg.Token, cfg.TLS.CA = "prod", server.URL, "file:"+token, caFile(t, server)
	s, err := newKubernetes(cfg, func(ref string) (string, error) {
		b, err := os.ReadFile(strings.TrimPrefix(ref, "file:"))
		return string(b), err
	}, "", clockNow, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	rec := &recorder{}
	stop := running(t, s, rec.tell)
	eventually := func(what string, check func() bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !check(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("never: %s", what)
			}
		}
	}
	eventually("a pod", func() bool { return len(rec.open()) == 1 })
	eventually("a watch", func() bool { return api.saw("watch=true") == 1 })
	api.put("a", "q", podRunning("10.1.0.2"))
	eventually("an event", func() bool { return len(rec.open()) == 2 })
	api.mu.Lock()
	api.token = "second"
	api.mu.Unlock()
	write("second")
	api.put("a", "r", podRunning("10.1.0.3"))
	api.drop()
	eventually("the new token", func() bool { return len(rec.open()) == 3 && api.saw("watch=true") == 2 })
	if err := stop(); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	cfg.TLS.CA = token
	if _, err := newKubernetes(cfg, resolveTest, "", clockNow, nil, nil); err == nil || !strings.Contains(err.Error(), "holds no certificate") {
		t.Errorf("an authority that is none: %v", err)
	}
}

func TestKubernetesController(t *testing.T) {
	owner := func(kind, name string) string {
		return `"ownerReferences":[{"kind":"ReplicaSet","name":"other"},{"kind":"` + kind + `","name":"` + name + `","controller":true}]`
	}
	for _, c := range []struct{ name, metadata, want string }{
		{"a pod alone", `"name":"one"`, "a/one"},
		{"a Deployment", `"name":"web-5d4f-x","labels":{"pod-template-hash":"5d4f"},` + owner("ReplicaSet", "web-5d4f"), "a/web"},
		{"a Rollout", `"name":"web-5d4f-x","labels":{"rollouts-pod-template-hash":"5d4f"},` + owner("ReplicaSet", "web-5d4f"), "a/web"},
		{"a ReplicaSet alone", `"name":"rs-x",` + owner("ReplicaSet", "rs"), "a/rs"},
		{"a ReplicaSet named like a hash", `"name":"5d4f-x","labels":{"pod-template-hash":"5d4f"},` + owner("ReplicaSet", "-5d4f"), "a/-5d4f"},
		{"a StatefulSet", `"name":"db-0",` + owner("StatefulSet", "db"), "a/db"},
		{"a DaemonSet", `"name":"agent-x",` + owner("DaemonSet", "agent"), "a/agent"},
		{"a Job", `"name":"once-x","creationTimestamp":"2026-11-21T10:00:05Z",` + owner("Job", "once"), "a/once"},
		// 2026-11-21T10:00 is minute 29920920.
		{"a CronJob", `"name":"nightly-29920920-x","creationTimestamp":"2026-11-21T10:00:05Z",` + owner("Job", "nightly-29920920"), "a/nightly"},
		{"a Job with a date", `"name":"backup-20261121-x","creationTimestamp":"2026-11-21T10:00:05Z",` + owner("Job", "backup-20261121"), "a/backup-20261121"},
		{"a static pod", `"name":"etcd-node-1",` + owner("Node", "node-1"), "a/etcd"},
		{"an owner that is no name", `"name":"one",` + owner("StatefulSet", "x/y"), "a/one"},
	} {
		cfg := DefaultKubernetesConfig()
		p, err := cfg.decodePod([]byte(`{"metadata":{"uid":"u","namespace":"a",` + c.metadata + `}}`))
		if err != nil || p.content.Workload != c.want {
			t.Errorf("%s: %q, %v", c.name, p.content.Workload, err)
		}
	}
}

func TestKubernetesValidate(t *testing.T) {
	var c Config
	if err := yaml.UnmarshalWithOptions([]byte("kubernetes:\n  - {name: a, groupLabels: [team]}\n  - {name: b, staleAfter: 0s, groupLabels: []}\n"), &c, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	if c.Validate() != nil || c.Kubernetes[0].Lag != 10*time.Second || !slices.Equal(c.Kubernetes[0].GroupLabels, []string{"team"}) || c.Kubernetes[1].StaleAfter != 0 || len(c.Kubernetes[1].GroupLabels) != 0 {
		t.Errorf("%+v, %v", c, c.Validate())
	}
	d := DefaultKubernetesConfig()
	d.Name, d.Server, d.Token = "a", "http://kube.example:6443", "env:T"
	d.Namespaces, d.LabelSelector, d.GroupLabels, d.Cluster = []string{"A"}, "a\nb", []string{"x y"}, "B"
	d.Lag, d.Timeout, d.StaleAfter = 0, 0, time.Second
	e := DefaultKubernetesConfig()
	e.Name, e.Token = "a", "env:T"
	f := DefaultKubernetesConfig()
	f.Name, f.Server = "f", "https://u:p@kube.example"
	g := DefaultKubernetesConfig()
	g.Name, g.Server = "g", "https://kube.example"
	err := Config{Kubernetes: []KubernetesConfig{d, e, f, g}}.Validate()
	for _, want := range []string{
		"kubernetes[0].server: has no TLS", "kubernetes[0].namespaces[0]:", "kubernetes[0].labelSelector:", "kubernetes[0].groupLabels[0]:", "kubernetes[0].cluster:",
		"kubernetes[0].lag:", "kubernetes[0].timeout:", "kubernetes[0].staleAfter:", "kubernetes[1].name: \"a\" is also that of kubernetes[0]",
		"kubernetes[1].server: is empty", "kubernetes[2].server: holds user information", "kubernetes[3].token: is empty",
	} {
		if err == nil || !slices.ContainsFunc(strings.Split(err.Error(), "\n"), func(s string) bool { return strings.HasPrefix(s, want) }) {
			t.Errorf("no %s in\n%v", want, err)
		}
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := New(Config{Kubernetes: []KubernetesConfig{c.Kubernetes[0]}}, Options{}); err == nil || !strings.Contains(err.Error(), "does not run in a pod") {
		t.Errorf("outside a cluster: %v", err)
	}
}

// TestKubernetesDocs: what the page shows can be written like that.
func TestKubernetesDocs(t *testing.T) {
	b, err := os.ReadFile("../../docs/identity-kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	sources := 0
	for block := range strings.SplitSeq(string(b), "```") {
		text, found := strings.CutPrefix(block, "yaml\n")
		if !found || !strings.HasPrefix(text, "identity:") {
			continue
		}
		var c struct{ Identity Config }
		if err := yaml.UnmarshalWithOptions([]byte(text), &c, yaml.Strict()); err != nil {
			t.Errorf("%v in\n%s", err, text)
		} else if err := c.Identity.Validate(); err != nil {
			t.Errorf("%v in\n%s", err, text)
		}
		sources += len(c.Identity.Kubernetes)
	}
	if sources != 3 {
		t.Errorf("%d sources were found on the page", sources)
	}
}

func FuzzKubernetes(f *testing.F) {
	f.Add([]byte(`{"kind":"PodList","metadata":{"resourceVersion":"5"},"items":[{"metadata":{"uid":"u","name":"p","namespace":"a","labels":{"app":"x"}},"spec":{"serviceAccountName":"s"},"status":{"podIPs":[{"ip":"10.0.0.1"},{"ip":"::ffff:10.0.0.1"}],"startTime":"2026-01-01T00:00:00Z"}},{"metadata":{"uid":"v"}},{}]}`))
	f.Add([]byte(`{"type":"MODIFIED","object":{"kind":"Pod","metadata":{"uid":"u","resourceVersion":"7","name":"p","namespace":"a"},"status":{"podIP":"fd00::1%eth0"}}}{"type":"DELETED","object":{"kind":"Pod","metadata":{"uid":"u","resourceVersion":"8"}}}`))
	f.Add([]byte(`{"type":"ERROR","object":{"kind":"Status","code":410}}{"type":"BOOKMARK","object":{"kind":"Pod","metadata":{"resourceVersion":"9"}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		cfg := DefaultKubernetesConfig()
		cfg.Name, cfg.Server = "k", "http://127.0.0.1"
		k, err := newKubernetes(cfg, nil, "", func() flow.Time { return 1_800_000_000_000 }, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		at := flow.Time(1_800_000_000_000)
		l := &kubeList{bad: map[string]bool{}}
		bad := &partialError{}
		if _, err := cfg.decodeList(b, l, bad); err == nil {
			k.apply(kubeNews{at: at, sure: at - 10_000, list: l})
		}
		events := json.NewDecoder(bytes.NewReader(b))
		for {
			var e kubeEvent
			if events.Decode(&e) != nil {
				break
			}
			at++
			n := kubeNews{at: at, sure: at - 10_000}
			if version, err := cfg.decodeEvent(&e, &n); err == nil && version != "" {
				k.apply(n)
			}
		}
		if bad.entries > 0 && bad.err == nil {
			t.Fatal("a bad entry without a reason")
		}
		open := 0
		for _, f := range k.out.facts {
			if f.Addr != f.Addr.Canonical() || f.Addr.IsZero() || f.Since == 0 || f.SinceSlack < 0 || f.UntilSlack < 0 || f.Until != 0 && f.Until < f.Since || f.Session == "" || !strings.Contains(f.Workload, "/") || !slices.IsSorted(f.Groups) {
				t.Fatalf("a fact that does not hold together: %+v", f)
			}
		}
		for _, h := range k.table {
			if !h.Over {
				open++
			}
		}
		if open != k.open {
			t.Fatalf("%d are open, %d counted", open, k.open)
		}
	})
}

// BenchmarkKubernetes reads a page of 500 pods of 9 kB, and events of them.
func BenchmarkKubernetes(b *testing.B) {
	cfg := DefaultKubernetesConfig()
	cfg.Name, cfg.Server = "k", "http://127.0.0.1"
	pod := func(i int) string {
		return fmt.Sprintf(`{"kind":"Pod","metadata":{"name":"web-%d","namespace":"shop","uid":"%d","resourceVersion":"%d","labels":{"app":"web","pod-template-hash":"5d4f"},"managedFields":[{"manager":"%s"}],`+
			`"ownerReferences":[{"kind":"ReplicaSet","name":"web-5d4f","controller":true}]},"spec":{"nodeName":"n","serviceAccountName":"web"},"status":{"phase":"Running","podIPs":[{"ip":"10.1.%d.%d"}],"startTime":"2026-11-21T10:00:00Z"}}`,
			i, i, i+1, strings.Repeat(`f:metadata {} `, 600), i>>8, i&255)
	}
	var items []string
	var events []kubeEvent
	for i := range 500 {
		items = append(items, pod(i))
		events = append(events, kubeEvent{"MODIFIED", json.RawMessage(pod(i))})
	}
	page := []byte(`{"kind":"PodList","metadata":{"resourceVersion":"7"},"items":[` + strings.Join(items, ",") + `]}`)
	k, err := newKubernetes(cfg, nil, "", clockNow, nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("list", func(b *testing.B) {
		b.SetBytes(int64(len(page)))
		for b.Loop() {
			l := &kubeList{bad: map[string]bool{}}
			if _, err := cfg.decodeList(page, l, &partialError{}); err != nil || len(l.pods) != 500 {
				b.Fatal(err, len(l.pods))
			}
			k.apply(kubeNews{at: 1_800_000_000_000, sure: 1_799_999_990_000, list: l})
		}
		b.ReportMetric(float64(500*b.N)/b.Elapsed().Seconds(), "pods/s")
	})
	b.Run("events", func(b *testing.B) {
		for b.Loop() {
			for i := range events {
				n := kubeNews{at: 1_800_000_001_000}
				if _, err := cfg.decodeEvent(&events[i], &n); err != nil {
					b.Fatal(err)
				}
				k.apply(n)
			}
		}
		b.ReportMetric(float64(len(events)*b.N)/b.Elapsed().Seconds(), "events/s")
	})
}
