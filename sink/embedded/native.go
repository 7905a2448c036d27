package embedded

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ClickHouse/ch-go/compress"
	chproto "github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2/lib/proto"
)

const (
	maxNativeConnections = 128
	nativeIdle           = time.Hour       // as a server's idle_connection_timeout
	heartbeat            = time.Second     // of progress packets while a statement runs; ch-go gives up after 3 s of nothing
	lingerTime           = 2 * time.Second // for a client to read why its connection ends
)

// nativeFront speaks ClickHouse's native protocol over TCP: each connection is a
// goroutine that runs one statement after the other. Statements go the way they go
// over HTTP; a connection has no session in the engine, so that only USE lasts
// beyond its statement.
type nativeFront struct {
	e    *Engine
	ln   net.Listener
	base context.Context // of statements

	mu       sync.Mutex
	draining bool
	conns    map[*nativeConn]bool // true while a statement runs
	running  sync.WaitGroup
}

func (e *Engine) listenNative(base context.Context) (*nativeFront, error) {
	ln, err := net.Listen("tcp", e.cfg.Native.Listen)
	if err != nil {
		return nil, fmt.Errorf("embedded ClickHouse: %w; another listen address can be set as embedded.native.listen", err)
	}
	return &nativeFront{e: e, ln: ln, base: base, conns: map[*nativeConn]bool{}}, nil
}

// serve takes connections until the listener is closed.
func (f *nativeFront) serve() {
	for {
		conn, err := f.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			f.e.log.Debug("embedded ClickHouse: a connection was not taken", "error", err)
			time.Sleep(50 * time.Millisecond) // no file descriptors, say
			continue
		}
		c := newNativeConn(f, conn)
		f.mu.Lock()
		full := len(f.conns) >= maxNativeConnections || f.draining
		if !full {
			f.conns[c] = false
			f.running.Add(1)
		}
		f.mu.Unlock()
		if full {
			f.e.refused("busy")
			c.exception(&Exception{Code: codeTooManyQueries, Message: fmt.Sprintf("Too many connections: at most %d are served (TOO_MANY_SIMULTANEOUS_QUERIES)", maxNativeConnections)})
			_ = conn.Close()
			continue
		}
		go func() {
			defer f.running.Done()
			defer func() {
				if p := recover(); p != nil { // as net/http does: one client's request must not end the collector
					f.e.log.Error("embedded ClickHouse: a native connection failed", "panic", p, "stack", string(debug.Stack()))
				}
				f.mu.Lock()
				delete(f.conns, c)
				f.mu.Unlock()
				_ = conn.Close()
			}()
			if err := c.serve(); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
				f.e.log.Debug("embedded ClickHouse: a native connection ended", "error", err)
			}
		}()
	}
}

// drain takes no further connection, ends those that wait and lets running
// statements end until ctx is done.
func (f *nativeFront) drain(ctx context.Context) {
	_ = f.ln.Close()
	f.closeConns(false)
	ended := make(chan struct{})
	go func() { f.running.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-ctx.Done():
	}
}

// close ends what drain has left; statements must have been killed.
func (f *nativeFront) close() {
	f.closeConns(true)
	f.running.Wait()
}

func (f *nativeFront) closeConns(busy bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.draining = true
	for c, runs := range f.conns {
		if busy || !runs {
			_ = c.conn.Close()
		}
	}
}

// busy notes whether c runs a statement; it is false where it should not begin one.
func (f *nativeFront) busy(c *nativeConn, runs bool) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conns[c] = runs
	return !f.draining
}

// nativeConn is one connection.
type nativeConn struct {
	front    *nativeFront
	e        *Engine
	conn     net.Conn
	wait     time.Duration // how long a read may take; negative leaves the deadline alone
	packets  packets
	unpack   *blockReader  // of the blocks of this statement, if they are compressed
	unpacked *bufio.Reader // what comes out of it
	pack     *compress.Writer

	access    access
	revision  uint64
	database  string
	compress  bool // blocks of this statement are compressed, both ways
	cancelled bool // by the client, this statement
	broken    bool // where the next packet begins is not known

	mu  sync.Mutex // of writing
	out chproto.Buffer
}

