package detect

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/axiomhq/hyperloglog"
	"github.com/postern/postern/flow"
)

// ScanConfig says what is a scan.
type ScanConfig struct {
	// Failures is from how many failed first contacts on one service, less those that succeeded,
	// a source is scanning hosts. Who knows where it is going succeeds four times of five, a
	// scanner fails four times of five: each failure speaks four to one for a scanner, each
	// success as much against, and nine straight failures leave one error in 100,000
	// (Jung and others, "Fast Portscan Detection Using Sequential Hypothesis Testing", 2004).
	Failures int `yaml:"failures"`
	// Ports is from how many failed services of one host, less those that answered, a source is
	// scanning its ports. They are more: all services of a host that is down fail together.
	Ports int `yaml:"ports"`
	// Window is for how long a failed first contact counts.
	Window time.Duration `yaml:"window"`
}

func defaultScanConfig() ScanConfig {
	return ScanConfig{Failures: 9, Ports: 15, Window: 7 * 24 * time.Hour}
}

func (c *ScanConfig) validate() error {
	if c.Failures < 3 || c.Failures > 100 {
		return fmt.Errorf("detect.behaviour.scan.failures is %d; write a number from 3 to 100", c.Failures)
	}
	if c.Ports < 3 || c.Ports > 100 {
		return fmt.Errorf("detect.behaviour.scan.ports is %d; write a number from 3 to 100", c.Ports)
	}
	if c.Window < time.Hour || c.Window > 31*24*time.Hour {
		return fmt.Errorf("detect.behaviour.scan.window is %v; write a duration from 1h to %v", c.Window, 31*24*time.Hour)
	}
	return nil
}

// scans finds sources that try what they do not know to be there.
type scans struct {
	cfg *ScanConfig

	sources   map[int32]*scanner
	attempts  int // of all sources
	most      int
	shunned   map[int32][outageSources]uint32 // by target: who failed to reach it
	exporters map[flow.Addr]struct{}          // that showed both directions of a session
}

const (
	// maxAttempts bounds the failed first contacts remembered of one source; about 5 kB.
	maxAttempts = 128
	// outageSources is how many sources' failures to reach one host count. What more sources
	// fail to reach is down, or a name in everybody's configuration.
	outageSources = 3
	maxExporters  = 4096
	boundScans    = "failed first contacts of sources"
)

// scanKind is the sort of scan; each is a finding of its own.
type scanKind uint8

const (
	scanHosts   scanKind = iota // many hosts, one service
	scanPorts                   // many services, one host
	scanOutward                 // many hosts outside, one service
	scanKinds
)

var scanKindTexts = [scanKinds]string{"hosts", "ports", "outward"}

// scanner is what is remembered of a source.
type scanner struct {
	attempts []attempt // in the order of their last time
	told     [scanKinds]scanTold
	sketch   [scanKinds]*hyperloglog.Sketch // of the targets of the day that was told
}

// attempt is a first contact that failed. It is of fixed size.
type attempt struct {
	At     flow.Time // when it was tried last
	Server flow.Addr
	Host   int32 // the source's place
	Port   uint16
	Proto  uint8
	Flags  uint8
}

const (
	attemptFirst    uint8 = 1 << iota // At is its first time
	attemptPaid                       // outweighed by a success on the same service
	attemptHostPaid                   // by one with the same host
	attemptRefused                    // somebody said no
	attemptOutward                    // to outside
)

// scanTold is what was told of a source's scans of one kind. It is of fixed size.
type scanTold struct {
	Host    int32
	Kind    scanKind
	Day     int64  // the last that was told; 0: none
	Targets uint32 // of that day
	Said    uint32 // as the finding says it
	Peak    uint32 // of days before
	Days    uint32 // told while learning
	GoesOn  bool   // with that of days before
	Since   flow.Time
}

func newScans(cfg *ScanConfig, mostHosts int) scans {
	return scans{cfg: cfg, sources: map[int32]*scanner{}, most: 2 * mostHosts, shunned: map[int32][outageSources]uint32{}, exporters: map[flow.Addr]struct{}{}}
}

