package powercut

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"
)

// store is what a guest would find: blocks up to an index of writer 0 of round 0, and metadata.
type store struct {
	l *ledger
	r *report
}

func written(t *testing.T, durability string, acked, stored int) *store {
	t.Helper()
	l := newLedger(Plan{Store: Basalt, Durability: durability, Seed: 5})
	p := l.begin(0)
	p.acked[0] = acked
	p.when[0] = []ack{{0, acked, time.Unix(100, 0)}}
	l.close(0, time.Unix(101, 0))
	s := &store{l, newReport()}
	for i := range stored {
		s.block(name{0, 0, i})
	}
	return s
}

func (s *store) hear(format string, args ...any) {
	if known, err := s.r.line(fmt.Sprintf(format, args...)); !known || err != nil {
		panic(fmt.Sprint(known, err))
	}
}

// promise is what the guest says while it writes, a second before the cut.
func (s *store) promise(word, rest string) {
	p := s.l.rounds[0]
	if word == "pinned" {
		var writer, n int
		if _, err := fmt.Sscanf(rest, "%d %d", &writer, &n); err != nil {
			panic(err)
		}
		p.pinned[writer] = n + 1
		p.pins[writer] = append(p.pins[writer], time.Unix(100, 0))
		return
	}
	if err := p.hear(word, rest, true, false); err != nil {
		panic(err)
	}
}

func (s *store) block(n name) {
	data := content(s.l.plan.Seed, n)
	s.hear("block %s %x %d", s.l.key(n), sha256.Sum256(data), len(data))
}

func (s *store) wants(t *testing.T, lost, wrong int) Verdict {
	t.Helper()
	v := s.l.check(s.r)
	if v.Lost != lost || v.Wrong != wrong {
		t.Errorf("%d lost, %d wrong, want %d and %d: %s", v.Lost, v.Wrong, lost, wrong, strings.Join(v.Notes, "; "))
	}
	return v
}

func TestWhatWasAcknowledgedMustBeThere(t *testing.T) {
	if v := written(t, "strict", 20, 20).wants(t, 0, 0); v.Acknowledged != 13 {
		t.Errorf("%d acknowledged, want 20 less the 7 that may be deleted", v.Acknowledged)
	}
	written(t, "strict", 20, 22).wants(t, 0, 0) // two more were under way
	written(t, "strict", 20, 19).wants(t, 1, 0)
	written(t, "strict", 20, 0).wants(t, 13, 0)
	dead := written(t, "strict", 20, 0)
	dead.hear("dead it does not open")
	dead.wants(t, 13, 0)
}

func TestABlockThatIsThereIsWhole(t *testing.T) {
	s := written(t, "strict", 4, 4)
	s.hear("block %s %x 5", s.l.key(name{0, 0, 2}), sha256.Sum256([]byte("other")))
	s.wants(t, 0, 1)
	s = written(t, "strict", 4, 4)
	s.hear("block %s error rotten", s.l.key(name{0, 0, 2}))
	s.wants(t, 1, 1)
	s = written(t, "strict", 4, 5)
	s.hear("block %s error rotten", s.l.key(name{0, 0, 4})) // never acknowledged, but a store that has it must be able to read it
	s.wants(t, 0, 1)
	s = written(t, "strict", 4, 4)
	s.block(name{3, 1, 5})
	s.wants(t, 0, 1) // nobody wrote that
}

func TestCountsMustBeExact(t *testing.T) {
	bytes := 0
	for i := range 4 {
		bytes += len(content(5, name{0, 0, i}))
	}
	for _, c := range []struct{ blocks, bytes, wrong int }{{4, bytes, 0}, {5, bytes, 1}, {4, bytes + 1, 1}} {
		s := written(t, "strict", 4, 4)
		s.hear("count %d %d", c.blocks, c.bytes)
		s.wants(t, 0, c.wrong)
	}
}

func TestOrderedMayLoseOnlyWhatNoMetadataStandsFor(t *testing.T) {
	if v := written(t, "ordered", 20, 10).wants(t, 0, 0); v.Unpinned != 7 || v.Oldest != time.Second {
		t.Errorf("%+v, want 7 blocks that went, acknowledged a second before the cut", v)
	}
	s := written(t, "ordered", 20, 10)
	s.hear("meta %s 10 0 0 0 ", pinKey(0, 0, 0))
	s.wants(t, 0, 0)
	s.r.metas[pinKey(0, 0, 0).String()] = "12 0 0 0"
	s.wants(t, 2, 0)
	s = written(t, "ordered", 20, 10)
	s.hear("meta %s ", ownPin(name{0, 0, 15}))
	s.wants(t, 1, 0) // its pin is there, so must it be
}

