package sink

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"testing"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/postern/postern/flow"
)

// nativeServer is no ClickHouse: it speaks just enough of the native protocol (revision
// 54450, before addenda) to take one insert, and holds what the client sent
// against what it must send. No server of that protocol is at hand for tests, so
// this shows the bytes on the wire, not that a server stores them.
func nativeServer(conn net.Conn, columns proto.Input, want []byte) (body string, settings map[string]string, err error) {
	const revision = 54450
	r, b := proto.NewReader(conn), new(proto.Buffer)
	flush := func() {
		if _, e := conn.Write(b.Buf); err == nil {
			err = e
		}
		b.Reset()
	}
	packet := func(want proto.ClientCode) error {
		n, err := r.UVarInt()
		if err == nil && proto.ClientCode(n) != want {
			err = fmt.Errorf("packet %v, want %v", proto.ClientCode(n), want)
		}
		return err
	}
	var hello proto.ClientHello
	var q proto.Query
	var data proto.ClientData
	var blank proto.Block
	if err := errors.Join(packet(proto.ClientCodeHello), hello.Decode(r)); err != nil {
		return "", nil, err
	}
	server := proto.ServerHello{Name: "test", Revision: revision, Timezone: "UTC"}
	server.EncodeAware(b, revision)
	flush()
	if err := errors.Join(packet(proto.ClientCodeQuery), q.DecodeAware(r, revision)); err != nil {
		return "", nil, err
	}
	if err := errors.Join(packet(proto.ClientCodeData), data.DecodeAware(r, revision), blank.DecodeBlock(r, revision, nil)); err != nil {
		return "", nil, err
	}
	proto.ServerCodeData.Encode(b)
	b.PutString("")
	if err := (proto.Block{Columns: len(columns)}).EncodeBlock(b, revision, columns); err != nil {
		return "", nil, err
	}
	flush()
	if err := errors.Join(packet(proto.ClientCodeData), data.DecodeAware(r, revision)); err != nil {
		return "", nil, err
	}
	got := make([]byte, len(want))
	if err := r.ReadFull(got); err != nil {
		return "", nil, err
	}
	if !bytes.Equal(got, want) {
		return "", nil, errors.New("the block on the wire is not the block that was encoded")
	}
	if err := errors.Join(packet(proto.ClientCodeData), data.DecodeAware(r, revision), blank.DecodeBlock(r, revision, nil)); err != nil {
		return "", nil, err
	}
	proto.ServerCodeEndOfStream.Encode(b)
	flush()
	settings = map[string]string{}
	for _, s := range q.Settings {
		settings[s.Key] = s.Value
	}
	return q.Body, settings, err
}

func TestNativeFraming(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := DefaultClickHouseConfig()
	cfg.URL = "clickhouse://" + l.Addr().String()
	db := &ClickHouse{cfg: cfg, log: slog.New(slog.DiscardHandler), metrics: newClickHouseMetrics()}
	db.options = clickhouse.Options{Protocol: clickhouse.Native, Addr: []string{l.Addr().String()}, Auth: clickhouse.Auth{Username: "u", Password: "p"}}
	names := flow.NewNames(0)
	w := NewFlowWriter(names)
	w.Bind(db)
	w.AppendRecords(randomRecords(rand.New(rand.NewPCG(1, 1)), names, 1000))
	ins := insertNo(1)
	w.cols.seal(w.rows, ins)
	var want proto.Buffer
	if err := (proto.Block{Info: proto.BlockInfo{BucketNum: -1}, Columns: len(w.input), Rows: w.rows}).EncodeBlock(&want, 54450, w.input); err != nil {
		t.Fatal(err)
	}
	type answer struct {
		body     string
		settings map[string]string
		err      error
	}
	answers := make(chan answer, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			answers <- answer{err: err}
			return
		}
		defer conn.Close()
		var a answer
		a.body, a.settings, a.err = nativeServer(conn, NewFlowWriter(names).input, want.Buf)
		answers <- a
	}()
	done, err := w.Flush(t.Context(), ins)
	a := <-answers
	if a.err != nil {
		t.Fatal(a.err)
	}
	if err != nil || done.Rows != 1000 {
		t.Fatalf("wrote %+v, %v", done, err)
	}
	if !strings.HasPrefix(a.body, "INSERT INTO postern.flows (time_start, time_end,") || !strings.HasSuffix(a.body, ") VALUES") {
		t.Errorf("statement %q", a.body)
	}
	for k, v := range insertSettings(ins.token()) {
		if a.settings[k] != v {
			t.Errorf("setting %s is %q, want %q", k, a.settings[k], v)
		}
	}
	db.dropRaw()
}
