package directory

import (
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"unicode/utf16"

	"github.com/postern/postern/test/part"
)

// Packages that tests of Active Directory need, as Debian calls them.
const sambaPackages = "samba samba-ad-dc samba-ad-provision ldb-tools ldap-utils"

// StartActiveDirectory runs a domain controller of a new domain for t: NetBIOS name CORP,
// DNS name corp.example.net, and in it a user postern who reads. entries is LDIF that is
// added beforehand. Its log is shown if t failed.
func StartActiveDirectory(t testing.TB, entries string) *Server {
	t.Helper()
	part.Need(t, sambaPackages, "samba", "samba-tool", "ldbadd", "ldapmodify")
	if os.Geteuid() != 0 {
		part.Missing(t, "Samba listens on ports below 1024, which needs root")
	}
	s := prepare(t, "samba-ad.sh", "dc1.corp.example.net")
	address, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	s.LDAPS, s.LDAP = "ldaps://"+address, "ldap://"+address
	s.Base = "DC=corp,DC=example,DC=net"
	s.AdminDN, s.AdminPassword = "CN=Administrator,CN=Users,"+s.Base, "Passw0rd.of.the.test"
	s.ReaderDN, s.ReaderPassword = "CN=postern,CN=Users,"+s.Base, "An0ther.of.the.test"
	s.call([]string{"ADMIN_PASSWORD=" + s.AdminPassword}, "", "provision", s.dir, address)
	reader := fmt.Sprintf("dn: %s\nobjectClass: user\nsAMAccountName: postern\nuserPrincipalName: postern@corp.example.net\nuserAccountControl: 66048\nunicodePwd:: %s\n\n",
		s.ReaderDN, unicodePwd(s.ReaderPassword))
	s.call(nil, reader+entries, "load", s.dir)
	s.run = []string{"run", s.dir}
	s.own()
	s.Start()
	return s
}

// unicodePwd is a password as Active Directory takes it (MS-ADTS 3.1.1.3.1.5), in base64.
func unicodePwd(password string) string {
	var b []byte
	for _, u := range utf16.Encode([]rune(`"` + password + `"`)) {
		b = append(b, byte(u), byte(u>>8))
	}
	return base64.StdEncoding.EncodeToString(b)
}

// freeAddress finds a loopback address at which nobody listens on Samba's ports.
func freeAddress() (string, error) {
	var last error
	for range 100 {
		address := net.IPv4(127, byte(64+rand.IntN(128)), byte(rand.IntN(256)), byte(1+rand.IntN(250))).String()
		free := true
		for _, port := range []string{"389", "636", "3268", "3269"} {
			l, err := net.Listen("tcp4", net.JoinHostPort(address, port))
			if err != nil {
				free, last = false, err
				break
			}
			l.Close()
		}
		if free {
			return address, nil
		}
	}
	return "", fmt.Errorf("no loopback address with free LDAP ports: %w", last)
}
