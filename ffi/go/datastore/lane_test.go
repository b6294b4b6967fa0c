package datastore_test

// The client's end of the fast lane against a node that can be made to do wrong: answers out of order, none, or nonsense. That the lane does
// what gRPC does is for the conformance suite.

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"basalt.dev/go/datastore"
	"basalt.dev/go/internal/agenttest"
	"basalt.dev/go/internal/basaltv1"
	ds "github.com/ipfs/go-datastore"
	"google.golang.org/protobuf/proto"
)

const preface = "BSLTLN\x00\x01"

// asked is a request on a lane.
type asked struct {
	what, flags byte
	number      uint64
	key         string
	payload     []byte
	conn        net.Conn
}

// answer sends one; outcome 0 is done.
func (a asked) answer(outcome byte, payload []byte) {
	head := make([]byte, 16)
	binary.LittleEndian.PutUint32(head, uint32(len(payload)))
	head[4] = outcome
	binary.LittleEndian.PutUint64(head[8:], a.number)
	_, _ = a.conn.Write(append(head, payload...))
}

// laned has the fake serve lanes: each request goes to serve, in the goroutine of its lane.
func (f *fake) laned(serve func(asked)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.features, f.lane = []string{"lane.1"}, serve
}

// sniffing hands lanes to the fake, and everything else to gRPC.
type sniffing struct {
	net.Listener
	grpc chan net.Conn
	over chan struct{}
}

func sniff(l net.Listener, f *fake) net.Listener {
	s := sniffing{l, make(chan net.Conn), make(chan struct{})}
	go func() {
		defer close(s.over)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go s.route(conn, f)
		}
	}()
	return s
}

func (s sniffing) route(conn net.Conn, f *fake) {
	head := make([]byte, len(preface))
	if _, err := io.ReadFull(conn, head); err != nil {
		conn.Close()
		return
	}
	if string(head) == preface {
		f.serveLane(conn)
		return
	}
	select {
	case s.grpc <- replayed{conn, io.MultiReader(bytes.NewReader(head), conn)}:
	case <-s.over:
		conn.Close()
	}
}

func (s sniffing) Accept() (net.Conn, error) {
	select {
	case conn := <-s.grpc:
		return conn, nil
	case <-s.over:
		return nil, net.ErrClosed
	}
}

// replayed is a connection whose first bytes were read already.
type replayed struct {
	net.Conn
	in io.Reader
}

func (r replayed) Read(p []byte) (int, error) { return r.in.Read(p) }

func (f *fake) serveLane(conn net.Conn) {
	defer conn.Close()
	f.mu.Lock()
	f.lanes = append(f.lanes, conn)
	serve := f.lane
	f.mu.Unlock()
	if serve == nil {
		return
	}
	in := bufio.NewReader(conn)
	for {
		head := make([]byte, 16)
		if _, err := io.ReadFull(in, head); err != nil {
			return
		}
		a := asked{what: head[4], flags: head[5], number: binary.LittleEndian.Uint64(head[8:]), conn: conn}
		body := make([]byte, binary.LittleEndian.Uint32(head))
		if _, err := io.ReadFull(in, body); err != nil {
			return
		}
		key := binary.LittleEndian.Uint16(head[6:])
		a.key, a.payload = string(body[:key]), body[key:]
		if a.what == 1 {
			hello, _ := proto.Marshal(&basaltv1.HandshakeResponse{Protocol: 1, NodeId: f.id})
			a.answer(0, hello)
			continue
		}
		serve(a)
	}
}

func TestAnswersReachTheirCallersInAnyOrder(t *testing.T) {
	f := newFake(t)
	var mu sync.Mutex
	var held []asked
	f.laned(func(a asked) {
		mu.Lock()
		defer mu.Unlock()
		// Answered backwards, ten at a time.
		if held = append(held, a); len(held) == 10 {
			for i := len(held) - 1; i >= 0; i-- {
				held[i].answer(0, []byte("value of "+held[i].key))
			}
			held = nil
		}
	})
	d := f.open(func(c *datastore.Config) { c.Connections = 1 })
	var callers sync.WaitGroup
	for i := range 100 {
		callers.Go(func() {
			k := fmt.Sprintf("/a/%d", i)
			if v, err := d.Get(context.Background(), ds.NewKey(k)); err != nil || string(v) != "value of "+k {
				t.Errorf("%s: %q, %v", k, v, err)
			}
		})
	}
	callers.Wait()
	if f.count("Get") != 0 {
		t.Fatal("gRPC was asked")
	}
}

