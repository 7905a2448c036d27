-- Who used an exception, from where, and for what?
--
-- Every use that was recognised: while it held (waived), and beside it (expired, out of scope …). From
-- the hourly roll-up, so it reaches back as far as clickhouse.retention.edges.
--
-- param exception: the exception's id; for example EX-2041
-- param days = 7: how far back
-- param until = now: up to when
SELECT
    src_identity, client, src_workload, src_segment, server, dst_workload, dst_segment, service, reason, outcome,
    sum(sessions) AS n, sum(client_bytes) + sum(server_bytes) AS bytes, min(first_seen) AS first, max(last_seen) AS last
FROM exception_use
WHERE exception = {exception:String} AND hour >= {until:DateTime('UTC')} - toIntervalDay({days:UInt16}) AND hour < {until:DateTime('UTC')}
GROUP BY ALL
ORDER BY n DESC, client, server, service
LIMIT 1000
