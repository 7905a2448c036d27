package agent

import (
	"fmt"
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
	"github.com/valyala/fastjson"
)

// Format is one format of log.
type Format struct {
	Name  string // as in --format, in the configuration and in URLs
	Title string // for people

	// new makes what reads one stream of lines: a header line bears on those behind it.
	new func(*Decoder) parser
	// known says why a line looks like this format, for `auto`; empty: it does not. v is
	// the line as JSON, nil if it is none.
	known func(line []byte, v *fastjson.Value) string
}

// parser reads the lines of one stream. It adds flows to e; an error takes them back.
type parser func(line []byte, e *entry) error

// formats is the catalogue, in the order in which `auto` asks: what is told apart by a
// field that nobody else has goes first.
var formats = []Format{
	{"hubble", "Cilium Hubble", ofJSON(hubble), knownHubble},
	{"zeek", "Zeek conn.log", newZeek, knownZeek},
	{"aws", "AWS VPC flow logs", newAWS, knownAWS},
	{"azure", "Azure: flow logs of virtual networks and of network security groups", ofJSON(azure), knownAzure},
	{"gcp", "Google Cloud: VPC flow logs and firewall rules logs", newGCP, knownGCP},
	{"guardicore", "Guardicore Centra, in CEF", newGuardicore, knownGuardicore},
	{"cef", "Common Event Format", newCEF, knownCEF},
	{"conntrack", "conntrack events and lists", newConntrack, knownConntrack},
	{"netfilter", "nftables and iptables log lines", newNetfilter, knownNetfilter},
	{"goflow2", "goflow2 JSON, 2.x and 1.x", newGoflow2, knownGoflow2},
	{"windows", "Windows: Sysmon 3, Security 5156 and 5157", newWindows, knownWindows},
	{"illumio", "Illumio traffic flow summaries", ofJSON(illumio), knownIllumio},
	{"suricata", "Suricata EVE", ofJSON(suricata), knownSuricata},
	{"calico", "Calico flow logs", ofJSON(calico), knownCalico},
	{"ocsf", "OCSF network activity", ofPaths(ocsfPaths(), ocsf), knownOCSF},
	{"ecs", "Elastic Common Schema", ofPaths(ecsPaths(), ecs), knownECS},
}

// Auto is the name of no format: the first lines decide.
const Auto = "auto"

// Formats lists the formats by name.
func Formats() []Format {
	out := slices.Clone(formats)
	slices.SortFunc(out, func(a, b Format) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// formatOf finds a format by its name; the error names the nearest one.
func formatOf(name string, custom []CustomConfig) (*Format, error) {
	nearest, distance := "", 4
	for i := range formats {
		f := &formats[i]
		if f.Name == name {
			return f, nil
		}
		if d := levenshtein.ComputeDistance(f.Name, name); d < distance {
			nearest, distance = f.Name, d
		}
	}
	var all []string
	for _, f := range Formats() {
		all = append(all, f.Name)
	}
	for i := range custom {
		all = append(all, custom[i].Name)
		if d := levenshtein.ComputeDistance(custom[i].Name, name); d < distance {
			nearest, distance = custom[i].Name, d
		}
	}
	if _, err := EventFormatOf(name); err == nil {
		return nil, fmt.Errorf("%q is a format of session events, not of flows; its lines go to a source of identity.sessions, by `events` with that source's name or POST /v1/events/NAME", name)
	}
	hint := "use one of " + strings.Join(all, ", ") + " or auto"
	if nearest != "" && name != "" {
		hint = fmt.Sprintf("did you mean %s? It may be %s or auto", nearest, strings.Join(all, ", "))
	}
	return nil, fmt.Errorf("%q is no format of agent logs; %s", name, hint)
}
