package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/postern/postern/flow"
)

const (
	// kubeRetry is the longest pause between two tries.
	kubeRetry = 30 * time.Second
	// kubePage is how many pods a page has; client-go's pager takes as many.
	kubePage = 500
	// maxKubePage bounds a page: a pod with all that is in it is some 10 KB, at most the
	// 1.5 MB that etcd takes.
	maxKubePage = 256 << 20
	// maxKubeEvent bounds one event of a watch.
	maxKubeEvent = 8 << 20
	// kubeLasts is after how long a watch that ended is begun again at once.
	kubeLasts = 5 * time.Second
	// kubeRelist is the least time between two lists.
	kubeRelist = 10 * time.Second
	// kubeStalled is for how long what was read may wait to be taken in before what is read
	// next counts as late.
	kubeStalled = time.Second
	// kubeGiveUp is after how many watches that failed one after the other all is listed.
	kubeGiveUp = 3
)

var (
	// errKubeGone is that the server does not know any more what came after a resource
	// version ("410 Gone"): all has to be listed again.
	errKubeGone = errors.New("the server does not keep changes back to there any more (410 Gone)")
	// errKubeSilent is that a watch said nothing, not even a bookmark, for too long.
	errKubeSilent = errors.New("the watch was silent")
)

// follow lists and watches the pods of a scope until ctx ends.
func (k *kubernetes) follow(ctx context.Context, scope int, news chan<- kubeNews) {
	r := &kubeReader{k: k, scope: scope, news: news, log: k.log.With("namespace", k.scopes[scope].namespace)}
	var listed time.Time
	for version, failures := "", 0; ; {
		var err error
		began := time.Now()
		if version == "" {
			if wait := kubeRelist - time.Since(listed); !listed.IsZero() && wait > 0 && !pause(ctx, wait) {
				return
			}
			listed = time.Now()
			if version, err = r.list(ctx); err == nil {
				continue // failures go on counting until a watch lasts
			}
		} else {
			version, err = r.watch(ctx, version)
		}
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errKubeGone), errors.Is(err, errKubeSilent):
			r.log.Info("the cluster is listed again", "reason", err.Error())
			version = ""
			continue
		case err == nil && time.Since(began) >= kubeLasts: // it ended as it should
			failures = 0
			continue
		case time.Since(began) >= kubeLasts:
			failures = 0
		}
		wait := retryDelay(failures, kubeRetry)
		if refused, ok := errors.AsType[*kubeRefused](err); ok {
			wait = max(wait, min(refused.after, time.Minute))
		}
		if failures++; failures >= kubeGiveUp {
			version = ""
		}
		if err != nil {
			k.met.failures.Inc()
			r.log.Warn("identity source could not be read", "error", err.Error(), "again_in", wait.String())
		}
		if !pause(ctx, wait) {
			return
		}
	}
}

func pause(ctx context.Context, wait time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(wait):
		return true
	}
}

// kubeReader reads one scope.
type kubeReader struct {
	k     *kubernetes
	scope int
	news  chan<- kubeNews
	log   interface {
		Info(string, ...any)
		Warn(string, ...any)
	}
	// settled is from when what comes is no older than the lag: not while the server sends
	// what was missed, nor after it had to wait for us.
	settled flow.Time
}

// send hands on what was read at a time.
func (r *kubeReader) send(ctx context.Context, n kubeNews) {
	n.scope = r.scope
	select {
	case r.news <- n:
		return
	default:
	}
	began := time.Now()
	select {
	case r.news <- n:
		if time.Since(began) > kubeStalled {
			r.settled = r.k.clock().Add(r.k.cfg.Lag)
		}
	case <-ctx.Done():
	}
}

// kubeRefused is an answer that is none of 200.
type kubeRefused struct {
	code    int
	message string
	after   time.Duration
}

func (e *kubeRefused) Error() string {
	advice := ""
	switch e.code {
	case http.StatusUnauthorized:
		advice = "; the token or certificate is not known there"
	case http.StatusForbidden:
		advice = "; it needs the verbs list and watch on pods, see docs/identity-kubernetes.md"
	case http.StatusNotFound:
		advice = "; server must name the API server, without a path"
	}
	return fmt.Sprintf("the server answered %d %s%s%s", e.code, http.StatusText(e.code), strings.TrimSuffix(": "+e.message, ": "), advice)
}

