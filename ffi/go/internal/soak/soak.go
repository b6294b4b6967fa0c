// Package soak keeps a real Kubo on a real node busy for long, restarts it now and then, and says whether anything grows.
//
// Two lanes side by side: `grpc`, Kubo with an agent, and `ffi`, the node in Kubo's process. Each goes in cycles: mixed load; then what is above the
// size of the live set is unpinned and collected and its space given back; then, at rest, a sample is taken. So disk space and segments have a
// level to return to, and the samples at rest are all of the same phase. Samples under load are for the graph, and the most memory of each
// cycle is judged too. What "flat" is, is in flat.go. In the end everything that was acknowledged and not removed is read back, as the kill test does.
package soak

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"basalt.dev/go/internal/basaltv1"
	"basalt.dev/go/internal/kuboload"
)

// Options of a run.
type Options struct {
	Length                 time.Duration
	Seed                   uint64
	Dir                    string // for repos, samples and the graph; a lane that failed stays there
	Only                   string // a lane's name, or empty
	Basalt, IPFS, IPFSwith string // the programs; IPFSwith has the node built in
	Leak                   string // to see that a leak is seen: "connections" to the node are opened and kept, "disk" is used up in its folder
	Log                    io.Writer
}

const (
	liveMax      = 48 << 20 // bytes that are kept, in a lane
	segmentBytes = 8 << 20  // small, so that segments fill, are compacted and recycled all the time
	spentMax     = 4        // segments that a store may keep for new writes: the default of recycle_segments_max
	cacheBytes   = 4 << 20  // of the indexes: full soon, so that what grows later is seen
	keysMax      = 4096     // whose existence Kubo remembers, for the same reason
	memtable     = 16 << 20 // RocksDB's, one for each store: it fills until it is flushed
	between      = 2 * time.Second
)

// lane is one Kubo and its node.
type lane struct {
	*kuboload.Load
	o        *Options
	ffi      bool
	began    time.Time
	restarts int // clean
	kills    int
	next     int // cycles until the next restart

	mu      sync.Mutex // of what follows
	daemon  int        // pid; zero: none that we know of
	cycle   int
	samples []Sample
	events  []Event
	leaked  []net.Conn
}

// Event is a restart.
type Event struct {
	At   float64 // seconds since the run began
	What string  // "agent", "Kubo", "both"
	Kill bool    // by SIGKILL

	Fault string `json:",omitempty"` // a clean stop that did not end well
}

// Report is what is written beside the graph.
type Report struct {
	Seed    uint64
	Minutes float64
	Lanes   []LaneReport
}

// LaneReport is one lane's part of it.
type LaneReport struct {
	Name                                  string
	Cycles, Restarts, Kills, Acknowledged int
	Lost, Wrong                           int
	Events                                []Event
	Samples                               []Sample
	Judged                                []Judged
}

// Judged is one measure of a lane.
type Judged struct {
	Name, Unit string
	Judgement
}

// Again judges and draws what an earlier run has written.
func Again(dir string, log io.Writer) (result Result, err error) {
	var report Report
	text, err := os.ReadFile(filepath.Join(dir, "soak.json"))
	if err == nil {
		err = json.Unmarshal(text, &report)
	}
	if err != nil {
		return result, err
	}
	result, err = Judge(&report, log)
	return result, errors.Join(err, os.WriteFile(filepath.Join(dir, "soak.svg"), Chart(report), 0o644))
}

func (o *Options) say(format string, args ...any) { fmt.Fprintf(o.Log, format+"\n", args...) }

// Result is what a run found.
type Result struct {
	Minutes                                                     float64
	Cycles, Samples, Restarts, Kills, Acknowledged, Lost, Wrong int
	Faults                                                      int      // clean restarts in which Kubo ended with an error
	Grown                                                       []string // what is not flat, and why
}

func (r Result) String() string {
	state := "flat"
	if len(r.Grown) > 0 {
		state = fmt.Sprintf("%d measures not flat", len(r.Grown))
	}
	ended := ""
	if r.Faults > 0 {
		ended = fmt.Sprintf(" (%d ended with an error)", r.Faults)
	}
	return fmt.Sprintf("%.0f minutes, %d cycles, %d samples, %d clean restarts%s, %d kills, %d acknowledged, %d lost, %d wrong; %s",
		r.Minutes, r.Cycles, r.Samples, r.Restarts, ended, r.Kills, r.Acknowledged, r.Lost, r.Wrong, state)
}

