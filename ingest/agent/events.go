package agent

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/agnivade/levenshtein"

	"github.com/postern/postern/flow"
)

// SessionKind is what happened to a session.
type SessionKind uint8

// The kinds of session events.
const (
	// SessionStart is that a user began to use an address or a device.
	SessionStart SessionKind = iota + 1
	// SessionUpdate is that the session goes on, perhaps at another address.
	SessionUpdate
	// SessionAway is that the user left the address, while the session goes on elsewhere.
	SessionAway
	// SessionStop is that the session ended.
	SessionStop
	// SessionOff is that the host ends all its sessions.
	SessionOff
	// SessionOn is that the host has begun anew: its sessions ended at some time before.
	SessionOn
)

var sessionKindTexts = [...]string{"", "start", "update", "away", "stop", "off", "on"}

func (k SessionKind) String() string {
	if int(k) < len(sessionKindTexts) {
		return sessionKindTexts[k]
	}
	return fmt.Sprintf("SessionKind(%d)", k)
}

// MarshalText implements encoding.TextMarshaler.
func (k SessionKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *SessionKind) UnmarshalText(b []byte) error {
	i := slices.Index(sessionKindTexts[1:], string(b))
	if i < 0 {
		return fmt.Errorf("%q is no kind of session event; want one of %s", b, strings.Join(sessionKindTexts[1:], ", "))
	}
	*k = SessionKind(i + 1)
	return nil
}

// SessionEvent is that a user began or ended to use an address, or something between.
//
// Host and Session name the session. Addr is where the user is, the zero address where the
// log does not say; On is the device that the user is on, where the log names that instead:
// its addresses are another source's to say.
type SessionEvent struct {
	Kind SessionKind `json:"kind"`
	At   flow.Time   `json:"at"`
	// Began is when the session began, where an event other than its start tells that.
	Began   flow.Time `json:"began,omitempty"`
	Host    string    `json:"host"`              // who keeps the session: the host of a logon, the NAS
	Session string    `json:"session,omitempty"` // its id there; none where all are meant
	User    string    `json:"user,omitempty"`    // as the log spells it
	Addr    flow.Addr `json:"addr,omitzero"`
	Device  string    `json:"device,omitempty"` // what is at Addr: the calling station
	On      string    `json:"on,omitempty"`     // in lower case
}

// EventConfig directs the decoding of session events.
type EventConfig struct {
	// LogonTypes are the types of Windows logons that count, of windows-logon.
	LogonTypes []int `yaml:"logonTypes"`
	// Clients is whether who logs on from afar (windows-logon, types 3 and 10) is at the client's address too, not only on the host.
	Clients bool `yaml:"clients"`
	// ZoneOffset is how far ahead of UTC the clocks are whose stamps have no zone, such as 2h or -5h.
	ZoneOffset time.Duration `yaml:"zoneOffset"`
	// Custom is how lines are read, of the format custom.
	Custom *CustomEventConfig `yaml:"custom"`
	// BelieveClock takes every time as it is written, for files.
	BelieveClock bool `yaml:"-"`
}

// DefaultLogonTypes are interactive, unlock, remote-interactive and cached interactive.
func DefaultLogonTypes() []int { return []int{2, 7, 10, 11} }

// NotEvent is what a line is instead of a session event. It is no fault of the line.
type NotEvent string

func (n NotEvent) Error() string { return "no session event: " + string(n) }

// EventFormat is one format of logs of sessions.
type EventFormat struct {
	Name   string // as in the configuration
	Title  string // for people
	Shared bool   // several users may hold an address at a time
	Mapped bool   // a mapping of the configuration says how lines are read

	new    func(*EventDecoder) (eventParser, error)
	blocks bool // events stand in blocks of several lines too, see [EventDecoder.Next]
}

// eventParser reads an item and adds its events with [EventDecoder.add].
type eventParser func(item []byte) error

