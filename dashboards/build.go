package dashboards

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// The JSON that Grafana reads, as far as these dashboards need it (its dashboard schema, version 41).

// Dashboard is one dashboard: a page of panels over one range of time.
type Dashboard struct {
	UID           string   `json:"uid"`
	Title         string   `json:"title"`
	Description   string   `json:"description"`
	Tags          []string `json:"tags"`
	Timezone      string   `json:"timezone"`
	Editable      bool     `json:"editable"`
	GraphTooltip  int      `json:"graphTooltip"`
	Time          span     `json:"time"`
	Refresh       string   `json:"refresh,omitempty"`
	SchemaVersion int      `json:"schemaVersion"`
	Links         []link   `json:"links"`
	Templating    struct {
		List []Variable `json:"list"`
	} `json:"templating"`
	Annotations struct {
		List []any `json:"list"`
	} `json:"annotations"`
	Panels []Panel `json:"panels"`
}

type span struct {
	From string `json:"from"`
	To   string `json:"to"`
}

type link struct {
	Title       string   `json:"title"`
	Type        string   `json:"type"`
	Icon        string   `json:"icon"`
	Tooltip     string   `json:"tooltip"`
	URL         string   `json:"url,omitempty"`
	Tags        []string `json:"tags"`
	AsDropdown  bool     `json:"asDropdown"`
	TargetBlank bool     `json:"targetBlank"`
	IncludeVars bool     `json:"includeVars"`
	KeepTime    bool     `json:"keepTime"`
}

// Source is a data source: the plugin and which of its instances.
type Source struct {
	Type string `json:"type"`
	UID  string `json:"uid"`
}

// The data sources, each behind a variable of the dashboard, so that the files hold no uid of one
// installation.
var (
	clickHouse = Source{"grafana-clickhouse-datasource", "${clickhouse}"}
	prometheus = Source{"prometheus", "${prometheus}"}
)

// Variable is what a reader chooses at the top of a dashboard.
type Variable struct {
	Name       string  `json:"name"`
	Label      string  `json:"label,omitempty"`
	Type       string  `json:"type"`
	Hide       int     `json:"hide,omitempty"`
	Source     *Source `json:"datasource,omitempty"`
	Query      string  `json:"query"`
	Definition string  `json:"definition,omitempty"`
	Refresh    int     `json:"refresh,omitempty"`
	Sort       int     `json:"sort,omitempty"`
	Multi      bool    `json:"multi,omitempty"`
	IncludeAll bool    `json:"includeAll,omitempty"`
	AllValue   string  `json:"allValue,omitempty"`
	Current    *choice `json:"current,omitempty"`
}

type choice struct {
	Text  any `json:"text"`
	Value any `json:"value"`
}

// Panel is one field of the grid, which is 24 wide.
type Panel struct {
	ID          int         `json:"id"`
	Type        string      `json:"type"`
	Title       string      `json:"title"`
	Description string      `json:"description,omitempty"`
	Source      Source      `json:"datasource"`
	Grid        grid        `json:"gridPos"`
	Interval    string      `json:"interval,omitempty"`
	Targets     []Target    `json:"targets"`
	Transform   []transform `json:"transformations,omitempty"`
	Options     any         `json:"options"`
	Fields      fieldConfig `json:"fieldConfig"`
}

type grid struct {
	H int `json:"h"`
	W int `json:"w"`
	X int `json:"x"`
	Y int `json:"y"`
}

// Target is one query of a panel, of either data source.
type Target struct {
	RefID  string `json:"refId"`
	Source Source `json:"datasource"`

	// ClickHouse: the query model of the plugin's version 4.
	PluginVersion string `json:"pluginVersion,omitempty"`
	EditorType    string `json:"editorType,omitempty"`
	QueryType     string `json:"queryType,omitempty"`
	Format        any    `json:"format,omitempty"` // 0 time series, 1 table; a word for Prometheus
	SQL           string `json:"rawSql,omitempty"`

	// Prometheus.
	Expr    string `json:"expr,omitempty"`
	Legend  string `json:"legendFormat,omitempty"`
	Range   bool   `json:"range,omitempty"`
	Instant bool   `json:"instant,omitempty"`

	may bool // it is no fault if it has no series
}