// Run keeps both lanes busy; anything that is not as it should be is an error too.
func Run(o Options) (result Result, err error) {
	var lanes []*lane
	defer func() {
		for _, l := range lanes {
			l.Kubo.Kill()
			_, _ = l.Kubo.KillAgent()
			l.Kubo.Close()
			if err == nil {
				os.RemoveAll(filepath.Join(o.Dir, l.Name))
			}
		}
	}()
	for _, spec := range []struct {
		name, program string
		ffi           bool
	}{{"grpc", o.IPFS, false}, {"ffi", o.IPFSwith, true}} {
		if o.Only != "" && o.Only != spec.name {
			continue
		}
		dir := filepath.Join(o.Dir, spec.name)
		if err := os.RemoveAll(dir); err != nil {
			return result, err
		}
		k, err := kuboload.Initialize(spec.program, o.Basalt, dir, "basalt", fmt.Sprintf("BASALT_STORE_SEGMENT_BYTES=%d", segmentBytes), fmt.Sprintf("BASALT_LIMITS_INDEX_MEMORY_BYTES=%d", cacheBytes))
		if err != nil {
			return result, fmt.Errorf("%s: %w", spec.name, err)
		}
		if err := k.Configure("Datastore.BlockKeyCacheSize", fmt.Sprint(keysMax)); err != nil {
			return result, err
		}
		lanes = append(lanes, &lane{o: &o, ffi: spec.ffi, Load: &kuboload.Load{Name: spec.name, Seed: o.Seed, Kubo: k, Basalt: o.Basalt, Say: o.say}})
	}
	if len(lanes) == 0 {
		return result, fmt.Errorf("no lane %q; there are grpc and ffi", o.Only)
	}
	began := time.Now()
	var running sync.WaitGroup
	faults := make([]error, len(lanes))
	for i, l := range lanes {
		l.began = began
		running.Go(func() {
			if faults[i] = l.run(); faults[i] != nil {
				faults[i] = fmt.Errorf("%s, cycle %d: %w", l.Name, l.cycle, faults[i])
			}
		})
	}
	running.Wait()
	report := Report{Seed: o.Seed, Minutes: time.Since(began).Minutes()}
	for _, l := range lanes {
		report.Lanes = append(report.Lanes, LaneReport{Name: l.Name, Cycles: l.cycle, Restarts: l.restarts, Kills: l.kills,
			Acknowledged: l.Acknowledged(), Lost: l.Lost, Wrong: l.Wrong, Events: l.events, Samples: l.samples})
	}
	result, err = Judge(&report, o.Log)
	text, fault := json.Marshal(report)
	if fault == nil {
		fault = errors.Join(os.WriteFile(filepath.Join(o.Dir, "soak.json"), text, 0o644), os.WriteFile(filepath.Join(o.Dir, "soak.svg"), Chart(report), 0o644))
	}
	return result, errors.Join(errors.Join(faults...), err, fault)
}

// Judge says what a run found, and writes it out for people.
func Judge(report *Report, log io.Writer) (result Result, err error) {
	result.Minutes = report.Minutes
	var faults []error
	for i := range report.Lanes {
		r := &report.Lanes[i]
		r.Judged = judged(*r, report.Minutes*60)
		fmt.Fprintf(log, "%s: %d cycles, %d samples, %d clean restarts, %d kills, %d acknowledged\n", r.Name, r.Cycles, len(r.Samples), r.Restarts, r.Kills, r.Acknowledged)
		for _, j := range r.Judged {
			fmt.Fprintf(log, "  %-44s level %s, drift %s, step %s, in a life %s, bound %s: %s\n", j.Name, inUnit(j.Level, j.Unit), inUnit(j.Drift, j.Unit),
				inUnit(j.Step, j.Unit), inUnit(j.InLife, j.Unit), inUnit(j.Max, j.Unit), verdict(j.Why))
			if j.Why != "" {
				result.Grown = append(result.Grown, fmt.Sprintf("%s: %s: %s", r.Name, j.Name, j.Why))
			}
		}
		result.Cycles += r.Cycles
		result.Samples += len(r.Samples)
		result.Restarts += r.Restarts
		result.Kills += r.Kills
		for _, e := range r.Events {
			if e.Fault != "" {
				result.Faults++
			}
		}
		result.Acknowledged += r.Acknowledged
		result.Lost += r.Lost
		result.Wrong += r.Wrong
		if len(r.Samples) == 0 || r.Restarts+r.Kills == 0 || r.Acknowledged == 0 {
			faults = append(faults, fmt.Errorf("%s: %d samples, %d restarts, %d acknowledged: that proves nothing", r.Name, len(r.Samples), r.Restarts+r.Kills, r.Acknowledged))
		}
	}
	if result.Lost+result.Wrong > 0 {
		faults = append(faults, fmt.Errorf("%d lost, %d wrong", result.Lost, result.Wrong))
	}
	if len(result.Grown) > 0 {
		faults = append(faults, notFlat{result.Grown})
	}
	return result, errors.Join(faults...)
}

