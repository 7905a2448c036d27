package sink

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
)

// expectedRow is what a row must show, told without the encoder: AppendJSON's
// members where it has them, the record's own fields elsewhere.
func expectedRow(t *testing.T, r *flow.Record, names *flow.Names, ins Insert) map[string]any {
	t.Helper()
	row := map[string]any{}
	// The members of a judged record; an unjudged one shows the same columns empty.
	judged := *r
	if judged.Verdict.Reason == flow.ReasonNone {
		judged.Verdict.Reason = flow.ReasonPermitted
	}
	d := json.NewDecoder(bytes.NewReader(judged.AppendJSON(nil, names.Texts())))
	d.UseNumber()
	if err := d.Decode(&row); err != nil {
		t.Fatal(err)
	}
	row["reason"] = r.Verdict.Reason.String()
	// What AppendJSON leaves out is NULL or empty.
	for _, k := range []string{"tcp_flags", "rev_tcp_flags", "in_if", "out_if", "bytes_raw", "packets_raw", "rev_bytes_raw", "rev_packets_raw",
		"nat_src_addr", "nat_dst_addr", "nat_src_port", "nat_dst_port", "icmp_type", "icmp_code", "forwarding_status", "firewall_event",
		"src_port", "dst_port", "proto", "valid_until"} {
		if _, ok := row[k]; !ok {
			row[k] = nil
		}
	}
	for _, k := range []string{"user", "app", "src_segment", "dst_segment", "src_workload", "dst_workload", "src_identity", "dst_identity",
		"rule", "exception", "policy_version", "direction", "observer", "reporter", "src_host", "dst_host", "src_process", "dst_process"} {
		if _, ok := row[k]; !ok {
			row[k] = ""
		}
	}
	for _, k := range []string{"failed", "missing", "others"} {
		if _, ok := row[k]; !ok {
			row[k] = []any{}
		}
	}
	number := func(v any) json.Number { return json.Number(fmt.Sprint(v)) }
	for k, v := range map[string]uint64{"bytes": r.Bytes(), "packets": r.Packets(), "rev_bytes": r.RevBytes(), "rev_packets": r.RevPackets(),
		"sampling_rate": uint64(r.SamplingRate), "others_total": uint64(r.Verdict.OthersTotal), "record_id": r.ID,
		"orientation_certainty": uint64(r.OrientationCertainty), "conversation": r.Conversation()} {
		row[k] = number(v)
	}
	row["time_received"] = string(r.Received.AppendTo(nil))
	row["src_addr"], row["dst_addr"] = r.Src.String(), r.Dst.String()
	client, server := r.Ends()
	row["client"], row["server"] = client.String(), server.String()
	swapped := r.Swapped()
	row["client_port"], row["server_port"] = row["src_port"], row["dst_port"]
	if swapped {
		row["client_port"], row["server_port"] = row["dst_port"], row["src_port"]
	}
	row["swapped"], row["other_half"] = swapped, r.OtherHalf
	row["oriented"] = []string{"open", "forward", "reverse"}[r.Oriented]
	row["skew_ms"] = number(r.Skew)
	row["biflow_direction"] = nil
	if r.Any(flow.HasBiflowDirection) {
		row["biflow_direction"] = number(r.BiflowDirection)
	}
	for _, k := range []string{"src_doubt", "dst_doubt"} {
		if _, ok := row[k]; !ok {
			row[k] = []any{}
		}
	}
	csilent, ssilent := r.Silences()
	row["src_silence"], row["dst_silence"] = number(csilent), number(ssilent)
	row["enforced_by"] = ""
	if p, ok := row["policy"]; ok {
		row["enforced_by"] = p
	}
	for _, k := range []string{"policy", "process", "initiator"} { // only `decode` says so
		delete(row, k)
	}
	row["input"], row["inserted_at"] = ins.Input, ins.At.String()
	return row
}

func TestFlowRoundTrip(t *testing.T) { overBoth(t, testFlowRoundTrip) }

