package agent

import (
	"bytes"
	"fmt"

	"github.com/valyala/fastjson"

	"github.com/postern/postern/flow"
)

// ArcSight's Common Event Format, CEF:0|vendor|product|version|class|name|severity|extension,
// by itself or behind a header of syslog. The extension's keys are those of the dictionary of
// the implementation standard:
// https://www.microfocus.com/documentation/arcsight/arcsight-smartconnectors-8.4/cef-implementation-standard/

// cefKey is a key that is read.
type cefKey uint8

const (
	cefOther cefKey = iota
	cefSrc
	cefDst
	cefSrcPort
	cefDstPort
	cefSrc6
	cefDst6
	cefNATSrc
	cefNATDst
	cefNATSrcPort
	cefNATDstPort
	cefProto
	cefAct
	cefOutcome
	cefDirection
	cefIn
	cefOut
	cefCount
	cefStart
	cefEnd
	cefReceipt
	cefSrcUser
	cefDstUser
	cefSrcDomain
	cefDstDomain
	cefSrcProcess
	cefDstProcess
	cefSrcHost
	cefDstHost
	cefDeviceHost
	cefDevice
	cefDeviceID
	cefApp
	cefKeys // how many
)

func cefKeyOf(key []byte) cefKey {
	switch string(key) {
	case "src":
		return cefSrc
	case "dst":
		return cefDst
	case "spt":
		return cefSrcPort
	case "dpt":
		return cefDstPort
	case "c6a2":
		return cefSrc6
	case "c6a3":
		return cefDst6
	case "sourceTranslatedAddress":
		return cefNATSrc
	case "destinationTranslatedAddress":
		return cefNATDst
	case "sourceTranslatedPort":
		return cefNATSrcPort
	case "destinationTranslatedPort":
		return cefNATDstPort
	case "proto":
		return cefProto
	case "act":
		return cefAct
	case "outcome":
		return cefOutcome
	case "deviceDirection":
		return cefDirection
	case "in":
		return cefIn
	case "out":
		return cefOut
	case "cnt":
		return cefCount
	case "start":
		return cefStart
	case "end":
		return cefEnd
	case "rt":
		return cefReceipt
	case "suser":
		return cefSrcUser
	case "duser":
		return cefDstUser
	case "sntdom":
		return cefSrcDomain
	case "dntdom":
		return cefDstDomain
	case "sproc":
		return cefSrcProcess
	case "dproc":
		return cefDstProcess
	case "shost":
		return cefSrcHost
	case "dhost":
		return cefDstHost
	case "dvchost":
		return cefDeviceHost
	case "dvc":
		return cefDevice
	case "deviceExternalId":
		return cefDeviceID
	case "app":
		return cefApp
	}
	return cefOther
}

// cef is an event that is being read.
type cef struct {
	h              header
	class, name    []byte
	values         [cefKeys][]byte
	labels, custom [maxCEFCustom][]byte // csNLabel and csN, from 0
	ncustom        int                  // one more than the highest
	unescaped      []byte
}

// maxCEFCustom is how many custom strings are read; the standard has six, Guardicore more
// than twenty.
const maxCEFCustom = 32

func newCEF(*Decoder) parser {
	ev := &cef{}
	return func(line []byte, e *entry) error {
		if err := ev.parse(line, e); err != nil {
			return err
		}
		return ev.read(e)
	}
}

// parse takes an event apart.
func (c *cef) parse(line []byte, e *entry) error {
	*c = cef{unescaped: c.unescaped[:0]}
	begin := cefBegin(line)
	if begin < 0 {
		if h, _ := e.syslog(line); h.at != 0 {
			return NotFlow("another message of the log")
		}
		return fieldError("line", line, "CEF:0|vendor|product|version|class|name|severity|extension")
	}
	if begin > 0 {
		c.h, _ = e.syslog(line[:begin])
	}
	var fields [7][]byte
	rest := line[begin:]
	for i := range fields {
		n := cefPipe(rest)
		if n < 0 {
			return fmt.Errorf("%d fields in the header of CEF; want 7 with | behind each", i)
		}
		fields[i], rest = rest[:n], rest[n+1:]
	}
	c.class, c.name = c.plain(fields[4]), c.plain(fields[5])
	c.extension(rest)
	return nil
}

// cefBegin is where CEF: and a version stand, with a space between as some write it.
func cefBegin(line []byte) int {
	for from := 0; ; {
		i := bytes.Index(line[from:], []byte("CEF:"))
		if i < 0 {
			return -1
		}
		i += from
		from = i + 4
		if v := bytes.TrimPrefix(line[from:], []byte{' '}); len(v) > 1 && v[0] >= '0' && v[0] <= '9' && v[1] == '|' {
			return i
		}
	}
}

// cefPipe is where the next | stands that is not escaped; below zero if none does.
func cefPipe(b []byte) int {
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '|':
			return i
		}
	}
	return -1
}