// outside says whether an end is no part of the estate: in no segment, or that of the internet,
// and of an address that others own.
func (b *Behaviour) outside(e *flow.SessionEnd) bool {
	return outside(e.Addr, e.Segment, b.names.Text(e.Segment) == "internet")
}

func outside(addr flow.Addr, segment flow.Name, internet bool) bool {
	if segment != flow.NoName {
		return internet
	}
	a := addr.Netip()
	cgnat := addr.Is4() && addr.V4()>>22 == 100<<2|1 // 100.64.0.0/10, RFC 6598
	return !a.IsPrivate() && !a.IsLinkLocalUnicast() && !a.IsLoopback() && !cgnat
}

// attempted says whether a failed session is an attempt to reach somebody, rather than what is
// left of an older session, said to nobody in particular, or one direction of a session whose
// other one nobody exports.
func (s *scans) attempted(c *Contact) bool {
	a := c.Server.Addr.Netip()
	if c.Open || a.IsMulticast() || a == c.Client.Addr.Netip() || c.Server.Addr.Is4() && c.Server.Addr.V4()+1 == 0 {
		return false
	}
	_, both := s.exporters[c.Observers[0].Exporter]
	refused := c.Fate == fateDenied || c.Fate == fateRefused
	switch {
	case c.Proto == flow.ProtoTCP:
		f := c.Client.TCPFlags
		return f == 0 || f&flow.SYN != 0 || f&(flow.ACK|flow.RST) == 0
	case c.HasICMP:
		request := c.ICMPType == 8 || c.ICMPType == 13 || c.ICMPType == 17 // echo, timestamp, address mask
		if c.Proto == flow.ProtoICMPv6 {
			request = c.ICMPType == 128
		}
		return request && (refused || both)
	case c.Proto == flow.ProtoUDP:
		// Who only talks (syslog, streams) talks on; and services that look for others say so to all.
		switch c.Server.Port {
		case 137, 138, 1900, 5353, 5355:
			return false
		}
		return refused || both && (!c.Client.HasPackets || c.Client.Packets <= 5)
	}
	return refused || both
}

// unheard says whether an answer would have been told by others than those who told of a session,
// and some of the others are not heard.
func (s *scans) unheard(b *Behaviour, c *Contact) bool {
	_, both := s.exporters[c.Observers[0].Exporter]
	return !both && b.spots.hushed(c.Settled).exporters
}

// contact looks at one contact.
func (s *scans) contact(b *Behaviour, t *visit) {
	if t.Fate == fateAnswered {
		if t.BothWays && len(s.exporters) < maxExporters {
			s.exporters[t.Observers[0].Exporter] = struct{}{}
		}
		if t.New {
			s.forgive(t)
		}
		return
	}
	if !t.Fate.failed() || t.Worked || t.Verdict.Reason == flow.ReasonWaived || !s.attempted(t.Contact) || b.outside(&t.Client) {
		return
	}
	if t.Fate == fateUnanswered && s.unheard(b, t.Contact) {
		return
	}
	if s.outage(t) {
		return
	}
	src := s.sources[t.client]
	if src == nil {
		src = &scanner{}
		s.sources[t.client] = src
	}
	a := s.note(b, src, t)
	if a.Flags&attemptOutward != 0 {
		s.judge(b, src, t, scanOutward, a)
		return
	}
	s.judge(b, src, t, scanHosts, a)
	s.judge(b, src, t, scanPorts, a)
}

func (a *attempt) service(o *attempt) bool { return a.Port == o.Port && a.Proto == o.Proto }

// servicePort is the service of a contact: its port, of ICMP type and code.
func servicePort(c *Contact) uint16 {
	if c.HasICMP {
		return uint16(c.ICMPType)<<8 | uint16(c.ICMPCode)
	}
	return c.Server.Port
}

