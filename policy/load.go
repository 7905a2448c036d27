package policy

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"

	"github.com/postern/postern/flow"
)

// sourceFile is one policy file as it was read.
type sourceFile struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

// Load reads every *.yaml and *.yml of a folder and its subfolders and checks the
// whole. Names that begin with a dot are passed over (Kubernetes mounts keep their
// old versions there). With an error among the diagnostics there is no policy: an
// error never opens anything.
func Load(fsys fs.FS) (*Policy, Diagnostics) {
	files, diags := readFiles(fsys)
	if len(diags) > 0 {
		diags.sort()
		return nil, diags
	}
	return build(files)
}

// ParseSource reads back what [Policy.Source] gave.
func ParseSource(b []byte) (*Policy, error) {
	var files []sourceFile
	if err := json.Unmarshal(b, &files); err != nil {
		return nil, fmt.Errorf("policy: reading a stored version: %w", err)
	}
	p, diags := build(files)
	if err := diags.Err(); err != nil {
		return nil, fmt.Errorf("policy: reading a stored version: %w", err)
	}
	return p, nil
}

// Source is the full text of the policy's files, for keeping a version; the same
// files give the same bytes.
func (p *Policy) Source() []byte {
	b, err := json.Marshal(p.files)
	if err != nil { // plain strings
		panic("policy: " + err.Error())
	}
	return b
}

func isPolicyFile(name string) bool {
	ext := path.Ext(name)
	return ext == ".yaml" || ext == ".yml"
}

func readFiles(fsys fs.FS) (files []sourceFile, diags Diagnostics) {
	total := 0
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			diags.errorf(Pos{File: name}, "make it readable", "it cannot be read: %v", err)
			if d == nil || d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if name != "." && strings.HasPrefix(path.Base(name), ".") {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if d.IsDir() || !isPolicyFile(name) {
			return nil
		}
		if len(files) == maxFiles {
			diags.errorf(Pos{File: name}, fmt.Sprintf("keep a policy within %d files", maxFiles), "there are too many policy files")
			return fs.SkipAll
		}
		b, err := readFile(fsys, name)
		switch {
		case errors.Is(err, errTooLarge):
			diags.errorf(Pos{File: name}, fmt.Sprintf("keep a file within %v", flow.Size(maxFileSize)), "the file is too large")
		case err != nil:
			diags.errorf(Pos{File: name}, "make it a readable file", "it cannot be read: %v", err)
		default:
			if total += len(b); total > maxPolicySize {
				diags.errorf(Pos{File: name}, fmt.Sprintf("keep a policy within %v", flow.Size(maxPolicySize)), "the policy's files are too large together")
				return fs.SkipAll
			}
			files = append(files, sourceFile{name, string(b)})
		}
		return nil
	})
	if err != nil {
		diags.errorf(Pos{File: "."}, "make the folder readable", "it cannot be read: %v", err)
	}
	if len(diags) == 0 && len(files) == 0 {
		diags.errorf(Pos{File: "."}, "put *.yaml files there", "there is no policy file in the folder")
	}
	return files, diags
}

var errTooLarge = errors.New("too large")

func readFile(fsys fs.FS, name string) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if len(b) > maxFileSize {
		return nil, errTooLarge
	}
	return b, nil
}

// refKind is what a reference in a policy points at.
type refKind uint8

const (
	refSegment refKind = iota
	refZone
	refWorkload
	refApp
	refRole
	refEnv
)

var refTexts = []string{"segment", "zone", "workload", "app", "role", "env"}

type ref struct {
	kind refKind
	at   textAt
}

// builder gathers what the files say and then checks the whole.
type builder struct {
	reader
	p              Policy
	version        bool
	refs           []ref
	serviceAt      map[string]Pos
	ruleAt         map[string]Pos
	exceptAt       map[string]Pos
	suppressAt     map[string]Pos
	ruleServices   map[string][]textAt // by rule id
	exceptServices map[string][]textAt // by exception id
	overrides      map[string][]textAt // by exception id
	cidrs          []cidrAt
}

// cidrAt is a cidr in a selector, for the warning where a workload is known.
type cidrAt struct {
	prefix netip.Prefix
	pos    Pos
}

