package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/policy"
	"github.com/postern/postern/sink"
)

// draftRequest is what somebody who asks for a suppression says.
type draftRequest struct {
	verdict
	Ticket string `json:"ticket"`
	Owner  string `json:"owner"`
	Days   int    `json:"days"` // 0: defaultDraftDays
}

const (
	defaultDraftDays = 7
	maxDraftDays     = int(policy.MaxSuppression / (24 * time.Hour))
)

// draft writes a suppression of a finding for the policy's files. It acts only once it is
// loaded with the approval of somebody else, so nothing is recorded and nothing is silent.
func (d *desk) draft(ctx context.Context, id string, r draftRequest) (f *sink.JudgedFinding, text string, err error) {
	if err := r.check(true); err != nil {
		return nil, "", invalid(err)
	}
	if r.Days == 0 {
		r.Days = defaultDraftDays
	}
	if r.Days < 1 || r.Days > maxDraftDays {
		return nil, "", invalid(fmt.Errorf("days is %d; a suppression lasts 1 to %d days", r.Days, maxDraftDays))
	}
	if f, err = d.finding(ctx, id); err != nil {
		return nil, "", err
	}
	text, err = draftOf(&f.Finding, r, d.now())
	return f, text, err
}

func draftOf(f *flow.Finding, r draftRequest, now flow.Time) (string, error) {
	if f.Severity >= flow.Critical {
		return "", invalid(fmt.Errorf("finding %s is critical, and what is critical is never suppressed", f.ID))
	}
	if r.Owner == "" {
		r.Owner = f.Owner
	}
	k := policy.KeyOf(f)
	asked := now.Std().Truncate(time.Second)
	type who struct {
		By string `yaml:"by"`
		At string `yaml:"at"`
	}
	type suppression struct {
		ID       string `yaml:"id"`
		Detector string `yaml:"detector"`
		Key      struct {
			Client    string `yaml:"client,omitempty"`
			Server    string `yaml:"server,omitempty"`
			Service   string `yaml:"service,omitempty"`
			Rule      string `yaml:"rule,omitempty"`
			Exception string `yaml:"exception,omitempty"`
			Subject   string `yaml:"subject,omitempty"`
		} `yaml:"key"`
		UpTo      string   `yaml:"upTo"`
		Ticket    string   `yaml:"ticket,omitempty"`
		Owner     string   `yaml:"owner,omitempty"`
		Reason    string   `yaml:"reason"`
		Requested who      `yaml:"requested,flow"`
		Approved  []string `yaml:"approved,flow"`
		Expires   string   `yaml:"expires"`
	}
	s := suppression{ID: "SUP-" + shortID(f.ID), Detector: f.Type, UpTo: f.Severity.String(), Ticket: strings.TrimSpace(r.Ticket), Owner: r.Owner,
		Reason: r.Reason, Requested: who{r.By, asked.Format(time.RFC3339)}, Approved: []string{},
		Expires: asked.AddDate(0, 0, r.Days).Format(time.RFC3339)}
	s.Key.Client, s.Key.Server, s.Key.Service, s.Key.Rule, s.Key.Exception = k.Client, k.Server, k.Service, k.Rule, k.Exception
	s.Key.Subject = k.Subject
	b, err := yaml.MarshalWithOptions(struct {
		Suppressions []suppression `yaml:"suppressions"`
	}{[]suppression{s}}, yaml.IndentSequence(true))
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("# A draft: it does nothing until somebody other than its requester approves it:\n# approved: [{by: NAME, role: ROLE, at: %s}]\n%s",
		asked.Format(time.RFC3339), b), nil
}

func findingSuppressCommand(at atDesk) *cobra.Command {
	var r draftRequest
	var into string
	cmd := &cobra.Command{
		Use:   "suppress ID",
		Short: "Draft a suppression of findings like this one, for the policy's files",
		Long: `Writes a section suppressions: for the policy, of this finding's type and of what it is about, up to its severity.
It is a draft: nothing is silent until it is approved by somebody other than its requester and the policy is
loaded with it. It lasts 30 days at most, changes no verdict, and never holds back what is critical.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if r.By == "" {
				r.By = osUser()
			}
			return at(cmd, func(ctx context.Context, d *desk) error {
				_, text, err := d.draft(ctx, args[0], r)
				if err != nil {
					return err
				}
				if into == "" {
					_, err = fmt.Fprint(cmd.OutOrStdout(), text)
					return err
				}
				if err := appendDocument(into, text); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "drafted into %s; have somebody other than %s approve it there\n", into, sink.Visible(r.By))
				return nil
			})
		},
	}
	addVerdictFlags(cmd, &r.verdict, true)
	f := cmd.Flags()
	f.StringVar(&r.Ticket, "ticket", "", "the ticket that says more")
	f.StringVar(&r.Owner, "owner", "", "who answers for it; by default the finding's owner")
	f.IntVar(&r.Days, "days", defaultDraftDays, fmt.Sprintf("how long it is to last, %d at most", maxDraftDays))
	f.StringVar(&into, "into", "", "add it to this file of the policy instead of printing it")
	return cmd
}

// appendDocument adds a document to a policy file, or begins one with it, in one write: a
// service that watches the folder takes it only when it has been quiet for a while.
func appendDocument(path, text string) error {
	if ext := filepath.Ext(path); ext != ".yaml" && ext != ".yml" {
		return fmt.Errorf("%s is no policy file; name one that ends in .yaml", path)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644) //nolint:gosec // policy is for everybody to read
	if err != nil {
		return err
	}
	if end, err := f.Seek(0, io.SeekEnd); err == nil && end > 0 {
		last := make([]byte, 1)
		if _, err := f.ReadAt(last, end-1); err != nil {
			return errors.Join(err, f.Close())
		}
		if text = "---\n" + text; last[0] != '\n' {
			text = "\n" + text
		}
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
