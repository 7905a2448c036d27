package dashboards

// days are those of the range of time; of each it is told how it stood at its end, or now.
const (
	days     = "arrayJoin(arrayMap(i -> toStartOfDay($__fromTime) + toIntervalDay(i), range(toUInt32(dateDiff('day', $__fromTime, $__toTime)) + 1)))"
	endOfDay = "least(time + INTERVAL 1 DAY, $__toTime)"
)

// audit is for the CISO and for auditors: how far enforcement has come, and who approved what.
func audit() *Dashboard {
	d := dashboard("audit", "Audit and compliance", "For the CISO and auditors: how much of the estate is enforced, what is approved by whom, and how that develops.", "now-90d", chooseClickHouse, chooseOwner)
	enforced := func(title, tier string) Panel {
		return stat(4, title, "Workloads whose segments are all enforced, of those of this tier.", "percent",
			"SELECT 100 * sumIf(workloads, stage = 'enforced') / greatest(sum(workloads), 1) AS enforced FROM coverage_history WHERE until IS NULL AND "+tier, first(bad), from(50, poor), from(80, fair), from(95, good))
	}
	d.row(4,
		enforced("Crown jewels enforced", "tier = 'crown-jewel'"),
		enforced("High tier enforced", "tier = 'high'"),
		enforced("All workloads enforced", "workloads > 0"),
		stat(4, "Sessions that policy judged", "Not uncovered and not unverified, in the range of time.", "percent",
			"SELECT 100 * sumIf(sessions, reason NOT IN ('', 'uncovered', 'unverified')) / greatest(sum(sessions), 1) AS judged FROM "+edges("sessions, reason", "1"), first(poor), from(80, fair), from(95, good)),
		stat(4, "Exceptions in force, self-approved", "In force, and approved by nobody but who asked for them.", "short",
			"SELECT countIf(empty(arrayFilter(a -> a != requested_by, approved_by))) AS n FROM exceptions WHERE state IN ('active', 'expiring') AND "+ofOwner, zeroIsGood(bad)...),
		stat(4, "High findings judged by nobody", "Told in the range of time and not yet looked at.", "short",
			"SELECT count() AS n FROM judged_findings WHERE "+found+" AND severity >= 'high' AND judgment = '' AND "+told, zeroIsGood(poor)...),
	)
	trend := over(12, "Share of workloads enforced, by tier", "As the policy of each day said.", "percent", "line", "none", asks("A", `
SELECT time, 100 * sumIf(workloads, stage = 'enforced' AND tier = 'crown-jewel') / greatest(sumIf(workloads, tier = 'crown-jewel'), 1) AS crown_jewel,
  100 * sumIf(workloads, stage = 'enforced' AND tier = 'high') / greatest(sumIf(workloads, tier = 'high'), 1) AS high,
  100 * sumIf(workloads, stage = 'enforced') / greatest(sum(workloads), 1) AS all_workloads
FROM (SELECT `+days+` AS time) AS d CROSS JOIN coverage_history AS c
WHERE since <= `+endOfDay+` AND (until IS NULL OR until > `+endOfDay+`)
GROUP BY time ORDER BY time`, true)).every("1d").colour("crown_jewel", bad, "high", poor, "all_workloads", calm)
	hundred := 100.0
	trend.Fields.Defaults.Max = &hundred
	d.row(9, trend,
		over(12, "Exceptions in force over time, by class", "How many held on each day; a register that only grows is not reviewed.", "short", "bars", "normal", asks("A", `
SELECT time, toString(class) AS class, count() AS in_force FROM (
  SELECT class, not_before, approved_at, ended, `+days+` AS time FROM exceptions WHERE `+ofOwner+`)
WHERE approved_at <= `+endOfDay+` AND ifNull(not_before, approved_at) <= `+endOfDay+` AND (ended IS NULL OR ended > `+endOfDay+`) GROUP BY time, class ORDER BY time`, true)).every("1d").named("class"),
	)
	d.row(9,
		table(10, "Workloads by how dear and how far under policy", "Where a crown jewel is only observed, begin there.", `
SELECT toString(tier) AS tier, toUInt64(sumIf(workloads, stage = 'enforced')) AS enforced, toUInt64(sumIf(workloads, stage = 'staged')) AS staged, toUInt64(sumIf(workloads, stage = 'observe')) AS observed,
  toUInt64(sumIf(workloads, stage = 'none')) AS in_no_segment, 100 * sumIf(workloads, stage = 'enforced') / greatest(sum(workloads), 1) AS share
FROM coverage_history AS h WHERE until IS NULL GROUP BY h.tier ORDER BY h.tier DESC`).
			words("tier", "crown-jewel", bad, "high", poor, "normal", calm, "low", neutral, "none", neutral).bar("share", "percent", first(bad), from(50, poor), from(80, fair), from(95, good)),
		table(14, "Approvals: who asked, who approved, for how long", "The newest first.", `
SELECT id, state, toString(owner) AS owner, requested_by, arrayStringConcat(arrayMap((who, role) -> who || ' (' || role || ')', approved_by, approver_roles), ', ') AS approved_by,
  dateDiff('hour', requested_at, approved_at) AS hours_to_approve, dateDiff('day', ifNull(not_before, approved_at), expires) AS days_granted, ticket, reason
FROM exceptions WHERE `+ofOwner+` ORDER BY exceptions.approved_at DESC LIMIT 100`).words("state", states...).leads("id", "Everything about it", "one-exception", "exception").
			number("hours_to_approve", "h", first("text"), from(72, fair)).number("days_granted", "d", first("text"), from(90, fair), from(180, poor)).width("id", 100),
	)
	d.row(9,
		table(10, "Policy versions that came into force", "Which content, since when, from which commit.", `
SELECT since, any(substring(hash, 1, 16)) AS version, min(accepted_at) AS accepted, any(instance) AS by_instance, any(substring(git_commit, 1, 12)) AS commit
FROM policy_versions GROUP BY since, hash ORDER BY since DESC LIMIT 50`).when("since", "accepted"),
		table(14, "What people said of findings, by detector", "Right is true of those judged true or false-positive.", `
SELECT type, sum(findings) AS findings, sum(unjudged) AS not_judged, sum(acknowledged) AS looked_at, sum(judged_true) AS "true", sum(judged_false_positive) AS false_positive,
  if(sum(judged_true) + sum(judged_false_positive) = 0, NULL, 100 * sum(judged_true) / (sum(judged_true) + sum(judged_false_positive))) AS right
FROM detector_judgments WHERE day >= toDate($__fromTime) AND day <= toDate($__toTime) GROUP BY type ORDER BY findings DESC LIMIT 50`).
			number("findings", "short").number("not_judged", "short").number("looked_at", "short").number("true", "short").number("false_positive", "short").bar("right", "percent", first(bad), from(50, poor), from(80, good)),
	)
	return d
}
