package dashboards

// administrative are the services by which people and intruders go from host to host.
const administrative = "service IN ('tcp/22', 'tcp/23', 'tcp/135', 'tcp/445', 'tcp/3389', 'tcp/5900', 'tcp/5985', 'tcp/5986')"

// hops takes the ways that findings tell of apart: a row a step.
const hops = `
  SELECT id AS finding, JSONExtractString(hop, 'service') AS service,
    if(JSONExtractString(hop, 'client', 'workload') != '', JSONExtractString(hop, 'client', 'workload'), JSONExtractString(hop, 'client', 'address')) AS source,
    if(JSONExtractString(hop, 'server', 'workload') != '', JSONExtractString(hop, 'server', 'workload'), JSONExtractString(hop, 'server', 'address')) AS target,
    JSONExtractString(hop, 'client', 'segment') AS source_segment, JSONExtractString(hop, 'server', 'segment') AS target_segment, step, steps
  FROM (SELECT id, JSONExtractArrayRaw(hops) AS way, length(way) AS steps FROM findings WHERE ` + found + ` AND hops NOT IN ('', '[]', 'null') AND ` + ofSegment + `)
  ARRAY JOIN way AS hop, arrayEnumerate(way) AS step`

// lateralMovement is for those who hunt: the ways that were taken and who reaches unusually many.
func lateralMovement() *Dashboard {
	d := dashboard("lateral-movement", "Lateral movement", "For those who hunt: ways from host to host, who newly reaches whom, and who reaches unusually many.", "now-7d", chooseClickHouse, chooseSegment)
	count := func(title, about, types string, c string) Panel {
		return stat(6, title, about, "short", "SELECT count() AS n FROM findings WHERE "+found+" AND type IN ("+types+") AND "+ofSegment, zeroIsGood(c)...)
	}
	d.row(4,
		count("Ways from host to host", "Chains of sessions by administration that nobody took before, and pivots on from an exception.", "'chain', 'exception-pivot'", bad),
		count("Hosts that reached others for the first time", "One a host and day.", "'first-seen-edge'", fair),
		count("Hosts that reached unusually many", "Fan-out of administration, and scans.", "'remote-admin-fan-out', 'scan'", poor),
		count("Changes of identity on the way", "One came in and another went on.", "'identity-switch'", bad),
	)
	d.row(12,
		graph(14, "The ways that were taken: from where, through what, to where", "Rings: orange where a way began, yellow where it passed, red where it ended. Edges carry services.", `
SELECT id, any(id) AS title, any(segment) AS subtitle, uniqExact(finding) AS mainstat, avg(begun) AS arc__began, avg(passed) AS arc__passed, avg(ended) AS arc__ended
FROM (
  SELECT source AS id, source_segment AS segment, finding, toFloat64(step = 1) AS begun, toFloat64(step != 1) AS passed, 0. AS ended FROM (`+hops+`)
  UNION ALL
  SELECT target AS id, target_segment AS segment, finding, 0. AS begun, toFloat64(step != steps) AS passed, toFloat64(step = steps) AS ended FROM (`+hops+`))
GROUP BY id ORDER BY mainstat DESC LIMIT 200`, `
SELECT source || ' ' || target AS id, source, target, arrayStringConcat(groupUniqArray(5)(service), ', ') AS mainstat, uniqExact(finding) AS secondarystat
FROM (`+hops+`) GROUP BY source, target ORDER BY secondarystat DESC LIMIT 400`, [2]string{"arc__began", poor}, [2]string{"arc__passed", fair}, [2]string{"arc__ended", bad}),
		findingTable(10, "The same ways as sentences", "", "type IN ('chain', 'exception-pivot', 'identity-switch') AND "+ofSegment, "50").width("sentence", 380),
	)
	d.row(9,
		over(12, "First contacts by administration a day", "Pairs and services not seen in the thirty days before, by whether they cross a border between segments.", "short", "bars", "normal", asks("A", `
SELECT toDateTime(first, 'UTC') AS time, countIf(crossing) AS between_segments, countIf(NOT crossing) AS within_a_segment
FROM (
  SELECT min(day) AS first, any(src_segment != dst_segment) AS crossing FROM edge_days
  WHERE day >= toDate($__fromTime - INTERVAL 30 DAY, 'UTC') AND day <= toDate($__toTime, 'UTC') AND `+administrative+` AND `+ofSegment+`
  GROUP BY client, server, service)
WHERE first >= toDate($__fromTime, 'UTC') GROUP BY time ORDER BY time`, true)).every("1d").colour("between_segments", poor, "within_a_segment", calm),
		table(12, "Who newly reached whom", "First seen in the range of time, gravest first.", `
SELECT severity, client, server, service, src_segment, dst_segment, first_seen, id
FROM findings WHERE `+found+` AND type = 'first-seen-edge' AND `+ofSegment+` ORDER BY findings.severity DESC, first_seen DESC LIMIT 100`).
			severityWords().when("first_seen").width("id", 120).leads("id", "The finding in full", "overview", "finding"),
	)
	d.row(9,
		hourly(12, "Widest fan-out by administration, an hour", "The most hosts that any one client reached within the hour: all it tried, and those that answered.", "short", "none", `
SELECT $__timeInterval(hour) AS time, max(tried) AS tried, max(answered) AS answered
FROM (SELECT hour, client, uniq(server) AS tried, uniqIf(server, answered > 0) AS answered FROM edge_hours WHERE `+hours+` AND `+administrative+` AND `+ofSegment+` GROUP BY hour, client)
GROUP BY time ORDER BY time`).colour("tried", fair, "answered", calm),
		table(12, "Who administers most hosts", "Clients by hosts reached over remote administration; scanners and backups belong here, others hardly.", `
SELECT `+end("src_workload", "client")+` AS source, any(toString(src_segment)) AS segment, uniqExact(server) AS hosts, uniqExact(dst_segment) AS segments, toUInt64(sum(e.sessions)) AS sessions,
  100 * sumIf(e.sessions, expected = 'deny') / greatest(sum(e.sessions), 1) AS denied
FROM `+edges("src_workload, client, server, src_segment, dst_segment, sessions, expected", administrative+" AND "+ofSegment)+` AS e GROUP BY source ORDER BY hosts DESC LIMIT 25`).
			bar("hosts", "short", first(calm), from(20, fair), from(100, poor)).number("segments", "short").number("sessions", "short").number("denied", "percent", first("text"), from(1, fair), from(20, poor)),
	)
	return d
}
