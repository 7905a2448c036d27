package detect

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"strings"

	"github.com/postern/postern/flow"
)

// key is what a finding is about; its id is the hash of it. Nothing else goes in:
// no counts, no policy version, no name that may be learned later.
type key struct {
	Type    string    `json:"type"`
	Client  flow.Addr `json:"client"` // of an open pair the lower address
	Server  flow.Addr `json:"server"`
	Port    uint16    `json:"port"` // the service's; ICMP type and code; 0 of an open pair
	Proto   uint8     `json:"proto"`
	Subject string    `json:"subject"` // the exception, else the rule
	Day     int64     `json:"day"`     // UTC day of the flow's start, counted from the epoch
}

const dayMillis = 24 * 60 * 60 * 1000

func dayOf(t flow.Time) int64 {
	d := int64(t) / dayMillis
	if int64(t)%dayMillis < 0 {
		d--
	}
	return d
}

// id is 128 bits of SHA-256 in hexadecimal, the texts with their lengths before them.
func (k *key) id() string {
	b := make([]byte, 0, 128)
	text := func(s string) {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	text("postern finding 1")
	text(k.Type)
	c, s := k.Client.As16(), k.Server.As16()
	b = append(append(b, c[:]...), s[:]...)
	b = binary.BigEndian.AppendUint16(b, k.Port)
	b = append(b, k.Proto)
	text(k.Subject)
	b = binary.BigEndian.AppendUint64(b, uint64(k.Day))
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

func (k *key) compare(o *key) int {
	return cmp.Or(cmp.Compare(k.Day, o.Day), strings.Compare(k.Type, o.Type), k.Client.Compare(o.Client), k.Server.Compare(o.Server),
		cmp.Compare(k.Proto, o.Proto), cmp.Compare(k.Port, o.Port), strings.Compare(k.Subject, o.Subject))
}

// told is what a finding tells of one record that stands for all of them.
type told struct {
	Severity      flow.Severity   `json:"severity"`
	Outcome       flow.Outcome    `json:"outcome"`
	Observed      flow.Observed   `json:"observed"`
	Expected      flow.Expected   `json:"expected"`
	Reason        flow.Reason     `json:"reason"`
	Confidence    uint8           `json:"confidence"`
	Open          bool            `json:"open,omitempty"`
	Failed        flow.Dimensions `json:"failed,omitempty"`
	Missing       flow.Dimensions `json:"missing,omitempty"`
	Service       string          `json:"service"`
	SrcSegment    string          `json:"srcSegment,omitempty"`
	DstSegment    string          `json:"dstSegment,omitempty"`
	SrcWorkload   string          `json:"srcWorkload,omitempty"`
	DstWorkload   string          `json:"dstWorkload,omitempty"`
	Identity      string          `json:"identity,omitempty"`
	SrcProcess    string          `json:"srcProcess,omitempty"`
	DstProcess    string          `json:"dstProcess,omitempty"`
	Rule          string          `json:"rule,omitempty"`
	Exception     string          `json:"exception,omitempty"`
	PolicyVersion string          `json:"policyVersion,omitempty"`
	PolicyCommit  string          `json:"policyCommit,omitempty"`
	PolicySince   flow.Time       `json:"policySince,omitempty"`
	Tier          string          `json:"tier,omitempty"`
	SegmentOwner  string          `json:"segmentOwner,omitempty"`
	Facts         Facts           `json:"facts"`
	ValidUntil    flow.Time       `json:"validUntil,omitempty"` // of an outlived exception
	GrownAt       flow.Time       `json:"grownAt,omitempty"`    // since when a scope that grew has held both ends
	Start         flow.Time       `json:"start"`
	Record        uint64          `json:"record"`

	// Ends are client and server in full, of an open pair the lower and the higher one; a
	// finding about behaviour has them in its story.
	Ends [2]flow.End `json:"ends,omitzero"`

	// Story is what a finding about behaviour tells; nil of all others.
	Story *story `json:"story,omitempty"`

	// Of contradictions between observers.
	Side   string  `json:"side,omitempty"` // client or server
	Claims []claim `json:"claims,omitempty"`
}

// standsBefore orders the records of a finding: which of two tells more of it.
// The order is total, so the record that stands for a finding does not depend on
// when it came.
func (t *told) standsBefore(o *told) bool {
	weight := [...]int{flow.OutcomeNone: 1, flow.OutcomePermitted: 2, flow.OutcomeMisblocked: 3, flow.OutcomeBlocked: 3,
		flow.OutcomeAttempted: 4, flow.OutcomeEscaped: 5}
	return cmp.Or(-cmp.Compare(t.Severity, o.Severity), -cmp.Compare(weight[t.Outcome], weight[o.Outcome]),
		-cmp.Compare(t.Confidence, o.Confidence), cmp.Compare(t.Start, o.Start), cmp.Compare(t.Record, o.Record)) < 0
}

// sighting is one record as far as findings need it. It holds names as text and
// so outlives the record's batch and the process.
type sighting struct {
	Key     key             `json:"key"`
	Session uint32          `json:"session"` // client's port, or both ports of an open pair, the lower endpoint's first
	Span    span            `json:"span"`
	Told    told            `json:"told"`
	Sample  json.RawMessage `json:"sample,omitempty"` // only of one that is held
	Firm    bool            `json:"firm,omitempty"`   // it was seen to get through
	Whole   bool            `json:"whole,omitempty"`  // it is all of a session, which comes once
	// Who told of it, if the sighting is held: of others the record or the session says.
	Exporter string `json:"exporter,omitempty"`
	Observer string `json:"observer,omitempty"`
}

// sight makes a sighting of a judged record.
func (d *Detector) sight(r *flow.Record, typ string) sighting {
	v := &r.Verdict
	client, server := r.Ends()
	cport, sport := r.Ports()
	cseg, sseg := r.Segments()
	cwl, swl := r.Workloads()
	cid, _ := r.Identities()
	n := d.names
	s := sighting{
		Key:  key{Type: typ, Client: client.Canonical(), Server: server.Canonical(), Proto: r.Proto, Day: dayOf(r.Start)},
		Span: span{r.Start, max(r.Start, r.End)},
		Told: told{Outcome: v.Outcome, Observed: v.Observed, Expected: v.Expected, Reason: v.Reason, Confidence: v.Confidence,
			Open: r.Oriented == flow.Open, Failed: v.Failed, Missing: v.Missing,
			SrcSegment: n.Text(cseg), DstSegment: n.Text(sseg), SrcWorkload: n.Text(cwl), DstWorkload: n.Text(swl),
			Rule: n.Text(v.Rule), Exception: n.Text(v.Exception), PolicyVersion: n.Text(v.PolicyVersion),
			Start: r.Start, Record: r.ID},
	}
	switch {
	case r.IsICMP():
		if r.Any(flow.HasICMP) {
			s.Key.Port = icmpService(r)
		}
	case s.Told.Open:
		s.Session = uint32(cport)<<16 | uint32(sport)
	default:
		s.Key.Port, s.Session = sport, uint32(cport)
	}
	s.Told.Service = service(r, s.Key.Port)
	if !s.Told.Open {
		cproc, sproc := r.Processes()
		s.Told.Identity, s.Told.SrcProcess, s.Told.DstProcess = n.Text(cid), n.Text(cproc), n.Text(sproc)
	}
	s.Key.Subject = s.Told.Rule
	if v.Exception != flow.NoName {
		if typ != flow.FindingDenied && typ != flow.FindingMisblocked {
			s.Key.Subject = s.Told.Exception
		}
		s.Told.Facts, _ = d.policy.ExceptionFacts(r.Start, v.Exception)
	}
	s.Told.Tier, s.Told.SegmentOwner = d.policy.SegmentFacts(r.Start, sseg)
	if s.Told.Open {
		if tier, owner := d.policy.SegmentFacts(r.Start, cseg); tier == crownJewel {
			s.Told.Tier, s.Told.SegmentOwner = tier, owner
		}
	}
	s.Told.Severity = severity(&s.Told, typ)
	s.Firm = v.Outcome == flow.OutcomeEscaped && !letOutOnly(r)
	return s
}

// icmpService is type × 256 + code, of a reply those of its request, so that both
// halves of an echo are one service.
func icmpService(r *flow.Record) uint16 {
	t := r.ICMPType
	if r.Proto == flow.ProtoICMPv6 {
		if t == 129 {
			t = 128
		}
	} else {
		switch t {
		case 0:
			t = 8
		case 14, 16, 18:
			t--
		}
	}
	return uint16(t)<<8 | uint16(r.ICMPCode)
}

// service is the service in the policy language's words.
func service(r *flow.Record, port uint16) string {
	if r.IsICMP() && r.Any(flow.HasICMP) {
		c := *r
		c.ICMPType, c.ICMPCode = uint8(port>>8), uint8(port)
		return c.Service()
	}
	return r.Service()
}

// byDefault says whether a segment's default decided and not a rule.
func byDefault(rule string) bool { return strings.HasPrefix(rule, "default:") }
