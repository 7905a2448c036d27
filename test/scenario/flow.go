package scenario

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/policy"
)

// activeTimeout is what exporters are usually told: a session that goes on is told in pieces
// of this length.
const activeTimeout = time.Minute

// said is what a flow or a session line says.
type said struct {
	session       bool
	start         flow.Time
	duration      time.Duration
	src, dst      []flow.Addr
	sport, dport  uint16
	hasSP, hasDP  bool
	services      []policy.Range
	every, jitter time.Duration
	over          time.Duration // how long it is repeated
	times         int
	one           bool // one pair of hosts at a time
	late          time.Duration
	cut           time.Duration

	end           string // answered, refused, unanswered, blocked; empty of a flow
	halves        bool
	sent, got     uint64 // bytes; zero: the usual
	packets       uint64
	flags         uint16
	hasFlags      bool
	both          bool
	observed      flow.Observed
	exporter      flow.Addr
	skew          time.Duration
	icmp          bool
	typ, code     uint8
	by            []string
	agent         string // what the agent of by calls itself; empty: the host's name
	hasPackets    bool
	hasFirstBytes bool
	sampling      uint32
	lost          bool // datagrams before it did not arrive
}

const (
	flowForm    = "write: flow TIME DURATION SRC[:PORT] > DST[:PORT] PROTO [KEY=VALUE …] [=> KEY=VALUE …]"
	sessionForm = "write: session TIME DURATION CLIENT > SERVER SERVICE [answered|refused|unanswered|blocked] [KEY=VALUE …] [=> KEY=VALUE …]"
)

// flow reads a flow or a session line.
func (p *parser) flow(words []word, text string) {
	l := &line{at: p.here()}
	s := said{session: words[0].text == "session", exporter: flow.MustParseAddr("192.0.2.1"), times: 1}
	form := flowForm
	if s.session {
		form, s.end, s.cut = sessionForm, "answered", activeTimeout
	}
	if i := at(words, "=>"); i >= 0 {
		var ok bool
		if l.want, ok = p.fields(words[i+1:], false); !ok {
			return
		}
		if len(l.want.fields) == 0 {
			p.wrong(words[i].column, "nothing stands behind =>", "write what the verdict must be, as reason=denied, or remove it")
			return
		}
		words = words[:i]
	}
	if len(words) < 7 || words[4].text != ">" {
		if len(words) > 2 { // one of the first that is wrong, or in two words, moves all others
			if _, ok := p.time(words[1], true); !ok {
				return
			}
			if _, ok := p.duration(words[2]); !ok {
				return
			}
		}
		column := words[len(words)-1].column
		if len(words) > 4 {
			column = words[4].column
		}
		p.wrong(column, "the line is no "+words[0].text, form)
		return
	}
	var ok [5]bool
	s.start, ok[0] = p.time(words[1], true)
	s.duration, ok[1] = p.duration(words[2])
	s.src, s.sport, s.hasSP, ok[2] = p.end(words[3])
	s.dst, s.dport, s.hasDP, ok[3] = p.end(words[5])
	ok[4] = p.services(&s, words[6])
	if ok != [5]bool{true, true, true, true, true} {
		if ok[0] {
			p.previous = s.start
		}
		return
	}
	p.previous = s.start
	if !p.options(&s, l, words[7:]) {
		return
	}
	p.expand(&s, l, text)
}

