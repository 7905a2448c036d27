package main

import (
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// progress shows how far a long piece of work is, its rate and the time left, on a
// terminal. Where standard error is no terminal it shows nothing at all.
type progress struct{ bar *progressbar.ProgressBar }

// newProgress starts a bar over total units; zero or less is an unknown total.
// Byte counts are shown as such if bytes is set.
func newProgress(w io.Writer, what string, total int64, bytes bool) progress {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return progress{}
	}
	if total <= 0 {
		total = -1
	}
	return progress{progressbar.NewOptions64(total,
		progressbar.OptionSetWriter(f),
		progressbar.OptionSetDescription(what),
		progressbar.OptionShowBytes(bytes),
		progressbar.OptionShowCount(),
		progressbar.OptionSetItsString("steps"),
		progressbar.OptionShowIts(),
		progressbar.OptionSetPredictTime(true),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish(),
		progressbar.OptionFullWidth(),
	)}
}

// set moves the bar to done of total.
func (p progress) set(done, total int64) {
	if p.bar == nil {
		return
	}
	if total > 0 && total != p.bar.GetMax64() {
		p.bar.ChangeMax64(total)
	}
	_ = p.bar.Set64(done) // a bar that cannot be drawn is no reason to stop working
}

// done clears the bar.
func (p progress) done() {
	if p.bar != nil {
		_ = p.bar.Finish()
	}
}
