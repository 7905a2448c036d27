package identity

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/go-ldap/ldap/v3"
)

// Filters of directories with the classes of RFC 2307, RFC 2798 and RFC 4519.
const (
	rfc2307Users  = "(|(objectClass=inetOrgPerson)(objectClass=posixAccount))"
	rfc2307Groups = "(|(objectClass=groupOfNames)(objectClass=groupOfUniqueNames)(objectClass=groupOfMembers)(objectClass=posixGroup))"
)

// rfc2307Subject are the attributes of users. Those that say whether somebody may log on are
// operational in some servers, which give them only to who asks by name.
var rfc2307Subject = []string{"gidNumber", "shadowExpire", "pwdAccountLockedTime", "nsAccountLock"}

// pwdLockedForGood is the pwdAccountLockedTime of an account that only an administrator
// unlocks (draft-behera-ldap-password-policy-10, 5.3.3); others end by themselves.
const pwdLockedForGood = "000001010000Z"

// readRFC2307 reads a directory of people and groups as OpenLDAP, 389 Directory Server and
// FreeIPA hold them.
func (s *ldapSession) readRFC2307(ctx context.Context, d *ldapDirectory) error {
	uids := newMemberUids()
	filter, name := or(s.cfg.Users.Filter, rfc2307Users), or(s.cfg.Users.Name, "uid")
	err := s.search(ctx, or(s.cfg.Users.Base, s.base), filter, append([]string{"uid", name}, rfc2307Subject...), func(e *ldap.Entry) error {
		return d.addRFC2307User(e, name, uids)
	})
	if err != nil {
		return fmt.Errorf("users: %w", err)
	}
	if err := s.markServices(ctx, d, filter); err != nil {
		return err
	}
	return s.readGroups(ctx, d, or(s.cfg.Groups.Filter, rfc2307Groups), or(s.cfg.Groups.Name, "cn"), []string{"member", "uniqueMember"}, []string{"memberUid", "gidNumber"},
		func(e *ldap.Entry, group int32) error {
			if gid, err := strconv.ParseUint(e.GetEqualFoldAttributeValue("gidNumber"), 10, 32); err == nil {
				d.primary[strconv.FormatUint(gid, 10)] = group
			}
			for _, uid := range e.GetEqualFoldAttributeValues("memberUid") {
				if node, ok := uids.of(uid); ok {
					if err := d.addMember(node, group); err != nil {
						return err
					}
				}
			}
			return nil
		})
}

// memberUids is who a posixGroup's memberUid means: whose own name it is, else the only one
// who has it as another name. Where several have, it means nobody.
type memberUids struct{ own, other map[string]int32 } // nodes; -1 for several

func newMemberUids() memberUids { return memberUids{map[string]int32{}, map[string]int32{}} }

// add takes a user's names; one that cannot be read has names too.
func (u memberUids) add(e *ldap.Entry, node int32) {
	own, _, _ := nameOf(e, "uid")
	for _, uid := range e.GetEqualFoldAttributeValues("uid") {
		in := u.other
		if uid == own {
			in = u.own
		}
		if before, taken := in[uid]; taken && before != node {
			in[uid] = -1
		} else {
			in[uid] = node
		}
	}
}

func (u memberUids) of(uid string) (node int32, ok bool) {
	if node, ok = u.own[uid]; !ok {
		node, ok = u.other[uid]
	}
	return node, ok && node >= 0
}

// addRFC2307User takes a user.
func (d *ldapDirectory) addRFC2307User(e *ldap.Entry, attribute string, uids memberUids) error {
	if err := d.room(); err != nil {
		return err
	}
	uids.add(e, d.node(e.DN))
	name, others, ok := nameOf(e, attribute)
	if !ok {
		return d.skip(e.DN, nil, "%s is missing or cannot be used", attribute)
	}
	s := ldapSubject{name: d.subjectName(name)}
	if s.name == "" {
		return d.skip(e.DN, nil, "%s is %q, which is nobody's name", attribute, name)
	}
	for _, other := range others {
		s.aliases = append(s.aliases, d.subjectName(other))
	}
	if v := e.GetEqualFoldAttributeValue("shadowExpire"); v != "" {
		// Days since 1970, from which on the account is no more; -1 is never (shadow(5)).
		// 0 is read as never too, as some systems do: it is no date that anybody means.
		days, err := strconv.ParseInt(v, 10, 32)
		if err != nil {
			return d.skipSubject(e.DN, &s, "shadowExpire is %q, which is no number of days", shorten(v))
		}
		s.disabled = days > 0 && !d.now.Std().Before(time.Unix(days*86400, 0))
	}
	s.disabled = s.disabled || e.GetEqualFoldAttributeValue("pwdAccountLockedTime") == pwdLockedForGood ||
		strings.EqualFold(e.GetEqualFoldAttributeValue("nsAccountLock"), "TRUE")
	if v := e.GetEqualFoldAttributeValue("gidNumber"); v != "" {
		gid, err := strconv.ParseUint(v, 10, 32)
		if err != nil {
			return d.skipSubject(e.DN, &s, "gidNumber is %q, which is no number of a group", shorten(v))
		}
		s.primary = strconv.FormatUint(gid, 10)
	}
	d.addSubject(e.DN, s)
	return nil
}
