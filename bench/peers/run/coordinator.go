package run

// The process that starts the others in turn: for each session its rounds, in each round every store, so that a disk or a neighbour that
// changes its mind hits all of them alike.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"basalt.dev/go/bench/stores"
	"basalt.dev/go/bench/workload"
)

// Plan is how workloads are run.
type Plan struct {
	Stores []stores.Store
	// Raw: the raw limits have their part.
	Raw    bool
	Rounds int
	// Folder on the disk that is measured; each store gets one of its own in it, removed when it is no longer needed.
	Folder    string
	HeapMiB   int
	ForgetAll bool
	// Device whose counters are taken; "": that of the folder's file system.
	Device string
	// Program that is started for a store, and the same one with the node linked in ("": there is none).
	Program, FFI string
	// Limit of one process; 0: none.
	Limit time.Duration
	// Log gets a line for each session and store.
	Log io.Writer
}

// Entry is what one store did in one case: a row for each round.
type Entry struct {
	Workload string       `json:"workload"`
	Session  string       `json:"session"`
	Case     string       `json:"case"`
	Unit     string       `json:"unit"`
	Store    string       `json:"store"`
	Class    stores.Class `json:"class"`
	Rounds   []Row        `json:"rounds"`
}

// contestant is a store or a raw limit.
type contestant struct {
	name  string
	class stores.Class
	ffi   bool
}

// Run does workloads, one after the other, and gives away the entries of each. Errors are of the machine; those of a store are in its rows.
func (p Plan) Run(ctx context.Context, workloads []workload.Workload, done func(workload.Workload, []Entry) error) error {
	kept := map[string]bool{}
	defer func() {
		for folder := range kept {
			_ = os.RemoveAll(folder)
		}
	}()
	for _, w := range workloads {
		var all []Entry
		for _, s := range w.Sessions {
			entries, err := p.session(ctx, w, s, kept)
			if err != nil {
				return err
			}
			all = append(all, entries...)
		}
		if err := done(w, all); err != nil {
			return err
		}
	}
	return nil
}

func (p Plan) session(ctx context.Context, w workload.Workload, s workload.Session, kept map[string]bool) ([]Entry, error) {
	var turn []contestant
	if p.Raw {
		for _, name := range s.Raw {
			turn = append(turn, contestant{name, RawClass(name), false})
		}
	}
	for _, store := range p.Stores {
		if !s.RawOnly && (!s.Reads || store.Reads) && (!s.Deletes || store.Deletes) {
			turn = append(turn, contestant{store.Name, store.Class, store.FFI})
		}
	}
	rounds := p.Rounds
	if s.Rounds > 0 {
		rounds = min(rounds, s.Rounds)
	}
	entries := make([][]Entry, len(turn))
	for i, who := range turn {
		for _, c := range s.Cases {
			entries[i] = append(entries[i], Entry{Workload: w.ID, Session: s.ID, Case: c.Name, Unit: c.Unit, Store: who.name, Class: who.class})
		}
	}
	for round := range rounds {
		for i, who := range turn {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			began := time.Now()
			rows, err := p.one(ctx, s, who, round, kept)
			if err != nil {
				return nil, err
			}
			said := ""
			for j, row := range rows {
				entries[i][j].Rounds = append(entries[i][j].Rounds, row)
				if row.Error != "" {
					said += "; " + row.Error
				} else {
					said += fmt.Sprintf("; %.4g %s", row.Figures[Rate], s.Cases[j].Unit)
				}
			}
			fmt.Fprintf(p.Log, "%s round %d %s (%.1f s)%s\n", s.ID, round+1, who.name, time.Since(began).Seconds(), said)
		}
	}
	return slices.Concat(entries...), nil
}

// one runs a session with one store in processes of its own.
func (p Plan) one(ctx context.Context, s workload.Session, who contestant, round int, kept map[string]bool) ([]Row, error) {
	name := strings.NewReplacer(" ", "-", ",", "", "+", "").Replace(who.name)
	folder := filepath.Join(p.Folder, s.ID+"."+name)
	if s.Keep != "" {
		folder = filepath.Join(p.Folder, s.Keep+"."+name)
	}
	filled := kept[folder]
	if !filled {
		if err := os.RemoveAll(folder); err != nil {
			return nil, err
		}
	}
	spec := Spec{Session: s, Store: who.name, Folder: folder, Filled: filled, Round: round, HeapMiB: p.HeapMiB, ForgetAll: p.ForgetAll, Device: p.Device}
	rows, err := p.child(ctx, spec, who)
	if errors.Is(err, errKilled) && s.Cases[0].Op == workload.Crash {
		if _, ackErr := os.Stat(acksFile(folder)); ackErr == nil {
			spec.Recover, spec.Filled = true, true
			rows, err = p.child(ctx, spec, who)
		}
	}
	var own *machineError
	if errors.As(err, &own) {
		return nil, err
	}
	if err != nil {
		rows = make([]Row, len(s.Cases))
		for i, c := range s.Cases {
			rows[i] = Row{Case: c.Name, Error: err.Error()}
		}
	}
	_ = os.Remove(acksFile(folder))
	if s.Keep != "" && err == nil && rows[0].Error == "" {
		kept[folder] = true
	} else {
		delete(kept, folder)
		if err := os.RemoveAll(folder); err != nil {
			return nil, err
		}
	}
	return rows, nil
}

var errKilled = errors.New("the process was killed")

// machineError is not a store's fault.
type machineError struct{ error }

func (p Plan) child(ctx context.Context, spec Spec, who contestant) ([]Row, error) {
	program := p.Program
	if who.ffi {
		if p.FFI == "" {
			return nil, errors.New("not run: this needs the program with the node linked in")
		}
		program = p.FFI
	}
	specFile, rowsFile := filepath.Join(p.Folder, "spec.json"), filepath.Join(p.Folder, "rows.json")
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, &machineError{err}
	}
	if err := os.WriteFile(specFile, text, 0o644); err != nil {
		return nil, &machineError{err}
	}
	if err := os.Remove(rowsFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, &machineError{err}
	}
	if p.Limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, p.Limit)
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, program, "-spec", specFile, "-rows", rowsFile)
	said := &lastLines{}
	cmd.Stdout, cmd.Stderr = said, said
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		if ctx.Err() == context.DeadlineExceeded {
			return nil, fmt.Errorf("not done within %s: %s", p.Limit, said)
		}
		if ctx.Err() != nil {
			return nil, &machineError{ctx.Err()}
		}
		if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signal() == syscall.SIGKILL {
			return nil, fmt.Errorf("%w: %s", errKilled, said)
		}
		return nil, fmt.Errorf("%w: %s", err, said)
	}
	text, err = os.ReadFile(rowsFile)
	if err != nil {
		return nil, &machineError{err}
	}
	var rows []Row
	if err := json.Unmarshal(text, &rows); err != nil {
		return nil, &machineError{err}
	}
	if len(rows) != len(spec.Session.Cases) {
		return nil, fmt.Errorf("%d of %d cases are reported", len(rows), len(spec.Session.Cases))
	}
	return rows, nil
}

// lastLines keeps the end of what a process said.
type lastLines struct{ text []byte }

func (l *lastLines) Write(p []byte) (int, error) {
	l.text = append(l.text, p...)
	if len(l.text) > 4000 {
		l.text = l.text[len(l.text)-2000:]
	}
	return len(p), nil
}

func (l *lastLines) String() string { return strings.TrimSpace(string(l.text)) }
