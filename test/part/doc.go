// Package part is what tests need to have programs beside them that are not Postern: real
// brokers, directories, senders. It says what is missing, and starts, awaits and ends what a
// script of ours runs; and it signs certificates. It is for tests alone and imports nothing
// of Postern, so that a test of any package can use it.
package part
