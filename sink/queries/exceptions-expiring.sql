-- Which exceptions end soon, and are they still needed?
--
-- `n` and `last` are their uses while they held, in the 30 days before `until`.
--
-- param days = 14: how far ahead
-- param until = now: as of when
SELECT
    e.id AS exception, e.owner AS owner, e.class AS class, e.ticket AS ticket, e.requested_by AS requested_by, e.ended AS ends,
    dateDiff('day', {until:DateTime('UTC')}, e.ended) AS days_left, sum(u.sessions) AS n, uniqExactIf((u.client, u.server), u.sessions > 0) AS pairs, max(u.last_seen) AS last
FROM exceptions AS e
LEFT JOIN
(
    SELECT exception, client, server, sum(sessions) AS sessions, max(last_seen) AS last_seen FROM exception_use
    WHERE reason = 'waived' AND hour >= {until:DateTime('UTC')} - toIntervalDay(30) AND hour < {until:DateTime('UTC')}
    GROUP BY exception, client, server
) AS u ON u.exception = e.id
WHERE e.approved_at <= {until:DateTime('UTC')} AND e.ended > {until:DateTime('UTC')} AND e.ended <= {until:DateTime('UTC')} + toIntervalDay({days:UInt16})
GROUP BY ALL
ORDER BY ends, exception
LIMIT 1000
