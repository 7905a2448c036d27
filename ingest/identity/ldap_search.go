package identity

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/go-ldap/ldap/v3"
)

// capabilityActiveDirectory is what Active Directory's root entry lists (MS-ADTS 3.1.1.3.4.3).
const capabilityActiveDirectory = "1.2.840.113556.1.4.800"

// learn asks the server what it is and where its entries begin (RFC 4512, 5.1).
func (s *ldapSession) learn(ctx context.Context) error {
	root, err := s.entry(ctx, "", []string{"supportedCapabilities", "namingContexts", "defaultNamingContext", "configurationNamingContext", "isSynchronized"})
	if err != nil {
		return fmt.Errorf("the server's root entry: %w", err)
	}
	switch s.cfg.Schema {
	case schemaAuto:
		s.activeDirectory = slices.Contains(root.GetAttributeValues("supportedCapabilities"), capabilityActiveDirectory)
	default:
		s.activeDirectory = s.cfg.Schema == schemaActiveDirectory
	}
	if root.GetEqualFoldAttributeValue("isSynchronized") == "FALSE" {
		return errors.New("this domain controller has not copied the domain yet (isSynchronized is FALSE), so it cannot tell all")
	}
	s.configuration = root.GetEqualFoldAttributeValue("configurationNamingContext")
	if s.base = s.cfg.Base; s.base == "" {
		s.base = root.GetEqualFoldAttributeValue("defaultNamingContext")
	}
	if contexts := root.GetEqualFoldAttributeValues("namingContexts"); s.base == "" && len(contexts) == 1 {
		s.base = contexts[0]
	}
	if s.base == "" {
		return errors.New("the server does not say where its entries begin; set base, such as dc=example,dc=net")
	}
	return nil
}

// read reads users, groups and what else is asked for into d.
func (s *ldapSession) read(ctx context.Context, d *ldapDirectory) error {
	if s.activeDirectory {
		return s.readActiveDirectory(ctx, d)
	}
	return s.readRFC2307(ctx, d)
}

// markServices asks which of the users that filter found are services.
func (s *ldapSession) markServices(ctx context.Context, d *ldapDirectory, filter string) error {
	if s.cfg.ServiceAccounts.Filter == "" {
		return nil
	}
	// 1.1 is no attribute (RFC 4511, 4.5.1.8): the DN is enough.
	err := s.search(ctx, or(s.cfg.Users.Base, s.base), "(&"+filter+s.cfg.ServiceAccounts.Filter+")", []string{"1.1"}, func(e *ldap.Entry) error {
		d.markService(e.DN)
		return nil
	})
	if err != nil {
		return fmt.Errorf("serviceAccounts: %w", err)
	}
	return nil
}

// readGroups reads groups, their name in attribute name and their members' DNs in
// attributes members. also gets each entry with its node, as it came.
func (s *ldapSession) readGroups(ctx context.Context, d *ldapDirectory, filter, name string, members, attributes []string, also func(e *ldap.Entry, node int32) error) error {
	// heldBack are members that the server did not give at once. They are asked for after
	// the last page, so that pages are not interrupted.
	type heldBack struct {
		dn, attribute string
		group         int32
		start         int
	}
	var later []heldBack
	attributes = append(append([]string{name}, members...), attributes...)
	if strings.EqualFold(name, "dn") {
		attributes = attributes[1:]
	}
	err := s.search(ctx, or(s.cfg.Groups.Base, s.base), filter, attributes, func(e *ldap.Entry) error {
		if err := d.room(); err != nil {
			return err
		}
		text, _, ok := nameOf(e, name)
		if !ok {
			_ = d.skip(e.DN, nil, "%s is missing or cannot be used, so the group has no name here", name)
		}
		group, fresh := d.addGroup(e.DN, text)
		if !fresh {
			return nil
		}
		for _, attribute := range members {
			values, next, err := valuesFrom(e, attribute, 0)
			if err != nil {
				return err
			}
			for _, dn := range values {
				if err := d.addMember(d.node(memberDN(attribute, dn)), group); err != nil {
					return err
				}
			}
			if next >= 0 {
				later = append(later, heldBack{e.DN, attribute, group, next})
			}
		}
		return also(e, group)
	})
	if err != nil {
		return fmt.Errorf("groups: %w", err)
	}
	for _, h := range later {
		err := s.rest(ctx, h.dn, h.attribute, h.start, func(dn string) error {
			return d.addMember(d.node(memberDN(h.attribute, dn)), h.group)
		})
		if err != nil {
			return fmt.Errorf("groups: %w", err)
		}
	}
	return nil
}

// memberDN takes off what a uniqueMember may have behind the DN: #'0101'B (RFC 4517, 3.3.21).
func memberDN(attribute, value string) string {
	if strings.EqualFold(attribute, "uniqueMember") && strings.HasSuffix(value, "'B") {
		if i := strings.LastIndex(value, "#'"); i >= 0 {
			return value[:i]
		}
	}
	return value
}

