package siem

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// ElasticConfig is Elasticsearch or OpenSearch, by its _bulk interface. A URL's path is kept, as some services
// have one.
type ElasticConfig struct {
	HTTPConfig `yaml:",inline"`
	// Index is the index or data stream that events go to, such as logs-postern.finding-default.
	Index string `yaml:"index"`
	// Mode is events, a document for each revision of a finding (what a data stream takes), or findings, one document a finding that each revision replaces.
	Mode string `yaml:"mode"`
	// Pipeline is the ingest pipeline to go through; empty is the index's own.
	Pipeline string `yaml:"pipeline"`
	// Username logs in, with Password, unless there is an APIKey.
	Username string `yaml:"username"`
	// Password is a reference to the password.
	Password string `yaml:"password"`
	// APIKey is a reference to an API key, as Elasticsearch shows it encoded.
	APIKey string `yaml:"apiKey"`
	// Batch is how many events a request has at most.
	Batch int `yaml:"batch"`
}

// Fill gives c the defaults of what it does not say.
func (c *ElasticConfig) Fill() {
	c.HTTPConfig.Fill()
	if c.Mode == "" {
		c.Mode = "events"
	}
	if c.Batch == 0 {
		c.Batch = 200 // 4 MB at most
	}
}

// indexForm is what names of indices and data streams have in common (Elasticsearch, "Create index": no
// upper case, none of \ / * ? " < > | space , # :, not beginning with - _ +).
var indexForm = regexp.MustCompile(`^[^-_+\\/*?"<>| ,#:A-Z.][^\\/*?"<>| ,#:A-Z]{0,254}$`)

func (c *ElasticConfig) validate() error {
	switch {
	case !indexForm.MatchString(c.Index):
		return fmt.Errorf("index %q is no name of an index or data stream; write lower case, such as logs-postern.finding-default", c.Index)
	case c.Mode != "events" && c.Mode != "findings":
		return fmt.Errorf("mode %q is not known; use events or findings", c.Mode)
	case (c.Username == "") != (c.Password == ""):
		return errors.New("username and password go together; give both or neither")
	case c.Username != "" && c.APIKey != "":
		return errors.New("apiKey and username are both given; take one of them out")
	case c.Batch < 1 || c.Batch > 1000:
		return fmt.Errorf("batch %d; it must lie between 1 and 1000", c.Batch)
	}
	return c.HTTPConfig.validate()
}

func (c *ElasticConfig) references() map[string]string {
	out := map[string]string{}
	for key, ref := range map[string]string{"password": c.Password, "apiKey": c.APIKey} {
		if ref != "" {
			out[key] = ref
		}
	}
	return out
}

func (c *ElasticConfig) open(get func(string) (string, error), at *place) (Sender, error) {
	hc, err := c.resolved(get)
	if err != nil {
		return nil, err
	}
	h, err := newHTTPDoor(hc, at)
	if err != nil {
		return nil, err
	}
	s := &elastic{httpDoor: h, cfg: *c, as: at.as, header: http.Header{"Content-Type": {"application/x-ndjson"}, "Content-Encoding": {"gzip"}}}
	switch {
	case c.APIKey != "":
		key, err := get(c.APIKey)
		if err != nil {
			return nil, fmt.Errorf("apiKey: %w", err)
		}
		s.header.Set("Authorization", "ApiKey "+key)
	case c.Username != "":
		password, err := get(c.Password)
		if err != nil {
			return nil, fmt.Errorf("password: %w", err)
		}
		s.header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(c.Username+":"+password)))
	}
	s.bulk = h.url.JoinPath("_bulk")
	// Of each item only what is looked at; errors tell that none needs to be.
	query := url.Values{"filter_path": {"errors,items.*.status,items.*.error.type,items.*.error.reason"}}
	if c.Pipeline != "" {
		query.Set("pipeline", c.Pipeline)
	}
	s.bulk.RawQuery = query.Encode()
	return s, nil
}

