//go:build !(linux || darwin || freebsd || netbsd || openbsd || dragonfly)

package ingest

import "os"

// lockFile does nothing: these systems have no lock that ends with the process,
// and one that outlives it would keep the service from starting again.
func lockFile(*os.File) error { return nil }

// syncDir does nothing: these systems do not open directories for syncing.
func syncDir(string) error { return nil }