type transform struct {
	ID      string `json:"id"`
	Options any    `json:"options"`
}

type fieldConfig struct {
	Defaults  field      `json:"defaults"`
	Overrides []override `json:"overrides"`
}

type field struct {
	Unit        string     `json:"unit,omitempty"`
	Decimals    *int       `json:"decimals,omitempty"`
	Min         *float64   `json:"min,omitempty"`
	Max         *float64   `json:"max,omitempty"`
	DisplayName string     `json:"displayName,omitempty"`
	NoValue     string     `json:"noValue,omitempty"`
	Color       *color     `json:"color,omitempty"`
	Thresholds  *limits    `json:"thresholds,omitempty"`
	Mappings    []mapping  `json:"mappings,omitempty"`
	Links       []dataLink `json:"links,omitempty"`
	Custom      any        `json:"custom,omitempty"`
}

type color struct {
	Mode  string `json:"mode"`
	Fixed string `json:"fixedColor,omitempty"`
}

type limits struct {
	Mode  string `json:"mode"`
	Steps []step `json:"steps"`
}

// step is from which value on which colour holds; the first has none.
type step struct {
	Value *float64 `json:"value"`
	Color string   `json:"color"`
}

type mapping struct {
	Type    string         `json:"type"`
	Options map[string]any `json:"options"`
}

type dataLink struct {
	Title string `json:"title"`
	URL   string `json:"url"`
}

type override struct {
	Matcher    transform  `json:"matcher"` // by name
	Properties []property `json:"properties"`
}

type property struct {
	ID    string `json:"id"`
	Value any    `json:"value"`
}

// Colours by meaning, of Grafana's palette: it draws them fit for light and dark.
const (
	good    = "green"
	fair    = "yellow"
	poor    = "orange"
	bad     = "red"
	calm    = "blue"
	neutral = "#8e8e8e" // neither good nor bad, on either ground
)

// dashboard begins one. Its panels come in rows by [Dashboard.row].
func dashboard(uid, title, about, from string, vars ...Variable) *Dashboard {
	d := &Dashboard{UID: "postern-" + uid, Title: "Postern / " + title, Description: about, Tags: []string{"postern"}, Timezone: "browser",
		GraphTooltip: 1, Time: span{from, "now"}, Refresh: "5m", SchemaVersion: 41}
	d.Links = []link{{Title: "Postern", Type: "dashboards", Icon: "external link", Tooltip: "The other dashboards of Postern", Tags: []string{"postern"}, AsDropdown: true, KeepTime: true}}
	d.Templating.List, d.Annotations.List, d.Panels = vars, []any{}, []Panel{}
	return d
}

// row adds panels side by side below what is there, all as high as h. Their widths, which make 24
// together, are their own.
func (d *Dashboard) row(h int, panels ...Panel) {
	y, x := 0, 0
	if n := len(d.Panels); n > 0 {
		y = d.Panels[n-1].Grid.Y + d.Panels[n-1].Grid.H
	}
	for _, p := range panels {
		p = p.readable()
		p.ID, p.Grid.H, p.Grid.X, p.Grid.Y = len(d.Panels)+1, h, x, y
		x += p.Grid.W
		d.Panels = append(d.Panels, p)
	}
	if x != 24 {
		panic(fmt.Sprintf("%s: a row of %d", d.Title, x))
	}
}

// JSON is the dashboard as Grafana reads it.
func (d *Dashboard) JSON() ([]byte, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(d); err != nil {
		return nil, err
	}
	return []byte(b.String()), nil
}

// Variables.

var (
	chooseClickHouse = Variable{Name: "clickhouse", Label: "ClickHouse", Type: "datasource", Hide: 2, Query: clickHouse.Type, Refresh: 1, Current: &choice{"Postern ClickHouse", "postern-clickhouse"}}
	choosePrometheus = Variable{Name: "prometheus", Label: "Prometheus", Type: "datasource", Hide: 2, Query: prometheus.Type, Refresh: 1, Current: &choice{"Postern Prometheus", "postern-prometheus"}}
)

