package ingest

import "github.com/postern/postern/flow"

// Datagram is one UDP payload as it arrived.
type Datagram struct {
	// Position is its ordinal in its source (a spool, a capture file), counted
	// from zero over everything that was taken in. It is part of record ids, so
	// reading the same source again must number alike.
	Position uint64
	Received flow.Time // arrival, or the packet's stamp in a capture
	Exporter flow.Addr // source address of the datagram
	Port     uint16    // source port of the datagram
	Payload  []byte    // only valid during the call it is passed to
}
