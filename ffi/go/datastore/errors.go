package datastore

// Errors for the person who reads them. The node says in the trailer `basalt-kind` exactly what went wrong; this file turns that
// into values a caller can test with errors.Is, and keeps go-datastore's own values identical where its contract asks for it.

import (
	"context"
	"errors"
	"fmt"
	"strings"

	ds "github.com/ipfs/go-datastore"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Kind says what a caller can do about an error. All but Away, Panicked and Unknown are the node's own names.
type Kind string

// The kinds that a node reports, and those that only the client knows: Away (no agent answers), Panicked (the node in this process
// did; the outcome is unknown) and Unknown (an error without a kind).
const (
	NotFound     Kind = "NotFound"
	NoSpace      Kind = "NoSpace"
	Corrupt      Kind = "Corrupt"
	TooLarge     Kind = "TooLarge"
	InvalidKey   Kind = "InvalidKey"
	InvalidValue Kind = "InvalidValue"
	ReadOnly     Kind = "ReadOnly"
	Unavailable  Kind = "Unavailable"
	Unsupported  Kind = "Unsupported"
	Locked       Kind = "Locked"
	Format       Kind = "Format"
	Closed       Kind = "Closed"
	IO           Kind = "Io"
	Refused      Kind = "Refused"
	Panicked     Kind = "Panicked"
	Away         Kind = "Away"
	Unknown      Kind = "Unknown"
)

// Error is what every call of this package returns where it can't return one of go-datastore's own values or the context's error.
// Test the kind with errors.Is(err, datastore.ErrNoSpace) and the like.
type Error struct {
	Kind    Kind
	Op      string // what was tried: "put", "query"...
	Key     string // on what, in the node's terms; may be empty
	Message string // why, and what to do, made for a person
}

func (e *Error) Error() string {
	var s strings.Builder
	s.WriteString("basalt")
	if e.Op != "" {
		s.WriteString(": " + e.Op)
	}
	if e.Key != "" {
		s.WriteString(" " + e.Key)
	}
	if e.Message != "" {
		s.WriteString(": " + e.Message)
	} else {
		s.WriteString(": " + string(e.Kind))
	}
	return s.String()
}

// Is makes the sentinels below match every error of their kind.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Kind == e.Kind && t.Op == "" && t.Key == "" && t.Message == ""
}

// One sentinel a kind, for errors.Is.
var (
	ErrNoSpace      = &Error{Kind: NoSpace}
	ErrCorrupt      = &Error{Kind: Corrupt}
	ErrTooLarge     = &Error{Kind: TooLarge}
	ErrInvalidKey   = &Error{Kind: InvalidKey}
	ErrInvalidValue = &Error{Kind: InvalidValue}
	ErrReadOnly     = &Error{Kind: ReadOnly}
	ErrUnavailable  = &Error{Kind: Unavailable}
	ErrUnsupported  = &Error{Kind: Unsupported}
	ErrRefused      = &Error{Kind: Refused}
	ErrAway         = &Error{Kind: Away}
	ErrClosed       = &Error{Kind: Closed}
	ErrLocked       = &Error{Kind: Locked}
	ErrPanicked     = &Error{Kind: Panicked}
)

// kindTrailer is the name of the trailer that carries a Kind.
const kindTrailer = "basalt-kind"

func kindOf(trailer metadata.MD) Kind {
	if v := trailer.Get(kindTrailer); len(v) > 0 {
		return Kind(v[0])
	}
	return ""
}

// fault is one failed attempt: the error for the caller, and whether trying again on a new connection can help.
type fault struct {
	err  error
	lost bool // the connection or the node behind it is gone; nothing is known about the outcome
}

// judge turns a gRPC error into what the caller gets. `broken` says that the connection under it was seen to break.
func judge(ctx context.Context, op, key string, err error, trailer metadata.MD, broken bool) fault {
	var own *Error
	if errors.As(err, &own) {
		return fault{err: err} // ours, made before anything was sent
	}
	st, _ := status.FromError(err)
	if kind := kindOf(trailer); kind != "" {
		return nodeFault(op, key, kind, st.Message())
	}
	if ctxErr := ctx.Err(); ctxErr != nil {
		return fault{err: ctxErr}
	}
	switch st.Code() {
	case codes.DeadlineExceeded:
		return fault{err: context.DeadlineExceeded}
	case codes.Unavailable, codes.Canceled, codes.Aborted:
		return fault{err: errors.New(st.Message()), lost: true}
	case codes.NotFound:
		return fault{err: ds.ErrNotFound}
	case codes.Unimplemented:
		return fault{err: &Error{Unsupported, op, key, "the agent is older than this client and does not know the call; update basalt"}}
	}
	if broken {
		return fault{err: errors.New(st.Message()), lost: true}
	}
	return fault{err: &Error{Unknown, op, key, fmt.Sprintf("%s (%s)", st.Message(), st.Code())}}
}

// nodeFault is the node's word on a call, by whichever way it came.
func nodeFault(op, key string, kind Kind, message string) fault {
	switch kind {
	case NotFound:
		return fault{err: ds.ErrNotFound}
	case Closed:
		// The node is being closed: its agent stops or hands over, and a successor may answer in a moment.
		return fault{err: &Error{kind, op, key, message}, lost: true}
	default:
		return fault{err: &Error{kind, op, key, message}}
	}
}
