// Package kubo is W13: real Kubo, its daemon offline, on each of the stores; what a user waits for.
//
// The program is the same `ipfs` for all, the one with Basalt built in, or, for the FFI lane, the one with the node in it. The stores of Kubo are
// configured as its own profiles have them; classes are those of the blocks.
package kubo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"basalt.dev/go/bench/blocks"
	"basalt.dev/go/bench/measure"
	"basalt.dev/go/bench/run"
	"basalt.dev/go/bench/stores"
	"basalt.dev/go/internal/kuboload"
)

// Plan is what is to be run.
type Plan struct {
	// Words choose stores by the beginnings of their names; "" are all.
	Words  string
	Rounds int
	// Folder on the disk that is measured.
	Folder string
	// Programs: Kubo with Basalt, Kubo with the node in it ("": there is none), and the agent.
	Ipfs, IpfsFFI, Basalt string
	// LargeBytes of the large file, SmallFiles in the tree of small ones.
	LargeBytes int64
	SmallFiles int
	Log        io.Writer
}

type spec = map[string]any

// contestant is a way to configure Kubo.
type contestant struct {
	name  string
	class stores.Class
	// spec of the datastore, or a profile of Basalt with the lane of its plugin.
	spec          spec
	profile, lane string
	ffi           bool
}

func mounted(at string, s spec) spec {
	s["mountpoint"] = at
	return s
}

func flatfs(sync bool) spec {
	return spec{"type": "mount", "mounts": []any{
		mounted("/blocks", spec{"type": "flatfs", "path": "blocks", "sync": sync, "shardFunc": "/repo/flatfs/shard/v1/next-to-last/2"}),
		mounted("/", spec{"type": "levelds", "path": "datastore", "compression": "none"}),
	}}
}

func badger(sync bool) spec {
	return spec{"type": "badgerds", "path": "badgerds", "syncWrites": sync, "truncate": true}
}

// contestants, in the order in which they take turns. pebble has no durable class under Kubo: nobody calls its Sync after each Put.
func contestants() []contestant {
	return []contestant{
		{name: "flatfs sync", class: stores.Each, spec: flatfs(true)},
		{name: "flatfs no sync", class: stores.None, spec: flatfs(false)},
		{name: "pebble", class: stores.AtSync, spec: spec{"type": "pebbleds", "path": "pebbleds"}},
		{name: "leveldb", class: stores.Each, spec: spec{"type": "levelds", "path": "datastore", "compression": "none"}},
		{name: "badger SyncWrites", class: stores.Each, spec: badger(true)},
		{name: "badger", class: stores.AtSync, spec: badger(false)},
		{name: "Basalt lane strict", class: stores.Each, profile: "basalt-blocks", lane: "auto"},
		{name: "Basalt lane ordered", class: stores.Ordered, profile: "basalt", lane: "auto"},
		{name: "Basalt gRPC strict", class: stores.Each, profile: "basalt-blocks", lane: "grpc"},
		{name: "Basalt gRPC ordered", class: stores.Ordered, profile: "basalt", lane: "grpc"},
		{name: "Basalt FFI strict", class: stores.Each, profile: "basalt-blocks", lane: "ffi", ffi: true},
		{name: "Basalt FFI ordered", class: stores.Ordered, profile: "basalt", lane: "ffi", ffi: true},
	}
}

// ID of the workload, its name and what it is.
const (
	ID   = "W13"
	Name = "Kubo, end to end"
	What = "`ipfs daemon --offline`, `ipfs add` by its command line, the rest by its RPC. Each step follows the one before in the same repo; " +
		"gc collects the small files, whose pin is removed before."
)

// steps, with their units.
var steps = []struct{ name, unit string }{
	{"daemon start, new repo", "ms"},
	{"ipfs add, one large file", "MB/s"},
	{"ipfs add -r, files of 1 KiB", "op/s"},
	{"pin ls --type=all", "ms"},
	{"repo stat", "ms"},
	{"repo verify", "ms"},
	{"repo gc of the small files", "ms"},
	{"daemon start, filled repo", "ms"},
}

