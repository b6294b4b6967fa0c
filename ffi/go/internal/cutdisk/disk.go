// Package cutdisk is a disk with a volatile write cache whose power can be cut, served over NBD to a guest.
//
// A drive that says "done" to a write has it in its cache; only what a flush or FUA covered is sure to be there after a power cut. Of the
// rest any sector may be there in any version it had since, whatever was written before or after it. The disks of virtual machines hide
// this: the host's page cache survives the guest. Here what was not flushed is kept apart, and Cut decides by a seed what of it the drive
// got to the platter in time.
//
// A sector is written whole or not at all, and a sector that was not written does not change: drives that break that are not modelled.
package cutdisk

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"
)

// Sector is what a drive writes whole or not at all, in bytes.
const Sector = 512

// ErrCut is what every operation gets from the moment of the cut on.
var ErrCut = errors.New("the power is cut")

// Disk is the platter, a file, and the cache in front of it. Safe for use by many goroutines.
type Disk struct {
	size int64

	mu      sync.Mutex
	platter *os.File
	cache   map[int64][]version // by sector number: what it was written since the last flush, oldest first
	pending []write             // the same by write, for a cut that takes or leaves whole writes
	trigger *trigger
	cut     bool
	cutAt   time.Time
	counts  Counts
	whenCut chan struct{}
	lies    bool
	clients map[net.Conn]chan struct{} // each closed when no request of it is under way any more
}

type version struct {
	write int // index in pending
	data  []byte
}

type write struct{ first, sectors int64 }

// Counts is what was asked of the disk since it was opened.
type Counts struct {
	Writes, Flushes, FUA, Bytes uint64
}

func (c Counts) String() string {
	return fmt.Sprintf("%d writes (%d KiB), %d flushes, %d FUA", c.Writes, c.Bytes>>10, c.Flushes, c.FUA)
}

// Since returns what was asked since before.
func (c Counts) Since(before Counts) Counts {
	return Counts{c.Writes - before.Writes, c.Flushes - before.Flushes, c.FUA - before.FUA, c.Bytes - before.Bytes}
}

// Create makes a disk of zeroes in a sparse file.
func Create(path string, size int64) (*Disk, error) {
	if size <= 0 || size%4096 != 0 {
		return nil, fmt.Errorf("a disk of %d bytes: its size must be a multiple of 4096", size)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(size); err != nil {
		f.Close()
		return nil, err
	}
	d := &Disk{size: size, platter: f, clients: map[net.Conn]chan struct{}{}}
	d.reset()
	return d, nil
}

func (d *Disk) reset() {
	d.cache, d.pending = map[int64][]version{}, nil
	d.cut, d.lies, d.trigger, d.whenCut = false, false, nil, make(chan struct{})
}

// Close lets go of the file. What is only in the cache goes.
func (d *Disk) Close() error {
	d.Stop()
	return d.platter.Close()
}

// Size is the disk's, in bytes.
func (d *Disk) Size() int64 { return d.size }

// Lie makes the drive one that answers flushes and does nothing, until its power is cut: the promise of no store holds on it.
func (d *Disk) Lie() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lies = true
}

// Counts returns what was asked of the disk so far.
func (d *Disk) Counts() Counts {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.counts
}

// span checks a request and returns its first sector and their number.
func (d *Disk) span(op string, offset int64, length int) (int64, int64, error) {
	if offset < 0 || offset > d.size || int64(length) > d.size-offset || offset%Sector != 0 || length%Sector != 0 {
		return 0, 0, fmt.Errorf("%s of %d bytes at %d: outside the disk of %d bytes, or not whole sectors: %w", op, length, offset, d.size, os.ErrInvalid)
	}
	return offset / Sector, int64(length) / Sector, nil
}