func testFlowRoundTrip(t *testing.T, p protocol) {
	for _, compression := range []string{"none", "lz4", "zstd"} {
		t.Run(compression, func(t *testing.T) {
			db := p.open(t, func(c *ClickHouseConfig) { c.Compression = compression })
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rnd := rand.New(rand.NewPCG(seed, 1))
			names := flow.NewNames(0)
			w := db.NewFlowWriter(names)
			want := map[string]map[string]any{}
			for n := range 3 { // the columns are used again
				ins := insertNo(n)
				records := randomRecords(rnd, names, []int{700, 1, 300}[n])
				if n == 2 { // more names than a byte counts, in one block
					for i := range records {
						records[i].User = names.Intern(fmt.Sprintf("user-%d", i))
					}
				}
				b := flow.NewBatch(len(records), nil)
				b.Records = append(b.Records, records[:len(records)/2]...)
				w.Append(b)
				w.AppendRecords(records[len(records)/2:])
				done, err := w.Flush(t.Context(), ins)
				if err != nil {
					t.Fatal(err)
				}
				if done.Rows != len(records) || w.Rows() != 0 {
					t.Fatalf("wrote %d rows of %d, %d left", done.Rows, len(records), w.Rows())
				}
				for i := range records {
					want[fmt.Sprint(records[i].ID)] = expectedRow(t, &records[i], names, ins)
				}
			}
			got := query(t, db, "SELECT *, src_addr, dst_addr, src_port, dst_port FROM flows")
			lines := strings.Split(got, "\n")
			if len(lines) != len(want) {
				t.Fatalf("%d rows read, %d written", len(lines), len(want))
			}
			for _, line := range lines {
				row := map[string]any{}
				d := json.NewDecoder(strings.NewReader(line))
				d.UseNumber()
				if err := d.Decode(&row); err != nil {
					t.Fatalf("%v: %s", err, line)
				}
				w := want[fmt.Sprint(row["record_id"])]
				if diff := cmp.Diff(w, row); diff != "" {
					t.Fatalf("row differs (-record +row):\n%s", diff)
				}
			}
		})
	}
}

// The table has exactly the columns the writer sends, in its order and of its
// types, beside the computed ones.
func TestFlowColumnsMatchTable(t *testing.T) {
	db := open(t, nil)
	w := db.NewFlowWriter(flow.NewNames(0))
	var have, want []string
	for _, c := range w.input {
		have = append(have, c.Name+" "+string(c.Data.Type()))
	}
	rows, err := db.conn.Query(t.Context(), "SELECT name, type FROM system.columns WHERE database = '"+db.cfg.Database+
		"' AND table = 'flows' AND default_kind = '' ORDER BY position")
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		var name, kind string
		if err := rows.Scan(&name, &kind); err != nil {
			t.Fatal(err)
		}
		want = append(want, name+" "+kind)
	}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("columns differ (-table +writer):\n%s", diff)
	}
}

func TestTokenWritesOnce(t *testing.T) { overBoth(t, testTokenWritesOnce) }

func testTokenWritesOnce(t *testing.T, p protocol) {
	db := p.open(t, nil)
	rnd := rand.New(rand.NewPCG(1, 2))
	names := flow.NewNames(0)
	records := randomRecords(rnd, names, 100)
	flush := func(ins Insert, duplicate bool) {
		t.Helper()
		w := db.NewFlowWriter(names) // another writer, as after a restart
		w.AppendRecords(records)
		done, err := w.Flush(t.Context(), ins)
		if err != nil {
			t.Fatal(err)
		}
		if done.Duplicate != (duplicate && p == overNative) { // over HTTP nobody tells
			t.Errorf("%s over %s: told that it was there already: %v", ins.Token, p, done.Duplicate)
		}
	}
	flush(insertNo(1), false)
	flush(insertNo(1), true)
	wantQuery(t, db, "SELECT count() AS n FROM flows", `{"n":100}`)
	// The same under another token doubles: it is the token that holds the rest back.
	flush(insertNo(2), false)
	wantQuery(t, db, "SELECT count() AS n, uniqExact(record_id) AS u FROM flows", `{"n":200,"u":100}`)
	// Other rows under a known token are the same range, encoded otherwise: not stored.
	records = randomRecords(rnd, names, 50)
	flush(insertNo(1), true)
	wantQuery(t, db, "SELECT count() AS n FROM flows", `{"n":200}`)
}

