// Package embedded runs ClickHouse inside the process: the real engine (libchdb),
// loaded at run time, behind a loopback-only HTTP endpoint that speaks ClickHouse's
// HTTP interface and, where it is asked for, a second one that speaks its native TCP
// protocol. clickhouse-go, curl and Grafana's ClickHouse data source use them as
// they use a server, so there is one SQL dialect and one driver whether the
// database is a cluster or this package.
//
// It is for one machine: a laptop, a test, a site with a few ten thousand flows a
// second. It is no server: no replication, no users beyond two tokens, no sessions,
// linux/amd64 with glibc only. The engine can be started once in a process, and one
// process at a time may hold a data directory.
//
// The library is not part of the program. [Fetch] downloads the pinned npm package,
// [Locate] finds it again; docs/embedded.md says the rest.
package embedded
