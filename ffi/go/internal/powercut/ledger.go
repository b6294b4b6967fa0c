package powercut

// The checker: what a store had acknowledged before the cuts, against what it has after. It sits on the host and knows the bytes from the
// seed; of the guest it believes what was read, never what should have been.

import (
	"crypto/sha256"
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
}

// promises is what was acknowledged in one round.
type promises struct {
	acked  [writers]int // all blocks below
	said   [writers]int // the same with what came too late to count
	when   [writers][]ack
	pinned [writers]int
	cut    time.Time
}

type ack struct {
	from, to int
	at       time.Time
}

func newLedger(plan Plan) *ledger {
	return &ledger{plan: plan, rounds: map[int]*promises{}, known: map[string]name{}, seen: map[name]int{}, metas: map[string]int{}}
}

// strict says whether a block is promised by its own acknowledgement, not only by metadata that came after it.
func (l *ledger) strict() bool { return l.plan.Durability != "ordered" }

// begin opens the book of a round.
func (l *ledger) begin(round int) *promises {
	if l.rounds[round] == nil {
		l.rounds[round] = &promises{}
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

// passing says whether the block may have been deleted again.
func (l *ledger) passing(n name) bool { return l.plan.Store == Basalt && n.passing() }

// report is what a guest found in its store.
type report struct {
	blocks       map[string]found
	metas        map[string]string
	counted      bool
	count, bytes uint64
	dead         string // the store does not open
	complete     bool
}

type found struct {
	digest string
	size   uint64
	err    string
}

func newReport() *report { return &report{blocks: map[string]found{}, metas: map[string]string{}} }

// line takes in a line of the guest; false: it is none of a report's.
func (r *report) line(text string) (bool, error) {
	word, rest, _ := strings.Cut(text, " ")
	switch word {
	case "block":
		fields := strings.SplitN(rest, " ", 3)
		if len(fields) != 3 {
			return true, fmt.Errorf("the guest's line %q", text)
		}
		if fields[1] == "error" {
			r.blocks[fields[0]] = found{err: fields[2]}
			return true, nil
		}
		size, err := strconv.ParseUint(fields[2], 10, 64)
		r.blocks[fields[0]] = found{digest: fields[1], size: size}
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
	need := map[name]string{} // what must be there, and why
	for round, p := range l.rounds {
		for w := range writers {
			for i := range p.acked[w] {
				if n := (name{round, w, i}); l.strict() && !l.passing(n) {
					need[n] = "it was acknowledged"
				}
			}
			for n := range p.pinned[w] {
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
			need[name{round, writer, number}] = key + " is there"
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
				if n := (name{round, w, i}); !l.passing(n) {
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
			if round > over {
				need[n] = "it was there after an earlier cut, and metadata was written since"
			}
		}
	}
	for key := range l.metas {
		if _, there := r.metas[key]; !there {
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
						if _, there := r.blocks[l.key(n)]; !there && need[n] == "" && !l.passing(n) {
							v.Unpinned++
							v.Oldest = max(v.Oldest, p.cut.Sub(a.at))
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

// settle remembers what a report showed, up to a round: it may not go again.
func (l *ledger) settle(r *report, last int) {
	for key, block := range r.blocks {
		if n, known := l.known[key]; known && block.err == "" && !l.passing(n) {
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