func newNativeConn(f *nativeFront, conn net.Conn) *nativeConn {
	c := &nativeConn{front: f, e: f.e, conn: conn, wait: 10 * time.Second}
	c.packets.in = bufio.NewReaderSize(c, 256<<10)
	return c
}

// Read reads from the connection within the time that is given at present.
func (c *nativeConn) Read(p []byte) (int, error) {
	if c.wait >= 0 {
		_ = c.conn.SetReadDeadline(time.Now().Add(c.wait))
	}
	return c.conn.Read(p)
}

// send writes what put puts together.
func (c *nativeConn) send(put func(b *chproto.Buffer) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.Reset()
	if err := put(&c.out); err != nil {
		return err
	}
	// A reader that stands still would hold the connection and its turn for ever.
	_ = c.conn.SetWriteDeadline(time.Now().Add(c.e.patience))
	_, err := c.conn.Write(c.out.Buf)
	if cap(c.out.Buf) > spillAbove { // one large block must not be kept by each of many connections
		c.out.Buf = nil
	}
	return err
}

func (c *nativeConn) sendCode(code chproto.ServerCode) error {
	return c.send(func(b *chproto.Buffer) error { code.Encode(b); return nil })
}

// exception tells what went wrong; what cannot be told any more is not.
func (c *nativeConn) exception(err error) {
	ex := (*Exception)(nil)
	if !errors.As(err, &ex) {
		ex = &Exception{Code: codeUnknownException, Message: err.Error()}
		c.e.log.Error("embedded ClickHouse: a statement failed", "error", err)
	}
	_ = c.send(func(b *chproto.Buffer) error {
		chproto.ServerCodeException.Encode(b)
		e := chproto.Exception{Code: chproto.Error(ex.Code), Name: "DB::Exception", Message: "DB::Exception: " + ex.Message}
		e.EncodeAware(b, int(c.revision))
		return nil
	})
}

// bye ends a connection behind an exception. A connection closed on data that
// nobody has read would take the exception with it, so what comes is read for a while.
func (c *nativeConn) bye(err error) error {
	c.exception(err)
	if half, ok := c.conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		_ = c.conn.SetReadDeadline(time.Now().Add(lingerTime))
		_, _ = io.Copy(io.Discard, io.LimitReader(c.conn, int64(c.e.cfg.MaxInsertSize)))
	}
	return err
}

func (c *nativeConn) serve() error {
	if err := c.hello(); err != nil {
		return err
	}
	for {
		c.wait = nativeIdle
		first, err := c.packets.in.Peek(1)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		c.wait = c.e.patience
		switch first[0] { // a uvarint below 128
		case clientPing:
			_ = c.packets.skip(1)
			err = c.sendCode(chproto.ServerCodePong)
		case clientCancel: // of what has ended already
			err = c.packets.skip(1)
		case clientData: // what is left of an insert that was refused
			_, err = c.block(&discard{left: int64(c.e.cfg.MaxInsertSize)})
		case clientQuery:
			_ = c.packets.skip(1)
			if !c.front.busy(c, true) {
				return nil
			}
			err = c.query()
			if !c.front.busy(c, false) {
				return err
			}
		default:
			c.e.refused("request")
			return c.bye(badRequest("packet %d is not known to the native protocol of the embedded ClickHouse", first[0]))
		}
		if err != nil {
			return err
		}
	}
}

