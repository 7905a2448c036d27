package identity

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/postern/postern/flow"
)

// kubePod is what counts of a pod.
type kubePod struct {
	uid       string
	namespace string
	// addrs are those that the pod holds: none of a pod that ended, and none that are the
	// node's too, behind which stands whatever runs there.
	addrs   []flow.Addr
	content flow.Fact // workload, device, account and groups
	created flow.Time // by the API server's clock; 0 if not told
	started flow.Time // when the kubelet took the pod up, by the node's clock; 0 if not told
	sandbox flow.Time // when the pod's network was last set up, likewise
}

// claim is how late the pod got its addresses, to tell which of two pods got one later.
func (p *kubePod) claim() flow.Time { return max(p.created, p.started, p.sandbox) }

// earliest is since when the pod may have had an address that was first seen at a time. A
// pod has none before the kubelet takes it up. No condition narrows that: they are set
// when the kubelet reports, not when the network is set up, and init containers run before.
func (p *kubePod) earliest(at flow.Time, lag time.Duration) flow.Time {
	t := p.started
	if t == 0 || t > at {
		t = p.created
	}
	if t == 0 || t > at {
		t = at
	}
	return t.Add(-lag) // clocks of nodes may be off by that
}

// kubeObject is the part of core/v1 Pod that is read.
type kubeObject struct {
	Kind     string `json:"kind"` // not in the items of a list
	Metadata struct {
		Name              string            `json:"name"`
		Namespace         string            `json:"namespace"`
		UID               string            `json:"uid"`
		ResourceVersion   string            `json:"resourceVersion"`
		CreationTimestamp string            `json:"creationTimestamp"`
		Labels            map[string]string `json:"labels"`
		OwnerReferences   []struct {
			Kind       string `json:"kind"`
			Name       string `json:"name"`
			Controller bool   `json:"controller"`
		} `json:"ownerReferences"`
	} `json:"metadata"`
	Spec struct {
		NodeName           string `json:"nodeName"`
		ServiceAccountName string `json:"serviceAccountName"`
		HostNetwork        bool   `json:"hostNetwork"`
	} `json:"spec"`
	Status struct {
		Phase      string       `json:"phase"`
		PodIP      string       `json:"podIP"`
		PodIPs     []kubeObjIP  `json:"podIPs"`
		HostIP     string       `json:"hostIP"`
		HostIPs    []kubeObjIP  `json:"hostIPs"`
		StartTime  string       `json:"startTime"`
		Conditions []kubeStatus `json:"conditions"`
	} `json:"status"`
}

type kubeObjIP struct {
	IP string `json:"ip"`
}

type kubeStatus struct {
	Type               string `json:"type"`
	Status             string `json:"status"`
	LastTransitionTime string `json:"lastTransitionTime"`
}

// maxKubeAddrs bounds the addresses of one pod, of which Kubernetes knows two.
const maxKubeAddrs = 16

// kubeName says whether s is a name as Kubernetes has them: a DNS subdomain. Service
// accounts of old clusters may hold colons.
func kubeName(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != ':' {
			return false
		}
	}
	return s != "" && len(s) <= 253
}

func kubeUID(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return s != "" && len(s) <= 128
}

func kubeTime(s string) flow.Time {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil || t.Unix() < 0 || t.Year() > 9999 {
		return 0
	}
	return flow.TimeOf(t)
}

