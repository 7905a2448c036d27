package embedded

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Revisions of the native protocol (ClickHouse's src/Core/ProtocolDefines.h) at which
// packets changed.
const (
	// The revision this front speaks: what ch-go and clickhouse-go know, too. From
	// 54470 on packets may be cut into chunks and from 54475 on there are further
	// fields; a newer client comes down to this.
	revisionServer = 54460
	// Settings are strings from here on; clients of before 2020 are refused.
	revisionOldest = 54429

	revisionSecret        = 54441
	revisionTelemetry     = 54442
	revisionDepth         = 54448
	revisionQueryTime     = 54449
	revisionProfileEvents = 54451
	revisionReplicas      = 54453
	revisionCustom        = 54454 // a column says whether it is serialized in an own way
	revisionInsertEvents  = 54456 // each block of an insert is answered by events
	revisionAddendum      = 54458
	revisionParams        = 54459
)

// What a client may send (src/Core/Protocol.h).
const (
	clientHello  = 0
	clientQuery  = 1
	clientData   = 2
	clientCancel = 3
	clientPing   = 4
)

const (
	maxName   = 64 << 10 // bytes of any text but a statement's and a setting's value
	maxPacket = 8 << 20  // bytes of a hello's or a query's texts together
)

// packets reads the fields of packets. Whatever lengths and counts a peer names are
// held to a limit before anything is made for them.
type packets struct {
	in   *bufio.Reader
	left int // bytes of text the packet may still hold
}

func (p *packets) uvarint() (uint64, error) {
	v, err := binary.ReadUvarint(p.in)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return v, err
}

func (p *packets) skip(n int) error {
	_, err := p.in.Discard(n)
	return err
}

func (p *packets) text(limit int) (string, error) {
	n, err := p.uvarint()
	if err != nil {
		return "", err
	}
	if n > uint64(min(limit, p.left)) {
		return "", fmt.Errorf("a text of %d bytes where at most %d are taken", n, min(limit, p.left))
	}
	p.left -= int(n)
	b := make([]byte, n)
	_, err = io.ReadFull(p.in, b)
	return string(b), err
}

// steps runs one step after the other until one fails.
type steps struct {
	p   *packets
	err error
}

func (s *steps) text(limit int) (v string) {
	if s.err == nil {
		v, s.err = s.p.text(limit)
	}
	return v
}

func (s *steps) number() (v uint64) {
	if s.err == nil {
		v, s.err = s.p.uvarint()
	}
	return v
}

func (s *steps) byte() (v byte) {
	if s.err == nil {
		v, s.err = s.p.in.ReadByte()
	}
	return v
}

func (s *steps) skip(n int) {
	if s.err == nil {
		s.err = s.p.skip(n)
	}
}

// hello is how a client begins.
type hello struct {
	client               string
	revision             uint64
	database, user, pass string
}

// hello reads what follows the code of a client's hello.
func (p *packets) hello() (hello, error) {
	p.left = maxName
	s := steps{p: p}
	var h hello
	h.client = s.text(maxName)
	s.number() // the client's version
	s.number()
	h.revision = s.number()
	h.database, h.user, h.pass = s.text(maxName), s.text(maxName), s.text(maxName)
	return h, s.err
}

// nativeQuery is a query packet.
type nativeQuery struct {
	text             string
	compress         bool
	settings, params []nativeSetting
}

type nativeSetting struct {
	param
	important bool // the server is to refuse it where it does not know it
}

// query reads what follows the code of a query.
func (p *packets) query(revision uint64) (nativeQuery, error) {
	p.left = maxPacket
	s := steps{p: p}
	var q nativeQuery
	s.text(maxName)                  // the query's id
	if kind := s.byte(); kind != 0 { // who asks
		for range 3 { // user, query and address at the first of several servers
			s.text(maxName)
		}
		if revision >= revisionQueryTime {
			s.skip(8)
		}
		if by := s.byte(); s.err == nil && by != 1 {
			return q, fmt.Errorf("a query that came to its sender by interface %d; only clients' own are taken", by)
		}
		for range 3 { // user, host and name of the client
			s.text(maxName)
		}
		for range 3 { // its version and revision
			s.number()
		}
		s.text(maxName) // quota key
		if revision >= revisionDepth {
			s.number()
		}
		s.number() // patch of its version
		if revision >= revisionTelemetry && s.byte() == 1 {
			s.skip(16 + 8)
			s.text(maxName)
			s.skip(1)
		}
		if revision >= revisionReplicas {
			for range 3 {
				s.number()
			}
		}
	}
	q.settings = s.list()
	if revision >= revisionSecret {
		s.text(maxName)
	}
	if stage := s.number(); s.err == nil && stage != 2 {
		return q, fmt.Errorf("a query up to stage %d; only whole ones are run", stage)
	}
	switch c := s.number(); {
	case s.err != nil:
	case c > 1:
		return q, fmt.Errorf("compression %d where 0 or 1 was expected", c)
	default:
		q.compress = c == 1
	}
	q.text = s.text(maxQuery)
	if revision >= revisionParams {
		q.params = s.list()
	}
	return q, s.err
}

// list reads settings or parameters up to the empty name.
func (s *steps) list() (out []nativeSetting) {
	for s.err == nil {
		name := s.text(maxName)
		if name == "" {
			return out
		}
		flags := s.number()
		value := s.text(maxQuery)
		if len(out) == maxParams {
			s.err = fmt.Errorf("more than %d settings or parameters", maxParams)
			return nil
		}
		if flags&2 != 0 { // written as a literal
			value = unquote(value)
		}
		out = append(out, nativeSetting{param{name, value}, flags&1 != 0})
	}
	return nil
}

// unquote is what a literal in quotes stands for; what has none stands for itself.
func unquote(v string) string {
	if len(v) < 2 || !strings.ContainsRune("'`\"", rune(v[0])) || v[len(v)-1] != v[0] {
		return v
	}
	var b strings.Builder
	for i := 1; i < len(v)-1; i++ {
		c := v[i]
		if c == v[0] && v[i+1] == c {
			i++ // doubled
		}
		if c == '\\' && i+1 < len(v)-1 {
			i++
			switch v[i] {
			case 'n':
				c = '\n'
			case 'r':
				c = '\r'
			case 't':
				c = '\t'
			case 'b':
				c = '\b'
			case 'f':
				c = '\f'
			case '0':
				c = 0
			default:
				c = v[i]
			}
		}
		b.WriteByte(c)
	}
	return b.String()
}
