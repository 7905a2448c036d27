package identity

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
)

// caFile is the certificate of a test server in a file.
func caFile(t *testing.T, s *httptest.Server) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// apiReader is a reader of an API at a test server; alter changes the configuration.
func apiReader(t *testing.T, handler http.HandlerFunc, alter func(c *HTTPConfig)) *httpReader {
	t.Helper()
	server := httptest.NewTLSServer(handler)
	t.Cleanup(server.Close)
	cfg := DefaultHTTPConfig()
	cfg.Name, cfg.URL, cfg.TLS.CA = "api", server.URL, caFile(t, server)
	alter(&cfg)
	r, err := newHTTPReader(cfg, func(ref string) (string, error) { return strings.TrimPrefix(ref, "env:"), nil }, clockNow, quiet())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func factTexts(facts []flow.Fact) (out []string) {
	for _, f := range facts {
		about := f.Subject
		if about == "" {
			about = f.Addr.String()
		}
		out = append(out, fmt.Sprintf("%s %s workload=%s device=%s user=%s account=%s groups=%s posture=%s since=%v until=%v disabled=%v",
			f.Kind, about, f.Workload, f.Device, f.User, f.Account, strings.Join(f.Groups, ","), f.Posture, f.Since, f.Until, f.Disabled))
	}
	slices.Sort(out)
	return out
}

// TestOkta: users, groups and members as Okta documents them, with pages by cursor and a
// rate limit in between. The answers are made by us after its API reference.
func TestOkta(t *testing.T) {
	type object = map[string]any
	user := func(id, login, status string) object {
		return object{"id": id, "status": status, "created": "2013-06-24T16:39:18.000Z", "statusChanged": nil,
			"profile":     object{"firstName": "x", "login": login, "email": login, "mobilePhone": nil},
			"credentials": object{"provider": object{"type": "OKTA", "name": "OKTA"}}, "_links": object{"self": object{"href": "https://elsewhere.example/api/v1/users/" + id}}}
	}
	group := func(id, name string) object {
		return object{"id": id, "objectClass": []string{"okta:user_group"}, "type": "OKTA_GROUP", "profile": object{"name": name, "description": nil}}
	}
	users := []object{user("u1", "alice@corp.example", "ACTIVE"), user("u2", "bob@corp.example", "SUSPENDED"), user("u3", "carol@corp.example", "PASSWORD_EXPIRED"), user("u4", "dave@corp.example", "STAGED")}
	groups := []object{group("g1", "Everyone"), group("g2", "DB Admins"), group("g3", "Nobody")}
	members := map[string][]object{"g1": users, "g2": {users[0]}, "g3": {}}
	limited := 0
	var host string
	handler := func(w http.ResponseWriter, r *http.Request) {
		host = r.Host
		if r.Header.Get("Authorization") != "SSWS TOKEN" || r.Header.Get("Accept") != "application/json" {
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, `{"errorCode":"E0000011","errorSummary":"Invalid token provided"}`)
			return
		}
		if limited++; limited == 3 {
			w.Header().Set("X-Rate-Limit-Reset", strconv.FormatInt(time.Now().Unix()+1, 10))
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		var list []object
		parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
		switch {
		case r.URL.Path == "/api/v1/users":
			list = users
		case r.URL.Path == "/api/v1/groups":
			list = groups
		case len(parts) == 5 && parts[2] == "groups" && parts[4] == "users":
			list = members[parts[3]]
		default:
			t.Errorf("asked for %s", r.URL)
		}
		// Pages of two, by an opaque cursor; both relations are in headers of their own.
		after, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Query().Get("after"), "c"))
		w.Header().Add("Link", fmt.Sprintf("<https://%s%s>; rel=\"self\"", r.Host, r.URL))
		end := min(after+2, len(list))
		if end < len(list) {
			w.Header().Add("Link", fmt.Sprintf("<https://%s%s?after=c%d&limit=%s>; rel=\"next\"", r.Host, r.URL.Path, end, r.URL.Query().Get("limit")))
		}
		_ = json.NewEncoder(w).Encode(list[after:end])
	}
	r := apiReader(t, handler, func(c *HTTPConfig) { c.Preset, c.Token = "okta", "env:TOKEN" })
	facts, err := r.read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"directory alice@corp.example workload= device= user=alice@corp.example account= groups=DB Admins,Everyone posture= since= until= disabled=false",
		"directory bob@corp.example workload= device= user=bob@corp.example account= groups=Everyone posture= since= until= disabled=true",
		"directory carol@corp.example workload= device= user=carol@corp.example account= groups=Everyone posture= since= until= disabled=false",
		"directory dave@corp.example workload= device= user=dave@corp.example account= groups=Everyone posture= since= until= disabled=true",
	}
	if diff := cmp.Diff(want, factTexts(facts)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if limited != 9 { // 2 pages of users, 2 of groups, 2+1+1 of members, and one that was put off
		t.Errorf("%d requests to %s", limited, host)
	}
	bad := apiReader(t, handler, func(c *HTTPConfig) { c.Preset, c.Token = "okta", "env:wrong" })
	if _, err := bad.read(t.Context()); err == nil || !strings.Contains(err.Error(), "401 Unauthorized") || !strings.Contains(err.Error(), "Invalid token") || strings.Contains(err.Error(), "wrong") {
		t.Errorf("a wrong token: %v", err)
	}
}