// decodePod reads a pod. Where it makes no sense uid may still be told.
func (c *KubernetesConfig) decodePod(raw []byte) (p kubePod, err error) {
	var o kubeObject
	if err := json.Unmarshal(raw, &o); err != nil {
		return kubePod{uid: kubeUIDOf(raw)}, err
	}
	m := &o.Metadata
	if !kubeUID(m.UID) {
		return kubePod{}, errors.New("a pod without uid")
	}
	p = kubePod{uid: m.UID, namespace: m.Namespace, created: kubeTime(m.CreationTimestamp), started: kubeTime(o.Status.StartTime)}
	switch {
	case !kubeName(m.Namespace) || !kubeName(m.Name):
		return p, fmt.Errorf("pod %s: %q in namespace %q is no name", m.UID, shortened(m.Name), shortened(m.Namespace))
	case o.Spec.NodeName != "" && !kubeName(o.Spec.NodeName):
		return p, fmt.Errorf("pod %s/%s: nodeName %q is no name", m.Namespace, m.Name, shortened(o.Spec.NodeName))
	case o.Spec.ServiceAccountName != "" && !kubeName(o.Spec.ServiceAccountName):
		return p, fmt.Errorf("pod %s/%s: serviceAccountName %q is no name", m.Namespace, m.Name, shortened(o.Spec.ServiceAccountName))
	}
	for _, s := range o.Status.Conditions {
		if s.Type == "PodReadyToStartContainers" && s.Status == "True" {
			p.sandbox = kubeTime(s.LastTransitionTime)
		}
	}
	suffix := ""
	if c.Cluster != "" {
		suffix = "@" + c.Cluster
	}
	p.content = flow.Fact{Kind: flow.FactLease, Session: m.UID, Device: o.Spec.NodeName,
		Workload: m.Namespace + "/" + o.controller() + suffix}
	if o.Spec.ServiceAccountName != "" {
		p.content.Account = m.Namespace + "/" + o.Spec.ServiceAccountName + suffix
		// What the API server itself calls all service accounts of a namespace.
		p.content.Groups = append(p.content.Groups, "system:serviceaccounts:"+m.Namespace+suffix)
	}
	for _, key := range c.GroupLabels {
		if v := m.Labels[key]; v != "" {
			// Whoever may make pods in a namespace chooses their labels, so a group never
			// reaches beyond its namespace.
			group := m.Namespace + "/" + key + "=" + v + suffix
			if len(v) > 63 || strings.ContainsFunc(v, func(r rune) bool { return r <= ' ' || r > '~' }) {
				return p, fmt.Errorf("pod %s/%s: label %s is no label's value", m.Namespace, m.Name, key)
			}
			p.content.Groups = append(p.content.Groups, group)
		}
	}
	slices.Sort(p.content.Groups)
	if o.Spec.HostNetwork || o.Status.Phase == "Succeeded" || o.Status.Phase == "Failed" {
		return p, nil
	}
	err = o.addresses(&p)
	return p, err
}

// kubeUIDOf is the uid of a pod of which something else makes no sense.
func kubeUIDOf(raw []byte) string {
	var o struct {
		Metadata struct {
			UID string `json:"uid"`
		} `json:"metadata"`
	}
	if json.Unmarshal(raw, &o) != nil || !kubeUID(o.Metadata.UID) {
		return ""
	}
	return o.Metadata.UID
}

// addresses reads the addresses of a pod and leaves out those of its node.
func (o *kubeObject) addresses(p *kubePod) error {
	ips := o.Status.PodIPs
	if len(ips) == 0 && o.Status.PodIP != "" {
		ips = []kubeObjIP{{o.Status.PodIP}}
	}
	if len(ips) > maxKubeAddrs {
		return fmt.Errorf("pod %s/%s: has %d addresses; %d is the most", o.Metadata.Namespace, o.Metadata.Name, len(ips), maxKubeAddrs)
	}
	for _, ip := range ips {
		a, err := flow.ParseAddr(ip.IP)
		if err != nil || a.Canonical().IsZero() || a.Netip().IsUnspecified() || a.Netip().IsLoopback() || a.Netip().IsMulticast() {
			p.addrs = nil
			return fmt.Errorf("pod %s/%s: podIPs has %q, which is no address of a pod", o.Metadata.Namespace, o.Metadata.Name, shortened(ip.IP))
		}
		a = a.Canonical()
		hosts := slices.ContainsFunc(append(o.Status.HostIPs, kubeObjIP{o.Status.HostIP}), func(h kubeObjIP) bool {
			b, err := flow.ParseAddr(h.IP)
			return err == nil && b.Canonical() == a
		})
		if !hosts && !slices.Contains(p.addrs, a) {
			p.addrs = append(p.addrs, a)
		}
	}
	slices.SortFunc(p.addrs, flow.Addr.Compare)
	return nil
}

// controller names what the pod belongs to, as people do: the Deployment of a ReplicaSet
// and the CronJob of a Job, whose names these carry, else the controller, else the pod.
func (o *kubeObject) controller() string {
	m := &o.Metadata
	for _, owner := range m.OwnerReferences {
		if !owner.Controller || !kubeName(owner.Name) {
			continue
		}
		switch owner.Kind {
		case "ReplicaSet":
			for _, label := range [...]string{"pod-template-hash", "rollouts-pod-template-hash"} {
				if name, ok := strings.CutSuffix(owner.Name, "-"+m.Labels[label]); ok && name != "" && m.Labels[label] != "" {
					return name
				}
			}
		case "Job":
			if name, ok := cronJob(owner.Name, kubeTime(m.CreationTimestamp)); ok {
				return name
			}
		case "Node": // a static pod, which the kubelet names after its node
			if name, ok := strings.CutSuffix(m.Name, "-"+owner.Name); ok && name != "" {
				return name
			}
			return m.Name
		}
		return owner.Name
	}
	return m.Name
}

