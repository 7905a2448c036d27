package siem

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// ocsfDefs is the Open Cybersecurity Schema Framework as its source has it: metaschema/ there says
// what the members mean.
type ocsfDefs struct {
	dictionary  map[string]*ocsfAttribute
	types       map[string]*ocsfType
	classes     map[string]*ocsfDef // by name
	objects     map[string]*ocsfDef
	byUID       map[string]*ocsfDef // classes
	observables map[string]string   // captions by type_id
	release     map[string][]string // what a release has; nil: all that is here
	patterns    map[string]*regexp.Regexp
}

type ocsfType struct {
	Type       string `json:"type"`
	Regex      string `json:"regex"`
	MaxLen     int    `json:"max_len"`
	Range      []int64
	Observable int    `json:"observable"`
	Caption    string `json:"caption"`
}

type ocsfAttribute struct {
	Type        string               `json:"type"`
	IsArray     bool                 `json:"is_array"`
	Requirement string               `json:"requirement"`
	Sibling     string               `json:"sibling"`
	Caption     string               `json:"caption"`
	Observable  int                  `json:"observable"`
	Enum        map[string]ocsfValue `json:"enum"`
	Deprecated  *struct {
		Since string `json:"since"`
	} `json:"@deprecated"`
	profile string
}

type ocsfValue struct {
	Caption string `json:"caption"`
}

type ocsfDef struct {
	Name        string                     `json:"name"`
	Caption     string                     `json:"caption"`
	UID         int                        `json:"uid"`
	Extends     string                     `json:"extends"`
	Category    string                     `json:"category"`
	Profiles    []string                   `json:"profiles"`
	Observable  int                        `json:"observable"`
	Constraints map[string][]string        `json:"constraints"`
	Raw         map[string]json.RawMessage `json:"attributes"`
	attributes  map[string]*ocsfAttribute  // of all that it extends and includes
}

// ocsfFixture reads the schema among the fixtures.
func ocsfFixture(t testing.TB) *ocsfDefs {
	t.Helper()
	dir := os.Getenv("POSTERN_FIXTURES")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "fixtures")
	}
	dir = filepath.Join(dir, "golden", "ocsf-schema")
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("no OCSF schema in %s; set POSTERN_FIXTURES to the fixtures' folder", dir)
	}
	read := func(path string, into any) {
		b, err := os.ReadFile(filepath.Join(dir, path))
		if err == nil {
			err = json.Unmarshal(b, into)
		}
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	var dictionary struct {
		Attributes map[string]*ocsfAttribute `json:"attributes"`
		Types      struct {
			Attributes map[string]*ocsfType `json:"attributes"`
		} `json:"types"`
	}
	read("dictionary.json", &dictionary)
	s := &ocsfDefs{dictionary: dictionary.Attributes, types: dictionary.Types.Attributes, classes: map[string]*ocsfDef{}, objects: map[string]*ocsfDef{},
		byUID: map[string]*ocsfDef{}, observables: map[string]string{}, patterns: map[string]*regexp.Regexp{}}
	load := func(into map[string]*ocsfDef, pattern string) {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %d files, %v", pattern, len(files), err)
		}
		for _, file := range files {
			rel, _ := filepath.Rel(dir, file)
			d := new(ocsfDef)
			read(rel, d)
			into[d.Name] = d
		}
	}
	load(s.objects, "objects/*.json")
	load(s.classes, "events/*.json")
	load(s.classes, "events/*/*.json")
	var categories struct {
		Attributes map[string]struct {
			UID     int    `json:"uid"`
			Caption string `json:"caption"`
		} `json:"attributes"`
	}
	read("categories.json", &categories)

	profile := func(path string) map[string]json.RawMessage {
		var d ocsfDef
		read(path, &d)
		return d.Raw
	}
	for name, typ := range s.types {
		if typ.Observable > 0 {
			s.observables[strconv.Itoa(typ.Observable)] = typ.Caption
		}
		if typ.Regex != "" {
			s.patterns[name] = regexp.MustCompile(typ.Regex)
		}
	}
	for _, of := range []map[string]*ocsfDef{s.objects, s.classes} {
		for _, d := range of {
			s.resolve(t, of, d, profile)
			if d.Observable > 0 {
				s.observables[strconv.Itoa(d.Observable)] = d.Caption
			}
		}
	}
	for _, d := range s.classes {
		if c, ok := categories.Attributes[d.Category]; ok && d.UID > 0 {
			uid := strconv.Itoa(c.UID*1000 + d.UID)
			s.byUID[uid] = d
			d.attributes["class_uid"].Enum = map[string]ocsfValue{uid: {d.Caption}}
			d.attributes["category_uid"].Enum = map[string]ocsfValue{strconv.Itoa(c.UID): {c.Caption}}
		}
	}
	return s
}