func build(files []sourceFile) (*Policy, Diagnostics) {
	var diags Diagnostics
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b sourceFile) int { return strings.Compare(a.Name, b.Name) })
	b := &builder{
		reader:    reader{diags: &diags},
		serviceAt: map[string]Pos{}, ruleAt: map[string]Pos{}, exceptAt: map[string]Pos{}, suppressAt: map[string]Pos{},
		ruleServices: map[string][]textAt{}, exceptServices: map[string][]textAt{}, overrides: map[string][]textAt{},
	}
	for _, f := range files {
		b.file = f.Name
		b.readFile(f.Text)
	}
	if len(diags.Errors()) == 0 && len(b.p.Segments) == 0 && len(b.p.Rules) == 0 && len(b.p.Exceptions) == 0 {
		diags.errorf(Pos{File: files0(files)}, "declare segments and rules", "the policy says nothing: no segments, no rules, no exceptions")
	}
	if !b.version && len(diags.Errors()) == 0 {
		diags.warnf(Pos{File: files0(files)}, "write postern: v1 in one of the files", "no file says which version of the language it is written in")
	}
	b.check()
	diags.sort()
	if diags.Err() != nil {
		return nil, diags
	}
	b.p.sort()
	b.p.files = files
	b.p.computeHash()
	return &b.p, diags
}

func files0(files []sourceFile) string {
	if len(files) == 0 {
		return "."
	}
	return files[0].Name
}

// readFile reads the documents of one file. Later sections of the language are
// further lines in the table.
func (b *builder) readFile(src string) {
	sections := map[string]func(ast.Node){
		"postern":      b.readVersion,
		"services":     b.readServices,
		"segments":     b.each("segments", b.readSegment),
		"workloads":    b.each("workloads", b.readWorkload),
		"rules":        b.each("rules", b.readRule),
		"exceptions":   b.each("exceptions", b.readException),
		"suppressions": b.each("suppressions", b.readSuppression),
	}
	for _, doc := range b.parse([]byte(src)) {
		switch doc.Body.(type) {
		case nil, *ast.NullNode, *ast.CommentGroupNode:
			continue
		}
		b.fields(doc.Body, "the policy", "write sections such as segments: and rules:", sections)
	}
}

func (b *builder) each(section string, read func(ast.Node)) func(ast.Node) {
	return func(n ast.Node) {
		if _, null := n.(*ast.NullNode); null || n == nil {
			return // a section with nothing in it yet
		}
		items, _ := b.items(n, section, "begin each item with - ")
		for _, item := range items {
			read(item)
		}
	}
}

func (b *builder) readVersion(n ast.Node) {
	if v, ok := b.text(n, "postern"); ok && v != "v1" {
		b.diags.errorf(b.pos(n), "write postern: v1", "version %s of the language is not known here", quote(v))
	} else if ok {
		b.version = true
	}
}

func (b *builder) readServices(n ast.Node) {
	if _, null := n.(*ast.NullNode); null || n == nil {
		return
	}
	values, _ := b.pairs(n, "services", "write name: tcp/443")
	for _, kv := range values {
		name, ok := b.key(kv)
		if !ok {
			continue
		}
		s := Service{Pos: b.pos(kv), Name: name}
		if _, err := ParseService(name); err == nil || strings.Contains(name, "/") {
			b.diags.errorf(s.Pos, "choose a name of its own", "the service name %s already means something", quote(name))
			continue
		}
		if before, twice := b.serviceAt[name]; twice {
			b.diags.errorf(s.Pos, "keep one of them; the other is at "+before.String(), "the service %s is declared twice", quote(name))
			continue
		}
		b.serviceAt[name] = s.Pos
		for _, v := range b.list(kv.Value, "service "+quote(name), b.name) {
			r, err := ParseService(v.text)
			if err != nil {
				b.wrong(v.pos, err)
				continue
			}
			s.Ranges = append(s.Ranges, r)
		}
		s.Ranges = mergeRanges(s.Ranges)
		b.p.Services = append(b.p.Services, s)
	}
}

// wrong notes an error that already reads "what is wrong; what would be right".
func (b *builder) wrong(p Pos, err error) {
	what, right, _ := strings.Cut(err.Error(), "; ")
	b.diags.errorf(p, right, "%s", what)
}

func (b *builder) require(present map[string]Pos, n ast.Node, what string, keys ...string) {
	for _, k := range keys {
		if _, ok := present[k]; !ok {
			b.diags.errorf(b.pos(n), "add "+k+":", "%s has no %s", what, k)
		}
	}
}

