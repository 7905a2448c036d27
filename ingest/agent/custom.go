package agent

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/agnivade/levenshtein"
	"github.com/valyala/fastjson"

	"github.com/postern/postern/flow"
)

// CustomConfig says how the lines of a log are read that Postern has no format of its own for.
// Where something in it is said by a path, that is either the names of members with dots
// between (src.ip), which costs least, or a jq program.
type CustomConfig struct {
	// Name is what the format is called by in --format, in URLs and in the configuration: lower-case letters, digits and hyphens, and no name of a built-in format.
	Name string `yaml:"name"`
	// Type says what a line is: json (an object, or several in an array), delimited (fields by their column) or keyvalue (key=value pairs).
	Type string `yaml:"type"`
	// Separator is what stands between the fields of delimited lines (a comma unless said otherwise) or between pairs (a space): one character, or the word tab or space.
	Separator string `yaml:"separator"`
	// Columns names the columns of delimited lines in their order. Without it the first line of a stream is a header that does.
	Columns []string `yaml:"columns"`
	// Comment is what lines begin with that are no flows, such as #.
	Comment string `yaml:"comment"`
	// FlowIf is a condition on the line, a path or a jq program: a line of which it gives null, false or nothing is no flow. Comparing a path with == or != to a text or a whole number costs little.
	FlowIf string `yaml:"flowIf"`
	// Fields says where the fields of a flow are found: their names, as `postern decode` prints them, each with a path. A text in quotes is the field's value on every line. src_addr and dst_addr have to be there.
	Fields map[string]string `yaml:"fields"`
	// Values says for a field what the log's values mean, such as observed: {pass: allow, block: deny}. The value "*" stands for every other; an empty meaning is "not known".
	Values map[string]map[string]string `yaml:"values"`
	// Time is how times are written: rfc3339, s, ms, us or ns (since 1970), or a layout of Go with a zone, such as 02/Jan/2006:15:04:05 -0700.
	Time string `yaml:"time"`
}

// Validate says what is wrong with the format, if anything is.
func (c *CustomConfig) Validate() error {
	_, err := compileCustom(c)
	return err
}

// Validate says what is wrong with the configuration, if anything is.
func (c *Config) Validate() error {
	_, err := compileCustoms(c.Custom)
	if c.ClockTolerance < 0 {
		err = errors.Join(err, fmt.Errorf("clockTolerance is %v; want 0 or more", c.ClockTolerance))
	}
	return err
}

// Compile makes what decoders need of the custom formats. It need not be called: [NewDecoder]
// does it where it was not, each time.
func (c *Config) Compile() (err error) {
	c.customs, err = compileCustoms(c.Custom)
	return err
}

// compileCustoms compiles formats; their names have to differ.
func compileCustoms(configs []CustomConfig) ([]*customFormat, error) {
	out := make([]*customFormat, 0, len(configs))
	var errs []error
	for i := range configs {
		f, err := compileCustom(&configs[i])
		switch {
		case err != nil:
			errs = append(errs, err)
		case slices.ContainsFunc(out, func(o *customFormat) bool { return o.name == f.name }):
			errs = append(errs, fmt.Errorf("custom format %q: there are two of that name; name one of them otherwise", f.name))
		default:
			out = append(out, f)
		}
	}
	return out, errors.Join(errs...)
}

// customNamed finds a custom format; nil if there is none.
func (c *Config) customNamed(name string) (*customFormat, error) {
	formats := c.customs
	if formats == nil {
		for i := range c.Custom {
			if c.Custom[i].Name == name {
				return compileCustom(&c.Custom[i])
			}
		}
	}
	for _, f := range formats {
		if f.name == name {
			return f, nil
		}
	}
	return nil, nil
}

// customFormat is a compiled CustomConfig. It is only read and may be shared.
type customFormat struct {
	kind      *mappingKind
	name      string
	json      bool
	pairs     bool // key=value
	separator byte
	columns   []string
	comment   string
	flowIf    *customPath
	fields    []customMapping
	layout    string   // of times
	plain     []string // the plain paths, by their place
	paths     paths    // the same in JSON
	reads     jqReads  // what programs read
	whole     bool     // JSON has to be read whole: finding what is at paths is not enough
}

