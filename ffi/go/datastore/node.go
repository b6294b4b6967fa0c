package datastore

// The connections to one node. A gRPC channel reconnects behind one's back, but here every connection must begin with a handshake
// (is this still our node? does it speak our protocol?), so a session owns exactly one socket: when that breaks, the session is
// over and the next call makes a new one, starting the agent first where that is allowed. Calls that lost their session are tried
// again for a bounded time; all of go-datastore's operations may be, but for one case that deletes.go describes.

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"basalt.dev/go/internal/basaltv1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Config says how to reach a node.
type Config struct {
	// Sockets is where the node's data socket may be, in the order in which to look.
	Sockets []string
	// NodeID is the id that the node must have; another one is refused by name. Empty: any.
	NodeID string
	// NodePath is the node's folder, for error messages; may be empty.
	NodePath string
	// Role is what `basalt status` shows for these connections: "root", "blocks", "pins".
	Role string
	// Client names the program for logs and `basalt status`.
	Client string
	// Retry bounds how long a call goes on trying while no agent answers. Zero: 30 s.
	Retry time.Duration
	// Start starts an agent where nobody serves the socket, and returns once one does. Nil: never.
	Start func(ctx context.Context) error
	// NoLane has every call go by gRPC.
	NoLane bool
	// Connections is how many sockets calls are spread over; more than one is opened only under load. Zero: the number of CPUs, at most 4.
	Connections int
}

const (
	retryDefault     = 30 * time.Second
	startMax         = 5 * time.Minute // recovery of a large node takes a while; the agent says in its log how far it is
	handshakeMax     = 20 * time.Second
	grace            = 5 * time.Second // for a call whose caller has been cancelled, while the agent answers
	backoffMin       = 10 * time.Millisecond
	backoffMax       = time.Second
	protocol         = 1
	connectionsMax   = 4
	busySession      = 8 // calls in flight on one connection before another one is opened
	windowStream     = 4 << 20
	windowConnection = 16 << 20
	socketBuffer     = 128 << 10
	messageMax       = 1 << 30
)

// clientID names this process to the node, for its whole life.
var clientID = func() []byte {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails, says crypto/rand
	return id
}()

// Node is a pool of connections to one node, shared by all datastores of this process that are views of it.
type Node struct {
	cfg   Config
	slots []slot

	deletes deletes
	outage  atomic.Bool // the agent was found away, and that was logged once

	refs   int // guarded by pool
	closed atomic.Bool
}

type slot struct {
	mu         sync.Mutex
	current    *session
	connecting *attempt
}

// attempt is a connection being made; all calls that need it wait for the same one.
type attempt struct {
	done    chan struct{}
	session *session
	err     error
}

type session struct {
	cc       *grpc.ClientConn
	rpc      basaltv1.DatastoreClient
	hello    *basaltv1.HandshakeResponse
	reads    *lane       // nil: by gRPC
	writes   *lane       // likewise
	broken   atomic.Bool // the socket was seen to fail
	retired  atomic.Bool // no new calls; closed when the last call has ended
	inflight atomic.Int64
	once     sync.Once
}

// pool holds the nodes that are open in this process, so that two mounts of one node share its connections.
var pool = struct {
	sync.Mutex
	nodes map[string]*Node
}{nodes: map[string]*Node{}}

