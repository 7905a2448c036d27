package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/postern/postern/flow"
	"github.com/postern/postern/policy"
	"github.com/prometheus/client_golang/prometheus"
)

// policyConfig says where the policy is.
type policyConfig struct {
	// Dir is the folder of the policy files, watched while the service runs.
	Dir string `yaml:"dir"`
	// Since states when the first version that this data directory sees came into force (RFC 3339); unset, it is the moment the service accepted it.
	Since flow.Time `yaml:"since"`
	// Judge is what judging may be told.
	Judge policy.Config `yaml:"judge"`
}

// policyQuiet is how long a folder must stay unchanged before it is read, so that
// a checkout or an editor in the middle of its work is not taken for a policy.
const policyQuiet = 2 * time.Second

// activation is a policy version coming into force. It travels through the spool,
// so that a re-read sees the same versions at the same places.
type activation struct {
	Hash     string    `json:"hash"`
	Since    flow.Time `json:"since"`
	Accepted flow.Time `json:"accepted"`         // when the service took it
	Commit   string    `json:"commit,omitempty"` // the Git commit that the folder stood at
}

// policyKeeper brings versions into force: it watches the folder, keeps the source
// of every version beside the checkpoints, and feeds the history that judging reads.
type policyKeeper struct {
	cfg     policyConfig
	sources string // directory of <hash>.json
	names   *flow.Names
	history *policy.History
	log     *slog.Logger
	append  func(activation) error // durably into the spool
	// onGroups, if set, is told the groups that a version names before flows are judged by it.
	onGroups func([]string)

	mu      sync.Mutex
	entered []activation // in force by position, part of the checkpoint
	latest  string       // hash this process last put into the spool; enter passes over what is in force already
	lastErr error        // why the folder as it stands is not in force; nil if it is

	loads    *prometheus.CounterVec
	rejected prometheus.Gauge
}

func newPolicyKeeper(cfg policyConfig, stateDir string, names *flow.Names, history *policy.History, log *slog.Logger, reg prometheus.Registerer) *policyKeeper {
	k := &policyKeeper{
		cfg: cfg, sources: filepath.Join(stateDir, "policy"), names: names, history: history, log: log,
		loads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postern_policy_loads_total",
			Help: "Readings of the policy folder by result: accepted, unchanged, rejected.",
		}, []string{"result"}),
		rejected: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "postern_policy_rejected",
			Help: "1 while the policy folder as it stands has errors and is not in force; alert on it.",
		}),
	}
	reg.MustRegister(k.loads, k.rejected)
	return k
}

// enter brings a version into force at the present position of the input.
func (k *policyKeeper) enter(a activation) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if n := len(k.entered); n > 0 {
		last := k.entered[n-1]
		if last.Hash == a.Hash {
			return nil
		}
		// A clock that was set back, or a stated moment given twice, must not keep the
		// newer version from coming into force, nor the service from starting.
		a.Since = max(a.Since, last.Since+1)
	}
	raw, err := os.ReadFile(k.path(a.Hash))
	if err != nil {
		return fmt.Errorf("policy version %s came into force at %s, but its source is gone: %w", a.Hash, a.Since, err)
	}
	p, err := policy.ParseSource(raw)
	if err != nil {
		return fmt.Errorf("policy version %s: %w", a.Hash, err)
	}
	p.Commit = a.Commit
	if k.onGroups != nil {
		k.onGroups(p.Groups())
	}
	if err := k.history.Add(p, a.Since); err != nil {
		return fmt.Errorf("policy version %s: %w", a.Hash, err)
	}
	k.entered = append(k.entered, a)
	k.forget(a.Since)
	k.log.Info("policy in force", "version", a.Hash, "since", a.Since)
	return nil
}

// historyOf makes a history of versions whose sources are kept here.
func (k *policyKeeper) historyOf(list []activation) (*policy.History, error) {
	past := &policyKeeper{cfg: k.cfg, sources: k.sources, log: slog.New(slog.DiscardHandler), history: policy.NewHistory(k.names, k.cfg.Judge)}
	for _, a := range list {
		if err := past.enter(a); err != nil {
			return nil, err
		}
	}
	return past.history, nil
}

// maxVersions bounds the versions held for judging; a compiled version takes some
// hundred kilobytes. A flow that began before the oldest of them is unverified.
const maxVersions = 256

// forget lets go of what can bear on no verdict any more: versions beyond
// maxVersions, and from the list those that ended longer ago than an exception
// stays implicated. It depends on the versions alone, so a re-read forgets alike.
// Sources stay on disk: an older checkpoint may still name them.
func (k *policyKeeper) forget(now flow.Time) {
	if in := k.history.Intervals(); len(in) > maxVersions {
		k.history.Forget(in[len(in)-maxVersions].Since)
	}
	for len(k.entered) > maxVersions && k.entered[1].Since < now.Add(-k.cfg.Judge.ImplicateFor) {
		k.entered = k.entered[1:]
	}
}

// keep stores a version's source durably.
func (k *policyKeeper) keep(hash string, source []byte) error {
	if err := os.MkdirAll(k.sources, 0o700); err != nil {
		return err
	}
	return writeDurably(k.path(hash), source)
}

func (k *policyKeeper) path(hash string) string { return filepath.Join(k.sources, hash+".json") }

// Snapshot lists the versions in force so far.
func (k *policyKeeper) Snapshot() ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return json.Marshal(k.entered)
}

// Restore brings the versions of a snapshot into force again.
func (k *policyKeeper) Restore(b []byte) error {
	var list []activation
	if err := json.Unmarshal(b, &list); err != nil {
		return err
	}
	for _, a := range list {
		if err := k.enter(a); err != nil {
			return err
		}
	}
	return nil
}