// customMapping is where a field comes from.
type customMapping struct {
	field  *customField
	path   *customPath
	values map[string][]byte
	others []byte // of "*"
	other  bool
}

// customField is a field of a flow that a mapping can fill.
type customField struct {
	name string
	want string
	set  func(f *customFormat, r *flow.Record, e *entry, b []byte) bool
	icmp bool // one of type and code, which tell something together only
}

func customNumber(want string, set func(r *flow.Record, n uint64, ok bool), most uint64) (string, func(*customFormat, *flow.Record, *entry, []byte) bool) {
	return want, func(_ *customFormat, r *flow.Record, _ *entry, b []byte) bool {
		n, ok := atou(b)
		if ok = ok && n <= most; ok {
			set(r, n, true)
		}
		return ok
	}
}

func customName(to func(r *flow.Record) *flow.Name) (string, func(*customFormat, *flow.Record, *entry, []byte) bool) {
	return "a text", func(_ *customFormat, r *flow.Record, e *entry, b []byte) bool {
		*to(r) = e.name(b)
		return true
	}
}

func customAddress(has flow.Has, to func(r *flow.Record) *flow.Addr) (string, func(*customFormat, *flow.Record, *entry, []byte) bool) {
	return "an IP address", func(_ *customFormat, r *flow.Record, _ *entry, b []byte) bool {
		a, ok := addr(b)
		if ok {
			*to(r), r.Has = a, r.Has|has
		}
		return ok
	}
}

// customWord is a field of few values.
func customWord(set func(r *flow.Record, word int), words ...string) (string, func(*customFormat, *flow.Record, *entry, []byte) bool) {
	return "one of " + strings.Join(words, ", "), func(_ *customFormat, r *flow.Record, _ *entry, b []byte) bool {
		for i, w := range words {
			if string(b) == w {
				set(r, i)
				return true
			}
		}
		return false
	}
}

func customFlags(has flow.Has, to func(r *flow.Record) *uint16) (string, func(*customFormat, *flow.Record, *entry, []byte) bool) {
	return "TCP flags as a number, decimal or 0x…", func(_ *customFormat, r *flow.Record, _ *entry, b []byte) bool {
		n, ok := port16(atou(b))
		if !ok && bytes.HasPrefix(b, []byte("0x")) {
			n, ok = hex16(b)
		}
		if ok {
			*to(r), r.Has = n, r.Has|has
		}
		return ok
	}
}

func customTime(to func(r *flow.Record) *flow.Time) (string, func(*customFormat, *flow.Record, *entry, []byte) bool) {
	return "a time as `time` says", func(f *customFormat, r *flow.Record, _ *entry, b []byte) bool {
		t, ok := f.time(b)
		if ok {
			*to(r) = t
		}
		return ok
	}
}

