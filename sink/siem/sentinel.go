package siem

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

// SentinelConfig is Microsoft Sentinel, by the Logs Ingestion API of Azure Monitor: a data collection
// rule takes the events into a table of the workspace. URL is the ingestion endpoint of the rule or of its
// data collection endpoint.
type SentinelConfig struct {
	HTTPConfig `yaml:",inline"`
	// Rule is the immutable id of the data collection rule, dcr-….
	Rule string `yaml:"rule"`
	// Stream is the rule's stream, such as Custom-Postern_CL.
	Stream string `yaml:"stream"`
	// Tenant is the directory (tenant) id that Client is registered in.
	Tenant string `yaml:"tenant"`
	// Client is the application (client) id; it needs the role Monitoring Metrics Publisher on the rule.
	Client string `yaml:"client"`
	// Secret is a reference to the application's secret.
	Secret string `yaml:"secret"`
	// Authority is where tokens are given out; another one for national clouds.
	Authority string `yaml:"authority"`
	// Scope is what the token is asked for; another one for national clouds.
	Scope string `yaml:"scope"`
	// Batch is how many events a call has at most.
	Batch int `yaml:"batch"`
}

// Fill gives c the defaults of what it does not say.
func (c *SentinelConfig) Fill() {
	c.HTTPConfig.Fill()
	if c.Authority == "" {
		c.Authority = "https://login.microsoftonline.com"
	}
	if c.Scope == "" {
		c.Scope = "https://monitor.azure.com//.default"
	}
	if c.Batch == 0 {
		c.Batch = 40 // of 22 kB each at most; a call may have 1 MB, before compression
	}
}

var (
	ruleForm   = regexp.MustCompile(`^dcr-[0-9a-f]{1,64}$`)
	streamForm = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]{0,99}$`)
	guidForm   = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z.-]{0,127}$`)
)

func (c *SentinelConfig) validate() error {
	switch {
	case !ruleForm.MatchString(c.Rule):
		return fmt.Errorf("rule %q is no immutable id of a data collection rule; it reads dcr-0123…", c.Rule)
	case !streamForm.MatchString(c.Stream):
		return fmt.Errorf("stream %q is no name of a stream; such as Custom-Postern_CL", c.Stream)
	case !guidForm.MatchString(c.Tenant):
		return errors.New("tenant is no directory id")
	case c.Client == "" || c.Secret == "":
		return errors.New("client and secret are needed: the application's id and a reference to its secret")
	case c.Batch < 1 || c.Batch > 45:
		return fmt.Errorf("batch %d; it must lie between 1 and 45, so that a call stays below 1 MB", c.Batch)
	}
	a := HTTPConfig{URL: c.Authority, Timeout: c.Timeout, AllowInsecure: c.AllowInsecure, DoorConfig: c.DoorConfig}
	if err := a.validate(); err != nil {
		return fmt.Errorf("authority: %w", err)
	}
	return c.HTTPConfig.validate()
}

func (c *SentinelConfig) references() map[string]string { return map[string]string{"secret": c.Secret} }

func (c *SentinelConfig) open(get func(string) (string, error), at *place) (Sender, error) {
	secret, err := get(c.Secret)
	if err != nil {
		return nil, fmt.Errorf("secret: %w", err)
	}
	hc, err := c.resolved(get)
	if err != nil {
		return nil, err
	}
	h, err := newHTTPDoor(hc, at)
	if err != nil {
		return nil, err
	}
	s := &sentinel{httpDoor: h, batch: c.Batch, as: at.as}
	s.ingest = h.url.JoinPath("dataCollectionRules", c.Rule, "streams", c.Stream)
	s.ingest.RawQuery = url.Values{"api-version": {"2023-01-01"}}.Encode()
	authority, err := url.Parse(c.Authority)
	if err != nil {
		return nil, errors.New("authority does not parse")
	}
	s.login = &clientcredentials.Config{ClientID: c.Client, ClientSecret: secret, Scopes: []string{c.Scope},
		TokenURL: authority.JoinPath(c.Tenant, "oauth2/v2.0/token").String(), AuthStyle: oauth2.AuthStyleInParams}
	s.token = make(chan *oauth2.Token, 1)
	s.token <- nil
	return s, nil
}

