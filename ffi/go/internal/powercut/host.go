package powercut

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"basalt.dev/go/internal/cutdisk"
)

const (
	diskSize   = 3 << 30
	bootMax    = 8 * time.Minute        // until the guest writes, or has reported; emulated, on a busy machine
	silence    = 300 * time.Millisecond // after the cut: what a store acknowledges now it acknowledges without its disk
	mountMax   = 3 * time.Minute        // until its disk is mounted
	lastWords  = 15 * time.Second
	crashesMax = 5 // of qemu, in a lane
)

// Options of a run.
type Options struct {
	Rounds int
	Seed   uint64
	Only   string // a lane's name, or empty
	Dir    string // for disks and sockets; what a failure needs stays there
	Zfsvm  string
	Basalt string
	Self   string // this program, for the guest
	Log    io.Writer
}

// lane is one store on one disk.
type lane struct {
	run    *Options
	name   string
	plan   Plan
	disk   *cutdisk.Disk
	ledger *ledger
	lives  int
	fate   cutdisk.Fate

	crashes    int // of qemu
	recoveries int // cuts while it recovered
	segments   int // given back by reclaim
	freed      int // bytes, the same
	flushes    uint64
	cuts       int
	last       Verdict
}

// Result is what a run found.
type Result struct {
	Rounds, Recoveries, Acknowledged, Lost, Wrong, ControlLost int
	Unpinned                                                   int
	Oldest                                                     time.Duration
}

func (r Result) String() string {
	return fmt.Sprintf("%d rounds, %d acknowledged, %d lost, %d wrong; control lost %d", r.Rounds, r.Acknowledged, r.Lost, r.Wrong, r.ControlLost)
}

func (o *Options) say(format string, args ...any) { fmt.Fprintf(o.Log, format+"\n", args...) }

func (o *Options) lane(name string, plan Plan) (*lane, error) {
	plan.Seed, plan.Binary = o.Seed, o.Basalt
	disk, err := cutdisk.Create(filepath.Join(o.Dir, name+".disk"), diskSize)
	if err != nil {
		return nil, err
	}
	return &lane{run: o, name: name, plan: plan, disk: disk, ledger: newLedger(plan)}, nil
}

// draw gives the random numbers for one purpose in a life: however many of them one purpose takes, the others are the same for a seed.
func (l *lane) draw(purpose string) *rand.Rand {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s %d %s", l.name, l.lives, purpose)
	return rand.New(rand.NewPCG(l.run.Seed, h.Sum64()))
}

// Lanes are the stores that have to keep what they promise.
var Lanes = []struct {
	Name string
	Plan Plan
}{
	{"ext4-strict", Plan{FS: "ext4", Store: Basalt, Durability: "strict"}},
	{"zfs-strict", Plan{FS: "zfs", Store: Basalt, Durability: "strict"}},
	{"ext4-ordered", Plan{FS: "ext4", Store: Basalt, Durability: "ordered"}},
	{"zfs-ordered", Plan{FS: "zfs", Store: Basalt, Durability: "ordered"}},
	{"ext4-relaxed", Plan{FS: "ext4", Store: Basalt, Durability: "relaxed"}},
	{"zfs-relaxed", Plan{FS: "zfs", Store: Basalt, Durability: "relaxed"}},
	{"ext4-kubo", Plan{FS: "ext4", Store: Kubo, Durability: "ordered"}},
	{"ext4-migration", Plan{FS: "ext4", Store: Migration, Durability: "ordered"}},
}

// Controls lose something, or the run proves nothing: Basalt of the same file, but its flushes do nothing, in the kernel or in the drive.
var Controls = []struct {
	Name string
	Plan Plan
}{
	{"ext4-lying-drive", Plan{FS: "ext4", Store: Basalt, Durability: "strict", Lies: true}},
	{"ext4-control", Plan{FS: "ext4", Store: Basalt, Durability: "strict", Control: true}},
	{"zfs-control", Plan{FS: "zfs", Store: Basalt, Durability: "strict", Control: true}},
	{"ext4-relaxed-control", Plan{FS: "ext4", Store: Basalt, Durability: "relaxed", Control: true}},
	{"ext4-kubo-control", Plan{FS: "ext4", Store: Kubo, Durability: "ordered", Control: true}},
}