// entry reads one entry.
func (s *ldapSession) entry(ctx context.Context, dn string, attributes []string) (*ldap.Entry, error) {
	s.wire.unread.Store(0)
	res, err := s.conn.Search(ldap.NewSearchRequest(dn, ldap.ScopeBaseObject, ldap.NeverDerefAliases, 0, 0, false, "(objectClass=*)", attributes, nil))
	if err != nil {
		return nil, errors.Join(explainLDAP(err), ctx.Err())
	}
	if len(res.Entries) != 1 {
		return nil, fmt.Errorf("the server answered with %d entries for one; bindDN may not read it", len(res.Entries))
	}
	return res.Entries[0], nil
}

// search gives each entry below base to take, page by page. Without an error it has seen
// all of them: the server must say of each page whether it was the last.
func (s *ldapSession) search(ctx context.Context, base, filter string, attributes []string, take func(*ldap.Entry) error) error {
	page := ldap.NewControlPaging(uint32(s.cfg.PageSize)) //nolint:gosec // Validate bounds it
	for {
		answer, err := s.page(ctx, base, filter, attributes, page, take)
		if err != nil {
			return errors.Join(explainLDAP(err), ctx.Err())
		}
		if len(answer.Cookie) == 0 {
			return nil
		}
		page.SetCookie(answer.Cookie)
	}
}

// page reads one page and returns what the server says of the next.
func (s *ldapSession) page(ctx context.Context, base, filter string, attributes []string, page *ldap.ControlPaging, take func(*ldap.Entry) error) (*ldap.ControlPaging, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.wire.unread.Store(0)
	// Few results wait, so that a page of large groups is never in memory at once.
	res := s.conn.SearchAsync(ctx, ldap.NewSearchRequest(base, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, 0, 0, false, filter, attributes, []ldap.Control{page}), 4)
	var answer *ldap.ControlPaging
	for res.Next() {
		s.wire.unread.Store(0)
		switch {
		case res.Entry() != nil:
			if err := take(res.Entry()); err != nil {
				return nil, err
			}
		case res.Referral() != "":
			s.referrals++
		default:
			answer, _ = ldap.FindControl(res.Controls(), ldap.ControlTypePaging).(*ldap.ControlPaging)
		}
	}
	if err := res.Err(); err != nil {
		return nil, err
	}
	if answer == nil {
		// A connection that was closed looks no different to the library.
		return nil, errors.Join(errors.New("the server's answer ended without saying whether it was all; it must support paged results (RFC 2696)"), s.conn.GetLastError())
	}
	return answer, nil
}

// valuesFrom is the values of an attribute that an entry holds, from value start on, and
// where those begin that the server held back; -1 if there are none. Active Directory
// gives the first 1,500 of many under the name member;range=0-1499 and wants to be asked
// for the others (MS-ADTS 3.1.1.3.1.3.3).
func valuesFrom(e *ldap.Entry, attribute string, start int) (values []string, next int, err error) {
	next = -1
	found := start == 0 // an entry need not have the attribute
	for _, a := range e.Attributes {
		r, ok := parseRange(a.Name, attribute)
		switch {
		case !ok || !r.ranged && len(a.Values) == 0: // Active Directory adds the plain name, empty
			continue
		case r.from != start || r.to >= 0 && r.to+1 != start+len(a.Values):
			return nil, -1, fmt.Errorf("%s of %q: asked for values from %d on, the server gave %d as %q", attribute, e.DN, start, len(a.Values), a.Name)
		}
		found = true
		values = append(values, a.Values...)
		if r.to >= 0 {
			next = r.to + 1
		}
	}
	if !found {
		return nil, -1, fmt.Errorf("%s of %q: asked for values from %d on, the server gave none", attribute, e.DN, start)
	}
	return values, next, nil
}

// rest gives the values from start on of an attribute of an entry to take.
func (s *ldapSession) rest(ctx context.Context, dn, attribute string, start int, take func(string) error) error {
	for start >= 0 {
		e, err := s.entry(ctx, dn, []string{attribute + ";range=" + strconv.Itoa(start) + "-*"})
		if err != nil {
			return fmt.Errorf("%s of %q from value %d on: %w", attribute, dn, start, err)
		}
		var values []string
		if values, start, err = valuesFrom(e, attribute, start); err != nil {
			return err
		}
		for _, v := range values {
			if err := take(v); err != nil {
				return err
			}
		}
	}
	return nil
}

// valueRange is which values of an attribute an answer holds.
type valueRange struct {
	ranged   bool
	from, to int // to is the last; -1 where these are all that is left
}

// parseRange reads a name such as member;range=0-1499 if it is that of attribute.
func parseRange(name, attribute string) (valueRange, bool) {
	base, options, _ := strings.Cut(name, ";")
	if !strings.EqualFold(base, attribute) {
		return valueRange{}, false
	}
	if options == "" {
		return valueRange{to: -1}, true
	}
	for option := range strings.SplitSeq(options, ";") {
		if len(option) < len("range=") || !strings.EqualFold(option[:len("range=")], "range=") {
			continue
		}
		low, high, ok := strings.Cut(option[len("range="):], "-")
		from, err := strconv.ParseUint(low, 10, 31)
		if !ok || err != nil {
			return valueRange{}, false
		}
		r := valueRange{ranged: true, from: int(from), to: -1}
		if high != "*" {
			to, err := strconv.ParseUint(high, 10, 31)
			if err != nil || to < from {
				return valueRange{}, false
			}
			r.to = int(to)
		}
		return r, true
	}
	return valueRange{}, false // a language or another subtype
}