// extension reads key=value pairs. Values have spaces: one ends where a word with = behind
// it begins.
func (c *cef) extension(b []byte) {
	b = bytes.TrimLeft(b, " ")
	eq := bytes.IndexByte(b, '=')
	if eq < 0 {
		return
	}
	key, b := b[:eq], b[eq+1:]
	for {
		end, next := len(b), -1 // of the value, and where the next key's = is
		for from := 0; next < 0; {
			i := bytes.IndexByte(b[from:], '=')
			if i < 0 {
				break
			}
			i += from
			k := i
			for k > 0 && cefKeyByte(b[k-1]) {
				k--
			}
			if k < i && k > 0 && b[k-1] == ' ' {
				end, next = k-1, i
			}
			from = i + 1
		}
		c.set(key, bytes.TrimRight(b[:end], " "))
		if next < 0 {
			return
		}
		key, b = b[end+1:next], b[next+1:]
	}
}

// cefKeyByte says whether a key may have this byte. An escaped = is behind a backslash,
// which none has.
func cefKeyByte(b byte) bool {
	return letter(b) || b >= '0' && b <= '9' || b == '_' || b == '.' || b == '-' || b == '[' || b == ']'
}

func (c *cef) set(key, v []byte) {
	if k := cefKeyOf(key); k != cefOther {
		c.values[k] = said(c.plain(v))
		return
	}
	digits, ok := bytes.CutPrefix(key, []byte("cs"))
	if !ok {
		return
	}
	digits, label := bytes.CutSuffix(digits, []byte("Label"))
	n, ok := atou(digits)
	if !ok || n < 1 || n > maxCEFCustom {
		return
	}
	c.ncustom = max(c.ncustom, int(n))
	if label {
		c.labels[n-1] = c.plain(v)
	} else {
		c.custom[n-1] = said(c.plain(v))
	}
}

// plain takes the escapes out: \\ \| \= \n \r. What else follows a backslash stands as it is.
func (c *cef) plain(v []byte) []byte {
	if bytes.IndexByte(v, '\\') < 0 {
		return v
	}
	from := len(c.unescaped)
	for i := 0; i < len(v); i++ {
		b := v[i]
		if b == '\\' && i+1 < len(v) {
			switch v[i+1] {
			case '\\', '|', '=':
				i++
				b = v[i]
			case 'n':
				i++
				b = '\n'
			case 'r':
				i++
				b = '\r'
			}
		}
		c.unescaped = append(c.unescaped, b)
	}
	return c.unescaped[from:len(c.unescaped):len(c.unescaped)]
}

// read makes a flow of an event that has two addresses.
func (c *cef) read(e *entry) error {
	r := e.flow(flow.SourceCEF)
	if err := c.common(r, e); err != nil {
		return err
	}
	if r.Enforced = cefVerdict(c.values[cefAct]); r.Enforced == flow.ObservedUnknown && c.values[cefAct] == nil {
		r.Enforced = cefVerdict(c.values[cefOutcome])
	}
	r.EnforcedBy = e.name(c.rule())
	return nil
}

// common fills in what the dictionary says of two ends.
func (c *cef) common(r *flow.Record, e *entry) error {
	v := &c.values
	src, dst := v[cefSrc], v[cefDst]
	if src == nil {
		src = v[cefSrc6]
	}
	if dst == nil {
		dst = v[cefDst6]
	}
	if src == nil || dst == nil {
		return NotFlow("an event without two addresses")
	}
	if err := ends(r, src, dst); err != nil {
		return err
	}
	proto, ok := protocol(v[cefProto])
	setProto(r, proto, ok)
	setPorts(r, v[cefSrcPort], v[cefDstPort])
	c.nat(r)
	n, ok := atou(v[cefIn])
	setBytes(r, n, ok)
	n, ok = atou(v[cefOut])
	setRevBytes(r, n, ok)
	if n, ok = atou(v[cefCount]); ok && n > 1 {
		r.Quality |= flow.QualityAggregated
	}
	switch string(v[cefDirection]) {
	case "0", "inbound":
		r.Direction, r.Has = 0, r.Has|flow.HasDirection
	case "1", "outbound":
		r.Direction, r.Has = 1, r.Has|flow.HasDirection
	}
	r.SrcIdentity = e.account(v[cefSrcDomain], v[cefSrcUser])
	r.DstIdentity = e.account(v[cefDstDomain], v[cefDstUser])
	r.SrcProcess, r.DstProcess = e.name(v[cefSrcProcess]), e.name(v[cefDstProcess])
	r.SrcHost, r.DstHost = e.name(v[cefSrcHost]), e.name(v[cefDstHost])
	r.App = e.name(v[cefApp])

	c.h.stamp(e, r)
	for _, k := range [...]cefKey{cefDeviceHost, cefDevice, cefDeviceID} {
		if v[k] != nil {
			r.Observer = e.name(v[k])
			break
		}
	}
	start, _ := e.cefTime(v[cefStart])
	if start == 0 {
		start, _ = e.cefTime(v[cefReceipt])
	}
	if start != 0 {
		r.Start = start
	}
	r.End, _ = e.cefTime(v[cefEnd])
	return nil
}