// choose offers what a query finds, and all of it at first.
func choose(name, label, sql string) Variable {
	return Variable{Name: name, Label: label, Type: "query", Source: &clickHouse, Query: sql, Definition: sql, Refresh: 1, Multi: true, IncludeAll: true,
		Current: &choice{[]string{"All"}, []string{"$__all"}}}
}

var (
	chooseSegment  = choose("segment", "Segment", "SELECT name FROM segments ORDER BY name")
	chooseOwner    = choose("owner", "Owner", "SELECT DISTINCT owner FROM exceptions WHERE owner != '' ORDER BY owner")
	chooseSeverity = Variable{Name: "severity", Label: "Severity", Type: "custom", Multi: true, IncludeAll: true, Query: "critical,high,medium,low,informational",
		Current: &choice{[]string{"critical", "high", "medium"}, []string{"critical", "high", "medium"}}}
	chooseFinding = Variable{Name: "finding", Label: "Finding", Type: "textbox", Current: &choice{"", ""}}
)

// where is a condition that holds of everything while all values of the variable are chosen.
func where(column, variable string) string {
	return fmt.Sprintf("$__conditionalAll(%s IN (${%s:singlequote}), $%s)", column, variable, variable)
}

// hours is the condition that an hour of the roll-up touches the range of time.
const hours = "hour >= toStartOfHour($__fromTime) AND hour <= $__toTime"

// edges is a subquery of what lies in the range of time under a condition, for panels that do not ask when:
// of the hourly roll-up, or, beyond four days, of the daily one, which has a tenth of the rows and counts whole
// days. The engine sees at once that one of the two is empty, and reads nothing of it. Columns are as in both
// tables; last_used is when the last session ended.
func edges(columns, condition string) string {
	columns = strings.ReplaceAll(columns, "last_used", "toDateTime(greatest(last_seen, live_last_seen), 'UTC') AS last_used")
	return "(SELECT " + columns + " FROM edge_hours WHERE " + hours + " AND " + brief + " AND " + condition +
		" UNION ALL SELECT " + columns + " FROM edge_days WHERE " + wholeDays + " AND NOT " + brief + " AND " + condition + ")"
}

// wholeDays is the condition that a day of the daily roll-up touches the range of time.
const wholeDays = "day >= toDate($__fromTime, 'UTC') AND day <= toDate($__toTime, 'UTC')"

const brief = "($__toTime - $__fromTime <= 345600)"

// found is the condition on an id that its finding was seen within the range of time. It looks at
// the month's parts and two columns, before the view looks at whole findings.
const found = "id IN (SELECT id FROM finding_contributions WHERE batch_last_seen >= $__fromTime AND batch_first_seen <= $__toTime AND inserted_at >= $__fromTime - INTERVAL 1 DAY)"

// told is that a finding was told by itself: neither suppressed nor with many others.
const told = "suppressed_by = '' AND grouped_by = ''"

// Panels.

// asks makes the query of a panel. Time series come with their time in a column called time.
func asks(ref, sql string, series bool) Target {
	t := Target{RefID: ref, Source: clickHouse, PluginVersion: "4.14.0", EditorType: "sql", QueryType: "table", Format: 1, SQL: strings.TrimSpace(sql)}
	if series {
		t.QueryType, t.Format = "timeseries", 0
	}
	return t
}

func panel(kind string, w int, title, about string, targets ...Target) Panel {
	p := Panel{Type: kind, Title: title, Description: about, Source: targets[0].Source, Targets: targets}
	p.Grid.W, p.Fields.Overrides = w, []override{}
	p.Fields.Defaults.Color = &color{Mode: "thresholds"}
	p.Fields.Defaults.Thresholds = &limits{Mode: "absolute", Steps: []step{{nil, calm}}}
	return p
}

type reduce struct {
	Values bool     `json:"values"`
	Calcs  []string `json:"calcs"`
	Fields string   `json:"fields"`
}

// stat shows one number. Steps are colours by value: 0 is the first whatever it holds.
func stat(w int, title, about, unit, sql string, steps ...step) Panel {
	return statOf(w, title, about, unit, asks("A", sql, false), steps...)
}

