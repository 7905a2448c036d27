package main

import (
	"github.com/postern/postern/sink"
	"github.com/spf13/cobra"
)

func explainCommand() *cobra.Command          { return &cobra.Command{Use: "explain"} }
func (s *service) exporters() []sink.Exporter { return nil }
