package sink

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/postern/postern/flow"
)

// InputGenerated is the input of rows that nobody sent: the demo's month. No session stands behind
// them, so that nothing is made out of them again.
const InputGenerated = "generated"

// RollupHour is how an hour of the roll-up compares with the sessions that began in it: the
// newest version of each that stands by itself.
type RollupHour struct {
	Hour     flow.Time // a multiple of [flow.Hour]
	Sessions int64     // by the sessions
	Counted  int64     // by the roll-up
	Bytes    int64     // of both directions, by the sessions
	Counts   int64     // the bytes of the roll-up
	Edges    uint64    // edges that either has
	Differ   uint64    // of these, with other sums, or with sessions that began earlier or ended later than the roll-up has it
	// Wider are edges of which the roll-up has an earlier first or a later last time than any
	// session: of one that turned out to be part of another after it was over. Sums are not touched
	// by that, and it cannot be taken back.
	Wider uint64
	// Unsettled says why the two may still differ by right; empty if they may not.
	Unsettled string

	fingerprint uint64    // of all that differs and of what the roll-up has
	inserted    time.Time // of the newest row in either
}

// rollupKey are the columns by which edge_hours tells edges apart, beside the hour and the input.
const rollupKey = "reason, server, service, client, orientation, src_segment, dst_segment, src_workload, dst_workload, src_identity, dst_identity, expected, staged, observed, outcome, rule, exception"

var rollupSums = []string{"sessions", "answered", "live", "client_bytes", "client_packets", "server_bytes", "server_packets"}

// rollupDifferences is a subquery: for each edge of the hour and each input what the roll-up lacks.
// first_seen, last_seen are those of the sessions, had_first, had_last the roll-up's; differs and
// wider speak of the edge over all its inputs.
func (db *ClickHouse) rollupDifferences(hour flow.Time) string {
	const none, all = "toDateTime(0, 'UTC')", "toDateTime(4294967295, 'UTC')"
	at := fmt.Sprintf("toDateTime(%d, 'UTC')", hour/1000)
	var sums, differ, negated []string
	for _, s := range rollupSums {
		sums = append(sums, "sum("+s+") AS d_"+s)
		differ = append(differ, "sum(d_"+s+") OVER edge != 0")
		negated = append(negated, "-"+s)
	}
	return `(SELECT *,
	` + strings.Join(differ, " OR ") + ` OR min(first) OVER edge < min(had_first) OVER edge OR max(last) OVER edge > max(had_last) OVER edge AS differs,
	(min(had_first) OVER edge < min(first) OVER edge OR max(had_last) OVER edge > max(last) OVER edge) AND min(first) OVER edge < ` + all + ` AS wider
FROM (SELECT ` + rollupKey + `, input, ` + strings.Join(sums, ", ") + `,
		min(first_of) AS first, max(last_of) AS last, min(had_first_of) AS had_first, max(had_last_of) AS had_last, max(newest) AS inserted,
		sum(of_sessions) AS had_sessions, sum(of_bytes) AS had_bytes, sum(of_edges) AS had_rows
	FROM (
		SELECT ` + rollupKey + `, input, toInt64(1) AS sessions, toInt64(both_ways) AS answered, toInt64(0) AS live,
			toInt64(ifNull(client_bytes, 0)) AS client_bytes, toInt64(ifNull(client_packets, 0)) AS client_packets,
			toInt64(ifNull(server_bytes, 0)) AS server_bytes, toInt64(ifNull(server_packets, 0)) AS server_packets,
			toDateTime(time_start, 'UTC') AS first_of, toDateTime(time_end, 'UTC') AS last_of, ` + all + ` AS had_first_of, ` + none + ` AS had_last_of,
			inserted_at AS newest, toInt64(0) AS of_sessions, toInt64(0) AS of_bytes, 0 AS of_edges
		FROM ` + db.cfg.Database + `.session_versions FINAL
		WHERE part_of = 0 AND toStartOfHour(began) = ` + at + `
		UNION ALL
		SELECT ` + rollupKey + `, input, ` + strings.Join(negated, ", ") + `,
			` + all + `, ` + none + `, first_seen, last_seen, inserted_at, sessions, client_bytes + server_bytes, 1
		FROM ` + db.cfg.Database + `.edge_hours
		WHERE hour = ` + at + ` AND input != '` + InputGenerated + `'
	) GROUP BY ` + rollupKey + `, input)
WINDOW edge AS (PARTITION BY ` + rollupKey + `))`
}