// Others are what Kubo has without Basalt, for comparison; they decide nothing.
var Others = []struct {
	Name string
	Plan Plan
}{
	{"ext4-flatfs", Plan{FS: "ext4", Store: Flatfs}},
	{"zfs-flatfs", Plan{FS: "zfs", Store: Flatfs}},
	{"ext4-flatfs-sync", Plan{FS: "ext4", Store: FlatfsSync}},
	{"zfs-flatfs-sync", Plan{FS: "zfs", Store: FlatfsSync}},
}

// known says what there is where Only names no lane.
func (o *Options) known() error {
	var names []string
	for _, l := range append(slices.Clone(Lanes), Controls...) {
		names = append(names, l.Name)
	}
	if o.Only != "" && !slices.Contains(names, o.Only) {
		return fmt.Errorf("no lane %q; there are %s", o.Only, strings.Join(names, ", "))
	}
	return nil
}

// Run cuts the power Rounds times, and controls that the cut takes what isn't flushed.
func Run(o Options) (Result, error) {
	var result Result
	if err := o.known(); err != nil {
		return result, err
	}
	var failures []error
	var lanes []*lane
	for _, l := range Lanes {
		if o.Only == "" && len(lanes) < o.Rounds || o.Only == l.Name {
			made, err := o.lane(l.Name, l.Plan)
			if err != nil {
				return result, err
			}
			defer made.disk.Close()
			lanes = append(lanes, made)
		}
	}
	for i := range o.Rounds {
		if len(lanes) == 0 {
			break
		}
		l := lanes[i%len(lanes)]
		if err := l.round(); err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", l.name, err))
			break
		}
		result.Rounds++
	}
	basaltCuts, reclaimed := 0, int64(0)
	for _, l := range lanes {
		if l.cuts == 0 {
			continue
		}
		if err := l.finish(); err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", l.name, err))
		}
		result.Recoveries += l.recoveries
		result.Acknowledged += l.last.Acknowledged
		result.Lost += l.last.Lost
		result.Wrong += l.last.Wrong
		if l.flushes == 0 {
			failures = append(failures, fmt.Errorf("%s: not one flush has reached the disk, so nothing is proven", l.name))
		}
		if l.last.Acknowledged == 0 {
			failures = append(failures, fmt.Errorf("%s: nothing was acknowledged, so nothing is proven", l.name))
		}
		if l.plan.Store == Basalt {
			basaltCuts += l.cuts
			reclaimed += int64(l.segments) + int64(l.freed)
		}
		o.say("%s: %d cuts and %d while it recovered, %d acknowledged, %d lost, %d wrong; %d segments (%.1f MiB) reclaimed%s", l.name, l.cuts, l.recoveries,
			l.last.Acknowledged, l.last.Lost, l.last.Wrong, l.segments, float64(l.freed)/(1<<20), l.last.allowed())
	}
	// Of all lanes: the lives of one may all be too short for a segment to fill.
	if basaltCuts > 2 && reclaimed == 0 {
		failures = append(failures, errors.New("reclaim gave nothing back before any of the cuts, so of it nothing is proven"))
	}
	if result.Lost+result.Wrong > 0 {
		failures = append(failures, fmt.Errorf("%d lost, %d wrong", result.Lost, result.Wrong))
	}
	if o.Only != "" && len(lanes) > 0 {
		o.say("one lane alone, without the controls: what it did not lose proves little")
	}
	for i, c := range Controls {
		if o.Only != "" && o.Only != c.Name || o.Only == "" && o.Rounds < 2 && i > 1 {
			continue
		}
		lost, err := o.once(c.Name, c.Plan)
		if err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", c.Name, err))
		} else if lost.Lost == 0 {
			failures = append(failures, fmt.Errorf("%s: nothing of %d acknowledged was lost without flushes, so the cuts prove nothing", c.Name, lost.Acknowledged))
		}
		result.ControlLost += lost.Lost
	}
	return result, errors.Join(failures...)
}