// services reads tcp/443, tcp/22,445,8000-8010, udp, icmp/echo.
func (p *parser) services(s *said, w word) bool {
	proto, _, _ := strings.Cut(w.text, "/")
	for i, part := range strings.Split(w.text, ",") {
		if i > 0 && !strings.Contains(part, "/") {
			part = proto + "/" + part
		}
		r, err := policy.ParseService(part)
		if err != nil {
			p.wrong(w.column, err.Error(), "")
			return false
		}
		if len(s.services) > 0 && r.Proto != s.services[0].Proto {
			p.wrong(w.column, "the services of one line are of one protocol", "write a line for each protocol")
			return false
		}
		s.services = append(s.services, r)
	}
	switch r := s.services[0]; {
	case r.Proto == flow.ProtoICMP || r.Proto == flow.ProtoICMPv6:
		if strings.Contains(w.text, "/") {
			s.icmp, s.typ, s.code = true, uint8(r.Low>>8), uint8(r.Low)
		} else if s.session {
			s.icmp, s.typ = true, 8
			if r.Proto == flow.ProtoICMPv6 {
				s.typ = 128
			}
		}
		s.services = s.services[:1]
	case !strings.Contains(w.text, "/"): // any port: that of the server's end
		s.services = s.services[:1]
		if s.session && !s.hasDP && hasPorts(r.Proto) {
			p.wrong(w.column, "the session has no service", "write "+proto+"/443, or the port behind the server's address")
			return false
		}
	case s.hasDP:
		p.wrong(w.column, "the server's port is said twice", "write it in one place")
		return false
	}
	return true
}

func hasPorts(proto uint8) bool {
	return proto == flow.ProtoTCP || proto == flow.ProtoUDP || proto == flow.ProtoSCTP
}

// options reads the words behind the service.
func (p *parser) options(s *said, l *line, words []word) bool {
	timesSaid := false
	for i := 0; i < len(words); i++ {
		w := words[i]
		argument := func() (word, bool) {
			if i+1 >= len(words) {
				p.wrong(w.column, fmt.Sprintf("nothing stands behind %s", w.text), "write: every 6h times 20 jitter 10m, or: one every 6h")
				return word{}, false
			}
			i++
			return words[i], true
		}
		var ok bool
		switch w.text {
		case "answered", "refused", "unanswered", "blocked":
			if !s.session {
				p.wrong(w.column, fmt.Sprintf("%q is said of a session", w.text), "of a flow say flags=, both or observed=; or write session instead of flow")
				return false
			}
			if w.text == "refused" && s.services[0].Proto != flow.ProtoTCP {
				p.wrong(w.column, "only TCP is refused", "write unanswered")
				return false
			}
			s.end = w.text
			continue
		case "halves":
			if !s.session {
				p.wrong(w.column, "halves is said of a session", "write two flow lines")
				return false
			}
			s.halves = true
			continue
		case "both":
			s.both = true
			continue
		case "lost":
			s.lost = true
			continue
		case "one":
			s.one = true
			if i+1 >= len(words) || words[i+1].text != "every" {
				p.wrong(w.column, "one stands before every", "write: one every 6h, one pair of hosts at a time")
				return false
			}
			continue
		case "every", "jitter", "for":
			a, has := argument()
			if !has {
				return false
			}
			d, isOne := p.duration(a)
			if !isOne {
				return false
			}
			*map[string]*time.Duration{"every": &s.every, "jitter": &s.jitter, "for": &s.over}[w.text] = d
			if w.text == "every" && d < time.Millisecond {
				p.wrong(a.column, "repeats need some time between them", "write: every 6h")
				return false
			}
			continue
		case "times":
			a, has := argument()
			if !has {
				return false
			}
			n, err := strconv.ParseUint(a.text, 10, 32)
			if err != nil || n < 1 || n > maxFlows {
				p.wrong(a.column, fmt.Sprintf("%q is no number of times", a.text), fmt.Sprintf("write a number from 1 to %d", maxFlows))
				return false
			}
			s.times, timesSaid = int(n), true
			continue
		}
		k, v, isOption := strings.Cut(w.text, "=")
		if !isOption {
			words := []string{"every", "times", "for", "jitter", "one", "both", "lost"}
			if s.session {
				words = append(words, "answered", "refused", "unanswered", "blocked", "halves")
			}
			p.wrong(w.column, fmt.Sprintf("%q is not understood here", w.text), strings.Replace(nearestOf(w.text, words), "write one of", "write KEY=VALUE, or one of", 1))
			return false
		}
		ok = p.option(s, l, k, word{v, w.column + len(k) + 1}, w)
		if !ok {
			return false
		}
	}
	switch {
	case s.every == 0 && (timesSaid || s.over > 0 || s.jitter > 0):
		p.wrong(words[0].column, "times, for and jitter belong to a repeat", "write: every 6h times 20")
		return false
	case timesSaid && s.over > 0:
		p.wrong(words[0].column, "how often it happens is said twice", "write times or for")
		return false
	case s.over > 0:
		if n := (s.over + s.every - 1) / s.every; n <= maxFlows {
			s.times = int(n)
		} else {
			p.wrong(words[0].column, fmt.Sprintf("it happens more than %d times", maxFlows), "repeat it less often")
			return false
		}
	}
	return true
}

