// Dockerfile reads the Dockerfile given, has BuildKit's own linter look at it, and prints as JSON what it
// consists of: its warnings, and each stage with its base and its instructions. It is for the tests alone,
// in a module of its own, so that BuildKit is none of the product's.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/opencontainers/go-digest"
)

type stage struct {
	Name, Base string
	Commands   []command
}

type command struct {
	Name, Text string
}

type report struct {
	Warnings []string
	Args     map[string]string // those that stages' bases are made of
	Stages   []stage
}

// offline knows of every image that it is there, and nothing else: no registry is asked.
type offline struct{}

// ResolveImageConfig implements sourceresolver.ImageMetaResolver.
func (offline) ResolveImageConfig(_ context.Context, ref string, _ sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	return ref, "", []byte("{}"), nil
}

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	r := report{Args: map[string]string{}}
	warn := func(rule, description, _, message string, location []parser.Range) {
		line := 0
		if len(location) > 0 {
			line = location[0].Start.Line
		}
		r.Warnings = append(r.Warnings, fmt.Sprintf("%s:%d: %s: %s (%s)", file, line, rule, message, description))
	}
	parsed, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return err
	}
	for _, w := range parsed.Warnings {
		r.Warnings = append(r.Warnings, w.Short)
	}
	stages, args, err := instructions.Parse(parsed.AST, linter.New(&linter.Config{Warn: warn}))
	if err != nil {
		return err
	}
	for _, a := range args {
		for _, kv := range a.Args {
			if kv.Value != nil {
				r.Args[kv.Key] = *kv.Value
			}
		}
	}
	for _, s := range stages {
		out := stage{Name: s.Name, Base: s.BaseName}
		for _, c := range s.Commands {
			out.Commands = append(out.Commands, command{c.Name(), fmt.Sprint(c)})
		}
		r.Stages = append(r.Stages, out)
	}
	// What only shows when stages are put together: a stage that is not there, a variable that nobody sets.
	source := llb.NewSourceMap(nil, file, "Dockerfile", text)
	source.Definition = &llb.Definition{}
	results, err := dockerfile2llb.DockerfileLint(context.Background(), text, dockerfile2llb.ConvertOpt{SourceMap: source, MetaResolver: offline{}})
	if err != nil {
		return err
	}
	for _, w := range results.Warnings {
		r.Warnings = append(r.Warnings, w.RuleName+": "+w.Detail)
	}
	if results.Error != nil {
		return fmt.Errorf("%s: %s", file, results.Error.Message)
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}
