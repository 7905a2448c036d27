package siem

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/google/uuid"
)

// SplunkConfig is an HTTP Event Collector (HEC). Events are sent to /services/collector/event,
// several a request and compressed.
type SplunkConfig struct {
	HTTPConfig `yaml:",inline"`
	// Token is a reference to the collector's token.
	Token string `yaml:"token"`
	// Index is where events go; empty is the token's default.
	Index string `yaml:"index"`
	// SourceType is what Splunk takes the events for; empty is postern:finding: and the encoding's name.
	SourceType string `yaml:"sourceType"`
	// Ack is whether an event counts as delivered once Splunk has indexed it: auto asks where the token has acknowledgement turned on, require makes it an error where it has not, off takes Splunk's word that it received the event.
	Ack string `yaml:"ack"`
	// AckTimeout is for how long an acknowledgement is waited for, before the events are sent again.
	AckTimeout time.Duration `yaml:"ackTimeout"`
	// Batch is how many events a request has at most.
	Batch int `yaml:"batch"`
}

// Fill gives c the defaults of what it does not say.
func (c *SplunkConfig) Fill() {
	c.HTTPConfig.Fill()
	if c.Ack == "" {
		c.Ack = "auto"
	}
	if c.AckTimeout == 0 {
		// Splunk answers for a batch once it is indexed, by default within 10 s or so; its own
		// forwarders wait for 5 minutes.
		c.AckTimeout = 2 * time.Minute
	}
	if c.Batch == 0 {
		c.Batch = 40 // 800 kB at most; the collector's usual limit is 1 MB
	}
}

func (c *SplunkConfig) validate() error {
	switch {
	case c.Token == "":
		return errors.New("token is empty; give a reference to the collector's token")
	case c.Ack != "auto" && c.Ack != "require" && c.Ack != "off":
		return fmt.Errorf("ack %q is not known; use auto, require or off", c.Ack)
	case c.AckTimeout < time.Second || c.AckTimeout > time.Hour:
		return fmt.Errorf("ackTimeout %s; it must lie between 1s and 1h", c.AckTimeout)
	case c.Batch < 1 || c.Batch > 1000:
		return fmt.Errorf("batch %d; it must lie between 1 and 1000", c.Batch)
	}
	return c.HTTPConfig.validate()
}

func (c *SplunkConfig) references() map[string]string { return map[string]string{"token": c.Token} }

func (c *SplunkConfig) open(get func(string) (string, error), at *place) (Sender, error) {
	token, err := get(c.Token)
	if err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	hc, err := c.resolved(get)
	if err != nil {
		return nil, err
	}
	h, err := newHTTPDoor(hc, at)
	if err != nil {
		return nil, err
	}
	s := &splunk{httpDoor: h, cfg: *c, as: at.as, form: at.form, token: "Splunk " + token, channel: uuid.NewString()}
	s.host, _ = os.Hostname() // only shown
	s.event, s.ack = h.url.JoinPath("services/collector/event"), h.url.JoinPath("services/collector/ack")
	s.ack.RawQuery = url.Values{"channel": {s.channel}}.Encode()
	return s, nil
}

type splunk struct {
	*httpDoor
	cfg                  SplunkConfig
	as                   encoder
	token, channel, host string
	form                 string
	event, ack           *url.URL
}

// Batch implements [BatchSender].
func (s *splunk) Batch() Batch { return Batch{Events: s.cfg.Batch} }

// Send implements [Sender].
func (s *splunk) Send(ctx context.Context, e *Event) error { return s.SendBatch(ctx, []*Event{e})[0] }

// hecEvent is one event (Splunk, "Format events for HTTP Event Collector").
type hecEvent struct {
	Time       json.Number       `json:"time"` // seconds since 1970
	Host       string            `json:"host,omitempty"`
	Source     string            `json:"source"`
	SourceType string            `json:"sourcetype"`
	Index      string            `json:"index,omitempty"`
	Event      any               `json:"event"`
	Fields     map[string]string `json:"fields"` // indexed, flat
}

// hecAnswer is what the collector says.
type hecAnswer struct {
	Text  string `json:"text"`
	Code  int    `json:"code"`
	AckID *int64 `json:"ackId"`
}

