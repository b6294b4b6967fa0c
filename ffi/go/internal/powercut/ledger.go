package powercut

// The checker: what a store had acknowledged before the cuts, against what it has after. It sits on the host and knows the bytes from the
// seed; of the guest it believes what was read, never what should have been.

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// ledger is what one store on one disk promised, over all its lives.
type ledger struct {
	plan   Plan // of the store; the rounds are each their own
	rounds map[int]*promises
	known  map[string]name // by key, all blocks that may have been written
	seen   map[name]int    // blocks that a report had, and the last round that was over then
	metas  map[string]int  // other keys that a report had, likewise

	pinSeen map[string]name // of Kubo: files that a report had pinned, by CID
}

// promises is what was acknowledged in one round.
type promises struct {
	round  int
	acked  [writers]int // all blocks below
	said   [writers]int // the same with what came too late to count
	when   [writers][]ack
	pinned [writers]int
	pins   [writers][]time.Time // when each was
	cut    time.Time

	synced   bool         // a Sync has returned
	ackedBy  [writers]int // what was acknowledged before one began that has returned
	pinnedBy [writers]int
	gone     [writers]int // the same of deletions: all fleeting blocks below

	flush    time.Duration // the longest that a call has taken that flushes
	late     time.Duration // the longest that one of the guest's timers was late
	ticks    []tick
	flushing [writers]time.Time

	segments, freed int // given back by reclaim: segments and bytes

	files map[name]*file // of Kubo
}

// file is an `ipfs add`.
type file struct {
	id        string // once it has returned
	unpinning bool   // was asked for, so it may be there or not
}

// tick is what the guest's clock said when.
type tick struct {
	host  time.Time
	guest time.Duration
}

// delay is the bound of `ordered` and `relaxed`: a flush begins within it. What is older than this, how late the guest's timers are and
// how long a flush takes there, has to be durable.
const delay = time.Second

func (p *promises) bound() time.Duration {
	longest := p.flush
	for _, began := range p.flushing {
		if !began.IsZero() && p.cut.After(began) {
			longest = max(longest, p.cut.Sub(began)) // one that was under way
		}
	}
	return delay + longest + p.late
}

// age is how long before the cut something was acknowledged, at the least: by the host's clock or the guest's, which may stand still for a while
// or jump, whichever is less.
func (p *promises) age(at time.Time) time.Duration {
	age := p.cut.Sub(at)
	if len(p.ticks) == 0 {
		return age
	}
	first, last := time.Duration(-1), time.Duration(-1)
	for _, t := range p.ticks {
		if first < 0 && !t.host.Before(at) {
			first = t.guest
		}
		if !t.host.After(p.cut) {
			last = t.guest
		}
	}
	if first < 0 || last < first {
		return 0
	}
	return min(age, last-first)
}

type ack struct {
	from, to int
	at       time.Time
}

func newLedger(plan Plan) *ledger {
	return &ledger{plan: plan, rounds: map[int]*promises{}, known: map[string]name{}, seen: map[name]int{}, metas: map[string]int{}, pinSeen: map[string]name{}}
}

// strict says whether a block is promised by its own acknowledgement, not only by metadata that came after it.
func (l *ledger) strict() bool {
	return l.plan.Durability != "ordered" && l.plan.Durability != "relaxed"
}

// lax says whether metadata too is only promised at Sync and after the bound.
func (l *ledger) lax() bool { return l.plan.Durability == "relaxed" }

// begin opens the book of a round.
func (l *ledger) begin(round int) *promises {
	if l.rounds[round] == nil {
		l.rounds[round] = &promises{round: round, files: map[name]*file{}}
	}
	return l.rounds[round]
}

// close ends a round's book: the blocks that may be there from now on are those that were acknowledged and the next few of each writer.
func (l *ledger) close(round int, cut time.Time) {
	const underWay = 8
	p := l.rounds[round]
	p.cut = cut
	for w := range writers {
		for i := range max(p.acked[w], p.said[w]) + underWay {
			n := name{round, w, i}
			l.known[l.key(n)] = n
		}
	}
}

func (l *ledger) key(n name) string {
	return blocksPrefix.Child(blockKey(sha256.Sum256(content(l.plan.Seed, n)))).String()
}

// fleeting says whether the block may have been deleted again.
func (l *ledger) fleeting(n name) bool { return l.plan.Store == Basalt && n.fleeting() }

// report is what a guest found in its store.
type report struct {
	blocks       map[string]found
	metas        map[string]string
	counted      bool
	count, bytes uint64
	dead         string // the store does not open
	complete     bool

	// Of Kubo.
	files               map[string]found  // what is pinned, by CID
	rotten              map[string]string // blocks that can't be read, and why
	listed, listedBytes uint64
}

