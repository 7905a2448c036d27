package agent

import (
	"errors"
	"fmt"
	"time"

	"github.com/valyala/fastjson"

	"github.com/postern/postern/flow"
)

// Origin says where lines come from.
type Origin struct {
	// Seed begins the ids of flows, a hash of the input's name: the same place in the
	// same input gives the same id.
	Seed uint64
	// Exporter is who sent the lines, the zero address if it was no host.
	Exporter flow.Addr
	// Observer is what the way in knows of who wrote the lines (a syslog's host name);
	// lines that name their own observer say so themselves.
	Observer string
	// Received is when they came.
	Received flow.Time
}

// NotFlow is what a line is instead of a flow. It is no fault of the line.
type NotFlow string

func (n NotFlow) Error() string { return "no flow: " + string(n) }

// Partial is what is wrong with a line of several flows some parts of which are no good. The
// flows of the others are in the batch.
type Partial struct {
	Bad, Parts int
	First      error // what is wrong with the first that is bad
}

func (p *Partial) Error() string {
	return fmt.Sprintf("%d of %d parts of the line: %v", p.Bad, p.Parts, p.First)
}

func (p *Partial) Unwrap() error { return p.First }

// Config bounds and directs decoding.
type Config struct {
	// ClockTolerance is how far ahead of receipt a line's time may be. Beyond it the flow
	// is marked clock_skew, beyond 24 hours event time is receipt and it is marked
	// clock_unusable. Lines may be late by any time.
	ClockTolerance time.Duration `yaml:"clockTolerance"`
	// ZoneOffset is how far ahead of UTC the clocks of hosts are whose stamps have no zone
	// (RFC 3164), such as 2h or -5h. It does not follow summer time.
	ZoneOffset time.Duration `yaml:"zoneOffset"`
	// Custom are formats of the user's own. They are named like the others, and auto does not
	// guess them.
	Custom []CustomConfig `yaml:"custom"`
	// BelieveClock takes every time as it is written, for files.
	BelieveClock bool `yaml:"-"`

	customs []*customFormat // of Custom, after Compile
}

// Decoder turns the lines of one stream into records. What comes out depends on the lines
// that went in, on nothing else. Not safe for concurrent use.
type Decoder struct {
	cfg    Config
	names  *flow.Names
	format *Format // nil while it is not known yet
	parse  parser
	why    string
	json   fastjson.Parser
	text   []byte // to put names together
	entry  entry
}

// NewDecoder makes a decoder of lines of the named format, one of cfg.Custom or of [Formats],
// or of [Auto]. Names are
// interned in names, as from the network: they are cut at its bounds.
func NewDecoder(format string, cfg Config, names *flow.Names) (*Decoder, error) {
	d := &Decoder{cfg: cfg, names: names}
	if format == Auto {
		return d, nil
	}
	custom, err := cfg.customNamed(format)
	switch {
	case err != nil:
		return nil, err
	case custom != nil:
		d.use(&Format{Name: custom.name, Title: "of the configuration", new: custom.new})
		return d, nil
	}
	f, err := formatOf(format, cfg.Custom)
	if err != nil {
		return nil, err
	}
	d.use(f)
	return d, nil
}

func (d *Decoder) use(f *Format) { d.format, d.parse = f, f.new(d) }

// Format is the format of the stream and, with [Auto], why it is taken for that; empty
// while no line has told.
func (d *Decoder) Format() (name, why string) {
	if d.format == nil {
		return "", ""
	}
	return d.format.Name, d.why
}

// Prime takes in a line from the beginning of a stream that is gone on with further down: of
// a header it remembers what the lines behind it need. It gives no flows, and says whether the
// next line may be part of the header too.
func (d *Decoder) Prime(line []byte) (more bool) {
	var o Origin
	var not NotFlow
	return errors.As(d.Decode(line, 0, &o, flow.NewBatch(1, nil)), &not)
}

// errUnknownFormat is a line that no format recognises.
var errUnknownFormat = errors.New("no known format; name the format instead of auto")

