package identity

import (
	"cmp"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/agnivade/levenshtein"
	"github.com/cespare/xxhash/v2"
	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"github.com/postern/postern/flow"
)

// entry is what an inventory, or an API, says about addresses or about a subject, in
// the words it used.
type entry struct {
	addresses                                []string
	subject                                  string
	workload, device, user, account, posture string
	groups                                   []string
	since, until                             string
	disabled                                 bool
	unread                                   bool // it names addresses that could not be read
}

// entryFields are the names of an entry's fields, in files and in answers.
var entryFields = []string{"address", "addresses", "workload", "device", "user", "account", "groups", "posture", "since", "until"}

// fieldError is what is wrong with a field of an entry, and what would be right.
type fieldError struct {
	field, what, right string
}

func (e *fieldError) Error() string { return e.what + "; " + e.right }

const (
	maxEntryAddresses = 256
	maxEntryGroups    = 1024
	// maxEntryName is what [flow.Names] keeps of a name. A longer one is not cut: two that
	// begin alike would become one.
	maxEntryName = 256
)

// facts are what an entry says, one an address or one of its subject. addrs are the
// addresses that it is about, also where something else is wrong; none if one of them cannot
// be read, since it may be any.
func (e *entry) facts() (facts []flow.Fact, addrs []flow.Addr, err *fieldError) {
	note := func(field, what, right string) {
		if err == nil {
			err = &fieldError{field, what, right}
		}
	}
	if len(e.addresses) > maxEntryAddresses {
		note("addresses", fmt.Sprintf("it has %d addresses", len(e.addresses)), fmt.Sprintf("write at most %d an entry", maxEntryAddresses))
		e.addresses, e.unread = e.addresses[:maxEntryAddresses], true
	}
	for _, s := range e.addresses {
		a, what, right := readAddress(s)
		if what != "" {
			note("address", what, right)
			e.unread = true
			continue
		}
		if !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	f := flow.Fact{Disabled: e.disabled}
	for _, t := range [...]struct {
		field, value string
		into         *string
	}{{"subject", e.subject, &f.Subject}, {"workload", e.workload, &f.Workload}, {"device", e.device, &f.Device}, {"user", e.user, &f.User},
		{"account", e.account, &f.Account}, {"posture", e.posture, &f.Posture}} {
		v, what, right := readName(t.field, t.value)
		if what != "" {
			note(t.field, what, right)
		}
		*t.into = v
	}
	for _, g := range e.groups {
		v, what, right := readName("group", g)
		if what != "" {
			note("groups", what, right)
		} else if v != "" {
			f.Groups = append(f.Groups, v)
		}
	}
	if len(f.Groups) > maxEntryGroups {
		note("groups", fmt.Sprintf("it has %d groups", len(f.Groups)), fmt.Sprintf("write at most %d", maxEntryGroups))
	}
	slices.Sort(f.Groups)
	f.Groups = slices.Compact(f.Groups)
	for _, t := range [...]struct {
		field, value string
		into         *flow.Time
	}{{"since", e.since, &f.Since}, {"until", e.until, &f.Until}} {
		v, what, right := readTime(t.field, t.value)
		if what != "" {
			note(t.field, what, right)
		}
		*t.into = v
	}
	switch {
	case err != nil:
	case f.Until != 0 && f.Since != 0 && f.Until <= f.Since:
		note("until", "it ends before it begins", "write a time after since")
	case len(e.addresses) == 0 && f.Subject == "":
		note("address", "it names no address", "write one, such as 10.1.2.3 or 2001:db8::3")
	case len(e.addresses) > 0 && f.Subject != "":
		note("subject", "it is about addresses and about a subject", "write an entry for each")
	case f.Subject == "" && f.Workload == "" && f.Device == "" && f.User == "" && f.Account == "" && len(f.Groups) == 0 && f.Posture == "":
		note("workload", "it says nothing about its address", "write a workload, device, user, account, groups or posture")
	}
	held := addrs
	if e.unread {
		addrs = nil
	}
	if err != nil {
		return nil, addrs, err
	}
	if f.Subject != "" {
		f.Kind = flow.FactDirectory
		return []flow.Fact{f}, nil, nil
	}
	f.Kind = flow.FactStatic
	if f.Since != 0 || f.Until != 0 {
		f.Kind = flow.FactLease
	}
	for _, a := range held {
		f.Addr = a
		facts = append(facts, f)
	}
	return facts, addrs, nil
}

func readAddress(s string) (a flow.Addr, what, right string) {
	s = strings.TrimSpace(s)
	ip, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		if p, perr := netip.ParsePrefix(s); perr == nil {
			return a, fmt.Sprintf("%s is a prefix", quoted(s)), fmt.Sprintf("write single addresses, such as %s; what holds for a whole prefix is a segment of the policy", p.Addr())
		}
		return a, fmt.Sprintf("%s is no address", quoted(s)), "write one such as 10.1.2.3 or 2001:db8::3"
	case ip.Zone() != "":
		return a, fmt.Sprintf("%s has a zone, which means something on one machine only", quoted(s)), "write an address without %"
	case ip.IsUnspecified() || ip.IsMulticast():
		return a, fmt.Sprintf("%s is held by nobody", quoted(s)), "write the address of one host"
	}
	return flow.AddrFromNetip(ip).Canonical(), "", ""
}