// ReadAt reads what was written last, flushed or not.
func (d *Disk) ReadAt(p []byte, offset int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	first, sectors, err := d.span("read", offset, len(p))
	if err != nil {
		return 0, err
	}
	if d.cut {
		return 0, ErrCut
	}
	if _, err := d.platter.ReadAt(p, offset); err != nil && err != io.EOF {
		return 0, err
	}
	for i := range sectors {
		if versions := d.cache[first+i]; len(versions) > 0 {
			copy(p[i*Sector:(i+1)*Sector], versions[len(versions)-1].data)
		}
	}
	return len(p), nil
}

// WriteAt puts p into the cache; with fua it is on the platter when WriteAt returns. The disk keeps no reference to p.
func (d *Disk) WriteAt(p []byte, offset int64, fua bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	first, sectors, err := d.span("write", offset, len(p))
	if err != nil {
		return err
	}
	if d.cut {
		return ErrCut
	}
	d.counts.Writes++
	d.counts.Bytes += uint64(len(p))
	if fua {
		d.counts.FUA++
	}
	data := append([]byte(nil), p...)
	index := len(d.pending)
	d.pending = append(d.pending, write{first, sectors})
	for i := range sectors {
		d.cache[first+i] = append(d.cache[first+i], version{index, data[i*Sector : (i+1)*Sector : (i+1)*Sector]})
	}
	// The cut may come while a write is under way: it is in the cache then, whole or in part, and never answered.
	if d.step(false) {
		return ErrCut
	}
	if fua && !d.lies {
		// Older versions of these sectors are overwritten on the platter; nothing may bring them back.
		for i := range sectors {
			delete(d.cache, first+i)
		}
		if _, err := d.platter.WriteAt(data, offset); err != nil {
			return err
		}
	}
	return nil
}

// Flush returns when everything written before is on the platter.
func (d *Disk) Flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cut {
		return ErrCut
	}
	d.counts.Flushes++
	// The cut may come in the middle of a flush.
	if d.step(true) {
		return ErrCut
	}
	if d.lies {
		return nil
	}
	return d.settle(func(_ int64, versions []version) []byte { return versions[len(versions)-1].data })
}

// settle writes to the platter what choose says of each cached sector, nil for what is on the platter already, and empties the cache.
func (d *Disk) settle(choose func(sector int64, versions []version) []byte) error {
	for _, w := range d.pending {
		var run []byte // neighbours in one write
		at := w.first
		put := func() error {
			if len(run) == 0 {
				return nil
			}
			_, err := d.platter.WriteAt(run, at*Sector)
			at, run = at+int64(len(run)/Sector), run[:0]
			return err
		}
		for sector := w.first; sector < w.first+w.sectors; sector++ {
			versions := d.cache[sector]
			delete(d.cache, sector)
			var data []byte
			if len(versions) > 0 {
				data = choose(sector, versions)
			}
			if data != nil {
				run = append(run, data...)
				continue
			}
			if err := put(); err != nil {
				return err
			}
			at = sector + 1
		}
		if err := put(); err != nil {
			return err
		}
	}
	d.cache, d.pending = map[int64][]version{}, nil
	return nil
}

// trigger cuts the power when left has come down to zero, or at the first flush from then on that has something to do.
type trigger struct {
	left    int
	atFlush bool
}

// CutAfter cuts the power at the n-th write or flush from now, while it is under way.
func (d *Disk) CutAfter(n int) { d.arm(trigger{left: n}) }

// CutAtFlush cuts the power when a flush begins that has something to do, the n-th write or flush from now or later: when most is at stake.
func (d *Disk) CutAtFlush(n int) { d.arm(trigger{left: n, atFlush: true}) }

func (d *Disk) arm(t trigger) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.trigger = &t
}

func (d *Disk) step(flush bool) bool {
	if t := d.trigger; t != nil {
		t.left--
		if t.left <= 0 && (!t.atFlush || flush && len(d.cache) > 0) {
			d.stop()
		}
	}
	return d.cut
}

// Stop cuts the power now: nothing is answered any more. Power decides what is lost.
func (d *Disk) Stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stop()
}