func TestReadsAndWritesGoOnWhenTheirLaneBreaks(t *testing.T) {
	f := newFake(t)
	var mu sync.Mutex
	data, broken := map[string][]byte{}, map[byte]bool{}
	f.laned(func(a asked) {
		mu.Lock()
		defer mu.Unlock()
		switch a.what {
		case 6:
			data[a.key] = a.payload
		case 7:
			delete(data, a.key)
		}
		if !broken[a.what] { // done, and nobody hears of it
			broken[a.what] = true
			a.conn.Close()
			return
		}
		a.answer(0, data[a.key])
	})
	d := f.open()
	k := ds.NewKey("/a")
	must(t, d.Put(t.Context(), k, []byte("1")))
	if v, err := d.Get(t.Context(), k); err != nil || string(v) != "1" {
		t.Fatalf("%q, %v", v, err)
	}
	must(t, d.Delete(t.Context(), k))
	if !broken[2] || !broken[6] || !broken[7] || len(data) != 0 {
		t.Fatalf("nothing was tested: %v, %v", broken, data)
	}
}

func TestADeleteOnTheLaneIsNotSentAgainOverALaterPut(t *testing.T) {
	f := newFake(t)
	var d *datastore.Datastore
	k := ds.NewKey("/a")
	f.laned(func(a asked) {
		if a.what == 6 {
			a.answer(0, nil)
			return
		}
		go func() {
			if err := d.Put(context.Background(), k, []byte("new")); err != nil { // acknowledged while the Delete is on its way
				t.Error(err)
			}
			a.conn.Close()
		}()
	})
	d = f.open()
	err := d.Delete(t.Context(), k)
	if !errors.Is(err, datastore.ErrUnavailable) || !strings.Contains(err.Error(), "outcome unknown") {
		t.Fatalf("%v", err)
	}
}

// The node remembers what it has done (here: the double does), so the same Delete may be asked for again.
func TestADeleteGoesOnByItsNumberWhereTheNodeIsTheSame(t *testing.T) {
	f := newFake(t)
	f.incarnation = []byte("0123456789abcdef")
	var d *datastore.Datastore
	var mu sync.Mutex
	var numbers []uint64
	k := ds.NewKey("/a")
	f.laned(func(a asked) {
		if a.what == 6 {
			a.answer(0, nil)
			return
		}
		mu.Lock()
		numbers = append(numbers, a.number)
		first := len(numbers) == 1
		mu.Unlock()
		if !first {
			a.answer(0, nil)
			return
		}
		go func() {
			if err := d.Put(context.Background(), k, []byte("new")); err != nil {
				t.Error(err)
			}
			a.conn.Close()
		}()
	})
	d = f.open()
	must(t, d.Delete(t.Context(), k))
	if len(numbers) != 2 || numbers[0] != numbers[1] {
		t.Fatalf("asked for with the numbers %v, want one, twice", numbers)
	}
}

func TestABatchGoesInPartsAndIsCommittedOnce(t *testing.T) {
	f := newFake(t)
	var mu sync.Mutex
	parts, commits, keys := 0, 0, 0
	f.laned(func(a asked) {
		mu.Lock()
		defer mu.Unlock()
		parts++
		for rest := a.payload; len(rest) > 0; keys++ {
			rest = rest[8+int(binary.LittleEndian.Uint16(rest[2:]))+int(binary.LittleEndian.Uint32(rest[4:])):]
		}
		if a.flags == 1 {
			commits++
			a.answer(0, nil)
		}
	})
	d := f.open()
	b, err := d.Batch(t.Context())
	must(t, err)
	for i := range 40 {
		must(t, b.Put(t.Context(), ds.NewKey(fmt.Sprintf("/a/%d", i)), make([]byte, 100<<10)))
		must(t, b.Delete(t.Context(), ds.NewKey(fmt.Sprintf("/b/%d", i))))
	}
	must(t, b.Commit(t.Context()))
	if parts < 4 || commits != 1 || keys != 80 {
		t.Fatalf("%d parts, %d commits, %d keys", parts, commits, keys)
	}
}

