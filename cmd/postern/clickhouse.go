package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/postern/postern/sink"
	"github.com/postern/postern/sink/embedded"
)

// withClickHouse connects to the ClickHouse of a configuration, brings its tables
// up to date and runs do. With the embedded engine that is the one of the running
// service; where none runs, the engine is started for the time of the call.
func withClickHouse(ctx context.Context, cfg config, log *slog.Logger, do func(context.Context, *sink.ClickHouse) error) error {
	return connectClickHouse(ctx, cfg, log, func(ctx context.Context, db *sink.ClickHouse) error {
		if err := db.Migrate(ctx, nil); err != nil {
			return err
		}
		return do(ctx, db)
	})
}

func connectClickHouse(ctx context.Context, cfg config, log *slog.Logger, do func(context.Context, *sink.ClickHouse) error) error {
	opts := sink.Options{Logger: log}
	if cfg.ClickHouse.URL != sink.URLEmbedded {
		if cfg.ClickHouse.Password != "" {
			p, err := resolveSecret(cfg.ClickHouse.Password)
			if err != nil {
				return fmt.Errorf("clickhouse.password: %w", err)
			}
			opts.Password = p
		}
		return openAnd(ctx, cfg, opts, do)
	}
	ecfg, err := embeddedConfig(cfg)
	if err != nil {
		return err
	}
	opts.Token = ecfg.Token
	if e, ok := readEndpoint(cfg); ok {
		opts.Endpoint = e.URL
		if db, err := sink.Open(ctx, cfg.ClickHouse, opts); err == nil {
			return errors.Join(do(ctx, db), db.Close())
		}
		// Its process is gone, or something else answers there.
	}
	if _, err := os.Stat(ecfg.DataDir); err != nil {
		return fmt.Errorf("no service runs on %s and it holds no database; start `postern serve`, or name the right configuration with -c", cfg.Data)
	}
	ecfg.Listen = "127.0.0.1:0"
	engine, err := embedded.New(ecfg, log, nil)
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	engineCtx, stop := context.WithCancel(gctx)
	g.Go(func() error { return engine.Run(engineCtx) })
	g.Go(func() error {
		defer stop()
		select {
		case <-engine.Ready():
		case <-gctx.Done():
			return nil // the engine's own error says why
		}
		opts.Endpoint = "http://" + engine.Addr().String()
		return openAnd(gctx, cfg, opts, do)
	})
	return g.Wait()
}

func openAnd(ctx context.Context, cfg config, opts sink.Options, do func(context.Context, *sink.ClickHouse) error) error {
	db, err := sink.Open(ctx, cfg.ClickHouse, opts)
	if err != nil {
		return err
	}
	return errors.Join(do(ctx, db), db.Close())
}

// readEndpoint finds where a running service's engine answers, if one left word.
func readEndpoint(cfg config) (endpoint, bool) {
	var e endpoint
	raw, err := os.ReadFile(endpointFile(cfg))
	return e, err == nil && json.Unmarshal(raw, &e) == nil && e.URL != ""
}

// clientFlags are how a command finds the data: a configuration, or just the
// data directory of one.
type clientFlags struct{ config, data string }

func (f *clientFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.config, "config", "c", "", "configuration file")
	cmd.Flags().StringVar(&f.data, "data", "", "data directory, instead of the configuration's")
}

func (f *clientFlags) load() (config, *slog.Logger, error) {
	cfg, err := loadConfig(f.config)
	if f.data != "" {
		cfg.Data = f.data
	}
	return cfg, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})), err
}

