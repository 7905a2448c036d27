package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	kgo "github.com/segmentio/kafka-go"
)

// DeadLetter is a value that could not be decoded, as it stood in its topic.
type DeadLetter struct {
	// Topic, Partition and Offset are where it stood. Together they name it: a
	// detector that repeats a range after a crash puts its dead letters again.
	Topic     string
	Partition int
	Offset    int64
	// Time is the message's time; zero if it had none.
	Time time.Time
	// Key, Value and Headers are what stood there.
	Key, Value []byte
	Headers    []kgo.Header
	// Reason is why it could not be decoded, for people, at most 1,000 bytes. It may
	// hold bytes of the value.
	Reason string
	// Cut is by how many bytes key, value and headers were shortened, because as a
	// whole they exceeded what our topics take; such a letter cannot be replayed.
	Cut int
}

// Headers of a dead letter. Headers of the value itself follow behind them.
const (
	headerReason    = "postern-dead-reason"
	headerTopic     = "postern-dead-topic"
	headerPartition = "postern-dead-partition"
	headerOffset    = "postern-dead-offset"
	headerTime      = "postern-dead-time" // milliseconds since 1970
	headerCut       = "postern-dead-cut"

	deadHeaderPrefix = "postern-dead-"
)

// maxReason bounds a reason.
const maxReason = 1000

// deadFetch is how much of the dead-letter topic is asked for at once, compressed.
// A batch that is larger comes whole.
const deadFetch = 256 << 10

// Message is the letter as it lies on the dead-letter topic: key and value as they
// were, and the rest as headers.
func (d DeadLetter) Message() Message {
	h := []kgo.Header{
		{Key: headerReason, Value: []byte(cutText(d.Reason, maxReason))},
		{Key: headerTopic, Value: []byte(d.Topic)},
		{Key: headerPartition, Value: []byte(strconv.Itoa(d.Partition))},
		{Key: headerOffset, Value: []byte(strconv.FormatInt(d.Offset, 10))},
	}
	if !d.Time.IsZero() {
		h = append(h, kgo.Header{Key: headerTime, Value: []byte(strconv.FormatInt(d.Time.UnixMilli(), 10))})
	}
	if d.Cut > 0 {
		h = append(h, kgo.Header{Key: headerCut, Value: []byte(strconv.Itoa(d.Cut))})
	}
	for _, own := range d.Headers {
		if !strings.HasPrefix(own.Key, deadHeaderPrefix) {
			h = append(h, own)
		}
	}
	return Message{Key: d.Key, Value: d.Value, Headers: h}
}