// Settling is when an hour of the roll-up is taken to change no more.
type Settling struct {
	// Now is the time of the comparison.
	Now flow.Time
	// After is how long a source must have been read beyond the end of the last session that it
	// told of: longer than until a session that goes on is written again or one that is over is
	// counted, and than records may be late. What is live by the roll-up then is so because
	// whoever counted it forgot it.
	After time.Duration
}

// sourceGone is after how long without a word a source is taken for one that will not go on.
const sourceGone = 24 * time.Hour

// CompareHour compares an hour of the roll-up with the sessions that began in it, so far as they
// were read. Rows of the input [InputGenerated] are left out. Safe for concurrent use.
func (db *ClickHouse) CompareHour(ctx context.Context, hour flow.Time, when Settling) (RollupHour, error) {
	h := RollupHour{Hour: hour}
	if hour < 0 || hour%flow.Hour != 0 {
		return h, permanent(fmt.Errorf("%s is no full hour", hour))
	}
	ctx, cancel := context.WithTimeout(ctx, db.cfg.Timeouts.Migration)
	defer cancel()
	var fingerprint []string
	for _, s := range rollupSums {
		fingerprint = append(fingerprint, "d_"+s)
	}
	err := db.conn.QueryRow(ctx, "SELECT sum(d_sessions + had_sessions), sum(had_sessions), sum(d_client_bytes + d_server_bytes + had_bytes), sum(had_bytes), "+
		"uniqExactIf(("+rollupKey+"), d_sessions != 0 OR had_sessions != 0), uniqExactIf(("+rollupKey+"), differs), uniqExactIf(("+rollupKey+"), wider), "+
		"groupBitXorIf(cityHash64("+rollupKey+", input, "+strings.Join(fingerprint, ", ")+", first, last, had_rows), differs), max(inserted) FROM "+db.rollupDifferences(hour)).
		Scan(&h.Sessions, &h.Counted, &h.Bytes, &h.Counts, &h.Edges, &h.Differ, &h.Wider, &h.fingerprint, &h.inserted)
	if err != nil {
		return h, fmt.Errorf("comparing %s: %w", hour, db.redact(err))
	}
	if h.Unsettled, err = db.unsettled(ctx, hour, when); err != nil {
		return h, fmt.Errorf("looking for what has still to be read of %s: %w", hour, db.redact(err))
	}
	return h, nil
}

