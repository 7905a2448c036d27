-- Who reached a segment, a workload, an application or a zone, and by which exception?
--
-- What got through: permitted or escaped. An empty exception is a way by rule, or by none. An escape
-- beside an exception names the one it comes near to.
--
-- param target: the name of a segment, workload, app or zone; for example cardholder-data
-- param days = 7: how far back
-- param until = now: up to when
SELECT
    exception, reason, outcome, src_identity, client, src_workload, src_segment, server, dst_workload, dst_segment, service,
    sum(sessions) AS n, min(first_seen) AS first, max(last_seen) AS last
FROM edges
WHERE hour >= {until:DateTime('UTC')} - toIntervalDay({days:UInt16}) AND hour < {until:DateTime('UTC')}
    AND outcome IN ('permitted', 'escaped')
    AND (dst_segment = {target:String} OR dst_workload = {target:String}
        OR dst_segment IN (SELECT name FROM segments WHERE zone = {target:String})
        OR dst_workload IN (SELECT name FROM workloads WHERE app = {target:String}))
GROUP BY ALL
ORDER BY exception = '', exception, n DESC, client, server, service
LIMIT 1000
