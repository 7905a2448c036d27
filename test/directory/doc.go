// Package directory starts real directory servers for tests: an Active Directory domain
// controller (Samba) and OpenLDAP's slapd, on loopback, with certificates of a test
// authority, in a temporary folder, gone when the test is. It is for tests alone and
// imports nothing of Postern but test/part, so that a test of any package can use it.
//
// `make test` installs the Debian packages. Where they are missing, tests skip and say
// so; with CI=true they fail. Samba takes about five seconds to be made and started,
// and a second for each 400 entries.
package directory
