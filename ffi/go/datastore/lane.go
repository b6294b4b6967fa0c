package datastore

// The fast lane: framed messages on a socket of its own beside gRPC's (docs/lane.md), for what Kubo asks often. A session whose agent knows
// the lane has two, so that reads don't wait behind writes; without them, or without the feature, the same calls go by gRPC.

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"basalt.dev/go/internal/basaltv1"
	"google.golang.org/protobuf/proto"
)

// laneFeature is what a node that has lanes says in its handshake.
const laneFeature = "lane.1"

const (
	lanePreface    = "BSLTLN\x00\x01"
	laneHead       = 16
	laneBuffer     = 64 << 10
	laneSendBuffer = 1 << 20
	flagTTL        = 1
	flagCommit     = 1
	flagGiveUp     = 2
	operationHead  = 8
	operationPut   = 1
	operationDel   = 2
)

// What a frame asks.
const (
	laneHello = iota + 1
	laneGet
	laneHas
	laneGetSize
	laneGetSizes
	lanePut
	laneDelete
	laneBatch
)

// laneKinds are the errors of answers, by number; 0 is none.
var laneKinds = [...]Kind{"", NotFound, NoSpace, Corrupt, TooLarge, InvalidKey, InvalidValue, ReadOnly, Unavailable, Unsupported, Locked, Format, Closed, IO}

// laneNumber counts the requests of this process, over all its lanes.
var laneNumber atomic.Uint64

// lane is one connection. Any number of goroutines may ask; one of its own reads the answers.
type lane struct {
	conn  net.Conn
	ended func()
	// turn is held while a frame is being written. A channel, so that a caller may give up waiting for it.
	turn  chan struct{}
	heads [laneHead + operationHead]byte // guarded by turn

	mu      sync.Mutex
	waiting map[uint64]*waiter
	err     error // why it is over; guarded by mu
}

// waiter is a request that has no answer yet.
type waiter struct {
	answered chan struct{} // has one place
	what     byte
	payload  []byte
	err      error // the lane ended before
}

var waiters = sync.Pool{New: func() any { return &waiter{answered: make(chan struct{}, 1)} }}

// errLaneOver is the end of a lane that nobody could put into words.
var errLaneOver = errors.New("the fast lane to the agent broke")

// openLane shakes hands on a connected socket; ended is called once the lane is over.
func openLane(conn net.Conn, hello *basaltv1.HandshakeRequest, ended func()) (*lane, error) {
	l := &lane{conn: conn, ended: ended, turn: make(chan struct{}, 1), waiting: map[uint64]*waiter{}}
	said, err := proto.Marshal(hello)
	if err != nil {
		conn.Close()
		return nil, err
	}
	if c, ok := conn.(*net.UnixConn); ok {
		_ = c.SetWriteBuffer(laneSendBuffer) // a block goes into the socket at once, where the kernel allows as much
	}
	_ = conn.SetDeadline(time.Now().Add(handshakeMax))
	number := laneNumber.Add(1)
	frame := append([]byte(lanePreface), make([]byte, laneHead)...)
	putHead(frame[len(lanePreface):], len(said), laneHello, 0, 0, number)
	if _, err = conn.Write(append(frame, said...)); err != nil {
		conn.Close()
		return nil, err
	}
	in := bufio.NewReaderSize(conn, laneBuffer)
	what, _, payload, err := readFrame(in)
	switch {
	case err != nil:
	case what != 0:
		err = errors.New(string(payload))
	default:
		err = proto.Unmarshal(payload, &basaltv1.HandshakeResponse{})
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	_ = conn.SetDeadline(time.Time{})
	go l.read(in)
	return l, nil
}

func putHead(head []byte, bytes int, what, flags byte, key int, number uint64) {
	binary.LittleEndian.PutUint32(head, uint32(bytes))
	head[4], head[5] = what, flags
	binary.LittleEndian.PutUint16(head[6:], uint16(key))
	binary.LittleEndian.PutUint64(head[8:], number)
}

// readFrame reads an answer; its payload is the caller's own.
func readFrame(in *bufio.Reader) (what byte, number uint64, payload []byte, err error) {
	head, err := in.Peek(laneHead)
	if err != nil {
		return 0, 0, nil, err
	}
	bytes := binary.LittleEndian.Uint32(head)
	what, number = head[4], binary.LittleEndian.Uint64(head[8:])
	if _, err = in.Discard(laneHead); err != nil {
		return 0, 0, nil, err
	}
	if bytes > messageMax {
		return 0, 0, nil, fmt.Errorf("the agent sent a frame of %d bytes on its fast lane", bytes)
	}
	payload = make([]byte, bytes)
	_, err = io.ReadFull(in, payload)
	return what, number, payload, err
}

// read hands answers out until the lane ends.
func (l *lane) read(in *bufio.Reader) {
	for {
		what, number, payload, err := readFrame(in)
		if err == nil && number == 0 {
			err = errors.New(string(payload))
		}
		if err != nil {
			l.end(err)
			return
		}
		l.mu.Lock()
		w := l.waiting[number]
		delete(l.waiting, number)
		l.mu.Unlock()
		if w != nil { // else its caller has given up
			w.what, w.payload = what, payload
			w.answered <- struct{}{}
		}
	}
}

// end ends the lane for everybody who waits, and for those to come.
func (l *lane) end(err error) {
	if err == nil || err == io.EOF || errors.Is(err, net.ErrClosed) {
		err = errLaneOver
	}
	l.conn.Close()
	l.ended()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
	}
	for number, w := range l.waiting {
		delete(l.waiting, number)
		w.err = l.err
		w.answered <- struct{}{}
	}
}

