package agent

import "testing"

// The logs below were written by real agents; see the fixtures' README for where they are
// from. The counts were taken from the files by other means (grep, jq).

func TestHubbleFixtures(t *testing.T) {
	d := checkTally(t, "hubble", "hubble/*.json", tally{lines: 1150, flows: 1150, observed: map[string]int{"allow": 1150}})
	spot(t, d, 0, `{"time_start":"2021-06-16T16:52:13.136Z","src_addr":"10.0.2.16","src_port":15020,"dst_addr":"10.0.2.1","dst_port":42044,
		"proto":6,"tcp_flags":17,"observer":"gke-ilya-otel-demo-1-ilya-otel-demo-1-6114bb84-zr1l","initiator":"destination","reporter":"source",
		"src_host":"bookinfo/reviews-v1-545db77b95-s6jb8","src_identity":"bookinfo/bookinfo-reviews","dst_identity":"reserved:host","observed":"allow",
		"bytes":null,"packets":null,"process":null,"dst_host":null,"policy":null}`)
	spot(t, d, 341, `{"time_start":"2021-11-10T10:40:56.885Z","src_addr":"10.244.0.206","src_port":59736,"dst_addr":"10.244.0.177","dst_port":9080,
		"tcp_flags":2,"observer":"kind-control-plane","initiator":"source","reporter":"source","direction":"egress",
		"src_host":"bookinfo/ratings-v1-b6994bb9-jgqxb","src_identity":"bookinfo/bookinfo-ratings","dst_host":"bookinfo/productpage-v1-6b746f74dc-9rcxx"}`)
	spot(t, d, 1149, `{"time_start":"2021-10-04T14:28:41.706Z","src_addr":"10.156.0.2","src_port":9253,"dst_addr":"10.156.2.7","dst_port":52506,"app":"http",
		"initiator":"destination","reporter":"destination","src_host":"kube-system/node-local-dns-6jnx9","src_identity":"reserved:world","dst_identity":"istio-system/prometheus"}`)
}

func TestZeekFixtures(t *testing.T) {
	d := checkTally(t, "zeek", "zeek/conn.log", tally{lines: 1250, flows: 1250, observed: map[string]int{"unknown": 1250}})
	spot(t, d, 0, `{"time_start":"1989-12-12T22:00:00.000Z","src_addr":"10.0.0.1","src_port":62673,"dst_addr":"8.8.8.8","dst_port":53,"proto":17,"app":"dns",
		"bytes":59,"packets":1,"rev_bytes":0,"rev_packets":0,"initiator":"source","tcp_flags":null,"observer":null}`)
	spot(t, d, 22, `{"time_start":"1999-03-11T13:45:07.494Z","time_end":"1999-03-11T13:46:01.648Z","src_addr":"fe80::200:86ff:fe05:80da","dst_addr":"fe80::260:97ff:fe07:69ea",
		"proto":58,"icmp_type":135,"icmp_code":136,"bytes":216,"rev_bytes":192,"packets":3,"rev_packets":3,"src_port":null,"initiator":null}`)
	spot(t, d, 600, `{"time_start":"2018-06-18T18:36:43.870Z","src_addr":"1.1.1.8","src_port":57005,"dst_addr":"2.2.2.2","dst_port":48879,"proto":6,"tcp_flags":2,"rev_tcp_flags":0,
		"bytes":80,"packets":2,"initiator":"source"}`)
	checkTally(t, "zeek", "zeek/ssh.log", tally{lines: 40, observed: map[string]int{}, notFlow: map[string]int{"a line of another log of Zeek's": 40}})
	checkTally(t, "zeek", "zeek/rdp.log", tally{lines: 5, observed: map[string]int{}, notFlow: map[string]int{"a line of another log of Zeek's": 5}})
}
