package identity

import (
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/postern/postern/flow"
)

// truth is who really held an address.
type truth struct {
	uid, tag     string
	since, until flow.Time // until 0: still
	active       flow.Time // when its containers ran, soon after which the kubelet tells; 0 if never
}

// telling is one call of Tell.
type telling struct {
	known flow.Time
	facts []flow.Fact
	beat  flow.Heartbeat
}

// kubeSim is a cluster of nodes whose pods come and go and take each other's addresses.
// What it does is true at once; the API server learns of it as late as kubelets report.
type kubeSim struct {
	k    *kubeTest
	rnd  *rand.Rand
	mu   sync.Mutex
	free []string             // addresses nobody has; the last that came back is taken first
	held map[string][]truth   // by address
	dead map[string]flow.Time // pods that ended when their node did, of which nobody tells
	next int
}

func (s *kubeSim) pick(n int) int { s.mu.Lock(); defer s.mu.Unlock(); return s.rnd.IntN(n) }

// wait sleeps for up to d.
func (s *kubeSim) wait(d time.Duration) {
	time.Sleep(time.Duration(s.pick(int(d/time.Millisecond))+1) * time.Millisecond)
}

func (s *kubeSim) take(uid, tag string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.free) == 0 {
		return ""
	}
	addr := s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	s.held[addr] = append(s.held[addr], truth{uid: uid, tag: tag, since: clockNow()})
	return addr
}

// run begins the containers of a pod that has its address.
func (s *kubeSim) run(addr string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[addr][len(s.held[addr])-1].active = clockNow()
}

// change ends what an address is and, with a tag, begins it anew for the same pod.
func (s *kubeSim) change(addr, tag string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &s.held[addr][len(s.held[addr])-1]
	l.until = clockNow()
	if tag != "" {
		s.held[addr] = append(s.held[addr], truth{uid: l.uid, tag: tag, since: clockNow(), active: clockNow()})
		return
	}
	s.free = append(s.free, addr)
}

// simReport is how late a kubelet tells. With half a second for a network that is set up
// anew and twice simLatency, as an event may just miss the one before, it is below the lag.
const (
	simReport  = 3 * time.Second
	simLatency = 1500 * time.Millisecond
)

// pod lives one life.
func (s *kubeSim) pod(skew time.Duration) {
	api := s.k.api
	s.mu.Lock()
	s.next++
	name := fmt.Sprintf("pod-%d", s.next)
	s.mu.Unlock()
	namespace := []string{"a", "b"}[s.pick(2)]
	uid := ""
	api.put(namespace, name, func(pod map[string]any) {
		m := pod["metadata"].(map[string]any)
		uid = m["uid"].(string)
		m["labels"] = map[string]any{"app": "one"}
		m["creationTimestamp"] = time.Now().UTC().Format(time.RFC3339)
	})
	s.wait(5 * time.Second)
	started := time.Now().Add(skew).UTC().Format(time.RFC3339)
	if s.pick(2) == 0 {
		api.put(namespace, name, podSet("status", "startTime", started))
	}
	addr := s.take(uid, "one")
	if addr == "" {
		api.remove(namespace, name)
		return
	}
	if s.pick(3) == 0 { // the image takes a while
		s.wait(90 * time.Second)
	}
	s.run(addr)
	s.wait(simReport)
	api.put(namespace, name, both(podSet("status", "startTime", started), podRunning(addr)))
	s.wait(4 * time.Minute)
	if s.pick(4) == 0 {
		s.change(addr, "two")
		api.put(namespace, name, podSet("metadata", "labels", map[string]any{"app": "two"}))
		s.wait(time.Minute)
	}
	switch s.pick(5) {
	case 0: // the network is set up anew, with another address
		s.change(addr, "")
		s.wait(500 * time.Millisecond)
		// Its labels may have been changed before.
		tag := "one"
		api.put(namespace, name, func(pod map[string]any) {
			tag = pod["metadata"].(map[string]any)["labels"].(map[string]any)["app"].(string)
		})
		if addr = s.take(uid, tag); addr == "" {
			api.remove(namespace, name)
			return
		}
		s.run(addr)
		sandbox := map[string]any{"type": "PodReadyToStartContainers", "status": "True", "lastTransitionTime": time.Now().Add(skew).UTC().Format(time.RFC3339)}
		s.wait(simReport)
		api.put(namespace, name, both(podRunning(addr), podSet("status", "conditions", []any{sandbox})))
		s.wait(3 * time.Minute)
	case 1: // it is asked to stop, and takes its time
		api.put(namespace, name, podSet("metadata", "deletionTimestamp", time.Now().UTC().Format(time.RFC3339)))
		s.wait(40 * time.Second)
	case 2: // its node dies: it is shown until somebody cleans up
		time.Sleep(10 * time.Second)
		s.mu.Lock()
		s.dead[uid] = clockNow()
		s.mu.Unlock()
		s.change(addr, "")
		s.wait(5 * time.Minute)
		api.remove(namespace, name)
		return
	}
	s.change(addr, "")
	s.wait(simReport)
	if s.pick(2) == 0 { // it ends, and is cleaned up later
		api.put(namespace, name, podSet("status", "phase", "Succeeded"))
		s.wait(5 * time.Minute)
	}
	api.remove(namespace, name)
}

