package enrich

import "github.com/postern/postern/flow"

// How sure an orientation is, in percent, by what it rests on. The figures rank
// the kinds of evidence; they are not measured frequencies.
const (
	certainByField  = 100 // initiatorOctets/responderOctets: Src is the initiator by definition
	certainByGroup  = 100 // the destination is a multicast or broadcast address: it cannot have answered
	certainByICMP   = 100 // an echo request (or its like) against the reply
	certainByFlags  = 98  // a SYN without ACK, or a single SYN+ACK packet
	certainByBiflow = 95  // biflowDirection: the exporter's own judgement (RFC 5103, 6.3)
	certainByPort   = 90  // a service port against one from the ephemeral range
	certainByName   = 80  // a service port against one that is neither known nor ephemeral
	certainByStart  = 70  // the half that began first (Pairer)
)

// ephemeral is the first port that common systems hand out to clients: Linux
// 32768–60999, Windows and IANA 49152–65535.
const ephemeral = 32768

// Services says which ports a policy declares as services, besides the compact
// table of well-known ones. Wide ranges must not count: where every dynamic port
// is declared (DCE/RPC), a dynamic port says nothing about who serves.
type Services interface {
	// DeclaresPort says whether the responder's port of proto (TCP, UDP, SCTP)
	// is declared as a service, at the time of the flow.
	DeclaresPort(proto uint8, port uint16) bool
}

// Orient fills r.Oriented and r.OrientationCertainty from what the record itself
// carries, never from when it arrived. declared may be nil. In this order, the
// first that speaks decides:
//
//	fields      HasInitiator: Src is the client; HasResponder: Dst is            100
//	biflow      biflowDirection 1 (initiator) or 2 (reverse initiator)            95
//	address     the destination is multicast or broadcast: Src is the client     100
//	icmp        request and reply types                                          100
//	tcp flags   per direction: SYN without ACK is the client's, a single packet
//	            SYN+ACK the server's                                              98
//	ports       a service port (below 1024, well known or declared) against one
//	            that is none: 90 from 32768 on, else 80
//
// Everything else stays open, among it: two service ports, two dynamic ports,
// ICMP errors, ICMP told as a biflow, protocols without ports, records without
// addresses. Biflow order alone says nothing: softflowd's source is merely the
// lower address. SYN in the flags of both directions says nothing either, they
// are an OR over the flow.
func Orient(r *flow.Record, declared Services) {
	r.Oriented, r.OrientationCertainty = orient(r, declared)
}

func orient(r *flow.Record, declared Services) (flow.Orientation, uint8) {
	if !r.All(flow.HasSrc | flow.HasDst) {
		return flow.Open, 0
	}
	switch {
	case r.Any(flow.HasInitiator):
		return flow.Forward, certainByField
	case r.Any(flow.HasResponder):
		return flow.Reverse, certainByField
	}
	if r.Any(flow.HasBiflowDirection) {
		switch r.BiflowDirection {
		case 1:
			return flow.Forward, certainByBiflow
		case 2:
			return flow.Reverse, certainByBiflow
		}
	}
	if multicast(r.Dst) {
		return flow.Forward, certainByGroup
	}
	if !r.Any(flow.HasProto) {
		return flow.Open, 0
	}
	switch r.Proto {
	case flow.ProtoICMP, flow.ProtoICMPv6:
		// In a biflow the type may be that of either direction.
		if !r.Any(flow.HasICMP) || r.Biflow() {
			return flow.Open, 0
		}
		switch _, reply := icmpRequest(r.Proto, r.ICMPType); {
		case isICMPRequest(r.Proto, r.ICMPType):
			return flow.Forward, certainByICMP
		case reply:
			return flow.Reverse, certainByICMP
		}
		return flow.Open, 0
	case flow.ProtoTCP:
		if o := byFlags(r); o != flow.Open {
			return o, certainByFlags
		}
	case flow.ProtoUDP, flow.ProtoSCTP:
	default:
		return flow.Open, 0
	}
	if !r.All(flow.HasSrcPort | flow.HasDstPort) {
		return flow.Open, 0
	}
	src, dst := serves(r.Proto, r.SrcPort, declared), serves(r.Proto, r.DstPort, declared)
	switch {
	case dst && !src:
		return flow.Forward, byOtherPort(r.SrcPort)
	case src && !dst:
		return flow.Reverse, byOtherPort(r.DstPort)
	}
	return flow.Open, 0
}

func byOtherPort(other uint16) uint8 {
	if other >= ephemeral {
		return certainByPort
	}
	return certainByName
}