// connect returns the process's Node for cfg, made if need be, after one handshake has succeeded.
func connect(ctx context.Context, cfg Config) (*Node, error) {
	if cfg.Retry == 0 {
		cfg.Retry = retryDefault
	}
	if cfg.Connections <= 0 {
		cfg.Connections = min(connectionsMax, runtime.NumCPU())
	}
	name := strings.Join(append(slices.Clone(cfg.Sockets), cfg.NodeID, strconv.FormatBool(cfg.NoLane)), "\x00")
	pool.Lock()
	n := pool.nodes[name]
	if n == nil {
		n = &Node{cfg: cfg, slots: make([]slot, cfg.Connections)}
		pool.nodes[name] = n
	}
	n.refs++
	pool.Unlock()

	if err := n.open(ctx); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// open makes the first connection. It says at once what is wrong where nobody serves the node and nobody may be started, or where
// starting failed; an agent that is just closing (idle for too long, say) is waited for.
func (n *Node) open(ctx context.Context) error {
	since := time.Now()
	for {
		_, err := n.session(ctx, time.Now().Add(startMax))
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var e *Error
		if errors.As(err, &e) {
			return err
		}
		var failed startFailed
		if errors.As(err, &failed) {
			return err
		}
		if absent(err) && n.cfg.Start == nil || time.Since(since) > n.cfg.Retry {
			return n.away("open", "", 0, err)
		}
		select {
		case <-time.After(10 * backoffMin):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// startFailed is an error of Config.Start, told apart because opening does not try again after it.
type startFailed struct{ error }

func (e startFailed) Unwrap() error { return e.error }

// Close gives back what connect took; the last one closes the connections.
func (n *Node) Close() error {
	pool.Lock()
	defer pool.Unlock()
	n.refs--
	if n.refs > 0 {
		return nil
	}
	for name, other := range pool.nodes {
		if other == n {
			delete(pool.nodes, name)
		}
	}
	n.closed.Store(true)
	for i := range n.slots {
		sl := &n.slots[i]
		sl.mu.Lock()
		if sl.current != nil {
			sl.current.close()
			sl.current = nil
		}
		sl.mu.Unlock()
	}
	return nil
}

// call runs f on a connection, and again on a new one while the connection is lost under it, for at most the configured time.
func (n *Node) call(ctx context.Context, op, key string, f func(context.Context, *session, ...grpc.CallOption) error) error {
	return n.try(ctx, op, key, func(ctx context.Context, s *session) fault {
		return unary(ctx, op, key, s, func(ctx context.Context, o ...grpc.CallOption) error { return f(ctx, s, o...) })
	})
}

// read is call for what a lane does too: by the session's lane for reads, if it has one, else by f.
func (n *Node) read(ctx context.Context, op, key string, byLane func(*lane) fault, f func(context.Context, *session, ...grpc.CallOption) error) error {
	return n.try(ctx, op, key, func(ctx context.Context, s *session) fault {
		if s.reads != nil {
			return byLane(s.reads)
		}
		return unary(ctx, op, key, s, func(ctx context.Context, o ...grpc.CallOption) error { return f(ctx, s, o...) })
	})
}

// unary makes one gRPC call.
func unary(ctx context.Context, op, key string, s *session, f func(context.Context, ...grpc.CallOption) error) fault {
	rpc, end := patient(ctx)
	defer end()
	var trailer metadata.MD
	if err := f(rpc, grpc.Trailer(&trailer)); err != nil {
		return judge(ctx, op, key, err, trailer, s.broken.Load())
	}
	return fault{}
}

// patient returns the context for one rpc. A cancelled caller waits for no agent that is away, but one that answers is let to end the
// call, within grace: Kubo saves its provide queue with a context that it has cancelled itself, as every store in its own process
// allows, and a Put that is cut off in the middle leaves nobody wiser.
func patient(ctx context.Context) (rpc context.Context, end func()) {
	if ctx.Done() == nil {
		return ctx, func() {}
	}
	rpc, cancel := context.WithCancel(context.WithoutCancel(ctx))
	unbind := context.AfterFunc(ctx, func() { time.AfterFunc(grace, cancel) })
	return rpc, func() { unbind(); cancel() }
}

// try is the loop under every call: f says by its fault whether the connection was lost.
func (n *Node) try(ctx context.Context, op, key string, f func(context.Context, *session) fault) error {
	var since time.Time
	backoff := backoffMin
	for {
		deadline := since.Add(n.cfg.Retry)
		if since.IsZero() {
			deadline = time.Now().Add(n.cfg.Retry)
		}
		s, err := n.session(ctx, deadline)
		if err == nil {
			s.inflight.Add(1)
			ft := f(ctx, s)
			if ft.lost {
				n.retire(s)
			}
			s.leave()
			if !ft.lost {
				return ft.err
			}
			err = ft.err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var e *Error
		if errors.As(err, &e) && e.Kind != Closed {
			return err
		}
		if n.closed.Load() {
			return &Error{Closed, op, key, "the datastore is closed"}
		}
		if since.IsZero() {
			since = time.Now()
			if !n.outage.Swap(true) {
				slog.Warn("basalt: the agent is away; trying again", "socket", n.socket(), "op", op, "error", err)
			}
		}
		wait := backoff/2 + mathrand.N(backoff)
		if time.Since(since)+wait > n.cfg.Retry {
			return n.away(op, key, time.Since(since), err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
		backoff = min(2*backoff, backoffMax)
	}
}

// away is the error for a node that nobody serves.
func (n *Node) away(op, key string, tried time.Duration, cause error) error {
	var s strings.Builder
	fmt.Fprintf(&s, "no agent answers on %s", n.socket())
	if tried > 0 {
		fmt.Fprintf(&s, " (tried for %s)", tried.Round(100*time.Millisecond))
	}
	fmt.Fprintf(&s, ": %v. ", cause)
	path := n.cfg.NodePath
	if path == "" {
		path = "PATH"
	}
	fmt.Fprintf(&s, "Start it with `basalt agent --node %s`", path)
	if n.cfg.Start == nil {
		s.WriteString(", or set \"autostart\": true in Datastore.Spec")
	}
	s.WriteString("; Kubo need not be restarted, the next call finds it")
	return &Error{Away, op, key, s.String()}
}

// session picks a connection: the first that isn't busy, else the least busy one, made first if it isn't there. It returns an
// error of kind Refused or the like where trying again can't help, a plain error where it can.
func (n *Node) session(ctx context.Context, deadline time.Time) (*session, error) {
	best, bestLoad := 0, int64(-1)
	for i := range n.slots {
		sl := &n.slots[i]
		sl.mu.Lock()
		s := sl.current
		if s != nil && s.broken.Load() {
			s.retire() // it broke while no call was there to see it
			sl.current, s = nil, nil
		}
		sl.mu.Unlock()
		if s == nil {
			best = i // the first one that is not there: the ones before it are busy
			break
		}
		load := s.inflight.Load()
		if load < busySession {
			return s, nil
		}
		if bestLoad < 0 || load < bestLoad {
			best, bestLoad = i, load
		}
	}

	sl := &n.slots[best]
	sl.mu.Lock()
	if s := sl.current; s != nil && !s.broken.Load() {
		sl.mu.Unlock()
		return s, nil
	}
	if n.closed.Load() {
		sl.mu.Unlock()
		return nil, &Error{Closed, "", "", "the datastore is closed"}
	}
	at := sl.connecting
	if at == nil {
		at = &attempt{done: make(chan struct{})}
		sl.connecting = at
		go n.run(sl, at)
	}
	sl.mu.Unlock()

	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case <-at.done:
		return at.session, at.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-timer.C:
		return nil, errors.New("the agent is starting and does not answer yet")
	}
}

// run makes one connection for all who wait for the slot. It does not end with the caller that happened to be first.
func (n *Node) run(sl *slot, at *attempt) {
	ctx, cancel := context.WithTimeout(context.Background(), startMax)
	defer cancel()
	at.session, at.err = n.connectOnce(ctx)
	sl.mu.Lock()
	sl.connecting = nil
	if at.err == nil {
		if n.closed.Load() {
			at.session.close()
			at.session, at.err = nil, &Error{Closed, "", "", "the datastore is closed"}
		} else {
			if before := sl.current; before != nil {
				before.retire()
			}
			sl.current = at.session
			if n.outage.Swap(false) {
				slog.Info("basalt: the agent is back", "socket", n.socket())
			}
		}
	}
	sl.mu.Unlock()
	close(at.done)
}

func (n *Node) connectOnce(ctx context.Context) (*session, error) {
	conn, err := n.dial(ctx)
	if absent(err) && n.cfg.Start != nil {
		if err := n.cfg.Start(ctx); err != nil {
			return nil, startFailed{err}
		}
		conn, err = n.dial(ctx)
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, &Error{Refused, "connect", "", fmt.Sprintf(
			"%v. The agent lets in its own user and the group `basalt` (allow_uids, allow_gids in its config)", err)}
	}
	if err != nil {
		return nil, err
	}
	return n.greet(ctx, conn)
}

// dial connects to the first socket that somebody serves; where there is none, the error is about the usual place.
func (n *Node) dial(ctx context.Context) (net.Conn, error) {
	err := fmt.Errorf("no path for a socket: %w", os.ErrNotExist)
	for i, socket := range n.cfg.Sockets {
		var d net.Dialer
		conn, dialErr := d.DialContext(ctx, "unix", socket)
		if dialErr == nil {
			return conn, nil
		}
		if i == 0 || !absent(dialErr) {
			err = dialErr
		}
	}
	return nil, err
}

// socket is the usual place of the node's socket, for messages.
func (n *Node) socket() string {
	if len(n.cfg.Sockets) == 0 {
		return "?"
	}
	return n.cfg.Sockets[0]
}

// absent says whether a failed dial means that nobody serves the socket.
func absent(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

// watched is a connection that remembers that it failed, so that an error seen above it can be told from an answer.
type watched struct {
	net.Conn
	s *session
}

func (w *watched) Read(p []byte) (int, error) {
	count, err := w.Conn.Read(p)
	if err != nil {
		w.s.broken.Store(true)
	}
	return count, err
}

func (w *watched) Write(p []byte) (int, error) {
	count, err := w.Conn.Write(p)
	if err != nil {
		w.s.broken.Store(true)
	}
	return count, err
}

func (w *watched) Close() error {
	w.s.broken.Store(true)
	return w.Conn.Close()
}

// greet makes a session of a connected socket.
func (n *Node) greet(ctx context.Context, conn net.Conn) (*session, error) {
	s := &session{}
	first := make(chan net.Conn, 1)
	first <- &watched{conn, s}
	cc, err := grpc.NewClient("passthrough:///basalt",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			select {
			case c := <-first:
				return c, nil
			default:
				return nil, errors.New("the connection to the agent broke")
			}
		}),
		grpc.WithAuthority("localhost"),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithIdleTimeout(0),
		grpc.WithInitialWindowSize(windowStream),
		grpc.WithInitialConnWindowSize(windowConnection),
		grpc.WithReadBufferSize(socketBuffer),
		grpc.WithWriteBufferSize(socketBuffer),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(messageMax), grpc.MaxCallSendMsgSize(messageMax)),
	)
	if err != nil {
		conn.Close()
		return nil, err
	}
	s.cc, s.rpc = cc, basaltv1.NewDatastoreClient(cc)

	ctx, cancel := context.WithTimeout(ctx, handshakeMax)
	defer cancel()
	var trailer metadata.MD
	hello := &basaltv1.HandshakeRequest{
		ProtocolMin:  protocol,
		ProtocolMax:  protocol,
		Client:       n.cfg.Client,
		ExpectNodeId: n.cfg.NodeID,
		Role:         n.cfg.Role,
		ClientId:     clientID,
	}
	s.hello, err = s.rpc.Handshake(ctx, hello, grpc.Trailer(&trailer))
	if err != nil {
		s.close()
		if status.Code(err) == codes.FailedPrecondition || status.Code(err) == codes.PermissionDenied {
			return nil, &Error{Refused, "handshake", "", fmt.Sprintf("the agent on %s refuses: %s", n.socket(), status.Convert(err).Message())}
		}
		return nil, fmt.Errorf("handshake: %s", status.Convert(err).Message())
	}
	if want, got := n.cfg.NodeID, s.hello.NodeId; want != "" && got != want {
		s.close()
		return nil, &Error{Refused, "handshake", "", fmt.Sprintf(
			"the agent on %s serves node %s, but this repo belongs to node %s. Point \"path\" in Datastore.Spec at the folder of node %s",
			n.socket(), got, want, want)}
	}
	if !n.cfg.NoLane && slices.Contains(s.hello.Features, laneFeature) {
		n.widen(ctx, s, hello)
	}
	return s, nil
}

// widen opens the session's lanes. Where the agent has none left, gRPC does all that they would.
func (n *Node) widen(ctx context.Context, s *session, hello *basaltv1.HandshakeRequest) {
	var lanes [2]*lane
	for i := range lanes {
		conn, err := n.dial(ctx)
		if err == nil {
			lanes[i], err = openLane(conn, hello, func() { s.broken.Store(true) })
		}
		if err != nil {
			slog.Debug("basalt: no fast lane", "socket", n.socket(), "error", err)
			if i > 0 {
				lanes[0].close()
			}
			return
		}
	}
	s.reads, s.writes = lanes[0], lanes[1]
}

// close ends the session. Not on the caller's time: gRPC gives a peer that may be gone seconds to take its good-bye.
func (s *session) close() {
	s.once.Do(func() {
		s.retired.Store(true)
		if s.reads != nil {
			s.reads.close()
			s.writes.close()
		}
		go s.cc.Close()
	})
}

// leave ends a call on the session, and the session with the last call if it is retired.
func (s *session) leave() {
	if s.inflight.Add(-1) == 0 && s.retired.Load() {
		s.close()
	}
}

// retire takes a session out of use; calls that still run on it may end (a server that drains lets them).
func (n *Node) retire(s *session) {
	for i := range n.slots {
		sl := &n.slots[i]
		sl.mu.Lock()
		if sl.current == s {
			sl.current = nil
		}
		sl.mu.Unlock()
	}
	s.retire()
}

// retire lets the session end with the last call on it. What nobody retires is never closed, and keeps its goroutines for as long as the process lives.
func (s *session) retire() {
	s.retired.Store(true)
	if s.inflight.Load() == 0 {
		s.close()
	}
}
