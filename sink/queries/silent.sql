-- Who or what was silent, and when?
--
-- What did not come in a blind spot proves nothing: an exception is not unused over it, and a segment
-- not quiet.
--
-- param days = 7: how far back
-- param until = now: up to when
SELECT
    kind, subject, about, segment, time_from, time_until,
    dateDiff('minute', greatest(time_from, {until:DateTime('UTC')} - toIntervalDay({days:UInt16})), least(ifNull(time_until, {until:DateTime('UTC')}), {until:DateTime('UTC')})) AS minutes,
    details, finding
FROM blind_spots
WHERE time_from < {until:DateTime('UTC')} AND ifNull(time_until, {until:DateTime('UTC')}) > {until:DateTime('UTC')} - toIntervalDay({days:UInt16})
ORDER BY minutes DESC, about
LIMIT 1000
