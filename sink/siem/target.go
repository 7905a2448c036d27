package siem

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/postern/postern/flow"
)

// TargetConfig is somebody who is told of findings: who, which, in what form, how fast, and exactly
// one way to get there.
type TargetConfig struct {
	// Name names the target in metrics, logs and `postern outbox`; its outbox lies in a folder of that name. Lower-case letters, digits, `-` and `_`, at most 64.
	Name string `yaml:"name"`
	// Encoding is the form of a message: json, ocsf, ecs or cef. Empty is what suits the receiver: cef for syslog, ecs for elastic, json for all others.
	Encoding string `yaml:"encoding"`
	// Template is a file that makes the message instead, a Go text/template over the finding's JSON (`{{.severity}}`, `{{json .sentence}}`); `postern forward test` shows what comes out.
	Template string `yaml:"template"`

	FilterConfig   `yaml:",inline"`
	DeliveryConfig `yaml:",inline"`

	// Webhook posts signed messages, one a finding's revision.
	Webhook *WebhookConfig `yaml:"webhook"`
	// Splunk is an HTTP Event Collector.
	Splunk *SplunkConfig `yaml:"splunk"`
	// Elastic is Elasticsearch or OpenSearch, by its _bulk interface.
	Elastic *ElasticConfig `yaml:"elastic"`
	// Sentinel is Microsoft Sentinel, by the Logs Ingestion API of Azure Monitor.
	Sentinel *SentinelConfig `yaml:"sentinel"`
	// Syslog is a syslog server (RFC 5424) by TCP or TLS.
	Syslog *SyslogConfig `yaml:"syslog"`
	// Kafka is a topic.
	Kafka *KafkaConfig `yaml:"kafka"`
	// Chat is a channel that people read: Slack, Teams, or what takes the same.
	Chat *ChatConfig `yaml:"chat"`
	// File is a file that others follow, a line a message.
	File *FileConfig `yaml:"file"`
}

// DeliveryConfig is how often and how fast a target is tried.
type DeliveryConfig struct {
	// MaxAttempts is after how many failed attempts an event becomes a dead letter.
	MaxAttempts int `yaml:"maxAttempts"`
	// Rate is how many events are sent at most, such as 20/s or 600/m; empty is as fast as the target takes them. What is critical has the same rate again for itself. The others wait.
	Rate Rate `yaml:"rate"`
}

// DefaultDeliveryConfig is what applies unless a target says otherwise.
func DefaultDeliveryConfig() DeliveryConfig {
	return DeliveryConfig{
		// With retryDelays the tenth attempt comes after 75 h 35 min: a receiver
		// that is away from Friday evening to Monday evening loses nothing.
		MaxAttempts: 10,
	}
}

// Validate says what is wrong with c and what would be right.
func (c *DeliveryConfig) Validate() error {
	if c.MaxAttempts < 1 || c.MaxAttempts > 1000 {
		return fmt.Errorf("maxAttempts %d; it must lie between 1 and 1000", c.MaxAttempts)
	}
	return nil
}

// Rate is a number of events in a second, minute or hour. The zero value is no limit.
type Rate struct {
	Events int
	Per    time.Duration
}

var rateForm = regexp.MustCompile(`^([1-9][0-9]{0,5})/([smh])$`)

// UnmarshalText reads "20/s".
func (r *Rate) UnmarshalText(text []byte) error {
	*r = Rate{}
	if len(text) == 0 {
		return nil
	}
	m := rateForm.FindSubmatch(text)
	if m == nil {
		return fmt.Errorf("%q is no rate; write how many in a second, minute or hour: 20/s, 600/m, 1000/h", text)
	}
	r.Events, _ = strconv.Atoi(string(m[1])) // the form says that it is a number
	r.Per = map[byte]time.Duration{'s': time.Second, 'm': time.Minute, 'h': time.Hour}[m[2][0]]
	return nil
}

// MarshalText writes what UnmarshalText reads.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

func (r Rate) String() string {
	if r.Events == 0 {
		return ""
	}
	return fmt.Sprintf("%d/%c", r.Events, map[time.Duration]byte{time.Second: 's', time.Minute: 'm', time.Hour: 'h'}[r.Per])
}

