// Package goflow2 knows what the messages of goflow2 mean
// (https://github.com/netsampler/goflow2, pb/flow.proto and format/json), of its versions 1
// and 2: the names and numbers of their fields, and which [flow.Record] a message is. It
// frames nothing and parses no JSON: package kafka does it for the values of topics, package
// agent for lines of logs, so that a flow is the same whichever way it came.
//
// goflow2 tells a flow as a message of protocol buffers, version 3, or prints that message as
// JSON. Neither tells a number that is zero from one that its exporter never sent. What zero
// means is therefore decided by who sent it:
//
//	field                  NetFlow v5   NetFlow v9, IPFIX   sFlow
//	bytes                  zero         unknown             unknown
//	packets                zero         unknown             is always 1
//	proto                  zero         unknown             unknown
//	src_port, dst_port     zero         unknown             zero if the header was sampled
//	tcp_flags              zero         unknown             zero if the header was sampled
//	icmp_type, icmp_code   zero         unknown             unknown
//	in_if, out_if          zero         unknown             unknown
//	forwarding_status      not told     unknown             not told
//	sampling_rate          unknown      unknown             unknown
//	observation_domain_id  not told     0                   not told
//
// since a v5 record has all its fields always, and layer_stack names the headers that goflow2
// read of a sampled packet. Of a sampled ICMP packet goflow2 2.2.6 notes that it read the
// header, but never its type. Of a later fragment, which has no such header though goflow2
// reads one, ports, flags and ICMP type stay unknown. NetFlow's ICMP types in the destination
// port (v5 and v9) are read as package ingest reads them. flow_direction and
// bi_flow_direction (fields 42 and 41 in goflow2's own mapping) are taken where they are
// there, zero included.
//
// Times are goflow2's, but for the 49.7 days that it is off where an exporter's uptime
// wrapped; sFlow's are the receipt. v9 and IPFIX flows without times carry the export time;
// they are recognised by start and end being the same whole second within five seconds of the
// receipt, and marked as having none.
//
// The remarks on clock skew, changed templates and parked data are package ingest's own:
// goflow2 does not tell what they are made of.
package goflow2
