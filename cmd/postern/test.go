package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/postern/postern/policy"
	"github.com/postern/postern/test/scenario"
)

// testOptions is what `postern test` was asked for.
type testOptions struct {
	config   string
	policy   string
	thorough bool
	verbose  bool
}

func testCommand() *cobra.Command {
	var o testOptions
	cmd := &cobra.Command{
		Use:   "test [-c postern.yaml] [--policy DIR] [FOLDER|FILE…]",
		Short: "Run scenarios: what happens in a network, and what must be found",
		Long: `Runs scenario files, of a folder all that end in .txt, and says of each whether what it expects came. A scenario
names flows and sessions at their times, and the findings that must come of them or must not; docs/scenarios.md is
the language by example. Nothing is sent or stored, and no clock is asked.

A scenario that states no policy is judged by that of --policy, which is then in force always; without it by none.
With -c the stages are set as the configuration says, and its policy folder is the one that is used.

The status is 0 if every scenario holds, else 1.`,
		RunE: func(cmd *cobra.Command, paths []string) error {
			return testScenarios(o, paths, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.config, "config", "c", "", "configuration file")
	f.StringVar(&o.policy, "policy", "", "policy folder for scenarios that state none")
	f.BoolVar(&o.thorough, "thorough", false, "run each over restarts, in other cuts and in other orders of arrival as well; all must find the same")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "list the findings that came")
	return cmd
}

func testScenarios(o testOptions, paths []string, out io.Writer) error {
	cfg, err := loadConfig(o.config)
	if err != nil {
		return err
	}
	set := scenario.Settings{Enrich: cfg.Enrich, Sessions: cfg.Sessions, Detect: cfg.Detect}
	dir := o.policy
	if dir == "" && o.config != "" {
		dir = cfg.Policy.Dir
	}
	var judge *policy.Policy
	if dir != "" {
		var diags policy.Diagnostics
		if judge, diags = loadPolicy(dir); judge == nil {
			fmt.Fprintln(out, diags.Errors())
			return fmt.Errorf("the policy in %s has errors; nothing was run", dir)
		}
	}
	files, err := scenarioFiles(paths, cfg.Data)
	if err != nil {
		return err
	}
	failed := 0
	for _, file := range files {
		if !testScenario(o, file, set, judge, out) {
			failed++
		}
	}
	fmt.Fprintf(out, "%d of %d scenarios hold\n", len(files)-failed, len(files))
	if failed > 0 {
		return exitError(1)
	}
	return nil
}

// testScenario runs one file and says what came of it.
func testScenario(o testOptions, file string, set scenario.Settings, judge *policy.Policy, out io.Writer) bool {
	fail := func(text string) bool {
		fmt.Fprintf(out, "FAIL  %s\n      %s\n", file, strings.ReplaceAll(text, "\n", "\n      "))
		return false
	}
	s, err := scenario.Read(file, set)
	if err != nil {
		return fail(err.Error())
	}
	run := s.Run
	if o.thorough {
		run = s.Prove
	}
	res, err := run(scenario.Options{Policy: judge})
	if err != nil {
		return fail(err.Error())
	}
	holds := len(res.Problems) == 0
	if holds {
		by := ""
		if judge == nil && !s.StatesPolicy() {
			by = ", judged by no policy"
		}
		fmt.Fprintf(out, "ok    %s  flows: %d, findings: %d%s\n", file, res.Flows, len(res.Findings), by)
	} else {
		var all []string
		for _, p := range res.Problems {
			all = append(all, p.In(file))
		}
		if judge == nil && !s.StatesPolicy() {
			all = append(all, "It was judged by no policy: it states none, and none was named (--policy). So no flow is allowed or denied.")
		}
		fail(strings.Join(all, "\n"))
	}
	if o.verbose {
		for _, f := range res.Findings {
			fmt.Fprintln(out, "      came:", scenario.Brief(f))
		}
	}
	return holds
}

// scenarioFiles lists the files that are meant: those named, and of folders all that end in
// .txt, in their order, but for what lies in hidden folders and in a data directory.
func scenarioFiles(paths []string, data string) ([]string, error) {
	if len(paths) == 0 {
		paths = []string{"."}
	}
	data, err := filepath.Abs(data)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, path := range paths {
		err := filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist) && name == path:
				return fmt.Errorf("there is no %s; name scenario files, or folders in which they end in .txt", path)
			case err != nil:
				return err
			case d.IsDir() && name != path:
				if at, err := filepath.Abs(name); err != nil || at == data || strings.HasPrefix(d.Name(), ".") {
					return cmp.Or(err, fs.SkipDir)
				}
			case !d.IsDir() && (name == path || filepath.Ext(name) == ".txt") && !slices.Contains(files, name):
				files = append(files, name)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if len(files) == 0 {
		return nil, errors.New("there is no scenario: no file that ends in .txt in " + strings.Join(paths, ", "))
	}
	return files, nil
}