// limiter lets through a burst of what comes in a second at that rate, at least one.
func (r Rate) limiter() *rate.Limiter {
	if r.Events == 0 {
		return rate.NewLimiter(rate.Inf, 1<<30)
	}
	each := rate.Limit(float64(r.Events) / r.Per.Seconds())
	return rate.NewLimiter(each, max(1, int(each)))
}

var targetNameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)

func validTargetName(name string) error {
	if !targetNameForm.MatchString(name) {
		return fmt.Errorf("name %q: it names a folder and a metric label; write 1 to 64 lower-case letters, digits, - or _, beginning with a letter or digit", name)
	}
	return nil
}

// kind is one way to get to a target.
type kind struct {
	name string
	// config is that part of the configuration, nil if it is not this kind.
	config func(*TargetConfig) kindConfig
	// encoding is what a message looks like unless said otherwise.
	encoding string
	// json says that a message has to be a JSON object.
	json bool
}

// kindConfig is what each kind's configuration can do.
type kindConfig interface {
	Fill()
	validate() error
	// references lists the secret references by key.
	references() map[string]string
	// open makes the sender; get follows secret references.
	open(get func(ref string) (string, error), at *place) (Sender, error)
}

// kinds are all of them, in the order of the configuration's reference.
var kinds = []kind{
	{"webhook", func(c *TargetConfig) kindConfig { return orNil(c.Webhook) }, "json", true},
	{"splunk", func(c *TargetConfig) kindConfig { return orNil(c.Splunk) }, "json", false},
	{"elastic", func(c *TargetConfig) kindConfig { return orNil(c.Elastic) }, "ecs", true},
	{"sentinel", func(c *TargetConfig) kindConfig { return orNil(c.Sentinel) }, "json", true},
	{"syslog", func(c *TargetConfig) kindConfig { return orNil(c.Syslog) }, "cef", false},
	{"kafka", func(c *TargetConfig) kindConfig { return orNil(c.Kafka) }, "json", false},
	{"chat", func(c *TargetConfig) kindConfig { return orNil(c.Chat) }, "json", false},
	{"file", func(c *TargetConfig) kindConfig { return orNil(c.File) }, "json", false},
}

// orNil is c, or no interface where c points to nothing.
func orNil[T any, P interface {
	*T
	kindConfig
}](c P) kindConfig {
	if c == nil {
		return nil
	}
	return c
}

// kind is the one way that c gives; the error says which there are.
func (c *TargetConfig) kind() (kind, kindConfig, error) {
	var found []kind
	var names []string
	for _, k := range kinds {
		names = append(names, k.name)
		if k.config(c) != nil {
			found = append(found, k)
		}
	}
	switch len(found) {
	case 1:
		return found[0], found[0].config(c), nil
	case 0:
		return kind{}, nil, fmt.Errorf("it does not say where findings go; give one of %s", strings.Join(names, ", "))
	}
	return kind{}, nil, fmt.Errorf("it has both %s and %s; make two targets of it, each with a name and an outbox of its own", found[0].name, found[1].name)
}

// Fill gives c the defaults of what it does not say.
func (c *TargetConfig) Fill() {
	if c.MinSeverity == "" {
		c.MinSeverity = flow.Low.String()
	}
	if c.MaxAttempts == 0 {
		c.MaxAttempts = DefaultDeliveryConfig().MaxAttempts
	}
	if _, part, err := c.kind(); err == nil {
		part.Fill()
	}
}

// Validate says what is wrong with c and what would be right; errors begin with the key. It
// looks at no secret and resolves no name.
func (c *TargetConfig) Validate() error {
	if err := validTargetName(c.Name); err != nil {
		return err
	}
	k, part, err := c.kind()
	if err != nil {
		return err
	}
	if err := part.validate(); err != nil {
		return fmt.Errorf("%s.%w", k.name, err)
	}
	if c.Encoding != "" && c.Template != "" {
		return errors.New("template: the message is made by a template, so encoding has no effect; take one of them out")
	}
	if _, err := LookupEncoding(c.Encoding); c.Encoding != "" && err != nil {
		return fmt.Errorf("encoding: %w", err)
	}
	if c.Encoding == "cef" && k.json {
		return fmt.Errorf("encoding: cef is a line of text, and %s takes JSON objects; use json, ocsf or ecs", k.name)
	}
	if err := c.DeliveryConfig.Validate(); err != nil {
		return err
	}
	_, err = c.compile()
	return err
}