func queryCommand() *cobra.Command {
	var where clientFlags
	var format string
	var params []string
	var list bool
	cmd := &cobra.Command{
		Use:   "query SQL|NAME",
		Short: "Ask ClickHouse, the service's embedded one or a server",
		Long: `Runs one statement, or one of the questions that come with postern (--list, and docs/queries.md), and prints
the answer as a table, as JSON lines or as CSV. - reads the statement from standard input. Values of parameters
travel beside the statement, which has {name:Type} in their places. The tables and more examples are in
docs/clickhouse.md.`,
		Example: `  postern query exception-use --param exception=EX-2041 --param days=30
  postern query "SELECT reason, outcome, count() FROM flows GROUP BY ALL ORDER BY 3 DESC"
  postern query --format json --param who=10.50.3.3 "SELECT * FROM sessions WHERE client = {who:IPv6} AND began > now() - 3600"`,
		Args: func(cmd *cobra.Command, args []string) error {
			if list {
				return cobra.NoArgs(cmd, args)
			}
			return cobra.ExactArgs(1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if list {
				listQueries(cmd.OutOrStdout())
				return nil
			}
			given := map[string]string{}
			for _, p := range params {
				name, value, ok := strings.Cut(p, "=")
				if !ok || name == "" {
					return fmt.Errorf("--param %q is no parameter; write it as name=value", p)
				}
				given[name] = value
			}
			sql := args[0]
			switch {
			case sql == "-":
				raw, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), 1<<20))
				if err != nil {
					return err
				}
				sql = string(raw)
			case !strings.ContainsFunc(sql, unicode.IsSpace):
				q, err := sink.FindNamedQuery(sql)
				if err != nil {
					return err
				}
				if given, err = q.Bind(given, wallClock().Std()); err != nil {
					return err
				}
				sql = q.SQL
			}
			cfg, log, err := where.load()
			if err != nil {
				return err
			}
			return connectClickHouse(cmd.Context(), cfg, log, func(ctx context.Context, db *sink.ClickHouse) error {
				return db.QueryWith(ctx, sql, given, sink.Format(format), cmd.OutOrStdout())
			})
		},
	}
	where.add(cmd)
	cmd.Flags().StringVarP(&format, "format", "f", "table", "table, json (a line a row) or csv")
	cmd.Flags().StringArrayVarP(&params, "param", "p", nil, "a parameter's value, as name=value; again for each")
	cmd.Flags().BoolVar(&list, "list", false, "list the questions that have a name, and their parameters")
	return cmd
}

// listQueries prints the questions and what each wants to know.
func listQueries(w io.Writer) {
	for _, q := range sink.NamedQueries() {
		var params []string
		for _, p := range q.Params {
			if p.Required {
				params = append(params, p.Name)
			} else {
				params = append(params, p.Name+" = "+p.Default)
			}
		}
		fmt.Fprintf(w, "%-20s %s\n%-20s %s\n", q.Name, q.Question, "", strings.Join(params, ", "))
	}
}

