//go:build !linux

package embedded

import (
	"context"
	"io/fs"

	"github.com/postern/postern/flow"
)

// The engine runs on Linux only; these exist so that the rest compiles elsewhere
// and says so through [Supported].

func systemMemory() flow.Size { return 8 * flow.GiB }

func allocated(info fs.FileInfo) int64 { return info.Size() }

func lockDir(string) (unlock func(), err error) { return nil, Supported() }

func waitLock(context.Context, string) (unlock func(), err error) { return nil, Supported() }