// References lists the secret references of c by key.
func (c *TargetConfig) References() map[string]string {
	k, part, err := c.kind()
	if err != nil {
		return nil
	}
	out := map[string]string{}
	for key, ref := range part.references() {
		out[k.name+"."+key] = ref
	}
	return out
}

// place is what a sender stands in.
type place struct {
	name  string
	log   *slog.Logger
	clock func() time.Time
	met   *targetMetrics
	as    encoder
	form  string // what it makes: an encoding's name, or "template"
	// bare says that nobody chose an encoding or a template: the sender may make its own form.
	bare bool
}

// encoder makes the message of an event. Its error is a *[DeliveryError] that is not to be tried again.
type encoder func(*Event) ([]byte, error)

// Target is a [BatchSender] to one receiver, with what decides which findings it wants. Safe for
// concurrent use.
type Target struct {
	cfg    TargetConfig
	filter *filter
	sender Sender
	met    *targetMetrics
	clock  func() time.Time
}

type targetMetrics struct {
	attempts *prometheus.CounterVec
	refused  *prometheus.CounterVec
	seconds  prometheus.Histogram
	reg      prometheus.Registerer
}

func newTargetMetrics(reg prometheus.Registerer, target, kind string) (*targetMetrics, error) {
	labels := prometheus.Labels{"target": target, "kind": kind}
	m := &targetMetrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_target_attempts_total", ConstLabels: labels,
			Help: "Attempts to hand over events, by result: ok, partly, 3xx, 4xx, 5xx, gone, denied, throttled, timeout, refused, error."}, []string{"result"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_target_refused_total", ConstLabels: labels,
			Help: "Connections refused because of where they led, by kind of destination."}, []string{"destination"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "postern_target_duration_seconds", ConstLabels: labels,
			Help: "How long an attempt took.", Buckets: []float64{.005, .02, .1, .5, 1, 2, 5, 15, 30}}),
		reg: reg,
	}
	return m, registerCollectors(reg, m.collectors())
}

func (m *targetMetrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.attempts, m.refused, m.seconds}
}

// registerCollectors registers every collector or none; a nil reg takes all.
func registerCollectors(reg prometheus.Registerer, collectors []prometheus.Collector) error {
	if reg == nil {
		return nil
	}
	for i, c := range collectors {
		if err := reg.Register(c); err != nil {
			unregisterCollectors(reg, collectors[:i])
			return fmt.Errorf("metrics: %w", err)
		}
	}
	return nil
}

func unregisterCollectors(reg prometheus.Registerer, collectors []prometheus.Collector) {
	if reg == nil {
		return
	}
	for _, c := range collectors {
		reg.Unregister(c)
	}
}

// TargetOptions are what a target is given beside its configuration; each may be nil, Secret only
// where there is no reference.
type TargetOptions struct {
	Secret func(ref string) (string, error)
	Log    *slog.Logger
	Reg    prometheus.Registerer
	Clock  func() time.Time
}

// NewTarget makes a target of a configuration. It follows secret references, reads certificates
// and the template, and connects to nothing.
func NewTarget(cfg TargetConfig, o TargetOptions) (*Target, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("target %s: %w", cfg.Name, err)
	}
	t, err := newTarget(cfg, o)
	if err != nil {
		return nil, fmt.Errorf("target %s: %w", cfg.Name, err)
	}
	return t, nil
}

func newTarget(cfg TargetConfig, o TargetOptions) (*Target, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Secret == nil {
		o.Secret = func(string) (string, error) { return "", errors.New("nobody here can follow a secret reference") }
	}
	k, part, err := cfg.kind()
	if err != nil {
		return nil, err
	}
	t := &Target{cfg: cfg, clock: o.Clock}
	if t.filter, err = cfg.compile(); err != nil {
		return nil, err
	}
	as, err := cfg.encoder(k)
	if err != nil {
		return nil, err
	}
	if t.met, err = newTargetMetrics(o.Reg, cfg.Name, k.name); err != nil {
		return nil, err
	}
	at := &place{name: cfg.Name, log: o.Log.With("target", cfg.Name), clock: o.Clock, met: t.met, as: as, form: cfg.form(k), bare: cfg.Encoding == "" && cfg.Template == ""}
	if t.sender, err = part.open(o.Secret, at); err != nil {
		unregisterCollectors(t.met.reg, t.met.collectors())
		return nil, err
	}
	return t, nil
}

