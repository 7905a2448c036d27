package dashboards

import "strings"

// ofSegment is the condition that an end lies in a chosen segment.
const ofSegment = "$__conditionalAll((src_segment IN (${segment:singlequote}) OR dst_segment IN (${segment:singlequote})), $segment)"

// address writes an IPv6 column as people do: IPv4 dotted.
func address(column string) string {
	return "replaceRegexpOne(toString(" + column + "), '^::ffff:', '')"
}

// end names an end of an edge: its workload, or its address.
func end(workload, addr string) string {
	return "if(" + workload + " != '', toString(" + workload + "), " + address(addr) + ")"
}

// byOutcome counts sessions by what policy and enforcement made of them.
const byOutcome = `toUInt64(sumIf(sessions, outcome = 'permitted')) AS permitted, toUInt64(sumIf(sessions, outcome = 'blocked')) AS blocked,
  toUInt64(sumIf(sessions, outcome = 'escaped')) AS escaped, toUInt64(sumIf(sessions, outcome = 'misblocked')) AS misblocked,
  toUInt64(sumIf(sessions, outcome = 'attempted')) AS attempted, toUInt64(sumIf(sessions, outcome = 'none')) AS undecided`

// findingTable lists findings, the gravest first, by a condition; each leads to itself in full.
func findingTable(w int, title, about, condition string, limit string) Panel {
	return table(w, title, about, `
SELECT severity, sentence, exception, owner, toUInt64(greatest(count, 0)) AS sessions, last_seen, id
FROM findings
WHERE `+found+` AND `+condition+`
ORDER BY findings.severity DESC, last_seen DESC LIMIT `+limit).
		severityWords().width("sentence", 620).number("sessions", "short").when("last_seen").width("id", 120).
		leads("id", "The finding in full", "overview", "finding").leads("exception", "The exception", "one-exception", "exception")
}