// TestNetBox: addresses as NetBox documents them, with pages by next. The answers are made
// by us after its documentation; next names http:// as behind a proxy that ends TLS.
func TestNetBox(t *testing.T) {
	page1 := `{"count": 6, "next": "http://HOST/api/ipam/ip-addresses/?limit=500&offset=500", "previous": null, "results": [
 {"id": 1, "url": "https://HOST/api/ipam/ip-addresses/1/", "family": {"value": 4, "label": "IPv4"}, "address": "10.0.0.5/24", "vrf": null, "status": {"value": "active", "label": "Active"}, "role": null,
  "assigned_object_type": "dcim.interface", "assigned_object_id": 7, "assigned_object": {"id": 7, "device": {"id": 3, "name": "rtr-1", "display": "rtr-1"}, "name": "eth0"}, "dns_name": ""},
 {"id": 2, "family": {"value": 6, "label": "IPv6"}, "address": "2001:db8::5/64", "status": {"value": "slaac", "label": "SLAAC"},
  "assigned_object_type": "virtualization.vminterface", "assigned_object_id": 9, "assigned_object": {"id": 9, "virtual_machine": {"id": 4, "name": "db-vm"}, "name": "ens3"}, "dns_name": "db.example.net"},
 {"id": 3, "family": {"value": 4, "label": "IPv4"}, "address": "10.0.0.6/24", "status": {"value": "reserved", "label": "Reserved"}, "assigned_object_type": null, "assigned_object": null}
]}`
	page2 := `{"count": 6, "next": null, "previous": "http://HOST/api/ipam/ip-addresses/?limit=500", "results": [
 {"id": 4, "address": "10.0.0.7/24", "status": {"value": "active"}, "assigned_object": null},
 {"id": 5, "address": "10.0.0.8/24", "status": {"value": "dhcp"}, "assigned_object_type": "ipam.fhrpgroup", "assigned_object": {"id": 1, "protocol": "vrrp2"}},
 {"id": 6, "address": "10.0.0.9/32", "status": {"value": "deprecated"}, "assigned_object": {"virtual_machine": {"name": "old"}}}
]}`
	handler := func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Token TOKEN" || r.URL.Path != "/api/ipam/ip-addresses/" || r.URL.Query().Get("limit") != "500" {
			t.Errorf("asked %s with %v", r.URL, r.Header)
		}
		page := page1
		if r.URL.Query().Get("offset") == "500" {
			page = page2
		}
		fmt.Fprint(w, strings.ReplaceAll(page, "HOST", r.Host))
	}
	r := apiReader(t, handler, func(c *HTTPConfig) { c.Preset, c.Token = "netbox", "env:TOKEN" })
	facts, err := r.read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{
		"static 10.0.0.5 workload=rtr-1 device=rtr-1 user= account= groups= posture= since= until= disabled=false",
		"static 2001:db8::5 workload=db-vm device= user= account= groups= posture= since= until= disabled=false",
	}, factTexts(facts)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestHTTPPages(t *testing.T) {
	// Seven hosts, h0 to h6, in pages of three.
	items := func(from, n int) []any {
		out := []any{}
		for i := from; i < min(from+n, 7); i++ {
			out = append(out, map[string]any{"ip": fmt.Sprintf("10.0.0.%d", i+1), "name": fmt.Sprintf("h%d", i)})
		}
		return out
	}
	number := func(r *http.Request, key string) int { n, _ := strconv.Atoi(r.URL.Query().Get(key)); return n }
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		alter   func(c *HTTPConfig)
	}{
		"offset": {func(w http.ResponseWriter, r *http.Request) {
			_ = json.NewEncoder(w).Encode(map[string]any{"items": items(number(r, "offset"), number(r, "limit"))})
		}, func(c *HTTPConfig) {
			c.Pages = PagesConfig{By: "offset", Param: "offset", SizeParam: "limit", Size: 3, Items: ".items"}
		}},
		"page": {func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("q") != "x y" {
				t.Errorf("asked %s", r.URL)
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"items": items((number(r, "page")-1)*3, 3)})
		}, func(c *HTTPConfig) {
			c.URL += "/list?q=x+y"
			c.Pages = PagesConfig{By: "page", Param: "page", First: 1, Size: 3, Items: ".items[]"}
		}},
		"next": {func(w http.ResponseWriter, r *http.Request) {
			at, next := number(r, "at"), any(nil)
			if at < 6 {
				next = fmt.Sprintf("?at=%d", at+3)
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"items": items(at, 3), "meta": map[string]any{"next": next}})
		}, func(c *HTTPConfig) { c.Pages = PagesConfig{By: "next", Next: ".meta.next"} }},
		"post, one page, a redirect to itself": {func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/v2" {
				http.Redirect(w, r, "/v2", http.StatusTemporaryRedirect)
				return
			}
			var q map[string]any
			if err := json.NewDecoder(r.Body).Decode(&q); err != nil || q["all"] != true || r.Header.Get("Authorization") != "Bearer TOKEN" || r.Header.Get("X-Tenant") != "seven" {
				t.Errorf("asked %v with %v (%v)", q, r.Header, err)
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"items": items(0, 7)})
		}, func(c *HTTPConfig) {
			c.Method, c.Body, c.Token, c.Headers = "POST", `{"all": true}`, "env:TOKEN", map[string]string{"X-Tenant": "env:seven"}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := apiReader(t, c.handler, func(cfg *HTTPConfig) {
				cfg.Map = `.items[] | {address: .ip, workload: .name, since: "2026-01-01T00:00:00Z"}`
				c.alter(cfg)
			})
			facts, err := r.read(t.Context())
			if err != nil || len(facts) != 7 || facts[6].Workload != "h6" || facts[6].Kind != flow.FactLease {
				t.Fatalf("%v, %+v", err, facts)
			}
		})
	}
}

