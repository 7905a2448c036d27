package flow

import "slices"

// findingTypes are the types of finding, in the order the docs list them. A test holds
// that none is missing.
var findingTypes = []string{
	FindingExpired, FindingNotYetValid, FindingUnapproved, FindingOutOfScope, FindingOutlived, FindingGrown, FindingDenied, FindingMisblocked,
	FindingIdentity, FindingUnseen, FindingVerdict,
	FindingFirstSeen, FindingFanOut,
	FindingChain, FindingPivot, FindingSwitch,
	FindingBlocked, FindingFlood,
	FindingPressure,
	FindingScan,
	FindingNews,
	FindingBeacon, FindingStaging,
	FindingSilentExporter, FindingSilentHost, FindingAgentMissing, FindingLoss, FindingStale, FindingSkew, FindingSampling,
	FindingDrift, FindingSplit, FindingUnmapped, FindingMisplaced, FindingUnseenSegment,
}

// FindingTypes lists the types of finding; each names the detector that makes it. The
// list belongs to the caller.
func FindingTypes() []string { return slices.Clone(findingTypes) }
