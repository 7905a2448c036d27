package agent_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/agent"
	"github.com/postern/postern/ingest/kafka"
)

// TestGoflow2LikeKafka reads messages as a log and as the values of a topic: the flows have to
// be the same but for their ids and for what package kafka does not read, addresses in base 64
// and pods.
func TestGoflow2LikeKafka(t *testing.T) {
	var lines []string
	for _, file := range []string{"testdata/goflow2.log", filepath.Join("..", "..", "..", "shared", "fixtures", "agent", "goflow2-json", "log-lines.json")} {
		if dir := os.Getenv("POSTERN_FIXTURES"); dir != "" && !strings.HasPrefix(file, "testdata") {
			file = filepath.Join(dir, "agent", "goflow2-json", "log-lines.json")
		}
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Logf("left out: %v", err)
			continue
		}
		lines = append(lines, strings.Split(strings.TrimSpace(string(raw)), "\n")...)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		lines = append(lines, randomGoflow2(random))
	}
	names := flow.NewNames(0)
	for _, received := range []flow.Time{0, 1_790_953_460_000} {
		d, err := agent.NewDecoder("goflow2", agent.Config{BelieveClock: received == 0}, names)
		if err != nil {
			t.Fatal(err)
		}
		k, err := kafka.NewForeign("goflow2-json", names)
		if err != nil {
			t.Fatal(err)
		}
		o := agent.Origin{Received: received}
		flows := 0
		for _, line := range lines {
			a, b := flow.NewBatch(1, nil), flow.NewBatch(1, nil)
			aErr := d.Decode([]byte(line), 0, &o, a)
			_, bErr := k.Decode([]byte(line), 0, received, b)
			if (aErr == nil) != (bErr == nil) {
				t.Fatalf("%s\nas a log: %v\nin a topic: %v", line, aErr, bErr)
			}
			if aErr != nil {
				continue
			}
			flows++
			x, y := &a.Records[0], &b.Records[0]
			x.ID, x.SrcHost, x.DstHost = y.ID, y.SrcHost, y.DstHost
			if strings.Contains(line, `=="`) {
				x.Exporter = y.Exporter
			}
			if diff := cmp.Diff(*y, *x); diff != "" {
				t.Fatalf("%s\n%s", line, diff)
			}
		}
		t.Logf("%d flows, received %v", flows, received)
	}
}

// randomGoflow2 makes a message of some fields with values likely and unlikely.
func randomGoflow2(r *rand.Rand) string {
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	number := func() string {
		return pick("0", "1", "6", "17", "58", "53", "443", "2048", "255", "256", "65535", "65536", "1073741823", "1073741824", "4294967295", "4294967296",
			"18446744073709551615", "18446744073709551616", "-1", "1.5", "1e3", `"7"`, `"x"`, `""`, "null", "true", "{}", "[1]")
	}
	when := func() string {
		return pick("0", "1790953449000000000", "1790953450000000000", "1790953445123456789", "1786658477000000000", "1795248417000000000",
			"1690953445000000000", `"2026-10-02T15:04:09.25Z"`, `"2600-01-01T00:00:00Z"`, "1790953449", "1790953449000", "-5", number())
	}
	address := func() string {
		return pick(`"10.1.0.5"`, `"2001:db8::1"`, `"0.0.0.0"`, `"::ffff:10.0.0.1"`, `"x"`, `""`, "7", "null")
	}
	var members []string
	add := func(key, value string) {
		if r.IntN(4) > 0 {
			members = append(members, fmt.Sprintf("%q:%s", key, value))
		}
	}
	add(pick("type", "Type"), pick(`"SFLOW_5"`, `"NETFLOW_V5"`, `"NETFLOW_V9"`, `"IPFIX"`, `"OTHER"`, "1", "2", "3", "4", "5", number()))
	add(pick("time_received_ns", "TimeReceived", "timeReceivedNs"), when())
	add(pick("time_flow_start_ns", "TimeFlowStart", "TimeFlowStartMs"), when())
	add(pick("time_flow_end_ns", "TimeFlowEnd", "TimeFlowEndMs"), when())
	add("sampler_address", address())
	add("src_addr", address())
	add("DstAddr", address())
	add("proto", pick(`"TCP"`, `"UDP"`, `"ICMP"`, `"IPv6-ICMP"`, `"IPIP"`, `"unknown"`, "6", "17", "1", number()))
	for _, key := range []string{"sampling_rate", "bytes", "packets", "src_port", "dst_port", "in_if", "OutIf", "tcp_flags", "icmp_type", "IcmpCode",
		"forwarding_status", "observation_domain_id", "flow_direction", "bi_flow_direction", "hello"} {
		add(key, number())
	}
	if r.IntN(3) == 0 {
		add("fragment_offset", number())
	}
	if r.IntN(2) == 0 {
		add("layer_stack", pick(`["Ethernet","IPv4","TCP"]`, `["UDP"]`, `["IPv4"]`, `["IPv6","7"]`, "[1,3]", "[]", "[4,99]", "null"))
	}
	return "{" + strings.Join(members, ",") + "}"
}
