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
	if _, _, err := command(t, "decode", "--format", "zek", log); err == nil || !strings.Contains(err.Error(), "did you mean zeek") {
		t.Error(err)
	}
	bad := strings.Replace(mustRead(t, config), "dst_port: p", "dst_prt: p", 1)
	if _, _, err := command(t, "decode", "-c", writeFile(t, filepath.Join(dir, "bad.yaml"), bad), "--format", "edge-fw", log); err == nil || !strings.Contains(err.Error(), "did you mean dst_port") {
		t.Error(err)
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
