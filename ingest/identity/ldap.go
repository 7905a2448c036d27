package identity

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/postern/postern/flow"
)

// LDAPConfig is one directory: who its users, service accounts and groups are. It says
// nothing about addresses; a session or a flow's own agent says who was behind one, and
// the directory what that user is.
type LDAPConfig struct {
	// Name is what this source is called in metrics, in stored flows and by `postern explain`.
	Name string `yaml:"name"`
	// URLs are the servers, ldaps://host[:port] or ldap://host[:port], tried in this order. The one that answered is kept until it fails, because servers that copy from each other may lag behind each other.
	URLs []string `yaml:"urls"`
	// StartTLS turns TLS on at an ldap:// server before anything else is said. A server that refuses is not used.
	StartTLS bool `yaml:"startTLS"`
	// TLS is how to trust the servers. A certificate of our own, without bindDN, also logs in (SASL EXTERNAL).
	TLS TLSConfig `yaml:"tls"`
	// BindDN is who reads: a DN, or in Active Directory also user@domain. Empty for anonymous reading.
	BindDN string `yaml:"bindDN"`
	// Password is a reference to a secret (env:NAME or file:PATH), never the secret itself. It is read anew for each read of the directory.
	Password string `yaml:"password"`
	// Schema is active-directory, rfc2307 (OpenLDAP, 389 Directory Server, FreeIPA) or auto: what the server says that it is.
	Schema string `yaml:"schema"`
	// Base is the DN below which everything lies; if empty the server's own (defaultNamingContext, else its only naming context).
	Base string `yaml:"base"`
	// Domain is the one that users are of, as in CORP\alice or alice@corp. If empty it is Active Directory's own NetBIOS name, and elsewhere users are of none.
	Domain string `yaml:"domain"`
	// Users is where and how users are found. name defaults to sAMAccountName, with rfc2307 to uid.
	Users LDAPSearch `yaml:"users"`
	// Groups is where and how groups are found. name is an attribute or the word dn; it defaults to sAMAccountName, which is unique in a domain, and with rfc2307 to cn. Groups that share a name go by their DNs instead, so that nobody joins a group by naming another one alike.
	Groups LDAPSearch `yaml:"groups"`
	// ServiceAccounts says which users are services besides those that Active Directory itself marks: managed service accounts and users with a service principal name.
	ServiceAccounts LDAPServiceAccounts `yaml:"serviceAccounts"`
	// Computers also reads Active Directory's computers, with the groups they are in. It reads no addresses.
	Computers bool `yaml:"computers"`
	// PageSize is how many entries are asked for at once (RFC 2696). Active Directory gives at most its own MaxPageSize, OpenLDAP refuses more than its size.pr.
	PageSize int `yaml:"pageSize"`
	// MaxEntries is the most users, groups and computers together. A directory with more is not read at all, and becomes stale.
	MaxEntries int `yaml:"maxEntries"`
	// MaxMembers is the most group memberships, as written in the directory, together.
	MaxMembers int `yaml:"maxMembers"`
	// Every is the time from one whole read to the next, and thereby how uncertain the time of a change is.
	Every time.Duration `yaml:"every"`
	// StaleAfter is how long after the last whole read what it said still counts; 0 is for ever. A read also ends after it.
	StaleAfter time.Duration `yaml:"staleAfter"`
	// Timeout bounds connecting, and then each wait for the server to say something.
	Timeout time.Duration `yaml:"timeout"`
}

// LDAPSearch is where and how entries of one kind are found.
type LDAPSearch struct {
	// Base is the DN below which they lie; if empty the directory's.
	Base string `yaml:"base"`
	// Filter finds them (RFC 4515); if empty the schema's usual one.
	Filter string `yaml:"filter"`
	// Name is the attribute that names them; if empty the schema's usual one.
	Name string `yaml:"name"`
}

// LDAPServiceAccounts says which users are services.
type LDAPServiceAccounts struct {
	// Filter finds them among the users (RFC 4515).
	Filter string `yaml:"filter"`
	// Bases are DNs below which every user is a service.
	Bases []string `yaml:"bases"`
}

// What LDAPConfig.Schema may be.
const (
	schemaAuto            = "auto"
	schemaActiveDirectory = "active-directory"
	schemaRFC2307         = "rfc2307"
)