// cronJob gives the CronJob that made a Job: it names it CRONJOB-MINUTES, the minutes
// since 1970 for which it was scheduled. Digits that are no time shortly before the pod
// was made are part of the Job's own name.
func cronJob(job string, created flow.Time) (string, bool) {
	i := strings.LastIndexByte(job, '-')
	if i <= 0 || created == 0 {
		return "", false
	}
	minutes, err := strconv.ParseUint(job[i+1:], 10, 32)
	if err != nil || job[i+1] == '0' || job[i+1] == '+' {
		return "", false
	}
	late := created.Sub(flow.Time(minutes * 60_000))
	return job[:i], late > -time.Hour && late < 7*24*time.Hour
}

// shortened makes a hostile text fit a message.
func shortened(s string) string {
	if len(s) > 64 {
		return strings.ToValidUTF8(s[:64], "") + "…"
	}
	return s
}

// kubeScope is a namespace that is watched, or all of them.
type kubeScope struct {
	namespace string // "" is all
	// sure is until when all that happened on nodes is known: when it was last heard, less
	// the lag. Before the first list it is that of the life before.
	sure   flow.Time
	listed bool
	// claims are the addresses that each pod showed last, by uid, also those that another
	// pod has got since: showing them on is no news.
	claims map[string][]flow.Addr
}

func newKubeScope(namespace string) *kubeScope {
	return &kubeScope{namespace: namespace, claims: map[string][]flow.Addr{}}
}

// kubeNews is what a reader read. Exactly one of list, pod and gone is set, or none, where
// the server was merely heard.
type kubeNews struct {
	scope int
	at    flow.Time // when it came
	// sure is until when all that happened is known with it; 0 if it does not say, as what
	// comes right after a connection was lost may be long past.
	sure flow.Time
	list *kubeList
	pod  *kubePod
	gone string // a pod's uid
}

// kubeList is a whole list of pods.
type kubeList struct {
	pods []kubePod
	bad  map[string]bool // uids of pods that make no sense; what they said before stays
	lost bool            // there is a pod of which not even the uid can be read: nothing ends
}

// restore begins where the life before ended.
func (k *kubernetes) restore() {
	for _, s := range k.scopes {
		s.sure = k.last
	}
	for _, h := range k.table {
		if !h.Over {
			k.open++
		}
	}
}

// sure is until when all that happened to pods is known; 0 before all were listed.
func (k *kubernetes) sure() flow.Time {
	var t flow.Time
	for i, s := range k.scopes {
		if !s.listed {
			return 0
		}
		if i == 0 || s.sure < t {
			t = s.sure
		}
	}
	return t
}

// apply takes in what was read; what changed by it is in out.
func (k *kubernetes) apply(n kubeNews) {
	s := k.scopes[n.scope]
	switch {
	case n.list != nil:
		k.applyList(s, n.list, n.at)
		s.listed = true
	case n.pod != nil:
		k.applyPod(s, n.pod, n.at)
	case n.gone != "":
		for _, addr := range s.claims[n.gone] {
			k.release(addr, n.gone, n.at, s.sure)
		}
		delete(s.claims, n.gone)
	}
	s.sure = max(s.sure, n.sure)
	k.met.facts.Set(float64(k.open))
}

// applyPod takes in a pod as it is now.
func (k *kubernetes) applyPod(s *kubeScope, p *kubePod, at flow.Time) {
	before := s.claims[p.uid]
	for _, addr := range before {
		if !slices.Contains(p.addrs, addr) {
			k.release(addr, p.uid, at, s.sure)
		}
	}
	if len(p.addrs) == 0 {
		delete(s.claims, p.uid)
		return
	}
	if before == nil && len(s.claims) >= maxFacts {
		k.met.failures.Inc()
		k.log.Warn("a cluster has more pods than are taken in; this one is passed over", "workload", p.content.Workload, "most", maxFacts)
		return
	}
	s.claims[p.uid] = p.addrs
	for _, addr := range p.addrs {
		h, known := k.table[addr]
		switch held := known && !h.Over; {
		case held && h.Fact.Session == p.uid:
			k.show(addr, p, at, s.sure)
		case slices.Contains(before, addr):
			// It shows what another has got since: a pod on a node that is gone does so until
			// somebody cleans it up. It never gets that back.
		case held && !k.within(s, &h) && h.Heard > p.claim():
			// Watches of two namespaces come side by side, so the later claim may come first.
		default:
			k.take(addr, p, at)
		}
	}
}