// outage says whether others enough failed to reach a host already.
func (s *scans) outage(t *visit) bool {
	me := max(1, uint32(flow.Mix(flow.Mix(t.Client.Addr.Hi^1)^t.Client.Addr.Lo)))
	by := s.shunned[t.server]
	for i, h := range by {
		if h == me {
			return false
		}
		if h == 0 {
			by[i] = me
			s.shunned[t.server] = by
			return false
		}
	}
	return true
}

// note remembers a failed first contact.
func (s *scans) note(b *Behaviour, src *scanner, t *visit) attempt {
	a := attempt{At: t.at, Server: t.Server.Addr, Host: t.client, Port: servicePort(t.Contact), Proto: t.Proto, Flags: attemptFirst}
	if t.Fate != fateUnanswered {
		a.Flags |= attemptRefused
	}
	if b.outside(&t.Server) {
		a.Flags |= attemptOutward
	}
	old := 0
	for old < len(src.attempts) && src.attempts[old].At < t.at-millis(s.cfg.Window) {
		old++
	}
	if len(src.attempts)-old >= maxAttempts {
		old++
	}
	src.attempts = slices.Delete(src.attempts, 0, old)
	s.attempts -= old
	if i := slices.IndexFunc(src.attempts, func(o attempt) bool { return o.service(&a) && o.Server == a.Server }); i >= 0 {
		a.Flags = src.attempts[i].Flags &^ attemptFirst
		src.attempts = slices.Delete(src.attempts, i, i+1)
		s.attempts--
	} else if s.attempts >= s.most {
		s.makeRoom(b, src, t)
	}
	src.attempts = append(src.attempts, a)
	s.attempts++
	return a
}

// forgive has a success outweigh a failure, on the same service and with the same host.
func (s *scans) forgive(t *visit) {
	src := s.sources[t.client]
	if src == nil {
		return
	}
	port := servicePort(t.Contact)
	pay := func(flag uint8, fits func(*attempt) bool) {
		for i := len(src.attempts) - 1; i >= 0; i-- {
			if a := &src.attempts[i]; a.Flags&flag == 0 && fits(a) {
				a.Flags |= flag
				return
			}
		}
	}
	pay(attemptPaid, func(a *attempt) bool { return a.Port == port && a.Proto == t.Proto })
	pay(attemptHostPaid, func(a *attempt) bool { return a.Server == t.Server.Addr })
}

// judge sees whether a source's failures make a scan of a kind, and tells of it.
func (s *scans) judge(b *Behaviour, src *scanner, t *visit, kind scanKind, a attempt) {
	paid, needed := attemptPaid, s.cfg.Failures
	if kind == scanPorts {
		paid, needed = attemptHostPaid, s.cfg.Ports
	}
	st := &src.told[kind]
	day := max(dayOf(t.Start), st.Day)
	if st.Day == day && src.sketch[kind] != nil {
		s.more(b, src, t, kind, a)
		return
	}
	var fits []*attempt
	first, today := 0, 0
	for i := range src.attempts {
		o := &src.attempts[i]
		fit := o.service(&a) && (o.Flags^a.Flags)&attemptOutward == 0
		if kind == scanPorts {
			fit = o.Server == a.Server
		}
		if !fit || o.Flags&paid != 0 {
			continue
		}
		fits = append(fits, o)
		if dayOf(o.At) >= day {
			today++
			if o.Flags&attemptFirst != 0 {
				first++
			}
		}
	}
	goesOn := st.Day != 0 && day-st.Day <= int64(s.cfg.Window/(24*time.Hour))
	if len(fits) < needed || goesOn && first < 3 && today < needed || first == 0 && today < needed {
		return
	}
	if st.Day == 0 || !goesOn {
		st.Since = fits[0].At
	}
	st.Peak = max(st.Peak, st.Targets)
	st.Day, st.Targets, st.Said, st.GoesOn = day, 0, 0, goesOn
	if b.learning(t.at) {
		st.Days++
	}
	src.sketch[kind], _ = hyperloglog.NewSketch(10, false) // of that precision it cannot fail
	var edges []flow.Edge
	for _, o := range fits {
		if goesOn && dayOf(o.At) < day {
			continue
		}
		s.target(src, kind, o)
		edges = append(edges, flow.Edge{Source: t.Client.Addr.String(), Destination: o.Server.String(), Port: edgePort(o), Protocol: string(flow.AppendProto(nil, o.Proto))})
	}
	s.tell(b, src, t, kind, int64(len(edges)), edges)
}

