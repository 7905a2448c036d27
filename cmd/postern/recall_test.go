package main

import (
	"context"
	"errors"
	"testing"

	"github.com/postern/postern/detect"
	"github.com/postern/postern/flow"
	"github.com/postern/postern/sink"
)

// pastOf is a roll-up that knows some edges.
type pastOf struct {
	seen []sink.SeenEdge
	err  error

	asked        []sink.Pair
	from, before flow.Time
}

func (p *pastOf) recall(_ context.Context, pairs []sink.Pair, from, before flow.Time) ([]sink.SeenEdge, error) {
	p.asked, p.from, p.before = append(p.asked, pairs...), from, before
	return p.seen, p.err
}

// TestConfirm: an edge that had to be forgotten is looked for in the roll-up before anybody calls it new.
func TestConfirm(t *testing.T) {
	cfg := detect.DefaultConfig()
	cfg.Behaviour.MaxEdges = 1024
	contacts, err := detect.NewContacts(cfg, flow.NewNames(0), nil)
	if err != nil {
		t.Fatal(err)
	}
	const start = flow.Time(1_790_000_000_000) / flow.Hour * flow.Hour
	reach := func(n int, server string, port uint16, mapped bool) {
		at := start + flow.Time(n)*1000
		s := flow.Session{ID: uint64(n + 1), Conversation: uint64(n + 1), Start: at, End: at + 1000, Settled: at + 20_000, Answered: at + 100, BothWays: true, Proto: flow.ProtoTCP, HasPorts: true,
			OrientationCertainty: 98, Client: flow.SessionEnd{Addr: flow.MustParseAddr("10.0.0.1"), Port: 50000}, Server: flow.SessionEnd{Addr: flow.MustParseAddr(server), Port: port}}
		if mapped {
			s.Client.Port = 50001
		}
		rows := []flow.Session{s}
		index := flow.IndexOf(rows, nil)
		contacts.Sessions(rows, nil, &index)
	}
	reach(0, "10.9.9.9", 22, false)
	if d := contacts.Collect(start); len(d.Unsure()) != 0 {
		t.Fatalf("%d contacts are unsure before anything was forgotten", len(d.Unsure()))
	}
	for i := range 4000 {
		reach(10+i, flow.AddrFrom4(10<<24|uint32(i)).String(), 443, false)
	}
	contacts.Collect(start)
	const again = 2 * 3600
	reach(again, "10.9.9.9", 22, false)
	reach(again+1, "10.9.9.8", 22, false)
	reach(again+2, "10.9.9.7", 135, false)
	reach(again+3, "10.9.9.7", 49670, true)
	d := contacts.Collect(start)
	if len(d.Unsure()) != 4 {
		t.Fatalf("%d of 4 contacts are unsure", len(d.Unsure()))
	}
	pair := func(server string) sink.Pair {
		return sink.Pair{Client: flow.MustParseAddr("10.0.0.1"), Server: flow.MustParseAddr(server)}
	}
	past := &pastOf{seen: []sink.SeenEdge{{Pair: pair("10.9.9.9"), Service: "tcp/22", Last: start}, {Pair: pair("10.9.9.8"), Service: "tcp/445", Last: start + 1},
		{Pair: pair("10.9.9.7"), Service: "tcp/135", Last: start + 2}}}
	j := judging{past: past, remember: 30 * 24 * flow.Hour}
	if err := j.confirm(t.Context(), &d); err != nil {
		t.Fatal(err)
	}
	if len(past.asked) != 3 || past.before != start || past.from != start+2*flow.Hour-j.remember {
		t.Errorf("asked for %d pairs from %v to %v", len(past.asked), past.from, past.before)
	}
	for i, want := range []struct {
		fresh, pair bool
		known       flow.Time
	}{{false, false, start}, {true, false, 0}, {false, false, start + 2}, {false, false, start + 2}} {
		if c := &d.Contacts[i]; c.Unsure || c.New != want.fresh || c.NewPair != want.pair || c.Known != want.known {
			t.Errorf("contact %d: unsure %v, new %v, of a new pair %v, known %v; want %+v", i, c.Unsure, c.New, c.NewPair, c.Known, want)
		}
	}
	// What is handed on to another process says so as well.
	names := flow.NewNames(0)
	d.Contacts[0].Unsure = true
	if back, err := detect.DecodeDigest(d.Encode(names), names); err != nil || len(back.Unsure()) != 1 {
		t.Errorf("after a digest was read %d are unsure, %v", len(back.Unsure()), err)
	}
	past.err = errors.New("away")
	if err := j.confirm(t.Context(), &d); err == nil {
		t.Error("what could not be asked is called new")
	}
}