const (
	// maxUnread is how many bytes a server may send before an entry is complete: a group
	// of half a million members. The LDAP library holds several copies of it for a moment.
	maxUnread = 64 << 20
	// maxGroupsOf is how many groups a subject may be in, nested ones included. Windows
	// refuses a logon with more than 1,015.
	maxGroupsOf = 1024
	// maxAttributeName is the longest name of an attribute that is asked for.
	maxAttributeName = 128
	// maxLDAPEntries keeps a source below [maxFacts] with two names a user.
	maxLDAPEntries = maxFacts / 2
)

// DefaultLDAPConfig is the configuration of somebody who named a server, who reads and
// how to trust it.
func DefaultLDAPConfig() LDAPConfig {
	return LDAPConfig{
		Schema: schemaAuto,
		// Below what servers commonly allow: Active Directory 1,000. Larger pages save round
		// trips only.
		PageSize: 500,
		// A large company has 100,000 users, a tenth as many groups, and computers. An
		// entry takes about 500 bytes while a read lasts: 125 MB.
		MaxEntries: 250_000,
		// Twenty groups for each of 100,000 users; 8 bytes each, and 300 for the DN of a
		// member that is no user or group that was read.
		MaxMembers: 2_000_000,
		// A read of 100,000 users takes a server some ten seconds. Whoever is added to a
		// group waits half of it on average.
		Every: 5 * time.Minute,
		// Four reads that failed, with room for the servers' own maintenance.
		StaleAfter: 30 * time.Minute,
		// A page comes in well under a second; a busy server takes several.
		Timeout: 30 * time.Second,
	}
}

// Validate says what is wrong and what would be right, all of it at once; each
// error begins with its key. It reads no file and connects to nothing.
func (c LDAPConfig) Validate() error {
	errs := []error{validSourceName(c.Name)}
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	if len(c.URLs) == 0 {
		bad("urls: is empty; name at least one server, such as ldaps://dc1.example.net")
	}
	for i, u := range c.URLs {
		server, err := parseLDAPURL(u)
		switch {
		case err != nil:
			bad("urls[%d]: %w", i, err)
		case server.tls && c.StartTLS:
			bad("urls[%d]: %q has TLS from the start, so startTLS cannot be; use ldap://, or take startTLS out", i, u)
		case !server.tls && !c.StartTLS && !thisMachine(server.host):
			bad("urls[%d]: %q has no TLS: anyone on the path could read the password and say who is in which group; use ldaps://, or set startTLS", i, u)
		}
	}
	errs = append(errs, c.TLS.validate()...)
	if (c.BindDN == "") != (c.Password == "") {
		bad("bindDN: goes with password; give both, or neither for anonymous reading")
	}
	switch c.Schema {
	case schemaAuto, schemaActiveDirectory, schemaRFC2307:
	default:
		bad("schema: %q is not known; use auto, active-directory or rfc2307", c.Schema)
	}
	if _, ok := cleanName(c.Domain); c.Domain != "" && (!ok || strings.ContainsAny(c.Domain, `\@`)) {
		bad("domain: %q is no domain; write it as in CORP\\alice or alice@corp, alone", c.Domain)
	}
	for key, dn := range map[string]string{"base": c.Base, "users.base": c.Users.Base, "groups.base": c.Groups.Base} {
		if _, err := ldap.ParseDN(dn); err != nil {
			bad("%s: %q is no DN: %w", key, dn, err)
		}
	}
	for i, dn := range c.ServiceAccounts.Bases {
		if d, err := ldap.ParseDN(dn); err != nil || len(d.RDNs) == 0 {
			bad("serviceAccounts.bases[%d]: %q is no DN, such as OU=Services,DC=example,DC=net", i, dn)
		}
	}
	for key, filter := range map[string]string{"users.filter": c.Users.Filter, "groups.filter": c.Groups.Filter, "serviceAccounts.filter": c.ServiceAccounts.Filter} {
		if filter == "" {
			continue
		}
		if _, err := ldap.CompileFilter(filter); err != nil {
			bad("%s: %q is no filter (RFC 4515), such as (objectClass=person): %w", key, filter, err)
		}
	}
	for key, name := range map[string]string{"users.name": c.Users.Name, "groups.name": c.Groups.Name} {
		if strings.ContainsAny(name, " ;,=()*") || len(name) > maxAttributeName {
			bad("%s: %q is no attribute's name, such as cn", key, name)
		}
	}
	if c.PageSize < 1 || c.PageSize > 10_000 {
		bad("pageSize: %d is out of range; it must lie between 1 and 10000", c.PageSize)
	}
	if c.MaxEntries < 1 || c.MaxEntries > maxLDAPEntries {
		bad("maxEntries: %d is out of range; it must lie between 1 and %d", c.MaxEntries, maxLDAPEntries)
	}
	if c.MaxMembers < 1 || c.MaxMembers > 100_000_000 {
		bad("maxMembers: %d is out of range; it must lie between 1 and 100000000", c.MaxMembers)
	}
	errs = append(errs, validPoll(c.Every, c.StaleAfter)...)
	errs = append(errs, validTimeout(c.Timeout))
	return errors.Join(errs...)
}

