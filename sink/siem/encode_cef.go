package siem

import (
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/postern/postern/flow"
)

// MaxCEF is the size in bytes that a line of CEF stays under: with the header of syslog before it,
// it fits into the 8 KiB that rsyslog takes by default.
const MaxCEF = 7_800

// encodeCEF is a finding as a line of CEF version 0 (Micro Focus Security ArcSight, "Common Event
// Format", version 25): seven fields of header, then key=value. Keys are those of the standard's
// dictionary for event producers, with its lengths in characters; what has none of its own begins
// with Postern, as its section "Custom extension naming guidelines" has it.
func encodeCEF(f *flow.Finding) ([]byte, error) {
	return fitted(f, MaxCEF, func(f *flow.Finding) ([]byte, error) { return cef(f), nil })
}

func cef(f *flow.Finding) []byte {
	t := tellEnds(f)
	w := &cefLine{b: []byte("CEF:0|Postern|Postern|" + strconv.Itoa(f.SchemaVersion))}
	w.header(f.Type, 1023)
	w.header(f.Title, 512)
	w.header(strconv.Itoa([...]int{1, 3, 5, 8, 10}[min(f.Severity, flow.Critical)]), 2)
	w.b = append(w.b, '|')

	w.text("externalId", 40, f.EventID())
	w.time("rt", f.LastSeen)
	w.time("start", f.FirstSeen)
	w.time("end", f.LastSeen)
	if f.Count > 0 {
		w.number("cnt", f.Count)
	}
	w.text("cat", 1023, f.Type)
	if f.Observed != flow.ObservedUnknown.String() {
		w.text("act", 63, f.Observed)
	}
	w.text("outcome", 63, f.Outcome)
	w.text("reason", 1023, f.Reason)
	w.end("src", "c6a2", "Source IPv6 Address", "shost", &t.Client)
	w.text("suser", 1023, t.Client.Identity)
	w.text("sproc", 1023, t.Client.Process)
	w.end("dst", "c6a3", "Destination IPv6 Address", "dhost", &t.Server)
	if t.Port >= 0 {
		w.number("dpt", int64(t.Port))
	}
	w.text("duser", 1023, t.Server.Identity)
	w.text("dproc", 1023, t.Server.Process)
	w.text("proto", 31, t.Proto)
	w.text("msg", 1023, f.Sentence)
	w.labelled("cs1", "Exception", 4000, f.Exception)
	w.labelled("cs2", "Ticket", 4000, f.Ticket)
	w.labelled("cs3", "Owner", 4000, f.Owner)
	w.labelled("cs4", "Approver", 4000, f.Approver)
	if utf8.RuneCountInString(f.Query) <= 4000 { // cut SQL says something else
		w.labelled("cs5", "Query", 4000, f.Query)
	}
	w.labelled("cs6", "Next step", 4000, f.Next)
	w.labelled("cn1", "Revision", 20, strconv.FormatUint(f.Revision, 10))
	w.labelled("cn2", "Edges", 20, strconv.Itoa(f.EdgesTotal))
	w.labelled("cfp1", "Confidence", 20, strconv.FormatFloat(f.Confidence, 'f', -1, 32))
	w.labelled("cfp2", "Score", 20, strconv.FormatFloat(f.Score, 'f', -1, 32))
	w.labelled("flexString1", "Rule", 1023, f.Rule)
	w.labelled("flexString2", "Subject", 1023, f.Subject)
	w.text("PosternId", 1023, f.ID)
	w.text("PosternService", 1023, f.Service)
	w.text("PosternSourceSegment", 1023, f.SrcSegment)
	w.text("PosternDestinationSegment", 1023, f.DstSegment)
	w.text("PosternSourceWorkload", 1023, t.Client.Workload)
	w.text("PosternDestinationWorkload", 1023, t.Server.Workload)
	w.text("PosternOrientation", 63, f.Orientation)
	w.text("PosternExpected", 63, f.Expected)
	w.text("PosternFailed", 1023, strings.Join(f.Failed, ","))
	w.text("PosternMissing", 1023, strings.Join(f.Missing, ","))
	w.text("PosternRequester", 1023, f.Requester)
	w.text("PosternPolicyVersion", 1023, f.PolicyVersion)
	w.text("PosternTechniques", 1023, strings.Join(f.Techniques, ","))
	w.text("PosternContinues", 1023, f.Continues)
	return w.b
}

// cefLine is a line of CEF that is being written.
type cefLine struct {
	b       []byte
	between string // what parts a key from the value before it
}

// header adds a field of the header. It may hold no line break, and no other control character
// says anything in it: a space stands for each.
func (w *cefLine) header(s string, most int) {
	w.b = append(w.b, '|')
	for _, r := range cutCharacters(s, most) {
		switch {
		case r == '|' || r == '\\':
			w.b = append(w.b, '\\', byte(r))
		case controls(r):
			w.b = append(w.b, ' ')
		default:
			w.b = utf8.AppendRune(w.b, r)
		}
	}
}

// text adds a key and its value, at most so many characters of it, unless it is empty. What ends
// the line for some reader is written as \n and \r, other control characters as U+FFFD.
func (w *cefLine) text(key string, most int, s string) {
	if s == "" {
		return
	}
	w.b = append(append(append(w.b, w.between...), key...), '=')
	w.between = " "
	for _, r := range cutCharacters(s, most) {
		switch {
		case r == '=' || r == '\\':
			w.b = append(w.b, '\\', byte(r))
		case r == '\n':
			w.b = append(w.b, `\n`...)
		case r == '\r':
			w.b = append(w.b, `\r`...)
		case controls(r):
			w.b = utf8.AppendRune(w.b, utf8.RuneError)
		default:
			w.b = utf8.AppendRune(w.b, r)
		}
	}
}

// labelled adds one of the fields that say by a second one what they are.
func (w *cefLine) labelled(key, label string, most int, s string) {
	if s != "" {
		w.text(key, most, s)
		w.text(key+"Label", 1023, label)
	}
}

func (w *cefLine) number(key string, n int64) { w.text(key, 20, strconv.FormatInt(n, 10)) }

// time is in milliseconds since the epoch.
func (w *cefLine) time(key string, t flow.Time) {
	if t != 0 {
		w.number(key, int64(t))
	}
}

// end adds an address and a name. The dictionary's addresses are IPv4; IPv6 has fields of its own.
func (w *cefLine) end(key, key6, label6, host string, e *flow.End) {
	name := e.Host
	if a, ok := address(e.Address); ok && a.Is4() {
		w.text(key, 15, e.Address)
	} else if ok {
		w.labelled(key6, label6, 39, e.Address)
	} else if name == "" {
		name = e.Address
	}
	w.text(host, 1023, name)
}

// cutCharacters is cutText in characters.
func cutCharacters(s string, n int) string {
	if len(s) <= n || utf8.RuneCountInString(s) <= n {
		return s
	}
	for at := range s {
		if n--; n == 0 {
			return s[:at] + "…"
		}
	}
	return s
}

// controls says whether a character directs a terminal or ends a line.
func controls(r rune) bool {
	return r < ' ' || r >= 0x7f && r <= 0x9f || r == '\u2028' || r == '\u2029'
}
