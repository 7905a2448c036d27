package siem

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// The receivers below are written from their vendors' documentation and refuse what that does not
// allow. Each keeps the events that it would still have after a crash, in the order they came.

// kept is what a receiver has.
type kept struct {
	t  testing.TB
	mu sync.Mutex
	// ids are those of events, in the order of their first arrival; times is how often each came.
	ids   []string
	times map[string]int
	// fault answers instead of the receiver, if it says so.
	fault func(w http.ResponseWriter) bool
}

func (k *kept) keep(ids ...string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.times == nil {
		k.times = map[string]int{}
	}
	for _, id := range ids {
		if k.times[id]++; k.times[id] == 1 {
			k.ids = append(k.ids, id)
		}
	}
}

func (k *kept) all() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.ids)
}

func (k *kept) faulty(w http.ResponseWriter) bool {
	k.mu.Lock()
	f := k.fault
	k.mu.Unlock()
	return f != nil && f(w)
}

// readAll reads a request's body, decompressed, and refuses more than most bytes.
func (k *kept) readAll(r *http.Request, most int) ([]byte, bool) {
	var in io.Reader = r.Body
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			k.t.Errorf("no gzip: %v", err)
			return nil, false
		}
		in = z
	}
	b, err := io.ReadAll(io.LimitReader(in, int64(most)+1))
	return b, err == nil && len(b) <= most
}

// webhookServer is a receiver by Standard Webhooks.
type webhookServer struct{ kept }

