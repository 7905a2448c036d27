package dashboards

// identity is for those who run the sensors: whom we can name, and what we cannot see.
func identity() *Dashboard {
	d := dashboard("identity", "Identity and blind spots", "For those who run sensors and identity sources: of which traffic it is known who was behind it, and of what nothing is seen.", "now-7d", chooseClickHouse, chooseSegment)
	d.row(4,
		stat(5, "Sessions whose client is known by name", "Share of sessions with an identity at the client.", "percent",
			"SELECT 100 * sumIf(sessions, src_identity != '') / greatest(sum(sessions), 1) AS known FROM "+edges("sessions, src_identity", ofSegment), first(neutral), from(50, good)),
		stat(5, "Sessions left unverified", "An exception names who or what, and it was not known: neither allowed nor denied for certain.", "short",
			"SELECT toUInt64(sum(sessions)) AS unverified FROM "+edges("sessions", "reason = 'unverified' AND "+ofSegment), zeroIsGood(poor)...),
		stat(5, "Blind spots open now", "", "short", "SELECT count() AS open FROM blind_spots WHERE time_until IS NULL", zeroIsGood(fair)...),
		stat(5, "Exporters silent for more than ten minutes", "Of those heard in the range of time, by the newest snapshot.", "short",
			"SELECT countIf(heard < newest - INTERVAL 10 MINUTE) AS silent FROM (SELECT max(last_seen) AS heard, max(max(at)) OVER () AS newest FROM exporters WHERE at >= $__fromTime AND at <= $__toTime + INTERVAL 1 HOUR GROUP BY exporter, domain)", zeroIsGood(poor)...),
		stat(4, "Segments that need an agent", "A host there without one is a blind spot.", "short", "SELECT countIf(agent_required) AS segments FROM segments"),
	)
	d.row(8,
		hourly(12, "Of how many sessions the client is known by name", "Unknown is no fault by itself; where an exception names people it is.", "short", "normal", `
SELECT $__timeInterval(hour) AS time, toUInt64(sumIf(sessions, src_identity != '')) AS known, toUInt64(sumIf(sessions, src_identity = '' AND reason != 'unverified')) AS unknown, toUInt64(sumIf(sessions, reason = 'unverified')) AS unverified
FROM edge_hours WHERE `+hours+` AND `+ofSegment+` GROUP BY time ORDER BY time`).colour("known", good, "unknown", neutral, "unverified", poor),
		over(12, "Blind spots open at the time, by kind", "What did not come then says nothing.", "short", "bars", "normal", asks("A", `
SELECT time, kind, count() AS open FROM (
  SELECT toString(kind) AS kind, arrayJoin(arrayMap(i -> toStartOfHour($__fromTime) + toIntervalHour(i * 6), range(toUInt32(dateDiff('hour', $__fromTime, $__toTime) / 6) + 1))) AS time
  FROM blind_spots WHERE time_from <= $__toTime AND (time_until IS NULL OR time_until >= $__fromTime) AND time_from <= time + INTERVAL 6 HOUR AND (time_until IS NULL OR time_until >= time))
GROUP BY time, kind ORDER BY time`, true)).every("6h").named("kind"),
	)
	d.row(10,
		table(12, "What is not seen, the open ones first", "In the range of time.", `
SELECT if(isNull(time_until), 'open', 'over') AS state, about, toString(kind) AS kind, toString(segment) AS segment, time_from AS since, if(isNull(time_until), dateDiff('second', time_from, now64(3)), dateDiff('second', time_from, assumeNotNull(time_until))) AS lasted, details, finding
FROM blind_spots WHERE time_from <= $__toTime AND (time_until IS NULL OR time_until >= $__fromTime) ORDER BY isNull(time_until) DESC, time_from DESC LIMIT 100`).
			words("state", "open", poor, "over", neutral).when("since").number("lasted", "dtdurations").leads("finding", "The finding in full", "overview", "finding").width("about", 300),
		table(12, "Where identity was missing and mattered", "Sessions left unverified by target: which source of identities would settle them?", `
SELECT toString(src_segment) AS from_segment, toString(dst_segment) AS to_segment, toString(exception) AS exception, toString(service) AS service, toUInt64(sum(sessions)) AS sessions, uniqExact(client) AS clients, max(e.last_used) AS last_used
FROM `+edges("src_segment, dst_segment, exception, service, client, sessions, last_used", "reason IN ('unverified', 'expiry-uncertain') AND "+ofSegment)+` AS e GROUP BY from_segment, to_segment, exception, service ORDER BY sessions DESC LIMIT 50`).
			bar("sessions", "short").number("clients", "short").when("last_used").leads("exception", "The exception", "one-exception", "exception"),
	)
	d.row(9,
		table(12, "Who exports, and when last", "By the newest snapshot. Gaps are what sequence numbers skipped; skew is its clock against ours.", `
SELECT `+address("exporter")+` AS exporter, domain, argMax(toString(source), at) AS format, max(last_seen) AS last_heard, argMax(records, at) AS records, argMax(gaps, at) AS gaps, argMax(skew_ms, at) AS skew, argMax(sampling_rate, at) AS sampling
FROM exporters WHERE at >= $__fromTime AND at <= $__toTime + INTERVAL 1 HOUR GROUP BY exporter, domain ORDER BY last_heard LIMIT 100`).
			when("last_heard").number("records", "short").number("gaps", "short", first("text"), from(1, poor)).number("skew", "ms"),
		findingTable(12, "What was found about identity and sight", "", "type IN ('identity-mismatch', 'unseen-by-agent', 'verdict-mismatch', 'identity-switch', 'silent-exporter', 'silent-host', 'agent-missing', 'sequence-loss', 'stale-identity', 'clock-skew', 'sampling-change', 'state-pressure') AND "+ofSegment, "50").width("sentence", 420),
	)
	return d
}
