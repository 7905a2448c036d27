package scenario

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing/fstest"
	"time"
	"unicode/utf8"

	"github.com/goccy/go-yaml"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/policy"
)

// Bounds of a file, so that no text makes the reader take much memory or time.
const (
	maxText  = 4 << 20
	maxLines = 50_000
	// maxFlows bounds the records of a file, repeats and ranges counted out: about 100 MB.
	maxFlows = 200_000
	// maxHosts bounds the addresses that one end of a line stands for.
	maxHosts = 65_536
	// maxAddrs bounds those of all ends of all lines, which is time more than memory.
	maxAddrs = 1 << 20
	// maxSilences bounds how often the source of identities is silent: each logon is held against
	// each.
	maxSilences = 100
	// maxErrors bounds what is said of one file.
	maxErrors = 50
)

// Scenario is a file that was read: what happens, in the order in which it arrives, and what
// must come of it.
type Scenario struct {
	// Name is the file's path as it was given.
	Name string
	// Settings are those it was read with and what the file's config lines change of them.
	Settings Settings
	// Config is the text of the config lines, for a configuration file of the program.
	Config string

	versions []Version
	stated   bool // the file states a policy
	facts    []flow.Fact
	hosts    map[string]host
	silences []silence
	hushed   []hush
	steps    []step
	expected []expectation
	shuffle  time.Duration // negative: the written order is part of the scenario
}

// host is what a name of a file stands for.
type host struct {
	addrs             []flow.Addr
	at                place
	segment, workload string // what the policy must say of it; empty: anything
}

// place is a line of a file.
type place struct {
	file string
	line int
}

// silence is a time in which an observer tells nothing.
type silence struct {
	at          policy.Pos
	addrs       []flow.Addr // of an agent's host, or of an exporter
	from, until flow.Time
}

// hush is a time in which the source of identities tells nothing, and how long after its last word
// what it said still counts.
type hush struct {
	from, until flow.Time
	limit       time.Duration
}

// identitySource is what the source of identities of a scenario is called, and hushLimit after how
// much silence what it said no longer counts where nothing is said.
const (
	identitySource = "scenario"
	hushLimit      = 15 * time.Minute
)

type stepKind uint8

const (
	stepFlow stepKind = iota
	stepTick
	stepSegment
	stepRestart
)

// step is one thing that reaches the program.
type step struct {
	kind    stepKind
	arrives flow.Time // orders the steps; equal ones stay in the order of the file
	at      flow.Time // of a tick
	rec     flow.Record
	line    *line
	agent   string // the agent's name; empty for a router
	answer  bool   // it is the half that the server sent
}

// line is what all records of one line share: its names, since a record holds ids of a
// table, and what their verdict must be.
type line struct {
	at      place
	user    string
	process [2]string // of the client, of the server
	want    expectation
	flows   int // records so far
}

// parser reads one file.
type parser struct {
	s    *Scenario
	open func(folder string) fs.FS

	file     string // that is read, and the line in it
	number   int
	folder   string // of the file, as seen from the scenario
	included bool
	text     int // bytes read
	diags    policy.Diagnostics

	block *block
	// clock is when the newest line arrives that stands in its place; behind, when all
	// above have arrived.
	clock, behind flow.Time
	previous      flow.Time         // the start of the flow before
	seen          map[string]uint64 // how often a line of this text came before
	flows         int
	addrs         int // that all lines named
	records       uint64
	config        []string
	named         map[flow.Addr]string // the hosts of one address, by it
	agents        map[flow.Addr]bool   // the hosts with an agent
}

// block is a line whose indented lines are its text.
type block struct {
	kind  string // policy, config
	pos   policy.Pos
	since flow.Time
	text  strings.Builder
}

// Read reads a scenario from a file; see [Parse]. Its policy folders are as seen from the file.
func Read(path string, set Settings) (*Scenario, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, b, set, func(folder string) fs.FS {
		return os.DirFS(filepath.Join(filepath.Dir(path), filepath.FromSlash(folder)))
	})
}