// unsettled says why the sessions stored of an hour may not be those that the roll-up counts.
func (db *ClickHouse) unsettled(ctx context.Context, hour flow.Time, when Settling) (string, error) {
	name := db.cfg.Database
	if keep := db.cfg.Retention.Sessions; keep > 0 && hour < when.Now-flow.Time(keep/time.Millisecond) {
		// Unless all of it was replayed since, from files.
		var gone uint64
		err := db.conn.QueryRow(ctx, "SELECT uniqExact(input) FROM "+name+".edge_hours WHERE hour = ? AND input != '"+InputGenerated+"' AND input NOT IN (SELECT input FROM "+name+".replays WHERE started_at > ?)",
			hour.Std(), (when.Now - flow.Time((keep-sourceGone)/time.Millisecond)).Std()).Scan(&gone)
		if err != nil {
			return "", err
		}
		if gone > 0 {
			return fmt.Sprintf("its sessions leave after %v (clickhouse.retention.sessions)", keep), nil
		}
	}
	// How far each source was read is what it told last, by the time that it was received. A file was
	// read to its end, or not.
	rows, err := db.conn.Query(ctx, `SELECT h.input, h.last, p.read, r.input != '' AS replayed, r.finished
FROM (SELECT input, max(time_end) AS last FROM `+name+`.session_versions WHERE toStartOfHour(began) = toDateTime(?, 'UTC') GROUP BY input) AS h
LEFT JOIN (SELECT input, max(inserted_at) AS read FROM `+name+`.session_versions WHERE inserted_at >= toDateTime(?, 'UTC') - INTERVAL 1 DAY GROUP BY input) AS p ON p.input = h.input
LEFT JOIN (SELECT input, argMax(rows, inserted_at) > 0 AS finished FROM `+name+`.replays GROUP BY input) AS r ON r.input = h.input
ORDER BY h.input`, int64(hour/1000), int64(hour/1000))
	if err != nil {
		return "", err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	for rows.Next() {
		var input string
		var last, read time.Time
		var replayed, finished bool
		if err := rows.Scan(&input, &last, &read, &replayed, &finished); err != nil {
			return "", err
		}
		switch now := when.Now.Std(); {
		case replayed && finished:
		case replayed:
			return "the replay of " + input + " did not come to its end", nil
		case read.After(last.Add(when.After)), now.Sub(read) > sourceGone && now.Sub(last) > sourceGone:
		default:
			return fmt.Sprintf("%s was read to %s, and a session of it lasted until %s", input, read.UTC().Format(time.RFC3339), last.UTC().Format(time.RFC3339)), nil
		}
	}
	return "", rows.Err()
}

// ErrUnsettled says that an hour of the roll-up cannot be made anew: see [RollupHour.Unsettled].
var ErrUnsettled = errors.New("the hour is not settled")

// RebuildHour makes an hour of the roll-up what the sessions say, if nothing is left that could
// change it. What is written are the differences that h tells of, in one insert and so at once:
// whoever asks sees the hour as it was or as it is, and what others add to it meanwhile stays. Two that
// rebuild the same hour from the same h write once. It returns how the hour compares then.
func (db *ClickHouse) RebuildHour(ctx context.Context, h RollupHour, when Settling) (RollupHour, error) {
	if h.Unsettled != "" {
		return h, permanent(fmt.Errorf("%w: %s", ErrUnsettled, h.Unsettled))
	}
	if h.Differ == 0 {
		return h, nil
	}
	// Kept as long as what it amends. The same difference on another day is another one.
	ins := Insert{Token: fmt.Sprintf("rollup/%d/%x/%d", h.Hour, h.fingerprint, when.Now/(24*flow.Hour)), Input: "rollup", At: flow.Time(h.inserted.UnixMilli())}
	var sums, not []string
	for _, s := range rollupSums {
		sums = append(sums, "d_"+s)
		not = append(not, "d_"+s+" != 0")
	}
	err := db.insertDifferences(ctx, ins, fmt.Sprintf(`INSERT INTO %s.edge_hours (hour, %s, input, %s, first_seen, last_seen, live_first_seen, live_last_seen, inserted_at)
SELECT toDateTime(%d, 'UTC'), %s, input, %s, first, last, toDateTime(4294967295, 'UTC'), toDateTime(0, 'UTC'), fromUnixTimestamp64Milli(%d, 'UTC')
FROM %s WHERE differs AND (%s OR first < had_first OR last > had_last)`,
		db.cfg.Database, rollupKey, strings.Join(rollupSums, ", "), h.Hour/1000, rollupKey, strings.Join(sums, ", "), ins.At, db.rollupDifferences(h.Hour), strings.Join(not, " OR ")))
	if err != nil {
		return h, fmt.Errorf("rebuilding %s: %w", h.Hour, err)
	}
	return db.CompareHour(ctx, h.Hour, when)
}

// RollupDay is a day of the daily roll-up that is not the sum of its hours.
type RollupDay struct {
	Day    flow.Time // its beginning, in UTC
	Differ uint64    // edges with other sums or times

	fingerprint uint64
	inserted    time.Time
}

const dayLong = 24 * flow.Hour

// dayDifferences is a subquery: for each edge and input of the days from from on and before before
// what the daily roll-up lacks of the hourly one.
func (db *ClickHouse) dayDifferences(from, before flow.Time) string {
	side := func(table, day, hours, sign, first, last, had string) string {
		var sums []string
		for _, s := range rollupSums {
			sums = append(sums, sign+s+" AS d_"+s)
		}
		return "SELECT " + day + " AS day, " + rollupKey + ", input, " + strings.Join(sums, ", ") + ", " + first + ", " + last + ", " + had + ", " + hours + " AS h, inserted_at AS newest FROM " + db.cfg.Database + "." + table +
			fmt.Sprintf(" WHERE %s >= toDate(toDateTime(%d, 'UTC'), 'UTC') AND %s < toDate(toDateTime(%d, 'UTC'), 'UTC')", day, from/1000, day, before/1000)
	}
	const none, all = "toDateTime(0, 'UTC')", "toDateTime(4294967295, 'UTC')"
	var sums, differ []string
	for _, s := range rollupSums {
		sums = append(sums, "sum(d_"+s+") AS d_"+s)
		differ = append(differ, "d_"+s+" != 0")
	}
	return "(SELECT day, " + rollupKey + ", input, " + strings.Join(sums, ", ") + ", min(f) AS first, max(l) AS last, min(lf) AS live_first, max(ll) AS live_last, min(hf) AS had_first, max(hl) AS had_last, groupBitOr(h) AS hours, max(newest) AS inserted, " +
		strings.Join(differ, " OR ") + " OR first < had_first OR last > had_last AS differs FROM (" +
		side("edge_hours", "toDate(hour, 'UTC')", "toUInt32(bitShiftLeft(1, toHour(hour, 'UTC')))", "", "first_seen AS f, live_first_seen AS lf", "last_seen AS l, live_last_seen AS ll", all+" AS hf, "+none+" AS hl") + " UNION ALL " +
		side("edge_days", "day", "toUInt32(0)", "-", all+" AS f, "+all+" AS lf", none+" AS l, "+none+" AS ll", "first_seen AS hf, last_seen AS hl") +
		") GROUP BY day, " + rollupKey + ", input)"
}

// CompareDays lists the days from from on and before before that are not the sums of their hours, though the
// engine adds to both at once: an insert was cut off between the two and never came again. A day to which
// something was added within the last hour may still be half done and is left out.
func (db *ClickHouse) CompareDays(ctx context.Context, from, before, now flow.Time) (out []RollupDay, err error) {
	ctx, cancel := context.WithTimeout(ctx, db.cfg.Timeouts.Migration)
	defer cancel()
	days, err := db.times(ctx, fmt.Sprintf(`SELECT DISTINCT toDateTime(d, 'UTC') AS day FROM (
	SELECT toDate(hour, 'UTC') AS d FROM %[1]s.edge_hours WHERE hour >= toDateTime(%[2]d, 'UTC') AND hour < toDateTime(%[3]d, 'UTC')
	UNION ALL SELECT day AS d FROM %[1]s.edge_days WHERE day >= toDate(toDateTime(%[2]d, 'UTC'), 'UTC') AND day <= toDate(toDateTime(%[3]d, 'UTC'), 'UTC'))
ORDER BY day`, db.cfg.Database, max(from, 0)/dayLong*dayLong/1000, max(before, 0)/1000))
	if err != nil {
		return nil, fmt.Errorf("looking for days of the roll-up: %w", err)
	}
	for _, day := range days {
		d := RollupDay{Day: day}
		if err := db.conn.QueryRow(ctx, "SELECT countIf(differs), groupBitXorIf(cityHash64("+rollupKey+", input, d_"+strings.Join(rollupSums, ", d_")+", first, last), differs), max(inserted) FROM "+db.dayDifferences(day, day+dayLong)).
			Scan(&d.Differ, &d.fingerprint, &d.inserted); err != nil {
			return nil, fmt.Errorf("comparing the day %s with its hours: %w", day, db.redact(err))
		}
		if d.Differ > 0 && now.Std().Sub(d.inserted) > time.Hour {
			out = append(out, d)
		}
	}
	return out, nil
}

// RebuildDay makes a day of the daily roll-up the sum of its hours, by the differences, as RebuildHour does.
func (db *ClickHouse) RebuildDay(ctx context.Context, d RollupDay, now flow.Time) error {
	ins := Insert{Token: fmt.Sprintf("rollup/day/%d/%x/%d", d.Day, d.fingerprint, now/dayLong), Input: "rollup", At: flow.Time(d.inserted.UnixMilli())}
	err := db.insertDifferences(ctx, ins, fmt.Sprintf(`INSERT INTO %s.edge_days (day, %s, input, %s, first_seen, last_seen, live_first_seen, live_last_seen, hours, inserted_at)
SELECT day, %s, input, d_%s, first, last, live_first, live_last, hours, fromUnixTimestamp64Milli(%d, 'UTC') FROM %s WHERE differs`,
		db.cfg.Database, rollupKey, strings.Join(rollupSums, ", "), rollupKey, strings.Join(rollupSums, ", d_"), ins.At, db.dayDifferences(d.Day, d.Day+dayLong)))
	if err != nil {
		return fmt.Errorf("rebuilding the day %s: %w", d.Day, err)
	}
	return nil
}

// insertDifferences runs an INSERT SELECT under a token, all of it as one block: one part, there or not.
func (db *ClickHouse) insertDifferences(ctx context.Context, ins Insert, sql string) error {
	if err := ins.check(); err != nil {
		return err
	}
	settings := clickhouse.Settings{}
	for k, v := range db.cfg.insertSettings(ins.token()) {
		settings[k] = v
	}
	// A token holds for an INSERT SELECT only where it is said.
	settings["min_insert_block_size_rows"], settings["min_insert_block_size_bytes"], settings["insert_select_deduplicate"] = "100000000", "17179869184", "1"
	ctx, cancel := context.WithTimeout(ctx, db.cfg.Timeouts.Migration)
	defer cancel()
	return db.redact(db.conn.Exec(clickhouse.Context(ctx, clickhouse.WithSettings(settings)), sql))
}

// RollupHours lists the hours from from on and before before in which sessions began or the roll-up
// has some, in order.
func (db *ClickHouse) RollupHours(ctx context.Context, from, before flow.Time) ([]flow.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, db.cfg.Timeouts.Migration)
	defer cancel()
	hours, err := db.times(ctx, fmt.Sprintf(`SELECT DISTINCT hour FROM (
	SELECT hour FROM %[1]s.edge_hours WHERE hour >= toDateTime(%[2]d, 'UTC') AND hour < toDateTime(%[3]d, 'UTC') AND input != '%[4]s'
	UNION ALL SELECT toStartOfHour(began) FROM %[1]s.session_versions WHERE toStartOfHour(began) >= toDateTime(%[2]d, 'UTC') AND toStartOfHour(began) < toDateTime(%[3]d, 'UTC'))
ORDER BY hour`, db.cfg.Database, max(from, 0)/1000, max(before, 0)/1000, InputGenerated))
	if err != nil {
		return nil, fmt.Errorf("looking for hours of the roll-up: %w", err)
	}
	return hours, nil
}

// times asks for a column of times.
func (db *ClickHouse) times(ctx context.Context, sql string) (out []flow.Time, err error) {
	rows, err := db.conn.Query(ctx, sql)
	if err != nil {
		return nil, db.redact(err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	for rows.Next() {
		var at time.Time
		if err := rows.Scan(&at); err != nil {
			return nil, db.redact(err)
		}
		out = append(out, flow.TimeOf(at))
	}
	return out, db.redact(rows.Err())
}
