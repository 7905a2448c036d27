// Package exporter plays a flow exporter, for demonstrations, tests and
// benchmarks: it encodes flow records as NetFlow v5, NetFlow v9, IPFIX or sFlow v5
// datagrams with honest headers (sequence numbers, uptime, templates sent again and
// again, sampling told in options data), sends them over UDP from an address of
// its choice, and writes them as captures.
//
// It is deterministic: the same records at the same times give the same bytes. It
// is not a metering process; it never sees a packet.
package exporter
