package siem_test

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/sink/siem"
)

// A receiver in Go. docs/webhooks.md shows the same code; a test keeps them alike.
func ExampleVerify() {
	secrets := []string{"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
	log := slog.New(slog.NewTextHandler(os.Stdout, nil))
	seen := map[string]bool{} // keep it in a database, for at least four days

	http.HandleFunc("POST /postern", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(io.LimitReader(r.Body, siem.MaxMessage))
		if err != nil {
			return
		}
		if err := siem.Verify(secrets, r.Header, body, siem.WebhookTolerance, time.Now()); err != nil {
			http.Error(w, "not from postern", http.StatusUnauthorized)
			return
		}
		if id := r.Header.Get(siem.HeaderWebhookID); seen[id] {
			return // 200: we have it already
		} else {
			seen[id] = true
		}
		var f flow.Finding
		if err := json.Unmarshal(body, &f); err != nil {
			http.Error(w, "not a finding", http.StatusBadRequest)
			return
		}
		log.Info("finding", "id", f.ID, "revision", f.Revision, "severity", f.Severity, "sentence", f.Sentence)
	})
}