// Compare cuts the power of the stores that Kubo has without Basalt.
func Compare(o Options) error {
	for _, other := range Others {
		if o.Only != "" && o.Only != other.Name {
			continue
		}
		if _, err := o.repeated(other.Name, other.Plan, o.Rounds); err != nil {
			return fmt.Errorf("%s: %w", other.Name, err)
		}
	}
	return nil
}

// once makes a store, lets it write, cuts, and looks.
func (o *Options) once(name string, plan Plan) (Verdict, error) { return o.repeated(name, plan, 1) }

func (o *Options) repeated(name string, plan Plan, rounds int) (Verdict, error) {
	l, err := o.lane(name, plan)
	if err != nil {
		return Verdict{}, err
	}
	l.disk.Close()
	var all Verdict
	for i := range rounds {
		// Each on a new disk: what one cut has broken would be broken at the next.
		if l, err = o.lane(name, plan); err != nil {
			return all, err
		}
		l.lives = 2 * i // another life for each, so other choices
		if err := l.write(); err != nil {
			return all, err
		}
		v, err := l.look()
		l.disk.Close()
		l.forget()
		if err != nil {
			return all, err
		}
		all.Acknowledged += v.Acknowledged
		all.Lost += v.Lost
		all.Wrong += v.Wrong
	}
	o.say("%s: %d cuts, %d acknowledged, %d lost, %d wrong", name, rounds, all.Acknowledged, all.Lost, all.Wrong)
	return all, nil
}

func (v Verdict) allowed() string {
	if v.Unpinned == 0 {
		return ""
	}
	return fmt.Sprintf(" (%d that nothing stands for went, as is allowed; the oldest %.1f s old)", v.Unpinned, v.Oldest.Seconds())
}

// round is one life that recovers, reports and writes until it is cut; sometimes one before it that is cut while it recovers.
func (l *lane) round() error {
	if random := l.draw("recovery"); l.cuts > 0 && random.IntN(4) == 0 {
		plan := l.plan
		plan.Report = true
		l.disk.CutAfter(1 + int(random.ExpFloat64()*40))
		life, err := l.live(plan, nil)
		if err != nil {
			return err
		}
		if !life.report.complete {
			l.recoveries++
		}
	}
	return l.write()
}

// finish looks a last time; what no failure needs is removed.
func (l *lane) finish() error {
	v, err := l.look()
	if err == nil && v.Lost+v.Wrong == 0 {
		l.forget()
	}
	return err
}

func (l *lane) forget() {
	os.Remove(l.kept())
	os.Remove(filepath.Join(l.run.Dir, l.name+".disk"))
}

