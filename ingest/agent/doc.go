// Package agent turns the flow logs of agents, clouds and firewalls into flow records.
//
// Each format is one file and one line of the catalogue in formats.go. A [Splitter] cuts
// bytes into lines, or JSON values; a [Decoder] makes of each what it tells: flows, nothing
// ([NotFlow], with what it is instead), or an error that says what is wrong. Neither has a
// clock, opens a file or keeps anything of what it was given, so what comes out depends on
// the lines alone.
//
// What a log does not say stays unknown: no field is guessed from another. What is read of
// each format stands in docs/agents/, a page a format.
package agent