func TestAcknowledgedMetadataMustBeThere(t *testing.T) {
	for _, durability := range []string{"strict", "ordered"} {
		s := written(t, durability, 4, 4)
		s.promise("pinned", "2 0")
		s.wants(t, 1, 0)
		s.hear("meta %s 4 0 0 0", pinKey(0, 2, 0))
		s.wants(t, 0, 0)
	}
}

func TestWhatWasThereAfterACutStays(t *testing.T) {
	s := written(t, "strict", 4, 5)
	s.l.settle(s.r, 0)
	delete(s.r.blocks, s.l.key(name{0, 0, 4}))
	s.wants(t, 1, 0)

	s = written(t, "ordered", 4, 5)
	s.l.settle(s.r, 0)
	s.l.begin(1)
	delete(s.r.blocks, s.l.key(name{0, 0, 4}))
	s.wants(t, 0, 0)
	s.hear("meta %s 0 0 0 0", pinKey(1, 0, 0)) // durable, so all that was there before it is
	s.wants(t, 1, 0)
}

// What neither metadata nor a Sync stands for may go in `ordered` and `relaxed`, unless it is older than the bound.
func TestWhatIsOlderThanTheBoundMustBeThere(t *testing.T) {
	for _, durability := range []string{"ordered", "relaxed"} {
		for _, c := range []struct {
			age         time.Duration
			flush, late time.Duration
			lost        int
		}{
			{900 * time.Millisecond, 0, 0, 0}, {1100 * time.Millisecond, 0, 0, 7},
			{1100 * time.Millisecond, 200 * time.Millisecond, 0, 0}, {1300 * time.Millisecond, 200 * time.Millisecond, 0, 7},
			{1300 * time.Millisecond, 0, 400 * time.Millisecond, 0}, {1500 * time.Millisecond, 0, 400 * time.Millisecond, 7},
		} {
			s := written(t, durability, 20, 10)
			s.l.rounds[0].cut = time.Unix(100, 0).Add(c.age)
			s.l.rounds[0].flush, s.l.rounds[0].late = c.flush, c.late
			s.wants(t, c.lost, 0)
		}
		s := written(t, durability, 20, 10)
		s.l.rounds[0].cut = time.Unix(103, 0)
		s.l.rounds[0].flushing[3] = time.Unix(100, 0) // for 3 s, and not over
		s.wants(t, 0, 0)
		s.l.rounds[0].flushing[3] = time.Time{}
		s.wants(t, 7, 0)
		// The guest's clock had moved on by half a second only: to it, that was just now.
		s.l.rounds[0].ticks = []tick{{time.Unix(99, 0), 0}, {time.Unix(101, 0), 200 * time.Millisecond}, {time.Unix(102, 0), 700 * time.Millisecond}}
		s.wants(t, 0, 0)
		s.l.rounds[0].ticks[2].guest = 3 * time.Second
		s.wants(t, 7, 0)
	}
}

func TestWhatASyncStandsForMustBeThere(t *testing.T) {
	for _, durability := range []string{"ordered", "relaxed"} {
		s := written(t, durability, 20, 10)
		s.promise("synced", "1 10,0,0,0 0,0,0,0 0,0,0,0")
		s.wants(t, 0, 0)
		s.promise("synced", "2 12,0,0,0 0,0,0,0 0,0,0,0")
		s.wants(t, 2, 0)
	}
	s := written(t, "relaxed", 4, 4)
	s.promise("pinned", "2 0")
	s.promise("pinned", "2 1")
	s.wants(t, 0, 0) // metadata too is promised only by a Sync, or the bound
	s.promise("synced", "1 0,0,0,0 0,0,1,0 0,0,0,0")
	s.wants(t, 1, 0)
	s.l.rounds[0].cut = time.Unix(102, 0)
	s.wants(t, 2, 0)
}

