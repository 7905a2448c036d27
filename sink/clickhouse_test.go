package sink

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/sink/embedded/embeddedtest"
)

// databases numbers the tests' databases; they share one engine.
var databases atomic.Int32

// protocol is how a test reaches the engine.
type protocol string

const (
	overHTTP   protocol = "http"
	overNative protocol = "native"
)

// overBoth runs a test over HTTP and over the native protocol, which most servers
// are reached by.
func overBoth(t *testing.T, test func(*testing.T, protocol)) {
	for _, p := range []protocol{overHTTP, overNative} {
		t.Run(string(p), func(t *testing.T) { test(t, p) })
	}
}

// open gives a migrated database of its own.
func (p protocol) open(t testing.TB, change func(*ClickHouseConfig)) *ClickHouse {
	t.Helper()
	db := p.openEmpty(t, change)
	if err := db.Migrate(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	return db
}

func (p protocol) openEmpty(t testing.TB, change func(*ClickHouseConfig)) *ClickHouse {
	t.Helper()
	url, token := embeddedtest.Start(t)
	cfg := DefaultClickHouseConfig()
	cfg.Database = fmt.Sprintf("t%d", databases.Add(1))
	opt := Options{Endpoint: url, Token: token}
	if p == overNative {
		addr, token := embeddedtest.Native(t)
		cfg.URL, opt = "clickhouse://default@"+addr, Options{Password: token}
	}
	if change != nil {
		change(&cfg)
	}
	db, err := Open(t.Context(), cfg, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = db.exec(context.Background(), time.Minute, "DROP DATABASE IF EXISTS "+cfg.Database+" SYNC")
		_ = db.Close()
	})
	return db
}

// open is a migrated database over HTTP.
func open(t testing.TB, change func(*ClickHouseConfig)) *ClickHouse {
	t.Helper()
	return overHTTP.open(t, change)
}

func openEmpty(t testing.TB, change func(*ClickHouseConfig)) *ClickHouse {
	t.Helper()
	return overHTTP.openEmpty(t, change)
}

func query(t testing.TB, db *ClickHouse, sql string) string {
	t.Helper()
	var b strings.Builder
	if err := db.Query(t.Context(), sql, FormatJSON, &b); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return strings.TrimSpace(b.String())
}

// wantQuery asks and compares the whole answer, as JSON lines.
func wantQuery(t testing.TB, db *ClickHouse, sql, want string) {
	t.Helper()
	if got := query(t, db, sql); got != want {
		t.Errorf("%s\n got %s\nwant %s", sql, got, want)
	}
}

// today is the insert time of the tests: retention counts from there.
var today = flow.TimeOf(time.Now())

func insertNo(n int) Insert {
	return Insert{Token: fmt.Sprintf("spool-1/%d/0", n), Input: "spool-1", At: today + flow.Time(n)}
}

