package flow

import (
	"fmt"
	"strconv"
	"strings"
)

// Size is a number of bytes; in configuration it is written as 512KiB, 4MiB, 2GiB
// or a bare number of bytes.
type Size int64

// The usual units.
const (
	KiB Size = 1 << 10
	MiB Size = 1 << 20
	GiB Size = 1 << 30
)

var sizeUnits = []struct {
	name string
	size Size
}{{"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB}, {"B", 1}}

// UnmarshalText reads the written form.
func (s *Size) UnmarshalText(b []byte) error {
	t, unit := strings.TrimSpace(string(b)), Size(1)
	for _, u := range sizeUnits {
		if n, ok := strings.CutSuffix(t, u.name); ok {
			t, unit = strings.TrimSpace(n), u.size
			break
		}
	}
	v, err := strconv.ParseInt(t, 10, 64)
	if err != nil || v < 0 || v > int64(1<<62/unit) {
		return fmt.Errorf("%q is no size; write 512KiB, 4MiB, 2GiB or a number of bytes", b)
	}
	*s = Size(v) * unit
	return nil
}

// MarshalText writes the largest unit that divides s.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

func (s Size) String() string {
	for _, u := range sizeUnits[:3] {
		if s >= u.size && s%u.size == 0 {
			return strconv.FormatInt(int64(s/u.size), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}
