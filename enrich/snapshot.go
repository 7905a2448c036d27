package enrich

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/postern/postern/flow"
)

// snapshotVersion rises whenever what a snapshot holds changes its meaning.
const snapshotVersion = 1

// snapshot is the written form of a Pairer's state. Names are text, since a Name
// means nothing outside its table.
type snapshot struct {
	Version int               `json:"version"`
	Layout  []string          `json:"layout"` // of a record: its fields in order, each with its bytes
	Clock   flow.Time         `json:"clock"`
	Names   map[uint32]string `json:"names"`
	Members []memberSnapshot  `json:"members"`
}

type memberSnapshot struct {
	At      int64  `json:"at"`
	Decided bool   `json:"decided,omitempty"`
	Own     uint8  `json:"own"`
	Sure    uint8  `json:"sure"`
	Record  []byte `json:"record"` // every field in order, little endian
}

// namesOf lists the names that a record holds; a test compares it with the type.
func namesOf(r *flow.Record) [27]*flow.Name {
	v := &r.Verdict
	n := [27]*flow.Name{&r.User, &r.App, &r.SrcSegment, &r.DstSegment, &r.SrcWorkload, &r.DstWorkload,
		&r.SrcIdentity, &r.DstIdentity, &r.Observer, &r.EnforcedBy, &r.SrcHost, &r.DstHost, &r.SrcProcess, &r.DstProcess, &r.SrcIdentityFrom, &r.DstIdentityFrom,
		&v.PolicyVersion, &v.Rule, &v.Exception}
	for i := range v.Others {
		n[19+i] = &v.Others[i]
	}
	return n
}

// Snapshot is the whole state; the same state gives the same bytes.
func (p *Pairer) Snapshot() ([]byte, error) {
	s := snapshot{Version: snapshotVersion, Layout: layout, Clock: p.clock,
		Names: map[uint32]string{}, Members: make([]memberSnapshot, 0, len(p.due))}
	due := slices.Clone(p.due)
	slices.SortFunc(due, func(a, b dueItem) int {
		if a.before(b) {
			return -1
		}
		return 1
	})
	for _, d := range due {
		m := &p.members[d.index]
		for _, n := range namesOf(&m.rec) {
			if *n != flow.NoName {
				s.Names[uint32(*n)] = p.names.Text(*n)
			}
		}
		b, err := binary.Append(nil, binary.LittleEndian, &m.rec)
		if err != nil {
			return nil, fmt.Errorf("encoding a waiting record: %w", err)
		}
		s.Members = append(s.Members, memberSnapshot{At: int64(m.at), Decided: m.decided, Own: uint8(m.own), Sure: m.ownSure, Record: b})
	}
	return json.Marshal(&s)
}

// read reads what Snapshot wrote.
func read(b []byte) (s snapshot, err error) {
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("reading the snapshot of enrich: %w", err)
	}
	if s.Version != snapshotVersion {
		return s, fmt.Errorf("the snapshot of enrich is of version %d; this program reads version %d", s.Version, snapshotVersion)
	}
	if len(s.Members) > 1<<24 {
		return s, fmt.Errorf("the snapshot of enrich holds %d records; at most %d", len(s.Members), 1<<24)
	}
	err = s.convert()
	return s, err
}

// layout is that of a record in this program.
var layout = layoutOf(nil, "", reflect.TypeFor[flow.Record]())

func layoutOf(out []string, path string, t reflect.Type) []string {
	switch t.Kind() {
	case reflect.Struct:
		for f := range t.Fields() {
			out = layoutOf(out, strings.TrimPrefix(path+"."+f.Name, "."), f.Type)
		}
	case reflect.Array:
		for i := range t.Len() {
			out = layoutOf(out, fmt.Sprintf("%s[%d]", path, i), t.Elem())
		}
	default:
		out = append(out, fmt.Sprintf("%s:%d", path, t.Size()))
	}
	return out
}

// convert brings records that another version of the program wrote into the layout of this
// one: fields keep their names, what the other did not know is zero, what this one does not
// know is left out. So a program can be replaced while records wait.
func (s *snapshot) convert() error {
	if slices.Equal(s.Layout, layout) {
		return nil
	}
	if len(s.Layout) == 0 {
		return errors.New("the snapshot of enrich does not say how its records are laid out")
	}
	type place struct{ at, size int }
	here := make(map[string]place, len(layout))
	total := 0
	for _, f := range layout {
		size := fieldSize(f)
		here[f] = place{total, size}
		total += size
	}
	length := 0
	for _, f := range s.Layout {
		size := fieldSize(f)
		if size <= 0 || size > 8 {
			return fmt.Errorf("the snapshot of enrich has a record's field %q; want its name and size, such as SrcPort:2", f)
		}
		length += size
	}
	for i := range s.Members {
		old := s.Members[i].Record
		if len(old) != length {
			return fmt.Errorf("record %d of the snapshot of enrich has %d bytes, its layout says %d", i, len(old), length)
		}
		rec := make([]byte, total)
		for _, f := range s.Layout {
			size := fieldSize(f)
			if p, known := here[f]; known {
				copy(rec[p.at:p.at+p.size], old)
			}
			old = old[size:]
		}
		s.Members[i].Record = rec
	}
	s.Layout = layout
	return nil
}

// fieldSize is the size that a field of a layout says, 0 if it says none.
func fieldSize(f string) int {
	_, size, _ := strings.Cut(f, ":")
	n, _ := strconv.Atoi(size)
	return n
}

// record reads record i, its names by way of name.
func (s *snapshot) record(i int, name func(text string) flow.Name) (r flow.Record, err error) {
	if err := binary.Read(bytes.NewReader(s.Members[i].Record), binary.LittleEndian, &r); err != nil {
		return r, fmt.Errorf("reading record %d of the snapshot of enrich: %w", i, err)
	}
	for _, n := range namesOf(&r) {
		*n = name(s.Names[uint32(*n)])
	}
	return r, nil
}

// Restore replaces the state by that of a snapshot. After an error the Pairer is empty.
func (p *Pairer) Restore(b []byte) error {
	p.reset()
	p.clock = 0
	s, err := read(b)
	if err != nil {
		return err
	}
	for i := range s.Members {
		ms := &s.Members[i]
		m := member{at: flow.Time(ms.At), decided: ms.Decided, own: flow.Orientation(ms.Own), ownSure: ms.Sure}
		if m.rec, err = s.record(i, p.names.Intern); err != nil {
			p.reset()
			return err
		}
		var ok bool
		if m.key, m.low, ok = keyOf(&m.rec); !ok {
			p.reset()
			return fmt.Errorf("record %d of the snapshot of enrich can have no other half", i)
		}
		p.insert(m)
	}
	p.clock = s.Clock
	p.m.held.Set(float64(p.waiting))
	return nil
}
