package identity

import (
	"net/http"
	"net/url"
)

// httpPreset fills in what a configuration leaves empty; url is that of the server.
type httpPreset func(c *HTTPConfig, server *url.URL)

// httpPresets are the products whose API is known here.
var httpPresets = map[string]httpPreset{"okta": presetOkta, "netbox": presetNetBox}

// withPreset is c with what its preset says, and what is left empty at its default.
func (c HTTPConfig) withPreset() HTTPConfig {
	d := DefaultHTTPConfig()
	if c.Method == "" {
		c.Method = d.Method
	}
	if preset, ok := httpPresets[c.Preset]; ok {
		if u, err := url.Parse(c.URL); err == nil {
			preset(&c, u)
		}
	}
	if c.TokenScheme == "" {
		c.TokenScheme = "Bearer"
	}
	if c.Pages.By == "" {
		c.Pages.By = pagesNone
	}
	return c
}

func orElse(s *string, value string) {
	if *s == "" {
		*s = value
	}
}

// atPath gives the server's URL a path and query unless it has one already.
func atPath(c *HTTPConfig, server *url.URL, path, query string) {
	if (server.Path == "" || server.Path == "/") && server.RawQuery == "" {
		u := *server
		u.Path, u.RawQuery = path, query
		c.URL = u.String()
	}
}

// presetOkta reads the users of an Okta organisation with their groups and whether they
// may log on.
//
//   - GET /api/v1/users?limit=200 lists users but those that were deactivated
//     (DEPROVISIONED); 200 is the most a page may have. Read of a user: status,
//     profile.login.
//     https://developer.okta.com/docs/api/openapi/okta-management/management/tag/User/
//   - GET /api/v1/groups?limit=200 lists groups ("We recommend using a limit less than or
//     equal to 200"), GET /api/v1/groups/{groupId}/users?limit=1000 the members of one.
//     Read of a group: id, profile.name; of a member: id.
//     https://developer.okta.com/docs/api/openapi/okta-management/management/tag/Group/
//   - Pages follow by the Link header with rel="next"; the cursor in it (after) is opaque.
//     https://developer.okta.com/docs/api/#pagination
//   - An API token goes as Authorization: SSWS {token}; an OAuth 2.0 access token as
//     Bearer, with the scopes okta.users.read and okta.groups.read.
//     https://developer.okta.com/docs/reference/core-okta-api/#authentication
//   - 429 carries X-Rate-Limit-Reset, in seconds since 1970.
//     https://developer.okta.com/docs/reference/rl-best-practices/
//
// Not verified against a real organisation.
func presetOkta(c *HTTPConfig, server *url.URL) {
	atPath(c, server, "/api/v1/users", "limit=200")
	orElse(&c.TokenScheme, "SSWS")
	orElse(&c.Pages.By, pagesLink)
	if c.Related == nil {
		c.Related = []RelatedConfig{{
			Name:  "groups",
			URL:   "/api/v1/groups?limit=200",
			Items: `.[]`,
			Each:  `"/api/v1/groups/" + (.id | @uri) + "/users?limit=1000"`,
			// The names of a user's groups by the user's id.
			Value: `reduce .[] as $g ({}; reduce ($g.related[].id) as $u (.; .[$u] += [$g.item.profile.name]))`,
		}}
	}
	orElse(&c.Map, `.[] | {subject: .profile.login, user: .profile.login, groups: ($groups[.id] // []),
  disabled: ([.status] | inside(["STAGED", "LOCKED_OUT", "SUSPENDED", "DEPROVISIONED"]))}`)
}

// presetNetBox reads the addresses that NetBox has assigned to an interface of a device
// or virtual machine.
//
//   - GET /api/ipam/ip-addresses/?limit=500 lists addresses. Read: results[].address (with
//     its prefix length), results[].status.value, results[].assigned_object_type
//     (dcim.interface or virtualization.vminterface), results[].assigned_object.device.name
//     or .virtual_machine.name, results[].dns_name.
//     https://netboxlabs.com/docs/netbox/integrations/rest-api/ and
//     https://netboxlabs.com/docs/netbox/models/ipam/ipaddress/
//   - Pages follow by next; MAX_PAGE_SIZE is 1,000 unless the installation changed it.
//     https://netboxlabs.com/docs/netbox/integrations/rest-api/#pagination
//   - A token goes as Authorization: Token {token}; the tokens of version 4.5 and later
//     (nbt_…) as Bearer: set tokenScheme.
//     https://netboxlabs.com/docs/netbox/integrations/rest-api/#authentication
//
// A device's name is both workload and device, a virtual machine's is the workload. The
// status must be active, dhcp or slaac; reserved and deprecated addresses are nobody's.
// An address that several VRFs have is told for each holder: they contradict, and count
// as ambiguous. Not verified against a running NetBox.
func presetNetBox(c *HTTPConfig, server *url.URL) {
	atPath(c, server, "/api/ipam/ip-addresses/", "limit=500")
	orElse(&c.TokenScheme, "Token")
	orElse(&c.Pages.By, pagesNext)
	orElse(&c.Pages.Next, `.next`)
	orElse(&c.Map, `.results[] | select(.status.value | IN("active", "dhcp", "slaac"))
| (.assigned_object.device.name? // null) as $device
| (.assigned_object.virtual_machine.name? // null) as $vm
| select($device != null or $vm != null)
| {address: (.address | split("/")[0]), workload: ($vm // $device), device: $device}`)
	orElse(&c.Method, http.MethodGet)
}
