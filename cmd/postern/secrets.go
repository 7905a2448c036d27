package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// resolveSecret reads what a reference in configuration points to: env:NAME or
// file:PATH. A secret is never written into configuration itself, and neither it
// nor what it resolves to is ever logged. White space around it is cut.
func resolveSecret(ref string) (string, error) {
	kind, name, ok := strings.Cut(ref, ":")
	switch {
	case ok && kind == "env":
		v := strings.TrimSpace(os.Getenv(name))
		if v == "" {
			return "", fmt.Errorf("the environment variable %s is not set; set it, or use file:PATH", name)
		}
		return v, nil
	case ok && kind == "file":
		b, err := os.ReadFile(name)
		if err != nil {
			return "", fmt.Errorf("cannot read the secret: %w", err)
		}
		v := strings.TrimSpace(string(b))
		if v == "" {
			return "", fmt.Errorf("the secret file %s is empty", name)
		}
		return v, nil
	}
	return "", errNoReference
}

// errNoReference does not repeat what stands there: it may be the secret.
var errNoReference = errors.New("a secret stands here; it must be a reference: env:NAME or file:PATH")

// checkReference says whether ref has the form of a reference, without following it.
func checkReference(ref string) error {
	if kind, name, ok := strings.Cut(ref, ":"); ok && name != "" && (kind == "env" || kind == "file") {
		return nil
	}
	return errNoReference
}
