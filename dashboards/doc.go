// Package dashboards makes the Grafana dashboards: eight of them, built from Go values and written
// as the JSON files beside it, which Grafana provisions as they are. The rules that Prometheus
// evaluates lie beside them.
//
// It asks the tables of sink by SQL and the metrics by PromQL and knows nothing else of the
// pipeline: it judges nothing and stores nothing, and the binary does not contain it. A test runs
// every query against the real engine; docs/grafana.md says which dashboard answers what for whom.
package dashboards

//go:generate env POSTERN_WRITE_DASHBOARDS=1 go test -run ^TestFiles$ .
