// Package report turns what was measured into a page and plots.
package report

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"basalt.dev/go/bench/run"
	"basalt.dev/go/bench/stores"
)

// Result is a run, as peers.json has it.
type Result struct {
	Command []string    `json:"command"`
	Scale   string      `json:"scale"`
	Rounds  int         `json:"rounds"`
	Machine []Fact      `json:"machine"`
	Entries []run.Entry `json:"entries"`
}

// Fact is a line about the machine.
type Fact struct {
	What  string `json:"what"`
	Value string `json:"value"`
}

// Machine says what was measured on: facts that a file has (lines "what: value"; "" for none), and what this program knows itself.
func Machine(file, folder string, chosen []stores.Store) ([]Fact, error) {
	facts := []Fact{{"when", time.Now().UTC().Format("2006-01-02 15:04 UTC")}}
	if file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(text)) {
			if what, value, ok := strings.Cut(strings.TrimSpace(line), ": "); ok {
				facts = append(facts, Fact{what, value})
			}
		}
	}
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
		Fact{"load average at the beginning", Load()},
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

// Load is the load average.
func Load() string {
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
