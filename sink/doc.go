// Package sink makes what the pipeline found out last: judged flows, findings,
// policy versions, exporters and the ledgers, in ClickHouse. Package sink/siem tells
// findings to the systems that people watch.
//
// ClickHouse is reached by clickhouse-go/v2, whether it is a server or the engine
// embedded in this process (package sink/embedded, which speaks the same HTTP
// interface). Flows, the only dear rows, are encoded by ch-go's column types,
// the driver's own lower layer, straight from records: no string, no
// interface value and no allocation a record.
//
// # Writing once
//
// Every insert covers one contiguous range of one input and is named by an
// [Insert]: a token, the input and the time at which the range was sealed. All
// three come from what was durably recorded about the range, so that writing it
// again after a crash sends the same and ClickHouse stores it once.
//
// What this package is not: it does not decode, enrich, judge or detect, and it
// imports none of the packages that do.
package sink