func (c *nativeConn) hello() error {
	first, err := c.packets.in.Peek(1)
	if err != nil {
		return err
	}
	switch {
	case first[0] == 'G' || first[0] == 'P':
		const text = "This port speaks ClickHouse's native protocol; HTTP is on embedded.listen.\n"
		_, err := fmt.Fprintf(c.conn, "HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
		return err
	case first[0] != clientHello:
		c.e.refused("request")
		return fmt.Errorf("a connection began with %#x, which is no hello", first[0])
	}
	_ = c.packets.skip(1)
	h, err := c.packets.hello()
	if err != nil {
		c.e.refused("request")
		return c.bye(badRequest("the client's hello cannot be read: %v", err))
	}
	c.revision, c.database = min(h.revision, revisionServer), h.database
	if h.revision < revisionOldest {
		c.e.refused("request")
		return c.bye(&Exception{Code: codeNotImplemented, Message: fmt.Sprintf("the client speaks revision %d of the native protocol; %d or later is needed (NOT_IMPLEMENTED)", h.revision, revisionOldest)})
	}
	if c.access = c.e.authorize(h.pass); c.access == accessNone {
		c.e.refused("auth")
		return c.bye(&Exception{Code: codeAuthentication, Message: "Authentication failed: the token is missing or wrong; send it as the password. (AUTHENTICATION_FAILED)"})
	}
	var version [3]int
	for i, part := range strings.SplitN(c.e.version, ".", 4)[:min(3, strings.Count(c.e.version, ".")+1)] {
		version[i], _ = strconv.Atoi(part)
	}
	answer := chproto.ServerHello{Name: "ClickHouse", Major: version[0], Minor: version[1], Patch: version[2],
		Revision: revisionServer, Timezone: "UTC", DisplayName: "postern-embedded"}
	if err := c.send(func(b *chproto.Buffer) error { answer.EncodeAware(b, int(c.revision)); return nil }); err != nil {
		return err
	}
	if c.revision >= revisionAddendum {
		c.packets.left = maxName
		_, err = c.packets.text(maxName) // the quota key
	}
	return err
}

// query runs a statement and answers. An error means that the connection is over.
func (c *nativeConn) query() error {
	p, err := c.packets.query(c.revision)
	if err != nil {
		c.e.refused("request")
		return c.bye(badRequest("the query cannot be read: %v", err))
	}
	c.compress, c.unpack, c.unpacked = p.compress, nil, nil
	c.cancelled, c.broken = false, false
	external := false
	for { // external tables, up to a block without columns
		columns, err := c.block(&discard{left: int64(c.e.cfg.MaxInsertSize)})
		if err != nil {
			c.e.refused("request")
			return c.bye(bodyError(err))
		}
		if columns == 0 {
			break
		}
		external = true
	}
	if external {
		c.e.refused("request")
		c.exception(&Exception{Code: codeNotImplemented, Message: "the embedded ClickHouse takes no external tables; put the values into the query or into a table (NOT_IMPLEMENTED)"})
		return nil
	}
	q := request{access: c.access, database: c.database, format: "Native", revision: c.revision, method: "LZ4", tellDuplicate: true}
	for _, s := range p.settings {
		if !s.important && !c.e.names[s.name] {
			continue // a newer client's; it does not mind
		}
		if s.name == "network_compression_method" {
			q.method = strings.ToUpper(s.value)
		}
		q.settings = append(q.settings, s.param)
	}
	for _, s := range p.params {
		q.params = append(q.params, s.param)
	}
	c.pack = nil
	if c.compress {
		c.pack = compress.NewWriter(0, compressMethod(q.method))
	}
	ctx, cancel := context.WithCancel(c.front.base)
	defer cancel()
	c.e.running.Add(1)
	err = c.run(ctx, cancel, q, p.text)
	c.e.running.Done()
	switch {
	case c.cancelled:
		err = c.sendCode(chproto.ServerCodeEndOfStream)
	case err != nil && c.broken:
		return c.bye(err)
	case err != nil:
		c.exception(err)
		err = nil
	}
	return err
}

// run runs a statement up to the end of its stream.
func (c *nativeConn) run(ctx context.Context, cancel context.CancelFunc, q request, text string) error {
	if err := c.e.checkSettings(q); err != nil {
		return err
	}
	st := parseStatement(text)
	if err := c.e.checkStatement(q, st); err != nil {
		return err
	}
	out := &nativeResult{c: c, q: q}
	if st.insertData {
		stat, err := c.insert(ctx, cancel, q, st)
		if err != nil {
			return err
		}
		out.inserted = true
		return out.end(stat)
	}
	// The client formats what it shows; results travel as Native.
	text = st.withoutFormat(text, c.e.formats)
	st.format = ""
	stop := c.watch(cancel)
	err := c.e.query(ctx, q, text, st, out)
	if err == nil && !out.begun && readOnlyVerbs[st.verb] {
		err = c.emptyResult(ctx, q, st, text)
	}
	stop()
	if err != nil {
		return err
	}
	if st.verb == "USE" {
		_, name, _ := strings.Cut(strings.TrimSpace(strings.TrimRight(text, "; \t\r\n")), " ")
		c.database = unquote(strings.TrimSpace(name))
	}
	return out.end(out.stat)
}

// watch waits for the client to cancel the statement or to go, and keeps it from
// giving up, until the returned function is called. Nothing else may read meanwhile.
func (c *nativeConn) watch(cancel context.CancelFunc) (stop func()) {
	c.wait = -1
	_ = c.conn.SetReadDeadline(time.Time{})
	quiet, over, idle := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(quiet)
		first, err := c.packets.in.Peek(1)
		var timeout net.Error
		switch {
		case errors.As(err, &timeout) && timeout.Timeout(): // stop's doing
		case err != nil:
			cancel()
		case first[0] == clientCancel:
			_ = c.packets.skip(1)
			c.cancelled = true
			cancel()
		}
	}()
	go func() {
		defer close(idle)
		tick := time.NewTicker(heartbeat)
		defer tick.Stop()
		for {
			select {
			case <-over:
				return
			case <-tick.C:
				_ = c.send(func(b *chproto.Buffer) error {
					c.progress(b, statistics{})
					return nil
				})
			}
		}
	}()
	return func() {
		close(over)
		<-idle
		_ = c.conn.SetReadDeadline(time.Unix(1, 0))
		<-quiet
		c.wait = c.e.patience
	}
}

