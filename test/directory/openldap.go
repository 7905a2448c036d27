package directory

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern/postern/test/part"
)

const slapdPackages = "slapd ldap-utils"

// StartOpenLDAP runs slapd for t with the base dc=example,dc=org and below it a user
// cn=postern who reads. entries is LDIF that is added beforehand. An answer has at most
// sizeLimit entries, a page too; only the reader may have all by reading pages. extra is
// added to the configuration. Its log is shown if t failed.
func StartOpenLDAP(t testing.TB, entries string, sizeLimit int, extra ...string) *Server {
	t.Helper()
	part.Need(t, slapdPackages, "slapd", "slapadd", "ldapmodify")
	s := prepare(t, "slapd.sh", "ldap.example.org")
	ports, err := part.FreePorts(2)
	if err != nil {
		t.Fatal(err)
	}
	s.LDAP, s.LDAPS = fmt.Sprintf("ldap://127.0.0.1:%d", ports[0]), fmt.Sprintf("ldaps://127.0.0.1:%d", ports[1])
	s.Base = "dc=example,dc=org"
	s.AdminDN, s.AdminPassword = "cn=admin,"+s.Base, "administrator"
	s.ReaderDN, s.ReaderPassword = "cn=postern,"+s.Base, "reader"
	tls := filepath.Join(s.dir, "tls")
	config := fmt.Sprintf(`include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/nis.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
moduleload ppolicy
pidfile %[1]s/pid
argsfile %[1]s/args
TLSCACertificateFile %[2]s/ca.pem
TLSCertificateFile %[2]s/server.pem
TLSCertificateKeyFile %[2]s/server-key.pem
TLSVerifyClient try
authz-regexp cn=postern %[6]s
database mdb
suffix %[3]q
rootdn %[4]q
rootpw %[5]s
directory %[1]s/db
maxsize 67108864
index objectClass eq
limits dn.exact=%[6]q size.soft=%[7]d size.hard=%[7]d size.pr=%[7]d size.prtotal=unlimited
limits * size.soft=%[7]d size.hard=%[7]d
access to attrs=userPassword by anonymous auth by * none
access to * by dn.exact=%[6]q read by users read by * none
overlay ppolicy
%[8]s
`, s.dir, tls, s.Base, s.AdminDN, s.AdminPassword, s.ReaderDN, sizeLimit, strings.Join(extra, "\n"))
	if err := os.WriteFile(filepath.Join(s.dir, "slapd.conf"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	base := fmt.Sprintf("dn: %s\nobjectClass: dcObject\nobjectClass: organization\no: Example\n\ndn: %s\nobjectClass: organizationalRole\nobjectClass: simpleSecurityObject\nuserPassword: %s\n\n",
		s.Base, s.ReaderDN, s.ReaderPassword)
	s.call(nil, base+entries, "load", s.dir)
	s.run = []string{"run", s.dir, s.LDAP + " " + s.LDAPS}
	s.own()
	s.Start()
	return s
}