func edgePort(a *attempt) uint16 {
	if a.Proto == flow.ProtoICMP || a.Proto == flow.ProtoICMPv6 {
		return 0
	}
	return a.Port
}

// target counts a target of today: exactly as long as they are few, then by a sketch.
func (s *scans) target(src *scanner, kind scanKind, a *attempt) {
	h := flow.Mix(flow.Mix(a.Server.Hi^0x9e3779b97f4a7c15) ^ a.Server.Lo)
	if kind == scanPorts {
		h = flow.Mix(h ^ uint64(a.Port)<<8 ^ uint64(a.Proto))
	}
	src.sketch[kind].InsertHash(h)
	src.told[kind].Targets = max(src.told[kind].Targets, uint32(src.sketch[kind].Estimate()))
}

// more adds an attempt to what was told today.
func (s *scans) more(b *Behaviour, src *scanner, t *visit, kind scanKind, a attempt) {
	if kind == scanPorts {
		// Only of a host whose ports are being scanned: one of those told has it.
		n := 0
		for i := range src.attempts {
			if src.attempts[i].Server == a.Server {
				n++
			}
		}
		if n < s.cfg.Ports {
			return
		}
	}
	s.target(src, kind, &a)
	st := &src.told[kind]
	k := s.key(b, t, kind, st.Day)
	if f := b.findings[k]; f != nil && st.Targets < st.Said+1+st.Said/8 {
		b.more(f, 1, t.Contact)
		return
	}
	s.tell(b, src, t, kind, 1, []flow.Edge{edgeOf(t.Contact)})
}

func (s *scans) key(b *Behaviour, t *visit, kind scanKind, day int64) key {
	k := b.keyOf(flow.FindingScan, t.client, scanKindTexts[kind], t.at)
	k.Day = day
	return k
}

// tell tells of a scan.
func (s *scans) tell(b *Behaviour, src *scanner, t *visit, kind scanKind, n int64, edges []flow.Edge) {
	st := &src.told[kind]
	st.Said = st.Targets
	refused, on := 0, map[string]bool{}
	for i := range src.attempts {
		a := &src.attempts[i]
		if kind == scanPorts && a.Server != t.Server.Addr || (kind == scanOutward) != (a.Flags&attemptOutward != 0) {
			continue
		}
		if a.Flags&attemptRefused != 0 {
			refused++
		}
		on[serviceText(a)] = true
	}
	severity, why := flow.Medium, ""
	small := st.Targets <= 2*st.Peak
	switch {
	case kind == scanOutward:
		severity, why = flow.Low, "It looks for hosts outside, which crawlers and peer-to-peer programs do as well."
	case !b.learning(t.at) && st.Days >= 2 && small:
		severity, why = flow.Low, "It scanned as much on several days while Postern was learning: it may be a scanner that nobody registered."
	case kind == scanHosts && !leads(src, t):
		severity, why = flow.Low, "Nothing on these ports lets anybody in, and drivers and devices look for their like so."
	case st.GoesOn && small:
		severity, why = flow.Low, "It goes on as on the days before."
	}
	certain := uint8(80)
	if t.Proto != flow.ProtoTCP {
		certain = 60 // where nothing comes back nobody need have been asked
	}
	caveat := ""
	if t.Fate == fateUnanswered {
		if caveat = b.impaired(t.Contact); caveat != "" {
			caveat, certain = " "+caveat, less(certain, 70)
		}
	}
	who := b.hostText(t.client)
	story := &story{Techniques: []string{"T1046"}, Edges: edges, Ends: []flow.End{b.endOf(&t.Session, false)}, Client: t.Client.Addr,
		Next: "Ask who runs " + who + " what looks for hosts there. A registered scanner needs an exception for what it scans: then it is silent."}
	since := moment(st.Since)
	switch kind {
	case scanPorts:
		story.Title = "Port scan of " + t.Server.Addr.String()
		story.Sentence = fmt.Sprintf("%s tried about %d services that it had never tried before, of hosts as %s, and failed, since %s.", who, st.Targets, t.Server.Addr, since)
	default:
		where := "hosts"
		if kind == scanOutward {
			where = "hosts outside"
		}
		services := slices.Sorted(maps.Keys(on))
		if len(services) > 5 {
			services = append(services[:5], "others")
		}
		story.Title = "Scan for " + where + " on " + string(t.AppendService(nil))
		story.Sentence = fmt.Sprintf("%s tried to reach about %d %s that it had never reached before, on %s, and failed, since %s.", who, st.Targets, where, strings.Join(services, ", "), since)
		if kind == scanHosts {
			story.Techniques = []string{"T1018", "T1046"}
		}
	}
	if story.Sentence += caveat; why != "" {
		story.Sentence += " " + why
	}
	if b.learning(t.at) {
		story.Sentence += " Postern is still learning what is normal here."
	}
	story.part("failed first contacts", min(70, 35+int(st.Targets)), "a source that knows where it goes succeeds four times of five")
	if refused > 0 {
		story.part("refused or denied", min(20, 2*refused), times(refused, "attempt was", "attempts were")+" answered by a reset or denied")
	}
	if severity == flow.Low {
		story.part("expected", -30, why)
	}
	said := b.toldOf(t.Contact, severity, certain)
	said.Story = story
	b.raise(s.key(b, t, kind, st.Day), said, n, t.Contact)
}

