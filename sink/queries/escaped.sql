-- What got through though it should not have, by rule?
--
-- param days = 7: how far back
-- param until = now: up to when
SELECT
    rule, src_segment, dst_segment, service, sum(sessions) AS n, uniqExact(client) AS clients, uniqExact(server) AS servers,
    arraySort(groupUniqArrayIf(10)(exception, exception != '')) AS exceptions, min(first_seen) AS first, max(last_seen) AS last
FROM edges
WHERE outcome = 'escaped' AND hour >= {until:DateTime('UTC')} - toIntervalDay({days:UInt16}) AND hour < {until:DateTime('UTC')}
GROUP BY rule, src_segment, dst_segment, service
ORDER BY n DESC, rule, src_segment, dst_segment, service
LIMIT 1000