// customFields lists the fields that a mapping can fill, in the order in which they are.
func customFields() []customField {
	var out []customField
	add := func(name string) func(want string, set func(*customFormat, *flow.Record, *entry, []byte) bool) {
		return func(want string, set func(*customFormat, *flow.Record, *entry, []byte) bool) {
			out = append(out, customField{name, want, set, strings.HasPrefix(name, "icmp_")})
		}
	}
	const port, octet, word, counter = 1<<16 - 1, 1<<8 - 1, 1<<32 - 1, 1<<64 - 1
	number := func(name, want string, most uint64, set func(r *flow.Record, n uint64, ok bool)) {
		add(name)(customNumber(want, set, most))
	}
	add("src_addr")(customAddress(flow.HasSrc, func(r *flow.Record) *flow.Addr { return &r.Src }))
	add("dst_addr")(customAddress(flow.HasDst, func(r *flow.Record) *flow.Addr { return &r.Dst }))
	add("time_start")(customTime(func(r *flow.Record) *flow.Time { return &r.Start }))
	add("time_end")(customTime(func(r *flow.Record) *flow.Time { return &r.End }))
	add("duration")("a duration in seconds", func(_ *customFormat, r *flow.Record, _ *entry, b []byte) bool {
		d, ok := epoch(b)
		if ok && r.Start != 0 && r.End == 0 {
			r.End = r.Start + d
		}
		return ok
	})
	add("proto")("a protocol by number or name", func(_ *customFormat, r *flow.Record, _ *entry, b []byte) bool {
		p, ok := protocol(b)
		setProto(r, p, ok)
		return ok
	})
	number("src_port", "a port", port, func(r *flow.Record, n uint64, ok bool) { setSrcPort(r, uint16(n), ok) })
	number("dst_port", "a port", port, func(r *flow.Record, n uint64, ok bool) { setDstPort(r, uint16(n), ok) })
	number("icmp_type", "a number up to 255", octet, func(r *flow.Record, n uint64, ok bool) { setICMP(r, uint8(n), r.ICMPCode, ok) })
	number("icmp_code", "a number up to 255", octet, func(r *flow.Record, n uint64, ok bool) { setICMP(r, r.ICMPType, uint8(n), ok) })
	add("tcp_flags")(customFlags(flow.HasTCPFlags, func(r *flow.Record) *uint16 { return &r.TCPFlags }))
	add("rev_tcp_flags")(customFlags(flow.HasRevTCPFlags, func(r *flow.Record) *uint16 { return &r.RevTCPFlags }))
	number("bytes", "a number", counter, setBytes)
	number("packets", "a number", counter, setPackets)
	number("rev_bytes", "a number", counter, setRevBytes)
	number("rev_packets", "a number", counter, setRevPackets)
	number("sampling_rate", "a number", word, func(r *flow.Record, n uint64, _ bool) { r.SamplingRate = uint32(n) })
	number("in_if", "a number", word, func(r *flow.Record, n uint64, _ bool) { r.InIf, r.Has = uint32(n), r.Has|flow.HasInIf })
	number("out_if", "a number", word, func(r *flow.Record, n uint64, _ bool) { r.OutIf, r.Has = uint32(n), r.Has|flow.HasOutIf })
	add("nat_src_addr")(customAddress(flow.HasNATSrc, func(r *flow.Record) *flow.Addr { return &r.NATSrc }))
	add("nat_dst_addr")(customAddress(flow.HasNATDst, func(r *flow.Record) *flow.Addr { return &r.NATDst }))
	number("nat_src_port", "a port", port, func(r *flow.Record, n uint64, _ bool) { r.NATSrcPort, r.Has = uint16(n), r.Has|flow.HasNATSrcPort })
	number("nat_dst_port", "a port", port, func(r *flow.Record, n uint64, _ bool) { r.NATDstPort, r.Has = uint16(n), r.Has|flow.HasNATDstPort })
	add("observed")(customWord(func(r *flow.Record, i int) { r.Enforced = flow.Observed(i) }, "unknown", "allow", "deny", "audit"))
	add("direction")(customWord(func(r *flow.Record, i int) { setDirection(r, i == 1) }, "ingress", "egress"))
	add("reporter")(customWord(func(r *flow.Record, i int) { r.Reporter = flow.Reporter(i) }, "elsewhere", "source", "destination"))
	add("initiator")(customWord(func(r *flow.Record, i int) {
		r.Has |= [...]flow.Has{flow.HasInitiator, flow.HasResponder}[i]
	}, "source", "destination"))
	add("app")(customName(func(r *flow.Record) *flow.Name { return &r.App }))
	add("observer")(customName(func(r *flow.Record) *flow.Name { return &r.Observer }))
	add("policy")(customName(func(r *flow.Record) *flow.Name { return &r.EnforcedBy }))
	add("src_host")(customName(func(r *flow.Record) *flow.Name { return &r.SrcHost }))
	add("dst_host")(customName(func(r *flow.Record) *flow.Name { return &r.DstHost }))
	add("src_process")(customName(func(r *flow.Record) *flow.Name { return &r.SrcProcess }))
	add("dst_process")(customName(func(r *flow.Record) *flow.Name { return &r.DstProcess }))
	add("src_identity")(customName(func(r *flow.Record) *flow.Name { return &r.SrcIdentity }))
	add("dst_identity")(customName(func(r *flow.Record) *flow.Name { return &r.DstIdentity }))
	return out
}

// compileCustom makes a format of its configuration. The error names the format, the field,
// what is wrong with it and what would be right.
func compileCustom(c *CustomConfig) (*customFormat, error) {
	return compileMapping(c, &flowMapping)
}

