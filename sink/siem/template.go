package siem

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/postern/postern/flow"
)

// maxTemplate is how large a template's file may be, in bytes.
const maxTemplate = 256 << 10

// templateEncoder makes messages by the template in a file. It is tried at once on a sample; where
// the target takes JSON, what comes out has to be an object.
func templateEncoder(path string, object bool) (encoder, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("template: %w", err)
	}
	if info.Size() > maxTemplate {
		return nil, fmt.Errorf("template %s has %d bytes; it may have %d", path, info.Size(), maxTemplate)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("template: %w", err)
	}
	t, err := template.New(filepath.Base(path)).Option("missingkey=zero").Funcs(template.FuncMap{
		"json": func(v any) (string, error) { b, err := json.Marshal(v); return string(b), err },
		"join": func(sep string, v any) string {
			var parts []string
			list, _ := v.([]any)
			for _, one := range list {
				parts = append(parts, fmt.Sprint(one))
			}
			return strings.Join(parts, sep)
		},
		"upper": strings.ToUpper,
		"cut":   func(n int, s string) string { return cutText(s, n) },
	}).Parse(string(text))
	if err != nil {
		return nil, err // says template: NAME:LINE: what
	}
	as := func(e *Event) ([]byte, error) {
		var fields map[string]any
		err := json.Unmarshal(e.Body, &fields)
		var out shortBuffer
		if err == nil {
			err = t.Execute(&out, fields)
		}
		b := bytes.TrimSpace(out.Bytes())
		switch {
		case err != nil:
		case len(b) == 0:
			err = errors.New("the template makes nothing of it")
		case object && (b[0] != '{' || !json.Valid(b)):
			err = errors.New("what the template makes of it is no JSON object; write texts as {{json .sentence}}, quotes included")
		}
		if err != nil {
			return nil, &DeliveryError{Err: err}
		}
		return b, nil
	}
	sample, err := NewEvent(Sample())
	if err != nil {
		return nil, err
	}
	if _, err := as(&sample); err != nil {
		return nil, fmt.Errorf("template %s, tried on a sample: %w", path, err)
	}
	return as, nil
}

// shortBuffer takes less than MaxMessage bytes.
type shortBuffer struct{ bytes.Buffer }

func (b *shortBuffer) Write(p []byte) (int, error) {
	if b.Len()+len(p) >= MaxMessage {
		return 0, fmt.Errorf("the message would have %d bytes or more; it must have less than %d", b.Len()+len(p), MaxMessage)
	}
	return b.Buffer.Write(p)
}

// Sample is a finding that says of itself that it is a test: what `postern forward test` sends.
func Sample() *flow.Finding {
	at := flow.Time(1_767_225_600_000) // 2026-01-01
	return &flow.Finding{
		ID: "0000000000000000", SchemaVersion: flow.FindingSchema, Revision: 1, Type: flow.FindingExpired, Severity: flow.Informational,
		Title: "TEST: a message to see whether it arrives", Confidence: 1, FirstSeen: at, LastSeen: at, Count: 1,
		Client: "192.0.2.10", Server: "198.51.100.20", Orientation: "known", Service: "tcp/443", SrcSegment: "test", DstSegment: "test",
		Observed: "allow", Expected: "deny", Reason: "expired-exception", Outcome: "escaped", Rule: "test", Exception: "EX-TEST", Ticket: "TEST-1",
		Owner: "test", Requester: "test", Approver: "test", PolicyVersion: "test", Techniques: []string{"T1021"},
		Edges:      []flow.Edge{{Source: "192.0.2.10", Destination: "198.51.100.20", Port: 443, Protocol: "tcp"}},
		EdgesTotal: 1,
		Sentence:   "TEST of `postern forward test`: nothing happened. 192.0.2.10 and 198.51.100.20 are addresses for documentation.",
		Next:       "Nothing is to be done.",
	}
}
