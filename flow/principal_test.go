package flow

import (
	"strings"
	"testing"
)

func TestPrincipal(t *testing.T) {
	d := NewDomains("corp.example.com", map[string]string{"CORP": "Corp.Example.COM.", "example.com": "CORP", "LAB": "lab.example.com"})
	for _, c := range []struct {
		name, bare, configured string
		kind                   PrincipalKind
	}{
		{"Alice", "alice", "alice", PrincipalUser},
		{` CORP\Alice `, "alice@corp", "alice", PrincipalUser},
		{"alice@CORP", "alice@corp", "alice", PrincipalUser},
		{"ALICE@corp.example.com", "alice@corp.example.com", "alice", PrincipalUser},
		{"alice@corp.example.com.", "alice@corp.example.com", "alice", PrincipalUser},
		{"alice@example.com", "alice@example.com", "alice", PrincipalUser},
		{`LAB\alice`, "alice@lab", "alice@lab.example.com", PrincipalUser},
		{`WEB-01\Administrator`, "administrator@web-01", "administrator@web-01", PrincipalUser},
		{`AzureAD\alice@corp.example.com`, "alice@corp.example.com", "alice", PrincipalUser},
		{`\alice`, "alice", "alice", PrincipalUser},
		{`.\alice`, "", "", PrincipalNone},
		{`CORP\`, "", "", PrincipalNone},
		{"@corp", "", "", PrincipalNone},
		{"", "", "", PrincipalNone},
		{"-", "", "", PrincipalNone},
		{"(null)", "", "", PrincipalNone},
		{`a\b\c`, `a\b\c`, `a\b\c`, PrincipalUser},
		{"a@b@c", "a@b@c", "a@b@c", PrincipalUser},
		{"system:serviceaccount:pay:api", "system:serviceaccount:pay:api", "system:serviceaccount:pay:api", PrincipalUser},
		{`CORP\WEB-01$`, "web-01$@corp", "web-01$", PrincipalMachine},
		{"gmsa-sql$@corp", "gmsa-sql$@corp", "gmsa-sql$", PrincipalMachine},
		{`NT AUTHORITY\SYSTEM`, "system@nt authority", "system@nt authority", PrincipalSystem},
		{"ANONYMOUS LOGON", "anonymous logon", "anonymous logon", PrincipalSystem},
		{`NT AUTHORITY\ANONYMOUS LOGON`, "anonymous logon@nt authority", "anonymous logon@nt authority", PrincipalSystem},
		{"LOCAL SERVICE", "local service", "local service", PrincipalSystem},
		{"NETWORK SERVICE", "network service", "network service", PrincipalSystem},
		{`NT-AUTORITÄT\Netzwerkdienst`, "netzwerkdienst@nt-autorität", "netzwerkdienst@nt-autorität", PrincipalSystem},
		{`Window Manager\DWM-12`, "dwm-12@window manager", "dwm-12@window manager", PrincipalSystem},
		{"UMFD-0", "umfd-0", "umfd-0", PrincipalSystem},
		{"DWM-", "dwm-", "dwm-", PrincipalUser},
		{"dwm-x", "dwm-x", "dwm-x", PrincipalUser},
		{"S-1-5-18", "s-1-5-18", "s-1-5-18", PrincipalSystem},
		{"S-1-5-90-0-3", "s-1-5-90-0-3", "s-1-5-90-0-3", PrincipalSystem},
		{"S-1-5-21-1-2-3-1104", "s-1-5-21-1-2-3-1104", "s-1-5-21-1-2-3-1104", PrincipalUser},
		{strings.Repeat("a", MaxPrincipal+1), "", "", PrincipalNone},
	} {
		got, kind := (*Domains)(nil).Principal(c.name)
		if got != c.bare || kind != c.kind {
			t.Errorf("%q without configuration: %q, kind %d; want %q, kind %d", c.name, got, kind, c.bare, c.kind)
		}
		got, kind = d.Principal(c.name)
		if got != c.configured || kind != c.kind {
			t.Errorf("%q: %q, kind %d; want %q, kind %d", c.name, got, kind, c.configured, c.kind)
		}
	}
}

func FuzzPrincipal(f *testing.F) {
	for _, s := range []string{"Alice", `CORP\alice`, "alice@corp.example.com", `a\b@c`, `a\b\c`, "x@y@z", "a@.", "K@K", "\xff\\A", `NT AUTHORITY\SYSTEM`,
		"dwm-1@corp", `.\a`, " a @ b ", "A$", "İ@ẞ", "-@corp", `a\ b@c`} {
		f.Add(s)
	}
	d := NewDomains("corp", map[string]string{"b": "corp", "c": "d", "d": "c", "e": "f"})
	f.Fuzz(func(t *testing.T, s string) {
		for _, d := range []*Domains{nil, d} {
			name, kind := d.Principal(s)
			if (name == "") != (kind == PrincipalNone) || len(name) > MaxPrincipal {
				t.Fatalf("%q: %q, kind %d", s, name, kind)
			}
			if again, kindAgain := d.Principal(name); again != name || kindAgain != kind && name != "" {
				t.Fatalf("%q: %q, kind %d; again %q, kind %d", s, name, kind, again, kindAgain)
			}
			if upper, _ := d.Principal(strings.ToUpper(s)); isASCII(s) && upper != name {
				t.Fatalf("%q: %q, in upper case %q", s, name, upper)
			}
		}
	})
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r >= 0x80 }) < 0
}
