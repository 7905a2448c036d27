package main

import (
	"strconv"
	"time"
)

// The week before the demo. Who behaves unusually shows only to those who know what is usual, so
// the company has a past: seven days in which people work at their desks, administrators look after
// servers, pipelines deliver, backups are taken at night and a scanner goes round once.

// demoDays is how many days of past there are: those that are learned from (five by default) and two on which
// what is new would be told of.
const demoDays = 7

const (
	backup  = "10.70.0.5"
	scanner = "10.10.2.5"
	files   = "10.10.1.20"
	wiki    = "10.10.1.30"
)

// week adds the ordinary traffic of the days before the last half hour, which ends at start.
func (c *company) week(start time.Time) {
	for day := demoDays; day >= 1; day-- {
		morning := -time.Duration(day)*24*time.Hour + time.Hour // so many hours of work from then, the night after
		for i, desk := range c.desks {
			c.deskDay(morning, desk, i+day)
		}
		c.serversDay(morning, sameDay(start, morning, buildHour))
		c.adminsDay(morning, day)
		c.backups(morning+14*time.Hour, 2*time.Hour)
		if day == demoDays-1 {
			c.scan(morning+17*time.Hour, 2*time.Hour)
		}
		if day >= 4 { // while EX-2041 was valid
			c.within(morning, 8*time.Hour, 2, "10.60.0.3", "10.20.0.11", 443)
		}
		c.within(morning, 8*time.Hour, 1, "10.40.0.22", files, 445)         // EX-2051
		c.within(morning, 8*time.Hour, 2, "10.40.0.21", "10.30.0.20", 5432) // EX-2077
		if day%2 == 0 {                                                     // EX-2140, as approved: to that host and no further
			c.within(morning, 8*time.Hour, 1, "10.60.0.4", "10.30.0.50", 22)
		}
		for range 40 { // a job that the firewall refuses every day
			start := morning + 2*time.Hour + c.some(25*time.Minute)
			c.add(conversation{start: start, end: start, client: "10.60.0.9", server: "10.20.0.12", proto: tcp, sport: 22, bytes: 60, event: 3})
		}
	}
}

// some is a time within a span.
func (c *company) some(span time.Duration) time.Duration {
	return time.Duration(c.rng.Int64N(int64(span/time.Second))) * time.Second
}

// within adds n conversations over TCP within a span.
func (c *company) within(from, span time.Duration, n int, client, server string, port uint16) {
	for range n {
		c.at(from+c.some(span), client, server, port)
	}
}

// at adds one conversation over TCP.
func (c *company) at(start time.Duration, client, server string, port uint16) {
	c.add(conversation{start: start, end: start + time.Duration(c.rng.IntN(20_000))*time.Millisecond, client: client, server: server, proto: tcp, sport: port,
		bytes: uint64(400 + c.rng.IntN(40_000)), replies: uint64(300 + c.rng.IntN(400_000))})
}

// deskDay is a day of somebody's at a desk: they log on, read and write files, use the payment
// application and the wiki, print.
func (c *company) deskDay(morning time.Duration, desk string, i int) {
	logon := morning + c.some(90*time.Minute)
	c.add(conversation{start: logon, end: logon, client: desk, server: "10.10.0.10", proto: udp, sport: 53, bytes: 60, replies: 120})
	for _, port := range []uint16{88, 389, 135, 49671} {
		c.at(logon+time.Second, desk, "10.10.0.1"+strconv.Itoa(i%2), port)
	}
	c.within(logon, 8*time.Hour, 2, desk, files, 445)
	c.within(logon, 8*time.Hour, 1, desk, "10.30.0.10", 443)
	c.within(logon, 8*time.Hour, 1, desk, wiki, 443)
	c.within(logon, 8*time.Hour, 1, desk, "203.0.113."+strconv.Itoa(1+c.rng.IntN(250)), 443)
	c.within(logon, 8*time.Hour, 1, desk, "10.80.0."+strconv.Itoa(10+i%40), 9100)
}

// buildHour is for how long pipelines are at work.
const buildHour = time.Hour

