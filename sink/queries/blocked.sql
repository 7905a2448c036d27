-- Who presses against what is blocked?
--
-- Sources by the sessions of theirs that enforcement stopped as policy wants it: one that tries many
-- servers is more than one that tries the same again and again.
--
-- param days = 1: how far back
-- param until = now: up to when
SELECT
    client, src_workload, src_segment, arraySort(groupUniqArrayIf(5)(src_identity, src_identity != '')) AS identities,
    sum(sessions) AS n, uniqExact(server) AS servers, uniqExact(service) AS services, arraySort(groupUniqArray(5)(dst_segment)) AS towards,
    arraySort(groupUniqArray(5)(rule)) AS rules, min(first_seen) AS first, max(last_seen) AS last
FROM edges
WHERE outcome = 'blocked' AND hour >= {until:DateTime('UTC')} - toIntervalDay({days:UInt16}) AND hour < {until:DateTime('UTC')}
GROUP BY client, src_workload, src_segment
ORDER BY n DESC, client
LIMIT 100