// Decode appends the flows that line tells to out. pos tells the line from every other of
// its input. A line may tell several flows. If it tells none the error is a [NotFlow], or
// says what is wrong with the line; a [Partial] leaves the flows of its good parts in out.
// Nothing of line is kept.
func (d *Decoder) Decode(line []byte, pos uint64, o *Origin, out *flow.Batch) error {
	if d.format == nil && !d.recognise(line) {
		return errUnknownFormat
	}
	e := &d.entry
	*e = entry{d: d, o: o, seed: flow.Mix(flow.Mix(o.Seed) + pos), out: out, first: len(out.Records)}
	err := d.parse(line, e)
	d.release(line)
	if err == nil && len(out.Records) == e.first {
		err = NotFlow("without a flow")
	}
	if err != nil {
		if _, partial := errors.AsType[*Partial](err); !partial {
			out.Records = out.Records[:e.first]
			return err
		}
	}
	for i := e.first; i < len(out.Records); i++ {
		d.settle(&out.Records[i])
	}
	return err
}

const (
	// maxValues bounds the values of one JSON text. Of two bytes each, fastjson takes 400
	// bytes for one, since the places it outgrew are held by what points into them: of a line
	// of 16 MiB that would be 3 GiB. This many are 200 MiB; a block of Azure's has 70,000.
	maxValues = 1 << 19
	// longLine is a line which no room is kept for when it is read.
	longLine = 128 << 10
)

var errManyValues = fmt.Errorf("it has more than %d values; want fewer a line", maxValues)

// tree reads JSON. What it gives holds until the next call.
func (d *Decoder) tree(b []byte) (*fastjson.Value, error) {
	if len(b) > maxValues && moreValues(b, maxValues) {
		return nil, errManyValues
	}
	return d.json.ParseBytes(b)
}

// moreValues says whether JSON has more than n values.
func moreValues(b []byte, n int) bool {
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			end := scanText(b, i+1)
			if end < 0 {
				return false // it is none
			}
			i = end - 1
		case ',', '[', '{':
			if n--; n < 0 {
				return true
			}
		}
	}
	return false
}

// release gives up the room that reading a long line took.
func (d *Decoder) release(line []byte) {
	if len(line) > longLine {
		d.json = fastjson.Parser{}
	}
}

// recognise looks for the format of a line.
func (d *Decoder) recognise(line []byte) bool {
	var v *fastjson.Value
	if len(line) > 0 && (line[0] == '{' || line[0] == '[') {
		v, _ = d.tree(line)
	}
	for i := range formats {
		if why := formats[i].known(line, v); why != "" {
			d.use(&formats[i])
			d.why = why
			return true
		}
	}
	return false
}

// entry is a line that is being read.
type entry struct {
	d     *Decoder
	o     *Origin
	seed  uint64
	out   *flow.Batch
	first int  // of its flows in out
	timed bool // the format has settled the times by itself

	event *SessionEvent // what is filled instead, of logs of sessions
}

// flow adds a flow. It has what the way in knows; the format fills in the rest.
func (e *entry) flow(source flow.Source) *flow.Record {
	n := len(e.out.Records) - e.first
	r := e.out.Next()
	r.ID = flow.Mix(e.seed + uint64(n))
	r.Source = source
	r.Exporter, r.Received = e.o.Exporter, e.o.Received
	if e.o.Observer != "" {
		r.Observer = e.d.names.InternBytes([]byte(e.o.Observer))
	}
	return r
}

// parts counts the parts of a line that tells several flows.
type parts struct {
	n, bad int
	first  error
	not    error // a NotFlow
}

// took notes how reading a part went; from is how many records there were before it. What a
// part that failed has added is taken back.
func (p *parts) took(e *entry, from int, err error) {
	p.n++
	if err == nil {
		return
	}
	if _, not := errors.AsType[NotFlow](err); not {
		p.not = err
	} else if p.bad++; p.first == nil {
		p.first = err
	}
	e.out.Records = e.out.Records[:from]
}

// result is what reading all parts comes to.
func (p *parts) result(e *entry) error {
	switch {
	case p.bad > 0 && p.n > 1:
		return &Partial{Bad: p.bad, Parts: p.n, First: p.first}
	case p.bad > 0:
		return p.first
	case len(e.out.Records) == e.first && p.not != nil:
		return p.not
	}
	return nil
}

// name interns what a line calls something.
func (e *entry) name(b []byte) flow.Name { return e.d.names.InternBytes(b) }