func (c *nativeConn) progress(b *chproto.Buffer, stat statistics) {
	chproto.ServerCodeProgress.Encode(b)
	chproto.Progress{Rows: stat.rowsRead, Bytes: stat.bytesRead, WroteRows: stat.rowsWritten, WroteBytes: stat.bytesWritten}.EncodeAware(b, int(c.revision))
}

// block reads a data packet into w and returns how many columns it has.
func (c *nativeConn) block(w io.Writer) (columns uint64, err error) {
	code, err := c.packets.uvarint()
	if err != nil {
		return 0, err
	}
	if code != clientData {
		return 0, fmt.Errorf("packet %d where data was expected", code)
	}
	c.packets.left = maxName
	if _, err := c.packets.text(maxName); err != nil { // the name of an external table
		return 0, err
	}
	in := c.packets.in
	if c.compress {
		if c.unpack == nil {
			c.unpack = newBlockReader(c.packets.in)
			c.unpacked = bufio.NewReaderSize(c.unpack, 64<<10)
		}
		in = c.unpacked
	}
	copier := blockCopy{in: in, out: bufio.NewWriterSize(w, 64<<10), revision: c.revision}
	if columns, _, err = copier.next(); err != nil {
		return 0, err
	}
	if c.compress && (c.unpacked.Buffered() > 0 || len(c.unpack.rest) > 0) {
		return 0, errors.New("a compressed block holds more than the block of a data packet")
	}
	return columns, nil
}

// discard is where blocks go that nobody wants.
type discard struct{ left int64 }

func (d *discard) Write(p []byte) (int, error) {
	if d.left -= int64(len(p)); d.left < 0 {
		return 0, errTooBig
	}
	return len(p), nil
}

