package run

// The raw limits: one file, no store. Writers of a case share it as a log would: pieces as large as they can have under way at once.

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"basalt.dev/go/bench/blocks"
	"basalt.dev/go/bench/stores"
	"basalt.dev/go/bench/workload"
)

// pieceMax is the largest piece that is written before a flush, in bytes.
const pieceMax = 8 << 20

// RawClass is the class of a raw limit, by its name: those that write flush each piece.
func RawClass(name string) stores.Class {
	if strings.HasPrefix(name, "raw pread") {
		return stores.None
	}
	return stores.Each
}

// Raw does a session's cases without a store.
func Raw(ctx context.Context, spec Spec, meter Meter) []Row {
	var rows []Row
	for i, c := range spec.Session.Cases {
		row := Row{Case: c.Name}
		var err error
		switch c.Op {
		case workload.Put, workload.Append:
			row.Figures, err = rawWrite(spec, c, meter)
		case workload.Get:
			row.Figures, err = rawRead(spec, i, c, meter)
		default:
			err = fmt.Errorf("there is no raw limit of %q", c.Op)
		}
		if err != nil {
			row.Error, row.Figures = err.Error(), nil
		}
		rows = append(rows, row)
	}
	return rows
}

func rawWrite(spec Spec, c workload.Case, meter Meter) (Figures, error) {
	direct, recycled := strings.Contains(spec.Store, "direct"), strings.Contains(spec.Store, "recycled")
	piece := min(c.Threads*c.Min, pieceMax)
	if c.Op == workload.Append {
		piece = c.Min
	}
	count := max(1, int(c.Bytes/int64(piece)))
	// Distinct pieces enough that no layer below could know them again; they begin at a page, as O_DIRECT wants.
	arena, err := blocks.Make(blocks.Source{Seed: 1, Min: piece}.Blocks, 0, min(count, max(2, 128<<20/piece)), math.MaxInt64)
	if err != nil {
		return nil, err
	}
	defer arena.Free()
	path := filepath.Join(spec.Folder, "raw")
	defer os.Remove(path)
	if recycled {
		old, err := os.Create(path)
		if err != nil {
			return nil, err
		}
		for i := range count {
			if _, err := old.Write(arena.Blocks[i%len(arena.Blocks)].Value); err != nil {
				return nil, err
			}
		}
		if err := errors.Join(old.Sync(), old.Close()); err != nil {
			return nil, err
		}
	}
	flags := os.O_CREATE | os.O_WRONLY
	if direct {
		flags |= unix.O_DIRECT
	}
	file, err := os.OpenFile(path, flags, 0o644)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if err := meter.Settle(spec.Folder); err != nil {
		return nil, err
	}
	self, err := meter.Processes(0)
	if err != nil {
		return nil, err
	}
	device, deviceErr := meter.Device(spec.Folder)
	d, err := drive(1, count, c.Seconds, nil, func(_, i int) (int, error) {
		value := arena.Blocks[(i+1)%len(arena.Blocks)].Value // never what is there already
		if _, err := file.WriteAt(value, int64(i)*int64(piece)); err != nil {
			return 0, err
		}
		return piece, unix.Fdatasync(int(file.Fd()))
	})
	if err != nil {
		return nil, err
	}
	after, err := meter.Processes(0)
	if err != nil {
		return nil, err
	}
	f := d.figures(c.Unit, d.wall)
	f[Written] = float64(after.Written-self.Written) / float64(d.bytes)
	f[CPU] = (after.CPU - self.CPU) / float64(d.bytes) * (1 << 30)
	if now, err := meter.Device(spec.Folder); err == nil && deviceErr == nil {
		f[OnDevice] = float64(now.Written-device.Written) / float64(d.bytes)
		if now.Cache {
			f[Flushes] = float64(now.Flushes-device.Flushes) / float64(d.ops)
		}
	}
	return f, nil
}

func rawRead(spec Spec, at int, c workload.Case, meter Meter) (Figures, error) {
	fill := spec.Session.Fill
	source := fillOf(spec.Session)
	if source.Max > source.Min {
		return nil, errors.New("raw reads are of blocks of one size")
	}
	size := int64(source.Min)
	path := filepath.Join(spec.Folder, "raw")
	if info, err := os.Stat(path); err != nil || info.Size() != size*int64(fill.Blocks) {
		file, err := os.Create(path)
		if err != nil {
			return nil, err
		}
		for i := range fill.Blocks {
			if _, err := file.Write(source.At(i).Value); err != nil {
				return nil, err
			}
		}
		if err := errors.Join(file.Sync(), file.Close()); err != nil {
			return nil, err
		}
	}
	sums := make([]uint32, fill.Blocks)
	blocks.Each(source.Blocks, fill.Blocks, func(i int, value []byte) { sums[i] = crc32.ChecksumIEEE(value) })
	s := &session{spec: spec, fill: source}
	which, err := s.numbers(at, c)
	if err != nil {
		return nil, err
	}
	if c.Cold {
		if err := meter.Forget(spec.Folder, spec.ForgetAll); err != nil {
			return nil, err
		}
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	check := strings.Contains(spec.Store, "CRC")
	rooms := make([][]byte, c.Threads)
	for i := range rooms {
		rooms[i] = make([]byte, size)
	}
	read := func(w, i int) (int, error) {
		n := which[i%len(which)]
		if _, err := file.ReadAt(rooms[w], int64(n)*size); err != nil {
			return 0, err
		}
		if check && crc32.ChecksumIEEE(rooms[w]) != sums[n] {
			return 0, fmt.Errorf("block %d of the raw file reads back other than it was written", n)
		}
		return int(size), nil
	}
	if !c.Cold {
		if _, err := drive(min(4, c.Threads), len(which), 10*c.Seconds, nil, read); err != nil {
			return nil, err
		}
	}
	self, err := meter.Processes(0)
	if err != nil {
		return nil, err
	}
	d, err := drive(c.Threads, max(1, int(c.Bytes/size)), c.Seconds, nil, read)
	if err != nil {
		return nil, err
	}
	after, err := meter.Processes(0)
	f := d.figures(c.Unit, d.wall)
	f[CPU] = (after.CPU - self.CPU) / float64(d.bytes) * (1 << 30)
	return f, err
}