// mappingKind is what lines are mapped to: flows or session events.
type mappingKind struct {
	title  func(name string) string // what errors call the format
	named  bool                     // its name has to be one that a URL can have
	cond   string                   // the key of the condition
	of     string                   // what its fields are fields of
	fields func() []customField
	must   []string
	wanted func(field string) string // of one that must be there
	times  []string
}

var flowMapping = mappingKind{title: func(name string) string { return fmt.Sprintf("custom format %q", name) }, named: true, cond: "flowIf", of: "a flow", fields: customFields,
	must: []string{"src_addr", "dst_addr"}, wanted: func(string) string { return "the path of that address" }, times: []string{"time_start", "time_end"}}

// compileMapping makes a format of a kind.
func compileMapping(c *CustomConfig, kind *mappingKind) (*customFormat, error) {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	f := &customFormat{kind: kind, name: c.Name, columns: c.Columns, comment: c.Comment, layout: c.Time}
	if kind.named {
		c.compileName(fail)
	}
	switch c.Type {
	case "json", "":
		f.json = true
		if c.Separator != "" || len(c.Columns) > 0 {
			fail("separator and columns are for type delimited or keyvalue, this one is json; leave them out or set type")
		}
	case "delimited":
		f.separator = ','
	case "keyvalue":
		f.pairs, f.separator = true, ' '
		if len(c.Columns) > 0 {
			fail("columns are for type delimited; leave them out")
		}
	default:
		fail("type is %q; want json, delimited or keyvalue", c.Type)
	}
	switch sep := c.Separator; {
	case sep == "":
	case sep == "tab":
		f.separator = '\t'
	case sep == "space":
		f.separator = ' '
	case len(sep) > 1 || sep[0] <= ' ' || sep[0] >= 0x7f:
		fail("separator is %q; want one character, or the word tab or space", sep)
	case sep == `"` || f.pairs && sep == "=":
		fail("separator cannot be %q, which has a meaning of its own; want another", sep)
	default:
		f.separator = sep[0]
	}
	if err := f.compileTime(c); err != nil {
		errs = append(errs, err)
	}
	if c.FlowIf != "" {
		var err error
		if f.flowIf, err = compileCondition(c.FlowIf); err != nil {
			fail("%s: %w", kind.cond, err)
		} else {
			f.placePath(f.flowIf)
		}
	}
	f.compileFields(c, fail)
	f.placeReads()
	if err := errors.Join(errs...); err != nil {
		// Each line names the format, so that it can stand by itself.
		for i, e := range errs {
			errs[i] = fmt.Errorf("%s: %w", kind.title(c.Name), e)
		}
		return nil, errors.Join(errs...)
	}
	return f, nil
}

