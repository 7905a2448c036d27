package siem

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/postern/postern/flow"
)

// ChatConfig is a channel that people read, by an incoming webhook. Findings are gathered for a while and
// told together, with counts and the worst of them; what is critical is told at once, by itself.
type ChatConfig struct {
	HTTPConfig `yaml:",inline"`
	// Address is a reference to the webhook's URL instead of url, since who knows it may write.
	Address string `yaml:"address"`
	// Style is slack (Slack, Mattermost, Rocket.Chat) or teams (Microsoft Teams by a workflow).
	Style string `yaml:"style"`
	// Every is for how long findings are gathered.
	Every time.Duration `yaml:"every"`
	// Show is how many findings of a message are told in words; of the others it gives the number.
	Show int `yaml:"show"`
	// Link is where somebody reads more; {id} in it becomes the finding's id.
	Link string `yaml:"link"`
}

// Fill gives c the defaults of what it does not say.
func (c *ChatConfig) Fill() {
	c.HTTPConfig.Fill()
	if c.Style == "" {
		c.Style = "slack"
	}
	if c.Every == 0 {
		c.Every = 5 * time.Minute // as Alertmanager repeats a group that changes
	}
	if c.Show == 0 {
		c.Show = 8
	}
}

func (c *ChatConfig) validate() error {
	switch {
	case (c.URL == "") == (c.Address == ""):
		return errors.New("address is needed, a reference to the webhook's URL; or url, where it is no secret")
	case c.Style != "slack" && c.Style != "teams":
		return fmt.Errorf("style %q is not known; use slack or teams", c.Style)
	case c.Every < time.Second || c.Every > 24*time.Hour:
		return fmt.Errorf("every %s; it must lie between 1s and 24h", c.Every)
	case c.Show < 1 || c.Show > 20:
		return fmt.Errorf("show %d; it must lie between 1 and 20", c.Show)
	}
	if u, err := url.Parse(c.Link); err != nil || c.Link != "" && u.Scheme != "https" && u.Scheme != "http" {
		return errors.New("link must read https://…; {id} in it becomes the finding's id")
	}
	hc := c.HTTPConfig
	if c.Address != "" {
		hc.URL = "https://address.invalid/" // what it refers to is looked at when it is opened
	}
	return hc.validate()
}

func (c *ChatConfig) references() map[string]string {
	if c.Address == "" {
		return nil
	}
	return map[string]string{"address": c.Address}
}

func (c *ChatConfig) open(get func(string) (string, error), at *place) (Sender, error) {
	hc, err := c.resolved(get)
	if err != nil {
		return nil, err
	}
	if c.Address != "" {
		if hc.URL, err = get(c.Address); err != nil {
			return nil, fmt.Errorf("address: %w", err)
		}
		if err := hc.validate(); err != nil {
			return nil, fmt.Errorf("what address refers to: %w", err)
		}
	}
	h, err := newHTTPDoor(hc, at)
	if err != nil {
		return nil, err
	}
	return &chat{httpDoor: h, cfg: *c, as: at.as, bare: at.bare}, nil
}

type chat struct {
	*httpDoor
	cfg  ChatConfig
	as   encoder
	bare bool // the messages are ours, not a template's
}

// Batch implements [BatchSender].
func (c *chat) Batch() Batch {
	if !c.bare {
		return Batch{Events: 1}
	}
	return Batch{Events: 1000, Wait: c.cfg.Every}
}

// Send implements [Sender].
func (c *chat) Send(ctx context.Context, e *Event) error { return c.SendBatch(ctx, []*Event{e})[0] }

// SendBatch implements [BatchSender]: one message for all, so one error.
func (c *chat) SendBatch(ctx context.Context, events []*Event) []error {
	body, err := c.body(events)
	if err != nil {
		return []error{err}
	}
	a, err := c.post(ctx, c.url, http.Header{"Content-Type": {"application/json"}}, body, answerExcerpt)
	if err != nil {
		return []error{err}
	}
	d := c.verdict(a)
	if d == nil {
		return []error{nil}
	}
	if a.status == http.StatusNotFound || a.status == http.StatusGone { // the channel or its webhook is no more
		d.Retry, d.Denied = true, true
	}
	return []error{d}
}