func (s *webhookServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.faulty(w) {
		return
	}
	body, ok := s.readAll(r, MaxMessage)
	if err := Verify([]string{vectorSecret}, r.Header, body, WebhookTolerance, time.Now()); err != nil || !ok {
		s.t.Errorf("refused: %v", err)
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	s.keep(r.Header.Get(HeaderWebhookID))
}

// hecServer is Splunk's HTTP Event Collector with acknowledgement. Events are indexed some time after
// they were accepted; a crash before that loses them.
type hecServer struct {
	kept
	acks    bool
	delay   time.Duration
	pending map[int64][]string // by acknowledgement, in memory
	due     map[int64]time.Time
	next    int64
	losing  func() bool // whether what was just accepted is lost by a crash
}

func (s *hecServer) say(w http.ResponseWriter, status, code int, text string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"text":%q,"code":%d}`, text, code)
}

func (s *hecServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.faulty(w) {
		return
	}
	channel := r.Header.Get("X-Splunk-Request-Channel")
	switch {
	case r.Header.Get("Authorization") == "":
		s.say(w, 401, 2, "Token is required")
		return
	case r.Header.Get("Authorization") != "Splunk hec-token":
		s.say(w, 403, 4, "Invalid token")
		return
	case s.acks && len(channel) != 36:
		s.say(w, 400, 10, "Data channel is missing")
		return
	}
	body, ok := s.readAll(r, 1<<20)
	if !ok {
		s.say(w, 413, 0, "too large")
		return
	}
	switch r.URL.Path {
	case "/services/collector/event":
		s.event(w, body)
	case "/services/collector/ack":
		s.ack(w, r, body, channel)
	default:
		s.t.Errorf("asked for %s", r.URL.Path)
		w.WriteHeader(http.StatusNotFound)
	}
}

func (s *hecServer) event(w http.ResponseWriter, body []byte) {
	var ids []string
	dec := json.NewDecoder(bytes.NewReader(body))
	for {
		var e map[string]json.RawMessage
		if err := dec.Decode(&e); err == io.EOF {
			break
		} else if err != nil {
			s.say(w, 400, 6, "Invalid data format")
			return
		}
		for key := range e {
			if !slices.Contains([]string{"time", "host", "source", "sourcetype", "index", "event", "fields"}, key) {
				s.t.Errorf("an event has the key %q", key)
			}
		}
		var fields struct {
			EventID string `json:"event_id"`
		}
		if e["event"] == nil || json.Unmarshal(e["fields"], &fields) != nil {
			s.say(w, 400, 12, "Event field is required")
			return
		}
		if strings.Contains(fields.EventID, "poison") {
			s.say(w, 400, 6, "Invalid data format")
			return
		}
		if _, err := strconv.ParseFloat(string(e["time"]), 64); err != nil {
			s.t.Errorf("time %s", e["time"])
		}
		ids = append(ids, fields.EventID)
	}
	if len(ids) == 0 {
		s.say(w, 400, 5, "No data")
		return
	}
	if !s.acks {
		s.keep(ids...)
		s.say(w, 200, 0, "Success")
		return
	}
	s.mu.Lock()
	s.next++
	id := s.next
	if s.losing == nil || !s.losing() {
		s.pending[id], s.due[id] = ids, time.Now().Add(s.delay)
	}
	s.mu.Unlock()
	fmt.Fprintf(w, `{"text":"Success","code":0,"ackId":%d}`, id)
}

func (s *hecServer) ack(w http.ResponseWriter, r *http.Request, body []byte, channel string) {
	var ask struct{ Acks []int64 }
	if err := json.Unmarshal(body, &ask); err != nil || r.URL.Query().Get("channel") != channel {
		s.t.Errorf("asked for acknowledgement by %s?%s %s", r.URL.Path, r.URL.RawQuery, body)
	}
	if !s.acks {
		s.say(w, 400, 14, "ACK is disabled")
		return
	}
	said := map[string]bool{}
	for _, id := range ask.Acks {
		s.mu.Lock()
		ids, ok := s.pending[id]
		done := ok && !time.Now().Before(s.due[id])
		if done {
			delete(s.pending, id) // told once
		}
		s.mu.Unlock()
		if done {
			s.keep(ids...)
		}
		said[strconv.FormatInt(id, 10)] = done
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"acks": said})
}

// bulkServer is _bulk of Elasticsearch and OpenSearch: it indexes what it has room for and says of
// each item what became of it.
type bulkServer struct {
	kept
	mode string
	busy func() bool // whether the next item meets a full queue
	docs map[string]int64
}

func (s *bulkServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.faulty(w) {
		return
	}
	if r.URL.Path != "/_bulk" || r.Header.Get("Content-Type") != "application/x-ndjson" || r.Header.Get("Authorization") != "ApiKey key" {
		s.t.Errorf("%s %v", r.URL.Path, r.Header)
		w.WriteHeader(http.StatusNotAcceptable)
		return
	}
	body, ok := s.readAll(r, 10<<20)
	if !ok || len(body) == 0 || body[len(body)-1] != '\n' {
		s.t.Error("a bulk body ends in a newline")
	}
	lines := bytes.Split(bytes.TrimSuffix(body, []byte("\n")), []byte("\n"))
	var items []any
	failed := false
	for i := 0; i+1 < len(lines); i += 2 {
		var action map[string]struct {
			Index       string `json:"_index"`
			ID          string `json:"_id"`
			Version     int64  `json:"version"`
			VersionType string `json:"version_type"`
		}
		var doc map[string]any
		if json.Unmarshal(lines[i], &action) != nil || json.Unmarshal(lines[i+1], &doc) != nil || len(action) != 1 {
			s.t.Errorf("lines %s %s", lines[i], lines[i+1])
			continue
		}
		for verb, a := range action {
			status := 201
			s.mu.Lock()
			newest, there := s.docs[a.ID]
			s.mu.Unlock()
			if _, stamped := doc["@timestamp"]; !stamped || a.Index != "logs-postern" {
				s.t.Errorf("document %s of %s", lines[i+1], a.Index)
			}
			switch {
			case strings.Contains(a.ID, "poison"):
				status = 400
			case s.busy != nil && s.busy():
				status = 429
			case s.mode == "findings" && (verb != "index" || a.VersionType != "external"), s.mode == "events" && verb != "create":
				s.t.Errorf("%s in mode %s", lines[i], s.mode)
			case s.mode == "findings" && there && newest >= a.Version, s.mode == "events" && there:
				status = 409
			default:
				s.mu.Lock()
				s.docs[a.ID] = a.Version
				s.mu.Unlock()
				if s.mode == "findings" {
					s.keep(fmt.Sprintf("%s:%d", a.ID, a.Version))
				} else {
					s.keep(a.ID)
				}
			}
			item := map[string]any{"status": status}
			if status >= 400 {
				failed = true
				item["error"] = map[string]string{"type": "some_exception", "reason": "because"}
			}
			items = append(items, map[string]any{verb: item})
		}
	}
	said := map[string]any{"errors": failed}
	if failed || strings.Contains(r.URL.Query().Get("filter_path"), "items.*.status") {
		said["items"] = items
	}
	_ = json.NewEncoder(w).Encode(said)
}

// sentinelServer gives out tokens and takes rows by the Logs Ingestion API.
type sentinelServer struct {
	kept
	token   string
	expires time.Time
	given   int
}

func (s *sentinelServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.faulty(w) {
		return
	}
	switch r.URL.Path {
	case "/tenant-1/oauth2/v2.0/token":
		if err := r.ParseForm(); err != nil || r.PostForm.Get("grant_type") != "client_credentials" || r.PostForm.Get("client_id") != "app" ||
			r.PostForm.Get("client_secret") != "app-secret" || r.PostForm.Get("scope") != "https://monitor.azure.com//.default" {
			w.WriteHeader(http.StatusUnauthorized)
			io.WriteString(w, `{"error":"invalid_client"}`)
			return
		}
		s.mu.Lock()
		s.given++
		s.token, s.expires = fmt.Sprintf("token-%d", s.given), time.Now().Add(time.Hour)
		token := s.token
		s.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"token_type":"Bearer","expires_in":3599,"access_token":%q}`, token)
	case "/dataCollectionRules/dcr-0123456789abcdef/streams/Custom-Postern_CL":
		s.mu.Lock()
		good := r.Header.Get("Authorization") == "Bearer "+s.token && time.Now().Before(s.expires)
		s.mu.Unlock()
		if !good {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if r.URL.Query().Get("api-version") != "2023-01-01" || r.Header.Get("Content-Type") != "application/json" {
			s.t.Errorf("%s %v", r.URL, r.Header)
		}
		body, ok := s.readAll(r, 1_000_000)
		if !ok {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return
		}
		var rows []struct {
			TimeGenerated time.Time
			EventID       string `json:"EventId"`
			Finding       map[string]any
		}
		if err := json.Unmarshal(body, &rows); err != nil || len(rows) == 0 {
			s.t.Errorf("body %.100q: %v", body, err)
		}
		var ids []string
		for _, row := range rows {
			if row.TimeGenerated.IsZero() || row.Finding["id"] == nil {
				s.t.Errorf("row %+v", row)
			}
			if strings.Contains(row.EventID, "poison") {
				w.WriteHeader(http.StatusBadRequest)
				io.WriteString(w, `{"error":{"code":"InvalidPayload"}}`)
				return
			}
			ids = append(ids, row.EventID)
		}
		s.keep(ids...)
		w.WriteHeader(http.StatusNoContent)
	default:
		s.t.Errorf("asked for %s", r.URL)
		w.WriteHeader(http.StatusNotFound)
	}
}