// insert stores what stands in the text, or asks the client for rows and stores those.
func (c *nativeConn) insert(ctx context.Context, cancel context.CancelFunc, q request, st statement) (stat statistics, err error) {
	stop := func() {}
	defer func() { stop() }()
	if strings.Trim(st.data, " \t\r\n;") != "" {
		stop = c.watch(cancel)
		return c.e.insert(ctx, q, st.head, st.format, func(w io.Writer) error {
			_, err := io.WriteString(w, st.data)
			return err
		})
	}
	names, types, err := c.insertColumns(ctx, q, st.head)
	if err != nil {
		return stat, err
	}
	if err := c.sendHeader(names, types); err != nil {
		return stat, err
	}
	// The client may take its time to collect rows; a turn is taken once it has.
	c.wait = nativeIdle
	if _, err := c.packets.in.Peek(1); err != nil {
		c.broken = true
		return stat, bodyError(err)
	}
	c.wait = c.e.patience
	return c.e.insert(ctx, q, st.head, "Native", func(w io.Writer) error {
		for {
			if first, err := c.packets.in.Peek(1); err == nil && first[0] == clientCancel {
				c.cancelled = true
				_ = c.packets.skip(1)
				return &Exception{Code: codeQueryCancelled, Message: "Query was cancelled (QUERY_WAS_CANCELLED)"}
			}
			columns, err := c.block(w)
			if err != nil {
				c.broken = true
				return err
			}
			if columns == 0 {
				stop = c.watch(cancel)
				return nil
			}
			if c.revision >= revisionInsertEvents {
				if err := c.send(func(b *chproto.Buffer) error { encodeEvents(b, c.revision); return nil }); err != nil {
					c.broken = true
					return err
				}
			}
		}
	})
}

// insertColumns asks the engine for the columns an INSERT takes.
func (c *nativeConn) insertColumns(ctx context.Context, q request, head string) (names, types []string, err error) {
	target, listed, err := insertTarget(head)
	if err != nil {
		return nil, nil, err
	}
	rows, err := c.ask(ctx, q, "DESCRIBE TABLE "+target, "TabSeparated")
	if err != nil {
		return nil, nil, err
	}
	of := map[string]string{}
	for _, row := range rows {
		of[row[0]] = row[1]
		if listed == nil && (row[2] == "" || row[2] == "DEFAULT") {
			names, types = append(names, row[0]), append(types, row[1])
		}
	}
	for _, name := range listed {
		kind, ok := of[name]
		if !ok {
			return nil, nil, &Exception{Code: codeNoSuchColumn, Message: fmt.Sprintf("No such column %s in table %s (NO_SUCH_COLUMN_IN_TABLE)", name, target)}
		}
		names, types = append(names, name), append(types, kind)
	}
	return names, types, nil
}

// emptyResult sends the columns of a result without rows: the engine hands out no
// block of it.
func (c *nativeConn) emptyResult(ctx context.Context, q request, st statement, text string) error {
	text = strings.TrimRight(text, "; \t\r\n")
	var names, types []string
	switch st.verb {
	case "SELECT", "WITH", "FROM":
		rows, err := c.ask(ctx, q, "DESCRIBE TABLE (\n"+text+"\n)", "TabSeparated")
		if err != nil {
			return err
		}
		for _, r := range rows {
			names, types = append(names, r[0]), append(types, r[1])
		}
	default:
		rows, err := c.ask(ctx, q, text, "TabSeparatedWithNamesAndTypes")
		if err != nil || len(rows) < 2 {
			return err
		}
		names, types = rows[0], rows[1]
	}
	return c.sendHeader(names, types)
}