// Parse reads a scenario from its text. name is what errors call it, set what its config lines
// change; open gives the policy folders that it names. The error is [policy.Diagnostics]: each says where, what is wrong
// and what would be right.
func Parse(name string, text []byte, set Settings, open func(folder string) fs.FS) (*Scenario, error) {
	p := &parser{open: open, seen: map[string]uint64{}, named: map[flow.Addr]string{}, agents: map[flow.Addr]bool{}, clock: policy.Always, behind: policy.Always,
		s: &Scenario{Name: name, Settings: set, hosts: map[string]host{}}}
	p.lines(name, text)
	p.finish()
	if err := p.diags.Err(); err != nil {
		return nil, err
	}
	return p.s, nil
}

// lines reads a file.
func (p *parser) lines(file string, text []byte) {
	p.file, p.number = file, 1
	if p.text += len(text); p.text > maxText {
		p.wrong(1, fmt.Sprintf("with this file the scenario has %d bytes", p.text), fmt.Sprintf("it may have %d; use repeats (every … times …) and ranges", maxText))
		return
	}
	text = bytes.TrimPrefix(text, []byte("\ufeff")) // some editors begin a file so
	if !utf8.Valid(text) {
		p.wrong(1, "the file is no text", "save it as UTF-8")
		return
	}
	p.number = 0
	for l := range strings.Lines(string(text)) {
		if p.number++; len(p.diags) >= maxErrors {
			break
		}
		if p.number > maxLines {
			p.wrong(1, fmt.Sprintf("the file has more than %d lines", maxLines), "use repeats (every … times …) and ranges, or several files")
			break
		}
		p.line(strings.TrimRight(l, "\r\n"))
	}
	p.endBlock()
}

// include reads: include FILE
func (p *parser) include(words []word) {
	const form = "write: include FILE, a file as seen from this one, with hosts, a policy, or what happens everywhere all day"
	switch {
	case len(words) != 2:
		p.wrong(words[0].column, "one file is included by a line", form)
		return
	case p.included:
		p.wrong(words[0].column, "a file that is included includes another", "include both from the scenario itself")
		return
	case p.open == nil:
		p.wrong(words[1].column, "no file can be read here", "write what is in it into the scenario")
		return
	}
	folder, name := path.Split(words[1].text)
	text, err := fs.ReadFile(p.open(path.Clean(folder)), name)
	if err != nil {
		p.wrong(words[1].column, fmt.Sprintf("%q cannot be read: %v", words[1].text, err), form)
		return
	}
	file, number := p.file, p.number
	p.included, p.folder = true, folder
	p.lines(path.Join(path.Dir(file), words[1].text), text)
	p.included, p.folder, p.file, p.number = false, "", file, number
}

func (p *parser) here() place { return place{p.file, p.number} }

func (p *parser) wrong(column int, wrong, right string) {
	p.diags = append(p.diags, policy.Diagnostic{Pos: policy.Pos{File: p.file, Line: p.number, Column: column}, Wrong: wrong, Right: right})
}

// line reads one line.
func (p *parser) line(text string) {
	if p.block != nil && (strings.TrimSpace(text) == "" || text[0] == ' ' || text[0] == '\t') {
		p.block.text.WriteString(text + "\n")
		return
	}
	p.endBlock()
	if strings.TrimSpace(text) == "" || strings.HasPrefix(strings.TrimSpace(text), "#") {
		return
	}
	if text[0] == ' ' || text[0] == '\t' {
		p.wrong(1, "an indented line belongs to nothing", "begin it at the margin; only the lines below policy and config are indented")
		return
	}
	words, ok := p.split(text)
	if !ok {
		return
	}
	switch first := words[0]; first.text {
	case "policy":
		p.policy(words)
	case "config":
		if len(words) > 1 {
			p.wrong(words[1].column, fmt.Sprintf("config takes nothing on its line, not %q", words[1].text), "write the settings below it, indented, as in postern.yaml")
		}
		p.block = &block{kind: "config", pos: policy.Pos{File: p.file, Line: p.number, Column: 1}}
	case "include":
		p.include(words)
	case "host":
		p.host(words)
	case "logon":
		p.logon(words)
	case "silent":
		p.silent(words)
	case "flow", "session":
		p.flow(words, text)
	case "tick":
		p.tick(words)
	case "segment", "restart":
		p.mark(words)
	case "shuffle":
		p.shuffled(words)
	default:
		if !p.expectation(words) {
			p.wrong(first.column, fmt.Sprintf("%q begins no line of a scenario", first.text),
				strings.Replace(nearestOf(first.text, lineWords), "write one of", "a line begins with # for a remark, or with one of", 1))
		}
	}
}