// byFlags reads the TCP flags of each direction. Where a biflow does not tell the
// flags of its reverse direction, the ones it tells may be of both and are not used.
func byFlags(r *flow.Record) flow.Orientation {
	if !r.Any(flow.HasTCPFlags) || r.Biflow() && !r.Any(flow.HasRevTCPFlags) {
		return flow.Open
	}
	o := sentBy(r.TCPFlags, r.PacketsRaw, r.Any(flow.HasPackets))
	if !r.Any(flow.HasRevTCPFlags) {
		return o
	}
	rev := flow.Open
	switch sentBy(r.RevTCPFlags, r.RevPacketsRaw, r.Any(flow.HasRevPackets)) {
	case flow.Forward:
		rev = flow.Reverse
	case flow.Reverse:
		rev = flow.Forward
	}
	switch {
	case o == flow.Open:
		return rev
	case rev == flow.Open || rev == o:
		return o
	}
	return flow.Open
}

// sentBy says what the flags of one direction say of their sender: Forward, the
// client; Reverse, the server. SYN+ACK counts for a single packet only: two
// packets may be a client's SYN and the ACK that completes its handshake.
func sentBy(flags uint16, packets uint64, hasPackets bool) flow.Orientation {
	switch {
	case flags&(flow.SYN|flow.ACK) == flow.SYN:
		return flow.Forward
	case flags&0x3f == flow.SYN|flow.ACK && hasPackets && packets == 1:
		return flow.Reverse
	}
	return flow.Open
}

// multicast says whether a is multicast or the limited broadcast address.
func multicast(a flow.Addr) bool {
	if a.Is4() {
		v := a.V4()
		return v>>28 == 0xe || v == 0xffffffff
	}
	return a.Hi>>56 == 0xff
}

// icmpRequest gives the type of the request that a reply answers; for every other
// type the type itself and false.
func icmpRequest(proto, typ uint8) (request uint8, reply bool) {
	if proto == flow.ProtoICMPv6 {
		if typ == 129 { // echo reply, RFC 4443
			return 128, true
		}
		return typ, false
	}
	switch typ {
	case 0: // echo reply, RFC 792
		return 8, true
	case 14, 16: // timestamp reply, information reply, RFC 792
		return typ - 1, true
	case 18: // address mask reply, RFC 950
		return 17, true
	}
	return typ, false
}

func isICMPRequest(proto, typ uint8) bool {
	if proto == flow.ProtoICMPv6 {
		return typ == 128
	}
	return typ == 8 || typ == 13 || typ == 15 || typ == 17
}

// serves says whether a port is one that services listen on.
func serves(proto uint8, port uint16, declared Services) bool {
	if port == 0 {
		return false
	}
	return port < 1024 || wellKnown[port>>6]&(1<<(port&63)) != 0 ||
		declared != nil && declared.DeclaresPort(proto, port)
}

// wellKnown is a set of ports from 1024 on that are services wherever they occur,
// for TCP and UDP alike. Short on purpose: ports that clients are also handed are
// left to the policy's own services.
var wellKnown = portSet(
	1080, 1194, 1433, 1434, 1494, 1521, 1522, 1701, 1723, 1812, 1813, 1883, // socks, openvpn, mssql, citrix, oracle, l2tp, pptp, radius, mqtt
	2049, 2055, 2181, 2375, 2376, 2379, 2380, 2483, 2484, 2598, 3128, 3260, // nfs, netflow, zookeeper, docker, etcd, oracle, citrix, squid, iscsi
	3268, 3269, 3306, 3389, 3478, 3690, 4369, 4500, 4739, 4789, 5044, 5060, 5061, // global catalogue, mysql, rdp, stun, svn, epmd, ipsec, ipfix, vxlan, beats, sip
	5222, 5269, 5353, 5355, 5432, 5601, 5671, 5672, 5666, 5900, 5901, 5938, // xmpp, mdns, llmnr, postgres, kibana, amqp, nrpe, vnc, teamviewer
	5984, 5985, 5986, 6343, 6379, 6443, 6514, 6667, 7000, 7001, 7077, 7680, // couchdb, winrm, sflow, redis, kubernetes, syslog tls, irc, cassandra, weblogic, spark, delivery optimisation
	8000, 8008, 8080, 8081, 8086, 8088, 8089, 8123, 8140, 8200, 8300, 8301, // http, influx, splunk, clickhouse, puppet, vault, consul
	8443, 8500, 8530, 8531, 8834, 8883, 8888, 9000, 9042, 9090, 9092, 9093, // https, consul, wsus, nessus, mqtt tls, http, clickhouse, cassandra, prometheus, kafka
	9100, 9200, 9300, 9389, 9418, 9440, 9443, 9600, 9995, 9996, 9997, 9999, // jetdirect, elasticsearch, ad web services, git, clickhouse tls, netflow, splunk
	10000, 10050, 10051, 10250, 11211, 15672, 16379, 25672, 27017, 27018, 28017, // webmin, zabbix, kubelet, memcached, rabbitmq, redis, mongodb
)

func portSet(ports ...uint16) *[1024]uint64 {
	var s [1024]uint64
	for _, p := range ports {
		s[p>>6] |= 1 << (p & 63)
	}
	return &s
}