func (b *builder) readSegment(n ast.Node) {
	s := Segment{Pos: b.pos(n), Tier: TierNormal, Stage: StageObserve, DenyIn: true}
	direction := func(into *bool) func(ast.Node) {
		return func(n ast.Node) {
			if i, ok := b.oneOf(n, "default", "allow", "deny"); ok {
				*into = i == 1
			}
		}
	}
	present, ok := b.fields(n, "a segment", "write name: and prefixes:", map[string]func(ast.Node){
		"name": func(n ast.Node) { s.Name, _ = b.id(n, "a segment's name") },
		"zone": func(n ast.Node) { s.Zone, _ = b.id(n, "a zone") },
		"tier": func(n ast.Node) {
			if i, ok := b.oneOf(n, "tier", tierTexts[1:]...); ok {
				s.Tier = Tier(i + 1)
			}
		},
		"prefixes": func(n ast.Node) {
			for _, v := range b.list(n, "prefixes", b.name) {
				if p, ok := b.prefix(v, "a segment's prefix"); ok {
					s.Prefixes = append(s.Prefixes, p)
					s.prefixPos = append(s.prefixPos, v.pos)
				}
			}
		},
		"stage": func(n ast.Node) {
			if i, ok := b.oneOf(n, "stage", stageTexts[1:]...); ok {
				s.Stage = Stage(i + 1)
			}
		},
		"default": func(n ast.Node) {
			switch n.(type) {
			case *ast.MappingNode, *ast.MappingValueNode:
				b.fields(n, "default", "", map[string]func(ast.Node){"in": direction(&s.DenyIn), "out": direction(&s.DenyOut)})
			default:
				direction(&s.DenyIn)(n)
				direction(&s.DenyOut)(n)
			}
		},
		"agent": func(n ast.Node) {
			i, _ := b.oneOf(n, "agent", "optional", "required")
			s.AgentRequired = i == 1
		},
		"owner": func(n ast.Node) { s.Owner, _ = b.name(n, "owner") },
	})
	if !ok {
		return
	}
	b.require(present, n, "a segment", "name", "prefixes")
	if s.Name == InternetSegment {
		b.diags.errorf(s.Pos, "choose another name", "the segment name %s is reserved for whatever is in no segment and not private", quote(s.Name))
	}
	if s.Name != "" {
		b.p.Segments = append(b.p.Segments, s)
	}
}

func (b *builder) readWorkload(n ast.Node) {
	w := Workload{Pos: b.pos(n)}
	named := func(into *string, what string) func(ast.Node) {
		return func(n ast.Node) { *into, _ = b.name(n, what) }
	}
	present, ok := b.fields(n, "a workload", "write name: and addresses:", map[string]func(ast.Node){
		"name":  func(n ast.Node) { w.Name, _ = b.id(n, "a workload's name") },
		"app":   named(&w.App, "app"),
		"role":  named(&w.Role, "role"),
		"env":   named(&w.Env, "env"),
		"owner": named(&w.Owner, "owner"),
		"addresses": func(n ast.Node) {
			for _, v := range b.list(n, "addresses", b.name) {
				a, err := netip.ParseAddr(v.text)
				if err != nil || a.Zone() != "" {
					b.diags.errorf(v.pos, "write one address such as 10.20.0.11; prefixes belong to segments", "%s is no address", quote(v.text))
					continue
				}
				a = canonicalAddr(a)
				if isSpecial(flow.AddrFromNetip(a)) {
					b.diags.errorf(v.pos, "write the address the workload is reached at", "%s is no address of a workload: it is multicast, broadcast, link-local or unspecified", quote(v.text))
					continue
				}
				w.Addresses = append(w.Addresses, a)
				w.addressPos = append(w.addressPos, v.pos)
			}
		},
		"labels": func(n ast.Node) { w.Labels = b.labels(n, false) },
	})
	if !ok {
		return
	}
	b.require(present, n, "a workload", "name", "addresses")
	if w.Name != "" {
		b.p.Workloads = append(b.p.Workloads, w)
	}
}

func (b *builder) labels(n ast.Node, many bool) (out []Label) {
	values, ok := b.pairs(n, "labels", "write labels: {site: fra1}")
	if ok && len(values) == 0 {
		b.diags.errorf(b.pos(n), "name at least one, or leave the key out", "labels is empty")
	}
	seen := map[string]bool{}
	for _, kv := range values {
		k, ok := b.key(kv)
		if !ok {
			continue
		}
		if seen[k] {
			b.diags.errorf(b.pos(kv), "keep one of them", "labels has %s twice", quote(k))
			continue
		}
		seen[k] = true
		l := Label{Key: k}
		if many {
			for _, v := range b.list(kv.Value, "label "+quote(k), b.name) {
				l.Values = append(l.Values, v.text)
			}
		} else if v, ok := b.name(kv.Value, "label "+quote(k)); ok {
			l.Values = []string{v}
		}
		if len(l.Values) > 0 {
			l.Values = sortedSet(l.Values)
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b Label) int { return strings.Compare(a.Key, b.Key) })
	return out
}

