package flow

import (
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"
)

// PrincipalKind is what sort of account a name stands for.
type PrincipalKind uint8

// The kinds of account.
const (
	// PrincipalNone is no account at all: an empty field, "-", or a local account of a
	// machine that the name does not tell (".\alice").
	PrincipalNone PrincipalKind = iota
	// PrincipalUser is a person or a service account.
	PrincipalUser
	// PrincipalMachine is a machine's account or a group-managed service account: it ends in "$".
	PrincipalMachine
	// PrincipalSystem is the operating system itself or nobody: SYSTEM, LOCAL SERVICE,
	// NETWORK SERVICE, ANONYMOUS LOGON, DWM-1, UMFD-0, virtual accounts of services.
	PrincipalSystem
)

// MaxPrincipal is the longest account name in bytes that counts as one. Longer ones would
// be cut when interned, and two of them could become one.
const MaxPrincipal = maxNameLength

// Domains says which spellings of a domain are the same, for [Domains.Principal]. Nil
// knows none. It is only read after it was made and safe for concurrent use.
type Domains struct {
	def   string
	alias map[string]string
}

// NewDomains makes Domains. def is the domain whose accounts are written without one; it
// may be empty. aliases gives, for a domain's other names (its NetBIOS name, a further UPN
// suffix), the domain, also by way of another alias; aliases that go round in a circle
// count for nothing.
func NewDomains(def string, aliases map[string]string) *Domains {
	next := make(map[string]string, len(aliases))
	for from, to := range aliases {
		next[domainText(from)] = domainText(to)
	}
	d := &Domains{alias: make(map[string]string, len(next))}
	for from := range next {
		to := next[from]
		for range len(next) {
			if next[to] == "" {
				d.alias[from] = to
				break
			}
			to = next[to]
		}
	}
	d.def = d.resolve(domainText(def))
	return d
}

func domainText(s string) string {
	s = strings.TrimRightFunc(s, func(r rune) bool { return r == '.' || unicode.IsSpace(r) })
	return lower(strings.TrimSpace(s))
}

func (d *Domains) resolve(domain string) string {
	if d == nil {
		return domain
	}
	if to := d.alias[domain]; to != "" {
		return to
	}
	return domain
}

// Principal gives the one spelling of an account's name that all of its spellings share,
// and its kind; the empty string where the kind is none.
//
// The canonical form is lower case: user@domain, and plain user where no domain was told
// or it is the default one. CORP\alice, corp\Alice and ALICE@CORP are all alice@corp.
// Which DNS domain CORP is, and whose users appear without a domain, no name tells, so only
// the configuration joins them: guessing would give one alice the rights of another, and
// HOST\administrator those of the domain's. A name of no known form (several backslashes
// or @) stays as it is, in lower case. Principal of a canonical form is itself.
func (d *Domains) Principal(name string) (canonical string, kind PrincipalKind) {
	name = strings.TrimSpace(name)
	if name == "" || len(name) > MaxPrincipal {
		return "", PrincipalNone
	}
	name = lower(name)
	user, domain := name, ""
	if before, after, ok := strings.Cut(name, `\`); ok {
		switch {
		case strings.Contains(after, `\`):
			return kindOf(name, name, "")
		case strings.Contains(after, "@"):
			// AzureAD\alice@corp.example: the part after the backslash says it all.
			return d.Principal(after)
		}
		if strings.TrimSpace(before) == "." {
			return "", PrincipalNone
		}
		user, domain = strings.TrimSpace(after), domainText(before)
		if strings.Contains(domain, "@") {
			return kindOf(name, name, "")
		}
	} else if i := strings.LastIndexByte(name, '@'); i >= 0 {
		user, domain = strings.TrimSpace(name[:i]), domainText(name[i+1:])
		if strings.Contains(user, "@") || user != "" && domain == "" {
			return kindOf(name, name, "")
		}
	}
	if user == "" {
		return "", PrincipalNone
	}
	if systemDomains[domain] { // before any alias
		return joined(user, domain), PrincipalSystem
	}
	domain = d.resolve(domain)
	if d != nil && domain == d.def {
		domain = ""
	}
	return kindOf(joined(user, domain), user, domain)
}

func joined(user, domain string) string {
	if domain == "" {
		return user
	}
	return user + "@" + domain
}

// kindOf gives canonical and the kind of an account; user and domain are its parts.
func kindOf(canonical, user, domain string) (string, PrincipalKind) {
	switch {
	case len(canonical) > MaxPrincipal:
		return "", PrincipalNone
	case noPrincipals[canonical]:
		return "", PrincipalNone
	case systemUsers[user] || systemDomains[domain] || numbered(user, "dwm-") || numbered(user, "umfd-"):
		return canonical, PrincipalSystem
	case systemSID(user):
		return canonical, PrincipalSystem
	case strings.HasSuffix(user, "$"):
		return canonical, PrincipalMachine
	}
	return canonical, PrincipalUser
}

// What formats write where there is no account.
var noPrincipals = map[string]bool{"-": true, "(null)": true, "n/a": true, "unknown": true, "<unknown>": true}

// The well-known accounts of Windows, English and German; a SID has no language.
var systemUsers = map[string]bool{
	"system": true, "local system": true, "localsystem": true, "local service": true, "localservice": true,
	"network service": true, "networkservice": true, "anonymous logon": true, "anonymous": true, "iusr": true,
	"lokaler dienst": true, "netzwerkdienst": true, "anonymous-anmeldung": true,
}

// The domains that hold nothing but accounts of the system and of services.
var systemDomains = map[string]bool{
	"nt authority": true, "nt-autorität": true, "autorite nt": true, "nt service": true, "nt virtual machine": true,
	"window manager": true, "font driver host": true, "iis apppool": true,
}

// numbered says whether s is prefix and a number.
func numbered(s, prefix string) bool {
	n, ok := strings.CutPrefix(s, prefix)
	return ok && n != "" && strings.Trim(n, "0123456789") == ""
}

// systemSID says whether s is the SID of an account of the system: anonymous, local
// system, local service, network service, virtual accounts of services (80), application
// pools (82), window manager (90) and font driver hosts (96).
func systemSID(s string) bool {
	rest, ok := strings.CutPrefix(s, "s-1-5-")
	if !ok {
		return false
	}
	first, _, more := strings.Cut(rest, "-")
	switch first {
	case "7", "18", "19", "20":
		return !more
	case "80", "82", "83", "90", "96":
		return more
	}
	return false
}

// lower is s in lower case; of bytes that are no UTF-8 only the ASCII letters, so that
// two names never become one by way of the replacement character.
func lower(s string) string {
	if utf8.ValidString(s) {
		return strings.ToLower(s)
	}
	b := []byte(s)
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// HostLabel is the first part of a host's name with a domain; of what has none, or is an address of
// any kind, it is all of it.
func HostLabel(name string) string {
	if _, err := netip.ParseAddr(name); err == nil {
		return name
	}
	before, _, _ := strings.Cut(name, ".")
	return before
}