type sentinel struct {
	*httpDoor
	batch  int
	as     encoder
	ingest *url.URL
	login  *clientcredentials.Config
	token  chan *oauth2.Token // the one that was given out last; whoever holds it may ask for another
}

// bearer gives a token that is good for a while, other than one that was refused.
func (s *sentinel) bearer(ctx context.Context, refused string) (string, error) {
	var t *oauth2.Token
	select {
	case t = <-s.token:
	case <-ctx.Done():
		return "", &DeliveryError{Retry: true, Err: ctx.Err()}
	}
	defer func() { s.token <- t }()
	if t.Valid() && t.AccessToken != refused {
		return t.AccessToken, nil
	}
	fresh, err := s.login.Token(context.WithValue(ctx, oauth2.HTTPClient, s.client))
	if err != nil {
		d := &DeliveryError{Retry: true, Err: errors.New("no token was given out")}
		if r, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
			d.Status, d.Response = r.Response.StatusCode, printableExcerpt(r.Body[:min(len(r.Body), answerExcerpt)])
			d.Denied = r.Response.StatusCode/100 == 4 && r.Response.StatusCode != http.StatusTooManyRequests
			d.After = retryAfter(r.Response.Header.Get("Retry-After"), s.clock())
			d.Err = fmt.Errorf("no token was given out: %d %s", r.Response.StatusCode, printableExcerpt([]byte(r.ErrorCode)))
		} else if ue, ok := errors.AsType[*url.Error](err); ok {
			d.Err = fmt.Errorf("no token was given out: %w", ue.Err)
		}
		return "", d
	}
	t = fresh
	return t.AccessToken, nil
}

// Batch implements [BatchSender].
func (s *sentinel) Batch() Batch { return Batch{Events: s.batch} }

// Send implements [Sender].
func (s *sentinel) Send(ctx context.Context, e *Event) error { return s.SendBatch(ctx, []*Event{e})[0] }

// sentinelRow is a row of the table; the rule's stream declares these columns.
type sentinelRow struct {
	TimeGenerated json.RawMessage
	EventID       string `json:"EventId"`
	FindingID     string `json:"FindingId"`
	Severity      string
	Type          string `json:"FindingType"`
	Title         string
	Sentence      string
	Finding       json.RawMessage // dynamic
}

func (s *sentinel) row(e *Event) (sentinelRow, error) {
	message, err := s.as(e)
	if err != nil {
		return sentinelRow{}, err
	}
	stamp, _ := json.Marshal(e.Time)
	row := sentinelRow{TimeGenerated: stamp, EventID: e.ID, FindingID: e.Key, Finding: message}
	var f struct{ Severity, Type, Title, Sentence string }
	_ = json.Unmarshal(e.Body, &f) // what it does not say stays empty
	row.Severity, row.Type, row.Title, row.Sentence = f.Severity, f.Type, cutText(f.Title, 1000), cutText(f.Sentence, 1000)
	return row, nil
}

// SendBatch implements [BatchSender].
func (s *sentinel) SendBatch(ctx context.Context, events []*Event) []error {
	rows, o := eachOf(events, s.row)
	if len(o.sent) == 0 {
		return o.errs
	}
	body, err := json.Marshal(rows)
	if err != nil {
		return o.all(&DeliveryError{Err: err})
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	var a *answer
	var refused string
	for range 2 { // a token may be withdrawn before its time
		token, err := s.bearer(ctx, refused)
		if err != nil {
			return o.all(err)
		}
		a, err = s.post(ctx, s.ingest, http.Header{"Content-Type": {"application/json"}, "Content-Encoding": {"gzip"}, "Authorization": {"Bearer " + token}},
			gzipped(body), answerExcerpt)
		if err != nil {
			return o.all(err)
		}
		if a.status != http.StatusUnauthorized {
			break
		}
		refused = token
	}
	d := s.verdict(a)
	if d == nil {
		return o.errs
	}
	if a.status == http.StatusNotFound || bytes.Contains(a.body, []byte("InvalidDcrImmutableId")) || bytes.Contains(a.body, []byte("InvalidStream")) {
		d.Retry, d.Denied = true, true // the rule or stream is not there: no fault of the events
	}
	return o.refused(d)
}
