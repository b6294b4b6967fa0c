package run

// kill -9 in the middle of Puts. One process puts, writes down what was acknowledged, and kills the agent and itself; the next one opens.

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"basalt.dev/go/bench/blocks"
	"basalt.dev/go/bench/workload"
)

func (s *session) crash(ctx context.Context, c workload.Case) (Figures, error) {
	source := blocks.Source{Seed: seed("crash", s.spec.Session.ID, fmt.Sprint(s.spec.Round)), Min: c.Min, Max: c.Max}
	if s.spec.Recover {
		return s.recovered(ctx, source)
	}
	if _, err := s.reopen(ctx, false); err != nil {
		return nil, err
	}
	acks, err := os.OpenFile(acksFile(s.spec.Folder), os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	arena, err := blocks.Make(source.Blocks, 0, math.MaxInt32, min(arenaBytes, c.Bytes))
	if err != nil {
		return nil, err
	}
	var acknowledged atomic.Int64
	failed := make(chan error, 1)
	go func() {
		_, err := drive(c.Threads, len(arena.Blocks), 0, nil, func(_, i int) (int, error) {
			if err := s.open.Put(ctx, arena.Blocks[i].Key, arena.Blocks[i].Value); err != nil {
				return 0, err
			}
			// One write, into the page cache, which outlives us.
			_, err := acks.Write(binary.LittleEndian.AppendUint32(nil, uint32(i)))
			acknowledged.Add(1)
			return 0, err
		})
		failed <- err
	}()
	deadline := time.After(time.Duration(c.Seconds * float64(time.Second)))
	select {
	case err := <-failed:
		if err != nil {
			return nil, err
		} // all blocks are stored: kill it then
	case <-deadline:
		for acknowledged.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	if s.open.Process != 0 {
		_ = syscall.Kill(s.open.Process, syscall.SIGKILL)
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

func (s *session) recovered(ctx context.Context, source blocks.Source) (Figures, error) {
	text, err := os.ReadFile(acksFile(s.spec.Folder))
	if err != nil {
		return nil, err
	}
	acked := make([]int, len(text)/4)
	for i := range acked {
		acked[i] = int(binary.LittleEndian.Uint32(text[4*i:]))
	}
	if len(acked) == 0 {
		return nil, errors.New("nothing was acknowledged before the kill")
	}
	took, err := s.reopen(ctx, false)
	if err != nil {
		return nil, fmt.Errorf("after kill -9: %w", err)
	}
	first := s.fill.At(s.spec.Session.Fill.Blocks / 2)
	began := time.Now()
	if _, err := ask(ctx, s.open, workload.Get, call{first.Key, len(first.Value)}); err != nil {
		return nil, fmt.Errorf("first get after kill -9: %w", err)
	}
	get := time.Since(began)
	lost := 0
	for _, i := range acked {
		b := source.At(i)
		if value, err := s.open.Get(ctx, b.Key); err != nil || string(value) != string(b.Value) {
			lost++
		}
	}
	f := Figures{
		Rate: (took + get).Seconds() * 1e3, OpenMS: took.Seconds() * 1e3, FirstGetMS: get.Seconds() * 1e3, Ops: float64(len(acked)), Lost: float64(lost),
	}
	return f, s.resources(f)
}
