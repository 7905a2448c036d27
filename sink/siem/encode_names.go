package siem

import (
	"strings"

	"github.com/postern/postern/flow"
)

// behaves says whether a type of finding comes of how hosts behave, against what is usual for
// them, and not of one rule.
func behaves(typ string) bool {
	switch typ {
	case flow.FindingFirstSeen, flow.FindingFanOut, flow.FindingScan, flow.FindingNews, flow.FindingChain, flow.FindingPivot,
		flow.FindingSwitch, flow.FindingBlocked, flow.FindingBeacon, flow.FindingStaging, flow.FindingFlood:
		return true
	}
	return false
}

// fate says whether what a finding tells of got through or was stopped; neither where nobody knows.
func fate(f *flow.Finding) (passed, stopped bool) {
	switch f.Outcome {
	case flow.OutcomePermitted.String(), flow.OutcomeEscaped.String():
		return true, false
	case flow.OutcomeBlocked.String(), flow.OutcomeMisblocked.String():
		return false, true
	}
	return f.Observed == flow.ObservedAllow.String() || f.Observed == flow.ObservedAudit.String(), f.Observed == flow.ObservedDeny.String()
}

// techniqueNames are what MITRE ATT&CK calls the techniques that detectors name, and those they
// are part of. A test holds that none is missing.
var techniqueNames = map[string]string{
	"T1018":     "Remote System Discovery",
	"T1021":     "Remote Services",
	"T1021.001": "Remote Desktop Protocol",
	"T1021.002": "SMB/Windows Admin Shares",
	"T1021.003": "Distributed Component Object Model",
	"T1021.004": "SSH",
	"T1021.005": "VNC",
	"T1021.006": "Windows Remote Management",
	"T1046":     "Network Service Discovery",
	"T1048":     "Exfiltration Over Alternative Protocol",
	"T1070":     "Indicator Removal",
	"T1070.006": "Timestomp",
	"T1071":     "Application Layer Protocol",
	"T1074":     "Data Staged",
	"T1078":     "Valid Accounts",
	"T1110":     "Brute Force",
	"T1210":     "Exploitation of Remote Services",
	"T1550":     "Use Alternate Authentication Material",
	"T1562":     "Impair Defenses",
	"T1562.001": "Disable or Modify Tools",
}

// technique is what a technique's id is part of: of T1021.004 T1021, of T1078 itself.
func technique(id string) (parent string, sub bool) {
	parent, rest, _ := strings.Cut(id, ".")
	if parent == "" || rest == "" {
		return id, false
	}
	return parent, true
}
