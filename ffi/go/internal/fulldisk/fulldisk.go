// Package fulldisk fills small file systems under a real Kubo and a real node, in a guest that may be destroyed, and looks at what still works.
//
// The host (Run) boots a guest; the guest (Guest) makes one file system after the other, and says a line for each thing it has looked at. Where the host has loop devices and
// its user is root, what needs no ZFS runs in a process of the host that has mounts of its own, which is many times faster. The lines:
//
//	case NAME             a case begins
//	ok NAME WHAT          WHAT holds there; FAILED NAME WHAT: WHY where it does not
//	note NAME TEXT        what was seen on the way
//	done OK FAILED        the end
//
// What was stored follows from a seed, and every block that the node had acknowledged is read back past Kubo's caches and hashed. No line, or an end without the last line, is a failure.
package fulldisk

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Case is one way for a disk to be full, under one flavour of Kubo.
type Case struct {
	Name  string
	FS    string // "ext4", "zfs-pool" or "zfs-quota"
	FFI   bool   // the node is in Kubo's process
	How   string // what fills it: "blocks", "inodes", "other" (another program, to the last byte), "snapshot" (blocks, and a snapshot holds them), "reserve" ("other", where a dataset keeps space back)
	MiB   int    // of the file system, or quota
	Short bool   // one cycle, and no restart
}

// Cases of `make full-disk`.
var Cases = []Case{
	{Name: "zfs-quota", FS: "zfs-quota", How: "blocks", MiB: 72},
	{Name: "zfs-quota-snapshot", FS: "zfs-quota", How: "snapshot", MiB: 72},
	{Name: "zfs-pool", FS: "zfs-pool", How: "blocks", MiB: 288},
	{Name: "zfs-quota-ffi", FS: "zfs-quota", How: "blocks", MiB: 72, FFI: true},
	{Name: "zfs-other", FS: "zfs-quota", How: "other", MiB: 72},
	{Name: "zfs-reserve", FS: "zfs-quota", How: "reserve", MiB: 96},
	{Name: "ext4", FS: "ext4", How: "blocks", MiB: 72},
	{Name: "ext4-ffi", FS: "ext4", How: "blocks", MiB: 72, FFI: true},
	{Name: "ext4-inodes", FS: "ext4", How: "inodes", MiB: 128},
	{Name: "ext4-other", FS: "ext4", How: "other", MiB: 96},
}

// ShortCases are for `make test` and for a first look.
var ShortCases = []Case{
	{Name: "ext4-short", FS: "ext4", How: "blocks", MiB: 64, Short: true},
	{Name: "zfs-quota-short", FS: "zfs-quota", How: "snapshot", MiB: 56, Short: true},
}

// Options of a run.
type Options struct {
	Cases                   []Case
	Seed                    uint64
	Zfsvm, Self             string
	Dir                     string // for what runs on this machine
	Basalt, IPFS, IPFSwithN string // programs in the folder of Self, which is what the guest sees
	Log                     io.Writer
}

// Plan is what the guest is told.
type Plan struct {
	Cases                   []Case
	Seed                    uint64
	Dir                     string
	Native                  bool // on the machine itself, with images for disks
	Basalt, IPFS, IPFSwithN string
}

// Decode reads a plan from the guest's command line.
func Decode(text string) (p Plan, err error) {
	if err = json.Unmarshal([]byte(text), &p); err != nil {
		err = fmt.Errorf("the plan %q: %w", text, err)
	}
	return p, err
}

// Result is what a run found.
type Result struct{ Cases, OK, Failed int }

func (r Result) String() string {
	return fmt.Sprintf("%d cases, %d checks held, %d failed", r.Cases, r.OK, r.Failed)
}

// Named are the cases with a name, all without one.
func Named(name string) ([]Case, error) {
	if name == "" {
		return Cases, nil
	}
	all := append(slices.Clone(Cases), ShortCases...)
	if i := slices.IndexFunc(all, func(c Case) bool { return c.Name == name }); i >= 0 {
		return all[i : i+1], nil
	}
	var names []string
	for _, c := range all {
		names = append(names, c.Name)
	}
	return nil, fmt.Errorf("no case %q; there are %s", name, strings.Join(names, ", "))
}

// bootsMax is how often a guest whose emulator fails is started again.
const bootsMax = 3

// Run runs the cases: on this machine what can, the rest in a guest.
func Run(o Options) (all Result, err error) {
	for _, native := range []bool{true, false} {
		var cases []Case
		for _, c := range o.Cases {
			if runsHere(c) == native {
				cases = append(cases, c)
			}
		}
		for boot := 1; len(cases) > 0; boot++ {
			result, crashed, failed := o.once(cases, native)
			if crashed && boot < bootsMax {
				fmt.Fprintf(o.Log, "the emulator failed; once more\n")
				continue
			}
			all = Result{all.Cases + result.Cases, all.OK + result.OK, all.Failed + result.Failed}
			err = errors.Join(err, failed)
			break
		}
	}
	return all, err
}

// runsHere says whether a case needs no guest.
func runsHere(c Case) bool {
	_, err := os.Stat("/dev/loop-control")
	return c.FS == "ext4" && os.Getuid() == 0 && err == nil
}

func (o *Options) command(plan Plan) *exec.Cmd {
	text, err := json.Marshal(plan)
	if err != nil {
		panic(err)
	}
	if plan.Native {
		return exec.Command("unshare", "--mount", "--propagation", "private", o.Self, "fill", string(text))
	}
	return exec.Command(o.Zfsvm, "run", "--share", filepath.Dir(o.Self)+":ro", "--mem", "3072", "--disks", "1:4G", "--timeout", strconv.Itoa(600+900*len(plan.Cases)),
		"--", o.Self, "fill", string(text))
}

func (o *Options) once(cases []Case, native bool) (result Result, crashed bool, err error) {
	plan := Plan{Cases: cases, Seed: o.Seed, Native: native, Dir: "/var/tmp", Basalt: o.Basalt, IPFS: o.IPFS, IPFSwithN: o.IPFSwithN}
	if native {
		plan.Dir = o.Dir
	}
	cmd := o.command(plan)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		return result, false, err
	}
	if err := cmd.Start(); err != nil {
		return result, false, fmt.Errorf("%s: %w", cmd.Path, err)
	}
	said, ended := Result{}, false
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fmt.Fprintln(o.Log, lines.Text())
		switch word, rest, _ := strings.Cut(lines.Text(), " "); word {
		case "case":
			result.Cases++
		case "ok":
			result.OK++
		case "FAILED":
			result.Failed++
		case "done":
			_, scanned := fmt.Sscanf(rest, "%d %d", &said.OK, &said.Failed)
			ended = scanned == nil
		}
	}
	ran := cmd.Wait()
	switch {
	case !ended && bytes.Contains(errs.Bytes(), []byte("without a status (qemu: 134)")):
		return result, true, fmt.Errorf("the emulator failed: %s", errs.Bytes())
	case !ended:
		err = fmt.Errorf("the guest ended early: %w: %s", errors.Join(lines.Err(), ran), errs.Bytes())
	case said.OK != result.OK || said.Failed != result.Failed:
		err = fmt.Errorf("the guest counts %d and %d, and %d and %d were read", said.OK, said.Failed, result.OK, result.Failed)
	case result.Failed > 0:
		err = fmt.Errorf("%d checks failed", result.Failed)
	case result.OK == 0 || result.Cases != len(cases):
		err = fmt.Errorf("%d of %d cases and %d checks were run, so nothing is shown", result.Cases, len(cases), result.OK)
	}
	return result, false, err
}
