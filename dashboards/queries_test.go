package dashboards

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

var (
	moment  = regexp.MustCompile(`^(Nullable\()?Date(Time)?(64)?\b`)
	numeric = regexp.MustCompile(`^(Nullable\()?U?(Int|Float)\d+\)?$`)
	plain   = regexp.MustCompile(`^(Nullable\(|LowCardinality\()*(String|Bool|Enum8|U?Int\d+|Float\d+|Date|IPv6)`)
)

// ranges are the defaults of the dashboards.
var ranges = map[string]time.Duration{"now-6h": 6 * time.Hour, "now-24h": 24 * time.Hour, "now-7d": 7 * 24 * time.Hour, "now-30d": 30 * 24 * time.Hour, "now-90d": 90 * 24 * time.Hour}

// view is a dashboard as it is opened, with the interval that Grafana takes for a panel of about 800 points.
func view(d *Dashboard, p Panel, chosen map[string][]string) shown {
	s := shown{to: time.Now(), chosen: chosen}
	s.from = s.to.Add(-ranges[d.Time.From])
	s.interval = s.to.Sub(s.from) / 800
	if len(p.Interval) > 1 {
		n, _ := strconv.Atoi(p.Interval[:len(p.Interval)-1])
		s.interval = max(s.interval, time.Duration(n)*map[byte]time.Duration{'h': time.Hour, 'd': 24 * time.Hour}[p.Interval[len(p.Interval)-1]])
	}
	return s
}

// TestQueries runs every query of every panel and variable on the real engine, once with
// all of every variable and once with something chosen. Each returns rows whose columns are
// what its panel draws, and reads what lies in its range of time and not what else is stored.
func TestQueries(t *testing.T) {
	e := migrated(t, "dashboards")
	generate(t, e)
	hours, err := e.ask(t.Context(), "SELECT count() FROM edge_hours")
	if err != nil {
		t.Fatal(err)
	}
	stored := hours.Data[0][0].(float64)
	for _, f := range Catalog() {
		if f.Name == "pipeline.json" {
			continue
		}
		for _, v := range f.Templating.List {
			if v.Type == "query" {
				if a, err := e.ask(t.Context(), v.Query); err != nil || len(a.Data) == 0 || len(a.Meta) != 1 {
					t.Errorf("%s: variable %s: %v, %v", f.Name, v.Name, a, err)
				}
			}
		}
		for _, p := range f.Panels {
			for name, chosen := range map[string]map[string][]string{
				"all": {"exception": {"EX-1"}}, "chosen": {"exception": {"EX-1"}, "segment": {"segment-1", "segment-0"}, "severity": {"critical", "high"}, "owner": {"team-0", "team-1"}, "state": {"active", "expiring"}, "finding": {"f000003"}},
			} {
				t.Run(f.Name+"/"+p.Title+"/"+name, func(t *testing.T) {
					s := view(f.Dashboard, p, chosen)
					answers := map[string]answer{}
					for _, q := range p.Targets {
						sql, err := s.expand(q.SQL)
						if err != nil {
							t.Fatal(err)
						}
						a, err := e.ask(t.Context(), sql)
						if err != nil {
							t.Fatalf("%v\n%s", err, sql)
						}
						answers[q.RefID] = a
						t.Logf("%d rows, %d bytes read in %.0f ms, %d rows told", a.Read.Rows, a.Read.Bytes, 1000*a.Read.Took, len(a.Data))
						// What lies in the range, three times, where a query looks at it more than once, and
						// some granules at its edges; the thirty days before where first contacts are counted.
						share := min(s.to.Sub(s.from).Hours()/24/100, 1)
						if strings.Contains(q.SQL, "$__fromTime - INTERVAL 30 DAY") {
							share += 0.3
						}
						if most := 3*share*stored + 60_000; float64(a.Read.Rows) > most {
							t.Errorf("reads %d rows, of %.0f stored over all; at most %.0f\n%s", a.Read.Rows, stored, most, sql)
						}
						if most := 400 * (float64(a.Read.Rows) + 1000); float64(a.Read.Bytes) > most {
							t.Errorf("reads %d bytes for %d rows\n%s", a.Read.Bytes, a.Read.Rows, sql)
						}
						if err := fits(p.Type, q, a); err != nil {
							t.Errorf("%v\n%v\n%s", err, a.Meta, sql)
						}
					}
					if p.Type == "nodeGraph" {
						if err := connected(answers["nodes"], answers["edges"]); err != nil {
							t.Error(err)
						}
					}
				})
			}
		}
	}
}