type found struct {
	digest string
	size   uint64
	err    string
}

func newReport() *report {
	return &report{blocks: map[string]found{}, metas: map[string]string{}, files: map[string]found{}, rotten: map[string]string{}}
}

// line takes in a line of the guest; false: it is none of a report's.
func (r *report) line(text string) (bool, error) {
	word, rest, _ := strings.Cut(text, " ")
	switch word {
	case "block", "file":
		all := r.blocks
		if word == "file" {
			all = r.files
		}
		fields := strings.SplitN(rest, " ", 3)
		if len(fields) != 3 {
			return true, fmt.Errorf("the guest's line %q", text)
		}
		if fields[1] == "error" {
			all[fields[0]] = found{err: fields[2]}
			return true, nil
		}
		size, err := strconv.ParseUint(fields[2], 10, 64)
		all[fields[0]] = found{digest: fields[1], size: size}
		return true, err
	case "rotten":
		key, why, _ := strings.Cut(rest, " ")
		r.rotten[key] = why
	case "listed":
		_, err := fmt.Sscanf(rest, "%d %d", &r.listed, &r.listedBytes)
		return true, err
	case "meta":
		key, value, _ := strings.Cut(rest, " ")
		r.metas[key] = value
	case "count":
		r.counted = true
		_, err := fmt.Sscanf(rest, "%d %d", &r.count, &r.bytes)
		return true, err
	case "reported":
		r.complete = true
	case "dead":
		r.dead = rest
	default:
		return false, nil
	}
	return true, nil
}

// Verdict is what a check found.
type Verdict struct {
	Acknowledged int           // blocks and pins that were promised
	Lost         int           // of them
	Wrong        int           // blocks with other bytes than written, that can't be read or nobody wrote; counts that are not so
	Unpinned     int           // `ordered`: blocks that were acknowledged, lost, and that no metadata stands for, as is allowed
	Oldest       time.Duration // the longest that one of those had been acknowledged before the cut
	Notes        []string
}

func (v *Verdict) note(format string, args ...any) {
	const notesMax = 20
	if len(v.Notes) < notesMax {
		v.Notes = append(v.Notes, fmt.Sprintf(format, args...))
	}
}

