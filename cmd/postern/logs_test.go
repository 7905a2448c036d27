package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/agent"
)

const zeekLine = `{"ts":1790953445.5,"uid":"C1","id.orig_h":"10.0.0.1","id.orig_p":1234,"id.resp_h":"10.0.0.2","id.resp_p":443,"proto":"tcp","conn_state":"SF"}`

// TestLogValues reads Kafka values of one line and of several; what is no flow is no fault,
// what cannot be read is told beside the rest.
func TestLogValues(t *testing.T) {
	for _, c := range []struct {
		name, value    string
		flows, refused int
		fails          bool
	}{
		{"one", zeekLine, 1, 0, false},
		{"several", zeekLine + "\n" + zeekLine + "\n", 2, 0, false},
		{"an array", "[" + zeekLine + "," + zeekLine + "]", 2, 0, false},
		{"another log", `{"ts":1,"uid":"C2","version":2}`, 0, 0, false},
		{"one of two broken", zeekLine + "\n{nonsense\n", 1, 1, false},
		{"nothing of it", "nonsense", 0, 1, true},
	} {
		v, err := newLogValues("zeek", agent.Config{}, flow.MiB, flow.NewNames(0))
		if err != nil {
			t.Fatal(err)
		}
		out := flow.NewBatch(8, nil)
		refused, err := v.Decode([]byte(c.value), 7, 1_790_953_446_000, out)
		if len(out.Records) != c.flows || refused != c.refused || (err != nil) != c.fails || refused > 0 != (v.Reason() != nil) {
			t.Errorf("%s: %d flows, %d refused, %v; want %d, %d", c.name, len(out.Records), refused, err, c.flows, c.refused)
		}
		if len(out.Records) == 2 && out.Records[0].ID == out.Records[1].ID {
			t.Errorf("%s: two flows of one id", c.name)
		}
	}
}

