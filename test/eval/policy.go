package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/postern/postern/flow"
)

// ordinaryPolicy writes the policy that such a company would have: offices closed to each other
// but for those who administer, databases closed to offices, the scanner registered by an
// exception, and some exceptions of vendors. What those open is in ways.
func (c *company) ordinaryPolicy() (text string, ways []way) {
	var b strings.Builder
	nets := map[string][]string{}
	for _, n := range c.nets {
		kind := "office"
		switch {
		case n.site == dataCentre:
			kind = "servers"
		case n.base>>8&0xff >= 180:
			kind = "devices"
		}
		nets[kind] = append(nets[kind], `"`+flow.AddrFrom4(n.base).String()+`/24"`)
	}
	b.WriteString(`postern: v1
services:
  desktop: tcp/3389
  files: [tcp/445, tcp/139]
  remote: tcp/5985-5986
  mapper: tcp/135
  dynamic: tcp/49152-65535
  shell: tcp/22
  screen: tcp/5900
  delivery: tcp/7680
  calls: udp/50020
  web: [tcp/80, tcp/443]
  scanned: [tcp/21, tcp/23, tcp/1433, tcp/8080, udp/161, icmp/echo]
segments:
`)
	segment := func(name, rest string) {
		if len(nets[name]) > 0 {
			fmt.Fprintf(&b, "  - {name: %s, zone: %s, prefixes: [%s], %s}\n", name, name, strings.Join(nets[name], ", "), rest)
		}
	}
	segment("office", "stage: enforced, default: {in: deny, out: allow}")
	segment("devices", "stage: observe, default: {in: allow, out: allow}")
	segment("servers", "stage: observe, tier: high, default: {in: allow, out: allow}")
	b.WriteString("workloads:\n")
	named := []string{"admin", "helpdesk", "jump-host", "domain-controller", "database", "backup-server", "deployment-server", "patch-server", "scanner", "monitoring"}
	workload := func(i int32, role string) {
		fmt.Fprintf(&b, "  - {name: %s-%d, role: %s, addresses: [%s]}\n", role, i, role, flow.AddrFrom4(c.hosts[i].addr))
	}
	for _, role := range named {
		for _, i := range c.byRole[c.roleOf(role)] {
			workload(i, role)
		}
	}
	// The ways of vendors: from some machine of an office to a database.
	rng := random(c.seed, streamAttacks, 1)
	var from, to []int32
	for _, i := range c.byRole[c.roleOf("workstation")] {
		if c.hosts[i].born == 0 && c.hosts[i].gone > c.b.Days {
			from = append(from, i)
		}
	}
	for _, i := range c.byRole[c.roleOf("database")] {
		if c.hosts[i].born == 0 && c.hosts[i].gone > c.b.Days && !c.hosts[i].linux {
			to = append(to, i)
		}
	}
	for range min(pivots, len(to)) {
		k, j := rng.IntN(len(from)), rng.IntN(len(to))
		ways = append(ways, way{from[k], to[j], 3389})
		workload(from[k], "vendor")
		from, to = slices.Delete(from, k, k+1), slices.Delete(to, j, j+1)
	}
	b.WriteString(`rules:
  - {id: administer-offices, action: allow, from: {role: [admin, helpdesk, jump-host]}, to: {segment: office}, services: [desktop, files, remote, mapper, dynamic, screen, shell], owner: team-desktop, reason: people need help}
  - {id: manage-offices, action: allow, from: {role: [deployment-server, patch-server, monitoring, backup-server, domain-controller]}, to: {segment: office}, owner: team-desktop, reason: updates and inventory}
  - {id: office-peers, action: allow, from: {segment: office}, to: {segment: office}, services: [delivery, calls], owner: team-desktop, reason: delivery of updates and calls go straight}
  - {id: no-office-to-databases, action: deny, from: {segment: office, not: {role: [admin, jump-host]}}, to: {role: database}, services: [desktop, files, remote, shell, mapper], owner: team-data, reason: databases are administered from jump hosts}
`)
	b.WriteString("exceptions:\n")
	at := func(d time.Duration) string { return c.b.Start.Add(d).Format(time.RFC3339) }
	exception := func(id, class, rest string) {
		fmt.Fprintf(&b, "  - {id: %s, class: %s, %s, ticket: CHG-%s, owner: team-security, requested: {by: ana, at: %s}, approved: [{by: raj, role: segment-owner, at: %s}], notBefore: %s, expires: %s}\n",
			id, class, rest, id, at(-400*time.Hour), at(-399*time.Hour), at(-398*time.Hour), at(2000*time.Hour))
	}
	exception("EX-1", "opt-out", "overrides: [no-office-to-databases], from: {role: scanner}, to: {cidr: 10.0.0.0/8}, services: [scanned, desktop, files, remote, mapper, dynamic, shell, web], reason: the weekly scan of vulnerabilities")
	for k, w := range ways {
		exception(fmt.Sprintf("EX-%d", 100+k), "vendor", fmt.Sprintf("overrides: [no-office-to-databases], from: {workload: vendor-%d}, to: {workload: database-%d}, services: [desktop], reason: support by the vendor", w.from, w.to))
	}
	return b.String(), ways
}
