package agent

import (
	"bytes"
	"slices"

	"github.com/valyala/fastjson"

	"github.com/postern/postern/flow"
)

// Windows tells connections in two logs, which forwarders send as JSON in one stream:
// Sysmon's event 3 and the Windows Filtering Platform's security events 5156 (permitted) and
// 5157 (blocked). Forwarders lay an event out in one of three ways, see docs/agents/windows.md.

// windowsEvent is an event as it is read of every layout. Texts that say "nothing" are nil.
type windowsEvent struct {
	id               uint64
	sysmon, security bool // by provider or channel
	known            bool // provider or channel is told
	host             []byte
	src, dst         []byte
	srcPort, dstPort []byte
	srcName, dstName []byte
	proto            []byte
	direction        []byte // of 5156, 5157, or as the Elastic Common Schema has it
	initiated        []byte
	process          []byte
	user, domain     []byte
	filter           []byte
	utc              []byte // UtcTime
	created          []byte // when Windows made it, with its zone
	local            []byte // when Windows made it, as NXLog writes it: mostly without a zone
	read             []byte // when NXLog read it, as it writes local
	forwarded        []byte // when it was taken in behind NXLog, in UTC
	message          []byte
	numbers          []byte // the texts of numbers

	also func(key string, v *fastjson.Value) // takes the fields that flows do not have; may be nil
}

func newWindows(d *Decoder) parser {
	w := &windowsEvent{}
	return ofJSON(func(v *fastjson.Value, e *entry) error {
		*w = windowsEvent{numbers: w.numbers[:0]}
		w.layout(v)
		return w.flow(e)
	})(d)
}

// layout takes in an event in whichever layout it is.
func (w *windowsEvent) layout(v *fastjson.Value) {
	switch {
	case v.Exists("winlog"):
		w.beat(v)
	case v.Exists("Event"):
		w.xml(at(v, "Event"))
	default:
		w.members(v)
	}
}

// members takes in the members of an object.
func (w *windowsEvent) members(v *fastjson.Value) {
	v.GetObject().Visit(func(key []byte, v *fastjson.Value) { w.set(text(key), v) })
}

// set takes in a field by the name that Windows or NXLog gives it.
func (w *windowsEvent) set(key string, v *fastjson.Value) {
	var to *[]byte
	switch key {
	case "EventID", "EventId", "event_id":
		if id, ok := num(v); ok {
			w.id = id
		} else if id, ok := num(v, "#text"); ok { // beside the attribute Qualifiers
			w.id = id
		}
	case "SourceName", "Channel", "ProviderName", "provider_name", "channel":
		b := said(v.GetStringBytes())
		w.known = w.known || b != nil
		w.sysmon = w.sysmon || bytes.HasPrefix(b, []byte("Microsoft-Windows-Sysmon"))
		w.security = w.security || string(b) == "Microsoft-Windows-Security-Auditing" || bytes.EqualFold(b, []byte("Security"))
	case "Hostname", "Computer", "ComputerName", "computer_name":
		to = &w.host
	case "SourceIp", "SourceAddress":
		to = &w.src
	case "DestinationIp", "DestAddress":
		to = &w.dst
	case "SourcePort":
		to = &w.srcPort
	case "DestinationPort", "DestPort":
		to = &w.dstPort
	case "SourceHostname":
		to = &w.srcName
	case "DestinationHostname":
		to = &w.dstName
	case "Protocol":
		to = &w.proto
	case "Direction":
		to = &w.direction
	case "Initiated":
		to = &w.initiated
	case "Image", "Application":
		to = &w.process
	case "User":
		to = &w.user
	case "FilterRTID":
		to = &w.filter
	case "UtcTime":
		to = &w.utc
	case "TimeCreated", "SystemTime":
		to = &w.created
	case "EventTime":
		to = &w.local
	case "EventReceivedTime":
		to = &w.read
	case "@timestamp":
		to = &w.forwarded
	case "Message", "message":
		to = &w.message
	default:
		if w.also != nil {
			w.also(key, v)
		}
	}
	if to != nil && *to == nil {
		*to = said(scalar(v, &w.numbers))
	}
}

// beat takes in what Winlogbeat and Elastic's agent send. Their modules for Sysmon and
// Security move what the Elastic Common Schema has a name for out of winlog.event_data.
func (w *windowsEvent) beat(v *fastjson.Value) {
	winlog := at(v, "winlog")
	w.members(winlog)
	w.members(at(winlog, "event_data"))
	if w.id == 0 {
		w.id, _ = num(v, "event", "code")
	}
	if w.created == nil {
		w.created = str(v, "@timestamp")
	}
	w.message = str(v, "message")
	fill := func(to *[]byte, keys ...string) {
		if *to == nil {
			*to = said(scalar(v.Get(keys...), &w.numbers))
		}
	}
	fill(&w.host, "host", "name")
	fill(&w.src, "source", "ip")
	fill(&w.dst, "destination", "ip")
	fill(&w.srcPort, "source", "port")
	fill(&w.dstPort, "destination", "port")
	fill(&w.srcName, "source", "domain")
	fill(&w.dstName, "destination", "domain")
	fill(&w.proto, "network", "iana_number")
	fill(&w.proto, "network", "transport")
	fill(&w.direction, "network", "direction")
	fill(&w.process, "process", "executable")
	if w.user == nil {
		w.user, w.domain = said(str(v, "user", "name")), said(str(v, "user", "domain"))
	}
}