// write is a life that reports what earlier ones left, and writes.
func (l *lane) write() error {
	plan := l.plan
	plan.Make, plan.Report, plan.Write, plan.Round = l.cuts == 0, l.cuts > 0, true, l.cuts
	// When: while the n-th write to the disk is under way, at a flush, or at some time.
	random := l.draw("moment")
	operations, after := 0, time.Duration((0.5+14*random.Float64())*float64(time.Second))
	if l.cuts == 0 {
		after = time.Duration((4 + 6*random.Float64()) * float64(time.Second)) // so that even a run of one cut has something to lose
	} else if random.IntN(4) > 0 && l.promises() {
		operations, after = 1+int(random.ExpFloat64()*l.plan.busy()), lastWords
	}
	cut := l.disk.CutAfter
	if random.IntN(3) > 0 {
		cut = l.disk.CutAtFlush
	}
	var timer *time.Timer
	var before cutdisk.Counts
	life, err := l.live(plan, func() {
		before = l.disk.Counts()
		if operations > 0 {
			cut(operations)
		}
		if plan.Lies {
			l.disk.Lie()
		}
		timer = time.AfterFunc(after, l.disk.Stop)
	})
	if timer != nil {
		timer.Stop()
	}
	if err != nil {
		return err
	}
	l.cuts++
	asked := l.disk.Counts().Since(before)
	l.flushes += asked.Flushes + asked.FUA
	p := l.ledger.rounds[plan.Round]
	acked, pinned := 0, 0
	for w := range writers {
		acked += p.acked[w]
		pinned += p.pinned[w]
	}
	what := fmt.Sprintf("%d blocks and %d pins acknowledged", acked, pinned)
	if plan.files() {
		acked = 0
		for _, f := range p.files {
			if f.id != "" {
				acked++
			}
		}
		what = fmt.Sprintf("%d files added", acked)
	}
	if moves := life.count("step moved"); moves > 0 {
		what += fmt.Sprintf(", moved %d times", moves)
	}
	if p.segments+p.freed > 0 {
		what += fmt.Sprintf(", %d segments reclaimed", p.segments)
	}
	if !l.ledger.strict() {
		what += fmt.Sprintf(", bound %.2f s", p.bound().Seconds())
	}
	l.segments += p.segments
	l.freed += p.freed
	l.run.say("%s: cut %d after %.1f s of writing: %s, %v; %v", l.name, l.cuts, p.cut.Sub(life.began).Seconds(), what, asked, l.fate)
	return nil
}

// look is a life that only reports.
func (l *lane) look() (Verdict, error) {
	plan := l.plan
	plan.Report, plan.Control, plan.Lies, plan.Round = true, false, false, l.cuts
	life, err := l.live(plan, nil)
	if err == nil && !life.report.complete && life.report.dead == "" {
		err = errors.New("the guest did not report")
	}
	return l.last, err
}

// life is what the host saw of one life of a guest.
type life struct {
	report *report
	booted time.Time
	began  time.Time // writing
	begun  bool
	lines  []string // what it said about itself
	err    error    // of its words
}

// count says how many lines about itself had these words.
func (v *life) count(words string) (count int) {
	for _, line := range v.lines {
		if strings.Contains(line, words) {
			count++
		}
	}
	return count
}

