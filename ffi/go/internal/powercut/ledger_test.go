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
	if v := written(t, "strict", 20, 20).wants(t, 0, 0); v.Acknowledged != 18 {
		t.Errorf("%d acknowledged, want 20 less the 2 that may be deleted", v.Acknowledged)
	}
	written(t, "strict", 20, 22).wants(t, 0, 0) // two more were under way
	written(t, "strict", 20, 19).wants(t, 1, 0)
	written(t, "strict", 20, 0).wants(t, 18, 0)
	dead := written(t, "strict", 20, 0)
	dead.hear("dead it does not open")
	dead.wants(t, 18, 0)
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
	if v := written(t, "ordered", 20, 10).wants(t, 0, 0); v.Unpinned != 9 || v.Oldest != time.Second {
		t.Errorf("%+v, want 9 blocks that went, acknowledged a second before the cut", v)
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
		s.l.rounds[0].pinned[2] = 1
		s.wants(t, 1, 0)
		s.hear("meta %s 4 0 0 0", pinKey(0, 2, 0))
		s.wants(t, 0, 0)
	}
}

func TestWhatWasThereAfterACutStays(t *testing.T) {
	s := written(t, "strict", 4, 6)
	s.l.settle(s.r, 0)
	delete(s.r.blocks, s.l.key(name{0, 0, 5}))
	s.wants(t, 1, 0)

	s = written(t, "ordered", 4, 6)
	s.l.settle(s.r, 0)
	s.l.begin(1)
	delete(s.r.blocks, s.l.key(name{0, 0, 5}))
	s.wants(t, 0, 0)
	s.hear("meta %s 0 0 0 0", pinKey(1, 0, 0)) // durable, so all that was there before it is
	s.wants(t, 1, 0)
}
