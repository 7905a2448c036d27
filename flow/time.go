package flow

import "time"

// Time is an instant in milliseconds since the Unix epoch, UTC. Zero is unknown.
type Time int64

// TimeOf converts t, cutting below the millisecond; the zero time gives zero.
func TimeOf(t time.Time) Time {
	if t.IsZero() {
		return 0
	}
	return Time(t.UnixMilli())
}

// Std is t as the standard library has it, in UTC; unknown gives the zero time.
func (t Time) Std() time.Time {
	if t == 0 {
		return time.Time{}
	}
	return time.UnixMilli(int64(t)).UTC()
}

// Add is t moved by d, cut to the millisecond.
func (t Time) Add(d time.Duration) Time { return t + Time(d/time.Millisecond) }

// Sub is the duration from u to t.
func (t Time) Sub(u Time) time.Duration { return time.Duration(t-u) * time.Millisecond }

// Day is the UTC day of t as 2006-01-02.
func (t Time) Day() string { return time.UnixMilli(int64(t)).UTC().Format(time.DateOnly) }

const timeLayout = "2006-01-02T15:04:05.000Z"

// AppendTo appends t as RFC 3339 in UTC with milliseconds.
func (t Time) AppendTo(b []byte) []byte {
	return time.UnixMilli(int64(t)).UTC().AppendFormat(b, timeLayout)
}

// String is t as RFC 3339 in UTC with milliseconds; unknown is the empty string.
func (t Time) String() string {
	if t == 0 {
		return ""
	}
	return string(t.AppendTo(nil))
}

// MarshalText implements encoding.TextMarshaler.
func (t Time) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; it reads RFC 3339.
func (t *Time) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*t = 0
		return nil
	}
	v, err := time.Parse(time.RFC3339Nano, string(b))
	if err != nil {
		return err
	}
	*t = TimeOf(v)
	return nil
}