// xml takes in an Event that a program turned from XML into JSON, attributes as members: by
// their name, with @ before it, or in an object named #attributes.
func (w *windowsEvent) xml(v *fastjson.Value) {
	system := at(v, "System")
	w.members(system)
	attribute := func(of, name, withAt string) *fastjson.Value {
		for _, key := range [...]string{name, withAt} {
			if a := at(system, of, key); a != nil {
				return a
			}
		}
		return at(system, of, "#attributes", name)
	}
	if p := attribute("Provider", "Name", "@Name"); p != nil {
		w.set("ProviderName", p)
	}
	if t := attribute("TimeCreated", "SystemTime", "@SystemTime"); t != nil {
		w.set("SystemTime", t)
	}
	data := at(v, "EventData")
	w.members(data)
	for _, d := range data.GetArray("Data") { // <Data Name="SourcePort">…</Data>
		name := str(d, "@Name")
		for _, key := range [...]string{"Name", "#attributes"} {
			if name == nil {
				if name = str(d, key); name == nil {
					name = str(d, key, "Name")
				}
			}
		}
		for _, key := range [...]string{"#text", "Value", "content"} {
			if value := at(d, key); value != nil && name != nil {
				w.set(text(name), value)
				break
			}
		}
	}
}

// flow makes the flow of an event.
func (w *windowsEvent) flow(e *entry) error {
	switch {
	case w.id == 3 && w.sysmon:
		return w.readSysmon(e)
	case (w.id == 5156 || w.id == 5157) && (w.security || !w.known):
		return w.readWFP(e)
	case w.id == 5158:
		return NotFlow("a bind to a port (5158)")
	case w.id == 5154:
		return NotFlow("a program that listens (5154)")
	case w.id == 5152:
		return NotFlow("a blocked packet (5152)")
	case w.id == 0:
		return fieldError("event id", nil, "EventID, event.code with winlog, or Event.System.EventID")
	}
	return NotFlow("another event of Windows")
}

func (w *windowsEvent) readSysmon(e *entry) error {
	if w.src == nil || w.utc == nil {
		w.readMessage()
	}
	r := e.flow(flow.SourceSysmon)
	if err := w.common(r, e); err != nil {
		return err
	}
	initiated, known := w.begun()
	atSource := initiated
	switch {
	case !known:
	case initiated:
		r.Has |= flow.HasInitiator
	case r.Proto == flow.ProtoTCP:
		r.Has |= flow.HasInitiator
	case r.Proto == flow.ProtoUDP:
		// Of UDP the source is Sysmon's own end always: a DNS server that was asked tells
		// its port 53 as the source.
		r.Has |= flow.HasResponder
		atSource = true
	default:
		known = false
	}
	if known {
		r.Reporter = flow.ReporterDestination
		if atSource {
			r.Reporter = flow.ReporterSource
		}
	}
	if string(w.process) == "<unknown process>" || string(w.process) == "&lt;unknown process&gt;" {
		w.process = nil
	}
	w.owner(r, e)
	if w.srcName != nil {
		r.SrcHost = e.name(w.srcName)
	}
	if w.dstName != nil {
		r.DstHost = e.name(w.dstName)
	}
	return nil
}

// begun says whether the process that Sysmon names began the connection.
func (w *windowsEvent) begun() (initiated, known bool) {
	switch string(w.initiated) {
	case "true", "True":
		return true, true
	case "false", "False":
		return false, true
	}
	switch string(w.direction) {
	case "egress", "outbound":
		return true, true
	case "ingress", "inbound":
		return false, true
	}
	return false, false
}

func (w *windowsEvent) readWFP(e *entry) error {
	r := e.flow(flow.SourceWFP)
	if err := w.common(r, e); err != nil {
		return err
	}
	r.Enforced = flow.ObservedAllow
	if w.id == 5157 {
		r.Enforced = flow.ObservedDeny
	}
	// The source is who began, in both directions.
	switch string(w.direction) {
	case "%%14592", "Inbound", "inbound", "ingress":
		r.Direction, r.Has, r.Reporter = 0, r.Has|flow.HasDirection|flow.HasInitiator, flow.ReporterDestination
	case "%%14593", "Outbound", "outbound", "egress":
		r.Direction, r.Has, r.Reporter = 1, r.Has|flow.HasDirection|flow.HasInitiator, flow.ReporterSource
	}
	w.owner(r, e)
	if w.filter != nil && string(w.filter) != "0" {
		r.EnforcedBy = e.path([]byte("filter"), w.filter)
	}
	return nil
}

