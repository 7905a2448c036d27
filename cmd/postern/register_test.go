package main

import (
	"fmt"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/policy"
	"github.com/postern/postern/sink"
	"github.com/postern/postern/sink/embedded/embeddedtest"
)

const registerPolicy = `postern: v1
services: {https: tcp/443}
segments:
  - {name: vault, zone: pci, tier: crown-jewel, prefixes: [10.20.0.0/24], stage: enforced, default: {in: deny, out: deny}, agent: required, owner: pay}
  - {name: office, zone: office, prefixes: [10.50.0.0/16], stage: staged}
workloads:
  - {name: vault-1, app: vault, role: api, env: prod, addresses: [10.20.0.11], labels: {site: fra1}}
  - {name: straddler, addresses: [10.20.0.12, 10.50.0.12, 10.50.0.13]}
  - {name: outside, addresses: [192.0.2.1]}
rules:
  - {id: no-rdp, action: deny, mode: staged, from: {zone: office}, to: {zone: office}, services: [tcp/3389], owner: net, reason: east-west}
exceptions:
  - {id: EX-1, class: vendor, overrides: [no-rdp], from: {segment: office, identity: acme}, to: {segment: vault, role: api}, services: [https], ticket: CHG-1, owner: pay, reason: support,
     requested: {by: ana, at: 2026-10-01T09:00:00Z}, approved: [{by: raj, role: owner, at: 2026-10-01T15:00:00Z}, {by: lea, role: ciso, at: 2026-10-02T15:00:00Z}],
     notBefore: 2026-10-02T00:00:00Z, expires: 2026-10-09T00:00:00Z, revoked: {by: lea, at: 2026-10-05T00:00:00Z, reason: done}}
`

// What a policy says is found again in the tables, once however often it is told.
func TestStorePolicyVersion(t *testing.T) {
	url, token := embeddedtest.Start(t)
	cfg := sink.DefaultClickHouseConfig()
	cfg.Database = fmt.Sprintf("register_%d", time.Now().UnixNano())
	db, err := sink.Open(t.Context(), cfg, sink.Options{Endpoint: url, Token: token})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Migrate(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	p, diags := policy.Load(fstest.MapFS{"p.yaml": {Data: []byte(registerPolicy)}})
	if err := diags.Err(); err != nil {
		t.Fatal(err)
	}
	accepted := flow.TimeOf(time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC))
	registered := map[string]flow.Time{}
	for _, instance := range []string{"one", "two", "one"} {
		if err := storePolicyVersion(t.Context(), db, sink.PolicyVersion{Hash: p.Hash(), Since: accepted, AcceptedAt: accepted, Instance: instance, Source: string(p.Source())}, registered); err != nil {
			t.Fatal(err)
		}
	}
	if registered[p.Version()] != accepted {
		t.Errorf("registered: %v", registered)
	}
	for sql, want := range map[string]string{
		"SELECT count() AS n FROM policy_versions": `{"n":2}`,
		"SELECT * EXCEPT (since, policy_version) FROM exceptions": `{"id":"EX-1","class":"vendor","state":"revoked","ticket":"CHG-1","owner":"pay","reason":"support","requested_by":"ana","requested_at":"2026-10-01T09:00:00.000Z",` +
			`"approved_at":"2026-10-02T15:00:00.000Z","approved_by":["raj","lea"],"approver_roles":["owner","ciso"],"not_before":"2026-10-02T00:00:00.000Z","expires":"2026-10-09T00:00:00.000Z","ended":"2026-10-05T00:00:00.000Z",` +
			`"revoked_at":"2026-10-05T00:00:00.000Z","revoked_by":"lea","revoked_for":"done","removed_at":null,"overrides":["no-rdp"],"source":"{segment: office, identity: acme}","destination":"{segment: vault, role: api}","services":["tcp/443"],` +
			`"pairs_granted":65536,"ports_granted":1}`,
		"SELECT * EXCEPT (since, policy_version) FROM segments ORDER BY name": `{"name":"office","zone":"office","tier":"normal","stage":"staged","owner":"","agent_required":false,"default_in":"deny","default_out":"allow","prefixes":["10.50.0.0/16"],"workloads":1}` + "\n" +
			`{"name":"vault","zone":"pci","tier":"crown-jewel","stage":"enforced","owner":"pay","agent_required":true,"default_in":"deny","default_out":"deny","prefixes":["10.20.0.0/24"],"workloads":2}`,
		"SELECT name, app, segment, zone, tier, stage, addresses, labels FROM workloads ORDER BY name": `{"name":"outside","app":"","segment":"","zone":"","tier":"none","stage":"none","addresses":["192.0.2.1"],"labels":{}}` + "\n" +
			`{"name":"straddler","app":"","segment":"vault","zone":"pci","tier":"crown-jewel","stage":"staged","addresses":["10.20.0.12","10.50.0.12","10.50.0.13"],"labels":{}}` + "\n" +
			`{"name":"vault-1","app":"vault","segment":"vault","zone":"pci","tier":"crown-jewel","stage":"enforced","addresses":["10.20.0.11"],"labels":{"site":"fra1"}}`,
		"SELECT * EXCEPT (since, policy_version) FROM rules": `{"id":"no-rdp","action":"deny","mode":"staged","source":"{zone: office}","destination":"{zone: office}","services":["tcp/3389"],"owner":"net","reason":"east-west"}`,
		"SELECT stage, tier, workloads, addresses FROM coverage_history ORDER BY stage, tier": `{"stage":"none","tier":"none","workloads":1,"addresses":0}` + "\n" + `{"stage":"staged","tier":"normal","workloads":0,"addresses":65536}` + "\n" +
			`{"stage":"staged","tier":"crown-jewel","workloads":1,"addresses":0}` + "\n" + `{"stage":"enforced","tier":"crown-jewel","workloads":1,"addresses":256}`,
	} {
		var got strings.Builder
		if err := db.Query(t.Context(), sql, sink.FormatJSON, &got); err != nil {
			t.Errorf("%s: %v", sql, err)
		} else if strings.TrimSpace(got.String()) != want {
			t.Errorf("%s\n gives %swant %s", sql, got.String(), want)
		}
	}
}