func (c *CustomConfig) compileName(fail func(string, ...any)) {
	valid := len(c.Name) > 0 && len(c.Name) <= 32
	for _, r := range c.Name {
		valid = valid && (r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-')
	}
	switch {
	case !valid:
		fail("name is %q; want 1 to 32 lower-case letters, digits and hyphens", c.Name)
	case c.Name == Auto || slices.ContainsFunc(formats, func(f Format) bool { return f.Name == c.Name }):
		fail("name: %s is a format of Postern's own; choose another", c.Name)
	}
}

// compileFields compiles the mapping of fields.
func (f *customFormat) compileFields(c *CustomConfig, fail func(string, ...any)) {
	known := f.kind.fields()
	for _, must := range f.kind.must {
		if _, ok := c.Fields[must]; !ok {
			fail("fields.%s is missing; want %s", must, f.kind.wanted(must))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Fields)) {
		if !slices.ContainsFunc(known, func(k customField) bool { return k.name == name }) {
			fail("fields.%s is no field of %s; %s", name, f.kind.of, nearestCustom(name, known))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Values)) {
		if _, ok := c.Fields[name]; !ok {
			fail("values.%s has no fields.%s to go with; add that, or leave it out", name, name)
		}
	}
	scratch := &Decoder{names: flow.NewNames(64)}
	for i := range known {
		k := &known[i]
		program, ok := c.Fields[k.name]
		if !ok {
			continue
		}
		m := customMapping{field: k}
		var err error
		if m.path, err = compilePath(program); err != nil {
			fail("fields.%s: %w", k.name, err)
			continue
		}
		f.placePath(m.path)
		if len(f.columns) > 0 && m.path.plain != "" && !slices.Contains(f.columns, m.path.plain) {
			fail("fields.%s: there is no column %q; want one of %s", k.name, m.path.plain, strings.Join(f.columns, ", "))
		}
		check := func(where, value string) {
			if value == "" {
				return
			}
			e := &entry{d: scratch, event: &SessionEvent{}}
			if !k.set(f, &flow.Record{Start: 1}, e, []byte(value)) {
				fail("%s is %q; want %s", where, value, k.want)
			}
		}
		if m.path.constant != nil {
			check("fields."+k.name, string(m.path.constant))
		}
		for _, from := range slices.Sorted(maps.Keys(c.Values[k.name])) {
			to := c.Values[k.name][from]
			check(fmt.Sprintf("values.%s[%q]", k.name, from), to)
			if from == "*" {
				m.others, m.other = []byte(to), true
				continue
			}
			if m.values == nil {
				m.values = map[string][]byte{}
			}
			m.values[from] = []byte(to)
		}
		f.fields = append(f.fields, m)
	}
}

// placePath takes in what a path reads, and gives a plain one its place.
func (f *customFormat) placePath(p *customPath) {
	f.reads.add(&p.reads)
	if p.code != nil || p.constant != nil {
		return
	}
	p.deep = strings.Count(p.plain, ".") > maxDots
	f.whole = f.whole || p.deep
	p.place = f.place(p.plain, p.deep)
}

// place is the place of a plain path, the same to all that are alike.
func (f *customFormat) place(path string, deep bool) int {
	if i := slices.Index(f.plain, path); i >= 0 {
		return i
	}
	var ways [][]string
	if !deep {
		ways = digWays(path)
	}
	f.plain = append(f.plain, path)
	return f.paths.add(ways...)
}

// placeReads gives the members of the line that programs read their places too.
func (f *customFormat) placeReads() {
	f.whole = f.whole || f.reads.all
	for _, name := range f.reads.names {
		if strings.Contains(name, ".") { // to a plain path it would mean more
			f.whole = true
		} else {
			f.place(name, false)
		}
	}
}

func nearestCustom(name string, known []customField) string {
	nearest, distance := "", 4
	var all []string
	for _, k := range known {
		all = append(all, k.name)
		if d := levenshtein.ComputeDistance(k.name, name); d < distance {
			nearest, distance = k.name, d
		}
	}
	if nearest != "" {
		return "did you mean " + nearest + "?"
	}
	return "want one of " + strings.Join(all, ", ")
}

// compileTime checks how times are written. A layout has to have a zone, or times would be
// those of nobody knows where.
func (f *customFormat) compileTime(c *CustomConfig) error {
	timed := slices.ContainsFunc(f.kind.times, func(name string) bool { _, ok := c.Fields[name]; return ok })
	switch f.layout {
	case "rfc3339", "s", "ms", "us", "ns":
		return nil
	case "":
		if timed {
			return errors.New("time is missing; want rfc3339, s, ms, us, ns or a layout of Go with a zone, such as 2006-01-02 15:04:05 -0700")
		}
		return nil
	}
	// A layout is one that tells two instants apart, and two zones.
	a := time.Date(2031, 11, 23, 21, 47, 58, 0, time.FixedZone("", -(3*60+30)*60))
	b, err := time.Parse(f.layout, a.Format(f.layout))
	switch {
	case err != nil || b.Year() != a.Year() || b.Month() != a.Month() || b.Day() != a.Day() || b.Hour() != a.Hour() || b.Minute() != a.Minute():
		return fmt.Errorf("time is %q; want rfc3339, s, ms, us, ns or a layout of Go with date, time and zone, such as 2006-01-02 15:04:05 -0700", f.layout)
	case !b.Equal(a) && !b.Equal(a.Truncate(time.Minute)):
		return fmt.Errorf("time: the layout %q has no zone; want one such as -0700, Z07:00 or a literal UTC with a program that adds it", f.layout)
	}
	return nil
}

// time reads a time.
func (f *customFormat) time(b []byte) (flow.Time, bool) {
	switch f.layout {
	case "rfc3339":
		return when(b)
	case "s":
		return epoch(b)
	case "ms", "us", "ns":
		whole, _, _ := bytes.Cut(b, []byte{'.'})
		n, ok := atou(whole)
		switch f.layout {
		case "us":
			n /= 1e3
		case "ns":
			n /= 1e6
		}
		return flow.Time(n), ok && n < maxEpoch*1000
	}
	t, err := time.Parse(f.layout, text(b))
	return flow.TimeOf(t), err == nil
}

// customLine is a line that is being read.
type customLine struct {
	f       *customFormat
	json    *fastjson.Value // the whole line; nil where finding what is at plain paths is enough
	found   *found          // in json
	columns []string        // of delimited lines
	indexes []int           // of the columns at plain paths, by place; -1: there is no such column
	header  []byte
	parts   [][]byte // of delimited lines, by column; of pairs the values
	keys    [][]byte // of pairs
	text    []byte   // of fields that were quoted
	numbers []byte
	tree    any            // of the line, for programs; nil while none asked
	some    map[string]any // the members that programs asked for, where none may look at others
	steps   jqSteps
}

func (f *customFormat) new(d *Decoder) parser { return f.reader(d, (*customLine).read) }

// reader reads lines and has read make of each what it tells.
func (f *customFormat) reader(d *Decoder, read func(*customLine, *entry) error) parser {
	l := &customLine{f: f, found: f.paths.new()}
	l.setColumns(f.columns)
	comment := []byte(f.comment)
	return func(line []byte, e *entry) error {
		if len(comment) > 0 && bytes.HasPrefix(line, comment) {
			return NotFlow("a comment")
		}
		clear(l.some)
		l.json, l.tree, l.parts, l.keys, l.text, l.numbers = nil, nil, l.parts[:0], l.keys[:0], l.text[:0], l.numbers[:0]
		switch {
		case f.json:
			if !f.whole && l.found.scan(line) {
				break
			}
			v, err := d.object(line)
			if err != nil {
				return err
			}
			l.json = v
			l.found.read(v)
		case f.pairs:
			if err := l.splitPairs(line); err != nil {
				return err
			}
		default:
			if err := l.splitColumns(line); err != nil {
				return err
			}
		}
		return read(l, e)
	}
}

// read makes the flow of a line.
func (l *customLine) read(e *entry) error {
	if err := l.meant(); err != nil {
		return err
	}
	r := e.flow(flow.SourceCustom)
	icmp, err := l.fill(r, e)
	if err != nil {
		return err
	}
	if icmp == 1 {
		r.Has &^= flow.HasICMP
	}
	if !r.All(flow.HasSrc) {
		return fieldError("src_addr", nil, "an IP address")
	}
	if !r.All(flow.HasDst) {
		return fieldError("dst_addr", nil, "an IP address")
	}
	return nil
}

// meant says by the condition whether the line is one to read.
func (l *customLine) meant() error {
	c := l.f.flowIf
	if c == nil {
		return nil
	}
	yes, err := l.holds(c)
	if err != nil {
		return fmt.Errorf("%s: %w", l.f.kind.cond, err)
	}
	if !yes {
		return NotFlow("a line that " + l.f.kind.cond + " leaves out")
	}
	return nil
}

// fill sets the fields of r, or of e's event; icmp is how many of ICMP's two there were.
func (l *customLine) fill(r *flow.Record, e *entry) (icmp int, err error) {
	for i := range l.f.fields {
		m := &l.f.fields[i]
		b, err := l.get(m.path)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", m.field.name, err)
		}
		if m.values != nil || m.other {
			if to, ok := m.values[string(b)]; ok && b != nil {
				b = to
			} else if b = said(b); b != nil && m.other {
				b = m.others
			}
		}
		if b = said(b); b == nil {
			continue
		}
		if !m.field.set(l.f, r, e, b) {
			return 0, fieldError(m.field.name, b, m.field.want)
		}
		if m.field.icmp {
			icmp++
		}
	}
	return icmp, nil
}

