package identity

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
)

func TestInventoryCSV(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
		complaints string // of entries
		err        string // of the file
	}{
		{"commas", "address,workload,device,user,account,groups,posture,since,until\n" +
			"10.0.0.1,web,lap-1,alice,svc-web,\"staff, admins\",managed,2026-01-01T00:00:00Z,2026-02-01T01:00:00+01:00\n" +
			"\n# a comment\n" +
			"2001:DB8::1,db,,,,,,,\n" +
			"\"10.0.0.2 ::ffff:10.0.0.3\",\"a \"\"b\"\"\",,,,,,,\n",
			[]string{
				`lease 10.0.0.1 workload=web device=lap-1 user=alice account=svc-web groups=admins,staff posture=managed since=2026-01-01T00:00:00.000Z until=2026-02-01T00:00:00.000Z disabled=false`,
				`static 10.0.0.2 workload=a "b" device= user= account= groups= posture= since= until= disabled=false`,
				`static 10.0.0.3 workload=a "b" device= user= account= groups= posture= since= until= disabled=false`,
				`static 2001:db8::1 workload=db device= user= account= groups= posture= since= until= disabled=false`,
			}, "", ""},
		{"semicolons, a byte order mark, CR LF, capitals", "\ufeffWorkload;Addresses\r\nweb;10.0.0.1, 10.0.0.2\r\n",
			[]string{`static 10.0.0.1 workload=web device= user= account= groups= posture= since= until= disabled=false`,
				`static 10.0.0.2 workload=web device= user= account= groups= posture= since= until= disabled=false`}, "", ""},
		{"bad rows lose no neighbour", "address,workload,since\n" +
			"10.0.0.1/24,a,\n" +
			"10.0.0.2,b,2026-01-01\n" +
			"10.0.0.300,c,\n" +
			"10.0.0.4,d,,e\n" +
			"10.0.0.5,\"quoted\n" +
			"10.0.0.6,,\n" +
			",g,\n" +
			"10.0.0.8,h\x00h,\n" +
			"0.0.0.0,i,\n" +
			"fe80::1%eth0,j,\n" +
			"10.0.0.11,k,\n",
			[]string{`static 10.0.0.11 workload=k device= user= account= groups= posture= since= until= disabled=false`},
			`f.csv:2:1: "10.0.0.1/24" is a prefix; write single addresses, such as 10.0.0.1; what holds for a whole prefix is a segment of the policy
f.csv:3:12: since "2026-01-01" is no time; times carry a zone: write 2026-01-01T00:00:00Z
f.csv:4:1: "10.0.0.300" is no address; write one such as 10.1.2.3 or 2001:db8::3
f.csv:5:13: the row has 4 fields, the header 3; put a field with the delimiter in it in quotes
f.csv:6:17: the quotes do not fit; put the whole field in quotes and write "" for one within it
f.csv:7:10: it says nothing about its address; write a workload, device, user, account, groups or posture
f.csv:8:1: it names no address; write one, such as 10.1.2.3 or 2001:db8::3
f.csv:9:10: workload "h\x00h" holds what cannot be seen; write it without control and formatting characters
10 entries could not be read`, ""},
		{"an unknown column", "address,worklod\n10.0.0.1,a\n", nil, "", `f.csv:1:9: there is no column "worklod"; did you mean "workload"? It is one of address, addresses, workload`},
		{"twice", "address;user;user\n", nil, "", `f.csv:1:14: the column "user" is there twice; keep one of them`},
		{"no address", "workload,user\n", nil, "", "f.csv:1:1: no column is address"},
		{"empty", "", nil, "", "f.csv:1:1: there is no header"},
	} {
		t.Run(c.name, func(t *testing.T) {
			partial := &partialError{}
			facts, err := readInventory("f.csv", []byte(c.text), nil, partial)
			checkInventory(t, facts, partial, err, c.want, c.complaints, c.err)
		})
	}
}

