package kafka

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	kgo "github.com/segmentio/kafka-go"
)

func recordOf(m Message) Record {
	return Record{Key: m.Key, Value: m.Value, Headers: m.Headers}
}

func TestDeadLetterRoundTrip(t *testing.T) {
	for _, d := range []DeadLetter{
		{Topic: "flows", Partition: 3, Offset: 1 << 40, Time: time.UnixMilli(1700000000123).UTC(), Key: []byte("k"), Value: []byte{0, 255}, Reason: "no protobuf: field 3 is cut off",
			Headers: []kgo.Header{{Key: "agent", Value: []byte("x")}, {Key: "agent", Value: nil}}},
		{Topic: "flows", Partition: 0, Offset: 0, Value: nil, Key: nil, Reason: ""},
		{Topic: "flows", Partition: 0, Offset: 0, Value: []byte{}, Key: []byte{}, Cut: 7},
	} {
		got, err := ParseDeadLetter(recordOf(d.Message()))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(d, got); diff != "" {
			t.Error(diff)
		}
	}
}

func TestDeadLetterReason(t *testing.T) {
	d := DeadLetter{Topic: "t", Reason: strings.Repeat("ü", 600) + "\xff"}
	got, err := ParseDeadLetter(recordOf(d.Message()))
	if err != nil || len(got.Reason) > maxReason || !utf8.ValidString(got.Reason) || len(got.Reason) < maxReason-4 {
		t.Errorf("%d bytes, %v", len(got.Reason), err)
	}
	// A value's own headers cannot pretend to be ours.
	d = DeadLetter{Topic: "t", Partition: 1, Headers: []kgo.Header{{Key: headerTopic, Value: []byte("elsewhere")}}}
	if got, err := ParseDeadLetter(recordOf(d.Message())); err != nil || got.Topic != "t" || len(got.Headers) != 0 {
		t.Errorf("%+v %v", got, err)
	}
}

func TestParseDeadLetterRefuses(t *testing.T) {
	good := DeadLetter{Topic: "t", Partition: 1, Offset: 2, Time: time.UnixMilli(5)}.Message().Headers
	if _, err := ParseDeadLetter(Record{Value: []byte("x")}); err == nil {
		t.Error("a message without headers is a dead letter")
	}
	for _, key := range []string{headerTopic, headerPartition, headerOffset, headerTime} {
		for _, value := range []string{"-1", "", "9223372036854775808", "a b", "1e9"} {
			var h []kgo.Header
			for _, x := range good {
				if x.Key == key {
					x.Value = []byte(value)
				}
				h = append(h, x)
			}
			if key == headerTopic && (value == "-1" || value == "9223372036854775808" || value == "1e9") {
				continue // names of topics
			}
			if d, err := ParseDeadLetter(Record{Headers: h}); err == nil {
				t.Errorf("%s: %q gives %+v", key, value, d)
			}
		}
	}
}

func TestDeadLetterShorten(t *testing.T) {
	whole := DeadLetter{Topic: "t", Key: bytes.Repeat([]byte("k"), 3000), Value: bytes.Repeat([]byte("v"), 3000), Headers: []kgo.Header{{Key: "h", Value: bytes.Repeat([]byte("h"), 3000)}}, Reason: "r"}
	for _, most := range []int{20000, 9000, 7000, 5000, 3500, 2000, 1000, 500} {
		d := whole.shorten(most)
		m := d.Message()
		if m.size() > most {
			t.Errorf("%d bytes, at most %d", m.size(), most)
		}
		kept := len(d.Key) + len(d.Value)
		for _, h := range d.Headers {
			kept += len(h.Key) + len(h.Value)
		}
		if d.Cut != 9001-kept {
			t.Errorf("%d: %d cut, %d kept", most, d.Cut, kept)
		}
		if most == 20000 && d.Cut != 0 || most < 9000 && d.Cut == 0 {
			t.Errorf("%d: %d cut", most, d.Cut)
		}
	}
	if len(whole.Value) != 3000 {
		t.Error("the original changed")
	}
	c := mustOpen(t, testConfig(), Options{})
	if _, err := c.ReplayDead(t.Context(), whole.shorten(500)); err == nil || !strings.Contains(err.Error(), "was cut") {
		t.Errorf("a cut letter is replayed: %v", err)
	}
}

func FuzzParseDeadLetter(f *testing.F) {
	f.Add("topic", "3", "4", "1700000000000", "0", "reason", []byte("value"))
	f.Add("", "-1", "", "x", "9", "\xff", []byte(nil))
	f.Fuzz(func(t *testing.T, topic, partition, offset, at, cut, reason string, value []byte) {
		h := func(k, v string) kgo.Header { return kgo.Header{Key: k, Value: []byte(v)} }
		d, err := ParseDeadLetter(Record{Value: value, Headers: []kgo.Header{
			h(headerTopic, topic), h(headerPartition, partition), h(headerOffset, offset), h(headerTime, at), h(headerCut, cut), h(headerReason, reason), h("x", topic),
		}})
		if err != nil {
			return
		}
		again, err := ParseDeadLetter(recordOf(d.Message()))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(d, again); diff != "" {
			t.Error(diff)
		}
	})
}