// body is the message for events.
func (c *chat) body(events []*Event) ([]byte, error) {
	if !c.bare && len(events) == 1 {
		return c.as(events[0])
	}
	findings := make([]*flow.Finding, 0, len(events))
	for _, e := range events {
		var f flow.Finding
		if err := json.Unmarshal(e.Body, &f); err != nil {
			return nil, &DeliveryError{Err: fmt.Errorf("event %s is no finding: %w", e.ID, err)}
		}
		findings = append(findings, &f)
	}
	slices.SortStableFunc(findings, func(a, b *flow.Finding) int { return int(b.Severity) - int(a.Severity) })
	head := c.headline(findings)
	var parts []chatPart
	for _, f := range findings[:min(len(findings), c.cfg.Show)] {
		part := chatPart{text: c.words(f)}
		if c.cfg.Link != "" {
			part.link = strings.ReplaceAll(c.cfg.Link, "{id}", url.QueryEscape(f.ID))
		}
		parts = append(parts, part)
	}
	if n := len(findings) - len(parts); n > 0 {
		parts = append(parts, chatPart{text: fmt.Sprintf("and %d more: postern finding list", n)})
	}
	v := slackMessage(head, parts)
	if c.cfg.Style == "teams" {
		v = teamsMessage(head, parts)
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil, &DeliveryError{Err: err}
	}
	return b, nil
}

// headline says how many there are of each severity.
func (c *chat) headline(findings []*flow.Finding) string {
	if len(findings) == 1 {
		f := findings[0]
		return strings.ToUpper(f.Severity.String()) + ": " + plainLine(f.Title, 120)
	}
	var counts []string
	for s := flow.Critical; ; s-- {
		n := 0
		for _, f := range findings {
			if f.Severity == s {
				n++
			}
		}
		if n > 0 {
			counts = append(counts, fmt.Sprintf("%d %s", n, s))
		}
		if s == flow.Informational {
			break
		}
	}
	return fmt.Sprintf("%d findings: %s", len(findings), strings.Join(counts, ", "))
}

// words tells one finding in a few lines of plain text.
func (c *chat) words(f *flow.Finding) string {
	lines := []string{fmt.Sprintf("[%s] %s", f.Severity, plainLine(f.Sentence, 600))}
	var about []string
	for _, one := range []struct{ name, value string }{{"exception", f.Exception}, {"ticket", f.Ticket}, {"owner", f.Owner}} {
		if one.value != "" {
			about = append(about, one.name+" "+plainLine(one.value, 80))
		}
	}
	about = append(about, fmt.Sprintf("%d sessions", f.Count), "last "+f.LastSeen.Std().Format("2006-01-02 15:04:05Z"), "finding "+f.ID)
	if f.Count == 1 {
		about[len(about)-3] = "1 session"
	}
	lines = append(lines, strings.Join(about, " · "))
	if f.Next != "" {
		lines = append(lines, "→ "+plainLine(f.Next, 300))
	}
	return strings.Join(lines, "\n")
}

// plainLine is s as one line of at most n bytes, without what turns text about or hides in it.
func plainLine(s string, n int) string {
	return cutText(strings.Join(strings.Fields(printableExcerpt([]byte(s))), " "), n)
}

// chatPart is what a message says of one finding, and where more of it is, if anywhere.
type chatPart struct{ text, link string }

// slackMessage has its words in blocks of plain text, in which Slack reads neither mentions nor
// links; text is what notifications show, and others than Slack, escaped as Slack's documentation
// ("Formatting text") says.
func slackMessage(head string, parts []chatPart) object {
	plain := func(kind, text string, n int) object {
		return object{"type": kind, "text": object{"type": "plain_text", "text": cutText(text, n), "emoji": false}}
	}
	blocks := []object{plain("header", head, 140)}
	texts := []string{head}
	for _, p := range parts {
		blocks = append(blocks, plain("section", p.text, 2900))
		texts = append(texts, p.text)
		if p.link != "" {
			blocks = append(blocks, object{"type": "context", "elements": []object{{"type": "mrkdwn", "text": "<" + p.link + "|Open the finding>"}}})
		}
	}
	escape := strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "@", "@\u200b")
	return object{"text": escape.Replace(cutText(strings.Join(texts, "\n\n"), 3000)), "blocks": blocks, "unfurl_links": false, "unfurl_media": false}
}

// teamsMessage is an Adaptive Card. Its text blocks read a little Markdown, so what could be some is
// escaped.
func teamsMessage(head string, parts []chatPart) object {
	escape := func(s string) string {
		var b strings.Builder
		for _, r := range s {
			if strings.ContainsRune("\\`*_[]()#+-!<>|~", r) {
				b.WriteByte('\\')
			}
			b.WriteRune(r)
		}
		return strings.ReplaceAll(b.String(), "\n", "\n\n") // Markdown's line
	}
	body := []object{{"type": "TextBlock", "text": escape(head), "weight": "Bolder", "size": "Medium", "wrap": true}}
	for _, p := range parts {
		body = append(body, object{"type": "TextBlock", "text": escape(p.text), "wrap": true, "separator": true})
		if p.link != "" {
			body = append(body, object{"type": "TextBlock", "text": "[Open the finding](" + p.link + ")"})
		}
	}
	adaptive := object{"$schema": "http://adaptivecards.io/schemas/adaptive-object.json", "type": "AdaptiveCard", "version": "1.4", "body": body}
	return object{"type": "message", "attachments": []object{{"contentType": "application/vnd.microsoft.object.adaptive", "content": adaptive}}}
}
