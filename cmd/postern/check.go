package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/postern/postern/policy"
)

func checkCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "check [-c postern.yaml] [DIR]",
		Short: "Check a configuration and a policy folder",
		Long: `Reads the configuration (with -c) and the policy folder (DIR, else the configuration's) and lists everything
that is wrong as file:line:column: what is wrong; what would be right. Warnings alone leave the status 0; an
error makes it 1.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			out := cmd.OutOrStdout()
			cfg, err := loadConfig(path)
			if err != nil {
				fmt.Fprintln(out, err)
			}
			failed := err != nil
			dir := cfg.Policy.Dir
			if len(args) == 1 {
				dir = args[0]
			} else if failed {
				return exitError(1) // what it says of the folder cannot be relied on
			}
			p, diags := loadPolicy(dir)
			for _, d := range diags {
				fmt.Fprintln(out, d)
			}
			if failed || p == nil {
				return exitError(1)
			}
			suppressions := ""
			if n := len(p.Suppressions); n > 0 {
				suppressions = fmt.Sprintf(", %d suppressions", n)
			}
			fmt.Fprintf(out, "%s: %d segments, %d workloads, %d rules, %d exceptions%s; version %s\n",
				dir, len(p.Segments), len(p.Workloads), len(p.Rules), len(p.Exceptions), suppressions, p.Version())
			return nil
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", "", "configuration file")
	return cmd
}

// loadPolicy reads a policy folder. What it finds names files by the path that
// leads to them from here, so that an editor finds them.
func loadPolicy(dir string) (*policy.Policy, policy.Diagnostics) {
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		return nil, policy.Diagnostics{{Pos: policy.Pos{File: dir}, Wrong: "it is no folder", Right: "name the folder that holds the policy files"}}
	}
	p, diags := policy.Load(os.DirFS(dir))
	for i := range diags {
		diags[i].File = filepath.Join(dir, diags[i].File)
	}
	if p != nil {
		p.Commit = commitOf(dir)
	}
	return p, diags
}