// cutText shortens s to at most n bytes of valid UTF-8.
func cutText(s string, n int) string {
	s = strings.ToValidUTF8(s, string(utf8.RuneError))
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// ParseDeadLetter reads what [DeadLetter.Message] wrote. Key, value and headers are
// those of r, not copied.
func ParseDeadLetter(r Record) (DeadLetter, error) {
	d := DeadLetter{Key: r.Key, Value: r.Value, Offset: -1, Partition: -1}
	number := func(h kgo.Header, most int64) (int64, error) {
		n, err := strconv.ParseInt(string(h.Value), 10, 64)
		if err != nil || n < 0 || n > most {
			return 0, fmt.Errorf("the header %s is %q; it must be a number up to %d", h.Key, cutText(string(h.Value), 40), most)
		}
		return n, nil
	}
	for _, h := range r.Headers {
		var n int64
		var err error
		switch h.Key {
		case headerReason:
			d.Reason = cutText(string(h.Value), maxReason)
		case headerTopic:
			d.Topic = string(h.Value)
		case headerPartition:
			n, err = number(h, 1<<31-1)
			d.Partition = int(n)
		case headerOffset:
			d.Offset, err = number(h, 1<<63-1)
		case headerTime:
			n, err = number(h, 253402300799999) // the year 9999
			d.Time = time.UnixMilli(n).UTC()
		case headerCut:
			n, err = number(h, 1<<31-1)
			d.Cut = int(n)
		default:
			if !strings.HasPrefix(h.Key, deadHeaderPrefix) { // a later version's
				d.Headers = append(d.Headers, h)
			}
		}
		if err != nil {
			return DeadLetter{}, err
		}
	}
	if !topicName.MatchString(d.Topic) || len(d.Topic) > maxTopicName || d.Partition < 0 || d.Offset < 0 {
		return DeadLetter{}, fmt.Errorf("this is no dead letter: the headers %s, %s and %s must say where the value stood", headerTopic, headerPartition, headerOffset)
	}
	return d, nil
}

// shorten cuts the letter until its message has at most most bytes: first its
// value, then its key and its headers.
func (d DeadLetter) shorten(most int) DeadLetter {
	excess := func() int {
		m := d.Message()
		return m.size() - most
	}
	// The header that says so, and a few digits.
	const notice = len(headerCut) + 10 + 10
	cut := func(b []byte) []byte {
		x := excess()
		if x <= 0 {
			return b
		}
		if d.Cut == 0 {
			x += notice
		}
		x = min(x, len(b))
		if x == 0 {
			return b
		}
		d.Cut += x
		return b[:len(b)-x]
	}
	d.Value = cut(d.Value)
	d.Key = cut(d.Key)
	if excess() > 0 {
		for _, h := range d.Headers {
			d.Cut += len(h.Key) + len(h.Value)
		}
		d.Headers = nil
	}
	return d
}

// PutDead puts a letter on the dead-letter topic and returns when it is there. It
// is tried again as [Client.Produce] says. What is larger than our topics take is
// cut.
func (c *Client) PutDead(ctx context.Context, d DeadLetter) error {
	from := d.Topic
	// A topic that somebody made by hand may take less than maxMessage; better a part
	// of the value there than a partition that stands still.
	for most := int(c.cfg.MaxMessage); ; most /= 2 {
		d = d.shorten(most)
		_, err := c.Produce(ctx, c.cfg.Topic(TopicDead), 0, d.Message())
		if err == nil {
			c.met.dead.WithLabelValues(from).Inc()
			return nil
		}
		if !errors.Is(err, kgo.MessageSizeTooLarge) && !errors.Is(err, kgo.RecordListTooLarge) || most < 8<<10 {
			return err
		}
	}
}

// DeadLetters reads the dead-letter topic from the offset from on (its beginning if
// that is gone or negative) to where it ended when the call began, and gives each
// letter with its offset there to each; it stops at each's error. At any time it
// holds no more than one answer of a broker. It returns the offset to go on from.
// What is no dead letter is logged and left out.
func (c *Client) DeadLetters(ctx context.Context, from int64, each func(at int64, d DeadLetter) error) (int64, error) {
	topic := c.cfg.Topic(TopicDead)
	if _, err := c.Partitions(ctx, topic); err != nil {
		return from, err
	}
	first, end, err := c.Offsets(ctx, topic, 0)
	if err != nil {
		return from, err
	}
	for from = max(from, first); from < end; {
		f, err := c.Fetch(ctx, topic, 0, from, deadFetch, c.cfg.Timeout/4)
		if err != nil {
			return from, c.explain("read dead letters", err)
		}
		for _, r := range f.Records {
			if r.Offset >= end {
				return from, nil
			}
			d, err := ParseDeadLetter(r)
			if err != nil {
				c.log.Warn("a message on the dead-letter topic is none", slog.Int64("offset", r.Offset), slog.Any("error", err))
			} else if err := each(r.Offset, d); err != nil {
				return r.Offset, err
			}
			from = r.Offset + 1
		}
		if f.Next <= from && len(f.Records) == 0 {
			return from, fmt.Errorf("kafka: %s ends at offset %d and nothing comes from offset %d", topic, end, from)
		}
		from = max(from, f.Next)
	}
	return from, nil
}

// DeadLetter reads the letter at one offset of the dead-letter topic.
func (c *Client) DeadLetter(ctx context.Context, at int64) (DeadLetter, error) {
	var found *DeadLetter
	done := errors.New("found")
	_, err := c.DeadLetters(ctx, at, func(offset int64, d DeadLetter) error {
		if offset == at {
			found = &d
		}
		return done
	})
	if err != nil && !errors.Is(err, done) {
		return DeadLetter{}, err
	}
	if found == nil {
		return DeadLetter{}, fmt.Errorf("kafka: there is no dead letter at offset %d of %s", at, c.cfg.Topic(TopicDead))
	}
	return *found, nil
}

// ReplayDead puts the value of a letter behind its topic's partition once more, as
// it was but for a header, see [Record.Replayed], and returns the offset it got.
// Everybody who reads the topic gets it again. The letter stays until its retention
// ends.
func (c *Client) ReplayDead(ctx context.Context, d DeadLetter) (int64, error) {
	if d.Cut > 0 {
		return 0, fmt.Errorf("kafka: the dead letter of %s/%d offset %d was cut by %d bytes and cannot be replayed; the whole value is at that offset as long as the topic keeps it", d.Topic, d.Partition, d.Offset, d.Cut)
	}
	headers := d.Headers
	if !replayed(headers) {
		headers = append(slices.Clip(headers), kgo.Header{Key: headerReplay, Value: strconv.AppendInt(nil, d.Offset, 10)})
	}
	return c.Produce(ctx, d.Topic, d.Partition, Message{Key: d.Key, Value: d.Value, Headers: headers, Time: d.Time})
}

// headerReplay marks a value that was a dead letter; it holds the offset that the value
// had at first.
const headerReplay = "postern-replay-of"

func replayed(headers []kgo.Header) bool {
	return slices.ContainsFunc(headers, func(h kgo.Header) bool { return h.Key == headerReplay })
}

// Replayed says whether the record was a dead letter, so that it comes later than its
// number among its producer's values says.
func (r *Record) Replayed() bool { return replayed(r.Headers) }