func sortedSet[T cmp.Ordered](s []T) []T {
	slices.Sort(s)
	return slices.Compact(s)
}

// selector reads from:, to: or, with inNot, what stands under not:.
func (b *builder) selector(n ast.Node, what string, inNot bool) (s Selector) {
	s.Pos = b.pos(n)
	plain := func(into *[]string, key string, kind refKind, check bool, read func(ast.Node, string) (string, bool)) func(ast.Node) {
		return func(n ast.Node) {
			for _, v := range b.list(n, key, read) {
				if v.text == "*" {
					b.diags.errorf(v.pos, "leave the key out where it does not matter", "the language has no wildcard; %s %q means nothing", key, "*")
					continue
				}
				*into = append(*into, v.text)
				if check {
					b.refs = append(b.refs, ref{kind, v})
				}
			}
			*into = sortedSet(*into)
		}
	}
	handlers := map[string]func(ast.Node){
		"any": func(n ast.Node) {
			if i, ok := b.oneOf(n, "any", "true"); ok && i == 0 {
				s.Any = true
			}
		},
		"segment":  plain(&s.Segment, "segment", refSegment, true, b.id),
		"zone":     plain(&s.Zone, "zone", refZone, true, b.id),
		"workload": plain(&s.Workload, "workload", refWorkload, true, b.id),
		"app":      plain(&s.App, "app", refApp, true, b.name),
		"role":     plain(&s.Role, "role", refRole, true, b.name),
		"env":      plain(&s.Env, "env", refEnv, true, b.name),
		"identity": plain(&s.Identity, "identity", 0, false, b.name),
		"group":    plain(&s.Group, "group", 0, false, b.name),
		"process":  plain(&s.Process, "process", 0, false, b.name),
		"posture":  plain(&s.Posture, "posture", 0, false, b.name),
		"tier": func(n ast.Node) {
			items := []ast.Node{n}
			if seq, isSeq := n.(*ast.SequenceNode); isSeq {
				if items = seq.Values; len(items) == 0 {
					b.diags.errorf(b.pos(n), "name at least one, or leave the key out", "tier is an empty list")
				}
			}
			for _, n := range items {
				if i, ok := b.oneOf(n, "tier", tierTexts[1:]...); ok {
					s.Tier = append(s.Tier, Tier(i+1))
				}
			}
			s.Tier = sortedSet(s.Tier)
		},
		"cidr": func(n ast.Node) {
			for _, v := range b.list(n, "cidr", b.name) {
				if p, ok := b.prefix(v, "cidr"); ok {
					s.CIDR = append(s.CIDR, p)
					if !inNot {
						b.cidrs = append(b.cidrs, cidrAt{p, v.pos})
					}
				}
			}
			slices.SortFunc(s.CIDR, comparePrefix)
			s.CIDR = slices.Compact(s.CIDR)
		},
		"labels": func(n ast.Node) { s.Labels = b.labels(n, true) },
	}
	if !inNot {
		handlers["not"] = func(n ast.Node) {
			items := []ast.Node{n}
			if seq, isSeq := n.(*ast.SequenceNode); isSeq {
				if items = seq.Values; len(items) == 0 {
					b.diags.errorf(b.pos(n), "say what is taken away, or leave the key out", "not is an empty list")
				}
			}
			for _, n := range items {
				s.Not = append(s.Not, b.selector(n, what+": not", true))
			}
			slices.SortFunc(s.Not, compareSelector)
		}
	} else {
		handlers["not"] = func(n ast.Node) {
			b.diags.errorf(b.pos(n), "name what is meant under "+what[:len(what)-len(": not")], "not stands inside not")
		}
	}
	right := "write " + what + ": {segment: NAME}, or {any: true} for everything"
	if str, isStr := n.(*ast.StringNode); isStr && str.Value == "any" {
		right = "write " + what + ": {any: true}"
	}
	present, ok := b.fields(n, what, right, handlers)
	if !ok {
		return s
	}
	if len(present) == 0 {
		b.diags.errorf(b.pos(n), right, "%s is empty", what)
	}
	if s.Any && inNot {
		b.diags.errorf(s.Pos, "name what is taken away", "%s takes everything away", what)
	}
	if s.Any && s.keys() > 0 {
		b.diags.warnf(s.Pos, "leave any out", "any adds nothing beside other keys in %s", what)
	}
	return s
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// compareSelector orders the selectors of a not:, so that their order in the file
// does not show. Their JSON form says all there is to them.
func compareSelector(a, b Selector) int {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	if errX != nil || errY != nil { // plain data of marshalable types
		panic("policy: a selector that cannot be written down")
	}
	return strings.Compare(string(x), string(y))
}

func (b *builder) readRule(n ast.Node) {
	r := Rule{Pos: b.pos(n)}
	var services []textAt
	present, ok := b.fields(n, "a rule", "write id:, action:, from: and to:", map[string]func(ast.Node){
		"id": func(n ast.Node) { r.ID, _ = b.id(n, "a rule's id") },
		"action": func(n ast.Node) {
			if i, ok := b.oneOf(n, "action", actionTexts...); ok {
				r.Action = Action(i)
			}
		},
		"mode": func(n ast.Node) {
			i, _ := b.oneOf(n, "mode", "enforce", "staged")
			r.Staged = i == 1
		},
		"from":     func(n ast.Node) { r.From = b.selector(n, "from", false) },
		"to":       func(n ast.Node) { r.To = b.selector(n, "to", false) },
		"services": func(n ast.Node) { services = b.list(n, "services", b.name) },
		"owner":    func(n ast.Node) { r.Owner, _ = b.name(n, "owner") },
		"reason":   func(n ast.Node) { r.Reason, _ = b.text(n, "reason") },
	})
	if !ok {
		return
	}
	b.require(present, n, "a rule", "id", "action", "from", "to")
	if r.ID == "" {
		return
	}
	if before, twice := b.ruleAt[r.ID]; twice {
		b.diags.errorf(r.Pos, "choose another id; the other is at "+before.String(), "the rule %s is declared twice", quote(r.ID))
		return
	}
	b.ruleAt[r.ID] = r.Pos
	b.ruleServices[r.ID] = services
	b.p.Rules = append(b.p.Rules, r)
}

// exceptionClasses are the classes of exceptions.
var exceptionClasses = []string{"opt-out", "migration", "vendor", "break-glass"}

func (b *builder) readException(n ast.Node) {
	e := Exception{Pos: b.pos(n)}
	var services, overrides []textAt
	var approvals []Pos
	at := func(into *flow.Time, what string) func(ast.Node) {
		return func(n ast.Node) { *into, _ = b.time(n, what) }
	}
	named := func(into *string, what string) func(ast.Node) {
		return func(n ast.Node) { *into, _ = b.name(n, what) }
	}
	var revoked bool
	present, ok := b.fields(n, "an exception", "write id:, from:, to: and expires:", map[string]func(ast.Node){
		"id": func(n ast.Node) { e.ID, _ = b.id(n, "an exception's id") },
		"class": func(n ast.Node) {
			if i, ok := b.oneOf(n, "class", exceptionClasses...); ok {
				e.Class = exceptionClasses[i]
			}
		},
		"overrides": func(n ast.Node) { overrides = b.list(n, "overrides", b.name) },
		"from":      func(n ast.Node) { e.From = b.selector(n, "from", false) },
		"to":        func(n ast.Node) { e.To = b.selector(n, "to", false) },
		"services":  func(n ast.Node) { services = b.list(n, "services", b.name) },
		"ticket":    named(&e.Ticket, "ticket"),
		"owner":     named(&e.Owner, "owner"),
		"reason":    func(n ast.Node) { e.Reason, _ = b.text(n, "reason") },
		"requested": func(n ast.Node) { e.RequestedBy, e.RequestedAt = b.requested(n) },
		"approved":  func(n ast.Node) { e.Approved, approvals = b.approvals(n) },
		"notBefore": at(&e.NotBefore, "notBefore"),
		"expires":   at(&e.Expires, "expires"),
		"revoked": func(n ast.Node) {
			revoked = true
			p, ok := b.fields(n, "revoked", "write revoked: {by: NAME, at: TIME}", map[string]func(ast.Node){
				"by": named(&e.RevokedBy, "revoked by"), "at": at(&e.RevokedAt, "revoked at"),
				"reason": func(n ast.Node) { e.RevokedFor, _ = b.text(n, "reason") }})
			if ok {
				b.require(p, n, "revoked", "by", "at")
			}
		},
	})
	if !ok {
		return
	}
	what := "an exception"
	if e.ID != "" {
		what = "exception " + quote(e.ID)
	}
	b.require(present, n, what, "id", "from", "to", "expires")
	for _, k := range []string{"class", "ticket", "owner", "reason", "requested"} {
		if _, ok := present[k]; !ok {
			b.diags.warnf(e.Pos, "add "+k+":", "%s has no %s", what, k)
		}
	}
	b.checkApprovals(e.Pos, what, e.Approved, approvals, e.RequestedBy)
	for i, a := range e.Approved {
		if a.At != 0 && e.RequestedAt != 0 && a.At < e.RequestedAt {
			b.diags.warnf(approvals[i], "check both times", "%s was approved before it was requested", what)
		}
	}
	if e.NotBefore != 0 && e.Expires != 0 && e.Expires <= e.NotBefore {
		b.diags.errorf(present["expires"], "validity is [notBefore, expires): let it end after it begins", "%s expires before it begins", what)
	}
	if approved, ok := e.ApprovedAt(); ok && e.Expires != 0 && approved >= e.Expires {
		b.diags.warnf(present["expires"], "ask for a new exception", "%s was approved only after it had expired", what)
	}
	if revoked && e.RevokedAt != 0 && e.Expires != 0 && e.RevokedAt >= e.Expires {
		b.diags.warnf(present["revoked"], "a revocation can only shorten it", "%s is revoked after it expires", what)
	}
	if e.ID == "" {
		return
	}
	if before, twice := b.exceptAt[e.ID]; twice {
		b.diags.errorf(e.Pos, "choose another id; the other is at "+before.String(), "the exception %s is declared twice", quote(e.ID))
		return
	}
	b.exceptAt[e.ID] = e.Pos
	b.exceptServices[e.ID], b.overrides[e.ID] = services, overrides
	b.p.Exceptions = append(b.p.Exceptions, e)
}

// requested reads who asked for an exception or a suppression, and when.
func (b *builder) requested(n ast.Node) (by string, at flow.Time) {
	p, ok := b.fields(n, "requested", "write requested: {by: NAME, at: TIME}", map[string]func(ast.Node){
		"by": func(n ast.Node) { by, _ = b.name(n, "requested by") },
		"at": func(n ast.Node) { at, _ = b.time(n, "requested at") }})
	if ok {
		b.require(p, n, "requested", "by", "at")
	}
	return by, at
}

// approvals reads who approved it, in order of time, and where each stands.
func (b *builder) approvals(n ast.Node) (out []Approval, places []Pos) {
	items := []ast.Node{n}
	if seq, isSeq := n.(*ast.SequenceNode); isSeq {
		items = seq.Values // an empty list is what nobody approved yet
	}
	at := map[Approval]Pos{}
	for _, n := range items {
		var a Approval
		p, ok := b.fields(n, "an approval", "write {by: NAME, role: ROLE, at: TIME}", map[string]func(ast.Node){
			"by":   func(n ast.Node) { a.By, _ = b.name(n, "approved by") },
			"role": func(n ast.Node) { a.Role, _ = b.name(n, "role") },
			"at":   func(n ast.Node) { a.At, _ = b.time(n, "approved at") }})
		if !ok {
			continue
		}
		b.require(p, n, "an approval", "by", "at")
		at[a] = b.pos(n)
		out = append(out, a)
	}
	slices.SortFunc(out, func(a, b Approval) int {
		return cmp.Or(cmp.Compare(a.At, b.At), strings.Compare(a.By, b.By), strings.Compare(a.Role, b.Role))
	})
	for _, a := range out {
		places = append(places, at[a])
	}
	return out, places
}

// checkApprovals refuses that somebody approves what they asked for.
func (b *builder) checkApprovals(p Pos, what string, approved []Approval, places []Pos, by string) {
	if len(approved) > 0 && by == "" {
		b.diags.errorf(p, "add requested: {by: NAME, at: TIME}; nobody approves what they asked for", "%s is approved but does not say who requested it", what)
	}
	for i, a := range approved {
		if a.By != "" && samePerson(a.By, by) {
			b.diags.errorf(places[i], "have somebody else approve it", "%s is approved by its own requester %s", what, quote(by))
		}
	}
}

// samePerson compares names of people the way people read them: upper and lower
// case and blanks around do not make another person.
func samePerson(a, b string) bool {
	return strings.EqualFold(strings.TrimSpace(a), strings.TrimSpace(b))
}
