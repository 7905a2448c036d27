package identity

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/go-ldap/ldap/v3"
)

// Filters of Active Directory. sAMAccountType is indexed everywhere; 805306368 is a user,
// and 805306369 a computer or a managed service account (MS-SAMR 2.2.1.9).
const (
	adUsers = "(|(sAMAccountType=805306368)(objectClass=msDS-GroupManagedServiceAccount)(objectClass=msDS-ManagedServiceAccount))"
	// Of groups only those for security count (MS-ADTS 2.2.12): a distribution list,
	// which people may be free to join, gives nobody a right.
	adGroups    = "(&(objectClass=group)(groupType:1.2.840.113556.1.4.803:=2147483648))"
	adComputers = "(&(sAMAccountType=805306369)(objectCategory=computer)(!(objectClass=msDS-GroupManagedServiceAccount))(!(objectClass=msDS-ManagedServiceAccount)))"
)

var (
	adSubjectAttributes  = []string{"objectClass", "sAMAccountName", "userPrincipalName", "servicePrincipalName", "userAccountControl", "accountExpires", "primaryGroupID", "objectSid"}
	adComputerAttributes = []string{"objectClass", "sAMAccountName", "dNSHostName", "userAccountControl", "accountExpires", "primaryGroupID", "objectSid"}
)

const (
	adAccountDisabled = 0x2                 // userAccountControl, ADS_UF_ACCOUNTDISABLE (MS-ADTS 2.2.16)
	adNever           = 9223372036854775807 // accountExpires
)

// readActiveDirectory reads a domain.
func (s *ldapSession) readActiveDirectory(ctx context.Context, d *ldapDirectory) error {
	netBIOS, dns, err := s.domainNames(ctx)
	if err != nil {
		return err
	}
	if d.domain == "" {
		d.domain = netBIOS
	}
	filter, name := or(s.cfg.Users.Filter, adUsers), or(s.cfg.Users.Name, "sAMAccountName")
	err = s.search(ctx, or(s.cfg.Users.Base, s.base), filter, append([]string{name}, adSubjectAttributes...), func(e *ldap.Entry) error {
		return d.addADSubject(e, name, dns, ldapUser)
	})
	if err != nil {
		return fmt.Errorf("users: %w", err)
	}
	if err := s.markServices(ctx, d, filter); err != nil {
		return err
	}
	if s.cfg.Computers {
		err := s.search(ctx, s.base, adComputers, adComputerAttributes, func(e *ldap.Entry) error {
			return d.addADSubject(e, "sAMAccountName", dns, ldapComputer)
		})
		if err != nil {
			return fmt.Errorf("computers: %w", err)
		}
	}
	return s.readGroups(ctx, d, or(s.cfg.Groups.Filter, adGroups), or(s.cfg.Groups.Name, "sAMAccountName"), []string{"member"}, []string{"objectSid"},
		func(e *ldap.Entry, node int32) error {
			if sid := e.GetEqualFoldRawAttributeValue("objectSid"); len(sid) > 2 {
				d.primary[string(sid[2:])] = node
			}
			return nil
		})
}

// domainNames is what the domain is called: its NetBIOS name and its name in the DNS
// (MS-ADTS 6.1.1.2.1.1.5). Both may be empty.
func (s *ldapSession) domainNames(ctx context.Context) (netBIOS, dns string, err error) {
	// A base below the domain's own is still of that domain, so the naming context that
	// holds it is looked for: the longest.
	base, err := ldap.ParseDN(s.base)
	if err != nil {
		return "", "", fmt.Errorf("base %q: %w", s.base, err)
	}
	if s.configuration == "" {
		if s.cfg.Domain == "" {
			return "", "", errors.New("the server does not say where its configuration is; set domain")
		}
		return "", "", nil
	}
	longest := -1
	err = s.search(ctx, "CN=Partitions,"+s.configuration, "(&(objectClass=crossRef)(nETBIOSName=*))", []string{"nCName", "nETBIOSName", "dnsRoot"}, func(e *ldap.Entry) error {
		context, err := ldap.ParseDN(e.GetEqualFoldAttributeValue("nCName"))
		if err != nil || len(context.RDNs) <= longest || !context.AncestorOfFold(base) && !context.EqualFold(base) {
			return nil //nolint:nilerr // another one's entry
		}
		longest = len(context.RDNs)
		netBIOS, _ = cleanName(e.GetEqualFoldAttributeValue("nETBIOSName"))
		dns, _ = cleanName(e.GetEqualFoldAttributeValue("dnsRoot"))
		return nil
	})
	if err != nil {
		return "", "", fmt.Errorf("the domain's name: %w", err)
	}
	if netBIOS == "" && s.cfg.Domain == "" {
		return "", "", fmt.Errorf("the server does not say what the domain of %q is called; set domain", s.base)
	}
	return netBIOS, dns, nil
}

