// Package radius starts a real RADIUS server for tests: Debian's FreeRADIUS, which takes
// accounting requests on a loopback port and writes them down as its detail module and its
// JSON module do. freeradius.sh is how it starts; it can be run by hand too.
package radius
