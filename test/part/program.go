package part

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"
)

const (
	startLimit = 90 * time.Second // a loaded machine takes ten times as long as a quiet one
	stopLimit  = 30 * time.Second
)

// Program is one that runs.
type Program struct {
	cmd   *exec.Cmd
	stdin io.Closer     // its end is the end of the program
	done  chan struct{} // closed when the program has been waited for
}

// Start runs cmd. It must end when its standard input does, which is when this process ends
// at the latest; what it says is appended to the file log.
func Start(cmd *exec.Cmd, log string) (*Program, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close() // the program has its own
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = r, out, out
	if err := cmd.Start(); err != nil {
		w.Close()
		return nil, err
	}
	p := &Program{cmd: cmd, stdin: w, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how it ended is in the log
		close(p.done)
	}()
	return p, nil
}

// Pid is its process.
func (p *Program) Pid() int { return p.cmd.Process.Pid }

// Await calls ready until that has no error.
func (p *Program) Await(ready func() error) error {
	for begun := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("it has ended: %w", err)
		default:
		}
		if time.Since(begun) > startLimit {
			return fmt.Errorf("it was not ready within %v: %w", startLimit, err)
		}
	}
}

// End asks the program to end, by a signal or, with none, by the end of its standard input,
// and waits until it has. One that does not is killed, which is an error.
func (p *Program) End(sig os.Signal) error {
	if sig == nil {
		p.stdin.Close()
	} else {
		_ = p.cmd.Process.Signal(sig) // it may have ended by itself
	}
	var late error
	select {
	case <-p.done:
	case <-time.After(stopLimit):
		late = fmt.Errorf("it did not end within %v", stopLimit)
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	if a := p.cmd.SysProcAttr; a != nil && a.Setpgid && sig != nil {
		// The child that watches standard input is in the same process group, and is why
		// the group's number cannot be anybody else's by now.
		_ = syscall.Kill(-p.Pid(), syscall.SIGKILL)
	}
	p.stdin.Close()
	return late
}

// Tail is the end of a log.
func Tail(log string) string {
	const lines = 80
	said, err := os.ReadFile(log)
	if err != nil {
		return err.Error()
	}
	all := slices.Collect(bytes.Lines(said))
	return string(bytes.Join(all[max(0, len(all)-lines):], nil))
}