// eventFormats is the catalogue.
var eventFormats = []EventFormat{
	{Name: "windows-logon", Title: "Windows: logons and logoffs of the Security log", Shared: true, new: newWindowsLogon},
	{Name: "radius", Title: "RADIUS accounting: FreeRADIUS's detail files, JSON lines", new: newRadius, blocks: true},
	{Name: "custom", Title: "VPNs and others, by a mapping of the configuration", Mapped: true, new: newCustomEvents},
}

// EventFormats lists the formats of session events by name.
func EventFormats() []EventFormat {
	out := slices.Clone(eventFormats)
	slices.SortFunc(out, func(a, b EventFormat) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// EventFormatOf finds a format by its name; the error names the nearest one.
func EventFormatOf(name string) (EventFormat, error) {
	nearest, distance := "", 4
	var all []string
	for _, f := range EventFormats() {
		if f.Name == name {
			return f, nil
		}
		all = append(all, f.Name)
		if d := levenshtein.ComputeDistance(f.Name, name); d < distance {
			nearest, distance = f.Name, d
		}
	}
	hint := "use one of " + strings.Join(all, ", ")
	if nearest != "" {
		hint = "did you mean " + nearest + "? It may be one of " + strings.Join(all, ", ")
	}
	return EventFormat{}, fmt.Errorf("%q is no format of session events; %s", name, hint)
}

// EventDecoder turns the items of one stream into session events. What comes out depends on
// what went in, on nothing else. Not safe for concurrent use.
type EventDecoder struct {
	cfg    EventConfig
	format EventFormat
	parse  eventParser
	d      Decoder // reads fields as formats of flows do
	out    []SessionEvent

	split    Splitter
	skipping bool // the rest of a block that is too long
	within   bool // and of a line
}

// NewEventDecoder makes a decoder of one of [EventFormats]. maxItem is how many bytes a line
// or a block may have.
func NewEventDecoder(format string, cfg EventConfig, maxItem int) (*EventDecoder, error) {
	f, err := EventFormatOf(format)
	if err != nil {
		return nil, err
	}
	if len(cfg.LogonTypes) == 0 {
		cfg.LogonTypes = DefaultLogonTypes()
	}
	d := &EventDecoder{cfg: cfg, format: f, split: Splitter{MaxItem: maxItem}}
	d.d.cfg = Config{ZoneOffset: cfg.ZoneOffset, BelieveClock: cfg.BelieveClock}
	d.d.names = flow.NewNames(64) // of events nothing is interned
	d.d.entry.d = &d.d
	if d.parse, err = f.new(d); err != nil {
		return nil, err
	}
	return d, nil
}

// Format is the format of the stream.
func (d *EventDecoder) Format() string { return d.format.Name }

// Decode appends the events that an item tells to out. If it tells none the error is a
// [NotEvent], or says what is wrong; out is then as it was. Nothing of item is kept.
func (d *EventDecoder) Decode(item []byte, o *Origin, out []SessionEvent) ([]SessionEvent, error) {
	d.d.entry = entry{d: &d.d, o: o}
	d.out = out
	err := d.parse(item)
	d.d.release(item)
	if not, ok := errors.AsType[NotFlow](err); ok {
		err = NotEvent(not)
	}
	if err == nil && len(d.out) == len(out) {
		err = NotEvent("without an event")
	}
	if err != nil {
		return out, err
	}
	for i := len(out); i < len(d.out); i++ {
		d.settle(&d.out[i], o)
	}
	return d.out, nil
}

// settle mends the time: an event without one happened when it came, and so did one whose
// clock is ahead by more than a day. One that is ahead by less counts from its time on.
func (d *EventDecoder) settle(ev *SessionEvent, o *Origin) {
	if ev.At <= 0 || !d.cfg.BelieveClock && ev.At.Sub(o.Received) > clockUnusable {
		ev.At, ev.Began = o.Received, 0
	}
	if ev.Began < 0 || ev.Began > ev.At {
		ev.Began = 0
	}
}

// DecodeSyslog is [EventDecoder.Decode] for a message as syslog carried it: its header is taken
// off, and the host that it names is the observer.
func (d *EventDecoder) DecodeSyslog(message []byte, o *Origin, out []SessionEvent) ([]SessionEvent, error) {
	d.d.entry = entry{d: &d.d, o: o}
	h, text := d.d.entry.syslog(message)
	if tag, rest := cut(text); len(tag) > 0 && tag[len(tag)-1] == ':' && len(rest) > 0 && rest[0] == '{' {
		text = rest // a program's name without a number
	}
	from := *o
	if len(h.host) > 0 {
		from.Observer = string(h.host)
	}
	return d.Decode(text, &from, out)
}

// Prime takes in an item from the beginning of a stream that is gone on with further down,
// and says whether the next one may bear on what follows too.
func (d *EventDecoder) Prime(item []byte) (more bool) {
	_, err := d.Decode(item, &Origin{}, nil)
	_, not := errors.AsType[NotEvent](err)
	return not
}

// Next cuts a stream into items as [Splitter.Next] does. In a format that has blocks what
// does not begin like JSON is one: lines up to an empty one, or up to one that is not
// indented behind ones that are.
func (d *EventDecoder) Next(buf []byte, eof bool) (item []byte, n int, err error) {
	if !d.format.blocks || d.split.skipping || d.split.array {
		return d.split.Next(buf, eof)
	}
	if d.skipping {
		return nil, d.skip(buf, eof), nil
	}
	at := space(buf)
	if at > 0 || len(buf) == 0 {
		return nil, at, nil
	}
	if buf[0] == '{' || buf[0] == '[' {
		return d.split.Next(buf, eof)
	}
	end := blockEnd(buf, false)
	switch {
	case end > d.split.MaxItem:
		return nil, end, ErrItemTooLong
	case end > 0:
		return bytes.TrimRight(buf[:end], " \t\r\n"), end, nil
	case len(buf) > d.split.MaxItem:
		// Whole lines go, so that the next begins where a line does.
		n := bytes.LastIndexByte(buf, '\n') + 1
		d.skipping, d.within = true, n == 0
		if n == 0 || eof {
			n = len(buf)
		}
		return nil, n, ErrItemTooLong
	case eof:
		return bytes.TrimRight(buf, " \t\r\n"), len(buf), nil
	}
	return nil, 0, nil
}

// skip is how many bytes at the beginning belong to a block that is too long.
func (d *EventDecoder) skip(buf []byte, eof bool) int {
	if d.within {
		i := bytes.IndexByte(buf, '\n')
		if i < 0 {
			return len(buf)
		}
		d.within = false
		return i + 1
	}
	if end := blockEnd(buf, true); end >= 0 {
		d.skipping = false
		return end
	}
	if n := bytes.LastIndexByte(buf, '\n') + 1; n > 0 {
		return n
	}
	if eof || len(buf) > d.split.MaxItem {
		d.within = true
		return len(buf)
	}
	return 0
}

// blockEnd is how many bytes a block has with the empty line behind it; below zero if its
// end is not in b. indented says that lines before b were.
func blockEnd(b []byte, indented bool) int {
	for at := 0; ; {
		i := bytes.IndexByte(b[at:], '\n')
		if i < 0 {
			return -1
		}
		line := b[at : at+i]
		switch {
		case len(bytes.TrimRight(line, " \t\r")) == 0:
			return at + i + 1
		case line[0] == ' ' || line[0] == '\t':
			indented = true
		case indented:
			return at
		}
		at += i + 1
	}
}

// add takes an event in, with strings of its own.
func (d *EventDecoder) add(ev SessionEvent) { d.out = append(d.out, ev) }

// maxEventText is how long the texts of an event may be.
const maxEventText = flow.MaxPrincipal

// eventText is a text of an event, cut at its bound.
func eventText(b []byte) string { return string(b[:min(len(b), maxEventText)]) }

// errNoUser is an event of an account that is no person's and no service's.
const errNoUser = NotEvent("an account of a machine or of the system")

// person says whether an account is a user's.
func person(user string) bool {
	_, kind := (*flow.Domains)(nil).Principal(user)
	return kind == flow.PrincipalUser
}
