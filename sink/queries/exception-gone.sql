-- What would break if an exception went?
--
-- The edges that lived on this exception alone: no other exception that holds at `until` fitted all of
-- their flows, and no rule has permitted them since. Other exceptions are known from raw flows, whose
-- retention is shorter: of an edge older than that it is taken that there was none. What was not used
-- in that time is not here, and neither is what was not seen (postern query silent).
--
-- param exception: the exception's id; for example EX-2041
-- param days = 30: how far back
-- param until = now: up to when
WITH
    {until:DateTime('UTC')} - toIntervalDay({days:UInt16}) AS from,
    (
        SELECT groupArray(id) FROM exceptions
        WHERE id != {exception:String} AND approved_at <= {until:DateTime('UTC')} AND ended > {until:DateTime('UTC')}
            AND ifNull(not_before, approved_at) <= {until:DateTime('UTC')}
    ) AS holding
SELECT
    client, any(src_workload) AS src_workload, src_segment, server, any(dst_workload) AS dst_workload, dst_segment, service,
    arraySort(groupUniqArrayIf(src_identity, src_identity != '')) AS identities,
    sumIf(sessions, exception = {exception:String} AND reason = 'waived') AS n,
    maxIf(last_seen, exception = {exception:String} AND reason = 'waived') AS last
FROM edges
WHERE hour >= from AND hour < {until:DateTime('UTC')}
    AND (client, server, service) IN
    (
        SELECT client, server, service FROM exception_use
        WHERE exception = {exception:String} AND reason = 'waived' AND hour >= from AND hour < {until:DateTime('UTC')}
    )
    AND (client, server, service) NOT IN
    (
        SELECT client, server, service FROM flows
        WHERE exception = {exception:String} AND reason = 'waived' AND time_start >= from AND time_start < {until:DateTime('UTC')}
        GROUP BY client, server, service
        HAVING countIf(NOT hasAny(others, holding)) = 0
    )
GROUP BY client, src_segment, server, dst_segment, service
HAVING n > 0 AND maxIf(hour, reason = 'permitted') <= maxIf(hour, exception = {exception:String} AND reason = 'waived')
ORDER BY n DESC, client, server, service
LIMIT 1000
