package siem

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/postern/postern/flow"
)

// cefKeys are the keys of the dictionary that are used and what they may hold: a length in
// characters, or a type.
var cefKeys = map[string]any{
	"externalId": 40, "rt": "time", "start": "time", "end": "time", "cnt": "integer", "cat": 1023, "act": 63, "outcome": 63, "reason": 1023,
	"src": "IPv4", "dst": "IPv4", "c6a2": "IPv6", "c6a2Label": 1023, "c6a3": "IPv6", "c6a3Label": 1023, "shost": 1023, "dhost": 1023, "suser": 1023, "duser": 1023,
	"sproc": 1023, "dproc": 1023, "dpt": "port", "proto": 31, "msg": 1023,
	"cs1": 4000, "cs1Label": 1023, "cs2": 4000, "cs2Label": 1023, "cs3": 4000, "cs3Label": 1023, "cs4": 4000, "cs4Label": 1023, "cs5": 4000, "cs5Label": 1023,
	"cs6": 4000, "cs6Label": 1023, "cn1": "integer", "cn1Label": 1023, "cn2": "integer", "cn2Label": 1023, "cfp1": "float", "cfp1Label": 1023, "cfp2": "float", "cfp2Label": 1023,
	"flexString1": 1023, "flexString1Label": 128, "flexString2": 1023, "flexString2Label": 128,
}

// readCEF reads a line of CEF as its specification says, and nothing else. It knows nothing of who
// wrote it.
func readCEF(line string) (header []string, extension map[string]string, err error) {
	if i := strings.IndexFunc(line, func(r rune) bool { return r < 0x20 || r == 0x7f }); i >= 0 {
		return nil, nil, fmt.Errorf("a control character at %d", i)
	}
	field, rest := strings.Builder{}, line
	for len(header) < 7 {
		if rest == "" {
			return nil, nil, fmt.Errorf("a header of %d fields", len(header))
		}
		switch {
		case rest[0] == '|':
			header = append(header, field.String())
			field.Reset()
		case rest[0] == '\\' && len(rest) > 1 && (rest[1] == '|' || rest[1] == '\\'):
			rest = rest[1:]
			field.WriteByte(rest[0])
		case rest[0] == '\\':
			return nil, nil, fmt.Errorf("the header escapes what needs none: %.20q", rest)
		default:
			field.WriteByte(rest[0])
		}
		rest = rest[1:]
	}
	// An equals sign that is not escaped ends a key, which begins after the last space before it.
	extension = map[string]string{}
	key, value := "", strings.Builder{}
	for i := 0; i < len(rest); i++ {
		switch rest[i] {
		case '=':
			said := value.String()
			at := strings.LastIndexByte(said, ' ')
			if key == "" && at >= 0 {
				return nil, nil, fmt.Errorf("%q before the first key", said)
			}
			if key != "" {
				if at < 0 {
					return nil, nil, fmt.Errorf("no space between %s and the next key", key)
				}
				extension[key] = said[:at]
			}
			key = said[at+1:]
			if _, twice := extension[key]; twice || key == "" || strings.ContainsFunc(key, func(r rune) bool { return r >= utf8.RuneSelf || r < '0' }) {
				return nil, nil, fmt.Errorf("key %q", key)
			}
			value.Reset()
		case '\\':
			i++
			if i == len(rest) {
				return nil, nil, errors.New("it ends within an escape")
			}
			switch rest[i] {
			case '=', '\\':
				value.WriteByte(rest[i])
			case 'n':
				value.WriteByte('\n')
			case 'r':
				value.WriteByte('\r')
			default:
				return nil, nil, fmt.Errorf("the escape \\%c", rest[i])
			}
		default:
			value.WriteByte(rest[i])
		}
	}
	if key != "" {
		extension[key] = value.String()
	}
	return header, extension, nil
}

