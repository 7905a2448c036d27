package agent

import (
	"bytes"
	"fmt"

	"github.com/valyala/fastjson"

	"github.com/postern/postern/flow"
)

// Flow logs of Amazon VPC, versions 2 to 10, and of transit gateways (version 6), as text in
// the default order or in the one that a header line names, and as JSON. Fields:
// https://docs.aws.amazon.com/vpc/latest/userguide/flow-log-records.html

// awsField is a field that is read.
type awsField uint8

const (
	awsOther awsField = iota // not read
	awsInterface
	awsSrc
	awsDst
	awsSrcPort
	awsDstPort
	awsProtocol
	awsPackets
	awsBytes
	awsStart
	awsEnd
	awsAction
	awsStatus
	awsInstance
	awsFlags
	awsPktSrc
	awsPktDst
	awsDirection
	awsCluster
	awsService
	awsTask
	awsReject
	awsGateway
	awsAttachment
	awsFields // how many
)

// awsNames are the names of fields in lower case without dashes and underscores: text files
// write interface-id, Parquet and Athena interface_id, other exports interfaceId.
var awsNames = map[string]awsField{
	"version": awsOther, "accountid": awsOther, "interfaceid": awsInterface, "srcaddr": awsSrc, "dstaddr": awsDst,
	"srcport": awsSrcPort, "dstport": awsDstPort, "protocol": awsProtocol, "packets": awsPackets, "bytes": awsBytes,
	"start": awsStart, "end": awsEnd, "action": awsAction, "logstatus": awsStatus,
	"instanceid": awsInstance, "tcpflags": awsFlags, "pktsrcaddr": awsPktSrc, "pktdstaddr": awsPktDst,
	"flowdirection": awsDirection, "ecsclustername": awsCluster, "ecsservicename": awsService, "ecstaskid": awsTask,
	"rejectreason": awsReject, "tgwid": awsGateway, "tgwattachmentid": awsAttachment,
}

// awsDefault is the order of version 2, which has no header in CloudWatch.
var awsDefault = []awsField{
	awsOther, awsOther, awsInterface, awsSrc, awsDst, awsSrcPort, awsDstPort, awsProtocol, awsPackets, awsBytes,
	awsStart, awsEnd, awsAction, awsStatus,
}

var awsRejected = []byte("reject")

// aws is a stream of lines.
type aws struct {
	d       *Decoder
	columns []awsField // as a header named them
	row     [awsFields][]byte
	numbers []byte // text of what JSON has as numbers
	member  func(key []byte, v *fastjson.Value)
}

func newAWS(d *Decoder) parser {
	a := &aws{d: d, columns: awsDefault}
	a.member = func(key []byte, v *fastjson.Value) {
		if f := awsNamed(key); f != awsOther {
			a.row[f] = said(scalar(v, &a.numbers))
		}
	}
	return func(line []byte, e *entry) error {
		if len(line) > 0 && line[0] == '{' {
			return a.json(line, e)
		}
		return a.text(line, e)
	}
}

// awsNamed finds a field by its name in any spelling.
func awsNamed(name []byte) awsField {
	f, _ := awsKnown(name)
	return f
}

func awsKnown(name []byte) (awsField, bool) {
	var plain [16]byte
	n := 0
	for _, c := range name {
		switch {
		case c == '-' || c == '_':
			continue
		case n == len(plain):
			return awsOther, false
		case c >= 'A' && c <= 'Z':
			c += 'a' - 'A'
		}
		plain[n] = c
		n++
	}
	f, ok := awsNames[string(plain[:n])]
	return f, ok
}