// common fills what both logs have.
func (w *windowsEvent) common(r *flow.Record, e *entry) error {
	if err := ends(r, w.src, w.dst); err != nil {
		return err
	}
	var err error
	if r.Start, err = w.time(e); err != nil {
		return err
	}
	proto, ok := protocol(w.proto)
	setProto(r, proto, ok)
	if !r.IsICMP() { // what stands in ports there is not laid down
		sp, ok := port16(atou(w.srcPort))
		setSrcPort(r, sp, ok)
		dp, ok := port16(atou(w.dstPort))
		setDstPort(r, dp, ok)
	}
	if w.host != nil {
		r.Observer = e.name(w.host)
	}
	return nil
}

// owner sets process and user at the end that the reporter sits at.
func (w *windowsEvent) owner(r *flow.Record, e *entry) {
	process, user := e.name(w.process), e.account(w.domain, w.user)
	switch r.Reporter {
	case flow.ReporterSource:
		r.SrcProcess, r.SrcIdentity = process, user
	case flow.ReporterDestination:
		r.DstProcess, r.DstIdentity = process, user
	}
}

// maxForwarding is how long after NXLog an event may be taken in for its zone to be told.
const maxForwarding = flow.Time(2 * 60 * 1000)

// oddZones are the offsets from UTC in use that are no whole hours, in minutes.
var oddZones = [...]flow.Time{-570, -210, -150, 210, 270, 330, 345, 390, 525, 570, 630, 765, 825}

// time is when it happened, as Windows stamped it; 0 if the line does not say.
func (w *windowsEvent) time(e *entry) (flow.Time, error) {
	for _, b := range [...][]byte{w.utc, w.created} {
		if b == nil {
			continue
		}
		if t, ok := when(b); ok {
			return t, nil
		}
		return 0, fieldError("time", b, "a time such as 2026-10-02T15:04:05.123Z")
	}
	if w.local == nil {
		return 0, nil
	}
	t, ok := when(w.local)
	if !ok {
		return 0, fieldError("EventTime", w.local, "a time such as 2026-10-02 15:04:05")
	}
	if bytes.ContainsAny(w.local[19:], "Zz+-") {
		return t, nil
	}
	// A zone has to be found: what NXLog's clock said when it read the event, in the same
	// zone, against when the next took it in, in UTC.
	configured := t.Add(-e.d.cfg.ZoneOffset)
	now, ok := when(w.forwarded)
	if !ok && !e.d.cfg.BelieveClock {
		now, ok = e.o.Received, true
	}
	if !ok {
		return configured, nil
	}
	then, read := when(w.read)
	if !read {
		then = t
	}
	offset, found := zoneBetween(then, now)
	switch {
	case found:
		return t - offset, nil
	case read && w.forwarded != nil:
		return now - (then - t), nil // by its age when NXLog read it
	}
	return configured, nil
}

// zoneBetween is the offset from UTC of a clock that read local at about the moment utc, in
// milliseconds: a zone in use within two minutes.
func zoneBetween(local, utc flow.Time) (offset flow.Time, ok bool) {
	const quarter = flow.Time(15 * 60 * 1000)
	offset = (local-utc+14*4*quarter+quarter/2)/quarter*quarter - 14*4*quarter // to the nearest quarter of an hour
	minutes := offset / 60_000
	late := utc - (local - offset)
	return offset, late >= -maxForwarding && late <= maxForwarding && minutes >= -14*60 && minutes <= 14*60 &&
		(minutes%60 == 0 || slices.Contains(oddZones[:], minutes))
}

// readMessage takes in Sysmon's rendered text, "SourceIp: 10.0.0.1" a line, where a forwarder
// sends nothing else.
func (w *windowsEvent) readMessage() {
	for line := range bytes.SplitSeq(w.message, []byte{'\n'}) {
		key, value, ok := bytes.Cut(line, []byte(": "))
		if !ok {
			continue
		}
		var to *[]byte
		switch string(bytes.TrimSpace(key)) {
		case "UtcTime":
			to = &w.utc
		case "Image":
			to = &w.process
		case "User":
			to = &w.user
		case "Protocol":
			to = &w.proto
		case "Initiated":
			to = &w.initiated
		case "SourceIp":
			to = &w.src
		case "SourceHostname":
			to = &w.srcName
		case "SourcePort":
			to = &w.srcPort
		case "DestinationIp":
			to = &w.dst
		case "DestinationHostname":
			to = &w.dstName
		case "DestinationPort":
			to = &w.dstPort
		default:
			continue
		}
		if *to == nil {
			*to = said(bytes.TrimSpace(value))
		}
	}
}

func knownWindows(_ []byte, v *fastjson.Value) string {
	switch {
	case v == nil:
	case v.Exists("winlog"):
		return "a JSON object with winlog"
	case v.Exists("Event", "System", "EventID"):
		return "a JSON object with Event.System.EventID"
	case v.Exists("EventID") && (v.Exists("Channel") || v.Exists("SourceName") || v.Exists("ProviderName")):
		return "a JSON object with EventID and its channel or provider"
	}
	return ""
}
