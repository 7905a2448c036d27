package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/postern/postern/detect"
	"github.com/postern/postern/enrich"
	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest"
	"github.com/postern/postern/ingest/agent"
)

// stageSettings is the part of the configuration that decides what the stages make
// of an input. Tokens promise that a range that is read again gives the same rows,
// so a change of these settings is a position in the spool like everything else
// that bears on results: segments that were begun before a crash are worked
// through under the settings they were begun with.
type stageSettings struct {
	Decode ingest.DecoderConfig `yaml:"decode"`
	Logs   agent.Config         `yaml:"logs"`
	Enrich enrich.Config        `yaml:"enrich"`
	Detect detect.Config        `yaml:"detect"`

	Sessions enrich.SessionsConfig `yaml:"sessions"`
}

// judging is the stages behind decoding, all nil where flows are judged elsewhere.
type judging struct {
	pairer   *enrich.Pairer
	detector *detect.Detector
	sessions *enrich.Sessions
	contacts *detect.Contacts
	// behaviour is nil where contacts go on to whoever looks at those of all partitions.
	behaviour *detect.Behaviour
	// past tells what edges that were forgotten were seen before, as far back as remember; nil
	// where nothing is stored.
	past     recaller
	remember flow.Time
}

// settle ends a unit for the sessions: detection hears what came of them. last says that
// nothing more comes of the input, final that nothing more comes at all. The digest is for the
// detectors of behaviour, if they are elsewhere. It may wait for the store.
func (j *judging) settle(ctx context.Context, last, final bool) ([]flow.Session, []flow.EdgeContribution, detect.Digest, error) {
	collect := j.sessions.Collect
	if last {
		collect = j.sessions.Flush
	}
	versions, contradictions := collect()
	edges, index := j.sessions.Edges(), j.sessions.Index()
	j.detector.Settle(versions, index)
	j.detector.Contradict(contradictions)
	j.contacts.Sessions(versions, edges, index)
	j.contacts.Untold(j.sessions.Untold())
	until := j.sessions.Watermark()
	if final {
		until = math.MaxInt64
	}
	digest := j.contacts.Collect(until)
	if err := j.confirm(ctx, &digest); err != nil {
		return nil, nil, digest, err
	}
	if j.behaviour != nil {
		j.behaviour.Take(0, &digest)
	}
	return versions, edges, digest, nil
}

// collect ends a unit for detection; final says that nothing more comes.
func (j *judging) collect(final bool) (contributions []flow.Contribution, events []*flow.Finding) {
	if j.detector != nil {
		detector := j.detector.Collect
		if final {
			detector = j.detector.Flush
		}
		contributions, events = detector()
	}
	if j.behaviour == nil {
		return contributions, events
	}
	behaviour := j.behaviour.Collect
	if final {
		behaviour = j.behaviour.Flush
	}
	more, told := behaviour()
	contributions, events = append(contributions, more...), append(events, told...)
	slices.SortStableFunc(contributions, func(a, b flow.Contribution) int { return strings.Compare(a.Finding.ID, b.Finding.ID) })
	slices.SortStableFunc(events, func(a, b *flow.Finding) int { return strings.Compare(a.ID, b.ID) })
	return contributions, events
}

// unseen gives versions of sessions of which it is known since, from the whole estate, that the agent
// of an end hid them.
func (j *judging) unseen() []flow.Session {
	if j.behaviour == nil {
		return nil
	}
	return j.behaviour.Unseen()
}

// blindSpots gives those that are new or have changed; final says that nothing more comes.
func (j *judging) blindSpots(final bool) []flow.BlindSpot {
	if j.behaviour == nil {
		return nil
	}
	return j.behaviour.BlindSpots(final)
}

func (c *config) stageSettings() (stageSettings, string, error) {
	s := stageSettings{c.Ingest.Decode, c.Ingest.Logs.Decode, c.Enrich, c.Detect, c.Sessions}
	text, err := yaml.Marshal(s)
	return s, string(text), err
}