type elastic struct {
	*httpDoor
	cfg    ElasticConfig
	as     encoder
	header http.Header
	bulk   *url.URL
}

// Batch implements [BatchSender].
func (s *elastic) Batch() Batch { return Batch{Events: s.cfg.Batch} }

// Send implements [Sender].
func (s *elastic) Send(ctx context.Context, e *Event) error { return s.SendBatch(ctx, []*Event{e})[0] }

// bulkItem is what became of one event.
type bulkItem struct {
	Status int `json:"status"`
	Error  struct {
		Type   string `json:"type"`
		Reason string `json:"reason"`
	} `json:"error"`
}

// SendBatch implements [BatchSender]. An event that is there already (409) is delivered.
func (s *elastic) SendBatch(ctx context.Context, events []*Event) []error {
	made, o := eachOf(events, s.lines)
	if len(o.sent) == 0 {
		return o.errs
	}
	a, err := s.post(ctx, s.bulk, s.header, gzipped(bytes.Join(made, nil)), 4<<20)
	if err != nil {
		return o.all(err)
	}
	if d := s.verdict(a); d != nil {
		return o.refused(d)
	}
	var said struct {
		Errors *bool                 `json:"errors"`
		Items  []map[string]bulkItem `json:"items"`
	}
	if err := json.Unmarshal(a.body, &said); err != nil || said.Errors == nil || len(said.Items) != len(o.sent) {
		return o.all(&DeliveryError{Retry: true, Status: a.status, Response: printableExcerpt(a.body[:min(len(a.body), answerExcerpt)]),
			Err: fmt.Errorf("the answer does not say what became of the %d events; is url that of Elasticsearch or OpenSearch?", len(o.sent))})
	}
	for n, item := range said.Items {
		for _, one := range item { // the only one
			o.errs[o.sent[n]] = one.verdict()
		}
	}
	return o.errs
}

// verdict is what became of an event; nil is delivered.
func (i *bulkItem) verdict() error {
	if i.Status/100 == 2 || i.Status == http.StatusConflict { // it, or a later revision, is there
		return nil
	}
	d := &DeliveryError{Status: i.Status, Err: fmt.Errorf("not indexed: %d %s: %s", i.Status, printableExcerpt([]byte(i.Error.Type)), cutText(printableExcerpt([]byte(i.Error.Reason)), 300))}
	switch {
	case i.Status == http.StatusUnauthorized || i.Status == http.StatusForbidden:
		d.Retry, d.Denied = true, true
	case i.Status == http.StatusTooManyRequests || i.Status == http.StatusNotFound || i.Status/100 == 5: // full, no index yet, ill
		d.Retry = true
	}
	return d
}

// lines are the two lines of an event.
func (s *elastic) lines(e *Event) ([]byte, error) {
	document, err := s.as(e)
	if err != nil {
		return nil, err
	}
	if len(document) < 2 || document[0] != '{' || bytes.ContainsRune(document, '\n') {
		return nil, &DeliveryError{Err: errors.New("the message is no JSON object in one line")}
	}
	if !bytes.Contains(document, []byte(`"@timestamp"`)) { // a data stream asks for it
		stamp, _ := json.Marshal(e.Time) // a number or a text, always
		document = append([]byte(`{"@timestamp":`+string(stamp)+","), document[1:]...)
	}
	meta := map[string]any{"_index": s.cfg.Index, "_id": e.ID}
	verb := "create"
	if s.cfg.Mode == "findings" {
		_, revision, _ := strings.Cut(e.ID, ":")
		n, err := strconv.ParseInt(revision, 10, 64)
		if err != nil {
			return nil, &DeliveryError{Err: fmt.Errorf("event %q does not end in a revision", e.ID)}
		}
		verb, meta["_id"], meta["version"], meta["version_type"] = "index", e.Key, n, "external"
	}
	action, err := json.Marshal(map[string]any{verb: meta})
	if err != nil {
		return nil, &DeliveryError{Err: err}
	}
	return slices.Concat(action, []byte("\n"), document, []byte("\n")), nil
}
