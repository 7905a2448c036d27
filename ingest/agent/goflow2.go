package agent

import (
	"encoding/base64"
	"errors"
	"math"

	"github.com/valyala/fastjson"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/goflow2"
)

// goflow2's JSON: its FlowMessage, of 2.x (time_received_ns) and of 1.x (TimeReceived), or as
// protocol buffers are printed (timeReceivedNs). What a message means is package goflow2's;
// here are the forms of values that logs have beside those of topics: addresses in base 64,
// times as other formats write them, and the pods that enrichment adds.
//
// goflow2 tells what an exporter told it, so the source is the protocol of that.

// goflowLine is what one line tells.
type goflowLine struct {
	message  goflow2.Message
	src, dst goflowPod
	named    bool   // a field of a pod is there
	number   []byte // scratch
}

// goflowPod is what enriches flows in Kubernetes tells of an end.
type goflowPod struct{ namespace, name []byte }

var errGoflowFields = errors.New("no field of a goflow2 flow message, such as time_received_ns or TimeReceived")

func newGoflow2(d *Decoder) parser {
	l := &goflowLine{}
	return ofJSON(func(v *fastjson.Value, e *entry) error {
		*l = goflowLine{number: l.number[:0]}
		v.GetObject().Visit(l.set)
		if !l.named && !l.message.Known() {
			return errGoflowFields
		}
		e.timed = true
		r := e.flow(flow.SourceUnknown)
		received := e.o.Received
		if d.cfg.BelieveClock {
			received = 0
		}
		l.message.Record(r, received)
		if r.Received == 0 {
			r.Received = e.o.Received
		}
		if r.Start == 0 {
			r.Start, r.End = r.Received, r.Received
		}
		r.SrcHost, r.DstHost = e.path(l.src.namespace, l.src.name), e.path(l.dst.namespace, l.dst.name)
		return nil
	})(d)
}

// set takes a field in. A value that is not of the field's kind tells nothing.
func (l *goflowLine) set(key []byte, v *fastjson.Value) {
	f, ok := goflow2.FieldOf(key)
	if !ok {
		return
	}
	switch f.Kind() {
	case goflow2.Number:
		b, isText := l.scalar(v)
		l.message.Set(f, b, isText)
	case goflow2.Layers:
		l.message.Set(f, nil, false)
		for _, layer := range v.GetArray() {
			b, isText := l.scalar(layer)
			l.message.Set(f, b, isText)
		}
	case goflow2.Address:
		a, ok := goflowAddr(v)
		l.message.SetAddr(f, a, ok)
	case goflow2.Time:
		ns, ok := l.nanoseconds(v)
		l.message.SetTime(f, ns, ok)
	case goflow2.Name:
		l.named = true
		name := said(v.GetStringBytes())
		switch f {
		case goflow2.SrcPod:
			l.src.name = name
		case goflow2.DstPod:
			l.dst.name = name
		case goflow2.SrcNamespace:
			l.src.namespace = name
		case goflow2.DstNamespace:
			l.dst.namespace = name
		}
	}
}

// scalar is the text of a number or of a string; nil for what is neither.
func (l *goflowLine) scalar(v *fastjson.Value) (b []byte, isText bool) {
	switch v.Type() {
	case fastjson.TypeNumber:
		l.number = v.MarshalTo(l.number[:0])
		return l.number, false
	case fastjson.TypeString:
		return v.GetStringBytes(), true
	}
	return nil, false
}

// nanoseconds is a time: a number of nanoseconds, or RFC 3339 as the renderer datetimenano
// prints it, which is read to the millisecond.
func (l *goflowLine) nanoseconds(v *fastjson.Value) (ns uint64, ok bool) {
	b, isText := l.scalar(v)
	if n, ok := goflow2.ParseNumber(b); ok || !isText {
		return n, ok
	}
	t, ok := when(b)
	if !ok || t < 0 || t > goflowLatest {
		return 0, false
	}
	return uint64(t) * 1e6, true
}

// goflowLatest is in the year 2262: nanoseconds do not reach further in 63 bits.
const goflowLatest = flow.Time(math.MaxInt64 / 1_000_000)

// goflowAddr is an address, as text or as its bytes in base 64.
func goflowAddr(v *fastjson.Value) (flow.Addr, bool) {
	b := v.GetStringBytes()
	if a, ok := addr(b); ok {
		return a, true
	}
	var raw [18]byte
	if len(b) != 8 && len(b) != 24 {
		return flow.Addr{}, false
	}
	n, err := base64.StdEncoding.Decode(raw[:], b)
	if err != nil {
		return flow.Addr{}, false
	}
	return goflow2.AddrFromBytes(raw[:n])
}

func knownGoflow2(_ []byte, v *fastjson.Value) string {
	for _, pair := range [...][2]string{{"time_received_ns", "sampler_address"}, {"TimeReceived", "SamplerAddress"}, {"timeReceivedNs", "samplerAddress"}} {
		if v != nil && v.Exists(pair[0]) && v.Exists(pair[1]) {
			return "a JSON object with " + pair[0] + " and " + pair[1]
		}
	}
	return ""
}