// ldapServer is a server to connect to.
type ldapServer struct {
	host, addr string // addr is host:port
	tls        bool   // from the start
}

func parseLDAPURL(s string) (ldapServer, error) {
	wrong := func() (ldapServer, error) {
		return ldapServer{}, fmt.Errorf("%q is no server; write ldaps://host or ldap://host, with :port if it is not the usual one", s)
	}
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return wrong()
	}
	port := u.Port()
	switch u.Scheme {
	case "ldap":
		if port == "" {
			port = ldap.DefaultLdapPort
		}
	case "ldaps":
		if port == "" {
			port = ldap.DefaultLdapsPort
		}
	default:
		return wrong()
	}
	return ldapServer{host: u.Hostname(), addr: net.JoinHostPort(u.Hostname(), port), tls: u.Scheme == "ldaps"}, nil
}

// ldapReader reads a directory. It is used by one goroutine.
type ldapReader struct {
	cfg     LDAPConfig
	servers []ldapServer
	tls     *tls.Config
	resolve func(ref string) (string, error)
	domains *flow.Domains
	clock   func() flow.Time
	log     *slog.Logger
	next    int // which server is asked next: the one that answered last
}

// newLDAP makes a source of a directory. It reads certificates and whether there is a
// password, and connects to nothing.
func newLDAP(cfg LDAPConfig, resolve func(ref string) (string, error), domains *flow.Domains, stateDir string, clock func() flow.Time, log *slog.Logger, met *metrics) (Source, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r, err := newLDAPReader(cfg, resolve, domains, clock, log)
	if err != nil {
		return nil, err
	}
	return newPolled(cfg.Name, flow.FactDirectory, cfg.Every, cfg.StaleAfter, r, stateDir, clock, log, met), nil
}

func newLDAPReader(cfg LDAPConfig, resolve func(ref string) (string, error), domains *flow.Domains, clock func() flow.Time, log *slog.Logger) (*ldapReader, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	r := &ldapReader{cfg: cfg, resolve: resolve, domains: domains, clock: clock, log: log.With("source", cfg.Name)}
	for _, u := range cfg.URLs {
		s, err := parseLDAPURL(u)
		if err != nil {
			return nil, err
		}
		r.servers = append(r.servers, s)
	}
	var err error
	if r.tls, err = cfg.TLS.config(); err != nil {
		return nil, err
	}
	if _, err := r.password(); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *ldapReader) password() (string, error) {
	if r.cfg.Password == "" {
		return "", nil
	}
	p, err := readSecret(r.resolve, "password", r.cfg.Password)
	if err != nil {
		return "", err
	}
	if p == "" {
		// A bind without a password succeeds as nobody (RFC 4513, 5.1.2).
		return "", fmt.Errorf("password: %s is empty", r.cfg.Password)
	}
	return p, nil
}

// read implements reader.
func (r *ldapReader) read(ctx context.Context) ([]flow.Fact, error) {
	if r.cfg.StaleAfter > 0 {
		var done context.CancelFunc
		ctx, done = context.WithTimeout(ctx, r.cfg.StaleAfter)
		defer done()
	}
	var errs error
	for range r.servers {
		server := r.servers[r.next]
		facts, err := r.readFrom(ctx, server)
		var partial *partialError
		if err == nil || errors.As(err, &partial) {
			return facts, err
		}
		errs = errors.Join(errs, fmt.Errorf("%s: %w", server.addr, err))
		if ctx.Err() != nil {
			return nil, errors.Join(errs, ctx.Err())
		}
		r.next = (r.next + 1) % len(r.servers)
	}
	return nil, errs
}