// json reads an object: a record by its fields, a line as member "message", or what a
// subscription of CloudWatch Logs delivers, with many lines.
func (a *aws) json(line []byte, e *entry) error {
	v, err := a.d.tree(line)
	if err != nil {
		return fmt.Errorf("no JSON: %w", err)
	}
	if events := at(v, "logEvents"); events != nil {
		if string(str(v, "messageType")) == "CONTROL_MESSAGE" {
			return NotFlow("a message about the subscription")
		}
		var p parts
		for _, ev := range events.GetArray() {
			from := len(e.out.Records)
			m := str(ev, "message")
			if m == nil {
				p.took(e, from, fieldError("message", nil, "a flow log record"))
				continue
			}
			p.took(e, from, a.text(m, e))
		}
		return p.result(e)
	}
	if m := str(v, "message"); m != nil {
		if m = bytes.TrimSpace(m); len(m) > 0 && m[0] == '{' { // JSON in JSON
			m = bytes.Clone(m)
			if v, err = a.d.tree(m); err != nil {
				return fmt.Errorf("message is no JSON: %w", err)
			}
		} else {
			return a.text(m, e)
		}
	}
	o := v.GetObject()
	if o == nil {
		return fmt.Errorf("a JSON %s; want an object", v.Type())
	}
	a.row, a.numbers = [awsFields][]byte{}, a.numbers[:0]
	o.Visit(a.member)
	return a.read(e)
}

// text reads a line of fields with spaces between, or a header that names them.
func (a *aws) text(line []byte, e *entry) error {
	if len(line) > 0 && line[0] >= 'a' && line[0] <= 'z' && bytes.Contains(line, []byte("addr")) && a.header(line) {
		return NotFlow("a header")
	}
	line = awsExported(line)
	a.row = [awsFields][]byte{}
	n := 0
	for rest := line; len(rest) > 0; n++ {
		var v []byte
		if i := bytes.IndexByte(rest, ' '); i < 0 {
			v, rest = rest, nil
		} else {
			v, rest = rest[:i], rest[i+1:]
		}
		if n < len(a.columns) && a.columns[n] != awsOther {
			a.row[a.columns[n]] = said(v)
		}
	}
	if n != len(a.columns) {
		if &a.columns[0] == &awsDefault[0] {
			return fmt.Errorf("%d fields; the default format has %d, another order needs its header line before it", n, len(a.columns))
		}
		return fmt.Errorf("%d fields; the header names %d", n, len(a.columns))
	}
	return a.read(e)
}

// awsExported takes off the time that an export of CloudWatch Logs to S3 puts before a line.
func awsExported(line []byte) []byte {
	if len(line) > 20 && line[4] == '-' && line[10] == 'T' {
		if word, rest := cut(line); len(rest) > 0 {
			if _, ok := when(word); ok {
				return rest
			}
		}
	}
	return line
}

// maxAWSColumns bounds what a header can make us keep; version 10 has 42 fields.
const maxAWSColumns = 128

// header takes the order of fields from a line, if it is one that names them.
func (a *aws) header(line []byte) bool {
	var columns []awsField
	addresses := false
	for name := range bytes.SplitSeq(line, []byte{' '}) {
		if len(columns) == maxAWSColumns {
			return false
		}
		f := awsNamed(name)
		addresses = addresses || f == awsSrc || f == awsDst || f == awsPktSrc || f == awsPktDst
		columns = append(columns, f)
	}
	if addresses {
		a.columns = columns
	}
	return addresses
}

// read makes the flow of a row.
func (a *aws) read(e *entry) error {
	row := &a.row
	switch string(row[awsStatus]) {
	case "NODATA":
		return NotFlow("NODATA: no traffic at the interface in the window")
	case "SKIPDATA":
		return NotFlow("SKIPDATA: flows were not recorded in the window")
	}
	// The addresses of the packets are those of the conversation; srcaddr and dstaddr are, in
	// the interface's place, its own primary address: that of a NAT gateway, or of the node
	// that a pod is on. That is no translation, so it goes nowhere else either.
	src, dst := row[awsPktSrc], row[awsPktDst]
	if src == nil {
		src = row[awsSrc]
	}
	if dst == nil {
		dst = row[awsDst]
	}
	r := e.flow(flow.SourceAWSVPC)
	if err := ends(r, src, dst); err != nil {
		return err
	}
	for _, t := range [...]struct {
		field awsField
		name  string
		to    *flow.Time
	}{{awsStart, "start", &r.Start}, {awsEnd, "end", &r.End}} {
		if b := row[t.field]; b != nil {
			at, ok := epoch(b)
			if !ok {
				return fieldError(t.name, b, "seconds since 1970")
			}
			*t.to = at
		}
	}
	r.Quality |= flow.QualityAggregated
	proto, ok := octet(atou(row[awsProtocol]))
	setProto(r, proto, ok)
	setPorts(r, row[awsSrcPort], row[awsDstPort])
	n, ok := atou(row[awsPackets])
	setPackets(r, n, ok)
	n, ok = atou(row[awsBytes])
	setBytes(r, n, ok)
	if flags, ok := octet(atou(row[awsFlags])); ok && r.Proto == flow.ProtoTCP {
		setFlags(r, uint16(flags), true)
		// ACK is told with SYN only, so that the two together are a SYN-ACK.
		switch flags & (flow.SYN | flow.ACK) {
		case flow.SYN:
			r.Has |= flow.HasInitiator
		case flow.SYN | flow.ACK:
			r.Has |= flow.HasResponder
		}
	}
	switch string(row[awsAction]) {
	case "ACCEPT":
		r.Enforced = flow.ObservedAllow
	case "REJECT":
		r.Enforced = flow.ObservedDeny
		if why := row[awsReject]; why != nil {
			r.EnforcedBy = e.path(awsRejected, why)
		}
	}
	for _, f := range [...]awsField{awsInterface, awsAttachment, awsGateway} {
		if b := row[f]; b != nil {
			r.Observer = e.name(b)
			break
		}
	}
	a.side(r, e)
	return nil
}

