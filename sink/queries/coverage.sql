-- What share of the workloads is enforced, by tier?
--
-- By the version of policy in force at `until`.
--
-- param until = now: as of when
SELECT
    tier, sum(workloads) AS n, sumIf(workloads, stage = 'enforced') AS n_enforced, sumIf(workloads, stage = 'staged') AS n_staged,
    sumIf(workloads, stage IN ('observe', 'none')) AS n_open, round(100 * n_enforced / greatest(n, 1), 1) AS per_cent_enforced, any(policy_version) AS policy_version
FROM coverage_history
WHERE since <= {until:DateTime('UTC')} AND ifNull(until > {until:DateTime('UTC')}, 1)
GROUP BY tier
HAVING n > 0
ORDER BY tier DESC
LIMIT 1000
