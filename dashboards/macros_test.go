package dashboards

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// What the plugin does to a query before ClickHouse sees it. "ClickHouse query editor", section
// Macros, of the plugin's documentation, lists each with the example given here; what it does not
// say (the shape of $__conditionalAll's second argument) is as its source has it.

// shown is what a dashboard is looked at with: a range of time, and what is chosen.
type shown struct {
	from, to time.Time
	interval time.Duration
	chosen   map[string][]string // none of a variable is all
}

var macro = regexp.MustCompile(`\$__(\w+)(?:\(([^()]*)\))?`)

// expand gives the SQL as it is sent.
func (s shown) expand(sql string) (string, error) {
	sql, err := s.variables(sql)
	if err != nil {
		return "", err
	}
	sql = macro.ReplaceAllStringFunc(sql, func(m string) string {
		part := macro.FindStringSubmatch(m)
		of := part[2]
		switch part[1] {
		case "fromTime": // toDateTime(1415792726)
			return seconds(s.from)
		case "toTime": // toDateTime(1447328726)
			return seconds(s.to)
		case "timeFilter": // time >= toDateTime(1415792726) AND time <= toDateTime(1447328726)
			return of + " >= " + seconds(s.from) + " AND " + of + " <= " + seconds(s.to)
		case "timeFilter_ms": // time >= fromUnixTimestamp64Milli(1415792726123) AND time <= fromUnixTimestamp64Milli(1447328726456)
			return of + " >= " + millis(s.from) + " AND " + of + " <= " + millis(s.to)
		case "timeInterval": // toStartOfInterval(toDateTime(column), INTERVAL 20 second)
			return fmt.Sprintf("toStartOfInterval(toDateTime(%s), INTERVAL %d second)", of, max(int(s.interval.Seconds()), 1))
		}
		err = fmt.Errorf("%s is no macro that the plugin documents and these dashboards use", m)
		return m
	})
	if err == nil && strings.Contains(sql, "${") {
		err = fmt.Errorf("a variable is left in %s", sql)
	}
	return sql, err
}

func seconds(t time.Time) string { return fmt.Sprintf("toDateTime(%d)", t.Unix()) }
func millis(t time.Time) string  { return fmt.Sprintf("fromUnixTimestamp64Milli(%d)", t.UnixMilli()) }

var variable = regexp.MustCompile(`\$\{(\w+):singlequote\}`)

// variables fills in what is chosen: $__conditionalAll(condition, $variable) is the condition, and 1=1 where
// all or nothing is ("Macros"); ${variable:singlequote} is 'a','b' ("Variable syntax" of Grafana's
// documentation, section Advanced variable format options).
func (s shown) variables(sql string) (string, error) {
	const name = "$__conditionalAll("
	for {
		at := strings.LastIndex(sql, name)
		if at < 0 {
			break
		}
		depth, comma, end := 1, -1, -1
		for i := at + len(name); i < len(sql) && end < 0; i++ {
			switch c := sql[i]; {
			case c == '(':
				depth++
			case c == ')':
				if depth--; depth == 0 {
					end = i
				}
			case c == ',' && depth == 1:
				if comma >= 0 {
					return "", fmt.Errorf("more than two arguments: %s", sql[at:i])
				}
				comma = i
			}
		}
		if end < 0 || comma < 0 {
			return "", fmt.Errorf("not closed, or not two arguments: %s", sql[at:])
		}
		condition := sql[at+len(name) : comma]
		if len(s.chosen[strings.TrimPrefix(strings.TrimSpace(sql[comma+1:end]), "$")]) == 0 {
			condition = "1=1"
		}
		sql = sql[:at] + condition + sql[end+1:]
	}
	return variable.ReplaceAllStringFunc(sql, func(v string) string {
		var quoted []string
		for _, c := range s.chosen[variable.FindStringSubmatch(v)[1]] {
			quoted = append(quoted, "'"+strings.ReplaceAll(c, "'", `\'`)+"'")
		}
		return strings.Join(quoted, ",")
	}), nil
}

func TestMacros(t *testing.T) {
	s := shown{time.Unix(1415792726, 123e6), time.Unix(1447328726, 456e6), 20 * time.Second, map[string][]string{"fruit": {"apple", "o'range"}}}
	for sql, want := range map[string]string{
		"$__fromTime and $__toTime": "toDateTime(1415792726) and toDateTime(1447328726)",
		"$__timeFilter(time)":       "time >= toDateTime(1415792726) AND time <= toDateTime(1447328726)",
		"$__timeFilter_ms(time)":    "time >= fromUnixTimestamp64Milli(1415792726123) AND time <= fromUnixTimestamp64Milli(1447328726456)",
		"$__timeInterval(column)":   "toStartOfInterval(toDateTime(column), INTERVAL 20 second)",
		"$__conditionalAll(a IN (${fruit:singlequote}), $fruit) AND x":                  `a IN ('apple','o\'range') AND x`,
		"$__conditionalAll((f(a, b) IN (${colour:singlequote}) OR c), $colour) AND (x)": "1=1 AND (x)",
	} {
		if got, err := s.expand(sql); err != nil || got != want {
			t.Errorf("%s\n got %s %v\nwant %s", sql, got, err, want)
		}
	}
	if _, err := s.expand("$__unheardOf(x)"); err == nil {
		t.Error("a macro that there is not is let through")
	}
}