func (c *cef) nat(r *flow.Record) {
	v := &c.values
	if a, ok := addr(v[cefNATSrc]); ok {
		r.NATSrc, r.Has = a, r.Has|flow.HasNATSrc
	}
	if a, ok := addr(v[cefNATDst]); ok {
		r.NATDst, r.Has = a, r.Has|flow.HasNATDst
	}
	if p, ok := port16(atou(v[cefNATSrcPort])); ok {
		r.NATSrcPort, r.Has = p, r.Has|flow.HasNATSrcPort
	}
	if p, ok := port16(atou(v[cefNATDstPort])); ok {
		r.NATDstPort, r.Has = p, r.Has|flow.HasNATDstPort
	}
}

// cefVerdict is what the words of devices for what they did mean.
func cefVerdict(act []byte) flow.Observed {
	var low [16]byte
	if len(act) > len(low) {
		return flow.ObservedUnknown
	}
	for i, c := range act {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		low[i] = c
	}
	switch string(low[:len(act)]) {
	case "allow", "allowed", "accept", "accepted", "permit", "permitted", "pass", "passed", "forward", "forwarded":
		return flow.ObservedAllow
	case "deny", "denied", "block", "blocked", "drop", "dropped", "reject", "rejected", "discard", "discarded",
		"reset", "reset-both", "reset-client", "reset-server", "drop-icmp", "prevent", "prevented":
		return flow.ObservedDeny
	case "alert", "alerted", "monitor", "monitored", "audit", "audited", "detect", "detected":
		return flow.ObservedAudit
	}
	return flow.ObservedUnknown
}

// rule is the custom string whose label says that it is a rule, else a policy.
func (c *cef) rule() []byte {
	var policy []byte
	for i, l := range c.labels[:c.ncustom] {
		if c.custom[i] == nil {
			continue
		}
		var plain [16]byte
		n := 0
		for _, b := range l {
			switch {
			case b == ' ' || b == '_' || b == '-':
				continue
			case n == len(plain):
				n = -1
			case b >= 'A' && b <= 'Z':
				b += 'a' - 'A'
			}
			if n < 0 {
				break
			}
			plain[n] = b
			n++
		}
		switch string(plain[:max(n, 0)]) {
		case "rule", "rulename", "ruleid", "ruleuid", "policyrule", "firewallrule", "securityrule", "accessrule", "matchedrule":
			return c.custom[i]
		case "policy", "policyname", "policyid", "accesspolicy", "firewallpolicy", "acl", "aclname", "accesslist":
			if policy == nil {
				policy = c.custom[i]
			}
		}
	}
	return policy
}

// cefTime reads the times of the standard: milliseconds since 1970, MMM dd yyyy HH:mm:ss or
// MMM dd HH:mm:ss with a fraction and a zone or without; also seconds, and ISO 8601, which
// devices write. A zone by any name but UTC, GMT and Z is not read, and so is the time.
func (e *entry) cefTime(b []byte) (flow.Time, bool) {
	if n, ok := atou(b); ok {
		switch {
		case n < maxEpoch:
			return flow.Time(n * 1000), true
		case n < maxEpoch*1000:
			return flow.Time(n), true
		}
		return 0, false
	}
	if t, ok := whenShort(b); ok {
		return t, true
	}
	t, n := e.stamp3164(b)
	if n == 0 {
		if t, n = e.stampYear(b); n == 0 {
			return 0, false
		}
	}
	switch string(bytes.Trim(b[n:], " ")) {
	case "":
		return t, true
	case "UTC", "GMT", "Z":
		return t + e.zone(), true
	}
	return 0, false
}

// stampYear reads MMM dd yyyy HH:mm:ss.SSS at the beginning of b, in the configured zone, and how
// many bytes that took.
func (e *entry) stampYear(b []byte) (flow.Time, int) {
	if len(b) < 19 || b[3] != ' ' {
		return 0, 0
	}
	mon := month(b[:3])
	day, rest := cut(bytes.TrimLeft(b[4:], " "))
	year, rest := cut(rest)
	d, okD := atou(day)
	y, okY := atou(year)
	ms, n := clock(rest)
	if mon == 0 || !okD || d < 1 || !okY || len(year) != 4 || n == 0 || int64(d) > monthDays(int64(y), mon) {
		return 0, 0
	}
	return flow.Time(days(int64(y), mon, int64(d))*86400_000+ms) - e.zone(), len(b) - len(rest) + n
}

func knownCEF(line []byte, v *fastjson.Value) string {
	if i := cefBegin(line); v == nil && i >= 0 && i < 512 {
		return "a line with CEF: and a version"
	}
	return ""
}