type notFlat struct{ grown []string }

func (n notFlat) Error() string { return "not flat: " + strings.Join(n.grown, "; ") }

func verdict(why string) string {
	if why == "" {
		return "flat"
	}
	return "NOT FLAT, " + why
}

func (l *lane) seconds() float64 { return time.Since(l.began).Seconds() }

// run goes through cycles until the time is over, then restarts once more and looks for everything.
func (l *lane) run() error {
	if err := l.start(); err != nil {
		return err
	}
	stop := make(chan struct{})
	var sampling sync.WaitGroup
	sampling.Go(func() {
		tick := time.NewTicker(between)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				l.sample(false)
			}
		}
	})
	err := l.cycles()
	close(stop)
	sampling.Wait()
	for _, c := range l.leaked {
		c.Close()
	}
	if err != nil {
		return err
	}
	// What a last restart finds; it counts for none of those under load.
	restarts, events := l.restarts, len(l.events)
	err = errors.Join(l.restart("both", false), l.come())
	l.restarts, l.events = restarts, l.events[:events]
	if err != nil {
		return err
	}
	return l.Check(true)
}

// load is how long the load of a cycle lasts: a run has about a hundred cycles.
func (l *lane) load() time.Duration { return min(max(l.o.Length/150, 2*time.Second), 20*time.Second) }

func (l *lane) cycles() error {
	l.next = l.span()
	// On a machine that is very busy a short run may not have come to its first restart when the time is over.
	for l.began.Add(l.o.Length).After(time.Now()) || l.restarts+l.kills == 0 {
		if err := l.live(); err != nil {
			return err
		}
		if l.Lost+l.Wrong > 0 {
			return errors.New("something is lost or wrong")
		}
		l.Round++
		l.mu.Lock()
		l.cycle++
		l.mu.Unlock()
	}
	return nil
}

// quiet is the part of a run, at its end, without restarts: what a process leaks has time to show.
const quiet = 0.4

// span draws how many cycles there are until the next restart: short lives and long ones alike.
func (l *lane) span() int { return int(math.Exp(l.Draw("span").Float64() * math.Log(12))) }

// start runs Kubo, and waits until it answers.
func (l *lane) start() error {
	if err := l.Kubo.Start(); err != nil {
		return err
	}
	l.mu.Lock()
	l.daemon = l.Kubo.Pid()
	l.mu.Unlock()
	return l.Kubo.Ready()
}

// come is start where Kubo does not run; else it waits until the node answers.
func (l *lane) come() error {
	if !l.Kubo.Running() {
		if err := l.start(); err != nil {
			return err
		}
	}
	return l.Kubo.Ready()
}

// restart ends what is to be restarted.
func (l *lane) restart(what string, kill bool) error {
	l.mu.Lock()
	l.events = append(l.events, Event{At: l.seconds(), What: what, Kill: kill})
	if what != "agent" {
		l.daemon = 0
	}
	l.mu.Unlock()
	if kill {
		l.kills++
	} else {
		l.restarts++
	}
	l.o.say("%s: %.0f s: %s ends%s", l.Name, l.seconds(), what, map[bool]string{true: " by SIGKILL"}[kill])
	if what != "agent" {
		if kill {
			l.Kubo.Kill()
		} else if err := l.Kubo.Stop(); err != nil {
			// Kubo gives its parts 15 s to stop, which is little on a busy machine. What counts is what is there afterwards.
			l.o.say("%s: %v", l.Name, err)
			l.mu.Lock()
			l.events[len(l.events)-1].Fault = err.Error()
			l.mu.Unlock()
		}
	}
	if l.ffi || what == "Kubo" {
		return nil
	}
	end := l.Kubo.StopAgent
	if kill {
		end = l.Kubo.KillAgent
	}
	_, err := end()
	return err
}

