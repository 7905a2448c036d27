// Package broker starts a real Apache Kafka for tests: one node or a cluster, with
// plain, TLS and SASL listeners, on loopback, in a temporary folder, gone when the
// test is. It is for tests alone and imports nothing of Postern but test/part, so that a
// test of any package can use it.
//
// The jars are fetched once by `make kafka`. Where they are missing, tests skip;
// with CI=true they fail. A broker takes about three seconds to start and 150 MB of
// memory, so a test that does not stop, kill or configure it uses [Shared].
package broker
