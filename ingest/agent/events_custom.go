package agent

import (
	"errors"
	"fmt"
	"strings"

	"github.com/postern/postern/flow"
)

// CustomEventConfig says how the lines of a log of sessions are read that Postern has no
// format of its own for, such as a VPN gateway's. Paths are as in [CustomConfig].
type CustomEventConfig struct {
	// Type says what a line is: json, delimited (fields by their column) or keyvalue (key=value pairs).
	Type string `yaml:"type"`
	// Separator is what stands between the fields of delimited lines (a comma unless said otherwise) or between pairs (a space): one character, or the word tab or space.
	Separator string `yaml:"separator"`
	// Columns names the columns of delimited lines in their order. Without it the first line of a stream is a header that does.
	Columns []string `yaml:"columns"`
	// Comment is what lines begin with that tell nothing, such as #.
	Comment string `yaml:"comment"`
	// EventIf is a condition on the line, a path or a jq program: a line of which it gives null, false or nothing is no event.
	EventIf string `yaml:"eventIf"`
	// Fields says where the fields of an event are found: kind (start, update, away, stop, off, on), session and user have to be there; at, began, address, host, device, on.
	Fields map[string]string `yaml:"fields"`
	// Values says for a field what the log's values mean, such as kind: {login: start, logout: stop}. The value "*" stands for every other; an empty meaning is "not told", and a line without a kind is no event.
	Values map[string]map[string]string `yaml:"values"`
	// Time is how times are written: rfc3339, s, ms, us or ns (since 1970), or a layout of Go with a zone, such as 02/Jan/2006:15:04:05 -0700.
	Time string `yaml:"time"`
}

// Validate says what is wrong with the mapping, if anything is.
func (c *CustomEventConfig) Validate() error {
	_, err := c.compile()
	return err
}

var eventMapping = mappingKind{title: func(string) string { return "custom" }, cond: "eventIf", of: "a session event", fields: customEventFields,
	must: []string{"kind", "session", "user"}, wanted: func(string) string { return "the path of that field" }, times: []string{"at", "began"}}

func (c *CustomEventConfig) compile() (*customFormat, error) {
	return compileMapping(&CustomConfig{Type: c.Type, Separator: c.Separator, Columns: c.Columns, Comment: c.Comment, FlowIf: c.EventIf,
		Fields: c.Fields, Values: c.Values, Time: c.Time}, &eventMapping)
}

// customEventFields lists the fields that a mapping can fill.
func customEventFields() []customField {
	word := func(name string, to func(ev *SessionEvent) *string, fold bool) customField {
		return customField{name: name, want: fmt.Sprintf("a text of at most %d bytes", maxEventText),
			set: func(_ *customFormat, _ *flow.Record, e *entry, b []byte) bool {
				s := string(b)
				if fold {
					s = strings.ToLower(s)
				}
				*to(e.event) = s
				return len(b) <= maxEventText
			}}
	}
	moment := func(name string, to func(ev *SessionEvent) *flow.Time) customField {
		return customField{name: name, want: "a time as `time` says", set: func(f *customFormat, _ *flow.Record, e *entry, b []byte) bool {
			t, ok := f.time(b)
			*to(e.event) = t
			return ok
		}}
	}
	return []customField{
		{name: "kind", want: "one of " + strings.Join(sessionKindTexts[1:], ", "), set: func(_ *customFormat, _ *flow.Record, e *entry, b []byte) bool {
			return e.event.Kind.UnmarshalText(b) == nil
		}},
		moment("at", func(ev *SessionEvent) *flow.Time { return &ev.At }),
		moment("began", func(ev *SessionEvent) *flow.Time { return &ev.Began }),
		{name: "address", want: "an IP address", set: func(_ *customFormat, _ *flow.Record, e *entry, b []byte) bool {
			a, ok := addr(b)
			if !a.Netip().IsUnspecified() {
				e.event.Addr = a
			}
			return ok
		}},
		word("user", func(ev *SessionEvent) *string { return &ev.User }, false),
		word("session", func(ev *SessionEvent) *string { return &ev.Session }, false),
		word("host", func(ev *SessionEvent) *string { return &ev.Host }, true),
		word("device", func(ev *SessionEvent) *string { return &ev.Device }, false),
		word("on", func(ev *SessionEvent) *string { return &ev.On }, true),
	}
}

// newCustomEvents makes the reader of a mapping. An event without a host has the observer's.
func newCustomEvents(d *EventDecoder) (eventParser, error) {
	if d.cfg.Custom == nil {
		return nil, errors.New("custom is missing; it says how the lines are read")
	}
	f, err := d.cfg.Custom.compile()
	if err != nil {
		return nil, err
	}
	read := f.reader(&d.d, func(l *customLine, e *entry) error {
		if err := l.meant(); err != nil {
			return err
		}
		ev := SessionEvent{}
		e.event = &ev
		if _, err := l.fill(nil, e); err != nil {
			return err
		}
		if ev.Host == "" {
			ev.Host = strings.ToLower(e.o.Observer)
		}
		switch {
		case ev.Kind == 0:
			return NotEvent("a line without a kind")
		case ev.Kind == SessionOff || ev.Kind == SessionOn:
			ev = SessionEvent{Kind: ev.Kind, At: ev.At, Host: ev.Host}
		case ev.Session == "":
			return fieldError("session", nil, "the session's id")
		case ev.User == "" && ev.Kind == SessionStart:
			return fieldError("user", nil, "who began the session")
		case ev.User != "" && !person(ev.User):
			return errNoUser
		}
		d.add(ev)
		return nil
	})
	return func(item []byte) error { return read(item, &d.d.entry) }, nil
}
