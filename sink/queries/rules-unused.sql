-- Which rules carry nothing?
--
-- Enforced rules of the policy in force that decided about no session. Of several rules that match, the
-- first by action and id is named, so one here may also stand behind another. Staged rules decide
-- nothing yet and are left out. `not_seen` is how many blind spots there were in that time: with any, a
-- rule may have carried what nobody saw.
--
-- param days = 30: how far back
-- param until = now: up to when
SELECT
    id AS rule, action, source, destination, services, owner, reason, since AS in_version_since,
    (
        SELECT count() FROM blind_spots
        WHERE time_from < {until:DateTime('UTC')} AND ifNull(time_until, {until:DateTime('UTC')}) > {until:DateTime('UTC')} - toIntervalDay({days:UInt16})
    ) AS not_seen
FROM rules
WHERE mode = 'enforce'
    AND id NOT IN (SELECT rule FROM edges WHERE hour >= {until:DateTime('UTC')} - toIntervalDay({days:UInt16}) AND hour < {until:DateTime('UTC')})
ORDER BY action, rule
LIMIT 1000
