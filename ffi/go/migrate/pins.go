package migrate

import (
	"context"
	"errors"
	"fmt"
	"strings"

	pinner "github.com/ipfs/boxo/pinning/pinner"
	"github.com/ipfs/boxo/pinning/pinner/dspinner"
	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	dssync "github.com/ipfs/go-datastore/sync"
)

var dirtyKey = ds.NewKey("/pins/state/dirty")

// pinsOf lists the pins of a store as Kubo's own pinner sees them: "CID" to its modes and names. The store is only read.
func pinsOf(ctx context.Context, store ds.Datastore) (map[string]string, Pins, error) {
	counts := Pins{}
	pins := map[string]string{}
	dirty, err := store.Get(ctx, dirtyKey)
	if err != nil && !errors.Is(err, ds.ErrNotFound) {
		return nil, counts, err
	}
	if len(dirty) > 0 && dirty[0] == 1 {
		// Kubo was killed while it changed pins, and will mend its indexes when it starts. The pinner would do so now: on a copy, then.
		if store, err = pinsCopy(ctx, store); err != nil {
			return nil, counts, err
		}
	}
	p, err := dspinner.New(ctx, store, nil)
	if err != nil {
		return nil, counts, fmt.Errorf("open the pins: %w", err)
	}
	defer p.Close()
	collect := func(listed <-chan pinner.StreamedPin, mode string, n *int) error {
		for pin := range listed {
			if pin.Err != nil {
				return fmt.Errorf("list the %s pins: %w", mode, pin.Err)
			}
			*n++
			if pin.Pin.Name != "" {
				counts.Named++
			}
			pins[pin.Pin.Key.String()] += fmt.Sprintf("%s %q;", mode, pin.Pin.Name)
		}
		return nil
	}
	if err := collect(p.RecursiveKeys(ctx, true), "recursive", &counts.Recursive); err != nil {
		return nil, counts, err
	}
	if err := collect(p.DirectKeys(ctx, true), "direct", &counts.Direct); err != nil {
		return nil, counts, err
	}
	return pins, counts, nil
}

func pinsCopy(ctx context.Context, store ds.Datastore) (ds.Datastore, error) {
	found, err := store.Query(ctx, query.Query{Prefix: pinsKey.String()})
	if err != nil {
		return nil, err
	}
	defer found.Close()
	into := dssync.MutexWrap(ds.NewMapDatastore())
	for {
		entry, ok := found.NextSync()
		if !ok {
			return into, nil
		}
		if entry.Error != nil {
			return nil, entry.Error
		}
		if err := into.Put(ctx, ds.RawKey(entry.Key), entry.Value); err != nil {
			return nil, err
		}
	}
}

// comparePins makes sure that `pin ls` says the same over both stores.
func comparePins(ctx context.Context, from, to ds.Datastore) (Pins, error) {
	before, counts, err := pinsOf(ctx, from)
	if err != nil {
		return counts, fmt.Errorf("in the old store: %w", err)
	}
	after, _, err := pinsOf(ctx, to)
	if err != nil {
		return counts, fmt.Errorf("in the node: %w", err)
	}
	var differ []string
	for cid, modes := range before {
		if after[cid] != modes {
			differ = append(differ, cid)
		}
	}
	for cid := range after {
		if _, ok := before[cid]; !ok {
			differ = append(differ, cid)
		}
	}
	if len(differ) > 0 {
		return counts, fmt.Errorf("verify: %d pins are not the same in the node as in the old store, %s. The repo still uses its old store; "+
			"run basalt-migrate again", len(differ), strings.Join(differ[:min(len(differ), 10)], ", "))
	}
	return counts, nil
}