func readName(field, s string) (name, what, right string) {
	s = strings.TrimSpace(s)
	switch {
	case len(s) > maxEntryName:
		return "", fmt.Sprintf("%s is %d bytes long", field, len(s)), fmt.Sprintf("keep names within %d", maxEntryName)
	case !utf8.ValidString(s):
		return "", field + " is not UTF-8", "save it as UTF-8"
	case strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) }):
		return "", fmt.Sprintf("%s %s holds what cannot be seen", field, quoted(s)), "write it without control and formatting characters"
	}
	return s, "", ""
}

func readTime(field, s string) (at flow.Time, what, right string) {
	if s = strings.TrimSpace(s); s == "" {
		return 0, "", ""
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		right := "write it as 2026-10-01T09:00:00Z"
		for _, l := range [][2]string{{"2006-01-02T15:04:05", "Z"}, {"2006-01-02 15:04:05", "Z"}, {"2006-01-02", "T00:00:00Z"}, {"2006-01-02T15:04", ":00Z"}, {"2006-01-02 15:04", ":00Z"}} {
			if _, err := time.Parse(l[0], s); err == nil {
				right = "times carry a zone: write " + strings.Replace(s, " ", "T", 1) + l[1]
			}
		}
		return 0, fmt.Sprintf("%s %s is no time", field, quoted(s)), right
	}
	if at = flow.TimeOf(t); at <= 0 || t.Year() > 9999 {
		return 0, fmt.Sprintf("%s %s is out of range", field, quoted(s)), "write a year from 1970 to 9999"
	}
	return at, "", ""
}

// nearestField suggests a known name.
func nearestField(got string, known []string) string {
	best, distance := "", 1+max(2, min(len(got), 64)/2)
	for _, k := range known {
		if d := levenshtein.ComputeDistance(strings.ToLower(got[:min(len(got), 64)]), k); d < distance {
			best, distance = k, d
		}
	}
	if best == "" {
		return "it is one of " + strings.Join(known, ", ")
	}
	return fmt.Sprintf("did you mean %s? It is one of %s", quoted(best), strings.Join(known, ", "))
}

// Bounds of an inventory.
const (
	maxInventoryFile  = 64 << 20 // 200,000 rows are about 20 MB
	maxInventoryYAML  = 4 << 20  // 50,000 entries, whose nodes take some 500 MB while they are read
	maxInventoryFiles = 1024
	maxInventoryRow   = 64 << 10
	// settleFor is how long a file must have been left alone before it is read: an editor
	// or a copy may still be writing it, and half a row is another row.
	settleFor = 2 * time.Second
	// settleWithin is how long a read waits for that.
	settleWithin = 30 * time.Second
)

// inventory reads a file, or all files of a folder whose names end in .csv, .yaml or
// .yml and do not begin with a dot.
type inventory struct {
	path string
	log  *slog.Logger

	sum     uint64 // of what was read last
	known   bool
	facts   []flow.Fact
	partial *partialError
}

// newInventory makes a source of a file or folder.
func newInventory(cfg InventoryConfig, stateDir string, clock func() flow.Time, log *slog.Logger, met *metrics) (*polled, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r := &inventory{path: cfg.Path, log: log.With("source", cfg.Name)}
	return newPolled(cfg.Name, flow.FactStatic, cfg.Every, cfg.StaleAfter, r, stateDir, clock, log, met), nil
}

// fileState is what tells one version of a file from the next without reading it.
type fileState struct {
	path string
	size int64
	at   time.Time
}