// TestKubernetesRandom: whatever fails, nobody is credited with an address at a time for
// which it is not uncertain whether they had it: neither in the end, nor by what was known
// when a heartbeat said that all was known.
func TestKubernetesRandom(t *testing.T) {
	seeds := 30
	if testing.Short() {
		seeds = 5
	}
	var certain, all float64
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			c, a := kubeRandom(t, uint64(seed))
			certain, all = certain+c, all+a
		})
	}
	t.Logf("of the time that pods held addresses %.1f%% is certain", 100*certain/all)
	if certain < 0.5*all {
		t.Errorf("of %v seconds only %v are certain", all, certain)
	}
}

func kubeRandom(t *testing.T, seed uint64) (certain, all float64) {
	inKube(t, func(k *kubeTest) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		if seed%3 == 0 {
			k.cfg.Namespaces = []string{"a", "b"}
		}
		k.api.limit = 3
		k.api.latency = func() time.Duration { return rand.N(simLatency) }
		if seed%4 == 1 {
			k.api.bookmarks = 0
		}
		s := &kubeSim{k: k, rnd: rand.New(rand.NewPCG(seed, 2)), held: map[string][]truth{}, dead: map[string]flow.Time{}}
		for i := range 8 {
			s.free = append(s.free, fmt.Sprintf("10.1.0.%d", i+1))
		}
		var tellings []telling
		var mu sync.Mutex
		crashed := false
		k.tell = func(_ context.Context, facts []flow.Fact, beat flow.Heartbeat) error {
			mu.Lock()
			defer mu.Unlock()
			if crashed || rand.IntN(200) == 0 {
				return fmt.Errorf("the store is away for a moment")
			}
			tellings = append(tellings, telling{clockNow(), slices.Clone(facts), beat})
			return nil
		}
		ctx, cancel := context.WithCancel(context.Background())
		var pods sync.WaitGroup
		pods.Go(func() {
			for ctx.Err() == nil {
				s.wait(20 * time.Second)
				skew := time.Duration(s.pick(6000)-3000) * time.Millisecond
				pods.Go(func() { s.pod(skew) })
			}
		})
		stop := k.start()
		for range 12 {
			k.sleep(time.Duration(rnd.IntN(300)) * time.Second)
			switch rnd.IntN(6) {
			case 0: // the connection breaks
				k.api.drop()
			case 1: // what was missed is gone
				k.api.compact()
				k.api.drop()
			case 2: // the server is away
				k.api.refuseAll(503)
				k.api.drop()
				k.sleep(time.Duration(rnd.IntN(180)) * time.Second)
				if rnd.IntN(2) == 0 {
					k.api.compact()
				}
				k.api.refuseAll(0)
			case 3: // a restart
				stop()
				k.sleep(time.Duration(rnd.IntN(120)) * time.Second)
				stop = k.start()
			case 4: // a crash: what is on disk is of a moment before
				saved := map[string][]byte{}
				mu.Lock()
				crashed = true // and nothing is stored from here on
				mu.Unlock()
				readDir(t, k.dir, saved)
				k.sleep(time.Duration(rnd.IntN(30)) * time.Millisecond)
				stop()
				crashed = false
				writeDir(t, k.dir, saved)
				k.sleep(time.Duration(rnd.IntN(60)) * time.Second)
				stop = k.start()
			}
		}
		cancel()
		pods.Wait() // all live to their end
		k.sleep(6 * time.Minute)
		stop()
		certain, all = s.check(t, tellings)
	})
	return certain, all
}

