// Package identity reads who holds which address, and who belongs to which group, from
// where a company keeps it: inventory files, DHCP leases, directories, APIs, clusters.
//
// Each source is one file. It tells [flow.Fact]s, each with when it was valid, and
// heartbeats that say until when its silence means that nothing changed. What becomes of
// them, and how a flow finds the facts of its own time, is package enrich's.
package identity