// kubeMeta is what lists and answers that are none have in common.
type kubeMeta struct {
	Kind     string `json:"kind"`
	Metadata struct {
		ResourceVersion string `json:"resourceVersion"`
		Continue        string `json:"continue"`
	} `json:"metadata"`
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// get asks for pods. The answer's code is 200.
func (r *kubeReader) get(ctx context.Context, query url.Values) (*http.Response, error) {
	token, err := r.k.token()
	if err != nil {
		return nil, err
	}
	path := []string{"api", "v1", "pods"}
	if n := r.k.scopes[r.scope].namespace; n != "" {
		path = []string{"api", "v1", "namespaces", n, "pods"}
	}
	if r.k.cfg.LabelSelector != "" {
		query.Set("labelSelector", r.k.cfg.LabelSelector)
	}
	u := r.k.base.JoinPath(path...)
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "postern")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := r.k.client.Do(req)
	if err != nil {
		return nil, withoutURL(err)
	}
	if res.StatusCode == http.StatusOK {
		return res, nil
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(res.Body, 16<<10))
	var status kubeMeta
	if json.Unmarshal(b, &status) != nil || status.Kind != "Status" {
		status.Message = ""
	}
	if res.StatusCode == http.StatusGone {
		return nil, errKubeGone
	}
	refused := &kubeRefused{code: res.StatusCode, message: shortened(status.Message)}
	if s, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && s > 0 {
		refused.after = time.Duration(min(s, 3600)) * time.Second
	}
	return nil, refused
}

// list reads all pods page by page and hands them on. What it gives is the resource
// version to watch from.
func (r *kubeReader) list(ctx context.Context) (version string, err error) {
	r.k.met.reads.Inc()
	begin := r.k.clock()
	l, version, shown, err := r.pages(ctx, kubePage)
	if errors.Is(err, errKubeGone) {
		// The list took longer than the server keeps what its first page showed. As a whole it
		// comes at once, as client-go's pager does it.
		begin = r.k.clock()
		l, version, shown, err = r.pages(ctx, 0)
	}
	if err != nil {
		return "", err
	}
	r.settled = 0
	r.send(ctx, kubeNews{at: shown, sure: begin.Add(-r.k.cfg.Lag), list: l})
	return version, nil
}

// pages reads a list. All its pages show what there was when the first was asked for;
// shown is when that had come.
func (r *kubeReader) pages(ctx context.Context, limit int) (l *kubeList, version string, shown flow.Time, err error) {
	l = &kubeList{bad: map[string]bool{}}
	bad := &partialError{}
	for more := ""; ; {
		query := url.Values{}
		if limit > 0 {
			query.Set("limit", strconv.Itoa(limit))
		}
		if more != "" {
			query.Set("continue", more)
		}
		var meta kubeMeta
		if meta, err = r.page(ctx, query, l, bad); err != nil {
			return nil, "", 0, err
		}
		if shown == 0 {
			shown = r.k.clock()
		}
		if len(l.pods) > maxFacts {
			return nil, "", 0, fmt.Errorf("it has more than %d pods; name namespaces or narrow labelSelector", maxFacts)
		}
		version = meta.Metadata.ResourceVersion
		if version == "" {
			return nil, "", 0, errors.New("a list has no resourceVersion")
		}
		if meta.Metadata.Continue == "" {
			break
		}
		if meta.Metadata.Continue == more {
			return nil, "", 0, errors.New("a page leads to itself")
		}
		more = meta.Metadata.Continue
	}
	r.k.met.badEntries.Set(float64(bad.entries))
	if bad.entries > 0 {
		r.log.Warn("entries of an identity source could not be read; what they said before stays", "entries", bad.entries, "error", bad.err.Error())
	}
	return l, version, shown, nil
}

func (r *kubeReader) page(ctx context.Context, query url.Values, l *kubeList, bad *partialError) (kubeMeta, error) {
	ctx, done := context.WithTimeout(ctx, r.k.cfg.Timeout)
	defer done()
	res, err := r.get(ctx, query)
	if err != nil {
		return kubeMeta{}, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxKubePage+1))
	if err != nil {
		return kubeMeta{}, err
	}
	if len(b) > maxKubePage {
		return kubeMeta{}, fmt.Errorf("a page is larger than %d MiB", maxKubePage>>20)
	}
	return r.k.cfg.decodeList(b, l, bad)
}