// stages makes the stages of these settings, empty.
func (s *service) stages(set stageSettings, reg prometheus.Registerer) (*ingest.Decoder, judging, error) {
	set.Decode.SourceID = sourceID(s.spool.ID().String())
	set.Decode.Log = s.log
	decoder := ingest.NewDecoder(set.Decode, s.names, reg)
	if s.keeper == nil { // flows are judged elsewhere
		return decoder, judging{}, nil
	}
	j, err := judges(set, s.history, s.identity, s.names, reg)
	j.past, _ = s.store.(recaller)
	if err == nil {
		j.behaviour, err = detect.NewBehaviour(set.Detect, 1, detect.Versions{History: s.history}, s.names, reg)
	}
	return decoder, j, err
}

// versions is the policy as the stages ask for it.
type versions interface {
	enrich.Policy
	enrich.Versions
	detect.History
}

// judges makes the stages behind decoding.
func judges(set stageSettings, v versions, who *enrich.Identity, names *flow.Names, reg prometheus.Registerer) (j judging, err error) {
	set.Enrich.ClockTolerance, set.Detect.ClockTolerance = set.Decode.ClockTolerance, set.Decode.ClockTolerance
	set.Sessions.ClockTolerance = set.Decode.ClockTolerance
	set.Detect.SessionLateness = max(set.Sessions.Lateness, set.Sessions.CloudLateness) + set.Sessions.Settle
	if j.pairer, err = enrich.NewPairer(set.Enrich, v, enrich.DeclaredBy(v), names, reg); err != nil {
		return j, err
	}
	j.pairer.Identify(who)
	j.pairer.Translated(&set.Sessions)
	if j.detector, err = detect.New(set.Detect, detect.Versions{History: v}, names, reg); err != nil {
		return j, err
	}
	if j.contacts, err = detect.NewContacts(set.Detect, names, reg); err != nil {
		return j, err
	}
	j.remember = flow.Time(set.Detect.Behaviour.Remember.Milliseconds())
	j.sessions, err = enrich.NewSessions(set.Sessions, who.Domains(), names, reg)
	return j, err
}

func parseSettings(text string) (set stageSettings, err error) {
	// What the postern that wrote it did not know yet is as it is by default.
	set.Sessions.Settle, set.Detect.Behaviour = enrich.DefaultSessionsConfig().Settle, detect.DefaultBehaviourConfig()
	if err = yaml.Unmarshal([]byte(text), &set); err == nil {
		err = set.Logs.Compile()
	}
	if err != nil {
		err = fmt.Errorf("the settings in the checkpoint: %w", err)
	}
	return set, err
}

// settle decides which settings the pipeline begins with: those of the
// configuration, or while segments wait that were begun under others, those. cp
// may be nil.
func (s *service) settle(cp *checkpoint) (stageSettings, prometheus.Registerer, error) {
	now, text, err := s.cfg.stageSettings()
	if err != nil {
		return now, nil, err
	}
	s.settings = text
	if cp == nil || cp.Settings == "" || cp.Settings == text {
		return now, s.registry, nil
	}
	if !s.spool.Behind() {
		cp.Settings = text // durable before anything is made under them
		return now, s.registry, s.saved.save(context.Background(), cp)
	}
	old, err := parseSettings(cp.Settings)
	if err != nil {
		return now, nil, err
	}
	s.settings, s.next = cp.Settings, &now
	s.log.Info("settings of ingest.decode, enrich or detect changed while segments wait; they are worked through as they were begun, the change comes behind them")
	return old, nil, nil // metrics belong to the stages that stay
}

// adopt puts the stages of the configuration in the place of those that finished
// what was begun before. The checkpoint just taken names them already.
func (s *service) adopt(cp *checkpoint) error {
	decoder, stages, err := s.stages(*s.next, s.registry)
	if err != nil {
		return err
	}
	s.pipe.gate.Lock()
	defer s.pipe.gate.Unlock()
	s.pipe.use(decoder, stages)
	s.next = nil
	return s.pipe.restoreStages(cp.state)
}
