package identity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"

	"github.com/postern/postern/flow"
)

// fakeLDAP is a server that does what real ones do only when something is wrong, or, in
// what Active Directory alone does, what its specification says. The real ones are in
// ldap_test.go.
type fakeLDAP struct {
	url    string
	search func(q fakeSearch) fakeAnswer

	mu   sync.Mutex
	seen []string // the requests, in order
}

type fakeSearch struct {
	base, filter string
	attributes   []string
	cookie       string
	paged        bool
}

type fakeAnswer struct {
	entries []*ldap.Entry
	code    int    // the result's
	cookie  string // of the next page
	unpaged bool   // leaves the paging control out
	cut     bool   // closes instead of ending the answer
	silent  bool   // says nothing more, and stays
	filler  int    // bytes of a value that never ends
}

func newFakeLDAP(t *testing.T, search func(q fakeSearch) fakeAnswer) *fakeLDAP {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeLDAP{url: "ldap://" + l.Addr().String(), search: search}
	var all sync.WaitGroup
	var conns []net.Conn
	t.Cleanup(func() {
		l.Close()
		f.mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		f.mu.Unlock()
		all.Wait()
	})
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			conns = append(conns, c)
			f.mu.Unlock()
			all.Go(func() { defer c.Close(); f.serve(c) })
		}
	})
	return f
}

func (f *fakeLDAP) saw() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.seen)
}

func (f *fakeLDAP) serve(c net.Conn) {
	for {
		p, err := ber.ReadPacket(c)
		if err != nil || len(p.Children) < 2 {
			return
		}
		id, op := p.Children[0].Value.(int64), p.Children[1]
		what := map[ber.Tag]string{0: "bind", 2: "unbind", 3: "search", 23: "extended"}[op.Tag]
		if op.Tag == 3 {
			what += " " + op.Children[0].Value.(string)
		}
		f.mu.Lock()
		f.seen = append(f.seen, what)
		f.mu.Unlock()
		switch op.Tag {
		case 0: // bind
			f.result(c, id, 1, 0, nil)
		case 3: // search
			if !f.answer(c, id, p) {
				return
			}
		case 23: // extended: StartTLS
			f.result(c, id, 24, ldap.LDAPResultUnwillingToPerform, nil)
		default:
			return
		}
	}
}

func (f *fakeLDAP) answer(c net.Conn, id int64, p *ber.Packet) bool {
	op := p.Children[1]
	q := fakeSearch{base: op.Children[0].Value.(string)}
	q.filter, _ = ldap.DecompileFilter(op.Children[6])
	for _, a := range op.Children[7].Children {
		q.attributes = append(q.attributes, a.Value.(string))
	}
	if len(p.Children) > 2 {
		if control, err := ldap.DecodeControl(p.Children[2].Children[0]); err == nil {
			page, ok := control.(*ldap.ControlPaging)
			if q.paged = ok; ok {
				q.cookie = string(page.Cookie)
			}
		}
	}
	a := f.search(q)
	for _, e := range a.entries {
		f.send(c, id, fakeEntry(e), nil)
	}
	if a.filler > 0 {
		// The begin of an entry of 1 GiB.
		head := []byte{0x30, 0x84, 0x40, 0, 0, 0x20, 2, 1, byte(id), 0x64, 0x84, 0x40, 0, 0, 0x10, 4, 1, 'x', 0x30, 0x84, 0x40, 0, 0, 0, 0x30, 0x84, 0x3f, 0xff, 0xff, 0xf0, 4, 1, 'a', 0x31, 0x84, 0x3f, 0xff, 0xff, 0xe0, 4, 0x84, 0x3f, 0xff, 0xff, 0xd0}
		if _, err := c.Write(head); err != nil {
			return false
		}
		for sent := 0; sent < a.filler; sent += 1 << 20 {
			if _, err := c.Write(make([]byte, 1<<20)); err != nil {
				return false
			}
		}
	}
	switch {
	case a.cut:
		return false
	case a.silent:
		_, _ = ber.ReadPacket(c) // until the other side has enough
		return false
	}
	var control ldap.Control
	if q.paged && !a.unpaged {
		page := ldap.NewControlPaging(0)
		page.SetCookie([]byte(a.cookie))
		control = page
	}
	f.result(c, id, 5, a.code, control)
	return true
}