// ask runs a statement of ours with the client's rights and returns its rows. format
// is a TabSeparated one.
func (c *nativeConn) ask(ctx context.Context, q request, text, format string) ([][]string, error) {
	q.format = format
	var out collected
	if err := c.e.query(ctx, q, text, parseStatement(text), &out); err != nil {
		return nil, err
	}
	var rows [][]string
	for line := range strings.Lines(out.String()) {
		row := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		for i, field := range row {
			row[i] = unquote("'" + field + "'") // the escapes are those of a literal
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// collected is a small result in memory.
type collected struct{ bytes.Buffer }

func (c *collected) total(statistics)     {}
func (c *collected) close() error         { return nil }
func (c *collected) write(b []byte) error { _, err := c.Write(b); return err }

// sendHeader sends a block of columns without rows.
func (c *nativeConn) sendHeader(names, types []string) error {
	var b chproto.Buffer
	encodeHeader(&b, names, types, c.revision)
	return c.sendBlock(chproto.ServerCodeData, b.Buf)
}

func (c *nativeConn) sendBlock(code chproto.ServerCode, block []byte) error {
	return c.send(func(b *chproto.Buffer) error {
		code.Encode(b)
		b.PutString("") // the name of a table
		if c.pack == nil || !code.Compressible() {
			b.PutRaw(block)
			return nil
		}
		for part := range slices.Chunk(block, 1<<20) {
			if err := c.pack.Compress(part); err != nil {
				return err
			}
			b.PutRaw(c.pack.Data)
		}
		return nil
	})
}

// nativeResult sends a result as data packets.
type nativeResult struct {
	c     *nativeConn
	q     request
	begun bool
	stat  statistics
	frame chproto.Buffer

	inserted bool // there is no result: rows came from the client

	rows, blocks, size uint64
}

func (o *nativeResult) total(stat statistics) { o.stat = stat }

func (o *nativeResult) write(b []byte) error {
	o.frame.Reset()
	err := reframe(&o.frame, b, o.q.revision, func(block *proto.Block) error {
		if !o.begun {
			o.begun = true
			names, types := columnsOf(block)
			if err := o.c.sendHeader(names, types); err != nil {
				return err
			}
		}
		o.rows, o.blocks, o.size = o.rows+uint64(block.Rows()), o.blocks+1, o.size+uint64(len(o.frame.Buf))
		err := o.c.sendBlock(chproto.ServerCodeData, o.frame.Buf)
		o.frame.Reset()
		return err
	})
	var gone net.Error
	if err == nil || errors.As(err, &gone) {
		return err
	}
	return &Exception{Code: codeNotImplemented, Message: err.Error() + " (NOT_IMPLEMENTED)"}
}

func (o *nativeResult) close() error { return nil }

// end sends what stands behind the last block.
func (o *nativeResult) end(stat statistics) error {
	return o.c.send(func(b *chproto.Buffer) error {
		switch {
		case stat.duplicate && o.c.revision >= revisionProfileEvents:
			encodeEvents(b, o.c.revision, "DuplicatedInsertedBlocks")
		case o.inserted && o.c.revision >= revisionInsertEvents:
			encodeEvents(b, o.c.revision)
		}
		if o.begun {
			chproto.Profile{Rows: o.rows, Blocks: o.blocks, Bytes: o.size}.EncodeAware(b, int(o.c.revision))
		}
		o.c.progress(b, stat)
		chproto.ServerCodeEndOfStream.Encode(b)
		return nil
	})
}

// encodeEvents puts down a packet of what was counted, once each, while a statement ran.
func encodeEvents(b *chproto.Buffer, revision uint64, names ...string) {
	chproto.ServerProfileEvents.Encode(b)
	b.PutString("")
	encodeBlockHead(b, 6, len(names), revision)
	column := func(name, kind string, put func(event string)) {
		b.PutString(name)
		b.PutString(kind)
		if revision >= revisionCustom {
			b.PutBool(false)
		}
		for _, n := range names {
			put(n)
		}
	}
	column("host_name", "String", func(string) { b.PutString("postern-embedded") })
	column("current_time", "DateTime", func(string) { b.PutUInt32(uint32(time.Now().Unix())) })
	column("thread_id", "UInt64", func(string) { b.PutUInt64(0) })
	column("type", "Enum8('increment' = 1, 'gauge' = 2)", func(string) { b.PutInt8(int8(chproto.ProfileIncrement)) })
	column("name", "String", func(n string) { b.PutString(n) })
	column("value", "Int64", func(string) { b.PutInt64(1) })
}
