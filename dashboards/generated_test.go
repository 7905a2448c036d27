package dashboards

import (
	"strings"
	"testing"
)

// generate fills the tables with a hundred days of an estate that has everything the dashboards
// tell of: every outcome and reason, exceptions in every state, ways, blind spots, exporters.
// All times hang on the engine's clock, as the states of exceptions do.
func generate(t testing.TB, e engine) {
	t.Helper()
	for stmt := range strings.SplitSeq(generated, ";\n") {
		if stmt = strings.TrimSpace(stmt); stmt != "" {
			e.insert(t, stmt)
		}
	}
}

const generated = `
INSERT INTO policy_versions (hash, since, accepted_at, instance, source, git_commit, inserted_at)
SELECT lower(hex(SHA256(toString(number)))), now64(3) - toIntervalDay(100 - number * 30) AS begun, begun, 'pipe-1', 'postern: v1', '0123456789abcdef', now64(3) FROM numbers(3);

INSERT INTO coverage_versions (policy_version, stage, tier, workloads, addresses, inserted_at)
SELECT substring(lower(hex(SHA256(toString(number)))), 1, 16) AS v, stage, tier, 4 + number * (stage = 'enforced'), 256, now64(3)
FROM numbers(3) ARRAY JOIN ['observe', 'staged', 'enforced'] AS stage ARRAY JOIN ['low', 'normal', 'high', 'crown-jewel'] AS tier;

INSERT INTO segment_versions (policy_version, name, zone, tier, stage, owner, agent_required, default_in, default_out, prefixes, workloads, inserted_at)
SELECT substring(lower(hex(SHA256(toString(v.number)))), 1, 16), 'segment-' || toString(s.number), 'zone-' || toString(s.number % 4), ['low', 'normal', 'high', 'crown-jewel'][s.number % 4 + 1], ['observe', 'staged', 'enforced'][s.number % 3 + 1],
  'team-' || toString(s.number % 3), s.number % 2, 'deny', 'allow', ['10.0.' || toString(s.number) || '.0/24'], 12, now64(3)
FROM numbers(3) AS v CROSS JOIN numbers(8) AS s;

INSERT INTO workload_versions (policy_version, name, app, role, env, owner, segment, zone, tier, stage, addresses, labels, inserted_at)
SELECT substring(lower(hex(SHA256(toString(v.number)))), 1, 16), 'host-' || toString(w.number), 'app', 'role', 'prod', 'team-0', 'segment-0', 'zone-0', 'high', 'enforced', [toIPv6('10.0.0.1')], map('os', 'linux'), now64(3)
FROM numbers(3) AS v CROSS JOIN numbers(20) AS w;

INSERT INTO exception_versions (policy_version, id, class, ticket, owner, reason, requested_by, requested_at, approved_at, approved_by, approver_roles, not_before, expires, revoked_at, revoked_by, revoked_for, overrides, source, destination, services, pairs_granted, ports_granted, inserted_at)
SELECT substring(lower(hex(SHA256(toString(v.number)))), 1, 16), 'EX-' || toString(x.number), ['vendor', 'migration', 'opt-out', 'break-glass'][x.number % 4 + 1], 'CHG-' || toString(x.number), 'team-' || toString(x.number % 3), 'because it''s needed', 'ana',
  now64(3) - toIntervalDay(60), if(x.number = 7, NULL, now64(3) - toIntervalDay(59)), if(x.number = 7, [], if(x.number = 8, ['ana'], ['raj'])), if(x.number = 7, [], ['segment-owner']), if(x.number = 6, now64(3) + toIntervalDay(5), NULL),
  now64(3) + toIntervalDay(multiIf(x.number < 3, 90, x.number < 5, 3, x.number = 5, -4, 60)), if(x.number = 9, now64(3) - toIntervalDay(2), NULL), if(x.number = 9, 'raj', ''), if(x.number = 9, 'no longer needed', ''), [], 'workload: host-1', 'segment: segment-1', ['tcp/443'], 40, 1, now64(3)
FROM numbers(3) AS v CROSS JOIN numbers(12) AS x WHERE x.number != 10 OR v.number < 2;

INSERT INTO edge_hours (hour, reason, server, service, client, orientation, src_segment, dst_segment, src_workload, dst_workload, src_identity, expected, staged, observed, outcome, rule, exception, sessions, answered, client_bytes, client_packets, server_bytes, server_packets, first_seen, last_seen, live_first_seen, live_last_seen, input, inserted_at)
SELECT toStartOfHour(now()) - toIntervalHour(intDiv(number, 300)) AS h,
  multiIf(k < 200, 'permitted', k < 230, 'waived', k < 240, 'denied', k < 250, 'expired-exception', k < 260, 'out-of-scope', k < 270, 'unverified', k < 280, 'uncovered', k < 290, 'unapproved', 'denied') AS reason,
  toIPv6('10.0.' || toString(k % 8) || '.' || toString(1 + k % 97)), ['tcp/443', 'tcp/22', 'tcp/3389', 'tcp/445', 'tcp/5432'][k % 5 + 1],
  toIPv6('10.0.' || toString(k % 7) || '.' || toString(100 + k % 89 + if(h > now() - INTERVAL 2 DAY, k % 3, 0))), 'known', 'segment-' || toString(k % 7), if(k % 50 = 0, '', 'segment-' || toString(k % 8)),
  if(k % 3 = 0, '', 'host-' || toString(k % 20)), if(k % 4 = 0, '', 'host-' || toString(20 + k % 20)), if(k % 2 = 0, 'ana', ''),
  multiIf(k < 230, 'allow', k < 260, 'deny', k < 280, 'unknown', 'deny'), if(k % 40 = 0, 'deny', 'allow'), multiIf(k >= 290, 'deny', k % 60 = 1, 'deny', 'allow'),
  multiIf(k >= 290, 'blocked', k >= 260 AND k < 280, 'none', k >= 230, if(k % 4 = 0, 'attempted', 'escaped'), k % 60 = 1, 'misblocked', 'permitted'),
  'rule-' || toString(k % 9), multiIf(reason = 'expired-exception', 'EX-5', reason = 'unapproved', 'EX-7', reason IN ('waived', 'out-of-scope', 'unverified'), 'EX-' || toString(k % 4), ''),
  1 + k % 7, 1, 1000, 10, 5000, 12, h, h + 600, toDateTime(4294967295), toDateTime(0), 'generated', h + toIntervalHour(1)
FROM (SELECT number, number % 300 AS k FROM numbers(24 * 100 * 300));

INSERT INTO finding_contributions (id, revision, sessions, batch_first_seen, batch_last_seen, schema_version, type, title, severity, confidence, client, server, service, src_segment, dst_segment, reason, outcome, expected, observed, exception, ticket, owner, policy_version, techniques, sentence, next, suppressed_by, grouped_by, hops, query, failed, input, inserted_at)
SELECT 'f' || leftPad(toString(number), 6, '0'), 1, 3, now64(3) - toIntervalMinute(number * 40) AS seen, seen + toIntervalMinute(5) AS ended, 1,
  ['policy-violation', 'expired-exception', 'out-of-scope', 'chain', 'exception-pivot', 'first-seen-edge', 'remote-admin-fan-out', 'identity-switch', 'enforcement-drift', 'silent-exporter', 'scope-growth'][number % 11 + 1] AS type, 'a title',
  ['critical', 'high', 'medium', 'low', 'informational'][number % 5 + 1], 0.9, '10.0.0.1', '10.0.1.9', 'tcp/22', 'segment-' || toString(number % 7), 'segment-1', 'denied', 'escaped', 'deny', 'allow', if(type IN ('exception-pivot', 'expired-exception', 'scope-growth'), 'EX-' || toString(number % 4), ''), 'CHG-1', 'team-0', 'abc', ['T1021'],
  'host-1 reached host-9 over SSH, which it''s not allowed to; 100 % sure', 'ask the owner', '', if(number % 13 = 0, 'f000001', ''),
  if(type IN ('chain', 'exception-pivot'), '[{"client":{"address":"10.0.0.1","workload":"host-1","segment":"segment-0"},"server":{"address":"10.0.1.9","workload":"host-' || toString(number % 9 + 2) || '","segment":"segment-1"},"service":"tcp/22","start":1,"end":2,"session":"1"},{"client":{"address":"10.0.1.9","workload":"host-' || toString(number % 9 + 2) || '","segment":"segment-1"},"server":{"address":"10.0.2.9","segment":"segment-2"},"service":"tcp/3389","start":3,"end":4,"session":"2"}]', '[]'),
  'SELECT * FROM sessions', ['destination'], 'generated', ended + toIntervalMinute(1)
FROM numbers(3000);

INSERT INTO feedback (finding, revision, type, first_seen, judgment, judged_by, judged_at, judgment_reason, via, inserted_at)
SELECT 'f' || leftPad(toString(number * 2), 6, '0'), 1, ['policy-violation', 'expired-exception', 'out-of-scope', 'chain', 'exception-pivot', 'first-seen-edge', 'remote-admin-fan-out', 'identity-switch', 'enforcement-drift', 'silent-exporter', 'scope-growth'][number * 2 % 11 + 1], now64(3) - toIntervalMinute(number * 80), ['true', 'false-positive', 'acknowledged'][number % 3 + 1], 'mia', now64(3), 'looked', 'command', now64(3)
FROM numbers(300);

INSERT INTO blind_spot_versions (id, version, kind, subject, about, address, source, domain, name, segment, time_from, time_until, details, finding, input, inserted_at)
SELECT 'b' || toString(number), 1, ['silent-exporter', 'agent-missing', 'sequence-loss'][number % 3 + 1], 'exporter', 'the exporter 10.0.9.' || toString(number), toIPv6('10.0.9.1'), 'ipfix', 1, 'core-' || toString(number), 'segment-1', now64(3) - toIntervalHour(number * 5) AS begun, if(number % 4 = 0, NULL, begun + toIntervalHour(3)), 'nothing came', 'f000001', 'generated', now64(3)
FROM numbers(100);

INSERT INTO exporters (at, instance, exporter, domain, source, first_seen, last_seen, datagrams, records, templates, sampling_rate, gaps, skew_ms, inserted_at)
SELECT now64(3) - toIntervalMinute(intDiv(number, 5) * 10) AS told, 'pipe-1', toIPv6('10.0.9.' || toString(number % 5)), 1, 'ipfix', now64(3) - toIntervalDay(30), if(number % 5 = 0, now64(3) - toIntervalDay(1), told), 100, 1000 + number, 4, 1, number % 5, 12, told
FROM numbers(5000)
`