// path interns parts with slashes between; parts that are empty are left out.
func (e *entry) path(parts ...[]byte) flow.Name {
	t := e.d.text[:0]
	for _, p := range parts {
		if len(p) == 0 {
			continue
		}
		if len(t) > 0 {
			t = append(t, '/')
		}
		t = append(t, p...)
	}
	e.d.text = t
	return e.d.names.InternBytes(t)
}

const clockUnusable = 24 * time.Hour

// settle completes a record that the format has filled: formats say what a line says, this
// says what it lacks.
func (d *Decoder) settle(r *flow.Record) {
	if !d.entry.timed {
		d.settleTimes(r)
	}
	if !r.All(flow.HasSrc | flow.HasDst) {
		r.Quality |= flow.QualityAddressMissing
	}
	if !r.Any(flow.HasBytes | flow.HasPackets) {
		r.Quality |= flow.QualityCounterMissing
	}
	if r.SrcIdentity != flow.NoName {
		r.Has |= flow.HasSrcIdentity
	}
	if r.DstIdentity != flow.NoName {
		r.Has |= flow.HasDstIdentity
	}
	if r.NamesFull() {
		r.Quality |= flow.QualityNamesFull
	}
}

func (d *Decoder) settleTimes(r *flow.Record) {
	r.Start, r.End = max(r.Start, 0), max(r.End, 0) // before 1970 is no time
	switch {
	case r.Start == 0 && r.End == 0:
		r.Quality |= flow.QualityTimeMissing
		r.Start, r.End = r.Received, r.Received
	case r.Start == 0:
		r.Has |= flow.HasEnd
		r.Start = r.End
	case r.End == 0:
		r.Has |= flow.HasStart
		r.End = r.Start
	default:
		r.Has |= flow.HasStart | flow.HasEnd
	}
	if r.End < r.Start {
		r.Quality |= flow.QualityTimeReversed
		r.End = r.Start
	}
	if ahead := r.End.Sub(r.Received); !d.cfg.BelieveClock && ahead > d.cfg.ClockTolerance {
		if ahead > clockUnusable {
			r.Quality |= flow.QualityClockUnusable
			r.Start, r.End = r.Received, r.Received
		} else {
			r.Quality |= flow.QualityClockSkew
			r.Skew = int32(ahead.Milliseconds())
		}
	}
}

// ofJSON makes the reader of a format whose lines are JSON objects, each by itself.
func ofJSON(read func(v *fastjson.Value, e *entry) error) func(*Decoder) parser {
	return func(d *Decoder) parser {
		return func(line []byte, e *entry) error {
			v, err := d.object(line)
			if err != nil {
				return err
			}
			return read(v, e)
		}
	}
}

// object reads a line that is a JSON object. It holds until the next call.
func (d *Decoder) object(line []byte) (*fastjson.Value, error) {
	v, err := d.tree(line)
	if err != nil {
		return nil, fmt.Errorf("no JSON: %w", err)
	}
	if v.Type() != fastjson.TypeObject {
		return nil, fmt.Errorf("a JSON %s; want an object", v.Type())
	}
	return v, nil
}

// Rename goes on with another table of names: what was decoded before keeps the old one.
func (d *Decoder) Rename(names *flow.Names) { d.names = names }

// DecodeSyslog is [Decoder.Decode] for a message as syslog carried it: its header is taken
// off, and the host that it names is the observer. Formats that are syslog's own, such as the
// kernel's, read the header themselves: their lines have no time but the header's.
func (d *Decoder) DecodeSyslog(message []byte, pos uint64, o *Origin, out *flow.Batch) error {
	d.entry = entry{d: d, o: o}
	h, text := d.entry.syslog(message)
	isJSON := len(text) > 0 && text[0] == '{'
	if !isJSON && (d.format == nil || readsHeader(d.format.Name)) {
		return d.Decode(message, pos, o, out)
	}
	from := *o
	if len(h.host) > 0 {
		from.Observer = string(h.host)
	}
	return d.Decode(text, pos, &from, out)
}

func readsHeader(format string) bool {
	switch format {
	case "conntrack", "netfilter", "cef", "guardicore":
		return true
	}
	return false
}
