package identity

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// fakeAPI is an API server as "Kubernetes API Concepts" documents it, for pods: lists with
// pages that show one snapshot, watches from a resource version with bookmarks, 410 Gone
// for what was compacted. Its knobs make it fail in the ways that clients meet.
type fakeAPI struct {
	mu       sync.Mutex
	rv       int
	floor    int // events up to here were compacted
	pods     map[string]map[string]any
	events   []fakeEvent
	wake     chan struct{} // closed at each event
	hangUp   chan struct{} // closed to drop all watches
	requests []string
	lists    map[string][]json.RawMessage // what lists that were begun show

	token     string
	bookmarks time.Duration // 0: never
	limit     int           // of a page, if the client asks for more
	latency   func() time.Duration
	refuse    func(r *http.Request) (code int, body string) // 0: answer
	spoil     func(line []byte) []byte                      // of a watch
}

type fakeEvent struct {
	rv              int
	kind, namespace string
	object          []byte
}

func newFakeAPI() *fakeAPI {
	return &fakeAPI{rv: 100, pods: map[string]map[string]any{}, lists: map[string][]json.RawMessage{}, wake: make(chan struct{}), hangUp: make(chan struct{}), bookmarks: time.Minute}
}

// put makes or changes a pod; alter may be nil.
func (f *fakeAPI) put(namespace, name string, alter func(pod map[string]any)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	kind, key := "MODIFIED", namespace+"/"+name
	pod := f.pods[key]
	if pod == nil {
		kind = "ADDED"
		pod = map[string]any{"kind": "Pod", "apiVersion": "v1",
			"metadata": map[string]any{"name": name, "namespace": namespace, "uid": fmt.Sprintf("uid-%s-%s-%d", namespace, name, f.rv)},
			"spec":     map[string]any{"nodeName": "node-1", "serviceAccountName": "default"}, "status": map[string]any{"phase": "Pending"}}
		f.pods[key] = pod
	}
	if alter != nil {
		alter(pod)
	}
	f.event(kind, namespace, pod)
}

func (f *fakeAPI) remove(namespace, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if pod := f.pods[namespace+"/"+name]; pod != nil {
		delete(f.pods, namespace+"/"+name)
		f.event("DELETED", namespace, pod)
	}
}

func (f *fakeAPI) event(kind, namespace string, pod map[string]any) {
	f.rv++
	pod["metadata"].(map[string]any)["resourceVersion"] = strconv.Itoa(f.rv)
	b, err := json.Marshal(pod)
	if err != nil {
		panic(err)
	}
	f.events = append(f.events, fakeEvent{f.rv, kind, namespace, b})
	close(f.wake)
	f.wake = make(chan struct{})
}

// compact forgets all events so far.
func (f *fakeAPI) compact() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.floor, f.events = f.rv, nil
}

// drop cuts all watches.
func (f *fakeAPI) drop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.hangUp)
	f.hangUp = make(chan struct{})
}

func (f *fakeAPI) saw(part string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.requests {
		if strings.Contains(r, part) {
			n++
		}
	}
	return n
}

func fakeStatus(w http.ResponseWriter, code int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":%q,"code":%d}`, message, code)
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.requests = append(f.requests, r.URL.String())
	refuse, token := f.refuse, f.token
	f.mu.Unlock()
	if token != "" && r.Header.Get("Authorization") != "Bearer "+token {
		fakeStatus(w, 401, "Unauthorized")
		return
	}
	if refuse != nil {
		if code, body := refuse(r); code != 0 {
			if body == "" {
				fakeStatus(w, code, "as the test wants it")
				return
			}
			w.WriteHeader(code)
			w.Write([]byte(body))
			return
		}
	}
	namespace := ""
	if rest, ok := strings.CutPrefix(r.URL.Path, "/api/v1/namespaces/"); ok {
		namespace = strings.TrimSuffix(rest, "/pods")
	} else if r.URL.Path != "/api/v1/pods" {
		fakeStatus(w, 404, "the server could not find the requested resource")
		return
	}
	if r.URL.Query().Get("watch") == "true" {
		f.serveWatch(w, r, namespace)
		return
	}
	f.serveList(w, r, namespace)
}

