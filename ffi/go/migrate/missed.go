package migrate

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
)

var mfsRoot = ds.NewKey("/local/filesroot")

// missed lists what the node has and the old store has not.
func (m *mirror) missed(ctx context.Context) (*Missed, error) {
	missed := &Missed{}
	var mu sync.Mutex
	err := each(ctx, m.node, blocksKey.String(), func(ctx context.Context, keys []ds.Key) error {
		for _, key := range keys {
			hash, ok := hashOf(key)
			if !ok {
				continue
			}
			there, err := m.from.Has(ctx, key)
			if err != nil {
				return err
			}
			if !there {
				mu.Lock()
				if missed.Blocks++; len(missed.CIDs) < missedMax {
					missed.CIDs = append(missed.CIDs, name(hash))
				}
				mu.Unlock()
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(missed.CIDs)

	before, _, err := pinsOf(ctx, m.from)
	if err != nil {
		return nil, err
	}
	now, _, err := pinsOf(ctx, m.node)
	if err != nil {
		return nil, err
	}
	for pin, modes := range now {
		if before[pin] != modes {
			missed.Pins = append(missed.Pins, pin)
		}
	}
	for pin := range before {
		if _, ok := now[pin]; !ok {
			missed.Back = append(missed.Back, pin)
		}
	}
	slices.Sort(missed.Pins)
	slices.Sort(missed.Back)

	for _, prefix := range []string{"/ipns", "/dht/ipns"} {
		err := each(ctx, m.to(ds.NewKey(prefix)), prefix, func(ctx context.Context, keys []ds.Key) error {
			for _, key := range keys {
				same, _, err := m.same(ctx, key)
				if err != nil {
					return err
				}
				if !same {
					mu.Lock()
					missed.Names = append(missed.Names, key.String())
					mu.Unlock()
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(missed.Names)

	same, root, err := m.same(ctx, mfsRoot)
	if err != nil {
		return nil, err
	}
	if !same {
		if c, err := cid.Cast(root); err == nil {
			missed.MFSRoot = c.String()
		} else {
			missed.MFSRoot = strings.TrimSpace(string(root))
		}
	}
	return missed, nil
}

// same says whether a key that is in the node (or beside it) has the same value in the old store; true where it is in neither.
func (m *mirror) same(ctx context.Context, key ds.Key) (bool, []byte, error) {
	now, err := m.to(key).Get(ctx, key)
	if errors.Is(err, ds.ErrNotFound) {
		return true, nil, nil
	}
	if err != nil {
		return false, nil, err
	}
	before, err := m.from.Get(ctx, key)
	if err != nil && !errors.Is(err, ds.ErrNotFound) {
		return false, nil, err
	}
	return err == nil && bytes.Equal(before, now), now, nil
}
