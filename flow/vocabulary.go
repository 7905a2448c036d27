package flow

import "fmt"

// The words of a verdict, listed once. SEMANTICS ("Vocabulary") decides what they
// mean; docs/semantics.md says it to users.

// Source is the format a record came in.
type Source uint8

// The sources.
const (
	SourceUnknown Source = iota
	SourceNetFlowV5
	SourceNetFlowV9
	SourceIPFIX
	SourceSFlowV5
	SourceHubble
	SourceZeek
	SourceSuricata
	SourceAWSVPC
	SourceAzureVNet
	SourceAzureNSG
	SourceGCPVPC
	SourceGCPFirewall
	SourceCalico
	SourceSysmon
	SourceWFP // Windows Filtering Platform, security events 5156 and 5157
	SourceIllumio
	SourceGuardicore
	SourceCEF
	SourceConntrack
	SourceNetfilter // nftables and iptables log lines
	SourceOCSF
	SourceECS
	SourceCustom // mapped by the configuration
)

var sourceTexts = [...]string{"unknown", "netflow_v5", "netflow_v9", "ipfix", "sflow_v5", "hubble", "zeek", "suricata",
	"aws_vpc", "azure_vnet", "azure_nsg", "gcp_vpc", "gcp_firewall", "calico", "sysmon", "wfp", "illumio", "guardicore", "cef",
	"conntrack", "netfilter", "ocsf", "ecs", "custom"}

func (s Source) String() string { return text(sourceTexts[:], int(s)) }

// LogsAll says whether an agent's log in this format has every connection. Sysmon's is filtered by its
// configuration on nearly every host, and of the open formats nobody knows.
func (s Source) LogsAll() bool {
	switch s {
	case SourceHubble, SourceWFP, SourceCalico, SourceIllumio, SourceGuardicore:
		return true
	}
	return false
}

// Observed is what enforcement did with a flow.
type Observed uint8

// What enforcement can have done.
const (
	ObservedUnknown Observed = iota
	ObservedAllow
	ObservedDeny
	ObservedAudit // let through and noted
)

var observedTexts = [...]string{"unknown", "allow", "deny", "audit"}

func (o Observed) String() string { return text(observedTexts[:], int(o)) }

// Expected is what the policy in force says of a flow.
type Expected uint8

// What policy can say.
const (
	ExpectUnknown Expected = iota
	ExpectAllow
	ExpectDeny
)

var expectedTexts = [...]string{"unknown", "allow", "deny"}

func (e Expected) String() string { return text(expectedTexts[:], int(e)) }

// Reason is why policy says what it says.
type Reason uint8

// The reasons.
const (
	ReasonNone Reason = iota // not judged
	ReasonPermitted
	ReasonWaived
	ReasonExpired
	ReasonNotYetValid
	ReasonUnapproved
	ReasonOutOfScope
	ReasonDenied
	ReasonUncovered
	ReasonUnverified
	ReasonExpiryUncertain
)

var reasonTexts = [...]string{"", "permitted", "waived", "expired-exception", "not-yet-valid", "unapproved",
	"out-of-scope", "denied", "uncovered", "unverified", "expiry-uncertain"}

func (r Reason) String() string { return text(reasonTexts[:], int(r)) }

// Outcome is observed against expected.
type Outcome uint8

// The outcomes.
const (
	OutcomeNone       Outcome = iota // nothing to compare: uncovered or unverified
	OutcomePermitted                 // allowed and should be
	OutcomeBlocked                   // denied and should be
	OutcomeEscaped                   // allowed though it should not be
	OutcomeMisblocked                // denied though it should pass
	OutcomeAttempted                 // nobody knows whether it got through
)

var outcomeTexts = [...]string{"none", "permitted", "blocked", "escaped", "misblocked", "attempted"}

func (o Outcome) String() string { return text(outcomeTexts[:], int(o)) }

// Severity of a finding.
type Severity uint8

// The severities, rising.
const (
	Informational Severity = iota
	Low
	Medium
	High
	Critical
)

var severityTexts = [...]string{"informational", "low", "medium", "high", "critical"}

func (s Severity) String() string { return text(severityTexts[:], int(s)) }

// MarshalText implements encoding.TextMarshaler.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Severity) UnmarshalText(b []byte) error {
	for i, t := range severityTexts {
		if t == string(b) {
			*s = Severity(i)
			return nil
		}
	}
	return fmt.Errorf("%q is no severity; write informational, low, medium, high or critical", b)
}

