package identity

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern/postern/flow"
)

// benchHosts is the size that enrich is measured with, too.
const benchHosts = 200_000

func benchAddr(i int) string { return fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255) }

// BenchmarkKeaFile reads a lease file of 200,000 leases whole, as at the start, and then,
// a read an operation, with one renewal appended.
func BenchmarkKeaFile(b *testing.B) {
	dir := b.TempDir()
	path := filepath.Join(dir, "kea-leases4.csv")
	var text strings.Builder
	text.WriteString(keaHeader4)
	for i := range benchHosts {
		fmt.Fprintf(&text, "%s,02:00:00:%02x:%02x:%02x,01:02:00:00:%02x:%02x:%02x,3600,%d,1,0,0,host-%d,0,\n", benchAddr(i), i>>16, i>>8&255, i&255, i>>16, i>>8&255, i&255, 1795284592+i%3600, i)
	}
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		b.Fatal(err)
	}
	newOne := func(state string) *leaseFile {
		f := newKeaFile(newLeases("kea", time.Hour, 0, state, func() flow.Time { return 1795284592_000 }, nil, nil), path)
		if err := f.load(); err != nil {
			b.Fatal(err)
		}
		return f
	}
	b.Run("whole", func(b *testing.B) {
		b.SetBytes(int64(text.Len()))
		b.ReportAllocs()
		for b.Loop() {
			if err := newOne("").follow(b.Context(), new(recorder).tell); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(benchHosts*float64(b.N)/b.Elapsed().Seconds(), "leases/s")
	})
	b.Run("appended", func(b *testing.B) {
		f := newOne(b.TempDir())
		defer f.close()
		var rec recorder
		if err := f.follow(b.Context(), rec.tell); err != nil {
			b.Fatal(err)
		}
		w, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			b.Fatal(err)
		}
		defer w.Close()
		i := 0
		for b.Loop() {
			i++
			if _, err := fmt.Fprintf(w, "10.0.0.1,02:00:00:00:00:01,,3600,%d,1,0,0,host-1,0,\n", 1795290000+i); err != nil {
				b.Fatal(err)
			}
			if err := f.follow(b.Context(), rec.tell); err != nil {
				b.Fatal(err)
			}
		}
		if facts := rec.of("10.0.0.1"); facts[0].Until != flow.Time(1795290000+i)*1000 && facts[len(facts)-1].Until != flow.Time(1795290000+i)*1000 {
			b.Fatalf("the last renewal was not told: %+v", facts)
		}
	})
}

// BenchmarkInventory reads an inventory of 200,000 rows.
func BenchmarkInventory(b *testing.B) {
	var text, yaml strings.Builder
	text.WriteString("address,workload,device,user,groups\n")
	for i := range benchHosts {
		fmt.Fprintf(&text, "%s,workload-%d,device-%d,user-%d,staff|team-%d\n", benchAddr(i), i, i, i, i%100)
		if i < benchHosts/20 {
			fmt.Fprintf(&yaml, "- address: %s\n  workload: workload-%d\n  groups: [staff, team-%d]\n", benchAddr(i), i, i%100)
		}
	}
	for name, c := range map[string]struct {
		file, text string
		rows       int
	}{"csv": {"f.csv", text.String(), benchHosts}, "yaml": {"f.yaml", yaml.String(), benchHosts / 20}} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(c.text)))
			b.ReportAllocs()
			for b.Loop() {
				partial := &partialError{}
				if facts, err := readInventory(c.file, []byte(c.text), nil, partial); err != nil || len(facts) != c.rows || partial.entries > 0 {
					b.Fatal(len(facts), err)
				}
			}
			b.ReportMetric(float64(c.rows)*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

// BenchmarkPolled compares a read of 200,000 entries with what was told, without and with
// 1,000 changes; state is written to disk.
func BenchmarkPolled(b *testing.B) {
	facts := make([]flow.Fact, benchHosts)
	for i := range facts {
		facts[i] = host(benchAddr(i), fmt.Sprintf("workload-%d", i))
	}
	for name, changes := range map[string]int{"same": 0, "changed": 1000} {
		b.Run(name, func(b *testing.B) {
			now := flow.Time(1_000_000)
			p := newPolled("inv", flow.FactStatic, time.Minute, 0, readFunc(func() ([]flow.Fact, error) { return facts, nil }), b.TempDir(), func() flow.Time { return now }, nil, nil)
			tell := new(recorder).tell
			if err := p.poll(b.Context(), tell); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				now += 60_000
				for i := range changes {
					facts[i].Workload = fmt.Sprintf("w%d-%d", i, now)
				}
				if err := p.poll(b.Context(), tell); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
