// Package scenario is the language in which detection is tested: a text file says what
// happens in a network under a policy, and what must come of it. Our own tests, `postern
// test` for those of users, and the tests of the whole program read the same files;
// docs/scenarios.md is the language by example.
//
// A scenario runs in one process through the stages as the program wires them, on the
// times that it states; nothing here asks a clock or the network. It is no load generator
// and no store: files are bounded, and everything is in memory.
package scenario