// part adds a part to the score.
func (s *story) part(name string, points int, says string) {
	s.Parts = append(s.Parts, flow.ScorePart{Name: name, Points: points, Says: says})
	s.Score = min(100, max(0, s.Score+points))
}

func serviceText(a *attempt) string {
	c := flow.Session{Proto: a.Proto, HasPorts: true, Server: flow.SessionEnd{Port: a.Port}}
	if a.Proto == flow.ProtoICMP || a.Proto == flow.ProtoICMPv6 {
		c.HasPorts, c.HasICMP, c.ICMPType, c.ICMPCode = false, true, uint8(a.Port>>8), uint8(a.Port)
	}
	return string(c.AppendService(nil))
}

// hostText is a host in words.
func (b *Behaviour) hostText(i int32) string {
	h := &b.hosts.list[i]
	if h.Workload != flow.NoName {
		return word(b.names.Text(h.Workload))
	}
	return h.Addr.String()
}

// makeRoom forgets what a sixteenth of the sources tried, those first that tried last longest ago.
func (s *scans) makeRoom(b *Behaviour, but *scanner, t *visit) {
	list := slices.SortedFunc(maps.Keys(s.sources), func(x, y int32) int {
		a, c := s.sources[x], s.sources[y]
		var ax, cx flow.Time
		if n := len(a.attempts); n > 0 {
			ax = a.attempts[n-1].At
		}
		if n := len(c.attempts); n > 0 {
			cx = c.attempts[n-1].At
		}
		return cmp.Or(cmp.Compare(ax, cx), b.hosts.list[x].Addr.Compare(b.hosts.list[y].Addr))
	})
	lost := 0
	for _, i := range list {
		src := s.sources[i]
		if src == but || lost > s.most/16 {
			continue
		}
		lost += len(src.attempts)
		s.attempts -= len(src.attempts)
		if src.attempts = nil; src.told == [scanKinds]scanTold{} {
			delete(s.sources, i)
		}
	}
	b.bm.scansForgotten.Add(float64(lost))
	b.pressed(boundScans, t.Client.Addr, lost, t.at)
}

