package intake

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/postern/postern/flow"
)

// RejectedConfig bounds the sample of lines that could not be read.
type RejectedConfig struct {
	// PerMinute is how many lines a minute are kept.
	PerMinute int `yaml:"perMinute"`
	// MaxBytes is how large the file may become; then it is moved to NAME.1, and an older
	// one of that name is lost.
	MaxBytes flow.Size `yaml:"maxBytes"`
	// MaxLine is how much of a line is kept.
	MaxLine flow.Size `yaml:"maxLine"`
}

// rejectedLine is a line that could not be read.
type rejectedLine struct {
	at               flow.Time
	way, format, who string
	offset           uint64
	reason           string
	line             []byte
}

// sample keeps a sample of rejected lines in a file. Safe for concurrent use.
type sample struct {
	path string
	cfg  RejectedConfig
	log  *slog.Logger

	mu     sync.Mutex
	minute flow.Time
	kept   int
	told   flow.Time
}

// add keeps a line, if there is room this minute. That it cannot be written is told and
// costs nothing else.
func (s *sample) add(l rejectedLine) {
	s.mu.Lock()
	defer s.mu.Unlock()
	minute := l.at / flow.Time(time.Minute/time.Millisecond)
	if minute != s.minute {
		s.minute, s.kept = minute, 0
	}
	if s.kept++; s.path == "" || s.kept > s.cfg.PerMinute {
		return
	}
	if err := s.write(l); err != nil && l.at.Sub(s.told) > time.Minute {
		s.told = l.at
		s.log.Error("lines that could not be read cannot be kept", "file", s.path, "err", err)
	}
}

func (s *sample) write(l rejectedLine) error {
	line := l.line
	cut := len(line) > int(s.cfg.MaxLine)
	if cut {
		line = line[:s.cfg.MaxLine]
		for len(line) > 0 && !utf8.RuneStart(line[len(line)-1]) {
			line = line[:len(line)-1]
		}
	}
	raw, err := json.Marshal(struct {
		At       flow.Time `json:"at"`
		Way      string    `json:"way"`
		Format   string    `json:"format,omitempty"`
		Observer string    `json:"observer,omitempty"`
		Offset   uint64    `json:"offset"`
		Reason   string    `json:"reason"`
		Cut      bool      `json:"cut,omitempty"`
		Line     string    `json:"line"`
	}{l.at, l.way, l.format, l.who, l.offset, l.reason, cut, string(line)})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(s.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if st, err := f.Stat(); err == nil && st.Size()+int64(len(raw)) > int64(s.cfg.MaxBytes) {
		_ = f.Close()
		if err := os.Rename(s.path, s.path+".1"); err != nil {
			return err
		}
		if f, err = os.OpenFile(s.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(f, "%s\n", raw)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
