//go:build !(linux && amd64)

package embedded

// loadLibrary says which platforms there are.
func loadLibrary(string) (*library, error) { return nil, Supported() }

func saveSignals() (restore func(), err error) { return nil, Supported() }