// addADSubject takes a user, a managed service account or a computer.
func (d *ldapDirectory) addADSubject(e *ldap.Entry, attribute, dns string, kind ldapKind) error {
	if err := d.room(); err != nil {
		return err
	}
	name, _, ok := nameOf(e, attribute)
	if !ok {
		return d.skip(e.DN, nil, "%s is missing or cannot be used", attribute)
	}
	s := ldapSubject{kind: kind, name: d.subjectName(name)}
	if s.name == "" {
		return d.skip(e.DN, nil, "%s is %q, which is nobody's name", attribute, name)
	}
	switch kind {
	case ldapComputer:
		if host, ok := cleanName(e.GetEqualFoldAttributeValue("dNSHostName")); ok {
			s.device = strings.ToLower(host)
		} else {
			s.device = strings.ToLower(strings.TrimSuffix(name, "$"))
		}
	default:
		sam, _ := cleanName(e.GetEqualFoldAttributeValue("sAMAccountName"))
		if principal, ok := cleanName(e.GetEqualFoldAttributeValue("userPrincipalName")); ok && strings.Contains(principal, "@") && !strings.Contains(principal, `\`) {
			s.aliases = append(s.aliases, d.subjectName(principal))
		}
		if sam != "" && dns != "" {
			s.aliases = append(s.aliases, d.subjectName(sam+"@"+dns)) // always valid, whatever userPrincipalName says (MS-ADTS 5.1.1.1.1)
		}
	}
	for _, class := range e.GetEqualFoldAttributeValues("objectClass") {
		if kind == ldapUser && (strings.EqualFold(class, "msDS-GroupManagedServiceAccount") || strings.EqualFold(class, "msDS-ManagedServiceAccount")) {
			s.kind = ldapService
		}
	}
	if kind == ldapUser && len(e.GetEqualFoldAttributeValues("servicePrincipalName")) > 0 {
		s.kind = ldapService // Kerberos gives tickets for it: something answers under its name
	}
	control, err := strconv.ParseInt(e.GetEqualFoldAttributeValue("userAccountControl"), 10, 64)
	if err != nil {
		return d.skipSubject(e.DN, &s, "userAccountControl is %q; without it nobody knows whether the account is disabled (bindDN must be allowed to read it)", shorten(e.GetEqualFoldAttributeValue("userAccountControl")))
	}
	expires, err := adTime(e.GetEqualFoldAttributeValue("accountExpires"))
	if err != nil {
		return d.skipSubject(e.DN, &s, "accountExpires: %w", err)
	}
	s.disabled = control&adAccountDisabled != 0 || !expires.IsZero() && !d.now.Std().Before(expires)
	sid := e.GetEqualFoldRawAttributeValue("objectSid")
	rid, err := strconv.ParseUint(e.GetEqualFoldAttributeValue("primaryGroupID"), 10, 32)
	if err != nil || len(sid) < 12 {
		return d.skipSubject(e.DN, &s, "primaryGroupID is %q and objectSid %x; without them its primary group is not known (bindDN must be allowed to read them)", shorten(e.GetEqualFoldAttributeValue("primaryGroupID")), sid[:min(len(sid), 68)])
	}
	// A SID ends with a number of its own, the relative id; what is before is the domain's
	// (MS-DTYP 2.4.2.2).
	s.primary = string(binary.LittleEndian.AppendUint32(append([]byte(nil), sid[2:len(sid)-4]...), uint32(rid)))
	d.addSubject(e.DN, s)
	return nil
}

// adTime is a time as Active Directory writes it, in 100 ns since 1601; zero for never.
func adTime(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return time.Time{}, fmt.Errorf("%q is no time in 100 ns since 1601", shorten(s))
	}
	if n == 0 || n == adNever {
		return time.Time{}, nil
	}
	const epoch = 11_644_473_600_000 // from 1601 to 1970, in ms
	return time.UnixMilli(n/10_000 - epoch), nil
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