// applyList takes in all pods there are.
func (k *kubernetes) applyList(s *kubeScope, l *kubeList, at flow.Time) {
	claims := make(map[string][]flow.Addr, len(l.pods))
	byAddr := make(map[flow.Addr][]*kubePod, len(l.pods))
	for i := range l.pods {
		p := &l.pods[i]
		if len(p.addrs) == 0 || claims[p.uid] != nil {
			continue
		}
		claims[p.uid] = p.addrs
		for _, addr := range p.addrs {
			byAddr[addr] = append(byAddr[addr], p)
		}
	}
	keeps := func(uid string) bool { return l.bad[uid] || l.lost && claims[uid] == nil }
	for uid, addrs := range s.claims {
		if claims[uid] == nil && keeps(uid) {
			claims[uid] = addrs
		}
	}
	addrs := make([]flow.Addr, 0, len(byAddr))
	for addr := range byAddr {
		addrs = append(addrs, addr)
	}
	for addr, h := range k.table {
		if byAddr[addr] == nil && !h.Over && k.within(s, &h) {
			addrs = append(addrs, addr)
		}
	}
	slices.SortFunc(addrs, flow.Addr.Compare)
	for _, addr := range addrs {
		h, known := k.table[addr]
		held := known && !h.Over
		// Of several pods that show one address the one that got it last has it.
		var winner *kubePod
		tie := false
		for _, p := range byAddr[addr] {
			if own := held && h.Fact.Session == p.uid; !own {
				if slices.Contains(s.claims[p.uid], addr) || known && h.Fact.Session != p.uid && p.claim() < h.Heard {
					continue // one that another has got since
				}
			}
			switch {
			case winner == nil || p.claim() > winner.claim():
				winner, tie = p, false
			case p.claim() == winner.claim():
				tie = true
			}
		}
		switch {
		case tie: // nobody can tell
			if held {
				k.release(addr, h.Fact.Session, at, k.heard(&h, s.sure))
			}
		case winner == nil:
			if held && k.within(s, &h) && !keeps(h.Fact.Session) {
				k.release(addr, h.Fact.Session, at, s.sure)
			}
		case held && h.Fact.Session == winner.uid:
			k.show(addr, winner, at, s.sure)
		default:
			k.take(addr, winner, at)
		}
	}
	s.claims = claims
}

// within says whether a holder is a pod of the scope, or of a namespace that is not
// watched any more, of which nobody else will say that it is gone.
func (k *kubernetes) within(s *kubeScope, h *holder) bool {
	namespace, _, _ := strings.Cut(h.Fact.Workload, "/")
	return s.namespace == "" || namespace == s.namespace ||
		!slices.ContainsFunc(k.scopes, func(o *kubeScope) bool { return o.namespace == namespace })
}

// heard is until when all that happened to a holder is known, at most a time. Its own
// namespace may have been silent while others were heard.
func (k *kubernetes) heard(h *holder, most flow.Time) flow.Time {
	for _, s := range k.scopes {
		if k.within(s, h) {
			most = min(most, s.sure)
		}
	}
	return most
}

// take gives an address to a pod that had not shown it. Who had it ends where the pod may
// have begun.
func (k *kubernetes) take(addr flow.Addr, p *kubePod, at flow.Time) {
	from := p.earliest(at, k.cfg.Lag)
	if h, known := k.table[addr]; known && !h.Over {
		k.release(addr, h.Fact.Session, at, k.heard(&h, from))
	}
	if _, known := k.table[addr]; !known && len(k.table) >= maxFacts {
		k.met.failures.Inc()
		k.log.Warn("a cluster has more addresses than are taken in; this one is passed over", "address", addr.String(), "most", maxFacts)
		return
	}
	k.begin(addr, p, at, at.Sub(from))
}

// show compares what a pod that holds an address says now with what it said.
func (k *kubernetes) show(addr flow.Addr, p *kubePod, at, sure flow.Time) {
	h := k.table[addr]
	f := &h.Fact
	if f.Workload == p.content.Workload && f.Device == p.content.Device && f.Account == p.content.Account && slices.Equal(f.Groups, p.content.Groups) {
		return
	}
	k.release(addr, p.uid, at, sure)
	k.begin(addr, p, at, max(at.Sub(sure), 0))
}

func (k *kubernetes) begin(addr flow.Addr, p *kubePod, at flow.Time, slack time.Duration) {
	h := holder{Fact: p.content, Heard: p.claim()}
	h.Fact.Addr, h.Fact.Since, h.Fact.SinceSlack = addr, at, slack
	k.table[addr] = h
	k.out.add(h)
	k.open++
}

// release ends what a pod holds: by at, and not before from.
func (k *kubernetes) release(addr flow.Addr, uid string, at, from flow.Time) {
	h, known := k.table[addr]
	if !known || h.Over || h.Fact.Session != uid {
		return
	}
	h.Over = true
	h.Fact.Until = max(at, h.Fact.Since)
	h.Fact.UntilSlack = max(h.Fact.Until.Sub(from), 0)
	k.table[addr] = h
	k.out.add(h)
	k.open--
}
