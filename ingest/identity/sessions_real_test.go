package identity

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/agent"
	"github.com/postern/postern/test/radius"
)

// TestFreeRADIUS: two users have one address one after the other at a real FreeRADIUS, a
// third has it when the NAS begins anew, and a fourth's end is lost. From each of the three
// ways in which the server writes it down follow the same facts, with the right borders
// (THREATS 14), also where it writes the local time of a zone.
func TestFreeRADIUS(t *testing.T) {
	for _, zone := range []string{"UTC", "Europe/Berlin", "Asia/Kolkata"} {
		t.Run(zone, func(t *testing.T) {
			server := radius.Start(t, zone)
			now := time.Now().Truncate(time.Second)
			request := func(ago int, kind, session, user, rest string) string {
				return fmt.Sprintf("Acct-Status-Type = %s\nAcct-Session-Id = %q\nUser-Name = %q\nNAS-IP-Address = 192.0.2.1\nEvent-Timestamp = %d\nAcct-Delay-Time = %d\n%s",
					kind, session, user, now.Unix()-int64(ago), ago, rest)
			}
			const addr = "Framed-IP-Address = 10.8.0.5\nCalling-Station-Id = \"00-00-5E-00-53-01\"\n"
			server.Send(
				request(1000, "Start", "a1", `CORP\alice`, addr),
				request(900, "Interim-Update", "a1", `CORP\alice`, addr+"Acct-Session-Time = 100\n"),
				request(800, "Stop", "a1", `CORP\alice`, addr+"Acct-Session-Time = 200\n"),
				request(790, "Start", "b1", "bob@corp.example", addr),
				request(700, "Stop", "b1", "bob@corp.example", addr),
				request(690, "Start", "m1", "host/ws1.corp.example", addr),
				request(600, "Start", "c1", "jörg \"the\" admin", addr+"Framed-IPv6-Address = 2001:db8::5\n"),
				request(580, "Interim-Update", "c1", "jörg \"the\" admin", addr+"Framed-IPv6-Address = 2001:db8::5\n"),
				fmt.Sprintf("Acct-Status-Type = Accounting-On\nNAS-IP-Address = 192.0.2.1\nEvent-Timestamp = %d\nAcct-Delay-Time = 500\n", now.Unix()-500),
				request(400, "Start", "d1", "dave", addr),
				request(300, "Start", "e1", "erin", addr),
			)
			at := func(ago int) flow.Time { return flow.TimeOf(now.Add(-time.Duration(ago) * time.Second)) }
			fact := func(addr, session, user string, since, until, slack int) flow.Fact {
				f := flow.Fact{Source: "log", Kind: flow.FactSession, Addr: flow.MustParseAddr(addr), Session: "192.0.2.1/" + session, User: user,
					Device: "00:00:5e:00:53:01", Since: at(since), UntilSlack: time.Duration(slack) * time.Second}
				if until != 0 {
					f.Until = at(until)
				}
				return f
			}
			for _, c := range []struct{ name, file string }{{"detail", server.Detail}, {"simple JSON", server.Simple}, {"JSON with types", server.Object}} {
				t.Run(c.name, func(t *testing.T) {
					want := []flow.Fact{
						fact("10.8.0.5", "a1", `CORP\alice`, 1000, 800, 0),
						fact("10.8.0.5", "b1", "bob@corp.example", 790, 700, 0),
						fact("10.8.0.5", "c1", `jörg "the" admin`, 600, 500, 80),
						fact("10.8.0.5", "d1", "dave", 400, 300, 100),
						fact("10.8.0.5", "e1", "erin", 300, 0, 0),
						fact("2001:db8::5", "c1", `jörg "the" admin`, 600, 500, 80),
					}
					raw, err := os.ReadFile(c.file)
					if err != nil {
						t.Fatal(err)
					}
					rec := &recorder{}
					r := runSessions(t, sessionsConfig("radius"), "", rec)
					dec, err := r.NewDecoder(1 << 16)
					if err != nil {
						t.Fatal(err)
					}
					items := 0
					for at := 0; at < len(raw); {
						item, n, err := dec.Next(raw[at:], true)
						if err != nil || n == 0 {
							t.Fatal(n, err)
						}
						if at += n; len(item) == 0 {
							continue
						}
						items++
						events, err := dec.Decode(item, &agent.Origin{Received: flow.TimeOf(time.Now())}, nil)
						if err != nil {
							t.Fatalf("%v in\n%s", err, item)
						}
						r.take(events...)
					}
					if items != 11 {
						t.Errorf("%d requests were written down", items)
					}
					var got []flow.Fact
					for _, a := range []string{"10.8.0.5", "2001:db8::5"} {
						got = append(got, rec.of(a)...)
					}
					if d := cmp.Diff(want, got); d != "" {
						t.Errorf("%s\nof\n%s", d, raw)
					}
				})
			}
		})
	}
}
