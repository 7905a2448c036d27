package agent

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/valyala/fastjson"

	"github.com/postern/postern/flow"
)

// windowsLogon is an event of Windows's Security log about a session: 4624 a logon, 4634 and
// 4647 a logoff, 4778 and 4779 a remote desktop that is taken up again and left, 4608 a start
// of Windows. Forwarders lay them out as they do [windowsEvent]; see
// docs/agents/windows-logon.md.
type windowsLogon struct {
	w windowsEvent

	target, targetDomain, sid []byte // of 4624, 4634, 4647
	account, accountDomain    []byte // of 4778, 4779
	logon, kind               []byte // its id and its type
	client                    []byte // the client's address
}

func newWindowsLogon(d *EventDecoder) (eventParser, error) {
	for _, t := range d.cfg.LogonTypes {
		if t < 2 || t > 13 {
			return nil, fmt.Errorf("logonTypes: %d is no type of logon; want some of 2 (interactive), 3 (network), 7 (unlock), 10 (remote interactive), 11 (cached)", t)
		}
	}
	l := &windowsLogon{}
	return func(item []byte) error {
		v, err := d.d.object(item)
		if err != nil {
			return err
		}
		*l = windowsLogon{w: windowsEvent{numbers: l.w.numbers[:0], also: l.set}}
		l.w.layout(v)
		if v.Exists("winlog") {
			// The module for Security moves the client's address, and may the user.
			l.set("IpAddress", v.Get("source", "ip"))
			if l.target == nil {
				l.target, l.targetDomain = said(str(v, "user", "name")), said(str(v, "user", "domain"))
			}
			l.set("TargetLogonId", v.Get("winlog", "logon", "id"))
		}
		return l.event(d)
	}, nil
}

// set takes in a field that flows do not have.
func (l *windowsLogon) set(key string, v *fastjson.Value) {
	var to *[]byte
	switch key {
	case "TargetUserName":
		to = &l.target
	case "TargetDomainName":
		to = &l.targetDomain
	case "TargetUserSid":
		to = &l.sid
	case "AccountName": // NXLog has one of its own in every event
		to = &l.account
	case "AccountDomain":
		to = &l.accountDomain
	case "TargetLogonId", "LogonID":
		to = &l.logon
	case "LogonType":
		to = &l.kind
	case "IpAddress", "ClientAddress":
		to = &l.client
	}
	if to != nil && *to == nil {
		*to = said(scalar(v, &l.w.numbers))
	}
}

// event adds what the event tells.
func (l *windowsLogon) event(d *EventDecoder) error {
	w := &l.w
	var kind SessionKind
	switch w.id {
	case 4624:
		kind = SessionStart
	case 4634, 4647:
		kind = SessionStop
	case 4778:
		kind = SessionUpdate
	case 4779:
		kind = SessionAway
	case 4608:
		kind = SessionOn
	case 0:
		return fieldError("event id", nil, "EventID, event.code with winlog, or Event.System.EventID")
	default:
		return NotEvent("another event of Windows")
	}
	if w.known && !w.security {
		return NotEvent("an event of another log than Security")
	}
	if w.host == nil {
		return fieldError("host", nil, "Computer or Hostname, which names where the session is")
	}
	ev := SessionEvent{Kind: kind, Host: strings.ToLower(eventText(w.host))}
	var err error
	if ev.At, err = w.time(&d.d.entry); err != nil {
		return err
	}
	switch kind {
	case SessionOn:
		d.add(ev)
		return nil
	case SessionUpdate, SessionAway:
		if !d.cfg.Clients || !slices.Contains(d.cfg.LogonTypes, 10) {
			return NotEvent("a remote desktop left or taken up again, while the session on the host goes on")
		}
		l.target, l.targetDomain = l.account, l.accountDomain
	}
	// 4647 has no type: only who sits there can log off so.
	logonType := 0
	if w.id == 4624 || w.id == 4634 {
		n, ok := atou(l.kind)
		if !ok || n > 99 {
			return fieldError("LogonType", l.kind, "a number such as 2")
		}
		if logonType = int(n); !slices.Contains(d.cfg.LogonTypes, logonType) {
			return NotEvent("a logon of a type that does not count")
		}
	}
	if l.target == nil {
		return fieldError("user", nil, "TargetUserName, or AccountName of 4778 and 4779")
	}
	ev.User = eventText(l.target)
	if l.targetDomain != nil {
		ev.User = eventText(slices.Concat(l.targetDomain, []byte{'\\'}, l.target))
	}
	if _, of := (*flow.Domains)(nil).Principal(text(l.sid)); !person(ev.User) || of == flow.PrincipalSystem {
		return errNoUser
	}
	id, ok := logonID(l.logon)
	if !ok {
		return fieldError("TargetLogonId", l.logon, "a logon's id such as 0x3e7f2")
	}
	ev.Session = id
	switch kind {
	case SessionStart:
		ev.On = ev.Host
		remote := logonType == 10 || logonType == 3
		if d.cfg.Clients && remote {
			ev.Addr = clientAddr(l.client)
		}
		if logonType == 3 {
			// Whoever uses a share does not sit at the server.
			if ev.On = ""; ev.Addr.IsZero() {
				return NotEvent("a logon over the network whose client is not placed")
			}
		}
	case SessionUpdate:
		if ev.Addr = clientAddr(l.client); ev.Addr.IsZero() {
			return NotEvent("a session taken up again on the host itself")
		}
	}
	d.add(ev)
	return nil
}

// logonID is a logon's id in one spelling: forwarders write 0x3E7, 0x00000000000003e7 and 999.
func logonID(b []byte) (string, bool) {
	hex, ok := bytes.CutPrefix(b, []byte("0x"))
	if !ok {
		if hex, ok = bytes.CutPrefix(b, []byte("0X")); !ok {
			n, ok := atou(b)
			return fmt.Sprintf("0x%x", n), ok && n != 0
		}
	}
	hex = bytes.TrimLeft(bytes.ToLower(hex), "0")
	if len(hex) == 0 || len(hex) > 16 || len(bytes.Trim(hex, "0123456789abcdef")) > 0 {
		return "", false
	}
	return "0x" + string(hex), true
}

// clientAddr is the address of a logon's client; zero where it is the host itself, or none.
func clientAddr(b []byte) flow.Addr {
	a, ok := addr(b)
	if ip := a.Netip(); !ok || ip.IsLoopback() || ip.IsUnspecified() || ip.IsLinkLocalUnicast() {
		return flow.Addr{}
	}
	return a
}
