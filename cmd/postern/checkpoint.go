package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/postern/postern/flow"
)

// checkpoint is the state of every stage after one segment of the spool. The
// segments after it are read again when the service starts; since every stage is
// deterministic, they give the same rows under the same tokens and the same
// finding events.
type checkpoint struct {
	Version int    `json:"version"`
	Spool   string `json:"spool"`   // id of the spool directory it belongs to
	Segment uint64 `json:"segment"` // the last segment it includes
	// Settings are those of the stages from here on, as YAML: what was begun under
	// them is read again under them, whatever the configuration says by then.
	Settings string `json:"settings"`
	// Ledger holds what only the pipeline counts: received, written, refused.
	Ledger ledgerTotals `json:"ledger"`
	// Sections names the file of each stage's state by its content.
	Sections map[string]string `json:"sections"`

	state map[string][]byte // the sections themselves
}

// ledgerTotals are the pipeline's own terms of the two ledgers, by exporter.
type ledgerTotals map[flow.Addr]flow.Account

const checkpointVersion = 1

// checkpoints keeps the newest checkpoint in a directory. A section whose content
// has not changed since the last time is not written again, so templates that
// stay the same cost nothing a second.
type checkpoints struct{ dir string }

func (c checkpoints) manifest() string { return filepath.Join(c.dir, "checkpoint.json") }

// load reads the newest checkpoint; nil without an error if there is none.
func (c checkpoints) load() (*checkpoint, error) {
	raw, err := os.ReadFile(c.manifest())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var cp checkpoint
	if err := json.Unmarshal(raw, &cp); err != nil {
		return nil, fmt.Errorf("%s: %w", c.manifest(), err)
	}
	if cp.Version != checkpointVersion {
		return nil, fmt.Errorf("%s is of version %d, this postern reads version %d; run the postern that wrote it until its spool is empty, then remove the file",
			c.manifest(), cp.Version, checkpointVersion)
	}
	cp.state = map[string][]byte{}
	for name, file := range cp.Sections {
		b, err := os.ReadFile(filepath.Join(c.dir, file))
		if err != nil {
			return nil, fmt.Errorf("checkpoint section %s: %w", name, err)
		}
		if sectionFile(name, b) != file {
			return nil, fmt.Errorf("checkpoint section %s: %s does not hold what its name says; it was changed or cut", name, file)
		}
		cp.state[name] = b
	}
	return &cp, nil
}

// save makes cp the newest checkpoint. It is durable when save returns.
func (c checkpoints) save(_ context.Context, cp *checkpoint) error {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	cp.Version = checkpointVersion
	cp.Sections = map[string]string{}
	for name, b := range cp.state {
		file := sectionFile(name, b)
		cp.Sections[name] = file
		path := filepath.Join(c.dir, file)
		if _, err := os.Stat(path); err == nil {
			continue
		}
		if err := writeDurably(path, b); err != nil {
			return fmt.Errorf("checkpoint section %s: %w", name, err)
		}
	}
	raw, err := json.Marshal(cp)
	if err != nil {
		return err
	}
	if err := writeDurably(c.manifest(), raw); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return c.sweep(cp)
}

// sweep removes section files that the newest checkpoint does not name.
func (c checkpoints) sweep(cp *checkpoint) error {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	live := map[string]bool{}
	for _, f := range cp.Sections {
		live[f] = true
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), sectionSuffix) && !live[e.Name()] {
			if err := os.Remove(filepath.Join(c.dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

const sectionSuffix = ".state"

func sectionFile(name string, b []byte) string {
	sum := sha256.Sum256(b)
	return name + "-" + hex.EncodeToString(sum[:8]) + sectionSuffix
}

// writeDurably replaces the file at path by one that holds b: after a crash
// either the old or the new one is there, whole.
func writeDurably(path string, b []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already where all went well
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes the names in a folder durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