// versions lists what is in force so far, with the full sources.
func (k *policyKeeper) versions() ([]activation, func(hash string) ([]byte, error)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]activation(nil), k.entered...), func(hash string) ([]byte, error) { return os.ReadFile(k.path(hash)) }
}

// reload reads the folder and, if it holds another version than the last, puts it
// into the spool as in force from now on. A folder with errors changes nothing.
func (k *policyKeeper) reload(now flow.Time) error {
	err := k.tryReload(now)
	k.mu.Lock()
	k.lastErr = err
	k.mu.Unlock()
	k.rejected.Set(0)
	if err != nil {
		k.rejected.Set(1)
		k.loads.WithLabelValues("rejected").Inc()
		k.log.Error("policy not accepted; the last good version, if there was one, stays in force", "dir", k.cfg.Dir, "error", err)
	}
	return err
}

func (k *policyKeeper) tryReload(now flow.Time) error {
	p, diags := loadPolicy(k.cfg.Dir)
	for _, d := range diags {
		if d.Warning {
			k.log.Warn("policy", "at", d.String())
		}
	}
	if p == nil {
		return errors.New(diags.Errors().String())
	}
	hash := p.Hash()
	k.mu.Lock()
	same := hash == k.latest
	k.mu.Unlock()
	if same {
		k.loads.WithLabelValues("unchanged").Inc()
		return nil
	}
	since := now
	if kept, err := os.ReadDir(k.sources); k.cfg.Since != 0 && (err != nil || len(kept) == 0) {
		since = k.cfg.Since // stated for the first version that this directory sees
	}
	if err := k.keep(hash, p.Source()); err != nil {
		return err
	}
	if err := k.append(activation{Hash: hash, Since: since, Accepted: now, Commit: p.Commit}); err != nil {
		return err
	}
	k.mu.Lock()
	k.latest = hash
	k.mu.Unlock()
	k.loads.WithLabelValues("accepted").Inc()
	return nil
}

// errNotAppended is a version that is good, but could not be put in its place; it can
// be tried again.
var errNotAppended = errors.New("the version could not be written down")

// settle waits, at a start, until the folder has been quiet, so that a checkout that
// is under way is not taken by half. A folder that never rests is read in the end.
func (k *policyKeeper) settle(ctx context.Context) {
	for range 5 {
		var newest time.Time
		root, err := filepath.EvalSymlinks(k.cfg.Dir)
		if err != nil {
			return
		}
		_ = filepath.WalkDir(root, func(_ string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil //nolint:nilerr // what vanished is no longer there to be waited for
			}
			if info, err := d.Info(); err == nil && info.ModTime().After(newest) {
				newest = info.ModTime()
			}
			return nil
		})
		wait := policyQuiet - time.Since(newest)
		if wait <= 0 || wait > policyQuiet { // a date in the future says nothing
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// watch reloads after every change of the folder, once it has been quiet, and
// whenever hup says so, until ctx ends.
func (k *policyKeeper) watch(ctx context.Context, hup <-chan os.Signal, now func() flow.Time) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		// Out of inotify watches, as a rule: no reason to stop receiving flows.
		k.log.Error("the policy folder cannot be watched; changes are taken on SIGHUP alone", "error", err)
		w = &fsnotify.Watcher{} // nothing ever comes from it
	} else {
		defer w.Close()
		k.follow(w)
	}
	dir := filepath.Clean(k.cfg.Dir)
	above := filepath.Dir(dir)
	quiet := time.NewTimer(policyQuiet) // also catches what changed between the first reading and now
	defer quiet.Stop()
	// reload has told and counted what is wrong with the files. What the disk or Kafka
	// refused is worth another try.
	reload := func() {
		if err := k.reload(now()); errors.Is(err, errNotAppended) {
			quiet.Reset(15 * time.Second)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
			// At once, not by the timer: the next change of a folder that never
			// rests would put the timer off again.
			reload()
		case event, ok := <-w.Events:
			if !ok {
				return errors.New("watching the policy folder ended by itself")
			}
			if name := filepath.Clean(event.Name); filepath.Dir(name) == above && name != dir {
				continue // a neighbour of the folder
			}
			k.follow(w)
			quiet.Reset(policyQuiet)
		case err, ok := <-w.Errors:
			if !ok {
				return errors.New("watching the policy folder ended by itself")
			}
			k.log.Warn("watching the policy folder", "error", err)
			quiet.Reset(policyQuiet)
		case <-quiet.C:
			reload()
		}
	}
}

// follow watches the folder, every folder below it, and the one above it, where a
// deployment that swaps a link shows.
func (k *policyKeeper) follow(w *fsnotify.Watcher) {
	add := func(path string) {
		if err := w.Add(path); err != nil {
			k.log.Warn("watching the policy folder", "path", path, "error", err)
		}
	}
	add(filepath.Dir(filepath.Clean(k.cfg.Dir)))
	root, err := filepath.EvalSymlinks(k.cfg.Dir) // WalkDir does not go into a link
	if err != nil {
		return // it is not there; the folder above shows when it comes
	}
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			add(path)
		}
		return nil // a folder that vanished meanwhile shows as an event
	})
}

// ready says why no verdict can be trusted, nil if one can.
func (k *policyKeeper) ready() error {
	if k.history.Latest() == nil {
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.lastErr != nil {
			return fmt.Errorf("no policy is in force: %w", k.lastErr)
		}
		if k.latest != "" {
			return errors.New("no policy is in force yet; the one that was read has its turn behind what was received before it, and with sources of identities identity.hold later")
		}
		return errors.New("no policy is in force yet")
	}
	return nil
}