// side says at which end the interface is, and what is known of that end.
func (a *aws) side(r *flow.Record, e *entry) {
	row := &a.row
	host := e.path(row[awsCluster], row[awsTask])
	if row[awsTask] == nil {
		host = e.name(row[awsInstance])
	}
	identity := flow.NoName
	if row[awsService] != nil {
		identity = e.path(row[awsCluster], row[awsService])
	}
	switch string(row[awsDirection]) {
	case "ingress":
		r.Direction, r.Has = 0, r.Has|flow.HasDirection
		if own(row[awsPktDst], row[awsDst]) && row[awsInterface] != nil {
			r.Reporter, r.DstHost, r.DstIdentity = flow.ReporterDestination, host, identity
		}
	case "egress":
		r.Direction, r.Has = 1, r.Has|flow.HasDirection
		if own(row[awsPktSrc], row[awsSrc]) && row[awsInterface] != nil {
			r.Reporter, r.SrcHost, r.SrcIdentity = flow.ReporterSource, host, identity
		}
	}
}

// own says whether the interface is the packet's end: it is not where the packet has another
// address than the interface.
func own(packet, iface []byte) bool { return packet == nil || bytes.Equal(packet, iface) }

func knownAWS(line []byte, v *fastjson.Value) string {
	if v != nil {
		if o := v.GetObject(); o != nil && (o.Get("srcaddr") != nil || o.Get("pkt_srcaddr") != nil || o.Get("srcAddr") != nil || o.Get("pkt-srcaddr") != nil) {
			sure := false
			o.Visit(func(key []byte, _ *fastjson.Value) {
				f := awsNamed(key)
				sure = sure || f == awsInterface || f == awsStatus || f == awsAttachment
			})
			if sure {
				return "a JSON object with srcaddr and interface-id or log-status"
			}
		}
		if v.Exists("logEvents") && awsLine(str(v, "logEvents", "0", "message")) {
			return "a subscription's JSON with records of VPC flow logs"
		}
		if string(str(v, "messageType")) == "CONTROL_MESSAGE" && v.Exists("logGroup") {
			return "a message of a CloudWatch Logs subscription"
		}
		if awsLine(bytes.TrimSpace(str(v, "message"))) {
			return "a JSON object whose message is a record of VPC flow logs"
		}
		return ""
	}
	if awsLine(line) {
		return "a record or a header of VPC flow logs"
	}
	return ""
}

// awsLine says whether a line is a header, or a record of the default format.
func awsLine(line []byte) bool {
	line = awsExported(line)
	fields := bytes.Fields(line[:min(len(line), 4096)])
	if len(fields) == len(awsDefault) && len(fields[0]) <= 2 && decimal(fields[0]) {
		switch string(fields[13]) {
		case "OK", "NODATA", "SKIPDATA":
			return true
		}
	}
	known, addresses := 0, false
	for _, f := range fields {
		k, ok := awsKnown(f)
		if ok {
			known++
		}
		addresses = addresses || k == awsSrc || k == awsPktSrc
	}
	return addresses && known >= 4 && bytes.IndexByte(line, '=') < 0
}
