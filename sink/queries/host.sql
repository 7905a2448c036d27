-- What did one host do?
--
-- Both ways: whom it asked, and who asked it.
--
-- param host: its address, or its workload's name; for example 10.50.3.3
-- param days = 1: how far back
-- param until = now: up to when
WITH client = toIPv6OrZero({host:String}) OR src_workload = {host:String} AS asked
SELECT
    if(asked, 'asked', 'was asked by') AS way, if(asked, server, client) AS peer, if(asked, dst_workload, src_workload) AS workload,
    if(asked, dst_segment, src_segment) AS segment, service, src_identity, reason, outcome, rule, exception,
    sum(sessions) AS n, sum(answered) AS n_answered, sum(client_bytes) AS sent_by_client, sum(server_bytes) AS sent_by_server, min(first_seen) AS first, max(last_seen) AS last
FROM edges
WHERE hour >= {until:DateTime('UTC')} - toIntervalDay({days:UInt16}) AND hour < {until:DateTime('UTC')} AND {host:String} NOT IN ('', '::')
    AND (client = toIPv6OrZero({host:String}) OR server = toIPv6OrZero({host:String}) OR src_workload = {host:String} OR dst_workload = {host:String})
GROUP BY ALL
ORDER BY n DESC, way, peer, workload, service
LIMIT 1000
