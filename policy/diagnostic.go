package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
)

// Pos is a place in a policy file. Line and Column count from 1; zero means the
// file as a whole.
type Pos struct {
	File         string
	Line, Column int
}

func (p Pos) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
}

func (p Pos) compare(q Pos) int {
	return cmp.Or(strings.Compare(p.File, q.File), cmp.Compare(p.Line, q.Line), cmp.Compare(p.Column, q.Column))
}

// Diagnostic is one thing wrong, or with Warning one thing odd, in a policy.
type Diagnostic struct {
	Pos
	Warning bool
	Wrong   string // what is wrong
	Right   string // what would be right
}

// String is the diagnostic as people read it: file:line:column: what is wrong;
// what would be right. Text taken from the file stands quoted, so that it cannot
// pretend to be a line of its own.
func (d Diagnostic) String() string {
	var b strings.Builder
	b.WriteString(d.Pos.String())
	b.WriteString(": ")
	if d.Warning {
		b.WriteString("warning: ")
	}
	b.WriteString(d.Wrong)
	if d.Right != "" {
		b.WriteString("; ")
		b.WriteString(d.Right)
	}
	return b.String()
}

// Diagnostics lists what was found, sorted by file, line and column.
type Diagnostics []Diagnostic

// Errors are the diagnostics that are no warnings.
func (d Diagnostics) Errors() Diagnostics { return d.only(false) }

// Warnings are the diagnostics that refuse nothing.
func (d Diagnostics) Warnings() Diagnostics { return d.only(true) }

func (d Diagnostics) only(warning bool) (out Diagnostics) {
	for _, x := range d {
		if x.Warning == warning {
			out = append(out, x)
		}
	}
	return out
}

// String is one diagnostic a line.
func (d Diagnostics) String() string {
	lines := make([]string, len(d))
	for i, x := range d {
		lines[i] = x.String()
	}
	return strings.Join(lines, "\n")
}

// Err is nil if there are no errors, else an error that lists them (not the warnings).
func (d Diagnostics) Err() error {
	if e := d.Errors(); len(e) > 0 {
		return e
	}
	return nil
}

// Error makes Diagnostics an error; see [Diagnostics.Err].
func (d Diagnostics) Error() string { return d.String() }

// maxDiagnostics bounds how many diagnostics one load reports; a file full of
// nonsense need not fill a terminal or memory.
const maxDiagnostics = 1000

func (d *Diagnostics) add(x Diagnostic) {
	if len(*d) < maxDiagnostics {
		*d = append(*d, x)
	} else if len(*d) == maxDiagnostics {
		*d = append(*d, Diagnostic{Pos: Pos{File: x.File}, Wrong: fmt.Sprintf("more than %d diagnostics", maxDiagnostics), Right: "mend the ones above first"})
	}
}

func (d *Diagnostics) errorf(p Pos, right, wrong string, args ...any) {
	d.add(Diagnostic{Pos: p, Wrong: fmt.Sprintf(wrong, args...), Right: right})
}

func (d *Diagnostics) warnf(p Pos, right, wrong string, args ...any) {
	d.add(Diagnostic{Pos: p, Warning: true, Wrong: fmt.Sprintf(wrong, args...), Right: right})
}

func (d Diagnostics) sort() {
	slices.SortStableFunc(d, func(a, b Diagnostic) int {
		return cmp.Or(a.Pos.compare(b.Pos), strings.Compare(a.Wrong, b.Wrong))
	})
}

// quote quotes text from a file for a message, cut to a length a line can hold.
func quote(s string) string {
	const most = 80
	if r := []rune(s); len(r) > most {
		s = string(r[:most]) + "…"
	}
	return fmt.Sprintf("%q", s)
}

// nearest is the known word nearest to s by edit distance, the first in byte
// order among equals; empty if none is near enough to be meant.
func nearest(s string, known []string) string {
	if len(s) > 64 {
		return ""
	}
	best, distance := "", 1+max(2, len(s)/2)
	for _, k := range known {
		if len(k) > 64 {
			continue
		}
		if d := levenshtein.ComputeDistance(strings.ToLower(s), strings.ToLower(k)); d < distance || d == distance && best != "" && k < best {
			best, distance = k, d
		}
	}
	return best
}

// didYouMean phrases the nearest of known, or lists them where none is near.
func didYouMean(s string, known []string) string {
	if n := nearest(s, known); n != "" {
		return "did you mean " + quote(n) + "?"
	}
	if len(known) == 0 {
		return "none is declared"
	}
	k := slices.Sorted(slices.Values(known))
	if len(k) > 20 {
		return "known are " + strings.Join(k[:20], ", ") + ", …"
	}
	return "known are " + strings.Join(k, ", ")
}
