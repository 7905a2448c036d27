package siem

import (
	"unicode/utf8"

	"github.com/postern/postern/flow"
)

// MaxMessage is the size in bytes that a message stays under (SEMANTICS
// "Findings"; Standard Webhooks "Payload size").
const MaxMessage = 20_000

// MarshalFinding gives the message for a finding: its JSON, under MaxMessage
// bytes. What does not fit is cut in this order: edges beyond flow.MaxEdges,
// samples from the end, edges from the end, and last the longest texts, which
// then end in "…"; lists that alone fill it are left out. edges_total keeps the true count; ClickHouse holds everything.
// The same finding always gives the same bytes. f is not changed.
func MarshalFinding(f *flow.Finding) ([]byte, error) {
	m := *f
	m.EdgesTotal = max(m.EdgesTotal, len(m.Edges))
	m.Edges = m.Edges[:min(len(m.Edges), flow.MaxEdges)]
	if m.Edges == nil {
		m.Edges = []flow.Edge{}
	}
	return fit(&m, MaxMessage, func(m *flow.Finding) ([]byte, error) { return marshal(m) }, cutFinding)
}

// cutFinding shortens every text that a network, a ticket system or a person
// chose; the id and the fixed vocabulary stay whole.
func cutFinding(m *flow.Finding, n int) {
	for _, s := range []*string{&m.Title, &m.Client, &m.Server, &m.Service, &m.SrcSegment, &m.DstSegment, &m.Rule, &m.Exception,
		&m.Ticket, &m.Owner, &m.Requester, &m.Approver, &m.PolicyVersion, &m.Sentence, &m.Next} {
		*s = cutText(*s, n)
	}
	edges := make([]flow.Edge, len(m.Edges))
	for i, e := range m.Edges {
		e.Source, e.Destination, e.Protocol = cutText(e.Source, n), cutText(e.Destination, n), cutText(e.Protocol, n)
		edges[i] = e
	}
	m.Edges = edges
}

// cutText shortens s to at most n bytes and an ellipsis, never inside a character.
func cutText(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// NewEvent is the event that tells one revision of a finding.
func NewEvent(f *flow.Finding) (Event, error) {
	body, err := MarshalFinding(f)
	if err != nil {
		return Event{}, err
	}
	return Event{ID: f.EventID(), Key: f.ID, Body: body, Time: f.LastSeen, Urgent: f.Severity == flow.Critical}, nil
}
