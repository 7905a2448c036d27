package policy

import (
	"math/bits"

	"github.com/postern/postern/flow"
)

// Confidence, in percent, is 100 times every factor that applies. Its table stands
// in docs/policy.md, "Confidence", and a test holds the two together.
const (
	factorBothWays    = 90 // nobody observed; traffic both ways or a completed handshake
	factorAttempt     = 80 // nobody observed; a lone attempt
	factorMissing     = 80 // for each dimension that was unknown and counted as fitting
	factorOpen        = 50 // client and server could not be told apart, and it mattered
	factorClockSkew   = 90 // quality clock_skew, and the skew did not change the verdict
	factorClockBroken = 70 // quality clock_unusable or time_missing
)

// scaled is confidence p lowered by a factor in percent, rounded down.
func scaled(p uint8, factor uint8) uint8 { return uint8(uint(p) * uint(factor) / 100) }

// weigh sets what is expected against what was observed: outcome and confidence.
func weigh(c *Conversation, v *flow.Verdict) {
	v.Outcome, v.Confidence = flow.OutcomeNone, 0
	switch v.Reason {
	case flow.ReasonUnverified, flow.ReasonExpiryUncertain:
		return // nothing is claimed
	case flow.ReasonUncovered:
		v.Confidence = 100
		return
	}
	v.Confidence = 100
	allowed := v.Expected == flow.ExpectAllow
	switch {
	case v.Observed == flow.ObservedDeny:
		v.Outcome = flow.OutcomeBlocked
		if allowed {
			v.Outcome = flow.OutcomeMisblocked
		}
	case v.Observed == flow.ObservedUnknown && c.Evidence == EvidenceNone:
		v.Outcome = flow.OutcomeAttempted
		v.Confidence = scaled(v.Confidence, factorAttempt)
	default:
		v.Outcome = flow.OutcomeEscaped
		if allowed {
			v.Outcome = flow.OutcomePermitted
		}
		if v.Observed == flow.ObservedUnknown {
			v.Confidence = scaled(v.Confidence, factorBothWays)
		}
	}
	for range bits.OnesCount16(uint16(v.Missing)) {
		v.Confidence = scaled(v.Confidence, factorMissing)
	}
}