func (f *fakeAPI) serveList(w http.ResponseWriter, r *http.Request, namespace string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
	if f.limit > 0 && limit > f.limit {
		limit = f.limit
	}
	// The continue token holds the snapshot itself: version, place, and nothing is served
	// from a snapshot that was compacted.
	rv, from := f.rv, 0
	if c := r.URL.Query().Get("continue"); c != "" {
		if _, err := fmt.Sscanf(c, "%d.%d", &rv, &from); err != nil {
			fakeStatus(w, 400, "continue key is not valid")
			return
		}
		if rv < f.floor {
			fakeStatus(w, 410, "The provided continue parameter is too old")
			return
		}
	}
	items := f.snapshot(rv, namespace, from > 0)
	more := ""
	items = items[min(from, len(items)):]
	if limit > 0 && len(items) > limit {
		items, more = items[:limit], fmt.Sprintf("%d.%d", rv, from+limit)
	}
	json.NewEncoder(w).Encode(map[string]any{"kind": "PodList", "apiVersion": "v1",
		"metadata": map[string]any{"resourceVersion": strconv.Itoa(rv), "continue": more}, "items": items})
}

// snapshot gives the pods there are now, or were when a list was begun.
func (f *fakeAPI) snapshot(rv int, namespace string, begun bool) []json.RawMessage {
	if key := fmt.Sprint(rv, namespace); begun {
		return f.lists[key]
	}
	var items []json.RawMessage
	for _, key := range slices.Sorted(maps.Keys(f.pods)) {
		if namespace == "" || strings.HasPrefix(key, namespace+"/") {
			b, err := json.Marshal(f.pods[key])
			if err != nil {
				panic(err)
			}
			items = append(items, b)
		}
	}
	f.lists[fmt.Sprint(rv, namespace)] = items
	return items
}

func (f *fakeAPI) serveWatch(w http.ResponseWriter, r *http.Request, namespace string) {
	rv, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	seconds, _ := strconv.Atoi(r.URL.Query().Get("timeoutSeconds"))
	ctx, done := context.WithTimeout(r.Context(), time.Duration(seconds)*time.Second)
	defer done()
	f.mu.Lock()
	hangUp, bookmarks := f.hangUp, f.bookmarks
	f.mu.Unlock()
	if bookmarks == 0 {
		bookmarks = 1000 * time.Hour
	}
	ticker := time.NewTicker(bookmarks)
	defer ticker.Stop()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(200)
	w.(http.Flusher).Flush()
	send := func(kind string, object []byte) {
		line := fmt.Appendf(nil, `{"type":%q,"object":%s}`+"\n", kind, object)
		f.mu.Lock()
		spoil := f.spoil
		f.mu.Unlock()
		if spoil != nil {
			line = spoil(line)
		}
		w.Write(line)
		w.(http.Flusher).Flush()
	}
	for {
		f.mu.Lock()
		wake, latency := f.wake, f.latency
		gone := rv < f.floor
		var next []fakeEvent
		for _, e := range f.events {
			if e.rv > rv {
				next = append(next, e)
			}
		}
		now := f.rv
		f.mu.Unlock()
		if gone {
			send("ERROR", []byte(`{"kind":"Status","apiVersion":"v1","status":"Failure","message":"too old resource version","reason":"Expired","code":410}`))
			return
		}
		if len(next) > 0 && latency != nil {
			select {
			case <-time.After(latency()):
			case <-ctx.Done():
				return
			case <-hangUp:
				panic(http.ErrAbortHandler)
			}
		}
		for _, e := range next {
			if namespace == "" || e.namespace == namespace {
				send(e.kind, e.object)
			}
			rv = e.rv
		}
		if len(next) > 0 {
			continue
		}
		select {
		case <-wake:
		case <-ticker.C:
			send("BOOKMARK", fmt.Appendf(nil, `{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"%d","creationTimestamp":null},"spec":{"containers":null},"status":{}}`, now))
		case <-ctx.Done():
			return
		case <-hangUp:
			panic(http.ErrAbortHandler) // as a connection that breaks off
		}
	}
}

// pipes is a listener without a network, so that its time can be that of synctest.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.conns <- theirs:
		return ours, nil
	case <-p.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