var lineWords = []string{"policy", "config", "include", "host", "logon", "silent", "flow", "session", "tick", "segment", "restart", "shuffle", "finding", "no finding", "any finding"}

// policy reads: policy [FOLDER] [since TIME]
func (p *parser) policy(words []word) {
	const form = "write: policy [FOLDER] [since TIME]; without FOLDER the indented lines below are the policy"
	b := &block{kind: "policy", pos: policy.Pos{File: p.file, Line: p.number, Column: 1}, since: policy.Always}
	rest, folder := words[1:], word{}
	if len(rest) > 0 && rest[0].text != "since" {
		folder, rest = rest[0], rest[1:]
	}
	switch {
	case len(rest) == 2 && rest[0].text == "since":
		var ok bool
		if b.since, ok = p.time(rest[1], false); !ok {
			return
		}
	case len(rest) != 0:
		p.wrong(rest[0].column, fmt.Sprintf("%q is not understood here", rest[0].text), form)
		return
	}
	p.s.stated = true
	if folder.text == "" {
		p.block = b
		return
	}
	if p.open == nil {
		p.wrong(folder.column, "a policy folder cannot be read here", "write the policy into the scenario, indented below the word policy")
		return
	}
	fsys := p.open(path.Join(p.folder, folder.text))
	if at, err := fs.Stat(fsys, "."); err != nil || !at.IsDir() {
		p.wrong(folder.column, fmt.Sprintf("there is no folder %s", path.Join(path.Dir(p.s.Name), p.folder, folder.text)), "name the folder that holds the policy files, as seen from this file")
		return
	}
	loaded, diags := policy.Load(fsys)
	if errs := diags.Errors(); len(errs) > 0 {
		for _, d := range errs {
			d.File = path.Join(folder.text, d.File)
			p.wrong(folder.column, fmt.Sprintf("the policy in %s cannot be used: %v", folder.text, d), "")
		}
		return
	}
	p.s.versions = append(p.s.versions, Version{loaded, b.since})
}

// endBlock takes in the indented lines that have ended.
func (p *parser) endBlock() {
	b := p.block
	if b == nil {
		return
	}
	p.block = nil
	// Empty lines before it give what is wrong in it the line that it has in the scenario.
	text := strings.Repeat("\n", b.pos.Line) + b.text.String()
	at := func(wrong, right string) {
		p.diags = append(p.diags, policy.Diagnostic{Pos: b.pos, Wrong: wrong, Right: right})
	}
	switch b.kind {
	case "policy":
		loaded, diags := policy.Load(fstest.MapFS{"policy.yaml": {Data: []byte(text)}})
		if errs := diags.Errors(); len(errs) > 0 {
			for _, d := range errs {
				d.File = b.pos.File
				p.diags = append(p.diags, d)
			}
			return
		}
		p.s.versions = append(p.s.versions, Version{loaded, b.since})
	case "config":
		set := p.s.Settings
		if strings.TrimSpace(text) == "" {
			at("nothing stands below config", "write settings there, indented, as in postern.yaml")
			return
		}
		if err := yaml.UnmarshalWithOptions([]byte(text), &set, yaml.Strict()); err != nil {
			wrong := yaml.FormatError(err, false, false)
			if e, ok := errors.AsType[yaml.Error](err); ok {
				wrong = e.GetMessage()
				if t := e.GetToken(); t != nil {
					b.pos.Line, b.pos.Column = t.Position.Line, t.Position.Column
				}
			}
			at("this setting cannot be read: "+wrong, "write it as in postern.yaml; the sections are enrich, sessions and detect")
			return
		}
		for _, v := range []interface{ Validate() error }{&set.Enrich, &set.Sessions, &set.Detect} {
			if err := v.Validate(); err != nil {
				at(err.Error(), "")
				return
			}
		}
		p.s.Settings = set
		p.config = append(p.config, b.text.String())
		if len(p.config) > 1 {
			at("there are settings already", "write all of them below one config line")
		}
	}
}