// Dimensions is a set of the dimensions in which an exception can fail to match,
// or in which something was not known.
type Dimensions uint16

// The dimensions, in the order they are named.
const (
	DimSource Dimensions = 1 << iota
	DimDestination
	DimService
	DimIdentity // groups too
	DimProcess
	DimPosture
	DimSchedule
	DimDirection
	DimRule
	DimLimit
)

var dimensionTexts = [...]string{"source", "destination", "service", "identity", "process", "posture",
	"schedule", "direction", "rule", "limit"}

// Texts lists the dimensions of d by name, in their fixed order; nil if none.
func (d Dimensions) Texts() []string { return setTexts(uint32(d), dimensionTexts[:]) }

// Quality is a set of remarks about how far a record can be trusted.
type Quality uint32

// The remarks.
const (
	QualityClockSkew         Quality = 1 << iota // exporter clock off by more than the tolerance
	QualityClockUnusable                         // off by more than a day: event time is receipt
	QualityTimeMissing                           // the record carried no time of its own: export or receipt time stands in
	QualityTimeReversed                          // it ended before it began: the end was raised to the start
	QualityTemplateChanged                       // its template had changed its layout since it was first seen
	QualityParked                                // its data came before its template
	QualityTruncated                             // the exporter cut what it told (sFlow header, short field)
	QualitySamplingUnknown                       // sampled by a selector whose rate was never told
	QualityAddressMissing                        // no source or destination address
	QualityObserverDuplicate                     // another observer told the same conversation
	QualityDirectionOpen                         // client and server could not be told apart
	QualityCounterMissing                        // neither bytes nor packets
	QualityNamesFull                             // a name did not fit the table any more
	QualityAggregated                            // it sums up several conversations, or a window of one
	QualitySequenceGap                           // before it the exporter's sequence numbers skipped: others may be lost
)

var qualityTexts = [...]string{"clock_skew", "clock_unusable", "time_missing", "time_reversed", "template_changed",
	"parked", "truncated", "sampling_unknown", "address_missing", "observer_duplicate", "direction_open",
	"counter_missing", "names_full", "aggregated", "sequence_gap"}

// Texts lists the remarks by name, in their fixed order; nil if none.
func (q Quality) Texts() []string { return setTexts(uint32(q), qualityTexts[:]) }

// Doubt is a set of reasons why it is not known who is behind an address.
type Doubt uint16

// The reasons.
const (
	DoubtUnknown   Doubt = 1 << iota // no source ever said anything
	DoubtGap                         // it was said of other times, not of this one
	DoubtStale                       // the source had been silent for longer than its limit
	DoubtBorder                      // within the poll in which a border lies
	DoubtAmbiguous                   // several at once
	DoubtDisagree                    // sources say differently; precedence decides where it can
	DoubtFull                        // facts or names were dropped because no more may be held
	DoubtExpired                     // older than what is kept
)

var doubtTexts = [...]string{"unknown", "gap", "stale", "border", "ambiguous", "disagree", "full", "expired"}

// Texts lists the reasons by name, in their fixed order; nil if none.
func (d Doubt) Texts() []string { return setTexts(uint32(d), doubtTexts[:]) }

// MaxOthers is how many further exceptions a verdict lists by name.
const MaxOthers = 8

// Verdict is what judging a record gave. A value of fixed size without pointers.
type Verdict struct {
	PolicyVersion Name
	// Rule is the id of the deciding rule, or "default:in:SEGMENT",
	// "default:out:SEGMENT" where a default decided.
	Rule Name
	// Exception is the one that waives the denial (ReasonWaived) or is implicated.
	Exception Name
	// Others are further exceptions, redundant or implicated, in the order they
	// rank; OthersTotal counts them all, also those beyond MaxOthers.
	Others      [MaxOthers]Name
	OthersTotal uint16

	Failed  Dimensions // where the implicated exception does not match
	Missing Dimensions // what was not known and would have mattered

	Expected     Expected
	Reason       Reason
	Staged       Expected // as if all that is staged were enforced
	StagedReason Reason
	Observed     Observed
	Outcome      Outcome
	Confidence   uint8 // percent, 0–100; printed as 0–1

	ValidUntil Time // waived: the latest end among the exceptions that fit
}

func text(t []string, i int) string {
	if i < len(t) {
		return t[i]
	}
	return "?"
}

func setTexts(set uint32, texts []string) []string {
	var out []string
	for i, t := range texts {
		if set&(1<<i) != 0 {
			out = append(out, t)
		}
	}
	return out
}