func (r *inventory) files() ([]fileState, error) {
	info, err := os.Stat(r.path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []fileState{{r.path, info.Size(), info.ModTime()}}, nil
	}
	names, err := os.ReadDir(r.path)
	if err != nil {
		return nil, err
	}
	var out []fileState
	for _, d := range names {
		if strings.HasPrefix(d.Name(), ".") || !isInventoryFile(d.Name()) {
			continue
		}
		path := filepath.Join(r.path, d.Name())
		info, err := os.Stat(path) // through symbolic links, as Kubernetes mounts have them
		if err != nil {
			return nil, err
		}
		if info.IsDir() {
			continue
		}
		if len(out) == maxInventoryFiles {
			return nil, fmt.Errorf("%s holds more than %d files", r.path, maxInventoryFiles)
		}
		out = append(out, fileState{path, info.Size(), info.ModTime()})
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s holds no file that ends in .csv, .yaml or .yml, as where a share is not mounted; where nothing is what you mean, keep a file without entries", r.path)
	}
	return out, nil
}

func isInventoryFile(name string) bool {
	return slices.Contains([]string{".csv", ".yaml", ".yml"}, strings.ToLower(filepath.Ext(name)))
}

// watch implements watcher.
func (r *inventory) watch(ctx context.Context) <-chan struct{} {
	dir := r.path
	if info, err := os.Stat(r.path); err == nil && !info.IsDir() {
		dir = filepath.Dir(r.path)
	}
	events := watchFolder(ctx, dir, r.log)
	out := make(chan struct{}, 1)
	go func() {
		tick := time.NewTicker(settleFor)
		defer tick.Stop()
		before, _ := r.files() // what cannot be read is for read to say
		for {
			select {
			case <-ctx.Done():
				return
			case <-events:
			case <-tick.C:
			}
			if now, err := r.files(); err == nil && !slices.Equal(before, now) {
				before = now
				select {
				case out <- struct{}{}:
				default:
				}
			}
		}
	}()
	return out
}

// settled waits until the files have been left alone for a while.
func (r *inventory) settled(ctx context.Context) ([]fileState, error) {
	files, err := r.files()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	if !slices.ContainsFunc(files, func(f fileState) bool { return now.Sub(f.at) < settleFor }) {
		return files, nil
	}
	for deadline := now.Add(settleWithin); ; {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(settleFor):
		}
		after, err := r.files()
		if err != nil {
			return nil, err
		}
		if slices.Equal(files, after) {
			return files, nil
		}
		if files = after; time.Now().After(deadline) {
			return nil, fmt.Errorf("%s goes on changing; write a new file beside it and rename that", r.path)
		}
	}
}

// read implements reader. A file that is no inventory at all fails the whole: nothing
// that another file may have taken over from it is told.
func (r *inventory) read(ctx context.Context) ([]flow.Fact, error) {
	files, err := r.settled(ctx)
	if err != nil {
		return nil, err
	}
	contents := make([][]byte, len(files))
	hash := xxhash.New()
	for i, f := range files {
		if contents[i], err = readBounded(f.path); err != nil {
			return nil, err
		}
		fmt.Fprintf(hash, "%q %d\n", f.path, len(contents[i]))
		_, _ = hash.Write(contents[i]) // a hash takes everything
	}
	if after, err := r.files(); err != nil || !slices.Equal(files, after) {
		return nil, cmp.Or(err, fmt.Errorf("%s changed while it was read", r.path))
	}
	if sum := hash.Sum64(); !r.known || sum != r.sum {
		r.known = false
		var facts []flow.Fact
		partial := &partialError{}
		for i, f := range files {
			facts, err = readInventory(f.path, contents[i], facts, partial)
			if err != nil {
				return nil, permanent(err)
			}
		}
		r.sum, r.known, r.facts, r.partial = sum, true, facts, partial
	}
	return r.facts, r.partial.orNil()
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxInventoryFile+1))
	if err == nil && len(b) > maxInventoryFile {
		err = fmt.Errorf("%s is larger than %v; divide it and name the folder", path, flow.Size(maxInventoryFile))
	}
	return b, err
}

// readInventory adds what a file says to facts, and what cannot be read of it to partial.
func readInventory(path string, b []byte, facts []flow.Fact, partial *partialError) ([]flow.Fact, error) {
	text := strings.TrimPrefix(string(b), "\ufeff")
	if strings.EqualFold(filepath.Ext(path), ".csv") {
		return readInventoryCSV(path, text, facts, partial)
	}
	return readInventoryYAML(path, text, facts, partial)
}

