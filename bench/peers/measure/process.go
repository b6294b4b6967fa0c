package measure

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Process is what the kernel counts of one.
type Process struct {
	// Written to storage, in bytes, counted when a page becomes dirty; Cancelled are those whose file was removed or cut before they went out.
	Written, Cancelled int64
	// CPU time of all its threads, user's and system's, in seconds.
	CPU float64
	// RSS now and at its peak since ResetPeak, in bytes.
	RSS, Peak int64
	// FDs open.
	FDs int
}

// Of reads a process's counters; pid 0 is this one.
func Of(pid int) (Process, error) {
	dir := "/proc/self"
	if pid != 0 {
		dir = fmt.Sprint("/proc/", pid)
	}
	var p Process
	io, err := os.ReadFile(dir + "/io")
	if err != nil {
		return p, err
	}
	p.Written, p.Cancelled = field(io, "write_bytes:"), field(io, "cancelled_write_bytes:")
	// The CPU clock of another process (clock_getcpuclockid(3)): nanoseconds, where /proc counts ticks of ten milliseconds.
	clock := int32(unix.CLOCK_PROCESS_CPUTIME_ID)
	if pid != 0 {
		clock = ^int32(pid)<<3 | 2
	}
	var used unix.Timespec
	if err := unix.ClockGettime(clock, &used); err != nil {
		return p, fmt.Errorf("CPU clock of process %d: %w", pid, err)
	}
	p.CPU = float64(used.Nano()) / 1e9
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return p, err
	}
	p.RSS, p.Peak = field(status, "VmRSS:")<<10, field(status, "VmHWM:")<<10
	fds, err := os.ReadDir(dir + "/fd")
	p.FDs = len(fds)
	return p, err
}

func field(text []byte, name string) int64 {
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n
		}
	}
	return 0
}

// ResetPeak lets the peak of a process's RSS begin anew at what it has now.
func ResetPeak(pid int) error {
	path := "/proc/self/clear_refs"
	if pid != 0 {
		path = fmt.Sprintf("/proc/%d/clear_refs", pid)
	}
	return os.WriteFile(path, []byte("5"), 0)
}

// Processes adds up this process and the one beside it, if there is one.
func Processes(beside int) (Process, error) {
	sum, err := Of(0)
	if beside == 0 || err != nil {
		return sum, err
	}
	p, err := Of(beside)
	return Process{
		sum.Written + p.Written, sum.Cancelled + p.Cancelled, sum.CPU + p.CPU, sum.RSS + p.RSS, sum.Peak + p.Peak, sum.FDs + p.FDs,
	}, err
}