// TestHTTPRefused: a read that was not whole says so and gives nothing; no token leaves
// for another host.
func TestHTTPRefused(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("another host was asked, with %v", r.Header)
	}))
	defer other.Close()
	t.Setenv("HTTPS_PROXY", other.URL)
	t.Setenv("SECRET_OF_ENV", "leaked")
	item := `[{"address":"10.0.0.1","workload":"a"}]`
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		alter   func(c *HTTPConfig)
		want    string
	}{
		"redirect to another host": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL, http.StatusFound) }, nil, "redirects to other hosts are not followed"},
		"next at another host": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Link", "<https://evil.example/x>; rel=next")
			fmt.Fprint(w, item)
		}, func(c *HTTPConfig) { c.Pages.By = "link" }, `it leads to another host, "evil.example"`},
		"in a circle": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Link", "</>; rel=next")
			fmt.Fprint(w, item)
		}, func(c *HTTPConfig) { c.Pages.By = "link"; c.URL += "/" }, "leads in a circle"},
		"too many pages": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", fmt.Sprintf("</?n=%sx>; rel=next", r.URL.Query().Get("n")))
			fmt.Fprint(w, item)
		}, func(c *HTTPConfig) { c.Pages.By, c.MaxPages = "link", 3 }, "page 4 of : more than 3 requests would be needed (maxPages)"},
		"too large": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, strings.Repeat(" ", 2000)+item) }, func(c *HTTPConfig) { c.MaxPage = flow.KiB }, "larger than maxPage (1KiB)"},
		"too late":  {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, func(c *HTTPConfig) { c.Timeout = time.Second }, "page 1"},
		"no JSON":   {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>log in</html>") }, nil, "page 1 of : the answer is no JSON"},
		"overloaded": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(503)
		}, nil, "503 Service Unavailable"},
		"the program fails": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"a":1}`) },
			func(c *HTTPConfig) { c.Map = `.[] | .name` }, "page 1 of : the jq program failed"},
		"the program does not end": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `1`) },
			func(c *HTTPConfig) { c.Map, c.MapTimeout = `last(repeat(.))`, 50*time.Millisecond }, "longer than 50ms (mapTimeout)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewTLSServer(c.handler)
			defer server.Close()
			cfg := DefaultHTTPConfig()
			cfg.Name, cfg.URL, cfg.TLS.CA, cfg.Token, cfg.Map = "api", server.URL, caFile(t, server), "env:TOKEN", ".[]"
			if c.alter != nil {
				c.alter(&cfg)
			}
			r, err := newHTTPReader(cfg, func(string) (string, error) { return "T0KEN", nil }, clockNow, quiet())
			if err != nil {
				t.Fatal(err)
			}
			facts, err := r.read(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) || facts != nil || strings.Contains(err.Error(), "T0KEN") {
				t.Errorf("%v, %+v; want %s", err, facts, c.want)
			}
		})
	}
	// The environment is not there for programs.
	r := apiReader(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `1`) }, func(c *HTTPConfig) {
		c.Map = `{address: "10.0.0.1", workload: ([env, $ENV] | tojson)}`
	})
	if facts, err := r.read(t.Context()); err != nil || len(facts) != 1 || facts[0].Workload != "[{},{}]" {
		t.Errorf("the environment: %+v, %v", facts, err)
	}
}

// TestHTTPItems: one bad item loses no neighbour, and what it said before stays.
func TestHTTPItems(t *testing.T) {
	body := `[{"address":"10.0.0.1","workload":"a"},
 {"address":"10.0.0.0/24","workload":"b"},
 {"address":"10.0.0.3","worklode":"c"},
 {"address":"10.0.0.4","workload":{"x":1}},
 "text", null,
 {"subject":"bob","user":"bob","disabled":"yes"},
 {"addresses":["10.0.0.6","::ffff:10.0.0.7"],"groups":["b","a","b"],"posture":"ok","until":"2026-10-01"},
 {"addresses":["10.0.0.8","2001:db8::8"],"groups":["b","a","b"],"account":"svc","until":"2026-10-01T00:00:00Z"}]`
	r := apiReader(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) }, func(c *HTTPConfig) { c.Map = `.[]` })
	facts, err := r.read(t.Context())
	partial, ok := errors.AsType[*partialError](err)
	if !ok {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{
		"lease 10.0.0.8 workload= device= user= account=svc groups=a,b posture= since= until=2026-10-01T00:00:00.000Z disabled=false",
		"lease 2001:db8::8 workload= device= user= account=svc groups=a,b posture= since= until=2026-10-01T00:00:00.000Z disabled=false",
		"static 10.0.0.1 workload=a device= user= account= groups= posture= since= until= disabled=false",
	}, factTexts(facts)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, want := range []string{
		`page 1, item 2: "10.0.0.0/24" is a prefix; write single addresses, such as 10.0.0.0;`,
		`page 1, item 3: there is no key "worklode"; did you mean "workload"?`,
		`page 1, item 4: workload is object; it must be a text`,
		`page 1, item 5: the program gave string; it must give objects`,
		`page 1, item 7: disabled is string; it must be true or false`,
		`page 1, item 8: until "2026-10-01" is no time; times carry a zone: write 2026-10-01T00:00:00Z`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %s in\n%v", want, err)
		}
	}
	if partial.entries != 6 || !partial.all || !partial.subjects["bob"] || !partial.addrs[flow.MustParseAddr("10.0.0.7")] {
		t.Errorf("%+v", partial)
	}
}

func TestHTTPValidate(t *testing.T) {
	for name, c := range map[string]struct {
		alter func(c *HTTPConfig)
		want  string
	}{
		"good":            {func(*HTTPConfig) {}, ""},
		"no TLS":          {func(c *HTTPConfig) { c.URL = "http://api.example/x" }, "url: has no TLS"},
		"this machine":    {func(c *HTTPConfig) { c.URL = "http://127.0.0.1:8080/x" }, ""},
		"user in url":     {func(c *HTTPConfig) { c.URL = "https://u:hunter2@api.example/x" }, "url: holds user information"},
		"preset":          {func(c *HTTPConfig) { c.Preset = "netbix" }, `preset: "netbix" is not known; use one of netbox, okta`},
		"no program":      {func(c *HTTPConfig) { c.Map = "" }, "map: is empty"},
		"syntax":          {func(c *HTTPConfig) { c.Map = ".results[]\n| {address: .ip,, }" }, "map: this is no jq program, at its line 2, column 17"},
		"unknown name":    {func(c *HTTPConfig) { c.Map = ".[] | frobnicate" }, "map: this is no jq program: function not defined: frobnicate/0"},
		"unknown list":    {func(c *HTTPConfig) { c.Map = ".[] | $groups" }, "variable not defined: $groups"},
		"more input":      {func(c *HTTPConfig) { c.Map = "input" }, "map: this is no jq program: input(s)/0 is not allowed"},
		"modules":         {func(c *HTTPConfig) { c.Map = `import "a" as a; .[]` }, "map: this is no jq program"},
		"pages":           {func(c *HTTPConfig) { c.Pages.By = "links" }, `pages.by: "links" is not known; use none, link, next, offset or page`},
		"offset":          {func(c *HTTPConfig) { c.Pages.By = "offset" }, "pages: by offset needs param, size and items"},
		"two credentials": {func(c *HTTPConfig) { c.Token, c.Headers = "env:X", map[string]string{"authorization": "y"} }, "headers: Authorization is made of token"},
		"name":            {func(c *HTTPConfig) { c.Name = "../x" }, "name:"},
		"stale":           {func(c *HTTPConfig) { c.StaleAfter = time.Minute }, "staleAfter: 1m0s is shorter than every"},
		"body":            {func(c *HTTPConfig) { c.Method, c.Body = "POST", "{" }, "body: must be JSON"},
	} {
		cfg := DefaultHTTPConfig()
		cfg.Name, cfg.URL, cfg.Map = "api", "https://api.example/x", ".[]"
		c.alter(&cfg)
		err := cfg.Validate()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) || err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
	}
	for preset := range httpPresets {
		cfg := DefaultHTTPConfig()
		cfg.Name, cfg.URL, cfg.Preset, cfg.Token = "api", "https://api.example", preset, "env:X"
		if err := cfg.Validate(); err != nil {
			t.Errorf("%s: %v", preset, err)
		}
	}
}

func TestLinkNext(t *testing.T) {
	for in, want := range map[string]string{
		``:                             ``,
		`<https://a/?p=2>; rel="next"`: `https://a/?p=2`,
		`<a>; rel=self, <b>;title="x, <y>";rel="last next"`: `b`,
		`<a>; REL=Next`:                           `a`,
		`<a>; rev="next", <b>`:                    ``,
		`<a; rel=next`:                            ``,
		`,,<a>;rel=prev,<b?x=1,2>; rel = "next" `: `b?x=1,2`,
	} {
		if got := linkNext([]string{`<self>; rel="self"`, in}); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

// FuzzHTTPMapping: whatever a server answers, a mapping gives facts that hold together or
// says what is wrong.
func FuzzHTTPMapping(f *testing.F) {
	cfg := DefaultHTTPConfig()
	cfg.Name, cfg.URL, cfg.Map = "api", "https://api.example/x", `if type == "array" then .[] else . end`
	cfg.MapTimeout = time.Second
	r, err := newHTTPReader(cfg, nil, clockNow, quiet())
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(`[{"address":"10.0.0.1","workload":"a","groups":["x","y"]},{"subject":"u","disabled":true}]`), `<b>; rel="next"`)
	f.Add([]byte(`{"addresses":["::1",7],"since":"2026-01-01T00:00:00Z","until":5}`), `<b`)
	f.Fuzz(func(t *testing.T, b []byte, link string) {
		linkNext([]string{link})
		var body any
		if json.Unmarshal(b, &body) != nil {
			return
		}
		_ = r.run(context.Background(), r.programs.mapping, body, nil, func(v any) error {
			facts, _, _, err := httpEntry(v)
			if err != nil && (facts != nil || strings.TrimSpace(err.Error()) == "") {
				t.Fatalf("%v and %v", facts, err)
			}
			for _, fact := range facts {
				checkFact(t, &fact)
			}
			return nil
		})
	})
}

// checkFact says what is wrong with a fact of an inventory or an API.
func checkFact(t *testing.T, f *flow.Fact) {
	t.Helper()
	switch {
	case f.Addr.IsZero() == (f.Subject == ""):
		t.Fatalf("about neither or both: %+v", f)
	case f.Addr != f.Addr.Canonical():
		t.Fatalf("not canonical: %+v", f)
	case f.Kind == 0, f.Until != 0 && f.Until <= f.Since, !slices.IsSorted(f.Groups):
		t.Fatalf("a fact that does not hold together: %+v", f)
	}
	for _, s := range append([]string{f.Subject, f.Workload, f.Device, f.User, f.Account, f.Posture}, f.Groups...) {
		if name, what, _ := readName("name", s); what != "" || name != s {
			t.Fatalf("a name that is none: %q", s)
		}
	}
}
