package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the linker (-X main.version=…) in a release build.
var version = ""

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stderr))
}

// exitError is an error that has been told already and only carries a status.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// run is main without the process around it.
func run(ctx context.Context, args []string, stderr io.Writer) int {
	root := rootCommand()
	root.SetArgs(args)
	began := false
	root.PersistentPreRun = func(*cobra.Command, []string) { began = true }
	cmd, err := root.ExecuteContextC(ctx)
	var code exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	}
	fmt.Fprintln(stderr, "postern:", err)
	if !began { // the command line itself is wrong
		fmt.Fprintf(stderr, "usage: %s; %s --help says more\n", cmd.UseLine(), cmd.CommandPath())
	}
	return 1
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "postern",
		Short: "Flow-log analytics and exception audit for segmented networks",
		Long: `Postern reads NetFlow, IPFIX and sFlow, judges every flow by the segmentation policy
and the exceptions in force at the flow's own time, stores the verdicts in ClickHouse
and tells what was misused to the SIEM.

  postern demo                        see it all work on this machine
  postern check DIR                   check a policy folder
  postern explain SRC DST tcp/443     why such a flow is judged as it is
  postern test --policy DIR FILE…     what is found when such things happen
  postern replay --no-store --policy DIR --findings - FILE…
  postern serve -c postern.yaml       the service`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(
		serveCommand(), collectCommand(), detectCommand(), forwardCommand(), replayCommand(), decodeCommand(), demoCommand(),
		checkCommand(), explainCommand(), testCommand(),
		queryCommand(), readyCommand(), findingCommand(), migrateCommand(), rollupCommand(), outboxCommand(), kafkaCommand(), engineCommand(),
		versionCommand(),
	)
	return root
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version and what it was built with",
		Args:  cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintf(cmd.OutOrStdout(), "postern %s (%s, %s/%s)\n", versionText(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
		},
	}
}

// versionText is the release, else what the Go toolchain knows of the checkout.
func versionText() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				return "devel-" + s.Value[:12]
			}
		}
	}
	return "devel"
}