// tick reads: tick TIME
func (p *parser) tick(words []word) {
	if len(words) != 2 {
		p.wrong(words[0].column, "a tick has one time", "write: tick TIME; the injected clock says TIME then")
		return
	}
	at, ok := p.time(words[1], true)
	if !ok {
		return
	}
	p.previous = at
	p.clock = max(p.clock, at)
	p.behind = max(p.behind, p.clock)
	p.s.steps = append(p.s.steps, step{kind: stepTick, at: at, arrives: p.clock})
}

// mark reads: segment [TIME], restart [TIME]
func (p *parser) mark(words []word) {
	kind := stepSegment
	if words[0].text == "restart" {
		kind = stepRestart
	}
	st := step{kind: kind}
	switch len(words) {
	case 1: // behind all that stands above
		p.clock = p.behind
		st.arrives = p.behind
	case 2:
		at, ok := p.time(words[1], true)
		if !ok {
			return
		}
		st.arrives = at
	default:
		p.wrong(words[2].column, fmt.Sprintf("%q is not understood here", words[2].text), "write: "+words[0].text+" [TIME]; without TIME it is behind all that stands above")
		return
	}
	p.s.steps = append(p.s.steps, st)
}

// shuffled reads: shuffle WITHIN, shuffle none
func (p *parser) shuffled(words []word) {
	const form = "write: shuffle 20s, how much later than in order flows may arrive; or: shuffle none, where the written order matters"
	if len(words) != 2 {
		p.wrong(words[0].column, "shuffle takes one word", form)
		return
	}
	if words[1].text == "none" {
		p.s.shuffle = -1
		return
	}
	d, ok := p.duration(words[1])
	if !ok {
		return
	}
	if d <= 0 || d > 24*time.Hour {
		p.wrong(words[1].column, fmt.Sprintf("%q is no time to be late by", words[1].text), form)
		return
	}
	p.s.shuffle = d
}

// host reads: host NAME ADDRESS [segment NAME] [workload NAME] [agent]
func (p *parser) host(words []word) {
	const form = "write: host NAME ADDRESS [segment NAME] [workload NAME] [agent]; ADDRESS may be a prefix as 10.1.2.0/28 or a range as 10.1.2.1-50"
	if len(words) < 3 {
		p.wrong(words[0].column, "a host has a name and an address", form)
		return
	}
	name := words[1]
	if !isName(name.text) {
		p.wrong(name.column, fmt.Sprintf("%q is no name of a host", name.text), "begin it with a letter and write it with letters, digits, - and _")
		return
	}
	if name.text == logonsWord {
		p.wrong(name.column, "logons is what the source of identities is called", "give the host another name")
		return
	}
	if old, taken := p.s.hosts[name.text]; taken {
		p.wrong(name.column, fmt.Sprintf("the host %s is named in line %d already", name.text, old.at.line), "give each host one line")
		return
	}
	addrs, ok := p.addresses(words[2], words[2].text)
	if !ok {
		return
	}
	h := host{addrs: addrs, at: p.here()}
	for i := 3; i < len(words); i++ {
		switch w := words[i]; {
		case w.text == "agent":
			for _, a := range addrs {
				p.agents[a] = true
			}
		case (w.text == "segment" || w.text == "workload") && i+1 < len(words):
			i++
			if w.text == "segment" {
				h.segment = words[i].text
			} else {
				h.workload = words[i].text
			}
		default:
			p.wrong(w.column, fmt.Sprintf("%q is not understood here", w.text), form)
			return
		}
	}
	p.s.hosts[name.text] = h
	if len(addrs) == 1 {
		p.named[addrs[0]] = name.text
	}
}