// TestNumbers holds numbers that panels show to what is stored, counted another way.
func TestNumbers(t *testing.T) {
	e := migrated(t, "numbers")
	generate(t, e)
	told := func(d *Dashboard, title string, chosen map[string][]string) answer {
		t.Helper()
		for _, p := range d.Panels {
			if p.Title == title {
				sql, err := view(d, p, chosen).expand(p.Targets[0].SQL)
				if err != nil {
					t.Fatal(err)
				}
				a, err := e.ask(t.Context(), sql)
				if err != nil {
					t.Fatal(err)
				}
				return a
			}
		}
		t.Fatalf("no panel %s", title)
		return answer{}
	}
	sum := func(a answer) (n float64) {
		for _, row := range a.Data {
			for _, v := range row[1:] {
				if v, ok := v.(float64); ok {
					n += v
				}
			}
		}
		return n
	}
	plainly := func(sql string) float64 {
		t.Helper()
		a, err := e.ask(t.Context(), sql)
		if err != nil {
			t.Fatal(err)
		}
		return a.Data[0][0].(float64)
	}

	if got, want := sum(told(overview(), "Sessions by what policy wanted and enforcement did", nil)), plainly("SELECT sum(sessions) FROM edges WHERE hour >= toStartOfHour(now() - INTERVAL 1 DAY)"); got != want {
		t.Errorf("sessions of a day by outcome make %v, not %v", got, want)
	}
	one := map[string][]string{"segment": {"segment-3"}}
	if got, want := told(overview(), "Denied sessions that passed", one).Data[0][0].(float64),
		plainly("SELECT sum(escaped) FROM segment_pairs WHERE hour >= toStartOfHour(now() - INTERVAL 1 DAY) AND 'segment-3' IN (src_segment, dst_segment)"); got != want || got == 0 {
		t.Errorf("%v sessions of segment-3 escaped, not %v", got, want)
	}
	states := map[string]string{"EX-1": "active", "EX-3": "expiring", "EX-5": "expired", "EX-6": "not-yet-valid", "EX-7": "unapproved", "EX-9": "revoked", "EX-10": "removed"}
	for _, row := range told(exceptions(), "The register: every exception, its state and how much of it is used", nil).Data {
		if want := states[row[0].(string)]; want != "" && row[1] != want {
			t.Errorf("%v is %v, not %s", row[0], row[1], want)
		}
		delete(states, row[0].(string))
	}
	if len(states) > 0 {
		t.Errorf("not in the register: %v", states)
	}
	if got := told(audit(), "Exceptions in force, self-approved", nil).Data[0][0].(float64); got != 1 { // EX-8
		t.Errorf("%v exceptions are approved by who asked for them", got)
	}
	for _, row := range told(audit(), "What people said of findings, by detector", nil).Data {
		right, wrong := row[4].(float64), row[5].(float64)
		if share := row[6]; right+wrong == 0 && share != nil || right+wrong > 0 && math.Abs(share.(float64)-100*right/(right+wrong)) > 1e-9 {
			t.Errorf("%v: right %v of 100, with %v true and %v not", row[0], share, right, wrong)
		}
	}
	stood := told(audit(), "Share of workloads enforced, by tier", nil)
	if days := len(stood.Data); days < 90 || days > 92 || stood.Data[0][3].(float64) >= stood.Data[days-1][3].(float64) {
		t.Errorf("%d days of ninety, from %v to %v", days, stood.Data[0], stood.Data[days-1])
	}
}

// fits says whether an answer is what a panel of the kind draws.
func fits(kind string, q Target, a answer) error {
	if len(a.Data) == 0 {
		return fmt.Errorf("no rows")
	}
	for i, c := range a.Meta {
		if !plain.MatchString(c.Type) {
			return fmt.Errorf("%s is %s, which a panel does not show", c.Name, c.Type)
		}
		if strings.HasPrefix(c.Name, "arc__") && c.Type != "Float64" {
			return fmt.Errorf("%s is %s", c.Name, c.Type)
		}
		_ = i
	}
	switch kind {
	case "stat":
		if len(a.Data) != 1 || len(a.Meta) != 1 || a.Data[0][0] == nil {
			return fmt.Errorf("a single number is %v", a.Data)
		}
	case "timeseries":
		if a.Meta[0].Name != "time" || !moment.MatchString(a.Meta[0].Type) {
			return fmt.Errorf("a series begins with %s %s", a.Meta[0].Name, a.Meta[0].Type)
		}
		numbers := 0
		for _, c := range a.Meta[1:] {
			if numeric.MatchString(c.Type) {
				numbers++
			} else if !strings.Contains(c.Type, "String") {
				return fmt.Errorf("%s of a series is %s", c.Name, c.Type)
			}
		}
		if numbers == 0 {
			return fmt.Errorf("a series without numbers")
		}
		for i := 1; i < len(a.Data); i++ {
			if a.Data[i][0].(string) < a.Data[i-1][0].(string) {
				return fmt.Errorf("not in the order of time at row %d", i)
			}
		}
	case "nodeGraph":
		want := []string{"id", "title", "subtitle", "mainstat"}
		if q.RefID == "edges" {
			want = []string{"id", "source", "target", "mainstat"}
		}
		for i, name := range want {
			if a.Meta[i].Name != name || i < 3 && !strings.HasSuffix(strings.TrimRight(a.Meta[i].Type, ")"), "String") {
				return fmt.Errorf("column %d is %s %s, not %s", i, a.Meta[i].Name, a.Meta[i].Type, name)
			}
		}
	}
	return nil
}

// connected says whether every edge joins two nodes, no id is there twice, and rings are whole.
func connected(nodes, edges answer) error {
	known := map[string]bool{}
	for _, n := range nodes.Data {
		id, ring := n[0].(string), 0.0
		if known[id] {
			return fmt.Errorf("the node %s is there twice", id)
		}
		known[id] = true
		for i, c := range nodes.Meta {
			if strings.HasPrefix(c.Name, "arc__") {
				ring += n[i].(float64)
			}
		}
		if math.Abs(ring-1) > 1e-6 {
			return fmt.Errorf("the ring of %s makes %v", id, ring)
		}
	}
	seen := map[string]bool{}
	for _, n := range edges.Data {
		if id := n[0].(string); seen[id] {
			return fmt.Errorf("the edge %s is there twice", id)
		} else {
			seen[id] = true
		}
		if !known[n[1].(string)] || !known[n[2].(string)] {
			return fmt.Errorf("the edge %v leads nowhere", n[:3])
		}
	}
	return nil
}