func (r *ldapReader) readFrom(ctx context.Context, server ldapServer) ([]flow.Fact, error) {
	s, err := r.connect(ctx, server)
	if err != nil {
		return nil, err
	}
	defer s.close()
	if err := s.learn(ctx); err != nil {
		return nil, err
	}
	d := newLDAPDirectory(r.cfg, r.domains, r.clock())
	if err := s.read(ctx, d); err != nil {
		return nil, err
	}
	if len(d.subjects) == 0 {
		return nil, errors.New("no user was found, which is taken for a mistake and not for an empty directory: check users.base, users.filter and what bindDN may read")
	}
	if s.referrals > 0 {
		r.log.Debug("the directory referred elsewhere, which is not followed", "referrals", s.referrals)
	}
	return d.facts(ctx)
}

// ldapSession is one connection, used for one read.
type ldapSession struct {
	cfg  LDAPConfig
	conn *ldap.Conn
	wire *boundedConn
	stop func() bool

	activeDirectory bool
	base            string
	configuration   string // the DN of the configuration, in Active Directory
	referrals       int
}

// boundedConn is a connection on which each read and write has a time limit, and which
// ends when more comes than was made sense of.
type boundedConn struct {
	net.Conn
	timeout time.Duration
	unread  atomic.Int64
}

func (c *boundedConn) Read(b []byte) (int, error) {
	if c.unread.Load() > maxUnread {
		return 0, fmt.Errorf("a single entry is longer than %d MiB", maxUnread>>20)
	}
	if err := c.SetReadDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(b)
	c.unread.Add(int64(n))
	return n, err
}

func (c *boundedConn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

// connect connects, turns TLS on and logs in.
func (r *ldapReader) connect(ctx context.Context, server ldapServer) (_ *ldapSession, err error) {
	password, err := r.password()
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{Timeout: r.cfg.Timeout}
	raw, err := dialer.DialContext(ctx, "tcp", server.addr)
	if err != nil {
		return nil, err
	}
	s := &ldapSession{cfg: r.cfg, wire: &boundedConn{Conn: raw, timeout: r.cfg.Timeout}}
	// The library knows no context: its end is the end of what it reads from.
	s.stop = context.AfterFunc(ctx, func() { raw.Close() })
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	secure := r.tls.Clone()
	if secure.ServerName == "" {
		secure.ServerName = server.host
	}
	if server.tls {
		c := tls.Client(s.wire, secure)
		if err := c.HandshakeContext(ctx); err != nil {
			return nil, fmt.Errorf("TLS: %w", err)
		}
		s.conn = ldap.NewConn(c, true)
	} else {
		s.conn = ldap.NewConn(s.wire, false)
	}
	s.conn.Start()
	if r.cfg.StartTLS {
		if err := s.conn.StartTLS(secure); err != nil {
			return nil, fmt.Errorf("startTLS: %w", err)
		}
	}
	switch {
	case r.cfg.BindDN != "":
		err = s.conn.Bind(r.cfg.BindDN, password)
	case r.cfg.TLS.Cert != "":
		err = s.conn.ExternalBind()
	}
	if err != nil {
		return nil, fmt.Errorf("logging in: %w", explainLDAP(err))
	}
	return s, nil
}

func (s *ldapSession) close() {
	s.stop()
	s.wire.Close() // first, so that nothing waits for the server
	if s.conn != nil {
		_ = s.conn.Close()
	}
}

// explainLDAP adds what would be right to what servers commonly refuse.
func explainLDAP(err error) error {
	var e *ldap.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.ResultCode {
	case ldap.LDAPResultInvalidCredentials:
		return fmt.Errorf("%w; check bindDN and the secret that password refers to", err)
	case ldap.LDAPResultStrongAuthRequired, ldap.LDAPResultConfidentialityRequired:
		return fmt.Errorf("%w; the server wants TLS: use ldaps://, or set startTLS", err)
	case ldap.LDAPResultSizeLimitExceeded, ldap.LDAPResultAdminLimitExceeded, ldap.LDAPResultTimeLimitExceeded:
		return fmt.Errorf("%w; the server cuts the answer short, so nothing of it counts: raise its limits for bindDN (OpenLDAP: limits dn.exact=\"…\" size.prtotal=unlimited), or lower pageSize", err)
	case ldap.LDAPResultNoSuchObject, ldap.LDAPResultReferral:
		return fmt.Errorf("%w; nothing lies here below that base, or bindDN may not see it", err)
	case ldap.LDAPResultUnavailableCriticalExtension:
		return fmt.Errorf("%w; the server must support paged results (RFC 2696)", err)
	}
	return err
}