// tend forgets what no longer counts.
func (s *scans) tend(now flow.Time) {
	for i, src := range s.sources {
		old := 0
		for old < len(src.attempts) && src.attempts[old].At < now-millis(s.cfg.Window) {
			old++
		}
		if old > 0 {
			src.attempts = slices.Clone(src.attempts[old:])
			s.attempts -= old
		}
		told := false
		for k := range src.told {
			st := &src.told[k]
			told = told || st.Day != 0
			if st.Day < dayOf(now)-1 {
				src.sketch[k] = nil
			}
		}
		if len(src.attempts) == 0 && !told {
			delete(s.sources, i)
		}
	}
}

func (s *scans) forgetHost(i int32) {
	if src := s.sources[i]; src != nil {
		s.attempts -= len(src.attempts)
		delete(s.sources, i)
	}
	delete(s.shunned, i)
}

// shunnedBy is who failed to reach a target, as it is saved.
type shunnedBy struct {
	Host int32
	By   [outageSources]uint32
}

// savedSketch is a sketch as it is saved.
type savedSketch struct {
	Host int32    `json:"host"`
	Kind scanKind `json:"kind"`
	Data []byte   `json:"data"`
}

func (s *scans) save(w *stateWriter) error {
	var attempts []attempt
	var tolds []scanTold
	sketches := []savedSketch{}
	for _, i := range slices.Sorted(maps.Keys(s.sources)) {
		src := s.sources[i]
		attempts = append(attempts, src.attempts...)
		for k := range src.told {
			if st := src.told[k]; st.Day != 0 {
				st.Host, st.Kind = i, scanKind(k)
				tolds = append(tolds, st)
			}
			if src.sketch[k] != nil {
				data, err := src.sketch[k].MarshalBinary()
				if err != nil {
					return err
				}
				sketches = append(sketches, savedSketch{i, scanKind(k), data})
			}
		}
	}
	saveAll(w, attempts)
	saveAll(w, tolds)
	if err := w.json(sketches); err != nil {
		return err
	}
	var shunned []shunnedBy
	for _, i := range slices.Sorted(maps.Keys(s.shunned)) {
		shunned = append(shunned, shunnedBy{i, s.shunned[i]})
	}
	saveAll(w, shunned)
	saveAll(w, slices.SortedFunc(maps.Keys(s.exporters), flow.Addr.Compare))
	return nil
}

func (s *scans) load(r *stateReader, hosts int) {
	of := func(i int32) *scanner {
		if i < 0 || int(i) >= hosts {
			r.fail(errState)
			return &scanner{}
		}
		if s.sources[i] == nil {
			s.sources[i] = &scanner{}
		}
		return s.sources[i]
	}
	for _, a := range loadAll[attempt](r) {
		src := of(a.Host)
		src.attempts = append(src.attempts, a)
		s.attempts++
	}
	for _, st := range loadAll[scanTold](r) {
		if st.Kind >= scanKinds {
			r.fail(errState)
			return
		}
		i, k := st.Host, st.Kind
		st.Host, st.Kind = 0, 0
		of(i).told[k] = st
	}
	var sketches []savedSketch
	r.json(&sketches)
	for _, x := range sketches {
		sk, _ := hyperloglog.NewSketch(10, false)
		if x.Kind >= scanKinds || len(x.Data) > 2048 || sk.UnmarshalBinary(x.Data) != nil {
			r.fail(errState)
			return
		}
		of(x.Host).sketch[x.Kind] = sk
	}
	for _, x := range loadAll[shunnedBy](r) {
		s.shunned[x.Host] = x.By
	}
	for _, a := range loadAll[flow.Addr](r) {
		s.exporters[a] = struct{}{}
	}
}

// leads says whether any of the attempts that are still remembered of a source was on a service
// by which one gets into a host: what sweeps for anything else looks for printers and their like.
func leads(src *scanner, t *visit) bool {
	if t.Class.administers() || t.HasICMP {
		return true
	}
	for i := range src.attempts {
		if a := &src.attempts[i]; classOf(a.Proto, a.Port).administers() {
			return true
		}
	}
	return false
}