// Run does the plan.
func (p Plan) Run(ctx context.Context) ([]run.Entry, error) {
	var chosen []contestant
	for _, c := range contestants() {
		wanted := p.Words == ""
		for word := range strings.SplitSeq(p.Words, ",") {
			wanted = wanted || strings.HasPrefix(c.name, strings.TrimSpace(word))
		}
		if wanted && (!c.ffi || p.IpfsFFI != "") {
			chosen = append(chosen, c)
		}
	}
	data := filepath.Join(p.Folder, "data")
	if err := p.makeData(data); err != nil {
		return nil, err
	}
	entries := make([][]run.Entry, len(chosen))
	for i, c := range chosen {
		for _, s := range steps {
			entries[i] = append(entries[i], run.Entry{Workload: ID, Session: ID, Case: s.name, Unit: s.unit, Store: c.name, Class: c.class})
		}
	}
	for round := range p.Rounds {
		for i, c := range chosen {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			began := time.Now()
			rows := p.one(ctx, c, data)
			said := ""
			for j, row := range rows {
				entries[i][j].Rounds = append(entries[i][j].Rounds, row)
				if row.Error != "" {
					said += "; " + row.Error
				} else {
					said += fmt.Sprintf("; %.4g %s", row.Figures[run.Rate], steps[j].unit)
				}
			}
			fmt.Fprintf(p.Log, "%s round %d %s (%.1f s)%s\n", ID, round+1, c.name, time.Since(began).Seconds(), said)
		}
	}
	return slices.Concat(entries...), nil
}

