package run

// A store that does nothing, in a known time, and writes a known amount of it.

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	dsync "github.com/ipfs/go-datastore/sync"

	"basalt.dev/go/bench/measure"
	"basalt.dev/go/bench/stores"
)

type fake struct {
	ds.Batching
	put, get, sync time.Duration
	// amplification: bytes written for each that is put. flushesPerPut, flushesPerSync of the device.
	amplification, flushesPerPut, flushesPerSync int64
	cpuPerPut                                    float64
	failAt                                       int64 // the Put that fails, 0: none
	lies                                         bool  // Has is always false

	puts, syncs    atomic.Int64
	written, flush atomic.Int64
	mutex          sync.Mutex
	cpu            float64
}

func newFake() *fake {
	return &fake{Batching: dsync.MutexWrap(ds.NewMapDatastore()), amplification: 1, flushesPerPut: 1, flushesPerSync: 1}
}

func (f *fake) Put(ctx context.Context, key ds.Key, value []byte) error {
	n := f.puts.Add(1)
	if n == f.failAt {
		return errors.New("no space left")
	}
	time.Sleep(f.put)
	f.written.Add(f.amplification * int64(len(value)))
	f.flush.Add(f.flushesPerPut)
	f.mutex.Lock()
	f.cpu += f.cpuPerPut
	f.mutex.Unlock()
	return f.Batching.Put(ctx, key, append([]byte(nil), value...))
}

func (f *fake) Get(ctx context.Context, key ds.Key) ([]byte, error) {
	time.Sleep(f.get)
	return f.Batching.Get(ctx, key)
}

func (f *fake) Has(ctx context.Context, key ds.Key) (bool, error) {
	if f.lies {
		return false, nil
	}
	return f.Batching.Has(ctx, key)
}

func (f *fake) Sync(ctx context.Context, prefix ds.Key) error {
	f.syncs.Add(1)
	time.Sleep(f.sync)
	f.flush.Add(f.flushesPerSync)
	return nil
}

func (f *fake) Batch(context.Context) (ds.Batch, error) { return ds.NewBasicBatch(f), nil }

func (f *fake) Close() error { return nil }

// store opens the fake as one of a class.
func (f *fake) store(class stores.Class) stores.Store {
	return stores.Store{Name: "fake", Class: class, Open: func(_ context.Context, o stores.Options) (*stores.Opened, error) {
		if o.Filling {
			return &stores.Opened{Batching: filling{f}}, nil
		}
		return &stores.Opened{Batching: f}, nil
	}}
}

// filling takes no time.
type filling struct{ f *fake }

func (o filling) Put(ctx context.Context, key ds.Key, value []byte) error {
	return o.f.Batching.Put(ctx, key, append([]byte(nil), value...))
}
func (o filling) Get(ctx context.Context, key ds.Key) ([]byte, error) {
	return o.f.Batching.Get(ctx, key)
}
func (o filling) Has(ctx context.Context, key ds.Key) (bool, error) {
	return o.f.Batching.Has(ctx, key)
}
func (o filling) GetSize(ctx context.Context, key ds.Key) (int, error) {
	return o.f.Batching.GetSize(ctx, key)
}
func (o filling) Delete(ctx context.Context, key ds.Key) error { return o.f.Batching.Delete(ctx, key) }
func (o filling) Query(ctx context.Context, q query.Query) (query.Results, error) {
	return o.f.Batching.Query(ctx, q)
}
func (o filling) Batch(context.Context) (ds.Batch, error) { return ds.NewBasicBatch(o), nil }
func (o filling) Sync(context.Context, ds.Key) error      { return nil }
func (o filling) Close() error                            { return nil }

// meter counts what the fake says that it did, on a disk that already had something.
func (f *fake) meter(cache bool) Meter {
	return Meter{
		Processes: func(int) (measure.Process, error) {
			f.mutex.Lock()
			defer f.mutex.Unlock()
			return measure.Process{Written: 1000 + f.written.Load(), CPU: 5 + f.cpu, RSS: 1 << 20, Peak: 4 << 20, FDs: 3}, nil
		},
		Device: func(string) (measure.Device, error) {
			return measure.Device{Written: 77 + f.written.Load(), Flushes: 9 + f.flush.Load(), Cache: cache}, nil
		},
		Space: func(string) (measure.Space, error) {
			return measure.Space{Bytes: 2 * f.written.Load(), Inodes: 12}, nil
		},
		Settle: func(string) error { return nil },
		Forget: func(string, bool) error { return nil },
	}
}