// overview is for those on watch: what is wrong now, where, and what to look at first.
func overview() *Dashboard {
	d := dashboard("overview", "Overview", "For the SOC: what is wrong now, where from, and what to look at first.", "now-24h",
		chooseClickHouse, chooseSegment, chooseSeverity, chooseFinding)
	seen := " AND " + ofSegment
	d.row(4,
		stat(4, "Critical and high findings told", "Findings first seen in the range of time, told by themselves.", "short",
			"SELECT count() AS findings FROM findings WHERE "+found+" AND first_seen >= $__fromTime AND severity >= 'high' AND "+told+seen, zeroIsGood(bad)...),
		stat(4, "Denied sessions that passed", "Outcome escaped: policy denies them, enforcement let them through.", "short",
			"SELECT toUInt64(sum(sessions)) AS escaped FROM "+edges("sessions", "outcome = 'escaped'"+seen), zeroIsGood(bad)...),
		stat(4, "Allowed sessions that were stopped", "Outcome misblocked: somebody cannot work.", "short",
			"SELECT toUInt64(sum(sessions)) AS misblocked FROM "+edges("sessions", "outcome = 'misblocked'"+seen), zeroIsGood(poor)...),
		stat(4, "Exceptions used after their end", "Distinct exceptions; each leads to sessions that nobody approves any more.", "short",
			"SELECT uniqExact(exception) AS exceptions FROM "+edges("exception", "reason = 'expired-exception'"+seen), zeroIsGood(poor)...),
		stat(4, "Blind spots open now", "Exporters, hosts or segments of which nothing is seen: silence there proves nothing.", "short",
			"SELECT count() AS open FROM blind_spots WHERE time_until IS NULL", zeroIsGood(fair)...),
		stat(4, "Sessions that policy says nothing of", "Share of sessions not judged, uncovered or unverified.", "percent",
			"SELECT 100 * sumIf(sessions, reason IN ('', 'uncovered', 'unverified')) / greatest(sum(sessions), 1) AS share FROM "+edges("sessions, reason", ofSegment),
			first(good), from(5, fair), from(20, poor)),
	)
	bySeverity := []string{}
	for i := 0; i < len(severities); i += 2 {
		bySeverity = append(bySeverity, "countIf(severity = '"+severities[i]+"') AS "+severities[i])
	}
	d.row(8,
		hourly(12, "Findings by severity, when first seen", "Those told by themselves.", "short", "normal", `
SELECT $__timeInterval(first_seen) AS time, `+strings.Join(bySeverity, ", ")+`
FROM findings WHERE `+found+` AND $__timeFilter_ms(first_seen) AND `+told+seen+`
GROUP BY time ORDER BY time`).colour(severities...),
		hourly(12, "Sessions by what policy wanted and enforcement did", "Escaped and misblocked are where the two differ.", "short", "normal", `
SELECT $__timeInterval(hour) AS time, `+byOutcome+`
FROM edge_hours WHERE `+hours+seen+` GROUP BY time ORDER BY time`).colour(outcomes...),
	)
	d.row(10,
		findingTable(15, "Findings to look at first", "Told by themselves, of the chosen severities. Click an id for the whole of it below.",
			where("findings.severity", "severity")+" AND "+told+seen, "50"),
		table(9, "Who is denied most", "Clients by sessions that policy denies, stopped or not.", `
SELECT `+end("src_workload", "client")+` AS source, any(toString(src_segment)) AS segment, toUInt64(sum(sessions)) AS denied, toUInt64(sumIf(sessions, outcome = 'escaped')) AS passed,
  uniqExact(server) AS servers
FROM `+edges("src_workload, client, server, src_segment, sessions, outcome", "expected = 'deny'"+seen)+`
GROUP BY source ORDER BY denied DESC LIMIT 15`).bar("denied", "short").number("passed", "short", first("text"), from(1, bad)).number("servers", "short").width("source", 170),
	)
	d.row(9,
		over(10, "Blocked pressure: denied sessions by the segment they aim at", "The eight segments most aimed at. A rise is somebody trying, or a rule somebody needs.", "short", "line", "none", asks("A", `
SELECT $__timeInterval(hour) AS time, toString(if(dst_segment = '', 'no segment', dst_segment)) AS segment, toUInt64(sum(sessions)) AS denied
FROM edge_hours
WHERE `+hours+` AND expected = 'deny'`+seen+` AND dst_segment IN (
  SELECT dst_segment FROM edge_hours WHERE `+hours+` AND expected = 'deny' GROUP BY dst_segment ORDER BY sum(sessions) DESC LIMIT 8)
GROUP BY time, segment ORDER BY time`, true)).every("1h").named("segment"),
		table(14, "The finding in full: the chosen one, or the gravest", "Choose by a click on an id, or write one above.", `
SELECT tupleElement(line, 1) AS what, tupleElement(line, 2) AS finding FROM (
  SELECT arrayJoin(arrayFilter(l -> l.2 != '', [
    ('what happened', sentence), ('what to do', next), ('type', type || ', ' || toString(severity) || ', ' || toString(toUInt64(greatest(count, 0))) || ' sessions'),
    ('seen', toString(first_seen) || ' to ' || toString(last_seen) || ' UTC'), ('verdict', 'expected ' || expected || ', observed ' || observed || ', ' || reason || if(empty(failed), '', ': ' || arrayStringConcat(failed, ', '))),
    ('rule', rule), ('exception', exception || if(ticket = '', '', ', ticket ' || ticket) || if(owner = '', '', ', owner ' || owner)),
    ('ATT&CK', arrayStringConcat(techniques, ', ')), ('policy', policy_version || if(policy_commit = '', '', ', commit ' || policy_commit)), ('sessions behind it', query)])) AS line
  FROM (SELECT * FROM findings WHERE `+found+` AND `+told+` AND $__conditionalAll(id = ${finding:singlequote}, $finding) ORDER BY severity DESC, last_seen DESC LIMIT 1))`).width("what", 150).wrap("finding"),
	)
	return d
}