// makeData writes the large file, and the tree of small ones in folders of a thousand.
func (p Plan) makeData(data string) error {
	if err := os.MkdirAll(data, 0o755); err != nil {
		return err
	}
	large, err := os.Create(filepath.Join(data, "large"))
	if err != nil {
		return err
	}
	// Pieces of a block's size: half of the blocks are text.
	pieces := blocks.Source{Seed: 13, Min: 256 << 10}
	for i := range int(p.LargeBytes / int64(pieces.Min)) {
		if _, err := large.Write(pieces.At(i).Value); err != nil {
			return err
		}
	}
	if err := large.Close(); err != nil {
		return err
	}
	files := blocks.Source{Seed: 14, Min: 1 << 10}
	for i := range p.SmallFiles {
		folder := filepath.Join(data, "small", fmt.Sprint(i/1000))
		if i%1000 == 0 {
			if err := os.MkdirAll(folder, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(folder, fmt.Sprint(i)), files.At(i).Value, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// repo is a Kubo under way.
type repo struct {
	plan    Plan
	dir     string
	env     []string
	program string
	kubo    *kuboload.Kubo
	small   string // the root of the small files
}

// one does all steps on a new repo; where one fails the later ones were not run.
func (p Plan) one(ctx context.Context, c contestant, data string) []run.Row {
	rows := make([]run.Row, len(steps))
	for i, s := range steps {
		rows[i] = run.Row{Case: s.name, Error: "not run: a step before it failed"}
	}
	r, err := p.initialize(ctx, c)
	defer func() { _ = os.RemoveAll(filepath.Join(p.Folder, "kubo")) }()
	if err != nil {
		rows[0].Error = err.Error()
		return rows
	}
	defer r.end()
	for i, do := range []func(context.Context) (run.Figures, error){
		r.start,
		func(ctx context.Context) (run.Figures, error) {
			return r.add(ctx, float64(p.LargeBytes), float64(p.LargeBytes)/1e6, filepath.Join(data, "large"))
		},
		func(ctx context.Context) (run.Figures, error) {
			return r.add(ctx, float64(p.SmallFiles)*1024, float64(p.SmallFiles), "-r", filepath.Join(data, "small"))
		},
		r.post("pin/ls", url.Values{"type": {"all"}, "stream": {"true"}}),
		r.post("repo/stat", nil),
		r.post("repo/verify", nil),
		r.collect,
		r.restart,
	} {
		figures, err := do(ctx)
		if err != nil {
			rows[i].Error = err.Error()
			return rows
		}
		rows[i] = run.Row{Case: steps[i].name, Figures: figures}
	}
	return rows
}

func (p Plan) initialize(ctx context.Context, c contestant) (*repo, error) {
	r := &repo{plan: p, dir: filepath.Join(p.Folder, "kubo"), program: p.Ipfs}
	if c.ffi {
		r.program = p.IpfsFFI
	}
	if err := os.RemoveAll(r.dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(r.dir, "repo")
	r.env = append(os.Environ(), "IPFS_PATH="+path, "IPFS_TELEMETRY=off", "BASALT_BIN="+p.Basalt)
	if c.profile != "" {
		if _, err := r.ipfs(ctx, "init", "--profile=test,"+c.profile); err != nil {
			return nil, err
		}
		if err := edit(filepath.Join(path, "config"), func(config spec) { setLane(config["Datastore"], c.lane) }); err != nil {
			return nil, err
		}
	} else {
		// Kubo makes a repo of any datastore from a whole config, and has none to give but that of another repo.
		scratch := filepath.Join(r.dir, "scratch")
		r.env = append(r.env, "IPFS_PATH="+scratch)
		if _, err := r.ipfs(ctx, "init", "--profile=test"); err != nil {
			return nil, err
		}
		config := filepath.Join(scratch, "config")
		if err := edit(config, func(config spec) { config["Datastore"].(spec)["Spec"] = c.spec }); err != nil {
			return nil, err
		}
		r.env = append(r.env, "IPFS_PATH="+path)
		if _, err := r.ipfs(ctx, "init", config); err != nil {
			return nil, err
		}
	}
	var err error
	if r.kubo, err = kuboload.Open(r.program, p.Basalt, r.dir); err != nil {
		return nil, err
	}
	_, err = r.kubo.StopAgent() // the one that init has left: starting one is part of the daemon's start
	return r, err
}

// edit changes a config.
func edit(file string, change func(spec)) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var config spec
	if err := json.Unmarshal(text, &config); err != nil {
		return err
	}
	change(config)
	if text, err = json.MarshalIndent(config, "", "  "); err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o600)
}

// setLane says by which lane the plugin reaches its node, wherever in a Spec it stands.
func setLane(v any, lane string) {
	switch v := v.(type) {
	case spec:
		if v["type"] == "basalt" {
			v["lane"] = lane
		}
		for _, child := range v {
			setLane(child, lane)
		}
	case []any:
		for _, child := range v {
			setLane(child, lane)
		}
	}
}

// ipfs runs a command.
func (r *repo) ipfs(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, r.program, args...)
	cmd.Env = r.env
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		text := strings.TrimSpace(said.String())
		return "", fmt.Errorf("ipfs %s: %w: %s", args[0], err, text[max(0, len(text)-500):])
	}
	return strings.TrimSpace(out.String()), nil
}

// end stops what runs.
func (r *repo) end() {
	if r.kubo.Running() {
		if err := r.kubo.Stop(); err != nil {
			r.kubo.Kill()
		}
	}
	_, _ = r.kubo.StopAgent()
	r.kubo.Close()
}

func (r *repo) start(context.Context) (run.Figures, error) {
	began := time.Now()
	if err := r.kubo.Start(); err != nil {
		return nil, err
	}
	if err := r.kubo.Ready(); err != nil {
		return nil, err
	}
	return run.Figures{run.Rate: time.Since(began).Seconds() * 1e3}, nil
}

func (r *repo) restart(ctx context.Context) (run.Figures, error) {
	if err := r.kubo.Stop(); err != nil {
		return nil, err
	}
	if _, err := r.kubo.StopAgent(); err != nil {
		return nil, err
	}
	return r.start(ctx)
}

// counted does something and adds what daemon and agent wrote and used for it. payload in bytes, 0 where there is none; calls are what it does.
func (r *repo) counted(payload, calls float64, do func() error) (run.Figures, error) {
	both := func() (sum measure.Process, err error) {
		for _, pid := range []int{r.kubo.Pid(), r.kubo.AgentPid()} {
			if pid == 0 {
				continue
			}
			one, err := measure.Of(pid)
			if err != nil {
				return sum, err
			}
			sum.Written, sum.CPU, sum.RSS, sum.FDs = sum.Written+one.Written, sum.CPU+one.CPU, sum.RSS+one.RSS, sum.FDs+one.FDs
		}
		return sum, nil
	}
	if err := measure.Settle(r.dir); err != nil {
		return nil, err
	}
	before, err := both()
	if err != nil {
		return nil, err
	}
	device, deviceErr := measure.DeviceOf(r.dir)
	began := time.Now()
	if err := do(); err != nil {
		return nil, err
	}
	seconds := time.Since(began).Seconds()
	now, nowErr := measure.DeviceOf(r.dir)
	after, err := both()
	if err != nil {
		return nil, err
	}
	f := run.Figures{
		run.Seconds: seconds, run.Rate: seconds * 1e3, run.Ops: calls, run.Memory: float64(after.RSS) / (1 << 20), run.FDs: float64(after.FDs),
		run.CPUPerOp: (after.CPU - before.CPU) / calls * 1e6,
	}
	if deviceErr == nil && nowErr == nil && now.Cache {
		f[run.Flushes] = float64(now.Flushes-device.Flushes) / calls
	}
	if payload > 0 {
		f[run.CPU] = (after.CPU - before.CPU) / payload * (1 << 30)
		f[run.Written] = float64(after.Written-before.Written) / payload
	}
	return f, nil
}

// add runs `ipfs add` on paths; units is what the rate counts.
func (r *repo) add(ctx context.Context, payload, units float64, paths ...string) (run.Figures, error) {
	var root string
	f, err := r.counted(payload, units, func() (err error) {
		root, err = r.ipfs(ctx, append([]string{"add", "--quieter"}, paths...)...)
		return err
	})
	if err != nil {
		return nil, err
	}
	if root == "" {
		return nil, errors.New("ipfs add named no root")
	}
	if len(paths) > 1 {
		r.small = root
	}
	f[run.Rate] = units / f[run.Seconds]
	space, err := measure.SpaceOf(filepath.Join(r.dir, "repo"))
	if err != nil {
		return nil, err
	}
	f[run.Inodes] = float64(space.Inodes)
	return f, nil
}

// post times a call of the RPC.
func (r *repo) post(method string, args url.Values) func(context.Context) (run.Figures, error) {
	return func(context.Context) (run.Figures, error) {
		return r.counted(0, 1, func() error {
			_, err := r.kubo.Post(method, args, nil)
			return err
		})
	}
}

func (r *repo) collect(context.Context) (run.Figures, error) {
	if _, err := r.kubo.Post("pin/rm", url.Values{"arg": {r.small}}, nil); err != nil {
		return nil, err
	}
	before, err := measure.SpaceOf(filepath.Join(r.dir, "repo"))
	if err != nil {
		return nil, err
	}
	removed := 0
	f, err := r.counted(0, 1, func() (err error) {
		removed, err = r.kubo.Collect()
		return err
	})
	if err != nil {
		return nil, err
	}
	if removed < r.plan.SmallFiles {
		return nil, fmt.Errorf("gc removed %d blocks, there were %d files", removed, r.plan.SmallFiles)
	}
	after, err := measure.SpaceOf(filepath.Join(r.dir, "repo"))
	f[run.Ops] = float64(removed)
	f[run.BackAtOnce] = float64(before.Bytes-after.Bytes) / float64(r.plan.SmallFiles*1024)
	return f, err
}