// silent reads: silent HOST since TIME [until TIME]
func (p *parser) silent(words []word) {
	const form = "write: silent HOST since TIME [until TIME], of a host with an agent or of a router; or: silent logons since TIME [until TIME] [limit 15m]"
	if len(words) > 1 && words[1].text == logonsWord {
		p.hushed(words)
		return
	}
	if len(words) != 4 && len(words) != 6 || words[2].text != "since" || len(words) == 6 && words[4].text != "until" {
		p.wrong(words[0].column, "a silence has a host and a time", form)
		return
	}
	addrs, ok := p.addresses(words[1], words[1].text)
	if !ok {
		return
	}
	x := silence{at: policy.Pos{File: p.file, Line: p.number, Column: words[1].column}, addrs: addrs, until: math.MaxInt64}
	if x.from, ok = p.time(words[3], true); !ok {
		return
	}
	p.previous = x.from
	if len(words) == 6 {
		if x.until, ok = p.time(words[5], true); !ok {
			return
		}
		if x.until <= x.from {
			p.wrong(words[5].column, "the silence ends before it begins", form)
			return
		}
	}
	p.s.silences = append(p.s.silences, x)
}

// logonsWord names the source of identities where a host could stand.
const logonsWord = "logons"

// hushed reads: silent logons since TIME [until TIME] [limit DURATION]
func (p *parser) hushed(words []word) {
	const form = "write: silent logons since TIME [until TIME] [limit 15m], of the source of identities; the limit is how long after its last word what it said still counts"
	x := hush{until: math.MaxInt64, limit: hushLimit}
	if len(words) < 4 || len(words)%2 != 0 {
		p.wrong(words[0].column, "a silence has a time", form)
		return
	}
	for i := 2; i < len(words); i += 2 {
		var ok bool
		switch w := words[i+1]; {
		case i == 2 && words[i].text == "since":
			if x.from, ok = p.time(w, true); ok {
				p.previous = x.from
			}
		case i == 4 && words[i].text == "until":
			if x.until, ok = p.time(w, true); ok && x.until <= x.from {
				p.wrong(w.column, "the silence ends before it begins", form)
				return
			}
		case i > 2 && i+2 == len(words) && words[i].text == "limit":
			if x.limit, ok = p.duration(w); ok && x.limit < time.Minute {
				p.wrong(w.column, fmt.Sprintf("%q is no limit of a silence", w.text), "write 1m or more, as a source's staleAfter in postern.yaml")
				return
			}
		default:
			p.wrong(words[i].column, fmt.Sprintf("%q is not understood here", words[i].text), form)
			return
		}
		if !ok {
			return
		}
	}
	if len(p.s.hushed) >= maxSilences {
		p.wrong(1, fmt.Sprintf("the source of identities is silent more than %d times", maxSilences), "write fewer silences")
		return
	}
	p.s.hushed = append(p.s.hushed, x)
}

// logon reads: logon TIME USER HOST [until TIME]
func (p *parser) logon(words []word) {
	const form = "write: logon TIME USER HOST [until TIME]"
	if len(words) != 4 && (len(words) != 6 || words[4].text != "until") {
		p.wrong(words[0].column, "a logon has a time, a user and a host", form)
		return
	}
	at, ok := p.time(words[1], true)
	if !ok {
		return
	}
	p.previous = at
	f := flow.Fact{Source: identitySource, Kind: flow.FactSession, Since: at, Known: at, User: words[2].text,
		Session: fmt.Sprintf("%s:%d", p.file, p.number)}
	if len(words) == 6 {
		if f.Until, ok = p.time(words[5], true); !ok {
			return
		}
		if f.Until <= f.Since {
			p.wrong(words[5].column, "the logon ends before it begins", form)
			return
		}
	}
	addrs, ok := p.addresses(words[3], words[3].text)
	if !ok {
		return
	}
	if len(p.s.facts)+len(addrs) > maxFlows {
		p.wrong(words[3].column, fmt.Sprintf("there are more than %d logons", maxFlows), "name fewer hosts")
		return
	}
	for _, a := range addrs {
		f.Addr = a.Canonical()
		p.s.facts = append(p.s.facts, f)
	}
}

