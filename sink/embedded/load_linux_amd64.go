package embedded

import (
	"fmt"
	"os"
	"unsafe"

	"github.com/ebitengine/purego"
	"golang.org/x/sys/unix"
)

// loadLibrary opens libchdb and finds its functions. It is to be called once in a
// process and between saveSignals and its restore.
func loadLibrary(path string) (*library, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	// The engine takes its time zone from the C environment at load and ignores
	// the server setting. Only the C side is changed: Go's own environment, which
	// child processes inherit, stays.
	libc, err := purego.Dlopen("libc.so.6", purego.RTLD_NOW|purego.RTLD_GLOBAL)
	if err != nil {
		return nil, fmt.Errorf("libchdb needs glibc: %w", err)
	}
	setenv, err := purego.Dlsym(libc, "setenv")
	if err != nil {
		return nil, err
	}
	var setEnv func(name, value string, overwrite int32) int32
	purego.RegisterFunc(&setEnv, setenv)
	if setEnv("TZ", "UTC", 1) != 0 {
		return nil, fmt.Errorf("setting TZ=UTC for the engine failed")
	}
	h, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_GLOBAL)
	if err != nil {
		return nil, err
	}
	l := new(library)
	for _, s := range l.symbols() {
		fn, err := purego.Dlsym(h, s.name)
		if err != nil {
			return nil, fmt.Errorf("%s lacks %s; it is no libchdb %s: %w", path, s.name, Version, err)
		}
		purego.RegisterFunc(s.fn, fn)
	}
	return l, nil
}

// kernelSigaction is struct sigaction as rt_sigaction(2) of linux/amd64 knows it.
type kernelSigaction struct{ handler, flags, restorer, mask uintptr }

// saveSignals takes the kernel's table of signal actions below the real-time
// signals and returns what puts it back. Loading libchdb and its first connection
// replace handlers of the Go runtime (SIGSEGV, SIGURG …): without putting them
// back a nil dereference in Go would hang instead of panicking. The system call is
// used because os/signal and libc see only their own side.
func saveSignals() (restore func(), err error) {
	var saved [32]kernelSigaction
	for sig := 1; sig < len(saved); sig++ {
		if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), 0, uintptr(unsafe.Pointer(&saved[sig])), 8, 0, 0); errno != 0 {
			return nil, fmt.Errorf("reading the action of signal %d: %w", sig, errno)
		}
	}
	return func() {
		for sig := 1; sig < len(saved); sig++ {
			if sig == int(unix.SIGKILL) || sig == int(unix.SIGSTOP) {
				continue
			}
			_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&saved[sig])), 0, 8, 0, 0)
		}
	}, nil
}
