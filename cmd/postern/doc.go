// Command postern watches the small gates in a segmented network: it reads flows,
// judges each by the policy and the exceptions in force at the flow's own time,
// and tells the people who must know.
//
// The command is where the stages meet: every other package stands alone, and
// this one hands each what it needs. One file a subcommand; pipeline.go is the
// flow's whole journey.
package main
