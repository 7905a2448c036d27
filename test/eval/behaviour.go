package main

import (
	_ "embed"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/postern/postern/flow"
)

//go:embed behaviour.yaml
var behaviourFile []byte

// behaviour is the ordinary behaviour of a company, as behaviour.yaml writes it.
type behaviour struct {
	Days     int                    `yaml:"days"`
	Learning int                    `yaml:"learning"`
	Start    time.Time              `yaml:"start"`
	Roles    map[string]*role       `yaml:"roles"`
	Sites    siteSizes              `yaml:"sites"`
	Times    map[string]*dayCurve   `yaml:"times"`
	Churn    churn                  `yaml:"churn"`
	Services map[string]*serviceUse `yaml:"services"`
	Habits   []*habit               `yaml:"habits"`

	roleNames []string // sorted; a role's number is its place
}

type role struct {
	Share          float64 `yaml:"share"`
	Net            string  `yaml:"net"`
	Least          int     `yaml:"least"`
	Most           int     `yaml:"most"`
	DHCP           bool    `yaml:"dhcp"`
	Administrators bool    `yaml:"administrators"`
}

type siteSizes struct {
	Hosts int     `yaml:"hosts"`
	Free  float64 `yaml:"free"`
}

type dayCurve struct {
	Hours   []float64 `yaml:"hours"`
	Weekend float64   `yaml:"weekend"`
	Only    string    `yaml:"only"`
}

type churn struct {
	Lease            float64 `yaml:"lease"`
	Hire             float64 `yaml:"hire"`
	Server           float64 `yaml:"server"`
	Leave            float64 `yaml:"leave"`
	NewAdministrator float64 `yaml:"newAdministrator"`
	Move             float64 `yaml:"move"`
}

type serviceUse struct {
	Port    string    `yaml:"port"`
	Bytes   []float64 `yaml:"bytes"`   // of client and server, sigma
	Seconds []float64 `yaml:"seconds"` // median, sigma
	Dynamic bool      `yaml:"dynamic"` // a second conversation on a dynamic port follows
	Then    []float64 `yaml:"then"`    // of that one: bytes of client and server, sigma, seconds, sigma

	proto uint8
	port  uint16
}

type habit struct {
	Name     string             `yaml:"name"`
	Who      []string           `yaml:"who"`
	Share    float64            `yaml:"share"`
	To       []string           `yaml:"to"`
	Near     bool               `yaml:"near"`
	Own      float64            `yaml:"own"`
	Roam     float64            `yaml:"roam"`
	Services map[string]float64 `yaml:"services"`
	When     string             `yaml:"when"`
	Rate     float64            `yaml:"rate"`
	Spread   float64            `yaml:"spread"`
	Batch    int                `yaml:"batch"`
	Within   time.Duration      `yaml:"within"`
	All      bool               `yaml:"all"`
	Every    time.Duration      `yaml:"every"`
	Each     int                `yaml:"each"` // services of the list that each peer is asked
	Through  string             `yaml:"through"`
	Dead     float64            `yaml:"dead"`
	Refused  float64            `yaml:"refused"`

	uses  []*serviceUse // in the order of their names
	until []float64     // their weights added up
	curve *dayCurve
}

// loadBehaviour reads the parameters. administrators and changes multiply the number of
// administrators and the churn.
func loadBehaviour(text []byte, administrators, changes float64) (*behaviour, error) {
	b := &behaviour{}
	if err := yaml.UnmarshalWithOptions(text, b, yaml.Strict()); err != nil {
		return nil, fmt.Errorf("behaviour.yaml: %w", err)
	}
	b.roleNames = slices.Sorted(maps.Keys(b.Roles))
	for _, r := range b.Roles {
		if r.Administrators {
			r.Share *= administrators
		}
	}
	c := &b.Churn
	for _, v := range []*float64{&c.Lease, &c.Hire, &c.Server, &c.Leave, &c.NewAdministrator, &c.Move} {
		*v = min(*v*changes, 0.9)
	}
	for name, s := range b.Services {
		if len(s.Bytes) != 3 || len(s.Seconds) != 2 || s.Dynamic && len(s.Then) != 5 {
			return nil, fmt.Errorf("behaviour.yaml: service %s: write bytes: [client, server, sigma], seconds: [median, sigma] and then: [client, server, sigma, median, sigma] where it is dynamic", name)
		}
		proto, port, ok := strings.Cut(s.Port, "/")
		n, err := strconv.ParseUint(port, 10, 16)
		switch {
		case s.Port == "icmp/echo":
			s.proto = flow.ProtoICMP
		case !ok || err != nil || proto != "tcp" && proto != "udp":
			return nil, fmt.Errorf("behaviour.yaml: service %s: port %q is none; write tcp/445, udp/53 or icmp/echo", name, s.Port)
		case proto == "tcp":
			s.proto, s.port = flow.ProtoTCP, uint16(n)
		default:
			s.proto, s.port = flow.ProtoUDP, uint16(n)
		}
	}
	for name, t := range b.Times {
		if len(t.Hours) != 24 {
			return nil, fmt.Errorf("behaviour.yaml: times %s has %d hours; write 24", name, len(t.Hours))
		}
		sum := 0.0
		for _, w := range t.Hours {
			sum += w
		}
		for i := range t.Hours {
			t.Hours[i] /= sum
		}
	}
	for _, h := range b.Habits {
		if h.Share == 0 {
			h.Share = 1
		}
		h.Batch, h.Each = max(h.Batch, 1), max(h.Each, 1)
		if h.curve = b.Times[h.When]; h.curve == nil {
			return nil, fmt.Errorf("behaviour.yaml: habit %q: no times are called %q", h.Name, h.When)
		}
		sum := 0.0
		for _, name := range slices.Sorted(maps.Keys(h.Services)) {
			s := b.Services[name]
			if s == nil {
				return nil, fmt.Errorf("behaviour.yaml: habit %q: no service is called %q", h.Name, name)
			}
			sum += h.Services[name]
			h.uses, h.until = append(h.uses, s), append(h.until, sum)
		}
		for _, r := range slices.Concat(h.Who, h.To) {
			if b.Roles[r] == nil && !slices.Contains([]string{"internet", "dead", "multicast", "broadcast", "subnet", "everything"}, r) {
				return nil, fmt.Errorf("behaviour.yaml: habit %q: no role is called %q", h.Name, r)
			}
		}
		if len(h.uses) == 0 || len(h.Who) == 0 || len(h.To) == 0 || h.All == (h.Every == 0) {
			return nil, fmt.Errorf("behaviour.yaml: habit %q lacks who, to or services, or has one of all and every without the other", h.Name)
		}
	}
	return b, nil
}

// of is the part of a day's occasions that falls into an hour of a day of the week.
func (c *dayCurve) of(day time.Weekday, hour int) float64 {
	switch {
	case c.Only != "" && !strings.EqualFold(c.Only, day.String()):
		return 0
	case c.Only == "" && (day == time.Saturday || day == time.Sunday):
		return c.Hours[hour] * c.Weekend
	}
	return c.Hours[hour]
}

// count is how many of a company of n hosts have the role.
func (r *role) count(n int) int {
	k := max(int(math.Round(r.Share*float64(n)/1000)), r.Least, 1)
	if r.Most > 0 {
		k = min(k, r.Most)
	}
	return k
}
