package siem

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
)

// WebhookConfig is a receiver of messages signed as Standard Webhooks 1.0.0 says.
type WebhookConfig struct {
	HTTPConfig `yaml:",inline"`
	// Secrets are references to the signing secrets, the newest first; every message carries a signature by each, so a secret is rotated by adding the new one, changing the receiver, and removing the old one. A secret is `whsec_…` (HMAC-SHA256, 24–64 bytes) or `whsk_…` (ed25519 seed).
	Secrets []string `yaml:"secrets"`
}

// Fill gives c the defaults of what it does not say.
func (c *WebhookConfig) Fill() { c.HTTPConfig.Fill() }

func (c *WebhookConfig) references() map[string]string {
	out := map[string]string{}
	for i, ref := range c.Secrets {
		out[fmt.Sprintf("secrets[%d]", i)] = ref
	}
	return out
}

func (c *WebhookConfig) open(get func(string) (string, error), at *place) (Sender, error) {
	resolved, err := c.resolved(get)
	if err != nil {
		return nil, err
	}
	return newWebhook(resolved, at)
}

func (c *WebhookConfig) validate() error {
	if len(c.Secrets) == 0 {
		return errors.New("secrets is empty; give at least one, so that the receiver can tell a finding from a forgery")
	}
	return c.HTTPConfig.validate()
}

func (c WebhookConfig) resolved(get func(ref string) (string, error)) (WebhookConfig, error) {
	secrets := make([]string, len(c.Secrets))
	for i, ref := range c.Secrets {
		value, err := get(ref)
		if err != nil {
			return c, fmt.Errorf("secret %d: %w", i+1, err)
		}
		secrets[i] = value
	}
	c.Secrets = secrets
	var err error
	c.HTTPConfig, err = c.HTTPConfig.resolved(get)
	return c, err
}

// webhook posts events to one receiver, signed as Standard Webhooks 1.0.0 says.
type webhook struct {
	*httpDoor
	keys []webhookKey
	as   encoder
}

func newWebhook(cfg WebhookConfig, at *place) (*webhook, error) {
	keys, err := parseWebhookKeys(cfg.Secrets, false)
	if err != nil {
		return nil, err
	}
	h, err := newHTTPDoor(cfg.HTTPConfig, at)
	return &webhook{h, keys, at.as}, err
}

// Send makes one attempt. nil means the receiver answered 2xx; otherwise the
// error is a *[DeliveryError].
func (w *webhook) Send(ctx context.Context, e *Event) error {
	body, err := w.as(e)
	if err != nil {
		return err
	}
	stamp := strconv.FormatInt(w.clock().Unix(), 10)
	a, err := w.post(ctx, w.url, http.Header{
		"Content-Type":         {"application/json"},
		HeaderWebhookID:        {e.ID},
		HeaderWebhookTimestamp: {stamp},
		HeaderWebhookSignature: {signWebhook(w.keys, e.ID, stamp, body)},
	}, body, answerExcerpt)
	if err != nil {
		return err
	}
	d := w.verdict(a)
	if d == nil {
		return nil
	}
	d.Retry = true // a receiver that is being mended says anything for a while
	if d.Status == http.StatusGone {
		d.Gone = true
		d.Err = errors.New("the receiver answered 410 Gone: it wants no more events")
	}
	return d
}
