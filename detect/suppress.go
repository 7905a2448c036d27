package detect

import (
	"cmp"
	"strconv"
	"strings"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/policy"
)

// Suppressions act here, where findings are told, and nowhere later: what counts is when a
// sighting was, by event time, and the policy version in force then, which a receiver, a
// topic or an outbox no longer knows. So a replay, a restart or another division among
// detectors holds back the same. Verdicts, ids, counts and contributions are made before
// and do not change.
//
// A change of a finding is held back if each sighting that it would tell of began while a
// suppression held for what the finding is about, and one still holds. Whatever else there
// is to tell is told, and all of it once the suppression is over.

// suppressions is what the book asks of the policy versions.
type suppressions interface {
	// Stamp names the version in force at a time, the Git commit it was taken from and from
	// when on it was in force; empty or 0 where that is not known, or always.
	Stamp(at flow.Time) (version, commit string, since flow.Time)
	// Suppresses says whether the version in force at a time has suppressions of a detector.
	Suppresses(at flow.Time, detector string) bool
	// Suppressed gives the id of the suppression that holds at a time for findings of a
	// detector about a key and of a severity, and until when; empty if none does.
	Suppressed(at flow.Time, detector string, about policy.FindingKey, v flow.Severity) (by string, until flow.Time)
}

// Suppresses implements [Policy].
func (v Versions) Suppresses(at flow.Time, detector string) bool {
	x := v.At(at)
	return x != nil && x.Suppresses(detector)
}

// Suppressed implements [Policy].
func (v Versions) Suppressed(at flow.Time, detector string, about policy.FindingKey, severity flow.Severity) (by string, until flow.Time) {
	x := v.At(at)
	if x == nil {
		return "", 0
	}
	if s := x.Suppression(at, detector, about, severity); s != nil {
		return s.ID, s.Expires
	}
	return "", 0
}

// suppressed asks for a finding's key only where that matters.
func (d *book) suppressed(at flow.Time, k *key, t *told) (by string, until flow.Time) {
	if d.policy == nil || !d.policy.Suppresses(at, k.Type) {
		return "", 0
	}
	return d.policy.Suppressed(at, k.Type, about(k, t), t.Severity)
}

// about is what suppressions know a finding by: that of [policy.KeyOf] for what is told.
func about(k *key, t *told) policy.FindingKey {
	return policy.KeyOf(&flow.Finding{Type: k.Type, Client: k.Client.String(), Server: k.Server.String(),
		Service: t.Service, Rule: t.Rule, Exception: t.Exception, Detail: flow.Detail{Subject: k.subject()}})
}

// subject is all that a key holds but for type and day, in words; empty where the ends, the
// service and the rule or exception of the finding say as much.
func (k *key) subject() string {
	switch k.Type {
	case flow.FindingExpired, flow.FindingNotYetValid, flow.FindingUnapproved, flow.FindingOutOfScope, flow.FindingOutlived, flow.FindingGrown,
		flow.FindingDenied, flow.FindingMisblocked:
		return ""
	}
	parts := []string{k.Subject}
	for _, a := range []flow.Addr{k.Client, k.Server} {
		if !a.IsZero() {
			parts = append(parts, a.String())
		}
	}
	if k.Proto != 0 {
		parts = append(parts, string(flow.AppendProto(nil, k.Proto))+"/"+strconv.Itoa(int(k.Port)))
	}
	return strings.Join(parts, "|")
}

// lull is what is known of the suppressions that held while sightings came: the one that
// ends last, and when.
type lull struct {
	By    string    `json:"by"`
	Until flow.Time `json:"until"`
}

// quieten takes note of whether a sighting that was added may be held back.
func (d *book) quieten(f *finding, s *sighting) {
	by, until := d.suppressed(s.Span.Start, &s.Key, &s.Told)
	if by == "" {
		f.Fresh = true
		return
	}
	f.Suppressed++
	if q := (lull{by, until}); cmp.Or(cmp.Compare(q.Until, f.Quiet.Until), cmp.Compare(q.By, f.Quiet.By)) > 0 {
		f.Quiet = q
	}
}

// news takes note that something was learned of sightings that are there already.
func (f *finding) news() { f.Fresh = f.Fresh || f.Suppressed < f.Records }

// suppressor is the id of the suppression that holds a finding back now, empty if it is to
// be told. What one suppression held back is told at its end, also where another follows;
// but for a finding that had closed so long before that it is forgotten by then.
func (d *book) suppressor(f *finding) string {
	if f.Suppressed == 0 || f.Fresh {
		return ""
	}
	by, _ := d.suppressed(d.clock, &f.Key, &f.settled().Told)
	switch {
	case by == f.Quiet.By:
		return by
	case by == "" && d.over(f)+millis(keepClosed) < min(f.Quiet.Until, d.clock):
		return f.Quiet.By
	}
	f.Fresh = true
	return ""
}

// hold keeps a change back, unless it is still to be waited with; the change is pending.
func (d *book) hold(f *finding, all bool) {
	if !all && !f.Closed && f.HeldAt != 0 && d.clock < f.HeldAt+d.updateEvery {
		return
	}
	delete(d.pending, f)
	f.HeldAt = d.clock
	d.m.suppressed.WithLabelValues(f.Key.Type).Inc()
}

// reopen has a finding told whose suppression is over.
func (d *book) reopen(f *finding) {
	if f.HeldAt == 0 || d.suppressor(f) != "" {
		return
	}
	d.touch(f, 0, span{f.Span.Start, f.Span.Start})
}

// suppressedText says in words what was held back.
func (f *finding) suppressedText() string {
	switch f.Suppressed {
	case 0:
		return ""
	case 1:
		return " One record of it came while a suppression held."
	}
	return " " + strconv.FormatUint(f.Suppressed, 10) + " records of it came while a suppression held."
}