func migrateCommand() *cobra.Command {
	var where clientFlags
	var plan, grants bool
	var to int
	who := sink.Grantees{Writer: "postern", Reader: "postern_reader", Grafana: "grafana"}
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Bring the tables in ClickHouse up to date, or print what would be done",
		Long: `Applies the schema migrations that this binary knows and the database has not seen, as the service does at
every start. --plan prints the statements and changes nothing. --grants prints, without asking any server, what
an administrator runs to make the users of one: what they may do follows from the tables of this binary, so
print it anew before an upgrade. An empty name leaves a user out. With --migrator the writer alters no tables;
then run postern migrate as that user before each new version starts.

--to takes migrations back until the newest is of that version, so that an older postern can start: stop
the services, run it with the newer binary, start the older one. Views become what they were; tables and columns
that were added stay, with their rows, for when you come forward again.`,
		Example: `  postern migrate --plan
  postern migrate --to 13 --plan
  postern migrate --grants --migrator postern_migrate > grants.sql`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, log, err := where.load()
			if err != nil {
				return err
			}
			if grants {
				return printGrants(cmd.OutOrStdout(), cfg, who)
			}
			if cfg.ClickHouse.URL == sink.URLEmbedded { // a first plan may come before the first start
				if err := os.MkdirAll(filepath.Join(cfg.Data, "clickhouse"), 0o700); err != nil {
					return err
				}
			}
			return connectClickHouse(cmd.Context(), cfg, log, func(ctx context.Context, db *sink.ClickHouse) error {
				plans, run := db.Plan, db.Migrate
				if cmd.Flags().Changed("to") {
					plans = func(ctx context.Context) ([]sink.Step, error) { return db.PlanBack(ctx, to) }
					run = func(ctx context.Context, told func(int, int, sink.Step)) error { return db.MigrateBack(ctx, to, told) }
				}
				steps, err := plans(ctx)
				if err != nil {
					return err
				}
				out := cmd.OutOrStdout()
				if plan {
					for _, s := range steps {
						fmt.Fprintf(out, "-- %s\n%s;\n\n", s.Name, strings.Join(s.Statements, ";\n\n"))
					}
					if len(steps) == 0 {
						fmt.Fprintln(out, "-- nothing to do")
					}
					return nil
				}
				bar := newProgress(cmd.ErrOrStderr(), "migrations", int64(len(steps)), false)
				defer bar.done()
				if err := run(ctx, func(done, total int, _ sink.Step) { bar.set(int64(done), int64(total)) }); err != nil {
					return err
				}
				fmt.Fprintf(out, "%d steps applied\n", len(steps))
				return nil
			})
		},
	}
	where.add(cmd)
	cmd.Flags().BoolVar(&plan, "plan", false, "print the statements instead of running them")
	cmd.Flags().BoolVar(&grants, "grants", false, "print the users that a server needs and what each is granted")
	cmd.Flags().StringVar(&who.Writer, "writer", who.Writer, "with --grants, the user of the service")
	cmd.Flags().StringVar(&who.Migrator, "migrator", "", "with --grants, the user who migrates; the writer if empty")
	cmd.Flags().StringVar(&who.Reader, "reader", who.Reader, "with --grants, the user who asks")
	cmd.Flags().StringVar(&who.Grafana, "grafana", who.Grafana, "with --grants, the user of Grafana's data source")
	cmd.Flags().IntVar(&to, "to", 0, "take migrations back until the newest is of this version")
	cmd.MarkFlagsMutuallyExclusive("plan", "grants")
	cmd.MarkFlagsMutuallyExclusive("to", "grants")
	return cmd
}

// printGrants prints what an administrator of the server runs.
func printGrants(w io.Writer, cfg config, who sink.Grantees) error {
	if cfg.ClickHouse.URL == sink.URLEmbedded {
		fmt.Fprintln(w, "-- The embedded engine has no users: it goes by the tokens of embedded.token and embedded.readOnlyToken. This is for a server.")
	}
	statements, err := cfg.ClickHouse.Grants(who)
	if err != nil {
		return err
	}
	fmt.Fprint(w, "-- Put the hash of a password of your own into each CREATE USER: echo -n \"$PASSWORD\" | sha256sum\n",
		"-- Each statement can be run again; print and run them anew before a new version of postern starts.\n")
	for _, s := range statements {
		fmt.Fprintln(w, s+";")
	}
	return nil
}

func engineCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "engine", Short: "The embedded ClickHouse engine"}
	var cache string
	fetch := &cobra.Command{
		Use:   "fetch",
		Short: "Download the engine once, verify it, and keep it in the cache",
		Long: `Fetches the npm package that holds the engine, at the version and with the integrity pinned in this binary,
through the registry npm is set up for, and unpacks the one file needed into the cache ($POSTERN_CACHE, else
the user's cache directory). Does nothing if it is there already.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return fetchEngine(cmd.Context(), cache, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	fetch.Flags().StringVar(&cache, "cache", "", "cache directory")
	cmd.AddCommand(fetch)
	return cmd
}

func fetchEngine(ctx context.Context, cache string, out, diag io.Writer) error {
	if path, err := embedded.Locate(cache); err == nil {
		fmt.Fprintf(out, "the engine is in the cache: %s\n", path)
		return nil
	}
	fmt.Fprintln(out, "fetching the embedded ClickHouse engine (178 MB, once)")
	var bar progress
	path, err := embedded.Fetch(ctx, cache, func(done, total int64) {
		if bar.bar == nil {
			bar = newProgress(diag, "engine", total, true)
		}
		bar.set(done, total)
	})
	bar.done()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "verified and unpacked: %s\n", path)
	return nil
}