func checkInventory(t *testing.T, facts []flow.Fact, partial *partialError, err error, want []string, complaints, wrong string) {
	t.Helper()
	if err != nil || wrong != "" {
		if err == nil || wrong == "" || !strings.Contains(err.Error(), wrong) {
			t.Fatalf("%v; want %q", err, wrong)
		}
		return
	}
	if diff := cmp.Diff(want, factTexts(facts)); diff != "" {
		t.Errorf("facts (-want +got):\n%s", diff)
	}
	var got string
	if partial.entries > 0 {
		got = partial.err.Error()
		if partial.entries > maxPartialErrors {
			got += fmt.Sprintf("\n%d entries could not be read", partial.entries)
		}
	}
	if diff := cmp.Diff(complaints, got); diff != "" {
		t.Errorf("complaints (-want +got):\n%s", diff)
	}
}

func TestInventoryYAML(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
		complaints string
		err        string
	}{
		{"entries", `# who is where
inventory:
  - address: 10.0.0.1
    workload: web
    groups: [staff, admins]
    since: 2026-01-01T00:00:00Z
  - {addresses: [10.0.0.2, "2001:db8::2"], user: 1234, posture: managed}
`, []string{
			`lease 10.0.0.1 workload=web device= user= account= groups=admins,staff posture= since=2026-01-01T00:00:00.000Z until= disabled=false`,
			`static 10.0.0.2 workload= device= user=1234 account= groups= posture=managed since= until= disabled=false`,
			`static 2001:db8::2 workload= device= user=1234 account= groups= posture=managed since= until= disabled=false`,
		}, "", ""},
		{"a list alone", "- address: 10.0.0.1\n  workload: a\n", []string{`static 10.0.0.1 workload=a device= user= account= groups= posture= since= until= disabled=false`}, "", ""},
		{"nothing yet", "inventory:\n", nil, "", ""},
		{"bad entries lose no neighbour", `- address: 10.0.0.1
  worklaod: a
- address: 10.0.0.2
  workload: {a: b}
- 10.0.0.3
- address: 10.0.0.4
  until: yesterday
  workload: x
- address: 10.0.0.5
  workload: e
- address: 10.0.0.6
  workload: f
  workload: g
- workload: h
`, []string{`static 10.0.0.5 workload=e device= user= account= groups= posture= since= until= disabled=false`},
			`f.yaml:2:3: there is no key "worklaod"; did you mean "workload"? It is one of address, addresses, workload, device, user, account, groups, posture, since, until
f.yaml:4:13: workload is no plain value; write one value, or, of addresses and groups, a list of values
f.yaml:5:3: this entry is not keys with values; write it such as address: 10.1.2.3
f.yaml:7:10: until "yesterday" is no time; write it as 2026-10-01T09:00:00Z
f.yaml:13:3: the key "workload" is there twice; keep one of them
f.yaml:14:3: it names no address; write one, such as 10.1.2.3 or 2001:db8::3`, ""},
		{"another key", "inventry:\n  - address: 10.0.0.1\n", nil, "", `f.yaml:1:1: the key "inventry" is not known here; write inventory:`},
		{"two keys", "inventory: []\nhosts: []\n", nil, "", `f.yaml:2:1: the key "hosts" is not known here`},
		{"no list", "inventory: 5\n", nil, "", "f.yaml:1:12: this is no list"},
		{"syntax", "inventory: [\n", nil, "", "f.yaml:1:"},
		{"anchors", "inventory:\n  - &a {address: 10.0.0.1, workload: x}\n  - *a\n", nil, "", "f.yaml:2:5: an anchor, alias or merge key is not part of an inventory"},
		{"deep", strings.Repeat("[", 5000), nil, "", "nested deeper"},
	} {
		t.Run(c.name, func(t *testing.T) {
			partial := &partialError{}
			facts, err := readInventory("f.yaml", []byte(c.text), nil, partial)
			checkInventory(t, facts, partial, err, c.want, c.complaints, c.err)
		})
	}
}