// resolve gives a class or an object what it extends and includes.
func (s *ocsfDefs) resolve(t testing.TB, of map[string]*ocsfDef, d *ocsfDef, profile func(string) map[string]json.RawMessage) {
	if d.attributes != nil {
		return
	}
	d.attributes = map[string]*ocsfAttribute{}
	if d.Extends != "" {
		parent := of[d.Extends]
		if parent == nil {
			t.Fatalf("%s extends %s, which is nowhere", d.Name, d.Extends)
		}
		s.resolve(t, of, parent, profile)
		for name, a := range parent.attributes {
			c := *a
			c.Enum = maps.Clone(a.Enum)
			d.attributes[name] = &c
		}
		if d.Category == "" {
			d.Category = parent.Category
		}
		d.Profiles = append(slices.Clone(d.Profiles), parent.Profiles...)
		if d.Constraints == nil {
			d.Constraints = parent.Constraints
		}
	}
	set := func(name string, raw json.RawMessage, of string) {
		a := d.attributes[name]
		if a == nil {
			a = new(ocsfAttribute)
			if known := s.dictionary[name]; known != nil {
				*a = *known
				a.Enum = maps.Clone(known.Enum)
			}
			a.profile = of
			d.attributes[name] = a
		}
		if err := json.Unmarshal(raw, a); err != nil {
			t.Fatalf("%s.%s: %v", d.Name, name, err)
		}
		var own map[string]json.RawMessage
		_ = json.Unmarshal(raw, &own)
		if p, ok := own["profile"]; ok {
			a.profile = ""
			_ = json.Unmarshal(p, &a.profile) // null: always there
		}
	}
	if include, ok := d.Raw["$include"]; ok {
		var paths []string
		if err := json.Unmarshal(include, &paths); err != nil {
			t.Fatalf("%s: $include: %v", d.Name, err)
		}
		for _, path := range paths {
			for name, raw := range profile(path) {
				if d.attributes[name] == nil {
					set(name, raw, strings.TrimSuffix(filepath.Base(path), ".json"))
				}
			}
		}
	}
	for name, raw := range d.Raw {
		if name != "$include" {
			set(name, raw, "")
		}
	}
}

// event says what is wrong with an event, and which recommended attributes of its class it has not.
func (s *ocsfDefs) event(e map[string]any) (wrong, missing []string) {
	uid := fmt.Sprint(e["class_uid"])
	class := s.byUID[uid]
	if class == nil {
		return []string{"class_uid: " + uid + " is no class"}, nil
	}
	c := &ocsfCheck{defs: s}
	profiles, _ := at(e, "metadata", "profiles").([]any)
	for _, p := range profiles {
		c.profiles = append(c.profiles, fmt.Sprint(p))
		if !slices.Contains(class.Profiles, fmt.Sprint(p)) {
			c.say("metadata.profiles", "%v is no profile of %s", p, class.Name)
		}
	}
	c.object("", class, e)
	for _, a := range c.missing {
		if !strings.ContainsAny(a, ".[") {
			missing = append(missing, a)
		}
	}
	activity := fmt.Sprint(e["activity_id"])
	if want := uid + fmt.Sprintf("%02s", activity); fmt.Sprint(e["type_uid"]) != want {
		c.say("type_uid", "%v, want %s", e["type_uid"], want)
	}
	if e["type_name"] != nil && e["type_name"] != class.Caption+": "+class.attributes["activity_id"].Enum[activity].Caption {
		c.say("type_name", "%v", e["type_name"])
	}
	list, _ := e["observables"].([]any)
	for i, o := range list {
		name, _ := at(o, "name").(string)
		if got := follow(e, name); at(o, "value") != nil && got != at(o, "value") {
			c.say(fmt.Sprintf("observables[%d]", i), "%s is %v, not %v", name, got, at(o, "value"))
		}
	}
	return c.wrong, missing
}

// follow reads a path as observables have it: a.b[0].c.
func follow(v any, path string) any {
	for step := range strings.SplitSeq(path, ".") {
		name, index, indexed := strings.Cut(strings.TrimSuffix(step, "]"), "[")
		if v = at(v, name); indexed {
			i, err := strconv.Atoi(index)
			if err != nil {
				return nil
			}
			v = at(v, i)
		}
	}
	return v
}

type ocsfCheck struct {
	defs           *ocsfDefs
	profiles       []string
	wrong, missing []string
}

func (c *ocsfCheck) say(path, format string, a ...any) {
	c.wrong = append(c.wrong, path+": "+fmt.Sprintf(format, a...))
}

