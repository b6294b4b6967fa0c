package datastore

// Why a Delete is not simply sent again. When the connection breaks, nobody knows whether the node did it. Putting and reading may
// be repeated; deleting again would also remove what somebody put in between, after having been told that it is kept. So each
// Delete on its way is noted, a Put of the same key marks it, and a marked Delete that lost its connection ends in
// `outcome unknown` instead of being tried again. By the fast lane it has a number, by which the node knows whether it has done it,
// as long as it is not opened anew. (Other processes are not seen: one Kubo owns a repo.)

import "sync"

type deletes struct {
	mu   sync.Mutex
	keys map[string][]*deleting
}

// deleting is one Delete or one batch with deletes on its way.
type deleting struct {
	overtaken bool // guarded by deletes.mu
}

func (d *deletes) begin(keys ...string) *deleting {
	t := &deleting{}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.keys == nil {
		d.keys = map[string][]*deleting{}
	}
	for _, k := range keys {
		d.keys[k] = append(d.keys[k], t)
	}
	return t
}

func (d *deletes) end(t *deleting, keys ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, k := range keys {
		list := d.keys[k]
		for i, other := range list {
			if other == t {
				list = append(list[:i:i], list[i+1:]...)
				break
			}
		}
		if len(list) == 0 {
			delete(d.keys, k)
		} else {
			d.keys[k] = list
		}
	}
}

// put is called after a Put of these keys was acknowledged; `own` is the batch that did it, if it was one.
func (d *deletes) put(own *deleting, keys ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.keys) == 0 {
		return
	}
	for _, k := range keys {
		for _, t := range d.keys[k] {
			if t != own {
				t.overtaken = true
			}
		}
	}
}

func (d *deletes) overtaken(t *deleting) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return t.overtaken
}
