package main

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/postern/postern/enrich"
	"github.com/postern/postern/flow"
	"github.com/postern/postern/policy"
)

func explainCommand() *cobra.Command {
	var path, dir, as, at string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "explain SRC DST PROTO/PORT [--as IDENTITY] [--at TIME]",
		Short: "Why such a flow is judged as it is",
		Long: `Judges a flow from SRC (the client) to DST (the server) by the policy folder and lists every rule and exception
considered, in the order in which they count, and why each did or did not decide. The service is written as
the policy language writes it: tcp/443, udp/53, icmp/echo, 47.

Who is behind both addresses at that time is looked up in the data directory of the configuration, with
which source said what and how old that was; --as says it instead for the client.`,
		Example: `  postern explain 10.50.1.23 10.20.0.11 tcp/443 --policy policy/
  postern explain 10.60.0.3 10.20.0.11 tcp/443 --as acme-support --at 2026-10-05T12:00:00Z`,
		Args: cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := loadConfig(path)
			if err != nil {
				return err
			}
			if dir != "" {
				cfg.Policy.Dir = dir
			}
			p, diags := loadPolicy(cfg.Policy.Dir)
			if p == nil {
				fmt.Fprintln(cmd.ErrOrStderr(), diags)
				return fmt.Errorf("the policy in %s has errors", cfg.Policy.Dir)
			}
			names := flow.NewNames(0)
			who, err := knownIdentities(cfg, names)
			if err != nil {
				return err
			}
			who.NameGroups(p.Groups())
			idx := policy.Compile(p, names, cfg.judging(who.Domains()))
			c, err := conversationOf(args, as, at, names)
			if err != nil {
				return err
			}
			client, server := identify(c, who)
			e := idx.Explain(c)
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(struct {
					Expected   string        `json:"expected"`
					Staged     string        `json:"staged"`
					Reason     string        `json:"reason"`
					Rule       string        `json:"rule,omitempty"`
					Exception  string        `json:"exception,omitempty"`
					Failed     []string      `json:"failed,omitempty"`
					Missing    []string      `json:"missing,omitempty"`
					Confidence float64       `json:"confidence"`
					Policy     string        `json:"policy_version"`
					Client     *whoJSON      `json:"client,omitempty"`
					Server     *whoJSON      `json:"server,omitempty"`
					Steps      []policy.Step `json:"steps"`
				}{
					e.Verdict.Expected.String(), e.Verdict.Staged.String(), e.Verdict.Reason.String(), names.Text(e.Verdict.Rule),
					names.Text(e.Verdict.Exception), e.Verdict.Failed.Texts(), e.Verdict.Missing.Texts(),
					float64(e.Verdict.Confidence) / 100, p.Version(), whoOf(client, names), whoOf(server, names), e.Steps,
				})
			}
			whoText(cmd.OutOrStdout(), "client", client, names)
			whoText(cmd.OutOrStdout(), "server", server, names)
			_, err = fmt.Fprint(cmd.OutOrStdout(), e)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVarP(&path, "config", "c", "", "configuration file")
	f.StringVar(&dir, "policy", "", "policy folder; by default that of the configuration")
	f.StringVar(&as, "as", "", "identity of the client; unsaid, it is not known")
	f.StringVar(&at, "at", "", "when the flow began (RFC 3339); by default now")
	f.BoolVar(&asJSON, "json", false, "print the steps as JSON")
	return cmd
}

// identify puts into c who is behind its ends, where --as does not say so.
func identify(c *policy.Conversation, who *enrich.Identity) (client, server enrich.Explanation) {
	cut := who.Cut(c.End)
	client, server = who.Explain(c.Client.Addr, c.Start, cut), who.Explain(c.Server.Addr, c.Start, cut)
	v := who.View()
	defer v.Close()
	if c.Client.Identity != flow.NoName {
		v.Resolve(c.Client.Identity, c.Start, cut, &client.Answer)
	}
	client.Answer.Fill(&c.Client)
	server.Answer.Fill(&c.Server)
	return client, server
}

// whoJSON is who an address is taken for.
type whoJSON struct {
	Identity string              `json:"identity,omitempty"`
	Workload string              `json:"workload,omitempty"`
	Device   string              `json:"device,omitempty"`
	Groups   []string            `json:"groups,omitempty"`
	Posture  string              `json:"posture,omitempty"`
	Doubt    []string            `json:"doubt,omitempty"`
	Facts    []enrich.Considered `json:"facts,omitempty"`
}

func whoOf(e enrich.Explanation, names *flow.Names) *whoJSON {
	a := &e.Answer
	w := &whoJSON{Identity: names.Text(a.Identity), Workload: names.Text(a.Workload), Device: names.Text(a.Device), Posture: names.Text(a.Posture),
		Doubt: (a.Why | a.GroupsWhy).Texts(), Facts: append(slices.Clip(e.Facts), e.Subject...)}
	for _, g := range a.Groups {
		if g != flow.NoName {
			w.Groups = append(w.Groups, names.Text(g))
		}
	}
	return w
}

// conversationOf reads what a person wrote on the command line.
func conversationOf(args []string, as, at string, names *flow.Names) (*policy.Conversation, error) {
	c := &policy.Conversation{Known: policy.KnownClient | policy.KnownServer, Evidence: policy.EvidenceNone}
	for i, end := range []*policy.Party{&c.Client, &c.Server} {
		a, err := flow.ParseAddr(args[i])
		if err != nil {
			return nil, fmt.Errorf("%q is no address; write one such as 10.50.1.23 or 2001:db8::1", args[i])
		}
		end.Addr = a
	}
	r, err := policy.ParseService(args[2])
	if err != nil {
		return nil, err
	}
	if r.Low != r.High && (r.Low != 0 || r.High != 0xffff) {
		return nil, fmt.Errorf("%q is a range of ports; a flow has one, such as tcp/443", args[2])
	}
	c.Proto = r.Proto
	c.Known |= policy.KnownProto
	if r.Low == r.High {
		if c.Proto == flow.ProtoICMP || c.Proto == flow.ProtoICMPv6 {
			c.ICMPType, c.ICMPCode = uint8(r.Low>>8), uint8(r.Low)
			c.Known |= policy.KnownICMP
		} else {
			c.Port = r.Low
			c.Known |= policy.KnownPort
		}
	}
	c.Client.Identity = names.Intern(as)
	c.Start = wallClock()
	if at != "" {
		if err := c.Start.UnmarshalText([]byte(at)); err != nil {
			return nil, fmt.Errorf("--at %q is no time; write it as 2026-10-05T12:00:00Z", at)
		}
	}
	c.End = c.Start
	return c, nil
}