func (c *ocsfCheck) object(path string, d *ocsfDef, o map[string]any) {
	in := func(name string) string { return strings.TrimPrefix(path+"."+name, ".") }
	applies := func(a *ocsfAttribute) bool { return a.profile == "" || slices.Contains(c.profiles, a.profile) }
	if has := c.defs.release; has != nil && has[d.Name] == nil {
		c.say(path, "no object %s in the table of the release; look it up there and add it", d.Name)
	}
	for name, v := range o {
		a := d.attributes[name]
		if a == nil {
			c.say(in(name), "%s has no such attribute", d.Name)
			continue
		}
		if !applies(a) {
			c.say(in(name), "is of the profile %s, which metadata.profiles does not name", a.profile)
		}
		if a.Deprecated != nil && !newer(a.Deprecated.Since, ocsfVersion) {
			c.say(in(name), "deprecated since %s", a.Deprecated.Since)
		}
		if has := c.defs.release; has != nil && !slices.Contains(has[d.Name], name) {
			c.say(in(name), "%s has this attribute since a later release than %s", d.Name, ocsfVersion)
		}
		c.attribute(in(name), d.Name+"."+name, a, v)
		if caption := o[a.Sibling]; a.Sibling != "" && caption != nil && len(a.Enum) > 0 {
			if want := a.Enum[fmt.Sprint(v)].Caption; caption != want && fmt.Sprint(v) != "99" && want != "" {
				c.say(in(a.Sibling), "%v, but %s %v is %s", caption, name, v, want)
			}
		}
	}
	for name, a := range d.attributes {
		if _, ok := o[name]; ok || !applies(a) {
			continue
		}
		switch a.Requirement {
		case "required":
			c.say(in(name), "is required and missing")
		case "recommended":
			if a.Deprecated != nil {
				continue
			}
			c.missing = append(c.missing, in(name))
		}
	}
	for rule, names := range d.Constraints {
		n := 0
		for _, name := range names {
			if _, ok := o[name]; ok {
				n++
			}
		}
		switch {
		case rule == "at_least_one" && n == 0, rule == "just_one" && n != 1:
			c.say(path, "%s wants %s of %v", d.Name, rule, names)
		case rule != "at_least_one" && rule != "just_one":
			c.say(path, "unknown constraint %s", rule)
		}
	}
}

func (c *ocsfCheck) attribute(path, place string, a *ocsfAttribute, v any) {
	if a.IsArray {
		list, ok := v.([]any)
		if !ok || len(list) == 0 {
			c.say(path, "%v is no list that holds something", v)
			return
		}
		one := *a
		one.IsArray = false
		for i, x := range list {
			c.attribute(fmt.Sprintf("%s[%d]", path, i), place, &one, x)
		}
		return
	}
	typ := c.defs.types[a.Type]
	if typ == nil {
		c.nested(path, a.Type, v)
		return
	}
	base, enum := a.Type, a.Enum
	for _, t := range []*ocsfType{typ, c.defs.types[typ.Type]} {
		if t != nil && t.Type != "" {
			base = t.Type
		}
	}
	switch base {
	case "json_t":
		return
	case "boolean_t":
		if _, ok := v.(bool); !ok {
			c.say(path, "%v is no boolean", v)
		}
		return
	case "integer_t", "long_t":
		n, ok := v.(json.Number)
		i, err := strconv.ParseInt(n.String(), 10, 64)
		if !ok || err != nil {
			c.say(path, "%v is no integer", v)
			return
		}
		if base == "integer_t" && (i > 1<<31-1 || i < -1<<31) {
			c.say(path, "%d is more than an integer holds", i)
		}
		if len(typ.Range) == 2 && (i < typ.Range[0] || i > typ.Range[1]) {
			c.say(path, "%d is not in %v", i, typ.Range)
		}
		if a.Type == "timestamp_t" && i < 0 {
			c.say(path, "%d is before 1970", i)
		}
	case "float_t":
		n, ok := v.(json.Number)
		if _, _, err := big.ParseFloat(n.String(), 10, 64, big.ToNearestEven); !ok || err != nil {
			c.say(path, "%v is no number", v)
		}
	case "string_t":
		s, ok := v.(string)
		if !ok {
			c.say(path, "%v is no text", v)
			return
		}
		if p := c.defs.patterns[a.Type]; p != nil && !p.MatchString(s) {
			c.say(path, "%q is no %s", s, a.Type)
		}
		if typ.MaxLen > 0 && utf8.RuneCountInString(s) > typ.MaxLen {
			c.say(path, "%q is longer than %d", s, typ.MaxLen)
		}
		if s == "" {
			c.say(path, "says nothing")
		}
	default:
		c.say(path, "the check knows no type %s", base)
	}
	if place == "observable.type_id" {
		if c.defs.observables[fmt.Sprint(v)] == "" {
			c.say(path, "%v is no type of observables", v)
		}
	} else if _, ok := enum[fmt.Sprint(v)]; len(enum) > 0 && !ok && base != "string_t" {
		c.say(path, "%v is none of %v", v, slices.Sorted(maps.Keys(enum)))
	}
	if values := c.defs.release[place]; values != nil && !slices.Contains(values, fmt.Sprint(v)) {
		c.say(path, "%v is since a later release than %s", v, ocsfVersion)
	}
}

func (c *ocsfCheck) nested(path, typ string, v any) {
	o, ok := v.(map[string]any)
	if !ok {
		c.say(path, "%v is no object", v)
		return
	}
	if typ == "object" { // unmapped: the source's own
		return
	}
	d := c.defs.objects[typ]
	if d == nil {
		c.say(path, "the schema has no object %s", typ)
		return
	}
	c.object(path, d, o)
}

// newer says whether version a is a later one than b.
func newer(a, b string) bool {
	x, y := strings.Split(a, "."), strings.Split(b, ".")
	for i := range min(len(x), len(y)) {
		m, _ := strconv.Atoi(x[i])
		n, _ := strconv.Atoi(y[i])
		if m != n {
			return m > n
		}
	}
	return false
}
