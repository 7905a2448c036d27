// Package flow is the leaf every other package stands on: what a flow is, how
// flows travel, and what a judged flow and a finding look like.
//
// It holds plain data and the standard library only: no parsing of datagrams, no
// I/O, no clock, no policy. The arrows of the project all end here:
//
//	flow ← policy ← {enrich, detect}        flow ← {ingest, sink}        cmd → all
//
// # Ownership
//
// A [Record] is a value of fixed size without pointers; copying it copies all of
// it. Names (users, segments, rule ids …) are interned in a [Names] table and
// travel as a [Name], a small integer.
//
// A [Batch] is owned by one stage at a time: whoever received it last may write
// to it, nobody else may look at it. Handing it on hands the ownership on. A
// stage that keeps a batch beyond handing it on calls Retain first and from then
// on only reads. Its acknowledgement runs when the last holder calls Release.
//
// # Time
//
// Every time is a [Time]: milliseconds since the Unix epoch, UTC. Nothing in this
// package, in policy, enrich or detect asks the wall clock; time comes from the
// data or is handed in.
package flow