// splitColumns cuts a delimited line, as RFC 4180 says of commas: fields may be in quotes, a
// quote in them is doubled.
func (l *customLine) splitColumns(line []byte) error {
	if len(l.columns) == 0 || l.header != nil && bytes.Equal(line, l.header) {
		if len(line) > 1<<14 {
			return fieldError("the header", line, "at most 16 KiB")
		}
		if l.header == nil {
			if err := l.cut(line); err != nil {
				return err
			}
			l.header = bytes.Clone(line)
			var columns []string
			for _, p := range l.parts {
				columns = append(columns, string(bytes.TrimSpace(p)))
			}
			l.setColumns(columns)
		}
		return NotFlow("a header")
	}
	if err := l.cut(line); err != nil {
		return err
	}
	if len(l.f.columns) > 0 && slices.EqualFunc(l.parts, l.columns, func(p []byte, c string) bool { return string(p) == c }) {
		return NotFlow("a header")
	}
	if len(l.parts) != len(l.columns) {
		return fmt.Errorf("%d fields; want %d, one a column", len(l.parts), len(l.columns))
	}
	return nil
}

var errCustomQuote = errors.New("a quoted field does not end; want a closing quote, and quotes in it doubled")

func (l *customLine) cut(line []byte) error {
	for {
		if len(line) == 0 || line[0] != '"' {
			i := bytes.IndexByte(line, l.f.separator)
			if i < 0 {
				l.parts = append(l.parts, line)
				return nil
			}
			l.parts, line = append(l.parts, line[:i]), line[i+1:]
			continue
		}
		from := len(l.text)
		for line = line[1:]; ; {
			i := bytes.IndexByte(line, '"')
			if i < 0 {
				return errCustomQuote
			}
			l.text = append(l.text, line[:i]...)
			if line = line[i+1:]; len(line) == 0 || line[0] != '"' {
				break
			}
			l.text, line = append(l.text, '"'), line[1:]
		}
		l.parts = append(l.parts, l.text[from:len(l.text):len(l.text)])
		switch {
		case len(line) == 0:
			return nil
		case line[0] != l.f.separator:
			return errCustomQuote
		}
		line = line[1:]
	}
}

