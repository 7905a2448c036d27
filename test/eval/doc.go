// Eval measures what detection finds and how often it is wrong, and prints the result: labelled
// captures of lateral movement and made-up attacks, alone and within the ordinary traffic of a
// generated company. docs/evaluation.md says how it counts.
//
// It is no test: nothing here passes or fails. It runs the stages as the service wires them, in
// process, and knows nothing of the detectors but the findings they make.
package main