// live boots a guest on the lane's disk and lets it do the plan until the power is cut: by what arm set up once the guest writes, by what
// was set up before, or when it has nothing more to do. Then the drive loses what it loses.
func (l *lane) live(plan Plan, arm func()) (*life, error) {
	l.lives++
	if err := l.keep(); err != nil {
		return nil, err
	}
	socket := filepath.Join(l.run.Dir, "nbd.sock")
	os.Remove(socket)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	served := make(chan error, 1)
	go func() { served <- l.disk.Serve(listener) }()

	limit := strconv.Itoa(int((bootMax + lastWords + time.Minute).Seconds()))
	cmd := exec.Command(l.run.Zfsvm, "run", "--share", filepath.Dir(l.run.Self)+":ro", "--nbd", socket, "--mem", "1024", "--verbose", "--cpus", "2", "--timeout", limit,
		// On a busy machine the emulated timer does not tick in time for the kernel's check of it, and the guest would panic.
		"--append", "no_timer_check",
		"--", l.run.Self, "guest", plan.Encode())
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", l.run.Zfsvm, err)
	}
	dead := l.disk.Dead()
	v := &life{report: newReport(), booted: time.Now()}
	begin, mounted, over := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 4<<20)
		for lines.Scan() {
			said := len(v.lines)
			l.hear(v, plan, lines.Text(), begin, dead)
			if said == 0 && len(v.lines) > 0 {
				close(mounted)
			}
		}
		if v.err == nil {
			v.err = lines.Err()
		}
	}()

	patience, boot := time.NewTimer(bootMax), time.NewTimer(mountMax)
	defer patience.Stop()
	defer boot.Stop()
	go func() {
		select {
		case <-mounted:
			boot.Stop()
		case <-over:
		}
	}()
	hung, stalled := false, false
	select {
	case <-boot.C:
		stalled = true
	case <-begin:
		v.began = time.Now()
		arm()
		select {
		case <-dead:
		case <-over: // it may not end by itself
		}
	case <-dead:
	case <-over:
	case <-patience.C:
		hung = true
	}
	l.disk.Stop()
	if !hung && plan.Write && v.begun {
		select {
		case <-over:
		case <-time.After(silence):
		}
	}
	killed := l.end(cmd.Process.Pid)
	<-over
	_ = cmd.Wait() // the script's status says nothing that its words don't
	crashed := !killed && bytes.Contains(errs.Bytes(), []byte("without a status (qemu: 134)"))
	cut := l.disk.DeadSince()
	if v.begun {
		l.ledger.close(plan.Round, cut)
	}
	listener.Close()
	if err := <-served; err != nil {
		return nil, err
	}
	if plan.Lies {
		l.fate, err = l.disk.PowerWith(cutdisk.LoseAll, l.draw("loss"))
	} else {
		l.fate, err = l.disk.Power(l.draw("loss"))
	}
	if err != nil {
		return nil, err
	}
	switch {
	case stalled && l.crashes >= crashesMax:
		err = fmt.Errorf("the guest did not mount its disk within %s", mountMax)
	case hung:
		err = fmt.Errorf("the guest neither reported nor wrote within %s", bootMax)
	case v.err != nil:
		err = v.err
	case (stalled || crashed && !v.begun && !v.report.complete && v.report.dead == "") && l.crashes < crashesMax:
		// The emulator aborts or loses the guest's timer now and then, when the machine is busy. To the store that was a cut like any other; the
		// guest did not come to what it should do. A file system that is mounted is past that: from then on a guest that hangs is a failure.
		l.crashes++
		l.run.say("%s: life %d: the emulator failed before the guest did anything; once more", l.name, l.lives)
		return l.live(plan, arm)
	case plan.Write && !v.begun && v.report.dead == "":
		err = errors.New("the guest ended before it wrote")
	case plan.Make && v.report.dead != "":
		err = fmt.Errorf("the store was not made, so nothing is tested: %s", v.report.dead)
	}
	if v.report.complete || v.report.dead != "" {
		for i, note := range l.last.Notes {
			if !l.promises() && i == 3 {
				l.run.say("%s: life %d: and so on", l.name, l.lives)
				break // it is meant to lose
			}
			l.run.say("%s: life %d: %s", l.name, l.lives, note)
		}
		if err == nil && l.last.Lost+l.last.Wrong > 0 && plan.Write {
			err = fmt.Errorf("%d lost, %d wrong; the disk as the cut left it is %s", l.last.Lost, l.last.Wrong, l.kept())
		}
		if err == nil && plan.Write && !v.begun {
			err = fmt.Errorf("the store does not open, though it had promised nothing yet: %s", v.report.dead)
		}
	}
	if err != nil {
		return v, fmt.Errorf("life %d: %w\nplan %s\n%s\n%s", l.lives, err, plan.Encode(), strings.Join(v.lines, "\n"), errs.String())
	}
	return v, nil
}

