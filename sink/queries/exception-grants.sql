-- How much of what an exception grants is used?
--
-- Pairs are source address × destination address. An exception that grants many and is used by few can
-- be made narrower; by how much, `postern query exception-use` shows.
--
-- param days = 30: how far back
-- param until = now: up to when
SELECT
    e.id AS exception, e.owner AS owner, e.source AS source, e.destination AS destination, e.services AS services,
    e.pairs_granted AS pairs_granted, uniqExactIf((u.client, u.server), u.sessions > 0) AS pairs_used, round(100 * pairs_used / greatest(pairs_granted, 1), 2) AS per_cent,
    e.ports_granted AS ports_granted, uniqExactIf(u.service, u.sessions > 0) AS services_used, uniqExactIf(u.src_identity, u.src_identity != '') AS identities, sum(u.sessions) AS n
FROM exceptions AS e
LEFT JOIN
(
    SELECT exception, client, server, service, src_identity, sum(sessions) AS sessions FROM exception_use
    WHERE reason = 'waived' AND hour >= {until:DateTime('UTC')} - toIntervalDay({days:UInt16}) AND hour < {until:DateTime('UTC')}
    GROUP BY exception, client, server, service, src_identity
) AS u ON u.exception = e.id
WHERE e.approved_at <= {until:DateTime('UTC')} AND ifNull(e.not_before, e.approved_at) <= {until:DateTime('UTC')} AND e.ended > {until:DateTime('UTC')}
GROUP BY ALL
ORDER BY per_cent, exception
LIMIT 1000
