package dashboards

var states = []string{"active", good, "expiring", fair, "expired", neutral, "revoked", neutral, "removed", neutral, "unapproved", poor, "not-yet-valid", calm}

const ofOwner = "$__conditionalAll(owner IN (${owner:singlequote}), $owner)"

// ofOwners is ofOwner for what names an exception and not its owner.
const ofOwners = "$__conditionalAll(exception IN (SELECT id FROM exceptions WHERE owner IN (${owner:singlequote})), $owner)"

// exceptions is for owners: what they answer for, whether it is used, and what ends next.
func exceptions() *Dashboard {
	state := Variable{Name: "state", Label: "State", Type: "custom", Multi: true, IncludeAll: true, Query: "active,expiring,expired,revoked,removed,unapproved,not-yet-valid",
		Current: &choice{[]string{"All"}, []string{"$__all"}}}
	d := dashboard("exceptions", "Exceptions", "For owners: every exception, whether it is used and how far, what ends next, and what is used that should not be.", "now-30d",
		chooseClickHouse, chooseOwner, state)
	d.row(4,
		stat(4, "Exceptions in force", "Active and expiring.", "short", "SELECT count() AS n FROM exceptions WHERE state IN ('active', 'expiring') AND "+ofOwner),
		stat(4, "End within 14 days", "Ask for a new one, or let it end.", "short", "SELECT count() AS n FROM exceptions WHERE state = 'expiring' AND "+ofOwner, zeroIsGood(fair)...),
		stat(4, "Used after their end", "In the range of time.", "short",
			"SELECT uniqExact(exception) AS n FROM "+edges("exception", "exception != '' AND reason = 'expired-exception' AND "+ofOwners), zeroIsGood(bad)...),
		stat(4, "Used beyond what was approved", "Other hosts, services or people than the exception names.", "short",
			"SELECT uniqExact(exception) AS n FROM "+edges("exception", "exception != '' AND reason = 'out-of-scope' AND "+ofOwners), zeroIsGood(bad)...),
		stat(4, "In force and not used", "No session in the range of time: is it still needed?", "short",
			"SELECT count() AS n FROM exceptions WHERE state IN ('active', 'expiring') AND "+ofOwner+" AND id NOT IN (SELECT exception FROM "+edges("exception", "exception != '' AND reason = 'waived'")+")", zeroIsGood(fair)...),
		stat(4, "Waiting for approval", "They hold nothing yet; what uses them is denied.", "short", "SELECT count() AS n FROM exceptions WHERE state = 'unapproved' AND "+ofOwner, zeroIsGood(fair)...),
	)
	d.row(11, table(24, "The register: every exception, its state and how much of it is used", "Pairs used are client and server addresses seen under it, of those that it grants. Click an id.", `
SELECT e.id AS id, e.state AS state, e.owner AS owner, e.class AS class, e.ticket AS ticket, e.source AS source, e.destination AS destination, arrayStringConcat(e.services, ', ') AS services,
  e.ended AS ends, u.last_used AS last_used, u.sessions AS sessions, u.pairs AS pairs_used, e.pairs_granted AS pairs_granted,
  if(e.pairs_granted = 0, 0, 100 * least(u.pairs / e.pairs_granted, 1)) AS used
FROM (SELECT * FROM exceptions WHERE `+ofOwner+` AND `+where("state", "state")+`) AS e
LEFT JOIN (
  SELECT toString(exception) AS id, toUInt64(sum(sessions)) AS sessions, uniqExactIf((client, server), reason = 'waived') AS pairs, toNullable(max(e.last_used)) AS last_used
  FROM `+edges("exception, client, server, reason, sessions, last_used", "exception != ''")+` AS e GROUP BY id) AS u ON u.id = e.id
ORDER BY indexOf(['unapproved', 'expiring', 'active', 'not-yet-valid', 'expired', 'revoked', 'removed'], e.state), e.ended LIMIT 500`).
		words("state", states...).leads("id", "Everything about it", "one-exception", "exception").when("ends", "last_used").number("sessions", "short").
		number("pairs_used", "short").number("pairs_granted", "short").bar("used", "percent").width("id", 100).width("ticket", 110).width("class", 110).width("owner", 130),
	)
	d.row(9,
		over(12, "Use by exception: sessions a day", "The ten most used, and what else they are implicated in.", "short", "bars", "normal", asks("A", `
SELECT toDateTime(day, 'UTC') AS time, toString(exception) AS exception, toUInt64(sum(sessions)) AS sessions
FROM edge_days WHERE `+wholeDays+` AND exception IN (
  SELECT exception FROM edge_days WHERE `+wholeDays+` AND exception != '' AND `+ofOwners+` GROUP BY exception ORDER BY sum(sessions) DESC LIMIT 10)
GROUP BY time, exception ORDER BY time`, true)).every("1d").named("exception"),
		table(12, "What ends within 30 days", "The owner asks for a new one in time, or nobody needs it.", `
SELECT id, owner, ticket, ended AS ends, dateDiff('day', now(), ended) AS days_left, reason
FROM exceptions WHERE state IN ('active', 'expiring') AND ended <= now() + INTERVAL 30 DAY AND `+ofOwner+` ORDER BY ended LIMIT 50`).
			leads("id", "Everything about it", "one-exception", "exception").when("ends").number("days_left", "d", first(bad), from(3, poor), from(7, fair), from(14, good)).width("id", 100),
	)
	d.row(9,
		table(12, "Used when or where they do not hold", "After the end, before the beginning, without approval, or beyond what was approved.", `
SELECT toString(exception) AS exception, toString(reason) AS why, `+end("src_workload", "client")+` AS source, `+end("dst_workload", "server")+` AS destination, toString(service) AS service,
  toUInt64(sum(e.sessions)) AS sessions, toUInt64(sumIf(e.sessions, outcome = 'escaped')) AS passed, max(e.last_used) AS last_used
FROM `+edges("exception, reason, src_workload, dst_workload, client, server, service, sessions, outcome, last_used", "exception != '' AND reason IN ('expired-exception', 'not-yet-valid', 'unapproved', 'out-of-scope') AND "+ofOwners)+` AS e
GROUP BY exception, why, source, destination, service ORDER BY sessions DESC LIMIT 50`).
			leads("exception", "Everything about it", "one-exception", "exception").number("sessions", "short").number("passed", "short", first("text"), from(1, bad)).when("last_used").width("exception", 100),
		findingTable(12, "Pivots: on from where an exception ends", "Who came in by an exception and went on from its target, which nobody approved.",
			"type IN ('exception-pivot', 'scope-growth', 'exception-news', 'outlived-exception')", "50"),
	)
	return d
}

