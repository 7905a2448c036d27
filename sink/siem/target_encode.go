package siem

import (
	"fmt"

	"github.com/postern/postern/flow"
)

func encodingNamed(name string) (func(*flow.Finding) ([]byte, error), error) {
	if name == "json" || name == "ecs" || name == "cef" {
		return MarshalFinding, nil
	}
	return nil, fmt.Errorf("%q is not known; use json, ocsf, ecs or cef", name)
}