func (d *Disk) stop() {
	if !d.cut {
		d.cut, d.cutAt = true, time.Now()
		close(d.whenCut)
	}
}

// Dead is closed at the moment of the cut.
func (d *Disk) Dead() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.whenCut
}

// DeadSince returns the moment of the cut.
func (d *Disk) DeadSince() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cutAt
}

// Loss is a way in which a drive may lose what was not flushed.
type Loss int

const (
	LoseAll     Loss = iota // nothing had left the cache
	LoseNone                // everything had
	LoseSome                // each write whole or not at all, in any order
	LoseTorn                // each sector in any version it had
	LoseTail                // written in order, and the last write in part
	LoseEarly               // written in reverse order: the oldest are missing
	lossesInAll int  = iota
)

var lossNames = [...]string{"all", "none", "some writes", "some sectors", "the tail", "the oldest"}

func (l Loss) String() string { return lossNames[l] }

// Fate is what became of the cache at a cut.
type Fate struct {
	Loss    Loss
	Pending int // writes that were not flushed
	Sectors int // sectors among them
	Lost    int // sectors whose last version did not get to the platter
}

func (f Fate) String() string {
	return fmt.Sprintf("of %d writes in the cache lost %s: %d of %d sectors", f.Pending, f.Loss, f.Lost, f.Sectors)
}

// Power decides by random what the cache lost, then turns the power on again, with an empty cache. Clients from before the cut are
// disconnected first.
func (d *Disk) Power(random *rand.Rand) (Fate, error) {
	return d.PowerWith(Loss(random.IntN(lossesInAll)), random)
}

// PowerWith is Power with a given way of losing.
func (d *Disk) PowerWith(loss Loss, random *rand.Rand) (Fate, error) {
	d.disconnect()
	d.mu.Lock()
	defer d.mu.Unlock()
	fate := Fate{Loss: loss, Pending: len(d.pending), Sectors: len(d.cache)}
	keep := d.kept(loss, random)
	err := d.settle(func(sector int64, versions []version) []byte {
		for i := len(versions) - 1; i >= 0; i-- {
			if keep(versions[i].write, sector) {
				if i < len(versions)-1 {
					fate.Lost++
				}
				return versions[i].data
			}
		}
		fate.Lost++
		return nil
	})
	d.reset()
	return fate, err
}

// disconnect cuts the power and waits until no client from before can ask for anything more.
func (d *Disk) disconnect() {
	d.mu.Lock()
	d.stop()
	var gone []chan struct{}
	for conn, done := range d.clients {
		conn.Close()
		gone = append(gone, done)
	}
	d.mu.Unlock()
	for _, done := range gone {
		<-done
	}
}

// kept says of each sector of each write whether it got to the platter.
func (d *Disk) kept(loss Loss, random *rand.Rand) func(write int, sector int64) bool {
	switch loss {
	case LoseNone:
		return func(int, int64) bool { return true }
	case LoseSome:
		share := random.Float64()
		whole := make([]bool, len(d.pending))
		for i := range whole {
			whole[i] = random.Float64() < share
		}
		return func(write int, _ int64) bool { return whole[write] }
	case LoseTorn:
		share, seed := random.Float64(), random.Uint64()
		// Not drawn in the order of a walk over the cache: a map has none, and the same seed must lose the same.
		return func(write int, sector int64) bool {
			return rand.New(rand.NewPCG(seed+uint64(write), uint64(sector))).Float64() < share
		}
	case LoseTail, LoseEarly:
		cut := 0
		if len(d.pending) > 0 {
			cut = random.IntN(len(d.pending))
		}
		share, seed := random.Float64(), random.Uint64()
		return func(write int, sector int64) bool {
			if write == cut {
				return rand.New(rand.NewPCG(seed, uint64(sector))).Float64() < share
			}
			return (write < cut) == (loss == LoseTail)
		}
	default:
		return func(int, int64) bool { return false }
	}
}