// As many tokens as may be read again stay known.
func TestDedupWindow(t *testing.T) {
	db := open(t, nil)
	wantQuery(t, db, "SELECT count() AS n FROM system.tables WHERE database = '"+db.cfg.Database+"' AND engine = 'MergeTree' AND "+
		fmt.Sprintf("engine_full NOT LIKE '%%non_replicated_deduplication_window = %d%%'", DedupWindow), `{"n":0}`)
	names := flow.NewNames(0)
	records := randomRecords(rand.New(rand.NewPCG(3, 3)), names, 1)
	w := db.NewFlowWriter(names)
	const tokens = 200
	for range 2 {
		for n := range tokens {
			w.AppendRecords(records)
			if _, err := w.Flush(t.Context(), insertNo(n)); err != nil {
				t.Fatal(err)
			}
		}
	}
	wantQuery(t, db, "SELECT count() AS n FROM flows", fmt.Sprintf(`{"n":%d}`, tokens))
}

func TestFlushNeedsAToken(t *testing.T) {
	db := open(t, nil)
	names := flow.NewNames(0)
	w := db.NewFlowWriter(names)
	w.AppendRecords(randomRecords(rand.New(rand.NewPCG(4, 4)), names, 3))
	for _, ins := range []Insert{{Input: "x", At: 1}, {Token: "x", Input: "x"}} {
		if _, err := w.Flush(t.Context(), ins); err == nil || Retryable(err) {
			t.Errorf("flush under %+v: %v", ins, err)
		}
	}
	if w.Rows() != 3 {
		t.Errorf("%d rows left after a refused flush, want 3", w.Rows())
	}
}

// fewestAllocs is how often f allocates. Of several rounds the least counts: what tests before it left
// running allocates beside it.
func fewestAllocs(f func()) float64 {
	n := math.Inf(1)
	for range 5 {
		n = min(n, testing.AllocsPerRun(20, f))
	}
	return n
}

func TestAppendDoesNotAllocate(t *testing.T) {
	names := flow.NewNames(0)
	w := (&ClickHouse{}).NewFlowWriter(names)
	records := randomRecords(rand.New(rand.NewPCG(5, 5)), names, flow.BatchSize)
	b := flow.NewBatch(0, nil)
	b.Records = records
	block := func() {
		w.Append(b)
		w.Append(b)
		if _, err := w.Encode(io.Discard, insertNo(1)); err != nil {
			t.Fatal(err)
		}
		w.Reset()
	}
	block()
	block()
	// A handful a block for the encoder's buffers and column types, none a record.
	if n := fewestAllocs(block); n > flow.BatchSize/8 {
		t.Errorf("%v allocations for a block of %d records", n, 2*flow.BatchSize)
	}
	if n := fewestAllocs(func() { w.Append(b); w.Reset() }); n != 0 {
		t.Errorf("%v allocations for appending %d records, want none", n, flow.BatchSize)
	}
}

// A number that has no word is written as the first word, since ClickHouse would
// take it and then refuse to read it.
func TestUnknownWord(t *testing.T) {
	w := newWords([]string{"", "a"})
	w.ColUInt8 = make([]uint8, 2)
	w.set(0, 1)
	w.set(1, 2)
	if !slices.Equal(w.ColUInt8, []uint8{1, 0}) {
		t.Errorf("got %v", w.ColUInt8)
	}
}

func FuzzFlowBlock(f *testing.F) {
	f.Add(uint64(1), 5)
	f.Fuzz(func(t *testing.T, seed uint64, n int) {
		names := flow.NewNames(100) // overflows
		w := (&ClickHouse{}).NewFlowWriter(names)
		w.AppendRecords(randomRecords(rand.New(rand.NewPCG(seed, 0)), names, 1+int(uint(n)%50)))
		if _, err := w.Encode(io.Discard, insertNo(1)); err != nil {
			t.Fatal(err)
		}
	})
}