func fakeEntry(e *ldap.Entry) *ber.Packet {
	op := ber.Encode(ber.ClassApplication, ber.TypeConstructed, 4, nil, "")
	op.AppendChild(ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, e.DN, ""))
	attributes := ber.NewSequence("")
	for _, a := range e.Attributes {
		attribute := ber.NewSequence("")
		attribute.AppendChild(ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, a.Name, ""))
		values := ber.Encode(ber.ClassUniversal, ber.TypeConstructed, ber.TagSet, nil, "")
		for _, v := range a.Values {
			values.AppendChild(ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, v, ""))
		}
		attribute.AppendChild(values)
		attributes.AppendChild(attribute)
	}
	op.AppendChild(attributes)
	return op
}

func (f *fakeLDAP) result(c net.Conn, id int64, tag ber.Tag, code int, control ldap.Control) {
	op := ber.Encode(ber.ClassApplication, ber.TypeConstructed, tag, nil, "")
	op.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagEnumerated, int64(code), ""))
	op.AppendChild(ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, "", ""))
	op.AppendChild(ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, "", ""))
	f.send(c, id, op, control)
}

func (f *fakeLDAP) send(c net.Conn, id int64, op *ber.Packet, control ldap.Control) {
	p := ber.NewSequence("")
	p.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagInteger, id, ""))
	p.AppendChild(op)
	if control != nil {
		controls := ber.Encode(ber.ClassContext, ber.TypeConstructed, 0, nil, "")
		controls.AppendChild(control.Encode())
		p.AppendChild(controls)
	}
	_, _ = c.Write(p.Bytes()) // the other side may have gone
}

// plainDirectory answers as a small directory in order: two users, and a group of both.
func plainDirectory(q fakeSearch) fakeAnswer {
	switch {
	case q.base == "":
		return fakeAnswer{entries: []*ldap.Entry{ldap.NewEntry("", map[string][]string{"namingContexts": {"dc=example"}})}}
	case strings.Contains(q.filter, "inetOrgPerson"):
		return fakeAnswer{entries: []*ldap.Entry{
			ldap.NewEntry("uid=alice,dc=example", map[string][]string{"uid": {"alice"}}),
			ldap.NewEntry("uid=bob,dc=example", map[string][]string{"uid": {"bob"}}),
		}}
	}
	return fakeAnswer{entries: []*ldap.Entry{
		ldap.NewEntry("cn=staff,dc=example", map[string][]string{"cn": {"staff"}, "member": {"uid=alice,dc=example", "uid=bob,dc=example"}}),
	}}
}

func isUsers(q fakeSearch) bool  { return strings.Contains(q.filter, "inetOrgPerson") }
func isGroups(q fakeSearch) bool { return strings.Contains(q.filter, "groupOfNames") }

func fakeConfig(urls ...string) LDAPConfig {
	c := DefaultLDAPConfig()
	c.Name, c.URLs = "fake", urls
	c.BindDN, c.Password = "cn=reader", "test:secret"
	c.Timeout = time.Second
	return c
}

