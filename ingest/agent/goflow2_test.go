package agent

import "testing"

func FuzzGoflow2(f *testing.F) { fuzzFormat(f, "goflow2") }

func BenchmarkGoflow2(b *testing.B) { benchFormat(b, "goflow2", "goflow2-json/*.json") }

// The counts were taken from the file with Python's json.
func TestGoflow2Fixtures(t *testing.T) {
	d := checkTally(t, "goflow2", "goflow2-json/*.json", tally{lines: 100, flows: 100, observed: map[string]int{"unknown": 100}})
	spot(t, d, 0, `{"source":"ipfix","exporter":"100.64.0.8","time_start":"2021-11-21T13:37:12.000Z","time_received":"2021-11-21T13:37:12.000Z",
		"quality":["time_missing"],"src_addr":"10.130.2.13","src_port":3100,"dst_addr":"10.130.2.2","dst_port":36936,"proto":6,"bytes":20800,"packets":400,
		"in_if":18,"src_host":"observatorium-loki-ingester-0","dst_host":null,"tcp_flags":null,"out_if":null,"sampling_rate":null,"direction":null,"observed":null}`)
	spot(t, d, 1, `{"exporter":"100.64.0.7","src_addr":"10.129.2.11","src_port":45018,"dst_addr":"10.0.156.12","dst_port":9537,"bytes":116000,"in_if":16,"src_host":"prometheus-k8s-1"}`)
	spot(t, d, 2, `{"src_addr":"10.130.2.2","src_port":36936,"dst_addr":"10.130.2.13","dst_port":3100,"in_if":7,"dst_host":"observatorium-loki-ingester-0","src_host":null}`)
}