// sameDay is from, or later so that a span of that length lies within one day by UTC. Days are counted on
// which a host newly reached others, and whoever does so on two of them is an administrator: what
// the demo finds must not hang on the hour at which it is started.
func sameDay(start time.Time, from, span time.Duration) time.Duration {
	began := start.Add(from).UTC()
	if began.Add(span).Day() != began.Day() {
		return from + span
	}
	return from
}

// serversDay is what servers and pipelines do by themselves; pipelines deliver from builds on.
func (c *company) serversDay(morning, builds time.Duration) {
	const day = 22 * time.Hour
	c.within(morning, day, 20, "10.30.0.10", "10.20.0.11", 443)
	c.within(morning, day, 8, "10.30.0.10", "10.20.0.12", 443)
	c.within(morning, day, 8, "2001:db8:30::10", "2001:db8:20::11", 443)
	c.within(morning, day, 15, "10.30.0.10", "10.30.0.20", 5432)
	c.within(morning, day, 10, "10.30.0.11", "10.30.0.10", 443)
	c.within(morning, day, 6, "10.10.0.10", "10.10.0.11", 389)
	c.within(morning, day, 3, "10.90.0.7", "198.51.100.9", 443)
	for i := range 2 {
		runner := "10.40.0.2" + strconv.Itoa(1+i)
		c.within(morning, 10*time.Hour, 3, runner, "10.30.0.10", 8443)
		for k := range 8 { // each build goes to machines of the lab
			c.within(builds, buildHour, 1, runner, "10.90.0."+strconv.Itoa(20+k), 22)
		}
	}
}

// adminsDay is a day of the two administrators, who look after servers over SSH and remote desktop.
func (c *company) adminsDay(morning time.Duration, day int) {
	servers := []string{"10.30.0.10", "10.30.0.11", "10.30.0.20", "10.30.0.40", "10.30.0.50"}
	for i := range 2 {
		admin := [2]string{"10.50.9.9", "10.50.9.10"}[i]
		c.within(morning, 8*time.Hour, 2, admin, files, 3389)
		c.within(morning, 8*time.Hour, 1, admin, wiki, 22)
		for k := range 3 {
			c.within(morning, 8*time.Hour, 1, admin, servers[(day+i+k)%len(servers)], 22)
		}
	}
}

// backups pulls a backup of every server.
func (c *company) backups(from, span time.Duration) {
	c.within(from, span, 2, backup, files, 445) // EX-2100
	for _, server := range []string{"10.10.0.10", "10.10.0.11", wiki, "10.30.0.10", "10.30.0.11", "10.30.0.20", "10.30.0.40", "10.30.0.50"} {
		start := from + c.some(span)
		c.add(conversation{start: start, end: start + 15*time.Second, client: backup, server: server, proto: tcp, sport: 22,
			bytes: 90_000, replies: uint64(40_000_000 + c.rng.IntN(80_000_000))})
	}
}

// scan goes round the networks that the scanner's exception EX-2130 lets it look at. Most of what it
// tries answers with a reset.
func (c *company) scan(from, span time.Duration) {
	look := func(server string, open ...uint16) {
		for _, port := range []uint16{22, 80, 135, 443, 445, 3389, 5432, 5985} {
			start := from + c.some(span)
			v := conversation{start: start, end: start + 50*time.Millisecond, client: scanner, server: server, proto: tcp, sport: port, bytes: 60, replies: 40, refused: true}
			for _, p := range open {
				if p == port {
					v.bytes, v.replies, v.refused = 900, 2_400, false
				}
			}
			c.add(v)
		}
	}
	for i := range 80 {
		look("10.90.0."+strconv.Itoa(10+i), 22)
	}
	for i := range 2 {
		look("10.10.0.1"+strconv.Itoa(i), 22, 135, 445, 3389)
	}
	look(files, 445, 3389)
	look(wiki, 22, 443)
	for _, s := range []string{"10.30.0.10", "10.30.0.11", "10.30.0.40", "10.30.0.50"} {
		look(s, 22, 443)
	}
	look("10.30.0.20", 22, 5432)
	look("10.40.0.21", 22)
	look("10.40.0.22", 22)
}
