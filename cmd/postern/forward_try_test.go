package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
)

// TestForwardTest: a sample arrives as what it is, and what went wrong is said with what the receiver said.
func TestForwardTest(t *testing.T) {
	status, got := http.StatusOK, ""
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = string(body)
		w.WriteHeader(status)
		fmt.Fprint(w, "the channel is gone")
	}))
	defer srv.Close()
	t.Setenv("POSTERN_TEST_CHAT", srv.URL+"/services/T0/hush")
	file := writeFile(t, filepath.Join(t.TempDir(), "postern.yaml"), `
targets:
  - name: team
    minSeverity: critical
    chat: {address: "env:POSTERN_TEST_CHAT", allowPrivate: true, allowInsecure: true}
  - name: other
    file: {path: /nowhere/at/all/findings.jsonl}
`)
	out, _, err := command(t, "forward", "test", "-c", file, "team")
	if err != nil || !strings.Contains(out, "team: event 0000") || !strings.Contains(out, "was taken") || !strings.Contains(got, "TEST") {
		t.Errorf("%v: %s; it got %s", err, out, got)
	}
	status = http.StatusNotFound
	_, _, err = command(t, "forward", "test", "-c", file, "team")
	if err == nil || !strings.Contains(err.Error(), "404") || !strings.Contains(err.Error(), "the channel is gone") || strings.Contains(err.Error(), "hush") {
		t.Errorf("a refusal: %v", err)
	}
	if _, _, err = command(t, "forward", "test", "-c", file, "other"); err == nil || !strings.Contains(err.Error(), "/nowhere/at/all") {
		t.Errorf("a folder that is not there: %v", err)
	}
	if _, _, err = command(t, "forward", "test", "-c", file, "soc"); err == nil || !strings.Contains(err.Error(), "there are team, other") {
		t.Errorf("a target that is not there: %v", err)
	}
}