// optionNames are the KEYs of flow and session lines.
var optionNames = []string{"flags", "packets", "bytes", "user", "process", "observed", "exporter", "skew", "type", "code", "by", "late", "sent", "received", "cut", "server-process", "sampling", "agent"}

func (p *parser) option(s *said, l *line, k string, v, whole word) bool {
	number := func(bits int) (n uint64, ok bool) {
		n, err := strconv.ParseUint(v.text, 10, bits)
		if err != nil {
			p.wrong(v.column, fmt.Sprintf("%q is no number for %s", v.text, k), fmt.Sprintf("write a number from 0 to %d", uint64(1)<<bits-1))
		}
		return n, err == nil
	}
	switch k {
	case "flags":
		s.hasFlags = true
		for _, c := range v.text {
			i := strings.IndexRune("FSRPAU", c)
			if i < 0 {
				p.wrong(v.column, fmt.Sprintf("%q is no TCP flag", c), "write letters of FSRPAU, as SA")
				return false
			}
			s.flags |= 1 << i
		}
		return true
	case "packets":
		n, ok := number(32)
		s.packets, s.hasPackets = n, true
		return ok
	case "sent", "bytes", "received":
		n, ok := p.size(v)
		if k == "received" {
			s.got = n
		} else {
			s.sent, s.hasFirstBytes = n, true
		}
		return ok
	case "sampling":
		n, ok := number(32)
		s.sampling = uint32(n)
		return ok
	case "user":
		l.user = v.text
		return true
	case "process":
		l.process[0] = v.text
		return true
	case "server-process":
		l.process[1] = v.text
		return true
	case "observed":
		i := slices.Index([]string{"allow", "deny", "audit"}, v.text)
		if i < 0 {
			p.wrong(v.column, fmt.Sprintf("%q is nothing that enforcement does", v.text), "write allow, deny or audit")
			return false
		}
		s.observed = []flow.Observed{flow.ObservedAllow, flow.ObservedDeny, flow.ObservedAudit}[i]
		return true
	case "exporter":
		addrs, ok := p.addresses(v, v.text)
		if ok && len(addrs) != 1 {
			p.wrong(v.column, fmt.Sprintf("%q is more than one address", v.text), "name one exporter")
			return false
		}
		if ok {
			s.exporter = addrs[0]
		}
		return ok
	case "skew", "late":
		d, ok := p.duration(v)
		if k == "late" {
			s.late = d
		} else if s.skew = d; d > 24*time.Hour {
			p.wrong(v.column, "a clock that is off by more than a day is not used", "write at most 24h")
			return false
		}
		return ok
	case "cut":
		if v.text == "none" {
			s.cut = 0
			return true
		}
		d, ok := p.duration(v)
		if ok && d < time.Second {
			p.wrong(v.column, fmt.Sprintf("%q is no active time-out", v.text), "write cut=1m, or cut=none")
			return false
		}
		s.cut = d
		return ok
	case "type", "code":
		n, ok := number(8)
		if s.icmp = true; k == "type" {
			s.typ = uint8(n)
		} else {
			s.code = uint8(n)
		}
		return ok
	case "agent":
		if !isName(v.text) {
			p.wrong(v.column, fmt.Sprintf("%q is no name of an agent", v.text), "begin it with a letter and write it with letters, digits, - and _")
			return false
		}
		s.agent = v.text
		return true
	case "by":
		for by := range strings.SplitSeq(v.text, ",") {
			if !slices.Contains([]string{"router", "client", "server", "cloud"}, by) || slices.Contains(s.by, by) {
				p.wrong(v.column, fmt.Sprintf("%q is nobody who tells of flows", by), "write by=router (said or not), by=client or by=server, the agent at that end, by=cloud, its log at the server's end, or several with commas")
				return false
			}
			s.by = append(s.by, by)
		}
		return true
	}
	right := nearestOf(k, optionNames)
	if k == "arrives" {
		right = "write late=5m, how long after its end it arrives"
	}
	p.wrong(whole.column, fmt.Sprintf("a flow has no %q", k), right)
	return false
}

