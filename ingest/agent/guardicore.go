package agent

import (
	"bytes"

	"github.com/valyala/fastjson"

	"github.com/postern/postern/flow"
)

// Guardicore Centra's (Akamai Guardicore Segmentation's) network log in CEF. Its own fields
// are custom strings with labels beyond the six of the standard, and their numbers differ, so
// they are found by their labels. See docs/agents/guardicore.md for where those are from.

func newGuardicore(*Decoder) parser {
	ev := &cef{}
	return func(line []byte, e *entry) error {
		if err := ev.parse(line, e); err != nil {
			return err
		}
		return ev.guardicore(e)
	}
}

// guardicore makes the flow of an entry of the network log.
func (c *cef) guardicore(e *entry) error {
	if !bytes.EqualFold(c.class, []byte("Network Log")) && !bytes.EqualFold(c.name, []byte("Network Log")) {
		return NotFlow("another event of Guardicore's")
	}
	for _, k := range [...]cefKey{cefSrcHost, cefDstHost, cefSrcUser, cefDstUser, cefSrcProcess, cefDstProcess} {
		c.values[k] = guardicoreSaid(c.values[k])
	}
	var rule, ruleset, verdict []byte
	var srcProcess, dstProcess process
	for i, l := range c.labels[:c.ncustom] {
		v := guardicoreSaid(c.custom[i])
		switch string(l) {
		case "connection_verdict":
			verdict = v
		case "policy_rule":
			rule = v
		case "policy_ruleset":
			ruleset = v
		case "source_process_full_path", "source_process_path":
			srcProcess.path = v
		case "source_process", "source_process_name":
			srcProcess.name = v
		case "destination_process_full_path", "destination_process_path":
			dstProcess.path = v
		case "destination_process", "destination_process_name":
			dstProcess.name = v
		}
	}
	r := e.flow(flow.SourceGuardicore)
	if err := c.common(r, e); err != nil {
		return err
	}
	// A connection is told with the destination's port and without the source's: who is the
	// source is who began it.
	r.Has |= flow.HasInitiator
	if p := srcProcess.text(); p != nil {
		r.SrcProcess = e.name(p)
	}
	if p := dstProcess.text(); p != nil {
		r.DstProcess = e.name(p)
	}
	if verdict == nil {
		verdict = c.values[cefAct]
	}
	r.Enforced = guardicoreVerdict(verdict)
	r.EnforcedBy = e.path(ruleset, rule)
	return nil
}

// process is a program by its path or by its name, whichever is told.
type process struct{ path, name []byte }

func (p *process) text() []byte {
	if p.path != nil {
		return p.path
	}
	return p.name
}

// guardicoreSaid is what a text says; Unknown is nothing.
func guardicoreSaid(b []byte) []byte {
	if string(b) == "Unknown" {
		return nil
	}
	return said(b)
}

// guardicoreVerdict reads allowed, alerted and blocked, alone or with by whom behind it
// (blocked_by_source). Anything else, what would or could not be blocked too, is unknown.
func guardicoreVerdict(v []byte) flow.Observed {
	if i := bytes.IndexAny(v, "_ "); i > 0 && bytes.HasPrefix(v[i+1:], []byte("by")) {
		v = v[:i]
	}
	switch {
	case bytes.EqualFold(v, []byte("allowed")):
		return flow.ObservedAllow
	case bytes.EqualFold(v, []byte("alerted")):
		return flow.ObservedAudit
	case bytes.EqualFold(v, []byte("blocked")):
		return flow.ObservedDeny
	}
	return flow.ObservedUnknown
}

func knownGuardicore(line []byte, v *fastjson.Value) string {
	i := cefBegin(line)
	if v != nil || i < 0 || i >= 512 {
		return ""
	}
	_, vendor, _ := bytes.Cut(line[i:], []byte{'|'})
	if len(vendor) > 11 && bytes.EqualFold(vendor[:11], []byte("Guardicore|")) {
		return "CEF of the vendor Guardicore"
	}
	return ""
}