func TestErrorsOnTheLaneAreTheNodesOwn(t *testing.T) {
	f := newFake(t)
	var outcome byte
	f.laned(func(a asked) { a.answer(outcome, []byte("the pool is full")) })
	d := f.open()
	for number, want := range map[byte]error{1: ds.ErrNotFound, 2: datastore.ErrNoSpace, 3: datastore.ErrCorrupt, 7: datastore.ErrReadOnly} {
		outcome = number
		_, err := d.Get(t.Context(), ds.NewKey("/a"))
		if !errors.Is(err, want) || number != 1 && !strings.Contains(err.Error(), "the pool is full") {
			t.Errorf("%d: %v", number, err)
		}
	}
	outcome = 99
	if _, err := d.Get(t.Context(), ds.NewKey("/a")); err == nil || !strings.Contains(err.Error(), "answer 99") {
		t.Errorf("%v", err)
	}
}

func TestNonsenseOnTheLaneIsNeverAnAnswer(t *testing.T) {
	for name, nonsense := range map[string]func(asked){
		"a size of three bytes":      func(a asked) { a.answer(0, []byte{1, 2, 3}) },
		"a size above any":           func(a asked) { a.answer(0, bytes.Repeat([]byte{0xff}, 8)) },
		"a frame without end":        func(a asked) { _, _ = a.conn.Write(bytes.Repeat([]byte{0xff}, 16)) },
		"an answer to nobody":        func(a asked) { a.number += 1000; a.answer(0, make([]byte, 8)); a.conn.Close() },
		"a lane that is closed":      func(a asked) { a.number = 0; a.answer(6, []byte("the lane is closed: it rains")) },
		"half an answer and the end": func(a asked) { _, _ = a.conn.Write(make([]byte, 7)); a.conn.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.laned(nonsense)
			d := f.open(func(c *datastore.Config) { c.Retry = 50 * time.Millisecond })
			if size, err := d.GetSize(t.Context(), ds.NewKey("/a")); err == nil {
				t.Fatalf("it was taken for a size of %d", size)
			}
		})
	}
}

func TestACancelledCallerLeavesTheLaneToOthers(t *testing.T) {
	f := newFake(t)
	var late asked
	f.laned(func(a asked) {
		if a.key == "/slow" {
			late = a
			return
		}
		if late.conn != nil {
			late.answer(0, []byte("too late"))
		}
		a.answer(0, []byte("at once"))
	})
	d := f.open(func(c *datastore.Config) { c.Connections = 1 })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := d.Get(ctx, ds.NewKey("/slow")); err != context.DeadlineExceeded {
		t.Fatalf("%v", err)
	}
	if v, err := d.Get(t.Context(), ds.NewKey("/a")); err != nil || string(v) != "at once" {
		t.Fatalf("%q, %v", v, err)
	}
}

func TestWithoutALaneEverythingGoesByGRPC(t *testing.T) {
	f := newFake(t)
	f.features = []string{"lane.1"} // and its sockets take none
	d := f.open()
	must(t, d.Put(t.Context(), ds.NewKey("/a"), []byte("1")))
	if f.count("Put") != 1 {
		t.Fatal("gRPC was not asked")
	}
}

func TestARealAgentHasLanes(t *testing.T) {
	n := agenttest.Serve(t)
	clients := func() int {
		must(t, n.Open("root").Put(t.Context(), ds.NewKey("/a"), nil))
		count := 0
		for _, client := range n.Status().Clients {
			if client.Role == "root" {
				count++
			}
		}
		return count
	}
	if there := clients(); there != 3 {
		t.Errorf("%d connections: one of gRPC and two lanes are wanted", there)
	}
	n.NoLane = true
	if there := clients(); there != 4 {
		t.Errorf("%d connections: one more, of gRPC alone, is wanted", there)
	}
}
