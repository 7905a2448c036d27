// Package intake is the ways by which logs come in: HTTP requests, files that are followed,
// syslog over TCP and TLS, standard input.
//
// Each way cuts what it gets into lines, has package agent decode them, and hands batches to
// a [Log], which makes them last. A batch carries a mark of how far its input has come, so
// that nothing is acknowledged or passed over before it lasts, and nothing is taken twice.
//
//	request ─┐
//	file ────┼─▶ lines ─▶ flows ─▶ batches with marks ─▶ Log
//	syslog ──┘               └─▶ a sample of what could not be read
package intake
