package ingest

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/postern/postern/flow"
)

// DecoderConfig says how datagrams become records and how much state an
// exporter, and all of them together, may cause. [DefaultDecoderConfig] gives
// the values that hold unless said otherwise.
type DecoderConfig struct {
	// SourceID is what the positions of datagrams count in (a spool, a capture
	// file). It is part of record ids.
	SourceID uint64 `yaml:"-"`
	// BelieveClock takes the exporter's clock as it is, as decode and replay do.
	// Otherwise it is compared with the time of receipt.
	BelieveClock bool `yaml:"-"`
	// Log takes what must not happen: a datagram that made the decoder panic. Nil
	// is silent; it is counted either way.
	Log *slog.Logger `yaml:"-"`

	// ClockTolerance is how far an exporter's clock may be off before its records
	// are marked clock_skew. Beyond 24 h the time of receipt stands in.
	ClockTolerance time.Duration `yaml:"clockTolerance"`
	// Sampling gives rates where the wire does not say; the first entry that
	// matches holds.
	Sampling []SamplingRule `yaml:"sampling"`
	// BiflowInitiator lists the exporters (addresses or prefixes) whose
	// bidirectional records name the initiator as source. Without an entry only
	// biflowDirection (239) and initiator/responder counters are believed.
	BiflowInitiator []ExporterPrefix `yaml:"biflowInitiator"`

	// MaxExporters bounds how many exporters have state; further ones are
	// rejected as table_full.
	MaxExporters int `yaml:"maxExporters"`
	// MaxDomains bounds the observation domains of one exporter.
	MaxDomains int `yaml:"maxDomains"`
	// MaxTemplates bounds the templates of all exporters together.
	MaxTemplates int `yaml:"maxTemplates"`
	// MaxTemplatesPerExporter bounds the templates of one exporter.
	MaxTemplatesPerExporter int `yaml:"maxTemplatesPerExporter"`
	// TemplateTTL is how long a template holds without being sent again.
	TemplateTTL time.Duration `yaml:"templateTTL"`
	// MaxSamplers bounds the sampling rates an exporter may announce.
	MaxSamplers int `yaml:"maxSamplers"`
	// MaxApplications bounds the application names an exporter may announce.
	MaxApplications int `yaml:"maxApplications"`

	// ParkTime is how long data waits for its template.
	ParkTime time.Duration `yaml:"parkTime"`
	// ParkSets bounds how many sets wait, over all exporters.
	ParkSets int `yaml:"parkSets"`
	// ParkBytes bounds the bytes that wait, over all exporters.
	ParkBytes flow.Size `yaml:"parkBytes"`
	// ParkBytesPerExporter bounds the bytes that wait for one exporter.
	ParkBytesPerExporter flow.Size `yaml:"parkBytesPerExporter"`
}

// SamplingRule is a sampling rate from configuration. Every field that is set
// must match; a rule with a rate alone matches every exporter.
type SamplingRule struct {
	// Exporter is an address or a prefix.
	Exporter ExporterPrefix `yaml:"exporter"`
	// Domain is an observation domain (IPFIX), source id (v9), 256 × engine type
	// + engine id (v5) or sub-agent (sFlow).
	Domain *uint32 `yaml:"domain"`
	// Interface is the ingress interface's index.
	Interface *uint32 `yaml:"interface"`
	// Sampler is the sampler or selector id that records carry (48, 302).
	Sampler *uint64 `yaml:"sampler"`
	// Rate is packets seen per packet counted, at least 1.
	Rate uint32 `yaml:"rate"`
}

// ExporterPrefix names one exporter by its address, or several by a prefix. The
// zero value is none.
type ExporterPrefix struct{ netip.Prefix }

// UnmarshalText reads 192.0.2.1, 192.0.2.0/24 and the like in IPv6.
func (p *ExporterPrefix) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		p.Prefix = netip.Prefix{}
		return nil
	}
	if a, err := netip.ParseAddr(string(b)); err == nil && a.Zone() == "" {
		p.Prefix = netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen())
		return nil
	}
	v, err := netip.ParsePrefix(string(b))
	if err != nil {
		return fmt.Errorf("%q is neither an address nor a prefix; write 192.0.2.1 or 192.0.2.0/24", b)
	}
	if v != v.Masked() {
		return fmt.Errorf("%q has bits beyond its length; write %s", b, v.Masked())
	}
	p.Prefix = v
	return nil
}