func readDir(t *testing.T, dir string, into map[string][]byte) {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		into[path] = b
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func writeDir(t *testing.T, dir string, from map[string][]byte) {
	now := map[string][]byte{}
	readDir(t, dir, now)
	for path := range now {
		if _, ok := from[path]; !ok {
			os.Remove(path)
		}
	}
	for path, b := range from {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Error(err)
		}
	}
}

// at gives who really held an address. A pod whose network was set up anew with the same
// address had it all the time, as far as anybody can tell: nobody else did.
func (s *kubeSim) at(addr string, at flow.Time) truth {
	list := s.held[addr]
	for i, l := range list {
		if at >= l.since && (l.until == 0 || at < l.until || i+1 < len(list) && list[i+1].uid == l.uid && at < list[i+1].since) {
			return l
		}
	}
	return truth{}
}

// check compares what was told with what was true, at every border of either and between.
func (s *kubeSim) check(t *testing.T, tellings []telling) (certain, all float64) {
	final := map[factIdentity]flow.Fact{}
	times, told := map[string][]flow.Time{}, map[string]bool{}
	note := func(addr string, at ...flow.Time) {
		for _, a := range at {
			if a != 0 {
				times[addr] = append(times[addr], a-1, a, a+1)
			}
		}
	}
	for _, x := range tellings {
		for _, f := range x.facts {
			final[identityOf(&f)], told[f.Session] = f, true
			note(f.Addr.String(), f.Since, f.Until.Add(-f.UntilSlack), f.Until)
		}
	}
	for addr, list := range s.held {
		for _, l := range list {
			note(addr, l.since, l.until)
		}
	}
	wrong := 0
	credited := func(facts map[factIdentity]flow.Fact, addr string, at flow.Time, when string) {
		a := flow.MustParseAddr(addr)
		var holder, doubt *flow.Fact
		for _, f := range facts {
			if f.Addr != a || f.Until != 0 && (at >= f.Until || f.Until <= f.Since) || at < f.Since.Add(-f.SinceSlack) {
				continue
			}
			if at < f.Since || f.Until != 0 && at >= f.Until.Add(-f.UntilSlack) {
				doubt = &f
			} else {
				holder = &f
			}
		}
		if holder == nil || doubt != nil && doubt.Session != holder.Session {
			return // two that differ, one of them in doubt, are not known
		}
		is := s.at(addr, at)
		if died := s.dead[holder.Session]; died != 0 && at >= died && (is.active == 0 || at < is.active || !told[is.uid]) {
			// Nobody can know: no other talks from there yet, or it came and went while the watch
			// was away, and what a list shows then is the pod of the node that is gone.
			return
		}
		if holder.Session != is.uid || doubt == nil && !slices.Contains(holder.Groups, holder.Workload[:1]+"/app="+is.tag) {
			if wrong++; wrong < 4 {
				t.Errorf("%s: %s at %v is credited to %s %v, and was %q %q\n%+v", when, addr, at, holder.Session, holder.Groups, is.uid, is.tag, *holder)
			}
		}
	}
	for addr, list := range times {
		slices.Sort(list)
		for _, at := range slices.Compact(list) {
			credited(final, addr, at, "in the end")
		}
	}
	// With what was known when a heartbeat came, all up to its time is right.
	known := map[factIdentity]flow.Fact{}
	for _, x := range tellings {
		for _, f := range x.facts {
			known[identityOf(&f)] = f
		}
		if x.beat.At == 0 {
			continue
		}
		for addr, list := range times {
			credited(known, addr, x.beat.At, "at a heartbeat")
			i, _ := slices.BinarySearch(list, x.beat.At)
			for j := max(i-6, 0); j < i; j++ {
				credited(known, addr, list[j], "by a heartbeat")
			}
		}
	}
	for _, list := range s.held {
		for _, l := range list {
			all += l.until.Sub(l.since).Seconds()
			for _, f := range final {
				if f.Session == l.uid && f.Until != 0 {
					certain += max(min(l.until, f.Until.Add(-f.UntilSlack)).Sub(max(l.since, f.Since)).Seconds(), 0)
				}
			}
		}
	}
	if open := 0; len(final) > 0 {
		for _, f := range final {
			if f.Until == 0 {
				open++
			}
		}
		if open > 0 {
			t.Errorf("%d facts never end, though all pods are gone", open)
		}
	}
	return certain, all
}