// oneException is everything about one: what was approved, and what it is used for.
func oneException() *Dashboard {
	v := Variable{Name: "exception", Label: "Exception", Type: "query", Source: &clickHouse, Query: "SELECT id FROM exceptions ORDER BY id", Refresh: 1, Definition: "SELECT id FROM exceptions ORDER BY id"}
	d := dashboard("one-exception", "One exception", "For its owner and for whoever looks into it: what was approved, who uses it from where to reach what, and what was found about it.", "now-30d", chooseClickHouse, v)
	const it = "exception = ${exception:singlequote}"
	const id = "id = ${exception:singlequote}"
	d.row(4,
		stat(4, "State now", "", "none", "SELECT state FROM exceptions WHERE "+id).text(states...),
		stat(4, "Ends, or ended", "The earliest of its expiry, its revocation and its removal.", "dateTimeFromNow", "SELECT ended FROM exceptions WHERE "+id).text(),
		stat(4, "Owner", "Who answers for it.", "none", "SELECT owner FROM exceptions WHERE "+id).text(),
		stat(4, "Sessions that it allowed", "In the range of time.", "short", "SELECT toUInt64(sum(sessions)) AS sessions FROM "+edges("sessions", it+" AND reason = 'waived'")),
		stat(4, "Sessions that it does not allow", "It is implicated: expired, out of scope, unapproved.", "short", "SELECT toUInt64(sum(sessions)) AS sessions FROM "+edges("sessions", it+" AND reason != 'waived'"), zeroIsGood(bad)...),
		stat(4, "Pairs used of pairs granted", "Client and server addresses; little used is granted too widely.", "percent", `
SELECT 100 * (SELECT uniqExact(client, server) FROM `+edges("client, server", it+" AND reason = 'waived'")+`) / greatest(pairs_granted, 1) AS used FROM exceptions WHERE `+id, first(fair), from(10, good)),
	)
	d.row(9,
		table(9, "What was approved, by whom and why", "", `
SELECT tupleElement(line, 1) AS what, tupleElement(line, 2) AS approved FROM (
  SELECT arrayJoin(arrayFilter(l -> l.2 != '', [
    ('reason', reason), ('from', source), ('to', destination), ('services', arrayStringConcat(services, ', ')), ('ticket', ticket), ('class', toString(class)), ('overrides', arrayStringConcat(overrides, ', ')),
    ('asked for', requested_by || ifNull(', ' || toString(requested_at), '')), ('approved', arrayStringConcat(arrayMap((who, role) -> who || ' as ' || role, approved_by, approver_roles), ', ') || ifNull(', ' || toString(approved_at), '')),
    ('holds from', ifNull(toString(not_before), '')), ('expires', ifNull(toString(expires), '')), ('revoked', if(isNull(revoked_at), '', toString(assumeNotNull(revoked_at)) || ' by ' || revoked_by || ': ' || revoked_for)),
    ('removed from policy', ifNull(toString(removed_at), ''))])) AS line
  FROM exceptions WHERE `+id+`)`).width("what", 140).wrap("approved"),
		hourly(15, "Sessions by why they were judged so", "Waived is its proper use; the others are what it does not allow.", "short", "normal", `
SELECT $__timeInterval(hour) AS time, toUInt64(sumIf(sessions, reason = 'waived')) AS waived, toUInt64(sumIf(sessions, reason = 'expired-exception')) AS expired, toUInt64(sumIf(sessions, reason = 'out-of-scope')) AS out_of_scope,
  toUInt64(sumIf(sessions, reason IN ('unapproved', 'not-yet-valid'))) AS not_valid, toUInt64(sumIf(sessions, reason IN ('unverified', 'expiry-uncertain'))) AS unverified
FROM edge_hours WHERE `+hours+` AND `+it+` GROUP BY time ORDER BY time`).colour("waived", good, "expired", bad, "out_of_scope", poor, "not_valid", fair, "unverified", neutral),
	)
	src, dst := end("src_workload", "client"), end("dst_workload", "server")
	used := edges("src_workload, dst_workload, client, server, src_segment, dst_segment, service, reason, sessions", it)
	d.row(11,
		graph(10, "Who used it to reach what", "The ring: green what it allows, red what it does not. The hundred busiest.", `
SELECT id, any(what) AS title, any(segment) AS subtitle, toUInt64(sum(n)) AS mainstat, sum(fine) / greatest(sum(n), 1) AS arc__allowed, 1 - arc__allowed AS arc__not
FROM (
  SELECT `+src+` AS id, id AS what, toString(src_segment) AS segment, sum(sessions) AS n, sumIf(sessions, reason = 'waived') AS fine FROM `+used+` GROUP BY id, segment
  UNION ALL
  SELECT `+dst+` AS id, id AS what, toString(dst_segment) AS segment, sum(sessions) AS n, sumIf(sessions, reason = 'waived') AS fine FROM `+used+` GROUP BY id, segment)
GROUP BY id ORDER BY mainstat DESC LIMIT 100`, `
SELECT source || ' ' || target AS id, `+src+` AS source, `+dst+` AS target, toUInt64(sum(sessions)) AS mainstat, arrayStringConcat(groupUniqArray(5)(toString(service)), ', ') AS secondarystat
FROM `+used+` GROUP BY source, target ORDER BY mainstat DESC LIMIT 200`, [2]string{"arc__allowed", good}, [2]string{"arc__not", bad}),
		table(14, "Who used it, from where, for what", "", `
SELECT toString(src_identity) AS identity, `+src+` AS source, toString(src_segment) AS segment, `+dst+` AS destination, toString(service) AS service, toString(reason) AS reason,
  toUInt64(sum(sessions)) AS sessions, toUInt64(sum(client_bytes) + sum(server_bytes)) AS volume, max(e.last_used) AS last_used
FROM `+edges("src_identity, src_workload, dst_workload, client, server, src_segment, service, reason, sessions, client_bytes, server_bytes, last_used", it)+` AS e
GROUP BY identity, source, segment, destination, service, reason ORDER BY sessions DESC LIMIT 100`).
			number("sessions", "short").number("volume", "decbytes").when("last_used").words("reason", "waived", good, "expired-exception", bad, "out-of-scope", poor, "unapproved", poor, "not-yet-valid", poor),
	)
	d.row(9, findingTable(24, "What was found about it", "", it, "50"))
	return d
}
