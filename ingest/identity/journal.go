package identity

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// journal is a file of lines of JSON. A line is written durably before what it says is told,
// so that a start after a crash finds all that may have been told.
type journal struct {
	path string
	file *os.File // open once something was written
	size int64    // of its whole lines
}

// read gives the lines to take, which says whether it could read one. The first that it could
// not, or that has no end, was being written when the process ended, and so was not told; the
// next takes its place.
func (j *journal) read(take func(line []byte) error) error {
	j.size = 0
	b, err := os.ReadFile(j.path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return &stateError{fmt.Errorf("its state cannot be read: %w", err)}
	}
	for line := range bytes.Lines(b) {
		if line[len(line)-1] != '\n' || take(line) != nil {
			break
		}
		j.size += int64(len(line))
	}
	return nil
}

// add writes a line.
func (j *journal) add(line any) error {
	fail := func(err error) error { return &stateError{fmt.Errorf("its state cannot be kept: %w", err)} }
	b, err := json.Marshal(line)
	if err != nil {
		return fail(err)
	}
	if j.file == nil {
		if err := os.MkdirAll(filepath.Dir(j.path), 0o700); err != nil {
			return fail(err)
		}
		if j.file, err = os.OpenFile(j.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
			return fail(err)
		}
		if err := j.file.Truncate(j.size); err != nil {
			return fail(err)
		}
	}
	n, err := j.file.Write(append(b, '\n'))
	if err == nil {
		err = j.file.Sync()
	}
	if err != nil {
		return fail(err)
	}
	j.size += int64(n)
	return nil
}

// clear begins anew: what the lines said is kept elsewhere.
func (j *journal) clear() error {
	var err error
	if j.file != nil {
		err = j.file.Truncate(0)
	} else if err = os.Truncate(j.path, 0); errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return &stateError{fmt.Errorf("its state cannot be kept: %w", err)}
	}
	j.size = 0
	return nil
}

// close gives the file up.
func (j *journal) close() {
	if j.file != nil {
		j.file.Close()
		j.file = nil
	}
}