// maxPairs bounds the pairs of a line; what comes behind them is not read.
const maxPairs = 512

// splitPairs cuts a line of key=value. A value may be in quotes, with backslashes before
// quotes and backslashes in it. What is no pair is passed over.
func (l *customLine) splitPairs(line []byte) error {
	for len(line) > 0 && len(l.keys) < maxPairs {
		if line[0] == l.f.separator || line[0] == ' ' {
			line = line[1:]
			continue
		}
		end := bytes.IndexByte(line, l.f.separator)
		if end < 0 {
			end = len(line)
		}
		eq := bytes.IndexByte(line[:end], '=')
		if eq <= 0 {
			line = line[end:]
			continue
		}
		key := line[:eq]
		if eq+1 >= len(line) || line[eq+1] != '"' {
			l.keys, l.parts = append(l.keys, key), append(l.parts, line[eq+1:end])
			line = line[end:]
			continue
		}
		from := len(l.text)
		line = line[eq+2:]
		for {
			i := bytes.IndexAny(line, `"\`)
			if i < 0 || line[i] == '\\' && i+1 == len(line) {
				return errCustomPair
			}
			l.text = append(l.text, line[:i]...)
			if line[i] == '"' {
				line = line[i+1:]
				break
			}
			if c := line[i+1]; c != '"' && c != '\\' {
				l.text = append(l.text, '\\')
			}
			l.text, line = append(l.text, line[i+1]), line[i+2:]
		}
		l.keys, l.parts = append(l.keys, key), append(l.parts, l.text[from:len(l.text):len(l.text)])
	}
	return nil
}

var errCustomPair = errors.New("a quoted value does not end; want a closing quote")

// setColumns takes in what the columns of delimited lines are.
func (l *customLine) setColumns(columns []string) {
	l.columns, l.indexes = columns, make([]int, len(l.f.plain))
	for place, path := range l.f.plain {
		l.indexes[place] = slices.Index(columns, path)
	}
}

// plain finds the text at a plain path: of a member, a column or a key.
func (l *customLine) plain(p *customPath) []byte {
	switch {
	case l.f.json:
		return l.member(p).text
	case l.f.pairs:
		for i, k := range l.keys {
			if string(k) == p.plain {
				return l.parts[i]
			}
		}
	default:
		if i := l.indexes[p.place]; i >= 0 {
			return l.parts[i]
		}
	}
	return nil
}

// member finds the member at a plain path.
func (l *customLine) member(p *customPath) *value {
	if p.deep {
		v := l.found.value(dig(l.json, p.plain))
		return &v
	}
	return l.found.at(p.place)
}