func TestRelaxedHasNoOrderButADurableBlockOutlivesItsPin(t *testing.T) {
	s := written(t, "relaxed", 20, 10)
	s.hear("meta %s 20 0 0 0", pinKey(0, 0, 0))
	s.hear("meta %s ", ownPin(name{0, 0, 15}))
	s.wants(t, 0, 0)
	s.promise("synced", "1 16,0,0,0 0,0,0,0 0,0,0,0")
	s.wants(t, 5, 0) // four blocks, and the one with a pin of its own
}

func TestWhatWasDeletedBeforeASyncOrTheBoundIsGone(t *testing.T) {
	for _, durability := range []string{"strict", "ordered", "relaxed"} {
		s := written(t, durability, 20, 20)
		s.wants(t, 0, 0) // blocks 1, 5, 7, ... may be deleted, or not yet
		s.promise("synced", "0 0,0,0,0 0,0,0,0 6,0,0,0")
		s.wants(t, 0, 2)
		s = written(t, durability, 20, 20)
		s.l.rounds[0].when[0] = []ack{{0, 19, time.Unix(100, 0)}, {19, 20, time.Unix(100, 0)}}
		s.l.rounds[0].cut = time.Unix(102, 0)
		s.wants(t, 0, 4) // 1, 5, 7 and 9: before 19 was put
	}
}

func TestARemovedPinStaysRemoved(t *testing.T) {
	for _, c := range []struct {
		durability string
		wrong      int
	}{{"strict", 1}, {"ordered", 1}, {"relaxed", 0}} {
		s := written(t, c.durability, 20, 20)
		s.l.rounds[0].when[0] = []ack{{0, 16, time.Unix(100, 0)}, {16, 20, time.Unix(100, 0)}}
		s.hear("meta %s ", ownPin(name{0, 0, 7}))
		s.wants(t, 0, c.wrong)
	}
}

func TestAKubosFilesMustBeThere(t *testing.T) {
	l := newLedger(Plan{Store: Kubo, Durability: "ordered", Seed: 5})
	l.begin(0)
	s := &store{l, newReport()}
	sum := func(n name) string { return fmt.Sprintf("%x", sha256.Sum256(content(5, n))) }
	s.promise("adding", "0 0")
	s.wants(t, 0, 0)
	s.promise("added", "0 0 one")
	s.promise("adding", "0 1")
	s.promise("added", "0 1 two")
	s.wants(t, 2, 0)
	s.hear("file one %s 5", sum(name{0, 0, 0}))
	s.hear("file two error no block")
	s.wants(t, 1, 0)
	s.hear("file two %s 5", sum(name{0, 0, 0}))
	s.wants(t, 0, 1) // other bytes
	s.hear("file two %s 5", sum(name{0, 0, 1}))
	s.wants(t, 0, 0)
	s.hear("file three %s 5", sum(name{0, 0, 2}))
	s.wants(t, 0, 1) // nobody added that
	delete(s.r.files, "three")
	delete(s.r.files, "two")
	s.promise("unpinning", "0 1")
	s.wants(t, 0, 0)
	s.hear("count 3 100")
	s.hear("listed 3 99")
	s.wants(t, 0, 1)
	s.hear("listed 3 100")
	s.hear("rotten key it has another hash")
	s.wants(t, 0, 1)
}

// What was never acknowledged may be there or not; once a look after a cut had it, it stays.
func TestAKubosFileThatWasSeenStays(t *testing.T) {
	l := newLedger(Plan{Store: Kubo, Durability: "ordered", Seed: 5})
	l.begin(0)
	s := &store{l, newReport()}
	s.promise("adding", "0 0")
	s.hear("file one %x 5", sha256.Sum256(content(5, name{0, 0, 0})))
	s.wants(t, 0, 0)
	delete(s.r.files, "one")
	s.wants(t, 1, 0)
}

func TestLinesThatMeanNothingAreRefused(t *testing.T) {
	p := newLedger(Plan{Store: Kubo, Seed: 5}).begin(0)
	for _, line := range []string{"flushing", "flushing 4", "flushing -1", "synced 0 1,2,3 0,0,0,0 0,0,0,0", "synced 0 a,b,c,d 0,0,0,0 0,0,0,0", "tick x", "late", "added 0 3 cid",
		"unpinning 0 3", "reclaimed 1"} {
		word, rest, _ := strings.Cut(line, " ")
		if err := p.hear(word, rest, true, false); err == nil {
			t.Errorf("%q was taken in", line)
		}
	}
}
