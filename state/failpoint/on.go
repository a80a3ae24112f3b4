//go:build failpoints

package failpoint

import (
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// What the environment asks for.
var (
	// record names a file to which each moment is appended as a line; empty for none.
	record = os.Getenv("SIDECAR_FAILPOINT_RECORD")
	// kind is the moment at which the process is ended; empty is any.
	kind = os.Getenv("SIDECAR_FAILPOINT")
	// nth counts the moments of the kind up to the last one; 0 ends no process.
	nth, _ = strconv.Atoi(os.Getenv("SIDECAR_FAILPOINT_NTH"))

	mu sync.Mutex
)

// Pass marks a moment, such as "before commit". Its kind is its name with the functions of this program that led to it,
// the innermost first. It ends the process by SIGKILL when the environment says so.
func Pass(name string) {
	mu.Lock()
	defer mu.Unlock()
	if record == "" && nth == 0 {
		return
	}
	here := name + " in " + strings.Join(callers(), " < ")
	if record != "" {
		note(here)
	}
	if nth == 0 || kind != "" && kind != here {
		return
	}
	if nth--; nth > 0 {
		return
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
		panic(err)
	}
	select {} // nothing else may happen until the signal has arrived
}

// callers are the names of the functions of this program that led to Pass, without literals and generic ones.
func callers() []string {
	var pcs [64]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
	var names []string
	for {
		frame, more := frames.Next()
		name := frame.Function[strings.LastIndexByte(frame.Function, '/')+1:]
		if strings.HasPrefix(frame.Function, "sidecar/") && !strings.Contains(name, ".func") && !strings.HasPrefix(name, "proxy.") {
			names = append(names, name[strings.LastIndexByte(name, '.')+1:])
		}
		if !more {
			return slices.Compact(names)
		}
	}
}

// note appends a line in one write, so that it is whole whenever the process ends.
func note(line string) {
	file, err := os.OpenFile(record, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	if _, err := file.WriteString(line + "\n"); err != nil {
		panic(err)
	}
	if err := file.Close(); err != nil {
		panic(err)
	}
}