// TestInventoryFollowed: a changed row is told when the file was left alone for a while,
// a row that cannot be read ends nothing, and a file that is none at all says so.
func TestInventoryFollowed(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "hosts.csv")
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("hosts.csv", "address,workload\n10.0.0.1,a\n10.0.0.2,b\n")
	if err := os.Chtimes(path, time.Time{}, time.Now().Add(-time.Minute)); err != nil {
		t.Fatal(err)
	}
	write("notes.txt", "not an inventory")
	write(".hidden.csv", "what\n")
	cfg := DefaultInventoryConfig()
	cfg.Name, cfg.Path, cfg.Every = "hosts", dir, time.Minute
	sources, err := New(Config{Inventory: []InventoryConfig{cfg}}, Options{StateDir: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	var rec recorder
	stop := running(t, sources[0], rec.tell)
	await(t, &rec, "10.0.0.1", time.Second, "read at the start", func(f []flow.Fact) bool { return len(f) == 1 && f[0].Workload == "a" && f[0].SinceSlack == 0 })

	write("hosts.csv", "address,workload\n10.0.0.1,c\n10.0.0.2,bro") // an editor at work
	time.Sleep(500 * time.Millisecond)
	write("hosts.csv", "address,workload\n10.0.0.1,c\n10.0.0.2,\"broken\n")
	write("more.yaml", "- {address: 10.0.0.3, workload: d}\n")
	facts := await(t, &rec, "10.0.0.1", 10*time.Second, "changed", func(f []flow.Fact) bool { return len(f) == 2 })
	if facts[0].Until != facts[1].Since || facts[0].UntilSlack < time.Second || facts[0].UntilSlack != facts[1].SinceSlack {
		t.Errorf("the border: %+v", facts)
	}
	if f := rec.of("10.0.0.2"); len(f) != 1 || f[0].Until != 0 || f[0].Workload != "b" {
		t.Errorf("a row that cannot be read: %+v", f)
	}
	if f := rec.of("10.0.0.3"); len(f) != 1 {
		t.Errorf("another file: %+v", f)
	}
	if err := stop(); err == nil || t.Context().Err() != nil {
		t.Error(err)
	}

	write("more.yaml", "adresses: x\n")
	sources, err = New(Config{Inventory: []InventoryConfig{cfg}}, Options{StateDir: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	err = sources[0].Run(t.Context(), rec.tell)
	if err == nil || !strings.Contains(err.Error(), "more.yaml:1:1: the key \"adresses\"") {
		t.Errorf("a file that is no inventory, at the start: %v", err)
	}
}

// TestConfigYAML: what a configuration does not say is at its default, also within lists,
// and what it says wrong is found where it stands.
func TestConfigYAML(t *testing.T) {
	var c Config
	err := yaml.UnmarshalWithOptions([]byte(`
inventory:
  - {name: hosts, path: hosts.csv, staleAfter: 0s}
dhcp:
  - name: office
    leases: /var/lib/kea/kea-leases4.csv
http:
  - name: netbox
    preset: netbox
    url: https://netbox.example.net
    token: env:NETBOX_TOKEN
    maxPage: 1MiB
`), &c, yaml.Strict())
	if err != nil {
		t.Fatal(err)
	}
	inv, dhcp, api := DefaultInventoryConfig(), DefaultDHCPConfig(), DefaultHTTPConfig()
	inv.Name, inv.Path, inv.StaleAfter = "hosts", "hosts.csv", 0
	dhcp.Name, dhcp.Leases = "office", "/var/lib/kea/kea-leases4.csv"
	api.Name, api.Preset, api.URL, api.Token, api.MaxPage = "netbox", "netbox", "https://netbox.example.net", "env:NETBOX_TOKEN", flow.MiB
	if diff := cmp.Diff(Config{Inventory: []InventoryConfig{inv}, DHCP: []DHCPConfig{dhcp}, HTTP: []HTTPConfig{api}}, c); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	err = yaml.UnmarshalWithOptions([]byte("dhcp:\n  - name: office\n    leeses: x\n"), &c, yaml.Strict())
	var at yaml.Error
	if !errors.As(err, &at) || at.GetToken().Value != "leeses" || at.GetToken().Position.Line != 3 || at.GetToken().Position.Column != 5 {
		t.Errorf("an unknown key: %v", err)
	}
}

// TestDocs: what the page about sources shows can be written like that.
func TestDocs(t *testing.T) {
	b, err := os.ReadFile("../../docs/identity-sources.md")
	if err != nil {
		t.Fatal(err)
	}
	configs, inventories := 0, 0
	for block := range strings.SplitSeq(string(b), "```") {
		partial := &partialError{}
		switch text, found := strings.CutPrefix(block, "yaml\n"); {
		case found && strings.Contains(text, "- name: ") && !strings.HasPrefix(text, " "):
			var c struct{ Identity Config }
			if err := yaml.UnmarshalWithOptions([]byte(text), &c, yaml.Strict()); err != nil {
				t.Errorf("%v in\n%s", err, text)
			} else if err := c.Identity.Validate(); err != nil {
				t.Errorf("%v in\n%s", err, text)
			}
			configs++
		case found && strings.HasPrefix(text, "inventory:"):
			if facts, err := readInventory("f.yaml", []byte(text), nil, partial); err != nil || partial.entries > 0 || len(facts) != 4 {
				t.Errorf("%d facts, %v, %v in\n%s", len(facts), err, partial.err, text)
			}
			inventories++
		case strings.HasPrefix(block, "csv\n"):
			if facts, err := readInventory("f.csv", []byte(strings.TrimPrefix(block, "csv\n")), nil, partial); err != nil || partial.entries > 0 || len(facts) != 4 {
				t.Errorf("%d facts, %v, %v in\n%s", len(facts), err, partial.err, block)
			}
			inventories++
		}
	}
	if configs < 7 || inventories != 2 {
		t.Errorf("%d configurations and %d inventories were found on the page", configs, inventories)
	}
}

func TestConfigValidate(t *testing.T) {
	inv, dhcp := DefaultInventoryConfig(), DefaultDHCPConfig()
	inv.Name, inv.Path = "a", "hosts.txt"
	dhcp.Name, dhcp.Server, dhcp.Socket, dhcp.User = "a", "isc", "/run/x", "u"
	err := Config{Inventory: []InventoryConfig{inv}, DHCP: []DHCPConfig{dhcp, {}}}.Validate()
	for _, want := range []string{
		"inventory[0].path: files that end in .txt are not known", "dhcp[0].leases: is empty; ISC dhcpd has a lease file only",
		"dhcp[0].name: \"a\" is also that of inventory[0]", "dhcp[0].user: goes with password", "dhcp[1].name:", "dhcp[1].server: \"\" is not known", "dhcp[1].every:",
	} {
		if err == nil || !slices.ContainsFunc(strings.Split(err.Error(), "\n"), func(s string) bool { return strings.HasPrefix(s, want) }) {
			t.Errorf("no %s in\n%v", want, err)
		}
	}
	for name, c := range map[string]DHCPConfig{
		"kea file":   {Server: "kea", Leases: "/var/lib/kea/kea-leases4.csv"},
		"kea socket": {Server: "kea", Socket: "/run/kea/kea4-ctrl-socket"},
		"kea agent":  {Server: "kea", URL: "https://kea.example:8000/", User: "u", Password: "env:P", Family: 6},
		"isc":        {Server: "isc", Leases: "/var/lib/dhcp/dhcpd.leases"},
	} {
		d := DefaultDHCPConfig()
		c.Name, c.Timeout, c.Every, c.StaleAfter = "x", d.Timeout, d.Every, d.StaleAfter
		if c.Family == 0 {
			c.Family = 4
		}
		if err := c.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := New(Config{DHCP: []DHCPConfig{{}}}, Options{}); err == nil {
		t.Error("a configuration that is none was taken")
	}
}

func FuzzInventory(f *testing.F) {
	f.Add("address;workload;groups\n10.0.0.1;a;\"x|y\"\n\"::1 10.0.0.2\";b\n")
	f.Add("inventory:\n  - address: 10.0.0.1\n    workload: a\n  - {addresses: [::2], groups: [b]}\n")
	f.Add("- - - a\n- [[{x: y}]]\n")
	f.Fuzz(func(t *testing.T, text string) {
		path := "f.csv"
		if len(text)%2 == 0 {
			path = "f.yaml"
		}
		partial := &partialError{}
		facts, err := readInventory(path, []byte(text), nil, partial)
		if err != nil && !strings.HasPrefix(err.Error(), path+":") {
			t.Fatalf("it does not say where: %v", err)
		}
		if partial.entries > 0 && (partial.err == nil || !partial.all && len(partial.addrs) == 0) {
			t.Fatalf("%+v", partial)
		}
		for i := range facts {
			checkFact(t, &facts[i])
		}
		var p *partialError
		if e := partial.orNil(); (e == nil) != (partial.entries == 0) || e != nil && !errors.As(e, &p) {
			t.Fatal(e)
		}
	})
}

// TestInventoryBadAddressBeside: an address that cannot be read may be any, also where
// something else is wrong with its entry; then nothing that is missing counts as gone.
func TestInventoryBadAddressBeside(t *testing.T) {
	for _, c := range []struct {
		name, text string
		all        bool
	}{
		{"f.csv", "address,workload\n10.0.0.1 10.0.0.x,a,b\n", true},
		{"f.csv", "address,workload\n10.0.0.1 10.0.0.2,a,b\n", false},
		{"f.csv", "address,workload\n10.0.0.1 10.0.0.x,\"a\n", true},
		{"f.csv", "address,workload\n10.0.0.1,\"a\n", false},
		{"f.yaml", "- {address: [10.0.0.1, 10.0.0.x], worklod: a}\n", true},
		{"f.yaml", "- {address: [10.0.0.1, 10.0.0.2], worklod: a}\n", false},
		{"f.yaml", "- {worklod: a, address: 10.0.0.1, addresses: {a: b}}\n", true},
		{"f.json", `{"address": "10.0.0.1", "addresses": {"a": "b"}, "workload": "a"}`, true},
		{"f.json", `{"address": "10.0.0.1", "workload": {"a": "b"}}`, false},
		{"f.json", `{"address": ["10.0.0.1", "10.0.0.x"], "worklod": "a"}`, true},
	} {
		partial := &partialError{}
		if c.name == "f.json" {
			var v any
			if err := json.Unmarshal([]byte(c.text), &v); err != nil {
				t.Fatal(err)
			}
			_, addrs, subject, err := httpEntry(v)
			partial.add(err, addrs, subject)
		} else if _, err := readInventory(c.name, []byte(c.text), nil, partial); err != nil {
			t.Fatal(err)
		}
		if partial.entries != 1 || partial.all != c.all || !c.all && !partial.addrs[flow.MustParseAddr("10.0.0.1")] {
			t.Errorf("%s: %+v; want all: %v", c.text, partial, c.all)
		}
	}
}

// TestInventoryFolderAway: the empty folder that is left where a share is not mounted ends
// nothing.
func TestInventoryFolderAway(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "share")
	cfg := DefaultInventoryConfig()
	cfg.Name, cfg.Path = "hosts", dir
	src, err := newInventory(cfg, "", wallClock, quiet(), nil)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "hosts.csv")
	err = errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(path, []byte("address,workload\n10.0.0.1,a\n"), 0o600), os.Chtimes(path, time.Time{}, time.Now().Add(-time.Minute)))
	if err != nil {
		t.Fatal(err)
	}
	var rec recorder
	if err := src.poll(t.Context(), rec.tell); err != nil || len(rec.open()) != 1 {
		t.Fatalf("%v, %+v", err, rec.all)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := src.poll(t.Context(), rec.tell); err == nil || !strings.Contains(err.Error(), "holds no file") || len(rec.open()) != 1 || len(rec.beats) != 1 {
		t.Errorf("an empty folder: %v, %+v, %v", err, rec.all, rec.beats)
	}
	// Whoever means that there is nothing says so.
	if err := os.WriteFile(path, []byte("address,workload\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := src.poll(t.Context(), rec.tell); err != nil || len(rec.open()) != 0 {
		t.Errorf("a file without rows: %v, %+v", err, rec.all)
	}
}
