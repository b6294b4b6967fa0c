// Package report turns what was measured into a page and plots.
package report

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"basalt.dev/go/bench/run"
	"basalt.dev/go/bench/stores"
)

// Result is what is known of one machine, as peers.json has it: the last measurement of each workload.
type Result struct {
	Machine  []Fact     `json:"machine"`
	Measured []Measured `json:"measured"`
}

// Measured is a workload, measured.
type Measured struct {
	Workload string `json:"workload"`
	// Run says when, at which commit and scale, in how many rounds and under which load.
	Run     string      `json:"run"`
	Entries []run.Entry `json:"entries"`
}

// file of a result.
const file = "peers.json"

// Load reads a folder's result. There is none where the file is missing, or where it is of another machine than the one that facts describe: figures of two
// machines don't stand side by side.
func Load(folder string, facts []Fact) (Result, error) {
	fresh := Result{Machine: facts}
	text, err := os.ReadFile(filepath.Join(folder, file))
	if errors.Is(err, os.ErrNotExist) {
		return fresh, nil
	}
	if err != nil {
		return fresh, err
	}
	var r Result
	if err := json.Unmarshal(text, &r); err != nil {
		return fresh, fmt.Errorf("%s: %w", filepath.Join(folder, file), err)
	}
	if facts == nil || slices.Equal(r.Machine, facts) {
		return r, nil
	}
	return fresh, nil
}

// Put has a workload's measurement take the place of an older one.
func (r *Result) Put(m Measured) {
	r.Measured = slices.DeleteFunc(r.Measured, func(old Measured) bool { return old.Workload == m.Workload })
	r.Measured = append(r.Measured, m)
}

// Save writes the result and its page and plots.
func (r *Result) Save(folder string) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(folder, file), text, 0o644); err != nil {
		return err
	}
	return Write(folder)
}

// Fact is a line about the machine.
type Fact struct {
	What  string `json:"what"`
	Value string `json:"value"`
}

// Machine says what is measured on, and which modules are.
func Machine(folder string, chosen []stores.Store) ([]Fact, error) {
	var facts []Fact
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return nil, err
	}
	facts = append(facts,
		Fact{"CPU", fmt.Sprintf("%d x %s", runtime.NumCPU(), proc("/proc/cpuinfo", "model name"))},
		Fact{"memory", proc("/proc/meminfo", "MemTotal")},
		Fact{"kernel", unix.ByteSliceToString(name.Sysname[:]) + " " + unix.ByteSliceToString(name.Release[:])},
		Fact{"file system", mount(folder)},
		Fact{"Go", runtime.Version()},
		Fact{"modules", strings.Join(versions(chosen), ", ")},
		Fact{"virtualised", virtual()},
	)
	return facts, nil
}

func proc(file, name string) string {
	f, err := os.Open(file)
	if err != nil {
		return "?"
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if what, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(what) == name {
			return strings.TrimSpace(value)
		}
	}
	return "?"
}

// mount finds the file system of a folder: type, device and options.
func mount(folder string) string {
	var st unix.Stat_t
	if err := unix.Stat(folder, &st); err != nil {
		return "?"
	}
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "?"
	}
	device := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		at := slices.Index(fields, "-")
		if len(fields) > 5 && fields[2] == device && at > 0 && at+3 < len(fields) {
			return fmt.Sprintf("%s on %s (%s)", fields[at+1], fields[at+2], fields[at+3])
		}
	}
	return "?"
}

// virtual says whether a hypervisor is below.
func virtual() string {
	if strings.Contains(" "+proc("/proc/cpuinfo", "flags")+" ", " hypervisor ") {
		return "yes"
	}
	return "no"
}

// LoadAverage of the last minute, five and fifteen.
func LoadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "?"
	}
	return strings.Join(strings.Fields(string(text))[:3], " ")
}

// versions of the stores' modules in this program.
func versions(chosen []stores.Store) []string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return nil
	}
	var found []string
	for _, s := range chosen {
		for _, dep := range info.Deps {
			if text := strings.TrimPrefix(dep.Path, "github.com/ipfs/") + " " + dep.Version; s.Module == dep.Path && !slices.Contains(found, text) {
				found = append(found, text)
			}
		}
	}
	return found
}