// TestDecodeLogs prints what logs say, also of a format that only the configuration knows.
func TestDecodeLogs(t *testing.T) {
	dir := t.TempDir()
	config := writeFile(t, filepath.Join(dir, "postern.yaml"), `
ingest:
  logs:
    decode:
      custom:
        - name: edge-fw
          fields: {src_addr: a, dst_addr: b, dst_port: p, proto: '"tcp"', time_start: t, observed: v, src_process: exe, reporter: '"source"'}
          time: s
          values: {observed: {pass: allow, block: deny}}
`)
	log := writeFile(t, filepath.Join(dir, "edge.log"), `{"t":1790953445,"a":"10.0.0.1","b":"10.0.0.2","p":443,"v":"block","exe":"/usr/bin/curl"}
{"t":1790953445,"a":"10.0.0.1","b":"somewhere","p":443,"v":"pass"}
`)
	out, diag, err := command(t, "decode", "-c", config, "--format", "edge-fw", log)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"source":"custom"`, `"observed":"deny"`, `"process":"/usr/bin/curl"`, `"reporter":"source"`, `"dst_port":443`} {
		if strings.Count(out, "\n") != 1 || !strings.Contains(out, want) {
			t.Errorf("%s is not in %s", want, out)
		}
	}
	for _, want := range []string{"lines:     2 read, 1 told flows, 0 were no flows, 1 rejected", `"somewhere"`} {
		if !strings.Contains(diag, want) {
			t.Errorf("%s is not in %s", want, diag)
		}
	}
	if _, diag, err := command(t, "decode", "--format", "auto", writeFile(t, filepath.Join(dir, "z.log"), zeekLine+"\n")); err != nil || !strings.Contains(diag, "is taken for zeek: ") {
		t.Errorf("%v: %s", err, diag)
	}
	if _, diag, err := command(t, "decode", log); err == nil || !strings.Contains(err.Error(), "a log is read with --format auto") || diag != "" {
		t.Errorf("a log as a capture: %v\n%s", err, diag)
	}
	if _, _, err := command(t, "decode", "--format", "zek", log); err == nil || !strings.Contains(err.Error(), "did you mean zeek") {
		t.Error(err)
	}
	bad := strings.Replace(mustRead(t, config), "dst_port: p", "dst_prt: p", 1)
	if _, _, err := command(t, "decode", "-c", writeFile(t, filepath.Join(dir, "bad.yaml"), bad), "--format", "edge-fw", log); err == nil || !strings.Contains(err.Error(), "did you mean dst_port") {
		t.Error(err)
	}
}

// TestDecodeEvents prints what logs of sessions say, as a format and as a source of the
// configuration reads them, and counts the other lines by what they are.
func TestDecodeEvents(t *testing.T) {
	dir := t.TempDir()
	config := writeFile(t, filepath.Join(dir, "postern.yaml"), `
identity:
  sessions:
    - {name: logons, format: windows-logon, logonTypes: [3], clients: true}
    - name: gateway
      format: custom
      custom:
        type: json
        eventIf: .module == "tunnel"
        time: s
        fields: {kind: event, at: ts, session: sid, user: user, address: assigned.ip, host: gw}
        values: {kind: {login: start, logout: stop, "*": ""}}
`)
	logons := writeFile(t, filepath.Join(dir, "logons.ndjson"), `{"EventID":4624,"Hostname":"WS1","EventTime":"2026-10-02T08:00:00Z","TargetDomainName":"CORP","TargetUserName":"bob","TargetLogonId":"0x3e7f2","LogonType":"2"}
{"EventID":4624,"Hostname":"WS1","EventTime":"2026-10-02T08:00:00Z","TargetDomainName":"CORP","TargetUserName":"WS1$","TargetLogonId":"0x3e7f3","LogonType":"2"}
{"EventID":4624,"Hostname":"WS1","EventTime":"2026-10-02T08:00:00Z","TargetDomainName":"CORP","TargetUserName":"eve","TargetLogonId":"0x3e7f4","LogonType":"3","IpAddress":"10.8.0.9"}
{"EventID":4688,"Hostname":"WS1","EventTime":"2026-10-02T08:00:00Z"}
{"EventID":4634,"EventTime":"2026-10-02T08:00:00Z"}
`)
	detail := writeFile(t, filepath.Join(dir, "detail"), `Fri Oct  2 08:00:00 2026
	Acct-Status-Type = Stop
	Acct-Session-Id = "81a0000f"
	User-Name = "alice"
	NAS-IP-Address = 192.0.2.1
	Framed-IP-Address = 10.8.0.5
	Acct-Session-Time = 60
	Timestamp = 1790928000

Fri Oct  2 08:00:01 2026
	Acct-Status-Type = Failed
	Timestamp = 1790928001

`)
	gateway := writeFile(t, filepath.Join(dir, "gateway.ndjson"), `{"module":"tunnel","event":"login","ts":1790928000,"sid":"s1","user":"carol","assigned":{"ip":"10.9.0.7"},"gw":"gw1"}
{"module":"web","event":"login","ts":1790928000}
{"module":"tunnel","event":"login","ts":1790928000,"sid":"s2","user":"dave","assigned":{"ip":"somewhere"},"gw":"gw1"}
`)
	for _, c := range []struct {
		name string
		args []string
		out  string
		diag []string
	}{
		{
			"Windows", []string{"--format", "windows-logon", logons},
			`{"kind":"start","at":"2026-10-02T08:00:00.000Z","host":"ws1","session":"0x3e7f2","user":"CORP\\bob","on":"ws1"}` + "\n",
			[]string{
				"lines:     5 read, 1 told events, 3 were no events, 1 rejected\n", "  no event, an account of a machine or of the system: 1\n", "  no event, another event of Windows: 1\n",
				"  rejected, no host; want ", "events:    1 decoded\n", `"rejected":1,`, `"flows":0,"events":1}` + "\n",
			},
		},
		{
			"Windows, as a source says", []string{"-c", config, "--events", "logons", logons},
			`{"kind":"start","at":"2026-10-02T08:00:00.000Z","host":"ws1","session":"0x3e7f4","user":"CORP\\eve","addr":"10.8.0.9"}` + "\n",
			[]string{"lines:     5 read, 1 told events, 3 were no events, 1 rejected\n"},
		},
		{
			"RADIUS", []string{"--format", "radius", detail},
			`{"kind":"stop","at":"2026-10-02T08:00:00.000Z","began":"2026-10-02T07:59:00.000Z","host":"192.0.2.1","session":"81a0000f","user":"alice","addr":"10.8.0.5"}` + "\n",
			[]string{"lines:     2 read, 1 told events, 1 were no events, 0 rejected\n", "  no event, another Acct-Status-Type: 1\n"},
		},
		{
			"a mapping", []string{"-c", config, "--events", "gateway", gateway},
			`{"kind":"start","at":"2026-10-02T08:00:00.000Z","host":"gw1","session":"s1","user":"carol","addr":"10.9.0.7"}` + "\n",
			[]string{"lines:     3 read, 1 told events, 1 were no events, 1 rejected\n", `"somewhere"`},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, diag, err := command(t, append([]string{"decode"}, c.args...)...)
			if err != nil {
				t.Fatal(err)
			}
			if out != c.out {
				t.Errorf("printed\n%swant\n%s", out, c.out)
			}
			for _, want := range c.diag {
				if !strings.Contains(diag, want) {
					t.Errorf("%q is not in\n%s", want, diag)
				}
			}
		})
	}
	if _, diag, err := command(t, "decode", "--format", "auto", detail); err != nil || !strings.Contains(diag, "detail told no flow; is it a log of sessions? auto does not guess those: --format radius or windows-logon\n") {
		t.Errorf("RADIUS as whatever it is: %v\n%s", err, diag)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--format", "custom", gateway}, "--format custom: a mapping in the configuration says how it is read; name its source by --events"},
		{[]string{"--events", "gateway", gateway}, `"gateway" is no source of sessions; there is none, write one in identity.sessions of the configuration, which -c names`},
		{[]string{"-c", config, "--events", "gatway", gateway}, `"gatway" is no source of sessions; want one of gateway, logons`},
		{[]string{"-c", config, "--events", "gateway", "--format", "radius", gateway}, "leave out --format"},
	} {
		if out, diag, err := command(t, append([]string{"decode"}, c.args...)...); err == nil || !strings.Contains(err.Error(), c.want) || out+diag != "" {
			t.Errorf("%v: %v, and printed %q; want %q alone", c.args, err, out+diag, c.want)
		}
	}
	if _, _, err := command(t, "replay", "--no-store", "--policy", "../../policy/testdata", "--format", "radius", detail); err == nil || !strings.Contains(err.Error(), "a format of session events, not of flows") {
		t.Errorf("replay of RADIUS: %v", err)
	}
}

func mustRead(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
