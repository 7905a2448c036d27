-- Which exceptions have ended and are used all the same?
--
-- param days = 7: how far back
-- param until = now: up to when
SELECT
    u.exception AS exception, e.owner AS owner, e.ticket AS ticket, e.ended AS ended, u.src_identity AS src_identity, u.client AS client, u.src_workload AS src_workload,
    u.server AS server, u.dst_workload AS dst_workload, u.service AS service, u.outcome AS outcome, sum(u.sessions) AS n, max(u.last_seen) AS last
FROM exception_use AS u
LEFT JOIN exceptions AS e ON e.id = u.exception
WHERE u.reason = 'expired-exception' AND u.hour >= {until:DateTime('UTC')} - toIntervalDay({days:UInt16}) AND u.hour < {until:DateTime('UTC')}
GROUP BY ALL
ORDER BY n DESC, exception, client, server, service
LIMIT 1000
