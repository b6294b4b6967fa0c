//! Snapshots that are atomic for a part of a node each (STORE 22): the keyspace's first, the shards' after, deletes held. Whatever else goes on meanwhile, what
//! they show together is a node: every pin has its blocks.

#![allow(clippy::unwrap_used)]
#![cfg(not(feature = "shuttle"))]

use std::{
    path::Path,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use basalt_blockstore::{
    Durability,
    disk::{Disk, sim::SimDisk},
};
use basalt_datastore::{Datastore, Key};

mod sim;
use sim::World;

/// Copies what a dataset's snapshot at this moment would have: all files of a folder and of those below it. The index is left out, and rebuilt.
fn snapshot(from: &SimDisk, to: &SimDisk, dir: &Path) {
    for name in from.list(dir).unwrap() {
        let path = dir.join(name);
        to.install(&path, from.contents(&path).unwrap());
    }
}

fn put(store: &Datastore, blocks: std::ops::Range<u32>) {
    for number in blocks {
        store.put(&sim::key(number), &sim::value(number)).unwrap();
    }
}

#[test]
fn snapshots_of_keyspace_and_shards_taken_one_after_the_other_make_a_node() {
    let world = World::new(Durability::Strict);
    let store = world.open();
    let pin = Key::new("/pins/pin/1").unwrap();
    put(&store, 0..10);
    store.put(&pin, b"0 to 9").unwrap();
    let copies = World::new(Durability::Strict);

    let hold = store.hold().unwrap();
    assert!(store.writes_wait(), "servers are told that a delete may wait");
    snapshot(&world.disk, &copies.disk, Path::new("/node/keyspace"));
    snapshot(&world.disk, &copies.disk, Path::new("/node/keyspace/ring"));
    let (said, told) = mpsc::channel();
    let of_thread: Arc<Datastore> = store.clone();
    let kubo = thread::spawn(move || {
        let pin = Key::new("/pins/pin/1").unwrap();
        put(&of_thread, 10..20);
        of_thread.put(&pin, b"10 to 19").unwrap();
        said.send("pinned").unwrap();
        for number in 0..10 {
            of_thread.delete(&sim::key(number)).unwrap();
        }
        said.send("collected").unwrap();
    });
    assert_eq!(told.recv_timeout(sim::PATIENCE).unwrap(), "pinned", "puts go on");
    assert!(told.recv_timeout(Duration::from_millis(300)).is_err(), "deletes are held");
    for shard in ["/node/shard-0", "/node/shard-1"] {
        snapshot(&world.disk, &copies.disk, Path::new(shard));
        snapshot(&world.disk, &copies.disk, &Path::new(shard).join("ring"));
    }
    drop(hold);
    assert_eq!(told.recv_timeout(sim::PATIENCE).unwrap(), "collected");
    kubo.join().unwrap();
    assert!(!store.has(&sim::key(0)).unwrap());
    assert!(!store.writes_wait());

    let node = copies.open();
    let mut value = Vec::new();
    node.get(&pin, &mut value).unwrap();
    assert_eq!(value, b"0 to 9");
    for number in 0..10 {
        node.get(&sim::key(number), &mut value).unwrap();
        assert_eq!(value, sim::value(number));
    }
}
