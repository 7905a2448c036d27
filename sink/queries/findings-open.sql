-- Which findings are open, by owner?
--
-- Open is what nobody judged to be true or a false positive. What a suppression holds back, and what a
-- finding of many tells with others, is left out.
--
-- param days = 30: of findings told anew in so many days
-- param until = now: up to when
SELECT
    owner, severity, type, count() AS n, min(first) AS oldest, max(last) AS newest, arraySlice(arraySort(groupArray(id)), 1, 5) AS ids
FROM
(
    SELECT
        id, argMax(owner, (revision, inserted_at, batch_ordinal)) AS owner, argMax(severity, (revision, inserted_at, batch_ordinal)) AS severity,
        argMax(type, (revision, inserted_at, batch_ordinal)) AS type, min(batch_first_seen) AS first, max(batch_last_seen) AS last
    FROM finding_contributions
    WHERE inserted_at >= {until:DateTime('UTC')} - toIntervalDay({days:UInt16}) AND inserted_at < {until:DateTime('UTC')}
    GROUP BY id
    HAVING argMax(suppressed_by, (revision, inserted_at, batch_ordinal)) = '' AND argMax(grouped_by, (revision, inserted_at, batch_ordinal)) = ''
)
WHERE id NOT IN (SELECT id FROM judgments WHERE judgment IN ('true', 'false-positive'))
GROUP BY owner, severity, type
ORDER BY severity DESC, n DESC, owner, type
LIMIT 1000
