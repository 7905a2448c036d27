-- Which zone talks to which, and what becomes of it?
--
-- A segment without a zone stands for itself; what is in no segment is "(none)".
--
-- param days = 7: how far back
-- param until = now: up to when
WITH (SELECT mapFromArrays(groupArray(name), groupArray(toString(zone))) FROM segments) AS zones
SELECT
    if(src_segment = '', '(none)', if(zones[src_segment] = '', toString(src_segment), zones[src_segment])) AS from_zone,
    if(dst_segment = '', '(none)', if(zones[dst_segment] = '', toString(dst_segment), zones[dst_segment])) AS to_zone,
    sum(sessions) AS n, sum(permitted) AS n_permitted, sum(blocked) AS n_blocked, sum(escaped) AS n_escaped, sum(misblocked) AS n_misblocked,
    sum(attempted) AS n_attempted, sum(undecided) AS n_undecided, sum(bytes) AS volume
FROM segment_pairs
WHERE hour >= {until:DateTime('UTC')} - toIntervalDay({days:UInt16}) AND hour < {until:DateTime('UTC')}
GROUP BY from_zone, to_zone
ORDER BY n DESC, from_zone, to_zone
LIMIT 1000
