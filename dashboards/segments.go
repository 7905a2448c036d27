package dashboards

// segments is for those who segment: what flows between zones, and where enforcement and policy differ.
func segments() *Dashboard {
	d := dashboard("segments", "Segments", "For network engineers and owners of segments: what flows between zones, how much of it policy denies, and where enforcement does otherwise.", "now-7d", chooseClickHouse, chooseSegment)
	zones := `
FROM (SELECT src_segment, dst_segment, sum(e.sessions) AS n, sumIf(e.sessions, expected = 'deny') AS denied FROM ` + edges("src_segment, dst_segment, sessions, expected", ofSegment) + ` AS e GROUP BY src_segment, dst_segment) AS p
LEFT JOIN (SELECT name, toString(zone) AS zone FROM segments) AS s ON s.name = p.src_segment
LEFT JOIN (SELECT name, toString(zone) AS zone FROM segments) AS t ON t.name = p.dst_segment`
	matrix := table(11, "From zone to zone: share of sessions that policy denies", "Rows are where sessions begin, columns where they end. Empty: no traffic. Outside is in no segment.", `
SELECT if(s.zone = '', 'outside', s.zone) AS "from", if(t.zone = '', 'outside', t.zone) AS "to", round(100 * sum(denied) / greatest(sum(n), 1), 1) AS denied`+zones+`
GROUP BY "from", "to" ORDER BY "from", "to"`)
	matrix.Transform = []transform{{"groupingToMatrix", map[string]any{"columnField": "to", "rowField": "from", "valueField": "denied", "emptyValue": "null"}}}
	matrix.Fields.Defaults.Unit = "percent"
	matrix.Fields.Defaults.Thresholds.Steps = []step{first(good), from(1, fair), from(10, poor), from(50, bad)}
	matrix.Fields.Defaults.Custom = map[string]any{"align": "center", "inspect": false, "cellOptions": map[string]any{"type": "color-background", "mode": "basic"}}
	matrix = matrix.set(`from\to`, property{"custom.cellOptions", map[string]any{"type": "auto"}})
	d.row(11, matrix,
		graph(13, "The map: which segments talk, and what becomes of it", "Rings: green permitted, blue blocked, red escaped, orange misblocked, the rest grey. Edges carry sessions and their share that policy denies.", `
SELECT id, id AS title, any(subtitle) AS subtitle, toUInt64(sum(n)) AS mainstat, any(tier) AS secondarystat,
  sum(ok) / greatest(mainstat, 1) AS arc__permitted, sum(stopped) / greatest(mainstat, 1) AS arc__blocked, sum(passed) / greatest(mainstat, 1) AS arc__escaped, sum(wrong) / greatest(mainstat, 1) AS arc__misblocked,
  1 - arc__permitted - arc__blocked - arc__escaped - arc__misblocked AS arc__undecided
FROM (
  SELECT if(segment = '', 'outside', segment) AS id, sum(sessions) AS n, sumIf(sessions, outcome = 'permitted') AS ok, sumIf(sessions, outcome = 'blocked') AS stopped, sumIf(sessions, outcome = 'escaped') AS passed, sumIf(sessions, outcome = 'misblocked') AS wrong
  FROM (SELECT arrayJoin(arrayDistinct([toString(src_segment), toString(dst_segment)])) AS segment, outcome, sum(e.sessions) AS sessions FROM `+edges("src_segment, dst_segment, sessions, outcome", ofSegment)+` AS e GROUP BY src_segment, dst_segment, outcome)
  GROUP BY id) AS p
LEFT JOIN (SELECT name, toString(zone) || ', ' || toString(stage) AS subtitle, toString(tier) AS tier FROM segments) AS s ON s.name = p.id
GROUP BY id ORDER BY mainstat DESC LIMIT 100`, `
SELECT source || ' ' || target AS id, if(src_segment = '', 'outside', toString(src_segment)) AS source, if(dst_segment = '', 'outside', toString(dst_segment)) AS target,
  toUInt64(sum(sessions)) AS mainstat, toString(round(100 * sumIf(sessions, expected = 'deny') / greatest(sum(sessions), 1), 1)) || ' % denied' AS secondarystat
FROM `+edges("src_segment, dst_segment, sessions, expected", ofSegment+" AND src_segment != dst_segment")+` GROUP BY source, target ORDER BY mainstat DESC LIMIT 150`,
			[2]string{"arc__permitted", good}, [2]string{"arc__blocked", calm}, [2]string{"arc__escaped", bad}, [2]string{"arc__misblocked", poor}, [2]string{"arc__undecided", neutral}),
	)
	d.row(8,
		hourly(12, "Escaped and misblocked: where enforcement is not what policy says", "Escaped: denied and passed. Misblocked: allowed and stopped. Both should be nothing.", "short", "normal", `
SELECT $__timeInterval(hour) AS time, toUInt64(sumIf(sessions, outcome = 'escaped')) AS escaped, toUInt64(sumIf(sessions, outcome = 'misblocked')) AS misblocked
FROM edge_hours WHERE `+hours+` AND `+ofSegment+` GROUP BY time ORDER BY time`).colour("escaped", bad, "misblocked", poor),
		table(12, "Between which segments, by which rule", "Pairs with most sessions that escaped or were misblocked.", `
SELECT toString(src_segment) AS from_segment, toString(dst_segment) AS to_segment, toString(rule) AS rule, toUInt64(sumIf(sessions, outcome = 'escaped')) AS escaped,
  toUInt64(sumIf(sessions, outcome = 'misblocked')) AS misblocked, arrayStringConcat(groupUniqArray(4)(toString(service)), ', ') AS services
FROM `+edges("src_segment, dst_segment, rule, service, sessions, outcome", "outcome IN ('escaped', 'misblocked') AND "+ofSegment)+`
GROUP BY from_segment, to_segment, rule ORDER BY escaped + misblocked DESC LIMIT 25`).number("escaped", "short", first("text"), from(1, bad)).number("misblocked", "short", first("text"), from(1, poor)),
	)
	d.row(9,
		table(12, "Segments by stage: what would be denied if staged rules were enforced", "Sessions that begin or end there. Would be denied: allowed now, denied once all that is staged is enforced.", `
SELECT s.name AS segment, toString(s.tier) AS tier, toString(s.stage) AS stage, toString(s.owner) AS owner, p.n AS sessions, p.would AS would_be_denied, p.pairs AS pairs_to_look_at
FROM segments AS s
LEFT JOIN (
  SELECT toString(dst_segment) AS name, toUInt64(sum(e.sessions)) AS n, toUInt64(sumIf(e.sessions, expected != 'deny' AND staged = 'deny')) AS would, uniqExactIf((client, server, service), expected != 'deny' AND staged = 'deny') AS pairs
  FROM `+edges("client, server, service, dst_segment, expected, staged, sessions", "dst_segment != ''")+` AS e GROUP BY name) AS p ON p.name = s.name
WHERE $__conditionalAll(s.name IN (${segment:singlequote}), $segment) ORDER BY s.tier DESC, would_be_denied DESC`).
			words("tier", "crown-jewel", bad, "high", poor, "normal", calm, "low", neutral).words("stage", "enforced", good, "staged", fair, "observe", neutral).
			number("sessions", "short").number("would_be_denied", "short", first("text"), from(1, fair)).number("pairs_to_look_at", "short"),
		findingTable(12, "Drift: what is enforced and mapped is not what policy says", "Rules enforced otherwise than written, points that disagree, addresses in no segment or another's.",
			"type IN ('enforcement-drift', 'enforcement-split', 'misblocked', 'unmapped-address', 'segment-mismatch', 'segment-unseen') AND "+ofSegment, "50").width("sentence", 420),
	)
	return d
}