// hear takes in a line of the guest.
func (l *lane) hear(v *life, plan Plan, text string, begin chan struct{}, dead <-chan struct{}) {
	late := false
	select {
	case <-dead:
		late = true
	default:
	}
	known, err := v.report.line(text)
	switch {
	case err != nil:
		v.err = err
		return
	case known && (v.report.complete || v.report.dead != ""):
		// Now, before this life writes: what comes later was not there to be found.
		l.last = l.ledger.check(v.report)
		l.ledger.settle(v.report, plan.Round-1)
		if !plan.Write || v.report.dead != "" || l.last.Lost+l.last.Wrong > 0 {
			l.disk.Stop() // there is nothing to wait for
		}
	}
	if known {
		return
	}
	word, rest, _ := strings.Cut(text, " ")
	var writer, from, to int
	switch word {
	case "begin":
		l.ledger.begin(plan.Round)
		v.begun = true
		close(begin)
	case "acked":
		if _, err := fmt.Sscanf(rest, "%d %d %d", &writer, &from, &to); err != nil || writer < 0 || writer >= writers {
			v.err = fmt.Errorf("the guest's line %q", text)
			return
		}
		p := l.ledger.rounds[plan.Round]
		if p == nil || p.said[writer] != from {
			v.err = fmt.Errorf("the guest's line %q: acknowledged out of turn", text)
			return
		}
		p.said[writer] = to
		if l.counts(late, l.ledger.strict()) {
			p.acked[writer] = to
			p.when[writer] = append(p.when[writer], ack{from, to, time.Now()})
		}
	case "pinned":
		if _, err := fmt.Sscanf(rest, "%d %d", &writer, &to); err != nil || writer < 0 || writer >= writers || l.ledger.rounds[plan.Round] == nil {
			v.err = fmt.Errorf("the guest's line %q", text)
			return
		}
		p := l.ledger.rounds[plan.Round]
		p.flushed(writer, late)
		if counts := l.counts(late, !l.ledger.lax()); counts && p.pinned[writer] != to {
			v.err = fmt.Errorf("the guest's line %q: acknowledged out of turn", text)
			return
		} else if counts {
			p.pinned[writer] = to + 1
			p.pins[writer] = append(p.pins[writer], time.Now())
		}
	case "flushing", "synced", "tick", "late", "reclaimed", "adding", "added", "unpinning":
		p := l.ledger.rounds[plan.Round]
		if p == nil {
			v.err = fmt.Errorf("the guest's line %q: it does not write", text)
			return
		}
		if err := p.hear(word, rest, l.counts(late, true), late); err != nil {
			v.err = fmt.Errorf("the guest's line %q: %w", text, err)
		}
	default:
		v.lines = append(v.lines, fmt.Sprintf("%.1f s: %s", time.Since(v.booted).Seconds(), text))
	}
}

// counts says whether an acknowledgement counts. One that comes after the cut counts where Basalt promised: its disk is silent by then, so
// whatever it acknowledges it must have flushed before. The others get the benefit of the doubt.
func (l *lane) counts(late, durable bool) bool {
	return !late || durable && l.promises()
}

// promises says whether this store on this disk has to keep what it acknowledges.
func (l *lane) promises() bool { return l.plan.ours() && !l.plan.Control && !l.plan.Lies }

// keep copies the disk, so that a failure can be looked into; kept is where.
func (l *lane) keep() error {
	out, err := exec.Command("cp", "--sparse=always", "--reflink=auto", filepath.Join(l.run.Dir, l.name+".disk"), l.kept()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func (l *lane) kept() string { return filepath.Join(l.run.Dir, l.name+".cut") }

// end kills the guest's qemu, which the script with this pid has started; the script then tidies up and ends; false: it had ended.
func (l *lane) end(script int) (killed bool) {
	for _, pid := range descendants(script) {
		if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); bytes.Contains(name, []byte("qemu-system")) && bytes.Contains(name, []byte(l.run.Dir)) {
			killed = syscall.Kill(pid, syscall.SIGKILL) == nil
		}
	}
	return killed
}

func descendants(pid int) (all []int) {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, file := range threads {
		text, _ := os.ReadFile(file)
		for _, field := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(field); err == nil {
				all = append(append(all, child), descendants(child)...)
			}
		}
	}
	return all
}