func at(path string, line, column int, err error) error {
	return fmt.Errorf("%s:%d:%d: %w", path, line, column, err)
}

// readInventoryCSV reads rows (RFC 4180, but a row is a line: no field holds a line
// break). The delimiter is the one of , and ; that the header has more of. Empty lines
// and lines that begin with # are passed over.
func readInventoryCSV(path, text string, facts []flow.Fact, partial *partialError) ([]flow.Fact, error) {
	var columns []string
	var comma rune
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimRight(line, "\r\n")
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if columns == nil {
			if comma = ','; strings.Count(line, ";") > strings.Count(line, ",") {
				comma = ';'
			}
			var err error
			if columns, err = inventoryHeader(path, number, line, comma); err != nil {
				return nil, err
			}
			continue
		}
		e, where, err := inventoryRow(columns, line, comma)
		if err != nil {
			// What can be read of the row says what it is about.
			_, addrs, _ := e.facts()
			partial.add(at(path, number, where(err.field), err), addrs, "")
			continue
		}
		more, addrs, err := e.facts()
		if err != nil {
			partial.add(at(path, number, where(err.field), err), addrs, "")
			continue
		}
		if facts = append(facts, more...); len(facts) > maxFacts {
			return nil, fmt.Errorf("%s:%d: it names more than %d addresses", path, number, maxFacts)
		}
	}
	if columns == nil {
		return nil, at(path, 1, 1, errors.New("there is no header; write one such as address,workload,device,user,groups"))
	}
	return facts, nil
}

func inventoryHeader(path string, number int, line string, comma rune) ([]string, error) {
	r := csv.NewReader(strings.NewReader(line))
	r.Comma = comma
	columns, err := r.Read()
	if err != nil {
		return nil, at(path, number, csvColumn(err), errors.New("the header is no CSV; write it such as address,workload,device,user,groups"))
	}
	for i, c := range columns {
		_, column := r.FieldPos(i)
		name := strings.ToLower(strings.TrimSpace(c))
		if !slices.Contains(entryFields, name) {
			return nil, at(path, number, column, fmt.Errorf("there is no column %s; %s", quoted(c), nearestField(name, entryFields)))
		}
		if slices.Contains(columns[:i], name) {
			return nil, at(path, number, column, fmt.Errorf("the column %s is there twice; keep one of them", quoted(name)))
		}
		columns[i] = name
	}
	if !slices.Contains(columns, "address") && !slices.Contains(columns, "addresses") {
		return nil, at(path, number, 1, errors.New("no column is address; write one, with an address or several in each row"))
	}
	return columns, nil
}

func csvColumn(err error) int {
	if p, ok := errors.AsType[*csv.ParseError](err); ok {
		return max(p.Column, 1)
	}
	return 1
}

// inventoryRow takes a row apart; where gives the column at which a field stands.
func inventoryRow(columns []string, line string, comma rune) (e entry, where func(field string) int, err *fieldError) {
	if len(line) > maxInventoryRow {
		return e, func(string) int { return 1 }, &fieldError{"", fmt.Sprintf("the row is %d bytes long", len(line)), fmt.Sprintf("keep it within %d", maxInventoryRow)}
	}
	fields, column, wrong := splitRow(line, comma)
	where = func(field string) int {
		i := slices.Index(columns, field)
		if i < 0 && field == "address" {
			i = slices.Index(columns, "addresses")
		}
		if field == "too many" {
			i = len(columns)
		}
		if i < 0 || i >= len(fields) {
			return 1
		}
		return column(i)
	}
	for i, v := range fields {
		if i < len(columns) {
			e.set(columns[i], v)
		}
	}
	if wrong > 0 {
		return e, func(string) int { return wrong }, &fieldError{"", "the quotes do not fit", `put the whole field in quotes and write "" for one within it`}
	}
	if len(fields) > len(columns) {
		return e, where, &fieldError{"too many", fmt.Sprintf("the row has %d fields, the header %d", len(fields), len(columns)), "put a field with the delimiter in it in quotes"}
	}
	if len(fields) < len(columns) && len(fields) < 2 {
		return e, where, &fieldError{"", fmt.Sprintf("the row has %d fields, the header %d", len(fields), len(columns)), "leave fields empty, but write their delimiters"}
	}
	return e, where, nil
}

