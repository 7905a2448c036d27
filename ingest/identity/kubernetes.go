package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/postern/postern/flow"
)

// KubernetesConfig is a cluster whose pods are watched: which pod has which address, what it belongs to and which service account it runs as.
type KubernetesConfig struct {
	// Name is what this source is called in metrics, in stored flows and by `postern explain`.
	Name string `yaml:"name"`
	// Server is the API server, `https://host:6443`. Empty is the cluster that Postern itself runs in, with its own service account. http:// is for this machine only (kubectl proxy).
	Server string `yaml:"server"`
	// Token is a reference to a bearer token (env:NAME or file:PATH), never the token itself. It is read anew for each request.
	Token string `yaml:"token"`
	// TLS is how to trust the API server and, without a token, how to show who we are.
	TLS TLSConfig `yaml:"tls"`
	// Cluster, where there are several, stands behind every name: shop/web@prod. Names of clusters without it are taken for the same.
	Cluster string `yaml:"cluster"`
	// Namespaces are those whose pods are watched, each by itself; empty is all of them.
	Namespaces []string `yaml:"namespaces"`
	// LabelSelector narrows the pods further, as in `kubectl get pods -l`.
	LabelSelector string `yaml:"labelSelector"`
	// GroupLabels are pod labels that become groups, as namespace/label=value.
	GroupLabels []string `yaml:"groupLabels"`
	// Lag is how long what happened to a pod on its node may take to arrive here. Borders are that uncertain at least.
	Lag time.Duration `yaml:"lag"`
	// Timeout bounds one page of a list, and how long a watch may take to begin.
	Timeout time.Duration `yaml:"timeout"`
	// StaleAfter is how long after the API server was last heard what it said still counts; 0 is for ever.
	StaleAfter time.Duration `yaml:"staleAfter"`
}

// DefaultKubernetesConfig is the configuration of somebody who said that there is a cluster.
func DefaultKubernetesConfig() KubernetesConfig {
	return KubernetesConfig{
		// The labels that Kubernetes recommends, and what most charts used before them.
		GroupLabels: []string{"app.kubernetes.io/name", "app.kubernetes.io/part-of", "app", "tier"},
		// A kubelet looks at its containers every second and reports at once; what was not
		// reported it reports in its next round, ten seconds later at most.
		Lag: 10 * time.Second,
		// A page of 500 pods is some 5 MB.
		Timeout: 30 * time.Second,
		// API servers send a bookmark about once a minute even where nothing happens.
		StaleAfter: 5 * time.Minute,
	}
}

// UnmarshalYAML begins with the defaults, so that 0s can mean what it says.
func (c *KubernetesConfig) UnmarshalYAML(unmarshal func(any) error) error {
	type plain KubernetesConfig
	*c = DefaultKubernetesConfig()
	labels := c.GroupLabels
	c.GroupLabels = nil
	if err := unmarshal((*plain)(c)); err != nil {
		return err
	}
	if c.GroupLabels == nil { // an empty list is no labels
		c.GroupLabels = labels
	}
	return nil
}

const (
	maxKubeNamespaces = 64
	maxKubeLabels     = 16
)