func statOf(w int, title, about, unit string, t Target, steps ...step) Panel {
	p := panel("stat", w, title, about, t)
	p.Options = map[string]any{"graphMode": "none", "colorMode": "value", "justifyMode": "auto", "textMode": "value", "wideLayout": true, "showPercentChange": false,
		"percentChangeColorMode": "standard", "orientation": "auto", "reduceOptions": reduce{Calcs: []string{"lastNotNull"}}}
	p.Fields.Defaults.Unit, p.Fields.Defaults.NoValue = unit, "none"
	if len(steps) > 0 {
		p.Fields.Defaults.Thresholds.Steps = steps
	}
	return p
}

// text makes a stat of what is no number, in colours by word if there are pairs of them.
func (p Panel) text(pairs ...string) Panel {
	o := p.Options.(map[string]any)
	o["reduceOptions"] = reduce{Calcs: []string{"lastNotNull"}, Fields: "/.*/"}
	if len(pairs) > 0 {
		p.Fields.Defaults.Mappings = []mapping{{"value", inColours(pairs)}}
	}
	return p
}

func inColours(pairs []string) map[string]any {
	options := map[string]any{}
	for i := 0; i < len(pairs); i += 2 {
		options[pairs[i]] = map[string]any{"color": pairs[i+1], "index": i / 2}
	}
	return options
}

func from(v float64, c string) step { return step{&v, c} }
func first(c string) step           { return step{nil, c} }

// zeroIsGood is green at 0, and c from 1 on.
func zeroIsGood(c string) []step { return []step{first(good), from(1, c)} }

// over shows how something went over time. stack is none, normal or percent.
func over(w int, title, about, unit, draw, stack string, targets ...Target) Panel {
	p := panel("timeseries", w, title, about, targets...)
	p.Fields.Defaults.Unit, p.Fields.Defaults.Color = unit, &color{Mode: "palette-classic"}
	zero := 0.0
	p.Fields.Defaults.Min = &zero
	fill := 80
	if draw == "line" {
		fill = 10
	}
	p.Fields.Defaults.Custom = map[string]any{"drawStyle": draw, "fillOpacity": fill, "lineWidth": 1, "showPoints": "never", "spanNulls": false,
		"stacking": map[string]any{"mode": stack, "group": "A"}}
	p.Options = map[string]any{"legend": map[string]any{"displayMode": "list", "placement": "bottom", "showLegend": true, "calcs": []string{}},
		"tooltip": map[string]any{"mode": "multi", "sort": "desc"}}
	return p
}

// hourly shows the roll-up over time; no finer than it is.
func hourly(w int, title, about, unit, stack, sql string) Panel {
	p := over(w, title, about, unit, "bars", stack, asks("A", sql, true))
	p.Interval = "1h"
	return p
}

// table lists rows.
func table(w int, title, about, sql string) Panel {
	p := panel("table", w, title, about, asks("A", sql, false))
	p.Options = map[string]any{"frameIndex": 0, "showHeader": true, "cellHeight": "sm"}
	p.Fields.Defaults.Custom = map[string]any{"align": "auto", "inspect": true, "filterable": false, "cellOptions": map[string]any{"type": "auto"}}
	p.Fields.Defaults.Thresholds.Steps = []step{first("text")}
	return p
}

// graph shows what leads to what. Nodes and edges come with the columns that the node graph panel
// documents: id, title, subtitle, mainstat, secondarystat, arc__*; id, source, target, mainstat.
func graph(w int, title, about, nodes, edges string, arcs ...[2]string) Panel {
	p := panel("nodeGraph", w, title, about, asks("nodes", nodes, false), asks("edges", edges, false))
	list := []map[string]string{}
	for _, a := range arcs {
		list = append(list, map[string]string{"field": a[0], "color": a[1]})
	}
	p.Options = map[string]any{"nodes": map[string]any{"arcs": list}, "edges": map[string]any{}, "zoomMode": "cooperative"}
	return p
}

func (p Panel) set(name string, properties ...property) Panel {
	p.Fields.Overrides = append(p.Fields.Overrides, override{transform{"byName", name}, properties})
	return p
}