// splitRow divides a row; column says where a field begins. wrong is where quotes do not
// fit, else 0; the fields are then what can be made of the row all the same, since it may
// still say which addresses it is about.
func splitRow(line string, comma rune) (fields []string, column func(i int) int, wrong int) {
	if !strings.Contains(line, `"`) { // as most rows are, and several times quicker
		fields = strings.Split(line, string(comma))
		return fields, func(i int) (n int) {
			for _, f := range fields[:i] {
				n += len(f) + 1
			}
			return n + 1
		}, 0
	}
	read := func(lazy bool) (r *csv.Reader, err error) {
		r = csv.NewReader(strings.NewReader(line))
		r.Comma, r.FieldsPerRecord, r.LazyQuotes = comma, -1, lazy
		fields, err = r.Read()
		return r, err
	}
	r, err := read(false)
	if err != nil {
		wrong = csvColumn(err)
		if r, err = read(true); err != nil {
			fields = nil
		}
	}
	return fields, func(i int) int { _, n := r.FieldPos(i); return n }, wrong
}

// set sets a field by its name. Addresses may be divided by blanks, commas, semicolons
// and bars, groups by all of these but blanks.
func (e *entry) set(field, value string) {
	switch field {
	case "address", "addresses":
		e.addresses = append(e.addresses, strings.FieldsFunc(value, func(r rune) bool { return unicode.IsSpace(r) || strings.ContainsRune(",;|", r) })...)
	case "groups":
		for _, g := range strings.FieldsFunc(value, func(r rune) bool { return strings.ContainsRune(",;|", r) }) {
			if g = strings.TrimSpace(g); g != "" {
				e.groups = append(e.groups, g)
			}
		}
	case "workload":
		e.workload = value
	case "device":
		e.device = value
	case "user":
		e.user = value
	case "account":
		e.account = value
	case "posture":
		e.posture = value
	case "since":
		e.since = value
	case "until":
		e.until = value
	}
}

// readInventoryYAML reads a list of entries, by itself or under the key inventory.
func readInventoryYAML(path, text string, facts []flow.Fact, partial *partialError) (_ []flow.Fact, err error) {
	wrong := func(t *token.Token, format string, a ...any) error {
		line, column := 1, 1
		if t != nil && t.Position != nil {
			line, column = max(t.Position.Line, 1), max(t.Position.Column, 1)
		}
		return at(path, line, column, fmt.Errorf(format, a...))
	}
	defer func() {
		if p := recover(); p != nil {
			err = wrong(nil, "the YAML reader failed on this file; write plain YAML (%v)", p)
		}
	}()
	if len(text) > maxInventoryYAML {
		return nil, wrong(nil, "it is larger than %v; divide it, or write CSV", flow.Size(maxInventoryYAML))
	}
	if !utf8.ValidString(text) {
		return nil, wrong(nil, "the file is not UTF-8; save it as UTF-8")
	}
	tokens := lexer.Tokenize(text)
	if t, what := screenYAML(tokens); t != nil {
		return nil, wrong(t, "%s; write plain values", what)
	}
	file, perr := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if perr != nil {
		if syntax, ok := errors.AsType[yaml.Error](perr); ok {
			message, _, _ := strings.Cut(syntax.GetMessage(), "\n")
			return nil, wrong(syntax.GetToken(), "this is no YAML: %s; write a list of entries such as - address: 10.1.2.3", message)
		}
		return nil, wrong(nil, "this is no YAML; write a list of entries such as - address: 10.1.2.3")
	}
	for _, doc := range file.Docs {
		body := doc.Body
		switch body.(type) {
		case nil, *ast.NullNode, *ast.CommentGroupNode:
			continue
		}
		if pairs := yamlPairs(body); pairs != nil {
			if len(pairs) != 1 || pairs[0].Key.GetToken().Value != "inventory" {
				key := pairs[min(1, len(pairs)-1)].Key.GetToken()
				return nil, wrong(key, "the key %s is not known here; write inventory: and below it a list of entries", quoted(key.Value))
			}
			body = pairs[0].Value
		}
		if _, empty := body.(*ast.NullNode); empty || body == nil {
			continue
		}
		list, ok := body.(*ast.SequenceNode)
		if !ok {
			return nil, wrong(body.GetToken(), "this is no list; begin each entry with - ")
		}
		for _, item := range list.Values {
			e, where, ferr := yamlEntry(item)
			more, addrs, err := e.facts()
			if err = cmp.Or(ferr, err); err != nil {
				partial.add(wrong(where(err.field), "%w", err), addrs, "")
				continue
			}
			if facts = append(facts, more...); len(facts) > maxFacts {
				return nil, wrong(item.GetToken(), "it names more than %d addresses", maxFacts)
			}
		}
	}
	return facts, nil
}

