package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/exporter"
	"github.com/postern/postern/ingest/identity"
	"github.com/postern/postern/sink/siem"
)

func demoCommand() *cobra.Command {
	d := demo{}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "See it all work on this machine: traffic, misuse, findings",
		Long: `Starts the whole pipeline with the embedded ClickHouse, sends the traffic of a small company to it as real
NetFlow v9 and IPFIX datagrams over loopback and the logs of a VPN gateway and of two hosts' agents by HTTP,
plants misuse of exceptions in it, receives the signed webhooks it sends, and prints flows by verdict and each finding as a sentence. Then it fills the month before, marked as generated, for
dashboards to look at, and stays up, so that you can ask it questions, until Ctrl-C.

--once ends by itself, with status 0 only if exactly the planted misuse was found.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.out, d.diag = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return d.run(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&d.once, "once", false, "end by itself; status 0 only if exactly the planted misuse was found")
	cmd.Flags().StringVar(&d.data, "data", "", "keep the data in this directory instead of a temporary one")
	cmd.Flags().Uint64Var(&d.seed, "seed", 1, "of the traffic: the same seed draws the same conversations")
	cmd.Flags().BoolVarP(&d.verbose, "verbose", "v", false, "show the service's log")
	return cmd
}

// demo is one run of `postern demo`.
type demo struct {
	once, verbose bool
	data          string
	seed          uint64
	out, diag     io.Writer

	start    time.Time
	cfg      config
	svc      *service
	receiver *demoReceiver
	policies chan string

	exporters []demoExporter // the switch, the firewall
}

// demoTime bounds the demo, which goes on as soon as it has found everything: some 40 seconds on two
// free cores, of which 15 are waited for the other halves of conversations. What is missing then is
// missed; a busy or a small machine is not to look like that.
const demoTime = 2 * time.Minute

func (d *demo) run(ctx context.Context) error {
	if err := fetchEngine(ctx, "", io.Discard, d.diag); err != nil {
		return err
	}
	dir := d.data
	if dir == "" {
		tmp, err := os.MkdirTemp("", "postern-demo-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		dir = tmp
	}
	if err := d.prepare(dir); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- d.svc.run(ctx) }()
	go d.receiver.serve(ctx)

	err := d.play(ctx, served)
	if err == nil && !d.once {
		d.explainQueries()
		select {
		case <-ctx.Done():
		case err = <-served:
			return err
		}
	}
	cancel()
	return errors.Join(err, <-served)
}

// prepare writes the company's policy and the configuration of a service on free
// loopback ports.
func (d *demo) prepare(dir string) error {
	d.start = time.Now().UTC().Truncate(time.Second)
	d.cfg = defaultConfig()
	d.cfg.Data = filepath.Join(dir, "data")
	d.cfg.Policy.Dir = filepath.Join(dir, "policy")
	d.cfg.Policy.Since = flow.TimeOf(d.start.Add(-(demoDays + 1) * 24 * time.Hour))
	d.cfg.Ingest.NetFlow.Listen = "127.0.0.1:0"
	d.cfg.Ingest.NetFlow.Sockets = 1 // in the order in which it was sent
	d.cfg.Ingest.SFlow.Listen = ""
	d.cfg.Admin.Listen = "127.0.0.1:0"
	d.cfg.Embedded.Listen = "127.0.0.1:0"
	d.cfg.Ingest.Logs.HTTP.Listen = "127.0.0.1:0"
	d.cfg.Identity.Hold = demoHold
	d.cfg.Identity.Sources.Sessions = []identity.SessionsConfig{vpnSessions()}
	d.cfg.Detect.Lateness = 5 * time.Second // these exporters tell a flow once, when it has ended
	if err := os.MkdirAll(d.cfg.Policy.Dir, 0o700); err != nil {
		return err
	}
	if err := writeDemoPolicy(d.cfg.Policy.Dir, d.start, true); err != nil {
		return err
	}
	secret := filepath.Join(dir, "webhook.secret")
	d.receiver = &demoReceiver{secret: siem.NewWebhookSecret(), findings: map[string]*flow.Finding{}}
	if err := os.WriteFile(secret, []byte(d.receiver.secret), 0o600); err != nil {
		return err
	}
	var err error
	if d.receiver.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return err
	}
	w := siem.WebhookConfig{Secrets: []string{"file:" + secret}}
	w.URL, w.AllowPrivate, w.AllowInsecure = "http://"+d.receiver.listener.Addr().String()+"/findings", true, true
	told := siem.TargetConfig{Name: "demo", Webhook: &w}
	told.Fill() // from severity low on: what is merely to be known is in the database
	d.cfg.Targets = []siem.TargetConfig{told}
	if err := d.cfg.validate(); err != nil {
		return err
	}
	log := slog.New(slog.DiscardHandler)
	if d.verbose {
		log = d.cfg.logger()
	}
	if d.svc, err = newService(d.cfg, log); err != nil {
		return err
	}
	d.svc.past.Store(true)
	d.policies = make(chan string, 8)
	d.svc.notify = func(state string) { d.policies <- state }
	return nil
}

// play sends the traffic, waits for the findings and prints what came of it.
func (d *demo) play(ctx context.Context, served chan error) error {
	deadline := d.start.Add(demoTime)
	wait := func(what string, until func() bool) error {
		for !until() {
			select {
			case err := <-served:
				served <- err // run joins it
				return fmt.Errorf("the service ended while the demo waited for %s", what)
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(50 * time.Millisecond):
			}
			if time.Now().After(deadline.Add(20 * time.Second)) {
				return fmt.Errorf("waited too long for %s", what)
			}
		}
		return nil
	}
	say := func(format string, a ...any) { fmt.Fprintf(d.out, format+"\n", a...) }

	say("Starting the service: UDP listeners, spool, policy, embedded ClickHouse …")
	if err := wait("the service to be ready", func() bool { return d.svc.ready() == nil }); err != nil {
		return err
	}
	company := newCompany(d.seed)
	if err := d.connect(); err != nil {
		return err
	}
	company.week(d.start)
	bySwitch, byFirewall := company.records(d.start)
	n, err := d.export(ctx, bySwitch, byFirewall)
	if err != nil {
		return err
	}
	say("Exported %d flow records of the week before, from which is learned what is usual here (five days).", n)
	company.all = nil
	company.everyday()
	misuse := company.misuse()
	bySwitch, byFirewall = company.records(d.start)
	if n, err = d.export(ctx, bySwitch, byFirewall); err != nil {
		return err
	}
	say("Exported %d flow records of the last half hour: a switch by NetFlow v9, a firewall by IPFIX.", n)
	arrived := func() bool {
		sent := uint64(0)
		for _, e := range d.exporters {
			sent += e.send.Sent()
		}
		return d.svc.ledger().Total().Datagrams.Received >= sent
	}
	if err := wait("what was exported to arrive", arrived); err != nil {
		return err
	}
	d.svc.past.Store(false) // from here on time passes as it does

	say("Deleting exception EX-2100 from the policy files; the service notices by itself …")
	if err := writeDemoPolicy(d.cfg.Policy.Dir, d.start, false); err != nil {
		return err
	}
	if err := wait("the new policy version", d.secondPolicy()); err != nil {
		return err
	}
	company.all = nil
	soon := time.Since(d.start).Truncate(time.Millisecond) + 100*time.Millisecond
	misuse = append(misuse, company.afterDeletion(soon)...)
	vpn, agents, byPeople := company.people(d.start, soon)
	misuse = append(misuse, byPeople...)
	time.Sleep(1500 * time.Millisecond) // those flows have to end before they are exported
	if err := d.post(ctx, "/v1/events/"+vpnLog, vpn); err != nil {
		return err
	}
	if err := d.post(ctx, "/v1/logs/ecs", agents); err != nil {
		return err
	}
	bySwitch, byFirewall = company.records(d.start)
	if n, err = d.export(ctx, bySwitch, byFirewall); err != nil {
		return err
	}
	say("Exported %d more: the backup server goes on as if nothing had happened.", n)
	say("Posted logs: a VPN gateway's, by which an address has changed hands, and those of agents on two hosts.")
	say("Waiting for findings; those where a flow's other half matters take 15 seconds …")
	complete := func() bool {
		return len(d.receiver.missing(misuse)) == 0 || time.Now().After(deadline.Add(-4*time.Second))
	}
	if err := wait("the findings", complete); err != nil {
		return err
	}
	settled := func() bool {
		t := d.svc.ledger().Total()
		return t.Records.InFlight == 0 && t.Datagrams.Queued == 0 && t.Lines.Queued == 0
	}
	if err := wait("the last flows to be judged", func() bool { return settled() || time.Now().After(deadline.Add(-4*time.Second)) }); err != nil {
		return err
	}
	quiet := time.Now().Add(2 * time.Second) // whatever else would come, comes now
	if err := wait("silence", func() bool { return time.Now().After(quiet) }); err != nil {
		return err
	}
	if err := d.tell(ctx, misuse); err != nil {
		return err
	}
	began := time.Now()
	if err := d.month(ctx); err != nil {
		return err
	}
	say("Told the week again for the %d days before, straight into the hourly roll-up and marked as generated (%.1f s): dashboards look at a month.", demoMonth-demoDays, time.Since(began).Seconds())
	return nil
}

// secondPolicy says whether a second version has come into force.
func (d *demo) secondPolicy() func() bool {
	seen := 0
	return func() bool {
		for {
			select {
			case <-d.policies:
				seen++
			default:
				return seen >= 2
			}
		}
	}
}

// demoExporter is a device that exports: an encoder and the socket it sends by.
type demoExporter struct {
	encode *exporter.Exporter
	send   *exporter.Sender
}

// connect makes the two exporters, the switch at 127.0.0.2 and the firewall at
// 127.0.0.3, at a rate that loopback takes without loss.
func (d *demo) connect() error {
	for i, cfg := range demoExporters(d.start, d.svc.names) {
		encode, err := exporter.New(cfg)
		if err != nil {
			return err
		}
		send, err := exporter.NewSender(exporter.SenderConfig{
			Source: demoAddress(i), Target: d.svc.listeners[0].Addr(), Rate: 2000,
		})
		if err != nil {
			return err
		}
		d.exporters = append(d.exporters, demoExporter{encode, send})
	}
	return nil
}

// demoExporters are the switch and the firewall.
func demoExporters(start time.Time, names *flow.Names) []exporter.Config {
	boot := flow.TimeOf(start.Add(-(demoDays + 1) * 24 * time.Hour))
	return []exporter.Config{
		{Protocol: flow.SourceNetFlowV9, Domain: 1, Boot: boot},
		{Protocol: flow.SourceIPFIX, Domain: 7, Boot: boot, Biflow: true, BiflowDirection: true, Rich: true, Names: names},
	}
}

// demoAddress is where the exporter of that number sends from.
func demoAddress(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, byte(2 + i)}) }

// export sends what the switch and the firewall saw.
func (d *demo) export(ctx context.Context, seen ...[]flow.Record) (n int, err error) {
	for i, records := range byMinute(seen...) {
		n += len(records)
		e := d.exporters[i]
		if _, err := e.encode.Export(flow.TimeOf(time.Now()), records, e.send.Emit(ctx)); err != nil {
			return n, err
		}
	}
	return n, nil
}

// byMinute gives what each exporter saw, by its number, in the order flows ended: minute by minute
// one after the other, as they would export it.
func byMinute(seen ...[]flow.Record) iter.Seq2[int, []flow.Record] {
	const minute = flow.Time(60_000)
	for i := range seen {
		slices.SortStableFunc(seen[i], func(a, b flow.Record) int { return cmp.Compare(a.End, b.End) })
	}
	return func(yield func(int, []flow.Record) bool) {
		for {
			var at flow.Time = math.MaxInt64
			for _, records := range seen {
				if len(records) > 0 {
					at = min(at, records[0].End-records[0].End%minute+minute)
				}
			}
			if at == math.MaxInt64 {
				return
			}
			for i, records := range seen {
				k := 0
				for k < len(records) && records[k].End < at {
					k++
				}
				if seen[i] = records[k:]; k > 0 && !yield(i, records[:k]) {
					return
				}
			}
		}
	}
}

// tell prints flows by verdict and every finding, and compares with what was planted.
func (d *demo) tell(ctx context.Context, misuse []planted) error {
	counts := &bytes.Buffer{}
	if err := d.svc.store.(*durableStore).db.Query(ctx, `SELECT count() AS flows, reason, outcome, formatReadableSize(sum(bytes)) AS volume
		FROM flows GROUP BY reason, outcome ORDER BY flows DESC, reason, outcome`, "table", counts); err != nil {
		return err
	}
	fmt.Fprintf(d.out, "\nFlows by verdict (%.1f s after the start)\n%s\n", time.Since(d.start).Seconds(), counts)

	findings := d.receiver.list()
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.Style().Options.SeparateRows = true
	t.Style().Format.Header = text.FormatDefault
	t.AppendHeader(table.Row{"severity", "finding", "exception", "ticket", "owner", "sessions"})
	t.SetColumnConfigs([]table.ColumnConfig{{Number: 2, WidthMax: 78, WidthMaxEnforcer: text.WrapSoft}})
	for _, f := range findings {
		t.AppendRow(table.Row{f.Severity, f.Sentence, f.Exception, f.Ticket, f.Owner, f.Count})
	}
	fmt.Fprintf(d.out, "Findings, as received by webhook, every signature verified\n%s\n", t.Render())

	missing, extra := d.receiver.missing(misuse), d.receiver.extra(misuse)
	for _, p := range missing {
		fmt.Fprintf(d.out, "MISSED: %s (%s)\n", p.what, p.key())
	}
	for _, f := range extra {
		fmt.Fprintf(d.out, "NOT PLANTED: %s\n", f.Sentence)
	}
	l := d.svc.ledger()
	if err := l.Check(); err != nil {
		return fmt.Errorf("the ledger does not close: %w", err)
	}
	total := l.Total()
	fmt.Fprintf(d.out, "Ledger: %d datagrams received = %d decoded + %d rejected + %d parked + %d queued; %d lines received = %d flows + %d others + %d rejected + %d queued; %d records decoded = %d written + %d in flight. It closes.\n",
		total.Datagrams.Received, total.Datagrams.Decoded, total.Datagrams.Rejected.Sum(), total.Datagrams.Parked, total.Datagrams.Queued,
		total.Lines.Received, total.Lines.Read, total.Lines.NotFlow, total.Lines.Rejected, total.Lines.Queued,
		total.Records.Decoded, total.Records.Written, total.Records.InFlight)
	if bad := d.receiver.bad(); bad > 0 {
		return fmt.Errorf("%d webhooks came with a signature that does not verify", bad)
	}
	if len(missing)+len(extra) > 0 {
		return fmt.Errorf("%d of %d planted misuses were missed, %d findings were not planted", len(missing), len(misuse), len(extra))
	}
	fmt.Fprintf(d.out, "All %d planted misuses were found, and nothing else.\n", len(misuse))
	return nil
}

// explainQueries says how to go on from here.
func (d *demo) explainQueries() {
	self, err := os.Executable()
	if err != nil {
		self = "postern"
	}
	url := ""
	if e, ok := readEndpoint(d.cfg); ok {
		url = e.URL
	}
	fmt.Fprintf(d.out, `
The service stays up until Ctrl-C. From another terminal:

  %[1]s query --data %[2]s "SELECT sentence FROM findings ORDER BY severity DESC"
  %[1]s query --data %[2]s "SELECT client, src_identity, src_process, server, observed, reason, failed, missing FROM flows WHERE src_identity || src_process != ''"
  %[1]s query --data %[2]s "SELECT client, server, service, reason, exception FROM flows WHERE exception != '' LIMIT 20"
  %[1]s explain 10.50.1.23 10.50.1.77 tcp/445 --policy %[3]s
  curl -s '%[4]s/?user=reader' -H "X-ClickHouse-Key: $(cat %[2]s/clickhouse-readonly.token)" -d "SELECT reason, count() FROM postern.flows GROUP BY reason"
  curl -s http://%[5]s/ledger -H "Authorization: Bearer $(cat %[2]s/admin.token)"
`, self, d.cfg.Data, d.cfg.Policy.Dir, url, d.svc.answering.listener.Addr())
}

// demoReceiver is the SIEM of the demo: it verifies every webhook and keeps the
// newest revision of each finding.
type demoReceiver struct {
	secret   string
	listener net.Listener

	mu       sync.Mutex
	findings map[string]*flow.Finding
	refused  int
}

func (r *demoReceiver) serve(ctx context.Context) {
	srv := &http.Server{Handler: r, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	_ = srv.Serve(r.listener) // ends with the demo
}

func (r *demoReceiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(io.LimitReader(req.Body, 64<<10))
	if err == nil {
		err = siem.Verify([]string{r.secret}, req.Header, body, 5*time.Minute, time.Now())
	}
	var f flow.Finding
	if err == nil {
		err = json.Unmarshal(body, &f)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.refused++
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if old := r.findings[f.ID]; old == nil || old.Revision < f.Revision {
		r.findings[f.ID] = &f
	}
	w.WriteHeader(http.StatusNoContent)
}

func (r *demoReceiver) bad() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.refused
}

// list gives the findings, the gravest first.
func (r *demoReceiver) list() []*flow.Finding {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []*flow.Finding
	for _, f := range r.findings {
		list = append(list, f)
	}
	slices.SortFunc(list, func(a, b *flow.Finding) int {
		if a.Severity != b.Severity {
			return int(b.Severity) - int(a.Severity)
		}
		return strings.Compare(a.Type+a.ID, b.Type+b.ID)
	})
	return list
}

func foundKey(f *flow.Finding) string {
	return planted{kind: f.Type, client: f.Client, server: f.Server, service: f.Service, exception: f.Exception}.key()
}

// missing is what was planted and not reported.
func (r *demoReceiver) missing(misuse []planted) (out []planted) {
	found := map[string]bool{}
	for _, f := range r.list() {
		found[foundKey(f)] = true
	}
	for _, p := range misuse {
		if !found[p.key()] {
			out = append(out, p)
		}
	}
	return out
}

// extra is what was reported and not planted.
func (r *demoReceiver) extra(misuse []planted) (out []*flow.Finding) {
	want := map[string]bool{}
	for _, p := range misuse {
		want[p.key()] = true
	}
	for _, f := range r.list() {
		if !want[foundKey(f)] {
			out = append(out, f)
		}
	}
	return out
}
