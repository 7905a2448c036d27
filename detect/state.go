package detect

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"

	"github.com/postern/postern/flow"
)

// A snapshot of what hosts do is binary: there may be millions of them. Names mean nothing
// outside their table, so their texts go with it. A detector writes its state as lists of
// values of fixed size, and what is small as JSON, and reads it back in the same order.

// stateWriter writes a snapshot.
type stateWriter struct {
	b     []byte
	names *flow.Names
	ids   map[flow.Name]flow.Name
	texts []string
}

func newStateWriter(names *flow.Names) *stateWriter {
	return &stateWriter{names: names, ids: map[flow.Name]flow.Name{flow.NoName: flow.NoName}, texts: []string{""}}
}

// name gives the place of a name among the texts of the snapshot.
func (w *stateWriter) name(n flow.Name) flow.Name {
	id, known := w.ids[n]
	if !known {
		id = flow.Name(len(w.texts))
		w.ids[n] = id
		w.texts = append(w.texts, w.names.Text(n))
	}
	return id
}

func (w *stateWriter) u64(v uint64) { w.b = binary.AppendUvarint(w.b, v) }

func (w *stateWriter) time(t flow.Time) { w.b = binary.AppendVarint(w.b, int64(t)) }

// json writes something small.
func (w *stateWriter) json(v any) error {
	j, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.u64(uint64(len(j)))
	w.b = append(w.b, j...)
	return nil
}

// bytes gives the snapshot, behind magic and version.
func (w *stateWriter) bytes(magic string, version byte) []byte {
	b := append([]byte(magic), version)
	b = binary.AppendUvarint(b, uint64(len(w.texts)))
	for _, t := range w.texts {
		b = binary.AppendUvarint(b, uint64(len(t)))
		b = append(b, t...)
	}
	return append(b, w.b...)
}

// saveAll writes a list of values of fixed size; every flow.Name in them, at any depth, is
// written as text.
func saveAll[T any](w *stateWriter, list []T) {
	where := namesIn(reflect.TypeFor[T]())
	size := binary.Size(*new(T))
	if size < 0 {
		panic(fmt.Sprintf("%T is not of fixed size", *new(T)))
	}
	w.u64(uint64(len(list)))
	w.u64(uint64(size))
	for i := range list {
		v := list[i]
		at := reflect.ValueOf(&v).Elem()
		for _, path := range where {
			f := follow(at, path)
			f.SetUint(uint64(w.name(flow.Name(f.Uint()))))
		}
		w.b, _ = binary.Append(w.b, binary.LittleEndian, &v) // of fixed size: it cannot fail
	}
}

// stateReader reads what a stateWriter wrote. After the first error it gives nothing any more.
type stateReader struct {
	b     []byte
	names []flow.Name
	err   error
}

var errState = errors.New("it ends too early or is not what a snapshot holds")

func (r *stateReader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.b = nil
}

func newStateReader(b []byte, magic string, version byte, names *flow.Names) *stateReader {
	r := &stateReader{b: b}
	if len(b) <= len(magic) || string(b[:len(magic)]) != magic {
		r.fail(errState)
		return r
	}
	if v := b[len(magic)]; v != version {
		r.fail(fmt.Errorf("it is of version %d; this program reads version %d", v, version))
		return r
	}
	r.b = b[len(magic)+1:]
	n := r.count(1)
	for range n {
		l := r.count(1)
		if r.err != nil {
			return r
		}
		r.names = append(r.names, names.Intern(string(r.b[:l])))
		r.b = r.b[l:]
	}
	if len(r.names) == 0 || r.names[0] != flow.NoName {
		r.fail(errState)
	}
	return r
}

// count reads how many things of at least size bytes follow.
func (r *stateReader) count(size int) int {
	n := r.u64()
	if n > uint64(len(r.b)/size) {
		r.fail(errState)
		return 0
	}
	return int(n)
}

func (r *stateReader) u64() uint64 {
	n, k := binary.Uvarint(r.b)
	if k <= 0 {
		r.fail(errState)
		return 0
	}
	r.b = r.b[k:]
	return n
}

func (r *stateReader) time() flow.Time {
	n, k := binary.Varint(r.b)
	if k <= 0 {
		r.fail(errState)
		return 0
	}
	r.b = r.b[k:]
	return flow.Time(n)
}

func (r *stateReader) json(v any) {
	n := r.count(1)
	if r.err != nil {
		return
	}
	if err := json.Unmarshal(r.b[:n], v); err != nil {
		r.fail(err)
		return
	}
	r.b = r.b[n:]
}

// end says whether all was read.
func (r *stateReader) end() error {
	if r.err == nil && len(r.b) > 0 {
		return errState
	}
	return r.err
}

// loadAll reads what saveAll wrote.
func loadAll[T any](r *stateReader) []T {
	where := namesIn(reflect.TypeFor[T]())
	size := binary.Size(*new(T))
	n, wrote := r.u64(), r.u64()
	if r.err != nil {
		return nil
	}
	if wrote != uint64(size) || n > uint64(len(r.b)/size) {
		r.fail(errState)
		return nil
	}
	list := make([]T, n)
	for i := range list {
		v := &list[i]
		if _, err := binary.Decode(r.b, binary.LittleEndian, v); err != nil {
			r.fail(err)
			return nil
		}
		r.b = r.b[size:]
		at := reflect.ValueOf(v).Elem()
		for _, path := range where {
			f := follow(at, path)
			if f.Uint() >= uint64(len(r.names)) {
				r.fail(errState)
				return nil
			}
			f.SetUint(uint64(r.names[f.Uint()]))
		}
	}
	return list
}

// namesIn gives the ways to every flow.Name in a type: fields of structs and places of arrays.
func namesIn(t reflect.Type) (paths [][]int) {
	if t == reflect.TypeFor[flow.Name]() {
		return [][]int{nil}
	}
	inner := func(i int, t reflect.Type) {
		for _, p := range namesIn(t) {
			paths = append(paths, append([]int{i}, p...))
		}
	}
	switch t.Kind() {
	case reflect.Struct:
		for i := range t.NumField() {
			inner(i, t.Field(i).Type)
		}
	case reflect.Array:
		for i := range t.Len() {
			inner(i, t.Elem())
		}
	}
	return paths
}

func follow(v reflect.Value, path []int) reflect.Value {
	for _, i := range path {
		if v.Kind() == reflect.Struct {
			v = v.Field(i)
		} else {
			v = v.Index(i)
		}
	}
	return v
}
