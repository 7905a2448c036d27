package agent

import (
	"strings"
	"testing"
	"time"

	"github.com/postern/postern/flow"
)

func FuzzNetfilter(f *testing.F) { fuzzFormat(f, "netfilter") }

func BenchmarkNetfilter(b *testing.B) {
	benchLines(b, "netfilter", "netfilter.log", 0, 2, 4, 5, 8, 11, 12, 17, 18)
}

// TestSyslogYear says which year a stamp without one is of, and which zone.
func TestSyslogYear(t *testing.T) {
	for _, c := range []struct {
		stamp, received string
		zone            time.Duration
		want            string
	}{
		{"Dec 31 23:59:59", "2027-01-01T00:00:10Z", 0, "2026-12-31T23:59:59.000Z"},
		{"Jan  1 00:00:01", "2026-12-31T23:59:50Z", 0, "2027-01-01T00:00:01.000Z"},
		{"Jul  2 12:00:00", "2026-12-31T23:59:50Z", 0, "2026-07-02T12:00:00.000Z"},
		{"Jul  2 12:00:00", "2026-01-01T00:00:00Z", 0, "2025-07-02T12:00:00.000Z"},
		{"Feb 29 12:00:00", "2025-03-01T00:00:00Z", 0, "2024-02-29T12:00:00.000Z"},
		{"Jan  1 00:30:00", "2026-12-31T22:31:00Z", 2 * time.Hour, "2026-12-31T22:30:00.000Z"},
		{"Nov 14 22:13:25.25", "2026-11-14T22:13:26Z", -5 * time.Hour, "2026-11-15T03:13:25.250Z"},
	} {
		names, out := flow.NewNames(0), flow.NewBatch(1, nil)
		d, err := NewDecoder("netfilter", Config{BelieveClock: true, ZoneOffset: c.zone}, names)
		if err != nil {
			t.Fatal(err)
		}
		received, _ := time.Parse(time.RFC3339, c.received)
		line := c.stamp + " fw kernel: IN=eth0 OUT= SRC=10.1.0.1 DST=10.1.0.2 LEN=28 PROTO=UDP SPT=1 DPT=2"
		if err := d.Decode([]byte(line), 0, &Origin{Received: flow.TimeOf(received)}, out); err != nil {
			t.Fatal(err)
		}
		if got := out.Records[0].Start.String(); got != c.want {
			t.Errorf("%s received at %s is %s, want %s", c.stamp, c.received, got, c.want)
		}
	}
}

// TestNetfilterVerdict lists what tags are taken to say.
func TestNetfilterVerdict(t *testing.T) {
	for want, tags := range map[flow.Observed]string{
		flow.ObservedDeny:    "UFW BLOCK|UFW LIMIT BLOCK|FINAL_REJECT|filter_IN_public_REJECT|Shorewall:net-fw:DROP|iptables-dropped|nft drop|REJECT wan in|IPTABLES_DENIED",
		flow.ObservedAllow:   "UFW ALLOW|lan ACCEPT|fw-accepted|pass-in",
		flow.ObservedUnknown: "UFW AUDIT|UFW AUDIT INVALID|||would-DROP|not dropped|ACCEPT then DROP|raindrop|dropbox|test: DROP|mystery|" + strings.Repeat("DROP", 9),
	} {
		for tag := range strings.SplitSeq(tags, "|") {
			if got := netfilterVerdict([]byte(tag)); got != want {
				t.Errorf("%q is taken for %v, want %v", tag, got, want)
			}
		}
	}
}