// decodeList reads a page of a list. Pods that make no sense lose no neighbour.
func (c *KubernetesConfig) decodeList(b []byte, l *kubeList, bad *partialError) (kubeMeta, error) {
	var body struct {
		kubeMeta
		Items []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(b, &body); err != nil {
		return kubeMeta{}, fmt.Errorf("the answer is no list of pods: %w", err)
	}
	switch {
	case body.Kind == "Status" && body.Code == http.StatusGone:
		return kubeMeta{}, errKubeGone
	case body.Kind != "PodList":
		return kubeMeta{}, fmt.Errorf("the answer is of kind %q, not PodList; server must name the API server", shortened(body.Kind))
	}
	for _, raw := range body.Items {
		p, err := c.decodePod(raw)
		switch {
		case err == nil:
			l.pods = append(l.pods, p)
			continue
		case p.uid != "":
			l.bad[p.uid] = true
		default:
			l.lost = true
		}
		bad.note(err)
	}
	return body.kubeMeta, nil
}

// kubeEvent is one of a watch.
type kubeEvent struct {
	Type   string          `json:"type"`
	Object json.RawMessage `json:"object"`
}

// watch reads what changes after a resource version until the server ends that, which it
// does every few minutes, and gives the version reached.
func (r *kubeReader) watch(ctx context.Context, version string) (string, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(r.k.silent, func() { cancel(errKubeSilent) })
	defer silence.Stop()
	why := func(err error) error {
		if errors.Is(context.Cause(ctx), errKubeSilent) {
			return errKubeSilent
		}
		return err
	}
	res, err := r.get(ctx, url.Values{
		"watch": {"true"}, "allowWatchBookmarks": {"true"}, "resourceVersion": {version},
		// Drawn at random, so that watches do not all end at once.
		"timeoutSeconds": {strconv.Itoa(300 + rand.IntN(300))},
	})
	if err != nil {
		return version, why(err)
	}
	defer res.Body.Close()
	r.settled = max(r.settled, r.k.clock().Add(r.k.cfg.Lag))
	body := &cappedReader{r: res.Body}
	events := json.NewDecoder(body)
	for {
		body.left = maxKubeEvent
		var e kubeEvent
		err := events.Decode(&e)
		at := r.k.clock()
		switch {
		case errors.Is(err, io.EOF):
			return version, nil
		case err != nil:
			return version, why(fmt.Errorf("a watch broke off: %w", err))
		}
		silence.Reset(r.k.silent)
		n := kubeNews{at: at}
		if at >= r.settled {
			n.sure = at.Add(-r.k.cfg.Lag)
		}
		reached, err := r.k.cfg.decodeEvent(&e, &n)
		if err != nil {
			if errors.Is(err, errKubeGone) {
				return "", err
			}
			if _, ok := errors.AsType[*kubeRefused](err); ok {
				return version, err
			}
			// A change that cannot be read may be any change; what there is now is in a list.
			return "", err
		}
		if reached == "" { // an event of a kind nobody knows yet
			r.log.Info("a watch told an event that is not known", "type", shortened(e.Type))
			continue
		}
		version = reached
		r.send(ctx, n)
	}
}

// decodeEvent reads an event into n and gives its resource version, "" for one that is
// none of ours.
func (c *KubernetesConfig) decodeEvent(e *kubeEvent, n *kubeNews) (version string, err error) {
	switch e.Type {
	case "ADDED", "MODIFIED", "DELETED", "BOOKMARK":
	case "ERROR":
		var status kubeMeta
		if err := json.Unmarshal(e.Object, &status); err != nil {
			return "", fmt.Errorf("a watch told an error that cannot be read: %w", err)
		}
		if status.Code == http.StatusGone {
			return "", errKubeGone
		}
		return "", &kubeRefused{code: status.Code, message: shortened(status.Message)}
	default:
		return "", nil
	}
	var meta kubeMeta
	if err := json.Unmarshal(e.Object, &meta); err != nil {
		return "", fmt.Errorf("an event makes no sense: %w", err)
	}
	switch {
	case meta.Kind != "Pod":
		return "", nil
	case meta.Metadata.ResourceVersion == "":
		return "", errors.New("an event has no resourceVersion")
	}
	version = meta.Metadata.ResourceVersion
	switch e.Type {
	case "BOOKMARK":
		return version, nil
	case "DELETED":
		uid := kubeUIDOf(e.Object)
		if uid == "" {
			return "", errors.New("an event tells that a pod without uid is gone")
		}
		n.gone = uid
		return version, nil
	}
	p, err := c.decodePod(e.Object)
	if err != nil {
		return "", fmt.Errorf("an event makes no sense: %w", err)
	}
	n.pod = &p
	return version, nil
}

// cappedReader reads at most left bytes until that is set anew.
type cappedReader struct {
	r    io.Reader
	left int
}

func (c *cappedReader) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, fmt.Errorf("an event is larger than %d MiB", maxKubeEvent>>20)
	}
	n, err := c.r.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}
