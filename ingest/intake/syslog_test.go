package intake

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"runtime/pprof"
	"strings"
	"testing"
	"time"
)

func (r *rig) dialSyslog() net.Conn {
	r.Helper()
	c, err := net.Dial("tcp", r.in.SyslogAddrs()[0])
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { c.Close() })
	return c
}

// TestSyslogAnnounced: a frame takes memory as it comes, not as it is announced.
func TestSyslogAnnounced(t *testing.T) {
	const limit = 64 << 20
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err := frames(t.Context(), strings.NewReader(fmt.Sprintf("%d <134>", limit)), limit, func([]byte) { t.Error("there is no message") })
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; !errors.Is(err, io.ErrUnexpectedEOF) || took > 1<<20 {
		t.Errorf("%v after %d bytes of memory", err, took)
	}
	// What is long comes whole.
	long := bytes.Repeat([]byte("0123456789"), 100_000)
	for _, n := range []int{1, 64 << 10, 64<<10 + 1, len(long)} {
		var got []byte
		if err := frames(t.Context(), io.MultiReader(strings.NewReader(fmt.Sprintf("%d ", n)), bytes.NewReader(long[:n])), limit, func(m []byte) { got = m }); !errors.Is(err, io.EOF) || !bytes.Equal(got, long[:n]) {
			t.Errorf("%d bytes: %v, %d came", n, err, len(got))
		}
	}
}

// TestSyslogLeavesNothing: a connection whose messages are not taken ends with everything that
// served it.
func TestSyslogLeavesNothing(t *testing.T) {
	r, s := newEventRig(t, nil)
	r.cfg.Syslog = []SyslogConfig{{Listen: "127.0.0.1:0", Events: "vpn"}}
	s.failing(errors.New("no room"))
	r.start()
	c := r.dialSyslog()
	line := "<134>1 2026-10-02T15:04:05Z nas radius - - - " + jsonLine("Start", 1) + "\n"
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	for err := error(nil); err == nil; {
		_, err = io.WriteString(c, strings.Repeat(line, 1000))
	}
	var stacks strings.Builder
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		stacks.Reset()
		if err := pprof.Lookup("goroutine").WriteTo(&stacks, 2); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(stacks.String(), "intake.frames") {
			return
		}
	}
	t.Errorf("something still reads:\n%s", stacks.String())
}

// TestSyslogStopsWithoutRoom: what finds no room does not keep the process from ending.
func TestSyslogStopsWithoutRoom(t *testing.T) {
	r := newRig(t, func(c *Config) {
		c.Syslog = []SyslogConfig{{Listen: "127.0.0.1:0", Format: "zeek"}}
	})
	r.start()
	r.full.Store(true)
	c := r.dialSyslog()
	if _, err := io.WriteString(c, strings.Repeat("<134>1 2026-10-02T15:04:05Z zeek-1 zeek 12 - - "+conn(1)+"\n", 1000)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * syslogEvery)
	began := time.Now()
	ended := make(chan struct{})
	go func() { r.stop(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(syslogLast + 5*time.Second):
		r.full.Store(false)
		t.Errorf("it waits for room after %v", time.Since(began))
		<-ended
	}
}
