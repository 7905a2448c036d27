package main

import (
	"bytes"
	"encoding/gob"
	"fmt"
	"math"
	"testing/fstest"
	"time"

	"github.com/postern/postern/detect"
	"github.com/postern/postern/enrich"
	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest"
	"github.com/postern/postern/policy"
)

// stages are those of the service behind decoding, wired as it wires them.
type stages struct {
	names     *flow.Names
	history   *policy.History
	pairer    *enrich.Pairer
	sessions  *enrich.Sessions
	detector  *detect.Detector
	contacts  *detect.Contacts
	behaviour *detect.Behaviour

	judged   *flow.Batch
	findings map[string]*told
	passed   uint64 // contacts that detectors of behaviour read
}

// told is a finding as it was told last.
type told struct {
	last    *flow.Finding
	highest flow.Severity // of its revisions
	first   flow.Time     // when it was told first, by the records' time
}

// newStages makes stages without memory. text is the policy; empty is none at all.
func newStages(names *flow.Names, text string) (*stages, error) {
	s := &stages{names: names, judged: flow.NewBatch(flow.BatchSize, nil), findings: map[string]*told{}}
	s.history = policy.NewHistory(names, policy.DefaultConfig())
	if text != "" {
		p, diags := policy.Load(fstest.MapFS{"policy.yaml": {Data: []byte(text)}})
		if err := diags.Err(); err != nil {
			return nil, fmt.Errorf("the policy of the generated company: %w", err)
		}
		if err := s.history.Add(p, policy.Always); err != nil {
			return nil, err
		}
	}
	var err error
	if s.pairer, err = enrich.NewPairer(enrich.DefaultConfig(), s.history, enrich.DeclaredBy(s.history), names, nil); err != nil {
		return nil, err
	}
	sessions := enrich.DefaultSessionsConfig()
	sessions.Lateness = time.Duration(activeTimeout)*time.Millisecond + time.Minute // as its documentation says: the exporters' active time-out and a minute
	sessions.ClockTolerance = ingest.DefaultDecoderConfig().ClockTolerance
	if s.sessions, err = enrich.NewSessions(sessions, nil, names, nil); err != nil {
		return nil, err
	}
	cfg := detect.DefaultConfig()
	cfg.ClockTolerance = sessions.ClockTolerance
	cfg.SessionLateness = max(sessions.Lateness, sessions.CloudLateness) + sessions.Settle
	if s.detector, err = detect.New(cfg, detect.Versions{History: s.history}, names, nil); err != nil {
		return nil, err
	}
	if s.contacts, err = detect.NewContacts(cfg, names, nil); err != nil {
		return nil, err
	}
	s.behaviour, err = detect.NewBehaviour(cfg, 1, detect.Versions{History: s.history}, names, nil)
	return s, err
}

// feed takes records in; they are in the order in which they were told.
func (s *stages) feed(records []flow.Record) {
	// A unit of the service's input is some seconds; here a thousand records or five minutes.
	for len(records) > 0 {
		n := 1
		for n < len(records) && n < flow.BatchSize && records[n].Received-records[0].Received < activeTimeout {
			n++
		}
		s.judged.Reset()
		s.pairer.Process(&flow.Batch{Records: records[:n]}, s.judged)
		s.observe(records[n-1].Received, false)
		records = records[n:]
	}
}

// finish takes in that nothing more comes.
func (s *stages) finish(now flow.Time) {
	s.judged.Reset()
	s.pairer.Flush(s.judged)
	s.observe(now, true)
}

// observe shows what was judged to sessions and detection, and keeps what they tell.
func (s *stages) observe(now flow.Time, last bool) {
	s.detector.Observe(s.judged)
	s.sessions.Observe(s.judged)
	s.contacts.Observe(s.judged)
	settle, rules, behaviour := s.sessions.Collect, s.detector.Collect, s.behaviour.Collect
	if last {
		settle, rules, behaviour = s.sessions.Flush, s.detector.Flush, s.behaviour.Flush
	}
	rows, contradictions := settle()
	edges, index := s.sessions.Edges(), s.sessions.Index()
	s.detector.Settle(rows, index)
	s.detector.Contradict(contradictions)
	s.contacts.Sessions(rows, edges, index)
	s.contacts.Untold(s.sessions.Untold())
	until := s.sessions.Watermark()
	if last {
		until = math.MaxInt64
	}
	digest := s.contacts.Collect(until)
	s.passed += uint64(len(digest.Contacts))
	s.behaviour.Take(0, &digest)
	for _, collect := range [...]func() ([]flow.Contribution, []*flow.Finding){rules, behaviour} {
		_, events := collect()
		s.keep(now, events)
	}
}

func (s *stages) keep(now flow.Time, events []*flow.Finding) {
	for _, f := range events {
		t := s.findings[f.ID]
		if t == nil {
			t = &told{first: now}
			s.findings[f.ID] = t
		}
		t.last, t.highest = f, max(t.highest, f.Severity)
	}
}

// section is a stage whose state can be taken and put back.
type section interface {
	Snapshot() ([]byte, error)
	Restore([]byte) error
}

func (s *stages) sections() []section {
	return []section{s.pairer, s.sessions, s.detector, s.contacts, s.behaviour}
}

// snapshot is the state of all stages.
func (s *stages) snapshot() ([]byte, error) {
	var parts [][]byte
	for _, x := range s.sections() {
		b, err := x.Snapshot()
		if err != nil {
			return nil, err
		}
		parts = append(parts, b)
	}
	var out bytes.Buffer
	err := gob.NewEncoder(&out).Encode(parts)
	return out.Bytes(), err
}

// restore puts the stages into the state of a snapshot.
func (s *stages) restore(b []byte) error {
	var parts [][]byte
	if err := gob.NewDecoder(bytes.NewReader(b)).Decode(&parts); err != nil {
		return err
	}
	for i, x := range s.sections() {
		if err := x.Restore(parts[i]); err != nil {
			return err
		}
	}
	return nil
}
