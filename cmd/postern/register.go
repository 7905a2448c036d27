package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/policy"
	"github.com/postern/postern/sink"
)

// storePolicyVersion records that a policy was accepted: what it says in the register, unless an
// acceptance as late as this one has put it there, and then the version itself.
func storePolicyVersion(ctx context.Context, db *sink.ClickHouse, v sink.PolicyVersion, registered map[string]flow.Time) error {
	version := v.Hash[:min(16, len(v.Hash))]
	if at, known := registered[version]; !known || at < v.AcceptedAt {
		p, err := policy.ParseSource([]byte(v.Source))
		if err != nil {
			return fmt.Errorf("policy version %s: %w", v.Hash, err)
		}
		if err := db.InsertRegister(ctx, registerOf(p, v.AcceptedAt)); err != nil {
			return err
		}
		registered[version] = v.AcceptedAt
	}
	_, err := db.InsertPolicyVersion(ctx, v)
	return err
}

// registerOf takes a policy apart for ClickHouse.
func registerOf(p *policy.Policy, accepted flow.Time) *sink.Register {
	names := flow.NewNames(0)
	x := policy.Compile(p, names, policy.DefaultConfig())
	r := &sink.Register{Version: p.Version(), At: accepted}
	inSegment := map[string]uint32{}
	for i := range p.Workloads {
		w := &p.Workloads[i]
		row := sink.RegisteredWorkload{Name: w.Name, App: w.App, Role: w.Role, Env: w.Env, Owner: w.Owner, Addresses: w.Addresses, Labels: map[string]string{}}
		for _, l := range w.Labels {
			row.Labels[l.Key] = l.Values[0]
		}
		var ends []*policy.Endpoint
		for _, a := range w.Addresses {
			ends = append(ends, x.Endpoint(flow.AddrFromNetip(a)))
		}
		least, dearest := policy.StageNone, &policy.Endpoint{}
		if len(ends) > 0 {
			least = slices.MinFunc(ends, func(a, b *policy.Endpoint) int { return cmp.Compare(a.Stage, b.Stage) }).Stage
			dearest = slices.MaxFunc(ends, func(a, b *policy.Endpoint) int { return cmp.Compare(a.Tier, b.Tier) })
		}
		row.Stage, row.Tier = least.String(), dearest.Tier.String()
		if dearest.Stage != policy.StageNone {
			row.Segment, row.Zone = names.Text(dearest.Segment), names.Text(dearest.Zone)
		}
		seen := map[flow.Name]bool{}
		for _, e := range ends {
			if !seen[e.Segment] {
				seen[e.Segment] = true
				inSegment[names.Text(e.Segment)]++
			}
		}
		r.Workloads = append(r.Workloads, row)
	}
	for i := range p.Segments {
		s := &p.Segments[i]
		r.Segments = append(r.Segments, sink.RegisteredSegment{Name: s.Name, Zone: s.Zone, Tier: s.Tier.String(), Stage: s.Stage.String(), Owner: s.Owner,
			AgentRequired: s.AgentRequired, DenyIn: s.DenyIn, DenyOut: s.DenyOut, Prefixes: s.Prefixes, Workloads: inSegment[s.Name]})
	}
	for i := range p.Rules {
		u := &p.Rules[i]
		r.Rules = append(r.Rules, sink.RegisteredRule{ID: u.ID, Action: u.Action.String(), Staged: u.Staged, Source: u.From.String(), Destination: u.To.String(),
			Services: serviceTexts(u.Services), Owner: u.Owner, Reason: u.Reason})
	}
	for i := range p.Exceptions {
		e := &p.Exceptions[i]
		row := sink.RegisteredException{ID: e.ID, Class: e.Class, Ticket: e.Ticket, Owner: e.Owner, Reason: e.Reason, RequestedBy: e.RequestedBy, RequestedAt: e.RequestedAt,
			NotBefore: e.NotBefore, Expires: e.Expires, RevokedAt: e.RevokedAt, RevokedBy: e.RevokedBy, RevokedFor: e.RevokedFor, Overrides: e.Overrides,
			Source: e.From.String(), Destination: e.To.String(), Services: serviceTexts(e.Services)}
		row.ApprovedAt, _ = e.ApprovedAt()
		for _, a := range e.Approved {
			row.ApprovedBy, row.ApproverRoles = append(row.ApprovedBy, a.By), append(row.ApproverRoles, a.Role)
		}
		row.PairsGranted, row.PortsGranted = x.Granted(names.Intern(e.ID))
		r.Exceptions = append(r.Exceptions, row)
	}
	for _, s := range x.Shares() {
		r.Coverage = append(r.Coverage, sink.Coverage{Stage: s.Stage.String(), Tier: s.Tier.String(), Workloads: uint32(s.Workloads), Addresses: s.Addresses})
	}
	return r
}

func serviceTexts(ranges []policy.Range) (out []string) {
	for _, r := range ranges {
		out = append(out, r.String())
	}
	return out
}