// What is not whole ends nothing and tells nothing, whatever was wrong.
func TestLDAPIncompleteReads(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(q fakeSearch, a fakeAnswer) fakeAnswer
		want  string
	}{
		{"closed within a page", func(q fakeSearch, a fakeAnswer) fakeAnswer { a.cut = isUsers(q); return a }, "users: "},
		{"closed within the groups", func(q fakeSearch, a fakeAnswer) fakeAnswer { a.cut = isGroups(q); return a }, "groups: "},
		{"closed before the second page", func(q fakeSearch, a fakeAnswer) fakeAnswer {
			if isUsers(q) && q.cookie == "" {
				a.cookie = "more"
			}
			a.cut = q.cookie != ""
			return a
		}, "users: "},
		{"size limit", func(q fakeSearch, a fakeAnswer) fakeAnswer {
			if isUsers(q) {
				a.code = ldap.LDAPResultSizeLimitExceeded
			}
			return a
		}, "raise its limits"},
		{"time limit among the groups", func(q fakeSearch, a fakeAnswer) fakeAnswer {
			if isGroups(q) {
				a.code = ldap.LDAPResultTimeLimitExceeded
			}
			return a
		}, "raise its limits"},
		{"busy", func(q fakeSearch, a fakeAnswer) fakeAnswer {
			if isUsers(q) {
				a.code = ldap.LDAPResultBusy
			}
			return a
		}, "Busy"},
		{"no paging", func(q fakeSearch, a fakeAnswer) fakeAnswer { a.unpaged = true; return a }, "must support paged results"},
		{"silence", func(q fakeSearch, a fakeAnswer) fakeAnswer { a.silent = isGroups(q); return a }, "timeout"},
		{"pages without end", func(q fakeSearch, a fakeAnswer) fakeAnswer {
			if isUsers(q) {
				a.cookie = "again"
			}
			return a
		}, "maxEntries"},
		{"an entry without end", func(q fakeSearch, a fakeAnswer) fakeAnswer {
			if isGroups(q) {
				a.filler = maxUnread + 8<<20
			}
			return a
		}, "longer than 64 MiB"},
		{"nobody", func(q fakeSearch, a fakeAnswer) fakeAnswer {
			if isUsers(q) {
				a.entries = nil
			}
			return a
		}, "no user was found"},
		{"a domain controller that is being filled", func(q fakeSearch, a fakeAnswer) fakeAnswer {
			if q.base == "" {
				a.entries = []*ldap.Entry{ldap.NewEntry("", map[string][]string{"namingContexts": {"dc=example"}, "isSynchronized": {"FALSE"}})}
			}
			return a
		}, "isSynchronized"},
		{"no base", func(q fakeSearch, a fakeAnswer) fakeAnswer {
			if q.base == "" {
				a.entries = []*ldap.Entry{ldap.NewEntry("", nil)}
			}
			return a
		}, "set base"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var spoilt bool
			f := newFakeLDAP(t, func(q fakeSearch) fakeAnswer {
				a := plainDirectory(q)
				if spoilt {
					a = c.spoil(q, a)
				}
				return a
			})
			cfg := fakeConfig(f.url)
			cfg.MaxEntries = 1000
			p := newTestLDAP(t, cfg)
			var said listener
			if err := p.poll(t.Context(), said.tell); err != nil || len(said.facts) != 2 || said.facts[0].Groups[0] != "staff" {
				t.Fatalf("the test is of no use: %+v, %v", said.facts, err)
			}
			spoilt = true
			said = listener{}
			begun := time.Now()
			err := p.poll(t.Context(), said.tell)
			if err == nil || len(said.facts) != 0 || len(said.beats) != 0 {
				t.Fatalf("told %+v and %d beats, error %v", said.facts, len(said.beats), err)
			}
			if !strings.Contains(err.Error(), c.want) && !(c.want == "timeout" && strings.Contains(err.Error(), "closed")) {
				t.Errorf("error %v; want %q", err, c.want)
			}
			if took := time.Since(begun); took > 20*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// A server that refuses StartTLS hears no password.
func TestLDAPStartTLSRefused(t *testing.T) {
	f := newFakeLDAP(t, plainDirectory)
	c := fakeConfig(f.url)
	c.StartTLS = true
	facts, err := newTestLDAP(t, c).reader.read(t.Context())
	if err == nil || facts != nil || !strings.Contains(err.Error(), "startTLS") {
		t.Errorf("%d facts, %v", len(facts), err)
	}
	if saw := f.saw(); !slices.Equal(saw, []string{"extended"}) {
		t.Errorf("the server was asked %q", saw)
	}
}

// Another server is asked when one fails, and is kept.
func TestLDAPNextServer(t *testing.T) {
	broken := newFakeLDAP(t, func(q fakeSearch) fakeAnswer {
		a := plainDirectory(q)
		a.cut = isGroups(q)
		return a
	})
	good := newFakeLDAP(t, plainDirectory)
	p := newTestLDAP(t, fakeConfig(broken.url, good.url))
	for range 2 {
		if facts, err := p.reader.read(t.Context()); err != nil || len(facts) != 2 {
			t.Fatalf("%d facts, %v", len(facts), err)
		}
	}
	if b, g := len(broken.saw()), len(good.saw()); b != 4 || g != 8 {
		t.Errorf("%d requests to the broken one, %d to the good one; want 4 and 8", b, g)
	}
}

// The end of a context is the end of a read, whatever the server does.
func TestLDAPCancel(t *testing.T) {
	for name, where := range map[string]func(q fakeSearch) bool{"among the users": isUsers, "at the root": func(q fakeSearch) bool { return q.base == "" }} {
		t.Run(name, func(t *testing.T) {
			reached := make(chan struct{}, 1)
			f := newFakeLDAP(t, func(q fakeSearch) fakeAnswer {
				a := plainDirectory(q)
				if a.silent = where(q); a.silent {
					reached <- struct{}{}
				}
				return a
			})
			c := fakeConfig(f.url)
			c.Timeout = time.Minute
			ctx, cancel := context.WithCancel(t.Context())
			go func() { <-reached; cancel() }()
			begun := time.Now()
			if _, err := newTestLDAP(t, c).reader.read(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("error %v", err)
			}
			if took := time.Since(begun); took > 10*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// adDirectory is a domain whose group everybody has n members, of which the server gives
// step at once, as Active Directory does unasked.
func adDirectory(n, step int, spoil func(start int, name string, values []string) (string, []string)) func(q fakeSearch) fakeAnswer {
	const base = "DC=corp,DC=example"
	dn := func(i int) string { return fmt.Sprintf("CN=u%d,%s", i, base) }
	sid := func(rid byte) []string {
		return []string{string([]byte{1, 2, 0, 0, 0, 0, 0, 5, 21, 0, 0, 0, rid, 0, 0, 0})}
	}
	return func(q fakeSearch) fakeAnswer {
		switch {
		case q.base == "":
			return fakeAnswer{entries: []*ldap.Entry{ldap.NewEntry("", map[string][]string{
				"supportedCapabilities": {capabilityActiveDirectory}, "defaultNamingContext": {base},
				"configurationNamingContext": {"CN=Configuration," + base}, "isSynchronized": {"TRUE"},
			})}}
		case strings.HasPrefix(q.base, "CN=Partitions,"):
			return fakeAnswer{entries: []*ldap.Entry{ldap.NewEntry("CN=CORP,"+q.base, map[string][]string{"nCName": {base}, "nETBIOSName": {"CORP"}, "dnsRoot": {"corp.example"}})}}
		case strings.HasPrefix(q.base, "CN=everybody"), strings.Contains(q.filter, "objectClass=group)"):
			start := 0
			if strings.HasPrefix(q.base, "CN=everybody") {
				fmt.Sscanf(q.attributes[0], "member;range=%d-*", &start)
			}
			var values []string
			for i := start; i < min(n, start+step); i++ {
				values = append(values, dn(i))
			}
			name := fmt.Sprintf("member;range=%d-%d", start, start+step-1)
			if start+step >= n {
				name = fmt.Sprintf("member;range=%d-*", start)
			}
			if spoil != nil {
				name, values = spoil(start, name, values)
			}
			e := ldap.NewEntry("CN=everybody,"+base, map[string][]string{"sAMAccountName": {"everybody"}, "objectSid": sid(9), "member": {}})
			e.Attributes = append(e.Attributes, ldap.NewEntryAttribute(name, values))
			return fakeAnswer{entries: []*ldap.Entry{e}}
		case strings.Contains(q.filter, "805306368"):
			var a fakeAnswer
			first := 0
			fmt.Sscanf(q.cookie, "from %d", &first)
			for i := first; i < min(n, first+1000); i++ { // MaxPageSize, whatever was asked for
				a.entries = append(a.entries, ldap.NewEntry(dn(i), map[string][]string{
					"sAMAccountName": {fmt.Sprintf("u%d", i)}, "userAccountControl": {"512"}, "accountExpires": {"0"}, "primaryGroupID": {"513"}, "objectSid": sid(7),
				}))
			}
			if first+1000 < n {
				a.cookie = fmt.Sprintf("from %d", first+1000)
			}
			return a
		}
		return fakeAnswer{}
	}
}

func TestLDAPRangesUnasked(t *testing.T) {
	const n = 4321
	f := newFakeLDAP(t, adDirectory(n, 1500, nil))
	c := fakeConfig(f.url)
	c.PageSize = 5000
	facts := readLDAP(t, c)
	in := 0
	for _, f := range facts {
		if slices.Equal(f.Groups, []string{"everybody"}) {
			in++
		}
	}
	if len(facts) != 2*n || in != 2*n { // each by two names
		t.Errorf("%d facts, %d of them with the group; want %d", len(facts), in, 2*n)
	}
	if saw := f.saw(); len(saw) != 1+1+1+5+1+2 { // bind, root, partition, five pages, groups, two ranges
		t.Errorf("asked %q", saw)
	}
}

// A server that answers another range than it was asked for is not believed.
func TestLDAPRangesWrong(t *testing.T) {
	for name, spoil := range map[string]func(start int, name string, values []string) (string, []string){
		"the first again":    func(int, string, []string) (string, []string) { return "member;range=0-99", make([]string, 100) },
		"fewer than it says": func(s int, name string, v []string) (string, []string) { return name, v[:len(v)-1] },
		"none": func(s int, name string, v []string) (string, []string) {
			if s > 0 {
				return "other", nil
			}
			return name, v
		},
		"nothing in between": func(s int, name string, v []string) (string, []string) {
			if s > 0 {
				return fmt.Sprintf("member;range=%d-%d", s, s-1), nil
			}
			return name, v
		},
		"without a range": func(s int, name string, v []string) (string, []string) {
			if s > 0 {
				return "member", v
			}
			return name, v
		},
		"further on": func(s int, name string, v []string) (string, []string) {
			if s > 0 {
				return fmt.Sprintf("member;range=%d-*", s+1), v
			}
			return name, v
		},
		"begins in the middle": func(s int, name string, v []string) (string, []string) { return "member;range=5-104", v },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeLDAP(t, adDirectory(250, 100, spoil))
			if facts, err := newTestLDAP(t, fakeConfig(f.url)).reader.read(t.Context()); err == nil || facts != nil {
				t.Errorf("%d facts, %v", len(facts), err)
			}
		})
	}
}

// testDirectory is what an rfc2307 read gathers of entries, without a server.
func testDirectory(c LDAPConfig, users, groups []*ldap.Entry) *ldapDirectory {
	d := newLDAPDirectory(c, nil, flow.TimeOf(time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)))
	for _, e := range users {
		_ = d.addRFC2307User(e, "uid", newMemberUids())
	}
	for _, e := range groups {
		name, _, _ := nameOf(e, "cn")
		node, _ := d.addGroup(e.DN, name)
		for _, m := range e.GetAttributeValues("member") {
			_ = d.addMember(d.node(m), node)
		}
	}
	return d
}

// Nesting is followed however deep, through circles, and to no more groups than a subject
// may be in.
func TestLDAPClosure(t *testing.T) {
	const n = 3000
	alice := ldap.NewEntry("uid=alice,dc=x", map[string][]string{"uid": {"alice"}})
	bob := ldap.NewEntry("uid=bob,dc=x", map[string][]string{"uid": {"bob"}})
	var groups []*ldap.Entry
	for i := range n {
		member := fmt.Sprintf("cn=g%04d,dc=x", (i+n-1)%n) // a ring
		if i == 0 {
			groups = append(groups, ldap.NewEntry("cn=g0000,dc=x", map[string][]string{"cn": {"g0000"}, "member": {member, "UID=Alice,DC=x"}}))
			continue
		}
		groups = append(groups, ldap.NewEntry(fmt.Sprintf("cn=g%04d,dc=x", i), map[string][]string{"cn": {fmt.Sprintf("g%04d", i)}, "member": {member}}))
	}
	groups = append(groups, ldap.NewEntry("cn=self,dc=x", map[string][]string{"cn": {"self"}, "member": {"cn=self,dc=x", "uid=bob,dc=x", "uid=bob, dc=x"}}))
	d := testDirectory(DefaultLDAPConfig(), []*ldap.Entry{alice, bob}, groups)
	facts, err := d.facts(t.Context())
	partial, ok := errors.AsType[*partialError](err)
	if !ok || !partial.subjects["alice"] || partial.subjects["bob"] || partial.all || !strings.Contains(err.Error(), "more than 1024 groups") {
		t.Errorf("error %v", err)
	}
	if len(facts) != 1 || facts[0].Subject != "bob" || !slices.Equal(facts[0].Groups, []string{"self"}) {
		t.Errorf("facts %+v", facts)
	}

	d = testDirectory(DefaultLDAPConfig(), []*ldap.Entry{alice, bob}, groups[:1000])
	if facts, err = d.facts(t.Context()); err != nil || len(facts) != 2 || len(facts[0].Groups) != 1000 || !slices.IsSorted(facts[0].Groups) {
		t.Errorf("a chain of 1000: %d facts, %v", len(facts), err)
	}
}

func TestLDAPNames(t *testing.T) {
	c := DefaultLDAPConfig()
	user := func(dn string, uid ...string) *ldap.Entry { return ldap.NewEntry(dn, map[string][]string{"uid": uid}) }
	d := testDirectory(c, []*ldap.Entry{
		user("uid=alice,dc=x", "alice"),
		user("uid=mallory,dc=x", "mallory", "alice", "bob", "eve"), // takes other people's names
		user("uid=bob,dc=x", "bob"),
		user("uid=oscar,dc=x", "oscar", "eve"),
		user("uid=twin,ou=a,dc=x", "twin"), user("uid=twin,ou=b,dc=x", "TWIN"),
		user("uid=alice,dc=x", "alice"), // an entry that moved from one page to another
		user("uid=empty,dc=x"), user("uid=bad,dc=x", "a\x00b"), user("uid=bad2,dc=x", "\xff"), user("uid=other,dc=x", `CORP\admin`),
		user("uid=long,dc=x", strings.Repeat("a", 257)), user("uid=rtl,dc=x", "ab\u202ecd"), user("uid=system,dc=x", "SYSTEM"),
	}, nil)
	facts, err := d.facts(t.Context())
	var got []string
	for _, f := range facts {
		got = append(got, f.Subject+"="+f.User)
	}
	if want := []string{"alice=alice", "bob=bob", "mallory=mallory", "oscar=oscar"}; !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
	if partial, ok := errors.AsType[*partialError](err); !ok || partial.entries != 9 || partial.all {
		t.Errorf("error %v", err)
	}
	for _, same := range [][]string{
		{"CN=Liddell\\, Alice,OU=Staff,DC=x", "cn=liddell\\2c alice, ou=staff , dc=X", `cn="liddell, alice",ou=staff,dc=x`},
		{"CN=Müller,DC=x", "cn=M\\C3\\BCller,dc=x"},
		{"cn=a+uid=b,dc=x", "UID=B+CN=A,DC=X"},
	} {
		for _, dn := range same[1:] {
			if a, b := foldDN(same[0]), foldDN(dn); a != b && !strings.Contains(dn, `"`) { // quoting is of RFC 2253 and gone
				t.Errorf("%q is %q, %q is %q", same[0], a, dn, b)
			}
		}
	}
	if foldDN("cn=a,dc=x") == foldDN("cn=b,dc=x") || foldDN("cn=a\\,dc=x") == foldDN("cn=a,dc=x") {
		t.Error("different names are taken for one")
	}
}

// A name that two entries go by gives nobody the groups of another: memberUid means whom it is
// the own name of, else the only one who has it.
func TestLDAPMemberUids(t *testing.T) {
	user := func(dn, expires string, uid ...string) *ldap.Entry {
		values := map[string][]string{"uid": uid}
		if expires != "" {
			values["shadowExpire"] = []string{expires}
		}
		return ldap.NewEntry(dn, values)
	}
	s := newFakeLDAP(t, func(q fakeSearch) fakeAnswer {
		switch {
		case isUsers(q):
			return fakeAnswer{entries: []*ldap.Entry{
				user("uid=mallory,dc=x", "", "mallory", "alice", "carol", "nobody"), // takes other people's names
				user("uid=alice,dc=x", "", "alice"),
				user("uid=bob,dc=x", "", "bob", "robert"),
				user("uid=carol,dc=x", "never", "carol"), // cannot be read
				user("uid=dave,dc=x", "", "dave", "nobody"),
				user("uid=alice,dc=x", "", "alice"), // from one page to another
			}}
		case isGroups(q):
			return fakeAnswer{entries: []*ldap.Entry{ldap.NewEntry("cn=admins,dc=x", map[string][]string{"cn": {"admins"},
				"memberUid": {"alice", "robert", "carol", "nobody"}})}}
		}
		return plainDirectory(q)
	})
	facts, err := newTestLDAP(t, fakeConfig(s.url)).reader.read(t.Context())
	var got []string
	for _, f := range facts {
		if f.Subject == f.User && len(f.Groups) > 0 {
			got = append(got, f.Subject)
		}
		if f.Subject == "carol" {
			t.Errorf("carol, who could not be read, is %+v", f)
		}
	}
	if want := []string{"alice", "bob"}; !slices.Equal(got, want) {
		t.Errorf("admins are %q, want %q", got, want)
	}
	if partial, ok := errors.AsType[*partialError](err); !ok || partial.entries != 1 || !partial.subjects["carol"] {
		t.Errorf("error %v", err)
	}
}

// An entry that cannot be read keeps what was said before of its own names, and nothing of a
// colleague's whose name it takes.
func TestLDAPBadAlias(t *testing.T) {
	alice := ldap.NewEntry("uid=alice,dc=x", map[string][]string{"uid": {"alice"}})
	mallory := ldap.NewEntry("uid=mallory,dc=x", map[string][]string{"uid": {"mallory", "alice", "mal"}, "shadowExpire": {"never"}})
	_, err := testDirectory(DefaultLDAPConfig(), []*ldap.Entry{alice, mallory}, nil).facts(t.Context())
	partial, ok := errors.AsType[*partialError](err)
	if !ok || partial.subjects["alice"] || !partial.subjects["mallory"] || !partial.subjects["mal"] {
		t.Errorf("error %v: it keeps %v", err, partial.subjects)
	}
}

func TestLDAPValidate(t *testing.T) {
	good := fakeConfig("ldap://127.0.0.1")
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		change func(c *LDAPConfig)
		want   string
	}{
		{func(c *LDAPConfig) { c.Name = "a/b" }, "name: "},
		{func(c *LDAPConfig) { c.URLs = nil }, "urls: is empty"},
		{func(c *LDAPConfig) { c.URLs = []string{"ldap://dc1.example.net"} }, "urls[0]: \"ldap://dc1.example.net\" has no TLS"},
		{func(c *LDAPConfig) { c.URLs = []string{"ldaps://dc1.example.net"}; c.StartTLS = true }, "take startTLS out"},
		{func(c *LDAPConfig) { c.URLs = []string{"https://dc1.example.net"} }, "is no server"},
		{func(c *LDAPConfig) { c.URLs = []string{"ldaps://u:p@dc1.example.net"} }, "is no server"},
		{func(c *LDAPConfig) { c.URLs = []string{"ldaps://dc1.example.net/dc=x??sub"} }, "is no server"},
		{func(c *LDAPConfig) { c.Password = "" }, "bindDN: "},
		{func(c *LDAPConfig) { c.Schema = "novell" }, "schema: "},
		{func(c *LDAPConfig) { c.Base = "example" }, "base: "},
		{func(c *LDAPConfig) { c.Groups.Base = "example" }, "groups.base: "},
		{func(c *LDAPConfig) { c.Domain = `CORP\` }, "domain: "},
		{func(c *LDAPConfig) { c.Users.Filter = "(uid=*" }, "users.filter: "},
		{func(c *LDAPConfig) { c.ServiceAccounts.Filter = "uid=svc" }, "serviceAccounts.filter: "},
		{func(c *LDAPConfig) { c.ServiceAccounts.Bases = []string{""} }, "serviceAccounts.bases[0]: "},
		{func(c *LDAPConfig) { c.Groups.Name = "member;range=0-1" }, "groups.name: "},
		{func(c *LDAPConfig) { c.PageSize = 0 }, "pageSize: "},
		{func(c *LDAPConfig) { c.MaxEntries = 1 << 30 }, "maxEntries: "},
		{func(c *LDAPConfig) { c.MaxMembers = 0 }, "maxMembers: "},
		{func(c *LDAPConfig) { c.Every = time.Millisecond }, "every: "},
		{func(c *LDAPConfig) { c.StaleAfter = c.Every / 2 }, "staleAfter: "},
		{func(c *LDAPConfig) { c.Timeout = 0 }, "timeout: "},
		{func(c *LDAPConfig) { c.TLS.Cert = "x" }, "tls: has only one"},
	} {
		bad := good
		c.change(&bad)
		if err := bad.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v; want %q", err, c.want)
		}
	}
	sources, err := New(Config{LDAP: []LDAPConfig{good}}, Options{Resolve: resolveTest})
	if err != nil || len(sources) != 1 || sources[0].Name() != "fake" {
		t.Errorf("%d sources, %v", len(sources), err)
	}
	if _, err := New(Config{LDAP: []LDAPConfig{good, good}}, Options{Resolve: resolveTest}); err == nil || !strings.Contains(err.Error(), "ldap[1].name") {
		t.Errorf("two of one name: %v", err)
	}
	bad := good
	bad.Password = "env:NOWHERE"
	if _, err := newLDAP(bad, resolveTest, nil, "", wallClock, nil, nil); err == nil || !strings.Contains(err.Error(), "password: env:NOWHERE") {
		t.Errorf("a secret that is not there: %v", err)
	}
}

// A company of 100,000 people in 20 groups each, of 10,000 groups that nest three deep.
func BenchmarkLDAPFacts(b *testing.B) {
	const people, groups, each = 100_000, 10_000, 20
	const base = ",OU=Staff,DC=corp,DC=example,DC=net"
	dn := make([]string, people)
	for i := range dn {
		dn[i] = fmt.Sprintf("CN=Person %06d%s", i, base)
	}
	c := DefaultLDAPConfig()
	c.MaxMembers = 10_000_000
	b.ReportAllocs()
	for b.Loop() {
		d := newLDAPDirectory(c, nil, 1_700_000_000_000)
		for i := range people {
			d.addSubject(dn[i], ldapSubject{name: fmt.Sprintf("p%06d@corp", i)})
		}
		for g := range groups {
			node, _ := d.addGroup(fmt.Sprintf("CN=Group %05d%s", g, base), fmt.Sprintf("Group %05d", g))
			for m := range people * each / groups {
				if err := d.addMember(d.node(dn[(g*7919+m*31)%people]), node); err != nil {
					b.Fatal(err)
				}
			}
			if g >= 100 {
				_ = d.addMember(node, d.node(fmt.Sprintf("CN=Group %05d%s", g/100, base)))
			}
		}
		facts, err := d.facts(b.Context())
		if err != nil || len(facts) != people {
			b.Fatal(len(facts), err)
		}
	}
}

// FuzzLDAPEntry: whatever a directory holds, facts are ordered, unique, within bounds, and
// never name somebody that no entry names.
func FuzzLDAPEntry(f *testing.F) {
	sid := "\x01\x02\x00\x00\x00\x00\x00\x05\x15\x00\x00\x00\x07\x00\x00\x00"
	f.Add("uid=alice,dc=x", "alice", "512", "133000000000000000", "513", sid, "cn=g,dc=x", "g", "uid=alice,dc=x")
	f.Add("CN=a\\,b,DC=x", "a", "514", "0", "513", sid, "cn=g,dc=x", "g", "cn=g,dc=x")
	f.Add("", "\xff", "-1", "-5", "99999999999999999999", "", ",", "dn", "#")
	f.Add("cn=a+b", `CORP\a`, "0x2", "9223372036854775807", "", "\x01", "cn=\\ff", "\x00", "member;range=0-*")
	f.Add("cn=x,dc=x", "x@y@z", "2", "1", "0", strings.Repeat("\xff", 300), "cn=x,dc=x", "x", "cn=x,dc=x#'0'B")
	f.Fuzz(func(t *testing.T, dn, name, number, when, primary, sid, groupDN, group, member string) {
		c := DefaultLDAPConfig()
		c.MaxEntries, c.MaxMembers = 5, 4
		c.ServiceAccounts.Bases = []string{"dc=x"}
		user := ldap.NewEntry(dn, map[string][]string{
			"sAMAccountName": {name}, "uid": {name, number}, "userPrincipalName": {name + "@x"}, "userAccountControl": {number}, "accountExpires": {when},
			"primaryGroupID": {primary}, "objectSid": {sid}, "shadowExpire": {when}, "gidNumber": {primary}, "objectClass": {number}, "dNSHostName": {member},
			"nsAccountLock": {number},
		})
		g := ldap.NewEntry(groupDN, map[string][]string{"cn": {group}, "member": {member, dn, groupDN}, name: {member}, "objectSid": {sid}})
		for _, ad := range []bool{false, true} {
			d := newLDAPDirectory(c, nil, 1_700_000_000_000)
			if ad {
				d.domain = number
				_ = d.addADSubject(user, "sAMAccountName", group, ldapUser)
				_ = d.addADSubject(user, "sAMAccountName", group, ldapComputer)
			} else {
				_ = d.addRFC2307User(user, "uid", newMemberUids())
			}
			d.markService(member)
			text, _, _ := nameOf(g, "cn")
			node, _ := d.addGroup(groupDN, text)
			for _, attribute := range []string{"member", name} {
				values, _, err := valuesFrom(g, attribute, 0)
				if err != nil {
					continue
				}
				for _, v := range values {
					_ = d.addMember(d.node(memberDN("uniqueMember", v)), node)
				}
			}
			d.primary[primary] = node
			facts, err := d.facts(context.Background())
			if err != nil {
				if _, ok := errors.AsType[*partialError](err); !ok {
					t.Fatal(err)
				}
			}
			for i, f := range facts {
				if canonical, kind := (*flow.Domains)(nil).Principal(f.Subject); canonical != f.Subject || kind == flow.PrincipalSystem || kind == flow.PrincipalNone {
					t.Fatalf("subject %q, which is %q (%d)", f.Subject, canonical, kind)
				}
				if i > 0 && facts[i-1].Subject >= f.Subject {
					t.Fatalf("%q before %q", facts[i-1].Subject, f.Subject)
				}
				if !slices.IsSorted(f.Groups) || len(f.Groups) > 1 || len(f.Groups) == 1 && f.Groups[0] != strings.TrimSpace(group) {
					t.Fatalf("groups %q", f.Groups)
				}
				if f.User != "" && f.Account != "" || len(f.Device) > maxEntryName {
					t.Fatalf("%+v", f)
				}
			}
		}
		for _, text := range []string{name, member, number, when} {
			if r, ok := parseRange(text, "member"); ok && (r.from < 0 || r.to < -1 || r.to >= 0 && r.to < r.from) {
				t.Fatalf("%q: %+v", text, r)
			}
			if folded := foldDN(text); foldDN(folded) != folded && bytes.IndexByte([]byte(text), '#') < 0 {
				t.Fatalf("%q: %q, again %q", text, folded, foldDN(folded))
			}
		}
	})
}
