package ingest

import (
	"bytes"
	"container/list"

	"github.com/postern/postern/flow"
)

// Data that came before its template waits here, bounded in time, sets and bytes.

// parkedDatagram is a datagram of which at least one set waits. It counts as
// parked until the last of them is decoded or given up.
type parkedDatagram struct {
	account *flow.Account
	waiting int
	failed  bool
	reason  flow.Reject
}

// parkedSet is a data set that waits for its template.
type parkedSet struct {
	msg      message // with the times of its own message
	datagram *parkedDatagram
	id       uint16
	ordinal  int
	since    flow.Time
	data     []byte
	all      *list.Element // in Decoder.parked, oldest first
}

// cost is what p counts for: its bytes and about what it takes to hold them, so
// that empty sets are not free.
func (p *parkedSet) cost() flow.Size { return parkedCost(p.data) }

func parkedCost(b []byte) flow.Size { return flow.Size(len(b)) + 256 }

// parkSet puts a data set aside.
func (d *Decoder) parkSet(m *message, id uint16, b []byte, ordinal int) {
	size := parkedCost(b)
	if d.parked.Len() >= d.cfg.ParkSets || d.parkedBytes+size > d.cfg.ParkBytes ||
		m.ex.parkedBytes+size > d.cfg.ParkBytesPerExporter {
		d.reject(flow.RejectParkFull)
		return
	}
	if d.parking == nil {
		d.parking = &parkedDatagram{account: m.ex.account}
	}
	d.parking.waiting++
	m.ex.account.SetsParked++
	p := &parkedSet{msg: *m, datagram: d.parking, id: id, ordinal: ordinal, since: d.now, data: bytes.Clone(b)}
	d.hold(p)
}

func (d *Decoder) hold(p *parkedSet) {
	p.all = d.parked.PushBack(p)
	p.msg.dom.waiting[p.id] = append(p.msg.dom.waiting[p.id], p)
	d.parkedBytes += p.cost()
	p.msg.ex.parkedBytes += p.cost()
}

// drop takes p out of the list and the sums; its place among those waiting for
// the id is the caller's.
func (d *Decoder) drop(p *parkedSet) {
	d.parked.Remove(p.all)
	d.parkedBytes -= p.cost()
	p.msg.ex.parkedBytes -= p.cost()
}

// unpark decodes the sets that waited for id, in the order they came. Sets from
// another port of a split id go on waiting.
func (d *Decoder) unpark(m *message, id uint16, out *flow.Batch) {
	waiting := m.dom.waiting[id]
	s := m.dom.slots[id]
	if len(waiting) == 0 || s == nil || s.quarantined {
		return
	}
	delete(m.dom.waiting, id)
	reason, rejected := d.reason, d.rejected // of the datagram that brought the template
	for _, p := range waiting {
		t := s.lookup(p.msg.port)
		if t == nil {
			m.dom.waiting[id] = append(m.dom.waiting[id], p)
			continue
		}
		d.drop(p)
		d.rejected = false
		pm := p.msg
		pm.quality |= flow.QualityParked
		d.dataSet(&pm, t, p.data, p.ordinal, out)
		if d.rejected {
			p.datagram.failed, p.datagram.reason = true, d.reason
		}
		d.settleParked(p.datagram)
	}
	d.reason, d.rejected = reason, rejected
}

// settleParked counts a parked datagram as decoded or rejected once none of its
// sets waits. The datagram being decoded right now is counted by Decode.
func (d *Decoder) settleParked(p *parkedDatagram) {
	p.waiting--
	if p.waiting > 0 || p == d.parking || p.account == nil {
		return
	}
	a := &p.account.Datagrams
	a.Parked--
	if p.failed {
		a.Rejected[p.reason]++
		d.metrics.rejected(p.reason)
	} else {
		a.Decoded++
	}
}

// expireParked gives up the sets that waited too long.
func (d *Decoder) expireParked() {
	for e := d.parked.Front(); e != nil; e = d.parked.Front() {
		p := e.Value.(*parkedSet)
		if d.now.Sub(p.since) < d.cfg.ParkTime {
			return
		}
		d.drop(p)
		dom := p.msg.dom
		w := dom.waiting[p.id]
		for i, q := range w {
			if q == p {
				w = append(w[:i], w[i+1:]...)
				break
			}
		}
		if len(w) == 0 {
			delete(dom.waiting, p.id)
		} else {
			dom.waiting[p.id] = w
		}
		p.datagram.failed, p.datagram.reason = true, flow.RejectNoTemplate
		d.settleParked(p.datagram)
	}
}
