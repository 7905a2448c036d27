-- Which edges between segments were seen on a day for the first time?
--
-- First within the days before: an edge that was seen earlier than that counts as new again.
--
-- param day = yesterday: the UTC day
-- param days = 30: how many days before it are looked at
SELECT
    client, any(src_workload) AS src_workload, src_segment, server, any(dst_workload) AS dst_workload, dst_segment, service,
    min(first_seen) AS first, sum(sessions) AS n, sum(answered) AS n_answered,
    arraySort(groupUniqArray(toString(reason))) AS reasons, arraySort(groupUniqArrayIf(exception, exception != '')) AS exceptions
FROM edges
WHERE hour >= toDateTime({day:Date}, 'UTC') - toIntervalDay({days:UInt16}) AND hour < toDateTime({day:Date}, 'UTC') + toIntervalDay(1) AND src_segment != dst_segment
GROUP BY client, src_segment, server, dst_segment, service
HAVING min(hour) >= toDateTime({day:Date}, 'UTC')
ORDER BY n_answered DESC, n DESC, client, server, service
LIMIT 1000