// screenYAML refuses what entries have no use for and what could hurt the parser:
// anchors and aliases (which multiply), tags, and deep nesting.
func screenYAML(tokens token.Tokens) (bad *token.Token, what string) {
	depth, line, dashes := 0, -1, 0
	for _, t := range tokens {
		switch t.Type {
		case token.AnchorType, token.AliasType, token.MergeKeyType:
			return t, "an anchor, alias or merge key is not part of an inventory"
		case token.TagType, token.DirectiveType, token.MappingKeyType:
			return t, "a tag, directive or complex key is not part of an inventory"
		case token.SequenceStartType, token.MappingStartType:
			depth++
		case token.SequenceEndType, token.MappingEndType:
			depth = max(0, depth-1)
		case token.SequenceEntryType:
			if t.Position != nil {
				if t.Position.Line != line {
					line, dashes = t.Position.Line, 0
				}
				dashes++
			}
		case token.MappingValueType:
			// Each level of a block begins further right than the one around it.
			if depth == 0 && t.Prev != nil && t.Prev.Position != nil && t.Prev.Position.Column > 32 {
				return t, "this is indented deeper than an inventory can be"
			}
		}
		if depth > 4 || dashes > 2 {
			return t, "this is nested deeper than an inventory can be"
		}
	}
	return nil, ""
}

func yamlPairs(n ast.Node) []*ast.MappingValueNode {
	switch n := n.(type) {
	case *ast.MappingNode:
		return n.Values
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}
	}
	return nil
}

// yamlEntry reads one entry; where gives the token of a field's value. What could be
// read is in e also if something is wrong.
func yamlEntry(n ast.Node) (e entry, where func(field string) *token.Token, err *fieldError) {
	tokens := map[string]*token.Token{"": n.GetToken()}
	where = func(field string) *token.Token {
		if t := tokens[field]; t != nil {
			return t
		}
		if t := tokens["addresses"]; t != nil && field == "address" {
			return t
		}
		return tokens[""]
	}
	pairs := yamlPairs(n)
	if pairs == nil {
		return e, where, &fieldError{"", "this entry is not keys with values", "write it such as address: 10.1.2.3"}
	}
	tokens[""] = pairs[0].Key.GetToken()
	for _, kv := range pairs {
		key := kv.Key.GetToken()
		name := key.Value
		if !slices.Contains(entryFields, name) {
			if err == nil {
				tokens[" "+name] = key
				err = &fieldError{" " + name, fmt.Sprintf("there is no key %s", quoted(name)), nearestField(name, entryFields)}
			}
			continue
		}
		about := name == "address" || name == "addresses"
		if tokens[name] != nil {
			e.unread = e.unread || about
			if err == nil {
				tokens[" "+name] = key
				err = &fieldError{" " + name, fmt.Sprintf("the key %s is there twice", quoted(name)), "keep one of them"}
			}
			continue
		}
		tokens[name] = key
		if kv.Value != nil {
			tokens[name] = kv.Value.GetToken()
		}
		values, ok := yamlTexts(kv.Value)
		if !ok || len(values) > 1 && !about && name != "groups" {
			e.unread = e.unread || about
			if err == nil {
				err = &fieldError{name, fmt.Sprintf("%s is no plain value", name), "write one value, or, of addresses and groups, a list of values"}
			}
			continue
		}
		for _, v := range values {
			switch name {
			case "address", "addresses":
				e.addresses = append(e.addresses, v)
			case "groups":
				e.groups = append(e.groups, v)
			default:
				e.set(name, v)
			}
		}
	}
	return e, where, err
}

// yamlTexts is a scalar, or a list of them, as written.
func yamlTexts(n ast.Node) ([]string, bool) {
	switch n := n.(type) {
	case nil, *ast.NullNode:
		return nil, true
	case *ast.StringNode:
		return []string{n.Value}, true
	case *ast.LiteralNode:
		return []string{n.Value.Value}, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return []string{n.GetToken().Value}, true
	case *ast.SequenceNode:
		var out []string
		for _, v := range n.Values {
			if _, nested := v.(*ast.SequenceNode); nested {
				return nil, false
			}
			t, ok := yamlTexts(v)
			if !ok {
				return nil, false
			}
			out = append(out, t...)
		}
		return out, true
	}
	return nil, false
}