// hostile are strings as hosts on the network may choose them (THREATS 36).
var hostile = []string{
	`'; DROP TABLE flows; --`, `\'`, `\`, `"`, "`", "a\nb\rc\td", "nul\x00nul", "bad\xff\xfeutf8", "\x1b[2J\x1b]0;owned\x07",
	"\u202egnp.exe", "日本", strings.Repeat("x", 256), "{{.Database}}", "<script>alert(1)</script>", "=cmd|'/c calc'!A0",
}

// randomRecords makes n records with every field set at random, absent fields and
// all words included.
func randomRecords(rnd *rand.Rand, names *flow.Names, n int) []flow.Record {
	name := func() flow.Name {
		switch rnd.IntN(4) {
		case 0:
			return flow.NoName
		case 1:
			return names.Intern(hostile[rnd.IntN(len(hostile))])
		}
		return names.Intern(fmt.Sprintf("name-%d", rnd.IntN(400)))
	}
	addr := func() flow.Addr {
		if rnd.IntN(3) == 0 {
			return flow.Addr{Hi: rnd.Uint64(), Lo: rnd.Uint64()}
		}
		return flow.AddrFrom4(rnd.Uint32())
	}
	instant := func() flow.Time { return 1_790_000_000_000 + flow.Time(rnd.IntN(1e9)) }
	counter := func() uint64 {
		if rnd.IntN(20) == 0 {
			return ^uint64(0) >> rnd.IntN(8)
		}
		return rnd.Uint64N(1e6)
	}
	protos := []uint8{flow.ProtoTCP, flow.ProtoTCP, flow.ProtoUDP, flow.ProtoICMP, flow.ProtoICMPv6, flow.ProtoSCTP, 47}
	out := make([]flow.Record, n)
	for i := range out {
		r := &out[i]
		*r = flow.Record{
			ID: rnd.Uint64(), Start: instant(), End: instant(), Received: instant(),
			Exporter: addr(), Src: addr(), Dst: addr(), NATSrc: addr(), NATDst: addr(), Domain: rnd.Uint32(),
			SamplingRate: []uint32{0, 1, 100, 1 << 31}[rnd.IntN(4)],
			BytesRaw:     counter(), PacketsRaw: counter(), RevBytesRaw: counter(), RevPacketsRaw: counter(),
			InIf: rnd.Uint32(), OutIf: rnd.Uint32(), User: name(), App: name(),
			Has: flow.Has(rnd.Uint32N(1 << 28)), Quality: flow.Quality(rnd.Uint32N(1 << 14)), Skew: int32(rnd.Uint32()),
			SrcPort: uint16(rnd.Uint32()), DstPort: uint16(rnd.Uint32()), NATSrcPort: uint16(rnd.Uint32()), NATDstPort: uint16(rnd.Uint32()),
			TCPFlags: uint16(rnd.Uint32()), RevTCPFlags: uint16(rnd.Uint32()),
			Proto: protos[rnd.IntN(len(protos))], Source: flow.Source(rnd.IntN(int(flow.SourceCustom) + 1)), ICMPType: uint8(rnd.Uint32()), ICMPCode: uint8(rnd.Uint32()),
			ForwardingStatus: uint8(rnd.Uint32()), FirewallEvent: uint8(rnd.Uint32()), Direction: uint8(rnd.IntN(2)), BiflowDirection: uint8(rnd.IntN(4)),
			Oriented: flow.Orientation(rnd.IntN(3)), OtherHalf: rnd.IntN(2) == 0,
			SrcSegment: name(), DstSegment: name(), SrcWorkload: name(), DstWorkload: name(), SrcIdentity: name(), DstIdentity: name(),
			Observer: name(), EnforcedBy: name(), SrcHost: name(), DstHost: name(), SrcProcess: name(), DstProcess: name(),
			Reporter: flow.Reporter(rnd.IntN(3)), SrcDoubt: flow.Doubt(rnd.IntN(256)), DstDoubt: flow.Doubt(rnd.IntN(256)),
			SrcSilence: int32(rnd.IntN(100)) - 1, DstSilence: int32(rnd.IntN(100)) - 1,
			OrientationCertainty: uint8(rnd.IntN(101)),
		}
		// What the exporter did not send is zero in a record.
		for _, f := range []struct {
			has  flow.Has
			zero func()
		}{
			{flow.HasBytes, func() { r.BytesRaw = 0 }}, {flow.HasPackets, func() { r.PacketsRaw = 0 }},
			{flow.HasRevBytes, func() { r.RevBytesRaw = 0 }}, {flow.HasRevPackets, func() { r.RevPacketsRaw = 0 }},
			{flow.HasSrc, func() { r.Src = flow.Addr{} }}, {flow.HasDst, func() { r.Dst = flow.Addr{} }},
			{flow.HasSrcPort, func() { r.SrcPort = 0 }}, {flow.HasDstPort, func() { r.DstPort = 0 }},
		} {
			if !r.Any(f.has) {
				f.zero()
			}
		}
		v := &r.Verdict
		v.PolicyVersion, v.Rule, v.Exception = name(), name(), name()
		v.OthersTotal = uint16(rnd.IntN(12))
		for j := range min(int(v.OthersTotal), flow.MaxOthers) {
			v.Others[j] = name()
		}
		v.Failed, v.Missing = flow.Dimensions(rnd.Uint32N(1<<10)), flow.Dimensions(rnd.Uint32N(1<<10))
		v.Expected, v.Staged = flow.Expected(rnd.IntN(3)), flow.Expected(rnd.IntN(3))
		v.Reason, v.StagedReason = flow.Reason(rnd.IntN(11)), flow.Reason(rnd.IntN(11))
		v.Observed, v.Outcome, v.Confidence = flow.Observed(rnd.IntN(4)), flow.Outcome(rnd.IntN(6)), uint8(rnd.IntN(101))
		if rnd.IntN(2) == 0 {
			v.ValidUntil = instant()
		}
	}
	return out
}
