// Package detect makes findings of judged flows: which verdicts somebody must be
// told of, how severe they are, how many sessions stand behind each, and when it
// is told again. docs/findings.md says it to users.
//
// A [Detector] is a deterministic state machine over judged records and ticks of
// an injected clock. Whatever the order of arrival within the lateness, the cuts
// into batches and the restarts in between, the same flows end in the same
// findings with the same ids and counts. It judges nothing itself and stores
// nothing: what a segment adds comes out of [Detector.Collect].
package detect
