package goflow2

import (
	"encoding/binary"
	"errors"

	"github.com/postern/postern/flow"
)

// What is wrong with a message of protocol buffers. They are made once, so that refusing
// costs no memory.
var (
	ErrVarint = errors.New("protobuf: a number runs beyond the message or 64 bits")
	ErrCut    = errors.New("protobuf: a field runs beyond its message")
	ErrTag    = errors.New("protobuf: no such field number or wire type; is the topic's format another?")
)

// AddrFromBytes makes an address of its four or sixteen bytes; ok is false for any other
// length.
func AddrFromBytes(b []byte) (a flow.Addr, ok bool) {
	switch len(b) {
	case 4:
		return flow.AddrFrom4(binary.BigEndian.Uint32(b)), true
	case 16:
		return flow.AddrFrom16([16]byte(b)), true
	}
	return a, false
}

// varint reads a number of seven bits a byte from the front of b; n is how many
// bytes it had, 0 if it does not end or exceeds 64 bits.
func varint(b []byte) (v uint64, n int) {
	if len(b) > 0 && b[0] < 0x80 {
		return uint64(b[0]), 1
	}
	v, n = binary.Uvarint(b)
	return v, max(n, 0)
}

// Unmarshal reads the wire format of protocol buffers as far as FlowMessage uses
// it: numbers, lengths and what is skipped. Of a field that is there twice the
// last counts; a field of another wire type than its own is skipped. Groups, which
// version 3 does not have, are refused.
func (m *Message) Unmarshal(b []byte) error {
	for len(b) > 0 {
		tag, n := varint(b)
		if n == 0 {
			return ErrVarint
		}
		b = b[n:]
		num := tag >> 3
		if num == 0 || num > 1<<29-1 {
			return ErrTag
		}
		switch tag & 7 {
		case 0:
			v, n := varint(b)
			if n == 0 {
				return ErrVarint
			}
			b = b[n:]
			m.number(num, v)
		case 1:
			if len(b) < 8 {
				return ErrCut
			}
			b = b[8:]
		case 2:
			length, n := varint(b)
			if n == 0 {
				return ErrVarint
			}
			if length > uint64(len(b)-n) {
				return ErrCut
			}
			if err := m.text(num, b[n:n+int(length)]); err != nil {
				return err
			}
			b = b[n+int(length):]
		case 5:
			if len(b) < 4 {
				return ErrCut
			}
			b = b[4:]
		default:
			return ErrTag
		}
	}
	return nil
}

// number takes field num, a number. 32-bit fields are cut to their 32 bits as
// protocol buffers have it.
func (m *Message) number(num, v uint64) {
	v32 := uint64(uint32(v))
	switch num {
	case 1:
		m.kind = v32
	case 3:
		m.rate = v
	case 9:
		m.bytes = v
	case 10:
		m.packets = v
	case 18:
		m.inIf = v32
	case 19:
		m.outIf = v32
	case 20:
		m.proto = v32
	case 21:
		m.srcPort = v32
	case 22:
		m.dstPort = v32
	case 24:
		m.forwarding = v32
	case 26:
		m.flags = v32
	case 31:
		m.icmpType = v32
	case 32:
		m.icmpCode = v32
	case 36:
		m.fragment = v32
	case 41: // as goflow2's mapping.yaml has it, and 1.x
		m.biflow, m.hasBiflow = v32, true
	case 42: // likewise
		m.direction, m.hasDirection = v32, true
	case 70:
		m.domain = v32
	case 103: // layer_stack, not packed
		m.layer(v)
	case 110:
		m.receivedNs, m.hasReceivedNs = v, true
	case 111:
		m.startNs = v
	case 112:
		m.endNs = v
	case 2: // from here on 1.x
		m.receivedSec = v
	case 5:
		m.endSec = v
	case 38:
		m.startSec = v
	case 63:
		m.startMilli = v
	case 64:
		m.endMilli = v
	default:
		return
	}
	m.known = true
}

func (m *Message) layer(v uint64) {
	if v < 32 {
		m.layers |= 1 << v
	}
}

// text takes field num, a string of bytes.
func (m *Message) text(num uint64, b []byte) error {
	switch num {
	case 6:
		m.src, m.hasSrc = AddrFromBytes(b)
	case 7:
		m.dst, m.hasDst = AddrFromBytes(b)
	case 11:
		m.sampler, _ = AddrFromBytes(b)
	case 103: // layer_stack, packed
		for len(b) > 0 {
			v, n := varint(b)
			if n == 0 {
				return ErrVarint
			}
			m.layer(v)
			b = b[n:]
		}
	default:
		return nil
	}
	m.known = true
	return nil
}
