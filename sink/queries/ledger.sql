-- Does the ledger close?
--
-- The newest account of each exporter: everything received is decoded, refused with a reason, or still
-- waiting. `open` is what is none of these; it must be 0.
--
-- param days = 1: of instances that gave an account in so many days
-- param until = now: up to when
SELECT
    instance, exporter, max(at) AS as_of,
    argMax(datagrams_received, at) AS datagrams, argMax(datagrams_rejected, at) AS datagrams_refused, argMax(datagrams_parked + datagrams_queued, at) AS datagrams_waiting,
    argMax(records_decoded, at) AS records, argMax(records_written, at) AS records_stored, argMax(records_rejected, at) AS records_refused, argMax(records_in_flight, at) AS records_waiting,
    argMax(lines_received, at) AS lines, argMax(lines_rejected, at) AS lines_refused, argMax(gaps, at) AS missed,
    argMax(toInt64(datagrams_received) - toInt64(datagrams_decoded + datagrams_rejected + datagrams_parked + datagrams_queued), at)
        + argMax(toInt64(records_decoded) - toInt64(records_written + records_duplicate + records_rejected + records_in_flight), at)
        + argMax(toInt64(lines_received) - toInt64(lines_read + lines_not_flow + lines_rejected + lines_queued + lines_lost), at) AS open,
    argMax(lines_lost, at) AS lost
FROM ledger
WHERE inserted_at >= {until:DateTime('UTC')} - toIntervalDay({days:UInt16}) AND inserted_at < {until:DateTime('UTC')}
GROUP BY instance, exporter
ORDER BY abs(open) DESC, lost DESC, datagrams DESC, exporter, instance
LIMIT 1000