// check compares a report with all that was promised.
func (l *ledger) check(r *report) Verdict {
	var v Verdict
	if r.dead != "" {
		v.note("the store does not open: %s", r.dead)
	}
	if l.plan.files() {
		l.checkFiles(r, &v)
		return v
	}
	need := map[name]string{} // what must be there, and why
	for round, p := range l.rounds {
		for w := range writers {
			for i := range max(p.acked[w], p.ackedBy[w]) {
				n := name{round, w, i}
				if why := l.durable(p, n); why != "" && !l.fleeting(n) {
					need[n] = why
				}
			}
			for n := range max(p.pinned[w], p.pinnedBy[w]) {
				if l.lax() && n >= p.pinnedBy[w] && p.age(p.pins[w][n]) <= p.bound() {
					continue
				}
				v.Acknowledged++
				if _, there := r.metas[pinKey(round, w, n).String()]; !there {
					v.Lost++
					v.note("%s is lost: it was acknowledged", pinKey(round, w, n))
				}
			}
		}
	}
	// Durable metadata stands for the blocks acknowledged before it, and for all that the store had shown before.
	began := map[int]bool{}
	for key, value := range r.metas {
		parts := strings.Split(strings.TrimPrefix(key, "/"), "/")
		if len(parts) != 5 || parts[0] != "pins" {
			continue // the store's own, or Kubo's
		}
		round, errA := strconv.Atoi(parts[2])
		writer, errB := strconv.Atoi(parts[3])
		number, errC := strconv.Atoi(parts[4])
		if errA != nil || errB != nil || errC != nil || l.rounds[round] == nil {
			v.Wrong++
			v.note("%s was written by nobody", key)
			continue
		}
		began[round] = true
		if parts[1] == "own" {
			// No order between the two in `relaxed`, but of what is durable a block goes after its pin.
			n := name{round, writer, number}
			if !l.lax() || l.durable(l.rounds[round], n) != "" {
				need[n] = key + " is there"
			}
			if number < l.unpinnedBelow(l.rounds[round], writer) {
				v.Wrong++
				v.note("%s is there: its removal was acknowledged", key)
			}
			continue
		}
		if l.lax() {
			continue
		}
		counts := strings.Fields(value)
		if len(counts) != writers {
			v.Wrong++
			v.note("%s reads as %q", key, value)
			continue
		}
		for w, text := range counts {
			upTo, err := strconv.Atoi(text)
			if err != nil {
				v.Wrong++
				v.note("%s reads as %q", key, value)
			}
			for i := range upTo {
				if n := (name{round, w, i}); !l.fleeting(n) {
					need[n] = key + " is there"
				}
			}
		}
	}
	for n, over := range l.seen {
		if l.strict() {
			need[n] = "it was there after an earlier cut"
			continue
		}
		for round := range began {
			if round > over && !l.lax() {
				need[n] = "it was there after an earlier cut, and metadata was written since"
			}
		}
		if l.syncedSince(over) {
			need[n] = "it was there after an earlier cut, and a Sync has returned since"
		}
	}
	for key, over := range l.metas {
		if _, there := r.metas[key]; !there && (!l.lax() || l.syncedSince(over)) {
			v.Lost++
			v.note("%s is lost: it was there after an earlier cut", key)
		}
	}

	for n, why := range need {
		v.Acknowledged++
		block, there := r.blocks[l.key(n)]
		switch {
		case !there:
			v.Lost++
			v.note("block %s %s is lost: %s", n, l.key(n), why)
		case block.err != "":
			v.Lost++
			v.note("block %s can't be read: %s; %s", n, block.err, why)
		}
	}
	if !l.strict() {
		for round, p := range l.rounds {
			for w := range writers {
				for _, a := range p.when[w] {
					for i := a.from; i < a.to; i++ {
						n := name{round, w, i}
						if _, there := r.blocks[l.key(n)]; !there && need[n] == "" && !l.fleeting(n) {
							v.Unpinned++
							v.Oldest = max(v.Oldest, p.age(a.at))
						}
					}
				}
			}
		}
	}
	bytesInAll := uint64(0)
	for key, block := range r.blocks {
		bytesInAll += block.size
		n, known := l.known[key]
		switch {
		case !known:
			v.Wrong++
			v.note("%s was written by nobody", key)
		case block.err != "":
			v.Wrong++
			v.note("block %s is there and can't be read: %s", n, block.err)
		case l.fleeting(n) && n.index < l.deletedBelow(l.rounds[n.round], n.writer):
			v.Wrong++
			v.note("block %s is there again: it was deleted before a Sync that returned, or longer ago than the bound", n)
		default:
			data := content(l.plan.Seed, n)
			if block.digest != fmt.Sprintf("%x", sha256.Sum256(data)) || block.size != uint64(len(data)) {
				v.Wrong++
				v.note("block %s has other bytes: SHA-256 %s, %d bytes, not %d", n, block.digest, block.size, len(data))
			}
		}
	}
	if r.counted && (r.count != uint64(len(r.blocks)) || r.bytes != bytesInAll) {
		v.Wrong++
		v.note("it counts %d blocks of %d bytes, and has %d of %d", r.count, r.bytes, len(r.blocks), bytesInAll)
	}
	return v
}

// durable says why a block of a round has to be there whatever metadata says, or nothing.
func (l *ledger) durable(p *promises, n name) string {
	if n.index < p.ackedBy[n.writer] {
		return "it was acknowledged before a Sync that returned"
	}
	if l.strict() && n.index < p.acked[n.writer] {
		return "it was acknowledged"
	}
	if l.strict() {
		return ""
	}
	for _, a := range p.when[n.writer] {
		if a.from <= n.index && n.index < a.to && p.age(a.at) > p.bound() {
			return fmt.Sprintf("it was acknowledged %.2f s before the cut; the bound is 1 s, and here %.2f s for the longest flush and %.2f s for late timers",
				p.age(a.at).Seconds(), (p.bound() - delay - p.late).Seconds(), p.late.Seconds())
		}
	}
	return ""
}

// deletedBelow says below which index a writer's fleeting blocks must be gone. A writer deletes before it goes on, so each acknowledgement
// says that the deletions before it have returned; a deletion is durable at Sync and after the bound.
func (l *ledger) deletedBelow(p *promises, writer int) int {
	below := p.gone[writer]
	for _, a := range p.when[writer] {
		if p.age(a.at) > p.bound() {
			below = max(below, a.from-later)
		}
	}
	return below
}

// unpinnedBelow is the same for their pins, whose removal is metadata.
func (l *ledger) unpinnedBelow(p *promises, writer int) int {
	below := l.deletedBelow(p, writer)
	if all := p.when[writer]; !l.lax() && len(all) > 0 {
		below = max(below, all[len(all)-1].from-later)
	}
	return below
}

func (l *ledger) syncedSince(round int) bool {
	for r, p := range l.rounds {
		if r > round && p.synced {
			return true
		}
	}
	return false
}

// emptyFolder is pinned by `ipfs init`.
const emptyFolder = "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn"

