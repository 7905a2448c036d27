// Package enrich says who a flow record speaks of: which end is the client and
// which the server, whether its other half was seen, and which identity is known
// for each end.
//
// [Orient] reads what the record itself carries. A [Pairer] orients and judges
// each record of a batch and holds back the few whose verdict hangs on their
// other half, for a bounded span of event time. Neither looks at the order in
// which records arrive to decide who the client is, and neither asks a clock.
//
// It does not mark observer duplicates: which of two exporters' tellings comes
// second can be said without looking at arrival order only after waiting for
// every flow, permitted ones included, and that is the business of merged sessions.
package enrich
