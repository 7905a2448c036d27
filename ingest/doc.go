// Package ingest turns bytes from outside into flow records: NetFlow v5 and v9,
// IPFIX and sFlow v5, from UDP sockets through a spool on disk, or from capture
// files.
//
// A [Datagram] is one UDP payload with who sent it and when. [Decoder] turns
// datagrams into records of a [flow.Batch]; it is a deterministic state machine
// over its datagrams, without a clock of its own, and its state travels by
// Snapshot and Restore. [Capture] yields the datagrams of a pcap or pcapng file.
//
// What is read of each protocol, and what is not, stands in docs/formats.md. This
// package does not know what a record means to a policy, and stores no records.
package ingest
