package cutdisk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"testing"
)

const testSectors = 64

func made(t *testing.T) *Disk {
	t.Helper()
	d, err := Create(filepath.Join(t.TempDir(), "disk"), testSectors*Sector)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func sectors(n int, fill uint32) []byte {
	p := make([]byte, n*Sector)
	for i := range n {
		binary.LittleEndian.PutUint32(p[i*Sector:], fill)
		p[(i+1)*Sector-1] = byte(fill)
	}
	return p
}

func contents(t *testing.T, d *Disk) []byte {
	t.Helper()
	p := make([]byte, d.Size())
	if _, err := d.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// A model that knows nothing of how the disk does it: each sector's versions since it was last sure to be on the platter.
type model [testSectors][]uint32

// TestWhatWasFlushedStaysAndTheRestIsSomeVersionOfItself runs random operations against the model, cuts, and looks at every sector.
func TestWhatWasFlushedStaysAndTheRestIsSomeVersionOfItself(t *testing.T) {
	lost := map[Loss]int{}
	for seed := range uint64(600) {
		random := rand.New(rand.NewPCG(seed, 1))
		d := made(t)
		var m model
		for i := range m {
			m[i] = []uint32{0}
		}
		fill := uint32(0)
		for range 3 { // lives
			for range random.IntN(60) {
				at := random.IntN(testSectors)
				n := 1 + random.IntN(min(8, testSectors-at))
				switch kind := random.IntN(10); {
				case kind < 8:
					fill++
					fua := kind == 0
					if err := d.WriteAt(sectors(n, fill), int64(at*Sector), fua); err != nil {
						t.Fatal(err)
					}
					for i := at; i < at+n; i++ {
						if m[i] = append(m[i], fill); fua {
							m[i] = []uint32{fill}
						}
					}
				case kind == 8:
					if err := d.Flush(); err != nil {
						t.Fatal(err)
					}
					for i := range m {
						m[i] = m[i][len(m[i])-1:]
					}
				default:
					p := make([]byte, n*Sector)
					if _, err := d.ReadAt(p, int64(at*Sector)); err != nil {
						t.Fatal(err)
					}
					for i := range n {
						if got, want := binary.LittleEndian.Uint32(p[i*Sector:]), m[at+i][len(m[at+i])-1]; got != want {
							t.Fatalf("seed %d: sector %d reads as version %d, written last was %d", seed, at+i, got, want)
						}
					}
				}
			}
			fate, err := d.Power(random)
			if err != nil {
				t.Fatal(err)
			}
			p := contents(t, d)
			missing := 0
			for i := range m {
				got := binary.LittleEndian.Uint32(p[i*Sector:])
				if !bytes.Equal(p[i*Sector:(i+1)*Sector], sectors(1, got)) {
					t.Fatalf("seed %d: sector %d is torn within", seed, i)
				}
				known := false
				for _, version := range m[i] {
					known = known || version == got
				}
				if !known {
					t.Fatalf("seed %d, %v: sector %d is version %d after the cut, which may be one of %v", seed, fate, i, got, m[i])
				}
				if got != m[i][len(m[i])-1] {
					missing++
				}
				m[i] = []uint32{got}
			}
			if missing != fate.Lost {
				t.Fatalf("seed %d: %d sectors lost their last version, the disk says %v", seed, missing, fate)
			}
			lost[fate.Loss] += missing
		}
		d.Close()
	}
	for loss := range Loss(lossesInAll) {
		if (loss == LoseNone) != (lost[loss] == 0) {
			t.Errorf("losing %v lost %d sectors in all", loss, lost[loss])
		}
	}
}

func TestTheSameSeedLosesTheSame(t *testing.T) {
	var first []byte
	for range 5 {
		d := made(t)
		for i := range uint32(40) {
			if err := d.WriteAt(sectors(4, i+1), int64(i%16)*4*Sector, false); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := d.PowerWith(LoseTorn, rand.New(rand.NewPCG(7, 7))); err != nil {
			t.Fatal(err)
		}
		p := contents(t, d)
		if first == nil {
			first = p
		}
		if !bytes.Equal(p, first) {
			t.Fatal("two cuts with one seed left different disks")
		}
	}
}

func TestNothingIsAnsweredFromTheCutOn(t *testing.T) {
	d := made(t)
	d.CutAfter(3)
	_ = d.WriteAt(sectors(1, 1), 0, false)
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := d.WriteAt(sectors(1, 2), 0, true); !errors.Is(err, ErrCut) {
		t.Fatalf("the third: %v", err)
	}
	if _, err := d.ReadAt(make([]byte, Sector), 0); !errors.Is(err, ErrCut) {
		t.Error("a read was answered")
	}
	if err := d.Flush(); !errors.Is(err, ErrCut) {
		t.Error("a flush was answered")
	}
	if _, err := d.PowerWith(LoseAll, rand.New(rand.NewPCG(1, 1))); err != nil {
		t.Fatal(err)
	}
	if got := binary.LittleEndian.Uint32(contents(t, d)); got != 1 {
		t.Errorf("the sector is version %d: the first was flushed, the second never answered", got)
	}
}

func TestACutAtAFlushTakesAllThatItWouldHaveKept(t *testing.T) {
	d := made(t)
	d.CutAtFlush(2)
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := d.Flush(); err != nil {
		t.Fatal(err) // nothing to do, so nothing at stake
	}
	for i := range int64(4) {
		if err := d.WriteAt(sectors(2, 1), i*4*Sector, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Flush(); !errors.Is(err, ErrCut) {
		t.Fatal(err)
	}
	if fate, err := d.PowerWith(LoseAll, rand.New(rand.NewPCG(1, 1))); err != nil || fate.Lost != 8 {
		t.Errorf("%v %v", fate, err)
	}
}

func TestADriveThatLiesLosesWhatItFlushed(t *testing.T) {
	d := made(t)
	d.Lie()
	_ = d.WriteAt(sectors(1, 1), 0, true)
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	if fate, err := d.PowerWith(LoseAll, rand.New(rand.NewPCG(1, 1))); err != nil || fate.Lost != 1 {
		t.Errorf("%v %v", fate, err)
	}
}

// nbd is the least of a client: what the protocol's document says, not what the server does.
type nbd struct {
	t *testing.T
	net.Conn
	size   uint64
	cookie uint64
}

func connect(t *testing.T, d *Disk) *nbd {
	t.Helper()
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "nbd"))
	if err != nil {
		t.Fatal(err)
	}
	go d.Serve(listener)
	t.Cleanup(func() { listener.Close() })
	return dial(t, listener.Addr().String())
}

func dial(t *testing.T, path string) *nbd {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := &nbd{t: t, Conn: conn}
	hello := c.read(18)
	if string(hello[:16]) != "NBDMAGICIHAVEOPT" || binary.BigEndian.Uint16(hello[16:])&3 != 3 {
		t.Fatalf("greeting %q", hello)
	}
	c.write(uint32(3))
	c.write([]byte("IHAVEOPT"), uint32(8), uint32(0)) // structured replies: to be refused
	if kind, _ := c.option(); kind != 1<<31+1 {
		t.Fatalf("option 8 answered with %x", kind)
	}
	c.write([]byte("IHAVEOPT"), uint32(7), uint32(6), uint32(0), uint16(0))
	for {
		kind, data := c.option()
		if kind == 1 {
			return c
		}
		if kind == 3 && binary.BigEndian.Uint16(data) == 0 {
			c.size = binary.BigEndian.Uint64(data[2:])
			if flags := binary.BigEndian.Uint16(data[10:]); flags&0b1101 != 0b1101 {
				t.Fatalf("transmission flags %b: flush and FUA must be among them", flags)
			}
		}
	}
}

func (c *nbd) read(n int) []byte {
	c.t.Helper()
	p := make([]byte, n)
	if _, err := io.ReadFull(c, p); err != nil {
		c.t.Fatal(err)
	}
	return p
}

func (c *nbd) write(values ...any) {
	c.t.Helper()
	var b bytes.Buffer
	for _, value := range values {
		_ = binary.Write(&b, binary.BigEndian, value)
	}
	if _, err := c.Write(b.Bytes()); err != nil {
		c.t.Fatal(err)
	}
}

func (c *nbd) option() (uint32, []byte) {
	head := c.read(20)
	return binary.BigEndian.Uint32(head[12:]), c.read(int(binary.BigEndian.Uint32(head[16:])))
}

func (c *nbd) ask(flags, kind uint16, offset uint64, length uint32, data []byte) {
	c.t.Helper()
	c.cookie++
	c.write(uint32(0x25609513), flags, kind, c.cookie, offset, length, data)
}

func (c *nbd) answer(data int) (uint32, []byte) {
	c.t.Helper()
	head := c.read(16)
	if binary.BigEndian.Uint32(head) != 0x67446698 || binary.BigEndian.Uint64(head[8:]) != c.cookie {
		c.t.Fatalf("reply %x", head)
	}
	failed := binary.BigEndian.Uint32(head[4:])
	if failed != 0 {
		data = 0
	}
	return failed, c.read(data)
}

func TestTheProtocolReachesTheDisk(t *testing.T) {
	d := made(t)
	c := connect(t, d)
	if c.size != testSectors*Sector {
		t.Errorf("size %d", c.size)
	}
	c.ask(0, 1, Sector, 2*Sector, sectors(2, 5))
	c.answer(0)
	c.ask(1, 1, 8*Sector, Sector, sectors(1, 6))
	c.answer(0)
	c.ask(0, 3, 0, 0, nil)
	c.answer(0)
	c.ask(0, 6, 2*Sector, Sector, nil) // zeroes, not flushed
	c.answer(0)
	c.ask(0, 0, Sector, 2*Sector, nil)
	if _, got := c.answer(2 * Sector); !bytes.Equal(got, append(sectors(1, 5), make([]byte, Sector)...)) {
		t.Error("read back otherwise than written")
	}
	if failed, _ := func() (uint32, []byte) {
		c.ask(0, 0, testSectors*Sector, Sector, nil)
		return c.answer(Sector)
	}(); failed == 0 {
		t.Error("a read behind the end succeeded")
	}
	if got := d.Counts(); got != (Counts{Writes: 3, Flushes: 1, FUA: 1, Bytes: 4 * Sector}) {
		t.Errorf("counted %v", got)
	}
	d.Stop()
	c.ask(0, 1, 0, Sector, sectors(1, 9)) // never answered
	if _, err := d.PowerWith(LoseAll, rand.New(rand.NewPCG(1, 1))); err != nil {
		t.Fatal(err)
	}
	if n, err := io.ReadFull(c, make([]byte, 1)); err == nil {
		t.Errorf("%d bytes of an answer after the cut", n)
	}
	again := dial(t, c.RemoteAddr().String())
	again.ask(0, 0, 0, 3*Sector, nil)
	if _, got := again.answer(3 * Sector); !bytes.Equal(got, append(make([]byte, Sector), sectors(2, 5)...)) {
		t.Error("after the cut the flushed is not there, or the unflushed is")
	}
}