// colour gives series their colours: name, colour, name, colour …
func (p Panel) colour(pairs ...string) Panel {
	for i := 0; i < len(pairs); i += 2 {
		p = p.set(pairs[i], property{"color", color{"fixed", pairs[i+1]}})
	}
	return p
}

// words shows a column of words on grounds of colours.
func (p Panel) words(column string, pairs ...string) Panel {
	return p.set(column, property{"mappings", []mapping{{"value", inColours(pairs)}}}, property{"custom.width", 120},
		property{"custom.cellOptions", map[string]any{"type": "color-background", "mode": "basic"}})
}

// bar shows a number as a bar in its cell.
func (p Panel) bar(column, unit string, steps ...step) Panel {
	if len(steps) == 0 {
		steps = []step{first(calm)}
	}
	if unit == "percent" {
		p = p.set(column, property{"max", 100}, property{"decimals", 0})
	}
	return p.set(column, property{"custom.cellOptions", map[string]any{"type": "gauge", "mode": "basic", "valueDisplayMode": "text"}}, property{"unit", unit},
		property{"min", 0}, property{"thresholds", limits{"absolute", steps}}, property{"color", color{Mode: "thresholds"}})
}

// number gives a column its unit, and colours by value if there are steps.
func (p Panel) number(column, unit string, steps ...step) Panel {
	set := []property{{"unit", unit}, {"custom.width", 110}}
	if len(steps) > 0 {
		set = append(set, property{"thresholds", limits{"absolute", steps}}, property{"color", color{Mode: "thresholds"}}, property{"custom.cellOptions", map[string]any{"type": "color-text"}})
	}
	return p.set(column, set...)
}

func (p Panel) width(column string, pixels int) Panel {
	return p.set(column, property{"custom.width", pixels})
}

// when shows a time by how long ago it is.
func (p Panel) when(columns ...string) Panel {
	for _, c := range columns {
		p = p.set(c, property{"unit", "dateTimeFromNow"}, property{"custom.width", 130})
	}
	return p
}

// leads makes each value of a column a link to another dashboard, which gets it as a variable.
func (p Panel) leads(column, title, uid, variable string) Panel {
	return p.set(column, property{"links", []dataLink{{title, "/d/postern-" + uid + "?var-" + variable + "=${__value.raw:percentencode}&${__url_time_range}"}}})
}

var severities = []string{"critical", "dark-red", "high", bad, "medium", poor, "low", fair, "informational", calm}

// severityWords colours a column of severities.
func (p Panel) severityWords() Panel { return p.words("severity", severities...) }

var outcomes = []string{"permitted", good, "blocked", calm, "escaped", bad, "misblocked", poor, "attempted", fair, "undecided", neutral}

// every bounds how fine a series is: no finer than what it asks.
func (p Panel) every(interval string) Panel {
	p.Interval = interval
	return p
}

// named names series by a label alone.
func (p Panel) named(label string) Panel {
	p.Fields.Defaults.DisplayName = "${__field.labels." + label + "}"
	return p
}

// wrap lets a column's text go over several lines.
func (p Panel) wrap(column string) Panel {
	return p.set(column, property{"custom.cellOptions", map[string]any{"type": "auto", "wrapText": true}})
}

// listed finds what a query selects under a name with an underscore.
var listed = regexp.MustCompile(`(?:AS )?\b([a-z]+(?:_[a-z]+)+)(?:,|\n|$)`)

// readable heads columns and names series as people write: last_seen is last seen.
func (p Panel) readable() Panel {
	if p.Type == "nodeGraph" || p.Fields.Defaults.DisplayName != "" {
		return p
	}
	done := map[string]bool{}
	for _, t := range p.Targets {
		top, _, _ := strings.Cut(t.SQL, "\nFROM")
		for _, m := range listed.FindAllStringSubmatch(top, -1) {
			if name := m[1]; !done[name] {
				done[name] = true
				p = p.set(name, property{"displayName", strings.NewReplacer("src_", "from ", "dst_", "to ", "_", " ").Replace(name)})
			}
		}
	}
	return p
}