// checkFiles compares what Kubo has pinned with what it had acknowledged.
func (l *ledger) checkFiles(r *report, v *Verdict) {
	digests := map[string]name{}
	for _, p := range l.rounds {
		for n, f := range p.files {
			digests[fmt.Sprintf("%x", sha256.Sum256(content(l.plan.Seed, n)))] = n
			if f.id == "" || f.unpinning {
				continue
			}
			v.Acknowledged++
			if got, there := r.files[f.id]; !there {
				v.Lost++
				v.note("file %s %s is lost: its add was acknowledged, and it is not pinned", n, f.id)
			} else if got.err == "" && got.digest != fmt.Sprintf("%x", sha256.Sum256(content(l.plan.Seed, n))) {
				v.Wrong++
				v.note("file %s %s has other bytes: SHA-256 %s, %d bytes", n, f.id, got.digest, got.size)
			}
		}
	}
	for id, got := range r.files {
		n, known := digests[got.digest]
		switch {
		case id == emptyFolder:
		case got.err != "":
			v.Lost++
			v.note("%s is pinned and can't be read: %s", id, got.err)
		case !known:
			v.Wrong++
			v.note("%s is pinned, and its bytes were added by nobody", id)
		case l.pinSeen[id] == (name{}):
			l.pinSeen[id] = n
		}
	}
	for id, n := range l.pinSeen {
		if _, there := r.files[id]; !there && !l.rounds[n.round].files[n].unpinning {
			v.Lost++
			v.note("file %s %s is lost: it was pinned after an earlier cut", n, id)
		}
	}
	for key, why := range r.rotten {
		v.Wrong++
		v.note("block %s: %s", key, why)
	}
	if r.counted && (r.count != r.listed || r.bytes != r.listedBytes) {
		v.Wrong++
		v.note("it counts %d blocks of %d bytes, and lists %d of %d", r.count, r.bytes, r.listed, r.listedBytes)
	}
}

// flushed ends what "flushing" began.
func (p *promises) flushed(writer int, late bool) {
	if began := p.flushing[writer]; !began.IsZero() && !late {
		p.flush = max(p.flush, time.Since(began))
	}
	p.flushing[writer] = time.Time{}
}

// hear takes in what a guest that writes says beside its acknowledgements. Whether a promise counts, and whether it came after the cut.
func (p *promises) hear(word, rest string, counts, late bool) error {
	fields := strings.Fields(rest)
	var numbers []int
	for i, field := range fields {
		if word == "synced" && i > 0 || word == "added" && i == 2 {
			continue
		}
		number, err := strconv.Atoi(field)
		if err != nil {
			return err
		}
		numbers = append(numbers, number)
	}
	wants := map[string]int{"flushing": 1, "synced": 4, "tick": 1, "late": 1, "reclaimed": 2, "adding": 2, "added": 3, "unpinning": 2}[word]
	if len(fields) != wants {
		return fmt.Errorf("%d words, not %d", len(fields), wants)
	}
	writer := numbers[0]
	if word != "tick" && word != "late" && word != "reclaimed" && (writer < 0 || writer >= writers) {
		return fmt.Errorf("no writer %d", writer)
	}
	switch word {
	case "flushing":
		p.flushing[writer] = time.Now()
	case "synced":
		p.flushed(writer, late)
		if !counts {
			return nil
		}
		p.synced = true
		for i, into := range []*[writers]int{&p.ackedBy, &p.pinnedBy, &p.gone} {
			all := strings.Split(fields[1+i], ",")
			if len(all) != writers {
				return fmt.Errorf("%d numbers, not %d", len(all), writers)
			}
			for w, text := range all {
				number, err := strconv.Atoi(text)
				if err != nil {
					return err
				}
				into[w] = max(into[w], number)
			}
		}
	case "tick":
		p.ticks = append(p.ticks, tick{time.Now(), time.Duration(numbers[0]) * time.Millisecond})
	case "late":
		if !late { // without a disk everything is
			p.late = max(p.late, time.Duration(numbers[0])*time.Millisecond)
		}
	case "reclaimed":
		p.segments, p.freed = numbers[0], numbers[1]
	case "adding":
		p.files[name{p.round, writer, numbers[1]}] = &file{}
	case "added", "unpinning":
		f := p.files[name{p.round, writer, numbers[1]}]
		if f == nil {
			return errors.New("that add never began")
		}
		if word == "unpinning" {
			f.unpinning = true
		} else if counts {
			f.id = fields[2]
		}
	}
	return nil
}

// settle remembers what a report showed, up to a round: it may not go again.
func (l *ledger) settle(r *report, last int) {
	for key, block := range r.blocks {
		if n, known := l.known[key]; known && block.err == "" && !l.fleeting(n) {
			if _, before := l.seen[n]; !before {
				l.seen[n] = last
			}
		}
	}
	for key := range r.metas {
		if strings.HasPrefix(key, "/pins/all/") {
			l.metas[key] = last
		}
	}
}