var (
	// RFC 1123 labels and subdomains, as Kubernetes has them ("Object Names and IDs").
	kubeLabelForm = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	// Label keys: an optional DNS prefix and a name of at most 63 ("Labels and Selectors").
	kubeKeyForm = regexp.MustCompile(`^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)
)

// Validate says what is wrong and what would be right; each error begins with its key.
func (c KubernetesConfig) Validate() error {
	errs := []error{validSourceName(c.Name)}
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	if c.Server == "" {
		if c.Token != "" || c.TLS != (TLSConfig{}) {
			bad("server: is empty, which is the cluster that Postern runs in, with the token and authority that are there; take token and tls out, or name the server")
		}
	} else {
		u, err := url.Parse(c.Server)
		switch {
		case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "":
			bad("server: must read https://host:6443")
		case u.User != nil:
			bad("server: holds user information, which ends up in logs; use token")
		case u.Scheme == "http" && !thisMachine(u.Hostname()):
			bad("server: has no TLS: anyone on the path could read the token and say who is behind an address; use https://")
		case u.Scheme == "https" && c.Token == "" && c.TLS.Cert == "":
			bad("token: is empty, and so is tls.cert; name one of them, such as token: file:/etc/postern/cluster.token")
		}
	}
	errs = append(errs, c.TLS.validate()...)
	if c.Cluster != "" && !kubeLabelForm.MatchString(c.Cluster) {
		bad("cluster: %q cannot name a cluster; use up to 63 lower-case letters, digits and -", c.Cluster)
	}
	if len(c.Namespaces) > maxKubeNamespaces {
		bad("namespaces: lists %d; list at most %d, or none to watch all", len(c.Namespaces), maxKubeNamespaces)
	}
	for i, n := range c.Namespaces {
		if !kubeLabelForm.MatchString(n) || slices.Contains(c.Namespaces[:i], n) {
			bad("namespaces[%d]: %q is no namespace's name, or is there twice", i, n)
		}
	}
	if len(c.LabelSelector) > 1024 || strings.ContainsFunc(c.LabelSelector, func(r rune) bool { return r < ' ' || r > '~' }) {
		bad("labelSelector: must be at most 1024 plain characters, such as tier in (web, db)")
	}
	if len(c.GroupLabels) > maxKubeLabels {
		bad("groupLabels: lists %d; list at most %d", len(c.GroupLabels), maxKubeLabels)
	}
	for i, l := range c.GroupLabels {
		if !kubeKeyForm.MatchString(l) || slices.Contains(c.GroupLabels[:i], l) {
			bad("groupLabels[%d]: %q is no label's key, or is there twice; write for instance app.kubernetes.io/name", i, l)
		}
	}
	if c.Lag < time.Second || c.Lag > 5*time.Minute {
		bad("lag: %v is out of range; it must lie between 1s and 5m", c.Lag)
	}
	errs = append(errs, validTimeout(c.Timeout))
	if c.StaleAfter != 0 && (c.StaleAfter < time.Minute || c.StaleAfter < 2*c.Lag) {
		bad("staleAfter: %v is too short, since a server where nothing happens is heard about once a minute; use at least 1m and twice the lag, better 5m", c.StaleAfter)
	}
	return errors.Join(errs...)
}

// Where a pod finds the API server and its own service account ("Accessing the
// Kubernetes API from a Pod"). The kubelet replaces the token long before it expires.
const kubeAccountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// kubernetes is a [Source] that lists and watches pods.
//
// One goroutine for each namespace reads; one takes in what they read, in the order in
// which it was read, and tells it. See kubernetes_watch.go and kubernetes_pods.go.
type kubernetes struct {
	leases // the last holder of each address; Fact.Session is the pod's UID, Heard how late its claim is
	cfg    KubernetesConfig
	base   *url.URL
	client *http.Client
	token  func() (string, error)
	scopes []*kubeScope
	beaten flow.Time // of the last heartbeat
	silent time.Duration
	out    *told // what is to be told next
	open   int   // addresses in the table that are held
}

// newKubernetes makes a source of a cluster. It reads certificates and whether there is a
// token, and connects to nothing.
func newKubernetes(cfg KubernetesConfig, resolve func(ref string) (string, error), stateDir string, clock func() flow.Time, log *slog.Logger, met *metrics) (*kubernetes, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	k := &kubernetes{leases: newLeases(cfg.Name, kubeRetry, cfg.StaleAfter, stateDir, clock, log, met), cfg: cfg, out: &told{}}
	server, trust, read := cfg.Server, cfg.TLS, func() (string, error) { return "", nil }
	switch {
	case server == "":
		host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
		if host == "" || port == "" {
			return nil, errors.New("server: is empty, and Postern does not run in a pod (KUBERNETES_SERVICE_HOST is not set); name the API server")
		}
		server, trust.CA = "https://"+net.JoinHostPort(host, port), kubeAccountDir+"/ca.crt"
		read = func() (string, error) {
			b, err := os.ReadFile(kubeAccountDir + "/token")
			if err != nil {
				err = fmt.Errorf("token: %w", err)
			}
			return strings.TrimSpace(string(b)), err
		}
	case cfg.Token != "":
		read = func() (string, error) { return readSecret(resolve, "token", cfg.Token) }
	}
	needed := cfg.Server == "" || cfg.Token != ""
	k.token = func() (string, error) {
		v, err := read()
		if err != nil {
			return "", err
		}
		if needed && (v == "" || !httpguts.ValidHeaderFieldValue(v)) {
			return "", errors.New("token: is empty or has characters that no header may have")
		}
		return v, nil
	}
	var err error
	if k.base, err = url.Parse(server); err != nil {
		return nil, errors.New("server: must read https://host:6443")
	}
	if k.client, err = boundedHTTPClient(trust, "", cfg.Timeout); err != nil {
		return nil, err
	}
	// A watch lasts for minutes: lists have a time limit of their own. A connection that
	// is gone without a word is found by pings.
	k.client.Timeout = 0
	t := k.client.Transport.(*http.Transport)
	t.MaxConnsPerHost = 0
	t.HTTP2 = &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second}
	if _, err := k.token(); err != nil {
		return nil, err
	}
	k.silent = 5 * time.Minute
	if cfg.StaleAfter > 0 {
		k.silent = cfg.StaleAfter / 2
	}
	namespaces := slices.Clone(cfg.Namespaces)
	if len(namespaces) == 0 {
		namespaces = []string{""}
	}
	for _, n := range namespaces {
		k.scopes = append(k.scopes, newKubeScope(n))
	}
	return k, nil
}

const (
	// kubeBeats is the least time between two heartbeats, and how often is looked whether
	// the table is to be saved.
	kubeBeats = 5 * time.Second
	// kubeGather is how many events are told together if they are there.
	kubeGather = 4096
)

// Run implements [Source].
func (k *kubernetes) Run(ctx context.Context, tell Tell) error {
	if err := k.load(); err != nil {
		return err
	}
	defer k.close()
	defer k.client.CloseIdleConnections()
	k.restore()
	// Readers end with Run, also where that ends by itself.
	rctx, cancel := context.WithCancel(ctx)
	news := make(chan kubeNews, 256)
	ended := make(chan struct{}, len(k.scopes))
	for i := range k.scopes {
		go func() {
			k.follow(rctx, i, news)
			ended <- struct{}{}
		}()
	}
	defer func() {
		cancel()
		for range k.scopes {
			<-ended
		}
	}()
	ticker := time.NewTicker(kubeBeats)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return k.stopped(ctx)
		case <-ticker.C:
		case n := <-news:
			k.apply(n)
			for more := 1; more < kubeGather; more++ {
				select {
				case n := <-news:
					k.apply(n)
					continue
				default:
				}
				break
			}
		}
		err := k.tellPods(ctx, tell)
		if err == nil {
			err = k.saveIfDue(false)
		}
		if err != nil {
			if ctx.Err() != nil {
				return k.stopped(ctx)
			}
			return fmt.Errorf("identity source %s: %w", k.name, err)
		}
	}
}

// tellPods tells what changed and, from time to time, that the cluster was heard.
func (k *kubernetes) tellPods(ctx context.Context, tell Tell) error {
	sure := k.sure()
	var beat flow.Heartbeat
	if sure != 0 && sure.Sub(k.beaten) >= kubeBeats {
		beat = flow.Heartbeat{Source: k.name, At: sure, StaleAfter: k.staleAfter}
	}
	if len(k.pending)+len(k.out.facts) == 0 && beat == (flow.Heartbeat{}) {
		return nil
	}
	if err := k.leases.tell(ctx, tell, k.out, max(k.last, sure), beat); err != nil {
		return err
	}
	k.out = &told{}
	if beat != (flow.Heartbeat{}) {
		k.beaten = beat.At
		k.met.lastSuccess.Set(float64(beat.At) / 1000)
	}
	return nil
}