// form is what messages for a target of kind k are.
func (c *TargetConfig) form(k kind) string {
	if c.Template != "" {
		return "template"
	}
	return cmp.Or(c.Encoding, k.encoding)
}

// encoder is what makes messages for a target of kind k.
func (c *TargetConfig) encoder(k kind) (encoder, error) {
	if c.Template != "" {
		return templateEncoder(c.Template, k.json)
	}
	name := c.form(k)
	encoding, err := LookupEncoding(name)
	if err != nil {
		return nil, err
	}
	return func(e *Event) ([]byte, error) {
		if name == "json" {
			return e.Body, nil // as it is
		}
		var f flow.Finding
		err := json.Unmarshal(e.Body, &f)
		if err == nil {
			var b []byte
			if b, err = encoding.Encode(&f); err == nil {
				return b, nil
			}
		}
		return nil, &DeliveryError{Err: fmt.Errorf("it cannot be told as %s: %w", name, err)}
	}, nil
}

// Name is the target's.
func (t *Target) Name() string { return t.cfg.Name }

// Config is the target's.
func (t *Target) Config() TargetConfig { return t.cfg }

// Wants says whether the target is to be told of f.
func (t *Target) Wants(f *flow.Finding) bool { return t.filter.wants(f) }

// Close gives up connections, files and the metrics.
func (t *Target) Close() error {
	unregisterCollectors(t.met.reg, t.met.collectors())
	switch c := t.sender.(type) {
	case interface{ Close() error }:
		return c.Close()
	case interface{ Close() }:
		c.Close()
	}
	return nil
}

// Batch implements [BatchSender].
func (t *Target) Batch() Batch {
	if b, ok := t.sender.(BatchSender); ok {
		return b.Batch()
	}
	return Batch{Events: 1}
}

// Send implements [Sender].
func (t *Target) Send(ctx context.Context, e *Event) error {
	begin := t.clock()
	err := t.sender.Send(ctx, e)
	t.note(begin, err)
	return err
}

// SendBatch implements [BatchSender].
func (t *Target) SendBatch(ctx context.Context, events []*Event) []error {
	b, ok := t.sender.(BatchSender)
	if !ok || len(events) == 1 {
		errs := make([]error, len(events))
		for i, e := range events {
			errs[i] = t.Send(ctx, e)
		}
		return errs
	}
	begin := t.clock()
	errs := b.SendBatch(ctx, events)
	t.note(begin, errs...)
	return errs
}

// outcome is what becomes of the events of a batch, as [BatchSender.SendBatch] gives it.
type outcome struct {
	errs []error
	sent []int // which of the events go out; the others have their error already
}

// eachOf gives what form makes of events, without those that it refuses.
func eachOf[T any](events []*Event, form func(*Event) (T, error)) ([]T, *outcome) {
	o := &outcome{errs: make([]error, len(events))}
	var made []T
	for i, e := range events {
		one, err := form(e)
		if o.errs[i] = err; err == nil {
			made, o.sent = append(made, one), append(o.sent, i)
		}
	}
	return made, o
}

// all is that the same became of all that went out.
func (o *outcome) all(err error) []error {
	for _, i := range o.sent {
		o.errs[i] = err
	}
	return o.errs
}

// refused is that a request was refused as a whole: one error for all, so that each goes by itself
// where it is the events' fault.
func (o *outcome) refused(d *DeliveryError) []error {
	if len(o.sent) == len(o.errs) && len(o.errs) > 1 {
		return []error{d}
	}
	return o.all(d)
}

// note counts an attempt.
func (t *Target) note(begin time.Time, errs ...error) {
	t.met.seconds.Observe(t.clock().Sub(begin).Seconds())
	result, failed := "ok", 0
	for _, err := range errs {
		if err != nil {
			result = attemptResult(err)
			failed++
		}
	}
	if failed > 0 && failed < len(errs) {
		result = "partly"
	}
	t.met.attempts.WithLabelValues(result).Inc()
}

func attemptResult(err error) string {
	var d *DeliveryError
	if !errors.As(err, &d) {
		return "error"
	}
	_, refused := errors.AsType[*refusedError](err)
	switch {
	case d.Gone:
		return "gone"
	case d.Denied:
		return "denied"
	case d.Status == http.StatusTooManyRequests:
		return "throttled"
	case d.Status != 0:
		return strconv.Itoa(d.Status/100) + "xx"
	case refused:
		return "refused"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	}
	return "error"
}