// checkCEF says whether a finding as CEF is a line that readCEF reads, with keys that the dictionary
// has, and says what the finding says.
func checkCEF(f *flow.Finding) error {
	b, err := encodeCEF(f)
	if err != nil {
		return err
	}
	header, ext, err := readCEF(string(b))
	if err != nil {
		return fmt.Errorf("CEF: %w in %q", err, b)
	}
	var errs []error
	say := func(format string, a ...any) { errs = append(errs, fmt.Errorf("CEF: "+format, a...)) }
	if severity, err := strconv.Atoi(header[6]); header[0] != "CEF:0" || header[1] != "Postern" || err != nil || severity < 0 || severity > 10 {
		say("header %q", header)
	}
	for k, v := range ext {
		var ok bool
		switch most := cefKeys[k].(type) {
		case int:
			ok = utf8.RuneCountInString(v) <= most
		case string:
			n, err := strconv.ParseInt(v, 10, 64)
			a, noAddress := netip.ParseAddr(v)
			_, noFloat := strconv.ParseFloat(v, 64)
			ok = map[string]bool{"time": err == nil && n > 0, "integer": err == nil, "port": err == nil && n >= 0 && n < 65536,
				"IPv4": noAddress == nil && a.Is4(), "IPv6": noAddress == nil && a.Is6(), "float": noFloat == nil}[most]
		default:
			ok = strings.HasPrefix(k, "Postern") && utf8.RuneCountInString(v) <= 1023
		}
		if !ok {
			say("%s is %q, and may be %v", k, v, cefKeys[k])
		}
		if label, has := ext[k+"Label"]; (strings.HasPrefix(k, "cs") || strings.HasPrefix(k, "cn") && k != "cnt" || strings.HasPrefix(k, "flex")) && !strings.HasSuffix(k, "Label") && (!has || label == "") {
			say("%s has no label", k)
		}
	}
	plain := func(s string, inHeader bool) string {
		b, _ := json.Marshal(s)
		_ = json.Unmarshal(b, &s)
		return strings.Map(func(r rune) rune {
			switch {
			case inHeader && (r < 0x20 || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029):
				return ' '
			case r == '\n' || r == '\r':
				return r
			case r < 0x20 || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029:
				return utf8.RuneError
			}
			return r
		}, s)
	}
	if !says(header[4], plain(f.Type, true)) || !says(header[5], plain(f.Title, true)) {
		say("%q is told of %q", header, f.Title)
	}
	for k, want := range map[string]string{"externalId": f.EventID(), "PosternId": f.ID, "msg": f.Sentence, "cs1": f.Exception, "cs2": f.Ticket, "cs3": f.Owner, "cs4": f.Approver,
		"cs6": f.Next, "flexString1": f.Rule, "flexString2": f.Subject, "PosternRequester": f.Requester, "PosternSourceSegment": f.SrcSegment, "act": strings.TrimPrefix(f.Observed, "unknown"), "reason": f.Reason} {
		if got := ext[k]; !says(got, plain(want, false)) {
			say("%s is %q, want %q", k, got, want)
		}
	}
	if got, has := ext["cs5"]; has && got != plain(f.Query, false) || !has && f.Query != "" && len(f.Query) < 64 {
		say("the query is %q, want %q", got, f.Query)
	}
	return errors.Join(errs...)
}

// TestCEF: findings of every type, also with hostile texts, are lines from which every field comes
// back, and none that nobody wrote.
func TestCEF(t *testing.T) {
	for _, f := range everyFinding() {
		if err := checkCEF(f); err != nil {
			t.Fatalf("%s: %v", f.Type, err)
		}
	}
}

// TestCEFWhole: one line, character for character.
func TestCEFWhole(t *testing.T) {
	f := &flow.Finding{
		ID: "3f1c9a5be07d42c6", SchemaVersion: 1, Revision: 2, Type: flow.FindingExpired, Title: `Expired | in "use"`, Severity: flow.High, Confidence: 1,
		FirstSeen: 1_790_000_000_000, LastSeen: 1_790_000_060_000, Count: 4, Client: "10.60.0.3", Server: "2001:db8::11", Orientation: "known", Service: "tcp/443",
		SrcSegment: "vendor", DstSegment: "vault", Observed: "allow", Expected: "deny", Reason: "expired-exception", Outcome: "escaped",
		Exception: "EX-2041", Ticket: "CHG=1", Owner: `team\pay`, Sentence: "ivo went in.\nTwice.", EdgesTotal: 1,
		Detail: flow.Detail{Score: 0.75, Query: "SELECT 1 WHERE a = 'b'"},
	}
	got, err := encodeCEF(f)
	if err != nil {
		t.Fatal(err)
	}
	want := `CEF:0|Postern|Postern|1|expired-exception|Expired \| in "use"|8|externalId=3f1c9a5be07d42c6:2 rt=1790000060000 start=1790000000000 end=1790000060000 cnt=4` +
		` cat=expired-exception act=allow outcome=escaped reason=expired-exception src=10.60.0.3 c6a3=2001:db8::11 c6a3Label=Destination IPv6 Address dpt=443 proto=tcp` +
		` msg=ivo went in.\nTwice. cs1=EX-2041 cs1Label=Exception cs2=CHG\=1 cs2Label=Ticket cs3=team\\pay cs3Label=Owner cs5=SELECT 1 WHERE a \= 'b' cs5Label=Query` +
		` cn1=2 cn1Label=Revision cn2=1 cn2Label=Edges cfp1=1 cfp1Label=Confidence cfp2=0.75 cfp2Label=Score PosternId=3f1c9a5be07d42c6 PosternService=tcp/443` +
		` PosternSourceSegment=vendor PosternDestinationSegment=vault PosternOrientation=known PosternExpected=deny`
	if string(got) != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

// TestReadCEFFails: the reader that the tests rely on takes no line that was escaped badly.
func TestReadCEFFails(t *testing.T) {
	const head = "CEF:0|a|b|1|c|d|5|"
	for _, bad := range []string{"CEF:0|a|b|1|c|d", `CEF:0|a|b|1|c\d|d|5|`, head + "msg=a\nb", head + "msg=a=b", head + `msg=a\`, head + `msg=a\x`, head + "x msg=a", head + "a=1 a=2"} {
		if h, e, err := readCEF(bad); err == nil {
			t.Errorf("%q is read as %q %q", bad, h, e)
		}
	}
	h, e, err := readCEF(head + `msg=one two\=\\ src=10.0.0.1`)
	if err != nil || len(h) != 7 || e["msg"] != `one two=\` || e["src"] != "10.0.0.1" {
		t.Errorf("%q %q %v", h, e, err)
	}
}
