//go:build linux

package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Processors: a proxy has the first to itself, the load and the upstream share the second.
const proxyCPU, loadCPU = 0, 1

// process is a server that this benchmark started.
type process struct {
	name, address string
	cmd           *exec.Cmd
	output        bytes.Buffer
}

// start runs a server on one processor and waits until it answers.
func start(name, address string, cpu int, env []string, command ...string) (*process, error) {
	p := &process{name: name, address: address}
	p.cmd = exec.Command("taskset", append([]string{"-c", strconv.Itoa(cpu)}, command...)...)
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	// What remains of a benchmark that was killed would disturb the next one.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if status, _, err := get(p.url(small)); err == nil && status == http.StatusOK {
			return p, nil
		}
		if time.Now().After(deadline) {
			_ = p.stop()
			return nil, fmt.Errorf("%s does not answer:\n%s", name, p.output.Bytes())
		}
	}
}

func (p *process) url(path string) string { return "http://" + p.address + path }

func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return p.cmd.Wait()
}

// pids are the process and its children, of which nginx has one.
func (p *process) pids() []int {
	pid := p.cmd.Process.Pid
	pids := []int{pid}
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for _, field := range strings.Fields(string(raw)) {
		if child, err := strconv.Atoi(field); err == nil {
			pids = append(pids, child)
		}
	}
	return pids
}

// tick is the unit of times in /proc, USER_HZ, which is the same on all of Linux' common processors.
const tick = 10 * time.Millisecond

// pss is the memory of the process and its children in bytes, shared pages counted by their share.
func (p *process) pss() (sum float64, err error) {
	for _, pid := range p.pids() {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return 0, err
		}
		_, after, found := strings.Cut(string(raw), "\nPss:")
		if !found {
			return 0, fmt.Errorf("%s: /proc tells no Pss", p.name)
		}
		kib, err := strconv.ParseFloat(strings.Fields(after)[0], 64)
		if err != nil {
			return 0, err
		}
		sum += kib * 1024
	}
	return sum, nil
}

// moveTo lets the process and its children run on one processor only.
func (p *process) moveTo(cpu int) error {
	for _, pid := range p.pids() {
		if output, err := exec.Command("taskset", "-acp", strconv.Itoa(cpu), strconv.Itoa(pid)).CombinedOutput(); err != nil {
			return fmt.Errorf("taskset: %w\n%s", err, output)
		}
	}
	return nil
}

// cpu is the time of processors that the process and its children have had.
func (p *process) cpu() (time.Duration, error) {
	var sum time.Duration
	for _, pid := range p.pids() {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, err
		}
		// The name in parentheses may hold blanks.
		fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
		for _, field := range fields[11:13] { // utime and stime
			ticks, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				return 0, err
			}
			sum += time.Duration(ticks) * tick
		}
	}
	return sum, nil
}

// machineCPU is the time of all processors since the start of the machine in which they did anything, or waited for another
// virtual machine.
func machineCPU() (time.Duration, error) {
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(raw), "\n")
	var sum time.Duration
	for i, field := range strings.Fields(line)[1:9] {
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, err
		}
		if i != 3 && i != 4 { // idle and iowait
			sum += time.Duration(ticks) * tick
		}
	}
	return sum, nil
}

func freeAddress() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

func get(url string) (status int, body []byte, err error) {
	response, err := http.Get(url)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	body, err = io.ReadAll(response.Body)
	return response.StatusCode, body, err
}