// DefaultDecoderConfig is the configuration unless said otherwise.
func DefaultDecoderConfig() DecoderConfig {
	return DecoderConfig{
		ClockTolerance: 30 * time.Second,
		// An exporter with its account and one domain costs about 4 KB: 4,096 are 16 MB.
		MaxExporters: 4096,
		// Line cards and VRFs number their own domains; large routers have tens.
		MaxDomains: 256,
		// A template of 30 fields with its plan costs about 1.5 KB: 65,536 are 100 MB,
		// 4,096 of one exporter 6 MB. IOS XR uses about 10 a domain.
		MaxTemplates:            65536,
		MaxTemplatesPerExporter: 4096,
		// v9 exporters repeat templates every 30 min at the latest, IPFIX every
		// 10 min: a day without one means the exporter has forgotten it.
		TemplateTTL:     24 * time.Hour,
		MaxSamplers:     1024,
		MaxApplications: 65536, // NBAR2 knows some 1,500

		// A template comes within 30 min by default, mostly within 1 min. 10 min at
		// 1 MiB keep about 700 datagrams of one exporter, 64 MiB all exporters of a
		// site that all start over.
		ParkTime:             10 * time.Minute,
		ParkSets:             65536,
		ParkBytes:            64 * flow.MiB,
		ParkBytesPerExporter: flow.MiB,
	}
}

// fill puts the default where c says nothing.
func (c *DecoderConfig) fill() {
	def := DefaultDecoderConfig()
	c.ClockTolerance = cmp.Or(c.ClockTolerance, def.ClockTolerance)
	c.MaxExporters = cmp.Or(c.MaxExporters, def.MaxExporters)
	c.MaxDomains = cmp.Or(c.MaxDomains, def.MaxDomains)
	c.MaxTemplates = cmp.Or(c.MaxTemplates, def.MaxTemplates)
	c.MaxTemplatesPerExporter = cmp.Or(c.MaxTemplatesPerExporter, def.MaxTemplatesPerExporter)
	c.TemplateTTL = cmp.Or(c.TemplateTTL, def.TemplateTTL)
	c.MaxSamplers = cmp.Or(c.MaxSamplers, def.MaxSamplers)
	c.MaxApplications = cmp.Or(c.MaxApplications, def.MaxApplications)
	c.ParkTime = cmp.Or(c.ParkTime, def.ParkTime)
	c.ParkSets = cmp.Or(c.ParkSets, def.ParkSets)
	c.ParkBytes = cmp.Or(c.ParkBytes, def.ParkBytes)
	c.ParkBytesPerExporter = cmp.Or(c.ParkBytesPerExporter, def.ParkBytesPerExporter)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

// Validate says what is wrong with c, nil if nothing is.
func (c *DecoderConfig) Validate() error {
	for _, v := range []struct {
		key string
		n   int64
	}{
		{"clockTolerance", int64(c.ClockTolerance)}, {"maxExporters", int64(c.MaxExporters)},
		{"maxDomains", int64(c.MaxDomains)}, {"maxTemplates", int64(c.MaxTemplates)},
		{"maxTemplatesPerExporter", int64(c.MaxTemplatesPerExporter)}, {"templateTTL", int64(c.TemplateTTL)},
		{"maxSamplers", int64(c.MaxSamplers)}, {"maxApplications", int64(c.MaxApplications)},
		{"parkTime", int64(c.ParkTime)}, {"parkSets", int64(c.ParkSets)},
		{"parkBytes", int64(c.ParkBytes)}, {"parkBytesPerExporter", int64(c.ParkBytesPerExporter)},
	} {
		if v.n <= 0 {
			return fmt.Errorf("%s is %d; it must be above zero", v.key, v.n)
		}
	}
	if c.ClockTolerance >= clockUnusable {
		return fmt.Errorf("clockTolerance is %s; it must be below %s, beyond which a clock is not used at all", c.ClockTolerance, clockUnusable)
	}
	for i, r := range c.Sampling {
		if r.Rate == 0 {
			return fmt.Errorf("sampling[%d]: rate is missing or 0; give packets seen per packet counted, 1 if unsampled", i)
		}
	}
	return nil
}
