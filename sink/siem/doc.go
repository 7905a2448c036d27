// Package siem tells findings to the systems that people watch: each target has
// an outbox on disk, in which an event waits until the target has taken it or it
// is given up as a dead letter.
//
// A message is made when an event enters the outbox, as JSON of less than
// [MaxMessage] bytes; a target's own form is made of it when it is sent, so that
// another encoding, and an upgrade, hold for what waits already.
//
// What this package is not: it neither makes findings nor decides what they say,
// and it knows nothing of ClickHouse.
package siem