// finish looks at the file as a whole.
func (p *parser) finish() {
	p.s.Config = strings.Join(p.config, "")
	if len(p.diags) > 0 {
		return
	}
	for _, x := range p.s.silences { // a silence of nobody proves nothing
		if !slices.ContainsFunc(p.s.steps, func(st step) bool { return st.kind == stepFlow && slices.Contains(x.addrs, st.teller()) }) {
			p.diags = append(p.diags, policy.Diagnostic{Pos: x.at, Wrong: "nobody tells anything there who could be silent", Right: "name a host that its host line says has an agent, or the address of a router (192.0.2.1 where a flow says nothing else)"})
		}
	}
	if len(p.s.hushed) > 0 && len(p.s.facts) == 0 {
		p.diags = append(p.diags, policy.Diagnostic{Pos: policy.Pos{File: p.s.Name}, Wrong: "the source of identities is silent, and it never said anything", Right: "add a logon line"})
	}
	p.s.steps = slices.DeleteFunc(p.s.steps, func(st step) bool { return st.kind == stepFlow && p.s.silenced(&st) })
	if p.s.Flows() == 0 && len(p.diags) == 0 {
		p.diags = append(p.diags, policy.Diagnostic{Pos: policy.Pos{File: p.s.Name}, Wrong: "nothing happens in this scenario", Right: "add a flow or a session line"})
	}
	// The order of versions says nothing; two from one moment on do.
	for i, a := range p.s.versions {
		for _, b := range p.s.versions[:i] {
			if a.Since == b.Since && a.Policy.Hash() != b.Policy.Hash() {
				p.diags = append(p.diags, policy.Diagnostic{Pos: policy.Pos{File: p.s.Name}, Wrong: "two policies are in force from the same moment on", Right: "give each a since TIME of its own"})
			}
		}
	}
}

// teller is who tells of a record: an agent's host, or an exporter.
func (st *step) teller() flow.Addr {
	switch st.rec.Reporter {
	case flow.ReporterSource:
		return st.rec.Src
	case flow.ReporterDestination:
		return st.rec.Dst
	}
	return st.rec.Exporter
}

// silenced says whether whoever tells of a record is silent when it would.
func (s *Scenario) silenced(st *step) bool {
	return slices.ContainsFunc(s.silences, func(x silence) bool {
		return st.rec.End >= x.from && st.rec.End < x.until && slices.Contains(x.addrs, st.teller())
	})
}

// placed holds the hosts against what the policy says of them.
func (s *Scenario) placed(x *policy.Index, names *flow.Names) (out []Problem) {
	for _, name := range slices.Sorted(maps.Keys(s.hosts)) {
		h := s.hosts[name]
		if h.segment == "" && h.workload == "" {
			continue
		}
		for _, a := range h.addrs {
			segment, workload := "", ""
			if x != nil {
				e := x.Endpoint(a)
				segment, workload = names.Text(e.Segment), names.Text(e.Workload)
			}
			switch {
			case h.segment != "" && h.segment != segment:
				out = append(out, Problem{File: h.at.file, Line: h.at.line, Wrong: fmt.Sprintf("the policy has %s (%v) in segment %q, not in %q", name, a, segment, h.segment)})
			case h.workload != "" && h.workload != workload:
				out = append(out, Problem{File: h.at.file, Line: h.at.line, Wrong: fmt.Sprintf("the policy has %s (%v) as workload %q, not as %q", name, a, workload, h.workload)})
			default:
				continue
			}
			break
		}
	}
	return out
}
