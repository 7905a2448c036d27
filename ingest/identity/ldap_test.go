package identity

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"
	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/test/directory"
)

// ldapConfig is a configuration for the server's reader, over LDAPS.
func ldapConfig(s *directory.Server) LDAPConfig {
	c := DefaultLDAPConfig()
	c.Name, c.URLs = "corp", []string{s.LDAPS}
	c.TLS.CA, c.TLS.ServerName = s.CAFile, s.Host
	c.BindDN, c.Password = s.ReaderDN, "test:"+s.ReaderPassword
	c.Timeout = 10 * time.Second
	return c
}

func resolveTest(ref string) (string, error) {
	secret, ok := strings.CutPrefix(ref, "test:")
	if !ok {
		return "", fmt.Errorf("%s: no such secret", ref)
	}
	return secret, nil
}

func wallClock() flow.Time { return flow.TimeOf(time.Now()) }

func newTestLDAP(t testing.TB, c LDAPConfig) *polled {
	t.Helper()
	p, err := newLDAP(c, resolveTest, nil, "", wallClock, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p.(*polled)
}

// readLDAP reads a directory once, whole and without bad entries.
func readLDAP(t testing.TB, c LDAPConfig) []flow.Fact {
	t.Helper()
	facts, err := newTestLDAP(t, c).reader.read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return facts
}

// listener keeps what a source tells.
type listener struct {
	facts []flow.Fact
	beats []flow.Heartbeat
}

func (s *listener) tell(_ context.Context, facts []flow.Fact, beat flow.Heartbeat) error {
	s.facts, s.beats = append(s.facts, facts...), append(s.beats, beat)
	return nil
}

// of is what facts say of subjects with a suffix, by subject.
func of(facts []flow.Fact, suffix string) map[string]flow.Fact {
	m := map[string]flow.Fact{}
	for _, f := range facts {
		if strings.HasSuffix(f.Subject, suffix) {
			m[f.Subject] = f
		}
	}
	return m
}

const crowd = 1500 // users nobody says anything special about

// corp is what the Active Directory of the tests holds, besides what every domain does.
func corp(base string) string {
	var b strings.Builder
	entry := func(dn string, attributes ...string) {
		fmt.Fprintf(&b, "dn: %s,%s\n%s\n\n", dn, base, strings.Join(attributes, "\n"))
	}
	user := func(dn, sam string, attributes ...string) {
		control := "userAccountControl: 66080" // a normal account, without a password
		if slices.ContainsFunc(attributes, func(a string) bool { return strings.HasPrefix(a, "userAccountControl:") }) {
			control = "objectClass: person" // said otherwise
		}
		entry(dn, append([]string{"objectClass: user", "sAMAccountName: " + sam, control}, attributes...)...)
	}
	for _, ou := range []string{"Staff", "Services", "Delegated", "Groups"} {
		entry("OU="+ou, "objectClass: organizationalUnit")
	}
	everybody := []string{"objectClass: group", "sAMAccountName: everybody"}
	for i := range crowd {
		user(fmt.Sprintf("CN=User %04d,OU=Staff", i), fmt.Sprintf("user%04d", i), fmt.Sprintf("userPrincipalName: user%04d@corp.example.net", i))
		everybody = append(everybody, fmt.Sprintf("member: CN=User %04d,OU=Staff,%s", i, base))
	}
	user(`CN=Liddell\, Alice,OU=Staff`, "Alice", "userPrincipalName: alice.liddell@example.com")
	user("CN=Bob,OU=Staff", "bob", "userAccountControl: 66082")              // disabled
	user("CN=Carol,OU=Staff", "carol", "accountExpires: 131592384000000000") // since 2018
	user("CN=Dave,OU=Staff", "dave", "accountExpires: 9223372036854775807")  // never; gets another primary group
	user("CN=Mallory,OU=Staff", "mallory")
	user("CN=SQL,OU=Staff", "sql", "servicePrincipalName: MSSQLSvc/db1.corp.example.net:1433")
	user("CN=Backup,OU=Services", "backup")
	user("CN=Robot,OU=Staff", "svc-robot")
	entry("CN=gmsa,CN=Managed Service Accounts", "objectClass: msDS-GroupManagedServiceAccount", "sAMAccountName: gmsa$", "userAccountControl: 4096", "msDS-ManagedPasswordInterval: 30")
	entry("CN=WS1,CN=Computers", "objectClass: computer", "sAMAccountName: WS1$", "userAccountControl: 4096", "dNSHostName: WS1.corp.example.net")

	group := func(dn, sam string, attributes ...string) {
		entry(dn, append([]string{"objectClass: group", "sAMAccountName: " + sam}, attributes...)...)
	}
	member := func(dn string) string { return "member: " + dn + "," + base }
	group("CN=payments-core,OU=Groups", "payments-core", member(`cn=liddell\2c alice,ou=STAFF`), member("CN=Bob,OU=Staff"), member("CN=gmsa,CN=Managed Service Accounts"))
	group("CN=payments-leads,OU=Groups", "payments-leads", member("CN=payments-core,OU=Groups"), member("CN=Dave,OU=Staff"))
	group("CN=payments-admins,OU=Groups", "payments-admins", member("CN=payments-leads,OU=Groups"))
	group("CN=oncall,OU=Groups", "oncall")
	group("CN=newsletter,OU=Groups", "newsletter", "groupType: 2", member("CN=Mallory,OU=Staff")) // a distribution list
	// Whoever may create groups in one unit names one like another's.
	group("CN=payments-admins,OU=Delegated", "not-payments-admins", member("CN=Mallory,OU=Staff"))
	group("CN=workstations,OU=Groups", "workstations", member("CN=WS1,CN=Computers"))
	entry("CN=everybody,OU=Groups", everybody...)
	// A circle: the outermost is in the innermost.
	fmt.Fprintf(&b, "dn: CN=circle,OU=Groups,%s\nobjectClass: group\nsAMAccountName: circle\n\n", base)
	return b.String()
}

// close the circle, which needs both ends to exist.
func circle(base string) string {
	change := func(group, member string) string {
		return fmt.Sprintf("dn: CN=%s,OU=Groups,%s\nchangetype: modify\nadd: member\nmember: CN=%s,OU=Groups,%s\n\n", group, base, member, base)
	}
	return change("circle", "payments-admins") + change("payments-core", "circle")
}

func TestLDAPActiveDirectory(t *testing.T) {
	base := "DC=corp,DC=example,DC=net"
	began := time.Now()
	s := directory.StartActiveDirectory(t, corp(base))
	t.Logf("made, filled with %d users and started in %v", crowd, time.Since(began))
	s.Change(circle(base))
	admin := dialTest(t, s)
	defer admin.Close()

	// Dave's primary group becomes another one, of which he is then no member by
	// attribute; he becomes one of Domain Users instead.
	oncall := oneEntry(t, admin, "CN=oncall,OU=Groups,"+base, "objectSid")
	sid := oncall.GetRawAttributeValue("objectSid")
	rid := binary.LittleEndian.Uint32(sid[len(sid)-4:])
	s.Change(fmt.Sprintf("dn: CN=oncall,OU=Groups,%[1]s\nchangetype: modify\nadd: member\nmember: CN=Dave,OU=Staff,%[1]s\n\n", base))
	s.Change(fmt.Sprintf("dn: CN=Dave,OU=Staff,%s\nchangetype: modify\nreplace: primaryGroupID\nprimaryGroupID: %d\n\n", base, rid))
	if left := oneEntry(t, admin, "CN=oncall,OU=Groups,"+base, "member").GetAttributeValues("member"); len(left) != 0 {
		t.Fatalf("the test is of no use: a primary group lists its members %q", left)
	}

	c := ldapConfig(s)
	c.Computers = true
	c.ServiceAccounts = LDAPServiceAccounts{Filter: "(sAMAccountName=svc-*)", Bases: []string{"ou=services," + base}}
	c.PageSize = 400 // four pages of users
	p := newTestLDAP(t, c)
	var said listener
	began = time.Now()
	if err := p.poll(t.Context(), said.tell); err != nil {
		t.Fatal(err)
	}
	t.Logf("read %d facts in %v", len(said.facts), time.Since(began))

	// Exactly who there is, what they are in, and who may not log on.
	usual := []string{"Domain Users", "Users"}
	payments := []string{"Domain Users", "Users", "circle", "payments-admins", "payments-core", "payments-leads"}
	want := map[string]flow.Fact{}
	add := func(f flow.Fact) {
		f.Source, f.Kind = "corp", flow.FactDirectory
		slices.Sort(f.Groups)
		want[f.Subject] = f
	}
	person := func(name string, groups []string) flow.Fact {
		return flow.Fact{Subject: name, User: name, Groups: groups}
	}
	service := func(name string, groups []string) flow.Fact {
		return flow.Fact{Subject: name, Account: name, Groups: groups}
	}
	disabled := func(f flow.Fact) flow.Fact { f.Disabled = true; return f }
	for i := range crowd {
		add(person(fmt.Sprintf("user%04d@corp", i), []string{"Domain Users", "Users", "everybody"}))
	}
	add(person("alice@corp", payments))
	add(disabled(person("bob@corp", payments)))
	add(disabled(person("carol@corp", usual)))
	add(person("dave@corp", []string{"Domain Users", "Users", "circle", "oncall", "payments-admins", "payments-core", "payments-leads"}))
	add(person("mallory@corp", []string{"Domain Users", "Users", "not-payments-admins"}))
	add(person("postern@corp", usual))
	add(service("sql@corp", usual))
	add(service("backup@corp", usual))
	add(service("svc-robot@corp", usual))
	add(service("gmsa$@corp", []string{"Domain Computers", "circle", "payments-admins", "payments-core", "payments-leads"}))
	add(flow.Fact{Subject: "ws1$@corp", Device: "ws1.corp.example.net", Groups: []string{"Domain Computers", "workstations"}})
	// What every domain has.
	add(person("administrator@corp", []string{"Administrators", "Denied RODC Password Replication Group", "Domain Admins", "Domain Users", "Enterprise Admins", "Group Policy Creator Owners", "Schema Admins", "Users"}))
	add(disabled(person("guest@corp", []string{"Domain Guests", "Guests"})))
	add(service("dns-dc1@corp", usual))
	add(disabled(service("krbtgt@corp", []string{"Denied RODC Password Replication Group", "Domain Users", "Users"})))
	add(flow.Fact{Subject: "dc1$@corp", Device: "dc1.corp.example.net", Groups: []string{"Denied RODC Password Replication Group", "Domain Controllers", "Windows Authorization Access Group"}})
	got := of(said.facts, "@corp")
	since := said.facts[0].Since
	for name, f := range want {
		f.Since = since
		if g, ok := got[name]; ok && name == "dc1$@corp" {
			f.Groups = g.Groups // differs between releases of Samba
		}
		want[name] = f
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("who is in the directory (-want +got):\n%s", diff)
	}

	// By their other names, the same.
	for alias, name := range map[string]string{"user0042@corp.example.net": "user0042@corp", "alice.liddell@example.com": "alice@corp", "alice@corp.example.net": "alice@corp", "bob@corp.example.net": "bob@corp", "gmsa$@corp.example.net": "gmsa$@corp"} {
		f, ok := of(said.facts, alias)[alias]
		f.Subject = name
		if diff := cmp.Diff(want[name], f); !ok || diff != "" {
			t.Errorf("%s is %s (-want +got):\n%s", alias, name, diff)
		}
	}

	// The server's own idea of nesting agrees (it leaves the primary group out).
	began = time.Now()
	for _, who := range []string{`CN=Liddell\, Alice,OU=Staff`, "CN=User 0007,OU=Staff", "CN=Mallory,OU=Staff", "CN=gmsa,CN=Managed Service Accounts"} {
		e := oneEntry(t, admin, who+","+base, "sAMAccountName")
		name := strings.ToLower(e.GetAttributeValue("sAMAccountName")) + "@corp"
		res, err := admin.Search(ldap.NewSearchRequest(base, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, 0, 0, false,
			"(&(groupType:1.2.840.113556.1.4.803:=2147483648)(member:1.2.840.113556.1.4.1941:="+ldap.EscapeFilter(e.DN)+"))", []string{"sAMAccountName"}, nil))
		if err != nil {
			t.Fatal(err)
		}
		var in []string
		for _, g := range res.Entries {
			in = append(in, g.GetAttributeValue("sAMAccountName"))
		}
		slices.Sort(in)
		ours := slices.DeleteFunc(slices.Clone(got[name].Groups), func(g string) bool { return g == "Domain Users" || g == "Users" || g == "Domain Computers" })
		if diff := cmp.Diff(in, ours); diff != "" {
			t.Errorf("groups of %s (-the server +we):\n%s", name, diff)
		}
	}
	t.Logf("the server's own matching rule in chain takes %v a user", time.Since(began)/4)

	// A change between two reads becomes facts.
	before := wallClock()
	s.Change(fmt.Sprintf("dn: CN=oncall,OU=Groups,%[1]s\nchangetype: modify\nadd: member\nmember: CN=User 0042,OU=Staff,%[1]s\n\n"+
		"dn: CN=User 0043,OU=Staff,%[1]s\nchangetype: modify\nreplace: userAccountControl\nuserAccountControl: 66082\n\n"+
		"dn: CN=User 0044,OU=Staff,%[1]s\nchangetype: delete\n\n", base))
	said = listener{}
	if err := p.poll(t.Context(), said.tell); err != nil {
		t.Fatal(err)
	}
	type change struct {
		Groups   string
		Disabled bool
		Ended    bool
	}
	changes := map[string][]change{}
	for _, f := range said.facts {
		at := f.Since
		if f.Until != 0 {
			at = f.Until
		}
		if at < before || at > wallClock() {
			t.Errorf("%s changed at %v, which is not between the change and now", f.Subject, at)
		}
		changes[f.Subject] = append(changes[f.Subject], change{strings.Join(f.Groups, " "), f.Disabled, f.Until != 0})
	}
	wantChanges := map[string][]change{}
	for _, at := range []string{"@corp", "@corp.example.net"} {
		wantChanges["user0042"+at] = []change{{"Domain Users Users everybody", false, true}, {"Domain Users Users everybody oncall", false, false}}
		wantChanges["user0043"+at] = []change{{"Domain Users Users everybody", false, true}, {"Domain Users Users everybody", true, false}}
		wantChanges["user0044"+at] = []change{{"Domain Users Users everybody", false, true}}
	}
	if diff := cmp.Diff(wantChanges, changes); diff != "" {
		t.Errorf("what changed (-want +got):\n%s", diff)
	}

	// Values that come in parts, as Active Directory sends more than 1,500.
	t.Run("ranges", func(t *testing.T) {
		r := p.reader.(*ldapReader)
		session, err := r.connect(t.Context(), r.servers[0])
		if err != nil {
			t.Fatal(err)
		}
		defer session.close()
		e, err := session.entry(t.Context(), "CN=everybody,OU=Groups,"+base, []string{"member;range=0-499"})
		if err != nil {
			t.Fatal(err)
		}
		members, next, err := valuesFrom(e, "member", 0)
		if err != nil || len(members) != 500 || next != 500 {
			t.Fatalf("%d members, the next is %d, %v", len(members), next, err)
		}
		if err := session.rest(t.Context(), e.DN, "member", next, func(v string) error { members = append(members, v); return nil }); err != nil {
			t.Fatal(err)
		}
		slices.Sort(members)
		if n := len(slices.Compact(members)); n != crowd-1 { // one was removed
			t.Errorf("%d members in parts", n)
		}
	})
	t.Run("StartTLS", func(t *testing.T) {
		c := c
		c.URLs, c.StartTLS, c.BindDN = []string{s.LDAP}, true, "postern@corp.example.net"
		if got := len(of(readLDAP(t, c), "@corp")); got != len(want)-1 {
			t.Errorf("%d facts instead of %d", got, len(want)-1)
		}
	})
	t.Run("a password without TLS", func(t *testing.T) {
		c := c
		c.URLs = []string{s.LDAP}
		_, err := newTestLDAP(t, c).reader.read(t.Context())
		if err == nil || !strings.Contains(err.Error(), "the server wants TLS") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("another authority", func(t *testing.T) {
		c := c
		c.TLS.ServerName = "dc2.corp.example.net"
		if _, err := newTestLDAP(t, c).reader.read(t.Context()); err == nil || !strings.Contains(err.Error(), "dc2.corp.example.net") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("a wrong password", func(t *testing.T) {
		c := c
		c.Password = "test:wrong"
		_, err := newTestLDAP(t, c).reader.read(t.Context())
		if err == nil || !strings.Contains(err.Error(), "check bindDN") || strings.Contains(err.Error(), "wrong") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("too many", func(t *testing.T) {
		for key, c := range map[string]LDAPConfig{
			"maxEntries": func() LDAPConfig { c := c; c.MaxEntries = 1000; return c }(),
			"maxMembers": func() LDAPConfig { c := c; c.MaxMembers = 1000; return c }(),
		} {
			if facts, err := newTestLDAP(t, c).reader.read(t.Context()); err == nil || facts != nil || !strings.Contains(err.Error(), key) {
				t.Errorf("%s: %d facts, error %v", key, len(facts), err)
			}
		}
	})
	t.Run("names by cn", func(t *testing.T) {
		c := c
		c.Groups.Name = "cn"
		facts, err := newTestLDAP(t, c).reader.read(t.Context())
		if _, partial := errors.AsType[*partialError](err); !partial {
			t.Fatalf("two groups of one name and no word about it: %v", err)
		}
		got := of(facts, "@corp")
		if g := got["mallory@corp"].Groups; slices.Contains(g, "payments-admins") || !slices.Contains(g, "CN=payments-admins,OU=Delegated,"+base) {
			t.Errorf("mallory is in %q", g)
		}
		if g := got["alice@corp"].Groups; slices.Contains(g, "payments-admins") || !slices.Contains(g, "CN=payments-admins,OU=Groups,"+base) || !slices.Contains(g, "payments-core") {
			t.Errorf("alice is in %q", g)
		}
	})
	t.Run("one spelling of the domain", func(t *testing.T) {
		domains := flow.NewDomains("corp.example.net", map[string]string{"CORP": "corp.example.net"})
		r, err := newLDAPReader(c, resolveTest, domains, wallClock, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		facts, err := r.read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got := of(facts, "")
		if len(facts) != len(got) || len(got) != len(want)-1+1 { // one was removed; Alice has a name of another domain
			t.Errorf("%d facts of %d subjects; want %d", len(facts), len(got), len(want))
		}
		if f := got["alice.liddell@example.com"]; f.User != "alice" || !slices.Equal(f.Groups, got["alice"].Groups) {
			t.Errorf("alice by her other name is %+v", f)
		}
	})
	t.Run("narrowed", func(t *testing.T) {
		c := c
		c.Computers = false
		c.Users.Base, c.Groups.Base, c.Groups.Name, c.Domain = "OU=Services,"+base, "OU=Groups,"+base, "dn", "ACME"
		if got := slices.Sorted(maps.Keys(of(readLDAP(t, c), ""))); !slices.Equal(got, []string{"backup@acme", "backup@corp.example.net"}) {
			t.Errorf("read %q", got)
		}
	})
	t.Run("the server goes away", func(t *testing.T) {
		s.Stop()
		if facts, err := p.reader.read(t.Context()); err == nil {
			t.Errorf("%d facts from a server that is gone", len(facts))
		}
		s.Start()
		said = listener{}
		if err := p.poll(t.Context(), said.tell); err != nil || len(said.facts) != 0 || len(said.beats) != 1 {
			t.Errorf("after it came back: %d facts, %d beats, %v", len(said.facts), len(said.beats), err)
		}
	})
}

func dialTest(t testing.TB, s *directory.Server) *ldap.Conn {
	t.Helper()
	tlsConfig, err := TLSConfig{CA: s.CAFile, ServerName: s.Host}.config()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := ldap.DialURL(s.LDAPS, ldap.DialWithTLSConfig(tlsConfig))
	if err == nil {
		err = conn.Bind(s.AdminDN, s.AdminPassword)
	}
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func oneEntry(t testing.TB, conn *ldap.Conn, dn string, attributes ...string) *ldap.Entry {
	t.Helper()
	res, err := conn.Search(ldap.NewSearchRequest(dn, ldap.ScopeBaseObject, ldap.NeverDerefAliases, 0, 0, false, "(objectClass=*)", attributes, nil))
	if err != nil || len(res.Entries) != 1 {
		t.Fatalf("%s: %v", dn, err)
	}
	return res.Entries[0]
}

// exampleOrg is what the OpenLDAP server of the tests holds.
func exampleOrg() string {
	const base = "dc=example,dc=org"
	var b strings.Builder
	entry := func(dn string, attributes ...string) {
		fmt.Fprintf(&b, "dn: %s,%s\n%s\n\n", dn, base, strings.Join(attributes, "\n"))
	}
	person := func(dn, uid string, attributes ...string) {
		entry(dn, append([]string{"objectClass: inetOrgPerson", "objectClass: posixAccount", "objectClass: shadowAccount", "cn: x", "sn: x",
			"uid: " + uid, "uidNumber: 1000", "homeDirectory: /nonexistent"}, attributes...)...)
	}
	for _, ou := range []string{"people", "groups", "services"} {
		entry("ou="+ou, "objectClass: organizationalUnit")
	}
	for i := range 700 {
		person(fmt.Sprintf("uid=user%03d,ou=people", i), fmt.Sprintf("user%03d", i), "gidNumber: 100")
	}
	person("uid=Alice,ou=people", "Alice\nuid: al", "gidNumber: 100", "employeeType: internal")
	entry("uid=bob,ou=people", "objectClass: inetOrgPerson", "cn: Bob", "sn: B", "uid: bob", "pwdAccountLockedTime: 000001010000Z")
	entry("uid=bert,ou=people", "objectClass: inetOrgPerson", "cn: Bert", "sn: B", "uid: bert", "pwdAccountLockedTime: 20260101000000Z")
	person("uid=carol,ou=people", "carol", "gidNumber: 200", "shadowExpire: 1")
	person("uid=dave,ou=people", "dave", "gidNumber: 4242", "shadowExpire: 99999")
	person("uid=backup,ou=services", "backup", "gidNumber: 100")
	person("uid=deploy,ou=people", "deploy", "gidNumber: 100", "employeeType: service")
	entry("cn=nobody,ou=people", "objectClass: inetOrgPerson", "sn: N") // no uid
	// One name twice, in two places.
	person("uid=twin,ou=people", "twin", "gidNumber: 100")
	person("uid=twin,ou=services", "twin", "gidNumber: 200")

	entry("cn=users,ou=groups", "objectClass: posixGroup", "gidNumber: 100")
	entry("cn=wheel,ou=groups", "objectClass: posixGroup", "gidNumber: 200", "memberUid: al", "memberUid: nobody-knows", "memberUid: bob")
	entry("cn=inner,ou=groups", "objectClass: groupOfNames", "member: UID=alice, OU=people, DC=example, DC=org", "member: cn=outer,ou=groups,"+base, "member: cn=gone,"+base)
	entry("cn=middle,ou=groups", "objectClass: groupOfUniqueNames", "uniqueMember: cn=inner,ou=groups,"+base+"#'0101'B")
	entry("cn=outer,ou=groups", "objectClass: groupOfNames", "member: cn=middle,ou=groups,"+base, "member: uid=carol,ou=people,"+base)
	return b.String()
}

func TestLDAPOpenLDAP(t *testing.T) {
	began := time.Now()
	s := directory.StartOpenLDAP(t, exampleOrg(), 100)
	t.Logf("made and started in %v", time.Since(began))
	c := ldapConfig(s)
	c.URLs, c.StartTLS = []string{s.LDAP}, true
	c.ServiceAccounts = LDAPServiceAccounts{Filter: "(employeeType=service)", Bases: []string{"OU=Services,DC=example,DC=org"}}
	c.PageSize = 100
	p := newTestLDAP(t, c)
	var said listener
	began = time.Now()
	if err := p.poll(t.Context(), said.tell); err != nil {
		t.Fatal(err)
	}
	t.Logf("read %d facts in %v", len(said.facts), time.Since(began))

	want := map[string]flow.Fact{}
	add := func(f flow.Fact) {
		f.Source, f.Kind, f.Since = "corp", flow.FactDirectory, said.facts[0].Since
		want[f.Subject] = f
	}
	for i := range 700 {
		name := fmt.Sprintf("user%03d", i)
		add(flow.Fact{Subject: name, User: name, Groups: []string{"users"}})
	}
	inAll := []string{"inner", "middle", "outer", "users", "wheel"}
	add(flow.Fact{Subject: "alice", User: "alice", Groups: inAll})
	add(flow.Fact{Subject: "al", User: "alice", Groups: inAll})
	add(flow.Fact{Subject: "bob", User: "bob", Groups: []string{"wheel"}, Disabled: true})
	add(flow.Fact{Subject: "bert", User: "bert"}) // locked out for a while only
	add(flow.Fact{Subject: "carol", User: "carol", Groups: []string{"inner", "middle", "outer", "wheel"}, Disabled: true})
	add(flow.Fact{Subject: "dave", User: "dave"})
	add(flow.Fact{Subject: "backup", Account: "backup", Groups: []string{"users"}})
	add(flow.Fact{Subject: "deploy", Account: "deploy", Groups: []string{"users"}})
	if diff := cmp.Diff(want, of(said.facts, "")); diff != "" {
		t.Errorf("who is in the directory (-want +got):\n%s", diff)
	}
	_, err := p.reader.read(t.Context())
	partial, ok := errors.AsType[*partialError](err)
	if !ok || partial.entries != 3 || partial.all || !strings.Contains(partial.Error(), `"twin" is the name of 2 entries`) || !strings.Contains(partial.Error(), "uid is missing") {
		t.Errorf("what could not be read: %v", err)
	}

	before := wallClock()
	s.Change("dn: cn=inner,ou=groups,dc=example,dc=org\nchangetype: modify\nadd: member\nmember: uid=user007,ou=people,dc=example,dc=org\n\n" +
		"dn: uid=bert,ou=people,dc=example,dc=org\nchangetype: modify\nreplace: pwdAccountLockedTime\npwdAccountLockedTime: 000001010000Z\n\n")
	said = listener{}
	if err := p.poll(t.Context(), said.tell); err != nil {
		t.Fatal(err)
	}
	if len(said.facts) != 4 {
		t.Errorf("told %+v", said.facts)
	}
	now := map[string]flow.Fact{}
	for _, f := range said.facts {
		if f.Until == 0 {
			now[f.Subject] = f
			if f.Since < before || f.Since.Add(-f.SinceSlack) > before {
				t.Errorf("%s changed between %v and %v; it was after %v", f.Subject, f.Since.Add(-f.SinceSlack), f.Since, before)
			}
		}
	}
	if g := now["user007"].Groups; !slices.Equal(g, []string{"inner", "middle", "outer", "users"}) {
		t.Errorf("user007 is now in %q", g)
	}
	if f := now["bert"]; !f.Disabled {
		t.Errorf("bert is now %+v", f)
	}

	t.Run("limits that cut the answer", func(t *testing.T) {
		c := c
		c.BindDN, c.Password = "uid=limited,dc=example,dc=org", "test:limited"
		s.Change("dn: uid=limited,dc=example,dc=org\nchangetype: add\nobjectClass: account\nobjectClass: simpleSecurityObject\nuid: limited\nuserPassword: limited\n")
		facts, err := newTestLDAP(t, c).reader.read(t.Context())
		if err == nil || facts != nil || !strings.Contains(err.Error(), "size.prtotal=unlimited") {
			t.Errorf("%d facts, %v", len(facts), err)
		}
	})
	t.Run("pages larger than the server allows", func(t *testing.T) {
		c := c
		c.PageSize = 101
		facts, err := newTestLDAP(t, c).reader.read(t.Context())
		if err == nil || facts != nil || !strings.Contains(err.Error(), "lower pageSize") {
			t.Errorf("%d facts, %v", len(facts), err)
		}
	})
	t.Run("a certificate logs in", func(t *testing.T) {
		c := c
		c.BindDN, c.Password = "", ""
		c.TLS.Cert, c.TLS.Key = s.CertFile, s.KeyFile
		facts, err := newTestLDAP(t, c).reader.read(t.Context())
		if _, partial := errors.AsType[*partialError](err); !partial || len(facts) != len(want) {
			t.Errorf("%d facts, %v", len(facts), err)
		}
	})
	t.Run("nobody reads nothing", func(t *testing.T) {
		c := c
		c.BindDN, c.Password, c.Base = "", "", s.Base
		facts, err := newTestLDAP(t, c).reader.read(t.Context())
		if err == nil || !strings.Contains(err.Error(), "bindDN may not see it") {
			t.Errorf("%d facts, %v", len(facts), err)
		}
	})
	t.Run("an unknown authority", func(t *testing.T) {
		c := c
		c.TLS.CA = ""
		if _, err := newTestLDAP(t, c).reader.read(t.Context()); err == nil || !strings.Contains(err.Error(), "unknown authority") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("a domain", func(t *testing.T) {
		c := c
		c.Domain, c.Users.Base, c.URLs, c.StartTLS = "example.org", "ou=services,dc=example,dc=org", []string{s.LDAPS}, false
		facts := readLDAP(t, c)
		if got := slices.Sorted(maps.Keys(of(facts, ""))); !slices.Equal(got, []string{"backup@example.org", "twin@example.org"}) {
			t.Errorf("read %q", got)
		}
	})
}