// close ends the lane; its reader sees to the rest.
func (l *lane) close() { l.conn.Close() }

func (l *lane) broken() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err != nil
}

// begin registers a request.
func (l *lane) begin(number uint64) (*waiter, error) {
	w := waiters.Get().(*waiter)
	w.what, w.payload, w.err = 0, nil, nil
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return nil, l.err
	}
	l.waiting[number] = w
	return w, nil
}

// send writes frames while no other caller does; write gets scratch memory for their heads.
func (l *lane) send(ctx context.Context, write func(heads []byte) error) error {
	select {
	case l.turn <- struct{}{}:
	default:
		// A cancelled caller is given the time that it has for an answer.
		ctx, end := patient(ctx)
		defer end()
		select {
		case l.turn <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	err := write(l.heads[:])
	<-l.turn
	if err != nil {
		l.end(err)
	}
	return err
}

// wait returns the answer to a request. A cancelled caller waits for grace, as with gRPC (see patient).
func (l *lane) wait(ctx context.Context, number uint64, w *waiter) (byte, []byte, error) {
	select {
	case <-w.answered:
	case <-ctx.Done():
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-w.answered:
		case <-timer.C:
			if l.forget(number) {
				return 0, nil, ctx.Err()
			}
			<-w.answered // it came at the last moment
		}
	}
	what, payload, err := w.what, w.payload, w.err
	waiters.Put(w)
	return what, payload, err
}

// forget takes a request back; false where it is being answered.
func (l *lane) forget(number uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, there := l.waiting[number]
	delete(l.waiting, number)
	return there
}

// ask sends one frame and returns what its answer holds. ttl is for a Put alone; payload is not kept.
func (l *lane) ask(ctx context.Context, op string, what byte, key string, ttlMs int64, payload []byte) ([]byte, fault) {
	return l.askAs(ctx, laneNumber.Add(1), op, what, key, ttlMs, payload)
}

// askAs is ask for a request that may have been sent before, by another lane, with this number.
func (l *lane) askAs(ctx context.Context, number uint64, op string, what byte, key string, ttlMs int64, payload []byte) ([]byte, fault) {
	if len(key) > math.MaxUint16 {
		return nil, fault{err: &Error{InvalidKey, op, "", fmt.Sprintf("a key of %d bytes: at most %d", len(key), math.MaxUint16)}}
	}
	w, err := l.begin(number)
	if err != nil {
		return nil, fault{err: err, lost: true}
	}
	err = l.send(ctx, func(heads []byte) error {
		bytes, flags, ttl := len(key)+len(payload), byte(0), 0
		if ttlMs != 0 {
			bytes, flags, ttl = bytes+8, flagTTL, 8
		}
		putHead(heads, bytes, what, flags, len(key), number)
		frame := make([]byte, 0, 256)
		frame = append(append(frame, heads[:laneHead]...), key...)
		if ttl > 0 {
			frame = binary.LittleEndian.AppendUint64(frame, uint64(ttlMs))
		}
		return l.write(frame, payload)
	})
	if err != nil {
		l.forget(number)
		return nil, l.lost(ctx, err)
	}
	outcome, answer, err := l.wait(ctx, number, w)
	if err != nil {
		return nil, l.lost(ctx, err)
	}
	return answer, laneFault(op, key, outcome, answer)
}

// write sends a frame's beginning and its payload; a small one in a single piece.
func (l *lane) write(frame, payload []byte) error {
	if len(payload) <= 4<<10 {
		_, err := l.conn.Write(append(frame, payload...))
		return err
	}
	parts := net.Buffers{frame, payload}
	_, err := parts.WriteTo(l.conn)
	return err
}

// lost is the fault of a request that has no answer.
func (l *lane) lost(ctx context.Context, err error) fault {
	if !l.broken() && ctx.Err() != nil {
		return fault{err: ctx.Err()}
	}
	return fault{err: err, lost: true}
}

// laneFault is what an answer says; none where it is done.
func laneFault(op, key string, outcome byte, message []byte) fault {
	if outcome == 0 {
		return fault{}
	}
	if int(outcome) >= len(laneKinds) {
		return fault{err: &Error{Unknown, op, key, fmt.Sprintf("%s (answer %d)", message, outcome)}}
	}
	return nodeFault(op, key, laneKinds[outcome], string(message))
}

func malformed(op, key string) fault {
	return fault{err: &Error{Unknown, op, key, "the agent's answer on the fast lane has not the size that it must have"}}
}

func (l *lane) has(ctx context.Context, key string) (bool, fault) {
	answer, ft := l.ask(ctx, "has", laneHas, key, 0, nil)
	if ft.err == nil && len(answer) != 1 {
		ft = malformed("has", key)
	}
	return ft.err == nil && answer[0] == 1, ft
}

func (l *lane) size(ctx context.Context, key string) (int, fault) {
	answer, ft := l.ask(ctx, "get size", laneGetSize, key, 0, nil)
	if ft.err != nil {
		return 0, ft
	}
	if len(answer) != 8 || binary.LittleEndian.Uint64(answer) > math.MaxInt64 {
		return 0, malformed("get size", key)
	}
	return int(binary.LittleEndian.Uint64(answer)), ft
}

func (l *lane) sizes(ctx context.Context, keys []string) ([]int64, fault) {
	var payload []byte
	for _, key := range keys {
		if len(key) > math.MaxUint16 {
			return nil, fault{err: &Error{InvalidKey, "get sizes", "", fmt.Sprintf("a key of %d bytes: at most %d", len(key), math.MaxUint16)}}
		}
		payload = binary.LittleEndian.AppendUint16(payload, uint16(len(key)))
		payload = append(payload, key...)
	}
	answer, ft := l.ask(ctx, "get sizes", laneGetSizes, "", 0, payload)
	if ft.err != nil {
		return nil, ft
	}
	if len(answer) != 8*len(keys) {
		return nil, malformed("get sizes", "")
	}
	sizes := make([]int64, len(keys))
	for i := range sizes {
		sizes[i] = int64(binary.LittleEndian.Uint64(answer[8*i:]))
	}
	return sizes, ft
}

// batch sends a batch in frames of about chunkMax.
func (l *lane) batch(ctx context.Context, ops []*basaltv1.BatchOperation) fault {
	number := laneNumber.Add(1)
	w, err := l.begin(number)
	if err != nil {
		return fault{err: err, lost: true}
	}
	for begin := 0; begin < len(ops); {
		end, bytes := begin, 0
		for end < len(ops) {
			size := operationHead + len(ops[end].Key) + len(ops[end].GetPut())
			if end > begin && bytes+size > chunkMax {
				break
			}
			bytes += size
			end++
		}
		var flags byte
		if end == len(ops) {
			flags = flagCommit
		}
		part := ops[begin:end]
		begin = end
		if err = l.send(ctx, func([]byte) error { return l.writeBatch(number, flags, bytes, part) }); err != nil {
			l.forget(number)
			// What has arrived of it is thrown away with the lane, or here.
			if !l.broken() {
				_ = l.send(context.Background(), func(heads []byte) error {
					putHead(heads, 0, laneBatch, flagGiveUp, 0, number)
					return l.write(heads[:laneHead], nil)
				})
			}
			return l.lost(ctx, err)
		}
	}
	outcome, answer, err := l.wait(ctx, number, w)
	if err != nil {
		return l.lost(ctx, err)
	}
	return laneFault("commit", "", outcome, answer)
}

// writeBatch writes one part of a batch: large values from where they are, small ones gathered.
func (l *lane) writeBatch(number uint64, flags byte, bytes int, ops []*basaltv1.BatchOperation) error {
	head := make([]byte, laneHead, 4<<10)
	putHead(head, bytes, laneBatch, flags, 0, number)
	var parts net.Buffers
	for _, o := range ops {
		what, value := byte(operationPut), o.GetPut()
		if o.GetDelete() {
			what, value = operationDel, nil
		}
		head = append(head, what, 0)
		head = binary.LittleEndian.AppendUint16(head, uint16(len(o.Key)))
		head = binary.LittleEndian.AppendUint32(head, uint32(len(value)))
		head = append(head, o.Key...)
		if len(value) <= 4<<10 {
			head = append(head, value...)
			continue
		}
		parts = append(parts, head, value)
		head = make([]byte, 0, 512)
	}
	if len(head) > 0 {
		parts = append(parts, head)
	}
	_, err := parts.WriteTo(l.conn)
	return err
}