// live is a cycle.
func (l *lane) live() error {
	random := l.Draw("cycle")
	what, kill, busy := "Kubo", random.IntN(3) == 0, random.IntN(2) == 0
	if !l.ffi {
		what = []string{"agent", "Kubo", "both"}[random.IntN(3)]
	}
	due := l.next <= 0 && (time.Since(l.began) < time.Duration((1-quiet)*float64(l.o.Length)) || l.restarts+l.kills == 0)
	moment := time.Duration(random.Float64() * float64(l.load()))
	stop := make(chan struct{})
	var load sync.WaitGroup
	for w, work := range []func(*rand.Rand, uint64, uint64) error{l.Add, l.Add, l.ImportCAR, l.File, l.Read, l.Read, l.Remove} {
		load.Go(func() {
			random := l.Draw(fmt.Sprint("worker ", w))
			for i := uint64(0); ; i++ {
				err := work(random, uint64(w), i)
				if err != nil && due && busy && what != "agent" {
					return // nobody answers any more
				}
				if err != nil {
					l.o.say("%s: cycle %d: %v", l.Name, l.Round, err)
				}
				think := time.Duration(random.IntN(200)) * time.Millisecond
				if w == 6 {
					think *= 10 // Kubo stores nothing while it collects
				}
				select {
				case <-stop:
					return
				case <-time.After(think):
				}
			}
		})
	}
	if l.Round%4 == 1 {
		_ = l.Kubo.Admin(func(ctx context.Context, admin basaltv1.AdminClient) error {
			_, err := admin.ControlScrub(ctx, &basaltv1.ControlScrubRequest{Action: basaltv1.ControlScrubRequest_ACTION_START, RateBytes: 64 << 20, Hash: l.Round%8 == 1})
			return err
		})
	}
	var err error
	if due && busy {
		time.Sleep(moment)
		err = l.restart(what, kill)
		if what == "agent" {
			time.Sleep(l.load() - moment)
		}
	} else {
		time.Sleep(l.load())
	}
	close(stop)
	load.Wait()
	if err == nil && due && !busy {
		err = l.restart(what, kill)
	}
	if err = errors.Join(err, l.come()); err != nil {
		return err
	}
	if due {
		l.Round++ // the lives of the next draws; what is stored after this is of another round
		l.next = l.span()
		if err := l.Check(false); err != nil {
			return err
		}
	} else {
		l.next--
	}
	return l.rest()
}

// rest brings the live set back to its size, and takes a sample.
func (l *lane) rest() error {
	if err := l.Trim(liveMax); err != nil {
		return err
	}
	if _, err := l.Kubo.Collect(); err != nil {
		return err
	}
	for range 5 {
		freed := uint64(0)
		if err := l.Kubo.Admin(func(ctx context.Context, admin basaltv1.AdminClient) error {
			if _, err := admin.Flush(ctx, &basaltv1.FlushRequest{}); err != nil {
				return err
			}
			answer, err := admin.Reclaim(ctx, &basaltv1.ReclaimRequest{})
			freed = answer.GetFreedBytes()
			return err
		}); err != nil {
			return err
		}
		if freed == 0 {
			break
		}
	}
	if err := l.leak(); err != nil {
		return err
	}
	l.sample(true)
	return nil
}

// leak does on purpose what must not be.
func (l *lane) leak() error {
	switch l.o.Leak {
	case "":
	case "connections":
		for range 3 {
			c, err := net.Dial("unix", l.Kubo.Sockets()[0])
			if err != nil {
				return err
			}
			l.leaked = append(l.leaked, c)
		}
	case "disk":
		return os.WriteFile(filepath.Join(l.Kubo.Node(), "run", fmt.Sprint("leak-", l.Round)), make([]byte, 4<<20), 0o600)
	default:
		return fmt.Errorf("no leak %q; there are connections and disk", l.o.Leak)
	}
	return nil
}

// sample takes one; at rest with what Kubo says about itself.
func (l *lane) sample(rest bool) {
	l.mu.Lock()
	daemon, cycle := l.daemon, l.cycle
	l.mu.Unlock()
	s := Sample{At: l.seconds(), Cycle: cycle, Rest: rest}
	if rest {
		// A collection first, which takes from its heap what is garbage; then nothing is under way.
		inside := &Process{}
		if err := insideOf(l.Kubo, inside); err != nil {
			l.o.say("%s: cycle %d: %v", l.Name, cycle, err)
		}
		if s.Kubo = processOf(daemon); s.Kubo != nil {
			s.Kubo.Goroutines, s.Kubo.Heap = inside.Goroutines, inside.Heap
		}
	} else {
		s.Kubo = processOf(daemon)
	}
	s.Agent = processOf(l.Kubo.AgentPid())
	s.Node = nodeOf(l.Kubo)
	l.mu.Lock()
	l.samples = append(l.samples, s)
	l.mu.Unlock()
}
