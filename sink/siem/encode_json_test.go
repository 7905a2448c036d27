package siem

import "github.com/postern/postern/flow"

func checkJSON(*flow.Finding) error { return nil }