// The codes that say more than the HTTP status ("Troubleshoot HTTP Event Collector").
const (
	hecWrongIndex  = 7
	hecAckDisabled = 14
)

// SendBatch implements [BatchSender]. Where the collector acknowledges, an event is delivered when it is
// indexed.
func (s *splunk) SendBatch(ctx context.Context, events []*Event) []error {
	made, o := eachOf(events, s.encode)
	if len(o.sent) == 0 {
		return o.errs
	}
	a, err := s.post(ctx, s.event, http.Header{
		"Content-Type": {"application/json"}, "Content-Encoding": {"gzip"},
		"Authorization": {s.token}, "X-Splunk-Request-Channel": {s.channel},
	}, gzipped(bytes.Join(made, nil)), answerDrain) // one after the other, without commas
	if err != nil {
		return o.all(err)
	}
	var said hecAnswer
	understood := json.Unmarshal(a.body, &said) == nil
	if d := s.verdict(a); d != nil {
		if understood && said.Text != "" {
			d.Err = fmt.Errorf("%w: %s (code %d)", d.Err, printableExcerpt([]byte(said.Text)), said.Code)
		}
		if understood && said.Code == hecWrongIndex {
			d.Retry = true // somebody has to create the index, or allow it for the token
		}
		return o.refused(d)
	}
	switch {
	case s.cfg.Ack == "off":
		return o.errs
	case understood && said.AckID != nil:
		if err := s.acknowledged(ctx, *said.AckID); err != nil {
			return o.all(err)
		}
	case s.cfg.Ack == "require":
		return o.all(&DeliveryError{Retry: true, Status: a.status, Response: printableExcerpt(a.body[:min(len(a.body), answerExcerpt)]),
			Err: errors.New("the collector took the events and offers no acknowledgement; turn it on for the token, or set ack to auto")})
	}
	return o.errs
}

func (s *splunk) encode(e *Event) ([]byte, error) {
	message, err := s.as(e)
	if err != nil {
		return nil, err
	}
	v := hecEvent{Time: json.Number(fmt.Sprintf("%d.%03d", e.Time/1000, e.Time%1000)), Host: s.host, Source: "postern",
		SourceType: s.cfg.SourceType, Index: s.cfg.Index, Fields: map[string]string{"event_id": e.ID, "finding_id": e.Key}}
	if json.Valid(message) {
		v.Event = json.RawMessage(message)
	} else {
		v.Event = string(message)
	}
	if v.SourceType == "" {
		v.SourceType = "postern:finding:" + s.form
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil, &DeliveryError{Err: err}
	}
	return b, nil
}

// acknowledged asks until the request is indexed ("About HTTP Event Collector Indexer
// Acknowledgment"); an acknowledgement is given once.
func (s *splunk) acknowledged(ctx context.Context, id int64) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.AckTimeout)
	defer cancel()
	body := fmt.Appendf(nil, `{"acks":[%d]}`, id)
	for pause := 200 * time.Millisecond; ; pause = min(pause*2, 10*time.Second) {
		a, err := s.post(ctx, s.ack, http.Header{"Content-Type": {"application/json"}, "Authorization": {s.token}, "X-Splunk-Request-Channel": {s.channel}}, body, answerDrain)
		if err == nil {
			var said struct {
				hecAnswer
				Acks map[string]bool `json:"acks"`
			}
			_ = json.Unmarshal(a.body, &said) // what is no answer acknowledges nothing
			if said.Acks[fmt.Sprint(id)] {
				return nil
			}
			if a.status == http.StatusBadRequest && said.Code == hecAckDisabled && s.cfg.Ack == "auto" {
				return nil // it was turned off meanwhile, and the request was accepted
			}
			if d := s.verdict(a); d != nil && (d.Denied || !d.Retry) {
				d.Retry = true
				return d
			}
		}
		select {
		case <-ctx.Done():
			return &DeliveryError{Retry: true, Err: fmt.Errorf("the collector took the events and did not acknowledge them within %s; they are sent again", s.cfg.AckTimeout)}
		case <-time.After(pause):
		}
	}
}
