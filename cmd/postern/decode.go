package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest"
	"github.com/postern/postern/ingest/agent"
	"github.com/postern/postern/ingest/identity"
	"github.com/postern/postern/ingest/intake"
)

func decodeCommand() *cobra.Command {
	var path, format, events string
	cmd := &cobra.Command{
		Use:   "decode [--format NAME] FILE…",
		Short: "Print what a capture or a log says, one JSON object a flow record",
		Long: `Reads captures (pcap, pcapng, either in gzip; - is standard input) and prints every flow record
as one JSON object a line, in file order, nothing enriched. bytes and packets are scaled by
sampling, bytes_raw and packets_raw are as exported; absent fields are left out. Files of one
command share their templates, as parts of one capture would.

The ledger follows on standard error: datagrams, records, options, templates, what is parked,
what was rejected and why. A file that is broken ends with an error and status 1; what stood
before the break is printed.

With --format the files are logs of agents, clouds or firewalls (plain or in gzip), each by itself:
` + formatNames() + `,
or auto, which says what it took them for. What became of each line is counted on standard error.

Logs of who logs on and off tell session events, one JSON object each: --format ` + eventFormatNames() + `,
or --events NAME, which reads them as that source of the configuration (identity.sessions) does.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, files []string) error {
			cfg, err := loadConfig(path)
			if err != nil {
				return err
			}
			switch f, ecfg, err := eventsOf(cfg, format, events); {
			case err != nil:
				return err
			case f != "":
				return decodeEvents(cmd.Context(), cfg.Ingest.Logs, f, ecfg, files, cmd.OutOrStdout(), cmd.ErrOrStderr())
			case format != "":
				return decodeLogs(cmd.Context(), cfg.Ingest.Logs, format, files, cmd.OutOrStdout(), cmd.ErrOrStderr())
			}
			return decodeFiles(cmd.Context(), cfg.Ingest.Decode, files, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", "", "configuration file, for its sampling rates and limits (ingest.decode)")
	cmd.Flags().StringVar(&format, "format", "", "the files are logs of this format, or auto")
	cmd.Flags().StringVar(&events, "events", "", "the files are the log of this source of sessions")
	return cmd
}

// eventsOf finds how session events are to be read: by a format of them that needs no
// mapping, or as a source of the configuration is told to. An empty format is neither.
func eventsOf(cfg config, format, source string) (string, agent.EventConfig, error) {
	none := agent.EventConfig{}
	if source == "" {
		formats := agent.EventFormats()
		i := slices.IndexFunc(formats, func(f agent.EventFormat) bool { return f.Name == format })
		own := slices.ContainsFunc(cfg.Ingest.Logs.Decode.Custom, func(c agent.CustomConfig) bool { return c.Name == format })
		switch {
		case i < 0 || own:
			return "", none, nil
		case formats[i].Mapped:
			return "", none, fmt.Errorf("--format %s: a mapping in the configuration says how it is read; name its source by --events, and the configuration by -c", format)
		}
		return format, none, nil
	}
	if format != "" {
		return "", none, fmt.Errorf("--events %s says how the lines are read; leave out --format", source)
	}
	sources := map[string]*identity.SessionsConfig{}
	for i := range cfg.Identity.Sources.Sessions {
		s := &cfg.Identity.Sources.Sessions[i]
		sources[s.Name] = s
	}
	if err := intake.KnownEvents(source, sources); err != nil {
		return "", none, fmt.Errorf("--events: %w of the configuration, which -c names", err)
	}
	return sources[source].Format, sources[source].EventConfig, nil
}

// eventFormatNames lists the formats of session events that need no mapping.
func eventFormatNames() string {
	var names []string
	for _, f := range agent.EventFormats() {
		if !f.Mapped {
			names = append(names, f.Name)
		}
	}
	return strings.Join(names, " or ")
}

// formatNames lists the formats of logs.
func formatNames() string {
	var names []string
	for _, f := range agent.Formats() {
		names = append(names, f.Name)
	}
	return strings.Join(names, ", ")
}

// decodeFiles writes the records of files to out and the ledger to diag.
func decodeFiles(ctx context.Context, cfg ingest.DecoderConfig, files []string, out, diag io.Writer) error {
	cfg.BelieveClock = true
	names := flow.NewNames(0)
	decoder := ingest.NewDecoder(cfg, names, nil)
	w := bufio.NewWriterSize(out, 1<<16)
	batch := flow.NewBatch(flow.BatchSize, nil)
	var line []byte
	var stats ingest.CaptureStats
	err := func() error {
		for _, file := range files {
			st, err := eachDatagram(ctx, file, diag, func(d *ingest.Datagram) error {
				d.Position += stats.Datagrams // positions count over all files
				decoder.Decode(d, batch)
				texts := names.Texts()
				for i := range batch.Records {
					line = append(batch.Records[i].AppendJSON(line[:0], texts), '\n')
					if _, err := w.Write(line); err != nil {
						return err
					}
				}
				batch.Reset()
				return nil
			})
			addStats(&stats, st)
			if err != nil {
				return err
			}
		}
		return nil
	}()
	if ferr := w.Flush(); err == nil {
		err = ferr
	}
	if err != nil && stats.Packets == 0 {
		return err // such as a file that is not there
	}
	for _, a := range decoder.Ledger() { // printed is as far as they go
		a.Records.Written = a.Records.Decoded - a.Records.Rejected.Sum()
	}
	return errors.Join(err, decodeSummary(diag, stats, decoder.Ledger()))
}

// eachDatagram calls do for every datagram of a capture, showing how far it is.
func eachDatagram(ctx context.Context, file string, diag io.Writer, do func(*ingest.Datagram) error) (ingest.CaptureStats, error) {
	c, err := ingest.OpenCapture(file)
	if errors.Is(err, ingest.ErrNoCapture) {
		err = fmt.Errorf("%w; a log is read with --format auto, or the format's name", err)
	}
	if err != nil {
		return ingest.CaptureStats{}, err
	}
	defer c.Close()
	_, size := c.Progress()
	bar := newProgress(diag, file, size, true)
	defer bar.done()
	for {
		if err := ctx.Err(); err != nil {
			return c.Stats(), err
		}
		d, err := c.Next()
		if errors.Is(err, io.EOF) {
			return c.Stats(), nil
		}
		if err != nil {
			return c.Stats(), err
		}
		if err := do(d); err != nil {
			return c.Stats(), err
		}
		read, size := c.Progress()
		bar.set(read, size)
	}
}

func addStats(s *ingest.CaptureStats, o ingest.CaptureStats) {
	s.Packets += o.Packets
	s.Datagrams += o.Datagrams
	s.Skipped += o.Skipped
	s.Fragments += o.Fragments
	s.FragmentsLost += o.FragmentsLost
	s.Truncated += o.Truncated
	s.Unreadable += o.Unreadable
}

// decodeSummary writes the ledger, first for people, then as one JSON line for programs.
func decodeSummary(w io.Writer, stats ingest.CaptureStats, l flow.Ledger) error {
	t := l.Total()
	fmt.Fprintf(w, "datagrams: %d received, %d decoded, %d parked, %d rejected\n",
		t.Datagrams.Received, t.Datagrams.Decoded, t.Datagrams.Parked, t.Datagrams.Rejected.Sum())
	for _, r := range flow.Rejects() {
		if n := t.Datagrams.Rejected[r]; n > 0 {
			fmt.Fprintf(w, "  rejected, %s: %d\n", r, n)
		}
		if n := t.Records.Rejected[r]; n > 0 {
			fmt.Fprintf(w, "  records rejected, %s: %d\n", r, n)
		}
	}
	fmt.Fprintf(w, "records:   %d decoded, %d rejected\n", t.Records.Decoded, t.Records.Rejected.Sum())
	fmt.Fprintf(w, "beside:    %d options, %d templates, %d counter samples, %d sequence gaps\n", t.Options, t.Templates, t.Counters, t.Gaps)
	if stats.Skipped+stats.Unreadable+stats.FragmentsLost+stats.Truncated > 0 {
		fmt.Fprintf(w, "packets:   %d read, %d no UDP, %d cut short, %d fragments lost, %d unreadable\n",
			stats.Packets, stats.Skipped, stats.Truncated, stats.FragmentsLost, stats.Unreadable)
	}
	raw, err := json.Marshal(struct {
		Packets ingest.CaptureStats `json:"packets"`
		Ledger  flow.Account        `json:"ledger"`
	}{stats, t})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s\n", raw)
	return err
}

// stdoutOr opens a file for output; "-" is standard output.
func stdoutOr(path string, stdout io.Writer) (io.Writer, func() error, error) {
	if path == "-" {
		return stdout, func() error { return nil }, nil
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, nil, err
	}
	return f, f.Close, nil
}
