-- Which exceptions that hold were not used?
--
-- `answer` is "unused" only where everything was seen while it held: with a blind spot in that time, or
-- where the roll-up does not reach back so far, nobody can say. An exception whose uses are all within
-- a narrower one's is unused too: a waived flow names the narrowest.
--
-- param days = 30: how far back
-- param until = now: up to when
WITH
    {until:DateTime('UTC')} - toIntervalDay({days:UInt16}) AS from,
    (
        SELECT groupArray((toDateTime(time_from, 'UTC'), toDateTime(ifNull(time_until, {until:DateTime('UTC')}), 'UTC'), about)) FROM blind_spots
        WHERE time_from < {until:DateTime('UTC')} AND ifNull(time_until, {until:DateTime('UTC')}) > from
    ) AS spots,
    (SELECT count() = 0 ? {until:DateTime('UTC')} : min(hour) FROM edges WHERE hour >= from AND hour < {until:DateTime('UTC')}) AS seen_from
SELECT
    id, owner, class, ticket, ended AS ends,
    greatest(from, toDateTime(greatest(assumeNotNull(approved_at), ifNull(not_before, assumeNotNull(approved_at))), 'UTC')) AS held_from,
    arrayMap(s -> s.3, arrayFilter(s -> s.2 > held_from, spots)) AS not_seen,
    multiIf(notEmpty(not_seen), 'nobody can say: not everything was seen',
        seen_from > held_from + toIntervalDay(1), 'nobody can say: the roll-up begins later',
        'unused') AS answer
FROM exceptions
WHERE approved_at <= {until:DateTime('UTC')} AND ifNull(not_before, approved_at) <= {until:DateTime('UTC')} AND ended > {until:DateTime('UTC')}
    AND id NOT IN (SELECT exception FROM exception_use WHERE reason = 'waived' AND hour >= from AND hour < {until:DateTime('UTC')})
ORDER BY answer DESC, owner, id
LIMIT 1000