// size reads a number of bytes: 500, 20kB, 3MB, 1GB, and in powers of two KiB, MiB, GiB.
func (p *parser) size(v word) (uint64, bool) {
	text, unit := v.text, uint64(1)
	for _, u := range []struct {
		name string
		size uint64
	}{{"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"B", 1}} {
		if n, ok := strings.CutSuffix(text, u.name); ok {
			text, unit = n, u.size
			break
		}
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		p.wrong(v.column, fmt.Sprintf("%q is no number of bytes", v.text), "write 500, 20kB, 3MB or 1GB")
		return 0, false
	}
	return n * unit, true
}

// expand makes the records of a line.
func (p *parser) expand(s *said, l *line, text string) {
	ports := 0
	for _, r := range s.services {
		if r.Low == 0 && r.High == 0xffff || s.icmp {
			ports = 1 // any, or none
			break
		}
		ports += int(r.High) - int(r.Low) + 1
	}
	pairs := len(s.src) * len(s.dst) * ports
	rounds := s.times
	if s.one && (s.times == 1 && s.over == 0 || s.times > pairs) {
		rounds = pairs
	}
	total := uint64(rounds)
	if !s.one {
		total *= uint64(pairs)
	}
	pieces := uint64(1)
	if s.cut > 0 && s.end == "answered" && s.duration > s.cut {
		pieces = uint64((s.duration + s.cut - 1) / s.cut)
	}
	if s.halves {
		pieces *= 2
	}
	if len(s.by) > 0 {
		pieces *= uint64(len(s.by))
	} else if len(p.agents) > 0 {
		pieces *= 3 // the agents at both ends tell as well
	}
	if pairs > maxFlows || total > maxFlows || pieces > maxFlows || uint64(p.flows)+total*pieces > maxFlows {
		p.wrong(1, fmt.Sprintf("with this line the scenario has more than %d flows", maxFlows), "use fewer repeats, fewer hosts, shorter sessions or cut=none")
		return
	}
	p.flows += int(total * pieces)
	h := fnv.New64a()
	h.Write([]byte(text))
	again := p.seen[text]
	p.seen[text]++
	seed := h.Sum64() ^ again*0x9e3779b97f4a7c15
	rng := rand.New(rand.NewPCG(seed, 1))
	for round := range rounds {
		start := s.start.Add(time.Duration(round) * s.every)
		one := -1
		if s.one {
			one = round % pairs
		}
		n := 0
		for _, src := range s.src {
			for _, dst := range s.dst {
				if src.Canonical().Is4() != dst.Canonical().Is4() {
					p.wrong(1, fmt.Sprintf("%v and %v are of different families", src, dst), "write both ends as IPv4 or both as IPv6")
					return
				}
				for k := range ports {
					if n++; one >= 0 && n-1 != one {
						continue
					}
					began := start
					if s.jitter > 0 {
						began = began.Add(time.Duration(rng.Int64N(int64(s.jitter) + 1)))
					}
					p.told(s, l, began, src, dst, s.port(k), seed)
				}
			}
		}
	}
}

// port is the k-th of the ports that a line names; the server's own where it names none.
func (s *said) port(k int) uint16 {
	for _, r := range s.services {
		if s.icmp || r.Low == 0 && r.High == 0xffff {
			return s.dport
		}
		if n := int(r.High) - int(r.Low) + 1; k < n {
			return r.Low + uint16(k)
		} else {
			k -= n
		}
	}
	return s.dport
}

// told makes the records that tell of one flow or session.
func (p *parser) told(s *said, l *line, start flow.Time, src, dst flow.Addr, dport uint16, seed uint64) {
	r := flow.Record{Start: start, End: start.Add(s.duration), Src: src, Dst: dst, Proto: s.services[0].Proto, Exporter: s.exporter, Source: flow.SourceIPFIX,
		SrcPort: s.sport, DstPort: dport, PacketsRaw: 5, BytesRaw: 500,
		Has: flow.HasStart | flow.HasEnd | flow.HasSrc | flow.HasDst | flow.HasProto | flow.HasPackets | flow.HasBytes}
	named := s.services[0].Low != 0 || s.services[0].High != 0xffff
	if hasPorts(r.Proto) {
		if s.hasSP || s.session {
			r.Has |= flow.HasSrcPort
		}
		if s.hasDP || named {
			r.Has |= flow.HasDstPort
		}
		if s.session && !s.hasSP {
			r.SrcPort = uint16(49152 + p.records%16384)
		}
	}
	if s.icmp {
		r.Has |= flow.HasICMP
		r.ICMPType, r.ICMPCode = s.typ, s.code
	}
	if s.session {
		s.converse(&r)
	} else if s.both {
		r.Has |= flow.HasRevPackets | flow.HasRevBytes
		r.RevPacketsRaw, r.RevBytesRaw = 4, 400
	}
	if s.hasFlags {
		r.Has |= flow.HasTCPFlags
		r.TCPFlags = s.flags
	}
	if s.hasPackets {
		r.PacketsRaw = s.packets
	}
	if s.hasFirstBytes {
		r.BytesRaw = s.sent
	}
	if s.skew != 0 {
		r.Skew = int32(s.skew / time.Millisecond)
		r.Quality |= flow.QualityClockSkew
	}
	by := s.by
	if len(by) == 0 {
		by = []string{"router"}
		if p.agents[src] {
			by = append(by, "client")
		}
		if p.agents[dst] {
			by = append(by, "server")
		}
	}
	for _, who := range by {
		p.tellBy(s, l, r, who, seed)
	}
	p.records++
}

// converse fills what a session's end says of both directions.
func (s *said) converse(r *flow.Record) {
	observed := s.end
	tcp := r.Proto == flow.ProtoTCP
	if tcp {
		r.Has |= flow.HasTCPFlags
		r.TCPFlags = flow.SYN
	}
	switch observed {
	case "answered":
		sent, got := uint64(2_000), uint64(8_000)
		if s.hasFirstBytes {
			sent = s.sent
		}
		if s.got > 0 {
			got = s.got
		}
		r.BytesRaw, r.RevBytesRaw = sent, got
		r.PacketsRaw, r.RevPacketsRaw = max(4, sent/1200), max(4, got/1200)
		r.Has |= flow.HasRevBytes | flow.HasRevPackets
		if tcp {
			r.TCPFlags = flow.SYN | flow.ACK | flow.PSH | flow.FIN
			r.RevTCPFlags = r.TCPFlags
			r.Has |= flow.HasRevTCPFlags
		}
	case "refused":
		r.BytesRaw, r.PacketsRaw, r.RevBytesRaw, r.RevPacketsRaw, r.RevTCPFlags = 60, 1, 40, 1, flow.RST|flow.ACK
		r.Has |= flow.HasRevBytes | flow.HasRevPackets | flow.HasRevTCPFlags
	default: // a first packet, sent again while nobody answers
		r.BytesRaw, r.PacketsRaw = 180, 3
	}
	if !s.halves && r.Biflow() {
		r.Has |= flow.HasBiflowDirection
		r.BiflowDirection = 1 // the client is the initiator
	}
}

// tellBy adds what one observer tells of a record, in pieces and halves.
func (p *parser) tellBy(s *said, l *line, r flow.Record, who string, seed uint64) {
	observed := s.observed
	if s.end == "blocked" && observed == flow.ObservedUnknown {
		observed = flow.ObservedDeny
	}
	agent := ""
	switch who {
	case "router":
		r.SamplingRate = s.sampling
		if s.lost {
			r.Quality |= flow.QualitySequenceGap
		}
		if observed != flow.ObservedUnknown {
			r.Has |= flow.HasFirewallEvent
			r.FirewallEvent = map[flow.Observed]uint8{flow.ObservedAllow: 2, flow.ObservedDeny: 3, flow.ObservedAudit: 4}[observed]
		}
	case "cloud": // the log of the server's network interface, which says of each flow what became of it
		if observed == flow.ObservedUnknown {
			observed = flow.ObservedAllow
		}
		r.Source, r.Exporter, r.Enforced, r.Reporter = flow.SourceAWSVPC, flow.Addr{}, observed, flow.ReporterDestination
	default: // an agent at one end
		r.Reporter, agent = flow.ReporterSource, p.nameOf(r.Src)
		if who == "server" {
			r.Reporter, agent = flow.ReporterDestination, p.nameOf(r.Dst)
		}
		if s.agent != "" {
			agent = s.agent
		}
		// As agents of segmentation tell: every connection of their host.
		r.Source, r.Exporter, r.Enforced = flow.SourceGuardicore, flow.Addr{}, observed
		if s.session && s.end != "answered" { // what became of it, not how much went
			r.Has &^= flow.HasPackets | flow.HasBytes | flow.HasRevPackets | flow.HasRevBytes
			r.PacketsRaw, r.BytesRaw, r.RevPacketsRaw, r.RevBytesRaw = 0, 0, 0, 0
		}
	}
	length := r.End - r.Start
	cut, pieces := flow.Time(s.cut/time.Millisecond), flow.Time(1)
	if cut > 0 && s.end == "answered" && length > cut {
		pieces = (length + cut - 1) / cut
	}
	for k := range pieces {
		piece := r
		if pieces > 1 {
			piece.Start = r.Start + k*cut
			piece.End = min(piece.Start+cut, r.End)
			share := func(v uint64) uint64 {
				return v*uint64(k+1)/uint64(pieces) - v*uint64(k)/uint64(pieces)
			}
			piece.BytesRaw, piece.PacketsRaw = share(r.BytesRaw), max(1, share(r.PacketsRaw))
			piece.RevBytesRaw, piece.RevPacketsRaw = share(r.RevBytesRaw), max(1, share(r.RevPacketsRaw))
		}
		if !s.halves || !piece.Biflow() {
			p.add(s, l, piece, agent, false, seed)
			continue
		}
		const rev = flow.HasRevBytes | flow.HasRevPackets | flow.HasRevTCPFlags
		there, back := piece, piece
		there.Has &^= rev
		there.RevBytesRaw, there.RevPacketsRaw, there.RevTCPFlags = 0, 0, 0
		back.Has = there.Has
		back.Src, back.Dst, back.SrcPort, back.DstPort = r.Dst, r.Src, r.DstPort, r.SrcPort
		back.BytesRaw, back.PacketsRaw, back.TCPFlags = piece.RevBytesRaw, piece.RevPacketsRaw, piece.RevTCPFlags
		back.RevBytesRaw, back.RevPacketsRaw, back.RevTCPFlags = 0, 0, 0
		back.Start = min(back.Start+1, back.End) // the answer comes after the question
		p.add(s, l, there, agent, false, seed)
		if back.Reporter != flow.ReporterElsewhere {
			back.Reporter = flow.ReporterSource + flow.ReporterDestination - back.Reporter
		}
		p.add(s, l, back, agent, true, seed)
	}
}

// nameOf is what an agent calls the host of an address.
func (p *parser) nameOf(a flow.Addr) string {
	if name := p.named[a]; name != "" {
		return name
	}
	return a.String()
}

// add adds a record at its place.
func (p *parser) add(s *said, l *line, r flow.Record, agent string, answer bool, seed uint64) {
	l.flows++
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], seed)
	binary.BigEndian.PutUint64(b[8:], uint64(l.flows))
	h := fnv.New64a()
	h.Write(b[:])
	r.ID = h.Sum64()
	st := step{kind: stepFlow, rec: r, line: l, agent: agent, answer: answer, arrives: r.End.Add(s.late)}
	if !s.session && s.every == 0 && s.late == 0 && len(s.src) == 1 && len(s.dst) == 1 {
		// It arrives where it stands: behind the ones above, even if it ended long before.
		p.clock = max(p.clock, r.End)
		st.arrives = p.clock
	}
	p.behind = max(p.behind, st.arrives)
	p.s.steps = append(p.s.steps, st)
}
